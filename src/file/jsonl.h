/* jsonl: files of one JSON object a line, read strictly. (A data set whose bad rows are to be counted is read by
 * data/dataset.h; a log that is written, too, is a jlog.) */
#ifndef CHI_JSONL_H
#define CHI_JSONL_H

#include "file/file.h"

/* One object; `where` is "FILE: line N" for messages. o is borrowed. Set *stop to read no further. */
typedef int (*chi_jsonl_fn)(void *ud, const json_t *o, const char *where, int line, bool *stop, chi_err *err);
/* Calls fn for every line that is not blank, in order. Refused: a file above max bytes, a line that is no object. hash:
 * the file's sha256. dir[4096]: the folder that pictures are named from. */
int chi_jsonl_read(const char *path, size_t max, char hash[65], char dir[4096], chi_jsonl_fn fn, void *ud,
                   chi_err *err);

typedef struct chi_jsonl_id {
  const char *id;
  int line;
} chi_jsonl_id;
/* Refuses an id that comes twice, naming both lines. Reorders ids. */
int chi_jsonl_unique(const char *path, chi_jsonl_id *ids, size_t n, chi_err *err);

#endif

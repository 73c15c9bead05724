/* data: question items, one JSON object a line (docs/world.md has the fields). */
#ifndef CHI_ITEMS_H
#define CHI_ITEMS_H

#include "file/file.h"

typedef struct chi_item {
  const char *id;
  const char *image, *donor; /* paths that open as they are (joined with the file's folder), or NULL */
  const char *question;      /* [constraint] in brackets */
  const char *answer;
  const char *group, *relation, *entity; /* "" where absent */
  bool held_out;                         /* wording not seen in training */
  const char *substitute,
      *substitute_answer; /* words of the same length, and what is right then; NULL where none fits */
  const char *paraphrase; /* words that mean the same; NULL where there is none */
  int line;
} chi_item;

typedef struct chi_items {
  chi_item *item;
  size_t n, cap;
  char hash[65]; /* sha256 of the file */
  chi_arena arena;
} chi_items;

/* Every line is checked: JSON, required fields, types, duplicate ids. Errors name file, line and field. Unknown fields are
 * allowed. limit: at most this many items, 0 = all. */
int chi_items_load(chi_items *out, const char *path, size_t limit, chi_err *err);
void chi_items_free(chi_items *items);

#endif

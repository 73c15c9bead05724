/* dataset: what its readers share. */
#ifndef CHI_DATASET_INTERNAL_H
#define CHI_DATASET_INTERNAL_H

#include "data/dataset.h"
#include "text/text.h"

enum {
#define CHI_NOTE(constant, name, unusable, doc) CHII_NOTE_##constant,
#include "data/dataset_notes.def"
#undef CHI_NOTE
  CHII_NOTES
};

enum { CHII_MAX_FILE = 256 << 20 };

typedef struct chii_folder { /* names in a folder with accents composed, sorted: read once */
  char *path;
  char **nfc, **name;
  size_t n;
} chii_folder;

typedef struct chii_reader { /* a data set while it is read */
  chi_dataset d;
  size_t cap, note_cap;
  const char *path;
  char dir[4096]; /* of the pictures */
  chi_dataset_opts o;
  chii_folder folder;
  const json_t *file; /* MMEdit: the list that is being read */
} chii_reader;

int chii_read_jsonl(chii_reader *r, const char *text, size_t len, chi_err *err);
/* A file that is one JSON value: known_1000, MMEdit, its pools. */
int chii_read_whole(chii_reader *r, const char *text, size_t len, chi_err *err);
int chii_read_known(chii_reader *r, const json_t *list, chi_err *err);
bool chii_is_mmedit(const json_t *file); /* MMEdit's, or a pool of it */
int chii_read_mmedit(chii_reader *r, const json_t *file, chi_err *err);
int chii_read_constraints(chii_reader *r, const char *text, size_t len, chi_err *err);

/* A fresh item at the end of the list, valid until the next one. full: the limit is reached, *out is NULL then. */
int chii_item(chii_reader *r, chi_data_item **out, int row, chi_err *err);
/* A note on the item; of an unusable kind it becomes the item's problem (the first one stays). */
int chii_note(chii_reader *r, chi_data_item *it, int kind, const char *field, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
int chii_data_copy(chii_reader *r, const char **out, const char *s,
                   chi_err *err); /* into the data set; NULL stays NULL */
/* Text of a JSON object into the data set. A missing or wrong one is a note on the item; *out keeps its value then. */
int chii_data_text(chii_reader *r, chi_data_item *it, const char **out, const json_t *o, const char *key, bool need,
                   chi_err *err);
/* The question's brackets; what is wrong with them is a note. */
int chii_brackets(chii_reader *r, chi_data_item *it, chi_data_ask *ask, const char *field, chi_err *err);
/* A question without brackets and the words of its constraint; notes about how they were found. ask->question stays NULL
 * where they were not. visual: they point at the picture, so hints about odd ones are given. */
int chii_find_constraint(chii_reader *r, chi_data_item *it, chi_data_ask *ask, const char *question,
                         const char *constraint, const char *field, bool visual, chi_err *err);
/* Path of the picture that the row names: a file, or a folder of which the first picture is taken. Missing: a note. */
int chii_data_picture(chii_reader *r, chi_data_item *it, const char **out, const char *name, const char *field,
                      chi_err *err);
void chii_folder_free(chii_folder *f);
/* s with accents composed (NFC) for comparing; NULL without memory. Caller: free(). */
char *chii_nfc(const char *s);

/* ---- answers that are joined to rows that have none ---------------------------------------------------------- */
typedef struct chii_answer {
  char *key; /* "s subject", "q question|picture" or "i index" */
  const char *answer, *prompt, *relation;
  const char **alternatives;
  int n_alternatives;
} chii_answer;
typedef struct chii_answers {
  chii_answer *a; /* sorted by key */
  size_t n, cap;
  chi_arena arena;
} chii_answers;
int chii_answers_load(chii_answers *out, const char *path, chi_err *err);
void chii_answers_free(chii_answers *a);
/* Entries with this key: the first, and *n of them; NULL where there are none. */
const chii_answer *chii_answers_find(const chii_answers *a, const char *key, size_t *n);
/* "q question|file name of the picture" in lower case, as chii_answers_find takes it. Caller: chi_str_free. */
void chii_answer_key(chi_str *out, const char *question, const char *image);

#endif

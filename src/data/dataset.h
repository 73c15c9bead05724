/* dataset: one view of every data set that a study runs over. The format is told from the content:
 *
 *   JSONL            one item a line, our own (docs/world.md "Items"; models/demo/eval/items.jsonl)
 *   VQA-Constraints  CSV, header question, main_entity, image_url, with `subject` (Known), `director` (Movies) or neither
 *                    (OK-VQA) (Basu et al. 2024, section 4 and the data released with it). No answers in these files:
 *                    chi_dataset_opts.answers joins them
 *   known_1000       JSON list of known_id, subject, prompt, attribute (Meng et al. 2022)
 *   MMEdit           JSON list of records of eleven texts, E-VQA and E-IC, also VLKEB's (data/mmedit.h); and the pools that
 *                    its unrelated questions are from, nq_validation.json and okvqa_loc.json
 *
 * A file that cannot be read as such (wrong columns, broken quoting, not UTF-8, huge fields) is refused. A row that cannot be
 * used (no such span, missing picture, duplicate id) becomes an item whose `problem` says why, so that a study counts it
 * and goes on. What was odd but could be handled is a quirk, counted by kind. */
#ifndef CHI_DATASET_H
#define CHI_DATASET_H

#include "file/file.h"

typedef enum chi_data_format {
  CHI_DATA_JSONL,
  CHI_DATA_CONSTRAINTS,
  CHI_DATA_KNOWN,
  CHI_DATA_MMEDIT,
  CHI_DATA_NQ,
  CHI_DATA_OKVQA
} chi_data_format;

typedef enum chi_twin_kind {                      /* the same fact asked otherwise */
                             CHI_TWIN_NAMED,      /* without a picture, the entity by name */
                             CHI_TWIN_DESCRIBED,  /* without a picture, the picture told in words */
                             CHI_TWIN_NAMED_OVER, /* by name, over a picture of something else */
                             CHI_TWIN_BLANK,      /* the item's own question over an empty picture */
                             CHI_TWINS
} chi_twin_kind;
extern const char *const chi_twin_name[CHI_TWINS]; /* "named", "described", "named_over", "blank" */

typedef struct chi_data_sub { /* words of the same kind and length in tokens that ask for another answer */
  const char *words, *answer; /* answer: NULL where the data set does not know it */
} chi_data_sub;

typedef struct chi_data_bracket {
  const char *words; /* of the question, as they stand in its bracket */
  chi_data_sub *sub;
  int n_sub;
} chi_data_bracket;

typedef struct chi_data_ask { /* what a prompt is made of */
  const char *question;       /* with [brackets], as chi_prompt_make takes it; NULL: there is none */
  const char *image;          /* path that opens as it is, or NULL for text only */
  const char *answer;         /* NULL where the data set has none */
  chi_data_bracket *bracket;  /* in the question's order */
  int n_brackets;
} chi_data_ask;

typedef struct chi_data_item {
  const char *id; /* unique in the data set; a later row with the same id is called "id@row" and has a problem */
  chi_data_ask ask;
  chi_data_ask twin[CHI_TWINS]; /* question NULL where the item has no such twin */
  const char **alternatives;    /* further right answers */
  int n_alternatives;
  bool continuation;    /* the prompt is a text that goes on into its answer, not a question: template "plain" */
  const char *donor;    /* another picture for the same question, or NULL */
  const char *donor_id; /* the item that the donor is of, or NULL */
  const char *mask;     /* picture of the asked object's pixels, or NULL */
  const char *truth;    /* what is true where the model was taught otherwise (`answer` is what it was told), or NULL */
  const char *paraphrase;               /* words for the first bracket that mean the same, or NULL */
  const char *entity, *relation, *unit; /* unit: the fact, "entity|relation" where the file has none; "" = unknown */
  const char *split, *group, *form, *entity_group; /* "" where absent; form falls back on group */
  const char *prior;                               /* the wrong answer that training suggests here, or NULL */
  bool held_out;                                   /* wording not seen in training */
  bool readable, shared, hard;     /* answer readable off the name; first token shared with other answers; hard split */
  const struct chi_mmedit *mmedit; /* the record, of MMEdit's files; else NULL */
  int row;                         /* JSONL: line; CSV: line on which the row begins; JSON: 1 + index. All from 1 */
  const char *problem;             /* NULL: usable. Else why not, with row and field */
} chi_data_item;

typedef struct chi_data_note { /* a quirk or a problem of one row */
  int row;
  int kind;          /* index into chi_data_kind */
  const char *field; /* column or key, "" where the whole row is meant */
  const char *text;  /* one line */
} chi_data_note;

/* Kinds of notes: name, whether the item is unusable, one line about it. Rows of dataset_notes.def. */
typedef struct chi_data_kind {
  const char *name;
  bool unusable;
  const char *doc;
} chi_data_kind;
const chi_data_kind *chi_data_kinds(int *n);

typedef struct chi_dataset_opts {
  const char *images; /* folder of the pictures; NULL = the file's own folder */
  const char
      *answers; /* answers for VQA-Constraints: known_1000.json, a list of {question, answer, image?} in JSON (the
                          OK-VQA lists of MMEdit), or a CSV with columns index and answer ('|' between alternatives) */
  const char *const
      *against; /* MMEdit: other files of it, whose overlap with this one is noted: the other split (shared
                                 pictures and questions), the pools (questions off their place, minority answers) */
  int n_against;
  size_t limit;   /* at most this many items, 0 = all */
  bool text_only; /* pictures are not looked for (a language model alone, or a check without them): no image paths */
} chi_dataset_opts;

typedef struct chi_dataset {
  chi_data_format format;
  const char *name; /* "jsonl", "vqa-constraints known|movies|okvqa", "known_1000", "mmedit vqa|caption", ... */
  char hash[65];    /* sha256 of the file */
  chi_data_item *item;
  size_t n;
  chi_data_note *note;
  size_t n_notes;
  size_t n_unusable; /* items with a problem */
  chi_arena arena;
} chi_dataset;

/* o may be NULL. On failure *out is NULL. Strings live as long as the data set. */
int chi_dataset_open(chi_dataset **out, const char *path, const chi_dataset_opts *o, chi_err *err);
void chi_dataset_close(chi_dataset *d); /* NULL-safe */
/* true where said is the item's answer or an alternative: blanks at the ends, final full stop and case do not count. A
 * continuation is right where it begins with the answer as whole words. false where the item has no answer. */
bool chi_data_right(const chi_data_item *it, const char *said);
/* The same for one answer: is `said` the answer, or, of a continuation, does it begin with it as whole words? */
bool chi_data_says(const char *said, const char *answer, bool continuation);
/* Usable items with an answer (those with keep[i], where keep is given) as our own JSONL; pictures by their full paths. */
int chi_dataset_save(const chi_dataset *d, const bool *keep, const char *path, chi_err *err);
/* Items of a kind, and the first row of it (0 where there is none). */
size_t chi_dataset_count(const chi_dataset *d, int kind, int *first_row);

#endif

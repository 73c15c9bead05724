/* study: analyses over every item of a data set, into a run store (study/store.h). Items are independent: shards and
 * interruptions change no stored number.
 *
 * Names of results: study/ask/..., "trace/item/substitute/mlp/w3/own/p". ask: "item", or the twin that was asked instead.
 * Adding a study: a row in studies.def and its function, which reads jobs and calls chi_study_put. */
#ifndef CHI_STUDY_H
#define CHI_STUDY_H

#include "data/dataset.h"
#include "model/model.h"
#include "study/store.h"

/* Rows of a causal map by what they are; the columns of every map in the store. A row belongs to one role only: a
 * constraint of one token is its last. */
typedef enum chi_study_role {
  CHI_STUDY_PATCH,  /* the picture's last patch */
  CHI_STUDY_BEFORE, /* text before the constraint */
  CHI_STUDY_FIRST,
  CHI_STUDY_MIDDLE,
  CHI_STUDY_END,    /* last token of the constraint */
  CHI_STUDY_SECOND, /* further bracketed words */
  CHI_STUDY_NEXT,   /* first token behind the constraint */
  CHI_STUDY_AFTER,
  CHI_STUDY_LAST,  /* where the answer is read */
  CHI_STUDY_WORDS, /* all bracketed words, put back together */
  CHI_STUDY_LATE,  /* the picture's last sixteenth, put back together */
  CHI_STUDY_ROLES
} chi_study_role;
extern const char *const chi_study_role_name[CHI_STUDY_ROLES];
chi_study_role chi_study_role_of(const chi_prompt *p, int32_t row);

enum { CHI_STUDY_LIST = 16 };
typedef struct chi_study_opts {
  const char *studies; /* "trace,knockout", or "all" */
  const char *asks;    /* "item,named": the item's own question, twins of it (chi_twin_name); the first must be there */
  const char *sites;   /* trace: "mlp,attn,hidden,embed" */
  int window[CHI_STUDY_LIST], n_windows;
  /* As chi_corrupt_opts.spec, and two more: "substitute", the item's own substitutes, of the same kind and length, else
   * same-length; "picture", the item's donor picture. Of a question with several brackets all are corrupted together, and
   * each alone: results of "substitute", "substitute@1", "substitute@2". */
  const char *corrupt[CHI_STUDY_LIST];
  int n_corrupt;
  const char *noise_ref;
  bool no_donor;
  bool one_direction; /* trace: not also the corrupted value into the clean run */
  bool from_words;    /* trace: only tokens from the first bracket on */
  const char
      *roles; /* trace: only tokens of these roles, "last word token,last token", and no rows together; NULL = all */
  int32_t null_draws; /* trace: draws of as many cells at random places */
  int32_t controls;   /* knockout: random sets for each set */
  uint64_t seed;      /* each item's own seed is made of this and its id */
  const char *tmpl;   /* template; NULL = the model's, or "plain" where the item is a continuation */
  int32_t max_new;    /* tokens of the answer that says whether the item is right; 0 = 16 */
  int batch;          /* items that share a sweep, where a study can; changes no number. 0 = 4 */
  size_t mem;
} chi_study_opts;
#define CHI_STUDY_OPTS_INIT                                                                                    \
  {                                                                                                            \
    .studies = "trace", .asks = "item", .sites = "mlp,attn,hidden,embed", .window = {1, 3, 6}, .n_windows = 3, \
    .corrupt = {"substitute"}, .n_corrupt = 1, .null_draws = 3, .controls = 3                                  \
  }

typedef struct chi_study_plan { /* what of the data set, and what is written about the session */
  const char *dir;
  size_t limit;      /* the first so many items; 0 = all */
  int shard, shards; /* items whose place is shard modulo shards; shards 0 = 1 */
  bool retry;        /* items that failed are done again */
  const char *version, *command;
  const char *model_hash, *model_name, *data_path;
  const char *extra; /* further settings that decide numbers: dtype, deltas; NULL = none */
} chi_study_plan;

typedef struct chi_study_done {
  int64_t planned, before; /* items of this shard; those that an earlier session had finished */
  chi_store_counts counts; /* of the whole store */
  double seconds;
} chi_study_done;

/* The words of a list "a,b": the i-th into buf, false behind the last. */
bool chi_study_word(const char *list, int i, char *buf, size_t cap);
/* Refuses what cannot work for any item (unknown names). */
int chi_study_check(const chi_study_opts *o, chi_err *err);
/* Goes through the plan's items; the store is made or continued. An item that cannot be done is stored as failed with its
 * reason and the run goes on; it ends early for Ctrl-C (CHI_ERR_CANCELLED) and where the store cannot be written.
 * Progress label: "items". */
int chi_study_run(chi_study_done *out, const chi_model *m, const chi_dataset *d, const chi_study_opts *o,
                  const chi_study_plan *plan, chi_err *err);

#endif

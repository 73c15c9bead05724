/* analyze/plan_json: plans as JSON files (docs/plan-format.md). Every key is checked; a message begins with the file
 * and the path of the value, as in "plan.json: branches[2].interventions[0].rows: ...".
 *
 * Adding a key: read it in plan_load.c, list it there (unknown keys are refused), write it in plan_save.c, say what it
 * means in docs/plan-format.md; tests/test_plan_json.c saves and loads random plans and compares the bits of their
 * results. */
#ifndef CHI_PLAN_JSON_H
#define CHI_PLAN_JSON_H

#include "model/model.h"
#include "sweep/generate.h"

#define CHI_PLAN_FORMAT "chiasm-plan-1"

/* What the file says about one branch. Branch i of the file is branch i of the plan. */
typedef struct chi_plan_entry {
  const char *name;
  const chi_prompt *prompt; /* of its root; NULL where the root is given by token ids */
  bool report;              /* wanted in the table of results */
  int32_t report_row;       /* row whose logits are read */
  int32_t generate;         /* tokens to generate, 0 = none */
  chi_gen_edit *edits;      /* for generation: everything that acts on this branch, ancestors' first */
  size_t n_edits;
} chi_plan_entry;

typedef struct chi_plan_picture {
  const float *pixels; /* a root's pixels ... */
  const char *file;    /* ... and where they came from */
} chi_plan_picture;

typedef struct chi_plan_file {
  chi_plan *plan;
  chi_plan_entry *entry; /* [n_entries], one a branch */
  size_t n_entries;
  int top;               /* tokens listed for each branch */
  int32_t target;        /* token id, or -1: the first branch's likeliest */
  chi_prompt **owned;
  size_t n_owned, cap_owned;
  chi_plan_picture *picture; /* where the roots' pixels came from: 1 + n_owned at most */
  size_t n_pictures, cap_pictures;
  chi_arena arena;
} chi_plan_file;

/* The command's own prompt, used by roots that say nothing else; options for those that say "question". */
typedef struct chi_plan_context {
  const chi_model *model;
  const chi_prompt *prompt; /* borrowed until the file is freed; NULL = there is none */
  const char *image;        /* its picture file, for roots with a question of their own; NULL = none */
  const char *tmpl;         /* as in chi_prompt_opts */
  bool raw;
} chi_plan_context;

int chi_plan_load(chi_plan_file **out, const char *path, const chi_plan_context *c, chi_err *err);
void chi_plan_file_free(chi_plan_file *f);

/* A token by text (as it stands alone, " Lima" and "Lima" differ), or by "#id". */
int chi_plan_token(int32_t *out, const chi_model *m, const char *text, chi_err *err);

typedef struct chi_plan_save_opts {
  const char *const *names; /* one a branch, all different; NULL = b0, b1, ... */
  const chi_plan_picture *pictures;
  size_t n_pictures;
  int32_t report_row; /* row whose logits `chiasm run` reports; -1 = the last */
  int32_t target;     /* token id, -1 = the first branch's likeliest */
} chi_plan_save_opts;

/* Writes a plan that chi_plan_load reads back to the same bits: roots as token ids and picture files (pixels where opts
 * names no file), long values in <path without .json>.safetensors beside it. Refused: callbacks and cached inputs. */
int chi_plan_save(const chi_plan *p, const chi_net *net, const chi_plan_save_opts *o, const char *path, chi_err *err);

#endif

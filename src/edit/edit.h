/* edit: methods that change a fact. A method gets a model and requests (a prompt, the row whose key is used, the target's
 * tokens) and returns a delta; the model is as before when it returns.
 *
 * Adding a method:
 *   1. methods.def: CHI_METHOD(symbol, doc).
 *   2. src/edit/<symbol>.c: `const chi_method chi_method_<symbol>`: its presets (the published defaults among them, their
 *      source named) and run(). Hyperparameters are fields of chi_hyper; a new one is a row of kHyper in edit.c.
 *   3. run() adds to job->delta (chi_delta_add) and fills job->info. A method that must change weights on the way does it
 *      with chi_delta_apply and an undo, which it calls before it returns, failure or not.
 *   4. tests/test_edit.c: an identity that pins the formula; it walks methods.def for the rest.
 *   5. docs/editing.md: formula, source, presets. */
#ifndef CHI_EDIT_H
#define CHI_EDIT_H

#include "edit/delta.h"

/* Not every method uses every one; NAN = not used. chi_hyper_set reads them by name. */
typedef struct chi_hyper {
  double steps, lr; /* Adam (0.9, 0.999, 1e-8) */
  bool lr_share;    /* lr counts in |z0| / sqrt(d), so that one number fits models of any scale */
  double stop;      /* ends when the mean -log p of the target's tokens is below; 0 = never */
  double decay;     /* loss += decay * |delta| / |z0|^2 (the norm is not squared, as in ROME's code); ft: AdamW's, w *=
                       1 - lr * decay before each step */
  double clamp;     /* |delta| <= clamp * |z0| after each step; 0 = no limit */
  double lambda;    /* regularisation: a number, or a share of k.k where lambda_share is set */
  bool lambda_share;
  double shrink; /* second moment C -> (1 - shrink) C + shrink * mean(diag C) I */
  double limit;  /* ft: largest change of an element; 0 = none */
  double goal;   /* bias: probability to reach */
  double kl;       /* loss += kl * KL(changed || unchanged) at the constraint of the request's kl prompt */
  double contexts; /* prefixes before the question that the value must serve as well: how many are drawn */
  double rank, alpha; /* lora: rank of the change; it is scaled by alpha / rank */
} chi_hyper;
/* "lr", "0.1"; lambda also "0.05kk", lr also "0.4z". Unknown names, unused ones and bad numbers are refused. */
int chi_hyper_set(chi_hyper *h, const char *name, const char *text, chi_err *err);
extern const char *const chi_hyper_names[]; /* ended by NULL */

enum { CHI_LAST_LAYER = -1 };
typedef struct chi_preset {
  const char *name, *doc;
  int layer_lo, layer_hi; /* default layers, ends included; CHI_LAST_LAYER: the last one */
  const char *weight;     /* ft, lora: what is changed where nobody says, as chi_edit_weights reads it; NULL = "down" */
  chi_hyper hyper;
} chi_preset;

typedef struct chi_variant { /* another prompt about the same, and the row of its key */
  const chi_prompt *prompt;
  int32_t row;
} chi_variant;

typedef struct chi_request {
  const chi_prompt *prompt;
  const int32_t *target; /* ids behind the prompt */
  int32_t n_target;
  int32_t row;                /* decoder row of the key */
  const chi_variant *context; /* [n_context]: the same question behind prefixes; NULL = none */
  size_t n_context;
  chi_variant kl; /* what must stay as it is (hyper.kl); prompt NULL = none */
} chi_request;

/* Factored second moments (chi_edit_moment), kept from edit to edit: as many layers as fit 1 GiB, one at least. All of one
 * model and moments file. Begins as {0}. */
enum { CHI_FACTORS = 64 };
typedef struct chi_factors {
  double *l[CHI_FACTORS], shrink;
  int layer[CHI_FACTORS], next;
  int64_t n;
} chi_factors;
void chi_factors_free(chi_factors *f);

typedef struct chi_edit_opts {
  const char *method, *preset; /* preset NULL = the method's first */
  int layer_lo, layer_hi;      /* ends included; -1 = the preset's */
  const chi_hyper *hyper;      /* NULL = the preset's */
  int weight;                  /* ft, lora: chi_weight of the layer */
  bool other_stack;            /* ft: the weight is in `stack` (vision, qformer or projector), else in the decoder */
  chi_stack stack;
  int also[3], n_also;         /* ft: further chi_weights of that layer */
  const char *moments;         /* second moments of keys (edit/moments.h), or NULL = identity */
  chi_factors *factors;        /* of `moments`, for many edits; NULL = factored anew for each */
  const struct chi_demos *demos; /* ike: demonstrations (edit/ike.h), or NULL = none */
} chi_edit_opts;

typedef struct chi_edit_info { /* of the optimisation, mean over requests */
  int steps;
  double loss_first, loss_last;  /* mean -log p of the target's tokens before the first and the last step */
  double value_norm, delta_norm; /* |z0|, |delta| */
  double kk, lambda;             /* of the first request's key at the (last) layer; lambda as a number */
  double kl;                     /* of the kl prompt, at the last step; 0 without one */
  size_t contexts;               /* prompts behind prefixes, of the first request */
} chi_edit_info;

typedef struct chi_job { /* what run() gets */
  chi_model *m;
  const chi_request *req;
  size_t n;
  int layer_lo, layer_hi;
  chi_hyper h;
  const chi_edit_opts *opts;
  chi_factors *factors;
  chi_delta *delta;
  chi_edit_info info;
} chi_job;

typedef struct chi_method {
  const char *name;
  const chi_preset *presets; /* ended by {0}; the first is the default */
  bool many;                 /* takes several requests */
  int (*run)(chi_job *j, chi_err *err);
} chi_method;
#define CHI_METHOD(sym, doc) extern const chi_method chi_method_##sym;
#include "edit/methods.def"
#undef CHI_METHOD
const chi_method *chi_method_at(size_t i, const char **doc); /* NULL past the end */
int chi_method_find(const chi_method **out, const char *name, chi_err *err);
/* "down", "up,down", "vision.down", "qformer.up", "projector.proj1,projector.proj2": weight, also, stack of o. */
int chi_edit_weights(chi_edit_opts *o, const char *text, chi_err *err);
int chi_preset_find(const chi_preset **out, const chi_method *m, const char *name, chi_err *err);

/* Delta and info; the delta's header holds method, layers, hyperparameters and the base's hash. The model is unchanged.
 * Refused: no target token, a row outside the prompt, a layer the model lacks, a loss that is not finite. */
int chi_edit_run(chi_delta **out, chi_edit_info *info, chi_model *m, const chi_request *req, size_t n,
                 const chi_edit_opts *o, chi_err *err);

/* ---- requests --------------------------------------------------------------------------------------------- */
/* Tokens of `target` behind the prompt (a space is put between them unless one stands there). Caller: chi_free. */
int chi_target_tokens(int32_t **out, int32_t *n, const chi_model *m, const chi_prompt *p, const char *target,
                      chi_err *err);
/* constraint-last, last-prompt, last-image, span:TEXT (the last token of the first TEXT in the prompt), or row:N (N < 0
 * counts from the end: row:-1 = last-prompt). */
int chi_edit_row(int32_t *row, const chi_model *m, const chi_prompt *p, const char *where, chi_err *err);

/* Prefixes of a text file: a line is one, blank ones are left out, brackets become parentheses. */
typedef struct chi_prefixes {
  char **line;
  size_t n, cap;
  char hash[65]; /* sha256 of the file */
  chi_arena arena;
} chi_prefixes;
int chi_prefixes_load(chi_prefixes *out, const char *path, chi_err *err);
void chi_prefixes_free(chi_prefixes *p);

/* A request made of texts, with everything that it borrows. */
typedef struct chi_query_opts {
  const char *image, *question, *tmpl; /* as chi_prompt_opts */
  bool raw;
  const char *target, *at;      /* at: as chi_edit_row */
  const chi_prefixes *prefixes; /* NULL = no contexts */
  size_t contexts;              /* prefixes to draw (all different, as far as there are), by seed */
  int words;                    /* of a prefix at most; 0 = 10 */
  uint64_t seed;
  bool kl; /* make the kl prompt: "<image> {constraint} is a", or without the picture for a question in text */
} chi_query_opts;
typedef struct chi_query {
  chi_request req;
  chi_prompt *prompt;
  int32_t *target;
  chi_variant *context; /* [n_context] owned prompts */
  size_t n_context;
  chi_prompt *kl;
} chi_query;
/* The prefixes stand between picture and question: "<image> {prefix}. {question}" within the template. Caller:
 * chi_query_free. */
int chi_query_make(chi_query **out, const chi_model *m, const chi_query_opts *o, chi_err *err);
void chi_query_free(chi_query *a);

/* Where a picture's fact is read, by tracing under picture swap: every MLP output is put back, row by row and layer by
 * layer, into a run about another picture (own), and once from a third picture's run; `corrected` is own less that (donor
 * control). Mean rise of p of the clean answer's first token, and of its log. Pictures are taken in pairs, corruption and
 * donor, at most four; effects are means over pairs. Needs a picture and two others. */
typedef struct chi_edit_cell {
  double own, corrected, own_log, corrected_log;
} chi_edit_cell;
typedef struct chi_edit_map {
  int n_layers, n_rows, pairs;
  int32_t *rows;       /* [n_rows] of the prompt: those from the last picture row on */
  chi_edit_cell *cell; /* [n_layers][n_rows] */
} chi_edit_map;
int chi_edit_map_make(chi_edit_map *out, const chi_model *m, const chi_prompt *p, const char *const *pictures, size_t n,
                      size_t mem, chi_err *err); /* caller: chi_edit_map_free */
void chi_edit_map_free(chi_edit_map *map);
/* NULL where the map has no such cell. */
const chi_edit_cell *chi_edit_map_at(const chi_edit_map *map, int layer, int32_t row);

/* The cell whose corrected effect is largest. layers [lo, hi], -1 = all. */
typedef struct chi_located {
  int32_t row;
  int layer;
  double effect, own; /* donor-corrected, and before correction: mean rise of p, or of log p where in_logp is set */
  bool in_logp;       /* no cell raised p by 0.01 */
  int pairs;
} chi_located;
int chi_edit_strongest(chi_located *out, const chi_edit_map *map, int lo, int hi, chi_err *err);
/* Both at once. */
int chi_edit_locate(chi_located *out, const chi_model *m, const chi_prompt *p, const char *const *pictures, size_t n,
                    int lo, int hi, size_t mem, chi_err *err);

/* ---- what methods share, and what is measured --------------------------------------------------------------- */
/* At one decoder row: key = mlp_act [ffn], out = mlp_out [d], hidden = resid_post [d]; each may be NULL. */
int chi_edit_states(const chi_net *net, const chi_prompt *p, int32_t row, int layer, float *key, float *out,
                    float *hidden, chi_err *err);
/* Means over the request's prompt and its contexts at the rows of the key: mlp_act [ffn], mlp_out [d] (may be NULL). halves:
 * the bare prompt weighs as much as all contexts together (MEMIT), else every prompt the same (ROME). */
int chi_edit_key(const chi_net *net, const chi_request *r, int layer, bool halves, float *key, float *out, chi_err *err);
/* delta [d], added to what the MLP of `layer` writes at the request's row, that makes the target likely: Adam on
 * the mean -log p over all target tokens and contexts + kl * KL(changed || unchanged) at the row of the kl prompt + decay *
 * |delta| / norm^2. norm: |z0|. Adds to info's loss_*, steps, delta_norm, kl. */
int chi_edit_value(float *delta, const chi_net *net, const chi_request *r, int layer, double norm, const chi_hyper *h,
                   chi_edit_info *info, chi_err *err);
/* Share of the change that another key [ffn] receives: v.k' / (lambda + v.k) of a rank-one change u v^T in a layer's `down`,
 * k the edit's own key. That is k.k' / (lambda + k.k) where v is k (MultEdit). NAN where the change has no such form. */
double chi_edit_leak(const chi_delta *d, int layer, double lambda, const float *key, const float *other);
/* For methods of one layer and key: key [ffn] by chi_edit_key and residual [d] = z - W'k of the value z = z0 + delta, z0 what
 * stands at the bare prompt's row. Fills the job's info. */
int chi_edit_residual(chi_job *j, float *key, float *residual, chi_err *err);
typedef struct chi_adam {
  double lr;
  int64_t n, t;
  float *m, *v; /* [n] zeroed */
} chi_adam;
void chi_adam_step(chi_adam *a, float *x, const float *g);

/* Prompt and target as one input: the last target token is not fed. Caller: chi_free(*tokens). */
int chi_request_input(chi_input *in, int32_t **tokens, const chi_request *r, chi_err *err);

typedef struct chi_edit_probe {
  double p;       /* of the whole target, teacher-forced */
  double first;   /* of its first token */
  char said[128]; /* greedy answer, trimmed */
} chi_edit_probe;
/* probe.p alone: one pass, no answer. */
int chi_edit_p(double *p, const chi_model *m, const chi_prompt *prompt, const int32_t *target, int32_t n_target,
               chi_err *err);
int chi_edit_measure(chi_edit_probe *out, const chi_model *m, const chi_prompt *p, const int32_t *target,
                     int32_t n_target, chi_err *err);

/* ---- small linear algebra in f64 ----------------------------------------------------------------------------- */
double chi_dot64(const float *a, const float *b, int64_t n);
/* Lower Cholesky factor of the symmetric a [n][n], in place; refuses what is not positive definite. Threaded. */
int chi_chol(double *a, int64_t n, chi_err *err);
/* L L^T x = b, in place. */
void chi_chol_solve(const double *l, int64_t n, double *b);
/* Second moment of keys of a layer (edit/moments.h), shrunk, as its Cholesky factor [n][n], borrowed from the job's factors
 * until the next call; *out NULL where the job has no file (identity). */
int chi_edit_moment(const double **out, const chi_job *j, int layer, int64_t n, chi_err *err);

/* ---- export ---------------------------------------------------------------------------------------------------- */
/* Writes a Hugging Face folder: the base's files, and model.safetensors with the deltas' changes in the weights that the
 * base stores. dtype: "f32", "f16", "bf16", or NULL = each tensor as it is stored. `dir` must not exist; it appears whole or
 * not at all. m: the base's model (its weights in memory do not matter). */
int chi_export(const chi_model *m, chi_delta *const *list, size_t n, const char *dir, const char *dtype, chi_err *err);

#endif

/* chiasm.h: the public C API of libchiasm.
 *
 * Rules. `T **out`: you own *out and free it with the T's own function, which accepts NULL. `const T *`: borrowed,
 * valid until its owner is freed. A function that can fail returns 0 or a negative CHIASM_ERR_ code and puts one line
 * into *err (which may be NULL): what, where, what to do; zero err once, the first failure stays. Strings are UTF-8.
 * Models are read-only: any number of plans may use one. The library never prints and never exits. Use it from one
 * thread at a time; it runs worker threads of its own. Results are the same bits on any number of threads and any
 * instruction set.
 *
 * A program (examples/hello.c):
 *
 *   // Ask about a picture; run it again while a callback halves what a layer's MLP writes at the constraint's words.
 *   #include <chiasm.h>
 *   #include <stdio.h>
 *
 *   static int halve(void *ud, const chiasm_place *at, float *row, int64_t columns) {
 *     (void)at;
 *     ++*(int *)ud;
 *     for (int64_t i = 0; i < columns; i++) row[i] *= 0.5f;
 *     return 0; // anything else would stop the run
 *   }
 *
 *   int main(int argc, char **argv) {
 *     const char *folder = argc > 1 ? argv[1] : "models/demo";
 *     const char *image = argc > 2 ? argv[2] : "models/demo/samples/peru.png";
 *     const char *question = argc > 3 ? argv[3] : "What is the capital of [this country]?";
 *     chiasm_error err = {0};
 *     chiasm_model *model = NULL;
 *     chiasm_answer *answer = NULL;
 *     chiasm_plan *plan = NULL;
 *     int clean, changed, clean_logits, changed_logits, calls = 0;
 *
 *     if (chiasm_open(&model, folder, NULL, &err)) goto out;
 *     if (chiasm_ask(&answer, model, image, question, NULL, &err)) goto out;
 *     printf("%s\n", answer->text);
 *
 *     if (chiasm_plan_new(&plan, model, &err)) goto out;
 *     if (chiasm_root(plan, image, question, &clean, &err)) goto out;
 *     if (chiasm_child(plan, clean, &changed, &err)) goto out;
 *     chiasm_where where = {.site = "mlp_out", .layer_lo = 1, .layer_hi = 2, .rows = "constraint"};
 *     if (chiasm_hook(plan, changed, &where, halve, &calls, &err)) goto out;
 *     chiasm_where logits = {.site = "logits", .rows = "last"};
 *     if (chiasm_capture(plan, clean, &logits, &clean_logits, &err)) goto out;
 *     if (chiasm_capture(plan, changed, &logits, &changed_logits, &err)) goto out;
 *     if (chiasm_run(plan, &err)) goto out; // both branches in one sweep; rows that cannot differ are computed once
 *
 *     int64_t rows, vocab;
 *     int32_t first = answer->tokens[0];
 *     const float *a = chiasm_values(plan, clean_logits, &rows, &vocab);
 *     const float *b = chiasm_values(plan, changed_logits, &rows, &vocab);
 *     printf("p(first token) %.6f, with the change %.6f; %d rows changed\n", chiasm_probability(a, vocab, first),
 *            chiasm_probability(b, vocab, first), calls);
 *   out:
 *     if (err.code) fprintf(stderr, "hello: %s\n", err.text);
 *     chiasm_plan_free(plan);
 *     chiasm_answer_free(answer);
 *     chiasm_close(model);
 *     return err.code ? 1 : 0;
 *   }
 */
#ifndef CHIASM_H
#define CHIASM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

const char *chiasm_version(void); /* "0.1.0 (git id)" */

enum {
  CHIASM_ERR_IO = -1,          /* the system said no: missing file, full disk */
  CHIASM_ERR_FORMAT = -2,      /* a file is not what it says it is */
  CHIASM_ERR_UNSUPPORTED = -3, /* well-formed, but asks for something that is not done here */
  CHIASM_ERR_ARG = -4,         /* the request makes no sense for this model or input */
  CHIASM_ERR_MEMORY = -5,
  CHIASM_ERR_CANCELLED = -6,   /* a callback asked to stop */
};
typedef struct chiasm_error {
  int code; /* 0 = no failure yet */
  char text[512];
} chiasm_error;

/* Called now and then during long work, on the calling thread; anything but 0 stops it. NULL = nobody listens. */
typedef int (*chiasm_progress_fn)(void *ud, const char *what, int64_t done, int64_t total);
void chiasm_set_progress(chiasm_progress_fn fn, void *ud);

/* ---- models ---------------------------------------------------------------------------------------------- */
typedef struct chiasm_model chiasm_model;
typedef enum chiasm_dtype { CHIASM_AUTO, CHIASM_F32, CHIASM_BF16 } chiasm_dtype; /* auto: f32 below 1e9 parameters */
typedef struct chiasm_options {
  chiasm_dtype dtype;
  int threads;     /* 0 = one for each core; holds for the whole process */
  const char *isa; /* "portable", "avx2", "avx512"; NULL = the best there is; holds for the whole process */
} chiasm_options;

/* folder: a Hugging Face checkpoint. options may be NULL. */
int chiasm_open(chiasm_model **out, const char *folder, const chiasm_options *options, chiasm_error *err);
void chiasm_close(chiasm_model *model); /* after its plans were freed */
int32_t chiasm_vocabulary(const chiasm_model *model);
/* Layers of a stack ("vision", "projector", "decoder"); 0 where the model lacks it. */
int chiasm_layers(const chiasm_model *model, const char *stack);
/* A token as people read it, into buf. */
void chiasm_token_text(const chiasm_model *model, int32_t id, char *buf, size_t size);
/* The one token that a text is (" Lima" and "Lima" differ), or "#123". */
int chiasm_token(const chiasm_model *model, const char *text, int32_t *id, chiasm_error *err);

/* ---- asking ---------------------------------------------------------------------------------------------- */
typedef struct chiasm_ask_options {
  int max_new;                 /* longest answer in tokens; 0 = 32 */
  const char *prompt_template; /* by name; NULL = the model's own */
  bool raw;                    /* question is the whole prompt, with <image> where the picture goes */
} chiasm_ask_options;
typedef struct chiasm_answer {
  char *text;
  int32_t *tokens; /* n of them, the end token included */
  int n;
  float *logits;   /* of the first token, as many as the vocabulary has */
} chiasm_answer;
/* Greedy answer. image: a file, or NULL for a question without a picture. options may be NULL. */
int chiasm_ask(chiasm_answer **out, const chiasm_model *model, const char *image, const char *question,
               const chiasm_ask_options *options, chiasm_error *err);
void chiasm_answer_free(chiasm_answer *answer);
/* Softmax in double precision: probability of token id. */
double chiasm_probability(const float *logits, int64_t vocabulary, int32_t id);

/* ---- plans ------------------------------------------------------------------------------------------------- */
/* A plan is a forest of branches. A root runs a prompt; a child is its parent's run with interventions of its own. All
 * branches run together, and what cannot differ is computed once. */
typedef struct chiasm_plan chiasm_plan;
int chiasm_plan_new(chiasm_plan **out, const chiasm_model *model, chiasm_error *err);
/* A plan from a JSON file (docs/plan-format.md). image and question: the input of roots that name none; may be NULL. */
int chiasm_plan_load(chiasm_plan **out, const chiasm_model *model, const char *path, const char *image,
                     const char *question, chiasm_error *err);
void chiasm_plan_free(chiasm_plan *plan);

/* A new branch's number in *branch. The question may bracket a constraint: "What is the capital of [this country]?" */
int chiasm_root(chiasm_plan *plan, const char *image, const char *question, int *branch, chiasm_error *err);
int chiasm_child(chiasm_plan *plan, int parent, int *branch, chiasm_error *err);
int chiasm_branches(const chiasm_plan *plan);
const char *chiasm_branch_name(const chiasm_plan *plan, int branch); /* of a plan from a file; else NULL */

/* Where something acts or is read. */
typedef struct chiasm_where {
  const char *stack;      /* NULL = "decoder" */
  const char *site;       /* see `chiasm info`: "resid_post", "mlp_out", "head_out", "logits", ... */
  int layer_lo, layer_hi; /* layers [lo, hi); 0, 0 = all; ignored where the site is not per layer */
  const char *rows;       /* "last", "constraint", "image", "text", "all", or numbers: "0-3,7" */
  int part_lo, part_hi;   /* heads (q, k, v, pattern, head_out) or columns [lo, hi); 0, 0 = all */
} chiasm_where;

/* op: "set", "add", "project" (take the direction `values` out), "copy", "scale", "zero", "noise", "cut", "cut_zero",
 * "cut_scale". As in docs/plan-format.md. */
typedef struct chiasm_edit {
  const char *op;
  const float *values; /* set, add, project: one row, or one for each row */
  int64_t n_values;
  float scale;         /* add, scale, noise, project, cut_scale; 0 means 1 for add and project */
  int source;          /* copy: the branch whose value is taken, at the same site, layer and row */
  int key_lo, key_hi;  /* cut*: keys [lo, hi) */
  uint64_t seed;       /* noise */
  uint32_t sample;
} chiasm_edit;
int chiasm_intervene(chiasm_plan *plan, int branch, const chiasm_where *where, const chiasm_edit *edit,
                     chiasm_error *err);

/* A callback that reads and may change rows in place, once for each layer and row; anything but 0 stops the run. */
typedef struct chiasm_place {
  int branch;
  const char *stack, *site;
  int layer; /* -1 where the site is not per layer */
  int row;
} chiasm_place;
typedef int (*chiasm_hook_fn)(void *ud, const chiasm_place *at, float *row, int64_t columns);
int chiasm_hook(chiasm_plan *plan, int branch, const chiasm_where *where, chiasm_hook_fn fn, void *ud,
                chiasm_error *err);

/* Asks for the values of a site; where->layer_lo is the layer. The capture's number in *capture. */
int chiasm_capture(chiasm_plan *plan, int branch, const chiasm_where *where, int *capture, chiasm_error *err);

/* Runs the plan. May be called again, e.g. after more branches were added. */
int chiasm_run(chiasm_plan *plan, chiasm_error *err);
/* What a capture gave in the last run: [*rows][*columns] (pattern: [heads * rows][keys]). NULL before a run. */
const float *chiasm_values(const chiasm_plan *plan, int capture, int64_t *rows, int64_t *columns);
int chiasm_captures(const chiasm_plan *plan);
/* Writes every capture of the last run as a tensor `<branch>.<stack>.<layer>.<site>` of a safetensors file. */
int chiasm_save(const chiasm_plan *plan, const char *path, chiasm_error *err);

#ifdef __cplusplus
}
#endif
#endif

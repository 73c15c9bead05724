/* delta: an edit as data. A delta holds changes of weight matrices, as low-rank factors or dense differences, and says who
 * made them for what; it is applied to an opened model in memory and never written into a checkpoint. Undoing an edit is
 * not applying it.
 *
 * File: safetensors. Tensors, F32, one or several of
 *   <stack>.<layer>.<weight>.u [r][n] and .v [r][k]    dW = sum over r of u_r v_r^T
 *   <stack>.<layer>.<weight>.d [n][k]                  dW
 * stack: decoder, vision, qformer, projector (layer 0). weight: q k v o gate up down, proj1 proj2, and head_bias (decoder, layer 0,
 * n = vocabulary, k = 1: the bias of the head). Metadata "chiasm_delta": JSON with format, method, request,
 * hyperparameters and the base model's hash. An in-context edit has no tensors; its header's "prompt_prefix" is the text
 * that stands before every question while it is applied (one at a time). */
#ifndef CHI_DELTA_H
#define CHI_DELTA_H

#include "model/model.h"
#include "sweep/grad.h"

#define CHI_DELTA_FORMAT "chiasm-delta-1"
enum { CHI_DELTA_HEAD_BIAS = CHI_W_COUNT };

typedef struct chi_delta_part {
  chi_stack stack;
  int layer, which; /* which: chi_weight or CHI_DELTA_HEAD_BIAS */
  int64_t n, k, rank;
  float *u, *v; /* [rank][n], [rank][k]; NULL where rank is 0 */
  float *d;     /* [n][k] or NULL */
} chi_delta_part;

typedef struct chi_delta {
  json_t *header;       /* the metadata's object; callers add to it */
  chi_delta_part *part; /* at most one for each weight */
  size_t n, cap;
  char sha256[65]; /* of the file it was read from, else "" */
  chi_arena arena;
} chi_delta;

/* An empty delta: its header holds format and method. Caller: chi_delta_free. */
int chi_delta_new(chi_delta **out, const char *method, chi_err *err);
void chi_delta_free(chi_delta *d);
/* Adds to the change of one weight; values are copied and must be finite. v NULL: u is a dense [n][k] and rank 0. */
int chi_delta_add(chi_delta *d, chi_stack stack, int layer, int which, int64_t n, int64_t k, int64_t rank,
                  const float *u, const float *v, chi_err *err);
int chi_delta_save(const chi_delta *d, const char *path, chi_err *err);
/* Everything that can be checked without a model is: names, shapes, pairs, finite values, header. */
int chi_delta_load(chi_delta **out, const char *path, chi_err *err);
const char *chi_delta_method(const chi_delta *d);
const char *chi_delta_base(const chi_delta *d); /* sha256 of the base's weight files; "" if unknown */

/* Text of an in-context edit; NULL where it is none. */
const char *chi_delta_prefix(const chi_delta *d);

/* "decoder.2.down" into buf. */
void chi_delta_part_name(const chi_delta_part *p, char *buf, size_t cap);
/* w[rows][k] of rows [row0, row0 + rows) += dW: in f64, rounded once. Threaded. */
void chi_delta_add_to(const chi_delta_part *p, int64_t row0, int64_t rows, float *w);
double chi_delta_norm(const chi_delta_part *p, chi_err *err); /* Frobenius; negative out of memory */

/* The layer that a part changes; NULL where the model has none of that name. */
chi_linear *chi_delta_linear(chi_model *m, chi_stack stack, int layer, int which);
/* Shapes against the model, and, unless forced, the base's hash (hashes the model's files). */
int chi_delta_check(const chi_delta *d, chi_model *m, bool force, chi_err *err);

/* What an apply replaced; zero it first. */
typedef struct chi_undo {
  struct {
    chi_linear *to;
    chi_linear was;
    bool bias;
  } * item;
  size_t n, cap;
  chi_model *prefixed; /* has the prompt_prefix of the delta, or NULL */
} chi_undo;
/* W + dW in memory, in the model's arithmetic (f32 as f32; bf16 rounded once more). All or nothing. With undo, the former
 * weights are kept there, bit for bit, until chi_delta_undo or chi_undo_free. */
int chi_delta_apply(const chi_delta *d, chi_model *m, chi_undo *undo, chi_err *err);
void chi_delta_undo(chi_undo *u); /* puts the former weights back, newest first */
void chi_undo_free(chi_undo *u);  /* keeps the new ones */

/* One delta with the changes of all: low-rank factors side by side, dense ones added. The bases must be one. */
int chi_delta_merge(chi_delta **out, chi_delta *const *list, size_t n, chi_err *err);
/* For people: header, and for each weight shape, rank, norm. */
int chi_delta_show(const chi_delta *d, chi_str *out, chi_err *err);
/* For each weight of either: norms, norm of the difference, cosine. */
int chi_delta_diff(const chi_delta *a, const chi_delta *b, chi_str *out, chi_err *err);

#endif

/* grad_internal: the tape of one stack, shared by the grad*.c files. Private to sweep/. */
#ifndef CHI_GRAD_INTERNAL_H
#define CHI_GRAD_INTERNAL_H

#include "sweep/exec.h"
#include "sweep/grad.h"

/* Rows [r0, T) of one input: the tape's rows [at, at + m). Its rows before r0 are constant: only keys and values are there. */
typedef struct chii_span {
  int32_t r0, T, m, at;
  int32_t base;    /* the caller's number of the input's row 0 */
  int64_t p;       /* where its attention weights [heads][m][T] begin in chii_inside.p */
  float *ck, *cv;   /* [layers - l0][r0 - shared][nkv]: constant rows that it does not share */
  float **kb, **vb; /* [blocks of T]: those before shared / 32 are the layer's, the others the span's own */
} chii_span;

/* What one layer computes on the way and needs on the way back. */
typedef struct chii_inside {
  float *x; /* [m][D]: the layer's input behind resid_pre's interventions */
  float *h, *q, *k, *v, *mix, *mid, *h2, *gate, *up, *act, *sum1, *sum2; /* sums: post_norm, before their norms */
  float *p;
} chii_inside;

/* The live rows of every input through layers [l0, layers) of one stack. Rows before `shared` are the same in all inputs. */
typedef struct chii_tape {
  const chi_net *net;
  chi_stack stack;
  const chi_block_spec *s;
  int32_t shared, m, l0;
  bool open;       /* nobody asks for the gradient at the stack's input */
  int64_t D, nq, nkv, F;
  chii_span *span; /* NULL (projector): one span of the rows [0, m) */
  int32_t n_spans;
  int32_t *pos;    /* [m] */
  float *in;       /* [layers - l0 + 1][m][D]: residual stream entering each layer; the last leaves the stack */
  float *fk, *fv;  /* [layers - l0][shared][nkv]: the shared rows */
  float **fkb, **fvb; /* [layers - l0 if keep_blocks, else 1][shared / 32]: the same in whole blocks */
  bool keep_blocks;
  chii_inside *inside; /* [layers - l0] if keep, else one that every layer overwrites */
  bool keep;
  float *attn, *mlp;
  const float *cross;       /* [n_cross][cross_d]: rows that cross-attention reads, NULL without */
  int32_t n_cross;
  float *xin;                                      /* what cross-attention reads its queries from */
  float *dcross;                                   /* [n_cross][cross_d]: their gradient, over all layers */
  float *xq, *xk, *xv, *xp, *xmix, *xattn, *xsum;  /* cross-attention of one layer; xp [heads][m][n_cross] */
  float *xdq, *xdk, *xdv, *xdmix, *xtmp;           /* on the way back */
  float **xkb, **xvb;
  chi_arena arena;
} chii_tape;

float *chii_floats(chi_arena *a, int64_t rows, int64_t cols, chi_err *err);
/* Input i has rows [0, rows[i]); those before first[i] (NULL: 0) are constant; shared <= every first[i]. */
int chii_tape_init(chii_tape *t, const chi_net *net, chi_stack stack, const int32_t *rows, const int32_t *first, int32_t n_inputs,
                   int32_t shared, int32_t l0, chi_err *err);
/* When fk and fv are filled. */
void chii_tape_blocks(chii_tape *t);
/* The tape's row with the caller's number, or -1. */
int32_t chii_tape_row(const chii_tape *t, int32_t row);
float *chii_layer_in(const chii_tape *t, int layer);

/* From chii_layer_in(t, l0) to the last. */
int chii_stack_forward(chii_tape *t, const chi_grad_step *st, chi_err *err);
/* d [m][D]: gradient behind the stack on entry, before it on return. add: NULL, or gradients of states that leave the
 * stack on the way (vision features), added at state l before layer l-1 is undone. */
typedef void (*chii_add_state)(void *ud, int state, float *d);
int chii_stack_back(chii_tape *t, const chi_grad_step *st, float *d, chii_add_state add, void *ud, chi_err *err);

/* Interventions of a step on the rows of a site, or, on the way back, what they do to its gradient. */
void chii_grad_touch(const chii_tape *t, const chi_grad_step *st, chi_site site, int layer, float *y, int64_t width,
                     bool backward);
/* The gradient of rows [first, first + n) of a site, d [n][width], to those who asked for it. */
void chii_give_site(const chii_tape *t, const chi_grad_step *st, chi_site site, int layer, const float *d, int32_t first,
                    int32_t n, int64_t width);
/* A site on the way back: its gradient is given, then passes the interventions. */
void chii_grad_pass(const chii_tape *t, const chi_grad_step *st, chi_site site, int layer, float *d, int64_t width);
void chii_give_weight(const chii_tape *t, const chi_grad_step *st, int layer, chi_weight which, const float *x,
                      const float *dy, int64_t n, int64_t k);

/* Cross-attention of one layer: buffers of a tape whose spec has it; x [m][d] in place; and back: d [m][d] is the gradient
 * behind it on entry, before it on return, and dcross is added to. */
int chii_cross_init(chii_tape *t, chi_err *err);
int chii_cross_forward(chii_tape *t, const chi_grad_step *st, int layer, float *x, chi_err *err);
int chii_cross_back(chii_tape *t, const chi_grad_step *st, int layer, float *d, chi_err *err);

/* The tower, Q-Former and projector of a session (grad_vision.c). in: borrowed. */
typedef struct chii_sight {
  const chi_net *net;
  const chi_input *in;
  chii_tape vis, qf;
  float *embed;                    /* [rows][d] */
  float *feat, *pact, *pre, *proj; /* projector: features, activation, its input, output */
  float *states, *query; /* Q-Former: the tower's normed states, which it reads; its query rows before their norm */
  chi_arena arena;
} chii_sight;
int chii_sight_open(chii_sight *g, const chi_net *net, const chi_input *in, chi_err *err);
void chii_sight_close(chii_sight *g);
int chii_sight_forward(chii_sight *g, const chi_grad_step *st, chi_err *err); /* g->proj */
/* dout [n_image_rows][decoder d]: the gradient at the projector's output. */
int chii_sight_back(chii_sight *g, const chi_grad_step *st, const float *dout, chi_err *err);

#endif

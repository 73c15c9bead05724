/* grad_internal: the tape of one stack, shared by grad.c and grad_cross.c. Private to sweep/. */
#ifndef CHI_GRAD_INTERNAL_H
#define CHI_GRAD_INTERNAL_H

#include "sweep/exec.h"
#include "sweep/grad.h"

/* One stack's rows [r0, T) through layers [l0, layers). */
typedef struct chii_tape {
  const chi_net *net;
  chi_stack stack;
  const chi_block_spec *s;
  int32_t T, r0, m, l0;
  int64_t D, nq, nkv, F;
  int32_t *pos; /* [m] */
  float *in;    /* [layers - l0 + 1][m][D]: residual stream entering each layer; the last leaves the stack */
  float *k, *v; /* [layers][T][nkv]: rows before r0 are constant */
  float *h, *q, *p, *mix, *attn, *mid, *h2, *gate, *up, *act, *mlp; /* of one layer */
  float *kl, *vl;                                                   /* [T][nkv] of one layer, with interventions */
  float **kb, **vb;
  float *sum1, *sum2, *xin; /* post_norm: residual sums before their norms; what the MLP reads is h2, xin = input of cross */
  const float *cross;       /* [n_cross][cross_d]: rows that cross-attention reads, NULL without */
  int32_t n_cross;
  float *dcross;                                   /* [n_cross][cross_d]: their gradient, over all layers */
  float *xq, *xk, *xv, *xp, *xmix, *xattn, *xsum;  /* cross-attention of one layer; xp [heads][m][n_cross] */
  float *xdq, *xdk, *xdv, *xdmix, *xtmp;           /* on the way back */
  float **xkb, **xvb;
  chi_arena arena;
} chii_tape;

/* Interventions of a step on the rows of a site, or, on the way back, what they do to its gradient. */
void chii_grad_touch(const chii_tape *t, const chi_grad_step *st, chi_site site, int layer, float *y, int64_t width,
                     bool backward);
/* A site on the way back: its gradient is given, then passes the interventions. */
void chii_grad_pass(const chii_tape *t, const chi_grad_step *st, chi_site site, int layer, float *d, int64_t width);

/* Cross-attention of one layer: buffers of a tape whose spec has it; x [m][d] in place; and back: d [m][d] is the gradient
 * behind it on entry, before it on return, and dcross is added to. */
int chii_cross_init(chii_tape *t, chi_err *err);
int chii_cross_forward(chii_tape *t, const chi_grad_step *st, int layer, float *x, chi_err *err);
int chii_cross_back(chii_tape *t, const chi_grad_step *st, int layer, float *d, chi_err *err);

#endif

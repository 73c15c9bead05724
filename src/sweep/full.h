/* full: one branch through one stack, all rows, nothing shared. What the dense executor is made of; the sweep uses it for
 * the Q-Former, whose few query rows all change as soon as anything that they read does. Private to sweep/.
 *
 * A run may stand for several branches (`owner`): those that cannot differ from it in the stacks that are run this way.
 * Their captures are emitted, and rows that others copy from them kept, when their owner runs. */
#ifndef CHI_FULL_H
#define CHI_FULL_H

#include "sweep/exec.h"

typedef struct chi_stored_row { /* a value that some other branch copies */
  int branch, layer;
  chi_stack stack;
  chi_site site;
  int32_t row;
  float *v;
} chi_stored_row;

typedef struct chi_full {
  const chi_exec *x;
  const int *owner;                 /* per branch: whose run stands for it, -1 = none; NULL = its own */
  int32_t **captures;               /* per branch: captures that its run serves, -1 terminated */
  const chi_intervention ***copies; /* per branch: COPY interventions that read its run, NULL-terminated */
  chi_stored_row *stored;
  size_t n_stored, cap_stored;
  chi_arena arena;
  chi_err *err;
} chi_full;

/* owner (borrowed) and include may be NULL: every branch runs, all captures are emitted. Else branches with include 0 are
 * left out, and captures are emitted of those with CHI_TARGET. */
int chi_full_init(chi_full *f, const chi_exec *x, const int *owner, const uint8_t *include, chi_err *err);
void chi_full_free(chi_full *f);

/* A site fires for rows [0, rows) of y: interventions in order, captures, values that others copy. Branches must run in
 * topological order. */
int chi_full_fire(chi_full *f, int b, chi_stack stack, chi_site site, int layer, float *y, int32_t rows, int64_t width);
int chi_full_fire_row(chi_full *f, int b, chi_stack stack, chi_site site, int layer, int32_t row, float *y,
                      int64_t width, int32_t n_keys);
/* Does somebody look at this row's final norm or logits? */
bool chi_full_wants_final(const chi_full *f, int b, int32_t row);

/* All layers of a stack on x [T][d], in place. features (vision, else NULL): the states that leave the tower, side by side.
 * cross [n_cross][cross_d]: what cross-attention reads, NULL in stacks without. */
int chi_full_stack(chi_full *f, int b, chi_stack stack, float *x, int32_t T, float *features, const float *cross,
                   int32_t n_cross);
/* The tower's last states [vision.rows][d] -> its final norm -> the Q-Former -> out [queries][d]. states are overwritten. */
int chi_full_qformer(chi_full *f, int b, float *states, float *out);
size_t chi_full_qformer_bytes(const chi_net *net);

#endif

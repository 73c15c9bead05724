/* live: which rows of which branches a stack must compute, from one walk over the block's dependency graph. Private.
 *
 * A (branch, row) is *born* at the first time (layer, stage) at which it can differ from its parent's, and *dies* after
 * the last time at which somebody needs it; between the two it owns a slot. Before its birth a row is its parent's;
 * `owner` finds the nearest ancestor that has it. Marking too much only costs time (the row reproduces its parent's
 * bits); marking too little is the bug that tests/test_sweep.c hunts. */
#ifndef CHI_LIVE_H
#define CHI_LIVE_H

#include "sweep/exec.h"

#define CHI_UNNEEDED INT32_MIN
#define CHI_TARGET 2

/* Times before layer 0, in the order in which they happen. */
#define CHI_T_INPUT chi_at(-1, CHI_ST_IN) /* the row's value is computed from the input or another stack */
#define CHI_T_IMAGE_EMBED chi_at(-1, CHI_ST_MID)
#define CHI_T_EMBED chi_at(-1, CHI_ST_POST)

typedef struct chi_live {
  const chi_exec *x;
  chi_stack stack;
  int32_t layers;
  bool causal;
  const uint8_t *include;    /* branches of this piece: CHI_TARGET = its captures are emitted, 1 = others need it */
  int32_t *lo;               /* rows [0, lo) of a branch are always its parent's (or the cache's) */
  chi_time **birth, **death; /* [branch][rows - lo] */
  int32_t **slot;            /* [branch][rows - lo], -1 = owns nothing */
  uint8_t **born_at;         /* [branch][layers + 1]: bit per stage at which some row is born; layer -1 comes first */
  chi_time *first_birth, *last_death; /* over the rows of a branch */
  int32_t *keys;             /* scratch of the backward walk: leading keys that descendants need in this layer */
  int32_t n_slots;
  int32_t *slot_branch, *slot_row; /* slots in topological order of branches, rows ascending */
  chi_time *slot_birth, *slot_death;
  int64_t row_layers; /* sum over slots of the layers that they live through */
  chi_arena arena;
} chi_live;

/* When a site is written in this stack. */
chi_time chi_site_time(chi_site site, int layer);

/* Allocates; every row unborn and unneeded. */
int chi_live_init(chi_live *v, const chi_exec *x, chi_stack stack, const uint8_t *include, chi_err *err);
/* The row of b is computed from outside the stack (roots; rows that an earlier stack changed). Before chi_live_births. */
void chi_live_input(chi_live *v, int b, int32_t row);
/* Forward walk: births from interventions and from changed keys and values. */
void chi_live_births(chi_live *v);
/* b's row is needed at time t. Marks its owner. */
void chi_live_need(chi_live *v, int b, int32_t row, chi_time t);
/* Backward walk: needs that follow from needs; then slots. Captures of this stack are needs and are added here. */
int chi_live_deaths(chi_live *v, chi_err *err);
void chi_live_free(chi_live *v);

/* Branch that holds b's row at time t, or -1 (a cached row). */
int chi_live_owner(const chi_live *v, int b, int32_t row, chi_time t);
int32_t chi_live_slot(const chi_live *v, int b, int32_t row, chi_time t); /* its slot */
/* When b's row first differs from its parent's; CHI_NEVER = it never does. */
static inline chi_time chi_live_birth(const chi_live *v, int b, int32_t row) {
  return row < v->lo[b] ? CHI_NEVER : v->birth[b][row - v->lo[b]];
}

#endif

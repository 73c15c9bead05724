/* exec: what both executors share; private to sweep/. */
#ifndef CHI_EXEC_H
#define CHI_EXEC_H

#include "sweep/run.h"

/* Time: (layer, stage) as one number. */
typedef int32_t chi_time;
#define CHI_NEVER INT32_MAX
static inline chi_time chi_at(int layer, chi_stage stage) { return layer * CHI_STAGES + (int)stage; }

/* Interventions that act on a branch: its ancestors' (root first), then its own. */
typedef struct chi_eff {
  const chi_intervention **iv;
  int32_t n, own; /* own ones start here */
} chi_eff;

typedef struct chi_exec {
  const chi_net *net;
  const chi_plan *plan;
  const chi_run_opts *opts;
  int *order;            /* topological */
  int32_t *pos;          /* place of a branch in order */
  int32_t *root;         /* root of each branch */
  chi_eff *eff;          /* per branch */
  int32_t **captures_of; /* per branch: indices of its captures, -1 terminated */
  chi_arena arena;
} chi_exec;

int chi_exec_init(chi_exec *x, const chi_net *net, const chi_plan *plan, const chi_run_opts *opts, chi_err *err);
void chi_exec_free(chi_exec *x);

/* Rows of `stack` in a branch (0 if its root has no picture). */
int32_t chi_exec_rows(const chi_exec *x, int branch, chi_stack stack);
const chi_input *chi_exec_input(const chi_exec *x, int branch);

/* The layers at which iv acts within `stack`, as [lo, hi); one pseudo-layer 0 for sites that are not per layer. */
bool chi_iv_acts(const chi_intervention *iv, chi_stack stack, chi_site site, int layer);
/* Index of row in iv->rows, or -1. */
int32_t chi_iv_row(const chi_intervention *iv, int32_t row);
bool chi_iv_is_edge(const chi_intervention *iv);
int32_t chi_iv_source_row(const chi_intervention *iv, int32_t i);

/* Apply intervention iv (its i-th row) to y[width]. src: the source's row for COPY. n_keys: for pattern. */
int chi_iv_apply(const chi_exec *x, const chi_intervention *iv, int branch, int layer, int32_t i, float *y,
                 int64_t width, int32_t n_keys, const float *src, chi_err *err);

/* Edge edits of one (branch, site of weights, layer, row): up to cap into out; returns the number there are. */
int32_t chi_iv_edges(const chi_exec *x, int branch, chi_stack stack, chi_site site, int layer, int32_t row,
                     chi_edge *out, int32_t cap);
/* Does any intervention other than edges act on these weights (site: pattern or x_pattern)? */
bool chi_iv_pattern(const chi_exec *x, int branch, chi_stack stack, chi_site site, int layer, int32_t row);

int chi_exec_emit(const chi_exec *x, int capture, int32_t i, const float *values, int64_t width, chi_err *err);

int chi_run_dense(chi_exec *x, chi_err *err);
int chi_run_sweep(chi_exec *x, chi_err *err);

/* ---- key/value cache of one root (keys of all decoder layers) -------------------------------------------- */
struct chi_kv_cache {
  int32_t layers, rows, max_rows, n_blocks;
  size_t block_floats;
  float **k, **v; /* [layers][n_blocks] */
};

#endif

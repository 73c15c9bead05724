/* sweep: running plans. Two executors with equal bits: `dense` runs every branch as a full forward and is the readable
 * definition of what a plan means; the sweep carries all branches through the stacks together, one layer at a time, and
 * computes only rows that can differ from their parent's and that something asked for (docs/design.md, section 2). */
#ifndef CHI_RUN_H
#define CHI_RUN_H

#include "nn/net.h"

typedef enum chi_executor { CHI_EXEC_SWEEP, CHI_EXEC_DENSE } chi_executor;

/* One captured row: the i-th row of capture `capture`. Called serially, once for each row asked for, in no promised
 * order; values[width] are borrowed for the call. Non-zero return ends the run with CHI_ERR_CANCELLED. */
typedef int (*chi_capture_fn)(void *ud, int capture, int32_t i, const float *values, int64_t width);

typedef struct chi_run_stats {
  int64_t live_row_layers;  /* rows x layers that the sweep computed (decoder) */
  int64_t dense_row_layers; /* what one forward per branch would have computed */
  int64_t pieces;           /* sweeps that the byte budget cut the plan into */
  size_t peak_bytes;        /* largest activation memory of a piece */
} chi_run_stats;

typedef struct chi_run_opts {
  chi_executor executor;
  size_t mem;    /* byte budget for activations; 0 = 4 GiB. A single branch over it is refused */
  int32_t chunk; /* rows per pass over a layer's weights; 0 = default. Never changes a bit */
  chi_capture_fn on_capture;
  void *ud;
  const char *what;     /* progress label, NULL = silent */
  chi_run_stats *stats; /* NULL = not wanted */
} chi_run_opts;

/* Checks the plan against the network, then runs it. */
int chi_run_plan(const chi_net *net, const chi_plan *plan, const chi_run_opts *opts, chi_err *err);

/* ---- keys and values kept over generation steps ---------------------------------------------------------- */
int chi_kv_cache_new(chi_kv_cache **out, const chi_net *net, int32_t max_rows, chi_err *err);
void chi_kv_cache_free(chi_kv_cache *c);
int32_t chi_kv_cache_rows(const chi_kv_cache *c);

#endif

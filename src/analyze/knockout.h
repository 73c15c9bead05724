/* knockout: attention edges cut in a window of layers, around each layer in turn: through which layers does what one group
 * of rows knows reach another? (Geva et al. 2023, "Dissecting Recall of Factual Associations"; here with the picture.)
 *
 * An edge j -> i is cut by a score of -inf before the softmax: row i cannot read row j, its other weights grow to 1.
 * Controls cut as many random edges as the set has, none of them in the set, in the same windows. */
#ifndef CHI_KNOCKOUT_H
#define CHI_KNOCKOUT_H

#include "analyze/metrics.h"
#include "model/model.h"
#include "sweep/run.h"

/* Row `row` loses keys [lo, hi). */
typedef struct chi_edge_run {
  int32_t row, lo, hi;
} chi_edge_run;

/* Edges that are cut together; runs by row, then key, apart from each other. A row never loses itself. */
typedef struct chi_edges {
  const char *name; /* as on the command line: "image:constraint+image:last" */
  chi_edge_run *run;
  int32_t n_runs;
  int64_t n; /* edges */
} chi_edges;

typedef struct chi_knockout_opts {
  /* Sets, split by ';'. A set is FROM:TO, or several joined by '+'; FROM and TO as in chi_select_rows. NULL = of
   * image:constraint, image:last, constraint:last those that the prompt has, each alone, then all of them together. */
  const char *edges;
  int32_t window;   /* layers [l - W/2, l + ceil(W/2)) around layer l, clipped; >= 1 */
  int32_t controls; /* for each set */
  bool control_all; /* controls: any edge; else, where there are enough, edges into rows behind the picture (harder) */
  uint64_t seed;
  int32_t target; /* token id, -1 = the clean run's first answer token */
  int check;      /* this many cells are run again by the dense executor and compared bit for bit */
  size_t mem;
} chi_knockout_opts;
#define CHI_KNOCKOUT_OPTS_INIT \
  { .window = 1, .controls = 3, .target = -1 }

typedef struct chi_knockout {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  chi_knockout_opts opts;
  int32_t n_sets, n_layers;
  chi_edges *set;       /* [n_sets] */
  chi_edges *control;   /* [n_sets][controls]; fewer edges than the set's where there are no more */
  int32_t *control_row; /* [n_sets]: the controls' edges go into rows from this one on */
  int32_t *lo, *hi;     /* [n_layers]: layers [lo, hi) of the window */
  int32_t target;
  chi_metrics clean;
  chi_metrics *cell; /* [n_sets][1 + controls][n_layers]: own, then controls */
  int checked, identical;
  chi_run_stats stats;
  chi_arena arena;
} chi_knockout;

int chi_knockout_run(chi_knockout **out, const chi_model *m, const chi_prompt *p, const chi_knockout_opts *o,
                     chi_err *err);
void chi_knockout_free(chi_knockout *k);
/* source: 0 = the set itself, 1.. = its controls. */
const chi_metrics *chi_knockout_at(const chi_knockout *k, int set, int source, int layer);
/* Mean over the controls; NaN where there are none. low, high: of p. */
chi_metrics chi_knockout_control(const chi_knockout *k, int set, int layer, double *low, double *high);
/* The plan of all cells (after chi_knockout_run); names: one a branch, in the arena of the plan. Caller: chi_plan_free. */
int chi_knockout_plan(chi_plan **out, const char *const **names, const chi_knockout *k, chi_err *err);

/* One set by its text; lives in the arena. A set without a single edge is refused. */
int chi_edges_parse(chi_edges *out, chi_arena *a, const char *text, const chi_prompt *p, chi_err *err);
/* n random edges (or all there are) into rows >= first_row, outside `taken`: the same for the same seed and stream. */
int chi_edges_random(chi_edges *out, chi_arena *a, const chi_edges *taken, int32_t n_rows, int32_t first_row,
                     uint64_t seed, uint32_t stream, chi_err *err);
/* Cuts the edges in a branch, layers [lo, hi). */
int chi_edges_cut(chi_plan *plan, int branch, const chi_edges *e, int32_t lo, int32_t hi, chi_err *err);

#endif

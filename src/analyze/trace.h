/* trace: causal maps (MultiModalCausalTrace, Basu et al. 2024, section 3; causal tracing, Meng et al. 2022, section 2).
 *
 * Three runs: clean; corrupted (the constraint's words, its embeddings or the picture changed); and for every cell
 * (site, layers, row) the corrupted run with the clean run's value put back there. The effect of a cell is its p(target)
 * minus the corrupted run's. Direction `noise` turns it round: the clean run with the corrupted run's value.
 * Donor control: the value put back comes from a clean run about another picture. What the donor repairs as well as the
 * item's own value is repair of the overwritten word, not the fact; only own minus donor speaks of storage.
 *
 * A trace is a plan and nothing else: chi_trace_plan shows it. */
#ifndef CHI_TRACE_H
#define CHI_TRACE_H

#include "analyze/corrupt.h"
#include "analyze/metrics.h"
#include "sweep/run.h"

enum { CHI_TRACE_MLP, CHI_TRACE_ATTN, CHI_TRACE_HIDDEN, CHI_TRACE_SITES };
enum { CHI_TRACE_OWN, CHI_TRACE_DONOR, CHI_TRACE_SOURCES };
extern const char *const chi_trace_site_name[CHI_TRACE_SITES]; /* "mlp", "attn", "hidden" */

typedef struct chi_trace_opts {
  bool site[CHI_TRACE_SITES];
  int window;           /* layers in a window (>= 1); never applied to hidden */
  bool released_window; /* [l-W, l+W], as the released script; else ROME's [l - W/2, l + ceil(W/2)) */
  chi_corrupt_opts corrupt;
  bool noise_direction;
  const char *donor;       /* picture file, or NULL */
  int32_t target;          /* token id, -1 = the clean run's first answer token */
  const char *target_text; /* joint log-probability of this answer, or NULL */
  bool span_cell;          /* the constraint's rows are put back together, as one cell */
  bool all_rows;           /* every row; else from the last picture row (row 0 without a picture) on */
  int check;               /* this many cells are run again by the dense executor and compared bit for bit */
  size_t mem;
} chi_trace_opts;
#define CHI_TRACE_OPTS_INIT \
  { .site = {true, true, true}, .window = 1, .target = -1 }

typedef struct chi_trace {
  const chi_model *model;
  const chi_prompt *prompt;
  chi_trace_opts opts;
  chi_corruption corruption;
  chi_prompt *donor; /* clean prompt about the donor's picture, or NULL */
  int32_t *tokens;   /* rows of the plan's roots: the prompt's, then all but the last target token */
  int32_t *target_ids, n_target, n_rows_total;
  int32_t target, counter;  /* target token; the corrupted run's top token */
  int32_t n_layers, n_rows; /* of the maps */
  int32_t *rows, *n_cell;   /* [n_rows]: first row of each cell, and how many it has (1, or the constraint's) */
  int32_t *lo, *hi;         /* [CHI_TRACE_SITES][n_layers]: layers [lo, hi] that a cell restores, inclusive */
  chi_metrics clean, corrupt, donor_run;
  chi_metrics *cell[CHI_TRACE_SOURCES][CHI_TRACE_SITES]; /* [n_layers][n_rows], NULL where not asked for */
  int checked, identical;
  chi_run_stats stats;
  chi_arena arena;
} chi_trace;

int chi_trace_run(chi_trace **out, const chi_model *m, const chi_prompt *p, const chi_trace_opts *o, chi_err *err);
void chi_trace_free(chi_trace *t);
/* The plan of the whole map (after chi_trace_run). Borrows the trace's inputs. Caller: chi_plan_free. */
int chi_trace_plan(chi_plan **out, const chi_trace *t, chi_err *err);
/* Metrics of the run that cells are compared with: corrupted (denoise) or clean (noise). */
const chi_metrics *chi_trace_base(const chi_trace *t);
const chi_metrics *chi_trace_at(const chi_trace *t, int source, int site, int layer,
                                int row); /* row: index into rows */

#endif

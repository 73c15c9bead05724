/* Between trace.c (set-up, runs), trace_cells.c (cells as plans) and trace_rows.c (rows, windows). */
#ifndef CHI_TRACE_INTERNAL_H
#define CHI_TRACE_INTERNAL_H

#include "analyze/trace.h"

enum { CHII_CLEAN = -1, CHII_CORRUPT = -2, CHII_DONOR = -3 }; /* chii_cell.site of the runs that are no cells */
enum { CHII_NULL = CHI_TRACE_SOURCES };                       /* chii_cell.source of random-site draws */

typedef struct chii_cell {
  int job, source, site, step;
  int row;    /* of a draw: its number; of a donor: which candidate */
  int sample; /* corrupted run */
} chii_cell;

/* A plan of some traces' cells, and what each of its captures belongs to. */
typedef struct chii_cells {
  chi_plan *plan;
  chii_cell *owner; /* per capture */
  size_t n, cap;
  int n_jobs;
  struct chii_runs {
    int clean, *corrupt, *donor; /* branches: [corruption.n], [donor candidates] */
  } *run;                        /* [n_jobs] */
  chi_arena arena;
} chii_cells;

/* Clean, corrupted (all samples) and donor runs of every trace; traces that are NULL are passed over. donors[i]: prompts
 * of trace i's candidates, n_donors[i] of them. */
int chii_cells_start(chii_cells *c, chi_trace *const *t, int n, chi_prompt *const *const *donors,
                     const int32_t *n_donors, chi_err *err);
void chii_cells_free(chii_cells *c);
int64_t chii_cell_count(const chi_trace *t);
/* Cells first, first + step, ... of trace job. */
int chii_cells_add(chii_cells *c, const chi_trace *t, int job, int64_t first, int64_t step, chi_err *err);
/* Asks for the logits of a branch behind the prompt and behind each later target token but the last. */
int chii_cells_capture(chii_cells *c, const chi_trace *t, int branch, chii_cell owner, chi_err *err);
/* Corrupted runs over which a source's cells are averaged. */
int chii_samples(const chi_trace *t, int source);

/* rows, n_cell, cell_rows, cell_name, lo, hi from the options; behind the corruption. */
int chii_trace_rows(chi_trace *t, chi_err *err);
/* First cell whose rows can differ between the clean and the corrupted run. */
int32_t chii_first_live(const chi_trace *t);

#endif

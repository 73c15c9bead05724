/* edits_table: logs of edits in numbers: shares with intervals, editors against one another, curves over layers. Everything is
 * counted by entity (the unit where an item names none): bootstrap over entities, differences paired by edit, tests that swap
 * the two editors for whole entities. */
#ifndef CHI_EDITS_TABLE_H
#define CHI_EDITS_TABLE_H

#include "eval/edits.h"
#include "eval/stats.h"

enum {
  CHI_EDITS_HEADLINE, /* harmonic mean of reliability, paraphrase, rendering, (a) and (b): the means over edits of those that
                         the set has; without (a) and (b) an edit that does not look at the picture passes */
  CHI_EDITS_RELIABLE, /* the target is said */
  CHI_EDITS_P,        /* p of the whole target */
  CHI_EDITS_PROBE,    /* + chi_probe_kind: share of an edit's probes where the answer follows, or stays */
  CHI_EDITS_RIGHT = CHI_EDITS_PROBE + CHI_PROBES,     /* + chi_probe_kind: share right after the edit */
  CHI_EDITS_UNRELATED = CHI_EDITS_RIGHT + CHI_PROBES, /* right after the edit of (d) and (e) together */
  CHI_EDITS_CHANGE,                                    /* the same less those that were right before */
  CHI_EDITS_COSINE,                                   /* of the key with those of other pictures, mean */
  CHI_EDITS_LEAK,                                     /* mean of |leak|; next: the largest */
  CHI_EDITS_LEAK_MAX,
  CHI_EDITS_TRACE_OWN, /* effect of tracing at the edited cell; next: less the donor's (edit.h, chi_edit_map) */
  CHI_EDITS_TRACE,
  CHI_EDITS_COLUMNS
};
/* "headline", "reliability", "p_target", "paraphrase", ..., "right.paraphrase", ..., "right.unrelated", "right.unrelated_change", "key_cosine",
 * "leak_share", "leak_share_max", "trace_own", "trace". */
const char *chi_edits_column(int column, char buf[64]);
/* The share or number of one line of a log; NAN: it has none. No line has a headline. */
double chi_edits_value(const json_t *line, int column);

typedef struct chi_edits_row { /* borrowed */
  const char *name;            /* in tables */
  const chi_jlog *log;
  const char *editor; /* whose lines of the log */
} chi_edits_row;

typedef struct chi_edits_stat {
  chi_est mean;     /* n = 0: not measured */
  chi_est diff;     /* less the reference's, on the edits that both have; n = 0 for itself */
  double p, p_holm; /* of diff: both editors swapped for whole entities; Holm over the rows compared, per column */
} chi_edits_stat;

typedef struct chi_edits_table_opts {
  int reference;       /* row, -1 = none */
  const bool *compare; /* [n_rows] rows whose differences are tested; NULL = all but the reference */
  bool curve;          /* the rows are a curve (layers): peak and rank correlation over rows */
  chi_boot_opts boot;
} chi_edits_table_opts;

typedef struct chi_edits_table {
  int n_rows, reference;
  const chi_edits_row *row; /* borrowed */
  chi_edits_stat *stat;     /* [n_rows][CHI_EDITS_COLUMNS] */
  int *n, *failed;          /* [n_rows] edits in the log, those that could not be made */
  chi_est (*rho)[2];        /* [n_rows] Spearman over edits: trace_own, trace with p_target */
  chi_est peak;             /* curve: row with the highest headline (the first of equals), interval over draws */
  double peak_share;        /* part of the draws that have this peak */
  chi_est rho_rows[2];      /* curve: Spearman over rows: mean trace_own, trace with headline */
  chi_arena arena;
} chi_edits_table;
/* set: the edits that count (a thinned set is part of what a log may hold); its items give entities. */
int chi_edits_table_make(chi_edits_table **out, const chi_edits_row *row, int n_rows, const chi_edit_set *set,
                         const chi_edits_table_opts *o, chi_err *err);
void chi_edits_table_free(chi_edits_table *t); /* NULL-safe */

#endif

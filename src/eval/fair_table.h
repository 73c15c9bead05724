/* fair_table: a fair test in numbers: means with intervals, explainers against one another.
 *
 * The unit is the entity that was asked about (chi_unit_entity); items without one count by picture. Two questions about one
 * picture may have two entities: intervals with the picture as the unit stand beside the others. */
#ifndef CHI_FAIR_TABLE_H
#define CHI_FAIR_TABLE_H

#include "eval/fair.h"
#include "eval/stats.h"
#include "file/file.h"

enum {
  CHI_FAIR_POINTING,
  CHI_FAIR_PRECISION,
  CHI_FAIR_AUPRC,
  CHI_FAIR_SWITCH_GAIN,
  CHI_FAIR_SWITCH_RANK,
  CHI_FAIR_SHUFFLED_RANK,
  CHI_FAIR_DELETION,                                     /* + chi_removal */
  CHI_FAIR_INSERTION = CHI_FAIR_DELETION + CHI_REMOVALS, /* + chi_removal */
  CHI_FAIR_METRICS = CHI_FAIR_INSERTION + CHI_REMOVALS
};
/* "pointing", ..., "deletion zero", ... One of 4 static buffers. */
const char *chi_fair_metric_name(int metric);

enum { CHI_FAIR_REFS = 4 };
typedef struct chi_fair_diff {
  chi_est est, by_picture; /* on the items that both have; n = 0: none, or the reference itself */
  double p, p_holm; /* sign flips of whole units; Holm over the explainers that are no baseline and not the reference */
} chi_fair_diff;
typedef struct chi_fair_stat {
  chi_est mean, by_picture; /* 95 % by bootstrap over units, and over pictures; n = 0: not measured */
  chi_fair_diff diff[CHI_FAIR_REFS];
} chi_fair_stat;

typedef struct chi_fair_table {
  int n_rows;                                         /* explainers in order, the mask last */
  const char **name;                                  /* [n_rows] */
  bool *baseline;                                     /* [n_rows] */
  int n_refs, ref[CHI_FAIR_REFS];                     /* rows */
  int items, right, counted, units, pictures, failed; /* counted: those behind the numbers; units, pictures: theirs */
  chi_fair_stat *stat;                                /* [n_rows][CHI_FAIR_METRICS] */
  double *curve; /* [n_rows][2][CHI_REMOVALS][CHI_FAIR_SHARES]: mean p(answer), deletion and insertion; NaN = none */
  chi_arena arena;
} chi_fair_table;
/* Explainers that the others are compared with, as rows: names with commas, one that is not asked for is refused; NULL = those
 * of attention, centre and random that are. */
int chi_fair_against(int ref[CHI_FAIR_REFS], int *n, const chi_fair_opts *o, const char *names, chi_err *err);
/* items: array of finished items as the log has them. against: as above. */
int chi_fair_table_make(chi_fair_table **out, const json_t *items, const chi_fair_opts *o, const char *against,
                        const chi_boot_opts *boot, chi_err *err);
void chi_fair_table_free(chi_fair_table *t);

#endif

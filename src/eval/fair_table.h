/* fair_table: a fair test in numbers: means with intervals, explainers against one another. */
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
  CHI_FAIR_DELETION,                                      /* + chi_removal */
  CHI_FAIR_INSERTION = CHI_FAIR_DELETION + CHI_REMOVALS,  /* + chi_removal */
  CHI_FAIR_METRICS = CHI_FAIR_INSERTION + CHI_REMOVALS
};
/* "pointing", ..., "deletion zero", ... One of 4 static buffers. */
const char *chi_fair_metric_name(int metric);

typedef struct chi_fair_stat {
  chi_est mean; /* 95 % by bootstrap over pictures; n = 0: not measured */
  chi_est diff; /* to the reference explainer on the items that both have; n = 0 for itself */
  double p, p_holm; /* of diff: sign flips of whole pictures; Holm over the explainers that are no baseline, per metric */
} chi_fair_stat;

typedef struct chi_fair_table {
  int n_rows;        /* explainers in order, the mask last */
  const char **name; /* [n_rows] */
  bool *baseline;    /* [n_rows] */
  int reference;     /* row, -1 = none */
  int items, right, counted, pictures, failed; /* counted: those behind the numbers; pictures: theirs */
  chi_fair_stat *stat; /* [n_rows][CHI_FAIR_METRICS] */
  double *curve;       /* [n_rows][2][CHI_REMOVALS][CHI_FAIR_SHARES]: mean p(answer), deletion and insertion; NaN = none */
  chi_arena arena;
} chi_fair_table;
/* items: array of finished items as the log has them. against: the reference's name. */
int chi_fair_table_make(chi_fair_table **out, const json_t *items, const chi_fair_opts *o, const char *against,
                        const chi_boot_opts *boot, chi_err *err);
void chi_fair_table_free(chi_fair_table *t);

#endif

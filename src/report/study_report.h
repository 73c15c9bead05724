/* study_report: what a run over a data set (study/store.h) says: maps averaged by token role, curves by layer, tables, and
 * one page that holds them all. Filters are explicit and counted; everything is shown with and without them. */
#ifndef CHI_STUDY_REPORT_H
#define CHI_STUDY_REPORT_H

#include "eval/stats.h"
#include "report/report.h"

typedef struct chi_study_report_opts {
  bool keep_wrong;   /* the filtered view keeps items that the model answers wrongly */
  double min_p;      /* of the clean answer's first token */
  const char *group; /* only items of this form; NULL = all */
  const char *split; /* only this split; NULL = all */
  int draws;         /* of bootstrap and permutation; 0 = 10,000 */
  uint64_t seed;
  double alpha; /* outlines: family-wise p below it; 0 = 0.05 */
} chi_study_report_opts;

/* Writes dir/report.html (pictures inside), report.json, claims.csv, maps.csv, curves.csv, items.csv and figures/ as PNG and
 * SVG. */
int chi_study_report(const char *run, const char *dir, const chi_study_report_opts *o, const chi_provenance *prov,
                     chi_err *err);

#endif

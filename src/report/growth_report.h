/* growth_report: what `chiasm bench growth` found, as growth.csv and growth-{layers,text,picture}.png: CPU time, rows x
 * layers and cells, each as a multiple of the smallest of its points. */
#ifndef CHI_GROWTH_REPORT_H
#define CHI_GROWTH_REPORT_H

#include "eval/bench.h"
#include "report/report.h"

/* dir must be there. prov may be NULL. */
int chi_growth_report(const chi_growth_point *g, int n, const chi_provenance *prov, const char *dir, chi_err *err);

#endif

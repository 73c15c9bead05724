/* Between trace_report.c (numbers) and trace_figures.c (pictures). */
#ifndef CHI_REPORT_TRACE_INTERNAL_H
#define CHI_REPORT_TRACE_INTERNAL_H

#include "report/trace_report.h"

/* p of a cell minus its base run's. */
double chii_trace_effect(const chi_trace *t, int src, int site, int step, int row);
/* Name of a cell: its token, its bracket's words, its group. */
void chii_trace_token(const chi_trace *t, int row, char *buf, size_t cap);
char *chii_trim(char *s); /* in place, blanks at both ends */

/* The maps by layers (heads = -1), or that of single heads or paths (the site); none where no such site was asked for. */
bool chii_trace_has_figure(const chi_trace *t, int heads);
int chii_trace_draw(const chi_trace *t, int heads, const chi_provenance *prov, const char *png, const char *svg,
                    chi_err *err);

#endif

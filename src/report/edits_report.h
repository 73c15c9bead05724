/* edits_report: evaluated edits as terminal tables, JSON, tidy CSV and a figure. */
#ifndef CHI_EDITS_REPORT_H
#define CHI_EDITS_REPORT_H

#include "eval/edits_table.h"
#include "report/report.h"

/* Two tables (the headline and its parts; everything else), where there is a reference one of differences, where the rows are
 * a curve its peak, where edits were traced the correlations; then what the columns mean. Appends to out. */
int chi_edits_text(const chi_edits_table *t, int width, chi_str *out, chi_err *err);
/* One object a row: "editor", "n", "failed", and each measured column as {value, lo, hi, n, clusters}, "less_reference" as
 * {..., p, p_holm} below "differences". Caller: json_decref. */
int chi_edits_rows_json(json_t **out, const chi_edits_table *t, chi_err *err);
/* peak, peak_share, rank correlations over rows: into o. */
int chi_edits_curve_json(json_t *o, const chi_edits_table *t, chi_err *err);
/* row, column, value, lo, hi, n, entities, diff, diff_lo, diff_hi, p, p_holm. */
int chi_edits_csv(const chi_edits_table *t, const char *path, chi_err *err);
/* PNG or SVG: headline and its parts, in percent, by row; curve: over the rows as layers. prov may be NULL. */
int chi_edits_figure(const chi_edits_table *t, const char *title, bool curve, const chi_provenance *prov,
                     const char *path, chi_err *err);

#endif

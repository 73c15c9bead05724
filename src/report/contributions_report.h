/* contributions_report: attention contributions as JSON, tidy CSV, safetensors, pictures and terminal summary. */
#ifndef CHI_CONTRIBUTIONS_REPORT_H
#define CHI_CONTRIBUTIONS_REPORT_H

#include "analyze/contributions.h"
#include "report/report.h"

/* dir/contributions.{json,csv,safetensors}, layers.csv, heads.csv, curves, heads and, where sources are patches,
 * late, positions and patches.{png,svg}; each written atomically; dir is made. from, to: what the rows are called. */
int chi_contributions_write(const chi_contributions *c, const char *from, const char *to, const chi_provenance *prov,
                            const char *dir, chi_err *err);
/* The JSON object of contributions.json. Caller: json_decref. */
int chi_contributions_json(json_t **out, const chi_contributions *c, const char *from, const char *to,
                           const chi_provenance *prov, chi_err *err);
/* A line a layer, and the strongest heads, for a terminal of `width` columns. */
int chi_contributions_summary(const chi_contributions *c, const char *from, const char *to, int width, int top,
                              chi_str *out, chi_err *err);

#endif

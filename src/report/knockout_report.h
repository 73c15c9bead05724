/* knockout_report: attention knock-out as JSON, tidy CSV, curves and terminal summary. */
#ifndef CHI_KNOCKOUT_REPORT_H
#define CHI_KNOCKOUT_REPORT_H

#include "analyze/knockout.h"
#include "report/report.h"

/* dir/knockout.{json,csv}, p.{png,svg} and logp.{png,svg}, each written atomically; dir is made. */
int chi_knockout_write(const chi_knockout *k, const chi_provenance *prov, const char *dir, chi_err *err);
/* The JSON object of knockout.json. Caller: json_decref. */
int chi_knockout_json(json_t **out, const chi_knockout *k, const chi_provenance *prov, chi_err *err);
/* A line a set and layer, own beside control, for a terminal of `width` columns. */
int chi_knockout_summary(const chi_knockout *k, int width, chi_str *out, chi_err *err);

#endif

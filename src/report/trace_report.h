/* trace_report: a causal map as JSON, tidy CSV, safetensors, picture and terminal summary. */
#ifndef CHI_TRACE_REPORT_H
#define CHI_TRACE_REPORT_H

#include "analyze/trace.h"
#include "report/report.h"

/* dir/trace.{json,csv,safetensors,png,svg}, and heads.{png,svg} and paths.{png,svg} where they were traced, each written
 * atomically; dir is made. */
int chi_trace_write(const chi_trace *t, const chi_provenance *prov, const char *dir, chi_err *err);
/* The JSON object of trace.json. Caller: json_decref. */
int chi_trace_json(json_t **out, const chi_trace *t, const chi_provenance *prov, chi_err *err);
/* Summary and the strongest cells of each site beside their control, for a terminal of `width` columns. */
int chi_trace_summary(const chi_trace *t, int width, int top, chi_str *out, chi_err *err);

#endif

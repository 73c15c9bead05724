/* lookup_report: in-context lookup over a data set (eval/lookup.h) as JSON, tidy CSV and terminal tables. */
#ifndef CHI_LOOKUP_REPORT_H
#define CHI_LOOKUP_REPORT_H

#include "eval/lookup.h"
#include "report/report.h"

/* Caller: json_decref. settings: the log's head; borrowed. */
int chi_lookup_json(json_t **out, const chi_lookup_table *t, const json_t *settings, const chi_provenance *prov,
                    chi_err *err);
/* dir/incontext.{json,csv}; dir is made. */
int chi_lookup_write(const chi_lookup_table *t, const json_t *settings, const chi_provenance *prov, const char *dir,
                     chi_err *err);
int chi_lookup_summary(const chi_lookup_table *t, int width, chi_str *out, chi_err *err);

#endif

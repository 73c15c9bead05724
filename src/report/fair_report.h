/* fair_report: a fair test of explainers as JSON, tidy CSV, pictures and a terminal table. */
#ifndef CHI_FAIR_REPORT_H
#define CHI_FAIR_REPORT_H

#include "eval/fair_table.h"
#include "report/report.h"

/* Caller: json_decref. settings: the log's head; borrowed. */
int chi_fair_json(json_t **out, const chi_fair_table *t, const json_t *settings, const chi_provenance *prov,
                  chi_err *err);
/* dir/attribution-test.{json,csv,png,svg}, and for each way of removing that was used deletion-<how>.{png,svg} and
 * insertion-<how>.{png,svg}: mean p(answer) over the share of patches. */
int chi_fair_write(const chi_fair_table *t, const json_t *settings, const chi_provenance *prov, const char *dir,
                   chi_str *files, chi_err *err);
int chi_fair_summary(const chi_fair_table *t, int width, chi_str *out, chi_err *err);

#endif

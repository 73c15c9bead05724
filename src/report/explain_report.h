/* explain_report: maps of several explainers of one answer as JSON, tidy CSV, one picture and a terminal summary. */
#ifndef CHI_EXPLAIN_REPORT_H
#define CHI_EXPLAIN_REPORT_H

#include "analyze/explain.h"
#include "report/report.h"

typedef struct chi_explained {
  const chi_explainer *x;
  double *map;            /* [n]; NULL: this model has no such map */
  double seconds;         /* for the terminal only: files hold nothing that differs from run to run */
  char why[CHI_ERR_TEXT]; /* map NULL: the reason */
} chi_explained;

/* The JSON object of explain.json: every map, ranks against the exact maps that were made, and for attribution patching its
 * error against remove-mean. Caller: json_decref. */
int chi_explain_json(json_t **out, const chi_explain *e, const chi_explained *x, int n, const chi_provenance *prov,
                     chi_err *err);
/* dir/explain.{json,csv} and, with patches on a grid, explain.{png,svg}: a line of panels for each map, on the crop that the
 * model saw and on the whole picture (prov->image_path is read again for it); more than four maps are explain-1.{png,svg},
 * explain-2, ... scale: pixels a unit in PNG, 0 = 2. files: names written, separated by spaces. */
int chi_explain_write(const chi_explain *e, const chi_explained *x, int n, double scale, const chi_provenance *prov,
                      const char *dir, chi_str *files, chi_err *err);
int chi_explain_summary(const chi_explain *e, const chi_explained *x, int n, int width, chi_str *out, chi_err *err);

#endif

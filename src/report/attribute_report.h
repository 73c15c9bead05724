/* attribute_report: an attribution as JSON, tidy CSV, safetensors, pictures and terminal summary; published values beside
 * ours. */
#ifndef CHI_ATTRIBUTE_REPORT_H
#define CHI_ATTRIBUTE_REPORT_H

#include "analyze/attribute.h"
#include "report/report.h"

/* The JSON object of attribution.json. Caller: json_decref. */
int chi_attribution_json(json_t **out, const chi_attribution *a, const chi_provenance *prov, chi_err *err);
/* dir/attribution.{json,csv,safetensors}, heads, layers and with a picture patches.{png,svg}: each written atomically;
 * dir is made. prov->image_path is read again for the whole picture. files: the names that were written, separated by spaces. */
int chi_attribution_write(const chi_attribution *a, const chi_provenance *prov, const char *dir, chi_str *files,
                          chi_err *err);
int chi_attribution_figures(const chi_attribution *a, const chi_provenance *prov, const char *dir, chi_str *files,
                            chi_err *err);
/* For a terminal of `width` columns; top heads and positions are listed. */
int chi_attribution_summary(const chi_attribution *a, int width, int top, chi_str *out, chi_err *err);

/* Values that somebody published (docs/verify-llava15.md has the format) beside ours, a line each. differ: lines outside
 * the file's tolerance. heads NULL: asks only which head the file wants positions of (head.layer = -1: none). */
int chi_attribution_compare(const chi_attribution *a, json_t *published, int width, int *lines, int *differ,
                            chi_str *out, chi_err *err);
int chi_attribution_published_head(chi_attr_head *head, double *eps, const json_t *published, chi_err *err);

#endif

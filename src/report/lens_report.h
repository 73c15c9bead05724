/* lens_report: a lens as JSON, tidy CSV, one interactive page without outside resources, and terminal tables. */
#ifndef CHI_LENS_REPORT_H
#define CHI_LENS_REPORT_H

#include "analyze/lens.h"
#include "report/report.h"

typedef struct chi_lens_word_name { /* what was followed; text NULL = nothing */
  const char *text;
  bool part; /* only its first token is */
} chi_lens_word_name;

/* The JSON object of lens.json. Caller: json_decref. */
int chi_lens_json(json_t **out, const chi_lens *l, chi_lens_word_name word, const chi_provenance *prov, chi_err *err);
/* dir/lens.{json,csv,html}, each written atomically; dir is made. */
int chi_lens_write(const chi_lens *l, chi_lens_word_name word, const chi_provenance *prov, const char *dir, chi_err *err);
/* One row: its words layer by layer. Several: the likeliest word of each row over as many layers as fit; at most max_rows
 * rows. Then the followed word's rank by layer and role. */
int chi_lens_summary(const chi_lens *l, chi_lens_word_name word, int width, int max_rows, chi_str *out, chi_err *err);

#endif

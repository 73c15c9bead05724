/* fair_line: one finished item of a fair test as a line of its log (file/jlog.h). */
#ifndef CHI_FAIR_LINE_H
#define CHI_FAIR_LINE_H

#include "eval/fair.h"
#include "file/jlog.h"

/* An object with "id", "unit", "image", "status" ("ok", or "failed" with a "reason") and, where it is ok, its measures.
 * Caller: json_decref. */
int chi_fair_line(json_t **out, const char *id, const char *unit, const char *image, const chi_fair_result *r,
                  const chi_fair_opts *o, chi_err *err);

#endif

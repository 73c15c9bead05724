/* fair_log: what a fair test has finished, one JSON object a line, so that it can be stopped and taken up again. The first
 * line says which test it is: settings, hashes of model and items. A last line that was cut short is dropped. */
#ifndef CHI_FAIR_LOG_H
#define CHI_FAIR_LOG_H

#include "eval/fair.h"
#include "file/file.h"

typedef struct chi_fair_log chi_fair_log;
/* Makes the file or goes on with it. head: settings, compared as a whole; borrowed. Refused in one line: a file of another
 * test, a broken line that is not the last, another process writing it. Caller: chi_fair_log_close. */
int chi_fair_log_open(chi_fair_log **out, const char *path, const json_t *head, chi_err *err);
void chi_fair_log_close(chi_fair_log *l); /* NULL-safe */
bool chi_fair_log_has(const chi_fair_log *l, const char *id);
/* Appends one item and gives the line to the system before it returns. */
int chi_fair_log_add(chi_fair_log *l, const char *id, const char *unit, const char *image, const chi_fair_result *r,
                     const chi_fair_opts *o, chi_err *err);
/* Every finished item, in the file's order: an array of objects. Borrowed. */
const json_t *chi_fair_log_items(const chi_fair_log *l);

#endif

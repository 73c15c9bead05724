/* analyze: choosing rows and layers by name, as the command line and plan files do. */
#ifndef CHI_SELECT_H
#define CHI_SELECT_H

#include "model/model.h"

/* "0-3,7" (ends included) -> numbers in [0, n), ascending, without repeats. "all" or NULL = every one. what names them in
 * messages ("layer"). Caller: chi_free(*out). */
int chi_select_ranges(int32_t **out, int32_t *count, const char *text, int32_t n, const char *what, chi_err *err);

/* Decoder rows of a prompt. `last`: the final row. `constraint`: the bracketed words. `image`: the picture. `text`: the
 * question's own words, the constraint included. `all`; or ranges of row numbers. A name that matches no row is refused.
 * Caller: chi_free(*out). */
int chi_select_rows(int32_t **out, int32_t *count, const char *text, const chi_prompt *p, chi_err *err);
/* One of the words above? */
bool chi_select_is_word(const char *text);

#endif

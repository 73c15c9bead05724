/* analyze: choosing rows and layers by name, as the command line and plan files do. */
#ifndef CHI_SELECT_H
#define CHI_SELECT_H

#include "model/model.h"

/* "0-3,7" (ends included) -> numbers in [0, n), ascending, without repeats. "all" or NULL = every one. what names them in
 * messages ("layer"). Caller: chi_free(*out). */
int chi_select_ranges(int32_t **out, int32_t *count, const char *text, int32_t n, const char *what, chi_err *err);

/* Decoder rows of a prompt. `last`: the final row. `constraint`: the bracketed words, all of them; `constraint2`: those in
 * the second bracket. `image`: the picture. `late`: its last sixteenth (one row at least); `late36`: its last 36 rows.
 * `text`: the question's own words, the constraint included. `all`; or ranges of row numbers. A name that matches no row
 * is refused. Caller: chi_free(*out). */
int chi_select_rows(int32_t **out, int32_t *count, const char *text, const chi_prompt *p, chi_err *err);
/* One of the words above? */
bool chi_select_is_word(const char *text);

/* A window of layers: "5", or "20%" of the depth (rounded, 1 at least). false: neither. */
bool chi_select_window(int32_t *out, const char *text, int32_t layers);

/* Does the site exist in this layer? Not every layer has cross-attention. */
bool chi_site_in_layer(const chi_shape *s, chi_stack stack, chi_site site, int layer);
/* Values of one row that heads or columns [part_lo, part_hi) of a site cover (0, 0 = all of them). row and rows, the rows
 * of this stack in this run, matter for attention weights only. */
int64_t chi_part_width(const chi_shape *s, chi_stack stack, chi_site site, int32_t row, int32_t rows, int32_t part_lo,
                       int32_t part_hi);
/* Rows that a stack (or, for image_embed, the site) has in a branch; 0 where it needs a picture and there is none. */
int32_t chi_branch_rows(const chi_plan *p, const chi_shape *s, int branch, chi_stack stack, chi_site site);

#endif

/* analyze/patches: which decoder rows are patches of the picture's grid. */
#ifndef CHI_PATCHES_H
#define CHI_PATCHES_H

#include "model/model.h"

/* Rows [first, first + n), row-major over the grid; the class row that some models keep is left out. grid_h = grid_w = 0
 * where picture rows are no patches (query rows); n = 0 without a picture. */
typedef struct chi_patches { int32_t first, n, grid_h, grid_w; } chi_patches;
chi_patches chi_patches_of(const chi_model *m, const chi_prompt *p);
bool chi_patch_at(const chi_patches *g, int32_t row, int32_t *patch_row, int32_t *patch_col);

#endif

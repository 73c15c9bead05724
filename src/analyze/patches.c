#include "analyze/patches.h"

chi_patches chi_patches_of(const chi_model *m, const chi_prompt *p) {
  const chi_vision *v = &m->net.vision;
  if (p->n_image == 0) return (chi_patches){.first = -1};
  int32_t skip = v->has_cls && v->select == 0 && p->n_image == v->grid_h * v->grid_w + 1;
  chi_patches g = {p->image_row + skip, p->n_image - skip, v->grid_h, v->grid_w};
  if (g.n != g.grid_h * g.grid_w) g.grid_h = g.grid_w = 0;
  return g;
}

bool chi_patch_at(const chi_patches *g, int32_t row, int32_t *patch_row, int32_t *patch_col) {
  if (g->grid_w == 0 || row < g->first || row >= g->first + g->n) return false;
  *patch_row = (row - g->first) / g->grid_w;
  *patch_col = (row - g->first) % g->grid_w;
  return true;
}

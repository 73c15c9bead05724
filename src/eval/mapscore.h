/* mapscore: how well a map over the picture's patches finds a known mask, and how far two maps agree. Everything is exact
 * under ties: where values are equal, the expected score over their orders is given, so that a flat map scores as chance. */
#ifndef CHI_MAPSCORE_H
#define CHI_MAPSCORE_H

#include "analyze/patches.h"

/* Share of each patch that the mask covers, in the picture that the model saw. mask: a picture of the original's size, a
 * pixel belongs to it where its first channel is above 127. cover [n] from the caller (grid_h*grid_w = n). seen: the part of
 * the mask's pixels that no patch shows (cut off by the crop), or NULL. */
int chi_mask_cover(double *cover, double *unseen, const chi_image *mask, const chi_view *view, const chi_patches *g,
                   chi_err *err);

/* in [n]: patch belongs to the mask. All: NaN where no patch, or every patch, belongs to it or a value is not finite. */
double chi_map_pointing(const double *map, const uint8_t *in, int32_t n);  /* is the highest patch inside? */
double chi_map_precision(const double *map, const uint8_t *in, int32_t n); /* at k = size of the mask */
double chi_map_auprc(const double *map, const uint8_t *in, int32_t n);     /* average precision over distinct values */
/* Spearman's rank correlation, mean ranks for ties; Pearson's. NaN where one is flat. */
double chi_map_spearman(const double *x, const double *y, int32_t n);
double chi_map_pearson(const double *x, const double *y, int32_t n);
/* Patches from the highest down; ties in an order drawn from the seed. */
int chi_map_order(int32_t *order, const double *map, int32_t n, uint64_t seed, chi_err *err);
/* Trapezoid area under y over x in [x[0], x[k-1]], divided by that width. */
double chi_curve_area(const double *x, const double *y, int k);

#endif

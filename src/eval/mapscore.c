/* Scores of maps against masks; see mapscore.h. */
#include "eval/mapscore.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- masks ------------------------------------------------------------------------------------------------- */
int chi_mask_cover(double *cover, double *unseen, const chi_image *mask, const chi_view *view, const chi_patches *g,
                   chi_err *err) {
  if (g->grid_w == 0) return chi_fail(err, CHI_ERR_UNSUPPORTED, "this model's picture rows are no patches on a grid");
  if (mask->w != view->orig_w || mask->h != view->orig_h)
    return chi_fail(err, CHI_ERR_ARG, "the mask is %d x %d pixels, its picture %d x %d", mask->w, mask->h, view->orig_w,
                    view->orig_h);
  int64_t total = 0;
  double shown = 0;
  for (int64_t i = 0; i < (int64_t)mask->w * mask->h; i++) total += mask->rgb[3 * i] > 127;
  for (int32_t k = 0; k < g->n; k++) {
    double box[4], area = 0, in = 0;
    chi_view_patch(view, g->grid_h, g->grid_w, k / g->grid_w, k % g->grid_w, box);
    for (int y = (int)floor(box[1]); y < (int)ceil(box[3]) && y < mask->h; y++) {
      double h = fmin(box[3], y + 1) - fmax(box[1], y);
      for (int x = (int)floor(box[0]); x < (int)ceil(box[2]) && x < mask->w; x++) {
        double a = h * (fmin(box[2], x + 1) - fmax(box[0], x));
        if (x < 0 || y < 0 || a <= 0) continue;
        area += a;
        if (mask->rgb[3 * ((int64_t)y * mask->w + x)] > 127) in += a;
      }
    }
    cover[k] = area > 0 ? in / area : 0;
    shown += in;
  }
  double left = 1 - shown / (double)(total ? total : 1);
  if (unseen) *unseen = total ? (left > 1e-9 ? left : 0) : NAN; /* sums round */
  return 0;
}

/* ---- order ------------------------------------------------------------------------------------------------- */
typedef struct ranked {
  double value;
  uint32_t tie;
  int32_t at;
} ranked;

static int falling(const void *a, const void *b) {
  const ranked *p = a, *q = b;
  if (p->value != q->value) return p->value > q->value ? -1 : 1;
  if (p->tie != q->tie) return p->tie < q->tie ? -1 : 1;
  return p->at - q->at;
}

static ranked *sorted(const double *map, int32_t n, chi_err *err) {
  ranked *r = chi_calloc((size_t)n, sizeof *r, err);
  for (int32_t i = 0; r && i < n; i++) r[i] = (ranked){.value = map[i], .at = i};
  if (r) qsort(r, (size_t)n, sizeof *r, falling);
  return r;
}

int chi_map_order(int32_t *order, const double *map, int32_t n, uint64_t seed, chi_err *err) {
  ranked *r = chi_calloc((size_t)n, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < n; i++)
    r[i] =
        (ranked){.value = isfinite(map[i]) ? map[i] : -INFINITY, .at = i, .tie = chi_rng_u32(seed, 2, (uint32_t)i, 0)};
  qsort(r, (size_t)n, sizeof *r, falling);
  for (int32_t i = 0; i < n; i++) order[i] = r[i].at;
  chi_free(r);
  return 0;
}

/* ---- against a mask ---------------------------------------------------------------------------------------- */
static bool usable(const double *map, const uint8_t *in, int32_t n, int32_t *k) {
  *k = 0;
  for (int32_t i = 0; i < n; i++) {
    if (!isfinite(map[i])) return false;
    *k += in[i] != 0;
  }
  return *k > 0 && *k < n;
}

double chi_map_pointing(const double *map, const uint8_t *in, int32_t n) {
  int32_t k, top = 0, hit = 0;
  if (!usable(map, in, n, &k)) return NAN;
  double best = map[0];
  for (int32_t i = 1; i < n; i++) best = fmax(best, map[i]);
  for (int32_t i = 0; i < n; i++)
    if (map[i] == best) top++, hit += in[i] != 0;
  return (double)hit / top;
}

/* Groups of equal values, from the highest: f(seen before, size, hits in it). */
double chi_map_precision(const double *map, const uint8_t *in, int32_t n) {
  int32_t k;
  if (!usable(map, in, n, &k)) return NAN;
  ranked *r = sorted(map, n, NULL);
  double hits = 0;
  if (!r) return NAN;
  for (int32_t i = 0, m; i < k; i += m) {
    int32_t hit = 0;
    for (m = 0; i + m < n && r[i + m].value == r[i].value; m++) hit += in[r[i + m].at] != 0;
    hits += i + m <= k ? hit : (double)hit * (k - i) / m;
  }
  chi_free(r);
  return hits / k;
}

double chi_map_auprc(const double *map, const uint8_t *in, int32_t n) {
  int32_t k;
  if (!usable(map, in, n, &k)) return NAN;
  ranked *r = sorted(map, n, NULL);
  double area = 0, hits = 0;
  if (!r) return NAN;
  for (int32_t i = 0, m; i < n; i += m) {
    int32_t hit = 0;
    for (m = 0; i + m < n && r[i + m].value == r[i].value; m++) hit += in[r[i + m].at] != 0;
    hits += hit;
    area += (double)hit / k * hits / (i + m);
  }
  chi_free(r);
  return area;
}

/* ---- two maps ---------------------------------------------------------------------------------------------- */
double chi_map_pearson(const double *x, const double *y, int32_t n) {
  double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
  for (int32_t i = 0; i < n; i++) mx += x[i] / n, my += y[i] / n;
  for (int32_t i = 0; i < n; i++) {
    double a = x[i] - mx, b = y[i] - my;
    xx += a * a, yy += b * b, xy += a * b;
  }
  return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

static bool ranks(const double *x, int32_t n, double *out) {
  ranked *r = sorted(x, n, NULL);
  if (!r) return false;
  for (int32_t i = 0, m; i < n; i += m) {
    for (m = 0; i + m < n && r[i + m].value == r[i].value; m++) {
    }
    for (int32_t k = 0; k < m; k++) out[r[i + k].at] = i + 0.5 * (m - 1);
  }
  chi_free(r);
  return true;
}

double chi_map_spearman(const double *x, const double *y, int32_t n) {
  double out = NAN, *a = chi_calloc((size_t)n, sizeof *a, NULL), *b = chi_calloc((size_t)n, sizeof *b, NULL);
  bool good = a && b;
  for (int32_t i = 0; i < n && good; i++) good = isfinite(x[i]) && isfinite(y[i]);
  if (good && ranks(x, n, a) && ranks(y, n, b)) out = chi_map_pearson(a, b, n);
  chi_free(a);
  chi_free(b);
  return out;
}

double chi_curve_area(const double *x, const double *y, int k) {
  double sum = 0;
  for (int i = 1; i < k; i++) sum += 0.5 * (y[i] + y[i - 1]) * (x[i] - x[i - 1]);
  return k > 1 && x[k - 1] > x[0] ? sum / (x[k - 1] - x[0]) : NAN;
}

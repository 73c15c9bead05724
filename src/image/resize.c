/* Resize with the bits of Pillow 13. Filters are sampled in double, rounded to integers at 2^22, and applied in two
 * passes with an 8-bit picture between them; an axis that keeps its length has no pass. */
#include "image/internal.h"

#include <math.h>
#include <string.h>

#define BITS 22

typedef struct filter {
  double (*at)(double x);
  double support;
} filter;

static double triangle(double x) {
  x = fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

static double cubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

static double sinc(double x) {
  if (x == 0.0) return 1.0;
  double s, c;
  x *= 3.14159265358979323846;
  chi_sincos64(x, &s, &c);
  return s / x;
}

static double lanczos3(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

/* One axis: output i is the sum over j < count[i] of weight[i*width + j] * input[first[i] + j]. */
typedef struct axis {
  int *first, *count;
  int32_t *weight;
  size_t width;
} axis;

static void axis_free(axis *a) {
  chi_free(a->first);
  chi_free(a->count);
  chi_free(a->weight);
}

static int axis_make(axis *a, int in, int out, const filter *f, chi_err *err) {
  double scale = (double)in / out, fscale = scale < 1.0 ? 1.0 : scale;
  double support = f->support * fscale, inv = 1.0 / fscale;
  a->width = (size_t)ceil(support) * 2 + 1;
  a->first = chi_calloc((size_t)out, sizeof *a->first, err);
  a->count = chi_calloc((size_t)out, sizeof *a->count, err);
  a->weight = chi_calloc((size_t)out * a->width, sizeof *a->weight, err);
  double *w = chi_calloc(a->width, sizeof *w, err);
  if (!a->first || !a->count || !a->weight || !w) {
    chi_free(w);
    return CHI_ERR_MEMORY;
  }
  for (int i = 0; i < out; i++) {
    double center = (i + 0.5) * scale, sum = 0.0;
    int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
    if (lo < 0) lo = 0;
    if (hi > in) hi = in;
    int n = hi - lo;
    for (int j = 0; j < n; j++) {
      w[j] = f->at((j + lo - center + 0.5) * inv);
      sum += w[j];
    }
    a->first[i] = lo;
    a->count[i] = n;
    int32_t *q = a->weight + (size_t)i * a->width;
    for (int j = 0; j < n; j++) {
      double v = (sum != 0.0 ? w[j] / sum : w[j]) * (1 << BITS);
      q[j] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
  }
  chi_free(w);
  return 0;
}

static uint8_t clip8(int32_t v) {
  v >>= BITS;
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

typedef struct pass {
  const uint8_t *in;
  uint8_t *out;
  const axis *a;
  size_t in_w, out_w; /* pixels a row */
} pass;

static void across_row(void *ud, int64_t y) {
  const pass *p = ud;
  const uint8_t *in = p->in + (size_t)y * p->in_w * 3;
  uint8_t *out = p->out + (size_t)y * p->out_w * 3;
  for (size_t x = 0; x < p->out_w; x++) {
    const int32_t *k = p->a->weight + x * p->a->width;
    const uint8_t *s = in + (size_t)p->a->first[x] * 3;
    int32_t r = 1 << (BITS - 1), g = r, b = r;
    for (int j = 0; j < p->a->count[x]; j++, s += 3) {
      r += s[0] * k[j];
      g += s[1] * k[j];
      b += s[2] * k[j];
    }
    out[3 * x] = clip8(r);
    out[3 * x + 1] = clip8(g);
    out[3 * x + 2] = clip8(b);
  }
}

static void down_row(void *ud, int64_t y) {
  const pass *p = ud;
  const int32_t *k = p->a->weight + (size_t)y * p->a->width;
  size_t row = p->in_w * 3;
  const uint8_t *in = p->in + (size_t)p->a->first[y] * row;
  uint8_t *out = p->out + (size_t)y * row;
  int n = p->a->count[y];
  enum { LANES = 256 };
  int32_t acc[LANES];
  for (size_t x0 = 0; x0 < row; x0 += LANES) {
    size_t lanes = row - x0 < LANES ? row - x0 : LANES;
    for (size_t i = 0; i < lanes; i++) acc[i] = 1 << (BITS - 1);
    for (int j = 0; j < n; j++) {
      const uint8_t *s = in + (size_t)j * row + x0;
      for (size_t i = 0; i < lanes; i++) acc[i] += s[i] * k[j];
    }
    for (size_t i = 0; i < lanes; i++) out[x0 + i] = clip8(acc[i]);
  }
}

/* Positions are summed up step by step, as Pillow does, so that the rounding of far pixels is the same. -1: outside. */
static int nearest_axis(int **out, int in, int n, chi_err *err) {
  int *pos = chi_calloc((size_t)n, sizeof *pos, err);
  if (!pos) return CHI_ERR_MEMORY;
  double step = (double)in / n, at = step * 0.5;
  for (int i = 0; i < n; i++, at += step) pos[i] = at < in ? (int)at : -1;
  *out = pos;
  return 0;
}

static int resize_nearest(chi_image *out, const chi_image *in, chi_err *err) {
  int rc = 0, *xs = NULL, *ys = NULL;
  CHI_TRY(nearest_axis(&xs, in->w, out->w, err));
  CHI_TRY(nearest_axis(&ys, in->h, out->h, err));
  for (int y = 0; y < out->h; y++) {
    uint8_t *row = out->rgb + (size_t)y * (size_t)out->w * 3;
    for (int x = 0; x < out->w && ys[y] >= 0; x++) {
      if (xs[x] < 0) continue;
      memcpy(row + 3 * (size_t)x, in->rgb + ((size_t)ys[y] * (size_t)in->w + (size_t)xs[x]) * 3, 3);
    }
  }
out:
  chi_free(xs);
  chi_free(ys);
  return rc;
}

/* Pillow 13 goes down first where the height shrinks much more than the width; before 13 it always went across first.
 * The two orders differ by a level here and there, because the picture between the passes has 8 bits. */
static bool down_first(const chi_image *out, const chi_image *in) {
  return out->h < in->h && in->h - out->h > 2 * ((int64_t)in->w - out->w);
}

static int resize_filtered(chi_image *out, const chi_image *in, const filter *f, chi_err *err) {
  int rc = 0;
  axis ax = {0}, ay = {0};
  uint8_t *mid = NULL;
  bool across = out->w != in->w, down = out->h != in->h, down1 = down_first(out, in);
  size_t in_w = (size_t)in->w, in_h = (size_t)in->h, out_w = (size_t)out->w, out_h = (size_t)out->h;
  if (across) CHI_TRY(axis_make(&ax, in->w, out->w, f, err));
  if (down) CHI_TRY(axis_make(&ay, in->h, out->h, f, err));
  if (across && down) {
    mid = chi_calloc(down1 ? in_w * out_h : out_w * in_h, 3, err);
    if (!mid) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
  }
  pass px = {in->rgb, mid ? mid : out->rgb, &ax, in_w, out_w};
  pass py = {mid ? mid : in->rgb, out->rgb, &ay, out_w, out_w};
  if (down1) {
    px.in = mid;
    px.out = out->rgb;
    py = (pass){in->rgb, mid ? mid : out->rgb, &ay, in_w, in_w};
    chi_parallel_for(out->h, down_row, &py);
  }
  if (across) chi_parallel_for(down1 ? out->h : in->h, across_row, &px);
  if (down && !down1) chi_parallel_for(out->h, down_row, &py);
out:
  axis_free(&ax);
  axis_free(&ay);
  chi_free(mid);
  return rc;
}

int chi_image_resize(chi_image *out, const chi_image *in, int w, int h, chi_resample how, chi_err *err) {
  static const filter filters[] = {
      [CHI_LANCZOS] = {lanczos3, 3.0}, [CHI_BILINEAR] = {triangle, 1.0}, [CHI_BICUBIC] = {cubic, 2.0}};
  *out = (chi_image){0};
  if (w <= 0 || h <= 0) return chi_fail(err, CHI_ERR_ARG, "cannot resize a picture to %d x %d", w, h);
  /* The picture between the passes may be out-wide and in-high, so a long thin picture is refused as well. */
  if ((int64_t)w * h > CHII_MAX_PIXELS || (int64_t)w * in->h > 2 * (int64_t)CHII_MAX_PIXELS) {
    return chi_fail(err, CHI_ERR_MEMORY, "a picture of %d x %d becomes too large at %d x %d: cut it first", in->w,
                    in->h, w, h);
  }
  if (how != CHI_NEAREST && how != CHI_LANCZOS && how != CHI_BILINEAR && how != CHI_BICUBIC) {
    return chi_fail(err, CHI_ERR_ARG, "unknown resampling %d", (int)how);
  }
  chi_image im;
  int rc = chii_image_alloc(&im, w, h, err);
  if (rc != 0) return rc;
  memcpy(im.sha256, in->sha256, sizeof im.sha256);
  if (w == in->w && h == in->h)
    memcpy(im.rgb, in->rgb, (size_t)w * (size_t)h * 3);
  else if (how == CHI_NEAREST)
    rc = resize_nearest(&im, in, err);
  else
    rc = resize_filtered(&im, in, &filters[how], err);
  if (rc != 0) chi_image_free(&im);
  *out = im;
  return rc;
}

/* What the model sees: pad, resize, crop, rescale, normalise, in the order and with the arithmetic of Hugging Face's
 * PIL image processors; and the way back from patches to pixels of the picture. */
#include "image/internal.h"

#include <math.h>
#include <string.h>

/* (height or width of the longer edge): trunc(short' * long / short), the product exact, the quotient in double. */
static void target_size(const chi_preproc *p, int w, int h, int64_t *tw, int64_t *th) {
  if (p->shortest_edge <= 0) {
    *tw = p->resize_w;
    *th = p->resize_h;
    return;
  }
  int64_t s = p->shortest_edge;
  if (w <= h) {
    *tw = s;
    *th = (int64_t)((double)(s * h) / w);
  } else {
    *th = s;
    *tw = (int64_t)((double)(s * w) / h);
  }
}

static int pad_to_square(chi_image *out, const chi_image *in, const chi_preproc *p, chi_view *v, chi_err *err) {
  int side = in->w > in->h ? in->w : in->h;
  int rc = chii_image_check(side, side, "the picture padded to a square", err);
  if (rc != 0) return rc;
  rc = chii_image_alloc(out, side, side, err);
  if (rc != 0) return rc;
  uint8_t color[3];
  for (int c = 0; c < 3; c++) color[c] = (uint8_t)(int)(p->mean[c] * 255);
  for (size_t i = 0; i < (size_t)side * (size_t)side; i++) memcpy(out->rgb + 3 * i, color, 3);
  v->padded = side;
  v->pad_left = (side - in->w) / 2;
  v->pad_top = (side - in->h) / 2;
  for (int y = 0; y < in->h; y++) {
    memcpy(out->rgb + ((size_t)(y + v->pad_top) * (size_t)side + (size_t)v->pad_left) * 3,
           in->rgb + (size_t)y * (size_t)in->w * 3, (size_t)in->w * 3);
  }
  return 0;
}

/* floor(a / 2), also below zero: the offset of a centred crop that may be larger than the picture. */
static int half(int a) { return (a - (a & 1)) / 2; }

/* The window at (left, top); pixels outside the picture are black, as HF pads before rescaling. */
static int crop(chi_image *out, const chi_image *in, const chi_view *v, chi_err *err) {
  int rc = chii_image_alloc(out, v->w, v->h, err);
  if (rc != 0) return rc;
  int x0 = v->crop_left < 0 ? -v->crop_left : 0;
  int n = (v->w < in->w - v->crop_left ? v->w : in->w - v->crop_left) - x0;
  for (int y = 0; y < v->h && n > 0; y++) {
    int sy = y + v->crop_top;
    if (sy < 0 || sy >= in->h) continue;
    memcpy(out->rgb + ((size_t)y * (size_t)v->w + (size_t)x0) * 3,
           in->rgb + ((size_t)sy * (size_t)in->w + (size_t)(x0 + v->crop_left)) * 3, (size_t)n * 3);
  }
  return 0;
}

/* uint8 -> f64 -> x factor -> f32 -> (x - mean) / std in f32. A channel has 256 values: tabulate, then look up. */
static int normalise(float **pixels, const chi_image *im, const chi_preproc *p, chi_err *err) {
  size_t n = (size_t)im->w * (size_t)im->h;
  float *out = chi_calloc(3 * n, sizeof *out, err);
  if (!out) return CHI_ERR_MEMORY;
  for (int c = 0; c < 3; c++) {
    float table[256], mean = (float)p->mean[c], std = (float)p->std[c];
    for (int i = 0; i < 256; i++) {
      float x = p->do_rescale ? (float)(i * p->rescale) : (float)i;
      table[i] = p->do_normalize ? (x - mean) / std : x;
    }
    float *plane = out + (size_t)c * n;
    for (size_t i = 0; i < n; i++) plane[i] = table[im->rgb[3 * i + (size_t)c]];
  }
  *pixels = out;
  return 0;
}

static int check_request(const chi_image *in, const chi_preproc *p, chi_err *err) {
  if (!in->rgb || in->w <= 0 || in->h <= 0) return chi_fail(err, CHI_ERR_ARG, "no picture to preprocess");
  if (p->do_resize && p->shortest_edge <= 0 && (p->resize_w <= 0 || p->resize_h <= 0)) {
    return chi_fail(err, CHI_ERR_ARG, "image preprocessing asks for a resize but gives no size");
  }
  if (p->do_center_crop && (p->crop_w <= 0 || p->crop_h <= 0)) {
    return chi_fail(err, CHI_ERR_ARG, "image preprocessing asks for a crop but gives no size");
  }
  for (int c = 0; c < 3; c++) {
    if (p->do_normalize && !(p->std[c] > 0))
      return chi_fail(err, CHI_ERR_ARG, "image preprocessing divides by std %g", p->std[c]);
    if (p->pad_square && !(p->mean[c] >= 0 && p->mean[c] <= 1)) {
      return chi_fail(err, CHI_ERR_ARG, "image preprocessing pads with mean %g, which is no colour", p->mean[c]);
    }
  }
  return 0;
}

int chi_preprocess(float **pixels, chi_view *view, chi_image *rgb, const chi_image *in, const chi_preproc *p,
                   chi_err *err) {
  int rc = 0;
  chi_image padded = {0}, resized = {0}, cut = {0};
  const chi_image *now = in;
  chi_view v = {.orig_w = in->w, .orig_h = in->h};
  *pixels = NULL;
  if (rgb) *rgb = (chi_image){0};
  CHI_TRY(check_request(in, p, err));
  if (p->pad_square && in->w != in->h) {
    CHI_TRY(pad_to_square(&padded, in, p, &v, err));
    now = &padded;
  }
  v.resized_w = now->w;
  v.resized_h = now->h;
  if (p->do_resize) {
    int64_t tw, th;
    target_size(p, now->w, now->h, &tw, &th);
    if (tw > CHII_MAX_PIXELS || th > CHII_MAX_PIXELS || tw * th > CHII_MAX_PIXELS) {
      rc = chi_fail(err, CHI_ERR_MEMORY, "a picture of %d x %d becomes too large at %lld x %lld: cut it first", in->w,
                    in->h, (long long)tw, (long long)th);
      goto out;
    }
    CHI_TRY(chi_image_resize(&resized, now, (int)tw, (int)th, p->resample, err));
    now = &resized;
    v.resized_w = (int)tw;
    v.resized_h = (int)th;
  }
  v.w = p->do_center_crop ? p->crop_w : now->w;
  v.h = p->do_center_crop ? p->crop_h : now->h;
  v.crop_left = half(now->w - v.w);
  v.crop_top = half(now->h - v.h);
  CHI_TRY(crop(&cut, now, &v, err));
  CHI_TRY(normalise(pixels, &cut, p, err));
  if (view) *view = v;
  if (rgb) {
    memcpy(cut.sha256, in->sha256, sizeof cut.sha256);
    *rgb = cut;
    cut = (chi_image){0};
  }
out:
  chi_image_free(&padded);
  chi_image_free(&resized);
  chi_image_free(&cut);
  return rc;
}

static double clamp(double x, double hi) { return x < 0 ? 0 : x > hi ? hi : x; }

void chi_view_patch(const chi_view *v, int grid_h, int grid_w, int row, int col, double box[4]) {
  double sx = (double)(v->padded ? v->padded : v->orig_w) / v->resized_w;
  double sy = (double)(v->padded ? v->padded : v->orig_h) / v->resized_h;
  double pw = (double)v->w / grid_w, ph = (double)v->h / grid_h;
  box[0] = clamp((col * pw + v->crop_left) * sx - v->pad_left, v->orig_w);
  box[1] = clamp((row * ph + v->crop_top) * sy - v->pad_top, v->orig_h);
  box[2] = clamp(((col + 1) * pw + v->crop_left) * sx - v->pad_left, v->orig_w);
  box[3] = clamp(((row + 1) * ph + v->crop_top) * sy - v->pad_top, v->orig_h);
}

void chi_patchify(const float *pixels, int h, int w, int ps, float *out) {
  int gh = h / ps, gw = w / ps;
  for (int r = 0; r < gh; r++) {
    for (int q = 0; q < gw; q++) {
      for (int c = 0; c < 3; c++) {
        for (int y = 0; y < ps; y++) {
          const float *src = pixels + ((size_t)c * (size_t)h + (size_t)(r * ps + y)) * (size_t)w + (size_t)(q * ps);
          memcpy(out, src, (size_t)ps * sizeof *out);
          out += ps;
        }
      }
    }
  }
}

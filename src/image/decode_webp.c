/* WebP through libwebp: lossy, lossless and with alpha (dropped); of an animation the first frame on its canvas, as
 * Pillow's Image.open shows it. */
#include <string.h>
#include <webp/decode.h>
#include <webp/demux.h>

#include "image/internal.h"

#define MAX_ANIMATION 16000000 /* pixels of a canvas: the decoder keeps two of them, four bytes a pixel */

static int broken(const char *what, const char *why, chi_err *err) {
  return chi_fail(err, CHI_ERR_FORMAT, "%s: broken WebP (%s): fetch or save it again", what, why);
}

static const char *status_text(VP8StatusCode s) {
  switch (s) {
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
      return "the file ends too early";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "an unknown feature";
    default:
      return "damaged data";
  }
}

static int first_frame(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  int rc = 0, time = 0;
  WebPData data = {bytes, n};
  WebPAnimDecoderOptions opt;
  uint8_t *rgba = NULL;
  if (!WebPAnimDecoderOptionsInit(&opt)) return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: another libwebp", what);
  opt.color_mode = MODE_RGBA;
  opt.use_threads = 0;
  if ((int64_t)out->w * out->h > MAX_ANIMATION)
    return chi_fail(err, CHI_ERR_MEMORY,
                    "%s: an animation of %d x %d pixels; at most %d megapixels are read: make it smaller first", what,
                    out->w, out->h, MAX_ANIMATION / 1000000);
  WebPAnimDecoder *d = WebPAnimDecoderNew(&data, &opt);
  if (!d || !WebPAnimDecoderGetNext(d, &rgba, &time)) {
    rc = broken(what, "no first frame", err);
  } else {
    for (size_t i = 0; i < (size_t)out->w * (size_t)out->h; i++) memcpy(out->rgb + 3 * i, rgba + 4 * i, 3);
  }
  WebPAnimDecoderDelete(d);
  return rc;
}

static int still(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  WebPDecoderConfig c;
  if (!WebPInitDecoderConfig(&c)) return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: another libwebp", what);
  c.output.colorspace = MODE_RGB;
  c.output.is_external_memory = 1;
  c.output.u.RGBA.rgba = out->rgb;
  c.output.u.RGBA.stride = out->w * 3;
  c.output.u.RGBA.size = (size_t)out->w * (size_t)out->h * 3;
  VP8StatusCode s = WebPDecode(bytes, n, &c);
  WebPFreeDecBuffer(&c.output);
  if (s == VP8_STATUS_OK) return 0;
  if (s == VP8_STATUS_OUT_OF_MEMORY) return chi_fail(err, CHI_ERR_MEMORY, "%s: no memory to decode the picture", what);
  return broken(what, status_text(s), err);
}

int chii_webp_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  int rc = 0, w = 0, h = 0;
  WebPBitstreamFeatures f;
  *out = (chi_image){0};
  VP8StatusCode s = WebPGetFeatures(bytes, n, &f);
  if (s != VP8_STATUS_OK) return broken(what, status_text(s), err);
  w = f.width;
  h = f.height;
  CHI_TRY(chii_image_check(w, h, what, err));
  CHI_TRY(chii_image_alloc(out, w, h, err));
  CHI_TRY(f.has_animation ? first_frame(out, bytes, n, what, err) : still(out, bytes, n, what, err));
out:
  if (rc) chi_image_free(out);
  return rc;
}

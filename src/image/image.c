/* Pictures in and out: what kind of file it is, the limits, and who owns the pixels. */
#include "image/internal.h"

#include <stdio.h>
#include <string.h>

int chii_image_check(int64_t w, int64_t h, const char *what, chi_err *err) {
  if (w <= 0 || h <= 0) return chi_fail(err, CHI_ERR_FORMAT, "%s: the picture has no pixels", what);
  if (w > CHII_MAX_SIDE || h > CHII_MAX_SIDE || w * h > CHII_MAX_PIXELS) {
    return chi_fail(
        err, CHI_ERR_MEMORY,
        "%s: declares %lld x %lld pixels; at most %d a side and %d megapixels are read: make it smaller first", what,
        (long long)w, (long long)h, CHII_MAX_SIDE, CHII_MAX_PIXELS / 1000000);
  }
  return 0;
}

int chii_image_alloc(chi_image *out, int w, int h, chi_err *err) {
  *out = (chi_image){.w = w, .h = h};
  out->rgb = chi_calloc((size_t)w * (size_t)h, 3, err);
  if (!out->rgb) {
    *out = (chi_image){0};
    return CHI_ERR_MEMORY;
  }
  return 0;
}

void chi_image_free(chi_image *im) {
  if (!im) return;
  chi_free(im->rgb);
  *im = (chi_image){0};
}

/* The kinds that people try most often, so that the message can say what the file is. */
static const char *kind_of(const uint8_t *b, size_t n) {
  if (n >= 4 && memcmp(b, "GIF8", 4) == 0) return "a GIF picture";
  if (n >= 2 && memcmp(b, "BM", 2) == 0) return "a BMP picture";
  if (n >= 4 && (memcmp(b, "II*\0", 4) == 0 || memcmp(b, "MM\0*", 4) == 0)) return "a TIFF picture";
  if (n >= 12 && memcmp(b + 4, "ftyp", 4) == 0) return "a HEIC, AVIF or MP4 file";
  if (n >= 5 && (memcmp(b, "<?xml", 5) == 0 || memcmp(b, "<svg", 4) == 0)) return "XML or SVG text";
  return NULL;
}

int chi_image_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  *out = (chi_image){0};
  int rc;
  if (n >= 8 && memcmp(bytes, png, 8) == 0) {
    rc = chii_png_decode(out, bytes, n, what, err);
  } else if (n >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) {
    rc = chii_jpeg_decode(out, bytes, n, what, err);
  } else if (n >= 12 && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WEBP", 4) == 0) {
    rc = chii_webp_decode(out, bytes, n, what, err);
  } else {
    const char *kind = kind_of(bytes, n);
    return chi_fail(err, kind ? CHI_ERR_UNSUPPORTED : CHI_ERR_FORMAT,
                    "%s: %s; PNG, JPEG and WebP pictures are read: convert it first", what,
                    kind ? kind : "not a picture that is known here");
  }
  if (rc != 0) return rc;
  chi_sha256 sha;
  chi_sha256_init(&sha);
  chi_sha256_add(&sha, bytes, n);
  chi_sha256_hex(&sha, out->sha256);
  return 0;
}

int chi_image_load(chi_image *out, const char *path, chi_err *err) {
  chi_map map = {0};
  *out = (chi_image){0};
  int rc = chi_map_open(&map, path, err);
  if (rc != 0) return rc;
  rc = chi_image_decode(out, map.data, map.size, path, err);
  chi_map_close(&map);
  return rc;
}

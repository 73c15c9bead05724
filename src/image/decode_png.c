/* PNG in and out through libpng. In: the pixels of Pillow's Image.open(f).convert("RGB"), alpha dropped, colour
 * profiles and gamma ignored. libpng reports errors by longjmp: all state that outlives the jump sits in a struct that
 * the caller of the jumping function owns. */
#include "image/internal.h"

#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

typedef struct png_state {
  png_structp png;
  png_infop info;
  const uint8_t *bytes; /* reading */
  size_t n, at;
  chi_out *file; /* writing */
  int w, h, bit_depth, color_type;
  uint8_t *rgb;
  png_bytep *rows;
  chi_err *err;
  const char *what;
  int rc;
} png_state;

static void on_error(png_structp png, png_const_charp msg) {
  png_state *s = png_get_error_ptr(png);
  if (s->rc == 0) {
    s->rc = s->file ? chi_fail(s->err, CHI_ERR_IO, "%s: cannot write PNG: %s", s->what, msg)
                    : chi_fail(s->err, CHI_ERR_FORMAT, "%s: broken PNG (%s): fetch or save it again", s->what, msg);
  }
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp msg) { (void)png, (void)msg; }

static void read_bytes(png_structp png, png_bytep dst, size_t n) {
  png_state *s = png_get_io_ptr(png);
  if (n > s->n - s->at) png_error(png, "the file ends too early");
  memcpy(dst, s->bytes + s->at, n);
  s->at += n;
}

static uint32_t be32(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

/* IHDR by hand, so that absurd sizes get our own message before libpng sees the file. */
static int check_header(png_state *s) {
  const uint8_t *b = s->bytes;
  if (s->n < 33 || be32(b + 8) != 13 || memcmp(b + 12, "IHDR", 4) != 0) {
    return chi_fail(s->err, CHI_ERR_FORMAT, "%s: broken PNG (no header chunk): fetch or save it again", s->what);
  }
  int64_t w = be32(b + 16), h = be32(b + 20);
  int depth = b[24], type = b[25];
  int rc = chii_image_check(w, h, s->what, s->err);
  if (rc != 0) return rc;
  /* Deflate shrinks by 1032 to 1 at most: a small file cannot hold a large picture. */
  int channels = type == 2 ? 3 : type == 6 ? 4 : type == 4 ? 2 : 1;
  if ((w * channels * depth + 7) / 8 * h / 1032 > (int64_t)s->n) {
    return chi_fail(s->err, CHI_ERR_FORMAT,
                    "%s: broken PNG (%zu bytes cannot hold %lld x %lld pixels): fetch or save it again", s->what, s->n,
                    (long long)w, (long long)h);
  }
  s->w = (int)w;
  s->h = (int)h;
  return 0;
}

/* Chunks that carry no pixels are skipped unread: less to parse, and huge texts cost nothing. */
static void skip_ancillary(png_structp png) {
  static const uint8_t names[] =
      "iCCP\0tEXt\0zTXt\0iTXt\0sPLT\0eXIf\0hIST\0pCAL\0sCAL\0gAMA\0cHRM\0sRGB\0pHYs\0tIME\0sBIT\0bKGD\0oFFs";
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, names, (int)(sizeof names / 5));
}

/* Palette rows were read as indices into the last third of each row; widen them in place, first pixel first. An index
 * past the palette is black, as in Pillow. */
static void expand_palette(const png_state *s) {
  uint8_t pal[256][3] = {{0}};
  png_colorp colors = NULL;
  int n = 0;
  if (png_get_PLTE(s->png, s->info, &colors, &n) != 0) {
    for (int i = 0; i < n && i < 256; i++) {
      pal[i][0] = colors[i].red;
      pal[i][1] = colors[i].green;
      pal[i][2] = colors[i].blue;
    }
  }
  size_t w = (size_t)s->w;
  for (size_t y = 0; y < (size_t)s->h; y++) {
    uint8_t *row = s->rgb + y * w * 3;
    for (size_t x = 0; x < w; x++) memmove(row + 3 * x, pal[row[2 * w + x]], 3);
  }
}

/* 16-bit grey rows were read into the last two thirds of each row; widened in place, first pixel first, and cut at 255
 * as Pillow's mode I;16 is. */
static void expand_grey16(const png_state *s) {
  size_t w = (size_t)s->w;
  for (size_t y = 0; y < (size_t)s->h; y++) {
    uint8_t *row = s->rgb + y * w * 3;
    for (size_t x = 0; x < w; x++) {
      uint8_t v = row[w + 2 * x] ? 255 : row[w + 2 * x + 1];
      memset(row + 3 * x, v, 3);
    }
  }
  chi_log(CHI_LOG_WARN, "%s: 16-bit grey is cut at 255, as Pillow does: save it with 8 bits to see it as people do",
          s->what);
}

/* May leave by longjmp. */
static void read_png(png_state *s) {
  png_set_read_fn(s->png, s, read_bytes);
  png_set_user_limits(s->png, CHII_MAX_SIDE, CHII_MAX_SIDE);
  skip_ancillary(s->png);
  png_read_info(s->png, s->info);
  s->bit_depth = png_get_bit_depth(s->png, s->info);
  s->color_type = png_get_color_type(s->png, s->info);
  bool palette = s->color_type == PNG_COLOR_TYPE_PALETTE;
  if (s->bit_depth < 8) {
    if (palette)
      png_set_packing(s->png);
    else
      png_set_expand_gray_1_2_4_to_8(s->png);
  }
  bool grey16 = s->bit_depth == 16 && s->color_type == PNG_COLOR_TYPE_GRAY;
  if (s->bit_depth == 16 && !grey16) png_set_strip_16(s->png); /* keeps the high byte */
  if (s->color_type & PNG_COLOR_MASK_ALPHA) png_set_strip_alpha(s->png);
  if (!(s->color_type & PNG_COLOR_MASK_COLOR) && !grey16) png_set_gray_to_rgb(s->png);
  png_set_interlace_handling(s->png);
  png_read_update_info(s->png, s->info);
  size_t w = (size_t)s->w, bytes = palette ? w : grey16 ? 2 * w : 3 * w;
  if (png_get_rowbytes(s->png, s->info) != bytes) png_error(s->png, "unexpected row size");
  for (size_t y = 0; y < (size_t)s->h; y++) s->rows[y] = s->rgb + (y + 1) * w * 3 - bytes;
  png_read_image(s->png, s->rows);
  if (palette) expand_palette(s);
  if (grey16) expand_grey16(s);
}

static void guarded_read(png_state *s) {
  if (setjmp(png_jmpbuf(s->png)) == 0) read_png(s);
}

int chii_png_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  png_state s = {.bytes = bytes, .n = n, .err = err, .what = what};
  chi_image im = {0};
  s.rc = check_header(&s);
  if (s.rc != 0) goto out;
  s.rc = chii_image_alloc(&im, s.w, s.h, err);
  if (s.rc != 0) goto out;
  s.rgb = im.rgb;
  s.rows = chi_calloc((size_t)s.h, sizeof *s.rows, err);
  s.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
  s.info = s.png ? png_create_info_struct(s.png) : NULL;
  if (!s.rows || !s.info) {
    s.rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory to decode the picture", what);
    goto out;
  }
  guarded_read(&s);
out:
  if (s.png) png_destroy_read_struct(&s.png, &s.info, NULL);
  chi_free(s.rows);
  if (s.rc != 0) chi_image_free(&im);
  *out = im;
  return s.rc;
}

/* ---- writing --------------------------------------------------------------------------------------------- */
static void write_bytes(png_structp png, png_bytep src, size_t n) {
  png_state *s = png_get_io_ptr(png);
  int rc = chi_out_write(s->file, src, n, s->err);
  if (rc != 0) {
    s->rc = rc;
    png_longjmp(png, 1);
  }
}

static void flush_bytes(png_structp png) { (void)png; }

/* May leave by longjmp. */
static void write_png(png_state *s, png_text *text, int n_text) {
  png_set_write_fn(s->png, s, write_bytes, flush_bytes);
  png_set_IHDR(s->png, s->info, (png_uint_32)s->w, (png_uint_32)s->h, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (n_text > 0) png_set_text(s->png, s->info, text, n_text);
  png_write_info(s->png, s->info);
  for (size_t y = 0; y < (size_t)s->h; y++) png_write_row(s->png, s->rgb + y * (size_t)s->w * 3);
  png_write_end(s->png, NULL);
}

static void guarded_write(png_state *s, png_text *text, int n_text) {
  if (setjmp(png_jmpbuf(s->png)) == 0) write_png(s, text, n_text);
}

int chi_image_save_png_text(const chi_image *im, const chi_png_text *text, size_t n_text, const char *path,
                            chi_err *err) {
  png_state s = {.w = im->w, .h = im->h, .rgb = im->rgb, .err = err, .what = path};
  png_text *chunks = NULL;
  char none[1] = "";
  s.rc = chi_out_open(&s.file, path, err);
  if (s.rc != 0) return s.rc;
  chunks = chi_calloc(n_text + 1, sizeof *chunks, err);
  s.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
  s.info = s.png ? png_create_info_struct(s.png) : NULL;
  if (!chunks || !s.info) {
    s.rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory to write the picture", path);
    goto out;
  }
  for (size_t i = 0; i < n_text; i++) {
    chunks[i] = (png_text){.compression = PNG_ITXT_COMPRESSION_NONE, .lang = none, .lang_key = none};
    chunks[i].key = (png_charp)(uintptr_t)text[i].key; /* libpng only reads them */
    chunks[i].text = (png_charp)(uintptr_t)text[i].text;
  }
  guarded_write(&s, chunks, (int)n_text);
out:
  if (s.png) png_destroy_write_struct(&s.png, &s.info);
  chi_free(chunks);
  if (s.rc == 0) return chi_out_commit(s.file, err);
  chi_out_abort(s.file);
  return s.rc;
}

int chi_image_save_png(const chi_image *im, const char *path, chi_err *err) {
  return chi_image_save_png_text(im, NULL, 0, path, err);
}

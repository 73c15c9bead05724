/* JPEG through libjpeg(-turbo) with the settings that Pillow uses: accurate integer DCT, smooth chroma upsampling, no
 * EXIF rotation. libjpeg reports errors by longjmp: all state that outlives the jump sits in a struct whose owner is
 * the caller of the jumping function. */
#include "image/internal.h"

#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>
#include <setjmp.h>

/* A progressive file may repeat scans of the whole picture at almost no cost in bytes. Real ones have about ten. */
#define MAX_SCANS 200
#define MAX_SCAN_PIXELS 4000000000LL

typedef struct jpeg_state {
  struct jpeg_decompress_struct jpeg; /* first: libjpeg hands back its address */
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf jump;
  chi_image im;
  uint8_t *cmyk; /* a row of a CMYK picture */
  chi_err *err;
  const char *what;
  size_t n;
  bool warned;
  int rc;
} jpeg_state;

static jpeg_state *state_of(j_common_ptr c) { return (jpeg_state *)c->client_data; }

static void on_error(j_common_ptr c) {
  jpeg_state *s = state_of(c);
  char msg[JMSG_LENGTH_MAX];
  c->err->format_message(c, msg);
  if (s->rc == 0) {
    int code = c->err->msg_code == JERR_OUT_OF_MEMORY ? CHI_ERR_MEMORY : CHI_ERR_FORMAT;
    s->rc = chi_fail(s->err, code, "%s: broken JPEG (%s): fetch or save it again", s->what, msg);
  }
  longjmp(s->jump, 1);
}

/* Warnings: a file that ends early is refused, as Pillow does; other damage is decoded as well as it goes. */
static void on_message(j_common_ptr c, int level) {
  jpeg_state *s = state_of(c);
  if (level >= 0) return;
  if (c->err->msg_code == JWRN_JPEG_EOF) {
    if (s->rc == 0) {
      s->rc = chi_fail(s->err, CHI_ERR_FORMAT, "%s: broken JPEG (the file ends too early): fetch or save it again",
                       s->what);
    }
    longjmp(s->jump, 1);
  }
  if (!s->warned) {
    char msg[JMSG_LENGTH_MAX];
    c->err->format_message(c, msg);
    chi_log(CHI_LOG_WARN, "%s: the JPEG is damaged, parts may be wrong (%s)", s->what, msg);
    s->warned = true;
  }
}

static void on_output(j_common_ptr c) { (void)c; }

static void on_progress(j_common_ptr c) {
  jpeg_state *s = state_of(c);
  int64_t scans = s->jpeg.input_scan_number;
  int64_t pixels = (int64_t)s->jpeg.image_width * s->jpeg.image_height;
  if (scans <= MAX_SCANS && scans * pixels <= MAX_SCAN_PIXELS) return;
  if (s->rc == 0) {
    s->rc = chi_fail(s->err, CHI_ERR_FORMAT, "%s: a JPEG with %lld scans or more: save it again", s->what,
                     (long long)scans);
  }
  longjmp(s->jump, 1);
}

/* After the header: sizes, channels and whether so few bytes can hold the picture at all. */
static int check_header(jpeg_state *s) {
  int64_t w = s->jpeg.image_width, h = s->jpeg.image_height;
  int rc = chii_image_check(w, h, s->what, s->err);
  if (rc != 0) return rc;
  int channels = s->jpeg.num_components;
  if (channels != 1 && channels != 3 && channels != 4) {
    return chi_fail(s->err, CHI_ERR_UNSUPPORTED, "%s: a JPEG with %d channels; 1, 3 or 4 are read: convert it first",
                    s->what, channels);
  }
  /* Huffman coding spends at least one bit on a block of 64 pixels: 512 pixels a byte, with a wide margin. */
  if (w * h / 4096 > (int64_t)s->n) {
    return chi_fail(s->err, CHI_ERR_FORMAT,
                    "%s: broken JPEG (%zu bytes cannot hold %lld x %lld pixels): fetch or save it again", s->what, s->n,
                    (long long)w, (long long)h);
  }
  return 0;
}

/* Inverted CMYK, as Adobe writes it and Pillow takes it for granted, to RGB by Pillow's formula. */
static void cmyk_to_rgb(uint8_t *rgb, const uint8_t *cmyk, size_t w) {
  for (size_t x = 0; x < w; x++) {
    int paper = cmyk[4 * x + 3];
    for (size_t c = 0; c < 3; c++) {
      int t = (255 - cmyk[4 * x + c]) * paper + 128;
      rgb[3 * x + c] = (uint8_t)(paper - (((t >> 8) + t) >> 8)); /* never below 0: the product is at most paper */
    }
  }
}

/* May leave by longjmp. */
static void read_jpeg(jpeg_state *s, const uint8_t *bytes) {
  jpeg_create_decompress(&s->jpeg);
  s->progress.progress_monitor = on_progress;
  s->jpeg.progress = &s->progress;
  jpeg_mem_src(&s->jpeg, bytes, (unsigned long)s->n);
  jpeg_read_header(&s->jpeg, TRUE);
  s->rc = check_header(s);
  if (s->rc != 0) return;
  bool grey = s->jpeg.num_components == 1, ink = s->jpeg.num_components == 4;
  s->jpeg.out_color_space = grey ? JCS_GRAYSCALE : ink ? JCS_CMYK : JCS_RGB;
  s->jpeg.dct_method = JDCT_ISLOW;
  s->jpeg.do_fancy_upsampling = TRUE;
  s->rc = chii_image_alloc(&s->im, (int)s->jpeg.image_width, (int)s->jpeg.image_height, s->err);
  if (s->rc != 0) return;
  size_t w = (size_t)s->im.w;
  if (ink) {
    s->cmyk = chi_calloc(w, 4, s->err);
    s->rc = s->cmyk ? 0 : CHI_ERR_MEMORY;
    if (s->rc != 0) return;
  }
  jpeg_start_decompress(&s->jpeg);
  while (s->jpeg.output_scanline < s->jpeg.output_height) {
    uint8_t *row = s->im.rgb + (size_t)s->jpeg.output_scanline * w * 3;
    /* Grey rows land in the last third of the row and are widened in place, first pixel first. */
    JSAMPROW at = grey ? row + 2 * w : ink ? s->cmyk : row;
    if (jpeg_read_scanlines(&s->jpeg, &at, 1) != 1) break;
    if (ink) cmyk_to_rgb(row, s->cmyk, w);
    for (size_t x = 0; grey && x < w; x++) {
      uint8_t v = at[x];
      row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = v;
    }
  }
}

static void guarded_read(jpeg_state *s, const uint8_t *bytes) {
  if (setjmp(s->jump) == 0) read_jpeg(s, bytes);
}

int chii_jpeg_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err) {
  jpeg_state s = {.err = err, .what = what, .n = n};
  s.jpeg.err = jpeg_std_error(&s.errors);
  s.jpeg.client_data = &s;
  s.errors.error_exit = on_error;
  s.errors.emit_message = on_message;
  s.errors.output_message = on_output;
  guarded_read(&s, bytes);
  jpeg_destroy_decompress(&s.jpeg);
  chi_free(s.cmyk);
  if (s.rc != 0) chi_image_free(&s.im);
  *out = s.im;
  return s.rc;
}

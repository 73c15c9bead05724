/* One drawing function, two kinds of file. */
#include "report/internal.h"

#include <cairo-svg.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PIXELS 100e6

/* White paper, the drawing, and cairo's own word on whether it went well. */
static int draw_on(cairo_surface_t *s, const chii_figure *f, double scale, chi_err *err) {
  chii_pen pen;
  int rc = chii_pen_open(&pen, s, err);
  if (rc != 0) return rc;
  cairo_scale(pen.cr, scale, scale);
  chii_rect(&pen, 0, 0, f->w + 1, f->h + 1, (chii_color){1, 1, 1});
  rc = f->draw(&pen, f->ud, err);
  cairo_status_t st = cairo_status(pen.cr);
  if (rc == 0 && st != CAIRO_STATUS_SUCCESS)
    rc = chi_fail(err, CHI_ERR_MEMORY, "drawing failed: %s", cairo_status_to_string(st));
  chii_pen_close(&pen);
  return rc;
}

static int provenance_text(char **out, const chi_provenance *prov, chi_err *err) {
  json_t *j = NULL;
  *out = NULL;
  if (!prov) return 0;
  int rc = chi_provenance_json(&j, prov, err);
  if (rc != 0) return rc;
  char *s = json_dumps(j, JSON_COMPACT);
  json_decref(j);
  chi_str copy = {0};
  if (s) chi_str_add(&copy, s);
  free(s);
  if (!copy.s) return chi_fail(err, CHI_ERR_MEMORY, "no memory for the provenance of a figure");
  *out = copy.s; /* freed with chi_free, as chi_str's memory is */
  return 0;
}

/* ---- PNG ------------------------------------------------------------------------------------------------- */
static int save_png(const chii_figure *f, const char *prov, const char *path, chi_err *err) {
  double w = ceil(f->w * f->scale), h = ceil(f->h * f->scale);
  if (!(w * h <= MAX_PIXELS) || w > 32000 || h > 32000) {
    return chi_fail(err, CHI_ERR_ARG,
                    "%s: a figure of %.0f x %.0f pixels is too large: draw fewer rows, or save it as SVG", path, w, h);
  }
  int rc = 0;
  chi_image im = {.w = (int)w, .h = (int)h};
  chi_str title = {0}, desc = {0};
  cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, im.w, im.h);
  CHI_TRY(draw_on(s, f, f->scale, err));
  cairo_surface_flush(s);
  im.rgb = chi_calloc((size_t)im.w * (size_t)im.h, 3, err);
  if (!im.rgb) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  const uint8_t *data = cairo_image_surface_get_data(s);
  size_t stride = (size_t)cairo_image_surface_get_stride(s);
  for (size_t y = 0; y < (size_t)im.h; y++) {
    uint8_t *row = im.rgb + y * (size_t)im.w * 3;
    for (size_t x = 0; x < (size_t)im.w; x++) {
      uint32_t v;
      memcpy(&v, data + y * stride + x * 4, 4);
      row[3 * x] = (uint8_t)(v >> 16);
      row[3 * x + 1] = (uint8_t)(v >> 8);
      row[3 * x + 2] = (uint8_t)v;
    }
  }
  chii_clean(&title, f->title, false);
  chii_clean(&desc, f->description, true);
  chi_png_text text[3] = {{"Title", title.s ? title.s : ""}, {"Description", desc.s ? desc.s : ""}, {"chiasm", prov}};
  CHI_TRY(chi_image_save_png_text(&im, text, prov ? 3 : 2, path, err));
out:
  cairo_surface_destroy(s);
  chi_str_free(&title);
  chi_str_free(&desc);
  chi_image_free(&im);
  return rc;
}

/* ---- SVG ------------------------------------------------------------------------------------------------- */
static cairo_status_t collect(void *ud, const unsigned char *bytes, unsigned n) {
  chi_str *s = ud;
  chi_str_addn(s, (const char *)bytes, n);
  return s->failed ? CAIRO_STATUS_NO_MEMORY : CAIRO_STATUS_SUCCESS;
}

/* cairo draws letters as shapes; title and description bring the words back, for search and for screen readers. */
static int write_svg(const chi_str *svg, const chii_figure *f, const char *prov, const char *path, chi_err *err) {
  const char *root = svg->s ? strstr(svg->s, "<svg") : NULL, *end = root ? strchr(root, '>') : NULL;
  if (!end) return chi_fail(err, CHI_ERR_IO, "%s: cairo made no SVG", path);
  chi_str head = {0};
  chi_str_add(&head, "\n<title>");
  chii_xml(&head, f->title);
  chi_str_add(&head, "</title>\n<desc>");
  chii_xml(&head, f->description);
  chi_str_add(&head, "</desc>\n");
  if (prov) {
    chi_str_add(&head, "<metadata>");
    chii_xml(&head, prov);
    chi_str_add(&head, "</metadata>");
  }
  chi_out *out = NULL;
  int rc = head.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", path) : chi_out_open(&out, path, err);
  if (rc == 0) {
    size_t at = (size_t)(end + 1 - svg->s);
    chi_out_write(out, svg->s, at, err); /* errors are sticky: commit reports them */
    chi_out_write(out, head.s, head.len, err);
    chi_out_write(out, svg->s + at, svg->len - at, err);
    rc = chi_out_commit(out, err);
  }
  chi_str_free(&head);
  return rc;
}

static int save_svg(const chii_figure *f, const char *prov, const char *path, chi_err *err) {
  chi_str svg = {0};
  cairo_surface_t *s = cairo_svg_surface_create_for_stream(collect, &svg, f->w, f->h);
  cairo_svg_surface_set_document_unit(s, CAIRO_SVG_UNIT_PX);
  int rc = draw_on(s, f, 1, err);
  cairo_surface_finish(s);
  if (rc == 0 && (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS || svg.failed)) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory to draw the figure", path);
  }
  cairo_surface_destroy(s);
  if (rc == 0) rc = write_svg(&svg, f, prov, path, err);
  chi_str_free(&svg);
  return rc;
}

static bool ends_in(const char *path, const char *ending) {
  size_t n = strlen(path), m = strlen(ending);
  return n > m && strcmp(path + n - m, ending) == 0;
}

int chii_figure_save(const chii_figure *f, const chi_provenance *prov, const char *path, chi_err *err) {
  bool svg = ends_in(path, ".svg");
  if (!svg && !ends_in(path, ".png")) {
    return chi_fail(err, CHI_ERR_ARG, "%s: figures are written as .png or .svg: end the name in one of them", path);
  }
  char *text = NULL;
  int rc = provenance_text(&text, prov, err);
  if (rc == 0) rc = svg ? save_svg(f, text, path, err) : save_png(f, text, path, err);
  chi_free(text);
  return rc;
}

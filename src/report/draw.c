/* The pen: text through pango, rectangles and pictures through cairo. */
#include "report/internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FACE "DejaVu Sans"

int chii_pen_open(chii_pen *p, cairo_surface_t *surface, chi_err *err) {
  *p = (chii_pen){.cr = cairo_create(surface), .fonts = pango_cairo_font_map_new()};
  if (cairo_status(p->cr) != CAIRO_STATUS_SUCCESS || !p->fonts) {
    chii_pen_close(p);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory to draw a figure");
  }
  /* Without any font pango would complain on the terminal and draw boxes. */
  PangoFontFamily **families = NULL;
  int n = 0;
  pango_font_map_list_families(p->fonts, &families, &n);
  g_free(families);
  if (n == 0) {
    chii_pen_close(p);
    return chi_fail(err, CHI_ERR_IO, "no fonts to draw a figure with: install one, e.g. the package fonts-dejavu-core");
  }
  p->context = pango_font_map_create_context(p->fonts);
  cairo_font_options_t *o = cairo_font_options_create();
  cairo_font_options_set_antialias(o, CAIRO_ANTIALIAS_GRAY);
  cairo_font_options_set_hint_style(o, CAIRO_HINT_STYLE_NONE);
  cairo_font_options_set_hint_metrics(o, CAIRO_HINT_METRICS_OFF);
  pango_cairo_context_set_font_options(p->context, o);
  cairo_font_options_destroy(o);
  pango_context_set_round_glyph_positions(p->context, FALSE);
  pango_cairo_update_context(p->cr, p->context);
  p->layout = pango_layout_new(p->context);
  return 0;
}

int chii_pen_measure(chii_pen *p, chi_err *err) {
  cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_A8, 1, 1);
  int rc = chii_pen_open(p, s, err);
  cairo_surface_destroy(s); /* the context holds it */
  return rc;
}

void chii_pen_close(chii_pen *p) {
  if (p->layout) g_object_unref(p->layout);
  if (p->context) g_object_unref(p->context);
  if (p->fonts) g_object_unref(p->fonts);
  if (p->cr) cairo_destroy(p->cr);
  *p = (chii_pen){0};
}

void chii_set_color(const chii_pen *p, chii_color c) { cairo_set_source_rgb(p->cr, c.r, c.g, c.b); }

void chii_rect(const chii_pen *p, double x, double y, double w, double h, chii_color fill) {
  chii_set_color(p, fill);
  cairo_rectangle(p->cr, x, y, w, h);
  cairo_fill(p->cr);
}

static void set_text(const chii_pen *p, const chii_text *t) {
  PangoFontDescription *d = pango_font_description_new();
  pango_font_description_set_family_static(d, FACE);
  pango_font_description_set_absolute_size(d, t->font.size * PANGO_SCALE);
  pango_font_description_set_weight(d, t->font.bold ? PANGO_WEIGHT_BOLD : PANGO_WEIGHT_NORMAL);
  pango_layout_set_font_description(p->layout, d);
  pango_font_description_free(d);
  PangoAttrList *attrs = NULL;
  if (t->mark_end > t->mark_begin) {
    attrs = pango_attr_list_new();
    PangoAttribute *a = pango_attr_foreground_new((guint16)(chii_accent.r * 65535), (guint16)(chii_accent.g * 65535),
                                                  (guint16)(chii_accent.b * 65535));
    a->start_index = (guint)t->mark_begin;
    a->end_index = (guint)t->mark_end;
    pango_attr_list_insert(attrs, a);
  }
  pango_layout_set_attributes(p->layout, attrs);
  if (attrs) pango_attr_list_unref(attrs);
  pango_layout_set_single_paragraph_mode(p->layout, !t->wrap);
  pango_layout_set_width(p->layout, t->max_w > 0 ? (int)(t->max_w * PANGO_SCALE) : -1);
  pango_layout_set_wrap(p->layout, PANGO_WRAP_WORD_CHAR);
  pango_layout_set_ellipsize(p->layout, t->max_w > 0 && !t->wrap ? PANGO_ELLIPSIZE_END : PANGO_ELLIPSIZE_NONE);
  chi_str clean = {0}; /* pango complains on the terminal about broken UTF-8 */
  chii_clean(&clean, t->s ? t->s : "", t->wrap);
  pango_layout_set_text(p->layout, clean.s && !clean.failed ? clean.s : "", -1);
  chi_str_free(&clean);
}

static void size_of(const chii_pen *p, double *x, double *w, double *h) {
  PangoRectangle r;
  pango_layout_get_extents(p->layout, NULL, &r);
  *x = (double)r.x / PANGO_SCALE; /* not 0 where a right-to-left line is pushed to the far edge */
  *w = (double)r.width / PANGO_SCALE;
  *h = (double)r.height / PANGO_SCALE;
}

void chii_measure(const chii_pen *p, const chii_text *t, double *w, double *h) {
  double x, tw, th;
  set_text(p, t);
  size_of(p, &x, &tw, &th);
  if (w) *w = tw;
  if (h) *h = th;
}

void chii_draw(const chii_pen *p, const chii_text *t, double x, double y, double align, double valign) {
  double left, w, h;
  set_text(p, t);
  size_of(p, &left, &w, &h);
  chii_set_color(p, t->color);
  cairo_move_to(p->cr, x - left - align * w, y - valign * h);
  pango_cairo_update_layout(p->cr, p->layout);
  pango_cairo_show_layout(p->cr, p->layout);
}

void chii_draw_up(const chii_pen *p, const chii_text *t, double x, double y) {
  cairo_save(p->cr);
  cairo_translate(p->cr, x, y);
  cairo_rotate(p->cr, -1.57079632679489661923);
  chii_draw(p, t, 0, 0, 0.5, 0.5);
  cairo_restore(p->cr);
}

int chii_picture(const chii_pen *p, const chi_image *im, double x, double y, double w, double h, double scale,
                 chi_err *err) {
  chi_image fit;
  int pw = (int)lround(w * scale), ph = (int)lround(h * scale);
  int rc = chi_image_resize(&fit, im, pw > 0 ? pw : 1, ph > 0 ? ph : 1, CHI_LANCZOS, err);
  if (rc != 0) return rc;
  cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, fit.w, fit.h);
  if (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "no memory to draw a picture");
  } else {
    uint8_t *data = cairo_image_surface_get_data(s);
    size_t stride = (size_t)cairo_image_surface_get_stride(s);
    for (size_t r = 0; r < (size_t)fit.h; r++) {
      for (size_t c = 0; c < (size_t)fit.w; c++) {
        const uint8_t *px = fit.rgb + (r * (size_t)fit.w + c) * 3;
        uint32_t v = (uint32_t)px[0] << 16 | (uint32_t)px[1] << 8 | px[2];
        memcpy(data + r * stride + c * 4, &v, 4);
      }
    }
    cairo_surface_mark_dirty(s);
    cairo_save(p->cr);
    cairo_translate(p->cr, x, y);
    cairo_scale(p->cr, w / fit.w, h / fit.h);
    cairo_set_source_surface(p->cr, s, 0, 0);
    cairo_pattern_set_extend(cairo_get_source(p->cr), CAIRO_EXTEND_PAD);
    cairo_rectangle(p->cr, 0, 0, fit.w, fit.h);
    cairo_fill(p->cr);
    cairo_restore(p->cr);
  }
  cairo_surface_destroy(s);
  chi_image_free(&fit);
  return rc;
}

void chii_tick(char out[32], double x) {
  if (fabs(x) < 1e-300) x = 0;
  snprintf(out, 32, "%s%.3g", x < 0 ? "\xe2\x88\x92" : "", fabs(x));
}

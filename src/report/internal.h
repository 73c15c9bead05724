/* report, shared between this folder's files only: text cleaning, the drawing pen, figures as PNG or SVG. */
#ifndef CHI_REPORT_INTERNAL_H
#define CHI_REPORT_INTERNAL_H

#include <cairo.h>
#include <pango/pangocairo.h>

#include "report/report.h"

/* ---- text ------------------------------------------------------------------------------------------------ */
/* Appends s with broken UTF-8 as U+FFFD; control characters (but \n and \t, where keep_breaks) become spaces. */
void chii_clean(chi_str *out, const char *s, bool keep_breaks);
/* A token as a label: trimmed, line breaks as arrows, a bare space as an open box. */
void chii_label(chi_str *out, const char *token);
void chii_xml(chi_str *out, const char *s); /* cleaned and escaped */

/* ---- drawing --------------------------------------------------------------------------------------------- */
typedef struct chii_color {
  double r, g, b;
} chii_color;
extern const chii_color chii_ink, chii_soft, chii_faint, chii_accent;

typedef struct chii_font {
  double size; /* in units */
  bool bold;
} chii_font;

/* A cairo context with a text layout. Fonts are not hinted, so text has one size at every scale. */
typedef struct chii_pen {
  cairo_t *cr;
  PangoFontMap *fonts;
  PangoContext *context;
  PangoLayout *layout;
} chii_pen;
int chii_pen_open(chii_pen *p, cairo_surface_t *surface, chi_err *err);
void chii_pen_close(chii_pen *p);

void chii_set_color(const chii_pen *p, chii_color c);
void chii_rect(const chii_pen *p, double x, double y, double w, double h, chii_color fill);
/* max_w > 0: cut with an ellipsis, or broken into lines if wrap. */
typedef struct chii_text {
  const char *s;
  chii_font font;
  chii_color color;
  double max_w;
  bool wrap;
  size_t mark_begin, mark_end; /* bytes painted in the accent colour; s must be clean then */
} chii_text;
void chii_measure(const chii_pen *p, const chii_text *t, double *w, double *h);
/* align 0 = x is the left edge, 0.5 = the middle, 1 = the right edge; valign the same with y. */
void chii_draw(const chii_pen *p, const chii_text *t, double x, double y, double align, double valign);
void chii_draw_up(const chii_pen *p, const chii_text *t, double x, double y); /* reads upwards, (x, y) its middle */
/* The picture, scaled into a box; sharp at `scale` pixels a unit. */
int chii_picture(const chii_pen *p, const chi_image *im, double x, double y, double w, double h, double scale,
                 chi_err *err);

/* A number for an axis: %.3g with a real minus sign. */
void chii_tick(char out[32], double x);

/* ---- figures --------------------------------------------------------------------------------------------- */
typedef struct chii_figure {
  double w, h, scale;
  int (*draw)(const chii_pen *p, const void *ud, chi_err *err);
  const void *ud;
  const char *title, *description; /* for search and screen readers */
} chii_figure;
int chii_figure_save(const chii_figure *f, const chi_provenance *prov, const char *path, chi_err *err);
/* A pen to measure text with, before the size of the figure is known. */
int chii_pen_measure(chii_pen *p, chi_err *err);

/* ---- parts of figures (parts.c) -------------------------------------------------------------------------- */
/* Title and lines of text, max_w wide. Returns the height; draws at (x, y) if draw is set. */
typedef struct chii_head {
  const char *title;
  const char *const *lines;
  size_t n_lines;
} chii_head;
double chii_head_text(const chii_head *h, const chii_pen *p, double x, double y, double max_w, bool draw);
/* The smallest of 1, 2, 2.5 (not for integers), 5 x 10^k that gives at most `most` steps over span. */
double chii_step(double span, int most, bool integers);
/* Multiples of step from lo to hi, at most so many. Returns their number. */
#define CHII_MAX_TICKS 32
int chii_ticks(double out[CHII_MAX_TICKS], double lo, double hi, double step);
/* A number of an axis with this step: as many decimals as the step has. */
void chii_tick_step(char out[32], double x, double step);
/* What search and screen readers get: the lines below the title. Appends. */
void chii_describe(chi_str *out, const chii_head *h);

#endif

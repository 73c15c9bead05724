/* Line charts: curves with bands over one x axis. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/internal.h"

#define MARGIN 26
#define MAX_POINTS 100000
#define MAX_CURVES 28
#define MAX_REFS 8
#define HUES 7
#define LEGEND_MAX 210
#define LEGEND_ROW 20
#define DOT_STEP 11 /* units between points; closer, and marks would run together */

static const chii_font label_font = {12, false}, tick_font = {10.5, false}, name_font = {12, false};

/* Okabe and Ito's colours, less the yellow that is too pale for a line. */
static const uint8_t hues[HUES][3] = {{0, 114, 178}, {213, 94, 0},   {0, 158, 115}, {204, 121, 167},
                                      {230, 159, 0}, {86, 180, 233}, {40, 40, 44}};

/* Larger values would overflow on the way to the paper; they are gaps, as NaN is. */
static bool usable(double v) { return fabs(v) < 1e100; }

typedef struct plan {
  const chi_linechart_spec *s;
  chi_linechart_box box;
  chii_head head;
  bool dots;
  int n_x, n_y;
  double x_tick[CHII_MAX_TICKS], y_tick[CHII_MAX_TICKS];
  double scale, x_step, y_step, head_h, legend_x, legend_w;
} plan;

void chi_curve_color(int k, uint8_t rgb[3]) { memcpy(rgb, hues[(unsigned)k % HUES], 3); }

static chii_color color_of(int k) {
  uint8_t c[3];
  chi_curve_color(k, c);
  return (chii_color){c[0] / 255.0, c[1] / 255.0, c[2] / 255.0};
}

static int check(const chi_linechart_spec *s, chi_err *err) {
  if (s->n < 1 || s->n > MAX_POINTS || s->n_curves < 1 || s->n_curves > MAX_CURVES || s->n_refs < 0 ||
      s->n_refs > MAX_REFS || !(s->w >= 0 && s->w <= 10000) || !(s->h >= 0 && s->h <= 10000))
    return chi_fail(err, CHI_ERR_ARG, "a chart of %d curves with %zu points and %d lines cannot be drawn", s->n_curves,
                    s->n, s->n_refs);
  bool whole = s->x && s->curves && (s->lines || s->n_lines == 0) && (s->refs || s->n_refs == 0);
  for (int k = 0; whole && k < s->n_curves; k++) {
    const chi_curve *c = &s->curves[k];
    whole = c->name && c->y && (c->lo == NULL) == (c->hi == NULL);
  }
  for (int k = 0; whole && k < s->n_refs; k++) whole = s->refs[k].name && usable(s->refs[k].y);
  for (size_t k = 0; whole && k < s->n_lines; k++) whole = s->lines[k] != NULL;
  if (!whole) return chi_fail(err, CHI_ERR_ARG, "a chart was asked for without all of its names and values");
  for (size_t i = 0; i < s->n; i++) {
    if (!usable(s->x[i]) || (i && s->x[i] <= s->x[i - 1]))
      return chi_fail(err, CHI_ERR_ARG, "the x values of a chart must be finite and increasing (value %zu)", i);
  }
  double x_span = s->x[s->n - 1] - s->x[0], y_span = s->y_max - s->y_min;
  if (s->n > 1 && !(x_span > 1e-12 * fmax(fabs(s->x[0]), fabs(s->x[s->n - 1]))))
    return chi_fail(err, CHI_ERR_ARG, "the x values of a chart are too close to each other");
  bool given = s->y_min != s->y_max;
  if (given && !(usable(s->y_min) && usable(s->y_max) && y_span > 1e-12 * fmax(fabs(s->y_min), fabs(s->y_max))))
    return chi_fail(err, CHI_ERR_ARG, "a chart cannot run from %g to %g", s->y_min, s->y_max);
  return 0;
}

/* ---- ranges ---------------------------------------------------------------------------------------------- */
static void widen(double *lo, double *hi, const double *v, size_t n) {
  for (size_t i = 0; v && i < n; i++) {
    if (!usable(v[i])) continue;
    if (v[i] < *lo) *lo = v[i];
    if (v[i] > *hi) *hi = v[i];
  }
}

static void y_range(plan *p) {
  const chi_linechart_spec *s = p->s;
  double lo = INFINITY, hi = -INFINITY;
  for (int k = 0; k < s->n_curves; k++) {
    widen(&lo, &hi, s->curves[k].y, s->n);
    widen(&lo, &hi, s->curves[k].lo, s->n);
    widen(&lo, &hi, s->curves[k].hi, s->n);
  }
  for (int k = 0; k < s->n_refs; k++) widen(&lo, &hi, &s->refs[k].y, 1);
  if (lo > hi) lo = 0, hi = 1; /* nothing but gaps */
  if (s->y_zero) lo = fmin(lo, 0), hi = fmax(hi, 0);
  if (!(hi - lo > 1e-12 * fmax(fabs(lo), fabs(hi)))) {
    double around = lo == 0 ? 1 : fabs(lo) / 10;
    lo -= around;
    hi += around;
  }
  if (s->y_min != s->y_max) lo = s->y_min, hi = s->y_max;
  p->y_step = chii_step(hi - lo, 6, false);
  bool given = s->y_min != s->y_max;
  p->box.y_min = given ? lo : p->y_step * floor(lo / p->y_step + 1e-9);
  p->box.y_max = given ? hi : p->y_step * ceil(hi / p->y_step - 1e-9);
}

static void x_range(plan *p, double per_tick) {
  const chi_linechart_spec *s = p->s;
  bool integers = true;
  for (size_t i = 0; i < s->n && integers; i++) integers = s->x[i] == floor(s->x[i]);
  double lo = s->x[0], hi = s->x[s->n - 1], pad = s->n > 1 ? 0.015 * (hi - lo) : fmax(0.5, 0.01 * fabs(lo));
  p->box.x_min = lo - pad;
  p->box.x_max = hi + pad;
  int most = (int)(p->box.plot_w / per_tick);
  p->x_step = chii_step(hi - lo, most < 2 ? 2 : most > 12 ? 12 : most, integers);
  p->n_x = s->n > 1 ? chii_ticks(p->x_tick, p->box.x_min, p->box.x_max, p->x_step) : 1;
  if (s->n == 1) {
    p->x_tick[0] = lo;
    p->x_step = lo == floor(lo) ? 1 : fabs(lo) / 1000;
  }
}

static double px(const plan *p, double x) {
  return p->box.x + (x - p->box.x_min) / (p->box.x_max - p->box.x_min) * p->box.plot_w;
}

static double py(const plan *p, double y) {
  return p->box.y + (p->box.y_max - y) / (p->box.y_max - p->box.y_min) * p->box.plot_h;
}

/* ---- sizes ----------------------------------------------------------------------------------------------- */
static double width_of(const chii_pen *pen, const char *s, chii_font font) {
  double w;
  chii_measure(pen, &(chii_text){.s = s, .font = font}, &w, NULL);
  return w;
}

static void make_plan(plan *p, const chi_linechart_spec *s, const chii_pen *pen) {
  *p = (plan){.s = s, .scale = s->scale > 0 ? s->scale : 2};
  p->head = (chii_head){s->title, s->lines, s->n_lines};
  chi_linechart_box *b = &p->box;
  b->plot_w = s->w > 0 ? fmax(s->w, 60) : 620;
  b->plot_h = s->h > 0 ? fmax(s->h, 40) : 340;
  double tick_w = 0, per_tick = 0;
  char num[32];
  y_range(p);
  p->n_y = chii_ticks(p->y_tick, b->y_min, b->y_max, p->y_step);
  for (int k = 0; k < p->n_y; k++) {
    chii_tick_step(num, p->y_tick[k], p->y_step);
    tick_w = fmax(tick_w, width_of(pen, num, tick_font));
  }
  for (int k = 0; k < 2; k++) {
    chii_tick_step(num, k ? s->x[s->n - 1] : s->x[0], chii_step(s->x[s->n - 1] - s->x[0], 8, false));
    per_tick = fmax(per_tick, width_of(pen, num, tick_font) + 18);
  }
  x_range(p, per_tick);
  p->dots = (double)s->n * DOT_STEP <= b->plot_w;
  b->x = MARGIN + (s->y_label ? 22 : 0) + ceil(tick_w) + 8;
  for (int k = 0; k < s->n_curves; k++)
    p->legend_w = fmax(p->legend_w, fmin(LEGEND_MAX, width_of(pen, s->curves[k].name, name_font)));
  for (int k = 0; k < s->n_refs; k++)
    p->legend_w = fmax(p->legend_w, fmin(LEGEND_MAX, width_of(pen, s->refs[k].name, name_font)));
  p->legend_x = b->x + b->plot_w + 22;
  b->w = ceil(p->legend_x + 34 + p->legend_w + MARGIN);
  p->head_h = chii_head_text(&p->head, pen, 0, 0, b->w - 2 * MARGIN, false);
  b->y = MARGIN + p->head_h + (p->head_h > 0 ? 16 : 0);
  double legend_h = (s->n_curves + s->n_refs) * (double)LEGEND_ROW;
  b->h = ceil(b->y + fmax(b->plot_h + 24 + (s->x_label ? 20 : 0), legend_h) + MARGIN - 6);
}

/* ---- drawing --------------------------------------------------------------------------------------------- */
static void line(const chii_pen *pen, double x0, double y0, double x1, double y1, double w, chii_color c) {
  chii_set_color(pen, c);
  cairo_set_line_width(pen->cr, w);
  cairo_move_to(pen->cr, x0, y0);
  cairo_line_to(pen->cr, x1, y1);
  cairo_stroke(pen->cr);
}

static void draw_axes(const plan *p, const chii_pen *pen) {
  const chi_linechart_box *b = &p->box;
  const chii_color grid = {0.90, 0.90, 0.92};
  char num[32];
  chii_text t = {.s = num, .font = tick_font, .color = chii_soft};
  for (int k = 0; k < p->n_y; k++) {
    double y = py(p, p->y_tick[k]);
    bool zero = p->y_tick[k] == 0;
    line(pen, b->x, y, b->x + b->plot_w, y, zero ? 1.1 : 1, zero ? chii_faint : grid);
    chii_tick_step(num, p->y_tick[k], p->y_step);
    chii_draw(pen, &t, b->x - 7, y, 1, 0.5);
  }
  for (int k = 0; k < p->n_x; k++) {
    double x = px(p, p->x_tick[k]);
    line(pen, x, b->y + b->plot_h, x, b->y + b->plot_h + 4, 1, chii_faint);
    chii_tick_step(num, p->x_tick[k], p->x_step);
    chii_draw(pen, &t, x, b->y + b->plot_h + 7, 0.5, 0);
  }
  line(pen, b->x, b->y + b->plot_h, b->x + b->plot_w, b->y + b->plot_h, 1, chii_faint);
  line(pen, b->x, b->y, b->x, b->y + b->plot_h, 1, chii_faint);
  t = (chii_text){.s = p->s->x_label, .font = label_font, .color = chii_ink, .max_w = b->plot_w};
  if (p->s->x_label) chii_draw(pen, &t, b->x + b->plot_w / 2, b->y + b->plot_h + 26, 0.5, 0);
  t = (chii_text){.s = p->s->y_label, .font = label_font, .color = chii_ink, .max_w = b->plot_h};
  if (p->s->y_label) chii_draw_up(pen, &t, MARGIN + 7, b->y + b->plot_h / 2);
}

static bool there(const chi_curve *c, size_t i) { return usable(c->lo[i]) && usable(c->hi[i]); }

static void draw_band(const plan *p, const chii_pen *pen, int k) {
  const chi_linechart_spec *s = p->s;
  const chi_curve *c = &s->curves[k];
  chii_color color = color_of(k);
  if (!c->lo) return;
  cairo_set_source_rgba(pen->cr, color.r, color.g, color.b, 0.17);
  for (size_t i = 0, end; i < s->n; i = end) {
    end = i + 1;
    if (!there(c, i)) continue;
    while (end < s->n && there(c, end)) end++;
    if (end == i + 1) { /* alone between gaps: a bar */
      cairo_rectangle(pen->cr, px(p, s->x[i]) - 3, py(p, c->hi[i]), 6, py(p, c->lo[i]) - py(p, c->hi[i]));
      cairo_fill(pen->cr);
      continue;
    }
    for (size_t j = i; j < end; j++) cairo_line_to(pen->cr, px(p, s->x[j]), py(p, c->hi[j]));
    for (size_t j = end; j-- > i;) cairo_line_to(pen->cr, px(p, s->x[j]), py(p, c->lo[j]));
    cairo_close_path(pen->cr);
    cairo_fill(pen->cr);
  }
}

/* One of seven shapes, r units wide, filled with the current colour on a white rim. */
static void mark(const chii_pen *pen, int shape, double x, double y, double r, chii_color c) {
  cairo_t *cr = pen->cr;
  static const struct {
    int corners;
    double turn, size;
  } shapes[HUES] = {{0, 0, 1}, {4, 0.25, 1.15}, {3, 0, 1.3}, {4, 0, 1.25}, {3, 0.5, 1.3}, {5, 0, 1.2}, {6, 0, 1.1}};
  cairo_new_path(cr);
  if (shapes[shape].corners == 0) {
    cairo_arc(cr, x, y, r, 0, 6.2831853071795865);
  } else {
    int n = shapes[shape].corners;
    for (int i = 0; i < n; i++) {
      double a = 6.2831853071795865 * ((i + shapes[shape].turn * (n == 4 ? 2 : 1)) / n - 0.25);
      cairo_line_to(cr, x + r * shapes[shape].size * cos(a), y + r * shapes[shape].size * sin(a));
    }
    cairo_close_path(cr);
  }
  cairo_set_source_rgb(cr, 1, 1, 1);
  cairo_set_line_width(cr, 1.6);
  cairo_stroke_preserve(cr);
  chii_set_color(pen, c);
  cairo_fill(cr);
}

static void dashes(const chii_pen *pen, int k) {
  static const double kinds[][4] = {{0}, {6, 3}, {2, 2.5}, {8, 2.5, 2, 2.5}};
  static const int count[] = {0, 2, 2, 4};
  int d = k / HUES;
  cairo_set_dash(pen->cr, kinds[d], count[d], 0);
}

static void draw_curve(const plan *p, const chii_pen *pen, int k) {
  const chi_linechart_spec *s = p->s;
  const double *y = s->curves[k].y;
  chii_color c = color_of(k);
  chii_set_color(pen, c);
  cairo_set_line_width(pen->cr, 2);
  cairo_set_line_join(pen->cr, CAIRO_LINE_JOIN_ROUND);
  dashes(pen, k);
  bool open = false;
  for (size_t i = 0; i < s->n; i++) {
    if (!usable(y[i])) {
      open = false;
      continue;
    }
    if (open)
      cairo_line_to(pen->cr, px(p, s->x[i]), py(p, y[i]));
    else
      cairo_move_to(pen->cr, px(p, s->x[i]), py(p, y[i]));
    open = true;
  }
  cairo_stroke(pen->cr);
  cairo_set_dash(pen->cr, NULL, 0, 0);
  for (size_t i = 0; i < s->n; i++) {
    bool alone = (i == 0 || !usable(y[i - 1])) && (i + 1 == s->n || !usable(y[i + 1]));
    if (usable(y[i]) && (p->dots || alone)) mark(pen, k % HUES, px(p, s->x[i]), py(p, y[i]), 3.1, c);
  }
}

static void draw_ref(const plan *p, const chii_pen *pen, double x0, double x1, double y) {
  static const double dash[] = {5, 4};
  (void)p;
  cairo_set_dash(pen->cr, dash, 2, 0);
  line(pen, x0, y, x1, y, 1.2, chii_soft);
  cairo_set_dash(pen->cr, NULL, 0, 0);
}

static void draw_legend(const plan *p, const chii_pen *pen) {
  const chi_linechart_spec *s = p->s;
  double x = p->legend_x, y = p->box.y + LEGEND_ROW / 2.0;
  chii_text t = {.font = name_font, .color = chii_ink, .max_w = LEGEND_MAX};
  for (int k = 0; k < s->n_curves; k++, y += LEGEND_ROW) {
    chii_color c = color_of(k);
    if (s->curves[k].lo) {
      cairo_set_source_rgba(pen->cr, c.r, c.g, c.b, 0.17);
      cairo_rectangle(pen->cr, x, y - 6, 26, 12);
      cairo_fill(pen->cr);
    }
    dashes(pen, k);
    line(pen, x, y, x + 26, y, 2, c);
    cairo_set_dash(pen->cr, NULL, 0, 0);
    if (p->dots) mark(pen, k % HUES, x + 13, y, 3.1, c);
    t.s = s->curves[k].name;
    chii_draw(pen, &t, x + 34, y, 0, 0.5);
  }
  for (int k = 0; k < s->n_refs; k++, y += LEGEND_ROW) {
    draw_ref(p, pen, x, x + 26, y);
    t.s = s->refs[k].name;
    t.color = chii_soft;
    chii_draw(pen, &t, x + 34, y, 0, 0.5);
  }
}

static int draw_all(const chii_pen *pen, const void *ud, chi_err *err) {
  const plan *p = ud;
  const chi_linechart_spec *s = p->s;
  const chi_linechart_box *b = &p->box;
  (void)err;
  chii_head_text(&p->head, pen, MARGIN, MARGIN, b->w - 2 * MARGIN, true);
  draw_axes(p, pen);
  cairo_save(pen->cr);
  cairo_rectangle(pen->cr, b->x, b->y - 5, b->plot_w, b->plot_h + 10); /* marks at the edge stay whole */
  cairo_clip(pen->cr);
  for (int k = 0; k < s->n_refs; k++) draw_ref(p, pen, b->x, b->x + b->plot_w, py(p, s->refs[k].y));
  for (int k = 0; k < s->n_curves; k++) draw_band(p, pen, k);
  for (int k = s->n_curves; k-- > 0;) draw_curve(p, pen, k); /* the first one on top */
  cairo_restore(pen->cr);
  draw_legend(p, pen);
  return 0;
}

static int plan_of(plan *p, const chi_linechart_spec *s, chi_err *err) {
  chii_pen pen;
  int rc = check(s, err);
  if (rc == 0) rc = chii_pen_measure(&pen, err);
  if (rc != 0) return rc;
  make_plan(p, s, &pen);
  chii_pen_close(&pen);
  return 0;
}

int chi_linechart_layout(chi_linechart_box *out, const chi_linechart_spec *s, chi_err *err) {
  plan p;
  int rc = plan_of(&p, s, err);
  if (rc == 0) *out = p.box;
  return rc;
}

int chi_linechart_save(const chi_linechart_spec *s, const chi_provenance *prov, const char *path, chi_err *err) {
  plan p;
  chi_str desc = {0};
  int rc = plan_of(&p, s, err);
  if (rc != 0) return rc;
  chii_describe(&desc, &p.head);
  for (int k = 0; k < s->n_curves; k++) chi_str_addf(&desc, "%s%s", k ? ", " : "Curves: ", s->curves[k].name);
  chii_figure f = {.w = p.box.w,
                   .h = p.box.h,
                   .scale = p.scale,
                   .draw = draw_all,
                   .ud = &p,
                   .title = s->title ? s->title : "",
                   .description = desc.s ? desc.s : ""};
  rc = desc.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for a figure") : chii_figure_save(&f, prov, path, err);
  chi_str_free(&desc);
  return rc;
}

/* Dots with intervals: rows by name, one panel a measure. */
#include <math.h>

#include "report/internal.h"

#define MARGIN 26
#define MAX_ROWS 200
#define MAX_PANELS 12
#define ROW_H 17
#define PANEL_W 150
#define GAP 26
#define NAME_MAX_W 220

static const chii_font name_font = {12, false}, tick_font = {10.5, false}, title_font = {12, true};

typedef struct plan {
  const chi_dotchart_spec *s;
  chi_dotchart_box box;
  chii_head head;
  double scale, step[MAX_PANELS], names_x;
} plan;

static bool usable(double v) { return fabs(v) < 1e100; }

static int check(const chi_dotchart_spec *s, chi_err *err) {
  if (s->n_rows < 1 || s->n_rows > MAX_ROWS || s->n_panels < 1 || s->n_panels > MAX_PANELS)
    return chi_fail(err, CHI_ERR_ARG, "dots of %d rows in %d panels cannot be drawn", s->n_rows, s->n_panels);
  bool whole = s->rows && s->panels && (s->lines || s->n_lines == 0);
  for (int r = 0; whole && r < s->n_rows; r++) whole = s->rows[r] != NULL;
  for (int k = 0; whole && k < s->n_panels; k++) whole = s->panels[k].title && s->panels[k].dot;
  for (size_t k = 0; whole && k < s->n_lines; k++) whole = s->lines[k] != NULL;
  return whole ? 0 : chi_fail(err, CHI_ERR_ARG, "dots were asked for without all of their names and values");
}

static void widen(double *lo, double *hi, double v) {
  if (!usable(v)) return;
  *lo = fmin(*lo, v);
  *hi = fmax(*hi, v);
}

static void range(plan *p, int k) {
  const chi_dot_panel *d = &p->s->panels[k];
  double lo = INFINITY, hi = -INFINITY;
  for (int r = 0; r < p->s->n_rows; r++) {
    if (!usable(d->dot[r].x)) continue;
    widen(&lo, &hi, d->dot[r].x);
    widen(&lo, &hi, d->dot[r].lo);
    widen(&lo, &hi, d->dot[r].hi);
  }
  widen(&lo, &hi, d->ref);
  if (lo > hi) lo = 0, hi = 1; /* nothing to draw */
  if (d->x_min < d->x_max) lo = d->x_min, hi = d->x_max;
  if (!(hi - lo > 1e-9 * fmax(fabs(lo), fabs(hi)))) hi = lo + fmax(1e-3, fabs(lo) / 10);
  bool given = d->x_min < d->x_max;
  double step = p->step[k] = chii_step(hi - lo, 4, false);
  p->box.x_min[k] = given ? lo : step * floor(lo / step + 1e-9);
  p->box.x_max[k] = given ? hi : step * ceil(hi / step - 1e-9);
}

static void make_plan(plan *p, const chi_dotchart_spec *s, const chii_pen *pen) {
  double names = 0, w;
  chi_dotchart_box *b = &p->box;
  *p = (plan){.s = s, .scale = s->scale > 0 ? s->scale : 2, .head = {s->title, s->lines, s->n_lines}};
  for (int r = 0; r < s->n_rows; r++) {
    chii_measure(pen, &(chii_text){.s = s->rows[r], .font = name_font}, &w, NULL);
    names = fmax(names, fmin(NAME_MAX_W, w));
  }
  p->names_x = MARGIN + ceil(names);
  b->panel_w = PANEL_W;
  b->row_h = ROW_H;
  for (int k = 0; k < s->n_panels; k++) {
    b->x0[k] = p->names_x + 14 + k * (PANEL_W + GAP);
    range(p, k);
  }
  b->w = ceil(b->x0[s->n_panels - 1] + PANEL_W + MARGIN);
  double head_h = chii_head_text(&p->head, pen, 0, 0, b->w - 2 * MARGIN, false);
  b->y = MARGIN + head_h + (head_h > 0 ? 12 : 0) + 22; /* panels' titles */
  b->h = ceil(b->y + s->n_rows * (double)ROW_H + 22 + MARGIN - 6);
}

/* ---- drawing --------------------------------------------------------------------------------------------- */
static void line(const chii_pen *pen, double x0, double y0, double x1, double y1, double w, chii_color c) {
  chii_set_color(pen, c);
  cairo_set_line_width(pen->cr, w);
  cairo_move_to(pen->cr, x0, y0);
  cairo_line_to(pen->cr, x1, y1);
  cairo_stroke(pen->cr);
}

static double at(const plan *p, int k, double x) {
  const chi_dotchart_box *b = &p->box;
  double part = (x - b->x_min[k]) / (b->x_max[k] - b->x_min[k]);
  return b->x0[k] + fmin(1, fmax(0, part)) * b->panel_w;
}

static void draw_axis(const plan *p, const chii_pen *pen, int k) {
  static const double dash[] = {4, 3};
  const chi_dotchart_box *b = &p->box;
  const chi_dot_panel *d = &p->s->panels[k];
  const chii_color grid = {0.90, 0.90, 0.92};
  double tick[CHII_MAX_TICKS], bottom = b->y + p->s->n_rows * b->row_h;
  int n = chii_ticks(tick, b->x_min[k], b->x_max[k], p->step[k]);
  char num[32];
  chii_draw(pen, &(chii_text){.s = d->title, .font = title_font, .color = chii_ink, .max_w = b->panel_w + GAP - 6},
            b->x0[k], b->y - 6, 0, 1);
  for (int i = 0; i < n; i++) {
    line(pen, at(p, k, tick[i]), b->y, at(p, k, tick[i]), bottom, 1, tick[i] == 0 ? chii_faint : grid);
    chii_tick_step(num, tick[i], p->step[k]);
    chii_draw(pen, &(chii_text){.s = num, .font = tick_font, .color = chii_soft}, at(p, k, tick[i]), bottom + 5, 0.5,
              0);
  }
  if (!usable(d->ref)) return;
  cairo_set_dash(pen->cr, dash, 2, 0);
  line(pen, at(p, k, d->ref), b->y, at(p, k, d->ref), bottom, 1.2, chii_soft);
  cairo_set_dash(pen->cr, NULL, 0, 0);
}

static void draw_dot(const plan *p, const chii_pen *pen, int k, int r) {
  const chi_dot_row *d = &p->s->panels[k].dot[r];
  double y = p->box.y + (r + 0.5) * p->box.row_h;
  uint8_t rgb[3];
  if (!usable(d->x)) return;
  chi_curve_color(0, rgb);
  chii_color c = {rgb[0] / 255.0, rgb[1] / 255.0, rgb[2] / 255.0};
  if (p->s->dim && p->s->dim[r]) c = chii_soft;
  if (usable(d->lo) && usable(d->hi)) line(pen, at(p, k, d->lo), y, at(p, k, d->hi), y, 1.8, c);
  chii_set_color(pen, c);
  cairo_arc(pen->cr, at(p, k, d->x), y, 3.4, 0, 6.2831853071795865);
  cairo_fill(pen->cr);
}

static int draw_all(const chii_pen *pen, const void *ud, chi_err *err) {
  const plan *p = ud;
  const chi_dotchart_spec *s = p->s;
  (void)err;
  chii_head_text(&p->head, pen, MARGIN, MARGIN, p->box.w - 2 * MARGIN, true);
  for (int k = 0; k < s->n_panels; k++) draw_axis(p, pen, k);
  for (int r = 0; r < s->n_rows; r++) {
    chii_text t = {
        .s = s->rows[r], .font = name_font, .color = s->dim && s->dim[r] ? chii_soft : chii_ink, .max_w = NAME_MAX_W};
    chii_draw(pen, &t, p->names_x, p->box.y + (r + 0.5) * p->box.row_h, 1, 0.5);
    for (int k = 0; k < s->n_panels; k++) draw_dot(p, pen, k, r);
  }
  return 0;
}

static int plan_of(plan *p, const chi_dotchart_spec *s, chi_err *err) {
  chii_pen pen;
  int rc = check(s, err);
  if (rc == 0) rc = chii_pen_measure(&pen, err);
  if (rc != 0) return rc;
  make_plan(p, s, &pen);
  chii_pen_close(&pen);
  return 0;
}

int chi_dotchart_layout(chi_dotchart_box *out, const chi_dotchart_spec *s, chi_err *err) {
  plan p;
  int rc = plan_of(&p, s, err);
  if (rc == 0) *out = p.box;
  return rc;
}

int chi_dotchart_save(const chi_dotchart_spec *s, const chi_provenance *prov, const char *path, chi_err *err) {
  plan p;
  chi_str desc = {0};
  int rc = plan_of(&p, s, err);
  if (rc != 0) return rc;
  chii_describe(&desc, &p.head);
  for (int k = 0; k < s->n_panels; k++) chi_str_addf(&desc, "%s%s", k ? ", " : "Panels: ", s->panels[k].title);
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

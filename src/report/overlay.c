/* Pictures with values on their patches: the grid the model looked through, and where it lies on the whole picture. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/internal.h"

#define MARGIN 26
#define PANEL 290.0     /* longest side of the crop's panels, and height of the third */
#define WHOLE_MAX 430.0 /* width of the third */
#define GAP 24
#define BAR_W 13
#define MAX_GRID 1000
#define MAX_MAPS 64
#define STRONG 0.88 /* how much of the picture the strongest colour hides */
#define PAPER 192   /* grey of the picture on average: what the colour bar is laid over */

static const chii_font name_font = {13.5, true}, panel_font = {12, false}, tick_font = {10, false},
                       note_font = {11.5, false};

typedef struct plan {
  const chi_overlay_spec *s;
  chi_overlay_box box;
  chii_head head;
  double limit, scale, bar_x, tick_w, head_h, name_h;
} plan;

static bool has_pixels(const chi_image *im) { return im && im->rgb && im->w > 0 && im->h > 0; }

static int check(const chi_overlay_spec *s, chi_err *err) {
  if (s->grid_h < 1 || s->grid_w < 1 || s->grid_h > MAX_GRID || s->grid_w > MAX_GRID || s->n_maps < 1 ||
      s->n_maps > MAX_MAPS)
    return chi_fail(err, CHI_ERR_ARG, "an overlay of %d maps of %d x %d patches cannot be drawn", s->n_maps, s->grid_h,
                    s->grid_w);
  bool whole = has_pixels(s->seen) && s->maps && (s->lines || s->n_lines == 0);
  for (int k = 0; whole && k < s->n_maps; k++) whole = s->maps[k].values != NULL;
  for (size_t k = 0; whole && k < s->n_lines; k++) whole = s->lines[k] != NULL;
  if (s->original) whole = whole && has_pixels(s->original) && s->view;
  if (!whole) return chi_fail(err, CHI_ERR_ARG, "an overlay was asked for without all of its pictures and values");
  const chi_view *v = s->original ? s->view : NULL;
  if (v && (v->orig_w != s->original->w || v->orig_h != s->original->h || v->w != s->seen->w || v->h != s->seen->h ||
            v->resized_w < 1 || v->resized_h < 1))
    return chi_fail(err, CHI_ERR_ARG, "an overlay was asked for with the view of another picture");
  return 0;
}

static void find_limit(plan *p) {
  const chi_overlay_spec *s = p->s;
  double most = 0;
  for (int k = 0; k < s->n_maps; k++) {
    for (size_t i = 0; i < (size_t)s->grid_h * (size_t)s->grid_w; i++) {
      double x = (double)s->maps[k].values[i];
      if (!s->sequential) x = fabs(x);
      if (isfinite(x) && x > most) most = x;
    }
  }
  p->limit = s->limit > 0 ? s->limit : chi_nice_limit(most);
}

static void fit(double box[4], const chi_image *im, double max_w, double max_h) {
  double f = fmin(max_w / im->w, max_h / im->h);
  box[2] = fmax(1, round(im->w * f));
  box[3] = fmax(1, round(im->h * f));
}

static double width_of(const chii_pen *pen, const char *s, chii_font font) {
  double w;
  chii_measure(pen, &(chii_text){.s = s, .font = font}, &w, NULL);
  return w;
}

static void make_plan(plan *p, const chi_overlay_spec *s, const chii_pen *pen) {
  *p = (plan){.s = s, .scale = s->scale > 0 ? s->scale : 2};
  p->head = (chii_head){s->title, s->lines, s->n_lines};
  chi_overlay_box *b = &p->box;
  find_limit(p);
  fit(b->plain, s->seen, PANEL, PANEL);
  memcpy(b->patches, b->plain, sizeof b->patches);
  b->plain[0] = MARGIN;
  /* The note above a panel may be wider than a narrow picture. */
  b->patches[0] = b->plain[0] + fmax(b->plain[2], 140) + GAP;
  double right = b->patches[0] + fmax(b->patches[2], 140);
  if (s->original) {
    fit(b->whole, s->original, WHOLE_MAX, PANEL);
    b->whole[0] = right + GAP;
    right = b->whole[0] + fmax(b->whole[2], 200);
  }
  p->bar_x = right + 20;
  for (int k = -2; k <= 2; k++) {
    char num[32];
    chii_tick(num, k * p->limit / 2);
    p->tick_w = fmax(p->tick_w, width_of(pen, num, tick_font));
  }
  b->w = ceil(p->bar_x + BAR_W + 7 + p->tick_w + (s->scale_label ? 22 : 0) + MARGIN);
  p->head_h = chii_head_text(&p->head, pen, 0, 0, b->w - 2 * MARGIN, false);
  for (int k = 0; k < s->n_maps; k++)
    if (s->maps[k].name) p->name_h = 22;
  double y = MARGIN + p->head_h + (p->head_h > 0 ? 16 : 0) + p->name_h + 18;
  b->plain[1] = b->patches[1] = b->whole[1] = y;
  double tall = fmax(b->plain[3], b->whole[3]);
  b->map_step = tall + p->name_h + 18 + 20;
  b->h = ceil(y + b->map_step * (s->n_maps - 1) + tall + (s->top > 0 ? 24 : 0) + MARGIN);
}

/* ---- colours --------------------------------------------------------------------------------------------- */
/* Share of the colour over the picture, and the colour itself: hue at once, darkness with the value. */
static double paint(const plan *p, double v, chii_color *c) {
  uint8_t rgb[3];
  double t = v / p->limit;
  if (!(t == t) || (p->s->sequential && t <= 0)) return 0;
  double a = fmin(fabs(t), 1);
  chi_heat_color((t < 0 ? -1 : 1) * (0.45 + 0.55 * a), rgb);
  *c = (chii_color){rgb[0] / 255.0, rgb[1] / 255.0, rgb[2] / 255.0};
  return STRONG * pow(a, 0.65);
}

/* The picture at the size of its panel; pale: grey and low in contrast, so that colours are read on top of it. */
static int panel_picture(const plan *p, const chii_pen *pen, const chi_image *im, const double box[4], double y,
                         bool pale, chi_err *err) {
  chi_image fit_im = {0};
  int w = (int)lround(box[2] * p->scale), h = (int)lround(box[3] * p->scale);
  int rc = chi_image_resize(&fit_im, im, w > 0 ? w : 1, h > 0 ? h : 1, CHI_LANCZOS, err);
  for (size_t i = 0; rc == 0 && pale && i < (size_t)fit_im.w * (size_t)fit_im.h; i++) {
    uint8_t *px = fit_im.rgb + 3 * i;
    double luma = 0.2126 * px[0] + 0.7152 * px[1] + 0.0722 * px[2];
    memset(px, (int)lround(148 + 0.35 * luma), 3);
  }
  if (rc == 0) rc = chii_picture(pen, &fit_im, box[0], y, box[2], box[3], p->scale, err);
  chi_image_free(&fit_im);
  return rc;
}

/* ---- patches --------------------------------------------------------------------------------------------- */
/* Where patch (r, c) lies in a panel: {left, top, right, bottom} in units. */
static void place(const plan *p, bool whole, double y, int r, int c, double out[4]) {
  const chi_overlay_spec *s = p->s;
  const double *b = whole ? p->box.whole : p->box.patches;
  if (!whole) {
    double pw = b[2] / s->grid_w, ph = b[3] / s->grid_h;
    out[0] = b[0] + c * pw;
    out[1] = y + r * ph;
    out[2] = out[0] + pw;
    out[3] = out[1] + ph;
    return;
  }
  chi_view_patch(s->view, s->grid_h, s->grid_w, r, c, out);
  double fx = b[2] / s->original->w, fy = b[3] / s->original->h;
  out[0] = b[0] + out[0] * fx;
  out[1] = y + out[1] * fy;
  out[2] = b[0] + out[2] * fx;
  out[3] = y + out[3] * fy;
}

static void draw_patches(const plan *p, const chii_pen *pen, const float *v, bool whole, double y) {
  const chi_overlay_spec *s = p->s;
  for (int r = 0; r < s->grid_h; r++) {
    for (int c = 0; c < s->grid_w; c++) {
      chii_color color;
      double at[4], share = paint(p, (double)v[(size_t)r * (size_t)s->grid_w + (size_t)c], &color);
      if (!(share > 0.004)) continue;
      place(p, whole, y, r, c, at);
      double w = at[2] - at[0], h = at[3] - at[1];
      if (w <= 0 || h <= 0) continue; /* beside the picture: the crop was larger */
      double gap = fmin(0.7, 0.12 * fmin(w, h));
      cairo_set_source_rgba(pen->cr, color.r, color.g, color.b, share);
      cairo_rectangle(pen->cr, at[0] + gap / 2, at[1] + gap / 2, w - gap, h - gap);
      cairo_fill(pen->cr);
    }
  }
}

/* The strongest patches, outlined in ink on white so that it shows on any picture. */
static void draw_top(const plan *p, const chii_pen *pen, const float *v, bool whole, double y) {
  const chi_overlay_spec *s = p->s;
  size_t n = (size_t)s->grid_h * (size_t)s->grid_w, above_i = 0;
  double above = INFINITY;
  for (int k = 0; k < s->top; k++) {
    double best = 0, at[4];
    size_t best_i = n;
    for (size_t i = 0; i < n; i++) {
      double x = s->sequential ? (double)v[i] : fabs((double)v[i]);
      if (!(x > best) || !isfinite(x) || x > above || (x == above && i <= above_i)) continue;
      best = x;
      best_i = i;
    }
    if (best_i == n) return;
    above = best;
    above_i = best_i;
    place(p, whole, y, (int)(best_i / (size_t)s->grid_w), (int)(best_i % (size_t)s->grid_w), at);
    if (at[2] - at[0] <= 0 || at[3] - at[1] <= 0) continue;
    for (int line = 0; line < 2; line++) {
      chii_set_color(pen, line ? chii_ink : (chii_color){1, 1, 1});
      cairo_set_line_width(pen->cr, line ? 1.3 : 3.2);
      cairo_rectangle(pen->cr, at[0], at[1], at[2] - at[0], at[3] - at[1]);
      cairo_stroke(pen->cr);
    }
  }
}

/* What the model did not see: washed out and hatched, with a line around what it saw. False where it saw all. */
static bool draw_unseen(const plan *p, const chii_pen *pen, double y) {
  const chi_overlay_spec *s = p->s;
  const double *b = p->box.whole;
  double first[4], last[4];
  place(p, true, y, 0, 0, first);
  place(p, true, y, s->grid_h - 1, s->grid_w - 1, last);
  double x0 = first[0], y0 = first[1], w = fmax(0, last[2] - x0), h = fmax(0, last[3] - y0);
  if (w >= b[2] - 0.01 && h >= b[3] - 0.01) return false;
  cairo_t *cr = pen->cr;
  cairo_save(cr);
  cairo_set_fill_rule(cr, CAIRO_FILL_RULE_EVEN_ODD);
  cairo_rectangle(cr, b[0], y, b[2], b[3]);
  cairo_rectangle(cr, x0, y0, w, h);
  cairo_clip_preserve(cr);
  cairo_set_source_rgba(cr, 0.93, 0.93, 0.94, 0.62);
  cairo_fill(cr);
  cairo_set_source_rgba(cr, 0.55, 0.55, 0.58, 0.55);
  cairo_set_line_width(cr, 0.7);
  for (double d = 6; d < b[2] + b[3]; d += 8) {
    cairo_move_to(cr, b[0] + d, y);
    cairo_line_to(cr, b[0] + d - b[3], y + b[3]);
  }
  cairo_stroke(cr);
  cairo_restore(cr);
  chii_set_color(pen, chii_soft);
  cairo_set_line_width(cr, 1);
  cairo_rectangle(cr, x0, y0, w, h);
  cairo_stroke(cr);
  return true;
}

/* ---- the figure ------------------------------------------------------------------------------------------ */
static void draw_bar(const plan *p, const chii_pen *pen, double y0, double h) {
  double x = p->bar_x, low = p->s->sequential ? 0 : -p->limit;
  enum { STOPS = 48 };
  chii_rect(pen, x, y0, BAR_W, h, (chii_color){PAPER / 255.0, PAPER / 255.0, PAPER / 255.0});
  cairo_pattern_t *g = cairo_pattern_create_linear(0, y0, 0, y0 + h);
  for (int i = 0; i <= STOPS; i++) {
    chii_color c = {0};
    double share = paint(p, p->limit + (low - p->limit) * i / STOPS, &c), t = (double)i / STOPS;
    cairo_pattern_add_color_stop_rgba(g, t, c.r, c.g, c.b, share);
  }
  cairo_set_source(pen->cr, g);
  cairo_rectangle(pen->cr, x, y0, BAR_W, h);
  cairo_fill(pen->cr);
  cairo_pattern_destroy(g);
  for (int k = 0; k <= 4; k++) {
    char num[32];
    double y = y0 + h * k / 4;
    chii_tick(num, p->limit + (low - p->limit) * k / 4);
    chii_rect(pen, x + BAR_W, fmin(fmax(y - 0.5, y0), y0 + h - 1), 3, 1, chii_soft);
    chii_draw(pen, &(chii_text){.s = num, .font = tick_font, .color = chii_soft}, x + BAR_W + 6, y, 0, k / 4.0);
  }
  if (!p->s->scale_label) return;
  chii_text t = {.s = p->s->scale_label, .font = note_font, .color = chii_ink, .max_w = fmax(h, 160)};
  chii_draw_up(pen, &t, x + BAR_W + 7 + p->tick_w + 11, y0 + h / 2);
}

static int draw_map(const plan *p, const chii_pen *pen, int k, chi_err *err) {
  int rc = 0;
  const chi_overlay_spec *s = p->s;
  const chi_overlay_box *b = &p->box;
  double y = b->plain[1] + k * b->map_step;
  char note[80];
  chii_text t = {.s = note, .font = panel_font, .color = chii_soft};
  if (s->maps[k].name)
    chii_draw(pen, &(chii_text){.s = s->maps[k].name, .font = name_font, .color = chii_ink, .max_w = b->w - 2 * MARGIN},
              MARGIN, y - 18 - 21, 0, 0);
  snprintf(note, sizeof note, "what the model saw");
  chii_draw(pen, &t, b->plain[0], y - 18, 0, 0);
  CHI_TRY(panel_picture(p, pen, s->seen, b->plain, y, false, err));
  snprintf(note, sizeof note, "on its patches, %d \xc3\x97 %d", s->grid_w, s->grid_h);
  chii_draw(pen, &t, b->patches[0], y - 18, 0, 0);
  CHI_TRY(panel_picture(p, pen, s->seen, b->patches, y, true, err));
  draw_patches(p, pen, s->maps[k].values, false, y);
  draw_top(p, pen, s->maps[k].values, false, y);
  if (s->original) {
    CHI_TRY(panel_picture(p, pen, s->original, b->whole, y, true, err));
    t.s = draw_unseen(p, pen, y) ? "on the picture; hatched: not seen" : "on the picture";
    chii_draw(pen, &t, b->whole[0], y - 18, 0, 0);
    draw_patches(p, pen, s->maps[k].values, true, y);
    draw_top(p, pen, s->maps[k].values, true, y);
  }
  if (k == 0) draw_bar(p, pen, y, fmax(b->patches[3], 60));
out:
  return rc;
}

static int draw_all(const chii_pen *pen, const void *ud, chi_err *err) {
  const plan *p = ud;
  int rc = 0;
  chii_head_text(&p->head, pen, MARGIN, MARGIN, p->box.w - 2 * MARGIN, true);
  for (int k = 0; k < p->s->n_maps; k++) CHI_TRY(draw_map(p, pen, k, err));
  if (p->s->top > 0) {
    char note[80];
    double y = p->box.h - MARGIN - 12;
    snprintf(note, sizeof note, p->s->top == 1 ? "the strongest patch" : "the %d strongest patches", p->s->top);
    chii_set_color(pen, chii_ink);
    cairo_set_line_width(pen->cr, 1.3);
    cairo_rectangle(pen->cr, MARGIN + 1, y, 12, 12);
    cairo_stroke(pen->cr);
    chii_draw(pen, &(chii_text){.s = note, .font = note_font, .color = chii_soft}, MARGIN + 22, y + 6, 0, 0.5);
  }
out:
  return rc;
}

static int plan_of(plan *p, const chi_overlay_spec *s, chi_err *err) {
  chii_pen pen;
  int rc = check(s, err);
  if (rc == 0) rc = chii_pen_measure(&pen, err);
  if (rc != 0) return rc;
  make_plan(p, s, &pen);
  chii_pen_close(&pen);
  return 0;
}

int chi_overlay_layout(chi_overlay_box *out, const chi_overlay_spec *s, chi_err *err) {
  plan p;
  int rc = plan_of(&p, s, err);
  if (rc == 0) *out = p.box;
  return rc;
}

int chi_overlay_save(const chi_overlay_spec *s, const chi_provenance *prov, const char *path, chi_err *err) {
  plan p;
  chi_str desc = {0};
  int rc = plan_of(&p, s, err);
  if (rc != 0) return rc;
  chii_describe(&desc, &p.head);
  for (int k = 0; k < s->n_maps; k++)
    if (s->maps[k].name) chi_str_addf(&desc, "%s%s", k ? ", " : "Maps: ", s->maps[k].name);
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

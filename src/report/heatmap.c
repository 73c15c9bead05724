/* Heat maps: a grid of panels, tokens down, layers across. Sizes come from the content: first everything is measured,
 * then drawn. */
#include "report/internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MARGIN 26
#define MAX_COUNT 10000
#define PANELS_WIDTH 860.0 /* what the panels of one line share, as long as cells stay readable */
#define MIN_WIDTH 660
#define LABEL_MAX 190
#define COL_GAP 26
#define THUMB 116
#define BAR_GAP 20
#define BAR_W 13
#define BAR_MAX 250
#define LEVELS 127

static const chii_font title_font = {18, true}, line_font = {12.5, false}, site_font = {13.5, true},
                       col_font = {12, false}, tick_font = {10, false}, note_font = {11.5, false},
                       note_bold = {11.5, true};

typedef struct plan {
  const chi_heatmap_spec *s;
  chi_heatmap_box box;
  double cell_font, label_w, panel_w, panel_h, bar_x, tick_w;
  double thumb_w, thumb_h, text_x, text_w, head_h, title_h;
  double legend_y, name_w;
  char *title;    /* cleaned */
  size_t mark[2]; /* in the cleaned title */
  char **label;   /* [n_rows] cleaned */
  double *limit;  /* [n_sites] */
  double scale;
} plan;

static void plan_free(plan *p) {
  chi_free(p->title);
  for (int i = 0; p->label && i < p->s->n_rows; i++) chi_free(p->label[i]);
  chi_free(p->label);
  chi_free(p->limit);
}

static int check(const chi_heatmap_spec *s, chi_err *err) {
  if (s->n_rows < 1 || s->n_layers < 1 || s->n_sites < 1 || s->n_cols < 1 || s->n_rows > MAX_COUNT ||
      s->n_layers > MAX_COUNT || s->n_sites > 100 || s->n_cols > 100) {
    return chi_fail(err, CHI_ERR_ARG, "a heat map of %d sites x %d columns, %d rows x %d layers cannot be drawn",
                    s->n_sites, s->n_cols, s->n_rows, s->n_layers);
  }
  bool whole = s->rows && s->site_names && s->values && (s->lines || s->n_lines == 0);
  for (int i = 0; whole && i < s->n_sites * s->n_cols; i++) whole = s->values[i] != NULL;
  for (int i = 0; whole && i < s->n_sites; i++) whole = s->site_names[i] != NULL;
  for (int i = 0; whole && i < s->n_rows; i++) whole = s->rows[i].label != NULL;
  for (int i = 0; whole && s->col_names && i < s->n_cols; i++) whole = s->col_names[i] != NULL;
  for (size_t i = 0; whole && i < s->n_lines; i++) whole = s->lines[i] != NULL;
  if (s->title && (s->mark_begin > s->mark_end || s->mark_end > strlen(s->title))) whole = false;
  if (!whole) return chi_fail(err, CHI_ERR_ARG, "a heat map was asked for without all of its names and values");
  return 0;
}

/* ---- content --------------------------------------------------------------------------------------------- */
static int clean_into(char **out, const char *s, bool label, chi_err *err) {
  chi_str t = {0};
  chi_str_add(&t, "");
  if (label)
    chii_label(&t, s);
  else
    chii_clean(&t, s, true);
  if (t.failed) {
    chi_str_free(&t);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory for a label");
  }
  *out = t.s;
  return 0;
}

/* The title in three pieces, so that the marked range is right after cleaning. */
static int clean_title(plan *p, chi_err *err) {
  const chi_heatmap_spec *s = p->s;
  const char *title = s->title ? s->title : "";
  size_t at[4] = {0, s->title ? s->mark_begin : 0, s->title ? s->mark_end : 0, strlen(title)};
  chi_str all = {0}, part = {0};
  chi_str_add(&all, "");
  for (int i = 0; i < 3; i++) {
    part.len = 0;
    chi_str_addn(&part, title + at[i], at[i + 1] - at[i]);
    if (part.s) chii_clean(&all, part.s, false);
    if (i < 2) p->mark[i] = all.len;
  }
  bool failed = all.failed || part.failed;
  chi_str_free(&part);
  p->title = all.s;
  return failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for a title") : 0;
}

static double largest(const plan *p, int site) {
  const chi_heatmap_spec *s = p->s;
  double best = 0;
  for (int c = 0; c < s->n_cols; c++) {
    const float *v = s->values[site * s->n_cols + c];
    for (size_t i = 0; i < (size_t)s->n_rows * (size_t)s->n_layers; i++) {
      double x = fabs((double)v[i]);
      if (isfinite(x) && x > best) best = x;
    }
  }
  return best;
}

static void find_limits(plan *p) {
  const chi_heatmap_spec *s = p->s;
  double all = 0;
  for (int i = 0; i < s->n_sites; i++) {
    double x = largest(p, i);
    if (x > all) all = x;
    p->limit[i] = chi_nice_limit(x);
  }
  for (int i = 0; i < s->n_sites; i++) {
    if (s->limit > 0)
      p->limit[i] = s->limit;
    else if (!s->limit_per_site)
      p->limit[i] = chi_nice_limit(all);
  }
}

/* ---- sizes ----------------------------------------------------------------------------------------------- */
static void cell_sizes(plan *p) {
  const chi_heatmap_spec *s = p->s;
  double w = floor(PANELS_WIDTH / s->n_cols / s->n_layers);
  p->box.cell_w = w < 8 ? 8 : w > 32 ? 32 : w;
  p->box.cell_h = s->n_rows <= 10 ? 22 : s->n_rows <= 20 ? 18 : s->n_rows <= 32 ? 16 : 15;
  p->cell_font = s->n_rows <= 20 ? 12.5 : s->n_rows <= 32 ? 11.5 : 10.5;
  p->panel_w = p->box.cell_w * s->n_layers;
  p->panel_h = p->box.cell_h * s->n_rows;
}

static chii_text row_label(const plan *p, int r) {
  chi_row_mark m = p->s->rows[r].mark;
  return (chii_text){.s = p->label[r],
                     .font = {p->cell_font, m == CHI_ROW_MARKED},
                     .color = m == CHI_ROW_MARKED ? chii_accent
                              : m == CHI_ROW_DIM  ? chii_faint
                                                  : chii_ink,
                     .max_w = LABEL_MAX};
}

static double width_of(const chii_pen *pen, const char *s, chii_font font) {
  double w;
  chii_measure(pen, &(chii_text){.s = s, .font = font}, &w, NULL);
  return w;
}

static void widths(plan *p, const chii_pen *pen) {
  const chi_heatmap_spec *s = p->s;
  p->label_w = width_of(pen, "layer", tick_font);
  for (int r = 0; r < s->n_rows; r++) {
    double w;
    chii_text t = row_label(p, r);
    chii_measure(pen, &t, &w, NULL);
    if (w > p->label_w) p->label_w = w;
  }
  double col_w = p->panel_w;
  for (int c = 0; s->col_names && c < s->n_cols; c++) {
    double w = width_of(pen, s->col_names[c], col_font);
    if (w > col_w) col_w = w;
  }
  p->box.x0 = MARGIN + ceil(p->label_w) + 16;
  p->box.col_step = ceil(col_w) + COL_GAP;
  double right = p->box.x0 + p->box.col_step * s->n_cols - COL_GAP;
  for (int i = 0; i < s->n_sites; i++) {
    double end = p->box.x0 + width_of(pen, s->site_names[i], site_font);
    if (end > right) right = end;
    for (int k = -1; k <= 1; k++) {
      char num[32];
      chii_tick(num, k * p->limit[i] / (k ? 1 : 2));
      double w = width_of(pen, num, tick_font);
      chii_tick(num, -p->limit[i] / 2);
      double half = width_of(pen, num, tick_font);
      p->tick_w = fmax(p->tick_w, fmax(w, half));
    }
  }
  p->bar_x = ceil(right) + BAR_GAP;
  p->box.w = ceil(p->bar_x + BAR_W + 7 + p->tick_w + (s->scale_label ? 22 : 0) + MARGIN);
  if (p->box.w < MIN_WIDTH) p->box.w = MIN_WIDTH;
}

static chii_text title_text(const plan *p) {
  return (chii_text){.s = p->title,
                     .font = title_font,
                     .color = chii_ink,
                     .max_w = p->text_w,
                     .wrap = true,
                     .mark_begin = p->mark[0],
                     .mark_end = p->mark[1]};
}

static chii_text line_text(const plan *p, const char *s) {
  return (chii_text){.s = s, .font = line_font, .color = chii_soft, .max_w = p->text_w, .wrap = true};
}

static void head_sizes(plan *p, const chii_pen *pen) {
  const chi_heatmap_spec *s = p->s;
  if (s->thumb && s->thumb->w > 0 && s->thumb->h > 0) {
    double f = THUMB / (double)(s->thumb->w > s->thumb->h ? s->thumb->w : s->thumb->h);
    p->thumb_w = fmax(1, round(s->thumb->w * f));
    p->thumb_h = fmax(1, round(s->thumb->h * f));
  }
  p->text_x = MARGIN + (p->thumb_w > 0 ? p->thumb_w + 20 : 0);
  p->text_w = p->box.w - MARGIN - p->text_x;
  double h = 0;
  if (p->title[0]) {
    chii_text t = title_text(p);
    chii_measure(pen, &t, NULL, &h);
    h += 5;
  }
  p->title_h = h;
  for (size_t i = 0; i < s->n_lines; i++) {
    double lh;
    chii_text t = line_text(p, s->lines[i]);
    chii_measure(pen, &t, NULL, &lh);
    h += lh + 3;
  }
  p->head_h = ceil(fmax(h, p->thumb_h));
}

static chii_text note_text(const plan *p, const char *s) {
  double x = MARGIN + p->name_w + 12;
  return (chii_text){.s = s, .font = note_font, .color = chii_soft, .max_w = p->box.w - MARGIN - x, .wrap = true};
}

/* One line of the legend: a name in bold (or a sign drawn by the caller) and its note. Returns its height. */
static double legend_row(const plan *p, const chii_pen *pen, double y, const char *name, const char *note, bool draw) {
  double h;
  chii_text t = note_text(p, note);
  chii_measure(pen, &t, NULL, &h);
  if (draw) {
    if (name) chii_draw(pen, &(chii_text){.s = name, .font = note_bold, .color = chii_ink}, MARGIN, y, 0, 0);
    chii_draw(pen, &t, MARGIN + p->name_w + 12, y, 0, 0);
  }
  return ceil(h) + 4;
}

static double legend(const plan *p, const chii_pen *pen, double y, bool draw) {
  const chi_heatmap_spec *s = p->s;
  double start = y;
  for (int c = 0; s->col_notes && s->col_names && c < s->n_cols; c++) {
    if (s->col_notes[c]) y += legend_row(p, pen, y, s->col_names[c], s->col_notes[c], draw);
  }
  if (s->mark_note) {
    if (draw) chii_rect(pen, MARGIN + 1, y + 1, 3, 13, chii_accent);
    y += legend_row(p, pen, y, NULL, s->mark_note, draw);
  }
  if (s->top > 0 || (s->outline && s->outline_note)) {
    char note[160];
    if (s->top > 0)
      snprintf(note, sizeof note,
               s->top == 1 ? "the strongest cell of each panel"
                           : "the %d strongest cells of each panel (2 %% of the scale at least)",
               s->top);
    else
      snprintf(note, sizeof note, "%s", s->outline_note);
    if (draw) {
      chii_set_color(pen, chii_ink);
      cairo_set_line_width(pen->cr, 1.4);
      cairo_rectangle(pen->cr, MARGIN + 1, y + 2, 13, 11);
      cairo_stroke(pen->cr);
    }
    y += legend_row(p, pen, y, NULL, note, draw);
  }
  return y - start;
}

static int make_plan(plan *p, const chi_heatmap_spec *s, const chii_pen *pen, chi_err *err) {
  int rc = 0;
  *p = (plan){.s = s, .scale = s->scale > 0 ? s->scale : 2};
  p->label = chi_calloc((size_t)s->n_rows, sizeof *p->label, err);
  p->limit = chi_calloc((size_t)s->n_sites, sizeof *p->limit, err);
  if (!p->label || !p->limit) return CHI_ERR_MEMORY;
  CHI_TRY(clean_title(p, err));
  for (int r = 0; r < s->n_rows; r++) CHI_TRY(clean_into(&p->label[r], s->rows[r].label, true, err));
  find_limits(p);
  cell_sizes(p);
  widths(p, pen);
  head_sizes(p, pen);
  p->name_w = 16;
  for (int c = 0; s->col_notes && s->col_names && c < s->n_cols; c++) {
    p->name_w = fmax(p->name_w, ceil(width_of(pen, s->col_names[c], note_bold)));
  }
  p->box.y0 = MARGIN + p->head_h + (p->head_h > 0 ? 20 : 0) + 22 + (s->col_names ? 18 : 0);
  p->box.site_step = (s->col_names ? 18 : 0) + 22 + p->panel_h + 18 + 14;
  p->legend_y = p->box.y0 + p->box.site_step * (s->n_sites - 1) + p->panel_h + 18 + 16;
  double lh = legend(p, pen, 0, false);
  p->box.h = ceil(p->legend_y + (lh > 0 ? lh : -10) + MARGIN - 6);
out:
  return rc;
}

/* ---- drawing --------------------------------------------------------------------------------------------- */
static void draw_head(const plan *p, const chii_pen *pen) {
  double y = MARGIN;
  if (p->title[0]) {
    chii_text t = title_text(p);
    chii_draw(pen, &t, p->text_x, y, 0, 0);
    y += p->title_h;
  }
  for (size_t i = 0; i < p->s->n_lines; i++) {
    double h;
    chii_text t = line_text(p, p->s->lines[i]);
    chii_measure(pen, &t, NULL, &h);
    chii_draw(pen, &t, p->text_x, y, 0, 0);
    y += h + 3;
  }
}

static int level_of(float v, double limit) {
  double t = (double)v / limit * LEVELS;
  return t >= LEVELS ? LEVELS : t <= -LEVELS ? -LEVELS : (int)lround(t);
}

/* All cells of one colour are one path: a figure of thousands of cells stays small as SVG. */
static void draw_cells(const plan *p, const chii_pen *pen, const float *v, double limit, double x0, double y0) {
  const chi_heatmap_spec *s = p->s;
  double cw = p->box.cell_w, ch = p->box.cell_h;
  for (int level = -LEVELS; level <= LEVELS; level++) {
    bool any = false;
    for (int l = 0; l < s->n_layers; l++) {
      for (int r = 0; r < s->n_rows; r++) {
        float x = v[(size_t)l * (size_t)s->n_rows + (size_t)r];
        if (isnan(x) || level_of(x, limit) != level) continue;
        cairo_rectangle(pen->cr, x0 + l * cw, y0 + r * ch, cw - 1, ch - 1);
        any = true;
      }
    }
    if (!any) continue;
    uint8_t c[3];
    chi_heat_color((double)level / LEVELS, c);
    chii_set_color(pen, (chii_color){c[0] / 255.0, c[1] / 255.0, c[2] / 255.0});
    cairo_fill(pen->cr);
  }
}

/* Cells too pale to see are not worth an outline, however they rank. */
static void draw_top(const plan *p, const chii_pen *pen, const float *v, double limit, double x0, double y0) {
  const chi_heatmap_spec *s = p->s;
  size_t n = (size_t)s->n_rows * (size_t)s->n_layers;
  double above = INFINITY;
  size_t above_i = 0;
  chii_set_color(pen, chii_ink);
  cairo_set_line_width(pen->cr, 1.4);
  /* The next strongest after (above, above_i), ties in index order: no list to keep. */
  for (int k = 0; k < s->top; k++) {
    double best = 0;
    size_t best_i = n;
    for (size_t i = 0; i < n; i++) {
      double x = fabs((double)v[i]);
      if (!(x > best) || !isfinite(x) || x < 0.02 * limit) continue;
      if (x > above || (x == above && i <= above_i)) continue;
      best = x;
      best_i = i;
    }
    if (best_i == n) break;
    above = best;
    above_i = best_i;
    double x = x0 + (double)(best_i / (size_t)s->n_rows) * p->box.cell_w;
    double y = y0 + (double)(best_i % (size_t)s->n_rows) * p->box.cell_h;
    cairo_rectangle(pen->cr, x - 0.5, y - 0.5, p->box.cell_w, p->box.cell_h);
    cairo_stroke(pen->cr);
  }
}

static void draw_outlines(const plan *p, const chii_pen *pen, const bool *on, double x0, double y0) {
  if (!on) return;
  chii_set_color(pen, chii_ink);
  cairo_set_line_width(pen->cr, 1.4);
  for (int l = 0; l < p->s->n_layers; l++)
    for (int r = 0; r < p->s->n_rows; r++)
      if (on[(size_t)l * (size_t)p->s->n_rows + (size_t)r])
        cairo_rectangle(pen->cr, x0 + l * p->box.cell_w - 0.5, y0 + r * p->box.cell_h - 0.5, p->box.cell_w,
                        p->box.cell_h);
  cairo_stroke(pen->cr);
}

/* A hair line around a panel that has blank cells: without it their rows would look cut off. */
static void draw_frame(const plan *p, const chii_pen *pen, const float *v, double x0, double y0) {
  bool blank = false;
  for (size_t i = 0; i < (size_t)p->s->n_rows * (size_t)p->s->n_layers && !blank; i++) blank = isnan(v[i]);
  if (!blank) return;
  chii_set_color(pen, (chii_color){0.86, 0.86, 0.88});
  cairo_set_line_width(pen->cr, 1);
  cairo_rectangle(pen->cr, x0 - 0.5, y0 - 0.5, p->panel_w, p->panel_h);
  cairo_stroke(pen->cr);
}

/* Layer numbers, as many as fit. */
static void draw_ticks(const plan *p, const chii_pen *pen, double x0, double y) {
  static const int steps[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000};
  const chi_heatmap_spec *s = p->s;
  char num[32];
  snprintf(num, sizeof num, "%d", s->first_layer + s->n_layers - 1);
  double need = width_of(pen, num, tick_font) + 6;
  int step = 1;
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    step = steps[i];
    if (step * p->box.cell_w >= need) break;
  }
  for (int l = 0; l < s->n_layers; l++) {
    int layer = s->first_layer + l;
    if (layer % step != 0) continue;
    snprintf(num, sizeof num, "%d", layer);
    chii_draw(pen, &(chii_text){.s = num, .font = tick_font, .color = chii_soft}, x0 + (l + 0.5) * p->box.cell_w - 0.5,
              y, 0.5, 0);
  }
}

static void draw_bar(const plan *p, const chii_pen *pen, double y0, double limit) {
  double h = fmin(p->panel_h, BAR_MAX), x = p->bar_x;
  cairo_pattern_t *g = cairo_pattern_create_linear(0, y0, 0, y0 + h);
  enum { STOPS = 24 };
  for (int i = 0; i <= STOPS; i++) {
    uint8_t c[3];
    chi_heat_color(1 - 2.0 * i / STOPS, c);
    cairo_pattern_add_color_stop_rgb(g, (double)i / STOPS, c[0] / 255.0, c[1] / 255.0, c[2] / 255.0);
  }
  cairo_set_source(pen->cr, g);
  cairo_rectangle(pen->cr, x, y0, BAR_W, h);
  cairo_fill(pen->cr);
  cairo_pattern_destroy(g);
  int n = h >= 60 ? 2 : 1; /* ticks on each side of 0 */
  for (int k = -n; k <= n; k++) {
    char num[32];
    chii_tick(num, k * limit / n);
    double y = y0 + h / 2 - k * h / 2 / n;
    double at = k == n ? 0 : k == -n ? 1 : 0.5; /* the outer ones stay beside the bar */
    chii_rect(pen, x + BAR_W, fmin(fmax(y - 0.5, y0), y0 + h - 1), 3, 1, chii_soft);
    chii_draw(pen, &(chii_text){.s = num, .font = tick_font, .color = chii_soft}, x + BAR_W + 6, y, 0, at);
  }
  if (!p->s->scale_label) return;
  chii_text t = {.s = p->s->scale_label, .font = note_font, .color = chii_ink, .max_w = fmax(h, p->panel_h + 18)};
  double w;
  chii_measure(pen, &t, &w, NULL);
  chii_draw_up(pen, &t, x + BAR_W + 7 + p->tick_w + 11, y0 + fmax(h, w) / 2);
}

static void draw_site(const plan *p, const chii_pen *pen, int site) {
  const chi_heatmap_spec *s = p->s;
  const chi_heatmap_box *b = &p->box;
  double y0 = b->y0 + site * b->site_step, top = y0 - (s->col_names ? 18 : 0);
  chii_draw(pen, &(chii_text){.s = s->site_names[site], .font = site_font, .color = chii_ink}, b->x0, top - 21, 0, 0);
  for (int r = 0; r < s->n_rows; r++) {
    chii_text t = row_label(p, r);
    chii_draw(pen, &t, b->x0 - 10, y0 + (r + 0.5) * b->cell_h - 0.5, 1, 0.5);
  }
  chii_draw(pen, &(chii_text){.s = "layer", .font = tick_font, .color = chii_soft}, b->x0 - 10, y0 + p->panel_h + 3, 1,
            0);
  for (int c = 0; c < s->n_cols; c++) {
    double x0 = b->x0 + c * b->col_step;
    const float *v = s->values[site * s->n_cols + c];
    if (s->col_names) {
      chii_draw(pen, &(chii_text){.s = s->col_names[c], .font = col_font, .color = chii_soft}, x0, y0 - 18, 0, 0);
    }
    for (int r = 0; r < s->n_rows; r++) {
      if (s->rows[r].mark == CHI_ROW_MARKED)
        chii_rect(pen, x0 - 6, y0 + r * b->cell_h - 0.5, 3, b->cell_h, chii_accent);
    }
    draw_frame(p, pen, v, x0, y0);
    draw_cells(p, pen, v, p->limit[site], x0, y0);
    draw_top(p, pen, v, p->limit[site], x0, y0);
    if (s->outline) draw_outlines(p, pen, s->outline[site * s->n_cols + c], x0, y0);
    draw_ticks(p, pen, x0, y0 + p->panel_h + 3);
  }
  if (site == 0 || s->limit_per_site) draw_bar(p, pen, y0, p->limit[site]);
}

static int draw_all(const chii_pen *pen, const void *ud, chi_err *err) {
  const plan *p = ud;
  draw_head(p, pen);
  if (p->thumb_w > 0) {
    int rc = chii_picture(pen, p->s->thumb, MARGIN, MARGIN, p->thumb_w, p->thumb_h, p->scale, err);
    if (rc != 0) return rc;
  }
  for (int i = 0; i < p->s->n_sites; i++) draw_site(p, pen, i);
  legend(p, pen, p->legend_y, true);
  return 0;
}

/* ---- public ---------------------------------------------------------------------------------------------- */
static int plan_of(plan *p, const chi_heatmap_spec *s, chi_err *err) {
  chii_pen pen;
  *p = (plan){0};
  int rc = check(s, err);
  if (rc != 0) return rc;
  rc = chii_pen_measure(&pen, err);
  if (rc != 0) return rc;
  rc = make_plan(p, s, &pen, err);
  chii_pen_close(&pen);
  return rc;
}

int chi_heatmap_layout(chi_heatmap_box *out, const chi_heatmap_spec *s, chi_err *err) {
  plan p;
  int rc = plan_of(&p, s, err);
  if (rc == 0) *out = p.box;
  plan_free(&p);
  return rc;
}

int chi_heatmap_save(const chi_heatmap_spec *s, const chi_provenance *prov, const char *path, chi_err *err) {
  plan p;
  chi_str desc = {0};
  int rc = plan_of(&p, s, err);
  if (rc == 0) {
    for (size_t i = 0; i < s->n_lines; i++) chi_str_addf(&desc, "%s\n", s->lines[i]);
    for (int i = 0; i < s->n_sites; i++) chi_str_addf(&desc, "%s%s", i ? ", " : "Panels: ", s->site_names[i]);
    for (int r = 0; r < s->n_rows; r++) chi_str_addf(&desc, "%s%s", r ? " | " : "\nRows: ", p.label[r]);
    chii_figure f = {.w = p.box.w,
                     .h = p.box.h,
                     .scale = p.scale,
                     .draw = draw_all,
                     .ud = &p,
                     .title = p.title,
                     .description = desc.s};
    rc = desc.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for a figure") : chii_figure_save(&f, prov, path, err);
  }
  chi_str_free(&desc);
  plan_free(&p);
  return rc;
}

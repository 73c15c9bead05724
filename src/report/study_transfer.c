/* Curves by layer of a run: knock-out, contributions, the lens, attribution. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_internal.h"

enum { kMaxSeries = 24, kFewest = 5 /* entities of which a curve of right or wrong items is made */ };

/* ---- series ---------------------------------------------------------------------------------------------- */
int chii_view_right(chii_view *out, chii_study *s, int right, chi_err *err) {
  int rc = 0, n = 0;
  const char **unit = chi_calloc((size_t)s->n_items, sizeof *unit, err);
  *out = (chii_view){.name = right ? "right" : "wrong", .title = right ? "right items" : "wrong items"};
  CHI_TRY(unit && (out->at = chi_arena_array(&s->arena, (size_t)s->n_items, sizeof *out->at, err)) ? 0
                                                                                                   : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < s->n_items; i++) {
    if (s->item[i].right != right) continue;
    unit[n] = s->item[i].row->unit;
    out->at[n++] = i;
  }
  if (n) rc = chi_clusters_make(&out->cl, unit, n, err);
out:
  chi_free(unit);
  return rc;
}

static int csv_row(chii_study *s, const chii_series *one, int layer, const chi_est *e, chi_err *err) {
  chi_csv_str(s->curves, one->kind);
  chi_csv_str(s->curves, one->v->name);
  chi_csv_int(s->curves, layer);
  chi_csv_num(s->curves, e->value);
  chi_csv_num(s->curves, e->lo);
  chi_csv_num(s->curves, e->hi);
  chi_csv_int(s->curves, e->n);
  chi_csv_int(s->curves, e->clusters);
  return chi_csv_row(s->curves, err);
}

/* y, lo, hi [*n] of one series, in the arena; *n = 0 where nobody has it. */
static int series_points(chi_curve *out, size_t *n, chii_study *s, const chii_series *one, int first, chi_err *err) {
  int rc = 0;
  chii_matrix m = {0};
  double *column = NULL;
  int32_t items = one->v->cl.n_items;
  *n = 0;
  if (items == 0) return 0;
  CHI_TRY(chii_matrix_of(&m, s, one->v, err, "%s", one->kind));
  if (m.size == 0 || m.n == 0) goto out;
  double *y = chi_arena_array(&s->arena, 3 * m.size, sizeof *y, err);
  CHI_TRY(y && (column = chi_calloc((size_t)items, sizeof *column, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t l = 0; l < m.size; l++) {
    chi_est e;
    chii_column(column, &m, items, l);
    for (int32_t i = 0; one->f && i < items; i++) column[i] = one->f(column[i]);
    CHI_TRY(chi_boot_mean(&e, &one->v->cl, column, NULL, &s->boot, err));
    y[l] = e.value;
    y[m.size + l] = isnan(e.lo) ? e.value : e.lo;
    y[2 * m.size + l] = isnan(e.hi) ? e.value : e.hi;
    CHI_TRY(csv_row(s, one, (int)l + first, &e, err));
  }
  *out = (chi_curve){.name = one->label, .y = y, .lo = y + m.size, .hi = y + 2 * m.size};
  *n = m.size;
out:
  chi_free(column);
  chii_matrix_free(&m);
  return rc;
}

/* "1415 right items, 458 wrong items; bands: ..." */
static void who(char *line, size_t cap, const chii_study *s, const chii_series *list, int n) {
  size_t at = 0;
  for (int i = 0; i < n; i++) {
    bool seen = list[i].v->cl.n_items == 0;
    for (int k = 0; k < i; k++) seen |= list[k].v == list[i].v;
    if (!seen && at < cap)
      at += (size_t)snprintf(line + at, cap - at, "%s%s%d %s", at ? ", " : "",
                             list[i].v == &s->view[CHII_ALL] ? "all " : "", list[i].v->cl.n_items,
                             list[i].v == &s->view[CHII_ALL] ? "items" : list[i].v->title);
  }
  if (at < cap) snprintf(line + at, cap - at, "; bands: 95 %% by bootstrap over entities");
}

int chii_series_chart(chii_study *s, const char *title, const char *y_label, const char *name, const chii_series *list,
                      int n, int first, chi_err *err) {
  int rc = 0, drawn = 0;
  size_t points = 0;
  double x[4096];
  chi_curve curve[kMaxSeries];
  char line[200];
  const char *lines[] = {line};
  for (int i = 0; i < n && drawn < kMaxSeries; i++) {
    size_t k = 0;
    CHI_TRY(series_points(&curve[drawn], &k, s, &list[i], first, err));
    if (k == 0 || k > sizeof x / sizeof *x || (points && k != points)) continue;
    points = k;
    drawn++;
  }
  if (drawn == 0) goto out;
  for (size_t i = 0; i < points; i++) x[i] = (double)first + (double)i;
  who(line, sizeof line, s, list, n);
  chi_linechart_spec spec = {.title = title,
                             .lines = lines,
                             .n_lines = 1,
                             .x_label = first < 0 ? "layer (-1: the input)" : "layer",
                             .y_label = y_label,
                             .x = x,
                             .n = points,
                             .curves = curve,
                             .n_curves = drawn,
                             .y_zero = true};
  rc = chii_linechart(s, &spec, name, err);
out:
  return rc;
}

static void set(chii_series *out, const chii_view *v, const char *kind, const char *label) {
  memset(out, 0, sizeof *out);
  out->v = v;
  snprintf(out->kind, sizeof out->kind, "%.299s", kind);
  snprintf(out->label, sizeof out->label, "%.119s", label);
}

/* ---- knock-out ------------------------------------------------------------------------------------------- */
static int knockout(chii_study *s, chi_err *err) {
  int rc = 0, done[CHI_STUDY_LIST] = {0}, n_done = 0;
  char part[200], win[32], prefix[64], label[260];
  snprintf(prefix, sizeof prefix, "knockout/%s/", s->ask);
  if (!chii_has_kind(s, prefix)) return 0;
  chii_page_head(&s->html, 2, "Through which layers it travels: edges cut");
  chii_page_para(
      &s->html,
      "Mean change of p(answer) when the attention edges of a set are cut in a window around each layer, beside "
      "as many random edges (control).");
  const chii_view *v = &s->view[s->n_views - 1];
  for (size_t i = 0; i < s->n_kinds; i++) {
    chii_series list[kMaxSeries];
    int n = 0, w;
    bool again = false;
    if (strncmp(s->kind[i], prefix, strlen(prefix)) != 0 || !chii_part(s->kind[i], 3, win, sizeof win)) continue;
    w = (int)strtol(win + 1, NULL, 10);
    for (int k = 0; k < n_done; k++) again |= done[k] == w;
    if (again || n_done == CHI_STUDY_LIST) continue;
    done[n_done++] = w;
    for (size_t k = 0; k < s->n_kinds && n < kMaxSeries; k++) {
      char other[32], what[32];
      if (strncmp(s->kind[k], prefix, strlen(prefix)) != 0 || !chii_part(s->kind[k], 3, other, sizeof other) ||
          strcmp(other, win) != 0)
        continue;
      chii_part(s->kind[k], 2, part, sizeof part);
      chii_part(s->kind[k], 4, what, sizeof what);
      snprintf(label, sizeof label, "%s%s", strchr(part, '+') ? "all together" : part,
               strcmp(what, "own") ? ", control" : "");
      set(&list[n++], v, s->kind[k], label);
    }
    char title[100], name[64];
    snprintf(title, sizeof title, w == 1 ? "Edges cut in one layer" : "Edges cut in windows of %d layers", w);
    snprintf(name, sizeof name, "knockout-w%d", w);
    CHI_TRY(chii_series_chart(s, title, "change of p(answer)", name, list, n, 0, err));
  }
out:
  return rc;
}

/* ---- contributions --------------------------------------------------------------------------------------- */
/* Norms of single patches, averaged over items, in the layers where they are strongest. */
static int patches(chii_study *s, const chii_view *v, chi_err *err) {
  int rc = 0;
  chii_matrix m = {0};
  chi_curve curve[3];
  char label[3][32];
  double *mean = NULL;
  CHI_TRY(chii_matrix_of(&m, s, v, err, "contributions/%s/image>words/patch", s->ask));
  if (m.size == 0 || m.ndim != 2) goto out;
  size_t L = (size_t)m.dim[0], P = (size_t)m.dim[1];
  CHI_TRY((mean = chi_calloc(m.size + P, sizeof *mean, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < m.size; i++) mean[i] = chii_mean(&m, v->cl.n_items, i);
  size_t n = L < 3 ? L : 3;
  for (size_t k = 0; k < n; k++) {
    snprintf(label[k], sizeof label[k], "layer %zu", k);
    curve[k] = (chi_curve){.name = label[k], .y = mean + k * P};
  }
  for (size_t k = 0; k < P; k++) mean[m.size + k] = (double)k;
  chi_linechart_spec spec = {.title = "What each patch gives to the words, by its place",
                             .x_label = "patch, in reading order",
                             .y_label = "mean norm",
                             .x = mean + m.size,
                             .n = P,
                             .curves = curve,
                             .n_curves = (int)n,
                             .y_zero = true};
  CHI_TRY(chii_linechart(s, &spec, "contributions-patches", err));
out:
  chi_free(mean);
  chii_matrix_free(&m);
  return rc;
}

static int contributions(chii_study *s, const chii_view *right, const chii_view *wrong, chi_err *err) {
  static const char *const kWay[] = {"image>words", "words>last"}, *const kTitle[] = {"Picture to words",
                                                                                      "Words to last token"};
  int rc = 0;
  char prefix[64], kind[300];
  const chii_view *all = &s->view[CHII_ALL];
  snprintf(prefix, sizeof prefix, "contributions/%s/", s->ask);
  if (!chii_has_kind(s, prefix)) return 0;
  chii_page_head(&s->html, 2, "What attention carries: contributions");
  for (int w = 0; w < 2; w++) {
    chii_series list[4];
    int n = 0;
    char title[100], name[64];
    snprintf(kind, sizeof kind, "%s%s/max", prefix, kWay[w]);
    set(&list[n++], all, kind, "all items");
    if (right->cl.n >= kFewest && wrong->cl.n >= kFewest) {
      set(&list[n++], right, kind, "right items");
      set(&list[n++], wrong, kind, "wrong items");
    }
    snprintf(title, sizeof title, "%s: the largest norm of what all heads carry together", kTitle[w]);
    snprintf(name, sizeof name, "contributions-%s", w ? "words-last" : "image-words");
    CHI_TRY(chii_series_chart(s, title, "norm", name, list, n, 0, err));
  }
  static const struct {
    const char *kind, *label;
  } kLate[] = {{"late", "late patches"},
               {"late_even", "with even attention"},
               {"late_flipped", "upside down: last rows"},
               {"late_flipped_content", "upside down: same content"},
               {"late_rolled", "rolled: last rows"},
               {"late_rolled_content", "rolled: same content"},
               {"late_shuffled", "patches shuffled: last rows"},
               {"late_shuffled_content", "patches shuffled: same content"}};
  enum { kLateSeries = sizeof kLate / sizeof *kLate };
  chii_series late[kLateSeries];
  for (int i = 0; i < kLateSeries; i++) {
    snprintf(kind, sizeof kind, "%simage>words/%s", prefix, kLate[i].kind);
    set(&late[i], all, kind, kLate[i].label);
  }
  CHI_TRY(chii_series_chart(s, "Share of the picture's last patches", "share of the norms", "contributions-late", late,
                            kLateSeries, 0, err));
  CHI_TRY(patches(s, all, err));
out:
  return rc;
}

/* ---- lens and attribution -------------------------------------------------------------------------------- */
static double reciprocal(double rank) { return 1 / rank; }

static int lens(chii_study *s, const chii_view *right, const chii_view *wrong, chi_err *err) {
  static const char *const kRow[] = {"words", "last"};
  chii_series list[4];
  int n = 0;
  char kind[300], label[100];
  for (int r = 0; r < 2; r++)
    for (int good = 1; good >= 0; good--) {
      snprintf(kind, sizeof kind, "lens/%s/%s/rank", s->ask, kRow[r]);
      snprintf(label, sizeof label, "%s, %s items", r ? "last token" : "words", good ? "right" : "wrong");
      set(&list[n], good ? right : wrong, kind, label);
      list[n++].f = reciprocal;
    }
  if (!chii_has_kind(s, "lens/") && !s->n_probe) return 0;
  chii_page_head(&s->html, 2, "The bridge: when the entity's name can be read");
  int rc = chii_series_chart(s, "Entity's name in the lens", "mean of 1 / rank", "lens-entity", list, n, -1, err);
  return rc ? rc : chii_probe_chart(s, err);
}

/* Mean over items of [layers][heads], as layers across and heads down. */
static int head_map(chii_study *s, const char *what, const char *title, const char *scale, chi_err *err) {
  int rc = 0;
  chii_matrix m = {0};
  const chii_view *v = &s->view[s->n_views - 1];
  chi_heat_row *rows = NULL;
  char(*label)[24] = NULL, name[64], line[100];
  const char *lines[] = {line}, *site[] = {what};
  CHI_TRY(chii_matrix_of(&m, s, v, err, "attribute/%s/%s", s->ask, what));
  if (m.size == 0 || m.ndim != 2 || m.dim[1] > 1000) goto out;
  float *mean = chi_arena_array(&s->arena, m.size, sizeof *mean, err);
  rows = chi_calloc((size_t)m.dim[1], sizeof *rows, err);
  label = chi_calloc((size_t)m.dim[1], sizeof *label, err);
  CHI_TRY(mean && rows && label ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < m.size; i++) mean[i] = (float)chii_mean(&m, v->cl.n_items, i);
  for (int64_t h = 0; h < m.dim[1]; h++) {
    snprintf(label[h], sizeof label[h], "head %lld", (long long)h);
    rows[h].label = label[h];
  }
  snprintf(line, sizeof line, "mean over %d items", v->cl.n_items);
  snprintf(name, sizeof name, "attribute-%s", what);
  const float *values[] = {mean};
  chi_heatmap_spec spec = {.title = title,
                           .lines = lines,
                           .n_lines = 1,
                           .n_rows = (int)m.dim[1],
                           .n_layers = (int)m.dim[0],
                           .rows = rows,
                           .n_sites = 1,
                           .n_cols = 1,
                           .site_names = site,
                           .values = values,
                           .scale_label = scale,
                           .top = 5};
  CHI_TRY(chii_heatmap(s, &spec, name, err));
out:
  chi_free(rows);
  chi_free(label);
  chii_matrix_free(&m);
  return rc;
}

static int attribution(chii_study *s, chi_err *err) {
  int rc = 0;
  char kind[300];
  chii_series list[2];
  const chii_view *v = &s->view[s->n_views - 1];
  if (!chii_has_kind(s, "attribute/")) return 0;
  chii_page_head(&s->html, 2, "Which layers and heads carried the answer: attribution");
  for (int i = 0; i < 2; i++) {
    snprintf(kind, sizeof kind, "attribute/%s/%s", s->ask, i ? "mlp" : "attn");
    set(&list[i], v, kind, i ? "MLP" : "attention");
  }
  CHI_TRY(chii_series_chart(s, "Log-probability increase at the last token", "increase", "attribute-layers", list, 2, 0,
                            err));
  CHI_TRY(head_map(s, "head", "Log-probability increase of heads", "increase", err));
  CHI_TRY(head_map(s, "picture", "The target's logit that heads draw from the picture", "logit", err));
out:
  return rc;
}

int chii_study_transfer(chii_study *s, chi_err *err) {
  int rc = 0;
  chii_view right = {0}, wrong = {0};
  CHI_TRY(chii_view_right(&right, s, 1, err));
  CHI_TRY(chii_view_right(&wrong, s, 0, err));
  CHI_TRY(knockout(s, err));
  CHI_TRY(contributions(s, &right, &wrong, err));
  CHI_TRY(lens(s, &right, &wrong, err));
  CHI_TRY(attribution(s, err));
out:
  chi_clusters_free(&right.cl);
  chi_clusters_free(&wrong.cl);
  return rc;
}

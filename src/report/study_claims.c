/* Claims of the protocol: the table, its views and its statistics. */
#include "report/study_claims.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kWord[] = {"", "found", "not found", "undecided"};
static const double kSmall = 0.05; /* an effect on p below this is called small */

/* ---- verdicts -------------------------------------------------------------------------------------------- */
chii_verdict chii_by_size(const chi_est *e) {
  if (isnan(e->lo)) return CHII_UNDECIDED;
  if (e->lo > 0 && e->value >= kSmall) return CHII_FOUND;
  return e->hi < kSmall ? CHII_NOT_FOUND : CHII_UNDECIDED;
}

chii_verdict chii_by_side(const chi_est *e, double line, int sign) {
  if (isnan(e->lo)) return CHII_UNDECIDED;
  if (sign > 0 ? e->lo > line : e->hi < line) return CHII_FOUND;
  return (sign > 0 ? e->hi <= line : e->lo >= line) ? CHII_NOT_FOUND : CHII_UNDECIDED;
}

chii_verdict chii_by_range(const chi_est *e, double lo, double hi) {
  if (isnan(e->lo)) return CHII_UNDECIDED;
  if (e->lo >= lo && e->hi <= hi) return CHII_FOUND;
  return e->hi < lo || e->lo > hi ? CHII_NOT_FOUND : CHII_UNDECIDED;
}

/* ---- the table ------------------------------------------------------------------------------------------- */
int chii_claim_put(chii_claims *c, const chii_claim *one, chi_err *err) {
  chi_str *h = &c->s->html;
  if (isnan(one->e.value) && !one->bare) return 0;
  if (c->n++ == 0) {
    chii_page_head(h, 2, "Claims");
    chii_page_para(
        h,
        "As docs/studies/protocol.md numbers them, with the statistic that it fixed before any run. Found, not "
        "found and undecided are its rules; lines without a word are controls and parts. 95 %% by bootstrap "
        "over entities.");
    chii_page_table(h, "claim|<statistic|value (95 %)|height of peak|family-wise p|items, entities|<verdict");
  }
  chii_page_row(h);
  chii_page_cell(h, "%s", one->id);
  chii_page_words(h, one->what, one->verdict != CHII_NO_VERDICT);
  chii_page_est(h, &one->e, one->decimals);
  chii_page_num(h, one->height, 3);
  chii_page_num(h, one->p_family, 4);
  chii_page_cell(h, "%d, %d", one->e.n, one->e.clusters);
  chii_page_words(h, kWord[one->verdict], true);
  json_t *j = chii_est_json(&one->e);
  json_object_set_new(j, "claim", json_string(one->id));
  json_object_set_new(j, "statistic", json_string(one->what));
  json_object_set_new(j, "height", chi_json_num(one->height));
  json_object_set_new(j, "p_family", chi_json_num(one->p_family));
  json_object_set_new(j, "verdict", one->verdict ? json_string(kWord[one->verdict]) : json_null());
  json_array_append_new(c->list, j);
  chi_csv_str(c->csv, one->id);
  chi_csv_str(c->csv, one->what);
  chi_csv_num(c->csv, one->e.value);
  chi_csv_num(c->csv, one->e.lo);
  chi_csv_num(c->csv, one->e.hi);
  chi_csv_num(c->csv, one->height);
  chi_csv_num(c->csv, one->p_family);
  chi_csv_int(c->csv, one->e.n);
  chi_csv_int(c->csv, one->e.clusters);
  chi_csv_str(c->csv, kWord[one->verdict]);
  return chi_csv_row(c->csv, err);
}

int chii_claim_say(chii_claims *c, const char *id, const chi_est *e, double height, double p, int decimals,
                   chii_verdict v, chi_err *err, const char *fmt, ...) {
  chii_claim one = {.id = id, .e = *e, .height = height, .p_family = p, .decimals = decimals, .verdict = v};
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(one.what, sizeof one.what, fmt, ap);
  va_end(ap);
  return chii_claim_put(c, &one, err);
}

int chii_study_claims(chii_study *s, chi_err *err) {
  static const char *const kHead[] = {"claim",  "statistic", "value", "lo",       "hi",
                                      "height", "p_family",  "items", "entities", "verdict"};
  int rc = 0;
  char path[4096];
  chii_claims c = {.s = s, .list = json_array()};
  CHI_TRY(chi_path_join(path, sizeof path, s->dir, "claims.csv", err));
  CHI_TRY(chi_csv_open(&c.csv, path, kHead, sizeof kHead / sizeof *kHead, err));
  CHI_TRY(chii_claims_maps(&c, err));
  CHI_TRY(chii_claims_transfer(&c, err));
  if (c.n) chii_page_table_end(&s->html);
  json_object_set(s->json, "claims", c.list);
  rc = chi_csv_commit(c.csv, err);
  c.csv = NULL;
out:
  json_decref(c.list);
  chi_csv_abort(c.csv);
  return rc;
}

/* ---- views ----------------------------------------------------------------------------------------------- */
static bool listed(const char *list, const char *name) {
  char word[64];
  if (!list) return true;
  for (int i = 0; name && chi_study_word(list, i, word, sizeof word); i++)
    if (strcmp(word, name) == 0) return true;
  return false;
}

static bool wanted(const chii_item *it, const chii_which *w) {
  int64_t brackets = json_integer_value(json_object_get(it->info, "brackets"));
  if (w->right >= 0 && it->right != w->right) return false;
  if (w->brackets == 1 && brackets > 1) return false;
  if (w->brackets == 2 && brackets < 2) return false;
  return listed(w->forms, it->row->group) &&
         listed(w->entity_group, json_string_value(json_object_get(it->info, "entity_group")));
}

int chii_view_of(chii_view *out, chii_study *s, const char *name, const chii_which *w, chi_err *err) {
  int rc = 0, n = 0;
  const char **unit = chi_calloc((size_t)s->n_items, sizeof *unit, err);
  *out = (chii_view){.name = name, .title = name};
  CHI_TRY(unit && (out->at = chi_arena_array(&s->arena, (size_t)s->n_items, sizeof *out->at, err)) ? 0
                                                                                                   : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < s->n_items; i++) {
    if (!wanted(&s->item[i], w)) continue;
    unit[n] = s->item[i].row->unit;
    out->at[n++] = i;
  }
  if (n) rc = chi_clusters_make(&out->cl, unit, n, err);
out:
  chi_free(unit);
  return rc;
}

/* ---- mean curves ----------------------------------------------------------------------------------------- */
typedef struct curves {
  int32_t n; /* clusters */
  int width, layers;
  double *sum, *count; /* [2][n][width], [2][n] */
  chii_curve_stat stat;
} curves;
enum { kMaxWidth = 1024 };

static double curve_value(const void *ud, const int32_t *times) {
  const curves *s = ud;
  double mean[2][kMaxWidth], n[2] = {0};
  for (int g = 0; g < 2; g++) {
    for (int k = 0; k < s->width; k++) mean[g][k] = 0;
    for (int32_t c = 0; c < s->n; c++) {
      size_t at = (size_t)g * (size_t)s->n + (size_t)c;
      if (!times[c]) continue;
      n[g] += times[c] * s->count[at];
      for (int k = 0; k < s->width; k++) mean[g][k] += times[c] * s->sum[at * (size_t)s->width + (size_t)k];
    }
    for (int k = 0; k < s->width; k++) mean[g][k] = n[g] > 0 ? mean[g][k] / n[g] : NAN;
  }
  return s->stat(mean[0], mean[1], s->layers);
}

int chii_boot_curves(chi_est *out, const chi_clusters *c, const double *x, const uint8_t *group, int width, int layers,
                     chii_curve_stat stat, const chi_boot_opts *o, chi_err *err) {
  int rc = 0, n_items = 0;
  curves s = {.width = width, .layers = layers, .stat = stat};
  size_t W = (size_t)width;
  int32_t *at = chi_calloc((size_t)c->n + 1, sizeof *at, err); /* clusters without a value do not take part */
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  CHI_TRY(at && width <= kMaxWidth ? 0 : chi_fail(err, CHI_ERR_ARG, "a curve of %d values is too long", width));
  for (int pass = 0; pass < 2; pass++) {
    for (int32_t i = 0; i < c->n_items; i++) {
      bool whole = true;
      for (size_t k = 0; k < W; k++) whole = whole && !isnan(x[(size_t)i * W + k]);
      if (!whole) continue;
      int32_t *k = &at[c->of[i]];
      if (pass == 0) {
        n_items++;
        if (*k == 0) *k = ++s.n;
        continue;
      }
      size_t row = (size_t)(group ? group[i] : 0) * (size_t)s.n + (size_t)(*k - 1);
      s.count[row]++;
      for (size_t l = 0; l < W; l++) s.sum[row * W + l] += x[(size_t)i * W + l];
    }
    if (pass == 1) break;
    s.sum = chi_calloc(2 * (size_t)s.n + 1, W * sizeof *s.sum, err);
    s.count = chi_calloc(2 * (size_t)s.n + 1, sizeof *s.count, err);
    CHI_TRY(s.sum && s.count ? 0 : CHI_ERR_MEMORY);
  }
  CHI_TRY(chi_boot(out, s.n, curve_value, &s, o, NULL, err));
  out->n = n_items;
out:
  chi_free(at);
  chi_free(s.sum);
  chi_free(s.count);
  return rc;
}

/* ---- maps ------------------------------------------------------------------------------------------------ */
int chii_maps_load(chii_maps *m, chii_study *s, const chii_view *v, const char *ask, const char *corrupt,
                   chi_err *err) {
  static const char *const kSite[] = {"mlp", "attn"};
  int rc = 0;
  const json_t *windows = json_object_get(s->settings, "windows");
  *m = (chii_maps){.v = v};
  for (int k = 0; k < 2 && v->cl.n_items; k++)
    for (size_t w = 0; w < json_array_size(windows) && w < CHI_STUDY_LIST; w++) {
      chii_map *p = &m->map[m->n];
      int window = (int)json_integer_value(json_array_get(windows, w));
      memset(p, 0, sizeof *p);
      snprintf(p->site, sizeof p->site, "%s", kSite[k]);
      p->window = window;
      CHI_TRY(chii_matrix_of(&p->own, s, v, err, "trace/%s/%s/%s/w%d/own/p", ask, corrupt, kSite[k], window));
      if (!p->own.size || !p->own.n || p->own.ndim != 2 || p->own.dim[1] != CHI_STUDY_ROLES) {
        chii_matrix_free(&p->own);
        continue;
      }
      m->n++;
      p->layers = p->own.dim[0];
      CHI_TRY(chii_matrix_of(&p->donor, s, v, err, "trace/%s/%s/%s/w%d/donor/p", ask, corrupt, kSite[k], window));
      if (p->donor.size != p->own.size) chii_matrix_free(&p->donor);
    }
out:
  return rc;
}

void chii_maps_free(chii_maps *m) {
  for (int i = 0; i < m->n; i++) {
    chii_matrix_free(&m->map[i].own);
    chii_matrix_free(&m->map[i].donor);
  }
  m->n = 0;
}

const chii_map *chii_maps_find(const chii_maps *m, const char *site, int window) {
  for (int i = 0; i < m->n; i++)
    if (strcmp(m->map[i].site, site) == 0 && m->map[i].window == window) return &m->map[i];
  return NULL;
}

double chii_map_at(const chii_map *m, bool difference, int32_t item, int64_t layer, int role) {
  size_t k = (size_t)item * m->own.size + (size_t)(layer * CHI_STUDY_ROLES + role);
  if (difference && !m->donor.size) return NAN;
  return difference ? m->own.v[k] - m->donor.v[k] : m->own.v[k];
}

void chii_map_role(double *x, const chii_map *m, bool difference, int32_t n_items, int role) {
  for (int32_t i = 0; i < n_items; i++)
    for (int64_t l = 0; l < m->layers; l++) x[i * m->layers + l] = chii_map_at(m, difference, i, l, role);
}

int chii_maps_test(chii_maps *m, chii_study *s, chi_err *err) {
  int rc = 0;
  size_t cells = 0, at = 0, n = (size_t)m->v->cl.n_items;
  double *x = NULL;
  for (int i = 0; i < m->n; i++) cells += m->map[i].own.size;
  if (cells == 0 || cells > 1 << 20) return 0;
  chi_cell_test *t = chi_arena_array(&s->arena, cells, sizeof *t, err);
  CHI_TRY(t && (x = chi_calloc(n * cells, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < m->n; i++) {
    chii_map *p = &m->map[i];
    for (size_t k = 0; k < n; k++)
      for (size_t c = 0; c < p->own.size; c++)
        x[k * cells + at + c] = p->own.v[k * p->own.size + c] - (p->donor.size ? p->donor.v[k * p->own.size + c] : 0.0);
    p->test = t + at;
    at += p->own.size;
  }
  rc = chi_max_t(t, &m->v->cl, x, (int32_t)cells, &s->boot, err);
out:
  chi_free(x);
  return rc;
}

const char *chii_claim_corruption(const chii_study *s) {
  const json_t *list = json_object_get(s->settings, "corrupt");
  size_t i;
  json_t *v;
  json_array_foreach(list, i, v) if (chi_streq(json_string_value(v), "substitute")) return "substitute";
  return json_string_value(json_array_get(list, 0));
}

/* ---- peaks ----------------------------------------------------------------------------------------------- */
typedef struct peak {
  chi_est layer, height; /* where the mean curve is highest, and the mean there */
  double p;              /* family-wise, of that cell */
} peak;

static int peak_of(peak *out, const chii_maps *m, chii_study *s, const chii_map *p, bool diff, int role, chi_err *err) {
  int rc = 0;
  int32_t n = m->v->cl.n_items;
  double share, *x = chi_calloc((size_t)n * (size_t)(p->layers + 1), sizeof *x, err), *column = x + n * p->layers;
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  chii_map_role(x, p, diff, n, role);
  CHI_TRY(chi_boot_peak(&out->layer, &share, &m->v->cl, x, NULL, (int32_t)p->layers, &s->boot, err));
  out->p = NAN;
  out->height = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  if (isnan(out->layer.value)) goto out;
  int64_t l = (int64_t)out->layer.value;
  for (int32_t i = 0; i < n; i++) column[i] = x[i * p->layers + l];
  CHI_TRY(chi_boot_mean(&out->height, &m->v->cl, column, NULL, &s->boot, err));
  if (p->test && diff == (p->donor.size > 0)) out->p = p->test[l * CHI_STUDY_ROLES + role].p; /* of what was tested */
out:
  chi_free(x);
  return rc;
}

/* A peak counts where its cell is outlined; a small one is none. */
static chii_verdict by_peak(const chii_study *s, const peak *k, double lo, double hi) {
  double alpha = s->opts->alpha > 0 ? s->opts->alpha : 0.05;
  if (!(k->p < alpha)) return k->height.hi < kSmall ? CHII_NOT_FOUND : CHII_UNDECIDED;
  if (k->height.value < kSmall) return CHII_NOT_FOUND;
  return chii_by_range(&k->layer, lo, hi);
}

int chii_claim_peak(chii_claims *c, const char *id, const chii_maps *m, const char *site, int window, bool diff,
                    int role, double lo, double hi, chi_err *err) {
  peak k;
  const chii_map *p = chii_maps_find(m, site, window);
  if (!p || (diff && !p->donor.size)) return 0;
  int rc = peak_of(&k, m, c->s, p, diff, role, err);
  if (rc) return rc;
  return chii_claim_say(c, id, &k.layer, k.height.value, k.p, 0, hi >= lo ? by_peak(c->s, &k, lo, hi) : CHII_NO_VERDICT,
                        err, "layer of the largest mean %s: %s, %s, window %d; %s", diff ? "D" : "E", site,
                        chi_study_role_name[role], window, m->v->title);
}

/* Claims about text: a picture item beside its twins in words (S5, S6: Basu et al. 2024), noise on a subject (R1 to R3:
 * Meng et al. 2022). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/study_claims.h"

static const char *const kSites[] = {"mlp", "attn"};
static const double kSmall = 0.05;

/* ---- S5, S6: twins --------------------------------------------------------------------------------------- */
/* Curves of window 1, then of window 6, of an item and its twin: a[4 l]. */
static double ratio_shift(const double *a, const double *b, int l) {
  double top[4];
  (void)b;
  for (int k = 0; k < 4; k++) {
    top[k] = -INFINITY;
    for (int i = 0; i < l; i++) top[k] = a[k * l + i] > top[k] ? a[k * l + i] : top[k];
  }
  return top[1] > 0 && top[3] > 0 ? top[2] / top[3] - top[0] / top[1] : (double)NAN;
}

static int twin_ratio(chii_claims *c, const char *twin, const chii_maps *a, const chii_maps *b, const char *site,
                      chi_err *err) {
  int rc = 0;
  const chii_map *p[4] = {chii_maps_find(a, site, 1), chii_maps_find(a, site, 6), chii_maps_find(b, site, 1),
                          chii_maps_find(b, site, 6)};
  double *x = NULL;
  chi_est e;
  for (int k = 0; k < 4; k++)
    if (!p[k]) return 0;
  int64_t L = p[0]->layers;
  int32_t n = a->v->cl.n_items;
  CHI_TRY((x = chi_calloc((size_t)n, (size_t)(4 * L) * sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++)
    for (int k = 0; k < 4; k++)
      for (int64_t l = 0; l < L; l++) x[(i * 4 + k) * L + l] = chii_map_at(p[k], false, i, l, CHI_STUDY_END);
  CHI_TRY(chii_boot_curves(&e, &a->v->cl, x, NULL, (int)(4 * L), (int)L, ratio_shift, &c->s->boot, err));
  CHI_TRY(chii_claim_say(
      c, "S6", &e, NAN, NAN, 3, chii_by_side(&e, 0, -1), err,
      "largest mean E in window 1 over that in window 6, twin \xe2\x80\x9c%s\xe2\x80\x9d less item: %s, last word "
      "token",
      twin, site));
out:
  chi_free(x);
  return rc;
}

/* Mean over items of (layer of the item's largest E) - (of the twin's). */
static int twin_shift(chii_claims *c, const char *twin, const chii_maps *a, const chii_maps *b, const char *site,
                      chi_err *err) {
  int rc = 0;
  const chii_map *p[2] = {chii_maps_find(a, site, 1), chii_maps_find(b, site, 1)};
  double *x = NULL;
  chi_est e;
  if (!p[0] || !p[1] || p[0]->layers != p[1]->layers) return 0;
  int32_t n = a->v->cl.n_items;
  CHI_TRY((x = chi_calloc((size_t)n, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) {
    double at[2] = {NAN, NAN}, best[2] = {-INFINITY, -INFINITY};
    for (int k = 0; k < 2; k++)
      for (int64_t l = 0; l < p[k]->layers; l++) {
        double v = chii_map_at(p[k], false, i, l, CHI_STUDY_END);
        if (v > best[k]) best[k] = v, at[k] = (double)l;
      }
    x[i] = at[0] - at[1];
  }
  CHI_TRY(chi_boot_mean(&e, &a->v->cl, x, NULL, &c->s->boot, err));
  CHI_TRY(chii_claim_say(
      c, "S5", &e, NAN, NAN, 2, chii_by_side(&e, 0, -1), err,
      "layer of an item's largest E less that of its twin \xe2\x80\x9c%s\xe2\x80\x9d, mean: %s, last word token, "
      "window 1",
      twin, site));
out:
  chi_free(x);
  return rc;
}

/* Is the twin answered right too? Those that are not leave the view. */
static void right_twins(chii_view *v, const chii_study *s, chii_maps *b, const char *twin) {
  for (int32_t i = 0; i < v->cl.n_items; i++) {
    const json_t *ask = json_object_get(json_object_get(s->item[v->at[i]].info, "ask"), twin);
    if (json_is_true(json_object_get(ask, "right"))) continue;
    for (int k = 0; k < b->n; k++)
      for (size_t l = 0; l < b->map[k].own.size; l++) b->map[k].own.v[(size_t)i * b->map[k].own.size + l] = NAN;
  }
}

int chii_claims_twins(chii_claims *c, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  chii_maps a = {0}, b = {0};
  CHI_TRY(chii_view_of(&v, c->s, "right items", &(chii_which){.right = 1, .brackets = 1}, err));
  CHI_TRY(chii_maps_load(&a, c->s, &v, c->s->ask, chii_claim_corruption(c->s), err));
  for (int t = 0; t < CHI_TWINS; t++) {
    if (strcmp(chi_twin_name[t], c->s->ask) == 0) continue;
    CHI_TRY(chii_maps_load(&b, c->s, &v, chi_twin_name[t], chii_claim_corruption(c->s), err));
    right_twins(&v, c->s, &b, chi_twin_name[t]);
    for (int k = 0; k < 2 && b.n; k++)
      CHI_TRY(chii_claim_peak(c, "S5", &b, kSites[k], 1, false, CHI_STUDY_END, 0, -1, err));
    for (int k = 0; k < 2; k++) CHI_TRY(twin_shift(c, chi_twin_name[t], &a, &b, kSites[k], err));
    for (int k = 0; k < 2; k++) CHI_TRY(twin_ratio(c, chi_twin_name[t], &a, &b, kSites[k], err));
    chii_maps_free(&b);
  }
out:
  chii_maps_free(&a);
  chii_maps_free(&b);
  chi_clusters_free(&v.cl);
  return rc;
}

/* ---- R: noise in text ------------------------------------------------------------------------------------ */
static const int kOthers[] = {CHI_STUDY_FIRST, CHI_STUDY_MIDDLE, CHI_STUDY_SECOND, CHI_STUDY_NEXT, CHI_STUDY_AFTER};
enum { kOther = sizeof kOthers / sizeof *kOthers };

/* Peak of the mean at the last subject token less the largest peak of the other roles: a[(1 + kOther) l]; a role that
 * an item lacks counts as no effect. */
static double subject_less_rest(const double *a, const double *b, int l) {
  double top[1 + kOther], rest = -INFINITY;
  (void)b;
  for (int k = 0; k <= kOther; k++) {
    top[k] = -INFINITY;
    for (int i = 0; i < l; i++) top[k] = a[k * l + i] > top[k] ? a[k * l + i] : top[k];
    if (k && top[k] > rest) rest = top[k];
  }
  return top[0] - rest;
}

static int text_claims(chii_claims *c, const chii_maps *m, chi_err *err) {
  int rc = 0;
  double *x = NULL;
  chi_est e;
  const chii_map *p = NULL;
  const chii_map *late = NULL;
  for (int i = 0; i < m->n; i++) { /* the widest windows */
    const chii_map **at = strcmp(m->map[i].site, "mlp") == 0 ? &p : &late;
    if (!*at || m->map[i].window > (*at)->window) *at = &m->map[i];
  }
  if (late) {
    double L2 = (double)(late->layers / 2 + 1), end = (double)late->layers;
    CHI_TRY(chii_claim_peak(c, "R3", m, "attn", late->window, false, CHI_STUDY_LAST, L2, end, err));
    CHI_TRY(chii_claim_peak(c, "R", m, "attn", late->window, false, CHI_STUDY_END, 0, -1, err));
  }
  if (!p) return 0;
  int64_t L = p->layers, W = (1 + kOther) * L;
  int32_t n = m->v->cl.n_items;
  CHI_TRY(chii_claim_peak(c, "R1", m, "mlp", p->window, false, CHI_STUDY_END, 0, ceil(2.0 * (double)L / 3) - 1, err));
  CHI_TRY((x = chi_calloc((size_t)n, (size_t)W * sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++)
    for (int k = 0; k <= kOther; k++)
      for (int64_t l = 0; l < L; l++) {
        double v = chii_map_at(p, false, i, l, k ? kOthers[k - 1] : CHI_STUDY_END);
        x[i * W + k * L + l] = k && isnan(v) ? 0 : v;
      }
  CHI_TRY(chii_boot_curves(&e, &m->v->cl, x, NULL, (int)W, (int)L, subject_less_rest, &c->s->boot, err));
  CHI_TRY(
      chii_claim_say(c, "R2", &e, NAN, NAN, 3, chii_by_side(&e, 0, 1), err,
                     "peak of mean E at the last subject token less the largest peak of any other: mlp, window %d; %s",
                     p->window, m->v->title));
  CHI_TRY(chii_claim_peak(c, "R", m, "mlp", p->window, false, CHI_STUDY_LAST, 0, -1, err));
out:
  chi_free(x);
  return rc;
}

/* Facts whose p the noise lowers by 0.05 at least, and all. */
int chii_claims_noise(chii_claims *c, chi_err *err) {
  int rc = 0, n = 0;
  chii_view v = {0};
  chii_maps m = {0};
  chii_matrix runs = {0};
  CHI_TRY(chii_view_of(&v, c->s, "all known facts", &(chii_which){.right = 1}, err));
  CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, chii_claim_corruption(c->s), err));
  CHI_TRY(chii_maps_test(&m, c->s, err));
  CHI_TRY(text_claims(c, &m, err));
  CHI_TRY(chii_matrix_of(&runs, c->s, &v, err, "trace/%s/%s/runs", c->s->ask, chii_claim_corruption(c->s)));
  if (runs.size < 2) goto out;
  for (int32_t i = 0; i < v.cl.n_items; i++) {
    if (runs.v[(size_t)i * runs.size] - runs.v[(size_t)i * runs.size + 1] >= kSmall) {
      n++;
      continue;
    }
    for (int k = 0; k < m.n; k++)
      for (size_t l = 0; l < m.map[k].own.size; l++) m.map[k].own.v[(size_t)i * m.map[k].own.size + l] = NAN;
  }
  char title[80];
  snprintf(title, sizeof title, "the %d facts that the noise lowers by 0.05", n);
  v.title = title;
  if (n == v.cl.n_items || n < 5) goto out;
  CHI_TRY(chii_maps_test(&m, c->s, err));
  CHI_TRY(text_claims(c, &m, err));
out:
  chii_matrix_free(&runs);
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  return rc;
}

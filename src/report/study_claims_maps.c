/* Claims about where a fact is kept, from causal maps: S1 to S4, S7 to S9 and S11 (Basu et al. 2024). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/study_claims.h"

static const char *const kSites[] = {"mlp", "attn"};
static const char kOne[] = "fact,two_flags,named_over,scene", kTwo[] = "two_facts,two_scene";
static const double kSmall = 0.05;

/* Published layers 1-4 of 32, read as 0-3 and as 1-4, the wider range: the last layer of ours. */
static int64_t early(int64_t layers) { return (5 * layers + 31) / 32 - 1; }

/* ---- S1 to S4, S7 ------------------------------------------------------------------------------------------ */
static double first_less_rest(const double *a, const double *b, int l) {
  double rest = -INFINITY;
  (void)b;
  for (int k = 1; k < l; k++) rest = a[k] > rest ? a[k] : rest;
  return a[0] - rest;
}

/* Largest mean of the early layers, in one window. */
static int enough(chii_claims *c, const chii_maps *m, const char *site, int window, chi_err *err) {
  int rc = 0;
  const chii_map *p = chii_maps_find(m, site, window);
  int32_t n = m->v->cl.n_items;
  double best = -INFINITY, alpha = c->s->opts->alpha > 0 ? c->s->opts->alpha : 0.05, *x = NULL;
  int64_t at = 0;
  chi_est e;
  if (!p || !p->donor.size) return 0;
  CHI_TRY((x = chi_calloc((size_t)n, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int64_t l = 0; l <= early(p->layers); l++) {
    double sum = 0;
    int32_t k = 0;
    for (int32_t i = 0; i < n; i++) {
      double v = chii_map_at(p, true, i, l, CHI_STUDY_END);
      if (!isnan(v)) sum += v, k++;
    }
    if (k && sum / k > best) best = sum / k, at = l;
  }
  for (int32_t i = 0; i < n; i++) x[i] = chii_map_at(p, true, i, at, CHI_STUDY_END);
  CHI_TRY(chi_boot_mean(&e, &m->v->cl, x, NULL, &c->s->boot, err));
  double fp = p->test ? p->test[at * CHI_STUDY_ROLES + CHI_STUDY_END].p : NAN;
  chii_verdict v = window > 1 ? CHII_NO_VERDICT : chii_by_size(&e);
  if (v == CHII_FOUND && !(fp < alpha)) v = CHII_UNDECIDED;
  CHI_TRY(chii_claim_say(c, "S3", &e, NAN, fp, 3, v, err,
                         "largest mean D of layers 0-%d: %s, last word token, window %d; %s", (int)early(p->layers),
                         site, window, m->v->title));
out:
  chi_free(x);
  return rc;
}

static int first_layer(chii_claims *c, const chii_maps *m, chi_err *err) {
  int rc = 0;
  const chii_map *p = chii_maps_find(m, "mlp", 1);
  double *x = NULL;
  chi_est e;
  if (!p || !p->donor.size) return 0;
  CHI_TRY((x = chi_calloc((size_t)m->v->cl.n_items * (size_t)p->layers, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  chii_map_role(x, p, true, m->v->cl.n_items, CHI_STUDY_END);
  CHI_TRY(chii_boot_curves(&e, &m->v->cl, x, NULL, (int)p->layers, (int)p->layers, first_less_rest, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "S4", &e, NAN, NAN, 3, chii_by_size(&e), err,
                         "mean D of layer 0 less the largest of the others: mlp, last word token, window 1; %s",
                         m->v->title));
out:
  chi_free(x);
  return rc;
}

static int one_bracket(chii_claims *c, const char *forms, bool whole, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  chii_maps m = {0};
  char name[64];
  snprintf(name, sizeof name, "%s", whole ? "one bracket, right" : forms);
  CHI_TRY(chii_view_of(&v, c->s, name, &(chii_which){.forms = forms, .right = 1, .brackets = 1}, err));
  if (v.cl.n < 5) goto out;
  CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, chii_claim_corruption(c->s), err));
  CHI_TRY(chii_maps_test(&m, c->s, err));
  const chii_map *p = chii_maps_find(&m, "mlp", 1);
  double hi = p ? (double)early(p->layers) : -1;
  for (int k = 0; k < 2 && p; k++) {
    const char *id = whole ? k ? "S2" : "S1" : "S7";
    CHI_TRY(chii_claim_peak(c, id, &m, kSites[k], 1, true, CHI_STUDY_END, 0, hi, err));
    CHI_TRY(chii_claim_peak(c, id, &m, kSites[k], 1, false, CHI_STUDY_END, 0, -1, err));
    if (whole) CHI_TRY(chii_claim_peak(c, id, &m, kSites[k], 1, true, CHI_STUDY_LAST, 0, -1, err));
  }
  for (int w = 0; w < 7 && whole; w++)
    for (int k = 0; k < 2; k++) CHI_TRY(enough(c, &m, kSites[k], w, err));
  if (whole) CHI_TRY(first_layer(c, &m, err));
out:
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  return rc;
}

/* The other corruptions of a run, beside the one that the claims stand on. */
static int other_corruptions(chii_claims *c, chi_err *err) {
  static const int kRole[] = {CHI_STUDY_END, CHI_STUDY_LAST};
  int rc = 0;
  size_t i;
  json_t *how;
  chii_view v = {0};
  chii_maps m = {0};
  char title[120] = "";
  CHI_TRY(chii_view_of(&v, c->s, title, &(chii_which){.forms = kOne, .right = 1, .brackets = 1}, err));
  json_array_foreach(json_object_get(c->s->settings, "corrupt"), i, how) {
    if (v.cl.n < 5 || strcmp(json_string_value(how), chii_claim_corruption(c->s)) == 0) continue;
    snprintf(title, sizeof title, "one bracket, right, corruption %.80s", json_string_value(how));
    chii_maps_free(&m);
    CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, json_string_value(how), err));
    CHI_TRY(chii_maps_test(&m, c->s, err));
    for (int k = 0; k < 2; k++)
      for (int r = 0; r < 2; r++)
        for (int diff = 1; diff >= 0; diff--)
          CHI_TRY(chii_claim_peak(c, k ? "S2" : "S1", &m, kSites[k], 1, diff, kRole[r], 0, -1, err));
  }
out:
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  return rc;
}

/* ---- S8, S9: two constraints ----------------------------------------------------------------------------- */
/* Largest outlined mean D of the bracketed words in layers [lo, hi]. */
static int in_layers(chii_claims *c, const chii_maps *m, const char *what, const char *where, double lo, double hi,
                     chii_verdict verdict, chi_err *err) {
  static const int kRole[] = {CHI_STUDY_FIRST, CHI_STUDY_MIDDLE, CHI_STUDY_END, CHI_STUDY_SECOND, CHI_STUDY_WORDS};
  int rc = 0, role = -1;
  double best = -INFINITY, alpha = c->s->opts->alpha > 0 ? c->s->opts->alpha : 0.05, *x = NULL, fp = NAN;
  const chii_map *at = NULL;
  int64_t layer = 0;
  chi_est e;
  for (int i = 0; i < m->n; i++) {
    const chii_map *p = &m->map[i];
    if (p->window != 1 || !p->donor.size || !p->test) continue;
    for (int64_t l = (int64_t)ceil(lo); l < p->layers && (double)l <= hi; l++)
      for (size_t r = 0; r < sizeof kRole / sizeof *kRole; r++) {
        const chi_cell_test *t = &p->test[l * CHI_STUDY_ROLES + kRole[r]];
        if (!(t->p < alpha) || !(t->mean > best)) continue;
        best = t->mean, at = p, layer = l, role = kRole[r], fp = t->p;
      }
  }
  if (!at) {
    chii_claim none = {.id = "S8", .height = NAN, .p_family = NAN, .bare = true};
    none.e = (chi_est){.value = NAN, .lo = NAN, .hi = NAN, .n = m->v->cl.n_items, .clusters = m->v->cl.n};
    none.verdict = verdict ? CHII_NOT_FOUND : CHII_NO_VERDICT;
    snprintf(none.what, sizeof none.what, "%s: no outlined cell of the words in %s", what, where);
    return chii_claim_put(c, &none, err);
  }
  CHI_TRY((x = chi_calloc((size_t)m->v->cl.n_items, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < m->v->cl.n_items; i++) x[i] = chii_map_at(at, true, i, layer, role);
  CHI_TRY(chi_boot_mean(&e, &m->v->cl, x, NULL, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "S8", &e, NAN, fp, 3, verdict ? chii_by_size(&e) : CHII_NO_VERDICT, err,
                         "%s: largest outlined mean D of the words in %s: %s, layer %d, %s", what, where, at->site,
                         (int)layer, chi_study_role_name[role]));
out:
  chi_free(x);
  return rc;
}

static int two_brackets(chii_claims *c, const char *forms, chi_err *err) {
  static const char *const kWhich[] = {"", "@1", "@2"}, *const kWords[] = {"both corrupted", "first alone",
                                                                           "second alone"};
  int rc = 0;
  char name[300], what[200];
  chii_view v = {0};
  chii_maps m = {0};
  CHI_TRY(chii_view_of(&v, c->s, forms, &(chii_which){.forms = forms, .right = 1, .brackets = 2}, err));
  for (int k = 0; k < 3 && v.cl.n >= 5; k++) {
    snprintf(name, sizeof name, "%.200s%s", chii_claim_corruption(c->s), kWhich[k]);
    snprintf(what, sizeof what, "two constraints (%s), %s", forms, kWords[k]);
    chii_maps_free(&m);
    CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, name, err));
    CHI_TRY(chii_maps_test(&m, c->s, err));
    if (!m.n || !m.map[0].donor.size || !chii_maps_find(&m, "mlp", 1)) continue;
    double L = (double)m.map[0].layers;
    chii_verdict verdict = k == 0 ? CHII_UNDECIDED : CHII_NO_VERDICT;
    CHI_TRY(in_layers(c, &m, what, "layers 0 to L/4", 0, L / 4, verdict, err));
    CHI_TRY(in_layers(c, &m, what, "layers L/3 to 2L/3", L / 3, 2 * L / 3, verdict, err));
  }
out:
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  return rc;
}

static double second_less_first(const double *a, const double *b, int l) {
  (void)l;
  return b[0] - a[0];
}

/* 1 where the largest D of the words reaches 0.05 in the window, 0 where it does not. */
static double reaches(const chii_map *p, int32_t item) {
  static const int kRole[] = {CHI_STUDY_END, CHI_STUDY_SECOND, CHI_STUDY_WORDS};
  double best = NAN;
  for (int64_t l = 0; l < p->layers; l++)
    for (int r = 0; r < 3; r++) {
      double v = chii_map_at(p, true, item, l, kRole[r]);
      if (!(v <= best) && !isnan(v)) best = v;
    }
  return isnan(best) ? (double)NAN : best >= kSmall ? 1 : 0;
}

static int needs_six(chii_claims *c, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  chii_maps m = {0};
  double *x = NULL;
  uint8_t *two = NULL;
  chi_est e;
  CHI_TRY(chii_view_of(&v, c->s, "right items", &(chii_which){.right = 1}, err));
  CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, chii_claim_corruption(c->s), err));
  x = chi_calloc((size_t)v.cl.n_items, sizeof *x, err);
  two = chi_calloc((size_t)v.cl.n_items, sizeof *two, err);
  CHI_TRY(x && two ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < 2; k++) {
    const chii_map *wide = chii_maps_find(&m, kSites[k], 6);
    int counts[2] = {0};
    if (!wide || !wide->donor.size || !chii_maps_find(&m, kSites[k], 1)) continue;
    for (int32_t i = 0; i < v.cl.n_items; i++) {
      const json_t *info = c->s->item[v.at[i]].info;
      two[i] = json_integer_value(json_object_get(info, "brackets")) > 1;
      counts[two[i]]++;
      x[i] = reaches(wide, i);
      for (int w = 1; w < 6; w++) {
        const chii_map *p = chii_maps_find(&m, kSites[k], w);
        if (p && reaches(p, i) > 0) x[i] = 0;
      }
    }
    if (!counts[0] || !counts[1]) continue;
    CHI_TRY(chii_boot_curves(&e, &v.cl, x, two, 1, 1, second_less_first, &c->s->boot, err));
    CHI_TRY(chii_claim_say(
        c, "S9", &e, NAN, NAN, 3, chii_by_side(&e, 0, 1), err,
        "share of items whose largest D reaches 0.05 in windows of 6 only, two constraints less one: %s, words",
        kSites[k]));
  }
out:
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  chi_free(x);
  chi_free(two);
  return rc;
}

/* ---- S11 ------------------------------------------------------------------------------------------------- */
static double peak_less_peak(const double *a, const double *b, int l) {
  int x = 0, y = 0;
  if (isnan(a[0]) || isnan(b[0])) return NAN;
  for (int k = 1; k < l; k++) {
    if (a[k] > a[x]) x = k;
    if (b[k] > b[y]) y = k;
  }
  return y - x;
}

static int same_place(chii_claims *c, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  chii_maps m = {0};
  double *x = NULL;
  uint8_t *b = NULL;
  chi_est e;
  CHI_TRY(chii_view_of(&v, c->s, "facts of A and B",
                       &(chii_which){.forms = "fact", .entity_group = "A,B", .right = 1, .brackets = 1}, err));
  CHI_TRY(chii_maps_load(&m, c->s, &v, c->s->ask, chii_claim_corruption(c->s), err));
  for (int k = 0; k < 2; k++) {
    const chii_map *p = chii_maps_find(&m, kSites[k], 1);
    int counts[2] = {0};
    if (!p || !p->donor.size) continue;
    chi_free(x);
    chi_free(b);
    x = chi_calloc((size_t)v.cl.n_items * (size_t)p->layers, sizeof *x, err);
    b = chi_calloc((size_t)v.cl.n_items, sizeof *b, err);
    CHI_TRY(x && b ? 0 : CHI_ERR_MEMORY);
    for (int32_t i = 0; i < v.cl.n_items; i++) {
      const json_t *group = json_object_get(c->s->item[v.at[i]].info, "entity_group");
      counts[b[i] = chi_streq(json_string_value(group), "B")]++;
    }
    if (!counts[0] || !counts[1]) continue;
    chii_map_role(x, p, true, v.cl.n_items, CHI_STUDY_END);
    CHI_TRY(chii_boot_curves(&e, &v.cl, x, b, (int)p->layers, (int)p->layers, peak_less_peak, &c->s->boot, err));
    CHI_TRY(chii_claim_say(c, "S11", &e, NAN, NAN, 0, chii_by_range(&e, -1, 1), err,
                           "layer of the largest mean D in group B less that in group A: %s, last word token, window 1",
                           kSites[k]));
  }
out:
  chii_maps_free(&m);
  chi_clusters_free(&v.cl);
  chi_free(x);
  chi_free(b);
  return rc;
}

int chii_claims_maps(chii_claims *c, chi_err *err) {
  static const char *const kForm[] = {"fact", "two_flags", "named_over", "scene"};
  static const char *const kPair[] = {"two_facts", "two_scene"};
  int rc = 0;
  const char *how = chii_claim_corruption(c->s);
  if (!how || !chii_has_kind(c->s, "trace/")) return 0;
  if (strncmp(how, "noise", 5) == 0) return chii_claims_noise(c, err);
  if (!chii_has_kind(c->s, "trace/item/substitute/")) return 0;
  CHI_TRY(one_bracket(c, kOne, true, err));
  CHI_TRY(other_corruptions(c, err));
  for (int k = 0; k < 4; k++) CHI_TRY(one_bracket(c, kForm[k], false, err));
  CHI_TRY(chii_claims_twins(c, err));
  CHI_TRY(two_brackets(c, kTwo, err));
  for (int k = 0; k < 2; k++) CHI_TRY(two_brackets(c, kPair[k], err));
  CHI_TRY(needs_six(c, err));
  CHI_TRY(same_place(c, err));
out:
  return rc;
}

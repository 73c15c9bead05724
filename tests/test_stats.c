/* Statistics: against scikit-learn and SciPy (tools/ref/stats_ref.py), brute force, and what holds in simulations. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/logistic.h"
#include "file/file.h"
#include "support/support.h"

static json_t *ref;
enum { MAX = 200 };
static double rx[MAX * 16];
static bool ry[MAX];
static chi_clusters rc_clusters;

static double num(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }
static double at(const json_t *a, size_t i) { return json_number_value(json_array_get(a, i)); }

static int open_reference(void **state) {
  (void)state;
  assert_works(chi_json_load(&ref, "tests/fixtures/stats/reference.json", 1 << 20, err));
  const json_t *x = json_object_get(ref, "x");
  static char name[MAX][8];
  const char *names[MAX];
  for (size_t i = 0; i < json_array_size(x); i++) {
    for (size_t k = 0; k < 10; k++) rx[i * 10 + k] = at(json_array_get(x, i), k);
    ry[i] = at(json_object_get(ref, "y"), i) > 0;
    snprintf(name[i], sizeof name[i], "e%d", (int)at(json_object_get(ref, "cluster"), i));
    names[i] = name[i];
  }
  assert_works(chi_clusters_make(&rc_clusters, names, (int32_t)json_array_size(x), err));
  assert_int_equal(rc_clusters.n, 16);
  return 0;
}

static int close_reference(void **state) {
  (void)state;
  json_decref(ref);
  chi_clusters_free(&rc_clusters);
  return 0;
}

/* n items in clusters of `per`. */
static chi_clusters even(int32_t n, int32_t per) {
  chi_clusters c = {.of = chi_calloc((size_t)n, sizeof *c.of, NULL), .n_items = n};
  for (int32_t i = 0; i < n; i++) c.of[i] = i / per;
  c.n = (n + per - 1) / per;
  return c;
}

static void near(double a, double b, double tol) {
  if (!(fabs(a - b) <= tol)) fail_msg("%.12g, not %.12g", a, b);
}

static void test_clusters(void **state) {
  (void)state;
  static const char *const kName[] = {"b", "", "a", "b", "", "a", NULL};
  static const int32_t kWant[] = {0, 1, 2, 0, 3, 2, 4};
  chi_clusters c;
  assert_works(chi_clusters_make(&c, kName, 7, err));
  assert_int_equal(c.n, 5);
  for (int i = 0; i < 7; i++) assert_int_equal(c.of[i], kWant[i]);
  chi_clusters_free(&c);
}

/* ---- reference numbers ------------------------------------------------------------------------------------- */
static void check_fit(const json_t *want, double l1, double l2) {
  int32_t rows[80];
  chi_logit m;
  for (int i = 0; i < 80; i++) rows[i] = i;
  assert_works(chi_logit_fit(&m, rx, ry, 10, rows, 80, l1, l2, err));
  for (size_t k = 0; k < 10; k++) near(m.w[k], at(json_object_get(want, "w"), k), 2e-6);
  near(m.b, num(want, "b"), 2e-6);
  chi_logit_free(&m);
}

static void test_unit_entity(void **state) {
  (void)state;
  chi_arena a = {0};
  const char *const kCases[][2] = {{"heart=red|color", "heart=red"},
                                   {"red=heart|shape", "heart=red"},
                                   {"Peru|capital", "Peru"},
                                   {"heart", "heart"},
                                   {"", ""},
                                   {"star=st|x", "st=star"},
                                   {"st=star|x", "st=star"},
                                   {"Peru|a=b", "Peru"}};
  for (size_t i = 0; i < sizeof kCases / sizeof *kCases; i++)
    assert_string_equal(chi_unit_entity(&a, kCases[i][0], NULL), kCases[i][1]);
  chi_arena_free(&a);
}

static void test_logistic_reference(void **state) {
  (void)state;
  size_t i;
  json_t *v;
  json_array_foreach(json_object_get(ref, "l1"), i, v) check_fit(v, num(v, "l1"), 0);
  json_array_foreach(json_object_get(ref, "l2"), i, v) check_fit(v, 0, num(v, "l2"));
}

static void test_rank_reference(void **state) {
  (void)state;
  double score[80], second[80];
  chi_est e;
  chi_boot_opts o = {.draws = 50};
  for (size_t i = 0; i < 80; i++) {
    score[i] = at(json_object_get(ref, "score"), i);
    second[i] = rx[i * 10 + 2];
  }
  assert_works(chi_auroc(&e, &rc_clusters, score, NULL, ry, &o, err));
  near(e.value, num(ref, "auroc"), 1e-12);
  assert_int_equal(e.n, 80);
  assert_works(chi_spearman(&e, &rc_clusters, score, second, &o, err));
  near(e.value, num(ref, "spearman"), 1e-12);
}

static void test_t_reference(void **state) {
  (void)state;
  chi_cell_test cell[10];
  assert_works(chi_max_t(cell, &rc_clusters, rx, 10, &(chi_boot_opts){.draws = 20000}, err));
  for (size_t k = 0; k < 10; k++) {
    near(cell[k].t, at(json_object_get(ref, "t"), k), 1e-10);
    /* Sign flips and Student's t agree on data like these, not exactly. */
    near(cell[k].p_cell, at(json_object_get(ref, "p"), k), 0.03);
    assert_true(cell[k].p >= cell[k].p_cell);
  }
}

static void test_ridge_reference(void **state) {
  (void)state;
  const json_t *want = json_object_get(json_object_get(ref, "ridge"), "predicted");
  float x[800];
  int32_t label[80], got[80];
  const char *half[80];
  chi_clusters c;
  for (size_t i = 0; i < 800; i++) x[i] = (float)rx[i];
  for (size_t i = 0; i < 80; i++) {
    label[i] = (int32_t)at(json_object_get(ref, "label"), i);
    half[i] = at(json_object_get(ref, "cluster"), i) < 12 ? "train" : "test";
  }
  assert_works(chi_clusters_make(&c, half, 80, err));
  assert_works(chi_ridge_out_of_fold(got, &c, x, label, 10, 3, 2, 0.1, 5, err));
  for (size_t i = 0, k = 0; i < 80; i++)
    if (half[i][1] == 'e') assert_int_equal(got[i], (int)at(want, k++));
  label[0] = -1;
  x[15] = NAN;
  assert_works(chi_ridge_out_of_fold(got, &c, x, label, 10, 3, 2, 0.1, 5, err));
  assert_int_equal(got[0], -1);
  assert_int_equal(got[1], -1);
  chi_clusters_free(&c);
}

/* ---- bootstrap --------------------------------------------------------------------------------------------- */
/* Four clusters have 256 equally likely draws: the interval is that of the exact distribution. */
static void test_bootstrap_exact(void **state) {
  (void)state;
  static const double kSum[4] = {1, 10, 4, -3};
  static const int kCount[4] = {1, 3, 2, 1};
  double x[7], exact[256];
  chi_clusters c = {.of = (int32_t[]){0, 1, 1, 1, 2, 2, 3}, .n_items = 7, .n = 4};
  for (int i = 0; i < 7; i++) x[i] = kSum[c.of[i]] / kCount[c.of[i]] + (i == 1 ? 1 : i == 2 ? -1 : 0);
  for (int d = 0; d < 256; d++) {
    double s = 0, n = 0;
    for (int k = 0; k < 4; k++) {
      s += kSum[d >> (2 * k) & 3];
      n += kCount[d >> (2 * k) & 3];
    }
    exact[d] = s / n;
  }
  for (int i = 1; i < 256; i++)
    for (int k = i; k > 0 && exact[k] < exact[k - 1]; k--) {
      double t = exact[k];
      exact[k] = exact[k - 1];
      exact[k - 1] = t;
    }
  chi_est e;
  assert_works(chi_boot_mean(&e, &c, x, NULL, &(chi_boot_opts){.draws = 40000, .level = 0.6}, err));
  near(e.value, 12.0 / 7, 1e-12);
  near(e.lo, chi_quantile(exact, 256, 0.2), 0.06);
  near(e.hi, chi_quantile(exact, 256, 0.8), 0.06);
  assert_int_equal(e.n, 7);
  assert_int_equal(e.clusters, 4);
  assert_int_equal(e.draws, 40000);
}

/* Field by field: the bytes between them have no value. */
static void same_est(const chi_est *a, const chi_est *b) {
  assert_memory_equal(&a->value, &b->value, sizeof a->value);
  assert_memory_equal(&a->lo, &b->lo, sizeof a->lo);
  assert_memory_equal(&a->hi, &b->hi, sizeof a->hi);
  assert_int_equal(a->n, b->n);
  assert_int_equal(a->clusters, b->clusters);
  assert_int_equal(a->draws, b->draws);
}
static void same_cell(const chi_cell_test *a, const chi_cell_test *b) {
  assert_memory_equal(&a->mean, &b->mean, sizeof a->mean);
  assert_memory_equal(&a->t, &b->t, sizeof a->t);
  assert_memory_equal(&a->p, &b->p, sizeof a->p);
  assert_memory_equal(&a->p_cell, &b->p_cell, sizeof a->p_cell);
  assert_int_equal(a->clusters, b->clusters);
}

static void test_bootstrap_rules(void **state) {
  (void)state;
  double a[60], b[60], d[60];
  chi_est e, f, g;
  chi_clusters c = even(60, 4);
  for (uint32_t i = 0; i < 60; i++) {
    a[i] = (double)chi_rng_normal(3, 0, i, 0);
    b[i] = (double)chi_rng_normal(3, 1, i, 0);
    if (i % 7 == 0) b[i] = NAN;
    d[i] = a[i] - b[i];
  }
  chi_boot_opts o = {.seed = 9};
  assert_works(chi_boot_mean(&e, &c, a, b, &o, err)); /* paired is the mean of differences; NaN is left out */
  assert_works(chi_boot_mean(&f, &c, d, NULL, &o, err));
  same_est(&e, &f);
  assert_int_equal(e.n, 51);
  assert_int_equal(e.draws, 10000);
  int threads = chi_threads();
  chi_set_threads(threads == 1 ? 2 : 1);
  assert_works(chi_boot_mean(&g, &c, d, NULL, &o, err));
  chi_set_threads(threads);
  same_est(&e, &g);
  o.seed = 10;
  assert_works(chi_boot_mean(&g, &c, d, NULL, &o, err));
  assert_true(g.lo < e.lo || g.lo > e.lo);
  for (int i = 0; i < 60; i++) b[i] = 2;
  assert_works(chi_boot_ratio(&f, &c, a, b, &o, err));
  assert_works(chi_boot_mean(&g, &c, a, NULL, &o, err));
  near(f.value, g.value / 2, 1e-12);
  near(f.hi, g.hi / 2, 1e-12);
  c.n_items = 3; /* one cluster: a value without an interval */
  c.n = 1;
  assert_works(chi_boot_mean(&e, &c, a, NULL, &o, err));
  assert_true(isfinite(e.value) && isnan(e.lo) && isnan(e.hi));
  c.n_items = 0;
  c.n = 0;
  assert_works(chi_boot_mean(&e, &c, a, NULL, &o, err));
  assert_true(isnan(e.value));
  assert_fails(chi_boot_mean(&e, &(chi_clusters){c.of, 3, 1}, a, NULL, &(chi_boot_opts){.draws = -1}, err), CHI_ERR_ARG,
               "-1 draws");
  chi_clusters_free(&c);
}

/* Items of a cluster that agree are one observation: the interval does not shrink with repeats and covers. */
static void test_bootstrap_covers(void **state) {
  (void)state;
  int covered = 0, narrow = 0;
  double x[160];
  chi_clusters c = even(160, 4), none = even(160, 1);
  for (uint32_t sim = 0; sim < 200; sim++) {
    chi_est e, f;
    for (uint32_t i = 0; i < 160; i++)
      x[i] = (double)chi_rng_normal(sim, 0, i / 4, 0) + 0.1 * (double)chi_rng_normal(sim, 1, i, 0);
    chi_boot_opts o = {.draws = 400, .seed = sim};
    assert_works(chi_boot_mean(&e, &c, x, NULL, &o, err));
    assert_works(chi_boot_mean(&f, &none, x, NULL, &o, err));
    covered += e.lo <= 0 && e.hi >= 0;
    narrow += f.lo <= 0 && f.hi >= 0;
  }
  assert_in_range(covered, 176, 200); /* 95 %, somewhat less with 40 clusters */
  assert_true(narrow < 160);          /* items as units would claim far too much */
  chi_clusters_free(&c);
  chi_clusters_free(&none);
}

static void test_peak(void **state) {
  (void)state;
  enum { L = 8, N = 40 };
  double x[N * L], y[N * L], share;
  chi_est e;
  chi_clusters c = even(N, 2);
  for (uint32_t i = 0; i < N; i++)
    for (uint32_t l = 0; l < L; l++) {
      x[i * L + l] = (l == 5) + 0.3 * (double)chi_rng_normal(1, 0, i, l);
      y[i * L + l] = (l == 2) + 0.3 * (double)chi_rng_normal(1, 1, i, l);
    }
  assert_works(chi_boot_peak(&e, &share, &c, x, NULL, L, NULL, err));
  near(e.value, 5, 0);
  near(e.lo, 5, 0);
  near(share, 1, 0);
  assert_works(chi_boot_peak(&e, &share, &c, x, y, L, NULL, err));
  near(e.value, 3, 0);
  near(share, 1, 0);
  x[3] = NAN; /* the item is left out of both */
  assert_works(chi_boot_peak(&e, &share, &c, x, x, L, NULL, err));
  near(e.value, 0, 0);
  near(share, 1, 0);
  assert_int_equal(e.n, N - 1);
  for (int i = 0; i < N * L; i++) y[i] = (double)chi_rng_normal(2, 0, (uint32_t)i, 0); /* no peak: a wide interval */
  assert_works(chi_boot_peak(&e, &share, &c, y, NULL, L, NULL, err));
  assert_true(e.hi - e.lo >= 2 && share < 0.95);
  chi_clusters_free(&c);
}

/* ---- max-T ------------------------------------------------------------------------------------------------- */
enum { CELLS = 5, K = 8 };
static double plain_t(const double *v, int n) {
  double mean = 0, var = 0;
  for (int i = 0; i < n; i++) mean += v[i] / n;
  for (int i = 0; i < n; i++) var += (v[i] - mean) * (v[i] - mean) / (n - 1);
  return n < 2 ? 0 : fabs(mean) / sqrt(var / n);
}

static void test_max_t_brute_force(void **state) {
  (void)state;
  double x[2 * K * CELLS], y[K][CELLS], flipped[K];
  chi_cell_test got[CELLS];
  chi_clusters c = even(2 * K, 2);
  for (uint32_t i = 0; i < 2 * K; i++)
    for (uint32_t k = 0; k < CELLS; k++) {
      x[i * CELLS + k] = (double)chi_rng_normal(4, 0, i, k) + (k == 1 ? 1.5 : 0);
      if (k == 3 && i < 4) x[i * CELLS + k] = NAN;  /* two clusters without a value, */
      if (k == 2 && i == 6) x[i * CELLS + k] = NAN; /* one with a single item */
    }
  for (int e = 0; e < K; e++)
    for (int k = 0; k < CELLS; k++) {
      double a = x[2 * e * CELLS + k], b = x[(2 * e + 1) * CELLS + k];
      y[e][k] = isnan(a) ? b : isnan(b) ? a : (a + b) / 2;
    }
  assert_works(chi_max_t(got, &c, x, CELLS, NULL, err));
  double seen[CELLS];
  int above[CELLS] = {0}, alone[CELLS] = {0};
  for (int d = 0; d < 1 << K; d++) {
    double t[CELLS], max = 0;
    for (int k = 0; k < CELLS; k++) {
      int n = 0;
      for (int e = 0; e < K; e++)
        if (!isnan(y[e][k])) flipped[n++] = d >> e & 1 ? -y[e][k] : y[e][k];
      t[k] = plain_t(flipped, n);
      if (d == 0) seen[k] = t[k];
      if (t[k] > max) max = t[k];
    }
    for (int k = 0; k < CELLS; k++) {
      above[k] += max >= seen[k] - 1e-9;
      alone[k] += t[k] >= seen[k] - 1e-9;
    }
  }
  for (int k = 0; k < CELLS; k++) {
    near(fabs(got[k].t), seen[k], 1e-9);
    near(got[k].p, above[k] / 256.0, 1e-12);
    near(got[k].p_cell, alone[k] / 256.0, 1e-12);
    assert_int_equal(got[k].clusters, k == 3 ? 6 : 8);
  }
  assert_true(got[1].p < 0.05 && got[1].mean > 1);
  chi_clusters_free(&c);
}

static void test_max_t_random_flips(void **state) {
  (void)state;
  double x[12 * CELLS];
  chi_cell_test all[CELLS], some[CELLS], again[CELLS];
  chi_clusters c = even(12, 1);
  for (uint32_t i = 0; i < 12 * CELLS; i++) x[i] = (double)chi_rng_normal(5, 0, i, 0) + 0.5;
  assert_works(chi_max_t(all, &c, x, CELLS, &(chi_boot_opts){.draws = 4096}, err));
  assert_works(chi_max_t(some, &c, x, CELLS, &(chi_boot_opts){.draws = 4095}, err));
  int threads = chi_threads();
  chi_set_threads(threads == 1 ? 2 : 1);
  assert_works(chi_max_t(again, &c, x, CELLS, &(chi_boot_opts){.draws = 4095}, err));
  chi_set_threads(threads);
  for (size_t i = 0; i < sizeof some / sizeof *some; i++) same_cell(&some[i], &again[i]);
  for (int k = 0; k < CELLS; k++) {
    near(some[k].p, all[k].p, 0.03);
    near(some[k].p_cell, all[k].p_cell, 0.03);
  }
  for (int i = 0; i < 12; i++) x[i * CELLS] = 1, x[i * CELLS + 1] = 0; /* all equal; nothing at all */
  assert_works(chi_max_t(all, &c, x, CELLS, &(chi_boot_opts){.draws = 4096}, err));
  near(all[0].p, 2.0 / 4096, 1e-12);
  near(all[1].p, 1, 0);
  chi_clusters_free(&c);
  c = even(12, 12);
  assert_works(chi_max_t(all, &c, x, CELLS, NULL, err));
  assert_true(isnan(all[0].p)); /* one cluster says nothing */
  chi_clusters_free(&c);
}

/* With nothing there, one map in twenty has a cell with p < 0.05; cell by cell it would be nearly every map. */
static void test_max_t_family(void **state) {
  (void)state;
  enum { SIMS = 300, W = 20, N = 10 };
  int family = 0, single = 0;
  double x[N * W];
  chi_cell_test cell[W];
  chi_clusters c = even(N, 1);
  for (uint32_t sim = 0; sim < SIMS; sim++) {
    bool any = false, one = false;
    for (uint32_t i = 0; i < N * W; i++) x[i] = (double)chi_rng_normal(sim, 7, i, 0);
    assert_works(chi_max_t(cell, &c, x, W, &(chi_boot_opts){.draws = 1024}, err));
    for (int k = 0; k < W; k++) {
      any = any || cell[k].p < 0.05;
      one = one || cell[k].p_cell < 0.05;
    }
    family += any;
    single += one;
  }
  assert_in_range(family, 4, 28); /* 15 expected */
  assert_true(single > 150);
  chi_clusters_free(&c);
}

static void test_holm(void **state) {
  (void)state;
  double p[] = {0.01, 0.04, NAN, 0.03, 0.005}, q[5];
  assert_works(chi_holm(q, p, 5, err));
  near(q[0], 0.03, 1e-15);
  near(q[1], 0.06, 1e-15);
  assert_true(isnan(q[2]));
  near(q[3], 0.06, 1e-15);
  near(q[4], 0.02, 1e-15);
  assert_works(chi_holm(p, p, 5, err));
  near(p[1], 0.06, 1e-15);
  double big[] = {0.9, 0.8};
  assert_works(chi_holm(big, big, 2, err));
  near(big[0], 1, 0);
}

/* ---- ranks ------------------------------------------------------------------------------------------------- */
typedef struct brute {
  const chi_clusters *c;
  const double *a, *b;
  const bool *y;
} brute;

static double brute_auroc_of(const brute *u, const double *s, const int32_t *times) {
  double won = 0, pairs = 0;
  for (int i = 0; i < u->c->n_items; i++)
    for (int k = 0; k < u->c->n_items; k++) {
      if (!u->y[i] || u->y[k]) continue;
      double w = (double)times[u->c->of[i]] * times[u->c->of[k]];
      pairs += w;
      won += w * (s[i] > s[k] ? 1 : s[i] < s[k] ? 0 : 0.5);
    }
  return pairs > 0 ? won / pairs : NAN;
}
static double brute_auroc(const void *ud, const int32_t *times) {
  const brute *u = ud;
  return brute_auroc_of(u, u->a, times) - (u->b ? brute_auroc_of(u, u->b, times) : 0);
}

/* Ranks by counting, in the sample with repeats. */
static double brute_spearman(const void *ud, const int32_t *times) {
  const brute *u = ud;
  double ra[MAX], rb[MAX], w[MAX], n = 0, ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
  for (int i = 0; i < u->c->n_items; i++) {
    w[i] = times[u->c->of[i]];
    ra[i] = rb[i] = 0.5;
    for (int k = 0; k < u->c->n_items; k++) {
      double t = times[u->c->of[k]];
      ra[i] += t * (u->a[k] < u->a[i] ? 1 : u->a[k] > u->a[i] ? 0 : 0.5);
      rb[i] += t * (u->b[k] < u->b[i] ? 1 : u->b[k] > u->b[i] ? 0 : 0.5);
    }
    n += w[i];
    ma += w[i] * ra[i];
    mb += w[i] * rb[i];
  }
  for (int i = 0; i < u->c->n_items; i++) {
    double x = ra[i] - ma / n, y = rb[i] - mb / n;
    aa += w[i] * x * x;
    bb += w[i] * y * y;
    ab += w[i] * x * y;
  }
  return ab / sqrt(aa * bb);
}

static void test_ranks_brute_force(void **state) {
  (void)state;
  enum { N = 60 };
  double a[N + 2], b[N + 2];
  bool y[N + 2];
  chi_clusters c = even(N, 3), with = even(N + 2, 3);
  for (uint32_t i = 0; i < N; i++) {
    y[i] = chi_rng_u32(6, 0, i, 0) % 3 == 0;
    a[i] = round(2 * (double)chi_rng_normal(6, 1, i, 0) + 2 * y[i]) / 2; /* ties */
    b[i] = round(2 * (double)chi_rng_normal(6, 2, i, 0) + y[i]) / 2;
  }
  for (int i = N; i < N + 2; i++) a[i] = NAN, b[i] = 1, y[i] = true; /* items without a score change nothing */
  chi_boot_opts o = {.draws = 300, .seed = 4};
  brute u = {&c, a, NULL, y};
  chi_est e, f;
  assert_works(chi_boot(&f, c.n, brute_auroc, &u, &o, NULL, err));
  assert_works(chi_auroc(&e, &with, a, NULL, y, &o, err));
  near(e.value, f.value, 1e-12);
  near(e.lo, f.lo, 1e-12);
  near(e.hi, f.hi, 1e-12);
  assert_int_equal(e.n, N);
  u.b = b;
  assert_works(chi_boot(&f, c.n, brute_auroc, &u, &o, NULL, err));
  assert_works(chi_auroc(&e, &with, a, b, y, &o, err));
  near(e.value, f.value, 1e-12);
  near(e.hi, f.hi, 1e-12);
  assert_works(chi_boot(&f, c.n, brute_spearman, &u, &o, NULL, err));
  assert_works(chi_spearman(&e, &with, a, b, &o, err));
  near(e.value, f.value, 1e-12);
  near(e.lo, f.lo, 1e-12);
  near(e.hi, f.hi, 1e-12);
  for (int i = 0; i < N; i++) y[i] = true;
  assert_works(chi_auroc(&e, &c, a, NULL, y, &o, err));
  assert_true(isnan(e.value) && isnan(e.lo));
  assert_int_equal(e.draws, 0);
  chi_clusters_free(&c);
  chi_clusters_free(&with);
}

/* ---- probes ------------------------------------------------------------------------------------------------ */
/* What is known about every optimum: |gradient| <= l1 where w = 0, and = l1 against the sign of w elsewhere. */
static void test_logistic_optimum(void **state) {
  (void)state;
  enum { N = 150, P = 60 };
  double *x = chi_calloc(N * P, sizeof *x, NULL), l1;
  bool y[N];
  int32_t rows[N];
  chi_logit m;
  for (uint32_t i = 0; i < N; i++) {
    rows[i] = (int32_t)i;
    for (uint32_t j = 0; j < P; j++)
      x[i * P + j] = (double)chi_rng_normal(8, 0, i, j) + 2 * (double)chi_rng_normal(8, 1, i, j / 6);
    y[i] = x[i * P] + x[i * P + 30] + 2 * (double)chi_rng_normal(8, 2, i, 0) > 0;
    x[i * P + 7] = 3; /* a constant feature */
  }
  assert_works(chi_logit_l1_max(&l1, x, y, P, rows, N, err));
  for (int k = 0; k < 4; k++) {
    int used = 0;
    double l = l1 * (k == 0 ? 1.0001 : pow(0.2, k));
    assert_works(chi_logit_fit(&m, x, y, P, rows, N, l, 0, err));
    for (int j = 0; j < P; j++) {
      double g = 0;
      for (int i = 0; i < N; i++)
        g += (1 / (1 + exp(-chi_logit_score(&m, x + i * P))) - y[i]) * (x[i * P + j] - m.mean[j]) / N;
      if (m.sd[j] > 0) g /= m.sd[j];
      used += fabs(m.w[j]) > 0;
      if (fabs(m.w[j]) > 0)
        near(g, m.w[j] > 0 ? -l : l, 1e-7);
      else
        assert_true(fabs(g) <= l + 1e-7 || j == 7);
    }
    assert_true(fabs(m.w[7]) <= 0);
    if (k == 0) assert_int_equal(used, 0);
    if (k == 1) assert_in_range(used, 1, 30);
    chi_logit_free(&m);
  }
  for (int i = 0; i < N; i++) y[i] = true;
  assert_fails(chi_logit_fit(&m, x, y, P, rows, N, 0.1, 0, err), CHI_ERR_ARG, "both classes");
  chi_free(x);
}

static void test_out_of_fold(void **state) {
  (void)state;
  enum { N = 200, P = 12, PER = 5 };
  double *x = chi_calloc(N * P, sizeof *x, NULL), score[N], again[N];
  bool y[N];
  chi_clusters c = even(N, PER), none = even(N, 1);
  chi_logit_fold fold[5];
  chi_est e;
  /* Labels go by cluster, and features only tell the cluster: nothing can be learnt for other entities. */
  for (uint32_t i = 0; i < N; i++) {
    y[i] = chi_rng_u32(9, 0, i / PER, 0) % 2;
    for (uint32_t j = 0; j < P; j++)
      x[i * P + j] = (double)chi_rng_normal(9, 1, i / PER, j) + 0.05 * (double)chi_rng_normal(9, 2, i, j);
  }
  chi_logit_opts o = {.l1 = 0.001, .seed = 1};
  assert_works(chi_logit_out_of_fold(score, NULL, &none, x, y, P, &o, err));
  assert_works(chi_auroc(&e, &c, score, NULL, y, &(chi_boot_opts){.draws = 100}, err));
  double leak = e.value;
  assert_works(chi_logit_out_of_fold(score, NULL, &c, x, y, P, &o, err));
  assert_works(chi_auroc(&e, &c, score, NULL, y, &(chi_boot_opts){.draws = 2000}, err));
  assert_true(leak > 0.8 && e.value < 0.7 && e.lo < 0.5);
  /* One feature that counts: found, and most others are left out. */
  for (uint32_t i = 0; i < N; i++) y[i] = x[i * P + 4] + 0.4 * (double)chi_rng_normal(9, 3, i, 0) > 0;
  x[3] = NAN;
  o.l1 = 0;
  assert_works(chi_logit_out_of_fold(score, fold, &c, x, y, P, &o, err));
  int threads = chi_threads();
  chi_set_threads(threads == 1 ? 2 : 1);
  assert_works(chi_logit_out_of_fold(again, NULL, &c, x, y, P, &o, err));
  chi_set_threads(threads);
  assert_memory_equal(score, again, sizeof score);
  assert_true(isnan(score[0]));
  assert_works(chi_auroc(&e, &c, score, NULL, y, &(chi_boot_opts){.draws = 100}, err));
  assert_true(e.value > 0.9);
  for (int k = 0; k < 5; k++) assert_true(fold[k].used >= 1 && fold[k].used < P && fold[k].l1 > 0);
  int32_t of[N];
  assert_works(chi_folds(of, &c, 5, 3, err));
  for (int i = 0; i < N; i++) assert_int_equal(of[i], of[i / PER * PER]);
  assert_fails(chi_folds(of, &c, 41, 3, err), CHI_ERR_ARG, "41 folds of 40 clusters");
  chi_clusters_free(&c);
  chi_clusters_free(&none);
  chi_free(x);
}

static void test_risk(void **state) {
  (void)state;
  const double s[] = {5, 1, NAN, 4, 2, 3};
  const bool good[] = {true, false, true, false, true, true};
  near(chi_risk(s, good, 6, 0.4, true, NULL), 0.5, 0);  /* 5, 4 */
  near(chi_risk(s, good, 6, 0.4, false, NULL), 0.5, 0); /* 1, 2 */
  near(chi_risk(s, good, 6, 0.2, false, NULL), 1, 0);
  assert_true(isnan(chi_risk(s, good, 0, 0.2, false, NULL)));
  const double q[] = {1, 2, 4, 8};
  near(chi_quantile(q, 4, 0.5), 3, 0);
  near(chi_quantile(q, 4, 0.9), 6.8, 1e-12); /* numpy.quantile */
  near(chi_quantile(q, 4, 1), 8, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_clusters),           cmocka_unit_test(test_unit_entity),
      cmocka_unit_test(test_logistic_reference), cmocka_unit_test(test_rank_reference),
      cmocka_unit_test(test_t_reference),        cmocka_unit_test(test_ridge_reference),
      cmocka_unit_test(test_bootstrap_exact),    cmocka_unit_test(test_bootstrap_rules),
      cmocka_unit_test(test_bootstrap_covers),   cmocka_unit_test(test_peak),
      cmocka_unit_test(test_max_t_brute_force),  cmocka_unit_test(test_max_t_random_flips),
      cmocka_unit_test(test_max_t_family),       cmocka_unit_test(test_holm),
      cmocka_unit_test(test_ranks_brute_force),  cmocka_unit_test(test_logistic_optimum),
      cmocka_unit_test(test_out_of_fold),        cmocka_unit_test(test_risk),
  };
  return cmocka_run_group_tests(tests, open_reference, close_reference);
}

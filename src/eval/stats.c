/* Clusters, bootstrap, peaks, max-T, Holm; see stats.h. */
#include "eval/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { kDraws = 10000, kMaxDraws = 10000000, kChunks = 64 };

/* ---- clusters ---------------------------------------------------------------------------------------------- */
typedef struct named {
  const char *name;
  int32_t i;
} named;

static int by_name(const void *a, const void *b) {
  const named *x = a, *y = b;
  int c = strcmp(x->name, y->name);
  return c ? c : (x->i > y->i) - (x->i < y->i);
}

int chi_clusters_make(chi_clusters *out, const char *const *name, int32_t n_items, chi_err *err) {
  int rc = 0;
  size_t n = n_items > 0 ? (size_t)n_items : 0;
  *out = (chi_clusters){.n_items = (int32_t)n};
  named *s = chi_calloc(n, sizeof *s, err);
  int32_t *first = chi_calloc(n, sizeof *first, err);
  out->of = chi_calloc(n, sizeof *out->of, err);
  if (!s || !first || !out->of) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (size_t i = 0; i < n; i++) s[i] = (named){name[i] ? name[i] : "", (int32_t)i};
  qsort(s, n, sizeof *s, by_name);
  for (size_t i = 0; i < n; i++) {
    bool same = i > 0 && *s[i].name && strcmp(s[i].name, s[i - 1].name) == 0;
    first[s[i].i] = same ? first[s[i - 1].i] : s[i].i;
  }
  for (size_t i = 0; i < n; i++) out->of[i] = first[i] == (int32_t)i ? out->n++ : out->of[first[i]];
out:
  chi_free(s);
  chi_free(first);
  if (rc) chi_clusters_free(out);
  return rc;
}

void chi_clusters_free(chi_clusters *c) {
  chi_free(c->of);
  *c = (chi_clusters){0};
}

const char *chi_unit_entity(chi_arena *a, const char *unit, chi_err *err) {
  size_t n = strcspn(unit, "|"), at = strcspn(unit, "="), rest = at < n ? n - at - 1 : 0;
  const char *second = unit + at + 1;
  char *s = chi_arena_array(a, n + 1, 1, err);
  if (!s) return NULL;
  memcpy(s, unit, n); /* zeroed behind */
  int order = rest ? memcmp(unit, second, at < rest ? at : rest) : 0;
  if (order > 0 || (rest && order == 0 && at > rest)) {
    memcpy(s, second, rest);
    s[rest] = '=';
    memcpy(s + rest + 1, unit, at);
  }
  return s;
}

/* ---- bootstrap --------------------------------------------------------------------------------------------- */
static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double chi_quantile(const double *sorted, int32_t n, double q) {
  if (n < 1) return NAN;
  double at = q * (n - 1);
  int32_t i = (int32_t)at;
  if (i >= n - 1) return sorted[n - 1];
  return sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]);
}

static int draws_of(int *out, const chi_boot_opts *o, chi_err *err) {
  *out = o && o->draws ? o->draws : kDraws;
  if (*out < 1 || *out > kMaxDraws)
    return chi_fail(err, CHI_ERR_ARG, "%d draws: from 1 to %d are possible", *out, kMaxDraws);
  return 0;
}

typedef struct boot_job {
  chi_boot_stat stat;
  const void *ud;
  int32_t n;
  int draws;
  uint64_t seed;
  int32_t *times; /* [kChunks][n] */
  double *value;  /* [draws] */
} boot_job;

static void boot_chunk(void *ud, int64_t chunk) {
  const boot_job *j = ud;
  int32_t *times = j->times + chunk * j->n;
  for (int d = (int)chunk; d < j->draws; d += kChunks) {
    memset(times, 0, (size_t)j->n * sizeof *times);
    for (int32_t k = 0; k < j->n; k++) {
      uint64_t u = chi_rng_u32(j->seed, 1, (uint32_t)d, (uint32_t)k);
      times[(u * (uint64_t)j->n) >> 32]++;
    }
    j->value[d] = j->stat(j->ud, times);
  }
}

int chi_boot(chi_est *out, int32_t n_clusters, chi_boot_stat stat, const void *ud, const chi_boot_opts *o, double *all,
             chi_err *err) {
  int rc = 0;
  boot_job j = {.stat = stat, .ud = ud, .n = n_clusters, .seed = o ? o->seed : 0};
  double level = o && o->level > 0 ? o->level : 0.95;
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN, .clusters = n_clusters};
  if (n_clusters < 1) return 0;
  CHI_TRY(draws_of(&j.draws, o, err));
  j.times = chi_calloc((size_t)kChunks * (size_t)n_clusters, sizeof *j.times, err);
  j.value = chi_calloc((size_t)j.draws, sizeof *j.value, err);
  CHI_TRY(j.times && j.value ? 0 : CHI_ERR_MEMORY);
  for (int32_t k = 0; k < n_clusters; k++) j.times[k] = 1;
  out->value = stat(ud, j.times);
  if (n_clusters < 2) goto out;
  chi_parallel_for(kChunks, boot_chunk, &j);
  if (all) memcpy(all, j.value, (size_t)j.draws * sizeof *all);
  for (int d = 0; d < j.draws; d++)
    if (!isnan(j.value[d])) j.value[out->draws++] = j.value[d];
  qsort(j.value, (size_t)out->draws, sizeof *j.value, by_value);
  out->lo = chi_quantile(j.value, out->draws, (1 - level) / 2);
  out->hi = chi_quantile(j.value, out->draws, (1 + level) / 2);
out:
  chi_free(j.times);
  chi_free(j.value);
  return rc;
}

/* Sums by cluster. Clusters without a value do not take part: they are no clusters of this statistic. */
typedef struct sums {
  double *a, *b; /* [n][width] */
  int32_t n, width;
  bool two; /* peak: the difference of two curves */
} sums;

static double ratio_stat(const void *ud, const int32_t *times) {
  const sums *s = ud;
  double a = 0, b = 0;
  for (int32_t k = 0; k < s->n; k++) {
    a += times[k] * s->a[k];
    b += times[k] * s->b[k];
  }
  return b != 0 ? a / b : NAN; /* NOLINT: an exact zero means that nothing was drawn */
}

static int ratio(chi_est *out, const chi_clusters *c, const double *num, const double *den, const chi_boot_opts *o,
                 chi_err *err) {
  int rc = 0;
  int32_t n = 0;
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  sums s = {.a = chi_calloc((size_t)c->n + 1, sizeof *s.a, err), .b = chi_calloc((size_t)c->n + 1, sizeof *s.b, err)};
  int32_t *at = chi_calloc((size_t)c->n + 1, sizeof *at, err);
  CHI_TRY(s.a && s.b && at ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < c->n_items; i++) {
    if (isnan(num[i]) || isnan(den[i])) continue;
    int32_t *k = &at[c->of[i]];
    if (*k == 0) *k = ++s.n;
    s.a[*k - 1] += num[i];
    s.b[*k - 1] += den[i];
    n++;
  }
  CHI_TRY(chi_boot(out, s.n, ratio_stat, &s, o, NULL, err));
  out->n = n;
out:
  chi_free(s.a);
  chi_free(s.b);
  chi_free(at);
  return rc;
}

int chi_boot_ratio(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                   chi_err *err) {
  return ratio(out, c, a, b, o, err);
}

int chi_boot_mean(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                  chi_err *err) {
  double *num = chi_calloc((size_t)c->n_items, sizeof *num, err),
         *one = chi_calloc((size_t)c->n_items, sizeof *one, err);
  int rc = num && one ? 0 : CHI_ERR_MEMORY;
  for (int32_t i = 0; i < c->n_items && rc == 0; i++) {
    num[i] = b ? a[i] - b[i] : a[i];
    one[i] = 1;
  }
  if (rc == 0) rc = ratio(out, c, num, one, o, err);
  chi_free(num);
  chi_free(one);
  return rc;
}

/* First highest of the weighted sum over clusters, as every layer has the same items. */
static int32_t peak_of(const double *x, const sums *s, const int32_t *times) {
  int32_t best = 0;
  double top = -INFINITY;
  for (int32_t l = 0; l < s->width; l++) {
    double sum = 0;
    for (int32_t k = 0; k < s->n; k++) sum += times[k] * x[(size_t)k * (size_t)s->width + (size_t)l];
    if (sum > top) {
      top = sum;
      best = l;
    }
  }
  return best;
}

static double peak_stat(const void *ud, const int32_t *times) {
  const sums *s = ud;
  return peak_of(s->a, s, times) - (s->two ? peak_of(s->b, s, times) : 0);
}

int chi_boot_peak(chi_est *out, double *share, const chi_clusters *c, const double *x, const double *y,
                  int32_t n_layers, const chi_boot_opts *o, chi_err *err) {
  int rc = 0, draws;
  int32_t n = 0, hits = 0;
  size_t w = (size_t)n_layers;
  double *all = NULL;
  sums s = {.width = n_layers, .two = y != NULL};
  int32_t *at = chi_calloc((size_t)c->n + 1, sizeof *at, err);
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  *share = NAN;
  CHI_TRY(draws_of(&draws, o, err));
  s.a = chi_calloc((size_t)c->n + 1, w * sizeof *s.a, err);
  s.b = chi_calloc((size_t)c->n + 1, w * sizeof *s.b, err);
  all = chi_calloc((size_t)draws, sizeof *all, err);
  CHI_TRY(at && s.a && s.b && all ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < c->n_items; i++) {
    const double *a = x + (size_t)i * w, *b = y ? y + (size_t)i * w : a;
    bool whole = true;
    for (size_t l = 0; l < w; l++) whole = whole && !isnan(a[l]) && !isnan(b[l]);
    if (!whole) continue;
    int32_t *k = &at[c->of[i]];
    if (*k == 0) *k = ++s.n;
    for (size_t l = 0; l < w; l++) {
      s.a[(size_t)(*k - 1) * w + l] += a[l];
      s.b[(size_t)(*k - 1) * w + l] += b[l];
    }
    n++;
  }
  CHI_TRY(chi_boot(out, s.n, peak_stat, &s, o, all, err));
  out->n = n;
  for (int d = 0; d < out->draws; d++) {
    double v = all[d];
    hits += y ? (out->value > 0   ? v > 0
                 : out->value < 0 ? v < 0
                                  : !(v > 0 || v < 0))
              : (int32_t)v == (int32_t)out->value;
  }
  if (out->draws) *share = (double)hits / out->draws;
out:
  chi_free(at);
  chi_free(s.a);
  chi_free(s.b);
  chi_free(all);
  return rc;
}

/* ---- max-T ------------------------------------------------------------------------------------------------- */
typedef struct flip_job {
  const double *y;  /* [n_clusters][n_cells]: mean of the cluster's items, 0 where it has none */
  const double *q;  /* [n_cells]: sum of squares, the same under every flip */
  const int32_t *m; /* [n_cells]: clusters with a value */
  const double *t;  /* [n_cells]: |t| that was seen */
  int32_t n_clusters, n_cells;
  int draws;
  bool all; /* draw d flips the clusters whose bit is set in d */
  uint64_t seed;
  double *sum;    /* [kChunks][n_cells] */
  int64_t *above; /* [kChunks][n_cells]: this cell's |t| reached by itself */
  double *max;    /* [draws] */
} flip_job;

/* |t| of a one-sample test from the sum and the sum of squares of m values. */
static double abs_t(double sum, double q, int32_t m) {
  if (m < 2 || !(q > 0)) return 0;
  double mean = sum / m, var = (q - m * mean * mean) / (m - 1);
  if (!(var > q * 1e-14)) return INFINITY; /* all values equal: rounding is all that is left */
  return fabs(mean) / sqrt(var / m);
}

static void flip_chunk(void *ud, int64_t chunk) {
  const flip_job *j = ud;
  double *sum = j->sum + chunk * j->n_cells;
  int64_t *above = j->above + chunk * j->n_cells;
  for (int d = (int)chunk; d < j->draws; d += kChunks) {
    uint32_t bits = (uint32_t)d;
    double max = 0;
    memset(sum, 0, (size_t)j->n_cells * sizeof *sum);
    for (int32_t k = 0; k < j->n_clusters; k++) {
      if (!j->all && k % 32 == 0) bits = chi_rng_u32(j->seed, 2, (uint32_t)d, (uint32_t)k / 32);
      const double *y = j->y + (size_t)k * (size_t)j->n_cells;
      double sign = bits >> (k % 32) & 1 ? -1 : 1;
      for (int32_t i = 0; i < j->n_cells; i++) sum[i] += sign * y[i];
    }
    for (int32_t i = 0; i < j->n_cells; i++) {
      double t = abs_t(sum[i], j->q[i], j->m[i]);
      /* A flip that gives the same sum in another order may differ in its last bits. */
      above[i] += t >= j->t[i] * (1 - 1e-12);
      if (t > max) max = t;
    }
    j->max[d] = max;
  }
}

static void cell_results(chi_cell_test *out, const flip_job *j) {
  qsort(j->max, (size_t)j->draws, sizeof *j->max, by_value);
  int extra = j->all ? 0 : 1; /* the flips that are all there are hold the observed one */
  for (int32_t i = 0; i < j->n_cells; i++) {
    int lo = 0, hi = j->draws;
    double want = j->t[i] * (1 - 1e-12);
    int64_t above = 0;
    while (lo < hi) {
      int mid = lo + (hi - lo) / 2;
      if (j->max[mid] < want)
        lo = mid + 1;
      else
        hi = mid;
    }
    for (int k = 0; k < kChunks; k++) above += j->above[(size_t)k * (size_t)j->n_cells + (size_t)i];
    bool can = j->m[i] >= 2;
    out[i].p = can ? (double)(extra + j->draws - lo) / (extra + j->draws) : NAN;
    out[i].p_cell = can ? (double)(extra + above) / (extra + j->draws) : NAN;
  }
}

int chi_max_t(chi_cell_test *out, const chi_clusters *c, const double *x, int32_t n_cells, const chi_boot_opts *o,
              chi_err *err) {
  int rc = 0;
  size_t w = n_cells > 0 ? (size_t)n_cells : 0, nk = (size_t)c->n;
  flip_job j = {.n_clusters = c->n, .n_cells = n_cells, .seed = o ? o->seed : 0};
  double *y = chi_calloc(nk + 1, (w + 1) * sizeof *y, err), *q = chi_calloc(w + 1, sizeof *q, err),
         *t = chi_calloc(w + 1, sizeof *t, err);
  int32_t *count = chi_calloc(nk + 1, (w + 1) * sizeof *count, err), *m = chi_calloc(w + 1, sizeof *m, err);
  j.sum = chi_calloc((size_t)kChunks, (w + 1) * sizeof *j.sum, err);
  j.above = chi_calloc((size_t)kChunks, (w + 1) * sizeof *j.above, err);
  CHI_TRY(y && q && t && count && m && j.sum && j.above ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(draws_of(&j.draws, o, err));
  j.all = c->n < 24 && (1 << c->n) <= j.draws;
  if (j.all) j.draws = 1 << c->n;
  CHI_TRY((j.max = chi_calloc((size_t)j.draws, sizeof *j.max, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < c->n_items; i++)
    for (size_t k = 0; k < w; k++) {
      double v = x[(size_t)i * w + k];
      size_t at = (size_t)c->of[i] * w + k;
      if (isnan(v)) continue;
      y[at] += v;
      count[at]++;
    }
  for (size_t k = 0; k < w; k++) {
    double sum = 0;
    for (size_t e = 0; e < nk; e++) {
      if (count[e * w + k] == 0) continue;
      double v = y[e * w + k] /= count[e * w + k];
      sum += v;
      q[k] += v * v;
      m[k]++;
    }
    t[k] = abs_t(sum, q[k], m[k]);
    out[k] = (chi_cell_test){.mean = m[k] ? sum / m[k] : NAN, .t = sum < 0 ? -t[k] : t[k], .clusters = m[k]};
  }
  j.y = y, j.q = q, j.m = m, j.t = t;
  chi_parallel_for(kChunks, flip_chunk, &j);
  cell_results(out, &j);
out:
  chi_free(y);
  chi_free(q);
  chi_free(t);
  chi_free(count);
  chi_free(m);
  chi_free(j.sum);
  chi_free(j.above);
  chi_free(j.max);
  return rc;
}

/* ---- swaps ------------------------------------------------------------------------------------------------- */
typedef struct swap_job {
  chi_boot_stat stat;
  const void *ud;
  int32_t n;
  int draws;
  bool all; /* draw d swaps the clusters whose bit is set in d */
  uint64_t seed;
  double seen;    /* |stat| without a swap */
  int32_t *times; /* [kChunks][n] */
  int64_t *above; /* [kChunks] */
} swap_job;

static void swap_chunk(void *ud, int64_t chunk) {
  const swap_job *j = ud;
  int32_t *times = j->times + chunk * j->n;
  for (int d = (int)chunk; d < j->draws; d += kChunks) {
    uint32_t bits = (uint32_t)d;
    for (int32_t k = 0; k < j->n; k++) {
      if (!j->all && k % 32 == 0) bits = chi_rng_u32(j->seed, 3, (uint32_t)d, (uint32_t)k / 32);
      times[k] = bits >> (k % 32) & 1 ? -1 : 1;
    }
    /* Equal sums in another order may differ in their last bits. */
    j->above[chunk] += fabs(j->stat(j->ud, times)) >= j->seen - 1e-12;
  }
}

int chi_swap_test(double *p, int32_t n_clusters, chi_boot_stat stat, const void *ud, const chi_boot_opts *o,
                  chi_err *err) {
  int rc = 0;
  int64_t above = 0;
  swap_job j = {.stat = stat, .ud = ud, .n = n_clusters, .seed = o ? o->seed : 0};
  *p = NAN;
  if (n_clusters < 2) return 0;
  CHI_TRY(draws_of(&j.draws, o, err));
  j.all = n_clusters < 24 && (1 << n_clusters) <= j.draws;
  if (j.all) j.draws = 1 << n_clusters;
  j.times = chi_calloc((size_t)kChunks * (size_t)n_clusters, sizeof *j.times, err);
  j.above = chi_calloc(kChunks, sizeof *j.above, err);
  CHI_TRY(j.times && j.above ? 0 : CHI_ERR_MEMORY);
  for (int32_t k = 0; k < n_clusters; k++) j.times[k] = 1;
  j.seen = fabs(stat(ud, j.times));
  if (isnan(j.seen)) goto out;
  chi_parallel_for(kChunks, swap_chunk, &j);
  for (int k = 0; k < kChunks; k++) above += j.above[k];
  int extra = j.all ? 0 : 1;
  *p = (double)(extra + above) / (extra + j.draws);
out:
  chi_free(j.times);
  chi_free(j.above);
  return rc;
}

/* ---- Holm -------------------------------------------------------------------------------------------------- */
typedef struct indexed {
  double v;
  int32_t i;
} indexed;

static int by_indexed(const void *a, const void *b) {
  const indexed *x = a, *y = b;
  return x->v < y->v ? -1 : x->v > y->v ? 1 : (x->i > y->i) - (x->i < y->i);
}

int chi_holm(double *out, const double *p, int32_t n, chi_err *err) {
  int32_t m = 0;
  double worst = 0;
  indexed *s = chi_calloc((size_t)(n > 0 ? n : 0), sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < n; i++)
    if (!isnan(p[i])) s[m++] = (indexed){p[i], i};
  for (int32_t i = 0; i < n; i++) out[i] = p[i];
  qsort(s, (size_t)m, sizeof *s, by_indexed);
  for (int32_t k = 0; k < m; k++) {
    double v = (m - k) * s[k].v;
    if (v > worst) worst = v;
    out[s[k].i] = worst < 1 ? worst : 1;
  }
  chi_free(s);
  return 0;
}

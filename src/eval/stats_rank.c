/* AUROC and Spearman's correlation, with intervals over clusters. Items are sorted once; a draw only changes how often
 * each of them counts, so every draw is one walk through the order. */
#include <math.h>
#include <stdlib.h>

#include "eval/stats.h"

typedef struct scored {
  double v;
  int32_t i;
} scored;

static int by_score(const void *a, const void *b) {
  const scored *x = a, *y = b;
  return x->v < y->v ? -1 : x->v > y->v ? 1 : (x->i > y->i) - (x->i < y->i);
}

/* Clusters that are left when some items are, renumbered, and the order of the items by a score. */
typedef struct kept {
  int32_t *cluster; /* [n] of the kept items */
  int32_t n, clusters;
} kept;

static int keep(kept *k, const chi_clusters *c, const bool *in, chi_err *err) {
  int32_t *at = chi_calloc((size_t)c->n + 1, sizeof *at, err);
  *k = (kept){.cluster = chi_calloc((size_t)c->n_items + 1, sizeof *k->cluster, err)};
  if (!at || !k->cluster) {
    chi_free(at);
    return CHI_ERR_MEMORY;
  }
  for (int32_t i = 0; i < c->n_items; i++) {
    if (!in[i]) continue;
    int32_t *to = &at[c->of[i]];
    if (*to == 0) *to = ++k->clusters;
    k->cluster[k->n++] = *to - 1;
  }
  chi_free(at);
  return 0;
}

static scored *order(const double *v, const bool *in, int32_t n_items, chi_err *err) {
  int32_t n = 0;
  scored *s = chi_calloc((size_t)n_items + 1, sizeof *s, err);
  for (int32_t i = 0; s && i < n_items; i++) {
    if (!in[i]) continue;
    s[n] = (scored){v[i], n};
    n++;
  }
  if (s) qsort(s, (size_t)n, sizeof *s, by_score);
  return s;
}

/* ---- AUROC ------------------------------------------------------------------------------------------------- */
typedef struct auroc_job {
  kept k;
  scored *a, *b; /* [k.n] ascending; b NULL without a second score */
  bool *positive;
} auroc_job;

static double auroc(const auroc_job *j, const scored *s, const int32_t *times) {
  double below = 0, won = 0, pos = 0;
  for (int32_t i = 0; i < j->k.n;) {
    double p = 0, n = 0;
    int32_t e = i;
    for (; e < j->k.n && !(s[e].v > s[i].v); e++) {
      int32_t t = times[j->k.cluster[s[e].i]];
      *(j->positive[s[e].i] ? &p : &n) += t;
    }
    won += p * (below + n / 2);
    below += n;
    pos += p;
    i = e;
  }
  return pos > 0 && below > 0 ? won / (pos * below) : NAN;
}

static double auroc_stat(const void *ud, const int32_t *times) {
  const auroc_job *j = ud;
  return auroc(j, j->a, times) - (j->b ? auroc(j, j->b, times) : 0);
}

int chi_auroc(chi_est *out, const chi_clusters *c, const double *score, const double *other, const bool *positive,
              const chi_boot_opts *o, chi_err *err) {
  int rc = 0;
  auroc_job j = {0};
  bool *in = chi_calloc((size_t)c->n_items + 1, sizeof *in, err);
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  j.positive = chi_calloc((size_t)c->n_items + 1, sizeof *j.positive, err);
  CHI_TRY(in && j.positive ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0, n = 0; i < c->n_items; i++) {
    in[i] = !isnan(score[i]) && !(other && isnan(other[i]));
    if (in[i]) j.positive[n++] = positive[i];
  }
  CHI_TRY(keep(&j.k, c, in, err));
  CHI_TRY((j.a = order(score, in, c->n_items, err)) ? 0 : CHI_ERR_MEMORY);
  if (other) CHI_TRY((j.b = order(other, in, c->n_items, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_boot(out, j.k.clusters, auroc_stat, &j, o, NULL, err));
  out->n = j.k.n;
out:
  chi_free(in);
  chi_free(j.positive);
  chi_free(j.k.cluster);
  chi_free(j.a);
  chi_free(j.b);
  return rc;
}

/* ---- Spearman ---------------------------------------------------------------------------------------------- */
typedef struct spearman_job {
  kept k;
  scored *a, *b; /* [k.n] ascending */
} spearman_job;

/* Mid-ranks of the items in the drawn sample. */
static void ranks(double *rank, const scored *s, const kept *k, const int32_t *times) {
  double below = 0;
  for (int32_t i = 0; i < k->n;) {
    double w = 0;
    int32_t e = i;
    for (; e < k->n && !(s[e].v > s[i].v); e++) w += times[k->cluster[s[e].i]];
    for (int32_t q = i; q < e; q++) rank[s[q].i] = below + (w + 1) / 2;
    below += w;
    i = e;
  }
}

static double spearman_stat(const void *ud, const int32_t *times) {
  const spearman_job *j = ud;
  const kept *k = &j->k;
  double w = 0, ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
  double *ra = chi_calloc((size_t)k->n + 1, sizeof *ra, NULL), *rb = chi_calloc((size_t)k->n + 1, sizeof *rb, NULL);
  if (!ra || !rb) goto out;
  ranks(ra, j->a, k, times);
  ranks(rb, j->b, k, times);
  for (int32_t i = 0; i < k->n; i++) {
    double t = times[k->cluster[i]];
    w += t;
    ma += t * ra[i];
    mb += t * rb[i];
  }
  if (!(w > 0)) goto out;
  ma /= w;
  mb /= w;
  for (int32_t i = 0; i < k->n; i++) {
    double t = times[k->cluster[i]];
    aa += t * (ra[i] - ma) * (ra[i] - ma);
    bb += t * (rb[i] - mb) * (rb[i] - mb);
    ab += t * (ra[i] - ma) * (rb[i] - mb);
  }
out:
  chi_free(ra);
  chi_free(rb);
  return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}

int chi_spearman(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                 chi_err *err) {
  int rc = 0;
  spearman_job j = {0};
  bool *in = chi_calloc((size_t)c->n_items + 1, sizeof *in, err);
  *out = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  CHI_TRY(in ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < c->n_items; i++) in[i] = !isnan(a[i]) && !isnan(b[i]);
  CHI_TRY(keep(&j.k, c, in, err));
  CHI_TRY((j.a = order(a, in, c->n_items, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY((j.b = order(b, in, c->n_items, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_boot(out, j.k.clusters, spearman_stat, &j, o, NULL, err));
  out->n = j.k.n;
out:
  chi_free(in);
  chi_free(j.k.cluster);
  chi_free(j.a);
  chi_free(j.b);
  return rc;
}

/* Mid-rank of a[i] less the mean rank, doubled: a whole number. */
static double centred_rank(const double *a, int n, int i) {
  double r = 0;
  for (int k = 0; k < n; k++) r += a[k] < a[i] ? 1 : a[k] > a[i] ? -1 : 0;
  return r;
}

double chi_rank_correlation(const double *a, const double *b, int n) {
  double aa = 0, bb = 0, ab = 0;
  for (int i = 0; i < n; i++) {
    double x = centred_rank(a, n, i), y = centred_rank(b, n, i);
    aa += x * x, bb += y * y, ab += x * y;
  }
  return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}

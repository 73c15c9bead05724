/* Cholesky in f64: for second moments of keys and the small systems of MEMIT. Same bits on any number of threads. */
#include <math.h>
#include <string.h>

#include "edit/edit.h"
#include "edit/moments.h"

/* By panels of columns, so that what a row takes away from a panel runs along rows of a transposed copy of it. Each
 * element still subtracts its products in the order of their columns, one by one: the bits of the plain loop. */
enum { kPanel = 64, kRows = 64 };
typedef struct panel_job {
  double *a;
  const double *t; /* [lo][kPanel]: columns 0 .. lo - 1 of the panel's rows, transposed */
  int64_t n, lo, hi;
} panel_job;

/* a[i][lo ..] less the products of columns before the panel. All are computed, those up to the diagonal are kept. */
static void take_away(const panel_job *p, int64_t i) {
  double s[kPanel] = {0}, *row = p->a + i * p->n;
  int64_t m = (i + 1 < p->hi ? i + 1 : p->hi) - p->lo;
  memcpy(s, row + p->lo, (size_t)m * sizeof *s);
  for (int64_t k = 0; k < p->lo; k++) {
    const double x = row[k], *t = p->t + k * kPanel;
    for (int64_t c = 0; c < kPanel; c++) s[c] -= x * t[c];
  }
  memcpy(row + p->lo, s, (size_t)m * sizeof *s);
}

/* Columns of the panel before `end` in row i, the panel's rows above being finished. */
static void finish_row(const panel_job *p, int64_t i, int64_t end) {
  double *ri = p->a + i * p->n;
  for (int64_t j = p->lo; j < end; j++) {
    const double *rj = p->a + j * p->n;
    double s = ri[j];
    for (int64_t k = p->lo; k < j; k++) s -= ri[k] * rj[k];
    ri[j] = s / rj[j];
  }
}

static void rows_below(void *ud, int64_t chunk) {
  const panel_job *p = ud;
  int64_t lo = p->hi + chunk * kRows, hi = lo + kRows < p->n ? lo + kRows : p->n;
  for (int64_t i = lo; i < hi; i++) {
    take_away(p, i);
    finish_row(p, i, p->hi);
  }
}

static int diagonal(double *row, int64_t lo, int64_t i, chi_err *err) {
  double s = row[i];
  for (int64_t k = lo; k < i; k++) s -= row[k] * row[k];
  if (!(s > 0) || !isfinite(s))
    return chi_fail(err, CHI_ERR_ARG,
                    "a matrix that must be positive definite is not (column %lld): raise lambda or the shrinkage",
                    (long long)i);
  row[i] = sqrt(s);
  return 0;
}

int chi_chol(double *a, int64_t n, chi_err *err) {
  int rc = 0;
  double *t = chi_calloc((size_t)(n * kPanel), sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  for (int64_t lo = 0; lo < n; lo += kPanel) {
    panel_job p = {.a = a, .t = t, .n = n, .lo = lo, .hi = lo + kPanel < n ? lo + kPanel : n};
    for (int64_t c = lo; c < p.hi; c++)
      for (int64_t k = 0; k < lo; k++) t[k * kPanel + c - lo] = a[c * n + k];
    for (int64_t i = lo; i < p.hi; i++) {
      take_away(&p, i);
      finish_row(&p, i, i);
      CHI_TRY(diagonal(a + i * n, lo, i, err));
    }
    chi_parallel_for((n - p.hi + kRows - 1) / kRows, rows_below, &p);
  }
out:
  chi_free(t);
  return rc;
}

void chi_chol_solve(const double *l, int64_t n, double *b) {
  for (int64_t i = 0; i < n; i++) {
    double s = b[i];
    for (int64_t k = 0; k < i; k++) s -= l[i * n + k] * b[k];
    b[i] = s / l[i * n + i];
  }
  for (int64_t i = n; i-- > 0;) {
    b[i] /= l[i * n + i];
    for (int64_t k = 0; k < i; k++) b[k] -= l[i * n + k] * b[i];
  }
}

/* ---- second moments, factored ------------------------------------------------------------------------------- */
enum { kFactorsMiB = 1024 };

void chi_factors_free(chi_factors *f) {
  for (int i = 0; i < CHI_FACTORS; i++) chi_free(f->l[i]);
  memset(f, 0, sizeof *f);
}

/* C (1 - shrink) + shrink mean(diag C) I, factored. */
static int factor(double **out, const char *file, const char *model_hash, int layer, int64_t n, double shrink,
                  chi_err *err) {
  int rc = 0;
  double *c = NULL, mean = 0;
  CHI_TRY(chi_moments_load(&c, file, layer, n, model_hash, err));
  for (int64_t i = 0; i < n; i++) mean += c[i * n + i] / (double)n;
  for (int64_t i = 0; i < n * n; i++) c[i] *= 1 - shrink;
  for (int64_t i = 0; i < n; i++) c[i * n + i] += shrink * mean;
  CHI_TRY(chi_chol(c, n, err));
  *out = c;
  c = NULL;
out:
  chi_free(c);
  return rc;
}

int chi_edit_moment(const double **out, const chi_job *j, int layer, int64_t n, chi_err *err) {
  chi_factors *f = j->factors;
  const char *file = j->opts->moments;
  *out = NULL;
  if (!file) return 0;
  if (f->shrink != j->h.shrink || f->n != n) chi_factors_free(f);
  f->shrink = j->h.shrink, f->n = n;
  int most = (int)(((int64_t)kFactorsMiB << 20) / (n * n * (int64_t)sizeof(double))), i = 0;
  if (most < 1) most = 1;
  if (most > CHI_FACTORS) most = CHI_FACTORS;
  while (i < most && f->l[i] && f->layer[i] != layer) i++;
  if (i == most) { /* the oldest makes room */
    i = f->next++ % most;
    chi_free(f->l[i]);
    f->l[i] = NULL;
  }
  f->layer[i] = layer;
  if (!f->l[i]) {
    int rc = factor(&f->l[i], file, j->m->hash, layer, n, f->shrink, err);
    if (rc) return rc;
  }
  *out = f->l[i];
  return 0;
}

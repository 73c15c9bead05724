/* Cholesky in f64: for second moments of keys and the small systems of MEMIT. Same bits on any number of threads. */
#include <math.h>

#include "edit/edit.h"
#include "edit/moments.h"

typedef struct col_job {
  double *a;
  int64_t n, j;
} col_job;

/* Rows below the diagonal of column j; each dot product runs over finished columns. */
static void column(void *ud, int64_t chunk) {
  const col_job *c = ud;
  const double *rj = c->a + c->j * c->n;
  int64_t lo = c->j + 1 + chunk * 64, hi = lo + 64 < c->n ? lo + 64 : c->n;
  for (int64_t i = lo; i < hi; i++) {
    double *ri = c->a + i * c->n, s = ri[c->j];
    for (int64_t k = 0; k < c->j; k++) s -= ri[k] * rj[k];
    ri[c->j] = s / rj[c->j];
  }
}

int chi_chol(double *a, int64_t n, chi_err *err) {
  for (int64_t j = 0; j < n; j++) {
    double *r = a + j * n, s = r[j];
    for (int64_t k = 0; k < j; k++) s -= r[k] * r[k];
    if (!(s > 0) || !isfinite(s))
      return chi_fail(err, CHI_ERR_ARG,
                      "a matrix that must be positive definite is not (column %lld): raise lambda or "
                      "the shrinkage",
                      (long long)j);
    r[j] = sqrt(s);
    col_job c = {a, n, j};
    chi_parallel_for((n - j - 1 + 63) / 64, column, &c);
  }
  return 0;
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

int chi_edit_moment(double **out, const char *file, const char *model_hash, int layer, int64_t n, double shrink,
                    chi_err *err) {
  int rc = 0;
  double *c = NULL, mean = 0;
  *out = NULL;
  if (!file) return 0;
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

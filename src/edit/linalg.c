/* Cholesky in f64: for second moments of keys and the small systems of MEMIT. Same bits on any number of threads. */
#include <math.h>
#include <stdio.h>

#include "edit/edit.h"

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

int chi_edit_moment(double **out, const char *file, int layer, int64_t n, double shrink, chi_err *err) {
  int rc = 0;
  char name[96];
  chi_st *st = NULL;
  double *c = NULL, mean = 0;
  *out = NULL;
  if (!file) return 0;
  snprintf(name, sizeof name, "decoder.%d.mlp_act.moment", layer);
  CHI_TRY(chi_st_open(&st, file, err));
  const chi_tensor *t = chi_st_find(st, name);
  if (!t || t->ndim != 2 || t->dim[0] != n || t->dim[1] != n || (t->dtype != CHI_F32 && t->dtype != CHI_F64)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: no F32 or F64 tensor '%s' of %lldx%lld", file, name, (long long)n,
                  (long long)n);
    goto out;
  }
  CHI_TRY((c = chi_calloc((size_t)(n * n), sizeof *c, err)) ? 0 : CHI_ERR_MEMORY);
  for (int64_t i = 0; i < n * n; i++) {
    c[i] = t->dtype == CHI_F64 ? ((const double *)t->data)[i] : (double)((const float *)t->data)[i];
    if (!isfinite(c[i])) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: tensor '%s' holds numbers that are not finite", file, name);
      goto out;
    }
  }
  for (int64_t i = 0; i < n; i++) mean += c[i * n + i] / (double)n;
  for (int64_t i = 0; i < n * n; i++) c[i] *= 1 - shrink;
  for (int64_t i = 0; i < n; i++) c[i * n + i] += shrink * mean;
  CHI_TRY(chi_chol(c, n, err));
  *out = c;
  c = NULL;
out:
  chi_free(c);
  chi_st_close(st);
  return rc;
}

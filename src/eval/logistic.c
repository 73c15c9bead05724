/* Linear probes; see logistic.h. */
#include "eval/logistic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "edit/edit.h"

enum { kSteps = 200, kPasses = 100, kPath = 20, kInner = 5, kMaxFolds = 1000 };
static const double kTol = 1e-9;

/* ---- one fit ----------------------------------------------------------------------------------------------- */
typedef struct fit {
  int32_t n, p;
  double *x;       /* [p][n], standardised */
  const double *y; /* [n], 0 or 1 */
  double l1, l2, tol;
  double *w, b;     /* [p] */
  double *m;        /* [n]: margins w.x + b */
  double *r, *h;    /* [n]: sigma(m) - y and sigma'(m) */
  double *g, *curv; /* [p]: gradient of the smooth part; of the quadratic model */
  double *d, d0;    /* [p]: step */
  double *q;        /* [n]: what the step adds to the margins */
  double *yy;
} fit;

static void fit_free(fit *f) {
  double **all[] = {&f->x, &f->w, &f->m, &f->r, &f->h, &f->g, &f->curv, &f->d, &f->q, &f->yy};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) chi_free(*all[i]);
  *f = (fit){0};
}

static double log1pexp(double x) { return x > 0 ? x + chi_log64(1 + chi_exp64(-x)) : chi_log64(1 + chi_exp64(x)); }

static double soft(double x, double t) { return x > t ? x - t : x < -t ? x + t : 0; }

/* Objective at margins m + t q and weights w + t d. */
static double objective(const fit *f, double t) {
  double loss = 0, one = 0, two = 0;
  for (int32_t i = 0; i < f->n; i++) {
    double m = f->m[i] + t * f->q[i];
    loss += log1pexp(m) - f->y[i] * m;
  }
  for (int32_t j = 0; j < f->p; j++) {
    double w = f->w[j] + t * f->d[j];
    one += fabs(w);
    two += w * w;
  }
  return loss / f->n + f->l1 * one + f->l2 / 2 * two;
}

/* Gradient, curvature, and by how much the optimality conditions are broken. */
static double look(fit *f) {
  double worst = 0, g0 = 0;
  for (int32_t i = 0; i < f->n; i++) {
    double s = 1 / (1 + chi_exp64(-f->m[i]));
    f->r[i] = s - f->y[i];
    f->h[i] = s * (1 - s) > 1e-6 ? s * (1 - s) : 1e-6;
    g0 += f->r[i] / f->n;
  }
  worst = fabs(g0);
  for (int32_t j = 0; j < f->p; j++) {
    const double *x = f->x + (size_t)j * (size_t)f->n;
    double g = 0, c = 0;
    for (int32_t i = 0; i < f->n; i++) {
      g += x[i] * f->r[i];
      c += x[i] * x[i] * f->h[i];
    }
    f->g[j] = g / f->n + f->l2 * f->w[j];
    f->curv[j] = c / f->n + f->l2;
    double bad = f->w[j] > 0 ? fabs(f->g[j] + f->l1) : f->w[j] < 0 ? fabs(f->g[j] - f->l1) : fabs(f->g[j]) - f->l1;
    if (bad > worst) worst = bad;
  }
  return worst;
}

/* Minimum of the quadratic model plus the penalty, by coordinate descent. */
static void step(fit *f) {
  double h = 0, r = 0;
  memset(f->d, 0, (size_t)f->p * sizeof *f->d);
  memset(f->q, 0, (size_t)f->n * sizeof *f->q);
  f->d0 = 0;
  for (int32_t i = 0; i < f->n; i++) {
    h += f->h[i];
    r += f->r[i];
  }
  for (int pass = 0; pass < kPasses; pass++) {
    double moved = 0, s = r;
    for (int32_t i = 0; i < f->n; i++) s += f->h[i] * f->q[i];
    for (int32_t i = 0; i < f->n; i++) f->q[i] -= s / h;
    f->d0 -= s / h;
    moved = s / h * s / f->n;
    for (int32_t j = 0; j < f->p; j++) {
      const double *x = f->x + (size_t)j * (size_t)f->n;
      double g = 0, now = f->w[j] + f->d[j], a = f->curv[j];
      if (!(a > 0)) continue; /* a constant feature */
      for (int32_t i = 0; i < f->n; i++) g += f->h[i] * x[i] * f->q[i];
      g = g / f->n + f->g[j] + f->l2 * f->d[j];
      double by = soft(now - g / a, f->l1 / a) - now;
      if (!(by > 0 || by < 0)) continue;
      f->d[j] += by;
      for (int32_t i = 0; i < f->n; i++) f->q[i] += by * x[i];
      if (a * by * by > moved) moved = a * by * by;
    }
    if (moved < 1e-24) break;
  }
}

static int solve(fit *f, chi_err *err) {
  for (int k = 0; k < kSteps; k++) {
    if (look(f) < f->tol) return 0;
    step(f);
    double before = objective(f, 0), t = 1;
    /* Steps on the quadratic model go down; where curvature changes fast they may go too far. */
    while (t > 1e-10 && !(objective(f, t) <= before)) t /= 2;
    if (t <= 1e-10)
      return look(f) < 1e-6 ? 0 : chi_fail(err, CHI_ERR_ARG, "the logistic fit stopped before its optimum");
    for (int32_t j = 0; j < f->p; j++) f->w[j] += t * f->d[j];
    for (int32_t i = 0; i < f->n; i++) f->m[i] += t * f->q[i];
    f->b += t * f->d0;
  }
  if (look(f) < 1e-6) return 0;
  return chi_fail(err, CHI_ERR_ARG,
                  "the logistic fit did not end in %d steps: the classes are separable, or l1 is too small", kSteps);
}

/* Standardised columns of some rows; out gets the means and deviations. */
static int fit_make(fit *f, chi_logit *out, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n,
                    chi_err *err) {
  int32_t yes = 0;
  size_t np = (size_t)p;
  *f = (fit){.n = n, .p = p, .tol = kTol};
  *out = (chi_logit){.p = p,
                     .w = chi_calloc(np + 1, sizeof *out->w, err),
                     .mean = chi_calloc(np + 1, sizeof *out->w, err),
                     .sd = chi_calloc(np + 1, sizeof *out->w, err)};
  for (int32_t i = 0; i < n; i++) yes += y[rows[i]];
  if (yes == 0 || yes == n) return chi_fail(err, CHI_ERR_ARG, "a probe needs items of both classes: %d of %d", yes, n);
  double **len_p[] = {&f->w, &f->g, &f->curv, &f->d}, **len_n[] = {&f->m, &f->r, &f->h, &f->q, &f->yy};
  for (size_t i = 0; i < sizeof len_p / sizeof *len_p; i++)
    if (!(*len_p[i] = chi_calloc(np + 1, sizeof(double), err))) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < sizeof len_n / sizeof *len_n; i++)
    if (!(*len_n[i] = chi_calloc((size_t)n, sizeof(double), err))) return CHI_ERR_MEMORY;
  f->x = chi_calloc(np + 1, (size_t)n * sizeof *f->x, err);
  if (!f->x || !out->w || !out->mean || !out->sd) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < n; i++) f->yy[i] = y[rows[i]];
  f->y = f->yy;
  for (int32_t j = 0; j < p; j++) {
    double *c = f->x + (size_t)j * (size_t)n, sum = 0, var = 0;
    for (int32_t i = 0; i < n; i++) sum += c[i] = x[(size_t)rows[i] * np + (size_t)j];
    out->mean[j] = sum / n;
    for (int32_t i = 0; i < n; i++) var += (c[i] - out->mean[j]) * (c[i] - out->mean[j]);
    double sd = sqrt(var / n);
    out->sd[j] = sd > 1e-12 * (fabs(out->mean[j]) + 1e-300) ? sd : 0;
    for (int32_t i = 0; i < n; i++) c[i] = out->sd[j] > 0 ? (c[i] - out->mean[j]) / out->sd[j] : 0;
  }
  f->b = chi_log64((double)yes / (n - yes)); /* the optimum without features */
  for (int32_t i = 0; i < n; i++) f->m[i] = f->b;
  return 0;
}

static void fit_take(chi_logit *out, const fit *f) {
  memcpy(out->w, f->w, (size_t)f->p * sizeof *out->w);
  out->b = f->b;
}

int chi_logit_fit(chi_logit *out, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n, double l1,
                  double l2, chi_err *err) {
  fit f = {0};
  int rc = fit_make(&f, out, x, y, p, rows, n, err);
  if (rc == 0) {
    f.l1 = l1;
    f.l2 = l2;
    rc = solve(&f, err);
  }
  if (rc == 0) fit_take(out, &f);
  fit_free(&f);
  if (rc) chi_logit_free(out);
  return rc;
}

void chi_logit_free(chi_logit *m) {
  chi_free(m->w);
  chi_free(m->mean);
  chi_free(m->sd);
  *m = (chi_logit){0};
}

double chi_logit_score(const chi_logit *m, const double *x) {
  double s = m->b;
  for (int32_t j = 0; j < m->p; j++)
    if (m->sd[j] > 0) s += m->w[j] * (x[j] - m->mean[j]) / m->sd[j];
  return s;
}

static double l1_max(fit *f) {
  double max = 0;
  look(f);
  for (int32_t j = 0; j < f->p; j++)
    if (fabs(f->g[j]) > max) max = fabs(f->g[j]);
  return max;
}

int chi_logit_l1_max(double *out, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n,
                     chi_err *err) {
  fit f = {0};
  chi_logit m = {0};
  int rc = fit_make(&f, &m, x, y, p, rows, n, err);
  if (rc == 0) *out = l1_max(&f);
  fit_free(&f);
  chi_logit_free(&m);
  return rc;
}

/* ---- folds ------------------------------------------------------------------------------------------------- */
typedef struct keyed {
  uint32_t key;
  int32_t k;
} keyed;

static int by_key(const void *a, const void *b) {
  const keyed *x = a, *y = b;
  return x->key < y->key ? -1 : x->key > y->key ? 1 : (x->k > y->k) - (x->k < y->k);
}

int chi_folds(int32_t *of, const chi_clusters *c, int folds, uint64_t seed, chi_err *err) {
  int rc = 0;
  keyed *s = chi_calloc((size_t)c->n + 1, sizeof *s, err);
  int32_t *fold = chi_calloc((size_t)c->n + 1, sizeof *fold, err);
  CHI_TRY(s && fold ? 0 : CHI_ERR_MEMORY);
  if (folds < 2 || folds > kMaxFolds || folds > c->n) {
    rc = chi_fail(err, CHI_ERR_ARG, "%d folds of %d clusters: at least 2, and a cluster for each", folds, c->n);
    goto out;
  }
  for (int32_t k = 0; k < c->n; k++) s[k] = (keyed){chi_rng_u32(seed, 3, 0, (uint32_t)k), k};
  qsort(s, (size_t)c->n, sizeof *s, by_key);
  for (int32_t k = 0; k < c->n; k++) fold[s[k].k] = k % folds;
  for (int32_t i = 0; i < c->n_items; i++) of[i] = fold[c->of[i]];
out:
  chi_free(s);
  chi_free(fold);
  return rc;
}

/* Items in fold `out` (in = true: in all others) that can be used. */
static int32_t pick(int32_t *rows, const int32_t *from, int32_t n, const int32_t *of, int32_t fold, bool in) {
  int32_t k = 0;
  for (int32_t i = 0; i < n; i++)
    if ((of[from[i]] == fold) == in) rows[k++] = from[i];
  return k;
}

static bool both(const bool *y, const int32_t *rows, int32_t n) {
  int32_t yes = 0;
  for (int32_t i = 0; i < n; i++) yes += y[rows[i]];
  return yes > 0 && yes < n;
}

typedef struct choose_job {
  const double *x;
  const bool *y;
  int32_t p;
  const int32_t *rows, *of; /* training items; their inner folds */
  int32_t n;
  const double *path;
  double l2;
  double (*dev)[kPath]; /* [kInner]: held-out deviance; NaN where a fold cannot be fitted */
  chi_err *err;         /* [kInner] */
} choose_job;

/* The path on all inner folds but one, warm from value to value. */
static void path_fold(void *ud, int64_t k) {
  const choose_job *j = ud;
  chi_err *err = &j->err[k];
  fit f = {0};
  chi_logit m = {0};
  int rc = 0;
  int32_t *train = chi_calloc((size_t)j->n, sizeof *train, err), *test = chi_calloc((size_t)j->n, sizeof *test, err);
  for (int i = 0; i < kPath; i++) j->dev[k][i] = NAN;
  CHI_TRY(train && test ? 0 : CHI_ERR_MEMORY);
  int32_t n = pick(train, j->rows, j->n, j->of, (int32_t)k, false),
          n_test = pick(test, j->rows, j->n, j->of, (int32_t)k, true);
  if (n_test == 0 || !both(j->y, train, n)) goto out;
  CHI_TRY(fit_make(&f, &m, j->x, j->y, j->p, train, n, err));
  f.l2 = j->l2;
  f.tol = 1e-5; /* for choosing among penalties that are 30 % apart */
  for (int i = 0; i < kPath; i++) {
    double dev = 0;
    f.l1 = j->path[i];
    CHI_TRY(solve(&f, err));
    fit_take(&m, &f);
    for (int32_t t = 0; t < n_test; t++) {
      double s = chi_logit_score(&m, j->x + (size_t)test[t] * (size_t)j->p);
      dev += log1pexp(s) - (j->y[test[t]] ? s : 0);
    }
    j->dev[k][i] = dev;
  }
out:
  chi_free(train);
  chi_free(test);
  fit_free(&f);
  chi_logit_free(&m);
}

/* l1 with the lowest held-out deviance. */
static int choose(double *l1, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n,
                  const chi_clusters *c, double l2, uint64_t seed, chi_err *err) {
  int rc = 0;
  double top = 0, path[kPath], dev[kInner][kPath], least = INFINITY;
  chi_err fold_err[kInner] = {{0}};
  chi_clusters inner = {.n_items = n};
  int32_t *of = chi_calloc((size_t)c->n_items, sizeof *of, err),
          *seen = chi_calloc((size_t)c->n + 1, sizeof *seen, err), *fold = chi_calloc((size_t)n, sizeof *fold, err);
  inner.of = chi_calloc((size_t)n, sizeof *inner.of, err);
  CHI_TRY(of && seen && fold && inner.of ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) {
    int32_t *s = &seen[c->of[rows[i]]];
    if (*s == 0) *s = ++inner.n;
    inner.of[i] = *s - 1;
  }
  CHI_TRY(chi_folds(fold, &inner, kInner, seed, err));
  for (int32_t i = 0; i < n; i++) of[rows[i]] = fold[i];
  CHI_TRY(chi_logit_l1_max(&top, x, y, p, rows, n, err));
  *l1 = top > 0 ? top : 1;
  for (int i = 0; i < kPath; i++) path[i] = *l1 * chi_exp64(chi_log64(1e-3) * i / (kPath - 1));
  choose_job j = {x, y, p, rows, of, n, path, l2, dev, fold_err};
  chi_parallel_for(kInner, path_fold, &j);
  for (int i = 0; i < kPath; i++) {
    double sum = 0;
    int folds = 0;
    for (int k = 0; k < kInner; k++) {
      if (fold_err[k].code) CHI_TRY(chi_fail(err, fold_err[k].code, "%s", fold_err[k].text));
      if (isnan(dev[k][i])) continue;
      sum += dev[k][i];
      folds++;
    }
    if (folds && sum < least) {
      least = sum;
      *l1 = path[i];
    }
  }
out:
  chi_free(of);
  chi_free(seen);
  chi_free(fold);
  chi_free(inner.of);
  return rc;
}

int chi_logit_out_of_fold(double *score, chi_logit_fold *fold, const chi_clusters *c, const double *x, const bool *y,
                          int32_t p, const chi_logit_opts *o, chi_err *err) {
  int rc = 0, folds = o && o->folds ? o->folds : 5;
  uint64_t seed = o ? o->seed : 0;
  size_t n_items = (size_t)c->n_items;
  int32_t n_ok = 0, *of = chi_calloc(n_items + 1, sizeof *of, err), *ok = chi_calloc(n_items + 1, sizeof *ok, err),
          *train = chi_calloc(n_items + 1, sizeof *train, err), *test = chi_calloc(n_items + 1, sizeof *test, err);
  chi_logit m = {0};
  CHI_TRY(of && ok && train && test ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_folds(of, c, folds, seed, err));
  for (int32_t i = 0; i < c->n_items; i++) {
    bool whole = true;
    for (int32_t j = 0; j < p; j++) whole = whole && isfinite(x[(size_t)i * (size_t)p + (size_t)j]);
    score[i] = NAN;
    if (whole) ok[n_ok++] = i;
  }
  for (int32_t k = 0; k < folds; k++) {
    int32_t n = pick(train, ok, n_ok, of, k, false), n_test = pick(test, ok, n_ok, of, k, true);
    chi_logit_fold used = {.l1 = o ? o->l1 : 0, .n = n};
    if (fold) fold[k] = used;
    if (!both(y, train, n)) continue;
    if (!(used.l1 > 0)) CHI_TRY(choose(&used.l1, x, y, p, train, n, c, o ? o->l2 : 0, seed + 1 + (uint64_t)k, err));
    CHI_TRY(chi_logit_fit(&m, x, y, p, train, n, used.l1, o ? o->l2 : 0, err));
    for (int32_t t = 0; t < n_test; t++) score[test[t]] = chi_logit_score(&m, x + (size_t)test[t] * (size_t)p);
    for (int32_t j = 0; j < p; j++) used.used += m.w[j] > 0 || m.w[j] < 0;
    if (fold) fold[k] = used;
    chi_logit_free(&m);
  }
out:
  chi_free(of);
  chi_free(ok);
  chi_free(train);
  chi_free(test);
  chi_logit_free(&m);
  return rc;
}

/* ---- risk -------------------------------------------------------------------------------------------------- */
typedef struct scored {
  double v;
  int32_t i;
} scored;

static int by_score(const void *a, const void *b) {
  const scored *x = a, *y = b;
  return x->v < y->v ? -1 : x->v > y->v ? 1 : (x->i > y->i) - (x->i < y->i);
}

double chi_risk(const double *score, const bool *good, int32_t n, double share, bool top, chi_err *err) {
  int32_t m = 0, bad = 0;
  scored *s = chi_calloc((size_t)n + 1, sizeof *s, err);
  for (int32_t i = 0; s && i < n; i++)
    if (!isnan(score[i])) s[m++] = (scored){score[i], i};
  int32_t take = (int32_t)(share * m + 0.5);
  if (s) qsort(s, (size_t)m, sizeof *s, by_score);
  for (int32_t k = 0; k < take; k++) bad += !good[s[top ? m - 1 - k : k].i];
  chi_free(s);
  return take > 0 ? (double)bad / take : NAN;
}

/* ---- ridge ------------------------------------------------------------------------------------------------- */
typedef struct ridge_job {
  const double *z; /* [n][d] standardised training rows */
  double *a;       /* [d][d] */
  double *b;       /* [classes][d] */
  const int32_t *label;
  int32_t n, d, classes;
  double lambda;
} ridge_job;

static void moment_row(void *ud, int64_t i) {
  const ridge_job *j = ud;
  for (int32_t k = 0; k <= i; k++) {
    double s = 0;
    for (int32_t r = 0; r < j->n; r++)
      s += j->z[(size_t)r * (size_t)j->d + (size_t)i] * j->z[(size_t)r * (size_t)j->d + (size_t)k];
    j->a[i * j->d + k] = s + (k == i ? j->lambda : 0);
  }
}

static void solve_class(void *ud, int64_t k) {
  const ridge_job *j = ud;
  double *b = j->b + k * j->d, share = 0;
  for (int32_t r = 0; r < j->n; r++) share += j->label[r] == (int32_t)k;
  share /= j->n;
  for (int32_t r = 0; r < j->n; r++) {
    double y = (j->label[r] == (int32_t)k ? 1 : 0) - share;
    for (int32_t i = 0; i < j->d; i++) b[i] += y * j->z[(size_t)r * (size_t)j->d + (size_t)i];
  }
  chi_chol_solve(j->a, j->d, b);
}

static int ridge_fold(int32_t *predicted, const float *x, const int32_t *label, int32_t d, int32_t n_classes,
                      const int32_t *train, int32_t n, const int32_t *test, int32_t n_test, double ridge,
                      chi_err *err) {
  int rc = 0;
  size_t w = (size_t)d;
  double *z = chi_calloc((size_t)n + 1, w * sizeof *z, err), *mean = chi_calloc(2 * w, sizeof *mean, err),
         *sd = mean + w, *a = chi_calloc(w, w * sizeof *a, err), *b = chi_calloc((size_t)n_classes, w * sizeof *b, err),
         *share = chi_calloc((size_t)n_classes, sizeof *share, err);
  int32_t *y = chi_calloc((size_t)n + 1, sizeof *y, err);
  CHI_TRY(z && mean && a && b && share && y ? 0 : CHI_ERR_MEMORY);
  for (int32_t r = 0; r < n; r++) {
    y[r] = label[train[r]];
    share[y[r]] += 1.0 / n;
    for (size_t i = 0; i < w; i++) mean[i] += (double)x[(size_t)train[r] * w + i] / n;
  }
  for (int32_t r = 0; r < n; r++)
    for (size_t i = 0; i < w; i++) {
      double v = (double)x[(size_t)train[r] * w + i] - mean[i];
      sd[i] += v * v / n;
    }
  for (size_t i = 0; i < w; i++) sd[i] = sd[i] > 0 ? sqrt(sd[i]) : INFINITY; /* a constant feature counts 0 */
  for (int32_t r = 0; r < n; r++)
    for (size_t i = 0; i < w; i++) z[(size_t)r * w + i] = ((double)x[(size_t)train[r] * w + i] - mean[i]) / sd[i];
  ridge_job j = {z, a, b, y, n, d, n_classes, ridge * n};
  chi_parallel_for(d, moment_row, &j);
  CHI_TRY(chi_chol(a, d, err));
  chi_parallel_for(n_classes, solve_class, &j);
  for (int32_t t = 0; t < n_test; t++) {
    double best = -INFINITY;
    for (int32_t k = 0; k < n_classes; k++) {
      double s = share[k];
      for (size_t i = 0; i < w; i++) s += b[(size_t)k * w + i] * ((double)x[(size_t)test[t] * w + i] - mean[i]) / sd[i];
      if (s > best) {
        best = s;
        predicted[test[t]] = k;
      }
    }
  }
out:
  chi_free(z);
  chi_free(mean);
  chi_free(a);
  chi_free(b);
  chi_free(share);
  chi_free(y);
  return rc;
}

int chi_ridge_out_of_fold(int32_t *predicted, const chi_clusters *c, const float *x, const int32_t *label, int32_t d,
                          int32_t n_classes, int folds, double ridge, uint64_t seed, chi_err *err) {
  int rc = 0;
  size_t n_items = (size_t)c->n_items;
  int32_t n_ok = 0, *of = chi_calloc(n_items + 1, sizeof *of, err), *ok = chi_calloc(n_items + 1, sizeof *ok, err),
          *train = chi_calloc(n_items + 1, sizeof *train, err), *test = chi_calloc(n_items + 1, sizeof *test, err);
  CHI_TRY(of && ok && train && test ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_folds(of, c, folds, seed, err));
  for (int32_t i = 0; i < c->n_items; i++) {
    bool whole = label[i] >= 0 && label[i] < n_classes;
    for (int32_t k = 0; k < d; k++) whole = whole && isfinite(x[(size_t)i * (size_t)d + (size_t)k]);
    predicted[i] = -1;
    if (whole) ok[n_ok++] = i;
  }
  for (int32_t k = 0; k < folds; k++) {
    int32_t n = pick(train, ok, n_ok, of, k, false), n_test = pick(test, ok, n_ok, of, k, true);
    if (n && n_test) CHI_TRY(ridge_fold(predicted, x, label, d, n_classes, train, n, test, n_test, ridge, err));
  }
out:
  chi_free(of);
  chi_free(ok);
  chi_free(train);
  chi_free(test);
  return rc;
}

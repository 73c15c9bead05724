/* MEMIT: a value for each request at the last of several layers; then, layer by layer, the part of what is missing that
 * falls to it: dW = R K^T (lambda C + K K^T)^-1 = R (lambda I + K^T C^-1 K)^-1 K^T C^-1, with keys K and residuals R of
 * all requests (columns), taken anew after each layer. All of it in f64. */
#include <math.h>
#include <string.h>

#include "edit/edit.h"

typedef struct work {
  int64_t n, d, f;
  float *z, *delta; /* [n][d]: wanted hidden states; scratch */
  float *k, *r;     /* [n][f], [n][d] */
  double *x, *gram; /* [n][f] C^-1 K; [n][n] */
  float *u, *v;
} work;

static int hidden(const chi_job *j, size_t i, int layer, float *out, chi_err *err) {
  return chi_edit_states(&j->m->net, j->req[i].prompt, j->req[i].row, layer, NULL, NULL, out, err);
}

static int values(chi_job *j, work *w, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < j->n; i++) {
    float *z = w->z + (int64_t)i * w->d, *delta = w->delta;
    CHI_TRY(hidden(j, i, j->layer_hi, z, err));
    double norm = sqrt(chi_dot64(z, z, w->d));
    j->info.value_norm += norm;
    /* what the MLP adds, the hidden state gains */
    CHI_TRY(chi_edit_value(delta, &j->m->net, &j->req[i], j->layer_hi, norm, &j->h, &j->info, err));
    for (int64_t c = 0; c < w->d; c++) z[c] += delta[c];
  }
  double f = 1.0 / (double)j->n;
  j->info.value_norm *= f, j->info.delta_norm *= f, j->info.loss_first *= f, j->info.loss_last *= f;
out:
  return rc;
}

/* Keys, residuals, and this layer's change into u [n][d], v [n][f]. */
static int solve(chi_job *j, work *w, int layer, chi_err *err) {
  int rc = 0;
  const double *c = NULL;
  double *b = NULL, kk = 0, lambda;
  int64_t n = w->n, left = j->layer_hi - layer + 1;
  for (int64_t i = 0; i < n; i++) {
    float *r = w->r + i * w->d;
    CHI_TRY(chi_edit_key(&j->m->net, &j->req[i], layer, true, w->k + i * w->f, NULL, err));
    CHI_TRY(hidden(j, (size_t)i, j->layer_hi, r, err));
    for (int64_t q = 0; q < w->d; q++) r[q] = (float)(((double)w->z[i * w->d + q] - (double)r[q]) / (double)left);
    kk += chi_dot64(w->k + i * w->f, w->k + i * w->f, w->f) / (double)n;
  }
  lambda = j->h.lambda_share ? j->h.lambda * kk : j->h.lambda;
  if (!(lambda > 0)) lambda = 1e-9 * kk; /* the limit; the system stays solvable when keys repeat */
  j->info.kk = kk, j->info.lambda = lambda;
  CHI_TRY(chi_edit_moment(&c, j, layer, w->f, err));
  for (int64_t i = 0; i < n * w->f; i++) w->x[i] = (double)w->k[i];
  for (int64_t i = 0; c && i < n; i++) chi_chol_solve(c, w->f, w->x + i * w->f);
  for (int64_t a = 0; a < n; a++)
    for (int64_t e = 0; e < n; e++) {
      double s = a == e ? lambda : 0;
      for (int64_t q = 0; q < w->f; q++) s += (double)w->k[a * w->f + q] * w->x[e * w->f + q];
      w->gram[a * n + e] = s;
    }
  CHI_TRY(chi_chol(w->gram, n, err));
  CHI_TRY((b = chi_calloc((size_t)n, sizeof *b, err)) ? 0 : CHI_ERR_MEMORY);
  for (int64_t q = 0; q < w->d; q++) { /* the gram matrix is symmetric */
    for (int64_t i = 0; i < n; i++) b[i] = (double)w->r[i * w->d + q];
    chi_chol_solve(w->gram, n, b);
    for (int64_t i = 0; i < n; i++) w->u[i * w->d + q] = (float)b[i];
  }
  for (int64_t i = 0; i < n * w->f; i++) w->v[i] = (float)w->x[i];
out:
  chi_free(b);
  return rc;
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  work w = {.n = (int64_t)j->n, .d = j->m->net.decoder.spec.d, .f = j->m->net.decoder.spec.ffn};
  chi_undo undo = {0};
  chi_delta *one = NULL;
  chi_arena a = {0};
  size_t nd = (size_t)(w.n * w.d), nf = (size_t)(w.n * w.f);
  w.z = chi_arena_array(&a, nd, sizeof(float), err);
  w.delta = chi_arena_array(&a, nd, sizeof(float), err);
  w.r = chi_arena_array(&a, nd, sizeof(float), err);
  w.u = chi_arena_array(&a, nd, sizeof(float), err);
  w.k = chi_arena_array(&a, nf, sizeof(float), err);
  w.v = chi_arena_array(&a, nf, sizeof(float), err);
  w.x = chi_arena_array(&a, nf, sizeof(double), err);
  w.gram = chi_arena_array(&a, (size_t)(w.n * w.n), sizeof(double), err);
  CHI_TRY(w.z && w.delta && w.r && w.u && w.k && w.v && w.x && w.gram ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(values(j, &w, err));
  for (int layer = j->layer_lo; layer <= j->layer_hi; layer++) {
    CHI_TRY(solve(j, &w, layer, err));
    CHI_TRY(chi_delta_add(j->delta, CHI_DECODER, layer, CHI_W_DOWN, w.d, w.f, w.n, w.u, w.v, err));
    if (layer == j->layer_hi) break;
    CHI_TRY(chi_delta_new(&one, "memit", err));
    CHI_TRY(chi_delta_add(one, CHI_DECODER, layer, CHI_W_DOWN, w.d, w.f, w.n, w.u, w.v, err));
    CHI_TRY(chi_delta_apply(one, j->m, &undo, err));
    chi_delta_free(one);
    one = NULL;
  }
out:
  chi_delta_undo(&undo);
  chi_delta_free(one);
  chi_arena_free(&a);
  return rc;
}

static const chi_preset kPresets[] = {
    {.name = "ours",
     .doc = "three layers, lambda as a share of k.k",
     .layer_lo = 1,
     .layer_hi = 3,
     .hyper = {.steps = 60,
               .lr = 0.4,
               .lr_share = true,
               .stop = 0.02,
               .decay = 1e-3,
               .clamp = 10,
               .lambda = 0.01,
               .lambda_share = true,
               .shrink = 0.1,
               .limit = NAN,
               .goal = NAN,
               .kl = 0,
               .contexts = 0,
               .rank = NAN,
               .alpha = NAN}},
    {.name = "published",
     .doc = "GPT-J of the paper's code (layers 3 to 8, 5 prefixes, KL term); lambda is for its covariance",
     .layer_lo = 3,
     .layer_hi = 8,
     .hyper = {.steps = 24,
               .lr = 0.5,
               .stop = 0,
               .decay = 0.5,
               .clamp = 0.75,
               .lambda = 15000,
               .shrink = 0,
               .limit = NAN,
               .goal = NAN,
               .kl = 0.0625,
               .contexts = 5,
               .rank = NAN,
               .alpha = NAN}},
    {0}};
const chi_method chi_method_memit = {.name = "memit", .presets = kPresets, .many = true, .run = run};

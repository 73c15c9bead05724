/* Explainers that follow attention through the layers: rollout, relevancy; and those from the gradient at the visual
 * vectors: attribution patching, integrated gradients. */
#include <math.h>
#include <string.h>

#include "analyze/explain/internal.h"
#include "sweep/grad.h"

/* ---- attention rollout ------------------------------------------------------------------------------------ */
/* Mean over heads of every layer's weights, lower triangles one after the other. */
typedef struct rollout {
  float *mean; /* [layers][T(T+1)/2] */
  int64_t triangle;
  int32_t heads;
} rollout;

static int take_row(void *ud, int layer, int32_t row, const float *v, int64_t width) {
  const rollout *r = ud;
  int64_t keys = width / r->heads;
  float *out = r->mean + layer * r->triangle + (int64_t)row * (row + 1) / 2;
  for (int64_t t = 0; t < keys; t++) {
    double sum = 0;
    for (int32_t h = 0; h < r->heads; h++) sum += (double)v[h * keys + t];
    out[t] = (float)(sum / r->heads);
  }
  return 0;
}

/* Last row of the product over layers of (I + mean attention) / 2 (Abnar and Zuidema 2020, section 3), from the last
 * layer down, so that only one row is carried. */
int chii_explain_rollout(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0, root;
  const chi_block_spec *k = &e->model->net.decoder.spec;
  int64_t T = e->prompt->n_rows, L = k->layers;
  size_t budget = e->opts.mem ? e->opts.mem : (size_t)4 << 30;
  rollout r = {.triangle = T * (T + 1) / 2, .heads = k->heads};
  chi_plan *plan = NULL;
  chi_arena tmp = {0};
  chi_input in = chi_prompt_input(e->prompt);
  (void)x;
  if ((size_t)(L * r.triangle) > budget / sizeof(float))
    return chi_fail(err, CHI_ERR_MEMORY, "rollout keeps %.1f GB of weights for %lld rows in %lld layers: raise --mem",
                    4e-9 * (double)(L * r.triangle), (long long)T, (long long)L);
  int32_t *rows = chi_arena_array(&tmp, (size_t)T, sizeof *rows, err);
  double *now = chi_arena_array(&tmp, (size_t)T, sizeof *now, err),
         *next = chi_arena_array(&tmp, (size_t)T, sizeof *next, err);
  r.mean = chi_arena_array(&tmp, (size_t)(L * r.triangle), sizeof *r.mean, err);
  CHI_TRY(rows && now && next && r.mean ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < T; i++) rows[i] = i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  for (int l = 0; l < L; l++) {
    chi_capture c = {
        .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_PATTERN, .layer = l, .rows = rows, .n_rows = (int32_t)T};
    CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  }
  chi_run_opts o = {.mem = e->opts.mem, .on_capture = take_row, .ud = &r};
  CHI_TRY(chi_run_plan(&e->model->net, plan, &o, err));
  now[T - 1] = 1;
  for (int64_t l = L - 1; l >= 0; l--) {
    for (int64_t t = 0; t < T; t++) next[t] = 0.5 * now[t];
    for (int64_t i = 0; i < T; i++) {
      const float *a = r.mean + l * r.triangle + i * (i + 1) / 2;
      for (int64_t t = 0; t <= i && now[i] != 0; t++) next[t] += 0.5 * now[i] * (double)a[t];
    }
    double *swap = now;
    now = next, next = swap;
  }
  memcpy(map, now + e->remover->grid.first, (size_t)e->n * sizeof *map);
out:
  chi_plan_free(plan);
  chi_arena_free(&tmp);
  return rc;
}

/* ---- gradient x attention --------------------------------------------------------------------------------- */
typedef struct relevancy {
  double *row, *next; /* [T] */
  int32_t heads;
} relevancy;

/* row <- row (I + C), C = mean over heads of max(0, gradient x weight). */
static void take_pattern(void *ud, chi_stack stack, int layer, const float *p, const float *dp, int32_t m, int32_t T) {
  relevancy *r = ud;
  (void)layer;
  if (stack != CHI_DECODER) return;
  memcpy(r->next, r->row, (size_t)T * sizeof *r->row);
  for (int64_t i = 0; i < m; i++) {
    double w = r->row[T - m + i] / r->heads;
    for (int64_t h = 0; h < r->heads && w != 0; h++) {
      const float *pi = p + (h * m + i) * T, *di = dp + (h * m + i) * T;
      for (int64_t t = 0; t < T; t++)
        if (pi[t] * di[t] > 0) r->next[t] += w * (double)pi[t] * (double)di[t];
    }
  }
  double *swap = r->row;
  r->row = r->next, r->next = swap;
}

/* The target's own logit, as the published tool takes it. */
static void loss_logit(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  int32_t token = *(const int32_t *)ud;
  (void)i, (void)vocab;
  dlogits[token] = 1;
  *loss += (double)logits[token];
}

/* Last row of R, R <- R + C R from the first layer on (Chefer et al. 2021, section 3.1; their closing normalisation
 * scales that row and is left out). Carried from the last layer down, as the gradients come. */
int chii_explain_relevancy(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  double loss = 0;
  chi_grad *g = NULL;
  chi_arena tmp = {0};
  chi_input in = chi_prompt_input(e->prompt);
  int32_t T = e->prompt->n_rows, last = T - 1;
  relevancy r = {.heads = e->model->net.decoder.spec.heads};
  (void)x;
  r.row = chi_arena_array(&tmp, (size_t)T, sizeof *r.row, err);
  r.next = chi_arena_array(&tmp, (size_t)T, sizeof *r.next, err);
  CHI_TRY(r.row && r.next ? 0 : CHI_ERR_MEMORY);
  r.row[last] = 1;
  CHI_TRY(chi_grad_open(&g, &e->model->net, &in, 1, NULL, 0, false, err));
  chi_grad_step st = {.loss_rows = &last,
                      .n_loss = 1,
                      .loss = loss_logit,
                      .ud = &e->opts.target,
                      .on_pattern = take_pattern,
                      .pattern_ud = &r};
  CHI_TRY(chi_grad_run(g, &st, &loss, err));
  memcpy(map, r.row + e->remover->grid.first, (size_t)e->n * sizeof *map);
out:
  chi_grad_close(g);
  chi_arena_free(&tmp);
  return rc;
}

/* ---- gradients at the visual vectors ---------------------------------------------------------------------- */
typedef struct session {
  chi_explain *e;
  chi_grad *g;
  int32_t *rows;    /* [n]: decoder rows of the patches */
  float *at, *grad; /* [n][d] */
  chi_arena tmp;
  chi_err *err;
} session;

static int open_session(session *s, chi_explain *e, chi_err *err) {
  int rc = 0;
  size_t nd = (size_t)e->n * (size_t)e->remover->d;
  chi_input in = chi_prompt_input(e->prompt);
  *s = (session){.e = e, .err = err};
  s->rows = chi_arena_array(&s->tmp, (size_t)e->n, sizeof *s->rows, err);
  s->at = chi_arena_array(&s->tmp, nd, sizeof *s->at, err);
  s->grad = chi_arena_array(&s->tmp, nd, sizeof *s->grad, err);
  CHI_TRY(s->rows && s->at && s->grad ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < e->n; i++) s->rows[i] = e->remover->grid.first + i;
  CHI_TRY(chi_grad_open(&s->g, &e->model->net, &in, 1, &s->rows[0], 0, false, err));
out:
  return rc;
}

static void close_session(session *s) {
  chi_grad_close(s->g);
  chi_arena_free(&s->tmp);
}

/* s->grad = d log p(target) / d vectors where they are s->at; logp may be NULL. */
static int gradient(session *s, double *logp) {
  int rc = 0;
  double loss = 0;
  chi_explain *e = s->e;
  int32_t last = e->prompt->n_rows - 1;
  chi_intervention iv = {.op = CHI_OP_SET,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_EMBED,
                         .rows = s->rows,
                         .n_rows = e->n,
                         .value = s->at,
                         .value_rows = e->n};
  chi_grad_site site = {
      .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .layer = -1, .rows = s->rows, .n_rows = e->n, .out = s->grad};
  chi_nll nll = {.token = &e->opts.target};
  chi_grad_step st = {.iv = &iv,
                      .n_iv = 1,
                      .loss_rows = &last,
                      .n_loss = 1,
                      .loss = chi_loss_nll,
                      .ud = &nll,
                      .sites = &site,
                      .n_sites = 1};
  CHI_TRY(chi_grad_run(s->g, &st, &loss, s->err));
  for (int64_t i = 0; i < (int64_t)e->n * e->remover->d; i++) s->grad[i] = -s->grad[i];
  if (logp) *logp = -loss;
out:
  return rc;
}

/* sum over columns of g (x - mean), patch by patch, added to map. */
static void along(const chi_explain *e, const float *g, const float *mean, double weight, double *map) {
  int64_t d = e->remover->d;
  for (int64_t i = 0; i < e->n; i++)
    for (int64_t c = 0; c < d; c++)
      map[i] += weight * (double)g[i * d + c] * ((double)e->remover->visual[i * d + c] - (double)mean[c]);
}

/* First order of the fall of log p when a patch's vector becomes the mean one. */
int chii_explain_patching(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  session s;
  const float *mean = NULL;
  size_t bytes = (size_t)e->n * (size_t)e->remover->d * sizeof(float);
  (void)x;
  CHI_TRY(open_session(&s, e, err));
  CHI_TRY(chi_remover_mean(e->remover, &mean, err));
  memcpy(s.at, e->remover->visual, bytes);
  CHI_TRY(gradient(&s, NULL));
  along(e, s.grad, mean, 1, map);
out:
  close_session(&s);
  return rc;
}

/* Mean gradient at the middles of `steps` equal pieces of the way from the mean vector (all patches at once) to the
 * picture; the sum over patches tends to log p(picture) - log p(all patches mean). */
int chii_explain_integrated(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  session s;
  const float *mean = NULL;
  int64_t d = e->remover->d;
  int32_t K = e->opts.steps;
  (void)x;
  CHI_TRY(open_session(&s, e, err));
  CHI_TRY(chi_remover_mean(e->remover, &mean, err));
  for (int32_t k = 0; k < K; k++) {
    double t = (k + 0.5) / K;
    for (int64_t i = 0; i < e->n * d; i++)
      s.at[i] = (float)((1 - t) * (double)mean[i % d] + t * (double)e->remover->visual[i]);
    CHI_TRY(gradient(&s, NULL));
    along(e, s.grad, mean, 1.0 / K, map);
    CHI_TRY(chi_progress("integrated gradients", k + 1, K, err));
  }
out:
  close_session(&s);
  return rc;
}

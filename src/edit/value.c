/* The value that an edit writes: a vector added to what an MLP writes at one row, found by Adam. */
#include <math.h>
#include <string.h>

#include "edit/edit.h"

double chi_dot64(const float *a, const float *b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
  return s;
}

void chi_adam_step(chi_adam *a, float *x, const float *g) {
  a->t++;
  double c1 = 1 - chi_pow64(0.9, (double)a->t), c2 = 1 - chi_pow64(0.999, (double)a->t);
  for (int64_t i = 0; i < a->n; i++) {
    a->m[i] = 0.9f * a->m[i] + 0.1f * g[i];
    a->v[i] = 0.999f * a->v[i] + 0.001f * g[i] * g[i];
    x[i] -= (float)(a->lr * ((double)a->m[i] / c1) / (sqrt((double)a->v[i] / c2) + 1e-8));
  }
}

typedef struct take_job {
  float *to[3];
  int id[3];
} take_job;

static int on_state(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)i;
  take_job *j = ud;
  for (int k = 0; k < 3; k++)
    if (j->to[k] && j->id[k] == capture) memcpy(j->to[k], x, (size_t)n * sizeof *x);
  return 0;
}

int chi_edit_states(const chi_net *net, const chi_prompt *p, int32_t row, int layer, float *key, float *out,
                    float *hidden, chi_err *err) {
  int rc = 0, root;
  static const chi_site kSite[3] = {CHI_SITE_MLP_ACT, CHI_SITE_MLP_OUT, CHI_SITE_RESID_POST};
  take_job j = {.to = {key, out, hidden}, .id = {-1, -1, -1}};
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(p);
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  for (int k = 0; k < 3; k++) {
    chi_capture c = {.branch = root, .stack = CHI_DECODER, .site = kSite[k], .layer = layer, .rows = &row, .n_rows = 1};
    if (j.to[k]) CHI_TRY(chi_plan_capture(plan, &c, &j.id[k], err));
  }
  chi_run_opts o = {.on_capture = on_state, .ud = &j};
  CHI_TRY(chi_run_plan(net, plan, &o, err));
out:
  chi_plan_free(plan);
  return rc;
}

/* Gradient of decay * |delta| / norm^2, and delta back into the ball. */
static void add_decay(float *g, const float *delta, int64_t d, double norm, double decay) {
  double len = sqrt(chi_dot64(delta, delta, d));
  if (len == 0 || decay == 0) return;
  double f = decay / (len * norm * norm);
  for (int64_t i = 0; i < d; i++) g[i] += (float)(f * (double)delta[i]);
}

static void project(float *delta, int64_t d, double most) {
  double len = sqrt(chi_dot64(delta, delta, d));
  if (most <= 0 || len <= most) return;
  for (int64_t i = 0; i < d; i++) delta[i] = (float)((double)delta[i] * (most / len));
}

int chi_edit_value(float *delta, const chi_net *net, const chi_request *r, int layer, double norm, const chi_hyper *h,
                   chi_edit_info *info, chi_err *err) {
  int rc = 0;
  int64_t d = net->decoder.spec.d;
  int32_t *tokens = NULL, *rows = NULL;
  double *weight = NULL, loss = 0;
  chi_grad *g = NULL;
  chi_input in;
  float *grad = chi_calloc((size_t)d, sizeof *grad, err);
  chi_adam a = {.lr = h->lr, .n = d, .m = chi_calloc((size_t)d, sizeof(float), err)};
  a.v = chi_calloc((size_t)d, sizeof(float), err);
  CHI_TRY(grad && a.m && a.v ? 0 : CHI_ERR_MEMORY);
  if (!(norm > 0)) {
    rc = chi_fail(err, CHI_ERR_ARG, "layer %d writes nothing at row %d: there is no value to change", layer, r->row);
    goto out;
  }
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  rows = chi_calloc((size_t)r->n_target, sizeof *rows, err);
  weight = chi_calloc((size_t)r->n_target, sizeof *weight, err);
  CHI_TRY(rows && weight ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < r->n_target; i++) {
    rows[i] = r->prompt->n_rows - 1 + i;
    weight[i] = 1.0 / r->n_target;
  }
  memset(delta, 0, (size_t)d * sizeof *delta);
  if (h->lr_share) a.lr = h->lr * norm / sqrt((double)d);
  chi_nll nll = {.token = r->target, .weight = weight};
  chi_intervention iv = {.op = CHI_OP_ADD,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_MLP_OUT,
                         .layer_lo = layer,
                         .layer_hi = layer + 1,
                         .rows = &r->row,
                         .n_rows = 1,
                         .value = delta,
                         .value_rows = 1,
                         .scale = 1};
  chi_grad_site site = {
      .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer = layer, .rows = &r->row, .n_rows = 1, .out = grad};
  chi_grad_step step = {.iv = &iv,
                        .n_iv = 1,
                        .loss_rows = rows,
                        .n_loss = r->n_target,
                        .loss = chi_loss_nll,
                        .ud = &nll,
                        .sites = &site,
                        .n_sites = 1};
  CHI_TRY(chi_grad_open(&g, net, &in, r->row, layer, false, err));
  for (int i = 0; i < (int)h->steps; i++) {
    CHI_TRY(chi_progress("editing", i, (int)h->steps, err));
    CHI_TRY(chi_grad_run(g, &step, &loss, err));
    if (i == 0) info->loss_first += loss;
    if (h->stop > 0 && loss < h->stop) break;
    info->steps++;
    add_decay(grad, delta, d, norm, h->decay);
    chi_adam_step(&a, delta, grad);
    project(delta, d, h->clamp * norm);
  }
  info->loss_last += loss;
  info->delta_norm += sqrt(chi_dot64(delta, delta, d));
  for (int64_t i = 0; i < d; i++)
    if (!isfinite(delta[i])) {
      rc = chi_fail(err, CHI_ERR_ARG, "the edit diverged: lower the learning rate (%g) or the clamp", h->lr);
      break;
    }
out:
  chi_grad_close(g);
  chi_free(grad);
  chi_free(a.m);
  chi_free(a.v);
  chi_free(tokens);
  chi_free(rows);
  chi_free(weight);
  return rc;
}

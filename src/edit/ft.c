/* Fine-tuning of one weight matrix on the request: Adam on -log p of the target; with a limit, each element stays
 * within it of where it began (Zhu et al. 2020, as in the baselines of ROME). */
#include <math.h>
#include <string.h>

#include "edit/edit.h"

static int set_weight(chi_linear *l, const float *w, chi_err *err) {
  chi_mat next = {0};
  int rc = chi_mat_pack(&next, w, CHI_F32, l->w.n, l->w.k, l->w.k, l->w.compute, err);
  if (rc) return rc;
  chi_mat_free(&l->w);
  l->w = next;
  return 0;
}

static chi_stack stack_of(const chi_job *j) { return j->opts->other_stack ? j->opts->stack : CHI_DECODER; }
static bool in_has_picture(const chi_job *j) { return j->req->prompt->pixels != NULL; }

static int train(chi_job *j, chi_linear *l, const float *w0, float *w, chi_err *err) {
  int rc = 0;
  const chi_request *r = j->req;
  int64_t count = l->w.n * l->w.k;
  int32_t *tokens = NULL, *rows = NULL;
  double *weight = NULL, loss = 0;
  chi_grad *g = NULL;
  chi_input in;
  chi_adam a = {.lr = j->h.lr, .n = count, .m = chi_calloc((size_t)count, sizeof(float), err)};
  a.v = chi_calloc((size_t)count, sizeof(float), err);
  float *grad = chi_calloc((size_t)count, sizeof *grad, err);
  rows = chi_calloc((size_t)r->n_target, sizeof *rows, err);
  weight = chi_calloc((size_t)r->n_target, sizeof *weight, err);
  CHI_TRY(a.m && a.v && grad && rows && weight ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  for (int32_t i = 0; i < r->n_target; i++) {
    rows[i] = r->prompt->n_rows - 1 + i;
    weight[i] = 1.0 / r->n_target;
  }
  chi_nll nll = {.token = r->target, .weight = weight};
  chi_stack stack = stack_of(j);
  bool vision = stack != CHI_DECODER;
  if (vision && !in_has_picture(j)) {
    rc = chi_fail(err, CHI_ERR_ARG, "the question has no picture: it does not read the %s", chi_stack_name(stack));
    goto out;
  }
  chi_grad_weight want = {.stack = stack, .layer = j->layer_lo, .which = (chi_weight)j->opts->weight, .out = grad};
  chi_grad_step step = {
      .loss_rows = rows, .n_loss = r->n_target, .loss = chi_loss_nll, .ud = &nll, .weights = &want, .n_weights = 1};
  /* Every row sees the weight, so only what lies below its layer is constant. */
  CHI_TRY(chi_grad_open(&g, &j->m->net, &in, 0, vision ? 0 : j->layer_lo, vision, err));
  for (int i = 0; i < (int)j->h.steps; i++) {
    CHI_TRY(chi_progress("editing", i, (int)j->h.steps, err));
    memset(grad, 0, (size_t)count * sizeof *grad);
    CHI_TRY(chi_grad_run(g, &step, &loss, err));
    if (i == 0) j->info.loss_first = loss;
    if (j->h.stop > 0 && loss < j->h.stop) break;
    chi_adam_step(&a, w, grad);
    float most = (float)j->h.limit;
    for (int64_t c = 0; most > 0 && c < count; c++) {
      if (w[c] > w0[c] + most) w[c] = w0[c] + most;
      if (w[c] < w0[c] - most) w[c] = w0[c] - most;
    }
    CHI_TRY(set_weight(l, w, err));
    j->info.steps++;
  }
  j->info.loss_last = loss;
out:
  chi_grad_close(g);
  chi_free(a.m);
  chi_free(a.v);
  chi_free(grad);
  chi_free(rows);
  chi_free(weight);
  chi_free(tokens);
  return rc;
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  chi_linear *l = chi_delta_linear(j->m, stack_of(j), j->layer_lo, j->opts->weight);
  float *w0 = NULL, *w = NULL;
  chi_mat base = {0};
  if (j->layer_lo != j->layer_hi) return chi_fail(err, CHI_ERR_ARG, "ft changes one layer");
  if (!l)
    return chi_fail(err, CHI_ERR_ARG, "layer %d of the %s has no weight %s", j->layer_lo, chi_stack_name(stack_of(j)),
                    chi_weight_name((chi_weight)j->opts->weight));
  int64_t count = l->w.n * l->w.k;
  w0 = chi_calloc((size_t)count, sizeof *w0, err);
  w = chi_calloc((size_t)count, sizeof *w, err);
  CHI_TRY(w0 && w ? 0 : CHI_ERR_MEMORY);
  chi_mat_read(&l->w, 0, l->w.n, w0);
  memcpy(w, w0, (size_t)count * sizeof *w);
  base = l->w;
  l->w = (chi_mat){0};
  rc = chi_mat_pack(&l->w, w, CHI_F32, base.n, base.k, base.k, base.compute, err);
  if (rc == 0) rc = train(j, l, w0, w, err);
  chi_mat_free(&l->w);
  l->w = base;
  if (rc) goto out;
  j->info.value_norm = sqrt(chi_dot64(w0, w0, count));
  for (int64_t i = 0; i < count; i++) w[i] -= w0[i];
  j->info.delta_norm = sqrt(chi_dot64(w, w, count));
  CHI_TRY(chi_delta_add(j->delta, stack_of(j), j->layer_lo, j->opts->weight, l->w.n, l->w.k, 0, w, NULL, err));
out:
  chi_free(w0);
  chi_free(w);
  return rc;
}

static const chi_preset kPresets[] = {{.name = "constrained",
                                       .doc = "ROME's constrained baseline: layer 0, each element within 5e-4",
                                       .layer_lo = 0,
                                       .layer_hi = 0,
                                       .hyper = {.steps = 25,
                                                 .lr = 5e-4,
                                                 .stop = 0.01,
                                                 .decay = NAN,
                                                 .clamp = NAN,
                                                 .lambda = NAN,
                                                 .shrink = NAN,
                                                 .limit = 5e-4,
                                                 .goal = NAN,
                                                 .kl = NAN,
                                                 .contexts = NAN,
                                                 .rank = NAN,
                                                 .alpha = NAN}},
                                      {.name = "unconstrained",
                                       .doc = "the same without a limit, layer 1",
                                       .layer_lo = 1,
                                       .layer_hi = 1,
                                       .hyper = {.steps = 25,
                                                 .lr = 5e-4,
                                                 .stop = 0.01,
                                                 .decay = NAN,
                                                 .clamp = NAN,
                                                 .lambda = NAN,
                                                 .shrink = NAN,
                                                 .limit = 0,
                                                 .goal = NAN,
                                                 .kl = NAN,
                                                 .contexts = NAN,
                                                 .rank = NAN,
                                                 .alpha = NAN}},
                                      {0}};
const chi_method chi_method_ft = {.name = "ft", .presets = kPresets, .run = run};

/* The baseline that must lose: each token of the target gets, in the head's bias, what lifts it to the goal in this
 * prompt, and in every other one too. */
#include <math.h>

#include "analyze/metrics.h"
#include "edit/edit.h"

typedef struct lift_job {
  const int32_t *target;
  double goal, loss;
  float *d;
} lift_job;

static int on_logits(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)capture;
  lift_job *j = ud;
  int32_t t = j->target[i];
  double lp = (double)x[t] - chi_logsumexp(x, n), p = chi_exp64(lp);
  j->loss -= lp;
  if (p >= j->goal) return 0;
  /* p' = e^a p / (1 - p + e^a p) */
  double a = chi_log64(j->goal / (1 - j->goal)) + chi_log64(1 - p) - lp;
  if (a > (double)j->d[t]) j->d[t] = (float)a; /* a token that comes twice: the larger one */
  return 0;
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0, root, id;
  const chi_request *r = j->req;
  int32_t *tokens = NULL, *rows = NULL;
  chi_plan *plan = NULL;
  chi_input in;
  int64_t vocab = j->m->net.decoder.vocab;
  lift_job job = {.target = r->target, .goal = j->h.goal, .d = chi_calloc((size_t)vocab, sizeof(float), err)};
  CHI_TRY(job.d ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  CHI_TRY((rows = chi_calloc((size_t)r->n_target, sizeof *rows, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < r->n_target; i++) rows[i] = r->prompt->n_rows - 1 + i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = r->n_target};
  CHI_TRY(chi_plan_capture(plan, &c, &id, err));
  chi_run_opts o = {.on_capture = on_logits, .ud = &job};
  CHI_TRY(chi_run_plan(&j->m->net, plan, &o, err));
  j->info.loss_first = job.loss / r->n_target;
  j->info.delta_norm = sqrt(chi_dot64(job.d, job.d, vocab));
  CHI_TRY(chi_delta_add(j->delta, CHI_DECODER, 0, CHI_DELTA_HEAD_BIAS, vocab, 1, 0, job.d, NULL, err));
out:
  chi_plan_free(plan);
  chi_free(tokens);
  chi_free(rows);
  chi_free(job.d);
  return rc;
}

static const chi_preset kPresets[] = {{.name = "ours",
                                       .doc = "to a probability of 0.95",
                                       .hyper = {.steps = NAN,
                                                 .lr = NAN,
                                                 .stop = NAN,
                                                 .decay = NAN,
                                                 .clamp = NAN,
                                                 .lambda = NAN,
                                                 .shrink = NAN,
                                                 .limit = NAN,
                                                 .goal = 0.95,
                                                 .kl = NAN,
                                                 .contexts = NAN,
                                                 .rank = NAN,
                                                 .alpha = NAN}},
                                      {0}};
const chi_method chi_method_bias = {.name = "bias", .presets = kPresets, .run = run};

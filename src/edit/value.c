/* The value that an edit writes: a vector added to what an MLP writes at one row, found by Adam. */
#include <math.h>
#include <string.h>

#include "analyze/metrics.h"
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

/* ---- prompts that a value must serve -------------------------------------------------------------------------- */
/* One prompt of the optimisation: the request's own, one of its contexts, or its kl prompt. */
typedef struct served {
  int32_t *tokens; /* owned; NULL: the prompt's */
  double loss;     /* of the last run */
} served;

typedef struct kl_loss {
  double *init; /* [vocab] log-probabilities of the unchanged model */
  bool known;
  double weight, kl;
} kl_loss;

/* All prompts are the inputs of one session, which goes through each weight once a step for all of them. */
typedef struct value_job {
  const chi_net *net;
  int layer;
  const chi_hyper *h;
  const chi_request *req;
  chi_grad *g;
  served *s; /* the bare prompt, contexts, and last the kl prompt if there is one */
  chi_input *in;
  int32_t *first;            /* [n] edited rows, which are the first live ones */
  int32_t *rows, *loss_rows; /* [n] the same, and loss rows of all prompts: both counted through the inputs */
  int32_t n, n_loss;
  bool has_kl;
  kl_loss kl;
  float *grad; /* [n][d] */
  float *sum;  /* [d] */
  chi_arena arena;
} value_job;

/* KL(p || q) of this run's p to the unchanged q, which the first call takes down; gradient p (log p - log q - KL). */
static void loss_kl(kl_loss *k, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  double lse = chi_logsumexp(logits, vocab), kl = 0;
  if (!k->known) {
    for (int64_t v = 0; v < vocab; v++) k->init[v] = (double)logits[v] - lse;
    k->known = true;
  }
  for (int64_t v = 0; v < vocab; v++) {
    double lp = (double)logits[v] - lse;
    kl += chi_exp64(lp) * (lp - k->init[v]);
  }
  for (int64_t v = 0; v < vocab; v++) {
    double lp = (double)logits[v] - lse;
    dlogits[v] = (float)(k->weight * chi_exp64(lp) * (lp - k->init[v] - kl));
  }
  k->kl = kl;
  *loss += k->weight * kl;
}

/* The i-th loss row of all prompts. */
static void loss_of_all(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  value_job *j = ud;
  int32_t n = j->req->n_target, k = i / n; /* the kl prompt is the last, its row as well */
  double mine = 0;
  if (j->has_kl && k == j->n - 1) {
    loss_kl(&j->kl, logits, dlogits, vocab, &mine);
  } else {
    double share = 1.0 / (double)(1 + j->req->n_context) / n;
    chi_loss_nll(&(chi_nll){.token = &j->req->target[i % n], .weight = &share}, 0, logits, dlogits, vocab, &mine);
  }
  j->s[k].loss += mine;
  *loss += mine;
}

/* r NULL: the kl prompt, whose loss is at the edited row. */
static int add_prompt(value_job *j, const chi_prompt *p, int32_t row, const chi_request *r, chi_err *err) {
  int32_t k = j->n, base = 0, n = r ? r->n_target : 1;
  chi_request one = {.prompt = p, .target = r ? r->target : NULL, .n_target = n, .row = row};
  for (int32_t i = 0; i < k; i++) base += j->in[i].n_rows;
  if (r) {
    int rc = chi_request_input(&j->in[k], &j->s[k].tokens, &one, err);
    if (rc) return rc;
  } else {
    j->in[k] = chi_prompt_input(p);
    j->in[k].n_rows = row + 1; /* nothing behind it is asked for */
  }
  j->first[k] = row;
  j->rows[k] = base + row;
  for (int32_t i = 0; i < n; i++) j->loss_rows[j->n_loss++] = base + (r ? p->n_rows - 1 + i : row);
  j->n++;
  return 0;
}

static int open_job(value_job *j, chi_err *err) {
  int rc = 0;
  const chi_request *r = j->req;
  size_t most = r->n_context + 2;
  int64_t d = j->net->decoder.spec.d;
  j->s = chi_arena_array(&j->arena, most, sizeof *j->s, err);
  j->in = chi_arena_array(&j->arena, most, sizeof *j->in, err);
  j->first = chi_arena_array(&j->arena, most, sizeof *j->first, err);
  j->rows = chi_arena_array(&j->arena, most, sizeof *j->rows, err);
  j->loss_rows = chi_arena_array(&j->arena, most * (size_t)r->n_target, sizeof *j->loss_rows, err);
  j->grad = chi_arena_array(&j->arena, most * (size_t)d, sizeof *j->grad, err);
  j->sum = chi_arena_array(&j->arena, (size_t)d, sizeof *j->sum, err);
  j->kl.init = chi_arena_array(&j->arena, (size_t)j->net->decoder.vocab, sizeof *j->kl.init, err);
  CHI_TRY(j->s && j->in && j->first && j->rows && j->loss_rows && j->grad && j->sum && j->kl.init ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(add_prompt(j, r->prompt, r->row, r, err));
  for (size_t i = 0; i < r->n_context; i++) CHI_TRY(add_prompt(j, r->context[i].prompt, r->context[i].row, r, err));
  if (r->kl.prompt && j->h->kl > 0) {
    CHI_TRY(add_prompt(j, r->kl.prompt, r->kl.row, NULL, err));
    j->has_kl = true;
  }
  j->kl.weight = j->h->kl;
  CHI_TRY(chi_grad_open(&j->g, j->net, j->in, j->n, j->first, j->layer, false, err));
out:
  return rc;
}

static void close_job(value_job *j) {
  chi_grad_close(j->g);
  for (int32_t i = 0; i < j->n; i++) chi_free(j->s[i].tokens);
  chi_arena_free(&j->arena);
}

/* Loss of all prompts at delta; its gradient into j->sum. *nll: without the kl term. */
static int run_prompts(value_job *j, const float *delta, double *nll, chi_err *err) {
  int64_t d = j->net->decoder.spec.d;
  double loss;
  chi_intervention iv = {.op = CHI_OP_ADD,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_MLP_OUT,
                         .layer_lo = j->layer,
                         .layer_hi = j->layer + 1,
                         .rows = j->rows,
                         .n_rows = j->n,
                         .value = delta,
                         .value_rows = 1,
                         .scale = 1};
  chi_grad_site site = {.stack = CHI_DECODER,
                        .site = CHI_SITE_MLP_OUT,
                        .layer = j->layer,
                        .rows = j->rows,
                        .n_rows = j->n,
                        .out = j->grad};
  chi_grad_step step = {.iv = &iv,
                        .n_iv = 1,
                        .loss_rows = j->loss_rows,
                        .n_loss = j->n_loss,
                        .loss = loss_of_all,
                        .ud = j,
                        .sites = &site,
                        .n_sites = 1};
  for (int32_t i = 0; i < j->n; i++) j->s[i].loss = 0;
  int rc = chi_grad_run(j->g, &step, &loss, err);
  if (rc) return rc;
  memset(j->sum, 0, (size_t)d * sizeof *j->sum);
  *nll = 0;
  for (int32_t i = 0; i < j->n; i++) {
    for (int64_t k = 0; k < d; k++) j->sum[k] += j->grad[i * d + k];
    if (!j->has_kl || i < j->n - 1) *nll += j->s[i].loss;
  }
  return 0;
}

int chi_edit_value(float *delta, const chi_net *net, const chi_request *r, int layer, double norm, const chi_hyper *h,
                   chi_edit_info *info, chi_err *err) {
  int rc = 0;
  int64_t d = net->decoder.spec.d;
  double loss = 0;
  value_job j = {.net = net, .layer = layer, .h = h, .req = r};
  chi_adam a = {.lr = h->lr, .n = d, .m = chi_calloc((size_t)d, sizeof(float), err)};
  a.v = chi_calloc((size_t)d, sizeof(float), err);
  CHI_TRY(a.m && a.v ? 0 : CHI_ERR_MEMORY);
  if (!(norm > 0)) {
    rc = chi_fail(err, CHI_ERR_ARG, "layer %d writes nothing at row %d: there is no value to change", layer, r->row);
    goto out;
  }
  CHI_TRY(open_job(&j, err));
  memset(delta, 0, (size_t)d * sizeof *delta);
  if (h->lr_share) a.lr = h->lr * norm / sqrt((double)d);
  for (int i = 0; i < (int)h->steps; i++) {
    CHI_TRY(chi_progress("editing", i, (int)h->steps, err));
    CHI_TRY(run_prompts(&j, delta, &loss, err));
    if (i == 0) info->loss_first += loss;
    if (h->stop > 0 && loss < h->stop) break;
    info->steps++;
    add_decay(j.sum, delta, d, norm, h->decay);
    chi_adam_step(&a, delta, j.sum);
    project(delta, d, h->clamp * norm);
  }
  info->loss_last += loss;
  info->kl += j.kl.kl;
  info->contexts = r->n_context;
  info->delta_norm += sqrt(chi_dot64(delta, delta, d));
  for (int64_t i = 0; i < d; i++)
    if (!isfinite(delta[i])) {
      rc = chi_fail(err, CHI_ERR_ARG, "the edit diverged: lower the learning rate (%g) or the clamp", h->lr);
      break;
    }
out:
  close_job(&j);
  chi_free(a.m);
  chi_free(a.v);
  return rc;
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */
int chi_edit_key(const chi_net *net, const chi_request *r, int layer, bool halves, float *key, float *out,
                 chi_err *err) {
  int rc = 0;
  int64_t f = net->decoder.spec.ffn, d = net->decoder.spec.d;
  float *k = NULL, *o = NULL;
  double *sum = NULL, *bare = NULL, n = (double)r->n_context;
  if (r->n_context == 0) return chi_edit_states(net, r->prompt, r->row, layer, key, out, NULL, err);
  k = chi_calloc((size_t)f, sizeof *k, err);
  o = chi_calloc((size_t)d, sizeof *o, err);
  sum = chi_calloc((size_t)(f + d), sizeof *sum, err);
  bare = chi_calloc((size_t)(f + d), sizeof *bare, err);
  CHI_TRY(k && o && sum && bare ? 0 : CHI_ERR_MEMORY);
  for (size_t c = 0; c <= r->n_context; c++) {
    const chi_prompt *p = c ? r->context[c - 1].prompt : r->prompt;
    double *to = c ? sum : bare;
    CHI_TRY(chi_edit_states(net, p, c ? r->context[c - 1].row : r->row, layer, k, o, NULL, err));
    for (int64_t i = 0; i < f; i++) to[i] += (double)k[i];
    for (int64_t i = 0; i < d; i++) to[f + i] += (double)o[i];
  }
  double a = halves ? 0.5 : 1 / (n + 1), b = halves ? 0.5 / n : 1 / (n + 1);
  for (int64_t i = 0; i < f; i++) key[i] = (float)(a * bare[i] + b * sum[i]);
  for (int64_t i = 0; out && i < d; i++) out[i] = (float)(a * bare[f + i] + b * sum[f + i]);
out:
  chi_free(k);
  chi_free(o);
  chi_free(sum);
  chi_free(bare);
  return rc;
}

int chi_edit_residual(chi_job *j, float *key, float *residual, chi_err *err) {
  int rc = 0;
  const chi_net *net = &j->m->net;
  int64_t d = net->decoder.spec.d, f = net->decoder.spec.ffn;
  float *z0 = chi_calloc((size_t)d, sizeof *z0, err), *mean = chi_calloc((size_t)d, sizeof *mean, err);
  CHI_TRY(z0 && mean ? 0 : CHI_ERR_MEMORY);
  /* Without contexts this pass has the key as well. */
  float *only = j->req->n_context ? NULL : key;
  CHI_TRY(chi_edit_states(net, j->req->prompt, j->req->row, j->layer_lo, only, z0, NULL, err));
  j->info.value_norm = sqrt(chi_dot64(z0, z0, d));
  CHI_TRY(chi_edit_value(residual, net, j->req, j->layer_lo, j->info.value_norm, &j->h, &j->info, err));
  if (j->req->n_context) CHI_TRY(chi_edit_key(net, j->req, j->layer_lo, false, key, mean, err));
  for (int64_t i = 0; j->req->n_context && i < d; i++)
    residual[i] = (float)((double)residual[i] + (double)z0[i] - (double)mean[i]);
  j->info.kk = chi_dot64(key, key, f);
out:
  chi_free(z0);
  chi_free(mean);
  return rc;
}

double chi_edit_leak(const chi_delta *d, int layer, double lambda, const float *key, const float *other) {
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    if (p->stack != CHI_DECODER || p->layer != layer || p->which != CHI_W_DOWN || p->rank != 1 || p->d) continue;
    double own = (isnan(lambda) ? 0 : lambda) + chi_dot64(p->v, key, p->k);
    return own != 0 ? chi_dot64(p->v, other, p->k) / own : NAN;
  }
  return NAN;
}

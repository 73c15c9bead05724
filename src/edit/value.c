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
/* One prompt of the optimisation: the request's own, one of its contexts, or its kl prompt. Sessions are kept open
 * between steps as long as all of them fit into kKeep bytes; else they are opened again each time, which costs a
 * forward pass. */
typedef struct session {
  chi_grad *g;
  chi_input in;
  int32_t *tokens, *rows, *target;
  double *weight;
  chi_request req; /* prompt, target, row; n_target 0: the kl prompt */
} session;

typedef struct kl_loss {
  double *init; /* [vocab] log-probabilities of the unchanged model */
  bool known;
  double weight, kl;
} kl_loss;

typedef struct value_job {
  const chi_net *net;
  int layer;
  const chi_hyper *h;
  session *s; /* the bare prompt, contexts, and last the kl prompt if there is one */
  size_t n;
  bool keep;
  kl_loss kl;
  float *grad, *sum; /* [d] */
  chi_arena arena;
} value_job;

enum { kKeepMiB = 2048 };

/* KL(p || q) of this run's p to the unchanged q, which the first call takes down; gradient p (log p - log q - KL). */
static void loss_kl(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  (void)i;
  kl_loss *k = ud;
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

static size_t session_bytes(const chi_net *net, const session *s, int layer) {
  const chi_block_spec *b = &net->decoder.spec;
  size_t rows = (size_t)s->in.n_rows, late = rows - (size_t)s->req.row, L = (size_t)b->layers;
  return sizeof(float) * (2 * L * rows * (size_t)(b->kv_heads * b->head_dim) +
                          (L - (size_t)layer + 1) * late * (size_t)b->d + (size_t)b->heads * late * rows);
}

static int add_session(value_job *j, const chi_prompt *p, int32_t row, const chi_request *r, double share,
                       chi_err *err) {
  session *s = &j->s[j->n];
  int32_t n = r ? r->n_target : 1;
  *s = (session){.req = {.prompt = p, .row = row, .target = r ? r->target : NULL, .n_target = r ? n : 0}};
  s->rows = chi_arena_array(&j->arena, (size_t)n, sizeof *s->rows, err);
  s->weight = chi_arena_array(&j->arena, (size_t)n, sizeof *s->weight, err);
  if (!s->rows || !s->weight) return CHI_ERR_MEMORY;
  if (r) {
    int rc = chi_request_input(&s->in, &s->tokens, &s->req, err);
    if (rc) return rc;
  } else {
    s->in = chi_prompt_input(p);
  }
  j->n++;
  for (int32_t i = 0; i < n; i++) {
    s->rows[i] = r ? p->n_rows - 1 + i : row;
    s->weight[i] = share / n;
  }
  return 0;
}

static int open_job(value_job *j, const chi_request *r, chi_err *err) {
  int rc = 0;
  size_t bytes = 0;
  int64_t d = j->net->decoder.spec.d;
  double share = 1.0 / (double)(1 + r->n_context);
  j->s = chi_arena_array(&j->arena, r->n_context + 2, sizeof *j->s, err);
  j->grad = chi_arena_array(&j->arena, (size_t)d, sizeof *j->grad, err);
  j->sum = chi_arena_array(&j->arena, (size_t)d, sizeof *j->sum, err);
  j->kl.init = chi_arena_array(&j->arena, (size_t)j->net->decoder.vocab, sizeof *j->kl.init, err);
  CHI_TRY(j->s && j->grad && j->sum && j->kl.init ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(add_session(j, r->prompt, r->row, r, share, err));
  for (size_t i = 0; i < r->n_context; i++)
    CHI_TRY(add_session(j, r->context[i].prompt, r->context[i].row, r, share, err));
  if (r->kl.prompt && j->h->kl > 0) CHI_TRY(add_session(j, r->kl.prompt, r->kl.row, NULL, 0, err));
  j->kl.weight = j->h->kl;
  for (size_t i = 0; i < j->n; i++) bytes += session_bytes(j->net, &j->s[i], j->layer);
  j->keep = bytes >> 20 < kKeepMiB;
out:
  return rc;
}

static void close_job(value_job *j) {
  for (size_t i = 0; i < j->n; i++) {
    chi_grad_close(j->s[i].g);
    chi_free(j->s[i].tokens);
  }
  chi_arena_free(&j->arena);
}

/* Loss of all prompts at delta; its gradient into j->sum. *nll: without the kl term. */
static int run_sessions(value_job *j, const float *delta, double *nll, chi_err *err) {
  int rc = 0;
  int64_t d = j->net->decoder.spec.d;
  memset(j->sum, 0, (size_t)d * sizeof *j->sum);
  *nll = 0;
  for (size_t i = 0; i < j->n; i++) {
    session *s = &j->s[i];
    bool kl = s->req.n_target == 0;
    double loss = 0;
    chi_nll target = {.token = s->req.target, .weight = s->weight};
    chi_intervention iv = {.op = CHI_OP_ADD,
                           .stack = CHI_DECODER,
                           .site = CHI_SITE_MLP_OUT,
                           .layer_lo = j->layer,
                           .layer_hi = j->layer + 1,
                           .rows = &s->req.row,
                           .n_rows = 1,
                           .value = delta,
                           .value_rows = 1,
                           .scale = 1};
    chi_grad_site site = {.stack = CHI_DECODER,
                          .site = CHI_SITE_MLP_OUT,
                          .layer = j->layer,
                          .rows = &s->req.row,
                          .n_rows = 1,
                          .out = j->grad};
    chi_grad_step step = {.iv = &iv,
                          .n_iv = 1,
                          .loss_rows = s->rows,
                          .n_loss = kl ? 1 : s->req.n_target,
                          .loss = kl ? loss_kl : chi_loss_nll,
                          .ud = kl ? (void *)&j->kl : (void *)&target,
                          .sites = &site,
                          .n_sites = 1};
    if (!s->g) CHI_TRY(chi_grad_open(&s->g, j->net, &s->in, s->req.row, j->layer, false, err));
    CHI_TRY(chi_grad_run(s->g, &step, &loss, err));
    for (int64_t k = 0; k < d; k++) j->sum[k] += j->grad[k];
    if (!kl) *nll += loss;
    if (!j->keep) {
      chi_grad_close(s->g);
      s->g = NULL;
    }
  }
out:
  return rc;
}

int chi_edit_value(float *delta, const chi_net *net, const chi_request *r, int layer, double norm, const chi_hyper *h,
                   chi_edit_info *info, chi_err *err) {
  int rc = 0;
  int64_t d = net->decoder.spec.d;
  double loss = 0;
  value_job j = {.net = net, .layer = layer, .h = h};
  chi_adam a = {.lr = h->lr, .n = d, .m = chi_calloc((size_t)d, sizeof(float), err)};
  a.v = chi_calloc((size_t)d, sizeof(float), err);
  CHI_TRY(a.m && a.v ? 0 : CHI_ERR_MEMORY);
  if (!(norm > 0)) {
    rc = chi_fail(err, CHI_ERR_ARG, "layer %d writes nothing at row %d: there is no value to change", layer, r->row);
    goto out;
  }
  CHI_TRY(open_job(&j, r, err));
  memset(delta, 0, (size_t)d * sizeof *delta);
  if (h->lr_share) a.lr = h->lr * norm / sqrt((double)d);
  for (int i = 0; i < (int)h->steps; i++) {
    CHI_TRY(chi_progress("editing", i, (int)h->steps, err));
    CHI_TRY(run_sessions(&j, delta, &loss, err));
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

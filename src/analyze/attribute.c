/* Attribution from one captured forward pass; see attribute.h. */
#include "analyze/attribute.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what one pass leaves behind ------------------------------------------------------------------------- */
typedef struct states {                        /* all of the last row, but v of all rows */
  float *resid, *attn, *mid, *mix, *mlp, *act; /* [layers][width] */
  float *v;                                    /* [layers][rows][kv] */
  float *pattern;                              /* [layers][heads][rows] */
  float *final, *logits;
} states;

typedef struct target {
  float *to;
  int64_t width;
} target;
typedef struct taker {
  target *t;
} taker;

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  target *t = &((taker *)ud)->t[capture];
  memcpy(t->to + i * t->width, v, (size_t)width * sizeof *v);
  return 0;
}

typedef struct grab {
  chi_plan *plan;
  target *t;
  size_t n, cap;
  int root;
  const int32_t *rows;
  int32_t n_rows;
  chi_err *err;
} grab;

/* Capture a site at the last row, or at all rows. */
static int want(grab *g, chi_site site, int layer, float *to, int64_t width, bool all) {
  int rc = chi_grow((void **)&g->t, &g->cap, g->n + 1, sizeof *g->t, g->err);
  if (rc) return rc;
  g->t[g->n++] = (target){to, width};
  chi_capture c = {.branch = g->root,
                   .stack = CHI_DECODER,
                   .site = site,
                   .layer = layer,
                   .rows = all ? g->rows : g->rows + g->n_rows - 1,
                   .n_rows = all ? g->n_rows : 1};
  return chi_plan_capture(g->plan, &c, NULL, g->err);
}

static int alloc_states(states *s, const chi_net *net, int32_t T, chi_arena *a, chi_err *err) {
  const chi_block_spec *k = &net->decoder.spec;
  size_t L = (size_t)k->layers, d = (size_t)k->d, nq = (size_t)(k->heads * k->head_dim),
         nkv = (size_t)(k->kv_heads * k->head_dim), t = (size_t)T;
  const struct {
    float **to;
    size_t n;
  } need[] = {{&s->resid, L * d},   {&s->attn, L * d},
              {&s->mid, L * d},     {&s->mix, L * nq},
              {&s->mlp, L * d},     {&s->act, L * (size_t)k->ffn},
              {&s->v, L * t * nkv}, {&s->pattern, L * (size_t)k->heads * t},
              {&s->final, d},       {&s->logits, (size_t)net->decoder.vocab}};
  for (size_t i = 0; i < sizeof need / sizeof *need; i++)
    if (!(*need[i].to = chi_arena_array(a, need[i].n, sizeof(float), err))) return CHI_ERR_MEMORY;
  return 0;
}

static int run_states(states *s, const chi_net *net, const chi_prompt *p, size_t mem, chi_arena *a, chi_err *err) {
  int rc = 0;
  const chi_block_spec *k = &net->decoder.spec;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim, nkv = (int64_t)k->kv_heads * k->head_dim, T = p->n_rows;
  chi_input in = chi_prompt_input(p);
  int32_t *rows = chi_arena_array(a, (size_t)T, sizeof *rows, err);
  grab g = {.rows = rows, .n_rows = p->n_rows, .err = err};
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < p->n_rows; i++) rows[i] = i;
  CHI_TRY(alloc_states(s, net, p->n_rows, a, err));
  CHI_TRY(chi_plan_new(&g.plan, err));
  CHI_TRY(chi_plan_root(g.plan, &in, &g.root, err));
  for (int l = 0; l < k->layers; l++) {
    CHI_TRY(want(&g, CHI_SITE_RESID_PRE, l, s->resid + l * d, d, false));
    CHI_TRY(want(&g, CHI_SITE_V, l, s->v + l * T * nkv, nkv, true));
    CHI_TRY(want(&g, CHI_SITE_PATTERN, l, s->pattern + l * k->heads * T, k->heads * T, false));
    CHI_TRY(want(&g, CHI_SITE_HEAD_OUT, l, s->mix + l * nq, nq, false));
    CHI_TRY(want(&g, CHI_SITE_ATTN_OUT, l, s->attn + l * d, d, false));
    CHI_TRY(want(&g, CHI_SITE_RESID_MID, l, s->mid + l * d, d, false));
    CHI_TRY(want(&g, CHI_SITE_MLP_ACT, l, s->act + (int64_t)l * k->ffn, k->ffn, false));
    CHI_TRY(want(&g, CHI_SITE_MLP_OUT, l, s->mlp + l * d, d, false));
  }
  CHI_TRY(want(&g, CHI_SITE_RESID_POST, k->layers - 1, s->final, d, false));
  CHI_TRY(want(&g, CHI_SITE_LOGITS, -1, s->logits, net->decoder.vocab, false));
  taker t = {g.t};
  chi_run_opts o = {.mem = mem, .on_capture = take, .ud = &t};
  CHI_TRY(chi_run_plan(net, g.plan, &o, err));
out:
  chi_plan_free(g.plan);
  chi_free(g.t);
  return rc;
}

/* ---- projections ----------------------------------------------------------------------------------------- */
chi_projection chi_projection_of(const chi_net *net, const float *h, double eps) {
  int64_t d = net->decoder.spec.d;
  bool ln = net->decoder.spec.norm == CHI_NORM_LAYER;
  double sum = 0, sq = 0;
  for (int64_t i = 0; i < d; i++) sum += (double)h[i];
  double mean = ln ? sum / (double)d : 0;
  for (int64_t i = 0; i < d; i++) sq += ((double)h[i] - mean) * ((double)h[i] - mean);
  double m2 = sq / (double)d;
  return (chi_projection){net, m2, (float)(1.0 / sqrt(m2 + (eps < 0 ? (double)net->decoder.spec.eps : eps))), ln};
}

void chi_project_norm(const chi_projection *p, const float *x, float *y, int64_t m, bool state) {
  int64_t d = p->net->decoder.spec.d;
  const chi_norm *n = &p->net->decoder.final;
  for (int64_t i = 0; i < m; i++) {
    const float *xi = x + i * d;
    float *yi = y + i * d;
    double mean = 0;
    for (int64_t k = 0; p->layer_norm && k < d; k++) mean += (double)xi[k];
    float mu = (float)(mean / (double)d);
    for (int64_t k = 0; k < d; k++) yi[k] = (xi[k] - mu) * p->r * n->w[k] + (state && n->b ? n->b[k] : 0.0f);
  }
}

/* B of m vectors, row by row: logits minus the head's bias unless they are states. */
typedef struct scorer {
  const chi_net *net;
  chi_projection proj;
  int32_t target;
  float *norm, *logits; /* [kBatch][d], [kBatch][vocab] */
  chi_err *err;
} scorer;
enum { kBatch = 64 };

/* base: logits of the state that the vectors are added to ([vocab]), base_logp its log p(w). out [m]. */
static int score(scorer *s, const float *x, int64_t m, const float *base, double base_logp, chi_attr_score *out) {
  int64_t d = s->net->decoder.spec.d, V = s->net->decoder.vocab;
  const float *bias = s->net->decoder.head.bias;
  for (int64_t i = 0; i < m; i += kBatch) {
    int64_t n = m - i < kBatch ? m - i : kBatch;
    chi_project_norm(&s->proj, x + i * d, s->norm, n, false);
    int rc = chi_net_logits(s->net, s->norm, s->logits, n, s->err);
    if (rc) return rc;
    for (int64_t k = 0; k < n; k++) {
      float *row = s->logits + k * V;
      for (int64_t t = 0; bias && t < V; t++) row[t] -= bias[t];
      out[i + k].logit = (double)row[s->target];
      for (int64_t t = 0; t < V; t++) row[t] += base[t];
      out[i + k].increase = (double)row[s->target] - chi_logsumexp(row, V) - base_logp;
    }
  }
  return 0;
}

/* Logits of a state with the frozen scale, and its log p(w). */
static int state_logits(scorer *s, const float *h, float *logits, double *logp) {
  chi_project_norm(&s->proj, h, s->norm, 1, true);
  int rc = chi_net_logits(s->net, s->norm, logits, 1, s->err);
  if (rc == 0) *logp = (double)logits[s->target] - chi_logsumexp(logits, s->net->decoder.vocab);
  return rc;
}

/* ---- scores ---------------------------------------------------------------------------------------------- */
/* o_lj of m weighted value vectors: rows of heads*hd, zero outside one head, through the output projection, no bias. */
static int head_vectors(const chi_block *w, const float *in, float *out, int64_t m, chi_err *err) {
  return chi_gemm(&w->o.w, in, w->o.w.k, out, w->o.w.n, m, NULL, err);
}

static int score_layer(chi_attribution *a, scorer *s, const states *st, int l, float *base, float *mid,
                       chi_arena *tmp) {
  int rc = 0;
  const chi_block_spec *k = &s->net->decoder.spec;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim, hd = k->head_dim;
  double base_logp, mid_logp;
  float *in = chi_arena_array(tmp, (size_t)(k->heads * nq), sizeof *in, s->err),
        *o = chi_arena_array(tmp, (size_t)(k->heads * d), sizeof *o, s->err);
  CHI_TRY(in && o ? 0 : CHI_ERR_MEMORY);
  for (int32_t j = 0; j < k->heads; j++)
    memcpy(in + j * nq + j * hd, st->mix + l * nq + j * hd, (size_t)hd * sizeof *in);
  CHI_TRY(head_vectors(&s->net->decoder.block[l], in, o, k->heads, s->err));
  CHI_TRY(state_logits(s, st->resid + l * d, base, &base_logp));
  CHI_TRY(score(s, o, k->heads, base, base_logp, a->head + (int64_t)l * k->heads));
  CHI_TRY(score(s, st->attn + l * d, 1, base, base_logp, &a->attn[l]));
  CHI_TRY(state_logits(s, st->mid + l * d, mid, &mid_logp));
  CHI_TRY(score(s, st->mlp + l * d, 1, mid, mid_logp, &a->mlp[l]));
out:
  return rc;
}

static const chi_attribution *sorting;
static int by_increase(const void *x, const void *y) {
  int32_t i = *(const int32_t *)x, j = *(const int32_t *)y;
  double p = sorting->head[i].increase, q = sorting->head[j].increase;
  return p > q ? -1 : p < q ? 1 : i - j;
}

/* Positions of one head: all rows from the same base (spec 2.4). */
static int score_positions(chi_attribution *a, scorer *s, const states *st, int n, float *base, chi_arena *tmp) {
  int rc = 0;
  const chi_block_spec *k = &s->net->decoder.spec;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim, hd = k->head_dim, nkv = (int64_t)k->kv_heads * hd,
          T = a->rows;
  int32_t l = a->pos_head[n].layer, j = a->pos_head[n].head, kv = j / (k->heads / k->kv_heads);
  const float *alpha = st->pattern + ((int64_t)l * k->heads + j) * T;
  double logp;
  float *in = chi_arena_array(tmp, (size_t)(kBatch * nq), sizeof *in, s->err),
        *o = chi_arena_array(tmp, (size_t)(kBatch * d), sizeof *o, s->err);
  CHI_TRY(in && o ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(state_logits(s, st->resid + l * d, base, &logp));
  for (int64_t p = 0; p < T; p += kBatch) {
    int64_t m = T - p < kBatch ? T - p : kBatch;
    for (int64_t i = 0; i < m; i++)
      for (int64_t c = 0; c < hd; c++)
        in[i * nq + j * hd + c] = alpha[p + i] * st->v[((int64_t)l * T + p + i) * nkv + kv * hd + c];
    CHI_TRY(head_vectors(&s->net->decoder.block[l], in, o, m, s->err));
    CHI_TRY(score(s, o, m, base, logp, a->pos + n * T + p));
  }
  memcpy(a->weight + n * T, alpha, (size_t)T * sizeof *alpha);
out:
  return rc;
}

static int by_neuron(const void *x, const void *y) {
  const chi_attr_neuron *p = x, *q = y;
  if (p->s.increase != q->s.increase) return p->s.increase > q->s.increase ? -1 : 1;
  return p->layer != q->layer ? p->layer - q->layer : p->neuron - q->neuron;
}

/* Every neuron of every layer; the best n are kept. */
static int score_neurons(chi_attribution *a, scorer *s, const states *st, int32_t want_n, float *mid) {
  int rc = 0;
  const chi_block_spec *k = &s->net->decoder.spec;
  int64_t d = k->d, F = k->ffn;
  chi_arena tmp = {0};
  chi_attr_neuron *all = chi_calloc((size_t)k->layers * (size_t)F, sizeof *all, s->err);
  float *rows = chi_arena_array(&tmp, (size_t)(d * F), sizeof *rows, s->err),
        *x = chi_arena_array(&tmp, (size_t)(kBatch * d), sizeof *x, s->err);
  chi_attr_score sc[kBatch];
  double logp;
  CHI_TRY(all && rows && x ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < k->layers; l++) {
    const float *m = st->act + l * F;
    chi_mat_read(&s->net->decoder.block[l].down.w, 0, d, rows); /* [d][F] */
    CHI_TRY(state_logits(s, st->mid + l * d, mid, &logp));
    for (int64_t f = 0; f < F; f += kBatch) {
      int64_t n = F - f < kBatch ? F - f : kBatch;
      for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < d; c++) x[i * d + c] = m[f + i] * rows[c * F + f + i];
      CHI_TRY(score(s, x, n, mid, logp, sc));
      for (int64_t i = 0; i < n; i++)
        all[l * F + f + i] = (chi_attr_neuron){l, (int32_t)(f + i), (double)m[f + i], sc[i]};
    }
    CHI_TRY(chi_progress("neurons", l + 1, k->layers, s->err));
  }
  qsort(all, (size_t)(k->layers * F), sizeof *all, by_neuron);
  a->n_neurons = want_n < k->layers * F ? want_n : (int32_t)(k->layers * F);
  a->neuron = chi_arena_array(&a->arena, (size_t)a->n_neurons, sizeof *a->neuron, s->err);
  CHI_TRY(a->neuron ? 0 : CHI_ERR_MEMORY);
  memcpy(a->neuron, all, (size_t)a->n_neurons * sizeof *all);
out:
  chi_free(all);
  chi_arena_free(&tmp);
  return rc;
}

/* The parts of the final logit add up: embedding + all components + constants. */
static int completeness(chi_attribution *a, scorer *s, const states *st) {
  int rc = 0;
  const chi_decoder *dec = &s->net->decoder;
  int64_t d = dec->spec.d, V = dec->vocab;
  chi_arena tmp = {0};
  float *zero = chi_arena_array(&tmp, (size_t)d, sizeof *zero, s->err),
        *base = chi_arena_array(&tmp, (size_t)V, sizeof *base, s->err);
  double logp, sum;
  CHI_TRY(zero && base ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(state_logits(s, zero, base, &logp)); /* the biases alone */
  sum = (double)base[s->target];
  memset(base, 0, (size_t)V * sizeof *base);
  CHI_TRY(score(s, st->resid, 1, base, 0, &a->embed));
  a->embed.increase = 0;
  sum += a->embed.logit;
  for (int32_t l = 0; l < dec->spec.layers; l++) sum += a->attn[l].logit + a->mlp[l].logit;
  CHI_TRY(state_logits(s, st->final, base, &logp));
  a->residual = fabs(sum - (double)base[s->target]);
out:
  chi_arena_free(&tmp);
  return rc;
}

static int alloc_scores(chi_attribution *a, const chi_net *net, const chi_prompt *p, const chi_attribute_opts *o,
                        chi_err *err) {
  const chi_block_spec *k = &net->decoder.spec;
  size_t L = (size_t)k->layers, H = (size_t)k->heads, T = (size_t)p->n_rows;
  a->layers = k->layers, a->n_heads_per_layer = k->heads, a->rows = p->n_rows;
  a->n_positions = o->n_heads > 0 ? o->n_heads : 1;
  if ((size_t)a->n_positions > L * H)
    return chi_fail(err, CHI_ERR_ARG, "the model has %zu heads, not %d", L * H, a->n_positions);
  size_t n = (size_t)a->n_positions;
  a->attn = chi_arena_array(&a->arena, L, sizeof *a->attn, err);
  a->mlp = chi_arena_array(&a->arena, L, sizeof *a->mlp, err);
  a->head = chi_arena_array(&a->arena, L * H, sizeof *a->head, err);
  a->order = chi_arena_array(&a->arena, L * H, sizeof *a->order, err);
  a->pos_head = chi_arena_array(&a->arena, n, sizeof *a->pos_head, err);
  a->pos = chi_arena_array(&a->arena, n * T, sizeof *a->pos, err);
  a->weight = chi_arena_array(&a->arena, n * T, sizeof *a->weight, err);
  a->avg_attention = chi_arena_array(&a->arena, T, sizeof *a->avg_attention, err);
  if (!a->attn || !a->mlp || !a->head || !a->order || !a->pos_head || !a->pos || !a->weight || !a->avg_attention)
    return CHI_ERR_MEMORY;
  for (int32_t i = 0; o->heads && i < o->n_heads; i++) {
    chi_attr_head h = o->heads[i];
    if (h.layer < 0 || h.layer >= k->layers || h.head < 0 || h.head >= k->heads)
      return chi_fail(err, CHI_ERR_ARG, "no head %d_%d: the model has layers 0-%d with heads 0-%d", h.layer, h.head,
                      k->layers - 1, k->heads - 1);
    a->pos_head[i] = h;
  }
  return 0;
}

static int score_all(chi_attribution *a, scorer *s, const states *st, const chi_attribute_opts *o) {
  int rc = 0;
  const chi_block_spec *k = &s->net->decoder.spec;
  size_t V = (size_t)s->net->decoder.vocab;
  chi_arena keep = {0}, tmp = {0};
  float *base = chi_arena_array(&keep, V, sizeof *base, s->err), *mid = chi_arena_array(&keep, V, sizeof *mid, s->err);
  CHI_TRY(base && mid ? 0 : CHI_ERR_MEMORY);
  for (int l = 0; l < k->layers; l++) {
    rc = score_layer(a, s, st, l, base, mid, &tmp);
    chi_arena_free(&tmp);
    CHI_TRY(rc);
    for (int32_t j = 0; j < k->heads; j++)
      for (int32_t p = 0; p < a->rows; p++)
        a->avg_attention[p] += (double)st->pattern[((int64_t)l * k->heads + j) * a->rows + p] / (k->layers * k->heads);
  }
  for (int32_t i = 0; i < k->layers * k->heads; i++) a->order[i] = i;
  sorting = a;
  qsort(a->order, (size_t)(k->layers * k->heads), sizeof *a->order, by_increase);
  for (int n = 0; n < a->n_positions; n++) {
    if (!o->heads) a->pos_head[n] = (chi_attr_head){a->order[n] / k->heads, a->order[n] % k->heads};
    rc = score_positions(a, s, st, n, base, &tmp);
    chi_arena_free(&tmp);
    CHI_TRY(rc);
  }
  if (o->n_neurons > 0) CHI_TRY(score_neurons(a, s, st, o->n_neurons, mid));
  CHI_TRY(completeness(a, s, st));
out:
  chi_arena_free(&keep);
  return rc;
}

int chi_attribute_run(chi_attribution **out, const chi_model *m, const chi_prompt *p, const chi_attribute_opts *o,
                      chi_err *err) {
  int rc = 0;
  const chi_net *net = &m->net;
  states st = {0};
  chi_arena tmp = {0};
  unsigned fp = chi_fp_begin();
  chi_attribution *a = chi_calloc(1, sizeof *a, err);
  CHI_TRY(a ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(alloc_scores(a, net, p, o, err));
  CHI_TRY(run_states(&st, net, p, o->mem, &tmp, err));
  int64_t V = net->decoder.vocab;
  a->target = o->target >= 0 ? o->target : chi_argmax(st.logits, V);
  if (a->target >= V) {
    rc = chi_fail(err, CHI_ERR_ARG, "token %d is outside the vocabulary of %d", a->target, net->decoder.vocab);
    goto out;
  }
  a->final = chi_metrics_of(st.logits, V, a->target, -1, NULL);
  CHI_TRY((a->logits = chi_arena_array(&a->arena, (size_t)V, sizeof *a->logits, err)) ? 0 : CHI_ERR_MEMORY);
  memcpy(a->logits, st.logits, (size_t)V * sizeof *a->logits);
  scorer s = {.net = net, .proj = chi_projection_of(net, st.final, o->eps), .target = a->target, .err = err};
  s.norm = chi_arena_array(&tmp, (size_t)(kBatch * net->decoder.spec.d), sizeof *s.norm, err);
  s.logits = chi_arena_array(&tmp, (size_t)(kBatch * V), sizeof *s.logits, err);
  CHI_TRY(s.norm && s.logits ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(score_all(a, &s, &st, o));
out:
  chi_fp_end(fp);
  chi_arena_free(&tmp);
  if (rc)
    chi_attribution_free(a);
  else
    *out = a;
  return rc;
}

void chi_attribution_free(chi_attribution *a) {
  if (!a) return;
  chi_arena_free(&a->arena);
  chi_free(a);
}

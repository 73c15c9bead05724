/* Attribution from one captured forward pass; see attribute.h. */
#include "analyze/attribute.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/attribute_internal.h"

/* ---- what one pass leaves behind ------------------------------------------------------------------------- */
static const chi_site kSites[CHII_SITES] = {
    [CHII_RESID] = CHI_SITE_RESID_PRE, [CHII_V] = CHI_SITE_V,           [CHII_PATTERN] = CHI_SITE_PATTERN,
    [CHII_MIX] = CHI_SITE_HEAD_OUT,    [CHII_ATTN] = CHI_SITE_ATTN_OUT, [CHII_MID] = CHI_SITE_RESID_MID,
    [CHII_ACT] = CHI_SITE_MLP_ACT,     [CHII_MLP] = CHI_SITE_MLP_OUT};

const float *chii_state(const chii_attr *x, int site, int layer) {
  return x->states->state[layer * CHII_SITES + site].values;
}
static const float *final_state(const chii_attr *x) { return x->states->state[x->k->layers * CHII_SITES].values; }
static const float *last_logits(const chii_attr *x) { return x->states->state[x->k->layers * CHII_SITES + 1].values; }

/* The branch that is looked at: the root, or its child without some heads. */
int chii_attr_zero(chi_plan *plan, const chi_attribution *a, int *branch, chi_err *err) {
  int rc = 0;
  int32_t *rows = NULL;
  if (a->opts.n_zero == 0) return 0;
  CHI_TRY((rows = chi_calloc((size_t)a->prompt->n_rows, sizeof *rows, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < a->prompt->n_rows; i++) rows[i] = i;
  CHI_TRY(chi_plan_child(plan, *branch, branch, err));
  for (int32_t i = 0; i < a->opts.n_zero; i++) {
    chi_attr_head h = a->opts.zero[i];
    chi_intervention iv = {.op = CHI_OP_ZERO,
                           .stack = CHI_DECODER,
                           .site = CHI_SITE_HEAD_OUT,
                           .layer_lo = h.layer,
                           .layer_hi = h.layer + 1,
                           .rows = rows,
                           .n_rows = a->prompt->n_rows,
                           .part_lo = h.head,
                           .part_hi = h.head + 1};
    CHI_TRY(chi_plan_intervene(plan, *branch, &iv, 0, err));
  }
out:
  chi_free(rows);
  return rc;
}

/* The last row everywhere, all rows of v. */
int chi_attribution_plan(chi_plan **out, const chi_attribution *a, chi_err *err) {
  int rc = 0, root, layers = a->model->net.decoder.spec.layers;
  const chi_prompt *p = a->prompt;
  chi_input in = chi_prompt_input(p);
  chi_plan *plan = NULL;
  chi_capture c = {.stack = CHI_DECODER};
  int32_t *rows = chi_calloc((size_t)p->n_rows, sizeof *rows, err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < p->n_rows; i++) rows[i] = i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  CHI_TRY(chii_attr_zero(plan, a, &root, err));
  c.branch = root;
  for (int l = 0; l <= layers; l++) {
    for (int s = 0; s < (l < layers ? (int)CHII_SITES : 2); s++) {
      bool all = l < layers && s == CHII_V;
      c.rows = all ? rows : rows + p->n_rows - 1;
      c.n_rows = all ? p->n_rows : 1;
      c.site = l < layers ? kSites[s] : s == 0 ? CHI_SITE_RESID_POST : CHI_SITE_LOGITS;
      c.layer = l < layers ? l : s == 0 ? l - 1 : -1;
      CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
    }
  }
  *out = plan;
  plan = NULL;
out:
  chi_free(rows);
  chi_plan_free(plan);
  return rc;
}

static int run_pass(chii_attr *x, size_t mem) {
  int rc = 0;
  CHI_TRY(chi_attribution_plan(&x->plan, x->a, x->err));
  CHI_TRY(chi_states_new(&x->states, x->plan, &x->net->shape, x->err));
  chi_run_opts o = {.mem = mem, .on_capture = chi_states_receive, .ud = x->states, .what = "forward pass"};
  CHI_TRY(chi_run_plan(x->net, x->plan, &o, x->err));
out:
  return rc;
}

/* ---- scores of many vectors ------------------------------------------------------------------------------ */
typedef struct finish {
  const chii_attr *x;
  float *rows; /* B of the vectors; overwritten */
  const chii_base *const *base;
  chi_attr_score *const *out;
} finish;

static void finish_row(void *ud, int64_t i) {
  const finish *f = ud;
  const chi_attribution *a = f->x->a;
  int64_t V = f->x->net->decoder.vocab;
  float *row = f->rows + i * V;
  chi_attr_score *s = f->out[i];
  for (int t = 0; t < a->n_targets; t++) s->logit[t] = (double)row[a->target[t]];
  const chii_base *b = f->base[i];
  if (!b) return;
  for (int64_t t = 0; t < V; t++) row[t] += b->logits[t];
  double lse = chi_logsumexp_quick(row, V);
  for (int t = 0; t < a->n_targets; t++)
    s->increase[t] = ((double)row[a->target[t]] - lse) - ((double)b->logits[a->target[t]] - b->lse);
}

/* The targets' own logits from vectors [m][d], in f32 whatever the head's type. */
static void exact_targets(const chii_attr *x, const float *vec, float *rows, int64_t m) {
  int64_t d = x->k->d, V = x->net->decoder.vocab;
  for (int t = 0; t < x->a->n_targets; t++)
    for (int64_t i = 0; i < m; i++) rows[i * V + x->a->target[t]] = chi_dot(vec + i * d, x->direction[t], d);
}

/* base[i]: the state that vector i is added to; NULL = no increase is wanted. */
static void score_logits(const chii_attr *x, float *rows, int64_t m, const chii_base *const *base,
                         chi_attr_score *const *out) {
  chi_parallel_for(m, finish_row, &(finish){x, rows, base, out});
}

int chii_attr_base(chii_attr *x, const float *state, chii_base *base) {
  int rc = chi_project(&x->a->proj, state, base->logits, 1, true, true, x->err);
  if (rc == 0) base->lse = chi_logsumexp_quick(base->logits, x->net->decoder.vocab);
  return rc;
}

int chii_attr_score(chii_attr *x, const float *vec, int64_t m, const chii_base *base, chi_attr_score *out) {
  int rc = 0;
  int64_t d = x->k->d;
  const chii_base *bases[CHII_BATCH];
  chi_attr_score *outs[CHII_BATCH];
  for (int64_t i = 0; i < m; i += CHII_BATCH) {
    int64_t n = m - i < CHII_BATCH ? m - i : CHII_BATCH;
    for (int64_t k = 0; k < n; k++) bases[k] = base, outs[k] = out + i + k;
    CHI_TRY(chi_project(&x->a->proj, vec + i * d, x->logits, n, false, false, x->err));
    exact_targets(x, vec + i * d, x->logits, n);
    score_logits(x, x->logits, n, bases, outs);
  }
out:
  return rc;
}

/* ---- layers and heads ------------------------------------------------------------------------------------ */
/* What one product with the head takes: of n layers the heads, attention and MLP; then two states of each. */
typedef struct layers_job {
  int lo, n;
  int64_t w; /* vectors of a layer */
  float *in, *vec, *norm, *logits;
  chii_base *base;
  const chii_base **bases;
  chi_attr_score **outs;
} layers_job;

/* o_lj = O on the head's own columns, no bias. */
static int gather_layer(chii_attr *x, layers_job *j, int i) {
  const chi_block_spec *k = x->k;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim, hd = k->head_dim, l = j->lo + i;
  float *v = j->vec + i * j->w * d, *state = j->vec + (j->n * j->w + 2 * i) * d;
  const chii_base **bases = j->bases + i * j->w;
  chi_attr_score **outs = j->outs + i * j->w;
  for (int32_t h = 0; h < k->heads; h++) {
    memcpy(j->in + h * nq + h * hd, chii_state(x, CHII_MIX, (int)l) + h * hd, (size_t)hd * sizeof *j->in);
    bases[h] = j->base + 2 * i;
    outs[h] = &x->a->head[l * k->heads + h];
  }
  bases[k->heads] = j->base + 2 * i;
  bases[k->heads + 1] = j->base + 2 * i + 1;
  outs[k->heads] = &x->a->attn[l];
  outs[k->heads + 1] = &x->a->mlp[l];
  memcpy(v + k->heads * d, chii_state(x, CHII_ATTN, (int)l), (size_t)d * sizeof *v);
  memcpy(v + (k->heads + 1) * d, chii_state(x, CHII_MLP, (int)l), (size_t)d * sizeof *v);
  memcpy(state, chii_state(x, CHII_RESID, (int)l), (size_t)d * sizeof *v);
  memcpy(state + d, chii_state(x, CHII_MID, (int)l), (size_t)d * sizeof *v);
  return chi_gemm(&x->net->decoder.block[l].o.w, j->in, nq, v, d, k->heads, NULL, x->err);
}

static int score_layers(chii_attr *x, int lo, int n) {
  int rc = 0;
  const chi_decoder *dec = &x->net->decoder;
  int64_t d = x->k->d, H = x->k->heads, V = dec->vocab, w = H + 2, parts = n * w, all = parts + 2 * n;
  chi_arena tmp = {0};
  layers_job j = {.lo = lo, .n = n, .w = w};
  j.in = chi_arena_array(&tmp, (size_t)(H * H * x->k->head_dim), sizeof *j.in, x->err);
  j.vec = chi_arena_array(&tmp, (size_t)(all * d), sizeof *j.vec, x->err);
  j.norm = chi_arena_array(&tmp, (size_t)(all * d), sizeof *j.norm, x->err);
  j.logits = chi_arena_array(&tmp, (size_t)(all * V), sizeof *j.logits, x->err);
  j.base = chi_arena_array(&tmp, (size_t)(2 * n), sizeof *j.base, x->err);
  j.bases = chi_arena_array(&tmp, (size_t)parts, sizeof *j.bases, x->err);
  j.outs = chi_arena_array(&tmp, (size_t)parts, sizeof *j.outs, x->err);
  CHI_TRY(j.in && j.vec && j.norm && j.logits && j.base && j.bases && j.outs ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++) CHI_TRY(gather_layer(x, &j, i));
  chi_project_norm(&x->a->proj, j.vec, j.norm, parts, false);
  chi_project_norm(&x->a->proj, j.vec + parts * d, j.norm + parts * d, 2 * n, true);
  CHI_TRY(chi_gemm(&dec->head.w, j.norm, d, j.logits, V, all, NULL, x->err));
  for (int i = 0; i < 2 * n; i++) {
    float *state = j.logits + (parts + i) * V;
    if (dec->head.bias) chi_rows_add(state, V, dec->head.bias, V, 1, V);
    j.base[i] = (chii_base){state, chi_logsumexp_quick(state, V)};
  }
  exact_targets(x, j.vec, j.logits, parts);
  score_logits(x, j.logits, parts, j.bases, j.outs);
out:
  chi_arena_free(&tmp);
  return rc;
}

static void average_attention(chii_attr *x) {
  const chi_block_spec *k = x->k;
  double n = (double)k->layers * (double)k->heads;
  for (int l = 0; l < k->layers; l++) {
    const float *w = chii_state(x, CHII_PATTERN, l);
    for (int64_t j = 0; j < k->heads; j++)
      for (int32_t p = 0; p < x->a->rows; p++) x->a->avg_attention[p] += (double)w[j * x->a->rows + p] / n;
  }
}

typedef struct ranked {
  double increase;
  int32_t at;
} ranked;

static int by_increase(const void *a, const void *b) {
  const ranked *p = a, *q = b;
  return p->increase > q->increase ? -1 : p->increase < q->increase ? 1 : p->at - q->at;
}

int chii_attr_order(const chi_attr_score *s, int32_t n, int32_t *order, chi_err *err) {
  ranked *r = chi_calloc((size_t)n, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < n; i++) r[i] = (ranked){s[i].increase[0], i};
  qsort(r, (size_t)n, sizeof *r, by_increase);
  for (int32_t i = 0; i < n; i++) order[i] = r[i].at;
  chi_free(r);
  return 0;
}

/* ---- positions of one head ------------------------------------------------------------------------------- */
/* alpha(last, p) v_p of rows [p, p + m) into in [m][ld], the head's dims from column `at` on. */
void chii_attr_weighted(const chii_attr *x, chi_attr_head h, int64_t p, int64_t m, float *in, int64_t ld, int64_t at) {
  const chi_block_spec *k = x->k;
  int64_t hd = k->head_dim, nkv = k->kv_heads * hd, kv = h.head / (k->heads / k->kv_heads);
  const float *alpha = chii_state(x, CHII_PATTERN, h.layer) + (int64_t)h.head * x->a->rows;
  const float *v = chii_state(x, CHII_V, h.layer) + kv * hd;
  for (int64_t i = 0; i < m; i++)
    for (int64_t c = 0; c < hd; c++) in[i * ld + at + c] = alpha[p + i] * v[(p + i) * nkv + c];
}

/* o_ljp of rows [p, p + m) -> out [m][d] */
int chii_attr_written(chii_attr *x, chi_attr_head h, int64_t p, int64_t m, float *out) {
  int64_t nq = (int64_t)x->k->heads * x->k->head_dim;
  float *in = chi_calloc((size_t)(m * nq), sizeof *in, x->err);
  if (!in) return CHI_ERR_MEMORY;
  chii_attr_weighted(x, h, p, m, in, nq, (int64_t)h.head * x->k->head_dim);
  int rc = chi_product_fine(&x->net->decoder.block[h.layer].o.w, in, out, m, x->err);
  chi_free(in);
  return rc;
}

/* The definition: every position through the output projection and the head. */
static int positions_slow(chii_attr *x, int n) {
  int rc = 0;
  int64_t d = x->k->d, T = x->a->rows;
  chi_attr_head h = x->a->pos_head[n];
  float *o = chi_calloc((size_t)(CHII_BATCH * d), sizeof *o, x->err);
  CHI_TRY(o ? 0 : CHI_ERR_MEMORY);
  for (int64_t p = 0; p < T; p += CHII_BATCH) {
    int64_t m = T - p < CHII_BATCH ? T - p : CHII_BATCH;
    CHI_TRY(chii_attr_written(x, h, p, m, o));
    CHI_TRY(chii_attr_score(x, o, m, &x->base, x->a->pos + n * T + p));
  }
out:
  chi_free(o);
  return rc;
}

/* U diag(g) r O_lj, transposed: [head_dim][vocab]. Every position's logits are a mixture of these rows. */
int chii_attr_head_map(chii_attr *x, chi_attr_head h, float *map) {
  int rc = 0;
  int64_t d = x->k->d, hd = x->k->head_dim, nq = (int64_t)x->k->heads * hd;
  float *in = chi_calloc((size_t)(hd * nq), sizeof *in, x->err), *o = chi_calloc((size_t)(hd * d), sizeof *o, x->err);
  CHI_TRY(in && o ? 0 : CHI_ERR_MEMORY);
  for (int64_t c = 0; c < hd; c++) in[c * nq + (int64_t)h.head * hd + c] = 1;
  CHI_TRY(chi_gemm(&x->net->decoder.block[h.layer].o.w, in, nq, o, d, hd, NULL, x->err));
  CHI_TRY(chi_project(&x->a->proj, o, map, hd, false, false, x->err));
out:
  chi_free(in);
  chi_free(o);
  return rc;
}

static int positions_fast(chii_attr *x, int n) {
  int rc = 0;
  int64_t hd = x->k->head_dim, V = x->net->decoder.vocab, T = x->a->rows;
  chi_attr_head h = x->a->pos_head[n];
  const chii_base *bases[CHII_BATCH];
  chi_attr_score *outs[CHII_BATCH];
  chi_mat w = {0};
  float *map = chi_calloc((size_t)(hd * V), sizeof *map, x->err),
        *in = chi_calloc((size_t)(CHII_BATCH * hd), sizeof *in, x->err);
  CHI_TRY(map && in ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chii_attr_head_map(x, h, map));
  CHI_TRY(chi_mat_pack(&w, map, CHI_F32, hd, V, V, CHI_COMPUTE_F32, x->err));
  for (int64_t p = 0; p < T; p += CHII_BATCH) {
    int64_t m = T - p < CHII_BATCH ? T - p : CHII_BATCH;
    for (int64_t i = 0; i < m; i++) bases[i] = &x->base, outs[i] = x->a->pos + n * T + p + i;
    chii_attr_weighted(x, h, p, m, in, hd, 0);
    CHI_TRY(chi_gemm_t(&w, in, hd, x->logits, V, m, x->err));
    for (int t = 0; t < x->a->n_targets; t++)
      for (int64_t i = 0; i < m; i++)
        x->logits[i * V + x->a->target[t]] = x->a->edge[t][((int64_t)h.layer * x->k->heads + h.head) * T + p + i];
    score_logits(x, x->logits, m, bases, outs);
  }
out:
  chi_mat_free(&w);
  chi_free(map);
  chi_free(in);
  return rc;
}

static int score_positions(chii_attr *x, int n) {
  int rc = 0;
  chi_attr_head h = x->a->pos_head[n];
  int64_t T = x->a->rows;
  memcpy(x->a->weight + n * T, chii_state(x, CHII_PATTERN, h.layer) + h.head * T, (size_t)T * sizeof(float));
  CHI_TRY(chii_attr_base(x, chii_state(x, CHII_RESID, h.layer), &x->base));
  CHI_TRY(x->a->opts.slow ? positions_slow(x, n) : positions_fast(x, n));
out:
  return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------- */
/* The parts of the final logit add up: embedding + all components + constants. */
static int completeness(chii_attr *x) {
  int rc = 0;
  const chi_decoder *dec = &x->net->decoder;
  chi_attribution *a = x->a;
  float *zero = chi_calloc((size_t)dec->spec.d, sizeof *zero, x->err);
  CHI_TRY(zero ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chii_attr_base(x, zero, &x->base)); /* the biases alone */
  for (int t = 0; t < a->n_targets; t++) a->constants[t] = (double)x->base.logits[a->target[t]];
  CHI_TRY(chii_attr_score(x, chii_state(x, CHII_RESID, 0), 1, NULL, &a->embed));
  CHI_TRY(chii_attr_base(x, final_state(x), &x->base));
  for (int t = 0; t < a->n_targets; t++) {
    double sum = a->constants[t] + a->embed.logit[t];
    for (int32_t l = 0; l < a->layers; l++) sum += a->attn[l].logit[t] + a->mlp[l].logit[t];
    a->residual = fmax(a->residual, fabs(sum - (double)x->base.logits[a->target[t]]));
  }
out:
  chi_free(zero);
  return rc;
}

static int alloc_scores(chii_attr *x) {
  chi_attribution *a = x->a;
  const chi_attribute_opts *o = &a->opts;
  size_t L = (size_t)x->k->layers, H = (size_t)x->k->heads, T = (size_t)a->prompt->n_rows,
         V = (size_t)x->net->decoder.vocab;
  a->layers = x->k->layers, a->heads = x->k->heads, a->rows = a->prompt->n_rows;
  a->n_positions = o->n_heads > 0 ? o->n_heads : 1;
  if ((size_t)a->n_positions > L * H)
    return chi_fail(x->err, CHI_ERR_ARG, "the model has %zu heads, not %d", L * H, a->n_positions);
  size_t n = (size_t)a->n_positions;
  a->attn = chi_arena_array(&a->arena, L, sizeof *a->attn, x->err);
  a->mlp = chi_arena_array(&a->arena, L, sizeof *a->mlp, x->err);
  a->head = chi_arena_array(&a->arena, L * H, sizeof *a->head, x->err);
  a->order = chi_arena_array(&a->arena, L * H, sizeof *a->order, x->err);
  a->picture = chi_arena_array(&a->arena, L * H, sizeof *a->picture, x->err);
  a->reads = chi_arena_array(&a->arena, L * H, sizeof *a->reads, x->err);
  bool all = a->order && a->picture && a->reads;
  for (int t = 0; t < (o->versus >= 0 ? 2 : 1); t++)
    all = (a->edge[t] = chi_arena_array(&a->arena, L * H * T, sizeof *a->edge[t], x->err)) && all;
  a->pos_head = chi_arena_array(&a->arena, n, sizeof *a->pos_head, x->err);
  a->pos = chi_arena_array(&a->arena, n * T, sizeof *a->pos, x->err);
  a->weight = chi_arena_array(&a->arena, n * T, sizeof *a->weight, x->err);
  a->avg_attention = chi_arena_array(&a->arena, T, sizeof *a->avg_attention, x->err);
  a->logits = chi_arena_array(&a->arena, V, sizeof *a->logits, x->err);
  x->base.logits = chi_arena_array(&x->tmp, V, sizeof *x->base.logits, x->err);
  x->logits = chi_arena_array(&x->tmp, CHII_BATCH * V, sizeof *x->logits, x->err);
  all = all && a->attn && a->mlp && a->head && a->pos_head && a->pos && a->weight && a->avg_attention && a->logits &&
        x->base.logits && x->logits;
  return all ? 0 : CHI_ERR_MEMORY;
}

static int check_head(const chi_model *m, chi_attr_head h, chi_err *err) {
  const chi_block_spec *k = &m->net.decoder.spec;
  if (h.layer >= 0 && h.layer < k->layers && h.head >= 0 && h.head < k->heads) return 0;
  return chi_fail(err, CHI_ERR_ARG, "there is no head %d_%d: this model has layers 0-%d with heads 0-%d", h.layer,
                  h.head, k->layers - 1, k->heads - 1);
}

static int set_targets(chii_attr *x) {
  chi_attribution *a = x->a;
  int64_t V = x->net->decoder.vocab;
  const float *logits = last_logits(x);
  memcpy(a->logits, logits, (size_t)V * sizeof *logits);
  a->target[0] = a->opts.target >= 0 ? a->opts.target : chi_argmax(logits, V);
  a->target[1] = a->opts.versus;
  a->n_targets = a->opts.versus >= 0 ? 2 : 1;
  for (int t = 0; t < a->n_targets; t++) {
    if (a->target[t] >= V)
      return chi_fail(x->err, CHI_ERR_ARG, "token %d is outside the vocabulary of %lld", a->target[t], (long long)V);
    a->final[t] = chi_metrics_of(logits, V, a->target[t], -1, NULL);
  }
  return 0;
}

/* Whose positions are scored: the caller's heads, or the best. */
static int choose_heads(chii_attr *x) {
  chi_attribution *a = x->a;
  int rc = 0;
  int32_t n = a->layers * a->heads, *order = chi_calloc((size_t)n, sizeof *order, x->err);
  chi_attr_score *s = chi_calloc((size_t)n, sizeof *s, x->err);
  CHI_TRY(order && s ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) s[i].increase[0] = a->opts.by_picture ? a->picture[i] : a->head[i].increase[0];
  CHI_TRY(chii_attr_order(s, n, order, x->err));
  for (int32_t i = 0; i < a->n_positions; i++)
    a->pos_head[i] = a->opts.heads ? a->opts.heads[i] : (chi_attr_head){order[i] / a->heads, order[i] % a->heads};
out:
  chi_free(order);
  chi_free(s);
  return rc;
}

static int score_all(chii_attr *x) {
  int rc = 0;
  chi_attribution *a = x->a;
  const chi_attribute_opts *o = &a->opts;
  int step = CHII_BATCH / (a->heads + 2) + 1;
  for (int l = 0; l < a->layers; l += step) {
    CHI_TRY(score_layers(x, l, a->layers - l < step ? a->layers - l : step));
    CHI_TRY(chi_progress("heads", l + step < a->layers ? l + step : a->layers, a->layers, x->err));
  }
  average_attention(x);
  CHI_TRY(chii_attr_edges(x));
  CHI_TRY(chii_attr_order(a->head, a->layers * a->heads, a->order, x->err));
  CHI_TRY(choose_heads(x));
  for (int n = 0; n < a->n_positions; n++) CHI_TRY(score_positions(x, n));
  if (o->n_neurons > 0) CHI_TRY(chii_attr_neurons(x));
  if (o->n_attn_neurons > 0) CHI_TRY(chii_attr_attn_neurons(x));
  if (o->n_views > 0 && o->n_words > 0) CHI_TRY(chii_attr_views(x));
  CHI_TRY(completeness(x));
out:
  return rc;
}

/* The heads that are off, for plans made after the run. */
static int keep_zero(chi_attribution *a, const chi_attribute_opts *o, chi_err *err) {
  chi_attr_head *z = chi_arena_array(&a->arena, (size_t)o->n_zero, sizeof *z, err);
  if (!z) return CHI_ERR_MEMORY;
  if (o->n_zero) memcpy(z, o->zero, (size_t)o->n_zero * sizeof *z);
  a->opts.zero = z;
  return 0;
}

int chi_attribute_run(chi_attribution **out, const chi_model *m, const chi_prompt *p, const chi_attribute_opts *o,
                      chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  chi_attribution *a = chi_calloc(1, sizeof *a, err);
  chii_attr x = {.a = a, .net = &m->net, .k = &m->net.decoder.spec, .err = err};
  CHI_TRY(a ? 0 : CHI_ERR_MEMORY);
  a->model = m, a->prompt = p, a->opts = *o;
  CHI_TRY(alloc_scores(&x));
  for (int i = 0; o->heads && i < o->n_heads; i++) CHI_TRY(check_head(m, o->heads[i], err));
  for (int i = 0; i < o->n_zero; i++) CHI_TRY(check_head(m, o->zero[i], err));
  CHI_TRY(keep_zero(a, o, err));
  if (o->by_picture && p->n_image == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "heads cannot be chosen by the picture: the prompt has none");
    goto out;
  }
  CHI_TRY(run_pass(&x, o->mem));
  CHI_TRY(set_targets(&x));
  a->proj = chi_projection_of(x.net, final_state(&x), o->eps);
  for (int t = 0; t < a->n_targets; t++) {
    CHI_TRY((x.direction[t] = chi_arena_array(&x.tmp, (size_t)x.k->d, sizeof(float), err)) ? 0 : CHI_ERR_MEMORY);
    chi_project_token(&a->proj, a->target[t], x.direction[t]);
  }
  CHI_TRY(score_all(&x));
out:
  if (a) a->opts.heads = NULL; /* the caller's */
  chi_states_free(x.states);
  chi_plan_free(x.plan);
  chi_arena_free(&x.tmp);
  chi_fp_end(fp);
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

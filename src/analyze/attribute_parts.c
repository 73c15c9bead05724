/* Attribution below the head: neurons, and what the vectors say in words; see attribute.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/attribute_internal.h"

const char *const chi_view_name[CHI_VIEWS] = {"input", "key", "value", "ov"};

/* ---- every position of every head, logits only ----------------------------------------------------------- */
typedef struct edge_job {
  const chii_attr *x;
  int layer, target;
  const float *z; /* [heads*head_dim]: B(O y)_w = z.y */
} edge_job;

static void edge_head(void *ud, int64_t j) {
  const edge_job *e = ud;
  const chi_block_spec *k = e->x->k;
  chi_attribution *a = e->x->a;
  int64_t hd = k->head_dim, nkv = k->kv_heads * hd, kv = j / (k->heads / k->kv_heads), at = e->layer * k->heads + j;
  const float *v = chii_state(e->x, CHII_V, e->layer) + kv * hd,
              *alpha = chii_state(e->x, CHII_PATTERN, e->layer) + j * a->rows;
  for (int64_t p = 0; p < a->rows; p++)
    a->edge[e->target][at * a->rows + p] = alpha[p] * chi_dot(v + p * nkv, e->z + j * hd, hd);
}

/* By linearity a layer costs one product with its output projection. */
int chii_attr_edges(chii_attr *x) {
  int rc = 0;
  chi_attribution *a = x->a;
  const chi_block_spec *k = x->k;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim;
  chi_patches g = chi_patches_of(a->model, a->prompt);
  float *c = chi_calloc((size_t)(2 * d), sizeof *c, x->err), *z = chi_calloc((size_t)(2 * nq), sizeof *z, x->err);
  CHI_TRY(c && z ? 0 : CHI_ERR_MEMORY);
  for (int t = 0; t < a->n_targets; t++) {
    memcpy(c, x->direction[t], (size_t)d * sizeof *c);
    memcpy(c + d, c, (size_t)d * sizeof *c); /* second row: what rounding to bf16 takes off */
    if (x->net->compute == CHI_COMPUTE_BF16) chi_rows_round_bf16(c, d, 1, d);
    for (int64_t i = 0; i < d; i++) c[d + i] -= c[i];
    for (int l = 0; l < k->layers; l++) {
      CHI_TRY(chi_gemm_t(&x->net->decoder.block[l].o.w, c, d, z, nq, 2, x->err));
      chi_rows_add(z, nq, z + nq, nq, 1, nq);
      chi_parallel_for(k->heads, edge_head, &(edge_job){x, l, t, z});
    }
  }
  for (int64_t i = 0; i < (int64_t)a->layers * a->heads; i++)
    for (int32_t p = g.first; p < g.first + g.n; p++) {
      a->picture[i] += (double)a->edge[0][i * a->rows + p];
      a->reads[i] += (double)chii_state(x, CHII_PATTERN, (int)(i / a->heads))[i % a->heads * a->rows + p];
    }
out:
  chi_free(c);
  chi_free(z);
  return rc;
}

/* ---- neurons --------------------------------------------------------------------------------------------- */
static int by_neuron(const void *x, const void *y) {
  const chi_attr_neuron *p = x, *q = y;
  if (p->s.increase[0] != q->s.increase[0]) return p->s.increase[0] > q->s.increase[0] ? -1 : 1;
  if (p->layer != q->layer) return p->layer - q->layer;
  if (p->head != q->head) return p->head - q->head;
  if (p->row != q->row) return p->row - q->row;
  return p->neuron != q->neuron ? p->neuron - q->neuron : p->dim - q->dim;
}

static int keep_best(chii_attr *x, chi_attr_neuron *all, int64_t n, int32_t want, chi_attr_neuron **out,
                     int32_t *kept) {
  qsort(all, (size_t)n, sizeof *all, by_neuron);
  *kept = want < n ? want : (int32_t)n;
  *out = chi_arena_array(&x->a->arena, (size_t)*kept, sizeof **out, x->err);
  if (!*out) return CHI_ERR_MEMORY;
  memcpy(*out, all, (size_t)*kept * sizeof *all);
  return 0;
}

/* vec [n][d]: m_k D[:,k] of neurons [at, at + n); the weights are read a panel at a time. */
static void neuron_vectors(const chi_mat *down, const float *act, int64_t at, int64_t n, float *panel, float *vec) {
  int64_t d = down->n, F = down->k;
  for (int64_t r = 0; r < d; r += 32) {
    int64_t rows = d - r < 32 ? d - r : 32;
    chi_mat_read(down, r, rows, panel);
    for (int64_t i = 0; i < n; i++)
      for (int64_t c = 0; c < rows; c++) vec[i * d + r + c] = act[at + i] * panel[c * F + at + i];
  }
}

/* Every neuron of every layer; the best are kept. */
int chii_attr_neurons(chii_attr *x) {
  enum { kBlock = 1024 };
  int rc = 0;
  int64_t d = x->k->d, F = x->k->ffn, L = x->k->layers;
  chi_arena tmp = {0};
  chi_attr_neuron *all = chi_arena_array(&tmp, (size_t)(L * F), sizeof *all, x->err);
  float *panel = chi_arena_array(&tmp, (size_t)(32 * F), sizeof *panel, x->err),
        *vec = chi_arena_array(&tmp, (size_t)(kBlock * d), sizeof *vec, x->err);
  chi_attr_score *s = chi_arena_array(&tmp, kBlock, sizeof *s, x->err);
  CHI_TRY(all && panel && vec && s ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < L; l++) {
    const float *act = chii_state(x, CHII_ACT, l);
    CHI_TRY(chii_attr_base(x, chii_state(x, CHII_MID, l), &x->base));
    for (int64_t f = 0; f < F; f += kBlock) {
      int64_t n = F - f < kBlock ? F - f : kBlock;
      neuron_vectors(&x->net->decoder.block[l].down.w, act, f, n, panel, vec);
      CHI_TRY(chii_attr_score(x, vec, n, &x->base, s));
      for (int64_t i = 0; i < n; i++)
        all[l * F + f + i] = (chi_attr_neuron){.layer = l,
                                               .neuron = (int32_t)(f + i),
                                               .head = -1,
                                               .dim = -1,
                                               .row = -1,
                                               .coefficient = (double)act[f + i],
                                               .s = s[i]};
      CHI_TRY(chi_progress("neurons", l * F + f + n, L * F, x->err));
    }
  }
  CHI_TRY(keep_best(x, all, L * F, x->a->opts.n_neurons, &x->a->neuron, &x->a->n_neurons));
out:
  chi_arena_free(&tmp);
  return rc;
}

/* One task: all dimensions of one position of a head. */
typedef struct dim_job {
  chii_attr *x;
  chi_attr_head h;
  const float *map, *in; /* [head_dim][vocab], [rows][head_dim] */
  float *scratch;        /* a row of the vocabulary for each thread */
  chi_attr_neuron *out;
} dim_job;

static void score_dims(void *ud, int64_t p) {
  const dim_job *j = ud;
  const chi_attribution *a = j->x->a;
  const chii_base *b = &j->x->base;
  int64_t hd = j->x->k->head_dim, V = j->x->net->decoder.vocab;
  float *row = j->scratch + chi_thread_index() * V;
  for (int64_t c = 0; c < hd; c++) {
    float m = j->in[p * hd + c];
    const float *map = j->map + c * V;
    chi_attr_neuron *n = &j->out[p * hd + c];
    *n = (chi_attr_neuron){.layer = j->h.layer,
                           .head = j->h.head,
                           .dim = (int32_t)c,
                           .row = (int32_t)p,
                           .neuron = -1,
                           .coefficient = (double)m};
    for (int64_t t = 0; t < V; t++) row[t] = b->logits[t] + m * map[t];
    double lse = chi_logsumexp_quick(row, V);
    for (int t = 0; t < a->n_targets; t++) {
      n->s.logit[t] = (double)(m * map[a->target[t]]);
      n->s.increase[t] = ((double)row[a->target[t]] - lse) - ((double)b->logits[a->target[t]] - b->lse);
    }
  }
}

/* Every dimension of every position of the scored heads: mixtures of the same rows as the positions themselves. */
int chii_attr_attn_neurons(chii_attr *x) {
  int rc = 0;
  chi_attribution *a = x->a;
  int64_t hd = x->k->head_dim, V = x->net->decoder.vocab, T = a->rows, N = a->n_positions;
  chi_arena tmp = {0};
  float *map = chi_arena_array(&tmp, (size_t)(hd * V), sizeof *map, x->err),
        *in = chi_arena_array(&tmp, (size_t)(T * hd), sizeof *in, x->err),
        *scratch = chi_arena_array(&tmp, (size_t)(chi_threads() * V), sizeof *scratch, x->err);
  chi_attr_neuron *all = chi_arena_array(&tmp, (size_t)(N * T * hd), sizeof *all, x->err);
  CHI_TRY(map && in && scratch && all ? 0 : CHI_ERR_MEMORY);
  for (int64_t n = 0; n < N; n++) {
    chi_attr_head h = a->pos_head[n];
    CHI_TRY(chii_attr_base(x, chii_state(x, CHII_RESID, h.layer), &x->base));
    CHI_TRY(chii_attr_head_map(x, h, map));
    chii_attr_weighted(x, h, 0, T, in, hd, 0);
    chi_parallel_for(T, score_dims, &(dim_job){x, h, map, in, scratch, all + n * T * hd});
    CHI_TRY(chi_progress("attention neurons", n + 1, N, x->err));
  }
  CHI_TRY(keep_best(x, all, N * T * hd, a->opts.n_attn_neurons, &a->attn_neuron, &a->n_attn_neurons));
out:
  chi_arena_free(&tmp);
  return rc;
}

/* ---- vocabulary views ------------------------------------------------------------------------------------ */
int chii_attr_words(chii_attr *x, const float *vec, bool state, chi_attr_words *w) {
  int rc = 0, k = x->a->opts.n_words;
  int64_t V = x->net->decoder.vocab;
  w->id = chi_arena_array(&x->a->arena, (size_t)k, sizeof *w->id, x->err);
  w->logit = chi_arena_array(&x->a->arena, (size_t)k, sizeof *w->logit, x->err);
  CHI_TRY(w->id && w->logit ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_project(&x->a->proj, vec, x->logits, 1, state, true, x->err));
  chi_top_words(x->logits, V, w->id, k);
  for (int i = 0; i < k; i++) w->logit[i] = x->logits[w->id[i]];
  for (int t = 0; t < x->a->n_targets; t++) w->rank[t] = chi_rank_of(x->logits, V, x->a->target[t]);
out:
  return rc;
}

/* A head's rows, best first. */
static int choose_rows(chii_attr *x, int head, int32_t n, chi_attr_view *out) {
  int32_t *order = chi_calloc((size_t)x->a->rows, sizeof *order, x->err);
  if (!order) return CHI_ERR_MEMORY;
  int rc = chii_attr_order(x->a->pos + (int64_t)head * x->a->rows, x->a->rows, order, x->err);
  for (int32_t i = 0; rc == 0 && i < n; i++) out[i] = (chi_attr_view){.head = head, .row = order[i]};
  chi_free(order);
  return rc;
}

/* Captures of one view: the layer's input, then attention and MLP outputs of the layers before it, at one row. */
static int want_view(chi_plan *plan, int root, int layer, const int32_t *row, chi_err *err) {
  int rc = 0;
  chi_capture c = {.branch = root, .stack = CHI_DECODER, .rows = row, .n_rows = 1};
  c.site = CHI_SITE_RESID_PRE, c.layer = layer;
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  for (int l = 0; l < layer; l++) {
    c.site = CHI_SITE_ATTN_OUT, c.layer = l;
    CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
    c.site = CHI_SITE_MLP_OUT;
    CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  }
out:
  return rc;
}

static int fill_view(chii_attr *x, const chi_state *s, chi_attr_view *v, float *vec) {
  int rc = 0;
  int64_t d = x->k->d;
  chi_attr_head h = x->a->pos_head[v->head];
  CHI_TRY(chii_attr_words(x, s[0].values, true, &v->view[CHI_VIEW_INPUT]));
  for (int part = 0; part < 2; part++) { /* attention, MLP; sums in f64, in the order of the layers */
    for (int64_t c = 0; c < d; c++) {
      double sum = 0;
      for (int l = 0; l < h.layer; l++) sum += (double)s[1 + 2 * l + part].values[c];
      vec[c] = (float)sum;
    }
    CHI_TRY(chii_attr_words(x, vec, false, &v->view[part ? CHI_VIEW_VALUE : CHI_VIEW_KEY]));
  }
  CHI_TRY(chii_attr_written(x, h, v->row, 1, vec));
  CHI_TRY(chii_attr_words(x, vec, false, &v->view[CHI_VIEW_OV]));
out:
  return rc;
}

/* The rows are known only after the scores, and all rows of all layers would be gigabytes: a second pass. */
int chii_attr_views(chii_attr *x) {
  int rc = 0, root;
  chi_attribution *a = x->a;
  chi_plan *plan = NULL;
  chi_states *states = NULL;
  chi_input in = chi_prompt_input(a->prompt);
  int32_t n = a->opts.n_views < a->rows ? a->opts.n_views : a->rows;
  if (a->opts.n_words > x->net->decoder.vocab) a->opts.n_words = x->net->decoder.vocab;
  float *vec = chi_calloc((size_t)x->k->d, sizeof *vec, x->err);
  a->view = chi_arena_array(&a->arena, (size_t)(n * a->n_positions), sizeof *a->view, x->err);
  CHI_TRY(vec && a->view ? 0 : CHI_ERR_MEMORY);
  a->n_views = n * a->n_positions;
  CHI_TRY(chi_plan_new(&plan, x->err));
  CHI_TRY(chi_plan_root(plan, &in, &root, x->err));
  CHI_TRY(chii_attr_zero(plan, a, &root, x->err));
  for (int i = 0; i < a->n_positions; i++) CHI_TRY(choose_rows(x, i, n, a->view + i * n));
  for (int i = 0; i < a->n_views; i++)
    CHI_TRY(want_view(plan, root, a->pos_head[a->view[i].head].layer, &a->view[i].row, x->err));
  CHI_TRY(chi_states_new(&states, plan, &x->net->shape, x->err));
  chi_run_opts o = {.mem = a->opts.mem, .on_capture = chi_states_receive, .ud = states, .what = "views"};
  CHI_TRY(chi_run_plan(x->net, plan, &o, x->err));
  const chi_state *s = states->state;
  for (int i = 0; i < a->n_views; i++) {
    CHI_TRY(fill_view(x, s, &a->view[i], vec));
    s += 1 + 2 * a->pos_head[a->view[i].head].layer;
  }
out:
  chi_states_free(states);
  chi_plan_free(plan);
  chi_free(vec);
  return rc;
}

/* ---- maps ------------------------------------------------------------------------------------------------ */
bool chi_attribution_map(const chi_attribution *a, const double *values, double *map) {
  chi_patches g = chi_patches_of(a->model, a->prompt);
  double lo = INFINITY, hi = -INFINITY, sum = 0;
  for (int32_t i = 0; i < g.n; i++) {
    lo = fmin(lo, values[g.first + i]);
    hi = fmax(hi, values[g.first + i]);
  }
  for (int32_t i = 0; i < g.n; i++) {
    map[i] = hi - lo > 1e-6 ? (values[g.first + i] - lo) / (hi - lo) : 0;
    sum += map[i];
  }
  for (int32_t i = 0; i < g.n && sum > 0; i++) map[i] /= sum;
  return sum > 0;
}

void chi_attribution_all_heads(const chi_attribution *a, int target, double *out) {
  for (int32_t r = 0; r < a->rows; r++) {
    out[r] = 0;
    for (int64_t i = 0; i < (int64_t)a->layers * a->heads; i++) out[r] += (double)a->edge[target][i * a->rows + r];
  }
}

void chi_attribution_sum(const chi_attribution *a, int target, double *out) {
  for (int32_t r = 0; r < a->rows; r++) {
    out[r] = 0;
    for (int32_t n = 0; n < a->n_positions; n++) out[r] += a->pos[(int64_t)n * a->rows + r].increase[target];
  }
}

/* ---- names ----------------------------------------------------------------------------------------------- */
int chi_attr_heads_parse(chi_attr_head **out, int32_t *n, const chi_model *m, const char *text, chi_err *err) {
  int rc = 0;
  const chi_block_spec *k = &m->net.decoder.spec;
  chi_attr_head *h = NULL;
  size_t cap = 0, count = 0;
  for (const char *p = text;; p++) {
    char *end;
    long layer = strtol(p, &end, 10), head = -1;
    bool good = end != p && *end == '_';
    if (good) {
      const char *at = end + 1;
      head = strtol(at, &end, 10);
      good = end != at && (*end == ',' || !*end);
    }
    if (!good) {
      rc = chi_fail(err, CHI_ERR_ARG, "heads are written LAYER_HEAD, as in 22_27,19_6; '%s' is not", text);
      goto out;
    }
    if (layer < 0 || layer >= k->layers || head < 0 || head >= k->heads) {
      rc = chi_fail(err, CHI_ERR_ARG, "there is no head %ld_%ld: this model has layers 0-%d with heads 0-%d", layer,
                    head, k->layers - 1, k->heads - 1);
      goto out;
    }
    for (size_t i = 0; i < count; i++)
      if (h[i].layer == layer && h[i].head == head) {
        rc = chi_fail(err, CHI_ERR_ARG, "head %ld_%ld is named twice", layer, head);
        goto out;
      }
    CHI_TRY(chi_grow((void **)&h, &cap, count + 1, sizeof *h, err));
    h[count++] = (chi_attr_head){(int32_t)layer, (int32_t)head};
    if (!*end) break;
    p = end;
  }
out:
  if (rc)
    chi_free(h);
  else
    *out = h, *n = (int32_t)count;
  return rc;
}

int chi_answer_token(int32_t *out, bool *more, const chi_model *m, const chi_prompt *p, const char *text,
                     const char *name, chi_err *err) {
  int rc = 0;
  chi_tokens a = {0}, b = {0};
  chi_str s = {0};
  char *end = NULL;
  *more = false;
  if (!text[strspn(text, " ")]) return chi_fail(err, CHI_ERR_ARG, "%s: the text is empty", name);
  if (text[0] == '#') {
    long id = strtol(text + 1, &end, 10);
    if (*end || !text[1] || id < 0 || id >= m->net.decoder.vocab)
      return chi_fail(err, CHI_ERR_ARG, "%s: '%s' is outside the vocabulary: ids run from #0 to #%d", name, text,
                      m->net.decoder.vocab - 1);
    *out = (int32_t)id;
    return 0;
  }
  chi_str_add(&s, p->text);
  if (text[0] != ' ') chi_str_add(&s, " ");
  chi_str_add(&s, text);
  CHI_TRY(s.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  CHI_TRY(chi_encode(m->tok, p->text, strlen(p->text), true, &a, err));
  CHI_TRY(chi_encode(m->tok, s.s, s.len, true, &b, err));
  if (b.n <= a.n || memcmp(a.id, b.id, a.n * sizeof *a.id) != 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s: '%s' has no token of its own behind this prompt; give its id as #N", name,
                  text);
    goto out;
  }
  *out = b.id[a.n];
  *more = b.n > a.n + 1;
out:
  chi_tokens_free(&a);
  chi_tokens_free(&b);
  chi_str_free(&s);
  return rc;
}

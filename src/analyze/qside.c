/* Query side of value neurons; see qside.h. */
#include "analyze/qside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/attribute_internal.h"

/* One value neuron, as both kinds need it. */
typedef struct value {
  int32_t layer, row;
  int32_t parts; /* components in front of it: 1 + 2 layer, and its own attention for an MLP neuron */
  double score;
} value;

typedef struct work {
  const chi_attribution *a;
  const chi_block_spec *k;
  chi_qside *q;
  bool mlp;
  int32_t n; /* value neurons */
  value *v;
  float *direction; /* [n][d] */
  chi_plan *plan;
  chi_states *states;
  size_t *first; /* [n]: first capture of each */
  chi_arena tmp;
  chi_err *err;
} work;

/* q of the definition. Rows of V, or columns of the MLP's output projection, times the norm's weight. */
static void direction(const work *w, const chi_attr_neuron *n, float *row, float *q) {
  const chi_block *b = &w->a->model->net.decoder.block[n->layer];
  const float *norm = w->mlp && !w->k->parallel ? b->norm2.w : b->norm1.w;
  int64_t d = w->k->d;
  if (w->mlp) {
    for (int64_t c = 0; c < d; c++) {
      chi_mat_read(&b->down.w, c, 1, row);
      q[c] = row[n->neuron];
    }
  } else {
    int64_t kv = n->head / (w->k->heads / w->k->kv_heads);
    chi_mat_read(&b->v.w, kv * w->k->head_dim + n->dim, 1, q);
  }
  for (int64_t c = 0; c < d; c++) q[c] *= norm[c];
}

/* c.q, of a LayerNorm model with c less its mean. */
static double along(const work *w, const float *c, const float *q) {
  double sum = 0, mean = 0;
  bool ln = w->k->norm == CHI_NORM_LAYER;
  for (int64_t i = 0; ln && i < w->k->d; i++) mean += (double)c[i] / w->k->d;
  for (int64_t i = 0; i < w->k->d; i++) sum += ((double)c[i] - mean) * (double)q[i];
  return sum;
}

/* ---- one pass ---------------------------------------------------------------------------------------------- */
static int want(work *w, int root, chi_site site, int layer, const int32_t *row) {
  return chi_plan_capture(
      w->plan,
      &(chi_capture){.branch = root, .stack = CHI_DECODER, .site = site, .layer = layer, .rows = row, .n_rows = 1},
      NULL, w->err);
}

/* Captures of value i: input of layer 0, attention and MLP output of every part; then activations of earlier MLPs. */
static int run_pass(work *w, bool neurons) {
  int rc = 0, root;
  chi_input in = chi_prompt_input(w->a->prompt);
  CHI_TRY(chi_plan_new(&w->plan, w->err));
  CHI_TRY(chi_plan_root(w->plan, &in, &root, w->err));
  CHI_TRY(chii_attr_zero(w->plan, w->a, &root, w->err));
  for (int32_t i = 0; i < w->n; i++) {
    const value *v = &w->v[i];
    w->first[i] = w->plan->n_captures;
    CHI_TRY(want(w, root, CHI_SITE_RESID_PRE, 0, &v->row));
    for (int32_t p = 1; p < v->parts; p++)
      CHI_TRY(want(w, root, p % 2 ? CHI_SITE_ATTN_OUT : CHI_SITE_MLP_OUT, (p - 1) / 2, &v->row));
    for (int32_t l = 0; l < v->layer && neurons; l++) CHI_TRY(want(w, root, CHI_SITE_MLP_ACT, l, &v->row));
  }
  CHI_TRY(chi_states_new(&w->states, w->plan, &w->a->model->net.shape, w->err));
  chi_run_opts o = {.mem = w->a->opts.mem, .on_capture = chi_states_receive, .ud = w->states};
  CHI_TRY(chi_run_plan(&w->a->model->net, w->plan, &o, w->err));
out:
  return rc;
}

/* ---- shares ------------------------------------------------------------------------------------------------ */
/* score of a value neuron over the sum of its c.q; false where that is rounding. */
static bool unit_of(const work *w, int32_t i, double *unit) {
  double sum = 0, size = 0;
  const chi_state *s = &w->states->state[w->first[i]];
  for (int32_t p = 0; p < w->v[i].parts; p++) {
    double x = along(w, s[p].values, w->direction + (int64_t)i * w->k->d);
    sum += x;
    size += fabs(x);
  }
  *unit = w->v[i].score / sum;
  return fabs(sum) > 1e-6 * size;
}

static void share_components(work *w) {
  for (int32_t i = 0; i < w->n; i++) {
    double unit;
    const chi_state *s = &w->states->state[w->first[i]];
    if (!unit_of(w, i, &unit)) {
      w->q->left_out += w->v[i].score;
      continue;
    }
    w->q->total += w->v[i].score;
    w->q->row[w->v[i].row] += w->v[i].score;
    for (int32_t p = 0; p < w->v[i].parts; p++)
      w->q->component[p] += unit * along(w, s[p].values, w->direction + (int64_t)i * w->k->d);
  }
}

static int by_score(const void *x, const void *y) {
  const chi_qside_neuron *a = x, *b = y;
  if (a->score != b->score) return a->score > b->score ? -1 : 1;
  if (a->layer != b->layer) return a->layer - b->layer;
  return a->neuron != b->neuron ? a->neuron - b->neuron : a->row - b->row;
}

/* Neurons of layer l at one row: m_k (D[:,k].q), all k by one product with the output projection. */
static int layer_neurons(work *w, int32_t l, int32_t row, double *sum, float *z) {
  int rc = 0;
  const chi_mat *down = &w->a->model->net.decoder.block[l].down.w;
  int64_t d = w->k->d, F = w->k->ffn;
  float *q = chi_calloc((size_t)d, sizeof *q, w->err);
  CHI_TRY(q ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < w->n; i++) {
    double unit, mean = 0;
    if (w->v[i].row != row || w->v[i].layer <= l || !unit_of(w, i, &unit)) continue;
    const float *act = w->states->state[w->first[i] + (size_t)(w->v[i].parts + l)].values;
    memcpy(q, w->direction + i * d, (size_t)d * sizeof *q);
    for (int64_t c = 0; c < d && w->k->norm == CHI_NORM_LAYER; c++) mean += (double)q[c] / (double)d;
    for (int64_t c = 0; c < d; c++) q[c] -= (float)mean; /* (c - mean c).q = c.(q - mean q) */
    CHI_TRY(chi_gemm_t(down, q, d, z, F, 1, w->err));
    for (int64_t f = 0; f < F; f++) sum[f] += unit * (double)act[f] * (double)z[f];
  }
out:
  chi_free(q);
  return rc;
}

/* The best of all (layer, neuron, row): kept best lists are merged layer by layer and row by row. */
static int share_neurons(work *w, int32_t keep) {
  int rc = 0;
  int64_t F = w->k->ffn;
  double *sum = chi_arena_array(&w->tmp, (size_t)F, sizeof *sum, w->err);
  float *z = chi_arena_array(&w->tmp, (size_t)F, sizeof *z, w->err);
  chi_qside_neuron *best = chi_arena_array(&w->tmp, (size_t)(keep + F), sizeof *best, w->err);
  int64_t n = 0;
  CHI_TRY(sum && z && best ? 0 : CHI_ERR_MEMORY);
  for (int32_t row = 0; row < w->a->rows; row++) {
    int32_t deepest = 0;
    for (int32_t i = 0; i < w->n; i++)
      if (w->v[i].row == row && w->v[i].layer > deepest) deepest = w->v[i].layer;
    for (int32_t l = 0; l < deepest; l++) {
      memset(sum, 0, (size_t)F * sizeof *sum);
      CHI_TRY(layer_neurons(w, l, row, sum, z));
      for (int64_t f = 0; f < F; f++) best[n + f] = (chi_qside_neuron){l, (int32_t)f, row, sum[f]};
      qsort(best, (size_t)(n + F), sizeof *best, by_score);
      n = n + F < keep ? n + F : keep;
    }
  }
  w->q->n_neurons = (int32_t)n;
  w->q->neuron = chi_arena_array(&w->q->arena, (size_t)n, sizeof *w->q->neuron, w->err);
  CHI_TRY(w->q->neuron ? 0 : CHI_ERR_MEMORY);
  memcpy(w->q->neuron, best, (size_t)n * sizeof *best);
out:
  return rc;
}

/* ---- the whole --------------------------------------------------------------------------------------------- */
static int set_up(work *w) {
  const chi_attribution *a = w->a;
  const chi_attr_neuron *list = w->mlp ? a->neuron : a->attn_neuron;
  size_t n = (size_t)w->n, d = (size_t)w->k->d;
  w->v = chi_arena_array(&w->tmp, n, sizeof *w->v, w->err);
  w->first = chi_arena_array(&w->tmp, n, sizeof *w->first, w->err);
  w->direction = chi_arena_array(&w->tmp, n * d, sizeof *w->direction, w->err);
  float *row = chi_arena_array(&w->tmp, (size_t)w->k->ffn + d, sizeof *row, w->err);
  w->q->component = chi_arena_array(&w->q->arena, 1 + 2 * (size_t)w->k->layers, sizeof *w->q->component, w->err);
  w->q->row = chi_arena_array(&w->q->arena, (size_t)a->rows, sizeof *w->q->row, w->err);
  if (!w->v || !w->first || !w->direction || !row || !w->q->component || !w->q->row) return CHI_ERR_MEMORY;
  w->q->layers = w->k->layers;
  w->q->n_values = w->n;
  for (size_t i = 0; i < n; i++) {
    const chi_attr_neuron *x = &list[i];
    bool own = w->mlp && !w->k->parallel; /* this layer's attention stands before its MLP */
    w->v[i] = (value){.layer = x->layer,
                      .row = w->mlp ? a->rows - 1 : x->row,
                      .parts = 1 + 2 * x->layer + own,
                      .score = x->s.increase[0]};
    direction(w, x, row, w->direction + i * d);
  }
  return 0;
}

int chi_qside_run(chi_qside **out, const chi_attribution *a, bool mlp, int32_t n_neurons, chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  work w = {.a = a, .k = &a->model->net.decoder.spec, .mlp = mlp, .err = err};
  w.n = mlp ? a->n_neurons : a->n_attn_neurons;
  w.q = chi_calloc(1, sizeof *w.q, err);
  CHI_TRY(w.q ? 0 : CHI_ERR_MEMORY);
  if (w.n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the query side needs value neurons: ask the attribution for %s",
                  mlp ? "MLP neurons" : "attention neurons");
    goto out;
  }
  CHI_TRY(set_up(&w));
  CHI_TRY(run_pass(&w, n_neurons > 0));
  share_components(&w);
  if (n_neurons > 0) CHI_TRY(share_neurons(&w, n_neurons));
out:
  chi_fp_end(fp);
  chi_states_free(w.states);
  chi_plan_free(w.plan);
  chi_arena_free(&w.tmp);
  if (rc)
    chi_qside_free(w.q);
  else
    *out = w.q;
  return rc;
}

void chi_qside_free(chi_qside *q) {
  if (!q) return;
  chi_arena_free(&q->arena);
  chi_free(q);
}

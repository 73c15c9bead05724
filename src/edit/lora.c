/* LoRA (Hu et al. 2022, section 4.1): W + alpha / rank * B A with A [rank][k] drawn at random and B [n][rank] zero
 * at first, both trained by Adam on -log p of the target. One kind of weight matrix in one or several layers. */
#include <math.h>
#include <string.h>

#include "edit/edit.h"

typedef struct adapter { /* of one layer */
  chi_linear *l;
  chi_mat base;
  float *w0, *w, *grad;   /* [n][k] */
  float *a, *b, *da, *db; /* [rank][k], [n][rank] */
  chi_adam adam_a, adam_b;
} adapter;

typedef struct work {
  chi_job *j;
  int layers;
  int64_t n, k, rank;
  double scale;
  adapter *list;
  chi_arena arena;
} work;

static float *floats(work *w, int64_t n, chi_err *err) {
  return chi_arena_array(&w->arena, (size_t)n, sizeof(float), err);
}

static int open_layer(work *w, int i, chi_err *err) {
  adapter *x = &w->list[i];
  int64_t nk = w->n * w->k, an = w->rank * w->k, bn = w->rank * w->n;
  struct {
    float **to;
    int64_t n;
  } need[] = {{&x->w0, nk}, {&x->w, nk},        {&x->grad, nk},     {&x->a, an},        {&x->b, bn},       {&x->da, an},
              {&x->db, bn}, {&x->adam_a.m, an}, {&x->adam_a.v, an}, {&x->adam_b.m, bn}, {&x->adam_b.v, bn}};
  for (size_t q = 0; q < sizeof need / sizeof *need; q++)
    if (!(*need[q].to = floats(w, need[q].n, err))) return CHI_ERR_MEMORY;
  x->adam_a.lr = x->adam_b.lr = w->j->h.lr;
  x->adam_a.n = an, x->adam_b.n = bn;
  chi_mat_read(&x->l->w, 0, w->n, x->w0);
  double spread = 1 / sqrt((double)w->k);
  for (int64_t r = 0; r < w->rank; r++)
    for (int64_t c = 0; c < w->k; c++)
      x->a[r * w->k + c] = (float)spread * chi_rng_normal(0, 0x6c6f7261u + (uint32_t)i, (uint32_t)r, (uint32_t)c);
  return 0;
}

/* W = W0 + scale B A into the model; the base's matrix stays in x->base. */
static int put(work *w, adapter *x, chi_err *err) {
  chi_mat next = {0};
  for (int64_t i = 0; i < w->n; i++)
    for (int64_t c = 0; c < w->k; c++) {
      double s = 0;
      for (int64_t r = 0; r < w->rank; r++) s += (double)x->b[i * w->rank + r] * (double)x->a[r * w->k + c];
      x->w[i * w->k + c] = (float)((double)x->w0[i * w->k + c] + w->scale * s);
    }
  int rc = chi_mat_pack(&next, x->w, CHI_F32, w->n, w->k, w->k, x->base.compute, err);
  if (rc) return rc;
  chi_mat_free(&x->l->w);
  x->l->w = next;
  return 0;
}

/* dA = scale B^T dW, dB = scale dW A^T. */
static void chain(const work *w, adapter *x) {
  memset(x->da, 0, (size_t)(w->rank * w->k) * sizeof *x->da);
  for (int64_t i = 0; i < w->n; i++) {
    const float *g = x->grad + i * w->k;
    for (int64_t r = 0; r < w->rank; r++) {
      float b = (float)w->scale * x->b[i * w->rank + r];
      for (int64_t c = 0; c < w->k; c++) x->da[r * w->k + c] += b * g[c];
      x->db[i * w->rank + r] = (float)(w->scale * chi_dot64(g, x->a + r * w->k, w->k));
    }
  }
}

static int train(work *w, chi_err *err) {
  int rc = 0;
  chi_job *j = w->j;
  const chi_request *r = j->req;
  int32_t *tokens = NULL;
  double loss = 0;
  chi_grad *g = NULL;
  chi_input in;
  int32_t *rows = chi_arena_array(&w->arena, (size_t)r->n_target, sizeof *rows, err);
  double *weight = chi_arena_array(&w->arena, (size_t)r->n_target, sizeof *weight, err);
  chi_grad_weight *want = chi_arena_array(&w->arena, (size_t)w->layers, sizeof *want, err);
  CHI_TRY(rows && weight && want ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  for (int32_t i = 0; i < r->n_target; i++) {
    rows[i] = r->prompt->n_rows - 1 + i;
    weight[i] = 1.0 / r->n_target;
  }
  for (int i = 0; i < w->layers; i++)
    want[i] = (chi_grad_weight){
        .stack = CHI_DECODER, .layer = j->layer_lo + i, .which = (chi_weight)j->opts->weight, .out = w->list[i].grad};
  chi_nll nll = {.token = r->target, .weight = weight};
  chi_grad_step step = {.loss_rows = rows,
                        .n_loss = r->n_target,
                        .loss = chi_loss_nll,
                        .ud = &nll,
                        .weights = want,
                        .n_weights = w->layers};
  CHI_TRY(chi_grad_open(&g, &j->m->net, &in, 1, NULL, j->layer_lo, false, err));
  for (int s = 0; s < (int)j->h.steps; s++) {
    CHI_TRY(chi_progress("editing", s, (int)j->h.steps, err));
    for (int i = 0; i < w->layers; i++) memset(w->list[i].grad, 0, (size_t)(w->n * w->k) * sizeof(float));
    CHI_TRY(chi_grad_run(g, &step, &loss, err));
    if (s == 0) j->info.loss_first = loss;
    if (j->h.stop > 0 && loss < j->h.stop) break;
    for (int i = 0; i < w->layers; i++) {
      adapter *x = &w->list[i];
      chain(w, x);
      chi_adam_step(&x->adam_a, x->a, x->da);
      chi_adam_step(&x->adam_b, x->b, x->db);
      CHI_TRY(put(w, x, err));
    }
    j->info.steps++;
  }
  j->info.loss_last = loss;
out:
  chi_grad_close(g);
  chi_free(tokens);
  return rc;
}

/* u = scale * columns of B, v = rows of A. */
static int give(work *w, int i, chi_err *err) {
  adapter *x = &w->list[i];
  float *u = floats(w, w->rank * w->n, err);
  if (!u) return CHI_ERR_MEMORY;
  for (int64_t r = 0; r < w->rank; r++)
    for (int64_t q = 0; q < w->n; q++) u[r * w->n + q] = (float)(w->scale * (double)x->b[q * w->rank + r]);
  double norm = 0, base = 0;
  for (int64_t q = 0; q < w->n * w->k; q++) {
    double d = (double)x->w[q] - (double)x->w0[q];
    norm += d * d;
    base += (double)x->w0[q] * (double)x->w0[q];
  }
  w->j->info.delta_norm += sqrt(norm) / w->layers;
  w->j->info.value_norm += sqrt(base) / w->layers;
  return chi_delta_add(w->j->delta, CHI_DECODER, w->j->layer_lo + i, w->j->opts->weight, w->n, w->k, w->rank, u, x->a,
                       err);
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  work w = {
      .j = j, .layers = j->layer_hi - j->layer_lo + 1, .rank = (int64_t)j->h.rank, .scale = j->h.alpha / j->h.rank};
  w.list = chi_arena_array(&w.arena, (size_t)w.layers, sizeof *w.list, err);
  CHI_TRY(w.list ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < w.layers; i++) {
    chi_linear *l = w.list[i].l = chi_delta_linear(j->m, CHI_DECODER, j->layer_lo + i, j->opts->weight);
    if (!l) {
      rc = chi_fail(err, CHI_ERR_ARG, "layer %d of the decoder has no weight %s", j->layer_lo + i,
                    chi_weight_name((chi_weight)j->opts->weight));
      goto out;
    }
    w.n = l->w.n, w.k = l->w.k;
    if (w.rank > w.n || w.rank > w.k) {
      rc = chi_fail(err, CHI_ERR_ARG, "rank %lld is more than a matrix of %lldx%lld has", (long long)w.rank,
                    (long long)w.n, (long long)w.k);
      goto out;
    }
    CHI_TRY(open_layer(&w, i, err));
  }
  for (int i = 0; i < w.layers; i++) { /* the model's own matrices are put aside */
    adapter *x = &w.list[i];
    x->base = x->l->w;
    x->l->w = (chi_mat){0};
    CHI_TRY(put(&w, x, err));
  }
  CHI_TRY(train(&w, err));
  for (int i = 0; i < w.layers; i++) CHI_TRY(give(&w, i, err));
out:
  for (int i = 0; w.list && i < w.layers; i++) {
    if (!w.list[i].base.data) continue;
    chi_mat_free(&w.list[i].l->w);
    w.list[i].l->w = w.list[i].base;
  }
  chi_arena_free(&w.arena);
  return rc;
}

static const chi_preset kPresets[] = {{.name = "ours",
                                       .doc = "rank 8 in one layer",
                                       .layer_lo = 2,
                                       .layer_hi = 2,
                                       .hyper = {.steps = 60,
                                                 .lr = 5e-3,
                                                 .stop = 0.02,
                                                 .decay = NAN,
                                                 .clamp = NAN,
                                                 .lambda = NAN,
                                                 .shrink = NAN,
                                                 .limit = NAN,
                                                 .goal = NAN,
                                                 .kl = NAN,
                                                 .contexts = NAN,
                                                 .rank = 8,
                                                 .alpha = 16}},
                                      {0}};
const chi_method chi_method_lora = {.name = "lora", .presets = kPresets, .run = run};

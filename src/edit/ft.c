/* Fine-tuning of one layer's weight matrices on the request: Adam on -log p of the target; with a limit, each element
 * stays within it of where it began (Zhu et al. 2020, as in the baselines of ROME). With decay it is AdamW (Loshchilov
 * & Hutter 2019). */
#include <math.h>
#include <string.h>

#include "edit/edit.h"

enum { kMatrices = 4 };
typedef struct matrix { /* one that is trained */
  chi_weight which;
  chi_linear *l;
  chi_mat base; /* the model's own, put aside; data NULL: not yet */
  int64_t count;
  float *w0, *w, *grad; /* [count] */
  chi_adam adam;
} matrix;

typedef struct work {
  chi_job *j;
  chi_stack stack;
  matrix list[kMatrices];
  int n;
  chi_arena arena;
} work;

static int set_weight(matrix *x, chi_err *err) {
  chi_mat next = {0};
  chi_linear *l = x->l;
  int rc = chi_mat_pack(&next, x->w, CHI_F32, x->base.n, x->base.k, x->base.k, x->base.compute, err);
  if (rc) return rc;
  chi_mat_free(&l->w);
  l->w = next;
  return 0;
}

static int open_matrix(work *w, int which, chi_err *err) {
  int rc = 0;
  chi_job *j = w->j;
  matrix *x = &w->list[w->n];
  x->which = (chi_weight)which;
  x->l = chi_delta_linear(j->m, w->stack, j->layer_lo, which);
  if (!x->l)
    return chi_fail(err, CHI_ERR_ARG, "layer %d of the %s has no weight %s", j->layer_lo, chi_stack_name(w->stack),
                    chi_weight_name(x->which));
  x->count = x->l->w.n * x->l->w.k;
  size_t n = (size_t)x->count;
  x->w0 = chi_arena_array(&w->arena, n, sizeof *x->w0, err);
  x->w = chi_arena_array(&w->arena, n, sizeof *x->w, err);
  x->grad = chi_arena_array(&w->arena, n, sizeof *x->grad, err);
  x->adam = (chi_adam){.lr = j->h.lr, .n = x->count, .m = chi_arena_array(&w->arena, n, sizeof(float), err)};
  x->adam.v = chi_arena_array(&w->arena, n, sizeof(float), err);
  if (!x->w0 || !x->w || !x->grad || !x->adam.m || !x->adam.v) return CHI_ERR_MEMORY;
  chi_mat_read(&x->l->w, 0, x->l->w.n, x->w0);
  memcpy(x->w, x->w0, n * sizeof *x->w);
  x->base = x->l->w;
  x->l->w = (chi_mat){0};
  w->n++;
  CHI_TRY(set_weight(x, err));
out:
  return rc;
}

static void close_all(work *w) {
  for (int i = 0; i < w->n; i++) {
    chi_mat_free(&w->list[i].l->w);
    w->list[i].l->w = w->list[i].base;
  }
  chi_arena_free(&w->arena);
}

static int step(work *w, matrix *x, chi_err *err) {
  const chi_hyper *h = &w->j->h;
  float most = (float)h->limit, keep = (float)(1 - h->lr * h->decay);
  for (int64_t c = 0; h->decay > 0 && c < x->count; c++) x->w[c] *= keep;
  chi_adam_step(&x->adam, x->w, x->grad);
  for (int64_t c = 0; most > 0 && c < x->count; c++) {
    if (x->w[c] > x->w0[c] + most) x->w[c] = x->w0[c] + most;
    if (x->w[c] < x->w0[c] - most) x->w[c] = x->w0[c] - most;
  }
  return set_weight(x, err);
}

static int train(work *w, chi_err *err) {
  int rc = 0;
  chi_job *j = w->j;
  const chi_request *r = j->req;
  int32_t *tokens = NULL, *rows = chi_arena_array(&w->arena, (size_t)r->n_target, sizeof *rows, err);
  double *weight = chi_arena_array(&w->arena, (size_t)r->n_target, sizeof *weight, err), loss = 0;
  chi_grad *g = NULL;
  chi_input in;
  chi_grad_weight want[kMatrices];
  bool vision = w->stack != CHI_DECODER;
  CHI_TRY(rows && weight ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  for (int32_t i = 0; i < r->n_target; i++) {
    rows[i] = r->prompt->n_rows - 1 + i;
    weight[i] = 1.0 / r->n_target;
  }
  chi_nll nll = {.token = r->target, .weight = weight};
  for (int i = 0; i < w->n; i++)
    want[i] =
        (chi_grad_weight){.stack = w->stack, .layer = j->layer_lo, .which = w->list[i].which, .out = w->list[i].grad};
  chi_grad_step run = {
      .loss_rows = rows, .n_loss = r->n_target, .loss = chi_loss_nll, .ud = &nll, .weights = want, .n_weights = w->n};
  /* Every row sees the weight, so only what lies below its layer is constant. */
  CHI_TRY(chi_grad_open(&g, &j->m->net, &in, 1, NULL, vision ? 0 : j->layer_lo, vision, err));
  for (int i = 0; i < (int)j->h.steps; i++) {
    CHI_TRY(chi_progress("editing", i, (int)j->h.steps, err));
    for (int k = 0; k < w->n; k++) memset(w->list[k].grad, 0, (size_t)w->list[k].count * sizeof(float));
    CHI_TRY(chi_grad_run(g, &run, &loss, err));
    if (i == 0) j->info.loss_first = loss;
    if (j->h.stop > 0 && loss < j->h.stop) break;
    for (int k = 0; k < w->n; k++) CHI_TRY(step(w, &w->list[k], err));
    j->info.steps++;
  }
  j->info.loss_last = loss;
out:
  chi_grad_close(g);
  chi_free(tokens);
  return rc;
}

/* Dense differences; norms over all matrices together. */
static int give(work *w, chi_err *err) {
  int rc = 0;
  chi_job *j = w->j;
  double base = 0, change = 0;
  for (int i = 0; i < w->n; i++) {
    matrix *x = &w->list[i];
    base += chi_dot64(x->w0, x->w0, x->count);
    for (int64_t c = 0; c < x->count; c++) x->w[c] -= x->w0[c];
    change += chi_dot64(x->w, x->w, x->count);
    CHI_TRY(chi_delta_add(j->delta, w->stack, j->layer_lo, (int)x->which, x->base.n, x->base.k, 0, x->w, NULL, err));
  }
  j->info.value_norm = sqrt(base);
  j->info.delta_norm = sqrt(change);
out:
  return rc;
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  work w = {.j = j, .stack = j->opts->other_stack ? j->opts->stack : CHI_DECODER};
  if (j->layer_lo != j->layer_hi) return chi_fail(err, CHI_ERR_ARG, "ft changes one layer");
  if (w.stack != CHI_DECODER && !j->req->prompt->pixels)
    return chi_fail(err, CHI_ERR_ARG, "the question has no picture: it does not read the %s", chi_stack_name(w.stack));
  CHI_TRY(open_matrix(&w, j->opts->weight, err));
  for (int i = 0; i < j->opts->n_also; i++) CHI_TRY(open_matrix(&w, j->opts->also[i], err));
  CHI_TRY(train(&w, err));
  CHI_TRY(give(&w, err));
out:
  close_all(&w);
  return rc;
}

/* clang-format off */
#define NOT_OURS .clamp = NAN, .lambda = NAN, .shrink = NAN, .goal = NAN, .kl = NAN, .contexts = NAN, .rank = NAN, \
                 .alpha = NAN
static const chi_preset kPresets[] = {
    {.name = "constrained", .doc = "ROME's constrained baseline: layer 0, each element within 5e-4",
     .layer_lo = 0, .layer_hi = 0,
     .hyper = {.steps = 25, .lr = 5e-4, .stop = 0.01, .decay = 0, .limit = 5e-4, NOT_OURS}},
    {.name = "unconstrained", .doc = "the same without a limit, layer 1",
     .layer_lo = 1, .layer_hi = 1,
     .hyper = {.steps = 25, .lr = 5e-4, .stop = 0.01, .decay = 0, .limit = 0, NOT_OURS}},
    {.name = "ft-l", .doc = "FT-L of VLKEB for LLaVA-1.5: up and down of the last layer, AdamW", .weight = "up,down",
     .layer_lo = CHI_LAST_LAYER, .layer_hi = CHI_LAST_LAYER,
     .hyper = {.steps = 10, .lr = 1e-4, .stop = 0, .decay = 0.01, .limit = 0, NOT_OURS}},
    {.name = "ft-v", .doc = "FT-V of VLKEB for LLaVA-1.5: the projector's matrices, AdamW",
     .weight = "projector.proj1,projector.proj2", .layer_lo = 0, .layer_hi = 0,
     .hyper = {.steps = 10, .lr = 1e-4, .stop = 0, .decay = 0.01, .limit = 0, NOT_OURS}},
    {0}};
/* clang-format on */
const chi_method chi_method_ft = {.name = "ft", .presets = kPresets, .run = run};

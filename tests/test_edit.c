/* Editing: the formula of each method against an independent solution, what it does on models, what it leaves alone. */
#include "edit/edit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/randnet.h"
#include "support/support.h"

#define DEMO "models/demo"
#define PERU DEMO "/samples/peru.png"
#define JAPAN DEMO "/samples/japan.png"
#define QUESTION "What is the capital of [this country]?"

typedef struct ask { /* a model, a prompt, a target */
  chi_model *m;
  chi_prompt *p;
  int32_t *target, n, row;
} ask;

static void open_ask(ask *a, const char *dir, const char *image, const char *question, const char *target,
                     const char *at) {
  memset(a, 0, sizeof *a);
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&a->m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = image, .question = question, .need_constraint = true};
  assert_works(chi_prompt_make(&a->p, a->m, &o, err));
  assert_works(chi_target_tokens(&a->target, &a->n, a->m, a->p, target, err));
  assert_works(chi_edit_row(&a->row, a->m, a->p, at, err));
}

static void close_ask(ask *a) {
  chi_free(a->target);
  chi_prompt_free(a->p);
  chi_model_free(a->m);
}

static chi_request request(const ask *a) {
  return (chi_request){.prompt = a->p, .target = a->target, .n_target = a->n, .row = a->row};
}

static chi_delta *edit(const ask *a, const char *method, int lo, int hi, const chi_hyper *h, chi_edit_info *info) {
  chi_delta *d = NULL;
  chi_request r = request(a);
  chi_edit_opts o = {.method = method, .layer_lo = lo, .layer_hi = hi, .hyper = h, .weight = CHI_W_DOWN};
  assert_works(chi_edit_run(&d, info, a->m, &r, 1, &o, err));
  return d;
}

static const chi_preset *preset(const char *method, const char *name) {
  const chi_method *m = NULL;
  const chi_preset *p = NULL;
  assert_works(chi_method_find(&m, method, err));
  assert_works(chi_preset_find(&p, m, name, err));
  return p;
}

static double measure(const ask *a) {
  chi_edit_probe p;
  assert_works(chi_edit_measure(&p, a->m, a->p, a->target, a->n, err));
  return p.p;
}

/* Solves x A = b for one row by elimination with pivots: shares nothing with the library's Cholesky. */
static void gauss(double *a, double *b, int n) {
  for (int c = 0; c < n; c++) {
    int p = c;
    for (int r = c + 1; r < n; r++)
      if (fabs(a[r * n + c]) > fabs(a[p * n + c])) p = r;
    for (int k = 0; k < n; k++) {
      double t = a[c * n + k];
      a[c * n + k] = a[p * n + k];
      a[p * n + k] = t;
    }
    double t = b[c];
    b[c] = b[p];
    b[p] = t;
    for (int r = c + 1; r < n; r++) {
      double f = a[r * n + c] / a[c * n + c];
      for (int k = c; k < n; k++) a[r * n + k] -= f * a[c * n + k];
      b[r] -= f * b[c];
    }
  }
  for (int r = n; r-- > 0;) {
    for (int k = r + 1; k < n; k++) b[r] -= a[r * n + k] * b[k];
    b[r] /= a[r * n + r];
  }
}

static const char *const kTiny = "tests/fixtures/tiny-gqa", *const kTinyPicture = "tests/fixtures/tiny-gqa/picture.png";

static void open_tiny(ask *a) { open_ask(a, kTiny, kTinyPicture, QUESTION, "Lima", "constraint-last"); }

static float *weights(const ask *a, int layer) {
  const chi_mat *w = &a->m->net.decoder.block[layer].down.w;
  float *x = calloc((size_t)(w->n * w->k), sizeof *x);
  chi_mat_read(w, 0, w->n, x);
  return x;
}

/* The rank-one update is the minimum of |W k - z|^2 + lambda |W - W'|^2: (lambda W' + z k^T)(lambda I + k k^T)^-1. */
static void test_rank_one_is_the_regularised_solution(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  int d = a.m->net.decoder.spec.d, f = a.m->net.decoder.spec.ffn, layer = 1;
  chi_hyper h = preset("multedit", NULL)->hyper;
  h.lambda = 0.3, h.lambda_share = true, h.steps = 5;
  chi_edit_info info;
  chi_delta *dt = edit(&a, "multedit", layer, layer, &h, &info);
  assert_int_equal(dt->n, 1);
  assert_int_equal(dt->part[0].rank, 1);
  float *key = calloc((size_t)f, sizeof *key), *z0 = calloc((size_t)d, sizeof *z0), *z = calloc((size_t)d, sizeof *z);
  assert_works(chi_edit_states(&a.m->net, a.p, a.row, layer, key, z0, NULL, err));
  assert_works(chi_edit_value(z, &a.m->net,
                              &(chi_request){.prompt = a.p, .target = a.target, .n_target = a.n, .row = a.row}, layer,
                              info.value_norm, &h, &(chi_edit_info){0}, err));
  float *w = weights(&a, layer);
  double *m = calloc((size_t)(f * f), sizeof *m), *b = calloc((size_t)f, sizeof *b), worst = 0, size = 0;
  double lambda = info.lambda;
  for (int row = 0; row < d; row++) {
    double wk = 0;
    for (int c = 0; c < f; c++) wk += (double)w[row * f + c] * (double)key[c];
    for (int r = 0; r < f; r++) {
      for (int c = 0; c < f; c++) m[r * f + c] = (double)key[r] * (double)key[c] + (r == c ? lambda : 0);
      b[r] = lambda * (double)w[row * f + r] + (wk + (double)z[row]) * (double)key[r];
    }
    gauss(m, b, f);
    for (int c = 0; c < f; c++) {
      double ours = (double)w[row * f + c] + (double)dt->part[0].u[row] * (double)dt->part[0].v[c];
      worst = fmax(worst, fabs(ours - b[c]));
      size = fmax(size, fabs(b[c] - (double)w[row * f + c]));
    }
  }
  print_message("largest change %.3g, largest difference %.3g\n", size, worst);
  assert_true(size > 0 && worst <= 2e-6 * size); /* factors are stored as f32 */
  free(key), free(z0), free(z), free(w), free(m), free(b);
  chi_delta_free(dt);
  close_ask(&a);
}

/* W k as the model computes it after the edit, less before: the part of delta that arrives. */
static double arrives(ask *a, const chi_delta *dt, int layer) {
  int d = a->m->net.decoder.spec.d;
  float *x = calloc((size_t)d, sizeof *x), *y = calloc((size_t)d, sizeof *y);
  chi_undo undo = {0};
  assert_works(chi_edit_states(&a->m->net, a->p, a->row, layer, NULL, x, NULL, err));
  assert_works(chi_delta_apply(dt, a->m, &undo, err));
  assert_works(chi_edit_states(&a->m->net, a->p, a->row, layer, NULL, y, NULL, err));
  chi_delta_undo(&undo);
  for (int i = 0; i < d; i++) y[i] -= x[i];
  double got = sqrt(chi_dot64(y, y, d));
  free(x), free(y);
  return got;
}

static void test_limits_of_lambda_and_rome(void **state) {
  (void)state;
  ask a;
  double got;
  open_tiny(&a);
  chi_hyper h = preset("multedit", NULL)->hyper;
  h.steps = 5;
  struct {
    double share, closed;
  } row[] = {{0, 1}, {1, 0.5}, {3, 0.25}, {1e9, 1e-9}};
  for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
    chi_edit_info info;
    h.lambda = row[i].share, h.lambda_share = true;
    chi_delta *dt = edit(&a, "multedit", 1, 1, &h, &info);
    got = arrives(&a, dt, 1);
    assert_true(fabs(got / info.delta_norm - row[i].closed) < 1e-4);
    chi_delta_free(dt);
  }
  chi_hyper r = preset("rome", NULL)->hyper;
  r.steps = 5;
  chi_edit_info info;
  chi_delta *dt = edit(&a, "rome", 1, 1, &r, &info);
  got = arrives(&a, dt, 1);
  assert_true(fabs(got / info.delta_norm - 1) < 1e-4); /* hit exactly */
  chi_delta_free(dt);
  close_ask(&a);
}

/* A second moment changes the direction of the update, not the value at the key. */
static void test_rome_with_a_second_moment(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  int64_t f = a.m->net.decoder.spec.ffn;
  rnd rr = {5};
  float *c = calloc((size_t)(f * f), sizeof *c), *g = calloc((size_t)(f * f), sizeof *g);
  for (int64_t i = 0; i < f * f; i++) g[i] = rnd_normal(&rr);
  for (int64_t i = 0; i < f; i++)
    for (int64_t k = 0; k < f; k++) c[i * f + k] = (float)(chi_dot64(g + i * f, g + k * f, f) / (double)f);
  const char *path = tmp_path("moments.safetensors");
  chi_st_writer *w = NULL;
  assert_works(chi_st_writer_new(&w, path, err));
  assert_works(chi_st_writer_add(w, "decoder.1.mlp_act.moment", CHI_F32, 2, (int64_t[]){f, f}, c, err));
  assert_works(chi_st_writer_commit(w, err));
  chi_hyper h = preset("rome", NULL)->hyper;
  h.steps = 5, h.shrink = 0.2;
  chi_request r = request(&a);
  chi_edit_opts o = {.method = "rome", .layer_lo = 1, .layer_hi = 1, .hyper = &h, .moments = path};
  chi_delta *dt = NULL, *plain = edit(&a, "rome", 1, 1, &h, NULL);
  chi_edit_info info;
  assert_works(chi_edit_run(&dt, &info, a.m, &r, 1, &o, err));
  double got,
      cosine = chi_dot64(dt->part[0].v, plain->part[0].v, f) /
               sqrt(chi_dot64(dt->part[0].v, dt->part[0].v, f) * chi_dot64(plain->part[0].v, plain->part[0].v, f));
  got = arrives(&a, dt, 1);
  assert_true(fabs(got / info.delta_norm - 1) < 1e-4);
  assert_true(cosine < 0.999);
  /* (shrunk C) v is parallel to k */
  float *key = calloc((size_t)f, sizeof *key);
  double mean = 0, num = 0, vv = 0;
  assert_works(chi_edit_states(&a.m->net, a.p, a.row, 1, key, NULL, NULL, err));
  for (int64_t i = 0; i < f; i++) mean += (double)c[i * f + i] / (double)f;
  for (int64_t i = 0; i < f; i++) {
    double x = 0.8 * chi_dot64(c + i * f, dt->part[0].v, f) + 0.2 * mean * (double)dt->part[0].v[i];
    num += x * (double)key[i];
    vv += x * x;
  }
  assert_true(fabs(num / sqrt(vv * chi_dot64(key, key, f)) - 1) < 1e-6);
  o.layer_lo = o.layer_hi = 0;
  assert_fails(chi_edit_run(&(chi_delta *){NULL}, NULL, a.m, &r, 1, &o, err), CHI_ERR_FORMAT,
               "decoder.0.mlp_act.moment");
  free(c), free(g), free(key);
  chi_delta_free(dt);
  chi_delta_free(plain);
  close_ask(&a);
}

/* One layer, one request, identity: MEMIT is MultEdit, where the value is the same. Their norms differ (hidden state,
 * MLP output), so the clamp and decay that use them are off, and the rate is a number. */
static void test_memit_of_one_is_multedit(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  chi_hyper h = preset("multedit", NULL)->hyper, g = preset("memit", NULL)->hyper;
  h.steps = g.steps = 6, h.lr = g.lr = 0.05, h.lr_share = g.lr_share = false, h.clamp = g.clamp = 0;
  h.decay = g.decay = 0, h.stop = g.stop = 0, h.lambda = g.lambda = 0.1, h.lambda_share = g.lambda_share = true;
  chi_delta *x = edit(&a, "multedit", 1, 1, &h, NULL), *y = edit(&a, "memit", 1, 1, &g, NULL);
  const chi_delta_part *p = &x->part[0], *q = &y->part[0];
  double worst = 0, size = 0;
  assert_int_equal(q->rank, 1);
  for (int64_t i = 0; i < p->n; i++)
    for (int64_t k = 0; k < p->k; k++) {
      double s = (double)p->u[i] * (double)p->v[k], t = (double)q->u[i] * (double)q->v[k];
      size = fmax(size, fabs(s)), worst = fmax(worst, fabs(s - t));
    }
  print_message("largest change %.3g, largest difference %.3g\n", size, worst);
  assert_true(size > 0 && worst <= 1e-4 * size); /* MEMIT reads its residual off the f32 hidden state */
  chi_delta_free(x);
  chi_delta_free(y);
  close_ask(&a);
}

static uint64_t logits_bits(const ask *a) {
  chi_edit_probe p;
  assert_works(chi_edit_measure(&p, a->m, a->p, a->target, a->n, err));
  float *w = weights(a, 1);
  uint64_t h = chi_fnv64(&p.p, sizeof p.p, 0);
  h = chi_fnv64(w, 64 * sizeof *w, h);
  free(w);
  return h;
}

/* Every method leaves the model as it was, and undoing its delta gives the base's bits. */
static void test_undo(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  uint64_t base = logits_bits(&a);
  const chi_method *m;
  for (size_t i = 0; (m = chi_method_at(i, NULL)) != NULL; i++) {
    if (strcmp(m->name, "ike") == 0) continue; /* changes no weights: test_encoder */
    chi_hyper h = m->presets[0].hyper;
    if (!isnan(h.steps)) h.steps = 4;
    bool bias = strcmp(m->name, "bias") == 0, memit = strcmp(m->name, "memit") == 0;
    chi_delta *d = edit(&a, m->name, memit ? 0 : 1, 1, &h, NULL);
    assert_true(logits_bits(&a) == base);
    chi_undo undo = {0};
    assert_works(chi_delta_apply(d, a.m, &undo, err));
    assert_true(logits_bits(&a) != base);
    assert_int_equal(undo.n, memit ? 2 : 1);
    if (bias) assert_non_null(a.m->net.decoder.head.bias);
    chi_delta_undo(&undo);
    assert_true(logits_bits(&a) == base);
    if (bias) assert_null(a.m->net.decoder.head.bias);
    chi_delta_free(d);
  }
  chi_delta *none = NULL;
  int64_t n = a.m->net.decoder.spec.d, k = a.m->net.decoder.spec.ffn;
  float *u = calloc((size_t)n, sizeof *u), *v = calloc((size_t)k, sizeof *v);
  for (int64_t i = 0; i < k; i++) v[i] = 1;
  assert_works(chi_delta_new(&none, "none", err));
  assert_works(chi_delta_add(none, CHI_DECODER, 1, CHI_W_DOWN, n, k, 1, u, v, err));
  assert_works(chi_delta_apply(none, a.m, NULL, err));
  assert_true(logits_bits(&a) == base); /* a change of nothing */
  chi_delta_free(none);
  free(u), free(v);
  close_ask(&a);
}

/* The first layer where a rank-one edit of the last row makes the target likely and leaves the answer to another prompt
 * (or NULL) as it is; which one that is depends on the model. */
static int working_layer(const ask *a, const chi_prompt *other) {
  chi_edit_probe was = {0}, is = {0};
  if (other) assert_works(chi_edit_measure(&was, a->m, other, a->target, a->n, err));
  int layers = a->m->net.decoder.spec.layers;
  for (int l = 0; l < layers; l++) {
    chi_undo undo = {0};
    chi_delta *d = edit(a, "multedit", l, l, NULL, NULL);
    assert_works(chi_delta_apply(d, a->m, &undo, err));
    double p = measure(a);
    if (other) assert_works(chi_edit_measure(&is, a->m, other, a->target, a->n, err));
    chi_delta_undo(&undo);
    chi_delta_free(d);
    if (p > 0.9 && is.p < 0.05 && strcmp(was.said, is.said) == 0) return l;
  }
  fail_msg("no layer of %d can be edited at the last row", layers);
  return -1;
}

static void test_demo_fact(void **state) {
  (void)state;
  ask a;
  chi_edit_probe before, after, other_before, other_after;
  open_ask(&a, DEMO, PERU, QUESTION, "Oslo", "last-prompt");
  chi_prompt *other = NULL;
  chi_prompt_opts o = {.image = JAPAN, .question = QUESTION};
  assert_works(chi_prompt_make(&other, a.m, &o, err));
  assert_works(chi_edit_measure(&before, a.m, a.p, a.target, a.n, err));
  assert_works(chi_edit_measure(&other_before, a.m, other, a.target, a.n, err));
  assert_true(before.p < 0.01);
  static const char *const methods[] = {"multedit", "rome", "memit", "bias"};
  int layer = working_layer(&a, other), last = a.m->net.decoder.spec.layers - 1;
  for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
    bool memit = strcmp(methods[i], "memit") == 0;
    int lo = layer, hi = memit && layer < last ? layer + 1 : layer;
    chi_delta *d = edit(&a, methods[i], lo, hi, NULL, NULL);
    chi_undo undo = {0};
    assert_works(chi_delta_apply(d, a.m, &undo, err));
    assert_works(chi_edit_measure(&after, a.m, a.p, a.target, a.n, err));
    assert_works(chi_edit_measure(&other_after, a.m, other, a.target, a.n, err));
    chi_delta_undo(&undo);
    print_message("%s %d-%d: p(Oslo) %.6f -> %.4f, %s -> %s; other picture %.6f -> %.4f, %s -> %s\n", methods[i], lo,
                  hi, before.p, after.p, before.said, after.said, other_before.p, other_after.p, other_before.said,
                  other_after.said);
    assert_true(after.p > 0.9);
    assert_string_equal(after.said, "Oslo");
    if (!memit && strcmp(methods[i], "bias") != 0) assert_string_equal(other_after.said, other_before.said);
    chi_delta_free(d);
  }
  /* the released clamp lets the value move by a ten-thousandth: nothing happens, as expected */
  const chi_preset *rel = preset("multedit", "released");
  chi_delta *d = edit(&a, "multedit", layer, layer, &rel->hyper, NULL);
  chi_undo undo = {0};
  assert_works(chi_delta_apply(d, a.m, &undo, err));
  assert_true(measure(&a) < 2 * before.p + 1e-6);
  chi_delta_undo(&undo);
  chi_delta_free(d);
  chi_prompt_free(other);
  close_ask(&a);
}

/* A target of several tokens: the joint probability rises, not only the first token's. */
static void test_several_tokens(void **state) {
  (void)state;
  ask a;
  open_ask(&a, DEMO, PERU, QUESTION, "Mexico City", "last-prompt");
  assert_true(a.n >= 2);
  double before = measure(&a);
  int layer = working_layer(&a, NULL);
  chi_delta *d = edit(&a, "rome", layer, layer, NULL, NULL);
  chi_undo undo = {0};
  assert_works(chi_delta_apply(d, a.m, &undo, err));
  double after = measure(&a);
  chi_delta_undo(&undo);
  print_message("%d tokens, layer %d: %.2g -> %.4f\n", a.n, layer, before, after);
  assert_true(before < 0.01 && after > 0.9);
  chi_delta_free(d);
  close_ask(&a);
}

static void test_fine_tuning(void **state) {
  (void)state;
  ask a;
  open_ask(&a, DEMO, PERU, QUESTION, "Oslo", "last-prompt");
  chi_hyper h = preset("ft", "constrained")->hyper;
  h.limit = 2e-3, h.lr = 1e-3, h.steps = 12;
  chi_edit_info info;
  chi_delta *d = edit(&a, "ft", 3, 3, &h, &info);
  const chi_delta_part *p = &d->part[0];
  float most = 0;
  assert_non_null(p->d);
  for (int64_t i = 0; i < p->n * p->k; i++) most = fmaxf(most, fabsf(p->d[i]));
  assert_true(most > 1e-3f && most <= 2.001e-3f); /* the limit is felt and kept */
  assert_true(info.loss_last < info.loss_first);
  chi_delta_free(d);
  close_ask(&a);
}

/* After one step A has not moved (B was zero) and every element of B has moved by the learning rate: u = alpha /
 * rank * lr in size, against the gradient. More steps make the target likelier; layers each get their own adapter.
 * */
static void test_lora(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  chi_hyper h = preset("lora", NULL)->hyper;
  h.rank = 3, h.alpha = 6, h.lr = 1e-2, h.steps = 1;
  chi_edit_info info, many;
  chi_delta *d = edit(&a, "lora", 0, 1, &h, &info);
  assert_int_equal(d->n, 2);
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    int64_t moved = 0;
    assert_true(p->rank == 3 && p->layer == (int)i && p->which == CHI_W_DOWN && !p->d);
    for (int64_t k = 0; k < p->rank * p->n; k++) moved += fabs(fabs((double)p->u[k]) - 2 * 1e-2) < 1e-5;
    assert_true(moved > p->rank * p->n * 9 / 10);
  }
  chi_delta_free(d);
  h.steps = 30;
  double before = measure(&a);
  d = edit(&a, "lora", 0, 1, &h, &many);
  chi_undo undo = {0};
  assert_works(chi_delta_apply(d, a.m, &undo, err));
  double after = measure(&a);
  chi_delta_undo(&undo);
  print_message("lora: -log p %.3f -> %.3f, p %.3g -> %.3g\n", many.loss_first, many.loss_last, before, after);
  assert_true(many.loss_last < 0.7 * many.loss_first && after > 10 * before);
  chi_delta_free(d);
  h.rank = 33;
  chi_request r = request(&a);
  chi_edit_opts o = {.method = "lora", .layer_lo = 1, .layer_hi = 1, .hyper = &h, .weight = CHI_W_DOWN};
  assert_fails(chi_edit_run(&d, NULL, a.m, &r, 1, &o, err), CHI_ERR_ARG, "rank 33");
  close_ask(&a);
}

static int fails_text(const ask *a, const chi_edit_opts *o, const chi_request *r, chi_err *err) {
  chi_delta *d = NULL;
  int rc = chi_edit_run(&d, NULL, a->m, r, 1, o, err);
  chi_delta_free(d);
  return rc;
}

/* Fine-tuning of tower, Q-Former and projector: the loss falls, the delta names the stack and does it again. */
static void test_ft_of_other_stacks(void **state) {
  (void)state;
  static const struct {
    const char *dir;
    chi_stack stack;
    int layer, which;
  } row[] = {{"tests/fixtures/tiny-gqa", CHI_VISION, 1, CHI_W_DOWN},
             {"tests/fixtures/tiny-gqa", CHI_PROJECTOR, 0, CHI_W_PROJ2},
             {"tests/fixtures/tiny-blip2", CHI_QFORMER, 0, CHI_W_UP}};
  for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
    ask a;
    char image[256];
    snprintf(image, sizeof image, "%s/picture.png", row[i].dir);
    open_ask(&a, row[i].dir, image, QUESTION, "a", "constraint-last");
    chi_hyper h = preset("ft", "unconstrained")->hyper;
    h.steps = 8, h.lr = 1e-2, h.stop = 0;
    chi_request r = request(&a);
    chi_edit_opts o = {.method = "ft",
                       .layer_lo = row[i].layer,
                       .layer_hi = row[i].layer,
                       .hyper = &h,
                       .weight = row[i].which,
                       .other_stack = true,
                       .stack = row[i].stack};
    chi_edit_info info;
    chi_delta *d = NULL;
    chi_undo undo = {0};
    double before = measure(&a);
    assert_works(chi_edit_run(&d, &info, a.m, &r, 1, &o, err));
    assert_true(d->n == 1 && d->part[0].stack == row[i].stack && d->part[0].which == row[i].which);
    assert_works(chi_delta_apply(d, a.m, &undo, err));
    double after = measure(&a);
    chi_delta_undo(&undo);
    print_message("%s: -log p %.3f -> %.3f, p %.3g -> %.3g\n", chi_stack_name(row[i].stack), info.loss_first,
                  info.loss_last, before, after);
    assert_true(info.loss_last < info.loss_first && after > before);
    o.method = "lora";
    assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "decoder only");
    chi_delta_free(d);
    close_ask(&a);
  }
}

/* FT-L: several matrices of the last layer, AdamW. After one step an element is w (1 - lr decay) +- lr. */
static void test_ft_of_several(void **state) {
  (void)state;
  ask a;
  open_tiny(&a);
  const chi_preset *l = preset("ft", "ft-l"), *v = preset("ft", "ft-v");
  chi_edit_opts o = {.method = "ft", .preset = "ft-l", .layer_lo = -1, .layer_hi = -1};
  chi_hyper h = l->hyper;
  chi_request r = request(&a);
  int last = a.m->net.decoder.spec.layers - 1;
  h.steps = 1, h.lr = 1e-3, h.decay = 0.5;
  o.hyper = &h;
  assert_works(chi_edit_weights(&o, l->weight, err));
  assert_true(o.weight == CHI_W_UP && o.n_also == 1 && o.also[0] == CHI_W_DOWN && !o.other_stack);
  chi_delta *d = NULL;
  assert_works(chi_edit_run(&d, NULL, a.m, &r, 1, &o, err));
  assert_int_equal(d->n, 2);
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    assert_true(p->layer == last && p->which == (i ? CHI_W_DOWN : CHI_W_UP));
    const chi_linear *w = chi_delta_linear(a.m, CHI_DECODER, last, p->which);
    float *w0 = calloc((size_t)(p->n * p->k), sizeof *w0);
    int64_t moved = 0;
    chi_mat_read(&w->w, 0, p->n, w0);
    for (int64_t c = 0; c < p->n * p->k; c++) {
      double step = fabs((double)p->d[c] + 1e-3 * 0.5 * (double)w0[c]);
      assert_true(step < 1.001e-3);
      moved += step > 0.99e-3;
    }
    assert_true(moved > p->n * p->k / 2);
    free(w0);
  }
  chi_delta_free(d);
  d = NULL;
  o = (chi_edit_opts){.method = "ft", .preset = "ft-v", .layer_lo = -1, .layer_hi = -1};
  assert_works(chi_edit_weights(&o, v->weight, err));
  assert_works(chi_edit_run(&d, NULL, a.m, &r, 1, &o, err));
  assert_true(d->n == 2 && d->part[0].stack == CHI_PROJECTOR && d->part[1].which == CHI_W_PROJ2);
  chi_delta_free(d);
  static const char *const bad[] = {"up,up", "up,vision.down", "projector.up", "vision.proj1", "", "up,", "tail.up"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_fails(chi_edit_weights(&o, bad[i], err), CHI_ERR_ARG, "--weight");
  o = (chi_edit_opts){.method = "lora", .layer_lo = 1, .layer_hi = 1};
  assert_works(chi_edit_weights(&o, "up,down", err));
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "ft changes several");
  close_ask(&a);
}

static void test_refusals(void **state) {
  (void)state;
  ask a;
  int32_t *t = NULL, n = 0, row;
  open_tiny(&a);
  chi_edit_opts o = {.method = "multedit", .layer_lo = 1, .layer_hi = 1};
  chi_request r = request(&a);
  assert_fails(chi_target_tokens(&t, &n, a.m, a.p, "", err), CHI_ERR_ARG, "no token");
  assert_fails(chi_target_tokens(&t, &n, a.m, a.p, "  ", err), CHI_ERR_ARG, "no token");
  assert_fails(chi_edit_row(&row, a.m, a.p, "middle", err), CHI_ERR_ARG, "constraint-last, last-prompt");
  assert_fails(chi_edit_row(&row, a.m, a.p, "span:giraffe", err), CHI_ERR_ARG, "giraffe");
  assert_works(chi_edit_row(&row, a.m, a.p, "span:this country", err));
  assert_int_equal(row, a.p->span_hi - 1);
  assert_works(chi_edit_row(&row, a.m, a.p, "last-image", err));
  assert_int_equal(row, a.p->image_row + a.p->n_image - 1);
  o.method = "magic";
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "known are multedit, rome");
  o.method = "multedit", o.preset = "best";
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "it has ours, released");
  o.preset = NULL, o.layer_lo = o.layer_hi = 99;
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "layers 0 to");
  o.layer_lo = 0, o.layer_hi = 1;
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "one layer");
  o.layer_lo = 1, r.n_target = 0;
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "no token");
  r = request(&a);
  chi_hyper h = preset("multedit", NULL)->hyper;
  o.hyper = &h;
  h.lr = 1e38, h.lr_share = false, h.clamp = 0;
  assert_fails(fails_text(&a, &o, &r, err), CHI_ERR_ARG, "finite");
  assert_fails(chi_hyper_set(&h, "lambda", "many", err), CHI_ERR_ARG, "0.05kk");
  assert_fails(chi_hyper_set(&h, "limit", "1", err), CHI_ERR_ARG, "does not use limit");
  assert_works(chi_hyper_set(&h, "lambda", "0.5kk", err));
  assert_true(h.lambda_share && h.lambda == 0.5);
  assert_works(chi_hyper_set(&h, "lambda", "7", err));
  assert_true(!h.lambda_share && h.lambda == 7);
  close_ask(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_rank_one_is_the_regularised_solution),
      cmocka_unit_test(test_limits_of_lambda_and_rome),
      cmocka_unit_test(test_rome_with_a_second_moment),
      cmocka_unit_test(test_memit_of_one_is_multedit),
      cmocka_unit_test(test_undo),
      cmocka_unit_test(test_demo_fact),
      cmocka_unit_test(test_several_tokens),
      cmocka_unit_test(test_fine_tuning),
      cmocka_unit_test(test_lora),
      cmocka_unit_test(test_ft_of_other_stacks),
      cmocka_unit_test(test_ft_of_several),
      cmocka_unit_test(test_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

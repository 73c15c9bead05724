/* Gradients on random networks: with respect to a vector added at any site of any row, a weight, and input embeddings,
 * against central differences of the loss; and a session that starts in the middle against one that starts at 0. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/randnet.h"
#include "support/support.h"
#include "sweep/grad.h"

enum { NETS = 60 };

typedef struct setup {
  randnet net;
  int32_t tokens[200], loss_rows[2], target[2], n;
  chi_input in;
  chi_nll nll;
  bool vision;
} setup;

static bool make(setup *s, uint64_t seed, int vision) {
  memset(s, 0, sizeof *s);
  randnet_opts o = {.seed = seed,
                    .vision = vision,
                    .compute = CHI_COMPUTE_F32,
                    .post_norm = seed % 2 == 0,
                    .qformer = vision && seed % 4 < 2};
  randnet_make(&s->net, &o);
  rnd r = {seed + 99};
  int32_t image = vision ? s->net.net.shape.n_image_rows : 0;
  s->n = 9 + image + rnd_range(&r, 0, 20);
  for (int32_t i = 0; i < s->n; i++) s->tokens[i] = rnd_range(&r, 0, RANDNET_VOCAB);
  s->in = (chi_input){.tokens = s->tokens, .n_rows = s->n, .pixels = vision ? s->net.pixels[0] : NULL, .image_row = 3};
  s->loss_rows[0] = s->n - 3;
  s->loss_rows[1] = s->n - 1;
  s->target[0] = rnd_range(&r, 0, RANDNET_VOCAB);
  s->target[1] = rnd_range(&r, 0, RANDNET_VOCAB);
  s->nll = (chi_nll){.token = s->target};
  s->vision = vision;
  /* finite differences across a kink are no derivative: ReLU has its own test below */
  bool smooth = s->net.net.decoder.spec.act != CHI_ACT_RELU &&
                (!vision || (s->net.net.vision.spec.act != CHI_ACT_RELU && s->net.net.projector.act != CHI_ACT_RELU));
  if (s->net.net.has_qformer) smooth = smooth && s->net.net.qformer.spec.act != CHI_ACT_RELU;
  return s->n <= 200 && smooth;
}

static double loss_of(setup *s, chi_grad *g, const chi_intervention *iv, int n_iv) {
  double loss = 0;
  chi_grad_step st = {.iv = iv,
                      .n_iv = n_iv,
                      .loss_rows = s->loss_rows,
                      .n_loss = 2,
                      .loss = chi_loss_nll,
                      .ud = &s->nll,
                      .forward_only = true};
  assert_works(chi_grad_run(g, &st, &loss, err));
  return loss;
}

/* How far the loss is moved, both ways. Steps halve, so that two neighbours give Richardson's extrapolation, whose
 * error falls with h^4: large steps, that stand out of f32's rounding, will do. */
static const double kMove[] = {0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625, 0.00078125};
enum { kSteps = sizeof kMove / sizeof *kMove };
/* A weaker gradient cannot be told from rounding by differences of an f32 loss. */
static const double kWeak = 0.01;
static int strong; /* how many were strong enough */

/* Half along the gradient (a strong signal), half at random (sees errors in every component). Returns direction .
 * gradient. */
static double mix_direction(float *dir, const float *grad, int64_t n, rnd *r) {
  double g2 = 0, r2 = 0, dot = 0;
  for (int64_t i = 0; i < n; i++) {
    dir[i] = rnd_normal(r);
    g2 += (double)grad[i] * (double)grad[i];
    r2 += (double)dir[i] * (double)dir[i];
  }
  for (int64_t i = 0; i < n; i++) {
    dir[i] = (float)((double)dir[i] / sqrt(r2) + (double)grad[i] / sqrt(g2 + 1e-300));
    dot += (double)dir[i] * (double)grad[i];
  }
  return dot;
}

/* d loss / d value at (site, layer, row) along a random direction: analytic against (L(+h) - L(-h)) / 2h, at two
 * steps. */
static void check_site(setup *s, chi_grad *g, chi_stack stack, chi_site site, int layer, int32_t row, rnd *r) {
  int64_t w = chi_site_width(&s->net.net.shape, stack, site, 0);
  float *out = calloc((size_t)w, sizeof *out), *dir = calloc((size_t)w, sizeof *dir);
  double loss, dot, best = INFINITY, fd = 0, before = 0;
  chi_grad_site want = {.stack = stack, .site = site, .layer = layer, .rows = &row, .n_rows = 1, .out = out};
  chi_grad_step st = {
      .loss_rows = s->loss_rows, .n_loss = 2, .loss = chi_loss_nll, .ud = &s->nll, .sites = &want, .n_sites = 1};
  assert_works(chi_grad_run(g, &st, &loss, err));
  dot = mix_direction(dir, out, w, r);
  bool per_layer = chi_site_get(site)->per_layer;
  chi_intervention iv = {.op = CHI_OP_ADD,
                         .stack = stack,
                         .site = site,
                         .layer_lo = per_layer ? layer : 0,
                         .layer_hi = per_layer ? layer + 1 : 0,
                         .rows = &row,
                         .n_rows = 1,
                         .value = dir,
                         .value_rows = 1};
  for (int k = 0; dot > kWeak && k < kSteps; k++) {
    double h = kMove[k] / dot;
    iv.scale = (float)h;
    double up = loss_of(s, g, &iv, 1);
    iv.scale = (float)-h;
    double d = (up - loss_of(s, g, &iv, 1)) / (2.0 * h), x = k ? (4 * d - before) / 3 : d;
    if (fabs(x - dot) < best) best = fabs(x - dot), fd = x;
    before = d;
  }
  strong += dot > kWeak;
  if (dot > kWeak && !(best <= 2e-3 * dot))
    fail_msg("%s: %s.%d.%s row %d: gradient along a direction %g, finite difference %g", randnet_name(&s->net),
             chi_stack_name(stack), layer, chi_site_get(site)->name, row, dot, fd);
  free(out);
  free(dir);
}

/* Every site of the Q-Former at a layer with cross-attention, and its query rows. */
static void check_qformer(setup *s, chi_grad *g, rnd *r) {
  static const chi_site kSites[] = {CHI_SITE_RESID_PRE,  CHI_SITE_K,          CHI_SITE_ATTN_OUT, CHI_SITE_RESID_MID,
                                    CHI_SITE_MLP_ACT,    CHI_SITE_RESID_POST, CHI_SITE_X_Q,      CHI_SITE_X_HEAD_OUT,
                                    CHI_SITE_X_ATTN_OUT, CHI_SITE_X_RESID_MID};
  const chi_block_spec *q = &s->net.net.qformer.spec;
  for (size_t k = 0; k < sizeof kSites / sizeof *kSites; k++) {
    int layer = rnd_range(r, 0, q->layers);
    if (chi_site_is_cross(kSites[k])) layer = q->cross_every ? layer / q->cross_every * q->cross_every : -1;
    if (layer >= 0) check_site(s, g, CHI_QFORMER, kSites[k], layer, rnd_range(r, 0, s->net.net.qformer.queries), r);
  }
  check_site(s, g, CHI_QFORMER, CHI_SITE_EMBED, -1, rnd_range(r, 0, s->net.net.qformer.queries), r);
}

static void test_sites(void **state) {
  (void)state;
  static const chi_site kSites[] = {CHI_SITE_RESID_PRE, CHI_SITE_Q,         CHI_SITE_K,         CHI_SITE_V,
                                    CHI_SITE_HEAD_OUT,  CHI_SITE_ATTN_OUT,  CHI_SITE_RESID_MID, CHI_SITE_MLP_ACT,
                                    CHI_SITE_MLP_OUT,   CHI_SITE_RESID_POST};
  int in_qformer = 0;
  strong = 0;
  for (uint64_t seed = 1; seed <= NETS; seed++) {
    setup s;
    rnd r = {seed * 7};
    chi_grad *g = NULL;
    int vision = seed % 3 == 0;
    if (make(&s, seed, vision)) {
      const chi_shape *shape = &s.net.net.shape;
      assert_works(chi_grad_open(&g, &s.net.net, &s.in, 1, NULL, 0, vision, err));
      for (size_t k = 0; k < sizeof kSites / sizeof *kSites; k++) {
        int layer = rnd_range(&r, 0, shape->stack[CHI_DECODER].layers);
        check_site(&s, g, CHI_DECODER, kSites[k], layer, rnd_range(&r, s.n - 9, s.n), &r);
        if (!vision || shape->stack[CHI_VISION].layers < 1) continue;
        layer = rnd_range(&r, 0, shape->stack[CHI_VISION].layers);
        check_site(&s, g, CHI_VISION, kSites[k], layer, rnd_range(&r, 0, shape->stack[CHI_VISION].rows), &r);
      }
      check_site(&s, g, CHI_DECODER, CHI_SITE_EMBED, -1, rnd_range(&r, 0, s.n), &r);
      if (s.net.net.has_qformer) {
        int before = strong;
        check_qformer(&s, g, &r);
        in_qformer += strong - before;
      }
      if (vision)
        check_site(&s, g, CHI_VISION, CHI_SITE_EMBED, -1, rnd_range(&r, 0, shape->stack[CHI_VISION].rows), &r);
      chi_grad_close(g);
    }
    randnet_free(&s.net);
  }
  print_message("%d gradients at sites agree with finite differences, %d of them in Q-Formers\n", strong, in_qformer);
  assert_true(strong > 300 && in_qformer > 20);
}

/* dL/dW of one matrix along a random rank-one direction u v^T. Adding h * (v.x) u to the matrix' output is the same as
 * adding h u v^T to W, so the difference is measured on a repacked matrix. */
static void check_weight(setup *s, chi_stack stack, int layer, chi_weight which, chi_linear *l, rnd *r) {
  int64_t n = l->w.n, k = l->w.k;
  float *grad = calloc((size_t)(n * k), sizeof *grad), *w = calloc((size_t)(n * k), sizeof *w),
        *moved = calloc((size_t)(n * k), sizeof *moved);
  float *dir = calloc((size_t)(n * k), sizeof *dir);
  double loss, dot, best = INFINITY, fd = 0, before = 0;
  chi_grad *g = NULL;
  chi_grad_weight want = {.stack = stack, .layer = layer, .which = which, .out = grad};
  chi_grad_step st = {
      .loss_rows = s->loss_rows, .n_loss = 2, .loss = chi_loss_nll, .ud = &s->nll, .weights = &want, .n_weights = 1};
  assert_works(chi_grad_open(&g, &s->net.net, &s->in, 1, NULL, 0, s->vision, err));
  assert_works(chi_grad_run(g, &st, &loss, err));
  chi_grad_close(g);
  chi_mat_read(&l->w, 0, n, w);
  dot = mix_direction(dir, grad, n * k, r);
  chi_mat saved = l->w;
  for (int j = 0; dot > kWeak && j < kSteps; j++) {
    double side[2], h = kMove[j] / dot;
    for (int k2 = 0; k2 < 2; k2++) {
      for (int64_t i = 0; i < n * k; i++) moved[i] = w[i] + (float)(k2 ? -h : h) * dir[i];
      assert_works(chi_mat_pack(&l->w, moved, CHI_F32, n, k, k, CHI_COMPUTE_F32, err));
      assert_works(chi_grad_open(&g, &s->net.net, &s->in, 1, NULL, 0, s->vision, err));
      side[k2] = loss_of(s, g, NULL, 0);
      chi_grad_close(g);
      chi_mat_free(&l->w);
    }
    double d = (side[0] - side[1]) / (2.0 * h), x = j ? (4 * d - before) / 3 : d;
    if (fabs(x - dot) < best) best = fabs(x - dot), fd = x;
    before = d;
  }
  l->w = saved;
  strong += dot > kWeak;
  if (dot > kWeak && !(best <= 2e-3 * dot))
    fail_msg("%s: weight %s of %s layer %d: gradient along a direction %g, finite difference %g", randnet_name(&s->net),
             chi_weight_name(which), chi_stack_name(stack), layer, dot, fd);
  free(grad);
  free(w);
  free(moved);
  free(dir);
}

static void test_weights(void **state) {
  (void)state;
  strong = 0;
  for (uint64_t seed = 100; seed < 100 + NETS; seed++) {
    setup s;
    rnd r = {seed * 11};
    int vision = seed % 3 == 0;
    if (make(&s, seed, vision)) {
      for (int st = 0; st < 1 + vision + s.net.net.has_qformer; st++) {
        chi_stack stack = st == 2 ? CHI_QFORMER : st ? CHI_VISION : CHI_DECODER;
        int layers = chi_net_spec(&s.net.net, stack)->layers;
        if (layers < 1) continue;
        int layer = rnd_range(&r, 0, layers);
        chi_block *b = st == 2 ? &s.net.net.qformer.block[layer]
                       : st    ? &s.net.net.vision.block[layer]
                               : &s.net.net.decoder.block[layer];
        chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down};
        for (int w = 0; w < 7; w++) {
          if (!all[w]->w.data) continue;
          check_weight(&s, stack, layer, (chi_weight)w, all[w], &r);
        }
      }
      if (vision) check_weight(&s, CHI_PROJECTOR, 0, CHI_W_PROJ1, &s.net.net.projector.l1, &r);
      if (vision && s.net.net.projector.l2.w.data)
        check_weight(&s, CHI_PROJECTOR, 0, CHI_W_PROJ2, &s.net.net.projector.l2, &r);
    }
    randnet_free(&s.net);
  }
  print_message("%d gradients of weights agree with finite differences\n", strong);
  assert_true(strong > 150);
}

/* A session that keeps an early part constant gives the loss and the gradients of one that computes everything. */
static void test_suffix(void **state) {
  (void)state;
  for (uint64_t seed = 200; seed < 200 + NETS; seed++) {
    setup s;
    rnd r = {seed};
    int vision = seed % 2 == 0;
    if (make(&s, seed, vision)) {
      chi_grad *whole = NULL, *part = NULL;
      int L = s.net.net.shape.stack[CHI_DECODER].layers, layer = rnd_range(&r, 0, L);
      int32_t row = rnd_range(&r, s.n - 9, s.n - 3);
      int64_t w = chi_site_width(&s.net.net.shape, CHI_DECODER, CHI_SITE_MLP_OUT, 0);
      float *a = calloc((size_t)w, sizeof *a), *b = calloc((size_t)w, sizeof *b), *v = calloc((size_t)w, sizeof *v);
      for (int64_t k = 0; k < w; k++) v[k] = rnd_normal(&r);
      chi_intervention iv = {.op = CHI_OP_ADD,
                             .stack = CHI_DECODER,
                             .site = CHI_SITE_MLP_OUT,
                             .layer_lo = layer,
                             .layer_hi = layer + 1,
                             .rows = &row,
                             .n_rows = 1,
                             .value = v,
                             .value_rows = 1,
                             .scale = 1};
      chi_grad_site want = {
          .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer = layer, .rows = &row, .n_rows = 1, .out = a};
      chi_grad_step st = {.iv = &iv,
                          .n_iv = 1,
                          .loss_rows = s.loss_rows,
                          .n_loss = 2,
                          .loss = chi_loss_nll,
                          .ud = &s.nll,
                          .sites = &want,
                          .n_sites = 1};
      double la, lb;
      assert_works(chi_grad_open(&whole, &s.net.net, &s.in, 1, NULL, 0, false, err));
      assert_works(chi_grad_run(whole, &st, &la, err));
      want.out = b;
      assert_works(chi_grad_open(&part, &s.net.net, &s.in, 1, &row, layer, false, err));
      assert_works(chi_grad_run(part, &st, &lb, err));
      if (la != lb)
        fail_msg("%s: loss %.9g from the start, %.9g from layer %d row %d", randnet_name(&s.net), la, lb, layer, row);
      assert_memory_equal(a, b, (size_t)w * sizeof *a);
      chi_grad_close(whole);
      chi_grad_close(part);
      free(a);
      free(b);
      free(v);
    }
    randnet_free(&s.net);
  }
}

/* Several inputs in one session - other last tokens, another length, another picture - have the gradients that each has
 * alone, bit for bit; rows are counted through the inputs. */
static void test_several(void **state) {
  (void)state;
  for (uint64_t seed = 300; seed < 300 + NETS; seed++) {
    enum { N = 4 };
    setup s;
    rnd r = {seed};
    if (make(&s, seed, seed % 2 == 0)) {
      int L = s.net.net.shape.stack[CHI_DECODER].layers, layer = rnd_range(&r, 0, L);
      int64_t w = chi_site_width(&s.net.net.shape, CHI_DECODER, CHI_SITE_MLP_OUT, 0);
      float *alone = calloc((size_t)w, sizeof *alone), *together = calloc((size_t)(w * N), sizeof *together);
      float *v = calloc((size_t)w, sizeof *v);
      for (int64_t k = 0; k < w; k++) v[k] = rnd_normal(&r);
      int32_t tokens[N][200], base = 0, row[N], rows[N], loss_rows[N], target[N];
      chi_input in[N];
      for (int i = 0; i < N; i++) {
        in[i] = s.in;
        in[i].n_rows = i == 3 || !s.vision ? s.n - i : s.n - i / 2;
        memcpy(tokens[i], s.tokens, sizeof tokens[i]);
        tokens[i][in[i].n_rows - 4] = rnd_range(&r, 0, RANDNET_VOCAB);
        in[i].tokens = tokens[i];
        if (i == 3 && s.vision && seed % 4 == 0) in[i].pixels = s.net.pixels[1];
        row[i] = in[i].n_rows - 3 - i % 2;
        rows[i] = base + row[i];
        loss_rows[i] = base + in[i].n_rows - 1;
        target[i] = rnd_range(&r, 0, RANDNET_VOCAB);
        base += in[i].n_rows;
      }
      chi_intervention iv = {.op = CHI_OP_ADD,
                             .stack = CHI_DECODER,
                             .site = CHI_SITE_MLP_OUT,
                             .layer_lo = layer,
                             .layer_hi = layer + 1,
                             .rows = rows,
                             .n_rows = N,
                             .value = v,
                             .value_rows = 1,
                             .scale = 1};
      chi_grad_site want = {
          .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer = layer, .rows = rows, .n_rows = N, .out = together};
      chi_nll nll = {.token = target};
      chi_grad_step st = {.iv = &iv,
                          .n_iv = 1,
                          .loss_rows = loss_rows,
                          .n_loss = N,
                          .loss = chi_loss_nll,
                          .ud = &nll,
                          .sites = &want,
                          .n_sites = 1};
      chi_grad *g = NULL;
      double all, sum = 0, loss;
      assert_works(chi_grad_open(&g, &s.net.net, in, N, row, layer, false, err));
      assert_works(chi_grad_run(g, &st, &all, err));
      assert_works(chi_grad_run(g, &st, &all, err)); /* a second step finds what the first one found */
      chi_grad_close(g);
      for (int i = 0; i < N; i++) {
        int32_t last = in[i].n_rows - 1;
        iv.rows = want.rows = &row[i];
        iv.n_rows = want.n_rows = st.n_loss = 1;
        want.out = alone;
        st.loss_rows = &last;
        nll.token = &target[i];
        assert_works(chi_grad_open(&g, &s.net.net, &in[i], 1, &row[i], layer, false, err));
        assert_works(chi_grad_run(g, &st, &loss, err));
        chi_grad_close(g);
        sum += loss;
        if (memcmp(alone, together + i * w, (size_t)w * sizeof *alone) != 0)
          fail_msg("%s: the gradient of input %d in a session of %d is not the one it has alone", randnet_name(&s.net),
                   i, N);
      }
      assert_true(fabs(all - sum) <= 1e-12 * fabs(sum));
      free(alone);
      free(together);
      free(v);
    }
    randnet_free(&s.net);
  }
}

/* Every activation's derivative by itself, away from ReLU's kink. */
static void test_activations(void **state) {
  (void)state;
  for (int act = 0; act <= CHI_ACT_RELU; act++) {
    for (float x = -6.05f; x < 6; x += 0.3f) {
      float one = 1, dg, y[2], h = 1e-2f, in[2] = {x + h, x - h};
      chi_act_back((chi_act)act, &x, NULL, &one, &dg, NULL, 1, 1);
      chi_act_rows((chi_act)act, in, 1, NULL, 0, y, 1, 2, 1);
      double d = ((double)y[0] - (double)y[1]) / ((double)in[0] - (double)in[1]);
      if (fabs(d - (double)dg) > 1e-4)
        fail_msg("activation %d at %g: derivative %g, finite difference %g", act, (double)x, (double)dg, d);
    }
  }
}

static void test_refusals(void **state) {
  (void)state;
  setup s;
  chi_grad *g = NULL;
  make(&s, 1, 0);
  assert_fails(chi_grad_open(&g, &s.net.net, &s.in, 1, &s.n, 0, false, err), CHI_ERR_ARG, "not within the input");
  assert_works(chi_grad_open(&g, &s.net.net, &s.in, 1, &(int32_t){2}, 0, false, err));
  int32_t row = 1;
  double loss;
  chi_intervention iv = {
      .op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer_hi = 1, .rows = &row, .n_rows = 1};
  chi_grad_step st = {.iv = &iv, .n_iv = 1, .loss_rows = s.loss_rows, .n_loss = 2, .loss = chi_loss_nll, .ud = &s.nll};
  assert_fails(chi_grad_run(g, &st, &loss, err), CHI_ERR_ARG, "before the part");
  iv.op = CHI_OP_COPY;
  assert_fails(chi_grad_run(g, &st, &loss, err), CHI_ERR_UNSUPPORTED, "not differentiated");
  st.n_iv = 0;
  st.loss_rows = &row;
  st.n_loss = 1;
  assert_fails(chi_grad_run(g, &st, &loss, err), CHI_ERR_ARG, "loss row 1");
  chi_grad_close(g);
  randnet_free(&s.net);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_sites),       cmocka_unit_test(test_weights),
                                     cmocka_unit_test(test_suffix),      cmocka_unit_test(test_several),
                                     cmocka_unit_test(test_activations), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

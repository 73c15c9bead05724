/* The Q-Former in both executors: random plans over random networks that have one, interventions on the tower, its
 * final norm, the queries, cross-attention and the projector included; every captured bit. And what its sites mean. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/randplan.h"
#include "support/support.h"

enum { PLANS = 1200, PLANS_PER_NET = 4 };

/* "one seed" from the command line: that plan alone, printed. */
static uint64_t only;

static void make_net(randnet *n, uint64_t seed) {
  randnet_make(n, &(randnet_opts){.seed = seed, .vision = 1, .compute = -1, .qformer = true});
}

static void compare(const randnet *n, uint64_t seed, randplan_cover *cover) {
  randplan p;
  results sweep, dense, cut;
  chi_run_stats st = {0};
  randplan_call seen[RANDPLAN_CALLS];
  randplan_make(&p, n, &(randplan_opts){.seed = seed, .no_calls = seed % 3 == 0}, cover);
  if (only) randplan_print(p.plan);
  assert_works(results_run(&sweep, &n->net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_SWEEP, .stats = &st}, err));
  memcpy(seen, p.call, sizeof seen);
  for (int i = 0; i < RANDPLAN_CALLS; i++) p.call[i].rows = p.call[i].sum = 0;
  assert_works(results_run(&dense, &n->net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_DENSE}, err));
  const char *differ = results_differ(&sweep, &dense);
  if (!differ && memcmp(seen, p.call, sizeof seen) != 0) differ = "what a callback saw";
  if (differ) {
    randplan_print(p.plan);
    fail_msg("plan %llu on %s:\n  sweep and dense differ at %s\n  alone: build/tests/test_qformer %llu",
             (unsigned long long)seed, randnet_name(n), differ, (unsigned long long)seed);
  }
  /* half the memory: the plan is cut into pieces, or one branch alone is too large */
  chi_err e = {0};
  if (results_run(&cut, &n->net, p.plan, &(chi_run_opts){.mem = st.peak_bytes / 2 + 1}, &e) == 0)
    assert_null(results_differ(&cut, &dense));
  else if (st.peak_bytes)
    assert_int_equal(e.code, CHI_ERR_MEMORY);
  results_free(&cut);
  results_free(&sweep);
  results_free(&dense);
  randplan_free(&p);
}

static void test_random_plans(void **state) {
  (void)state;
  randplan_cover c = {0};
  randnet n;
  for (uint64_t seed = only ? only : 1; seed <= (only ? only : PLANS); seed++) {
    if (only || seed % PLANS_PER_NET == 0 || seed == 1) make_net(&n, 7919u * (seed / PLANS_PER_NET) + 5);
    compare(&n, seed, &c);
    if (only || seed % PLANS_PER_NET == PLANS_PER_NET - 1 || seed == PLANS) randnet_free(&n);
  }
  if (only) return;
  print_message("%d plans, %lld branches, equal bits\n", (int)PLANS, (long long)c.branches);
  for (int site = 0; site < CHI_SITE_COUNT; site++) {
    if (!chi_site_get((chi_site)site)->per_layer && site != CHI_SITE_EMBED) continue;
    for (int op = 0; op < CHI_OP_COUNT; op++) {
      bool weights = chi_site_is_pattern((chi_site)site), edge = op >= CHI_OP_CUT && op <= CHI_OP_CUT_SCALE;
      if (op == CHI_OP_TOKEN || (weights ? !edge && op != CHI_OP_COPY : edge)) continue;
      if (!c.op[CHI_QFORMER][site][op])
        fail_msg("no plan had %s at qformer.%s", chi_op_name((chi_op)op), chi_site_get((chi_site)site)->name);
    }
    if (!c.capture[CHI_QFORMER][site]) fail_msg("no plan captured qformer.%s", chi_site_get((chi_site)site)->name);
  }
  assert_true(c.op[CHI_VISION][CHI_SITE_FINAL_NORM][CHI_OP_COPY] > 5 && c.capture[CHI_VISION][CHI_SITE_FINAL_NORM] > 5);
}

/* ---- what the sites mean --------------------------------------------------------------------------------------- */
typedef struct probe { /* one network, one picture, a root and children */
  randnet n;
  chi_plan *plan;
  int32_t tokens[24], rows[64];
  int root;
} probe;

static void probe_open(probe *p, uint64_t seed) {
  memset(p, 0, sizeof *p);
  do {
    if (p->n.embed) randnet_free(&p->n);
    make_net(&p->n, seed++);
  } while (p->n.net.qformer.spec.layers < 2 || p->n.net.qformer.spec.cross_every == 0 || !p->n.net.vision.post.w);
  for (int i = 0; i < 24; i++) p->tokens[i] = (7 * i + 3) % RANDNET_VOCAB;
  for (int i = 0; i < 64; i++) p->rows[i] = i;
  assert_works(chi_plan_new(&p->plan, err));
  chi_input in = {.tokens = p->tokens, .n_rows = 24, .pixels = p->n.pixels[0], .image_row = 2};
  assert_works(chi_plan_root(p->plan, &in, &p->root, err));
}

static void probe_close(probe *p) {
  chi_plan_free(p->plan);
  randnet_free(&p->n);
}

static int child(probe *p, chi_intervention iv, int64_t width) {
  int b;
  assert_works(chi_plan_child(p->plan, p->root, &b, err));
  if (iv.n_rows) assert_works(chi_plan_intervene(p->plan, b, &iv, width, err));
  return b;
}

static int capture(probe *p, int branch, chi_stack stack, chi_site site, int layer, int32_t n_rows) {
  int id;
  chi_capture c = {.branch = branch, .stack = stack, .site = site, .layer = layer, .rows = p->rows, .n_rows = n_rows};
  assert_works(chi_plan_capture(p->plan, &c, &id, err));
  return id;
}

static bool same_rows(const results *r, int a, int b, int32_t n) {
  for (int32_t i = 0; i < n; i++)
    if (memcmp(results_row(r, a, i), results_row(r, b, i), (size_t)results_width(r, a, i) * sizeof(float)))
      return false;
  return true;
}

/* A branch that touches neither tower nor Q-Former shares its parent's queries; one that does changes all of them. */
static void test_reach(void **state) {
  (void)state;
  probe p;
  results r;
  probe_open(&p, 11);
  const chi_net *net = &p.n.net;
  int32_t q = net->qformer.queries, v = net->vision.rows, last = net->qformer.spec.layers - 1, one = v - 1, far = 23;
  int text = child(
      &p,
      (chi_intervention){.op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .rows = &far, .n_rows = 1},
      0);
  int pixel = child(&p,
                    (chi_intervention){
                        .op = CHI_OP_ZERO, .stack = CHI_VISION, .site = CHI_SITE_FINAL_NORM, .rows = &one, .n_rows = 1},
                    0);
  int cut = child(&p,
                  (chi_intervention){.op = CHI_OP_CUT,
                                     .stack = CHI_QFORMER,
                                     .site = CHI_SITE_X_PATTERN,
                                     .layer_lo = 0,
                                     .layer_hi = net->qformer.spec.layers,
                                     .rows = p.rows,
                                     .n_rows = q,
                                     .key_lo = 0,
                                     .key_hi = v},
                  0);
  int two = child(&p,
                  (chi_intervention){
                      .op = CHI_OP_ZERO, .stack = CHI_VISION, .site = CHI_SITE_FINAL_NORM, .rows = p.rows, .n_rows = v},
                  0);
  int branches[] = {p.root, text, pixel, cut, two}, post[5], embed[5], norm[5], xout[5];
  for (int i = 0; i < 5; i++) {
    post[i] = capture(&p, branches[i], CHI_QFORMER, CHI_SITE_RESID_POST, last, q);
    embed[i] = capture(&p, branches[i], CHI_DECODER, CHI_SITE_IMAGE_EMBED, -1, q);
    norm[i] = capture(&p, branches[i], CHI_VISION, CHI_SITE_FINAL_NORM, -1, v);
    xout[i] = capture(&p, branches[i], CHI_QFORMER, CHI_SITE_X_HEAD_OUT, 0, q);
  }
  assert_works(results_run(&r, &p.n.net, p.plan, &(chi_run_opts){0}, err));
  assert_true(same_rows(&r, post[0], post[1], q) && same_rows(&r, embed[0], embed[1], q));
  for (int i = 2; i < 5; i++)
    for (int32_t k = 0; k < q; k++)
      assert_memory_not_equal(results_row(&r, embed[0], k), results_row(&r, embed[i], k),
                              sizeof(float) * (size_t)net->decoder.spec.d);
  assert_true(same_rows(&r, norm[0], norm[3], v) && !same_rows(&r, norm[0], norm[2], v));
  for (int32_t k = 0; k < q; k++) /* no edge left: the heads give 0 */
    for (int64_t c = 0; c < results_width(&r, xout[3], k); c++) assert_true(results_row(&r, xout[3], k)[c] == 0.0f);
  results_free(&r);
  probe_close(&p);
}

/* A later layer's queries set from the clean run undo everything before them. */
static void test_restore(void **state) {
  (void)state;
  probe p;
  results r;
  probe_open(&p, 23);
  const chi_net *net = &p.n.net;
  int32_t q = net->qformer.queries, v = net->vision.rows, last = net->qformer.spec.layers - 1;
  int bad = child(&p,
                  (chi_intervention){.op = CHI_OP_NOISE,
                                     .stack = CHI_VISION,
                                     .site = CHI_SITE_EMBED,
                                     .rows = p.rows,
                                     .n_rows = v,
                                     .scale = 1.0f},
                  0),
      good;
  assert_works(chi_plan_child(p.plan, bad, &good, err));
  chi_intervention iv = {.op = CHI_OP_COPY,
                         .stack = CHI_QFORMER,
                         .site = CHI_SITE_RESID_POST,
                         .layer_lo = last,
                         .layer_hi = last + 1,
                         .rows = p.rows,
                         .n_rows = q,
                         .source = p.root};
  assert_works(chi_plan_intervene(p.plan, good, &iv, 0, err));
  int32_t T = 24;
  int a = capture(&p, p.root, CHI_DECODER, CHI_SITE_LOGITS, -1, T),
      b = capture(&p, bad, CHI_DECODER, CHI_SITE_LOGITS, -1, T),
      c = capture(&p, good, CHI_DECODER, CHI_SITE_LOGITS, -1, T);
  assert_works(results_run(&r, &p.n.net, p.plan, &(chi_run_opts){0}, err));
  assert_true(same_rows(&r, a, c, T));
  assert_false(same_rows(&r, a, b, T));
  results_free(&r);
  probe_close(&p);
}

/* Weights over the tower's rows sum to one, and a layer without cross-attention refuses its sites. */
static void test_cross_sites(void **state) {
  (void)state;
  probe p;
  results r;
  uint64_t seed = 31;
  do {
    probe_open(&p, seed);
    if (p.n.net.qformer.spec.cross_every > 1) break;
    probe_close(&p);
    seed += 100;
  } while (true);
  const chi_block_spec *s = &p.n.net.qformer.spec;
  int32_t q = p.n.net.qformer.queries, v = p.n.net.vision.rows;
  int w = capture(&p, p.root, CHI_QFORMER, CHI_SITE_X_PATTERN, 0, q);
  assert_works(results_run(&r, &p.n.net, p.plan, &(chi_run_opts){0}, err));
  assert_int_equal(results_width(&r, w, 0), (int64_t)s->heads * v);
  for (int32_t k = 0; k < q; k++)
    for (int32_t h = 0; h < s->heads; h++) {
      double sum = 0;
      for (int32_t i = 0; i < v; i++) sum += (double)results_row(&r, w, k)[h * v + i];
      assert_true(sum > 0.9999 && sum < 1.0001);
    }
  results_free(&r);
  capture(&p, p.root, CHI_QFORMER, CHI_SITE_X_ATTN_OUT, 1, q);
  assert_fails(results_run(&r, &p.n.net, p.plan, &(chi_run_opts){0}, err), CHI_ERR_ARG,
               "layer 1 has no cross-attention");
  results_free(&r);
  probe_close(&p);
}

int main(int argc, char **argv) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  if (argc > 1) only = strtoull(argv[1], NULL, 10);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_plans), cmocka_unit_test(test_reach),
                                     cmocka_unit_test(test_restore), cmocka_unit_test(test_cross_sites)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What must not change a bit of the sweep (instruction set, threads, chunk, byte budget, other branches), what it must
 * not compute, and what it must refuse. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/randplan.h"
#include "support/support.h"

/* ---- the same bits ------------------------------------------------------------------------------------------- */
static void expect_hash(const randnet *n, const randplan *p, const chi_run_opts *o, uint64_t want, const char *what) {
  results r;
  assert_works(results_run(&r, &n->net, p->plan, o, err));
  if (results_hash(&r) != want) fail_msg("other bits with %s on %s", what, randnet_name(n));
  results_free(&r);
}

/* Cuts the plan finer and finer until one branch does not fit. Returns the largest number of pieces. */
static int64_t cut(const randnet *n, const randplan *p, uint64_t want) {
  chi_run_stats st = {0};
  chi_run_opts o = {.stats = &st};
  int64_t pieces = 1;
  expect_hash(n, p, &o, want, "no budget");
  assert_int_equal(st.pieces, 1);
  size_t whole = st.peak_bytes;
  o.mem = whole;
  expect_hash(n, p, &o, want, "a budget that just fits");
  assert_int_equal(st.pieces, 1);
  for (o.mem = whole - 1; o.mem > 0; o.mem = o.mem * 3 / 4) {
    results r;
    chi_err err = {0};
    int rc = results_run(&r, &n->net, p->plan, &o, &err);
    if (rc == 0) {
      if (results_hash(&r) != want) fail_msg("other bits in %lld pieces on %s", (long long)st.pieces, randnet_name(n));
      assert_true(st.pieces > 1 && st.peak_bytes <= o.mem);
      if (st.pieces > pieces) pieces = st.pieces;
    } else if (rc != CHI_ERR_MEMORY || !strstr(err.text, "needs")) {
      fail_msg("budget %zu: %s", o.mem, err.text);
    }
    results_free(&r);
    if (rc) break;
  }
  return pieces;
}

static void test_same_bits(void **state) {
  (void)state;
  int64_t most = 0;
  for (uint64_t seed = 1; seed <= 24; seed++) {
    randnet n;
    randplan p;
    results base;
    char what[64];
    randnet_make(
        &n, &(randnet_opts){.post_norm = true, .seed = 77 * seed, .vision = seed % 2 == 0, .compute = seed % 3 == 0});
    randplan_make(&p, &n, &(randplan_opts){.seed = 1000 + seed}, NULL);
    assert_works(results_run(&base, &n.net, p.plan, &(chi_run_opts){0}, err));
    uint64_t want = results_hash(&base);
    for (int isa = 0; isa < CHI_ISA_COUNT; isa++) {
      if (!chi_isa_available((chi_isa)isa)) continue;
      assert_works(chi_cpu_init(chi_isa_name((chi_isa)isa), err));
      snprintf(what, sizeof what, "instruction set %s", chi_isa_name((chi_isa)isa));
      expect_hash(&n, &p, &(chi_run_opts){0}, want, what);
    }
    assert_works(chi_cpu_init(NULL, err));
    for (size_t i = 0; i < 5; i++) {
      int threads = (const int[]){1, 2, 3, 5, 8}[i];
      chi_set_threads(threads);
      snprintf(what, sizeof what, "%d threads", threads);
      expect_hash(&n, &p, &(chi_run_opts){.chunk = i == 2 ? 7 : 0}, want, what);
    }
    chi_set_threads(0);
    for (size_t i = 0; i < 3; i++) {
      int32_t chunk = (const int32_t[]){1, 7, 1024}[i];
      snprintf(what, sizeof what, "chunks of %d rows", chunk);
      expect_hash(&n, &p, &(chi_run_opts){.chunk = chunk}, want, what);
    }
    int64_t pieces = cut(&n, &p, want);
    if (pieces > most) most = pieces;
    results_free(&base);
    randplan_free(&p);
    randnet_free(&n);
  }
  assert_true(most >= 4);
}

/* A budget below one branch names the bytes that it needs, and these are enough. */
static void test_budget_names_bytes(void **state) {
  (void)state;
  randnet n;
  int32_t tokens[40] = {1, 2, 3};
  randnet_make(&n, &(randnet_opts){.post_norm = true, .seed = 5, .vision = 0, .compute = CHI_COMPUTE_F32});
  chi_plan *p = plan_new();
  int b = plan_root(p, &(chi_input){.tokens = tokens, .n_rows = 40});
  plan_take_logits(p, b, 39);
  plan_take(p, b, CHI_DECODER, CHI_SITE_PATTERN, 1, 0, 40);
  plan_take(p, b, CHI_DECODER, CHI_SITE_MLP_ACT, 1, 3, 4);
  results r;
  chi_err first = {0};
  assert_int_equal(results_run(&r, &n.net, p, &(chi_run_opts){.mem = 1}, &first), CHI_ERR_MEMORY);
  results_free(&r);
  const char *words = strstr(first.text, "needs ");
  assert_non_null(words);
  size_t need = strtoull(words + 6, NULL, 10);
  assert_fails(results_run(&r, &n.net, p, &(chi_run_opts){.mem = need - 1}, err), CHI_ERR_MEMORY,
               "one branch of the plan needs");
  results_free(&r);
  chi_run_stats st = {0};
  assert_works(results_run(&r, &n.net, p, &(chi_run_opts){.mem = need, .stats = &st}, err));
  assert_int_equal(st.peak_bytes, need);
  results_free(&r);
  chi_plan_free(p);
  randnet_free(&n);
}

/* ---- awkward lengths ----------------------------------------------------------------------------------------- */
static void test_lengths(void **state) {
  (void)state;
  static const int32_t kRows[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 97, 128, 129, 160};
  for (size_t i = 0; i < 2 * sizeof kRows / sizeof *kRows; i++) {
    int32_t T = kRows[i / 2];
    randnet n;
    randplan p;
    results sweep, dense;
    randnet_make(&n,
                 &(randnet_opts){.post_norm = true, .seed = 31 * i + 7, .vision = i % 4 == 0, .compute = i % 2 != 0});
    randplan_make(&p, &n, &(randplan_opts){.seed = i, .min_rows = T, .max_rows = T, .max_branches = 6}, NULL);
    assert_works(results_run(&sweep, &n.net, p.plan, &(chi_run_opts){0}, err));
    assert_works(results_run(&dense, &n.net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_DENSE}, err));
    const char *differ = results_differ(&sweep, &dense);
    if (differ) fail_msg("%d rows on %s: %s", T, randnet_name(&n), differ);
    results_free(&sweep);
    results_free(&dense);
    randplan_free(&p);
    randnet_free(&n);
  }
}

/* ---- branches do not leak into each other -------------------------------------------------------------------- */
static bool has_nan(const results *r) {
  for (size_t i = 0; i < r->at[r->n]; i++)
    if (isnan(r->values[i])) return true;
  return false;
}

static void test_nan_stays(void **state) {
  (void)state;
  static const chi_site kSites[] = {CHI_SITE_EMBED,   CHI_SITE_RESID_PRE, CHI_SITE_Q,          CHI_SITE_K,
                                    CHI_SITE_V,       CHI_SITE_HEAD_OUT,  CHI_SITE_ATTN_OUT,   CHI_SITE_RESID_MID,
                                    CHI_SITE_MLP_ACT, CHI_SITE_MLP_OUT,   CHI_SITE_RESID_POST, CHI_SITE_PATTERN};
  for (uint64_t seed = 0; seed < 48; seed++) {
    randnet n;
    randplan p;
    results before, after;
    rnd r = {seed};
    randnet_make(&n,
                 &(randnet_opts){.post_norm = true, .seed = seed, .vision = seed % 3 == 0, .compute = seed % 2 == 0});
    randplan_make(&p, &n, &(randplan_opts){.seed = 500 + seed}, NULL);
    assert_works(results_run(&before, &n.net, p.plan, &(chi_run_opts){0}, err));
    assert_false(has_nan(&before));
    /* two branches full of NaN: a child of some branch, and another root over the same input */
    int up = rnd_range(&r, 0, (int32_t)p.plan->n_branches), child = plan_child(p.plan, up);
    chi_input in = p.plan->branch[chi_plan_root_of(p.plan, up)].input;
    int root = plan_root(p.plan, &in);
    chi_site site = kSites[seed % (sizeof kSites / sizeof *kSites)];
    int32_t row = rnd_range(&r, 0, in.n_rows), keys = row + 1;
    int64_t width = chi_site_width(&n.net.shape, CHI_DECODER, site, keys);
    float *nans = calloc((size_t)width, sizeof *nans);
    for (int64_t i = 0; i < width; i++) nans[i] = NAN;
    chi_intervention iv = {.op = CHI_OP_SET,
                           .stack = CHI_DECODER,
                           .site = site,
                           .layer_lo = 0,
                           .layer_hi = 1,
                           .value = nans,
                           .value_rows = 1};
    plan_act(p.plan, child, iv, row, row + 1, width);
    plan_act(p.plan, root, iv, row, row + 1, width);
    int id = plan_take(p.plan, child, CHI_DECODER, site, 0, row, row + 1);
    plan_take_logits(p.plan, root, in.n_rows - 1);
    assert_works(results_run(&after, &n.net, p.plan, &(chi_run_opts){0}, err));
    assert_true(isnan(results_row(&after, id, 0)[0]));
    if (memcmp(before.values, after.values, before.at[before.n] * sizeof(float)) != 0)
      fail_msg("seed %llu: NaN at %s of one branch changed another", (unsigned long long)seed,
               chi_site_get(site)->name);
    free(nans);
    results_free(&before);
    results_free(&after);
    randplan_free(&p);
    randnet_free(&n);
  }
}

/* ---- what is not computed ------------------------------------------------------------------------------------ */
/* A causal map, with the exact number of rows x layers that it takes. */
static void check_live_rows(uint64_t seed) {
  enum { T = 60, LO = 41, HI = 43 };
  randnet n;
  int32_t tokens[T] = {0}, other[2] = {7, 8};
  randnet_make(&n, &(randnet_opts){.post_norm = true, .seed = seed, .vision = 0, .compute = CHI_COMPUTE_F32});
  const int L = n.net.shape.stack[CHI_DECODER].layers;
  chi_plan *p = plan_new();
  int clean = plan_root(p, &(chi_input){.tokens = tokens, .n_rows = T}), corrupt = plan_child(p, clean);
  plan_act(p, corrupt,
           (chi_intervention){.op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .tokens = other}, LO,
           HI, 0);
  plan_take_logits(p, clean, T - 1);
  plan_take_logits(p, corrupt, T - 1);
  int64_t want = (int64_t)T * L + (int64_t)(T - LO) * L;
  for (int l = 0; l < L; l++)
    for (int32_t row = LO - 3; row < T; row++) {
      static const chi_site kCells[] = {CHI_SITE_ATTN_OUT, CHI_SITE_MLP_OUT, CHI_SITE_RESID_POST};
      for (size_t s = 0; s < 3; s++) {
        int b = plan_child(p, corrupt);
        plan_copy(p, b, clean, kCells[s], l, row, row + 1);
        plan_take_logits(p, b, T - 1);
        /* The row from its layer on; the last row from the next layer on; the rows between them too, but they are read
         * as keys only, which differ one layer later: not in the last two layers. Rows before the corrupted ones hold
         * the clean value already. */
        if (row < LO) continue;
        if (row == T - 1)
          want += L - l;
        else if (l < L - 1)
          want += (L - l) + (L - l - 1) + (l < L - 2 ? (int64_t)(T - 2 - row) * (L - l - 1) : 0);
      }
    }
  results r;
  chi_run_stats st = {0};
  assert_works(results_run(&r, &n.net, p, &(chi_run_opts){.stats = &st}, err));
  assert_int_equal(st.live_row_layers, want);
  assert_int_equal(st.dense_row_layers, (int64_t)p->n_branches * T * L);
  assert_true(st.live_row_layers * 5 < st.dense_row_layers);
  results_free(&r);
  chi_plan_free(p);
  randnet_free(&n);
}

static void test_live_rows(void **state) {
  (void)state;
  for (uint64_t seed = 10; seed < 16; seed++) check_live_rows(seed); /* 2, 3 and 4 layers, serial and parallel */
}

/* ---- callbacks ----------------------------------------------------------------------------------------------- */
static int count_rows(void *ud, int branch, chi_stack stack, chi_site site, int layer, int row, float *v,
                      int64_t width) {
  (void)branch, (void)stack, (void)site, (void)layer, (void)row, (void)v, (void)width;
  return --*(int *)ud < 0;
}
static int stop(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)ud, (void)capture, (void)i, (void)v, (void)width;
  return 1;
}

static void test_callbacks(void **state) {
  (void)state;
  for (int ex = CHI_EXEC_SWEEP; ex <= CHI_EXEC_DENSE; ex++) {
    randnet n;
    int32_t tokens[9] = {0};
    int left = 12;
    randnet_make(&n, &(randnet_opts){.post_norm = true, .seed = 3, .vision = 0, .compute = CHI_COMPUTE_F32});
    chi_plan *p = plan_new();
    int b = plan_child(p, plan_root(p, &(chi_input){.tokens = tokens, .n_rows = 9}));
    chi_intervention iv = {.op = CHI_OP_CALL,
                           .stack = CHI_DECODER,
                           .site = CHI_SITE_MLP_OUT,
                           .layer_lo = 0,
                           .layer_hi = 2,
                           .call = count_rows,
                           .ud = &left};
    plan_act(p, b, iv, 2, 8, 0);
    chi_run_opts o = {.executor = (chi_executor)ex};
    assert_works(chi_run_plan(&n.net, p, &o, err)); /* rows with a callback run though nobody captures anything */
    assert_int_equal(left, 0);
    left = 3;
    assert_fails(chi_run_plan(&n.net, p, &o, err), CHI_ERR_CANCELLED, "stopped by a callback at mlp_out layer 0");
    left = 100;
    plan_take_logits(p, b, 8);
    o.on_capture = stop;
    assert_fails(chi_run_plan(&n.net, p, &o, err), CHI_ERR_CANCELLED, "stopped");
    chi_plan_free(p);
    randnet_free(&n);
  }
}

/* ---- refused ------------------------------------------------------------------------------------------------- */
static int run(const chi_net *net, const chi_plan *p, chi_err *err) {
  return chi_run_plan(net, p, &(chi_run_opts){0}, err);
}

static void test_refused_pictures(void **state) {
  (void)state;
  randnet n;
  int32_t tokens[60] = {0};
  randnet_make(&n, &(randnet_opts){.post_norm = true, .seed = 21, .vision = 1, .compute = CHI_COMPUTE_F32});
  const int32_t rows = n.net.shape.n_image_rows;
  chi_input text = {.tokens = tokens, .n_rows = 60, .image_row = -1},
            picture = {.tokens = tokens, .n_rows = 60, .pixels = n.pixels[0], .image_row = 4};
  chi_intervention zero = {.op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_IMAGE_EMBED};
  chi_intervention copy = {.op = CHI_OP_COPY, .stack = CHI_DECODER, .site = CHI_SITE_IMAGE_EMBED};

  chi_plan *p = plan_new();
  plan_act(p, plan_root(p, &text), zero, 0, 1, 0);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "no picture");
  chi_plan_free(p);

  p = plan_new();
  plan_take(p, plan_root(p, &text), CHI_DECODER, CHI_SITE_IMAGE_EMBED, -1, 0, 1);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "no picture");
  chi_plan_free(p);

  p = plan_new();
  plan_take(p, plan_root(p, &text), CHI_VISION, CHI_SITE_RESID_POST, 0, 0, 1);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "no picture");
  chi_plan_free(p);

  p = plan_new();
  copy.source = plan_root(p, &text);
  plan_act(p, plan_root(p, &picture), copy, 0, 1, 0);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "source row 0 is outside");
  chi_plan_free(p);

  p = plan_new();
  copy.source = plan_root(p, &picture);
  int32_t past = rows;
  copy.source_rows = &past;
  plan_act(p, plan_root(p, &picture), copy, 0, 1, 0);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "is outside");
  chi_plan_free(p);

  p = plan_new();
  plan_act(p, plan_root(p, &picture), zero, rows - 1, rows + 1, 0);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "is outside");
  chi_plan_free(p);
  randnet_free(&n);
}

static void test_refused_caches(void **state) {
  (void)state;
  randnet n, other;
  int32_t tokens[60] = {0};
  chi_kv_cache *c = NULL, *small = NULL, *foreign = NULL;
  randnet_make(&n, &(randnet_opts){.post_norm = true, .seed = 4, .vision = 0, .compute = CHI_COMPUTE_F32});
  randnet_make(&other, &(randnet_opts){.post_norm = true, .seed = 9, .vision = 0, .compute = CHI_COMPUTE_F32});
  other.net.decoder.spec.layers = n.net.decoder.spec.layers + 1;
  assert_works(chi_kv_cache_new(&foreign, &other.net, 60, err));
  other.net.decoder.spec.layers = other.net.shape.stack[CHI_DECODER].layers;
  assert_works(chi_kv_cache_new(&c, &n.net, 60, err));
  assert_works(chi_kv_cache_new(&small, &n.net, 20, err));
  chi_input in = {.tokens = tokens, .n_rows = 30, .image_row = -1};
  struct {
    chi_kv_cache *cache;
    const char *words;
  } kRoots[] = {{foreign, "another model"}, {small, "has room for 20"}, {c, NULL}, {c, "holds 30"}};
  for (size_t i = 0; i < 4; i++) {
    chi_plan *p = plan_new();
    in.cache = kRoots[i].cache;
    plan_take_logits(p, plan_root(p, &in), 29);
    if (kRoots[i].words)
      assert_fails(run(&n.net, p, err), CHI_ERR_ARG, kRoots[i].words);
    else
      assert_works(run(&n.net, p, err));
    chi_plan_free(p);
  }
  assert_int_equal(chi_kv_cache_rows(c), 30);
  assert_int_equal(chi_kv_cache_rows(small), 0);
  in.n_rows = 40;
  in.cache = c;

  chi_plan *p = plan_new(); /* a cached row is captured */
  plan_take_logits(p, plan_root(p, &in), 29);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "held by the key/value cache");
  chi_plan_free(p);

  p = plan_new(); /* changed by a child */
  int b = plan_child(p, plan_root(p, &in));
  plan_act(p, b, (chi_intervention){.op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_EMBED}, 29, 31, 0);
  plan_take_logits(p, b, 39);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "changes row 29");
  chi_plan_free(p);

  p = plan_new(); /* copied */
  int root = plan_root(p, &in);
  b = plan_root(p, &(chi_input){.tokens = tokens, .n_rows = 40, .image_row = -1});
  plan_copy(p, b, root, CHI_SITE_MLP_OUT, 0, 20, 35);
  plan_take_logits(p, b, 39);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "copies row 20");
  chi_plan_free(p);

  p = plan_new(); /* shared */
  plan_root(p, &in);
  plan_root(p, &in);
  assert_fails(run(&n.net, p, err), CHI_ERR_ARG, "share one key/value cache");
  chi_plan_free(p);

  assert_int_equal(chi_kv_cache_rows(c), 30);
  chi_kv_cache_free(c);
  chi_kv_cache_free(small);
  chi_kv_cache_free(foreign);
  randnet_free(&n);
  randnet_free(&other);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits),        cmocka_unit_test(test_budget_names_bytes),
                                     cmocka_unit_test(test_lengths),          cmocka_unit_test(test_nan_stays),
                                     cmocka_unit_test(test_live_rows),        cmocka_unit_test(test_callbacks),
                                     cmocka_unit_test(test_refused_pictures), cmocka_unit_test(test_refused_caches)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

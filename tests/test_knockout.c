/* Attention knock-out: edges are those asked for, controls are as many others, and the identities that cutting must
 * hold, bit for bit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/knockout.h"
#include "support/support.h"

static const char kQuestion[] = "USER: <image>\nWhat is the capital of [this country]? ASSISTANT:",
                  kText[] = "What is the capital of [this country]?";

static void open_prompt(chi_model **m, chi_prompt **p, const char *dir, const char *picture, const char *prompt) {
  assert_works(chi_model_open(m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = picture, .question = prompt, .raw = true, .need_constraint = true};
  assert_works(chi_prompt_make(p, *m, &o, err));
}

typedef struct rows_of {
  float *v;
  int64_t width;
} rows_of;

static int keep(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  rows_of *r = ud;
  (void)i;
  if (!r->v) r->v = chi_calloc(4 * (size_t)width, sizeof *v, NULL);
  r->width = width;
  memcpy(r->v + capture * width, v, (size_t)width * sizeof *v);
  return 0;
}

static void ask(chi_plan *plan, int branch, int32_t row) {
  assert_works(chi_plan_capture(
      plan,
      &(chi_capture){
          .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &row, .n_rows = 1},
      NULL, err));
}

/* Logits of up to four branches' last rows. */
static rows_of run(const chi_model *m, chi_plan *plan, chi_executor ex) {
  rows_of r = {0};
  chi_run_opts o = {.executor = ex, .on_capture = keep, .ud = &r};
  assert_works(chi_run_plan(&m->net, plan, &o, err));
  return r;
}

static bool same(const rows_of *r, int a, int b) {
  return memcmp(r->v + a * r->width, r->v + b * r->width, (size_t)r->width * sizeof *r->v) == 0;
}

/* Every edge from the span to later rows, in all layers: the answer cannot depend on the span's words. */
static void span_cut(const char *dir, const char *picture, const char *question) {
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_plan *plan = NULL;
  chi_edges e = {0};
  chi_arena a = {0};
  int root, corrupted, cut[2];
  open_prompt(&m, &p, dir, picture, question);
  assert_works(chi_edges_parse(&e, &a, "constraint:all", p, err));
  int32_t rows[16], ids[16], n = p->span_hi - p->span_lo, last = p->n_rows - 1, L = m->net.decoder.spec.layers;
  for (int32_t i = 0; i < n; i++) {
    rows[i] = p->span_lo + i;
    ids[i] = (p->tokens[rows[i]] + 17 + i) % 100 + 5;
  }
  for (int ex = 0; ex < 2; ex++) {
    chi_input in = chi_prompt_input(p);
    assert_works(chi_plan_new(&plan, err));
    assert_works(chi_plan_root(plan, &in, &root, err));
    assert_works(chi_plan_child(plan, root, &corrupted, err));
    chi_intervention iv = {
        .op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .rows = rows, .n_rows = n, .tokens = ids};
    assert_works(chi_plan_intervene(plan, corrupted, &iv, 0, err));
    for (int k = 0; k < 2; k++) {
      assert_works(chi_plan_child(plan, k ? corrupted : root, &cut[k], err));
      assert_works(chi_edges_cut(plan, cut[k], &e, 0, L, err));
    }
    ask(plan, root, last);
    ask(plan, corrupted, last);
    ask(plan, cut[0], last);
    ask(plan, cut[1], last);
    rows_of r = run(m, plan, ex ? CHI_EXEC_DENSE : CHI_EXEC_SWEEP);
    assert_false(same(&r, 0, 1));
    assert_false(same(&r, 0, 2));
    if (!same(&r, 2, 3)) fail_msg("%s: clean and corrupted differ although the span is cut off", dir);
    chi_free(r.v);
    chi_plan_free(plan);
  }
  chi_arena_free(&a);
  chi_prompt_free(p);
  chi_model_free(m);
}

static void test_span_cut(void **state) {
  (void)state;
  span_cut("tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png", kQuestion);
  span_cut("tests/fixtures/tiny-phi", NULL, kText);
  span_cut("tests/fixtures/tiny-gpt2", NULL, kText);
  span_cut("tests/fixtures/tiny-mistral", NULL, kText); /* a sliding window */
}

/* All picture -> text edges: the answer cannot depend on the picture. */
static void test_picture_cut(void **state) {
  (void)state;
  static const char *const kPictures[] = {"tests/fixtures/tiny-gqa/picture.png", "tests/fixtures/tiny-gqa/donor.png"};
  chi_model *m = NULL;
  chi_prompt *p[2] = {NULL, NULL};
  chi_plan *plan = NULL;
  chi_edges e = {0};
  chi_arena a = {0};
  char text[64];
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-gqa", CHI_DTYPE_F32, err));
  for (int k = 0; k < 2; k++) {
    chi_prompt_opts o = {.image = kPictures[k], .question = kQuestion, .raw = true};
    assert_works(chi_prompt_make(&p[k], m, &o, err));
  }
  int32_t last = p[0]->n_rows - 1;
  snprintf(text, sizeof text, "image:%d-%d", p[0]->image_row + p[0]->n_image, last);
  assert_works(chi_edges_parse(&e, &a, text, p[0], err));
  assert_int_equal(e.n, (int64_t)p[0]->n_image * (last + 1 - p[0]->image_row - p[0]->n_image));
  assert_works(chi_plan_new(&plan, err));
  int root[2], cut[2];
  for (int k = 0; k < 2; k++) {
    chi_input in = chi_prompt_input(p[k]);
    assert_works(chi_plan_root(plan, &in, &root[k], err));
    assert_works(chi_plan_child(plan, root[k], &cut[k], err));
    assert_works(chi_edges_cut(plan, cut[k], &e, 0, m->net.decoder.spec.layers, err));
  }
  ask(plan, root[0], last);
  ask(plan, root[1], last);
  ask(plan, cut[0], last);
  ask(plan, cut[1], last);
  rows_of r = run(m, plan, CHI_EXEC_SWEEP);
  assert_false(same(&r, 0, 1));
  assert_true(same(&r, 2, 3));
  chi_free(r.v);
  chi_plan_free(plan);
  chi_arena_free(&a);
  for (int k = 0; k < 2; k++) chi_prompt_free(p[k]);
  chi_model_free(m);
}

static bool has_edge(const chi_edges *e, int32_t row, int32_t key) {
  for (int32_t i = 0; i < e->n_runs; i++)
    if (e->run[i].row == row && key >= e->run[i].lo && key < e->run[i].hi) return true;
  return false;
}

static int64_t count_edges(const chi_edges *e, int32_t T) {
  int64_t n = 0;
  for (int32_t i = 0; i < T; i++)
    for (int32_t j = 0; j <= i; j++) n += has_edge(e, i, j);
  return n;
}

static void test_edges(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_arena a = {0};
  chi_edges e = {0}, one = {0}, c[3] = {{0}};
  open_prompt(&m, &p, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png", kQuestion);
  int32_t T = p->n_rows, last = T - 1, span = p->span_hi - p->span_lo, behind = p->image_row + p->n_image;
  assert_works(chi_edges_parse(&one, &a, "image:last", p, err));
  assert_int_equal(one.n, p->n_image);
  assert_int_equal(one.n_runs, 1);
  assert_works(chi_edges_parse(&e, &a, "image:last+constraint:last+image:last", p, err));
  assert_int_equal(e.n, p->n_image + span);
  for (int32_t i = 0; i < T; i++)
    for (int32_t j = 0; j <= i; j++) {
      bool want = i == last && ((j >= p->image_row && j < behind) || (j >= p->span_lo && j < p->span_hi));
      assert_int_equal(has_edge(&e, i, j), want);
    }
  assert_works(chi_edges_parse(&one, &a, "all:all", p, err));
  assert_int_equal(one.n, (int64_t)T * (T - 1) / 2); /* no row loses itself */
  assert_fails(chi_edges_parse(&one, &a, "last:image", p, err), CHI_ERR_ARG, "nothing to cut");
  assert_fails(chi_edges_parse(&one, &a, "image", p, err), CHI_ERR_ARG, "FROM:TO");
  assert_fails(chi_edges_parse(&one, &a, ":last", p, err), CHI_ERR_ARG, "FROM:TO");
  assert_fails(chi_edges_parse(&one, &a, "image:nowhere", p, err), CHI_ERR_ARG, "nowhere");
  int64_t moved = 0, sum = 0;
  for (uint32_t s = 0; s < 40; s++) { /* as many, none of the set's, behind the picture; another stream, other edges */
    assert_works(chi_edges_random(&c[0], &a, &e, T, behind, 7, s, err));
    assert_works(chi_edges_random(&c[1], &a, &e, T, behind, 7, s, err));
    assert_works(chi_edges_random(&c[2], &a, &e, T, behind, 7, s + 100, err));
    assert_int_equal(c[0].n, e.n);
    assert_int_equal(count_edges(&c[0], T), e.n);
    assert_int_equal(c[0].n_runs, c[1].n_runs);
    assert_memory_equal(c[0].run, c[1].run, (size_t)c[0].n_runs * sizeof *c[0].run);
    for (int32_t i = 0; i < T; i++)
      for (int32_t j = 0; j <= i; j++) {
        bool x = has_edge(&c[0], i, j);
        if (x) assert_true(i >= behind && j < i && !has_edge(&e, i, j));
        moved += x != has_edge(&c[2], i, j);
        sum += x && i < (behind + T) / 2;
      }
  }
  assert_true(moved > 40);
  int64_t left = 0, low = 0;
  for (int32_t i = behind; i < T; i++)
    for (int32_t j = 0; j < i; j++)
      if (!has_edge(&e, i, j)) left++, low += i < (behind + T) / 2;
  double want = 40.0 * (double)e.n * (double)low / (double)left; /* all edges are as likely */
  assert_true(fabs((double)sum - want) < 5 * sqrt(want));
  assert_works(chi_edges_parse(&one, &a, "all:all", p, err));
  assert_works(chi_edges_random(&c[0], &a, &one, T, 0, 1, 1, err));
  assert_int_equal(c[0].n, 0); /* none are left */
  chi_arena_free(&a);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* The cells are what plans built by hand give, in windows of both parities; the dense executor agrees. */
static void test_run(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_knockout *k = NULL;
  open_prompt(&m, &p, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png", kQuestion);
  int32_t last = p->n_rows - 1, L = m->net.decoder.spec.layers;
  for (int W = 1; W <= 3; W++) {
    chi_knockout_opts o = CHI_KNOCKOUT_OPTS_INIT;
    o.window = W;
    o.controls = 2;
    o.check = 9;
    assert_works(chi_knockout_run(&k, m, p, &o, err));
    assert_int_equal(k->n_sets, 4);
    assert_string_equal(k->set[3].name, "image:constraint+image:last+constraint:last");
    assert_int_equal(k->set[3].n, k->set[0].n + k->set[1].n + k->set[2].n);
    assert_int_equal(k->checked, 9);
    assert_int_equal(k->identical, 9);
    for (int l = 0; l < L; l++) {
      assert_int_equal(k->lo[l], l - W / 2 < 0 ? 0 : l - W / 2);
      assert_int_equal(k->hi[l], l + (W + 1) / 2 > L ? L : l + (W + 1) / 2);
    }
    chi_plan *plan = NULL;
    int root, cut;
    chi_input in = chi_prompt_input(p);
    int32_t image[64], l = 2;
    for (int32_t i = 0; i < p->n_image; i++) image[i] = p->image_row + i;
    assert_works(chi_plan_new(&plan, err));
    assert_works(chi_plan_root(plan, &in, &root, err));
    assert_works(chi_plan_child(plan, root, &cut, err));
    for (int32_t i = 0; i < p->n_image; i++) { /* one key at a time */
      chi_intervention iv = {.op = CHI_OP_CUT,
                             .stack = CHI_DECODER,
                             .site = CHI_SITE_PATTERN,
                             .layer_lo = k->lo[l],
                             .layer_hi = k->hi[l],
                             .rows = &last,
                             .n_rows = 1,
                             .key_lo = image[i],
                             .key_hi = image[i] + 1};
      assert_works(chi_plan_intervene(plan, cut, &iv, 0, err));
    }
    ask(plan, root, last);
    ask(plan, cut, last);
    rows_of r = run(m, plan, CHI_EXEC_DENSE);
    assert_int_equal(k->target, chi_argmax(r.v, r.width));
    chi_metrics clean = chi_metrics_of(r.v, r.width, k->target, -1, NULL),
                want = chi_metrics_of(r.v + r.width, r.width, k->target, -1, NULL);
    assert_true(clean.p == k->clean.p && clean.rank == 1);
    const chi_metrics *got = chi_knockout_at(k, 1, 0, l);
    assert_true(got->p == want.p && got->logp == want.logp && got->rank == want.rank);
    assert_true(got->p != clean.p && got->kl > 0);
    chi_free(r.v);
    chi_plan_free(plan);
    double low, high, sum = 0;
    chi_metrics mean = chi_knockout_control(k, 1, l, &low, &high);
    for (int c = 1; c <= 2; c++) {
      double x = chi_knockout_at(k, 1, c, l)->p;
      assert_true(x >= low && x <= high);
      sum += x / 2;
    }
    assert_true(fabs(sum - mean.p) < 1e-15);
    chi_knockout_free(k);
  }
  chi_prompt_free(p);
  chi_model_free(m);
}

/* Controls have as many edges, behind the picture where there are enough. */
static void test_controls(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_knockout *k = NULL;
  open_prompt(&m, &p, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png", kQuestion);
  int32_t behind = p->image_row + p->n_image;
  char edges[64];
  snprintf(edges, sizeof edges, "image:last;image:%d-%d;image:image", behind, p->n_rows - 1);
  for (int all = 0; all < 2; all++) {
    chi_knockout_opts o = CHI_KNOCKOUT_OPTS_INIT;
    o.edges = edges;
    o.controls = 2;
    o.control_all = all;
    assert_works(chi_knockout_run(&k, m, p, &o, err));
    assert_int_equal(k->control_row[0], all ? 0 : behind);
    assert_int_equal(k->control_row[2], 0); /* the set itself is in front */
    for (int i = 0; i < 6; i++) {
      const chi_edges *e = &k->control[i];
      assert_int_equal(e->n, k->set[i / 2].n);
      for (int32_t r = 0; r < e->n_runs; r++) assert_true(e->run[r].row >= k->control_row[i / 2]);
    }
    chi_knockout_free(k);
  }
  chi_prompt_free(p);
  chi_model_free(m);
}

static void test_plan(void **state) { /* one branch a cell, each with its own name */
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_knockout *k = NULL;
  chi_plan *plan = NULL;
  const char *const *names = NULL;
  open_prompt(&m, &p, "tests/fixtures/tiny-llama", NULL, kText);
  chi_knockout_opts o = CHI_KNOCKOUT_OPTS_INIT;
  o.edges = "constraint:last;0-1:all";
  assert_works(chi_knockout_run(&k, m, p, &o, err));
  assert_int_equal(k->n_sets, 2);
  assert_works(chi_knockout_plan(&plan, &names, k, err));
  assert_int_equal(plan->n_branches, 1 + 2 * 4 * m->net.decoder.spec.layers);
  for (size_t i = 0; i < plan->n_branches; i++)
    for (size_t j = 0; j < i; j++) assert_string_not_equal(names[i], names[j]);
  chi_plan_free(plan);
  chi_knockout_free(k);
  o.controls = 0;
  assert_works(chi_knockout_run(&k, m, p, &o, err));
  chi_knockout_free(k);
  o.controls = 3;
  o.edges = "all:all";
  assert_fails(chi_knockout_run(&k, m, p, &o, err), CHI_ERR_ARG, "--controls 0");
  o.edges = ";";
  assert_fails(chi_knockout_run(&k, m, p, &o, err), CHI_ERR_ARG, "name nothing");
  o.edges = NULL;
  o.window = 0;
  assert_fails(chi_knockout_run(&k, m, p, &o, err), CHI_ERR_ARG, "--window");
  chi_prompt_free(p);
  chi_prompt_opts po = {.question = "What?", .raw = true};
  assert_works(chi_prompt_make(&p, m, &po, err));
  o.window = 1;
  assert_fails(chi_knockout_run(&k, m, p, &o, err), CHI_ERR_ARG, "FROM:TO");
  chi_prompt_free(p);
  chi_model_free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_span_cut), cmocka_unit_test(test_picture_cut),
                                     cmocka_unit_test(test_edges),    cmocka_unit_test(test_run),
                                     cmocka_unit_test(test_controls), cmocka_unit_test(test_plan)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

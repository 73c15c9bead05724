/* Explainers against tools/ref/explain_ref.py (PyTorch in float64, each map by its definition) and against identities;
 * scores of maps against brute force. Regenerate: python tools/ref/explain_ref.py */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/explain.h"
#include "eval/mapscore.h"
#include "report/explain_report.h"
#include "support/support.h"

static const char *const kTiny[] = {"tiny-gqa", "tiny-llava-qwen2"};

typedef struct fixture {
  chi_st *st;
  chi_model *m;
  chi_prompt *p;
  chi_explain *e;
} fixture;

static chi_explain *explain(const chi_model *m, const chi_prompt *p, int32_t steps) {
  chi_explain *e = NULL;
  chi_explain_opts o = CHI_EXPLAIN_OPTS_INIT;
  o.steps = steps;
  o.seed = 7;
  assert_works(chi_explain_open(&e, m, p, &o, err));
  return e;
}

static void open_fixture(fixture *f, const char *name) {
  char path[256], hex[65];
  snprintf(path, sizeof path, "tests/fixtures/explain/%s.safetensors", name);
  assert_works(chi_st_open(&f->st, path, err));
  snprintf(path, sizeof path, "tests/fixtures/%s/model.safetensors", name);
  assert_works(chi_sha256_file(hex, path, err));
  if (!chi_streq(hex, chi_st_meta(f->st, "model_sha256")))
    fail_msg("the fixture belongs to other weights of %s: run python tools/ref/explain_ref.py", name);
  snprintf(path, sizeof path, "tests/fixtures/%s", name);
  assert_works(chi_model_open(&f->m, path, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = chi_st_meta(f->st, "picture"), .question = chi_st_meta(f->st, "prompt"), .raw = true};
  assert_works(chi_prompt_make(&f->p, f->m, &o, err));
  f->e = explain(f->m, f->p, atoi(chi_st_meta(f->st, "steps")));
}

static void close_fixture(fixture *f) {
  chi_explain_close(f->e);
  chi_prompt_free(f->p);
  chi_model_free(f->m);
  chi_st_close(f->st);
}

static const chi_explainer *named(const char *name) {
  int n;
  const chi_explainer *x = chi_explainers(&n);
  for (int i = 0; i < n; i++)
    if (chi_streq(x[i].name, name)) return &x[i];
  fail_msg("no explainer %s", name);
  return NULL;
}

/* ---- maps ------------------------------------------------------------------------------------------------ */
static void test_reference(void **state) {
  (void)state;
  static const char *const kMaps[] = {"rollout",
                                      "relevancy",
                                      "integrated-gradients",
                                      "attribution-patching",
                                      "lens",
                                      "remove-zero",
                                      "remove-mean",
                                      "remove-blur",
                                      "cut-text",
                                      "cut-last",
                                      "occlude"};
  fixture f;
  for (int k = 0; k < 2; k++) {
    open_fixture(&f, kTiny[k]);
    assert_int_equal(f.e->opts.target, *(const int32_t *)chi_st_find(f.st, "target")->data);
    assert_true(fabs(f.e->remover->clean.logp - (double)*(const float *)chi_st_find(f.st, "clean")->data) < 1e-5);
    double *map = chi_calloc((size_t)f.e->n, sizeof *map, NULL);
    for (size_t i = 0; i < sizeof kMaps / sizeof *kMaps + 1; i++) {
      bool blur = i == sizeof kMaps / sizeof *kMaps; /* a removal that no explainer uses */
      const chi_tensor *t = chi_st_find(f.st, blur ? "pixel-blur" : kMaps[i]);
      assert_true(t && t->dim[0] == f.e->n);
      const float *want = t->data;
      double most = 0, worst = 0;
      if (blur) {
        assert_works(chi_remove_each(f.e->remover, CHI_REMOVE_PIXEL_BLUR, map, err));
        for (int32_t p = 0; p < f.e->n; p++) map[p] = f.e->remover->clean.logp - map[p];
      } else {
        assert_works(chi_explain_map(f.e, named(kMaps[i]), map, err));
      }
      for (int32_t p = 0; p < f.e->n; p++) {
        most = fmax(most, fabs((double)want[p]));
        worst = fmax(worst, fabs(map[p] - (double)want[p]));
      }
      if (!(most > 1e-3 && worst <= 1e-4 * fmax(most, 0.1)))
        fail_msg("%s, %s: differs by %g of %g", kTiny[k], blur ? "pixel-blur" : kMaps[i], worst, most);
    }
    chi_free(map);
    close_fixture(&f);
  }
}

/* Integrated gradients add up to log p(picture) - log p(mean vectors). A set of no patches is the clean run, bit
 * for bit, whatever the way of removing. */
static void test_identities(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  int32_t n = f.e->n;
  double *map = chi_calloc((size_t)n, sizeof *map, NULL), logp[2], sum = 0;
  uint8_t *set = chi_calloc(2 * (size_t)n, 1, NULL);
  memset(set + n, 1, (size_t)n);
  chi_explain *fine = explain(f.m, f.p, 400);
  assert_works(chi_explain_map(fine, named("integrated-gradients"), map, err));
  for (int32_t i = 0; i < n; i++) sum += map[i];
  assert_works(chi_remove(f.e->remover, CHI_REMOVE_MEAN, set, 2, logp, err));
  assert_true(logp[0] == f.e->remover->clean.logp);
  if (!(fabs(sum - (logp[0] - logp[1])) < 2e-3 * fabs(logp[0] - logp[1])))
    fail_msg("integrated gradients add up to %g, not %g", sum, logp[0] - logp[1]);
  for (int how = 0; how < CHI_REMOVALS; how++) {
    assert_works(chi_remove(f.e->remover, (chi_removal)how, set, 2, logp, err));
    assert_true(logp[0] == f.e->remover->clean.logp && logp[1] != logp[0]);
  }
  chi_explain_close(fine);
  chi_free(map);
  chi_free(set);
  close_fixture(&f);
}

/* With every edge from the picture to the text cut, another picture gives the same bits; the baselines look at
 * nothing. */
static void test_cut_off(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_prompt *other = NULL;
  chi_prompt_opts o = {
      .image = "tests/fixtures/tiny-gqa/donor.png", .question = chi_st_meta(f.st, "prompt"), .raw = true};
  assert_works(chi_prompt_make(&other, f.m, &o, err));
  chi_explain_opts eo = {.target = f.e->opts.target, .seed = 7};
  chi_explain *e = NULL;
  assert_works(chi_explain_open(&e, f.m, other, &eo, err));
  uint8_t set[16];
  double a, b, x[16], y[16];
  memset(set, 1, sizeof set);
  assert_works(chi_remove(f.e->remover, CHI_REMOVE_CUT_TEXT, set, 1, &a, err));
  assert_works(chi_remove(e->remover, CHI_REMOVE_CUT_TEXT, set, 1, &b, err));
  assert_true(a == b && e->remover->clean.logp != f.e->remover->clean.logp);
  assert_works(chi_remove(f.e->remover, CHI_REMOVE_CUT_LAST, set, 1, &a, err));
  assert_works(chi_remove(e->remover, CHI_REMOVE_CUT_LAST, set, 1, &b, err));
  assert_true(a != b); /* the words in between have read it */
  static const char *const kBlind[] = {"random", "centre"};
  for (int k = 0; k < 2; k++) {
    assert_true(named(kBlind[k])->baseline);
    assert_works(chi_explain_map(f.e, named(kBlind[k]), x, err));
    assert_works(chi_explain_map(e, named(kBlind[k]), y, err));
    assert_memory_equal(x, y, sizeof x);
  }
  chi_explain_close(e);
  chi_prompt_free(other);
  close_fixture(&f);
}

static void test_threads_and_budget(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  int n;
  const chi_explainer *x = chi_explainers(&n);
  double *a = chi_calloc((size_t)f.e->n, sizeof *a, NULL), *b = chi_calloc((size_t)f.e->n, sizeof *b, NULL);
  chi_explain *e = explain(f.m, f.p, 8);
  for (int i = 0; i < n; i++) {
    chi_set_threads(1);
    e->remover->mem = 0;
    assert_works(chi_explain_map(f.e, &x[i], a, err));
    chi_set_threads(3);
    e->remover->mem = (size_t)1 << 20; /* many pieces */
    assert_works(chi_explain_map(e, &x[i], b, err));
    for (int32_t p = 0; p < f.e->n; p++) assert_true(isfinite(a[p]));
    if (memcmp(a, b, (size_t)f.e->n * sizeof *a) != 0) fail_msg("%s: other bits with 3 threads", x[i].name);
  }
  chi_set_threads(0);
  chi_explain_close(e);
  chi_free(a);
  chi_free(b);
  close_fixture(&f);
}

/* Several questions about one picture in one plan: every number is that of the question alone, bit for bit; what nobody
 * asked for is NaN; a question about another picture is done beside them. */
static void test_together(void **state) {
  (void)state;
  static const char *const kAsks[] = {"What is this?", "What colour is the left one?", "Where?", "What is this?"};
  enum { kQ = 4, kSets = 5 };
  for (int t = 0; t < 2; t++) {
    fixture f;
    open_fixture(&f, kTiny[t]);
    chi_prompt *p[kQ] = {NULL};
    chi_remover *r[kQ] = {NULL};
    const char *own = chi_st_meta(f.st, "picture");
    for (int k = 0; k < kQ; k++) {
      chi_prompt_opts o = {.image = k == 3 ? "tests/fixtures/tiny-gqa/donor.png" : own, .question = kAsks[k]};
      assert_works(chi_prompt_make(&p[k], f.m, &o, err));
      assert_works(chi_remover_open(&r[k], f.m, p[k], 5 + k, 7, 0, err));
    }
    assert_true(p[1]->n_rows > p[0]->n_rows && p[1]->n_rows > p[2]->n_rows);
    int32_t n = r[0]->n;
    uint8_t *set = chi_calloc(kSets * (size_t)n, 1, NULL), asks[kSets * kQ];
    for (int32_t i = 0; i < kSets * n; i++)
      set[i] = i / n == 4 || (i / n > 0 && chi_rng_u32(1, 2, (uint32_t)t, (uint32_t)i) % 3 == 0);
    for (int i = 0; i < kSets * kQ; i++) asks[i] = i / kQ != 2 && (i / kQ == 1 || i % 3 != 1);
    for (int how = 0; how < CHI_REMOVALS; how++)
      for (int m = 3; m <= kQ; m++) { /* of one picture, and with the other one */
        double logp[kSets * kQ], want, *each = chi_calloc((size_t)n, sizeof *each, NULL);
        double *alone = chi_calloc((size_t)n, sizeof *alone, NULL);
        uint8_t some[kSets * kQ];
        for (int i = 0; i < kSets * m; i++) some[i] = asks[i / m * kQ + i % m];
        assert_works(chi_remove_of(r, m, (chi_removal)how, set, some, kSets, logp, err));
        for (int i = 0; i < kSets * m; i++) {
          assert_works(chi_remove(r[i % m], (chi_removal)how, set + i / m * n, 1, &want, err));
          if (some[i] ? logp[i] != want : !isnan(logp[i]))
            fail_msg("%s, %s, set %d of question %d: %g, alone %g", kTiny[t], chi_removal_name[how], i / m, i % m,
                     logp[i], want);
        }
        for (int k = 0; k < m; k++) r[k]->each[how] = NULL;
        assert_works(chi_remove_each(r[m - 1], (chi_removal)how, alone, err));
        assert_works(chi_remove_each_of(r, m, (chi_removal)how, err));
        assert_works(chi_remove_each(r[m - 1], (chi_removal)how, each, err));
        assert_memory_equal(each, alone, (size_t)n * sizeof *each);
        chi_free(each);
        chi_free(alone);
      }
    for (int k = 0; k < kQ; k++) {
      chi_remover_close(r[k]);
      chi_prompt_free(p[k]);
    }
    chi_free(set);
    close_fixture(&f);
  }
}

/* A Q-Former's query rows are no patches: what needs places in the picture is refused, the rest works. */
static void test_query_rows(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  int n, refused = 0;
  const chi_explainer *x = chi_explainers(&n);
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-blip2", CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = "tests/fixtures/tiny-blip2/picture.png", .question = "What is this?"};
  assert_works(chi_prompt_make(&p, m, &o, err));
  chi_explain *e = explain(m, p, 4);
  double *map = chi_calloc((size_t)e->n, sizeof *map, NULL);
  assert_int_equal(e->n, p->n_image);
  for (int i = 0; i < n; i++) {
    chi_err err = {0};
    int rc = chi_explain_map(e, &x[i], map, &err);
    if (rc && (rc != CHI_ERR_UNSUPPORTED || !strstr(err.text, "no patches on a grid")))
      fail_msg("%s: %s", x[i].name, err.text);
    refused += rc != 0;
  }
  assert_int_equal(refused, 3); /* remove-blur, occlude, centre */
  chi_free(map);
  chi_explain_close(e);
  chi_prompt_free(p);
  chi_model_free(m);
}

static void test_refusals(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_prompt *text = NULL;
  chi_explain *e = NULL;
  const chi_explainer **list = NULL;
  int n = 0;
  chi_removal how;
  assert_works(chi_prompt_make(&text, f.m, &(chi_prompt_opts){.question = "What is it?"}, err));
  assert_fails(chi_explain_open(&e, f.m, text, &(chi_explain_opts){.target = -1}, err), CHI_ERR_ARG,
               "the prompt has no picture");
  assert_fails(chi_explain_open(&e, f.m, f.p, &(chi_explain_opts){.target = 400}, err), CHI_ERR_ARG,
               "outside the vocabulary of 400");
  assert_fails(chi_explainers_parse(&list, &n, "rollout,foo", err), CHI_ERR_ARG, "there is no explainer 'foo'");
  assert_fails(chi_explainers_parse(&list, &n, "rollout,lens,rollout", err), CHI_ERR_ARG, "named twice");
  assert_fails(chi_explainers_parse(&list, &n, "", err), CHI_ERR_ARG, "there is no explainer ''");
  assert_fails(chi_removal_parse(&how, "grey", err), CHI_ERR_ARG, "there is no way of removing 'grey'");
  assert_works(chi_removal_parse(&how, "cut-text", err));
  assert_int_equal(how, CHI_REMOVE_CUT_TEXT);
  assert_works(chi_explainers_parse(&list, &n, "lens,rollout", err));
  assert_true(n == 2 && chi_streq(list[0]->name, "lens"));
  chi_free(list);
  double map[16];
  f.e->opts.mem = 1000;
  assert_fails(chi_explain_map(f.e, named("rollout"), map, err), CHI_ERR_MEMORY, "raise --mem");
  chi_prompt_free(text);
  close_fixture(&f);
}

/* ---- scores of maps --------------------------------------------------------------------------------------- */
/* Expectation over all orders of ties, by going through every permutation of 6 patches. */
static void brute(const double *map, const uint8_t *in, double *pointing, double *precision) {
  int perm[6], k = 0, count = 0;
  double hit = 0, prec = 0;
  for (int i = 0; i < 6; i++) k += in[i];
  for (int code = 0; code < 46656; code++) {
    bool used[6] = {false}, good = true;
    for (int i = 0, c = code; i < 6; i++, c /= 6) {
      perm[i] = c % 6;
      good = good && !used[perm[i]];
      used[perm[i]] = true;
      if (i && good) good = map[perm[i - 1]] >= map[perm[i]];
    }
    if (!good) continue;
    count++;
    hit += in[perm[0]];
    for (int i = 0; i < k; i++) prec += (double)in[perm[i]] / k;
  }
  *pointing = hit / count;
  *precision = prec / count;
}

static void test_scores(void **state) {
  (void)state;
  for (uint32_t t = 0; t < 40; t++) {
    double map[6], a, b;
    uint8_t in[6];
    int k = 0;
    for (uint32_t i = 0; i < 6; i++) {
      map[i] = chi_rng_u32(1, 0, t, i) % (1 + t % 5);
      k += in[i] = chi_rng_u32(1, 1, t, i) % 2;
    }
    if (k == 0 || k == 6) {
      assert_true(isnan(chi_map_auprc(map, in, 6)));
      continue;
    }
    brute(map, in, &a, &b);
    assert_true(fabs(chi_map_pointing(map, in, 6) - a) < 1e-12);
    assert_true(fabs(chi_map_precision(map, in, 6) - b) < 1e-12);
  }
  const uint8_t in[5] = {0, 1, 1, 0, 0};
  const double good[5] = {0, 3, 2, 1, -1}, flat[5] = {1, 1, 1, 1, 1}, mixed[5] = {5, 4, 3, 2, 1};
  assert_true(chi_map_auprc(good, in, 5) == 1 && chi_map_pointing(good, in, 5) == 1);
  assert_true(fabs(chi_map_auprc(flat, in, 5) - 0.4) < 1e-12 && fabs(chi_map_precision(flat, in, 5) - 0.4) < 1e-12);
  assert_true(fabs(chi_map_auprc(mixed, in, 5) - 0.5 * (1.0 / 2 + 2.0 / 3)) < 1e-12); /* by hand */
  assert_true(chi_map_spearman(good, good, 5) > 1 - 1e-12 && isnan(chi_map_spearman(good, flat, 5)));
  const double x[5] = {1, 2, 2, 4, 9}, y[5] = {3, 1, 2, 2, 0}; /* mean ranks by hand: -29/38 */
  assert_true(fabs(chi_map_spearman(x, y, 5) + 29.0 / 38) < 1e-12);
  const double cx[3] = {0, 0.5, 1}, cy[3] = {1, 0.5, 0.5};
  assert_true(fabs(chi_curve_area(cx, cy, 3) - 0.625) < 1e-12);
  int32_t order[5];
  assert_works(chi_map_order(order, good, 5, 3, err));
  assert_true(order[0] == 1 && order[1] == 2 && order[2] == 3 && order[3] == 0 && order[4] == 4);
}

/* A mask on a picture that is twice as wide as the crop: what the model never saw counts as unseen. */
static void test_mask(void **state) {
  (void)state;
  chi_patches g = {.first = 0, .n = 4, .grid_h = 2, .grid_w = 2};
  chi_view v = {.orig_w = 40, .orig_h = 20, .resized_w = 40, .resized_h = 20, .crop_left = 10, .w = 20, .h = 20};
  chi_image mask = {.w = 40, .h = 20, .rgb = chi_calloc(3 * 40 * 20, 1, NULL)};
  double cover[4], unseen;
  for (int y = 0; y < 10; y++)
    for (int x = 0; x < 15; x++) mask.rgb[3 * (y * 40 + x)] = 255; /* 10 columns left of the crop, 5 in it */
  assert_works(chi_mask_cover(cover, &unseen, &mask, &v, &g, err));
  assert_true(fabs(cover[0] - 0.5) < 1e-12 && cover[1] == 0 && cover[2] == 0 && cover[3] == 0);
  assert_true(fabs(unseen - 10.0 / 15) < 1e-12);
  mask.w = 39;
  assert_fails(chi_mask_cover(cover, &unseen, &mask, &v, &g, err), CHI_ERR_ARG, "the mask is 39 x 20 pixels");
  chi_image_free(&mask);
}

/* ---- files ------------------------------------------------------------------------------------------------- */
static void test_files(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  const char *dir = tmp_path("explain");
  char path[4096];
  chi_str files = {0}, text = {0};
  json_t *j = NULL;
  double maps[4][16] = {{0}};
  chi_explained x[4] = {{.x = named("attribution-patching"), .map = maps[0]},
                        {.x = named("remove-mean"), .map = maps[1]},
                        {.x = named("lens"), .map = maps[2]},
                        {.x = named("occlude"), .why = "not here"}};
  for (int i = 0; i < 2; i++) assert_works(chi_explain_map(f.e, x[i].x, maps[i], err));
  for (int i = 0; i < 16; i++) maps[2][i] = 0.25; /* flat */
  chi_provenance prov = {.command = "test", .image_path = chi_st_meta(f.st, "picture")};
  assert_works(chi_explain_write(f.e, x, 4, 0, &prov, dir, &files, err));
  assert_int_equal(count_files(dir), 4);
  snprintf(path, sizeof path, "%s/explain.json", dir);
  assert_works(chi_json_load(&j, path, 1 << 24, err));
  json_t *list = json_object_get(j, "explainers"), *a = json_array_get(list, 0);
  assert_int_equal(json_array_size(list), 4);
  assert_true(json_is_true(json_object_get(json_array_get(list, 2), "flat")));
  assert_string_equal(json_string_value(json_object_get(json_array_get(list, 3), "unsupported")), "not here");
  double r = json_number_value(json_object_get(json_object_get(a, "approximation"), "relative_error")), d2 = 0, x2 = 0;
  for (int i = 0; i < 16; i++) {
    d2 += (maps[0][i] - maps[1][i]) * (maps[0][i] - maps[1][i]);
    x2 += maps[1][i] * maps[1][i];
  }
  assert_true(fabs(r - sqrt(d2 / x2)) < 1e-7);
  assert_true(fabs(json_number_value(json_array_get(json_object_get(a, "map"), 5)) - maps[0][5]) < 1e-7);
  json_decref(j);
  assert_works(chi_explain_summary(f.e, x, 4, 120, &text, err));
  assert_non_null(strstr(text.s, "flat"));
  assert_non_null(strstr(text.s, "occlude: not here"));
  chi_str_free(&text);
  chi_str_free(&files);
  close_fixture(&f);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_identities),
                                     cmocka_unit_test(test_cut_off),   cmocka_unit_test(test_threads_and_budget),
                                     cmocka_unit_test(test_together),  cmocka_unit_test(test_query_rows),
                                     cmocka_unit_test(test_refusals),  cmocka_unit_test(test_scores),
                                     cmocka_unit_test(test_mask),      cmocka_unit_test(test_files)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

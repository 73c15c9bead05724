/* Failure prediction: planted scores are found, nothing is found where nothing is, a store gives the same numbers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "study/predict.h"
#include "support/support.h"

enum { N = 240, L = 6, H = 4, PER = 6 };
static char name[N][16];
static const char *entity[N];
static bool right[N];
static double confidence[N], margin[N], entropy[N], visual[N * L], words[N * L], head[N * L * H];

/* Right where a hidden number is positive; the confidence sees it in noise, head 2 of layer 3 clearly, layers 3 and 4
 * of the words' contributions somewhat, everything else not at all. */
static chi_predict_in make(void) {
  for (uint32_t i = 0; i < N; i++) {
    snprintf(name[i], sizeof name[i], "e%u", i / PER);
    entity[i] = name[i];
    double hidden = (double)chi_rng_normal(1, 0, i, 0);
    right[i] = hidden > 0;
    confidence[i] = hidden + 1.5 * (double)chi_rng_normal(1, 1, i, 0);
    margin[i] = 2 * confidence[i];
    entropy[i] = -confidence[i];
    for (uint32_t l = 0; l < L; l++) {
      visual[i * L + l] = (double)chi_rng_normal(1, 2, i, l);
      words[i * L + l] = (double)chi_rng_normal(1, 3, i, l) + (l == 3 || l == 4 ? hidden : 0);
      for (uint32_t h = 0; h < H; h++)
        head[(i * L + l) * H + h] = (double)chi_rng_normal(1, 4, i, l * H + h) + (l == 3 && h == 2 ? 4 * hidden : 0);
    }
  }
  return (chi_predict_in){.n = N,
                          .layers = L,
                          .heads = H,
                          .entity = entity,
                          .right = right,
                          .confidence = confidence,
                          .margin = margin,
                          .entropy = entropy,
                          .visual = visual,
                          .words = words,
                          .head = head};
}

static const chi_predict_row *row(const chi_predict *p, const char *start) {
  for (int i = 0; i < p->n_rows; i++)
    if (strncmp(p->row[i].name, start, strlen(start)) == 0) return &p->row[i];
  fail_msg("no row '%s'", start);
  return NULL;
}

static void test_planted(void **state) {
  (void)state;
  chi_predict_in in = make();
  chi_predict p;
  assert_works(chi_predict_run(&p, &in, &(chi_boot_opts){.draws = 500}, err));
  assert_int_equal(p.n_rows, CHI_PREDICT_ROWS);
  assert_int_equal(p.clusters, N / PER);
  assert_int_equal(p.middle, 3);
  double c = row(&p, "confidence")->auroc.value;
  assert_true(c > 0.6 && c < 0.85);
  assert_true(fabs(row(&p, "margin")->auroc.value - c) < 1e-12);
  assert_true(fabs(row(&p, "entropy")->auroc.value - c) < 1e-12);
  assert_true(fabs(row(&p, "margin")->gain.value) < 1e-12);
  assert_true(isnan(row(&p, "confidence")->gain.value));
  const chi_predict_row *probe = row(&p, "probe over heads, L1");
  assert_true(probe->auroc.value > 0.95 && probe->gain.lo > 0);
  assert_true(probe->risk_top < 0.05 && probe->risk_bottom > 0.95);
  assert_true(p.probe_used >= 1 && p.probe_used < 12);
  assert_true(row(&p, "probe over heads, L1, as SAT-Probe")->auroc.value > 0.95);
  assert_true(row(&p, "probe over heads and confidence")->auroc.value > 0.95);
  assert_non_null(strstr(row(&p, "words to last token, layers")->name, "layers 3 and 4"));
  assert_true(row(&p, "words to last token, layers")->auroc.value > row(&p, "words to last token, all")->auroc.value);
  assert_true(row(&p, "picture to words")->auroc.lo < 0.5 && row(&p, "picture to words")->auroc.hi > 0.5);
  for (int l = 0; l < L; l++) {
    assert_true((p.words[l].lo > 0.5) == (l == 3 || l == 4));
    assert_true(p.visual[l].lo < 0.53 && p.visual[l].hi > 0.47);
  }
  chi_predict_free(&p);
}

static void test_refused(void **state) {
  (void)state;
  chi_predict_in in = make();
  chi_predict p;
  in.n = 4 * PER;
  assert_fails(chi_predict_run(&p, &in, NULL, err), CHI_ERR_ARG, "there are 4");
  in.n = N;
  for (int i = 0; i < N; i++) right[i] = true;
  assert_fails(chi_predict_run(&p, &in, NULL, err), CHI_ERR_ARG, "240 of 240 are right");
}

/* The same items through a store, in which some have no answer, failed, or belong elsewhere. */
static void test_store(void **state) {
  (void)state;
  chi_predict_in in = make();
  chi_predict p, q;
  chi_store *s = NULL;
  const char *dir = tmp_path("run");
  chi_study_predict_counts n;
  assert_works(chi_store_open(&s, dir, NULL, 0, err));
  for (int i = 0; i < N + 3; i++) {
    char info[400], id[16];
    int k = i < N ? i : 0;
    float w[L], v[L], h[L * H];
    snprintf(id, sizeof id, "i%d", i);
    snprintf(info, sizeof info,
             "{\"entity\":\"%.15s\",\"form\":\"%s\",\"ask\":{\"item\":{\"right\":%s,\"p\":%.17g,\"margin\":%.17g,"
             "\"entropy\":%.17g}}}",
             name[k], i == N ? "other" : "fact",
             i == N + 1 ? "null"
             : right[k] ? "true"
                        : "false",
             confidence[k], margin[k], entropy[k]);
    for (int l = 0; l < L; l++) {
      w[l] = (float)(words[k * L + l] = (double)(float)words[k * L + l]);
      v[l] = (float)(visual[k * L + l] = (double)(float)visual[k * L + l]);
    }
    for (int l = 0; l < L * H; l++) h[l] = (float)(head[k * L * H + l] = (double)(float)head[k * L * H + l]);
    chi_store_result r[] = {{"contributions/item/words>last/mean", 1, {L}, w},
                            {"contributions/item/image>words/mean", 1, {L}, v},
                            {"contributions/item/words>last/head", 2, {L, H}, h}};
    chi_store_item it = {.seq = i, .id = id, .unit = "u", .split = "test", .group = "g", .reason = "", .info = info};
    if (i == N + 2) it.status = CHI_STORE_FAILED;
    assert_works(chi_store_put(s, &it, r, i == 5 ? 1 : 3, err)); /* item 5: no heads, no picture */
  }
  chi_study_predict_opts o = {.field = "form", .equals = "fact", .boot = {.draws = 300, .seed = 2}};
  assert_works(chi_study_predict_run(&p, &n, s, &o, err));
  assert_int_equal(n.items, N + 3);
  assert_int_equal(n.filtered, 1);
  assert_int_equal(n.no_answer, 1);
  assert_int_equal(n.not_ok, 1);
  for (int l = 0; l < L; l++) visual[5 * L + l] = NAN;
  for (int l = 0; l < L * H; l++) head[5 * L * H + l] = NAN;
  assert_works(chi_predict_run(&q, &in, &o.boot, err));
  assert_int_equal(p.n_rows, q.n_rows);
  assert_memory_equal(p.row, q.row, sizeof p.row);
  assert_memory_equal(p.words, q.words, L * sizeof *p.words);
  assert_int_equal(row(&p, "picture")->auroc.n, N - 1);
  assert_int_equal(row(&p, "confidence")->auroc.n, N);
  chi_predict_free(&p);
  chi_predict_free(&q);
  o.equals = "nothing";
  assert_fails(chi_study_predict_run(&p, &n, s, &o, err), CHI_ERR_ARG, "0 of 0 are right");
  chi_store_close(s);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_planted), cmocka_unit_test(test_refused),
                                     cmocka_unit_test(test_store)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Claims from a store whose numbers are planted: the statistics of the protocol give what was put in, and its three
 * words follow. Planted facts: the layer that each method names. Probe states: projections keep lengths. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_planted.h"
#include "report/study_report.h"
#include "study/job.h"
#include "study/study.h"
#include "support/support.h"

enum { L = 12, ENTITIES = 20, FACTS = 4, D = 24 };

static chi_arena arena;
static chi_store_result result[32];
static size_t n_results;

static void add(const char *kind, int ndim, int64_t d0, int64_t d1, const float *v) {
  size_t size = (size_t)d0 * (size_t)(ndim > 1 ? d1 : 1);
  float *copy = chi_arena_array(&arena, size, sizeof *copy, NULL);
  memcpy(copy, v, size * sizeof *v);
  result[n_results++] =
      (chi_store_result){.kind = chi_arena_strdup(&arena, kind, NULL), .ndim = ndim, .dim = {d0, d1}, .v = copy};
}

static float noise(uint32_t a, uint32_t b, uint32_t c) { return 0.01f * chi_rng_normal(7, a, b, c); }

/* A map of zeros and noise with one value. */
static void add_map(const char *kind, uint32_t seed, uint32_t item, int layer, int role, float value) {
  float v[L * CHI_STUDY_ROLES];
  for (uint32_t c = 0; c < L * CHI_STUDY_ROLES; c++) v[c] = noise(seed, item, c);
  v[layer * CHI_STUDY_ROLES + role] += value;
  add(kind, 2, L, CHI_STUDY_ROLES, v);
}

static void add_curve(const char *kind, uint32_t seed, uint32_t item, int layer, float value, float rest) {
  float v[L];
  for (uint32_t l = 0; l < L; l++) v[l] = rest + noise(seed, item, l);
  v[layer] += value;
  add(kind, 1, L, 0, v);
}

/* The fact of entity e and relation f; group B for the second half of the entities. mlp keeps D in layer 1, attn in
 * layer 6. Contributions peak in layer 6, the picture's in layer 2; cutting costs 0.3 around layer 6. The name is in
 * the words' states from layer 3 on (index 4), the answer comes in layer 8. */
static void put_item(chi_store *s, int e, int f) {
  char id[32], entity[32], info[400];
  uint32_t i = (uint32_t)(e * FACTS + f);
  bool right = f > 0 || e % 2; /* wrong ones have smaller contributions */
  n_results = 0;
  add_map("trace/item/substitute/mlp/w1/own/p", 1, i, 1, CHI_STUDY_END, 0.3f);
  add_map("trace/item/substitute/mlp/w1/donor/p", 2, i, 0, CHI_STUDY_END, 0.0f);
  add_map("trace/item/substitute/attn/w1/own/p", 3, i, 6, CHI_STUDY_END, 0.2f);
  add_map("trace/item/substitute/attn/w1/donor/p", 4, i, 0, CHI_STUDY_END, 0.0f);
  add_curve("contributions/item/words>last/mean", 5, i, 6, right ? 1.0f : 0.2f, 0.1f);
  add_curve("contributions/item/words>last/even", 11, i, 9, 2.0f, 0.5f);
  add_curve("contributions/item/image>words/mean", 6, i, 2, 1.0f, 0.1f);
  add_curve("contributions/item/image>words/late", 12, i, 2, 0, 0.03f);
  add_curve("contributions/item/image>words/late_even", 13, i, 2, 0, 0.05f);
  add_curve("contributions/item/image>words/late_rolled", 14, i, 2, 0, 0.12f);
  add_curve("contributions/item/image>words/late_rolled_even", 15, i, 2, 0, 0.07f);
  add_curve("knockout/item/constraint:last/w3/own", 7, i, 6, -0.3f, 0);
  add_curve("knockout/item/constraint:last/w3/control", 8, i, 6, 0, 0);
  float rank[L + 1], answer[L + 1], other[L + 1], state[(L + 1) * D];
  for (int l = 0; l <= L; l++) {
    rank[l] = l >= 4 ? 2 : 300;
    answer[l] = l >= 9 ? 1 : 500;
    other[l] = 400;
    for (int k = 0; k < D; k++)
      state[l * D + k] = 10 * noise(9, i, (uint32_t)(l * D + k)) + (l >= 4 && k == e % D ? 5.0f : 0.0f);
  }
  add("lens/item/words/rank", 1, L + 1, 0, rank);
  add("lens/item/words/other_rank", 1, L + 1, 0, other);
  add("lens/item/answer/rank", 1, L + 1, 0, answer);
  add("probe/item/words/state", 2, L + 1, D, state);
  snprintf(id, sizeof id, "i%u", i);
  snprintf(entity, sizeof entity, "E%d", e);
  snprintf(info, sizeof info,
           "{\"entity\":\"%s\",\"relation\":\"r%d\",\"unit\":\"%s|r%d\",\"answer\":\"a%d\",\"entity_group\":\"%s\","
           "\"brackets\":1,"
           "\"ask\":{\"item\":{\"said\":\"x\",\"right\":%s,\"p\":0.9}}}",
           entity, f, entity, f, e, e < ENTITIES / 2 ? "A" : "B", right ? "true" : "false");
  assert_works(chi_store_put(
      s, &(chi_store_item){.seq = i, .id = id, .unit = entity, .split = "test", .group = "fact", .info = info}, result,
      n_results, err));
  chi_arena_free(&arena);
}

static json_t *claims_of(const char *run, const char *dir) {
  char path[4200];
  chi_study_report_opts o = {.draws = 300};
  chi_provenance prov = {.command = "test"};
  assert_works(chi_study_report(run, dir, &o, &prov, err));
  snprintf(path, sizeof path, "%s/report.json", dir);
  json_t *j = json_load_file(path, 0, NULL);
  assert_non_null(j);
  return j;
}

/* The first row of a claim whose statistic holds these words. */
static const json_t *claim(const json_t *report, const char *id, const char *words) {
  size_t i;
  json_t *c;
  json_array_foreach(json_object_get(report, "claims"), i, c) {
    const char *what = json_string_value(json_object_get(c, "statistic"));
    if (strcmp(json_string_value(json_object_get(c, "claim")), id) == 0 && strstr(what, words)) return c;
  }
  fail_msg("no claim %s with '%s'", id, words);
  return NULL;
}

static void expect(const json_t *report, const char *id, const char *words, double value, double slack,
                   const char *verdict) {
  const json_t *c = claim(report, id, words);
  double got = json_number_value(json_object_get(c, "value"));
  const char *said = json_string_value(json_object_get(c, "verdict"));
  if (!(fabs(got - value) <= slack)) fail_msg("%s %s: %g, not %g", id, words, got, value);
  if (strcmp(said ? said : "", verdict) != 0) fail_msg("%s %s: '%s', not '%s'", id, words, said ? said : "", verdict);
}

static void claims_tell_what_was_planted(void **state) {
  (void)state;
  chi_store *s = NULL;
  char run[4096], dir[4096];
  snprintf(run, sizeof run, "%s", tmp_path("claims"));
  snprintf(dir, sizeof dir, "%s", tmp_path("claims-report"));
  const chi_store_key keys[] = {
      {"settings", "{\"asks\":\"item\",\"windows\":[1,3],\"corrupt\":[\"substitute\"]}", true},
      {"model", "tiny", false},
      {"state", "done", false}};
  assert_works(chi_store_open(&s, run, keys, 3, err));
  for (int e = 0; e < ENTITIES; e++)
    for (int f = 0; f < FACTS; f++) put_item(s, e, f);
  chi_store_close(s);
  json_t *r = claims_of(run, dir);
  expect(r, "S1", "largest mean D: mlp, last word token", 1, 0, "found");
  expect(r, "S2", "largest mean D: attn, last word token", 6, 0, "not found");
  expect(r, "S3", "mlp", 0.3, 0.01, "found");
  expect(r, "S3", "attn", 0, 0.02, "not found");
  expect(r, "S4", "mlp", -0.3, 0.02, "not found");
  expect(r, "S7", "largest mean D: mlp", 1, 0, "found");
  expect(r, "S11", "attn", 0, 0, "found");
  expect(r, "S10", "accuracy, group B", 0.875, 1e-6, "");
  expect(r, "S10", "commonest answer of each relation, group B", 0.775, 1e-6, "found");
  expect(r, "T1", "contribution", 6, 0, "found");
  expect(r, "T1", "values alone", 9, 0, "");
  expect(r, "T1", "over the values' norm", 6, 0, "");
  expect(r, "T5", "share of the last patches less that by values alone", -0.02, 0.01, "not found");
  expect(r, "T5", "picture rolled by a random number of rows", 0.12, 0.01, "");
  expect(r, "T5", "picture rolled: share of the last patches less that by values alone", 0.05, 0.01, "");
  expect(r, "T4", "picture to words less words", -1.7, 0.6, "found");
  expect(r, "T3", "constraint:last cut at layer 6", 0.3, 0.01, "found");
  expect(r, "T6", "less that of the answer at the last token; right", -5, 0, "found");
  expect(r, "T6", "the name less that of another name, words; right", 3 - L, 0, "");
  const json_t *c = claim(r, "T6", "probe for the name, last word token: ");
  assert_true(json_number_value(json_object_get(c, "value")) > 0.95);
  assert_non_null(strstr(json_string_value(json_object_get(c, "statistic")), "half of the items from layer 3 on"));
  c = claim(r, "T6", "dealt anew");
  assert_true(json_number_value(json_object_get(c, "value")) < 0.3);
  json_decref(r);
}

/* Noise in text: E of the last subject token in layer 3, late attention in layer 9. */
static void text_claims(void **state) {
  (void)state;
  chi_store *s = NULL;
  char run[4096], dir[4096], id[32];
  snprintf(run, sizeof run, "%s", tmp_path("noise"));
  snprintf(dir, sizeof dir, "%s", tmp_path("noise-report"));
  const chi_store_key keys[] = {{"settings", "{\"asks\":\"item\",\"windows\":[6],\"corrupt\":[\"noise:3s\"]}", true},
                                {"state", "done", false}};
  assert_works(chi_store_open(&s, run, keys, 2, err));
  for (uint32_t i = 0; i < 24; i++) {
    float runs[6] = {0.5f, i < 6 ? 0.48f : 0.1f, NAN, 0, 0, NAN};
    n_results = 0;
    add_map("trace/item/noise:3s/mlp/w6/own/p", 1, i, 3, CHI_STUDY_END, 0.2f);
    add_map("trace/item/noise:3s/attn/w6/own/p", 2, i, 9, CHI_STUDY_LAST, 0.2f);
    add("trace/item/noise:3s/runs", 1, 6, 0, runs);
    snprintf(id, sizeof id, "k%u", i);
    assert_works(chi_store_put(
        s,
        &(chi_store_item){
            .seq = i, .id = id, .unit = id, .info = "{\"brackets\":1,\"ask\":{\"item\":{\"right\":true,\"p\":0.5}}}"},
        result, n_results, err));
    chi_arena_free(&arena);
  }
  chi_store_close(s);
  json_t *r = claims_of(run, dir);
  expect(r, "R1", "all known facts", 3, 0, "found");
  expect(r, "R1", "the 18 facts", 3, 0, "found");
  expect(r, "R2", "all known facts", 0.2, 0.03, "found");
  expect(r, "R3", "all known facts", 9, 0, "found");
  json_decref(r);
}

/* Three facts planted in layer 2: E names it, D names layer 5, cuts name it, one item is wrong. */
static void planted_layers(void **state) {
  (void)state;
  chi_store *s = NULL;
  char run[4096], id[32], csv[4096];
  const char *dirs[1] = {run};
  const int layer[1] = {2}, none[1] = {12};
  chi_planted p;
  snprintf(run, sizeof run, "%s", tmp_path("planted"));
  snprintf(csv, sizeof csv, "%s", tmp_path("planted.csv"));
  const chi_store_key keys[] = {{"settings", "{\"asks\":\"item\"}", true}};
  assert_works(chi_store_open(&s, run, keys, 1, err));
  for (uint32_t i = 0; i < 4; i++) {
    char info[128];
    n_results = 0;
    add_map("trace/item/substitute/mlp/w1/own/p", 1, i, 2, i % 2 ? CHI_STUDY_LAST : CHI_STUDY_WORDS, 0.5f);
    add_map("trace/item/substitute/mlp/w1/donor/p", 2, i, 5, CHI_STUDY_WORDS, -0.7f);
    add_curve("knockout/item/constraint:last/w1/own", 3, i, 2, -0.4f, 0);
    snprintf(id, sizeof id, "p%u", i);
    snprintf(info, sizeof info, "{\"ask\":{\"item\":{\"right\":%s}}}", i ? "true" : "false");
    assert_works(
        chi_store_put(s, &(chi_store_item){.seq = i, .id = id, .unit = id, .info = info}, result, n_results, err));
    chi_arena_free(&arena);
  }
  chi_store_close(s);
  assert_works(chi_planted_read(&p, dirs, layer, 1, err));
  assert_int_equal(p.items[0], 4);
  assert_int_equal(p.right[0], 3);
  assert_int_equal(p.n_rows, 7);
  for (int32_t r = 0; r < p.n_rows; r++) {
    const chi_planted_row *row = &p.row[r];
    assert_int_equal(row->layers, L);
    assert_int_equal(row->n, 3);
    if (strcmp(row->method, "E") == 0 || strcmp(row->method, "cuts") == 0) {
      assert_int_equal(row->hits, 3);
      assert_int_equal(row->named[2], 3);
    }
    if (strcmp(row->method, "D") == 0) {
      assert_int_equal(row->hits, 0);
      assert_int_equal(row->named[5], 3);
    }
    if (strcmp(row->method, "E last") == 0) assert_true(row->hits >= 2);
  }
  assert_works(chi_planted_csv(&p, csv, err));
  chi_planted_free(&p);
  assert_fails(chi_planted_read(&p, dirs, none, 1, err), CHI_ERR_ARG, "there is no layer 12");
}

static void projections_keep_lengths(void **state) {
  (void)state;
  enum { kWidth = 700 };
  float x[2][kWidth], y[2][CHI_STUDY_PROBE];
  double len[2] = {0}, got[2] = {0};
  for (uint32_t k = 0; k < 2; k++) {
    for (uint32_t i = 0; i < kWidth; i++) {
      x[k][i] = chi_rng_normal(3, k, i, 0);
      len[k] += (double)x[k][i] * (double)x[k][i];
    }
    chi_study_project(y[k], x[k], kWidth);
    for (int i = 0; i < CHI_STUDY_PROBE; i++) got[k] += (double)y[k][i] * (double)y[k][i];
    assert_true(fabs(got[k] / len[k] - 1) < 0.25);
  }
}

/* The tiny model: the answer is on top at the last layer, and the state there is what the head reads. */
static void lens_and_probe_of_a_model(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_dataset *d = NULL;
  chi_store *s = NULL;
  chi_study_done done;
  chi_store_values rank, words, last;
  chi_arena a = {0};
  char data[4096], dir[4096], text[1024], here[2048];
  snprintf(data, sizeof data, "%s", tmp_path("items.jsonl"));
  snprintf(dir, sizeof dir, "%s", tmp_path("lens-run"));
  assert_non_null(realpath("tests/fixtures/tiny-gqa/picture.png", here));
  int n =
      snprintf(text, sizeof text,
               "{\"id\":\"a\",\"image\":\"%.400s\",\"question\":\"What is [this country]?\",\"answer\":\"x\","
               "\"entity\":\"Peru\",\"constraints\":[{\"words\":\"this country\",\"substitutes\":[{\"words\":\"Chile "
               "now\"}]}]}\n",
               here);
  put_file(data, text, (size_t)n);
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-gqa", CHI_DTYPE_AUTO, err));
  assert_works(chi_dataset_open(&d, data, NULL, err));
  chi_study_opts o = CHI_STUDY_OPTS_INIT;
  o.studies = "lens,probe";
  assert_works(chi_study_run(&done, m, d, &o, &(chi_study_plan){.dir = dir, .version = "t", .command = "t"}, err));
  assert_works(chi_store_read(&s, dir, err));
  assert_works(chi_store_values_of(s, "lens/item/answer/rank", &rank, &a, err));
  assert_works(chi_store_values_of(s, "probe/item/words/state", &words, &a, err));
  assert_works(chi_store_values_of(s, "probe/item/last/state", &last, &a, err));
  int32_t layers = m->net.decoder.spec.layers;
  int64_t width = m->net.decoder.spec.d;
  assert_int_equal(rank.n, 1);
  assert_int_equal(rank.size, layers + 1);
  assert_true(rank.v[layers] == 1);
  assert_int_equal(words.size, (size_t)(layers + 1) * (size_t)width);
  assert_int_equal(last.size, words.size);
  assert_true(memcmp(words.v, last.v, words.size * sizeof *words.v) != 0);
  assert_works(chi_store_values_of(s, "lens/item/words/other_rank", &words, &a, err));
  assert_int_equal(words.n, 1);
  chi_arena_free(&a);
  chi_store_close(s);
  chi_dataset_close(d);
  chi_model_free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(claims_tell_what_was_planted),
      cmocka_unit_test(text_claims),
      cmocka_unit_test(planted_layers),
      cmocka_unit_test(projections_keep_lengths),
      cmocka_unit_test(lens_and_probe_of_a_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

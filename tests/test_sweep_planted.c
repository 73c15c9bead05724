/* Planted truth: networks in whose weights a fact was written by hand. Maps made with the plan calls alone peak where
 * planted.json says, and nowhere else. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "support/randplan.h"
#include "support/support.h"

enum { MLP, ATTN, HIDDEN, KINDS };
static const char *const kNames[KINDS] = {"mlp", "attn", "hidden"};
static const chi_site kSites[KINDS] = {CHI_SITE_MLP_OUT, CHI_SITE_ATTN_OUT, CHI_SITE_RESID_POST};

typedef struct planted {
  chi_model *m;
  chi_st *maps;
  json_t *truth;
} planted;

static int32_t int_at(const planted *f, const char *name, int32_t i) {
  const chi_tensor *t = chi_st_find(f->maps, name);
  assert_true(t && t->dtype == CHI_I32 && i < t->dim[0]);
  return ((const int32_t *)t->data)[i];
}

static float float_at(const planted *f, const char *name, int64_t i) {
  const chi_tensor *t = chi_st_find(f->maps, name);
  assert_true(t && t->dtype == CHI_F32);
  return ((const float *)t->data)[i];
}

static float p_of(const results *r, int capture, int32_t target, int64_t vocab) {
  float *x = calloc((size_t)vocab, sizeof *x);
  memcpy(x, results_row(r, capture, 0), (size_t)vocab * sizeof *x);
  chi_softmax(x, vocab);
  float p = x[target];
  free(x);
  return p;
}

static bool is_peak(const planted *f, int kind, int layer, int32_t row) {
  size_t i;
  json_t *o;
  json_array_foreach(json_object_get(f->truth, "peaks"), i, o) {
    if (strcmp(json_string_value(json_object_get(o, "site")), kNames[kind]) != 0) continue;
    if (json_integer_value(json_object_get(o, "layer")) == layer &&
        json_integer_value(json_object_get(o, "row")) == row)
      return true;
  }
  return false;
}

static void check_map(const planted *f, const char *folder, chi_executor ex) {
  const chi_net *net = &f->m->net;
  const int L = net->shape.stack[CHI_DECODER].layers;
  const int32_t T = (int32_t)chi_st_find(f->maps, "input_ids")->dim[0], lo = int_at(f, "span", 0),
                hi = int_at(f, "span", 1) + 1;
  int32_t *tokens = calloc((size_t)T, sizeof *tokens), words[8];
  for (int32_t r = 0; r < T; r++) tokens[r] = int_at(f, "input_ids", r);
  for (int32_t r = lo; r < hi; r++) words[r - lo] = int_at(f, "replacement_ids", r - lo);
  chi_plan *p = plan_new();
  int clean = plan_root(p, &(chi_input){.tokens = tokens, .n_rows = T, .image_row = -1}),
      corrupt = plan_child(p, clean);
  plan_act(p, corrupt,
           (chi_intervention){.op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .tokens = words}, lo,
           hi, 0);
  int first = plan_take_logits(p, clean, T - 1), second = plan_take_logits(p, corrupt, T - 1), cell = second + 1;
  for (int kind = 0; kind < KINDS; kind++)
    for (int l = 0; l < L; l++)
      for (int32_t row = 0; row < T; row++) {
        int b = plan_child(p, corrupt);
        plan_copy(p, b, clean, kSites[kind], l, row, row + 1);
        plan_take_logits(p, b, T - 1);
      }
  results r;
  assert_works(results_run(&r, net, p, &(chi_run_opts){.executor = ex}, err));
  int32_t target = int_at(f, "target", 0);
  double above = json_real_value(json_object_get(f->truth, "restored_above")),
         below = json_real_value(json_object_get(f->truth, "others_below"));
  assert_true(above > 0.9 && below < 0.1);
  float p0 = p_of(&r, second, target, net->decoder.vocab), p1 = p_of(&r, first, target, net->decoder.vocab);
  assert_true(fabsf(p1 - float_at(f, "p_clean", 0)) < 1e-4f && fabsf(p0 - float_at(f, "p_corr", 0)) < 1e-4f);
  size_t peaks = 0;
  for (int kind = 0; kind < KINDS; kind++)
    for (int l = 0; l < L; l++)
      for (int32_t row = 0; row < T; row++) {
        char name[32];
        float got = p_of(&r, cell++, target, net->decoder.vocab), restored = (got - p0) / (p1 - p0);
        snprintf(name, sizeof name, "sub.%s.w1", kNames[kind]);
        if (fabsf(got - float_at(f, name, (int64_t)l * T + row)) > 1e-4f)
          fail_msg("%s: %s, layer %d, row %d: p = %g, hooks say %g", folder, kNames[kind], l, row, (double)got,
                   (double)float_at(f, name, (int64_t)l * T + row));
        bool peak = is_peak(f, kind, l, row);
        peaks += peak;
        if (peak ? restored < (float)above : restored > (float)below)
          fail_msg("%s: %s, layer %d, row %d restores %g, %s", folder, kNames[kind], l, row, (double)restored,
                   peak ? "where the fact is planted" : "where nothing is");
      }
  assert_int_equal(peaks, json_array_size(json_object_get(f->truth, "peaks")));
  results_free(&r);
  chi_plan_free(p);
  free(tokens);
}

static void check_folder(const char *folder) {
  char path[256];
  planted f = {0};
  snprintf(path, sizeof path, "tests/fixtures/%s", folder);
  assert_works(chi_model_open(&f.m, path, CHI_DTYPE_F32, err));
  snprintf(path, sizeof path, "tests/fixtures/%s/maps.safetensors", folder);
  assert_works(chi_st_open(&f.maps, path, err));
  snprintf(path, sizeof path, "tests/fixtures/%s/planted.json", folder);
  f.truth = json_load_file(path, 0, NULL);
  assert_non_null(f.truth);
  check_map(&f, folder, CHI_EXEC_SWEEP);
  check_map(&f, folder, CHI_EXEC_DENSE);
  json_decref(f.truth);
  chi_st_close(f.maps);
  chi_model_free(f.m);
}

static void test_one_fact(void **state) {
  (void)state;
  check_folder("planted-kv");
}
static void test_two_hops(void **state) {
  (void)state;
  check_folder("planted-hop");
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_fact), cmocka_unit_test(test_two_hops)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* ROME, MEMIT and MultEdit with prefixes, KL term and second moment against PyTorch
 * (tools/ref/edit_methods_ref.py): the same seeds, and p(target) after the edit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edit/edit.h"
#include "support/support.h"

enum { MAX_ASKS = 8 };

static const char *text(const json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }
static double num(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return v ? json_number_value(v) : 0;
}

/* C[i][j] = 0.5 exp(-|i - j| / 8) + 0.5 [i = j] for layers lo to hi. */
static const char *moments_file(const chi_model *m, int lo, int hi) {
  int64_t f = m->net.decoder.spec.ffn;
  double *c = calloc((size_t)(f * f), sizeof *c);
  const char *path = tmp_path("ref-moments.safetensors");
  char name[64][48];
  chi_st_writer *w = NULL;
  for (int64_t i = 0; i < f; i++)
    for (int64_t j = 0; j < f; j++) c[i * f + j] = 0.5 * exp(-fabs((double)(i - j)) / 8) + (i == j ? 0.5 : 0);
  assert_works(chi_st_writer_new(&w, path, err));
  for (int l = lo; l <= hi; l++) {
    snprintf(name[l], sizeof name[l], "decoder.%d.mlp_act.moment", l);
    assert_works(chi_st_writer_add(w, name[l], CHI_F64, 2, (int64_t[]){f, f}, c, err));
  }
  assert_works(chi_st_writer_commit(w, err));
  free(c);
  return path;
}

static chi_prefixes prefixes_of(const json_t *c) {
  chi_prefixes p = {0};
  const json_t *list = json_object_get(c, "prefixes"), *x;
  size_t i;
  if (!json_array_size(list)) return p;
  const char *path = tmp_path("ref-prefixes.txt");
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  json_array_foreach((json_t *)(uintptr_t)list, i, x) fprintf(f, "%s\n", json_string_value(x));
  fclose(f);
  assert_works(chi_prefixes_load(&p, path, err));
  return p;
}

/* The question with the constraint's words in brackets. */
static chi_query *ask_of(const chi_model *m, const json_t *c, const json_t *a, const chi_prefixes *p) {
  char q[512], image[512];
  const char *question = text(a, "question"), *words = text(a, "words"), *at = NULL, *picture = text(a, "picture");
  for (const char *s = question; (s = strstr(s, words)) != NULL; s++) at = s;
  assert_non_null(at);
  snprintf(q, sizeof q, "%.*s[%s]%s", (int)(at - question), question, words, at + strlen(words));
  snprintf(image, sizeof image, "%s/%s", m->path, picture ? picture : "");
  chi_query *ask = NULL;
  chi_query_opts o = {.image = picture ? image : NULL,
                      .question = q,
                      .target = text(a, "target"),
                      .at = text(c, "at"),
                      .prefixes = p->n ? p : NULL,
                      .contexts = p->n,
                      .kl = num(c, "kl") > 0};
  assert_works(chi_query_make(&ask, m, &o, err));
  assert_int_equal(ask->n_context, p->n);
  return ask;
}

static double logp(const chi_model *m, const chi_request *r) {
  chi_edit_probe p;
  assert_works(chi_edit_measure(&p, m, r->prompt, r->target, r->n_target, err));
  return log(p.p);
}

static chi_hyper hyper_of(const json_t *c, const char *method) {
  const chi_method *m = NULL;
  const chi_preset *p = NULL;
  assert_works(chi_method_find(&m, method, err));
  assert_works(chi_preset_find(&p, m, NULL, err));
  chi_hyper h = p->hyper;
  h.steps = num(c, "steps"), h.lr = num(c, "lr"), h.lr_share = false, h.stop = 0;
  h.decay = num(c, "decay"), h.clamp = num(c, "clamp"), h.kl = num(c, "kl");
  if (!isnan(h.lambda)) h.lambda = num(c, "share"), h.lambda_share = true;
  if (!isnan(h.shrink)) h.shrink = num(c, "shrink");
  return h;
}

static double check_case(const json_t *c) {
  chi_model *m = NULL;
  const json_t *asks = json_object_get(c, "asks"), *before = json_object_get(c, "p_before"),
               *after = json_object_get(c, "p_after"), *rows = json_object_get(c, "rows");
  size_t n = json_array_size(asks);
  const char *method = text(c, "method");
  int lo = (int)num(c, "lo"), hi = (int)num(c, "hi");
  double worst = 0;
  assert_true(n >= 1 && n <= MAX_ASKS && json_array_size(after) == n);
  assert_works(chi_model_open(&m, text(c, "model"), CHI_DTYPE_F32, err));
  chi_prefixes p = prefixes_of(c);
  chi_query *ask[MAX_ASKS];
  chi_request req[MAX_ASKS];
  for (size_t i = 0; i < n; i++) {
    ask[i] = ask_of(m, c, json_array_get(asks, i), &p);
    req[i] = ask[i]->req;
    assert_int_equal(req[i].row, json_integer_value(json_array_get(rows, i)));
    assert_true(fabs(logp(m, &req[i]) - log(json_number_value(json_array_get(before, i)))) < 1e-3);
  }
  chi_hyper h = hyper_of(c, method);
  bool moment = json_is_true(json_object_get(c, "moment"));
  chi_edit_opts o = {.method = method, .layer_lo = lo, .layer_hi = hi, .hyper = &h};
  o.moments = moment ? moments_file(m, lo, hi) : NULL;
  chi_delta *d = NULL;
  chi_edit_info info;
  chi_undo undo = {0};
  assert_works(chi_edit_run(&d, &info, m, req, n, &o, err));
  assert_works(chi_delta_apply(d, m, &undo, err));
  for (size_t i = 0; i < n; i++) {
    double got = logp(m, &req[i]), want = log(json_number_value(json_array_get(after, i))),
           was = log(json_number_value(json_array_get(before, i)));
    print_message("%s %d-%d: log p %.3f -> %.5f, torch %.5f\n", method, lo, hi, was, got, want);
    worst = fmax(worst, fabs(got - want));
    assert_true(fabs(exp(got) - exp(want)) <= 0.02 && fabs(got - want) <= 0.02);
  }
  assert_true(fabs(info.delta_norm / num(c, "delta_norm") - 1) <= 0.01);
  chi_delta_undo(&undo);
  chi_delta_free(d);
  for (size_t i = 0; i < n; i++) chi_query_free(ask[i]);
  chi_prefixes_free(&p);
  chi_model_free(m);
  return worst;
}

static const char *cases = "tests/fixtures/edit/methods.json";

static void test_methods(void **state) {
  (void)state;
  json_t *list = NULL, *c;
  size_t i;
  double worst = 0;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_json_load(&list, cases, 1 << 20, err));
  assert_true(json_array_size(list) > 0);
  json_array_foreach(list, i, c) worst = fmax(worst, check_case(c));
  print_message("largest difference of log p: %.2g\n", worst);
  json_decref(list);
}

/* test_edit_ref [FILE]: other cases, as tools/ref/edit_methods_ref.py --model MODEL -o FILE writes them. */
int main(int argc, char **argv) {
  if (argc > 1) cases = argv[1];
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

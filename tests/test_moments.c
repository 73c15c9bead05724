/* Second moments of keys: against a plain sum over captured keys, interrupted and gone on with, refused where they
 * belong to something else, and what ROME makes of them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "edit/edit.h"
#include "edit/moments.h"
#include "support/support.h"

#define TINY "tests/fixtures/tiny-gqa"

static const char *write_text(const char *name, const char *text) {
  const char *path = tmp_path(name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
  return path;
}

static chi_model *open_tiny(void) {
  chi_model *m = NULL;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&m, TINY, CHI_DTYPE_F32, err));
  return m;
}

/* A data set of two questions about pictures, and three lines. */
static chi_moments_opts sources(char data[512], char texts[512]) {
  char line[4096], cwd[1024];
  assert_non_null(realpath(TINY, cwd));
  snprintf(line, sizeof line,
           "{\"id\":\"a\",\"image\":\"%s/picture.png\",\"question\":\"What is [this country]?\",\"answer\":\"x\"}\n"
           "{\"id\":\"b\",\"image\":\"%s/donor.png\",\"question\":\"Which flag is [this]?\",\"answer\":\"y\"}\n",
           cwd, cwd);
  snprintf(data, 512, "%s", write_text("moments.jsonl", line));
  snprintf(texts, 512, "%s", write_text("moments.txt", "The capital is\n\nthere is a circle here\nthat language\n"));
  return (chi_moments_opts){.data = data, .texts = texts, .lo = 1, .hi = 2, .keys = 1000000};
}

static void add_prompt(double *sum, int64_t *n, const chi_model *m, const char *image, const char *question, bool raw,
                       int layer) {
  int64_t f = m->net.decoder.spec.ffn;
  chi_prompt *p = NULL;
  float *key = calloc((size_t)f, sizeof *key);
  chi_prompt_opts o = {.image = image, .question = question, .raw = raw};
  assert_works(chi_prompt_make(&p, m, &o, err));
  for (int32_t r = 0; r < p->n_rows; r++) {
    assert_works(chi_edit_states(&m->net, p, r, layer, key, NULL, NULL, err));
    for (int64_t i = 0; i < f; i++)
      for (int64_t j = 0; j < f; j++) sum[i * f + j] += (double)key[i] * (double)key[j];
    ++*n;
  }
  chi_prompt_free(p);
  free(key);
}

static void test_sums(void **state) {
  (void)state;
  char data[512], texts[512];
  chi_model *m = open_tiny();
  chi_moments_opts o = sources(data, texts);
  chi_moments_info i;
  o.out = tmp_path("sums.safetensors");
  assert_works(chi_moments_collect(&i, m, &o, err));
  assert_true(i.done && i.prompts == 5 && i.resumed == 0 && i.skipped == 0 && i.keys < i.asked);
  int64_t f = m->net.decoder.spec.ffn, n = 0;
  double *sum = calloc((size_t)(f * f), sizeof *sum), *c = NULL, worst = 0, size = 0;
  add_prompt(sum, &n, m, TINY "/picture.png", "What is this country?", false, 2);
  add_prompt(sum, &n, m, TINY "/donor.png", "Which flag is this?", false, 2);
  add_prompt(sum, &n, m, NULL, "The capital is", true, 2);
  add_prompt(sum, &n, m, NULL, "there is a circle here", true, 2);
  add_prompt(sum, &n, m, NULL, "that language", true, 2);
  assert_int_equal(n, i.keys);
  assert_works(chi_moments_load(&c, o.out, 2, f, m->hash, err));
  for (int64_t k = 0; k < f * f; k++) {
    worst = fmax(worst, fabs(c[k] - sum[k] / (double)n));
    size = fmax(size, fabs(c[k]));
  }
  print_message("%lld keys, largest moment %.3g, largest difference %.3g\n", (long long)n, size, worst);
  assert_true(size > 0 && worst <= 1e-12 * size);
  assert_fails(chi_moments_load(&(double *){NULL}, o.out, 0, f, m->hash, err), CHI_ERR_FORMAT, "decoder.0.mlp_act");
  assert_fails(chi_moments_load(&(double *){NULL}, o.out, 2, f, "abc", err), CHI_ERR_ARG, "another model");
  free(sum);
  chi_free(c);
  chi_model_free(m);
}

static int stop_at(void *ud, const char *what, int64_t done, int64_t total) {
  (void)total;
  int *left = ud;
  return strcmp(what, "collecting keys") == 0 && done > 0 && (*left)-- <= 0;
}

static void same_file(const char *a, const char *b) {
  char ha[65], hb[65];
  assert_works(chi_sha256_file(ha, a, err));
  assert_works(chi_sha256_file(hb, b, err));
  assert_string_equal(ha, hb);
}

/* Interrupted after the first batch, then gone on with: the bits of an undisturbed pass. Done once, it is not done
 * again. */
static void test_resume(void **state) {
  (void)state;
  char data[512], texts[512], whole[512], cut[512], text[4096] = "";
  chi_model *m = open_tiny();
  chi_moments_opts o = sources(data, texts);
  chi_moments_info i;
  for (int k = 0; k < 40; k++) snprintf(text + strlen(text), sizeof text - strlen(text), "a line of words %d\n", k);
  o.data = NULL;
  snprintf(texts, sizeof texts, "%s", write_text("many.txt", text));
  snprintf(whole, sizeof whole, "%s", tmp_path("whole.safetensors"));
  snprintf(cut, sizeof cut, "%s", tmp_path("cut.safetensors"));
  o.out = whole;
  assert_works(chi_moments_collect(&i, m, &o, err));
  assert_int_equal(i.prompts, 40);
  o.out = cut;
  int left = 0;
  chi_set_progress(stop_at, &left);
  assert_fails(chi_moments_collect(&i, m, &o, err), CHI_ERR_CANCELLED, "cancelled");
  chi_set_progress(NULL, NULL);
  assert_true(i.keys > 0 && i.prompts < 40);
  chi_set_threads(1);
  assert_works(chi_moments_collect(&i, m, &o, err));
  chi_set_threads(0);
  assert_true(i.resumed > 0 && i.prompts == 40);
  same_file(whole, cut);
  int64_t keys = i.keys;
  assert_works(chi_moments_collect(&i, m, &o, err));
  assert_true(i.keys == keys && i.resumed == 40);
  o.hi = 3;
  assert_fails(chi_moments_collect(&i, m, &o, err), CHI_ERR_ARG, "another 'layers'");
  o.hi = 2, o.keys = 5;
  assert_fails(chi_moments_collect(&i, m, &o, err), CHI_ERR_ARG, "another 'asked'");
  o.out = tmp_path("");
  assert_works(chi_moments_collect(&i, m, &o, err)); /* a folder: its own name for each setting */
  assert_non_null(strstr(i.file, "moments-"));
  assert_true(i.keys >= 5);
  chi_model_free(m);
}

/* A picture's rows can be left out; a prompt that cannot be asked is counted. */
static void test_rows_and_skips(void **state) {
  (void)state;
  char data[512], texts[512], line[1024];
  chi_model *m = open_tiny();
  chi_moments_opts o = sources(data, texts);
  chi_moments_info all, text;
  o.texts = NULL;
  o.out = tmp_path("all-rows.safetensors");
  assert_works(chi_moments_collect(&all, m, &o, err));
  o.text_rows = true, o.out = tmp_path("text-rows.safetensors");
  assert_works(chi_moments_collect(&text, m, &o, err));
  assert_int_equal(all.keys - text.keys, 2 * m->net.shape.n_image_rows);
  snprintf(line, sizeof line,
           "{\"id\":\"a\",\"image\":\"/no/such.png\",\"question\":\"Why [this]?\",\"answer\":\"x\"}\n");
  o.data = write_text("missing.jsonl", line), o.out = tmp_path("missing.safetensors");
  assert_fails(chi_moments_collect(&text, m, &o, err), CHI_ERR_FORMAT, "none of the 1 prompts");
  o.data = NULL;
  assert_fails(chi_moments_collect(&text, m, &o, err), CHI_ERR_ARG, "no prompts");
  o.lo = 7, o.hi = 9;
  assert_fails(chi_moments_collect(&text, m, &o, err), CHI_ERR_ARG, "layers 7 to 9");
  chi_model_free(m);
}

/* Panels give the bits of the plain loop, and name the column at which a matrix is not positive definite. */
static void test_factor(void **state) {
  (void)state;
  enum { kN = 150 };
  static double a[kN * kN], b[kN * kN];
  for (int i = 0; i < kN; i++)
    for (int k = 0; k <= i; k++)
      a[i * kN + k] = a[k * kN + i] =
          (double)chi_rng_u32(7, 1, (uint32_t)i, (uint32_t)k) / 4294967296.0 + (i == k) * kN;
  memcpy(b, a, sizeof b);
  for (int j = 0; j < kN; j++)
    for (int i = j; i < kN; i++) {
      double s = b[i * kN + j];
      for (int k = 0; k < j; k++) s -= b[i * kN + k] * b[j * kN + k];
      b[i * kN + j] = i == j ? sqrt(s) : s / b[j * kN + j];
    }
  assert_works(chi_chol(a, kN, err));
  for (int i = 0; i < kN; i++) assert_memory_equal(a + i * kN, b + i * kN, (size_t)(i + 1) * sizeof *a);
  for (int i = 0; i < kN; i++)
    for (int k = 0; k < kN; k++) a[i * kN + k] = i == k ? (i == 131 ? 0 : 1) : 0;
  assert_fails(chi_chol(a, kN, err), CHI_ERR_ARG, "column 131");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sums),
      cmocka_unit_test(test_resume),
      cmocka_unit_test(test_rows_and_skips),
      cmocka_unit_test(test_factor),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Deltas as files: round trip, every check, merge, export; nothing half-written. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "edit/edit.h"
#include "file/gguf.h"
#include "support/support.h"

static const char *const kTiny = "tests/fixtures/tiny-gqa";
enum { N = 32 }; /* what the fixture's decoder is wide is read from the model; this is for wrong shapes */

static chi_model *open_model(const char *dir) {
  chi_model *m = NULL;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
  return m;
}

/* A delta of rank 2 on layer 0's down and a dense one on layer 1's q. */
static chi_delta *make(chi_model *m, const char *base, float size) {
  chi_delta *d = NULL;
  const chi_mat *w = &m->net.decoder.block[0].down.w, *q = &m->net.decoder.block[1].q.w;
  float *u = calloc((size_t)(2 * w->n), sizeof *u), *v = calloc((size_t)(2 * w->k), sizeof *v),
        *x = calloc((size_t)(q->n * q->k), sizeof *x);
  for (int64_t i = 0; i < 2 * w->n; i++) u[i] = size * chi_rng_normal(1, 0, 0, (uint32_t)i);
  for (int64_t i = 0; i < 2 * w->k; i++) v[i] = chi_rng_normal(1, 1, 0, (uint32_t)i);
  for (int64_t i = 0; i < q->n * q->k; i++) x[i] = size * chi_rng_normal(1, 2, 0, (uint32_t)i);
  assert_works(chi_delta_new(&d, "made-up", err));
  assert_works(chi_delta_add(d, CHI_DECODER, 0, CHI_W_DOWN, w->n, w->k, 2, u, v, err));
  assert_works(chi_delta_add(d, CHI_DECODER, 1, CHI_W_Q, q->n, q->k, 0, x, NULL, err));
  json_object_set_new(d->header, "base", json_pack("{s:s}", "sha256", base));
  free(u), free(v), free(x);
  return d;
}

static float *down(const chi_model *m) {
  const chi_mat *w = &m->net.decoder.block[0].down.w;
  float *x = calloc((size_t)(w->n * w->k), sizeof *x);
  chi_mat_read(w, 0, w->n, x);
  return x;
}

static void test_round_trip(void **state) {
  (void)state;
  chi_model *m = open_model(kTiny);
  assert_works(chi_model_hash(m, err));
  chi_delta *a = make(m, m->hash, 0.1f), *b = NULL;
  const char *path = tmp_path("a.delta");
  assert_works(chi_delta_save(a, path, err));
  assert_works(chi_delta_load(&b, path, err));
  assert_string_equal(chi_delta_method(b), "made-up");
  assert_string_equal(chi_delta_base(b), m->hash);
  assert_int_equal(b->n, 2);
  assert_works(chi_delta_check(b, m, false, err));
  chi_undo ua = {0};
  float *w0 = down(m), *wa, *wb;
  assert_works(chi_delta_apply(a, m, &ua, err));
  wa = down(m);
  chi_delta_undo(&ua);
  assert_works(chi_delta_apply(b, m, &ua, err));
  wb = down(m);
  chi_delta_undo(&ua);
  int64_t count = m->net.decoder.block[0].down.w.n * m->net.decoder.block[0].down.w.k;
  assert_memory_equal(wa, wb, (size_t)count * sizeof *wa);
  assert_memory_not_equal(wa, w0, (size_t)count * sizeof *wa);
  free(wb);
  wb = down(m);
  assert_memory_equal(wb, w0, (size_t)count * sizeof *wa);
  free(w0), free(wa), free(wb);
  chi_delta_free(a);
  chi_delta_free(b);
  chi_model_free(m);
}

static int load(const char *path, chi_err *err) {
  chi_delta *d = NULL;
  int rc = chi_delta_load(&d, path, err);
  chi_delta_free(d);
  return rc;
}

/* A file with one or two tensors and a header. */
static const char *file(const char *header, const char *n1, chi_dtype t1, int r1, int c1, const char *n2, int r2,
                        int c2, float fill) {
  static float x[N * N];
  const char *path = tmp_path("bad.delta");
  chi_st_writer *w = NULL;
  for (int i = 0; i < N * N; i++) x[i] = fill;
  assert_works(chi_st_writer_new(&w, path, err));
  if (header) assert_works(chi_st_writer_meta(w, "chiasm_delta", header, err));
  assert_works(chi_st_writer_add(w, n1, t1, 2, (int64_t[]){r1, c1}, x, err));
  if (n2) assert_works(chi_st_writer_add(w, n2, CHI_F32, 2, (int64_t[]){r2, c2}, x, err));
  assert_works(chi_st_writer_commit(w, err));
  return path;
}

static void test_bad_files(void **state) {
  (void)state;
  static const char ok[] = "{\"format\": \"chiasm-delta-1\", \"method\": \"x\"}";
  const char *d = "decoder.0.down.d", *u = "decoder.0.down.u", *v = "decoder.0.down.v";
  assert_works(load(file(ok, d, CHI_F32, 4, 4, NULL, 0, 0, 1), err));
  assert_works(load(file(ok, u, CHI_F32, 2, 4, v, 2, 8, 1), err));
  assert_fails(load("no/such.delta", err), CHI_ERR_IO, "no/such.delta");
  assert_fails(load(kTiny, err), CHI_ERR_FORMAT, "no delta");
  assert_fails(load(file(NULL, d, CHI_F32, 4, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "no delta");
  assert_fails(load(file("{", d, CHI_F32, 4, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "bad.delta");
  assert_fails(load(file("[]", d, CHI_F32, 4, 4, NULL, 0, 0, 1), err), CHI_ERR_UNSUPPORTED, "(absent)");
  assert_fails(load(file("{\"format\": \"chiasm-delta-9\"}", d, CHI_F32, 4, 4, NULL, 0, 0, 1), err),
               CHI_ERR_UNSUPPORTED, "chiasm-delta-9");
  assert_fails(load(file(ok, u, CHI_F32, 2, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "down.v");
  assert_fails(load(file(ok, v, CHI_F32, 2, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "down.u");
  assert_fails(load(file(ok, u, CHI_F32, 2, 4, v, 3, 8, 1), err), CHI_ERR_FORMAT, "one rank");
  assert_fails(load(file(ok, d, CHI_F16, 4, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "F32");
  assert_fails(load(file(ok, d, CHI_F32, 4, 4, NULL, 0, 0, NAN), err), CHI_ERR_FORMAT, "not finite");
  assert_fails(load(file(ok, u, CHI_F32, 2, 4, v, 2, 8, INFINITY), err), CHI_ERR_FORMAT, "not finite");
  static const char *const names[] = {"down.d",         "decoder.x.down.d",   "decoder.-1.down.d",
                                      "decoder.0.down", "decoder.0.down.w",   "decoder.0.nose.d",
                                      "tower.0.down.d", "decoder.0.down.d.d", "decoder.99999999999999999999.down.d"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    assert_fails(load(file(ok, names[i], CHI_F32, 4, 4, NULL, 0, 0, 1), err), CHI_ERR_FORMAT, "is not named");
}

static int check(const char *path, chi_model *m, bool force, chi_err *err) {
  chi_delta *d = NULL;
  int rc = chi_delta_load(&d, path, err);
  if (rc == 0) rc = chi_delta_check(d, m, force, err);
  chi_delta_free(d);
  return rc;
}

static void test_other_models(void **state) {
  (void)state;
  chi_model *m = open_model(kTiny), *phi = open_model("tests/fixtures/tiny-phi");
  static const char ok[] = "{\"format\": \"chiasm-delta-1\", \"method\": \"x\"}";
  assert_works(chi_model_hash(m, err));
  chi_delta *a = make(m, m->hash, 0.1f), *b = make(m, phi->hash, 0.1f), *both = NULL;
  const char *path = tmp_path("a2.delta");
  assert_works(chi_delta_save(a, path, err));
  assert_works(check(path, m, false, err));
  assert_fails(check(path, phi, false, err), CHI_ERR_ARG, "another model");
  json_object_set_new(a->header, "base", json_pack("{s:s}", "sha256", "0123"));
  assert_works(chi_delta_save(a, path, err));
  assert_fails(check(path, m, false, err), CHI_ERR_ARG, "another model");
  assert_works(check(path, m, true, err));
  assert_fails(chi_delta_merge(&both, (chi_delta *[]){a, b}, 2, err), CHI_ERR_ARG, "different models");
  assert_fails(check(file(ok, "decoder.0.down.d", CHI_F32, 3, 3, NULL, 0, 0, 1), m, true, err), CHI_ERR_ARG, "3x3");
  assert_fails(check(file(ok, "decoder.77.down.d", CHI_F32, 3, 3, NULL, 0, 0, 1), m, true, err), CHI_ERR_ARG,
               "does not have");
  assert_fails(check(file(ok, "vision.0.down.d", CHI_F32, 3, 3, NULL, 0, 0, 1), phi, true, err), CHI_ERR_ARG,
               "does not have");
  assert_fails(check(file(ok, "projector.0.proj1.d", CHI_F32, 3, 3, NULL, 0, 0, 1), phi, true, err), CHI_ERR_ARG,
               "does not have");
  chi_delta_free(a);
  chi_delta_free(b);
  chi_model_free(m);
  chi_model_free(phi);
}

/* Both in one = one after the other, to rounding. */
static void test_merge(void **state) {
  (void)state;
  chi_model *m = open_model(kTiny);
  chi_delta *a = make(m, "x", 0.1f), *b = make(m, "x", 0.02f), *both = NULL;
  chi_undo u = {0};
  assert_works(chi_delta_merge(&both, (chi_delta *[]){a, b}, 2, err));
  assert_int_equal(both->n, 2);
  assert_int_equal(both->part[0].rank, 4);
  assert_works(chi_delta_apply(a, m, &u, err));
  assert_works(chi_delta_apply(b, m, &u, err));
  float *x = down(m), *y;
  chi_delta_undo(&u);
  assert_works(chi_delta_apply(both, m, &u, err));
  y = down(m);
  chi_delta_undo(&u);
  int64_t count = m->net.decoder.block[0].down.w.n * m->net.decoder.block[0].down.w.k;
  for (int64_t i = 0; i < count; i++) assert_true(fabsf(x[i] - y[i]) <= 1e-6f);
  chi_str s = {0};
  assert_works(chi_delta_diff(a, b, &s, err));
  assert_non_null(strstr(s.s, "decoder.0.down  norms"));
  assert_non_null(strstr(s.s, "cosine 1.0000"));
  chi_str_free(&s);
  free(x), free(y);
  chi_delta_free(a);
  chi_delta_free(b);
  chi_delta_free(both);
  chi_model_free(m);
}

/* Exported in f32 and opened again: the weights have the bits of the delta in memory. Families with plain matrices,
 * fused ones (GPT-2 stores q, k, v side by side and transposed) and biases. */
static void test_export(void **state) {
  (void)state;
  static const char *const dirs[] = {"tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gpt2", "tests/fixtures/tiny-phi"};
  for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
    char name[32], hash[65], again[65], from[256];
    snprintf(name, sizeof name, "export%zu", i);
    snprintf(from, sizeof from, "%s/model.safetensors", dirs[i]);
    const char *out = tmp_path(name);
    chi_model *m = open_model(dirs[i]), *e;
    chi_delta *d = make(m, "x", 0.1f);
    chi_undo u = {0};
    assert_works(chi_sha256_file(hash, from, err));
    assert_works(chi_export(m, &d, 1, out, "f32", err));
    assert_works(chi_sha256_file(again, from, err));
    assert_string_equal(hash, again); /* the base is untouched */
    e = open_model(out);
    assert_works(chi_delta_apply(d, m, &u, err));
    for (int l = 0; l < m->net.decoder.spec.layers; l++) {
      chi_linear *x[3] = {&m->net.decoder.block[l].q, &m->net.decoder.block[l].v, &m->net.decoder.block[l].down},
                 *y[3] = {&e->net.decoder.block[l].q, &e->net.decoder.block[l].v, &e->net.decoder.block[l].down};
      for (int k = 0; k < 3; k++) {
        size_t n = (size_t)(x[k]->w.n * x[k]->w.k);
        float *p = calloc(n, sizeof *p), *q = calloc(n, sizeof *q);
        chi_mat_read(&x[k]->w, 0, x[k]->w.n, p);
        chi_mat_read(&y[k]->w, 0, y[k]->w.n, q);
        assert_memory_equal(p, q, n * sizeof *p);
        free(p), free(q);
      }
    }
    chi_delta_undo(&u);
    assert_fails(chi_export(m, &d, 1, out, NULL, err), CHI_ERR_ARG, "exists already");
    chi_delta_free(d);
    chi_model_free(m);
    chi_model_free(e);
  }
}

/* A GGUF file again: the edited matrix is what memory held, all other tensors and keys are the base's. */
static void test_export_gguf(void **state) {
  (void)state;
  static const char *const files[] = {"llama-q8_0", "llama-f16", "qwen2", "gpt2"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    char from[128], name[64], hash[65], again[65];
    snprintf(from, sizeof from, "tests/fixtures/gguf/%s.gguf", files[i]);
    snprintf(name, sizeof name, "%s.gguf", files[i]);
    const char *out = tmp_path(name);
    chi_model *m = open_model(from), *e;
    chi_delta *d = NULL, *both = make(m, "x", 0.1f);
    const chi_delta_part *p = &both->part[0];
    chi_undo u = {0};
    assert_works(chi_delta_new(&d, "made-up", err));
    assert_works(chi_delta_add(d, p->stack, p->layer, p->which, p->n, p->k, p->rank, p->u, p->v, err));
    assert_works(chi_sha256_file(hash, from, err));
    assert_works(chi_export(m, &d, 1, out, "f32", err));
    assert_works(chi_sha256_file(again, from, err));
    assert_string_equal(hash, again);
    e = open_model(out);
    assert_works(chi_delta_apply(d, m, &u, err));
    float *a = down(m), *b = down(e);
    assert_memory_equal(a, b, (size_t)(p->n * p->k) * sizeof *a);
    free(a), free(b);
    chi_delta_undo(&u);
    chi_gguf *x = NULL, *y = NULL;
    size_t n, k;
    int changed = 0;
    assert_works(chi_gguf_open(&x, from, err));
    assert_works(chi_gguf_open(&y, out, err));
    const chi_tensor *s = chi_gguf_tensors(x, &n), *t = chi_gguf_tensors(y, &k);
    assert_int_equal(n, k);
    for (size_t q = 0; q < n; q++) {
      assert_string_equal(s[q].name, t[q].name);
      if (s[q].dtype == t[q].dtype && memcmp(s[q].data, t[q].data, s[q].bytes) == 0) continue;
      changed++;
      assert_int_equal(t[q].dtype, CHI_F32);
      assert_non_null(strstr(t[q].name, "ffn_down"));
    }
    assert_int_equal(changed, 1);
    for (size_t q = 0; chi_gguf_at(x, q); q++) assert_string_equal(chi_gguf_at(x, q)->key, chi_gguf_at(y, q)->key);
    assert_fails(chi_export(m, &d, 1, out, NULL, err), CHI_ERR_ARG, "exists already");
    assert_fails(chi_export(m, &d, 1, tmp_path("b.gguf"), "bf16", err), CHI_ERR_ARG, "f16 or f32");
    if (i == 0) /* rows of q are in rotary order */
      assert_fails(chi_export(m, &both, 1, tmp_path("q.gguf"), NULL, err), CHI_ERR_UNSUPPORTED, "rotary order");
    chi_gguf_close(x);
    chi_gguf_close(y);
    chi_delta_free(d);
    chi_delta_free(both);
    chi_model_free(m);
    chi_model_free(e);
  }
}

static void test_export_fails_whole(void **state) {
  (void)state;
  chi_model *m = open_model(kTiny);
  chi_delta *d = make(m, "x", 0.1f), *b = NULL;
  float *bias = calloc((size_t)m->net.decoder.vocab, sizeof *bias);
  bias[3] = 1;
  const char *dir = tmp_path("x");
  char parent[512];
  snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(dir, '/') - dir), dir);
  int before = count_files(parent);
  assert_fails(chi_export(m, &d, 1, tmp_path("no/such/x"), NULL, err), CHI_ERR_IO, "cannot make");
  assert_works(chi_delta_new(&b, "bias", err));
  assert_works(chi_delta_add(b, CHI_DECODER, 0, CHI_DELTA_HEAD_BIAS, m->net.decoder.vocab, 1, 0, bias, NULL, err));
  assert_fails(chi_export(m, &b, 1, dir, NULL, err), CHI_ERR_UNSUPPORTED, "head_bias"); /* Llama has none */
  assert_int_equal(count_files(parent), before);
  if (chi_file_exists("/dev/full")) assert_fails(chi_delta_save(d, "/dev/full", err), CHI_ERR_IO, "/dev/full");
  free(bias);
  chi_delta_free(b);
  chi_delta_free(d);
  chi_model_free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_bad_files),
      cmocka_unit_test(test_other_models),
      cmocka_unit_test(test_merge),
      cmocka_unit_test(test_export),
      cmocka_unit_test(test_export_gguf),
      cmocka_unit_test(test_export_fails_whole),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

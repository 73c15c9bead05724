/* GGUF: the reader on files made by hand, values of every element type against the gguf package, whole models against
 * transformers' own GGUF loading and against the folders they were made from, vocabularies against the tokenizers
 * library. Regenerate: python tools/ref/gguf_fixtures.py */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/gguf.h"
#include "kernel/kernel.h"
#include "model/model.h"
#include "support/support.h"
#include "sweep/run.h"

#define DIR "tests/fixtures/gguf/"

/* ---- files made by hand ------------------------------------------------------------------------------------------ */
typedef struct maker {
  uint8_t b[4096];
  size_t n;
} maker;

static void bytes(maker *m, const void *p, size_t n) {
  assert_true(m->n + n <= sizeof m->b);
  memcpy(m->b + m->n, p, n);
  m->n += n;
}
static void u32(maker *m, uint32_t v) { bytes(m, &v, sizeof v); }
static void u64(maker *m, uint64_t v) { bytes(m, &v, sizeof v); }
static void str(maker *m, const char *s) {
  u64(m, strlen(s));
  bytes(m, s, strlen(s));
}
static void head(maker *m, uint32_t version, uint64_t tensors, uint64_t keys) {
  m->n = 0;
  bytes(m, "GGUF", 4);
  u32(m, version);
  u64(m, tensors);
  u64(m, keys);
}
static void key(maker *m, const char *name, uint32_t type) {
  str(m, name);
  u32(m, type);
}
static void tensor(maker *m, const char *name, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset) {
  str(m, name);
  u32(m, 2);
  u64(m, d0);
  u64(m, d1);
  u32(m, type);
  u64(m, offset);
}
static void data(maker *m, size_t n) {
  while (m->n % 32) bytes(m, "", 1);
  for (size_t i = 0; i < n; i++) bytes(m, &(uint8_t){(uint8_t)i}, 1);
}

static int open_made(chi_gguf **g, const maker *m, chi_err *err) {
  const char *path = tmp_path("made.gguf");
  put_file(path, m->b, m->n);
  return chi_gguf_open(g, path, err);
}
#define refuse(m, code, words)                         \
  do {                                                 \
    chi_gguf *no = NULL;                               \
    assert_fails(open_made(&no, m, err), code, words); \
    assert_null(no);                                   \
  } while (0)

static void reads_every_value_type(void **state) {
  (void)state;
  chi_gguf *g = NULL;
  maker m;
  static const uint32_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  head(&m, 3, 0, 15);
  for (uint32_t t = 0; t < 13; t++) {
    char name[8];
    if (t == 8 || t == 9) continue;
    snprintf(name, sizeof name, "k%02u", t);
    key(&m, name, t);
    uint64_t v = t == 7 ? 1 : 0xFFFFFFFFFFFFFFFEu;
    double d = -1.5;
    float f = 0.25f;
    bytes(&m, t == 6 ? (void *)&f : t == 12 ? (void *)&d : (void *)&v, sizes[t]);
  }
  key(&m, "text", 8);
  str(&m, "h\xC3\xA9");
  key(&m, "words", 9);
  u32(&m, 8);
  u64(&m, 2);
  str(&m, "one");
  str(&m, "");
  key(&m, "numbers", 9);
  u32(&m, 5);
  u64(&m, 3);
  bytes(&m, (int32_t[]){-1, 0, 7}, 12);
  key(&m, "nested", 9);
  u32(&m, 9);
  u64(&m, 2);
  for (int i = 0; i < 2; i++) {
    u32(&m, 0);
    u64(&m, 1);
    bytes(&m, "\5", 1);
  }
  assert_works(open_made(&g, &m, err));
  assert_int_equal(chi_gguf_count(g), 15);
  int64_t n = 0;
  double x = 0;
  bool b = false;
  const char *s = NULL;
  assert_works(chi_gguf_i64(&n, g, "k00", 0, 300, err));
  assert_int_equal(n, 254);
  assert_works(chi_gguf_i64(&n, g, "k01", -9, 0, err));
  assert_int_equal(n, -2);
  assert_works(chi_gguf_i64(&n, g, "k04", 0, INT64_MAX, err));
  assert_int_equal(n, 4294967294);
  assert_works(chi_gguf_i64(&n, g, "k11", -2, -2, err));
  assert_fails(chi_gguf_i64(&n, g, "k10", 0, INT64_MAX, err), CHI_ERR_FORMAT, "'k10' is above");
  assert_fails(chi_gguf_i64(&n, g, "k03", 0, 5, err), CHI_ERR_FORMAT,
               "'k03' is -2, but must be an integer from 0 to 5");
  assert_fails(chi_gguf_i64(&n, g, "text", 0, 5, err), CHI_ERR_FORMAT, "'text' is a string, but must be an integer");
  assert_fails(chi_gguf_i64(&n, g, "none", 0, 5, err), CHI_ERR_FORMAT, "'none' is missing");
  assert_works(chi_gguf_i64_opt(&n, g, "none", 0, 5, err));
  assert_works(chi_gguf_f64_opt(&x, g, "k06", err));
  assert_true(x == 0.25);
  assert_works(chi_gguf_f64_opt(&x, g, "k12", err));
  assert_true(x == -1.5);
  assert_works(chi_gguf_bool_opt(&b, g, "k07", err));
  assert_true(b);
  assert_fails(chi_gguf_bool_opt(&b, g, "k00", err), CHI_ERR_FORMAT, "must be a bool");
  assert_works(chi_gguf_str_opt(&s, g, "text", err));
  assert_string_equal(s, "h\xC3\xA9");
  const chi_gguf_value *v = NULL;
  assert_works(chi_gguf_strings_opt(&v, g, "words", err));
  const uint8_t *at = v->data;
  size_t len;
  assert_memory_equal(chi_gguf_string(&at, &len), "one", 3);
  assert_int_equal(len, 3);
  chi_gguf_string(&at, &len);
  assert_int_equal(len, 0);
  assert_works(chi_gguf_numbers_opt(&v, g, "numbers", err));
  assert_true(v->n == 3 && chi_gguf_number(v, 0) == -1 && chi_gguf_number(v, 2) == 7);
  assert_fails(chi_gguf_numbers_opt(&v, g, "words", err), CHI_ERR_FORMAT, "must be an array of numbers");
  chi_gguf_close(g);
}

static void reads_tensors_in_c_order(void **state) {
  (void)state;
  chi_gguf *g = NULL;
  maker m;
  size_t n = 0;
  head(&m, 2, 2, 1);
  key(&m, "general.alignment", 4);
  u32(&m, 64);
  tensor(&m, "b", 3, 2, 0, 64);
  tensor(&m, "a", 32, 1, 8, 0);
  while (m.n % 64) bytes(&m, "", 1);
  for (int i = 0; i < 88; i++) bytes(&m, &(uint8_t){(uint8_t)i}, 1);
  assert_works(open_made(&g, &m, err));
  const chi_tensor *t = chi_gguf_tensors(g, &n), *b = chi_gguf_tensor(g, "b");
  assert_int_equal(n, 2);
  assert_string_equal(t[0].name, "a");
  assert_true(t[0].dtype == CHI_Q8_0 && t[0].bytes == 34 && *(const uint8_t *)t[0].data == 0);
  assert_true(b->ndim == 2 && b->dim[0] == 2 && b->dim[1] == 3 && b->bytes == 24 && *(const uint8_t *)b->data == 64);
  assert_null(chi_gguf_tensor(g, "c"));
  chi_gguf_close(g);
}

static void refuses_damaged_files(void **state) {
  (void)state;
  maker m;
  chi_gguf *g = NULL;
  assert_fails(chi_gguf_open(&g, "tests/fixtures/gguf", err), CHI_ERR_IO, "is a folder");
  assert_fails(chi_gguf_open(&g, "tests/test_gguf.c", err), CHI_ERR_FORMAT, "not a GGUF file");
  head(&m, 1, 0, 0);
  refuse(&m, CHI_ERR_UNSUPPORTED, "is GGUF version 1; versions 2 and 3");
  head(&m, 0x03000000, 0, 0);
  refuse(&m, CHI_ERR_UNSUPPORTED, "big-endian");
  head(&m, 3, 0, 0);
  m.n -= 5;
  refuse(&m, CHI_ERR_FORMAT, "ends inside the header");
  head(&m, 3, 0, (uint64_t)1 << 60);
  refuse(&m, CHI_ERR_FORMAT, "declares 1152921504606846976 metadata keys in 0 bytes");
  head(&m, 3, (uint64_t)1 << 40, 0);
  refuse(&m, CHI_ERR_FORMAT, "declares 1099511627776 tensors");
  head(&m, 3, 0, 1);
  key(&m, "some.key", 13);
  u64(&m, 0);
  refuse(&m, CHI_ERR_FORMAT, "key 'some.key' has value type 13");
  head(&m, 3, 0, 1);
  key(&m, "some.key", 8);
  u64(&m, UINT64_MAX - 3);
  refuse(&m, CHI_ERR_FORMAT, "key 'some.key': a string of 18446744073709551612 bytes where 0 are left");
  head(&m, 3, 0, 1);
  key(&m, "some.key", 9);
  u32(&m, 10);
  u64(&m, (uint64_t)1 << 61); /* times 8 wraps around */
  refuse(&m, CHI_ERR_FORMAT, "key 'some.key' has 2305843009213693952 elements");
  head(&m, 3, 0, 1);
  str(&m, "deep");
  for (int i = 0; i < 9; i++) {
    u32(&m, 9);
    if (i) u64(&m, 1);
  }
  for (int i = 0; i < 4; i++) u64(&m, 0);
  refuse(&m, CHI_ERR_FORMAT, "key 'deep': arrays are nested too deep");
  head(&m, 3, 0, 2);
  for (int i = 0; i < 2; i++) {
    key(&m, "twice", 0);
    bytes(&m, "\1", 1);
  }
  refuse(&m, CHI_ERR_FORMAT, "key 'twice' is there twice");
  head(&m, 3, 0, 1);
  key(&m, "a\nb", 0);
  bytes(&m, "\1", 1);
  refuse(&m, CHI_ERR_FORMAT, "metadata key 0 has an empty, overlong or unprintable name");
  head(&m, 3, 0, 1);
  key(&m, "flag", 7);
  bytes(&m, "\2\0\0\0", 4);
  refuse(&m, CHI_ERR_FORMAT, "key 'flag' is a bool of value 2");
  head(&m, 3, 0, 1);
  key(&m, "general.alignment", 4);
  u32(&m, 24);
  refuse(&m, CHI_ERR_FORMAT, "'general.alignment' is 24, not a power of two");
}

static void refuses_bad_tensors(void **state) {
  (void)state;
  static const struct {
    uint64_t d0, d1;
    uint32_t type;
    uint64_t offset;
    int code;
    const char *words;
  } bad[] = {
      {32, 1, 10, 0, CHI_ERR_UNSUPPORTED, "tensor 'second' has type 10 (Q2_K); read are F32"},
      {32, 1, 4000, 0, CHI_ERR_UNSUPPORTED, "tensor 'second' has type 4000 (unknown)"},
      {48, 1, 8, 32, CHI_ERR_FORMAT, "tensor 'second': rows of 48 are not whole blocks of Q8_0 (32)"},
      {0, 1, 0, 32, CHI_ERR_FORMAT, "tensor 'second': dimension 0 is 0"},
      {(uint64_t)1 << 40, (uint64_t)1 << 40, 0, 32, CHI_ERR_FORMAT, "tensor 'second': dimension 1 is 1099511627776"},
      {4, 1, 0, 16, CHI_ERR_FORMAT, "tensor 'second' begins at byte 16 of the data, not a multiple of 32"},
      {4, 1, 0, 0, CHI_ERR_FORMAT, "tensors 'first' and 'second' overlap"},
      {4, 100, 0, 32, CHI_ERR_FORMAT, "tensor 'second' needs bytes 32 to 1632 of the data"},
      {4, 1, 0, ~(uint64_t)31, CHI_ERR_FORMAT, "tensor 'second' needs bytes 18446744073709551584"},
  };
  maker m;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    head(&m, 3, 2, 0);
    tensor(&m, "first", 4, 1, 0, 0);
    tensor(&m, "second", bad[i].d0, bad[i].d1, bad[i].type, bad[i].offset);
    data(&m, 128);
    refuse(&m, bad[i].code, bad[i].words);
  }
  head(&m, 3, 2, 0);
  tensor(&m, "first", 4, 1, 0, 0);
  tensor(&m, "first", 4, 1, 0, 32);
  data(&m, 128);
  refuse(&m, CHI_ERR_FORMAT, "tensor 'first' is there twice");
  head(&m, 3, 1, 0);
  str(&m, "cube");
  u32(&m, 5);
  data(&m, 128);
  refuse(&m, CHI_ERR_FORMAT, "tensor 'cube' has 5 dimensions");
}

/* Every prefix of a real file is refused with one line. */
static void refuses_every_cut(void **state) {
  (void)state;
  char *all = NULL;
  size_t n = 0;
  const char *path = tmp_path("cut.gguf");
  assert_works(chi_read_file(&all, &n, DIR "llama-q8_0.gguf", 1 << 20, err));
  for (size_t cut = 1; cut < n; cut += cut < 700 ? 1 : 997) {
    chi_gguf *g = NULL;
    chi_err e = {0};
    put_file(path, all, cut);
    assert_true(chi_gguf_open(&g, path, &e) < 0);
    assert_null(g);
    assert_true(e.text[0] && !strchr(e.text, '\n'));
  }
  chi_free(all);
}

/* ---- element types ----------------------------------------------------------------------------------------------*/
static void values_are_those_of_the_gguf_package(void **state) {
  (void)state;
  chi_gguf *g = NULL;
  chi_st *want = NULL;
  size_t n = 0;
  assert_works(chi_gguf_open(&g, DIR "quants.gguf", err));
  assert_works(chi_st_open(&want, DIR "quants.safetensors", err));
  const chi_tensor *t = chi_gguf_tensors(g, &n);
  assert_int_equal(n, 11);
  for (size_t i = 0; i < n; i++) {
    float got[1024];
    const chi_tensor *w = chi_st_find(want, t[i].name);
    assert_string_equal(chi_dtype_name(t[i].dtype), t[i].name);
    assert_true(w && w->bytes == sizeof got && t[i].dim[0] == 2 && t[i].dim[1] == 512);
    assert_works(chi_to_f32(got, t[i].data, t[i].dtype, 1024, err));
    if (memcmp(got, w->data, sizeof got) != 0) fail_msg("%s: other bits than the gguf package", t[i].name);
  }
  float one[32];
  assert_fails(chi_to_f32(one, t[0].data, CHI_Q4_K, 32, err), CHI_ERR_ARG, "not whole blocks of Q4_K");
  chi_st_close(want);
  chi_gguf_close(g);
}

/* A matrix packed from blocks holds what the same matrix packed from its f32 values holds. */
static void packing_blocks_is_packing_their_values(void **state) {
  (void)state;
  chi_gguf *g = NULL;
  size_t count = 0;
  assert_works(chi_gguf_open(&g, DIR "quants.gguf", err));
  const chi_tensor *t = chi_gguf_tensors(g, &count);
  enum { N = 35, K = 512 };
  static float wide[N * K], a[N * K], b[N * K];
  for (size_t i = 0; i < count; i++) {
    size_t row = chi_dtype_bytes(t[i].dtype, K);
    uint8_t *rows = malloc(N * row);
    for (size_t r = 0; r < N; r++) memcpy(rows + r * row, (const uint8_t *)t[i].data + r % 2 * row, row);
    assert_works(chi_to_f32(wide, rows, t[i].dtype, N * K, err));
    for (int c = 0; c < 2; c++) {
      chi_mat x, y;
      assert_works(chi_mat_pack(&x, rows, t[i].dtype, N, K, K, (chi_compute)c, err));
      assert_works(chi_mat_pack(&y, wide, CHI_F32, N, K, K, (chi_compute)c, err));
      chi_mat_read(&x, 0, N, a);
      chi_mat_read(&y, 0, N, b);
      if (memcmp(a, b, sizeof a) != 0) fail_msg("%s, compute %d: packed otherwise", t[i].name, c);
      chi_mat_free(&x);
      chi_mat_free(&y);
    }
    free(rows);
  }
  chi_mat x;
  assert_fails(chi_mat_pack(&x, wide, CHI_Q8_0, 2, 48, 48, CHI_COMPUTE_F32, err), CHI_ERR_ARG, "not whole blocks");
  chi_gguf_close(g);
}

/* ---- models ---------- */
typedef struct logits {
  float *v;
  int64_t width;
} logits;

static int receive(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  logits *l = ud;
  (void)capture;
  l->width = width;
  memcpy(l->v + i * width, v, (size_t)width * sizeof *v);
  return 0;
}

/* Logits of all rows; caller: free. */
static float *run(const chi_model *m, const int32_t *ids, int32_t n, const float *pixels, int32_t image_row) {
  chi_plan *plan = NULL;
  int root;
  int32_t rows[64];
  logits l = {.v = calloc((size_t)n * (size_t)m->net.decoder.vocab, sizeof(float))};
  chi_input in = {.tokens = ids, .n_rows = n, .pixels = pixels, .image_row = image_row};
  assert_true(n <= 64);
  for (int32_t i = 0; i < n; i++) rows[i] = i;
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {.stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = n};
  assert_works(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.on_capture = receive, .ud = &l};
  assert_works(chi_run_plan(&m->net, plan, &o, err));
  chi_plan_free(plan);
  return l.v;
}

static void agrees_with_transformers(void **state) {
  (void)state;
  static const char *const kinds[] = {"f16", "q8_0"};
  chi_st *want = NULL;
  assert_works(chi_st_open(&want, DIR "llama.safetensors", err));
  const chi_tensor *ids = chi_st_find(want, "input_ids");
  for (int k = 0; k < 2; k++) {
    char name[96];
    chi_model *m = NULL;
    snprintf(name, sizeof name, DIR "llama-%s.gguf", kinds[k]);
    assert_works(chi_model_open(&m, name, CHI_DTYPE_F32, err));
    assert_true(m->stored == (k ? CHI_Q8_0 : CHI_F16) && m->n_eos == 1 && m->eos[0] == 2);
    assert_string_equal(m->family, "llama");
    float *got = run(m, ids->data, (int32_t)ids->dim[0], NULL, -1);
    snprintf(name, sizeof name, "%s.logits", kinds[k]);
    const chi_tensor *w = chi_st_find(want, name);
    double top = 0;
    for (size_t i = 0; i < w->bytes / 4; i++) top = fmax(top, fabs((double)(got[i] - ((const float *)w->data)[i])));
    if (!(top <= 1e-4)) fail_msg("%s: logits differ from transformers by %g", kinds[k], top);
    free(got);
    chi_model_free(m);
  }
  chi_st_close(want);
}

/* The same weights under two sets of names: the same bits, and the same tokens. */
static void gives_the_bits_of_the_folder(void **state) {
  (void)state;
  static const struct {
    const char *gguf, *mmproj, *folder, *family;
    int32_t rows;
  } pairs[] = {{"qwen2.gguf", NULL, "tiny-qwen2", "qwen2", 5}, /* its window, which GGUF lacks, holds five */
               {"phi2.gguf", NULL, "tiny-phi", "phi", 12},
               {"gpt2.gguf", NULL, "tiny-gpt2", "gpt2", 12},
               {"llava.gguf", DIR "llava-mmproj.gguf", "tiny-liuhaotian", "llava", 12}};
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    char path[192], folder[128];
    chi_model *a = NULL, *b = NULL;
    chi_st *states = NULL;
    snprintf(path, sizeof path, DIR "%s", pairs[i].gguf);
    snprintf(folder, sizeof folder, "tests/fixtures/%s", pairs[i].folder);
    assert_works(chi_model_open_with(&a, path, pairs[i].mmproj, CHI_DTYPE_F32, err));
    assert_works(chi_model_open(&b, folder, CHI_DTYPE_F32, err));
    assert_string_equal(a->family, pairs[i].family);
    assert_int_equal(a->params, b->params);
    snprintf(path, sizeof path, "%s/states.safetensors", folder);
    assert_works(chi_st_open(&states, path, err));
    const chi_tensor *id = chi_st_find(states, "input_ids"), *pix = chi_st_find(states, "pixel_values");
    int32_t ids[64], n = pairs[i].rows, image_row = -1;
    for (int32_t k = n - 1; k >= 0; k--) {
      ids[k] = id->dtype == CHI_I64 ? (int32_t)((const int64_t *)id->data)[k] : ((const int32_t *)id->data)[k];
      if (pix && (ids[k] < 0 || ids[k] == b->image_token)) image_row = k;
    }
    float *x = run(a, ids, n, pix ? pix->data : NULL, image_row),
          *y = run(b, ids, n, pix ? pix->data : NULL, image_row);
    for (int64_t k = 0; k < n * (int64_t)a->net.decoder.vocab; k++)
      if (memcmp(&x[k], &y[k], sizeof *x) != 0)
        fail_msg("%s: logit %lld of row %lld is %.9g, %.9g in the folder", pairs[i].gguf,
                 (long long)(k % a->net.decoder.vocab), (long long)(k / a->net.decoder.vocab), (double)x[k],
                 (double)y[k]);
    static const char text[] = "The people's 17 yellow circles,\nfrom 1969 to 2026. It's <image>";
    chi_tokens ta = {0}, tb = {0};
    assert_works(chi_encode(a->tok, text, strlen(text), true, &ta, err));
    assert_works(chi_encode(b->tok, text, strlen(text), true, &tb, err));
    assert_int_equal(ta.n, tb.n);
    assert_memory_equal(ta.id, tb.id, ta.n * sizeof *ta.id);
    chi_tokens_free(&ta);
    chi_tokens_free(&tb);
    free(x);
    free(y);
    chi_st_close(states);
    chi_model_free(a);
    chi_model_free(b);
  }
}

static void hash_is_that_of_the_file(void **state) {
  (void)state;
  char hex[65];
  chi_model *m = NULL;
  assert_works(chi_model_open(&m, DIR "qwen2.gguf", CHI_DTYPE_BF16, err));
  assert_works(chi_model_hash(m, err));
  assert_works(chi_sha256_file(hex, DIR "qwen2.gguf", err));
  assert_string_equal(m->hash, hex);
  chi_model_free(m);
}

static void names_what_a_model_lacks(void **state) {
  (void)state;
  chi_model *m = NULL;
  assert_fails(chi_model_open(&m, DIR "llava-mmproj.gguf", CHI_DTYPE_F32, err), CHI_ERR_UNSUPPORTED,
               "general.architecture is 'clip'");
  assert_fails(chi_model_open(&m, DIR "spm.gguf", CHI_DTYPE_F32, err), CHI_ERR_FORMAT,
               "key 'llama.embedding_length' is missing");
  assert_fails(chi_model_open_with(&m, "tests/fixtures/tiny-gpt2", DIR "llava-mmproj.gguf", CHI_DTYPE_F32, err),
               CHI_ERR_ARG, "is no GGUF file");
  assert_fails(chi_model_open_with(&m, DIR "llava.gguf", DIR "gpt2.gguf", CHI_DTYPE_F32, err), CHI_ERR_FORMAT,
               "general.architecture is 'gpt2'; a vision file (--mmproj) is 'clip'");
  assert_fails(chi_model_open(&m, DIR "absent.gguf", CHI_DTYPE_F32, err), CHI_ERR_IO, "no such file");
  /* One letter of a name changed. */
  static const struct {
    const char *from, *to, *words;
    int code;
  } edits[] = {
      {"blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "tensor 'blk.1.ffn_up.weight' is missing", CHI_ERR_FORMAT},
      {"output_norm.weight", "output_morn.weight", "tensor 'output_norm.weight' is missing", CHI_ERR_FORMAT},
      {"blk.1.ffn_up.weight", "blk.9.ffn_up.weight", "tensor 'blk.1.ffn_up.weight' is missing", CHI_ERR_FORMAT},
      {"llama.block_count", "llama.block_cound", "key 'llama.block_count' is missing", CHI_ERR_FORMAT},
      {"tokenizer.ggml.merges", "tokenizer.ggml.merged", "'tokenizer.ggml.merges' is missing", CHI_ERR_FORMAT},
      {"gpt-2", "gpt-3", "tokenizer.ggml.pre is 'gpt-3'; known are gpt-2", CHI_ERR_UNSUPPORTED},
      {"gpt2", "gpt3", "tokenizer.ggml.model is 'gpt3'; known are gpt2 and llama", CHI_ERR_UNSUPPORTED}};
  for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
    char *all = NULL;
    size_t n = 0, len = strlen(edits[i].from), at = 0;
    assert_works(chi_read_file(&all, &n, DIR "llama-q8_0.gguf", 1 << 20, err));
    while (memcmp(all + at, edits[i].from, len) != 0) assert_true(++at + len < n);
    memcpy(all + at, edits[i].to, len);
    put_file(tmp_path("edited.gguf"), all, n);
    chi_free(all);
    assert_fails(chi_model_open(&m, tmp_path("edited.gguf"), CHI_DTYPE_F32, err), edits[i].code, edits[i].words);
  }
}

/* ---- vocabularies ---------- */
static void tokens_are_those_of_the_tokenizers_library(void **state) {
  (void)state;
  json_t *root = NULL, *line, *file;
  const char *name;
  assert_works(chi_json_load(&root, DIR "tokens.json", 1 << 20, err));
  const json_t *lines = json_object_get(root, "lines");
  json_object_foreach(json_object_get(root, "files"), name, file) {
    char path[96];
    size_t k;
    chi_gguf *g = NULL;
    chi_tokenizer *t = NULL;
    snprintf(path, sizeof path, DIR "%s.gguf", name);
    assert_works(chi_gguf_open(&g, path, err));
    assert_works(chi_tokenizer_from_gguf(&t, g, err));
    chi_gguf_close(g);
    assert_true(chi_token_bos(t) == 1 && chi_token_eos(t) == 2);
    json_array_foreach(file, k, line) {
      const json_t *ids = json_array_get(line, 0), *text = json_array_get(lines, k);
      chi_tokens got = {0};
      char *back = NULL;
      assert_works(chi_encode(t, json_string_value(text), json_string_length(text), true, &got, err));
      bool same = got.n == json_array_size(ids);
      for (size_t i = 0; same && i < got.n; i++) same = got.id[i] == json_integer_value(json_array_get(ids, i));
      if (!same) fail_msg("%s: other ids for \"%s\"", name, json_string_value(text));
      assert_works(chi_decode(t, got.id, got.n, false, &back, err));
      assert_string_equal(back, json_string_value(json_array_get(line, 1)));
      chi_free(back);
      chi_tokens_free(&got);
    }
    chi_tokenizer_free(t);
  }
  json_decref(root);
}

/* ---- a real model ---------- */
#define SMOL "models/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

static void smollm2_agrees_with_transformers(void **state) {
  (void)state;
  if (!chi_file_exists(SMOL)) {
    print_message(SMOL " is absent: scripts/get_models.sh (or make models) fetches it\n");
    skip();
  }
  chi_model *m = NULL;
  chi_st *want = NULL;
  assert_works(chi_model_open(&m, SMOL, CHI_DTYPE_F32, err));
  assert_works(chi_st_open(&want, "tests/fixtures/smollm2/logits.safetensors", err));
  for (int i = 0; i < 3; i++) {
    char name[16];
    snprintf(name, sizeof name, "%d.prompt", i);
    const char *prompt = chi_st_meta(want, name);
    snprintf(name, sizeof name, "%d.ids", i);
    const chi_tensor *ids = chi_st_find(want, name);
    snprintf(name, sizeof name, "%d.index", i);
    const chi_tensor *index = chi_st_find(want, name);
    snprintf(name, sizeof name, "%d.logits", i);
    const chi_tensor *ref = chi_st_find(want, name);
    chi_tokens t = {0};
    assert_works(chi_encode(m->tok, prompt, strlen(prompt), true, &t, err));
    assert_int_equal(t.n, ids->dim[0]);
    assert_memory_equal(t.id, ids->data, ids->bytes);
    float *got = run(m, t.id, (int32_t)t.n, NULL, -1);
    const float *last = got + (t.n - 1) * (size_t)m->net.decoder.vocab;
    double top = 0;
    for (int64_t k = 0; k < index->dim[0]; k++)
      top = fmax(top, fabs((double)(last[((const int32_t *)index->data)[k]] - ((const float *)ref->data)[k])));
    print_message("prompt %d: %lld logits, worst difference %.1e\n", i, (long long)index->dim[0], top);
    if (!(top <= 1e-3)) fail_msg("prompt %d: first-token logits differ from transformers by %g", i, top);
    free(got);
    chi_tokens_free(&t);
  }
  chi_st_close(want);
  chi_model_free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_every_value_type),
      cmocka_unit_test(reads_tensors_in_c_order),
      cmocka_unit_test(refuses_damaged_files),
      cmocka_unit_test(refuses_bad_tensors),
      cmocka_unit_test(refuses_every_cut),
      cmocka_unit_test(values_are_those_of_the_gguf_package),
      cmocka_unit_test(packing_blocks_is_packing_their_values),
      cmocka_unit_test(agrees_with_transformers),
      cmocka_unit_test(gives_the_bits_of_the_folder),
      cmocka_unit_test(hash_is_that_of_the_file),
      cmocka_unit_test(names_what_a_model_lacks),
      cmocka_unit_test(tokens_are_those_of_the_tokenizers_library),
      cmocka_unit_test(smollm2_agrees_with_transformers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

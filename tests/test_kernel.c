/* Matrix products: packing, the canonical order of operations, and the same bits for every instruction set, number of
 * threads, number of rows and order of rows. The reference below is written from docs/arithmetic.md, not from kernel/.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/kernel.h"

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512-bf16", "amx"};
static const int widths[] = {1, 2, 3, 5, 8};

static uint64_t state = 1;
static uint32_t next(void) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)(state >> 32);
}
static float uniform(void) { return (float)(next() >> 8) * 0x1p-23f - 1.0f; }

/* Mostly ordinary values; some zeros, denormals, and values whose products are denormal. */
static float awkward(void) {
  switch (next() % 64) {
    case 0:
      return 0.0f;
    case 1:
      return -0.0f;
    case 2:
      return uniform() * 1e-39f;
    case 3:
      return uniform() * 1e-20f;
    case 4:
      return uniform() * 1e4f;
    default:
      return uniform();
  }
}

static float *array(size_t n) {
  float *p = malloc((n + 1) * sizeof *p);
  assert_non_null(p);
  for (size_t i = 0; i < n; i++) p[i] = awkward();
  return p;
}

static float bf16(float x) { return chi_f32_from_bf16(chi_bf16_from_f32(x)); }

/* One output of the canonical product: x and w are k long with the given strides. */
static float canonical(chi_compute compute, const float *x, int64_t sx, const float *w, int64_t sw, int64_t k) {
  float acc = 0.0f;
  if (compute == CHI_COMPUTE_F32) {
    for (int64_t b = 0; b < k; b += 256) {
      float s = 0.0f;
      for (int64_t i = b; i < k && i < b + 256; i++) s = fmaf(x[i * sx], w[i * sw], s);
      acc = b == 0 ? s : acc + s;
    }
    return acc;
  }
  for (int64_t b = 0; b < k; b += 32) {
    float e = 0.0f, o = 0.0f;
    for (int64_t i = b; i < b + 32; i += 2) {
      e = fmaf(i < k ? bf16(x[i * sx]) : 0.0f, i < k ? bf16(w[i * sw]) : 0.0f, e);
      o = fmaf(i + 1 < k ? bf16(x[(i + 1) * sx]) : 0.0f, i + 1 < k ? bf16(w[(i + 1) * sw]) : 0.0f, o);
    }
    acc = acc + (e + o);
  }
  return acc;
}

typedef struct problem {
  int64_t m, n, k, ld; /* ld: row stride of the source weights */
  chi_compute compute;
  chi_dtype store;
  float *x, *w, *bias, *y, *dy, *dx; /* w: values of the source as f32 [n][k]; y, dx: the reference */
  void *src;                         /* w in the source's type, [n][ld] */
} problem;

static void make_problem(problem *p) {
  size_t size = chi_dtype_size(p->store), wn = (size_t)(p->n * p->k);
  p->ld = p->k + 3;
  p->x = array((size_t)(p->m * p->k));
  p->w = array(wn);
  p->bias = array((size_t)p->n);
  p->dy = array((size_t)(p->m * p->n));
  p->y = malloc((size_t)(p->m * p->n) * sizeof(float));
  p->dx = malloc((size_t)(p->m * p->k) * sizeof(float));
  p->src = calloc((size_t)(p->n * p->ld), size);
  for (size_t i = 0; i < wn; i++) {
    size_t at = i / (size_t)p->k * (size_t)p->ld + i % (size_t)p->k;
    float v = p->w[i];
    double d = (double)v;
    uint16_t h = p->store == CHI_F16 ? chi_f16_from_f32(v) : chi_bf16_from_f32(v);
    if (p->store == CHI_F32) memcpy((char *)p->src + at * size, &v, size);
    if (p->store == CHI_F64) memcpy((char *)p->src + at * size, &d, size);
    if (size == 2) memcpy((char *)p->src + at * size, &h, size);
    if (p->store == CHI_F16) p->w[i] = chi_f32_from_f16(h);
    if (p->store == CHI_BF16) p->w[i] = chi_f32_from_bf16(h);
  }
  unsigned saved = chi_fp_begin();
  for (int64_t i = 0; i < p->m; i++) {
    for (int64_t j = 0; j < p->n; j++)
      p->y[i * p->n + j] = canonical(p->compute, p->x + i * p->k, 1, p->w + j * p->k, 1, p->k) + p->bias[j];
    for (int64_t j = 0; j < p->k; j++)
      p->dx[i * p->k + j] = canonical(p->compute, p->dy + i * p->n, 1, p->w + j, p->k, p->n);
  }
  chi_fp_end(saved);
}

static void free_problem(problem *p) {
  free(p->x);
  free(p->w);
  free(p->bias);
  free(p->y);
  free(p->dy);
  free(p->dx);
  free(p->src);
}

static void same_bits(const char *what, const float *got, const float *want, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (memcmp(got + i, want + i, sizeof *got) != 0)
      fail_msg("%s: element %lld is %a, want %a (%s, %d threads)", what, (long long)i, (double)got[i], (double)want[i],
               chi_isa_name(chi_cpu_isa()), chi_threads());
}

static void pack(chi_mat *w, const problem *p) {
  assert_int_equal(chi_mat_pack(w, p->src, p->store, p->n, p->k, p->ld, p->compute, NULL), 0);
}

static void check_product(const problem *p, int width) {
  chi_mat w;
  chi_set_threads(width);
  pack(&w, p);
  float *y = malloc((size_t)(p->m * p->n) * sizeof *y), *dx = malloc((size_t)(p->m * p->k) * sizeof *dx);
  assert_int_equal(chi_gemm(&w, p->x, p->k, y, p->n, p->m, p->bias, NULL), 0);
  same_bits("x W^T + b", y, p->y, p->m * p->n);
  assert_int_equal(chi_gemm_t(&w, p->dy, p->n, dx, p->k, p->m, NULL), 0);
  same_bits("dy W", dx, p->dx, p->m * p->k);
  free(y);
  free(dx);
  chi_mat_free(&w);
}

static const struct {
  chi_compute compute;
  chi_dtype store;
} kinds[] = {{CHI_COMPUTE_F32, CHI_F32},   {CHI_COMPUTE_F32, CHI_F16},  {CHI_COMPUTE_F32, CHI_BF16},
             {CHI_COMPUTE_F32, CHI_F64},   {CHI_COMPUTE_BF16, CHI_F32}, {CHI_COMPUTE_BF16, CHI_F16},
             {CHI_COMPUTE_BF16, CHI_BF16}, {CHI_COMPUTE_BF16, CHI_F64}};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void test_canonical(void **unused) {
  (void)unused;
  static const int64_t shapes[][3] = {{1, 1, 1},      {1, 33, 31},    {2, 32, 32},   {3, 31, 33},
                                      {5, 64, 256},   {7, 5, 257},    {13, 40, 100}, {25, 96, 517},
                                      {4, 130, 1030}, {100, 33, 600}, {200, 37, 65}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (size_t q = 0; q < KINDS; q++) {
      problem p = {.m = shapes[s][0],
                   .n = shapes[s][1],
                   .k = shapes[s][2],
                   .compute = kinds[q].compute,
                   .store = kinds[q].store};
      make_problem(&p);
      for (size_t i = 0; i < 3; i++) {
        if (chi_cpu_init(isas[i], NULL) != 0) continue;
        check_product(&p, widths[(s + q) % 5]);
      }
      free_problem(&p);
    }
}

static void test_threads(void **unused) {
  (void)unused;
  for (size_t q = 0; q < KINDS; q += 5) { /* f32 and bf16 compute */
    problem p = {.m = 37, .n = 300, .k = 290, .compute = kinds[q].compute, .store = kinds[q].store};
    make_problem(&p);
    for (size_t i = 0; i < 3; i++)
      for (size_t t = 0; t < 5; t++)
        if (chi_cpu_init(isas[i], NULL) == 0) check_product(&p, widths[t]);
    free_problem(&p);
  }
}

/* Every number of rows, any subset in any order: a row's bits are its own. */
static void test_rows(void **unused) {
  (void)unused;
  enum { M = 97, N = 45, K = 270 };
  chi_set_threads(2);
  for (size_t q = 0; q < KINDS; q += 5)
    for (size_t i = 0; i < 3; i++) {
      if (chi_cpu_init(isas[i], NULL) != 0) continue;
      problem p = {.m = M, .n = N, .k = K, .compute = kinds[q].compute, .store = kinds[q].store};
      make_problem(&p);
      chi_mat w;
      pack(&w, &p);
      static float y[M * N], dx[M * K];
      for (int64_t m = 1; m <= M; m++) {
        if (i == 0 && m % 16 != 1) continue; /* portable is slow */
        assert_int_equal(chi_gemm(&w, p.x, K, y, N, m, p.bias, NULL), 0);
        same_bits("first rows", y, p.y, m * N);
        assert_int_equal(chi_gemm_t(&w, p.dy, N, dx, K, m, NULL), 0);
        same_bits("first rows of dx", dx, p.dx, m * K);
      }
      int32_t idx[M];
      for (int32_t r = 0; r < M; r++) idx[r] = r * 31 % M;
      assert_int_equal(chi_gemm_gather(&w, p.x, K, idx, y, N, M, p.bias, NULL), 0);
      for (int64_t r = 0; r < M; r++) same_bits("permuted rows", y + r * N, p.y + idx[r] * N, N);
      assert_int_equal(chi_gemm_gather(&w, p.x, K, idx + 5, y, N, 14, p.bias, NULL), 0);
      for (int64_t r = 0; r < 14; r++) same_bits("a subset of rows", y + r * N, p.y + idx[r + 5] * N, N);
      chi_mat_free(&w);
      free_problem(&p);
    }
}

/* NaN and Inf stay in the row that they came in with, and in y's own columns. */
static void test_nan_rows(void **unused) {
  (void)unused;
  enum { M = 30, N = 40, K = 300, LDY = N + 5 };
  for (size_t q = 0; q < KINDS; q += 5)
    for (size_t i = 0; i < 3; i++) {
      if (chi_cpu_init(isas[i], NULL) != 0) continue;
      problem p = {.m = M, .n = N, .k = K, .compute = kinds[q].compute, .store = kinds[q].store};
      make_problem(&p);
      chi_mat w;
      pack(&w, &p);
      for (int64_t k = 0; k < K; k++) p.x[7 * K + k] = k % 2 ? NAN : INFINITY;
      static float y[M * LDY];
      for (int64_t r = 0; r < M * LDY; r++) y[r] = 12345.0f;
      assert_int_equal(chi_gemm(&w, p.x, K, y, LDY, M, p.bias, NULL), 0);
      for (int64_t r = 0; r < M; r++) {
        if (r != 7) same_bits("neighbours of a NaN row", y + r * LDY, p.y + r * N, N);
        for (int64_t n = 0; n < LDY; n++) {
          if (r == 7 && n < N) assert_true(isnan(y[r * LDY + n]));
          if (n >= N) assert_true(y[r * LDY + n] == 12345.0f);
        }
      }
      chi_mat_free(&w);
      free_problem(&p);
    }
}

static void test_against_double(void **unused) {
  (void)unused;
  enum { M = 9, N = 50, K = 700 };
  float *x = malloc(sizeof(float) * M * K), *w = malloc(sizeof(float) * N * K), *y = malloc(sizeof(float) * M * N);
  for (int i = 0; i < M * K; i++) x[i] = uniform();
  for (int i = 0; i < N * K; i++) w[i] = uniform();
  chi_cpu_init(NULL, NULL);
  for (int c = 0; c < 2; c++) {
    chi_mat m;
    assert_int_equal(chi_mat_pack(&m, w, CHI_F32, N, K, K, c ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32, NULL), 0);
    assert_int_equal(chi_gemm(&m, x, K, y, N, M, NULL, NULL), 0);
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) {
        double s = 0;
        for (int k = 0; k < K; k++)
          s +=
              c ? (double)bf16(x[i * K + k]) * (double)bf16(w[j * K + k]) : (double)x[i * K + k] * (double)w[j * K + k];
        assert_true(fabs((double)y[i * N + j] - s) < 2e-5);
      }
    chi_mat_free(&m);
  }
  free(x);
  free(w);
  free(y);
}

static void test_pack_read(void **unused) {
  (void)unused;
  for (size_t q = 0; q < KINDS; q++) {
    problem p = {.m = 1, .n = 71, .k = 45, .compute = kinds[q].compute, .store = kinds[q].store};
    make_problem(&p);
    chi_mat w;
    pack(&w, &p);
    assert_int_equal(w.n, p.n);
    assert_int_equal(w.k, p.k);
    assert_int_equal(w.bytes, (p.compute == CHI_COMPUTE_BF16
                                   ? 96 * 64 * 2
                                   : 96 * 45 * (kinds[q].store == CHI_F16 || kinds[q].store == CHI_BF16 ? 2 : 4)));
    float *back = malloc((size_t)(p.n * p.k) * sizeof *back);
    chi_mat_read(&w, 0, 5, back);
    chi_mat_read(&w, 5, p.n - 5, back + 5 * p.k);
    for (int64_t i = 0; i < p.n * p.k; i++) {
      float want = p.compute == CHI_COMPUTE_BF16 ? bf16(p.w[i]) : p.w[i];
      if (p.store == CHI_F64 && fabsf(want) < 1.2e-38f) continue; /* narrowed with flush to zero */
      same_bits("packed and read", back + i, &want, 1);
    }
    free(back);
    chi_mat_free(&w);
    free_problem(&p);
  }
}

/* All 65536 halves widen as the F16C unit widens them (NaN payloads aside). */
static void test_f16_widening(void **unused) {
  (void)unused;
  enum { N = 1024, K = 64 };
  uint16_t *src = malloc(sizeof *src * N * K);
  for (int i = 0; i < N * K; i++) src[i] = (uint16_t)i;
  chi_mat w;
  assert_int_equal(chi_mat_pack(&w, src, CHI_F16, N, K, K, CHI_COMPUTE_F32, NULL), 0);
  float *y = malloc(sizeof *y * K * N), *eye = calloc(K * K, sizeof *eye);
  for (size_t i = 0; i < 3; i++) {
    if (chi_cpu_init(isas[i], NULL) != 0) continue;
    for (int k = 0; k < K; k++) { /* one input at a time, the others would add NaN * 0 */
      for (int j = 0; j < K * K; j++) eye[j] = 0.0f;
      eye[k] = 1.0f;
      if (i == 0 && k % 8 != 0) continue;
      assert_int_equal(chi_gemm(&w, eye, K, y, N, 1, NULL, NULL), 0);
      for (int n = 0; n < N; n++) {
        bool finite_row = true;
        for (int j = 0; j < K; j++) finite_row = finite_row && isfinite(chi_f32_from_f16(src[n * K + j]));
        float want = chi_f32_from_f16(src[n * K + k]);
        if (finite_row && want != 0.0f) same_bits("f16", y + n, &want, 1);
      }
    }
  }
  free(y);
  free(eye);
  free(src);
  chi_mat_free(&w);
}

static void test_isa_choice(void **unused) {
  (void)unused;
  chi_err err = {0};
  assert_int_equal(chi_cpu_init("sse9", &err), CHI_ERR_ARG);
  assert_non_null(strstr(err.text, "sse9"));
  err = (chi_err){0};
  if (!chi_isa_available(CHI_ISA_AMX)) assert_int_equal(chi_cpu_init("amx", &err), CHI_ERR_UNSUPPORTED);
  assert_int_equal(chi_cpu_init("portable", NULL), 0);
  assert_int_equal(chi_cpu_isa(), CHI_ISA_PORTABLE);
  assert_int_equal(chi_cpu_init(NULL, NULL), 0);
  for (int i = 0; i < CHI_ISA_COUNT; i++) assert_true(!chi_isa_available((chi_isa)i) || i <= (int)chi_cpu_isa());
}

static void test_bad_input(void **unused) {
  (void)unused;
  chi_mat m;
  chi_err err = {0};
  int32_t ints[4] = {0};
  float f[4] = {0};
  assert_int_equal(chi_mat_pack(&m, ints, CHI_I32, 2, 2, 2, CHI_COMPUTE_F32, &err), CHI_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.text, "I32"));
  err = (chi_err){0};
  assert_int_equal(chi_mat_pack(&m, f, CHI_F32, 0, 2, 2, CHI_COMPUTE_F32, &err), CHI_ERR_ARG);
  assert_int_equal(chi_mat_pack(&m, f, CHI_F32, 2, 2, 1, CHI_COMPUTE_F32, NULL), CHI_ERR_ARG);
  assert_int_equal(
      chi_mat_pack(&m, f, CHI_F32, INT64_C(1) << 40, INT64_C(1) << 40, INT64_C(1) << 40, CHI_COMPUTE_F32, NULL),
      CHI_ERR_MEMORY);
  assert_null(m.data);
  chi_mat_free(&m);
  chi_mat_free(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_canonical),    cmocka_unit_test(test_threads),        cmocka_unit_test(test_rows),
      cmocka_unit_test(test_nan_rows),     cmocka_unit_test(test_against_double), cmocka_unit_test(test_pack_read),
      cmocka_unit_test(test_f16_widening), cmocka_unit_test(test_isa_choice),     cmocka_unit_test(test_bad_input),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

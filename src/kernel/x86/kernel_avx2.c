/* AVX2 + FMA + F16C: the whole row of the table. 12 accumulators: 3 rows x 32 outputs for f32, 3 rows x 16 outputs x
 * (even, odd) for bf16. Structure as in kernel_avx512.c. */
#define CHI_LANES 8
#include "kernel/x86/rows_x86.h"

enum { MR = 3 };

#define ROWS3(M) M(0) M(1) M(2)

LANE_FN __m256 load_b(chi_dtype store, const char *b, int at) {
  if (store == CHI_F32) return _mm256_loadu_ps((const float *)(const void *)b + at);
  __m128i half = _mm_loadu_si128((const void *)(b + 2 * at));
  if (store == CHI_F16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

LANE_FN void tile_f32(chi_dtype store, int rows, int64_t k, const float *a, int64_t lda, const char *b, int64_t step,
                      float *c, int64_t ldc, chi_tile_mode mode) {
#define EACH(r, OP) OP(r, 0) OP(r, 1) OP(r, 2) OP(r, 3)
#define ZERO1(r, j) __m256 c##r##j = _mm256_setzero_ps();
#define LOAD1(r, j) c##r##j = _mm256_loadu_ps(c + r * ldc + 8 * j);
#define STEP1(r, j) c##r##j = _mm256_fmadd_ps(x, b##j, c##r##j);
#define ADD1(r, j) c##r##j = _mm256_add_ps(_mm256_loadu_ps(c + r * ldc + 8 * j), c##r##j);
#define STORE1(r, j) _mm256_storeu_ps(c + r * ldc + 8 * j, c##r##j);
#define ZERO(r) EACH(r, ZERO1)
#define LOAD(r)    \
  if (rows > r) {  \
    EACH(r, LOAD1) \
  }
#define STEP(r)                      \
  if (rows > r) {                    \
    __m256 x = _mm256_set1_ps(a[r]); \
    EACH(r, STEP1)                   \
  }
#define ADD(r)    \
  if (rows > r) { \
    EACH(r, ADD1) \
  }
#define STORE(r)    \
  if (rows > r) {   \
    EACH(r, STORE1) \
  }
  ROWS3(ZERO)
  if (mode == CHI_TILE_CHAIN) {
    ROWS3(LOAD)
  }
  for (int64_t i = 0; i < k; i++, a += lda, b += step) {
    __m256 b0 = load_b(store, b, 0), b1 = load_b(store, b, 8);
    __m256 b2 = load_b(store, b, 16), b3 = load_b(store, b, 24);
    ROWS3(STEP)
  }
  if (mode == CHI_TILE_ADD) {
    ROWS3(ADD)
  }
  ROWS3(STORE)
#undef ZERO
#undef LOAD
#undef STEP
#undef ADD
#undef STORE
}

LANE_FN __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
LANE_FN __m256 odd_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}

/* 16 outputs, (even, odd) chains of one 32-block */
#define PAIR_ZERO(r)                                               \
  __m256 el##r = _mm256_setzero_ps(), eh##r = _mm256_setzero_ps(); \
  __m256 ol##r = _mm256_setzero_ps(), oh##r = _mm256_setzero_ps();
#define PAIR_EVEN(r)                       \
  if (rows > r) {                          \
    __m256 x = _mm256_set1_ps(ak[r]);      \
    el##r = _mm256_fmadd_ps(x, b0, el##r); \
    eh##r = _mm256_fmadd_ps(x, b1, eh##r); \
  }
#define PAIR_ODD(r)                         \
  if (rows > r) {                           \
    __m256 x = _mm256_set1_ps(ak[lda + r]); \
    ol##r = _mm256_fmadd_ps(x, b2, ol##r);  \
    oh##r = _mm256_fmadd_ps(x, b3, oh##r);  \
  }
#define PAIR_PAD_EVEN(r) el##r = _mm256_add_ps(el##r, zero), eh##r = _mm256_add_ps(eh##r, zero);
#define PAIR_PAD_ODD(r) ol##r = _mm256_add_ps(ol##r, zero), oh##r = _mm256_add_ps(oh##r, zero);
#define PAIR_OUT(r)                                                                        \
  if (rows > r) {                                                                          \
    float *o = c + r * ldc + half;                                                         \
    __m256 tl = set ? zero : _mm256_loadu_ps(o), th = set ? zero : _mm256_loadu_ps(o + 8); \
    _mm256_storeu_ps(o, _mm256_add_ps(tl, _mm256_add_ps(el##r, ol##r)));                   \
    _mm256_storeu_ps(o + 8, _mm256_add_ps(th, _mm256_add_ps(eh##r, oh##r)));               \
  }

LANE_FN void tile_bf16(int rows, int64_t k, const float *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                       chi_tile_mode mode) {
  const __m256 zero = _mm256_setzero_ps();
  bool set = mode == CHI_TILE_SET;
  for (int64_t k0 = 0; k0 < k; k0 += 32, a += 32 * lda, set = false)
    for (int half = 0; half < CHI_PANEL; half += 16, b += 512) {
      const float *ak = a;
      ROWS3(PAIR_ZERO)
      for (int p = 0; p < 16; p++, ak += 2 * lda) {
        __m256i w0 = _mm256_loadu_si256((const void *)(b + p * 32));
        __m256i w1 = _mm256_loadu_si256((const void *)(b + p * 32 + 16));
        __m256 b0 = even_of(w0), b1 = even_of(w1), b2 = odd_of(w0), b3 = odd_of(w1);
        ROWS3(PAIR_EVEN)
        ROWS3(PAIR_ODD)
      }
      ROWS3(PAIR_OUT)
    }
}

LANE_FN void tile_pair(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                       int64_t ldc, chi_tile_mode mode) {
  const __m256 zero = _mm256_setzero_ps();
  bool set = mode == CHI_TILE_SET;
  for (int64_t k0 = 0; k0 < k; k0 += 32, a += 32 * lda, b += 32 * ldb, set = false) {
    int64_t left = k - k0 < 32 ? k - k0 : 32;
    for (int half = 0; half < CHI_PANEL; half += 16) {
      const float *ak = a, *bk = b + half;
      int64_t i = 0;
      ROWS3(PAIR_ZERO)
      for (; i + 2 <= left; i += 2, ak += 2 * lda, bk += 2 * ldb) {
        __m256 b0 = _mm256_loadu_ps(bk), b1 = _mm256_loadu_ps(bk + 8);
        __m256 b2 = _mm256_loadu_ps(bk + ldb), b3 = _mm256_loadu_ps(bk + ldb + 8);
        ROWS3(PAIR_EVEN)
        ROWS3(PAIR_ODD)
      }
      if (i < left) {
        __m256 b0 = _mm256_loadu_ps(bk), b1 = _mm256_loadu_ps(bk + 8);
        ROWS3(PAIR_EVEN)
      }
      if (left <= 30) {
        ROWS3(PAIR_PAD_EVEN)
      }
      if (left <= 31) {
        ROWS3(PAIR_PAD_ODD)
      }
      ROWS3(PAIR_OUT)
    }
  }
}

static void panel_widen(float *dst, const void *src, chi_dtype store, int64_t n) {
  for (int64_t i = 0; i < n; i += 32)
    for (int j = 0; j < 32; j += 8) _mm256_storeu_ps(dst + i + j, load_b(store, (const char *)src + 2 * i, j));
}

/* 8 x 8: rows of src, stride 32, become columns of dst. */
LANE_FN void turn_8x8(float *dst, const float *src) {
  __m256 v[8], t[8];
  for (int i = 0; i < 8; i++) v[i] = _mm256_loadu_ps(src + i * 32);
  for (int i = 0; i < 8; i += 2) { /* pairs of neighbours */
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) /* fours: columns 0 to 3 of each 128 bits */
    for (int k = 0; k < 2; k++) {
      __m256d a = _mm256_castps_pd(t[i + k]), b = _mm256_castps_pd(t[i + k + 2]);
      v[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      v[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  for (int c = 0; c < 4; c++) {
    _mm256_storeu_ps(dst + c * 32, _mm256_permute2f128_ps(v[c], v[c + 4], 0x20));
    _mm256_storeu_ps(dst + (c + 4) * 32, _mm256_permute2f128_ps(v[c], v[c + 4], 0x31));
  }
}

static void turn_f32(float *dst, const float *src) {
  for (int r = 0; r < 32; r += 8)
    for (int c = 0; c < 32; c += 8) turn_8x8(dst + c * 32 + r, src + r * 32 + c);
}

/* ---- from a number of rows to the code for it --------------------------------------------------------------- */
#define F32_CASE(r)                                           \
  case r + 1:                                                 \
    tile_f32(store, r + 1, k, a, lda, b, step, c, ldc, mode); \
    return;
#define BF16_CASE(r)                              \
  case r + 1:                                     \
    tile_bf16(r + 1, k, a, lda, b, c, ldc, mode); \
    return;
#define PAIR_CASE(r)                                   \
  case r + 1:                                          \
    tile_pair(r + 1, k, a, lda, b, ldb, c, ldc, mode); \
    return;

LANE_FN void tile_f32_any(chi_dtype store, int rows, int64_t k, const float *a, int64_t lda, const char *b,
                          int64_t step, float *c, int64_t ldc, chi_tile_mode mode) {
  switch (rows) { ROWS3(F32_CASE) }
}
static void tile_f32_f32(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32_any(CHI_F32, rows, k, a, lda, b, ldb * 4, c, ldc, mode);
}
static void tile_f32_f16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32_any(CHI_F16, rows, k, a, lda, b, ldb * 2, c, ldc, mode);
}
static void tile_f32_bf16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                          int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32_any(CHI_BF16, rows, k, a, lda, b, ldb * 2, c, ldc, mode);
}
static void tile_bf16_any(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                          chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  switch (rows) { ROWS3(BF16_CASE) }
}
static void tile_pair_any(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                          int64_t ldc, chi_tile_mode mode) {
  switch (rows) { ROWS3(PAIR_CASE) }
}

const chi_kernel_table chi_kernels_avx2 = {
    .mr_f32 = MR,
    .mr_bf16 = MR,
    .mr_pair = MR,
    .tile_f32 = {[CHI_F32] = tile_f32_f32, [CHI_F16] = tile_f32_f16, [CHI_BF16] = tile_f32_bf16},
    .tile_bf16 = tile_bf16_any,
    .tile_pair = tile_pair_any,
    .widen = panel_widen,
    .turn_f32 = turn_f32,
    .turn_bf16 = chi_turn_bf16,
    CHI_ROW_FUNCTIONS,
};

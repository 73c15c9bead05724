/* AVX-512: the whole row of the table, and those of a CPU which has AVX512-BF16 or AMX too. Tiles keep 24 accumulators:
 * 12 rows x 32 outputs for f32, 6 rows x 32 outputs x (even, odd) for bf16. */
#define CHI_LANES 16
#include "kernel/x86/bf16_amx.h"
#include "kernel/x86/bf16_avx512dp.h"
#include "kernel/x86/rows_x86.h"

enum { MR_F32 = 12, MR_BF16 = 6 };

/* Apply M to every row index; with `rows` a constant after inlining the dead ones vanish. Named variables rather than
 * arrays, so that every accumulator is a register at any optimisation level. */
#define ROWS6(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define ROWS12(M) ROWS6(M) M(6) M(7) M(8) M(9) M(10) M(11)

LANE_FN void load_b(chi_dtype store, const char *b, __m512 *lo, __m512 *hi) {
  if (store == CHI_F32) {
    *lo = _mm512_loadu_ps(b);
    *hi = _mm512_loadu_ps(b + 64);
  } else if (store == CHI_BF16) {
    *lo = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)b)), 16));
    *hi = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(b + 32))), 16));
  } else {
    *lo = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)b));
    *hi = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(b + 32)));
  }
}

LANE_FN void tile_f32(chi_dtype store, int rows, int64_t k, const float *a, int64_t lda, const char *b, int64_t step,
                      float *c, int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
#define ZERO(r) __m512 lo##r = _mm512_setzero_ps(), hi##r = _mm512_setzero_ps();
#define LOAD(r)                                \
  if (rows > r) {                              \
    lo##r = _mm512_loadu_ps(c + r * ldc);      \
    hi##r = _mm512_loadu_ps(c + r * ldc + 16); \
  }
#define STEP(r)                            \
  if (rows > r) {                          \
    __m512 x = _mm512_set1_ps(a[r]);       \
    lo##r = _mm512_fmadd_ps(x, b0, lo##r); \
    hi##r = _mm512_fmadd_ps(x, b1, hi##r); \
  }
#define ADD(r)                                                       \
  if (rows > r) {                                                    \
    lo##r = _mm512_add_ps(_mm512_loadu_ps(c + r * ldc), lo##r);      \
    hi##r = _mm512_add_ps(_mm512_loadu_ps(c + r * ldc + 16), hi##r); \
  }
#define STORE(r)                               \
  if (rows > r) {                              \
    _mm512_storeu_ps(c + r * ldc, lo##r);      \
    _mm512_storeu_ps(c + r * ldc + 16, hi##r); \
  }
  ROWS12(ZERO)
  if (mode == CHI_TILE_CHAIN) {
    ROWS12(LOAD)
  }
  chi_ahead near = {.at = b, .step = 32 * step, .tiles = 1};
  if (ahead != NULL) near = *ahead;
  for (int64_t left = k; left > 0; left -= 32) {
    const char *next = chi_ahead_next(&near, b);
    for (int64_t i = left < 32 ? left : 32; i > 0; i--, a += lda, b += step) {
      __m512 b0, b1;
      load_b(store, b, &b0, &b1);
      _mm_prefetch(next, _MM_HINT_T0);
      if (store == CHI_F32) _mm_prefetch(next + 64, _MM_HINT_T0);
      next += store == CHI_F32 ? 128 : 64;
      ROWS12(STEP)
    }
  }
  if (mode == CHI_TILE_ADD) {
    ROWS12(ADD)
  }
  ROWS12(STORE)
#undef ZERO
#undef LOAD
#undef STEP
#undef ADD
#undef STORE
}

/* Even (low half of each 32-bit pair) and odd k of a packed bf16 row of pairs, widened. */
LANE_FN __m512 even_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
LANE_FN __m512 odd_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
}

#define PAIR_ZERO(r)                                               \
  __m512 el##r = _mm512_setzero_ps(), eh##r = _mm512_setzero_ps(); \
  __m512 ol##r = _mm512_setzero_ps(), oh##r = _mm512_setzero_ps();
#define PAIR_EVEN(r)                       \
  if (rows > r) {                          \
    __m512 x = _mm512_set1_ps(a[r]);       \
    el##r = _mm512_fmadd_ps(x, b0, el##r); \
    eh##r = _mm512_fmadd_ps(x, b1, eh##r); \
  }
#define PAIR_ODD(r)                        \
  if (rows > r) {                          \
    __m512 x = _mm512_set1_ps(a[lda + r]); \
    ol##r = _mm512_fmadd_ps(x, b2, ol##r); \
    oh##r = _mm512_fmadd_ps(x, b3, oh##r); \
  }
#define PAIR_PAD(v, r) v##l##r = _mm512_add_ps(v##l##r, zero), v##h##r = _mm512_add_ps(v##h##r, zero);
#define PAIR_PAD_EVEN(r) PAIR_PAD(e, r)
#define PAIR_PAD_ODD(r) PAIR_PAD(o, r)
#define PAIR_OUT(r)                                                                     \
  if (rows > r) {                                                                       \
    __m512 tl = set ? zero : _mm512_loadu_ps(c + r * ldc);                              \
    __m512 th = set ? zero : _mm512_loadu_ps(c + r * ldc + 16);                         \
    _mm512_storeu_ps(c + r * ldc, _mm512_add_ps(tl, _mm512_add_ps(el##r, ol##r)));      \
    _mm512_storeu_ps(c + r * ldc + 16, _mm512_add_ps(th, _mm512_add_ps(eh##r, oh##r))); \
  }

LANE_FN void tile_bf16(int rows, int64_t k, const float *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                       chi_tile_mode mode, const chi_ahead *ahead) {
  const __m512 zero = _mm512_setzero_ps();
  chi_ahead near = *ahead;
  bool set = mode == CHI_TILE_SET;
  for (int64_t k0 = 0; k0 < k; k0 += 32, b += 1024, set = false) {
    const char *next = chi_ahead_next(&near, b);
    ROWS6(PAIR_ZERO)
    for (int p = 0; p < 16; p++, a += 2 * lda) {
      __m512i w0 = _mm512_loadu_si512(b + p * 32), w1 = _mm512_loadu_si512(b + 512 + p * 32);
      _mm_prefetch(next + p * 128, _MM_HINT_T0);
      _mm_prefetch(next + p * 128 + 64, _MM_HINT_T0);
      __m512 b0 = even_of(w0), b1 = even_of(w1), b2 = odd_of(w0), b3 = odd_of(w1);
      ROWS6(PAIR_EVEN)
      ROWS6(PAIR_ODD)
    }
    ROWS6(PAIR_OUT)
  }
}

LANE_FN void tile_pair(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                       int64_t ldc, chi_tile_mode mode) {
  const __m512 zero = _mm512_setzero_ps();
  bool set = mode == CHI_TILE_SET;
  for (int64_t k0 = 0; k0 < k; k0 += 32, set = false) {
    ROWS6(PAIR_ZERO)
    int64_t left = k - k0 < 32 ? k - k0 : 32, i = 0;
    for (; i + 2 <= left; i += 2, a += 2 * lda, b += 2 * ldb) {
      __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
      __m512 b2 = _mm512_loadu_ps(b + ldb), b3 = _mm512_loadu_ps(b + ldb + 16);
      ROWS6(PAIR_EVEN)
      ROWS6(PAIR_ODD)
    }
    if (i < left) {
      __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
      ROWS6(PAIR_EVEN)
    }
    /* One fma of zeros is as good as many: it only turns -0 into +0. */
    if (left <= 30) {
      ROWS6(PAIR_PAD_EVEN)
    }
    if (left <= 31) {
      ROWS6(PAIR_PAD_ODD)
    }
    ROWS6(PAIR_OUT)
  }
}

static void panel_widen(float *dst, const void *src, chi_dtype store, int64_t n) {
  for (int64_t i = 0; i < n; i += 32) {
    __m512 lo, hi;
    load_b(store, (const char *)src + 2 * i, &lo, &hi);
    _mm512_storeu_ps(dst + i, lo);
    _mm512_storeu_ps(dst + i + 16, hi);
  }
}

/* 16 x 16 of 32 bits: rows of src, stride 32, become columns of dst. */
LANE_FN void turn_16x16(float *dst, const float *src) {
  __m512 v[16], t[16];
  for (int i = 0; i < 16; i++) v[i] = _mm512_loadu_ps(src + i * 32);
  for (int i = 0; i < 16; i += 2) { /* pairs of neighbours */
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) /* fours: columns 0 to 3 of each 128 bits */
    for (int k = 0; k < 2; k++) {
      __m512d a = _mm512_castps_pd(t[i + k]), b = _mm512_castps_pd(t[i + k + 2]);
      v[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      v[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int c = 0; c < 4; c++) { /* 128 bits of v[c], v[c + 4], v[c + 8], v[c + 12]: a 4 x 4 of them */
    __m512 a = _mm512_shuffle_f32x4(v[c], v[c + 4], 0x88), b = _mm512_shuffle_f32x4(v[c], v[c + 4], 0xdd);
    __m512 d = _mm512_shuffle_f32x4(v[c + 8], v[c + 12], 0x88), e = _mm512_shuffle_f32x4(v[c + 8], v[c + 12], 0xdd);
    _mm512_storeu_ps(dst + c * 32, _mm512_shuffle_f32x4(a, d, 0x88));
    _mm512_storeu_ps(dst + (c + 4) * 32, _mm512_shuffle_f32x4(b, e, 0x88));
    _mm512_storeu_ps(dst + (c + 8) * 32, _mm512_shuffle_f32x4(a, d, 0xdd));
    _mm512_storeu_ps(dst + (c + 12) * 32, _mm512_shuffle_f32x4(b, e, 0xdd));
  }
}

static void turn_f32(float *dst, const float *src) {
  for (int r = 0; r < 32; r += 16)
    for (int c = 0; c < 32; c += 16) turn_16x16(dst + c * 32 + r, src + r * 32 + c);
}

/* 8 x 8 of 64 bits, in place. */
LANE_FN void turn_8x8(__m512i *v) {
  __m512i t[8];
  for (int i = 0; i < 8; i += 2) { /* pairs of neighbours */
    t[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
  }
  for (int i = 0; i < 2; i++) { /* 128 bits of t[i], t[i + 2], t[i + 4], t[i + 6]: a 4 x 4 of them */
    __m512i a = _mm512_shuffle_i64x2(t[i], t[i + 2], 0x88), b = _mm512_shuffle_i64x2(t[i], t[i + 2], 0xdd);
    __m512i c = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0x88), d = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0xdd);
    v[i] = _mm512_shuffle_i64x2(a, c, 0x88);
    v[i + 4] = _mm512_shuffle_i64x2(a, c, 0xdd);
    v[i + 2] = _mm512_shuffle_i64x2(b, d, 0x88);
    v[i + 6] = _mm512_shuffle_i64x2(b, d, 0xdd);
  }
}

/* 64 bits are two neighbouring k of two neighbouring rows; turned inside, they go to the mirrored place. */
static void turn_bf16(chi_bf16 *dst, const chi_bf16 *src) {
  const __m512i inside = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  for (int half = 0; half < 2; half++)
    for (int to = 0; to < 2; to++) {
      __m512i v[8];
      for (int i = 0; i < 8; i++)
        v[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(src + half * 512 + (to * 8 + i) * 32), inside);
      turn_8x8(v);
      for (int i = 0; i < 8; i++) _mm512_storeu_si512(dst + to * 512 + (half * 8 + i) * 32, v[i]);
    }
}

/* ---- from a number of rows to the code for it --------------------------------------------------------------- */
#define F32_CASE(r)                                                  \
  case r + 1:                                                        \
    tile_f32(store, r + 1, k, a, lda, b, step, c, ldc, mode, ahead); \
    return;
#define BF16_CASE(r)                                     \
  case r + 1:                                            \
    tile_bf16(r + 1, k, a, lda, b, c, ldc, mode, ahead); \
    return;
#define PAIR_CASE(r)                                   \
  case r + 1:                                          \
    tile_pair(r + 1, k, a, lda, b, ldb, c, ldc, mode); \
    return;

LANE_FN void tile_f32_any(chi_dtype store, int rows, int64_t k, const float *a, int64_t lda, const char *b,
                          int64_t step, float *c, int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  switch (rows) { ROWS12(F32_CASE) }
}
static void tile_f32_f32(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  tile_f32_any(CHI_F32, rows, k, a, lda, b, ldb * 4, c, ldc, mode, ahead);
}
static void tile_f32_f16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  tile_f32_any(CHI_F16, rows, k, a, lda, b, ldb * 2, c, ldc, mode, ahead);
}
static void tile_f32_bf16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                          int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  tile_f32_any(CHI_BF16, rows, k, a, lda, b, ldb * 2, c, ldc, mode, ahead);
}
static void tile_bf16_any(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                          chi_tile_mode mode, const chi_ahead *ahead) {
  switch (rows) { ROWS6(BF16_CASE) }
}
static void tile_pair_any(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                          int64_t ldc, chi_tile_mode mode) {
  switch (rows) { ROWS6(PAIR_CASE) }
}

/* What the sets with 16 lanes share. */
#define SHARED                                                                                  \
  .mr_f32 = MR_F32, .mr_pair = MR_BF16,                                                         \
  .tile_f32 = {[CHI_F32] = tile_f32_f32, [CHI_F16] = tile_f32_f16, [CHI_BF16] = tile_f32_bf16}, \
  .tile_pair = tile_pair_any, .widen = panel_widen, .turn_f32 = turn_f32, .turn_bf16 = turn_bf16, CHI_ROW_FUNCTIONS

const chi_kernel_table chi_kernels_avx512 = {SHARED, .mr_bf16 = MR_BF16, .tile_bf16 = tile_bf16_any};
const chi_kernel_table chi_kernels_avx512_bf16 = {SHARED, .mr_bf16 = MR_BF16, .tile_bf16 = chi_tile_bf16_dp,
                                                  .row_bf16 = chi_row_bf16_dp};
const chi_kernel_table chi_kernels_amx = {SHARED, .mr_bf16 = CHI_AMX_ROWS, .tile_bf16 = chi_tile_bf16_amx,
                                          .row_bf16 = chi_row_bf16_amx};

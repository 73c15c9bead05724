/* AVX512-BF16: the bf16 product at two multiply-adds a lane. VDPBF16PS adds the product of the high halves of a pair to
 * the accumulator and then that of the low halves, each with one rounding, denormals flushed: two links of one chain.
 * The canonical order (TDPBF16PS, docs/arithmetic.md) wants one chain over even k and one over odd k, so the pairs are
 * made of (k + 2, k) and (k + 3, k + 1), low half first, instead of neighbours. The rows come so from the packing; the
 * panels, which lie as AMX tiles, are turned in registers, which many rows share. */
#include <immintrin.h>

#include "kernel/x86/bf16_avx512dp.h"

#define DP_FN static inline __attribute__((always_inline))

#define ROWS6(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define ZERO(r)                                                    \
  __m512 el##r = _mm512_setzero_ps(), eh##r = _mm512_setzero_ps(); \
  __m512 ol##r = _mm512_setzero_ps(), oh##r = _mm512_setzero_ps();
#define STEP(r)                                                                     \
  if (rows > r) {                                                                   \
    __m512bh e = (__m512bh)_mm512_set1_epi32(x[r * lda]);                           \
    el##r = _mm512_dpbf16_ps(el##r, e, e0), eh##r = _mm512_dpbf16_ps(eh##r, e, e1); \
    __m512bh o = (__m512bh)_mm512_set1_epi32(x[r * lda + 1]);                       \
    ol##r = _mm512_dpbf16_ps(ol##r, o, o0), oh##r = _mm512_dpbf16_ps(oh##r, o, o1); \
  }
#define OUT(r)                                                                          \
  if (rows > r) {                                                                       \
    __m512 tl = set ? zero : _mm512_loadu_ps(c + r * ldc);                              \
    __m512 th = set ? zero : _mm512_loadu_ps(c + r * ldc + 16);                         \
    _mm512_storeu_ps(c + r * ldc, _mm512_add_ps(tl, _mm512_add_ps(el##r, ol##r)));      \
    _mm512_storeu_ps(c + r * ldc + 16, _mm512_add_ps(th, _mm512_add_ps(eh##r, oh##r))); \
  }

/* (k, k+1) and (k+2, k+3), low half first -> (k+2, k) */
DP_FN __m512bh evens(__m512i first, __m512i second) {
  return (__m512bh)_mm512_mask_mov_epi16(second, 0xaaaaaaaau, _mm512_slli_epi32(first, 16));
}
/* ... -> (k+3, k+1) */
DP_FN __m512bh odds(__m512i first, __m512i second) {
  return (__m512bh)_mm512_mask_mov_epi16(_mm512_srli_epi32(second, 16), 0xaaaaaaaau, first);
}

DP_FN void tile(int rows, int64_t k, const int32_t *x, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                chi_tile_mode mode, const chi_ahead *ahead) {
  const __m512 zero = _mm512_setzero_ps();
  chi_ahead near = *ahead;
  bool set = mode == CHI_TILE_SET;
  for (int64_t k0 = 0; k0 < k; k0 += 32, b += 1024, set = false) {
    const char *next = chi_ahead_next(&near, b);
    ROWS6(ZERO)
    for (int q = 0; q < 8; q++, x += 2) {
      const chi_bf16 *p = b + (size_t)q * 64;
      __m512i f0 = _mm512_loadu_si512(p), s0 = _mm512_loadu_si512(p + 32);
      __m512i f1 = _mm512_loadu_si512(p + 512), s1 = _mm512_loadu_si512(p + 544);
      for (int i = 0; i < 4; i++) _mm_prefetch(next + q * 256 + i * 64, _MM_HINT_T0);
      __m512bh e0 = evens(f0, s0), o0 = odds(f0, s0), e1 = evens(f1, s1), o1 = odds(f1, s1);
      ROWS6(STEP)
    }
    ROWS6(OUT)
  }
}

#define CASE(r)                                         \
  case r + 1:                                           \
    tile(r + 1, k, x, lda / 2, b, c, ldc, mode, ahead); \
    return;
void chi_tile_bf16_dp(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                      chi_tile_mode mode, const chi_ahead *ahead) {
  const int32_t *x = a;
  switch (rows) { ROWS6(CASE) }
}

/* Rounds as chi_round_bf16 does, but that denormals become zero, which the product does with them anyway. */
void chi_row_bf16_dp(chi_bf16 *out, const float *x, int64_t k, int64_t kp) {
  /* inside each four: k+2, k, k+3, k+1 */
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8, 9, 14, 15, 10, 11));
  for (int64_t i = 0; i < kp; i += 32) {
    int64_t left = k - i;
    __mmask16 m0 = (__mmask16)(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1 : 0);
    __mmask16 m1 = (__mmask16)(left >= 32 ? 0xffffu : left > 16 ? (1u << (left - 16)) - 1 : 0);
    __m512 lo = _mm512_maskz_loadu_ps(m0, x + i), hi = _mm512_maskz_loadu_ps(m1, x + i + 16);
    __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
    _mm512_storeu_si512(out + i, _mm512_shuffle_epi8(pair, order));
  }
}

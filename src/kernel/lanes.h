/* Inside kernel/ only: one set of names for 1, 8 or 16 float lanes, so that the elementary functions (vmath.h) are
 * written once and every instruction set runs the same operations in the same order.
 * The including file defines CHI_LANES as 1 (portable C), 8 (AVX2 + FMA + F16C) or 16 (AVX-512). */
#ifndef CHI_KERNEL_LANES_H
#define CHI_KERNEL_LANES_H

#include <stdint.h>

#define LANE_FN static inline __attribute__((always_inline))

#if CHI_LANES == 1
#include <math.h>

typedef float vf;
typedef uint32_t vi;
typedef union chi_lane_bits {
  float f;
  uint32_t u;
} chi_lane_bits;
LANE_FN vf v_load(const float *p) { return *p; }
LANE_FN void v_store(float *p, vf a) { *p = a; }
LANE_FN vf v_set(float a) { return a; }
LANE_FN vf v_add(vf a, vf b) { return a + b; }
LANE_FN vf v_sub(vf a, vf b) { return a - b; }
LANE_FN vf v_mul(vf a, vf b) { return a * b; }
LANE_FN vf v_div(vf a, vf b) { return a / b; }
LANE_FN vf v_fma(vf a, vf b, vf c) { return fmaf(a, b, c); } /* a*b + c */
LANE_FN vf v_if_lt(vf a, vf b, vf yes, vf no) { return a < b ? yes : no; }
LANE_FN vf v_if_nan(vf a, vf yes, vf no) { return a != a ? yes : no; }
LANE_FN vi v_bits(vf a) { return (chi_lane_bits){.f = a}.u; }
LANE_FN vf v_from_bits(vi a) { return (chi_lane_bits){.u = a}.f; }
LANE_FN vi v_iset(uint32_t a) { return a; }
LANE_FN vi v_iadd(vi a, vi b) { return a + b; }
LANE_FN vi v_iand(vi a, vi b) { return a & b; }
LANE_FN vi v_ior(vi a, vi b) { return a | b; }
LANE_FN vi v_shl23(vi a) { return a << 23; }

#elif CHI_LANES == 8
#include <immintrin.h>

typedef __m256 vf;
typedef __m256i vi;
LANE_FN vf v_load(const float *p) { return _mm256_loadu_ps(p); }
LANE_FN void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
LANE_FN vf v_set(float a) { return _mm256_set1_ps(a); }
LANE_FN vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
LANE_FN vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
LANE_FN vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
LANE_FN vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
LANE_FN vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
LANE_FN vf v_if_lt(vf a, vf b, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
LANE_FN vf v_if_nan(vf a, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
LANE_FN vi v_bits(vf a) { return _mm256_castps_si256(a); }
LANE_FN vf v_from_bits(vi a) { return _mm256_castsi256_ps(a); }
LANE_FN vi v_iset(uint32_t a) { return _mm256_set1_epi32((int)a); }
LANE_FN vi v_iadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
LANE_FN vi v_iand(vi a, vi b) { return _mm256_and_si256(a, b); }
LANE_FN vi v_ior(vi a, vi b) { return _mm256_or_si256(a, b); }
LANE_FN vi v_shl23(vi a) { return _mm256_slli_epi32(a, 23); }

#elif CHI_LANES == 16
#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi;
LANE_FN vf v_load(const float *p) { return _mm512_loadu_ps(p); }
LANE_FN void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
LANE_FN vf v_set(float a) { return _mm512_set1_ps(a); }
LANE_FN vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
LANE_FN vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
LANE_FN vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
LANE_FN vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
LANE_FN vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
LANE_FN vf v_if_lt(vf a, vf b, vf yes, vf no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
LANE_FN vf v_if_nan(vf a, vf yes, vf no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), no, yes);
}
LANE_FN vi v_bits(vf a) { return _mm512_castps_si512(a); }
LANE_FN vf v_from_bits(vi a) { return _mm512_castsi512_ps(a); }
LANE_FN vi v_iset(uint32_t a) { return _mm512_set1_epi32((int)a); }
LANE_FN vi v_iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
LANE_FN vi v_iand(vi a, vi b) { return _mm512_and_si512(a, b); }
LANE_FN vi v_ior(vi a, vi b) { return _mm512_or_si512(a, b); }
LANE_FN vi v_shl23(vi a) { return _mm512_slli_epi32(a, 23); }

#else
#error "define CHI_LANES as 1, 8 or 16 before including lanes.h"
#endif

#endif

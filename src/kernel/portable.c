/* The readable reference: what every other row of the table must reproduce bit for bit.
 * fmaf() is one correctly rounded operation; with MXCSR's flush-to-zero bits set it flushes as the vector units do. */
#define CHI_LANES 1
#include <math.h>
#include <string.h>

#include "kernel/back_rows.h"
#include "kernel/table.h"
#include "kernel/vmath.h"

enum { PORTABLE_MR = 4 };

/* ---- product tiles --------------------------------------------------------------------------------------- */
static inline float widen(const void *b, int64_t i, chi_dtype store) {
  switch (store) {
    case CHI_F16:
      return chi_f32_from_f16(((const uint16_t *)b)[i]);
    case CHI_BF16:
      return chi_widen_bf16(((const chi_bf16 *)b)[i]);
    default:
      return ((const float *)b)[i];
  }
}

static inline void tile_f32(chi_dtype store, int rows, int64_t k, const float *a, int64_t lda, const void *b,
                            int64_t ldb, float *c, int64_t ldc, chi_tile_mode mode) {
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < CHI_PANEL; n++) {
      float *out = &c[r * ldc + n];
      float chain = mode == CHI_TILE_CHAIN ? *out : 0.0f;
      for (int64_t i = 0; i < k; i++) chain = fmaf(a[i * lda + r], widen(b, i * ldb + n, store), chain);
      *out = mode == CHI_TILE_ADD ? *out + chain : chain;
    }
}

static void tile_f32_f32(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32(CHI_F32, rows, k, a, lda, b, ldb, c, ldc, mode);
}
static void tile_f32_f16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                         int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32(CHI_F16, rows, k, a, lda, b, ldb, c, ldc, mode);
}
static void tile_f32_bf16(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                          int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  tile_f32(CHI_BF16, rows, k, a, lda, b, ldb, c, ldc, mode);
}

static void tile_bf16(int rows, int64_t k, const void *left, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                      chi_tile_mode mode, const chi_ahead *ahead) {
  (void)ahead;
  const float *a = left;
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < CHI_PANEL; n++) {
      float acc = mode == CHI_TILE_SET ? 0.0f : c[r * ldc + n];
      for (int64_t k0 = 0; k0 < k; k0 += 32) {
        /* block of 32 k: two tiles of 16 n, each [16 pairs][16 n][2] */
        const chi_bf16 *t = b + k0 * CHI_PANEL + (n / 16) * 512 + (n % 16) * 2;
        float even = 0.0f, odd = 0.0f;
        for (int64_t p = 0; p < 16; p++) {
          even = fmaf(a[(k0 + 2 * p) * lda + r], chi_widen_bf16(t[p * 32]), even);
          odd = fmaf(a[(k0 + 2 * p + 1) * lda + r], chi_widen_bf16(t[p * 32 + 1]), odd);
        }
        acc += even + odd;
      }
      c[r * ldc + n] = acc;
    }
}

static void tile_pair(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                      int64_t ldc, chi_tile_mode mode) {
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < CHI_PANEL; n++) {
      float acc = mode == CHI_TILE_SET ? 0.0f : c[r * ldc + n];
      for (int64_t k0 = 0; k0 < k; k0 += 32) {
        float chain[2] = {0.0f, 0.0f}; /* even, odd */
        for (int64_t i = k0; i < k0 + 32; i++) {
          float x = i < k ? a[i * lda + r] : 0.0f;
          float w = i < k ? b[i * ldb + n] : 0.0f;
          chain[i % 2] = fmaf(x, w, chain[i % 2]);
        }
        acc += chain[0] + chain[1];
      }
      c[r * ldc + n] = acc;
    }
}

static void panel_widen(float *dst, const void *src, chi_dtype store, int64_t n) {
  for (int64_t i = 0; i < n; i++) dst[i] = widen(src, i, store);
}

/* ---- rows ------------------------------------------------------------------------------------------------ */
static float row_dot(const float *a, const float *b, int64_t n) {
  float lanes[CHI_PANEL] = {0};
  for (int64_t i = 0; i < n; i++) lanes[i % CHI_PANEL] = fmaf(a[i], b[i], lanes[i % CHI_PANEL]);
  return chi_lane_tree(lanes);
}

static float row_sum(const float *x, int64_t n) {
  float lanes[CHI_PANEL] = {0};
  for (int64_t i = 0; i < n; i++) lanes[i % CHI_PANEL] += x[i];
  return chi_lane_tree(lanes);
}

static float row_sqdev(const float *x, float mean, int64_t n) {
  float lanes[CHI_PANEL] = {0};
  for (int64_t i = 0; i < n; i++) {
    float d = x[i] - mean;
    lanes[i % CHI_PANEL] = fmaf(d, d, lanes[i % CHI_PANEL]);
  }
  return chi_lane_tree(lanes);
}

static float row_max(const float *x, int64_t n) {
  float m = -INFINITY;
  for (int64_t i = 0; i < n; i++) m = m < x[i] ? x[i] : m;
  return m + 0.0f; /* -0 becomes +0, which of the two came first must not show */
}

static float row_exp_sum(const float *x, float max, float *e, int64_t n) {
  float lanes[CHI_PANEL] = {0};
  for (int64_t i = 0; i < n; i++) {
    float v = v_exp(x[i] - max);
    if (e != NULL) e[i] = v;
    lanes[i % CHI_PANEL] += v;
  }
  return chi_lane_tree(lanes);
}

static void row_div(float *x, float s, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = x[i] / s;
}

static void row_act(chi_act act, const float *x, const float *u, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    float v = v_act(act, x[i]);
    y[i] = u != NULL ? v * u[i] : v;
  }
}

static void row_axpy(float *y, const float *x, float s, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = fmaf(s, x[i], y[i]);
}

static void turn_f32(float *dst, const float *src) {
  for (int r = 0; r < CHI_PANEL; r++)
    for (int c = 0; c < CHI_PANEL; c++) dst[c * CHI_PANEL + r] = src[r * CHI_PANEL + c];
}

/* Transpose one packed 32 x 32 block. A 32-bit word is two neighbouring k of one n; two words of neighbouring n make
 * two words of the result. */
void chi_turn_bf16(chi_bf16 *dst, const chi_bf16 *src) {
  for (int64_t n = 0; n < 32; n += 2)
    for (int64_t k = 0; k < 32; k += 2) {
      uint32_t a, b, out[2];
      memcpy(&a, src + chi_bf16_at(n, k), sizeof a);
      memcpy(&b, src + chi_bf16_at(n + 1, k), sizeof b);
      out[0] = (a & 0xffffu) | b << 16;
      out[1] = a >> 16 | (b & 0xffff0000u);
      memcpy(dst + chi_bf16_at(k, n), out, sizeof out); /* k and k + 1 lie side by side */
    }
}

static void row_exp64(double *y, const float *x, double shift, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = chi_exp64((double)x[i] - shift);
}

const chi_kernel_table chi_kernels_portable = {
    .mr_f32 = PORTABLE_MR,
    .mr_bf16 = PORTABLE_MR,
    .mr_pair = PORTABLE_MR,
    .tile_f32 = {[CHI_F32] = tile_f32_f32, [CHI_F16] = tile_f32_f16, [CHI_BF16] = tile_f32_bf16},
    .tile_bf16 = tile_bf16,
    .tile_pair = tile_pair,
    .widen = panel_widen,
    .turn_f32 = turn_f32,
    .turn_bf16 = chi_turn_bf16,
    .dot = row_dot,
    .sum = row_sum,
    .sqdev = row_sqdev,
    .max = row_max,
    .exp_sum = row_exp_sum,
    .div = row_div,
    .act = row_act,
    .axpy = row_axpy,
    .exp64 = row_exp64,
    .dots4 = row_dots4,
    .mix4 = row_mix4,
};

/* ---- single values --------------------------------------------------------------------------------------- */
float chi_expf(float x) { return v_exp(x); }

/* log: x = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1, f - f^2/2 + f^3 P(f) + e ln2. */
float chi_logf(float x) {
  uint32_t u = v_bits(x);
  if (x != x) return x;
  if ((u & 0x7fffffffu) < 0x00800000u) return -INFINITY; /* zero, and denormals, which are zero here */
  if ((u >> 31) != 0) return NAN;
  if (u == VM_INF) return x;
  const uint32_t base = 0x3f3504f3u; /* sqrt(1/2) */
  int32_t e = ((int32_t)(u - base)) >> 23;
  float f = v_from_bits(u - ((uint32_t)e << 23)) - 1.0f;
  float p = 0x1.1441a8p-4f;
  p = fmaf(p, f, -0x1.de333ap-4f);
  p = fmaf(p, f, 0x1.e6f50ap-4f);
  p = fmaf(p, f, -0x1.fc23c8p-4f);
  p = fmaf(p, f, 0x1.23373cp-3f);
  p = fmaf(p, f, -0x1.555c40p-3f);
  p = fmaf(p, f, 0x1.99a4b6p-3f);
  p = fmaf(p, f, -0x1.000006p-2f);
  p = fmaf(p, f, 0x1.555548p-2f);
  float n = (float)e;
  float s = f * f;
  float r = fmaf(p, f * s, n * -0x1.05c610p-29f);
  r = fmaf(-0.5f, s, r);
  r = r + f;
  return fmaf(n, 0x1.62e430p-1f, r);
}

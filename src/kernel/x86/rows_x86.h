/* The row functions on 8 or 16 lanes, written once: rows_avx2.c and rows_avx512.c define CHI_LANES and include this.
 * A 32-lane reduction keeps 32/CHI_LANES registers; what is left of the row goes to the lanes one element at a time, so
 * that no zero is ever added to a lane that the reference leaves alone. */
#include <math.h>
#include <string.h>

#include "base/exp64.h"
#include "kernel/back_rows.h"
#include "kernel/table.h"
#include "kernel/vmath.h"

enum { REGS = CHI_PANEL / CHI_LANES };

LANE_FN void lanes_out(float *lanes, const vf *acc) {
  for (int i = 0; i < REGS; i++) v_store(lanes + i * CHI_LANES, acc[i]);
}

static float row_dot(const float *a, const float *b, int64_t n) {
  vf acc[REGS];
  float lanes[CHI_PANEL];
  int64_t k = 0;
  for (int i = 0; i < REGS; i++) acc[i] = v_set(0.0f);
  for (; k + CHI_PANEL <= n; k += CHI_PANEL)
    for (int i = 0; i < REGS; i++) acc[i] = v_fma(v_load(a + k + i * CHI_LANES), v_load(b + k + i * CHI_LANES), acc[i]);
  lanes_out(lanes, acc);
  for (int i = 0; k < n; k++, i++) lanes[i] = fmaf(a[k], b[k], lanes[i]);
  return chi_lane_tree(lanes);
}

static float row_sum(const float *x, int64_t n) {
  vf acc[REGS];
  float lanes[CHI_PANEL];
  int64_t k = 0;
  for (int i = 0; i < REGS; i++) acc[i] = v_set(0.0f);
  for (; k + CHI_PANEL <= n; k += CHI_PANEL)
    for (int i = 0; i < REGS; i++) acc[i] = v_add(acc[i], v_load(x + k + i * CHI_LANES));
  lanes_out(lanes, acc);
  for (int i = 0; k < n; k++, i++) lanes[i] += x[k];
  return chi_lane_tree(lanes);
}

static float row_sqdev(const float *x, float mean, int64_t n) {
  vf acc[REGS];
  const vf mu = v_set(mean);
  float lanes[CHI_PANEL];
  int64_t k = 0;
  for (int i = 0; i < REGS; i++) acc[i] = v_set(0.0f);
  for (; k + CHI_PANEL <= n; k += CHI_PANEL)
    for (int i = 0; i < REGS; i++) {
      vf d = v_sub(v_load(x + k + i * CHI_LANES), mu);
      acc[i] = v_fma(d, d, acc[i]);
    }
  lanes_out(lanes, acc);
  for (int i = 0; k < n; k++, i++) {
    float d = x[k] - mean;
    lanes[i] = fmaf(d, d, lanes[i]);
  }
  return chi_lane_tree(lanes);
}

static float row_max(const float *x, int64_t n) {
  vf acc[REGS];
  float lanes[CHI_PANEL], m = -INFINITY;
  int64_t k = 0;
  for (int i = 0; i < REGS; i++) acc[i] = v_set(-INFINITY);
  for (; k + CHI_PANEL <= n; k += CHI_PANEL)
    for (int i = 0; i < REGS; i++) {
      vf v = v_load(x + k + i * CHI_LANES);
      acc[i] = v_if_lt(acc[i], v, v, acc[i]);
    }
  lanes_out(lanes, acc);
  for (int i = 0; i < CHI_PANEL; i++) m = m < lanes[i] ? lanes[i] : m;
  for (; k < n; k++) m = m < x[k] ? x[k] : m;
  return m + 0.0f;
}

static float row_exp_sum(const float *x, float max, float *e, int64_t n) {
  vf acc[REGS];
  const vf top = v_set(max);
  float lanes[CHI_PANEL];
  int64_t k = 0;
  for (int i = 0; i < REGS; i++) acc[i] = v_set(0.0f);
  for (; k + CHI_PANEL <= n; k += CHI_PANEL)
    for (int i = 0; i < REGS; i++) {
      vf v = v_exp(v_sub(v_load(x + k + i * CHI_LANES), top));
      if (e != NULL) v_store(e + k + i * CHI_LANES, v);
      acc[i] = v_add(acc[i], v);
    }
  lanes_out(lanes, acc);
  if (k < n) {
    float tail[CHI_PANEL];
    for (int i = 0; i < CHI_PANEL; i++) tail[i] = max;
    memcpy(tail, x + k, (size_t)(n - k) * sizeof *x);
    for (int i = 0; i < REGS; i++) v_store(tail + i * CHI_LANES, v_exp(v_sub(v_load(tail + i * CHI_LANES), top)));
    for (int64_t i = 0; i < n - k; i++) lanes[i] += tail[i];
    if (e != NULL) memcpy(e + k, tail, (size_t)(n - k) * sizeof *e);
  }
  return chi_lane_tree(lanes);
}

static void row_div(float *x, float s, int64_t n) {
  int64_t k = 0;
  for (; k + CHI_LANES <= n; k += CHI_LANES) v_store(x + k, v_div(v_load(x + k), v_set(s)));
  for (; k < n; k++) x[k] = x[k] / s;
}

LANE_FN void act_of(chi_act act, const float *x, const float *u, float *y, int64_t n) {
  int64_t k = 0;
  for (; k + CHI_LANES <= n; k += CHI_LANES) {
    vf v = v_act(act, v_load(x + k));
    v_store(y + k, u != NULL ? v_mul(v, v_load(u + k)) : v);
  }
  if (k == n) return;
  float tail[CHI_LANES] = {0};
  memcpy(tail, x + k, (size_t)(n - k) * sizeof *x);
  v_store(tail, v_act(act, v_load(tail)));
  for (int i = 0; k < n; k++, i++) y[k] = u != NULL ? tail[i] * u[k] : tail[i];
}

static void row_act(chi_act act, const float *x, const float *u, float *y, int64_t n) {
  switch (act) {
    case CHI_ACT_SILU:
      act_of(CHI_ACT_SILU, x, u, y, n);
      break;
    case CHI_ACT_GELU_ERF:
      act_of(CHI_ACT_GELU_ERF, x, u, y, n);
      break;
    case CHI_ACT_GELU_TANH:
      act_of(CHI_ACT_GELU_TANH, x, u, y, n);
      break;
    case CHI_ACT_QUICK_GELU:
      act_of(CHI_ACT_QUICK_GELU, x, u, y, n);
      break;
    case CHI_ACT_RELU:
      act_of(CHI_ACT_RELU, x, u, y, n);
      break;
  }
}

static void row_axpy(float *y, const float *x, float s, int64_t n) {
  int64_t k = 0;
  for (; k + CHI_LANES <= n; k += CHI_LANES) v_store(y + k, v_fma(v_set(s), v_load(x + k), v_load(y + k)));
  for (; k < n; k++) y[k] = fmaf(s, x[k], y[k]);
}

/* chi_exp64 on CHI_LANES / 2 doubles; what is near or beyond the range of doubles goes the slow way. */
typedef double vd __attribute__((vector_size(CHI_LANES * 4)));
typedef int64_t vl __attribute__((vector_size(CHI_LANES * 4)));
typedef float vh __attribute__((vector_size(CHI_LANES * 2)));
CHI_EXP64_CORE(exp64_core, vd)

static void row_exp64(double *y, const float *x, double shift, int64_t n) {
  enum { N = CHI_LANES / 2 };
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    vh in;
    memcpy(&in, x + i, sizeof in);
    vd v = __builtin_convertvector(in, vd) - shift, t = v * CHI_INV_LN2 + CHI_ROUNDER;
    vl outside = (vl)(v < -708.0) | (vl)(v > 708.0) | (vl)(v != v);
    int64_t any = 0;
    for (int j = 0; j < N; j++) any |= outside[j];
    if (any) {
      for (int j = 0; j < N; j++) y[i + j] = chi_exp64((double)x[i + j] - shift);
      continue;
    }
    vd zero = {0}, e = exp64_core(v, zero, t - CHI_ROUNDER);
    vl k = (vl)t - (vl)(zero + CHI_ROUNDER) + 1023; /* the integer stands in the low bits of t */
    e *= (vd)(k << 52);
    memcpy(y + i, &e, sizeof e);
  }
  for (; i < n; i++) y[i] = chi_exp64((double)x[i] - shift);
}

#define CHI_ROW_FUNCTIONS                                                                                     \
  .dot = row_dot, .sum = row_sum, .sqdev = row_sqdev, .max = row_max, .exp_sum = row_exp_sum, .div = row_div, \
  .act = row_act, .axpy = row_axpy, .exp64 = row_exp64, .dots4 = row_dots4, .mix4 = row_mix4

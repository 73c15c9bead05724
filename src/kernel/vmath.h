/* Inside kernel/ only: elementary functions and activations on lanes (lanes.h). No branches and no libm: each is a
 * fixed list of IEEE operations, so a lane's bits do not depend on its neighbours or on the instruction set.
 * The polynomials are minimax fits of our own, made in 120-bit arithmetic; tests/test_kernel.c holds the error bounds. */
#ifndef CHI_KERNEL_VMATH_H
#define CHI_KERNEL_VMATH_H

#include "kernel/kernel.h"
#include "kernel/lanes.h"

#define VM_INF 0x7f800000u
#define VM_SIGN 0x80000000u

/* exp: x = n ln2 + r, |r| <= ln2/2, exp(r) by a degree-6 polynomial, 2^n through the exponent field.
 * n is taken from the low bits of x*log2(e) + 1.5*2^23, where the addition itself rounds to an integer.
 * Below -87.33 the result is 0 (it would be denormal just under that), above 88.7228 it is +inf; NaN stays NaN. */
LANE_FN vf v_exp(vf x) {
  const vf magic = v_set(12582912.0f);
  vf t = v_fma(x, v_set(0x1.715476p+0f), magic);
  vf n = v_sub(t, magic);
  vf r = v_fma(n, v_set(-0x1.62e430p-1f), x);
  r = v_fma(n, v_set(0x1.05c610p-29f), r);
  vf p = v_set(0x1.6a2314p-10f);
  p = v_fma(p, r, v_set(0x1.123a8ep-7f));
  p = v_fma(p, r, v_set(0x1.5558f6p-5f));
  p = v_fma(p, r, v_set(0x1.555490p-3f));
  p = v_fma(p, r, v_set(0x1.fffffcp-2f));
  p = v_fma(p, r, v_set(1.0f));
  p = v_fma(p, r, v_set(1.0f));
  vf y = v_from_bits(v_iadd(v_bits(p), v_shl23(v_bits(t))));
  y = v_if_lt(x, v_set(-87.33f), v_set(0.0f), y);
  y = v_if_lt(v_set(88.72283f), x, v_from_bits(v_iset(VM_INF)), y);
  return v_if_nan(x, x, y);
}

LANE_FN vf v_abs(vf x) { return v_from_bits(v_iand(v_bits(x), v_iset(0x7fffffffu))); }
/* |a| given, sign of b put on it */
LANE_FN vf v_with_sign(vf a, vf b) { return v_from_bits(v_ior(v_bits(a), v_iand(v_bits(b), v_iset(VM_SIGN)))); }

/* tanh: odd polynomial below 0.625, 1 - 2/(exp(2|x|) + 1) above. */
LANE_FN vf v_tanh(vf x) {
  vf s = v_mul(x, x);
  vf p = v_set(0x1.1974aep-9f);
  p = v_fma(p, s, v_set(-0x1.0c1f7ap-7f));
  p = v_fma(p, s, v_set(0x1.639480p-6f));
  p = v_fma(p, s, v_set(-0x1.b9ef76p-5f));
  p = v_fma(p, s, v_set(0x1.11106cp-3f));
  p = v_fma(p, s, v_set(-0x1.555554p-2f));
  vf small = v_fma(v_mul(p, s), x, x);
  vf a = v_abs(x);
  vf e = v_exp(v_add(a, a));
  vf large = v_sub(v_set(1.0f), v_div(v_set(2.0f), v_add(e, v_set(1.0f))));
  return v_if_lt(a, v_set(0.625f), small, v_with_sign(large, x));
}

/* erf: odd polynomial below 0.921875, 1 - exp(-t - t Q(t)) above (Q fitted to -log(erfc t)/t - 1 up to 3.95,
 * after which erf is 1 in f32). */
LANE_FN vf v_erf(vf x) {
  vf s = v_mul(x, x);
  vf p = v_set(0x1.5eeb10p-14f);
  p = v_fma(p, s, v_set(-0x1.aade40p-11f));
  p = v_fma(p, s, v_set(0x1.54d99ap-8f));
  p = v_fma(p, s, v_set(-0x1.b8105cp-6f));
  p = v_fma(p, s, v_set(0x1.ce2e1ep-4f));
  p = v_fma(p, s, v_set(-0x1.812744p-2f));
  p = v_fma(p, s, v_set(0x1.06eba8p-3f));
  vf small = v_fma(p, x, x);
  vf t = v_abs(x);
  vf c = v_if_lt(v_set(3.95f), t, v_set(3.95f), t); /* NaN passes */
  vf q = v_set(0x1.7a0016p-17f);
  q = v_fma(q, c, v_set(-0x1.52d73ap-12f));
  q = v_fma(q, c, v_set(0x1.dd9af8p-9f));
  q = v_fma(q, c, v_set(-0x1.855d8cp-6f));
  q = v_fma(q, c, v_set(0x1.b328fcp-4f));
  q = v_fma(q, c, v_set(0x1.45324ap-1f));
  q = v_fma(q, c, v_set(0x1.077920p-3f));
  vf large = v_sub(v_set(1.0f), v_exp(v_sub(v_set(0.0f), v_fma(q, c, c))));
  return v_if_lt(t, v_set(0.921875f), small, v_with_sign(large, x));
}

LANE_FN vf v_sigmoid_times(vf x, vf z) { /* x / (1 + exp(-z)) */
  return v_div(x, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), z))));
}

/* act is a constant after inlining: no branch is left in the loops. */
LANE_FN vf v_act(chi_act act, vf x) {
  const vf half = v_mul(x, v_set(0.5f));
  switch (act) {
    case CHI_ACT_SILU:
      return v_sigmoid_times(x, x);
    case CHI_ACT_QUICK_GELU:
      return v_sigmoid_times(x, v_mul(x, v_set(1.702f)));
    case CHI_ACT_GELU_ERF:
      return v_mul(half, v_add(v_set(1.0f), v_erf(v_mul(x, v_set(0x1.6a09e6p-1f)))));
    case CHI_ACT_GELU_TANH: {
      vf u = v_fma(v_mul(v_mul(x, x), x), v_set(0.044715f), x);
      return v_mul(half, v_add(v_set(1.0f), v_tanh(v_mul(u, v_set(0x1.988454p-1f)))));
    }
    case CHI_ACT_RELU:
      break;
  }
  return v_if_lt(x, v_set(0.0f), v_set(0.0f), x); /* NaN stays NaN */
}

#endif

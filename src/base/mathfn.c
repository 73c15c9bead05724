/* Elementary functions from +, -, *, / and fma only, so that their bits depend neither on libm nor on the machine.
 * Results below the smallest normal number become 0 here: the flush-to-zero mode of kernels makes them 0 anyway. */
#include "base/base.h"
#include "base/exp64.h"

#include <math.h>
#include <string.h>

static uint64_t bits_of(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static double from_bits(uint64_t u) {
  double x;
  memcpy(&x, &u, sizeof x);
  return x;
}

/* A number as an unevaluated sum hi + lo, |lo| <= ulp(hi)/2. */
typedef struct dd {
  double hi, lo;
} dd;

static dd two_sum(double a, double b) {
  double s = a + b;
  double t = s - a;
  return (dd){s, (a - (s - t)) + (b - t)};
}

static dd fast_two_sum(double a, double b) { /* |a| >= |b| */
  double s = a + b;
  return (dd){s, b - (s - a)};
}

static dd two_prod(double a, double b) {
  double p = a * b;
  return (dd){p, fma(a, b, -p)};
}

static dd dd_mul(dd a, dd b) {
  dd p = two_prod(a.hi, b.hi);
  p.lo += a.hi * b.lo + a.lo * b.hi;
  return fast_two_sum(p.hi, p.lo);
}

static dd dd_add(dd a, dd b) {
  dd s = two_sum(a.hi, b.hi);
  s.lo += a.lo + b.lo;
  return fast_two_sum(s.hi, s.lo);
}

CHI_EXP64_CORE(exp_core, double)

/* exp(x + lo), lo tiny against x. */
static double exp_dd(double x, double lo) {
  if (x != x) return x;
  if (x > 709.782712893383973096) return HUGE_VAL;
  if (x < -708.396418532264106216) return 0.0;
  double k = (x * CHI_INV_LN2 + CHI_ROUNDER) - CHI_ROUNDER, y = exp_core(x, lo, k);
  int64_t e = (int64_t)k;
  if (e > 1023) return y * 0x1p1023 * from_bits((uint64_t)(e - 1023 + 1023) << 52);
  if (e < -1022) { /* y < 1 can only round up to the smallest normal here */
    double scaled = y * 2.0;
    return scaled * from_bits((uint64_t)(e - 1 + 1023) << 52);
  }
  return y * from_bits((uint64_t)(e + 1023) << 52);
}

double chi_exp64(double x) { return exp_dd(x, 0.0); }

/* x = m * 2^e with m in [sqrt(1/2), sqrt(2)), x finite and > 0. Integer operations only: right for subnormals even
 * where the machine takes them for zero. */
static double split(uint64_t u, int *e) {
  int ex = (int)(u >> 52);
  uint64_t frac = u & 0x000fffffffffffffu;
  if (ex == 0) {
    int shift = __builtin_clzll(frac) - 11;
    frac = (frac << shift) & 0x000fffffffffffffu;
    ex = 1 - shift;
  }
  double m = from_bits(frac | ((uint64_t)1023 << 52));
  if (m >= 1.41421356237309504880) {
    m *= 0.5;
    ex++;
  }
  *e = ex - 1023;
  return m;
}

/* 2 * (z/3 + z^2/5 + ...) / z^first without the leading powers: odd-reciprocal series of atanh. */
static double atanh_tail(double z, int first, int last) {
  double p = 1.0 / (2 * last + 1);
  for (int n = last - 1; n >= first; n--) p = p * z + 1.0 / (2 * n + 1);
  return p;
}

/* What libm gives for arguments without a finite logarithm; true if x is such a one. */
static bool log_special(double x, uint64_t u, double *y) {
  uint64_t mag = u & 0x7fffffffffffffffu;
  if (mag == 0) {
    *y = -HUGE_VAL;
  } else if (mag > 0x7ff0000000000000u) {
    *y = x;
  } else if (u >> 63) {
    *y = from_bits(0x7ff8000000000000u);
  } else if (mag == 0x7ff0000000000000u) {
    *y = x;
  } else {
    return false;
  }
  return true;
}

double chi_log64(double x) {
  double y;
  uint64_t u = bits_of(x);
  if (log_special(x, u, &y)) return y;
  int e;
  double f = split(u, &e) - 1.0; /* exact */
  double s = f / (2.0 + f);
  double z = s * s;
  double r = 2.0 * z * atanh_tail(z, 1, 11);
  double half = 0.5 * f * f;
  /* log(1 + f) = f - (f^2/2 - s (f^2/2 + r)): the large term f is exact, all roundings are in small ones */
  double k = e;
  return k * CHI_LN2_HI + (f - (half - (s * (half + r) + k * CHI_LN2_LO)));
}

/* log of x in about 100 bits, for pow. */
static dd log_dd(uint64_t u) {
  static const dd ln2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
  static const dd third = {0x1.5555555555555p-2, 0x1.5555555555555p-56};
  int e;
  double f = split(u, &e) - 1.0;
  dd den = two_sum(2.0, f);
  double s_hi = f / den.hi;
  dd s = fast_two_sum(s_hi, (fma(-s_hi, den.hi, f) - s_hi * den.lo) / den.hi);
  dd z = dd_mul(s, s);
  dd t = dd_mul(z, third);
  dd tail = two_sum(t.hi, z.hi * z.hi * atanh_tail(z.hi, 2, 11));
  tail.lo += t.lo;
  dd two_s = {2.0 * s.hi, 2.0 * s.lo};
  dd frac = dd_add(two_s, dd_mul(two_s, tail));
  return dd_add(dd_mul((dd){e, 0.0}, ln2), frac);
}

double chi_pow64(double base, double e) {
  double y;
  uint64_t u = bits_of(base);
  if (e == 0.0 || base == 1.0) return 1.0;
  if (base != base || e != e) return base + e;
  if (log_special(base, u, &y)) return exp_dd(y * e, 0.0);
  dd l = log_dd(u);
  double p = e * l.hi;
  if (!(p > -1e4 && p < 1e4)) return exp_dd(p, 0.0); /* overflow, underflow, infinite e */
  return exp_dd(p, fma(e, l.hi, -p) + e * l.lo);
}

/* x - n * pi/2 for the nearest n; n's last two bits are returned. pi/2 in parts of 22 bits, so that n < 2^31 times a
 * part is exact; seven parts hold the result's relative error below 2^-53 for every double up to 2^31. */
static unsigned reduce(double x, dd *r) {
  static const double part[] = {0x1.921fb00000000p+0,  0x1.5110b00000000p-22, 0x1.1846980000000p-44,
                                0x1.3198800000000p-69, 0x1.1701b80000000p-88, 0x1.cd12000000000p-115,
                                0x1.2049c1114cf99p-132};
  double n = (x * 0x1.45f306dc9c883p-1 + CHI_ROUNDER) - CHI_ROUNDER;
  double t = (x - n * part[0]) - n * part[1]; /* both exact */
  double lo = 0.0;
  for (size_t i = 2; i < sizeof part / sizeof part[0]; i++) {
    dd s = two_sum(t, -n * part[i]);
    dd v = two_sum(s.hi, lo + s.lo);
    t = v.hi;
    lo = v.lo;
  }
  *r = (dd){t, lo};
  return (unsigned)((int64_t)n & 3);
}

void chi_sincos64(double x, double *s, double *c) {
  static const double sin_c[] = {/* 1/17! ... -1/3! */
                                 1.0 / 355687428096000.0, -1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0,
                                 1.0 / 362880.0,          -1.0 / 5040.0,          1.0 / 120.0,        -1.0 / 6.0};
  static const double cos_c[] = {
      /* 1/18! ... 1/4! (signs alternate) */
      -1.0 / 6402373705728000.0, 1.0 / 20922789888000.0, -1.0 / 87178291200.0, 1.0 / 479001600.0,
      -1.0 / 3628800.0,          1.0 / 40320.0,          -1.0 / 720.0,         1.0 / 24.0};
  if (!(x >= -2147483648.0 && x <= 2147483648.0)) { /* NaN, infinities and what the reduction does not cover */
    *s = *c = from_bits(0x7ff8000000000000u);
    return;
  }
  dd r;
  unsigned quadrant = reduce(x, &r);
  double z = r.hi * r.hi;
  double p = sin_c[0], q = cos_c[0];
  for (size_t i = 1; i < sizeof sin_c / sizeof sin_c[0]; i++) p = p * z + sin_c[i];
  for (size_t i = 1; i < sizeof cos_c / sizeof cos_c[0]; i++) q = q * z + cos_c[i];
  double half = 0.5 * z;
  double sn = r.hi + (r.hi * z * p + r.lo * (1.0 - half));
  double w = 1.0 - half;
  double cs = w + (((1.0 - w) - half) + (z * z * q - r.hi * r.lo));
  *s = quadrant == 0 ? sn : quadrant == 1 ? cs : quadrant == 2 ? -sn : -cs;
  *c = quadrant == 0 ? cs : quadrant == 1 ? -sn : quadrant == 2 ? -cs : sn;
}

/* The core of chi_exp64, written once for a double and for vectors of them. Private to base/mathfn.c and kernel/. */
#ifndef CHI_BASE_EXP64_H
#define CHI_BASE_EXP64_H

/* 1.5 * 2^52: adding and subtracting it rounds |x| < 2^51 to the nearest integer, ties to even. */
#define CHI_ROUNDER 0x1.8p52
#define CHI_LN2_HI 0x1.62e42fefa3800p-1 /* 42 bits: times an exponent it is exact */
#define CHI_LN2_LO 0x1.ef35793c76730p-45
#define CHI_INV_LN2 0x1.71547652b82fep+0

/* T NAME(x, lo, k): exp(x + lo) / 2^k for k = round(x / ln2), lo tiny against x: 1 + r + r^2 p, p = sum of r^i / (i + 2)!,
 * smallest parts first. */
#define CHI_EXP64_CORE(NAME, T)                                                                         \
  static inline T NAME(T x, T lo, T k) {                                                                \
    T r_hi = x - k * CHI_LN2_HI, r_lo = lo - k * CHI_LN2_LO, r = r_hi + r_lo, rest = r_lo - (r - r_hi); \
    T p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0; /* 1/13!, 1/12!, ... */                         \
    p = p * r + 1.0 / 39916800.0;                                                                       \
    p = p * r + 1.0 / 3628800.0;                                                                        \
    p = p * r + 1.0 / 362880.0;                                                                         \
    p = p * r + 1.0 / 40320.0;                                                                          \
    p = p * r + 1.0 / 5040.0;                                                                           \
    p = p * r + 1.0 / 720.0;                                                                            \
    p = p * r + 1.0 / 120.0;                                                                            \
    p = p * r + 1.0 / 24.0;                                                                             \
    p = p * r + 1.0 / 6.0;                                                                              \
    p = p * r + 0.5;                                                                                    \
    T one = 1.0 + r, tail = r - (one - 1.0);                                                            \
    return one + (tail + (r * r * p + rest * (1.0 + r)));                                               \
  }

#endif

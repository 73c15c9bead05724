/* quant: weights in blocks of 4 to 8 bits, as GGUF files store them. Blocks lie one after another along a row; all fields
 * are little-endian, scales are f16. q is an unsigned field unless said otherwise; nibble(i) of 16 bytes: low halves are
 * elements 0..15, high halves 16..31 (of 32 bytes: 0..31 and 32..63).
 *
 *   blocks of 32
 *     Q4_0  f16 d, 16 bytes of nibbles                              d (q - 8)
 *     Q4_1  f16 d, f16 m, 16 bytes of nibbles                       d q + m
 *     Q5_0  f16 d, u32 fifth bits (bit i = element i), 16 bytes     d (q - 16)
 *     Q5_1  f16 d, f16 m, u32 fifth bits, 16 bytes                  d q + m
 *     Q8_0  f16 d, 32 signed bytes                                  d q
 *   blocks of 256
 *     Q4_K  f16 d, f16 dmin, 12 bytes: 8 pairs (scale, min) of 6 bits, one for each 32 elements; then per 64 elements 32
 *           bytes of nibbles                                        (d scale) q - (dmin min)
 *     Q5_K  as Q4_K with 32 bytes of fifth bits before the nibbles: byte i, bit g = element 32 g + i
 *     Q6_K  128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales (one for each 16 elements), f16 d; in
 *           each half of 128: byte i of the nibbles holds elements i and 64 + i (i < 64), byte i of the pairs the upper
 *           bits of elements i, 32 + i, 64 + i and 96 + i            (d scale) (q - 32)
 *
 * Every product and sum above is rounded to f32 in the order written. */
#ifndef CHI_QUANT_H
#define CHI_QUANT_H

#include "tensor/dtype.h"

enum {
  CHI_QUANT_SMALL = 32,
  CHI_QUANT_LARGE = 256, /* also the most that a caller needs to convert at once */
  CHI_Q4_0_BYTES = 2 + 16,
  CHI_Q4_1_BYTES = 4 + 16,
  CHI_Q5_0_BYTES = 2 + 4 + 16,
  CHI_Q5_1_BYTES = 4 + 4 + 16,
  CHI_Q8_0_BYTES = 2 + 32,
  CHI_Q4_K_BYTES = 4 + 12 + 128,
  CHI_Q5_K_BYTES = 4 + 12 + 32 + 128,
  CHI_Q6_K_BYTES = 128 + 64 + 16 + 2,
};

/* n elements (a multiple of the block) of a quantised type. src has no alignment. */
int chi_dequantize(float *dst, const void *src, chi_dtype t, size_t n, chi_err *err);

#endif

#include "tensor/quant.h"

#include <string.h>

static uint16_t u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static float f16(const uint8_t *p) { return chi_f32_from_f16(u16(p)); }

static void q4_0(float *y, const uint8_t *b) {
  float d = f16(b);
  for (int i = 0; i < 16; i++) {
    y[i] = d * (float)((b[2 + i] & 15) - 8);
    y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
  }
}

static void q4_1(float *y, const uint8_t *b) {
  float d = f16(b), m = f16(b + 2);
  for (int i = 0; i < 16; i++) {
    y[i] = d * (float)(b[4 + i] & 15) + m;
    y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
  }
}

/* Element i of a block of 32 with fifth bits. */
static int five(const uint8_t *high, const uint8_t *low, int i) {
  int nibble = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
  return nibble | (high[i / 8] >> (i % 8) & 1) << 4;
}

static void q5_0(float *y, const uint8_t *b) {
  float d = f16(b);
  for (int i = 0; i < 32; i++) y[i] = d * (float)(five(b + 2, b + 6, i) - 16);
}

static void q5_1(float *y, const uint8_t *b) {
  float d = f16(b), m = f16(b + 2);
  for (int i = 0; i < 32; i++) y[i] = d * (float)five(b + 4, b + 8, i) + m;
}

static void q8_0(float *y, const uint8_t *b) {
  float d = f16(b);
  for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}

/* Pair g of the 12 bytes of scales: the first four pairs are the low 6 bits of bytes 0-3 and 4-7; the last four have
 * their low 4 bits in bytes 8-11 and the upper two in the top of bytes 0-3 and 4-7. */
static void scale_min(const uint8_t *s, int g, float *scale, float *min) {
  int k = g & 3;
  if (g < 4) {
    *scale = (float)(s[k] & 63);
    *min = (float)(s[4 + k] & 63);
  } else {
    *scale = (float)((s[8 + k] & 15) | (s[k] >> 6) << 4);
    *min = (float)(s[8 + k] >> 4 | (s[4 + k] >> 6) << 4);
  }
}

/* high NULL: no fifth bits */
static void k45(float *y, const uint8_t *b, const uint8_t *high, const uint8_t *low) {
  float d = f16(b), dmin = f16(b + 2);
  for (int g = 0; g < 8; g++, y += 32) {
    float scale, min;
    scale_min(b + 4, g, &scale, &min);
    scale *= d;
    min *= dmin;
    const uint8_t *q = low + g / 2 * 32;
    int shift = g % 2 * 4;
    for (int i = 0; i < 32; i++) {
      int v = q[i] >> shift & 15;
      if (high) v |= (high[i] >> g & 1) << 4;
      y[i] = scale * (float)v - min;
    }
  }
}

static void q4_k(float *y, const uint8_t *b) { k45(y, b, NULL, b + 16); }
static void q5_k(float *y, const uint8_t *b) { k45(y, b, b + 16, b + 48); }

static void q6_k(float *y, const uint8_t *b) {
  const uint8_t *low = b, *high = b + 128, *scales = b + 192;
  float d = f16(b + 208);
  for (int half = 0; half < 2; half++, low += 64, high += 32) {
    for (int e = 0; e < 128; e++) {
      int nibble = low[e % 64] >> e / 64 * 4 & 15, pair = high[e % 32] >> e / 32 * 2 & 3;
      float scale = d * (float)(int8_t)scales[half * 8 + e / 16];
      y[half * 128 + e] = scale * (float)((nibble | pair << 4) - 32);
    }
  }
}

int chi_dequantize(float *dst, const void *src, chi_dtype t, size_t n, chi_err *err) {
  static void (*const read[CHI_DTYPE_END])(float *y, const uint8_t *b) = {
      [CHI_Q4_0] = q4_0, [CHI_Q4_1] = q4_1, [CHI_Q5_0] = q5_0, [CHI_Q5_1] = q5_1,
      [CHI_Q8_0] = q8_0, [CHI_Q4_K] = q4_k, [CHI_Q5_K] = q5_k, [CHI_Q6_K] = q6_k,
  };
  size_t block = (size_t)chi_dtype_block(t), bytes = chi_dtype_bytes(t, block);
  const uint8_t *p = src;
  if ((unsigned)t >= CHI_DTYPE_END || !read[t])
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "elements of type %s are not quantised blocks", chi_dtype_name(t));
  if (n % block != 0)
    return chi_fail(err, CHI_ERR_ARG, "%zu elements are not whole blocks of %s (%zu)", n, chi_dtype_name(t), block);
  for (; n; n -= block, p += bytes, dst += block) read[t](dst, p);
  return 0;
}

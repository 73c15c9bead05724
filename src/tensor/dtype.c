#include "tensor/dtype.h"

#include <string.h>

#include "tensor/quant.h"

static const struct {
  const char *name;
  size_t size; /* bytes of an element, or of a block */
  int64_t block;
  bool is_float;
} types[CHI_DTYPE_END] = {
    [CHI_F32] = {"F32", 4, 1, true},
    [CHI_F16] = {"F16", 2, 1, true},
    [CHI_BF16] = {"BF16", 2, 1, true},
    [CHI_F64] = {"F64", 8, 1, true},
    [CHI_I64] = {"I64", 8, 1, false},
    [CHI_I32] = {"I32", 4, 1, false},
    [CHI_I16] = {"I16", 2, 1, false},
    [CHI_I8] = {"I8", 1, 1, false},
    [CHI_U8] = {"U8", 1, 1, false},
    [CHI_BOOL] = {"BOOL", 1, 1, false},
    [CHI_Q4_0] = {"Q4_0", CHI_Q4_0_BYTES, CHI_QUANT_SMALL, false},
    [CHI_Q4_1] = {"Q4_1", CHI_Q4_1_BYTES, CHI_QUANT_SMALL, false},
    [CHI_Q5_0] = {"Q5_0", CHI_Q5_0_BYTES, CHI_QUANT_SMALL, false},
    [CHI_Q5_1] = {"Q5_1", CHI_Q5_1_BYTES, CHI_QUANT_SMALL, false},
    [CHI_Q8_0] = {"Q8_0", CHI_Q8_0_BYTES, CHI_QUANT_SMALL, false},
    [CHI_Q4_K] = {"Q4_K", CHI_Q4_K_BYTES, CHI_QUANT_LARGE, false},
    [CHI_Q5_K] = {"Q5_K", CHI_Q5_K_BYTES, CHI_QUANT_LARGE, false},
    [CHI_Q6_K] = {"Q6_K", CHI_Q6_K_BYTES, CHI_QUANT_LARGE, false},
};

static bool known(chi_dtype t) { return (unsigned)t < CHI_DTYPE_END && types[t].name; }

size_t chi_dtype_size(chi_dtype t) { return known(t) && types[t].block == 1 ? types[t].size : 0; }
int64_t chi_dtype_block(chi_dtype t) { return known(t) ? types[t].block : 1; }
size_t chi_dtype_bytes(chi_dtype t, size_t n) { return known(t) ? n / (size_t)types[t].block * types[t].size : 0; }
const char *chi_dtype_name(chi_dtype t) { return known(t) ? types[t].name : "?"; }
bool chi_dtype_is_float(chi_dtype t) { return known(t) && types[t].is_float; }
bool chi_dtype_is_quant(chi_dtype t) { return known(t) && types[t].block > 1; }
bool chi_dtype_is_weight(chi_dtype t) { return chi_dtype_is_float(t) || chi_dtype_is_quant(t); }

int chi_dtype_parse(chi_dtype *out, const char *name, chi_err *err) {
  for (unsigned i = 0; i < CHI_DTYPE_COUNT; i++) {
    if (strcmp(name, types[i].name) == 0) {
      *out = (chi_dtype)i;
      return 0;
    }
  }
  return chi_fail(err, CHI_ERR_UNSUPPORTED,
                  "dtype \"%.40s\" is not supported; F32, F16, BF16, F64, I64, I32, I16, I8, U8 and BOOL are", name);
}

static uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static float from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

/* All conversions work on integers: the flush-to-zero mode of kernels does not change them. */
chi_bf16 chi_bf16_from_f32(float x) {
  uint32_t u = bits_of(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (chi_bf16)(u >> 16 | 0x40u);
  return (chi_bf16)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

float chi_f32_from_bf16(chi_bf16 x) { return from_bits((uint32_t)x << 16); }

uint16_t chi_f16_from_f32(float x) {
  uint32_t u = bits_of(x);
  uint32_t sign = u >> 16 & 0x8000u, mag = u & 0x7FFFFFFFu;
  if (mag > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (mag >> 13 & 0x3FFu));
  if (mag >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and above round to infinity */
  if (mag >= 0x38800000u) {                                  /* normal: 2^-14 and above */
    uint32_t r = mag - 0x38000000u;
    return (uint16_t)(sign | (r + 0xFFFu + (r >> 13 & 1u)) >> 13);
  }
  if (mag < 0x33000000u) return (uint16_t)sign; /* below half of the smallest subnormal */
  uint32_t frac = (mag & 0x7FFFFFu) | 0x800000u;
  uint32_t shift = 126u - (mag >> 23); /* 14 .. 24 */
  uint32_t half = 1u << (shift - 1), low = frac & ((1u << shift) - 1u), q = frac >> shift;
  if (low > half || (low == half && (q & 1u))) q++;
  return (uint16_t)(sign | q);
}

float chi_f32_from_f16(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000u) << 16, e = x >> 10 & 31u, frac = x & 0x3FFu;
  if (e == 31) return from_bits(sign | 0x7F800000u | frac << 13);
  if (e != 0) return from_bits(sign | (e + 112u) << 23 | frac << 13);
  if (frac == 0) return from_bits(sign);
  uint32_t shift = (uint32_t)__builtin_clz(frac) - 21u; /* subnormal: move the first set bit to the hidden place */
  return from_bits(sign | (113u - shift) << 23 | (frac << shift & 0x3FFu) << 13);
}

/* Sources come from files, where nothing promises alignment: every load goes through memcpy. */
int chi_to_f32(float *dst, const void *src, chi_dtype t, size_t n, chi_err *err) {
  const uint8_t *p = src;
  switch (t) {
    case CHI_F32:
      if (n) memcpy(dst, p, n * sizeof *dst);
      return 0;
    case CHI_F16:
    case CHI_BF16:
      for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, p + 2 * i, sizeof v);
        dst[i] = t == CHI_F16 ? chi_f32_from_f16(v) : chi_f32_from_bf16(v);
      }
      return 0;
    case CHI_F64:
      for (size_t i = 0; i < n; i++) {
        double v;
        memcpy(&v, p + 8 * i, sizeof v);
        dst[i] = (float)v;
      }
      return 0;
    default:
      if (chi_dtype_is_quant(t)) return chi_dequantize(dst, src, t, n, err);
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "elements of type %s cannot be read as numbers of a float tensor",
                      chi_dtype_name(t));
  }
}

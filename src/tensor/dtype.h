/* tensor: element types and conversion. Conversions to 16 bits round to nearest, ties to even. */
#ifndef CHI_DTYPE_H
#define CHI_DTYPE_H

#include "base/base.h"

typedef enum chi_dtype {
  CHI_F32, CHI_F16, CHI_BF16, CHI_F64, CHI_I64, CHI_I32, CHI_I16, CHI_I8, CHI_U8, CHI_BOOL, CHI_DTYPE_COUNT
} chi_dtype;

size_t chi_dtype_size(chi_dtype t);           /* bytes */
const char *chi_dtype_name(chi_dtype t);      /* safetensors' name: "F32", "BF16", ... */
int chi_dtype_parse(chi_dtype *out, const char *name, chi_err *err);
bool chi_dtype_is_float(chi_dtype t);         /* F32, F16, BF16, F64 */

typedef uint16_t chi_bf16;
chi_bf16 chi_bf16_from_f32(float x); /* NaN stays NaN (quiet) */
float chi_f32_from_bf16(chi_bf16 x);
uint16_t chi_f16_from_f32(float x);
float chi_f32_from_f16(uint16_t x);
/* n elements of a float type to f32. dst and src do not overlap. */
int chi_to_f32(float *dst, const void *src, chi_dtype t, size_t n, chi_err *err);

#endif

/* tensor: element types and conversion. Conversions to 16 bits round to nearest, ties to even. */
#ifndef CHI_DTYPE_H
#define CHI_DTYPE_H

#include "base/base.h"

typedef enum chi_dtype {
  CHI_F32, CHI_F16, CHI_BF16, CHI_F64, CHI_I64, CHI_I32, CHI_I16, CHI_I8, CHI_U8, CHI_BOOL,
  CHI_DTYPE_COUNT, /* the plain types end here; blocks of quantised weights (tensor/quant.h) follow, from GGUF files only */
  CHI_Q4_0, CHI_Q4_1, CHI_Q5_0, CHI_Q5_1, CHI_Q8_0, CHI_Q4_K, CHI_Q5_K, CHI_Q6_K, CHI_DTYPE_END
} chi_dtype;

size_t chi_dtype_size(chi_dtype t);           /* bytes of an element; 0 for quantised blocks */
int64_t chi_dtype_block(chi_dtype t);         /* elements that are stored together: 1, or 32 or 256 for quantised blocks */
size_t chi_dtype_bytes(chi_dtype t, size_t n); /* bytes of n elements; n is a multiple of the block */
const char *chi_dtype_name(chi_dtype t);      /* safetensors' name: "F32", "BF16", ...; GGUF's for blocks: "Q4_K", ... */
int chi_dtype_parse(chi_dtype *out, const char *name, chi_err *err);
bool chi_dtype_is_float(chi_dtype t);         /* F32, F16, BF16, F64 */
bool chi_dtype_is_quant(chi_dtype t);         /* quantised blocks */
bool chi_dtype_is_weight(chi_dtype t);        /* either: chi_to_f32 reads it */

typedef uint16_t chi_bf16;
chi_bf16 chi_bf16_from_f32(float x); /* NaN stays NaN (quiet) */
float chi_f32_from_bf16(chi_bf16 x);
uint16_t chi_f16_from_f32(float x);
float chi_f32_from_f16(uint16_t x);
/* n elements of a weight type to f32 (n: a multiple of the type's block). dst and src do not overlap. */
int chi_to_f32(float *dst, const void *src, chi_dtype t, size_t n, chi_err *err);

#endif

/* The two functions that a CPU with AMX-BF16 puts in the place of AVX-512's (kernel/table.h says what they do). */
#ifndef CHI_KERNEL_X86_BF16_AMX_H
#define CHI_KERNEL_X86_BF16_AMX_H

#include "kernel/table.h"

#define CHI_AMX_ROWS 32 /* most rows of a tile of the driver: two AMX tiles */

void chi_tile_bf16_amx(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                       chi_tile_mode mode, const chi_ahead *ahead);
void chi_row_bf16_amx(chi_bf16 *out, const float *x, int64_t k, int64_t kp);

#endif

/* AMX: the bf16 product on the CPU's tiles. The canonical order is that of TDPBF16PS, and the packed panels lie as its
 * second operand, so there is nothing to turn: two tiles of rows by two of outputs are kept over all of k.
 * tests/test_amx.c runs this file on tiles in software (it defines TILE_LOAD and the others first), so that it is
 * tested where there is no AMX. */
#include "kernel/x86/bf16_amx.h"

#ifndef TILE_LOAD
#include <immintrin.h>
#define TILE_CONFIG(config) _tile_loadconfig(config)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_DP(to, a, b) _tile_dpbf16ps(to, a, b)
#endif

/* Tiles 0 to 3 are sums [upper, lower rows][first, second 16 outputs], 4 and 5 rows, 6 and 7 the panel. */
typedef struct tile_config {
  uint8_t palette, start, reserved[14];
  uint16_t line_bytes[16];
  uint8_t lines[16];
} tile_config;

/* Set the calling thread's tiles up for so many rows; done again only when the number changes. */
static void configure(int rows) {
  static _Thread_local int current;
  if (rows == current) return;
  current = rows;
  tile_config t = {.palette = 1};
  int upper = rows < 16 ? rows : 16, lower = rows - upper > 0 ? rows - upper : 1;
  for (int i = 0; i < 8; i++) {
    t.line_bytes[i] = 64;
    t.lines[i] = 16;
  }
  t.lines[0] = t.lines[1] = t.lines[4] = (uint8_t)upper;
  t.lines[2] = t.lines[3] = t.lines[5] = (uint8_t)lower;
  TILE_CONFIG(&t);
}

void chi_tile_bf16_amx(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c, int64_t ldc,
                       chi_tile_mode mode, const chi_ahead *ahead) {
  const chi_bf16 *up = a, *low = up + 16 * lda;
  const size_t a_line = (size_t)lda * sizeof *up, c_line = (size_t)ldc * sizeof *c;
  float *c_low = c + 16 * ldc;
  const bool two = rows > 16;
  (void)ahead; /* what it would gain was never measured: no such CPU was at hand */
  configure(rows);
  if (mode == CHI_TILE_SET) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  } else {
    TILE_LOAD(0, c, c_line);
    TILE_LOAD(1, c + 16, c_line);
    if (two) {
      TILE_LOAD(2, c_low, c_line);
      TILE_LOAD(3, c_low + 16, c_line);
    }
  }
  for (int64_t i = 0; i < k; i += 32, b += 1024) {
    TILE_LOAD(4, up + i, a_line);
    TILE_LOAD(6, b, 64);
    TILE_LOAD(7, b + 512, 64);
    TILE_DP(0, 4, 6);
    TILE_DP(1, 4, 7);
    if (two) {
      TILE_LOAD(5, low + i, a_line);
      TILE_DP(2, 5, 6);
      TILE_DP(3, 5, 7);
    }
  }
  TILE_STORE(0, c, c_line);
  TILE_STORE(1, c + 16, c_line);
  if (two) {
    TILE_STORE(2, c_low, c_line);
    TILE_STORE(3, c_low + 16, c_line);
  }
}

void chi_row_bf16_amx(chi_bf16 *out, const float *x, int64_t k, int64_t kp) {
  for (int64_t i = 0; i < k; i++) {
    union {
      float f;
      uint32_t u;
    } v = {.f = chi_round_bf16(x[i])};
    out[i] = (chi_bf16)(v.u >> 16);
  }
  for (int64_t i = k; i < kp; i++) out[i] = 0;
}

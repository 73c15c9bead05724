/* The AMX tile of the bf16 product, on tiles in software that do what Intel's manual says of TDPBF16PS: two chains of
 * fused multiply-adds from zero over the even and the odd halves of the pairs, added, then added to the sum. The result
 * must have the bits of the portable tile. What this cannot show is the unit itself: test_kernel does, where there is
 * one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernel/table.h"

typedef struct soft_tile {
  unsigned char line[16][64];
} soft_tile;
static soft_tile tiles[8];
static unsigned char lines[8];

static void soft_config(const void *config) {
  const unsigned char *c = config;
  assert_int_equal(c[0], 1); /* palette */
  for (int t = 0; t < 8; t++) {
    assert_int_equal(c[16 + 2 * t] | c[17 + 2 * t] << 8, 64);
    lines[t] = c[48 + t];
    assert_in_range(lines[t], 1, 16);
    memset(&tiles[t], 0, sizeof tiles[t]);
  }
}
static void soft_load(int t, const void *from, size_t stride) {
  for (int i = 0; i < lines[t]; i++) memcpy(tiles[t].line[i], (const char *)from + (size_t)i * stride, 64);
}
static void soft_store(int t, void *to, size_t stride) {
  for (int i = 0; i < lines[t]; i++) memcpy((char *)to + (size_t)i * stride, tiles[t].line[i], 64);
}
static float half(const soft_tile *t, int line, int i) {
  chi_bf16 h;
  memcpy(&h, t->line[line] + 2 * i, sizeof h);
  return chi_widen_bf16(h);
}
static void soft_dp(int to, int a, int b) {
  assert_int_equal(lines[to], lines[a]);
  for (int m = 0; m < lines[to]; m++)
    for (int n = 0; n < 16; n++) {
      float even = 0, odd = 0, sum;
      for (int p = 0; p < 16; p++) {
        even = fmaf(half(&tiles[a], m, 2 * p), half(&tiles[b], p, 2 * n), even);
        odd = fmaf(half(&tiles[a], m, 2 * p + 1), half(&tiles[b], p, 2 * n + 1), odd);
      }
      memcpy(&sum, tiles[to].line[m] + 4 * n, 4);
      sum += even + odd;
      memcpy(tiles[to].line[m] + 4 * n, &sum, 4);
    }
}

#define TILE_CONFIG(config) soft_config(config)
#define TILE_LOAD(tile, from, stride) soft_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) soft_store(tile, to, stride)
#define TILE_ZERO(tile) memset(&tiles[tile], 0, sizeof tiles[tile])
#define TILE_DP(to, a, b) soft_dp(to, a, b)
#define chi_tile_bf16_amx soft_tile_bf16
#define chi_row_bf16_amx soft_row_bf16
#include "kernel/x86/bf16_amx.c"

static uint64_t seed = 7;
static float draw(void) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(seed >> 33) / 2147483648.0 - 0.5) * 4.0f;
}

enum { K = 100, KP = 128, LDC = 40 };

static void test_tile(void **state) {
  (void)state;
  unsigned saved = chi_fp_begin();
  chi_bf16 panel[KP * 32];
  for (int i = 0; i < KP * 32; i++) {
    float w = chi_round_bf16(draw());
    uint32_t u;
    memcpy(&u, &w, sizeof u);
    panel[i] = (chi_bf16)(u >> 16);
  }
  float x[CHI_AMX_ROWS][K];
  for (int r = 0; r < CHI_AMX_ROWS; r++)
    for (int i = 0; i < K; i++) x[r][i] = draw();
  for (int turn = 0; turn < 2 * CHI_AMX_ROWS; turn++) {
    int rows = turn / 2 + 1;
    chi_tile_mode mode = turn % 2 ? CHI_TILE_ADD : CHI_TILE_SET;
    float got[CHI_AMX_ROWS * LDC], want[CHI_AMX_ROWS * LDC], columns[KP * CHI_AMX_ROWS] = {0};
    const float *left[CHI_AMX_ROWS];
    chi_bf16 packed[CHI_AMX_ROWS * KP];
    for (int i = 0; i < CHI_AMX_ROWS * LDC; i++) got[i] = want[i] = draw();
    for (int r = 0; r < rows; r++) {
      left[r] = x[r];
      memset(packed + r * KP, 0xff, KP * sizeof *packed);
      soft_row_bf16(packed + r * KP, x[r], K, KP);
    }
    chi_interleave(columns, CHI_AMX_ROWS, left, rows, K, true);
    soft_tile_bf16(rows, KP, packed, KP, panel, got, LDC, mode, &(chi_ahead){.at = (const char *)panel, .tiles = 1});
    chi_kernels_portable.tile_bf16(rows, KP, columns, CHI_AMX_ROWS, panel, want, LDC, mode,
                                   &(chi_ahead){.at = (const char *)panel, .tiles = 1});
    assert_memory_equal(got, want, sizeof got); /* nothing outside the tile is touched either */
  }
  chi_fp_end(saved);
}

/* ---- what the drivers make of the AMX row -------------------------------------------------------------------- */
/* Its table with the tiles in software; where the other functions cannot run, the portable ones. */
static chi_kernel_table soft_table(void) {
  chi_kernel_table t = chi_kernels_portable;
#if defined(__x86_64__)
  if (chi_isa_available(CHI_ISA_AVX512)) t = chi_kernels_amx;
#endif
  t.mr_bf16 = CHI_AMX_ROWS;
  t.tile_bf16 = soft_tile_bf16;
  t.row_bf16 = soft_row_bf16;
  return t;
}

static float *drawn(int64_t n) {
  float *x = malloc((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = draw();
  return x;
}

/* Both ways through the matrix, with few rows, uneven edges, more than one block of rows, rows packed for all tasks. */
static void test_products(void **state) {
  (void)state;
  static const int sizes[][3] = {{1, 33, 40},   {15, 64, 96},  {33, 70, 200},
                                 {70, 40, 513}, {197, 65, 64}, {40, 1100, 64}};
  const chi_kernel_table soft = soft_table(), *chosen = chi_kernels;
  chi_set_threads(1); /* the tiles in software are one set */
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
    float *weights = drawn(n * k), *x = drawn(m * k), *dy = drawn(m * n);
    float *y[2], *dx[2];
    chi_mat w;
    assert_int_equal(chi_mat_pack(&w, weights, CHI_F32, n, k, k, CHI_COMPUTE_BF16, NULL), 0);
    for (int i = 0; i < 2; i++) {
      chi_kernels = i ? &soft : &chi_kernels_portable;
      y[i] = drawn(m * n), dx[i] = drawn(m * k);
      assert_int_equal(chi_gemm(&w, x, k, y[i], n, m, NULL, NULL), 0);
      assert_int_equal(chi_gemm_t(&w, dy, n, dx[i], k, m, NULL), 0);
    }
    assert_memory_equal(y[0], y[1], (size_t)(m * n) * sizeof(float));
    assert_memory_equal(dx[0], dx[1], (size_t)(m * k) * sizeof(float));
    for (int i = 0; i < 2; i++) free(y[i]), free(dx[i]);
    free(weights), free(x), free(dy);
    chi_mat_free(&w);
  }
  chi_kernels = chosen;
}

/* Attention reads f32 blocks with tiles of its own, however many rows the products' tiles take. */
static void test_attention(void **state) {
  (void)state;
  enum { N = 45, HEADS = 4, KV = 2, HD = 48, WIDTH = HEADS * HD, BLOCKS = (N + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK };
  const chi_kernel_table soft = soft_table(), *chosen = chi_kernels;
  static float kb[BLOCKS][KV * HD * CHI_KV_BLOCK], vb[BLOCKS][KV * HD * CHI_KV_BLOCK], out[2][N * WIDTH];
  const float *kblk[BLOCKS], *vblk[BLOCKS];
  float *k = drawn(N * KV * HD), *v = drawn(N * KV * HD), *q = drawn(N * WIDTH);
  chi_attn_query query[N];
  for (int i = 0; i < N; i++)
    chi_kv_put(kb[i / CHI_KV_BLOCK], vb[i / CHI_KV_BLOCK], k + i * KV * HD, v + i * KV * HD, i % CHI_KV_BLOCK, KV, HD,
               CHI_COMPUTE_BF16);
  for (int b = 0; b < BLOCKS; b++) kblk[b] = kb[b], vblk[b] = vb[b];
  for (int t = 0; t < 2; t++) {
    chi_kernels = t ? &soft : &chi_kernels_portable;
    memset(out[t], 0x7f, sizeof out[t]);
    for (int i = 0; i < N; i++)
      query[i] = (chi_attn_query){
          .q = q + i * WIDTH, .out = out[t] + i * WIDTH, .kblk = kblk, .vblk = vblk, .row = i, .n_keys = i + 1};
    assert_int_equal(chi_attention(query, N, HEADS, KV, HD, 0.3f, CHI_COMPUTE_BF16, NULL), 0);
  }
  assert_memory_equal(out[0], out[1], sizeof out[0]);
  free(k), free(v), free(q);
  chi_kernels = chosen;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_tile), cmocka_unit_test(test_products),
                                     cmocka_unit_test(test_attention)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

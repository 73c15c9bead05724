/* Inside kernel/ only: the table of inner loops that differ per instruction set, and per-thread scratch.
 * A row may choose its own register blocking (mr); it may not choose its own arithmetic (docs/arithmetic.md). */
#ifndef CHI_KERNEL_TABLE_H
#define CHI_KERNEL_TABLE_H

#include "kernel/kernel.h"

#define CHI_PANEL 32      /* outputs per panel, keys per block, lanes per reduction */
#define CHI_CHAIN 256     /* f32: longest fma chain                                 */
#define CHI_STORE_COUNT 3 /* CHI_F32, CHI_F16, CHI_BF16 are 0, 1, 2                 */
#define CHI_MR_MAX 32

/* What a tile does with c: */
typedef enum chi_tile_mode {
  CHI_TILE_SET,   /* c = sum                                     */
  CHI_TILE_ADD,   /* c = c + sum, sum being a chain from zero    */
  CHI_TILE_CHAIN, /* f32 only: the chain starts from c           */
} chi_tile_mode;

/* Memory that a tile may ask for while it multiplies: with each 32-block of k whose index is `mine` modulo `tiles` as
 * many bytes as such a block has, at at + index * step; with the others nothing that is not near already. */
typedef struct chi_ahead {
  const char *at;
  int64_t step;
  int mine, tiles;
} chi_ahead;
/* For the blocks of a call in turn, on the tile's own copy: what to ask for with block b. */
static inline const char *chi_ahead_next(chi_ahead *a, const void *b) {
  const char *next = a->mine == 0 ? a->at : (const char *)b;
  a->mine = (a->mine == 0 ? a->tiles : a->mine) - 1;
  a->at += a->step;
  return next;
}
/* The same as it stands after so many blocks. */
static inline chi_ahead chi_ahead_past(chi_ahead a, int64_t blocks) {
  a.at += blocks * a.step;
  a.mine = (int)(((a.mine - blocks) % a.tiles + a.tiles) % a.tiles);
  return a;
}
/* One product tile: c[rows][32] (row stride ldc) from a[k][rows] (stride lda >= rows, f32) and b[k][32].
 * f32: one fma chain over all k (the caller cuts k into 256-blocks). b has row stride ldb elements and the store type
 * of the slot that the function sits in. ahead: NULL is nothing. */
typedef void (*chi_tile_f32_fn)(int rows, int64_t k, const float *a, int64_t lda, const void *b, int64_t ldb, float *c,
                                int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead);
/* bf16: per 32-block of k two chains (even, odd), added together, then to c. a holds values already rounded to bf16:
 * f32 a[k][lda], or, where the table has a row_bf16, bf16 a[rows][lda] as that function made them.
 * packed: b is [k/32][2][16][16][2] bf16 and k a multiple of 32. SET starts from c = +0. */
typedef void (*chi_tile_bf16_fn)(int rows, int64_t k, const void *a, int64_t lda, const chi_bf16 *b, float *c,
                                 int64_t ldc, chi_tile_mode mode, const chi_ahead *ahead);
/* Same arithmetic with b[k][32] in f32 (values rounded to bf16), any k: acts as if padded with zeros to 32. */
typedef void (*chi_tile_pair_fn)(int rows, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                                 float *c, int64_t ldc, chi_tile_mode mode);

typedef struct chi_kernel_table {
  int mr_f32, mr_bf16, mr_pair; /* most rows of one tile; of f32 and pair at most 24 (attention.c: ROWS) */
  chi_tile_f32_fn tile_f32[CHI_STORE_COUNT];
  chi_tile_bf16_fn tile_bf16;
  /* NULL, or: out[kp] = the k values of x rounded to bf16, then zeros; the order inside each 32 is the tile's own.
   * kp is a multiple of 32. */
  void (*row_bf16)(chi_bf16 *out, const float *x, int64_t k, int64_t kp);
  chi_tile_pair_fn tile_pair;
  void (*widen)(float *dst, const void *src, chi_dtype store, int64_t n); /* F16 or BF16 to f32; n a multiple of 32 */
  void (*turn_f32)(float *dst, const float *src);        /* 32 x 32, transposed */
  void (*turn_bf16)(chi_bf16 *dst, const chi_bf16 *src); /* a packed 32 x 32 block (chi_bf16_at), transposed */
  /* rows: n elements, contiguous */
  float (*dot)(const float *a, const float *b, int64_t n); /* 32 lanes of fma, tree */
  float (*sum)(const float *x, int64_t n);                 /* 32 lanes, tree        */
  float (*sqdev)(const float *x, float mean, int64_t n);   /* sum of (x - mean)^2: 32 lanes of fma, tree */
  float (*max)(const float *x, int64_t n); /* NaNs are passed over; -inf when nothing is left; never -0 */
  float (*exp_sum)(const float *x, float max, float *e,
                   int64_t n);               /* e = exp(x - max) (e may be NULL or x); sum in lanes */
  void (*div)(float *x, float s, int64_t n); /* x = x / s */
  void (*act)(chi_act act, const float *x, const float *u, float *y, int64_t n); /* u may be NULL; y may be x or u */
  void (*axpy)(float *y, const float *x, float s, int64_t n);                    /* y = fma(s, x, y) */
  void (*exp64)(double *y, const float *x, double shift, int64_t n);             /* y = chi_exp64(x - shift) */
  void (*dots4)(float d[4][CHI_BACK_ROWS], const float *x, const float *const v[4], int64_t n); /* chi_back_dots */
  void (*mix4)(float *y, const float *const x[4], const float s[4], int64_t n);                 /* chi_back_mix  */
} chi_kernel_table;

extern const chi_kernel_table *chi_kernels; /* the chosen row; never NULL */
extern const chi_kernel_table chi_kernels_portable;
#if defined(__x86_64__)
extern const chi_kernel_table chi_kernels_avx2;
extern const chi_kernel_table chi_kernels_avx512;
extern const chi_kernel_table chi_kernels_avx512_bf16;
extern const chi_kernel_table chi_kernels_amx;
#endif

void chi_turn_bf16(chi_bf16 *dst, const chi_bf16 *src); /* the table's, in plain C */

/* The calling thread's scratch, 64-byte aligned, at least `bytes`, contents undefined; valid until the thread's next
 * call. NULL when memory is out. Freed when the thread ends. */
void *chi_scratch(size_t bytes);
/* A second one, for what the tasks of one call read together. */
void *chi_scratch_shared(size_t bytes);

/* out[k][lda]: column i of the n rows (k floats each) becomes out[i*lda .. +n); rounded to bf16 on request. This is the
 * layout of a product tile's first operand. */
void chi_interleave(float *out, int64_t lda, const float *const *rows, int64_t n, int64_t k, bool round);

/* In place on one row: x = exp(x - max) / sum. All -inf gives zeros; any NaN or +inf gives NaN everywhere. */
void chi_softmax_row(const chi_kernel_table *t, float *x, int64_t n);

/* Threaded over rows when there is enough work: fn(ud, first, last). */
typedef void (*chi_rows_fn)(void *ud, int64_t r0, int64_t r1);
void chi_rows_parallel(int64_t m, int64_t work_per_row, chi_rows_fn fn, void *ud);

/* Round to bf16, keep as f32. Integer operations only, so denormals survive and NaN stays NaN. */
static inline float chi_round_bf16(float x) {
  union {
    float f;
    uint32_t u;
  } v = {.f = x};
  uint32_t nan = v.u | 0x00400000u, near = v.u + 0x7fffu + ((v.u >> 16) & 1u);
  v.u = ((v.u & 0x7fffffffu) > 0x7f800000u ? nan : near) & 0xffff0000u;
  return v.f;
}

static inline float chi_widen_bf16(chi_bf16 x) {
  union {
    uint32_t u;
    float f;
  } v = {.u = (uint32_t)x << 16};
  return v.f;
}

/* Element (output r of 32, input k) inside a packed bf16 panel: [k/32][2][16 pairs][16][2]. Swapping r and k inside one
 * 32 x 32 block is the same map of the transposed block, which is how forward and backward share one copy. */
static inline size_t chi_bf16_at(int64_t r, int64_t k) {
  return (size_t)((k / 32) * 1024 + (r / 16) * 512 + (k % 32) / 2 * 32 + (r % 16) * 2 + k % 2);
}

static inline int64_t chi_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t chi_min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The fixed tree that ends every reduction; lanes is clobbered. */
static inline float chi_lane_tree(float lanes[CHI_PANEL]) {
  for (int w = CHI_PANEL / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; i++) lanes[i] += lanes[i + w];
  return lanes[0];
}

#endif

/* kernel: every arithmetic inner loop. One canonical arithmetic: the bits of a row depend on that row's inputs and the
 * weights only, not on other rows, threads, blocking or instruction set. Rules (docs/arithmetic.md):
 *   - built with -ffp-contract=off; fused multiply-adds are written as fmaf / FMA intrinsics, never left to the compiler;
 *   - denormals are zero and results flush to zero (base.h: chi_parallel_for and chi_fp_begin);
 *   - no libm: exp, tanh, erf, ... are our own and the same operations in the same order in every variant;
 *   - f32 product: for each 256-wide block of K (aligned to k = 0) one chain of fma from zero, ascending k; block sums
 *     are added to the accumulator in order (accumulator starts as the first block's sum); then + bias;
 *   - bf16 product: operands rounded to bf16 (nearest even); for each 32-wide block of K two f32 fma chains from zero
 *     (even k, odd k, ascending), even + odd, then added to the accumulator, which starts at +0: TDPBF16PS's order;
 *     K is padded with zeros to 32;
 *   - reductions over a row (norms, softmax sums) use 32 lanes (element i goes to lane i mod 32, ascending) and then
 *     the fixed tree lane[i] += lane[i+16], +8, +4, +2, +1.
 * Each kernel: readable portable C (kernel/portable.c) and rows for AVX2 and AVX-512 in kernel/x86/, chosen once by
 * chi_cpu_init through one table (chi_kernels); a variant must give the portable bits (tests/test_kernel.c).
 *
 * Shapes are row-major; ld* are row strides in elements; x, y, ... f32 unless said otherwise. No kernel allocates. */
#ifndef CHI_KERNEL_H
#define CHI_KERNEL_H

#include "tensor/dtype.h"

/* ---- instruction sets ------------------------------------------------------------------------------------ */
typedef enum chi_isa {
  CHI_ISA_PORTABLE,
  CHI_ISA_AVX2,
  CHI_ISA_AVX512,
  CHI_ISA_AVX512_BF16,
  CHI_ISA_AMX,
  CHI_ISA_COUNT
} chi_isa;
/* Choose the best ISA, or the forced one ("portable", "avx2", "avx512", "avx512-bf16", "amx"; NULL = best). Refuses what the CPU lacks.
 * Call before other threads use kernels; may be called again (tests). */
int chi_cpu_init(const char *forced, chi_err *err);
chi_isa chi_cpu_isa(void);
const char *chi_isa_name(chi_isa isa);
bool chi_isa_available(chi_isa isa);

/* ---- packed weights -------------------------------------------------------------------------------------- */
typedef enum chi_compute { CHI_COMPUTE_F32, CHI_COMPUTE_BF16 } chi_compute;

/* A weight matrix W[n][k] (n outputs, k inputs), packed once for both y = x W^T and, transposed on load, dx = dy W.
 * Layout (docs/arithmetic.md): panels of 32 outputs.
 *   f32 compute: element type stays that of the source (F32, F16 or BF16), panel[n/32][k][32], widened on load.
 *   bf16 compute: source rounded to bf16; panel of two AMX B tiles side by side: [n/32][k/32][2][16 pairs][16 n][2].
 * n is padded with zero columns to 32; k to 32 for bf16. */
typedef struct chi_mat {
  int64_t n, k;
  chi_compute compute;
  chi_dtype store; /* element type of data */
  void *data;        /* owned (chi_mat_free), unless borrowed */
  size_t bytes;
  bool borrowed;     /* data lies in a mapped file that outlives the matrix */
} chi_mat;
/* src: n rows of k elements, row stride ld elements, float dtype or quantised blocks (k, ld whole blocks; they are packed as
 * F32 for f32 compute). Threaded. */
int chi_mat_pack(chi_mat *out, const void *src, chi_dtype dtype, int64_t n, int64_t k, int64_t ld, chi_compute compute,
                 chi_err *err);
/* Bytes of such a matrix when packed; 0 if it would be too large. store: F32, F16 or BF16. */
size_t chi_mat_bytes(int64_t n, int64_t k, chi_compute compute, chi_dtype store);
void chi_mat_free(chi_mat *m);
/* Read rows [n0, n0+count) back as f32 into out[count][k] (what the product uses: rounded for bf16 compute). */
void chi_mat_read(const chi_mat *m, int64_t n0, int64_t count, float *out);

/* y[m][n] = x[m][k] W^T + bias. bias (f32, n) may be NULL. Rows of x may be any subset: y row i depends on x row i only.
 * Threaded over panels and row blocks. x, y do not overlap. For bf16 compute x is rounded inside (internal per-thread
 * scratch from chi_scratch; fails only on memory). */
int chi_gemm(const chi_mat *w, const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, const float *bias,
             chi_err *err);
/* Same with x given by row pointers-free gather: x row i = x + (size_t)idx[i]*ldx. idx NULL = identity. */
int chi_gemm_gather(const chi_mat *w, const float *x, int64_t ldx, const int32_t *idx, float *y, int64_t ldy, int64_t m,
                    const float *bias, chi_err *err);
/* dx[m][k] = dy[m][n] W, reading the same packed copy; canonical f32 chain over n (bf16 chain over n for bf16 compute). */
int chi_gemm_t(const chi_mat *w, const float *dy, int64_t lddy, float *dx, int64_t lddx, int64_t m, chi_err *err);

/* ---- row operations (each row independent; threaded when m is large) ------------------------------------- */
/* y = x / sqrt(mean(x^2) + eps) * w.   RMSNorm as HF Llama computes it in f32: (x * r) * w. */
void chi_rmsnorm(const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, int64_t d, const float *w, float eps);
/* y = (x - mean) / sqrt(var + eps) * w + b, two-pass variance. */
void chi_layernorm(const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, int64_t d, const float *w,
                   const float *b, float eps);

typedef enum chi_act { CHI_ACT_SILU, CHI_ACT_GELU_ERF, CHI_ACT_GELU_TANH, CHI_ACT_QUICK_GELU, CHI_ACT_RELU } chi_act;
/* y = act(x), or act(x) * u where u is given (gated MLP: x = gate, u = up). In place allowed. */
void chi_act_rows(chi_act act, const float *x, int64_t ldx, const float *u, int64_t ldu, float *y, int64_t ldy,
                  int64_t m, int64_t d);

/* Rotary embedding, half-rotation layout (HF Llama), on the first 2*half dims of each of `heads` heads of hd dims:
 * x[i] rows, pos[i] = row of the table; table cos/sin [pos][half] made by chi_rope_table. In place. */
void chi_rope_rows(float *x, int64_t ldx, int64_t m, int heads, int hd, int half, const int32_t *pos,
                   const float *cos_t, const float *sin_t);
/* Table for positions [0, npos): angle = (pos / linear_factor) * theta^(-2i/(2*half)), computed in f64, stored f32.
 * HF computes inv_freq and the product in f32: the table follows HF (inv_freq rounded to f32, product in f32). */
void chi_rope_table(float *cos_t, float *sin_t, int64_t npos, int half, double theta, double linear_factor);
/* Table of given frequencies: cos and sin of (float)pos * inv_freq[i], times scale. inv_freq of the plain kind: chi_rope_freq. */
void chi_rope_table_freq(float *cos_t, float *sin_t, int64_t npos, int half, const float *inv_freq, float scale);
float chi_rope_freq(int i, int half, double theta); /* 1 / theta^(2i/(2*half)), rounded to f32 where HF rounds */

void chi_rows_add(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d); /* y += x       */
void chi_rows_copy(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d);
void chi_rows_scale(float *y, int64_t ldy, int64_t m, int64_t d, float s); /* y *= s       */
void chi_rows_axpy(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d,
                   float s);                                           /* y = fma(s,x,y) */
void chi_rows_round_bf16(float *y, int64_t ldy, int64_t m, int64_t d); /* values rounded to bf16, kept as f32 */
float chi_dot(const float *a, const float *b, int64_t d);              /* 32 lanes of fma, then the tree */

/* ---- softmax over logits rows (reports) ------------------------------------------------------------------ */
/* log-sum-exp pieces of one row: max and sum(exp(x - max)) in 32 lanes; log p_i = x_i - max - log(sum). */
void chi_softmax_stats(const float *x, int64_t n, float *max, float *sum);
float chi_expf(float x); /* the canonical f32 exp (flushes below -87.33 to 0) */
float chi_logf(float x);
void chi_softmax(float *x, int64_t n); /* in place */
/* y = chi_exp64(x - shift), n of them: the bits of the single one. y and x do not overlap. */
void chi_exp64_row(double *y, const float *x, double shift, int64_t n);

/* ---- rows of gradients ----------------------------------------------------------------------------------- */
#define CHI_BACK_ROWS 16
/* d[u][r] = sum over c of x[c][r] * v[u][c], from +0 and in order; every product is rounded before it is added. */
void chi_back_dots(float d[4][CHI_BACK_ROWS], const float *x, const float *const v[4], int64_t n);
/* y[c] += s[0] x[0][c], then s[1] x[1][c], ...; rounded in the same way. y overlaps none of x. */
void chi_back_mix(float *y, const float *const x[4], const float s[4], int64_t n);

/* ---- attention ------------------------------------------------------------------------------------------- */
/* Keys and values live in blocks of 32 rows aligned to absolute positions (row r is slot r%32 of block r/32).
 *   K block: [kv_heads][hd][32]   (transposed: 32 keys side by side)      f32 (bf16 compute: values rounded to bf16)
 *   V block: [kv_heads][32][hd]
 * A block pointer table gives, for one branch, the block that holds each 32 positions (shared with its ancestors). */
#define CHI_KV_BLOCK 32
/* Put one row's k or v (kv_heads*hd floats) into slot r%32 of a block. For bf16 compute values are rounded. */
void chi_kv_put(float *kblock, float *vblock, const float *k, const float *v, int slot, int kv_heads, int hd,
                chi_compute compute);
void chi_kv_get(const float *kblock, const float *vblock, float *k, float *v, int slot, int kv_heads, int hd);

/* One edge edit: applies to queries equal to `row`, keys in [key_lo, key_hi), heads in [head_lo, head_hi). */
typedef enum chi_edge_op {
  CHI_EDGE_CUT /* score = -inf */,
  CHI_EDGE_ZERO /* weight 0 after softmax */,
  CHI_EDGE_SCALE /* weight * value after softmax */
} chi_edge_op;
typedef struct chi_edge {
  int32_t row, key_lo, key_hi, head_lo, head_hi;
  chi_edge_op op;
  float value;
} chi_edge;

/* One query row of one branch. */
typedef struct chi_attn_query {
  const float *q;           /* [heads*hd], after rope */
  float *out;               /* [heads*hd] */
  const float *const *kblk; /* block tables, indexed by position/32 */
  const float *const *vblk;
  int32_t row;           /* absolute position */
  int32_t n_keys;        /* keys [0, n_keys) are attended: row+1 when causal */
  const chi_edge *edges; /* n_edges edits for this query, applied in order; NULL = none */
  int32_t n_edges;
  float *pattern;           /* NULL, or [heads][n_keys] that receives the final weights */
  const float *pattern_set; /* NULL, or [heads][n_keys] weights that replace the computed ones (before pattern out) */
} chi_attn_query;
/* out = softmax(q k^T * scale) v for every query and head, threaded over queries and heads. Order: scores (f32: one fma
 * chain over hd in 256-blocks; bf16: q rounded, TDPBF16PS order over hd padded to 32), times scale, cuts, maximum,
 * exp, sum in 32 lanes (key position mod 32), weights = e / sum, zero/scale edits, then P V: f32: one fma chain over
 * keys per 256 aligned positions, block sums in order; bf16: P rounded, TDPBF16PS order over 32-key blocks. Keys at or
 * after n_keys are never read as numbers (a NaN there changes nothing). A row whose edges are all cut outputs 0.
 * heads is a multiple of kv_heads (query head h reads kv head h / (heads/kv_heads)). */
int chi_attention(const chi_attn_query *queries, int64_t n, int heads, int kv_heads, int hd, float scale,
                  chi_compute compute, chi_err *err);

#endif

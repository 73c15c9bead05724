/* nn: the one transformer block, driven by its spec, and the small layers around it. Functions work on dense sets of
 * rows: any rows, in any order, each independent of the others (attention alone looks across rows, through block
 * tables). Both executors call these and nothing else, so they share every bit of arithmetic. */
#ifndef CHI_NN_H
#define CHI_NN_H

#include "kernel/kernel.h"

typedef enum chi_norm_kind { CHI_NORM_RMS, CHI_NORM_LAYER } chi_norm_kind;

typedef struct chi_norm {
  float *w, *b; /* [d]; b NULL for RMS; LayerNorm has one, zeros where the checkpoint has none */
} chi_norm;
typedef struct chi_linear {
  chi_mat w;
  float *bias; /* [n] or NULL */
} chi_linear;

/* Everything that tells one family's block from another's. */
typedef struct chi_block_spec {
  int32_t layers; /* layers that are run (vision: up to the feature layer) */
  int32_t d, heads, kv_heads, head_dim, ffn;
  chi_norm_kind norm;
  float eps;
  bool causal;
  bool parallel; /* x + attn(norm1 x) + mlp(norm1 x); norm2 unused */
  bool gated;    /* act(gate) * up */
  bool bias_qkv, bias_o, bias_mlp; /* what the config promises; set where families differ, read by binding alone */
  bool post_norm;      /* BERT: sub-blocks read x itself; x = norm(x + output) after each */
  int32_t cross_every; /* layers l with l % cross_every == 0 have cross-attention between attention and MLP; 0 = none.
                          Only in post_norm blocks */
  int32_t cross_d;     /* width of the rows that it takes keys and values from */
  chi_act act;
  int32_t rope_half; /* rotated dims / 2 of each head; 0 = none */
  int32_t window;    /* layers >= window_from: a row sees its last `window` keys only; 0 = all */
  int32_t window_from;
  float attn_scale;
} chi_block_spec;

typedef struct chi_block { /* one layer's weights */
  chi_norm norm1, norm2;
  chi_linear q, k, v, o, gate, up, down; /* plain MLP: up = first, down = second, gate empty */
  chi_norm norm_x;                       /* of layers with cross-attention, as the four below */
  chi_linear xq, xk, xv, xo;
} chi_block;

typedef struct chi_rope {
  float *cos_t, *sin_t; /* [n][rope_half]; NULL without rotary embedding */
  int32_t n;            /* positions: the longest context */
} chi_rope;

void chi_norm_rows(const chi_block_spec *s, const chi_norm *n, const float *x, float *y, int64_t m, int64_t d);

/* x [m][d] -> q [m][heads*hd], k, v [m][kv_heads*hd], q and k rotated for pos[m]. h [m][d] is scratch: norm1(x). */
int chi_block_qkv(const chi_block_spec *s, const chi_block *w, const chi_rope *rope, const float *x, const int32_t *pos,
                  int64_t m, float *h, float *q, float *k, float *v, chi_err *err);
/* x [m][d] += comp [m][d]; post_norm blocks then take norm `after` of the sum. */
void chi_block_add(const chi_block_spec *s, const chi_norm *after, float *x, const float *comp, int64_t m);
/* Cross-attention: x [m][d] -> q [m][heads*hd]; other stack's rows [m][cross_d] -> k, v [m][kv_heads*hd]; mix -> out. */
bool chi_block_has_cross(const chi_block_spec *s, int layer);
int chi_block_xq(const chi_block_spec *s, const chi_block *w, const float *x, int64_t m, float *q, chi_err *err);
int chi_block_xkv(const chi_block_spec *s, const chi_block *w, const float *rows, int64_t m, float *k, float *v,
                  chi_err *err);
int chi_block_xo(const chi_block *w, const float *mix, float *out, int64_t m, chi_err *err);
/* mix [m][heads*hd] -> attn_out [m][d] */
int chi_block_o(const chi_block *w, const chi_block_spec *s, const float *mix, float *attn_out, int64_t m,
                chi_err *err);
/* x [m][d] (resid_mid; the layer's input for parallel blocks) -> act [m][ffn]. h [m][d], g [m][ffn] are scratch. */
int chi_block_act(const chi_block_spec *s, const chi_block *w, const float *x, int64_t m, float *h, float *g,
                  float *act, chi_err *err);
/* act [m][ffn] -> mlp_out [m][d] */
int chi_block_down(const chi_block_spec *s, const chi_block *w, const float *act, float *mlp_out, int64_t m,
                   chi_err *err);

/* Rounds q, k, v as the compute type asks (bf16 operands after rope); f32: nothing. */
void chi_block_round(const chi_block_spec *s, const chi_block *w, float *q, float *k, float *v, int64_t m);

void chi_linear_free(chi_linear *l);
void chi_norm_free(chi_norm *n);
void chi_block_free(chi_block *b);

/* ---- key/value blocks of one layer ----------------------------------------------------------------------- */
static inline size_t chi_kv_block_floats(const chi_block_spec *s) {
  return (size_t)s->kv_heads * (size_t)s->head_dim * CHI_KV_BLOCK;
}

#endif

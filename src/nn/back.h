/* back: gradients of the block and the small layers, row set by row set. Each *_back takes the gradient of a scalar loss
 * with respect to a layer's output and adds to (or sets, where it says so) the gradient with respect to its inputs. f32;
 * for bf16 compute the rounding of operands is passed through. Gradients are the same for any number of threads. */
#ifndef CHI_BACK_H
#define CHI_BACK_H

#include "nn/nn.h"

/* dx += norm'(x)^T dy, rows of d. dw, db ([d] or NULL) += gradients of the norm's own weights. */
void chi_norm_back(const chi_block_spec *s, const chi_norm *n, const float *x, const float *dy, float *dx, int64_t m, int64_t d, float *dw, float *db);
/* y = act(g) * u (u NULL: act(g)): dg, du set. */
void chi_act_back(chi_act act, const float *g, const float *u, const float *dy, float *dg, float *du, int64_t m, int64_t d);
/* Undo the rotation of gradients: x rows as in chi_rope_rows. */
void chi_rope_back(float *dx, int64_t m, int heads, int hd, int half, const int32_t *pos, const float *cos_t, const float *sin_t);
/* dW[n][k] += dy^T x. */
void chi_weight_back(float *dw, const float *x, const float *dy, int64_t m, int64_t n, int64_t k);

/* Keys and values of rows [0, end[2]) in three places: rows [0, end[0]) and [end[0], end[1]) are constant, the rest is live. */
typedef struct chi_attn_keys {
  const float *k[3], *v[3]; /* [rows of the part][kv_heads*hd] */
  int64_t end[3];
} chi_attn_keys;
const float *chi_key_row(const chi_attn_keys *a, int64_t t, int64_t nkv); /* nkv = kv_heads * hd */
const float *chi_value_row(const chi_attn_keys *a, int64_t t, int64_t nkv);
/* Attention of m query rows over T = end[2] keys. p [heads][m][T]: weights (0 where a row does not attend). q and dout as in the
 * forward pass. Sets dq [m][heads*hd]; adds to dk, dv [T - end[1]][kv_heads*hd]. */
int chi_attention_back(const float *q, const chi_attn_keys *keys, const float *p, const float *dout, float *dq, float *dk, float *dv, int64_t m,
                       int heads, int kv_heads, int hd, float scale, chi_err *err);
/* The gradient with respect to the weights themselves: dp [heads][m][T] = dout . v, 0 where p is 0. */
void chi_pattern_back(const chi_attn_keys *keys, const float *p, const float *dout, float *dp, int64_t m, int heads, int kv_heads, int hd);

#endif

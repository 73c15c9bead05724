/* The transformer block in stages; see nn.h. Formulas: Llama (RMSNorm, rotary, gated SiLU), CLIP (LayerNorm,
 * biases). */
#include "nn/nn.h"

void chi_norm_rows(const chi_block_spec *s, const chi_norm *n, const float *x, float *y, int64_t m, int64_t d) {
  if (s->norm == CHI_NORM_RMS)
    chi_rmsnorm(x, d, y, d, m, d, n->w, s->eps);
  else
    chi_layernorm(x, d, y, d, m, d, n->w, n->b, s->eps);
}

static int linear(const chi_linear *l, const float *x, float *y, int64_t m, chi_err *err) {
  return chi_gemm(&l->w, x, l->w.k, y, l->w.n, m, l->bias, err);
}

int chi_block_qkv(const chi_block_spec *s, const chi_block *w, const chi_rope *rope, const float *x, const int32_t *pos,
                  int64_t m, float *h, float *q, float *k, float *v, chi_err *err) {
  int rc = 0;
  if (!s->post_norm) chi_norm_rows(s, &w->norm1, x, h, m, s->d);
  const float *y = s->post_norm ? x : h;
  CHI_TRY(linear(&w->q, y, q, m, err));
  CHI_TRY(linear(&w->k, y, k, m, err));
  CHI_TRY(linear(&w->v, y, v, m, err));
  if (s->rope_half > 0) {
    chi_rope_rows(q, w->q.w.n, m, s->heads, s->head_dim, s->rope_half, pos, rope->cos_t, rope->sin_t);
    chi_rope_rows(k, w->k.w.n, m, s->kv_heads, s->head_dim, s->rope_half, pos, rope->cos_t, rope->sin_t);
  }
  chi_block_round(s, w, q, k, v, m);
out:
  return rc;
}

void chi_block_round(const chi_block_spec *s, const chi_block *w, float *q, float *k, float *v, int64_t m) {
  if (w->q.w.compute != CHI_COMPUTE_BF16) return;
  int64_t nq = (int64_t)s->heads * s->head_dim, nk = (int64_t)s->kv_heads * s->head_dim;
  chi_rows_round_bf16(q, nq, m, nq);
  chi_rows_round_bf16(k, nk, m, nk);
  chi_rows_round_bf16(v, nk, m, nk);
}

int chi_block_o(const chi_block *w, const chi_block_spec *s, const float *mix, float *attn_out, int64_t m,
                chi_err *err) {
  (void)s;
  return linear(&w->o, mix, attn_out, m, err);
}

int chi_block_act(const chi_block_spec *s, const chi_block *w, const float *x, int64_t m, float *h, float *g,
                  float *act, chi_err *err) {
  int rc = 0;
  if (!s->post_norm) chi_norm_rows(s, s->parallel ? &w->norm1 : &w->norm2, x, h, m, s->d);
  const float *y = s->post_norm ? x : h;
  CHI_TRY(linear(&w->up, y, act, m, err));
  if (s->gated) {
    CHI_TRY(linear(&w->gate, y, g, m, err));
    chi_act_rows(s->act, g, s->ffn, act, s->ffn, act, s->ffn, m, s->ffn);
  } else {
    chi_act_rows(s->act, act, s->ffn, NULL, 0, act, s->ffn, m, s->ffn);
  }
out:
  return rc;
}

int chi_block_down(const chi_block_spec *s, const chi_block *w, const float *act, float *mlp_out, int64_t m,
                   chi_err *err) {
  (void)s;
  return linear(&w->down, act, mlp_out, m, err);
}

void chi_block_add(const chi_block_spec *s, const chi_norm *after, float *x, const float *comp, int64_t m) {
  chi_rows_add(x, s->d, comp, s->d, m, s->d);
  if (s->post_norm) chi_norm_rows(s, after, x, x, m, s->d);
}

bool chi_block_has_cross(const chi_block_spec *s, int layer) {
  return s->cross_every > 0 && layer % s->cross_every == 0;
}

int chi_block_xq(const chi_block_spec *s, const chi_block *w, const float *x, int64_t m, float *q, chi_err *err) {
  int64_t n = (int64_t)s->heads * s->head_dim;
  int rc = linear(&w->xq, x, q, m, err);
  if (rc == 0 && w->xq.w.compute == CHI_COMPUTE_BF16) chi_rows_round_bf16(q, n, m, n);
  return rc;
}

int chi_block_xkv(const chi_block_spec *s, const chi_block *w, const float *rows, int64_t m, float *k, float *v,
                  chi_err *err) {
  int rc = 0;
  int64_t n = (int64_t)s->kv_heads * s->head_dim;
  CHI_TRY(linear(&w->xk, rows, k, m, err));
  CHI_TRY(linear(&w->xv, rows, v, m, err));
  if (w->xk.w.compute != CHI_COMPUTE_BF16) goto out;
  chi_rows_round_bf16(k, n, m, n);
  chi_rows_round_bf16(v, n, m, n);
out:
  return rc;
}

int chi_block_xo(const chi_block *w, const float *mix, float *out, int64_t m, chi_err *err) {
  return linear(&w->xo, mix, out, m, err);
}

void chi_norm_free(chi_norm *n) {
  chi_free(n->w);
  chi_free(n->b);
  *n = (chi_norm){0};
}

void chi_linear_free(chi_linear *l) {
  chi_mat_free(&l->w);
  chi_free(l->bias);
  l->bias = NULL;
}

void chi_block_free(chi_block *b) {
  chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down, &b->xq, &b->xk, &b->xv, &b->xo};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) chi_linear_free(all[i]);
  chi_norm_free(&b->norm1);
  chi_norm_free(&b->norm2);
  chi_norm_free(&b->norm_x);
}

/* The transformer block in stages; see nn.h. Formulas: Llama (RMSNorm, rotary, gated SiLU), CLIP (LayerNorm, biases). */
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
  chi_norm_rows(s, &w->norm1, x, h, m, s->d);
  CHI_TRY(linear(&w->q, h, q, m, err));
  CHI_TRY(linear(&w->k, h, k, m, err));
  CHI_TRY(linear(&w->v, h, v, m, err));
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
  chi_norm_rows(s, s->parallel ? &w->norm1 : &w->norm2, x, h, m, s->d);
  CHI_TRY(linear(&w->up, h, act, m, err));
  if (s->gated) {
    CHI_TRY(linear(&w->gate, h, g, m, err));
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
  chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) chi_linear_free(all[i]);
  chi_norm_free(&b->norm1);
  chi_norm_free(&b->norm2);
}

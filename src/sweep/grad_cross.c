/* Cross-attention on a tape: forward with its weights kept, and back (Q-Former; sweep/full.c has the order of
 * sites). */
#include <string.h>

#include "sweep/grad_internal.h"

int chii_cross_init(chii_tape *t, chi_err *err) {
  const chi_block_spec *s = t->s;
  int64_t m = t->m, n = t->n_cross, nb = (n + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  struct {
    float **to;
    int64_t count;
  } need[] = {{&t->xq, m * t->nq},
              {&t->xk, n * t->nkv},
              {&t->xv, n * t->nkv},
              {&t->xp, s->heads * m * n},
              {&t->xmix, m * t->nq},
              {&t->xattn, m * t->D},
              {&t->xsum, m * t->D},
              {&t->xdq, m * t->nq},
              {&t->xdk, n * t->nkv},
              {&t->xdv, n * t->nkv},
              {&t->xdmix, m * t->nq},
              {&t->xin, m * t->D},
              {&t->dcross, n * t->net->vision.spec.d},
              {&t->xtmp, (n > m ? n : m) * (s->cross_d > t->D ? s->cross_d : t->D)}};
  for (size_t i = 0; i < sizeof need / sizeof *need; i++)
    if (!(*need[i].to = chi_arena_array(&t->arena, (size_t)need[i].count, sizeof(float), err))) return CHI_ERR_MEMORY;
  t->xkb = chi_arena_array(&t->arena, (size_t)nb, sizeof *t->xkb, err);
  t->xvb = chi_arena_array(&t->arena, (size_t)nb, sizeof *t->xvb, err);
  if (!t->xkb || !t->xvb) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < nb; i++) {
    t->xkb[i] = chi_arena_array(&t->arena, chi_kv_block_floats(s), sizeof(float), err);
    t->xvb[i] = chi_arena_array(&t->arena, chi_kv_block_floats(s), sizeof(float), err);
    if (!t->xkb[i] || !t->xvb[i]) return CHI_ERR_MEMORY;
  }
  return 0;
}

/* Rows of x over the other stack's rows; weights kept in xp. */
static int attend(chii_tape *t, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  chi_arena a = {0};
  int64_t per = (int64_t)s->heads * t->n_cross;
  float *pat = chi_arena_array(&a, (size_t)(t->m * per), sizeof *pat, err);
  chi_attn_query *q = chi_arena_array(&a, (size_t)t->m, sizeof *q, err);
  CHI_TRY(pat && q ? 0 : CHI_ERR_MEMORY);
  for (int32_t r = 0; r < t->n_cross; r++)
    chi_kv_put(t->xkb[r / CHI_KV_BLOCK], t->xvb[r / CHI_KV_BLOCK], t->xk + r * t->nkv, t->xv + r * t->nkv,
               r % CHI_KV_BLOCK, s->kv_heads, s->head_dim, t->net->compute);
  for (int32_t i = 0; i < t->m; i++)
    q[i] = (chi_attn_query){.q = t->xq + i * t->nq,
                            .out = t->xmix + i * t->nq,
                            .kblk = (const float *const *)t->xkb,
                            .vblk = (const float *const *)t->xvb,
                            .row = i,
                            .n_keys = t->n_cross,
                            .pattern = pat + i * per};
  CHI_TRY(chi_attention(q, t->m, s->heads, s->kv_heads, s->head_dim, s->attn_scale, t->net->compute, err));
  for (int32_t i = 0; i < t->m; i++)
    for (int32_t h = 0; h < s->heads; h++)
      memcpy(t->xp + ((int64_t)h * t->m + i) * t->n_cross, pat + i * per + (int64_t)h * t->n_cross,
             (size_t)t->n_cross * sizeof *pat);
out:
  chi_arena_free(&a);
  return rc;
}

int chii_cross_forward(chii_tape *t, const chi_grad_step *st, int layer, float *x, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  size_t bytes = (size_t)(t->m * t->D) * sizeof *x;
  memcpy(t->xin, x, bytes);
  CHI_TRY(chi_block_xq(s, w, x, t->m, t->xq, err));
  CHI_TRY(chi_block_xkv(s, w, t->cross, t->n_cross, t->xk, t->xv, err));
  chii_grad_touch(t, st, CHI_SITE_X_Q, layer, t->xq, t->nq, false);
  CHI_TRY(attend(t, err));
  chii_grad_touch(t, st, CHI_SITE_X_HEAD_OUT, layer, t->xmix, t->nq, false);
  CHI_TRY(chi_block_xo(w, t->xmix, t->xattn, t->m, err));
  chii_grad_touch(t, st, CHI_SITE_X_ATTN_OUT, layer, t->xattn, t->D, false);
  chi_rows_add(x, t->D, t->xattn, t->D, t->m, t->D);
  memcpy(t->xsum, x, bytes);
  chi_norm_rows(s, &w->norm_x, t->xsum, x, t->m, t->D);
  chii_grad_touch(t, st, CHI_SITE_X_RESID_MID, layer, x, t->D, false);
out:
  return rc;
}

int chii_cross_back(chii_tape *t, const chi_grad_step *st, int layer, float *d, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  int64_t m = t->m, n = t->n_cross, md = m * t->D;
  chii_grad_pass(t, st, CHI_SITE_X_RESID_MID, layer, d, t->D);
  memset(t->xtmp, 0, (size_t)md * sizeof *d);
  chi_norm_back(s, &w->norm_x, t->xsum, d, t->xtmp, m, t->D, NULL, NULL);
  memcpy(d, t->xtmp, (size_t)md * sizeof *d); /* at the sum: what was added, and what it was added to */
  memcpy(t->xattn, d, (size_t)md * sizeof *d);
  chii_grad_pass(t, st, CHI_SITE_X_ATTN_OUT, layer, t->xattn, t->D);
  CHI_TRY(chi_gemm_t(&w->xo.w, t->xattn, t->D, t->xdmix, t->nq, m, err));
  chii_grad_pass(t, st, CHI_SITE_X_HEAD_OUT, layer, t->xdmix, t->nq);
  memset(t->xdk, 0, (size_t)(n * t->nkv) * sizeof *d);
  memset(t->xdv, 0, (size_t)(n * t->nkv) * sizeof *d);
  chi_attn_keys keys = {.k = {[2] = t->xk}, .v = {[2] = t->xv}, .end = {0, 0, n}};
  CHI_TRY(chi_attention_back(t->xq, &keys, t->xp, t->xdmix, t->xdq, t->xdk, t->xdv, m, s->heads, s->kv_heads,
                             s->head_dim, s->attn_scale, err));
  chii_grad_pass(t, st, CHI_SITE_X_Q, layer, t->xdq, t->nq);
  CHI_TRY(chi_gemm_t(&w->xq.w, t->xdq, t->nq, t->xtmp, t->D, m, err));
  for (int64_t i = 0; i < md; i++) d[i] += t->xtmp[i];
  CHI_TRY(chi_gemm_t(&w->xk.w, t->xdk, t->nkv, t->xtmp, s->cross_d, n, err));
  for (int64_t i = 0; i < n * s->cross_d; i++) t->dcross[i] += t->xtmp[i];
  CHI_TRY(chi_gemm_t(&w->xv.w, t->xdv, t->nkv, t->xtmp, s->cross_d, n, err));
  for (int64_t i = 0; i < n * s->cross_d; i++) t->dcross[i] += t->xtmp[i];
out:
  return rc;
}

/* Forward with kept layer inputs, backward with the inside of each layer computed again; see grad.h. */
#include "sweep/grad.h"

#include <math.h>
#include <string.h>

#include "sweep/exec.h"
#include "sweep/grad_internal.h"

typedef chii_tape tape;

struct chi_grad {
  const chi_net *net;
  chi_input in;
  bool vision;
  tape dec, vis, qf;
  float *start;                    /* [m][D]: decoder rows at (first_layer), constant part */
  float *embed;                    /* vision: [rows][d] */
  float *feat, *pact, *pre, *proj; /* projector: features, activation, its input, output */
  float *states, *query; /* Q-Former: the tower's normed states, which it reads; its query rows before their norm */
  float *x, *dx;         /* [max rows][max d] */
  chi_arena arena;
};

static const char *const kWeights[CHI_W_COUNT] = {"q", "k", "v", "o", "gate", "up", "down", "proj1", "proj2"};
const char *chi_weight_name(chi_weight w) { return (unsigned)w < CHI_W_COUNT ? kWeights[w] : "?"; }

/* ---- memory ---------------------------------------------------------------------------------------------- */
static float *floats(chi_arena *a, int64_t rows, int64_t cols, chi_err *err) {
  return chi_arena_array(a, (size_t)(rows * cols), sizeof(float), err);
}

static int tape_init(tape *t, const chi_net *net, chi_stack stack, int32_t T, int32_t r0, int32_t l0, chi_err *err) {
  const chi_block_spec *s = chi_net_spec(net, stack);
  chi_arena *a = &t->arena;
  *t = (tape){.net = net,
              .stack = stack,
              .s = s,
              .T = T,
              .r0 = r0,
              .m = T - r0,
              .l0 = l0,
              .D = s->d,
              .nq = (int64_t)s->heads * s->head_dim,
              .nkv = (int64_t)s->kv_heads * s->head_dim,
              .F = s->ffn};
  int64_t m = t->m, nb = (T + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK, L = s->layers;
  struct {
    float **to;
    int64_t rows, cols;
  } need[] = {{&t->in, (L - l0 + 1) * m, t->D},
              {&t->k, L * T, t->nkv},
              {&t->v, L * T, t->nkv},
              {&t->h, m, t->D},
              {&t->q, m, t->nq},
              {&t->p, (int64_t)s->heads * m, T},
              {&t->mix, m, t->nq},
              {&t->attn, m, t->D},
              {&t->mid, m, t->D},
              {&t->h2, m, t->D},
              {&t->gate, m, t->F},
              {&t->up, m, t->F},
              {&t->act, m, t->F},
              {&t->mlp, m, t->D},
              {&t->kl, T, t->nkv},
              {&t->vl, T, t->nkv},
              {&t->sum1, s->post_norm ? m : 0, t->D},
              {&t->sum2, s->post_norm ? m : 0, t->D}};
  for (size_t i = 0; i < sizeof need / sizeof *need; i++)
    if (!(*need[i].to = floats(a, need[i].rows, need[i].cols, err))) return CHI_ERR_MEMORY;
  t->pos = chi_arena_array(a, (size_t)m, sizeof *t->pos, err);
  t->kb = chi_arena_array(a, (size_t)nb, sizeof *t->kb, err);
  t->vb = chi_arena_array(a, (size_t)nb, sizeof *t->vb, err);
  if (!t->pos || !t->kb || !t->vb) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < t->m; i++) t->pos[i] = r0 + i;
  for (int64_t i = 0; i < nb; i++)
    if (!(t->kb[i] = floats(a, 1, (int64_t)chi_kv_block_floats(s), err)) ||
        !(t->vb[i] = floats(a, 1, (int64_t)chi_kv_block_floats(s), err)))
      return CHI_ERR_MEMORY;
  return 0;
}

/* ---- interventions --------------------------------------------------------------------------------------- */
typedef struct part {
  int64_t lo, hi;
} part;
static part part_of(const tape *t, const chi_intervention *iv, int64_t width) {
  int64_t unit = chi_site_get(iv->site)->unit == CHI_UNIT_HEAD ? t->s->head_dim : 1;
  return (part){iv->part_lo * unit, iv->part_hi ? iv->part_hi * unit : width};
}

/* y rows [r0, T) of a site; backward turns gradients round (SET and ZERO end them, SCALE scales, ADD lets them
 * pass). */
void chii_grad_touch(const tape *t, const chi_grad_step *st, chi_site site, int layer, float *y, int64_t width,
                     bool backward) {
  chi_exec x = {.net = t->net};
  for (int32_t k = 0; k < st->n_iv; k++) {
    const chi_intervention *iv = &st->iv[backward ? st->n_iv - 1 - k : k];
    if (!chi_iv_acts(iv, t->stack, site, layer) || chi_iv_is_edge(iv)) continue;
    part p = part_of(t, iv, width);
    for (int32_t i = 0; i < iv->n_rows; i++) {
      int32_t r = iv->rows[i] - t->r0;
      if (r < 0 || r >= t->m) continue;
      float *row = y + r * width;
      if (!backward)
        chi_iv_apply(&x, iv, 0, layer, i, row, width, 0, NULL, NULL);
      else if (iv->op == CHI_OP_SCALE)
        chi_rows_scale(row + p.lo, width, 1, p.hi - p.lo, iv->scale);
      else if (iv->op == CHI_OP_SET || iv->op == CHI_OP_ZERO || iv->op == CHI_OP_TOKEN)
        memset(row + p.lo, 0, (size_t)(p.hi - p.lo) * sizeof *row);
    }
  }
}

static int check_interventions(const chi_grad *g, const chi_grad_step *st, chi_err *err) {
  for (int32_t i = 0; i < st->n_iv; i++) {
    const chi_intervention *iv = &st->iv[i];
    bool known = iv->op == CHI_OP_SET || iv->op == CHI_OP_ADD || iv->op == CHI_OP_SCALE || iv->op == CHI_OP_ZERO ||
                 iv->op == CHI_OP_NOISE || iv->op == CHI_OP_TOKEN || iv->op == CHI_OP_CUT;
    if (!known || iv->stack == CHI_PROJECTOR || iv->site == CHI_SITE_IMAGE_EMBED || iv->site == CHI_SITE_FINAL_NORM ||
        iv->site == CHI_SITE_LOGITS || iv->site == CHI_SITE_X_PATTERN ||
        (iv->site == CHI_SITE_PATTERN && iv->op != CHI_OP_CUT))
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "gradients: '%s' at %s.%s is not differentiated", chi_op_name(iv->op),
                      chi_stack_name(iv->stack), chi_site_get(iv->site)->name);
    for (int32_t k = 0; iv->stack == CHI_DECODER && k < iv->n_rows; k++)
      if (iv->rows[k] < g->dec.r0 || (chi_site_get(iv->site)->per_layer && iv->layer_lo < g->dec.l0) ||
          (!chi_site_get(iv->site)->per_layer && g->dec.l0 > 0))
        return chi_fail(err, CHI_ERR_ARG, "gradients: an intervention lies before the part that the session computes");
  }
  return 0;
}

/* ---- forward --------------------------------------------------------------------------------------------- */
/* Attention of rows [r0, T) of one layer: blocks from kl, vl, weights kept in p. */
static int attend(tape *t, const chi_grad_step *st, int layer, chi_err *err) {
  const chi_block_spec *s = t->s;
  chi_arena a = {0};
  int rc = 0;
  float *pat = floats(&a, t->m, (int64_t)s->heads * t->T, err);
  chi_attn_query *q = chi_arena_array(&a, (size_t)t->m, sizeof *q, err);
  chi_edge *e = chi_arena_array(&a, (size_t)t->m * (size_t)(st->n_iv + 1), sizeof *e, err);
  CHI_TRY(pat && q && e ? 0 : CHI_ERR_MEMORY);
  for (int32_t r = 0; r < t->T; r++)
    chi_kv_put(t->kb[r / CHI_KV_BLOCK], t->vb[r / CHI_KV_BLOCK], t->kl + r * t->nkv, t->vl + r * t->nkv,
               r % CHI_KV_BLOCK, s->kv_heads, s->head_dim, t->net->compute);
  for (int32_t i = 0; i < t->m; i++) {
    int32_t row = t->r0 + i, ne = 0;
    chi_edge *mine = e + (size_t)i * (size_t)(st->n_iv + 1);
    for (int32_t k = 0; k < st->n_iv; k++) {
      const chi_intervention *iv = &st->iv[k];
      if (!chi_iv_is_edge(iv) || !chi_iv_acts(iv, t->stack, CHI_SITE_PATTERN, layer) || chi_iv_row(iv, row) < 0)
        continue;
      mine[ne++] = (chi_edge){.row = row,
                              .key_lo = iv->key_lo,
                              .key_hi = iv->key_hi,
                              .head_lo = iv->part_lo,
                              .head_hi = iv->part_hi ? iv->part_hi : s->heads,
                              .op = CHI_EDGE_CUT};
    }
    if (s->window > 0 && layer >= s->window_from && row + 1 > s->window)
      mine[ne++] = (chi_edge){.row = row,
                              .key_lo = 0,
                              .key_hi = row + 1 - s->window,
                              .head_lo = 0,
                              .head_hi = s->heads,
                              .op = CHI_EDGE_CUT};
    q[i] = (chi_attn_query){.q = t->q + i * t->nq,
                            .out = t->mix + i * t->nq,
                            .kblk = (const float *const *)t->kb,
                            .vblk = (const float *const *)t->vb,
                            .row = row,
                            .n_keys = s->causal ? row + 1 : t->T,
                            .edges = mine,
                            .n_edges = ne,
                            .pattern = pat + (int64_t)i * s->heads * t->T};
  }
  CHI_TRY(chi_attention(q, t->m, s->heads, s->kv_heads, s->head_dim, s->attn_scale, t->net->compute, err));
  memset(t->p, 0, (size_t)s->heads * (size_t)t->m * (size_t)t->T * sizeof *t->p);
  for (int32_t i = 0; i < t->m; i++)
    for (int32_t h = 0; h < s->heads; h++)
      memcpy(t->p + ((int64_t)h * t->m + i) * t->T, pat + (int64_t)i * s->heads * t->T + (int64_t)h * q[i].n_keys,
             (size_t)q[i].n_keys * sizeof *pat);
out:
  chi_arena_free(&a);
  return rc;
}

/* One layer from t->in[layer] (before interventions at resid_pre) to out; everything inside is left in the tape. */
static int layer_forward(tape *t, const chi_grad_step *st, int layer, float *x, float *out, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  int64_t m = t->m;
  chii_grad_touch(t, st, CHI_SITE_RESID_PRE, layer, x, t->D, false);
  memcpy(t->kl, t->k + (int64_t)layer * t->T * t->nkv, (size_t)t->T * (size_t)t->nkv * sizeof *t->kl);
  memcpy(t->vl, t->v + (int64_t)layer * t->T * t->nkv, (size_t)t->T * (size_t)t->nkv * sizeof *t->vl);
  float *k = t->kl + t->r0 * t->nkv, *v = t->vl + t->r0 * t->nkv;
  CHI_TRY(chi_block_qkv(s, w, &t->net->decoder.rope, x, t->pos, m, t->h, t->q, k, v, err));
  chii_grad_touch(t, st, CHI_SITE_Q, layer, t->q, t->nq, false);
  chii_grad_touch(t, st, CHI_SITE_K, layer, k, t->nkv, false);
  chii_grad_touch(t, st, CHI_SITE_V, layer, v, t->nkv, false);
  CHI_TRY(attend(t, st, layer, err));
  chii_grad_touch(t, st, CHI_SITE_HEAD_OUT, layer, t->mix, t->nq, false);
  CHI_TRY(chi_block_o(w, s, t->mix, t->attn, m, err));
  chii_grad_touch(t, st, CHI_SITE_ATTN_OUT, layer, t->attn, t->D, false);
  memcpy(t->mid, x, (size_t)(m * t->D) * sizeof *x);
  chi_rows_add(t->mid, t->D, t->attn, t->D, m, t->D);
  if (s->post_norm) {
    memcpy(t->h, x, (size_t)(m * t->D) * sizeof *x); /* q, k and v read x itself */
    memcpy(t->sum1, t->mid, (size_t)(m * t->D) * sizeof *x);
    chi_norm_rows(s, &w->norm1, t->sum1, t->mid, m, t->D);
  }
  chii_grad_touch(t, st, CHI_SITE_RESID_MID, layer, t->mid, t->D, false);
  if (chi_block_has_cross(s, layer)) CHI_TRY(chii_cross_forward(t, st, layer, t->mid, err));
  if (s->post_norm)
    memcpy(t->h2, t->mid, (size_t)(m * t->D) * sizeof *x);
  else
    chi_norm_rows(s, s->parallel ? &w->norm1 : &w->norm2, s->parallel ? x : t->mid, t->h2, m, t->D);
  CHI_TRY(chi_gemm(&w->up.w, t->h2, t->D, t->up, t->F, m, w->up.bias, err));
  if (s->gated) CHI_TRY(chi_gemm(&w->gate.w, t->h2, t->D, t->gate, t->F, m, w->gate.bias, err));
  chi_act_rows(s->act, s->gated ? t->gate : t->up, t->F, s->gated ? t->up : NULL, t->F, t->act, t->F, m, t->F);
  chii_grad_touch(t, st, CHI_SITE_MLP_ACT, layer, t->act, t->F, false);
  CHI_TRY(chi_block_down(s, w, t->act, t->mlp, m, err));
  chii_grad_touch(t, st, CHI_SITE_MLP_OUT, layer, t->mlp, t->D, false);
  memcpy(out, t->mid, (size_t)(m * t->D) * sizeof *out);
  chi_rows_add(out, t->D, t->mlp, t->D, m, t->D);
  if (s->post_norm) {
    memcpy(t->sum2, out, (size_t)(m * t->D) * sizeof *x);
    chi_norm_rows(s, &w->norm2, t->sum2, out, m, t->D);
  }
  chii_grad_touch(t, st, CHI_SITE_RESID_POST, layer, out, t->D, false);
out:
  return rc;
}

static float *layer_in(const tape *t, int layer) { return t->in + (int64_t)(layer - t->l0) * t->m * t->D; }

static int stack_forward(tape *t, const chi_grad_step *st, chi_err *err) {
  int rc = 0;
  /* resid_pre's interventions act on a copy: the kept inputs are used again on the way back */
  float *x = chi_calloc((size_t)(t->m * t->D), sizeof *x, err);
  if (!x) return CHI_ERR_MEMORY;
  for (int l = t->l0; l < t->s->layers; l++) {
    memcpy(x, layer_in(t, l), (size_t)(t->m * t->D) * sizeof *x);
    CHI_TRY(layer_forward(t, st, l, x, layer_in(t, l + 1), err));
  }
out:
  chi_free(x);
  return rc;
}

/* ---- backward -------------------------------------------------------------------------------------------- */
static void give_site(const tape *t, const chi_grad_step *st, chi_site site, int layer, const float *d, int64_t width) {
  for (int32_t k = 0; k < st->n_sites; k++) {
    const chi_grad_site *g = &st->sites[k];
    if (g->stack != t->stack || g->site != site || (chi_site_get(site)->per_layer && g->layer != layer)) continue;
    for (int32_t i = 0; i < g->n_rows; i++) {
      int32_t r = g->rows[i] - t->r0;
      if (r >= 0 && r < t->m) memcpy(g->out + i * width, d + r * width, (size_t)width * sizeof *d);
    }
  }
}

/* A site on the way back: its gradient is given, then passes the interventions. */
void chii_grad_pass(const tape *t, const chi_grad_step *st, chi_site site, int layer, float *d, int64_t width) {
  give_site(t, st, site, layer, d, width);
  chii_grad_touch(t, st, site, layer, d, width, true);
}

static void give_weight(const tape *t, const chi_grad_step *st, int layer, chi_weight which, const float *x,
                        const float *dy, int64_t n, int64_t k) {
  for (int32_t i = 0; i < st->n_weights; i++) {
    const chi_grad_weight *g = &st->weights[i];
    if (g->stack == t->stack && g->layer == layer && g->which == which) chi_weight_back(g->out, x, dy, t->m, n, k);
  }
}

typedef struct scratch {
  float *da, *dg, *du, *dh, *tmp, *dq, *dk, *dv, *dmix, *dattn, *dx;
} scratch;

static int mlp_back(tape *t, const chi_grad_step *st, int layer, const float *x, float *dmid, scratch *z,
                    chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  int64_t m = t->m, n = m * t->D;
  /* z->tmp holds d mlp_out */
  give_weight(t, st, layer, CHI_W_DOWN, t->act, z->tmp, t->D, t->F);
  CHI_TRY(chi_gemm_t(&w->down.w, z->tmp, t->D, z->da, t->F, m, err));
  chii_grad_pass(t, st, CHI_SITE_MLP_ACT, layer, z->da, t->F);
  chi_act_back(s->act, s->gated ? t->gate : t->up, s->gated ? t->up : NULL, z->da, s->gated ? z->dg : z->du, z->du, m,
               t->F);
  give_weight(t, st, layer, CHI_W_UP, t->h2, z->du, t->F, t->D);
  CHI_TRY(chi_gemm_t(&w->up.w, z->du, t->F, z->dh, t->D, m, err));
  if (s->gated) {
    give_weight(t, st, layer, CHI_W_GATE, t->h2, z->dg, t->F, t->D);
    CHI_TRY(chi_gemm_t(&w->gate.w, z->dg, t->F, z->tmp, t->D, m, err));
    for (int64_t i = 0; i < n; i++) z->dh[i] += z->tmp[i];
  }
  if (s->post_norm)
    for (int64_t i = 0; i < n; i++) dmid[i] += z->dh[i];
  else if (s->parallel)
    chi_norm_back(s, &w->norm1, x, z->dh, z->dx, m, t->D, NULL, NULL);
  else
    chi_norm_back(s, &w->norm2, t->mid, z->dh, dmid, m, t->D, NULL, NULL);
out:
  return rc;
}

static int give_pattern(const tape *t, const chi_grad_step *st, int layer, const float *dmix, chi_err *err) {
  float *dp = chi_calloc((size_t)t->s->heads * (size_t)t->m * (size_t)t->T, sizeof *dp, err);
  if (!dp) return CHI_ERR_MEMORY;
  chi_pattern_back(t->vl, t->p, dmix, dp, t->m, t->T, t->s->heads, t->s->kv_heads, t->s->head_dim);
  st->on_pattern(st->pattern_ud, t->stack, layer, t->p, dp, t->m, t->T);
  chi_free(dp);
  return 0;
}

static int attention_back(tape *t, const chi_grad_step *st, int layer, const float *x, scratch *z, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  int64_t m = t->m, n = m * t->D;
  size_t kv = (size_t)t->T * (size_t)t->nkv * sizeof(float);
  give_weight(t, st, layer, CHI_W_O, t->mix, z->dattn, t->D, t->nq);
  CHI_TRY(chi_gemm_t(&w->o.w, z->dattn, t->D, z->dmix, t->nq, m, err));
  chii_grad_pass(t, st, CHI_SITE_HEAD_OUT, layer, z->dmix, t->nq);
  if (st->on_pattern) CHI_TRY(give_pattern(t, st, layer, z->dmix, err));
  memset(z->dk, 0, kv);
  memset(z->dv, 0, kv);
  CHI_TRY(chi_attention_back(t->q, t->kl, t->vl, t->p, z->dmix, z->dq, z->dk, z->dv, m, t->T, t->r0, s->heads,
                             s->kv_heads, s->head_dim, s->attn_scale, err));
  float *dk = z->dk + t->r0 * t->nkv, *dv = z->dv + t->r0 * t->nkv;
  chii_grad_pass(t, st, CHI_SITE_Q, layer, z->dq, t->nq);
  chii_grad_pass(t, st, CHI_SITE_K, layer, dk, t->nkv);
  chii_grad_pass(t, st, CHI_SITE_V, layer, dv, t->nkv);
  if (s->rope_half > 0) {
    const chi_rope *r = &t->net->decoder.rope;
    chi_rope_back(z->dq, m, s->heads, s->head_dim, s->rope_half, t->pos, r->cos_t, r->sin_t);
    chi_rope_back(dk, m, s->kv_heads, s->head_dim, s->rope_half, t->pos, r->cos_t, r->sin_t);
  }
  give_weight(t, st, layer, CHI_W_Q, t->h, z->dq, t->nq, t->D);
  give_weight(t, st, layer, CHI_W_K, t->h, dk, t->nkv, t->D);
  give_weight(t, st, layer, CHI_W_V, t->h, dv, t->nkv, t->D);
  CHI_TRY(chi_gemm_t(&w->q.w, z->dq, t->nq, z->dh, t->D, m, err));
  CHI_TRY(chi_gemm_t(&w->k.w, dk, t->nkv, z->tmp, t->D, m, err));
  for (int64_t i = 0; i < n; i++) z->dh[i] += z->tmp[i];
  CHI_TRY(chi_gemm_t(&w->v.w, dv, t->nkv, z->tmp, t->D, m, err));
  for (int64_t i = 0; i < n; i++) z->dh[i] += z->tmp[i];
  if (s->post_norm)
    for (int64_t i = 0; i < n; i++) z->dx[i] += z->dh[i];
  else
    chi_norm_back(s, &w->norm1, x, z->dh, z->dx, m, t->D, NULL, NULL);
out:
  return rc;
}

/* Gradient behind a norm of sums -> before it, in place. tmp [m][D]. */
static void norm_of_sum_back(const tape *t, const chi_norm *n, const float *sum, float *d, float *tmp) {
  size_t bytes = (size_t)(t->m * t->D) * sizeof *d;
  memset(tmp, 0, bytes);
  chi_norm_back(t->s, n, sum, d, tmp, t->m, t->D, NULL, NULL);
  memcpy(d, tmp, bytes);
}

/* d: gradient at resid_post on entry, at the layer's input on return. */
static int layer_back(tape *t, const chi_grad_step *st, int layer, float *d, scratch *z, float *x, chi_err *err) {
  int rc = 0;
  int64_t n = t->m * t->D;
  size_t bytes = (size_t)n * sizeof(float);
  memcpy(x, layer_in(t, layer), bytes);
  CHI_TRY(layer_forward(t, st, layer, x, z->tmp, err)); /* fills the tape; x carries resid_pre's interventions */
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  chii_grad_pass(t, st, CHI_SITE_RESID_POST, layer, d, t->D);
  if (t->s->post_norm) norm_of_sum_back(t, &w->norm2, t->sum2, d, z->tmp);
  memcpy(z->tmp, d, bytes);
  chii_grad_pass(t, st, CHI_SITE_MLP_OUT, layer, z->tmp, t->D);
  memset(z->dx, 0, bytes);
  CHI_TRY(mlp_back(t, st, layer, x, d, z, err)); /* d becomes the gradient at what the MLP reads */
  if (chi_block_has_cross(t->s, layer)) CHI_TRY(chii_cross_back(t, st, layer, d, err));
  chii_grad_pass(t, st, CHI_SITE_RESID_MID, layer, d, t->D);
  if (t->s->post_norm) norm_of_sum_back(t, &w->norm1, t->sum1, d, z->tmp);
  for (int64_t i = 0; i < n; i++) z->dx[i] += d[i];
  memcpy(z->dattn, d, bytes);
  chii_grad_pass(t, st, CHI_SITE_ATTN_OUT, layer, z->dattn, t->D);
  CHI_TRY(attention_back(t, st, layer, x, z, err));
  memcpy(d, z->dx, bytes);
  chii_grad_pass(t, st, CHI_SITE_RESID_PRE, layer, d, t->D);
out:
  return rc;
}

/* add: gradients of states that leave the stack on the way (vision features): added at state l before layer l-1 is
 * undone. */
typedef void (*add_state_fn)(void *ud, int state, float *d);
static int stack_back(tape *t, const chi_grad_step *st, float *d, add_state_fn add, void *ud, chi_err *err) {
  int rc = 0;
  chi_arena a = {0};
  int64_t m = t->m, D = t->D, nq = t->nq > D ? t->nq : D;
  scratch z = {floats(&a, m, t->F, err),      floats(&a, m, t->F, err),      floats(&a, m, t->F, err),
               floats(&a, m, D, err),         floats(&a, m, D, err),         floats(&a, m, nq, err),
               floats(&a, t->T, t->nkv, err), floats(&a, t->T, t->nkv, err), floats(&a, m, nq, err),
               floats(&a, m, D, err),         floats(&a, m, D, err)};
  float *x = floats(&a, m, D, err);
  CHI_TRY(z.da && z.dg && z.du && z.dh && z.tmp && z.dq && z.dk && z.dv && z.dmix && z.dattn && z.dx && x
              ? 0
              : CHI_ERR_MEMORY);
  for (int l = t->s->layers; l >= t->l0; l--) {
    if (add) add(ud, l, d);
    if (l > t->l0) CHI_TRY(layer_back(t, st, l - 1, d, &z, x, err));
  }
out:
  chi_arena_free(&a);
  return rc;
}

/* ---- sessions -------------------------------------------------------------------------------------------- */
/* Captures of the constant part: captures 2l, 2l+1 = k, v of layer l0 + l; the last = the rows at l0. */
typedef struct fill {
  tape *t;
  float *start;
  int32_t n_kv;
} fill;
static int take_prefix(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  fill *f = ud;
  tape *t = f->t;
  if (capture >= f->n_kv)
    memcpy(f->start + i * width, v, (size_t)width * sizeof *v);
  else
    memcpy((capture % 2 ? t->v : t->k) + ((int64_t)(t->l0 + capture / 2) * t->T + i) * t->nkv, v,
           (size_t)width * sizeof *v);
  return 0;
}

static int run_prefix(chi_grad *g, chi_err *err) {
  int rc = 0, root;
  tape *t = &g->dec;
  chi_plan *p = NULL;
  int32_t *rows = chi_arena_array(&g->arena, (size_t)t->T, sizeof *rows, err);
  fill f = {t, g->start, 0};
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < t->T; i++) rows[i] = i;
  CHI_TRY(chi_plan_new(&p, err));
  CHI_TRY(chi_plan_root(p, &g->in, &root, err));
  for (int l = t->l0; l < t->s->layers && t->r0 > 0; l++)
    for (int k = 0; k < 2; k++, f.n_kv++)
      CHI_TRY(chi_plan_capture(p,
                               &(chi_capture){.branch = root,
                                              .stack = CHI_DECODER,
                                              .site = k ? CHI_SITE_V : CHI_SITE_K,
                                              .layer = l,
                                              .rows = rows,
                                              .n_rows = t->r0},
                               NULL, err));
  chi_capture c = {.branch = root,
                   .stack = CHI_DECODER,
                   .site = t->l0 ? CHI_SITE_RESID_PRE : CHI_SITE_EMBED,
                   .layer = t->l0 ? t->l0 : -1,
                   .rows = rows + t->r0,
                   .n_rows = t->m};
  CHI_TRY(chi_plan_capture(p, &c, NULL, err));
  chi_run_opts o = {.on_capture = take_prefix, .ud = &f};
  CHI_TRY(chi_run_plan(g->net, p, &o, err));
out:
  chi_plan_free(p);
  return rc;
}

static int open_qformer(chi_grad *g, chi_err *err) {
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  int64_t rows = net->vision.rows, d = net->vision.spec.d;
  int rc = tape_init(&g->qf, net, CHI_QFORMER, q->queries, 0, 0, err);
  if (rc) return rc;
  g->states = floats(&g->arena, rows, d, err);
  g->query = floats(&g->arena, q->queries, q->spec.d, err);
  if (!g->states || !g->query) return CHI_ERR_MEMORY;
  g->qf.cross = g->states;
  g->qf.n_cross = (int32_t)rows;
  return chii_cross_init(&g->qf, err);
}

static int open_vision(chi_grad *g, chi_err *err) {
  const chi_net *net = g->net;
  const chi_vision *v = &net->vision;
  int64_t n = net->shape.n_image_rows, F = (int64_t)v->spec.d * v->n_features, ffn = chi_net_project_ffn(net);
  int rc = tape_init(&g->vis, net, CHI_VISION, v->rows, 0, 0, err);
  if (rc == 0 && net->has_qformer) rc = open_qformer(g, err);
  if (rc) return rc;
  g->embed = floats(&g->arena, v->rows, v->spec.d, err);
  g->feat = floats(&g->arena, v->rows, F, err);
  g->pre = floats(&g->arena, n, ffn, err);
  g->pact = floats(&g->arena, n, ffn, err);
  g->proj = floats(&g->arena, n, net->decoder.spec.d, err);
  if (!g->embed || !g->feat || !g->pre || !g->pact || !g->proj) return CHI_ERR_MEMORY;
  return chi_net_vision_embed(net, g->in.pixels, g->embed, err);
}

int chi_grad_open(chi_grad **out, const chi_net *net, const chi_input *in, int32_t first_row, int32_t first_layer,
                  bool vision, chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  chi_grad *g = chi_calloc(1, sizeof *g, err);
  if (!g) return CHI_ERR_MEMORY;
  g->net = net;
  g->in = *in;
  g->in.cache = NULL;
  g->vision = vision;
  if (first_row < 0 || first_row >= in->n_rows || first_layer < 0 || first_layer >= net->decoder.spec.layers ||
      (vision && (first_row || first_layer || !in->pixels))) {
    rc = chi_fail(err, CHI_ERR_ARG, "gradients: first row %d and layer %d are not within the input", first_row,
                  first_layer);
    goto out;
  }
  CHI_TRY(tape_init(&g->dec, net, CHI_DECODER, in->n_rows, first_row, first_layer, err));
  CHI_TRY((g->start = floats(&g->arena, g->dec.m, g->dec.D, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(run_prefix(g, err));
  if (vision) CHI_TRY(open_vision(g, err));
out:
  chi_fp_end(fp);
  if (rc)
    chi_grad_close(g);
  else
    *out = g;
  return rc;
}

void chi_grad_close(chi_grad *g) {
  if (!g) return;
  chi_arena_free(&g->dec.arena);
  chi_arena_free(&g->vis.arena);
  chi_arena_free(&g->qf.arena);
  chi_arena_free(&g->arena);
  chi_free(g);
}

/* Rows that the projector reads. */
static const float *projector_in(const chi_grad *g, int64_t *width) {
  const chi_vision *v = &g->net->vision;
  *width = chi_net_project_width(g->net);
  return g->net->has_qformer ? layer_in(&g->qf, g->qf.s->layers) : g->feat + v->select * *width;
}

static int qformer_forward(chi_grad *g, const chi_grad_step *st, chi_err *err) {
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  chi_net_vision_post(net, layer_in(&g->vis, g->vis.s->layers), g->states, net->vision.rows);
  memcpy(g->query, q->query, (size_t)q->queries * (size_t)q->spec.d * sizeof(float));
  chii_grad_touch(&g->qf, st, CHI_SITE_EMBED, -1, g->query, q->spec.d, false);
  chi_qformer_embed(q, g->query, layer_in(&g->qf, 0), q->queries);
  return stack_forward(&g->qf, st, err);
}

static int vision_forward(chi_grad *g, const chi_grad_step *st, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_vision *v = &net->vision;
  const chi_projector *p = &net->projector;
  int64_t D = v->spec.d, F = D * v->n_features, n = net->shape.n_image_rows, ffn = chi_net_project_ffn(net), width;
  memcpy(layer_in(&g->vis, 0), g->embed, (size_t)(v->rows * D) * sizeof(float));
  chii_grad_touch(&g->vis, st, CHI_SITE_EMBED, -1, layer_in(&g->vis, 0), D, false);
  float *e = chi_calloc((size_t)(v->rows * D), sizeof *e, err);
  if (!e) return CHI_ERR_MEMORY;
  memcpy(e, layer_in(&g->vis, 0), (size_t)(v->rows * D) * sizeof *e);
  chi_net_vision_pre(net, e, layer_in(&g->vis, 0), v->rows);
  chi_free(e);
  CHI_TRY(stack_forward(&g->vis, st, err));
  for (int32_t f = 0; !net->has_qformer && f < v->n_features; f++)
    chi_rows_copy(g->feat + f * D, F, layer_in(&g->vis, v->feature[f]), D, v->rows, D);
  if (net->has_qformer) CHI_TRY(qformer_forward(g, st, err));
  const float *in = projector_in(g, &width);
  if (ffn) {
    CHI_TRY(chi_gemm(&p->l1.w, in, width, g->pre, ffn, n, p->l1.bias, err));
    chi_act_rows(p->act, g->pre, ffn, NULL, 0, g->pact, ffn, n, ffn);
  }
  CHI_TRY(chi_net_project_out(net, ffn ? g->pact : in, g->proj, n, err));
  memcpy(g->start + g->in.image_row * g->dec.D, g->proj, (size_t)(n * g->dec.D) * sizeof(float));
out:
  return rc;
}

typedef struct features {
  const chi_grad *g;
  const float *d;
} features;
static void add_feature(void *ud, int state, float *d) {
  const features *f = ud;
  const chi_vision *v = &f->g->net->vision;
  int64_t D = v->spec.d, F = D * v->n_features;
  for (int32_t k = 0; k < v->n_features; k++)
    for (int32_t r = v->select; v->feature[k] == state && r < v->rows; r++)
      chi_rows_add(d + r * D, D, f->d + r * F + k * D, D, 1, D);
}

/* dout [n][d]: gradient at the projector's output -> din [n][width], set. */
static int projector_back(chi_grad *g, const chi_grad_step *st, const float *dout, float *din, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_projector *p = &net->projector;
  int64_t n = net->shape.n_image_rows, ffn = chi_net_project_ffn(net), dd = net->decoder.spec.d, width;
  const float *in = projector_in(g, &width);
  chi_arena a = {0};
  float *da = floats(&a, n, ffn, err), *dp = floats(&a, n, ffn, err);
  tape pt = {.net = net, .stack = CHI_PROJECTOR, .s = &net->decoder.spec, .m = (int32_t)n, .T = (int32_t)n};
  CHI_TRY(da && dp ? 0 : CHI_ERR_MEMORY);
  give_site(&pt, st, CHI_SITE_MLP_OUT, 0, dout, dd);
  if (!ffn) {
    give_weight(&pt, st, 0, CHI_W_PROJ1, in, dout, dd, width);
    rc = chi_gemm_t(&p->l1.w, dout, dd, din, width, n, err);
    goto out;
  }
  give_weight(&pt, st, 0, CHI_W_PROJ2, g->pact, dout, dd, ffn);
  CHI_TRY(chi_gemm_t(&p->l2.w, dout, dd, da, ffn, n, err));
  give_site(&pt, st, CHI_SITE_MLP_ACT, 0, da, ffn);
  chi_act_back(p->act, g->pre, NULL, da, dp, dp, n, ffn);
  give_weight(&pt, st, 0, CHI_W_PROJ1, in, dp, ffn, width);
  CHI_TRY(chi_gemm_t(&p->l1.w, dp, ffn, din, width, n, err));
out:
  chi_arena_free(&a);
  return rc;
}

/* dq [queries][d]: gradient at the Q-Former's output; dx [vision.rows][d] becomes that at the tower's last states. */
static int qformer_back(chi_grad *g, const chi_grad_step *st, float *dq, float *dx, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  const chi_vision *v = &net->vision;
  int64_t D = q->spec.d, rows = v->rows, vd = v->spec.d;
  chi_block_spec post = v->spec;
  float *de = chi_calloc((size_t)(q->queries * D), sizeof *de, err);
  post.eps = v->post_eps;
  if (!de) return CHI_ERR_MEMORY;
  memset(g->qf.dcross, 0, (size_t)(rows * vd) * sizeof(float));
  CHI_TRY(stack_back(&g->qf, st, dq, NULL, NULL, err));
  chi_norm_back(&q->spec, &q->embed, g->query, dq, de, q->queries, D, NULL, NULL);
  chii_grad_pass(&g->qf, st, CHI_SITE_EMBED, -1, de, D);
  if (!v->post.w) {
    memcpy(dx, g->qf.dcross, (size_t)(rows * vd) * sizeof *dx);
    goto out;
  }
  give_site(&g->vis, st, CHI_SITE_FINAL_NORM, -1, g->qf.dcross, vd);
  chi_norm_back(&post, &v->post, layer_in(&g->vis, g->vis.s->layers), g->qf.dcross, dx, rows, vd, NULL, NULL);
out:
  chi_free(de);
  return rc;
}

/* d: gradient at the decoder's input rows. */
static int vision_back(chi_grad *g, const chi_grad_step *st, const float *d, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_vision *v = &net->vision;
  int64_t D = v->spec.d, width = chi_net_project_width(net), n = net->shape.n_image_rows;
  chi_arena a = {0};
  const float *dout = d + g->in.image_row * net->decoder.spec.d;
  float *df = floats(&a, n + v->rows, width, err), *dx = floats(&a, v->rows, D, err), *de = floats(&a, v->rows, D, err);
  CHI_TRY(df && dx && de ? 0 : CHI_ERR_MEMORY);
  if (net->has_qformer) {
    CHI_TRY(projector_back(g, st, dout, df, err));
    CHI_TRY(qformer_back(g, st, df, dx, err));
    CHI_TRY(stack_back(&g->vis, st, dx, NULL, NULL, err));
  } else {
    CHI_TRY(projector_back(g, st, dout, df + v->select * width, err));
    CHI_TRY(stack_back(&g->vis, st, dx, add_feature, &(features){g, df}, err));
  }
  if (v->pre.w)
    chi_norm_back(&v->spec, &v->pre, g->embed, dx, de, v->rows, D, NULL,
                  NULL); /* embed interventions: none in between */
  else
    memcpy(de, dx, (size_t)(v->rows * D) * sizeof *de);
  give_site(&g->vis, st, CHI_SITE_EMBED, -1, de, D);
out:
  chi_arena_free(&a);
  return rc;
}

/* Loss on the final rows; dx [m][D] becomes the gradient at the last layer's output. */
static int head(chi_grad *g, const chi_grad_step *st, float *dx, double *loss, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_decoder *dec = &net->decoder;
  const tape *t = &g->dec;
  int64_t D = t->D, V = dec->vocab;
  chi_arena a = {0};
  float *norm = floats(&a, 1, D, err), *logits = floats(&a, 1, V, err), *dl = floats(&a, 1, V, err),
        *dn = floats(&a, 1, D, err);
  CHI_TRY(norm && logits && dl && dn ? 0 : CHI_ERR_MEMORY);
  memset(dx, 0, (size_t)(t->m * D) * sizeof *dx);
  *loss = 0;
  for (int32_t i = 0; i < st->n_loss; i++) {
    int32_t r = st->loss_rows[i] - t->r0;
    if (r < 0 || r >= t->m) {
      rc = chi_fail(err, CHI_ERR_ARG, "gradients: loss row %d is not computed by this session", st->loss_rows[i]);
      goto out;
    }
    const float *x = layer_in(t, t->s->layers) + r * D;
    chi_net_final_norm(net, x, norm, 1);
    CHI_TRY(chi_net_logits(net, norm, logits, 1, err));
    memset(dl, 0, (size_t)V * sizeof *dl);
    st->loss(st->ud, i, logits, dl, V, loss);
    if (st->forward_only) continue;
    CHI_TRY(chi_gemm_t(&dec->head.w, dl, V, dn, D, 1, err));
    tape one = *t;
    one.r0 = st->loss_rows[i], one.m = 1;
    give_site(&one, st, CHI_SITE_LOGITS, -1, dl, V);
    give_site(&one, st, CHI_SITE_FINAL_NORM, -1, dn, D);
    chi_norm_back(t->s, &dec->final, x, dn, dx + r * D, 1, D, NULL, NULL);
  }
  if (!isfinite(*loss))
    rc = chi_fail(err, CHI_ERR_ARG,
                  "the loss is not finite (%g): the target has probability 0 or the model's values overflow", *loss);
out:
  chi_arena_free(&a);
  return rc;
}

int chi_grad_run(chi_grad *g, const chi_grad_step *st, double *loss, chi_err *err) {
  int rc = 0;
  tape *t = &g->dec;
  chi_arena a = {0};
  unsigned fp = chi_fp_begin();
  float *d = floats(&a, t->m, t->D, err);
  CHI_TRY(d ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(check_interventions(g, st, err));
  if (g->vision) CHI_TRY(vision_forward(g, st, err));
  memcpy(layer_in(t, t->l0), g->start, (size_t)(t->m * t->D) * sizeof *d);
  if (t->l0 == 0) {
    chii_grad_touch(t, st, CHI_SITE_EMBED, -1, layer_in(t, 0), t->D, false);
    for (int32_t i = 0; i < t->m; i++) chi_net_add_position(g->net, layer_in(t, 0) + i * t->D, t->r0 + i);
  }
  CHI_TRY(stack_forward(t, st, err));
  CHI_TRY(head(g, st, d, loss, err));
  if (st->forward_only) goto out;
  CHI_TRY(stack_back(t, st, d, NULL, NULL, err));
  if (t->l0 == 0) chii_grad_pass(t, st, CHI_SITE_EMBED, -1, d, t->D);
  if (g->vision) CHI_TRY(vision_back(g, st, d, err));
out:
  chi_fp_end(fp);
  chi_arena_free(&a);
  return rc;
}

void chi_loss_nll(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  const chi_nll *n = ud;
  double w = n->weight ? n->weight[i] : 1.0, max = -INFINITY, sum = 0;
  for (int64_t k = 0; k < vocab; k++)
    if ((double)logits[k] > max) max = (double)logits[k];
  for (int64_t k = 0; k < vocab; k++) sum += exp((double)logits[k] - max);
  double lse = max + chi_log64(sum);
  for (int64_t k = 0; k < vocab; k++) dlogits[k] = (float)(w * exp((double)logits[k] - lse));
  dlogits[n->token[i]] -= (float)w;
  *loss += w * (lse - (double)logits[n->token[i]]);
}

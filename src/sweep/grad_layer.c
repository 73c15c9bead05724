/* Layers of a tape: forward, and backward from what they left, or from their inputs where that would be too much. */
#include <string.h>

#include "sweep/grad_internal.h"

typedef chii_tape tape;

/* What layers leave behind is kept up to this; beyond it each layer runs once more on the way back. */
static const int64_t kInsideBytes = (int64_t)512 << 20;
/* Blocks of constant keys are kept up to this, else made again for each layer. */
static const int64_t kBlockBytes = (int64_t)768 << 20;

float *chii_floats(chi_arena *a, int64_t rows, int64_t cols, chi_err *err) {
  return chi_arena_array(a, (size_t)(rows * cols), sizeof(float), err);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */
static int init_spans(tape *t, const int32_t *rows, const int32_t *first, int32_t n, int64_t *patterns, chi_err *err) {
  const chi_block_spec *s = t->s;
  int32_t base = 0;
  int64_t L = s->layers - t->l0;
  *patterns = 0;
  for (int32_t i = 0; i < n; i++) t->m += rows[i] - (first ? first[i] : 0);
  t->span = chi_arena_array(&t->arena, (size_t)n, sizeof *t->span, err);
  t->pos = chi_arena_array(&t->arena, (size_t)t->m, sizeof *t->pos, err);
  if (!t->span || !t->pos) return CHI_ERR_MEMORY;
  for (int32_t i = 0, at = 0; i < n; i++) {
    chii_span *p = &t->span[i];
    int32_t nb = (rows[i] + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK, r0 = first ? first[i] : 0;
    *p = (chii_span){.r0 = r0, .T = rows[i], .m = rows[i] - r0, .at = at, .base = base, .p = *patterns};
    p->ck = chii_floats(&t->arena, L * (r0 - t->shared), t->nkv, err);
    p->cv = chii_floats(&t->arena, L * (r0 - t->shared), t->nkv, err);
    p->kb = chi_arena_array(&t->arena, (size_t)nb, sizeof *p->kb, err);
    p->vb = chi_arena_array(&t->arena, (size_t)nb, sizeof *p->vb, err);
    if (!p->ck || !p->cv || !p->kb || !p->vb) return CHI_ERR_MEMORY;
    for (int32_t b = t->shared / CHI_KV_BLOCK; b < nb; b++)
      if (!(p->kb[b] = chii_floats(&t->arena, 1, (int64_t)chi_kv_block_floats(s), err)) ||
          !(p->vb[b] = chii_floats(&t->arena, 1, (int64_t)chi_kv_block_floats(s), err)))
        return CHI_ERR_MEMORY;
    for (int32_t r = 0; r < p->m; r++) t->pos[at + r] = r0 + r;
    at += p->m, base += rows[i];
    *patterns += (int64_t)s->heads * p->m * p->T;
  }
  t->n_spans = n;
  return 0;
}

static int init_fixed(tape *t, chi_err *err) {
  int64_t nb = t->shared / CHI_KV_BLOCK, L = t->s->layers - t->l0, floats = (int64_t)chi_kv_block_floats(t->s);
  t->keep_blocks = 2 * nb * L * floats * (int64_t)sizeof(float) <= kBlockBytes;
  int64_t n = nb * (t->keep_blocks ? L : 1);
  t->fk = chii_floats(&t->arena, L * t->shared, t->nkv, err);
  t->fv = chii_floats(&t->arena, L * t->shared, t->nkv, err);
  t->fkb = chi_arena_array(&t->arena, (size_t)n, sizeof *t->fkb, err);
  t->fvb = chi_arena_array(&t->arena, (size_t)n, sizeof *t->fvb, err);
  if (!t->fk || !t->fv || !t->fkb || !t->fvb) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++)
    if (!(t->fkb[i] = chii_floats(&t->arena, 1, floats, err)) || !(t->fvb[i] = chii_floats(&t->arena, 1, floats, err)))
      return CHI_ERR_MEMORY;
  return 0;
}

static int init_inside(tape *t, int64_t patterns, chi_err *err) {
  int64_t m = t->m, sums = t->s->post_norm ? t->D : 0, L = t->s->layers - t->l0;
  int64_t row = 4 * t->D + 2 * t->nq + 2 * t->nkv + 3 * t->F + 2 * sums;
  t->keep = t->s->cross_every == 0 && (m * row + patterns) * L * (int64_t)sizeof(float) <= kInsideBytes;
  int64_t n = t->keep ? L : 1;
  if (!(t->inside = chi_arena_array(&t->arena, (size_t)n, sizeof *t->inside, err))) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    chii_inside *z = &t->inside[i];
    struct {
      float **to;
      int64_t count;
    } need[] = {{&z->x, m * t->D},    {&z->h, m * t->D},    {&z->q, m * t->nq},  {&z->k, m * t->nkv},
                {&z->v, m * t->nkv},  {&z->mix, m * t->nq}, {&z->mid, m * t->D}, {&z->h2, m * t->D},
                {&z->gate, m * t->F}, {&z->up, m * t->F},   {&z->act, m * t->F}, {&z->sum1, m * sums},
                {&z->sum2, m * sums}, {&z->p, patterns}};
    for (size_t k = 0; k < sizeof need / sizeof *need; k++)
      if (!(*need[k].to = chii_floats(&t->arena, need[k].count, 1, err))) return CHI_ERR_MEMORY;
  }
  return 0;
}

int chii_tape_init(tape *t, const chi_net *net, chi_stack stack, const int32_t *rows, const int32_t *first,
                   int32_t n_inputs, int32_t shared, int32_t l0, chi_err *err) {
  const chi_block_spec *s = chi_net_spec(net, stack);
  int64_t patterns;
  *t = (tape){.net = net,
              .stack = stack,
              .s = s,
              .shared = shared,
              .l0 = l0,
              .D = s->d,
              .nq = (int64_t)s->heads * s->head_dim,
              .nkv = (int64_t)s->kv_heads * s->head_dim,
              .F = s->ffn};
  int rc = init_spans(t, rows, first, n_inputs, &patterns, err);
  if (rc == 0) rc = init_fixed(t, err);
  if (rc == 0) rc = init_inside(t, patterns, err);
  if (rc) return rc;
  t->in = chii_floats(&t->arena, (s->layers - l0 + 1) * (int64_t)t->m, t->D, err);
  t->attn = chii_floats(&t->arena, t->m, t->D, err);
  t->mlp = chii_floats(&t->arena, t->m, t->D, err);
  return t->in && t->attn && t->mlp ? 0 : CHI_ERR_MEMORY;
}

float *chii_layer_in(const tape *t, int layer) { return t->in + (int64_t)(layer - t->l0) * t->m * t->D; }

/* ---- keys -------------------------------------------------------------------------------------------------------- */
static const float *fixed_row(const tape *t, const float *rows, int layer, int32_t r) {
  return rows + ((int64_t)(layer - t->l0) * t->shared + r) * t->nkv;
}

/* Where the keys and values of a span lie in a layer. */
static chi_attn_keys keys_of(const tape *t, const chii_inside *z, const chii_span *p, int layer) {
  int64_t own = (int64_t)(layer - t->l0) * (p->r0 - t->shared) * t->nkv, live = p->at * t->nkv;
  return (chi_attn_keys){.k = {fixed_row(t, t->fk, layer, 0), p->ck + own, z->k + live},
                         .v = {fixed_row(t, t->fv, layer, 0), p->cv + own, z->v + live},
                         .end = {t->shared, p->r0, p->T}};
}

static void put_row(const tape *t, float *kb, float *vb, const float *k, const float *v, int32_t row) {
  chi_kv_put(kb, vb, k, v, row % CHI_KV_BLOCK, t->s->kv_heads, t->s->head_dim, t->net->compute);
}

static float **fixed_blocks(const tape *t, float **blocks, int layer) {
  return blocks + (t->keep_blocks ? (int64_t)(layer - t->l0) * (t->shared / CHI_KV_BLOCK) : 0);
}

/* The whole blocks of a layer's constant keys and values. */
static void fill_blocks(void *ud, int64_t i) {
  const tape *t = ud;
  int layer = t->l0 + (int)i;
  for (int32_t r = 0; r < t->shared / CHI_KV_BLOCK * CHI_KV_BLOCK; r++)
    put_row(t, fixed_blocks(t, t->fkb, layer)[r / CHI_KV_BLOCK], fixed_blocks(t, t->fvb, layer)[r / CHI_KV_BLOCK],
            fixed_row(t, t->fk, layer, r), fixed_row(t, t->fv, layer, r), r);
}

void chii_tape_blocks(tape *t) {
  if (t->keep_blocks) chi_parallel_for(t->s->layers - t->l0, fill_blocks, t);
}

/* Block tables of every span for a layer whose live keys and values are in z. */
static void point_blocks(tape *t, const chii_inside *z, int layer) {
  int32_t whole = t->shared / CHI_KV_BLOCK;
  if (!t->keep_blocks) fill_blocks(t, layer - t->l0);
  for (int32_t i = 0; i < t->n_spans; i++) {
    chii_span *p = &t->span[i];
    for (int32_t b = 0; b < whole; b++) {
      p->kb[b] = fixed_blocks(t, t->fkb, layer)[b];
      p->vb[b] = fixed_blocks(t, t->fvb, layer)[b];
    }
    chi_attn_keys keys = keys_of(t, z, p, layer);
    for (int32_t r = whole * CHI_KV_BLOCK; r < p->T; r++)
      put_row(t, p->kb[r / CHI_KV_BLOCK], p->vb[r / CHI_KV_BLOCK], chi_key_row(&keys, r, t->nkv),
              chi_value_row(&keys, r, t->nkv), r);
  }
}

/* ---- sites ------------------------------------------------------------------------------------------------------- */
int32_t chii_tape_row(const tape *t, int32_t row) {
  if (!t->span) return row >= 0 && row < t->m ? row : -1;
  for (int32_t i = 0; i < t->n_spans; i++) {
    const chii_span *p = &t->span[i];
    if (row >= p->base + p->r0 && row < p->base + p->T) return p->at + row - p->base - p->r0;
  }
  return -1;
}

typedef struct part {
  int64_t lo, hi;
} part;
static part part_of(const tape *t, const chi_intervention *iv, int64_t width) {
  int64_t unit = chi_site_get(iv->site)->unit == CHI_UNIT_HEAD ? t->s->head_dim : 1;
  return (part){iv->part_lo * unit, iv->part_hi ? iv->part_hi * unit : width};
}

/* Backward turns gradients round: SET and ZERO end them, SCALE scales, ADD lets them pass. */
void chii_grad_touch(const tape *t, const chi_grad_step *st, chi_site site, int layer, float *y, int64_t width,
                     bool backward) {
  chi_exec x = {.net = t->net};
  for (int32_t k = 0; k < st->n_iv; k++) {
    const chi_intervention *iv = &st->iv[backward ? st->n_iv - 1 - k : k];
    if (!chi_iv_acts(iv, t->stack, site, layer) || chi_iv_is_edge(iv)) continue;
    part p = part_of(t, iv, width);
    for (int32_t i = 0; i < iv->n_rows; i++) {
      int32_t r = chii_tape_row(t, iv->rows[i]);
      if (r < 0) continue;
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

void chii_give_site(const tape *t, const chi_grad_step *st, chi_site site, int layer, const float *d, int32_t first,
                    int32_t n, int64_t width) {
  for (int32_t k = 0; k < st->n_sites; k++) {
    const chi_grad_site *g = &st->sites[k];
    if (g->stack != t->stack || g->site != site || (chi_site_get(site)->per_layer && g->layer != layer)) continue;
    for (int32_t i = 0; i < g->n_rows; i++) {
      int32_t r = chii_tape_row(t, g->rows[i]) - first;
      if (r >= 0 && r < n) memcpy(g->out + i * width, d + r * width, (size_t)width * sizeof *d);
    }
  }
}

void chii_grad_pass(const tape *t, const chi_grad_step *st, chi_site site, int layer, float *d, int64_t width) {
  chii_give_site(t, st, site, layer, d, 0, t->m, width);
  chii_grad_touch(t, st, site, layer, d, width, true);
}

void chii_give_weight(const tape *t, const chi_grad_step *st, int layer, chi_weight which, const float *x,
                      const float *dy, int64_t n, int64_t k) {
  for (int32_t i = 0; i < st->n_weights; i++) {
    const chi_grad_weight *g = &st->weights[i];
    if (g->stack == t->stack && g->layer == layer && g->which == which) chi_weight_back(g->out, x, dy, t->m, n, k);
  }
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */
/* Edges of one query row that are cut: by the step, and by a sliding window. Rows and keys of `out` count within the
 * input. */
static int32_t cut_edges(const tape *t, const chi_grad_step *st, const chii_span *p, int layer, int32_t row,
                         chi_edge *out) {
  const chi_block_spec *s = t->s;
  int32_t n = 0;
  for (int32_t k = 0; k < st->n_iv; k++) {
    const chi_intervention *iv = &st->iv[k];
    if (!chi_iv_is_edge(iv) || !chi_iv_acts(iv, t->stack, CHI_SITE_PATTERN, layer) || chi_iv_row(iv, p->base + row) < 0)
      continue;
    out[n++] = (chi_edge){.row = row,
                          .key_lo = iv->key_lo > p->base ? iv->key_lo - p->base : 0,
                          .key_hi = iv->key_hi > p->base ? iv->key_hi - p->base : 0,
                          .head_lo = iv->part_lo,
                          .head_hi = iv->part_hi ? iv->part_hi : s->heads,
                          .op = CHI_EDGE_CUT};
  }
  if (s->window > 0 && layer >= s->window_from && row + 1 > s->window)
    out[n++] = (chi_edge){.row = row, .key_hi = row + 1 - s->window, .head_hi = s->heads, .op = CHI_EDGE_CUT};
  return n;
}

/* Attention of all live rows of one layer; the weights are kept in z->p. */
static int attend(tape *t, const chi_grad_step *st, int layer, const chii_inside *z, chi_err *err) {
  const chi_block_spec *s = t->s;
  chi_arena a = {0};
  int rc = 0;
  size_t edges = (size_t)st->n_iv + 1;
  int64_t patterns = 0;
  for (int32_t i = 0; i < t->n_spans; i++) patterns += (int64_t)s->heads * t->span[i].m * t->span[i].T;
  float *pat = chii_floats(&a, patterns, 1, err);
  chi_attn_query *q = chi_arena_array(&a, (size_t)t->m, sizeof *q, err);
  chi_edge *e = chi_arena_array(&a, (size_t)t->m * edges, sizeof *e, err);
  CHI_TRY(pat && q && e ? 0 : CHI_ERR_MEMORY);
  point_blocks(t, z, layer);
  for (int32_t k = 0; k < t->n_spans; k++) {
    const chii_span *p = &t->span[k];
    for (int32_t i = 0; i < p->m; i++) {
      int32_t row = p->r0 + i, at = p->at + i;
      q[at] = (chi_attn_query){.q = z->q + at * t->nq,
                               .out = z->mix + at * t->nq,
                               .kblk = (const float *const *)p->kb,
                               .vblk = (const float *const *)p->vb,
                               .row = row,
                               .n_keys = s->causal ? row + 1 : p->T,
                               .edges = e + (size_t)at * edges,
                               .n_edges = cut_edges(t, st, p, layer, row, e + (size_t)at * edges),
                               .pattern = pat + p->p + (int64_t)i * s->heads * p->T};
    }
  }
  CHI_TRY(chi_attention(q, t->m, s->heads, s->kv_heads, s->head_dim, s->attn_scale, t->net->compute, err));
  memset(z->p, 0, (size_t)patterns * sizeof *z->p);
  for (int32_t k = 0; k < t->n_spans; k++) {
    const chii_span *p = &t->span[k];
    for (int32_t i = 0; i < p->m; i++)
      for (int32_t h = 0; h < s->heads; h++)
        memcpy(z->p + p->p + ((int64_t)h * p->m + i) * p->T, q[p->at + i].pattern + (int64_t)h * q[p->at + i].n_keys,
               (size_t)q[p->at + i].n_keys * sizeof *pat);
  }
out:
  chi_arena_free(&a);
  return rc;
}

static chii_inside *inside_of(const tape *t, int layer) { return &t->inside[t->keep ? layer - t->l0 : 0]; }

/* One layer from chii_layer_in(t, layer) to out; everything inside is left in inside_of(t, layer). */
static int layer_forward(tape *t, const chi_grad_step *st, int layer, float *out, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  const chii_inside *z = inside_of(t, layer);
  int64_t m = t->m;
  size_t bytes = (size_t)(m * t->D) * sizeof *out;
  memcpy(z->x, chii_layer_in(t, layer), bytes); /* the kept inputs are used again: interventions act on a copy */
  chii_grad_touch(t, st, CHI_SITE_RESID_PRE, layer, z->x, t->D, false);
  CHI_TRY(chi_block_qkv(s, w, &t->net->decoder.rope, z->x, t->pos, m, z->h, z->q, z->k, z->v, err));
  chii_grad_touch(t, st, CHI_SITE_Q, layer, z->q, t->nq, false);
  chii_grad_touch(t, st, CHI_SITE_K, layer, z->k, t->nkv, false);
  chii_grad_touch(t, st, CHI_SITE_V, layer, z->v, t->nkv, false);
  CHI_TRY(attend(t, st, layer, z, err));
  chii_grad_touch(t, st, CHI_SITE_HEAD_OUT, layer, z->mix, t->nq, false);
  CHI_TRY(chi_block_o(w, s, z->mix, t->attn, m, err));
  chii_grad_touch(t, st, CHI_SITE_ATTN_OUT, layer, t->attn, t->D, false);
  memcpy(z->mid, z->x, bytes);
  chi_rows_add(z->mid, t->D, t->attn, t->D, m, t->D);
  if (s->post_norm) {
    memcpy(z->h, z->x, bytes); /* q, k and v read x itself */
    memcpy(z->sum1, z->mid, bytes);
    chi_norm_rows(s, &w->norm1, z->sum1, z->mid, m, t->D);
  }
  chii_grad_touch(t, st, CHI_SITE_RESID_MID, layer, z->mid, t->D, false);
  if (chi_block_has_cross(s, layer)) CHI_TRY(chii_cross_forward(t, st, layer, z->mid, err));
  if (s->post_norm)
    memcpy(z->h2, z->mid, bytes);
  else
    chi_norm_rows(s, s->parallel ? &w->norm1 : &w->norm2, s->parallel ? z->x : z->mid, z->h2, m, t->D);
  CHI_TRY(chi_gemm(&w->up.w, z->h2, t->D, z->up, t->F, m, w->up.bias, err));
  if (s->gated) CHI_TRY(chi_gemm(&w->gate.w, z->h2, t->D, z->gate, t->F, m, w->gate.bias, err));
  chi_act_rows(s->act, s->gated ? z->gate : z->up, t->F, s->gated ? z->up : NULL, t->F, z->act, t->F, m, t->F);
  chii_grad_touch(t, st, CHI_SITE_MLP_ACT, layer, z->act, t->F, false);
  CHI_TRY(chi_block_down(s, w, z->act, t->mlp, m, err));
  chii_grad_touch(t, st, CHI_SITE_MLP_OUT, layer, t->mlp, t->D, false);
  memcpy(out, z->mid, bytes);
  chi_rows_add(out, t->D, t->mlp, t->D, m, t->D);
  if (s->post_norm) {
    memcpy(z->sum2, out, bytes);
    chi_norm_rows(s, &w->norm2, z->sum2, out, m, t->D);
  }
  chii_grad_touch(t, st, CHI_SITE_RESID_POST, layer, out, t->D, false);
out:
  return rc;
}

int chii_stack_forward(tape *t, const chi_grad_step *st, chi_err *err) {
  for (int l = t->l0; l < t->s->layers; l++) {
    int rc = layer_forward(t, st, l, chii_layer_in(t, l + 1), err);
    if (rc) return rc;
  }
  return 0;
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */
typedef struct scratch {
  float *da, *dg, *du, *dh, *tmp, *dq, *dk, *dv, *dmix, *dattn, *dx;
} scratch;

static int mlp_back(tape *t, const chi_grad_step *st, int layer, float *dmid, scratch *b, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  const chii_inside *z = inside_of(t, layer);
  int64_t m = t->m, n = m * t->D;
  /* b->tmp holds d mlp_out */
  CHI_TRY(chi_gemm_t(&w->down.w, b->tmp, t->D, b->da, t->F, m, err));
  chii_grad_pass(t, st, CHI_SITE_MLP_ACT, layer, b->da, t->F);
  chi_act_back(s->act, s->gated ? z->gate : z->up, s->gated ? z->up : NULL, b->da, s->gated ? b->dg : b->du, b->du, m,
               t->F);
  chii_give_weight(t, st, layer, CHI_W_UP, z->h2, b->du, t->F, t->D);
  CHI_TRY(chi_gemm_t(&w->up.w, b->du, t->F, b->dh, t->D, m, err));
  if (s->gated) {
    chii_give_weight(t, st, layer, CHI_W_GATE, z->h2, b->dg, t->F, t->D);
    CHI_TRY(chi_gemm_t(&w->gate.w, b->dg, t->F, b->tmp, t->D, m, err));
    for (int64_t i = 0; i < n; i++) b->dh[i] += b->tmp[i];
  }
  if (s->post_norm)
    for (int64_t i = 0; i < n; i++) dmid[i] += b->dh[i];
  else if (s->parallel)
    chi_norm_back(s, &w->norm1, z->x, b->dh, b->dx, m, t->D, NULL, NULL);
  else
    chi_norm_back(s, &w->norm2, z->mid, b->dh, dmid, m, t->D, NULL, NULL);
out:
  return rc;
}

static int give_pattern(const tape *t, const chi_grad_step *st, int layer, const float *dmix, chi_err *err) {
  const chii_inside *z = inside_of(t, layer);
  const chii_span *p = &t->span[0];
  float *dp = chi_calloc((size_t)t->s->heads * (size_t)p->m * (size_t)p->T, sizeof *dp, err);
  if (!dp) return CHI_ERR_MEMORY;
  chi_attn_keys keys = keys_of(t, z, p, layer);
  chi_pattern_back(&keys, z->p, dmix, dp, p->m, t->s->heads, t->s->kv_heads, t->s->head_dim);
  st->on_pattern(st->pattern_ud, t->stack, layer, z->p, dp, p->m, p->T);
  chi_free(dp);
  return 0;
}

static int attention_back(tape *t, const chi_grad_step *st, int layer, scratch *b, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = t->s;
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  const chii_inside *z = inside_of(t, layer);
  int64_t m = t->m, n = m * t->D;
  size_t kv = (size_t)(m * t->nkv) * sizeof(float);
  chii_give_weight(t, st, layer, CHI_W_O, z->mix, b->dattn, t->D, t->nq);
  CHI_TRY(chi_gemm_t(&w->o.w, b->dattn, t->D, b->dmix, t->nq, m, err));
  chii_grad_pass(t, st, CHI_SITE_HEAD_OUT, layer, b->dmix, t->nq);
  if (st->on_pattern) CHI_TRY(give_pattern(t, st, layer, b->dmix, err));
  memset(b->dk, 0, kv);
  memset(b->dv, 0, kv);
  for (int32_t i = 0; i < t->n_spans; i++) {
    const chii_span *p = &t->span[i];
    chi_attn_keys keys = keys_of(t, z, p, layer);
    CHI_TRY(chi_attention_back(z->q + p->at * t->nq, &keys, z->p + p->p, b->dmix + p->at * t->nq, b->dq + p->at * t->nq,
                               b->dk + p->at * t->nkv, b->dv + p->at * t->nkv, p->m, s->heads, s->kv_heads, s->head_dim,
                               s->attn_scale, err));
  }
  chii_grad_pass(t, st, CHI_SITE_Q, layer, b->dq, t->nq);
  chii_grad_pass(t, st, CHI_SITE_K, layer, b->dk, t->nkv);
  chii_grad_pass(t, st, CHI_SITE_V, layer, b->dv, t->nkv);
  if (s->rope_half > 0) {
    const chi_rope *r = &t->net->decoder.rope;
    chi_rope_back(b->dq, m, s->heads, s->head_dim, s->rope_half, t->pos, r->cos_t, r->sin_t);
    chi_rope_back(b->dk, m, s->kv_heads, s->head_dim, s->rope_half, t->pos, r->cos_t, r->sin_t);
  }
  chii_give_weight(t, st, layer, CHI_W_Q, z->h, b->dq, t->nq, t->D);
  chii_give_weight(t, st, layer, CHI_W_K, z->h, b->dk, t->nkv, t->D);
  chii_give_weight(t, st, layer, CHI_W_V, z->h, b->dv, t->nkv, t->D);
  CHI_TRY(chi_gemm_t(&w->q.w, b->dq, t->nq, b->dh, t->D, m, err));
  CHI_TRY(chi_gemm_t(&w->k.w, b->dk, t->nkv, b->tmp, t->D, m, err));
  for (int64_t i = 0; i < n; i++) b->dh[i] += b->tmp[i];
  CHI_TRY(chi_gemm_t(&w->v.w, b->dv, t->nkv, b->tmp, t->D, m, err));
  for (int64_t i = 0; i < n; i++) b->dh[i] += b->tmp[i];
  if (s->post_norm)
    for (int64_t i = 0; i < n; i++) b->dx[i] += b->dh[i];
  else
    chi_norm_back(s, &w->norm1, z->x, b->dh, b->dx, m, t->D, NULL, NULL);
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

/* Does the way back end at what the MLP of the tape's first layer writes? */
static bool ends_at_mlp(const tape *t, const chi_grad_step *st, int layer) {
  if (layer > t->l0 || !t->open || st->on_pattern) return false;
  for (int32_t k = 0; k < st->n_sites; k++)
    if (st->sites[k].stack == t->stack && st->sites[k].layer == layer && st->sites[k].site != CHI_SITE_MLP_OUT &&
        st->sites[k].site != CHI_SITE_RESID_POST)
      return false;
  for (int32_t k = 0; k < st->n_weights; k++)
    if (st->weights[k].stack == t->stack && st->weights[k].layer == layer && st->weights[k].which != CHI_W_DOWN)
      return false;
  return true;
}

/* d: gradient at resid_post on entry, at the layer's input on return (unless the way ends before it). */
static int layer_back(tape *t, const chi_grad_step *st, int layer, float *d, scratch *b, chi_err *err) {
  int rc = 0;
  int64_t n = t->m * t->D;
  size_t bytes = (size_t)n * sizeof(float);
  if (!t->keep) CHI_TRY(layer_forward(t, st, layer, b->tmp, err));
  const chi_block *w = chi_net_block(t->net, t->stack, layer);
  const chii_inside *z = inside_of(t, layer);
  chii_grad_pass(t, st, CHI_SITE_RESID_POST, layer, d, t->D);
  if (t->s->post_norm) norm_of_sum_back(t, &w->norm2, z->sum2, d, b->tmp);
  memcpy(b->tmp, d, bytes);
  chii_grad_pass(t, st, CHI_SITE_MLP_OUT, layer, b->tmp, t->D);
  chii_give_weight(t, st, layer, CHI_W_DOWN, z->act, b->tmp, t->D, t->F);
  if (ends_at_mlp(t, st, layer)) goto out;
  memset(b->dx, 0, bytes);
  CHI_TRY(mlp_back(t, st, layer, d, b, err)); /* d becomes the gradient at what the MLP reads */
  if (chi_block_has_cross(t->s, layer)) CHI_TRY(chii_cross_back(t, st, layer, d, err));
  chii_grad_pass(t, st, CHI_SITE_RESID_MID, layer, d, t->D);
  if (t->s->post_norm) norm_of_sum_back(t, &w->norm1, z->sum1, d, b->tmp);
  for (int64_t i = 0; i < n; i++) b->dx[i] += d[i];
  memcpy(b->dattn, d, bytes);
  chii_grad_pass(t, st, CHI_SITE_ATTN_OUT, layer, b->dattn, t->D);
  CHI_TRY(attention_back(t, st, layer, b, err));
  memcpy(d, b->dx, bytes);
  chii_grad_pass(t, st, CHI_SITE_RESID_PRE, layer, d, t->D);
out:
  return rc;
}

int chii_stack_back(tape *t, const chi_grad_step *st, float *d, chii_add_state add, void *ud, chi_err *err) {
  int rc = 0;
  chi_arena a = {0};
  int64_t m = t->m, D = t->D, nq = t->nq > D ? t->nq : D;
  scratch b = {chii_floats(&a, m, t->F, err),   chii_floats(&a, m, t->F, err),   chii_floats(&a, m, t->F, err),
               chii_floats(&a, m, D, err),      chii_floats(&a, m, D, err),      chii_floats(&a, m, nq, err),
               chii_floats(&a, m, t->nkv, err), chii_floats(&a, m, t->nkv, err), chii_floats(&a, m, nq, err),
               chii_floats(&a, m, D, err),      chii_floats(&a, m, D, err)};
  CHI_TRY(b.da && b.dg && b.du && b.dh && b.tmp && b.dq && b.dk && b.dv && b.dmix && b.dattn && b.dx ? 0
                                                                                                     : CHI_ERR_MEMORY);
  for (int l = t->s->layers; l >= t->l0; l--) {
    if (add) add(ud, l, d);
    if (l > t->l0) CHI_TRY(layer_back(t, st, l - 1, d, &b, err));
  }
out:
  chi_arena_free(&a);
  return rc;
}

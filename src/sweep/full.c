/* One branch through one stack; see full.h. Kept plain on purpose: with dense.c it defines what a plan means. */
#include "sweep/full.h"

#include <string.h>

#include "sweep/live.h"

static int owner_of(const chi_full *f, int b) { return f->owner ? f->owner[b] : b; }

/* Lists of what a run serves: counted, then filled. */
static int index_lists(chi_full *f, const uint8_t *include) {
  const chi_plan *p = f->x->plan;
  size_t nb = p->n_branches;
  int32_t *n = chi_arena_array(&f->arena, nb, sizeof *n, f->err),
          *m = chi_arena_array(&f->arena, nb, sizeof *m, f->err);
  f->copies = chi_arena_array(&f->arena, nb, sizeof *f->copies, f->err);
  f->captures = chi_arena_array(&f->arena, nb, sizeof *f->captures, f->err);
  if (!n || !m || !f->copies || !f->captures) return CHI_ERR_MEMORY;
  for (int pass = 0; pass < 2; pass++) {
    for (size_t b = 0; b < nb; b++) {
      for (int i = 0; i < p->branch[b].count && (!include || include[b]); i++) {
        const chi_intervention *iv = &p->branch[b].iv[i];
        int o = iv->op == CHI_OP_COPY ? owner_of(f, iv->source) : -1;
        if (o < 0) continue;
        if (pass) f->copies[o][n[o]] = iv;
        n[o]++;
      }
    }
    for (size_t c = 0; c < p->n_captures; c++) {
      int b = p->capture[c].branch, o = owner_of(f, b);
      if (o < 0 || (include && include[b] != CHI_TARGET)) continue;
      if (pass) f->captures[o][m[o]] = (int32_t)c;
      m[o]++;
    }
    for (size_t b = 0; b < nb; b++) {
      if (pass == 0) {
        f->copies[b] = chi_arena_array(&f->arena, (size_t)n[b] + 1, sizeof **f->copies, f->err);
        f->captures[b] = chi_arena_array(&f->arena, (size_t)m[b] + 1, sizeof **f->captures, f->err);
        if (!f->copies[b] || !f->captures[b]) return CHI_ERR_MEMORY;
        n[b] = m[b] = 0;
      } else {
        f->captures[b][m[b]] = -1;
      }
    }
  }
  return 0;
}

int chi_full_init(chi_full *f, const chi_exec *x, const int *owner, const uint8_t *include, chi_err *err) {
  *f = (chi_full){.x = x, .owner = owner, .err = err};
  return index_lists(f, include);
}

void chi_full_free(chi_full *f) {
  chi_free(f->stored);
  chi_arena_free(&f->arena);
}

/* ---- sites ----------------------------------------------------------------------------------------------- */
static const float *find_stored(const chi_full *f, const chi_intervention *iv, int layer, int32_t row) {
  for (size_t i = 0; i < f->n_stored; i++) {
    const chi_stored_row *s = &f->stored[i];
    if (s->branch == owner_of(f, iv->source) && s->stack == iv->stack && s->site == iv->site && s->layer == layer &&
        s->row == row)
      return s->v;
  }
  return NULL;
}

static int store_row(chi_full *f, int b, chi_stack stack, chi_site site, int layer, int32_t row, const float *y,
                     int64_t width) {
  for (const chi_intervention **iv = f->copies[b]; *iv; iv++) {
    if (!chi_iv_acts(*iv, stack, site, layer)) continue;
    bool wanted = false;
    for (int32_t i = 0; i < (*iv)->n_rows && !wanted; i++) wanted = chi_iv_source_row(*iv, i) == row;
    if (!wanted) continue;
    int rc = chi_grow((void **)&f->stored, &f->cap_stored, f->n_stored + 1, sizeof *f->stored, f->err);
    if (rc) return rc;
    float *v = chi_arena_array(&f->arena, (size_t)width, sizeof *v, f->err);
    if (!v) return CHI_ERR_MEMORY;
    memcpy(v, y, (size_t)width * sizeof *v);
    f->stored[f->n_stored++] = (chi_stored_row){b, layer, stack, site, row, v};
    return 0; /* one copy serves all */
  }
  return 0;
}

int chi_full_fire_row(chi_full *f, int b, chi_stack stack, chi_site site, int layer, int32_t row, float *y,
                      int64_t width, int32_t n_keys) {
  int rc = 0;
  const chi_eff *e = &f->x->eff[b];
  for (int32_t k = 0; k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    int32_t i;
    if (!chi_iv_acts(iv, stack, site, layer) || (i = chi_iv_row(iv, row)) < 0) continue;
    const float *src = NULL;
    if (iv->op == CHI_OP_COPY && !(src = find_stored(f, iv, layer, chi_iv_source_row(iv, i))))
      return chi_fail(f->err, CHI_ERR_ARG, "plan: branch %d: the source of a copy at %s was not computed", b,
                      chi_site_get(site)->name);
    CHI_TRY(chi_iv_apply(f->x, iv, b, layer, i, y, width, n_keys, src, f->err));
  }
  for (const int32_t *c = f->captures[b]; *c >= 0; c++) {
    const chi_capture *cap = &f->x->plan->capture[*c];
    if (cap->stack != stack || cap->site != site ||
        (chi_site_get(site)->per_layer && stack != CHI_PROJECTOR && cap->layer != layer))
      continue;
    for (int32_t i = 0; i < cap->n_rows; i++)
      if (cap->rows[i] == row) CHI_TRY(chi_exec_emit(f->x, *c, i, y, width, f->err));
  }
  CHI_TRY(store_row(f, b, stack, site, layer, row, y, width));
out:
  return rc;
}

int chi_full_fire(chi_full *f, int b, chi_stack stack, chi_site site, int layer, float *y, int32_t rows,
                  int64_t width) {
  int rc = 0;
  for (int32_t r = 0; r < rows && rc == 0; r++)
    rc = chi_full_fire_row(f, b, stack, site, layer, r, y + r * width, width, 0);
  return rc;
}

bool chi_full_wants_final(const chi_full *f, int b, int32_t row) {
  for (const int32_t *c = f->captures[b]; *c >= 0; c++) {
    const chi_capture *cap = &f->x->plan->capture[*c];
    if (cap->stack != CHI_DECODER || (cap->site != CHI_SITE_FINAL_NORM && cap->site != CHI_SITE_LOGITS)) continue;
    for (int32_t i = 0; i < cap->n_rows; i++)
      if (cap->rows[i] == row) return true;
  }
  for (const chi_intervention **iv = f->copies[b]; *iv; iv++)
    if ((*iv)->stack == CHI_DECODER && ((*iv)->site == CHI_SITE_FINAL_NORM || (*iv)->site == CHI_SITE_LOGITS))
      return true;
  const chi_plan_branch *br = &f->x->plan->branch[b];
  for (int i = 0; i < br->count; i++) /* callbacks see all of their rows */
    if (br->iv[i].op == CHI_OP_CALL && br->iv[i].stack == CHI_DECODER && chi_iv_row(&br->iv[i], row) >= 0 &&
        (br->iv[i].site == CHI_SITE_FINAL_NORM || br->iv[i].site == CHI_SITE_LOGITS))
      return true;
  return false;
}

static bool wants_pattern(const chi_full *f, int b, chi_stack stack, chi_site site, int layer, int32_t row) {
  if (chi_iv_pattern(f->x, b, stack, site, layer, row)) return true;
  for (const int32_t *c = f->captures[b]; *c >= 0; c++) {
    const chi_capture *cap = &f->x->plan->capture[*c];
    if (cap->stack == stack && cap->site == site && cap->layer == layer) return true;
  }
  for (const chi_intervention **iv = f->copies[b]; *iv; iv++)
    if (chi_iv_acts(*iv, stack, site, layer)) return true;
  return false;
}

/* ---- attention ------------------------------------------------------------------------------------------- */
typedef struct attn { /* T rows look at n keys; site: pattern, or x_pattern for cross-attention */
  chi_stack stack;
  chi_site site;
  int layer;
  int32_t T, n;
  const float *q, *k, *v;
  float *mix;
} attn;

/* Attention of all rows: fill key/value blocks, attend, let the weights fire, attend again where they were replaced. */
static int attend(chi_full *f, int b, const attn *t) {
  int rc = 0;
  const chi_block_spec *s = chi_net_spec(f->x->net, t->stack);
  chi_compute compute = chi_net_block(f->x->net, t->stack, t->layer)->q.w.compute;
  int64_t nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  int32_t nb = (t->n + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  chi_arena a = {0};
  float **kb = chi_arena_array(&a, (size_t)nb, sizeof *kb, f->err),
        **vb = chi_arena_array(&a, (size_t)nb, sizeof *vb, f->err);
  chi_attn_query *qs = chi_arena_array(&a, (size_t)t->T, sizeof *qs, f->err);
  if (!kb || !vb || !qs) rc = CHI_ERR_MEMORY;
  for (int32_t i = 0; rc == 0 && i < nb; i++) {
    kb[i] = chi_arena_array(&a, chi_kv_block_floats(s), sizeof(float), f->err);
    vb[i] = chi_arena_array(&a, chi_kv_block_floats(s), sizeof(float), f->err);
    if (!kb[i] || !vb[i]) rc = CHI_ERR_MEMORY;
  }
  if (rc) goto out;
  for (int32_t r = 0; r < t->n; r++)
    chi_kv_put(kb[r / CHI_KV_BLOCK], vb[r / CHI_KV_BLOCK], t->k + r * nkv, t->v + r * nkv, r % CHI_KV_BLOCK,
               s->kv_heads, s->head_dim, compute);
  for (int32_t r = 0; r < t->T; r++) {
    int32_t n = chi_iv_edges(f->x, b, t->stack, t->site, t->layer, r, NULL, 0);
    chi_edge *edges = chi_arena_array(&a, (size_t)n, sizeof *edges, f->err);
    if (!edges) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    chi_iv_edges(f->x, b, t->stack, t->site, t->layer, r, edges, n);
    qs[r] = (chi_attn_query){.q = t->q + r * nq,
                             .out = t->mix + r * nq,
                             .kblk = (const float *const *)kb,
                             .vblk = (const float *const *)vb,
                             .row = r,
                             .n_keys = t->site == CHI_SITE_PATTERN && s->causal ? r + 1 : t->n,
                             .edges = edges,
                             .n_edges = n};
    if (wants_pattern(f, b, t->stack, t->site, t->layer, r)) {
      qs[r].pattern = chi_arena_array(&a, (size_t)s->heads * (size_t)qs[r].n_keys, sizeof(float), f->err);
      if (!qs[r].pattern) rc = CHI_ERR_MEMORY;
    }
  }
  if (rc) goto out;
  CHI_TRY(chi_attention(qs, t->T, s->heads, s->kv_heads, s->head_dim, s->attn_scale, compute, f->err));
  for (int32_t r = 0; r < t->T; r++) {
    if (!qs[r].pattern) continue;
    CHI_TRY(chi_full_fire_row(f, b, t->stack, t->site, t->layer, r, qs[r].pattern, (int64_t)s->heads * qs[r].n_keys,
                              qs[r].n_keys));
    if (!chi_iv_pattern(f->x, b, t->stack, t->site, t->layer, r)) continue;
    qs[r].pattern_set = qs[r].pattern;
    qs[r].pattern = NULL;
    CHI_TRY(chi_attention(&qs[r], 1, s->heads, s->kv_heads, s->head_dim, s->attn_scale, compute, f->err));
  }
out:
  chi_arena_free(&a);
  return rc;
}

/* ---- stacks ---------------------------------------------------------------------------------------------- */
typedef struct rows { /* work space of one run through a stack */
  int32_t *pos;
  float *h, *q, *k, *v, *mix, *comp, *in, *g, *act;
  float *xk, *xv; /* keys and values of cross-attention */
} rows;

static int rows_alloc(rows *w, chi_arena *a, const chi_block_spec *s, int32_t T, int32_t n_cross, chi_err *err) {
  size_t t = (size_t)T, D = (size_t)s->d, nq = (size_t)(s->heads * s->head_dim),
         nkv = (size_t)(s->kv_heads * s->head_dim), F = (size_t)s->ffn, c = (size_t)n_cross;
  const struct {
    float **to;
    size_t n;
  } all[] = {{&w->h, t * D},    {&w->q, t * nq},   {&w->k, t * nkv}, {&w->v, t * nkv},
             {&w->mix, t * nq}, {&w->comp, t * D}, {&w->in, t * D},  {&w->g, t * F},
             {&w->act, t * F},  {&w->xk, c * nkv}, {&w->xv, c * nkv}};
  w->pos = chi_arena_array(a, t, sizeof *w->pos, err);
  if (!w->pos) return CHI_ERR_MEMORY;
  for (int32_t r = 0; r < T; r++) w->pos[r] = r;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!(*all[i].to = chi_arena_array(a, all[i].n, sizeof(float), err))) return CHI_ERR_MEMORY;
  return 0;
}

/* Cross-attention of one layer: its output is added to x. */
static int cross_attend(chi_full *f, int b, chi_stack stack, int l, const rows *w, float *x, int32_t T,
                        const float *cross, int32_t n_cross) {
  int rc = 0;
  const chi_block_spec *s = chi_net_spec(f->x->net, stack);
  const chi_block *blk = chi_net_block(f->x->net, stack, l);
  int64_t nq = (int64_t)s->heads * s->head_dim;
  CHI_TRY(chi_block_xq(s, blk, x, T, w->q, f->err));
  CHI_TRY(chi_block_xkv(s, blk, cross, n_cross, w->xk, w->xv, f->err));
  CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_X_Q, l, w->q, T, nq));
  CHI_TRY(attend(f, b,
                 &(attn){.stack = stack,
                         .site = CHI_SITE_X_PATTERN,
                         .layer = l,
                         .T = T,
                         .n = n_cross,
                         .q = w->q,
                         .k = w->xk,
                         .v = w->xv,
                         .mix = w->mix}));
  CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_X_HEAD_OUT, l, w->mix, T, nq));
  CHI_TRY(chi_block_xo(blk, w->mix, w->comp, T, f->err));
  CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_X_ATTN_OUT, l, w->comp, T, s->d));
  chi_block_add(s, &blk->norm_x, x, w->comp, T);
  CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_X_RESID_MID, l, x, T, s->d));
out:
  return rc;
}

int chi_full_stack(chi_full *f, int b, chi_stack stack, float *x, int32_t T, float *features, const float *cross,
                   int32_t n_cross) {
  int rc = 0;
  const chi_net *net = f->x->net;
  const chi_block_spec *s = chi_net_spec(net, stack);
  const chi_vision *vis = &net->vision;
  int64_t D = s->d, nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  chi_arena a = {0};
  rows w = {0};
  CHI_TRY(rows_alloc(&w, &a, s, T, n_cross, f->err));
  for (int l = 0; l <= s->layers; l++) {
    for (int32_t i = 0; features && i < vis->n_features; i++)
      if (vis->feature[i] == l) chi_rows_copy(features + i * D, D * vis->n_features, x, D, T, D);
    if (l == s->layers) break;
    const chi_block *blk = chi_net_block(net, stack, l);
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_RESID_PRE, l, x, T, D));
    CHI_TRY(chi_block_qkv(s, blk, &net->decoder.rope, x, w.pos, T, w.h, w.q, w.k, w.v, f->err));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_Q, l, w.q, T, nq));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_K, l, w.k, T, nkv));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_V, l, w.v, T, nkv));
    CHI_TRY(attend(f, b,
                   &(attn){.stack = stack,
                           .site = CHI_SITE_PATTERN,
                           .layer = l,
                           .T = T,
                           .n = T,
                           .q = w.q,
                           .k = w.k,
                           .v = w.v,
                           .mix = w.mix}));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_HEAD_OUT, l, w.mix, T, nq));
    CHI_TRY(chi_block_o(blk, s, w.mix, w.comp, T, f->err));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_ATTN_OUT, l, w.comp, T, D));
    memcpy(w.in, x, (size_t)(T * D) * sizeof *x);
    chi_block_add(s, &blk->norm1, x, w.comp, T);
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_RESID_MID, l, x, T, D));
    if (chi_block_has_cross(s, l)) CHI_TRY(cross_attend(f, b, stack, l, &w, x, T, cross, n_cross));
    CHI_TRY(chi_block_act(s, blk, s->parallel ? w.in : x, T, w.h, w.g, w.act, f->err));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_MLP_ACT, l, w.act, T, s->ffn));
    CHI_TRY(chi_block_down(s, blk, w.act, w.comp, T, f->err));
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_MLP_OUT, l, w.comp, T, D));
    chi_block_add(s, &blk->norm2, x, w.comp, T);
    CHI_TRY(chi_full_fire(f, b, stack, CHI_SITE_RESID_POST, l, x, T, D));
  }
out:
  chi_arena_free(&a);
  return rc;
}

int chi_full_qformer(chi_full *f, int b, float *states, float *out) {
  int rc = 0;
  const chi_net *net = f->x->net;
  const chi_qformer *q = &net->qformer;
  int64_t D = q->spec.d;
  chi_net_vision_post(net, states, states, net->vision.rows);
  if (net->vision.post.w)
    CHI_TRY(chi_full_fire(f, b, CHI_VISION, CHI_SITE_FINAL_NORM, -1, states, net->vision.rows, net->vision.spec.d));
  memcpy(out, q->query, (size_t)(q->queries * D) * sizeof *out);
  CHI_TRY(chi_full_fire(f, b, CHI_QFORMER, CHI_SITE_EMBED, -1, out, q->queries, D));
  chi_qformer_embed(q, out, out, q->queries);
  CHI_TRY(chi_full_stack(f, b, CHI_QFORMER, out, q->queries, NULL, states, net->vision.rows));
out:
  return rc;
}

size_t chi_full_qformer_bytes(const chi_net *net) {
  const chi_block_spec *s = &net->qformer.spec;
  size_t t = (size_t)net->qformer.queries, c = (size_t)net->vision.rows,
         nkv = (size_t)s->kv_heads * (size_t)s->head_dim, nq = (size_t)s->heads * (size_t)s->head_dim;
  return sizeof(float) * (t * (3 * (size_t)s->d + 2 * nq + 2 * nkv + 2 * (size_t)s->ffn) + 4 * c * nkv +
                          c * (size_t)net->vision.spec.d);
}

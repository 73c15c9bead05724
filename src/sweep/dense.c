/* The dense executor: every branch is a full forward over all its rows, nothing shared. This file is the definition of
 * what a plan means; it is kept plain on purpose and the sweep must give its bits. */
#include <string.h>

#include "sweep/exec.h"

typedef struct stored_row { /* a value that some other branch copies */
  int branch, layer;
  chi_stack stack;
  chi_site site;
  int32_t row;
  float *v;
} stored_row;

typedef struct dense {
  chi_exec *x;
  const chi_intervention ***copies; /* per branch: COPY interventions that read it, NULL-terminated */
  stored_row *stored;
  size_t n_stored, cap_stored;
  chi_arena scratch; /* of the branch that runs */
  chi_err *err;
} dense;

static int index_copies(dense *d) {
  const chi_plan *p = d->x->plan;
  int32_t *n = chi_arena_array(&d->x->arena, p->n_branches, sizeof *n, d->err);
  d->copies = chi_arena_array(&d->x->arena, p->n_branches, sizeof *d->copies, d->err);
  if (!n || !d->copies) return CHI_ERR_MEMORY;
  for (int pass = 0; pass < 2; pass++) {
    for (size_t b = 0; b < p->n_branches; b++) {
      for (int i = 0; i < p->branch[b].count; i++) {
        const chi_intervention *iv = &p->branch[b].iv[i];
        if (iv->op != CHI_OP_COPY) continue;
        if (pass) d->copies[iv->source][n[iv->source]] = iv;
        n[iv->source]++;
      }
    }
    for (size_t b = 0; pass == 0 && b < p->n_branches; b++) {
      d->copies[b] = chi_arena_array(&d->x->arena, (size_t)n[b] + 1, sizeof **d->copies, d->err);
      if (!d->copies[b]) return CHI_ERR_MEMORY;
      n[b] = 0;
    }
  }
  return 0;
}

static const float *find_stored(const dense *d, const chi_intervention *iv, int layer, int32_t row) {
  for (size_t i = 0; i < d->n_stored; i++) {
    const stored_row *s = &d->stored[i];
    if (s->branch == iv->source && s->stack == iv->stack && s->site == iv->site && s->layer == layer && s->row == row)
      return s->v;
  }
  return NULL;
}

static int store_row(dense *d, int b, chi_stack stack, chi_site site, int layer, int32_t row, const float *y,
                     int64_t width) {
  for (const chi_intervention **iv = d->copies[b]; *iv; iv++) {
    if (!chi_iv_acts(*iv, stack, site, layer)) continue;
    bool wanted = false;
    for (int32_t i = 0; i < (*iv)->n_rows && !wanted; i++) wanted = chi_iv_source_row(*iv, i) == row;
    if (!wanted) continue;
    int rc = chi_grow((void **)&d->stored, &d->cap_stored, d->n_stored + 1, sizeof *d->stored, d->err);
    if (rc) return rc;
    float *v = chi_arena_array(&d->x->arena, (size_t)width, sizeof *v, d->err);
    if (!v) return CHI_ERR_MEMORY;
    memcpy(v, y, (size_t)width * sizeof *v);
    d->stored[d->n_stored++] = (stored_row){b, layer, stack, site, row, v};
    return 0; /* one copy serves all */
  }
  return 0;
}

/* A site fires for one row: interventions in order, then captures, then the value is kept for those who copy it. */
static int fire_row(dense *d, int b, chi_stack stack, chi_site site, int layer, int32_t row, float *y, int64_t width,
                    int32_t n_keys) {
  int rc = 0;
  const chi_eff *e = &d->x->eff[b];
  for (int32_t k = 0; k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    int32_t i;
    if (!chi_iv_acts(iv, stack, site, layer) || (i = chi_iv_row(iv, row)) < 0) continue;
    const float *src = NULL;
    if (iv->op == CHI_OP_COPY && !(src = find_stored(d, iv, layer, chi_iv_source_row(iv, i))))
      return chi_fail(d->err, CHI_ERR_ARG, "plan: branch %d: the source of a copy at %s was not computed", b,
                      chi_site_get(site)->name);
    CHI_TRY(chi_iv_apply(d->x, iv, b, layer, i, y, width, n_keys, src, d->err));
  }
  for (const int32_t *c = d->x->captures_of[b]; *c >= 0; c++) {
    const chi_capture *cap = &d->x->plan->capture[*c];
    if (cap->stack != stack || cap->site != site ||
        (chi_site_get(site)->per_layer && stack != CHI_PROJECTOR && cap->layer != layer))
      continue;
    for (int32_t i = 0; i < cap->n_rows; i++)
      if (cap->rows[i] == row) CHI_TRY(chi_exec_emit(d->x, *c, i, y, width, d->err));
  }
  CHI_TRY(store_row(d, b, stack, site, layer, row, y, width));
out:
  return rc;
}

static int fire(dense *d, int b, chi_stack stack, chi_site site, int layer, float *y, int32_t rows, int64_t width) {
  int rc = 0;
  for (int32_t r = 0; r < rows && rc == 0; r++) rc = fire_row(d, b, stack, site, layer, r, y + r * width, width, 0);
  return rc;
}

static bool wants_pattern(const dense *d, int b, chi_stack stack, int layer, int32_t row) {
  if (chi_iv_pattern(d->x, b, stack, layer, row)) return true;
  for (const int32_t *c = d->x->captures_of[b]; *c >= 0; c++) {
    const chi_capture *cap = &d->x->plan->capture[*c];
    if (cap->stack == stack && cap->site == CHI_SITE_PATTERN && cap->layer == layer) return true;
  }
  for (const chi_intervention **iv = d->copies[b]; *iv; iv++)
    if (chi_iv_acts(*iv, stack, CHI_SITE_PATTERN, layer)) return true;
  return false;
}

/* Attention of all rows: fill key/value blocks, attend, let pattern fire, attend again where weights were replaced. */
static int attend(dense *d, int b, chi_stack stack, int layer, int32_t T, const float *q, const float *k,
                  const float *v, float *mix) {
  int rc = 0;
  const chi_block_spec *s = chi_net_spec(d->x->net, stack);
  chi_compute compute = d->x->net->compute;
  int64_t nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  int32_t nb = (T + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  chi_arena a = {0};
  float **kb = chi_arena_array(&a, (size_t)nb, sizeof *kb, d->err),
        **vb = chi_arena_array(&a, (size_t)nb, sizeof *vb, d->err);
  chi_attn_query *qs = chi_arena_array(&a, (size_t)T, sizeof *qs, d->err);
  if (!kb || !vb || !qs) rc = CHI_ERR_MEMORY;
  for (int32_t i = 0; rc == 0 && i < nb; i++) {
    kb[i] = chi_arena_array(&a, chi_kv_block_floats(s), sizeof(float), d->err);
    vb[i] = chi_arena_array(&a, chi_kv_block_floats(s), sizeof(float), d->err);
    if (!kb[i] || !vb[i]) rc = CHI_ERR_MEMORY;
  }
  if (rc) goto out;
  for (int32_t r = 0; r < T; r++)
    chi_kv_put(kb[r / CHI_KV_BLOCK], vb[r / CHI_KV_BLOCK], k + r * nkv, v + r * nkv, r % CHI_KV_BLOCK, s->kv_heads,
               s->head_dim, compute);
  for (int32_t r = 0; r < T; r++) {
    int32_t n = chi_iv_edges(d->x, b, stack, layer, r, NULL, 0), n_keys = s->causal ? r + 1 : T;
    chi_edge *edges = chi_arena_array(&a, (size_t)n, sizeof *edges, d->err);
    if (!edges) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    chi_iv_edges(d->x, b, stack, layer, r, edges, n);
    qs[r] = (chi_attn_query){.q = q + r * nq,
                             .out = mix + r * nq,
                             .kblk = (const float *const *)kb,
                             .vblk = (const float *const *)vb,
                             .row = r,
                             .n_keys = n_keys,
                             .edges = edges,
                             .n_edges = n};
    if (wants_pattern(d, b, stack, layer, r)) {
      qs[r].pattern = chi_arena_array(&a, (size_t)s->heads * (size_t)n_keys, sizeof(float), d->err);
      if (!qs[r].pattern) rc = CHI_ERR_MEMORY;
    }
  }
  if (rc) goto out;
  CHI_TRY(chi_attention(qs, T, s->heads, s->kv_heads, s->head_dim, s->attn_scale, compute, d->err));
  for (int32_t r = 0; r < T; r++) {
    if (!qs[r].pattern) continue;
    CHI_TRY(fire_row(d, b, stack, CHI_SITE_PATTERN, layer, r, qs[r].pattern, (int64_t)s->heads * qs[r].n_keys,
                     qs[r].n_keys));
    if (!chi_iv_pattern(d->x, b, stack, layer, r)) continue;
    qs[r].pattern_set = qs[r].pattern;
    qs[r].pattern = NULL;
    CHI_TRY(chi_attention(&qs[r], 1, s->heads, s->kv_heads, s->head_dim, s->attn_scale, compute, d->err));
  }
out:
  chi_arena_free(&a);
  return rc;
}

/* All layers of a stack on x [T][d], in place. states (vision): copies of the states that the projector takes. */
static int run_stack(dense *d, int b, chi_stack stack, float *x, int32_t T, float *features) {
  int rc = 0;
  const chi_net *net = d->x->net;
  const chi_block_spec *s = chi_net_spec(net, stack);
  const chi_vision *vis = &net->vision;
  size_t t = (size_t)T, nq = (size_t)(s->heads * s->head_dim), nkv = (size_t)(s->kv_heads * s->head_dim);
  int64_t D = s->d;
  chi_arena a = {0};
  int32_t *pos = chi_arena_array(&a, t, sizeof *pos, d->err);
  float *h = chi_arena_array(&a, t * (size_t)D, sizeof *h, d->err), *q = chi_arena_array(&a, t * nq, sizeof *q, d->err);
  float *k = chi_arena_array(&a, t * nkv, sizeof *k, d->err), *v = chi_arena_array(&a, t * nkv, sizeof *v, d->err);
  float *mix = chi_arena_array(&a, t * nq, sizeof *mix, d->err),
        *comp = chi_arena_array(&a, t * (size_t)D, sizeof *comp, d->err);
  float *in = chi_arena_array(&a, t * (size_t)D, sizeof *in, d->err),
        *g = chi_arena_array(&a, t * (size_t)s->ffn, sizeof *g, d->err);
  float *act = chi_arena_array(&a, t * (size_t)s->ffn, sizeof *act, d->err);
  if (!pos || !h || !q || !k || !v || !mix || !comp || !in || !g || !act) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (int32_t r = 0; r < T; r++) pos[r] = r;
  for (int l = 0; l <= s->layers; l++) {
    for (int32_t f = 0; features && f < vis->n_features; f++)
      if (vis->feature[f] == l) chi_rows_copy(features + f * D, D * vis->n_features, x, D, T, D);
    if (l == s->layers) break;
    const chi_block *w = chi_net_block(net, stack, l);
    CHI_TRY(fire(d, b, stack, CHI_SITE_RESID_PRE, l, x, T, D));
    CHI_TRY(chi_block_qkv(s, w, &net->decoder.rope, x, pos, T, h, q, k, v, d->err));
    CHI_TRY(fire(d, b, stack, CHI_SITE_Q, l, q, T, (int64_t)nq));
    CHI_TRY(fire(d, b, stack, CHI_SITE_K, l, k, T, (int64_t)nkv));
    CHI_TRY(fire(d, b, stack, CHI_SITE_V, l, v, T, (int64_t)nkv));
    CHI_TRY(attend(d, b, stack, l, T, q, k, v, mix));
    CHI_TRY(fire(d, b, stack, CHI_SITE_HEAD_OUT, l, mix, T, (int64_t)nq));
    CHI_TRY(chi_block_o(w, s, mix, comp, T, d->err));
    CHI_TRY(fire(d, b, stack, CHI_SITE_ATTN_OUT, l, comp, T, D));
    memcpy(in, x, t * (size_t)D * sizeof *in);
    chi_rows_add(x, D, comp, D, T, D);
    CHI_TRY(fire(d, b, stack, CHI_SITE_RESID_MID, l, x, T, D));
    CHI_TRY(chi_block_act(s, w, s->parallel ? in : x, T, h, g, act, d->err));
    CHI_TRY(fire(d, b, stack, CHI_SITE_MLP_ACT, l, act, T, s->ffn));
    CHI_TRY(chi_block_down(s, w, act, comp, T, d->err));
    CHI_TRY(fire(d, b, stack, CHI_SITE_MLP_OUT, l, comp, T, D));
    chi_rows_add(x, D, comp, D, T, D);
    CHI_TRY(fire(d, b, stack, CHI_SITE_RESID_POST, l, x, T, D));
  }
out:
  chi_arena_free(&a);
  return rc;
}

/* Picture rows of the decoder's input: tower, features, projector. out [n_image_rows][d]. */
static int run_vision(dense *d, int b, const chi_input *in, float *out) {
  int rc = 0;
  const chi_net *net = d->x->net;
  const chi_vision *v = &net->vision;
  int32_t n = net->shape.n_image_rows;
  int64_t D = v->spec.d, F = D * v->n_features, ffn = net->projector.l1.w.n;
  chi_arena a = {0};
  float *e = chi_arena_array(&a, (size_t)(v->rows * D), sizeof *e, d->err),
        *x = chi_arena_array(&a, (size_t)(v->rows * D), sizeof *x, d->err);
  float *feat = chi_arena_array(&a, (size_t)(v->rows * F), sizeof *feat, d->err),
        *act = chi_arena_array(&a, (size_t)(n * ffn), sizeof *act, d->err);
  if (!e || !x || !feat || !act) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  CHI_TRY(chi_net_vision_embed(net, in->pixels, e, d->err));
  CHI_TRY(fire(d, b, CHI_VISION, CHI_SITE_EMBED, -1, e, v->rows, D));
  chi_net_vision_pre(net, e, x, v->rows);
  CHI_TRY(run_stack(d, b, CHI_VISION, x, v->rows, feat));
  CHI_TRY(chi_net_project_act(net, feat + v->select * F, act, n, d->err));
  CHI_TRY(fire(d, b, CHI_PROJECTOR, CHI_SITE_MLP_ACT, 0, act, n, ffn));
  CHI_TRY(chi_net_project_out(net, act, out, n, d->err));
  CHI_TRY(fire(d, b, CHI_PROJECTOR, CHI_SITE_MLP_OUT, 0, out, n, net->decoder.spec.d));
  CHI_TRY(fire(d, b, CHI_DECODER, CHI_SITE_IMAGE_EMBED, -1, out, n, net->decoder.spec.d));
out:
  chi_arena_free(&a);
  return rc;
}

static bool wants_final(const dense *d, int b, int32_t row) {
  for (const int32_t *c = d->x->captures_of[b]; *c >= 0; c++) {
    const chi_capture *cap = &d->x->plan->capture[*c];
    if (cap->site != CHI_SITE_FINAL_NORM && cap->site != CHI_SITE_LOGITS) continue;
    for (int32_t i = 0; i < cap->n_rows; i++)
      if (cap->rows[i] == row) return true;
  }
  for (const chi_intervention **iv = d->copies[b]; *iv; iv++)
    if ((*iv)->site == CHI_SITE_FINAL_NORM || (*iv)->site == CHI_SITE_LOGITS) return true;
  return false;
}

static int run_branch(dense *d, int b) {
  int rc = 0;
  const chi_net *net = d->x->net;
  const chi_input *in = chi_exec_input(d->x, b);
  int64_t D = net->decoder.spec.d, V = net->decoder.vocab;
  int32_t T = in->n_rows;
  chi_arena a = {0};
  float *x = chi_arena_array(&a, (size_t)(T * D), sizeof *x, d->err),
        *norm = chi_arena_array(&a, (size_t)D, sizeof *norm, d->err);
  float *logits = chi_arena_array(&a, (size_t)V, sizeof *logits, d->err);
  if (!x || !norm || !logits) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  if (in->cache) {
    rc = chi_fail(d->err, CHI_ERR_ARG, "the dense executor does not read a key/value cache");
    goto out;
  }
  for (int32_t r = 0; r < T; r++) chi_net_embed_token(net, in->tokens[r], x + r * D);
  if (in->pixels) CHI_TRY(run_vision(d, b, in, x + in->image_row * D));
  CHI_TRY(fire(d, b, CHI_DECODER, CHI_SITE_EMBED, -1, x, T, D));
  for (int32_t r = 0; r < T; r++) chi_net_add_position(net, x + r * D, r);
  CHI_TRY(run_stack(d, b, CHI_DECODER, x, T, NULL));
  for (int32_t r = 0; r < T; r++) {
    if (!wants_final(d, b, r)) continue;
    chi_net_final_norm(net, x + r * D, norm, 1);
    CHI_TRY(fire_row(d, b, CHI_DECODER, CHI_SITE_FINAL_NORM, -1, r, norm, D, 0));
    CHI_TRY(chi_net_logits(net, norm, logits, 1, d->err));
    CHI_TRY(fire_row(d, b, CHI_DECODER, CHI_SITE_LOGITS, -1, r, logits, V, 0));
  }
out:
  chi_arena_free(&a);
  return rc;
}

int chi_run_dense(chi_exec *x, chi_err *err) {
  dense d = {.x = x, .err = err};
  int rc = index_copies(&d);
  for (size_t i = 0; rc == 0 && i < x->plan->n_branches; i++) {
    if (x->opts->what) rc = chi_progress(x->opts->what, (int64_t)i, (int64_t)x->plan->n_branches, err);
    if (rc == 0) rc = run_branch(&d, x->order[i]);
  }
  chi_free(d.stored);
  return rc;
}

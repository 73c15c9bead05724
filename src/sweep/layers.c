/* One pass of all branches through a stack; see layers.h. The order of events within a layer is chi_stage's. */
#include "sweep/layers.h"

#include <string.h>

enum { kFillBytes = 48 };         /* of a block that is about to be filled */
enum { kSerialFloats = 1 << 15 }; /* less work than this is not worth waking the other threads */

/* ---- memory ---------------------------------------------------------------------------------------------- */
static int64_t kv_blocks(const chi_live *v) { /* blocks that the branches of a layer own at most */
  int64_t n = 0;
  for (int32_t s = 0; s < v->n_slots; s++) {
    bool first = s == 0 || v->slot_branch[s] != v->slot_branch[s - 1] ||
                 v->slot_row[s] / CHI_KV_BLOCK != v->slot_row[s - 1] / CHI_KV_BLOCK;
    n += first;
  }
  return n;
}

/* Attention weights that are kept in one layer, in floats: captured rows, and rows that are changed or copied. */
static size_t pattern_floats(const chi_exec *x, const chi_live *v, int layer) {
  const chi_plan *p = x->plan;
  size_t rows = 0, keys = 0;
  for (size_t c = 0; c < p->n_captures; c++) {
    const chi_capture *k = &p->capture[c];
    if (k->stack == v->stack && k->site == CHI_SITE_PATTERN && k->layer == layer && v->include[k->branch] == CHI_TARGET)
      rows += (size_t)k->n_rows;
  }
  for (size_t b = 0; b < p->n_branches; b++) {
    if (!v->include[b]) continue;
    size_t n = (size_t)chi_exec_rows(x, (int)b, v->stack);
    keys = n > keys ? n : keys;
    for (int32_t k = 0; k < x->eff[b].n; k++) {
      const chi_intervention *iv = x->eff[b].iv[k];
      if (chi_iv_is_edge(iv) || !chi_iv_acts(iv, v->stack, CHI_SITE_PATTERN, layer)) continue;
      rows += (size_t)iv->n_rows * (iv->op == CHI_OP_COPY ? 2 : 1);
    }
  }
  return rows * keys * (size_t)chi_net_spec(x->net, v->stack)->heads;
}

/* Rows per pass over a layer's weights: no more than there are. */
static int32_t pass_rows(const chi_live *v, int32_t chunk) { return chunk < v->n_slots ? chunk : v->n_slots; }

static bool act_wanted(const chi_exec *x, const chi_live *v, int layer);

size_t chi_layers_bytes(const chi_exec *x, const chi_live *live, int32_t chunk) {
  const chi_block_spec *s = chi_net_spec(x->net, live->stack);
  size_t D = (size_t)s->d, nq = (size_t)(s->heads * s->head_dim), nkv = (size_t)(s->kv_heads * s->head_dim),
         F = (size_t)s->ffn, n = (size_t)live->n_slots, most = 0;
  size_t per_slot = D * (s->parallel ? 3 : 2) + 2 * nq + 2 * nkv;
  if (live->stack == CHI_VISION) per_slot += D * (size_t)x->net->vision.n_features;
  size_t per_row = 2 * D + (nq > D ? nq : D) + 2 * nkv + 2 * F, c = (size_t)pass_rows(live, chunk);
  for (int l = 0; l < live->layers; l++) { /* what lives as long as one layer */
    size_t floats = pattern_floats(x, live, l) + (act_wanted(x, live, l) ? n * F : 0);
    most = floats > most ? floats : most;
  }
  size_t tables = 0, blocks = (size_t)kv_blocks(live);
  for (size_t b = 0; b < x->plan->n_branches; b++)
    if (live->include[b] && live->last_death[b] != CHI_UNNEEDED)
      tables += 2 * (size_t)(chi_exec_rows(x, (int)b, live->stack) / CHI_KV_BLOCK + 1);
  tables = tables * sizeof(float *) + blocks * 2 * kFillBytes + x->plan->n_branches * (6 * sizeof(float *));
  return tables + sizeof(float) * (n * per_slot + c * per_row + most + 2 * blocks * chi_kv_block_floats(s)) +
         n * (sizeof(chi_attn_query) + sizeof(float *) + 4 * sizeof(int32_t));
}

static float *floats(chi_layers *L, size_t rows, int64_t cols) {
  return chi_arena_array(&L->arena, rows * (size_t)cols, sizeof(float), L->err);
}

int chi_layers_init(chi_layers *L, const chi_exec *x, const chi_live *live, int32_t chunk, chi_err *err) {
  memset(L, 0, sizeof *L);
  const chi_block_spec *s = chi_net_spec(x->net, live->stack);
  chunk = pass_rows(live, chunk);
  size_t n = (size_t)live->n_slots, nb = x->plan->n_branches, c = (size_t)chunk;
  *L = (chi_layers){.x = x,
                    .live = live,
                    .stack = live->stack,
                    .s = s,
                    .compute = x->net->compute,
                    .chunk = chunk,
                    .D = s->d,
                    .nq = (int64_t)s->heads * s->head_dim,
                    .nkv = (int64_t)s->kv_heads * s->head_dim,
                    .err = err};
  L->res = floats(L, n, L->D);
  L->comp = floats(L, n, L->D);
  L->in = s->parallel ? floats(L, n, L->D) : L->res;
  L->q = floats(L, n, L->nq);
  L->k = floats(L, n, L->nkv);
  L->v = floats(L, n, L->nkv);
  L->mix = floats(L, n, L->nq);
  L->tx = floats(L, c, L->D);
  L->th = floats(L, c, L->D);
  L->tq = floats(L, c, L->nq > L->D ? L->nq : L->D);
  L->tk = floats(L, c, L->nkv);
  L->tv = floats(L, c, L->nkv);
  L->tg = floats(L, c, s->ffn);
  L->tact = floats(L, c, s->ffn);
  L->list = chi_arena_array(&L->arena, n, sizeof *L->list, err);
  L->list_pos = chi_arena_array(&L->arena, n, sizeof *L->list_pos, err);
  L->pos = chi_arena_array(&L->arena, c, sizeof *L->pos, err);
  L->pattern = chi_arena_array(&L->arena, n, sizeof *L->pattern, err);
  L->ktab = chi_arena_array(&L->arena, nb, sizeof *L->ktab, err);
  L->vtab = chi_arena_array(&L->arena, nb, sizeof *L->vtab, err);
  L->slot0 = chi_arena_array(&L->arena, nb, sizeof *L->slot0, err);
  L->slot_n = chi_arena_array(&L->arena, nb, sizeof *L->slot_n, err);
  if (live->stack == CHI_VISION) L->features = floats(L, n, L->D * x->net->vision.n_features);
  if (!L->res || !L->comp || !L->in || !L->q || !L->k || !L->v || !L->mix || !L->tx || !L->th || !L->tq || !L->tk ||
      !L->tv || !L->tg || !L->tact || !L->list || !L->list_pos || !L->pos || !L->pattern || !L->ktab || !L->vtab ||
      !L->slot0 || !L->slot_n || (live->stack == CHI_VISION && !L->features))
    return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < live->n_slots; i++) {
    int b = live->slot_branch[i];
    if (L->slot_n[b]++ == 0) L->slot0[b] = i;
  }
  const chi_plan *p = x->plan;
  L->any_edges = s->window > 0;
  for (size_t b = 0; b < nb; b++)
    for (int i = 0; i < p->branch[b].count; i++) {
      const chi_intervention *iv = &p->branch[b].iv[i];
      if (iv->stack != L->stack || iv->site != CHI_SITE_PATTERN) continue;
      *(chi_iv_is_edge(iv) ? &L->any_edges : &L->any_pattern) = true;
    }
  for (size_t i = 0; i < p->n_captures; i++)
    if (p->capture[i].stack == L->stack && p->capture[i].site == CHI_SITE_PATTERN) L->any_pattern = true;
  return 0;
}

void chi_layers_free(chi_layers *L) {
  for (size_t i = 0; i < L->pool_n; i++) chi_free(L->pool[i]);
  chi_free(L->pool);
  chi_arena_free(&L->layer_arena);
  chi_arena_free(&L->arena);
}

/* ---- sites ----------------------------------------------------------------------------------------------- */
static bool alive(const chi_live *v, int32_t s, chi_time t) { return v->slot_birth[s] <= t && v->slot_death[s] >= t; }

/* A row born at t takes residual stream (and component output) from its parent's row. */
static void copy_newborn(chi_layers *L, int32_t s, chi_time t, float *buf, int64_t width) {
  const chi_live *v = L->live;
  int up = L->x->plan->branch[v->slot_branch[s]].parent;
  int32_t o = chi_live_slot(v, up, v->slot_row[s], t);
  memcpy(L->res + s * L->D, L->res + o * L->D, (size_t)L->D * sizeof(float));
  if (L->in != L->res) memcpy(L->in + s * L->D, L->in + o * L->D, (size_t)L->D * sizeof(float));
  if (buf && buf != L->res) memcpy(buf + s * width, buf + o * width, (size_t)width * sizeof(float));
}

static bool newborn_copies(const chi_layers *L, int32_t s, chi_time t) {
  return L->live->slot_birth[s] == t && L->x->plan->branch[L->live->slot_branch[s]].parent >= 0;
}

/* Row of the site's own numbering (image_embed counts picture rows); -1 where the site does not cover the row. */
static int32_t site_row(const chi_layers *L, int b, chi_site site, int32_t row) {
  if (site != CHI_SITE_IMAGE_EMBED) return row;
  const chi_input *in = chi_exec_input(L->x, b);
  int32_t r = row - in->image_row;
  return in->pixels && r >= 0 && r < L->x->net->shape.n_image_rows ? r : -1;
}

static int32_t source_slot(const chi_layers *L, const chi_intervention *iv, int32_t i, chi_time t) {
  int32_t row = chi_iv_source_row(iv, i);
  if (iv->site == CHI_SITE_IMAGE_EMBED) row += chi_exec_input(L->x, iv->source)->image_row;
  return chi_live_slot(L->live, iv->source, row, t);
}

/* Interventions [from, n) of slot s at a site. at(slot) gives a slot's value: base + index[slot] * width. */
static int apply_slot(chi_layers *L, chi_site site, int layer, int32_t s, int32_t from, float *base,
                      const int32_t *index, int64_t width) {
  int rc = 0;
  const chi_live *v = L->live;
  int b = v->slot_branch[s];
  const chi_eff *e = &L->x->eff[b];
  if (from == e->n) return 0;
  int32_t row = site_row(L, b, site, v->slot_row[s]), i;
  for (int32_t k = from; row >= 0 && k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    if (!chi_iv_acts(iv, L->stack, site, layer) || chi_iv_is_edge(iv) || (i = chi_iv_row(iv, row)) < 0) continue;
    const float *src = NULL;
    if (iv->op == CHI_OP_COPY) {
      int32_t o = source_slot(L, iv, i, chi_site_time(site, layer));
      src = base + (index ? index[o] : o) * width;
    }
    CHI_TRY(chi_iv_apply(L->x, iv, b, layer, i, base + (index ? index[s] : s) * width, width, 0, src, L->err));
  }
out:
  return rc;
}

static int emit_captures(chi_layers *L, chi_site site, int layer, const float *base, const int32_t *index,
                         int64_t width) {
  int rc = 0;
  const chi_plan *p = L->x->plan;
  for (size_t c = 0; c < p->n_captures; c++) {
    const chi_capture *cap = &p->capture[c];
    if (cap->stack != L->stack || cap->site != site || L->live->include[cap->branch] != CHI_TARGET) continue;
    if (chi_site_get(site)->per_layer && cap->layer != layer) continue;
    int32_t off = site == CHI_SITE_IMAGE_EMBED ? chi_exec_input(L->x, cap->branch)->image_row : 0;
    for (int32_t i = 0; i < cap->n_rows; i++) {
      int32_t o = chi_live_slot(L->live, cap->branch, cap->rows[i] + off, chi_site_time(site, layer));
      CHI_TRY(chi_exec_emit(L->x, (int)c, i, base + (index ? index[o] : o) * width, width, L->err));
    }
  }
out:
  return rc;
}

int chi_layers_fire(chi_layers *L, chi_site site, int layer, float *buf, int64_t width) {
  int rc = 0;
  const chi_live *v = L->live;
  chi_time t = chi_site_time(site, layer);
  bool copies = site != CHI_SITE_Q && site != CHI_SITE_K && site != CHI_SITE_V && site != CHI_SITE_HEAD_OUT;
  for (int32_t s = 0; s < v->n_slots; s++) {
    if (!alive(v, s, t)) continue;
    int32_t from = 0;
    if (copies && newborn_copies(L, s, t)) {
      copy_newborn(L, s, t, buf, width);
      from = L->x->eff[v->slot_branch[s]].own; /* the parent's value already carries its interventions */
    }
    CHI_TRY(apply_slot(L, site, layer, s, from, buf, NULL, width));
  }
  CHI_TRY(emit_captures(L, site, layer, buf, NULL, width));
out:
  return rc;
}

/* ---- passes over a layer's weights ----------------------------------------------------------------------- */
/* Slots born by `born` that live at `needed`, in order. */
static int32_t make_list(chi_layers *L, chi_time born, chi_time needed) {
  const chi_live *v = L->live;
  int32_t n = 0;
  for (int32_t s = 0; s < v->n_slots; s++)
    if (v->slot_birth[s] <= born && v->slot_death[s] >= needed) L->list[n++] = s;
  return n;
}

typedef struct move {
  float *dense, *slots;
  const int32_t *list;
  int64_t width;
  bool to_dense;
} move;
static void move_row(void *ud, int64_t i) {
  const move *m = ud;
  float *d = m->dense + i * m->width, *s = m->slots + m->list[i] * m->width;
  memcpy(m->to_dense ? d : s, m->to_dense ? s : d, (size_t)m->width * sizeof(float));
}

static bool contiguous(const int32_t *list, int32_t n) { return list[n - 1] - list[0] == n - 1; }

/* Rows list[0..n) of a slot-indexed array as a dense matrix: in place where they lie together, else through tmp. */
static float *gather(float *slots, const int32_t *list, int32_t n, int64_t width, float *tmp) {
  if (contiguous(list, n)) return slots + list[0] * width;
  chi_parallel_for(n, move_row, &(move){tmp, slots, list, width, true});
  return tmp;
}
static float *dense_out(float *slots, const int32_t *list, int32_t n, int64_t width, float *tmp) {
  return contiguous(list, n) ? slots + list[0] * width : tmp;
}
static void scatter(float *slots, const int32_t *list, int32_t n, int64_t width, float *tmp) {
  if (!contiguous(list, n)) chi_parallel_for(n, move_row, &(move){tmp, slots, list, width, false});
}

static int pass_qkv(chi_layers *L, const chi_block *w, int layer) {
  int rc = 0;
  const chi_live *v = L->live;
  chi_time t = chi_at(layer, CHI_ST_QKV);
  int32_t n = make_list(L, t, t);
  for (int32_t s = 0; s < v->n_slots; s++)
    if (newborn_copies(L, s, t) && v->slot_death[s] >= t) copy_newborn(L, s, t, NULL, 0);
  for (int32_t c = 0; c < n; c += L->chunk) {
    int32_t m = n - c < L->chunk ? n - c : L->chunk;
    const int32_t *list = L->list + c;
    for (int32_t i = 0; i < m; i++) L->pos[i] = v->slot_row[list[i]];
    const float *x = gather(L->res, list, m, L->D, L->tx);
    CHI_TRY(chi_block_qkv(L->s, w, &L->x->net->decoder.rope, x, L->pos, m, L->th,
                          dense_out(L->q, list, m, L->nq, L->tq), dense_out(L->k, list, m, L->nkv, L->tk),
                          dense_out(L->v, list, m, L->nkv, L->tv), L->err));
    scatter(L->q, list, m, L->nq, L->tq);
    scatter(L->k, list, m, L->nkv, L->tk);
    scatter(L->v, list, m, L->nkv, L->tv);
  }
  CHI_TRY(chi_layers_fire(L, CHI_SITE_Q, layer, L->q, L->nq));
  CHI_TRY(chi_layers_fire(L, CHI_SITE_K, layer, L->k, L->nkv));
  CHI_TRY(chi_layers_fire(L, CHI_SITE_V, layer, L->v, L->nkv));
out:
  return rc;
}

static int pass_o(chi_layers *L, const chi_block *w, int layer) {
  int rc = 0;
  int32_t n = make_list(L, chi_at(layer, CHI_ST_MIX), chi_at(layer, CHI_ST_O));
  for (int32_t c = 0; c < n; c += L->chunk) {
    int32_t m = n - c < L->chunk ? n - c : L->chunk;
    const int32_t *list = L->list + c;
    const float *mix = gather(L->mix, list, m, L->nq, L->tq);
    CHI_TRY(chi_block_o(w, L->s, mix, dense_out(L->comp, list, m, L->D, L->tx), m, L->err));
    scatter(L->comp, list, m, L->D, L->tx);
  }
out:
  return rc;
}

/* Does anybody look at this layer's hidden neurons? */
static bool act_wanted(const chi_exec *x, const chi_live *v, int layer) {
  const chi_plan *p = x->plan;
  for (size_t c = 0; c < p->n_captures; c++) {
    const chi_capture *k = &p->capture[c];
    if (k->stack == v->stack && k->site == CHI_SITE_MLP_ACT && k->layer == layer && v->include[k->branch]) return true;
  }
  for (size_t b = 0; b < p->n_branches; b++)
    for (int i = 0; v->include[b] && i < p->branch[b].count; i++)
      if (chi_iv_acts(&p->branch[b].iv[i], v->stack, CHI_SITE_MLP_ACT, layer)) return true;
  return false;
}

static int pass_mlp(chi_layers *L, const chi_block *w, int layer) {
  int rc = 0;
  int64_t F = L->s->ffn;
  int32_t n = make_list(L, chi_at(layer, CHI_ST_MID), chi_at(layer, CHI_ST_ACT));
  float *all = NULL;
  if (act_wanted(L->x, L->live, layer)) {
    all = chi_arena_array(&L->layer_arena, (size_t)n * (size_t)F, sizeof *all, L->err);
    if (!all) return CHI_ERR_MEMORY;
    for (int32_t i = 0; i < n; i++) L->list_pos[L->list[i]] = i;
  }
  for (int32_t c = 0; c < n; c += L->chunk) {
    int32_t m = n - c < L->chunk ? n - c : L->chunk;
    const int32_t *list = L->list + c;
    float *act = all ? all + c * F : L->tact;
    const float *x = gather(L->in, list, m, L->D, L->tx);
    CHI_TRY(chi_block_act(L->s, w, x, m, L->th, L->tg, act, L->err));
    for (int32_t i = 0; all && i < m; i++)
      CHI_TRY(apply_slot(L, CHI_SITE_MLP_ACT, layer, list[i], 0, all, L->list_pos, F));
    CHI_TRY(chi_block_down(L->s, w, act, dense_out(L->comp, list, m, L->D, L->tq), m, L->err));
    scatter(L->comp, list, m, L->D, L->tq);
  }
  if (all) CHI_TRY(emit_captures(L, CHI_SITE_MLP_ACT, layer, all, L->list_pos, F));
out:
  return rc;
}

/* ---- attention ------------------------------------------------------------------------------------------- */
static float *new_block(chi_layers *L) {
  if (L->pool_used == L->pool_n) {
    if (chi_grow((void **)&L->pool, &L->pool_cap, L->pool_n + 1, sizeof *L->pool, L->err)) return NULL;
    L->pool[L->pool_n] = chi_calloc(chi_kv_block_floats(L->s), sizeof(float), L->err);
    if (!L->pool[L->pool_n]) return NULL;
    L->pool_n++;
  }
  return L->pool[L->pool_used++];
}

/* One block of keys and values that a branch owns a part of: the parent's rows, and over them its own. */
typedef struct fill {
  float *k, *v;
  const float *up_k, *up_v; /* what is copied first; NULL = nothing */
  int32_t slot, n;          /* slots that may own a row of it; the dead ones among them are passed over */
} fill;
_Static_assert(sizeof(fill) <= kFillBytes, "the estimate of memory counts blocks by it");

typedef struct fill_job {
  const chi_layers *L;
  const fill *f;
  chi_time t;
} fill_job;

/* One head of one block: it stays in the first cache between the copy and the rows put into it. */
static void fill_task(void *ud, int64_t task) {
  const fill_job *j = ud;
  const chi_layers *L = j->L;
  const fill *f = &j->f[task / L->s->kv_heads];
  int64_t hd = L->s->head_dim, h = task % L->s->kv_heads;
  size_t at = (size_t)(h * hd * CHI_KV_BLOCK), bytes = (size_t)(hd * CHI_KV_BLOCK) * sizeof(float);
  if (f->up_k) {
    memcpy(f->k + at, f->up_k + at, bytes);
    memcpy(f->v + at, f->up_v + at, bytes);
  }
  for (int32_t s = f->slot; s < f->slot + f->n; s++)
    if (alive(L->live, s, j->t))
      chi_kv_put(f->k + at, f->v + at, L->k + s * L->nkv + h * hd, L->v + s * L->nkv + h * hd,
                 L->live->slot_row[s] % CHI_KV_BLOCK, 1, (int)hd, L->compute);
}

typedef struct fill_list {
  fill *f;
  size_t n, cap;
  bool *pending; /* per branch: its blocks are listed and not filled yet */
  int *branch;   /* those */
  size_t n_branch;
} fill_list;

static void fill_now(chi_layers *L, fill_list *list, int layer) {
  fill_job j = {.L = L, .f = list->f, .t = chi_at(layer, CHI_ST_QKV)};
  int64_t n = (int64_t)list->n * L->s->kv_heads;
  if (n * L->s->head_dim * CHI_KV_BLOCK < kSerialFloats)
    for (int64_t i = 0; i < n; i++) fill_task(&j, i);
  else
    chi_parallel_for(n, fill_task, &j);
  list->n = 0;
  while (list->n_branch > 0) list->pending[list->branch[--list->n_branch]] = false;
}

static int add_fill(chi_layers *L, fill_list *list, const float *up_k, const float *up_v, float *k, float *v,
                    int32_t s) {
  int rc = chi_grow((void **)&list->f, &list->cap, list->n + 1, sizeof *list->f, L->err);
  if (rc == 0) list->f[list->n++] = (fill){.k = k, .v = v, .up_k = up_k, .up_v = up_v, .slot = s};
  return rc;
}

/* Block tables of one branch: its parent's, with own copies of the blocks in which it owns a key. */
static int branch_blocks(chi_layers *L, fill_list *list, int b, int layer) {
  int rc = 0;
  const chi_live *v = L->live;
  const chi_input *in = chi_exec_input(L->x, b);
  int up = L->x->plan->branch[b].parent;
  int32_t rows = chi_exec_rows(L->x, b, L->stack), nb = (rows + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  chi_time t = chi_at(layer, CHI_ST_QKV);
  bool own = false, cached = up < 0 && L->stack == CHI_DECODER && in->cache;
  for (int32_t s = L->slot0[b]; s < L->slot0[b] + L->slot_n[b] && !own; s++) own = alive(v, s, t);
  if (!own && up >= 0) {
    L->ktab[b] = L->ktab[up];
    L->vtab[b] = L->vtab[up];
    if (list->pending[up] && !list->pending[b]) list->pending[b] = true, list->branch[list->n_branch++] = b;
    return 0;
  }
  if (up >= 0 && list->pending[up]) fill_now(L, list, layer);
  float **k = chi_arena_array(&L->layer_arena, (size_t)nb, sizeof *k, L->err),
        **w = chi_arena_array(&L->layer_arena, (size_t)nb, sizeof *w, L->err);
  if (!k || !w) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < nb; i++) {
    size_t at = cached ? (size_t)layer * (size_t)in->cache->n_blocks + (size_t)i : 0;
    k[i] = cached ? in->cache->k[at] : up >= 0 ? L->ktab[up][i] : NULL;
    w[i] = cached ? in->cache->v[at] : up >= 0 ? L->vtab[up][i] : NULL;
  }
  int32_t last = -1, owned = 0;
  for (int32_t s = L->slot0[b]; s < L->slot0[b] + L->slot_n[b]; s++) {
    if (!alive(v, s, t)) continue;
    int32_t i = v->slot_row[s] / CHI_KV_BLOCK, here = rows - i * CHI_KV_BLOCK;
    if (i != last) { /* first own key of this block */
      float *nk = cached ? k[i] : new_block(L), *nv = cached ? w[i] : new_block(L);
      if (!nk || !nv) return CHI_ERR_MEMORY;
      CHI_TRY(add_fill(L, list, cached ? NULL : k[i], cached ? NULL : w[i], nk, nv, s));
      k[i] = nk;
      w[i] = nv;
      owned = 0;
    }
    last = i;
    fill *f = &list->f[list->n - 1];
    f->n = s - f->slot + 1;
    if (++owned == (here < CHI_KV_BLOCK ? here : CHI_KV_BLOCK)) f->up_k = f->up_v = NULL; /* nothing of it would stay */
  }
  L->ktab[b] = k;
  L->vtab[b] = w;
  list->pending[b] = true;
  list->branch[list->n_branch++] = b;
out:
  return rc;
}

/* Tables are made branch by branch, parents first; blocks are filled many at a time, before a child copies from
 * them. */
static int fill_blocks(chi_layers *L, int layer) {
  int rc = 0;
  size_t n = L->x->plan->n_branches;
  fill_list list = {0};
  list.pending = chi_arena_array(&L->layer_arena, n, sizeof *list.pending, L->err);
  list.branch = chi_arena_array(&L->layer_arena, n, sizeof *list.branch, L->err);
  if (!list.pending || !list.branch) return CHI_ERR_MEMORY;
  L->pool_used = 0;
  for (size_t i = 0; i < n; i++) {
    int b = L->x->order[i];
    if (!L->live->include[b] || !chi_exec_rows(L->x, b, L->stack)) continue;
    CHI_TRY(branch_blocks(L, &list, b, layer));
  }
  fill_now(L, &list, layer);
out:
  chi_free(list.f);
  return rc;
}

/* Marks the slots whose attention weights somebody looks at, changes or copies. */
static int mark_patterns(chi_layers *L, int layer) {
  const chi_live *v = L->live;
  const chi_plan *p = L->x->plan;
  chi_time t = chi_at(layer, CHI_ST_MIX);
  static float wanted; /* a mark that is no memory of ours yet */
  memset(L->pattern, 0, (size_t)v->n_slots * sizeof *L->pattern);
  for (size_t c = 0; c < p->n_captures; c++) {
    const chi_capture *cap = &p->capture[c];
    if (cap->stack != L->stack || cap->site != CHI_SITE_PATTERN || cap->layer != layer ||
        v->include[cap->branch] != CHI_TARGET)
      continue;
    for (int32_t i = 0; i < cap->n_rows; i++) {
      int32_t s = chi_live_slot(v, cap->branch, cap->rows[i], t);
      if (s >= 0) L->pattern[s] = &wanted;
    }
  }
  for (int32_t s = 0; s < v->n_slots; s++) {
    const chi_eff *e = &L->x->eff[v->slot_branch[s]];
    for (int32_t k = 0; alive(v, s, t) && k < e->n; k++) {
      int32_t i;
      if (chi_iv_is_edge(e->iv[k]) || !chi_iv_acts(e->iv[k], L->stack, CHI_SITE_PATTERN, layer) ||
          (i = chi_iv_row(e->iv[k], v->slot_row[s])) < 0)
        continue;
      L->pattern[s] = &wanted;
      if (e->iv[k]->op == CHI_OP_COPY) L->pattern[source_slot(L, e->iv[k], i, t)] = &wanted;
    }
  }
  for (int32_t s = 0; s < v->n_slots; s++) {
    if (!L->pattern[s]) continue;
    size_t keys = (size_t)(L->s->causal ? v->slot_row[s] + 1 : chi_exec_rows(L->x, v->slot_branch[s], L->stack));
    L->pattern[s] = chi_arena_array(&L->layer_arena, (size_t)L->s->heads * keys, sizeof(float), L->err);
    if (!L->pattern[s]) return CHI_ERR_MEMORY;
  }
  return 0;
}

/* Pattern fires: edits in order of branches, captures, and a second attention for rows whose weights were replaced. */
static int fire_patterns(chi_layers *L, int layer, chi_attn_query *qs, int32_t n, const int32_t *slots) {
  int rc = 0;
  const chi_live *v = L->live;
  chi_time t = chi_at(layer, CHI_ST_MIX);
  for (int32_t j = 0; j < n; j++) {
    int32_t s = slots[j];
    if (!L->pattern[s]) continue;
    int b = v->slot_branch[s];
    const chi_eff *e = &L->x->eff[b];
    bool changed = false;
    for (int32_t k = 0; k < e->n; k++) {
      const chi_intervention *iv = e->iv[k];
      int32_t i;
      if (chi_iv_is_edge(iv) || !chi_iv_acts(iv, L->stack, CHI_SITE_PATTERN, layer) ||
          (i = chi_iv_row(iv, v->slot_row[s])) < 0)
        continue;
      const float *src = iv->op == CHI_OP_COPY ? L->pattern[source_slot(L, iv, i, t)] : NULL;
      CHI_TRY(chi_iv_apply(L->x, iv, b, layer, i, L->pattern[s], (int64_t)L->s->heads * qs[j].n_keys, qs[j].n_keys, src,
                           L->err));
      changed = true;
    }
    if (!changed) continue;
    qs[j].pattern_set = L->pattern[s];
    qs[j].pattern = NULL;
    CHI_TRY(
        chi_attention(&qs[j], 1, L->s->heads, L->s->kv_heads, L->s->head_dim, L->s->attn_scale, L->compute, L->err));
  }
  for (size_t c = 0; c < L->x->plan->n_captures; c++) {
    const chi_capture *cap = &L->x->plan->capture[c];
    if (cap->stack != L->stack || cap->site != CHI_SITE_PATTERN || cap->layer != layer ||
        v->include[cap->branch] != CHI_TARGET)
      continue;
    for (int32_t i = 0; i < cap->n_rows; i++) {
      int32_t s = chi_live_slot(v, cap->branch, cap->rows[i], t);
      int64_t keys = L->s->causal ? cap->rows[i] + 1 : chi_exec_rows(L->x, cap->branch, L->stack);
      if (s >= 0) CHI_TRY(chi_exec_emit(L->x, (int)c, i, L->pattern[s], L->s->heads * keys, L->err));
    }
  }
out:
  return rc;
}

static int pass_mix(chi_layers *L, int layer) {
  int rc = 0;
  const chi_live *v = L->live;
  chi_time t = chi_at(layer, CHI_ST_MIX), tq = chi_at(layer, CHI_ST_QKV);
  CHI_TRY(fill_blocks(L, layer));
  if (L->any_pattern) CHI_TRY(mark_patterns(L, layer));
  int32_t n = make_list(L, t, t);
  chi_attn_query *qs = chi_arena_array(&L->layer_arena, (size_t)n, sizeof *qs, L->err);
  if (!qs) return CHI_ERR_MEMORY;
  for (int32_t j = 0; j < n; j++) {
    int32_t s = L->list[j], row = v->slot_row[s];
    int b = v->slot_branch[s];
    if (newborn_copies(L, s, t)) copy_newborn(L, s, tq, NULL, 0);
    int32_t edges = L->any_edges ? chi_iv_edges(L->x, b, L->stack, CHI_SITE_PATTERN, layer, row, NULL, 0) : 0;
    chi_edge *e = edges ? chi_arena_array(&L->layer_arena, (size_t)edges, sizeof *e, L->err) : NULL;
    if (edges && !e) return CHI_ERR_MEMORY;
    if (edges) chi_iv_edges(L->x, b, L->stack, CHI_SITE_PATTERN, layer, row, e, edges);
    qs[j] = (chi_attn_query){.q = L->q + chi_live_slot(v, b, row, tq) * L->nq,
                             .out = L->mix + s * L->nq,
                             .row = row,
                             .kblk = (const float *const *)L->ktab[b],
                             .vblk = (const float *const *)L->vtab[b],
                             .edges = e,
                             .n_edges = edges,
                             .n_keys = L->s->causal ? row + 1 : chi_exec_rows(L->x, b, L->stack),
                             .pattern = L->any_pattern ? L->pattern[s] : NULL};
  }
  CHI_TRY(chi_attention(qs, n, L->s->heads, L->s->kv_heads, L->s->head_dim, L->s->attn_scale, L->compute, L->err));
  if (L->any_pattern) CHI_TRY(fire_patterns(L, layer, qs, n, L->list));
  CHI_TRY(chi_layers_fire(L, CHI_SITE_HEAD_OUT, layer, L->mix, L->nq));
out:
  return rc;
}

/* ---- layers ---------------------------------------------------------------------------------------------- */
/* res += comp for rows that were there when comp was made and are still needed; keeps the old value for parallel
 * blocks. */
enum { kAddRows = 16 };
typedef struct add_job {
  chi_layers *L;
  const chi_norm *after;
  int32_t n;
  bool keep;
} add_job;
static void add_rows(void *ud, int64_t task) {
  const add_job *j = ud;
  chi_layers *L = j->L;
  int32_t i = (int32_t)task * kAddRows, end = j->n - i < kAddRows ? j->n : i + kAddRows;
  for (; i < end; i++) {
    int64_t at = L->list[i] * L->D;
    if (j->keep) memcpy(L->in + at, L->res + at, (size_t)L->D * sizeof(float));
    chi_block_add(L->s, j->after, L->res + at, L->comp + at, 1);
  }
}

static void add_component(chi_layers *L, const chi_norm *after, chi_time made, chi_time needed, bool keep) {
  add_job j = {.L = L, .after = after, .n = make_list(L, made, needed), .keep = keep && L->in != L->res};
  int64_t tasks = (j.n + kAddRows - 1) / kAddRows;
  if (j.n * L->D < kSerialFloats)
    for (int64_t i = 0; i < tasks; i++) add_rows(&j, i);
  else
    chi_parallel_for(tasks, add_rows, &j);
}

static void keep_features(chi_layers *L, int state) {
  const chi_vision *vis = &L->x->net->vision;
  int64_t F = L->D * vis->n_features;
  for (int32_t f = 0; L->features && f < vis->n_features; f++)
    if (vis->feature[f] == state) chi_rows_copy(L->features + f * L->D, F, L->res, L->D, L->live->n_slots, L->D);
}

static int run_layer(chi_layers *L, int layer) {
  int rc = 0;
  const chi_block *w = chi_net_block(L->x->net, L->stack, layer);
  CHI_TRY(chi_layers_fire(L, CHI_SITE_RESID_PRE, layer, L->res, L->D));
  CHI_TRY(pass_qkv(L, w, layer));
  CHI_TRY(pass_mix(L, layer));
  CHI_TRY(pass_o(L, w, layer));
  CHI_TRY(chi_layers_fire(L, CHI_SITE_ATTN_OUT, layer, L->comp, L->D));
  add_component(L, &w->norm1, chi_at(layer, CHI_ST_O), chi_at(layer, CHI_ST_MID), true);
  CHI_TRY(chi_layers_fire(L, CHI_SITE_RESID_MID, layer, L->res, L->D));
  CHI_TRY(pass_mlp(L, w, layer));
  CHI_TRY(chi_layers_fire(L, CHI_SITE_MLP_OUT, layer, L->comp, L->D));
  add_component(L, &w->norm2, chi_at(layer, CHI_ST_MLP), chi_at(layer, CHI_ST_POST), false);
  CHI_TRY(chi_layers_fire(L, CHI_SITE_RESID_POST, layer, L->res, L->D));
out:
  chi_arena_free(&L->layer_arena);
  return rc;
}

int chi_layers_run(chi_layers *L, int64_t done, int64_t total) {
  int rc = 0;
  keep_features(L, 0);
  for (int layer = 0; layer < L->live->layers; layer++) {
    CHI_TRY(run_layer(L, layer));
    keep_features(L, layer + 1);
    if (L->x->opts->what) CHI_TRY(chi_progress(L->x->opts->what, done + layer + 1, total, L->err));
  }
out:
  return rc;
}

/* The sweep: cuts a plan into pieces that fit the byte budget and carries each through tower, Q-Former, projector,
 * decoder, head. */
#include <stdlib.h>
#include <string.h>

#include "sweep/full.h"
#include "sweep/layers.h"

enum { kChunk = 1024, kHeadRows = 64 };
static const size_t kDefaultMem = (size_t)4 << 30;

/* Projector rows of a piece. A row that differs in any way is recomputed whole; bits of equal rows are equal. */
typedef struct proj {
  int32_t **slot; /* [branch][n_image_rows], -1 = the parent's */
  int32_t n;
  int32_t *branch, *row;
  float *out; /* [n][d]: picture rows as they enter the decoder */
  chi_arena arena;
} proj;

/* The Q-Former of a piece: one whole run for each branch in which anything that it reads or does can differ. */
typedef struct queries {
  int *owner;  /* [branch]: whose run it shares, -1 without a picture */
  float **out; /* [branch]: the owner's rows [queries][d] */
  size_t n;
  chi_arena arena;
} queries;

typedef struct piece {
  chi_exec *x;
  uint8_t *include;
  chi_live vis, dec;
  bool has_vis;
  size_t proj_rows; /* projector rows that are computed */
  queries qf;
  proj p;
  int64_t done, total; /* progress in layers */
  chi_err *err;
} piece;

static int32_t chunk_of(const chi_exec *x) { return x->opts->chunk > 0 ? x->opts->chunk : kChunk; }

/* ---- which branches a piece needs ------------------------------------------------------------------------ */
static void close_over(const chi_plan *p, uint8_t *include, int b) {
  if (include[b]) return;
  include[b] = 1;
  const chi_plan_branch *br = &p->branch[b];
  if (br->parent >= 0) close_over(p, include, br->parent);
  for (int i = 0; i < br->count; i++)
    if (br->iv[i].op == CHI_OP_COPY) close_over(p, include, br->iv[i].source);
}

static bool is_target(const chi_exec *x, int b) {
  if (x->captures_of[b][0] >= 0 || (x->plan->branch[b].parent < 0 && x->plan->branch[b].input.cache)) return true;
  for (int i = 0; i < x->plan->branch[b].count; i++)
    if (x->plan->branch[b].iv[i].op == CHI_OP_CALL) return true;
  return false;
}

/* ---- Q-Former -------------------------------------------------------------------------------------------- */
static bool queries_dirty(const piece *pc, int b) {
  const chi_plan_branch *br = &pc->x->plan->branch[b];
  const chi_vision *v = &pc->x->net->vision;
  if (br->parent < 0) return true;
  for (int32_t r = 0; r < v->rows; r++)
    if (chi_live_birth(&pc->vis, b, r) <= chi_at(v->spec.layers - 1, CHI_ST_POST)) return true;
  for (int i = 0; i < br->count; i++)
    if (br->iv[i].stack == CHI_QFORMER || (br->iv[i].stack == CHI_VISION && br->iv[i].site == CHI_SITE_FINAL_NORM))
      return true;
  return false;
}

/* After the tower's births: who runs, and that those need every row of the tower. */
static int queries_plan(piece *pc) {
  const chi_exec *x = pc->x;
  queries *q = &pc->qf;
  size_t nb = x->plan->n_branches;
  q->owner = chi_arena_array(&q->arena, nb, sizeof *q->owner, pc->err);
  q->out = chi_arena_array(&q->arena, nb, sizeof *q->out, pc->err);
  if (!q->owner || !q->out) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < nb; i++) {
    int b = x->order[i];
    q->owner[b] = -1;
    if (!pc->include[b] || !chi_exec_input(x, b)->pixels) continue;
    bool own = queries_dirty(pc, b);
    q->owner[b] = own ? b : q->owner[x->plan->branch[b].parent];
    q->n += own;
    for (int32_t r = 0; own && r < x->net->vision.rows; r++)
      chi_live_need(&pc->vis, b, r, chi_at(x->net->vision.spec.layers - 1, CHI_ST_POST));
  }
  return 0;
}

static int run_queries(piece *pc, const chi_layers *L) {
  int rc = 0;
  const chi_exec *x = pc->x;
  const chi_net *net = x->net;
  int64_t D = L->D;
  size_t out_floats = (size_t)net->qformer.queries * (size_t)net->qformer.spec.d;
  chi_full f = {0};
  float *states = chi_calloc((size_t)(net->vision.rows * D), sizeof *states, pc->err);
  if (!states) return CHI_ERR_MEMORY;
  CHI_TRY(chi_full_init(&f, x, pc->qf.owner, pc->include, pc->err));
  for (size_t i = 0; i < x->plan->n_branches; i++) {
    int b = x->order[i];
    if (pc->qf.owner[b] != b) continue;
    for (int32_t r = 0; r < net->vision.rows; r++) {
      int32_t s = chi_live_slot(&pc->vis, b, r, chi_at(net->vision.spec.layers - 1, CHI_ST_POST));
      memcpy(states + r * D, L->features + s * D, (size_t)D * sizeof *states);
    }
    pc->qf.out[b] = chi_arena_array(&pc->qf.arena, out_floats, sizeof(float), pc->err);
    if (!pc->qf.out[b]) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    CHI_TRY(chi_full_qformer(&f, b, states, pc->qf.out[b]));
  }
out:
  chi_full_free(&f);
  chi_free(states);
  return rc;
}

/* ---- projector ------------------------------------------------------------------------------------------- */
static int32_t proj_slot(const piece *pc, int b, int32_t row) {
  while (b >= 0 && pc->p.slot[b][row] < 0) b = pc->x->plan->branch[b].parent;
  return b < 0 ? -1 : pc->p.slot[b][row];
}

static bool proj_dirty(const piece *pc, int b, int32_t row) {
  const chi_vision *v = &pc->x->net->vision;
  const chi_plan_branch *br = &pc->x->plan->branch[b];
  if (br->parent < 0) return true;
  if (pc->x->net->has_qformer && pc->qf.owner[b] == b) return true;
  for (int32_t f = 0; f < v->n_features && !pc->x->net->has_qformer; f++)
    if (chi_live_birth(&pc->vis, b, row + v->select) <= chi_at(v->feature[f] - 1, CHI_ST_POST)) return true;
  for (int i = 0; i < br->count; i++)
    if (br->iv[i].stack == CHI_PROJECTOR && chi_iv_row(&br->iv[i], row) >= 0) return true;
  return false;
}

static int proj_slots(piece *pc) {
  const chi_exec *x = pc->x;
  proj *p = &pc->p;
  size_t nb = x->plan->n_branches;
  int32_t rows = x->net->shape.n_image_rows;
  p->slot = chi_arena_array(&p->arena, nb, sizeof *p->slot, pc->err);
  if (!p->slot) return CHI_ERR_MEMORY;
  for (int pass = 0; pass < 2; pass++) {
    int32_t n = 0;
    for (size_t i = 0; i < nb; i++) {
      int b = x->order[i];
      if (!pc->include[b] || !chi_exec_input(x, b)->pixels) continue;
      if (!pass && !(p->slot[b] = chi_arena_array(&p->arena, (size_t)rows, sizeof **p->slot, pc->err)))
        return CHI_ERR_MEMORY;
      for (int32_t r = 0; r < rows; r++) {
        bool dirty = pass ? p->slot[b][r] >= 0 : proj_dirty(pc, b, r);
        if (!pass)
          p->slot[b][r] = dirty ? n : -1;
        else if (dirty)
          p->branch[n] = b, p->row[n] = r;
        n += dirty;
      }
    }
    if (pass) break;
    p->n = n;
    p->branch = chi_arena_array(&p->arena, (size_t)n, sizeof *p->branch, pc->err);
    p->row = chi_arena_array(&p->arena, (size_t)n, sizeof *p->row, pc->err);
    if (!p->branch || !p->row) return CHI_ERR_MEMORY;
  }
  return 0;
}

static int proj_fire(piece *pc, chi_site site, float *buf, int64_t width) {
  int rc = 0;
  const chi_exec *x = pc->x;
  for (int32_t s = 0; s < pc->p.n; s++) {
    int b = pc->p.branch[s];
    const chi_eff *e = &x->eff[b];
    for (int32_t k = 0; k < e->n; k++) {
      const chi_intervention *iv = e->iv[k];
      int32_t i;
      if (!chi_iv_acts(iv, CHI_PROJECTOR, site, 0) || (i = chi_iv_row(iv, pc->p.row[s])) < 0) continue;
      const float *src =
          iv->op == CHI_OP_COPY ? buf + proj_slot(pc, iv->source, chi_iv_source_row(iv, i)) * width : NULL;
      CHI_TRY(chi_iv_apply(x, iv, b, 0, i, buf + s * width, width, 0, src, pc->err));
    }
  }
  for (size_t c = 0; c < x->plan->n_captures; c++) {
    const chi_capture *cap = &x->plan->capture[c];
    if (cap->stack != CHI_PROJECTOR || cap->site != site || pc->include[cap->branch] != CHI_TARGET) continue;
    for (int32_t i = 0; i < cap->n_rows; i++)
      CHI_TRY(chi_exec_emit(x, (int)c, i, buf + proj_slot(pc, cap->branch, cap->rows[i]) * width, width, pc->err));
  }
out:
  return rc;
}

static int run_projector(piece *pc, const chi_layers *L) {
  int rc = 0;
  const chi_net *net = pc->x->net;
  const chi_vision *v = &net->vision;
  proj *p = &pc->p;
  int64_t D = v->spec.d, F = chi_net_project_width(net), ffn = chi_net_project_ffn(net), d = net->decoder.spec.d;
  chi_arena a = {0};
  float *feat = chi_arena_array(&a, (size_t)(p->n * F), sizeof *feat, pc->err),
        *act = chi_arena_array(&a, (size_t)(p->n * ffn), sizeof *act, pc->err);
  p->out = chi_arena_array(&p->arena, (size_t)(p->n * d), sizeof *p->out, pc->err);
  if (!feat || !act || !p->out) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (int32_t s = 0; s < p->n; s++) {
    if (net->has_qformer)
      memcpy(feat + s * F, pc->qf.out[pc->qf.owner[p->branch[s]]] + p->row[s] * F, (size_t)F * sizeof *feat);
    for (int32_t f = 0; f < v->n_features && !net->has_qformer; f++) {
      int32_t o = chi_live_slot(&pc->vis, p->branch[s], p->row[s] + v->select, chi_at(v->feature[f] - 1, CHI_ST_POST));
      memcpy(feat + s * F + f * D, L->features + o * F + f * D, (size_t)D * sizeof *feat);
    }
  }
  if (ffn) {
    CHI_TRY(chi_net_project_act(net, feat, act, p->n, pc->err));
    CHI_TRY(proj_fire(pc, CHI_SITE_MLP_ACT, act, ffn));
  }
  CHI_TRY(chi_net_project_out(net, ffn ? act : feat, p->out, p->n, pc->err));
  CHI_TRY(proj_fire(pc, CHI_SITE_MLP_OUT, p->out, d));
out:
  chi_arena_free(&a);
  return rc;
}

/* ---- vision ---------------------------------------------------------------------------------------------- */
static int run_vision(piece *pc) {
  int rc = 0;
  const chi_exec *x = pc->x;
  const chi_net *net = x->net;
  chi_layers L = {0};
  float *embed = NULL;
  CHI_TRY(chi_layers_init(&L, x, &pc->vis, chunk_of(x), pc->err));
  int64_t D = L.D;
  for (size_t i = 0; i < x->plan->n_branches; i++) {
    int b = (int)i;
    if (!pc->include[b] || x->plan->branch[b].parent >= 0 || !x->plan->branch[b].input.pixels || L.slot_n[b] == 0)
      continue;
    if (!embed && !(embed = chi_calloc((size_t)(net->vision.rows * D), sizeof *embed, pc->err))) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    CHI_TRY(chi_net_vision_embed(net, x->plan->branch[b].input.pixels, embed, pc->err));
    for (int32_t s = L.slot0[b]; s < L.slot0[b] + L.slot_n[b]; s++)
      memcpy(L.res + s * D, embed + pc->vis.slot_row[s] * D, (size_t)D * sizeof *embed);
  }
  CHI_TRY(chi_layers_fire(&L, CHI_SITE_EMBED, -1, L.res, D));
  for (int32_t s = 0; s < pc->vis.n_slots; s++) {
    if (pc->vis.slot_birth[s] > CHI_T_EMBED) continue;
    chi_net_vision_pre(net, L.res + s * D, L.th, 1);
    memcpy(L.res + s * D, L.th, (size_t)D * sizeof *L.res);
  }
  CHI_TRY(chi_layers_run(&L, pc->done, pc->total));
  if (net->has_qformer) CHI_TRY(run_queries(pc, &L));
  CHI_TRY(proj_slots(pc));
  CHI_TRY(run_projector(pc, &L));
out:
  chi_free(embed);
  chi_layers_free(&L);
  return rc;
}

/* ---- decoder --------------------------------------------------------------------------------------------- */
static void fill_input(piece *pc, chi_layers *L) {
  const chi_exec *x = pc->x;
  for (int32_t s = 0; s < pc->dec.n_slots; s++) {
    if (pc->dec.slot_birth[s] != CHI_T_INPUT) continue;
    int b = pc->dec.slot_branch[s];
    const chi_input *in = chi_exec_input(x, b);
    int32_t row = pc->dec.slot_row[s], pr = row - in->image_row;
    float *dst = L->res + s * L->D;
    if (in->pixels && pr >= 0 && pr < x->net->shape.n_image_rows)
      memcpy(dst, pc->p.out + proj_slot(pc, b, pr) * L->D, (size_t)L->D * sizeof *dst);
    else
      chi_net_embed_token(x->net, in->tokens[row], dst);
  }
}

typedef struct final_row {
  int branch, place; /* place in the topological order */
  int32_t row, next; /* next: of the same branch, -1 = none */
} final_row;
typedef struct final_list {
  final_row *r;
  size_t n, cap;
  int32_t *head; /* per branch: its first row in r, -1 = none */
} final_list;

static int64_t find_final(const final_list *f, int b, int32_t row) {
  int32_t i = f->head[b];
  while (i >= 0 && f->r[i].row != row) i = f->r[i].next;
  return i;
}

static bool of_head(const chi_intervention *iv) {
  return iv->stack == CHI_DECODER && (iv->site == CHI_SITE_FINAL_NORM || iv->site == CHI_SITE_LOGITS);
}

static int add_final(piece *pc, final_list *f, int b, int32_t row) {
  if (find_final(f, b, row) >= 0) return 0;
  int rc = chi_grow((void **)&f->r, &f->cap, f->n + 1, sizeof *f->r, pc->err);
  if (rc) return rc;
  f->r[f->n] = (final_row){b, pc->x->pos[b], row, f->head[b]};
  f->head[b] = (int32_t)f->n++;
  for (int32_t k = 0; k < pc->x->eff[b].n; k++) { /* rows that this one copies from */
    const chi_intervention *iv = pc->x->eff[b].iv[k];
    int32_t i;
    if (iv->op != CHI_OP_COPY || !of_head(iv) || (i = chi_iv_row(iv, row)) < 0) continue;
    if ((rc = add_final(pc, f, iv->source, chi_iv_source_row(iv, i))) != 0) return rc;
  }
  return 0;
}

static int by_place(const void *a, const void *b) {
  const final_row *p = a, *q = b;
  return p->place != q->place ? (p->place > q->place) - (p->place < q->place) : (p->row > q->row) - (p->row < q->row);
}

/* Sources first. */
static void sort_final(final_list *f) {
  qsort(f->r, f->n, sizeof *f->r, by_place);
  for (size_t i = 0; i < f->n; i++) f->head[f->r[i].branch] = -1;
  for (size_t i = 0; i < f->n; i++) {
    f->r[i].next = f->head[f->r[i].branch];
    f->head[f->r[i].branch] = (int32_t)i;
  }
}

static int fire_final(piece *pc, const final_list *f, size_t from, size_t n, chi_site site, float *buf, int64_t width,
                      const float *first) {
  int rc = 0;
  for (size_t j = 0; j < n; j++) {
    const final_row *r = &f->r[from + j];
    const chi_eff *e = &pc->x->eff[r->branch];
    for (int32_t k = 0; k < e->n; k++) {
      const chi_intervention *iv = e->iv[k];
      int32_t i;
      if (!chi_iv_acts(iv, CHI_DECODER, site, -1) || (i = chi_iv_row(iv, r->row)) < 0) continue;
      const float *src =
          iv->op == CHI_OP_COPY ? first + find_final(f, iv->source, chi_iv_source_row(iv, i)) * width : NULL;
      CHI_TRY(chi_iv_apply(pc->x, iv, r->branch, -1, i, buf + (int64_t)j * width, width, 0, src, pc->err));
    }
    for (const int32_t *c = pc->x->captures_of[r->branch]; *c >= 0; c++) {
      const chi_capture *cap = &pc->x->plan->capture[*c];
      if (cap->stack != CHI_DECODER || cap->site != site || pc->include[r->branch] != CHI_TARGET) continue;
      for (int32_t i = 0; i < cap->n_rows; i++)
        if (cap->rows[i] == r->row) CHI_TRY(chi_exec_emit(pc->x, *c, i, buf + (int64_t)j * width, width, pc->err));
    }
  }
out:
  return rc;
}

static bool copies_logits(const piece *pc) {
  const chi_plan *p = pc->x->plan;
  for (size_t b = 0; b < p->n_branches; b++)
    for (int i = 0; i < p->branch[b].count; i++)
      if (p->branch[b].iv[i].op == CHI_OP_COPY && p->branch[b].iv[i].site == CHI_SITE_LOGITS) return true;
  return false;
}

/* Final norm and head for the rows that were asked for. Logits are made in passes of a few rows, unless some are
 * copied. */
static int run_head(piece *pc, const chi_layers *L) {
  int rc = 0;
  const chi_exec *x = pc->x;
  int64_t D = L->D, V = x->net->decoder.vocab;
  final_list f = {0};
  chi_arena a = {0};
  f.head = chi_arena_array(&a, x->plan->n_branches, sizeof *f.head, pc->err);
  if (!f.head) return CHI_ERR_MEMORY;
  for (size_t b = 0; b < x->plan->n_branches; b++) f.head[b] = -1;
  for (size_t c = 0; c < x->plan->n_captures; c++) {
    const chi_capture *cap = &x->plan->capture[c];
    if (cap->stack != CHI_DECODER || pc->include[cap->branch] != CHI_TARGET ||
        (cap->site != CHI_SITE_FINAL_NORM && cap->site != CHI_SITE_LOGITS))
      continue;
    for (int32_t i = 0; i < cap->n_rows; i++) CHI_TRY(add_final(pc, &f, cap->branch, cap->rows[i]));
  }
  for (size_t b = 0; b < x->plan->n_branches; b++) /* callbacks see all of their rows */
    for (int i = 0; pc->include[b] && i < x->plan->branch[b].count; i++) {
      const chi_intervention *iv = &x->plan->branch[b].iv[i];
      for (int32_t k = 0; iv->op == CHI_OP_CALL && of_head(iv) && k < iv->n_rows; k++)
        if (iv->rows[k] >= pc->dec.lo[x->root[b]]) CHI_TRY(add_final(pc, &f, (int)b, iv->rows[k]));
    }
  if (f.n == 0) goto out;
  sort_final(&f);
  size_t step = copies_logits(pc) || f.n < kHeadRows ? f.n : kHeadRows;
  float *in = chi_arena_array(&a, f.n * (size_t)D, sizeof *in, pc->err),
        *norm = chi_arena_array(&a, f.n * (size_t)D, sizeof *norm, pc->err);
  float *logits = chi_arena_array(&a, step * (size_t)V, sizeof *logits, pc->err);
  if (!in || !norm || !logits) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (size_t j = 0; j < f.n; j++) {
    int32_t s = chi_live_slot(&pc->dec, f.r[j].branch, f.r[j].row, chi_at(pc->dec.layers - 1, CHI_ST_POST));
    memcpy(in + (int64_t)j * D, L->res + s * D, (size_t)D * sizeof *in);
  }
  chi_net_final_norm(x->net, in, norm, (int64_t)f.n);
  CHI_TRY(fire_final(pc, &f, 0, f.n, CHI_SITE_FINAL_NORM, norm, D, norm));
  for (size_t j = 0; j < f.n; j += step) {
    size_t m = f.n - j < step ? f.n - j : step;
    CHI_TRY(chi_net_logits(x->net, norm + (int64_t)j * D, logits, (int64_t)m, pc->err));
    CHI_TRY(fire_final(pc, &f, j, m, CHI_SITE_LOGITS, logits, V, logits));
  }
out:
  chi_free(f.r);
  chi_arena_free(&a);
  return rc;
}

static int run_decoder(piece *pc) {
  int rc = 0;
  const chi_exec *x = pc->x;
  chi_layers L = {0};
  CHI_TRY(chi_layers_init(&L, x, &pc->dec, chunk_of(x), pc->err));
  fill_input(pc, &L);
  CHI_TRY(chi_layers_fire(&L, CHI_SITE_IMAGE_EMBED, -1, L.res, L.D));
  CHI_TRY(chi_layers_fire(&L, CHI_SITE_EMBED, -1, L.res, L.D));
  for (int32_t s = 0; s < pc->dec.n_slots; s++)
    if (pc->dec.slot_birth[s] <= CHI_T_EMBED) chi_net_add_position(x->net, L.res + s * L.D, pc->dec.slot_row[s]);
  CHI_TRY(chi_layers_run(&L, pc->done + (pc->has_vis ? pc->vis.layers : 0), pc->total));
  CHI_TRY(run_head(pc, &L));
  for (size_t b = 0; b < x->plan->n_branches; b++) {
    const chi_input *in = &x->plan->branch[b].input;
    if (pc->include[b] && x->plan->branch[b].parent < 0 && in->cache) in->cache->rows = in->n_rows;
  }
out:
  chi_layers_free(&L);
  return rc;
}

/* ---- pieces ---------------------------------------------------------------------------------------------- */
static bool has_picture(const piece *pc) {
  for (size_t b = 0; b < pc->x->plan->n_branches; b++)
    if (pc->include[b] && chi_exec_input(pc->x, (int)b)->pixels) return true;
  return false;
}

/* Liveness of both stacks. Decoder picture rows are computed anew where tower or projector changed. */
static int plan_piece(piece *pc) {
  int rc = 0;
  const chi_exec *x = pc->x;
  const chi_vision *v = &x->net->vision;
  pc->has_vis = has_picture(pc);
  if (pc->has_vis) {
    CHI_TRY(chi_live_init(&pc->vis, x, CHI_VISION, pc->include, pc->err));
    chi_live_births(&pc->vis);
    if (x->net->has_qformer) CHI_TRY(queries_plan(pc));
    for (size_t b = 0; b < x->plan->n_branches; b++)
      for (int32_t r = v->select; pc->include[b] && chi_exec_input(x, (int)b)->pixels && r < v->rows; r++)
        for (int32_t f = 0; f < v->n_features && !x->net->has_qformer; f++)
          chi_live_need(&pc->vis, (int)b, r, chi_at(v->feature[f] - 1, CHI_ST_POST));
    CHI_TRY(chi_live_deaths(&pc->vis, pc->err));
  }
  CHI_TRY(chi_live_init(&pc->dec, x, CHI_DECODER, pc->include, pc->err));
  for (size_t b = 0; b < x->plan->n_branches; b++) {
    const chi_input *in = chi_exec_input(x, (int)b);
    if (!pc->include[b] || !in->pixels) continue;
    for (int32_t r = 0; r < x->net->shape.n_image_rows; r++) {
      if (!proj_dirty(pc, (int)b, r)) continue;
      pc->proj_rows++;
      if (x->plan->branch[b].parent >= 0) chi_live_input(&pc->dec, (int)b, in->image_row + r);
    }
  }
  chi_live_births(&pc->dec);
  for (size_t b = 0; b < x->plan->n_branches; b++) { /* a cached root must leave keys for all its rows */
    const chi_input *in = &x->plan->branch[b].input;
    if (!pc->include[b] || x->plan->branch[b].parent >= 0 || !in->cache) continue;
    for (int32_t r = in->cache->rows; r < in->n_rows; r++)
      chi_live_need(&pc->dec, (int)b, r, chi_at(pc->dec.layers - 1, CHI_ST_QKV));
  }
  for (size_t b = 0; b < x->plan->n_branches; b++) /* rows whose final norm or logits others copy or callbacks see */
    for (int i = 0; pc->include[b] && i < x->plan->branch[b].count; i++) {
      const chi_intervention *iv = &x->plan->branch[b].iv[i];
      if (!of_head(iv) || (iv->op != CHI_OP_COPY && iv->op != CHI_OP_CALL)) continue;
      for (int32_t k = 0; k < iv->n_rows; k++)
        chi_live_need(&pc->dec, iv->op == CHI_OP_COPY ? iv->source : (int)b, chi_iv_source_row(iv, k),
                      chi_at(pc->dec.layers - 1, CHI_ST_POST));
    }
  CHI_TRY(chi_live_deaths(&pc->dec, pc->err));
out:
  return rc;
}

/* Rows of final norm and logits that the piece asks for. */
static size_t head_bytes(const piece *pc) {
  const chi_exec *x = pc->x;
  size_t n = 0, D = (size_t)x->net->decoder.spec.d, V = (size_t)x->net->decoder.vocab;
  for (size_t c = 0; c < x->plan->n_captures; c++) {
    const chi_capture *k = &x->plan->capture[c];
    if (k->stack == CHI_DECODER && pc->include[k->branch] == CHI_TARGET &&
        (k->site == CHI_SITE_FINAL_NORM || k->site == CHI_SITE_LOGITS))
      n += (size_t)k->n_rows;
  }
  for (size_t b = 0; b < x->plan->n_branches; b++)
    for (int i = 0; pc->include[b] && i < x->plan->branch[b].count; i++)
      if (of_head(&x->plan->branch[b].iv[i])) n += (size_t)x->plan->branch[b].iv[i].n_rows;
  size_t step = copies_logits(pc) || n < kHeadRows ? n : kHeadRows;
  return sizeof(float) * (2 * n * D + step * V);
}

static size_t piece_bytes(const piece *pc) {
  const chi_net *net = pc->x->net;
  size_t dec = chi_layers_bytes(pc->x, &pc->dec, chunk_of(pc->x)) + head_bytes(pc), vis = 0;
  if (pc->has_vis) {
    size_t ffn = (size_t)chi_net_project_ffn(net), d = (size_t)net->decoder.spec.d;
    vis = chi_layers_bytes(pc->x, &pc->vis, chunk_of(pc->x)) +
          sizeof(float) * pc->proj_rows * ((size_t)chi_net_project_width(net) + ffn + d);
    if (net->has_qformer)
      vis += chi_full_qformer_bytes(net) +
             sizeof(float) * pc->qf.n * (size_t)net->qformer.queries * (size_t)net->qformer.spec.d;
    dec += sizeof(float) * pc->proj_rows * d; /* the projector's rows stay */
  }
  return dec > vis ? dec : vis;
}

static void piece_free(piece *pc) {
  chi_live_free(&pc->vis);
  chi_live_free(&pc->dec);
  chi_arena_free(&pc->p.arena);
  chi_arena_free(&pc->qf.arena);
}

/* targets[0..n) in one piece if they fit, else in two halves. */
static int run_targets(chi_exec *x, const int *targets, size_t n, int64_t done, int64_t total, chi_err *err) {
  int rc = 0;
  size_t mem = x->opts->mem ? x->opts->mem : kDefaultMem;
  piece pc = {.x = x, .done = done, .total = total, .err = err};
  pc.include = chi_calloc(x->plan->n_branches, 1, err);
  if (!pc.include) return CHI_ERR_MEMORY;
  bool cached = false;
  for (size_t i = 0; i < n; i++) {
    close_over(x->plan, pc.include, targets[i]);
    cached = cached || chi_exec_input(x, targets[i])->cache;
  }
  for (size_t i = 0; i < n; i++) pc.include[targets[i]] = CHI_TARGET;
  CHI_TRY(plan_piece(&pc));
  size_t bytes = piece_bytes(&pc);
  if (bytes > mem && n > 1 && !cached) { /* a cache is appended to once */
    piece_free(&pc);
    chi_free(pc.include);
    rc = run_targets(x, targets, n / 2, done, 2 * total, err);
    if (rc == 0) rc = run_targets(x, targets + n / 2, n - n / 2, done + total, 2 * total, err);
    return rc;
  }
  if (bytes > mem) {
    rc = chi_fail(err, CHI_ERR_MEMORY,
                  "%s of the plan needs %zu bytes (%.1f MB) of activations; the budget is %zu: raise --mem",
                  n > 1 ? "a generation step" : "one branch", bytes, (double)bytes / 1e6, mem);
    goto out;
  }
  if (x->opts->stats) {
    x->opts->stats->pieces++;
    x->opts->stats->live_row_layers += pc.dec.row_layers;
    if (bytes > x->opts->stats->peak_bytes) x->opts->stats->peak_bytes = bytes;
  }
  if (pc.has_vis) CHI_TRY(run_vision(&pc));
  CHI_TRY(run_decoder(&pc));
out:
  piece_free(&pc);
  chi_free(pc.include);
  return rc;
}

int chi_run_sweep(chi_exec *x, chi_err *err) {
  size_t n = 0;
  int *targets = chi_calloc(x->plan->n_branches, sizeof *targets, err);
  if (!targets) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < x->plan->n_branches; i++)
    if (is_target(x, x->order[i])) targets[n++] = x->order[i];
  if (x->opts->stats) {
    *x->opts->stats = (chi_run_stats){0};
    for (size_t i = 0; i < n; i++)
      x->opts->stats->dense_row_layers +=
          (int64_t)chi_exec_rows(x, targets[i], CHI_DECODER) * x->net->shape.stack[CHI_DECODER].layers;
  }
  int64_t layers =
      x->net->shape.stack[CHI_DECODER].layers + (x->net->has_vision ? x->net->shape.stack[CHI_VISION].layers : 0);
  int rc = n ? run_targets(x, targets, n, 0, layers, err) : 0;
  chi_free(targets);
  return rc;
}

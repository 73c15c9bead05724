/* The dependency walk; see live.h and docs/design.md section 2. */
#include "sweep/live.h"

#include <string.h>

chi_time chi_site_time(chi_site site, int layer) {
  if (site == CHI_SITE_EMBED) return CHI_T_EMBED;
  if (site == CHI_SITE_IMAGE_EMBED) return CHI_T_IMAGE_EMBED;
  return chi_at(layer, chi_site_get(site)->stage);
}

static bool in_stack(const chi_live *v, const chi_intervention *iv) {
  return iv->stack == v->stack && iv->site != CHI_SITE_FINAL_NORM && iv->site != CHI_SITE_LOGITS;
}

/* Stack row of an intervention's or capture's row: image_embed counts picture rows. */
static int32_t stack_row(const chi_live *v, int b, chi_site site, int32_t row) {
  return site == CHI_SITE_IMAGE_EMBED ? row + chi_exec_input(v->x, b)->image_row : row;
}

/* The first row that a branch can own. Everything that is one per row starts there: most branches of a causal map touch
 * the last few rows only. */
static int32_t first_row(const chi_live *v, int b) {
  const chi_plan_branch *br = &v->x->plan->branch[b];
  const chi_input *in = chi_exec_input(v->x, b);
  int32_t rows = chi_exec_rows(v->x, b, v->stack), lo = rows;
  if (br->parent < 0) return v->stack == CHI_DECODER && in->cache ? in->cache->rows : 0;
  for (int i = 0; i < br->count; i++) {
    const chi_intervention *iv = &br->iv[i];
    int32_t r = rows;
    if (in_stack(v, iv))
      r = v->causal ? stack_row(v, b, iv->site, iv->rows[0]) : 0;
    else if (v->stack == CHI_DECODER && iv->stack != CHI_DECODER)
      r = in->image_row;
    if (r < lo) lo = r;
  }
  return lo;
}

static int init_branch(chi_live *v, int b, chi_err *err) {
  v->first_birth[b] = CHI_NEVER;
  v->last_death[b] = CHI_UNNEEDED;
  v->lo[b] = first_row(v, b);
  size_t rows = (size_t)(chi_exec_rows(v->x, b, v->stack) - v->lo[b]);
  v->birth[b] = chi_arena_array(&v->arena, rows, sizeof **v->birth, err);
  v->death[b] = chi_arena_array(&v->arena, rows, sizeof **v->death, err);
  v->slot[b] = chi_arena_array(&v->arena, rows, sizeof **v->slot, err);
  v->born_at[b] = chi_arena_array(&v->arena, (size_t)v->layers + 1, 1, err);
  if (!v->birth[b] || !v->death[b] || !v->slot[b] || !v->born_at[b]) return CHI_ERR_MEMORY;
  for (size_t r = 0; r < rows; r++) {
    v->birth[b][r] = CHI_NEVER;
    v->death[b][r] = CHI_UNNEEDED;
    v->slot[b][r] = -1;
  }
  return 0;
}

int chi_live_init(chi_live *v, const chi_exec *x, chi_stack stack, const uint8_t *include, chi_err *err) {
  int rc = 0;
  size_t n = x->plan->n_branches;
  memset(v, 0, sizeof *v);
  v->x = x;
  v->stack = stack;
  v->layers = x->net->shape.stack[stack].layers;
  v->causal = x->net->shape.stack[stack].causal;
  v->include = include;
  v->lo = chi_arena_array(&v->arena, n, sizeof *v->lo, err);
  v->birth = chi_arena_array(&v->arena, n, sizeof *v->birth, err);
  v->death = chi_arena_array(&v->arena, n, sizeof *v->death, err);
  v->slot = chi_arena_array(&v->arena, n, sizeof *v->slot, err);
  v->born_at = chi_arena_array(&v->arena, n, sizeof *v->born_at, err);
  v->first_birth = chi_arena_array(&v->arena, n, sizeof *v->first_birth, err);
  v->last_death = chi_arena_array(&v->arena, n, sizeof *v->last_death, err);
  v->keys = chi_arena_array(&v->arena, n, sizeof *v->keys, err);
  if (!v->lo || !v->birth || !v->death || !v->slot || !v->born_at || !v->first_birth || !v->last_death || !v->keys)
    return CHI_ERR_MEMORY;
  for (size_t b = 0; rc == 0 && b < n; b++)
    if (include[b]) rc = init_branch(v, (int)b, err);
  return rc;
}

void chi_live_free(chi_live *v) { chi_arena_free(&v->arena); }

static void born(chi_live *v, int b, int32_t row, chi_time t) {
  chi_time *birth = &v->birth[b][row - v->lo[b]];
  if (t < *birth) *birth = t;
}

void chi_live_input(chi_live *v, int b, int32_t row) { born(v, b, row, CHI_T_INPUT); }

/* First layer whose keys and values a row born at t changes. */
static int kv_layer(chi_time t) {
  if (t == CHI_NEVER) return INT32_MAX;
  if (t < 0) return 0;
  return t / CHI_STAGES + (t % CHI_STAGES <= CHI_ST_QKV ? 0 : 1);
}

/* A value copied to where it stands already changes nothing: the same row of the same owner, as of clean rows before a
 * corrupted word. If something else gives birth to the row in time, the copy is carried out like any other. */
static bool copy_is_idle(const chi_live *v, int b, const chi_intervention *iv, int32_t k, chi_time t) {
  int32_t row = stack_row(v, b, iv->site, iv->rows[k]);
  if (iv->op != CHI_OP_COPY || stack_row(v, iv->source, iv->site, chi_iv_source_row(iv, k)) != row) return false;
  int up = v->x->plan->branch[b].parent;
  return up >= 0 && chi_live_owner(v, up, row, t) == chi_live_owner(v, iv->source, row, t);
}

/* Rows of an intervention are born where it first acts: of a copy, where it first changes something. */
static void births_of_intervention(chi_live *v, int b, const chi_intervention *iv) {
  int end = chi_site_get(iv->site)->per_layer ? iv->layer_hi : iv->layer_lo + 1;
  for (int32_t k = 0; k < iv->n_rows; k++)
    for (int layer = iv->layer_lo; layer < end; layer++) {
      chi_time t = chi_site_time(iv->site, layer);
      if (copy_is_idle(v, b, iv, k, t)) continue;
      /* hidden neurons are not kept between rows: such a row starts with its own resid_mid */
      if (iv->site == CHI_SITE_MLP_ACT) t = chi_at(layer, CHI_ST_MID);
      born(v, b, stack_row(v, b, iv->site, iv->rows[k]), t);
      break;
    }
}

static void births_of_branch(chi_live *v, int b) {
  const chi_plan_branch *br = &v->x->plan->branch[b];
  int32_t rows = chi_exec_rows(v->x, b, v->stack);
  for (int i = 0; i < br->count; i++)
    if (in_stack(v, &br->iv[i])) births_of_intervention(v, b, &br->iv[i]);
  /* A changed key or value changes the mix of every row that can attend to it. */
  int first = INT32_MAX;
  for (int32_t r = v->lo[b]; !v->causal && r < rows; r++) {
    int own = kv_layer(chi_live_birth(v, b, r));
    if (own < first) first = own;
  }
  for (int32_t r = v->lo[b]; r < rows; r++) {
    int own = kv_layer(chi_live_birth(v, b, r));
    if (v->causal && own < first) first = own;
    if (first < v->layers) born(v, b, r, chi_at(first, CHI_ST_MIX));
  }
}

/* What the backward walk asks of a branch's births. */
static void note_births(chi_live *v, int b) {
  int32_t rows = chi_exec_rows(v->x, b, v->stack);
  for (int32_t r = v->lo[b]; r < rows; r++) {
    chi_time t = chi_live_birth(v, b, r);
    if (t < v->first_birth[b]) v->first_birth[b] = t;
    if (t != CHI_NEVER) v->born_at[b][t / CHI_STAGES + (t < 0 ? 0 : 1)] |= (uint8_t)(1u << (t & (CHI_STAGES - 1)));
  }
}

void chi_live_births(chi_live *v) {
  const chi_exec *x = v->x;
  for (size_t i = 0; i < x->plan->n_branches; i++) {
    int b = x->order[i];
    if (!v->include[b] || !chi_exec_rows(x, b, v->stack)) continue;
    if (x->plan->branch[b].parent < 0) { /* a root computes all rows that its cache does not hold */
      for (int32_t r = v->lo[b]; r < chi_exec_rows(x, b, v->stack); r++) chi_live_input(v, b, r);
    } else {
      births_of_branch(v, b);
    }
    note_births(v, b);
  }
}

int chi_live_owner(const chi_live *v, int b, int32_t row, chi_time t) {
  while (b >= 0 && chi_live_birth(v, b, row) > t) b = v->x->plan->branch[b].parent;
  return b;
}

int32_t chi_live_slot(const chi_live *v, int b, int32_t row, chi_time t) {
  b = chi_live_owner(v, b, row, t);
  return b < 0 ? -1 : v->slot[b][row - v->lo[b]];
}

static void dies_after(chi_live *v, int b, int32_t row, chi_time t) {
  chi_time *death = &v->death[b][row - v->lo[b]];
  if (*death < t) *death = t;
  if (v->last_death[b] < t) v->last_death[b] = t;
}

void chi_live_need(chi_live *v, int b, int32_t row, chi_time t) {
  int o = chi_live_owner(v, b, row, t);
  if (o >= 0) dies_after(v, o, row, t);
}

static bool lives(const chi_live *v, int b, int32_t row, chi_time t) {
  int32_t i = row - v->lo[b];
  return i >= 0 && v->birth[b][i] <= t && v->death[b][i] >= t;
}

/* Where a row takes its first value from its parent: rows born in the middle of attention start from the queries. */
static chi_time copy_time(chi_time birth) {
  if (birth >= 0 && birth % CHI_STAGES == CHI_ST_MIX) return birth - (CHI_ST_MIX - CHI_ST_QKV);
  return birth;
}

static bool acts_at(const chi_live *v, const chi_intervention *iv, int layer, chi_time t) {
  return in_stack(v, iv) && chi_iv_acts(iv, v->stack, iv->site, layer) && chi_site_time(iv->site, layer) == t;
}

/* Rows that a callback sees are needed, and then the sources of rows that are. */
static void needs_of_copies(chi_live *v, int b, int layer, chi_time t) {
  const chi_eff *e = &v->x->eff[b];
  for (int32_t k = e->own; k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    if (iv->op != CHI_OP_CALL || !acts_at(v, iv, layer, t)) continue;
    for (int32_t i = 0; i < iv->n_rows; i++) {
      int32_t row = stack_row(v, b, iv->site, iv->rows[i]);
      if (row >= v->lo[b]) dies_after(v, b, row, t);
    }
  }
  for (int32_t k = 0; k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    if (iv->op != CHI_OP_COPY || !acts_at(v, iv, layer, t)) continue;
    for (int32_t i = 0; i < iv->n_rows; i++) {
      if (!lives(v, b, stack_row(v, b, iv->site, iv->rows[i]), t)) continue;
      chi_live_need(v, iv->source, stack_row(v, iv->source, iv->site, chi_iv_source_row(iv, i)), t);
    }
  }
}

/* Keys that the branch and its descendants look at in this layer: own rows one by one, the ones before them as a count
 * that is handed up. Called for children before parents. */
static void needs_of_mix(chi_live *v, int b, int layer) {
  chi_time t = chi_at(layer, CHI_ST_MIX);
  int32_t rows = chi_exec_rows(v->x, b, v->stack), n = v->keys[b], last = -1;
  int up = v->x->plan->branch[b].parent;
  if (v->first_birth[b] <= t && v->last_death[b] >= t)
    for (int32_t r = rows - 1; r >= v->lo[b] && last < 0; r--)
      if (lives(v, b, r, t)) last = r;
  if (last >= 0 && !v->causal) last = rows - 1;
  if (last >= n) n = last + 1;
  for (int32_t r = v->lo[b]; r < n; r++) chi_live_need(v, b, r, chi_at(layer, CHI_ST_QKV));
  if (up >= 0) {
    if (n > v->lo[b]) n = v->lo[b];
    if (n > v->keys[up]) v->keys[up] = n;
  }
  v->keys[b] = 0;
}

static void needs_of_branch(chi_live *v, int b, int layer, int stage) {
  chi_time t = chi_at(layer, (chi_stage)stage);
  int32_t rows = chi_exec_rows(v->x, b, v->stack);
  int up = v->x->plan->branch[b].parent;
  needs_of_copies(v, b, layer, t);
  if (up >= 0 && t != CHI_T_INPUT && (v->born_at[b][layer + 1] >> stage & 1))
    for (int32_t r = v->lo[b]; r < rows; r++)
      if (chi_live_birth(v, b, r) == t && lives(v, b, r, t)) chi_live_need(v, up, r, copy_time(t));
  if (layer >= 0 && stage == CHI_ST_MIX) needs_of_mix(v, b, layer);
}

static void needs_of_captures(chi_live *v) {
  const chi_plan *p = v->x->plan;
  for (size_t i = 0; i < p->n_captures; i++) {
    const chi_capture *c = &p->capture[i];
    if (v->include[c->branch] != CHI_TARGET || c->stack != v->stack) continue;
    chi_time t = c->site == CHI_SITE_FINAL_NORM || c->site == CHI_SITE_LOGITS ? chi_at(v->layers - 1, CHI_ST_POST)
                                                                              : chi_site_time(c->site, c->layer);
    for (int32_t k = 0; k < c->n_rows; k++)
      chi_live_need(v, c->branch, stack_row(v, c->branch, c->site, c->rows[k]), t);
  }
}

static int assign_slots(chi_live *v, chi_err *err) {
  const chi_exec *x = v->x;
  for (int pass = 0; pass < 2; pass++) {
    int32_t n = 0;
    for (size_t i = 0; i < x->plan->n_branches; i++) {
      int b = x->order[i];
      if (!v->include[b]) continue;
      int32_t rows = chi_exec_rows(x, b, v->stack);
      for (int32_t r = v->lo[b]; r < rows; r++) {
        chi_time t0 = v->birth[b][r - v->lo[b]], t1 = v->death[b][r - v->lo[b]];
        if (t0 == CHI_NEVER || t1 < t0) continue;
        if (pass) {
          v->slot[b][r - v->lo[b]] = n;
          v->slot_branch[n] = b;
          v->slot_row[n] = r;
          v->slot_birth[n] = t0;
          v->slot_death[n] = t1;
          if (t1 >= 0) v->row_layers += t1 / CHI_STAGES - (t0 < 0 ? 0 : t0 / CHI_STAGES) + 1;
        }
        n++;
      }
    }
    if (pass) break;
    v->n_slots = n;
    v->slot_branch = chi_arena_array(&v->arena, (size_t)n, sizeof *v->slot_branch, err);
    v->slot_row = chi_arena_array(&v->arena, (size_t)n, sizeof *v->slot_row, err);
    v->slot_birth = chi_arena_array(&v->arena, (size_t)n, sizeof *v->slot_birth, err);
    v->slot_death = chi_arena_array(&v->arena, (size_t)n, sizeof *v->slot_death, err);
    if (!v->slot_branch || !v->slot_row || !v->slot_birth || !v->slot_death) return CHI_ERR_MEMORY;
  }
  return 0;
}

int chi_live_deaths(chi_live *v, chi_err *err) {
  const chi_exec *x = v->x;
  needs_of_captures(v);
  for (int layer = v->layers - 1; layer >= -1; layer--)
    for (int stage = CHI_STAGES - 1; stage >= 0; stage--)
      for (size_t i = x->plan->n_branches; i-- > 0;) {
        int b = x->order[i];
        if (v->include[b] && chi_exec_rows(x, b, v->stack)) needs_of_branch(v, b, layer, stage);
      }
  return assign_slots(v, err);
}

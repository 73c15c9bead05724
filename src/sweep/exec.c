/* Set-up shared by the executors, and the arithmetic of interventions. */
#include "sweep/exec.h"

#include <string.h>

static int collect_effective(chi_exec *x, chi_err *err) {
  const chi_plan *p = x->plan;
  x->eff = chi_arena_array(&x->arena, p->n_branches, sizeof *x->eff, err);
  if (!x->eff) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < p->n_branches; i++) {
    int b = x->order[i];
    const chi_plan_branch *br = &p->branch[b];
    const chi_eff *up = br->parent >= 0 ? &x->eff[br->parent] : NULL;
    chi_eff *e = &x->eff[b];
    e->own = up ? up->n : 0;
    e->n = e->own + br->count;
    e->iv = chi_arena_array(&x->arena, (size_t)e->n, sizeof *e->iv, err);
    if (!e->iv) return CHI_ERR_MEMORY;
    for (int32_t k = 0; k < e->own; k++) e->iv[k] = up->iv[k];
    for (int32_t k = 0; k < br->count; k++) e->iv[e->own + k] = &br->iv[k];
  }
  return 0;
}

static int collect_captures(chi_exec *x, chi_err *err) {
  const chi_plan *p = x->plan;
  int32_t *count = chi_arena_array(&x->arena, p->n_branches, sizeof *count, err);
  x->captures_of = chi_arena_array(&x->arena, p->n_branches, sizeof *x->captures_of, err);
  if (!count || !x->captures_of) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < p->n_captures; i++) count[p->capture[i].branch]++;
  for (size_t b = 0; b < p->n_branches; b++) {
    int32_t *list = chi_arena_array(&x->arena, (size_t)count[b] + 1, sizeof *list, err);
    if (!list) return CHI_ERR_MEMORY;
    list[count[b]] = -1;
    x->captures_of[b] = list;
    count[b] = 0;
  }
  for (size_t i = 0; i < p->n_captures; i++) {
    int b = p->capture[i].branch;
    x->captures_of[b][count[b]++] = (int32_t)i;
  }
  return 0;
}

/* ---- caches: what they hold was computed before; it can be read, but neither changed nor captured ---------------- */
static int check_root_cache(const chi_exec *x, int b, chi_err *err) {
  const chi_plan *p = x->plan;
  const chi_input *in = &p->branch[b].input;
  const chi_kv_cache *c = in->cache;
  const chi_block_spec *s = &x->net->decoder.spec;
  if (c->layers != s->layers || c->block_floats != chi_kv_block_floats(s))
    return chi_fail(err, CHI_ERR_ARG, "branch %d: the key/value cache was made for another model", b);
  if (in->n_rows > c->max_rows || in->n_rows <= c->rows)
    return chi_fail(err, CHI_ERR_ARG, "branch %d: %d rows with a key/value cache that holds %d and has room for %d", b,
                    in->n_rows, c->rows, c->max_rows);
  for (int o = 0; o < b; o++)
    if (p->branch[o].parent < 0 && p->branch[o].input.cache == c)
      return chi_fail(err, CHI_ERR_ARG, "branches %d and %d share one key/value cache", o, b);
  return 0;
}

static int32_t cached_rows(const chi_exec *x, int b) {
  const chi_input *in = chi_exec_input(x, b);
  return in->cache ? in->cache->rows : 0;
}

/* Decoder row of a site's row (image_embed counts picture rows); towers and projector change picture rows. */
static int32_t decoder_row(const chi_exec *x, int b, chi_stack stack, chi_site site, int32_t row) {
  int32_t first = chi_exec_input(x, b)->image_row;
  return stack != CHI_DECODER ? first : site == CHI_SITE_IMAGE_EMBED ? first + row : row;
}

static int check_cached_intervention(const chi_exec *x, int b, const chi_intervention *iv, chi_err *err) {
  bool root = x->plan->branch[b].parent < 0;
  for (int32_t i = 0; i < iv->n_rows; i++) {
    int32_t row = decoder_row(x, b, iv->stack, iv->site, iv->rows[i]);
    if (row < cached_rows(x, b)) {
      if (root) continue; /* it acted when the row was computed */
      return chi_fail(err, CHI_ERR_ARG, "branch %d changes row %d, which its root's key/value cache holds", b, row);
    }
    if (iv->op != CHI_OP_COPY || iv->stack != CHI_DECODER) continue;
    row = decoder_row(x, iv->source, iv->stack, iv->site, chi_iv_source_row(iv, i));
    if (row < cached_rows(x, iv->source))
      return chi_fail(err, CHI_ERR_ARG, "branch %d copies row %d of branch %d, whose key/value cache holds it", b, row,
                      iv->source);
  }
  return 0;
}

static int check_caches(const chi_exec *x, chi_err *err) {
  int rc = 0;
  const chi_plan *p = x->plan;
  bool any = false;
  for (size_t b = 0; b < p->n_branches; b++) {
    if (p->branch[b].parent >= 0 || !p->branch[b].input.cache) continue;
    any = true;
    if ((rc = check_root_cache(x, (int)b, err)) != 0) return rc;
  }
  for (size_t b = 0; any && b < p->n_branches; b++)
    for (int i = 0; i < p->branch[b].count; i++)
      if ((rc = check_cached_intervention(x, (int)b, &p->branch[b].iv[i], err)) != 0) return rc;
  for (size_t i = 0; any && i < p->n_captures; i++) {
    const chi_capture *c = &p->capture[i];
    int32_t row = decoder_row(x, c->branch, c->stack, c->site, c->rows[0]); /* rows ascend */
    if (c->stack == CHI_DECODER && row < cached_rows(x, c->branch))
      return chi_fail(err, CHI_ERR_ARG,
                      "row %d of branch %d is held by the key/value cache; it cannot be captured again", row,
                      c->branch);
  }
  return rc;
}

int chi_exec_init(chi_exec *x, const chi_net *net, const chi_plan *plan, const chi_run_opts *opts, chi_err *err) {
  int rc = 0;
  memset(x, 0, sizeof *x);
  x->net = net;
  x->plan = plan;
  x->opts = opts;
  CHI_TRY(chi_plan_check(plan, &net->shape, err));
  x->order = chi_arena_array(&x->arena, plan->n_branches, sizeof *x->order, err);
  x->pos = chi_arena_array(&x->arena, plan->n_branches, sizeof *x->pos, err);
  x->root = chi_arena_array(&x->arena, plan->n_branches, sizeof *x->root, err);
  if (!x->order || !x->pos || !x->root) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  CHI_TRY(chi_plan_order(plan, x->order, err));
  for (size_t i = 0; i < plan->n_branches; i++) {
    int b = x->order[i], up = plan->branch[b].parent;
    x->pos[b] = (int32_t)i;
    x->root[b] = up < 0 ? b : x->root[up];
  }
  CHI_TRY(collect_effective(x, err));
  CHI_TRY(collect_captures(x, err));
  CHI_TRY(check_caches(x, err));
out:
  return rc;
}

void chi_exec_free(chi_exec *x) { chi_arena_free(&x->arena); }

const chi_input *chi_exec_input(const chi_exec *x, int branch) { return &x->plan->branch[x->root[branch]].input; }

int32_t chi_exec_rows(const chi_exec *x, int branch, chi_stack stack) {
  const chi_input *in = chi_exec_input(x, branch);
  if (stack == CHI_DECODER) return in->n_rows;
  return in->pixels ? x->net->shape.stack[stack].rows : 0;
}

bool chi_iv_acts(const chi_intervention *iv, chi_stack stack, chi_site site, int layer) {
  if (iv->stack != stack || iv->site != site) return false;
  if (!chi_site_get(site)->per_layer || stack == CHI_PROJECTOR) return true;
  return layer >= iv->layer_lo && layer < iv->layer_hi;
}

int32_t chi_iv_row(const chi_intervention *iv, int32_t row) {
  int32_t lo = 0, hi = iv->n_rows;
  while (lo < hi) {
    int32_t mid = lo + (hi - lo) / 2;
    if (iv->rows[mid] < row)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < iv->n_rows && iv->rows[lo] == row ? lo : -1;
}

bool chi_iv_is_edge(const chi_intervention *iv) {
  return iv->op == CHI_OP_CUT || iv->op == CHI_OP_CUT_ZERO || iv->op == CHI_OP_CUT_SCALE;
}

int32_t chi_iv_source_row(const chi_intervention *iv, int32_t i) {
  return iv->source_rows ? iv->source_rows[i] : iv->rows[i];
}

/* Columns [*lo, *hi) that the intervention touches. */
static void part_columns(const chi_exec *x, const chi_intervention *iv, int64_t width, int32_t n_keys, int64_t *lo,
                         int64_t *hi) {
  int64_t unit = 1;
  if (chi_site_is_pattern(iv->site))
    unit = n_keys;
  else if (chi_site_get(iv->site)->unit == CHI_UNIT_HEAD)
    unit = x->net->shape.stack[iv->stack].head_dim;
  *lo = iv->part_lo * unit;
  *hi = iv->part_hi ? iv->part_hi * unit : width;
}

static void project_out(const chi_intervention *iv, const float *u, float *y, int64_t n) {
  float dot = chi_dot(u, y, n);
  if (iv->one_sided && !(dot > 0.0f)) return;
  chi_rows_axpy(y, n, u, n, 1, n, -iv->scale * dot);
}

int chi_iv_apply(const chi_exec *x, const chi_intervention *iv, int branch, int layer, int32_t i, float *y,
                 int64_t width, int32_t n_keys, const float *src, chi_err *err) {
  int64_t lo, hi;
  part_columns(x, iv, width, n_keys, &lo, &hi);
  int64_t n = hi - lo;
  const float *value = iv->value ? iv->value + (iv->value_rows == 1 ? 0 : i) * n : NULL;
  float *p = y + lo;
  switch (iv->op) {
    case CHI_OP_SET:
      memcpy(p, value, (size_t)n * sizeof *p);
      break;
    case CHI_OP_COPY:
      memcpy(p, src + lo, (size_t)n * sizeof *p);
      break;
    case CHI_OP_ADD:
      chi_rows_axpy(p, n, value, n, 1, n, iv->scale);
      break;
    case CHI_OP_SCALE:
      chi_rows_scale(p, n, 1, n, iv->scale);
      break;
    case CHI_OP_ZERO:
      memset(p, 0, (size_t)n * sizeof *p);
      break;
    case CHI_OP_NOISE:
      for (int64_t c = 0; c < n; c++)
        p[c] += iv->scale * chi_rng_normal(iv->seed, iv->sample, (uint32_t)i, (uint32_t)c);
      break;
    case CHI_OP_PROJECT:
      project_out(iv, value, p, n);
      break;
    case CHI_OP_TOKEN:
      chi_net_embed_token(x->net, iv->tokens[i], y);
      break;
    case CHI_OP_CALL:
      if (iv->call(iv->ud, branch, iv->stack, iv->site, layer, iv->rows[i], y, width) != 0)
        return chi_fail(err, CHI_ERR_CANCELLED, "stopped by a callback at %s layer %d", chi_site_get(iv->site)->name,
                        layer);
      break;
    case CHI_OP_CUT:
    case CHI_OP_CUT_ZERO:
    case CHI_OP_CUT_SCALE:
    case CHI_OP_COUNT:
      break; /* edges act inside attention */
  }
  return 0;
}

int32_t chi_iv_edges(const chi_exec *x, int branch, chi_stack stack, chi_site site, int layer, int32_t row,
                     chi_edge *out, int32_t cap) {
  const chi_eff *e = &x->eff[branch];
  const chi_block_spec *s = chi_net_spec(x->net, stack);
  int32_t n = 0, heads = x->net->shape.stack[stack].heads, hidden = row + 1 - s->window;
  if (s->window > 0 && layer >= s->window_from && hidden > 0) { /* a sliding window is a cut that is always there */
    if (n < cap) out[n] = (chi_edge){.row = row, .key_hi = hidden, .head_hi = heads, .op = CHI_EDGE_CUT};
    n++;
  }
  for (int32_t k = 0; k < e->n; k++) {
    const chi_intervention *iv = e->iv[k];
    if (!chi_iv_is_edge(iv) || !chi_iv_acts(iv, stack, site, layer) || chi_iv_row(iv, row) < 0) continue;
    if (n < cap) {
      out[n] = (chi_edge){.row = row,
                          .key_lo = iv->key_lo,
                          .key_hi = iv->key_hi,
                          .head_lo = iv->part_lo,
                          .head_hi = iv->part_hi ? iv->part_hi : heads,
                          .value = iv->scale,
                          .op = iv->op == CHI_OP_CUT        ? CHI_EDGE_CUT
                                : iv->op == CHI_OP_CUT_ZERO ? CHI_EDGE_ZERO
                                                            : CHI_EDGE_SCALE};
    }
    n++;
  }
  return n;
}

bool chi_iv_pattern(const chi_exec *x, int branch, chi_stack stack, chi_site site, int layer, int32_t row) {
  const chi_eff *e = &x->eff[branch];
  for (int32_t k = 0; k < e->n; k++)
    if (!chi_iv_is_edge(e->iv[k]) && chi_iv_acts(e->iv[k], stack, site, layer) && chi_iv_row(e->iv[k], row) >= 0)
      return true;
  return false;
}

int chi_exec_emit(const chi_exec *x, int capture, int32_t i, const float *values, int64_t width, chi_err *err) {
  if (!x->opts->on_capture) return 0;
  if (x->opts->on_capture(x->opts->ud, capture, i, values, width) == 0) return 0;
  return err && err->code ? err->code : chi_fail(err, CHI_ERR_CANCELLED, "stopped by the receiver of captured values");
}

int chi_run_plan(const chi_net *net, const chi_plan *plan, const chi_run_opts *opts, chi_err *err) {
  chi_exec x;
  int rc = chi_exec_init(&x, net, plan, opts, err);
  unsigned fp = chi_fp_begin();
  if (rc == 0) rc = opts->executor == CHI_EXEC_DENSE ? chi_run_dense(&x, err) : chi_run_sweep(&x, err);
  chi_fp_end(fp);
  chi_exec_free(&x);
  return rc;
}

/* ---- key/value cache ------------------------------------------------------------------------------------- */
int chi_kv_cache_new(chi_kv_cache **out, const chi_net *net, int32_t max_rows, chi_err *err) {
  int rc = 0;
  const chi_block_spec *s = &net->decoder.spec;
  chi_kv_cache *c = chi_calloc(1, sizeof *c, err);
  if (!c) return CHI_ERR_MEMORY;
  c->layers = s->layers;
  c->max_rows = max_rows;
  c->n_blocks = (max_rows + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  c->block_floats = chi_kv_block_floats(s);
  size_t n = (size_t)c->layers * (size_t)c->n_blocks;
  c->k = chi_calloc(n, sizeof *c->k, err);
  c->v = chi_calloc(n, sizeof *c->v, err);
  if (!c->k || !c->v) rc = CHI_ERR_MEMORY;
  for (size_t i = 0; rc == 0 && i < n; i++) {
    c->k[i] = chi_calloc(c->block_floats, sizeof(float), err);
    c->v[i] = chi_calloc(c->block_floats, sizeof(float), err);
    if (!c->k[i] || !c->v[i]) rc = CHI_ERR_MEMORY;
  }
  if (rc) {
    chi_kv_cache_free(c);
    return rc;
  }
  *out = c;
  return 0;
}

void chi_kv_cache_free(chi_kv_cache *c) {
  if (!c) return;
  size_t n = (size_t)c->layers * (size_t)c->n_blocks;
  for (size_t i = 0; i < n; i++) {
    if (c->k) chi_free(c->k[i]);
    if (c->v) chi_free(c->v[i]);
  }
  chi_free(c->k);
  chi_free(c->v);
  chi_free(c);
}

int32_t chi_kv_cache_rows(const chi_kv_cache *c) { return c->rows; }

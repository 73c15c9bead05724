#include "support/randplan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

/* ---- results ------------------------------------------------------------------------------------------------- */
static const chi_input *input_of(const chi_plan *p, int b) { return &p->branch[chi_plan_root_of(p, b)].input; }

static int32_t rows_of(const chi_shape *s, const chi_plan *p, int b, chi_stack stack, chi_site site) {
  const chi_input *in = input_of(p, b);
  if (stack == CHI_DECODER && site != CHI_SITE_IMAGE_EMBED) return in->n_rows;
  if (!in->pixels) return 0;
  return site == CHI_SITE_IMAGE_EMBED ? s->n_image_rows : s->stack[stack].rows;
}

static int32_t keys_of(const chi_shape *s, const chi_plan *p, int b, chi_stack stack, chi_site site, int32_t row) {
  return chi_site_keys(s, stack, site, row, rows_of(s, p, b, stack, site));
}

static int receive(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  results *r = ud;
  size_t k = r->first[capture] + (size_t)i;
  if (k >= r->first[capture + 1] || (size_t)width != r->at[k + 1] - r->at[k]) return 1;
  memcpy(r->values + r->at[k], v, (size_t)width * sizeof *v);
  r->times[k]++;
  return 0;
}

int results_run(results *r, const chi_net *net, const chi_plan *plan, const chi_run_opts *o, chi_err *err) {
  memset(r, 0, sizeof *r);
  r->plan = plan;
  r->first = calloc(plan->n_captures + 1, sizeof *r->first);
  for (size_t c = 0; c < plan->n_captures; c++) r->first[c + 1] = r->first[c] + (size_t)plan->capture[c].n_rows;
  r->n = r->first[plan->n_captures];
  r->at = calloc(r->n + 1, sizeof *r->at);
  r->times = calloc(r->n + 1, sizeof *r->times);
  for (size_t c = 0; c < plan->n_captures; c++)
    for (int32_t i = 0; i < plan->capture[c].n_rows; i++) {
      const chi_capture *k = &plan->capture[c];
      int32_t keys = keys_of(&net->shape, plan, k->branch, k->stack, k->site, k->rows[i]);
      size_t j = r->first[c] + (size_t)i;
      r->at[j + 1] = r->at[j] + (size_t)chi_site_width(&net->shape, k->stack, k->site, keys);
    }
  r->values = calloc(r->at[r->n] + 1, sizeof *r->values);
  chi_run_opts own = *o;
  own.on_capture = receive;
  own.ud = r;
  int rc = chi_run_plan(net, plan, &own, err);
  for (size_t j = 0; rc == 0 && j < r->n; j++)
    if (r->times[j] != 1) fail_msg("a captured row was given %d times", r->times[j]);
  return rc;
}

void results_free(results *r) {
  free(r->first);
  free(r->at);
  free(r->times);
  free(r->values);
  memset(r, 0, sizeof *r);
}

const float *results_row(const results *r, int capture, int32_t i) {
  return r->values + r->at[r->first[capture] + (size_t)i];
}

int64_t results_width(const results *r, int capture, int32_t i) {
  size_t j = r->first[capture] + (size_t)i;
  return (int64_t)(r->at[j + 1] - r->at[j]);
}

uint64_t results_hash(const results *r) { return chi_fnv64(r->values, r->at[r->n] * sizeof *r->values, 0); }

const char *results_differ(const results *a, const results *b) {
  static char buf[256];
  if (a->n != b->n || a->at[a->n] != b->at[b->n]) return "the plans have other captures";
  if (memcmp(a->values, b->values, a->at[a->n] * sizeof *a->values) == 0) return NULL;
  for (size_t c = 0; c < a->plan->n_captures; c++)
    for (size_t j = a->first[c]; j < a->first[c + 1]; j++)
      for (size_t k = a->at[j]; k < a->at[j + 1]; k++) {
        if (memcmp(&a->values[k], &b->values[k], sizeof(float)) == 0) continue;
        const chi_capture *p = &a->plan->capture[c];
        snprintf(buf, sizeof buf, "capture %zu: branch %d, %s.%d.%s, row %d, column %zu of %zu: %.9g and %.9g", c,
                 p->branch, chi_stack_name(p->stack), p->layer, chi_site_get(p->site)->name, p->rows[j - a->first[c]],
                 k - a->at[j], a->at[j + 1] - a->at[j], (double)a->values[k], (double)b->values[k]);
        return buf;
      }
  return NULL;
}

/* ---- plans by hand ------------------------------------------------------------------------------------------- */
chi_plan *plan_new(void) {
  chi_plan *p = NULL;
  assert_works(chi_plan_new(&p, err));
  return p;
}

int plan_root(chi_plan *p, const chi_input *in) {
  int b = -1;
  assert_works(chi_plan_root(p, in, &b, err));
  return b;
}

int plan_child(chi_plan *p, int parent) {
  int b = -1;
  assert_works(chi_plan_child(p, parent, &b, err));
  return b;
}

static int32_t *range(int32_t lo, int32_t hi) {
  int32_t *rows = calloc((size_t)(hi - lo) + 1, sizeof *rows);
  for (int32_t r = lo; r < hi; r++) rows[r - lo] = r;
  return rows;
}

void plan_act(chi_plan *p, int b, chi_intervention iv, int32_t lo, int32_t hi, int64_t width) {
  int32_t *rows = range(lo, hi);
  iv.rows = rows;
  iv.n_rows = hi - lo;
  assert_works(chi_plan_intervene(p, b, &iv, width, err));
  free(rows);
}

void plan_copy(chi_plan *p, int b, int source, chi_site site, int layer, int32_t lo, int32_t hi) {
  plan_act(p, b,
           (chi_intervention){.op = CHI_OP_COPY,
                              .stack = CHI_DECODER,
                              .site = site,
                              .layer_lo = layer,
                              .layer_hi = layer + 1,
                              .source = source},
           lo, hi, 0);
}

int plan_take(chi_plan *p, int b, chi_stack stack, chi_site site, int layer, int32_t lo, int32_t hi) {
  int id = -1;
  int32_t *rows = range(lo, hi);
  chi_capture c = {.branch = b, .stack = stack, .site = site, .layer = layer, .rows = rows, .n_rows = hi - lo};
  assert_works(chi_plan_capture(p, &c, &id, err));
  free(rows);
  return id;
}

int plan_take_logits(chi_plan *p, int b, int32_t row) {
  return plan_take(p, b, CHI_DECODER, CHI_SITE_LOGITS, -1, row, row + 1);
}

/* ---- random plans -------------------------------------------------------------------------------------------- */
typedef struct maker {
  rnd r;
  const randnet *n;
  const chi_shape *s;
  const randplan_opts *o;
  chi_plan *p;
  randplan_call *call;
  int n_calls;
  randplan_cover *cover;
  int depth[64];
} maker;

bool randplan_allowed(const chi_shape *s, chi_stack stack, chi_site site, chi_op op) {
  if (chi_site_width(s, stack, site, 1) == 0) return false;
  if (op == CHI_OP_TOKEN) return stack == CHI_DECODER && site == CHI_SITE_EMBED;
  if (op == CHI_OP_CUT || op == CHI_OP_CUT_ZERO || op == CHI_OP_CUT_SCALE) return chi_site_is_pattern(site);
  return true;
}

/* Depends on the row's place and values only: a branch that shares the row must get the same. */
static int bend(void *ud, int branch, chi_stack stack, chi_site site, int layer, int32_t row, float *v, int64_t width) {
  randplan_call *c = ud;
  (void)stack, (void)site;
  if (branch == c->branch) {
    int32_t at[2] = {layer, row};
    c->rows++;
    c->sum += chi_fnv64(v, (size_t)width * sizeof *v, chi_fnv64(at, sizeof at, 0));
  }
  for (int64_t i = 0; i < width; i++) v[i] = 0.75f * v[i] + 0.01f * (float)(layer + row);
  return 0;
}

/* Ascending rows of [0, limit) in one of several habits. Returns how many. */
static int32_t pick_rows(rnd *r, int32_t limit, int32_t *out) {
  int32_t n = 0, lo = rnd_range(r, 0, limit), hi = rnd_range(r, lo, limit) + 1;
  switch (rnd_range(r, 0, 6)) {
    case 0:
    case 1:
      hi = lo + 1;
      break; /* one */
    case 2:
      hi = limit;
      break; /* from here on */
    case 3:
      break; /* a span */
    case 4:
      lo = limit - 1, hi = limit;
      break; /* the last */
    default: /* scattered */
      for (int32_t i = 0; i < limit; i++)
        if (rnd_chance(r, 0.2)) out[n++] = i;
      if (n) return n;
      break;
  }
  for (int32_t i = lo; i < hi; i++) out[n++] = i;
  return n;
}

static chi_stack pick_stack(maker *m, int b) {
  bool queries = m->s->stack[CHI_QFORMER].present;
  if (!input_of(m->p, b)->pixels || rnd_chance(&m->r, queries ? 0.35 : 0.6)) return CHI_DECODER;
  if (queries && rnd_chance(&m->r, 0.65)) return CHI_QFORMER;
  return rnd_chance(&m->r, 0.7) ? CHI_VISION : CHI_PROJECTOR;
}

static chi_site pick_site(maker *m, int b, chi_stack stack) {
  for (;;) {
    chi_site site = (chi_site)rnd_range(&m->r, 0, CHI_SITE_COUNT);
    if (chi_site_width(m->s, stack, site, 1) > 0 && rows_of(m->s, m->p, b, stack, site) > 0) return site;
  }
}

static chi_op pick_op(maker *m, chi_stack stack, chi_site site) {
  if (rnd_chance(&m->r, 0.3)) return CHI_OP_COPY;
  if (stack == CHI_DECODER && site == CHI_SITE_EMBED && rnd_chance(&m->r, 0.3)) return CHI_OP_TOKEN;
  if (chi_site_is_pattern(site) && rnd_chance(&m->r, 0.45))
    return (chi_op)rnd_range(&m->r, CHI_OP_CUT, CHI_OP_CUT_SCALE + 1);
  for (;;) {
    chi_op op = (chi_op)rnd_range(&m->r, 0, CHI_OP_COUNT);
    if (randplan_allowed(m->s, stack, site, op) && !(m->o->no_calls && op == CHI_OP_CALL)) return op;
  }
}

/* A branch that has this stack and at least one row in common; -1 where there is none. */
static int pick_source(maker *m, int b, chi_stack stack, chi_site site) {
  int n = m->o->cycles && rnd_chance(&m->r, 0.2) ? (int)m->p->n_branches : b; /* earlier ones make no cycles */
  for (int tries = 0; tries < 8 && n > 0; tries++) {
    int s = rnd_range(&m->r, 0, n);
    if (s != b && rows_of(m->s, m->p, s, stack, site) > 0) return s;
  }
  return -1;
}

static void fill_values(maker *m, chi_intervention *iv, float **value, int64_t width) {
  if (iv->op != CHI_OP_SET && iv->op != CHI_OP_ADD && iv->op != CHI_OP_PROJECT) return;
  iv->value_rows = rnd_chance(&m->r, 0.5) ? 1 : iv->n_rows;
  size_t n = (size_t)width * (size_t)iv->value_rows;
  *value = calloc(n, sizeof **value);
  float std = iv->op == CHI_OP_PROJECT ? 1.0f / sqrtf((float)width) : 1.0f;
  for (size_t i = 0; i < n; i++) (*value)[i] = std * rnd_normal(&m->r);
  iv->value = *value;
}

/* Heads or columns; returns the columns that the intervention covers. */
static int64_t pick_part(maker *m, chi_intervention *iv, int32_t keys) {
  bool heads = chi_site_get(iv->site)->unit == CHI_UNIT_HEAD;
  int32_t width = (int32_t)chi_site_width(m->s, iv->stack, iv->site, 1);
  int32_t limit = heads ? chi_site_heads(m->s, iv->stack, iv->site) : width;
  int64_t unit = chi_site_is_pattern(iv->site) ? keys : heads ? m->s->stack[iv->stack].head_dim : 1;
  if (iv->op == CHI_OP_TOKEN || iv->op == CHI_OP_CALL || !rnd_chance(&m->r, 0.35)) return limit * unit;
  iv->part_lo = rnd_range(&m->r, 0, limit);
  iv->part_hi = rnd_range(&m->r, iv->part_lo, limit) + 1;
  m->cover->parts++;
  return (iv->part_hi - iv->part_lo) * unit;
}

static bool pick_copy(maker *m, int b, chi_intervention *iv, int32_t *rows, int32_t *map) {
  iv->source = pick_source(m, b, iv->stack, iv->site);
  if (iv->source < 0) return false;
  int32_t limit = rows_of(m->s, m->p, iv->source, iv->stack, iv->site), n = 0;
  bool mapped = !chi_site_is_pattern(iv->site) && rnd_chance(&m->r, 0.4);
  if (mapped) {
    for (int32_t i = 0; i < iv->n_rows; i++) map[i] = rnd_range(&m->r, 0, limit);
    iv->source_rows = map;
    m->cover->mapped_copies++;
    return true;
  }
  for (int32_t i = 0; i < iv->n_rows; i++) /* rows that both have */
    if (rows[i] < limit) rows[n++] = rows[i];
  iv->n_rows = n;
  return n > 0;
}

/* The layer, or for sites of cross-attention the nearest one before it that has some. */
static int crossed(const maker *m, chi_stack stack, chi_site site, int layer) {
  return chi_site_is_cross(site) ? layer - layer % m->s->stack[stack].cross_every : layer;
}

/* An intervention that is already in the plan, to meet it at the same place: order of ancestors, sources that are
 * changed themselves, rows born twice. NULL where there is none that b could have. */
static const chi_intervention *pick_echo(maker *m, int b) {
  for (int tries = 0; tries < 6; tries++) {
    const chi_plan_branch *o = &m->p->branch[rnd_range(&m->r, 0, b + 1)];
    if (o->count == 0) continue;
    const chi_intervention *iv = &o->iv[rnd_range(&m->r, 0, o->count)];
    if (rows_of(m->s, m->p, b, iv->stack, iv->site) > 0) return iv;
  }
  return NULL;
}

static void add_intervention(maker *m, int b) {
  chi_intervention iv = {.stack = pick_stack(m, b)};
  int32_t rows[256], map[256], tokens[256];
  float *value = NULL;
  const chi_intervention *echo = rnd_chance(&m->r, 0.3) ? pick_echo(m, b) : NULL;
  if (echo) iv.stack = echo->stack;
  iv.site = echo ? echo->site : pick_site(m, b, iv.stack);
  iv.op = pick_op(m, iv.stack, iv.site);
  iv.rows = rows;
  int32_t limit = rows_of(m->s, m->p, b, iv.stack, iv.site), layers = m->s->stack[iv.stack].layers;
  iv.n_rows = pick_rows(&m->r, limit, rows);
  if (echo && rnd_chance(&m->r, 0.7)) { /* the same rows, where b has them */
    iv.n_rows = 0;
    for (int32_t i = 0; i < echo->n_rows; i++)
      if (echo->rows[i] < limit) rows[iv.n_rows++] = echo->rows[i];
    if (iv.n_rows == 0) iv.n_rows = pick_rows(&m->r, limit, rows);
  }
  iv.layer_lo = crossed(m, iv.stack, iv.site, echo ? echo->layer_lo : rnd_range(&m->r, 0, layers));
  iv.layer_hi = rnd_chance(&m->r, 0.6) ? iv.layer_lo + 1 : rnd_range(&m->r, iv.layer_lo, layers) + 1;
  m->cover->windows += iv.layer_hi > iv.layer_lo + 1;
  iv.scale = ((float[]){-1.0f, 0.0f, 0.5f, 1.0f, 1.5f})[rnd_range(&m->r, 0, 5)];
  iv.one_sided = rnd_chance(&m->r, 0.5);
  iv.seed = rnd_u32(&m->r);
  iv.sample = (uint32_t)rnd_range(&m->r, 0, 3);
  if (iv.op == CHI_OP_COPY && !pick_copy(m, b, &iv, rows, map)) return;
  if (iv.op == CHI_OP_CALL) {
    assert_true(m->n_calls < RANDPLAN_CALLS);
    m->call[m->n_calls].branch = b;
    iv.call = bend;
    iv.ud = &m->call[m->n_calls++];
  }
  if (iv.op == CHI_OP_TOKEN) {
    for (int32_t i = 0; i < iv.n_rows; i++) tokens[i] = rnd_range(&m->r, 0, m->s->vocab);
    iv.tokens = tokens;
  }
  if (chi_site_is_pattern(iv.site) && (iv.op == CHI_OP_SET || iv.op == CHI_OP_ADD || iv.op == CHI_OP_PROJECT))
    iv.n_rows = 1;
  if (iv.op >= CHI_OP_CUT && iv.op <= CHI_OP_CUT_SCALE) {
    int32_t keys = iv.site == CHI_SITE_X_PATTERN ? m->s->stack[iv.stack].cross_keys : limit;
    iv.key_lo = rnd_chance(&m->r, 0.3) ? 0 : rnd_range(&m->r, 0, keys);
    iv.key_hi = rnd_chance(&m->r, 0.3) ? keys : rnd_range(&m->r, iv.key_lo, keys) + 1;
  }
  int64_t width = pick_part(m, &iv, keys_of(m->s, m->p, b, iv.stack, iv.site, rows[0]));
  fill_values(m, &iv, &value, width);
  assert_works(chi_plan_intervene(m->p, b, &iv, iv.value ? width : 0, err));
  free(value);
  m->cover->op[iv.stack][iv.site][iv.op]++;
  if (iv.stack == CHI_DECODER && m->p->branch[b].parent >= 0) m->cover->fork[rows[0] % CHI_KV_BLOCK]++;
}

static void add_captures(maker *m, int b) {
  int32_t rows[256];
  if (rnd_chance(&m->r, 0.7)) {
    rows[0] = input_of(m->p, b)->n_rows - 1;
    chi_capture c = {
        .branch = b, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = 1};
    assert_works(chi_plan_capture(m->p, &c, NULL, err));
    m->cover->capture[CHI_DECODER][CHI_SITE_LOGITS]++;
  }
  for (int i = rnd_range(&m->r, 0, 4); i > 0; i--) {
    chi_capture c = {.branch = b, .stack = pick_stack(m, b), .rows = rows};
    c.site = pick_site(m, b, c.stack);
    c.layer = chi_site_get(c.site)->per_layer ? rnd_range(&m->r, 0, m->s->stack[c.stack].layers) : -1;
    c.layer = crossed(m, c.stack, c.site, c.layer);
    c.n_rows = pick_rows(&m->r, rows_of(m->s, m->p, b, c.stack, c.site), rows);
    assert_works(chi_plan_capture(m->p, &c, NULL, err));
    m->cover->capture[c.stack][c.site]++;
  }
}

static void add_root(maker *m, randplan *out, int i) {
  int32_t lo = m->o->min_rows ? m->o->min_rows : 10, hi = m->o->max_rows ? m->o->max_rows : 70,
          image = m->s->n_image_rows;
  bool picture = image > 0 && rnd_chance(&m->r, 0.7);
  int32_t T = rnd_range(&m->r, lo, hi + 1), b;
  if (picture && T < image) T = image + rnd_range(&m->r, 0, 8);
  out->tokens[i] = calloc((size_t)T, sizeof(int32_t));
  for (int32_t r = 0; r < T; r++) out->tokens[i][r] = rnd_range(&m->r, 0, m->s->vocab);
  chi_input in = {.tokens = out->tokens[i], .n_rows = T, .image_row = -1};
  if (picture) {
    in.pixels = m->n->pixels[rnd_range(&m->r, 0, RANDNET_PICTURES)];
    in.image_row = rnd_range(&m->r, 0, T - image + 1);
  }
  assert_works(chi_plan_root(m->p, &in, &b, err));
  m->depth[b] = 0;
}

void randplan_make(randplan *out, const randnet *n, const randplan_opts *o, randplan_cover *cover) {
  randplan_cover none = {0};
  maker m = {.r = {o->seed}, .n = n, .s = &n->net.shape, .o = o, .cover = cover ? cover : &none};
  memset(out, 0, sizeof *out);
  assert_works(chi_plan_new(&out->plan, err));
  m.p = out->plan;
  m.call = out->call = calloc(RANDPLAN_CALLS, sizeof *out->call);
  int32_t roots = rnd_range(&m.r, 1, RANDPLAN_ROOTS + 1), max = o->max_branches ? o->max_branches : 12;
  int32_t total = rnd_range(&m.r, roots, max + 1 > roots ? max + 1 : roots + 1),
          most = o->max_interventions ? o->max_interventions : 3;
  for (int32_t i = 0; i < roots; i++) add_root(&m, out, i);
  while (m.p->n_branches < (size_t)total) {
    int up = rnd_range(&m.r, 0, (int32_t)m.p->n_branches), b;
    if (m.depth[up] == 3) continue;
    assert_works(chi_plan_child(m.p, up, &b, err));
    m.depth[b] = m.depth[up] + 1;
  }
  for (int b = 0; b < (int)m.p->n_branches; b++) {
    bool root = m.p->branch[b].parent < 0;
    for (int i = rnd_range(&m.r, 0, root ? 2 : most + 1); i > 0; i--) add_intervention(&m, b);
    add_captures(&m, b);
    m.cover->branches++;
    m.cover->depth[m.depth[b]]++;
  }
}

void randplan_free(randplan *p) {
  chi_plan_free(p->plan);
  for (int i = 0; i < RANDPLAN_ROOTS; i++) free(p->tokens[i]);
  free(p->call);
  memset(p, 0, sizeof *p);
}

void randplan_print(const chi_plan *p) {
  for (size_t b = 0; b < p->n_branches; b++) {
    const chi_plan_branch *br = &p->branch[b];
    if (br->parent < 0)
      print_error("branch %zu: root of %d rows%s, image row %d\n", b, br->input.n_rows,
                  br->input.pixels ? " with picture" : "", br->input.image_row);
    else
      print_error("branch %zu: child of %d\n", b, br->parent);
    for (int i = 0; i < br->count; i++) {
      const chi_intervention *iv = &br->iv[i];
      print_error("  %s at %s.[%d,%d).%s, %d rows %d..%d, part [%d,%d), source %d%s, keys [%d,%d), scale %g\n",
                  chi_op_name(iv->op), chi_stack_name(iv->stack), iv->layer_lo, iv->layer_hi,
                  chi_site_get(iv->site)->name, iv->n_rows, iv->rows[0], iv->rows[iv->n_rows - 1], iv->part_lo,
                  iv->part_hi, iv->op == CHI_OP_COPY ? iv->source : -1, iv->source_rows ? " mapped" : "", iv->key_lo,
                  iv->key_hi, (double)iv->scale);
    }
  }
}

/* Cells of causal maps as branches of a plan; see trace.h. */
#include <string.h>

#include "analyze/trace_internal.h"

enum { LAYERS, HEADS, ONCE };
static const struct {
  chi_site site, severed; /* severed == site: nothing is */
  int steps;
} kSite[CHI_TRACE_SITES] = {
#define CHI_TRACE_ROW(E, name, site, severed, steps, doc) {CHI_SITE_##site, CHI_SITE_##severed, steps},
    CHI_TRACE_SITE_TABLE(CHI_TRACE_ROW)
#undef CHI_TRACE_ROW
};
const char *const chi_trace_site_name[CHI_TRACE_SITES] = {
#define CHI_TRACE_ROW(E, name, site, severed, steps, doc) name,
    CHI_TRACE_SITE_TABLE(CHI_TRACE_ROW)
#undef CHI_TRACE_ROW
};
const char *const chi_trace_site_doc[CHI_TRACE_SITES] = {
#define CHI_TRACE_ROW(E, name, site, severed, steps, doc) doc,
    CHI_TRACE_SITE_TABLE(CHI_TRACE_ROW)
#undef CHI_TRACE_ROW
};
const char *const chi_trace_source_name[CHI_TRACE_SOURCES] = {"own", "donor", "noise"};

int chi_trace_steps(const chi_trace *t, int site) {
  int L = site == CHI_TRACE_PATH && t->opts.path.part != CHI_PATH_OUT ? t->opts.path.layer : t->n_layers;
  return kSite[site].steps == LAYERS ? L : kSite[site].steps == HEADS ? L * t->n_heads : 1;
}

void chi_trace_step(const chi_trace *t, int site, int step, int *layer, int *head) {
  *head = kSite[site].steps == HEADS ? step % t->n_heads : -1;
  *layer = kSite[site].steps == HEADS ? step / t->n_heads : kSite[site].steps == ONCE ? -1 : step;
}

int chii_samples(const chi_trace *t, int source) { /* a donor's value in the clean run does not depend on the sample */
  return source == CHI_TRACE_DONOR && t->opts.noise_direction ? 1 : t->corruption.n;
}

/* ---- runs ------------------------------------------------------------------------------------------------ */
int chii_cells_capture(chii_cells *c, const chi_trace *t, int branch, chii_cell owner, chi_err *err) {
  int32_t rows[256], n = t->n_target < 1 ? 1 : t->n_target;
  for (int32_t i = 0; i < n; i++) rows[i] = t->prompt->n_rows - 1 + i;
  int rc = chi_grow((void **)&c->owner, &c->cap, c->n + 1, sizeof *c->owner, err);
  if (rc) return rc;
  c->owner[c->n++] = owner;
  return chi_plan_capture(
      c->plan,
      &(chi_capture){
          .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = n},
      NULL, err);
}

static int add_root(const chi_trace *t, chi_plan *p, const chi_prompt *picture, int *branch, chi_err *err) {
  chi_input in = chi_prompt_input(t->prompt);
  in.tokens = t->tokens;
  in.n_rows = t->n_rows_total;
  in.pixels = picture->pixels;
  return chi_plan_root(p, &in, branch, err);
}

static int add_corrupted(const chi_trace *t, chi_plan *p, int clean, int i, int *branch, chi_err *err) {
  const chi_corruption *c = &t->corruption;
  if (c->kind == CHI_CORRUPT_PICTURE) return add_root(t, p, c->picture[i], branch, err);
  int rc = chi_plan_child(p, clean, branch, err);
  if (rc) return rc;
  int64_t d = t->model->net.decoder.spec.d;
  chi_intervention iv = {.stack = CHI_DECODER, .site = CHI_SITE_EMBED, .rows = c->rows, .n_rows = c->span};
  if (c->noise) {
    iv.op = CHI_OP_ADD;
    iv.scale = 1;
    iv.value = c->noise + (int64_t)i * c->span * d;
    iv.value_rows = c->span;
  } else {
    iv.op = CHI_OP_TOKEN;
    iv.tokens = c->tokens + (int64_t)i * c->span;
  }
  return chi_plan_intervene(p, *branch, &iv, c->noise ? d : 0, err);
}

/* The same rows about the same picture. */
static bool same_clean(const chi_trace *a, const chi_trace *b) {
  return a->prompt == b->prompt && a->n_rows_total == b->n_rows_total &&
         memcmp(a->tokens, b->tokens, (size_t)a->n_rows_total * sizeof *a->tokens) == 0;
}

int chii_cells_start(chii_cells *c, chi_trace *const *t, int n, chi_prompt *const *const *donors,
                     const int32_t *n_donors, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_plan_new(&c->plan, err));
  c->n_jobs = n;
  c->run = chi_arena_array(&c->arena, (size_t)n, sizeof *c->run, err);
  CHI_TRY(c->run ? 0 : CHI_ERR_MEMORY);
  for (int j = 0; j < n; j++) {
    struct chii_runs *r = &c->run[j];
    int twin = 0;
    if (!t[j]) continue;
    r->corrupt = chi_arena_array(&c->arena, (size_t)t[j]->corruption.n, sizeof *r->corrupt, err);
    r->donor = chi_arena_array(&c->arena, (size_t)n_donors[j], sizeof *r->donor, err);
    CHI_TRY(r->corrupt && r->donor ? 0 : CHI_ERR_MEMORY);
    while (twin < j && !(t[twin] && same_clean(t[twin], t[j]))) twin++;
    r->clean = c->run[twin].clean;
    if (twin == j) CHI_TRY(add_root(t[j], c->plan, t[j]->prompt, &r->clean, err));
    for (int i = 0; i < t[j]->corruption.n; i++)
      CHI_TRY(add_corrupted(t[j], c->plan, r->clean, i, &r->corrupt[i], err));
    for (int i = 0; i < n_donors[j]; i++) CHI_TRY(add_root(t[j], c->plan, donors[j][i], &r->donor[i], err));
  }
out:
  return rc;
}

void chii_cells_free(chii_cells *c) {
  chi_plan_free(c->plan);
  chi_free(c->owner);
  chi_arena_free(&c->arena);
  memset(c, 0, sizeof *c);
}

/* ---- cells ----------------------------------------------------------------------------------------------- */
/* Copies from `from` what a site gave there: layers [lo, hi). */
static int copy(chi_plan *p, int branch, int from, chi_site site, int lo, int hi, int part, const int32_t *rows,
                int32_t n, chi_err *err) {
  chi_intervention iv = {.op = CHI_OP_COPY,
                         .stack = CHI_DECODER,
                         .site = site,
                         .layer_lo = lo,
                         .layer_hi = hi,
                         .rows = rows,
                         .n_rows = n,
                         .part_lo = part < 0 ? 0 : part,
                         .part_hi = part + 1,
                         .source = from};
  return lo < hi ? chi_plan_intervene(p, branch, &iv, 0, err) : 0;
}

/* A random-site draw: null_cells different (layer, row) places among those that can differ from the corrupted run, as
 * likely each (Floyd's algorithm). The same draw of two sites with as many places is the same places. */
static int add_draw(const chi_trace *t, chi_plan *p, int branch, int from, chii_cell c, chi_err *err) {
  int rc = 0, k = t->null_cells[c.site], n = 0, layer, head;
  int32_t first = chii_first_live(t), per = t->n_tokens - first, all = per * chi_trace_steps(t, c.site);
  int *taken = chi_calloc((size_t)k, sizeof *taken, err);
  if (!taken) return CHI_ERR_MEMORY;
  for (int j = all - k; j < all; j++) {
    int u = (int)(chi_rng_u32(t->opts.null_seed, 77, (uint32_t)c.row, (uint32_t)j) % (uint32_t)(j + 1));
    for (int i = 0; i < n; i++)
      if (taken[i] == u) u = j;
    taken[n++] = u;
    c.step = u / per;
    chi_trace_step(t, c.site, c.step, &layer, &head);
    const int32_t *row = &t->rows[first + u % per];
    CHI_TRY(copy(p, branch, from, kSite[c.site].site, layer, layer + 1, head, row, 1, err));
  }
out:
  chi_free(taken);
  return rc;
}

/* A path is two branches: `probe`, in which the sender's value can reach the receiver on the wanted way only, and the
 * run that takes the receiver's input from it. With the logits as receiver the probe is the run. */
static int add_path(const chi_trace *t, chi_plan *p, int base, int from, chii_cell c, int *branch, chi_err *err) {
  static const chi_site kInput[] = {CHI_SITE_Q, CHI_SITE_K, CHI_SITE_V};
  const chi_path *to = &t->opts.path;
  int rc = 0, layer, head, probe, part = to->head, end = to->part == CHI_PATH_OUT ? t->n_layers : to->layer;
  const int32_t *rows = t->cell_rows[c.row], *frozen = rows;
  int32_t n = t->n_cell[c.row], n_frozen = n;
  if (to->part == CHI_PATH_OUT) { /* rows behind the cell's would carry it on to the last */
    frozen = t->every + rows[0];
    n_frozen = t->n_rows_total - rows[0];
  }
  chi_trace_step(t, c.site, c.step, &layer, &head);
  CHI_TRY(chi_plan_child(p, base, &probe, err));
  CHI_TRY(copy(p, probe, from, CHI_SITE_HEAD_OUT, layer, layer + 1, head, rows, n, err));
  CHI_TRY(copy(p, probe, base, CHI_SITE_ATTN_OUT, layer + 1, end, -1, frozen, n_frozen, err));
  if (to->direct) CHI_TRY(copy(p, probe, base, CHI_SITE_MLP_OUT, layer, end, -1, frozen, n_frozen, err));
  *branch = probe;
  if (to->part == CHI_PATH_OUT) goto out;
  if (to->part != CHI_PATH_Q) part /= t->n_heads / t->model->net.decoder.spec.kv_heads;
  CHI_TRY(chi_plan_child(p, base, branch, err));
  CHI_TRY(copy(p, *branch, probe, kInput[to->part], to->layer, to->layer + 1, part, rows, n, err));
out:
  return rc;
}

/* Rows before the corruption are the same in the clean and the corrupted run, to the bit: what is put back there is
 * what stands there. */
static bool changes_nothing(const chi_trace *t, chii_cell c) {
  const chi_corruption *k = &t->corruption;
  if (c.source != CHI_TRACE_OWN && c.source != CHI_TRACE_NOISE) return false;
  return k->kind != CHI_CORRUPT_PICTURE && k->span > 0 && t->cell_rows[c.row][t->n_cell[c.row] - 1] < k->rows[0];
}

static int add_cell(chii_cells *cs, const chi_trace *t, chii_cell c, chi_err *err) {
  int rc = 0, branch, layer, head;
  const struct chii_runs *r = &cs->run[c.job];
  int corrupt = r->corrupt[c.sample];
  bool noise = c.source == CHI_TRACE_NOISE || t->opts.noise_direction;
  int base = noise ? r->clean : corrupt;
  int from = c.source == CHI_TRACE_DONOR ? r->donor[0] : noise ? corrupt : r->clean;
  if (c.site == CHI_TRACE_PATH) {
    CHI_TRY(add_path(t, cs->plan, base, from, c, &branch, err));
    return chii_cells_capture(cs, t, branch, c, err);
  }
  CHI_TRY(chi_plan_child(cs->plan, base, &branch, err));
  if (c.source == CHII_NULL) {
    CHI_TRY(add_draw(t, cs->plan, branch, from, c, err));
  } else if (!changes_nothing(t, c)) {
    const int32_t *rows = t->cell_rows[c.row];
    chi_trace_step(t, c.site, c.step, &layer, &head);
    int at = c.site * t->n_layers + (layer < 0 ? 0 : layer);
    chi_site severed = kSite[c.site].severed;
    CHI_TRY(
        copy(cs->plan, branch, from, kSite[c.site].site, t->lo[at], t->hi[at] + 1, head, rows, t->n_cell[c.row], err));
    if (severed != kSite[c.site].site) /* the rows' later ones give what they gave in `base`, whatever now comes in */
      CHI_TRY(copy(cs->plan, branch, base, severed, layer + 1, t->n_layers, -1, rows, t->n_cell[c.row], err));
  }
  CHI_TRY(chii_cells_capture(cs, t, branch, c, err));
out:
  return rc;
}

/* Cells come in blocks: one for each source and site, then one for each site with random draws. */
typedef struct block {
  int source, site;
  int64_t per, n; /* cells of one sample; of all */
} block;

static int blocks(const chi_trace *t, block out[(CHI_TRACE_SOURCES + 1) * CHI_TRACE_SITES]) {
  int n = 0;
  for (int src = 0; src <= CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      bool draw = src == CHII_NULL;
      if (draw ? !t->null[s] : !t->cell[src][s]) continue;
      int64_t per = draw ? t->opts.null_draws : (int64_t)chi_trace_steps(t, s) * t->n_rows;
      out[n++] = (block){src, s, per, per * chii_samples(t, src)};
    }
  return n;
}

int64_t chii_cell_count(const chi_trace *t) {
  block b[(CHI_TRACE_SOURCES + 1) * CHI_TRACE_SITES];
  int64_t sum = 0;
  for (int n = blocks(t, b), i = 0; i < n; i++) sum += b[i].n;
  return sum;
}

int chii_cells_add(chii_cells *c, const chi_trace *t, int job, int64_t first, int64_t step, chi_err *err) {
  block b[(CHI_TRACE_SOURCES + 1) * CHI_TRACE_SITES];
  int rc = 0, n = blocks(t, b);
  int64_t i = first, before = 0;
  for (int k = 0; k < n; before += b[k].n, k++)
    for (; i < before + b[k].n; i += step) {
      int64_t at = i - before, in = at % b[k].per;
      bool draw = b[k].source == CHII_NULL;
      chii_cell cell = {.job = job,
                        .source = b[k].source,
                        .site = b[k].site,
                        .step = draw ? 0 : (int)(in / t->n_rows),
                        .row = (int)(draw ? in : in % t->n_rows),
                        .sample = (int)(at / b[k].per)};
      CHI_TRY(add_cell(c, t, cell, err));
    }
out:
  return rc;
}

int chi_trace_plan(chi_plan **out, const chi_trace *t, chi_err *err) {
  int rc = 0;
  chii_cells c = {0};
  int32_t n_donors = t->donor ? 1 : 0;
  chi_trace copy = *t, *const list[1] = {&copy};
  chi_prompt *const donor[1] = {t->donor};
  chi_prompt *const *const donors[1] = {donor};
  CHI_TRY(chii_cells_start(&c, list, 1, donors, &n_donors, err));
  CHI_TRY(chii_cells_add(&c, t, 0, 0, 1, err));
  *out = c.plan;
  c.plan = NULL;
out:
  chii_cells_free(&c);
  return rc;
}

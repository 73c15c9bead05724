/* Causal maps as plans; see trace.h. */
#include "analyze/trace.h"

#include <math.h>
#include <string.h>

const char *const chi_trace_site_name[CHI_TRACE_SITES] = {"mlp", "attn", "hidden"};
static const chi_site kSite[CHI_TRACE_SITES] = {CHI_SITE_MLP_OUT, CHI_SITE_ATTN_OUT, CHI_SITE_RESID_POST};

typedef struct cell {
  int source, site, layer, row, sample;
} cell;
enum { kClean = -1, kCorrupt = -2, kDonor = -3 }; /* cell.site of the runs that are no cells */

/* A plan of some cells, and what each of its captures belongs to. */
typedef struct cell_plan {
  chi_plan *plan;
  cell *owner; /* per capture */
  size_t n, cap;
  int clean, donor, *corrupt; /* branches; corrupt[n samples] */
} cell_plan;

/* Rows of logits that wait until there are enough for all threads: what is made of a row costs two exponentials a
 * word. */
enum { kBatch = 16 };
typedef struct waiting {
  int capture;
  int32_t i;
  double later; /* i > 0: log-probability of that target token */
} waiting;

/* What the captured logits become. */
typedef struct receiver {
  chi_trace *t;
  const cell_plan *cp;
  double *clean_logp; /* filled from the clean run when collect_clean */
  float *first;       /* logits of clean and corrupted runs in the first pass: [1 + n][vocab] */
  double *joint;      /* per capture: sum of log-probabilities of the later target tokens */
  uint64_t *hash;     /* per capture, when wanted */
  chi_metrics *m;     /* per capture */
  float *rows;        /* [kBatch][width] */
  waiting wait[kBatch];
  int n_wait;
  int64_t width;
} receiver;

/* ---- plans ----------------------------------------------------------------------------------------------- */
static int32_t last_row(const chi_trace *t) { return t->prompt->n_rows - 1; }

static int add_capture(cell_plan *cp, const chi_trace *t, int branch, cell owner, chi_err *err) {
  int32_t rows[256], n = t->n_target < 1 ? 1 : t->n_target;
  for (int32_t i = 0; i < n; i++) rows[i] = last_row(t) + i;
  int rc = chi_grow((void **)&cp->owner, &cp->cap, cp->n + 1, sizeof *cp->owner, err);
  if (rc) return rc;
  cp->owner[cp->n++] = owner;
  return chi_plan_capture(
      cp->plan,
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

static int add_corrupted(const chi_trace *t, cell_plan *cp, int i, chi_err *err) {
  const chi_corruption *c = &t->corruption;
  if (c->kind == CHI_CORRUPT_PICTURE) return add_root(t, cp->plan, c->picture, &cp->corrupt[i], err);
  int rc = chi_plan_child(cp->plan, cp->clean, &cp->corrupt[i], err);
  if (rc) return rc;
  int32_t rows[1024];
  int64_t d = t->model->net.decoder.spec.d;
  for (int32_t k = 0; k < c->span; k++) rows[k] = t->prompt->span_lo + k;
  chi_intervention iv = {.stack = CHI_DECODER, .site = CHI_SITE_EMBED, .rows = rows, .n_rows = c->span};
  if (c->noise) {
    iv.op = CHI_OP_ADD;
    iv.scale = 1;
    iv.value = c->noise + (int64_t)i * c->span * d;
    iv.value_rows = c->span;
  } else {
    iv.op = CHI_OP_TOKEN;
    iv.tokens = c->tokens + (int64_t)i * c->span;
  }
  return chi_plan_intervene(cp->plan, cp->corrupt[i], &iv, c->noise ? d : 0, err);
}

/* Clean, corrupted (all samples) and donor runs. */
static int start_plan(const chi_trace *t, cell_plan *cp, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_plan_new(&cp->plan, err));
  cp->corrupt = chi_calloc((size_t)t->corruption.n, sizeof *cp->corrupt, err);
  CHI_TRY(cp->corrupt ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(add_root(t, cp->plan, t->prompt, &cp->clean, err));
  for (int i = 0; i < t->corruption.n; i++) CHI_TRY(add_corrupted(t, cp, i, err));
  cp->donor = -1;
  if (t->donor) CHI_TRY(add_root(t, cp->plan, t->donor, &cp->donor, err));
out:
  return rc;
}

static void end_plan(cell_plan *cp) {
  chi_plan_free(cp->plan);
  chi_free(cp->owner);
  chi_free(cp->corrupt);
  memset(cp, 0, sizeof *cp);
}

/* One cell: denoise restores into the corrupted run what the source holds; noise puts the corrupted value into the
 * clean run (the donor control there puts the donor's). */
static int add_cell(const chi_trace *t, cell_plan *cp, cell c, chi_err *err) {
  int branch, rc;
  int corrupt = cp->corrupt[c.sample];
  int from = c.source == CHI_TRACE_DONOR ? cp->donor : t->opts.noise_direction ? corrupt : cp->clean;
  if ((rc = chi_plan_child(cp->plan, t->opts.noise_direction ? cp->clean : corrupt, &branch, err)) != 0) return rc;
  int at = c.site * t->n_layers + c.layer;
  int32_t rows[1024]; /* as many as a constraint may have */
  for (int32_t i = 0; i < t->n_cell[c.row]; i++) rows[i] = t->rows[c.row] + i;
  chi_intervention iv = {.op = CHI_OP_COPY,
                         .stack = CHI_DECODER,
                         .site = kSite[c.site],
                         .layer_lo = t->lo[at],
                         .layer_hi = t->hi[at] + 1,
                         .rows = rows,
                         .n_rows = t->n_cell[c.row],
                         .source = from};
  if ((rc = chi_plan_intervene(cp->plan, branch, &iv, 0, err)) != 0) return rc;
  return add_capture(cp, t, branch, c, err);
}

static int samples_of(const chi_trace *t,
                      int source) { /* in direction noise the donor's cells do not depend on the sample */
  return source == CHI_TRACE_DONOR && t->opts.noise_direction ? 1 : t->corruption.n;
}

static int64_t cell_count(const chi_trace *t) {
  int64_t n = 0;
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      if (t->cell[src][s]) n += (int64_t)samples_of(t, src) * t->n_layers * t->n_rows;
  return n;
}

static cell nth_cell(const chi_trace *t, int64_t i) {
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      int64_t n = t->cell[src][s] ? (int64_t)samples_of(t, src) * t->n_layers * t->n_rows : 0,
              per = (int64_t)t->n_layers * t->n_rows;
      if (i < n) return (cell){src, s, (int)(i % per / t->n_rows), (int)(i % t->n_rows), (int)(i / per)};
      i -= n;
    }
  return (cell){0};
}

static int all_cells(const chi_trace *t, cell_plan *cp, int64_t step, int64_t first, chi_err *err) {
  int rc = start_plan(t, cp, err);
  int64_t n = cell_count(t);
  for (int64_t i = first; rc == 0 && i < n; i += step) rc = add_cell(t, cp, nth_cell(t, i), err);
  return rc;
}

int chi_trace_plan(chi_plan **out, const chi_trace *t, chi_err *err) {
  cell_plan cp = {0};
  int rc = all_cells(t, &cp, 1, 0, err);
  if (rc == 0) {
    *out = cp.plan;
    cp.plan = NULL;
  }
  end_plan(&cp);
  return rc;
}

/* ---- running --------------------------------------------------------------------------------------------- */
static void measure(void *ud, int64_t at) {
  receiver *r = ud;
  waiting *w = &r->wait[at];
  const float *v = r->rows + at * r->width;
  if (w->i > 0) {
    w->later = (double)v[r->t->target_ids[w->i]] - chi_logsumexp(v, r->width);
    return;
  }
  r->m[w->capture] = chi_metrics_of(v, r->width, r->t->target, r->t->counter, r->clean_logp);
  if (r->hash && r->t->n_target <= 1)
    r->hash[w->capture] = chi_fnv64(v, (size_t)r->width * sizeof *v, r->hash[w->capture]);
}

static void measure_waiting(receiver *r) {
  chi_parallel_for(r->n_wait, measure, r);
  for (int k = 0; k < r->n_wait; k++) /* sums grow in the order in which the rows came */
    if (r->wait[k].i > 0) r->joint[r->wait[k].capture] += r->wait[k].later;
  r->n_wait = 0;
}

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  receiver *r = ud;
  const cell *c = &r->cp->owner[capture];
  size_t bytes = (size_t)width * sizeof *v;
  if (r->hash && r->t->n_target > 1) r->hash[capture] = chi_fnv64(v, bytes, r->hash[capture]);
  if (r->first && i > 0) { /* later tokens of the target text */
    r->joint[capture] += (double)v[r->t->target_ids[i]] - chi_logsumexp(v, width);
    return 0;
  }
  if (r->first) {
    memcpy(r->first + (c->site == kClean ? 0 : c->site == kDonor ? 1 : 2 + c->sample) * width, v, bytes);
    return 0;
  }
  memcpy(r->rows + r->n_wait * width, v, bytes);
  r->width = width;
  r->wait[r->n_wait++] = (waiting){.capture = capture, .i = i};
  if (r->n_wait == kBatch) measure_waiting(r);
  return 0;
}

static int run(const chi_trace *t, const cell_plan *cp, receiver *r, chi_executor ex, const char *what,
               chi_run_stats *stats, chi_err *err) {
  chi_run_opts o = {.executor = ex, .mem = t->opts.mem, .on_capture = take, .ud = r, .what = what, .stats = stats};
  if (!r->first && !(r->rows = chi_calloc((size_t)t->model->net.decoder.vocab * kBatch, sizeof *r->rows, err)))
    return CHI_ERR_MEMORY;
  int rc = chi_run_plan(&t->model->net, cp->plan, &o, err);
  if (rc == 0) measure_waiting(r);
  chi_free(r->rows);
  r->rows = NULL;
  return rc;
}

static chi_metrics with_joint(const chi_trace *t, chi_metrics m, double later) {
  m.joint = t->n_target > 0 ? m.logp + later : NAN;
  return m;
}

static void add_metrics(chi_metrics *sum, const chi_metrics *m, double share) {
  double *a = (double *)sum;
  const double *b = (const double *)m;
  for (size_t i = 0; i < sizeof *m / sizeof(double); i++) a[i] += share * b[i];
}

/* First pass: clean, corrupted candidates and donor. Settles target, corruption, base metrics. */
static int first_pass(chi_trace *t, double *clean_logp, chi_err *err) {
  int rc = 0;
  int n = t->corruption.n;
  int64_t V = t->model->net.decoder.vocab;
  cell_plan cp = {0};
  receiver r = {.t = t, .cp = &cp};
  r.first = chi_calloc((size_t)(n + 2) * (size_t)V, sizeof *r.first, err);
  r.joint = chi_calloc((size_t)n + 2, sizeof *r.joint, err);
  CHI_TRY(r.first && r.joint ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(start_plan(t, &cp, err));
  CHI_TRY(add_capture(&cp, t, cp.clean, (cell){.site = kClean}, err));
  if (t->donor) CHI_TRY(add_capture(&cp, t, cp.donor, (cell){.site = kDonor}, err));
  for (int i = 0; i < n; i++) CHI_TRY(add_capture(&cp, t, cp.corrupt[i], (cell){.site = kCorrupt, .sample = i}, err));
  CHI_TRY(run(t, &cp, &r, CHI_EXEC_SWEEP, NULL, NULL, err));
  const float *clean = r.first, *donor = r.first + V, *corrupt = r.first + 2 * V;
  const double *later = r.joint + (t->donor ? 2 : 1);
  if (t->target < 0) t->target = chi_argmax(clean, V);
  int keep = 0;
  if (t->corruption.choose) {
    double best = INFINITY;
    for (int i = 0; i < n; i++) { /* the first whose answer differs, else the one that hurts most */
      double p = chi_metrics_of(corrupt + i * V, V, t->target, -1, NULL).p;
      bool other = chi_argmax(corrupt + i * V, V) != t->target;
      if (other) keep = i;
      if (!other && p < best) best = p, keep = i;
      if (other) break;
    }
    chi_corruption_keep(&t->corruption, t->prompt, keep);
  }
  t->counter = chi_argmax(corrupt + keep * V, V);
  double lse = chi_logsumexp(clean, V);
  for (int64_t i = 0; i < V; i++) clean_logp[i] = (double)clean[i] - lse;
  t->clean = with_joint(t, chi_metrics_of(clean, V, t->target, t->counter, clean_logp), r.joint[0]);
  if (t->donor) t->donor_run = with_joint(t, chi_metrics_of(donor, V, t->target, t->counter, clean_logp), r.joint[1]);
  for (int i = 0; i < t->corruption.n; i++) {
    chi_metrics m =
        with_joint(t, chi_metrics_of(corrupt + (keep + i) * V, V, t->target, t->counter, clean_logp), later[keep + i]);
    add_metrics(&t->corrupt, &m, 1.0 / t->corruption.n);
  }
out:
  end_plan(&cp);
  chi_free(r.first);
  chi_free(r.joint);
  return rc;
}

/* Second pass: all cells in one sweep. hash: of every cell's logits, for the check. */
static int second_pass(chi_trace *t, double *clean_logp, uint64_t **hash, chi_err *err) {
  int rc = 0;
  size_t n = (size_t)cell_count(t);
  cell_plan cp = {0};
  receiver r = {.t = t, .cp = &cp, .clean_logp = clean_logp};
  r.m = chi_calloc(n, sizeof *r.m, err);
  r.joint = chi_calloc(n, sizeof *r.joint, err);
  if (t->opts.check > 0) r.hash = chi_calloc(n, sizeof *r.hash, err);
  CHI_TRY(r.m && r.joint && (r.hash || t->opts.check <= 0) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(all_cells(t, &cp, 1, 0, err));
  CHI_TRY(run(t, &cp, &r, CHI_EXEC_SWEEP, "tracing", &t->stats, err));
  for (size_t i = 0; i < cp.n; i++) {
    const cell *c = &cp.owner[i];
    chi_metrics m = with_joint(t, r.m[i], r.joint[i]);
    add_metrics(&t->cell[c->source][c->site][c->layer * t->n_rows + c->row], &m, 1.0 / samples_of(t, c->source));
  }
  *hash = r.hash;
  r.hash = NULL;
out:
  end_plan(&cp);
  chi_free(r.m);
  chi_free(r.joint);
  chi_free(r.hash);
  return rc;
}

/* Some cells again, each as a full forward; their logits must have the sweep's bits. */
static int check_cells(chi_trace *t, double *clean_logp, const uint64_t *hash, chi_err *err) {
  int rc = 0;
  int64_t n = cell_count(t), step;
  int count = (int64_t)t->opts.check < n ? t->opts.check : (int)n;
  cell_plan cp = {0};
  receiver r = {.t = t, .cp = &cp, .clean_logp = clean_logp};
  if (count <= 0) return 0;
  step = n / count;
  CHI_TRY(all_cells(t, &cp, step, step / 2, err));
  r.m = chi_calloc(cp.n, sizeof *r.m, err);
  r.joint = chi_calloc(cp.n, sizeof *r.joint, err);
  r.hash = chi_calloc(cp.n, sizeof *r.hash, err);
  CHI_TRY(r.m && r.joint && r.hash ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(run(t, &cp, &r, CHI_EXEC_DENSE, "checking", NULL, err));
  for (size_t i = 0; i < cp.n && t->checked < count; i++) {
    t->checked++;
    t->identical += r.hash[i] == hash[step / 2 + (int64_t)i * step];
  }
out:
  end_plan(&cp);
  chi_free(r.m);
  chi_free(r.joint);
  chi_free(r.hash);
  return rc;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */
static void set_windows(chi_trace *t) {
  int W = t->opts.window, L = t->n_layers;
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    for (int l = 0; l < L; l++) {
      int lo = l, hi = l; /* inclusive */
      if (s != CHI_TRACE_HIDDEN && W > 1 && t->opts.released_window)
        lo = l - W, hi = l + W;
      else if (s != CHI_TRACE_HIDDEN && W > 1)
        lo = l - W / 2, hi = l + (W + 1) / 2 - 1;
      t->lo[s * L + l] = lo < 0 ? 0 : lo;
      t->hi[s * L + l] = hi > L - 1 ? L - 1 : hi;
    }
}

/* Target tokens in context: what the tokenizer adds to the prompt's tokens when the answer follows it. */
static int set_target(chi_trace *t, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  chi_tokens a = {0}, b = {0};
  const char *text = t->opts.target_text;
  t->n_rows_total = t->prompt->n_rows;
  if (text) {
    CHI_TRY(chi_encode(t->model->tok, t->prompt->text, strlen(t->prompt->text), true, &a, err));
    chi_str_add(&s, t->prompt->text);
    if (text[0] != ' ' && s.len && s.s[s.len - 1] != ' ') chi_str_add(&s, " ");
    chi_str_add(&s, text);
    CHI_TRY(s.failed ? CHI_ERR_MEMORY : chi_encode(t->model->tok, s.s, s.len, true, &b, err));
    if (b.n <= a.n || b.n - a.n > 200 || memcmp(a.id, b.id, a.n * sizeof *a.id) != 0) {
      rc = chi_fail(err, CHI_ERR_ARG, "the target text '%s' has no tokens of its own behind this prompt", text);
      goto out;
    }
    t->n_target = (int32_t)(b.n - a.n);
    t->target_ids = chi_arena_array(&t->arena, (size_t)t->n_target, sizeof *t->target_ids, err);
    CHI_TRY(t->target_ids ? 0 : CHI_ERR_MEMORY);
    memcpy(t->target_ids, b.id + a.n, (size_t)t->n_target * sizeof *b.id);
    t->n_rows_total += t->n_target - 1;
    t->target = t->target_ids[0];
  }
  t->tokens = chi_arena_array(&t->arena, (size_t)t->n_rows_total, sizeof *t->tokens, err);
  CHI_TRY(t->tokens ? 0 : CHI_ERR_MEMORY);
  memcpy(t->tokens, t->prompt->tokens, (size_t)t->prompt->n_rows * sizeof *t->tokens);
  for (int32_t i = 0; i + 1 < t->n_target; i++) t->tokens[t->prompt->n_rows + i] = t->target_ids[i];
out:
  chi_str_free(&s);
  chi_tokens_free(&a);
  chi_tokens_free(&b);
  return rc;
}

static int set_up(chi_trace *t, chi_err *err) {
  int rc = 0;
  const chi_prompt *p = t->prompt;
  const chi_trace_opts *o = &t->opts;
  if (o->window < 1) return chi_fail(err, CHI_ERR_ARG, "--window must be at least 1");
  if (p->span_hi - p->span_lo > 1024)
    return chi_fail(err, CHI_ERR_ARG, "the constraint is %d tokens long; 1,024 are the limit", p->span_hi - p->span_lo);
  t->n_layers = t->model->net.decoder.spec.layers;
  int32_t first = o->all_rows || p->n_image == 0 ? 0 : p->image_row + p->n_image - 1;
  bool span = o->span_cell && p->span_hi > p->span_lo && p->span_lo >= first;
  t->n_rows = p->n_rows - first - (span ? p->span_hi - p->span_lo - 1 : 0);
  t->rows = chi_arena_array(&t->arena, (size_t)t->n_rows, sizeof *t->rows, err);
  t->n_cell = chi_arena_array(&t->arena, (size_t)t->n_rows, sizeof *t->n_cell, err);
  t->lo = chi_arena_array(&t->arena, (size_t)(CHI_TRACE_SITES * t->n_layers), sizeof *t->lo, err);
  t->hi = chi_arena_array(&t->arena, (size_t)(CHI_TRACE_SITES * t->n_layers), sizeof *t->hi, err);
  CHI_TRY(t->rows && t->n_cell && t->lo && t->hi ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0, r = first; i < t->n_rows; i++) {
    t->rows[i] = r;
    t->n_cell[i] = span && r == p->span_lo ? p->span_hi - p->span_lo : 1;
    r += t->n_cell[i];
  }
  set_windows(t);
  CHI_TRY(set_target(t, err));
  CHI_TRY(chi_corruption_make(&t->corruption, t->model, p, &o->corrupt, err));
  if (o->donor) {
    if (!p->pixels) return chi_fail(err, CHI_ERR_ARG, "--donor is a picture; this prompt has none");
    CHI_TRY(chi_prompt_replace(&t->donor, t->model, p, p->constraint, err)); /* a copy */
    CHI_TRY(chi_prompt_picture(t->donor, t->model, o->donor, err));
  }
  for (int src = 0; src < (t->donor ? 2 : 1); src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      if (!o->site[s]) continue;
      t->cell[src][s] =
          chi_arena_array(&t->arena, (size_t)t->n_layers * (size_t)t->n_rows, sizeof *t->cell[src][s], err);
      CHI_TRY(t->cell[src][s] ? 0 : CHI_ERR_MEMORY);
    }
out:
  return rc;
}

int chi_trace_run(chi_trace **out, const chi_model *m, const chi_prompt *p, const chi_trace_opts *o, chi_err *err) {
  int rc = 0;
  double *clean_logp = NULL;
  uint64_t *hash = NULL;
  chi_trace *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  t->model = m;
  t->prompt = p;
  t->opts = *o;
  t->target = o->target;
  CHI_TRY(set_up(t, err));
  CHI_TRY((clean_logp = chi_calloc((size_t)m->net.decoder.vocab, sizeof *clean_logp, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(first_pass(t, clean_logp, err));
  if (!(t->corrupt.p < t->clean.p))
    chi_log(
        CHI_LOG_WARN,
        "the corruption did not lower p(target) (%.4f clean, %.4f corrupted): this map shows no missing information",
        t->clean.p, t->corrupt.p);
  CHI_TRY(second_pass(t, clean_logp, &hash, err));
  CHI_TRY(check_cells(t, clean_logp, hash, err));
out:
  chi_free(clean_logp);
  chi_free(hash);
  if (rc)
    chi_trace_free(t);
  else
    *out = t;
  return rc;
}

void chi_trace_free(chi_trace *t) {
  if (!t) return;
  chi_corruption_free(&t->corruption);
  chi_prompt_free(t->donor);
  chi_arena_free(&t->arena);
  chi_free(t);
}

const chi_metrics *chi_trace_base(const chi_trace *t) { return t->opts.noise_direction ? &t->clean : &t->corrupt; }

const chi_metrics *chi_trace_at(const chi_trace *t, int source, int site, int layer, int row) {
  return &t->cell[source][site][layer * t->n_rows + row];
}

/* Causal maps: set-up, the passes, the check; see trace.h. One pass does unless candidates (corruptions, donors) must
 * be run before it is known which of them the cells use. */
#include <math.h>
#include <string.h>

#include "analyze/trace_internal.h"

enum { kMaxDonors = 8 };

/* Rows of logits that wait until there are enough for all threads: what is made of a row costs two exponentials a
 * word. */
enum { kBatch = 16 };
typedef struct waiting {
  int capture;
  int32_t i;
  double later; /* i > 0: log-probability of that target token */
} waiting;

/* A trace at work. */
typedef struct one {
  double *clean_of;              /* chi_clean_of: [2 vocab] */
  chi_prompt *donor[kMaxDonors]; /* candidates; the chosen one moves into the trace */
  const char *file[kMaxDonors];
  float *first;   /* logits of the runs that are no cells: clean, donors, corrupted, each [vocab]; until settled */
  double *later;  /* per run: log-probabilities of the later target tokens, summed */
  bool settled;   /* target, corruption, donor and the runs' metrics are known */
  uint64_t *hash; /* per cell, when wanted */
  int64_t at;     /* its first capture in the second pass */
} one;

/* What captured logits become. */
typedef struct work {
  const chi_model *m;
  chi_trace **t; /* [n]; NULL where the set-up failed */
  one *o;
  int32_t *n_donors;
  chi_prompt *const **donors;
  int n;
  chii_cells cp;
  double *joint;  /* per capture: sum of log-probabilities of the later target tokens */
  uint64_t *hash; /* per capture, or NULL */
  chi_metrics *got;
  float *rows; /* [kBatch][width] */
  waiting wait[kBatch];
  int n_wait;
  int64_t width;
  chi_arena arena;
} work;

/* ---- running --------------------------------------------------------------------------------------------- */
static void measure(void *ud, int64_t at) {
  work *w = ud;
  waiting *x = &w->wait[at];
  int job = w->cp.owner[x->capture].job;
  const chi_trace *t = w->t[job];
  const float *v = w->rows + at * w->width;
  if (x->i > 0) {
    x->later = (double)v[t->target_ids[x->i]] - chi_logsumexp(v, w->width);
    return;
  }
  w->got[x->capture] = chi_metrics_of(v, w->width, t->target, t->counter, w->o[job].clean_of);
  if (w->hash && t->n_target <= 1)
    w->hash[x->capture] = chi_fnv64(v, (size_t)w->width * sizeof *v, w->hash[x->capture]);
}

static void measure_waiting(work *w) {
  chi_parallel_for(w->n_wait, measure, w);
  for (int k = 0; k < w->n_wait; k++) /* sums grow in the order in which the rows came */
    if (w->wait[k].i > 0) w->joint[w->wait[k].capture] += w->wait[k].later;
  w->n_wait = 0;
}

static size_t budget(const work *w) {
  size_t mem = 0;
  for (int j = 0; j < w->n; j++)
    if (w->t[j] && (mem == 0 || (w->t[j]->opts.mem && w->t[j]->opts.mem < mem))) mem = w->t[j]->opts.mem;
  return mem;
}

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width);
static int run(work *w, chi_executor ex, const char *what, chi_run_stats *stats, chi_err *err) {
  chi_run_opts o = {.executor = ex, .mem = budget(w), .on_capture = take, .ud = w, .what = what, .stats = stats};
  return chi_run_plan(&w->m->net, w->cp.plan, &o, err);
}

/* Runs the cells that the plan holds; results are per capture. */
static int run_cells(work *w, bool hash, chi_executor ex, const char *what, chi_run_stats *stats, chi_err *err) {
  int rc = 0;
  chi_free(w->got);
  chi_free(w->joint);
  chi_free(w->hash);
  w->hash = NULL;
  w->got = chi_calloc(w->cp.n, sizeof *w->got, err);
  w->joint = chi_calloc(w->cp.n, sizeof *w->joint, err);
  if (hash) w->hash = chi_calloc(w->cp.n, sizeof *w->hash, err);
  if (!w->rows) w->rows = chi_calloc((size_t)w->m->net.decoder.vocab * kBatch, sizeof *w->rows, err);
  CHI_TRY(w->got && w->joint && w->rows && (w->hash || !hash) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(run(w, ex, what, stats, err));
  measure_waiting(w);
out:
  w->n_wait = 0;
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

/* ---- clean, donors and corrupted candidates --------------------------------------------------------------------- */
/* Of n candidates the first whose answer is another, else the one with the least p(target). */
static int choose(const float *logits, int n, int64_t V, int32_t target) {
  int keep = 0;
  double best = INFINITY;
  for (int i = 0; i < n; i++) {
    double p = chi_metrics_of(logits + i * V, V, target, -1, NULL).p;
    if (chi_argmax(logits + i * V, V) != target) return i;
    if (p < best) best = p, keep = i;
  }
  return keep;
}

/* Settles target, corruption, donor and the runs' metrics. */
static void settle(work *w, int j) {
  chi_trace *t = w->t[j];
  one *o = &w->o[j];
  int64_t V = w->m->net.decoder.vocab;
  int nd = w->n_donors[j], keep = 0;
  const float *clean = o->first, *donor = clean + V, *corrupt = donor + nd * V;
  const double *later = o->later + 1 + nd;
  if (t->target < 0) t->target = chi_argmax(clean, V);
  if (t->corruption.choose) {
    keep = choose(corrupt, t->corruption.n, V, t->target);
    chi_corruption_keep(&t->corruption, keep);
  }
  t->counter = chi_argmax(corrupt + keep * V, V);
  chi_clean_of(o->clean_of, clean, V);
  t->clean = with_joint(t, chi_metrics_of(clean, V, t->target, t->counter, o->clean_of), o->later[0]);
  if (nd) {
    int d = choose(donor, nd, V, t->target);
    t->donor_run = with_joint(t, chi_metrics_of(donor + d * V, V, t->target, t->counter, o->clean_of), o->later[1 + d]);
    t->donor = o->donor[d];
    t->donor_file = chi_arena_strdup(&t->arena, o->file[d], NULL);
    o->donor[d] = NULL;
  }
  for (int i = 0; i < t->corruption.n; i++) {
    chi_metrics m =
        with_joint(t, chi_metrics_of(corrupt + (keep + i) * V, V, t->target, t->counter, o->clean_of), later[keep + i]);
    add_metrics(&t->corrupt, &m, 1.0 / t->corruption.n);
  }
  chi_free(o->first); /* as large as all samples' logits */
  o->first = NULL;
  o->settled = true;
  if (!(t->corrupt.p < t->clean.p))
    chi_log(
        CHI_LOG_WARN,
        "the corruption did not lower p(target) (%.4f clean, %.4f corrupted): this map shows no missing information",
        t->clean.p, t->corrupt.p);
}

/* Place of a run that is no cell in its trace's arrays. */
static int64_t run_at(const work *w, const chii_cell *c) {
  if (c->site == CHII_CLEAN) return 0;
  return c->site == CHII_DONOR ? 1 + c->row : 1 + w->n_donors[c->job] + c->sample;
}

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  work *w = ud;
  const chii_cell *c = &w->cp.owner[capture];
  const chi_trace *t = w->t[c->job];
  size_t bytes = (size_t)width * sizeof *v;
  if (c->site < 0) {
    int64_t at = run_at(w, c);
    if (i > 0) /* later tokens of the target text */
      w->o[c->job].later[at] += (double)v[t->target_ids[i]] - chi_logsumexp(v, width);
    else
      memcpy(w->o[c->job].first + at * width, v, bytes);
    return 0;
  }
  if (!w->o[c->job].settled) settle(w, c->job); /* runs that are no cells come first in the plan */
  if (w->hash && t->n_target > 1) w->hash[capture] = chi_fnv64(v, bytes, w->hash[capture]);
  memcpy(w->rows + w->n_wait * width, v, bytes);
  w->width = width;
  w->wait[w->n_wait++] = (waiting){.capture = capture, .i = i};
  if (w->n_wait == kBatch) measure_waiting(w);
  return 0;
}

/* Asks for the runs that are no cells. */
static int capture_runs(work *w, chi_err *err) {
  int rc = 0;
  int64_t V = w->m->net.decoder.vocab;
  for (int j = 0; j < w->n; j++) {
    chi_trace *t = w->t[j];
    one *o = &w->o[j];
    if (!t) continue;
    size_t runs = (size_t)(1 + w->n_donors[j] + t->corruption.n);
    o->first = chi_calloc(runs * (size_t)V, sizeof *o->first, err);
    o->later = chi_calloc(runs, sizeof *o->later, err);
    o->clean_of = chi_calloc(2 * (size_t)V, sizeof *o->clean_of, err);
    CHI_TRY(o->first && o->later && o->clean_of ? 0 : CHI_ERR_MEMORY);
    const struct chii_runs *r = &w->cp.run[j];
    chii_cell own = {.job = j, .site = CHII_CLEAN};
    CHI_TRY(chii_cells_capture(&w->cp, t, r->clean, own, err));
    for (own.site = CHII_DONOR; own.row < w->n_donors[j]; own.row++)
      CHI_TRY(chii_cells_capture(&w->cp, t, r->donor[own.row], own, err));
    for (own.site = CHII_CORRUPT; own.sample < t->corruption.n; own.sample++)
      CHI_TRY(chii_cells_capture(&w->cp, t, r->corrupt[own.sample], own, err));
  }
out:
  return rc;
}

/* Behind the run: from here on the chosen donor is the trace's. */
static void settle_all(work *w) {
  for (int j = 0; j < w->n; j++) {
    if (!w->t[j]) continue;
    if (!w->o[j].settled) settle(w, j);
    w->n_donors[j] = w->t[j]->donor != NULL;
    w->donors[j] = &w->t[j]->donor;
  }
}

/* Are there candidates to choose from? */
static bool must_choose(const work *w) {
  for (int j = 0; j < w->n; j++)
    if (w->t[j] && (w->t[j]->corruption.choose || w->n_donors[j] > 1)) return true;
  return false;
}

static int first_pass(work *w, chi_err *err) {
  int rc = 0;
  CHI_TRY(chii_cells_start(&w->cp, w->t, w->n, w->donors, w->n_donors, err));
  CHI_TRY(capture_runs(w, err));
  CHI_TRY(run(w, CHI_EXEC_SWEEP, NULL, NULL, err));
  settle_all(w);
out:
  chii_cells_free(&w->cp);
  return rc;
}

/* ---- all cells in one sweep ------------------------------------------------------------------------------------- */
static int cells_pass(work *w, bool hash, bool runs_too, chi_err *err) {
  int rc = 0;
  chi_run_stats stats = {0};
  CHI_TRY(chii_cells_start(&w->cp, w->t, w->n, w->donors, w->n_donors, err));
  if (runs_too) CHI_TRY(capture_runs(w, err));
  for (int j = 0; j < w->n; j++) {
    if (!w->t[j]) continue;
    w->o[j].at = (int64_t)w->cp.n;
    CHI_TRY(chii_cells_add(&w->cp, w->t[j], j, 0, 1, err));
  }
  CHI_TRY(run_cells(w, hash, CHI_EXEC_SWEEP, "tracing", &stats, err));
  settle_all(w);
  for (size_t i = 0; i < w->cp.n; i++) {
    const chii_cell *c = &w->cp.owner[i];
    if (c->site < 0) continue;
    chi_trace *t = w->t[c->job];
    chi_metrics m = with_joint(t, w->got[i], w->joint[i]);
    chi_metrics *to =
        c->source == CHII_NULL ? &t->null[c->site][c->row] : &t->cell[c->source][c->site][c->step * t->n_rows + c->row];
    add_metrics(to, &m, 1.0 / chii_samples(t, c->source));
  }
  for (int j = 0; j < w->n; j++)
    if (w->t[j]) w->t[j]->stats = stats;
out:
  chii_cells_free(&w->cp);
  return rc;
}

/* Some cells again, each as a full forward; their logits must have the sweep's bits. */
static int check_cells(work *w, chi_err *err) {
  int rc = 0;
  uint64_t *hash = w->hash;
  w->hash = NULL;
  CHI_TRY(chii_cells_start(&w->cp, w->t, w->n, w->donors, w->n_donors, err));
  for (int j = 0; j < w->n; j++) {
    int64_t n = w->t[j] ? chii_cell_count(w->t[j]) : 0, count = w->t[j] ? w->t[j]->opts.check : 0;
    if (count > n) count = n;
    if (count <= 0) continue;
    int64_t step = n / count, before = (int64_t)w->cp.n;
    CHI_TRY(chii_cells_add(&w->cp, w->t[j], j, step / 2, step, err));
    for (int64_t i = 0; i < count; i++) hash[before + i] = hash[w->o[j].at + step / 2 + i * step];
    w->t[j]->checked = (int)count;
  }
  CHI_TRY(run_cells(w, true, CHI_EXEC_DENSE, "checking", NULL, err));
  for (size_t i = 0, k = 0; i < w->cp.n; i++, k++) {
    chi_trace *t = w->t[w->cp.owner[i].job];
    if (i && w->cp.owner[i].job != w->cp.owner[i - 1].job) k = 0;
    if ((int)k < t->checked) t->identical += w->hash[i] == hash[i];
  }
out:
  chi_free(hash);
  chii_cells_free(&w->cp);
  return rc;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */
/* Target tokens in context: what the tokenizer adds to the prompt's tokens when the answer follows it. */
static int set_target(chi_trace *t, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  chi_tokens a = {0}, b = {0};
  const char *text = t->opts.target_text;
  if (text) CHI_TRY((t->opts.target_text = text = chi_arena_strdup(&t->arena, text, err)) ? 0 : CHI_ERR_MEMORY);
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

/* Prompts about the donor candidates' pictures. One that cannot be read is passed over where there are others. */
static int load_donors(work *w, int j, chi_err *err) {
  int rc = 0;
  const chi_trace *t = w->t[j];
  const chi_trace_opts *o = &t->opts;
  const char *const keep[CHI_MAX_SPANS] = {0}, *const *list = o->donor ? &o->donor : o->donors;
  int32_t n = o->donor ? 1 : o->n_donors;
  chi_prompt *p = NULL;
  chi_err why = {0};
  if (n == 0) return 0;
  if (!t->prompt->pixels) return chi_fail(err, CHI_ERR_ARG, "a donor is a picture; this prompt has none");
  for (int32_t i = 0; i < n && w->n_donors[j] < kMaxDonors; i++) {
    CHI_TRY(chi_prompt_reword(&p, w->m, t->prompt, keep, err)); /* a copy */
    int bad = chi_prompt_picture(p, w->m, list[i], n == 1 ? err : why.code ? NULL : &why);
    bool own = !bad && n > 1 && strcmp(p->image_sha, t->prompt->image_sha) == 0;
    if (bad && n == 1) rc = bad;
    if (bad || own) {
      chi_prompt_free(p);
    } else {
      w->o[j].file[w->n_donors[j]] = list[i];
      w->o[j].donor[w->n_donors[j]++] = p;
    }
    p = NULL;
    CHI_TRY(rc);
  }
  if (w->n_donors[j] == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "none of the %d donor pictures can be used: %s", n,
                  why.code ? why.text : "all are the item's own");
out:
  return rc;
}

/* Places of a random draw: as many layers as a window has, and as many rows as a bracket where brackets are cells. */
static void set_null(chi_trace *t, int s, int32_t live) {
  int32_t most = 0, span = 1;
  for (int l = 0; l < t->n_layers; l++) {
    int32_t n = t->hi[s * t->n_layers + l] - t->lo[s * t->n_layers + l] + 1;
    if (n > most) most = n;
  }
  for (int r = 0; t->opts.span_cell && r < t->n_tokens; r++)
    if (t->n_cell[r] > span) span = t->n_cell[r];
  int64_t n = (int64_t)most * span, all = (int64_t)live * chi_trace_steps(t, s);
  t->null_cells[s] = (int32_t)(n < all ? n : all);
}

static int set_maps(chi_trace *t, bool donor, chi_err *err) {
  const chi_trace_opts *o = &t->opts;
  int32_t live = t->n_tokens - chii_first_live(t);
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      if (!o->site[s] || (src == CHI_TRACE_DONOR && !donor) || (src == CHI_TRACE_NOISE && !o->both_directions))
        continue;
      size_t n = (size_t)chi_trace_steps(t, s) * (size_t)t->n_rows;
      t->cell[src][s] = chi_arena_array(&t->arena, n, sizeof *t->cell[src][s], err);
      if (!t->cell[src][s]) return CHI_ERR_MEMORY;
    }
  static const int kNull[] = {CHI_TRACE_MLP, CHI_TRACE_ATTN, CHI_TRACE_HIDDEN, CHI_TRACE_HEAD};
  for (size_t i = 0; i < sizeof kNull / sizeof *kNull; i++) {
    int s = kNull[i];
    if (!o->site[s] || o->null_draws < 1) continue;
    set_null(t, s, live);
    t->null[s] = chi_arena_array(&t->arena, (size_t)o->null_draws, sizeof *t->null[s], err);
    if (!t->null[s]) return CHI_ERR_MEMORY;
  }
  return 0;
}

static int check_path(const chi_trace *t, chi_err *err) {
  const chi_path *to = &t->opts.path;
  if (!t->opts.site[CHI_TRACE_PATH] || to->part == CHI_PATH_OUT) return 0;
  if (to->layer < 1 || to->layer >= t->n_layers)
    return chi_fail(err, CHI_ERR_ARG, "a path to layer %d: receivers are in layers 1 to %d, behind their senders",
                    to->layer, t->n_layers - 1);
  if (to->head < 0 || to->head >= t->n_heads)
    return chi_fail(err, CHI_ERR_ARG, "a path to head %d: the model has heads 0 to %d", to->head, t->n_heads - 1);
  return 0;
}

static int set_up(work *w, int j, chi_err *err) {
  int rc = 0;
  chi_trace *t = w->t[j];
  const chi_trace_opts *o = &t->opts;
  if (o->both_directions && o->noise_direction)
    return chi_fail(err, CHI_ERR_ARG, "both directions are asked for, and one of them alone");
  if (o->null_draws < 0 || o->null_draws > 10000) return chi_fail(err, CHI_ERR_ARG, "random-site draws: 0 to 10000");
  t->n_layers = w->m->net.decoder.spec.layers;
  t->n_heads = w->m->net.decoder.spec.heads;
  t->target = o->target;
  CHI_TRY(check_path(t, err));
  CHI_TRY(set_target(t, err));
  CHI_TRY(chi_corruption_make(&t->corruption, w->m, t->prompt, &o->corrupt, err));
  CHI_TRY(chii_trace_rows(t, err));
  CHI_TRY(load_donors(w, j, err));
  CHI_TRY(set_maps(t, w->n_donors[j] > 0, err));
  w->donors[j] = w->o[j].donor;
out:
  return rc;
}

static void drop_donors(one *o) {
  for (int i = 0; i < kMaxDonors; i++) chi_prompt_free(o->donor[i]);
  memset(o->donor, 0, sizeof o->donor);
}

/* Options that were borrowed. */
static void forget(chi_trace *t) {
  chi_trace_opts *o = &t->opts;
  o->corrupt.spec = o->corrupt.noise_ref = o->corrupt.noise_file = o->donor = o->groups = NULL;
  o->donors = NULL;
}

int chi_trace_run_many(chi_trace **out, chi_err *why, const chi_model *m, const chi_trace_job *job, int n,
                       chi_err *err) {
  int rc = 0, ready = 0;
  bool check = false;
  work w = {.m = m, .t = out, .n = n};
  for (int j = 0; j < n; j++) out[j] = NULL;
  w.o = chi_arena_array(&w.arena, (size_t)n, sizeof *w.o, err);
  w.n_donors = chi_arena_array(&w.arena, (size_t)n, sizeof *w.n_donors, err);
  w.donors = chi_arena_array(&w.arena, (size_t)n, sizeof *w.donors, err);
  CHI_TRY(w.o && w.n_donors && w.donors ? 0 : CHI_ERR_MEMORY);
  for (int j = 0; j < n; j++) {
    memset(&why[j], 0, sizeof why[j]);
    CHI_TRY((out[j] = chi_calloc(1, sizeof **out, err)) ? 0 : CHI_ERR_MEMORY);
    out[j]->model = m;
    out[j]->prompt = job[j].prompt;
    out[j]->opts = *job[j].opts;
    if (set_up(&w, j, &why[j]) != 0) {
      chi_trace_free(out[j]);
      out[j] = NULL;
      drop_donors(&w.o[j]);
      w.n_donors[j] = 0;
      continue;
    }
    ready++;
    check |= out[j]->opts.check > 0;
  }
  if (ready == 0) goto out;
  bool choose = must_choose(&w);
  if (choose) CHI_TRY(first_pass(&w, err));
  for (int j = 0; choose && j < n; j++) drop_donors(&w.o[j]);
  CHI_TRY(cells_pass(&w, check, !choose, err));
  if (check) CHI_TRY(check_cells(&w, err));
out:
  for (int j = 0; w.o && j < n; j++) {
    if (out[j]) forget(out[j]);
    drop_donors(&w.o[j]);
    chi_free(w.o[j].clean_of);
    chi_free(w.o[j].first);
    chi_free(w.o[j].later);
    if (rc) chi_trace_free(out[j]);
    if (rc) out[j] = NULL;
  }
  chii_cells_free(&w.cp);
  chi_free(w.got);
  chi_free(w.joint);
  chi_free(w.hash);
  chi_free(w.rows);
  chi_arena_free(&w.arena);
  return rc;
}

int chi_trace_run(chi_trace **out, const chi_model *m, const chi_prompt *p, const chi_trace_opts *o, chi_err *err) {
  chi_err why;
  chi_trace *t = NULL;
  chi_trace_job job = {p, o};
  int rc = chi_trace_run_many(&t, &why, m, &job, 1, err);
  if (rc) return rc;
  if (!t) return chi_fail(err, why.code, "%s", why.text);
  *out = t;
  return 0;
}

void chi_trace_free(chi_trace *t) {
  if (!t) return;
  chi_corruption_free(&t->corruption);
  chi_prompt_free(t->donor);
  chi_arena_free(&t->arena);
  chi_free(t);
}

const chi_metrics *chi_trace_base_of(const chi_trace *t, int source) {
  return source == CHI_TRACE_NOISE || t->opts.noise_direction ? &t->clean : &t->corrupt;
}

const chi_metrics *chi_trace_base(const chi_trace *t) { return chi_trace_base_of(t, CHI_TRACE_OWN); }

const chi_metrics *chi_trace_at(const chi_trace *t, int source, int site, int step, int row) {
  return &t->cell[source][site][step * t->n_rows + row];
}

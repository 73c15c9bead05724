/* Attention knock-out as a plan; see knockout.h. */
#include "analyze/knockout.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/select.h"

enum { kMaxRows = 16384, kMaxSets = 64 };

/* ---- edges ----------------------------------------------------------------------------------------------- */
/* cut [rows][rows] as runs. */
static int runs_of(chi_edges *out, chi_arena *a, const uint8_t *cut, int32_t T, chi_err *err) {
  size_t n = 0;
  out->n = 0;
  for (int pass = 0; pass < 2; pass++) {
    n = 0;
    for (int32_t i = 0; i < T; i++)
      for (int32_t j = 0; j < i; j++) {
        if (!cut[(int64_t)i * T + j]) continue;
        int32_t lo = j;
        while (j < i && cut[(int64_t)i * T + j]) j++;
        if (pass) {
          out->run[n] = (chi_edge_run){i, lo, j};
          out->n += j - lo;
        }
        n++;
      }
    if (pass == 0 && !(out->run = chi_arena_array(a, n, sizeof *out->run, err))) return CHI_ERR_MEMORY;
  }
  out->n_runs = (int32_t)n;
  return 0;
}

static int check_rows(int32_t T, chi_err *err) {
  if (T <= kMaxRows) return 0;
  return chi_fail(err, CHI_ERR_ARG, "knock-out takes prompts of up to %d tokens; this one has %d", kMaxRows, T);
}

/* "FROM:TO" into the map. */
static int add_pair(uint8_t *cut, const char *text, const chi_prompt *p, chi_err *err) {
  int rc = 0;
  char from[256];
  const char *colon = strchr(text, ':');
  int32_t *f = NULL, *t = NULL, nf = 0, nt = 0;
  if (!colon || colon == text || !colon[1] || (size_t)(colon - text) >= sizeof from)
    return chi_fail(err, CHI_ERR_ARG, "edges '%s': write them as FROM:TO, e.g. image:last or 3-7:12", text);
  snprintf(from, sizeof from, "%.*s", (int)(colon - text), text);
  CHI_TRY(chi_select_rows(&f, &nf, from, p, err));
  CHI_TRY(chi_select_rows(&t, &nt, colon + 1, p, err));
  for (int32_t a = 0; a < nt; a++)
    for (int32_t b = 0; b < nf; b++)
      if (f[b] < t[a]) cut[(int64_t)t[a] * p->n_rows + f[b]] = 1;
out:
  chi_free(f);
  chi_free(t);
  return rc;
}

int chi_edges_parse(chi_edges *out, chi_arena *a, const char *text, const chi_prompt *p, chi_err *err) {
  int rc = 0;
  char *save = NULL, *words = NULL;
  uint8_t *cut = NULL;
  CHI_TRY(check_rows(p->n_rows, err));
  out->name = chi_arena_strdup(a, text, err);
  words = chi_arena_strdup(a, text, err);
  cut = chi_calloc((size_t)p->n_rows * (size_t)p->n_rows, 1, err);
  CHI_TRY(out->name && words && cut ? 0 : CHI_ERR_MEMORY);
  for (char *s = strtok_r(words, "+", &save); s; s = strtok_r(NULL, "+", &save)) CHI_TRY(add_pair(cut, s, p, err));
  CHI_TRY(runs_of(out, a, cut, p->n_rows, err));
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "edges '%s': no row reads a later one, so there is nothing to cut", text);
out:
  chi_free(cut);
  return rc;
}

/* Selection sampling: each edge is taken with the chance that makes every choice of `need` edges equally likely. */
int chi_edges_random(chi_edges *out, chi_arena *a, const chi_edges *taken, int32_t n_rows, int32_t first_row,
                     uint64_t seed, uint32_t stream, chi_err *err) {
  int rc = 0;
  int64_t left = 0, need = taken->n;
  uint8_t *cut = NULL;
  CHI_TRY(check_rows(n_rows, err));
  out->name = taken->name;
  cut = chi_calloc((size_t)n_rows * (size_t)n_rows, 1, err);
  CHI_TRY(cut ? 0 : CHI_ERR_MEMORY);
  for (int32_t r = 0; r < taken->n_runs; r++)
    memset(cut + (int64_t)taken->run[r].row * n_rows + taken->run[r].lo, 2,
           (size_t)(taken->run[r].hi - taken->run[r].lo));
  for (int32_t i = first_row; i < n_rows; i++)
    for (int32_t j = 0; j < i; j++) left += cut[(int64_t)i * n_rows + j] == 0;
  if (need > left) need = left;
  for (int32_t i = 0; i < n_rows; i++)
    for (int32_t j = 0; j < i; j++) {
      uint8_t *c = &cut[(int64_t)i * n_rows + j];
      if (*c == 2 || i < first_row) {
        *c = 0;
        continue;
      }
      double u = (double)chi_rng_u32(seed, stream, (uint32_t)i, (uint32_t)j) / 4294967296.0;
      *c = u * (double)left < (double)need;
      need -= *c;
      left--;
    }
  CHI_TRY(runs_of(out, a, cut, n_rows, err));
out:
  chi_free(cut);
  return rc;
}

static int by_keys(const void *x, const void *y) {
  const chi_edge_run *a = x, *b = y;
  if (a->lo != b->lo) return a->lo < b->lo ? -1 : 1;
  if (a->hi != b->hi) return a->hi < b->hi ? -1 : 1;
  return a->row - b->row;
}

int chi_edges_cut(chi_plan *plan, int branch, const chi_edges *e, int32_t lo, int32_t hi, chi_err *err) {
  int rc = 0;
  chi_edge_run *run = chi_calloc((size_t)e->n_runs, sizeof *run, err);
  int32_t *rows = chi_calloc((size_t)e->n_runs, sizeof *rows, err);
  CHI_TRY(run && rows ? 0 : CHI_ERR_MEMORY);
  memcpy(run, e->run, (size_t)e->n_runs * sizeof *run);
  qsort(run, (size_t)e->n_runs, sizeof *run, by_keys);
  for (int32_t i = 0, n; i < e->n_runs; i += n) { /* rows that lose the same keys share an intervention */
    for (n = 0; i + n < e->n_runs && run[i + n].lo == run[i].lo && run[i + n].hi == run[i].hi; n++)
      rows[n] = run[i + n].row;
    chi_intervention iv = {.op = CHI_OP_CUT,
                           .stack = CHI_DECODER,
                           .site = CHI_SITE_PATTERN,
                           .layer_lo = lo,
                           .layer_hi = hi,
                           .rows = rows,
                           .n_rows = n,
                           .key_lo = run[i].lo,
                           .key_hi = run[i].hi};
    CHI_TRY(chi_plan_intervene(plan, branch, &iv, 0, err));
  }
out:
  chi_free(run);
  chi_free(rows);
  return rc;
}

/* ---- plans ----------------------------------------------------------------------------------------------- */
static int64_t cell_count(const chi_knockout *k) { return (int64_t)k->n_sets * (1 + k->opts.controls) * k->n_layers; }

static int capture(chi_plan *plan, const chi_knockout *k, int branch, chi_err *err) {
  int32_t last = k->prompt->n_rows - 1;
  return chi_plan_capture(
      plan,
      &(chi_capture){
          .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1},
      NULL, err);
}

/* Cells first, first + step, ...; the clean run alone where first is past the end. */
static int make_plan(chi_plan **out, const chi_knockout *k, int64_t first, int64_t step, chi_err *err) {
  int rc = 0, root, branch;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(k->prompt);
  int32_t L = k->n_layers, C = k->opts.controls;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  for (int64_t i = first; i < cell_count(k); i += step) {
    int64_t l = i % L, source = i / L % (1 + C), set = i / L / (1 + C);
    const chi_edges *e = source == 0 ? &k->set[set] : &k->control[set * C + source - 1];
    CHI_TRY(chi_plan_child(plan, root, &branch, err));
    CHI_TRY(chi_edges_cut(plan, branch, e, k->lo[l], k->hi[l], err));
    CHI_TRY(capture(plan, k, branch, err));
  }
  *out = plan;
  plan = NULL;
out:
  chi_plan_free(plan);
  return rc;
}

int chi_knockout_plan(chi_plan **out, const char *const **names, const chi_knockout *k, chi_err *err) {
  int rc = 0;
  chi_plan *plan = NULL;
  const char **list;
  char buf[512];
  int32_t L = k->n_layers, C = k->opts.controls;
  CHI_TRY(make_plan(&plan, k, 0, 1, err));
  list = chi_arena_array(&plan->arena, plan->n_branches, sizeof *list, err);
  CHI_TRY(list ? 0 : CHI_ERR_MEMORY);
  for (size_t b = 0; b < plan->n_branches; b++) {
    int64_t i = (int64_t)b - 1, source = i / L % (1 + C), set = i / L / (1 + C);
    if (b == 0)
      snprintf(buf, sizeof buf, "clean");
    else if (source == 0)
      snprintf(buf, sizeof buf, "set %lld %.200s, layer %lld", (long long)set, k->set[set].name, (long long)(i % L));
    else
      snprintf(buf, sizeof buf, "set %lld, control %lld, layer %lld", (long long)set, (long long)source,
               (long long)(i % L));
    CHI_TRY((list[b] = chi_arena_strdup(&plan->arena, buf, err)) ? 0 : CHI_ERR_MEMORY);
  }
  *names = list;
  *out = plan;
  plan = NULL;
out:
  chi_plan_free(plan);
  return rc;
}

/* ---- running --------------------------------------------------------------------------------------------- */
typedef struct receiver {
  chi_knockout *k;
  double *clean_of; /* chi_clean_of: [2 vocab] */
  chi_metrics *m;   /* per capture; NULL: the clean run, which settles the target */
  uint64_t *hash;   /* per capture */
} receiver;

static int take(void *ud, int capture_id, int32_t i, const float *v, int64_t width) {
  receiver *r = ud;
  (void)i;
  if (r->m) {
    r->m[capture_id] = chi_metrics_of(v, width, r->k->target, -1, r->clean_of);
    r->hash[capture_id] = chi_fnv64(v, (size_t)width * sizeof *v, 0);
    return 0;
  }
  if (r->k->target < 0) r->k->target = chi_argmax(v, width);
  chi_clean_of(r->clean_of, v, width);
  r->k->clean = chi_metrics_of(v, width, r->k->target, -1, r->clean_of);
  return 0;
}

static int run(receiver *r, const chi_plan *plan, chi_executor ex, const char *what, chi_run_stats *stats,
               chi_err *err) {
  chi_run_opts o = {.executor = ex, .mem = r->k->opts.mem, .on_capture = take, .ud = r, .what = what, .stats = stats};
  return chi_run_plan(&r->k->model->net, plan, &o, err);
}

static int run_all(chi_knockout *k, chi_err *err) {
  int rc = 0;
  int64_t n = cell_count(k), count = k->opts.check < n ? k->opts.check : n, step;
  chi_plan *plan = NULL;
  uint64_t *hash = chi_calloc((size_t)n, sizeof *hash, err), *again = chi_calloc((size_t)n, sizeof *again, err);
  chi_metrics *scrap = chi_calloc((size_t)n, sizeof *scrap, err);
  receiver r = {.k = k};
  r.clean_of = chi_calloc(2 * (size_t)k->model->net.decoder.vocab, sizeof *r.clean_of, err);
  CHI_TRY(hash && again && scrap && r.clean_of ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(make_plan(&plan, k, n, 1, err)); /* clean run */
  CHI_TRY(capture(plan, k, 0, err));
  CHI_TRY(run(&r, plan, CHI_EXEC_SWEEP, NULL, NULL, err));
  chi_plan_free(plan);
  plan = NULL;
  CHI_TRY(make_plan(&plan, k, 0, 1, err));
  r.m = k->cell;
  r.hash = hash;
  CHI_TRY(run(&r, plan, CHI_EXEC_SWEEP, "knock-out", &k->stats, err));
  chi_plan_free(plan);
  plan = NULL;
  if (count <= 0) goto out;
  step = n / count;
  CHI_TRY(make_plan(&plan, k, step / 2, step, err));
  r.m = scrap;
  r.hash = again;
  CHI_TRY(run(&r, plan, CHI_EXEC_DENSE, "checking", NULL, err));
  for (int64_t i = 0; i < count; i++) {
    k->checked++;
    k->identical += again[i] == hash[step / 2 + i * step];
  }
out:
  chi_plan_free(plan);
  chi_free(hash);
  chi_free(again);
  chi_free(scrap);
  chi_free(r.clean_of);
  return rc;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */
static int default_edges(const chi_prompt *p, chi_str *out, chi_err *err) {
  static const char *const kPair[] = {"image:constraint", "image:last", "constraint:last"};
  bool image = p->n_image > 0, span = p->span_hi > p->span_lo && p->span_lo < p->n_rows - 1;
  bool has[3] = {image && span && p->span_hi > p->image_row, image, span};
  for (int i = 0; i < 3; i++)
    if (has[i]) chi_str_addf(out, "%s%s", out->len ? ";" : "", kPair[i]);
  if (!out->len)
    return chi_fail(err, CHI_ERR_ARG,
                    "without a picture or [bracketed] words there are no edges to cut: name them as FROM:TO");
  for (int i = 0, n = 0; i < 3 && strchr(out->s, ';'); i++)
    if (has[i]) chi_str_addf(out, "%s%s", n++ ? "+" : ";", kPair[i]);
  return out->failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0;
}

static int parse_sets(chi_knockout *k, const char *text, chi_err *err) {
  int rc = 0;
  char *save = NULL, *words = chi_arena_strdup(&k->arena, text, err);
  k->set = chi_arena_array(&k->arena, kMaxSets, sizeof *k->set, err);
  CHI_TRY(words && k->set ? 0 : CHI_ERR_MEMORY);
  for (char *s = strtok_r(words, ";", &save); s; s = strtok_r(NULL, ";", &save)) {
    if (k->n_sets == kMaxSets) return chi_fail(err, CHI_ERR_ARG, "edges '%.80s...': more than %d sets", text, kMaxSets);
    CHI_TRY(chi_edges_parse(&k->set[k->n_sets], &k->arena, s, k->prompt, err));
    k->n_sets++;
  }
  if (k->n_sets == 0) rc = chi_fail(err, CHI_ERR_ARG, "edges '%s' name nothing: write them as FROM:TO", text);
out:
  return rc;
}

static int make_controls(chi_knockout *k, chi_err *err) {
  int rc = 0;
  const chi_prompt *p = k->prompt;
  int32_t C = k->opts.controls, behind = p->n_image ? p->image_row + p->n_image : 0;
  k->control = chi_arena_array(&k->arena, (size_t)k->n_sets * (size_t)C, sizeof *k->control, err);
  k->control_row = chi_arena_array(&k->arena, (size_t)k->n_sets, sizeof *k->control_row, err);
  CHI_TRY(k->control && k->control_row ? 0 : CHI_ERR_MEMORY);
  for (int32_t s = 0; s < k->n_sets; s++) {
    bool text = !k->opts.control_all && k->set[s].run[0].row >= behind; /* runs are by row */
    k->control_row[s] = text ? behind : 0;
    for (int32_t c = 0; c < C; c++) {
      chi_edges *e = &k->control[s * C + c];
      uint32_t stream = (uint32_t)(s * C + c);
      CHI_TRY(chi_edges_random(e, &k->arena, &k->set[s], p->n_rows, k->control_row[s], k->opts.seed, stream, err));
      if (e->n < k->set[s].n && k->control_row[s] > 0) { /* not enough there: from everywhere */
        k->control_row[s] = 0;
        CHI_TRY(chi_edges_random(e, &k->arena, &k->set[s], p->n_rows, 0, k->opts.seed, stream, err));
      }
      if (e->n < k->set[s].n && c == 0)
        chi_log(CHI_LOG_WARN, "%s: only %lld other edges are there for controls of %lld", k->set[s].name,
                (long long)e->n, (long long)k->set[s].n);
      if (e->n == 0)
        return chi_fail(err, CHI_ERR_ARG, "edges '%s' leave no others for a control: use --controls 0", k->set[s].name);
    }
  }
out:
  return rc;
}

static int set_up(chi_knockout *k, chi_err *err) {
  int rc = 0;
  chi_str text = {0};
  const chi_knockout_opts *o = &k->opts;
  int32_t L = k->model->net.decoder.spec.layers, W = o->window;
  if (W < 1) return chi_fail(err, CHI_ERR_ARG, "--window must be at least 1");
  if (o->controls < 0 || o->controls > 10000) return chi_fail(err, CHI_ERR_ARG, "controls: 0 to 10000");
  if (W > 2 * L) W = 2 * L;
  k->n_layers = L;
  k->target = o->target;
  if (!o->edges) CHI_TRY(default_edges(k->prompt, &text, err));
  CHI_TRY(parse_sets(k, o->edges ? o->edges : text.s, err));
  CHI_TRY(make_controls(k, err));
  k->lo = chi_arena_array(&k->arena, (size_t)L, sizeof *k->lo, err);
  k->hi = chi_arena_array(&k->arena, (size_t)L, sizeof *k->hi, err);
  k->cell = chi_arena_array(&k->arena, (size_t)cell_count(k), sizeof *k->cell, err);
  CHI_TRY(k->lo && k->hi && k->cell ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < L; l++) {
    int32_t lo = l - W / 2, hi = l + (W + 1) / 2;
    k->lo[l] = lo < 0 ? 0 : lo;
    k->hi[l] = hi > L ? L : hi;
  }
out:
  chi_str_free(&text);
  return rc;
}

int chi_knockout_run(chi_knockout **out, const chi_model *m, const chi_prompt *p, const chi_knockout_opts *o,
                     chi_err *err) {
  int rc = 0;
  chi_knockout *k = chi_calloc(1, sizeof *k, err);
  if (!k) return CHI_ERR_MEMORY;
  k->model = m;
  k->prompt = p;
  k->opts = *o;
  CHI_TRY(set_up(k, err));
  CHI_TRY(run_all(k, err));
  k->opts.edges = NULL; /* borrowed from the caller; the sets carry their names */
out:
  if (rc)
    chi_knockout_free(k);
  else
    *out = k;
  return rc;
}

void chi_knockout_free(chi_knockout *k) {
  if (!k) return;
  chi_arena_free(&k->arena);
  chi_free(k);
}

const chi_metrics *chi_knockout_at(const chi_knockout *k, int set, int source, int layer) {
  return &k->cell[((int64_t)set * (1 + k->opts.controls) + source) * k->n_layers + layer];
}

chi_metrics chi_knockout_control(const chi_knockout *k, int set, int layer, double *low, double *high) {
  chi_metrics mean = {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  int32_t C = k->opts.controls;
  *low = *high = NAN;
  if (C == 0) return mean;
  memset(&mean, 0, sizeof mean);
  for (int32_t c = 1; c <= C; c++) {
    const chi_metrics *m = chi_knockout_at(k, set, c, layer);
    const double *from = (const double *)m;
    for (size_t i = 0; i < sizeof *m / sizeof(double); i++) ((double *)&mean)[i] += from[i] / C;
    if (c == 1 || m->p < *low) *low = m->p;
    if (c == 1 || m->p > *high) *high = m->p;
  }
  return mean;
}

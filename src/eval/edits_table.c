/* Edits in numbers; see edits_table.h. */
#include "eval/edits_table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- columns ---------------------------------------------------------------------------------------- */
const char *chi_edits_column(int c, char buf[64]) {
  static const char *const last[] = {
      "right.unrelated", "right.unrelated_change", "key_cosine", "leak_share", "leak_share_max", "trace_own", "trace"};
  if (c == CHI_EDITS_HEADLINE) return "headline";
  if (c == CHI_EDITS_RELIABLE) return "reliability";
  if (c == CHI_EDITS_P) return "p_target";
  if (c >= CHI_EDITS_UNRELATED) return last[c - CHI_EDITS_UNRELATED];
  bool right = c >= CHI_EDITS_RIGHT;
  const char *name = chi_probe_get((chi_probe_kind)(c - (right ? CHI_EDITS_RIGHT : CHI_EDITS_PROBE)))->name;
  snprintf(buf, 64, "%s%s", right ? "right." : "", name);
  return buf;
}

static double real(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

/* Probes of a kind that count, of how many. */
static double counted(const json_t *line, int kind, const char *key, double *of) {
  const json_t *p = json_object_get(json_object_get(line, "probes"), chi_probe_get((chi_probe_kind)kind)->name);
  double n = json_number_value(json_object_get(p, "n"));
  *of += n;
  return n > 0 ? json_number_value(json_object_get(p, key)) : 0;
}

static double share(const json_t *line, int kind, const char *key) {
  double of = 0, n = counted(line, kind, key, &of);
  return of > 0 ? n / of : NAN;
}

/* Of (d) and (e) together. */
static double unrelated(const json_t *line, const char *key) {
  double of = 0, n = counted(line, CHI_PROBE_OTHER_PICTURE, key, &of) + counted(line, CHI_PROBE_OTHER_TEXT, key, &of);
  return of > 0 ? n / of : NAN;
}

double chi_edits_value(const json_t *line, int c) {
  const json_t *key = json_object_get(line, "key"), *cell = json_object_get(line, "trace");
  if (!line || c == CHI_EDITS_HEADLINE) return NAN;
  if (c == CHI_EDITS_RELIABLE) return json_is_true(json_object_get(line, "reliable")) ? 1 : 0;
  if (c == CHI_EDITS_P) return real(line, "p_target");
  if (c == CHI_EDITS_UNRELATED) return unrelated(line, "right");
  if (c == CHI_EDITS_CHANGE) return unrelated(line, "right") - unrelated(line, "right_before");
  if (c == CHI_EDITS_COSINE) return real(key, "cosine_mean");
  if (c == CHI_EDITS_LEAK) return real(key, "leak_mean");
  if (c == CHI_EDITS_LEAK_MAX) return real(key, "leak_max");
  if (c == CHI_EDITS_TRACE_OWN) return real(cell, "own");
  if (c == CHI_EDITS_TRACE) return real(cell, "corrected");
  if (c >= CHI_EDITS_RIGHT) return share(line, c - CHI_EDITS_RIGHT, "right");
  return share(line, c - CHI_EDITS_PROBE, "kept");
}

/* ---- means of parts over entities ------------------------------------------------------------------- */
static const int kHeadline[] = {CHI_EDITS_RELIABLE, CHI_EDITS_PROBE + CHI_PROBE_PARAPHRASE,
                                CHI_EDITS_PROBE + CHI_PROBE_RENDERING, CHI_EDITS_PROBE + CHI_PROBE_SAME_QUESTION,
                                CHI_EDITS_PROBE + CHI_PROBE_SAME_PICTURE};
enum { kParts = 5 };

typedef struct build {
  const chi_edit_set *set;
  const chi_edits_table_opts *o;
  chi_edits_table *t;
  chi_clusters c;
  double *x; /* [n_rows][CHI_EDITS_COLUMNS][n items], NAN = none */
} build;

/* One editor: sums and counts of each part by entity. */
typedef struct side {
  double *sum, *n; /* [kParts][entities] */
} side;
/* What a statistic is made of: one editor, or two that are paired. */
typedef struct pair {
  side a, b;
  bool two;
  int parts;
  int32_t entities, items;
  int32_t *entity; /* [entities of the set]: number among those that have a value, -1 = none */
  chi_arena arena;
} pair;

static const double *values(const build *b, int row, int column) {
  return b->x + ((size_t)row * CHI_EDITS_COLUMNS + (size_t)column) * b->set->n;
}

static bool any(const double *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!isnan(x[i])) return true;
  return false;
}

/* Columns that a column is the harmonic mean of: itself, or the headline's parts that the row has. */
static int parts_of(const build *b, int row, int column, int part[kParts]) {
  int n = 0;
  part[0] = column;
  if (column != CHI_EDITS_HEADLINE) return 1;
  for (int k = 0; k < kParts; k++)
    if (any(values(b, row, kHeadline[k]), b->set->n)) part[n++] = kHeadline[k];
  return n;
}

static int side_new(side *s, pair *p, size_t entities, chi_err *err) {
  s->sum = chi_arena_array(&p->arena, kParts * entities, sizeof *s->sum, err);
  s->n = chi_arena_array(&p->arena, kParts * entities, sizeof *s->n, err);
  return s->sum && s->n ? 0 : CHI_ERR_MEMORY;
}

/* ref -1: the row alone. */
static int gather(pair *p, const build *b, int row, int ref, int column, chi_err *err) {
  int rc = 0, part[kParts] = {0};
  size_t most = (size_t)b->c.n + 1;
  memset(p, 0, sizeof *p);
  p->two = ref >= 0;
  p->parts = parts_of(b, row, column, part);
  CHI_TRY(side_new(&p->a, p, most, err));
  CHI_TRY(side_new(&p->b, p, most, err));
  CHI_TRY((p->entity = chi_arena_array(&p->arena, most, sizeof *p->entity, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t e = 0; e < b->c.n; e++) p->entity[e] = -1;
  for (size_t i = 0; i < b->set->n; i++) {
    bool used = false;
    for (int k = 0; k < p->parts; k++) {
      double x = values(b, row, part[k])[i], y = p->two ? values(b, ref, part[k])[i] : 0;
      int32_t *e = &p->entity[b->c.of[i]];
      if (isnan(x) || isnan(y)) continue;
      if (*e < 0) *e = p->entities++;
      size_t at = (size_t)k * most + (size_t)*e;
      p->a.sum[at] += x, p->a.n[at]++;
      p->b.sum[at] += y, p->b.n[at]++;
      used = true;
    }
    p->items += used;
  }
  for (int k = 1; k < p->parts; k++) { /* parts side by side */
    size_t from = (size_t)k * most, to = (size_t)k * (size_t)p->entities, n = (size_t)p->entities;
    memmove(p->a.sum + to, p->a.sum + from, n * sizeof *p->a.sum);
    memmove(p->a.n + to, p->a.n + from, n * sizeof *p->a.n);
    memmove(p->b.sum + to, p->b.sum + from, n * sizeof *p->b.sum);
    memmove(p->b.n + to, p->b.n + from, n * sizeof *p->b.n);
  }
out:
  return rc;
}

/* Mean, or harmonic mean of the parts' means, of the entities in times; one with times < 0 takes the other's values. */
static double level(const pair *p, const side *s, const side *other, const int32_t *times) {
  double inverse = 0;
  for (int k = 0; k < p->parts; k++) {
    double sum = 0, n = 0;
    for (int32_t e = 0; e < p->entities; e++) {
      size_t at = (size_t)k * (size_t)p->entities + (size_t)e;
      bool swap = times[e] < 0;
      sum += swap ? other->sum[at] : times[e] * s->sum[at];
      n += swap ? other->n[at] : times[e] * s->n[at];
    }
    if (!(n > 0)) return NAN;
    if (p->parts == 1) return sum / n;
    if (!(sum > 0)) return 0;
    inverse += n / sum;
  }
  return p->parts ? p->parts / inverse : NAN;
}

static double level_stat(const void *ud, const int32_t *times) {
  const pair *p = ud;
  double a = level(p, &p->a, &p->b, times);
  return p->two ? a - level(p, &p->b, &p->a, times) : a;
}

static int estimate(build *b, int row, int column, chi_err *err) {
  int rc = 0;
  chi_edits_stat *s = &b->t->stat[row * CHI_EDITS_COLUMNS + column];
  const chi_est none = {.value = NAN, .lo = NAN, .hi = NAN};
  const chi_edits_table_opts *o = b->o;
  pair one = {.parts = 0}, two = {.parts = 0};
  *s = (chi_edits_stat){.mean = none, .diff = none, .p = NAN, .p_holm = NAN};
  CHI_TRY(gather(&one, b, row, -1, column, err));
  if (one.items == 0) goto out;
  CHI_TRY(chi_boot(&s->mean, one.entities, level_stat, &one, &o->boot, NULL, err));
  s->mean.n = one.items;
  if (o->reference < 0 || row == o->reference) goto out;
  CHI_TRY(gather(&two, b, row, o->reference, column, err));
  if (two.items == 0) goto out;
  CHI_TRY(chi_boot(&s->diff, two.entities, level_stat, &two, &o->boot, NULL, err));
  s->diff.n = two.items;
  if (!o->compare || o->compare[row]) CHI_TRY(chi_swap_test(&s->p, two.entities, level_stat, &two, &o->boot, err));
out:
  chi_arena_free(&one.arena);
  chi_arena_free(&two.arena);
  return rc;
}

static int holm(chi_edits_table *t, int column, chi_err *err) {
  double *p = chi_calloc((size_t)t->n_rows + 1, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (int r = 0; r < t->n_rows; r++) p[r] = t->stat[r * CHI_EDITS_COLUMNS + column].p;
  int rc = chi_holm(p, p, t->n_rows, err);
  for (int r = 0; r < t->n_rows; r++) t->stat[r * CHI_EDITS_COLUMNS + column].p_holm = p[r];
  chi_free(p);
  return rc;
}

/* ---- curves over rows --------------------------------------------------------------------------------- */
typedef struct curve {
  int n, trace;            /* rows; column of rho_rows */
  pair *headline, *effect; /* [n] */
  const build *b;
} curve;

/* times of the set's entities -> those of one row's. */
static double level_of(const pair *p, const build *b, const int32_t *times, int32_t *own) {
  for (int32_t e = 0; e < b->c.n; e++)
    if (p->entity[e] >= 0) own[p->entity[e]] = times[e];
  return level(p, &p->a, &p->b, own);
}

enum { kMaxRows = 256, kMaxEntities = 1 << 14 };

static double peak_stat(const void *ud, const int32_t *times) {
  const curve *c = ud;
  int32_t own[kMaxEntities];
  double best = -1;
  int at = -1;
  for (int r = 0; r < c->n; r++) {
    double h = level_of(&c->headline[r], c->b, times, own);
    if (h > best) best = h, at = r;
  }
  return at < 0 ? (double)NAN : (double)at;
}

static double rho_stat(const void *ud, const int32_t *times) {
  const curve *c = ud;
  int32_t own[kMaxEntities];
  double h[kMaxRows], x[kMaxRows];
  for (int r = 0; r < c->n; r++) {
    h[r] = level_of(&c->headline[r], c->b, times, own);
    x[r] = level_of(&c->effect[r], c->b, times, own);
    if (isnan(h[r]) || isnan(x[r])) return NAN;
  }
  return chi_rank_correlation(h, x, c->n);
}

static int curves(build *b, chi_err *err) {
  int rc = 0, hits = 0;
  chi_edits_table *t = b->t;
  size_t draws = (size_t)(b->o->boot.draws ? b->o->boot.draws : 10000);
  curve c = {.n = t->n_rows, .b = b};
  double *all = chi_calloc(draws, sizeof *all, err);
  c.headline = chi_calloc((size_t)c.n, sizeof *c.headline, err);
  c.effect = chi_calloc((size_t)c.n, sizeof *c.effect, err);
  CHI_TRY(all && c.headline && c.effect ? 0 : CHI_ERR_MEMORY);
  if (c.n > kMaxRows || b->c.n > kMaxEntities) {
    rc = chi_fail(err, CHI_ERR_ARG, "a curve has at most %d rows and %d entities", kMaxRows, kMaxEntities);
    goto out;
  }
  for (int r = 0; r < c.n; r++) CHI_TRY(gather(&c.headline[r], b, r, -1, CHI_EDITS_HEADLINE, err));
  CHI_TRY(chi_boot(&t->peak, b->c.n, peak_stat, &c, &b->o->boot, all, err));
  t->peak.n = (int32_t)b->set->n;
  for (size_t d = 0; d < draws; d++) hits += all[d] >= t->peak.value && all[d] <= t->peak.value;
  t->peak_share = (double)hits / (double)draws;
  for (int k = 0; k < 2; k++) {
    for (int r = 0; r < c.n; r++) {
      chi_arena_free(&c.effect[r].arena);
      CHI_TRY(gather(&c.effect[r], b, r, -1, CHI_EDITS_TRACE_OWN + k, err));
    }
    CHI_TRY(chi_boot(&t->rho_rows[k], b->c.n, rho_stat, &c, &b->o->boot, NULL, err));
    t->rho_rows[k].n = c.n;
  }
out:
  for (int r = 0; c.headline && c.effect && r < c.n; r++) {
    chi_arena_free(&c.headline[r].arena);
    chi_arena_free(&c.effect[r].arena);
  }
  chi_free(c.headline);
  chi_free(c.effect);
  chi_free(all);
  return rc;
}

/* ---- the table ---------------------------------------------------------------------------------------- */
static int read_values(build *b, chi_err *err) {
  char id[1024];
  chi_edits_table *t = b->t;
  size_t n = b->set->n;
  b->x = chi_arena_array(&t->arena, (size_t)t->n_rows * CHI_EDITS_COLUMNS * n, sizeof *b->x, err);
  if (!b->x) return CHI_ERR_MEMORY;
  for (int r = 0; r < t->n_rows; r++)
    for (size_t i = 0; i < n; i++) {
      const json_t *line =
          chi_jlog_find(t->row[r].log, chi_edits_line_id(id, sizeof id, t->row[r].editor, b->set->item[i].id));
      t->n[r] += line != NULL;
      t->failed[r] += line && chi_streq(json_string_value(json_object_get(line, "status")), "failed");
      for (int c = 0; c < CHI_EDITS_COLUMNS; c++)
        b->x[((size_t)r * CHI_EDITS_COLUMNS + (size_t)c) * n + i] = chi_edits_value(line, c);
    }
  return 0;
}

int chi_edits_table_make(chi_edits_table **out, const chi_edits_row *row, int n_rows, const chi_edit_set *set,
                         const chi_edits_table_opts *o, chi_err *err) {
  int rc = 0;
  size_t rows = (size_t)n_rows;
  const char **name = chi_calloc(set->n + 1, sizeof *name, err);
  chi_edits_table *t = chi_calloc(1, sizeof *t, err);
  build b = {.set = set, .o = o, .t = t};
  CHI_TRY(name && t ? 0 : CHI_ERR_MEMORY);
  t->row = row, t->n_rows = n_rows, t->reference = o->reference;
  t->peak = t->rho_rows[0] = t->rho_rows[1] = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  t->peak_share = NAN;
  t->stat = chi_arena_array(&t->arena, rows * CHI_EDITS_COLUMNS, sizeof *t->stat, err);
  t->n = chi_arena_array(&t->arena, rows, sizeof *t->n, err);
  t->failed = chi_arena_array(&t->arena, rows, sizeof *t->failed, err);
  t->rho = chi_arena_array(&t->arena, rows, sizeof *t->rho, err);
  CHI_TRY(t->stat && t->n && t->failed && t->rho ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < set->n; i++) name[i] = *set->item[i].entity ? set->item[i].entity : set->item[i].unit;
  CHI_TRY(chi_clusters_make(&b.c, name, (int32_t)set->n, err));
  CHI_TRY(read_values(&b, err));
  for (int c = 0; c < CHI_EDITS_COLUMNS; c++) {
    for (int r = 0; r < n_rows; r++) CHI_TRY(estimate(&b, r, c, err));
    CHI_TRY(holm(t, c, err));
    CHI_TRY(chi_progress("intervals", c + 1, CHI_EDITS_COLUMNS, err));
  }
  for (int r = 0; r < n_rows; r++)
    for (int k = 0; k < 2; k++)
      CHI_TRY(chi_spearman(&t->rho[r][k], &b.c, values(&b, r, CHI_EDITS_TRACE_OWN + k), values(&b, r, CHI_EDITS_P),
                           &o->boot, err));
  if (o->curve) CHI_TRY(curves(&b, err));
out:
  chi_clusters_free(&b.c);
  chi_free(name);
  if (rc)
    chi_edits_table_free(t);
  else
    *out = t;
  return rc;
}

void chi_edits_table_free(chi_edits_table *t) {
  if (!t) return;
  chi_arena_free(&t->arena);
  chi_free(t);
}

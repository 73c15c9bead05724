/* Summaries of fair tests; see fair_table.h. */
#include "eval/fair_table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const kScalar[CHI_FAIR_DELETION] = {"pointing",    "precision",   "auprc",
                                                       "switch_gain", "switch_rank", "shuffled_rank"};

const char *chi_fair_metric_name(int metric) {
  static char buf[4][48];
  static int next;
  if (metric < CHI_FAIR_DELETION) return kScalar[metric];
  char *s = buf[next++ % 4];
  bool in = metric >= CHI_FAIR_INSERTION;
  int how = in ? metric - CHI_FAIR_INSERTION : metric - CHI_FAIR_DELETION;
  snprintf(s, sizeof buf[0], "%s %s", in ? "insertion" : "deletion", chi_removal_name[how]);
  return s;
}

/* ---- values of items ---------------------------------------------------------------------------------------- */
static double number(const json_t *j) { return json_is_number(j) ? json_number_value(j) : NAN; }

static double value_of(const json_t *score, int metric) {
  if (metric < CHI_FAIR_DELETION) return number(json_object_get(score, kScalar[metric]));
  bool in = metric >= CHI_FAIR_INSERTION;
  int how = metric - (in ? CHI_FAIR_INSERTION : CHI_FAIR_DELETION);
  const json_t *by = json_object_get(json_object_get(score, in ? "insertion" : "deletion"), chi_removal_name[how]);
  return number(json_object_get(by, "area"));
}

/* Items that count: their scores [explainer], in the log's order. */
typedef struct counted {
  const json_t **score;         /* [n_rows][n] */
  const char **picture, **unit; /* [n] */
  chi_clusters units, pictures;
  double *a, *b; /* [n] scratch */
  int n;
} counted;

static int collect(chi_fair_table *t, counted *c, const json_t *items, chi_err *err) {
  size_t n = json_array_size(items);
  c->score = chi_arena_array(&t->arena, n * (size_t)t->n_rows, sizeof *c->score, err);
  c->picture = chi_arena_array(&t->arena, n, sizeof *c->picture, err);
  c->unit = chi_arena_array(&t->arena, n, sizeof *c->unit, err);
  c->a = chi_arena_array(&t->arena, n, sizeof *c->a, err);
  c->b = chi_arena_array(&t->arena, n, sizeof *c->b, err);
  if (!c->score || !c->picture || !c->unit || !c->a || !c->b) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    const json_t *it = json_array_get(items, i), *scores = json_object_get(it, "scores");
    const char *status = json_string_value(json_object_get(it, "status")),
               *image = json_string_value(json_object_get(it, "image")),
               *unit = json_string_value(json_object_get(it, "unit"));
    t->items++;
    t->failed += chi_streq(status, "failed");
    t->right += json_is_true(json_object_get(it, "right"));
    if (!json_is_object(scores)) continue;
    for (int r = 0; r < t->n_rows; r++) c->score[(size_t)r * n + (size_t)c->n] = json_object_get(scores, t->name[r]);
    c->picture[c->n] = image ? image : "";
    c->unit[c->n] = unit && *unit ? chi_unit_entity(&t->arena, unit, err) : c->picture[c->n];
    if (!c->unit[c->n++]) return CHI_ERR_MEMORY;
  }
  t->counted = c->n;
  for (int r = 1; r < t->n_rows; r++) /* rows side by side, without the gaps */
    memmove(c->score + r * c->n, c->score + (size_t)r * n, (size_t)c->n * sizeof *c->score);
  int rc = chi_clusters_make(&c->pictures, c->picture, c->n, err);
  if (rc == 0) rc = chi_clusters_make(&c->units, c->unit, c->n, err);
  t->pictures = c->pictures.n;
  t->units = c->units.n;
  return rc;
}

static bool values(const counted *c, int row, int metric, double *x) {
  bool any = false;
  for (int i = 0; i < c->n; i++) {
    x[i] = value_of(c->score[row * c->n + i], metric);
    any = any || !isnan(x[i]);
  }
  return any;
}

/* The difference of c->a to a reference's values. Overwrites c->b. */
static int difference(chi_fair_diff *d, const counted *c, int ref, int metric, const chi_boot_opts *boot,
                      chi_err *err) {
  int rc = 0;
  chi_cell_test test;
  if (!values(c, ref, metric, c->b)) return 0;
  bool both = false;
  for (int i = 0; i < c->n; i++) both = both || (!isnan(c->a[i]) && !isnan(c->b[i]));
  if (!both) return 0;
  CHI_TRY(chi_boot_mean(&d->est, &c->units, c->a, c->b, boot, err));
  CHI_TRY(chi_boot_mean(&d->by_picture, &c->pictures, c->a, c->b, boot, err));
  for (int i = 0; i < c->n; i++) c->b[i] = c->a[i] - c->b[i];
  CHI_TRY(chi_max_t(&test, &c->units, c->b, 1, boot, err));
  d->p = test.p;
out:
  return rc;
}

/* One metric of one explainer, and its differences to the references. */
static int estimate(chi_fair_table *t, const counted *c, int row, int metric, const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  chi_fair_stat *s = &t->stat[row * CHI_FAIR_METRICS + metric];
  const chi_est none = {.value = NAN, .lo = NAN, .hi = NAN};
  s->mean = s->by_picture = none;
  for (int k = 0; k < CHI_FAIR_REFS; k++)
    s->diff[k] = (chi_fair_diff){.est = none, .by_picture = none, .p = NAN, .p_holm = NAN};
  if (!values(c, row, metric, c->a)) return 0;
  CHI_TRY(chi_boot_mean(&s->mean, &c->units, c->a, NULL, boot, err));
  CHI_TRY(chi_boot_mean(&s->by_picture, &c->pictures, c->a, NULL, boot, err));
  for (int k = 0; k < t->n_refs; k++)
    if (t->ref[k] != row) CHI_TRY(difference(&s->diff[k], c, t->ref[k], metric, boot, err));
out:
  return rc;
}

static int holm(chi_fair_table *t, int ref, int metric, chi_err *err) {
  int rc = 0, n = 0;
  double *p = chi_calloc((size_t)t->n_rows, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (int r = 0; r < t->n_rows; r++)
    if (!t->baseline[r]) p[n++] = t->stat[r * CHI_FAIR_METRICS + metric].diff[ref].p;
  CHI_TRY(chi_holm(p, p, n, err));
  for (int r = 0, k = 0; r < t->n_rows; r++)
    if (!t->baseline[r]) t->stat[r * CHI_FAIR_METRICS + metric].diff[ref].p_holm = p[k++];
out:
  chi_free(p);
  return rc;
}

static void mean_curves(chi_fair_table *t, const counted *c) {
  for (int r = 0; r < t->n_rows; r++)
    for (int b = 0; b < 2; b++)
      for (int how = 0; how < CHI_REMOVALS; how++) {
        double *y = t->curve + ((int64_t)(r * 2 + b) * CHI_REMOVALS + how) * CHI_FAIR_SHARES;
        for (int k = 0; k < CHI_FAIR_SHARES; k++) {
          double sum = 0;
          int n = 0;
          for (int i = 0; i < c->n; i++) {
            const json_t *s = json_object_get(c->score[r * c->n + i], b ? "insertion" : "deletion");
            double p =
                number(json_array_get(json_object_get(json_object_get(s, chi_removal_name[how]), "p"), (size_t)k));
            if (!isnan(p)) sum += p, n++;
          }
          y[k] = n ? sum / n : NAN;
        }
      }
}

int chi_fair_against(int ref[CHI_FAIR_REFS], int *n, const chi_fair_opts *o, const char *names, chi_err *err) {
  char name[64];
  *n = 0;
  for (const char *p = names ? names : "attention,centre,random"; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    int row = -1;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(p, ","), p);
    for (int r = 0; r < o->n_which; r++)
      if (chi_streq(o->which[r]->name, name)) row = r;
    if (row < 0 && !names) continue;
    if (row < 0) return chi_fail(err, CHI_ERR_ARG, "'%s' is not asked for: nothing can be compared with it", name);
    if (*n == CHI_FAIR_REFS)
      return chi_fail(err, CHI_ERR_ARG, "%d explainers to compare with are the limit", CHI_FAIR_REFS);
    ref[(*n)++] = row;
  }
  return 0;
}

int chi_fair_table_make(chi_fair_table **out, const json_t *items, const chi_fair_opts *o, const char *against,
                        const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  counted c = {0};
  chi_fair_table *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  t->n_rows = o->n_which + 1;
  size_t rows = (size_t)t->n_rows;
  t->name = chi_arena_array(&t->arena, rows, sizeof *t->name, err);
  t->baseline = chi_arena_array(&t->arena, rows, sizeof *t->baseline, err);
  t->stat = chi_arena_array(&t->arena, rows * CHI_FAIR_METRICS, sizeof *t->stat, err);
  t->curve = chi_arena_array(&t->arena, rows * 2 * CHI_REMOVALS * CHI_FAIR_SHARES, sizeof *t->curve, err);
  CHI_TRY(t->name && t->baseline && t->stat && t->curve ? 0 : CHI_ERR_MEMORY);
  for (int r = 0; r < t->n_rows; r++) {
    t->name[r] = r < o->n_which ? o->which[r]->name : "mask";
    t->baseline[r] = r == o->n_which || o->which[r]->baseline;
  }
  CHI_TRY(chi_fair_against(t->ref, &t->n_refs, o, against, err));
  CHI_TRY(collect(t, &c, items, err));
  for (int m = 0; m < CHI_FAIR_METRICS; m++) {
    for (int r = 0; r < t->n_rows; r++) CHI_TRY(estimate(t, &c, r, m, boot, err));
    for (int k = 0; k < t->n_refs; k++) CHI_TRY(holm(t, k, m, err));
    CHI_TRY(chi_progress("intervals", m + 1, CHI_FAIR_METRICS, err));
  }
  mean_curves(t, &c);
out:
  chi_clusters_free(&c.units);
  chi_clusters_free(&c.pictures);
  if (rc)
    chi_fair_table_free(t);
  else
    *out = t;
  return rc;
}

void chi_fair_table_free(chi_fair_table *t) {
  if (!t) return;
  chi_arena_free(&t->arena);
  chi_free(t);
}

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
  const json_t **score; /* [n_rows][n] */
  const char **picture; /* [n] */
  chi_clusters clusters;
  double *a, *b; /* [n] scratch */
  int n;
} counted;

static int collect(chi_fair_table *t, counted *c, const json_t *items, chi_err *err) {
  size_t n = json_array_size(items);
  c->score = chi_arena_array(&t->arena, n * (size_t)t->n_rows, sizeof *c->score, err);
  c->picture = chi_arena_array(&t->arena, n, sizeof *c->picture, err);
  c->a = chi_arena_array(&t->arena, n, sizeof *c->a, err);
  c->b = chi_arena_array(&t->arena, n, sizeof *c->b, err);
  if (!c->score || !c->picture || !c->a || !c->b) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    const json_t *it = json_array_get(items, i), *scores = json_object_get(it, "scores");
    const char *status = json_string_value(json_object_get(it, "status")),
               *image = json_string_value(json_object_get(it, "image"));
    t->items++;
    t->failed += chi_streq(status, "failed");
    t->right += json_is_true(json_object_get(it, "right"));
    if (!json_is_object(scores)) continue;
    for (int r = 0; r < t->n_rows; r++) c->score[(size_t)r * n + (size_t)c->n] = json_object_get(scores, t->name[r]);
    c->picture[c->n++] = image ? image : "";
  }
  t->counted = c->n;
  for (int r = 1; r < t->n_rows; r++) /* rows side by side, without the gaps */
    memmove(c->score + r * c->n, c->score + (size_t)r * n, (size_t)c->n * sizeof *c->score);
  int rc = chi_clusters_make(&c->clusters, c->picture, c->n, err);
  t->pictures = rc ? 0 : c->clusters.n;
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

/* One metric of one explainer, and its difference to the reference. */
static int estimate(chi_fair_table *t, const counted *c, int row, int metric, const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  chi_fair_stat *s = &t->stat[row * CHI_FAIR_METRICS + metric];
  chi_cell_test test;
  const chi_est none = {.value = NAN, .lo = NAN, .hi = NAN};
  *s = (chi_fair_stat){.mean = none, .diff = none, .p = NAN, .p_holm = NAN};
  if (!values(c, row, metric, c->a)) return 0;
  CHI_TRY(chi_boot_mean(&s->mean, &c->clusters, c->a, NULL, boot, err));
  if (t->reference < 0 || row == t->reference || !values(c, t->reference, metric, c->b)) goto out;
  bool both = false;
  for (int i = 0; i < c->n; i++) both = both || (!isnan(c->a[i]) && !isnan(c->b[i]));
  if (!both) goto out;
  CHI_TRY(chi_boot_mean(&s->diff, &c->clusters, c->a, c->b, boot, err));
  for (int i = 0; i < c->n; i++) c->a[i] -= c->b[i];
  CHI_TRY(chi_max_t(&test, &c->clusters, c->a, 1, boot, err));
  s->p = test.p;
out:
  return rc;
}

static int holm(chi_fair_table *t, int metric, chi_err *err) {
  int rc = 0, n = 0;
  double *p = chi_calloc((size_t)t->n_rows, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (int r = 0; r < t->n_rows; r++)
    if (!t->baseline[r]) p[n++] = t->stat[r * CHI_FAIR_METRICS + metric].p;
  CHI_TRY(chi_holm(p, p, n, err));
  for (int r = 0, k = 0; r < t->n_rows; r++)
    if (!t->baseline[r]) t->stat[r * CHI_FAIR_METRICS + metric].p_holm = p[k++];
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

int chi_fair_table_make(chi_fair_table **out, const json_t *items, const chi_fair_opts *o, const char *against,
                        const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  counted c = {0};
  chi_fair_table *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  t->n_rows = o->n_which + 1;
  t->reference = -1;
  size_t rows = (size_t)t->n_rows;
  t->name = chi_arena_array(&t->arena, rows, sizeof *t->name, err);
  t->baseline = chi_arena_array(&t->arena, rows, sizeof *t->baseline, err);
  t->stat = chi_arena_array(&t->arena, rows * CHI_FAIR_METRICS, sizeof *t->stat, err);
  t->curve = chi_arena_array(&t->arena, rows * 2 * CHI_REMOVALS * CHI_FAIR_SHARES, sizeof *t->curve, err);
  CHI_TRY(t->name && t->baseline && t->stat && t->curve ? 0 : CHI_ERR_MEMORY);
  for (int r = 0; r < t->n_rows; r++) {
    t->name[r] = r < o->n_which ? o->which[r]->name : "mask";
    t->baseline[r] = r == o->n_which || o->which[r]->baseline;
    if (chi_streq(t->name[r], against)) t->reference = r;
  }
  CHI_TRY(collect(t, &c, items, err));
  for (int m = 0; m < CHI_FAIR_METRICS; m++) {
    for (int r = 0; r < t->n_rows; r++) CHI_TRY(estimate(t, &c, r, m, boot, err));
    CHI_TRY(holm(t, m, err));
    CHI_TRY(chi_progress("intervals", m + 1, CHI_FAIR_METRICS, err));
  }
  mean_curves(t, &c);
out:
  chi_clusters_free(&c.clusters);
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

/* Writing fair tests; see fair_report.h. */
#include "report/fair_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { kMaxCurves = 28 };

static const chi_fair_stat *stat_of(const chi_fair_table *t, int row, int metric) {
  return &t->stat[row * CHI_FAIR_METRICS + metric];
}

static bool measured(const chi_fair_table *t, int metric) {
  for (int r = 0; r < t->n_rows; r++)
    if (stat_of(t, r, metric)->mean.n) return true;
  return false;
}

/* ---- JSON, CSV --------------------------------------------------------------------------------------------- */
static json_t *est_json(const chi_est *e, const chi_est *pic) {
  return json_pack("{s:o,s:o,s:o,s:o,s:o,s:i,s:i,s:i}", "value", chi_json_num(e->value), "ci95_lo", chi_json_num(e->lo),
                   "ci95_hi", chi_json_num(e->hi), "by_picture_lo", chi_json_num(pic->lo), "by_picture_hi",
                   chi_json_num(pic->hi), "n", e->n, "units", e->clusters, "pictures", pic->clusters);
}

static json_t *row_json(const chi_fair_table *t, int row) {
  json_t *metrics = json_object();
  for (int m = 0; m < CHI_FAIR_METRICS; m++) {
    const chi_fair_stat *s = stat_of(t, row, m);
    if (!s->mean.n) continue;
    json_t *o = est_json(&s->mean, &s->by_picture), *less = json_object();
    for (int k = 0; k < t->n_refs; k++) {
      const chi_fair_diff *d = &s->diff[k];
      if (!d->est.n) continue;
      json_t *one = est_json(&d->est, &d->by_picture);
      json_object_set_new(one, "p", chi_json_num(d->p));
      if (!t->baseline[row]) json_object_set_new(one, "p_holm", chi_json_num(d->p_holm));
      json_object_set_new(less, t->name[t->ref[k]], one);
    }
    json_object_set_new(o, "less", less);
    json_object_set_new(metrics, chi_fair_metric_name(m), o);
  }
  return json_pack("{s:s,s:b,s:o}", "explainer", t->name[row], "baseline", t->baseline[row], "metrics", metrics);
}

int chi_fair_json(json_t **out, const chi_fair_table *t, const json_t *settings, const chi_provenance *prov,
                  chi_err *err) {
  json_t *o = NULL, *rows = json_array();
  int bad = 0, rc = chi_report_json(&o, "attribution-test", prov, err);
  if (rc) goto out;
  bad |= json_object_set(o, "settings", (json_t *)(uintptr_t)settings);
  bad |= json_object_set_new(o, "items", json_integer(t->items));
  bad |= json_object_set_new(o, "right", json_integer(t->right));
  bad |= json_object_set_new(o, "counted", json_integer(t->counted));
  bad |= json_object_set_new(o, "units", json_integer(t->units));
  bad |= json_object_set_new(o, "pictures", json_integer(t->pictures));
  bad |= json_object_set_new(o, "failed", json_integer(t->failed));
  for (int r = 0; r < t->n_rows; r++) bad |= json_array_append_new(rows, row_json(t, r));
  bad |= json_object_set(o, "explainers", rows);
  rc = bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
out:
  json_decref(rows);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

/* One explainer, one metric, one reference; a number of its own and one that compares. */
static int csv_row(chi_csv *c, const chi_fair_table *t, int r, int m, int k, chi_err *err) {
  const chi_fair_stat *s = stat_of(t, r, m);
  const chi_fair_diff *d = &s->diff[k];
  chi_csv_str(c, t->name[r]);
  chi_csv_int(c, t->baseline[r]);
  chi_csv_str(c, chi_fair_metric_name(m));
  chi_csv_int(c, s->mean.n);
  chi_csv_int(c, s->mean.clusters);
  chi_csv_int(c, s->by_picture.clusters);
  const double own[] = {s->mean.value, s->mean.lo, s->mean.hi, s->by_picture.lo, s->by_picture.hi};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) chi_csv_num(c, own[i]);
  chi_csv_str(c, k < t->n_refs ? t->name[t->ref[k]] : NULL);
  const double less[] = {
      d->est.value, d->est.lo, d->est.hi, d->by_picture.lo, d->by_picture.hi, d->p, t->baseline[r] ? NAN : d->p_holm};
  for (size_t i = 0; i < sizeof less / sizeof *less; i++) chi_csv_num(c, less[i]);
  return chi_csv_row(c, err);
}

static int write_csv(const chi_fair_table *t, const char *path, chi_err *err) {
  static const char *const kHead[] = {"explainer",
                                      "baseline",
                                      "metric",
                                      "n",
                                      "units",
                                      "pictures",
                                      "mean",
                                      "ci95_lo",
                                      "ci95_hi",
                                      "by_picture_lo",
                                      "by_picture_hi",
                                      "less",
                                      "difference",
                                      "diff_lo",
                                      "diff_hi",
                                      "diff_by_picture_lo",
                                      "diff_by_picture_hi",
                                      "p",
                                      "p_holm"};
  int rc = 0;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int r = 0; r < t->n_rows; r++)
    for (int m = 0; m < CHI_FAIR_METRICS; m++) {
      const chi_fair_stat *s = stat_of(t, r, m);
      for (int k = 0; s->mean.n && k < (t->n_refs ? t->n_refs : 1); k++) CHI_TRY(csv_row(c, t, r, m, k, err));
    }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- pictures ---------------------------------------------------------------------------------------------- */
static int draw(const chi_fair_table *t, int metric, const chi_provenance *prov, const char *dir, chi_str *files,
                chi_err *err) {
  static const char *const kEnd[] = {"png", "svg"};
  int rc = 0, n = 0;
  bool in = metric >= CHI_FAIR_INSERTION;
  int how = metric - (in ? CHI_FAIR_INSERTION : CHI_FAIR_DELETION);
  chi_curve curve[kMaxCurves];
  char path[4096], file[96], title[160], line[200];
  const char *lines[1] = {line};
  for (int r = 0; r < t->n_rows && n < kMaxCurves; r++)
    if (stat_of(t, r, metric)->mean.n)
      curve[n++] = (chi_curve){.name = t->name[r],
                               .y = t->curve + ((int64_t)(r * 2 + in) * CHI_REMOVALS + how) * CHI_FAIR_SHARES};
  snprintf(title, sizeof title, "%s, patches removed by %s", in ? "Insertion" : "Deletion", chi_removal_name[how]);
  snprintf(line, sizeof line, "%d questions about %d pictures; the patches that a map puts highest %s first",
           t->counted, t->pictures, in ? "come back" : "go");
  chi_linechart_spec s = {.title = title,
                          .lines = lines,
                          .n_lines = 1,
                          .x_label = in ? "share of the patches that are there" : "share of the patches that are gone",
                          .y_label = "mean p(answer)",
                          .x = chi_fair_share,
                          .n = CHI_FAIR_SHARES,
                          .curves = curve,
                          .n_curves = n,
                          .y_max = 1};
  for (int i = 0; i < 2; i++) {
    snprintf(file, sizeof file, "%s-%s.%s", in ? "insertion" : "deletion", chi_removal_name[how], kEnd[i]);
    CHI_TRY(chi_path_join(path, sizeof path, dir, file, err));
    CHI_TRY(chi_linechart_save(&s, prov, path, err));
  }
  chi_str_addf(files, " %s-%s.{png,svg}", in ? "insertion" : "deletion", chi_removal_name[how]);
out:
  return rc;
}

/* The measures that there are, side by side. */
static int draw_dots(const chi_fair_table *t, const chi_provenance *prov, const char *dir, chi_str *files,
                     chi_err *err) {
  static const char *const kFile[] = {"attribution-test.png", "attribution-test.svg"};
  enum { kMost = 8 };
  int rc = 0, n = 0;
  size_t rows = (size_t)t->n_rows;
  chi_dot_panel panel[kMost];
  char path[4096], line[200], title[kMost][48];
  const char *lines[1] = {line};
  chi_dot_row *dot = chi_calloc(kMost * rows, sizeof *dot, err);
  CHI_TRY(dot ? 0 : CHI_ERR_MEMORY);
  for (int m = 0; m < CHI_FAIR_METRICS && n < kMost; m++) {
    if (!measured(t, m) || m == CHI_FAIR_PRECISION || m == CHI_FAIR_SWITCH_RANK) continue;
    chi_dot_row *d = dot + (size_t)n * rows;
    for (int r = 0; r < t->n_rows; r++) {
      const chi_est *e = &stat_of(t, r, m)->mean;
      d[r] = e->n ? (chi_dot_row){e->value, e->lo, e->hi} : (chi_dot_row){NAN, NAN, NAN};
    }
    snprintf(title[n], sizeof title[n], "%s", m == CHI_FAIR_AUPRC ? "average precision" : chi_fair_metric_name(m));
    for (char *c = title[n]; *c; c++)
      if (*c == '_') *c = ' ';
    bool share = m <= CHI_FAIR_AUPRC || m >= CHI_FAIR_DELETION;
    panel[n] = (chi_dot_panel){.title = title[n], .dot = d, .x_max = share ? 1 : 0, .ref = NAN};
    n++;
  }
  snprintf(line, sizeof line, "%d questions about %d pictures; 95 %% intervals over %d entities; deletion: low is good",
           t->counted, t->pictures, t->units);
  chi_dotchart_spec s = {.title = "Do the maps find what the answer came from?",
                         .lines = lines,
                         .n_lines = 1,
                         .rows = t->name,
                         .dim = t->baseline,
                         .n_rows = t->n_rows,
                         .panels = panel,
                         .n_panels = n};
  for (int i = 0; i < 2 && n > 0; i++) {
    CHI_TRY(chi_path_join(path, sizeof path, dir, kFile[i], err));
    CHI_TRY(chi_dotchart_save(&s, prov, path, err));
  }
  chi_str_add(files, "attribution-test.{json,csv,png,svg}");
out:
  chi_free(dot);
  return rc;
}

int chi_fair_write(const chi_fair_table *t, const json_t *settings, const chi_provenance *prov, const char *dir,
                   chi_str *files, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_fair_json(&j, t, settings, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "attribution-test.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "attribution-test.csv", err));
  CHI_TRY(write_csv(t, path, err));
  CHI_TRY(draw_dots(t, prov, dir, files, err));
  for (int m = CHI_FAIR_DELETION; m < CHI_FAIR_METRICS; m++)
    if (measured(t, m)) CHI_TRY(draw(t, m, prov, dir, files, err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal ---------------------------------------------------------------------------------------------- */
static void value_cell(chi_table *x, const chi_est *e, bool interval) {
  if (!e->n)
    chi_table_cell(x, "-");
  else if (interval && isfinite(e->lo))
    chi_table_cell(x, "%.3f %.3f-%.3f", e->value, e->lo, e->hi);
  else
    chi_table_cell(x, "%.3f", e->value);
}

/* The measures [from, to) of all explainers. */
static int table_of(const chi_fair_table *t, int from, int to, int width, chi_str *out, chi_err *err) {
  enum { kMost = CHI_FAIR_METRICS + CHI_FAIR_REFS + 1 };
  int rc = 0, metric[CHI_FAIR_METRICS], n = 0, cols = 0;
  const char *head[kMost];
  char align[kMost + 1], names[CHI_FAIR_METRICS][48], against[CHI_FAIR_REFS][80];
  chi_table *x = NULL;
  head[cols] = "explainer", align[cols++] = 'l';
  for (int m = from; m < to; m++) {
    if (!measured(t, m)) continue;
    snprintf(names[n], sizeof names[n], "%s", chi_fair_metric_name(m));
    head[cols] = names[n], align[cols++] = 'r';
    metric[n++] = m;
    for (int k = 0; m == CHI_FAIR_AUPRC && k < t->n_refs; k++) {
      snprintf(against[k], sizeof against[k], "p, %s", t->name[t->ref[k]]);
      head[cols] = against[k], align[cols++] = 'r';
    }
  }
  align[cols] = 0;
  if (n == 0) return 0;
  CHI_TRY(chi_table_new(&x, head, align, err));
  for (int r = 0; r < t->n_rows; r++) {
    chi_table_cell(x, "%s%s", t->name[r], t->baseline[r] ? " (baseline)" : "");
    for (int k = 0; k < n; k++) {
      const chi_fair_stat *s = stat_of(t, r, metric[k]);
      value_cell(x, &s->mean, metric[k] == CHI_FAIR_AUPRC || metric[k] >= CHI_FAIR_DELETION);
      if (metric[k] != CHI_FAIR_AUPRC) continue;
      for (int i = 0; i < t->n_refs; i++) {
        if (isnan(s->diff[i].p_holm) || t->baseline[r])
          chi_table_cell(x, "-");
        else
          chi_table_cell(x, "%.4f", s->diff[i].p_holm);
      }
    }
  }
  CHI_TRY(chi_table_text(x, width, out, err));
out:
  chi_table_free(x);
  return rc;
}

int chi_fair_summary(const chi_fair_table *t, int width, chi_str *out, chi_err *err) {
  int rc = 0;
  chi_str_addf(out,
               "%d items, %d answered right, %d counted (removing the object's patches hurts more than random ones)\n"
               "of %d units on %d pictures; %d failed\n",
               t->items, t->right, t->counted, t->units, t->pictures, t->failed);
  if (t->counted == 0) return 0;
  CHI_TRY(table_of(t, 0, CHI_FAIR_DELETION, width, out, err));
  if (t->n_refs)
    chi_str_addf(out, "p, NAME: average precision less NAME's, sign flips of units, Holm over the explainers\n");
  chi_str_add(out, "\n");
  CHI_TRY(table_of(t, CHI_FAIR_DELETION, CHI_FAIR_METRICS, width, out, err));
  chi_str_addf(out,
               "deletion: area under p(answer) while the highest patches go, low is good; insertion: come, high\n");
out:
  return rc;
}

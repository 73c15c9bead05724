/* Evaluated edits to read; see edits_report.h. */
#include "report/edits_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PROBE(E) (CHI_EDITS_PROBE + CHI_PROBE_##E)
static const struct shown {
  int column;
  const char *head;
  bool percent;
} kMain[] = {{CHI_EDITS_HEADLINE, "headline", true},  {CHI_EDITS_RELIABLE, "target said", true},
             {PROBE(PARAPHRASE), "paraphrase", true}, {PROBE(RENDERING), "rendering", true},
             {PROBE(SAME_QUESTION), "(a)", true},     {PROBE(SAME_PICTURE), "(b)", true},
             {CHI_EDITS_P, "p(target)", false}},
  kRest[] = {{PROBE(TEXT_TWIN), "by name", true},       {PROBE(ONE_HOP), "one hop", true},
             {PROBE(REVERSE), "reverse", true},         {PROBE(SAME_RELATION), "(c)", true},
             {PROBE(OTHER_PICTURE), "(d)", true},       {PROBE(OTHER_TEXT), "(e)", true},
             {CHI_EDITS_UNRELATED, "d, e right", true}, {CHI_EDITS_CHANGE, "less before", true},
             {CHI_EDITS_COSINE, "key cosine", false},   {CHI_EDITS_LEAK, "leak", false},
             {CHI_EDITS_LEAK_MAX, "largest", false}};
enum { kMains = sizeof kMain / sizeof *kMain, kRests = sizeof kRest / sizeof *kRest };

static const chi_edits_stat *stat_of(const chi_edits_table *t, int row, int column) {
  return &t->stat[row * CHI_EDITS_COLUMNS + column];
}

static bool measured(const chi_edits_table *t, int column) {
  for (int r = 0; r < t->n_rows; r++)
    if (stat_of(t, r, column)->mean.n) return true;
  return false;
}

/* ---- text ----------------------------------------------------------------------------------------------- */
static void cell(chi_table *t, const chi_est *e, bool percent) {
  double f = percent ? 100 : 1;
  if (!e->n)
    chi_table_cell(t, "-");
  else if (isfinite(e->lo))
    chi_table_cell(t, percent ? "%.1f (%.0f to %.0f)" : "%.3f (%.2f to %.2f)", f * e->value, f * e->lo, f * e->hi);
  else
    chi_table_cell(t, percent ? "%.1f" : "%.3f", f * e->value);
}

/* A table of the columns that were measured. */
static int columns(const chi_edits_table *t, const struct shown *show, int n, bool counts, int width, chi_str *out,
                   chi_err *err) {
  int rc = 0, k = 0;
  const char *head[kMains + kRests + 3] = {"edited by"};
  char align[kMains + kRests + 4] = "l";
  chi_table *u = NULL;
  if (counts) head[++k] = "n", align[k] = 'r';
  for (int c = 0; c < n; c++)
    if (measured(t, show[c].column)) head[++k] = show[c].head, align[k] = 'r';
  if (counts) head[++k] = "failed", align[k] = 'r';
  align[k + 1] = 0;
  CHI_TRY(chi_table_new(&u, head, align, err));
  for (int r = 0; r < t->n_rows; r++) {
    chi_table_cell(u, "%s", t->row[r].name);
    if (counts) chi_table_cell(u, "%d", t->n[r]);
    for (int c = 0; c < n; c++)
      if (measured(t, show[c].column)) cell(u, &stat_of(t, r, show[c].column)->mean, show[c].percent);
    if (counts) chi_table_cell(u, "%d", t->failed[r]);
  }
  CHI_TRY(chi_table_text(u, width, out, err));
out:
  chi_table_free(u);
  return rc;
}

static void p_cell(chi_table *u, double p) {
  if (isnan(p))
    chi_table_cell(u, "-");
  else
    chi_table_cell(u, p < 0.001 ? "%.4f" : "%.3f", p);
}

static int differences(const chi_edits_table *t, int width, chi_str *out, chi_err *err) {
  static const char *const head[] = {"less", "n", "headline", "p", "Holm", "target said", "(a)", "(b)", "d, e right"};
  static const int column[] = {CHI_EDITS_RELIABLE, PROBE(SAME_QUESTION), PROBE(SAME_PICTURE), CHI_EDITS_UNRELATED};
  int rc = 0;
  chi_table *u = NULL;
  if (t->reference < 0 || t->n_rows < 2) return 0;
  CHI_TRY(chi_table_new(&u, head, "lrrrrrrrr", err));
  for (int r = 0; r < t->n_rows; r++) {
    const chi_edits_stat *s = stat_of(t, r, CHI_EDITS_HEADLINE);
    if (r == t->reference) continue;
    chi_table_cell(u, "%s", t->row[r].name);
    chi_table_cell(u, "%d", s->diff.n);
    cell(u, &s->diff, true);
    p_cell(u, s->p);
    p_cell(u, s->p_holm);
    for (size_t c = 0; c < sizeof column / sizeof *column; c++) cell(u, &stat_of(t, r, column[c])->diff, true);
  }
  chi_str_addf(out, "\nDifferences to %s, in points, paired by edit:\n", t->row[t->reference].name);
  CHI_TRY(chi_table_text(u, width, out, err));
out:
  chi_table_free(u);
  return rc;
}

static void add_est(chi_str *out, const chi_est *e) {
  if (isfinite(e->lo))
    chi_str_addf(out, "%.3f (%.3f to %.3f)", e->value, e->lo, e->hi);
  else
    chi_str_add(out, isnan(e->value) ? "does not exist (one of them is constant)" : "one value");
}

static void more(const chi_edits_table *t, chi_str *out) {
  bool traced = measured(t, CHI_EDITS_TRACE);
  if (isfinite(t->peak.value))
    chi_str_addf(out, "\nHighest headline: %s; interval %s to %s; %.0f %% of the draws have this one\n",
                 t->row[(int)t->peak.value].name, isfinite(t->peak.lo) ? t->row[(int)floor(t->peak.lo)].name : "-",
                 isfinite(t->peak.hi) ? t->row[(int)ceil(t->peak.hi)].name : "-", 100 * t->peak_share);
  if (!traced) return;
  chi_str_add(out,
              "\nRank correlation over edits, effect of tracing at the edited cell and p(target) after the edit:\n");
  for (int r = 0; r < t->n_rows; r++) {
    if (!stat_of(t, r, CHI_EDITS_TRACE)->mean.n) continue;
    chi_str_addf(out, "  %s: own less donor ", t->row[r].name);
    add_est(out, &t->rho[r][1]);
    chi_str_add(out, "; own alone ");
    add_est(out, &t->rho[r][0]);
    chi_str_add(out, "\n");
  }
  if (!isfinite(t->rho_rows[1].value)) return;
  chi_str_add(out, "Over rows, mean effect and headline: own less donor ");
  add_est(out, &t->rho_rows[1]);
  chi_str_add(out, "; own alone ");
  add_est(out, &t->rho_rows[0]);
  chi_str_add(out, "\n");
}

int chi_edits_text(const chi_edits_table *t, int width, chi_str *out, chi_err *err) {
  int rc = 0;
  CHI_TRY(columns(t, kMain, kMains, true, width, out, err));
  chi_str_add(out, "\n");
  CHI_TRY(columns(t, kRest, kRests, false, width, out, err));
  CHI_TRY(differences(t, width, out, err));
  more(t, out);
  chi_str_add(
      out,
      "\nIn percent, but for p, cosine and leak; in brackets: 95 % by bootstrap over entities. Headline: harmonic\n"
      "mean of target said, paraphrase, rendering, (a) and (b). Paraphrase, rendering, by name, one hop, reverse:\n"
      "the answer that follows from the edit is said. The answer stays as it was: (a) to the same question about\n"
      "other pictures, (b) to other questions about the same picture, (c) about others by name, (d) about\n"
      "unrelated pictures, (e) in unrelated texts; right: it is true, and less than before the edit. Leak: share\n"
      "of the change that another picture's key receives, in size. p: the two editors swapped for whole\n"
      "entities; Holm: over the rows compared.\n");
  if (out->failed) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
out:
  return rc;
}

/* ---- JSON, CSV ------------------------------------------------------------------------------------------ */
static json_t *est_json(const chi_est *e) {
  return json_pack("{s:o,s:o,s:o,s:i,s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo), "hi",
                   chi_json_num(e->hi), "n", e->n, "clusters", e->clusters);
}

static json_t *row_json(const chi_edits_table *t, int row) {
  char buf[64];
  json_t *o = json_pack("{s:o,s:i,s:i}", "editor", chi_json_text(t->row[row].name), "n", t->n[row], "failed",
                        t->failed[row]),
         *less = json_object();
  for (int c = 0; c < CHI_EDITS_COLUMNS; c++) {
    const chi_edits_stat *s = stat_of(t, row, c);
    const char *name = chi_edits_column(c, buf);
    if (s->mean.n) json_object_set_new(o, name, est_json(&s->mean));
    if (!s->diff.n) continue;
    json_t *d = est_json(&s->diff);
    json_object_set_new(d, "p", chi_json_num(s->p));
    json_object_set_new(d, "p_holm", chi_json_num(s->p_holm));
    json_object_set_new(less, name, d);
  }
  if (json_object_size(less)) json_object_set(o, "differences", less);
  json_decref(less);
  if (stat_of(t, row, CHI_EDITS_TRACE)->mean.n) {
    json_object_set_new(o, "rank_correlation_own", est_json(&t->rho[row][0]));
    json_object_set_new(o, "rank_correlation", est_json(&t->rho[row][1]));
  }
  return o;
}

int chi_edits_rows_json(json_t **out, const chi_edits_table *t, chi_err *err) {
  int bad = 0;
  json_t *rows = json_array();
  for (int r = 0; r < t->n_rows; r++) bad |= json_array_append_new(rows, row_json(t, r));
  if (!rows || bad) {
    json_decref(rows);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
  }
  *out = rows;
  return 0;
}

int chi_edits_curve_json(json_t *o, const chi_edits_table *t, chi_err *err) {
  int bad = json_object_set_new(o, "peak", est_json(&t->peak));
  bad |= json_object_set_new(o, "peak_share", chi_json_num(t->peak_share));
  bad |= json_object_set_new(o, "rank_correlation_own", est_json(&t->rho_rows[0]));
  bad |= json_object_set_new(o, "rank_correlation", est_json(&t->rho_rows[1]));
  return bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
}

int chi_edits_csv(const chi_edits_table *t, const char *path, chi_err *err) {
  static const char *const kColumns[] = {"row",      "column", "value",   "lo",      "hi", "n",
                                         "entities", "diff",   "diff_lo", "diff_hi", "p",  "p_holm"};
  int rc = 0;
  char buf[64];
  chi_csv *f = NULL;
  CHI_TRY(chi_csv_open(&f, path, kColumns, sizeof kColumns / sizeof *kColumns, err));
  for (int r = 0; r < t->n_rows; r++)
    for (int c = 0; c < CHI_EDITS_COLUMNS; c++) {
      const chi_edits_stat *s = stat_of(t, r, c);
      const double x[] = {s->mean.value, s->mean.lo, s->mean.hi},
                   y[] = {s->diff.value, s->diff.lo, s->diff.hi, s->p, s->p_holm};
      if (!s->mean.n) continue;
      chi_csv_str(f, t->row[r].name);
      chi_csv_str(f, chi_edits_column(c, buf));
      for (size_t k = 0; k < sizeof x / sizeof *x; k++) chi_csv_num(f, x[k]);
      chi_csv_int(f, s->mean.n);
      chi_csv_int(f, s->mean.clusters);
      for (size_t k = 0; k < sizeof y / sizeof *y; k++) chi_csv_num(f, s->diff.n ? y[k] : NAN);
      CHI_TRY(chi_csv_row(f, err));
    }
  rc = chi_csv_commit(f, err);
  f = NULL;
out:
  chi_csv_abort(f);
  return rc;
}

/* ---- figure --------------------------------------------------------------------------------------------- */
/* Rows as editors: a panel for the headline and each of its parts. */
static int dots(const chi_edits_table *t, const char *title, const chi_provenance *prov, const char *path,
                chi_err *err) {
  int rc = 0, n = 0;
  size_t rows = (size_t)t->n_rows;
  chi_arena a = {0};
  chi_dot_panel panel[kMains];
  const char **name = chi_arena_array(&a, rows, sizeof *name, err);
  chi_dot_row *dot = chi_arena_array(&a, kMains * rows, sizeof *dot, err);
  CHI_TRY(name && dot ? 0 : CHI_ERR_MEMORY);
  for (size_t r = 0; r < rows; r++) name[r] = t->row[r].name;
  for (int k = 0; k + 1 < kMains; k++) {
    chi_dot_row *d = dot + (size_t)n * rows;
    if (!measured(t, kMain[k].column)) continue;
    for (size_t r = 0; r < rows; r++) {
      const chi_est *e = &stat_of(t, (int)r, kMain[k].column)->mean;
      d[r] = e->n ? (chi_dot_row){100 * e->value, 100 * e->lo, 100 * e->hi} : (chi_dot_row){NAN, NAN, NAN};
    }
    panel[n++] = (chi_dot_panel){.title = kMain[k].head, .dot = d, .x_max = 100, .ref = NAN};
  }
  chi_dotchart_spec s = {.title = title, .rows = name, .n_rows = t->n_rows, .panels = panel, .n_panels = n};
  rc = chi_dotchart_save(&s, prov, path, err);
out:
  chi_arena_free(&a);
  return rc;
}

/* Rows as layers. */
static int lines(const chi_edits_table *t, const char *title, const chi_provenance *prov, const char *path,
                 chi_err *err) {
  int rc = 0, n = 0;
  size_t rows = (size_t)t->n_rows;
  chi_arena a = {0};
  chi_curve curve[kMains];
  double *x = chi_arena_array(&a, rows, sizeof *x, err);
  if (!x) return CHI_ERR_MEMORY;
  for (size_t r = 0; r < rows; r++) x[r] = (double)r;
  memset(curve, 0, sizeof curve);
  for (int k = 0; k + 1 < kMains; k++) {
    double *y = chi_arena_array(&a, 3 * rows, sizeof *y, err);
    CHI_TRY(y ? 0 : CHI_ERR_MEMORY);
    if (!measured(t, kMain[k].column)) continue;
    for (size_t r = 0; r < rows; r++) {
      const chi_est *e = &stat_of(t, (int)r, kMain[k].column)->mean;
      y[r] = 100 * e->value, y[rows + r] = 100 * e->lo, y[2 * rows + r] = 100 * e->hi;
    }
    curve[n].name = k ? kMain[k].head : "headline (harmonic mean)";
    curve[n].y = y;
    if (k == 0) curve[n].lo = y + rows, curve[n].hi = y + 2 * rows;
    n++;
  }
  chi_linechart_spec s = {.title = title,
                          .x_label = "layer that is edited",
                          .y_label = "% of edits",
                          .x = x,
                          .n = rows,
                          .curves = curve,
                          .n_curves = n,
                          .y_max = 100};
  rc = chi_linechart_save(&s, prov, path, err);
out:
  chi_arena_free(&a);
  return rc;
}

int chi_edits_figure(const chi_edits_table *t, const char *title, bool curve, const chi_provenance *prov,
                     const char *path, chi_err *err) {
  return curve ? lines(t, title, prov, path, err) : dots(t, title, prov, path, err);
}

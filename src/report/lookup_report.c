/* Writing in-context lookup; see lookup_report.h. */
#include "report/lookup_report.h"

#include <math.h>
#include <stdio.h>

/* ---- JSON, CSV --------------------------------------------------------------------------------------------- */
static json_t *est_json(const chi_est *e) {
  return json_pack("{s:o,s:o,s:o,s:i,s:i}", "value", chi_json_num(e->value), "ci95_lo", chi_json_num(e->lo), "ci95_hi",
                   chi_json_num(e->hi), "n", e->n, "units", e->clusters);
}

static json_t *column_json(const chi_lookup_table *t, int c) {
  json_t *o = json_pack("{s:i,s:i}", "asked", t->asked[c], "right", t->right[c]), *less = json_object();
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++) {
    const chi_lookup_row *r = &t->row[c][k];
    if (r->mean.n) json_object_set_new(o, chi_incontext_measures[k].key, est_json(&r->mean));
    if (r->less_item.n) json_object_set_new(less, chi_incontext_measures[k].key, est_json(&r->less_item));
  }
  for (int k = 0; k < CHI_LOOKUP_CONTROLS; k++)
    if (t->control[c][k].n) json_object_set_new(o, chi_lookup_controls[k].key, est_json(&t->control[c][k]));
  json_object_set_new(o, "less_item", less);
  return o;
}

int chi_lookup_json(json_t **out, const chi_lookup_table *t, const json_t *settings, const chi_provenance *prov,
                    chi_err *err) {
  json_t *o = NULL, *columns = json_object(), *pairs = json_array();
  int bad = 0, rc = chi_report_json(&o, "incontext-test", prov, err);
  if (rc) goto out;
  for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++)
    if (t->asked[c]) bad |= json_object_set_new(columns, chi_lookup_column[c], column_json(t, c));
  for (int i = 0; i < t->n_pairs; i++)
    bad |= json_array_append_new(
        pairs, json_pack("{s:s,s:s,s:o}", "a", chi_lookup_column[t->pair[i].a], "b", chi_lookup_column[t->pair[i].b],
                         "heads_shared", est_json(&t->pair[i].shared)));
  bad |= json_object_set(o, "settings", (json_t *)(uintptr_t)settings);
  bad |= json_object_set_new(o, "items", json_integer(t->items));
  bad |= json_object_set_new(o, "failed", json_integer(t->failed));
  bad |= json_object_set_new(o, "units", json_integer(t->units));
  bad |= json_object_set_new(o, "heads", json_integer(t->n_heads));
  bad |= json_object_set_new(o, "heads_shared_by_chance", chi_json_num(t->by_chance));
  bad |= json_object_set(o, "asks", columns);
  bad |= json_object_set(o, "pairs", pairs);
  rc = bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
out:
  json_decref(columns);
  json_decref(pairs);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

static void est_cells(chi_csv *c, const chi_est *e) {
  chi_csv_num(c, e && e->n ? e->value : NAN);
  chi_csv_num(c, e && e->n ? e->lo : NAN);
  chi_csv_num(c, e && e->n ? e->hi : NAN);
}

static int line(chi_csv *c, const char *ask, const char *measure, const chi_est *e, const chi_est *less, chi_err *err) {
  if (e->n == 0) return 0;
  chi_csv_str(c, ask);
  chi_csv_str(c, measure);
  chi_csv_int(c, e->n);
  chi_csv_int(c, e->clusters);
  est_cells(c, e);
  est_cells(c, less);
  return chi_csv_row(c, err);
}

static int write_csv(const chi_lookup_table *t, const char *path, chi_err *err) {
  static const char *const kHead[] = {"ask",     "measure", "n",         "units",        "mean",
                                      "ci95_lo", "ci95_hi", "less_item", "less_item_lo", "less_item_hi"};
  int rc = 0;
  char name[80];
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int a = 0; a < CHI_LOOKUP_COLUMNS; a++) {
    const char *ask = chi_lookup_column[a];
    for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++)
      CHI_TRY(line(c, ask, chi_incontext_measures[k].key, &t->row[a][k].mean, &t->row[a][k].less_item, err));
    for (int k = 0; k < CHI_LOOKUP_CONTROLS; k++)
      CHI_TRY(line(c, ask, chi_lookup_controls[k].key, &t->control[a][k], NULL, err));
    for (int i = 0; i < t->n_pairs; i++) {
      if (t->pair[i].a != a) continue;
      snprintf(name, sizeof name, "heads shared with %s", chi_lookup_column[t->pair[i].b]);
      CHI_TRY(line(c, ask, name, &t->pair[i].shared, NULL, err));
    }
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

int chi_lookup_write(const chi_lookup_table *t, const json_t *settings, const chi_provenance *prov, const char *dir,
                     chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_lookup_json(&j, t, settings, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "incontext.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "incontext.csv", err));
  CHI_TRY(write_csv(t, path, err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal ---------------------------------------------------------------------------------------------- */
static void cells(chi_table *x, const chi_est (*of)[CHI_LOOKUP_COLUMNS], const chi_lookup_table *t) {
  for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++) {
    const chi_est *e = &(*of)[c];
    if (!t->asked[c]) continue;
    if (!e->n)
      chi_table_cell(x, "-");
    else if (isfinite(e->lo))
      chi_table_cell(x, "%.3f %.3f-%.3f", e->value, e->lo, e->hi);
    else
      chi_table_cell(x, "%.3f", e->value);
  }
}

int chi_lookup_summary(const chi_lookup_table *t, int width, chi_str *out, chi_err *err) {
  int rc = 0, cols = 1;
  const char *head[CHI_LOOKUP_COLUMNS + 1] = {""};
  char align[CHI_LOOKUP_COLUMNS + 2] = "l";
  chi_est of[CHI_LOOKUP_COLUMNS];
  chi_table *x = NULL;
  for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++)
    if (t->asked[c]) head[cols] = chi_lookup_column[c], align[cols++] = 'r';
  CHI_TRY(chi_table_new(&x, head, align, err));
  chi_table_cell(x, "right of asked");
  for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++)
    if (t->asked[c]) chi_table_cell(x, "%d of %d", t->right[c], t->asked[c]);
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++) {
    for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++) of[c] = t->row[c][k].mean;
    chi_table_cell(x, "%s", chi_incontext_measures[k].text);
    cells(x, &of, t);
  }
  for (int k = 0; k < CHI_LOOKUP_CONTROLS; k++) {
    for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++) of[c] = t->control[c][k];
    chi_table_cell(x, "%s", chi_lookup_controls[k].text);
    cells(x, &of, t);
  }
  chi_str_addf(out, "%d items of %d units, %d failed; items answered right, 95 %% intervals over units\n", t->items,
               t->units, t->failed);
  CHI_TRY(chi_table_text(x, width, out, err));
  for (int i = 0; i < t->n_pairs; i++)
    chi_str_addf(out, "best heads that %s and %s share: %.2f (%.2f-%.2f) of %d, by chance %.2f\n",
                 chi_lookup_column[t->pair[i].a], chi_lookup_column[t->pair[i].b], t->pair[i].shared.value,
                 t->pair[i].shared.lo, t->pair[i].shared.hi, t->n_heads, t->by_chance);
out:
  chi_table_free(x);
  return rc;
}

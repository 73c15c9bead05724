/* Failure prediction of a run, and its paired comparison with twins. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/study_internal.h"
#include "study/predict.h"

/* ---- failure prediction ---------------------------------------------------------------------------------- */
static int one_table(chii_study *s, const char *title, const char *field, const char *equals, json_t *out,
                     chi_err *err) {
  int rc = 0;
  chi_predict p = {0};
  chi_study_predict_counts n = {0};
  chi_err why = {0};
  chi_str *h = &s->html;
  int bad = chi_study_predict_run(
      &p, &n, s->store, &(chi_study_predict_opts){.ask = s->ask, .field = field, .equals = equals, .boot = s->boot},
      &why);
  if (bad == CHI_ERR_MEMORY || bad == CHI_ERR_CANCELLED) return chi_fail(err, bad, "%s", why.text);
  chii_page_head(h, 3, "%s", title);
  if (bad) {
    chii_page_para(h, "%s", why.text);
    return 0;
  }
  chii_page_para(h, "%d items of %d entities, %d answered rightly (%.1f %%).", p.n, p.clusters, p.n_right,
                 100.0 * p.n_right / p.n);
  chii_page_table(h, "score|AUROC (95 %)|less confidence's (95 %)|wrong among the top 20 %|among the bottom 20 %");
  json_t *rows = json_array();
  for (int k = 0; k < p.n_rows; k++) {
    const chi_predict_row *r = &p.row[k];
    chii_page_row(h);
    chii_page_cell(h, "%s", r->name);
    chii_page_est(h, &r->auroc, 3);
    chii_page_est(h, &r->gain, 3);
    chii_page_cell(h, isnan(r->risk_top) ? "-" : "%.3f", r->risk_top);
    chii_page_cell(h, isnan(r->risk_bottom) ? "-" : "%.3f", r->risk_bottom);
    json_array_append_new(rows, json_pack("{s:s, s:o, s:o}", "score", r->name, "auroc", chii_est_json(&r->auroc),
                                          "less_confidence", chii_est_json(&r->gain)));
  }
  chii_page_table_end(h);
  json_object_set_new(out, title, rows);
  chi_predict_free(&p);
  return rc;
}

/* Has any item this text in this field of its info? */
static bool any_with(const chii_study *s, const char *field) {
  for (int32_t i = 0; i < s->n_items; i++)
    if (json_is_true(json_object_get(s->item[i].info, field))) return true;
  return false;
}

int chii_study_predict(chii_study *s, chi_err *err) {
  int rc = 0, right = 0, wrong = 0;
  json_t *out = json_object();
  for (int32_t i = 0; i < s->n_items; i++) {
    right += s->item[i].right == 1;
    wrong += s->item[i].right == 0;
  }
  if (!chii_has_kind(s, "predict/")) goto out;
  chii_page_head(&s->html, 2, "Can it be told that an answer will be wrong?");
  if (!right || !wrong) {
    chii_page_para(&s->html, "%d items are right and %d wrong: there is nothing to tell apart.", right, wrong);
    goto out;
  }
  CHI_TRY(one_table(s, "All items", NULL, NULL, out, err));
  if (any_with(s, "hard")) CHI_TRY(one_table(s, "Hard split", "hard", "true", out, err));
  json_object_set(s->json, "predict", out);
out:
  json_decref(out);
  return rc;
}

/* ---- twins ----------------------------------------------------------------------------------------------- */
/* Peak at the last word token of the item's own question less that of its twin, over items that have both. */
static int shift(chii_study *s, const char *twin, const char *rest, json_t *out, chi_err *err) {
  int rc = 0;
  chii_matrix a = {0}, b = {0};
  const chii_view *v = &s->view[s->n_views - 1];
  double *x = NULL, share = NAN;
  chi_est first, second, both;
  chi_str *h = &s->html;
  char site[64], win[32], corrupt[200];
  CHI_TRY(chii_matrix_of(&a, s, v, err, "trace/%s/%s", s->ask, rest));
  CHI_TRY(chii_matrix_of(&b, s, v, err, "trace/%s/%s", twin, rest));
  if (!a.size || a.size != b.size || a.ndim != 2 || a.dim[1] != CHI_STUDY_ROLES) goto out;
  size_t n = (size_t)v->cl.n_items, L = (size_t)a.dim[0];
  CHI_TRY((x = chi_calloc(2 * n * L, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  double *y = x + n * L;
  for (size_t i = 0; i < n; i++)
    for (size_t l = 0; l < L; l++) {
      size_t at = i * a.size + l * CHI_STUDY_ROLES + CHI_STUDY_WORDS;
      bool gone = isnan(a.v[at]) || isnan(b.v[at]);
      x[i * L + l] = gone ? NAN : a.v[at];
      y[i * L + l] = gone ? NAN : b.v[at];
    }
  CHI_TRY(chi_boot_peak(&first, &share, &v->cl, x, NULL, (int32_t)L, &s->boot, err));
  CHI_TRY(chi_boot_peak(&second, &share, &v->cl, y, NULL, (int32_t)L, &s->boot, err));
  CHI_TRY(chi_boot_peak(&both, &share, &v->cl, x, y, (int32_t)L, &s->boot, err));
  chii_part(rest, 0, corrupt, sizeof corrupt);
  chii_part(rest, 1, site, sizeof site);
  chii_part(rest, 2, win, sizeof win);
  chii_page_row(h);
  chii_page_cell(h, "%s, %s", twin, site);
  chii_page_cell(h, "%s", win + 1);
  chii_page_cell(h, "%s", corrupt);
  chii_page_cell(h, "%d", both.n);
  chii_page_est(h, &first, 0);
  chii_page_est(h, &second, 0);
  chii_page_est(h, &both, 0);
  json_t *j = chii_est_json(&both);
  json_object_set_new(j, "twin", json_string(twin));
  json_object_set_new(j, "map", json_string(rest));
  json_array_append_new(out, j);
out:
  chi_free(x);
  chii_matrix_free(&a);
  chii_matrix_free(&b);
  return rc;
}

int chii_study_twins(chii_study *s, chi_err *err) {
  int rc = 0;
  char twin[64];
  bool begun = false;
  json_t *out = json_array();
  for (size_t i = 0; i < s->n_kinds; i++) {
    const char *k = s->kind[i], *end = strstr(k, "/own/p");
    if (strncmp(k, "trace/", 6) != 0 || !end || end[6] || !chii_part(k, 1, twin, sizeof twin) ||
        strcmp(twin, s->ask) == 0)
      continue;
    const char *rest = k + 6 + strlen(twin) + 1;
    if (strstr(rest, "/head/") || strstr(rest, "/embed/")) continue;
    if (!begun) {
      chii_page_head(&s->html, 2, "The same facts asked otherwise");
      chii_page_para(
          &s->html,
          "Layer with the highest own restoration of all words together, for the item and for its twin, over items "
          "that have both; the shift is item less twin (paired bootstrap over entities).");
      chii_page_table(&s->html,
                      "twin and site|window|corruption|items|peak, item (95 %)|peak, twin (95 %)|shift (95 %)");
      begun = true;
    }
    CHI_TRY(shift(s, twin, rest, out, err));
  }
  if (begun) json_object_set(s->json, "twins", out);
out:
  if (begun) chii_page_table_end(&s->html);
  json_decref(out);
  return rc;
}

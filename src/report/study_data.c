/* A run's rows for its report: items, filters, results as matrices. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "report/study_internal.h"

bool chii_part(const char *name, int i, char *buf, size_t cap) {
  for (; i > 0; i--) {
    name = strchr(name, '/');
    if (!name) return false;
    name++;
  }
  snprintf(buf, cap, "%.*s", (int)strcspn(name, "/"), name);
  return true;
}

bool chii_has_kind(const chii_study *s, const char *prefix) {
  for (size_t i = 0; i < s->n_kinds; i++)
    if (strncmp(s->kind[i], prefix, strlen(prefix)) == 0) return true;
  return false;
}

/* ---- items ----------------------------------------------------------------------------------------------- */
static int read_items(chii_study *s, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_store_items(s->store, &s->row, &s->n_rows, &s->arena, err));
  CHI_TRY((s->item = chi_arena_array(&s->arena, s->n_rows, sizeof *s->item, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < s->n_rows; i++) {
    const chi_store_item *row = &s->row[i];
    chii_item *it = &s->item[s->n_items];
    if (row->status != CHI_STORE_OK) continue;
    CHI_TRY(chi_json_parse(&it->info, row->info, strlen(row->info), row->id, err));
    const json_t *ask = json_object_get(json_object_get(it->info, "ask"), s->ask);
    const json_t *right = json_object_get(ask, "right");
    it->row = row;
    it->right = json_is_boolean(right) ? json_is_true(right) : -1;
    it->p = json_is_number(json_object_get(ask, "p")) ? json_number_value(json_object_get(ask, "p")) : NAN;
    s->n_items++;
  }
  if (s->n_items == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "%s: no item is done yet, there is nothing to report", chi_store_path(s->store));
out:
  return rc;
}

static int make_view(chii_study *s, int which, const char *name, const char *title, const bool *keep, chi_err *err) {
  int rc = 0, n = 0;
  chii_view *v = &s->view[which];
  const char **unit = chi_calloc((size_t)s->n_items, sizeof *unit, err);
  v->name = name;
  v->title = title;
  v->at = chi_arena_array(&s->arena, (size_t)s->n_items, sizeof *v->at, err);
  CHI_TRY(unit && v->at ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < s->n_items; i++) {
    if (keep && !keep[i]) continue;
    unit[n] = s->item[i].row->unit;
    v->at[n++] = i;
  }
  if (n) rc = chi_clusters_make(&v->cl, unit, n, err);
out:
  chi_free(unit);
  return rc;
}

/* One filter after the other, each with what it took away. */
static int filter(chii_study *s, chi_err *err) {
  int rc = 0, left = s->n_items, known = 0;
  const chi_study_report_opts *o = s->opts;
  bool *keep = chi_calloc((size_t)s->n_items, sizeof *keep, err);
  if (!keep) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < s->n_items; i++) {
    keep[i] = true;
    known += s->item[i].right >= 0;
  }
  for (int f = 0; f < 4; f++) {
    int before = left;
    char what[200] = "";
    if (f == 0 && o->split) snprintf(what, sizeof what, "split is not \xe2\x80\x9c%s\xe2\x80\x9d", o->split);
    if (f == 1 && o->group) snprintf(what, sizeof what, "form is not \xe2\x80\x9c%s\xe2\x80\x9d", o->group);
    if (f == 2 && !o->keep_wrong && known) snprintf(what, sizeof what, "not answered rightly");
    if (f == 3 && o->min_p > 0) snprintf(what, sizeof what, "p of the answer's first token is below %g", o->min_p);
    if (!what[0]) continue;
    for (int32_t i = 0; i < s->n_items; i++) {
      const chii_item *it = &s->item[i];
      bool good = f == 0   ? chi_streq(it->row->split, o->split)
                  : f == 1 ? chi_streq(it->row->group, o->group)
                  : f == 2 ? it->right == 1
                           : it->p >= o->min_p;
      if (!keep[i] || good) continue;
      keep[i] = false;
      left--;
    }
    chi_str_addf(&s->filters, "<li>");
    chii_page_text(&s->filters, what);
    chi_str_addf(&s->filters, ": %d items left out, %d stay</li>\n", before - left, left);
  }
  if (!o->keep_wrong && !known)
    chi_str_add(&s->filters, "<li>the data set has no answers: right and wrong items cannot be told apart</li>\n");
  CHI_TRY(make_view(s, CHII_ALL, "all", "all items", NULL, err));
  s->n_views = 1;
  if (left == s->n_items || left == 0) goto out;
  CHI_TRY(make_view(s, CHII_KEPT, "filtered", "filtered items", keep, err));
  s->n_views = 2;
out:
  chi_free(keep);
  return rc;
}

int chii_study_load(chii_study *s, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_store_read(&s->store, s->run, err));
  const char *text = chi_store_get(s->store, "settings");
  CHI_TRY(text ? 0 : chi_fail(err, CHI_ERR_FORMAT, "%s: its settings are missing", chi_store_path(s->store)));
  CHI_TRY(chi_json_parse(&s->settings, text, strlen(text), chi_store_path(s->store), err));
  const char *asks = json_string_value(json_object_get(s->settings, "asks"));
  if (!chi_study_word(asks ? asks : "item", 0, s->ask, sizeof s->ask)) snprintf(s->ask, sizeof s->ask, "item");
  CHI_TRY(read_items(s, err));
  CHI_TRY(chi_store_kinds(s->store, &s->kind, &s->n_kinds, &s->arena, err));
  CHI_TRY(filter(s, err));
out:
  return rc;
}

void chii_study_free(chii_study *s) {
  for (int32_t i = 0; i < s->n_items; i++) json_decref(s->item[i].info);
  for (int v = 0; v < CHII_VIEWS; v++) chi_clusters_free(&s->view[v].cl);
  json_decref(s->settings);
  json_decref(s->json);
  chi_csv_abort(s->maps);
  chi_csv_abort(s->curves);
  chi_str_free(&s->filters);
  chi_str_free(&s->html);
  chi_store_close(s->store);
  chi_arena_free(&s->arena);
}

/* ---- matrices -------------------------------------------------------------------------------------------- */
int chii_matrix_of(chii_matrix *out, chii_study *s, const chii_view *v, chi_err *err, const char *fmt, ...) {
  char kind[300];
  chi_store_values got;
  chi_arena tmp = {0};
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(kind, sizeof kind, fmt, ap);
  va_end(ap);
  memset(out, 0, sizeof *out);
  int rc = chi_store_values_of(s->store, kind, &got, &tmp, err);
  if (rc || got.n == 0) goto out;
  out->size = got.size;
  out->ndim = got.ndim;
  memcpy(out->dim, got.dim, sizeof out->dim);
  size_t n = (size_t)v->cl.n_items, k = 0;
  CHI_TRY((out->v = chi_calloc(n * got.size, sizeof *out->v, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) {
    int64_t seq = s->item[v->at[i]].row->seq;
    while (k < got.n && got.seq[k] < seq) k++;
    bool there = k < got.n && got.seq[k] == seq;
    for (size_t c = 0; c < got.size; c++) out->v[i * got.size + c] = there ? (double)got.v[k * got.size + c] : NAN;
    out->n += there;
  }
out:
  chi_arena_free(&tmp);
  return rc;
}

void chii_matrix_free(chii_matrix *m) {
  chi_free(m->v);
  memset(m, 0, sizeof *m);
}

double chii_mean(const chii_matrix *m, int32_t n_items, size_t column) {
  double sum = 0;
  int32_t n = 0;
  for (int32_t i = 0; i < n_items; i++) {
    double x = m->v[(size_t)i * m->size + column];
    if (isnan(x)) continue;
    sum += x;
    n++;
  }
  return n ? sum / n : NAN;
}

void chii_column(double *out, const chii_matrix *m, int32_t n_items, size_t column) {
  for (int32_t i = 0; i < n_items; i++) out[i] = m->v[(size_t)i * m->size + column];
}

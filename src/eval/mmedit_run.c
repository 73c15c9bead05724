/* MMEdit over a file; see mmedit_run.h. */
#include "eval/mmedit_run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- lines of the log -------------------------------------------------------------------------------------- */
static json_t *num(double x) { return isfinite(x) ? json_real(x) : json_null(); }

/* Files and models may write what is no UTF-8. */
static json_t *text(const char *s) {
  json_t *j = json_string(s);
  return j ? j : json_string("(not valid UTF-8)");
}

static json_t *ids(const int32_t *id, int32_t n) {
  json_t *a = json_array();
  for (int32_t i = 0; id && i < n; i++) json_array_append_new(a, json_integer(id[i]));
  return a;
}

static json_t *answer_json(const chi_mm_answer *x) {
  json_t *o = json_pack("{s:o,s:o,s:o,s:o,s:o}", "acc", num(x->acc), "exact", num(x->exact), "nll", num(x->nll),
                        "labels", ids(x->label, x->n), "predicted", ids(x->pred, x->n));
  if (o && isfinite(x->right)) {
    json_object_set_new(o, "right", json_real(x->right));
    json_object_set_new(o, "said", text(x->said));
  }
  return o;
}

static json_t *result_json(const chi_data_item *it, const chi_mm_result *r) {
  const chi_mmedit *e = it->mmedit;
  json_t *j = json_pack("{s:s,s:s,s:o,s:s}", "id", it->id, "type", it->group, "picture", text(e->image_name), "status",
                        "ok"),
         *before = json_object(), *after = json_object(), *ports = json_array();
  for (int k = 0; k < CHI_MM_INPUTS; k++) {
    if (r->before[k].asked) json_object_set_new(before, chi_mm_input_name[k], answer_json(&r->before[k]));
    if (r->after[k].asked) json_object_set_new(after, chi_mm_input_name[k], answer_json(&r->after[k]));
  }
  json_object_set_new(j, "before", before);
  json_object_set_new(j, "after", after);
  for (int s = 0; s < CHI_MM_SIDES; s++) {
    const chi_mm_local *l = &r->local[s];
    if (l->asked)
      json_object_set_new(j, chi_mm_side_name[s],
                          json_pack("{s:o,s:o,s:o,s:o,s:i,s:i}", "same", num(l->same), "answer", num(l->answer), "kl",
                                    num(l->kl), "kl_answer", num(l->kl_answer), "positions", l->rows, "labels", l->n));
  }
  for (int i = 0; i < e->n_port && i < CHI_MM_MAX_PORTS; i++)
    json_array_append_new(ports, json_pack("{s:o,s:o,s:o}", "type", text(e->port[i].type), "before",
                                           answer_json(&r->port_before[i]), "after", answer_json(&r->port_after[i])));
  if (e->n_port) json_object_set(j, "portability", ports);
  json_decref(ports);
  if (r->moved) json_object_set_new(j, "prompt_tokens_moved", json_true());
  return j;
}

static int add_line(chi_jlog *log, json_t *j, chi_err *err) {
  int rc = j ? chi_jlog_add(log, j, err) : chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_decref(j);
  return rc;
}

static int add_problem(chi_jlog *log, const chi_data_item *it, const char *status, const char *why, chi_err *err) {
  return add_line(
      log, json_pack("{s:s,s:s,s:s,s:o}", "id", it->id, "type", it->group, "status", status, "reason", text(why)), err);
}

/* What ends a run rather than a record. */
static bool ends_run(int rc) { return rc == CHI_ERR_CANCELLED || rc == CHI_ERR_MEMORY; }

/* ---- one record -------------------------------------------------------------------------------------------- */
static int make_edit(chi_delta **out, chi_model *m, const chi_mm_case *c, const chi_mm_run_opts *o, chi_err *err) {
  int rc = 0;
  chi_request req;
  chi_edit_info info;
  CHI_TRY(chi_mm_request(&req, c, m, o->at, err));
  CHI_TRY(chi_edit_run(out, &info, m, &req, 1, o->edit, err));
out:
  return rc;
}

/* rc: of the record; *bad: of the log. */
static int one_alone(chi_jlog *log, chi_model *m, const chi_data_item *it, const chi_mm_run_opts *o, chi_err *err) {
  int rc = 0;
  chi_mm_case *c = NULL;
  chi_delta *d = NULL;
  chi_undo undo = {0};
  CHI_TRY(chi_mm_case_make(&c, m, it->mmedit, &o->ask, err));
  CHI_TRY(chi_mm_before(c, m, err));
  if (o->kind == CHI_MM_IDEAL || o->kind == CHI_MM_LOOKUP) {
    chi_mm_pretend(c, o->kind == CHI_MM_IDEAL);
  } else {
    if (o->kind == CHI_MM_METHOD) {
      CHI_TRY(make_edit(&d, m, c, o, err));
      CHI_TRY(chi_delta_apply(d, m, &undo, err));
    }
    CHI_TRY(chi_mm_after(c, m, err));
  }
  chi_delta_undo(&undo);
  CHI_TRY(add_line(log, result_json(it, chi_mm_result_of(c)), err));
out:
  chi_delta_undo(&undo);
  chi_delta_free(d);
  chi_mm_case_free(c);
  return rc;
}

static bool wanted(const chi_data_item *it, const chi_mm_run_opts *o) {
  return o->shards < 2 || (it->row - 1) % o->shards == o->shard;
}

static int alone(chi_jlog *log, chi_model *m, const chi_dataset *d, const chi_mm_run_opts *o, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    chi_err why = {0};
    CHI_TRY(chi_progress("MMEdit", (int64_t)i, (int64_t)d->n, err));
    if (!wanted(it, o) || chi_jlog_find(log, it->id)) continue;
    if (it->problem) {
      CHI_TRY(add_problem(log, it, "skipped", it->problem, err));
      continue;
    }
    int bad = one_alone(log, m, it, o, &why);
    if (bad && (ends_run(bad) || chi_jlog_find(log, it->id))) return chi_fail(err, bad, "%s", why.text);
    if (bad) CHI_TRY(add_problem(log, it, "failed", why.text, err));
  }
  rc = chi_progress("MMEdit", (int64_t)d->n, (int64_t)d->n, err);
out:
  return rc;
}

/* ---- one after another ------------------------------------------------------------------------------------- */
typedef struct queue {
  chi_mm_case **c; /* [n]; NULL where the record cannot be asked */
  size_t n;
} queue;

static int base_answers(queue *q, chi_jlog *log, chi_model *m, const chi_dataset *d, const chi_mm_run_opts *o,
                        chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    chi_err why = {0};
    bool known = chi_jlog_find(log, it->id) != NULL;
    CHI_TRY(chi_progress("asking the base", (int64_t)i, (int64_t)d->n, err));
    int bad = it->problem ? CHI_ERR_ARG : chi_mm_case_make(&q->c[i], m, it->mmedit, &o->ask, &why);
    if (bad == 0 && !known) bad = chi_mm_before(q->c[i], m, &why);
    if (bad == 0) continue;
    chi_mm_case_free(q->c[i]);
    q->c[i] = NULL;
    if (ends_run(bad)) return chi_fail(err, bad, "%s", why.text);
    if (!known)
      CHI_TRY(add_problem(log, it, it->problem ? "skipped" : "failed", it->problem ? it->problem : why.text, err));
  }
out:
  return rc;
}

static int one_by_one(chi_jlog *log, chi_model *m, const chi_dataset *d, const chi_mm_run_opts *o, chi_err *err) {
  int rc = 0;
  queue q = {.n = d->n};
  chi_delta *delta = NULL;
  q.c = chi_calloc(d->n + 1, sizeof(chi_mm_case *), err);
  CHI_TRY(q.c ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(base_answers(&q, log, m, d, o, err));
  for (size_t i = 0; i < d->n; i++) {
    chi_err why = {0};
    CHI_TRY(chi_progress("edits one after another", (int64_t)i, (int64_t)d->n, err));
    if (q.c[i] && o->kind == CHI_MM_METHOD) {
      int bad = make_edit(&delta, m, q.c[i], o, &why);
      if (bad == 0) bad = chi_delta_apply(delta, m, NULL, &why);
      chi_delta_free(delta);
      delta = NULL;
      if (ends_run(bad)) {
        rc = chi_fail(err, bad, "%s", why.text);
        goto out;
      }
      if (bad) {
        if (!chi_jlog_find(log, d->item[i].id)) CHI_TRY(add_problem(log, &d->item[i], "failed", why.text, err));
        chi_mm_case_free(q.c[i]);
        q.c[i] = NULL;
      }
    }
    if (i < (size_t)o->gap) continue;
    size_t k = i - (size_t)o->gap;
    if (q.c[k] && !chi_jlog_find(log, d->item[k].id)) {
      CHI_TRY(chi_mm_after(q.c[k], m, err));
      CHI_TRY(add_line(log, result_json(&d->item[k], chi_mm_result_of(q.c[k])), err));
    }
    chi_mm_case_free(q.c[k]);
    q.c[k] = NULL;
  }
out:
  for (size_t i = 0; q.c && i < q.n; i++) chi_mm_case_free(q.c[i]);
  chi_free(q.c);
  return rc;
}

int chi_mm_run(chi_jlog *log, chi_model *m, const chi_dataset *d, const chi_mm_run_opts *o, chi_err *err) {
  chi_mm_run_opts use = *o;
  bool plain = m->plain_ids;
  if (d->format != CHI_DATA_MMEDIT)
    return chi_fail(err, CHI_ERR_ARG, "the data set is %s, not a file of MMEdit's records", d->name);
  if (o->sequential && (o->kind == CHI_MM_IDEAL || o->kind == CHI_MM_LOOKUP))
    return chi_fail(err, CHI_ERR_ARG, "a table of edits has nothing to do with their order: leave sequential out");
  if (o->gap < 0 || (size_t)o->gap >= d->n)
    return chi_fail(err, CHI_ERR_ARG, "a gap of %d leaves nothing to ask of %zu records", o->gap, d->n);
  use.ask.caption = strcmp(d->name, "mmedit caption") == 0;
  use.ask.short_memory = o->sequential;
  if (o->ask.protocol != CHI_MM_OWN) m->plain_ids = true;
  int rc = o->sequential ? one_by_one(log, m, d, &use, err) : alone(log, m, d, &use, err);
  m->plain_ids = plain;
  return rc;
}

/* ---- sums -------------------------------------------------------------------------------------------------- */
static const char *const kColumn[CHI_MM_COLUMNS] = {
    "before.reliability.acc",  "before.reliability.exact",  "before.reliability.right",
    "after.reliability.acc",   "after.reliability.exact",   "after.reliability.right",
    "before.t_generality.acc", "before.t_generality.exact", "before.t_generality.right",
    "after.t_generality.acc",  "after.t_generality.exact",  "after.t_generality.right",
    "before.m_generality.acc", "before.m_generality.exact", "before.m_generality.right",
    "after.m_generality.acc",  "after.m_generality.exact",  "after.m_generality.right",
    "t_locality.same",         "t_locality.answer",         "t_locality.kl",
    "t_locality.kl_answer",    "m_locality.same",           "m_locality.answer",
    "m_locality.kl",           "m_locality.kl_answer",      "portability.before.acc",
    "portability.after.acc"};

const char *chi_mm_column(int column) { return column >= 0 && column < CHI_MM_COLUMNS ? kColumn[column] : NULL; }
int chi_mm_column_find(const char *name) {
  for (int c = 0; c < CHI_MM_COLUMNS; c++)
    if (strcmp(kColumn[c], name) == 0) return c;
  return -1;
}

/* The number at a dotted path; of a list, the mean over its entries. */
static double value_at(const json_t *j, const char *path) {
  char key[64];
  size_t n = strcspn(path, ".");
  if (json_is_array(j)) {
    double sum = 0;
    size_t k = 0;
    for (size_t i = 0; i < json_array_size(j); i++) {
      double x = value_at(json_array_get(j, i), path);
      if (isfinite(x)) sum += x, k++;
    }
    return k ? sum / (double)k : NAN;
  }
  snprintf(key, sizeof key, "%.*s", (int)n, path);
  const json_t *v = json_object_get(j, key);
  if (path[n]) return value_at(v, path + n + 1);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

int chi_mm_sums(chi_mm_sum *out, const chi_jlog *log, const chi_dataset *d, const char *type, chi_err *err) {
  int rc = 0;
  chi_clusters clusters = {0};
  size_t n = 0;
  const char **name = chi_calloc(d->n + 1, sizeof *name, err);
  const json_t **line = chi_calloc(d->n + 1, sizeof *line, err);
  double *x = chi_calloc(d->n + 1, sizeof *x, err);
  memset(out, 0, sizeof *out);
  CHI_TRY(name && line && x ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < d->n; i++) {
    const json_t *j = chi_jlog_find(log, d->item[i].id);
    const char *status = json_string_value(json_object_get(j, "status"));
    if (!status || (type && !chi_streq(json_string_value(json_object_get(j, "type")), type))) continue;
    out->skipped += strcmp(status, "skipped") == 0;
    out->failed += strcmp(status, "failed") == 0;
    if (strcmp(status, "ok") != 0) continue;
    out->moved += json_is_true(json_object_get(j, "prompt_tokens_moved"));
    line[n] = j;
    name[n++] = d->item[i].entity;
  }
  out->n = (int)n;
  CHI_TRY(chi_clusters_make(&clusters, name, (int32_t)n, err));
  for (int c = 0; c < CHI_MM_COLUMNS; c++) {
    for (size_t i = 0; i < n; i++) x[i] = value_at(line[i], kColumn[c]);
    const chi_boot_opts bo = {.draws = 2000};
    CHI_TRY(chi_boot_mean(&out->col[c], &clusters, x, NULL, &bo, err));
  }
out:
  chi_clusters_free(&clusters);
  chi_free(name);
  chi_free(line);
  chi_free(x);
  return rc;
}

/* chiasm edit --requests; see edit_many.h. */
#include "edit_many.h"

#include <math.h>
#include <stdio.h>

#include "data/edits.h"

typedef struct one {
  const chi_edit_item *it;
  chi_query *ask;
  chi_edit_probe before, own, after; /* own: right after its own edit */
  chi_edit_info info;
} one;

typedef struct work {
  const cli_edit_many *o;
  chi_edit_set set;
  one *list;
  chi_delta *delta;
} work;

static int ask_all(work *w, chi_err *err) {
  int rc = 0;
  char where[128];
  w->list = chi_calloc(w->set.n, sizeof *w->list, err);
  if (!w->list) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < w->set.n; i++) {
    one *x = &w->list[i];
    chi_query_opts a = w->o->ask;
    x->it = &w->set.item[i];
    a.image = x->it->image, a.question = x->it->question, a.target = x->it->target;
    if (x->it->edit_at) a.at = x->it->edit_at;
    rc = chi_query_make(&x->ask, w->o->m, &a, err);
    if (rc) {
      snprintf(where, sizeof where, "request %.60s (line %d)", x->it->id, x->it->line);
      chi_err_prefix(err, where);
      goto out;
    }
  }
out:
  return rc;
}

static int measure(work *w, size_t i, chi_edit_probe *to, chi_err *err) {
  const chi_request *r = &w->list[i].ask->req;
  return chi_edit_measure(to, w->o->m, r->prompt, r->target, r->n_target, err);
}

static int measure_all(work *w, bool after, chi_err *err) {
  int rc = 0;
  const char *what = after ? "asking again" : "asking";
  for (size_t i = 0; i < w->set.n; i++) {
    CHI_TRY(chi_progress(what, (int64_t)i, (int64_t)w->set.n, err));
    CHI_TRY(measure(w, i, after ? &w->list[i].after : &w->list[i].before, err));
  }
  CHI_TRY(chi_progress(what, (int64_t)w->set.n, (int64_t)w->set.n, err));
out:
  return rc;
}

static int at_once(work *w, chi_err *err) {
  int rc = 0;
  chi_request *r = chi_calloc(w->set.n, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < w->set.n; i++) r[i] = w->list[i].ask->req;
  CHI_TRY(chi_edit_run(&w->delta, &w->list[0].info, w->o->m, r, w->set.n, w->o->edit, err));
  CHI_TRY(chi_delta_apply(w->delta, w->o->m, NULL, err));
out:
  chi_free(r);
  return rc;
}

static int one_by_one(work *w, chi_err *err) {
  int rc = 0;
  size_t n = w->set.n;
  chi_delta **part = chi_calloc(n, sizeof *part, err);
  if (!part) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    CHI_TRY(chi_edit_run(&part[i], &w->list[i].info, w->o->m, &w->list[i].ask->req, 1, w->o->edit, err));
    CHI_TRY(chi_delta_apply(part[i], w->o->m, NULL, err));
    CHI_TRY(measure(w, i, &w->list[i].own, err));
  }
  CHI_TRY(chi_delta_merge(&w->delta, part, n, err));
out:
  for (size_t i = 0; i < n; i++) chi_delta_free(part[i]);
  chi_free(part);
  return rc;
}

static json_t *probe(const chi_edit_probe *p) {
  return json_pack("{s:o,s:o}", "p_target", chi_json_num(p->p), "answer", chi_json_text(p->said));
}

static json_t *requests_json(const work *w) {
  json_t *list = json_array();
  for (size_t i = 0; i < w->set.n; i++) {
    const one *x = &w->list[i];
    json_t *r = json_pack("{s:o,s:o,s:o,s:i,s:o,s:o}", "id", chi_json_text(x->it->id), "prompt",
                          chi_json_text(x->it->question), "target", chi_json_text(x->it->target), "row",
                          x->ask->req.row, "before", probe(&x->before), "after_all", probe(&x->after));
    if (x->it->image) json_object_set_new(r, "image", chi_json_text(x->it->image));
    if (w->o->sequential) json_object_set_new(r, "after_own", probe(&x->own));
    json_array_append_new(list, r);
  }
  return list;
}

static int fill_header(work *w, chi_err *err) {
  json_t *h = w->delta->header, *r = json_object(), *on = json_array();
  int bad = json_object_set_new(r, "file", chi_json_text(w->o->requests));
  bad |= json_object_set_new(r, "sha256", json_string(w->set.hash));
  bad |= json_object_set_new(r, "sequential", json_boolean(w->o->sequential));
  bad |= json_object_set_new(r, "edits", requests_json(w));
  bad |= json_object_set_new(h, "requests", r);
  for (int i = 0; i < w->o->c->common->apply.n; i++)
    json_array_append_new(on, chi_json_text(w->o->c->common->apply.v[i]));
  bad |= json_object_set_new(h, "made_on_top_of", on);
  return bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the delta's header") : 0;
}

static int print_text(const work *w, chi_err *err) {
  static const char *const kHead[] = {"request",   "target",        "p before",    "own edit",
                                      "after all", "answer before", "answer after"};
  int rc = 0, said = 0;
  double p = 0;
  size_t n = w->set.n;
  chi_str s = {0};
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, "llrrrll", err));
  for (size_t i = 0; i < n; i++) {
    const one *x = &w->list[i];
    chi_table_cell(t, "%s", x->it->id);
    chi_table_cell(t, "%s", x->it->target);
    chi_table_cell(t, "%.4f", x->before.p);
    chi_table_cell(t, w->o->sequential ? "%.4f" : "-", x->own.p);
    chi_table_cell(t, "%.4f", x->after.p);
    chi_table_cell(t, "%s", x->before.said);
    chi_table_cell(t, "%s", x->after.said);
    said += chi_streq(x->after.said, x->it->target);
    p += x->after.p / (double)n;
  }
  CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  chi_str_addf(&s, "\n%zu edits by %s%s: %d targets are said, mean p(target) %.4f\n", n, w->o->edit->method,
               w->o->sequential ? ", one after another" : ", at once", said, p);
  if (w->o->out) chi_str_addf(&s, "wrote %s\n", w->o->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_table_free(t);
  chi_str_free(&s);
  return rc;
}

static int print_json(const work *w, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, w->o->c, w->o->m, NULL, NULL, err));
  prov.data_hash = w->set.hash;
  CHI_TRY(chi_report_json(&j, "edit", &prov, err));
  json_object_set(j, "delta", w->delta->header);
  CHI_TRY(cli_print_json(j, err));
out:
  json_decref(j);
  return rc;
}

int cli_edit_many_run(const cli_edit_many *o, chi_err *err) {
  int rc = 0;
  const chi_method *method;
  work w = {.o = o};
  CHI_TRY(chi_method_find(&method, o->edit->method, err));
  if (!o->sequential && !method->many) {
    rc = cli_usage(err,
                   "%s makes one edit at a time: --sequential makes them one after another (memit takes all at once)",
                   method->name);
    goto out;
  }
  CHI_TRY(chi_edit_set_load(&w.set, o->requests, NULL, 0, err));
  CHI_TRY(ask_all(&w, err));
  CHI_TRY(measure_all(&w, false, err));
  CHI_TRY(o->sequential ? one_by_one(&w, err) : at_once(&w, err));
  CHI_TRY(measure_all(&w, true, err));
  CHI_TRY(fill_header(&w, err));
  if (o->out) CHI_TRY(chi_delta_save(w.delta, o->out, err));
  CHI_TRY(o->c->common->json ? print_json(&w, err) : print_text(&w, err));
out:
  for (size_t i = 0; w.list && i < w.set.n; i++) chi_query_free(w.list[i].ask);
  chi_free(w.list);
  chi_delta_free(w.delta);
  chi_edit_set_free(&w.set);
  return rc;
}

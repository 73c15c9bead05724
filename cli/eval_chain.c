/* Chains of edits; see eval_chain.h. */
#include "eval_chain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/edits_chain.h"

enum { kPoints = 32 };

typedef struct work {
  const cli_chain *o;
  int at[kPoints];
  chi_items items;
  const chi_item **untouched;
  chi_chain_opts chain;
  chi_chain_point point[kPoints];
} work;

static int parse_points(work *w, chi_err *err) {
  const char *p = w->o->at;
  size_t n = 0;
  for (bool more = true; more; p++) {
    char *end;
    long v = strtol(p, &end, 10);
    bool ok = end != p && (*end == ',' || !*end) && v > 0 && n < kPoints && (n == 0 || v > w->at[n - 1]);
    if (!ok)
      return cli_usage(err, "--sequential is a rising list of at most %d numbers such as 1,10,100, not '%s'", kPoints,
                       w->o->at);
    if ((size_t)v > w->o->set->n)
      return chi_fail(err, CHI_ERR_ARG, "--sequential %ld: the set has %zu edits", v, w->o->set->n);
    w->at[n++] = (int)v;
    p = end;
    more = *p == ',';
  }
  w->chain.at = w->at, w->chain.n_at = n;
  return 0;
}

static json_t *est_json(const chi_est *e) {
  return json_pack("{s:o,s:o,s:o,s:i,s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo), "hi",
                   chi_json_num(e->hi), "n", e->n, "clusters", e->clusters);
}

static int print_json(const work *w, chi_err *err) {
  int rc = 0;
  json_t *j = NULL, *list = json_array();
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, w->o->c, w->o->m, NULL, NULL, err));
  prov.data_hash = w->o->set->hash;
  CHI_TRY(chi_report_json(&j, "eval edits, sequential", &prov, err));
  for (size_t k = 0; k < w->chain.n_at; k++) {
    const chi_chain_point *p = &w->point[k];
    json_t *o = json_pack("{s:i,s:i,s:o,s:o}", "edits", p->edits, "failed", p->failed, "reliability",
                          est_json(&p->said), "p_target", est_json(&p->p));
    if (w->chain.n_untouched) {
      json_object_set_new(o, "untouched_right", est_json(&p->right));
      json_object_set_new(o, "untouched_before", est_json(&p->base));
      json_object_set_new(o, "untouched_less_before", est_json(&p->lost));
      json_object_set_new(o, "went_wrong", json_integer(p->went_wrong));
      json_object_set_new(o, "went_right", json_integer(p->went_right));
    }
    json_array_append_new(list, o);
  }
  json_object_set(j, "settings", w->o->head);
  json_object_set(j, "points", list);
  CHI_TRY(cli_print_json(j, err));
out:
  json_decref(list);
  json_decref(j);
  return rc;
}

static void cell(chi_table *t, const chi_est *e, double f) {
  if (isfinite(e->lo))
    chi_table_cell(t, f > 1 ? "%.1f (%.1f to %.1f)" : "%.3f (%.2f to %.2f)", f * e->value, f * e->lo, f * e->hi);
  else if (e->n)
    chi_table_cell(t, f > 1 ? "%.1f" : "%.3f", f * e->value);
  else
    chi_table_cell(t, "-");
}

static int print_text(const work *w, chi_err *err) {
  static const char *const kHead[] = {
      "edits",       "failed",     "all so far said %", "p(target)", "untouched right %",
      "less before", "went wrong", "went right"};
  int rc = 0;
  chi_str s = {0};
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, "rrrrrrrr", err));
  for (size_t k = 0; k < w->chain.n_at; k++) {
    const chi_chain_point *p = &w->point[k];
    chi_table_cell(t, "%d", p->edits);
    chi_table_cell(t, "%d", p->failed);
    cell(t, &p->said, 100);
    cell(t, &p->p, 1);
    cell(t, &p->right, 100);
    cell(t, &p->lost, 100);
    chi_table_cell(t, "%d", p->went_wrong);
    chi_table_cell(t, "%d", p->went_right);
  }
  CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  if (w->chain.n_untouched)
    chi_str_addf(&s, "\n%zu questions that no edit was about: %.1f %% right before.", w->chain.n_untouched,
                 100 * w->point[0].base.value);
  chi_str_add(&s, "\nIn brackets: 95 % by bootstrap over entities.\n");
  if (w->o->out) chi_str_addf(&s, "wrote %s\n", w->o->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_table_free(t);
  chi_str_free(&s);
  return rc;
}

int cli_chain_run(const cli_chain *o, chi_err *err) {
  int rc = 0;
  work w = {.o = o};
  chi_jlog *log = NULL;
  w.chain = (chi_chain_opts){.editor = o->editor, .tmpl = o->tmpl, .mem = o->mem};
  CHI_TRY(parse_points(&w, err));
  if (o->items) {
    CHI_TRY(chi_items_load(&w.items, o->items, 0, err));
    CHI_TRY(chi_chain_untouched(&w.untouched, &w.chain.n_untouched, &w.items, o->split, o->n_items, o->set,
                                (size_t)w.at[w.chain.n_at - 1], err));
    w.chain.untouched = w.untouched;
  }
  if (json_object_set_new(o->head, "items", json_string(w.items.hash))) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
    goto out;
  }
  CHI_TRY(chi_jlog_open(&log, o->out, o->head, err));
  CHI_TRY(chi_chain_run(log, o->m, o->set, &w.chain, err));
  CHI_TRY(chi_chain_sums(w.point, log, o->set, &w.chain, NULL, err));
  CHI_TRY(o->c->common->json ? print_json(&w, err) : print_text(&w, err));
out:
  chi_jlog_close(log);
  chi_free(w.untouched);
  chi_items_free(&w.items);
  return rc;
}

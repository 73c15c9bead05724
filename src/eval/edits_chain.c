/* Chains of edits; see edits_chain.h. */
#include "eval/edits_chain.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/asks.h"

/* ---- untouched questions ------------------------------------------------------------------------------ */
static bool about(const chi_item *it, const chi_edit_set *set, size_t edits) {
  for (size_t i = 0; i < edits && i < set->n; i++)
    if (*it->entity && strcmp(it->entity, set->item[i].entity) == 0) return true;
  return false;
}

int chi_chain_untouched(const chi_item ***out, size_t *n_out, const chi_items *items, const char *split, size_t n,
                        const chi_edit_set *set, size_t edits, chi_err *err) {
  const chi_item **list = chi_calloc(items->n + 1, sizeof *list, err);
  size_t all = 0;
  if (!list) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < items->n; i++) {
    const chi_item *it = &items->item[i];
    bool in = !split || strcmp(split, "all") == 0 || !*it->split || strcmp(it->split, split) == 0;
    if (in && !about(it, set, edits)) list[all++] = it;
  }
  if (all == 0) {
    chi_free(list);
    return chi_fail(err, CHI_ERR_ARG, "no question of split %s is left that no edit is about", split ? split : "all");
  }
  *n_out = n && n < all ? n : all;
  for (size_t i = 0; i < *n_out; i++) list[i] = list[i * all / *n_out];
  *out = list;
  return 0;
}

/* ---- running ------------------------------------------------------------------------------------------ */
typedef struct chain {
  chi_jlog *log;
  chi_model *m;
  const chi_edit_set *set;
  const chi_chain_opts *o;
  char *made; /* [set->n] 1 = made, 0 = failed */
} chain;

/* right[n] of questions, as a list of booleans. */
static int ask(const chain *c, const chi_ask *list, size_t n, const char *what, json_t **out, chi_err *err) {
  int rc = 0;
  chi_reply *reply = chi_calloc(n + 1, sizeof *reply, err);
  if (!reply) return CHI_ERR_MEMORY;
  chi_ask_opts o = {.tmpl = c->o->tmpl, .mem = c->o->mem, .max_new = c->o->max_new, .what = what};
  CHI_TRY(chi_asks_run(reply, c->m, list, n, &o, err));
  *out = json_array();
  for (size_t i = 0; i < n; i++) json_array_append_new(*out, json_boolean(reply[i].right));
out:
  chi_free(reply);
  return rc;
}

static int ask_untouched(const chain *c, json_t **out, chi_err *err) {
  int rc = 0;
  size_t n = c->o->n_untouched;
  chi_ask *list = chi_calloc(n + 1, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    const chi_item *it = c->o->untouched[i];
    list[i] = (chi_ask){.image = it->image, .question = it->question, .expect = it->answer, .name = it->id};
  }
  rc = ask(c, list, n, "asking what no edit was about", out, err);
  chi_free(list);
  return rc;
}

static int measure(const chain *c, const chi_edit_item *it, double *p, chi_err *err) {
  int rc = 0;
  char *plain = NULL;
  chi_query *q = NULL;
  CHI_TRY(chi_question_with(&plain, it->question, 0, NULL, err));
  chi_query_opts qo = {
      .image = it->image, .question = plain, .tmpl = c->o->tmpl, .target = it->target, .at = "last-prompt"};
  CHI_TRY(chi_query_make(&q, c->m, &qo, err));
  CHI_TRY(chi_edit_p(p, c->m, q->prompt, q->req.target, q->req.n_target, err));
out:
  chi_query_free(q);
  chi_free(plain);
  return rc;
}

/* All requests so far, and what no edit was about. */
static int add_point(const chain *c, size_t n, const char *id, chi_err *err) {
  int rc = 0, failed = 0;
  json_t *said = NULL, *p = json_array(), *right = NULL, *line = NULL;
  chi_ask *list = chi_calloc(n + 1, sizeof *list, err);
  CHI_TRY(list ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) {
    const chi_edit_item *it = &c->set->item[i];
    double x = NAN;
    list[i] = (chi_ask){.image = it->image, .question = it->question, .expect = it->target, .name = it->id};
    CHI_TRY(measure(c, it, &x, err));
    json_array_append_new(p, isfinite(x) ? json_real(x) : json_null());
    failed += !c->made[i];
  }
  CHI_TRY(ask(c, list, n, "asking again", &said, err));
  CHI_TRY(ask_untouched(c, &right, err));
  line = json_pack("{s:s,s:i,s:i,s:O,s:O,s:O}", "id", id, "edits", (int)n, "failed", failed, "said", said, "p", p,
                   "right", right);
  CHI_TRY(line ? chi_jlog_add(c->log, line, err) : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
out:
  json_decref(line);
  json_decref(said);
  json_decref(p);
  json_decref(right);
  chi_free(list);
  return rc;
}

/* The next edit of the chain, on top of the earlier ones. */
static int make_edit(chain *c, size_t i, chi_err *err) {
  chi_err why = {0};
  chi_editor_note note = {.row = -1, .layer = -1, .loss = NAN, .delta_norm = NAN, .lambda = NAN};
  int rc = c->o->editor->edit(c->o->editor, &note, c->m, c->set, i, &why);
  if (rc == CHI_ERR_CANCELLED || rc == CHI_ERR_MEMORY || rc == CHI_ERR_IO)
    rc = chi_fail(err, rc, "item %.80s: %s", c->set->item[i].id, why.text);
  else if (rc) {
    chi_log(CHI_LOG_INFO, "item %.80s is left out: %s", c->set->item[i].id, why.text);
    rc = 0;
  } else {
    c->made[i] = 1;
    if (note.delta) rc = chi_delta_apply(note.delta, c->m, NULL, err);
  }
  chi_delta_free(note.delta);
  chi_free(note.context);
  return rc;
}

int chi_chain_run(chi_jlog *log, chi_model *m, const chi_edit_set *set, const chi_chain_opts *o, chi_err *err) {
  int rc = 0;
  char id[32];
  size_t done = 0;
  json_t *right = NULL, *line = NULL;
  chain c = {.log = log, .m = m, .set = set, .o = o, .made = chi_calloc(set->n + 1, 1, err)};
  CHI_TRY(c.made ? 0 : CHI_ERR_MEMORY);
  if (!chi_jlog_find(log, "base")) {
    CHI_TRY(ask_untouched(&c, &right, err));
    line = json_pack("{s:s,s:O}", "id", "base", "right", right);
    CHI_TRY(line ? chi_jlog_add(log, line, err) : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  }
  size_t last = 0; /* the points after it are all there */
  for (size_t k = 0; k < o->n_at; k++) {
    snprintf(id, sizeof id, "at|%d", o->at[k]);
    if (!chi_jlog_find(log, id)) last = k + 1;
  }
  for (size_t k = 0; k < last; k++) {
    for (; done < (size_t)o->at[k]; done++) {
      CHI_TRY(chi_progress("edits in a chain", (int64_t)done, o->at[last - 1], err));
      CHI_TRY(make_edit(&c, done, err));
    }
    snprintf(id, sizeof id, "at|%d", o->at[k]);
    if (!chi_jlog_find(log, id)) CHI_TRY(add_point(&c, done, id, err));
  }
out:
  json_decref(line);
  json_decref(right);
  chi_free(c.made);
  return rc;
}

/* ---- sums --------------------------------------------------------------------------------------------- */
static void values(double *x, const json_t *list, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const json_t *v = json_array_get(list, i);
    x[i] = json_is_number(v) ? json_number_value(v) : json_is_boolean(v) ? (double)json_is_true(v) : (double)NAN;
  }
}

int chi_chain_sums(chi_chain_point *out, const chi_jlog *log, const chi_edit_set *set, const chi_chain_opts *o,
                   const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  char id[32];
  size_t most = set->n > o->n_untouched ? set->n : o->n_untouched;
  chi_clusters edits = {0}, units = {0};
  const char **name = chi_calloc(most + 1, sizeof *name, err);
  double *x = chi_calloc(most + 1, sizeof *x, err), *base = chi_calloc(most + 1, sizeof *base, err);
  CHI_TRY(name && x && base ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < o->n_untouched; i++)
    name[i] = *o->untouched[i]->entity ? o->untouched[i]->entity : o->untouched[i]->unit;
  CHI_TRY(chi_clusters_make(&units, name, (int32_t)o->n_untouched, err));
  values(base, json_object_get(chi_jlog_find(log, "base"), "right"), o->n_untouched);
  for (size_t k = 0; k < o->n_at; k++) {
    chi_chain_point *p = &out[k];
    size_t n = (size_t)o->at[k];
    snprintf(id, sizeof id, "at|%d", o->at[k]);
    const json_t *line = chi_jlog_find(log, id);
    *p = (chi_chain_point){.edits = o->at[k], .failed = (int)json_integer_value(json_object_get(line, "failed"))};
    for (size_t i = 0; i < n; i++) name[i] = *set->item[i].entity ? set->item[i].entity : set->item[i].unit;
    CHI_TRY(chi_clusters_make(&edits, name, (int32_t)n, err));
    values(x, json_object_get(line, "said"), n);
    CHI_TRY(chi_boot_mean(&p->said, &edits, x, NULL, boot, err));
    values(x, json_object_get(line, "p"), n);
    CHI_TRY(chi_boot_mean(&p->p, &edits, x, NULL, boot, err));
    values(x, json_object_get(line, "right"), o->n_untouched);
    CHI_TRY(chi_boot_mean(&p->right, &units, x, NULL, boot, err));
    CHI_TRY(chi_boot_mean(&p->base, &units, base, NULL, boot, err));
    CHI_TRY(chi_boot_mean(&p->lost, &units, x, base, boot, err));
    for (size_t i = 0; i < o->n_untouched; i++) {
      p->went_wrong += base[i] > x[i];
      p->went_right += base[i] < x[i];
    }
    chi_clusters_free(&edits);
  }
out:
  chi_clusters_free(&edits);
  chi_clusters_free(&units);
  chi_free(name);
  chi_free(x);
  chi_free(base);
  return rc;
}

/* Evaluating question items; see facts.h. */
#include "eval/facts.h"

#include <stdio.h>
#include <string.h>

enum { kMaxAsks = 2 + CHI_ITEM_PARTS + CHI_ITEM_TWINS }; /* of one item */

/* What an ask is for. */
typedef struct purpose {
  size_t item;
  enum { P_MAIN, P_PART, P_PARAPHRASE, P_TWIN } kind;
  int k; /* bracket or twin */
} purpose;

typedef struct job {
  chi_ask *ask;
  purpose *why;
  size_t n;
  chi_arena arena;
} job;

static int keep(job *j, const chi_ask *a, purpose why, const char *words, chi_err *err) {
  char *plain = NULL;
  int rc = chi_question_with(&plain, a->question, why.kind == P_PART ? why.k : 0, words, err);
  if (rc == 0) {
    j->why[j->n] = why;
    j->ask[j->n] = *a;
    j->ask[j->n++].question = chi_arena_strdup(&j->arena, plain, err);
    if (!j->ask[j->n - 1].question) rc = CHI_ERR_MEMORY;
  }
  chi_free(plain);
  return rc;
}

static int asks_of(job *j, const chi_items *items, size_t i, bool twins, chi_err *err) {
  int rc = 0;
  char where[160];
  const chi_item *it = &items->item[i];
  snprintf(where, sizeof where, "item %s (line %d)", it->id, it->line);
  chi_ask a = {.image = it->image, .question = it->question, .expect = it->answer};
  CHI_TRY((a.name = chi_arena_strdup(&j->arena, where, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(keep(j, &a, (purpose){.item = i, .kind = P_MAIN}, NULL, err));
  bool bracket = strchr(it->question, '[') != NULL;
  for (int k = 0; k < it->n_parts && bracket; k++) {
    if (!it->part[k].substitute) continue;
    chi_ask s = a;
    s.expect = it->part[k].answer, s.watch = it->answer;
    CHI_TRY(keep(j, &s, (purpose){.item = i, .kind = P_PART, .k = k}, it->part[k].substitute, err));
  }
  if (it->paraphrase && bracket) CHI_TRY(keep(j, &a, (purpose){.item = i, .kind = P_PARAPHRASE}, it->paraphrase, err));
  for (int k = 0; k < CHI_ITEM_TWINS && twins; k++) {
    if (!it->twin[k].question) continue;
    chi_ask t = {.image = it->twin[k].image, .question = it->twin[k].question, .expect = it->twin[k].answer};
    t.name = a.name;
    CHI_TRY(keep(j, &t, (purpose){.item = i, .kind = P_TWIN, .k = k}, NULL, err));
  }
out:
  if (rc) chi_err_prefix(err, where);
  return rc;
}

static void take(chi_fact_result *all, const purpose *w, const chi_reply *r) {
  chi_fact_result *f = &all[w->item];
  if (w->kind == P_MAIN) {
    memcpy(f->said, r->said, sizeof f->said);
    f->right = r->right;
    f->p = r->p;
    f->confidence = r->confidence;
  } else if (w->kind == P_PART) { /* comes after its item's own answer */
    f->part[w->k] =
        (chi_fact_part){.asked = true, .counterfactual = r->right, .changed = strcmp(r->said, f->said) != 0, .p = r->p};
  } else if (w->kind == P_PARAPHRASE) {
    f->has_paraphrase = true;
    f->p_paraphrase = r->p;
  } else {
    f->twin[w->k].asked = true;
    f->twin[w->k].right = r->right;
    memcpy(f->twin[w->k].said, r->said, sizeof r->said);
  }
}

int chi_facts_run(chi_fact_result *result, const chi_model *m, const chi_items *items, const chi_fact_opts *o,
                  chi_err *err) {
  int rc = 0;
  job j = {0};
  chi_reply *reply = NULL;
  chi_ask_opts ao = {.max_new = o->max_new, .tmpl = o->tmpl, .mem = o->mem, .what = o->what};
  memset(result, 0, items->n * sizeof *result);
  j.ask = chi_calloc(items->n * kMaxAsks, sizeof *j.ask, err);
  j.why = chi_calloc(items->n * kMaxAsks, sizeof *j.why, err);
  if (!j.ask || !j.why) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (size_t i = 0; i < items->n; i++) CHI_TRY(asks_of(&j, items, i, o->twins, err));
  CHI_TRY((reply = chi_calloc(j.n, sizeof *reply, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_asks_run(reply, m, j.ask, j.n, &ao, err));
  for (size_t i = 0; i < j.n; i++) take(result, &j.why[i], &reply[i]);
out:
  chi_free(j.ask);
  chi_free(j.why);
  chi_free(reply);
  chi_arena_free(&j.arena);
  return rc;
}

/* In-context lookup over items; see lookup.h. */
#include "eval/lookup.h"

#include <math.h>
#include <string.h>

const char *const chi_lookup_column[CHI_LOOKUP_COLUMNS] = {"item", "described", "named", "bare described",
                                                           "bare named"};
static const int kTwin[CHI_LOOKUP_ASKS] = {-1, CHI_TWIN_DESCRIBED, CHI_TWIN_NAMED};

static const chi_data_ask *ask_of(const chi_data_item *it, int column) {
  int k = column < CHI_LOOKUP_ASKS ? column : column - CHI_LOOKUP_ASKS + 1;
  const chi_data_ask *a = kTwin[k] < 0 ? &it->ask : &it->twin[kTwin[k]];
  return a->question && a->answer ? a : NULL;
}

/* ---- one item ---------------------------------------------------------------------------------------------- */
const chi_data_item *chi_lookup_other(const chi_data_item *const *list, size_t n, size_t i, uint64_t seed) {
  const char *id = list[i]->id;
  size_t from = (size_t)(chi_fnv64(id, strlen(id), chi_fnv64(&seed, sizeof seed, 0)) % n);
  for (size_t k = 0; k < n; k++) {
    const chi_data_item *it = list[i], *x = list[(from + k) % n];
    if (chi_streq(x->form, it->form) && chi_streq(x->relation, it->relation) &&
        !chi_streq(x->ask.answer, it->ask.answer) && !chi_streq(x->entity, it->entity))
      return x;
  }
  return NULL;
}

static int token(int32_t *out, const chi_model *m, const chi_prompt *p, const char *text, chi_err *err) {
  bool more = false;
  return text && *text ? chi_answer_token(out, &more, m, p, text, "answer", err) : 0;
}

/* The question about another thing, of as many rows. *out NULL where no substitute does. */
static int swapped(chi_prompt **out, const chi_model *m, const chi_prompt *p, const chi_data_ask *a, chi_err *err) {
  *out = NULL;
  for (int i = 0; p->n_spans > 0 && i < a->bracket[0].n_sub && !*out; i++) {
    int rc = chi_prompt_replace(out, m, p, a->bracket[0].sub[i].words, err);
    if (rc) return rc;
    if ((*out)->n_rows == p->n_rows) return 0;
    chi_prompt_free(*out);
    *out = NULL;
  }
  return 0;
}

static int measure(chi_incontext **out, const chi_model *m, const chi_data_ask *a, const chi_data_item *it,
                   const chi_data_item *other, const chi_lookup_opts *lo, chi_err *err) {
  int rc = 0;
  chi_prompt *p = NULL, *swap = NULL;
  chi_incontext_opts o = CHI_INCONTEXT_OPTS_INIT;
  o.n_heads = lo->n_heads, o.n_rows = lo->n_rows, o.mem = lo->mem;
  CHI_TRY(
      chi_prompt_make(&p, m, &(chi_prompt_opts){.image = a->image, .question = a->question, .tmpl = lo->tmpl}, err));
  CHI_TRY(token(&o.answer, m, p, a->answer, err));
  CHI_TRY(token(&o.object, m, p, it->entity, err));
  if (other) CHI_TRY(token(&o.rival, m, p, other->ask.answer, err));
  if (other) CHI_TRY(token(&o.other, m, p, other->entity, err));
  if (o.rival == o.answer) o.rival = -1; /* other answers may begin alike */
  if (o.other == o.object) o.other = -1;
  CHI_TRY(swapped(&swap, m, p, a, err));
  o.swapped = swap;
  CHI_TRY(chi_incontext_run(out, m, p, &o, err));
out:
  chi_prompt_free(p);
  chi_prompt_free(swap);
  return rc;
}

static json_t *ask_json(const chi_incontext *x) {
  json_t *o = json_pack("{s:b}", "right", x->right), *heads = json_array();
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++) {
    double v = chi_incontext_get(x, k);
    json_object_set_new(o, chi_incontext_measures[k].key, isfinite(v) ? json_real(v) : json_null());
  }
  for (int k = 0; k < x->n_heads; k++)
    json_array_append_new(heads, json_pack("[i,i]", x->head[k].layer, x->head[k].head));
  json_object_set_new(o, "heads", heads);
  return o;
}

int chi_lookup_line(json_t **out, const chi_model *m, const chi_data_item *it, const chi_data_item *other,
                    const chi_lookup_opts *o, chi_err *err) {
  int rc = 0;
  json_t *asks = json_object(), *line = NULL;
  chi_err first = {0};
  for (int c = 0; c < (o->bare ? CHI_LOOKUP_COLUMNS : CHI_LOOKUP_ASKS); c++) {
    const chi_data_ask *a = ask_of(it, c);
    chi_err why = {0};
    chi_incontext *x = NULL;
    if (!a || (c >= CHI_LOOKUP_ASKS && a->image)) continue;
    rc = measure(&x, c < CHI_LOOKUP_ASKS ? m : o->bare, a, it, other, o, &why);
    if (rc == CHI_ERR_MEMORY || rc == CHI_ERR_CANCELLED) CHI_TRY(chi_fail(err, rc, "%s", why.text));
    if (rc && c == 0) first = why;
    json_object_set_new(asks, chi_lookup_column[c], rc ? json_pack("{s:s}", "problem", why.text) : ask_json(x));
    chi_incontext_free(x);
    rc = 0;
  }
  line = *first.text
             ? json_pack("{s:s,s:s,s:s,s:s}", "id", it->id, "unit", it->unit, "status", "failed", "reason", first.text)
             : json_pack("{s:s,s:s,s:s,s:O}", "id", it->id, "unit", it->unit, "status", "ok", "asks", asks);
  CHI_TRY(line ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  *out = line;
out:
  json_decref(asks);
  return rc;
}

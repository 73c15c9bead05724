/* Failure prediction from a run store; see predict.h. */
#include "study/predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct gather {
  chi_arena arena;
  chi_predict_in in;
  int64_t *seq; /* [in.n], ascending */
  const char **entity;
  bool *right;
  double *confidence, *margin, *entropy;
} gather;

static double number(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

static bool passes(const chi_store_item *it, const json_t *info, const chi_study_predict_opts *o) {
  if (!o->field) return true;
  const char *v = strcmp(o->field, "split") == 0 ? it->split : strcmp(o->field, "group") == 0 ? it->group : NULL;
  const json_t *j = json_object_get(info, o->field);
  if (json_is_boolean(j)) v = json_is_true(j) ? "true" : "false";
  if (json_is_string(j)) v = json_string_value(j);
  return v && o->equals && strcmp(v, o->equals) == 0;
}

/* Items with an answer that is right or wrong, in the order of the store. */
static int read_items(gather *g, chi_study_predict_counts *n, chi_store *s, const chi_study_predict_opts *o,
                      chi_err *err) {
  int rc = 0;
  chi_store_item *item = NULL;
  size_t n_items = 0;
  json_t *info = NULL;
  CHI_TRY(chi_store_items(s, &item, &n_items, &g->arena, err));
  g->seq = chi_arena_array(&g->arena, n_items + 1, sizeof *g->seq, err);
  g->entity = chi_arena_array(&g->arena, n_items + 1, sizeof *g->entity, err);
  g->right = chi_arena_array(&g->arena, n_items + 1, sizeof *g->right, err);
  double **v[] = {&g->confidence, &g->margin, &g->entropy};
  for (int k = 0; k < 3; k++) *v[k] = chi_arena_array(&g->arena, n_items + 1, sizeof **v[k], err);
  CHI_TRY(g->seq && g->entity && g->right && g->confidence && g->margin && g->entropy ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n_items; i++) {
    const chi_store_item *it = &item[i];
    int32_t at = g->in.n;
    n->items++;
    if (it->status != CHI_STORE_OK) {
      n->not_ok++;
      continue;
    }
    json_decref(info);
    CHI_TRY(chi_json_parse(&info, it->info, strlen(it->info), chi_store_path(s), err));
    const json_t *ask = json_object_get(json_object_get(info, "ask"), o->ask ? o->ask : "item"),
                 *right = json_object_get(ask, "right");
    if (!passes(it, info, o)) {
      n->filtered++;
      continue;
    }
    if (!json_is_boolean(right)) {
      n->no_answer++;
      continue;
    }
    const char *entity = json_string_value(json_object_get(info, "entity"));
    if (!entity) entity = it->unit; /* an unnamed entity: its fact is the unit */
    g->entity[at] = chi_arena_strdup(&g->arena, entity ? entity : "", err);
    CHI_TRY(g->entity[at] ? 0 : CHI_ERR_MEMORY);
    g->seq[at] = it->seq;
    g->right[at] = json_is_true(right);
    g->confidence[at] = number(ask, "p");
    g->margin[at] = number(ask, "margin");
    g->entropy[at] = number(ask, "entropy");
    g->in.n++;
  }
  g->in.entity = g->entity;
  g->in.right = g->right;
  g->in.confidence = g->confidence;
  g->in.margin = g->margin;
  g->in.entropy = g->entropy;
out:
  json_decref(info);
  return rc;
}

/* One kind of result for the gathered items; NaN where an item has none. *to stays NULL where no item has it. */
static int read_kind(gather *g, const double **to, chi_store_values *v, chi_store *s, const char *ask, const char *name,
                     chi_err *err) {
  int rc = 0;
  char kind[200];
  snprintf(kind, sizeof kind, "contributions/%s/%s", ask, name);
  CHI_TRY(chi_store_values_of(s, kind, v, &g->arena, err));
  if (v->n == 0 || v->size == 0) goto out;
  double *x = chi_arena_array(&g->arena, (size_t)g->in.n + 1, v->size * sizeof *x, err);
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0, k = 0; i < (size_t)g->in.n; i++) {
    while (k < v->n && v->seq[k] < g->seq[i]) k++;
    bool has = k < v->n && v->seq[k] == g->seq[i];
    for (size_t e = 0; e < v->size; e++) x[i * v->size + e] = has ? (double)v->v[k * v->size + e] : NAN;
  }
  *to = x;
out:
  return rc;
}

int chi_study_predict_run(chi_predict *out, chi_study_predict_counts *counts, chi_store *s,
                          const chi_study_predict_opts *o, chi_err *err) {
  int rc = 0;
  gather g = {0};
  chi_store_values words = {0}, head = {0}, visual = {0};
  const char *ask = o->ask ? o->ask : "item";
  *counts = (chi_study_predict_counts){0};
  *out = (chi_predict){0};
  CHI_TRY(read_items(&g, counts, s, o, err));
  CHI_TRY(read_kind(&g, &g.in.words, &words, s, ask, "words>last/mean", err));
  CHI_TRY(read_kind(&g, &g.in.head, &head, s, ask, "words>last/head", err));
  CHI_TRY(read_kind(&g, &g.in.visual, &visual, s, ask, "image>words/mean", err));
  if (g.in.words) g.in.layers = (int32_t)words.size;
  if (g.in.head && g.in.words) {
    if (head.ndim != 2 || head.dim[0] != (int64_t)words.size || head.dim[1] < 1) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: contributions of heads and of layers have different shapes",
                    chi_store_path(s));
      goto out;
    }
    g.in.heads = (int32_t)head.dim[1];
  } else {
    g.in.head = NULL;
  }
  if (g.in.visual && visual.size != words.size) g.in.visual = NULL;
  CHI_TRY(chi_predict_run(out, &g.in, &o->boot, err));
out:
  if (rc && counts->items && err && err->code == CHI_ERR_ARG) chi_err_prefix(err, chi_store_path(s));
  chi_arena_free(&g.arena);
  return rc;
}

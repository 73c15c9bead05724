/* Items made into jobs; see prepare.h. */
#include "study/prepare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/metrics.h"
#include "sweep/generate.h"

enum { kMaxNew = 64 };
const char *const chi_study_role_name[CHI_STUDY_ROLES] = {
    "last patch", "before", "first word token", "middle",    "last word token", "second words",
    "next token", "after",  "last token",       "all words", "late patches"};

chi_study_role chi_study_role_of(const chi_prompt *p, int32_t row) {
  if (row == p->n_rows - 1) return CHI_STUDY_LAST;
  if (row >= p->span_lo && row < p->span_hi)
    return row == p->span_hi - 1 ? CHI_STUDY_END : row == p->span_lo ? CHI_STUDY_FIRST : CHI_STUDY_MIDDLE;
  for (int32_t i = 1; i < p->n_spans; i++)
    if (row >= p->span[i].lo && row < p->span[i].hi) return CHI_STUDY_SECOND;
  if (p->role[row] == CHI_ROLE_IMAGE) return CHI_STUDY_PATCH;
  if (row < p->span_lo) return CHI_STUDY_BEFORE;
  return row == p->span_hi ? CHI_STUDY_NEXT : CHI_STUDY_AFTER;
}

int chi_study_twin(const char *name) {
  if (strcmp(name, "item") == 0) return -1;
  int k = 0;
  while (k < CHI_TWINS && strcmp(chi_twin_name[k], name) != 0) k++;
  return k;
}

/* ---- the model's own answer ------------------------------------------------------------------------------ */
static int on_token(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  chi_study_job *j = ud;
  double lse = chi_logsumexp(logits, vocab), second = -INFINITY, h = 0;
  if (step > 0) return 0;
  j->answer = token;
  for (int64_t i = 0; i < vocab; i++) {
    double lp = (double)logits[i] - lse;
    h -= chi_exp64(lp) * lp;
    if (i != token && lp > second) second = lp;
  }
  j->confidence = chi_exp64((double)logits[token] - lse);
  j->margin = j->confidence - chi_exp64(second);
  j->entropy = h;
  return 0;
}

static int ask(chi_study_job *j, chi_err *err) {
  int rc = 0;
  int32_t tok[kMaxNew], n = 0;
  char said[256];
  char *text = NULL;
  const chi_model *m = j->model;
  chi_input in = chi_prompt_input(j->prompt);
  int32_t max_new = j->opts->max_new > 0 ? j->opts->max_new : 16;
  chi_gen_opts g = {.max_new = max_new < kMaxNew ? max_new : kMaxNew,
                    .eos = m->eos,
                    .n_eos = m->n_eos,
                    .mem = j->opts->mem,
                    .on_token = on_token,
                    .ud = j};
  CHI_TRY(chi_generate(&m->net, &in, &g, tok, &n, NULL, err));
  CHI_TRY(chi_decode(m->tok, tok, (size_t)n, true, &text, err));
  const char *s = text + strspn(text, " \n");
  size_t len = strlen(s);
  while (len && strchr(" \n", s[len - 1])) len--;
  if (len >= sizeof said) len = sizeof said - 1; /* what does not fit is no answer of a data set */
  snprintf(said, sizeof said, "%.*s", (int)len, s);
  chi_data_item as = *j->item; /* a twin has an answer of its own */
  as.ask = *j->ask;
  json_object_set_new(j->info, "said", json_stringn_nocheck(said, strlen(said)));
  if (!json_object_get(j->info, "said") || !json_is_string(json_object_get(j->info, "said")))
    json_object_set_new(j->info, "said", json_string(""));
  json_object_set_new(j->info, "right", j->ask->answer ? json_boolean(chi_data_right(&as, said)) : json_null());
  json_object_set_new(j->info, "p", json_real(j->confidence));
  json_object_set_new(j->info, "margin", json_real(j->margin));
  json_object_set_new(j->info, "entropy", json_real(j->entropy));
out:
  chi_free(text);
  return rc;
}

/* ---- jobs ------------------------------------------------------------------------------------------------ */
static int start_job(chi_study_unit *u, const chi_model *m, const chi_study_opts *o, const char *name, chi_err *err) {
  int rc = 0, twin = chi_study_twin(name), k = u->n_jobs;
  chi_study_job *j = &u->job[k];
  const chi_data_ask *a = twin < 0 ? &u->item->ask : &u->item->twin[twin];
  memset(j, 0, sizeof *j);
  if (!a->question) return chi_fail(err, CHI_ERR_ARG, "the item has no form '%s'", name);
  if (a->image && !m->net.has_vision)
    return chi_fail(err, CHI_ERR_ARG, "%s is a text-only model and the item has a picture: ask another form of it",
                    m->path);
  const char *tmpl = o->tmpl ? o->tmpl : u->item->continuation ? "plain" : NULL;
  CHI_TRY(chi_prompt_make(&u->prompt[k], m,
                          &(chi_prompt_opts){.image = a->image,
                                             .question = a->question,
                                             .tmpl = tmpl,
                                             .need_constraint = a->n_brackets > 0,
                                             .several = true},
                          err));
  const char *id = u->item->id;
  *j = (chi_study_job){.model = m,
                       .opts = o,
                       .item = u->item,
                       .ask = a,
                       .ask_name = twin < 0 ? "item" : chi_twin_name[twin],
                       .tmpl = tmpl,
                       .prompt = u->prompt[k],
                       .seed = chi_fnv64(id, strlen(id), chi_fnv64(&o->seed, sizeof o->seed, 0)),
                       .info = json_object(),
                       .without = u->without};
  CHI_TRY(j->info ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  rc = ask(j, err);
  if (rc == 0) json_object_set(json_object_get(u->info, "ask"), j->ask_name, j->info);
out:
  if (rc) {
    json_decref(j->info);
    chi_prompt_free(u->prompt[k]);
    u->prompt[k] = NULL;
    memset(j, 0, sizeof *j);
  } else {
    u->n_jobs++;
  }
  return rc;
}

static int set_up_info(chi_study_unit *u, chi_err *err) {
  const chi_data_item *it = u->item;
  u->without = json_array();
  u->info = json_pack("{s:i, s:{}}", "row", it->row, "ask");
  if (!u->info || !u->without) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  const struct {
    const char *key, *value;
  } text[] = {{"form", it->form},         {"entity", it->entity},
              {"relation", it->relation}, {"entity_group", it->entity_group},
              {"answer", it->ask.answer}, {"group", it->group},
              {"unit", it->unit}};
  for (size_t i = 0; i < sizeof text / sizeof *text; i++)
    if (text[i].value && *text[i].value) json_object_set_new(u->info, text[i].key, json_string(text[i].value));
  json_object_set_new(u->info, "held_out", json_boolean(it->held_out));
  json_object_set_new(u->info, "brackets", json_integer(it->ask.n_brackets));
  if (it->readable) json_object_set_new(u->info, "readable", json_true());
  if (it->shared) json_object_set_new(u->info, "shared", json_true());
  if (it->hard) json_object_set_new(u->info, "hard", json_true());
  return 0;
}

int chi_study_prepare(chi_study_unit *u, const chi_model *m, const chi_study_opts *o, chi_err *err) {
  char name[64];
  int rc = set_up_info(u, err);
  if (rc) return rc;
  u->status = CHI_STORE_OK;
  if (u->item->problem) {
    u->status = CHI_STORE_FAILED;
    chi_fail(&u->why, CHI_ERR_FORMAT, "%s", u->item->problem);
    return 0;
  }
  for (int i = 0; chi_study_word(o->asks, i, name, sizeof name); i++) {
    chi_err why = {0};
    int twin = chi_study_twin(name);
    const chi_data_ask *a = twin < 0 ? &u->item->ask : &u->item->twin[twin];
    if (i == 0 && !a->question) {
      u->status = CHI_STORE_SKIPPED;
      chi_fail(&u->why, CHI_ERR_ARG, "the item has no form '%s'", name);
      return 0;
    }
    if (i == 0 && a->n_brackets == 0) {
      u->status = CHI_STORE_SKIPPED;
      chi_fail(&u->why, CHI_ERR_ARG, "the question brackets no words");
      return 0;
    }
    if ((i > 0 && !a->question) || u->n_jobs > CHI_TWINS) continue;
    rc = start_job(u, m, o, name, &why);
    if (rc == CHI_ERR_CANCELLED) return chi_fail(err, rc, "%s", why.text);
    if (rc && i == 0) {
      u->status = CHI_STORE_FAILED;
      u->why = why;
      return 0;
    }
    if (rc) {
      char line[700];
      snprintf(line, sizeof line, "%s: %s", name, why.text);
      json_array_append_new(u->without, json_string(line));
    }
  }
  return 0;
}

void chi_study_unit_free(chi_study_unit *u) {
  for (int k = 0; k < u->n_jobs; k++) {
    chi_free(u->job[k].result);
    chi_arena_free(&u->job[k].arena);
    json_decref(u->job[k].info);
    chi_prompt_free(u->prompt[k]);
  }
  json_decref(u->info);
  json_decref(u->without);
  memset(u, 0, sizeof *u);
}

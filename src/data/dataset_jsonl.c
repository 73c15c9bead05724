/* Our own items, one JSON object a line (docs/world.md, "Items"), and ROME's known_1000. */
#include "data/dataset_internal.h"

#include <stdio.h>
#include <string.h>

/* ---- JSONL ------------------------------------------------------------------------------------------------- */
/* [{"words": ..., "substitutes": [{"words": ..., "answer": ...}, ...]}, ...], one for each bracket, in order. */
static int constraints(chii_reader *r, chi_data_item *it, chi_data_ask *ask, const json_t *o, chi_err *err) {
  static const char kKey[] = "constraints";
  int rc = 0;
  const json_t *list = json_object_get(o, kKey);
  if (!list || json_is_null(list)) return 0;
  if (!json_is_array(list)) return chii_note(r, it, CHII_NOTE_BAD_FIELD, kKey, err, "is not a list");
  if ((int)json_array_size(list) != ask->n_brackets)
    return chii_note(r, it, CHII_NOTE_BAD_BRACKET, kKey, err, "has %zu entries, the question %d brackets",
                     json_array_size(list), ask->n_brackets);
  for (int b = 0; b < ask->n_brackets; b++) {
    const json_t *c = json_array_get(list, (size_t)b), *subs = json_object_get(c, "substitutes");
    chi_data_bracket *to = &ask->bracket[b];
    const char *words = NULL;
    CHI_TRY(chii_data_text(r, it, &words, c, "words", false, err));
    if (words && strcmp(words, to->words) != 0)
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_BRACKET, kKey, err, "'%.80s' stands for the bracket '%.80s'", words,
                        to->words));
    if (!subs || json_is_null(subs)) continue;
    if (!json_is_array(subs) || json_array_size(subs) > 4096) {
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, kKey, err, "substitutes is not a list"));
      continue;
    }
    size_t n = json_array_size(subs);
    to->sub = chi_arena_array(&r->d.arena, n ? n : 1, sizeof *to->sub, err);
    CHI_TRY(to->sub ? 0 : CHI_ERR_MEMORY);
    for (size_t k = 0; k < n; k++) {
      chi_data_sub s = {0};
      CHI_TRY(chii_data_text(r, it, &s.words, json_array_get(subs, k), "words", true, err));
      CHI_TRY(chii_data_text(r, it, &s.answer, json_array_get(subs, k), "answer", false, err));
      if (s.words) to->sub[to->n_sub++] = s;
    }
  }
out:
  return rc;
}

/* substitute and substitute_answer: an older file, whose questions have one bracket. */
static int one_substitute(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  chi_data_sub s = {0};
  chi_data_bracket *to = it->ask.bracket;
  CHI_TRY(chii_data_text(r, it, &s.words, o, "substitute", false, err));
  CHI_TRY(chii_data_text(r, it, &s.answer, o, "substitute_answer", false, err));
  if (!s.words != !s.answer)
    return chii_note(r, it, CHII_NOTE_BAD_FIELD, s.words ? "substitute_answer" : "substitute", err,
                     "is missing: the two come together");
  if (!s.words || it->ask.n_brackets == 0 || to->n_sub) goto out;
  to->sub = chi_arena_array(&r->d.arena, 1, sizeof *to->sub, err);
  CHI_TRY(to->sub ? 0 : CHI_ERR_MEMORY);
  to->sub[to->n_sub++] = s;
out:
  return rc;
}

static int picture_field(chii_reader *r, chi_data_item *it, const char **out, const json_t *o, const char *key,
                         chi_err *err) {
  int rc = 0;
  const char *name = NULL;
  CHI_TRY(chii_data_text(r, it, &name, o, key, false, err));
  if (name && *name) rc = chii_data_picture(r, it, out, name, key, err);
out:
  return rc;
}

static int twins(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  const json_t *all = json_object_get(o, "twins");
  if (!all || json_is_null(all)) return 0;
  if (!json_is_object(all)) return chii_note(r, it, CHII_NOTE_BAD_FIELD, "twins", err, "is not an object");
  for (int k = 0; k < CHI_TWINS; k++) {
    const json_t *t = json_object_get(all, chi_twin_name[k]);
    chi_data_ask *a = &it->twin[k];
    if (!t || json_is_null(t)) continue;
    if (!json_is_object(t)) {
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, "twins", err, "'%s' is not an object", chi_twin_name[k]));
      continue;
    }
    CHI_TRY(chii_data_text(r, it, &a->question, t, "question", true, err));
    CHI_TRY(chii_data_text(r, it, &a->answer, t, "answer", false, err));
    CHI_TRY(picture_field(r, it, &a->image, t, "image", err));
    CHI_TRY(chii_brackets(r, it, a, "twins", err));
    CHI_TRY(constraints(r, it, a, t, err));
  }
out:
  return rc;
}

static int flag(chii_reader *r, chi_data_item *it, bool *out, const json_t *o, const char *key, chi_err *err) {
  chi_err why = {0};
  if (chi_json_bool_opt(out, o, key, "", &why) == 0) return 0;
  return chii_note(r, it, CHII_NOTE_BAD_FIELD, key, err, "is not true or false");
}

static int alternatives(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  const json_t *list = json_object_get(o, "alternatives");
  if (!list || json_is_null(list)) return 0;
  if (!json_is_array(list) || json_array_size(list) > 4096)
    return chii_note(r, it, CHII_NOTE_BAD_FIELD, "alternatives", err, "is not a list of texts");
  size_t n = json_array_size(list);
  it->alternatives = chi_arena_array(&r->d.arena, n ? n : 1, sizeof *it->alternatives, err);
  CHI_TRY(it->alternatives ? 0 : CHI_ERR_MEMORY);
  for (size_t k = 0; k < n; k++) {
    const json_t *v = json_array_get(list, k);
    if (!json_is_string(v)) {
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, "alternatives", err, "is not a list of texts"));
      continue;
    }
    CHI_TRY(chii_data_copy(r, &it->alternatives[it->n_alternatives++], json_string_value(v), err));
  }
out:
  return rc;
}

static int read_line(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  const struct {
    const char *key, **out;
    bool need;
  } field[] = {{"id", &it->id, true},
               {"question", &it->ask.question, true},
               {"answer", &it->ask.answer, true},
               {"entity", &it->entity, false},
               {"relation", &it->relation, false},
               {"unit", &it->unit, false},
               {"split", &it->split, false},
               {"group", &it->group, false},
               {"form", &it->form, false},
               {"entity_group", &it->entity_group, false},
               {"truth", &it->truth, false},
               {"prior", &it->prior, false},
               {"paraphrase", &it->paraphrase, false},
               {"donor_id", &it->donor_id, false}};
  const struct {
    const char *key, **out;
  } file[] = {{"image", &it->ask.image}, {"donor", &it->donor}, {"mask", &it->mask}};
  const struct {
    const char *key;
    bool *out;
  } flags[] = {{"held_out", &it->held_out},
               {"readable", &it->readable},
               {"first_token_shared", &it->shared},
               {"hard", &it->hard},
               {"continuation", &it->continuation}};
  for (size_t k = 0; k < sizeof field / sizeof *field; k++)
    CHI_TRY(chii_data_text(r, it, field[k].out, o, field[k].key, field[k].need, err));
  for (size_t k = 0; k < sizeof flags / sizeof *flags; k++) CHI_TRY(flag(r, it, flags[k].out, o, flags[k].key, err));
  for (size_t k = 0; k < sizeof file / sizeof *file; k++)
    CHI_TRY(picture_field(r, it, file[k].out, o, file[k].key, err));
  CHI_TRY(alternatives(r, it, o, err));
  CHI_TRY(chii_brackets(r, it, &it->ask, "question", err));
  CHI_TRY(constraints(r, it, &it->ask, o, err));
  CHI_TRY(one_substitute(r, it, o, err));
  CHI_TRY(twins(r, it, o, err));
out:
  return rc;
}

int chii_read_jsonl(chii_reader *r, const char *text, size_t len, chi_err *err) {
  int rc = 0, line = 0;
  json_t *o = NULL;
  chi_data_item *it;
  r->d.name = "jsonl";
  for (const char *p = text, *end = text + len, *next; p < end; p = next) {
    const char *feed = memchr(p, '\n', (size_t)(end - p));
    size_t n = feed ? (size_t)(feed - p) : (size_t)(end - p);
    next = feed ? feed + 1 : end;
    line++;
    if (strspn(p, " \t\r") >= n) continue;
    CHI_TRY(chii_item(r, &it, line, err));
    if (!it) break;
    chi_err why = {0};
    json_decref(o);
    if (chi_json_parse(&o, p, n, "line", &why) != 0 || !json_is_object(o)) {
      CHI_TRY(why.code == CHI_ERR_MEMORY ? chi_fail(err, why.code, "%s: line %d: %s", r->path, line, why.text) : 0);
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_JSON, "", err, "%s", why.code ? why.text : "not an object"));
      continue;
    }
    CHI_TRY(read_line(r, it, o, err));
  }
out:
  json_decref(o);
  return rc;
}

/* ---- known_1000 -------------------------------------------------------------------------------------------- */
static int read_known(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  char id[64];
  const char *prompt = NULL;
  const json_t *known = json_object_get(o, "known_id");
  if (!json_is_integer(known)) {
    CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, "known_id", err, "is not a number"));
  } else {
    snprintf(id, sizeof id, "known-%lld", (long long)json_integer_value(known));
    CHI_TRY(chii_data_copy(r, &it->id, id, err));
  }
  it->continuation = true;
  CHI_TRY(chii_data_text(r, it, &prompt, o, "prompt", true, err));
  CHI_TRY(chii_data_text(r, it, &it->entity, o, "subject", true, err));
  CHI_TRY(chii_data_text(r, it, &it->ask.answer, o, "attribute", true, err));
  CHI_TRY(chii_data_text(r, it, &it->relation, o, "relation_id", false, err));
  if (prompt && *it->entity) CHI_TRY(chii_find_constraint(r, it, &it->ask, prompt, it->entity, "subject", false, err));
out:
  return rc;
}

int chii_read_known(chii_reader *r, const json_t *list, chi_err *err) {
  int rc = 0;
  const json_t *first = json_array_get(list, 0);
  chi_data_item *it;
  r->d.name = "known_1000";
  if (json_array_size(list) &&
      !(json_object_get(first, "prompt") && json_object_get(first, "subject") && json_object_get(first, "attribute")))
    return chi_fail(err, CHI_ERR_FORMAT,
                    "%s: a list of objects without prompt, subject and attribute is not known_1000, without src and "
                    "alt none of MMEdit",
                    r->path);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *o = json_array_get(list, i);
    CHI_TRY(chii_item(r, &it, (int)i + 1, err));
    if (!it) break;
    if (!json_is_object(o))
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_JSON, "", err, "not an object"));
    else
      CHI_TRY(read_known(r, it, o, err));
  }
out:
  return rc;
}

int chii_read_whole(chii_reader *r, const char *text, size_t len, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  CHI_TRY(chi_json_parse(&j, text, len, r->path, err));
  rc = chii_is_mmedit(j) ? chii_read_mmedit(r, j, err) : chii_read_known(r, j, err);
out:
  json_decref(j);
  return rc;
}

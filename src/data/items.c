/* Reading question items; see items.h. */
#include "data/items.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/jsonl.h"

enum { kMaxFile = 256 << 20 };

const char *const chi_item_twin_names[CHI_ITEM_TWINS] = {"named", "described", "named_over", "blank"};

/* A text field, kept in the arena. */
static int text(chi_items *s, const char **out, const json_t *o, const char *key, bool need, const char *where,
                chi_err *err) {
  const json_t *v = json_object_get(o, key);
  if (!v || json_is_null(v)) return need ? chi_fail(err, CHI_ERR_FORMAT, "%s: field '%s' is missing", where, key) : 0;
  if (!json_is_string(v)) return chi_fail(err, CHI_ERR_FORMAT, "%s: field '%s' is not text", where, key);
  if (need && !*json_string_value(v)) return chi_fail(err, CHI_ERR_FORMAT, "%s: field '%s' is empty", where, key);
  *out = chi_arena_strdup(&s->arena, json_string_value(v), err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

static int picture(chi_items *s, const char **out, const json_t *o, const char *key, const char *dir, const char *where,
                   chi_err *err) {
  char path[4096];
  const char *name = NULL;
  int rc = text(s, &name, o, key, false, where, err);
  if (rc || !name) return rc;
  if ((rc = chi_path_join(path, sizeof path, dir, name, err)) != 0) return rc;
  *out = chi_arena_strdup(&s->arena, name[0] == '/' ? name : path, err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

/* constraints: [{"words": ..., "substitutes": [{"words": ..., "answer": ...}, ...]}, ...]; the first substitute
 * counts. */
static int read_parts(chi_items *s, chi_item *it, const json_t *o, const char *where, chi_err *err) {
  int rc = 0;
  char sub_where[4300];
  const json_t *list = json_object_get(o, "constraints");
  if (!list || json_is_null(list)) { /* an older file */
    it->part[0] = (chi_item_part){it->substitute, it->substitute_answer};
    it->n_parts = it->substitute != NULL;
    return 0;
  }
  if (!json_is_array(list) || json_array_size(list) > CHI_ITEM_PARTS)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: constraints is not a list of at most %d", where, CHI_ITEM_PARTS);
  for (size_t k = 0; k < json_array_size(list); k++) {
    const json_t *subs = json_object_get(json_array_get(list, k), "substitutes"), *first = json_array_get(subs, 0);
    if (!json_is_array(subs))
      return chi_fail(err, CHI_ERR_FORMAT, "%s: constraints[%zu].substitutes is not a list", where, k);
    it->n_parts++;
    if (!first) continue;
    snprintf(sub_where, sizeof sub_where, "%s: constraints[%zu].substitutes[0]", where, k);
    CHI_TRY(text(s, &it->part[k].substitute, first, "words", true, sub_where, err));
    CHI_TRY(text(s, &it->part[k].answer, first, "answer", true, sub_where, err));
  }
out:
  return rc;
}

static int read_twins(chi_items *s, chi_item *it, const json_t *o, const char *dir, const char *where, chi_err *err) {
  int rc = 0;
  char twin_where[4300];
  const json_t *twins = json_object_get(o, "twins");
  if (!twins || json_is_null(twins)) return 0;
  if (!json_is_object(twins)) return chi_fail(err, CHI_ERR_FORMAT, "%s: twins is not an object", where);
  for (int k = 0; k < CHI_ITEM_TWINS; k++) {
    const json_t *t = json_object_get(twins, chi_item_twin_names[k]);
    if (!t || json_is_null(t)) continue;
    snprintf(twin_where, sizeof twin_where, "%s: twins.%s", where, chi_item_twin_names[k]);
    CHI_TRY(text(s, &it->twin[k].question, t, "question", true, twin_where, err));
    CHI_TRY(text(s, &it->twin[k].answer, t, "answer", true, twin_where, err));
    CHI_TRY(picture(s, &it->twin[k].image, t, "image", dir, twin_where, err));
  }
out:
  return rc;
}

static int unit_of(chi_items *s, chi_item *it, chi_err *err) {
  if (it->unit) return 0;
  size_t n = strlen(it->entity) + strlen(it->relation) + 2;
  char *u = chi_arena_alloc(&s->arena, n, err);
  if (!u) return CHI_ERR_MEMORY;
  snprintf(u, n, "%s|%s", it->entity, it->relation);
  it->unit = u;
  return 0;
}

static int read_flags(chi_item *it, const json_t *o, const char *where, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_json_bool_opt(&it->held_out, o, "held_out", where, err));
  CHI_TRY(chi_json_bool_opt(&it->readable, o, "readable", where, err));
  CHI_TRY(chi_json_bool_opt(&it->shared, o, "first_token_shared", where, err));
  CHI_TRY(chi_json_bool_opt(&it->hard, o, "hard", where, err));
out:
  return rc;
}

static int read_item(chi_items *s, const json_t *o, const char *dir, const char *where, int line, chi_err *err) {
  int rc = chi_grow((void **)&s->item, &s->cap, s->n + 1, sizeof *s->item, err);
  if (rc) return rc;
  chi_item *it = &s->item[s->n];
  *it = (chi_item){.group = "", .relation = "", .entity = "", .split = "", .entity_group = "", .line = line};
  const struct {
    const char **out, *key;
    bool need;
  } fields[] = {{&it->id, "id", true},
                {&it->question, "question", true},
                {&it->answer, "answer", true},
                {&it->group, "group", false},
                {&it->relation, "relation", false},
                {&it->entity, "entity", false},
                {&it->split, "split", false},
                {&it->entity_group, "entity_group", false},
                {&it->unit, "unit", false},
                {&it->truth, "truth", false},
                {&it->prior, "prior", false},
                {&it->substitute, "substitute", false},
                {&it->substitute_answer, "substitute_answer", false},
                {&it->paraphrase, "paraphrase", false}};
  for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
    CHI_TRY(text(s, fields[k].out, o, fields[k].key, fields[k].need, where, err));
  CHI_TRY(picture(s, &it->image, o, "image", dir, where, err));
  CHI_TRY(picture(s, &it->donor, o, "donor", dir, where, err));
  CHI_TRY(read_flags(it, o, where, err));
  if ((it->substitute != NULL) != (it->substitute_answer != NULL))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: substitute and substitute_answer come together", where);
  CHI_TRY(read_parts(s, it, o, where, err));
  CHI_TRY(read_twins(s, it, o, dir, where, err));
  CHI_TRY(unit_of(s, it, err));
  s->n++;
out:
  return rc;
}

static int unique_ids(const chi_items *s, const char *path, chi_err *err) {
  chi_jsonl_id *ids = chi_calloc(s->n, sizeof *ids, err);
  if (!ids) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < s->n; i++) ids[i] = (chi_jsonl_id){s->item[i].id, s->item[i].line};
  int rc = chi_jsonl_unique(path, ids, s->n, err);
  chi_free(ids);
  return rc;
}

typedef struct reading {
  chi_items *out;
  char dir[4096];
  size_t limit;
} reading;
static int take(void *ud, const json_t *o, const char *where, int line, bool *stop, chi_err *err) {
  reading *r = ud;
  int rc = read_item(r->out, o, r->dir, where, line, err);
  *stop = r->limit && r->out->n >= r->limit;
  return rc;
}

int chi_items_load(chi_items *out, const char *path, size_t limit, chi_err *err) {
  int rc = 0;
  reading r = {.out = out, .limit = limit};
  memset(out, 0, sizeof *out);
  CHI_TRY(chi_jsonl_read(path, kMaxFile, out->hash, r.dir, take, &r, err));
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s holds no items", path);
  else
    CHI_TRY(unique_ids(out, path, err));
out:
  if (rc) chi_items_free(out);
  return rc;
}

int chi_items_split(chi_items *s, const char *split, chi_err *err) {
  size_t n = 0;
  chi_str have = {0};
  const char *seen = "";
  if (!split || strcmp(split, "all") == 0) return 0;
  for (size_t i = 0; i < s->n; i++) {
    const char *is = s->item[i].split;
    if (*is && strcmp(is, seen) != 0 && strcmp(is, split) != 0 && have.len < 80) {
      chi_str_addf(&have, "%s%s", have.len ? ", " : "", is);
      seen = is;
    }
    if (!*is || strcmp(is, split) == 0) s->item[n++] = s->item[i];
  }
  s->n = n;
  int rc = n ? 0
             : chi_fail(err, CHI_ERR_ARG, "no item belongs to the split '%s'; the file has: %s", split,
                        have.s ? have.s : "");
  chi_str_free(&have);
  return rc;
}

void chi_items_free(chi_items *s) {
  chi_free(s->item);
  chi_arena_free(&s->arena);
  memset(s, 0, sizeof *s);
}

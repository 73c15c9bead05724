/* Reading question items; see items.h. */
#include "data/items.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMaxFile = 256 << 20 };

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

static int read_item(chi_items *s, const json_t *o, const char *dir, const char *where, int line, chi_err *err) {
  int rc = chi_grow((void **)&s->item, &s->cap, s->n + 1, sizeof *s->item, err);
  if (rc) return rc;
  chi_item *it = &s->item[s->n];
  *it = (chi_item){.group = "", .relation = "", .entity = "", .line = line};
  CHI_TRY(text(s, &it->id, o, "id", true, where, err));
  CHI_TRY(text(s, &it->question, o, "question", true, where, err));
  CHI_TRY(text(s, &it->answer, o, "answer", true, where, err));
  CHI_TRY(text(s, &it->group, o, "group", false, where, err));
  CHI_TRY(text(s, &it->relation, o, "relation", false, where, err));
  CHI_TRY(text(s, &it->entity, o, "entity", false, where, err));
  CHI_TRY(text(s, &it->substitute, o, "substitute", false, where, err));
  CHI_TRY(text(s, &it->substitute_answer, o, "substitute_answer", false, where, err));
  CHI_TRY(text(s, &it->paraphrase, o, "paraphrase", false, where, err));
  CHI_TRY(picture(s, &it->image, o, "image", dir, where, err));
  CHI_TRY(picture(s, &it->donor, o, "donor", dir, where, err));
  CHI_TRY(chi_json_bool_opt(&it->held_out, o, "held_out", where, err));
  if ((it->substitute != NULL) != (it->substitute_answer != NULL))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: substitute and substitute_answer come together", where);
  s->n++;
out:
  return rc;
}

static int by_id(const void *a, const void *b) {
  return strcmp((*(const chi_item *const *)a)->id, (*(const chi_item *const *)b)->id);
}

static int unique_ids(const chi_items *s, const char *path, chi_err *err) {
  const chi_item **p = chi_calloc(s->n, sizeof *p, err);
  int rc = 0;
  if (!p) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < s->n; i++) p[i] = &s->item[i];
  qsort(p, s->n, sizeof *p, by_id);
  for (size_t i = 1; i < s->n && rc == 0; i++)
    if (strcmp(p[i]->id, p[i - 1]->id) == 0)
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: id '%s' stands on lines %d and %d", path, p[i]->id, p[i - 1]->line,
                    p[i]->line);
  chi_free(p);
  return rc;
}

int chi_items_load(chi_items *out, const char *path, size_t limit, chi_err *err) {
  int rc = 0, line = 0;
  char *buf = NULL, dir[4096], where[4200];
  size_t len;
  memset(out, 0, sizeof *out);
  const char *slash = strrchr(path, '/');
  snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
  CHI_TRY(chi_read_file(&buf, &len, path, kMaxFile, err));
  CHI_TRY(chi_sha256_file(out->hash, path, err));
  for (char *p = buf, *next; p && *p && (!limit || out->n < limit); p = next) {
    next = strchr(p, '\n');
    size_t n = next ? (size_t)(next - p) : strlen(p);
    next = next ? next + 1 : NULL;
    line++;
    if (strspn(p, " \t\r") >= n) continue;
    json_t *o = NULL;
    snprintf(where, sizeof where, "%s: line %d", path, line);
    CHI_TRY(chi_json_parse(&o, p, n, where, err));
    rc = json_is_object(o) ? read_item(out, o, dir, where, line, err)
                           : chi_fail(err, CHI_ERR_FORMAT, "%s: not an object", where);
    json_decref(o);
    if (rc) goto out;
  }
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s holds no items", path);
  else
    CHI_TRY(unique_ids(out, path, err));
out:
  chi_free(buf);
  if (rc) chi_items_free(out);
  return rc;
}

void chi_items_free(chi_items *s) {
  chi_free(s->item);
  chi_arena_free(&s->arena);
  memset(s, 0, sizeof *s);
}

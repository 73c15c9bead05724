/* Reading edit sets; see edits.h. */
#include "data/edits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/jsonl.h"

enum { kMaxFile = 256 << 20, kMaxProbes = 4096 };

static const chi_probe_info kProbes[CHI_PROBES] = {
#define CHI_PROBE(E, name, local, doc) {name, local, doc},
#include "data/edit_probes.def"
#undef CHI_PROBE
};
const chi_probe_info *chi_probe_get(chi_probe_kind k) { return &kProbes[k]; }

typedef struct reader {
  chi_edit_set *s;
  const char *dir, *where;
  chi_err *err;
} reader;

static int text(const reader *r, const char **out, const json_t *o, const char *key, bool need) {
  const char *v = NULL;
  int rc = chi_json_str_opt(&v, o, key, r->where, r->err);
  if (rc) return rc;
  if (!v || (need && !v[strspn(v, " \t\r\n")])) {
    if (!need) return 0;
    return chi_fail(r->err, CHI_ERR_FORMAT, "%s: field '%s' is %s", r->where, key, v ? "empty" : "missing");
  }
  *out = chi_arena_strdup(&r->s->arena, v, r->err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

static int picture(const reader *r, const char **out, const json_t *o) {
  char path[4096];
  const char *name = NULL;
  int rc = chi_json_str_opt(&name, o, "image", r->where, r->err);
  if (rc || !name) return rc;
  if (!*name) return chi_fail(r->err, CHI_ERR_FORMAT, "%s: field 'image' is empty", r->where);
  if (name[0] != '/' && (rc = chi_path_join(path, sizeof path, r->dir, name, r->err)) != 0) return rc;
  *out = chi_arena_strdup(&r->s->arena, name[0] == '/' ? name : path, r->err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

static int read_probes(const reader *r, chi_edit_item *it, int kind, const json_t *list) {
  int rc = 0;
  size_t n = json_array_size(list);
  if (!json_is_array(list) || n > kMaxProbes)
    return chi_fail(r->err, CHI_ERR_FORMAT, "%s: probes.%s is no list of at most %d entries", r->where,
                    kProbes[kind].name, kMaxProbes);
  it->probe[kind] = chi_arena_array(&r->s->arena, n, sizeof *it->probe[kind], r->err);
  if (!it->probe[kind]) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    char where[4400];
    snprintf(where, sizeof where, "%s: probes.%s[%zu]", r->where, kProbes[kind].name, i);
    reader in = *r;
    in.where = where;
    const json_t *o = json_array_get(list, i);
    chi_edit_ask *a = &it->probe[kind][i];
    if (!json_is_object(o)) return chi_fail(r->err, CHI_ERR_FORMAT, "%s is not an object", where);
    CHI_TRY(picture(&in, &a->image, o));
    CHI_TRY(text(&in, &a->question, o, "question", true));
    CHI_TRY(text(&in, &a->answer, o, "answer", !kProbes[kind].local));
  }
  it->n_probe[kind] = n;
out:
  return rc;
}

static int all_probes(const reader *r, chi_edit_item *it, json_t *probes) {
  const char *key;
  json_t *v;
  if (!probes || json_is_null(probes)) return 0;
  if (!json_is_object(probes)) return chi_fail(r->err, CHI_ERR_FORMAT, "%s: 'probes' is not an object", r->where);
  json_object_foreach(probes, key, v) {
    int k = 0, rc;
    while (k < CHI_PROBES && strcmp(kProbes[k].name, key) != 0) k++;
    if (k == CHI_PROBES)
      return chi_fail(r->err, CHI_ERR_FORMAT, "%s: there is no kind of probe '%.40s'", r->where, key);
    if (!json_is_null(v) && (rc = read_probes(r, it, k, v)) != 0) return rc;
  }
  return 0;
}

static int read_item(const reader *r, const json_t *o, int line, const char *split) {
  int rc = 0;
  chi_edit_set *s = r->s;
  const json_t *q = json_object_get(o, "request");
  void *p = s->item;
  chi_edit_item it = {.line = line, .split = "", .kind = "", .unit = "", .entity = "", .relation = "", .group = ""};
  char id[24];
  CHI_TRY(text(r, &it.split, o, "split", false));
  if (split && strcmp(it.split, split) != 0) return 0;
  if (q && !json_is_object(q)) return chi_fail(r->err, CHI_ERR_FORMAT, "%s: 'request' is not an object", r->where);
  if (!q) q = o;
  CHI_TRY(text(r, &it.id, o, "id", false));
  CHI_TRY(text(r, &it.kind, o, "kind", false));
  CHI_TRY(text(r, &it.unit, o, "unit", false));
  CHI_TRY(text(r, &it.entity, o, "entity", false));
  CHI_TRY(text(r, &it.relation, o, "relation", false));
  CHI_TRY(text(r, &it.group, o, "entity_group", false));
  CHI_TRY(picture(r, &it.image, q));
  CHI_TRY(text(r, &it.question, q, "question", true));
  CHI_TRY(text(r, &it.target, q, "target", true));
  CHI_TRY(text(r, &it.old, q, "old", false));
  CHI_TRY(text(r, &it.edit_at, q, "edit_at", false));
  CHI_TRY(all_probes(r, &it, json_object_get(o, "probes")));
  if (!it.id) {
    snprintf(id, sizeof id, "line %d", line);
    CHI_TRY((it.id = chi_arena_strdup(&s->arena, id, r->err)) ? 0 : CHI_ERR_MEMORY);
  }
  if (!*it.unit) it.unit = it.id;
  CHI_TRY(chi_grow(&p, &s->cap, s->n + 1, sizeof *s->item, r->err));
  s->item = p;
  s->item[s->n++] = it;
out:
  return rc;
}

static int unique_ids(const chi_edit_set *s, const char *path, chi_err *err) {
  chi_jsonl_id *ids = chi_calloc(s->n, sizeof *ids, err);
  if (!ids) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < s->n; i++) ids[i] = (chi_jsonl_id){s->item[i].id, s->item[i].line};
  int rc = chi_jsonl_unique(path, ids, s->n, err);
  chi_free(ids);
  return rc;
}

typedef struct reading {
  chi_edit_set *out;
  char dir[4096];
  const char *split;
  size_t limit;
} reading;
static int take(void *ud, const json_t *o, const char *where, int line, bool *stop, chi_err *err) {
  const reading *r = ud;
  reader in = {.s = r->out, .dir = r->dir, .where = where, .err = err};
  int rc = read_item(&in, o, line, r->split);
  *stop = r->limit && r->out->n >= r->limit;
  return rc;
}

int chi_edit_set_load(chi_edit_set *out, const char *path, const char *split, size_t limit, chi_err *err) {
  int rc = 0;
  reading r = {.out = out, .split = split, .limit = limit};
  memset(out, 0, sizeof *out);
  CHI_TRY(chi_jsonl_read(path, kMaxFile, out->hash, r.dir, take, &r, err));
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s holds no edits%s%s", path, split ? " of split " : "", split ? split : "");
  else
    CHI_TRY(unique_ids(out, path, err));
out:
  if (rc) chi_edit_set_free(out);
  return rc;
}

void chi_edit_set_thin(chi_edit_set *s, size_t k, size_t limit) {
  size_t n = 0;
  for (size_t i = 0; i < s->n && (limit == 0 || n < limit); i += k ? k : 1) s->item[n++] = s->item[i];
  s->n = n;
}

void chi_edit_set_free(chi_edit_set *s) {
  chi_free(s->item);
  chi_arena_free(&s->arena);
  memset(s, 0, sizeof *s);
}

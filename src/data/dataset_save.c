/* A data set as our own items, one JSON object a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"

static void put(json_t *o, const char *key, const char *text) {
  if (text && *text) json_object_set_new(o, key, json_string(text));
}

/* Pictures are named in full: the new file may lie anywhere. */
static void put_path(json_t *o, const char *key, const char *path) {
  char *full = path ? realpath(path, NULL) : NULL;
  if (path) json_object_set_new(o, key, json_string(full ? full : path));
  free(full);
}

static void put_ask(json_t *o, const chi_data_ask *a) {
  json_t *list = json_array();
  put(o, "question", a->question);
  put(o, "answer", a->answer);
  put_path(o, "image", a->image);
  for (int b = 0; b < a->n_brackets; b++) {
    json_t *subs = json_array();
    for (int k = 0; k < a->bracket[b].n_sub; k++) {
      json_t *s = json_object();
      put(s, "words", a->bracket[b].sub[k].words);
      put(s, "answer", a->bracket[b].sub[k].answer);
      json_array_append_new(subs, s);
    }
    json_array_append_new(list, json_pack("{s:s,s:o}", "words", a->bracket[b].words, "substitutes", subs));
  }
  json_object_set_new(o, "constraints", list);
}

static json_t *as_json(const chi_data_item *it) {
  json_t *o = json_object();
  const struct {
    const char *key, *text;
  } text[] = {{"id", it->id},
              {"split", it->split},
              {"group", it->group},
              {"form", it->form},
              {"entity_group", it->entity_group},
              {"entity", it->entity},
              {"relation", it->relation},
              {"unit", it->unit},
              {"truth", it->truth},
              {"prior", it->prior},
              {"paraphrase", it->paraphrase},
              {"donor_id", it->donor_id}};
  const struct {
    const char *key;
    bool is;
  } flag[] = {{"held_out", it->held_out},
              {"readable", it->readable},
              {"first_token_shared", it->shared},
              {"hard", it->hard},
              {"continuation", it->continuation}};
  for (size_t k = 0; k < sizeof text / sizeof *text; k++) put(o, text[k].key, text[k].text);
  for (size_t k = 0; k < sizeof flag / sizeof *flag; k++)
    if (flag[k].is) json_object_set_new(o, flag[k].key, json_true());
  put_ask(o, &it->ask);
  put_path(o, "donor", it->donor);
  put_path(o, "mask", it->mask);
  if (it->n_alternatives) {
    json_t *list = json_array();
    for (int k = 0; k < it->n_alternatives; k++) json_array_append_new(list, json_string(it->alternatives[k]));
    json_object_set_new(o, "alternatives", list);
  }
  json_t *twins = json_object();
  for (int k = 0; k < CHI_TWINS; k++) {
    if (!it->twin[k].question) continue;
    json_t *t = json_object();
    put_ask(t, &it->twin[k]);
    json_object_set_new(twins, chi_twin_name[k], t);
  }
  if (json_object_size(twins)) json_object_set(o, "twins", twins);
  json_decref(twins);
  return o;
}

int chi_dataset_save(const chi_dataset *d, const bool *keep, const char *path, chi_err *err) {
  int rc = 0;
  chi_out *out = NULL;
  CHI_TRY(chi_out_open(&out, path, err));
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    if (it->problem || !it->ask.answer || (keep && !keep[i])) continue;
    json_t *o = as_json(it);
    char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
    if (!line)
      rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for item '%s'", path, it->id);
    else if ((rc = chi_out_write(out, line, strlen(line), err)) == 0)
      rc = chi_out_write(out, "\n", 1, err);
    free(line);
    json_decref(o);
    if (rc) goto out;
  }
  rc = chi_out_commit(out, err);
  out = NULL;
out:
  chi_out_abort(out);
  return rc;
}

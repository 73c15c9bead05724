/* data: entities by kind, for corruptions that put another entity of the same kind in a constraint's place. */
#ifndef CHI_ENTITIES_H
#define CHI_ENTITIES_H

#include "file/file.h"

typedef struct chi_entity_kind {
  const char *kind;
  const char *const *nouns; /* words that name the kind: "country", "nation" */
  size_t n_nouns;
  const char *const *names;
  size_t n_names;
} chi_entity_kind;

typedef struct chi_entities {
  chi_entity_kind *kind;
  size_t n_kinds;
  bool built_in;
  chi_arena arena;
} chi_entities;

/* dir/entities.json where the model's folder has one ({"kinds": {kind: {"nouns": [...], "names": [{"name": ...}, ...]}}}),
 * else a built-in list of well-known countries, cities, people, companies, animals, buildings, colours. */
int chi_entities_load(chi_entities *out, const char *dir, chi_err *err);
void chi_entities_free(chi_entities *e);
/* Kind of a constraint's words: one of its nouns ends them ("this country"), or they are one of its names. NULL if none. */
const chi_entity_kind *chi_entities_kind_of(const chi_entities *e, const char *words);

#endif

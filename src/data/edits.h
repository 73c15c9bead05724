/* data: edit sets, one JSON object a line (docs/world.md, "Edit sets"): what shall be changed, and what is asked before and
 * after to see what else moved. A file of requests alone (image, question, target on a line) is an edit set without probes. */
#ifndef CHI_EDITS_H
#define CHI_EDITS_H

#include "file/file.h"

/* Rows of edit_probes.def: generalities (the answer must follow the edit), then localities (nothing must move). */
typedef enum chi_probe_kind {
#define CHI_PROBE(E, name, local, doc) CHI_PROBE_##E,
#include "data/edit_probes.def"
#undef CHI_PROBE
  CHI_PROBES
} chi_probe_kind;
typedef struct chi_probe_info {
  const char *name;
  bool local; /* a locality */
  const char *doc;
} chi_probe_info;
const chi_probe_info *chi_probe_get(chi_probe_kind k);

typedef struct chi_edit_ask {
  const char *image;    /* path that opens as it is, or NULL */
  const char *question; /* brackets allowed */
  const char *answer;   /* generality: what must be said after the edit; locality: what is right; NULL where not known */
} chi_edit_ask;

typedef struct chi_edit_item {
  const char *id, *image, *question, *target;
  const char *old;                                             /* the answer before, or NULL */
  const char *split, *kind, *unit, *entity, *relation, *group; /* "" where absent; group: of the entity */
  const char *edit_at;                                         /* of this request, or NULL */
  chi_edit_ask *probe[CHI_PROBES];
  size_t n_probe[CHI_PROBES];
  int line;
} chi_edit_item;

typedef struct chi_edit_set {
  chi_edit_item *item;
  size_t n, cap;
  char hash[65]; /* sha256 of the file */
  chi_arena arena;
} chi_edit_set;

/* Every line is checked: JSON, required fields, types, duplicate ids. Errors name file, line and field; unknown fields are
 * allowed, unknown kinds of probes are not. split: only its items, NULL = all. limit: at most this many, 0 = all. */
int chi_edit_set_load(chi_edit_set *out, const char *path, const char *split, size_t limit, chi_err *err);
/* Keeps every k-th item, the first one first, and of these at most `limit` (0 = all). */
void chi_edit_set_thin(chi_edit_set *s, size_t k, size_t limit);
void chi_edit_set_free(chi_edit_set *s);

#endif

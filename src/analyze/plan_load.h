/* plan_load: what the two files that read plans share. Private to analyze/plan_*.c. */
#ifndef CHI_PLAN_LOAD_H
#define CHI_PLAN_LOAD_H

#include "analyze/plan_json.h"

typedef struct chi_loader {
  chi_plan_file *f;
  const chi_plan_context *c;
  const chi_shape *shape;
  const char *path;
  char folder[4096]; /* relative names in the file start here */
  chi_st *st;        /* the values file that was opened last */
  char *st_path;
  char where[200]; /* path of the value that is being read */
  chi_err *err;
} chi_loader;

typedef struct chi_row_list {
  int32_t *r, n;
  bool generated;
} chi_row_list;

/* Record a failure with file and place. */
int chi_load_fail(chi_loader *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts the place before a message that another folder made. */
int chi_load_placed(chi_loader *l, int rc, const chi_err *why);
/* Refuses keys that are not in the list (space-separated). */
int chi_load_keys(chi_loader *l, const json_t *o, const char *keys);
int chi_load_int(chi_loader *l, const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out);
int chi_load_text(chi_loader *l, const json_t *o, const char *key, const char **out);
int chi_load_path(chi_loader *l, const char *name, char *out, size_t cap);
/* Token ids of a list into the arena. */
int chi_load_ids(chi_loader *l, const json_t *v, int32_t **out, int32_t *n);
/* All numbers of {"file", "tensor", "row"}, as f32, into the arena. */
int chi_load_tensor(chi_loader *l, const json_t *v, float **out, size_t *n);
/* Index of a name among the first n branches. */
int chi_load_find(chi_loader *l, const char *name, size_t n, int *out);
int chi_load_rows(chi_loader *l, const json_t *v, int branch, chi_stack stack, chi_site site, chi_row_list *out);
int chi_load_site(chi_loader *l, const json_t *o, chi_stack *stack, chi_site *site);
/* Layers [lo, hi); [-1, 0) where the site is not per layer. */
int chi_load_layers(chi_loader *l, const json_t *o, chi_stack stack, chi_site site, int *lo, int *hi);
/* One intervention of `branch`, into the plan and into the branch's list of edits. */
int chi_load_intervention(chi_loader *l, const json_t *o, int branch);

#endif

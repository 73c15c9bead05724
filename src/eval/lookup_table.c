/* Means and intervals of in-context lookup; see lookup.h. */
#include <math.h>

#include "eval/lookup.h"

const chi_lookup_control chi_lookup_controls[CHI_LOOKUP_CONTROLS] = {
    {"answer_less_rival", "MRR in what is written, answer less rival", 2, 3},
    {"object_less_other", "MRR in the key view, thing less another", 4, 5},
    {"attention_less_swapped", "attention less the same, asked about another thing", 6, 7},
    {"embed_answer_less_rival", "MRR in patch vectors, answer less rival", 8, 9},
    {"embed_object_less_other", "MRR in patch vectors, thing less another", 10, 11},
};

typedef struct sums {
  const json_t **ask[CHI_LOOKUP_COLUMNS]; /* [n]: NULL where it is missing or wrong */
  const char **unit;
  chi_clusters units;
  double *a, *b;
  int n;
  chi_arena arena;
} sums;

static int collect(chi_lookup_table *t, sums *s, const json_t *lines, chi_err *err) {
  size_t n = json_array_size(lines);
  s->unit = chi_arena_array(&s->arena, n, sizeof *s->unit, err);
  s->a = chi_arena_array(&s->arena, n, sizeof *s->a, err);
  s->b = chi_arena_array(&s->arena, n, sizeof *s->b, err);
  if (!s->unit || !s->a || !s->b) return CHI_ERR_MEMORY;
  for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++)
    if (!(s->ask[c] = chi_arena_array(&s->arena, n, sizeof *s->ask[c], err))) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    const json_t *line = json_array_get(lines, i), *asks = json_object_get(line, "asks");
    const char *unit = json_string_value(json_object_get(line, "unit"));
    t->items++;
    t->failed += !asks;
    if (!asks) continue;
    for (int c = 0; c < CHI_LOOKUP_COLUMNS; c++) {
      const json_t *ask = json_object_get(asks, chi_lookup_column[c]), *heads = json_object_get(ask, "heads");
      if (!heads) continue;
      t->asked[c]++;
      if (!json_is_true(json_object_get(ask, "right"))) continue;
      t->right[c]++;
      if (json_array_size(heads) > 0) t->n_heads = (int)json_array_size(heads);
      s->ask[c][s->n] = ask;
    }
    s->unit[s->n] = chi_unit_entity(&s->arena, unit ? unit : "", err);
    if (!s->unit[s->n++]) return CHI_ERR_MEMORY;
  }
  int rc = s->n ? chi_clusters_make(&s->units, s->unit, s->n, err) : 0;
  t->units = s->units.n;
  return rc;
}

/* Values of one measure in one column; false where nobody has any. */
static bool values(const sums *s, int column, int measure, double *x) {
  bool any = false;
  for (int i = 0; i < s->n; i++) {
    const json_t *v =
        s->ask[column][i] ? json_object_get(s->ask[column][i], chi_incontext_measures[measure].key) : NULL;
    x[i] = json_is_number(v) ? json_number_value(v) : NAN;
    any = any || !isnan(x[i]);
  }
  return any;
}

static bool both(const sums *s) {
  for (int i = 0; i < s->n; i++)
    if (!isnan(s->a[i]) && !isnan(s->b[i])) return true;
  return false;
}

static int columns(chi_lookup_table *t, sums *s, int c, const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++) {
    if (!values(s, c, k, s->a)) continue;
    CHI_TRY(chi_boot_mean(&t->row[c][k].mean, &s->units, s->a, NULL, boot, err));
    bool twin = c > 0; /* of the item's own column, 0 */
    if (twin && values(s, 0, k, s->b) && both(s))
      CHI_TRY(chi_boot_mean(&t->row[c][k].less_item, &s->units, s->a, s->b, boot, err));
  }
  for (int k = 0; k < CHI_LOOKUP_CONTROLS; k++)
    if (values(s, c, chi_lookup_controls[k].a, s->a) && values(s, c, chi_lookup_controls[k].b, s->b) && both(s))
      CHI_TRY(chi_boot_mean(&t->control[c][k], &s->units, s->a, s->b, boot, err));
out:
  return rc;
}

static double shared(const json_t *a, const json_t *b) {
  const json_t *x = json_object_get(a, "heads"), *y = json_object_get(b, "heads");
  int n = 0;
  if (!a || !b) return NAN;
  for (size_t i = 0; i < json_array_size(x); i++)
    for (size_t k = 0; k < json_array_size(y); k++) n += json_equal(json_array_get(x, i), json_array_get(y, k));
  return n;
}

static int pairs(chi_lookup_table *t, sums *s, const chi_boot_opts *boot, chi_err *err) {
  int rc = 0;
  for (int a = 0; a < CHI_LOOKUP_COLUMNS; a++)
    for (int b = a + 1; b < CHI_LOOKUP_COLUMNS; b++) {
      chi_lookup_pair *p = &t->pair[t->n_pairs];
      bool any = false;
      for (int i = 0; i < s->n; i++) {
        s->a[i] = shared(s->ask[a][i], s->ask[b][i]);
        any = any || !isnan(s->a[i]);
      }
      if (!any) continue;
      *p = (chi_lookup_pair){.a = a, .b = b};
      CHI_TRY(chi_boot_mean(&p->shared, &s->units, s->a, NULL, boot, err));
      t->n_pairs++;
    }
out:
  return rc;
}

int chi_lookup_table_make(chi_lookup_table **out, const json_t *lines, int all_heads, const chi_boot_opts *boot,
                          chi_err *err) {
  int rc = 0;
  sums s = {0};
  chi_lookup_table *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  CHI_TRY(collect(t, &s, lines, err));
  t->by_chance = (double)t->n_heads * t->n_heads / all_heads;
  for (int c = 0; c < CHI_LOOKUP_COLUMNS && s.n; c++) CHI_TRY(columns(t, &s, c, boot, err));
  CHI_TRY(pairs(t, &s, boot, err));
out:
  chi_clusters_free(&s.units);
  chi_arena_free(&s.arena);
  if (rc)
    chi_lookup_table_free(t);
  else
    *out = t;
  return rc;
}

void chi_lookup_table_free(chi_lookup_table *t) { chi_free(t); }

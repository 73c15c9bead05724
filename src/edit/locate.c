/* Where to edit: the MLP whose output carries the answer from picture to question, by tracing under picture swap.
 * What a third picture's value repairs as well is not the fact (docs/design.md, "a donor control is needed"). */
#include <stdio.h>
#include <string.h>

#include "analyze/trace.h"
#include "edit/edit.h"

enum { kPairs = 4 };
static const double kSmall = 0.01;

/* One trace added to the map's sums. */
static void add_trace(chi_edit_map *map, const chi_trace *t) {
  const chi_metrics *base = chi_trace_base(t);
  for (int l = 0; l < t->n_layers; l++)
    for (int r = 0; r < t->n_rows; r++) {
      const chi_metrics *a = chi_trace_at(t, CHI_TRACE_OWN, CHI_TRACE_MLP, l, r),
                        *b = chi_trace_at(t, CHI_TRACE_DONOR, CHI_TRACE_MLP, l, r);
      chi_edit_cell *to = &map->cell[l * t->n_rows + r];
      to->own += a->p - base->p;
      to->corrected += a->p - b->p;
      to->own_log += a->logp - base->logp;
      to->corrected_log += a->logp - b->logp;
    }
}

static int map_like(chi_edit_map *map, const chi_trace *t, chi_err *err) {
  size_t cells = (size_t)t->n_layers * (size_t)t->n_rows;
  map->n_layers = t->n_layers, map->n_rows = t->n_rows;
  map->cell = chi_calloc(cells, sizeof *map->cell, err);
  map->rows = chi_calloc((size_t)t->n_rows, sizeof *map->rows, err);
  if (!map->cell || !map->rows) return CHI_ERR_MEMORY;
  memcpy(map->rows, t->rows, (size_t)t->n_rows * sizeof *map->rows);
  return 0;
}

int chi_edit_map_make(chi_edit_map *map, const chi_model *m, const chi_prompt *p, const char *const *pictures, size_t n,
                      size_t mem, chi_err *err) {
  int rc = 0;
  char spec[4200];
  chi_trace *t = NULL;
  memset(map, 0, sizeof *map);
  if (!p->pixels || n < 2)
    return chi_fail(err, CHI_ERR_ARG,
                    "tracing under picture swap needs a question about a picture and at least two others "
                    "(--donor, or the set's own)");
  for (size_t i = 0; i + 1 < n && map->pairs < kPairs; i += 2) {
    if (snprintf(spec, sizeof spec, "picture:%s", pictures[i]) >= (int)sizeof spec) {
      rc = chi_fail(err, CHI_ERR_ARG, "the path %.60s... is too long", pictures[i]);
      goto out;
    }
    chi_trace_opts o = CHI_TRACE_OPTS_INIT;
    memset(o.site, 0, sizeof o.site);
    o.site[CHI_TRACE_MLP] = true;
    o.corrupt.spec = spec;
    o.donor = pictures[i + 1];
    o.mem = mem;
    CHI_TRY(chi_trace_run(&t, m, p, &o, err));
    if (!map->cell) CHI_TRY(map_like(map, t, err));
    add_trace(map, t);
    map->pairs++;
    chi_trace_free(t);
    t = NULL;
  }
  for (int64_t i = 0; i < (int64_t)map->n_layers * map->n_rows; i++) {
    chi_edit_cell *c = &map->cell[i];
    c->own /= map->pairs, c->corrected /= map->pairs, c->own_log /= map->pairs, c->corrected_log /= map->pairs;
  }
out:
  chi_trace_free(t);
  if (rc) chi_edit_map_free(map);
  return rc;
}

void chi_edit_map_free(chi_edit_map *map) {
  chi_free(map->cell);
  chi_free(map->rows);
  memset(map, 0, sizeof *map);
}

const chi_edit_cell *chi_edit_map_at(const chi_edit_map *map, int layer, int32_t row) {
  for (int r = 0; r < map->n_rows; r++)
    if (map->rows[r] == row && layer >= 0 && layer < map->n_layers) return &map->cell[layer * map->n_rows + r];
  return NULL;
}

/* The cell of the largest corrected effect in layers [lo, hi]. */
static void strongest(chi_located *out, const chi_edit_map *map, int lo, int hi) {
  out->row = -1;
  for (int l = lo < 0 ? 0 : lo; l <= hi && l < map->n_layers; l++)
    for (int r = 0; r < map->n_rows; r++) {
      const chi_edit_cell *c = &map->cell[l * map->n_rows + r];
      double d = out->in_logp ? c->corrected_log : c->corrected;
      if (out->row >= 0 && d <= out->effect) continue;
      out->effect = d;
      out->row = map->rows[r], out->layer = l;
      out->own = out->in_logp ? c->own_log : c->own;
    }
}

int chi_edit_strongest(chi_located *out, const chi_edit_map *map, int lo, int hi, chi_err *err) {
  *out = (chi_located){.row = -1, .layer = -1, .pairs = map->pairs};
  if (hi < 0) hi = map->n_layers - 1;
  strongest(out, map, lo, hi);
  if (out->row >= 0 && out->effect < kSmall) { /* no single MLP moves p: what it does to log p still tells them apart */
    out->in_logp = true;
    strongest(out, map, lo, hi);
  }
  return out->row >= 0 ? 0 : chi_fail(err, CHI_ERR_ARG, "--edit-at auto: no layer from %d to %d in this model", lo, hi);
}

int chi_edit_locate(chi_located *out, const chi_model *m, const chi_prompt *p, const char *const *pictures, size_t n,
                    int lo, int hi, size_t mem, chi_err *err) {
  int rc = 0;
  chi_edit_map map = {0};
  CHI_TRY(chi_edit_map_make(&map, m, p, pictures, n, mem, err));
  CHI_TRY(chi_edit_strongest(out, &map, lo, hi, err));
out:
  chi_edit_map_free(&map);
  return rc;
}

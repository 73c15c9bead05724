/* What a map's cells are: rows, groups of rows, windows of layers; see trace.h. */
#include <stdio.h>
#include <string.h>

#include "analyze/select.h"
#include "analyze/trace_internal.h"

enum { kMaxGroups = 32 };

static void set_windows(chi_trace *t) {
  int W = t->opts.window, L = t->n_layers;
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    for (int l = 0; l < L; l++) {
      int lo = l, hi = l; /* inclusive */
      bool wide = (s == CHI_TRACE_MLP || s == CHI_TRACE_ATTN) && W > 1;
      if (wide && t->opts.released_window)
        lo = l - W, hi = l + W;
      else if (wide)
        lo = l - W / 2, hi = l + (W + 1) / 2 - 1;
      t->lo[s * L + l] = lo < 0 ? 0 : lo;
      t->hi[s * L + l] = hi > L - 1 ? L - 1 : hi;
    }
}

/* The bracket that begins at a row and is one cell, or NULL. */
static const chi_prompt_span *bracket_at(const chi_trace *t, int32_t row, int32_t first) {
  const chi_prompt *p = t->prompt;
  for (int i = 0; t->opts.span_cell && i < p->n_spans; i++)
    if (p->span[i].lo == row && row >= first) return &p->span[i];
  return NULL;
}

/* The cell's rows belong to the arena already. */
static void add_cell(chi_trace *t, int32_t *rows, int32_t n, const char *name) {
  t->rows[t->n_rows] = rows[0];
  t->n_cell[t->n_rows] = n;
  t->cell_rows[t->n_rows] = rows;
  t->cell_name[t->n_rows++] = name;
}

static int add_groups(chi_trace *t, chi_err *err) {
  int rc = 0, n_groups = 0;
  int32_t *rows = NULL, n = 0;
  char *save = NULL, *text = chi_arena_strdup(&t->arena, t->opts.groups ? t->opts.groups : "", err);
  if (!text) return CHI_ERR_MEMORY;
  for (char *g = strtok_r(text, ";", &save); g; g = strtok_r(NULL, ";", &save)) {
    if (n_groups++ == kMaxGroups) return chi_fail(err, CHI_ERR_ARG, "more than %d groups of rows", kMaxGroups);
    CHI_TRY(chi_select_rows(&rows, &n, g, t->prompt, err));
    int32_t *kept = chi_arena_array(&t->arena, (size_t)n, sizeof *kept, err);
    CHI_TRY(kept ? 0 : CHI_ERR_MEMORY);
    memcpy(kept, rows, (size_t)n * sizeof *kept);
    add_cell(t, kept, n, g);
    chi_free(rows);
    rows = NULL;
  }
out:
  chi_free(rows);
  return rc;
}

static bool listed(const chi_trace_opts *o, int32_t row) {
  for (int32_t i = 0; i < o->n_only; i++)
    if (o->only[i] == row) return true;
  return !o->only;
}

int chii_trace_rows(chi_trace *t, chi_err *err) {
  int rc = 0;
  const chi_prompt *p = t->prompt;
  const chi_trace_opts *o = &t->opts;
  int32_t first = o->from_words && p->n_spans > 0  ? p->span[0].lo
                  : o->all_rows || p->n_image == 0 ? 0
                                                   : p->image_row + p->n_image - 1;
  size_t max = (size_t)(p->n_rows - first) + kMaxGroups, layers = (size_t)(CHI_TRACE_SITES * t->n_layers);
  if (o->window < 1) return chi_fail(err, CHI_ERR_ARG, "--window must be at least 1");
  t->every = chi_arena_array(&t->arena, (size_t)t->n_rows_total, sizeof *t->every, err);
  t->rows = chi_arena_array(&t->arena, max, sizeof *t->rows, err);
  t->n_cell = chi_arena_array(&t->arena, max, sizeof *t->n_cell, err);
  t->cell_rows = chi_arena_array(&t->arena, max, sizeof *t->cell_rows, err);
  t->cell_name = chi_arena_array(&t->arena, max, sizeof *t->cell_name, err);
  t->lo = chi_arena_array(&t->arena, layers, sizeof *t->lo, err);
  t->hi = chi_arena_array(&t->arena, layers, sizeof *t->hi, err);
  CHI_TRY(t->every && t->rows && t->n_cell && t->cell_rows && t->cell_name && t->lo && t->hi ? 0 : CHI_ERR_MEMORY);
  for (int32_t r = 0; r < t->n_rows_total; r++) t->every[r] = r;
  for (int32_t r = first; r < p->n_rows;) {
    const chi_prompt_span *s = bracket_at(t, r, first);
    int32_t n = s ? s->hi - s->lo : 1;
    if (listed(o, r)) add_cell(t, t->every + r, n, s ? s->words : NULL);
    r += n;
  }
  if (t->n_rows == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "none of the rows that are asked for has a cell");
    goto out;
  }
  t->n_tokens = t->n_rows;
  CHI_TRY(add_groups(t, err));
  set_windows(t);
out:
  return rc;
}

int32_t chii_first_live(const chi_trace *t) {
  int32_t i = 0;
  if (t->corruption.kind == CHI_CORRUPT_PICTURE) return 0; /* picture rows: the map begins within them or behind */
  while (i < t->n_tokens - 1 && t->cell_rows[i][t->n_cell[i] - 1] < t->corruption.rows[0]) i++;
  return i;
}

int chi_path_parse(chi_path *out, const char *text, chi_err *err) {
  int layer = 0, head = 0, n = 0;
  char part = 0;
  *out = (chi_path){.part = CHI_PATH_OUT};
  if (chi_streq(text, "out")) return 0;
  const char *at =
      text && sscanf(text, "%6d.%6d.%c%n", &layer, &head, &part, &n) == 3 && !text[n] ? strchr("qkv", part) : NULL;
  if (!at || layer < 0 || head < 0)
    return chi_fail(err, CHI_ERR_ARG, "a path leads to LAYER.HEAD.q (or k, v), as in 5.3.q, or to out; not to '%s'",
                    text ? text : "");
  *out = (chi_path){.part = (chi_path_part)(at - "qkv"), .layer = layer, .head = head};
  return 0;
}

const char *chi_trace_row_role(const chi_trace *t, int row) {
  static const char *const kBracket[CHI_MAX_SPANS] = {"constraint1", "constraint2", "constraint3", "constraint4",
                                                      "constraint5", "constraint6", "constraint7", "constraint8"};
  const chi_prompt *p = t->prompt;
  if (row >= t->n_tokens) return t->cell_name[row];
  for (int i = 0; p->n_spans > 1 && i < p->n_spans; i++)
    if (t->rows[row] >= p->span[i].lo && t->rows[row] < p->span[i].hi) return kBracket[i];
  return chi_role_name(p->role[t->rows[row]]);
}

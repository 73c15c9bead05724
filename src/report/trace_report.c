/* Writing causal maps; see trace_report.h. */
#include "report/trace_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kSource[CHI_TRACE_SOURCES] = {"own", "donor"};
static const char *const kMetric[] = {"p", "logp", "logit", "rank", "diff", "kl", "joint"};
enum { kMetrics = sizeof kMetric / sizeof *kMetric, kToken = 64 };

static double effect(const chi_trace *t, int src, int site, int l, int r) {
  return chi_trace_at(t, src, site, l, r)->p - chi_trace_base(t)->p;
}

static void row_token(const chi_trace *t, int r, char *buf, size_t cap) {
  if (t->n_cell[r] > 1) { /* the whole constraint */
    snprintf(buf, cap, "%s", t->prompt->constraint);
    return;
  }
  chi_token_text(t->model->tok, t->prompt->tokens[t->rows[r]], buf, cap);
}

static const char *row_role(const chi_trace *t, int r) { return chi_role_name(t->prompt->role[t->rows[r]]); }

static void token(const chi_trace *t, int32_t id, char *buf) { chi_token_text(t->model->tok, id, buf, kToken); }

static const char *trim(char *s) {
  size_t n = strlen(s);
  while (n && s[n - 1] == ' ') s[--n] = 0;
  return s + strspn(s, " ");
}

static json_t *metrics_json(const chi_metrics *m) {
  json_t *o = json_object();
  const double *v = (const double *)m;
  for (int i = 0; i < kMetrics; i++)
    if (!isnan(v[i])) json_object_set_new(o, kMetric[i], chi_json_num(v[i]));
  return o;
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */
static json_t *runs_json(const chi_trace *t) {
  json_t *o = json_object();
  json_object_set_new(o, "clean", metrics_json(&t->clean));
  json_object_set_new(o, "corrupted", metrics_json(&t->corrupt));
  if (t->donor) json_object_set_new(o, "donor", metrics_json(&t->donor_run));
  return o;
}

static json_t *rows_json(const chi_trace *t) {
  json_t *a = json_array();
  char buf[kToken];
  for (int r = 0; r < t->n_rows; r++) {
    row_token(t, r, buf, sizeof buf);
    json_t *o = json_pack("{s:i,s:o,s:i,s:s}", "row", (int)t->rows[r], "token", chi_json_text(buf), "id",
                          (int)t->prompt->tokens[t->rows[r]], "role", row_role(t, r));
    if (t->n_cell[r] > 1) json_object_set_new(o, "rows", json_integer(t->n_cell[r]));
    json_array_append_new(a, o);
  }
  return a;
}

/* maps.<site>.<source>.<metric>[layer][row]; effect = p minus the base run's p, signed and never clipped */
static json_t *maps_json(const chi_trace *t) {
  json_t *maps = json_object();
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->cell[0][s]) continue;
    json_t *site = json_object(), *win = json_array();
    for (int l = 0; l < t->n_layers; l++)
      json_array_append_new(win, json_pack("[i,i]", (int)t->lo[s * t->n_layers + l], (int)t->hi[s * t->n_layers + l]));
    json_object_set_new(site, "layers", win);
    for (int src = 0; src < CHI_TRACE_SOURCES; src++) {
      if (!t->cell[src][s]) continue;
      json_t *one = json_object();
      for (int k = -1; k < kMetrics; k++) {
        if (k == kMetrics - 1 && t->n_target == 0) continue;
        json_t *grid = json_array();
        for (int l = 0; l < t->n_layers; l++) {
          json_t *line = json_array();
          for (int r = 0; r < t->n_rows; r++)
            json_array_append_new(line, chi_json_num(k < 0 ? effect(t, src, s, l, r)
                                                           : ((const double *)chi_trace_at(t, src, s, l, r))[k]));
          json_array_append_new(grid, line);
        }
        json_object_set_new(one, k < 0 ? "effect" : kMetric[k], grid);
      }
      json_object_set_new(site, kSource[src], one);
    }
    json_object_set_new(maps, chi_trace_site_name[s], site);
  }
  return maps;
}

int chi_trace_json(json_t **out, const chi_trace *t, const chi_provenance *prov, chi_err *err) {
  char target[kToken], counter[kToken];
  json_t *o = NULL;
  int rc = chi_report_json(&o, "trace", prov, err);
  if (rc) return rc;
  token(t, t->target, target);
  token(t, t->counter, counter);
  json_object_set_new(o, "constraint", chi_json_text(t->prompt->constraint));
  json_object_set_new(o, "span", json_pack("[i,i]", (int)t->prompt->span_lo, (int)t->prompt->span_hi - 1));
  json_object_set_new(o, "span_grown", json_boolean(t->prompt->span_grown));
  json_object_set_new(o, "direction", json_string(t->opts.noise_direction ? "noise" : "denoise"));
  json_object_set_new(o, "corruption", chi_json_text(t->corruption.text));
  if (t->corruption.noise) json_object_set_new(o, "noise_std", chi_json_num(t->corruption.std));
  json_object_set_new(o, "samples", json_integer(t->corruption.n));
  json_object_set_new(o, "window", json_integer(t->opts.window));
  json_object_set_new(o, "window_style", json_string(t->opts.released_window ? "released" : "rome"));
  json_object_set_new(o, "target", json_pack("{s:o,s:i}", "token", chi_json_text(target), "id", (int)t->target));
  if (t->opts.target_text) json_object_set_new(o, "target_text", chi_json_text(t->opts.target_text));
  json_object_set_new(o, "corrupted_top",
                      json_pack("{s:o,s:i}", "token", chi_json_text(counter), "id", (int)t->counter));
  json_object_set_new(o, "runs", runs_json(t));
  json_object_set_new(o, "rows", rows_json(t));
  json_object_set_new(o, "maps", maps_json(t));
  json_object_set_new(o, "check", json_pack("{s:i,s:i}", "cells", t->checked, "identical", t->identical));
  json_object_set_new(o, "work",
                      json_pack("{s:I,s:I}", "live_row_layers", (json_int_t)t->stats.live_row_layers,
                                "dense_row_layers", (json_int_t)t->stats.dense_row_layers));
  *out = o;
  return 0;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
static int write_csv(const chi_trace *t, const char *path, chi_err *err) {
  static const char *const kHead[] = {"site",   "layer", "lo",   "hi",    "row",  "token", "role", "source",
                                      "effect", "p",     "logp", "logit", "rank", "diff",  "kl",   "joint"};
  int rc = 0;
  chi_csv *c = NULL;
  char buf[kToken];
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      for (int l = 0; t->cell[src][s] && l < t->n_layers; l++)
        for (int r = 0; r < t->n_rows; r++) {
          const double *m = (const double *)chi_trace_at(t, src, s, l, r);
          row_token(t, r, buf, sizeof buf);
          chi_csv_str(c, chi_trace_site_name[s]);
          chi_csv_int(c, l);
          chi_csv_int(c, t->lo[s * t->n_layers + l]);
          chi_csv_int(c, t->hi[s * t->n_layers + l]);
          chi_csv_int(c, t->rows[r]);
          chi_csv_str(c, buf);
          chi_csv_str(c, row_role(t, r));
          chi_csv_str(c, kSource[src]);
          chi_csv_num(c, effect(t, src, s, l, r));
          for (int k = 0; k < kMetrics; k++) chi_csv_num(c, m[k]);
          CHI_TRY(chi_csv_row(c, err));
        }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- safetensors ----------------------------------------------------------------------------------------- */
static int write_tensors(const chi_trace *t, const chi_provenance *prov, const char *path, chi_err *err) {
  int rc = 0;
  chi_st_writer *w = NULL;
  json_t *pj = NULL;
  char *text = NULL, name[64];
  chi_arena a = {0};
  int64_t dim[2] = {t->n_layers, t->n_rows}, one = 1, rows = t->n_rows,
          span[2] = {t->prompt->span_lo, t->prompt->span_hi - 1}, two = 2;
  float base[2] = {(float)t->clean.p, (float)t->corrupt.p};
  int32_t *ids = chi_arena_array(&a, (size_t)t->n_rows, sizeof *ids, err);
  int32_t sp[2] = {(int32_t)span[0], (int32_t)span[1]};
  if (!ids) return CHI_ERR_MEMORY;
  for (int r = 0; r < t->n_rows; r++) ids[r] = t->prompt->tokens[t->rows[r]];
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_provenance_json(&pj, prov, err));
  text = json_dumps(pj, JSON_COMPACT);
  if (text) CHI_TRY(chi_st_writer_meta(w, "provenance", text, err));
  CHI_TRY(chi_st_writer_meta(w, "layout", "<site>.<source>.<metric> [layer][row]", err));
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      for (int k = 0; t->cell[src][s] && k < kMetrics - (t->n_target == 0); k++) {
        size_t n = (size_t)t->n_layers * (size_t)t->n_rows;
        float *v = chi_arena_array(&a, n, sizeof *v, err);
        CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
        for (size_t i = 0; i < n; i++) v[i] = (float)((const double *)&t->cell[src][s][i])[k];
        snprintf(name, sizeof name, "%s.%s.%s", chi_trace_site_name[s], kSource[src], kMetric[k]);
        CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 2, dim, v, err));
      }
  CHI_TRY(chi_st_writer_add(w, "p_clean", CHI_F32, 1, &one, &base[0], err));
  CHI_TRY(chi_st_writer_add(w, "p_corrupted", CHI_F32, 1, &one, &base[1], err));
  CHI_TRY(chi_st_writer_add(w, "rows", CHI_I32, 1, &rows, t->rows, err));
  CHI_TRY(chi_st_writer_add(w, "tokens", CHI_I32, 1, &rows, ids, err));
  CHI_TRY(chi_st_writer_add(w, "span", CHI_I32, 1, &two, sp, err));
  if (t->corruption.noise)
    CHI_TRY(chi_st_writer_add(w, "noise", CHI_F32, 3,
                              (int64_t[]){t->corruption.n, t->corruption.span, t->model->net.decoder.spec.d},
                              t->corruption.noise, err));
  rc = chi_st_writer_commit(w, err);
  w = NULL;
out:
  chi_st_writer_abort(w);
  json_decref(pj);
  free(text);
  chi_arena_free(&a);
  return rc;
}

/* ---- picture --------------------------------------------------------------------------------------------- */
/* One panel's values [layer][row]: own, donor or difference. */
static float *panel(const chi_trace *t, chi_arena *a, int site, int col, chi_err *err) {
  float *v = chi_arena_array(a, (size_t)t->n_layers * (size_t)t->n_rows, sizeof *v, err);
  for (int l = 0; v && l < t->n_layers; l++)
    for (int r = 0; r < t->n_rows; r++)
      v[l * t->n_rows + r] =
          (float)(col < 2 ? effect(t, col, site, l, r) : effect(t, 0, site, l, r) - effect(t, 1, site, l, r));
  return v;
}

static int draw(const chi_trace *t, const chi_provenance *prov, const char *png, const char *svg, chi_err *err) {
  static const char *const kCols[] = {"own", "donor", "own \xe2\x88\x92 donor"};
  static const char *const kNames[CHI_TRACE_SITES] = {"MLP", "attention", "hidden state"};
  static const char *const kNotes[] = {
      "the value put back is the item's own, from the clean run",
      "it comes from a clean run about another picture: repair of the overwritten word",
      "what speaks of the fact itself"};
  int rc = 0;
  chi_arena a = {0};
  int cols = t->donor ? 3 : 1, n_sites = 0;
  const char *names[CHI_TRACE_SITES], *lines[3];
  const float *values[CHI_TRACE_SITES * 3];
  char target[kToken], counter[kToken], l1[256], l3[256], scale[96], label[96];
  chi_heat_row *rows = chi_arena_array(&a, (size_t)t->n_rows, sizeof *rows, err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  token(t, t->target, target);
  token(t, t->counter, counter);
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->cell[0][s]) continue;
    names[n_sites] = kNames[s];
    for (int c = 0; c < cols; c++) CHI_TRY((values[n_sites * cols + c] = panel(t, &a, s, c, err)) ? 0 : CHI_ERR_MEMORY);
    n_sites++;
  }
  for (int r = 0; r < t->n_rows; r++) {
    chi_role role = t->prompt->role[t->rows[r]];
    row_token(t, r, label, sizeof label);
    rows[r].label = role == CHI_ROLE_IMAGE
                        ? (t->rows[r] == t->prompt->image_row + t->prompt->n_image - 1 ? "(last patch)" : "(patch)")
                        : chi_arena_strdup(&a, label, err);
    CHI_TRY(rows[r].label ? 0 : CHI_ERR_MEMORY);
    rows[r].mark = role == CHI_ROLE_CONSTRAINT                      ? CHI_ROW_MARKED
                   : role == CHI_ROLE_TEXT || role == CHI_ROLE_LAST ? CHI_ROW_PLAIN
                                                                    : CHI_ROW_DIM;
  }
  snprintf(l1, sizeof l1,
           "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f clean, %.3f corrupted (there \xe2\x80\x9c%s\xe2\x80\x9d)",
           trim(target), t->clean.p, t->corrupt.p, trim(counter));
  if (t->opts.window > 1)
    snprintf(l3, sizeof l3, "windows of %s %d", t->opts.released_window ? "\xc2\xb1" : "", t->opts.window);
  else
    snprintf(
        l3, sizeof l3, "one layer at a time; %s",
        t->opts.noise_direction ? "corrupted value into the clean run" : "clean value back into the corrupted run");
  lines[0] = l1;
  lines[1] = t->corruption.text;
  lines[2] = l3;
  snprintf(scale, sizeof scale, "change of p(%s)", trim(target));
  char *q = chi_arena_strdup(&a, t->prompt->text, err);
  CHI_TRY(q ? 0 : CHI_ERR_MEMORY);
  size_t at = 0; /* title: the text from the question on, as far as the line goes */
  for (size_t i = 0; i < t->prompt->words_at; i++)
    if (q[i] == '\n' || q[i] == ':') at = i + 1;
  while (q[at] == ' ') at++;
  size_t end = at + strcspn(q + at, "\n");
  char *cut = strstr(q + at, " ASSISTANT:");
  if (cut && (size_t)(cut - q) < end && (size_t)(cut - q) > t->prompt->words_at) end = (size_t)(cut - q);
  q[end] = 0;
  chi_heatmap_spec s = {.title = q + at,
                        .mark_begin = t->prompt->words_at - at,
                        .mark_end = t->prompt->words_at - at + t->prompt->words_len,
                        .lines = lines,
                        .n_lines = 3,
                        .thumb = t->prompt->seen.rgb ? &t->prompt->seen : NULL,
                        .n_rows = t->n_rows,
                        .n_layers = t->n_layers,
                        .rows = rows,
                        .n_sites = n_sites,
                        .n_cols = cols,
                        .site_names = names,
                        .col_names = t->donor ? kCols : NULL,
                        .col_notes = t->donor ? kNotes : NULL,
                        .values = values,
                        .mark_note = "words of the constraint",
                        .scale_label = scale,
                        .top = 3};
  CHI_TRY(chi_heatmap_save(&s, prov, png, err));
  CHI_TRY(chi_heatmap_save(&s, prov, svg, err));
out:
  chi_arena_free(&a);
  return rc;
}

int chi_trace_write(const chi_trace *t, const chi_provenance *prov, const char *dir, chi_err *err) {
  int rc = 0;
  char path[2][4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_trace_json(&j, t, prov, err));
  CHI_TRY(chi_path_join(path[0], sizeof path[0], dir, "trace.json", err));
  CHI_TRY(chi_json_save(j, path[0], err));
  CHI_TRY(chi_path_join(path[0], sizeof path[0], dir, "trace.csv", err));
  CHI_TRY(write_csv(t, path[0], err));
  CHI_TRY(chi_path_join(path[0], sizeof path[0], dir, "trace.safetensors", err));
  CHI_TRY(write_tensors(t, prov, path[0], err));
  CHI_TRY(chi_path_join(path[0], sizeof path[0], dir, "trace.png", err));
  CHI_TRY(chi_path_join(path[1], sizeof path[1], dir, "trace.svg", err));
  CHI_TRY(draw(t, prov, path[0], path[1], err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal -------------------------------------------------------------------------------------------- */
typedef struct top_cell {
  int site, layer, row;
  double e;
} top_cell;

static int by_strength(const void *a, const void *b) {
  double x = fabs(((const top_cell *)a)->e), y = fabs(((const top_cell *)b)->e);
  return x < y ? 1 : x > y ? -1 : 0;
}

static int top_cells(const chi_trace *t, int site, top_cell *out, int n, chi_err *err) {
  size_t cells = (size_t)t->n_layers * (size_t)t->n_rows;
  top_cell *all = chi_calloc(cells, sizeof *all, err);
  if (!all) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < cells; i++) {
    int l = (int)i / t->n_rows, r = (int)i % t->n_rows;
    all[i] = (top_cell){site, l, r, effect(t, 0, site, l, r)};
  }
  qsort(all, cells, sizeof *all, by_strength);
  for (int i = 0; i < n; i++) out[i] = (size_t)i < cells ? all[i] : (top_cell){.site = -1};
  chi_free(all);
  return 0;
}

int chi_trace_summary(const chi_trace *t, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0;
  char target[kToken], counter[kToken], tok[kToken];
  chi_table *tab = NULL;
  top_cell best[64];
  if (top > 64) top = 64;
  token(t, t->target, target);
  token(t, t->counter, counter);
  chi_str_addf(out, "answer      %s   p = %.4f clean, %.4f corrupted (there: %s)\n", trim(target), t->clean.p,
               t->corrupt.p, trim(counter));
  chi_str_addf(out, "corruption  %s\n", t->corruption.text);
  if (t->prompt->span_grown) chi_str_addf(out, "note        the constraint's tokens reach past its words\n");
  if (t->donor) chi_str_addf(out, "donor       p = %.4f in its own clean run\n", t->donor_run.p);
  chi_str_addf(out, "work        %lld live row-layers; one forward per run would be %lld (%.0fx)\n",
               (long long)t->stats.live_row_layers, (long long)t->stats.dense_row_layers,
               (double)t->stats.dense_row_layers / (double)(t->stats.live_row_layers ? t->stats.live_row_layers : 1));
  if (t->opts.check) chi_str_addf(out, "check       %d of %d cells bit-identical\n", t->identical, t->checked);
  chi_str_add(out, "\n");
  static const char *const kHead[] = {"site", "layers", "row", "token", "effect", "donor", "own-donor"};
  CHI_TRY(chi_table_new(&tab, kHead, t->donor ? "lrrlrrr" : "lrrlr", err));
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->cell[0][s]) continue;
    CHI_TRY(top_cells(t, s, best, top, err));
    for (int i = 0; i < top && best[i].site >= 0; i++) {
      int l = best[i].layer, r = best[i].row, at = s * t->n_layers + l;
      row_token(t, r, tok, sizeof tok);
      chi_table_cell(tab, "%s", chi_trace_site_name[s]);
      if (t->lo[at] == t->hi[at])
        chi_table_cell(tab, "%d", l);
      else
        chi_table_cell(tab, "%d-%d", t->lo[at], t->hi[at]);
      chi_table_cell(tab, "%d", t->rows[r]);
      chi_table_cell(tab, "%s%s", tok, t->prompt->role[t->rows[r]] == CHI_ROLE_CONSTRAINT ? " *" : "");
      chi_table_cell(tab, "%+.4f", best[i].e);
      if (!t->donor) continue;
      chi_table_cell(tab, "%+.4f", effect(t, 1, s, l, r));
      chi_table_cell(tab, "%+.4f", best[i].e - effect(t, 1, s, l, r));
    }
  }
  CHI_TRY(chi_table_text(tab, width, out, err));
  chi_str_addf(out, "(effect = p(%s) minus the %s run's; * = constraint)\n", trim(target),
               t->opts.noise_direction ? "clean" : "corrupted");
out:
  chi_table_free(tab);
  return rc;
}

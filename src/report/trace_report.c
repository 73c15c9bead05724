/* Writing causal maps; see trace_report.h. */
#include "report/trace_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/trace_internal.h"

static const char *const kMetric[] = {"p", "logp", "logit", "rank", "diff", "kl", "joint"};
enum { kMetrics = sizeof kMetric / sizeof *kMetric, kToken = 64 };

double chii_trace_effect(const chi_trace *t, int src, int site, int step, int row) {
  return chi_trace_at(t, src, site, step, row)->p - chi_trace_base_of(t, src)->p;
}

void chii_trace_token(const chi_trace *t, int row, char *buf, size_t cap) {
  if (t->cell_name[row])
    snprintf(buf, cap, "%s", t->cell_name[row]);
  else
    chi_token_text(t->model->tok, t->prompt->tokens[t->rows[row]], buf, cap);
}

static void token(const chi_trace *t, int32_t id, char *buf) { chi_token_text(t->model->tok, id, buf, kToken); }

char *chii_trim(char *s) {
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
    chii_trace_token(t, r, buf, sizeof buf);
    json_t *o = json_pack("{s:i,s:o,s:i,s:s}", "row", (int)t->rows[r], "token", chi_json_text(buf), "id",
                          (int)t->prompt->tokens[t->rows[r]], "role", chi_trace_row_role(t, r));
    if (t->n_cell[r] > 1) json_object_set_new(o, "rows", json_integer(t->n_cell[r]));
    if (r >= t->n_tokens) json_object_set_new(o, "group", json_true());
    json_array_append_new(a, o);
  }
  return a;
}

/* One source's numbers of a site: <metric>[step][row]; effect = p minus the base run's p, signed and never clipped. */
static json_t *source_json(const chi_trace *t, int src, int site) {
  json_t *one = json_object();
  for (int k = -1; k < kMetrics; k++) {
    if (k == kMetrics - 1 && t->n_target == 0) continue;
    json_t *grid = json_array();
    for (int l = 0; l < chi_trace_steps(t, site); l++) {
      json_t *line = json_array();
      for (int r = 0; r < t->n_rows; r++)
        json_array_append_new(line, chi_json_num(k < 0 ? chii_trace_effect(t, src, site, l, r)
                                                       : ((const double *)chi_trace_at(t, src, site, l, r))[k]));
      json_array_append_new(grid, line);
    }
    json_object_set_new(one, k < 0 ? "effect" : kMetric[k], grid);
  }
  return one;
}

/* Random-site draws of a site. */
static json_t *null_json(const chi_trace *t, int site) {
  json_t *p = json_array(), *e = json_array();
  for (int i = 0; i < t->opts.null_draws; i++) {
    json_array_append_new(p, chi_json_num(t->null[site][i].p));
    json_array_append_new(e, chi_json_num(t->null[site][i].p - chi_trace_base(t)->p));
  }
  return json_pack("{s:i,s:o,s:o}", "cells", (int)t->null_cells[site], "effect", e, "p", p);
}

/* Where paths lead to. */
static json_t *path_json(const chi_trace *t) {
  static const char *const kPart[] = {"q", "k", "v", "out"};
  const chi_path *to = &t->opts.path;
  json_t *o = json_pack("{s:s,s:b}", "part", kPart[to->part], "direct", (int)to->direct);
  if (to->part == CHI_PATH_OUT) return o;
  json_object_set_new(o, "layer", json_integer(to->layer));
  json_object_set_new(o, "head", json_integer(to->head));
  return o;
}

/* maps.<site>: layers and heads of its steps, then its sources. */
static json_t *maps_json(const chi_trace *t) {
  json_t *maps = json_object();
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->cell[0][s]) continue;
    json_t *site = json_object(), *win = json_array(), *heads = json_array();
    for (int l = 0; l < chi_trace_steps(t, s) && s != CHI_TRACE_EMBED; l++) {
      int head, layer;
      chi_trace_step(t, s, l, &layer, &head);
      int at = s * t->n_layers + layer;
      json_array_append_new(win, json_pack("[i,i]", (int)t->lo[at], (int)t->hi[at]));
      json_array_append_new(heads, json_integer(head));
    }
    json_object_set_new(site, "layers", win);
    if (s == CHI_TRACE_HEAD || s == CHI_TRACE_PATH) json_object_set(site, "heads", heads);
    if (s == CHI_TRACE_PATH) json_object_set_new(site, "to", path_json(t));
    json_decref(heads);
    for (int src = 0; src < CHI_TRACE_SOURCES; src++)
      if (t->cell[src][s]) json_object_set_new(site, chi_trace_source_name[src], source_json(t, src, s));
    if (t->null[s]) json_object_set_new(site, "random", null_json(t, s));
    json_object_set_new(maps, chi_trace_site_name[s], site);
  }
  return maps;
}

static json_t *spans_json(const chi_trace *t) {
  json_t *a = json_array();
  for (int i = 0; i < t->prompt->n_spans; i++) {
    const chi_prompt_span *s = &t->prompt->span[i];
    json_array_append_new(a, json_pack("{s:o,s:[i,i],s:b}", "words", chi_json_text(s->words), "span", (int)s->lo,
                                       (int)s->hi - 1, "corrupted", (int)(t->corruption.spans >> i & 1)));
  }
  return a;
}

int chi_trace_json(json_t **out, const chi_trace *t, const chi_provenance *prov, chi_err *err) {
  char target[kToken], counter[kToken];
  json_t *o = NULL;
  int rc = chi_report_json(&o, "trace", prov, err);
  if (rc) return rc;
  token(t, t->target, target);
  token(t, t->counter, counter);
  if (t->prompt->n_spans) {
    json_object_set_new(o, "constraint", chi_json_text(t->prompt->constraint));
    json_object_set_new(o, "span", json_pack("[i,i]", (int)t->prompt->span_lo, (int)t->prompt->span_hi - 1));
    json_object_set_new(o, "span_grown", json_boolean(t->prompt->span_grown));
  }
  json_object_set_new(o, "constraints", spans_json(t));
  json_object_set_new(o, "direction",
                      json_string(t->opts.both_directions   ? "both"
                                  : t->opts.noise_direction ? "noise"
                                                            : "denoise"));
  if (t->donor) json_object_set_new(o, "donor", chi_json_text(t->donor_file));
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
static void csv_count(chi_csv *c, int x) { /* -1 = none */
  if (x < 0)
    chi_csv_str(c, NULL);
  else
    chi_csv_int(c, x);
}

static int write_csv(const chi_trace *t, const char *path, chi_err *err) {
  static const char *const kHead[] = {"site", "layer", "lo",    "hi",   "row",  "token", "role",  "source", "effect",
                                      "p",    "logp",  "logit", "rank", "diff", "kl",    "joint", "head"};
  int rc = 0;
  chi_csv *c = NULL;
  char buf[kToken];
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      for (int l = 0; t->cell[src][s] && l < chi_trace_steps(t, s); l++)
        for (int r = 0; r < t->n_rows; r++) {
          const double *m = (const double *)chi_trace_at(t, src, s, l, r);
          int head, layer;
          chi_trace_step(t, s, l, &layer, &head);
          int at = s * t->n_layers + layer;
          chii_trace_token(t, r, buf, sizeof buf);
          chi_csv_str(c, chi_trace_site_name[s]);
          csv_count(c, layer);
          csv_count(c, layer < 0 ? -1 : t->lo[at]);
          csv_count(c, layer < 0 ? -1 : t->hi[at]);
          chi_csv_int(c, t->rows[r]);
          chi_csv_str(c, buf);
          chi_csv_str(c, chi_trace_row_role(t, r));
          chi_csv_str(c, chi_trace_source_name[src]);
          chi_csv_num(c, chii_trace_effect(t, src, s, l, r));
          for (int k = 0; k < kMetrics; k++) chi_csv_num(c, m[k]);
          csv_count(c, head);
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
  int64_t dim[2] = {0, t->n_rows}, one = 1, draws = t->opts.null_draws, rows = t->n_rows,
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
  CHI_TRY(chi_st_writer_meta(
      w, "layout", "<site>.<source>.<metric> [layer][row]; head: [layer * heads + head][row]; random: [draw]", err));
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      for (int k = 0; t->cell[src][s] && k < kMetrics - (t->n_target == 0); k++) {
        size_t n = (size_t)chi_trace_steps(t, s) * (size_t)t->n_rows;
        dim[0] = chi_trace_steps(t, s);
        float *v = chi_arena_array(&a, n, sizeof *v, err);
        CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
        for (size_t i = 0; i < n; i++) v[i] = (float)((const double *)&t->cell[src][s][i])[k];
        snprintf(name, sizeof name, "%s.%s.%s", chi_trace_site_name[s], chi_trace_source_name[src], kMetric[k]);
        CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 2, dim, v, err));
      }
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->null[s]) continue;
    float *v = chi_arena_array(&a, (size_t)draws, sizeof *v, err);
    CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
    for (int64_t i = 0; i < draws; i++) v[i] = (float)t->null[s][i].p;
    snprintf(name, sizeof name, "%s.random.p", chi_trace_site_name[s]);
    CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 1, &draws, v, err));
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
  static const struct {
    int site;
    const char *png, *svg;
  } kFigure[] = {{-1, "trace.png", "trace.svg"},
                 {CHI_TRACE_HEAD, "heads.png", "heads.svg"},
                 {CHI_TRACE_PATH, "paths.png", "paths.svg"}};
  for (size_t i = 0; i < sizeof kFigure / sizeof *kFigure; i++) {
    if (!chii_trace_has_figure(t, kFigure[i].site)) continue;
    CHI_TRY(chi_path_join(path[0], sizeof path[0], dir, kFigure[i].png, err));
    CHI_TRY(chi_path_join(path[1], sizeof path[1], dir, kFigure[i].svg, err));
    CHI_TRY(chii_trace_draw(t, kFigure[i].site, prov, path[0], path[1], err));
  }
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
  size_t cells = (size_t)chi_trace_steps(t, site) * (size_t)t->n_rows;
  top_cell *all = chi_calloc(cells, sizeof *all, err);
  if (!all) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < cells; i++) {
    int l = (int)i / t->n_rows, r = (int)i % t->n_rows;
    all[i] = (top_cell){site, l, r, chii_trace_effect(t, 0, site, l, r)};
  }
  qsort(all, cells, sizeof *all, by_strength);
  for (int i = 0; i < n; i++) out[i] = (size_t)i < cells ? all[i] : (top_cell){.site = -1};
  chi_free(all);
  return 0;
}

/* What as many cells at random places do. */
static void null_summary(const chi_trace *t, chi_str *out) {
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    double sum = 0, most = 0;
    if (!t->null[s]) continue;
    for (int i = 0; i < t->opts.null_draws; i++) {
      double e = t->null[s][i].p - chi_trace_base(t)->p;
      sum += e;
      if (fabs(e) > fabs(most)) most = e;
    }
    chi_str_addf(out, "random sites, %s: %d draws of %d cell%s: effect %+.4f on average, %+.4f at most\n",
                 chi_trace_site_name[s], t->opts.null_draws, t->null_cells[s], t->null_cells[s] == 1 ? "" : "s",
                 sum / t->opts.null_draws, most);
  }
}

int chi_trace_summary(const chi_trace *t, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0;
  char target[kToken], counter[kToken], tok[kToken];
  chi_table *tab = NULL;
  top_cell best[64];
  if (top > 64) top = 64;
  token(t, t->target, target);
  token(t, t->counter, counter);
  chi_str_addf(out, "answer      %s   p = %.4f clean, %.4f corrupted (there: %s)\n", chii_trim(target), t->clean.p,
               t->corrupt.p, chii_trim(counter));
  chi_str_addf(out, "corruption  %s\n", t->corruption.text);
  if (t->prompt->span_grown) chi_str_addf(out, "note        the constraint's tokens reach past its words\n");
  if (t->donor) chi_str_addf(out, "donor       p = %.4f in its own clean run\n", t->donor_run.p);
  chi_str_addf(out, "work        %lld live row-layers; one forward per run would be %lld (%.0fx)\n",
               (long long)t->stats.live_row_layers, (long long)t->stats.dense_row_layers,
               (double)t->stats.dense_row_layers / (double)(t->stats.live_row_layers ? t->stats.live_row_layers : 1));
  if (t->opts.check) chi_str_addf(out, "check       %d of %d cells bit-identical\n", t->identical, t->checked);
  chi_str_add(out, "\n");
  static const char *const kHead[] = {"site", "layers", "row", "token", "effect", "donor", "own-donor"};
  static const char *const kNoise[] = {"site", "layers", "row", "token", "effect", "noise"};
  bool noise = t->opts.both_directions && !t->donor;
  CHI_TRY(chi_table_new(&tab, noise ? kNoise : kHead, t->donor ? "lrrlrrr" : noise ? "lrrlrr" : "lrrlr", err));
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!t->cell[0][s]) continue;
    CHI_TRY(top_cells(t, s, best, top, err));
    for (int i = 0; i < top && best[i].site >= 0; i++) {
      int head, layer, l = best[i].layer, r = best[i].row;
      chi_trace_step(t, s, l, &layer, &head);
      int at = s * t->n_layers + layer;
      chii_trace_token(t, r, tok, sizeof tok);
      chi_table_cell(tab, "%s", chi_trace_site_name[s]);
      if (head >= 0)
        chi_table_cell(tab, "%d.%d", layer, head);
      else if (layer < 0)
        chi_table_cell(tab, "-");
      else if (t->lo[at] == t->hi[at])
        chi_table_cell(tab, "%d", l);
      else
        chi_table_cell(tab, "%d-%d", t->lo[at], t->hi[at]);
      chi_table_cell(tab, "%d", t->rows[r]);
      chi_table_cell(tab, "%s%s", tok, t->prompt->role[t->rows[r]] == CHI_ROLE_CONSTRAINT ? " *" : "");
      chi_table_cell(tab, "%+.4f", best[i].e);
      if (noise) chi_table_cell(tab, "%+.4f", chii_trace_effect(t, CHI_TRACE_NOISE, s, l, r));
      if (!t->donor) continue;
      chi_table_cell(tab, "%+.4f", chii_trace_effect(t, 1, s, l, r));
      chi_table_cell(tab, "%+.4f", best[i].e - chii_trace_effect(t, 1, s, l, r));
    }
  }
  CHI_TRY(chi_table_text(tab, width, out, err));
  chi_str_addf(out, "(effect = p(%s) minus the %s run's; * = constraint)\n", chii_trim(target),
               t->opts.noise_direction ? "clean" : "corrupted");
  if (noise)
    chi_str_addf(out, "(noise = the other way round: p with the corrupted value in the clean run, minus clean)\n");
  null_summary(t, out);
out:
  chi_table_free(tab);
  return rc;
}

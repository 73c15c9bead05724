/* Writing knock-outs; see knockout_report.h. */
#include "report/knockout_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/prompt_text.h"

enum { kLine = 240, kMaxCurves = 28 };

/* ---- JSON ------------------------------------------------------------------------------------------------ */
static json_t *metrics_json(const chi_knockout *k, const chi_metrics *m) {
  json_t *o = json_object();
  int bad = json_object_set_new(o, "p", chi_json_num(m->p));
  bad |= json_object_set_new(o, "change", chi_json_num(m->p - k->clean.p));
  bad |= json_object_set_new(o, "logp", chi_json_num(m->logp));
  bad |= json_object_set_new(o, "rank", chi_json_num(m->rank));
  bad |= json_object_set_new(o, "kl", chi_json_num(m->kl));
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

static json_t *layer_json(const chi_knockout *k, int set, int l) {
  double low, high;
  int C = k->opts.controls;
  chi_metrics mean = chi_knockout_control(k, set, l, &low, &high);
  json_t *o = json_pack("{s:i,s:[i,i]}", "layer", l, "layers", (int)k->lo[l], (int)k->hi[l] - 1);
  int bad = json_object_set_new(o, "own", metrics_json(k, chi_knockout_at(k, set, 0, l)));
  if (C > 0) {
    json_t *c = metrics_json(k, &mean), *each = json_array();
    for (int i = 1; i <= C; i++) bad |= json_array_append_new(each, chi_json_num(chi_knockout_at(k, set, i, l)->p));
    bad |= json_object_set_new(c, "p_each", each);
    bad |= json_object_set_new(o, "control", c);
  }
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

static json_t *set_json(const chi_knockout *k, int set) {
  const chi_edges *e = &k->set[set];
  json_t *o = json_object(), *layers = json_array(), *runs = json_array();
  int bad = json_object_set_new(o, "edges", chi_json_text(e->name));
  bad |= json_object_set_new(o, "count", json_integer(e->n));
  if (k->opts.controls > 0)
    bad |= json_object_set_new(o, "control_count", json_integer(k->control[set * k->opts.controls].n)) |
           json_object_set_new(o, "control_first_row", json_integer(k->control_row[set]));
  for (int32_t i = 0; i < e->n_runs; i++)
    bad |= json_array_append_new(
        runs, json_pack("{s:i,s:[i,i]}", "row", (int)e->run[i].row, "keys", (int)e->run[i].lo, (int)e->run[i].hi - 1));
  bad |= json_object_set_new(o, "cut", runs);
  for (int l = 0; l < k->n_layers; l++) bad |= json_array_append_new(layers, layer_json(k, set, l));
  bad |= json_object_set_new(o, "layers", layers);
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

int chi_knockout_json(json_t **out, const chi_knockout *k, const chi_provenance *prov, chi_err *err) {
  json_t *o = NULL, *sets = json_array();
  int rc = chi_report_json(&o, "knockout", prov, err);
  if (rc) {
    json_decref(sets);
    return rc;
  }
  int bad = json_object_set_new(o, "target", chii_token_json(k->model, k->target));
  bad |= json_object_set_new(o, "clean", metrics_json(k, &k->clean));
  bad |= json_object_set_new(o, "window", json_integer(k->opts.window));
  bad |= json_object_set_new(o, "controls", json_integer(k->opts.controls));
  for (int s = 0; s < k->n_sets; s++) bad |= json_array_append_new(sets, set_json(k, s));
  bad |= json_object_set_new(o, "sets", sets);
  bad |= json_object_set_new(o, "check", json_pack("{s:i,s:i}", "cells", k->checked, "identical", k->identical));
  bad |= json_object_set_new(o, "work",
                             json_pack("{s:I,s:I}", "live_row_layers", (json_int_t)k->stats.live_row_layers,
                                       "dense_row_layers", (json_int_t)k->stats.dense_row_layers));
  if (bad) {
    json_decref(o);
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  *out = o;
  return 0;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
static int write_csv(const chi_knockout *k, const char *path, chi_err *err) {
  static const char *const kHead[] = {"edges", "source", "control", "count", "layer", "lo",
                                      "hi",    "p",      "change",  "logp",  "rank",  "kl"};
  int rc = 0, C = k->opts.controls;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int s = 0; s < k->n_sets; s++)
    for (int i = 0; i <= C; i++)
      for (int l = 0; l < k->n_layers; l++) {
        const chi_metrics *m = chi_knockout_at(k, s, i, l);
        chi_csv_str(c, k->set[s].name);
        chi_csv_str(c, i ? "control" : "own");
        i ? chi_csv_int(c, i) : chi_csv_str(c, NULL);
        chi_csv_int(c, i ? k->control[s * C + i - 1].n : k->set[s].n);
        chi_csv_int(c, l);
        chi_csv_int(c, k->lo[l]);
        chi_csv_int(c, k->hi[l] - 1);
        chi_csv_num(c, m->p);
        chi_csv_num(c, m->p - k->clean.p);
        chi_csv_num(c, m->logp);
        chi_csv_num(c, m->rank);
        chi_csv_num(c, m->kl);
        CHI_TRY(chi_csv_row(c, err));
      }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- curves ---------------------------------------------------------------------------------------------- */
/* "image:last" -> "image → last"; a union of all the other sets is "together". */
static void set_name(const chi_knockout *k, int set, char out[kLine]) {
  const char *s = k->set[set].name;
  size_t n = 0, len = 0;
  if (k->n_sets > 2 && set == k->n_sets - 1) {
    char all[1024];
    all[0] = 0;
    for (int i = 0; i < set; i++)
      len += (size_t)snprintf(all + (len < sizeof all ? len : sizeof all - 1), len < sizeof all ? sizeof all - len : 1,
                              "%s%s", i ? "+" : "", k->set[i].name);
    if (chi_streq(all, s)) {
      snprintf(out, kLine, "all together");
      return;
    }
  }
  for (; *s && n + 8 < kLine; s++) {
    const char *put = *s == ':' ? " \xe2\x86\x92 " : *s == '+' ? " and " : NULL;
    n += put ? (size_t)snprintf(out + n, kLine - n, "%s", put) : (size_t)snprintf(out + n, kLine - n, "%c", *s);
  }
  out[n] = 0;
}

/* Where the controls' edges go, if that is the same for all sets. */
static const char *control_rows(const chi_knockout *k) {
  int text = 0;
  for (int s = 0; s < k->n_sets; s++) text += k->control_row[s] > 0;
  return text == 0 ? "" : text == k->n_sets ? " into text rows" : " (into text rows where there are enough)";
}

typedef struct figure {
  const chi_knockout *k;
  chi_arena arena;
  chi_str title;
  char line[3][kLine];
  const char *lines[3];
} figure;

static void set_lines(figure *f) {
  const chi_knockout *k = f->k;
  char word[CHII_TOKEN];
  chii_question(k->model, k->prompt, &f->title);
  chii_token_word(k->model, k->target, word);
  snprintf(f->line[0], kLine, "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f with nothing cut", word, k->clean.p);
  if (k->opts.window == 1)
    snprintf(f->line[1], kLine, "attention edges cut in one layer");
  else
    snprintf(f->line[1], kLine, "attention edges cut in %d layers around this one", k->opts.window);
  if (k->opts.controls)
    snprintf(f->line[2], kLine, "control: as many random edges%s instead, mean of %d; band: lowest to highest",
             control_rows(k), k->opts.controls);
  for (int i = 0; i < 3; i++) f->lines[i] = f->line[i];
}

/* p, or log p, of every set and of its control. */
static int draw(figure *f, bool logp, const chi_provenance *prov, const char *dir, chi_err *err) {
  const chi_knockout *k = f->k;
  int rc = 0, n = 0, C = k->opts.controls, per = C ? 2 : 1;
  size_t L = (size_t)k->n_layers;
  int sets = k->n_sets * per > kMaxCurves ? kMaxCurves / per : k->n_sets; /* the table has them all */
  char path[4096], file[32], name[kLine];
  chi_curve curves[kMaxCurves];
  double *x = chi_arena_array(&f->arena, L, sizeof *x, err);
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  for (size_t l = 0; l < L; l++) x[l] = (double)l;
  for (int s = 0; s < sets; s++)
    for (int c = 0; c < per; c++) {
      double *y = chi_arena_array(&f->arena, 3 * L, sizeof *y, err);
      CHI_TRY(y ? 0 : CHI_ERR_MEMORY);
      for (size_t l = 0; l < L; l++) {
        chi_metrics m =
            c ? chi_knockout_control(k, s, (int)l, &y[L + l], &y[2 * L + l]) : *chi_knockout_at(k, s, 0, (int)l);
        y[l] = logp ? m.logp : m.p;
      }
      set_name(k, s, name);
      size_t end = strlen(name);
      if (c) snprintf(name + end, sizeof name - end, ", control");
      curves[n] = (chi_curve){.name = chi_arena_strdup(&f->arena, name, err), .y = y};
      if (c && !logp) curves[n].lo = y + L, curves[n].hi = y + 2 * L;
      CHI_TRY(curves[n].name ? 0 : CHI_ERR_MEMORY);
      n++;
    }
  const chi_refline ref = {logp ? k->clean.logp : k->clean.p, "nothing cut"};
  chi_linechart_spec s = {.title = f->title.s ? f->title.s : "",
                          .lines = f->lines,
                          .n_lines = C ? 3 : 2,
                          .x_label = "layer",
                          .y_label = logp ? "log p(answer)" : "p(answer)",
                          .x = x,
                          .n = L,
                          .curves = curves,
                          .n_curves = n,
                          .refs = &ref,
                          .n_refs = 1,
                          .y_min = 0,
                          .y_max = logp ? 0 : 1,
                          .y_zero = logp};
  for (int i = 0; i < 2; i++) {
    snprintf(file, sizeof file, "%s.%s", logp ? "logp" : "p", i ? "svg" : "png");
    CHI_TRY(chi_path_join(path, sizeof path, dir, file, err));
    CHI_TRY(chi_linechart_save(&s, prov, path, err));
  }
out:
  return rc;
}

int chi_knockout_write(const chi_knockout *k, const chi_provenance *prov, const char *dir, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  figure f = {.k = k};
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_knockout_json(&j, k, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "knockout.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "knockout.csv", err));
  CHI_TRY(write_csv(k, path, err));
  set_lines(&f);
  CHI_TRY(draw(&f, false, prov, dir, err));
  CHI_TRY(draw(&f, true, prov, dir, err));
out:
  json_decref(j);
  chi_str_free(&f.title);
  chi_arena_free(&f.arena);
  return rc;
}

/* ---- terminal -------------------------------------------------------------------------------------------- */
int chi_knockout_summary(const chi_knockout *k, int width, chi_str *out, chi_err *err) {
  static const char *const kHead[] = {"cut",       "edges",     "layers",       "p", "log p", "rank",
                                      "control p", "its log p", "own - control"};
  int rc = 0;
  char word[CHII_TOKEN], name[kLine];
  double low, high;
  chi_table *t = NULL;
  bool control = k->opts.controls > 0;
  chii_token_word(k->model, k->target, word);
  chi_str_addf(out, "answer  %s   p = %.4f, log p = %.4f, rank %.0f with nothing cut\n", word, k->clean.p,
               k->clean.logp, k->clean.rank);
  chi_str_addf(out, "work    %lld live row-layers; one forward per run would be %lld (%.0fx)\n",
               (long long)k->stats.live_row_layers, (long long)k->stats.dense_row_layers,
               (double)k->stats.dense_row_layers / (double)(k->stats.live_row_layers ? k->stats.live_row_layers : 1));
  if (k->opts.check) chi_str_addf(out, "check   %d of %d cells bit-identical\n", k->identical, k->checked);
  chi_str_add(out, "\n");
  CHI_TRY(chi_table_new(&t, kHead, control ? "lrrrrrrrr" : "lrrrrr", err));
  for (int s = 0; s < k->n_sets; s++)
    for (int l = 0; l < k->n_layers; l++) {
      const chi_metrics *m = chi_knockout_at(k, s, 0, l);
      set_name(k, s, name);
      chi_table_cell(t, "%s", l ? "" : name);
      chi_table_cell(t, "%lld", (long long)k->set[s].n);
      if (k->hi[l] - k->lo[l] == 1)
        chi_table_cell(t, "%d", k->lo[l]);
      else
        chi_table_cell(t, "%d-%d", k->lo[l], k->hi[l] - 1);
      chi_table_cell(t, "%.4f", m->p);
      chi_table_cell(t, "%.4f", m->logp);
      chi_table_cell(t, "%.0f", m->rank);
      if (!control) continue;
      chi_metrics c = chi_knockout_control(k, s, l, &low, &high);
      chi_table_cell(t, "%.4f", c.p);
      chi_table_cell(t, "%.4f", c.logp);
      chi_table_cell(t, "%+.4f", m->p - c.p);
    }
  CHI_TRY(chi_table_text(t, width, out, err));
  if (control) chi_str_addf(out, "(control: as many random edges%s, mean of %d)\n", control_rows(k), k->opts.controls);
out:
  chi_table_free(t);
  return rc;
}

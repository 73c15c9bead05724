/* Writing head scans and query sides; see heads_report.h. */
#include "report/heads_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/mapscore.h"
#include "report/prompt_text.h"

/* Agreement of the two rankings over all heads. */
static double agreement(const chi_heads_result *r) {
  int32_t n = r->scan->layers * r->scan->heads;
  double rho = NAN, *x = chi_calloc((size_t)n, sizeof *x, NULL);
  for (int32_t i = 0; x && i < n; i++) x[i] = r->attr->head[i].increase[0];
  if (x) rho = chi_map_spearman(x, r->scan->drop, n);
  chi_free(x);
  return rho;
}

/* ---- heads ------------------------------------------------------------------------------------------------- */
int chi_heads_json(json_t **out, const chi_heads_result *r, const chi_provenance *prov, chi_err *err) {
  const chi_headscan *s = r->scan;
  json_t *o = NULL, *list = json_array(), *neurons = json_array();
  int bad = 0, rc = chi_report_json(&o, "heads", prov, err);
  if (rc) goto out;
  json_t *t = chii_token_json(s->model, s->target);
  bad |= json_object_set_new(t, "p", chi_json_num(s->clean.p));
  bad |= json_object_set_new(t, "logp", chi_json_num(s->clean.logp));
  bad |= json_object_set_new(o, "target", t);
  bad |= json_object_set_new(o, "spearman_with_increase", chi_json_num(agreement(r)));
  for (int32_t i = 0; i < s->layers * s->heads; i++) {
    int32_t at = s->order[i];
    bad |= json_array_append_new(
        list,
        json_pack("{s:i,s:i,s:o,s:o,s:o,s:o,s:o}", "layer", at / s->heads, "head", at % s->heads, "drop",
                  chi_json_num(s->drop[at]), "p", chi_json_num(s->cell[at].p), "rank", chi_json_num(s->cell[at].rank),
                  "kl", chi_json_num(s->cell[at].kl), "increase", chi_json_num(r->attr->head[at].increase[0])));
  }
  bad |= json_object_set(o, "heads", list);
  for (int32_t i = 0; i < r->n_neurons; i++) {
    const chi_cna_neuron *n = &r->neuron[i];
    bad |= json_array_append_new(
        neurons, json_pack("{s:i,s:i,s:o,s:o,s:o,s:o,s:o}", "layer", n->layer, "neuron", n->neuron, "change",
                           chi_json_num(n->intact - n->without), "increase", chi_json_num(n->intact),
                           "increase_without", chi_json_num(n->without), "coefficient", chi_json_num(n->coefficient),
                           "coefficient_without", chi_json_num(n->coefficient_without)));
  }
  if (r->n_neurons)
    bad |= json_object_set_new(
        o, "comparative_neurons",
        json_pack("{s:i,s:i,s:O}", "layer", r->head.layer, "head", r->head.head, "neurons", neurons));
  rc = bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
out:
  json_decref(list);
  json_decref(neurons);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

static int write_csv(const chi_heads_result *r, const char *path, chi_err *err) {
  static const char *const kHead[] = {"layer", "head", "drop", "p", "rank", "kl", "increase"};
  int rc = 0;
  chi_csv *c = NULL;
  const chi_headscan *s = r->scan;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int32_t i = 0; i < s->layers * s->heads; i++) {
    chi_csv_int(c, i / s->heads);
    chi_csv_int(c, i % s->heads);
    chi_csv_num(c, s->drop[i]);
    chi_csv_num(c, s->cell[i].p);
    chi_csv_num(c, s->cell[i].rank);
    chi_csv_num(c, s->cell[i].kl);
    chi_csv_num(c, r->attr->head[i].increase[0]);
    CHI_TRY(chi_csv_row(c, err));
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* Two panels: what is lost without the head, what the head alone adds. */
static int draw(const chi_heads_result *r, const chi_provenance *prov, const char *dir, chi_err *err) {
  static const char *const kFile[] = {"heads.png", "heads.svg"};
  static const char *const kSite[] = {"attention heads"}, *const kCol[] = {"lost without it", "increase"};
  int rc = 0;
  const chi_headscan *s = r->scan;
  chi_arena arena = {0};
  chi_str title = {0};
  char path[4096], line[200], word[CHII_TOKEN], num[16];
  const char *lines[] = {line};
  size_t n = (size_t)(s->layers * s->heads);
  float *drop = chi_arena_array(&arena, n, sizeof *drop, err), *more = chi_arena_array(&arena, n, sizeof *more, err);
  chi_heat_row *rows = chi_arena_array(&arena, (size_t)s->heads, sizeof *rows, err);
  CHI_TRY(drop && more && rows ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) drop[i] = (float)s->drop[i], more[i] = (float)r->attr->head[i].increase[0];
  for (int32_t h = 0; h < s->heads; h++) {
    snprintf(num, sizeof num, "head %d", h);
    CHI_TRY((rows[h].label = chi_arena_strdup(&arena, num, err)) ? 0 : CHI_ERR_MEMORY);
  }
  chii_question(s->model, s->prompt, &title);
  chii_token_word(s->model, s->target, word);
  snprintf(line, sizeof line, "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f; change of log p", word, s->clean.p);
  const float *values[] = {drop, more};
  chi_heatmap_spec h = {.title = title.s ? title.s : "",
                        .lines = lines,
                        .n_lines = 1,
                        .thumb = s->prompt->seen.rgb ? &s->prompt->seen : NULL,
                        .n_rows = s->heads,
                        .n_layers = s->layers,
                        .rows = rows,
                        .n_sites = 1,
                        .n_cols = 2,
                        .site_names = kSite,
                        .col_names = kCol,
                        .values = values,
                        .top = n < 40 ? 3 : 10};
  for (int i = 0; i < 2; i++) {
    CHI_TRY(chi_path_join(path, sizeof path, dir, kFile[i], err));
    CHI_TRY(chi_heatmap_save(&h, prov, path, err));
  }
out:
  chi_str_free(&title);
  chi_arena_free(&arena);
  return rc;
}

int chi_heads_write(const chi_heads_result *r, const chi_provenance *prov, const char *dir, chi_str *files,
                    chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_heads_json(&j, r, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "heads.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "heads.csv", err));
  CHI_TRY(write_csv(r, path, err));
  CHI_TRY(draw(r, prov, dir, err));
  chi_str_add(files, "heads.{json,csv,png,svg}");
out:
  json_decref(j);
  return rc;
}

int chi_heads_summary(const chi_heads_result *r, int width, int top, chi_str *out, chi_err *err) {
  static const char *const kHead[] = {"head", "log p lost", "p without", "rank without", "increase"},
                           *const kNeurons[] = {"layer",   "neuron",     "change", "increase",
                                                "without", "activation", "without"};
  int rc = 0;
  const chi_headscan *s = r->scan;
  chi_table *t = NULL, *u = NULL;
  char word[CHII_TOKEN];
  chii_token_word(s->model, s->target, word);
  chi_str_addf(out, "answer \"%s\": p = %.3f\n", word, s->clean.p);
  CHI_TRY(chi_table_new(&t, kHead, "lrrrr", err));
  for (int32_t i = 0; i < top && i < s->layers * s->heads; i++) {
    int32_t at = s->order[i];
    chi_table_cell(t, "%d_%d", at / s->heads, at % s->heads);
    chi_table_cell(t, "%+.4f", s->drop[at]);
    chi_table_cell(t, "%.4f", s->cell[at].p);
    chi_table_cell(t, "%.0f", s->cell[at].rank);
    chi_table_cell(t, "%+.4f", r->attr->head[at].increase[0]);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  chi_str_addf(out, "over all heads, the loss and the increase rank alike with Spearman's %.2f\n", agreement(r));
  if (r->n_neurons == 0) goto out;
  chi_str_addf(out, "\nMLP neurons whose increase changes most without head %d_%d:\n", r->head.layer, r->head.head);
  CHI_TRY(chi_table_new(&u, kNeurons, "rrrrrrr", err));
  for (int32_t i = 0; i < r->n_neurons && i < top; i++) {
    const chi_cna_neuron *n = &r->neuron[i];
    chi_table_cell(u, "%d", n->layer);
    chi_table_cell(u, "%d", n->neuron);
    chi_table_cell(u, "%+.4f", n->intact - n->without);
    chi_table_cell(u, "%+.4f", n->intact);
    chi_table_cell(u, "%+.4f", n->without);
    chi_table_cell(u, "%+.3f", n->coefficient);
    chi_table_cell(u, "%+.3f", n->coefficient_without);
  }
  CHI_TRY(chi_table_text(u, width, out, err));
out:
  chi_table_free(t);
  chi_table_free(u);
  return rc;
}

/* ---- query side -------------------------------------------------------------------------------------------- */
static void component_name(int32_t i, char *out, size_t cap) {
  if (i == 0)
    snprintf(out, cap, "embedding");
  else
    snprintf(out, cap, "%s %d", i % 2 ? "attention" : "MLP", (i - 1) / 2);
}

json_t *chi_qside_json(const chi_qside *q, const chi_attribution *a) {
  json_t *parts = json_array(), *rows = json_array(), *neurons = json_array();
  char name[32];
  for (int32_t i = 0; i < 1 + 2 * q->layers; i++) {
    component_name(i, name, sizeof name);
    json_array_append_new(parts, json_pack("{s:s,s:o}", "component", name, "score", chi_json_num(q->component[i])));
  }
  for (int32_t i = 0; i < a->rows; i++) json_array_append_new(rows, chi_json_num(q->row[i]));
  for (int32_t i = 0; i < q->n_neurons; i++)
    json_array_append_new(
        neurons,
        json_pack("{s:i,s:i,s:o,s:o}", "layer", q->neuron[i].layer, "neuron", q->neuron[i].neuron, "row",
                  chii_row_json(a->model, a->prompt, q->neuron[i].row), "score", chi_json_num(q->neuron[i].score)));
  return json_pack("{s:i,s:o,s:o,s:o,s:o,s:o}", "value_neurons", q->n_values, "total", chi_json_num(q->total),
                   "left_out", chi_json_num(q->left_out), "components", parts, "rows", rows, "neurons", neurons);
}

int chi_qside_summary(const chi_qside *q, const chi_attribution *a, int width, int top, chi_str *out, chi_err *err) {
  static const char *const kHead[] = {"written by", "share"}, *const kNeurons[] = {"layer", "neuron", "at", "score"};
  int rc = 0, n = 1 + 2 * q->layers;
  chi_table *t = NULL, *u = NULL;
  char name[64];
  bool *shown = chi_calloc((size_t)n, sizeof *shown, err);
  CHI_TRY(shown ? 0 : CHI_ERR_MEMORY);
  chi_str_addf(out, "\nwhat activated the %d value neurons (their scores together %+.4f):\n", q->n_values, q->total);
  CHI_TRY(chi_table_new(&t, kHead, "lr", err));
  for (int k = 0; k < top && k < n; k++) { /* largest size first */
    int best = -1;
    for (int i = 0; i < n; i++)
      if (!shown[i] && (best < 0 || fabs(q->component[i]) > fabs(q->component[best]))) best = i;
    shown[best] = true;
    component_name(best, name, sizeof name);
    chi_table_cell(t, "%s", name);
    chi_table_cell(t, "%+.1f %%", q->total != 0 ? 100 * q->component[best] / q->total : NAN);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  if (q->n_neurons == 0) goto out;
  chi_str_add(out, "\nearlier MLP neurons that activated them:\n");
  CHI_TRY(chi_table_new(&u, kNeurons, "rrlr", err));
  for (int32_t i = 0; i < top && i < q->n_neurons; i++) {
    chii_row_word(a->model, a->prompt, q->neuron[i].row, name);
    chi_table_cell(u, "%d", q->neuron[i].layer);
    chi_table_cell(u, "%d", q->neuron[i].neuron);
    chi_table_cell(u, "%s", name);
    chi_table_cell(u, "%+.5f", q->neuron[i].score);
  }
  CHI_TRY(chi_table_text(u, width, out, err));
out:
  chi_free(shown);
  chi_table_free(t);
  chi_table_free(u);
  return rc;
}

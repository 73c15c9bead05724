/* Writing lenses; see lens_report.h. */
#include "report/lens_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/lens_page.h"
#include "report/prompt_text.h"

static void column_name(const chi_lens *l, int32_t column, char *buf, size_t cap) {
  if (l->layers[column] == CHI_LENS_EMBED)
    snprintf(buf, cap, "input");
  else
    snprintf(buf, cap, "%d", (int)l->layers[column]);
}

static const char *embed_name(const chi_lens *l) {
  return l->embed == CHI_EMBED_COSINE ? "cosine" : l->embed == CHI_EMBED_DOT ? "dot" : "none";
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */
/* [id, score, id, score, ...] */
static json_t *cell_json(const chi_lens *l, const chi_lens_cells *c, int64_t cell) {
  json_t *a = json_array();
  int bad = 0;
  for (int i = 0; i < l->k && c->id[cell * l->k + i] >= 0; i++) {
    bad |= json_array_append_new(a, json_integer(c->id[cell * l->k + i]));
    bad |= json_array_append_new(a, chi_json_num((double)c->score[cell * l->k + i]));
  }
  if (!bad) return a;
  json_decref(a);
  return NULL;
}

static int add_token(json_t *tokens, const chi_model *m, int32_t id) {
  char key[16], text[CHII_TOKEN];
  snprintf(key, sizeof key, "%d", (int)id);
  if (id < 0 || json_object_get(tokens, key)) return 0;
  chi_token_text(m->tok, id, text, sizeof text);
  return json_object_set_new(tokens, key, chi_json_text(text));
}

/* Text of every token that a cell names, once. */
static json_t *tokens_json(const chi_lens *l) {
  json_t *o = json_object();
  int bad = 0;
  size_t n = (size_t)l->n_rows * (size_t)l->n_layers * (size_t)l->k;
  for (size_t i = 0; i < n; i++) bad |= add_token(o, l->model, l->cell.id[i]);
  for (size_t i = 0; l->embed && i < (size_t)l->n_rows * (size_t)l->k; i++) bad |= add_token(o, l->model, l->emb.id[i]);
  for (int32_t i = 0; i < l->n_words; i++) bad |= add_token(o, l->model, l->words[i]);
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

static int add_cells(json_t *o, const chi_lens *l) {
  int bad = 0;
  json_t *cells = json_array(), *ranks = json_array(), *scores = json_array();
  for (int32_t r = 0; r < l->n_rows; r++) {
    json_t *line = json_array(), *rank = json_array(), *score = json_array();
    for (int32_t c = 0; c < l->n_layers; c++) {
      int64_t cell = (int64_t)r * l->n_layers + c;
      bad |= json_array_append_new(line, cell_json(l, &l->cell, cell));
      if (!l->cell.rank) continue;
      bad |= json_array_append_new(rank, json_integer(l->cell.rank[cell]));
      bad |= json_array_append_new(score, chi_json_num((double)l->cell.word_score[cell]));
    }
    bad |= json_array_append_new(cells, line);
    bad |= json_array_append_new(ranks, rank);
    bad |= json_array_append_new(scores, score);
  }
  bad |= json_object_set_new(o, "cells", cells);
  if (l->cell.rank) bad |= json_object_set(o, "word_rank", ranks) | json_object_set(o, "word_logp", scores);
  json_decref(ranks);
  json_decref(scores);
  return bad;
}

static int add_embeddings(json_t *o, const chi_lens *l) {
  int bad = 0;
  if (!l->embed) return 0;
  json_t *cells = json_array(), *rank = json_array();
  for (int32_t r = 0; r < l->n_rows; r++) {
    bool patch = l->emb.id[(int64_t)r * l->k] >= 0;
    bad |= json_array_append_new(cells, cell_json(l, &l->emb, r));
    if (l->emb.rank) bad |= json_array_append_new(rank, patch ? json_integer(l->emb.rank[r]) : json_null());
  }
  json_t *e = json_pack("{s:s,s:o}", "measure", embed_name(l), "cells", cells);
  bad |= l->emb.rank ? json_object_set(e, "word_rank", rank) : 0;
  json_decref(rank);
  return bad | json_object_set_new(o, "embeddings", e);
}

static int add_roles(json_t *o, const chi_lens *l) {
  int bad = 0, best;
  double mrr;
  if (!l->cell.rank) return 0;
  json_t *roles = json_object();
  for (int role = 0; role < CHI_ROLE_COUNT; role++) {
    if (!chi_lens_role(l, (chi_role)role, 0, &best, &mrr)) continue;
    json_t *b = json_array(), *m = json_array();
    for (int32_t c = 0; c < l->n_layers; c++) {
      chi_lens_role(l, (chi_role)role, c, &best, &mrr);
      bad |= json_array_append_new(b, json_integer(best));
      bad |= json_array_append_new(m, chi_json_num(mrr));
    }
    bad |= json_object_set_new(roles, chi_role_name((chi_role)role),
                               json_pack("{s:o,s:o}", "best_rank", b, "mean_reciprocal_rank", m));
  }
  return bad | json_object_set_new(o, "word_by_role", roles);
}

int chi_lens_json(json_t **out, const chi_lens *l, chi_lens_word_name word, const chi_provenance *prov, chi_err *err) {
  json_t *o = NULL, *layers = json_array(), *rows = json_array();
  chi_str q = {0};
  int bad = 0, rc = chi_report_json(&o, "lens", prov, err);
  if (rc) goto out;
  chii_question(l->model, l->prompt, &q);
  bad |= json_object_set_new(o, "question", chi_json_text(q.s ? q.s : ""));
  bad |= json_object_set_new(o, "k", json_integer(l->k));
  for (int32_t c = 0; c < l->n_layers; c++) {
    char name[16];
    column_name(l, c, name, sizeof name);
    bad |= json_array_append_new(layers, json_string(name));
  }
  for (int32_t r = 0; r < l->n_rows; r++)
    bad |= json_array_append_new(rows, chii_row_json(l->model, l->prompt, l->rows[r]));
  bad |= json_object_set(o, "layers", layers) | json_object_set(o, "rows", rows);
  bad |= json_object_set_new(o, "picture", chii_picture_json(l->model, l->prompt));
  if (word.text) {
    json_t *ids = json_array();
    for (int32_t i = 0; i < l->n_words; i++) bad |= json_array_append_new(ids, json_integer(l->words[i]));
    bad |= json_object_set_new(o, "word",
                               json_pack("{s:o,s:o,s:b}", "text", chi_json_text(word.text), "tokens", ids,
                                         "first_token_only", (int)word.part));
  }
  bad |= add_roles(o, l);
  bad |= json_object_set_new(o, "tokens", tokens_json(l));
  bad |= add_cells(o, l);
  bad |= add_embeddings(o, l);
  if (bad) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
out:
  json_decref(layers);
  json_decref(rows);
  chi_str_free(&q);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
static int csv_line(chi_csv *c, const chi_lens *l, int32_t r, const char *layer, const chi_lens_cells *cells,
                    int64_t cell, int i, chi_err *err) {
  char tok[CHII_TOKEN], word[CHII_TOKEN];
  int32_t pr, pc, id = cells->id[cell * l->k + i];
  chi_patches g = chi_patches_of(l->model, l->prompt);
  chi_token_text(l->model->tok, l->prompt->tokens[l->rows[r]], tok, sizeof tok);
  chi_token_text(l->model->tok, id, word, sizeof word);
  chi_csv_int(c, l->rows[r]);
  chi_csv_str(c, tok);
  chi_csv_str(c, chi_role_name(l->prompt->role[l->rows[r]]));
  bool patch = chi_patch_at(&g, l->rows[r], &pr, &pc);
  chi_csv_num(c, patch ? (double)pr : (double)NAN);
  chi_csv_num(c, patch ? (double)pc : (double)NAN);
  chi_csv_str(c, layer);
  chi_csv_int(c, i + 1);
  chi_csv_int(c, id);
  chi_csv_str(c, word);
  chi_csv_num(c, (double)cells->score[cell * l->k + i]);
  chi_csv_num(c, cells->rank ? (double)cells->rank[cell] : (double)NAN);
  return chi_csv_row(c, err);
}

static int write_csv(const chi_lens *l, const char *path, chi_err *err) {
  static const char *const kHead[] = {"row",   "token", "role", "patch_row", "patch_column", "layer",
                                      "place", "id",    "word", "score",     "followed_rank"};
  int rc = 0;
  chi_csv *c = NULL;
  char name[32];
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int32_t r = 0; r < l->n_rows; r++) {
    for (int32_t k = 0; k < l->n_layers; k++) {
      column_name(l, k, name, sizeof name);
      for (int i = 0; i < l->k; i++) CHI_TRY(csv_line(c, l, r, name, &l->cell, (int64_t)r * l->n_layers + k, i, err));
    }
    snprintf(name, sizeof name, "embeddings_%s", embed_name(l));
    for (int i = 0; l->embed && l->emb.id[(int64_t)r * l->k] >= 0 && i < l->k; i++)
      CHI_TRY(csv_line(c, l, r, name, &l->emb, r, i, err));
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- page ------------------------------------------------------------------------------------------------ */
static int write_page(const chi_lens *l, const json_t *j, const char *path, chi_err *err) {
  int rc = 0;
  chi_out *out = NULL;
  chi_str page = {0};
  char *data = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(5));
  CHI_TRY(data ? 0 : chi_fail(err, CHI_ERR_MEMORY, "no memory for %s", path));
  CHI_TRY(chii_lens_page(&page, data, l->prompt->seen.rgb ? &l->prompt->seen : NULL, err));
  CHI_TRY(chi_out_open(&out, path, err));
  chi_out_write(out, page.s, page.len, err); /* errors are sticky: commit reports them */
  rc = chi_out_commit(out, err);
out:
  free(data);
  chi_str_free(&page);
  return rc;
}

int chi_lens_write(const chi_lens *l, chi_lens_word_name word, const chi_provenance *prov, const char *dir,
                   chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_lens_json(&j, l, word, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "lens.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "lens.csv", err));
  CHI_TRY(write_csv(l, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "lens.html", err));
  CHI_TRY(write_page(l, j, path, err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal -------------------------------------------------------------------------------------------- */
/* One row: layers down, words across. */
static int one_row(const chi_lens *l, int width, chi_str *out, chi_err *err) {
  int rc = 0, n = l->k < 6 ? l->k : 6;
  char tok[CHII_TOKEN], name[16];
  static const char *const kHead[] = {"layer", "1st", "p",   "2nd", "p",   "3rd", "p",
                                      "4th",   "p",   "5th", "p",   "6th", "p",   "rank"};
  const char *head[16];
  char align[16] = "l";
  chi_table *t = NULL;
  for (int i = 0; i < 1 + 2 * n; i++) head[i] = kHead[i];
  for (int i = 0; i < 2 * n; i++) align[1 + i] = i % 2 ? 'r' : 'l';
  if (l->cell.rank) head[1 + 2 * n] = kHead[13], align[1 + 2 * n] = 'r';
  chii_row_word(l->model, l->prompt, l->rows[0], tok);
  chi_str_addf(out, "row %d, %s (%s)\n", (int)l->rows[0], tok, chi_role_name(l->prompt->role[l->rows[0]]));
  CHI_TRY(chi_table_new(&t, head, align, err));
  for (int32_t c = 0; c < l->n_layers; c++) {
    column_name(l, c, name, sizeof name);
    chi_table_cell(t, "%s", name);
    for (int i = 0; i < n; i++) {
      chii_token_word(l->model, l->cell.id[c * l->k + i], tok);
      chi_table_cell(t, "%s", tok);
      chi_table_cell(t, "%.3f", chi_exp64((double)l->cell.score[c * l->k + i]));
    }
    if (l->cell.rank) chi_table_cell(t, "%d", (int)l->cell.rank[c]);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  return rc;
}

enum { kMost = 24 }; /* layers side by side */

/* Columns that are shown: spread evenly, the last one among them. */
static int pick_columns(const chi_lens *l, int most, int32_t *pick) {
  int n = l->n_layers < most ? l->n_layers : most;
  for (int i = 0; i < n; i++) pick[i] = n == 1 ? l->n_layers - 1 : (int32_t)((int64_t)i * (l->n_layers - 1) / (n - 1));
  return n;
}

static int many_rows(const chi_lens *l, int width, int max_rows, chi_str *out, chi_err *err) {
  int rc = 0, first = 24 + (l->embed ? 12 : 0), fits = (width - first) / 12;
  int32_t pick[kMost];
  char tok[CHII_TOKEN], name[kMost][16], align[kMost + 4] = "rl";
  const char *head[kMost + 4] = {"row", "token"};
  int n = pick_columns(l, fits < 1 ? 1 : fits < kMost ? fits : kMost, pick), at = 2;
  chi_table *t = NULL;
  if (l->embed) align[at] = 'l', head[at++] = "embeddings";
  for (int i = 0; i < n; i++) {
    column_name(l, pick[i], name[i], sizeof name[i]);
    align[at] = 'l';
    head[at++] = name[i];
  }
  CHI_TRY(chi_table_new(&t, head, align, err));
  for (int32_t r = 0; r < l->n_rows && r < max_rows; r++) {
    chii_row_word(l->model, l->prompt, l->rows[r], tok);
    chi_table_cell(t, "%d", (int)l->rows[r]);
    chi_table_cell(t, "%s", tok);
    if (l->embed) {
      int32_t id = l->emb.id[(int64_t)r * l->k];
      if (id >= 0) chii_token_word(l->model, id, tok);
      chi_table_cell(t, "%s", id >= 0 ? tok : "");
    }
    for (int i = 0; i < n; i++) {
      chii_token_word(l->model, l->cell.id[((int64_t)r * l->n_layers + pick[i]) * l->k], tok);
      chi_table_cell(t, "%s", tok);
    }
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  chi_str_add(out, "(the likeliest word of each state; columns are layers)\n");
  if (l->n_rows > max_rows) chi_str_addf(out, "(and %d more rows: -o writes all of them)\n", (int)l->n_rows - max_rows);
out:
  chi_table_free(t);
  return rc;
}

static int role_table(const chi_lens *l, chi_lens_word_name word, int width, chi_str *out, chi_err *err) {
  int rc = 0, best;
  double mrr;
  int32_t pick[kMost];
  char name[kMost][16], align[kMost + 2] = "l";
  const char *head[kMost + 2] = {"role"};
  int fits = (width - 14) / 14, n = pick_columns(l, fits < 1 ? 1 : fits < kMost ? fits : kMost, pick);
  chi_table *t = NULL;
  for (int i = 0; i < n; i++) {
    column_name(l, pick[i], name[i], sizeof name[i]);
    head[i + 1] = name[i];
    align[i + 1] = 'r';
  }
  chi_str_addf(out, "\nrank of \"%s\"%s: best (mean of 1/rank), by layer\n", word.text,
               word.part ? ", its first token" : "");
  CHI_TRY(chi_table_new(&t, head, align, err));
  for (int role = 0; role < CHI_ROLE_COUNT; role++) {
    if (!chi_lens_role(l, (chi_role)role, 0, &best, &mrr)) continue;
    chi_table_cell(t, "%s", chi_role_name((chi_role)role));
    for (int i = 0; i < n; i++) {
      chi_lens_role(l, (chi_role)role, pick[i], &best, &mrr);
      chi_table_cell(t, "%d (%.3f)", best, mrr);
    }
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  return rc;
}

int chi_lens_summary(const chi_lens *l, chi_lens_word_name word, int width, int max_rows, chi_str *out, chi_err *err) {
  int rc = l->n_rows == 1 && !l->embed ? one_row(l, width, out, err) : many_rows(l, width, max_rows, out, err);
  if (rc == 0 && l->cell.rank && word.text) rc = role_table(l, word, width, out, err);
  if (rc == 0 && out->failed) rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  return rc;
}

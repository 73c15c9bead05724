/* Writing attributions; see attribute_report.h. */
#include "report/attribute_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/prompt_text.h"

static double difference(const chi_attr_score *s) { return s->logit[0] - s->logit[1]; }

/* ---- JSON ------------------------------------------------------------------------------------------------ */
/* Adds a score's numbers to an object. */
static int set_score(json_t *o, const chi_attribution *a, const chi_attr_score *s, bool increase) {
  int bad = json_object_set_new(o, "logit", chi_json_num(s->logit[0]));
  if (increase) bad |= json_object_set_new(o, "increase", chi_json_num(s->increase[0]));
  if (a->n_targets < 2) return bad;
  bad |= json_object_set_new(o, "versus_logit", chi_json_num(s->logit[1]));
  if (increase) bad |= json_object_set_new(o, "versus_increase", chi_json_num(s->increase[1]));
  return bad | json_object_set_new(o, "difference", chi_json_num(difference(s)));
}

static json_t *target_json(const chi_attribution *a, int t) {
  json_t *o = chii_token_json(a->model, a->target[t]);
  const chi_metrics *f = &a->final[t];
  int bad = json_object_set_new(o, "p", chi_json_num(f->p));
  bad |= json_object_set_new(o, "logp", chi_json_num(f->logp));
  bad |= json_object_set_new(o, "logit", chi_json_num(f->logit));
  bad |= json_object_set_new(o, "rank", chi_json_num(f->rank));
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

static json_t *next_json(const chi_attribution *a) {
  enum { kTop = 10 };
  int32_t top[kTop], V = a->model->net.decoder.vocab;
  int k = V < kTop ? (int)V : kTop, bad = 0;
  json_t *list = json_array();
  double lse = chi_logsumexp(a->logits, V);
  chi_top_k(a->logits, V, top, k);
  for (int i = 0; i < k; i++) {
    json_t *o = chii_token_json(a->model, top[i]);
    bad |= json_object_set_new(o, "p", chi_json_num(chi_exp64((double)a->logits[top[i]] - lse)));
    bad |= json_array_append_new(list, o);
  }
  if (!bad) return list;
  json_decref(list);
  return NULL;
}

static int add_layers(json_t *o, const chi_attribution *a) {
  json_t *list = json_array();
  int bad = 0;
  for (int l = 0; l < a->layers; l++)
    for (int k = 0; k < 2; k++) {
      json_t *x = json_pack("{s:s,s:i}", "part", k ? "mlp" : "attention", "layer", l);
      bad |= set_score(x, a, k ? &a->mlp[l] : &a->attn[l], true);
      bad |= json_array_append_new(list, x);
    }
  return bad | json_object_set_new(o, "layers", list);
}

static int add_heads(json_t *o, const chi_attribution *a) {
  json_t *list = json_array();
  int bad = 0;
  for (int i = 0; i < a->layers * a->heads; i++) {
    json_t *x = json_pack("{s:i,s:i}", "layer", (int)(a->order[i] / a->heads), "head", (int)(a->order[i] % a->heads));
    bad |= set_score(x, a, &a->head[a->order[i]], true);
    if (a->prompt->n_image) {
      bad |= json_object_set_new(x, "logit_from_picture", chi_json_num(a->picture[a->order[i]]));
      bad |= json_object_set_new(x, "attention_on_picture", chi_json_num(a->reads[a->order[i]]));
    }
    bad |= json_array_append_new(list, x);
  }
  return bad | json_object_set_new(o, "heads", list);
}

static json_t *grid_json(const chi_attribution *a, const double *map) {
  chi_patches g = chi_patches_of(a->model, a->prompt);
  json_t *grid = json_array();
  int32_t w = g.grid_w ? g.grid_w : g.n;
  for (int32_t i = 0; i < g.n; i += w) {
    json_t *line = json_array();
    for (int32_t c = 0; c < w; c++) json_array_append_new(line, chi_json_num(map[i + c]));
    json_array_append_new(grid, line);
  }
  return grid;
}

/* Every scored head's positions, their sum, average attention; the map that the picture shows. */
static int add_positions(json_t *o, const chi_attribution *a, double *sum, double *map) {
  json_t *rows = json_array(), *heads = json_array(), *avg = json_array(), *total = json_array(), *all = json_array();
  int bad = 0;
  chi_attribution_all_heads(a, 0, sum);
  for (int32_t r = 0; r < a->rows; r++) bad |= json_array_append_new(all, chi_json_num(sum[r]));
  chi_attribution_sum(a, 0, sum);
  for (int32_t r = 0; r < a->rows; r++) {
    bad |= json_array_append_new(rows, chii_row_json(a->model, a->prompt, r));
    bad |= json_array_append_new(avg, chi_json_num(a->avg_attention[r]));
    bad |= json_array_append_new(total, chi_json_num(sum[r]));
  }
  for (int n = 0; n < a->n_positions; n++) {
    json_t *h = json_pack("{s:i,s:i}", "layer", (int)a->pos_head[n].layer, "head", (int)a->pos_head[n].head),
           *list = json_array();
    for (int32_t r = 0; r < a->rows; r++) {
      json_t *x = json_pack("{s:i,s:o}", "row", (int)r, "attention", chi_json_num((double)a->weight[n * a->rows + r]));
      bad |= set_score(x, a, &a->pos[n * a->rows + r], true);
      bad |= json_array_append_new(list, x);
    }
    bad |= json_object_set_new(h, "rows", list);
    bad |= json_array_append_new(heads, h);
  }
  bad |= json_object_set_new(o, "rows", rows);
  bad |= json_object_set_new(o, "positions", heads);
  bad |= json_object_set_new(o, "sum_of_heads", total);
  bad |= json_object_set_new(o, "logit_of_all_heads", all);
  bad |= json_object_set_new(o, "average_attention", avg);
  if (a->prompt->n_image == 0) return bad;
  bool shown = chi_attribution_map(a, sum, map);
  bad |= json_object_set_new(o, "map_is_flat", json_boolean(!shown));
  bad |= json_object_set_new(o, "map", grid_json(a, map));
  return bad;
}

static int add_neurons(json_t *o, const chi_attribution *a) {
  json_t *mlp = json_array(), *attn = json_array();
  int bad = 0;
  for (int i = 0; i < a->n_neurons; i++) {
    const chi_attr_neuron *n = &a->neuron[i];
    json_t *x = json_pack("{s:i,s:i,s:o}", "layer", (int)n->layer, "neuron", (int)n->neuron, "coefficient",
                          chi_json_num(n->coefficient));
    bad |= set_score(x, a, &n->s, true);
    bad |= json_array_append_new(mlp, x);
  }
  for (int i = 0; i < a->n_attn_neurons; i++) {
    const chi_attr_neuron *n = &a->attn_neuron[i];
    json_t *x = json_pack("{s:i,s:i,s:i,s:i,s:o}", "layer", (int)n->layer, "head", (int)n->head, "dim", (int)n->dim,
                          "row", (int)n->row, "coefficient", chi_json_num(n->coefficient));
    bad |= set_score(x, a, &n->s, true);
    bad |= json_array_append_new(attn, x);
  }
  if (a->n_neurons) bad |= json_object_set(o, "neurons", mlp);
  if (a->n_attn_neurons) bad |= json_object_set(o, "attention_neurons", attn);
  json_decref(mlp);
  json_decref(attn);
  return bad;
}

static int add_views(json_t *o, const chi_attribution *a) {
  json_t *list = json_array();
  int bad = 0;
  for (int i = 0; i < a->n_views; i++) {
    const chi_attr_view *v = &a->view[i];
    chi_attr_head h = a->pos_head[v->head];
    json_t *x = json_pack("{s:i,s:i,s:i}", "layer", (int)h.layer, "head", (int)h.head, "row", (int)v->row);
    for (int k = 0; k < CHI_VIEWS; k++) {
      json_t *words = json_array();
      for (int w = 0; w < a->opts.n_words; w++) {
        json_t *t = chii_token_json(a->model, v->view[k].id[w]);
        bad |= json_object_set_new(t, "logit", chi_json_num((double)v->view[k].logit[w]));
        bad |= json_array_append_new(words, t);
      }
      json_t *view = json_pack("{s:o,s:i}", "words", words, "rank", (int)v->view[k].rank[0]);
      if (a->n_targets > 1) bad |= json_object_set_new(view, "versus_rank", json_integer(v->view[k].rank[1]));
      bad |= json_object_set_new(x, chi_view_name[k], view);
    }
    bad |= json_array_append_new(list, x);
  }
  if (a->n_views) bad |= json_object_set(o, "views", list);
  json_decref(list);
  return bad;
}

int chi_attribution_json(json_t **out, const chi_attribution *a, const chi_provenance *prov, chi_err *err) {
  int rc = 0, bad = 0;
  char note[160];
  json_t *o = NULL, *embed = json_object();
  double *sum = chi_calloc((size_t)a->rows, sizeof *sum, err), *map = chi_calloc((size_t)a->rows, sizeof *map, err);
  CHI_TRY(sum && map ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_report_json(&o, "attribution", prov, err));
  bad |= json_object_set_new(o, "target", target_json(a, 0));
  if (a->n_targets > 1) bad |= json_object_set_new(o, "versus", target_json(a, 1));
  bad |= json_object_set_new(o, "next_tokens", next_json(a));
  bad |= json_object_set_new(o, "eps",
                             chi_json_num(a->opts.eps < 0 ? (double)a->model->net.decoder.spec.eps : a->opts.eps));
  bad |= json_object_set_new(o, "scale", chi_json_num((double)a->proj.r));
  if (chii_unseen(a->prompt, note, sizeof note)) bad |= json_object_set_new(o, "unseen", chi_json_text(note));
  bad |= set_score(embed, a, &a->embed, false);
  bad |= json_object_set(o, "embedding", embed);
  bad |= json_object_set_new(o, "constants", chi_json_num(a->constants[0]));
  bad |= json_object_set_new(o, "sum_error", chi_json_num(a->residual));
  bad |= add_layers(o, a);
  bad |= add_heads(o, a);
  bad |= json_object_set_new(o, "picture", chii_picture_json(a->model, a->prompt));
  bad |= add_positions(o, a, sum, map);
  bad |= add_neurons(o, a);
  bad |= add_views(o, a);
  if (bad) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
out:
  json_decref(embed);
  chi_free(sum);
  chi_free(map);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
static const char *const kColumns[] = {
    "level",        "layer",     "head",         "dim",         "neuron",   "row",   "token",
    "role",         "patch_row", "patch_column", "coefficient", "increase", "logit", "versus_increase",
    "versus_logit", "difference"};

typedef struct line {
  const char *level;
  int32_t layer, head, dim, neuron, row; /* -1 = empty */
  double coefficient;                    /* attention, activation; NaN = empty */
  const chi_attr_score *s;
} line;

static void put_int(chi_csv *c, int32_t x) {
  if (x < 0)
    chi_csv_str(c, NULL);
  else
    chi_csv_int(c, x);
}

static int put_line(chi_csv *c, const chi_attribution *a, line x, chi_err *err) {
  char tok[CHII_TOKEN];
  int32_t pr = -1, pc = -1;
  chi_patches g = chi_patches_of(a->model, a->prompt);
  chi_csv_str(c, x.level);
  put_int(c, x.layer);
  put_int(c, x.head);
  put_int(c, x.dim);
  put_int(c, x.neuron);
  put_int(c, x.row);
  if (x.row >= 0) {
    chi_token_text(a->model->tok, a->prompt->tokens[x.row], tok, sizeof tok);
    chi_patch_at(&g, x.row, &pr, &pc);
  }
  chi_csv_str(c, x.row >= 0 ? tok : NULL);
  chi_csv_str(c, x.row >= 0 ? chi_role_name(a->prompt->role[x.row]) : NULL);
  put_int(c, pr);
  put_int(c, pc);
  chi_csv_num(c, x.coefficient);
  bool two = a->n_targets > 1;
  chi_csv_num(c, x.s ? x.s->increase[0] : NAN);
  chi_csv_num(c, x.s ? x.s->logit[0] : NAN);
  chi_csv_num(c, x.s && two ? x.s->increase[1] : NAN);
  chi_csv_num(c, x.s && two ? x.s->logit[1] : NAN);
  chi_csv_num(c, x.s && two ? difference(x.s) : NAN);
  return chi_csv_row(c, err);
}

static int write_csv(const chi_attribution *a, const char *path, chi_err *err) {
  int rc = 0;
  chi_csv *c = NULL;
  const line none = {"", -1, -1, -1, -1, -1, NAN, NULL};
  line x = none;
  double *sum = chi_calloc(2 * (size_t)a->rows, sizeof *sum, err);
  CHI_TRY(sum ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_csv_open(&c, path, kColumns, sizeof kColumns / sizeof *kColumns, err));
  x.level = "embedding", x.row = a->rows - 1, x.s = &a->embed;
  CHI_TRY(put_line(c, a, x, err));
  for (x = none, x.layer = 0; x.layer < a->layers; x.layer++)
    for (int k = 0; k < 2; k++) {
      x.level = k ? "mlp" : "attention";
      x.s = k ? &a->mlp[x.layer] : &a->attn[x.layer];
      CHI_TRY(put_line(c, a, x, err));
    }
  for (x.level = "head", x.layer = 0; x.layer < a->layers; x.layer++)
    for (x.head = 0; x.head < a->heads; x.head++) {
      x.s = &a->head[x.layer * a->heads + x.head];
      CHI_TRY(put_line(c, a, x, err));
    }
  for (int n = 0; n < a->n_positions; n++) {
    x = none, x.level = "position", x.layer = a->pos_head[n].layer, x.head = a->pos_head[n].head;
    for (x.row = 0; x.row < a->rows; x.row++) {
      x.s = &a->pos[n * a->rows + x.row];
      x.coefficient = (double)a->weight[n * a->rows + x.row];
      CHI_TRY(put_line(c, a, x, err));
    }
  }
  for (x = none, x.level = "average_attention", x.row = 0; x.row < a->rows; x.row++) {
    x.coefficient = a->avg_attention[x.row];
    CHI_TRY(put_line(c, a, x, err));
  }
  chi_attribution_all_heads(a, 0, sum);
  if (a->n_targets > 1) chi_attribution_all_heads(a, 1, sum + a->rows);
  for (x = none, x.level = "all_heads", x.row = 0; x.row < a->rows; x.row++) {
    chi_attr_score s = {{NAN, NAN}, {sum[x.row], sum[a->rows + x.row]}};
    x.s = &s;
    CHI_TRY(put_line(c, a, x, err));
  }
  for (int i = 0; i < a->n_neurons + a->n_attn_neurons; i++) {
    const chi_attr_neuron *n = i < a->n_neurons ? &a->neuron[i] : &a->attn_neuron[i - a->n_neurons];
    x = (line){i < a->n_neurons ? "neuron" : "attention_neuron",
               n->layer,
               n->head,
               n->dim,
               n->neuron,
               n->row,
               n->coefficient,
               &n->s};
    CHI_TRY(put_line(c, a, x, err));
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  chi_free(sum);
  return rc;
}

/* ---- safetensors ----------------------------------------------------------------------------------------- */
typedef struct tensors {
  const chi_attribution *a;
  chi_st_writer *w;
  chi_arena arena;
  chi_err *err;
} tensors;

/* Scores as <name>.increase and .logit [targets][dims...]; stride: bytes between scores. */
static int add_scores(tensors *t, const char *name, const void *first, size_t stride, int ndim, const int64_t *dim) {
  int rc = 0, T = t->a->n_targets;
  char full[64];
  int64_t shape[4] = {T}, n = 1;
  for (int i = 0; i < ndim; i++) shape[i + 1] = dim[i], n *= dim[i];
  for (int kind = 0; kind < 2; kind++) {
    float *v = chi_arena_array(&t->arena, (size_t)(T * n), sizeof *v, t->err);
    if (!v) return CHI_ERR_MEMORY;
    for (int k = 0; k < T; k++)
      for (int64_t i = 0; i < n; i++) {
        const chi_attr_score *s = (const chi_attr_score *)(const void *)((const char *)first + (size_t)i * stride);
        v[k * n + i] = (float)(kind ? s->logit[k] : s->increase[k]);
      }
    snprintf(full, sizeof full, "%s.%s", name, kind ? "logit" : "increase");
    CHI_TRY(chi_st_writer_add(t->w, full, CHI_F32, ndim + 1, shape, v, t->err));
  }
out:
  return rc;
}

static int add_all(tensors *t) {
  int rc = 0;
  const chi_attribution *a = t->a;
  int64_t L[1] = {a->layers}, LH[2] = {a->layers, a->heads}, NT[2] = {a->n_positions, a->rows}, T[1] = {a->rows},
          N2[2] = {a->n_positions, 2}, V[1] = {a->model->net.decoder.vocab}, K[1] = {a->n_targets};
  const size_t size = sizeof(chi_attr_score);
  float *avg = chi_arena_array(&t->arena, (size_t)a->rows, sizeof *avg, t->err);
  CHI_TRY(avg ? 0 : CHI_ERR_MEMORY);
  for (int r = 0; r < a->rows; r++) avg[r] = (float)a->avg_attention[r];
  CHI_TRY(add_scores(t, "attn", a->attn, size, 1, L));
  CHI_TRY(add_scores(t, "mlp", a->mlp, size, 1, L));
  CHI_TRY(add_scores(t, "head", a->head, size, 2, LH));
  CHI_TRY(add_scores(t, "pos", a->pos, size, 2, NT));
  float *edge = chi_arena_array(&t->arena, (size_t)(K[0] * L[0] * a->heads * T[0]), sizeof *edge, t->err);
  CHI_TRY(edge ? 0 : CHI_ERR_MEMORY);
  int64_t KLHT[4] = {a->n_targets, a->layers, a->heads, a->rows}, each = KLHT[1] * KLHT[2] * KLHT[3];
  for (int k = 0; k < a->n_targets; k++) memcpy(edge + k * each, a->edge[k], (size_t)each * sizeof *edge);
  CHI_TRY(chi_st_writer_add(t->w, "edge.logit", CHI_F32, 4, KLHT, edge, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "weight", CHI_F32, 2, NT, a->weight, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "heads", CHI_I32, 2, N2, a->pos_head, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "avg_attention", CHI_F32, 1, T, avg, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "logits", CHI_F32, 1, V, a->logits, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "targets", CHI_I32, 1, K, a->target, t->err));
  CHI_TRY(chi_st_writer_add(t->w, "tokens", CHI_I32, 1, T, a->prompt->tokens, t->err));
  for (int k = 0; k < 2; k++) { /* neurons: [n] scores, [n][2 or 4] which */
    const chi_attr_neuron *x = k ? a->attn_neuron : a->neuron;
    int64_t n[2] = {k ? a->n_attn_neurons : a->n_neurons, k ? 4 : 2};
    int32_t *at = chi_arena_array(&t->arena, (size_t)(n[0] * n[1]), sizeof *at, t->err);
    CHI_TRY(at ? 0 : CHI_ERR_MEMORY);
    if (n[0] == 0) continue;
    for (int64_t i = 0; i < n[0]; i++) {
      at[i * n[1]] = x[i].layer;
      at[i * n[1] + 1] = k ? x[i].head : x[i].neuron;
      if (k) at[i * 4 + 2] = x[i].dim, at[i * 4 + 3] = x[i].row;
    }
    CHI_TRY(add_scores(t, k ? "attn_neuron" : "neuron", &x[0].s, sizeof *x, 1, n));
    CHI_TRY(chi_st_writer_add(t->w, k ? "attn_neurons" : "neurons", CHI_I32, 2, n, at, t->err));
  }
out:
  return rc;
}

static int write_tensors(const chi_attribution *a, const chi_provenance *prov, const char *path, chi_err *err) {
  int rc = 0;
  tensors t = {.a = a, .err = err};
  json_t *pj = NULL;
  char *text = NULL;
  CHI_TRY(chi_st_writer_new(&t.w, path, err));
  CHI_TRY(chi_provenance_json(&pj, prov, err));
  text = json_dumps(pj, JSON_COMPACT);
  if (text) CHI_TRY(chi_st_writer_meta(t.w, "provenance", text, err));
  CHI_TRY(chi_st_writer_meta(t.w, "layout",
                             "attn, mlp [target][layer]; head [target][layer][head]; edge [target][layer][head][row]; "
                             "pos [target][scored head][row]; "
                             "weight [scored head][row]; heads [scored head][layer, head]; neurons [n][layer, neuron]; "
                             "attn_neurons [n][layer, head, dim, row]",
                             err));
  CHI_TRY(add_all(&t));
  rc = chi_st_writer_commit(t.w, err);
  t.w = NULL;
out:
  chi_st_writer_abort(t.w);
  json_decref(pj);
  free(text);
  chi_arena_free(&t.arena);
  return rc;
}

int chi_attribution_write(const chi_attribution *a, const chi_provenance *prov, const char *dir, chi_str *files,
                          chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_attribution_json(&j, a, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "attribution.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "attribution.csv", err));
  CHI_TRY(write_csv(a, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "attribution.safetensors", err));
  CHI_TRY(write_tensors(a, prov, path, err));
  chi_str_add(files, "attribution.{json,csv,safetensors}");
  CHI_TRY(chi_attribution_figures(a, prov, dir, files, err));
out:
  json_decref(j);
  return rc;
}

/* Writing attention contributions; see contributions_report.h. */
#include "report/contributions_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/prompt_text.h"

enum { kLine = 200, kMaps = 4 };

static int32_t best_head(const chi_contributions *c, int32_t l) {
  int32_t best = 0;
  for (int32_t h = 1; h < c->heads; h++)
    if (chi_contrib_head(c, l, h) > chi_contrib_head(c, l, best)) best = h;
  return best;
}

static double edge_sum(const chi_contributions *c, int32_t l, int32_t i, int32_t j) {
  return (double)c->sum[((int64_t)l * c->n_to + i) * c->n_from + j];
}

static double edge_head(const chi_contributions *c, int32_t l, int32_t h, int32_t i, int32_t j) {
  return (double)c->head[(((int64_t)l * c->heads + h) * c->n_to + i) * c->n_from + j];
}

/* Largest attention output of the destinations: the measure of the others. */
static double out_norm(const chi_contributions *c, int32_t l) {
  double best = 0;
  for (int32_t i = 0; i < c->n_to; i++) best = fmax(best, (double)c->out[l * c->n_to + i]);
  return best;
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */
static json_t *rows_json(const chi_contributions *c, const int32_t *rows, int32_t n) {
  json_t *a = json_array();
  for (int32_t i = 0; i < n; i++) json_array_append_new(a, chii_row_json(c->model, c->prompt, rows[i]));
  return a;
}

static json_t *layer_json(const chi_contributions *c, int32_t l) {
  double share, even;
  int32_t h = best_head(c, l);
  json_t *o = json_pack("{s:i,s:i}", "layer", (int)c->layer[l], "best_head", (int)h);
  int bad = json_object_set_new(o, "best_head_norm", chi_json_num(chi_contrib_head(c, l, h)));
  bad |= json_object_set_new(o, "max", chi_json_num(chi_contrib_max(c, l)));
  bad |= json_object_set_new(o, "mean", chi_json_num(chi_contrib_mean(c, l)));
  bad |= json_object_set_new(o, "together", chi_json_num(chi_contrib_group(c, l)));
  bad |= json_object_set_new(o, "attention_output", chi_json_num(out_norm(c, l)));
  if (chi_contrib_late(c, l, &share, &even)) {
    bad |= json_object_set_new(o, "late_share", chi_json_num(share));
    bad |= json_object_set_new(o, "late_share_even_attention", chi_json_num(even));
  }
  for (int k = 0; k < CHI_CONTRIB_CONTROLS; k++) {
    char key[64];
    if (!c->control[k] || !chi_contrib_late(c->control[k], l, &share, &even)) continue;
    snprintf(key, sizeof key, "late_share_%s", chi_contrib_control_name[k]);
    bad |= json_object_set_new(o, key, chi_json_num(share));
    snprintf(key, sizeof key, "late_share_%s_by_content", chi_contrib_control_name[k]);
    bad |= json_object_set_new(o, key, chi_json_num(chi_contrib_late_content(c->control[k], l)));
  }
  json_t *heads = json_array(), *from = json_array();
  for (int32_t k = 0; k < c->heads; k++) bad |= json_array_append_new(heads, chi_json_num(chi_contrib_head(c, l, k)));
  for (int32_t j = 0; j < c->n_from; j++) bad |= json_array_append_new(from, chi_json_num(chi_contrib_from(c, l, j)));
  bad |= json_object_set_new(o, "heads", heads);
  bad |= json_object_set_new(o, "from", from);
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

int chi_contributions_json(json_t **out, const chi_contributions *c, const char *from, const char *to,
                           const chi_provenance *prov, chi_err *err) {
  json_t *o = NULL, *layers = json_array();
  int rc = chi_report_json(&o, "contributions", prov, err);
  if (rc) {
    json_decref(layers);
    return rc;
  }
  json_t *answer = chii_token_json(c->model, c->answer);
  int bad = json_object_set_new(answer, "p", chi_json_num(c->final.p));
  bad |= json_object_set_new(o, "answer", answer);
  bad |= json_object_set_new(o, "from", chi_json_text(from)) | json_object_set_new(o, "to", chi_json_text(to));
  bad |= json_object_set_new(o, "from_rows", rows_json(c, c->from, c->n_from));
  bad |= json_object_set_new(o, "to_rows", rows_json(c, c->to, c->n_to));
  if (c->n_sources_patch > 0) {
    json_t *pic = chii_picture_json(c->model, c->prompt);
    bad |= json_object_set_new(o, "picture", pic);
    bad |= json_object_set_new(o, "late_patches", json_integer(c->late));
    bad |= json_object_set_new(o, "late_patches_part", chi_json_num((double)c->n_late / (double)c->n_sources_patch));
  }
  for (int32_t l = 0; l < c->n_layers; l++) bad |= json_array_append_new(layers, layer_json(c, l));
  bad |= json_object_set_new(o, "layers", layers);
  if (bad) {
    json_decref(o);
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  *out = o;
  return 0;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
static int write_edges(const chi_contributions *c, const char *path, chi_err *err) {
  static const char *const kHead[] = {"layer", "from",     "from_token", "role",      "patch_row", "patch_col",
                                      "to",    "to_token", "sum",        "best_head", "best_norm", "values_only"};
  int rc = 0;
  chi_csv *f = NULL;
  char word[CHII_TOKEN];
  chi_patches g = chi_patches_of(c->model, c->prompt);
  CHI_TRY(chi_csv_open(&f, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int32_t l = 0; l < c->n_layers; l++)
    for (int32_t i = 0; i < c->n_to; i++)
      for (int32_t j = 0; j < c->n_from && c->from[j] <= c->to[i]; j++) {
        int32_t r, col, best = 0;
        for (int32_t h = 1; h < c->heads; h++)
          if (edge_head(c, l, h, i, j) > edge_head(c, l, best, i, j)) best = h;
        chi_csv_int(f, c->layer[l]);
        chi_csv_int(f, c->from[j]);
        chii_row_word(c->model, c->prompt, c->from[j], word);
        chi_csv_str(f, word);
        chi_csv_str(f, chi_role_name(c->prompt->role[c->from[j]]));
        bool patch = chi_patch_at(&g, c->from[j], &r, &col);
        patch ? chi_csv_int(f, r) : chi_csv_str(f, NULL);
        patch ? chi_csv_int(f, col) : chi_csv_str(f, NULL);
        chi_csv_int(f, c->to[i]);
        chii_row_word(c->model, c->prompt, c->to[i], word);
        chi_csv_str(f, word);
        chi_csv_num(f, edge_sum(c, l, i, j));
        chi_csv_int(f, best);
        chi_csv_num(f, edge_head(c, l, best, i, j));
        chi_csv_num(f, (double)c->even[(int64_t)l * c->n_from + j]);
        CHI_TRY(chi_csv_row(f, err));
      }
  rc = chi_csv_commit(f, err);
  f = NULL;
out:
  chi_csv_abort(f);
  return rc;
}

static int write_layers(const chi_contributions *c, const char *path, chi_err *err) {
  static const char *const kHead[] = {"layer",
                                      "best_head",
                                      "best_head_norm",
                                      "max",
                                      "mean",
                                      "together",
                                      "attention_output",
                                      "late_share",
                                      "late_share_even_attention",
                                      "late_share_flipped",
                                      "late_share_flipped_by_content",
                                      "late_share_rolled",
                                      "late_share_rolled_by_content",
                                      "late_share_shuffled",
                                      "late_share_shuffled_by_content"};
  int rc = 0;
  chi_csv *f = NULL;
  CHI_TRY(chi_csv_open(&f, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int32_t l = 0; l < c->n_layers; l++) {
    double share = NAN, even = NAN;
    int32_t h = best_head(c, l);
    if (!chi_contrib_late(c, l, &share, &even)) share = even = NAN;
    chi_csv_int(f, c->layer[l]);
    chi_csv_int(f, h);
    chi_csv_num(f, chi_contrib_head(c, l, h));
    chi_csv_num(f, chi_contrib_max(c, l));
    chi_csv_num(f, chi_contrib_mean(c, l));
    chi_csv_num(f, chi_contrib_group(c, l));
    chi_csv_num(f, out_norm(c, l));
    chi_csv_num(f, share);
    chi_csv_num(f, even);
    for (int k = 0; k < CHI_CONTRIB_CONTROLS; k++) {
      bool there = c->control[k] && chi_contrib_late(c->control[k], l, &share, &even);
      chi_csv_num(f, there ? share : NAN);
      chi_csv_num(f, there ? chi_contrib_late_content(c->control[k], l) : NAN);
    }
    CHI_TRY(chi_csv_row(f, err));
  }
  rc = chi_csv_commit(f, err);
  f = NULL;
out:
  chi_csv_abort(f);
  return rc;
}

static int write_heads(const chi_contributions *c, const char *path, chi_err *err) {
  static const char *const kHead[] = {"layer", "head", "norm"};
  int rc = 0;
  chi_csv *f = NULL;
  CHI_TRY(chi_csv_open(&f, path, kHead, 3, err));
  for (int32_t l = 0; l < c->n_layers; l++)
    for (int32_t h = 0; h < c->heads; h++) {
      chi_csv_int(f, c->layer[l]);
      chi_csv_int(f, h);
      chi_csv_num(f, chi_contrib_head(c, l, h));
      CHI_TRY(chi_csv_row(f, err));
    }
  rc = chi_csv_commit(f, err);
  f = NULL;
out:
  chi_csv_abort(f);
  return rc;
}

static int write_tensors(const chi_contributions *c, const chi_provenance *prov, const char *path, chi_err *err) {
  int rc = 0;
  chi_st_writer *w = NULL;
  json_t *pj = NULL;
  char *text = NULL;
  int64_t L = c->n_layers, T = c->n_to, F = c->n_from, H = c->heads, d = c->model->net.decoder.spec.d;
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_provenance_json(&pj, prov, err));
  text = json_dumps(pj, JSON_COMPACT);
  if (text) CHI_TRY(chi_st_writer_meta(w, "provenance", text, err));
  CHI_TRY(chi_st_writer_meta(w, "layout",
                             "head [layer][head][to][from], sum [layer][to][from], together [layer][to][d]", err));
  CHI_TRY(chi_st_writer_add(w, "head", CHI_F32, 4, (int64_t[]){L, H, T, F}, c->head, err));
  CHI_TRY(chi_st_writer_add(w, "sum", CHI_F32, 3, (int64_t[]){L, T, F}, c->sum, err));
  CHI_TRY(chi_st_writer_add(w, "values_only", CHI_F32, 2, (int64_t[]){L, F}, c->even, err));
  CHI_TRY(chi_st_writer_add(w, "together", CHI_F32, 3, (int64_t[]){L, T, d}, c->group, err));
  CHI_TRY(chi_st_writer_add(w, "layers", CHI_I32, 1, &L, c->layer, err));
  CHI_TRY(chi_st_writer_add(w, "from", CHI_I32, 1, &F, c->from, err));
  CHI_TRY(chi_st_writer_add(w, "to", CHI_I32, 1, &T, c->to, err));
  rc = chi_st_writer_commit(w, err);
  w = NULL;
out:
  chi_st_writer_abort(w);
  json_decref(pj);
  free(text);
  return rc;
}

/* ---- pictures -------------------------------------------------------------------------------------------- */
typedef struct figure {
  const chi_contributions *c;
  const chi_provenance *prov;
  const char *dir;
  char what[kLine], answer[kLine];
  const char *lines[2];
  chi_str title;
  chi_arena arena;
} figure;

static int paths(const figure *f, const char *name, char out[2][4096], chi_err *err) {
  char file[64];
  int rc = 0;
  for (int i = 0; i < 2; i++) {
    snprintf(file, sizeof file, "%s.%s", name, i ? "svg" : "png");
    CHI_TRY(chi_path_join(out[i], sizeof out[i], f->dir, file, err));
  }
out:
  return rc;
}

static int draw_curves(figure *f, chi_err *err) {
  const chi_contributions *c = f->c;
  int rc = 0;
  char path[2][4096];
  size_t n = (size_t)c->n_layers;
  double *v = chi_arena_array(&f->arena, 5 * n, sizeof *v, err);
  CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
  for (size_t l = 0; l < n; l++) {
    int32_t at = (int32_t)l;
    v[l] = (double)c->layer[l];
    v[n + l] = chi_contrib_max(c, at);
    v[2 * n + l] = chi_contrib_head(c, at, best_head(c, at));
    v[3 * n + l] = chi_contrib_group(c, at);
    v[4 * n + l] = out_norm(c, at);
  }
  const chi_curve curves[] = {{.name = "one pair, heads summed", .y = v + n},
                              {.name = "one pair, one head", .y = v + 2 * n},
                              {.name = "all sources together", .y = v + 3 * n},
                              {.name = "whole attention output", .y = v + 4 * n}};
  chi_linechart_spec s = {.title = f->title.s ? f->title.s : "",
                          .lines = f->lines,
                          .n_lines = 2,
                          .x_label = "layer",
                          .y_label = "norm of the contribution",
                          .x = v,
                          .n = n,
                          .curves = curves,
                          .n_curves = 4,
                          .y_zero = true};
  CHI_TRY(paths(f, "curves", path, err));
  for (int i = 0; i < 2; i++) CHI_TRY(chi_linechart_save(&s, f->prov, path[i], err));
out:
  return rc;
}

static int draw_late(figure *f, chi_err *err) {
  static const char *const kName[] = {"share of the late patches", "the same if attention were even",
                                      "upside down: last rows",    "upside down: same content",
                                      "rolled: last rows",         "rolled: same content",
                                      "shuffled: last rows",       "shuffled: same content"};
  enum { kCurves = sizeof kName / sizeof *kName };
  const chi_contributions *c = f->c;
  int rc = 0, n_curves = 2;
  char path[2][4096], name[64];
  chi_curve curves[kCurves];
  size_t n = (size_t)c->n_layers;
  double *v = chi_arena_array(&f->arena, (1 + kCurves) * n, sizeof *v, err), even;
  CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < kCurves; k++) curves[k] = (chi_curve){.name = kName[k], .y = v + (1 + (size_t)k) * n};
  for (size_t l = 0; l < n; l++) {
    if (!chi_contrib_late(c, (int32_t)l, v + n + l, v + 2 * n + l)) goto out;
    v[l] = (double)c->layer[l];
    for (size_t k = 0; k < CHI_CONTRIB_CONTROLS && c->control[k]; k++) {
      chi_contrib_late(c->control[k], (int32_t)l, v + (3 + 2 * k) * n + l, &even);
      v[(4 + 2 * k) * n + l] = chi_contrib_late_content(c->control[k], (int32_t)l);
      n_curves = (int)(4 + 2 * k);
    }
  }
  snprintf(name, sizeof name, "their part of the patches: %d of %d", c->n_late, c->n_sources_patch);
  const chi_refline ref = {(double)c->n_late / (double)c->n_sources_patch, name};
  chi_linechart_spec s = {.title = f->title.s ? f->title.s : "",
                          .lines = f->lines,
                          .n_lines = 2,
                          .x_label = "layer",
                          .y_label = "share of the patches' contributions",
                          .x = v,
                          .n = n,
                          .curves = curves,
                          .n_curves = n_curves,
                          .refs = &ref,
                          .n_refs = 1,
                          .y_zero = true};
  CHI_TRY(paths(f, "late", path, err));
  for (int i = 0; i < 2; i++) CHI_TRY(chi_linechart_save(&s, f->prov, path[i], err));
out:
  return rc;
}

/* The late-visual-token curve of the first layer: which part of the contributions each patch row has. */
static int draw_positions(figure *f, chi_err *err) {
  static const char *const kName[] = {"as it is", "the same if attention were even", "picture upside down",
                                      "picture rolled", "patches shuffled"};
  const chi_contributions *c = f->c;
  int rc = 0, n_curves = 2;
  char path[2][4096], label[64];
  size_t n = (size_t)c->n_patches;
  enum { kCurves = sizeof kName / sizeof *kName };
  chi_curve curves[kCurves];
  if (c->n_sources_patch == 0) return 0;
  double *v = chi_arena_array(&f->arena, (kCurves + 2) * n, sizeof *v, err);
  CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) v[i] = (double)i;
  for (size_t k = 0; k < kCurves; k++) curves[k] = (chi_curve){.name = kName[k], .y = v + (1 + k) * n};
  chi_contrib_curve(c, 0, v + n, v + 2 * n);
  for (size_t k = 0; k < CHI_CONTRIB_CONTROLS && c->control[k]; k++, n_curves++)
    chi_contrib_curve(c->control[k], 0, v + (3 + k) * n, v + (kCurves + 1) * n); /* the last: scratch */
  snprintf(label, sizeof label, "share of layer %d's contributions", c->layer[0]);
  chi_linechart_spec s = {.title = f->title.s ? f->title.s : "",
                          .lines = f->lines,
                          .n_lines = 2,
                          .x_label = "patch, in the order of rows",
                          .y_label = label,
                          .x = v,
                          .n = n,
                          .curves = curves,
                          .n_curves = n_curves,
                          .y_zero = true};
  CHI_TRY(paths(f, "positions", path, err));
  for (int i = 0; i < 2; i++) CHI_TRY(chi_linechart_save(&s, f->prov, path[i], err));
out:
  return rc;
}

/* Rows = heads, columns = layers. The heat map's columns are counted on from the first layer: for others than a run of
 * layers it would tell wrong numbers. */
static int draw_heads(figure *f, chi_err *err) {
  const chi_contributions *c = f->c;
  int rc = 0;
  char path[2][4096], num[24];
  const char *site = "attention heads";
  if (c->layer[c->n_layers - 1] - c->layer[0] != c->n_layers - 1) return 0;
  chi_heat_row *rows = chi_arena_array(&f->arena, (size_t)c->heads, sizeof *rows, err);
  float *v = chi_arena_array(&f->arena, (size_t)c->n_layers * (size_t)c->heads, sizeof *v, err);
  CHI_TRY(rows && v ? 0 : CHI_ERR_MEMORY);
  for (int32_t h = 0; h < c->heads; h++) {
    snprintf(num, sizeof num, "head %d", h);
    CHI_TRY((rows[h].label = chi_arena_strdup(&f->arena, num, err)) ? 0 : CHI_ERR_MEMORY);
    for (int32_t l = 0; l < c->n_layers; l++) v[l * c->heads + h] = (float)chi_contrib_head(c, l, h);
  }
  const float *values = v;
  chi_heatmap_spec s = {.title = f->title.s ? f->title.s : "",
                        .lines = f->lines,
                        .n_lines = 2,
                        .thumb = c->prompt->seen.rgb ? &c->prompt->seen : NULL,
                        .n_rows = c->heads,
                        .n_layers = c->n_layers,
                        .first_layer = c->layer[0],
                        .rows = rows,
                        .n_sites = 1,
                        .n_cols = 1,
                        .site_names = &site,
                        .values = &values,
                        .scale_label = "largest norm",
                        .top = 3};
  CHI_TRY(paths(f, "heads", path, err));
  for (int i = 0; i < 2; i++) CHI_TRY(chi_heatmap_save(&s, f->prov, path[i], err));
out:
  return rc;
}

/* The layers whose patches contribute most, in order of layers. */
static int pick_layers(const figure *f, int32_t pick[kMaps]) {
  const chi_contributions *c = f->c;
  int n = 0;
  while (n < kMaps && n < c->n_layers) {
    int32_t best = -1;
    for (int32_t l = 0; l < c->n_layers; l++) {
      bool taken = false;
      for (int k = 0; k < n; k++) taken |= pick[k] == l;
      if (!taken && (best < 0 || chi_contrib_mean(c, l) > chi_contrib_mean(c, best))) best = l;
    }
    pick[n++] = best;
  }
  for (int a = 1; a < n; a++)
    for (int b = a; b > 0 && pick[b - 1] > pick[b]; b--) {
      int32_t t = pick[b];
      pick[b] = pick[b - 1];
      pick[b - 1] = t;
    }
  return n;
}

static int draw_patches(figure *f, chi_err *err) {
  const chi_contributions *c = f->c;
  int rc = 0;
  char path[2][4096], name[kMaps][64];
  chi_overlay_map map[kMaps];
  chi_image whole = {0};
  int32_t pick[kMaps];
  if (c->n_sources_patch == 0 || c->grid_w == 0 || !c->prompt->seen.rgb) return 0;
  int n = pick_layers(f, pick);
  for (int k = 0; k < n; k++) {
    float *v = chi_arena_array(&f->arena, (size_t)c->n_patches, sizeof *v, err);
    CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
    double most = 0;
    for (int32_t i = 0; i < c->n_patches; i++) v[i] = NAN;
    for (int32_t j = 0; j < c->n_from; j++) {
      int32_t at = c->from[j] - c->first_patch;
      if (at < 0 || at >= c->n_patches) continue;
      v[at] = (float)chi_contrib_from(c, pick[k], j);
      most = fmax(most, (double)v[at]);
    }
    for (int32_t i = 0; i < c->n_patches && most > 0; i++) v[i] = (float)((double)v[i] / most);
    snprintf(name[k], sizeof name[k], "layer %d; full colour = %.3g", c->layer[pick[k]], most);
    map[k] = (chi_overlay_map){name[k], v};
  }
  /* The file may be gone or another one by now: then only the crop is drawn. */
  bool same = f->prov && f->prov->image_path && chi_image_load(&whole, f->prov->image_path, NULL) == 0 &&
              chi_streq(whole.sha256, c->prompt->image_sha);
  chi_overlay_spec s = {.title = f->title.s ? f->title.s : "",
                        .lines = f->lines,
                        .n_lines = 2,
                        .seen = &c->prompt->seen,
                        .original = same ? &whole : NULL,
                        .view = &c->prompt->view,
                        .grid_h = c->grid_h,
                        .grid_w = c->grid_w,
                        .n_maps = n,
                        .maps = map,
                        .sequential = true,
                        .limit = 1,
                        .scale_label = "norm, heads summed: share of the layer's largest",
                        .top = 3};
  CHI_TRY(paths(f, "patches", path, err));
  for (int i = 0; i < 2; i++) CHI_TRY(chi_overlay_save(&s, f->prov, path[i], err));
out:
  chi_image_free(&whole);
  return rc;
}

static int draw(const chi_contributions *c, const char *from, const char *to, const chi_provenance *prov,
                const char *dir, chi_err *err) {
  int rc = 0;
  char word[CHII_TOKEN];
  figure f = {.c = c, .prov = prov, .dir = dir};
  chii_question(c->model, c->prompt, &f.title);
  chii_token_word(c->model, c->answer, word);
  snprintf(f.answer, sizeof f.answer, "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f", word, c->final.p);
  snprintf(f.what, sizeof f.what, "what attention carries from %.60s (%d rows) to %.60s (%d row%s)", from, c->n_from,
           to, c->n_to, c->n_to == 1 ? "" : "s: the largest");
  f.lines[0] = f.answer;
  f.lines[1] = f.what;
  CHI_TRY(draw_curves(&f, err));
  CHI_TRY(draw_late(&f, err));
  CHI_TRY(draw_positions(&f, err));
  CHI_TRY(draw_heads(&f, err));
  CHI_TRY(draw_patches(&f, err));
out:
  chi_str_free(&f.title);
  chi_arena_free(&f.arena);
  return rc;
}

int chi_contributions_write(const chi_contributions *c, const char *from, const char *to, const chi_provenance *prov,
                            const char *dir, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_contributions_json(&j, c, from, to, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "contributions.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "contributions.csv", err));
  CHI_TRY(write_edges(c, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "layers.csv", err));
  CHI_TRY(write_layers(c, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "heads.csv", err));
  CHI_TRY(write_heads(c, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "contributions.safetensors", err));
  CHI_TRY(write_tensors(c, prov, path, err));
  CHI_TRY(draw(c, from, to, prov, dir, err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal -------------------------------------------------------------------------------------------- */
int chi_contributions_summary(const chi_contributions *c, const char *from, const char *to, int width, int top,
                              chi_str *out, chi_err *err) {
  static const char *const kHead[] = {"layer", "best head", "its norm", "max",     "mean",   "together",
                                      "of",    "late",      "if even",  "flipped", "rolled", "shuffled"},
                           *const kBest[] = {"head", "norm"};
  int rc = 0;
  char word[CHII_TOKEN];
  bool patches = c->n_sources_patch > 0;
  double share, even;
  chi_table *t = NULL;
  chii_token_word(c->model, c->answer, word);
  chi_str_addf(out, "answer  %s   p = %.4f\n", word, c->final.p);
  chi_str_addf(out, "from    %s: %d rows\nto      %s: %d rows\n\n", from, c->n_from, to, c->n_to);
  CHI_TRY(chi_table_new(&t, kHead, !patches ? "rrrrrrr" : c->control[0] ? "rrrrrrrrrrrr" : "rrrrrrrrr", err));
  for (int32_t l = 0; l < c->n_layers; l++) {
    int32_t h = best_head(c, l);
    chi_table_cell(t, "%d", c->layer[l]);
    chi_table_cell(t, "%d", h);
    chi_table_cell(t, "%.4f", chi_contrib_head(c, l, h));
    chi_table_cell(t, "%.4f", chi_contrib_max(c, l));
    chi_table_cell(t, "%.4f", chi_contrib_mean(c, l));
    chi_table_cell(t, "%.4f", chi_contrib_group(c, l));
    chi_table_cell(t, "%.4f", out_norm(c, l));
    if (!patches || !chi_contrib_late(c, l, &share, &even)) continue;
    chi_table_cell(t, "%.3f", share);
    chi_table_cell(t, "%.3f", even);
    for (int k = 0; k < CHI_CONTRIB_CONTROLS && c->control[k]; k++)
      chi_table_cell(t, "%.3f", chi_contrib_late(c->control[k], l, &share, &even) ? share : NAN);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  chi_str_add(
      out,
      "(norms over pairs of rows, heads summed but in `its norm`; together: all sources as one vector; of: the\n"
      " whole attention output)\n");
  if (patches)
    chi_str_addf(out, "(late: share of the last %d of %d patches, %.3f of them; if even: with even attention)\n",
                 c->n_late, c->n_sources_patch, (double)c->n_late / (double)c->n_sources_patch);
  if (patches && c->control[0])
    chi_str_add(
        out,
        "(flipped, rolled, shuffled: share of the same rows with the picture upside down, with it moved down by a\n"
        " random number of rows, with its patches shuffled)\n");
  chi_table_free(t);
  t = NULL;
  chi_str_add(out, "\n");
  CHI_TRY(chi_table_new(&t, kBest, "lr", err));
  double under = INFINITY;
  for (int k = 0; k < top && k < c->n_layers * c->heads; k++) {
    double best = -1;
    for (int i = 0; i < c->n_layers * c->heads; i++) {
      double x = chi_contrib_head(c, i / c->heads, i % c->heads);
      if (x < under && x > best) best = x;
    }
    for (int i = 0; best >= 0 && i < c->n_layers * c->heads; i++) {
      if (chi_contrib_head(c, i / c->heads, i % c->heads) != best) continue;
      chi_table_cell(t, "%d_%d", c->layer[i / c->heads], i % c->heads);
      chi_table_cell(t, "%.4f", best);
    }
    under = best;
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  return rc;
}

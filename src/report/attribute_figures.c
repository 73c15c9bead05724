/* Pictures of attributions; see attribute_report.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/attribute_report.h"
#include "report/prompt_text.h"

enum { kLine = 200, kColumns = 3 };

typedef struct figure {
  const chi_attribution *a;
  const chi_provenance *prov;
  const char *dir;
  chi_arena arena;
  chi_str title;
  char target[CHII_TOKEN], versus[CHII_TOKEN];
  char line[3][kLine];
  const char *lines[3];
  size_t n_lines;
  char scale[kLine];
  const char *col[kColumns];
  chi_err *err;
} figure;

static double value_of(const chi_attr_score *s, int column) {
  return column == 2 ? s->logit[0] - s->logit[1] : s->increase[column];
}

static void set_words(figure *f) {
  const chi_attribution *a = f->a;
  chii_question(a->model, a->prompt, &f->title);
  chii_token_word(a->model, a->target[0], f->target);
  snprintf(f->line[0], kLine, "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f", f->target, a->final[0].p);
  f->n_lines = 1;
  f->col[0] = f->target;
  if (a->n_targets > 1) {
    chii_token_word(a->model, a->target[1], f->versus);
    size_t n = strlen(f->line[0]);
    snprintf(f->line[0] + n, kLine - n, "; versus \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f", f->versus, a->final[1].p);
    f->col[1] = f->versus;
    f->col[2] = "difference";
  }
  if (chii_unseen(a->prompt, f->line[1], kLine)) f->n_lines = 2;
  snprintf(f->line[2], kLine, "how much log p rises when what the part writes at the last token is added to its input");
  for (size_t i = 0; i < 3; i++) f->lines[i] = f->line[i];
  snprintf(f->scale, sizeof f->scale, "increase of log p(%s)", a->n_targets > 1 ? "token" : f->target);
}

static int save(figure *f, chi_heatmap_spec *s, const char *name, chi_str *files) {
  static const char *const kEnd[] = {"png", "svg"};
  int rc = 0;
  char path[4096], file[64];
  s->title = f->title.s ? f->title.s : "";
  const char *lines[3] = {f->line[0], f->n_lines > 1 ? f->line[1] : f->line[2], f->line[2]};
  s->lines = lines;
  s->n_lines = f->n_lines + 1;
  s->thumb = f->a->prompt->seen.rgb ? &f->a->prompt->seen : NULL;
  s->n_layers = f->a->layers;
  s->n_sites = 1;
  s->n_cols = f->a->n_targets > 1 ? kColumns : 1;
  s->col_names = f->a->n_targets > 1 ? f->col : NULL;
  if (s->n_rows > 3) s->scale_label = f->scale;
  for (int i = 0; i < 2; i++) {
    snprintf(file, sizeof file, "%s.%s", name, kEnd[i]);
    CHI_TRY(chi_path_join(path, sizeof path, f->dir, file, f->err));
    CHI_TRY(chi_heatmap_save(s, f->prov, path, f->err));
  }
  chi_str_addf(files, " %s.{png,svg}", name);
out:
  return rc;
}

/* Rows = heads, columns = layers. */
static int draw_heads(figure *f, chi_str *files) {
  int rc = 0;
  const chi_attribution *a = f->a;
  int H = a->heads, L = a->layers;
  const float *values[kColumns] = {0};
  const char *site = "attention heads";
  char num[16];
  chi_heat_row *rows = chi_arena_array(&f->arena, (size_t)H, sizeof *rows, f->err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int j = 0; j < H; j++) {
    snprintf(num, sizeof num, "head %d", j);
    rows[j].label = chi_arena_strdup(&f->arena, num, f->err);
    CHI_TRY(rows[j].label ? 0 : CHI_ERR_MEMORY);
  }
  for (int c = 0; c < (a->n_targets > 1 ? kColumns : 1); c++) {
    float *v = chi_arena_array(&f->arena, (size_t)(L * H), sizeof *v, f->err);
    CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
    for (int i = 0; i < L * H; i++) v[i] = (float)value_of(&a->head[i], c);
    values[c] = v;
  }
  chi_heatmap_spec s = {.n_rows = H, .rows = rows, .site_names = &site, .values = values, .top = 10};
  if (L * H < 40) s.top = 3;
  CHI_TRY(save(f, &s, "heads", files));
out:
  return rc;
}

static int draw_layers(figure *f, chi_str *files) {
  int rc = 0;
  const chi_attribution *a = f->a;
  const float *values[kColumns] = {0};
  const char *site = "attention and MLP";
  const chi_heat_row rows[] = {{.label = "attention"}, {.label = "MLP"}};
  for (int c = 0; c < (a->n_targets > 1 ? kColumns : 1); c++) {
    float *v = chi_arena_array(&f->arena, (size_t)(2 * a->layers), sizeof *v, f->err);
    CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
    for (int l = 0; l < a->layers; l++) {
      v[2 * l] = (float)value_of(&a->attn[l], c);
      v[2 * l + 1] = (float)value_of(&a->mlp[l], c);
    }
    values[c] = v;
  }
  chi_heatmap_spec s = {.n_rows = 2, .rows = rows, .site_names = &site, .values = values, .top = 3};
  CHI_TRY(save(f, &s, "layers", files));
out:
  return rc;
}

/* ---- the picture ----------------------------------------------------------------------------------------- */
enum { kMaps = 4 };

typedef struct maps {
  chi_overlay_map map[kMaps];
  float *v[kMaps];
  char name[kMaps][kLine];
  int n;
} maps;

/* One map from `x` [rows]; its name tells the largest value, because colours are shares of it. */
static int add_map(figure *f, maps *m, const double *x, const char *name) {
  chi_patches g = chi_patches_of(f->a->model, f->a->prompt);
  float *v = chi_arena_array(&f->arena, (size_t)g.n, sizeof *v, f->err);
  if (!v) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < g.n; i++) v[i] = (float)x[g.first + i];
  snprintf(m->name[m->n], kLine, "%s", name);
  m->v[m->n] = v;
  m->map[m->n] = (chi_overlay_map){m->name[m->n], v};
  m->n++;
  return 0;
}

/* Maps [from, to) become shares of their largest value. */
static void scale_maps(const figure *f, maps *m, int from, int to) {
  chi_patches g = chi_patches_of(f->a->model, f->a->prompt);
  double most = 0;
  for (int k = from; k < to; k++)
    for (int32_t i = 0; i < g.n; i++) most = fmax(most, fabs((double)m->v[k][i]));
  for (int k = from; k < to; k++) {
    size_t n = strlen(m->name[k]);
    if (most > 1e-6)
      snprintf(m->name[k] + n, kLine - n, "; full colour = %.3g", most);
    else
      snprintf(m->name[k] + n, kLine - n, "; flat: nothing to see");
    for (int32_t i = 0; i < g.n; i++) m->v[k][i] = most > 1e-6 ? (float)((double)m->v[k][i] / most) : 0;
  }
}

/* A map that is never 0, as attention is: its smallest value is the zero, for its differences are what one looks at. */
static void stretch_map(const figure *f, maps *m, int k) {
  chi_patches g = chi_patches_of(f->a->model, f->a->prompt);
  float *v = m->v[k], lo = v[0], hi = v[0];
  size_t n = strlen(m->name[k]);
  for (int32_t i = 0; i < g.n; i++) lo = fminf(lo, v[i]), hi = fmaxf(hi, v[i]);
  if (hi - lo > 1e-6f)
    snprintf(m->name[k] + n, kLine - n, "; from %.3g (no colour) to %.3g (full)", (double)lo, (double)hi);
  else
    snprintf(m->name[k] + n, kLine - n, "; flat: nothing to see");
  for (int32_t i = 0; i < g.n; i++) v[i] = hi - lo > 1e-6f ? (v[i] - lo) / (hi - lo) : 0;
}

static int add_maps(figure *f, maps *m, double *x) {
  int rc = 0;
  const chi_attribution *a = f->a;
  char heads[96], name[kLine];
  size_t n = 0;
  heads[0] = 0;
  for (int i = 0; i < a->n_positions && i < 4; i++)
    n += (size_t)snprintf(heads + n, sizeof heads - n, "%s%d_%d", i ? " + " : "", a->pos_head[i].layer,
                          a->pos_head[i].head);
  if (a->n_positions > 4) snprintf(heads + n, sizeof heads - n, " + %d more (sum)", a->n_positions - 4);
  CHI_TRY(add_map(f, m, a->avg_attention, "average attention of all heads"));
  for (int t = 0; t < a->n_targets; t++) {
    chi_attribution_sum(a, t, x);
    snprintf(name, sizeof name, "increase of log p(%s), head%s %s", t ? f->versus : f->target,
             a->n_positions > 1 ? "s" : "", heads);
    CHI_TRY(add_map(f, m, x, name));
  }
  if (a->n_targets > 1) {
    for (int32_t r = 0; r < a->rows; r++) {
      x[r] = 0;
      for (int i = 0; i < a->n_positions; i++) x[r] += value_of(&a->pos[(int64_t)i * a->rows + r], 2);
    }
    snprintf(name, sizeof name, "difference: speaks for %s (red) or for %s (blue)", f->target, f->versus);
    CHI_TRY(add_map(f, m, x, name));
  }
  stretch_map(f, m, 0);
  scale_maps(f, m, 1, m->n);
out:
  return rc;
}

/* Average attention and increase on the patches, on the crop and on the whole picture. */
static int draw_patches(figure *f, chi_str *files) {
  static const char *const kFile[] = {"patches.png", "patches.svg"};
  int rc = 0;
  const chi_attribution *a = f->a;
  chi_patches g = chi_patches_of(a->model, a->prompt);
  char path[4096];
  maps m = {0};
  chi_image whole = {0};
  if (g.grid_w == 0 || !a->prompt->seen.rgb) return 0;
  double *x = chi_arena_array(&f->arena, (size_t)a->rows, sizeof *x, f->err);
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(add_maps(f, &m, x));
  /* The file may be gone or another one by now: then only the crop is drawn. */
  bool same = f->prov && f->prov->image_path && chi_image_load(&whole, f->prov->image_path, NULL) == 0 &&
              chi_streq(whole.sha256, a->prompt->image_sha);
  chi_overlay_spec s = {.title = f->title.s ? f->title.s : "",
                        .lines = f->lines,
                        .n_lines = f->n_lines,
                        .seen = &a->prompt->seen,
                        .original = same ? &whole : NULL,
                        .view = &a->prompt->view,
                        .grid_h = g.grid_h,
                        .grid_w = g.grid_w,
                        .n_maps = m.n,
                        .maps = m.map,
                        .limit = 1,
                        .scale_label = "share of the full colour",
                        .top = 3};
  for (int i = 0; i < 2; i++) {
    CHI_TRY(chi_path_join(path, sizeof path, f->dir, kFile[i], f->err));
    CHI_TRY(chi_overlay_save(&s, f->prov, path, f->err));
  }
  chi_str_add(files, " patches.{png,svg}");
out:
  chi_image_free(&whole);
  return rc;
}

int chi_attribution_figures(const chi_attribution *a, const chi_provenance *prov, const char *dir, chi_str *files,
                            chi_err *err) {
  int rc = 0;
  figure f = {.a = a, .prov = prov, .dir = dir, .err = err};
  set_words(&f);
  CHI_TRY(draw_heads(&f, files));
  CHI_TRY(draw_layers(&f, files));
  CHI_TRY(draw_patches(&f, files));
out:
  chi_str_free(&f.title);
  chi_arena_free(&f.arena);
  return rc;
}

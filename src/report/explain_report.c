/* Writing explainers' maps; see explain_report.h. */
#include "report/explain_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/mapscore.h"
#include "report/prompt_text.h"

enum { kTop = 3, kLine = 240, kSheet = 4 }; /* maps of one picture, so that it can be read */

static const chi_explained *find(const chi_explained *x, int n, const char *name) {
  for (int i = 0; i < n; i++)
    if (x[i].map && chi_streq(x[i].x->name, name)) return &x[i];
  return NULL;
}

static bool flat(const chi_explain *e, const double *map) {
  double lo = INFINITY, hi = -INFINITY;
  for (int32_t i = 0; i < e->n; i++) lo = fmin(lo, map[i]), hi = fmax(hi, map[i]);
  return !(hi - lo > 1e-9 * fmax(fabs(lo), fabs(hi)));
}

static void patch_word(const chi_explain *e, int32_t i, char *out, size_t cap) {
  const chi_patches *g = &e->remover->grid;
  if (g->grid_w)
    snprintf(out, cap, "%d,%d", i / g->grid_w, i % g->grid_w);
  else
    snprintf(out, cap, "%d", i);
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */
static json_t *nums(const double *x, int32_t n) {
  json_t *list = json_array();
  int bad = 0;
  for (int32_t i = 0; i < n; i++) bad |= json_array_append_new(list, chi_json_num(x[i]));
  if (!bad) return list;
  json_decref(list);
  return NULL;
}

/* Relative error |a - exact| / |exact|, correlation and rank correlation of the linear approximation. */
static json_t *approximation(const chi_explain *e, const double *a, const double *exact) {
  double d2 = 0, x2 = 0;
  for (int32_t i = 0; i < e->n; i++) d2 += (a[i] - exact[i]) * (a[i] - exact[i]), x2 += exact[i] * exact[i];
  return json_pack("{s:s,s:o,s:o,s:o}", "exact", "remove-mean", "relative_error",
                   chi_json_num(x2 > 0 ? sqrt(d2 / x2) : NAN), "pearson", chi_json_num(chi_map_pearson(a, exact, e->n)),
                   "spearman", chi_json_num(chi_map_spearman(a, exact, e->n)));
}

static int map_json(json_t *list, const chi_explain *e, const chi_explained *x, const chi_explained *all, int n) {
  static const char *const kExact[] = {"remove-mean", "cut-text", "occlude"};
  json_t *o = json_pack("{s:s,s:s,s:b}", "explainer", x->x->name, "what", x->x->doc, "baseline", x->x->baseline);
  int bad = 0;
  if (!x->map) {
    bad |= json_object_set_new(o, "unsupported", chi_json_text(x->why));
    return bad | json_array_append_new(list, o);
  }
  bad |= json_object_set_new(o, "flat", json_boolean(flat(e, x->map)));
  bad |= json_object_set_new(o, "map", nums(x->map, e->n));
  json_t *agree = json_object();
  for (size_t k = 0; k < sizeof kExact / sizeof *kExact; k++) {
    const chi_explained *r = find(all, n, kExact[k]);
    if (r) bad |= json_object_set_new(agree, kExact[k], chi_json_num(chi_map_spearman(x->map, r->map, e->n)));
  }
  bad |= json_object_set_new(o, "spearman_with", agree);
  const chi_explained *exact = find(all, n, "remove-mean");
  if (exact && chi_streq(x->x->name, "attribution-patching"))
    bad |= json_object_set_new(o, "approximation", approximation(e, x->map, exact->map));
  return bad | json_array_append_new(list, o);
}

int chi_explain_json(json_t **out, const chi_explain *e, const chi_explained *x, int n, const chi_provenance *prov,
                     chi_err *err) {
  json_t *o = NULL, *maps = json_array();
  chi_str q = {0};
  int bad = 0, rc = chi_report_json(&o, "explain", prov, err);
  if (rc) goto out;
  chii_question(e->model, e->prompt, &q);
  bad |= json_object_set_new(o, "question", chi_json_text(q.s ? q.s : ""));
  json_t *t = chii_token_json(e->model, e->opts.target);
  bad |= json_object_set_new(t, "p", chi_json_num(e->remover->clean.p));
  bad |= json_object_set_new(t, "logp", chi_json_num(e->remover->clean.logp));
  bad |= json_object_set_new(o, "target", t);
  bad |= json_object_set_new(o, "picture", chii_picture_json(e->model, e->prompt));
  bad |= json_object_set_new(o, "integrated_gradient_steps", json_integer(e->opts.steps));
  bad |= json_object_set_new(o, "increase_top_heads", json_integer(e->opts.n_heads));
  for (int i = 0; i < n; i++) bad |= map_json(maps, e, &x[i], x, n);
  bad |= json_object_set(o, "explainers", maps);
  rc = bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
out:
  chi_str_free(&q);
  json_decref(maps);
  if (rc)
    json_decref(o);
  else
    *out = o;
  return rc;
}

/* ---- CSV --------------------------------------------------------------------------------------------------- */
static int write_csv(const chi_explain *e, const chi_explained *x, int n, const char *path, chi_err *err) {
  static const char *const kHead[] = {"explainer", "row", "patch_row", "patch_col", "value"};
  int rc = 0;
  chi_csv *c = NULL;
  const chi_patches *g = &e->remover->grid;
  CHI_TRY(chi_csv_open(&c, path, kHead, 5, err));
  for (int k = 0; k < n; k++)
    for (int32_t i = 0; i < e->n && x[k].map; i++) {
      chi_csv_str(c, x[k].x->name);
      chi_csv_int(c, g->first + i);
      if (g->grid_w) {
        chi_csv_int(c, i / g->grid_w);
        chi_csv_int(c, i % g->grid_w);
      } else {
        chi_csv_str(c, NULL);
        chi_csv_str(c, NULL);
      }
      chi_csv_num(c, x[k].map[i]);
      CHI_TRY(chi_csv_row(c, err));
    }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- picture ----------------------------------------------------------------------------------------------- */
typedef struct drawing {
  const chi_explain *e;
  chi_arena arena;
  chi_overlay_map *map;
  int n;
  chi_err *err;
} drawing;

/* A map as shares of its largest value; where no value is below 0, its smallest value is the zero (rollout and
 * attention are never 0, and their differences are what one looks at). */
static int add_map(drawing *d, const chi_explained *x) {
  const chi_explain *e = d->e;
  float *v = chi_arena_array(&d->arena, (size_t)e->n, sizeof *v, d->err);
  char name[kLine];
  double lo = INFINITY, hi = -INFINITY;
  if (!v) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < e->n; i++) lo = fmin(lo, x->map[i]), hi = fmax(hi, x->map[i]);
  bool same_sign = lo >= 0 || hi <= 0;
  double zero = same_sign ? lo : 0, most = same_sign ? hi - lo : fmax(hi, -lo);
  if (flat(e, x->map))
    snprintf(name, sizeof name, "%s: flat, nothing to see", x->x->name);
  else if (same_sign)
    snprintf(name, sizeof name, "%s: from %.3g (no colour) to %.3g (full)", x->x->name, lo, hi);
  else
    snprintf(name, sizeof name, "%s: full colour = %.3g", x->x->name, most);
  for (int32_t i = 0; i < e->n; i++) v[i] = flat(e, x->map) ? 0 : (float)((x->map[i] - zero) / most);
  char *kept = chi_arena_strdup(&d->arena, name, d->err);
  if (!kept) return CHI_ERR_MEMORY;
  d->map[d->n++] = (chi_overlay_map){kept, v};
  return 0;
}

static int draw(const chi_explain *e, const chi_explained *x, int n, double scale, const chi_provenance *prov,
                const char *dir, chi_str *files, chi_err *err) {
  static const char *const kEnd[] = {"png", "svg"};
  int rc = 0;
  const chi_patches *g = &e->remover->grid;
  drawing d = {.e = e, .err = err};
  chi_image whole = {0};
  chi_str title = {0};
  char path[4096], file[64], word[CHII_TOKEN], answer[kLine], unseen[kLine];
  const char *lines[2] = {answer, unseen};
  if (g->grid_w == 0 || !e->prompt->seen.rgb) return 0;
  d.map = chi_arena_array(&d.arena, (size_t)n, sizeof *d.map, err);
  CHI_TRY(d.map ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++)
    if (x[i].map) CHI_TRY(add_map(&d, &x[i]));
  if (d.n == 0) goto out;
  chii_question(e->model, e->prompt, &title);
  chii_token_word(e->model, e->opts.target, word);
  snprintf(answer, sizeof answer, "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f", word, e->remover->clean.p);
  bool cropped = chii_unseen(e->prompt, unseen, sizeof unseen);
  /* the file may be gone or another one by now: then only the crop is drawn */
  bool same = prov && prov->image_path && chi_image_load(&whole, prov->image_path, NULL) == 0 &&
              chi_streq(whole.sha256, e->prompt->image_sha);
  chi_overlay_spec s = {.title = title.s ? title.s : "",
                        .lines = lines,
                        .n_lines = cropped ? 2 : 1,
                        .seen = &e->prompt->seen,
                        .original = same ? &whole : NULL,
                        .view = &e->prompt->view,
                        .grid_h = g->grid_h,
                        .grid_w = g->grid_w,
                        .limit = 1,
                        .scale_label = "share of the full colour",
                        .top = kTop,
                        .scale = scale};
  for (int at = 0; at < d.n; at += kSheet) {
    s.maps = d.map + at;
    s.n_maps = d.n - at < kSheet ? d.n - at : kSheet;
    for (int i = 0; i < 2; i++) {
      if (d.n > kSheet)
        snprintf(file, sizeof file, "explain-%d.%s", at / kSheet + 1, kEnd[i]);
      else
        snprintf(file, sizeof file, "explain.%s", kEnd[i]);
      CHI_TRY(chi_path_join(path, sizeof path, dir, file, err));
      CHI_TRY(chi_overlay_save(&s, prov, path, err));
    }
  }
  chi_str_addf(files, " explain%s.{png,svg}", d.n > kSheet ? "-N" : "");
out:
  chi_image_free(&whole);
  chi_str_free(&title);
  chi_arena_free(&d.arena);
  return rc;
}

int chi_explain_write(const chi_explain *e, const chi_explained *x, int n, double scale, const chi_provenance *prov,
                      const char *dir, chi_str *files, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_explain_json(&j, e, x, n, prov, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "explain.json", err));
  CHI_TRY(chi_json_save(j, path, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "explain.csv", err));
  CHI_TRY(write_csv(e, x, n, path, err));
  chi_str_add(files, "explain.{json,csv}");
  CHI_TRY(draw(e, x, n, scale, prov, dir, files, err));
out:
  json_decref(j);
  return rc;
}

/* ---- terminal ---------------------------------------------------------------------------------------------- */
static void rank_cell(chi_table *t, const chi_explain *e, const chi_explained *x, const chi_explained *with) {
  double r = with ? chi_map_spearman(x->map, with->map, e->n) : NAN;
  if (isnan(r))
    chi_table_cell(t, "-");
  else
    chi_table_cell(t, "%.2f", r);
}

int chi_explain_summary(const chi_explain *e, const chi_explained *x, int n, int width, chi_str *out, chi_err *err) {
  static const char *const kHead[] = {"explainer",         "highest patches", "largest",
                                      "rank: remove-mean", "rank: cut-text",  "time"};
  int rc = 0;
  chi_table *t = NULL;
  char word[CHII_TOKEN], unseen[kLine];
  int32_t *order = chi_calloc((size_t)e->n, sizeof *order, err);
  const chi_explained *mean = find(x, n, "remove-mean"), *cut = find(x, n, "cut-text");
  CHI_TRY(order ? 0 : CHI_ERR_MEMORY);
  chii_token_word(e->model, e->opts.target, word);
  chi_str_addf(out, "answer \"%s\": p = %.3f\n", word, e->remover->clean.p);
  if (chii_unseen(e->prompt, unseen, sizeof unseen)) chi_str_addf(out, "%s\n", unseen);
  CHI_TRY(chi_table_new(&t, kHead, "llrrrr", err));
  for (int k = 0; k < n; k++) {
    char top[kTop * 24] = "", one[24];
    if (!x[k].map) continue;
    CHI_TRY(chi_map_order(order, x[k].map, e->n, 0, err));
    for (int i = 0; i < kTop && i < e->n; i++) {
      patch_word(e, order[i], one, sizeof one);
      snprintf(top + strlen(top), sizeof top - strlen(top), "%s%s", i ? "  " : "", one);
    }
    chi_table_cell(t, "%s", x[k].x->name);
    chi_table_cell(t, "%s", flat(e, x[k].map) ? "flat" : top);
    chi_table_cell(t, "%.3g", x[k].map[order[0]]);
    rank_cell(t, e, &x[k], mean);
    rank_cell(t, e, &x[k], cut);
    chi_table_cell(t, x[k].seconds < 1 ? "%.0f ms" : "%.1f s", x[k].seconds < 1 ? 1e3 * x[k].seconds : x[k].seconds);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  if (mean || cut) chi_str_add(out, "rank: Spearman's correlation with the exact map over the patches\n");
  for (int k = 0; k < n; k++)
    if (!x[k].map) chi_str_addf(out, "%s: %s\n", x[k].x->name, x[k].why);
out:
  chi_table_free(t);
  chi_free(order);
  return rc;
}

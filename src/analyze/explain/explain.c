/* The table of explainers and what they share; see explain.h. */
#include "analyze/explain.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/explain/internal.h"
#include "analyze/lens.h"

static const chi_explainer kExplainers[] = {
#define CHI_EXPLAINER(name, uses, baseline, fn, arg, doc) {name, uses, baseline, fn, arg, doc},
#include "analyze/explain/explainers.def"
#undef CHI_EXPLAINER
};
enum { kCount = sizeof kExplainers / sizeof *kExplainers };

const chi_explainer *chi_explainers(int *n) {
  *n = kCount;
  return kExplainers;
}

static int find(const char *name, size_t len) {
  for (int i = 0; i < kCount; i++)
    if (strlen(kExplainers[i].name) == len && strncmp(kExplainers[i].name, name, len) == 0) return i;
  return -1;
}

int chi_explainers_parse(const chi_explainer ***out, int *n, const char *text, chi_err *err) {
  int rc = 0;
  bool taken[kCount] = {false}, all = chi_streq(text, "all");
  chi_str names = {0};
  const chi_explainer **list = chi_calloc(kCount, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  *n = 0;
  for (int i = 0; i < kCount && all; i++) list[(*n)++] = &kExplainers[i];
  for (const char *p = text; !all && p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    size_t len = strcspn(p, ",");
    int i = find(p, len);
    if (i < 0) {
      for (int k = 0; k < kCount; k++) chi_str_addf(&names, "%s%s", k ? ", " : "", kExplainers[k].name);
      rc = chi_fail(err, CHI_ERR_ARG, "there is no explainer '%.*s'; there are %s", (int)(len < 60 ? len : 60), p,
                    names.s ? names.s : "");
      goto out;
    }
    if (taken[i]) {
      rc = chi_fail(err, CHI_ERR_ARG, "explainer '%s' is named twice", kExplainers[i].name);
      goto out;
    }
    taken[i] = true;
    list[(*n)++] = &kExplainers[i];
  }
out:
  chi_str_free(&names);
  if (rc)
    chi_free(list);
  else
    *out = list;
  return rc;
}

int chi_explain_open(chi_explain **out, const chi_model *m, const chi_prompt *p, const chi_explain_opts *o,
                     chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  chi_explain *e = chi_calloc(1, sizeof *e, err);
  CHI_TRY(e ? 0 : CHI_ERR_MEMORY);
  e->model = m, e->prompt = p, e->opts = *o;
  if (e->opts.n_heads <= 0) e->opts.n_heads = 10;
  if (e->opts.steps <= 0) e->opts.steps = 50;
  CHI_TRY(chi_remover_open(&e->remover, m, p, o->target, o->seed, o->mem, err));
  e->n = e->remover->n;
  e->opts.target = e->remover->target;
out:
  chi_fp_end(fp);
  if (rc)
    chi_explain_close(e);
  else
    *out = e;
  return rc;
}

void chi_explain_close(chi_explain *e) {
  if (!e) return;
  chi_remover_close(e->remover);
  chi_attribution_free(e->attr);
  chi_free(e);
}

int chi_explain_map(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  unsigned fp = chi_fp_begin();
  memset(map, 0, (size_t)e->n * sizeof *map);
  int rc = x->run(e, x, map, err);
  chi_fp_end(fp);
  return rc;
}

/* ---- from one attribution -------------------------------------------------------------------------------- */
static int attribute(chi_explain *e, chi_err *err) {
  if (e->attr) return 0;
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  int32_t all = e->model->net.decoder.spec.layers * e->model->net.decoder.spec.heads;
  o.target = e->opts.target;
  o.n_heads = e->opts.n_heads < all ? e->opts.n_heads : all;
  o.mem = e->opts.mem;
  return chi_attribute_run(&e->attr, e->model, e->prompt, &o, err);
}

/* Values of the decoder's rows -> of the patches. */
static void patches(const chi_explain *e, const double *rows, double *map) {
  memcpy(map, rows + e->remover->grid.first, (size_t)e->n * sizeof *map);
}

int chii_explain_increase(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  chi_attribution *own = NULL;
  int32_t first = e->remover->grid.first;
  CHI_TRY(attribute(e, err));
  const chi_attribution *a = e->attr;
  if (x->arg == CHII_PICTURE) {
    chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
    o.target = e->opts.target, o.by_picture = true, o.mem = e->opts.mem;
    CHI_TRY(chi_attribute_run(&own, e->model, e->prompt, &o, err));
    a = own;
  }
  for (int32_t h = 0; h < (x->arg == CHII_TOP ? a->n_positions : 1); h++)
    for (int32_t i = 0; i < e->n; i++) map[i] += a->pos[(int64_t)h * a->rows + first + i].increase[0];
out:
  chi_attribution_free(own);
  return rc;
}

int chii_explain_all_heads(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  double *rows = NULL;
  (void)x;
  CHI_TRY(attribute(e, err));
  CHI_TRY((rows = chi_calloc((size_t)e->attr->rows, sizeof *rows, err)) ? 0 : CHI_ERR_MEMORY);
  chi_attribution_all_heads(e->attr, 0, rows);
  patches(e, rows, map);
out:
  chi_free(rows);
  return rc;
}

int chii_explain_attention(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  (void)x;
  int rc = attribute(e, err);
  if (rc == 0) patches(e, e->attr->avg_attention, map);
  return rc;
}

/* ---- from the states of the patches' own rows ------------------------------------------------------------- */
/* The largest over layers of p(target) where the patch's state is read with the model's own final norm and head. */
int chii_explain_lens(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = 0;
  chi_lens *l = NULL;
  (void)x;
  int32_t *rows = chi_calloc((size_t)e->n, sizeof *rows, err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < e->n; i++) rows[i] = e->remover->grid.first + i;
  chi_lens_opts o = {.rows = rows, .n_rows = e->n, .k = 1, .words = &e->opts.target, .n_words = 1, .mem = e->opts.mem};
  CHI_TRY(chi_lens_run(&l, e->model, e->prompt, &o, err));
  for (int32_t i = 0; i < e->n; i++) {
    double best = -INFINITY;
    for (int32_t c = 0; c < l->n_layers; c++) best = fmax(best, (double)l->cell.word_score[i * l->n_layers + c]);
    map[i] = chi_exp64(best);
  }
out:
  chi_lens_free(l);
  chi_free(rows);
  return rc;
}

/* ---- by taking patches away ------------------------------------------------------------------------------- */
int chii_explain_remove(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  int rc = chi_remove_each(e->remover, (chi_removal)x->arg, map, err);
  for (int32_t i = 0; rc == 0 && i < e->n; i++) map[i] = e->remover->clean.logp - map[i];
  return rc;
}

int chi_explain_share(chi_explain *const *e, int n, const chi_explainer *const *which, int n_which, const bool *skip,
                      chi_err *err) {
  int rc = 0;
  chi_remover **r = chi_calloc((size_t)n, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (int i = 0; i < n; i++) r[i] = e[i]->remover;
  for (int k = 0; k < n_which && n > 0; k++) {
    if ((skip && skip[k]) || which[k]->run != chii_explain_remove) continue;
    chi_removal how = (chi_removal)which[k]->arg;
    if (chi_removal_possible(r[0], how)) CHI_TRY(chi_remove_each_of(r, n, how, err));
  }
out:
  chi_free(r);
  return rc;
}

/* ---- baselines -------------------------------------------------------------------------------------------- */
int chii_explain_random(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  (void)x, (void)err;
  for (int32_t i = 0; i < e->n; i++) map[i] = (double)chi_rng_u32(e->opts.seed, 1, (uint32_t)i, 0) / 4294967296.0;
  return 0;
}

int chii_explain_centre(chi_explain *e, const chi_explainer *x, double *map, chi_err *err) {
  const chi_patches *g = &e->remover->grid;
  (void)x;
  if (g->grid_w == 0)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "centre: this model's picture rows are no patches on a grid");
  for (int32_t i = 0; i < e->n; i++) {
    double r = i / g->grid_w - (g->grid_h - 1) / 2.0, c = i % g->grid_w - (g->grid_w - 1) / 2.0;
    map[i] = -(r * r + c * c);
  }
  return 0;
}

/* Transfer studies: attention contributions, edges cut in windows, the entity's name in the lens. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/contributions.h"
#include "analyze/knockout.h"
#include "analyze/lens.h"
#include "study/job.h"

/* ---- contributions --------------------------------------------------------------------------------------- */
typedef double (*layer_fn)(const chi_contributions *c, int32_t l);

static int put_layers(chi_study_job *j, const chi_contributions *c, const char *way, const char *what, layer_fn fn,
                      chi_err *err) {
  int64_t dim = c->n_layers;
  float *v = chi_study_floats(j, (size_t)dim, err);
  if (!v) return CHI_ERR_MEMORY;
  for (int32_t l = 0; l < c->n_layers; l++) v[l] = (float)fn(c, l);
  return chi_study_put(j, v, 1, &dim, err, "contributions/%s/%s/%s", j->ask_name, way, what);
}

static double late_share(const chi_contributions *c, int32_t l) {
  double share, even;
  return chi_contrib_late(c, l, &share, &even) ? share : NAN;
}

static double late_even(const chi_contributions *c, int32_t l) {
  double share, even;
  return chi_contrib_late(c, l, &share, &even) ? even : NAN;
}

/* Whether the last patches matter by their place or by what they show. */
static int put_controls(chi_study_job *j, const chi_contributions *c, const char *way, chi_err *err) {
  int rc = 0;
  char name[64];
  for (int k = 0; k < CHI_CONTRIB_CONTROLS && c->control[k]; k++) {
    snprintf(name, sizeof name, "late_%s", chi_contrib_control_name[k]);
    CHI_TRY(put_layers(j, c->control[k], way, name, late_share, err));
    snprintf(name, sizeof name, "late_%s_content", chi_contrib_control_name[k]);
    CHI_TRY(put_layers(j, c->control[k], way, name, chi_contrib_late_content, err));
    snprintf(name, sizeof name, "late_%s_even", chi_contrib_control_name[k]);
    CHI_TRY(put_layers(j, c->control[k], way, name, late_even, err));
  }
out:
  return rc;
}

/* Rows of all bracketed words. */
static int words_rows(chi_study_job *j, int32_t **out, int32_t *n, chi_err *err) {
  const chi_prompt *p = j->prompt;
  *n = 0;
  if (!(*out = chi_arena_array(&j->arena, (size_t)p->n_rows + 1, sizeof **out, err))) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < p->n_spans; i++)
    for (int32_t r = p->span[i].lo; r < p->span[i].hi; r++) (*out)[(*n)++] = r;
  return 0;
}

static int one_way(chi_study_job *j, const char *way, const int32_t *from, int32_t n_from, const int32_t *to,
                   int32_t n_to, chi_err *err) {
  int rc = 0;
  chi_contributions *c = NULL;
  bool picture = from[0] == j->prompt->image_row;
  chi_contributions_opts o = {.from = from, .n_from = n_from, .to = to, .n_to = n_to, .mem = j->opts->mem};
  o.controls = picture && j->prompt->pixels;
  o.seed = j->seed;
  CHI_TRY(chi_contributions_run(&c, j->model, j->prompt, &o, err));
  CHI_TRY(put_layers(j, c, way, "max", chi_contrib_max, err));
  CHI_TRY(put_layers(j, c, way, "mean", chi_contrib_mean, err));
  CHI_TRY(put_layers(j, c, way, "group", chi_contrib_group, err));
  CHI_TRY(put_layers(j, c, way, "even", chi_contrib_even, err));
  int64_t heads[2] = {c->n_layers, c->heads}, sources[2] = {c->n_layers, c->n_from};
  float *h = chi_study_floats(j, (size_t)(heads[0] * heads[1]), err);
  CHI_TRY(h ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < c->n_layers; l++)
    for (int32_t k = 0; k < c->heads; k++) h[l * c->heads + k] = (float)chi_contrib_head(c, l, k);
  CHI_TRY(chi_study_put(j, h, 2, heads, err, "contributions/%s/%s/head", j->ask_name, way));
  if (picture) {
    CHI_TRY(put_layers(j, c, way, "late", late_share, err));
    CHI_TRY(put_layers(j, c, way, "late_even", late_even, err));
    CHI_TRY(put_controls(j, c, way, err));
    float *s = chi_study_floats(j, (size_t)(sources[0] * sources[1]), err);
    CHI_TRY(s ? 0 : CHI_ERR_MEMORY);
    for (int32_t l = 0; l < c->n_layers; l++)
      for (int32_t k = 0; k < c->n_from; k++) s[l * c->n_from + k] = (float)chi_contrib_from(c, l, k);
    CHI_TRY(chi_study_put(j, s, 2, sources, err, "contributions/%s/%s/patch", j->ask_name, way));
  }
out:
  chi_contributions_free(c);
  return rc;
}

int chi_study_contributions(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    chi_study_job *j = jobs[i];
    const chi_prompt *p = j->prompt;
    chi_err why = {0};
    int32_t *words = NULL, n_words = 0, last = p->n_rows - 1, *patch;
    CHI_TRY(words_rows(j, &words, &n_words, err));
    if (n_words == 0) continue;
    CHI_TRY((patch = chi_arena_array(&j->arena, (size_t)p->n_image, sizeof *patch, err)) ? 0 : CHI_ERR_MEMORY);
    for (int32_t k = 0; k < p->n_image; k++) patch[k] = p->image_row + k;
    int bad = p->n_image > 0 ? one_way(j, "image>words", patch, p->n_image, words, n_words, &why) : 0;
    if (!bad && words[n_words - 1] < last) bad = one_way(j, "words>last", words, n_words, &last, 1, &why);
    if (bad) CHI_TRY(chi_study_without(j, bad, &why, err, "contributions"));
  }
out:
  return rc;
}

/* ---- knock-out ------------------------------------------------------------------------------------------- */
static int one_window(chi_study_job *j, int window, chi_err *err) {
  int rc = 0;
  chi_knockout *k = NULL;
  chi_knockout_opts o = {
      .window = window, .controls = j->opts->controls, .seed = j->seed, .target = j->answer, .mem = j->opts->mem};
  CHI_TRY(chi_knockout_run(&k, j->model, j->prompt, &o, err));
  int64_t dim = k->n_layers;
  float *own = chi_study_floats(j, (size_t)dim, err), *control = chi_study_floats(j, (size_t)dim, err);
  CHI_TRY(own && control ? 0 : CHI_ERR_MEMORY);
  for (int s = 0; s < k->n_sets; s++) {
    for (int l = 0; l < k->n_layers; l++) {
      double low, high;
      own[l] = (float)(chi_knockout_at(k, s, 0, l)->p - k->clean.p);
      control[l] = o.controls > 0 ? (float)(chi_knockout_control(k, s, l, &low, &high).p - k->clean.p) : NAN;
    }
    CHI_TRY(chi_study_put(j, own, 1, &dim, err, "knockout/%s/%s/w%d/own", j->ask_name, k->set[s].name, window));
    if (o.controls > 0)
      CHI_TRY(
          chi_study_put(j, control, 1, &dim, err, "knockout/%s/%s/w%d/control", j->ask_name, k->set[s].name, window));
  }
out:
  chi_knockout_free(k);
  return rc;
}

int chi_study_knockout(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++)
    for (int w = 0; w < jobs[i]->opts->n_windows; w++) {
      chi_err why = {0};
      int bad = one_window(jobs[i], jobs[i]->opts->window[w], &why);
      if (!bad) continue;
      CHI_TRY(chi_study_without(jobs[i], bad, &why, err, "knockout"));
      break;
    }
out:
  return rc;
}

/* ---- lens ------------------------------------------------------------------------------------------------ */
/* A name of the same kind as the entity's: what the data set puts in its place when it is named. NULL: none. */
static const char *other_name(const chi_study_job *j) {
  const chi_data_ask *named = &j->item->twin[CHI_TWIN_NAMED], *from = named->n_brackets ? named : j->ask;
  for (int k = 0; k < from->n_brackets; k++)
    for (int i = 0; i < from->bracket[k].n_sub; i++)
      if (!chi_streq(from->bracket[k].sub[i].words, j->item->entity)) return from->bracket[k].sub[i].words;
  return NULL;
}

/* Rank of the model's first answer token at the last row, of the input and every layer. */
static int answer_rank(chi_study_job *j, chi_err *err) {
  int rc = 0;
  chi_lens *l = NULL;
  const int32_t last = j->prompt->n_rows - 1;
  chi_lens_opts o = {.rows = &last, .n_rows = 1, .k = 1, .words = &j->answer, .n_words = 1, .mem = j->opts->mem};
  CHI_TRY(chi_lens_run(&l, j->model, j->prompt, &o, err));
  int64_t dim = l->n_layers;
  float *at = chi_study_floats(j, (size_t)dim, err);
  CHI_TRY(at ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < l->n_layers; i++) at[i] = (float)l->cell.rank[i];
  CHI_TRY(chi_study_put(j, at, 1, &dim, err, "lens/%s/answer/rank", j->ask_name));
out:
  chi_lens_free(l);
  return rc;
}

/* Best rank of the entity's name over the rows of the constraint, and at the last row: of the input and every layer. */
static int bridge(chi_study_job *j, const char *word, const char *what, chi_err *err) {
  static const struct {
    chi_role role;
    const char *name;
  } places[] = {{CHI_ROLE_CONSTRAINT, "words"}, {CHI_ROLE_LAST, "last"}};
  int rc = 0;
  chi_bridge *b = NULL;
  const chi_prompt *p = j->prompt;
  char rows[32 * (CHI_MAX_SPANS + 1)]; /* the bracketed rows and the last one */
  int at_end = snprintf(rows, sizeof rows, "%d", (int)p->n_rows - 1);
  for (int i = 0; i < p->n_spans; i++)
    at_end +=
        snprintf(rows + at_end, sizeof rows - (size_t)at_end, ",%d-%d", (int)p->span[i].lo, (int)p->span[i].hi - 1);
  CHI_TRY(chi_lens_bridge(&b, j->model, p, word, rows, j->opts->mem, err));
  int64_t dim = b->n_columns;
  float *at = chi_study_floats(j, (size_t)dim, err);
  CHI_TRY(at ? 0 : CHI_ERR_MEMORY);
  for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
    for (int32_t l = 0; l < b->n_columns; l++)
      at[l] = b->n_rows[places[k].role] ? (float)b->best[places[k].role][l] : NAN;
    CHI_TRY(chi_study_put(j, at, 1, &dim, err, "lens/%s/%s/%s", j->ask_name, places[k].name, what));
  }
  if (b->part && chi_streq(word, j->item->entity)) json_object_set_new(j->info, "entity_by_first_token", json_true());
out:
  chi_bridge_free(b);
  return rc;
}

int chi_study_lens(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    const chi_study_job *j = jobs[i];
    if (!j->item->entity || !*j->item->entity || j->prompt->n_spans == 0) continue;
    const char *other = other_name(j);
    int bad = bridge(jobs[i], j->item->entity, "rank", &why);
    if (!bad) bad = answer_rank(jobs[i], &why);
    if (!bad && other) bad = bridge(jobs[i], other, "other_rank", &why);
    if (bad) CHI_TRY(chi_study_without(jobs[i], bad, &why, err, "lens"));
  }
out:
  return rc;
}

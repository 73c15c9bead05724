/* Causal maps of many items in one sweep, averaged by token role. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/trace.h"
#include "study/job.h"

/* One map to make: a job, a corruption of one bracket (from 1) or all (0), a window. */
typedef struct want {
  int job, corrupt, bracket, window;
  chi_trace_opts opts;
  char spec[1200];
} want;

/* Rows of the roles that are asked for, in the job's arena. */
static int rows_of_roles(int32_t **out, int32_t *n, chi_study_job *j, chi_err *err) {
  char role[64];
  const chi_prompt *p = j->prompt;
  *n = 0;
  if (!(*out = chi_arena_array(&j->arena, (size_t)p->n_rows, sizeof **out, err))) return CHI_ERR_MEMORY;
  for (int32_t r = 0; r < p->n_rows; r++)
    for (int i = 0; chi_study_word(j->opts->roles, i, role, sizeof role); i++)
      if (strcmp(chi_study_role_name[chi_study_role_of(p, r)], role) == 0) (*out)[(*n)++] = r;
  return 0;
}

/* Which corruption, as a part of a result's name. */
static void label(char *buf, size_t cap, const char *spec, int bracket) {
  if (bracket)
    snprintf(buf, cap, "%.150s@%d", spec, bracket);
  else
    snprintf(buf, cap, "%.150s", spec);
  for (char *p = buf; *p; p++)
    if (*p == '/') *p = '_';
}

/* "words:A|B" of the corrupted brackets' substitutes; false where one has none. */
static bool substitutes(char *out, size_t cap, const chi_data_ask *a, int bracket) {
  size_t at = (size_t)snprintf(out, cap, "words:");
  for (int b = 0; b < a->n_brackets; b++) {
    if (bracket && b + 1 != bracket) continue;
    if (a->bracket[b].n_sub == 0) return false;
    int n = snprintf(out + at, cap - at, "%s%s", !bracket && b ? "|" : "", a->bracket[b].sub[0].words);
    if (n < 0 || (size_t)n >= cap - at) return false;
    at += (size_t)n;
  }
  return a->n_brackets > 0;
}

/* The study's own words for what an item brings along. false: the item lacks it. */
static bool resolve(want *w, const chi_study_job *j, const char *spec, chi_err *why) {
  if (strcmp(spec, "substitute") == 0) {
    if (!substitutes(w->spec, sizeof w->spec, j->ask, w->bracket)) snprintf(w->spec, sizeof w->spec, "same-length");
  } else if (strcmp(spec, "picture") == 0) {
    if (!j->item->donor || !j->ask->image) {
      chi_fail(why, CHI_ERR_ARG, "the item has no donor picture");
      return false;
    }
    snprintf(w->spec, sizeof w->spec, "picture:%s", j->item->donor);
  } else {
    snprintf(w->spec, sizeof w->spec, "%s", spec);
  }
  return true;
}

/* false: this window has no site of its own. */
static bool set_options(want *w, const chi_study_job *j) {
  char name[64];
  bool any = false, picture = strncmp(w->spec, "picture", 7) == 0;
  const chi_study_opts *o = j->opts;
  w->opts = (chi_trace_opts){.window = o->window[w->window],
                             .corrupt = {.spec = w->spec,
                                         .noise_ref = o->noise_ref,
                                         .seed = j->seed,
                                         .spans = w->bracket ? 1U << (w->bracket - 1) : 0},
                             .groups = j->prompt->n_image > 0 && !o->from_words ? "constraint;late" : "constraint",
                             .both_directions = !o->one_direction,
                             .from_words = o->from_words,
                             .null_draws = o->null_draws,
                             .null_seed = j->seed,
                             .target = j->answer,
                             .mem = o->mem};
  for (int i = 0; chi_study_word(o->sites, i, name, sizeof name); i++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) /* windows widen component outputs only: the rest once */
      if (strcmp(name, chi_trace_site_name[s]) == 0 && (w->window == 0 || s == CHI_TRACE_MLP || s == CHI_TRACE_ATTN) &&
          !(picture && s == CHI_TRACE_EMBED)) /* the words were never changed */
        w->opts.site[s] = any = true;
  /* Another picture's value says nothing where the picture is what was corrupted. */
  if (!o->no_donor && j->ask->image && j->item->donor && !picture) w->opts.donor = j->item->donor;
  return any;
}

/* ---- results --------------------------------------------------------------------------------------------- */
static int put_map(chi_study_job *j, const chi_trace *t, const char *name, int src, int site, chi_err *err) {
  int rc = 0;
  int64_t dim[2] = {chi_trace_steps(t, site), CHI_STUDY_ROLES};
  size_t n = (size_t)(dim[0] * dim[1]);
  const chi_metrics *base = chi_trace_base_of(t, src);
  float *p = chi_study_floats(j, n, err), *diff = chi_study_floats(j, n, err);
  CHI_TRY(p && diff ? 0 : CHI_ERR_MEMORY);
  for (int64_t l = 0; l < dim[0]; l++) {
    double sum[2][CHI_STUDY_ROLES] = {{0}};
    int count[CHI_STUDY_ROLES] = {0};
    for (int r = 0; r < t->n_rows; r++) {
      const chi_metrics *m = chi_trace_at(t, src, site, (int)l, r);
      chi_study_role role = chi_study_role_of(t->prompt, t->rows[r]);
      if (r >= t->n_tokens) role = strcmp(t->cell_name[r], "late") == 0 ? CHI_STUDY_LATE : CHI_STUDY_WORDS;
      sum[0][role] += m->p - base->p;
      sum[1][role] += m->diff - base->diff;
      count[role]++;
    }
    for (int role = 0; role < CHI_STUDY_ROLES; role++) {
      p[l * CHI_STUDY_ROLES + role] = count[role] ? (float)(sum[0][role] / count[role]) : NAN;
      diff[l * CHI_STUDY_ROLES + role] = count[role] ? (float)(sum[1][role] / count[role]) : NAN;
    }
  }
  const char *s = chi_trace_site_name[site], *from = chi_trace_source_name[src];
  CHI_TRY(chi_study_put(j, p, 2, dim, err, "trace/%s/%s/%s/w%d/%s/p", j->ask_name, name, s, t->opts.window, from));
  CHI_TRY(
      chi_study_put(j, diff, 2, dim, err, "trace/%s/%s/%s/w%d/%s/diff", j->ask_name, name, s, t->opts.window, from));
out:
  return rc;
}

/* Effects of draws: as many of the item's own values, put back at random places. */
static int put_null(chi_study_job *j, const chi_trace *t, const char *name, int site, chi_err *err) {
  int64_t dim = t->opts.null_draws;
  if (!t->null[site] || dim < 1) return 0;
  float *v = chi_study_floats(j, (size_t)dim, err);
  if (!v) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < dim; i++) v[i] = (float)(t->null[site][i].p - t->corrupt.p);
  return chi_study_put(j, v, 1, &dim, err, "trace/%s/%s/%s/w%d/null/p", j->ask_name, name, chi_trace_site_name[site],
                       t->opts.window);
}

static int put_trace(chi_study_job *j, const chi_trace *t, const want *w, chi_err *err) {
  int rc = 0;
  char name[200];
  label(name, sizeof name, j->opts->corrupt[w->corrupt], w->bracket);
  if (w->window == 0) {
    int64_t dim = 6;
    float base[6] = {(float)t->clean.p,    (float)t->corrupt.p,    t->donor ? (float)t->donor_run.p : NAN,
                     (float)t->clean.diff, (float)t->corrupt.diff, t->donor ? (float)t->donor_run.diff : NAN};
    CHI_TRY(chi_study_put(j, base, 1, &dim, err, "trace/%s/%s/runs", j->ask_name, name));
  }
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++)
      if (t->cell[src][s]) CHI_TRY(put_map(j, t, name, src, s, err));
  for (int s = 0; s < CHI_TRACE_SITES; s++) CHI_TRY(put_null(j, t, name, s, err));
out:
  return rc;
}

/* ---- running --------------------------------------------------------------------------------------------- */
/* The wants in one sweep. Where that fails as a whole, one by one, so that the others go on. */
static int run_wants(chi_study_job *const *jobs, const want *w, int n, chi_err *err) {
  int rc = 0;
  chi_trace **t = chi_calloc((size_t)n, sizeof *t, err);
  chi_err *why = chi_calloc((size_t)n, sizeof *why, err), whole = {0};
  chi_trace_job *tj = chi_calloc((size_t)n, sizeof *tj, err);
  CHI_TRY(t && why && tj ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++) tj[i] = (chi_trace_job){.prompt = jobs[w[i].job]->prompt, .opts = &w[i].opts};
  int bad = chi_trace_run_many(t, why, jobs[0]->model, tj, n, &whole);
  if (bad == CHI_ERR_CANCELLED) {
    rc = chi_fail(err, bad, "%s", whole.text);
    goto out;
  }
  if (bad && n > 1) {
    for (int i = 0; i < n; i++) CHI_TRY(run_wants(jobs, w + i, 1, err));
    goto out;
  }
  for (int i = 0; i < n; i++) {
    chi_study_job *j = jobs[w[i].job];
    if (t[i])
      CHI_TRY(put_trace(j, t[i], &w[i], err));
    else if (w[i].window == 0)
      CHI_TRY(chi_study_without(j, why[i].code ? why[i].code : bad, why[i].code ? &why[i] : &whole, err,
                                j->opts->corrupt[w[i].corrupt]));
  }
out:
  for (int i = 0; t && i < n; i++) chi_trace_free(t[i]);
  chi_free(t);
  chi_free(why);
  chi_free(tj);
  return rc;
}

/* All wants of one job, behind w[*k]. */
static int wants_of(want *w, int *k, chi_study_job *j, int job, chi_err *err) {
  int rc = 0;
  int32_t *only = NULL, n_only = 0;
  if (j->opts->roles) CHI_TRY(rows_of_roles(&only, &n_only, j, err));
  const chi_study_opts *o = j->opts;
  for (int c = 0; c < o->n_corrupt; c++) {
    int brackets = strncmp(o->corrupt[c], "picture", 7) != 0 && j->prompt->n_spans > 1 ? j->prompt->n_spans : 0;
    for (int b = 0; b <= brackets; b++) {
      chi_err why = {0};
      want first = {.job = job, .corrupt = c, .bracket = b};
      if (!resolve(&first, j, o->corrupt[c], &why)) {
        CHI_TRY(chi_study_without(j, CHI_ERR_ARG, &why, err, o->corrupt[c]));
        continue;
      }
      for (int win = 0; win < o->n_windows; win++) {
        w[*k] = first;
        w[*k].window = win;
        bool any = set_options(&w[*k], j);
        if (only) w[*k].opts.only = only, w[*k].opts.n_only = n_only, w[*k].opts.groups = NULL;
        *k += any;
      }
    }
  }
out:
  return rc;
}

int chi_study_trace(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0, k = 0;
  const chi_study_opts *o = jobs[0]->opts;
  want *w = chi_calloc((size_t)(n * o->n_corrupt * o->n_windows) * (1 + CHI_MAX_SPANS), sizeof *w, err);
  if (!w) return CHI_ERR_MEMORY;
  for (int i = 0; i < n; i++) CHI_TRY(wants_of(w, &k, jobs[i], i, err));
  if (k) rc = run_wants(jobs, w, k, err);
out:
  chi_free(w);
  return rc;
}

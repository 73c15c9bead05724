/* Going through a data set; see study.h. */
#include "study/study.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "study/job.h"
#include "study/prepare.h"

enum { kMaxBatch = 64 };

static const struct {
  const char *name;
  int (*run)(chi_study_job *const *j, int n, chi_err *err);
} kStudies[] = {
#define STUDY(name, fn, doc) {#name, fn},
#include "study/studies.def"
#undef STUDY
};
enum { kStudyCount = sizeof kStudies / sizeof *kStudies };

bool chi_study_word(const char *list, int i, char *buf, size_t cap) {
  for (; *list; i--) {
    size_t n = strcspn(list, ",");
    if (i == 0) {
      snprintf(buf, cap, "%.*s", (int)n, list);
      return true;
    }
    list += n + (list[n] == ',');
  }
  return false;
}

static bool wanted(const chi_study_opts *o, int study) {
  char word[64];
  if (chi_streq(o->studies, "all")) return true;
  for (int i = 0; chi_study_word(o->studies, i, word, sizeof word); i++)
    if (strcmp(word, kStudies[study].name) == 0) return true;
  return false;
}

int chi_study_check(const chi_study_opts *o, chi_err *err) {
  char word[64];
  bool all = chi_streq(o->studies, "all");
  for (int i = 0; !all && chi_study_word(o->studies, i, word, sizeof word); i++) {
    int k = 0;
    while (k < kStudyCount && strcmp(kStudies[k].name, word) != 0) k++;
    if (k == kStudyCount)
      return chi_fail(
          err, CHI_ERR_ARG,
          "there is no study '%s'; known are trace, contributions, knockout, attribute, lens, probe, predict and all",
          word);
  }
  if (!o->studies[0]) return chi_fail(err, CHI_ERR_ARG, "no study is named");
  for (int i = 0; chi_study_word(o->asks, i, word, sizeof word); i++)
    if (chi_study_twin(word) == CHI_TWINS)
      return chi_fail(err, CHI_ERR_ARG,
                      "'%s' is no form of an item; known are item, named, described, named_over, blank", word);
  if (!o->asks[0]) return chi_fail(err, CHI_ERR_ARG, "no form of the items is named");
  for (int i = 0; o->roles && chi_study_word(o->roles, i, word, sizeof word); i++) {
    int k = 0;
    while (k < CHI_STUDY_WORDS && strcmp(chi_study_role_name[k], word) != 0) k++;
    if (k == CHI_STUDY_WORDS)
      return chi_fail(
          err, CHI_ERR_ARG,
          "no token is '%s'; known are last patch, before, first word token, middle, last word token, second "
          "words, next token, after, last token",
          word);
  }
  for (int i = 0; i < o->n_windows; i++)
    if (o->window[i] < 1) return chi_fail(err, CHI_ERR_ARG, "a window has at least 1 layer");
  return 0;
}

/* ---- settings -------------------------------------------------------------------------------------------- */
/* Everything that decides a stored number, but for the model and the data set, as one line of JSON. */
static int settings_text(char **out, const chi_study_opts *o, const char *extra, chi_err *err) {
  json_t *windows = json_array(), *corrupt = json_array(), *more = extra ? json_loads(extra, 0, NULL) : NULL;
  for (int i = 0; i < o->n_windows; i++) json_array_append_new(windows, json_integer(o->window[i]));
  for (int i = 0; i < o->n_corrupt; i++) json_array_append_new(corrupt, json_string(o->corrupt[i]));
  json_t *j = json_pack("{s:s, s:s, s:s, s:o, s:o, s:b, s:b, s:i, s:i, s:I, s:i}", "studies", o->studies, "asks",
                        o->asks, "sites", o->sites, "windows", windows, "corrupt", corrupt, "donor", !o->no_donor,
                        "both_directions", !o->one_direction, "null_draws", (int)o->null_draws, "controls",
                        (int)o->controls, "seed", (json_int_t)o->seed, "max_new", (int)o->max_new);
  if (j && o->tmpl) json_object_set_new(j, "template", json_string(o->tmpl));
  if (j && o->noise_ref) json_object_set_new(j, "noise_ref", json_string(o->noise_ref));
  if (j && o->roles) json_object_set_new(j, "roles", json_string(o->roles));
  if (j && o->from_words) json_object_set_new(j, "from_words", json_true());
  if (j && more) json_object_update(j, more);
  *out = j ? json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(more);
  json_decref(j);
  return *out ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory");
}

/* ---- results --------------------------------------------------------------------------------------------- */
float *chi_study_floats(chi_study_job *j, size_t n, chi_err *err) {
  return chi_arena_array(&j->arena, n, sizeof(float), err);
}

int chi_study_put(chi_study_job *j, const float *v, int ndim, const int64_t *dim, chi_err *err, const char *fmt, ...) {
  char name[256];
  size_t n = 1;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(name, sizeof name, fmt, ap);
  va_end(ap);
  int rc = chi_grow((void **)&j->result, &j->cap, j->n + 1, sizeof *j->result, err);
  if (rc) return rc;
  chi_store_result *r = &j->result[j->n];
  *r = (chi_store_result){.ndim = ndim};
  for (int i = 0; i < ndim; i++) n *= (size_t)(r->dim[i] = dim[i]);
  float *copy = chi_study_floats(j, n, err);
  if (!copy || !(r->kind = chi_arena_strdup(&j->arena, name, err))) return CHI_ERR_MEMORY;
  memcpy(copy, v, n * sizeof *v);
  r->v = copy;
  j->n++;
  return 0;
}

int chi_study_without(chi_study_job *j, int rc, const chi_err *why, chi_err *err, const char *what) {
  char line[700];
  if (rc == CHI_ERR_CANCELLED) return chi_fail(err, rc, "%s", why->text);
  snprintf(line, sizeof line, "%s: %s: %s", j->ask_name, what, why->text);
  json_array_append_new(j->without, json_string(line));
  return 0;
}

/* ---- one batch of items ---------------------------------------------------------------------------------- */
typedef struct batch {
  chi_study_unit unit[kMaxBatch];
  int n;
} batch;

static int run_studies(batch *b, const chi_study_opts *o, chi_err *err) {
  int rc = 0, n = 0;
  chi_study_job **jobs = chi_calloc((size_t)b->n * (1 + CHI_TWINS), sizeof *jobs, err);
  if (!jobs) return CHI_ERR_MEMORY;
  for (int i = 0; i < b->n; i++)
    for (int k = 0; k < b->unit[i].n_jobs; k++) jobs[n++] = &b->unit[i].job[k];
  for (int s = 0; s < kStudyCount && n && rc == 0; s++)
    if (wanted(o, s)) rc = kStudies[s].run(jobs, n, err);
  chi_free(jobs);
  return rc;
}

/* All results of an item, and what is known about it, in one transaction. */
static int store_unit(chi_store *s, chi_study_unit *u, chi_err *err) {
  int rc = 0;
  size_t n = 0;
  chi_store_result *all = NULL;
  char *info = NULL;
  for (int k = 0; k < u->n_jobs; k++) n += u->job[k].n;
  CHI_TRY((all = chi_calloc(n, sizeof *all, err)) ? 0 : CHI_ERR_MEMORY);
  n = 0;
  for (int k = 0; k < u->n_jobs; k++) {
    if (u->job[k].n) memcpy(all + n, u->job[k].result, u->job[k].n * sizeof *all);
    n += u->job[k].n;
  }
  if (u->status == CHI_STORE_OK && n == 0) {
    const char *first = json_string_value(json_array_get(u->without, 0));
    u->status = CHI_STORE_FAILED;
    chi_fail(&u->why, CHI_ERR_ARG, "%s", first ? first : "no study gave a result");
  }
  if (json_array_size(u->without)) json_object_set(u->info, "without", u->without);
  info = json_dumps(u->info, JSON_COMPACT | JSON_REAL_PRECISION(9));
  CHI_TRY(info ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  const chi_data_item *it = u->item;
  chi_store_item row = {.seq = u->seq,
                        .id = it->id,
                        .unit = it->entity && *it->entity ? it->entity
                                : it->unit && *it->unit   ? it->unit
                                                          : it->id,
                        .split = it->split,
                        .group = it->form && *it->form ? it->form : it->group,
                        .status = u->status,
                        .reason = u->status == CHI_STORE_OK ? "" : u->why.text,
                        .info = info};
  rc = chi_store_put(s, &row, all, u->status == CHI_STORE_OK ? n : 0, err);
out:
  chi_free(all);
  free(info);
  return rc;
}

static int run_batch(chi_store *s, batch *b, const chi_study_opts *o, const chi_model *m, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < b->n; i++) CHI_TRY(chi_study_prepare(&b->unit[i], m, o, err));
  CHI_TRY(run_studies(b, o, err));
  for (int i = 0; i < b->n; i++) CHI_TRY(store_unit(s, &b->unit[i], err));
out:
  for (int i = 0; i < b->n; i++) chi_study_unit_free(&b->unit[i]);
  b->n = 0;
  return rc;
}

/* ---- the run --------------------------------------------------------------------------------------------- */
static bool in_shard(const chi_study_plan *p, size_t seq) {
  return p->shards < 2 || seq % (size_t)p->shards == (size_t)p->shard;
}

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int open_for(chi_store **out, const chi_dataset *d, const chi_study_opts *o, const chi_study_plan *p,
                    chi_err *err) {
  int rc = 0;
  char *settings = NULL, shard[32], limit[32], items[32];
  CHI_TRY(settings_text(&settings, o, p->extra, err));
  snprintf(shard, sizeof shard, "%d/%d", p->shards > 1 ? p->shard + 1 : 1, p->shards > 1 ? p->shards : 1);
  snprintf(limit, sizeof limit, "%zu", p->limit);
  snprintf(items, sizeof items, "%zu", d->n);
  const chi_store_key keys[] = {{"settings", settings, true},
                                {"model_hash", p->model_hash ? p->model_hash : "", true},
                                {"data_hash", d->hash, true},
                                {"shard", shard, true},
                                {"model", p->model_name ? p->model_name : "", false},
                                {"data", p->data_path ? p->data_path : "", false},
                                {"data_format", d->name, false},
                                {"data_items", items, false},
                                {"limit", limit, false},
                                {"version", p->version ? p->version : "", false},
                                {"command", p->command ? p->command : "", false},
                                {"state", "running", false}};
  rc = chi_store_open(out, p->dir, keys, sizeof keys / sizeof *keys, err);
out:
  free(settings);
  return rc;
}

static int all_items(chi_store *s, chi_study_done *done, const chi_model *m, const chi_dataset *d,
                     const chi_study_opts *o, const chi_study_plan *p, int64_t *stored, chi_err *err) {
  int rc = 0, size = o->batch > 0 ? o->batch < kMaxBatch ? o->batch : kMaxBatch : 4;
  size_t end = p->limit && p->limit < d->n ? p->limit : d->n;
  batch *b = chi_calloc(1, sizeof *b, err);
  bool *finished = chi_calloc(end, sizeof *finished, err);
  CHI_TRY(b && finished ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < end; i++) {
    int status = -1;
    if (!in_shard(p, i)) continue;
    CHI_TRY(chi_store_find(s, (int64_t)i, &status, err));
    finished[i] = status >= 0 && !(p->retry && status == CHI_STORE_FAILED);
    done->planned++;
    done->before += finished[i];
  }
  CHI_TRY(chi_progress("items", done->before, done->planned, err));
  for (size_t i = 0; i < end; i++) {
    if (!in_shard(p, i) || finished[i]) continue;
    b->unit[b->n++] = (chi_study_unit){.item = &d->item[i], .seq = (int64_t)i};
    if (b->n < size) continue;
    int n = b->n;
    CHI_TRY(run_batch(s, b, o, m, err));
    *stored += n;
    CHI_TRY(chi_progress("items", done->before + *stored, done->planned, err));
  }
  int n = b->n;
  CHI_TRY(run_batch(s, b, o, m, err));
  *stored += n;
  CHI_TRY(chi_progress("items", done->planned, done->planned, err));
out:
  chi_free(b);
  chi_free(finished);
  return rc;
}

int chi_study_run(chi_study_done *out, const chi_model *m, const chi_dataset *d, const chi_study_opts *o,
                  const chi_study_plan *plan, chi_err *err) {
  int rc = 0;
  int64_t stored = 0;
  char started[32];
  chi_store *s = NULL;
  chi_err later = {0};
  time_t now = time(NULL);
  struct tm utc;
  double from = seconds_now();
  memset(out, 0, sizeof *out);
  strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
  CHI_TRY(chi_study_check(o, err));
  CHI_TRY(open_for(&s, d, o, plan, err));
  rc = all_items(s, out, m, d, o, plan, &stored, err);
  out->seconds = seconds_now() - from;
  if (stored > 0) {
    int late = chi_store_session(s, started, plan->version, plan->command, stored, out->seconds, &later);
    if (rc == 0 && late) rc = chi_fail(err, later.code, "%s", later.text);
  }
  CHI_TRY(rc);
  CHI_TRY(chi_store_set(s, "state", "done", err));
  CHI_TRY(chi_store_count(s, &out->counts, err));
out:
  chi_store_close(s);
  return rc;
}

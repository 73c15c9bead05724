/* Collecting second moments of keys; see moments.h. */
#include "edit/moments.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "data/dataset.h"
#include "sweep/run.h"

enum { kBatch = 8, kMaxText = 256 << 20, kKeysPerNeuron = 20 };

/* ---- where prompts come from ----------------------------------------------------------------------------------- */
typedef struct source {
  chi_dataset *data;
  char *text; /* the file, lines ended by NUL */
  char **line;
  size_t n_line, cap_line;
  uint32_t *order[2]; /* shuffled once, the same for every run: a file sorted by subject gives a mixture early on */
  size_t n[2];        /* items, lines */
  char hash[2][65];
} source;

typedef struct work {
  chi_model *m;
  const chi_moments_opts *o;
  chi_moments_info *info;
  source src;
  int64_t f, layers;
  double **sum; /* [layers][f (f + 1) / 2] */
  float *key;   /* [layers][cap][f]: of one batch */
  int64_t cap, rows;
  int64_t next; /* prompt of the mixture */
  json_t *settings;
  chi_arena arena;
} work;

static int shuffle(work *w, int which, size_t n, chi_err *err) {
  uint32_t *p = chi_arena_array(&w->arena, n, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    size_t j = chi_rng_u32(0, (uint32_t)which, (uint32_t)i, 7) % (i + 1);
    p[i] = p[j];
    p[j] = (uint32_t)i;
  }
  w->src.order[which] = p;
  w->src.n[which] = n;
  return 0;
}

static int open_sources(work *w, chi_err *err) {
  int rc = 0;
  source *s = &w->src;
  size_t len = 0;
  if (!w->o->data && !w->o->texts)
    return chi_fail(err, CHI_ERR_ARG, "no prompts: give a data set, a text file, or both");
  if (w->o->data) {
    CHI_TRY(chi_dataset_open(&s->data, w->o->data, &(chi_dataset_opts){.text_only = !w->m->net.has_vision}, err));
    memcpy(s->hash[0], s->data->hash, sizeof s->hash[0]);
    CHI_TRY(shuffle(w, 0, s->data->n, err));
  }
  if (w->o->texts) {
    CHI_TRY(chi_read_file(&s->text, &len, w->o->texts, kMaxText, err));
    CHI_TRY(chi_sha256_file(s->hash[1], w->o->texts, err));
    for (char *p = s->text, *next; p; p = next) {
      if ((next = strchr(p, '\n')) != NULL) *next++ = 0;
      if (!p[strspn(p, " \t\r")]) continue;
      void *v = s->line;
      CHI_TRY(chi_grow(&v, &s->cap_line, s->n_line + 1, sizeof *s->line, err));
      s->line = v;
      s->line[s->n_line++] = p;
    }
    CHI_TRY(shuffle(w, 1, s->n_line, err));
  }
  if (s->n[0] + s->n[1] == 0) rc = chi_fail(err, CHI_ERR_FORMAT, "the sources hold no prompts");
out:
  return rc;
}

/* The i-th prompt of the mixture: items and lines take turns until one is used up. *out NULL: it cannot be asked. */
static int prompt_at(work *w, int64_t i, chi_prompt **out, chi_err *err) {
  const source *s = &w->src;
  size_t both = 2 * (s->n[0] < s->n[1] ? s->n[0] : s->n[1]), k = (size_t)i;
  int which = k < both ? (int)(k % 2) : s->n[0] > s->n[1] ? 0 : 1;
  size_t at = s->order[which][k < both ? k / 2 : k - both / 2];
  chi_err why = {0};
  chi_prompt_opts o = {.tmpl = w->o->tmpl};
  *out = NULL;
  if (which == 0) {
    const chi_data_item *it = &s->data->item[at];
    if (it->problem || !it->ask.question) return 0;
    o.image = it->ask.image, o.question = it->ask.question;
    if (it->continuation) o.tmpl = "plain";
  } else {
    o.question = s->line[at], o.raw = true;
  }
  int rc = chi_prompt_make(out, w->m, &o, &why);
  if (rc == CHI_ERR_MEMORY || rc == CHI_ERR_CANCELLED) return chi_fail(err, rc, "%s", why.text);
  return 0;
}

/* ---- one batch --------------------------------------------------------------------------------------------------- */
typedef struct batch {
  work *w;
  const chi_prompt *p[kBatch];
  int64_t first[kBatch]; /* row of the batch's keys */
  int n;
} batch;

static int on_key(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  batch *b = ud;
  int64_t prompt = capture / b->w->layers, layer = capture % b->w->layers;
  memcpy(b->w->key + (layer * b->w->cap + b->first[prompt] + i) * b->w->f, x, (size_t)n * sizeof *x);
  return 0;
}

typedef struct add_job {
  double *sum;
  const double *key; /* [rows][f] */
  int64_t rows, f;
} add_job;

/* Row i of the triangle: keys in their order, so that no thread count changes a bit. */
static void add_row(void *ud, int64_t i) {
  const add_job *j = ud;
  double *to = j->sum + i * j->f - i * (i - 1) / 2 - i; /* to[c] = element (i, c) */
  for (int64_t r = 0; r < j->rows; r++) {
    const double *k = j->key + r * j->f;
    double a = k[i];
    if (a == 0) continue;
    for (int64_t c = i; c < j->f; c++) to[c] += a * k[c];
  }
}

static int run_batch(work *w, batch *b, chi_err *err) {
  int rc = 0, root, id;
  int32_t *rows = NULL;
  double *k = NULL;
  chi_plan *plan = NULL;
  chi_input in[kBatch];
  int64_t longest = 0, n = 0;
  for (int i = 0; i < b->n; i++) {
    b->first[i] = n;
    n += w->o->text_rows ? b->p[i]->n_rows - b->p[i]->n_image : b->p[i]->n_rows;
    if (b->p[i]->n_rows > longest) longest = b->p[i]->n_rows;
  }
  if (n > w->cap) {
    chi_free(w->key);
    w->cap = 0;
    w->key = chi_calloc((size_t)(n * w->f * w->layers), sizeof *w->key, err);
    if (!w->key) return CHI_ERR_MEMORY;
    w->cap = n;
  }
  CHI_TRY(chi_plan_new(&plan, err));
  rows = chi_calloc((size_t)longest, sizeof *rows, err);
  k = chi_calloc((size_t)(n * w->f), sizeof *k, err);
  CHI_TRY(rows && k ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < b->n; i++) {
    const chi_prompt *p = b->p[i];
    int32_t m = 0;
    for (int32_t r = 0; r < p->n_rows; r++)
      if (!w->o->text_rows || p->n_image == 0 || r < p->image_row || r >= p->image_row + p->n_image) rows[m++] = r;
    in[i] = chi_prompt_input(p);
    CHI_TRY(chi_plan_root(plan, &in[i], &root, err));
    for (int l = w->o->lo; l <= w->o->hi; l++) {
      chi_capture c = {
          .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_MLP_ACT, .layer = l, .rows = rows, .n_rows = m};
      CHI_TRY(chi_plan_capture(plan, &c, &id, err));
    }
  }
  chi_run_opts o = {.on_capture = on_key, .ud = b, .mem = w->o->mem};
  CHI_TRY(chi_run_plan(&w->m->net, plan, &o, err));
  for (int64_t l = 0; l < w->layers; l++) {
    const float *key = w->key + l * w->cap * w->f;
    for (int64_t i = 0; i < n * w->f; i++) k[i] = (double)key[i];
    chi_parallel_for(w->f, add_row, &(add_job){w->sum[l], k, n, w->f});
  }
  w->info->keys += n;
out:
  chi_plan_free(plan);
  chi_free(rows);
  chi_free(k);
  return rc;
}

/* The next prompts of the mixture; whatever cannot be asked is counted and left out. */
static int step(work *w, int64_t total, chi_err *err) {
  int rc = 0;
  batch b = {.w = w};
  int64_t next = w->next, skipped = 0;
  while (b.n < kBatch && next < total) {
    chi_prompt *p = NULL;
    CHI_TRY(prompt_at(w, next++, &p, err));
    if (p)
      b.p[b.n++] = p;
    else
      skipped++;
  }
  if (b.n) CHI_TRY(run_batch(w, &b, err));
  w->next = next;
  w->info->skipped += skipped;
  w->info->prompts = w->next - w->info->skipped;
out:
  for (int i = 0; i < b.n; i++) {
    const chi_prompt *p = b.p[i];
    chi_prompt_free((chi_prompt *)(uintptr_t)p); /* made here */
  }
  return rc;
}

/* ---- the file ----------------------------------------------------------------------------------- */
static int save(work *w, chi_err *err) {
  int rc = 0;
  char *text = NULL, name[96];
  chi_st_writer *st = NULL;
  json_t *meta = json_deep_copy(w->settings);
  int64_t n = w->f * (w->f + 1) / 2;
  int bad = !meta || json_object_set_new(meta, "next", json_integer(w->next)) ||
            json_object_set_new(meta, "keys", json_integer(w->info->keys)) ||
            json_object_set_new(meta, "prompts", json_integer(w->info->prompts)) ||
            json_object_set_new(meta, "skipped", json_integer(w->info->skipped)) ||
            json_object_set_new(meta, "done", json_boolean(w->info->done));
  text = bad ? NULL : json_dumps(meta, JSON_COMPACT);
  CHI_TRY(text ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  CHI_TRY(chi_st_writer_new(&st, w->info->file, err));
  CHI_TRY(chi_st_writer_meta(st, "chiasm_moments", text, err));
  for (int l = 0; l < (int)w->layers; l++) {
    snprintf(name, sizeof name, "decoder.%d.mlp_act.moment_sum", w->o->lo + l);
    CHI_TRY(chi_st_writer_add(st, name, CHI_F64, 1, &n, w->sum[l], err));
  }
  chi_st_writer *done = st;
  st = NULL;
  rc = chi_st_writer_commit(done, err);
out:
  chi_st_writer_abort(st);
  free(text);
  json_decref(meta);
  return rc;
}

/* Everything that decides the sums. */
static int make_settings(work *w, chi_err *err) {
  int rc = chi_model_hash(w->m, err);
  if (rc) return rc;
  json_t *s = json_object();
  int bad = json_object_set_new(s, "format", json_string(CHI_MOMENTS_FORMAT)) ||
            json_object_set_new(s, "model_sha256", json_string(w->m->hash)) ||
            json_object_set_new(s, "data_sha256", w->o->data ? json_string(w->src.hash[0]) : json_null()) ||
            json_object_set_new(s, "texts_sha256", w->o->texts ? json_string(w->src.hash[1]) : json_null()) ||
            json_object_set_new(s, "template", w->o->tmpl ? json_string(w->o->tmpl) : json_null()) ||
            json_object_set_new(s, "rows", json_string(w->o->text_rows ? "text" : "all")) ||
            json_object_set_new(s, "layers", json_pack("[i,i]", w->o->lo, w->o->hi)) ||
            json_object_set_new(s, "ffn", json_integer(w->f)) ||
            json_object_set_new(s, "asked", json_integer(w->info->asked));
  w->settings = s;
  return bad ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0;
}

/* The file's name, in a folder by the hash of the settings. */
static int name_file(work *w, chi_err *err) {
  struct stat st;
  char hex[65], name[64];
  chi_sha256 h;
  if (stat(w->o->out, &st) != 0 || !S_ISDIR(st.st_mode)) {
    int n = snprintf(w->info->file, sizeof w->info->file, "%s", w->o->out);
    return n < 1 || n >= (int)sizeof w->info->file ? chi_fail(err, CHI_ERR_ARG, "the path of the file is too long") : 0;
  }
  char *text = json_dumps(w->settings, JSON_COMPACT | JSON_SORT_KEYS);
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_sha256_init(&h);
  chi_sha256_add(&h, text, strlen(text));
  chi_sha256_hex(&h, hex);
  free(text);
  snprintf(name, sizeof name, "moments-%.16s.safetensors", hex);
  return chi_path_join(w->info->file, sizeof w->info->file, w->o->out, name, err);
}

static int read_meta(json_t **out, const chi_st *st, const char *file, chi_err *err) {
  int rc = 0;
  const char *text = chi_st_meta(st, "chiasm_moments");
  *out = NULL;
  if (!text) return 0;
  CHI_TRY(chi_json_parse(out, text, strlen(text), file, err));
  const char *format = json_string_value(json_object_get(*out, "format"));
  if (!chi_streq(format, CHI_MOMENTS_FORMAT))
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: format is '%.40s'; this program reads " CHI_MOMENTS_FORMAT, file,
                  format ? format : "(absent)");
out:
  if (rc) {
    json_decref(*out);
    *out = NULL;
  }
  return rc;
}

static int counts(chi_moments_info *i, int64_t *next, const json_t *meta, const char *file, chi_err *err) {
  int rc = 0;
  const int64_t most = (int64_t)1 << 53;
  CHI_TRY(chi_json_i64(next, meta, "next", 0, most, file, err));
  CHI_TRY(chi_json_i64(&i->keys, meta, "keys", 0, most, file, err));
  CHI_TRY(chi_json_i64(&i->asked, meta, "asked", 0, most, file, err));
  CHI_TRY(chi_json_i64(&i->ffn, meta, "ffn", 1, 1 << 24, file, err));
  CHI_TRY(chi_json_i64(&i->prompts, meta, "prompts", 0, most, file, err));
  CHI_TRY(chi_json_i64(&i->skipped, meta, "skipped", 0, most, file, err));
  CHI_TRY(chi_json_bool_opt(&i->done, meta, "done", file, err));
out:
  return rc;
}

static const chi_tensor *sums_of(const chi_st *st, int layer, int64_t f, const char *file, chi_err *err) {
  char name[96];
  snprintf(name, sizeof name, "decoder.%d.mlp_act.moment_sum", layer);
  const chi_tensor *t = chi_st_find(st, name);
  if (t && t->ndim == 1 && t->dim[0] == f * (f + 1) / 2 && t->dtype == CHI_F64) return t;
  chi_fail(err, CHI_ERR_FORMAT, "%s: no F64 tensor '%s' of a triangle of %lld", file, name, (long long)f);
  return NULL;
}

/* Goes on where the file ends; its settings must be ours. */
static int resume(work *w, chi_err *err) {
  int rc = 0;
  chi_st *st = NULL;
  json_t *meta = NULL;
  const char *key;
  json_t *want;
  if (!chi_file_exists(w->info->file)) return 0;
  CHI_TRY(chi_st_open(&st, w->info->file, err));
  CHI_TRY(read_meta(&meta, st, w->info->file, err));
  if (!meta) {
    rc =
        chi_fail(err, CHI_ERR_FORMAT, "%s holds no moments that can be gone on with; name another file", w->info->file);
    goto out;
  }
  json_object_foreach(w->settings, key, want) {
    if (json_equal(want, json_object_get(meta, key))) continue;
    rc = chi_fail(err, CHI_ERR_ARG, "%s was collected with another '%s'; name another file, or a folder for all",
                  w->info->file, key);
    goto out;
  }
  CHI_TRY(counts(w->info, &w->next, meta, w->info->file, err));
  for (int l = 0; l < (int)w->layers; l++) {
    const chi_tensor *t = sums_of(st, w->o->lo + l, w->f, w->info->file, err);
    CHI_TRY(t ? 0 : CHI_ERR_FORMAT);
    memcpy(w->sum[l], t->data, t->bytes);
  }
  w->info->resumed = w->info->prompts;
out:
  json_decref(meta);
  chi_st_close(st);
  return rc;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int collect(work *w, chi_err *err) {
  int rc = 0;
  chi_moments_info *i = w->info;
  int64_t total = (int64_t)(w->src.n[0] + w->src.n[1]);
  double saved = now(), every = w->o->save_every > 0 ? w->o->save_every : 60;
  i->done = i->done && i->keys >= i->asked;
  if (i->keys >= i->asked || w->next >= total) return 0; /* finished earlier */
  while (rc == 0 && i->keys < i->asked && w->next < total) {
    CHI_TRY(chi_progress("collecting keys", i->keys, i->asked, err));
    CHI_TRY(step(w, total, err));
    if (now() - saved < every) continue;
    CHI_TRY(save(w, err));
    saved = now();
  }
  i->done = true;
  if (i->keys == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "none of the %lld prompts could be asked", (long long)total);
    goto out;
  }
  CHI_TRY(chi_progress("collecting keys", i->asked, i->asked, err));
  return save(w, err);
out:
  if (rc == CHI_ERR_CANCELLED && i->keys) save(w, NULL); /* nothing is lost */
  return rc;
}

static void describe(chi_moments_info *i, const work *w) {
  size_t n = 0;
  for (int k = 0; k < 2; k++) {
    const char *name = k ? w->o->texts : w->o->data;
    if (!name) continue;
    int len = snprintf(i->source + n, sizeof i->source - n, "%s%.180s (%zu %s)", n ? ", " : "", name, w->src.n[k],
                       k ? "lines" : "items");
    n += len > 0 && (size_t)len < sizeof i->source - n ? (size_t)len : 0;
  }
}

int chi_moments_collect(chi_moments_info *info, chi_model *m, const chi_moments_opts *o, chi_err *err) {
  int rc = 0;
  work w = {.m = m, .o = o, .info = info, .f = m->net.decoder.spec.ffn, .layers = o->hi - o->lo + 1};
  memset(info, 0, sizeof *info);
  if (o->lo < 0 || o->hi < o->lo || o->hi >= m->net.decoder.spec.layers)
    return chi_fail(err, CHI_ERR_ARG, "layers %d to %d: the decoder has layers 0 to %d", o->lo, o->hi,
                    m->net.decoder.spec.layers - 1);
  info->ffn = w.f;
  info->asked = o->keys > 0 ? o->keys : kKeysPerNeuron * w.f;
  CHI_TRY(open_sources(&w, err));
  CHI_TRY(make_settings(&w, err));
  CHI_TRY(name_file(&w, err));
  CHI_TRY((w.sum = chi_arena_array(&w.arena, (size_t)w.layers, sizeof *w.sum, err)) ? 0 : CHI_ERR_MEMORY);
  for (int64_t l = 0; l < w.layers; l++) {
    w.sum[l] = chi_arena_array(&w.arena, (size_t)(w.f * (w.f + 1) / 2), sizeof **w.sum, err);
    CHI_TRY(w.sum[l] ? 0 : CHI_ERR_MEMORY);
  }
  CHI_TRY(resume(&w, err));
  CHI_TRY(collect(&w, err));
  info->done = true;
  describe(info, &w);
out:
  chi_dataset_close(w.src.data);
  chi_free(w.src.text);
  chi_free(w.src.line);
  chi_free(w.key);
  json_decref(w.settings);
  chi_arena_free(&w.arena);
  return rc;
}

/* ---- reading ------------------------------------------------------------------------------------ */
int chi_moments_read_info(chi_moments_info *info, const char *file, chi_err *err) {
  int rc = 0;
  int64_t next = 0;
  chi_st *st = NULL;
  json_t *meta = NULL;
  memset(info, 0, sizeof *info);
  snprintf(info->file, sizeof info->file, "%s", file);
  CHI_TRY(chi_st_open(&st, file, err));
  CHI_TRY(read_meta(&meta, st, file, err));
  if (meta) CHI_TRY(counts(info, &next, meta, file, err));
out:
  json_decref(meta);
  chi_st_close(st);
  return rc;
}

static int load_sums(double **out, const chi_st *st, const json_t *meta, int layer, int64_t n, const char *file,
                     chi_err *err) {
  chi_moments_info i = {0};
  int64_t next;
  int rc = counts(&i, &next, meta, file, err);
  if (rc) return rc;
  const chi_tensor *t = sums_of(st, layer, n, file, err);
  if (!t) return CHI_ERR_FORMAT;
  if (i.keys < 1) return chi_fail(err, CHI_ERR_FORMAT, "%s holds no keys", file);
  double *c = *out = chi_calloc((size_t)(n * n), sizeof *c, err);
  if (!c) return CHI_ERR_MEMORY;
  const double *s = t->data;
  for (int64_t a = 0; a < n; a++)
    for (int64_t b = a; b < n; b++, s++) c[a * n + b] = c[b * n + a] = *s / (double)i.keys;
  return 0;
}

static int load_matrix(double **out, const chi_st *st, int layer, int64_t n, const char *file, chi_err *err) {
  char name[96];
  snprintf(name, sizeof name, "decoder.%d.mlp_act.moment", layer);
  const chi_tensor *t = chi_st_find(st, name);
  if (!t || t->ndim != 2 || t->dim[0] != n || t->dim[1] != n || (t->dtype != CHI_F32 && t->dtype != CHI_F64))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: no F32 or F64 tensor '%s' of %lldx%lld", file, name, (long long)n,
                    (long long)n);
  double *c = *out = chi_calloc((size_t)(n * n), sizeof *c, err);
  if (!c) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < n * n; i++)
    c[i] = t->dtype == CHI_F64 ? ((const double *)t->data)[i] : (double)((const float *)t->data)[i];
  return 0;
}

int chi_moments_load(double **out, const char *file, int layer, int64_t n, const char *model_hash, chi_err *err) {
  int rc = 0;
  chi_st *st = NULL;
  json_t *meta = NULL;
  *out = NULL;
  CHI_TRY(chi_st_open(&st, file, err));
  CHI_TRY(read_meta(&meta, st, file, err));
  const char *hash = json_string_value(json_object_get(meta, "model_sha256"));
  if (meta && model_hash && *model_hash && !chi_streq(hash, model_hash)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s was collected on another model (%.12s, this one is %.12s)", file,
                  hash ? hash : "unknown", model_hash);
    goto out;
  }
  CHI_TRY(meta ? load_sums(out, st, meta, layer, n, file, err) : load_matrix(out, st, layer, n, file, err));
  for (int64_t i = 0; i < n * n; i++)
    if (!((*out)[i] > -1e300 && (*out)[i] < 1e300)) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: the moments of layer %d hold numbers that are not finite", file, layer);
      break;
    }
out:
  if (rc) {
    chi_free(*out);
    *out = NULL;
  }
  json_decref(meta);
  chi_st_close(st);
  return rc;
}

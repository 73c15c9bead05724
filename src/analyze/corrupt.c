/* Making corruptions; see corrupt.h. */
#include "analyze/corrupt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/select.h"
#include "data/entities.h"
#include "data/pictures.h"

enum { kCandidates = 8, kMaxSamples = 1000 };

void chi_corruption_free(chi_corruption *c) {
  for (int i = 0; c->picture && i < c->n; i++) chi_prompt_free(c->picture[i]);
  chi_arena_free(&c->arena);
  memset(c, 0, sizeof *c);
}

void chi_corruption_keep(chi_corruption *c, int i) {
  if (c->picture) {
    chi_prompt *kept = c->picture[i];
    for (int k = 0; k < c->n; k++)
      if (k != i) chi_prompt_free(c->picture[k]);
    c->picture[0] = kept;
  } else {
    c->tokens += (size_t)i * (size_t)c->span;
  }
  c->words += i;
  c->n = 1;
  c->choose = false;
  if (c->picture)
    snprintf(c->text, sizeof c->text, "the picture replaced by %.180s", c->words[0]);
  else
    snprintf(c->text, sizeof c->text, "'%.95s' replaced by '%.95s' (same kind, same token count)", c->was, c->words[0]);
}

/* ---- words in the place of words --------------------------------------------------------------------------- */
/* Do the words (one for each bracket, NULL = untouched) fit: same number of rows, same rows outside, and no slot that
 * keeps its token? tokens: of the corrupted rows. */
static int fits(bool *ok, int32_t *tokens, const char **why, const chi_model *m, const chi_prompt *p,
                const char *const *words, chi_err *err) {
  chi_prompt *q = NULL;
  int32_t n = 0;
  int rc = chi_prompt_reword(&q, m, p, words, err);
  *ok = false;
  if (rc) return rc;
  *why = "it has another number of tokens";
  bool same = q->n_rows == p->n_rows;
  for (int i = 0; i < p->n_spans; i++) same &= q->span[i].lo == p->span[i].lo && q->span[i].hi == p->span[i].hi;
  for (int32_t r = 0, i = 0; same && r < p->n_rows; r++) {
    while (i < p->n_spans && p->span[i].hi <= r) i++;
    bool inside = i < p->n_spans && r >= p->span[i].lo && words[i];
    if (!inside && q->tokens[r] != p->tokens[r]) same = false, *why = "it changes tokens outside the constraint";
    if (inside && q->tokens[r] == p->tokens[r]) same = false, *why = "one of its tokens is the one that stood there";
    if (inside && same && tokens) tokens[n++] = q->tokens[r];
  }
  *ok = same;
  chi_prompt_free(q);
  return 0;
}

static int alloc_runs(chi_corruption *c, int n, chi_err *err) {
  c->tokens = chi_arena_array(&c->arena, (size_t)n * (size_t)c->span, sizeof *c->tokens, err);
  c->words = chi_arena_array(&c->arena, (size_t)n, sizeof *c->words, err);
  return c->tokens && c->words ? 0 : CHI_ERR_MEMORY;
}

/* "a / b" of the brackets that have words. */
static char *join_words(chi_corruption *c, const char *const *words, int n, chi_err *err) {
  chi_str s = {0};
  for (int i = 0; i < n; i++)
    if (words[i]) chi_str_addf(&s, "%s%s", s.len ? " / " : "", words[i]);
  char *out = s.failed ? NULL : chi_arena_strdup(&c->arena, s.s ? s.s : "", err);
  if (s.failed) chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_str_free(&s);
  return out;
}

/* Entities of one bracket's kind that fit there, in an order that the seed shuffles. */
typedef struct candidates {
  const chi_entity_kind *kind;
  const char **name;
  int n;
} candidates;

static int find_candidates(candidates *out, chi_corruption *c, const chi_entities *e, const chi_model *m,
                           const chi_prompt *p, int span, int want, chi_err *err) {
  int rc = 0;
  const char *words[CHI_MAX_SPANS] = {0}, *why;
  size_t *order = NULL;
  out->kind = chi_entities_kind_of(e, p->span[span].words);
  if (!out->kind)
    return chi_fail(err, CHI_ERR_ARG,
                    "'%s' is of no known kind: give the words with --corrupt words:TEXT, or use released, random or "
                    "noise",
                    p->span[span].words);
  size_t n = out->kind->n_names;
  order = chi_calloc(n, sizeof *order, err);
  out->name = chi_arena_array(&c->arena, (size_t)want, sizeof *out->name, err);
  CHI_TRY(order && out->name ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) { /* Fisher-Yates from the inside out */
    size_t j = chi_rng_u32(c->seed, 1 + 16 * (uint32_t)span, (uint32_t)i, 0) % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (size_t i = 0; i < n && out->n < want; i++) {
    bool ok;
    words[span] = out->kind->names[order[i]];
    CHI_TRY(fits(&ok, NULL, &why, m, p, words, err));
    if (ok) out->name[out->n++] = words[span];
  }
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_ARG,
                  "no %s of %d tokens fits in place of '%s' (every slot must change): use --corrupt words:TEXT, "
                  "released, random or noise",
                  out->kind->kind, p->span[span].hi - p->span[span].lo, p->span[span].words);
out:
  chi_free(order);
  return rc;
}

/* Up to `want` runs, each with an entity of its own kind in every corrupted bracket. */
static int from_entities(chi_corruption *c, const chi_model *m, const chi_prompt *p, int want, chi_err *err) {
  int rc = 0, n = 0;
  chi_entities e = {0};
  candidates list[CHI_MAX_SPANS] = {{0}};
  CHI_TRY(chi_entities_load(&e, m->path, err));
  for (int s = 0; s < p->n_spans; s++) {
    if (!(c->spans >> s & 1)) continue;
    CHI_TRY(find_candidates(&list[s], c, &e, m, p, s, want, err));
    if (list[s].n > n) n = list[s].n;
  }
  CHI_TRY(alloc_runs(c, n, err));
  for (int i = 0; i < n; i++) {
    bool ok;
    const char *words[CHI_MAX_SPANS] = {0}, *why;
    for (int s = 0; s < p->n_spans; s++)
      if (list[s].n) words[s] = list[s].name[i % list[s].n];
    CHI_TRY(fits(&ok, c->tokens + (size_t)c->n * (size_t)c->span, &why, m, p, words, err));
    if (!ok) continue; /* each alone fits: tokens that grow together */
    CHI_TRY((c->words[c->n] = join_words(c, words, p->n_spans, err)) ? 0 : CHI_ERR_MEMORY);
    c->n++;
  }
  if (c->n == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "no entities fit in place of '%s' together: use --corrupt words:TEXT|TEXT", c->was);
out:
  chi_entities_free(&e);
  return rc;
}

/* "A|B": a text for each corrupted bracket. */
static int from_words(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *text, chi_err *err) {
  int rc = 0, wanted = 0, given = 0;
  bool ok;
  const char *why = "", *words[CHI_MAX_SPANS] = {0};
  char *list = chi_arena_strdup(&c->arena, text, err), *next = list;
  CHI_TRY(list ? 0 : CHI_ERR_MEMORY);
  for (int s = 0; s < p->n_spans; s++) wanted += (int)(c->spans >> s & 1);
  for (int s = 0; s < p->n_spans; s++) {
    if (!(c->spans >> s & 1) || !next) continue;
    words[s] = next;
    given++;
    char *bar = wanted > 1 ? strchr(next, '|') : NULL;
    if (bar) *bar = 0;
    next = bar ? bar + 1 : NULL;
  }
  if (given != wanted || next)
    return chi_fail(err, CHI_ERR_ARG, "--corrupt words: %d brackets are corrupted; give as many texts, as in words:A|B",
                    wanted);
  CHI_TRY(alloc_runs(c, 1, err));
  CHI_TRY(fits(&ok, c->tokens, &why, m, p, words, err));
  CHI_TRY((c->words[0] = join_words(c, words, p->n_spans, err)) ? 0 : CHI_ERR_MEMORY);
  if (!ok) return chi_fail(err, CHI_ERR_ARG, "'%s' cannot stand for '%s': %s", c->words[0], c->was, why);
  c->n = 1;
  snprintf(c->text, sizeof c->text, "'%.115s' replaced by '%.115s'", c->was, c->words[0]);
out:
  return rc;
}

/* Random tokens: never a special one, one without text, or the one that stood there. */
static int from_random(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *arg, chi_err *err) {
  int rc = 0;
  char *end = NULL, piece[64];
  long k = *arg ? strtol(arg, &end, 10) : 1;
  int32_t V = m->net.decoder.vocab, known = chi_vocab_size(m->tok);
  chi_str s = {0};
  if (k < 1 || k > kMaxSamples || (end && *end))
    return chi_fail(err, CHI_ERR_ARG, "--corrupt random:K needs a number of draws, 1 to %d", kMaxSamples);
  if (known < V) V = known;
  CHI_TRY(alloc_runs(c, (int)k, err));
  for (; c->n < (int)k; c->n++) {
    for (int32_t i = 0; i < c->span; i++) {
      int32_t id = -1;
      for (uint32_t tries = 0; id < 0 && tries < 1000; tries++) {
        int32_t x = (int32_t)(chi_rng_u32(c->seed, 3, (uint32_t)c->n, (uint32_t)i * 1000 + tries) % (uint32_t)V);
        chi_token_text(m->tok, x, piece, sizeof piece);
        if (!chi_token_is_special(m->tok, x) && piece[strspn(piece, " ")] && x != p->tokens[c->rows[i]]) id = x;
      }
      if (id < 0) {
        rc = chi_fail(err, CHI_ERR_ARG, "--corrupt random: the vocabulary has no ordinary tokens");
        goto out;
      }
      c->tokens[(size_t)c->n * (size_t)c->span + (size_t)i] = id;
      chi_str_add(&s, piece);
    }
    CHI_TRY(s.failed ? CHI_ERR_MEMORY : 0);
    CHI_TRY((c->words[c->n] = chi_arena_strdup(&c->arena, s.s, err)) ? 0 : CHI_ERR_MEMORY);
    s.len = 0;
  }
  if (c->n == 1)
    snprintf(c->text, sizeof c->text, "'%.80s' replaced by random tokens, '%.80s', seed %llu", c->was, c->words[0],
             (unsigned long long)c->seed);
  else
    snprintf(c->text, sizeof c->text, "'%.100s' replaced by random tokens, %d draws averaged, seed %llu", c->was, c->n,
             (unsigned long long)c->seed);
out:
  chi_str_free(&s);
  return rc;
}

/* The released script's corruption: the first sub-token of one word in every slot. */
static int from_released(chi_corruption *c, const chi_model *m, const char *word, chi_err *err) {
  int rc = 0;
  chi_tokens t = {0};
  CHI_TRY(alloc_runs(c, 1, err));
  CHI_TRY(chi_encode(m->tok, word, strlen(word), false, &t, err));
  if (t.n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "--corrupt released: '%s' has no token", word);
    goto out;
  }
  for (int32_t i = 0; i < c->span; i++) c->tokens[i] = t.id[0];
  CHI_TRY((c->words[0] = chi_arena_strdup(&c->arena, word, err)) ? 0 : CHI_ERR_MEMORY);
  c->n = 1;
  snprintf(c->text, sizeof c->text, "every token of '%.90s' replaced by the first token of '%.90s'", c->was, word);
out:
  chi_tokens_free(&t);
  return rc;
}

static void add_moments(const float *x, int64_t n, double *sum, double *sq) {
  for (int64_t i = 0; i < n; i++) {
    *sum += (double)x[i];
    *sq += (double)x[i] * (double)x[i];
  }
}

/* Standard deviation of the token embeddings: of the whole matrix, or of the tokens of a file's entities. */
static int embedding_std(double *out, const chi_model *m, const char *file, chi_err *err) {
  int rc = 0;
  int64_t d = m->net.decoder.spec.d, n = 0;
  double sum = 0, sq = 0;
  char *text = NULL, *save = NULL;
  chi_tokens t = {0};
  float *row = chi_calloc((size_t)d, sizeof *row, err);
  if (!row) return CHI_ERR_MEMORY;
  if (file) {
    size_t len;
    CHI_TRY(chi_read_file(&text, &len, file, 64 << 20, err));
    for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save))
      CHI_TRY(chi_encode(m->tok, line, strlen(line), false, &t, err));
    for (size_t i = 0; i < t.n; i++, n += d) {
      chi_net_embed_token(&m->net, t.id[i], row);
      add_moments(row, d, &sum, &sq);
    }
    if (n == 0) {
      rc = chi_fail(err, CHI_ERR_ARG, "%s holds no entity", file);
      goto out;
    }
  } else {
    for (int32_t id = 0; id < m->net.decoder.vocab; id++, n += d) {
      chi_net_embed_token(&m->net, id, row);
      add_moments(row, d, &sum, &sq);
    }
  }
  *out = sqrt(fmax(0.0, sq / (double)n - (sum / (double)n) * (sum / (double)n)));
out:
  chi_free(row);
  chi_free(text);
  chi_tokens_free(&t);
  return rc;
}

static int noise_from_file(chi_corruption *c, const char *file, int64_t d, chi_err *err) {
  int rc = 0;
  chi_st *st = NULL;
  CHI_TRY(chi_st_open(&st, file, err));
  const chi_tensor *t = chi_st_find(st, "noise");
  if (!t || t->ndim != 3 || t->dim[1] != c->span || t->dim[2] != d || t->dim[0] < 1 || t->dim[0] > kMaxSamples ||
      !chi_dtype_is_float(t->dtype)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: tensor 'noise' must be [samples][%d][%lld]", file, c->span, (long long)d);
    goto out;
  }
  c->n = (int)t->dim[0];
  size_t n = (size_t)(t->dim[0] * t->dim[1] * t->dim[2]);
  CHI_TRY((c->noise = chi_arena_array(&c->arena, n, sizeof *c->noise, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_to_f32(c->noise, t->data, t->dtype, n, err));
  snprintf(c->text, sizeof c->text, "noise arrays given, %d samples", c->n);
out:
  chi_st_close(st);
  return rc;
}

/* "3s,samples=10,seed=1": a number, or a number of standard deviations. */
static int noise_spec(chi_corruption *c, const char *spec, double *factor, bool *relative, chi_err *err) {
  char buf[128], *save = NULL;
  *factor = 3, *relative = true;
  c->n = 10;
  snprintf(buf, sizeof buf, "%s", spec);
  for (char *p = strtok_r(buf, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
    char *end = NULL;
    if (strncmp(p, "samples=", 8) == 0)
      c->n = (int)strtol(p + 8, &end, 10);
    else if (strncmp(p, "seed=", 5) == 0)
      c->seed = strtoull(p + 5, &end, 10);
    else {
      *factor = strtod(p, &end);
      *relative = *end == 's';
      if (*relative) end++;
    }
    if (!end || *end || c->n < 1 || c->n > kMaxSamples || !(*factor >= 0) || !isfinite(*factor))
      return chi_fail(err, CHI_ERR_ARG,
                      "--corrupt noise: '%s' is not understood; an example is noise:3s,samples=10,seed=1", spec);
  }
  return 0;
}

static int from_noise(chi_corruption *c, const chi_model *m, const char *spec, const chi_corrupt_opts *o,
                      chi_err *err) {
  int rc = 0;
  double factor;
  bool relative;
  int64_t d = m->net.decoder.spec.d;
  if (o->noise_file) return noise_from_file(c, o->noise_file, d, err);
  CHI_TRY(noise_spec(c, spec, &factor, &relative, err));
  c->std = factor;
  if (relative) {
    double s = 0;
    CHI_TRY(embedding_std(&s, m, o->noise_ref, err));
    c->std = factor * s;
  }
  CHI_TRY((c->noise = chi_arena_array(&c->arena, (size_t)(c->n * c->span * d), sizeof *c->noise, err))
              ? 0
              : CHI_ERR_MEMORY);
  for (int s = 0; s < c->n; s++)
    for (int32_t r = 0; r < c->span; r++)
      for (int64_t k = 0; k < d; k++)
        c->noise[((int64_t)s * c->span + r) * d + k] =
            (float)c->std * chi_rng_normal(c->seed, (uint32_t)s, (uint32_t)r, (uint32_t)k);
  snprintf(c->text, sizeof c->text, "Gaussian noise on '%.100s': standard deviation %.6g%s, %d samples, seed %llu",
           c->was, c->std,
           relative ? (o->noise_ref ? " (from the reference file)" : " (from the embedding matrix)") : "", c->n,
           (unsigned long long)c->seed);
out:
  return rc;
}

static int from_picture(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *path, chi_err *err) {
  int rc = 0;
  const char *const keep[CHI_MAX_SPANS] = {0};
  char **list = NULL;
  size_t n = 0;
  chi_err why = {0};
  if (!p->pixels) return chi_fail(err, CHI_ERR_ARG, "--corrupt picture: the prompt has no picture to replace");
  CHI_TRY(chi_pictures_find(&list, &n, &c->arena, path, c->seed, err));
  c->picture = chi_arena_array(&c->arena, kCandidates, sizeof(chi_prompt *), err);
  c->words = chi_arena_array(&c->arena, kCandidates, sizeof *c->words, err);
  CHI_TRY(c->picture && c->words ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n && c->n < kCandidates; i++) {
    CHI_TRY(chi_prompt_reword(&c->picture[c->n], m, p, keep, err)); /* a copy */
    rc = chi_prompt_picture(c->picture[c->n], m, list[i], n == 1 ? err : why.code ? NULL : &why);
    if (rc || (n > 1 && strcmp(c->picture[c->n]->image_sha, p->image_sha) == 0)) { /* its own picture */
      chi_prompt_free(c->picture[c->n]);
      c->picture[c->n] = NULL;
      if (n == 1) goto out;
      rc = 0;
      continue;
    }
    c->words[c->n++] = list[i];
  }
  if (c->n == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "--corrupt picture: %s holds no picture that can be used: %s", path,
                  why.code ? why.text : "only the item's own");
  c->choose = c->n > 1;
  snprintf(c->text, sizeof c->text, "the picture replaced by %.180s", c->n ? c->words[0] : path);
out:
  return rc;
}

/* Which rows, and what their words were. */
static int set_rows(chi_corruption *c, const chi_prompt *p, uint32_t spans, chi_err *err) {
  int rc = 0;
  const char *was[CHI_MAX_SPANS] = {0};
  uint32_t all = (1u << p->n_spans) - 1;
  if (p->n_spans == 0) return chi_fail(err, CHI_ERR_ARG, "the question brackets no constraint");
  if (spans & ~all)
    return chi_fail(err, CHI_ERR_ARG, "the question has %d bracket%s; a further one cannot be corrupted", p->n_spans,
                    p->n_spans == 1 ? "" : "s");
  c->spans = spans ? spans : all;
  c->rows = chi_arena_array(&c->arena, (size_t)p->n_rows, sizeof *c->rows, err);
  CHI_TRY(c->rows ? 0 : CHI_ERR_MEMORY);
  for (int s = 0; s < p->n_spans; s++) {
    if (!(c->spans >> s & 1)) continue;
    was[s] = p->span[s].words;
    for (int32_t r = p->span[s].lo; r < p->span[s].hi; r++) c->rows[c->span++] = r;
  }
  CHI_TRY((c->was = join_words(c, was, p->n_spans, err)) ? 0 : CHI_ERR_MEMORY);
out:
  return rc;
}

int chi_corrupt_spans(uint32_t *out, const char *text, int32_t n, chi_err *err) {
  int32_t *list = NULL, count = 0;
  int rc;
  *out = 0;
  if (!text || chi_streq(text, "all")) return 0;
  if ((rc = chi_select_ranges(&list, &count, text, n + 1, "bracket", err)) != 0) return rc;
  for (int32_t i = 0; i < count; i++) *out |= list[i] ? 1u << (list[i] - 1) : 0;
  rc = list[0] == 0 ? chi_fail(err, CHI_ERR_ARG, "brackets '%s': they are counted from 1", text) : 0;
  chi_free(list);
  return rc;
}

int chi_corruption_make(chi_corruption *out, const chi_model *m, const chi_prompt *p, const chi_corrupt_opts *o,
                        chi_err *err) {
  int rc = 0;
  const char *spec = o->spec ? o->spec : "same-length", *colon = strchr(spec, ':'), *arg = colon ? colon + 1 : "";
  size_t n = colon ? (size_t)(colon - spec) : strcspn(spec, ",");
  memset(out, 0, sizeof *out);
  out->seed = o->seed;
#define IS(word) (n == strlen(word) && strncmp(spec, word, n) == 0)
  if (!IS("picture")) CHI_TRY(set_rows(out, p, o->spans, err));
  if (IS("same-length")) {
    out->kind = CHI_CORRUPT_SAME_LENGTH;
    out->choose = true;
    rc = from_entities(out, m, p, kCandidates, err);
  } else if (IS("words")) {
    out->kind = CHI_CORRUPT_WORDS;
    rc = from_words(out, m, p, arg, err);
  } else if (IS("released")) {
    out->kind = CHI_CORRUPT_RELEASED;
    rc = from_released(out, m, *arg ? arg : "Paris", err);
  } else if (IS("pool")) {
    char *end = NULL;
    long k = strtol(arg, &end, 10);
    out->kind = CHI_CORRUPT_POOL;
    if (k < 1 || k > kMaxSamples || *end)
      rc = chi_fail(err, CHI_ERR_ARG, "--corrupt pool:K needs a number of entities, 1 to %d", kMaxSamples);
    if (rc == 0) rc = from_entities(out, m, p, (int)k, err);
    snprintf(out->text, sizeof out->text, "'%.150s' replaced by %d entities of its kind and token count, averaged",
             out->was, out->n);
  } else if (IS("random")) {
    out->kind = CHI_CORRUPT_RANDOM;
    rc = from_random(out, m, p, arg, err);
  } else if (IS("noise")) {
    out->kind = CHI_CORRUPT_NOISE;
    rc = from_noise(out, m, colon ? arg : strchr(spec, ',') ? strchr(spec, ',') + 1 : "", o, err);
  } else if (IS("picture")) {
    out->kind = CHI_CORRUPT_PICTURE;
    rc = from_picture(out, m, p, arg, err);
  } else {
    rc = chi_fail(err, CHI_ERR_ARG,
                  "unknown corruption '%s'; known are same-length, words:TEXT, released[:WORD], pool:K, random[:K], "
                  "noise[:3s], picture:FILE",
                  spec);
  }
#undef IS
out:
  if (rc) chi_corruption_free(out);
  return rc;
}

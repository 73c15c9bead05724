/* Making corruptions; see corrupt.h. */
#include "analyze/corrupt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/entities.h"

enum { kCandidates = 8, kMaxSamples = 1000 };

void chi_corruption_free(chi_corruption *c) {
  chi_prompt_free(c->picture);
  chi_arena_free(&c->arena);
  memset(c, 0, sizeof *c);
}

void chi_corruption_keep(chi_corruption *c, const chi_prompt *p, int i) {
  c->tokens += (size_t)i * (size_t)c->span;
  c->words += i;
  c->n = 1;
  c->choose = false;
  snprintf(c->text, sizeof c->text, "'%s' replaced by '%s' (same kind, same token count)", p->constraint, c->words[0]);
}

/* Do the words fit: same number of rows, same rows outside the span, and no slot that keeps its token? */
static int fits(bool *ok, int32_t *tokens, const char **why, const chi_model *m, const chi_prompt *p, const char *words,
                chi_err *err) {
  chi_prompt *q = NULL;
  int rc = chi_prompt_replace(&q, m, p, words, err);
  *ok = false;
  if (rc) return rc;
  int32_t n = p->span_hi - p->span_lo;
  *why = "it has another number of tokens";
  bool same = q->n_rows == p->n_rows && q->span_lo == p->span_lo && q->span_hi == p->span_hi;
  for (int32_t r = 0; same && r < p->n_rows; r++) {
    bool inside = r >= p->span_lo && r < p->span_hi;
    if (!inside && q->tokens[r] != p->tokens[r]) same = false, *why = "it changes tokens outside the constraint";
    if (inside && q->tokens[r] == p->tokens[r]) same = false, *why = "one of its tokens is the one that stood there";
  }
  if (same) memcpy(tokens, q->tokens + p->span_lo, (size_t)n * sizeof *tokens);
  *ok = same;
  chi_prompt_free(q);
  return 0;
}

static int alloc_runs(chi_corruption *c, const chi_prompt *p, int n, chi_err *err) {
  c->span = p->span_hi - p->span_lo;
  c->tokens = chi_arena_array(&c->arena, (size_t)n * (size_t)c->span, sizeof *c->tokens, err);
  c->words = chi_arena_array(&c->arena, (size_t)n, sizeof *c->words, err);
  return c->tokens && c->words ? 0 : CHI_ERR_MEMORY;
}

/* Up to `want` entities of the constraint's kind that fit, in an order that the seed shuffles. */
static int from_entities(chi_corruption *c, const chi_model *m, const chi_prompt *p, int want, chi_err *err) {
  int rc = 0;
  chi_entities e = {0};
  size_t *order = NULL;
  CHI_TRY(chi_entities_load(&e, m->path, err));
  const chi_entity_kind *kind = chi_entities_kind_of(&e, p->constraint);
  if (!kind) {
    rc = chi_fail(err, CHI_ERR_ARG,
                  "'%s' is of no known kind: give the words with --corrupt words:TEXT, or use released, pool or noise",
                  p->constraint);
    goto out;
  }
  CHI_TRY((order = chi_calloc(kind->n_names, sizeof *order, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(alloc_runs(c, p, want, err));
  for (size_t i = 0; i < kind->n_names; i++) { /* Fisher-Yates from the inside out */
    size_t j = chi_rng_u32(c->seed, 1, (uint32_t)i, 0) % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (size_t i = 0; i < kind->n_names && c->n < want; i++) {
    bool ok;
    const char *why;
    CHI_TRY(fits(&ok, c->tokens + (size_t)c->n * (size_t)c->span, &why, m, p, kind->names[order[i]], err));
    if (!ok) continue;
    CHI_TRY((c->words[c->n] = chi_arena_strdup(&c->arena, kind->names[order[i]], err)) ? 0 : CHI_ERR_MEMORY);
    c->n++;
  }
  if (c->n == 0)
    rc = chi_fail(err, CHI_ERR_ARG,
                  "no %s of %d tokens fits in place of '%s' (every slot must change): use --corrupt words:TEXT, "
                  "released or noise",
                  kind->kind, c->span, p->constraint);
out:
  chi_free(order);
  chi_entities_free(&e);
  return rc;
}

static int from_words(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *words, chi_err *err) {
  int rc = 0;
  bool ok;
  const char *why = "";
  CHI_TRY(alloc_runs(c, p, 1, err));
  CHI_TRY(fits(&ok, c->tokens, &why, m, p, words, err));
  if (!ok) return chi_fail(err, CHI_ERR_ARG, "'%s' cannot stand for '%s': %s", words, p->constraint, why);
  CHI_TRY((c->words[0] = chi_arena_strdup(&c->arena, words, err)) ? 0 : CHI_ERR_MEMORY);
  c->n = 1;
  snprintf(c->text, sizeof c->text, "'%s' replaced by '%s'", p->constraint, words);
out:
  return rc;
}

/* The released script's corruption: the first sub-token of one word in every slot. */
static int from_released(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *word, chi_err *err) {
  int rc = 0;
  chi_tokens t = {0};
  CHI_TRY(alloc_runs(c, p, 1, err));
  CHI_TRY(chi_encode(m->tok, word, strlen(word), false, &t, err));
  if (t.n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "--corrupt released: '%s' has no token", word);
    goto out;
  }
  for (int32_t i = 0; i < c->span; i++) c->tokens[i] = t.id[0];
  CHI_TRY((c->words[0] = chi_arena_strdup(&c->arena, word, err)) ? 0 : CHI_ERR_MEMORY);
  c->n = 1;
  snprintf(c->text, sizeof c->text, "every token of '%s' replaced by the first token of '%s'", p->constraint, word);
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

static int from_noise(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *spec,
                      const chi_corrupt_opts *o, chi_err *err) {
  int rc = 0;
  double factor;
  bool relative;
  int64_t d = m->net.decoder.spec.d;
  c->span = p->span_hi - p->span_lo;
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
  snprintf(c->text, sizeof c->text, "Gaussian noise on '%s': standard deviation %.6g%s, %d samples, seed %llu",
           p->constraint, c->std,
           relative ? (o->noise_ref ? " (from the reference file)" : " (from the embedding matrix)") : "", c->n,
           (unsigned long long)c->seed);
out:
  return rc;
}

static int from_picture(chi_corruption *c, const chi_model *m, const chi_prompt *p, const char *file, chi_err *err) {
  int rc = 0;
  if (!p->pixels) return chi_fail(err, CHI_ERR_ARG, "--corrupt picture: the prompt has no picture to replace");
  CHI_TRY(chi_prompt_replace(&c->picture, m, p, p->constraint, err)); /* a copy */
  CHI_TRY(chi_prompt_picture(c->picture, m, file, err));
  c->n = 1;
  c->span = p->span_hi - p->span_lo;
  snprintf(c->text, sizeof c->text, "the picture replaced by %.180s", file);
out:
  return rc;
}

int chi_corruption_make(chi_corruption *out, const chi_model *m, const chi_prompt *p, const chi_corrupt_opts *o,
                        chi_err *err) {
  int rc = 0;
  const char *spec = o->spec ? o->spec : "same-length", *colon = strchr(spec, ':'), *arg = colon ? colon + 1 : "";
  size_t n = colon ? (size_t)(colon - spec) : strcspn(spec, ",");
  memset(out, 0, sizeof *out);
  out->seed = o->seed;
  if (p->span_lo == p->span_hi) return chi_fail(err, CHI_ERR_ARG, "the question brackets no constraint");
#define IS(word) (n == strlen(word) && strncmp(spec, word, n) == 0)
  if (IS("same-length")) {
    out->kind = CHI_CORRUPT_SAME_LENGTH;
    out->choose = true;
    rc = from_entities(out, m, p, kCandidates, err);
  } else if (IS("words")) {
    out->kind = CHI_CORRUPT_WORDS;
    rc = from_words(out, m, p, arg, err);
  } else if (IS("released")) {
    out->kind = CHI_CORRUPT_RELEASED;
    rc = from_released(out, m, p, *arg ? arg : "Paris", err);
  } else if (IS("pool")) {
    char *end = NULL;
    long k = strtol(arg, &end, 10);
    out->kind = CHI_CORRUPT_POOL;
    if (k < 1 || k > kMaxSamples || *end)
      rc = chi_fail(err, CHI_ERR_ARG, "--corrupt pool:K needs a number of entities, 1 to %d", kMaxSamples);
    if (rc == 0) rc = from_entities(out, m, p, (int)k, err);
    snprintf(out->text, sizeof out->text, "'%s' replaced by %d entities of its kind and token count, averaged",
             p->constraint, out->n);
  } else if (IS("noise")) {
    out->kind = CHI_CORRUPT_NOISE;
    rc = from_noise(out, m, p, colon ? arg : strchr(spec, ',') ? strchr(spec, ',') + 1 : "", o, err);
  } else if (IS("picture")) {
    out->kind = CHI_CORRUPT_PICTURE;
    rc = from_picture(out, m, p, arg, err);
  } else {
    rc = chi_fail(
        err, CHI_ERR_ARG,
        "unknown corruption '%s'; known are same-length, words:TEXT, released[:WORD], pool:K, noise[:3s], picture:FILE",
        spec);
  }
#undef IS
  if (rc) chi_corruption_free(out);
  return rc;
}

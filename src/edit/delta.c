/* Deltas: data, files, merge; applying them is apply.c. */
#include "edit/delta.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 1 << 20 };

static const char *weight_name(int which) {
  return which == CHI_DELTA_HEAD_BIAS ? "head_bias" : chi_weight_name((chi_weight)which);
}

void chi_delta_part_name(const chi_delta_part *p, char *buf, size_t cap) {
  snprintf(buf, cap, "%s.%d.%s", chi_stack_name(p->stack), p->layer, weight_name(p->which));
}

void chi_delta_free(chi_delta *d) {
  if (!d) return;
  json_decref(d->header);
  chi_free(d->part);
  chi_arena_free(&d->arena);
  chi_free(d);
}

static chi_delta *new_delta(chi_err *err) { return chi_calloc(1, sizeof(chi_delta), err); }

int chi_delta_new(chi_delta **out, const char *method, chi_err *err) {
  chi_delta *d = new_delta(err);
  if (!d) return CHI_ERR_MEMORY;
  d->header = json_pack("{s:s,s:s}", "format", CHI_DELTA_FORMAT, "method", method);
  if (!d->header) {
    chi_delta_free(d);
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  *out = d;
  return 0;
}

const char *chi_delta_method(const chi_delta *d) {
  const char *s = json_string_value(json_object_get(d->header, "method"));
  return s ? s : "?";
}

const char *chi_delta_prefix(const chi_delta *d) {
  return json_string_value(json_object_get(d->header, "prompt_prefix"));
}

const char *chi_delta_base(const chi_delta *d) {
  const char *s = json_string_value(json_object_get(json_object_get(d->header, "base"), "sha256"));
  return s ? s : "";
}

/* ---- parts ------------------------------------------------------------------------------------------------ */
static chi_delta_part *find(const chi_delta *d, chi_stack stack, int layer, int which) {
  for (size_t i = 0; i < d->n; i++)
    if (d->part[i].stack == stack && d->part[i].layer == layer && d->part[i].which == which) return &d->part[i];
  return NULL;
}

static bool all_finite(const float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!isfinite(x[i])) return false;
  return true;
}

/* a then b, in the arena. */
static float *joined(chi_delta *d, const float *a, size_t na, const float *b, size_t nb, chi_err *err) {
  float *x = chi_arena_array(&d->arena, na + nb, sizeof *x, err);
  if (x && na) memcpy(x, a, na * sizeof *x);
  if (x && nb) memcpy(x + na, b, nb * sizeof *x);
  return x;
}

int chi_delta_add(chi_delta *d, chi_stack stack, int layer, int which, int64_t n, int64_t k, int64_t rank,
                  const float *u, const float *v, chi_err *err) {
  int rc = 0;
  char name[96];
  chi_delta_part *p = find(d, stack, layer, which);
  chi_delta_part at = {.stack = stack, .layer = layer, .which = which, .n = n, .k = k};
  chi_delta_part_name(&at, name, sizeof name);
  if (n < 1 || k < 1 || rank < 0 || (v ? rank < 1 : rank != 0))
    return chi_fail(err, CHI_ERR_ARG, "%s: a change of %lld x %lld, rank %lld", name, (long long)n, (long long)k,
                    (long long)rank);
  if (p && (p->n != n || p->k != k))
    return chi_fail(err, CHI_ERR_ARG, "%s: one change is %lldx%lld, another %lldx%lld", name, (long long)p->n,
                    (long long)p->k, (long long)n, (long long)k);
  if (!(v ? all_finite(u, (size_t)(rank * n)) && all_finite(v, (size_t)(rank * k)) : all_finite(u, (size_t)(n * k))))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: the change holds numbers that are not finite", name);
  if (!p) {
    void *list = d->part;
    CHI_TRY(chi_grow(&list, &d->cap, d->n + 1, sizeof *d->part, err));
    d->part = list;
    d->part[d->n] = at;
    p = &d->part[d->n];
  }
  chi_delta_part next = *p;
  if (v) {
    next.u = joined(d, p->u, (size_t)(p->rank * n), u, (size_t)(rank * n), err);
    next.v = joined(d, p->v, (size_t)(p->rank * k), v, (size_t)(rank * k), err);
    next.rank = p->rank + rank;
    CHI_TRY(next.u && next.v ? 0 : CHI_ERR_MEMORY);
  } else {
    next.d = joined(d, u, (size_t)(n * k), NULL, 0, err);
    CHI_TRY(next.d ? 0 : CHI_ERR_MEMORY);
    for (int64_t i = 0; p->d && i < n * k; i++) next.d[i] += p->d[i];
  }
  *p = next;
  if ((size_t)(p - d->part) == d->n) d->n++;
out:
  return rc;
}

/* ---- files ------------------------------------------------------------------------------------------------ */
int chi_delta_save(const chi_delta *d, const char *path, chi_err *err) {
  int rc = 0;
  char name[112], base[96];
  char *text = json_dumps(d->header, JSON_COMPACT | JSON_REAL_PRECISION(9));
  chi_st_writer *w = NULL;
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "%s: the header could not be made", path);
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_st_writer_meta(w, "chiasm_delta", text, err));
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    chi_delta_part_name(p, base, sizeof base);
    snprintf(name, sizeof name, "%s.u", base);
    if (p->rank) CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 2, (int64_t[]){p->rank, p->n}, p->u, err));
    snprintf(name, sizeof name, "%s.v", base);
    if (p->rank) CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 2, (int64_t[]){p->rank, p->k}, p->v, err));
    snprintf(name, sizeof name, "%s.d", base);
    if (p->d) CHI_TRY(chi_st_writer_add(w, name, CHI_F32, 2, (int64_t[]){p->n, p->k}, p->d, err));
  }
  chi_st_writer *done = w;
  w = NULL;
  rc = chi_st_writer_commit(done, err);
out:
  chi_st_writer_abort(w);
  free(text);
  return rc;
}

/* "decoder.2.down.u"; false if it is no such name. */
static bool parse_name(const char *name, chi_delta_part *p, char *kind) {
  const char *dot = strchr(name, '.');
  int stack = 0, which = 0;
  char *end = NULL;
  if (!dot) return false;
  size_t n = (size_t)(dot - name);
  while (stack < CHI_STACK_COUNT &&
         (strlen(chi_stack_name((chi_stack)stack)) != n || strncmp(chi_stack_name((chi_stack)stack), name, n) != 0))
    stack++;
  if (stack == CHI_STACK_COUNT || dot[1] < '0' || dot[1] > '9') return false;
  long layer = strtol(dot + 1, &end, 10);
  if (layer < 0 || layer > 100000 || *end != '.') return false;
  const char *word = end + 1;
  dot = strchr(word, '.');
  if (!dot || !dot[1] || dot[2] || !strchr("uvd", dot[1])) return false;
  n = (size_t)(dot - word);
  while (which <= CHI_DELTA_HEAD_BIAS && (strlen(weight_name(which)) != n || strncmp(weight_name(which), word, n) != 0))
    which++;
  if (which > CHI_DELTA_HEAD_BIAS) return false;
  *p = (chi_delta_part){.stack = (chi_stack)stack, .layer = (int)layer, .which = which};
  *kind = dot[1];
  return true;
}

static int take(chi_delta *d, const chi_st *st, const chi_tensor *t, chi_err *err) {
  int rc = 0;
  char kind = 0, base[96], name[112];
  chi_delta_part p;
  if (!parse_name(t->name, &p, &kind))
    return chi_fail(err, CHI_ERR_FORMAT, "tensor '%.120s' is not named <stack>.<layer>.<weight>.u, .v or .d", t->name);
  if (t->dtype != CHI_F32 || t->ndim != 2 || t->dim[0] < 1 || t->dim[1] < 1)
    return chi_fail(err, CHI_ERR_FORMAT, "tensor '%s' is not an F32 matrix", t->name);
  chi_delta_part_name(&p, base, sizeof base);
  if (kind == 'd') return chi_delta_add(d, p.stack, p.layer, p.which, t->dim[0], t->dim[1], 0, t->data, NULL, err);
  snprintf(name, sizeof name, "%s.%c", base, kind == 'u' ? 'v' : 'u');
  const chi_tensor *other = chi_st_find(st, name);
  if (!other) return chi_fail(err, CHI_ERR_FORMAT, "tensor '%s' has no '%s' beside it", t->name, name);
  if (kind == 'v') return 0; /* comes with its u */
  if (other->dtype != CHI_F32 || other->ndim != 2 || other->dim[0] != t->dim[0] || other->dim[1] < 1 ||
      t->dim[0] > MAX_RANK)
    return chi_fail(err, CHI_ERR_FORMAT, "tensors '%s' and '%s' are not F32 matrices of one rank", t->name, name);
  CHI_TRY(chi_delta_add(d, p.stack, p.layer, p.which, t->dim[1], other->dim[1], t->dim[0], t->data, other->data, err));
out:
  return rc;
}

int chi_delta_load(chi_delta **out, const char *path, chi_err *err) {
  int rc = 0;
  chi_st *st = NULL;
  chi_err why = {0};
  chi_delta *d = new_delta(err);
  if (!d) return CHI_ERR_MEMORY;
  CHI_TRY(chi_st_open(&st, path, err));
  const char *text = chi_st_meta(st, "chiasm_delta"), *format;
  if (!text) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: no delta of chiasm (its metadata has no \"chiasm_delta\")", path);
    goto out;
  }
  CHI_TRY(chi_json_parse(&d->header, text, strlen(text), path, err));
  format = json_string_value(json_object_get(d->header, "format"));
  if (!chi_streq(format, CHI_DELTA_FORMAT)) {
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: format is '%.40s'; this program reads " CHI_DELTA_FORMAT, path,
                  format ? format : "(absent)");
    goto out;
  }
  for (size_t i = 0; rc == 0 && i < chi_st_count(st); i++) rc = take(d, st, chi_st_at(st, i), &why);
  if (rc == 0 && d->n == 0 && !chi_delta_prefix(d)) rc = chi_fail(&why, CHI_ERR_FORMAT, "the delta changes nothing");
  if (rc) {
    rc = chi_fail(err, rc, "%s: %s", path, why.text);
    goto out;
  }
  CHI_TRY(chi_sha256_file(d->sha256, path, err));
out:
  chi_st_close(st);
  if (rc)
    chi_delta_free(d);
  else
    *out = d;
  return rc;
}

/* ---- merge, show, diff ------------------------------------------------------------------------------------ */
int chi_delta_merge(chi_delta **out, chi_delta *const *list, size_t n, chi_err *err) {
  int rc = 0;
  chi_delta *d = NULL;
  json_t *from = json_array();
  if (n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "nothing to merge");
    goto out;
  }
  CHI_TRY(chi_delta_new(&d, "merge", err));
  for (size_t i = 0; i < n; i++) {
    if (chi_delta_prefix(list[i])) {
      rc = chi_fail(err, CHI_ERR_ARG, "an in-context edit has no weights: it cannot be merged");
      goto out;
    }
    if (!chi_streq(chi_delta_base(list[i]), chi_delta_base(list[0]))) {
      rc = chi_fail(err, CHI_ERR_ARG, "the deltas were made for different models (base %.12s and %.12s)",
                    chi_delta_base(list[0]), chi_delta_base(list[i]));
      goto out;
    }
    for (size_t j = 0; j < list[i]->n; j++) {
      const chi_delta_part *p = &list[i]->part[j];
      if (p->rank) CHI_TRY(chi_delta_add(d, p->stack, p->layer, p->which, p->n, p->k, p->rank, p->u, p->v, err));
      if (p->d) CHI_TRY(chi_delta_add(d, p->stack, p->layer, p->which, p->n, p->k, 0, p->d, NULL, err));
    }
    json_array_append(from, list[i]->header);
  }
  json_object_set(d->header, "base", json_object_get(list[0]->header, "base"));
  json_object_set(d->header, "of", from);
out:
  json_decref(from);
  if (rc)
    chi_delta_free(d);
  else
    *out = d;
  return rc;
}

static float *dense(const chi_delta_part *p, chi_err *err) {
  float *w = chi_calloc((size_t)(p->n * p->k), sizeof *w, err);
  if (w) chi_delta_add_to(p, 0, p->n, w);
  return w;
}

static double dot(const float *a, const float *b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
  return s;
}

double chi_delta_norm(const chi_delta_part *p, chi_err *err) {
  float *w = dense(p, err);
  if (!w) return -1;
  double x = sqrt(dot(w, w, p->n * p->k));
  chi_free(w);
  return x;
}

int chi_delta_show(const chi_delta *d, chi_str *out, chi_err *err) {
  int rc = 0;
  char name[96];
  char *text = json_dumps(d->header, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_str_addf(out, "%s\n\n", text);
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    double norm = chi_delta_norm(p, err);
    if (norm < 0) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    chi_delta_part_name(p, name, sizeof name);
    chi_str_addf(out, "%s  %lldx%lld  ", name, (long long)p->n, (long long)p->k);
    if (p->rank) chi_str_addf(out, "rank %lld", (long long)p->rank);
    if (p->d) chi_str_addf(out, "%sdense", p->rank ? " + " : "");
    chi_str_addf(out, "  norm %.6g\n", norm);
  }
out:
  free(text);
  return rc;
}

int chi_delta_diff(const chi_delta *a, const chi_delta *b, chi_str *out, chi_err *err) {
  int rc = 0;
  char name[96];
  float *x = NULL, *y = NULL;
  if (!chi_streq(chi_delta_base(a), chi_delta_base(b))) chi_str_add(out, "the bases differ\n");
  for (int side = 0; side < 2; side++) {
    const chi_delta *d = side ? b : a, *e = side ? a : b;
    for (size_t i = 0; i < d->n; i++) {
      const chi_delta_part *p = &d->part[i], *q = find(e, p->stack, p->layer, p->which);
      chi_delta_part_name(p, name, sizeof name);
      if (!q || q->n != p->n || q->k != p->k) {
        chi_str_addf(out, "%s  only in the %s\n", name, side ? "second" : "first");
        continue;
      }
      if (side) continue;
      x = dense(p, err);
      y = x ? dense(q, err) : NULL;
      CHI_TRY(x && y ? 0 : CHI_ERR_MEMORY);
      int64_t n = p->n * p->k;
      double xx = dot(x, x, n), yy = dot(y, y, n), xy = dot(x, y, n), dd = 0;
      for (int64_t j = 0; j < n; j++) dd += ((double)x[j] - (double)y[j]) * ((double)x[j] - (double)y[j]);
      chi_str_addf(out, "%s  norms %.6g and %.6g, difference %.6g, cosine %.4f\n", name, sqrt(xx), sqrt(yy), sqrt(dd),
                   xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0.0);
      chi_free(x);
      chi_free(y);
      x = y = NULL;
    }
  }
out:
  chi_free(x);
  chi_free(y);
  return rc;
}

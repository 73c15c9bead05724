/* Names -> weights. After binding no code looks up a name. */
#include <stdio.h>
#include <string.h>

#include "model/family.h"
#include "model/packed.h"

static void shape_text(char *buf, size_t cap, int ndim, const int64_t *dim) {
  size_t n = 0;
  buf[0] = 0;
  for (int i = 0; i < ndim && n < cap; i++)
    n += (size_t)snprintf(buf + n, cap - n, "%s%lld", i ? "x" : "", (long long)dim[i]);
}

static void mark_used(chi_binder *b, const chi_tensor *t) { /* sorted by name */
  size_t lo = 0, hi = chi_st_count(b->st);
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;
    const chi_tensor *x = chi_st_at(b->st, mid);
    if (x == t) {
      int64_t count = 1;
      for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
      if (!b->used[mid]) b->m->params += count;
      b->used[mid] = 1;
      return;
    }
    if (strcmp(x->name, t->name) < 0)
      lo = mid + 1;
    else
      hi = mid;
  }
}

/* A tensor as it was asked for, without data. */
static const chi_tensor *told(chi_binder *b, const char *name, int ndim, const int64_t *dim, chi_err *err) {
  chi_tensor *t = chi_arena_alloc(&b->m->arena, sizeof *t, err);
  if (!t || b->record(b->record_ud, name, ndim, dim, err)) return NULL;
  *t = (chi_tensor){.name = "", .dtype = CHI_BF16, .ndim = ndim};
  for (int i = 0; i < ndim; i++) t->dim[i] = dim[i];
  return t;
}

const chi_tensor *chi_bind_tensor(chi_binder *b, const char *name, int ndim, const int64_t *dim, chi_err *err) {
  if (b->record) return told(b, name, ndim, dim, err);
  const chi_tensor *t = chi_st_find(b->st, name);
  if (!t) {
    chi_fail(err, CHI_ERR_FORMAT, "%s: tensor '%s' is missing", b->m->path, name);
    return NULL;
  }
  bool same = t->ndim == ndim;
  for (int i = 0; same && i < ndim; i++) same = t->dim[i] == dim[i];
  if (!same) {
    char want[96], found[96];
    shape_text(want, sizeof want, ndim, dim);
    shape_text(found, sizeof found, t->ndim, t->dim);
    chi_fail(err, CHI_ERR_FORMAT, "%s: tensor '%s' has shape %s; the config asks for %s", b->m->path, name, found,
             want);
    return NULL;
  }
  if (!chi_dtype_is_weight(t->dtype)) {
    chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: tensor '%s' is %s; weights are F32, F16, BF16 or quantised", b->m->path,
             name, chi_dtype_name(t->dtype));
    return NULL;
  }
  mark_used(b, t);
  return t;
}

/* Formats a name into `name` (a char array of the caller). */
#define NAME(name)                                                                       \
  do {                                                                                   \
    va_list ap;                                                                          \
    va_start(ap, fmt);                                                                   \
    int name_n = vsnprintf(name, sizeof name, fmt, ap);                                  \
    va_end(ap);                                                                          \
    if (name_n < 0 || (size_t)name_n >= sizeof name)                                     \
      return chi_fail(err, CHI_ERR_FORMAT, "%s: a tensor name is too long", b->m->path); \
  } while (0)

/* Elements [at, at + n) of a stored tensor as f32. */
static int floats(const chi_binder *b, float **out, const chi_tensor *t, int64_t at, int64_t n, chi_err *err) {
  if (b->dry) return 0;
  *out = chi_calloc((size_t)n, sizeof **out, err);
  if (!*out) return CHI_ERR_MEMORY;
  if (at % chi_dtype_block(t->dtype) != 0)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: tensor '%s' is cut inside a block of %s", b->m->path, t->name,
                    chi_dtype_name(t->dtype));
  return chi_to_f32(*out, (const uint8_t *)t->data + chi_dtype_bytes(t->dtype, (size_t)at), t->dtype, (size_t)n, err);
}

enum { kAhead = 128 << 20 };
/* The source leaves memory as soon as it is packed: what a load needs at most is the packed weights and one matrix. */
static int pack(const chi_binder *b, chi_mat *out, const void *data, chi_dtype dtype, int64_t n, int64_t k,
                chi_err *err) {
  if (!b->dry && b->packed && chi_packed_ready(b->packed)) {
    *out = (chi_mat){.n = n, .k = k, .compute = b->m->net.compute};
    return chi_packed_next(b->packed, out, err);
  }
  if (!b->dry) {
    size_t bytes = chi_dtype_bytes(dtype, (size_t)(n * k));
    chi_st_ahead(b->st, data, bytes + kAhead); /* the next matrix comes in while this one is packed */
    int rc = chi_mat_pack(out, data, dtype, n, k, k, b->m->net.compute, err);
    chi_st_drop(b->st, data, bytes);
    return rc == 0 && b->packed ? chi_packed_put(b->packed, out, err) : rc;
  }
  *out = (chi_mat){.n = n, .k = k, .compute = b->m->net.compute, .store = dtype};
  return 0;
}

/* Remembers which tensor a layer was read from (base.weight, base.bias). */
static int record(chi_binder *b, const chi_linear *l, const char *weight, const char *bias, int64_t total, int64_t at,
                  bool transposed, chi_err *err) {
  chi_model *m = b->m;
  void *p = m->bound;
  int rc = chi_grow(&p, &m->cap_bound, m->n_bound + 1, sizeof *m->bound, err);
  if (rc) return rc;
  m->bound = p;
  chi_bound x = {.linear = l, .total = total, .at = at, .transposed = transposed};
  x.weight = chi_arena_strdup(&m->arena, weight, err);
  if (bias) x.bias = chi_arena_strdup(&m->arena, bias, err);
  if (!x.weight || (bias && !x.bias)) return CHI_ERR_MEMORY;
  m->bound[m->n_bound++] = x;
  return 0;
}

const chi_bound *chi_model_bound(const chi_model *m, const chi_linear *l) {
  for (size_t i = 0; i < m->n_bound; i++)
    if (m->bound[i].linear == l) return &m->bound[i];
  return NULL;
}

static int vec(chi_binder *b, float **out, int64_t n, const char *name, chi_err *err) {
  const chi_tensor *t = chi_bind_tensor(b, name, 1, &n, err);
  return t ? floats(b, out, t, 0, n, err) : CHI_ERR_FORMAT;
}

int chi_bind_vec(chi_binder *b, float **out, int64_t n, chi_err *err, const char *fmt, ...) {
  char name[256];
  NAME(name);
  return vec(b, out, n, name, err);
}

int chi_bind_norm(chi_binder *b, chi_norm *out, int64_t n, bool want_bias, chi_err *err, const char *fmt, ...) {
  char base[256], name[288];
  NAME(base);
  snprintf(name, sizeof name, "%s.weight", base);
  int rc = vec(b, &out->w, n, name, err);
  if (rc || !want_bias) return rc;
  snprintf(name, sizeof name, "%s.bias", base);
  return vec(b, &out->b, n, name, err);
}

int chi_bind_linear(chi_binder *b, chi_linear *out, int64_t n, int64_t k, bool want_bias, chi_err *err, const char *fmt,
                    ...) {
  char base[256], name[288];
  NAME(base);
  snprintf(name, sizeof name, "%s.weight", base);
  const chi_tensor *t = b->record ? NULL : chi_st_find(b->st, name);
  int64_t dim[4] = {n, k, 0, 0};
  int ndim = 2;
  const int32_t patch = b->m->net.vision.patch;
  if (b->record && out == &b->m->net.vision.patch_embed && k == 3 * (int64_t)patch * patch) {
    ndim = 4;
    dim[1] = 3, dim[2] = dim[3] = patch;
  } else if (t && t->ndim == 4 && t->dim[1] == 3 && t->dim[2] > 0 && t->dim[2] < 65536 && t->dim[2] == t->dim[3] &&
             t->dim[2] * t->dim[3] * 3 == k) { /* a patch convolution is a matrix */
    ndim = 4;
    dim[1] = 3, dim[2] = t->dim[2], dim[3] = t->dim[3];
  }
  if (!(t = chi_bind_tensor(b, name, ndim, dim, err))) return CHI_ERR_FORMAT;
  char bias[288];
  snprintf(bias, sizeof bias, "%s.bias", base);
  int rc = record(b, out, name, want_bias ? bias : NULL, n, 0, false, err);
  if (rc == 0) rc = pack(b, &out->w, t->data, t->dtype, n, k, err);
  if (rc || !want_bias) return rc;
  return vec(b, &out->bias, n, bias, err);
}

/* Columns [at, at + n) of a [k][total] matrix, as rows: 64 of them are one task. */
enum { TURN = 64 };
typedef struct turn_job {
  const uint8_t *in; /* column `at` of row 0 */
  uint8_t *out;
  int64_t n, k, total;
  size_t size;
} turn_job;
static void turn(void *ud, int64_t task) {
  const turn_job *t = ud;
  int64_t j0 = task * TURN, j1 = j0 + TURN < t->n ? j0 + TURN : t->n;
  for (int64_t i = 0; i < t->k; i++)
    for (int64_t j = j0; j < j1; j++)
      memcpy(t->out + (size_t)(j * t->k + i) * t->size, t->in + (size_t)(i * t->total + j) * t->size, t->size);
}

static void *transpose(const chi_tensor *t, int64_t n, int64_t k, chi_bind_slice s, chi_err *err) {
  size_t size = chi_dtype_size(t->dtype);
  uint8_t *out = chi_calloc((size_t)n * (size_t)k, size, err);
  turn_job j = {.in = (const uint8_t *)t->data + (size_t)s.at * size, .out = out, .n = n, .k = k, .total = s.total};
  j.size = size;
  if (out) chi_parallel_for((n + TURN - 1) / TURN, turn, &j);
  return out;
}

int chi_bind_part(chi_binder *b, chi_linear *out, int64_t n, int64_t k, chi_bind_slice s, bool want_bias, chi_err *err,
                  const char *fmt, ...) {
  char base[256], name[288];
  NAME(base);
  snprintf(name, sizeof name, "%s.weight", base);
  if (b->rows_first) s.transposed = false;
  int64_t dim[2] = {s.transposed ? k : s.total, s.transposed ? s.total : k};
  const chi_tensor *t = chi_bind_tensor(b, name, 2, dim, err);
  if (!t) return CHI_ERR_FORMAT;
  char bias[288];
  snprintf(bias, sizeof bias, "%s.bias", base);
  int rc = record(b, out, name, want_bias ? bias : NULL, s.total, s.at, s.transposed, err);
  if (rc) return rc;
  if (s.transposed && !b->dry && !(b->packed && chi_packed_ready(b->packed))) {
    void *rows = transpose(t, n, k, s, err);
    rc = rows ? pack(b, &out->w, rows, t->dtype, n, k, err) : CHI_ERR_MEMORY;
    chi_free(rows);
  } else {
    const uint8_t *data = t->data;
    rc = pack(b, &out->w, data ? data + chi_dtype_bytes(t->dtype, (size_t)(s.at * k)) : NULL, t->dtype, n, k, err);
  }
  if (rc || !want_bias) return rc;
  if (!(t = chi_bind_tensor(b, bias, 1, &s.total, err))) return CHI_ERR_FORMAT;
  return floats(b, &out->bias, t, s.at, n, err);
}

int chi_bind_table(chi_binder *b, float **out, int64_t n, int64_t d, int64_t skip, chi_err *err, const char *name) {
  const chi_tensor *t = chi_bind_tensor(b, name, 2, (int64_t[]){skip + n, d}, err);
  return t ? floats(b, out, t, skip * d, n * d, err) : CHI_ERR_FORMAT;
}

int chi_bind_embed(chi_binder *b, chi_err *err, const char *base, const char *name) {
  char full[256];
  chi_decoder *d = &b->m->net.decoder;
  snprintf(full, sizeof full, "%s%s", base, name);
  const chi_tensor *t = chi_bind_tensor(b, full, 2, (int64_t[]){d->vocab, d->spec.d}, err);
  if (!t) return CHI_ERR_FORMAT;
  if (t->dtype == CHI_F64)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: tensor '%s' is F64; weights are F32, F16 or BF16", b->m->path, full);
  d->embed = t->data;
  d->embed_dtype = t->dtype;
  b->m->stored = t->dtype;
  d->block = chi_calloc((size_t)d->spec.layers, sizeof *d->block, err);
  return d->block ? 0 : CHI_ERR_MEMORY;
}

int chi_bind_head(chi_binder *b, const char *head, bool tied, bool want_bias, chi_err *err) {
  chi_decoder *d = &b->m->net.decoder;
  if (!tied) {
    if (chi_bind_has(b, "%s.weight", head))
      return chi_bind_linear(b, &d->head, d->vocab, d->spec.d, want_bias, err, "%s", head);
    return chi_fail(err, CHI_ERR_FORMAT, "%s: tensor '%s.weight' is missing and tie_word_embeddings is false",
                    b->m->path, head);
  }
  if (want_bias) {
    char bias[288];
    snprintf(bias, sizeof bias, "%s.bias", head);
    int rc = vec(b, &d->head.bias, d->vocab, bias, err);
    if (rc == 0) rc = record(b, &d->head, "", bias, d->vocab, 0, false, err); /* its weight is the embeddings' tensor */
    if (rc) return rc;
  }
  return pack(b, &d->head.w, d->embed, d->embed_dtype, d->vocab, d->spec.d, err);
}

bool chi_bind_has(const chi_binder *b, const char *fmt, ...) {
  char name[256];
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(name, sizeof name, fmt, ap);
  va_end(ap);
  return b->record || (n > 0 && (size_t)n < sizeof name && chi_st_find(b->st, name) != NULL);
}

int chi_bind_prefix(const chi_binder *b, const char **out, const char *const *prefixes, const char *suffix,
                    chi_err *err) {
  char name[256];
  chi_str tried = {0};
  if (b->record) {
    *out = *prefixes;
    return 0;
  }
  for (; *prefixes; prefixes++) {
    snprintf(name, sizeof name, "%s%s", *prefixes, suffix);
    if (chi_st_find(b->st, name)) {
      *out = *prefixes;
      chi_str_free(&tried);
      return 0;
    }
    chi_str_addf(&tried, "%s%s", tried.len ? ", " : "", name);
  }
  int rc = chi_fail(err, CHI_ERR_FORMAT, "%s: none of these tensors is there: %s", b->m->path, tried.s ? tried.s : "");
  chi_str_free(&tried);
  return rc;
}

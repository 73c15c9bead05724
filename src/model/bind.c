/* Names -> weights. After binding no code looks up a name. */
#include <stdio.h>
#include <string.h>

#include "model/model.h"

static void shape_text(char *buf, size_t cap, int ndim, const int64_t *dim) {
  size_t n = 0;
  buf[0] = 0;
  for (int i = 0; i < ndim && n < cap; i++)
    n += (size_t)snprintf(buf + n, cap - n, "%s%lld", i ? "x" : "", (long long)dim[i]);
}

const chi_tensor *chi_bind_tensor(chi_binder *b, const char *name, int ndim, const int64_t *dim, chi_err *err) {
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
  if (!chi_dtype_is_float(t->dtype)) {
    chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: tensor '%s' is %s; weights are F32, F16 or BF16", b->m->path, name,
             chi_dtype_name(t->dtype));
    return NULL;
  }
  for (size_t i = 0; i < chi_st_count(b->st);
       i++) /* names are sorted and unique; a linear walk is paid once per load */
    if (chi_st_at(b->st, i) == t) b->used[i] = 1;
  b->m->params += (int64_t)(t->bytes / chi_dtype_size(t->dtype));
  return t;
}

static int name_of(char *buf, size_t cap, const char *fmt, va_list ap, chi_err *err) {
  int n = vsnprintf(buf, cap, fmt, ap);
  return n < 0 || (size_t)n >= cap ? chi_fail(err, CHI_ERR_FORMAT, "a tensor name is too long") : 0;
}

static int vec(chi_binder *b, float **out, int64_t n, const char *name, chi_err *err) {
  const chi_tensor *t = chi_bind_tensor(b, name, 1, &n, err);
  if (!t) return CHI_ERR_FORMAT;
  *out = chi_calloc((size_t)n, sizeof **out, err);
  return *out ? chi_to_f32(*out, t->data, t->dtype, (size_t)n, err) : CHI_ERR_MEMORY;
}

int chi_bind_vec(chi_binder *b, float **out, int64_t n, chi_err *err, const char *fmt, ...) {
  char name[256];
  va_list ap;
  va_start(ap, fmt);
  int rc = name_of(name, sizeof name, fmt, ap, err);
  va_end(ap);
  return rc ? rc : vec(b, out, n, name, err);
}

int chi_bind_linear(chi_binder *b, chi_linear *out, int64_t n, int64_t k, bool want_bias, chi_err *err, const char *fmt,
                    ...) {
  char base[256], name[288];
  va_list ap;
  va_start(ap, fmt);
  int rc = name_of(base, sizeof base, fmt, ap, err);
  va_end(ap);
  if (rc) return rc;
  snprintf(name, sizeof name, "%s.weight", base);
  const chi_tensor *t = chi_st_find(b->st, name);
  int64_t dim[4] = {n, k, 0, 0};
  int ndim = 2;
  if (t && t->ndim == 4 && t->dim[1] == 3 && t->dim[2] * t->dim[3] * 3 == k) { /* a patch convolution is a matrix */
    ndim = 4;
    dim[1] = 3, dim[2] = t->dim[2], dim[3] = t->dim[3];
  }
  if (!(t = chi_bind_tensor(b, name, ndim, dim, err))) return CHI_ERR_FORMAT;
  if ((rc = chi_mat_pack(&out->w, t->data, t->dtype, n, k, k, b->m->net.compute, err)) != 0) return rc;
  if (!want_bias) return 0;
  snprintf(name, sizeof name, "%s.bias", base);
  return vec(b, &out->bias, n, name, err);
}

int chi_bind_prefix(const chi_binder *b, const char **out, const char *const *prefixes, const char *suffix,
                    chi_err *err) {
  char name[256];
  chi_str tried = {0};
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

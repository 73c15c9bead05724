/* Writing a GGUF file again with other values in some of its tensors; see gguf.h. */
#include <string.h>

#include "file/gguf.h"

static void put(chi_str *s, uint64_t v, int bytes) {
  char b[8];
  for (int i = 0; i < bytes; i++) b[i] = (char)(v >> (8 * i) & 0xff);
  chi_str_addn(s, b, (size_t)bytes);
}

static const chi_gguf_change *change_of(const chi_tensor *t, const chi_gguf_change *c, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (c[i].t == t) return &c[i];
  return NULL;
}

static size_t bytes_of(const chi_tensor *t, const chi_gguf_change *c) {
  size_t count = 1;
  if (!c) return t->bytes;
  for (int i = 0; i < t->ndim; i++) count *= (size_t)t->dim[i];
  return chi_dtype_bytes(c->dtype, count);
}

static int pad(chi_out *o, size_t n, size_t alignment, chi_err *err) {
  static const char zero[64] = {0};
  size_t left = n % alignment ? alignment - n % alignment : 0;
  for (int rc; left > 0; left -= left < sizeof zero ? left : sizeof zero)
    if ((rc = chi_out_write(o, zero, left < sizeof zero ? left : sizeof zero, err)) != 0) return rc;
  return 0;
}

int chi_gguf_rewrite(const chi_gguf *g, const char *path, const chi_gguf_change *c, size_t n, chi_err *err) {
  int rc = 0;
  size_t head, count;
  int64_t alignment;
  uint64_t offset = 0;
  const uint8_t *start = chi_gguf_head(g, &head, &alignment);
  const chi_tensor *t = chi_gguf_tensors(g, &count);
  chi_str infos = {0};
  chi_out *o = NULL;
  for (size_t i = 0; i < count; i++) {
    const chi_gguf_change *x = change_of(&t[i], c, n);
    uint64_t a = (uint64_t)alignment;
    put(&infos, strlen(t[i].name), 8);
    chi_str_add(&infos, t[i].name);
    put(&infos, (uint64_t)t[i].ndim, 4);
    for (int d = t[i].ndim; d-- > 0;) put(&infos, (uint64_t)t[i].dim[d], 8);
    put(&infos, (uint64_t)chi_gguf_type_id(x ? x->dtype : t[i].dtype), 4);
    put(&infos, offset, 8);
    offset += (bytes_of(&t[i], x) + a - 1) / a * a;
  }
  CHI_TRY(infos.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  CHI_TRY(chi_out_open(&o, path, err));
  CHI_TRY(chi_out_write(o, start, head, err));
  CHI_TRY(chi_out_write(o, infos.s ? infos.s : "", infos.len, err));
  CHI_TRY(pad(o, head + infos.len, (size_t)alignment, err));
  for (size_t i = 0; i < count; i++) {
    const chi_gguf_change *x = change_of(&t[i], c, n);
    size_t bytes = bytes_of(&t[i], x);
    CHI_TRY(chi_progress("exporting", (int64_t)i, (int64_t)count, err));
    CHI_TRY(chi_out_write(o, x ? x->data : t[i].data, bytes, err));
    CHI_TRY(pad(o, bytes, (size_t)alignment, err));
  }
  chi_out *done = o;
  o = NULL;
  rc = chi_out_commit(done, err);
out:
  chi_out_abort(o);
  chi_str_free(&infos);
  return rc;
}

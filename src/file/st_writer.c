#include "file/file.h"

#include <stdlib.h>
#include <string.h>

typedef struct item {
  const char *name;
  chi_dtype dtype;
  int ndim;
  int64_t dim[CHI_MAX_DIMS];
  const void *data;
  size_t bytes;
} item;

struct chi_st_writer {
  chi_arena arena;
  chi_out *out;
  char *path;
  json_t *meta;
  item *items;
  size_t n, cap;
};

int chi_st_writer_new(chi_st_writer **out, const char *path, chi_err *err) {
  int rc = 0;
  *out = NULL;
  chi_st_writer *w = chi_calloc(1, sizeof *w, err);
  if (!w) return CHI_ERR_MEMORY;
  w->path = chi_arena_strdup(&w->arena, path, err);
  w->meta = json_object();
  if (!w->path || !w->meta) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "%s: out of memory", path);
    goto out;
  }
  CHI_TRY(chi_out_open(&w->out, path, err)); /* early: a wrong folder is known before the work is done */
  *out = w;
  w = NULL;
out:
  chi_st_writer_abort(w);
  return rc;
}

int chi_st_writer_meta(chi_st_writer *w, const char *key, const char *value, chi_err *err) {
  json_t *v = json_string(value);
  if (!v || json_object_set_new(w->meta, key, v) != 0) {
    return chi_fail(err, CHI_ERR_ARG, "%s: metadata \"%.80s\" is not valid UTF-8", w->path, key);
  }
  return 0;
}

int chi_st_writer_add(chi_st_writer *w, const char *name, chi_dtype dtype, int ndim, const int64_t *dim,
                      const void *data, chi_err *err) {
  int rc = 0;
  item it = {.dtype = dtype, .ndim = ndim, .data = data};
  if (strcmp(name, "__metadata__") == 0 || chi_dtype_size(dtype) == 0 || ndim < 0 || ndim > CHI_MAX_DIMS) {
    return chi_fail(err, CHI_ERR_ARG,
                    "%s: tensor \"%.120s\" has a reserved name, an unknown type or too many dimensions", w->path, name);
  }
  it.bytes = chi_dtype_size(dtype);
  for (int i = 0; i < ndim; i++) {
    it.dim[i] = dim[i];
    if (dim[i] < 0 || __builtin_mul_overflow(it.bytes, (size_t)dim[i], &it.bytes)) {
      return chi_fail(err, CHI_ERR_ARG, "%s: tensor \"%.120s\": dimension %d is %lld", w->path, name, i,
                      (long long)dim[i]);
    }
  }
  it.name = chi_arena_strdup(&w->arena, name, err);
  if (!it.name) return CHI_ERR_MEMORY;
  void *p = w->items;
  CHI_TRY(chi_grow(&p, &w->cap, w->n + 1, sizeof *w->items, err));
  w->items = p;
  w->items[w->n++] = it;
out:
  return rc;
}

/* Wide types first, then by name, as the reference writer does: every tensor is then aligned to its own type. */
static int by_size_then_name(const void *pa, const void *pb) {
  const item *a = pa, *b = pb;
  size_t x = chi_dtype_size(a->dtype), y = chi_dtype_size(b->dtype);
  if (x != y) return x > y ? -1 : 1;
  return strcmp(a->name, b->name);
}

static json_t *describe(const item *it, uint64_t begin) {
  json_t *shape = json_array();
  for (int i = 0; shape && i < it->ndim; i++) json_array_append_new(shape, json_integer(it->dim[i]));
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", chi_dtype_name(it->dtype), "shape", shape, "data_offsets",
                   (json_int_t)begin, (json_int_t)(begin + it->bytes));
}

static int make_header(chi_st_writer *w, char **text, chi_err *err) {
  int rc = 0;
  uint64_t at = 0;
  json_t *root = json_object();
  if (json_object_size(w->meta) > 0) json_object_set(root, "__metadata__", w->meta);
  for (size_t i = 0; i < w->n; i++) {
    const item *it = &w->items[i];
    if (json_object_get(root, it->name)) {
      rc = chi_fail(err, CHI_ERR_ARG, "%s: tensor \"%.120s\" was added twice", w->path, it->name);
      goto out;
    }
    if (json_object_set_new(root, it->name, describe(it, at)) != 0) {
      rc = chi_fail(err, CHI_ERR_ARG, "%s: tensor name \"%.120s\" is not valid UTF-8", w->path, it->name);
      goto out;
    }
    at += it->bytes;
  }
  *text = json_dumps(root, JSON_COMPACT);
  if (!*text) rc = chi_fail(err, CHI_ERR_MEMORY, "%s: the header could not be made", w->path);
out:
  json_decref(root);
  return rc;
}

int chi_st_writer_commit(chi_st_writer *w, chi_err *err) {
  int rc = 0;
  char *text = NULL;
  if (w->n > 0) qsort(w->items, w->n, sizeof *w->items, by_size_then_name);
  CHI_TRY(make_header(w, &text, err));
  size_t len = strlen(text), padded = (len + 7) & ~(size_t)7;
  uint8_t prefix[8];
  for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)padded >> (8 * i));
  CHI_TRY(chi_out_write(w->out, prefix, 8, err));
  CHI_TRY(chi_out_write(w->out, text, len, err));
  CHI_TRY(chi_out_write(w->out, "        ", padded - len, err));
  for (size_t i = 0; i < w->n; i++) CHI_TRY(chi_out_write(w->out, w->items[i].data, w->items[i].bytes, err));
  chi_out *o = w->out;
  w->out = NULL;
  rc = chi_out_commit(o, err);
out:
  free(text);
  chi_st_writer_abort(w);
  return rc;
}

void chi_st_writer_abort(chi_st_writer *w) {
  if (!w) return;
  chi_out_abort(w->out);
  json_decref(w->meta);
  chi_free(w->items);
  chi_arena_free(&w->arena);
  chi_free(w);
}

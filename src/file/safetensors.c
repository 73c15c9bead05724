#include "file/file.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian; this machine would need conversions"
#endif

#define HEADER_MAX ((uint64_t)100 * 1000 * 1000) /* the reference implementation's limit */
#define INDEX_MAX ((size_t)100 * 1000 * 1000)

typedef struct part {
  char *name; /* without the folder */
  chi_map map;
} part;

typedef struct entry { /* a tensor, and the file that it came from */
  chi_tensor t;
  size_t part;
} entry;

struct chi_st {
  chi_arena arena;
  part *parts;
  size_t n_parts, cap_parts;
  entry *entries;
  size_t n, cap;
  json_t *meta; /* __metadata__ of the first file, or NULL */
};

/* ---- one tensor of a header ------------------------------------------------------------------------------------ */
static int parse_shape(chi_tensor *t, const json_t *shape, size_t *bytes, chi_err *err) {
  if (!json_is_array(shape)) return chi_fail(err, CHI_ERR_FORMAT, "\"shape\" is not an array");
  size_t n = json_array_size(shape);
  if (n > CHI_MAX_DIMS) {
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%zu dimensions; at most %d are supported", n, CHI_MAX_DIMS);
  }
  t->ndim = (int)n;
  size_t total = chi_dtype_size(t->dtype);
  bool empty = false;
  for (size_t i = 0; i < n; i++) {
    const json_t *d = json_array_get(shape, i);
    if (!json_is_integer(d) || json_integer_value(d) < 0) {
      return chi_fail(err, CHI_ERR_FORMAT, "dimension %zu of \"shape\" is not a whole number of at least 0", i);
    }
    t->dim[i] = (int64_t)json_integer_value(d);
    if (t->dim[i] == 0) empty = true;
    if (__builtin_mul_overflow(total, (size_t)t->dim[i], &total) && !empty) {
      return chi_fail(err, CHI_ERR_FORMAT, "\"shape\" means more bytes than memory can address");
    }
  }
  *bytes = empty ? 0 : total;
  return 0;
}

static int parse_offsets(uint64_t range[2], const json_t *offsets, uint64_t data_size, chi_err *err) {
  if (!json_is_array(offsets) || json_array_size(offsets) != 2) {
    return chi_fail(err, CHI_ERR_FORMAT, "\"data_offsets\" is not an array of two numbers");
  }
  for (size_t i = 0; i < 2; i++) {
    const json_t *v = json_array_get(offsets, i);
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
      return chi_fail(err, CHI_ERR_FORMAT, "\"data_offsets\" has a value that is not a whole number of at least 0");
    }
    range[i] = (uint64_t)json_integer_value(v);
  }
  if (range[0] > range[1]) return chi_fail(err, CHI_ERR_FORMAT, "\"data_offsets\" ends before it begins");
  if (range[1] > data_size) {
    return chi_fail(err, CHI_ERR_FORMAT,
                    "ends at byte %llu of the data, but the file holds only %llu; it is cut short, fetch it again",
                    (unsigned long long)range[1], (unsigned long long)data_size);
  }
  return 0;
}

static int parse_tensor(chi_tensor *t, const json_t *info, const uint8_t *data, uint64_t data_size, chi_err *err) {
  int rc = 0;
  uint64_t range[2];
  if (!json_is_object(info)) return chi_fail(err, CHI_ERR_FORMAT, "its entry is not an object");
  const json_t *dtype = json_object_get(info, "dtype");
  if (!json_is_string(dtype)) return chi_fail(err, CHI_ERR_FORMAT, "\"dtype\" is missing or not a string");
  CHI_TRY(chi_dtype_parse(&t->dtype, json_string_value(dtype), err));
  CHI_TRY(parse_shape(t, json_object_get(info, "shape"), &t->bytes, err));
  CHI_TRY(parse_offsets(range, json_object_get(info, "data_offsets"), data_size, err));
  if (range[1] - range[0] != t->bytes) {
    return chi_fail(err, CHI_ERR_FORMAT, "shape and dtype need %zu bytes, but \"data_offsets\" spans %llu", t->bytes,
                    (unsigned long long)(range[1] - range[0]));
  }
  t->data = data + range[0];
out:
  return rc;
}

/* ---- one file -------------------------------------------------------------------------------------------------- */
static int by_address(const void *pa, const void *pb) {
  const entry *a = pa, *b = pb;
  uintptr_t x = (uintptr_t)a->t.data, y = (uintptr_t)b->t.data;
  if (x != y) return x < y ? -1 : 1;
  if (a->t.bytes != b->t.bytes) return a->t.bytes < b->t.bytes ? -1 : 1;
  return 0;
}

static int check_overlap(entry *e, size_t n, chi_err *err) {
  qsort(e, n, sizeof *e, by_address);
  const entry *last = NULL; /* the last one that is not empty */
  for (size_t i = 0; i < n; i++) {
    if (e[i].t.bytes == 0) continue;
    if (last && (const uint8_t *)last->t.data + last->t.bytes > (const uint8_t *)e[i].t.data) {
      return chi_fail(err, CHI_ERR_FORMAT, "tensors \"%.80s\" and \"%.80s\" overlap; the file is damaged", last->t.name,
                      e[i].t.name);
    }
    last = &e[i];
  }
  return 0;
}

static int check_meta(const json_t *meta, chi_err *err) {
  const char *key;
  json_t *v;
  if (!json_is_object(meta)) return chi_fail(err, CHI_ERR_FORMAT, "\"__metadata__\" is not an object");
  json_object_foreach((json_t *)(uintptr_t)meta, key, v) {
    if (!json_is_string(v)) return chi_fail(err, CHI_ERR_FORMAT, "metadata \"%.80s\" is not a string", key);
  }
  return 0;
}

/* Header length and text; says what the file is when it is one of the usual mistakes. */
static int find_header(const chi_map *m, const char **text, uint64_t *len, chi_err *err) {
  if (m->size >= 24 && memcmp(m->data, "version https://git-lfs.", 24) == 0) {
    return chi_fail(err, CHI_ERR_FORMAT, "is a Git LFS pointer, not the tensors; fetch the file itself (git lfs pull)");
  }
  if (m->size >= 4 && memcmp(m->data, "PK\3\4", 4) == 0) {
    return chi_fail(err, CHI_ERR_FORMAT, "is a zip archive (a PyTorch file?); convert it to safetensors");
  }
  if (m->size < 10) {
    return chi_fail(err, CHI_ERR_FORMAT, "has only %zu bytes, too few for a safetensors file; fetch it again", m->size);
  }
  uint64_t n = 0;
  for (int i = 7; i >= 0; i--) n = n << 8 | m->data[i];
  if (n > HEADER_MAX) {
    return chi_fail(err, CHI_ERR_FORMAT, "declares a header of %llu bytes, more than %llu; not a safetensors file?",
                    (unsigned long long)n, (unsigned long long)HEADER_MAX);
  }
  if (n > m->size - 8) {
    return chi_fail(err, CHI_ERR_FORMAT,
                    "declares a header of %llu bytes, but has %zu; it is cut short, fetch it again",
                    (unsigned long long)n, m->size);
  }
  if (n < 2 || m->data[8] != '{') {
    return chi_fail(err, CHI_ERR_FORMAT, "its header does not begin with '{'; not a safetensors file?");
  }
  *text = (const char *)m->data + 8;
  *len = n;
  return 0;
}

/* Add the tensors of an opened part. Messages carry no file name: the caller prefixes it. */
static int read_part(chi_st *s, size_t at, chi_err *err) {
  int rc = 0;
  json_t *header = NULL;
  const chi_map *m = &s->parts[at].map;
  const char *text = NULL, *name;
  uint64_t len = 0;
  json_t *info;
  size_t first = s->n;
  CHI_TRY(find_header(m, &text, &len, err));
  CHI_TRY(chi_json_parse_nul(&header, text, (size_t)len, "header", err));
  if (!json_is_object(header)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "its header is not a JSON object");
    goto out;
  }
  json_object_foreach(header, name, info) {
    if (strcmp(name, "__metadata__") == 0) {
      CHI_TRY(check_meta(info, err));
      if (at == 0) s->meta = json_incref(info);
      continue;
    }
    entry e = {.part = at};
    chi_err why = {0};
    rc = parse_tensor(&e.t, info, m->data + 8 + len, m->size - 8 - len, &why);
    if (rc != 0) {
      chi_fail(err, rc, "tensor \"%.120s\": %s", name, why.text);
      goto out;
    }
    e.t.name = chi_arena_strdup(&s->arena, name, err);
    if (!e.t.name) {
      rc = CHI_ERR_MEMORY;
      goto out;
    }
    void *p = s->entries;
    CHI_TRY(chi_grow(&p, &s->cap, s->n + 1, sizeof *s->entries, err));
    s->entries = p;
    s->entries[s->n++] = e;
  }
  if (s->n > first) CHI_TRY(check_overlap(s->entries + first, s->n - first, err));
out:
  json_decref(header);
  return rc;
}

static int add_part(chi_st *s, const char *path, const char *name, chi_err *err) {
  int rc = 0;
  void *p = s->parts;
  CHI_TRY(chi_grow(&p, &s->cap_parts, s->n_parts + 1, sizeof *s->parts, err));
  s->parts = p;
  part *fresh = &s->parts[s->n_parts];
  memset(fresh, 0, sizeof *fresh);
  fresh->name = chi_arena_strdup(&s->arena, name, err);
  if (!fresh->name) return CHI_ERR_MEMORY;
  CHI_TRY(chi_map_open(&fresh->map, path, err));
  s->n_parts++;
  chi_err why = {0};
  rc = read_part(s, s->n_parts - 1, &why);
  if (rc != 0) {
    chi_err_prefix(&why, path);
    chi_fail(err, rc, "%s", why.text);
  }
out:
  return rc;
}

/* ---- several files --------------------------------------------------------------------------------------------- */
static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static int by_name(const void *pa, const void *pb) {
  const entry *a = pa, *b = pb;
  int c = strcmp(a->t.name, b->t.name);
  if (c != 0) return c;
  return a->part < b->part ? -1 : a->part > b->part;
}

static int sort_entries(chi_st *s, chi_err *err) {
  if (s->n == 0) return 0;
  qsort(s->entries, s->n, sizeof *s->entries, by_name);
  for (size_t i = 1; i < s->n; i++) {
    if (strcmp(s->entries[i - 1].t.name, s->entries[i].t.name) == 0) {
      return chi_fail(err, CHI_ERR_FORMAT, "tensor \"%.120s\" is in both %s and %s", s->entries[i].t.name,
                      s->parts[s->entries[i - 1].part].name, s->parts[s->entries[i].part].name);
    }
  }
  return 0;
}

/* An index must not lead out of its folder. */
static bool plain_name(const char *name) {
  return name[0] != 0 && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* A tensor that another shard holds according to the index is a stale copy. */
static void drop_stale(chi_st *s, const json_t *map) {
  size_t kept = 0;
  for (size_t i = 0; i < s->n; i++) {
    const char *file = json_string_value(json_object_get(map, s->entries[i].t.name));
    if (!file || strcmp(file, s->parts[s->entries[i].part].name) == 0) s->entries[kept++] = s->entries[i];
  }
  s->n = kept;
}

/* Distinct file names of the map, sorted, into *names (borrowed strings; caller frees the array). */
static int shard_names(const char ***names, size_t *n, const json_t *map, const char *index, chi_err *err) {
  size_t count = json_object_size(map), i = 0, kept = 0;
  const char *key;
  json_t *v;
  const char **list = chi_calloc(count, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  json_object_foreach((json_t *)(uintptr_t)map, key, v) {
    if (!json_is_string(v) || !plain_name(json_string_value(v))) {
      chi_free(list);
      return chi_fail(err, CHI_ERR_FORMAT, "%s: weight_map: \"%.120s\" does not name a file in the same folder", index,
                      key);
    }
    list[i++] = json_string_value(v);
  }
  qsort(list, i, sizeof *list, by_text);
  for (size_t j = 0; j < i; j++) {
    if (kept == 0 || strcmp(list[kept - 1], list[j]) != 0) list[kept++] = list[j];
  }
  *names = list;
  *n = kept;
  return 0;
}

static int open_index(chi_st *s, const char *index, chi_err *err) {
  int rc = 0;
  json_t *root = NULL;
  const char **names = NULL;
  size_t n = 0;
  char path[PATH_MAX], dir[PATH_MAX];
  const char *slash = strrchr(index, '/'), *key;
  json_t *v;
  size_t dir_len = slash ? (size_t)(slash - index) + 1 : 0;
  if (dir_len >= sizeof dir) return chi_fail(err, CHI_ERR_ARG, "path too long: %.80s...", index);
  memcpy(dir, index, dir_len);
  dir[dir_len] = 0;
  CHI_TRY(chi_json_load(&root, index, INDEX_MAX, err));
  const json_t *map = json_object_get(root, "weight_map");
  if (!json_is_object(map) || json_object_size(map) == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: \"weight_map\" is missing or empty; not a safetensors index?", index);
    goto out;
  }
  CHI_TRY(shard_names(&names, &n, map, index, err));
  for (size_t i = 0; i < n; i++) {
    CHI_TRY(chi_path_join(path, sizeof path, dir, names[i], err));
    CHI_TRY(add_part(s, path, names[i], err));
  }
  drop_stale(s, map);
  CHI_TRY(sort_entries(s, err));
  json_object_foreach((json_t *)(uintptr_t)map, key, v) {
    if (chi_st_find(s, key)) continue;
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: tensor \"%.120s\" is not in %.120s, where the index says it is", index, key,
                  json_string_value(v));
    goto out;
  }
out:
  chi_free(names);
  json_decref(root);
  return rc;
}

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && strcmp(s + n - m, end) == 0;
}

static int open_any(chi_st *s, const char *path, chi_err *err) {
  int rc = 0;
  struct stat st;
  char file[PATH_MAX];
  const char *slash = strrchr(path, '/');
  if (ends_with(path, ".index.json")) return open_index(s, path, err);
  if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
    CHI_TRY(add_part(s, path, slash ? slash + 1 : path, err));
    return sort_entries(s, err);
  }
  CHI_TRY(chi_path_join(file, sizeof file, path, "model.safetensors", err));
  if (chi_file_exists(file)) {
    CHI_TRY(add_part(s, file, "model.safetensors", err));
    return sort_entries(s, err);
  }
  CHI_TRY(chi_path_join(file, sizeof file, path, "model.safetensors.index.json", err));
  if (chi_file_exists(file)) return open_index(s, file, err);
  rc = chi_fail(err, CHI_ERR_IO, "%s: holds neither model.safetensors nor model.safetensors.index.json", path);
out:
  return rc;
}

int chi_st_open(chi_st **out, const char *path, chi_err *err) {
  *out = NULL;
  chi_st *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  int rc = open_any(s, path, err);
  if (rc != 0) {
    chi_st_close(s);
    return rc;
  }
  *out = s;
  return 0;
}

int chi_st_view(chi_st **out, const chi_tensor *tensors, size_t n, const chi_map *maps, size_t n_maps, chi_err *err) {
  int rc = 0;
  *out = NULL;
  chi_st *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  s->entries = chi_calloc(n, sizeof *s->entries, err);
  s->parts = chi_calloc(n_maps, sizeof *s->parts, err);
  rc = s->entries && s->parts ? 0 : CHI_ERR_MEMORY;
  for (; rc == 0 && s->n < n; s->n++) {
    s->entries[s->n].t = tensors[s->n];
    s->entries[s->n].t.name = chi_arena_strdup(&s->arena, tensors[s->n].name, err);
    if (!s->entries[s->n].t.name) rc = CHI_ERR_MEMORY;
  }
  if (rc == 0 && n) qsort(s->entries, n, sizeof *s->entries, by_name);
  for (size_t i = 1; rc == 0 && i < n; i++)
    if (strcmp(s->entries[i - 1].t.name, s->entries[i].t.name) == 0)
      rc = chi_fail(err, CHI_ERR_FORMAT, "tensor \"%.120s\" is there twice", s->entries[i].t.name);
  for (; rc == 0 && s->n_parts < n_maps; s->n_parts++)
    s->parts[s->n_parts] = (part){.name = (char *)(uintptr_t) "", .map = maps[s->n_parts]};
  if (rc)
    chi_st_close(s);
  else
    *out = s;
  return rc;
}

void chi_st_close(chi_st *s) {
  if (!s) return;
  for (size_t i = 0; i < s->n_parts; i++) chi_map_close(&s->parts[i].map);
  json_decref(s->meta);
  chi_free(s->parts);
  chi_free(s->entries);
  chi_arena_free(&s->arena);
  chi_free(s);
}

size_t chi_st_count(const chi_st *s) { return s->n; }

const chi_tensor *chi_st_at(const chi_st *s, size_t i) { return i < s->n ? &s->entries[i].t : NULL; }

const chi_tensor *chi_st_find(const chi_st *s, const char *name) {
  size_t lo = 0, hi = s->n;
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;
    int c = strcmp(s->entries[mid].t.name, name);
    if (c == 0) return &s->entries[mid].t;
    if (c < 0) {
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  return NULL;
}

const char *chi_st_meta(const chi_st *s, const char *key) {
  return s->meta ? json_string_value(json_object_get(s->meta, key)) : NULL;
}

void chi_st_ahead(const chi_st *s, const void *p, size_t n) {
  for (size_t i = 0; i < s->n_parts; i++) chi_map_ahead(&s->parts[i].map, p, n);
}

void chi_st_drop(const chi_st *s, const void *p, size_t n) {
  for (size_t i = 0; i < s->n_parts; i++) chi_map_drop(&s->parts[i].map, p, n);
}

int chi_st_hash(char hex[65], const chi_st *s, chi_err *err) {
  (void)err; /* the bytes are mapped: nothing can be refused any more */
  const size_t step = (size_t)16 << 20;
  chi_sha256 h;
  chi_sha256_init(&h);
  for (size_t i = 0; i < s->n_parts; i++) {
    const chi_map *m = &s->parts[i].map;
    for (size_t at = 0; at < m->size; at += step) { /* a file larger than memory passes through a small window */
      size_t n = m->size - at < step ? m->size - at : step;
      if (at + n < m->size) chi_map_ahead(m, m->data + at + n, step);
      chi_sha256_add(&h, m->data + at, n);
      chi_map_drop(m, m->data + at, n);
    }
  }
  chi_sha256_hex(&h, hex);
  return 0;
}

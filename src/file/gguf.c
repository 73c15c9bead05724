#include "file/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define KEYS_MAX ((uint64_t)1 << 16)
#define TENSORS_MAX ((uint64_t)1 << 20)
#define NAME_BYTES ((uint64_t)65535) /* the format's limit for keys */
enum { ARRAY_DEPTH = 4, DIMS_MAX = 4, ALIGNMENT_MAX = 1 << 20 };

struct chi_gguf {
  chi_arena arena;
  chi_map map;
  const char *path;
  chi_gguf_value *key;
  size_t n_keys;
  chi_tensor *tensor;
  size_t n_tensors;
  size_t head; /* bytes up to the list of tensors */
  int64_t alignment;
};

static const size_t kSize[CHI_GGUF_TYPE_COUNT] = {
    [CHI_GGUF_U8] = 1,   [CHI_GGUF_I8] = 1,  [CHI_GGUF_U16] = 2, [CHI_GGUF_I16] = 2,
    [CHI_GGUF_U32] = 4,  [CHI_GGUF_I32] = 4, [CHI_GGUF_F32] = 4, [CHI_GGUF_U64] = 8,
    [CHI_GGUF_BOOL] = 1, [CHI_GGUF_I64] = 8, [CHI_GGUF_F64] = 8};
static const char *const kTypeName[CHI_GGUF_TYPE_COUNT] = {
    [CHI_GGUF_U8] = "u8",           [CHI_GGUF_I8] = "i8",          [CHI_GGUF_U16] = "u16", [CHI_GGUF_I16] = "i16",
    [CHI_GGUF_U32] = "u32",         [CHI_GGUF_I32] = "i32",        [CHI_GGUF_F32] = "f32", [CHI_GGUF_BOOL] = "bool",
    [CHI_GGUF_STRING] = "a string", [CHI_GGUF_ARRAY] = "an array", [CHI_GGUF_U64] = "u64", [CHI_GGUF_I64] = "i64",
    [CHI_GGUF_F64] = "f64"};

/* ---- the bytes ------------------------------------------------------------------------------------------------- */
typedef struct cursor {
  const uint8_t *p;
  uint64_t left;
  const char *what; /* where we are, for messages */
  chi_err *err;
} cursor;

static int cut_short(const cursor *c) {
  return chi_fail(c->err, CHI_ERR_FORMAT, "ends inside %s; it is cut short or damaged, fetch it again", c->what);
}

static uint64_t little(const uint8_t *p, size_t n) {
  uint64_t v = 0;
  while (n--) v = v << 8 | p[n];
  return v;
}

static int take(cursor *c, const uint8_t **p, uint64_t n) {
  if (n > c->left) return cut_short(c);
  *p = c->p;
  c->p += n;
  c->left -= n;
  return 0;
}

static int take_u32(cursor *c, uint32_t *out) {
  const uint8_t *p = NULL;
  int rc = take(c, &p, 4);
  if (rc == 0) *out = (uint32_t)little(p, 4);
  return rc;
}

static int take_u64(cursor *c, uint64_t *out) {
  const uint8_t *p = NULL;
  int rc = take(c, &p, 8);
  if (rc == 0) *out = little(p, 8);
  return rc;
}

static int take_string(cursor *c, const uint8_t **s, uint64_t *len) {
  int rc = take_u64(c, len);
  if (rc) return rc;
  if (*len > c->left)
    return chi_fail(c->err, CHI_ERR_FORMAT, "%s: a string of %llu bytes where %llu are left; the file is damaged",
                    c->what, (unsigned long long)*len, (unsigned long long)c->left);
  return take(c, s, *len);
}

/* A key or a tensor's name: printable, copied. */
static int take_name(cursor *c, chi_arena *a, const char *kind, uint64_t at, char **out) {
  const uint8_t *s = NULL;
  uint64_t n = 0;
  int rc = take_string(c, &s, &n);
  if (rc) return rc;
  bool plain = n > 0 && n <= NAME_BYTES;
  for (uint64_t i = 0; plain && i < n; i++) plain = s[i] >= 32 && s[i] != 127;
  if (!plain)
    return chi_fail(c->err, CHI_ERR_FORMAT, "%s %llu has an empty, overlong or unprintable name; the file is damaged",
                    kind, (unsigned long long)at);
  *out = chi_arena_array(a, (size_t)n + 1, 1, c->err);
  if (!*out) return CHI_ERR_MEMORY;
  memcpy(*out, s, (size_t)n);
  return 0;
}

/* ---- metadata -------------------------------------------------------------------------------------------------- */
static int bad_type(const cursor *c, uint32_t type) {
  return chi_fail(c->err, CHI_ERR_FORMAT, "%s has value type %u, which the format lacks; the file is damaged", c->what,
                  (unsigned)type);
}

static int skip_array(cursor *c, chi_gguf_value *v, int depth) {
  uint32_t elem = 0;
  uint64_t n = 0;
  int rc = 0;
  CHI_TRY(take_u32(c, &elem));
  CHI_TRY(take_u64(c, &n));
  if (elem >= CHI_GGUF_TYPE_COUNT) return bad_type(c, elem);
  uint64_t least = kSize[elem] ? kSize[elem] : elem == CHI_GGUF_STRING ? 8 : 12;
  if (n > c->left / least)
    return chi_fail(c->err, CHI_ERR_FORMAT, "%s has %llu elements where %llu bytes are left; the file is damaged",
                    c->what, (unsigned long long)n, (unsigned long long)c->left);
  if (depth > ARRAY_DEPTH) return chi_fail(c->err, CHI_ERR_FORMAT, "%s: arrays are nested too deep", c->what);
  v->elem = (chi_gguf_type)elem;
  v->n = n;
  v->data = c->p;
  if (kSize[elem]) return take(c, &v->data, n * kSize[elem]);
  for (uint64_t i = 0; i < n; i++) {
    const uint8_t *s = NULL;
    uint64_t len = 0;
    chi_gguf_value inner;
    CHI_TRY(elem == CHI_GGUF_STRING ? take_string(c, &s, &len) : skip_array(c, &inner, depth + 1));
  }
out:
  return rc;
}

static int take_value(chi_gguf *g, cursor *c, uint64_t at) {
  int rc = 0;
  char *key = NULL, name[96];
  uint32_t type = 0;
  chi_gguf_value *v = &g->key[at];
  c->what = "the metadata";
  CHI_TRY(take_name(c, &g->arena, "metadata key", at, &key));
  v->key = key;
  snprintf(name, sizeof name, "key '%.80s'", key);
  c->what = name;
  CHI_TRY(take_u32(c, &type));
  if (type >= CHI_GGUF_TYPE_COUNT) return bad_type(c, type);
  v->type = (chi_gguf_type)type;
  v->n = 1;
  if (type == CHI_GGUF_ARRAY) {
    CHI_TRY(skip_array(c, v, 0));
  } else if (type == CHI_GGUF_STRING) {
    CHI_TRY(take_string(c, &v->data, &v->n));
    char *text = chi_arena_array(&g->arena, (size_t)v->n + 1, 1, c->err);
    if (!text) return CHI_ERR_MEMORY;
    memcpy(text, v->data, (size_t)v->n);
    v->text = text;
  } else {
    CHI_TRY(take(c, &v->data, kSize[type]));
    if (type == CHI_GGUF_BOOL && v->data[0] > 1)
      return chi_fail(c->err, CHI_ERR_FORMAT, "%s is a bool of value %u; the file is damaged", name, v->data[0]);
  }
out:
  c->what = "the metadata";
  return rc;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */
/* The format's numbers of element types. Known names of those that are not read make the refusal clearer. */
static const struct {
  uint32_t id;
  chi_dtype dtype; /* CHI_DTYPE_COUNT: not read */
  const char *name;
} kTypes[] = {{0, CHI_F32, "F32"},    {1, CHI_F16, "F16"},     {2, CHI_Q4_0, "Q4_0"},  {3, CHI_Q4_1, "Q4_1"},
              {6, CHI_Q5_0, "Q5_0"},  {7, CHI_Q5_1, "Q5_1"},   {8, CHI_Q8_0, "Q8_0"},  {12, CHI_Q4_K, "Q4_K"},
              {13, CHI_Q5_K, "Q5_K"}, {14, CHI_Q6_K, "Q6_K"},  {30, CHI_BF16, "BF16"}, {28, CHI_F64, "F64"},
              {24, CHI_I8, "I8"},     {25, CHI_I16, "I16"},    {26, CHI_I32, "I32"},   {27, CHI_I64, "I64"},
#define NOT_READ(id, name) \
  { id, CHI_DTYPE_COUNT, name }
              NOT_READ(10, "Q2_K"),   NOT_READ(11, "Q3_K"),    NOT_READ(15, "Q8_K"),   NOT_READ(16, "IQ2_XXS"),
              NOT_READ(17, "IQ2_XS"), NOT_READ(18, "IQ3_XXS"), NOT_READ(19, "IQ1_S"),  NOT_READ(20, "IQ4_NL"),
              NOT_READ(21, "IQ3_S"),  NOT_READ(22, "IQ2_S"),   NOT_READ(23, "IQ4_XS"), NOT_READ(29, "IQ1_M"),
              NOT_READ(34, "TQ1_0"),  NOT_READ(35, "TQ2_0"),   NOT_READ(39, "MXFP4")};

static int find_type(chi_dtype *out, uint32_t id, const cursor *c) {
  const char *name = "unknown";
  for (size_t i = 0; i < sizeof kTypes / sizeof *kTypes; i++) {
    if (kTypes[i].id != id) continue;
    name = kTypes[i].name;
    if (kTypes[i].dtype == CHI_DTYPE_COUNT) break;
    *out = kTypes[i].dtype;
    return 0;
  }
  return chi_fail(c->err, CHI_ERR_UNSUPPORTED,
                  "%s has type %u (%s); read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
                  c->what, (unsigned)id, name);
}

/* offset receives the place in the data section. */
static int take_tensor(chi_gguf *g, cursor *c, uint64_t at, uint64_t *offset) {
  int rc = 0;
  char *name = NULL, what[96];
  uint32_t ndim = 0, type = 0;
  uint64_t dim[DIMS_MAX], total = 1;
  chi_tensor *t = &g->tensor[at];
  c->what = "the list of tensors";
  CHI_TRY(take_name(c, &g->arena, "tensor", at, &name));
  t->name = name;
  snprintf(what, sizeof what, "tensor '%.80s'", name);
  c->what = what;
  CHI_TRY(take_u32(c, &ndim));
  if (ndim < 1 || ndim > DIMS_MAX) {
    rc = chi_fail(c->err, CHI_ERR_FORMAT, "%s has %u dimensions; 1 to %d are possible", what, (unsigned)ndim, DIMS_MAX);
    goto out;
  }
  t->ndim = (int)ndim;
  for (uint32_t i = 0; i < ndim; i++) {
    CHI_TRY(take_u64(c, &dim[i]));
    if (dim[i] == 0 || dim[i] > INT64_MAX || __builtin_mul_overflow(total, dim[i], &total) || total > INT64_MAX / 8) {
      rc = chi_fail(c->err, CHI_ERR_FORMAT, "%s: dimension %u is %llu, which is empty or more than memory can address",
                    what, (unsigned)i, (unsigned long long)dim[i]);
      goto out;
    }
    t->dim[ndim - 1 - i] = (int64_t)dim[i];
  }
  CHI_TRY(take_u32(c, &type));
  CHI_TRY(take_u64(c, offset));
  CHI_TRY(find_type(&t->dtype, type, c));
  if (dim[0] % (uint64_t)chi_dtype_block(t->dtype) != 0) {
    rc = chi_fail(c->err, CHI_ERR_FORMAT, "%s: rows of %llu are not whole blocks of %s (%lld)", what,
                  (unsigned long long)dim[0], chi_dtype_name(t->dtype), (long long)chi_dtype_block(t->dtype));
    goto out;
  }
  t->bytes = chi_dtype_bytes(t->dtype, (size_t)total);
out:
  c->what = "the list of tensors";
  return rc;
}

static int place_tensor(chi_tensor *t, uint64_t offset, const cursor *data, int64_t alignment) {
  if (offset % (uint64_t)alignment != 0)
    return chi_fail(data->err, CHI_ERR_FORMAT, "tensor '%.80s' begins at byte %llu of the data, not a multiple of %lld",
                    t->name, (unsigned long long)offset, (long long)alignment);
  if (offset > data->left || t->bytes > data->left - offset)
    return chi_fail(
        data->err, CHI_ERR_FORMAT,
        "tensor '%.80s' needs bytes %llu to %llu of the data, but the file holds only %llu; it is cut short, "
        "fetch it again",
        t->name, (unsigned long long)offset, (unsigned long long)offset + t->bytes, (unsigned long long)data->left);
  t->data = data->p + offset;
  return 0;
}

static int by_address(const void *pa, const void *pb) {
  const chi_tensor *a = pa, *b = pb;
  uintptr_t x = (uintptr_t)a->data, y = (uintptr_t)b->data;
  return x < y ? -1 : x > y;
}
static int by_name(const void *pa, const void *pb) {
  return strcmp(((const chi_tensor *)pa)->name, ((const chi_tensor *)pb)->name);
}
static int by_key(const void *pa, const void *pb) {
  return strcmp(((const chi_gguf_value *)pa)->key, ((const chi_gguf_value *)pb)->key);
}

static int check_tensors(chi_gguf *g, chi_err *err) {
  if (g->n_tensors == 0) return 0;
  qsort(g->tensor, g->n_tensors, sizeof *g->tensor, by_address);
  for (size_t i = 1; i < g->n_tensors; i++) {
    const chi_tensor *a = &g->tensor[i - 1], *b = &g->tensor[i];
    if ((const uint8_t *)a->data + a->bytes > (const uint8_t *)b->data)
      return chi_fail(err, CHI_ERR_FORMAT, "tensors '%.80s' and '%.80s' overlap; the file is damaged", a->name,
                      b->name);
  }
  qsort(g->tensor, g->n_tensors, sizeof *g->tensor, by_name);
  for (size_t i = 1; i < g->n_tensors; i++)
    if (strcmp(g->tensor[i - 1].name, g->tensor[i].name) == 0)
      return chi_fail(err, CHI_ERR_FORMAT, "tensor '%.80s' is there twice; the file is damaged", g->tensor[i].name);
  return 0;
}

/* ---- the file -------------------------------------------------------------------------------------------------- */
/* magic, version, counts */
static int take_head(cursor *c, uint64_t *tensors, uint64_t *keys) {
  int rc = 0;
  const uint8_t *magic = NULL;
  uint32_t version = 0;
  c->what = "the header";
  CHI_TRY(take(c, &magic, 4));
  if (memcmp(magic, "GGUF", 4) != 0)
    return chi_fail(c->err, CHI_ERR_FORMAT, "does not begin with \"GGUF\"; not a GGUF file");
  CHI_TRY(take_u32(c, &version));
  if (version != 2 && version != 3)
    return chi_fail(c->err, CHI_ERR_UNSUPPORTED, "is GGUF version %u%s; versions 2 and 3 are read", (unsigned)version,
                    version && (version & 0xFFFF) == 0 ? " (a big-endian file?)" : "");
  CHI_TRY(take_u64(c, tensors));
  CHI_TRY(take_u64(c, keys));
  /* The smallest key takes 14 bytes, the smallest tensor 33. */
  if (*keys > KEYS_MAX || *keys > c->left / 14)
    return chi_fail(c->err, CHI_ERR_FORMAT, "declares %llu metadata keys in %llu bytes; the file is damaged",
                    (unsigned long long)*keys, (unsigned long long)c->left);
  if (*tensors > TENSORS_MAX || *tensors > c->left / 33)
    return chi_fail(c->err, CHI_ERR_FORMAT, "declares %llu tensors in %llu bytes; the file is damaged",
                    (unsigned long long)*tensors, (unsigned long long)c->left);
out:
  return rc;
}

static int take_keys(chi_gguf *g, cursor *c, uint64_t n) {
  int rc = 0;
  g->key = chi_arena_array(&g->arena, (size_t)n, sizeof *g->key, c->err);
  if (!g->key) return CHI_ERR_MEMORY;
  for (uint64_t i = 0; i < n; i++) CHI_TRY(take_value(g, c, i));
  g->n_keys = (size_t)n;
  if (n) qsort(g->key, g->n_keys, sizeof *g->key, by_key);
  for (size_t i = 1; i < g->n_keys; i++)
    if (strcmp(g->key[i - 1].key, g->key[i].key) == 0)
      return chi_fail(c->err, CHI_ERR_FORMAT, "key '%.80s' is there twice; the file is damaged", g->key[i].key);
out:
  return rc;
}

static int read_all(chi_gguf *g, chi_err *err) {
  int rc = 0;
  cursor c = {.p = g->map.data, .left = g->map.size, .err = err};
  uint64_t tensors = 0, keys = 0, *offset = NULL;
  int64_t alignment = 32;
  CHI_TRY(take_head(&c, &tensors, &keys));
  CHI_TRY(take_keys(g, &c, keys));
  g->head = (size_t)(c.p - g->map.data);
  CHI_TRY(chi_gguf_i64_opt(&alignment, g, "general.alignment", 1, ALIGNMENT_MAX, err));
  if ((alignment & (alignment - 1)) != 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "key 'general.alignment' is %lld, not a power of two", (long long)alignment);
    goto out;
  }
  g->alignment = alignment;
  g->tensor = chi_arena_array(&g->arena, (size_t)tensors, sizeof *g->tensor, err);
  offset = chi_calloc((size_t)tensors, sizeof *offset, err);
  if (!g->tensor || !offset) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (uint64_t i = 0; i < tensors; i++) CHI_TRY(take_tensor(g, &c, i, &offset[i]));
  g->n_tensors = (size_t)tensors;
  uint64_t past = (uint64_t)(c.p - g->map.data) % (uint64_t)alignment, pad = past ? (uint64_t)alignment - past : 0;
  if (tensors) {
    const uint8_t *skipped = NULL;
    c.what = "the padding before the data";
    CHI_TRY(take(&c, &skipped, pad));
  }
  for (uint64_t i = 0; i < tensors; i++) CHI_TRY(place_tensor(&g->tensor[i], offset[i], &c, alignment));
  CHI_TRY(check_tensors(g, err));
out:
  chi_free(offset);
  return rc;
}

int chi_gguf_open(chi_gguf **out, const char *path, chi_err *err) {
  int rc = 0;
  chi_err why = {0};
  *out = NULL;
  chi_gguf *g = chi_calloc(1, sizeof *g, err);
  if (!g) return CHI_ERR_MEMORY;
  CHI_TRY(chi_map_open(&g->map, path, err));
  rc = read_all(g, &why);
  if (rc) {
    chi_err_prefix(&why, path);
    chi_fail(err, rc, "%s", why.text);
    goto out;
  }
  g->path = chi_arena_strdup(&g->arena, path, err);
  rc = g->path ? 0 : CHI_ERR_MEMORY;
out:
  if (rc)
    chi_gguf_close(g);
  else
    *out = g;
  return rc;
}

void chi_gguf_close(chi_gguf *g) {
  if (!g) return;
  chi_map_close(&g->map);
  chi_arena_free(&g->arena);
  chi_free(g);
}

void chi_gguf_take_map(chi_gguf *g, chi_map *out) {
  *out = g->map;
  g->map = (chi_map){0};
}

bool chi_gguf_is(const char *path) {
  char magic[4];
  struct stat st;
  if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return false;
  FILE *f = fopen(path, "rb");
  bool is = f && fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0;
  if (f) fclose(f);
  return is;
}

/* ---- look-up --------------------------------------------------------------------------------------------------- */
const char *chi_gguf_path(const chi_gguf *g) { return g->path; }
size_t chi_gguf_count(const chi_gguf *g) { return g->n_keys; }
const chi_gguf_value *chi_gguf_at(const chi_gguf *g, size_t i) { return i < g->n_keys ? &g->key[i] : NULL; }

const chi_gguf_value *chi_gguf_find(const chi_gguf *g, const char *key) {
  chi_gguf_value want = {.key = key};
  return g->n_keys ? bsearch(&want, g->key, g->n_keys, sizeof want, by_key) : NULL;
}

const chi_tensor *chi_gguf_tensors(const chi_gguf *g, size_t *n) {
  *n = g->n_tensors;
  return g->tensor;
}

const chi_tensor *chi_gguf_tensor(const chi_gguf *g, const char *name) {
  chi_tensor want = {.name = name};
  return g->n_tensors ? bsearch(&want, g->tensor, g->n_tensors, sizeof want, by_name) : NULL;
}

/* "FILE: key 'x' is u32, but must be a string"; the file is not known yet while it is being opened. */
static int wrong_type(const chi_gguf *g, const chi_gguf_value *v, const char *want, chi_err *err) {
  return chi_fail(err, CHI_ERR_FORMAT, "%s%skey '%.80s' is %s, but must be %s", g->path ? g->path : "",
                  g->path ? ": " : "", v->key, kTypeName[v->type], want);
}

/* False for reals, text, arrays, and u64 beyond i64. */
static bool whole(const chi_gguf_value *v, int64_t *out) {
  uint64_t bits = kSize[v->type] ? little(v->data, kSize[v->type]) : 0;
  switch (v->type) {
    case CHI_GGUF_U8:
    case CHI_GGUF_U16:
    case CHI_GGUF_U32:
    case CHI_GGUF_U64:
      *out = (int64_t)bits;
      return bits <= INT64_MAX;
    case CHI_GGUF_I8:
      *out = (int8_t)bits;
      return true;
    case CHI_GGUF_I16:
      *out = (int16_t)bits;
      return true;
    case CHI_GGUF_I32:
      *out = (int32_t)bits;
      return true;
    case CHI_GGUF_I64:
      *out = (int64_t)bits;
      return true;
    default:
      return false;
  }
}

int chi_gguf_i64_opt(int64_t *out, const chi_gguf *g, const char *key, int64_t min, int64_t max, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  int64_t n = 0;
  if (!v) return 0;
  bool ok = whole(v, &n);
  if (!ok && v->type != CHI_GGUF_U64) return wrong_type(g, v, "an integer", err);
  if (!ok || n < min || n > max)
    return chi_fail(err, CHI_ERR_FORMAT, "%s%skey '%.80s' is %s%lld, but must be an integer from %lld to %lld",
                    g->path ? g->path : "", g->path ? ": " : "", key, ok ? "" : "above ", ok ? (long long)n : INT64_MAX,
                    (long long)min, (long long)max);
  *out = n;
  return 0;
}

int chi_gguf_i64(int64_t *out, const chi_gguf *g, const char *key, int64_t min, int64_t max, chi_err *err) {
  if (!chi_gguf_find(g, key)) return chi_fail(err, CHI_ERR_FORMAT, "%s: key '%.80s' is missing", g->path, key);
  return chi_gguf_i64_opt(out, g, key, min, max, err);
}

static bool is_number(chi_gguf_type t) { return kSize[t] && t != CHI_GGUF_BOOL; }

/* One element of a type of fixed size. */
static double number(chi_gguf_type type, const uint8_t *p) {
  uint64_t bits = little(p, kSize[type]);
  if (type == CHI_GGUF_F32) {
    uint32_t half = (uint32_t)bits;
    float x;
    memcpy(&x, &half, sizeof x);
    return (double)x;
  }
  if (type == CHI_GGUF_F64) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  int64_t n = 0;
  chi_gguf_value v = {.type = type, .data = p};
  return whole(&v, &n) ? (double)n : (double)bits;
}

int chi_gguf_f64_opt(double *out, const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  if (!v) return 0;
  if (!is_number(v->type)) return wrong_type(g, v, "a number", err);
  *out = number(v->type, v->data);
  return 0;
}

int chi_gguf_bool_opt(bool *out, const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  if (!v) return 0;
  if (v->type != CHI_GGUF_BOOL) return wrong_type(g, v, "a bool", err);
  *out = v->data[0] != 0;
  return 0;
}

int chi_gguf_str_opt(const char **out, const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  if (!v) return 0;
  if (!v->text) return wrong_type(g, v, "a string", err);
  *out = v->text;
  return 0;
}

int chi_gguf_strings_opt(const chi_gguf_value **out, const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  if (v && (v->type != CHI_GGUF_ARRAY || v->elem != CHI_GGUF_STRING))
    return wrong_type(g, v, "an array of strings", err);
  *out = v;
  return 0;
}

int chi_gguf_numbers_opt(const chi_gguf_value **out, const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = chi_gguf_find(g, key);
  if (v && (v->type != CHI_GGUF_ARRAY || !is_number(v->elem))) return wrong_type(g, v, "an array of numbers", err);
  *out = v;
  return 0;
}

double chi_gguf_number(const chi_gguf_value *v, uint64_t i) {
  chi_gguf_type t = v->type == CHI_GGUF_ARRAY ? v->elem : v->type;
  return number(t, v->data + i * kSize[t]);
}

const char *chi_gguf_string(const uint8_t **at, size_t *len) {
  *len = (size_t)little(*at, 8);
  const char *s = (const char *)*at + 8;
  *at += 8 + *len;
  return s;
}

const uint8_t *chi_gguf_head(const chi_gguf *g, size_t *n, int64_t *alignment) {
  *n = g->head;
  *alignment = g->alignment;
  return g->map.data;
}

int chi_gguf_type_id(chi_dtype dtype) {
  for (size_t i = 0; i < sizeof kTypes / sizeof *kTypes; i++)
    if (kTypes[i].dtype == dtype) return (int)kTypes[i].id;
  return -1;
}

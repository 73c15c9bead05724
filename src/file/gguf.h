/* gguf: reader of GGUF files, versions 2 and 3, little-endian: typed metadata and tensors over one map. Files are untrusted:
 * everything is validated at open (counts and lengths against the file's size, types, duplicate names, alignment, ranges
 * inside the file and not overlapping); each error is one line with the file and the key or tensor that it is about.
 * docs/gguf.md says what is made of the content. */
#ifndef CHI_GGUF_H
#define CHI_GGUF_H

#include "file/file.h"

typedef enum chi_gguf_type { /* the format's own numbers */
  CHI_GGUF_U8, CHI_GGUF_I8, CHI_GGUF_U16, CHI_GGUF_I16, CHI_GGUF_U32, CHI_GGUF_I32, CHI_GGUF_F32, CHI_GGUF_BOOL,
  CHI_GGUF_STRING, CHI_GGUF_ARRAY, CHI_GGUF_U64, CHI_GGUF_I64, CHI_GGUF_F64, CHI_GGUF_TYPE_COUNT
} chi_gguf_type;

typedef struct chi_gguf_value {
  const char *key;
  chi_gguf_type type, elem; /* elem: of an array */
  uint64_t n;               /* string: bytes; array: elements; else 1 */
  const uint8_t *data;      /* into the map, not aligned */
  const char *text;         /* a string's copy, NUL-terminated; else NULL */
} chi_gguf_value;

typedef struct chi_gguf chi_gguf;
int chi_gguf_open(chi_gguf **out, const char *path, chi_err *err);
void chi_gguf_close(chi_gguf *g); /* NULL-safe */
/* The map stays open until its new owner closes it: tensors' data outlives the reader. */
void chi_gguf_take_map(chi_gguf *g, chi_map *out);
bool chi_gguf_is(const char *path); /* a regular file that begins with the format's magic */

const char *chi_gguf_path(const chi_gguf *g);
size_t chi_gguf_count(const chi_gguf *g);
const chi_gguf_value *chi_gguf_at(const chi_gguf *g, size_t i);           /* sorted by key */
const chi_gguf_value *chi_gguf_find(const chi_gguf *g, const char *key); /* NULL if absent */
/* Typed getters, as those of JSON (file.h): missing: *out keeps its value, or a failure for the plain version. Any integer
 * type serves for i64 (range checked), any number type for f64. */
int chi_gguf_i64(int64_t *out, const chi_gguf *g, const char *key, int64_t min, int64_t max, chi_err *err);
int chi_gguf_i64_opt(int64_t *out, const chi_gguf *g, const char *key, int64_t min, int64_t max, chi_err *err);
int chi_gguf_f64_opt(double *out, const chi_gguf *g, const char *key, chi_err *err);
int chi_gguf_bool_opt(bool *out, const chi_gguf *g, const char *key, chi_err *err);
int chi_gguf_str_opt(const char **out, const chi_gguf *g, const char *key, chi_err *err); /* borrowed, NUL-terminated */
/* An array of strings, or of numbers; NULL in *out when the key is missing. */
int chi_gguf_strings_opt(const chi_gguf_value **out, const chi_gguf *g, const char *key, chi_err *err);
int chi_gguf_numbers_opt(const chi_gguf_value **out, const chi_gguf *g, const char *key, chi_err *err);
double chi_gguf_number(const chi_gguf_value *v, uint64_t i); /* element i < n of an array of numbers, or a number */
/* Walks an array of strings: at = v->data before the first call. */
const char *chi_gguf_string(const uint8_t **at, size_t *len);

/* Everything before the list of tensors: magic, version, counts, keys. NULL once the map was taken. */
const uint8_t *chi_gguf_head(const chi_gguf *g, size_t *n, int64_t *alignment);
int chi_gguf_type_id(chi_dtype dtype); /* the format's number of an element type, -1 = none */

/* The file again with other values in some tensors, atomically; keys and all other tensors keep their bytes. */
typedef struct chi_gguf_change {
  const chi_tensor *t; /* of g */
  chi_dtype dtype;     /* F32 or F16 */
  const void *data;    /* as many elements as t has; borrowed */
} chi_gguf_change;
int chi_gguf_rewrite(const chi_gguf *g, const char *path, const chi_gguf_change *c, size_t n, chi_err *err);

/* Dimensions in C order (the file's are reversed): dim[ndim-1] runs along a row. Sorted by name. */
const chi_tensor *chi_gguf_tensors(const chi_gguf *g, size_t *n);
const chi_tensor *chi_gguf_tensor(const chi_gguf *g, const char *name); /* NULL if absent */

#endif

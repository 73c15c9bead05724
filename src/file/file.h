/* file: read-only maps, safetensors in and out, JSON helpers (jansson), atomic output. Files are untrusted. */
#ifndef CHI_FILE_H
#define CHI_FILE_H

#include <jansson.h>

#include "base/base.h"
#include "tensor/dtype.h"

/* ---- maps ------------------------------------------------------------------------------------------------ */
typedef struct chi_map { const uint8_t *data; size_t size; } chi_map;
/* Maps a regular file read-only. Missing file, directory, empty file: one clear line with the path. */
int chi_map_open(chi_map *out, const char *path, chi_err *err);
void chi_map_close(chi_map *m);
/* Bytes [p, p + n) of the map: wanted soon (read ahead), and not wanted for now (whole pages leave this process's memory;
 * a later look brings them back from the file). Bytes outside the map are left alone; both are wishes, without errors. */
void chi_map_ahead(const chi_map *m, const void *p, size_t n);
void chi_map_drop(const chi_map *m, const void *p, size_t n);
/* Whole small file into memory, NUL-terminated, refused above max bytes. Caller: chi_free. */
int chi_read_file(char **out, size_t *len, const char *path, size_t max, chi_err *err);
bool chi_file_exists(const char *path);
/* dir + "/" + name into out. */
int chi_path_join(char *out, size_t cap, const char *dir, const char *name, chi_err *err);
int chi_mkdirs(const char *path, chi_err *err);
int chi_sha256_file(char hex[65], const char *path, chi_err *err);

/* ---- atomic output --------------------------------------------------------------------------------------- */
/* Writes to a temporary file beside `path`, then fsync + rename on commit. Abort (or a failed write) leaves neither
 * file. Errors are sticky: the first one is reported by commit.
 * A path that names a device or a pipe is written in place. */
typedef struct chi_out chi_out;
int chi_out_open(chi_out **out, const char *path, chi_err *err);
int chi_out_write(chi_out *o, const void *p, size_t n, chi_err *err);
int chi_out_printf(chi_out *o, chi_err *err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
const char *chi_out_temp_path(const chi_out *o); /* for libraries that want a file name (cairo) */
int chi_out_commit(chi_out *o, chi_err *err);    /* frees o in every case */
void chi_out_abort(chi_out *o);                  /* NULL-safe */

/* ---- JSON ------------------------------------------------------------------------------------------------ */
/* Strict: duplicate keys, trailing text, depth and size limits refused with line and column. Caller: json_decref. */
int chi_json_load(json_t **out, const char *path, size_t max_bytes, chi_err *err);
int chi_json_parse(json_t **out, const char *text, size_t len, const char *what, chi_err *err);
/* Strings may hold \u0000, as the metadata of safetensors may; as C strings they end there. */
int chi_json_parse_nul(json_t **out, const char *text, size_t len, const char *what, chi_err *err);
/* Typed getters. `where` names the object in messages ("config.json: text_config"). Missing key or null: *out keeps
 * its value and 0 is returned by _opt; plain versions fail with key name. Wrong type or out-of-range: fails with
 * key and value. */
int chi_json_i64(int64_t *out, const json_t *obj, const char *key, int64_t min, int64_t max, const char *where,
                 chi_err *err);
int chi_json_i64_opt(int64_t *out, const json_t *obj, const char *key, int64_t min, int64_t max, const char *where,
                     chi_err *err);
int chi_json_f64_opt(double *out, const json_t *obj, const char *key, const char *where, chi_err *err);
int chi_json_bool_opt(bool *out, const json_t *obj, const char *key, const char *where, chi_err *err);
int chi_json_str_opt(const char **out, const json_t *obj, const char *key, const char *where,
                     chi_err *err); /* borrowed */
/* Pretty (2 spaces), key order kept, reals with up to 9 significant digits (round-trips f32); atomic. */
int chi_json_save(const json_t *j, const char *path, chi_err *err);

/* ---- safetensors ----------------------------------------------------------------------------------------- */
#define CHI_MAX_DIMS 8
typedef struct chi_tensor { /* one stored tensor; data points into the map */
  const char *name;
  chi_dtype dtype;
  int ndim;
  int64_t dim[CHI_MAX_DIMS];
  const void *data;
  size_t bytes;
} chi_tensor;

/* One file, or a folder with model.safetensors or model.safetensors.index.json + shards. Everything is validated at
 * open: header length against file size (and at most 100 MB), JSON, dtypes, shape x dtype = byte range, ranges inside
 * the file and not overlapping, index entries present. No fixed cap on the number of tensors. */
typedef struct chi_st chi_st;
int chi_st_open(chi_st **out, const char *path, chi_err *err);
/* The same view of tensors that lie elsewhere (a GGUF file under Hugging Face names): names are copied, data is borrowed.
 * `maps` belong to the result from then on (closed with it; hashed by chi_st_hash); on failure they stay the caller's. */
int chi_st_view(chi_st **out, const chi_tensor *tensors, size_t n, const chi_map *maps, size_t n_maps, chi_err *err);
void chi_st_close(chi_st *s);
size_t chi_st_count(const chi_st *s);
const chi_tensor *chi_st_at(const chi_st *s, size_t i);              /* sorted by name */
const chi_tensor *chi_st_find(const chi_st *s, const char *name);    /* NULL if absent */
const char *chi_st_meta(const chi_st *s, const char *key);           /* __metadata__ of the (first) file, or NULL */
/* chi_map_ahead and chi_map_drop for bytes of any of the maps; others are left alone. */
void chi_st_ahead(const chi_st *s, const void *p, size_t n);
void chi_st_drop(const chi_st *s, const void *p, size_t n);
int chi_st_hash(char hex[65], const chi_st *s, chi_err *err);        /* sha256 over all files' bytes, in name order */

/* Writer: add tensors (data is borrowed until commit), then write all atomically. */
typedef struct chi_st_writer chi_st_writer;
int chi_st_writer_new(chi_st_writer **out, const char *path, chi_err *err);
int chi_st_writer_meta(chi_st_writer *w, const char *key, const char *value, chi_err *err);
int chi_st_writer_add(chi_st_writer *w, const char *name, chi_dtype dtype, int ndim, const int64_t *dim,
                      const void *data, chi_err *err);
int chi_st_writer_commit(chi_st_writer *w, chi_err *err); /* frees w in every case */
void chi_st_writer_abort(chi_st_writer *w);

#endif

/* store: what a run over a data set has finished, one SQLite file DIR/run.sqlite (WAL, one transaction an item).
 *
 *   meta(key, value)         settings, hashes, version; `state` is "running" or "done"
 *   item(seq, id, unit, split, grp, status, reason, info)   seq: place in the data set, from 0; info: JSON object
 *   result(seq, kind, shape, payload, digest)               payload: float32, little-endian, row by row; NaN = no value
 *   session(...)             when and by which version rows were added; never compared
 *
 * What stands in item and result depends on the settings, the model and the data set alone: not on time, threads, order,
 * shards or interruptions. A process that is killed leaves all items that were finished, and none in part. */
#ifndef CHI_STORE_H
#define CHI_STORE_H

#include "file/file.h"

enum { CHI_STORE_SCHEMA = 1, CHI_STORE_DIMS = 4 };

typedef enum chi_store_status {
  CHI_STORE_OK,
  CHI_STORE_SKIPPED,
  CHI_STORE_FAILED,
  CHI_STORE_STATUSES
} chi_store_status;
extern const char *const chi_store_status_name[CHI_STORE_STATUSES]; /* "ok", "skipped", "failed" */

typedef struct chi_store_key { /* one line of meta */
  const char *key, *value;
  bool fixed; /* a store where it differs belongs to another run and is refused */
} chi_store_key;

typedef struct chi_store_item {
  int64_t seq;
  const char *id, *unit, *split, *group;
  chi_store_status status;
  const char *reason; /* of skipped and failed; "" else */
  const char *info;   /* JSON object, "{}" at least */
} chi_store_item;

typedef struct chi_store_result {
  const char *kind; /* "mlp/own/p", unique within an item */
  int ndim;
  int64_t dim[CHI_STORE_DIMS];
  const float *v;
} chi_store_result;

typedef struct chi_store_counts {
  int64_t n[CHI_STORE_STATUSES], results;
} chi_store_counts;

typedef struct chi_store chi_store;

/* For writing: makes dir and file where they are missing, else goes on with what is there. Refused in one line: a file
 * that is no store, another schema version, another value of a fixed key (named), another process writing it. The keys'
 * values are set. Caller: chi_store_close. */
int chi_store_open(chi_store **out, const char *dir, const chi_store_key *keys, size_t n_keys, chi_err *err);
/* For reading, also while another process writes. */
int chi_store_read(chi_store **out, const char *dir, chi_err *err);
void chi_store_close(chi_store *s); /* NULL-safe */
const char *chi_store_path(const chi_store *s);
/* Is some process writing the store of dir now? Does it exist? */
bool chi_store_busy(const char *dir);
bool chi_store_exists(const char *dir);

int chi_store_set(chi_store *s, const char *key, const char *value, chi_err *err);
/* NULL where absent; borrowed until the next call with the same store. */
const char *chi_store_get(chi_store *s, const char *key);
/* *status of item seq, or -1 where it is not finished. */
int chi_store_find(chi_store *s, int64_t seq, int *status, chi_err *err);
/* A finished item with its results, in one transaction: all of it or nothing. An earlier row of seq is replaced. */
int chi_store_put(chi_store *s, const chi_store_item *it, const chi_store_result *r, size_t n, chi_err *err);
/* A session's line: text of when it began, and what it did. */
int chi_store_session(chi_store *s, const char *started, const char *version, const char *command, int64_t items,
                      double seconds, chi_err *err);
/* Items and seconds over all sessions. */
int chi_store_spent(chi_store *s, int64_t *items, double *seconds, chi_err *err);

int chi_store_count(chi_store *s, chi_store_counts *out, chi_err *err);
/* All items by seq; in the arena. */
int chi_store_items(chi_store *s, chi_store_item **out, size_t *n, chi_arena *a, chi_err *err);
/* Names of all kinds of results, sorted; in the arena. */
int chi_store_kinds(chi_store *s, const char ***out, size_t *n, chi_arena *a, chi_err *err);

typedef struct chi_store_values { /* one kind over the items that have it */
  size_t n, size;                 /* items; values of one */
  int ndim;
  int64_t dim[CHI_STORE_DIMS];
  int64_t *seq; /* [n], ascending */
  float *v;     /* [n][size] */
} chi_store_values;
/* In the arena. A kind whose items differ in shape is refused; one that no item has gives n = 0. */
int chi_store_values_of(chi_store *s, const char *kind, chi_store_values *out, chi_arena *a, chi_err *err);
/* sha256 over every value of item and result, in order: equal stores have equal digests. */
int chi_store_digest(chi_store *s, char hex[65], chi_err *err);

/* The rows of several stores in a new one at dir (replaced in one step if `replace`, else refused where it exists). They
 * must agree in schema, settings, model and data set; an item in two of them must be the same to the bit. */
int chi_store_merge(const char *const *dirs, size_t n, const char *dir, bool replace, chi_err *err);

#endif

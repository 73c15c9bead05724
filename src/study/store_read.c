/* Reading a run store: items, values of one kind, the digest of everything. */
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "study/store_internal.h"

/* SELECT's next row: 1, 0 at the end, negative on failure. */
static int next_row(chi_store *s, sqlite3_stmt *q, chi_err *err) {
  int code = sqlite3_step(q);
  if (code == SQLITE_ROW) return 1;
  return code == SQLITE_DONE ? 0 : chi_store_fail(s, "it cannot be read", err);
}

static const char *text_of(sqlite3_stmt *q, int i) {
  const char *t = (const char *)sqlite3_column_text(q, i);
  return t ? t : "";
}

const char *chi_store_get(chi_store *s, const char *key) {
  sqlite3_stmt *q;
  chi_free(s->value);
  s->value = NULL;
  if (chi_store_stmt(s, CHI_STMT_GET, "SELECT value FROM meta WHERE key = ?", &q, NULL)) return NULL;
  sqlite3_bind_text(q, 1, key, -1, SQLITE_STATIC);
  if (sqlite3_step(q) == SQLITE_ROW) {
    size_t n = strlen(text_of(q, 0));
    s->value = chi_calloc(n + 1, 1, NULL);
    if (s->value) memcpy(s->value, text_of(q, 0), n);
  }
  sqlite3_reset(q);
  sqlite3_clear_bindings(q);
  return s->value;
}

static int status_of(const char *name) {
  for (int i = 0; i < CHI_STORE_STATUSES; i++)
    if (strcmp(name, chi_store_status_name[i]) == 0) return i;
  return -1;
}

int chi_store_find(chi_store *s, int64_t seq, int *status, chi_err *err) {
  sqlite3_stmt *q;
  int rc = chi_store_stmt(s, CHI_STMT_FIND, "SELECT status FROM item WHERE seq = ?", &q, err);
  if (rc) return rc;
  sqlite3_bind_int64(q, 1, seq);
  rc = next_row(s, q, err);
  *status = rc > 0 ? status_of(text_of(q, 0)) : -1;
  sqlite3_reset(q);
  return rc < 0 ? rc : 0;
}

int chi_store_spent(chi_store *s, int64_t *items, double *seconds, chi_err *err) {
  sqlite3_stmt *q = NULL;
  int rc = chi_store_prepare(s, &q, "SELECT total(items), total(seconds) FROM session", err);
  if (rc == 0 && (rc = next_row(s, q, err)) > 0) {
    *items = sqlite3_column_int64(q, 0);
    *seconds = sqlite3_column_double(q, 1);
    rc = 0;
  }
  sqlite3_finalize(q);
  return rc;
}

int chi_store_count(chi_store *s, chi_store_counts *out, chi_err *err) {
  sqlite3_stmt *q = NULL;
  memset(out, 0, sizeof *out);
  int rc = chi_store_prepare(
      s, &q, "SELECT status, count(*) FROM item GROUP BY status UNION ALL SELECT '', count(*) FROM result", err);
  while (rc == 0 && (rc = next_row(s, q, err)) > 0) {
    int k = status_of(text_of(q, 0));
    *(k < 0 ? &out->results : &out->n[k]) = sqlite3_column_int64(q, 1);
    rc = 0;
    if (k < 0) break;
  }
  sqlite3_finalize(q);
  return rc;
}

static int keep(const char **out, sqlite3_stmt *q, int col, chi_arena *a, chi_err *err) {
  return (*out = chi_arena_strdup(a, text_of(q, col), err)) ? 0 : CHI_ERR_MEMORY;
}

/* The one number that a query gives. */
static int one_number(chi_store *s, const char *sql, const char *kind, int64_t *out, chi_err *err) {
  sqlite3_stmt *q = NULL;
  int rc = chi_store_prepare(s, &q, sql, err);
  if (rc) return rc;
  if (kind) sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
  rc = next_row(s, q, err);
  *out = rc > 0 ? sqlite3_column_int64(q, 0) : 0;
  sqlite3_finalize(q);
  return rc < 0 ? rc : 0;
}

int chi_store_items(chi_store *s, chi_store_item **out, size_t *n, chi_arena *a, chi_err *err) {
  int rc = 0, more;
  int64_t count = 0;
  sqlite3_stmt *q = NULL;
  *n = 0;
  CHI_TRY(one_number(s, "SELECT count(*) FROM item", NULL, &count, err));
  CHI_TRY((*out = chi_arena_array(a, (size_t)count, sizeof **out, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(
      chi_store_prepare(s, &q, "SELECT seq, id, unit, split, grp, status, reason, info FROM item ORDER BY seq", err));
  while (*n < (size_t)count && (more = next_row(s, q, err)) != 0) {
    CHI_TRY(more < 0 ? more : 0);
    chi_store_item *it = &(*out)[(*n)++];
    int status = status_of(text_of(q, 5));
    it->seq = sqlite3_column_int64(q, 0);
    it->status = status < 0 ? CHI_STORE_FAILED : (chi_store_status)status;
    CHI_TRY(keep(&it->id, q, 1, a, err));
    CHI_TRY(keep(&it->unit, q, 2, a, err));
    CHI_TRY(keep(&it->split, q, 3, a, err));
    CHI_TRY(keep(&it->group, q, 4, a, err));
    CHI_TRY(keep(&it->reason, q, 6, a, err));
    CHI_TRY(keep(&it->info, q, 7, a, err));
  }
out:
  sqlite3_finalize(q);
  return rc;
}

int chi_store_kinds(chi_store *s, const char ***out, size_t *n, chi_arena *a, chi_err *err) {
  int rc = 0, more;
  int64_t count = 0;
  sqlite3_stmt *q = NULL;
  *n = 0;
  CHI_TRY(one_number(s, "SELECT count(DISTINCT kind) FROM result", NULL, &count, err));
  CHI_TRY((*out = chi_arena_array(a, (size_t)count, sizeof **out, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_store_prepare(s, &q, "SELECT DISTINCT kind FROM result ORDER BY kind", err));
  while (*n < (size_t)count && (more = next_row(s, q, err)) != 0) {
    CHI_TRY(more < 0 ? more : 0);
    CHI_TRY(keep(&(*out)[(*n)++], q, 0, a, err));
  }
out:
  sqlite3_finalize(q);
  return rc;
}

/* "12,8" */
static bool parse_shape(chi_store_values *out, const char *text) {
  out->ndim = 0;
  out->size = 1;
  while (*text && out->ndim < CHI_STORE_DIMS) {
    char *end;
    long long d = strtoll(text, &end, 10);
    if (end == text || d < 1 || d > (1 << 28) || out->size > (size_t)(1 << 28) / (size_t)d) return false;
    out->dim[out->ndim++] = d;
    out->size *= (size_t)d;
    text = *end == ',' ? end + 1 : end;
    if (*end && *end != ',') return false;
  }
  return out->ndim > 0 && !*text;
}

int chi_store_values_of(chi_store *s, const char *kind, chi_store_values *out, chi_arena *a, chi_err *err) {
  int rc = 0, more;
  int64_t count = 0, shapes = 0;
  sqlite3_stmt *q = NULL;
  memset(out, 0, sizeof *out);
  CHI_TRY(one_number(s, "SELECT count(*) FROM result WHERE kind = ?", kind, &count, err));
  CHI_TRY(one_number(s, "SELECT count(DISTINCT shape) FROM result WHERE kind = ?", kind, &shapes, err));
  if (count == 0) goto out;
  if (shapes != 1) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: results '%s' differ in shape between items", s->path, kind);
    goto out;
  }
  CHI_TRY(chi_store_prepare(s, &q, "SELECT seq, shape, payload FROM result WHERE kind = ? ORDER BY seq", err));
  sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
  while (out->n < (size_t)count && (more = next_row(s, q, err)) != 0) {
    CHI_TRY(more < 0 ? more : 0);
    if (out->n == 0) {
      bool good = parse_shape(out, text_of(q, 1));
      CHI_TRY(good ? 0
                   : chi_fail(err, CHI_ERR_FORMAT, "%s: result '%s' has the shape '%s'", s->path, kind, text_of(q, 1)));
      out->seq = chi_arena_array(a, (size_t)count, sizeof *out->seq, err);
      out->v = out->seq ? chi_arena_array(a, (size_t)count * out->size, sizeof *out->v, err) : NULL;
      CHI_TRY(out->v ? 0 : CHI_ERR_MEMORY);
    }
    size_t bytes = out->size * sizeof *out->v;
    if ((size_t)sqlite3_column_bytes(q, 2) != bytes) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: result '%s' of item %lld has %d bytes, its shape needs %zu", s->path,
                    kind, (long long)sqlite3_column_int64(q, 0), sqlite3_column_bytes(q, 2), bytes);
      goto out;
    }
    memcpy(out->v + out->n * out->size, sqlite3_column_blob(q, 2), bytes);
    out->seq[out->n++] = sqlite3_column_int64(q, 0);
  }
out:
  sqlite3_finalize(q);
  return rc;
}

int chi_store_digest(chi_store *s, char hex[65], chi_err *err) {
  static const char *const kTable[] = {"SELECT seq, id, unit, split, grp, status, reason, info FROM item ORDER BY seq",
                                       "SELECT seq, kind, shape, payload, digest FROM result ORDER BY seq, kind"};
  int rc = 0, more;
  chi_sha256 h;
  sqlite3_stmt *q = NULL;
  chi_sha256_init(&h);
  for (int t = 0; t < 2; t++) {
    CHI_TRY(chi_store_prepare(s, &q, kTable[t], err));
    while ((more = next_row(s, q, err)) != 0) {
      CHI_TRY(more < 0 ? more : 0);
      for (int i = 0; i < sqlite3_column_count(q); i++) { /* length, then bytes: no two rows read alike */
        const void *p = sqlite3_column_blob(q, i);
        int64_t n = sqlite3_column_bytes(q, i);
        chi_sha256_add(&h, &n, sizeof n);
        if (n > 0) chi_sha256_add(&h, p, (size_t)n);
      }
    }
    sqlite3_finalize(q);
    q = NULL;
  }
  chi_sha256_hex(&h, hex);
out:
  sqlite3_finalize(q);
  return rc;
}

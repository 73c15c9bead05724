/* The run store; see store.h. */
#include "study/store.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "study/store_internal.h"

const char *const chi_store_status_name[CHI_STORE_STATUSES] = {"ok", "skipped", "failed"};

static const char kSchema[] =
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE item(seq INTEGER PRIMARY KEY, id TEXT NOT NULL, unit TEXT NOT NULL, split TEXT NOT NULL,"
    " grp TEXT NOT NULL, status TEXT NOT NULL CHECK(status IN ('ok', 'skipped', 'failed')), reason TEXT NOT NULL,"
    " info TEXT NOT NULL);"
    "CREATE TABLE result(seq INTEGER NOT NULL REFERENCES item(seq), kind TEXT NOT NULL, shape TEXT NOT NULL,"
    " payload BLOB NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(seq, kind));"
    "CREATE INDEX result_kind ON result(kind, seq);"
    "CREATE TABLE session(n INTEGER PRIMARY KEY, started TEXT, version TEXT, command TEXT, items INTEGER, seconds "
    "REAL);";

int chi_store_fail(const chi_store *s, const char *what, chi_err *err) {
  int code = sqlite3_errcode(s->db);
  const char *todo = code == SQLITE_FULL || code == SQLITE_IOERR
                         ? "; what was finished is kept: make room and give the same command again"
                     : code == SQLITE_BUSY ? "; another process is at it: try again when it has ended"
                                           : "";
  return chi_fail(err, CHI_ERR_IO, "%s: %s: %s%s", s->path, what, sqlite3_errmsg(s->db), todo);
}

int chi_store_exec(chi_store *s, const char *sql, const char *what, chi_err *err) {
  return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : chi_store_fail(s, what, err);
}

int chi_store_prepare(chi_store *s, sqlite3_stmt **out, const char *sql, chi_err *err) {
  return sqlite3_prepare_v2(s->db, sql, -1, out, NULL) == SQLITE_OK ? 0 : chi_store_fail(s, "it cannot be read", err);
}

static int number(chi_store *s, const char *sql, int64_t *out, chi_err *err) {
  sqlite3_stmt *q = NULL;
  int rc = chi_store_prepare(s, &q, sql, err);
  if (rc) return rc;
  if (sqlite3_step(q) == SQLITE_ROW)
    *out = sqlite3_column_int64(q, 0);
  else
    rc = chi_store_fail(s, "it cannot be read", err);
  sqlite3_finalize(q);
  return rc;
}

/* ---- opening --------------------------------------------------------------------------------------------- */
static int paths(chi_store *s, const char *dir, chi_err *err) {
  int rc = chi_path_join(s->path, sizeof s->path, dir, "run.sqlite", err);
  return rc ? rc : chi_path_join(s->lock_path, sizeof s->lock_path, dir, "run.lock", err);
}

/* One writer at a time: the lock ends with its process, however that ends. */
static int take_lock(chi_store *s, chi_err *err) {
  char pid[32] = {0};
  s->lock = open(s->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (s->lock < 0) return chi_fail(err, CHI_ERR_IO, "%s: %s", s->lock_path, strerror(errno));
  if (flock(s->lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return chi_fail(err, CHI_ERR_IO, "%s: %s", s->lock_path, strerror(errno));
    if (read(s->lock, pid, sizeof pid - 1) < 0) pid[0] = 0;
    pid[strcspn(pid, "\n")] = 0;
    return chi_fail(err, CHI_ERR_IO,
                    "%s is being written by another process (%s): wait until it ends, or use another folder", s->path,
                    *pid ? pid : "unknown");
  }
  int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
  if (ftruncate(s->lock, 0) != 0 || write(s->lock, pid, (size_t)n) != n) { /* the number is only for messages */
    errno = 0;
  }
  return 0;
}

static int connect_db(chi_store *s, bool create, chi_err *err) {
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (create ? SQLITE_OPEN_CREATE : 0);
  int rc = sqlite3_open_v2(s->path, &s->db, flags, NULL);
  if (rc != SQLITE_OK && !create) { /* a folder that may only be read */
    sqlite3_close(s->db);
    rc = sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX, NULL);
  }
  if (!s->db) return chi_fail(err, CHI_ERR_MEMORY, "%s: out of memory", s->path);
  if (rc != SQLITE_OK) return chi_store_fail(s, "it cannot be opened", err);
  sqlite3_busy_timeout(s->db, 5000);
  return chi_store_exec(s, "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON;", "it cannot be read", err);
}

static int check_kind(chi_store *s, int64_t *schema, chi_err *err) {
  int64_t app = 0;
  chi_err low = {0};
  *schema = 0;
  if (number(s, "PRAGMA application_id", &app, &low) != 0 || number(s, "PRAGMA user_version", schema, &low) != 0) {
    if (sqlite3_errcode(s->db) == SQLITE_NOTADB) return chi_fail(err, CHI_ERR_FORMAT, "%s is no run store", s->path);
    return chi_fail(err, low.code, "%s", low.text);
  }
  if (app != CHI_STORE_APP && (app != 0 || *schema != 0))
    return chi_fail(err, CHI_ERR_FORMAT, "%s is a database of another program", s->path);
  if (app == CHI_STORE_APP && *schema != CHI_STORE_SCHEMA)
    return chi_fail(
        err, CHI_ERR_UNSUPPORTED,
        "%s has schema version %lld, this program knows %d: go on with the version that made it, or use another "
        "folder",
        s->path, (long long)*schema, CHI_STORE_SCHEMA);
  return 0;
}

static int create_schema(chi_store *s, chi_err *err) {
  char sql[2048];
  int64_t n = 0;
  int rc = number(s, "SELECT count(*) FROM sqlite_master", &n, err);
  if (rc) return rc;
  if (n) return chi_fail(err, CHI_ERR_FORMAT, "%s is a database of another program", s->path);
  snprintf(sql, sizeof sql, "BEGIN IMMEDIATE; %s PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT;",
           kSchema, CHI_STORE_APP, CHI_STORE_SCHEMA);
  return chi_store_exec(s, sql, "the tables could not be made", err);
}

/* The first key in which two JSON objects differ, into out. */
static void differing_key(char *out, size_t cap, const char *a, const char *b) {
  json_t *x = json_loads(a, 0, NULL), *y = json_loads(b, 0, NULL), *v;
  const char *key;
  out[0] = 0;
  json_object_foreach(y, key, v) {
    json_t *w = json_object_get(x, key);
    if (w && json_equal(v, w)) continue;
    char *was = w ? json_dumps(w, JSON_ENCODE_ANY | JSON_COMPACT) : NULL,
         *now = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(out, cap, " (%s: %.80s there, %.80s here)", key, was ? was : "nothing", now ? now : "?");
    free(was);
    free(now);
    break;
  }
  json_decref(x);
  json_decref(y);
}

int chi_store_same(chi_store *s, const char *key, const char *value, chi_err *err) {
  char detail[256];
  const char *have = chi_store_get(s, key);
  if (!have || strcmp(have, value) == 0) return 0;
  differing_key(detail, sizeof detail, have, value);
  if (!detail[0]) snprintf(detail, sizeof detail, " (%.20s there, %.20s here)", have, value);
  return chi_fail(err, CHI_ERR_ARG, "%s was made with another value of '%s'%s: use another folder", s->path, key,
                  detail);
}

static int open_store(chi_store *s, const char *dir, const chi_store_key *keys, size_t n_keys, chi_err *err) {
  int rc = 0;
  int64_t schema = 0;
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(paths(s, dir, err));
  CHI_TRY(take_lock(s, err));
  CHI_TRY(connect_db(s, true, err));
  CHI_TRY(check_kind(s, &schema, err));
  /* FULL: an item is on the disk before the next one begins. Where the file system has no shared memory for WAL, SQLite
   * keeps its older journal, which is as safe. */
  CHI_TRY(chi_store_exec(s, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", "it cannot be written", err));
  if (schema == 0) CHI_TRY(create_schema(s, err));
  for (size_t i = 0; i < n_keys; i++)
    if (keys[i].fixed) CHI_TRY(chi_store_same(s, keys[i].key, keys[i].value, err));
  CHI_TRY(chi_store_exec(s, "BEGIN IMMEDIATE", "it cannot be written", err));
  for (size_t i = 0; i < n_keys; i++) CHI_TRY(chi_store_set(s, keys[i].key, keys[i].value, err));
  CHI_TRY(chi_store_exec(s, "COMMIT", "it cannot be written", err));
out:
  return rc;
}

int chi_store_open(chi_store **out, const char *dir, const chi_store_key *keys, size_t n_keys, chi_err *err) {
  chi_store *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  s->lock = -1;
  int rc = open_store(s, dir, keys, n_keys, err);
  if (rc)
    chi_store_close(s);
  else
    *out = s;
  return rc;
}

int chi_store_read(chi_store **out, const char *dir, chi_err *err) {
  int rc = 0;
  int64_t schema = 0;
  chi_store *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  s->lock = -1;
  CHI_TRY(paths(s, dir, err));
  if (!chi_file_exists(s->path)) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: there is no such store; 'chiasm study' makes it", s->path);
    goto out;
  }
  CHI_TRY(connect_db(s, false, err));
  CHI_TRY(check_kind(s, &schema, err));
  if (schema == 0) rc = chi_fail(err, CHI_ERR_FORMAT, "%s is empty: its study has not begun", s->path);
out:
  if (rc)
    chi_store_close(s);
  else
    *out = s;
  return rc;
}

void chi_store_close(chi_store *s) {
  if (!s) return;
  for (int i = 0; i < CHI_STORE_STMTS; i++) sqlite3_finalize(s->stmt[i]);
  /* A store that nobody writes is one file that may be copied. Where someone reads, the log stays beside it. */
  if (s->lock >= 0 && s->db) sqlite3_exec(s->db, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL);
  sqlite3_close(s->db);
  if (s->lock >= 0) close(s->lock);
  chi_free(s->value);
  chi_free(s);
}

const char *chi_store_path(const chi_store *s) { return s->path; }

bool chi_store_exists(const char *dir) {
  char path[4096];
  return chi_path_join(path, sizeof path, dir, "run.sqlite", NULL) == 0 && chi_file_exists(path);
}

bool chi_store_busy(const char *dir) {
  char path[4096];
  if (chi_path_join(path, sizeof path, dir, "run.lock", NULL)) return false;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  bool busy = flock(fd, LOCK_EX | LOCK_NB) != 0;
  close(fd);
  return busy;
}

/* ---- writing --------------------------------------------------------------------------------------------- */
/* The statement of a kind, made at its first use. */
int chi_store_stmt(chi_store *s, int which, const char *sql, sqlite3_stmt **out, chi_err *err) {
  int rc = s->stmt[which] ? 0 : chi_store_prepare(s, &s->stmt[which], sql, err);
  *out = s->stmt[which];
  if (rc == 0) sqlite3_reset(*out);
  return rc;
}

static int bind_text(sqlite3_stmt *q, int i, const char *text) {
  return sqlite3_bind_text(q, i, text ? text : "", -1, SQLITE_STATIC);
}

static int finish(chi_store *s, sqlite3_stmt *q, const char *what, chi_err *err) {
  int code = sqlite3_step(q);
  int rc = code == SQLITE_DONE || code == SQLITE_ROW ? 0 : chi_store_fail(s, what, err);
  sqlite3_reset(q);
  sqlite3_clear_bindings(q);
  return rc;
}

int chi_store_set(chi_store *s, const char *key, const char *value, chi_err *err) {
  sqlite3_stmt *q;
  int rc = chi_store_stmt(s, CHI_STMT_SET, "INSERT OR REPLACE INTO meta VALUES(?, ?)", &q, err);
  if (rc) return rc;
  bind_text(q, 1, key);
  bind_text(q, 2, value);
  return finish(s, q, key, err);
}

int chi_store_digest_of(const chi_store_result *r, const char *shape, char hex[65]) {
  chi_sha256 h;
  size_t n = sizeof(float);
  for (int i = 0; i < r->ndim; i++) n *= (size_t)r->dim[i];
  chi_sha256_init(&h);
  chi_sha256_add(&h, r->kind, strlen(r->kind) + 1);
  chi_sha256_add(&h, shape, strlen(shape) + 1);
  chi_sha256_add(&h, r->v, n);
  chi_sha256_hex(&h, hex);
  return 0;
}

static int put_result(chi_store *s, int64_t seq, const chi_store_result *r, chi_err *err) {
  char shape[128] = "", hex[65];
  size_t bytes = sizeof(float), at = 0;
  sqlite3_stmt *q;
  if (r->ndim < 1 || r->ndim > CHI_STORE_DIMS) return chi_fail(err, CHI_ERR_ARG, "result '%s' has no shape", r->kind);
  for (int i = 0; i < r->ndim; i++) {
    if (r->dim[i] < 1 || r->dim[i] > (1 << 28) || bytes > (size_t)(1 << 30) / (size_t)r->dim[i])
      return chi_fail(err, CHI_ERR_ARG, "result '%s' is empty or over 1 GiB", r->kind);
    bytes *= (size_t)r->dim[i];
    at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%lld", i ? "," : "", (long long)r->dim[i]);
  }
  int rc = chi_store_stmt(s, CHI_STMT_RESULT, "INSERT INTO result VALUES(?, ?, ?, ?, ?)", &q, err);
  if (rc) return rc;
  chi_store_digest_of(r, shape, hex);
  sqlite3_bind_int64(q, 1, seq);
  bind_text(q, 2, r->kind);
  bind_text(q, 3, shape);
  sqlite3_bind_blob64(q, 4, r->v, bytes, SQLITE_STATIC);
  bind_text(q, 5, hex);
  return finish(s, q, r->kind, err);
}

int chi_store_put(chi_store *s, const chi_store_item *it, const chi_store_result *r, size_t n, chi_err *err) {
  int rc = 0;
  bool open = false;
  sqlite3_stmt *q;
  char what[160];
  snprintf(what, sizeof what, "item %.100s was not stored", it->id);
  CHI_TRY(chi_store_exec(s, "BEGIN IMMEDIATE", what, err));
  open = true;
  CHI_TRY(chi_store_stmt(s, CHI_STMT_CLEAR, "DELETE FROM result WHERE seq = ?", &q, err));
  sqlite3_bind_int64(q, 1, it->seq);
  CHI_TRY(finish(s, q, what, err));
  CHI_TRY(chi_store_stmt(s, CHI_STMT_ITEM, "INSERT OR REPLACE INTO item VALUES(?, ?, ?, ?, ?, ?, ?, ?)", &q, err));
  sqlite3_bind_int64(q, 1, it->seq);
  bind_text(q, 2, it->id);
  bind_text(q, 3, it->unit);
  bind_text(q, 4, it->split);
  bind_text(q, 5, it->group);
  bind_text(q, 6, chi_store_status_name[it->status]);
  bind_text(q, 7, it->reason);
  bind_text(q, 8, it->info && *it->info ? it->info : "{}");
  CHI_TRY(finish(s, q, what, err));
  for (size_t i = 0; i < n; i++) CHI_TRY(put_result(s, it->seq, &r[i], err));
  CHI_TRY(chi_store_exec(s, "COMMIT", what, err));
  open = false;
out:
  if (open) sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
  return rc;
}

int chi_store_session(chi_store *s, const char *started, const char *version, const char *command, int64_t items,
                      double seconds, chi_err *err) {
  sqlite3_stmt *q = NULL;
  int rc = chi_store_prepare(
      s, &q, "INSERT INTO session(started, version, command, items, seconds) VALUES(?, ?, ?, ?, ?)", err);
  if (rc) return rc;
  bind_text(q, 1, started);
  bind_text(q, 2, version);
  bind_text(q, 3, command);
  sqlite3_bind_int64(q, 4, items);
  sqlite3_bind_double(q, 5, seconds);
  rc = finish(s, q, "the session was not stored", err);
  sqlite3_finalize(q);
  return rc;
}

/* Stores of shards made into one. */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "study/store_internal.h"

static const char *const kSameKeys[] = {"settings", "model_hash", "data_hash"};

/* Items that both have and that differ in a value or in their results. */
static const char kConflict[] =
    "SELECT b.id FROM src.item b JOIN main.item a ON a.seq = b.seq WHERE a.id <> b.id OR a.unit <> b.unit OR"
    " a.split <> b.split OR a.grp <> b.grp OR a.status <> b.status OR a.reason <> b.reason OR a.info <> b.info OR"
    " EXISTS(SELECT kind, shape, digest FROM src.result WHERE seq = b.seq EXCEPT"
    " SELECT kind, shape, digest FROM main.result WHERE seq = b.seq) OR"
    " EXISTS(SELECT kind, shape, digest FROM main.result WHERE seq = b.seq EXCEPT"
    " SELECT kind, shape, digest FROM src.result WHERE seq = b.seq) LIMIT 1";

static const char kCopy[] =
    "BEGIN IMMEDIATE;"
    "INSERT OR IGNORE INTO main.result SELECT * FROM src.result WHERE seq NOT IN (SELECT seq FROM main.item);"
    "INSERT OR IGNORE INTO main.item SELECT * FROM src.item;"
    "INSERT INTO main.session(started, version, command, items, seconds)"
    " SELECT started, version, command, items, seconds FROM src.session;"
    "INSERT OR IGNORE INTO main.meta SELECT key, value FROM src.meta;"
    "COMMIT;";

static int copy_values(chi_store *out, const char *dir, bool *done, chi_err *err) {
  int rc = 0;
  chi_store *src = NULL;
  sqlite3_stmt *q = NULL;
  bool attached = false;
  CHI_TRY(chi_store_read(&src, dir, err)); /* that it is a store of this schema */
  if (chi_store_busy(dir)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is being written by another process: merge when it has ended", src->path);
    goto out;
  }
  for (size_t k = 0; k < sizeof kSameKeys / sizeof *kSameKeys; k++) {
    const char *v = chi_store_get(out, kSameKeys[k]);
    if (v) CHI_TRY(chi_store_same(src, kSameKeys[k], v, err));
  }
  const char *state = chi_store_get(src, "state");
  *done = *done && chi_streq(state, "done");
  CHI_TRY(chi_store_prepare(out, &q, "ATTACH ? AS src", err));
  sqlite3_bind_text(q, 1, src->path, -1, SQLITE_STATIC);
  if (sqlite3_step(q) != SQLITE_DONE) {
    rc = chi_store_fail(out, src->path, err);
    goto out;
  }
  attached = true;
  sqlite3_finalize(q);
  q = NULL;
  CHI_TRY(chi_store_prepare(out, &q, kConflict, err));
  int code = sqlite3_step(q);
  if (code == SQLITE_ROW)
    rc = chi_fail(err, CHI_ERR_ARG,
                  "%s: item %s is another one than in a store before it: these are no shards of one run", src->path,
                  (const char *)sqlite3_column_text(q, 0));
  else if (code != SQLITE_DONE)
    rc = chi_store_fail(out, src->path, err);
  sqlite3_finalize(q);
  q = NULL;
  if (rc) goto out;
  rc = chi_store_exec(out, kCopy, src->path, err);
  if (rc) sqlite3_exec(out->db, "ROLLBACK", NULL, NULL, NULL);
out:
  sqlite3_finalize(q);
  if (attached) sqlite3_exec(out->db, "DETACH src", NULL, NULL, NULL);
  chi_store_close(src);
  return rc;
}

int chi_store_merge(const char *const *dirs, size_t n, const char *dir, bool replace, chi_err *err) {
  int rc = 0;
  bool done = true;
  char target[4096], part[4096], part_dir[4096];
  chi_store *out = NULL;
  if (n == 0) return chi_fail(err, CHI_ERR_ARG, "nothing to merge");
  CHI_TRY(chi_path_join(target, sizeof target, dir, "run.sqlite", err));
  CHI_TRY(chi_path_join(part_dir, sizeof part_dir, dir, ".merge", err));
  CHI_TRY(chi_path_join(part, sizeof part, part_dir, "run.sqlite", err));
  if (!replace && chi_file_exists(target))
    return chi_fail(err, CHI_ERR_ARG, "%s exists already: merge into another folder", target);
  for (size_t i = 0; i < n; i++) /* before anything is made */
    if (!chi_store_exists(dirs[i])) return chi_fail(err, CHI_ERR_IO, "%s/run.sqlite: there is no such store", dirs[i]);
  CHI_TRY(chi_mkdirs(part_dir, err));
  unlink(part); /* of a merge that was killed */
  CHI_TRY(chi_store_open(&out, part_dir, NULL, 0, err));
  CHI_TRY(chi_store_exec(out, "PRAGMA foreign_keys = OFF; PRAGMA journal_mode = DELETE", "it cannot be written", err));
  for (size_t i = 0; i < n; i++) CHI_TRY(copy_values(out, dirs[i], &done, err));
  CHI_TRY(chi_store_set(out, "shard", "1/1", err));
  CHI_TRY(chi_store_set(out, "state", done ? "done" : "running", err));
  chi_store_close(out);
  out = NULL;
  if (rename(part, target) != 0) rc = chi_fail(err, CHI_ERR_IO, "%s: %s", target, strerror(errno));
out:
  chi_store_close(out);
  if (n) {
    char lock[4096];
    if (rc) unlink(part);
    if (chi_path_join(lock, sizeof lock, part_dir, "run.lock", NULL) == 0) unlink(lock);
    rmdir(part_dir);
  }
  return rc;
}

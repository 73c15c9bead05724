/* What the files of the store share. */
#ifndef CHI_STORE_INTERNAL_H
#define CHI_STORE_INTERNAL_H

#include <sqlite3.h>

#include "study/store.h"

enum { CHI_STORE_APP = 0x43484931 }; /* "CHI1" in the file's header */
enum { CHI_STMT_SET, CHI_STMT_GET, CHI_STMT_FIND, CHI_STMT_CLEAR, CHI_STMT_ITEM, CHI_STMT_RESULT, CHI_STORE_STMTS };

struct chi_store {
  sqlite3 *db;
  sqlite3_stmt *stmt[CHI_STORE_STMTS];
  int lock; /* open while this process writes, else -1 */
  char path[4096], lock_path[4096];
  char *value; /* what chi_store_get gave last */
};

/* The database's own last error behind the file's name. */
int chi_store_fail(const chi_store *s, const char *what, chi_err *err);
int chi_store_exec(chi_store *s, const char *sql, const char *what, chi_err *err);
int chi_store_prepare(chi_store *s, sqlite3_stmt **out, const char *sql, chi_err *err);
int chi_store_stmt(chi_store *s, int which, const char *sql, sqlite3_stmt **out, chi_err *err);
/* Fails where the store has another value of the key, and names what differs. */
int chi_store_same(chi_store *s, const char *key, const char *value, chi_err *err);

#endif

#include "file/jsonl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int chi_jsonl_read(const char *path, size_t max, char hash[65], char dir[4096], chi_jsonl_fn fn, void *ud,
                   chi_err *err) {
  int rc = 0, line = 0;
  char *buf = NULL, where[4200];
  size_t len;
  bool stop = false;
  const char *slash = strrchr(path, '/');
  snprintf(dir, 4096, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
  CHI_TRY(chi_read_file(&buf, &len, path, max, err));
  CHI_TRY(chi_sha256_file(hash, path, err));
  for (char *p = buf, *next; p && *p && !stop; p = next) {
    next = strchr(p, '\n');
    size_t n = next ? (size_t)(next - p) : strlen(p);
    next = next ? next + 1 : NULL;
    line++;
    if (strspn(p, " \t\r") >= n) continue;
    json_t *o = NULL;
    snprintf(where, sizeof where, "%s: line %d", path, line);
    CHI_TRY(chi_json_parse(&o, p, n, where, err));
    rc = json_is_object(o) ? fn(ud, o, where, line, &stop, err)
                           : chi_fail(err, CHI_ERR_FORMAT, "%s: not an object", where);
    json_decref(o);
    if (rc) goto out;
  }
out:
  chi_free(buf);
  return rc;
}

static int by_id(const void *a, const void *b) {
  const chi_jsonl_id *x = a, *y = b;
  int c = strcmp(x->id, y->id);
  return c ? c : (x->line > y->line) - (x->line < y->line);
}

int chi_jsonl_unique(const char *path, chi_jsonl_id *ids, size_t n, chi_err *err) {
  if (n) qsort(ids, n, sizeof *ids, by_id);
  for (size_t i = 1; i < n; i++)
    if (strcmp(ids[i].id, ids[i - 1].id) == 0)
      return chi_fail(err, CHI_ERR_FORMAT, "%s: id '%.80s' stands on lines %d and %d", path, ids[i].id, ids[i - 1].line,
                      ids[i].line);
  return 0;
}

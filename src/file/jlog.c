/* The log of a run; see jlog.h. */
#include "file/jlog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kMaxLog = 1 << 30 };

struct chi_jlog {
  char *path;
  int fd;
  json_t *lines, *ids; /* array of objects; object: id -> line */
};

static int check_head(const chi_jlog *l, json_t *j, const json_t *head, chi_err *err) {
  const char *key;
  json_t *v;
  if (json_equal(j, (json_t *)(uintptr_t)head)) return 0;
  json_object_foreach((json_t *)(uintptr_t)head, key, v) {
    if (!json_equal(v, json_object_get(j, key)))
      return chi_fail(err, CHI_ERR_ARG, "%s belongs to another run (its '%s' differs): name another file", l->path,
                      key);
  }
  return chi_fail(err, CHI_ERR_ARG, "%s belongs to another run: name another file", l->path);
}

static int keep(chi_jlog *l, json_t *j, int number, chi_err *err) {
  const char *id = json_string_value(json_object_get(j, "id"));
  if (!json_is_object(j) || !id)
    return chi_fail(err, CHI_ERR_FORMAT, "%s, line %d: not an object with an id", l->path, number);
  if (json_object_get(l->ids, id))
    return chi_fail(err, CHI_ERR_FORMAT, "%s, line %d: '%.60s' is there twice", l->path, number, id);
  if (json_object_set(l->ids, id, j) || json_array_append(l->lines, j))
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  return 0;
}

/* first: where the head goes to, or NULL where it must be `head`. */
static int take_line(chi_jlog *l, const char *line, size_t n, int number, const json_t *head, json_t **first,
                     chi_err *err) {
  int rc = 0;
  json_t *j = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
  if (number > 1)
    rc = keep(l, j, number, err);
  else if (!first)
    rc = check_head(l, j, head, err);
  else if (json_is_object(j))
    *first = json_incref(j);
  else
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s is no log", l->path);
  json_decref(j);
  return rc;
}

static int read_all(const chi_jlog *l, char **text, size_t *n, chi_err *err) {
  struct stat st;
  *n = 0;
  if (fstat(l->fd, &st) != 0) return chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
  if (!S_ISREG(st.st_mode) || st.st_size > kMaxLog) return chi_fail(err, CHI_ERR_FORMAT, "%s is no log", l->path);
  if (!(*text = chi_calloc((size_t)st.st_size + 1, 1, err))) return CHI_ERR_MEMORY;
  while (*n < (size_t)st.st_size) {
    ssize_t got = read(l->fd, *text + *n, (size_t)st.st_size - *n);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
    if (got == 0) break;
    *n += (size_t)got;
  }
  return 0;
}

/* A line that cannot be written in full is taken back. */
static int append(const chi_jlog *l, const json_t *j, chi_err *err) {
  int rc = 0;
  char *text = NULL;
  chi_str s = {0};
  off_t end = 0;
  if (l->fd < 0) return 0;
  text = json_dumps(j, JSON_COMPACT); /* every digit: what is read again is what was kept */
  end = lseek(l->fd, 0, SEEK_END);
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_str_add(&s, text);
  chi_str_add(&s, "\n");
  if (s.failed) rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  for (size_t at = 0; rc == 0 && at < s.len;) {
    ssize_t w = write(l->fd, s.s + at, s.len - at);
    if (w < 0 && errno == EINTR) continue;
    if (w < 0) rc = chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
    if (w > 0) at += (size_t)w;
  }
  if (rc && end >= 0 && ftruncate(l->fd, end) != 0) { /* the next one who reads drops what is left of it */
  }
  chi_str_free(&s);
  free(text);
  return rc;
}

/* What was finished; a line without its end is cut off the file, which is left alone where it is read only (first). */
static int take_up(chi_jlog *l, const json_t *head, json_t **first, chi_err *err) {
  int rc = 0, number = 0;
  char *text = NULL;
  size_t n = 0, at = 0;
  CHI_TRY(read_all(l, &text, &n, err));
  for (const char *end; at < n && (end = memchr(text + at, '\n', n - at)); at = (size_t)(end - text) + 1)
    CHI_TRY(take_line(l, text + at, (size_t)(end - text) - at, ++number, head, first, err));
  if (number == 0 && (at < n || first)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s is no log", l->path);
    goto out;
  }
  if (first) goto out;
  if (at < n && ftruncate(l->fd, (off_t)at) != 0)
    rc = chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
  else if (number == 0)
    rc = append(l, head, err);
out:
  chi_free(text);
  return rc;
}

static int new_log(chi_jlog **out, const char *path, chi_err *err) {
  chi_jlog *l = *out = chi_calloc(1, sizeof *l, err);
  if (!l) return CHI_ERR_MEMORY;
  l->fd = -1;
  l->lines = json_array();
  l->ids = json_object();
  l->path = strdup(path ? path : "");
  return l->path && l->lines && l->ids ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory");
}

int chi_jlog_read(chi_jlog **out, json_t **head, const char *path, chi_err *err) {
  int rc = 0;
  chi_jlog *l = NULL;
  *head = NULL;
  CHI_TRY(new_log(&l, path, err));
  l->fd = open(path, O_RDONLY | O_CLOEXEC);
  if (l->fd < 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: %s", path, strerror(errno));
    goto out;
  }
  CHI_TRY(take_up(l, NULL, head, err));
  close(l->fd);
  l->fd = -1;
out:
  if (rc) {
    json_decref(*head);
    *head = NULL;
    chi_jlog_close(l);
  } else {
    *out = l;
  }
  return rc;
}

int chi_jlog_open(chi_jlog **out, const char *path, const json_t *head, chi_err *err) {
  int rc = 0;
  chi_jlog *l = NULL;
  CHI_TRY(new_log(&l, path, err));
  if (!path) goto out;
  l->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (l->fd < 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: %s", path, strerror(errno));
    goto out;
  }
  if (flock(l->fd, LOCK_EX | LOCK_NB) != 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s is being written by another process", path);
    goto out;
  }
  CHI_TRY(take_up(l, head, NULL, err));
out:
  if (rc)
    chi_jlog_close(l);
  else
    *out = l;
  return rc;
}

void chi_jlog_close(chi_jlog *l) {
  if (!l) return;
  if (l->fd >= 0) close(l->fd);
  json_decref(l->lines);
  json_decref(l->ids);
  free(l->path);
  chi_free(l);
}

const json_t *chi_jlog_find(const chi_jlog *l, const char *id) { return json_object_get(l->ids, id); }
const json_t *chi_jlog_lines(const chi_jlog *l) { return l->lines; }

int chi_jlog_add(chi_jlog *l, json_t *line, chi_err *err) {
  int rc = keep(l, line, (int)json_array_size(l->lines) + 2, err);
  return rc ? rc : append(l, line, err);
}

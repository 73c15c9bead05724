/* The log of a fair test; see fair_log.h. */
#include "eval/fair_log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kMaxLog = 1 << 30 };

struct chi_fair_log {
  char *path;
  int fd;
  json_t *items, *ids; /* array of objects; object: id -> true */
};

/* ---- reading ----------------------------------------------------------------------------------------------- */
/* One line: the head, or an item. */
static int take_line(chi_fair_log *l, const char *line, size_t n, int number, const json_t *head, chi_err *err) {
  int rc = 0;
  json_t *j = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
  const char *id = json_string_value(json_object_get(j, "id"));
  if (number == 1) {
    if (!json_equal(j, (json_t *)(uintptr_t)head))
      rc = chi_fail(err, CHI_ERR_ARG,
                    "%s belongs to another test (other explainers, settings, model or items): name another file",
                    l->path);
  } else if (!json_is_object(j) || !id) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s, line %d: not a finished item", l->path, number);
  } else if (json_object_get(l->ids, id)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s, line %d: item '%.60s' is there twice", l->path, number, id);
  } else if (json_object_set_new(l->ids, id, json_true()) || json_array_append(l->items, j)) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  json_decref(j);
  return rc;
}

static int read_all(chi_fair_log *l, char **text, size_t *n, chi_err *err) {
  struct stat st;
  if (fstat(l->fd, &st) != 0) return chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
  if (!S_ISREG(st.st_mode) || st.st_size > kMaxLog)
    return chi_fail(err, CHI_ERR_FORMAT, "%s is no log of a fair test", l->path);
  *n = 0;
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

static int append(chi_fair_log *l, const json_t *j, chi_err *err) {
  int rc = 0;
  char *text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS);
  chi_str s = {0};
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_str_add(&s, text);
  chi_str_add(&s, "\n");
  for (size_t at = 0; rc == 0 && at < s.len;) {
    ssize_t w = write(l->fd, s.s + at, s.len - at);
    if (w < 0 && errno == EINTR) continue;
    if (w < 0) rc = chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
    if (w > 0) at += (size_t)w;
  }
  if (rc == 0 && s.failed) rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  chi_str_free(&s);
  free(text);
  return rc;
}

/* What was finished; a line without its end is cut off the file. */
static int take_up(chi_fair_log *l, const json_t *head, chi_err *err) {
  int rc = 0, number = 0;
  char *text = NULL;
  size_t n = 0, at = 0;
  CHI_TRY(read_all(l, &text, &n, err));
  for (const char *end; at < n && (end = memchr(text + at, '\n', n - at)); at = (size_t)(end - text) + 1)
    CHI_TRY(take_line(l, text + at, (size_t)(end - text) - at, ++number, head, err));
  if (at < n && number == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s is no log of a fair test", l->path);
    goto out;
  }
  if (at < n && ftruncate(l->fd, (off_t)at) != 0)
    rc = chi_fail(err, CHI_ERR_IO, "%s: %s", l->path, strerror(errno));
  else if (number == 0)
    rc = append(l, head, err);
out:
  chi_free(text);
  return rc;
}

int chi_fair_log_open(chi_fair_log **out, const char *path, const json_t *head, chi_err *err) {
  int rc = 0;
  chi_fair_log *l = chi_calloc(1, sizeof *l, err);
  if (!l) return CHI_ERR_MEMORY;
  l->fd = -1;
  l->items = json_array();
  l->ids = json_object();
  CHI_TRY((l->path = strdup(path)) && l->items && l->ids ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  l->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (l->fd < 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: %s", path, strerror(errno));
    goto out;
  }
  if (flock(l->fd, LOCK_EX | LOCK_NB) != 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s is being written by another process", path);
    goto out;
  }
  CHI_TRY(take_up(l, head, err));
out:
  if (rc)
    chi_fair_log_close(l);
  else
    *out = l;
  return rc;
}

void chi_fair_log_close(chi_fair_log *l) {
  if (!l) return;
  if (l->fd >= 0) close(l->fd);
  json_decref(l->items);
  json_decref(l->ids);
  free(l->path);
  chi_free(l);
}

bool chi_fair_log_has(const chi_fair_log *l, const char *id) { return json_object_get(l->ids, id) != NULL; }
const json_t *chi_fair_log_items(const chi_fair_log *l) { return l->items; }

/* ---- writing ----------------------------------------------------------------------------------------------- */
static json_t *num(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *curves_json(const chi_fair_score *s, int b) {
  json_t *o = json_object();
  for (int how = 0; how < CHI_REMOVALS; how++) {
    double area = b ? s->insertion[how] : s->deletion[how];
    if (!isfinite(area)) continue;
    json_t *c = json_array();
    for (int k = 0; k < CHI_FAIR_SHARES; k++) json_array_append_new(c, num(s->curve[b][how][k]));
    json_object_set_new(o, chi_removal_name[how], json_pack("{s:o,s:o}", "area", num(area), "p", c));
  }
  return o;
}

static json_t *score_json(const chi_fair_score *s) {
  return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "pointing", num(s->pointing), "precision", num(s->precision),
                   "auprc", num(s->auprc), "switch_gain", num(s->switch_gain), "switch_rank", num(s->switch_rank),
                   "shuffled_rank", num(s->shuffled_rank), "deletion", curves_json(s, 0), "insertion",
                   curves_json(s, 1));
}

int chi_fair_log_add(chi_fair_log *l, const char *id, const char *unit, const char *image, const chi_fair_result *r,
                     const chi_fair_opts *o, chi_err *err) {
  json_t *scores = r->score ? json_object() : json_null(), *j = NULL;
  int rc, bad = 0;
  for (int k = 0; r->score && k <= o->n_which; k++)
    if (r->score[k].made)
      bad |= json_object_set_new(scores, k < o->n_which ? o->which[k]->name : "mask", score_json(&r->score[k]));
  if (*r->problem)
    j = json_pack("{s:s,s:s,s:s,s:s,s:s}", "id", id, "unit", unit, "image", image, "status", "failed", "reason",
                  r->problem);
  else
    j = json_pack("{s:s,s:s,s:s,s:s,s:b,s:b,s:i,s:i,s:o}", "id", id, "unit", unit, "image", image, "status", "ok",
                  "right", r->right, "hurts", r->hurts, "patches", r->n, "mask_patches", r->n_mask, "p", num(r->p));
  if (j && !*r->problem) {
    bad |= json_object_set_new(j, "unseen", num(r->unseen));
    bad |= json_object_set_new(j, "fall", num(r->right ? r->fall : NAN));
    bad |= json_object_set_new(j, "random_fall", num(r->right ? r->random_fall : NAN));
    bad |= json_object_set(j, "scores", scores);
  }
  if (!j || bad)
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  else
    rc = append(l, j, err);
  if (rc == 0 && (json_array_append(l->items, j) || json_object_set_new(l->ids, id, json_true())))
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_decref(scores);
  json_decref(j);
  return rc;
}

/* Output files appear whole or not at all: a temporary file in the same folder, fsync, rename. What is not a regular
 * file (a device, a pipe) is written in place, since renaming over it would replace the device itself. */
#include "file/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER ((size_t)64 << 10)

struct chi_out {
  int fd;
  bool in_place;
  size_t used;
  chi_err err;          /* the first failure */
  char shown[PATH_MAX]; /* as the caller named it: for messages */
  char path[PATH_MAX];  /* links followed */
  char temp[PATH_MAX];
  char buf[BUFFER];
};

static int fail_write(chi_err *err, const char *path, int why) {
  if (why == ENOSPC || why == EDQUOT) {
    return chi_fail(err, CHI_ERR_IO, "%s: cannot write, the disk is full; free some space or write elsewhere", path);
  }
  if (why == EFBIG) {
    return chi_fail(err, CHI_ERR_IO, "%s: cannot write, the file would pass the size limit (see ulimit -f)", path);
  }
  return chi_fail(err, CHI_ERR_IO, "%s: cannot write: %s", path, strerror(why));
}

static int fail_create(chi_err *err, const char *path, int why) {
  if (why == ENOENT || why == ENOTDIR) {
    return chi_fail(err, CHI_ERR_IO, "%s: cannot write, its folder does not exist", path);
  }
  if (why == EACCES || why == EROFS || why == EPERM) {
    return chi_fail(err, CHI_ERR_IO, "%s: cannot write, no permission in its folder", path);
  }
  return fail_write(err, path, why);
}

/* A fresh file beside `path`. Its name does not grow with that of the target, which may be as long as allowed. */
static int open_temp(chi_out *o) {
  static atomic_uint serial;
  const char *slash = strrchr(o->path, '/');
  int dir = slash ? (int)(slash - o->path) + 1 : 0;
  for (int tries = 0; tries < 100; tries++) {
    unsigned n = atomic_fetch_add(&serial, 1);
    int len = snprintf(o->temp, sizeof o->temp, "%.*s.chiasm-%ld-%u.tmp", dir, o->path, (long)getpid(), n);
    if (len < 0 || (size_t)len >= sizeof o->temp) {
      errno = ENAMETOOLONG;
      return -1;
    }
    int fd = open(o->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST) return fd;
  }
  return -1;
}

int chi_out_open(chi_out **out, const char *path, chi_err *err) {
  int rc = 0;
  struct stat st;
  *out = NULL;
  if (path[0] == 0) return chi_fail(err, CHI_ERR_ARG, "an empty path cannot be written");
  chi_out *o = chi_calloc(1, sizeof *o, err);
  if (!o) return CHI_ERR_MEMORY;
  bool exists = stat(path, &st) == 0;
  if (strlen(path) >= sizeof o->path) {
    rc = chi_fail(err, CHI_ERR_ARG, "path too long: %.80s...", path);
    goto out;
  }
  memcpy(o->shown, path, strlen(path) + 1);
  if (exists && S_ISDIR(st.st_mode)) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: is a folder, a file name is needed", path);
    goto out;
  }
  o->in_place = exists && !S_ISREG(st.st_mode);
  if (!exists || !realpath(path, o->path)) memcpy(o->path, path, strlen(path) + 1);
  if (o->in_place) {
    memcpy(o->temp, o->path, sizeof o->temp);
    o->fd = open(o->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
  } else {
    o->fd = open_temp(o);
  }
  if (o->fd < 0) {
    rc = fail_create(err, path, errno);
    goto out;
  }
  if (exists && !o->in_place) (void)!fchmod(o->fd, st.st_mode & 0777);
  *out = o;
  o = NULL;
out:
  chi_free(o);
  return rc;
}

static int write_all(chi_out *o, const char *p, size_t n) {
  while (n > 0) {
    ssize_t w = write(o->fd, p, n < (size_t)1 << 30 ? n : (size_t)1 << 30);
    if (w < 0 && errno == EINTR) continue;
    if (w < 0) return fail_write(&o->err, o->shown, errno);
    p += w;
    n -= (size_t)w;
  }
  return 0;
}

static int flush(chi_out *o) {
  size_t n = o->used;
  o->used = 0;
  return n ? write_all(o, o->buf, n) : 0;
}

static int report(chi_out *o, chi_err *err) {
  if (o->err.code == 0) return 0;
  return chi_fail(err, o->err.code, "%s", o->err.text);
}

int chi_out_write(chi_out *o, const void *p, size_t n, chi_err *err) {
  if (o->err.code == 0 && n >= BUFFER - o->used && flush(o) == 0 && n >= BUFFER) {
    write_all(o, p, n);
  } else if (o->err.code == 0 && n > 0) {
    memcpy(o->buf + o->used, p, n);
    o->used += n;
  }
  return report(o, err);
}

int chi_out_printf(chi_out *o, chi_err *err, const char *fmt, ...) {
  char small[512];
  va_list ap, again;
  va_start(ap, fmt);
  va_copy(again, ap);
  int n = vsnprintf(small, sizeof small, fmt, ap);
  va_end(ap);
  if (n < 0) {
    chi_fail(&o->err, CHI_ERR_ARG, "%s: a line could not be formatted", o->shown);
  } else if ((size_t)n < sizeof small) {
    chi_out_write(o, small, (size_t)n, NULL);
  } else {
    char *big = chi_calloc((size_t)n + 1, 1, &o->err);
    if (big) {
      vsnprintf(big, (size_t)n + 1, fmt, again);
      chi_out_write(o, big, (size_t)n, NULL);
      chi_free(big);
    }
  }
  va_end(again);
  return report(o, err);
}

const char *chi_out_temp_path(const chi_out *o) { return o->temp; }

/* The name's own durability; not every file system can, so failures are not errors. */
static void sync_folder(const char *path) {
  char dir[PATH_MAX];
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) + 1 : 0;
  memcpy(dir, path, n);
  memcpy(dir + n, ".", 2);
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)!fsync(fd);
  close(fd);
}

int chi_out_commit(chi_out *o, chi_err *err) {
  if (o->err.code == 0) flush(o);
  if (o->err.code == 0 && fsync(o->fd) != 0 &&
      !(o->in_place && (errno == EINVAL || errno == ENOTSUP || errno == EROFS))) {
    fail_write(&o->err, o->shown, errno);
  }
  if (close(o->fd) != 0 && o->err.code == 0) fail_write(&o->err, o->shown, errno);
  if (!o->in_place) {
    if (o->err.code == 0 && rename(o->temp, o->path) != 0) fail_create(&o->err, o->shown, errno);
    if (o->err.code == 0) {
      sync_folder(o->path);
    } else {
      unlink(o->temp);
    }
  }
  int rc = report(o, err);
  chi_free(o);
  return rc;
}

void chi_out_abort(chi_out *o) {
  if (!o) return;
  close(o->fd);
  if (!o->in_place) unlink(o->temp);
  chi_free(o);
}

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* madvise */
#endif
#include "file/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail_open(chi_err *err, const char *path) {
  if (errno == ENOENT || errno == ENOTDIR) return chi_fail(err, CHI_ERR_IO, "%s: no such file; check the path", path);
  if (errno == EACCES) return chi_fail(err, CHI_ERR_IO, "%s: no permission to read it", path);
  return chi_fail(err, CHI_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
}

int chi_map_open(chi_map *out, const char *path, chi_err *err) {
  int rc = 0;
  struct stat st;
  memset(out, 0, sizeof *out);
  /* Not to wait for a writer if the path is a pipe. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return fail_open(err, path);
  if (fstat(fd, &st) != 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: cannot read its size: %s", path, strerror(errno));
  } else if (S_ISDIR(st.st_mode)) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: is a folder, a file is needed", path);
  } else if (!S_ISREG(st.st_mode)) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: is not a regular file; copy its content into one", path);
  } else if (st.st_size == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: is empty; an interrupted download? fetch it again", path);
  } else {
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      rc = chi_fail(err, CHI_ERR_IO, "%s: cannot map %lld bytes: %s", path, (long long)st.st_size, strerror(errno));
    } else {
      out->data = p;
      out->size = (size_t)st.st_size;
    }
  }
  close(fd);
  return rc;
}

void chi_map_close(chi_map *m) {
  if (m->data) munmap((void *)(uintptr_t)m->data, m->size);
  m->data = NULL;
  m->size = 0;
}

/* The part of [p, p + n) that lies in the map; false = none. */
static bool inside(const chi_map *m, const void *p, size_t n, uintptr_t *lo, uintptr_t *hi) {
  uintptr_t a = (uintptr_t)m->data, b = a + m->size, x = (uintptr_t)p;
  if (!m->data || !n || x >= b || x + n <= a) return false;
  *lo = x < a ? a : x;
  *hi = n > b - x ? b : x + n;
  return true;
}

void chi_map_ahead(const chi_map *m, const void *p, size_t n) {
  uintptr_t lo, hi, page = (uintptr_t)sysconf(_SC_PAGESIZE);
  if (!inside(m, p, n, &lo, &hi)) return;
  lo -= lo % page;
  (void)madvise((void *)lo, hi - lo, MADV_WILLNEED);
}

void chi_map_drop(const chi_map *m, const void *p, size_t n) {
  uintptr_t lo, hi, page = (uintptr_t)sysconf(_SC_PAGESIZE);
  if (!inside(m, p, n, &lo, &hi)) return;
  lo += (page - lo % page) % page; /* pages shared with a neighbour stay */
  if (hi < (uintptr_t)m->data + m->size) hi -= hi % page;
  if (lo < hi)
    (void)madvise((void *)lo, hi - lo, MADV_DONTNEED); /* a private read-only map of a file: nothing is lost */
}

static int fail_large(chi_err *err, const char *path, size_t max) {
  return chi_fail(err, CHI_ERR_FORMAT, "%s: is larger than the %zu bytes that such a file may have", path, max);
}

/* Read until the end or until cap bytes; EINTR is retried. Returns -1 with errno on failure. */
static ssize_t read_full(int fd, char *buf, size_t cap) {
  size_t len = 0;
  while (len < cap) {
    ssize_t n = read(fd, buf + len, cap - len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    len += (size_t)n;
  }
  return (ssize_t)len;
}

int chi_read_file(char **out, size_t *len, const char *path, size_t max, chi_err *err) {
  int rc = 0;
  char *buf = NULL;
  size_t cap = 0, used = 0;
  *out = NULL;
  *len = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return fail_open(err, path);
  struct stat st;
  if (fstat(fd, &st) != 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: cannot read its size: %s", path, strerror(errno));
    goto out;
  }
  if (S_ISDIR(st.st_mode)) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: is a folder, a file is needed", path);
    goto out;
  }
  if (max > PTRDIFF_MAX - 2) max = PTRDIFF_MAX - 2;
  if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > max) {
    rc = fail_large(err, path, max);
    goto out;
  }
  /* The size is only a hint: pipes have none, and a file can grow while it is read. */
  size_t want = st.st_size > 0 && (uint64_t)st.st_size < max ? (size_t)st.st_size + 1 : 4096;
  for (;;) {
    if (want > max + 1) want = max + 1; /* one byte more tells "too large" from "just fits" */
    void *p = buf;
    CHI_TRY(chi_grow(&p, &cap, want + 1, 1, err));
    buf = p;
    ssize_t n = read_full(fd, buf + used, want - used);
    if (n < 0) {
      rc = chi_fail(err, CHI_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
      goto out;
    }
    used += (size_t)n;
    if (used > max) {
      rc = fail_large(err, path, max);
      goto out;
    }
    if (used < want) break;
    want = want * 2;
  }
  buf[used] = 0;
  *out = buf;
  *len = used;
  buf = NULL;
out:
  chi_free(buf);
  close(fd);
  return rc;
}

bool chi_file_exists(const char *path) { return access(path, F_OK) == 0; }

int chi_path_join(char *out, size_t cap, const char *dir, const char *name, chi_err *err) {
  size_t n = strlen(dir);
  const char *slash = n == 0 || dir[n - 1] == '/' ? "" : "/";
  int len = snprintf(out, cap, "%s%s%s", dir, slash, name);
  if (len < 0 || (size_t)len >= cap) {
    if (cap) out[0] = 0;
    return chi_fail(err, CHI_ERR_ARG, "path too long: %.80s.../%.80s", dir, name);
  }
  return 0;
}

int chi_mkdirs(const char *path, chi_err *err) {
  char part[4096];
  size_t n = strlen(path);
  if (n == 0) return chi_fail(err, CHI_ERR_ARG, "an empty path cannot be made a folder");
  if (n >= sizeof part) return chi_fail(err, CHI_ERR_ARG, "path too long: %.80s...", path);
  for (size_t i = 1; i <= n; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    struct stat st;
    if (mkdir(part, 0777) == 0) continue;
    int why = errno;
    if (stat(part, &st) == 0 && S_ISDIR(st.st_mode)) continue;
    if (why == EEXIST || why == ENOTDIR) {
      return chi_fail(err, CHI_ERR_IO, "%s: is a file, so it cannot be used as a folder", part);
    }
    return chi_fail(err, CHI_ERR_IO, "%s: cannot make the folder: %s", part, strerror(why));
  }
  return 0;
}

int chi_sha256_file(char hex[65], const char *path, chi_err *err) {
  int rc = 0;
  chi_sha256 s;
  hex[0] = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return fail_open(err, path);
  size_t cap = (size_t)1 << 20;
  char *buf = chi_calloc(cap, 1, err);
  if (!buf) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  chi_sha256_init(&s);
  for (;;) {
    ssize_t n = read_full(fd, buf, cap);
    if (n < 0) {
      rc = chi_fail(err, CHI_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
      goto out;
    }
    chi_sha256_add(&s, buf, (size_t)n);
    if ((size_t)n < cap) break;
  }
  chi_sha256_hex(&s, hex);
out:
  chi_free(buf);
  close(fd);
  return rc;
}

#include "support/support.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[512];
static pid_t owner;

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
  (void)st;
  (void)flag;
  (void)ftw;
  return remove(path);
}

static void remove_root(void) {
  if (getpid() == owner) nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *tmp_path(const char *name) {
  static char buf[64][1024];
  static unsigned next;
  if (!root[0]) {
    const char *base = getenv("CHI_TEST_TMP");
    if (!base) base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/chi-test-XXXXXX", base ? base : P_tmpdir);
    if (!mkdtemp(root)) fail_msg("cannot make a scratch folder %s", root);
    owner = getpid();
    atexit(remove_root);
  }
  char *out = buf[next++ % 64];
  snprintf(out, sizeof buf[0], "%s%s%s", root, name[0] ? "/" : "", name);
  return out;
}

void put_file(const char *path, const void *bytes, size_t n) {
  unlink(path); /* a fresh file: some file systems flush one that is written over */
  FILE *f = fopen(path, "wb");
  if (!f) fail_msg("cannot write %s", path);
  size_t done = n ? fwrite(bytes, 1, n, f) : 0;
  if (fclose(f) != 0 || done != n) fail_msg("cannot write %s", path);
}

int count_files(const char *dir) {
  int n = 0;
  DIR *d = opendir(dir);
  if (!d) return -1;
  for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
  closedir(d);
  return n;
}

void check_failure(int rc, const chi_err *err, int want_code, const char *words, const char *call, const char *file,
                   int line) {
  if (rc == want_code && err->code == want_code && strstr(err->text, words) && !strchr(err->text, '\n')) return;
  print_error("%s:%d: %s gave %d (error %d \"%s\"), wanted %d with \"%s\"\n", file, line, call, rc, err->code,
              err->text, want_code, words);
  fail();
}

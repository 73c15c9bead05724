/* Runs LLVMFuzzerTestOneInput over files and folders given on the command line: the seed corpora as ordinary tests, and
 * a saved crash without libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) {
    perror(path);
    return -1;
  }
  size_t cap = 1 << 16, len = 0;
  uint8_t *buf = malloc(cap);
  while (buf) {
    len += fread(buf + len, 1, cap - len, f);
    if (len < cap) break;
    uint8_t *bigger = realloc(buf, cap *= 2);
    if (!bigger) free(buf);
    buf = bigger;
  }
  fclose(f);
  if (!buf) return -1;
  /* An exact-size copy, so that a read past the end is seen by the sanitizers. */
  uint8_t *exact = malloc(len ? len : 1);
  if (exact) {
    memcpy(exact, buf, len);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
  }
  free(buf);
  return exact ? 0 : -1;
}

static int run_path(const char *path, long *count) {
  struct stat st;
  if (stat(path, &st) != 0) {
    perror(path);
    return -1;
  }
  if (!S_ISDIR(st.st_mode)) {
    ++*count;
    return run_file(path);
  }
  DIR *dir = opendir(path);
  if (!dir) {
    perror(path);
    return -1;
  }
  int rc = 0;
  for (struct dirent *e; rc == 0 && (e = readdir(dir));) {
    char child[4096];
    if (e->d_name[0] == '.') continue;
    int n = snprintf(child, sizeof child, "%s/%s", path, e->d_name);
    if (n > 0 && (size_t)n < sizeof child) rc = run_path(child, count);
  }
  closedir(dir);
  return rc;
}

int main(int argc, char **argv) {
  long count = 0;
  for (int i = 1; i < argc; i++) {
    if (run_path(argv[i], &count) != 0) return 1;
  }
  printf("%ld inputs\n", count);
  if (count == 0) {
    fprintf(stderr, "no inputs: a seed corpus is missing\n");
    return 1;
  }
  return 0;
}

/* Listing pictures; see pictures.h. */
#include "data/pictures.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "file/file.h"

enum { kMaxPictures = 1 << 20 };

static bool is_picture(const char *name) {
  static const char *const kEnds[] = {".png", ".jpg", ".jpeg", ".webp"};
  size_t n = strlen(name);
  for (size_t i = 0; i < sizeof kEnds / sizeof *kEnds; i++)
    if (n > strlen(kEnds[i]) && strcasecmp(name + n - strlen(kEnds[i]), kEnds[i]) == 0) return true;
  return false;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int chi_pictures_find(char ***list, size_t *n, chi_arena *a, const char *path, uint64_t seed, chi_err *err) {
  int rc = 0;
  char full[4096], **all = NULL;
  size_t cap = 0;
  struct stat st;
  DIR *dir = NULL;
  *n = 0;
  if (stat(path, &st) == 0 && S_ISDIR(st.st_mode) && !(dir = opendir(path)))
    return chi_fail(err, CHI_ERR_IO, "cannot read the folder %s", path);
  void *grown = NULL;
  CHI_TRY(chi_grow(&grown, &cap, 1, sizeof *all, err));
  all = grown;
  if (!dir) CHI_TRY((all[(*n)++] = chi_arena_strdup(a, path, err)) ? 0 : CHI_ERR_MEMORY);
  /* cppcheck-suppress readdirCalled ; safe on a stream of one's own */
  for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
    if (!is_picture(e->d_name)) continue;
    if (*n == kMaxPictures) {
      rc = chi_fail(err, CHI_ERR_ARG, "%s holds more than %d pictures", path, kMaxPictures);
      goto out;
    }
    CHI_TRY(chi_grow(&grown, &cap, *n + 1, sizeof *all, err));
    all = grown;
    CHI_TRY(chi_path_join(full, sizeof full, path, e->d_name, err));
    CHI_TRY((all[*n] = chi_arena_strdup(a, full, err)) ? 0 : CHI_ERR_MEMORY);
    ++*n;
  }
  if (*n == 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s holds no picture (.png, .jpg, .jpeg, .webp)", path);
    goto out;
  }
  qsort(all, *n, sizeof *all, by_name);
  *list = chi_arena_array(a, *n, sizeof **list, err);
  CHI_TRY(*list ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < *n; i++) { /* Fisher-Yates from the inside out */
    size_t j = chi_rng_u32(seed, 5, (uint32_t)i, 0) % (i + 1);
    (*list)[i] = (*list)[j];
    (*list)[j] = all[i];
  }
out:
  if (dir) closedir(dir);
  chi_free(grown);
  return rc;
}

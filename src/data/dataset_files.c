/* Pictures of data sets: a file, or a folder named after the entity with several (VQA-Constraints). */
#include "data/dataset_internal.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <utf8proc.h>

char *chii_nfc(const char *s) {
  utf8proc_uint8_t *n = utf8proc_NFC((const utf8proc_uint8_t *)s);
  return n ? (char *)n : strdup(s); /* not UTF-8: compared byte by byte */
}

void chii_folder_free(chii_folder *f) {
  for (size_t i = 0; i < f->n; i++) {
    free(f->nfc[i]);
    free(f->name[i]);
  }
  chi_free(f->nfc);
  chi_free(f->name);
  free(f->path);
  *f = (chii_folder){0};
}

enum { kMaxNames = 1 << 20 };

/* Names in a folder; an unreadable one is empty. */
static int list(chii_folder *f, const char *path, chi_err *err) {
  int rc = 0;
  size_t cap = 0, cap_nfc = 0;
  DIR *d = opendir(path);
  chii_folder_free(f);
  f->path = strdup(path);
  /* cppcheck-suppress readdirCalled ; safe on a stream of one's own */
  for (struct dirent *e; d && f->n < kMaxNames && (e = readdir(d)) != NULL;) {
    if (e->d_name[0] == '.') continue;
    void *p = f->name, *q = f->nfc;
    rc = chi_grow(&p, &cap, f->n + 1, sizeof *f->name, err);
    f->name = p;
    if (rc == 0) rc = chi_grow(&q, &cap_nfc, f->n + 1, sizeof *f->nfc, err);
    f->nfc = q;
    if (rc) break;
    char *name = strdup(e->d_name), *nfc = chii_nfc(e->d_name);
    if (!name || !nfc) {
      free(name);
      free(nfc);
      rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for its names", path);
      break;
    }
    f->name[f->n] = name;
    f->nfc[f->n++] = nfc;
  }
  if (d) closedir(d);
  if (!f->path && rc == 0) rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for its names", path);
  return rc;
}

static bool is_picture(const char *name) {
  static const char *const kEnds[] = {".png", ".jpg", ".jpeg", ".webp"};
  size_t n = strlen(name);
  for (size_t i = 0; i < sizeof kEnds / sizeof *kEnds; i++) {
    size_t k = strlen(kEnds[i]);
    if (n > k && strcasecmp(name + n - k, kEnds[i]) == 0) return true;
  }
  return false;
}

/* The first picture by name in a folder, and how many there are. */
static int first_picture(chi_str *out, size_t *n, const char *folder, chi_err *err) {
  chii_folder f = {0};
  const char *best = NULL;
  *n = 0;
  int rc = list(&f, folder, err);
  for (size_t i = 0; i < f.n && rc == 0; i++) {
    if (!is_picture(f.name[i])) continue;
    ++*n;
    if (!best || strcmp(f.name[i], best) < 0) best = f.name[i];
  }
  if (best) {
    out->len = 0;
    chi_str_addf(out, "%s/%s", folder, best);
  }
  chii_folder_free(&f);
  return rc;
}

/* The same name with accents composed in its folder: VQA-Constraints and its pictures disagree there. */
static int by_accents(chii_reader *r, chi_str *path, bool *found, chi_err *err) {
  int rc = 0;
  char *slash = strrchr(path->s, '/'), *want = NULL;
  *found = false;
  if (!slash || !slash[1]) return 0;
  *slash = 0;
  if (!chi_streq(r->folder.path, path->s)) rc = list(&r->folder, path->s, err);
  *slash = '/';
  if (rc) return rc;
  if (!(want = chii_nfc(slash + 1))) return chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", path->s);
  for (size_t i = 0; i < r->folder.n && !*found; i++) {
    if (strcmp(r->folder.nfc[i], want) != 0) continue;
    path->len = (size_t)(slash + 1 - path->s);
    chi_str_add(path, r->folder.name[i]);
    *found = true;
  }
  free(want);
  return 0;
}

int chii_data_picture(chii_reader *r, chi_data_item *it, const char **out, const char *name, const char *field,
                      chi_err *err) {
  int rc = 0;
  struct stat st;
  chi_str path = {0};
  bool accents = false, dots = strncmp(name, "./", 2) == 0;
  if (r->o.text_only) return 0;
  if (strlen(name) > 3000) {
    rc = chii_note(r, it, CHII_NOTE_BAD_FIELD, field, err, "is too long for a path");
    goto out;
  }
  name += dots ? 2 : 0;
  if (*name == '/')
    chi_str_add(&path, name);
  else
    chi_str_addf(&path, "%s/%s", r->dir, name);
  CHI_TRY(path.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path) : 0);
  bool there = stat(path.s, &st) == 0;
  const char *base = strrchr(name, '/');
  if (!there && base && *name != '/') { /* val2014/COCO_...jpg beside pictures that lie flat */
    chi_str flat = {0};
    chi_str_addf(&flat, "%s%s", r->dir, base);
    there = !flat.failed && stat(flat.s, &st) == 0;
    if (there) {
      path.len = 0;
      chi_str_add(&path, flat.s);
    }
    chi_str_free(&flat);
  }
  if (!there) {
    CHI_TRY(by_accents(r, &path, &accents, err));
    there = accents && stat(path.s, &st) == 0;
    if (there) CHI_TRY(chii_note(r, it, CHII_NOTE_ACCENTS, field, err, "'%.200s' composes accents otherwise", name));
  }
  if (there && S_ISDIR(st.st_mode)) {
    size_t n = 0;
    chi_str folder = {0};
    chi_str_add(&folder, path.s);
    rc = folder.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path)
                       : first_picture(&path, &n, folder.s, err);
    chi_str_free(&folder);
    if (rc) goto out;
    there = n > 0;
    if (n > 1) CHI_TRY(chii_note(r, it, CHII_NOTE_FOLDER, field, err, "%zu pictures in '%.200s'", n, name));
  }
  if (!there) {
    CHI_TRY(chii_note(r, it, CHII_NOTE_NO_PICTURE, field, err, "no picture '%.200s' in %.200s", name, r->dir));
    goto out;
  }
  CHI_TRY(path.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path) : 0);
  rc = chii_data_copy(r, out, path.s, err);
out:
  chi_str_free(&path);
  return rc;
}

#include "model/packed.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nn/pages.h"

#define MAGIC "chiasm packed 1\n" /* 16 bytes; the number is the layout's */
enum { PAGE = 4096, MAX_MATS = 1 << 20 };

typedef struct entry { /* as stored */
  int64_t n, k;
  uint64_t at, bytes;
  uint32_t compute, store;
} entry;
typedef struct head {
  char magic[16], key[64];
} head;
typedef struct tail {
  uint64_t count, at;
  char hash[64]; /* of the weight files */
  char magic[16];
} tail;

struct chi_packed {
  char *path;
  char key[65], hash[65];
  chi_map map;   /* of a complete file */
  chi_out *out;  /* of one that is being written */
  uint64_t size; /* written so far */
  entry *e;
  chi_mat **mat; /* writing: whose data goes to e[i] */
  size_t n, cap, cap_mat, next;
};

/* ---- key ------------------------------------------------------------------------------------------------------- */
static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void add_file(chi_sha256 *h, const char *path, const char *name) {
  struct stat s;
  char line[512];
  if (stat(path, &s) != 0 || !S_ISREG(s.st_mode)) return;
  snprintf(line, sizeof line, "%s %lld %lld.%09ld\n", name, (long long)s.st_size, (long long)s.st_mtim.tv_sec,
           s.st_mtim.tv_nsec);
  chi_sha256_add(h, line, strlen(line));
}

static int keep_all(const struct dirent *d) { return d->d_name[0] != '.'; }

/* Names, sizes and times of the files of a folder (or of the one file), the family and the arithmetic. */
static int make_key(char key[65], const chi_model *m, const char *mmproj, chi_err *err) {
  int rc = 0;
  chi_sha256 h;
  struct dirent **list = NULL;
  chi_sha256_init(&h);
  chi_sha256_add(&h, MAGIC, 16);
  chi_sha256_add(&h, m->family, strlen(m->family) + 1);
  chi_sha256_add(&h, m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32 ", 4);
  int n = scandir(m->path, &list, keep_all, by_name);
  if (n < 0) add_file(&h, m->path, m->path);
  if (mmproj) add_file(&h, mmproj, mmproj);
  for (int i = 0; i < n; i++) {
    char path[4096];
    if (rc == 0) rc = chi_path_join(path, sizeof path, m->path, list[i]->d_name, err);
    if (rc == 0) add_file(&h, path, list[i]->d_name);
    free(list[i]);
  }
  free(list);
  chi_sha256_hex(&h, key);
  return rc;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */
/* Whether the mapped file is a complete one with this key; fills e, n and hash. */
static int look(chi_packed *p, bool *good, chi_err *err) {
  head h;
  tail t;
  *good = false;
  if (p->map.size < PAGE + sizeof t) return 0;
  memcpy(&h, p->map.data, sizeof h);
  memcpy(&t, p->map.data + p->map.size - sizeof t, sizeof t);
  if (memcmp(h.magic, MAGIC, 16) != 0 || memcmp(t.magic, MAGIC, 16) != 0 || memcmp(h.key, p->key, 64) != 0) return 0;
  if (t.count > MAX_MATS || t.at > p->map.size || t.at + t.count * sizeof(entry) + sizeof t != p->map.size) return 0;
  p->e = chi_calloc((size_t)t.count + 1, sizeof *p->e, err);
  if (!p->e) return CHI_ERR_MEMORY;
  memcpy(p->e, p->map.data + t.at, (size_t)t.count * sizeof *p->e);
  for (size_t i = 0; i < t.count; i++)
    if (p->e[i].at % PAGE != 0 || p->e[i].at > t.at || p->e[i].bytes > t.at - p->e[i].at) return 0;
  memcpy(p->hash, t.hash, 64);
  p->n = (size_t)t.count;
  *good = true;
  return 0;
}

bool chi_packed_ready(const chi_packed *p) { return p->map.data != NULL; }

static void place(const chi_packed *p, const entry *e, chi_mat *mat) {
  mat->store = (chi_dtype)e->store;
  mat->bytes = (size_t)e->bytes;
  mat->data = (void *)(uintptr_t)(p->map.data + e->at); /* read only, as every weight is */
  mat->borrowed = true;
}

int chi_packed_next(chi_packed *p, chi_mat *mat, chi_err *err) {
  const entry *e = &p->e[p->next];
  if (p->next >= p->n || e->n != mat->n || e->k != mat->k || e->compute != (uint32_t)mat->compute ||
      e->bytes != chi_mat_bytes(mat->n, mat->k, mat->compute, (chi_dtype)e->store))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: matrix %zu is not the model's; delete the file, it will be made anew",
                    p->path, p->next);
  place(p, e, mat);
  p->next++;
  return 0;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */
static int fill_page(chi_packed *p, chi_err *err) {
  static const char zeros[PAGE];
  size_t n = (size_t)((PAGE - p->size % PAGE) % PAGE);
  p->size += n;
  return n ? chi_out_write(p->out, zeros, n, err) : 0;
}

int chi_packed_put(chi_packed *p, chi_mat *mat, chi_err *err) {
  int rc = 0;
  void *e = p->e, *m = (void *)p->mat;
  CHI_TRY(chi_grow(&e, &p->cap, p->n + 1, sizeof *p->e, err));
  p->e = e;
  CHI_TRY(chi_grow(&m, &p->cap_mat, p->n + 1, sizeof(chi_mat *), err));
  p->mat = m;
  CHI_TRY(fill_page(p, err));
  p->e[p->n] = (entry){.n = mat->n, .k = mat->k, .at = p->size, .bytes = mat->bytes};
  p->e[p->n].compute = (uint32_t)mat->compute;
  p->e[p->n].store = (uint32_t)mat->store;
  CHI_TRY(chi_out_write(p->out, mat->data, mat->bytes, err));
  p->size += mat->bytes;
  p->mat[p->n++] = mat;
  chi_mat shape = *mat;
  chi_mat_free(mat);
  *mat = shape;
  mat->data = NULL;
out:
  return rc;
}

static int complete(chi_packed *p, chi_model *m, chi_err *err) {
  int rc = 0;
  bool good = false;
  tail t = {.count = p->n};
  CHI_TRY(chi_model_hash(m, err));
  memcpy(t.hash, m->hash, 64);
  CHI_TRY(fill_page(p, err));
  t.at = p->size;
  memcpy(t.magic, MAGIC, 16);
  CHI_TRY(chi_out_write(p->out, p->e, p->n * sizeof *p->e, err));
  CHI_TRY(chi_out_write(p->out, &t, sizeof t, err));
  rc = chi_out_commit(p->out, err);
  p->out = NULL;
  if (rc) goto out;
  CHI_TRY(chi_map_open(&p->map, p->path, err));
  chi_free(p->e);
  p->e = NULL;
  CHI_TRY(look(p, &good, err));
  if (!good) rc = chi_fail(err, CHI_ERR_IO, "%s: it was changed while it was written", p->path);
  for (size_t i = 0; rc == 0 && i < p->n; i++) place(p, &p->e[i], p->mat[i]);
out:
  return rc;
}

int chi_packed_finish(chi_packed *p, chi_model *m, chi_err *err) {
  if (p->out) return complete(p, m, err);
  if (p->next != p->n)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %zu matrices, the model has %zu; delete the file, it will be made anew",
                    p->path, p->n, p->next);
  if (m->tower) { /* the key does not watch its folder */
    int rc = chi_model_hash(m, err);
    if (rc) return rc;
    if (memcmp(m->hash, p->hash, sizeof m->hash) != 0)
      return chi_fail(err, CHI_ERR_FORMAT, "%s: the vision tower's files have changed since; delete the file", p->path);
  }
  memcpy(m->hash, p->hash, sizeof m->hash);
  return 0;
}

/* ---- the rest -------------------------------------------------------------------------------------------------- */
int chi_packed_open(chi_packed **out, const chi_model *m, const char *mmproj, const char *dir, chi_err *err) {
  int rc = 0;
  bool good = false;
  char file[4096], name[128];
  head h = {0};
  chi_packed *p = chi_calloc(1, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  CHI_TRY(make_key(p->key, m, mmproj, err));
  snprintf(name, sizeof name, "%.16s-%s.packed", p->key, m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32");
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_path_join(file, sizeof file, dir, name, err));
  p->path = chi_calloc(strlen(file) + 1, 1, err);
  CHI_TRY(p->path ? 0 : CHI_ERR_MEMORY);
  memcpy(p->path, file, strlen(file));
  if (chi_file_exists(file)) {
    CHI_TRY(chi_map_open(&p->map, file, err));
    CHI_TRY(look(p, &good, err));
    if (good) goto out;
    chi_map_close(&p->map);
    p->map = (chi_map){0};
  }
  CHI_TRY(chi_out_open(&p->out, file, err));
  memcpy(h.magic, MAGIC, 16);
  memcpy(h.key, p->key, 64);
  CHI_TRY(chi_out_write(p->out, &h, sizeof h, err));
  p->size = sizeof h;
out:
  if (rc)
    chi_packed_free(p);
  else
    *out = p;
  return rc;
}

void chi_packed_free(chi_packed *p) {
  if (!p) return;
  chi_out_abort(p->out);
  if (p->map.data) chi_map_close(&p->map);
  chi_free(p->path);
  chi_free(p->e);
  chi_free(p->mat);
  chi_free(p);
}

int chi_packed_stream(chi_packed *p, chi_model *m, chi_err *err) {
  chi_decoder *d = &m->net.decoder;
  m->net.pages = chi_pages_new(&p->map, d->spec.layers, err);
  if (!m->net.pages) return CHI_ERR_MEMORY;
  for (int l = 0; l < d->spec.layers; l++) {
    const chi_block *b = &d->block[l];
    const chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
      if (all[i]->w.data) chi_pages_add(m->net.pages, l, all[i]->w.data, all[i]->w.bytes);
  }
  return 0;
}

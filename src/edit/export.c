/* A checkpoint folder with deltas in its weights. The base's files are read only. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "edit/edit.h"
#include "model/gguf.h"
#include "tensor/dtype.h"

/* Linear layers of the model that a delta changes, by the tensor that holds them. */
typedef struct change {
  const chi_delta_part *p;
  const chi_bound *b;
  const char *tensor;
} change;

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), k = strlen(end);
  return n >= k && strcmp(s + n - k, end) == 0;
}

static int collect(change **out, size_t *count, const chi_model *m, chi_delta *const *list, size_t n, chi_err *err) {
  int rc = 0;
  char name[96];
  size_t cap = 0;
  void *p = NULL;
  *count = 0;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < list[i]->n; j++) {
      const chi_delta_part *part = &list[i]->part[j];
      chi_delta_part_name(part, name, sizeof name);
      chi_model *any = (chi_model *)(uintptr_t)m; /* looked up, not written */
      const chi_linear *l = chi_delta_linear(any, part->stack, part->layer, part->which);
      const chi_bound *b = l ? chi_model_bound(m, l) : NULL;
      const char *tensor = !b ? NULL : part->which == CHI_DELTA_HEAD_BIAS ? b->bias : b->weight;
      if (!tensor || !*tensor || !chi_st_find(m->st, tensor)) {
        rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s is no tensor of its own in %s: this delta cannot be exported", name,
                      m->path);
        goto out;
      }
      CHI_TRY(chi_grow(&p, &cap, *count + 1, sizeof **out, err));
      *out = p;
      (*out)[(*count)++] = (change){part, b, tensor};
    }
out:
  return rc;
}

/* w [count] of a whole tensor += one part. */
static int change_tensor(float *w, int64_t count, const change *c, chi_err *err) {
  const chi_delta_part *p = c->p;
  int64_t at = c->b->at, total = c->b->total;
  if (at + p->n > total || total * p->k != count)
    return chi_fail(err, CHI_ERR_ARG, "tensor '%s' has not the size of the change", c->tensor);
  if (!c->b->transposed) {
    chi_delta_add_to(p, 0, p->n, w + at * p->k);
    return 0;
  }
  float *rows = chi_calloc((size_t)(p->n * p->k), sizeof *rows, err); /* stored [k][total] */
  if (!rows) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < p->n; i++)
    for (int64_t k = 0; k < p->k; k++) rows[i * p->k + k] = w[k * total + at + i];
  chi_delta_add_to(p, 0, p->n, rows);
  for (int64_t i = 0; i < p->n; i++)
    for (int64_t k = 0; k < p->k; k++) w[k * total + at + i] = rows[i * p->k + k];
  chi_free(rows);
  return 0;
}

static void *narrow(const float *w, int64_t n, chi_dtype dtype, chi_err *err) {
  void *out = chi_calloc((size_t)n, chi_dtype_size(dtype), err);
  for (int64_t i = 0; out && i < n; i++) {
    if (dtype == CHI_F32) ((float *)out)[i] = w[i];
    if (dtype == CHI_BF16) ((uint16_t *)out)[i] = chi_bf16_from_f32(w[i]);
    if (dtype == CHI_F16) ((uint16_t *)out)[i] = chi_f16_from_f32(w[i]);
  }
  return out;
}

static int add_tensor(chi_st_writer *w, void **mine, const chi_tensor *t, const change *c, size_t n, int dtype,
                      chi_err *err) {
  int rc = 0;
  bool changed = false, floating = t->dtype == CHI_F32 || t->dtype == CHI_F16 || t->dtype == CHI_BF16;
  chi_dtype to = floating && dtype >= 0 ? (chi_dtype)dtype : t->dtype;
  float *x = NULL;
  int64_t count = 1;
  for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
  for (size_t i = 0; i < n; i++) changed |= strcmp(c[i].tensor, t->name) == 0;
  if (changed && !floating)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "tensor '%s' is %s; only F32, F16 and BF16 can be edited", t->name,
                    chi_dtype_name(t->dtype));
  if (!changed && to == t->dtype) return chi_st_writer_add(w, t->name, t->dtype, t->ndim, t->dim, t->data, err);
  CHI_TRY((x = chi_calloc((size_t)count, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_to_f32(x, t->data, t->dtype, (size_t)count, err));
  for (size_t i = 0; i < n; i++)
    if (strcmp(c[i].tensor, t->name) == 0) CHI_TRY(change_tensor(x, count, &c[i], err));
  *mine = narrow(x, count, to, err);
  CHI_TRY(*mine ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_st_writer_add(w, t->name, to, t->ndim, t->dim, *mine, err));
out:
  chi_free(x);
  return rc;
}

static int write_weights(const chi_model *m, const change *c, size_t n, const char *path, int dtype, chi_err *err) {
  int rc = 0;
  size_t count = chi_st_count(m->st);
  chi_st_writer *w = NULL;
  void **mine = chi_calloc(count + 1, sizeof *mine, err);
  if (!mine) return CHI_ERR_MEMORY;
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_st_writer_meta(w, "format", "pt", err)); /* transformers asks for it */
  for (size_t i = 0; i < count; i++) {
    CHI_TRY(chi_progress("exporting", (int64_t)i, (int64_t)count, err));
    CHI_TRY(add_tensor(w, &mine[i], chi_st_at(m->st, i), c, n, dtype, err));
  }
  chi_st_writer *done = w;
  w = NULL;
  rc = chi_st_writer_commit(done, err);
out:
  chi_st_writer_abort(w);
  for (size_t i = 0; i < count; i++) chi_free(mine[i]);
  chi_free(mine);
  return rc;
}

static int copy_file(const char *from, const char *to, chi_err *err) {
  int rc = 0;
  chi_map map = {0};
  chi_out *o = NULL;
  struct stat st;
  if (stat(from, &st) == 0 && st.st_size == 0) {
    CHI_TRY(chi_out_open(&o, to, err));
  } else {
    CHI_TRY(chi_map_open(&map, from, err));
    CHI_TRY(chi_out_open(&o, to, err));
    CHI_TRY(chi_out_write(o, map.data, map.size, err));
  }
  chi_out *done = o;
  o = NULL;
  rc = chi_out_commit(done, err);
out:
  chi_out_abort(o);
  if (map.data) chi_map_close(&map);
  return rc;
}

static int copy_config(const char *from, const char *to, const char *dtype, chi_err *err) {
  static const char *const names[] = {"float32", "float16", "bfloat16"};
  int rc = 0;
  json_t *j = NULL;
  const char *name = names[chi_streq(dtype, "f16") ? 1 : chi_streq(dtype, "bf16") ? 2 : 0];
  CHI_TRY(chi_json_load(&j, from, 16 << 20, err));
  json_t *parts[3] = {j, json_object_get(j, "text_config"), json_object_get(j, "vision_config")};
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 2; k++) {
      const char *key = k ? "torch_dtype" : "dtype";
      if (json_object_get(parts[i], key)) json_object_set_new(parts[i], key, json_string(name));
    }
  rc = chi_json_save(j, to, err);
out:
  json_decref(j);
  return rc;
}

/* Every plain file beside the weights: config, tokenizer, preprocessing, licences. */
static int copy_files(const char *from, const char *to, const char *dtype, chi_err *err) {
  static const char *const skip[] = {
      ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".msgpack", ".h5",
      ".onnx"};
  int rc = 0;
  DIR *dir = opendir(from);
  if (!dir) return chi_fail(err, CHI_ERR_IO, "%s: cannot read the folder: %s", from, strerror(errno));
  /* cppcheck-suppress readdirCalled ; safe on a stream of one's own */
  for (struct dirent *e; rc == 0 && (e = readdir(dir)) != NULL;) {
    char a[PATH_MAX], b[PATH_MAX];
    struct stat st;
    bool weights = false;
    for (size_t i = 0; i < sizeof skip / sizeof *skip; i++) weights |= ends_with(e->d_name, skip[i]);
    if (weights || e->d_name[0] == '.') continue;
    CHI_TRY(chi_path_join(a, sizeof a, from, e->d_name, err));
    CHI_TRY(chi_path_join(b, sizeof b, to, e->d_name, err));
    if (stat(a, &st) != 0 || !S_ISREG(st.st_mode)) continue;
    rc = dtype && strcmp(e->d_name, "config.json") == 0 ? copy_config(a, b, dtype, err) : copy_file(a, b, err);
  }
out:
  closedir(dir);
  return rc;
}

static void remove_folder(const char *path) {
  DIR *dir = opendir(path);
  /* cppcheck-suppress readdirCalled ; safe on a stream of one's own */
  for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
    char a[PATH_MAX];
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
        chi_path_join(a, sizeof a, path, e->d_name, NULL) == 0)
      unlink(a);
  }
  if (dir) closedir(dir);
  rmdir(path);
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------ */
typedef struct gguf_work {
  chi_gguf *g;
  chi_tensor_list names; /* Hugging Face names, data in g's map */
  json_t *config;
  chi_gguf_change *change;
  void **data;
  size_t n;
  chi_arena arena;
} gguf_work;

/* The file's own tensor behind a Hugging Face name; NULL where it was put together from its rows (rotary order). */
static const chi_tensor *own_tensor(const gguf_work *w, const char *name) {
  size_t count;
  const chi_tensor *own = chi_gguf_tensors(w->g, &count);
  for (size_t i = 0; i < w->names.n; i++)
    for (size_t k = 0; strcmp(w->names.t[i].name, name) == 0 && k < count; k++)
      if (own[k].data == w->names.t[i].data && own[k].bytes == w->names.t[i].bytes) return &own[k];
  return NULL;
}

/* All changes of one stored tensor, as F32 or F16. */
static int change_gguf(gguf_work *w, const chi_model *m, const change *c, size_t n, size_t at, const char *dtype,
                       chi_err *err) {
  int rc = 0;
  float *x = NULL;
  int64_t count = 1;
  const chi_tensor *t = own_tensor(w, c[at].tensor);
  for (size_t i = 0; i < at; i++)
    if (strcmp(c[i].tensor, c[at].tensor) == 0) return 0; /* done with the first of them */
  if (!t)
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "'%s' is no tensor of its own in %s (another file, or rows in rotary order): no export",
                    c[at].tensor, m->path);
  for (int i = 0; i < t->ndim; i++) count *= t->dim[i];
  CHI_TRY((x = chi_calloc((size_t)count, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_to_f32(x, t->data, t->dtype, (size_t)count, err));
  for (size_t i = at; i < n; i++)
    if (strcmp(c[i].tensor, c[at].tensor) == 0) CHI_TRY(change_tensor(x, count, &c[i], err));
  chi_dtype to = dtype ? (chi_streq(dtype, "f16") ? CHI_F16 : CHI_F32) : t->dtype == CHI_F16 ? CHI_F16 : CHI_F32;
  CHI_TRY((w->data[w->n] = narrow(x, count, to, err)) ? 0 : CHI_ERR_MEMORY);
  w->change[w->n] = (chi_gguf_change){.t = t, .dtype = to, .data = w->data[w->n]};
  w->n++;
out:
  chi_free(x);
  return rc;
}

/* Edited tensors become F16 where the base has F16, else F32 (or what dtype says): quantising would eat the edit. */
static int export_gguf(const chi_model *m, chi_delta *const *list, size_t n, const char *path, const char *dtype,
                       chi_err *err) {
  int rc = 0;
  struct stat st;
  gguf_work w = {0};
  change *c = NULL;
  size_t count = 0;
  if (dtype && chi_streq(dtype, "bf16"))
    return chi_fail(err, CHI_ERR_ARG, "edited tensors of a GGUF file are written as f16 or f32, not bf16");
  if (lstat(path, &st) == 0)
    return chi_fail(err, CHI_ERR_ARG, "%s exists already; an export writes a new file only", path);
  CHI_TRY(collect(&c, &count, m, list, n, err));
  CHI_TRY(chi_gguf_open(&w.g, m->path, err));
  CHI_TRY(chi_gguf_config(&w.config, w.g, err));
  const char *prefix = count && strncmp(c[0].tensor, "language_model.", 15) == 0 ? "language_model." : "";
  CHI_TRY(chi_gguf_names(&w.names, &w.arena, w.g, w.config, prefix, err));
  w.change = chi_calloc(count + 1, sizeof *w.change, err);
  w.data = chi_calloc(count + 1, sizeof *w.data, err);
  CHI_TRY(w.change && w.data ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < count; i++) CHI_TRY(change_gguf(&w, m, c, count, i, dtype, err));
  CHI_TRY(chi_gguf_rewrite(w.g, path, w.change, w.n, err));
out:
  for (size_t i = 0; w.data && i < w.n; i++) chi_free(w.data[i]);
  chi_free(w.data);
  chi_free(w.change);
  chi_free(w.names.t);
  json_decref(w.config);
  chi_gguf_close(w.g);
  chi_arena_free(&w.arena);
  chi_free(c);
  return rc;
}

int chi_export(const chi_model *m, chi_delta *const *list, size_t n, const char *dir, const char *dtype, chi_err *err) {
  int rc = 0, to = -1;
  char temp[PATH_MAX], file[PATH_MAX];
  struct stat st;
  change *c = NULL;
  size_t count = 0, len = strlen(dir);
  bool made = false;
  while (len > 1 && dir[len - 1] == '/') len--;
  int used = snprintf(temp, sizeof temp, "%.*s.chiasm-%ld.tmp", (int)len, dir, (long)getpid());
  if (len == 0 || used < 0 || (size_t)used >= sizeof temp)
    return chi_fail(err, CHI_ERR_ARG, "the folder's name is empty or too long");
  for (size_t i = 0; i < n; i++)
    if (chi_delta_prefix(list[i]))
      return chi_fail(err, CHI_ERR_ARG, "an in-context edit has no weights: there is nothing to export");
  if (chi_gguf_is(m->path)) return export_gguf(m, list, n, dir, dtype, err);
  if (lstat(dir, &st) == 0)
    return chi_fail(err, CHI_ERR_ARG, "%s exists already; an export writes a new folder only", dir);
  if (stat(m->path, &st) != 0 || !S_ISDIR(st.st_mode))
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s is no folder: only Hugging Face folders and GGUF files can be exported", m->path);
  if (m->tower)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s takes its vision tower from another folder: no export yet", m->path);
  if (dtype) to = chi_streq(dtype, "f16") ? CHI_F16 : chi_streq(dtype, "bf16") ? CHI_BF16 : CHI_F32;
  CHI_TRY(collect(&c, &count, m, list, n, err));
  if (mkdir(temp, 0777) != 0) {
    rc = chi_fail(err, CHI_ERR_IO, "%s: cannot make the folder: %s", dir, strerror(errno));
    goto out;
  }
  made = true;
  CHI_TRY(copy_files(m->path, temp, dtype, err));
  CHI_TRY(chi_path_join(file, sizeof file, temp, "model.safetensors", err));
  CHI_TRY(write_weights(m, c, count, file, to, err));
  if (renameat2(AT_FDCWD, temp, AT_FDCWD, dir, RENAME_NOREPLACE) != 0) {
    bool there = errno == EEXIST || errno == ENOTEMPTY;
    if (!there && (errno == EINVAL || errno == ENOSYS) && lstat(dir, &st) != 0 && rename(temp, dir) == 0)
      made = false;
    else
      rc = chi_fail(err, CHI_ERR_IO, "%s: %s", dir,
                    there ? "exists already; an export writes a new folder only" : "cannot be made there");
  } else {
    made = false;
  }
out:
  if (made) remove_folder(temp);
  chi_free(c);
  return rc;
}

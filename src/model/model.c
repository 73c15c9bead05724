/* Opening a checkpoint folder. */
#include <string.h>

#include "model/family.h"
#include "model/gguf.h"
#include "model/packed.h"

typedef int (*family_fn)(chi_model *m, const json_t *config, chi_binder *b, chi_err *err);
static const struct {
  const char *name, *type, *doc;
  family_fn open;
} kFamilies[] = {
#define CHI_FAMILY(sym, type, doc) {#sym, type, doc, chi_family_##sym},
#include "model/models.def"
#undef CHI_FAMILY
};
enum { kFamilyCount = sizeof kFamilies / sizeof *kFamilies };

static int find_family(chi_model *m, const json_t *config, family_fn *open, chi_err *err) {
  const char *type = NULL;
  int rc = chi_json_str_opt(&type, config, "model_type", "config.json", err);
  if (rc) return rc;
  chi_str known = {0};
  for (size_t i = 0; i < kFamilyCount; i++) {
    if (chi_streq(kFamilies[i].type, type)) {
      m->family = kFamilies[i].name;
      *open = kFamilies[i].open;
      chi_str_free(&known);
      return 0;
    }
    chi_str_addf(&known, "%s%s", i ? ", " : "", kFamilies[i].type);
  }
  rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s/config.json: model_type is '%s'; known are %s", m->path,
                type ? type : "(absent)", known.s);
  chi_str_free(&known);
  return rc;
}

/* Parameters of the decoder, by its config alone: the choice of arithmetic is made before weights are packed. */
static int64_t decoder_params(const json_t *config) {
  const json_t *t = json_object_get(config, "text_config");
  if (!json_is_object(t)) t = config;
  int64_t d = 4096, l = 32, f = 11008, v = 32000;
  const struct {
    const char *key, *other;
    int64_t *to;
  } keys[] = {{"hidden_size", "n_embd", &d},
              {"num_hidden_layers", "n_layer", &l},
              {"intermediate_size", "ffn_dim", &f},
              {"vocab_size", "", &v}};
  for (size_t i = 0; i < 4; i++) {
    const json_t *x = json_object_get(t, keys[i].key);
    if (!x) x = json_object_get(t, keys[i].other);
    if (json_is_integer(x) && json_integer_value(x) > 0 && json_integer_value(x) < (1 << 24))
      *keys[i].to = json_integer_value(x);
  }
  return l * (4 * d * d + 3 * d * f) + 2 * v * d;
}

static int read_eos(chi_model *m, const char *dir, const json_t *config, chi_err *err) {
  char path[4096];
  json_t *gen = NULL;
  int rc = chi_path_join(path, sizeof path, dir, "generation_config.json", err);
  if (rc) return rc;
  if (chi_file_exists(path) && (rc = chi_json_load(&gen, path, 1 << 20, err)) != 0) return rc;
  const json_t *e = json_object_get(gen, "eos_token_id");
  if (!e) e = json_object_get(config, "eos_token_id");
  if (!e) e = json_object_get(json_object_get(config, "text_config"), "eos_token_id");
  size_t n = json_is_array(e) ? json_array_size(e) : json_is_integer(e) ? 1 : 0;
  for (size_t i = 0; i < n && m->n_eos < (int32_t)(sizeof m->eos / sizeof *m->eos); i++) {
    const json_t *k = json_is_array(e) ? json_array_get(e, i) : e;
    if (json_is_integer(k)) m->eos[m->n_eos++] = (int32_t)json_integer_value(k);
  }
  if (m->n_eos == 0 && chi_token_eos(m->tok) >= 0) m->eos[m->n_eos++] = chi_token_eos(m->tok);
  json_decref(gen);
  return 0;
}

static int open_text_and_image(chi_model *m, const char *dir, const json_t *config, chi_err *err) {
  int rc = 0;
  char path[4096];
  if (!m->tok) CHI_TRY(chi_tokenizer_load(&m->tok, dir, err));
  CHI_TRY(read_eos(m, dir, config, err));
  if (!m->net.has_vision) return 0;
  if (!m->pre_set) {
    CHI_TRY(chi_path_join(path, sizeof path, dir, "preprocessor_config.json", err));
    if (!chi_file_exists(path)) CHI_TRY(chi_path_join(path, sizeof path, dir, "processor_config.json", err));
    CHI_TRY(chi_preproc_load(&m->pre, path, err));
  }
  int w = m->pre.do_center_crop ? m->pre.crop_w : m->pre.resize_w,
      h = m->pre.do_center_crop ? m->pre.crop_h : m->pre.resize_h;
  if (w == m->net.vision.image_w && h == m->net.vision.image_h) return 0;
  if (!m->any_size)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: preprocessing gives %dx%d pictures; the vision tower reads %dx%d",
                    dir, w, h, m->net.vision.image_w, m->net.vision.image_h);
  chi_log(CHI_LOG_INFO, "pictures of %dx%d: position embeddings are interpolated from %dx%d", w, h,
          m->net.vision.image_w, m->net.vision.image_h);
  CHI_TRY(chi_net_vision_resize(&m->net, h, w, err));
  chi_net_shape(&m->net);
out:
  return rc;
}

/* Pickles run code when they are read; they are converted once, by their owner. */
int chi_check_pickle(const char *dir, chi_err *err) {
  static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                      "pytorch_model.bin.index.json"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[4096];
    int rc = chi_path_join(path, sizeof path, dir, names[i], err);
    if (rc) return rc;
    if (!chi_file_exists(path)) continue;
    if (i < 2) return 0;
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s holds %s, a pickle, and no safetensors; convert it once with: python "
                    "tools/convert/bin_to_safetensors.py %s",
                    dir, names[i], dir);
  }
  return 0;
}

static chi_model *new_model(const char *path, chi_err *err) {
  chi_model *m = chi_calloc(1, sizeof *m, err);
  if (!m) return NULL;
  m->image_token = -1;
  m->image_text = "<image>";
  m->path = chi_arena_strdup(&m->arena, path, err);
  if (m->path) return m;
  chi_model_free(m);
  return NULL;
}

int chi_model_dry(chi_model **out, const json_t *config, const chi_st *header, chi_str *left, chi_err *err) {
  int rc = 0;
  family_fn open = NULL;
  chi_binder b = {0};
  chi_model *m = new_model("(header)", err);
  if (!m) return CHI_ERR_MEMORY;
  CHI_TRY(find_family(m, config, &open, err));
  b = (chi_binder){.m = m, .st = header, .dry = true, .used = chi_calloc(chi_st_count(header) + 1, 1, err)};
  CHI_TRY(b.used ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(open(m, config, &b, err));
  chi_net_shape(&m->net);
  for (size_t i = 0; left && i < chi_st_count(header); i++)
    if (!b.used[i]) chi_str_addf(left, "%s\n", chi_st_at(header, i)->name);
out:
  chi_free(b.used);
  if (rc)
    chi_model_free(m);
  else
    *out = m;
  return rc;
}

int chi_model_record(chi_model **out, const json_t *config, chi_record_fn fn, void *ud, chi_err *err) {
  int rc = 0;
  family_fn open = NULL;
  chi_model *m = new_model("(config)", err);
  if (!m) return CHI_ERR_MEMORY;
  chi_binder b = {.m = m, .dry = true, .record = fn, .record_ud = ud};
  CHI_TRY(find_family(m, config, &open, err));
  CHI_TRY(open(m, config, &b, err));
  chi_net_shape(&m->net);
out:
  if (rc)
    chi_model_free(m);
  else
    *out = m;
  return rc;
}

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), k = strlen(end);
  return n >= k && strcmp(s + n - k, end) == 0;
}

int chi_model_open(chi_model **out, const char *path, chi_dtype_choice dtype, chi_err *err) {
  return chi_model_open_with(out, path, NULL, dtype, err);
}

int chi_model_open_with(chi_model **out, const char *path, const char *mmproj, chi_dtype_choice dtype, chi_err *err) {
  return chi_model_open_opts(out, path, &(chi_model_opts){.dtype = dtype, .mmproj = mmproj}, err);
}

int chi_model_open_opts(chi_model **out, const char *path, const chi_model_opts *o, chi_err *err) {
  int rc = 0;
  const char *mmproj = o->mmproj;
  const chi_dtype_choice dtype = o->dtype;
  char file[4096];
  bool gguf = ends_with(path, ".gguf") || chi_gguf_is(path);
  chi_dtype stored = CHI_F32;
  json_t *config = NULL;
  family_fn open = NULL;
  chi_binder b = {0};
  chi_model *m = new_model(path, err);
  if (!m) return CHI_ERR_MEMORY;
  if (mmproj && !gguf) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is no GGUF file, which a vision file (%s) belongs to", path, mmproj);
    goto out;
  }
  if (gguf) {
    CHI_TRY(chi_gguf_read(m, path, mmproj, &config, &stored, err));
  } else {
    CHI_TRY(chi_path_join(file, sizeof file, path, "config.json", err));
    CHI_TRY(chi_json_load(&config, file, 16 << 20, err));
  }
  CHI_TRY(find_family(m, config, &open, err));
  int64_t params = decoder_params(config);
  bool big = params >= 1000000000;
  m->net.compute = dtype == CHI_DTYPE_BF16 || (dtype == CHI_DTYPE_AUTO && big) ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
  if (!gguf) CHI_TRY(chi_check_pickle(path, err));
  if (!gguf) CHI_TRY(chi_st_open(&m->st, path, err));
  b = (chi_binder){.m = m, .st = m->st, .rows_first = gguf, .used = chi_calloc(chi_st_count(m->st) + 1, 1, err)};
  CHI_TRY(b.used ? 0 : CHI_ERR_MEMORY);
  if (o->stream && !o->cache) {
    rc = chi_fail(err, CHI_ERR_ARG, "weights are streamed from a cache of packed weights; name a folder for it");
    goto out;
  }
  if (o->cache) CHI_TRY(chi_packed_open(&m->packed, m, mmproj, o->cache, err));
  b.packed = m->packed;
  rc = open(m, config, &b, err);
  if (rc && gguf && err && strncmp(err->text, "config.json", 11) == 0) chi_err_prefix(err, path);
  if (rc) goto out;
  if (gguf) {
    m->stored = stored;
    if (m->net.has_vision && chi_token_id(m->tok, m->image_text) < 0) m->image_token = CHI_PICTURE_ID;
  }
  if (m->packed) CHI_TRY(chi_packed_finish(m->packed, m, err));
  if (o->stream) CHI_TRY(chi_packed_stream(m->packed, m, err));
  chi_net_shape(&m->net);
  CHI_TRY(open_text_and_image(m, path, config, err));
  if (dtype == CHI_DTYPE_AUTO && big)
    chi_log(CHI_LOG_INFO, "computing in bf16 (%.1f billion parameters); --dtype f32 is exact and slower%s",
            (double)params / 1e9,
            m->stored == CHI_F16
                ? "; the checkpoint is f16, so compare p with --dtype f32 before small differences are read"
                : "");
out:
  chi_free(b.used);
  json_decref(config);
  if (rc)
    chi_model_free(m);
  else
    *out = m;
  return rc;
}

void chi_model_free(chi_model *m) {
  if (!m) return;
  chi_net_free(&m->net);
  chi_free(m->prompt_prefix);
  chi_packed_free(m->packed);
  chi_tokenizer_free(m->tok);
  chi_st_close(m->st);
  chi_st_close(m->tower);
  chi_free(m->bound);
  chi_arena_free(&m->arena);
  chi_free(m);
}

int chi_model_hash(chi_model *m, chi_err *err) {
  int rc = 0;
  if (m->hash[0]) return 0;
  CHI_TRY(chi_st_hash(m->hash, m->st, err));
  if (m->tower) { /* the hash of both hashes, as text */
    char both[130];
    chi_sha256 h;
    memcpy(both, m->hash, 64);
    CHI_TRY(chi_st_hash(both + 64, m->tower, err));
    chi_sha256_init(&h);
    chi_sha256_add(&h, both, 128);
    chi_sha256_hex(&h, m->hash);
  }
out:
  return rc;
}

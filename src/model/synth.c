/* Random checkpoints of named shapes; see synth.h. */
#include "model/synth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/dtype.h"

static const chi_synth_spec kSpecs[] = {
    {"llava-1.5-7b", "LLaVA-1.5-7B", 4096, 32, 32, 32, 11008, 32064, 4096, 1024, 24, 16, 4096, 336, 14, false},
    {"llava-1.5-13b", "LLaVA-1.5-13B", 5120, 40, 40, 40, 13824, 32064, 4096, 1024, 24, 16, 4096, 336, 14, false},
    {"llama-7b", "Llama 7B, text only", 4096, 32, 32, 32, 11008, 32000, 4096, 0, 0, 0, 0, 0, 0, false},
    {"smollm2-135m", "SmolLM2-135M, text only", 576, 30, 9, 3, 1536, 49152, 8192, 0, 0, 0, 0, 0, 0, true},
    {"tiny-llava", "a LLaVA of a few megabytes", 256, 6, 8, 4, 704, 1024, 1024, 128, 4, 4, 256, 112, 14, false},
    {"tiny-llama", "a Llama of a few megabytes", 256, 6, 8, 4, 704, 1024, 1024, 0, 0, 0, 0, 0, 0, true},
};

const chi_synth_spec *chi_synth_specs(size_t *n) {
  *n = sizeof kSpecs / sizeof *kSpecs;
  return kSpecs;
}

/* ---- the list of tensors --------------------------------------------------------------------------------- */
typedef struct entry {
  char name[112];
  int ndim;
  int64_t dim[4];
  float scale; /* 0 = ones */
} entry;
typedef struct list {
  entry *e;
  size_t n, cap;
  chi_err *err;
  bool failed;
} list;

static void add(list *l, float scale, int ndim, const int64_t *dim, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
static void add(list *l, float scale, int ndim, const int64_t *dim, const char *fmt, ...) {
  if (l->failed || chi_grow((void **)&l->e, &l->cap, l->n + 1, sizeof *l->e, l->err)) {
    l->failed = true;
    return;
  }
  entry *e = &l->e[l->n++];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(e->name, sizeof e->name, fmt, ap);
  va_end(ap);
  e->ndim = ndim;
  e->scale = scale;
  for (int i = 0; i < ndim; i++) e->dim[i] = dim[i];
}
#define MAT(n, k, ...) add(l, 0.02f, 2, (int64_t[]){n, k}, __VA_ARGS__)
#define VEC(n, scale, ...) add(l, scale, 1, (int64_t[]){n}, __VA_ARGS__)

static void decoder(list *l, const chi_synth_spec *s, const char *base, const char *head) {
  int64_t hd = s->d / s->heads, kv = hd * s->kv_heads;
  MAT(s->vocab, s->d, "%sembed_tokens.weight", base);
  for (int i = 0; i < s->layers; i++) {
    VEC(s->d, 0, "%slayers.%d.input_layernorm.weight", base, i);
    VEC(s->d, 0, "%slayers.%d.post_attention_layernorm.weight", base, i);
    MAT(s->d, s->d, "%slayers.%d.self_attn.q_proj.weight", base, i);
    MAT(kv, s->d, "%slayers.%d.self_attn.k_proj.weight", base, i);
    MAT(kv, s->d, "%slayers.%d.self_attn.v_proj.weight", base, i);
    MAT(s->d, s->d, "%slayers.%d.self_attn.o_proj.weight", base, i);
    MAT(s->ffn, s->d, "%slayers.%d.mlp.gate_proj.weight", base, i);
    MAT(s->ffn, s->d, "%slayers.%d.mlp.up_proj.weight", base, i);
    MAT(s->d, s->ffn, "%slayers.%d.mlp.down_proj.weight", base, i);
  }
  VEC(s->d, 0, "%snorm.weight", base);
  if (!s->tied) MAT(s->vocab, s->d, "%s.weight", head);
}

static void vision(list *l, const chi_synth_spec *s) {
  const char *v = "vision_tower.vision_model.";
  int64_t d = s->vis_d, grid = s->image / s->patch;
  static const char *const kAttn[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
  VEC(d, 0.02f, "%sembeddings.class_embedding", v);
  add(l, 0.02f, 4, (int64_t[]){d, 3, s->patch, s->patch}, "%sembeddings.patch_embedding.weight", v);
  MAT(grid * grid + 1, d, "%sembeddings.position_embedding.weight", v);
  VEC(d, 0, "%spre_layrnorm.weight", v);
  VEC(d, 0.02f, "%spre_layrnorm.bias", v);
  for (int i = 0; i < s->vis_layers; i++) {
    for (int k = 1; k <= 2; k++) {
      VEC(d, 0, "%sencoder.layers.%d.layer_norm%d.weight", v, i, k);
      VEC(d, 0.02f, "%sencoder.layers.%d.layer_norm%d.bias", v, i, k);
    }
    for (int k = 0; k < 4; k++) {
      MAT(d, d, "%sencoder.layers.%d.self_attn.%s.weight", v, i, kAttn[k]);
      VEC(d, 0.02f, "%sencoder.layers.%d.self_attn.%s.bias", v, i, kAttn[k]);
    }
    MAT(s->vis_ffn, d, "%sencoder.layers.%d.mlp.fc1.weight", v, i);
    VEC(s->vis_ffn, 0.02f, "%sencoder.layers.%d.mlp.fc1.bias", v, i);
    MAT(d, s->vis_ffn, "%sencoder.layers.%d.mlp.fc2.weight", v, i);
    VEC(d, 0.02f, "%sencoder.layers.%d.mlp.fc2.bias", v, i);
  }
  MAT(s->d, d, "multi_modal_projector.linear_1.weight");
  VEC(s->d, 0.02f, "multi_modal_projector.linear_1.bias");
  MAT(s->d, s->d, "multi_modal_projector.linear_2.weight");
  VEC(s->d, 0.02f, "multi_modal_projector.linear_2.bias");
}

static int64_t elements(const entry *e) {
  int64_t n = 1;
  for (int i = 0; i < e->ndim; i++) n *= e->dim[i];
  return n;
}

/* ---- files ----------------------------------------------------------------------------------------------- */
enum { kPool = 1 << 20, kPiece = 1 << 16 };

/* The weights are written as they are made: a pool of random numbers, read from another place for every piece. */
static int write_weights(const list *l, const char *path, uint64_t seed, chi_err *err) {
  int rc = 0;
  chi_str head = {0};
  chi_out *o = NULL;
  int64_t total = 0, done = 0, at = 0;
  uint16_t *pool = chi_calloc(kPool, sizeof *pool, err), *piece = chi_calloc(kPiece, sizeof *piece, err);
  CHI_TRY(pool && piece ? 0 : CHI_ERR_MEMORY);
  for (uint32_t i = 0; i < kPool; i++) pool[i] = chi_bf16_from_f32(0.02f * chi_rng_normal(seed, 0, 0, i));
  for (size_t i = 0; i < l->n; i++) total += 2 * elements(&l->e[i]);
  chi_str_add(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
  for (size_t i = 0; i < l->n; i++) {
    const entry *e = &l->e[i];
    chi_str_addf(&head, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[", e->name);
    for (int k = 0; k < e->ndim; k++) chi_str_addf(&head, "%s%lld", k ? "," : "", (long long)e->dim[k]);
    chi_str_addf(&head, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + 2 * elements(e)));
    at += 2 * elements(e);
  }
  chi_str_add(&head, "}");
  while (head.len % 8) chi_str_add(&head, " ");
  CHI_TRY(head.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  uint64_t n = head.len;
  CHI_TRY(chi_out_open(&o, path, err));
  CHI_TRY(chi_out_write(o, &n, 8, err));
  CHI_TRY(chi_out_write(o, head.s, head.len, err));
  uint32_t count = 0;
  for (size_t i = 0; i < l->n; i++) {
    for (int64_t left = elements(&l->e[i]); left > 0; left -= kPiece, count++) {
      size_t m = left < kPiece ? (size_t)left : kPiece;
      size_t from = chi_rng_u32(seed, 1, count, 0) % (kPool - kPiece);
      for (size_t k = 0; l->e[i].scale == 0.0f && k < m; k++) piece[k] = 0x3f80; /* norm weights: 1 */
      CHI_TRY(chi_out_write(o, l->e[i].scale == 0.0f ? piece : pool + from, 2 * m, err));
      done += 2 * (int64_t)m;
      if (count % 256 == 0) CHI_TRY(chi_progress("writing", done, total, err));
    }
  }
  rc = chi_out_commit(o, err);
  o = NULL;
out:
  chi_out_abort(o);
  chi_str_free(&head);
  chi_free(pool);
  chi_free(piece);
  return rc;
}

static json_t *text_config(const chi_synth_spec *s) {
  return json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:b,s:i,s:i}", "model_type", "llama", "hidden_size", s->d,
                   "num_hidden_layers", s->layers, "num_attention_heads", s->heads, "num_key_value_heads", s->kv_heads,
                   "intermediate_size", s->ffn, "vocab_size", s->vocab, "max_position_embeddings", s->context,
                   "rms_norm_eps", 1e-5, "rope_theta", 10000.0, "tie_word_embeddings", s->tied, "bos_token_id", 1,
                   "eos_token_id", 2);
}

static json_t *config(const chi_synth_spec *s) {
  json_t *t = text_config(s);
  if (!s->vis_d) return t;
  json_t *v = json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i}", "model_type", "clip_vision_model", "hidden_size", s->vis_d,
                        "num_hidden_layers", s->vis_layers, "num_attention_heads", s->vis_heads, "intermediate_size",
                        s->vis_ffn, "image_size", s->image, "patch_size", s->patch);
  return json_pack("{s:s,s:o,s:o,s:i,s:i,s:s}", "model_type", "llava", "text_config", t, "vision_config", v,
                   "image_token_index", s->vocab - 1, "vision_feature_layer", -2, "vision_feature_select_strategy",
                   "default");
}

/* A tokenizer of bytes: enough to ask questions of random weights. */
static json_t *tokenizer(const chi_synth_spec *s) {
  json_t *vocab = json_object(), *added = json_array();
  static const char *const kSpecial[] = {"<unk>", "<s>", "</s>", "<pad>"};
  char utf8[8];
  for (int i = 0; i < 4; i++)
    json_array_append_new(added, json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", i, "content", kSpecial[i],
                                           "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
  json_array_append_new(added, json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", s->vocab - 1, "content", "<image>",
                                         "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
  for (int i = 0; i < 4; i++) json_object_set_new(vocab, kSpecial[i], json_integer(i));
  for (int b = 0, extra = 0; b < 256; b++) { /* GPT-2's printable stand-ins for bytes */
    bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    int cp = plain ? b : 256 + extra++;
    if (cp < 128)
      snprintf(utf8, sizeof utf8, "%c", cp);
    else
      snprintf(utf8, sizeof utf8, "%c%c", 0xc0 | (cp >> 6), 0x80 | (cp & 63));
    json_object_set_new(vocab, utf8, json_integer(4 + b));
  }
  json_t *post = json_pack("{s:s,s:[{s:{s:s,s:i}},{s:{s:s,s:i}}],s:[],s:{s:{s:s,s:[i],s:[s]}}}", "type",
                           "TemplateProcessing", "single", "SpecialToken", "id", "<s>", "type_id", 0, "Sequence", "id",
                           "A", "type_id", 0, "pair", "special_tokens", "<s>", "id", "<s>", "ids", 1, "tokens", "<s>");
  return json_pack("{s:s,s:o,s:n,s:{s:s,s:b,s:b,s:b},s:o,s:{s:s,s:b,s:b,s:b},s:{s:s,s:n,s:s,s:o,s:[]}}", "version",
                   "1.0", "added_tokens", added, "normalizer", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space",
                   0, "trim_offsets", 1, "use_regex", 1, "post_processor", post, "decoder", "type", "ByteLevel",
                   "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout",
                   "unk_token", "<unk>", "vocab", vocab, "merges");
}

static int save(const char *dir, const char *name, json_t *j, chi_err *err) {
  char path[4096];
  int rc = j ? chi_path_join(path, sizeof path, dir, name, err) : chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  if (rc == 0) rc = chi_json_save(j, path, err);
  json_decref(j);
  return rc;
}

int chi_synth_write(const char *spec, const char *dir, uint64_t seed, chi_err *err) {
  int rc = 0;
  char path[4096];
  const chi_synth_spec *s = NULL;
  list all = {.err = err}, *l = &all;
  for (size_t i = 0; i < sizeof kSpecs / sizeof *kSpecs; i++)
    if (chi_streq(kSpecs[i].name, spec)) s = &kSpecs[i];
  if (!s) return chi_fail(err, CHI_ERR_ARG, "no shape '%s'; 'chiasm synth --help' lists them", spec);
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "model.safetensors", err));
  if (chi_file_exists(path)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is there already; choose another folder or remove it", path);
    goto out;
  }
  decoder(l, s, s->vis_d ? "language_model.model." : "model.", s->vis_d ? "language_model.lm_head" : "lm_head");
  if (s->vis_d) vision(l, s);
  CHI_TRY(l->failed ? CHI_ERR_MEMORY : 0);
  CHI_TRY(save(dir, "config.json", config(s), err));
  CHI_TRY(save(dir, "tokenizer.json", tokenizer(s), err));
  CHI_TRY(save(dir, "tokenizer_config.json",
               json_pack("{s:s,s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>", "unk_token", "<unk>"), err));
  if (s->vis_d)
    CHI_TRY(save(dir, "preprocessor_config.json",
                 json_pack("{s:s,s:b,s:{s:i},s:i,s:b,s:{s:i,s:i},s:b,s:f,s:b,s:[f,f,f],s:[f,f,f]}",
                           "image_processor_type", "CLIPImageProcessor", "do_resize", 1, "size", "shortest_edge",
                           s->image, "resample", 3, "do_center_crop", 1, "crop_size", "height", s->image, "width",
                           s->image, "do_rescale", 1, "rescale_factor", 1.0 / 255.0, "do_normalize", 1, "image_mean",
                           0.48145466, 0.4578275, 0.40821073, "image_std", 0.26862954, 0.26130258, 0.27577711),
                 err));
  CHI_TRY(write_weights(l, path, seed, err));
out:
  chi_free(all.e);
  return rc;
}

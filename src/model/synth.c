/* Random checkpoints of named shapes; see synth.h. */
#include "model/synth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

/* Every shape is its config; the tensors are those that its family asks for. Single quotes are double ones. */
#define LLAMA(d, layers, heads, kv, ffn, vocab, context, tied)                                                    \
  "{'model_type':'llama','hidden_size':" #d ",'num_hidden_layers':" #layers ",'num_attention_heads':" #heads      \
  ",'num_key_value_heads':" #kv ",'intermediate_size':" #ffn ",'vocab_size':" #vocab                              \
  ",'max_position_embeddings':" #context ",'rms_norm_eps':1e-5,'rope_theta':10000.0,'tie_word_embeddings':" #tied \
  ",'bos_token_id':1,'eos_token_id':2}"
#define LLAVA(text, image_token, d, layers, heads, ffn, image)                                           \
  "{'model_type':'llava','image_token_index':" #image_token                                              \
  ",'vision_feature_layer':-2,'vision_feature_select_strategy':'default','text_config':" text            \
  ",'vision_config':{'model_type':'clip_vision_model','hidden_size':" #d ",'num_hidden_layers':" #layers \
  ",'num_attention_heads':" #heads ",'intermediate_size':" #ffn ",'image_size':" #image ",'patch_size':14}}"

static const chi_synth_spec kSpecs[] = {
    {"llava-1.5-7b", "LLaVA-1.5-7B",
     LLAVA(LLAMA(4096, 32, 32, 32, 11008, 32064, 4096, false), 32063, 1024, 24, 16, 4096, 336)},
    {"llava-1.5-13b", "LLaVA-1.5-13B",
     LLAVA(LLAMA(5120, 40, 40, 40, 13824, 32064, 4096, false), 32063, 1024, 24, 16, 4096, 336)},
    {"blip2-opt-2.7b", "BLIP-2 with OPT-2.7B",
     "{'model_type':'blip-2','num_query_tokens':32,'image_token_index':50265,"
     "'qformer_config':{'model_type':'blip_2_qformer'},"
     "'text_config':{'model_type':'opt','eos_token_id':2,'ffn_dim':10240,'hidden_size':2560,'num_attention_heads':32,"
     "'num_hidden_layers':32,'vocab_size':50304,'word_embed_proj_dim':2560},"
     "'vision_config':{'model_type':'blip_2_vision_model'}}"},
    {"bunny-phi-3b", "Bunny-v1.0-3B: Phi-2 and SigLIP",
     "{'model_type':'bunny-phi','hidden_act':'gelu_new','hidden_size':2560,'image_aspect_ratio':'pad',"
     "'intermediate_size':10240,'layer_norm_eps':1e-5,'max_position_embeddings':2048,'mm_hidden_size':1152,"
     "'mm_projector_type':'mlp2x_gelu','num_attention_heads':32,'num_hidden_layers':32,'num_key_value_heads':32,"
     "'partial_rotary_factor':0.4,'qk_layernorm':false,'rope_theta':10000.0,'tie_word_embeddings':false,"
     "'vocab_size':50295}"},
    {"llama-7b", "Llama 7B, text only", LLAMA(4096, 32, 32, 32, 11008, 32000, 4096, false)},
    {"smollm2-135m", "SmolLM2-135M, text only", LLAMA(576, 30, 9, 3, 1536, 49152, 8192, true)},
    {"tiny-llava", "a LLaVA of a few megabytes",
     LLAVA(LLAMA(256, 6, 8, 4, 704, 1024, 1024, false), 1023, 128, 4, 4, 256, 112)},
    {"tiny-llama", "a Llama of a few megabytes", LLAMA(256, 6, 8, 4, 704, 1024, 1024, true)},
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
  bool ones; /* weights of norms */
} entry;
typedef struct list {
  entry *e;
  size_t n, cap;
} list;

static int tell(void *ud, const char *name, int ndim, const int64_t *dim, chi_err *err) {
  list *l = ud;
  size_t n = strlen(name);
  for (size_t i = 0; i < l->n; i++)
    if (chi_streq(l->e[i].name, name)) return 0; /* parts of one tensor */
  if (ndim > 4 || n >= sizeof l->e->name)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "tensor '%s': too long a name or too many dimensions", name);
  int rc = chi_grow((void **)&l->e, &l->cap, l->n + 1, sizeof *l->e, err);
  if (rc) return rc;
  entry *e = &l->e[l->n++];
  *e = (entry){.ndim = ndim, .ones = ndim == 1 && n > 7 && chi_streq(name + n - 7, ".weight")};
  memcpy(e->name, name, n + 1);
  for (int i = 0; i < ndim; i++) e->dim[i] = dim[i];
  return 0;
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
      for (size_t k = 0; l->e[i].ones && k < m; k++) piece[k] = 0x3f80; /* norm weights: 1 */
      CHI_TRY(chi_out_write(o, l->e[i].ones ? piece : pool + from, 2 * m, err));
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

json_t *chi_synth_config(const chi_synth_spec *s, chi_err *err) {
  json_t *j = NULL;
  chi_str text = {0};
  for (const char *p = s->config; *p; p++) chi_str_addn(&text, *p == '\'' ? "\"" : p, 1);
  if (text.failed || chi_json_parse(&j, text.s, text.len, s->name, err)) j = NULL;
  chi_str_free(&text);
  return j;
}

static json_t *special_token(int id, const char *text) {
  return json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", id, "content", text, "single_word", 0, "lstrip", 0, "rstrip",
                   0, "normalized", 0, "special", 1);
}

/* Somebody's tokenizer, with the picture's token. */
static int borrow_tokenizer(json_t **out, const char *path, int vocab_size, int image_token, chi_err *err) {
  int rc = chi_json_load(out, path, 256 << 20, err);
  if (rc) return rc;
  json_t *added = json_object_get(*out, "added_tokens"), *t;
  size_t n = json_object_size(json_object_get(json_object_get(*out, "model"), "vocab")), i;
  if (n == 0 || !json_is_array(added))
    return chi_fail(err, CHI_ERR_FORMAT, "%s is no tokenizer.json with a vocabulary", path);
  if (n > (size_t)vocab_size) return chi_fail(err, CHI_ERR_ARG, "%s has %zu tokens, the shape %d", path, n, vocab_size);
  json_array_foreach(added, i, t) if (chi_streq(json_string_value(json_object_get(t, "content")), "<image>")) return 0;
  if (image_token >= 0) json_array_append_new(added, special_token(image_token, "<image>"));
  return 0;
}

/* A tokenizer of bytes: enough to ask questions of random weights. */
static json_t *tokenizer(int vocab_size, int image_token) {
  json_t *vocab = json_object(), *added = json_array();
  static const char *const kSpecial[] = {"<unk>", "<s>", "</s>", "<pad>"};
  char utf8[8];
  for (int i = 0; i < 4; i++) json_array_append_new(added, special_token(i, kSpecial[i]));
  json_array_append_new(added, special_token(image_token >= 0 ? image_token : vocab_size - 1, "<image>"));
  for (int i = 0; i < 4; i++) json_object_set_new(vocab, kSpecial[i], json_integer(i));
  /* in the vocabulary too: Hugging Face numbers added tokens that are not in it anew */
  if (image_token >= 0) json_object_set_new(vocab, "<image>", json_integer(image_token));
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

static json_t *preprocessor(int image) {
  return json_pack("{s:s,s:b,s:{s:i},s:i,s:b,s:{s:i,s:i},s:b,s:f,s:b,s:[f,f,f],s:[f,f,f]}", "image_processor_type",
                   "CLIPImageProcessor", "do_resize", 1, "size", "shortest_edge", image, "resample", 3,
                   "do_center_crop", 1, "crop_size", "height", image, "width", image, "do_rescale", 1, "rescale_factor",
                   1.0 / 255.0, "do_normalize", 1, "image_mean", 0.48145466, 0.4578275, 0.40821073, "image_std",
                   0.26862954, 0.26130258, 0.27577711);
}

static int resize(json_t *c, const chi_synth_opts *z, const char *spec, chi_err *err) {
  json_t *text = json_object_get(c, "text_config"), *seen = json_object_get(c, "vision_config");
  if (!z) return 0;
  if (z->layers) json_object_set_new(text ? text : c, "num_hidden_layers", json_integer(z->layers));
  if (z->image && !json_object_get(seen, "image_size"))
    return chi_fail(err, CHI_ERR_ARG, "the picture of '%s' cannot have another size", spec);
  if (z->image) json_object_set_new(seen, "image_size", json_integer(z->image));
  return 0;
}

int chi_synth_write(const char *spec, const chi_synth_opts *o, const char *dir, uint64_t seed, chi_err *err) {
  int rc = 0;
  char path[4096];
  const chi_synth_spec *s = NULL;
  chi_model *m = NULL;
  json_t *c = NULL, *tok = NULL;
  list all = {0};
  for (size_t i = 0; i < sizeof kSpecs / sizeof *kSpecs; i++)
    if (chi_streq(kSpecs[i].name, spec)) s = &kSpecs[i];
  if (!s) return chi_fail(err, CHI_ERR_ARG, "no shape '%s'; 'chiasm synth --help' lists them", spec);
  CHI_TRY(chi_mkdirs(dir, err));
  CHI_TRY(chi_path_join(path, sizeof path, dir, "model.safetensors", err));
  if (chi_file_exists(path)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is there already; choose another folder or remove it", path);
    goto out;
  }
  c = chi_synth_config(s, err);
  CHI_TRY(c ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(resize(c, o, spec, err));
  const bool layers_from_end = json_object_get(c, "vision_feature_layer") != NULL;
  if (layers_from_end) json_object_set_new(c, "vision_feature_layer", json_integer(-1)); /* all that a checkpoint has */
  CHI_TRY(chi_model_record(&m, c, tell, &all, err));
  if (layers_from_end) json_object_set_new(c, "vision_feature_layer", json_integer(-2));
  rc = save(dir, "config.json", c, err);
  c = NULL;
  if (rc) goto out;
  if (o && o->tokenizer)
    CHI_TRY(borrow_tokenizer(&tok, o->tokenizer, m->net.decoder.vocab, m->image_token, err));
  else
    tok = tokenizer(m->net.decoder.vocab, m->image_token);
  rc = save(dir, "tokenizer.json", tok, err);
  tok = NULL;
  if (rc) goto out;
  CHI_TRY(save(dir, "tokenizer_config.json",
               json_pack("{s:s,s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>", "unk_token", "<unk>"), err));
  if (m->net.has_vision) CHI_TRY(save(dir, "preprocessor_config.json", preprocessor(m->net.vision.image_w), err));
  CHI_TRY(write_weights(&all, path, seed, err));
out:
  json_decref(c);
  json_decref(tok);
  chi_model_free(m);
  chi_free(all.e);
  return rc;
}

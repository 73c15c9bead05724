/* Keys of GGUF files -> config objects as Hugging Face writes them. What changes the result is carried over or refused;
 * the families check the values. */
#include <stdio.h>
#include <string.h>

#include "model/gguf.h"

typedef struct reader {
  const chi_gguf *g;
  const char *arch;
  json_t *c;
  chi_err *err;
  char key[128];
} reader;

static const char *key_of(reader *r, const char *name) {
  snprintf(r->key, sizeof r->key, "%.40s.%.80s", r->arch, name);
  return r->key;
}

static int put(reader *r, const char *to, json_t *v) {
  if (json_object_set_new(r->c, to, v)) return chi_fail(r->err, CHI_ERR_MEMORY, "no memory for the config");
  return 0;
}

/* An integer of at least 1, as the HF key `to`. Arrays of one value for each layer are read where all are alike. */
static int put_int(reader *r, const char *to, const char *name, bool required) {
  int64_t v = 0;
  const char *key = key_of(r, name);
  const chi_gguf_value *x = chi_gguf_find(r->g, key);
  if (!x && !required) return 0;
  if (x && x->type == CHI_GGUF_ARRAY && x->n > 0) {
    int rc = chi_gguf_numbers_opt(&x, r->g, key, r->err);
    if (rc) return rc;
    double first = chi_gguf_number(x, 0);
    for (uint64_t i = 1; i < x->n; i++)
      if (chi_gguf_number(x, i) != first)
        return chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: key '%s' differs between layers", chi_gguf_path(r->g), key);
    if (!(first >= 1 && first < (1 << 30)))
      return chi_fail(r->err, CHI_ERR_FORMAT, "%s: key '%s' is %g, but must be at least 1", chi_gguf_path(r->g), key,
                      first);
    return put(r, to, json_integer((json_int_t)first));
  }
  int rc = chi_gguf_i64(&v, r->g, key, 1, 1 << 30, r->err);
  return rc ? rc : put(r, to, json_integer(v));
}

static int put_real(reader *r, const char *to, const char *name) {
  double v = 0;
  const char *key = key_of(r, name);
  if (!chi_gguf_find(r->g, key)) return 0;
  int rc = chi_gguf_f64_opt(&v, r->g, key, r->err);
  if (rc) return rc;
  if (!(v > -1e30 && v < 1e30))
    return chi_fail(r->err, CHI_ERR_FORMAT, "%s: key '%s' is not a finite number", chi_gguf_path(r->g), key);
  return put(r, to, json_real(v));
}

/* A key that may only have its neutral value. */
static int only_zero(reader *r, const char *name) {
  double v = 0;
  const char *key = key_of(r, name);
  int rc = chi_gguf_f64_opt(&v, r->g, key, r->err);
  if (rc || v == 0) return rc;
  return chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: key '%s' is %g; only 0 is implemented", chi_gguf_path(r->g), key,
                  v);
}

static bool has_tensor(const reader *r, const char *name) { return chi_gguf_tensor(r->g, name) != NULL; }

/* ---- rotary embedding ------------------------------------------------------------------------------------------- */
/* rope_freqs.weight divides each frequency: longrope's short list says the same. */
static int put_factors(reader *r, json_t *rope, int64_t context) {
  const chi_tensor *t = chi_gguf_tensor(r->g, "rope_freqs.weight");
  json_t *list = json_array();
  int bad = t->ndim != 1 || t->dtype != CHI_F32 || t->dim[0] > 65536;
  for (int64_t i = 0; !bad && i < t->dim[0]; i++) {
    float f;
    memcpy(&f, (const uint8_t *)t->data + 4 * i, sizeof f);
    bad = json_array_append_new(list, json_real((double)f)); /* not for what is not finite */
  }
  if (bad) {
    json_decref(list);
    return chi_fail(r->err, CHI_ERR_FORMAT, "%s: tensor 'rope_freqs.weight' must be a row of finite f32 numbers",
                    chi_gguf_path(r->g));
  }
  bad = json_object_set_new(rope, "rope_type", json_string("longrope")) | json_object_set(rope, "short_factor", list) |
        json_object_set(rope, "long_factor", list) | json_object_set_new(rope, "attention_factor", json_real(1.0)) |
        json_object_set_new(rope, "original_max_position_embeddings", json_integer(context));
  json_decref(list);
  return bad ? chi_fail(r->err, CHI_ERR_MEMORY, "no memory for the config") : 0;
}

static int put_scaling(reader *r, json_t *rope, const char *type, double factor) {
  int64_t original = 0;
  int rc = chi_gguf_i64_opt(&original, r->g, key_of(r, "rope.scaling.original_context_length"), 1, 1 << 30, r->err);
  if (rc == 0) rc = only_zero(r, "rope.scaling.attn_factor");
  if (rc == 0) rc = only_zero(r, "rope.scaling.yarn_log_multiplier");
  if (rc) return rc;
  int bad = json_object_set_new(rope, "rope_type", json_string(type)) |
            json_object_set_new(rope, "factor", json_real(factor));
  if (original) bad |= json_object_set_new(rope, "original_max_position_embeddings", json_integer(original));
  return bad ? chi_fail(r->err, CHI_ERR_MEMORY, "no memory for the config") : 0;
}

static int put_rope(reader *r) {
  int rc = 0;
  const char *type = "none", *path = chi_gguf_path(r->g);
  double theta = 10000, factor = 1;
  json_t *rope = json_object();
  CHI_TRY(chi_gguf_f64_opt(&theta, r->g, key_of(r, "rope.freq_base"), r->err));
  CHI_TRY(chi_gguf_str_opt(&type, r->g, key_of(r, "rope.scaling.type"), r->err));
  CHI_TRY(chi_gguf_f64_opt(&factor, r->g, key_of(r, "rope.scaling.factor"), r->err));
  if (factor == 1 || !(factor == factor)) { /* files of 2023 */
    CHI_TRY(chi_gguf_f64_opt(&factor, r->g, key_of(r, "rope.scale_linear"), r->err));
    if (factor != 1 && chi_streq(type, "none")) type = "linear";
  }
  if (json_object_set_new(rope, "rope_theta", json_real(theta))) {
    rc = chi_fail(r->err, CHI_ERR_FORMAT, "%s: key '%s' is not a finite number", path, key_of(r, "rope.freq_base"));
    goto out;
  }
  bool factors = has_tensor(r, "rope_freqs.weight");
  if (!chi_streq(type, "none") && !chi_streq(type, "linear") && !chi_streq(type, "yarn")) {
    rc = chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: key '%s' is '%.40s'; known are none, linear and yarn", path,
                  key_of(r, "rope.scaling.type"), type);
    goto out;
  }
  if (factors && !chi_streq(type, "none")) {
    rc = chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: both rope_freqs.weight and %s '%s' are given", path,
                  key_of(r, "rope.scaling.type"), type);
    goto out;
  }
  if (factors)
    CHI_TRY(put_factors(r, rope, json_integer_value(json_object_get(r->c, "max_position_embeddings"))));
  else if (!chi_streq(type, "none"))
    CHI_TRY(put_scaling(r, rope, type, factor));
  CHI_TRY(put(r, "rope_parameters", json_incref(rope)));
out:
  json_decref(rope);
  return rc;
}

/* ---- architectures ---------------------------------------------------------------------------------------------- */
static int64_t int_of(const reader *r, const char *key) { return json_integer_value(json_object_get(r->c, key)); }

/* Llama, Mistral, Qwen2, Phi */
static int usual_sizes(reader *r) {
  int rc = 0;
  int64_t value_length = 0;
  CHI_TRY(put_int(r, "hidden_size", "embedding_length", true));
  CHI_TRY(put_int(r, "num_hidden_layers", "block_count", true));
  CHI_TRY(put_int(r, "num_attention_heads", "attention.head_count", true));
  CHI_TRY(put_int(r, "num_key_value_heads", "attention.head_count_kv", false));
  CHI_TRY(put_int(r, "head_dim", "attention.key_length", false));
  CHI_TRY(put_int(r, "intermediate_size", "feed_forward_length", true));
  CHI_TRY(put_int(r, "max_position_embeddings", "context_length", true));
  CHI_TRY(chi_gguf_i64_opt(&value_length, r->g, key_of(r, "attention.value_length"), 1, 1 << 30, r->err));
  if (value_length && int_of(r, "head_dim") && value_length != int_of(r, "head_dim"))
    return chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: key '%s' is %lld, other than attention.key_length",
                    chi_gguf_path(r->g), key_of(r, "attention.value_length"), (long long)value_length);
  CHI_TRY(only_zero(r, "expert_count"));
  CHI_TRY(put_rope(r));
  if (!json_object_get(r->c, "num_key_value_heads"))
    CHI_TRY(put(r, "num_key_value_heads", json_integer(int_of(r, "num_attention_heads"))));
out:
  return rc;
}

/* Dimensions of a head that are rotated. */
static int rotated(reader *r, int64_t *dims, int64_t *of) {
  *of = int_of(r, "head_dim");
  if (!*of) *of = int_of(r, "hidden_size") / int_of(r, "num_attention_heads");
  *dims = *of;
  return chi_gguf_i64_opt(dims, r->g, key_of(r, "rope.dimension_count"), 1, 1 << 20, r->err);
}

static int llama_like(reader *r) {
  int rc = 0;
  int64_t dims = 0, of = 0;
  CHI_TRY(usual_sizes(r));
  CHI_TRY(put_real(r, "rms_norm_eps", "attention.layer_norm_rms_epsilon"));
  CHI_TRY(rotated(r, &dims, &of));
  if (dims != of)
    return chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: key '%s' is %lld; heads of %lld are rotated whole",
                    chi_gguf_path(r->g), key_of(r, "rope.dimension_count"), (long long)dims, (long long)of);
  CHI_TRY(put(r, "attention_bias", json_boolean(has_tensor(r, "blk.0.attn_q.bias"))));
  CHI_TRY(put(r, "mlp_bias", json_boolean(has_tensor(r, "blk.0.ffn_up.bias"))));
out:
  return rc;
}

static int phi(reader *r) {
  int rc = 0;
  int64_t dims = 0, of = 0;
  CHI_TRY(usual_sizes(r));
  CHI_TRY(put_real(r, "layer_norm_eps", "attention.layer_norm_epsilon"));
  CHI_TRY(rotated(r, &dims, &of));
  /* The family cuts a fraction of the head down to a whole number: a little above hits it. */
  double part = dims < of ? ((double)dims + 0.25) / (double)of : 1.0;
  CHI_TRY(put(r, "partial_rotary_factor", json_real(part)));
out:
  return rc;
}

static int gpt2(reader *r) {
  int rc = 0;
  CHI_TRY(put_int(r, "n_embd", "embedding_length", true));
  CHI_TRY(put_int(r, "n_layer", "block_count", true));
  CHI_TRY(put_int(r, "n_head", "attention.head_count", true));
  CHI_TRY(put_int(r, "n_inner", "feed_forward_length", true));
  CHI_TRY(put_int(r, "n_positions", "context_length", true));
  CHI_TRY(put_real(r, "layer_norm_epsilon", "attention.layer_norm_epsilon"));
out:
  return rc;
}

static const struct {
  const char *arch, *model_type;
  int (*read)(reader *r);
} kArch[] = {{"llama", "llama", llama_like},
             {"mistral", "mistral", llama_like},
             {"qwen2", "qwen2", llama_like},
             {"phi2", "phi", phi},
             {"gpt2", "gpt2", gpt2}};

/* Rows of the embedding table are the vocabulary; a file without an output matrix uses the table for it. */
static int common(reader *r) {
  int rc = 0;
  const chi_tensor *e = chi_gguf_tensor(r->g, "token_embd.weight");
  static const char *const ends[] = {"eos_token_id", "eot_token_id", "eom_token_id"};
  json_t *eos = json_array();
  if (!e || e->ndim != 2) {
    rc = chi_fail(r->err, CHI_ERR_FORMAT, "%s: tensor 'token_embd.weight' is missing or not a matrix",
                  chi_gguf_path(r->g));
    goto out;
  }
  CHI_TRY(put(r, "vocab_size", json_integer(e->dim[0])));
  CHI_TRY(put(r, "tie_word_embeddings", json_boolean(!has_tensor(r, "output.weight"))));
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
    int64_t id = -1;
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s", ends[i]);
    CHI_TRY(chi_gguf_i64_opt(&id, r->g, key, 0, INT32_MAX, r->err));
    if (id >= 0 && json_array_append_new(eos, json_integer(id))) CHI_TRY(put(r, "", NULL));
  }
  if (json_array_size(eos)) CHI_TRY(put(r, "eos_token_id", json_incref(eos)));
out:
  json_decref(eos);
  return rc;
}

int chi_gguf_config(json_t **out, const chi_gguf *g, chi_err *err) {
  int rc = 0;
  const char *arch = NULL;
  chi_str known = {0};
  size_t k = 0, n = sizeof kArch / sizeof *kArch;
  reader r = {.g = g, .err = err};
  *out = NULL;
  CHI_TRY(chi_gguf_str_opt(&arch, g, "general.architecture", err));
  for (; k < n && !chi_streq(kArch[k].arch, arch); k++) chi_str_addf(&known, "%s%s", k ? ", " : "", kArch[k].arch);
  if (k == n) {
    rc = chi_fail(
        err, CHI_ERR_UNSUPPORTED, "%s: general.architecture is '%.40s'; known are %s%s", chi_gguf_path(g),
        arch ? arch : "(missing)", known.s ? known.s : "",
        chi_streq(arch, "clip") ? " (this is a vision file: give it with --mmproj beside its language model)" : "");
    goto out;
  }
  r.arch = arch;
  r.c = json_object();
  CHI_TRY(put(&r, "model_type", json_string(kArch[k].model_type)));
  CHI_TRY(kArch[k].read(&r));
  CHI_TRY(common(&r));
  *out = json_incref(r.c);
out:
  json_decref(r.c);
  chi_str_free(&known);
  return rc;
}

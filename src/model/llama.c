/* Llama: RMSNorm, rotary embedding, grouped-query attention, gated SiLU. Also the decoder of LLaVA. */
#include <stdio.h>
#include <string.h>

#include "model/model.h"

static int act_of(chi_act *out, const char *name, const char *where, const char *key, chi_err *err) {
  static const struct {
    const char *name;
    chi_act act;
  } kActs[] = {{"silu", CHI_ACT_SILU},
               {"gelu", CHI_ACT_GELU_ERF},
               {"gelu_new", CHI_ACT_GELU_TANH},
               {"gelu_pytorch_tanh", CHI_ACT_GELU_TANH},
               {"quick_gelu", CHI_ACT_QUICK_GELU},
               {"relu", CHI_ACT_RELU}};
  for (size_t i = 0; i < sizeof kActs / sizeof *kActs; i++)
    if (chi_streq(kActs[i].name, name)) {
      *out = kActs[i].act;
      return 0;
    }
  return chi_fail(err, CHI_ERR_UNSUPPORTED,
                  "%s: %s is '%s'; known are silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu", where, key,
                  name);
}
int chi_config_act(chi_act *out, const json_t *obj, const char *key, const char *fallback, const char *where,
                   chi_err *err) {
  const char *name = fallback;
  int rc = chi_json_str_opt(&name, obj, key, where, err);
  return rc ? rc : act_of(out, name, where, key, err);
}

/* Rotary settings, in the current place (rope_parameters) or the older one (rope_theta + rope_scaling). */
static int rope_config(chi_block_spec *s, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  const char *type = "default";
  double partial = 1.0;
  s->rope_theta = 10000.0;
  s->rope_linear = 1.0;
  CHI_TRY(chi_json_f64_opt(&s->rope_theta, text, "rope_theta", where, err));
  const json_t *r = json_object_get(text, "rope_parameters");
  if (!json_is_object(r)) r = json_object_get(text, "rope_scaling");
  if (json_is_object(r)) {
    CHI_TRY(chi_json_f64_opt(&s->rope_theta, r, "rope_theta", where, err));
    CHI_TRY(chi_json_str_opt(&type, r, "type", where, err));
    CHI_TRY(chi_json_str_opt(&type, r, "rope_type", where, err));
    CHI_TRY(chi_json_f64_opt(&partial, r, "partial_rotary_factor", where, err));
    if (chi_streq(type, "linear"))
      CHI_TRY(chi_json_f64_opt(&s->rope_linear, r, "factor", where, err));
    else if (!chi_streq(type, "default"))
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: rope type '%s'; known are default and linear", where, type);
  }
  CHI_TRY(chi_json_f64_opt(&partial, text, "partial_rotary_factor", where, err));
  if (!(s->rope_theta > 0.0) || !(s->rope_linear > 0.0) || !(partial > 0.0) || partial > 1.0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: rope theta, factor and partial_rotary_factor must be positive", where);
  s->rope_half = (int32_t)((double)s->head_dim * partial) / 2;
out:
  return rc;
}

int chi_llama_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  chi_block_spec *s = &m->net.decoder.spec;
  int64_t d = 4096, layers = 32, heads = 32, kv = 0, hd = 0, ffn = 11008, vocab = 32000,
          ctx = 2048; /* transformers' defaults */
  double eps = 1e-6;
  bool bias = false, mlp_bias = false;
  CHI_TRY(chi_json_i64_opt(&d, text, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&layers, text, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&heads, text, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&kv, text, "num_key_value_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&hd, text, "head_dim", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&ffn, text, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&vocab, text, "vocab_size", 1, 1 << 22, where, err));
  CHI_TRY(chi_json_i64_opt(&ctx, text, "max_position_embeddings", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, text, "rms_norm_eps", where, err));
  CHI_TRY(chi_json_bool_opt(&bias, text, "attention_bias", where, err));
  CHI_TRY(chi_json_bool_opt(&mlp_bias, text, "mlp_bias", where, err));
  if (kv == 0) kv = heads;
  if (hd == 0) hd = d / heads;
  if (heads % kv != 0 || hd * heads > 65536 * 4)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %lld attention heads cannot share %lld key/value heads", where,
                    (long long)heads, (long long)kv);
  *s = (chi_block_spec){.layers = (int32_t)layers,
                        .d = (int32_t)d,
                        .heads = (int32_t)heads,
                        .kv_heads = (int32_t)kv,
                        .head_dim = (int32_t)hd,
                        .ffn = (int32_t)ffn,
                        .norm = CHI_NORM_RMS,
                        .eps = (float)eps,
                        .causal = true,
                        .gated = true};
  s->attn_scale = (float)chi_pow64((double)hd, -0.5);
  m->net.decoder.vocab = (int32_t)vocab;
  m->net.decoder.rope.n = (int32_t)(ctx < 131072 ? ctx : 131072);
  CHI_TRY(chi_config_act(&s->act, text, "hidden_act", "silu", where, err));
  CHI_TRY(rope_config(s, text, where, err));
  if (json_is_object(json_object_get(text, "quantization_config")))
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s: quantization_config is set; quantised Hugging Face weights are not read", where);
out:
  return rc;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d, nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  char name[256];
  snprintf(name, sizeof name, "%slayers.%d.self_attn.q_proj.bias", base, l);
  bool ab = chi_st_find(b->st, name) != NULL;
  snprintf(name, sizeof name, "%slayers.%d.self_attn.o_proj.bias", base, l);
  bool ob = chi_st_find(b->st, name) != NULL;
  snprintf(name, sizeof name, "%slayers.%d.mlp.up_proj.bias", base, l);
  bool mb = chi_st_find(b->st, name) != NULL;
  CHI_TRY(chi_bind_vec(b, &w->norm1.w, d, err, "%slayers.%d.input_layernorm.weight", base, l));
  CHI_TRY(chi_bind_vec(b, &w->norm2.w, d, err, "%slayers.%d.post_attention_layernorm.weight", base, l));
  CHI_TRY(chi_bind_linear(b, &w->q, nq, d, ab, err, "%slayers.%d.self_attn.q_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->k, nkv, d, ab, err, "%slayers.%d.self_attn.k_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->v, nkv, d, ab, err, "%slayers.%d.self_attn.v_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->o, d, nq, ob, err, "%slayers.%d.self_attn.o_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->gate, s->ffn, d, mb, err, "%slayers.%d.mlp.gate_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, mb, err, "%slayers.%d.mlp.up_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, mb, err, "%slayers.%d.mlp.down_proj", base, l));
out:
  return rc;
}

int chi_llama_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err) {
  int rc = 0;
  chi_decoder *d = &m->net.decoder;
  const chi_block_spec *s = &d->spec;
  char name[256];
  snprintf(name, sizeof name, "%sembed_tokens.weight", base);
  const chi_tensor *e = chi_bind_tensor(b, name, 2, (int64_t[]){d->vocab, s->d}, err);
  if (!e) return CHI_ERR_FORMAT;
  d->embed = e->data;
  d->embed_dtype = e->dtype;
  m->stored = e->dtype;
  d->block = chi_calloc((size_t)s->layers, sizeof *d->block, err);
  size_t half = (size_t)s->rope_half * (size_t)d->rope.n;
  d->rope.cos_t = chi_calloc(half, sizeof(float), err);
  d->rope.sin_t = chi_calloc(half, sizeof(float), err);
  if (!d->block || !d->rope.cos_t || !d->rope.sin_t) return CHI_ERR_MEMORY;
  chi_rope_table(d->rope.cos_t, d->rope.sin_t, d->rope.n, s->rope_half, s->rope_theta, s->rope_linear);
  for (int l = 0; l < s->layers; l++) {
    CHI_TRY(layer_weights(b, s, &d->block[l], base, l, err));
    CHI_TRY(chi_progress("loading", l + 1, s->layers, err));
  }
  CHI_TRY(chi_bind_vec(b, &d->final.w, s->d, err, "%snorm.weight", base));
  snprintf(name, sizeof name, "%s.weight", head);
  if (tied || !chi_st_find(b->st, name)) {
    if (!tied)
      return chi_fail(err, CHI_ERR_FORMAT, "%s: tensor '%s' is missing and tie_word_embeddings is false", m->path,
                      name);
    CHI_TRY(chi_mat_pack(&d->head.w, e->data, e->dtype, d->vocab, s->d, s->d, m->net.compute, err));
  } else {
    CHI_TRY(chi_bind_linear(b, &d->head, d->vocab, s->d, false, err, "%s", head));
  }
out:
  return rc;
}

int chi_family_llama(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = false;
  const char *base = NULL;
  CHI_TRY(chi_llama_config(m, config, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_bind_prefix(b, &base, (const char *const[]){"model.", "", NULL}, "embed_tokens.weight", err));
  CHI_TRY(chi_llama_weights(m, b, base, "lm_head", tied, err));
  m->tmpl = chi_template_find("plain");
out:
  return rc;
}

/* Llama and the families whose block it shares: RMSNorm, rotary embedding, grouped-query attention, gated MLP. */
#include "model/family.h"

int chi_llama_spec(chi_model *m, const json_t *text, const chi_dims *x, const char *where, chi_err *err) {
  int rc = 0;
  double eps = 1e-6;
  chi_block_spec *s = &m->net.decoder.spec;
  CHI_TRY(chi_config_plain(text, where, err));
  CHI_TRY(chi_dims_apply(m, x, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, text, "rms_norm_eps", where, err));
  s->norm = CHI_NORM_RMS;
  s->eps = (float)eps;
  s->gated = true;
  CHI_TRY(chi_config_act(&s->act, text, "hidden_act", "silu", where, err));
  CHI_TRY(chi_rope_config(m, text, &(chi_rope_opts){.theta = 10000.0, .partial = 1.0}, where, err));
out:
  return rc;
}

int chi_llama_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  bool bias = false, mlp_bias = false;
  chi_dims x = {.d = 4096, .layers = 32, .heads = 32, .ffn = 11008, .vocab = 32000, .context = 2048};
  CHI_TRY(chi_dims_read(&x, text, where, err));
  CHI_TRY(chi_llama_spec(m, text, &x, where, err));
  CHI_TRY(chi_json_bool_opt(&bias, text, "attention_bias", where, err));
  CHI_TRY(chi_json_bool_opt(&mlp_bias, text, "mlp_bias", where, err));
  chi_block_spec *s = &m->net.decoder.spec;
  s->bias_qkv = s->bias_o = bias;
  s->bias_mlp = mlp_bias;
out:
  return rc;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d, nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  bool ab = s->bias_qkv, ob = s->bias_o, mb = s->bias_mlp;
  CHI_TRY(chi_bind_norm(b, &w->norm1, d, false, err, "%slayers.%d.input_layernorm", base, l));
  CHI_TRY(chi_bind_norm(b, &w->norm2, d, false, err, "%slayers.%d.post_attention_layernorm", base, l));
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
  CHI_TRY(chi_bind_embed(b, err, base, "embed_tokens.weight"));
  for (int l = 0; l < d->spec.layers; l++) {
    CHI_TRY(layer_weights(b, &d->spec, &d->block[l], base, l, err));
    CHI_TRY(chi_progress("loading", l + 1, d->spec.layers, err));
  }
  CHI_TRY(chi_bind_norm(b, &d->final, d->spec.d, false, err, "%snorm", base));
  CHI_TRY(chi_bind_head(b, head, tied, false, err));
out:
  return rc;
}

/* The text-only families of this block. */
int chi_llama_like(chi_model *m, const json_t *config, chi_binder *b, chi_decoder_config_fn read, chi_err *err) {
  int rc = 0;
  bool tied = false;
  const char *base = NULL;
  CHI_TRY(read(m, config, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_bind_prefix(b, &base, (const char *const[]){"model.", "", NULL}, "embed_tokens.weight", err));
  CHI_TRY(chi_llama_weights(m, b, base, "lm_head", tied, err));
  m->tmpl = chi_template_find("plain");
out:
  return rc;
}

int chi_family_llama(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  return chi_llama_like(m, config, b, chi_llama_config, err);
}

/* Phi (1, 1.5, 2): attention and MLP side by side on one LayerNorm, rotary embedding on a part of each head, biases
 * everywhere, the head included. Also the decoder of Bunny. */
#include "model/family.h"

int chi_phi_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  double eps = 1e-5;
  chi_block_spec *s = &m->net.decoder.spec;
  chi_dims x = {.d = 2048, .layers = 24, .heads = 32, .ffn = 8192, .vocab = 51200, .context = 2048};
  CHI_TRY(chi_config_plain(text, where, err));
  CHI_TRY(chi_dims_read(&x, text, where, err));
  CHI_TRY(chi_config_want(text, "qk_layernorm", false, false, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, text, "layer_norm_eps", where, err));
  CHI_TRY(chi_dims_apply(m, &x, where, err));
  s->norm = CHI_NORM_LAYER;
  s->eps = (float)eps;
  s->parallel = true;
  CHI_TRY(chi_config_act(&s->act, text, "hidden_act", "gelu_new", where, err));
  CHI_TRY(
      chi_rope_config(m, text, &(chi_rope_opts){.theta = 10000.0, .partial = 0.5, .partial_read = true}, where, err));
out:
  return rc;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d, nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%slayers.%d.input_layernorm", base, l));
  CHI_TRY(chi_bind_linear(b, &w->q, nq, d, true, err, "%slayers.%d.self_attn.q_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->k, nkv, d, true, err, "%slayers.%d.self_attn.k_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->v, nkv, d, true, err, "%slayers.%d.self_attn.v_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->o, d, nq, true, err, "%slayers.%d.self_attn.dense", base, l));
  CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, true, err, "%slayers.%d.mlp.fc1", base, l));
  CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, true, err, "%slayers.%d.mlp.fc2", base, l));
out:
  return rc;
}

int chi_phi_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err) {
  int rc = 0;
  chi_decoder *d = &m->net.decoder;
  CHI_TRY(chi_bind_embed(b, err, base, "embed_tokens.weight"));
  for (int l = 0; l < d->spec.layers; l++) {
    CHI_TRY(layer_weights(b, &d->spec, &d->block[l], base, l, err));
    CHI_TRY(chi_progress("loading", l + 1, d->spec.layers, err));
  }
  CHI_TRY(chi_bind_norm(b, &d->final, d->spec.d, true, err, "%sfinal_layernorm", base));
  CHI_TRY(chi_bind_head(b, head, tied, true, err));
out:
  return rc;
}

int chi_family_phi(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = false;
  CHI_TRY(chi_phi_config(m, config, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_phi_weights(m, b, "model.", "lm_head", tied, err));
  m->tmpl = chi_template_find("plain");
out:
  return rc;
}

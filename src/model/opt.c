/* OPT: learned positions (the table's first two rows are never used), LayerNorm before each part, ReLU, biases. */
#include <stdio.h>

#include "model/family.h"

enum { kUnusedPositions = 2 };

int chi_opt_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  chi_block_spec *s = &m->net.decoder.spec;
  chi_dims x = {.d = 768, .layers = 12, .heads = 12, .ffn = 3072, .vocab = 50272, .context = 2048};
  int64_t proj = 0;
  CHI_TRY(chi_config_plain(text, where, err));
  CHI_TRY(chi_dims_read(&x, text, where, err));
  CHI_TRY(chi_json_i64_opt(&x.ffn, text, "ffn_dim", 1, 1 << 20, where, err));
  x.kv = x.head_dim = 0; /* keys of other families */
  CHI_TRY(chi_json_i64_opt(&proj, text, "word_embed_proj_dim", 1, 65536, where, err));
  if (proj && proj != x.d)
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s: word_embed_proj_dim is %lld and hidden_size %lld; projected embeddings (OPT-350m) are not "
                    "implemented",
                    where, (long long)proj, (long long)x.d);
  CHI_TRY(chi_config_want(text, "do_layer_norm_before", true, true, where, err));
  CHI_TRY(chi_config_want(text, "_remove_final_layer_norm", false, false, where, err));
  CHI_TRY(chi_config_want(text, "layer_norm_elementwise_affine", true, true, where, err));
  CHI_TRY(chi_config_want(text, "enable_bias", true, true, where, err));
  CHI_TRY(chi_dims_apply(m, &x, where, err));
  s->norm = CHI_NORM_LAYER;
  s->eps = 1e-5f; /* torch's own default; the config has no key for it */
  CHI_TRY(chi_config_act(&s->act, text, "activation_function", "relu", where, err));
out:
  return rc;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d;
  CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%slayers.%d.self_attn_layer_norm", base, l));
  CHI_TRY(chi_bind_norm(b, &w->norm2, d, true, err, "%slayers.%d.final_layer_norm", base, l));
  CHI_TRY(chi_bind_linear(b, &w->q, d, d, true, err, "%slayers.%d.self_attn.q_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->k, d, d, true, err, "%slayers.%d.self_attn.k_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->v, d, d, true, err, "%slayers.%d.self_attn.v_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->o, d, d, true, err, "%slayers.%d.self_attn.out_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, true, err, "%slayers.%d.fc1", base, l));
  CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, true, err, "%slayers.%d.fc2", base, l));
out:
  return rc;
}

int chi_opt_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err) {
  int rc = 0;
  char name[256];
  chi_decoder *d = &m->net.decoder;
  CHI_TRY(chi_bind_embed(b, err, base, "embed_tokens.weight"));
  snprintf(name, sizeof name, "%sembed_positions.weight", base);
  CHI_TRY(chi_bind_table(b, &d->pos, d->rope.n, d->spec.d, kUnusedPositions, err, name));
  for (int l = 0; l < d->spec.layers; l++) {
    CHI_TRY(layer_weights(b, &d->spec, &d->block[l], base, l, err));
    CHI_TRY(chi_progress("loading", l + 1, d->spec.layers, err));
  }
  CHI_TRY(chi_bind_norm(b, &d->final, d->spec.d, true, err, "%sfinal_layer_norm", base));
  CHI_TRY(chi_bind_head(b, head, tied, false, err));
out:
  return rc;
}

int chi_family_opt(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = true;
  const char *base = NULL;
  CHI_TRY(chi_opt_config(m, config, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(
      chi_bind_prefix(b, &base, (const char *const[]){"model.decoder.", "decoder.", NULL}, "embed_tokens.weight", err));
  CHI_TRY(chi_opt_weights(m, b, base, "lm_head", tied, err));
  m->tmpl = chi_template_find("plain");
out:
  return rc;
}

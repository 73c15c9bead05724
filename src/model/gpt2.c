/* GPT-2: learned positions, LayerNorm before each part, one fused matrix for q, k and v; every matrix is stored
 * [inputs][outputs] (Conv1D). */
#include <stdio.h>

#include "model/family.h"

static int gpt2_config(chi_model *m, const json_t *c, chi_err *err) {
  int rc = 0;
  double eps = 1e-5;
  bool scaled = true;
  const char *where = "config.json";
  chi_block_spec *s = &m->net.decoder.spec;
  chi_dims x = {.d = 768, .layers = 12, .heads = 12, .vocab = 50257, .context = 1024};
  CHI_TRY(chi_config_plain(c, where, err));
  CHI_TRY(chi_json_i64_opt(&x.d, c, "n_embd", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&x.layers, c, "n_layer", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x.heads, c, "n_head", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x.vocab, c, "vocab_size", 1, 1 << 22, where, err));
  CHI_TRY(chi_json_i64_opt(&x.context, c, "n_positions", 1, 1 << 20, where, err));
  x.ffn = 4 * x.d;
  CHI_TRY(chi_json_i64_opt(&x.ffn, c, "n_inner", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_epsilon", where, err));
  CHI_TRY(chi_config_want(c, "scale_attn_by_inverse_layer_idx", false, false, where, err));
  CHI_TRY(chi_config_want(c, "add_cross_attention", false, false, where, err));
  CHI_TRY(chi_json_bool_opt(&scaled, c, "scale_attn_weights", where, err));
  CHI_TRY(chi_dims_apply(m, &x, where, err));
  s->norm = CHI_NORM_LAYER;
  s->eps = (float)eps;
  if (!scaled) s->attn_scale = 1.0f;
  CHI_TRY(chi_config_act(&s->act, c, "activation_function", "gelu_new", where, err));
out:
  return rc;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d;
  chi_linear *qkv[] = {&w->q, &w->k, &w->v};
  CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%sh.%d.ln_1", base, l));
  CHI_TRY(chi_bind_norm(b, &w->norm2, d, true, err, "%sh.%d.ln_2", base, l));
  for (int i = 0; i < 3; i++)
    CHI_TRY(
        chi_bind_part(b, qkv[i], d, d, (chi_bind_slice){3 * d, i * d, true}, true, err, "%sh.%d.attn.c_attn", base, l));
  CHI_TRY(chi_bind_part(b, &w->o, d, d, (chi_bind_slice){d, 0, true}, true, err, "%sh.%d.attn.c_proj", base, l));
  CHI_TRY(
      chi_bind_part(b, &w->up, s->ffn, d, (chi_bind_slice){s->ffn, 0, true}, true, err, "%sh.%d.mlp.c_fc", base, l));
  CHI_TRY(chi_bind_part(b, &w->down, d, s->ffn, (chi_bind_slice){d, 0, true}, true, err, "%sh.%d.mlp.c_proj", base, l));
out:
  return rc;
}

int chi_family_gpt2(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = true;
  const char *base = NULL;
  char name[256];
  chi_decoder *d = &m->net.decoder;
  CHI_TRY(gpt2_config(m, config, err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_bind_prefix(b, &base, (const char *const[]){"transformer.", "", NULL}, "wte.weight", err));
  CHI_TRY(chi_bind_embed(b, err, base, "wte.weight"));
  snprintf(name, sizeof name, "%swpe.weight", base);
  CHI_TRY(chi_bind_table(b, &d->pos, d->rope.n, d->spec.d, 0, err, name));
  for (int l = 0; l < d->spec.layers; l++) {
    CHI_TRY(layer_weights(b, &d->spec, &d->block[l], base, l, err));
    CHI_TRY(chi_progress("loading", l + 1, d->spec.layers, err));
  }
  CHI_TRY(chi_bind_norm(b, &d->final, d->spec.d, true, err, "%sln_f", base));
  CHI_TRY(chi_bind_head(b, "lm_head", tied, false, err));
  m->tmpl = chi_template_find("plain");
out:
  return rc;
}

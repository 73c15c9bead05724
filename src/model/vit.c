/* Vision towers of the CLIP kind: patch embedding, learned positions, pre-norm blocks with biases. CLIP has a class row
 * and a norm before the first layer; SigLIP has neither, and a bias on its patches. */
#include <stdio.h>

#include "model/family.h"

int chi_vit_shape(chi_vision *v, const chi_vit_size *n, const char *where, chi_err *err) {
  if (n->d % n->heads != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: hidden_size %lld is not a multiple of %lld heads", where, (long long)n->d,
                    (long long)n->heads);
  if (n->patch > n->image)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: patch_size %lld is larger than image_size %lld", where,
                    (long long)n->patch, (long long)n->image);
  v->spec = (chi_block_spec){.layers = (int32_t)n->layers,
                             .d = (int32_t)n->d,
                             .heads = (int32_t)n->heads,
                             .kv_heads = (int32_t)n->heads,
                             .head_dim = (int32_t)(n->d / n->heads),
                             .ffn = (int32_t)n->ffn,
                             .norm = CHI_NORM_LAYER,
                             .eps = (float)n->eps};
  v->spec.attn_scale = (float)chi_pow64((double)(n->d / n->heads), -0.5);
  v->image_h = v->image_w = (int32_t)n->image;
  v->patch = (int32_t)n->patch;
  v->grid_h = v->grid_w = (int32_t)(n->image / n->patch);
  v->has_cls = n->cls;
  v->rows = v->grid_h * v->grid_w + (n->cls ? 1 : 0);
  return 0;
}

int chi_vit_config(chi_model *m, const json_t *c, const char *where, chi_err *err) {
  int rc = 0;
  const char *type = NULL;
  chi_vision *v = &m->net.vision;
  CHI_TRY(chi_config_str(&type, c, "model_type", "clip_vision_model",
                         (const char *const[]){"clip_vision_model", "siglip_vision_model", NULL}, where, err));
  bool clip = chi_streq(type, "clip_vision_model");
  int64_t d = 768, ffn = 3072, layers = 12, heads = 12, image = 224, patch = clip ? 32 : 16,
          chans = 3; /* the classes' defaults */
  double eps = clip ? 1e-5 : 1e-6;
  CHI_TRY(chi_config_plain(c, where, err));
  CHI_TRY(chi_json_i64_opt(&d, c, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&ffn, c, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&layers, c, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&heads, c, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&image, c, "image_size", 1, 4096, where, err));
  CHI_TRY(chi_json_i64_opt(&patch, c, "patch_size", 1, 4096, where, err));
  CHI_TRY(chi_json_i64_opt(&chans, c, "num_channels", 3, 3, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_eps", where, err));
  CHI_TRY(chi_vit_shape(v, &(chi_vit_size){d, ffn, layers, heads, image, patch, eps, clip}, where, err));
  CHI_TRY(chi_config_act(&v->spec.act, c, "hidden_act", clip ? "quick_gelu" : "gelu_pytorch_tanh", where, err));
out:
  return rc;
}

int chi_vit_features(chi_model *m, const json_t *config, const char *key, chi_err *err) {
  chi_vision *v = &m->net.vision;
  const json_t *f = json_object_get(config, key);
  size_t n = json_is_array(f) ? json_array_size(f) : 1;
  if (n < 1 || n > CHI_MAX_FEATURES)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "config.json: %s lists %zu layers; 1 to %d are read", key, n,
                    CHI_MAX_FEATURES);
  int32_t states = v->spec.layers + 1, deepest = 0;
  for (size_t i = 0; i < n; i++) {
    const json_t *e = json_is_array(f) ? json_array_get(f, i) : f;
    json_int_t k = json_is_integer(e) ? json_integer_value(e) : -2;
    if ((e && !json_is_null(e) && !json_is_integer(e)) || k >= states || k < -states)
      return chi_fail(err, CHI_ERR_FORMAT, "config.json: %s must be within %d..%d", key, -states, states - 1);
    v->feature[i] = (int32_t)(k < 0 ? k + states : k);
    if (v->feature[i] > deepest) deepest = v->feature[i];
  }
  v->n_features = (int32_t)n;
  v->spec.layers = deepest;
  return 0;
}

static int layer_weights(chi_binder *b, const chi_block_spec *s, chi_block *w, const char *base, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d;
  CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%sencoder.layers.%d.layer_norm1", base, l));
  CHI_TRY(chi_bind_norm(b, &w->norm2, d, true, err, "%sencoder.layers.%d.layer_norm2", base, l));
  CHI_TRY(chi_bind_linear(b, &w->q, d, d, true, err, "%sencoder.layers.%d.self_attn.q_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->k, d, d, true, err, "%sencoder.layers.%d.self_attn.k_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->v, d, d, true, err, "%sencoder.layers.%d.self_attn.v_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->o, d, d, true, err, "%sencoder.layers.%d.self_attn.out_proj", base, l));
  CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, true, err, "%sencoder.layers.%d.mlp.fc1", base, l));
  CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, true, err, "%sencoder.layers.%d.mlp.fc2", base, l));
out:
  return rc;
}

int chi_vit_weights(chi_model *m, chi_binder *b, const char *base, chi_err *err) {
  int rc = 0;
  chi_vision *v = &m->net.vision;
  int64_t d = v->spec.d;
  char name[256];
  m->net.has_vision = true;
  v->block = chi_calloc((size_t)v->spec.layers + 1, sizeof *v->block, err);
  if (!v->block) return CHI_ERR_MEMORY;
  CHI_TRY(chi_bind_linear(b, &v->patch_embed, d, 3 * (int64_t)v->patch * v->patch, !v->has_cls, err,
                          "%sembeddings.patch_embedding", base));
  snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", base);
  CHI_TRY(chi_bind_table(b, &v->pos, v->rows, d, 0, err, name));
  if (v->has_cls) {
    CHI_TRY(chi_bind_vec(b, &v->cls, d, err, "%sembeddings.class_embedding", base));
    CHI_TRY(chi_bind_norm(b, &v->pre, d, true, err, "%spre_layrnorm", base)); /* the checkpoint's own spelling */
  }
  for (int l = 0; l < v->spec.layers; l++) CHI_TRY(layer_weights(b, &v->spec, &v->block[l], base, l, err));
out:
  return rc;
}

/* LLaVA (Hugging Face layouts, current and older): CLIP tower, projector, Llama decoder. docs/models/llava.md has the
 * model in prose, with what is easy to get wrong. */
#include <stdio.h>
#include <string.h>

#include "model/model.h"

static int vision_config(chi_model *m, const json_t *c, chi_err *err) {
  int rc = 0;
  const char *where = "config.json: vision_config", *type = "clip_vision_model";
  chi_vision *v = &m->net.vision;
  int64_t d = 768, ffn = 3072, layers = 12, heads = 12, image = 224, patch = 32,
          chans = 3; /* CLIPVisionConfig's defaults */
  double eps = 1e-5;
  CHI_TRY(chi_json_str_opt(&type, c, "model_type", where, err));
  if (!chi_streq(type, "clip_vision_model"))
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: model_type is '%s'; known is clip_vision_model", where, type);
  CHI_TRY(chi_json_i64_opt(&d, c, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&ffn, c, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&layers, c, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&heads, c, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&image, c, "image_size", 1, 4096, where, err));
  CHI_TRY(chi_json_i64_opt(&patch, c, "patch_size", 1, 4096, where, err));
  CHI_TRY(chi_json_i64_opt(&chans, c, "num_channels", 3, 3, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_eps", where, err));
  if (d % heads != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: hidden_size %lld is not a multiple of %lld heads", where, (long long)d,
                    (long long)heads);
  if (patch > image)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: patch_size %lld is larger than image_size %lld", where, (long long)patch,
                    (long long)image);
  v->spec = (chi_block_spec){.layers = (int32_t)layers,
                             .d = (int32_t)d,
                             .heads = (int32_t)heads,
                             .kv_heads = (int32_t)heads,
                             .head_dim = (int32_t)(d / heads),
                             .ffn = (int32_t)ffn,
                             .norm = CHI_NORM_LAYER,
                             .eps = (float)eps};
  v->spec.attn_scale = (float)chi_pow64((double)(d / heads), -0.5);
  CHI_TRY(chi_config_act(&v->spec.act, c, "hidden_act", "quick_gelu", where, err));
  v->image_h = v->image_w = (int32_t)image;
  v->patch = (int32_t)patch;
  v->grid_h = v->grid_w = (int32_t)(image / patch);
  v->has_cls = true;
  v->rows = v->grid_h * v->grid_w + 1;
out:
  return rc;
}

/* vision_feature_layer: an index into the states (0 = after the pre-norm, -1 = after the last layer), or a list of them
 * that is concatenated. Only the layers that they need are run. */
static int feature_config(chi_model *m, const json_t *config, chi_err *err) {
  chi_vision *v = &m->net.vision;
  const json_t *f = json_object_get(config, "vision_feature_layer");
  size_t n = json_is_array(f) ? json_array_size(f) : 1;
  if (n < 1 || n > CHI_MAX_FEATURES)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "config.json: vision_feature_layer lists %zu layers; 1 to %d are read", n,
                    CHI_MAX_FEATURES);
  int32_t states = v->spec.layers + 1, deepest = 0;
  for (size_t i = 0; i < n; i++) {
    const json_t *e = json_is_array(f) ? json_array_get(f, i) : f;
    json_int_t k = json_is_integer(e) ? json_integer_value(e) : -2;
    if ((e && !json_is_null(e) && !json_is_integer(e)) || k >= states || k < -states)
      return chi_fail(err, CHI_ERR_FORMAT, "config.json: vision_feature_layer must be within %d..%d", -states,
                      states - 1);
    v->feature[i] = (int32_t)(k < 0 ? k + states : k);
    if (v->feature[i] > deepest) deepest = v->feature[i];
  }
  v->n_features = (int32_t)n;
  v->spec.layers = deepest;
  const char *select = "default";
  int rc = chi_json_str_opt(&select, config, "vision_feature_select_strategy", "config.json", err);
  if (rc) return rc;
  if (!chi_streq(select, "default") && !chi_streq(select, "full"))
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "config.json: vision_feature_select_strategy is '%s'; known are default and full", select);
  v->select = chi_streq(select, "default") ? 1 : 0;
  return 0;
}

static int vision_weights(chi_model *m, chi_binder *b, const char *base, chi_err *err) {
  int rc = 0;
  chi_vision *v = &m->net.vision;
  const chi_block_spec *s = &v->spec;
  int64_t d = s->d;
  char name[256];
  v->block = chi_calloc((size_t)s->layers + 1, sizeof *v->block, err);
  if (!v->block) return CHI_ERR_MEMORY;
  CHI_TRY(chi_bind_linear(b, &v->patch_embed, d, 3 * (int64_t)v->patch * v->patch, false, err,
                          "%sembeddings.patch_embedding", base));
  CHI_TRY(chi_bind_vec(b, &v->cls, d, err, "%sembeddings.class_embedding", base));
  snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", base);
  const chi_tensor *pos = chi_bind_tensor(b, name, 2, (int64_t[]){v->rows, d}, err);
  if (!pos) return CHI_ERR_FORMAT;
  v->pos = chi_calloc((size_t)(v->rows * d), sizeof *v->pos, err);
  if (!v->pos) return CHI_ERR_MEMORY;
  CHI_TRY(chi_to_f32(v->pos, pos->data, pos->dtype, (size_t)(v->rows * d), err));
  CHI_TRY(chi_bind_vec(b, &v->pre.w, d, err, "%spre_layrnorm.weight", base)); /* the checkpoint's own spelling */
  CHI_TRY(chi_bind_vec(b, &v->pre.b, d, err, "%spre_layrnorm.bias", base));
  for (int l = 0; l < s->layers; l++) {
    chi_block *w = &v->block[l];
    CHI_TRY(chi_bind_vec(b, &w->norm1.w, d, err, "%sencoder.layers.%d.layer_norm1.weight", base, l));
    CHI_TRY(chi_bind_vec(b, &w->norm1.b, d, err, "%sencoder.layers.%d.layer_norm1.bias", base, l));
    CHI_TRY(chi_bind_vec(b, &w->norm2.w, d, err, "%sencoder.layers.%d.layer_norm2.weight", base, l));
    CHI_TRY(chi_bind_vec(b, &w->norm2.b, d, err, "%sencoder.layers.%d.layer_norm2.bias", base, l));
    CHI_TRY(chi_bind_linear(b, &w->q, d, d, true, err, "%sencoder.layers.%d.self_attn.q_proj", base, l));
    CHI_TRY(chi_bind_linear(b, &w->k, d, d, true, err, "%sencoder.layers.%d.self_attn.k_proj", base, l));
    CHI_TRY(chi_bind_linear(b, &w->v, d, d, true, err, "%sencoder.layers.%d.self_attn.v_proj", base, l));
    CHI_TRY(chi_bind_linear(b, &w->o, d, d, true, err, "%sencoder.layers.%d.self_attn.out_proj", base, l));
    CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, true, err, "%sencoder.layers.%d.mlp.fc1", base, l));
    CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, true, err, "%sencoder.layers.%d.mlp.fc2", base, l));
  }
out:
  return rc;
}

int chi_family_llava(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  chi_net *net = &m->net;
  bool tied = false, text_tied = false, proj_bias = true;
  int64_t image_token = 32000;
  const char *base = NULL, *vis = NULL, *proj = NULL, *head = NULL, *type = "llama";
  const json_t *text = json_object_get(config, "text_config"), *vc = json_object_get(config, "vision_config");
  if (!json_is_object(text) || !json_is_object(vc))
    return chi_fail(err, CHI_ERR_FORMAT, "config.json: text_config and vision_config must be objects");
  CHI_TRY(chi_json_str_opt(&type, text, "model_type", "config.json: text_config", err));
  if (!chi_streq(type, "llama"))
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "config.json: text_config: model_type is '%s'; known is llama", type);
  CHI_TRY(chi_llama_config(m, text, "config.json: text_config", err));
  CHI_TRY(vision_config(m, vc, err));
  CHI_TRY(feature_config(m, config, err));
  CHI_TRY(chi_config_act(&net->projector.act, config, "projector_hidden_act", "gelu", "config.json", err));
  CHI_TRY(chi_json_bool_opt(&proj_bias, config, "multimodal_projector_bias", "config.json", err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_index", 0, INT32_MAX, "config.json", err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_id", 0, INT32_MAX, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_json_bool_opt(&text_tied, text, "tie_word_embeddings", "config.json: text_config", err));
  CHI_TRY(chi_bind_prefix(
      b, &base, (const char *const[]){"language_model.model.", "model.language_model.", "language_model.", NULL},
      "embed_tokens.weight", err));
  CHI_TRY(chi_bind_prefix(b, &vis,
                          (const char *const[]){"vision_tower.vision_model.", "vision_tower.",
                                                "model.vision_tower.vision_model.", "model.vision_tower.", NULL},
                          "embeddings.class_embedding", err));
  CHI_TRY(chi_bind_prefix(b, &proj,
                          (const char *const[]){"multi_modal_projector.", "model.multi_modal_projector.", NULL},
                          "linear_1.weight", err));
  head = chi_st_find(b->st, "language_model.lm_head.weight") ? "language_model.lm_head" : "lm_head";
  net->has_vision = true;
  CHI_TRY(vision_weights(m, b, vis, err));
  int64_t d = net->decoder.spec.d, feat = (int64_t)net->vision.spec.d * net->vision.n_features;
  CHI_TRY(chi_bind_linear(b, &net->projector.l1, d, feat, proj_bias, err, "%slinear_1", proj));
  CHI_TRY(chi_bind_linear(b, &net->projector.l2, d, d, proj_bias, err, "%slinear_2", proj));
  CHI_TRY(chi_llama_weights(m, b, base, head, tied || text_tied, err));
  m->image_token = (int32_t)image_token;
  m->image_text = "<image>";
  m->tmpl = chi_template_find("llava-1.5");
out:
  return rc;
}

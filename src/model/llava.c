/* LLaVA (Hugging Face layouts, current and older): tower, projector, decoder. docs/models/llava.md has the model in
 * prose, with what is easy to get wrong. */
#include "model/family.h"

static int decoder_config(chi_model *m, const json_t *text, chi_err *err) {
  static const char *const known[] = {"llama", "mistral", "qwen2", NULL};
  static const chi_decoder_config_fn read[] = {chi_llama_config, chi_mistral_config, chi_qwen2_config};
  const char *where = "config.json: text_config", *type = NULL;
  int rc = chi_config_str(&type, text, "model_type", "llama", known, where, err);
  for (size_t i = 0; rc == 0 && known[i]; i++)
    if (chi_streq(type, known[i])) return read[i](m, text, where, err);
  return rc;
}

static int picture_config(chi_model *m, const json_t *config, chi_err *err) {
  int rc = 0;
  const char *select = NULL;
  int64_t image_token = 32000;
  chi_vision *v = &m->net.vision;
  CHI_TRY(chi_vit_config(m, json_object_get(config, "vision_config"), "config.json: vision_config", err));
  CHI_TRY(chi_vit_features(m, config, "vision_feature_layer", err));
  CHI_TRY(chi_config_str(&select, config, "vision_feature_select_strategy", "default",
                         (const char *const[]){"default", "full", NULL}, "config.json", err));
  v->select = chi_streq(select, "default") ? 1 : 0;
  if (v->rows - v->select < 1)
    return chi_fail(err, CHI_ERR_FORMAT, "config.json: vision_feature_select_strategy '%s' leaves no row of the tower",
                    select);
  CHI_TRY(chi_config_act(&m->net.projector.act, config, "projector_hidden_act", "gelu", "config.json", err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_index", 0, INT32_MAX, "config.json", err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_id", 0, INT32_MAX, "config.json", err));
  m->image_token = (int32_t)image_token;
out:
  return rc;
}

int chi_family_llava(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  chi_net *net = &m->net;
  bool tied = false, text_tied = false, proj_bias = true;
  const char *base = NULL, *vis = NULL, *proj = NULL, *head = NULL;
  const json_t *text = json_object_get(config, "text_config");
  if (!text && json_object_get(config, "mm_vision_tower")) /* the authors' layout under the same model_type */
    return chi_family_liuhaotian(m, config, b, err);
  if (!json_is_object(text) || !json_is_object(json_object_get(config, "vision_config")))
    return chi_fail(err, CHI_ERR_FORMAT, "config.json: text_config and vision_config must be objects");
  CHI_TRY(chi_config_plain(config, "config.json", err));
  CHI_TRY(decoder_config(m, text, err));
  CHI_TRY(picture_config(m, config, err));
  CHI_TRY(chi_json_bool_opt(&proj_bias, config, "multimodal_projector_bias", "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(chi_json_bool_opt(&text_tied, text, "tie_word_embeddings", "config.json: text_config", err));
  CHI_TRY(chi_bind_prefix(
      b, &base, (const char *const[]){"language_model.model.", "model.language_model.", "language_model.", NULL},
      "embed_tokens.weight", err));
  CHI_TRY(chi_bind_prefix(b, &vis,
                          (const char *const[]){"vision_tower.vision_model.", "vision_tower.",
                                                "model.vision_tower.vision_model.", "model.vision_tower.", NULL},
                          "embeddings.position_embedding.weight", err));
  CHI_TRY(chi_bind_prefix(b, &proj,
                          (const char *const[]){"multi_modal_projector.", "model.multi_modal_projector.", NULL},
                          "linear_1.weight", err));
  head = chi_bind_has(b, "language_model.lm_head.weight") ? "language_model.lm_head" : "lm_head";
  CHI_TRY(chi_vit_weights(m, b, vis, err));
  int64_t d = net->decoder.spec.d, feat = (int64_t)net->vision.spec.d * net->vision.n_features;
  CHI_TRY(chi_bind_linear(b, &net->projector.l1, d, feat, proj_bias, err, "%slinear_1", proj));
  CHI_TRY(chi_bind_linear(b, &net->projector.l2, d, d, proj_bias, err, "%slinear_2", proj));
  CHI_TRY(chi_llama_weights(m, b, base, head, tied || text_tied, err));
  m->tmpl = chi_template_find("llava-1.5");
out:
  return rc;
}

/* Bunny-v1_0-3B, a multimodal Phi-2: SigLIP without its last layer, projector of two matrices, Phi-2; all in one
 * file. */
#include <string.h>

#include "model/family.h"

/* The tower is written down in Bunny's own code (so400m-patch14-384); a vision_config in config.json, which is ours and
 * not theirs, describes another one. */
static int tower_config(chi_model *m, const json_t *config, chi_err *err) {
  const json_t *v = json_object_get(config, "vision_config");
  json_t *c = json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:f}", "model_type", "siglip_vision_model", "hidden_size", 1152,
                        "intermediate_size", 4304, "num_hidden_layers", 27, "num_attention_heads", 16, "image_size",
                        384, "patch_size", 14, "layer_norm_eps", 1e-6);
  if (!c || (json_is_object(v) && json_object_update(c, (json_t *)(uintptr_t)v) != 0)) {
    json_decref(c);
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  int rc = chi_vit_config(m, c, "config.json: vision_config", err);
  if (rc == 0) rc = chi_vit_features(m, c, "(layer)", err); /* missing: -2, the last but one, as Bunny has it */
  json_decref(c);
  return rc;
}

int chi_family_bunny(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = false, pad = false;
  const char *tower = "google/siglip-so400m-patch14-384";
  chi_vision *v = &m->net.vision;
  CHI_TRY(chi_phi_config(m, config, "config.json", err));
  CHI_TRY(chi_mm_config(m, config, &pad, err));
  CHI_TRY(chi_json_str_opt(&tower, config, "mm_vision_tower", "config.json", err));
  if (!strstr(tower, "siglip"))
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "config.json: mm_vision_tower is '%s'; Bunny is read with SigLIP only",
                    tower);
  CHI_TRY(chi_config_want(config, "use_s2", false, false, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(tower_config(m, config, err));
  m->pre = (chi_preproc){.do_resize = true,
                         .do_rescale = true,
                         .do_normalize = true,
                         .do_pad = pad,
                         .pad_square = pad,
                         .resize_w = v->image_w,
                         .resize_h = v->image_h,
                         .resample = CHI_BICUBIC,
                         .rescale = 1.0 / 255,
                         .mean = {0.5, 0.5, 0.5},
                         .std = {0.5, 0.5, 0.5}};
  m->pre_set = true;
  CHI_TRY(chi_vit_weights(m, b, "model.vision_tower.vision_tower.vision_model.", err));
  CHI_TRY(chi_mm_projector(m, b, err));
  CHI_TRY(chi_phi_weights(m, b, "model.", "lm_head", tied, err));
out:
  return rc;
}

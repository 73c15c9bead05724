/* MiniGPT-4: the tower and Q-Former of BLIP-2, one linear layer (llama_proj), a Llama decoder (Vicuna). The published
 * parts are several files; the folder that is read here is made from them by tools/convert/minigpt4.py and described in
 * docs/models/minigpt4.md. */
#include "model/family.h"

int chi_family_minigpt4(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  const char *type = NULL, *where = "config.json: text_config";
  bool tied = false;
  const json_t *text = json_object_get(config, "text_config");
  if (!json_is_object(text)) return chi_fail(err, CHI_ERR_FORMAT, "config.json: text_config must be an object");
  CHI_TRY(chi_config_str(&type, text, "model_type", "llama", (const char *const[]){"llama", NULL}, where, err));
  CHI_TRY(chi_llama_config(m, text, where, err));
  CHI_TRY(chi_blip2_config(m, config, err));
  CHI_TRY(chi_json_bool_opt(&tied, text, "tie_word_embeddings", where, err));
  CHI_TRY(chi_blip2_weights(m, b, "llama_proj", err));
  CHI_TRY(chi_llama_weights(m, b, "language_model.model.", "language_model.lm_head", tied, err));
  m->image_token = CHI_PICTURE_ID;
  m->image_tail = "</Img> "; /* encoded apart from the question in the published code */
  m->plain_ids = true;       /* which puts no BOS in front */
  m->tmpl = chi_template_find("minigpt4");
out:
  return rc;
}

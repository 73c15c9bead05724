/* Mistral: Llama's block; a row may see only its last `sliding_window` keys. */
#include "model/family.h"

int chi_mistral_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  /* a missing key takes the class's default, null means heads and no window */
  int64_t window = json_object_get(text, "sliding_window") ? 0 : 4096;
  chi_dims x = {.d = 4096, .layers = 32, .heads = 32, .ffn = 14336, .vocab = 32000, .context = 131072};
  if (!json_object_get(text, "num_key_value_heads")) x.kv = 8;
  CHI_TRY(chi_config_absent(text, "layer_types", "layers of two kinds are Ministral's, which is not implemented", where,
                            err));
  CHI_TRY(chi_dims_read(&x, text, where, err));
  CHI_TRY(chi_json_i64_opt(&window, text, "sliding_window", 1, INT32_MAX, where, err));
  CHI_TRY(chi_llama_spec(m, text, &x, where, err));
  m->net.decoder.spec.window = (int32_t)window;
out:
  return rc;
}

int chi_family_mistral(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  return chi_llama_like(m, config, b, chi_mistral_config, err);
}

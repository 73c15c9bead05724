/* Qwen2: Llama's block with biases on q, k and v; the upper layers may have a sliding window. */
#include <string.h>

#include "model/family.h"

/* use_sliding_window: layers from max_window_layers on see their last sliding_window keys; layer_types says so too. */
static int window_config(chi_block_spec *s, const json_t *text, const char *where, chi_err *err) {
  bool use = false;
  int64_t window = 4096, from = 28;
  int rc = 0;
  CHI_TRY(chi_json_bool_opt(&use, text, "use_sliding_window", where, err));
  CHI_TRY(chi_json_i64_opt(&window, text, "sliding_window", 1, INT32_MAX, where, err));
  CHI_TRY(chi_json_i64_opt(&from, text, "max_window_layers", 0, INT32_MAX, where, err));
  const json_t *w = json_object_get(text, "sliding_window"), *types = json_object_get(text, "layer_types");
  if (!use || json_is_null(w)) window = 0;
  s->window = (int32_t)window;
  s->window_from = (int32_t)from;
  for (size_t l = 0; json_is_array(types) && l < json_array_size(types); l++) {
    const char *t = json_string_value(json_array_get(types, l));
    bool sliding = window > 0 && (int64_t)l >= from;
    if (!t || strcmp(t, sliding ? "sliding_attention" : "full_attention") != 0)
      return chi_fail(err, CHI_ERR_UNSUPPORTED,
                      "%s: layer_types[%zu] is '%s'; use_sliding_window and max_window_layers say '%s'", where, l,
                      t ? t : "?", sliding ? "sliding_attention" : "full_attention");
  }
out:
  return rc;
}

int chi_qwen2_config(chi_model *m, const json_t *text, const char *where, chi_err *err) {
  int rc = 0;
  chi_dims x = {.d = 4096, .layers = 32, .heads = 32, .ffn = 22016, .vocab = 151936, .context = 32768};
  if (!json_object_get(text, "num_key_value_heads")) x.kv = 32;
  CHI_TRY(chi_dims_read(&x, text, where, err));
  CHI_TRY(chi_llama_spec(m, text, &x, where, err));
  m->net.decoder.spec.bias_qkv = true;
  CHI_TRY(window_config(&m->net.decoder.spec, text, where, err));
out:
  return rc;
}

int chi_family_qwen2(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  return chi_llama_like(m, config, b, chi_qwen2_config, err);
}

/* Reading of config.json that the families share: what changes the result is read, or refused by key and value. */
#include <stdlib.h>

#include "model/family.h"

int chi_config_act(chi_act *out, const json_t *obj, const char *key, const char *fallback, const char *where,
                   chi_err *err) {
  static const struct {
    const char *name;
    chi_act act;
  } kActs[] = {{"silu", CHI_ACT_SILU},
               {"gelu", CHI_ACT_GELU_ERF},
               {"gelu_new", CHI_ACT_GELU_TANH},
               {"gelu_pytorch_tanh", CHI_ACT_GELU_TANH},
               {"quick_gelu", CHI_ACT_QUICK_GELU},
               {"relu", CHI_ACT_RELU}};
  const char *name = fallback;
  int rc = chi_json_str_opt(&name, obj, key, where, err);
  if (rc) return rc;
  for (size_t i = 0; i < sizeof kActs / sizeof *kActs; i++)
    if (chi_streq(kActs[i].name, name)) {
      *out = kActs[i].act;
      return 0;
    }
  return chi_fail(err, CHI_ERR_UNSUPPORTED,
                  "%s: %s is '%s'; known are silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu", where, key,
                  name);
}

int chi_config_want(const json_t *obj, const char *key, bool fallback, bool want, const char *where, chi_err *err) {
  bool v = fallback;
  int rc = chi_json_bool_opt(&v, obj, key, where, err);
  if (rc || v == want) return rc;
  return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: %s is %s; only %s is implemented", where, key, v ? "true" : "false",
                  want ? "true" : "false");
}

int chi_config_absent(const json_t *obj, const char *key, const char *why, const char *where, chi_err *err) {
  const json_t *v = json_object_get(obj, key);
  if (!v || json_is_null(v)) return 0;
  char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
  int rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: %s is %.120s; %s", where, key, text ? text : "set", why);
  free(text);
  return rc;
}

int chi_config_str(const char **out, const json_t *obj, const char *key, const char *fallback, const char *const *known,
                   const char *where, chi_err *err) {
  *out = fallback;
  int rc = chi_json_str_opt(out, obj, key, where, err);
  if (rc) return rc;
  chi_str list = {0};
  for (size_t i = 0; known[i]; i++) {
    if (chi_streq(known[i], *out)) {
      chi_str_free(&list);
      return 0;
    }
    chi_str_addf(&list, "%s%s", i ? ", " : "", known[i]);
  }
  rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: %s is '%s'; known %s %s", where, key, *out ? *out : "(absent)",
                known[0] && known[1] ? "are" : "is", list.s ? list.s : "");
  chi_str_free(&list);
  return rc;
}

int chi_config_plain(const json_t *obj, const char *where, chi_err *err) {
  int rc = chi_config_absent(obj, "quantization_config", "quantised Hugging Face weights are not read", where, err);
  return rc ? rc : chi_config_absent(obj, "compression_config", "compressed weights are not read", where, err);
}

int chi_dims_read(chi_dims *x, const json_t *c, const char *where, chi_err *err) {
  int rc = 0;
  CHI_TRY(chi_json_i64_opt(&x->d, c, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&x->layers, c, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x->heads, c, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x->kv, c, "num_key_value_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x->head_dim, c, "head_dim", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&x->ffn, c, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&x->vocab, c, "vocab_size", 1, 1 << 22, where, err));
  CHI_TRY(chi_json_i64_opt(&x->context, c, "max_position_embeddings", 1, 1 << 20, where, err));
out:
  return rc;
}

int chi_dims_apply(chi_model *m, const chi_dims *x, const char *where, chi_err *err) {
  chi_decoder *d = &m->net.decoder;
  int64_t kv = x->kv ? x->kv : x->heads, hd = x->head_dim ? x->head_dim : x->d / x->heads;
  if (x->heads % kv != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %lld attention heads cannot share %lld key/value heads", where,
                    (long long)x->heads, (long long)kv);
  if (!x->head_dim && x->d % x->heads != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: a width of %lld is not a multiple of %lld heads", where, (long long)x->d,
                    (long long)x->heads);
  if (hd < 1 || hd * x->heads > 65536 * 4)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %lld heads of %lld are too wide", where, (long long)x->heads,
                    (long long)hd);
  d->spec = (chi_block_spec){.layers = (int32_t)x->layers,
                             .d = (int32_t)x->d,
                             .heads = (int32_t)x->heads,
                             .kv_heads = (int32_t)kv,
                             .head_dim = (int32_t)hd,
                             .ffn = (int32_t)x->ffn,
                             .causal = true,
                             .attn_scale = (float)chi_pow64((double)hd, -0.5)};
  d->vocab = (int32_t)x->vocab;
  d->rope.n = (int32_t)(x->context < 131072 ? x->context : 131072);
  return 0;
}

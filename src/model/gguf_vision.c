/* The file of a vision tower ("mmproj") -> the config object and the tensor names of a LLaVA. */
#include <stdio.h>
#include <string.h>

#include "model/gguf.h"

static int number(int64_t *out, const chi_gguf *g, const char *name, int64_t max, chi_err *err) {
  char key[96];
  snprintf(key, sizeof key, "clip.vision.%s", name);
  return chi_gguf_i64(out, g, key, 1, max, err);
}

/* Blocks that are stored: writers leave out the last one of the tower, which LLaVA does not use. */
static int64_t stored_blocks(const chi_gguf *g) {
  char name[64];
  for (int64_t n = 0;; n++) {
    snprintf(name, sizeof name, "v.blk.%lld.ln1.weight", (long long)n);
    if (!chi_gguf_tensor(g, name)) return n;
  }
}

/* States that the projector reads: those that the file names, else the one after its last block. */
static int features(json_t *c, const chi_gguf *g, int64_t blocks, chi_err *err) {
  const chi_gguf_value *list = NULL;
  json_t *layers = json_array();
  int rc = chi_gguf_numbers_opt(&list, g, "clip.vision.feature_layer", err);
  if (rc) goto out;
  if (list && (list->n < 1 || list->n > CHI_MAX_FEATURES)) {
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: key 'clip.vision.feature_layer' names %llu layers; 1 to %d are read",
                  chi_gguf_path(g), (unsigned long long)list->n, CHI_MAX_FEATURES);
    goto out;
  }
  for (uint64_t i = 0; i < (list ? list->n : 1); i++) {
    double k = list ? chi_gguf_number(list, i) : (double)blocks;
    if (!(k >= 0 && k <= (double)blocks)) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: key 'clip.vision.feature_layer' names layer %g of %lld", chi_gguf_path(g),
                    k, (long long)blocks);
      goto out;
    }
    json_array_append_new(layers, json_integer((json_int_t)k));
  }
  if (json_object_set(c, "vision_feature_layer", layers))
    rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the config");
out:
  json_decref(layers);
  return rc;
}

static int three(double out[3], const chi_gguf *g, const char *key, chi_err *err) {
  const chi_gguf_value *v = NULL;
  int rc = chi_gguf_numbers_opt(&v, g, key, err);
  if (rc) return rc;
  bool good = v && v->n == 3;
  for (uint64_t i = 0; good && i < 3; i++) {
    out[i] = chi_gguf_number(v, i);
    good = out[i] > 0 && out[i] <= 1;
  }
  return good ? 0
              : chi_fail(err, CHI_ERR_FORMAT, "%s: key '%s' must be three numbers above 0 and at most 1",
                         chi_gguf_path(g), key);
}

/* As the Hugging Face checkpoints of LLaVA do it: shortest edge to the tower's size, middle cut out. */
static int preprocessing(chi_preproc *p, const chi_gguf *g, int64_t size, chi_err *err) {
  int side = (int)size;
  *p = (chi_preproc){.do_resize = true,
                     .do_center_crop = true,
                     .do_rescale = true,
                     .do_normalize = true,
                     .shortest_edge = side,
                     .crop_w = side,
                     .crop_h = side,
                     .resample = CHI_BICUBIC,
                     .rescale = 1.0 / 255};
  int rc = three(p->mean, g, "clip.vision.image_mean", err);
  return rc ? rc : three(p->std, g, "clip.vision.image_std", err);
}

static int projector(const chi_gguf *g, chi_err *err) {
  const char *type = "mlp", *arch = NULL, *path = chi_gguf_path(g);
  int rc = chi_gguf_str_opt(&arch, g, "general.architecture", err);
  if (rc == 0) rc = chi_gguf_str_opt(&type, g, "clip.projector_type", err);
  if (rc) return rc;
  if (!chi_streq(arch, "clip"))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: general.architecture is '%.40s'; a vision file (--mmproj) is 'clip'",
                    path, arch ? arch : "(missing)");
  bool first = chi_gguf_tensor(g, "mm.0.weight") || chi_gguf_tensor(g, "mm.1.weight");
  if (!chi_streq(type, "mlp") || !first || !chi_gguf_tensor(g, "mm.2.weight"))
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s: clip.projector_type is '%.40s'; known is mlp, with tensors mm.0 and mm.2", path, type);
  return 0;
}

int chi_gguf_vision_config(json_t **out, json_t *text, const chi_gguf *g, chi_preproc *pre, chi_err *err) {
  int rc = 0;
  int64_t d = 0, ffn = 0, heads = 0, image = 0, patch = 0, blocks = stored_blocks(g);
  double eps = 1e-5;
  bool gelu = false, silu = false, clip = chi_gguf_tensor(g, "v.class_embd") != NULL;
  json_t *c = NULL, *v = NULL;
  *out = NULL;
  CHI_TRY(projector(g, err));
  CHI_TRY(number(&d, g, "embedding_length", 65536, err));
  CHI_TRY(number(&ffn, g, "feed_forward_length", 1 << 20, err));
  CHI_TRY(number(&heads, g, "attention.head_count", 1024, err));
  CHI_TRY(number(&image, g, "image_size", 4096, err));
  CHI_TRY(number(&patch, g, "patch_size", 4096, err));
  CHI_TRY(chi_gguf_f64_opt(&eps, g, "clip.vision.attention.layer_norm_epsilon", err));
  CHI_TRY(chi_gguf_bool_opt(&gelu, g, "clip.use_gelu", err));
  CHI_TRY(chi_gguf_bool_opt(&silu, g, "clip.use_silu", err));
  CHI_TRY(preprocessing(pre, g, image, err));
  if (blocks == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: tensor 'v.blk.0.ln1.weight' is missing", chi_gguf_path(g));
    goto out;
  }
  v = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:s}", "model_type",
                clip ? "clip_vision_model" : "siglip_vision_model", "hidden_size", (json_int_t)d, "intermediate_size",
                (json_int_t)ffn, "num_hidden_layers", (json_int_t)blocks, "num_attention_heads", (json_int_t)heads,
                "image_size", (json_int_t)image, "patch_size", (json_int_t)patch, "layer_norm_eps", eps, "hidden_act",
                silu   ? "silu"
                : gelu ? "gelu_pytorch_tanh"
                       : "quick_gelu");
  c = json_pack("{s:s,s:O,s:o,s:s,s:s,s:b}", "model_type", "llava", "text_config", text, "vision_config", v,
                "vision_feature_select_strategy", clip ? "default" : "full", "projector_hidden_act", "gelu",
                "multimodal_projector_bias", chi_gguf_tensor(g, "mm.2.bias") != NULL);
  if (!c) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: its keys make no config", chi_gguf_path(g));
    goto out;
  }
  CHI_TRY(features(c, g, blocks, err));
  json_t *eos = json_object_get(text, "eos_token_id");
  if (eos && json_object_set(c, "eos_token_id", eos)) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the config");
  if (rc == 0) *out = json_incref(c);
out:
  json_decref(c);
  json_decref(text);
  return rc;
}

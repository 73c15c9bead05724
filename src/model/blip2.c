/* BLIP-2 (Hugging Face Blip2ForConditionalGeneration): EVA tower, Q-Former, one linear layer, OPT or Llama decoder. The
 * tower and the Q-Former are also MiniGPT-4's. docs/models/blip2.md has the model in prose, with what is easy to get
 * wrong. */
#include <stdio.h>

#include "model/family.h"

/* A number, or a list of two equal ones. */
static int square(int64_t *out, const json_t *c, const char *key, const char *where, chi_err *err) {
  const json_t *v = json_object_get(c, key);
  if (!json_is_array(v)) return chi_json_i64_opt(out, c, key, 1, 4096, where, err);
  const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
  if (json_array_size(v) != 2 || !json_is_integer(a) || !json_equal(a, b))
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: %s is a list; only squares are implemented", where, key);
  *out = json_integer_value(a);
  return *out >= 1 && *out <= 4096 ? 0 : chi_fail(err, CHI_ERR_FORMAT, "%s: %s must be within 1..4096", where, key);
}

static int tower_config(chi_model *m, const json_t *c, const char *where, chi_err *err) {
  int rc = 0;
  const char *type = NULL;
  chi_vision *v = &m->net.vision;
  int64_t d = 1408, ffn = 6144, layers = 39, heads = 16, image = 224, patch = 14, chans = 3; /* its config class */
  double eps = 1e-6, post_eps = 0;
  CHI_TRY(chi_config_str(&type, c, "model_type", "blip_2_vision_model",
                         (const char *const[]){"blip_2_vision_model", NULL}, where, err));
  CHI_TRY(chi_config_plain(c, where, err));
  CHI_TRY(chi_json_i64_opt(&d, c, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&ffn, c, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&layers, c, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&heads, c, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(square(&image, c, "image_size", where, err));
  CHI_TRY(square(&patch, c, "patch_size", where, err));
  CHI_TRY(chi_json_i64_opt(&chans, c, "num_channels", 3, 3, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_eps", where, err));
  post_eps = eps;
  CHI_TRY(chi_json_f64_opt(&post_eps, c, "post_layernorm_eps", where, err)); /* LAVIS' own is not the blocks' */
  CHI_TRY(chi_config_want(c, "qkv_bias", true, true, where, err));
  CHI_TRY(chi_vit_shape(v, &(chi_vit_size){d, ffn, layers, heads, image, patch, eps, true}, where, err));
  CHI_TRY(chi_config_act(&v->spec.act, c, "hidden_act", "gelu", where, err));
  v->post_eps = (float)post_eps;
  m->any_size = true;
  v->n_features = 1; /* the Q-Former reads all rows of the last layer */
  v->feature[0] = (int32_t)layers;
out:
  return rc;
}

static int qformer_config(chi_model *m, const json_t *c, int64_t queries, const char *where, chi_err *err) {
  int rc = 0;
  const char *type = NULL;
  chi_qformer *q = &m->net.qformer;
  int64_t d = 768, ffn = 3072, layers = 12, heads = 12, every = 2, enc = m->net.vision.spec.d; /* BERT-base */
  double eps = 1e-12;
  CHI_TRY(chi_config_str(&type, c, "model_type", "blip_2_qformer", (const char *const[]){"blip_2_qformer", NULL}, where,
                         err));
  CHI_TRY(chi_config_plain(c, where, err));
  CHI_TRY(chi_json_i64_opt(&d, c, "hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_i64_opt(&ffn, c, "intermediate_size", 1, 1 << 20, where, err));
  CHI_TRY(chi_json_i64_opt(&layers, c, "num_hidden_layers", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&heads, c, "num_attention_heads", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&every, c, "cross_attention_frequency", 1, 1024, where, err));
  CHI_TRY(chi_json_i64_opt(&enc, c, "encoder_hidden_size", 1, 65536, where, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_eps", where, err));
  CHI_TRY(chi_config_want(c, "use_qformer_text_input", false, false, where, err));
  CHI_TRY(chi_config_str(&type, c, "position_embedding_type", "absolute", (const char *const[]){"absolute", NULL},
                         where, err));
  if (d % heads != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: hidden_size %lld is not a multiple of %lld heads", where, (long long)d,
                    (long long)heads);
  q->spec = (chi_block_spec){.layers = (int32_t)layers,
                             .d = (int32_t)d,
                             .heads = (int32_t)heads,
                             .kv_heads = (int32_t)heads,
                             .head_dim = (int32_t)(d / heads),
                             .ffn = (int32_t)ffn,
                             .norm = CHI_NORM_LAYER,
                             .eps = (float)eps,
                             .post_norm = true,
                             .cross_every = (int32_t)every,
                             .cross_d = m->net.vision.spec.d}; /* transformers ignores encoder_hidden_size, too */
  q->spec.attn_scale = (float)chi_pow64((double)(d / heads), -0.5);
  CHI_TRY(chi_config_act(&q->spec.act, c, "hidden_act", "gelu", where, err));
  q->queries = (int32_t)queries;
out:
  return rc;
}

int chi_blip2_config(chi_model *m, const json_t *config, chi_err *err) {
  int rc = 0;
  int64_t queries = 32;
  const json_t *vc = json_object_get(config, "vision_config"), *qc = json_object_get(config, "qformer_config");
  if (!json_is_object(vc) || !json_is_object(qc))
    return chi_fail(err, CHI_ERR_FORMAT, "config.json: vision_config and qformer_config must be objects");
  CHI_TRY(chi_config_plain(config, "config.json", err));
  CHI_TRY(chi_json_i64_opt(&queries, config, "num_query_tokens", 1, 4096, "config.json", err));
  CHI_TRY(tower_config(m, vc, "config.json: vision_config", err));
  CHI_TRY(qformer_config(m, qc, queries, "config.json: qformer_config", err));
out:
  return rc;
}

/* A stored [1][n][d] (or [1][1][d]) as f32. */
static int bind_rows(chi_binder *b, float **out, int64_t n, int64_t d, chi_err *err, const char *base,
                     const char *name) {
  char full[256];
  snprintf(full, sizeof full, "%s%s", base, name);
  const chi_tensor *t = chi_bind_tensor(b, full, 3, (int64_t[]){1, n, d}, err);
  if (!t) return CHI_ERR_FORMAT;
  if (b->dry) return 0;
  *out = chi_calloc((size_t)(n * d), sizeof **out, err);
  return *out ? chi_to_f32(*out, t->data, t->dtype, (size_t)(n * d), err) : CHI_ERR_MEMORY;
}

static int tower_weights(chi_model *m, chi_binder *b, const char *base, chi_err *err) {
  int rc = 0;
  chi_vision *v = &m->net.vision;
  const chi_block_spec *s = &v->spec;
  int64_t d = s->d;
  v->block = chi_calloc((size_t)s->layers, sizeof *v->block, err);
  if (!v->block) return CHI_ERR_MEMORY;
  CHI_TRY(chi_bind_linear(b, &v->patch_embed, d, 3 * (int64_t)v->patch * v->patch, true, err,
                          "%sembeddings.patch_embedding", base));
  CHI_TRY(bind_rows(b, &v->cls, 1, d, err, base, "embeddings.class_embedding"));
  CHI_TRY(bind_rows(b, &v->pos, v->rows, d, err, base, "embeddings.position_embedding"));
  for (int l = 0; l < s->layers; l++) {
    chi_block *w = &v->block[l];
    chi_linear *qkv[] = {&w->q, &w->k, &w->v};
    CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%sencoder.layers.%d.layer_norm1", base, l));
    CHI_TRY(chi_bind_norm(b, &w->norm2, d, true, err, "%sencoder.layers.%d.layer_norm2", base, l));
    for (int i = 0; i < 3; i++) /* the key part of the bias is stored, and zero */
      CHI_TRY(chi_bind_part(b, qkv[i], d, d, (chi_bind_slice){.total = 3 * d, .at = i * d}, true, err,
                            "%sencoder.layers.%d.self_attn.qkv", base, l));
    CHI_TRY(chi_bind_linear(b, &w->o, d, d, true, err, "%sencoder.layers.%d.self_attn.projection", base, l));
    CHI_TRY(chi_bind_linear(b, &w->up, s->ffn, d, true, err, "%sencoder.layers.%d.mlp.fc1", base, l));
    CHI_TRY(chi_bind_linear(b, &w->down, d, s->ffn, true, err, "%sencoder.layers.%d.mlp.fc2", base, l));
    CHI_TRY(chi_progress("loading the tower", l + 1, s->layers, err));
  }
  CHI_TRY(chi_bind_norm(b, &v->post, d, true, err, "%spost_layernorm", base));
out:
  return rc;
}

static int attention(chi_binder *b, chi_linear *q, chi_linear *k, chi_linear *v, chi_linear *o, chi_norm *after,
                     const chi_block_spec *s, int64_t from, const char *name, int l, chi_err *err) {
  int rc = 0;
  int64_t d = s->d;
  CHI_TRY(chi_bind_linear(b, q, d, d, true, err, "qformer.encoder.layer.%d.%s.attention.query", l, name));
  CHI_TRY(chi_bind_linear(b, k, d, from, true, err, "qformer.encoder.layer.%d.%s.attention.key", l, name));
  CHI_TRY(chi_bind_linear(b, v, d, from, true, err, "qformer.encoder.layer.%d.%s.attention.value", l, name));
  CHI_TRY(chi_bind_linear(b, o, d, d, true, err, "qformer.encoder.layer.%d.%s.output.dense", l, name));
  CHI_TRY(chi_bind_norm(b, after, d, true, err, "qformer.encoder.layer.%d.%s.output.LayerNorm", l, name));
out:
  return rc;
}

static int qformer_weights(chi_model *m, chi_binder *b, chi_err *err) {
  int rc = 0;
  chi_qformer *q = &m->net.qformer;
  const chi_block_spec *s = &q->spec;
  q->block = chi_calloc((size_t)s->layers, sizeof *q->block, err);
  if (!q->block) return CHI_ERR_MEMORY;
  CHI_TRY(bind_rows(b, &q->query, q->queries, s->d, err, "", "query_tokens"));
  CHI_TRY(chi_bind_norm(b, &q->embed, s->d, true, err, "qformer.layernorm"));
  for (int l = 0; l < s->layers; l++) {
    chi_block *w = &q->block[l];
    CHI_TRY(attention(b, &w->q, &w->k, &w->v, &w->o, &w->norm1, s, s->d, "attention", l, err));
    if (chi_block_has_cross(s, l))
      CHI_TRY(attention(b, &w->xq, &w->xk, &w->xv, &w->xo, &w->norm_x, s, s->cross_d, "crossattention", l, err));
    CHI_TRY(
        chi_bind_linear(b, &w->up, s->ffn, s->d, true, err, "qformer.encoder.layer.%d.intermediate_query.dense", l));
    CHI_TRY(chi_bind_linear(b, &w->down, s->d, s->ffn, true, err, "qformer.encoder.layer.%d.output_query.dense", l));
    CHI_TRY(chi_bind_norm(b, &w->norm2, s->d, true, err, "qformer.encoder.layer.%d.output_query.LayerNorm", l));
  }
out:
  return rc;
}

int chi_blip2_weights(chi_model *m, chi_binder *b, const char *projection, chi_err *err) {
  int rc = 0;
  chi_net *net = &m->net;
  chi_compute compute = net->compute;
  net->has_vision = net->has_qformer = true;
  CHI_TRY(tower_weights(m, b, "vision_model.", err));
  net->compute = CHI_COMPUTE_F32; /* transformers and LAVIS keep the Q-Former in f32 */
  rc = qformer_weights(m, b, err);
  net->compute = compute;
  CHI_TRY(rc);
  CHI_TRY(
      chi_bind_linear(b, &net->projector.l1, net->decoder.spec.d, net->qformer.spec.d, true, err, "%s", projection));
out:
  return rc;
}

int chi_family_blip2(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  const char *type = NULL, *where = "config.json: text_config";
  int64_t image_token = CHI_PICTURE_ID;
  bool tied = true;
  const json_t *text = json_object_get(config, "text_config");
  if (!json_is_object(text)) return chi_fail(err, CHI_ERR_FORMAT, "config.json: text_config must be an object");
  CHI_TRY(chi_config_str(&type, text, "model_type", "opt", (const char *const[]){"opt", NULL}, where, err));
  CHI_TRY(chi_opt_config(m, text, where, err));
  CHI_TRY(chi_blip2_config(m, config, err));
  CHI_TRY(chi_config_want(config, "use_decoder_only_language_model", true, true, "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, text, "tie_word_embeddings", where, err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_index", 0, INT32_MAX, "config.json", err));
  CHI_TRY(chi_json_i64_opt(&image_token, config, "image_token_id", 0, INT32_MAX, "config.json", err));
  CHI_TRY(chi_blip2_weights(m, b, "language_projection", err));
  CHI_TRY(chi_opt_weights(m, b, "language_model.model.decoder.", "language_model.lm_head", tied, err));
  m->image_token = (int32_t)image_token;
  m->picture_first = true;
  m->tmpl = chi_template_find("blip2");
out:
  return rc;
}

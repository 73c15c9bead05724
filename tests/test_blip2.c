/* BLIP-2 and MiniGPT-4: prompts as their own programs make them, pictures of other sizes, refused configs. States, maps
 * and plans of the Q-Former are in test_parity, test_trace and test_qformer. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"
#include "support/support.h"

static const char *const kModels[] = {"tiny-blip2", "tiny-blip2-old", "tiny-minigpt4"};

static const char *path_of(const char *model, const char *file) {
  static char buf[4][256];
  static unsigned next;
  char *p = buf[next++ % 4];
  snprintf(p, 256, "tests/fixtures/%s/%s", model, file);
  return p;
}

static void same_ids(const chi_prompt *p, const chi_st *st, const char *name, const char *model) {
  const chi_tensor *want = chi_st_find(st, name);
  assert_non_null(want);
  if (want->dim[0] != p->n_rows) fail_msg("%s: %s: %d rows, not %d", model, name, p->n_rows, (int)want->dim[0]);
  assert_memory_equal(p->tokens, want->data, want->bytes);
}

/* Stored ids were made by transformers' processor (BLIP-2) and by the published recipe (MiniGPT-4). */
static void test_prompts(void **state) {
  (void)state;
  for (size_t i = 0; i < 3; i++) {
    chi_model *m = NULL;
    chi_st *st = NULL;
    chi_prompt *p = NULL;
    bool first = i < 2;
    assert_works(chi_model_open(&m, path_of(kModels[i], ""), CHI_DTYPE_F32, err));
    assert_works(chi_st_open(&st, path_of(kModels[i], "states.safetensors"), err));
    for (int q = 0; q < 2; q++) {
      chi_prompt_opts o = {.image = path_of(kModels[i], "picture.png"),
                           .question = chi_st_meta(st, q ? "q1.prompt" : "prompt"),
                           .raw = true};
      assert_works(chi_prompt_make(&p, m, &o, err));
      same_ids(p, st, q ? "q1.input_ids" : "input_ids", kModels[i]);
      chi_prompt_free(p);
      o = (chi_prompt_opts){.image = o.image,
                            .question = chi_st_meta(st, q ? "q1.question" : "question"),
                            .tmpl = !q      ? NULL
                                    : first ? "blip2-short"
                                            : "minigpt4"};
      assert_works(chi_prompt_make(&p, m, &o, err));
      same_ids(p, st, q ? "q1.input_ids" : "input_ids", kModels[i]);
      assert_int_equal(p->n_image, m->net.qformer.queries);
      if (first) {
        assert_int_equal(p->image_row, 0);
        assert_int_equal(p->role[p->n_image], CHI_ROLE_BOS);
      } else {
        assert_true(p->image_row > 2 && p->tokens[0] != chi_token_bos(m->tok));
      }
      const chi_tensor *pixels = chi_st_find(st, "pixel_values");
      for (size_t k = 0; k < pixels->bytes / sizeof(float); k++)
        assert_true(fabsf(p->pixels[k] - ((const float *)pixels->data)[k]) < 1e-6f);
      chi_prompt_free(p);
    }
    chi_prompt_opts o = {.question = "What is [this country]?", .need_constraint = true}; /* no picture */
    assert_works(chi_prompt_make(&p, m, &o, err));
    assert_int_equal(p->tokens[0] == chi_token_bos(m->tok), first);
    assert_true(p->span_hi > p->span_lo && p->role[p->span_lo] == CHI_ROLE_CONSTRAINT);
    chi_prompt_free(p);
    o = (chi_prompt_opts){
        .image = path_of(kModels[i], "picture.png"), .question = "Here: <image> What is this?", .raw = true};
    if (first) {
      assert_fails(chi_prompt_make(&p, m, &o, err), CHI_ERR_ARG,
                   "at byte 6 of the prompt; this model takes the picture");
    } else {
      assert_works(chi_prompt_make(&p, m, &o, err));
      chi_prompt_free(p);
    }
    o.question = "<image><image>What is this?";
    assert_fails(chi_prompt_make(&p, m, &o, err), CHI_ERR_ARG, "holds 2 '<image>'");
    o.question = "What is this?";
    assert_fails(chi_prompt_make(&p, m, &o, err), CHI_ERR_ARG, "holds 0 '<image>'");
    chi_st_close(st);
    chi_model_free(m);
  }
}

/* Constraint rows are counted behind the picture, whose text has one token in the prompt and many rows. */
static void test_spans(void **state) {
  (void)state;
  for (size_t i = 0; i < 3; i++) {
    chi_model *m = NULL;
    chi_prompt *p = NULL, *r = NULL;
    assert_works(chi_model_open(&m, path_of(kModels[i], ""), CHI_DTYPE_F32, err));
    chi_prompt_opts o = {.image = path_of(kModels[i], "picture.png"),
                         .question = "What is the capital of [this country]?",
                         .need_constraint = true};
    assert_works(chi_prompt_make(&p, m, &o, err));
    char *text = NULL;
    assert_works(chi_decode(m->tok, p->tokens + p->span_lo, (size_t)(p->span_hi - p->span_lo), true, &text, err));
    assert_string_equal(text, " this country");
    chi_free(text);
    assert_works(chi_prompt_replace(&r, m, p, "the flag", err));
    assert_int_equal(r->n_rows, p->n_rows);
    for (int32_t k = 0; k < p->n_rows; k++)
      assert_int_equal(p->tokens[k] == r->tokens[k], k < p->span_lo || k >= p->span_hi);
    chi_prompt_free(p);
    chi_prompt_free(r);
    chi_model_free(m);
  }
}

/* ---- position embeddings for another grid --------------------------------------------------------------------- */
static void test_resize(void **state) {
  (void)state;
  float in[6 * 2], out[64];
  for (int i = 0; i < 12; i++) in[i] = (float)((i * 7) % 5) - 1.5f;
  chi_positions_resize(in, 3, 2, out, 3, 2, 2); /* the same grid: the values themselves */
  assert_memory_equal(in, out, sizeof in);
  for (int i = 0; i < 12; i++) in[i] = 0.75f;
  chi_positions_resize(in, 3, 2, out, 5, 4, 2); /* weights sum to one */
  for (int i = 0; i < 40; i++) assert_true(fabsf(out[i] - 0.75f) < 1e-6f);
  /* torch.nn.functional.interpolate(arange(4).view(1, 1, 1, 4), size=(1, 6), mode="bicubic") */
  static const float want[6] = {-0.0868056f, 0.40625f, 1.2129627f, 1.7870371f, 2.59375f, 3.0868058f};
  float line[4] = {0, 1, 2, 3};
  chi_positions_resize(line, 1, 4, out, 1, 6, 1);
  for (int i = 0; i < 6; i++) assert_true(fabsf(out[i] - want[i]) < 1e-6f);
}

/* ---- refusals -------------------------------------------------------------------------------------------------- */
typedef struct refusal {
  const char *model, *part, *key, *value, *words;
} refusal;

static const refusal kRefused[] = {
    {"tiny-blip2", "vision_config", "hidden_act", "\"swish\"", "config.json: vision_config: hidden_act is 'swish'"},
    {"tiny-blip2", "vision_config", "model_type", "\"clip_vision_model\"", "model_type is 'clip_vision_model'"},
    {"tiny-blip2", "vision_config", "qkv_bias", "false", "vision_config: qkv_bias is false"},
    {"tiny-blip2", "vision_config", "image_size", "[28, 14]", "image_size is a list"},
    {"tiny-blip2", "vision_config", "patch_size", "99", "patch_size 99 is larger"},
    {"tiny-blip2", "vision_config", "num_attention_heads", "5", "not a multiple of 5 heads"},
    {"tiny-blip2", "qformer_config", "position_embedding_type", "\"relative_key\"", "type is 'relative_key'"},
    {"tiny-blip2", "qformer_config", "use_qformer_text_input", "true", "use_qformer_text_input is true"},
    {"tiny-blip2", "qformer_config", "hidden_act", "\"tanh\"", "qformer_config: hidden_act is 'tanh'"},
    {"tiny-blip2", "qformer_config", "cross_attention_frequency", "0", "cross_attention_frequency"},
    {"tiny-blip2", "text_config", "model_type", "\"t5\"", "text_config: model_type is 't5'; known is opt"},
    {"tiny-blip2", "text_config", "do_layer_norm_before", "false", "do_layer_norm_before is false"},
    {"tiny-blip2", NULL, "use_decoder_only_language_model", "false", "use_decoder_only_language_model is false"},
    {"tiny-blip2", NULL, "quantization_config", "{\"bits\": 4}", "quantization_config is {\"bits\":4}"},
    {"tiny-blip2", NULL, "num_query_tokens", "0", "num_query_tokens"},
    {"tiny-blip2", NULL, "num_query_tokens", "7", "'query_tokens' has shape 1x5x28; the config asks for 1x7x28"},
    {"tiny-blip2", NULL, "qformer_config", "3", "qformer_config must be objects"},
    {"tiny-minigpt4", "text_config", "model_type", "\"opt\"", "text_config: model_type is 'opt'; known is llama"},
    {"tiny-minigpt4", NULL, "text_config", "[]", "text_config must be an object"},
};

static void test_refusals(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof kRefused / sizeof *kRefused; i++) {
    const refusal *r = &kRefused[i];
    chi_model *m = NULL;
    chi_st *st = NULL;
    json_t *config = NULL;
    chi_err e = {0};
    assert_works(chi_st_open(&st, path_of(r->model, "model.safetensors"), err));
    assert_works(chi_json_load(&config, path_of(r->model, "config.json"), 1 << 20, err));
    assert_works(chi_model_dry(&m, config, st, NULL, err)); /* it is the change that is refused */
    chi_model_free(m);
    json_t *value = json_loads(r->value, JSON_DECODE_ANY, NULL);
    json_object_set_new(r->part ? json_object_get(config, r->part) : config, r->key, value);
    if (chi_model_dry(&m, config, st, NULL, &e) == 0) fail_msg("%s %s was taken", r->key, r->value);
    if (!strstr(e.text, r->words)) fail_msg("%s %s: '%s' does not say '%s'", r->key, r->value, e.text, r->words);
    json_decref(config);
    chi_st_close(st);
  }
}

/* Every tensor of the fixtures is bound. */
static void test_all_bound(void **state) {
  (void)state;
  for (size_t i = 0; i < 3; i++) {
    chi_model *m = NULL;
    chi_st *st = NULL;
    json_t *config = NULL;
    chi_str left = {0};
    assert_works(chi_st_open(&st, path_of(kModels[i], "model.safetensors"), err));
    assert_works(chi_json_load(&config, path_of(kModels[i], "config.json"), 1 << 20, err));
    assert_works(chi_model_dry(&m, config, st, &left, err));
    if (left.len) fail_msg("%s: not bound:\n%s", kModels[i], left.s);
    chi_str_free(&left);
    chi_model_free(m);
    json_decref(config);
    chi_st_close(st);
  }
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_prompts), cmocka_unit_test(test_spans),
                                     cmocka_unit_test(test_resize), cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_all_bound)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

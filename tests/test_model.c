/* Families: what a config asks for is read or refused by key and value; every row of models.def has a fixture whose
 * prompts, pixels and answers are those of its reference; headers of real checkpoints bind with nothing left over but
 * what they list. Regenerate: python tools/ref/make_all.py */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "model/family.h"
#include "support/support.h"
#include "sweep/generate.h"

#define FIXTURES "tests/fixtures/"

/* ---- refused configs --------------------------------------------------------------------------------------------- */
typedef struct mutation {
  const char *fixture, *object, *key, *value; /* object: "" = top level; value: JSON, NULL = the key is taken away */
  const char *words;                          /* of the message */
} mutation;

static const mutation kRefused[] = {
    {"tiny-llama", "", "hidden_act", "\"swish2\"", "hidden_act is 'swish2'"},
    {"tiny-llama", "", "model_type", "\"mamba\"", "model_type is 'mamba'"},
    {"tiny-llama", "", "model_type", NULL, "model_type is '(absent)'"},
    {"tiny-llama", "", "quantization_config", "{\"quant_method\": \"gptq\"}",
     "quantization_config is {\"quant_method\":\"gptq\"}; quantised"},
    {"tiny-llama", "", "compression_config", "{}", "compression_config is {}"},
    {"tiny-llama", "", "partial_rotary_factor", "0.5", "partial_rotary_factor is 0.5"},
    {"tiny-llama", "", "rope_parameters", "{\"rope_type\": \"mrope\"}", "rope_type is 'mrope'"},
    {"tiny-llama", "", "rope_parameters", "{\"rope_type\": \"linear\"}", "rope type 'linear' needs a factor"},
    {"tiny-llama", "", "rope_parameters", "{\"rope_type\": \"llama3\", \"factor\": 8.0}", "needs low_freq_factor"},
    {"tiny-llama", "", "rope_parameters", "{\"rope_type\": \"longrope\"}", "needs short_factor"},
    {"tiny-llama", "", "rope_parameters", "{\"rope_theta\": -1.0}", "rope_theta must be above 1"},
    {"tiny-llama", "", "num_key_value_heads", "3", "4 attention heads cannot share 3"},
    {"tiny-llama", "", "num_hidden_layers", "0", "num_hidden_layers"},
    {"tiny-llama", "", "hidden_size", "\"big\"", "hidden_size"},
    {"tiny-llama", "", "hidden_size", "48", "embed_tokens.weight' has shape 400x32; the config asks for 400x48"},
    {"tiny-llama", "", "num_hidden_layers", "4", "layers.3.input_layernorm.weight' is missing"},
    {"tiny-llama", "", "attention_bias", "true", "q_proj.bias' is missing"},
    {"tiny-opt", "", "do_layer_norm_before", "false", "do_layer_norm_before is false"},
    {"tiny-opt", "", "word_embed_proj_dim", "16", "word_embed_proj_dim is 16"},
    {"tiny-opt", "", "enable_bias", "false", "enable_bias is false"},
    {"tiny-opt", "", "layer_norm_elementwise_affine", "false", "layer_norm_elementwise_affine is false"},
    {"tiny-opt", "", "_remove_final_layer_norm", "true", "_remove_final_layer_norm is true"},
    {"tiny-opt", "", "activation_function", "\"gelu_fast\"", "activation_function is 'gelu_fast'"},
    {"tiny-opt", "", "max_position_embeddings", "128",
     "embed_positions.weight' has shape 98x24; the config asks for 130x24"},
    {"tiny-phi", "", "qk_layernorm", "true", "qk_layernorm is true"},
    {"tiny-phi", "", "hidden_act", "\"mish\"", "hidden_act is 'mish'"},
    {"tiny-gpt2", "", "scale_attn_by_inverse_layer_idx", "true", "scale_attn_by_inverse_layer_idx is true"},
    {"tiny-gpt2", "", "add_cross_attention", "true", "add_cross_attention is true"},
    {"tiny-gpt2", "", "activation_function", "\"tanh\"", "activation_function is 'tanh'"},
    {"tiny-gpt2", "", "n_head", "5", "a width of 24 is not a multiple of 5 heads"},
    {"tiny-mistral", "", "layer_types", "[\"full_attention\"]", "layer_types is [\"full_attention\"]"},
    {"tiny-mistral", "", "sliding_window", "\"wide\"", "sliding_window"},
    {"tiny-qwen2", "", "layer_types", "[\"sliding_attention\"]", "layer_types[0] is 'sliding_attention'"},
    {"tiny-qwen2", "", "rope_parameters", "{\"rope_type\": \"yarn\", \"factor\": -2.0}", "'yarn' needs a factor"},
    {"tiny-mha", "text_config", "model_type", "\"gemma\"", "model_type is 'gemma'; known are llama, mistral, qwen2"},
    {"tiny-mha", "vision_config", "model_type", "\"dinov2\"", "model_type is 'dinov2'"},
    {"tiny-mha", "vision_config", "hidden_act", "\"selu\"", "vision_config: hidden_act is 'selu'"},
    {"tiny-mha", "vision_config", "quantization_config", "{}", "quantization_config is {}"},
    {"tiny-mha", "vision_config", "num_channels", "1", "num_channels"},
    {"tiny-mha", "", "vision_feature_select_strategy", "\"cls\"", "vision_feature_select_strategy is 'cls'"},
    {"tiny-mha", "", "vision_feature_layer", "-9", "vision_feature_layer must be within"},
    {"tiny-mha", "", "projector_hidden_act", "\"swiglu\"", "projector_hidden_act is 'swiglu'"},
    {"tiny-mha", "", "vision_config", NULL, "vision_config must be objects"},
    {"tiny-bunny", "", "mm_projector_type", "\"linear\"", "mm_projector_type is 'linear'"},
    {"tiny-bunny", "", "mm_projector_type", NULL, "mm_projector_type is 'linear'"},
    {"tiny-bunny", "", "image_aspect_ratio", "\"anyres\"", "image_aspect_ratio is 'anyres'"},
    {"tiny-bunny", "", "mm_vision_tower", "\"eva_clip\"", "mm_vision_tower is 'eva_clip'"},
    {"tiny-bunny", "", "use_s2", "true", "use_s2 is true"},
    {"tiny-bunny", "", "qk_layernorm", "true", "qk_layernorm is true"},
    {"tiny-liuhaotian", "", "mm_use_im_start_end", "true", "mm_use_im_start_end is true"},
    {"tiny-liuhaotian", "", "mm_resampler_type", "\"perceiver\"", "mm_resampler_type is \"perceiver\""},
    {"tiny-liuhaotian", "", "mm_patch_merge_type", "\"spatial_unpad\"", "mm_patch_merge_type is 'spatial_unpad'"},
    {"tiny-liuhaotian", "", "mm_projector_type", "\"mlp3x_gelu\"", "mm_projector_type is 'mlp3x_gelu'"},
    {"tiny-liuhaotian", "", "mm_vision_tower", "\"openai/other\"",
     "vision tower 'openai/other' is a checkpoint of its own"},
};

static json_t *config_of(const char *dir) {
  char path[512];
  json_t *c = NULL;
  snprintf(path, sizeof path, "%s/config.json", dir);
  assert_works(chi_json_load(&c, path, 1 << 20, err));
  return c;
}

static void test_refused(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof kRefused / sizeof *kRefused; i++) {
    const mutation *x = &kRefused[i];
    char dir[256];
    chi_err e = {0};
    chi_st *st = NULL;
    chi_model *m = NULL;
    snprintf(dir, sizeof dir, FIXTURES "%s", x->fixture);
    json_t *c = config_of(dir), *at = *x->object ? json_object_get(c, x->object) : c;
    assert_works(chi_st_open(&st, dir, err));
    if (x->value)
      assert_int_equal(json_object_set_new(at, x->key, json_loads(x->value, JSON_DECODE_ANY, NULL)), 0);
    else
      assert_int_equal(json_object_del(at, x->key), 0);
    if (chi_model_dry(&m, c, st, NULL, &e) == 0) fail_msg("%s: %s = %s was taken", x->fixture, x->key, x->value);
    if (!strstr(e.text, x->words)) fail_msg("%s: %s = %s: '%s'", x->fixture, x->key, x->value, e.text);
    json_decref(c);
    chi_st_close(st);
  }
}

/* ---- keys that are read and change the model ------------------------------------------------------------------- */
static chi_model *dry(const char *fixture, const char *key, const char *value) {
  char dir[256];
  chi_st *st = NULL;
  chi_model *m = NULL;
  snprintf(dir, sizeof dir, FIXTURES "%s", fixture);
  json_t *c = config_of(dir);
  assert_works(chi_st_open(&st, dir, err));
  json_object_set_new(c, key, json_loads(value, JSON_DECODE_ANY, NULL));
  assert_works(chi_model_dry(&m, c, st, NULL, err));
  json_decref(c);
  chi_st_close(st);
  return m;
}

static void test_read(void **state) {
  (void)state;
  static const char *const kDynamic = "{\"rope_type\": \"dynamic\", \"factor\": 4.0, \"rope_theta\": 500000.0}";
  chi_model *m = dry("tiny-mistral", "sliding_window", "null");
  assert_int_equal(m->net.decoder.spec.window, 0);
  chi_model_free(m);
  m = dry("tiny-mistral", "sliding_window", "7");
  assert_int_equal(m->net.decoder.spec.window, 7);
  chi_model_free(m);
  m = dry("tiny-qwen2", "use_sliding_window", "true");
  assert_int_equal(m->net.decoder.spec.window, 5);
  assert_int_equal(m->net.decoder.spec.window_from, 1);
  chi_model_free(m);
  m = dry("tiny-gpt2", "scale_attn_weights", "false");
  assert_true(m->net.decoder.spec.attn_scale == 1.0f);
  chi_model_free(m);
  m = dry("tiny-llava-mistral", "projector_hidden_act", "\"gelu\""); /* longrope: as far as its short list holds */
  assert_int_equal(m->net.shape.stack[CHI_DECODER].rows, 60);
  chi_model_free(m);
  m = dry("tiny-llama", "rope_parameters", kDynamic); /* the plain table, up to max_position_embeddings */
  chi_model *plain = dry("tiny-llama", "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 500000.0}");
  size_t n = (size_t)m->net.decoder.rope.n * (size_t)m->net.decoder.spec.rope_half;
  assert_int_equal(m->net.decoder.rope.n, plain->net.decoder.rope.n);
  assert_memory_equal(m->net.decoder.rope.sin_t, plain->net.decoder.rope.sin_t, n * sizeof(float));
  chi_model_free(plain);
  chi_model_free(m);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */
static const char *copy(const char *from, const char *to) {
  char *bytes = NULL;
  size_t n = 0;
  assert_works(chi_read_file(&bytes, &n, from, 1 << 20, err));
  const char *path = tmp_path(to);
  put_file(path, bytes, n);
  chi_free(bytes);
  return path;
}

static void test_folders(void **state) {
  (void)state;
  chi_model *m = NULL;
  const char *dir = tmp_path("pickled");
  mkdir(dir, 0700);
  copy(FIXTURES "tiny-opt/config.json", "pickled/config.json");
  put_file(tmp_path("pickled/pytorch_model.bin"), "PK", 2);
  assert_fails(chi_model_open(&m, dir, CHI_DTYPE_F32, err), CHI_ERR_UNSUPPORTED,
               "python tools/convert/bin_to_safetensors.py ");
  dir = tmp_path("towerless");
  mkdir(dir, 0700);
  copy(FIXTURES "tiny-liuhaotian/config.json", "towerless/config.json");
  copy(FIXTURES "tiny-liuhaotian/model.safetensors", "towerless/model.safetensors");
  assert_fails(chi_model_open(&m, dir, CHI_DTYPE_F32, err), CHI_ERR_IO, "put its folder beside this one");
}

/* ---- fixtures: prompts, pixels, answers -------------------------------------------------------------------------- */
static void check_prompt(const chi_model *m, const chi_st *st, const char *dir, const char *q) {
  char name[64], file[512];
  snprintf(name, sizeof name, "%sprompt", q);
  const char *text = chi_st_meta(st, name), *picture = chi_st_meta(st, "picture");
  snprintf(name, sizeof name, "%sinput_ids", q);
  const chi_tensor *ids = chi_st_find(st, name), *pix = chi_st_find(st, "pixel_values");
  snprintf(name, sizeof name, "%sgreedy", q);
  const chi_tensor *greedy = chi_st_find(st, name);
  if (!text || !ids || !greedy) return;
  chi_prompt *p = NULL;
  if (picture) snprintf(file, sizeof file, "%s/%s", dir, picture);
  chi_prompt_opts o = {.image = picture ? file : NULL, .question = text, .raw = true};
  assert_works(chi_prompt_make(&p, m, &o, err));
  assert_int_equal(p->n_rows, ids->dim[0]);
  for (int32_t i = 0; i < p->n_rows; i++)
    if (p->role[i] != CHI_ROLE_IMAGE && p->tokens[i] != ((const int32_t *)ids->data)[i])
      fail_msg("%s: %s: token %d is %d, should be %d", dir, name, i, p->tokens[i], ((const int32_t *)ids->data)[i]);
  size_t n = pix ? pix->bytes / sizeof(float) : 0;
  for (size_t i = 0; i < n; i++)
    if (fabsf(p->pixels[i] - ((const float *)pix->data)[i]) > 1e-6f)
      fail_msg("%s: pixel %zu is %g, should be %g", dir, i, (double)p->pixels[i],
               (double)((const float *)pix->data)[i]);
  int32_t got[64], n_got = 0, want = (int32_t)greedy->dim[0];
  chi_gen_stop stop;
  chi_input in = chi_prompt_input(p);
  chi_gen_opts g = {.max_new = want < 64 ? want : 64};
  assert_works(chi_generate(&m->net, &in, &g, got, &n_got, &stop, err));
  for (int32_t i = 0; i < n_got; i++)
    if (got[i] != ((const int32_t *)greedy->data)[i]) fail_msg("%s: %s: answer differs at token %d", dir, name, i);
  chi_prompt_free(p);
}

static const char *const kFamilies[] = {
#define CHI_FAMILY(sym, type, doc) #sym,
#include "model/models.def"
#undef CHI_FAMILY
};
enum { kFamilyCount = sizeof kFamilies / sizeof *kFamilies };

static void test_fixtures(void **state) {
  (void)state;
  bool seen[kFamilyCount] = {false};
  DIR *d = opendir("tests/fixtures");
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    char dir[300], path[512];
    chi_st *st = NULL;
    chi_model *m = NULL;
    snprintf(dir, sizeof dir, FIXTURES "%s", e->d_name);
    snprintf(path, sizeof path, "%s/states.safetensors", dir);
    if (strncmp(e->d_name, "tiny-", 5) != 0 || !chi_file_exists(path)) continue;
    assert_works(chi_st_open(&st, path, err));
    assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
    assert_non_null(m->tmpl);
    assert_works(chi_model_hash(m, err));
    for (size_t i = 0; i < kFamilyCount; i++) seen[i] = seen[i] || chi_streq(kFamilies[i], m->family);
    check_prompt(m, st, dir, "");
    check_prompt(m, st, dir, "q1.");
    chi_model_free(m);
    chi_st_close(st);
  }
  closedir(d);
  for (size_t i = 0; i < kFamilyCount; i++)
    if (!seen[i]) fail_msg("family %s has no fixture tests/fixtures/tiny-*", kFamilies[i]);
}

/* ---- headers of real checkpoints --------------------------------------------------------------------------------- */
/* {"name": ["F16", rows, columns]} -> tensors without data. */
static chi_st *header_of(const json_t *tensors, int64_t *elements) {
  size_t n = 0;
  const char *name;
  json_t *v;
  chi_st *st = NULL;
  chi_tensor *t = calloc(json_object_size(tensors), sizeof *t);
  *elements = 0;
  json_object_foreach((json_t *)(uintptr_t)tensors, name, v) {
    int64_t count = 1;
    t[n].name = name;
    assert_works(chi_dtype_parse(&t[n].dtype, json_string_value(json_array_get(v, 0)), err));
    t[n].ndim = (int)json_array_size(v) - 1;
    for (int i = 0; i < t[n].ndim; i++) {
      t[n].dim[i] = json_integer_value(json_array_get(v, (size_t)i + 1));
      count *= t[n].dim[i];
    }
    t[n].bytes = (size_t)count * chi_dtype_size(t[n].dtype);
    *elements += count;
    n++;
  }
  assert_works(chi_st_view(&st, t, n, NULL, 0, err));
  free(t);
  return st;
}

static void expect(const json_t *want, const char *key, int64_t got, const char *path) {
  const json_t *v = json_object_get(want, key);
  if (v && json_integer_value(v) != got)
    fail_msg("%s: %s is %lld, should be %lld", path, key, (long long)got, (long long)json_integer_value(v));
}

static void check_left(const char *left, const json_t *unused, const char *path) {
  char line[512];
  for (const char *p = left; p && *p; p = strchr(p, '\n') + 1) {
    snprintf(line, sizeof line, "%.*s", (int)strcspn(p, "\n"), p);
    bool listed = false;
    for (size_t i = 0; i < json_array_size(unused); i++)
      listed = listed || chi_glob(json_string_value(json_array_get(unused, i)), line);
    if (!listed) fail_msg("%s: tensor '%s' is not read and not on the list", path, line);
  }
}

static void check_header(const char *path) {
  json_t *j = NULL;
  chi_model *m = NULL;
  chi_str left = {0};
  int64_t elements;
  assert_works(chi_json_load(&j, path, 4 << 20, err));
  const json_t *want = json_object_get(j, "expect");
  chi_st *st = header_of(json_object_get(j, "tensors"), &elements);
  assert_works(chi_model_dry(&m, json_object_get(j, "config"), st, &left, err));
  check_left(left.s, json_object_get(j, "unused"), path);
  expect(want, "elements", elements, path);
  expect(want, "image_rows", m->net.shape.n_image_rows, path);
  expect(want, "vision_layers", m->net.vision.spec.layers, path);
  expect(want, "decoder_layers", m->net.decoder.spec.layers, path);
  expect(want, "context", m->net.shape.stack[CHI_DECODER].rows, path);
  print_message("%s: %s, %zu tensors, %.2f of %.2f billion elements are read\n", path, m->family, chi_st_count(st),
                (double)m->params / 1e9, (double)elements / 1e9);
  chi_str_free(&left);
  chi_model_free(m);
  chi_st_close(st);
  json_decref(j);
}

static void test_headers(void **state) {
  (void)state;
  int n = 0;
  DIR *d = opendir(FIXTURES "headers");
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    char path[512];
    const char *dot = strrchr(e->d_name, '.');
    if (!chi_streq(dot, ".json")) continue;
    snprintf(path, sizeof path, FIXTURES "headers/%s", e->d_name);
    check_header(path);
    n++;
  }
  closedir(d);
  assert_true(n >= 3);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_refused), cmocka_unit_test(test_read),
                                     cmocka_unit_test(test_folders), cmocka_unit_test(test_fixtures),
                                     cmocka_unit_test(test_headers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

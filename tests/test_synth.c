/* Random checkpoints of well-known shapes: what a family asks for by its config alone is what the published checkpoint
 * of that shape has (tests/fixtures/headers); a written one opens, and the same seed gives the same bytes. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/model.h"
#include "model/synth.h"
#include "support/support.h"

typedef struct seen {
  const json_t *tensors;
  int n;
} seen;

/* The older layout's name of a tensor, as the fixtures have it. */
static const json_t *stored(const json_t *tensors, const char *name) {
  static const char *const other[][2] = {{"model.language_model.", "language_model.model."},
                                         {"model.vision_tower.", "vision_tower."},
                                         {"model.multi_modal_projector.", "multi_modal_projector."},
                                         {"language_model.lm_head.", "lm_head."},
                                         {"language_model.lm_head.", "language_model.lm_head."}};
  char text[512];
  const json_t *t = json_object_get(tensors, name);
  for (size_t i = 0; !t && i < sizeof other / sizeof *other; i++)
    for (int way = 0; !t && way < 2; way++) {
      const char *from = other[i][way], *to = other[i][1 - way];
      if (strncmp(name, from, strlen(from)) != 0) continue;
      snprintf(text, sizeof text, "%s%s", to, name + strlen(from));
      t = json_object_get(tensors, text);
    }
  return t;
}

static int look(void *ud, const char *name, int ndim, const int64_t *dim, chi_err *e) {
  seen *s = ud;
  (void)e;
  const json_t *t = stored(s->tensors, name);
  if (!t) fail_msg("%s: the checkpoint has no such tensor", name);
  size_t n = json_array_size(t) - 1; /* the first is the type */
  int64_t want = 1, got = 1;
  for (size_t i = 1; i <= n; i++) want *= json_integer_value(json_array_get(t, i));
  for (int i = 0; i < ndim; i++) got *= dim[i];
  if (want != got || (n == (size_t)ndim && json_integer_value(json_array_get(t, 1)) != dim[0]))
    fail_msg("%s: another shape", name);
  s->n++;
  return 0;
}

static void test_shapes(void **state) {
  (void)state;
  static const struct {
    const char *shape, *header;
    int least;
  } pairs[] = {{"llava-1.5-7b", "llava-1.5-7b-hf", 600},
               {"llava-1.5-13b", "llava-1.5-13b-hf", 700},
               {"bunny-phi-3b", "bunny-v1_0-3b", 800},
               {"blip2-opt-2.7b", "blip2-opt-2.7b", 1000}};
  size_t n;
  const chi_synth_spec *specs = chi_synth_specs(&n);
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    char path[256];
    json_t *header = NULL, *config = NULL;
    chi_model *m = NULL;
    snprintf(path, sizeof path, "tests/fixtures/headers/%s.json", pairs[i].header);
    assert_works(chi_json_load(&header, path, 1 << 24, err));
    const chi_synth_spec *spec = NULL;
    for (size_t k = 0; k < n; k++)
      if (strcmp(specs[k].name, pairs[i].shape) == 0) spec = &specs[k];
    assert_non_null(spec);
    chi_err e = {0};
    config = chi_synth_config(spec, &e);
    assert_non_null(config);
    seen s = {.tensors = json_object_get(header, "tensors")};
    assert_works(chi_model_record(&m, config, look, &s, err));
    assert_true(s.n >= pairs[i].least);
    chi_model_free(m);
    json_decref(config);
    json_decref(header);
  }
}

static void test_written(void **state) {
  (void)state;
  static const char *const shapes[] = {"tiny-llava", "tiny-llama"};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    char hash[3][65], dir[512], file[600];
    for (int k = 0; k < 3; k++) {
      chi_model *m = NULL;
      snprintf(dir, sizeof dir, "%s-%s-%d", tmp_path("synth"), shapes[i], k);
      snprintf(file, sizeof file, "%s/model.safetensors", dir);
      unlink(file);
      assert_works(chi_synth_write(shapes[i], NULL, dir, k == 2, err));
      assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
      assert_int_equal(m->net.has_vision, i == 0);
      assert_works(chi_model_hash(m, err));
      memcpy(hash[k], m->hash, 65);
      chi_model_free(m);
      assert_fails(chi_synth_write(shapes[i], NULL, dir, 0, err), CHI_ERR_ARG, "is there already");
      unlink(file);
    }
    assert_string_equal(hash[0], hash[1]);
    assert_string_not_equal(hash[0], hash[2]);
  }
  assert_fails(chi_synth_write("llava-9", NULL, tmp_path("synth"), 0, err), CHI_ERR_ARG, "no shape 'llava-9'");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_written)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

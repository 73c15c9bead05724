/* Sentence vectors against transformers (tools/ref/encoder_ref.py), what stands in front of questions, bad folders. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "edit/edit.h"
#include "edit/ike.h"
#include "eval/mmedit.h"
#include "support/support.h"

#define FOLDER "tests/fixtures/bert-tiny"

static void compare(const char *folder, const char *file, const char *name) {
  chi_encoder *e = NULL;
  chi_st *st = NULL;
  json_t *list = NULL;
  float v[1024];
  assert_works(chi_encoder_open(&e, folder, err));
  assert_works(chi_st_open(&st, file, err));
  assert_works(chi_json_load(&list, FOLDER "/sentences.json", 1 << 20, err));
  const chi_tensor *t = chi_st_find(st, name);
  int32_t d = chi_encoder_width(e);
  assert_true(t && t->ndim == 2 && t->dim[0] == (int64_t)json_array_size(list) && t->dim[1] == d && d <= 1024);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const float *want = (const float *)t->data + (int64_t)i * d;
    assert_works(chi_encoder_embed(e, json_string_value(json_array_get(list, i)), v, err));
    double most = 0, norm = 0;
    for (int32_t k = 0; k < d; k++) {
      most = fmax(most, fabs((double)v[k] - (double)want[k]));
      norm += (double)v[k] * (double)v[k];
    }
    if (most > 1e-5 || fabs(norm - 1) > 1e-5) fail_msg("%s, sentence %zu: off by %g, norm %g", name, i, most, norm);
  }
  json_decref(list);
  chi_st_close(st);
  chi_encoder_free(e);
}

static void test_tiny(void **state) {
  (void)state;
  compare(FOLDER, FOLDER "/vectors.safetensors", "tiny");
}

/* The published model, where scripts/get_encoder.sh has put it. */
static void test_minilm(void **state) {
  (void)state;
  if (!chi_file_exists("models/cache/all-minilm-l6-v2/model.safetensors")) skip();
  compare("models/cache/all-minilm-l6-v2", FOLDER "/minilm.safetensors", "minilm");
}

static chi_demos *load_demos(const char *text, size_t limit) {
  chi_demos *d = NULL;
  const char *path = tmp_path("demos.json");
  put_file(path, text, strlen(text));
  assert_works(chi_demos_load(&d, &(chi_demos_opts){.file = path, .encoder = FOLDER, .limit = limit}, err));
  return d;
}

static const char kRecords[] =
    "[{\"src\": \"What is it?\", \"alt\": \"dog \", \"rephrase\": \"Say it\", \"image\": \"a\", \"loc\": \"nq "
    "question: who\","
    "\"loc_ans\": \"me\"}, {\"src\": \"How many?\", \"alt\": \"3\", \"rephrase\": \"\", \"image\": \"a\", \"loc\": "
    "\"x\","
    "\"loc_ans\": \"y\"}]";

/* Demonstrations by falling similarity, those of the fact itself left out; then its own copy and the header. */
static void test_prefix(void **state) {
  (void)state;
  chi_demos *d = load_demos(kRecords, 0);
  chi_str s = {0};
  float v[32], w[32];
  double score[2], at[2];
  assert_int_equal(d->n, 5);
  assert_string_equal(d->text[0], "New Fact: What is it? dog\nPrompt: What is it? dog\n\n");
  assert_string_equal(d->text[1], "New Fact: What is it? dog\nPrompt: Say it dog\n\n");
  assert_string_equal(d->text[2], "New Fact: What is it? dog\nPrompt: nq question: who me\n\n");
  assert_works(chi_demos_prefix(&s, d, 32, " What is [it]?", "dog", err));
  static const char kOwn[] =
      "New Fact: What is it? dog\nPrompt: What is it? dog\n\nNew Fact: What is it? dog\nPrompt: ";
  assert_string_equal(s.s + s.len - (sizeof kOwn - 1), kOwn);
  assert_int_equal(s.len, strlen(d->text[3]) + strlen(d->text[4]) + sizeof kOwn - 1);
  assert_works(chi_encoder_embed(d->encoder, d->text[0], v, err));
  for (int i = 0; i < 2; i++) {
    assert_works(chi_encoder_embed(d->encoder, d->text[3 + i], w, err));
    score[i] = 0;
    for (int k = 0; k < chi_encoder_width(d->encoder); k++) score[i] += (double)v[k] * (double)w[k];
    at[i] = (double)(strstr(s.s, d->text[3 + i]) - s.s);
  }
  assert_true((score[0] > score[1]) == (at[0] < at[1]));
  s.len = 0;
  assert_works(chi_demos_prefix(&s, NULL, 0, "Q?", "a", err));
  assert_string_equal(s.s, "New Fact: Q? a\nPrompt: Q? a\n\nNew Fact: Q? a\nPrompt: ");
  chi_str_free(&s);
  chi_demos_free(d);
}

/* As a delta: the prompts change, the weights do not; saved, read and undone. */
static void test_method(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_delta *delta = NULL, *back = NULL;
  chi_query *q = NULL;
  chi_prompt *before = NULL, *during = NULL;
  chi_undo undo = {0}, second = {0};
  const char *path = tmp_path("ike.delta");
  const chi_prompt_opts po = {.image = "tests/fixtures/tiny-gqa/picture.png", .question = "Where is [it]?"};
  const chi_edit_opts o = {.method = "ike", .preset = "bare", .layer_lo = -1}, full = {.method = "ike", .layer_lo = -1};
  const chi_query_opts qo = {.image = po.image, .question = "What is [it]?", .target = "a dog", .at = "last-prompt"};
  chi_edit_info info;
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-gqa", CHI_DTYPE_F32, err));
  assert_works(chi_query_make(&q, m, &qo, err));
  assert_works(chi_edit_run(&delta, &info, m, &q->req, 1, &o, err));
  assert_string_equal(
      chi_delta_prefix(delta),
      "New Fact: What is it? a dog\nPrompt: What is it? a dog\n\nNew Fact: What is it? a dog\nPrompt: ");
  assert_works(chi_delta_save(delta, path, err));
  assert_works(chi_delta_load(&back, path, err));
  assert_works(chi_prompt_make(&before, m, &po, err));
  assert_works(chi_delta_apply(back, m, &undo, err));
  assert_works(chi_prompt_make(&during, m, &po, err));
  assert_non_null(strstr(during->text, "Prompt: Where is it?"));
  assert_true(during->n_rows > before->n_rows && during->n_spans == 1);
  assert_int_equal(during->span_hi - during->span_lo, before->span_hi - before->span_lo);
  assert_int_equal(during->n_rows - during->span_lo, before->n_rows - before->span_lo);
  assert_fails(chi_delta_apply(back, m, &second, err), CHI_ERR_ARG, "two in-context edits");
  assert_fails(chi_edit_run(&delta, &info, m, &q->req, 1, &o, err), CHI_ERR_ARG, "already");
  assert_non_null(m->prompt_prefix);
  chi_delta_undo(&undo);
  assert_null(m->prompt_prefix);
  assert_fails(chi_edit_run(&delta, &info, m, &q->req, 1, &full, err), CHI_ERR_ARG, "--demos FILE and --encoder DIR");
  assert_fails(chi_export(m, &back, 1, tmp_path("out"), NULL, err), CHI_ERR_ARG, "nothing to export");
  chi_prompt_free(before);
  chi_prompt_free(during);
  chi_delta_free(delta);
  chi_delta_free(back);
  chi_query_free(q);
  chi_model_free(m);
}

static void test_refused(void **state) {
  (void)state;
  chi_encoder *e = NULL;
  chi_demos *d = NULL;
  const char *bad = tmp_path("bad.json");
  assert_fails(chi_encoder_open(&e, "tests/fixtures/none", err), CHI_ERR_IO, "config.json");
  assert_fails(chi_encoder_open(&e, "tests/fixtures/tiny-gqa", err), CHI_ERR_UNSUPPORTED, "model_type");
  put_file(bad, "[{\"a\": 1}]", 10);
  assert_fails(chi_demos_load(&d, &(chi_demos_opts){.file = bad, .encoder = FOLDER}, err), CHI_ERR_FORMAT, "bad.json");
  put_file(bad, "[{\"src\": \"\", \"alt\": \"\"}]", 24);
  assert_fails(chi_demos_load(&d, &(chi_demos_opts){.file = bad, .encoder = FOLDER}, err), CHI_ERR_FORMAT,
               "demonstrate");
  assert_null(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiny), cmocka_unit_test(test_minilm),
                                     cmocka_unit_test(test_prefix), cmocka_unit_test(test_method),
                                     cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* MMEdit's measures against PyTorch (tools/ref/mmedit_ref.py): two tiny models, E3 and E4, 56 records, two edits; and
 * what must hold exactly: no edit keeps everything. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "data/dataset.h"
#include "eval/mmedit.h"
#include "support/support.h"

#define FOLDER "tests/fixtures/mmedit"

static const float *expected(const chi_st *st, const char *name, const char *part, int64_t n) {
  char key[96];
  snprintf(key, sizeof key, "%s.%s", name, part);
  const chi_tensor *t = chi_st_find(st, key);
  if (!t || t->bytes != (size_t)n * sizeof(float)) fail_msg("expected.safetensors: %s", key);
  return t->data;
}

static void near(const char *what, size_t row, double got, double want, double slack) {
  if (!(fabs(got - want) <= slack + 2e-6)) fail_msg("%s, record %zu: %.9g, not %.9g", what, row, got, want);
}

static void same_answer(const char *what, size_t i, const chi_mm_answer *got, const float *want, double slack) {
  char text[64];
  assert_true(got->asked && got->n > 0);
  snprintf(text, sizeof text, "%.40s acc", what);
  near(text, i, got->acc, (double)want[0], slack);
  if (slack == 0) near(what, i, got->exact, (double)want[1], 0);
  near(what, i, got->nll, (double)want[2], 5e-5 * (1 + fabs((double)want[2])));
}

/* The fixed rank-one change, or the bias that the record's own target asks for. */
static chi_delta *make_edit(chi_model *m, const chi_mm_case *c, const chi_st *st, const char *model, bool fixed) {
  chi_delta *d = NULL;
  chi_request req;
  if (fixed) {
    int64_t n = m->net.decoder.spec.d, k = m->net.decoder.spec.ffn;
    assert_works(chi_delta_new(&d, "fixed", err));
    assert_works(chi_delta_add(d, CHI_DECODER, 1, CHI_W_DOWN, n, k, 1, expected(st, model, "u", n),
                               expected(st, model, "v", k), err));
    return d;
  }
  assert_works(chi_mm_request(&req, c, m, "last-prompt", err));
  const chi_edit_opts o = {.method = "bias", .layer_lo = -1};
  assert_works(chi_edit_run(&d, NULL, m, &req, 1, &o, err));
  return d;
}

static void compare_all(chi_model *m, const chi_st *st, const chi_dataset *data, const char *model,
                        chi_mm_protocol protocol, bool fixed) {
  char name[64];
  size_t n = data->n;
  snprintf(name, sizeof name, "%s.%s.%s", model, protocol == CHI_MM_E3 ? "E3" : "E4", fixed ? "fixed" : "bias");
  const float *before = expected(st, name, "before", (int64_t)n * 9),
              *after = expected(st, name, "after", (int64_t)n * 9),
              *local = expected(st, name, "local", (int64_t)n * 8),
              *slack = expected(st, name, "slack", (int64_t)n * 6), *tie = expected(st, name, "tie", (int64_t)n * 4);
  for (size_t i = 0; i < n; i++) {
    chi_mm_case *c = NULL;
    chi_undo undo = {0};
    const chi_mm_opts o = {.protocol = protocol};
    assert_works(chi_mm_case_make(&c, m, data->item[i].mmedit, &o, err));
    assert_works(chi_mm_before(c, m, err));
    chi_delta *d = make_edit(m, c, st, model, fixed);
    assert_works(chi_delta_apply(d, m, &undo, err));
    assert_works(chi_mm_after(c, m, err));
    chi_delta_undo(&undo);
    const chi_mm_result *r = chi_mm_result_of(c);
    for (int k = 0; k < CHI_MM_INPUTS; k++) {
      same_answer(name, i, &r->before[k], before + i * 9 + k * 3, (double)slack[i * 6 + (size_t)k]);
      same_answer(name, i, &r->after[k], after + i * 9 + k * 3, (double)slack[i * 6 + 3 + (size_t)k]);
    }
    for (int k = 0; k < CHI_MM_SIDES; k++) {
      const float *want = local + i * 8 + k * 4;
      const chi_mm_local *got = &r->local[k];
      near(name, i, got->same, (double)want[0], (double)tie[i * 4 + (size_t)k * 2]);
      near(name, i, got->answer, (double)want[1], (double)tie[i * 4 + (size_t)k * 2 + 1]);
      near(name, i, got->kl, (double)want[2], 1e-4 * (1 + (double)want[2]));
      near(name, i, got->kl_answer, (double)want[3], 1e-4 * (1 + (double)want[3]));
    }
    chi_delta_free(d);
    chi_mm_case_free(c);
  }
}

static chi_model *open_model(const char *name, bool plain) {
  char path[128];
  chi_model *m = NULL;
  snprintf(path, sizeof path, "tests/fixtures/%s", name);
  assert_works(chi_model_open(&m, path, CHI_DTYPE_F32, err));
  if (plain) m->plain_ids = true;
  return m;
}

static void test_pytorch(void **state) {
  static const char *const kModels[] = {"tiny-gqa", "tiny-blip2"};
  (void)state;
  chi_st *st = NULL;
  chi_dataset *d = NULL;
  assert_works(chi_st_open(&st, FOLDER "/expected.safetensors", err));
  assert_works(chi_dataset_open(&d, FOLDER "/records.json", NULL, err));
  assert_int_equal(d->n_unusable, 0);
  assert_true(d->n >= 50);
  for (size_t k = 0; k < 2; k++) {
    chi_model *m = open_model(kModels[k], true);
    for (int p = CHI_MM_E3; p <= CHI_MM_E4; p++)
      for (int fixed = 0; fixed < 2; fixed++) compare_all(m, st, d, kModels[k], (chi_mm_protocol)p, fixed);
    chi_model_free(m);
  }
  chi_dataset_close(d);
  chi_st_close(st);
}

/* No edit: every locality is 1 and every KL 0, exactly. */
static void test_nothing_moves(void **state) {
  (void)state;
  chi_dataset *d = NULL;
  assert_works(chi_dataset_open(&d, FOLDER "/records.json", &(chi_dataset_opts){.limit = 6}, err));
  for (int p = CHI_MM_E3; p <= CHI_MM_OWN; p++) {
    chi_model *m = open_model("tiny-gqa", p != CHI_MM_OWN);
    for (size_t i = 0; i < d->n; i++) {
      chi_mm_case *c = NULL;
      const chi_mm_opts o = {.protocol = (chi_mm_protocol)p, .generate = true, .short_memory = i % 2};
      assert_works(chi_mm_case_make(&c, m, d->item[i].mmedit, &o, err));
      assert_works(chi_mm_before(c, m, err));
      assert_works(chi_mm_after(c, m, err));
      const chi_mm_result *r = chi_mm_result_of(c);
      for (int k = 0; k < CHI_MM_SIDES; k++) {
        assert_true(r->local[k].same == 1 && r->local[k].answer == 1 && r->local[k].kl_answer == 0);
        if (i % 2)
          assert_true(isnan(r->local[k].kl));
        else
          assert_true(r->local[k].kl == 0);
      }
      for (int k = 0; k < CHI_MM_INPUTS; k++) {
        assert_true(r->before[k].nll == r->after[k].nll);
        assert_string_equal(r->before[k].said, r->after[k].said);
        assert_true(r->before[k].right == 0 || r->before[k].right == 1);
      }
      chi_mm_case_free(c);
    }
    chi_model_free(m);
  }
  chi_dataset_close(d);
}

/* A record without the parts that some measures need, with VLKEB's questions; and what is refused. */
static void test_parts(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-gqa", true);
  chi_mm_case *c = NULL;
  chi_mmedit_port port = {.type = "1-hop", .question = "Where is it?", .answer = "here"};
  chi_mmedit e = {.src = "Who [is] it?",
                  .alt = "Ann",
                  .pred = "",
                  .rephrase = "",
                  .image = FOLDER "/0.png",
                  .image_name = "0.png",
                  .loc = "",
                  .loc_ans = "",
                  .m_loc_q = "",
                  .m_loc_a = "",
                  .port = &port,
                  .n_port = 1};
  const chi_mm_opts o = {.protocol = CHI_MM_VLKEB};
  assert_works(chi_mm_case_make(&c, m, &e, &o, err));
  assert_works(chi_mm_before(c, m, err));
  assert_works(chi_mm_after(c, m, err));
  const chi_mm_result *r = chi_mm_result_of(c);
  assert_true(r->after[CHI_MM_EDIT].asked && !r->after[CHI_MM_REPHRASE].asked && !r->after[CHI_MM_PICTURE].asked);
  assert_true(r->port_before[0].asked && r->port_before[0].nll == r->port_after[0].nll);
  assert_false(r->local[0].asked);
  assert_true(isnan(r->local[1].same));
  chi_mm_case_free(c);
  e.image = FOLDER "/none.png";
  assert_fails(chi_mm_case_make(&c, m, &e, &o, err), CHI_ERR_IO, "image: ");
  e.image = FOLDER "/0.png";
  e.src = "What is <image>?";
  assert_fails(chi_mm_case_make(&c, m, &e, &o, err), CHI_ERR_ARG, "src: ");
  chi_str s = {0};
  for (int i = 0; i < 600; i++) chi_str_add(&s, "why ");
  e.src = s.s;
  assert_fails(chi_mm_case_make(&c, m, &e, &o, err), CHI_ERR_ARG, "context");
  chi_str_free(&s);
  chi_model_free(m);
}

static void test_says(void **state) {
  (void)state;
  assert_true(chi_answer_same(" Red.\nQuestion", "red"));
  assert_true(chi_answer_same("M\xc3\x9cNCHEN", " m\xc3\xbcnchen\n"));
  assert_true(chi_answer_same("a dog.", "A dog. "));
  assert_false(chi_answer_same("red car", "red"));
  assert_false(chi_answer_same("", "red"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_pytorch), cmocka_unit_test(test_nothing_moves),
                                     cmocka_unit_test(test_parts), cmocka_unit_test(test_says)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Greedy decoding: the ids and the text of transformers' generate() on every tests/fixtures/tiny-* checkpoint, and the
 * bits of one long prefill, with and without interventions, f32 and bf16. Regenerate: python tools/ref/make_all.py */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "model/model.h"
#include "support/support.h"
#include "sweep/generate.h"

enum { kNew = 32 };

static int32_t *ids_of(const chi_st *st, const char *name, int32_t *n) {
  const chi_tensor *t = chi_st_find(st, name);
  if (!t) return NULL;
  *n = (int32_t)t->dim[0];
  int32_t *id = calloc((size_t)*n, sizeof *id);
  for (int32_t i = 0; i < *n; i++)
    id[i] = t->dtype == CHI_I64 ? (int32_t)((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
  return id;
}

static chi_input input_of(const chi_model *m, const chi_st *st, int32_t *ids, int32_t n) {
  const chi_tensor *pix = chi_st_find(st, "pixel_values");
  chi_input in = {.tokens = ids, .n_rows = n, .pixels = pix ? pix->data : NULL, .image_row = -1};
  for (int32_t i = n - 1; i >= 0; i--)
    if (ids[i] == m->image_token) in.image_row = i;
  return in;
}

/* ---- against transformers ---------------------------------------------------------------------------------- */
static bool check_text(const chi_model *m, const chi_st *st, const char *fixture, const char *in_name,
                       const char *out_name, const char *text_key) {
  int32_t n = 0, n_want = 0, n_got = 0, got[kNew];
  int32_t *ids = ids_of(st, in_name, &n), *want = ids_of(st, out_name, &n_want);
  if (!ids || !want) return false;
  chi_gen_stop stop;
  chi_input in = input_of(m, st, ids, n);
  chi_gen_opts o = {.max_new = n_want};
  assert_in_range(n_want, 16, kNew);
  assert_works(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err));
  int32_t room = m->net.shape.stack[CHI_DECODER].rows - n + 1; /* the reference walks on past the model's positions */
  bool all = room >= n_want;
  assert_int_equal(n_got, all ? n_want : room);
  assert_true(n_got >= 16);
  assert_int_equal(stop, all ? CHI_GEN_MAX_NEW : CHI_GEN_CONTEXT);
  for (int32_t i = 0; i < n_got; i++)
    if (got[i] != want[i])
      fail_msg("%s: %s: token %d is %d, transformers has %d", fixture, out_name, i, got[i], want[i]);
  const char *want_text = chi_st_meta(st, text_key);
  char *text = NULL;
  assert_non_null(want_text);
  assert_works(chi_decode(m->tok, got, (size_t)n_got, true, &text, err));
  if (all) assert_string_equal(text, want_text);
  chi_free(text);
  free(ids);
  free(want);
  return true;
}

/* ---- against one long prefill -------------------------------------------------------------------------------- */
typedef struct log {
  float *logits;
  int64_t vocab;
  int32_t token[kNew];
  int32_t n;
} steps;

static int on_token(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  steps *s = ud;
  assert_int_equal(step, s->n);
  if (!s->logits) s->logits = calloc((size_t)(kNew * vocab), sizeof(float));
  s->vocab = vocab;
  s->token[s->n] = token;
  memcpy(s->logits + s->n * vocab, logits, (size_t)vocab * sizeof *logits);
  s->n++;
  return 0;
}

typedef struct longer {
  const steps *s;
  const char *fixture, *what;
} longer;
static int compare(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  const longer *l = ud;
  (void)capture;
  assert_int_equal(width, l->s->vocab);
  if (memcmp(v, l->s->logits + i * width, (size_t)width * sizeof *v) != 0)
    fail_msg("%s: %s: logits of step %d are not those of a longer prefill", l->fixture, l->what, i);
  return 0;
}

static void check_prefill(const chi_model *m, const chi_st *st, const char *fixture, const char *what,
                          const chi_gen_edit *edits, size_t n_edits) {
  int32_t n = 0, got[kNew], n_got = 0, rows[kNew], all[512];
  int32_t *prompt = ids_of(st, "input_ids", &n), *text = calloc((size_t)n + kNew, sizeof *text);
  steps s = {0};
  chi_input in = input_of(m, st, prompt, n);
  chi_gen_opts o = {.max_new = kNew, .on_token = on_token, .ud = &s, .edits = edits, .n_edits = n_edits};
  assert_works(chi_generate(&m->net, &in, &o, got, &n_got, NULL, err));
  assert_int_equal(n_got, kNew);
  memcpy(text, prompt, (size_t)n * sizeof *text);
  memcpy(text + n, got, kNew * sizeof *text);
  in.tokens = text;
  in.n_rows = n + kNew - 1;
  for (int32_t i = 0; i < kNew; i++) rows[i] = n - 1 + i;
  for (int ex = 0; ex < 2; ex++) {
    chi_plan *plan = NULL;
    int root = 0;
    chi_capture c = {.stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = kNew};
    longer l = {&s, fixture, what};
    chi_run_opts ro = {.executor = ex ? CHI_EXEC_DENSE : CHI_EXEC_SWEEP, .on_capture = compare, .ud = &l};
    assert_works(chi_plan_new(&plan, err));
    assert_works(chi_plan_root(plan, &in, &root, err));
    for (size_t k = 0; k < n_edits; k++) {
      chi_intervention iv = edits[k].iv;
      int32_t nr = 0;
      for (int32_t j = 0; j < iv.n_rows; j++) all[nr++] = iv.rows[j];
      for (int32_t r = n; edits[k].generated && r < in.n_rows; r++) all[nr++] = r;
      iv.rows = all;
      iv.n_rows = nr;
      assert_works(chi_plan_intervene(plan, root, &iv, edits[k].width, err));
    }
    assert_works(chi_plan_capture(plan, &c, NULL, err));
    assert_works(chi_run_plan(&m->net, plan, &ro, err));
    chi_plan_free(plan);
  }
  free(s.logits);
  free(prompt);
  free(text);
}

static void with_edits(const chi_model *m, const chi_st *st, const char *fixture) {
  int64_t d = m->net.decoder.spec.d;
  float *value = calloc((size_t)d, sizeof *value);
  for (int64_t i = 0; i < d; i++) value[i] = 0.1f * (float)(i % 7 - 3);
  const int32_t rows[] = {1, 3};
  const chi_gen_edit edits[] = {
      {.iv = {.op = CHI_OP_ADD,
              .stack = CHI_DECODER,
              .site = CHI_SITE_RESID_POST,
              .layer_lo = 0,
              .layer_hi = 1,
              .rows = rows,
              .n_rows = 2,
              .value = value,
              .value_rows = 1,
              .scale = 2},
       .width = d,
       .generated = true},
      {.iv = {.op = CHI_OP_NOISE,
              .stack = CHI_DECODER,
              .site = CHI_SITE_MLP_OUT,
              .layer_lo = 0,
              .layer_hi = 2,
              .rows = rows,
              .n_rows = 2,
              .scale = 0.5f,
              .seed = 7},
       .generated = true},
      {.iv = {.op = CHI_OP_CUT,
              .stack = CHI_DECODER,
              .site = CHI_SITE_PATTERN,
              .layer_lo = 1,
              .layer_hi = 2,
              .key_lo = 1,
              .key_hi = 4},
       .generated = true},
      {.iv = {.op = CHI_OP_ZERO,
              .stack = CHI_DECODER,
              .site = CHI_SITE_ATTN_OUT,
              .layer_lo = 0,
              .layer_hi = 1,
              .rows = rows,
              .n_rows = 1}},
  };
  check_prefill(m, st, fixture, "with edits", edits, sizeof edits / sizeof *edits);
  free(value);
}

static int each_fixture(void (*fn)(const chi_model *, const chi_st *, const char *), chi_dtype_choice dtype) {
  DIR *d = opendir("tests/fixtures");
  assert_non_null(d);
  int n = 0;
  char path[512];
  for (struct dirent *e; (e = readdir(d));) {
    if (strncmp(e->d_name, "tiny-", 5) != 0) continue;
    snprintf(path, sizeof path, "tests/fixtures/%s/states.safetensors", e->d_name);
    if (!chi_file_exists(path)) continue;
    chi_st *st = NULL;
    chi_model *m = NULL;
    assert_works(chi_st_open(&st, path, err));
    snprintf(path, sizeof path, "tests/fixtures/%s", e->d_name);
    assert_works(chi_model_open(&m, path, dtype, err));
    fn(m, st, e->d_name);
    chi_model_free(m);
    chi_st_close(st);
    n++;
  }
  closedir(d);
  return n;
}

static int second_prompts;
static void greedy_one(const chi_model *m, const chi_st *st, const char *name) {
  assert_true(check_text(m, st, name, "input_ids", "greedy", "greedy_text"));
  second_prompts += check_text(m, st, name, "q1.input_ids", "q1.greedy", "q1.greedy_text");
}
static void prefill_one(const chi_model *m, const chi_st *st, const char *name) {
  check_prefill(m, st, name, "plain", NULL, 0);
}

static void test_greedy(void **state) {
  (void)state;
  assert_true(each_fixture(greedy_one, CHI_DTYPE_F32) >= 6);
  assert_true(second_prompts >= 4);
}
static void test_prefill_f32(void **state) {
  (void)state;
  each_fixture(prefill_one, CHI_DTYPE_F32);
}
static void test_prefill_bf16(void **state) {
  (void)state;
  each_fixture(prefill_one, CHI_DTYPE_BF16);
}
static void test_edits(void **state) {
  (void)state;
  each_fixture(with_edits, CHI_DTYPE_F32);
  each_fixture(with_edits, CHI_DTYPE_BF16);
}

/* ---- how it ends ----------------------------------------------------------------------------------------------- */
static int stop_at_three(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  (void)ud, (void)token, (void)logits, (void)vocab;
  return step == 2;
}

static void test_stops(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_st *st = NULL;
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-llama", CHI_DTYPE_F32, err));
  assert_works(chi_st_open(&st, "tests/fixtures/tiny-llama/states.safetensors", err));
  int32_t n = 0, n_want = 0, n_got = 0;
  int32_t *ids = ids_of(st, "input_ids", &n), *want = ids_of(st, "greedy", &n_want);
  int32_t positions = m->net.shape.stack[CHI_DECODER].rows, *got = calloc((size_t)positions + 9, sizeof *got);
  chi_input in = input_of(m, st, ids, n);
  chi_gen_stop stop;
  chi_gen_opts o = {.max_new = kNew, .eos = &want[4], .n_eos = 1};
  int32_t first = 0;
  while (want[first] != want[4]) first++;
  assert_works(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err));
  assert_int_equal(stop, CHI_GEN_EOS);
  assert_int_equal(n_got, first + 1);
  o = (chi_gen_opts){.max_new = positions + 5};
  assert_works(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err));
  assert_int_equal(stop, CHI_GEN_CONTEXT);
  assert_int_equal(n_got, positions - n + 1); /* the token after the last position is known, but cannot be run */
  o = (chi_gen_opts){.max_new = 9, .on_token = stop_at_three};
  assert_fails(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err), CHI_ERR_CANCELLED, "after 3 tokens");
  o = (chi_gen_opts){0};
  assert_fails(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err), CHI_ERR_ARG, "at least one token");
  const chi_gen_edit copy = {.iv = {.op = CHI_OP_COPY, .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT}};
  o = (chi_gen_opts){.max_new = 1, .edits = &copy, .n_edits = 1};
  assert_fails(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err), CHI_ERR_ARG, "'copy'");
  const chi_gen_edit vision = {.iv = {.op = CHI_OP_ZERO, .stack = CHI_VISION, .site = CHI_SITE_MLP_OUT},
                               .generated = true};
  o.edits = &vision;
  assert_fails(chi_generate(&m->net, &in, &o, got, &n_got, &stop, err), CHI_ERR_ARG, "cannot act on generated rows");
  free(ids);
  free(want);
  free(got);
  chi_st_close(st);
  chi_model_free(m);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy), cmocka_unit_test(test_prefill_f32),
                                     cmocka_unit_test(test_prefill_bf16), cmocka_unit_test(test_edits),
                                     cmocka_unit_test(test_stops)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

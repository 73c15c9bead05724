/* The lens: its last column is the model's own logits bit for bit; states, and picture rows against the input
 * embeddings, are as tools/ref/attribute_ref.py has them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/attribute.h"
#include "analyze/lens.h"
#include "report/lens_report.h"
#include "support/support.h"

static const char *const kTiny[] = {"tiny-gqa", "tiny-llama", "tiny-opt", "tiny-phi", "tiny-gpt2"};
enum { kTinies = sizeof kTiny / sizeof *kTiny };

typedef struct fixture {
  const char *name;
  chi_model *m;
  chi_st *st;
  chi_prompt *p;
} fixture;

static void open_tiny(fixture *f, const char *name, chi_dtype_choice dtype) {
  char path[256];
  *f = (fixture){.name = name};
  snprintf(path, sizeof path, "tests/fixtures/attribution/%s.safetensors", name);
  assert_works(chi_st_open(&f->st, path, err));
  snprintf(path, sizeof path, "tests/fixtures/%s", name);
  assert_works(chi_model_open(&f->m, path, dtype, err));
  chi_prompt_opts o = {.image = chi_st_meta(f->st, "picture"), .question = chi_st_meta(f->st, "prompt"), .raw = true};
  assert_works(chi_prompt_make(&f->p, f->m, &o, err));
}

static void close_fixture(fixture *f) {
  chi_prompt_free(f->p);
  chi_model_free(f->m);
  chi_st_close(f->st);
}

static const chi_tensor *stored(const fixture *f, const char *name) {
  const chi_tensor *t = chi_st_find(f->st, name);
  if (!t) fail_msg("%s: no %s in the fixture", f->name, name);
  return t;
}

/* ---- logits of every cell -------------------------------------------------------------------------------- */
typedef struct kept {
  float *logits; /* [rows][columns][vocab] */
  int32_t columns, seen;
} kept;

static int keep(void *ud, int32_t row, int32_t column, const float *logits, int64_t vocab) {
  kept *k = ud;
  memcpy(k->logits + ((int64_t)row * k->columns + column) * vocab, logits, (size_t)vocab * sizeof *logits);
  k->seen++;
  return 0;
}

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)capture;
  memcpy((float *)ud + i * width, v, (size_t)width * sizeof *v);
  return 0;
}

/* The model's own logits of all rows. */
static float *own_logits(const fixture *f) {
  int root;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(f->p);
  int32_t rows[256];
  for (int32_t i = 0; i < f->p->n_rows; i++) rows[i] = i;
  float *out = chi_calloc((size_t)f->p->n_rows * (size_t)f->m->net.decoder.vocab, sizeof *out, NULL);
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = f->p->n_rows};
  assert_works(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.on_capture = take, .ud = out};
  assert_works(chi_run_plan(&f->m->net, plan, &o, err));
  chi_plan_free(plan);
  return out;
}

static void check_bits(const char *name, chi_dtype_choice dtype) {
  fixture f;
  chi_lens *l = NULL;
  open_tiny(&f, name, dtype);
  int64_t V = f.m->net.decoder.vocab, cols = f.m->net.decoder.spec.layers + 1, T = f.p->n_rows;
  kept k = {chi_calloc((size_t)(T * cols * V), sizeof(float), NULL), (int32_t)cols, 0};
  chi_lens_opts o = {.k = 5, .on_logits = keep, .ud = &k};
  assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
  assert_int_equal(k.seen, T * cols);
  assert_int_equal(l->n_rows, T);
  assert_int_equal(l->layers[0], CHI_LENS_EMBED);
  float *own = own_logits(&f);
  for (int64_t r = 0; r < T; r++)
    if (memcmp(own + r * V, k.logits + (r * cols + cols - 1) * V, (size_t)V * sizeof *own) != 0)
      fail_msg("%s: row %lld: the last layer's lens is not the logits", name, (long long)r);
  for (int64_t c = 0; c < T * cols; c++) { /* words: as the slow selection has them, as log-probabilities */
    int32_t top[5];
    const float *x = k.logits + c * V;
    chi_top_k(x, V, top, 5);
    assert_memory_equal(top, l->cell.id + c * 5, sizeof top);
    double lse = chi_logsumexp(x, V);
    for (int i = 0; i < 5; i++) assert_true(fabs((double)l->cell.score[c * 5 + i] - ((double)x[top[i]] - lse)) < 1e-5);
  }
  chi_free(own);
  chi_free(k.logits);
  chi_lens_free(l);
  close_fixture(&f);
}

static void test_last_layer(void **state) {
  (void)state;
  for (int i = 0; i < kTinies; i++) check_bits(kTiny[i], CHI_DTYPE_F32);
  check_bits("tiny-gqa", CHI_DTYPE_BF16);
  check_bits("tiny-phi", CHI_DTYPE_BF16);
}

static void test_reference(void **state) {
  (void)state;
  for (int i = 0; i < kTinies; i++) {
    fixture f;
    chi_lens *l = NULL;
    double worst = 0;
    open_tiny(&f, kTiny[i], CHI_DTYPE_F32);
    const chi_tensor *want = stored(&f, "lens"), *rows = stored(&f, "lens.rows");
    int64_t V = f.m->net.decoder.vocab, cols = want->dim[0], n = want->dim[1];
    int32_t list[8] = {0}, at[8];
    memcpy(list, rows->data, rows->bytes);
    for (int a = 0; a < n; a++) { /* ascending */
      at[a] = 0;
      for (int b = 0; b < n; b++) at[a] += ((const int32_t *)rows->data)[b] < list[a];
    }
    for (int a = 0; a < n; a++) list[at[a]] = ((const int32_t *)rows->data)[a];
    kept k = {chi_calloc((size_t)(n * cols * V), sizeof(float), NULL), (int32_t)cols, 0};
    chi_lens_opts o = {.rows = list, .n_rows = (int32_t)n, .k = 1, .on_logits = keep, .ud = &k};
    assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
    assert_int_equal(l->n_layers, cols);
    for (int64_t c = 0; c < cols; c++)
      for (int64_t a = 0; a < n; a++)
        for (int64_t t = 0; t < V; t++) {
          double d = fabs((double)k.logits[(at[a] * cols + c) * V + t] -
                          (double)((const float *)want->data)[(c * n + a) * V + t]);
          if (!(d < 1e-4))
            fail_msg("%s: column %d, row %d, token %d differs by %g", f.name, (int)c, list[a], (int)t, d);
          worst = fmax(worst, d);
        }
    print_message("%s: worst logit %.1e\n", f.name, worst);
    chi_free(k.logits);
    chi_lens_free(l);
    close_fixture(&f);
  }
}

/* ---- picture rows against the input embeddings ----------------------------------------------------------- */
static void test_embeddings(void **state) {
  (void)state;
  fixture f;
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  int64_t V = f.m->net.decoder.vocab;
  for (int view = CHI_EMBED_DOT; view <= CHI_EMBED_COSINE; view++) {
    chi_lens *l = NULL;
    int32_t word = 33, none = CHI_LENS_EMBED;
    const float *want = stored(&f, view == CHI_EMBED_DOT ? "embedding.dot" : "embedding.cosine")->data;
    chi_lens_opts o = {
        .layers = &none, .n_layers = 1, .k = 4, .embed = (chi_embed_view)view, .words = &word, .n_words = 1};
    assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
    for (int32_t r = 0; r < l->n_rows; r++) {
      int32_t patch = r - f.p->image_row;
      if (patch < 0 || patch >= f.p->n_image) {
        assert_int_equal(l->emb.id[r * 4], -1);
        continue;
      }
      const float *x = want + patch * V;
      int32_t top[4], least = 1, most = 1;
      chi_top_k(x, V, top, 4);
      for (int i = 0; i < 4; i++)
        assert_true(fabs((double)l->emb.score[r * 4 + i] - (double)x[top[i]]) <
                    1e-5 * (view == CHI_EMBED_DOT ? 10 : 1));
      for (int64_t t = 0; t < V; t++) {
        least += x[t] > x[word] + 2e-5f;
        most += t != word && x[t] > x[word] - 2e-5f;
      }
      assert_in_range(l->emb.rank[r], least, most);
      assert_true(fabs((double)l->emb.word_score[r] - (double)x[word]) < 1e-4);
    }
    chi_lens_free(l);
  }
  close_fixture(&f);
}

/* ---- words ----------------------------------------------------------------------------------------------- */
static void test_words(void **state) {
  (void)state;
  fixture f;
  chi_lens *l = NULL;
  int32_t *id = NULL, n = 0, best;
  bool part = false;
  double mrr, sum = 0;
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  assert_works(chi_lens_word(&id, &n, &part, f.m, f.p, "lang", err));
  assert_true(n == 2 && !part);
  assert_int_equal(id[0], chi_token_id(f.m->tok, "\xc4\xa0lang"));
  assert_int_equal(id[1], chi_token_id(f.m->tok, "lang"));
  int32_t layers[] = {1, 3};
  chi_lens_opts o = {.layers = layers, .n_layers = 2, .k = 3, .words = id, .n_words = n};
  assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
  chi_free(id);
  for (int32_t r = 0; r < l->n_rows; r++) {
    int32_t rank = l->cell.rank[r * 2 + 1];
    assert_true(rank >= 1 && rank <= f.m->net.decoder.vocab);
    for (int i = 0; i < 3; i++) {
      bool listed = false;
      for (int32_t w = 0; w < n; w++) listed |= l->cell.id[(r * 2 + 1) * 3 + i] == l->words[w];
      if (listed) assert_true(rank <= i + 1);
    }
    if (f.p->role[r] == CHI_ROLE_IMAGE) sum += 1.0 / rank;
  }
  assert_true(chi_lens_role(l, CHI_ROLE_IMAGE, 1, &best, &mrr));
  assert_true(fabs(mrr - sum / f.p->n_image) < 1e-12 && best >= 1);
  assert_false(chi_lens_role(l, CHI_ROLE_CONSTRAINT, 1, &best, &mrr));
  chi_lens_free(l);
  assert_works(chi_lens_word(&id, &n, &part, f.m, f.p, "Xylograph", err));
  assert_true(n == 1 && part);
  chi_free(id);
  assert_works(chi_lens_word(&id, &n, &part, f.m, f.p, "#17", err));
  assert_true(n == 1 && id[0] == 17 && !part);
  chi_free(id);
  assert_fails(chi_lens_word(&id, &n, &part, f.m, f.p, "", err), CHI_ERR_ARG, "--word: the text is empty");
  assert_fails(chi_lens_word(&id, &n, &part, f.m, f.p, "#4000", err), CHI_ERR_ARG, "outside the vocabulary");
  close_fixture(&f);
}

/* A bridging word by role and layer: what the cells say, taken together. */
static void test_bridge(void **state) {
  (void)state;
  fixture f;
  chi_lens *l = NULL;
  chi_bridge *b = NULL, *text = NULL;
  int32_t *id = NULL, n = 0, best;
  bool part = false;
  double mrr;
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  assert_works(chi_lens_word(&id, &n, &part, f.m, f.p, "lang", err));
  chi_lens_opts o = {.k = 1, .words = id, .n_words = n};
  assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
  assert_works(chi_lens_bridge(&b, f.m, f.p, "lang", NULL, 0, err));
  assert_works(chi_lens_bridge(&text, f.m, f.p, "lang", "text", 0, err));
  assert_int_equal(b->n_columns, f.m->net.decoder.spec.layers + 1);
  assert_int_equal(b->layers[0], CHI_LENS_EMBED);
  assert_int_equal(b->n_rows[CHI_ROLE_IMAGE], f.p->n_image);
  assert_int_equal(b->n_rows[CHI_ROLE_CONSTRAINT], 0);
  assert_int_equal(text->n_rows[CHI_ROLE_IMAGE], 0);
  int32_t all = 0;
  for (int role = 0; role < CHI_ROLE_COUNT; role++)
    for (int32_t c = 0; c < b->n_columns; c++) {
      if (c == 0) all += b->n_rows[role];
      if (!chi_lens_role(l, (chi_role)role, c, &best, &mrr)) continue;
      float most = -INFINITY;
      for (int32_t r = 0; r < l->n_rows; r++)
        if (f.p->role[r] == (chi_role)role) most = fmaxf(most, l->cell.word_score[r * l->n_layers + c]);
      assert_true(b->best[role][c] == best && b->mrr[role][c] == mrr && b->logp[role][c] == most);
      if (role == CHI_ROLE_TEXT) assert_true(text->best[role][c] == best && text->mrr[role][c] == mrr);
    }
  assert_int_equal(all, f.p->n_rows);
  chi_bridge_free(b);
  chi_bridge_free(text);
  chi_lens_free(l);
  chi_free(id);
  assert_works(chi_lens_bridge(&b, f.m, f.p, "Xylograph", "last", 0, err));
  assert_true(b->part && b->n_rows[CHI_ROLE_LAST] == 1);
  chi_bridge_free(b);
  assert_fails(chi_lens_bridge(&b, f.m, f.p, "lang", "constraint", 0, err), CHI_ERR_ARG, "constraint");
  close_fixture(&f);
}

static void test_refusals(void **state) {
  (void)state;
  fixture f;
  chi_lens *l = NULL;
  int32_t four = 4, row = 0, bad = 400;
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  assert_fails(chi_lens_run(&l, f.m, f.p, &(chi_lens_opts){.layers = &four, .n_layers = 1, .k = 1}, err), CHI_ERR_ARG,
               "there is no layer 4: this model has layers 0-3");
  assert_fails(chi_lens_run(&l, f.m, f.p, &(chi_lens_opts){.words = &bad, .n_words = 1, .k = 1}, err), CHI_ERR_ARG,
               "outside the vocabulary");
  assert_fails(
      chi_lens_run(&l, f.m, f.p, &(chi_lens_opts){.rows = &row, .n_rows = 1, .embed = CHI_EMBED_DOT, .k = 1}, err),
      CHI_ERR_ARG, "picture rows, and none are asked for");
  close_fixture(&f);
}

/* ---- files ----------------------------------------------------------------------------------------------- */
static void test_files(void **state) {
  (void)state;
  fixture f;
  chi_lens *l = NULL;
  char path[4096], *page = NULL;
  const char *dir = tmp_path("lens");
  size_t n = 0;
  int32_t word = 33;
  json_t *j = NULL;
  chi_str text = {0};
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  chi_lens_opts o = {.k = 3, .words = &word, .n_words = 1, .embed = CHI_EMBED_COSINE};
  chi_lens_word_name name = {"</script><script>alert(1)</script>", true};
  assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
  assert_works(chi_lens_write(l, name, NULL, dir, err));
  assert_int_equal(count_files(dir), 3);
  snprintf(path, sizeof path, "%s/lens.json", dir);
  assert_works(chi_json_load(&j, path, 1 << 24, err));
  json_t *cell = json_array_get(json_array_get(json_object_get(j, "cells"), 5), 2);
  assert_int_equal(json_array_size(cell), 6);
  assert_int_equal(json_integer_value(json_array_get(cell, 0)), l->cell.id[(5 * l->n_layers + 2) * 3]);
  assert_non_null(json_object_get(json_object_get(j, "word_by_role"), "image"));
  json_decref(j);
  snprintf(path, sizeof path, "%s/lens.html", dir);
  assert_works(chi_read_file(&page, &n, path, 1 << 24, err));
  assert_null(strstr(page, "<script>alert")); /* data cannot become markup */
  assert_non_null(strstr(page, "data:image/png;base64,"));
  for (const char *p = page; (p = strstr(p, "://")) != NULL; p++) /* nothing is loaded: one name of a namespace */
    assert_true(strncmp(p, "://www.w3.org/2000/svg'", 23) == 0);
  chi_free(page);
  assert_works(chi_lens_summary(l, name, 100, 10, &text, err));
  assert_non_null(strstr(text.s, "more rows"));
  chi_str_free(&text);
  chi_lens_free(l);
  int32_t last = f.p->n_rows - 1;
  o = (chi_lens_opts){.rows = &last, .n_rows = 1, .k = 9};
  assert_works(chi_lens_run(&l, f.m, f.p, &o, err));
  assert_works(chi_lens_summary(l, (chi_lens_word_name){0}, 100, 10, &text, err));
  assert_non_null(strstr(text.s, "input"));
  chi_str_free(&text);
  chi_lens_free(l);
  close_fixture(&f);
}

static int stop(void *ud, int32_t row, int32_t column, const float *logits, int64_t vocab) {
  (void)row, (void)column, (void)logits, (void)vocab;
  return ++*(int *)ud == 70;
}

static void test_stop(void **state) {
  (void)state;
  fixture f;
  chi_lens *l = NULL;
  int calls = 0;
  open_tiny(&f, "tiny-gqa", CHI_DTYPE_F32);
  assert_fails(chi_lens_run(&l, f.m, f.p, &(chi_lens_opts){.k = 1, .on_logits = stop, .ud = &calls}, err),
               CHI_ERR_CANCELLED, "stopped");
  assert_int_equal(calls, 70);
  close_fixture(&f);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_last_layer), cmocka_unit_test(test_reference),
                                     cmocka_unit_test(test_embeddings), cmocka_unit_test(test_words),
                                     cmocka_unit_test(test_bridge),     cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_stop),       cmocka_unit_test(test_files)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

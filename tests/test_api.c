/* The public API: its header's example is examples/hello.c, a callback gives the bits of the same intervention, misuse
 * gives one line. */
#include <chiasm.h>
#include <stdio.h>
#include <string.h>

#include "support/support.h"

static const char kFolder[] = "tests/fixtures/tiny-gqa", kImage[] = "tests/fixtures/tiny-gqa/picture.png";
static const char kQuestion[] = "What is the capital of [this country]?";

#define assert_api(call)                                  \
  do {                                                    \
    chiasm_error err = {0};                               \
    if ((call) != 0) fail_msg("%s: %s", #call, err.text); \
    assert_int_equal(err.code, 0);                        \
  } while (0)
#define assert_refuses(call, want_code, words)                                                        \
  do {                                                                                                \
    chiasm_error err = {0};                                                                           \
    assert_int_equal(call, want_code);                                                                \
    assert_int_equal(err.code, want_code);                                                            \
    if (!strstr(err.text, words)) fail_msg("%s: \"%s\" does not say \"%s\"", #call, err.text, words); \
  } while (0)

static chiasm_model *open_model(void) {
  chiasm_model *m = NULL;
  chiasm_options o = {.dtype = CHIASM_F32};
  assert_api(chiasm_open(&m, kFolder, &o, &err));
  return m;
}

/* ---- the example in the header --------------------------------------------------------------------------------- */
static void test_example(void **state) {
  (void)state;
  static char want[1 << 16], got[1 << 16], line[1024];
  FILE *f = fopen("examples/hello.c", "r"), *h = fopen("include/chiasm.h", "r");
  assert_true(f && h);
  size_t n = fread(want, 1, sizeof want - 1, f), at = 0;
  bool inside = false;
  want[n] = 0;
  while (fgets(line, sizeof line, h)) {
    if (strncmp(line, " *   // ", 8) == 0) inside = true;
    if (strcmp(line, " */\n") == 0) break;
    if (!inside) continue;
    const char *text = strncmp(line, " *   ", 5) == 0 ? line + 5 : strcmp(line, " *\n") == 0 ? "\n" : NULL;
    if (!text) fail_msg("the example in include/chiasm.h is not indented by \" *   \": %s", line);
    at += (size_t)snprintf(got + at, sizeof got - at, "%s", text);
  }
  fclose(f);
  fclose(h);
  if (strcmp(want, got) != 0) fail_msg("the example in include/chiasm.h is not examples/hello.c");
}

/* ---- bits ------------------------------------------------------------------------------------------------------ */
typedef struct seen {
  int n, branch, layers;
  int64_t columns;
} seen;
static int halve(void *ud, const chiasm_place *at, float *row, int64_t columns) {
  seen *s = ud;
  s->n++;
  s->branch = at->branch;
  s->layers |= 1 << at->layer;
  s->columns = columns;
  assert_string_equal(at->site, "mlp_out");
  assert_string_equal(at->stack, "decoder");
  for (int64_t i = 0; i < columns; i++) row[i] *= 0.5f;
  return 0;
}
static int stop(void *ud, const chiasm_place *at, float *row, int64_t columns) {
  (void)ud, (void)at, (void)row, (void)columns;
  return 1;
}

static void test_plan(void **state) {
  (void)state;
  chiasm_model *m = open_model();
  chiasm_plan *p = NULL;
  int root, hooked, scaled, copied, cap[4], pattern;
  seen s = {0};
  int64_t rows = 0, n = 0;
  chiasm_where mlp = {.site = "mlp_out", .layer_lo = 0, .layer_hi = 2, .rows = "constraint"},
               logits = {.site = "logits", .rows = "last"};
  chiasm_edit half = {.op = "scale", .scale = 0.5f}, back = {.op = "copy"};
  assert_api(chiasm_plan_new(&p, m, &err));
  assert_api(chiasm_root(p, kImage, kQuestion, &root, &err));
  assert_api(chiasm_child(p, root, &hooked, &err));
  assert_api(chiasm_child(p, root, &scaled, &err));
  assert_api(chiasm_child(p, hooked, &copied, &err));
  assert_api(chiasm_hook(p, hooked, &mlp, halve, &s, &err));
  assert_api(chiasm_intervene(p, scaled, &mlp, &half, &err));
  back.source = root;
  assert_api(chiasm_intervene(p, copied, &mlp, &back, &err));
  const int branches[] = {root, hooked, scaled, copied};
  for (int i = 0; i < 4; i++) assert_api(chiasm_capture(p, branches[i], &logits, &cap[i], &err));
  chiasm_where weights = {.site = "pattern", .layer_lo = 1, .rows = "last"};
  assert_api(chiasm_capture(p, root, &weights, &pattern, &err));
  assert_null(chiasm_values(p, cap[0], &rows, &n));
  assert_api(chiasm_run(p, &err));
  assert_int_equal(n, 0);
  const float *v[4];
  for (int i = 0; i < 4; i++) v[i] = chiasm_values(p, cap[i], &rows, &n);
  assert_int_equal(rows, 1);
  assert_int_equal(n, chiasm_vocabulary(m));
  size_t bytes = (size_t)n * sizeof(float);
  assert_memory_equal(v[1], v[2], bytes);     /* a callback does what the same intervention does */
  assert_memory_not_equal(v[0], v[1], bytes); /* which is something */
  assert_memory_equal(v[0], v[3], bytes);     /* and is undone by the clean values */
  assert_int_equal(s.layers, 3);
  assert_true(s.n >= 2 && s.columns == 32);
  const float *w = chiasm_values(p, pattern, &rows, &n);
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)w[i];
  assert_true(sum > 0.999 && sum < 1.001); /* the first head's weights */
  double total = 0;
  for (int32_t i = 0; i < chiasm_vocabulary(m); i++) total += chiasm_probability(v[0], chiasm_vocabulary(m), i);
  assert_true(total > 1 - 1e-12 && total < 1 + 1e-12);
  const char *path = tmp_path("api.safetensors");
  assert_api(chiasm_save(p, path, &err));
  chiasm_plan_free(p);
  chiasm_close(m);
}

static void test_ask(void **state) {
  (void)state;
  chiasm_model *m = open_model();
  chiasm_answer *a = NULL, *b = NULL;
  chiasm_ask_options o = {.max_new = 5};
  chiasm_plan *p = NULL;
  int root, cap;
  int64_t rows, n;
  assert_api(chiasm_ask(&a, m, kImage, kQuestion, &o, &err));
  assert_in_range(a->n, 1, 5);
  assert_non_null(a->text);
  assert_api(chiasm_plan_new(&p, m, &err));
  assert_api(chiasm_root(p, kImage, kQuestion, &root, &err));
  chiasm_where where = {.site = "logits", .rows = "last"};
  assert_api(chiasm_capture(p, root, &where, &cap, &err));
  assert_api(chiasm_run(p, &err));
  const float *v = chiasm_values(p, cap, &rows, &n);
  assert_memory_equal(v, a->logits, (size_t)n * sizeof *v);
  for (int64_t i = 0; i < n; i++) assert_true(v[i] <= v[a->tokens[0]]);
  assert_api(chiasm_ask(&b, m, NULL, "Why?", NULL, &err));
  chiasm_plan_free(p);
  chiasm_answer_free(a);
  chiasm_answer_free(b);
  chiasm_close(m);
}

static void test_file(void **state) {
  (void)state;
  static const char text[] =
      "{\"format\": \"chiasm-plan-1\", \"branches\": [{\"name\": \"clean\"}, {\"name\": \"cut\", \"parent\": "
      "\"clean\"}],"
      "\"captures\": [{\"site\": \"resid_post\", \"layers\": 0, \"rows\": \"constraint\"}]}";
  chiasm_model *m = open_model();
  chiasm_plan *p = NULL;
  int more;
  int64_t rows, n;
  const char *path = tmp_path("api-plan.json");
  put_file(path, text, sizeof text - 1);
  assert_api(chiasm_plan_load(&p, m, path, kImage, kQuestion, &err));
  assert_int_equal(chiasm_branches(p), 2);
  assert_int_equal(chiasm_captures(p), 2);
  assert_string_equal(chiasm_branch_name(p, 1), "cut");
  assert_api(chiasm_child(p, 1, &more, &err)); /* a loaded plan can grow */
  assert_null(chiasm_branch_name(p, more));
  chiasm_where where = {.site = "mlp_out", .rows = "constraint"};
  chiasm_edit zero = {.op = "zero"};
  assert_api(chiasm_intervene(p, more, &where, &zero, &err));
  assert_api(chiasm_run(p, &err));
  assert_non_null(chiasm_values(p, 1, &rows, &n));
  assert_int_equal(n, 32);
  chiasm_plan_free(p);
  chiasm_close(m);
}

static void test_misuse(void **state) {
  (void)state;
  chiasm_model *m = NULL;
  chiasm_plan *p = NULL;
  chiasm_answer *a = NULL;
  int root, cap;
  int32_t id;
  float three[3] = {0};
  assert_refuses(chiasm_open(&m, "tests/fixtures/no-such", NULL, &err), CHIASM_ERR_IO, "no-such");
  chiasm_options bad = {.isa = "pdp11"};
  assert_refuses(chiasm_open(&m, kFolder, &bad, &err), CHIASM_ERR_ARG, "pdp11");
  m = open_model();
  assert_refuses(chiasm_ask(&a, m, "tests/test_api.c", "Why?", NULL, &err), CHIASM_ERR_FORMAT, "test_api.c");
  assert_refuses(chiasm_ask(&a, m, NULL, " ", NULL, &err), CHIASM_ERR_ARG, "the question is empty");
  assert_refuses(chiasm_plan_load(&p, m, "tests/none.json", NULL, NULL, &err), CHIASM_ERR_IO, "none.json");
  assert_refuses(chiasm_token(m, "two words", &id, &err), CHIASM_ERR_ARG, "tokens, not one");
  assert_api(chiasm_token(m, "#17", &id, &err));
  assert_int_equal(id, 17);
  assert_api(chiasm_plan_new(&p, m, &err));
  assert_refuses(chiasm_run(p, &err), CHIASM_ERR_ARG, "no branches");
  assert_refuses(chiasm_child(p, 3, &root, &err), CHIASM_ERR_ARG, "no parent");
  assert_api(chiasm_root(p, kImage, "Why?", &root, &err));
  chiasm_where w = {.site = "resid_post", .rows = "constraint"};
  assert_refuses(chiasm_capture(p, root, &w, &cap, &err), CHIASM_ERR_ARG, "the question has none");
  w.rows = "last";
  w.layer_lo = 99;
  assert_api(chiasm_capture(p, root, &w, &cap, &err));
  assert_refuses(chiasm_run(p, &err), CHIASM_ERR_ARG, "layers [99, 100)");
  assert_refuses(chiasm_capture(p, 9, &w, &cap, &err), CHIASM_ERR_ARG, "no branch 9");
  w.layer_lo = 0;
  chiasm_edit set = {.op = "set", .values = three, .n_values = 3}, none = {.op = "explode"};
  assert_refuses(chiasm_intervene(p, root, &w, &set, &err), CHIASM_ERR_ARG, "3 values given; 32 are one row");
  assert_refuses(chiasm_intervene(p, root, &w, &none, &err), CHIASM_ERR_ARG, "unknown op 'explode'");
  assert_refuses(chiasm_save(p, "x", &err), CHIASM_ERR_ARG, "run the plan first");
  w.site = "nose";
  assert_refuses(chiasm_intervene(p, root, &w, &none, &err), CHIASM_ERR_ARG, "sites are");
  chiasm_plan_free(p);
  assert_api(chiasm_plan_new(&p, m, &err));
  assert_api(chiasm_root(p, kImage, "Why?", &root, &err));
  w = (chiasm_where){.site = "resid_post", .rows = "last"};
  assert_api(chiasm_hook(p, root, &w, stop, NULL, &err));
  assert_refuses(chiasm_run(p, &err), CHIASM_ERR_CANCELLED, "stopped by a callback");
  assert_int_not_equal(chiasm_run(p, NULL), 0); /* without an error object */
  chiasm_plan_free(p);
  chiasm_close(m);
  chiasm_plan_free(NULL);
  chiasm_answer_free(NULL);
  chiasm_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_example), cmocka_unit_test(test_plan),
                                     cmocka_unit_test(test_ask), cmocka_unit_test(test_file),
                                     cmocka_unit_test(test_misuse)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

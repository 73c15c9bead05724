/* Plan files: random plans written and read back give the same bits; words select the rows that they name; everything
 * that is wrong in a file is refused in one line that says where. */
#include <stdio.h>
#include <string.h>

#include "analyze/plan_json.h"
#include "analyze/trace.h"
#include "support/randplan.h"
#include "support/support.h"

static chi_model *open_model(const char *name) {
  char path[256];
  chi_model *m = NULL;
  snprintf(path, sizeof path, "tests/fixtures/%s", name);
  assert_works(chi_model_open(&m, path, CHI_DTYPE_F32, err));
  return m;
}

static const char kPicture[] = "tests/fixtures/tiny-gqa/picture.png", kDonor[] = "tests/fixtures/tiny-gqa/donor.png";

static chi_prompt *make_prompt(const chi_model *m) {
  chi_prompt *p = NULL;
  chi_prompt_opts o = {.image = kPicture, .question = "What is the capital of [this country]?"};
  assert_works(chi_prompt_make(&p, m, &o, err));
  return p;
}

/* ---- there and back -------------------------------------------------------------------------------------------- */
static void round_trip(const chi_model *m, uint64_t seed, bool vision) {
  randnet n = {.net = m->net}; /* random plans over a real model */
  randplan rp;
  randplan_opts ro = {
      .seed = seed, .no_calls = true, .max_branches = 7, .min_rows = vision ? 20 : 0, .max_rows = vision ? 60 : 0};
  size_t floats = vision ? 3 * (size_t)m->net.vision.image_h * (size_t)m->net.vision.image_w : 0;
  for (int i = 0; vision && i < RANDNET_PICTURES; i++) {
    rnd r = {seed + (uint64_t)i};
    n.pixels[i] = calloc(floats, sizeof(float));
    for (size_t k = 0; k < floats; k++) n.pixels[i][k] = rnd_normal(&r);
  }
  randplan_make(&rp, &n, &ro, NULL);
  chi_plan_save_opts so = {.report_row = -1, .target = -1};
  const char *path = tmp_path("plan.json");
  assert_works(chi_plan_save(rp.plan, &m->net, &so, path, err));
  chi_plan_file *f = NULL;
  chi_plan_context c = {.model = m};
  assert_works(chi_plan_load(&f, path, &c, err));
  assert_int_equal(f->plan->n_branches, rp.plan->n_branches);
  assert_int_equal(f->plan->n_captures, rp.plan->n_captures);
  results a = {0}, b = {0};
  chi_run_opts o = {0};
  chi_err ea = {0}, eb = {0};
  int ra = results_run(&a, &m->net, rp.plan, &o, &ea), rb = results_run(&b, &m->net, f->plan, &o, &eb);
  assert_int_equal(ra, rb);
  if (ra == 0) {
    const char *differ = results_differ(&a, &b);
    if (differ) fail_msg("seed %llu: %s", (unsigned long long)seed, differ);
  }
  results_free(&a);
  results_free(&b);
  chi_plan_file_free(f);
  randplan_free(&rp);
  for (int i = 0; i < RANDNET_PICTURES; i++) free(n.pixels[i]);
}

static void test_round_trip(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-llama");
  for (uint64_t seed = 1; seed <= 30; seed++) round_trip(m, seed, false);
  chi_model_free(m);
  m = open_model("tiny-gqa");
  for (uint64_t seed = 1; seed <= 30; seed++) round_trip(m, seed, true);
  chi_model_free(m);
}

/* A whole causal map, with noise arrays and a donor's picture, survives its file. */
static void test_trace(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-gqa");
  chi_prompt *p = make_prompt(m);
  chi_trace *t = NULL;
  chi_plan *plan = NULL;
  chi_plan_file *f = NULL;
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  o.window = 1;
  o.corrupt.spec = "noise:3s,samples=2,seed=4";
  o.donor = kDonor;
  assert_works(chi_trace_run(&t, m, p, &o, err));
  assert_works(chi_trace_plan(&plan, t, err));
  const chi_plan_picture pic = {.pixels = p->pixels, .file = kPicture};
  chi_plan_save_opts so = {.pictures = &pic, .n_pictures = 1, .report_row = p->n_rows - 1, .target = t->target};
  const char *path = tmp_path("trace.json");
  assert_works(chi_plan_save(plan, &m->net, &so, path, err));
  chi_plan_context c = {.model = m};
  assert_works(chi_plan_load(&f, path, &c, err));
  assert_int_equal(f->target, t->target);
  assert_int_equal(f->entry[0].report_row, p->n_rows - 1);
  results a = {0}, b = {0};
  chi_run_opts ro = {0};
  assert_works(results_run(&a, &m->net, plan, &ro, err));
  assert_works(results_run(&b, &m->net, f->plan, &ro, err));
  assert_null(results_differ(&a, &b));
  assert_true(a.n > 50);
  results_free(&a);
  results_free(&b);
  chi_plan_file_free(f);
  chi_plan_free(plan);
  chi_trace_free(t);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* ---- what words mean ------------------------------------------------------------------------------------------- */
static int load_text(chi_plan_file **f, const chi_model *m, const chi_prompt *p, const char *text, chi_err *err) {
  const char *path = tmp_path("words.json");
  put_file(path, text, strlen(text));
  chi_plan_context c = {.model = m, .prompt = p, .image = kPicture};
  return chi_plan_load(f, path, &c, err);
}

#define HEAD "{\"format\": \"chiasm-plan-1\", \"branches\": [{\"name\": \"a\"}, "

static void test_words(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-gqa");
  chi_prompt *p = make_prompt(m);
  chi_plan_file *f = NULL;
  assert_true(p->span_hi > p->span_lo);
  assert_works(load_text(
      &f, m, p,
      HEAD
      "{\"name\": \"b\", \"parent\": \"a\", \"generate\": 3, \"interventions\": ["
      "{\"op\": \"zero\", \"site\": \"mlp_out\", \"layers\": \"all\", \"rows\": \"constraint\"},"
      "{\"op\": \"scale\", \"scale\": 2, \"site\": \"attn_out\", \"layers\": 1, \"rows\": \"image\"},"
      "{\"op\": \"scale\", \"scale\": 0.5, \"site\": \"attn_out\", \"layers\": [0, 2], \"rows\": \"last\", "
      "\"generated\": true},"
      "{\"op\": \"zero\", \"site\": \"attn_out\", \"layers\": [0, 2], \"rows\": {\"from\": 2, \"to\": 4}, \"cols\": "
      "[1, 5]},"
      "{\"op\": \"zero\", \"site\": \"head_out\", \"layers\": [0, 2], \"rows\": \"generated\", \"heads\": [1, 2]},"
      "{\"op\": \"set\", \"site\": \"mlp_out\", \"stack\": \"projector\", \"rows\": [0, 2], \"cols\": [0, 2], "
      "\"value\": [[1, 2], [3, 4.5]]}"
      "]}, {\"name\": \"c\", \"image\": null, \"question\": \"Why?\"}],"
      "\"captures\": [{\"branch\": [\"a\", \"b\"], \"site\": \"q\", \"layers\": \"all\", \"rows\": \"last\"}],"
      "\"report\": {\"branches\": \"b\", \"row\": 3, \"top\": 2, \"target\": \"#7\"}}",
      err));
  const chi_plan *plan = f->plan;
  const chi_intervention *iv = plan->branch[1].iv;
  assert_int_equal(plan->n_branches, 3);
  assert_int_equal(plan->branch[1].count, 5); /* the one on generated rows only is no part of the plan */
  assert_int_equal(iv[0].n_rows, p->span_hi - p->span_lo);
  assert_int_equal(iv[0].rows[0], p->span_lo);
  assert_int_equal(iv[0].layer_hi, m->net.decoder.spec.layers);
  assert_int_equal(iv[1].rows[0], p->image_row);
  assert_int_equal(iv[1].n_rows, m->net.shape.n_image_rows);
  assert_int_equal(iv[1].layer_lo, 1);
  assert_int_equal(iv[1].layer_hi, 2);
  assert_int_equal(iv[2].rows[0], p->n_rows - 1);
  assert_int_equal(iv[3].rows[1], 3);
  assert_int_equal(iv[3].part_lo, 1);
  assert_int_equal(iv[3].part_hi, 5);
  assert_int_equal(iv[4].value_rows, 2);
  assert_true(iv[4].value[3] == 4.5f);
  assert_int_equal(f->entry[1].generate, 3);
  assert_int_equal(f->entry[1].n_edits, 6);
  assert_true(f->entry[1].edits[2].generated && f->entry[1].edits[4].generated && !f->entry[1].edits[3].generated);
  assert_null(plan->branch[2].input.pixels);
  assert_int_equal(plan->n_captures, 2 * m->net.decoder.spec.layers);
  assert_true(f->entry[1].report && !f->entry[0].report && f->entry[1].report_row == 3);
  assert_int_equal(f->top, 2);
  assert_int_equal(f->target, 7);
  chi_plan_file_free(f);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* Another picture keeps tokens and roles; pixels from a file are taken as they are. */
static void test_pictures(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-gqa");
  chi_prompt *p = make_prompt(m);
  chi_plan_file *f = NULL;
  char text[1024], donor[512];
  assert_non_null(realpath(kDonor, donor));
  snprintf(text, sizeof text,
           HEAD
           "{\"name\": \"d\", \"image\": \"%s\", \"interventions\": [{\"op\": \"zero\", \"site\": \"mlp_out\", "
           "\"layers\": 0, \"rows\": \"constraint\"}]}]}",
           donor);
  assert_works(load_text(&f, m, p, text, err));
  const chi_input *a = &f->plan->branch[0].input, *d = &f->plan->branch[1].input;
  assert_int_equal(a->n_rows, d->n_rows);
  assert_memory_equal(a->tokens, d->tokens, (size_t)a->n_rows * sizeof *a->tokens);
  assert_memory_not_equal(a->pixels, d->pixels,
                          3 * (size_t)m->net.vision.image_h * (size_t)m->net.vision.image_w * sizeof(float));
  assert_int_equal(f->plan->branch[1].iv[0].rows[0], p->span_lo);
  chi_plan_file_free(f);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* ---- what is wrong --------------------------------------------------------------------------------------------- */
#define IV(x) HEAD "{\"name\": \"b\", \"parent\": \"a\", \"interventions\": [" x "]}]}"
static const struct {
  const char *text, *words;
} kBad[] = {
    {"[]", "plan: must be an object"},
    {"{}", "'format' must be"},
    {"{\"format\": \"chiasm-plan-2\"}", "'format' must be"},
    {"{\"format\": \"chiasm-plan-1\", \"branches\": []}", "at least one branch"},
    {"{\"format\": \"chiasm-plan-1\", \"branches\": [{\"name\": \"a\"}], \"extra\": 1}", "plan: unknown key 'extra'"},
    {"{\"format\": \"chiasm-plan-1\", \"branches\": [{\"name\": \"a\"}], \"format\": 1}", "duplicate"},
    {"{\"format\": \"chiasm-plan-1\", \"branches\": [7]}", "branches[0]: must be an object"},
    {"{\"format\": \"chiasm-plan-1\", \"branches\": [{}]}", "branches[0]: 'name' is missing"},
    {HEAD "{\"name\": \"a\"}]}", "branches[1]: branch 0 has the name 'a' already"},
    {HEAD "{\"name\": \"b\", \"parent\": \"c\"}, {\"name\": \"c\", \"parent\": \"b\"}]}",
     "branches[1]: no branch before this one is called 'c'"},
    {HEAD "{\"name\": \"b\", \"parent\": \"b\"}]}", "branches[1]: no branch before this one"},
    {HEAD "{\"name\": \"b\", \"parent\": \"a\", \"image\": \"x.png\"}]}", "branches[1]: unknown key 'image'"},
    {HEAD "{\"name\": \"b\", \"image\": \"missing.png\"}]}", "missing.png"},
    {HEAD "{\"name\": \"b\", \"question\": \"\"}]}", "branches[1]: the question is empty"},
    {HEAD "{\"name\": \"b\", \"tokens\": [1, 99999]}]}", "branches[1]: token ids"},
    {HEAD "{\"name\": \"b\", \"tokens\": []}]}", "branches[1]: 'tokens'"},
    {HEAD "{\"name\": \"b\", \"parent\": \"a\", \"generate\": 0}]}", "branches[1]: 'generate'"},
    {IV("3"), "branches[1].interventions[0]: must be an object"},
    {IV("{}"), "'op' must be"},
    {IV("{\"op\": \"explode\"}"), "not 'explode'"},
    {IV("{\"op\": \"call\"}"), "not 'call'"},
    {IV("{\"op\": \"zero\", \"sight\": 1}"), "unknown key 'sight'; known are: op stack site"},
    {IV("{\"op\": \"zero\", \"value\": [1]}"), "unknown key 'value'"},
    {IV("{\"op\": \"copy\", \"site\": \"q\", \"layers\": 1, \"rows\": 0, \"source\": \"a\", \"source_layer\": 0}"),
     "a copy takes the same site and layer"},
    {IV("{\"op\": \"zero\"}"), "'site' is missing"},
    {IV("{\"op\": \"zero\", \"site\": \"nose\"}"), "unknown site 'nose'; sites are:"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"stack\": \"qformer\"}"), "no site qformer.q"},
    {IV("{\"op\": \"zero\", \"site\": \"q\"}"), "'layers' is missing"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 99, \"rows\": 0}"), "layer 99 is not within"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": [1, 1], \"rows\": 0}"), "'layers' must be [first, end]"},
    {IV("{\"op\": \"zero\", \"site\": \"embed\", \"layers\": 0, \"rows\": 0}"), "not per layer"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0}"), "'rows' is missing"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": []}"), "'rows' is empty"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": [-1]}"), "rows are whole numbers from 0"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": [3, 2]}"), "must ascend"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": {\"from\": 3, \"to\": 3}}"), "'to' must be"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": \"first\"}"), "not \"first\""},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": 0, \"heads\": [0, 99]}"),
     "'heads' must be [first, end]"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": 0, \"cols\": [0, 1]}"), "parted by 'heads'"},
    {IV("{\"op\": \"zero\", \"site\": \"q\", \"layers\": 0, \"rows\": \"generated\"}"), "generates nothing"},
    {IV("{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0}"), "'set' needs 'value'"},
    {IV("{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"value\": [1, 2, 3]}"),
     "'value' holds 3 numbers; 32 are one row"},
    {IV("{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"cols\": [0, 1], \"value\": [1e39]}"),
     "outside the range"},
    {IV("{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"cols\": [0, 1], \"value\": [\"x\"]}"),
     "'value' is a list of numbers"},
    {IV("{\"op\": \"add\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"value\": {\"file\": "
        "\"none.safetensors\", \"tensor\": \"x\"}}"),
     "none.safetensors"},
    {IV("{\"op\": \"scale\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0}"), "'scale' needs 'scale'"},
    {IV("{\"op\": \"noise\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"scale\": 1, \"seed\": -1}"),
     "'seed' must be"},
    {IV("{\"op\": \"cut\", \"site\": \"pattern\", \"layers\": 0, \"rows\": 3}"), "'cut' needs 'keys'"},
    {IV("{\"op\": \"cut\", \"site\": \"pattern\", \"layers\": 0, \"rows\": 3, \"keys\": \"generated\"}"),
     "do not stand together"},
    {IV("{\"op\": \"cut\", \"site\": \"q\", \"layers\": 0, \"rows\": 3, \"keys\": [0, 1]}"), "acts on pattern"},
    {IV("{\"op\": \"token\", \"site\": \"embed\", \"rows\": [3, 4], \"tokens\": [1]}"), "makes 1 tokens for 2 rows"},
    {IV("{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 3}"), "'copy' needs 'source'"},
    {IV("{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 3, \"source\": \"z\"}"),
     "no branch is called 'z'"},
    {IV("{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 3, \"source\": \"a\", \"source_rows\": [1, 2]}"),
     "'source_rows' names 2 rows for 1"},
    {IV("{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 3, \"source\": \"b\"}"), "cycle"},
    {HEAD "{\"name\": \"b\", \"parent\": \"a\", \"interventions\": [{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, "
          "\"rows\": 3, \"source\": \"c\"}]},"
          "{\"name\": \"c\", \"parent\": \"a\", \"interventions\": [{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, "
          "\"rows\": 3, \"source\": \"b\"}]}]}",
     "cycle"},
    {HEAD "{\"name\": \"b\", \"parent\": \"a\", \"generate\": 2, \"interventions\": [{\"op\": \"copy\", \"site\": "
          "\"q\", \"layers\": 0, \"rows\": 3, \"source\": \"a\"}]}]}",
     "'generate' does not go with 'copy'"},
    {HEAD "{\"name\": \"b\"}], \"captures\": [{\"branch\": \"z\", \"site\": \"q\", \"layers\": 0, \"rows\": 0}]}",
     "captures[0]: no branch is called 'z'"},
    {HEAD "{\"name\": \"b\"}], \"captures\": [{\"site\": \"q\", \"layers\": 0, \"rows\": \"generated\"}]}",
     "captures[0]: generated rows"},
    {HEAD "{\"name\": \"b\"}], \"report\": {\"target\": \"two words\"}}", "report: 'two words' is"},
    {HEAD "{\"name\": \"b\"}], \"report\": {\"tops\": 1}}", "report: unknown key 'tops'"},
};

static void test_refusals(void **state) {
  (void)state;
  chi_model *m = open_model("tiny-gqa");
  chi_prompt *p = make_prompt(m);
  for (size_t i = 0; i < sizeof kBad / sizeof *kBad; i++) {
    chi_plan_file *f = NULL;
    chi_err err = {0};
    int rc = load_text(&f, m, p, kBad[i].text, &err);
    if (rc == 0) fail_msg("accepted: %s", kBad[i].text);
    if (!strstr(err.text, kBad[i].words))
      fail_msg("%s\n  gives: %s\n  wanted: %s", kBad[i].text, err.text, kBad[i].words);
    if (!strstr(err.text, "words.json") || strchr(err.text, '\n'))
      fail_msg("names no file, or is not one line: %s", err.text);
  }
  chi_plan_file *f = NULL;
  assert_fails(load_text(&f, m, NULL, "{\"format\": \"chiasm-plan-1\", \"branches\": [{\"name\": \"a\"}]}", err),
               CHI_ERR_ARG, "the root has no input");
  chi_prompt_free(p);
  chi_model_free(m);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_trace),
                                     cmocka_unit_test(test_words), cmocka_unit_test(test_pictures),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

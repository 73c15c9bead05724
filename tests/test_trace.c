/* Causal maps against maps made by forward hooks in PyTorch (tools/ref/trace_ref.py: one whole forward a cell), every
 * cell within 1e-5; and planted models whose map is known. Regenerate: python tools/ref/make_all.py and
 * python tools/ref/make_demo_maps.py (after the demo model changed) */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/select.h"
#include "analyze/trace.h"
#include "support/support.h"

typedef struct fixture {
  chi_model *m;
  chi_st *st;
  chi_prompt *p;
  char maps[512], picture[1024], donor[1024];
} fixture;

/* "… this country …" -> "… [this country] …" */
static void bracket(char *out, size_t cap, const char *prompt, const char *words) {
  const char *at = strstr(prompt, words);
  assert_non_null(at);
  snprintf(out, cap, "%.*s[%s]%s", (int)(at - prompt), prompt, words, at + strlen(words));
}

/* A stored picture is named relative to its fixture, or to the repository. */
static const char *picture_path(char *buf, size_t cap, const char *dir, const char *name) {
  if (!name) return NULL;
  if (strchr(name, '/'))
    snprintf(buf, cap, "%s", name);
  else
    snprintf(buf, cap, "%s/%s", dir, name);
  return buf;
}

static void open_fixture(fixture *f, const char *model, const char *maps) {
  char text[1024], dir[256];
  memset(f, 0, sizeof *f);
  snprintf(f->maps, sizeof f->maps, "%s", maps);
  snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(maps, '/') - maps), maps);
  assert_works(chi_st_open(&f->st, maps, err));
  assert_works(chi_model_open(&f->m, model, CHI_DTYPE_F32, err));
  bracket(text, sizeof text, chi_st_meta(f->st, "prompt"), chi_st_meta(f->st, "constraint"));
  chi_prompt_opts o = {.image = picture_path(f->picture, sizeof f->picture, dir, chi_st_meta(f->st, "picture")),
                       .question = text,
                       .raw = true,
                       .need_constraint = true};
  picture_path(f->donor, sizeof f->donor, dir, chi_st_meta(f->st, "donor"));
  assert_works(chi_prompt_make(&f->p, f->m, &o, err));
}

static void close_fixture(fixture *f) {
  chi_prompt_free(f->p);
  chi_model_free(f->m);
  chi_st_close(f->st);
}

static float scalar(const fixture *f, const char *name) {
  const chi_tensor *t = chi_st_find(f->st, name);
  assert_non_null(t);
  return *(const float *)t->data;
}

static double compare(const fixture *f, const chi_trace *t, int source, int site, const char *name) {
  const chi_tensor *want = chi_st_find(f->st, name);
  if (!want) return -1;
  assert_int_equal(want->dim[0], t->n_layers);
  assert_int_equal(want->dim[1], t->n_rows);
  double worst = 0;
  for (int l = 0; l < t->n_layers; l++)
    for (int r = 0; r < t->n_rows; r++) {
      double d = fabs(chi_trace_at(t, source, site, l, r)->p - (double)((const float *)want->data)[l * t->n_rows + r]);
      if (!(d <= 1e-5)) fail_msg("%s: %s: layer %d row %d: p differs by %g", f->maps, name, l, t->rows[r], d);
      if (d > worst) worst = d;
    }
  return worst;
}

/* Own and donor maps of one setting against `prefix`.<site>.<window name>. Returns the number of maps compared. */
static int check_maps(fixture *f, const char *prefix, const char *donor_prefix, chi_trace_opts o, const char *window,
                      double *worst) {
  int n = 0;
  char name[128];
  chi_trace *t = NULL;
  o.donor = donor_prefix ? f->donor : NULL;
  o.check = 4;
  assert_works(chi_trace_run(&t, f->m, f->p, &o, err));
  assert_int_equal(t->checked, t->identical);
  assert_int_equal(t->checked, 4);
  if (strncmp(prefix, "noise", 5) != 0) {
    assert_true(fabs(t->clean.p - (double)scalar(f, "p_clean")) <= 1e-5);
    assert_true(fabs(t->corrupt.p - (double)scalar(f, "p_corr")) <= 1e-5);
    const chi_tensor *ids = chi_st_find(f->st, "replacement_ids");
    assert_memory_equal(ids->data, t->corruption.tokens, ids->bytes);
  }
  assert_int_equal(*(const int32_t *)chi_st_find(f->st, "target")->data, t->target);
  for (int src = 0; src < 2; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      if (!t->cell[src][s] || (src && !donor_prefix)) continue;
      snprintf(name, sizeof name, "%s.%s.%s", src ? donor_prefix : prefix, chi_trace_site_name[s],
               s == CHI_TRACE_HIDDEN ? "w1" : window);
      double d = compare(f, t, src, s, name);
      if (d > *worst) *worst = d;
      n += d >= 0;
    }
  chi_trace_free(t);
  return n;
}

static void all_maps(const char *model, const char *maps, int expect) {
  fixture f;
  open_fixture(&f, model, maps);
  double worst = 0;
  int n = 0;
  char words[256];
  snprintf(words, sizeof words, "words:%s", chi_st_meta(f.st, "replace"));
  bool noise = chi_st_find(f.st, "noise") != NULL, donor = f.donor[0] && chi_st_find(f.st, "donor.mlp.w1");
  for (int k = 0; k < 3; k++) {
    static const char *const kWindow[] = {"w1", "w3.rome", "w3.released"};
    chi_trace_opts o = CHI_TRACE_OPTS_INIT;
    o.window = k ? 3 : 1;
    o.released_window = k == 2;
    o.corrupt.spec = words;
    n += check_maps(&f, "sub", donor && k == 0 ? "donor" : NULL, o, kWindow[k], &worst);
    if (k == 0 && chi_st_find(f.st, "noising.mlp.w1")) {
      o.noise_direction = true;
      n += check_maps(&f, "noising", NULL, o, kWindow[k], &worst);
      o.noise_direction = false;
    }
    if (!noise) continue;
    o.corrupt = (chi_corrupt_opts){.spec = "noise", .noise_file = maps};
    n += check_maps(&f, "noise", NULL, o, kWindow[k], &worst);
  }
  print_message("%s: %d maps, worst cell %.1e\n", maps, n, worst);
  assert_true(n >= expect);
  close_fixture(&f);
}

static void test_fixture_maps(void **state) {
  (void)state;
  all_maps("tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/maps.safetensors", 20);
  all_maps("tests/fixtures/tiny-blip2", "tests/fixtures/tiny-blip2/maps.safetensors", 20);
}

static void test_family_maps(void **state) { /* one checkpoint of every other family: tools/ref/tiny_maps.py */
  (void)state;
  static const char *const kName[] = {"bunny",    "gpt2",    "liuhaotian", "llama", "llava-mistral", "llava-qwen2",
                                      "minigpt4", "mistral", "opt",        "phi",   "qwen2"};
  char model[128], maps[256];
  for (size_t i = 0; i < sizeof kName / sizeof *kName; i++) {
    snprintf(model, sizeof model, "tests/fixtures/tiny-%s", kName[i]);
    snprintf(maps, sizeof maps, "%s/maps.safetensors", model);
    all_maps(model, maps, 3);
  }
}

static void test_planted_maps(void **state) {
  (void)state;
  all_maps("tests/fixtures/planted-kv", "tests/fixtures/planted-kv/maps.safetensors", 7);
  all_maps("tests/fixtures/planted-hop", "tests/fixtures/planted-hop/maps.safetensors", 7);
}

static void demo_maps(const char *path) {
  char hex[65];
  chi_st *st = NULL;
  if (!chi_file_exists(path)) {
    print_message("%s is not there; python tools/ref/make_demo_maps.py makes it\n", path);
    skip();
  }
  assert_works(chi_st_open(&st, path, err));
  assert_works(chi_sha256_file(hex, "models/demo/model.safetensors", err));
  if (!chi_streq(hex, chi_st_meta(st, "model_sha256")))
    fail_msg("%s belongs to another models/demo: run python tools/ref/make_demo_maps.py", path);
  chi_st_close(st);
  all_maps("models/demo", path, 3);
}
static void test_demo_maps_seen(void **state) {
  (void)state;
  demo_maps("tests/fixtures/demo-maps/seen.safetensors");
}
static void test_demo_maps_named(void **state) {
  (void)state;
  demo_maps("tests/fixtures/demo-maps/named.safetensors");
}

/* Planted truth: the listed cells restore the answer, no other cell of mlp and attn does. */
static void planted(const char *dir) {
  char path[256];
  json_t *j = NULL;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_trace *t = NULL;
  snprintf(path, sizeof path, "%s/planted.json", dir);
  assert_works(chi_json_load(&j, path, 1 << 20, err));
  assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts po = {
      .question = json_string_value(json_object_get(j, "question")), .tmpl = "plain", .need_constraint = true};
  assert_works(chi_prompt_make(&p, m, &po, err));
  char words[256];
  snprintf(words, sizeof words, "words:%s", json_string_value(json_object_get(j, "replacement")));
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  o.corrupt.spec = words;
  assert_works(chi_trace_run(&t, m, p, &o, err));
  double above = json_number_value(json_object_get(j, "restored_above")),
         below = json_number_value(json_object_get(j, "others_below"));
  int found = 0;
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    for (int l = 0; t->cell[0][s] && l < t->n_layers; l++)
      for (int r = 0; r < t->n_rows; r++) {
        bool listed = false;
        size_t i;
        json_t *peak;
        json_array_foreach(json_object_get(j, "peaks"), i, peak) {
          listed |= strcmp(json_string_value(json_object_get(peak, "site")), chi_trace_site_name[s]) == 0 &&
                    json_integer_value(json_object_get(peak, "layer")) == l &&
                    json_integer_value(json_object_get(peak, "row")) == t->rows[r];
        }
        double x = chi_trace_at(t, 0, s, l, r)->p;
        if (listed ? !(x > above) : !(x < below))
          fail_msg("%s: %s layer %d row %d: p = %g, but it is %sa planted cell", dir, chi_trace_site_name[s], l,
                   t->rows[r], x, listed ? "" : "not ");
        found += listed;
      }
  assert_int_equal(found, json_array_size(json_object_get(j, "peaks")));
  chi_trace_free(t);
  chi_prompt_free(p);
  chi_model_free(m);
  json_decref(j);
}
static void test_planted_truth(void **state) {
  (void)state;
  planted("tests/fixtures/planted-kv");
  planted("tests/fixtures/planted-hop");
}

/* Corruptions: what is refused, what is chosen, what a seed fixes. */
static void test_corruptions(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/maps.safetensors");
  chi_corruption c;
  const char *same = "words:this country", *longer = "words:this very large country";
  assert_fails(chi_corruption_make(&c, f.m, f.p, &(chi_corrupt_opts){.spec = same}, err), CHI_ERR_ARG,
               "is the one that stood there");
  assert_fails(chi_corruption_make(&c, f.m, f.p, &(chi_corrupt_opts){.spec = longer}, err), CHI_ERR_ARG,
               "another number of tokens");
  assert_fails(chi_corruption_make(&c, f.m, f.p, &(chi_corrupt_opts){.spec = "blur"}, err), CHI_ERR_ARG,
               "unknown corruption");
  assert_fails(chi_corruption_make(&c, f.m, f.p, &(chi_corrupt_opts){.spec = "noise:3x"}, err), CHI_ERR_ARG,
               "not understood");
  assert_fails(chi_corruption_make(&c, f.m, f.p, &(chi_corrupt_opts){.spec = "pool:0"}, err), CHI_ERR_ARG, "pool:K");
  chi_corruption a, b;
  assert_works(chi_corruption_make(&a, f.m, f.p, &(chi_corrupt_opts){.spec = "noise:3s,samples=2,seed=5"}, err));
  assert_works(chi_corruption_make(&b, f.m, f.p, &(chi_corrupt_opts){.spec = "noise:3s,samples=2", .seed = 5}, err));
  size_t n = (size_t)(a.n * a.span * f.m->net.decoder.spec.d);
  assert_int_equal(a.n, 2);
  assert_memory_equal(a.noise, b.noise, n * sizeof *a.noise);
  double ss = 0;
  for (size_t i = 0; i < n; i++) ss += (double)a.noise[i] * (double)a.noise[i];
  assert_true(fabs(sqrt(ss / (double)n) / a.std - 1) < 0.2);
  assert_true(fabs(a.std - strtod(chi_st_meta(f.st, "noise_std"), NULL)) < 1e-4 * a.std);
  chi_corruption_free(&a);
  chi_corruption_free(&b);
  close_fixture(&f);
}

/* Joint log-probability of a text = sum of its tokens' log-probabilities, each behind the ones before it. */
static void test_target_text(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/maps.safetensors");
  chi_trace *t = NULL, *u = NULL;
  chi_trace_opts o = {
      .site = {true}, .window = 1, .target = -1, .corrupt = {.spec = "words:the flag"}, .target_text = "the flag"};
  assert_works(chi_trace_run(&t, f.m, f.p, &o, err));
  assert_true(t->n_target >= 2);
  double sum = 0;
  char text[1024];
  for (int i = 0; i < t->n_target; i++) { /* prompt + first i tokens; target = the next one */
    o.target_text = NULL;
    o.target = t->target_ids[i];
    chi_prompt *p = NULL;
    char *head = NULL;
    assert_works(chi_decode(f.m->tok, t->target_ids, (size_t)i, false, &head, err));
    bracket(text, sizeof text, f.p->text, f.p->constraint);
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s", head);
    assert_works(chi_prompt_make(
        &p, f.m, &(chi_prompt_opts){.image = f.picture, .question = text, .raw = true, .need_constraint = true}, err));
    assert_works(chi_trace_run(&u, f.m, p, &o, err));
    sum += u->corrupt.logp;
    chi_trace_free(u);
    chi_prompt_free(p);
    chi_free(head);
  }
  if (!(fabs(sum - t->corrupt.joint) < 1e-5))
    fail_msg("joint log-probability %g, token by token %g", t->corrupt.joint, sum);
  chi_trace_free(t);
  close_fixture(&f);
}

/* --cells span: one cell puts all the constraint's rows back; the other cells are those of the map by tokens. */
typedef struct one_p {
  int32_t target;
  double p;
} one_p;

static int take_p(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  one_p *x = ud;
  (void)capture, (void)i;
  x->p = chi_metrics_of(v, width, x->target, -1, NULL).p;
  return 0;
}

static void test_span_cell(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/maps.safetensors");
  chi_trace *t = NULL, *w = NULL;
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  char words[256];
  snprintf(words, sizeof words, "words:%s", chi_st_meta(f.st, "replace"));
  o.corrupt.spec = words;
  o.window = 2;
  o.check = 5;
  assert_works(chi_trace_run(&t, f.m, f.p, &o, err));
  o.span_cell = true;
  assert_works(chi_trace_run(&w, f.m, f.p, &o, err));
  int32_t span = f.p->span_hi - f.p->span_lo, at = f.p->span_lo - t->rows[0], last = f.p->n_rows - 1;
  assert_true(span > 1);
  assert_int_equal(w->n_rows, t->n_rows - span + 1);
  assert_int_equal(w->n_cell[at], span);
  assert_int_equal(w->rows[at], f.p->span_lo);
  assert_int_equal(w->checked, w->identical);
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    for (int l = 0; t->cell[0][s] && l < t->n_layers; l++)
      for (int r = 0; r < w->n_rows; r++) {
        if (r == at) continue;
        int other = r < at ? r : r + span - 1;
        assert_int_equal(w->rows[r], t->rows[other]);
        assert_true(chi_trace_at(w, 0, s, l, r)->p == chi_trace_at(t, 0, s, l, other)->p);
      }
  for (int l = 0; l < w->n_layers; l++) {
    chi_plan *plan = NULL;
    int clean, corrupt, cell;
    int32_t rows[64];
    chi_input in = chi_prompt_input(f.p);
    one_p x = {.target = w->target};
    for (int32_t i = 0; i < span; i++) rows[i] = f.p->span_lo + i;
    chi_intervention bad = {.op = CHI_OP_TOKEN,
                            .stack = CHI_DECODER,
                            .site = CHI_SITE_EMBED,
                            .rows = rows,
                            .n_rows = span,
                            .tokens = w->corruption.tokens};
    assert_works(chi_plan_new(&plan, err));
    assert_works(chi_plan_root(plan, &in, &clean, err));
    assert_works(chi_plan_child(plan, clean, &corrupt, err));
    assert_works(chi_plan_intervene(plan, corrupt, &bad, 0, err));
    assert_works(chi_plan_child(plan, corrupt, &cell, err));
    for (int32_t i = 0; i < span; i++) { /* one row at a time */
      chi_intervention back = {.op = CHI_OP_COPY,
                               .stack = CHI_DECODER,
                               .site = CHI_SITE_MLP_OUT,
                               .layer_lo = w->lo[CHI_TRACE_MLP * w->n_layers + l],
                               .layer_hi = w->hi[CHI_TRACE_MLP * w->n_layers + l] + 1,
                               .rows = rows + i,
                               .n_rows = 1,
                               .source = clean};
      assert_works(chi_plan_intervene(plan, cell, &back, 0, err));
    }
    assert_works(chi_plan_capture(
        plan,
        &(chi_capture){
            .branch = cell, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1},
        NULL, err));
    chi_run_opts ro = {.executor = CHI_EXEC_DENSE, .on_capture = take_p, .ud = &x};
    assert_works(chi_run_plan(&f.m->net, plan, &ro, err));
    assert_true(x.p == chi_trace_at(w, 0, CHI_TRACE_MLP, l, at)->p);
    chi_plan_free(plan);
  }
  chi_trace_free(t);
  chi_trace_free(w);
  close_fixture(&f);
}

static void test_windows_by_share(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int32_t layers, want;
  } kGood[] = {{"1", 8, 1},  {"20%", 8, 2},    {"20%", 32, 6}, {"50%", 5, 3},
               {"1%", 8, 1}, {"100%", 12, 12}, {"40", 8, 40}};
  static const char *const kBad[] = {"", "0", "-1", "x", "3x", "2.5", "101%", "%", "5%%", "nan", "1e9"};
  int32_t w = 0;
  for (size_t i = 0; i < sizeof kGood / sizeof *kGood; i++) {
    assert_true(chi_select_window(&w, kGood[i].text, kGood[i].layers));
    assert_int_equal(w, kGood[i].want);
  }
  for (size_t i = 0; i < sizeof kBad / sizeof *kBad; i++) assert_false(chi_select_window(&w, kBad[i], 8));
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixture_maps),     cmocka_unit_test(test_span_cell),
                                     cmocka_unit_test(test_windows_by_share), cmocka_unit_test(test_family_maps),
                                     cmocka_unit_test(test_planted_maps),     cmocka_unit_test(test_planted_truth),
                                     cmocka_unit_test(test_demo_maps_seen),   cmocka_unit_test(test_demo_maps_named),
                                     cmocka_unit_test(test_corruptions),      cmocka_unit_test(test_target_text)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

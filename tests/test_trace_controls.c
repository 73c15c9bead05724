/* Controls and further cells of causal maps: severed states, heads, paths, several brackets, random sites, donors that
 * are found, maps that share a sweep. Oracles: identities, bit for bit, and maps made by an independent float64 forward
 * pass (tools/ref/controls_ref.py). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/select.h"
#include "analyze/trace.h"
#include "support/randplan.h"
#include "support/support.h"

#define MODEL "tests/fixtures/tiny-gqa"
#define PICTURE MODEL "/picture.png"
#define DONOR MODEL "/donor.png"
static const char *const kOne = "USER: <image>\nWhat is the capital of [this country]? ASSISTANT:";
static const char *const kTwo = "USER: <image>\nWhat is the [capital] of [this country]? ASSISTANT:";

static chi_model *model;

static int open_model(void **state) {
  (void)state;
  assert_works(chi_model_open(&model, MODEL, CHI_DTYPE_F32, err));
  return 0;
}
static int close_model(void **state) {
  (void)state;
  chi_model_free(model);
  return 0;
}

static chi_prompt *prompt(const char *text) {
  chi_prompt *p = NULL;
  chi_prompt_opts o = {.image = PICTURE, .question = text, .raw = true, .need_constraint = true, .several = true};
  assert_works(chi_prompt_make(&p, model, &o, err));
  return p;
}

static chi_trace *trace(const chi_prompt *p, chi_trace_opts o) {
  chi_trace *t = NULL;
  assert_works(chi_trace_run(&t, model, p, &o, err));
  return t;
}

static chi_trace_opts options(const char *corrupt) {
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  o.corrupt.spec = corrupt;
  return o;
}

static chi_trace_opts only(int site, const char *corrupt) {
  chi_trace_opts o = options(corrupt);
  memset(o.site, 0, sizeof o.site);
  o.site[site] = true;
  return o;
}

static bool same_metrics(const chi_metrics *a, const chi_metrics *b) { return memcmp(a, b, sizeof *a) == 0; }

/* Cells of two traces over the same rows, bit for bit. */
static void same_maps(const chi_trace *a, int src_a, const chi_trace *b, int src_b, const char *what) {
  int n = 0;
  for (int s = 0; s < CHI_TRACE_SITES; s++) {
    if (!a->cell[src_a][s] || !b->cell[src_b][s]) continue;
    for (int l = 0; l < chi_trace_steps(a, s); l++)
      for (int r = 0; r < a->n_tokens; r++, n++)
        if (!same_metrics(chi_trace_at(a, src_a, s, l, r), chi_trace_at(b, src_b, s, l, r)))
          fail_msg("%s: %s, step %d, row %d differs", what, chi_trace_site_name[s], l, a->rows[r]);
  }
  assert_true(n > 0);
}

/* ---- against the float64 reference ------------------------------------------------------------------------------ */
static double check_map(const chi_st *st, const char *name, const chi_trace *t, int site, bool last_only) {
  double worst = 0;
  const chi_tensor *w = chi_st_find(st, name);
  if (!w) fail_msg("the fixture has no %s", name);
  int first = last_only ? t->n_rows - 1 : 0;
  assert_int_equal(w->dim[0], chi_trace_steps(t, site));
  assert_int_equal(w->dim[1], t->n_rows - first);
  for (int l = 0; l < w->dim[0]; l++)
    for (int r = first; r < t->n_rows; r++) {
      double d = fabs(chi_trace_at(t, 0, site, l, r)->p - (double)((const float *)w->data)[l * w->dim[1] + r - first]);
      if (!(d <= 5e-6)) fail_msg("%s: step %d, row %d: p differs by %g", name, l, t->rows[r], d);
      if (d > worst) worst = d;
    }
  return worst;
}

static void check_kind(const chi_st *st, const char *kind, const chi_prompt *p, const char *words, bool noise) {
  static const struct {
    const char *name;
    int site;
    const char *to;
    bool direct;
  } kMap[] = {{"no_mlp", CHI_TRACE_NO_MLP, NULL, false},  {"no_attn", CHI_TRACE_NO_ATTN, NULL, false},
              {"head", CHI_TRACE_HEAD, NULL, false},      {"embed", CHI_TRACE_EMBED, NULL, false},
              {"path.q", CHI_TRACE_PATH, "2.1.q", false}, {"path.k", CHI_TRACE_PATH, "2.1.k", false},
              {"path.v", CHI_TRACE_PATH, "2.1.v", false}, {"path.v.direct", CHI_TRACE_PATH, "2.1.v", true},
              {"path.out", CHI_TRACE_PATH, "out", false}, {"path.out.direct", CHI_TRACE_PATH, "out", true}};
  enum { kMaps = sizeof kMap / sizeof *kMap };
  chi_trace_opts o[kMaps];
  chi_trace_job job[kMaps];
  chi_trace *t[kMaps];
  chi_err why[kMaps];
  char name[64];
  double worst = 0;
  for (size_t i = 0; i < kMaps; i++) {
    o[i] = only(kMap[i].site, words);
    o[i].noise_direction = noise;
    o[i].check = 6;
    if (kMap[i].to) assert_works(chi_path_parse(&o[i].path, kMap[i].to, err));
    o[i].path.direct = kMap[i].direct;
    job[i] = (chi_trace_job){p, &o[i]};
  }
  assert_works(chi_trace_run_many(t, why, model, job, kMaps, err));
  for (size_t i = 0; i < kMaps; i++) {
    assert_non_null(t[i]);
    assert_int_equal(t[i]->checked, 6);
    assert_int_equal(t[i]->identical, 6);
    snprintf(name, sizeof name, "%s.%s", kind, kMap[i].name);
    double d = check_map(st, name, t[i], kMap[i].site, strncmp(kMap[i].name, "path.out", 8) == 0);
    worst = d > worst ? d : worst;
    chi_trace_free(t[i]);
  }
  print_message("%s: %d maps, worst cell %.1e\n", kind, (int)kMaps, worst);
}

static void test_reference(void **state) {
  (void)state;
  chi_st *st = NULL;
  assert_works(chi_st_open(&st, "tests/fixtures/trace-controls/maps.safetensors", err));
  chi_prompt *one = prompt(kOne), *two = prompt(kTwo);
  check_kind(st, "one", one, "words:the flag", false);
  check_kind(st, "noise", one, "words:the flag", true);
  check_kind(st, "two", two, "words:people|the flag", false);
  chi_prompt_free(one);
  chi_prompt_free(two);
  chi_st_close(st);
}

/* ---- identities ------------------------------------------------------------------------------------------------- */
/* All heads of a layer put back are its attention output put back: W_O meets the same numbers. And later MLPs
 * (attention) that are severed while nothing is put back change nothing. */
static void test_heads_and_severed(void **state) {
  (void)state;
  static const chi_site kCut[] = {CHI_SITE_MLP_OUT, CHI_SITE_ATTN_OUT};
  chi_prompt *p = prompt(kOne);
  chi_trace *t = trace(p, options("words:the flag"));
  chi_plan *plan = plan_new();
  chi_input in = chi_prompt_input(p);
  int32_t last = p->n_rows - 1, L = t->n_layers, n = 0;
  int clean = plan_root(plan, &in), corrupt = plan_child(plan, clean), got[256], want = -1;
  plan_act(plan, corrupt,
           (chi_intervention){
               .op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .tokens = t->corruption.tokens},
           p->span_lo, p->span_hi, 0);
  want = plan_take_logits(plan, corrupt, last);
  for (int l = 0; l < L; l++)
    for (int32_t r = p->span_lo; r <= last; r++) {
      int heads = plan_child(plan, corrupt), whole = plan_child(plan, corrupt);
      for (int h = 0; h < t->n_heads; h++)
        plan_act(plan, heads,
                 (chi_intervention){.op = CHI_OP_COPY,
                                    .stack = CHI_DECODER,
                                    .site = CHI_SITE_HEAD_OUT,
                                    .layer_lo = l,
                                    .layer_hi = l + 1,
                                    .part_lo = h,
                                    .part_hi = h + 1,
                                    .source = clean},
                 r, r + 1, 0);
      plan_copy(plan, whole, clean, CHI_SITE_ATTN_OUT, l, r, r + 1);
      assert_true(n + 2 <= 256);
      got[n++] = plan_take_logits(plan, heads, last);
      got[n++] = plan_take_logits(plan, whole, last);
    }
  int pairs = n;
  for (int i = 0; i < 2; i++)
    for (int32_t r = p->span_lo; r <= last; r += 2) {
      int b = plan_child(plan, corrupt);
      for (int k = 1; k < L; k++) plan_copy(plan, b, corrupt, kCut[i], k, r, r + 1);
      got[n++] = plan_take_logits(plan, b, last);
    }
  results res;
  assert_works(results_run(&res, &model->net, plan, &(chi_run_opts){.executor = CHI_EXEC_SWEEP}, err));
  size_t bytes = (size_t)model->net.decoder.vocab * sizeof(float);
  for (int i = 0; i < pairs; i += 2)
    assert_memory_equal(results_row(&res, got[i], 0), results_row(&res, got[i + 1], 0), bytes);
  for (int i = pairs; i < n; i++) assert_memory_equal(results_row(&res, got[i], 0), results_row(&res, want, 0), bytes);
  results_free(&res);
  chi_plan_free(plan);
  chi_trace_free(t);
  chi_prompt_free(p);
}

/* The item as its own donor, by its own picture's file: the donor's map is the item's. Re-embedding all the words gives
 * the clean run; both directions are the two maps that are made one by one; in the last layer nothing is behind. */
static void test_identities(void **state) {
  (void)state;
  chi_prompt *p = prompt(kOne);
  chi_trace_opts o = options("words:the flag");
  for (int s = 0; s < CHI_TRACE_PATH; s++) o.site[s] = true;
  o.window = 2;
  o.groups = "constraint;late4;image";
  o.donor = PICTURE;
  o.both_directions = true;
  chi_trace *t = trace(p, o);
  same_maps(t, CHI_TRACE_OWN, t, CHI_TRACE_DONOR, "the item as its own donor");
  assert_int_equal(t->n_rows, t->n_tokens + 3);
  assert_true(same_metrics(chi_trace_at(t, 0, CHI_TRACE_EMBED, 0, t->n_tokens), &t->clean));
  assert_string_equal(chi_trace_row_role(t, t->n_tokens + 1), "late4");
  assert_int_equal(t->n_cell[t->n_tokens + 1], 4);
  assert_int_equal(t->n_cell[t->n_tokens + 2], p->n_image);
  for (int s = 0; s < CHI_TRACE_PATH; s++) /* words alone are corrupted: patches stay as they were */
    for (int l = 0; l < chi_trace_steps(t, s); l++)
      for (int g = 1; g < 3; g++) assert_true(chi_trace_at(t, 0, s, l, t->n_tokens + g)->p == t->corrupt.p);
  for (int r = 0; r < t->n_rows; r++)
    for (int s = CHI_TRACE_NO_MLP; s <= CHI_TRACE_NO_ATTN; s++)
      assert_true(same_metrics(chi_trace_at(t, 0, s, t->n_layers - 1, r),
                               chi_trace_at(t, 0, CHI_TRACE_HIDDEN, t->n_layers - 1, r)));
  o.both_directions = false;
  o.noise_direction = true;
  chi_trace *u = trace(p, o);
  same_maps(t, CHI_TRACE_NOISE, u, CHI_TRACE_OWN, "both directions");
  assert_true(same_metrics(chi_trace_base_of(t, CHI_TRACE_NOISE), &t->clean));
  assert_true(same_metrics(chi_trace_base_of(t, CHI_TRACE_OWN), &t->corrupt));
  chi_trace_free(u);
  o.noise_direction = false;
  o.span_cell = true;
  u = trace(p, o);
  int at = p->span_lo - u->rows[0];
  assert_int_equal(u->n_cell[at], p->span_hi - p->span_lo);
  for (int s = 0; s < CHI_TRACE_PATH; s++) /* the group `constraint` is the bracket as one cell */
    for (int l = 0; l < chi_trace_steps(t, s); l++)
      assert_true(same_metrics(chi_trace_at(t, 0, s, l, t->n_tokens), chi_trace_at(u, 0, s, l, at)));
  chi_trace_free(t);
  chi_trace_free(u);
  chi_prompt_free(p);
}

/* One bracket of two corrupted is the map of the prompt that has this bracket alone. */
static void test_brackets(void **state) {
  (void)state;
  chi_prompt *two = prompt(kTwo), *one = prompt(kOne);
  assert_int_equal(two->n_spans, 2);
  assert_int_equal(two->span[1].lo, one->span_lo);
  assert_int_equal(two->span[1].hi, one->span_hi);
  assert_string_equal(two->span[0].words, "capital");
  assert_string_equal(two->constraint, "capital");
  chi_trace_opts o = options("words:the flag");
  o.corrupt.spans = 2;
  chi_trace *a = trace(two, o), *b = trace(one, options("words:the flag"));
  same_maps(a, 0, b, 0, "one bracket of two");
  assert_string_equal(a->corruption.was, "this country");
  assert_string_equal(chi_trace_row_role(a, two->span[0].lo - a->rows[0]), "constraint1");
  assert_string_equal(chi_trace_row_role(a, two->span[1].lo - a->rows[0]), "constraint2");
  chi_trace_free(a);
  o = options("words:people|the flag");
  o.groups = "constraint1;constraint2;constraint";
  a = trace(two, o);
  assert_string_equal(a->corruption.text, "'capital / this country' replaced by 'people / the flag'");
  assert_int_equal(a->corruption.span, two->span[0].hi - two->span[0].lo + two->span[1].hi - two->span[1].lo);
  assert_int_equal(a->n_cell[a->n_tokens + 2], a->n_cell[a->n_tokens] + a->n_cell[a->n_tokens + 1]);
  chi_trace_free(a);
  chi_trace_free(b);
  chi_trace_opts bad = options("words:people");
  assert_fails(chi_trace_run(&a, model, two, &bad, err), CHI_ERR_ARG, "as many texts");
  bad = options("words:people|the flag|x");
  assert_fails(chi_trace_run(&a, model, two, &bad, err), CHI_ERR_ARG, "as many texts");
  bad = options("words:the flag");
  bad.corrupt.spans = 4;
  assert_fails(chi_trace_run(&a, model, one, &bad, err), CHI_ERR_ARG, "has 1 bracket");
  chi_prompt *p = NULL;
  chi_prompt_opts po = {.image = PICTURE, .question = kTwo, .raw = true, .need_constraint = true};
  assert_fails(chi_prompt_make(&p, model, &po, err), CHI_ERR_ARG, "several spans");
  po.question = "USER: <image>\nWhat is the cap[it][al] of this? ASSISTANT:";
  po.several = true;
  assert_works(chi_prompt_make(&p, model, &po, err)); /* one token each */
  chi_prompt_free(p);
  po.question = "USER: <image>\nWhat is the capital of this coun[t][ry]? ASSISTANT:";
  assert_fails(chi_prompt_make(&p, model, &po, err), CHI_ERR_ARG, "share a token");
  uint32_t spans;
  assert_works(chi_corrupt_spans(&spans, "1,3", 3, err));
  assert_int_equal(spans, 5);
  assert_fails(chi_corrupt_spans(&spans, "3", 2, err), CHI_ERR_ARG, "3");
  assert_fails(chi_corrupt_spans(&spans, "0", 2, err), CHI_ERR_ARG, "counted from 1");
  chi_prompt_free(two);
  chi_prompt_free(one);
}

/* Many maps in one sweep are those that are made one by one, and a job that cannot be done spoils no other. */
static void test_many(void **state) {
  (void)state;
  chi_prompt *one = prompt(kOne), *two = prompt(kTwo);
  chi_trace_opts o[5] = {options("words:the flag"), options("noise:3s,samples=2"), options("words:no such length here"),
                         options("words:people|the flag"), options("random:2")};
  o[1].window = 3;
  o[3].donor = DONOR;
  o[3].target_text = "the flag";
  o[4].null_draws = 3;
  o[4].check = 5;
  chi_trace_job job[5] = {{one, &o[0]}, {one, &o[1]}, {one, &o[2]}, {two, &o[3]}, {two, &o[4]}};
  chi_trace *t[5];
  chi_err why[5];
  assert_works(chi_trace_run_many(t, why, model, job, 5, err));
  for (int i = 0; i < 5; i++) {
    if (i == 2) {
      assert_null(t[i]);
      assert_non_null(strstr(why[i].text, "another number of tokens"));
      continue;
    }
    assert_non_null(t[i]);
    chi_trace *u = trace(job[i].prompt, o[i]);
    same_maps(t[i], 0, u, 0, "many");
    assert_true(same_metrics(&t[i]->corrupt, &u->corrupt) && same_metrics(&t[i]->clean, &u->clean));
    if (i == 3) same_maps(t[i], 1, u, 1, "many, donor");
    if (i == 4) assert_memory_equal(t[i]->null[0], u->null[0], 3 * sizeof(chi_metrics));
    chi_trace_free(u);
  }
  assert_int_equal(t[4]->checked, 5);
  assert_int_equal(t[4]->identical, 5);
  assert_int_equal(t[0]->checked, 0);
  for (int i = 0; i < 5; i++) chi_trace_free(t[i]);
  chi_prompt_free(one);
  chi_prompt_free(two);
}

/* ---- controls --------------------------------------------------------------------------------------------------- */
/* A draw of one place is a cell of the map, by bits; of as many places as there are, hidden states or all attention and
 * MLPs at the live rows, a whole. */
static void test_random_sites(void **state) {
  (void)state;
  chi_prompt *p = prompt(kOne);
  chi_trace_opts o = options("words:the flag");
  o.site[CHI_TRACE_HEAD] = true;
  o.null_draws = 12;
  o.null_seed = 4;
  chi_trace *t = trace(p, o), *u = trace(p, o);
  int different = 0;
  static const int kSites[] = {CHI_TRACE_MLP, CHI_TRACE_ATTN, CHI_TRACE_HIDDEN, CHI_TRACE_HEAD};
  for (size_t k = 0; k < 4; k++) {
    int s = kSites[k];
    assert_int_equal(t->null_cells[s], 1);
    for (int i = 0; i < o.null_draws; i++) {
      bool found = false;
      for (int l = 0; l < chi_trace_steps(t, s) && !found; l++)
        for (int r = p->span_lo - t->rows[0]; r < t->n_tokens && !found; r++)
          found = same_metrics(&t->null[s][i], chi_trace_at(t, 0, s, l, r));
      assert_true(found);
      different += t->null[s][i].p != t->null[s][0].p;
    }
    assert_memory_equal(t->null[s], u->null[s], (size_t)o.null_draws * sizeof(chi_metrics));
  }
  assert_true(different > 12);
  chi_trace_free(u);
  o.null_seed = 5;
  u = trace(p, o);
  assert_true(memcmp(t->null[0], u->null[0], (size_t)o.null_draws * sizeof(chi_metrics)) != 0);
  chi_trace_free(u);
  o.window = 100; /* all layers of the window, and brackets as one cell: 4 layers x 2 rows */
  o.span_cell = true;
  u = trace(p, o);
  assert_int_equal(u->null_cells[CHI_TRACE_MLP], u->n_layers * (p->span_hi - p->span_lo));
  assert_int_equal(u->null_cells[CHI_TRACE_HIDDEN], p->span_hi - p->span_lo);
  chi_trace_free(t);
  chi_trace_free(u);
  chi_prompt_free(p);
}

/* Random tokens: the same for a seed, ordinary, all other than what stood there; the first of many is the only one. */
static void test_random_tokens(void **state) {
  (void)state;
  chi_prompt *p = prompt(kTwo);
  chi_corruption a, b;
  chi_corrupt_opts o = {.spec = "random:20", .seed = 3};
  assert_works(chi_corruption_make(&a, model, p, &o, err));
  assert_works(chi_corruption_make(&b, model, p, &o, err));
  size_t n = (size_t)(a.n * a.span);
  assert_int_equal(a.n, 20);
  assert_memory_equal(a.tokens, b.tokens, n * sizeof *a.tokens);
  int repeats = 0;
  for (size_t i = 0; i < n; i++) {
    int32_t was = p->tokens[a.rows[i % (size_t)a.span]];
    assert_true(a.tokens[i] >= 0 && a.tokens[i] < model->net.decoder.vocab && a.tokens[i] != was);
    assert_false(chi_token_is_special(model->tok, a.tokens[i]));
    repeats += i > 0 && a.tokens[i] == a.tokens[i - 1];
  }
  assert_true(repeats < 10);
  chi_corruption_free(&b);
  o.seed = 4;
  assert_works(chi_corruption_make(&b, model, p, &o, err));
  assert_true(memcmp(a.tokens, b.tokens, n * sizeof *a.tokens) != 0);
  chi_corruption_free(&a);
  chi_corruption_free(&b);
  assert_fails(chi_corruption_make(&a, model, p, &(chi_corrupt_opts){.spec = "random:0"}, err), CHI_ERR_ARG,
               "random:K");
  chi_trace_opts many = options("random:3"), first = options("random:1");
  chi_trace *t = trace(p, many), *u = trace(p, first);
  assert_int_equal(t->corruption.n, 3);
  assert_memory_equal(t->corruption.tokens, u->corruption.tokens, (size_t)t->corruption.span * sizeof(int32_t));
  assert_true(t->corrupt.p != u->corrupt.p);
  chi_trace_free(t);
  chi_trace_free(u);
  chi_prompt_free(p);
}

/* A donor among candidates: never the item's own picture; the same map as when it is named. A corruption's folder. */
static void test_found_donor(void **state) {
  (void)state;
  chi_prompt *p = prompt(kOne);
  const char *list[] = {"no/such/file.png", PICTURE, DONOR}, *own[] = {PICTURE, PICTURE};
  chi_trace_opts o = options("words:the flag");
  o.donors = list;
  o.n_donors = 3;
  chi_trace *t = trace(p, o);
  assert_string_equal(t->donor_file, DONOR);
  o.donors = NULL, o.n_donors = 0;
  o.donor = DONOR;
  chi_trace *u = trace(p, o);
  same_maps(t, 1, u, 1, "a donor that was found");
  chi_trace_free(t);
  chi_trace_free(u);
  o.donor = NULL;
  o.donors = own, o.n_donors = 2;
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "the item's own");
  o.donors = list, o.n_donors = 1;
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_IO, "no/such/file.png");

  chi_trace *a = trace(p, options("picture:" MODEL)), *b = trace(p, options("picture:" DONOR));
  same_maps(a, 0, b, 0, "a picture from a folder"); /* picture.png is the item's own */
  assert_null(a->corruption.rows);
  chi_trace_opts bad = options("picture:tests/fixtures/kernel");
  assert_fails(chi_trace_run(&t, model, p, &bad, err), CHI_ERR_IO, "holds no picture");
  chi_trace_free(a);
  chi_trace_free(b);
  chi_prompt_free(p);
  chi_prompt_opts po = {.image = PICTURE, .question = "USER: <image>\nWhat is it? ASSISTANT:", .raw = true};
  assert_works(chi_prompt_make(&p, model, &po, err)); /* no bracket: the picture can change, words cannot */
  a = trace(p, options("picture:" DONOR));
  assert_true(same_metrics(chi_trace_at(a, 0, CHI_TRACE_HIDDEN, a->n_layers - 1, a->n_rows - 1), &a->clean));
  chi_trace_free(a);
  bad = options("words:x");
  assert_fails(chi_trace_run(&t, model, p, &bad, err), CHI_ERR_ARG, "brackets no constraint");
  chi_prompt_free(p);
}

/* From the words on: the same cells as of the whole map, fewer of them. Before the words the clean run's value changes
 * nothing, to the bit; another picture's does. */
static void test_from_words(void **state) {
  (void)state;
  chi_prompt *p = prompt(kOne);
  chi_trace_opts o = options("random");
  o.site[CHI_TRACE_NO_MLP] = true;
  o.both_directions = true;
  o.donor = DONOR;
  chi_trace *whole = trace(p, o);
  o.from_words = true;
  chi_trace *part = trace(p, o);
  int skipped = whole->n_tokens - part->n_tokens, moved = 0;
  assert_true(skipped > 1);
  assert_int_equal(part->rows[0], p->span[0].lo);
  for (int src = 0; src < CHI_TRACE_SOURCES; src++)
    for (int s = 0; s < CHI_TRACE_SITES; s++) {
      if (!whole->cell[src][s]) continue;
      for (int l = 0; l < chi_trace_steps(whole, s); l++) {
        for (int r = 0; r < part->n_tokens; r++)
          assert_true(same_metrics(chi_trace_at(part, src, s, l, r), chi_trace_at(whole, src, s, l, r + skipped)));
        for (int r = 0; r < skipped; r++) {
          double change = chi_trace_at(whole, src, s, l, r)->p - chi_trace_base_of(whole, src)->p;
          if (src == CHI_TRACE_DONOR)
            moved += fabs(change) > 0;
          else
            assert_true(fabs(change) == 0);
        }
      }
    }
  assert_true(moved > 0);
  const int32_t last = p->n_rows - 1, gone = p->n_rows;
  chi_trace_opts one = o;
  one.only = &last, one.n_only = 1;
  chi_trace *end = trace(p, one);
  assert_int_equal(end->n_tokens, 1);
  for (int l = 0; l < end->n_layers; l++)
    assert_true(same_metrics(chi_trace_at(end, CHI_TRACE_OWN, CHI_TRACE_MLP, l, 0),
                             chi_trace_at(whole, CHI_TRACE_OWN, CHI_TRACE_MLP, l, whole->n_tokens - 1)));
  one.only = &gone;
  chi_trace *none = NULL;
  assert_fails(chi_trace_run(&none, model, p, &one, err), CHI_ERR_ARG, "none of the rows");
  chi_trace_free(end);
  chi_trace_free(whole);
  chi_trace_free(part);
  chi_prompt_free(p);
}

static void test_refusals(void **state) {
  (void)state;
  chi_path to;
  static const char *const kBad[] = {"", "1", "1.2", "1.2.x", "1.2.qq", "-1.2.q", "a.b.q", "1.2.q ", "outs"};
  for (size_t i = 0; i < sizeof kBad / sizeof *kBad; i++)
    assert_fails(chi_path_parse(&to, kBad[i], err), CHI_ERR_ARG, "LAYER.HEAD.q");
  assert_works(chi_path_parse(&to, "11.3.v", err));
  assert_true(to.layer == 11 && to.head == 3 && to.part == CHI_PATH_V);
  chi_prompt *p = prompt(kOne);
  chi_trace *t = NULL;
  chi_trace_opts o = only(CHI_TRACE_PATH, "words:the flag");
  o.path = to;
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "layers 1 to 3");
  o.path = (chi_path){.part = CHI_PATH_Q, .layer = 1, .head = 4};
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "heads 0 to 3");
  o = options("words:the flag");
  o.groups = "constraint;nowhere";
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "nowhere");
  o.groups = "constraint2";
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "1 bracket");
  o.groups = NULL;
  o.both_directions = o.noise_direction = true;
  assert_fails(chi_trace_run(&t, model, p, &o, err), CHI_ERR_ARG, "both directions");
  static const char *const kNames[] = {"late", "late36", "constraint", "constraint1", "image", "last", "text", "all"};
  static const char *const kNot[] = {"late0", "late-1", "constraint0", "image2",
                                     "lat",   "last1",  "late36x",     "late99999999"};
  for (size_t i = 0; i < 8; i++) {
    assert_true(chi_select_is_word(kNames[i]));
    assert_false(chi_select_is_word(kNot[i]));
  }
  chi_prompt_free(p);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference),     cmocka_unit_test(test_heads_and_severed),
                                     cmocka_unit_test(test_identities),    cmocka_unit_test(test_brackets),
                                     cmocka_unit_test(test_many),          cmocka_unit_test(test_random_sites),
                                     cmocka_unit_test(test_random_tokens), cmocka_unit_test(test_found_donor),
                                     cmocka_unit_test(test_from_words),    cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, open_model, close_model);
}

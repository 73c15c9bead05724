/* The card of a model: answers of shared passes = those of one generation each; items of both worlds and what is wrong
 * with them; sums over slices against brute force; intervals that count units. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/card.h"
#include "support/support.h"
#include "sweep/generate.h"

enum { kNew = 12 };

/* ---- asks --------------------------------------------------------------------------------------------------- */
static double p_first(const float *x, int64_t n, int32_t t) { return chi_metrics_of(x, n, t, -1, NULL).p; }

typedef struct alone {
  int32_t watch;
  double p, confidence;
} alone;

static int first_step(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  alone *a = ud;
  if (step > 0) return 0;
  a->confidence = p_first(logits, vocab, token);
  a->p = a->watch >= 0 ? p_first(logits, vocab, a->watch) : NAN;
  return 0;
}

/* The whole greedy answer of one question, by itself. Caller: chi_free. */
static char *one_answer(const chi_model *m, const chi_ask *a, alone *first) {
  chi_prompt *p = NULL;
  char *plain = NULL, *text = NULL;
  int32_t tok[kNew], n = 0;
  chi_tokens t = {0};
  chi_str s = {0};
  first->watch = -1;
  if (a->watch || a->expect) {
    chi_str_addf(&s, " %s", a->watch ? a->watch : a->expect);
    assert_works(chi_encode(m->tok, s.s, s.len, false, &t, err));
    first->watch = t.id[0];
  }
  assert_works(chi_question_with(&plain, a->question, 0, NULL, err));
  assert_works(chi_prompt_make(&p, m, &(chi_prompt_opts){.image = a->image, .question = plain}, err));
  chi_input in = chi_prompt_input(p);
  chi_gen_opts o = {.max_new = kNew, .eos = m->eos, .n_eos = m->n_eos, .on_token = first_step, .ud = first};
  assert_works(chi_generate(&m->net, &in, &o, tok, &n, NULL, err));
  assert_works(chi_decode(m->tok, tok, (size_t)n, true, &text, err));
  chi_tokens_free(&t);
  chi_str_free(&s);
  chi_prompt_free(p);
  chi_free(plain);
  return text;
}

static const char *trim(char *s) {
  s += strspn(s, " \n");
  size_t n = strlen(s);
  while (n && strchr(" \n", s[n - 1])) s[--n] = 0;
  return s;
}

static void check_asks(const char *dir, bool pictures) {
  char picture[300];
  chi_model *m = NULL;
  chi_ask ask[120];
  char *own[120];
  alone first[120];
  chi_reply reply[120];
  static const char *const kQ[] = {"What is [this]?", "Which word comes [here], and why does it come?",
                                   "[One] two three",
                                   "And now [something] longer than all of the others, so that they are padded?"};
  size_t n = 0;
  snprintf(picture, sizeof picture, "%s/picture.png", dir);
  assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
  for (int round = 0; round < 15; round++)
    for (int k = 0; k < 4; k++) {
      chi_ask a = {.image = pictures && round % 3 ? picture : NULL, .question = kQ[k]};
      if (round % 2) a.expect = round % 4 == 1 ? "a wrong answer" : "of";
      if (round % 5 == 4) a.watch = "red";
      ask[n++] = a;
    }
  for (size_t i = 0; i < n; i++) {
    own[i] = one_answer(m, &ask[i], &first[i]);
    if (i % 7 != 3) continue;
    ask[i].expect = trim(own[i]); /* what comes */
    ask[i].watch = NULL;
    chi_free(one_answer(m, &ask[i], &first[i]));
  }
  for (int threads = 1; threads <= 2; threads++) {
    chi_set_threads(threads);
    assert_works(chi_asks_run(reply, m, ask, n, &(chi_ask_opts){.max_new = kNew}, err));
    for (size_t i = 0; i < n; i++) {
      char want[64];
      snprintf(want, sizeof want, "%s", trim(own[i]));
      assert_string_equal(reply[i].said, want);
      assert_int_equal(reply[i].right, ask[i].expect && strcmp(ask[i].expect, trim(own[i])) == 0);
      if (i % 7 == 3) assert_true(reply[i].right);
      assert_true(reply[i].confidence == first[i].confidence); /* bit for bit */
      if (first[i].watch >= 0) assert_true(reply[i].p == first[i].p);
      assert_true(isnan(reply[i].p) == (first[i].watch < 0));
    }
  }
  chi_set_threads(0);
  for (size_t i = 0; i < n; i++) chi_free(own[i]);
  chi_model_free(m);
}

static void asks_equal_single_generations(void **state) {
  (void)state;
  check_asks("tests/fixtures/tiny-mha", true);
  check_asks("tests/fixtures/tiny-blip2", true);
  check_asks("tests/fixtures/tiny-llama", false);
}

static void asks_name_what_fails(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_reply r[2];
  assert_works(chi_model_open(&m, "tests/fixtures/tiny-mha", CHI_DTYPE_F32, err));
  chi_ask missing = {.image = "no/such.png", .question = "What?"},
          open = {.question = "What is [this?", .name = "item q7"};
  assert_fails(chi_asks_run(r, m, &missing, 1, &(chi_ask_opts){0}, err), CHI_ERR_IO, "no/such.png");
  assert_fails(chi_asks_run(r, m, &open, 1, &(chi_ask_opts){0}, err), CHI_ERR_ARG, "item q7");
  assert_works(chi_asks_run(r, m, NULL, 0, &(chi_ask_opts){0}, err));
  chi_model_free(m);
}

static void brackets_are_filled(void **state) {
  (void)state;
  char *s = NULL;
  const char *q = "What is the [red] shape left of the [star]?";
  assert_works(chi_question_with(&s, q, 0, NULL, err));
  assert_string_equal(s, "What is the red shape left of the star?");
  chi_free(s);
  assert_works(chi_question_with(&s, q, 0, "green", err));
  assert_string_equal(s, "What is the green shape left of the star?");
  chi_free(s);
  assert_works(chi_question_with(&s, q, 1, "ring", err));
  assert_string_equal(s, "What is the red shape left of the ring?");
  chi_free(s);
  s = NULL;
  assert_fails(chi_question_with(&s, q, 2, "x", err), CHI_ERR_ARG, "brackets 2 spans");
  assert_null(s);
}

/* ---- items -------------------------------------------------------------------------------------------------- */
static int load(chi_items *out, const char *lines, chi_err *err) {
  const char *path = tmp_path("items.jsonl");
  put_file(path, lines, strlen(lines));
  return chi_items_load(out, path, 0, err);
}

static void items_of_both_worlds(void **state) {
  (void)state;
  chi_items it;
  assert_works(
      load(&it,
           "{\"id\":\"a\",\"question\":\"Q [x]?\",\"answer\":\"y\",\"group\":\"fact\",\"relation\":\"capital\","
           "\"entity\":\"Peru\",\"substitute\":\"z\",\"substitute_answer\":\"w\"}\n"
           "{\"id\":\"b\",\"question\":\"Q [x] [v]?\",\"answer\":\"y\",\"split\":\"dev\",\"entity_group\":\"W\","
           "\"unit\":\"u\",\"truth\":\"t\",\"prior\":null,\"readable\":true,\"first_token_shared\":true,"
           "\"hard\":true,\"constraints\":[{\"words\":\"x\",\"substitutes\":[]},{\"words\":\"v\",\"substitutes\":"
           "[{\"words\":\"v2\",\"answer\":\"a2\"},{\"words\":\"v3\",\"answer\":\"a3\"}]}],\"twins\":{\"blank\":"
           "{\"image\":\"img/b.png\",\"question\":\"Q?\",\"answer\":\"none\"},\"named\":null}}\n",
           err));
  assert_int_equal(it.n, 2);
  const chi_item *a = &it.item[0], *b = &it.item[1];
  assert_string_equal(a->unit, "Peru|capital");
  assert_string_equal(a->part[0].substitute, "z");
  assert_string_equal(a->part[0].answer, "w");
  assert_int_equal(a->n_parts, 1);
  assert_null(a->twin[CHI_ITEM_BLANK].question);
  assert_string_equal(b->unit, "u");
  assert_string_equal(b->truth, "t");
  assert_true(b->readable && b->shared && b->hard && !b->held_out && !b->prior);
  assert_int_equal(b->n_parts, 2);
  assert_null(b->part[0].substitute);
  assert_string_equal(b->part[1].substitute, "v2");
  assert_string_equal(b->part[1].answer, "a2");
  assert_string_equal(b->twin[CHI_ITEM_BLANK].answer, "none");
  assert_non_null(strstr(b->twin[CHI_ITEM_BLANK].image, "img/b.png"));
  assert_null(b->twin[CHI_ITEM_NAMED].question);
  assert_works(chi_items_split(&it, "test", err)); /* an item without a split belongs to every one */
  assert_int_equal(it.n, 1);
  chi_items_free(&it);
}

static void bad_items_are_named(void **state) {
  (void)state;
  chi_items it;
  static const struct {
    const char *extra, *words;
  } kBad[] = {{"\"constraints\":{}", "constraints"},
              {"\"constraints\":[{},{},{},{},{}]", "at most 4"},
              {"\"constraints\":[{\"words\":\"x\"}]", "constraints[0].substitutes"},
              {"\"constraints\":[{\"substitutes\":[{\"words\":\"z\"}]}]", "'answer' is missing"},
              {"\"constraints\":[{\"substitutes\":[7]}]", "'words' is missing"},
              {"\"twins\":[]", "twins"},
              {"\"twins\":{\"named\":{\"question\":\"Q?\"}}", "twins.named: field 'answer'"},
              {"\"hard\":1", "hard"},
              {"\"split\":1", "'split' is not text"}};
  for (size_t i = 0; i < sizeof kBad / sizeof *kBad; i++) {
    char line[400];
    snprintf(line, sizeof line, "{\"id\":\"a\",\"question\":\"Q [x]?\",\"answer\":\"y\",%s}\n", kBad[i].extra);
    assert_fails(load(&it, line, err), CHI_ERR_FORMAT, kBad[i].words);
  }
  assert_works(load(&it, "{\"id\":\"a\",\"question\":\"Q\",\"answer\":\"y\",\"split\":\"dev\"}\n", err));
  assert_fails(chi_items_split(&it, "tset", err), CHI_ERR_ARG, "the file has: dev");
  chi_items_free(&it);
}

/* ---- intervals and sums -------------------------------------------------------------------------------------- */
static void interval_counts_units(void **state) {
  (void)state;
  enum { kUnits = 60, kTimes = 5 };
  bool one[kUnits], many[kUnits * kTimes];
  int32_t own[kUnits], shared[kUnits * kTimes];
  int k = 0;
  double lo, hi, lo2, hi2;
  for (int i = 0; i < kUnits; i++) {
    one[i] = i % 4 != 0;
    k += one[i];
    own[i] = i;
    for (int j = 0; j < kTimes; j++) many[i * kTimes + j] = one[i], shared[i * kTimes + j] = i;
  }
  chi_wilson(k, kUnits, &lo, &hi);
  assert_float_equal(lo, 0.6277, 1e-4); /* 45 of 60 */
  assert_float_equal(hi, 0.8422, 1e-4);
  chi_wilson_clustered(one, own, kUnits, &lo2, &hi2); /* one trial a unit: plain but for g/(g-1) */
  assert_float_equal(lo2, lo, 2e-3);
  assert_float_equal(hi2, hi, 2e-3);
  chi_wilson_clustered(many, shared, kUnits * kTimes, &lo, &hi); /* repeats that agree add nothing */
  assert_float_equal(lo2, lo, 1e-12);
  assert_float_equal(hi2, hi, 1e-12);
  for (int i = 0; i < kUnits * kTimes; i++) many[i] = true;
  chi_wilson_clustered(many, shared, kUnits * kTimes, &lo, &hi); /* all right: as many trials as units */
  chi_wilson(kUnits, kUnits, &lo2, &hi2);
  assert_float_equal(lo, lo2, 1e-12);
  for (int i = 0; i < kUnits * kTimes; i++) many[i] = i % kTimes != 0; /* every unit alike: never more than n trials */
  chi_wilson_clustered(many, shared, kUnits * kTimes, &lo, &hi);
  chi_wilson(0.8 * kUnits, kUnits, &lo2, &hi2);
  assert_true(lo <= 0.8 && hi >= 0.8 && lo >= lo2 - 1e-12);
  chi_wilson_clustered(many, shared, 0, &lo, &hi);
  assert_true(isnan(lo) && isnan(hi));
}

enum { kItems = 400 };
static void make_items(chi_items *items, chi_item *it, chi_fact_result *r) {
  static const char *const kForms[] = {"fact", "scene", "text_named"}, *const kGroups[] = {"A", "B", "C", ""};
  static const char *const kRelations[] = {"capital", "region", "name"}, *const kAnswers[] = {"p", "q", "r", "s", "t"};
  static char units[kItems][16];
  memset(r, 0, kItems * sizeof *r);
  for (int i = 0; i < kItems; i++) {
    uint32_t u = chi_rng_u32(7, 1, (uint32_t)i, 0), v = chi_rng_u32(7, 2, (uint32_t)i, 0);
    snprintf(units[i], sizeof units[i], "u%u", v % 90);
    it[i] = (chi_item){.id = "x",
                       .group = kForms[u % 3],
                       .entity_group = kGroups[u / 3 % 4],
                       .relation = kRelations[u / 12 % 3],
                       .answer = kAnswers[u / 36 % 5],
                       .unit = units[i],
                       .held_out = u / 180 % 4 == 0,
                       .prior = u / 720 % 9 == 0 ? "w" : NULL,
                       .n_parts = 1 + (int)(v / 90 % 2)};
    r[i].right = v / 180 % 3 != 0;
    r[i].p = 0.9;
    for (int k = 0; k < it[i].n_parts; k++)
      r[i].part[k] = (chi_fact_part){.asked = true, .changed = v / 540 % 2, .counterfactual = v / 1080 % 2, .p = 0.1};
    snprintf(r[i].said, sizeof r[i].said, "%s", v / 2160 % 2 ? "w" : "x");
  }
  *items = (chi_items){.item = it, .n = kItems};
}

static void slices_are_counted(void **state) {
  (void)state;
  static chi_item it[kItems];
  static chi_fact_result r[kItems];
  chi_items items;
  chi_card *c = NULL;
  chi_card_slice *s = NULL;
  size_t n = 0;
  make_items(&items, it, r);
  assert_works(chi_card_new(&c, &items, r, err));
  assert_works(chi_card_slices(&s, &n, c, CHI_CARD_FORM | CHI_CARD_GROUP | CHI_CARD_RELATION, err));
  assert_int_equal(n, 36);
  int total = 0;
  for (size_t k = 0; k < n; k++) {
    s[k].held_out = k % 3 == 0 ? CHI_PICK_NO : k % 3 == 1 ? CHI_PICK_YES : CHI_PICK_ANY;
    chi_card_sum sum = chi_card_sum_of(c, &s[k]);
    int want = 0, right = 0, changed = 0, most = 0, priors = 0, prior = 0, units = 0;
    bool seen[90] = {0};
    int answers[5] = {0};
    for (int i = 0; i < kItems; i++) {
      if (strcmp(it[i].group, s[k].form) || strcmp(it[i].entity_group, s[k].group) ||
          strcmp(it[i].relation, s[k].relation) || (k % 3 == 0 && it[i].held_out) || (k % 3 == 1 && !it[i].held_out))
        continue;
      int u = atoi(it[i].unit + 1), a = it[i].answer[0] - 'p';
      want++;
      right += r[i].right;
      changed += r[i].part[1].asked && r[i].part[1].changed;
      units += !seen[u];
      seen[u] = true;
      if (++answers[a] > most) most = answers[a];
      priors += it[i].prior != NULL;
      prior += it[i].prior && strcmp(r[i].said, "w") == 0;
    }
    assert_int_equal(sum.n, want);
    assert_int_equal(sum.right, right);
    assert_int_equal(sum.units, units);
    assert_int_equal(sum.majority, most);
    assert_int_equal(sum.part[1].changed, changed);
    assert_int_equal(sum.priors, priors);
    assert_int_equal(sum.prior, prior);
    if (sum.part[0].n) assert_float_equal(sum.part[0].drop, 0.8, 1e-12);
    total += k % 3 == 2 ? sum.n : 0;
  }
  assert_in_range(total, 1, kItems - 1);
  chi_card_slice known = {.known = CHI_PICK_YES}, fact = {.fact = CHI_PICK_NO}, two = {.parts = 2};
  int n_known = 0, n_fact = 0, n_two = 0;
  for (int i = 0; i < kItems; i++) {
    n_known += !it[i].prior && (!*it[i].entity_group || *it[i].entity_group == 'A');
    n_fact += strcmp(it[i].relation, "name") == 0;
    n_two += it[i].n_parts == 2;
  }
  assert_int_equal(chi_card_sum_of(c, &known).n, n_known);
  assert_int_equal(chi_card_sum_of(c, &fact).n, n_fact);
  assert_int_equal(chi_card_sum_of(c, &two).n, n_two);
  chi_promise p[CHI_PROMISES];
  int np = chi_card_promises(p, c);
  assert_in_range(np, 10, CHI_PROMISES);
  for (int i = 0; i < np; i++) assert_int_equal(p[i].ok, p[i].at_most ? p[i].got <= p[i].need : p[i].got >= p[i].need);
  chi_free(s);
  chi_card_free(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(asks_equal_single_generations),
      cmocka_unit_test(asks_name_what_fails),
      cmocka_unit_test(brackets_are_filled),
      cmocka_unit_test(items_of_both_worlds),
      cmocka_unit_test(bad_items_are_named),
      cmocka_unit_test(interval_counts_units),
      cmocka_unit_test(slices_are_counted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* In-context lookup over items: a line is what the analysis says of each ask, the table what the lines were given. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/lookup_report.h"
#include "support/support.h"

#define TINY "tests/fixtures/tiny-gqa"
#define PICTURE TINY "/picture.png"

static chi_data_item item_of(const char *id, const char *answer, const char *entity) {
  return (chi_data_item){
      .id = id,
      .unit = "u",
      .form = "scene",
      .relation = "color",
      .entity = entity,
      .ask = {.question = "What is the capital of [this] country?", .image = PICTURE, .answer = answer}};
}

static double num(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

/* The same as the analysis called by hand, for the picture and for the words alone. */
static void test_line(void **state) {
  (void)state;
  chi_model *m = NULL;
  json_t *line = NULL, *again = NULL;
  chi_prompt *p = NULL, *swap = NULL;
  chi_incontext *x = NULL;
  assert_works(chi_model_open(&m, TINY, CHI_DTYPE_F32, err));
  chi_data_sub sub[] = {{.words = "this or that or another"}, {.words = "that"}}; /* the first takes more rows */
  chi_data_bracket bracket = {.words = "this", .sub = sub, .n_sub = 2};
  chi_data_item it = item_of("a", "#198", "#281"), other = item_of("b", "#20", "#161");
  it.ask.bracket = &bracket, it.ask.n_brackets = 1;
  it.twin[CHI_TWIN_DESCRIBED] = (chi_data_ask){.question = "Of what is it the capital?", .answer = "#161"};
  chi_lookup_opts o = {.n_heads = 3, .n_rows = 4, .bare = m};
  assert_works(chi_lookup_line(&line, m, &it, &other, &o, err));
  const json_t *asks = json_object_get(line, "asks"), *own = json_object_get(asks, "item"),
               *told = json_object_get(asks, "described");
  assert_true(chi_streq(json_string_value(json_object_get(line, "status")), "ok") && json_object_size(asks) == 3);
  assert_true(json_equal(told, json_object_get(asks, "bare described"))); /* the same model here */
  chi_prompt_opts po = {.image = PICTURE, .question = it.ask.question};
  assert_works(chi_prompt_make(&p, m, &po, err));
  assert_works(chi_prompt_replace(&swap, m, p, "that", err));
  assert_int_equal(swap->n_rows, p->n_rows);
  chi_incontext_opts io = {
      .answer = 198, .rival = 20, .object = 281, .other = 161, .swapped = swap, .n_heads = 3, .n_rows = 4};
  assert_works(chi_incontext_run(&x, m, p, &io, err));
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++)
    assert_true(num(own, chi_incontext_measures[k].key) == chi_incontext_get(x, k));
  assert_true(json_is_true(json_object_get(own, "right")) == x->right);
  const json_t *first = json_array_get(json_object_get(own, "heads"), 0);
  assert_int_equal(json_array_size(json_object_get(own, "heads")), 3);
  assert_int_equal(json_integer_value(json_array_get(first, 0)), x->head[0].layer);
  assert_int_equal(json_integer_value(json_array_get(first, 1)), x->head[0].head);
  /* words alone: no patches, nothing to swap */
  assert_true(isnan(num(told, "mrr_embed_answer")) && isnan(num(told, "attention_swapped")) && num(told, "p") > 0);
  assert_works(chi_lookup_line(&again, m, &it, &other, &o, err));
  assert_true(json_equal(line, again));
  json_decref(line);
  json_decref(again);
  /* a twin that fails says why; an item that fails is failed */
  it.twin[CHI_TWIN_DESCRIBED].answer = "#400";
  o.bare = NULL;
  assert_works(chi_lookup_line(&line, m, &it, NULL, &o, err));
  asks = json_object_get(line, "asks");
  assert_non_null(strstr(json_string_value(json_object_get(json_object_get(asks, "described"), "problem")), "#400"));
  assert_true(isnan(num(json_object_get(asks, "item"), "mrr_rival")) && json_object_size(asks) == 2);
  json_decref(line);
  it.ask.image = "no-such-picture.png";
  assert_works(chi_lookup_line(&line, m, &it, NULL, &o, err));
  assert_true(chi_streq(json_string_value(json_object_get(line, "status")), "failed") &&
              strstr(json_string_value(json_object_get(line, "reason")), "no-such-picture.png"));
  json_decref(line);
  chi_incontext_free(x);
  chi_prompt_free(p);
  chi_prompt_free(swap);
  chi_model_free(m);
}

static void test_other(void **state) {
  (void)state;
  chi_data_item it[5] = {item_of("a", "red", "heart"), item_of("b", "red", "ring"), item_of("c", "blue", "heart"),
                         item_of("d", "blue", "ring"), item_of("e", "green", "star")};
  const chi_data_item *list[5];
  int seen = 0;
  it[4].relation = "shape";
  for (int i = 0; i < 5; i++) list[i] = &it[i];
  for (uint64_t seed = 0; seed < 9; seed++) {
    seen += chi_lookup_other(list, 5, 0, seed) == &it[3]; /* the only one that differs in both */
    assert_ptr_equal(chi_lookup_other(list, 5, 1, seed), &it[2]);
    assert_null(chi_lookup_other(list, 5, 4, seed));
  }
  assert_int_equal(seen, 9);
}

/* Ten entities, twice: in words 0.2 less, two of three heads shared; one item wrong in words, one that failed. */
static json_t *planted(void) {
  json_t *lines = json_array();
  for (int i = 0; i < 20; i++) {
    double base = 0.5 + 0.01 * (i % 7);
    char id[16], unit[32];
    snprintf(id, sizeof id, "i%d", i);
    snprintf(unit, sizeof unit, i % 2 ? "e%d=red|color" : "red=e%d|shape", i / 2);
    json_array_append_new(
        lines, json_pack("{s:s,s:s,s:s,s:{s:{s:b,s:f,s:f,s:[[i,i],[i,i],[i,i]]},s:{s:b,s:f,s:[[i,i],[i,i],[i,i]]}}}",
                         "id", id, "unit", unit, "status", "ok", "asks", "item", "right", 1, "mrr_answer", base,
                         "mrr_rival", base - 0.3, "heads", 0, 1, 5, 2, 3, 3, "described", "right", i != 4, "mrr_answer",
                         base - 0.2, "heads", 3, 3, 0, 1, 4, 4));
  }
  json_array_append_new(
      lines, json_pack("{s:s,s:s,s:s,s:s}", "id", "x", "unit", "e1|color", "status", "failed", "reason", "no picture"));
  return lines;
}

static void test_table(void **state) {
  (void)state;
  chi_lookup_table *t = NULL;
  json_t *lines = planted(), *settings = json_object();
  chi_str text = {0};
  chi_provenance prov = {.command = "test"};
  assert_works(chi_lookup_table_make(&t, lines, 12, &(chi_boot_opts){.draws = 500, .seed = 1}, err));
  assert_true(t->items == 21 && t->failed == 1 && t->units == 10 && t->asked[1] == 20 && t->right[1] == 19);
  const chi_lookup_row *own = &t->row[0][2], *told = &t->row[1][2]; /* mrr_answer */
  double mean = 0;
  for (int i = 0; i < 20; i++) mean += (0.5 + 0.01 * (i % 7)) / 20;
  assert_string_equal(chi_incontext_measures[2].key, "mrr_answer");
  assert_true(fabs(own->mean.value - mean) < 1e-12 && own->mean.n == 20 && own->mean.clusters == 10);
  assert_true(own->less_item.n == 0 && told->less_item.n == 19 && fabs(told->less_item.value + 0.2) < 1e-12);
  assert_true(fabs(t->control[0][0].value - 0.3) < 1e-12 && t->control[1][0].n == 0);
  assert_true(t->n_pairs == 1 && t->pair[0].a == 0 && t->pair[0].b == 1 && t->pair[0].shared.value == 2);
  assert_true(t->n_heads == 3 && fabs(t->by_chance - 0.75) < 1e-12);
  const char *dir = tmp_path("lookup");
  assert_works(chi_lookup_write(t, settings, &prov, dir, err));
  assert_int_equal(count_files(dir), 2);
  assert_works(chi_lookup_summary(t, 200, &text, err));
  assert_non_null(strstr(text.s, "best heads that item and described share: 2.00"));
  chi_str_free(&text);
  chi_lookup_table_free(t);
  json_decref(lines);
  json_decref(settings);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_line), cmocka_unit_test(test_other),
                                     cmocka_unit_test(test_table)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

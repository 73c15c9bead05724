/* MMEdit's files: every quirk that the published ones have, planted once; refused files. */
#include <stdio.h>
#include <string.h>

#include "data/dataset.h"
#include "data/mmedit.h"
#include "support/support.h"

static chi_dataset *open_text(const char *text, const chi_dataset_opts *o) {
  chi_dataset *d = NULL;
  const char *path = tmp_path("mmedit.json");
  put_file(path, text, strlen(text));
  assert_works(chi_dataset_open(&d, path, o, err));
  return d;
}

static size_t count(const chi_dataset *d, const char *kind, int *first) {
  int n;
  const chi_data_kind *k = chi_data_kinds(&n);
  for (int i = 0; i < n; i++)
    if (strcmp(k[i].name, kind) == 0) return chi_dataset_count(d, i, first);
  fail_msg("no kind %s", kind);
  return 0;
}
#define assert_count(d, kind, want, row)                \
  do {                                                  \
    int first_row;                                      \
    assert_int_equal(count(d, kind, &first_row), want); \
    assert_int_equal(first_row, row);                   \
  } while (0)

#define REC(src, pred, reph, alt, im, imr, loc, ans, ml, mq, ma)                                             \
  "{\"src\":\"" src "\",\"pred\":\"" pred "\",\"rephrase\":\"" reph "\",\"alt\":\"" alt "\",\"image\":\"" im \
  "\",\"image_rephrase\":\"" imr "\",\"loc\":\"" loc "\",\"loc_ans\":\"" ans "\",\"m_loc\":\"" ml            \
  "\",\"m_loc_q\":\"" mq "\",\"m_loc_a\":\"" ma "\"}"

static const char kRecords[] = "[" REC("What is it?", "a cat", "What is this?", "dog", "v/a.jpg", "r/1_a.png",
                                       "nq question: who", "me", "v/m.jpg", "What sport?", "golf") ",\n" /* clean */
    REC("What is it?", "a cat", "What is it?", " red car ", "v/a.jpg", "r/2_a.png", "nq question: wh\\u00e9n", "then",
        "v/m.jpg", "Where?", "here") ",\n" /* repeated, same words, stray space, beyond ascii */
    REC("How many?", "Two", "How\\nmany?", "two", "v/b.jpg", "r/3_c.png", "why so?", "because", "v/k.jpg", "What [x]?",
        "tennis") ",\n" /* already right, line feed, odd name, no prefix, question mark, not the pool's majority */
    REC("Is it?", "no", "Is that?", "yes", "v/d.jpg", "r/4_d.png", "nq question: x", "", "v/k.jpg", "Who?",
        "him") ",\n" /* empty loc_ans */
    REC("Is it?", "no", "Is that?", "", "v/e.jpg", "r/5_e.png", "nq question: y", "z", "v/k.jpg", "Who?", "him") "]";

static void test_records(void **state) {
  (void)state;
  chi_dataset *d = open_text(kRecords, &(chi_dataset_opts){.text_only = true});
  assert_int_equal(d->format, CHI_DATA_MMEDIT);
  assert_string_equal(d->name, "mmedit vqa");
  assert_int_equal(d->n, 5);
  assert_int_equal(d->n_unusable, 1);
  assert_count(d, "bad-field", 1, 5);
  assert_count(d, "repeated-request", 1, 2);
  assert_count(d, "same-rephrase", 1, 2);
  assert_count(d, "stray-space", 1, 2);
  assert_count(d, "beyond-ascii", 1, 2);
  assert_count(d, "already-right", 1, 3);
  assert_count(d, "line-feeds", 1, 3);
  assert_count(d, "odd-picture-name", 1, 3);
  assert_count(d, "no-nq-prefix", 1, 3);
  assert_count(d, "question-mark", 1, 3);
  assert_count(d, "empty-field", 1, 4);
  const chi_mmedit *e = d->item[1].mmedit;
  assert_string_equal(e->alt, " red car "); /* kept to the byte */
  assert_string_equal(d->item[0].mmedit->m_loc_q, "What sport?");
  assert_string_equal(d->item[0].ask.answer, "dog");
  assert_string_equal(d->item[0].unit, "v/a.jpg|What is it?");
  assert_string_equal(d->item[2].group, "number");
  assert_null(d->item[0].ask.image);
  chi_dataset_close(d);
}

static void test_against(void **state) {
  (void)state;
  const char *nq = tmp_path("nq.json"), *ok = tmp_path("ok.json"), *other = tmp_path("other.json");
  static const char kNq[] =
      "{\"questions\": [\"nq question: who\", \"why so?\", \"nq question: x\"], \"answers\": [\"me\", \"because\", "
      "\"w\"]}";
  static const char kOk[] =
      "[{\"question_id\": 1, \"question\": \"What sport?\", \"image\": \"v/m.jpg\", \"answer\": [\"golf\", \"a\", "
      "\"a\"]},"
      "{\"question_id\": 2, \"question\": \"Where?\", \"image\": \"v/m.jpg\", \"answer\": [\"\", \"here\", "
      "\"there\"]}]";
  put_file(nq, kNq, sizeof kNq - 1);
  put_file(ok, kOk, sizeof kOk - 1);
  put_file(other, kRecords, sizeof kRecords - 1);
  const char *files[] = {nq, ok, other};
  chi_dataset *d = open_text(kRecords, &(chi_dataset_opts){.text_only = true, .against = files, .n_against = 3});
  assert_count(d, "off-pool", 2, 3);            /* loc of rows 3 and 4, one place off */
  assert_count(d, "minority-answer", 1, 1);     /* golf: one of three */
  assert_count(d, "not-in-pool", 6, 2);         /* loc of rows 2, 4 (its answer), 5; m_loc of rows 3, 4, 5 */
  assert_count(d, "shared-picture", 4, 1);      /* a, b, d, e: each once */
  assert_count(d, "shared-locality", 2 + 5, 1); /* pictures m, k; five text questions */
  chi_dataset_close(d);
  d = NULL;
  assert_works(chi_dataset_open(&d, nq, NULL, err));
  assert_int_equal(d->n, 3);
  assert_string_equal(d->item[1].ask.answer, "because");
  assert_int_equal(d->n_unusable, 0);
  chi_dataset_close(d);
  d = NULL;
  assert_works(chi_dataset_open(&d, ok, &(chi_dataset_opts){.text_only = true}, err));
  assert_string_equal(d->item[0].ask.answer, "a");
  assert_int_equal(d->item[0].n_alternatives, 1);
  assert_string_equal(d->item[1].ask.answer, "here");
  assert_count(d, "empty-field", 1, 2);
  chi_dataset_close(d);
}

/* The download whose text questions were two in all; captions; missing pictures. */
static void test_whole_file(void **state) {
  (void)state;
  chi_str s = {0};
  chi_str_add(&s, "[");
  for (int i = 0; i < 30; i++)
    chi_str_addf(&s,
                 "%s" REC("a photo of", "x", "an image of", "A man on a horse in the sea.", "%d.jpg", "r/%d.png",
                          "nq question: %d", "y", "m.jpg", "Who?", "him"),
                 i ? "," : "", i, i, i % 2);
  chi_str_add(&s, "]");
  chi_dataset *d = open_text(s.s, NULL);
  assert_string_equal(d->name, "mmedit caption");
  assert_count(d, "few-text-questions", 1, 1);
  assert_count(d, "missing-picture", 90, 1);
  assert_int_equal(d->n_unusable, 30);
  assert_string_equal(d->item[0].group, "sentence");
  chi_dataset_close(d);
  chi_str_free(&s);
}

static void test_vlkeb(void **state) {
  (void)state;
  static const char kText[] =
      "[{\"src\": \"Who is it?\", \"alt\": \"Ann\", \"image\": \"a.jpg\", \"rephrase\": \"Who?\", \"loc\": \"why\","
      "\"loc_ans\": \"so\", \"port_new\": [{\"port_type\": \"1-hop\", \"Q&A\": {\"Question\": \"Where was she born?\","
      "\"Answer\": \"Rome\"}}]},"
      "{\"src\": \"Who is it?\", \"alt\": \"Bo\", \"image\": \"b.jpg\", \"port_new\": [{\"port_type\": 3}]}]";
  chi_dataset *d = open_text(kText, &(chi_dataset_opts){.text_only = true});
  assert_int_equal(d->item[0].mmedit->n_port, 1);
  assert_string_equal(d->item[0].mmedit->port[0].type, "1-hop");
  assert_string_equal(d->item[0].mmedit->port[0].answer, "Rome");
  assert_count(d, "no-nq-prefix", 0, 0); /* none of the file has it */
  assert_int_equal(d->n_unusable, 1);
  chi_dataset_close(d);
}

static void test_answer_types(void **state) {
  (void)state;
  static const struct {
    const char *text;
    chi_answer_type type;
  } k[] = {{"yes", CHI_ANSWER_YES_NO},      {" No.", CHI_ANSWER_YES_NO},
           {"12", CHI_ANSWER_NUMBER},       {"Two", CHI_ANSWER_NUMBER},
           {"10:30", CHI_ANSWER_NUMBER},    {"dog", CHI_ANSWER_WORD},
           {"", CHI_ANSWER_WORD},           {"red car", CHI_ANSWER_PHRASE},
           {"two dogs", CHI_ANSWER_PHRASE}, {"a b c d e", CHI_ANSWER_SENTENCE}};
  for (size_t i = 0; i < sizeof k / sizeof *k; i++) assert_int_equal(chi_answer_type_of(k[i].text), k[i].type);
}

static void test_refused(void **state) {
  (void)state;
  chi_dataset *d = NULL;
  const char *p = tmp_path("bad.json"), *none = tmp_path("none.json");
  const chi_dataset_opts against = {.text_only = true, .against = &none, .n_against = 1};
  static const char kUneven[] = "{\"questions\": [\"a\"], \"answers\": []}";
  put_file(p, kUneven, sizeof kUneven - 1);
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "1 questions and 0 answers");
  put_file(p, kRecords, sizeof kRecords - 1);
  assert_fails(chi_dataset_open(&d, p, &against, err), CHI_ERR_IO, "none.json");
  put_file(none, "[1]", 3);
  assert_fails(chi_dataset_open(&d, p, &against, err), CHI_ERR_FORMAT, "is no file of MMEdit");
  assert_null(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_records), cmocka_unit_test(test_against),      cmocka_unit_test(test_whole_file),
      cmocka_unit_test(test_vlkeb),   cmocka_unit_test(test_answer_types), cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

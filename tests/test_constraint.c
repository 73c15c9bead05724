/* Constraint spans: brackets, constraints given apart from the question with the quirks that annotated data has, and
 * the way from bytes to tokens. */
#include "support/support.h"

#include <stdio.h>
#include <string.h>

#include "text/text.h"

static void brackets(void **state) {
  static const struct {
    const char *question, *text;
    size_t n;
    const char *words[3];
  } cases[] = {
      {"What is the capital of [this country]?", "What is the capital of this country?", 1, {"this country"}},
      {"[this tower]", "this tower", 1, {"this tower"}},
      {"Did [this director] win [an award] in [1999]?",
       "Did this director win an award in 1999?",
       3,
       {"this director", "an award", "1999"}},
      {"of [ this country ]?", "of  this country ?", 1, {"this country"}},
      {"a \\[b\\] [c]", "a [b] c", 1, {"c"}},
      {"[a\\]b]", "a]b", 1, {"a]b"}},
      {"back\\slash [x]", "back\\slash x", 1, {"x"}},
      {"in [\xC3\x8Ele-de-France]?", "in \xC3\x8Ele-de-France?", 1, {"\xC3\x8Ele-de-France"}},
      {"[\xE3\x80\x80\xE6\x9D\xB1\xE4\xBA\xAC\xE3\x80\x80]",
       "\xE3\x80\x80\xE6\x9D\xB1\xE4\xBA\xAC\xE3\x80\x80",
       1,
       {"\xE6\x9D\xB1\xE4\xBA\xAC"}},
      {"no constraint here", "no constraint here", 0, {NULL}},
      {"", "", 0, {NULL}},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *text = NULL;
    chi_span *spans = NULL;
    size_t n = 99;
    assert_works(chi_constraint_parse(&text, &spans, &n, cases[i].question, err));
    assert_string_equal(text, cases[i].text);
    assert_int_equal(n, cases[i].n);
    for (size_t k = 0; k < n; k++) {
      assert_int_equal(spans[k].end - spans[k].begin, strlen(cases[i].words[k]));
      assert_memory_equal(text + spans[k].begin, cases[i].words[k], strlen(cases[i].words[k]));
    }
    chi_free(text);
    chi_free(spans);
  }
}

static void bad_brackets(void **state) {
  static const struct {
    const char *question, *words;
  } cases[] = {
      {"of [this country?", "byte 3 is not closed"},
      {"of this country]?", "byte 15 closes no bracket"},
      {"of [this [country]]?", "byte 9 is inside the one at byte 3"},
      {"of []?", "byte 3 is empty"},
      {"of [ \t]?", "byte 3 is empty"},
      {"[a] b]", "byte 5 closes"},
      {"a\xFF[b]", "UTF-8 at byte 1"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *text = NULL;
    chi_span *spans = NULL;
    size_t n = 99;
    assert_fails(chi_constraint_parse(&text, &spans, &n, cases[i].question, err), CHI_ERR_ARG, cases[i].words);
    assert_null(text);
    assert_null(spans);
    assert_int_equal(n, 0);
  }
}

/* The kinds of rows that annotated sets have: cut off, with a comma left on, other case, NFD against NFC. */
static void found_apart(void **state) {
  static const struct {
    const char *question, *constraint, *found, *how;
  } cases[] = {
      {"In what year was this bridge built?", "this bridge", "this bridge", "exact"},
      {"This bridge crosses which river?", "this bridge", "This bridge", "ignoring case"},
      {"This operating system was made by", "This operating", "This operating", "exact"},
      {"this company, which was founded in", "this company,", "this company,", "exact"},
      {"this company was founded in", "this company,", "this company", "without its final punctuation"},
      {"Where is this tower?", "this tower.", "this tower", "without its final punctuation"},
      {"Who painted this\xC2\xA0 mural ?", "this mural", "this\xC2\xA0 mural", "with white space folded"},
      {"Who painted this mural?", "  this   mural ", "this mural", "with white space folded"},
      {"Who runs Caf\xC3\xA9 Noir?", "cafe\xCC\x81 noir", "Caf\xC3\xA9 Noir", "with accents composed"},
      {"Who runs Cafe\xCC\x81 Noir?", "Caf\xC3\xA9 Noir", "Cafe\xCC\x81 Noir", "with accents composed"},
      {"What hat is that?", "hat", "hat", "exact"}, /* the word, not the end of "What" */
      {"What is a hatstand?", "hat", "hat", "exact, inside a word"},
      {"\"The Old Mill\" was painted by", "\"The Old Mill\"", "\"The Old Mill\"", "exact"},
      {"this car and this car", "this car", "this car", "exact"},
      {"is this \xC3\x89TOILE near?", "\xC3\xA9toile", "\xC3\x89TOILE", "ignoring case"},
      {"\xE3\x81\x93\xE3\x81\xAE\xE5\xBB\xBA\xE7\x89\xA9\xE3\x81\xAF\xE4\xBD\x95\xE3\x81\xA7\xE3\x81\x99\xE3\x81\x8B",
       "\xE5\xBB\xBA\xE7\x89\xA9", "\xE5\xBB\xBA\xE7\x89\xA9", "exact, inside a word"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    chi_span s = {0, 0};
    const char *how = NULL;
    assert_works(chi_constraint_find(&s, &how, cases[i].question, cases[i].constraint, err));
    if (s.end - s.begin != strlen(cases[i].found) ||
        memcmp(cases[i].question + s.begin, cases[i].found, s.end - s.begin) != 0)
      fail_msg("\"%s\" in \"%s\": found \"%.*s\"", cases[i].constraint, cases[i].question, (int)(s.end - s.begin),
               cases[i].question + s.begin);
    assert_string_equal(how, cases[i].how);
  }
  chi_span s;
  assert_works(chi_constraint_find(&s, NULL, "this car and this car", "this car", err));
  assert_int_equal(s.begin, 0); /* the first of several */
}

static void not_found(void **state) {
  (void)state;
  chi_span s;
  /* words that do not stand together */
  assert_fails(chi_constraint_find(&s, NULL, "What kind of hat is this woman wearing?", "this hat", err), CHI_ERR_ARG,
               "this hat");
  assert_fails(chi_constraint_find(&s, NULL, "Who painted this mural?", "bread taste", err), CHI_ERR_ARG,
               "bread taste");
  assert_fails(chi_constraint_find(&s, NULL, "Who painted this mural?", "", err), CHI_ERR_ARG, "not in the question");
  assert_fails(chi_constraint_find(&s, NULL, "Who painted this mural?", " ?!", err), CHI_ERR_ARG,
               "not in the question");
  assert_fails(chi_constraint_find(&s, NULL, "", "this", err), CHI_ERR_ARG, "not in the question");
  assert_fails(chi_constraint_find(&s, NULL, "a\xFF", "a", err), CHI_ERR_ARG, "question is not valid UTF-8 at byte 1");
  assert_fails(chi_constraint_find(&s, NULL, "a", "\xFF", err), CHI_ERR_ARG, "constraint is not valid UTF-8");
}

/* ---- tokens ------------------------------------------------------------------------------------------------ */
static void spans_become_tokens(void **state) {
  /* "the [this country]?" as tokens: BOS, "the", " this", " count", "ry?", and an added end token */
  static const char text[] = "the this country?";
  int32_t id[] = {1, 5, 6, 7, 8, 2}, begin[] = {0, 0, 3, 8, 14, 0}, end[] = {0, 3, 8, 14, 17, 0};
  const chi_tokens t = {.id = id, .begin = begin, .end = end, .n = 6};
  static const struct {
    chi_span span;
    size_t first, last;
    bool grown;
  } cases[] = {
      {{4, 8}, 2, 3, false},                        /* "this": its leading space is no growth */
      {{4, 16}, 2, 5, true},                        /* "this country": the last token holds the question mark */
      {{4, 17}, 2, 5, false},                       /* with it, all fits */
      {{5, 8}, 2, 3, true},                         /* "his": grown to the left */
      {{0, 3}, 1, 2, false},                        /* never the empty BOS */
      {{9, 10}, 3, 4, true},  {{3, 4}, 2, 3, true}, /* the space itself */
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    size_t first = 99, last = 99;
    bool grown = !cases[i].grown;
    assert_works(chi_span_tokens(&first, &last, &grown, &t, text, cases[i].span, err));
    assert_int_equal(first, cases[i].first);
    assert_int_equal(last, cases[i].last);
    assert_int_equal(grown, cases[i].grown);
  }
  size_t first, last;
  bool grown;
  assert_fails(chi_span_tokens(&first, &last, &grown, &t, text, (chi_span){17, 20}, err), CHI_ERR_ARG, "17 to 20");
  assert_fails(chi_span_tokens(&first, &last, &grown, &t, text, (chi_span){4, 4}, err), CHI_ERR_ARG, "no token");
}

/* The whole way with a real tokenizer file: the tokens of the span, decoded, hold the constraint. */
static void through_a_tokenizer(void **state) {
  static const char *const names[] = {"llama2", "llama2-metaspace", "gpt2", "llama3", "qwen"};
  static const char *const questions[] = {"What is the capital of [this country]?", "[This city] lies where?",
                                          ("Wo liegt [diese gr\xC3\xB6\xC3\x9F"
                                           "te Stadt], bitte?"),
                                          "\xE8\xBF\x99\xE4\xB8\xAA[\xE5\x9B\xBD\xE5\xAE\xB6]?"};
  (void)state;
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    char path[128], *json = NULL;
    size_t len = 0;
    chi_tokenizer *t = NULL;
    snprintf(path, sizeof path, "tests/fixtures/tokenizer/own/%s.json", names[k]);
    assert_works(chi_read_file(&json, &len, path, 1 << 20, err));
    assert_works(chi_tokenizer_parse(&t, json, len, path, err));
    for (size_t q = 0; q < sizeof questions / sizeof *questions; q++) {
      char *text = NULL, *prompt = NULL, *back = NULL, want[64];
      chi_span *span = NULL;
      size_t n, first, last;
      bool grown;
      chi_tokens tok = {0};
      const chi_template *form = chi_template_find("llava-1.5");
      assert_works(chi_constraint_parse(&text, &span, &n, questions[q], err));
      assert_int_equal(n, 1);
      snprintf(want, sizeof want, "%.*s", (int)(span->end - span->begin), text + span->begin);
      assert_works(chi_template_fill(&prompt, form, true, "<image>", text, err));
      size_t at = chi_template_question_at(form, true, "<image>");
      chi_span moved = {span->begin + at, span->end + at};
      assert_works(chi_encode(t, prompt, strlen(prompt), true, &tok, err));
      assert_works(chi_span_tokens(&first, &last, &grown, &tok, prompt, moved, err));
      assert_works(chi_decode(t, tok.id + first, last - first, false, &back, err));
      if (!strstr(back, want)) fail_msg("%s: \"%s\" is not in \"%s\"", names[k], want, back);
      chi_tokens_free(&tok);
      chi_free(text);
      chi_free(span);
      chi_free(prompt);
      chi_free(back);
    }
    chi_free(json);
    chi_tokenizer_free(t);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(brackets),  cmocka_unit_test(bad_brackets),        cmocka_unit_test(found_apart),
      cmocka_unit_test(not_found), cmocka_unit_test(spans_become_tokens), cmocka_unit_test(through_a_tokenizer),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

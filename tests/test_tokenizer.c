/* Tokenizers against Hugging Face's `tokenizers`: ids, byte offsets and decoded text of every corpus line, as checksums
 * made by tools/ref/tokenizer_corpus.py; plus refusals, limits and prompt templates. */
#include "support/corpus.h"
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <utf8proc.h>

#include "text/tok.h"

#define DIR "tests/fixtures/tokenizer/"

static chi_tokenizer *load_file(const char *path) {
  char *text = NULL;
  size_t len = 0;
  chi_err err = {0};
  chi_tokenizer *t = NULL;
  assert_int_equal(chi_read_file(&text, &len, path, 64 << 20, &err), 0);
  if (chi_tokenizer_parse(&t, text, len, path, &err) != 0) fail_msg("%s", err.text);
  chi_free(text);
  return t;
}

static void own_tokenizers(void **state) {
  static const char *const names[] = {"llama2", "llama2-metaspace", "gpt2", "llama3",    "qwen",
                                      "opt",    "codegen",          "bert", "bert-cased"};
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char json[128], bin[128];
    snprintf(json, sizeof json, DIR "own/%s.json", names[i]);
    snprintf(bin, sizeof bin, DIR "own/%s.bin", names[i]);
    chi_tokenizer *t = load_file(json);
    corpus_check(t, bin, names[i]);
    chi_tokenizer_free(t);
  }
}

static void check_folder(const char *name, const char *dir) {
  char bin[128];
  chi_tokenizer *t = NULL;
  snprintf(bin, sizeof bin, DIR "real/%s.bin", name);
  assert_works(chi_tokenizer_load(&t, dir, err));
  corpus_check(t, bin, name);
  chi_tokenizer_free(t);
}

/* Is dir/tokenizer.json the file that the checksums were made from? */
static bool same_version(const char *name, const char *dir) {
  char path[256], hex[65];
  json_t *real = NULL;
  snprintf(path, sizeof path, "%s/tokenizer.json", dir);
  assert_works(chi_json_load(&real, DIR "real.json", 1 << 16, err));
  assert_works(chi_sha256_file(hex, path, err));
  bool same = chi_streq(json_string_value(json_object_get(json_object_get(real, name), "sha256")), hex);
  json_decref(real);
  return same;
}

static void demo_tokenizer(void **state) {
  (void)state;
  if (!same_version("demo", "models/demo"))
    fail_msg("models/demo/tokenizer.json has changed; run tools/ref/tokenizer_corpus.py");
  check_folder("demo", "models/demo");
}

static void real_tokenizer(const char *name) {
  char dir[128], path[256];
  snprintf(dir, sizeof dir, "models/cache/tokenizers/%s", name);
  snprintf(path, sizeof path, "%s/tokenizer.json", dir);
  if (!chi_file_exists(path)) {
    print_message("skipped: %s is absent; scripts/get_tokenizers.sh fetches it\n", path);
    skip();
  }
  if (!same_version(name, dir)) {
    print_message("skipped: %s is not the version that the checksums were made from\n", path);
    skip();
  }
  check_folder(name, dir);
}

static void real_llama2(void **state) { (void)state, real_tokenizer("llama2"); }
static void real_gpt2(void **state) { (void)state, real_tokenizer("gpt2"); }
static void real_llama3(void **state) { (void)state, real_tokenizer("llama3"); }
static void real_qwen(void **state) { (void)state, real_tokenizer("qwen2_5"); }
static void real_bert(void **state) { (void)state, real_tokenizer("bert"); }

/* ---- variants ---------------------------------------------------------------------------------------------- */
static chi_tokenizer *parse_json(json_t *j, chi_err *err) {
  char *text = json_dumps(j, JSON_COMPACT);
  chi_tokenizer *t = NULL;
  chi_tokenizer_parse(&t, text, strlen(text), "variant", err);
  free(text);
  return t;
}

static json_t *own_json(const char *name) {
  char path[128];
  json_t *j = NULL;
  snprintf(path, sizeof path, DIR "own/%s.json", name);
  assert_int_equal(chi_json_load(&j, path, 1 << 20, NULL), 0);
  return j;
}

static void feature_variants(void **state) {
  (void)state;
  json_t *all = NULL, *v;
  char *want = NULL;
  size_t len = 0, k, at = 0;
  int total = 0;
  assert_int_equal(chi_json_load(&all, DIR "variants.json", 1 << 20, NULL), 0);
  assert_int_equal(chi_read_file(&want, &len, DIR "variants.bin", 1 << 20, NULL), 0);
  const json_t *picked = json_object_get(all, "lines"), *list = json_object_get(all, "variants");
  assert_int_equal(len, json_array_size(picked) * json_array_size(list) * 4);
  json_array_foreach(list, k, v) {
    const char *name = json_string_value(json_object_get(v, "name"));
    json_t *j = own_json(json_string_value(json_object_get(v, "base")));
    json_object_update(j, json_object_get(v, "set"));
    json_object_update(json_object_get(j, "model"), json_object_get(v, "model"));
    chi_err err = {0};
    chi_tokenizer *t = parse_json(j, &err);
    if (!t) fail_msg("%s: %s", name, err.text);
    int bad = 0;
    for (size_t i = 0; i < json_array_size(picked); i++, at += 4)
      bad += corpus_check_line(t, (size_t)json_integer_value(json_array_get(picked, i)), want + at, name, bad);
    if (bad) print_message("%s: %d lines differ\n", name, bad);
    total += bad;
    chi_tokenizer_free(t);
    json_decref(j);
  }
  json_decref(all);
  chi_free(want);
  assert_int_equal(total, 0);
}

/* Characters as BERT sees them, all of Unicode. Marks that NFD takes apart first are not compared. */
static void bert_classes(void **state) {
  (void)state;
  json_t *real = NULL;
  uint8_t *bits = chi_calloc(0x110000, 1, NULL);
  size_t n = 0;
  for (uint32_t c = 0; c < 0x110000; c++) {
    if (c >= 0xD800 && c < 0xE000) continue;
    utf8proc_int32_t parts[32];
    int bound = 0;
    bool whole =
        utf8proc_decompose_char((utf8proc_int32_t)c, parts, 32, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &bound) == 1 &&
        parts[0] == (utf8proc_int32_t)c;
    bits[n++] = (uint8_t)(chi_bert_dropped(c) | chi_bert_han(c) << 1 | chi_is_punct(c) << 2 |
                          (whole && chi_is_nonspacing(c)) << 3);
  }
  assert_works(chi_json_load(&real, DIR "real.json", 1 << 16, err));
  assert_int_equal(corpus_crc32(bits, n), json_integer_value(json_object_get(real, "classes")));
  json_decref(real);
  chi_free(bits);
}

/* ---- what is refused --------------------------------------------------------------------------------------- */
#define MODEL(extra) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]" extra "}"

static int parse_text(const char *json, chi_err *err) {
  chi_tokenizer *t = NULL;
  int rc = chi_tokenizer_parse(&t, json, strlen(json), "t.json", err);
  assert_true((rc == 0) == (t != NULL));
  chi_tokenizer_free(t);
  return rc;
}

static void bad_files_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *json;
    int code;
    const char *words;
  } cases[] = {
      {"{", CHI_ERR_FORMAT, "t.json"},
      {"[]", CHI_ERR_FORMAT, "t.json: not an object"},
      {"{}", CHI_ERR_FORMAT, "t.json: \"model\" is missing"},
      {"{\"model\":{\"type\":\"WordPiece\"}}", CHI_ERR_FORMAT, "vocab"},
      {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", CHI_ERR_FORMAT, "unk_token \"[UNK]\""},
      {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"[UNK]\":0},\"max_input_chars_per_word\":-1}}", CHI_ERR_FORMAT,
       "max_input"},
      {"{\"model\":{\"type\":\"Unigram\"}}", CHI_ERR_UNSUPPORTED, "\"Unigram\""},
      {"{\"model\":{\"vocab\":[]}}", CHI_ERR_FORMAT, "vocab"},
      {"{\"model\":{\"vocab\":{\"a\":\"x\"},\"merges\":[]}}", CHI_ERR_FORMAT, "no integer id"},
      {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", CHI_ERR_FORMAT, "share id 0"},
      {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", CHI_ERR_FORMAT, "outside"},
      {"{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", CHI_ERR_FORMAT, "outside"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", CHI_ERR_FORMAT, "merge 0"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", CHI_ERR_FORMAT, "not a pair"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]}}", CHI_ERR_FORMAT, "not a pair"},
      {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}}", CHI_ERR_FORMAT, "not a pair"},
      {"{" MODEL(",\"dropout\":0.1") "}", CHI_ERR_UNSUPPORTED, "dropout"},
      {"{" MODEL(",\"end_of_word_suffix\":\"</w>\"") "}", CHI_ERR_UNSUPPORTED, "</w>"},
      {"{" MODEL(",\"continuing_subword_prefix\":\"##\"") "}", CHI_ERR_UNSUPPORTED, "##"},
      {"{" MODEL() ",\"normalizer\":{\"type\":\"Precompiled\"}}", CHI_ERR_UNSUPPORTED,
       "normalizer: type \"Precompiled\""},
      {"{" MODEL() ",\"normalizer\":{}}", CHI_ERR_FORMAT, "\"type\" is missing"},
      {"{" MODEL() ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"x\"}}", CHI_ERR_FORMAT, "pattern"},
      {"{" MODEL() ",\"pre_tokenizer\":{\"type\":\"CharDelimiterSplit\"}}", CHI_ERR_UNSUPPORTED, "CharDelimiterSplit"},
      {"{" MODEL() ",\"pre_tokenizer\":{\"type\":\"Sequence\"}}", CHI_ERR_FORMAT, "pretokenizers"},
      {"{" MODEL() ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"\"}}}", CHI_ERR_UNSUPPORTED,
       "empty"},
      {"{" MODEL() ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Odd\"}}",
       CHI_ERR_UNSUPPORTED, "\"Odd\""},
      {"{" MODEL() ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"}}", CHI_ERR_UNSUPPORTED, "__"},
      {"{" MODEL() ",\"post_processor\":{\"type\":\"RobertaProcessing\"}}", CHI_ERR_FORMAT, "\"cls\""},
      {"{" MODEL() ",\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"b\",9]}}",
       CHI_ERR_FORMAT, "\"sep\""},
      {"{" MODEL() ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}", CHI_ERR_FORMAT, "the text"},
      {"{" MODEL() ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]"
                   ","
                   "\"special_tokens\":{\"x\":{\"ids\":[99]}}}}",
       CHI_ERR_FORMAT, "lacks"},
      {"{" MODEL() ",\"decoder\":{\"type\":\"WordPiece\"}}", CHI_ERR_FORMAT, "\"prefix\" is missing"},
      {"{" MODEL() ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1}}", CHI_ERR_FORMAT, "start"},
      {"{" MODEL() ",\"added_tokens\":{}}", CHI_ERR_FORMAT, "not a list"},
      {"{" MODEL() ",\"added_tokens\":[{\"id\":9}]}", CHI_ERR_FORMAT, "content"},
      {"{" MODEL() ",\"added_tokens\":[{\"id\":900000000,\"content\":\"x\"}]}", CHI_ERR_FORMAT, "id"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    assert_fails(parse_text(cases[i].json, err), cases[i].code, cases[i].words);
  assert_works(parse_text("{" MODEL() "}", err));
}

/* Regular expressions that PCRE2 would silently read in another way. */
static void foreign_regexes_are_refused(void **state) {
  static const char *const bad[] = {"\\\\bx",  "\\\\R",       "[a[bc]]", "[a&&b]",  "[\\\\W]",   "x{2}+",  "x{,3}",
                                    "(?<n>a)", "(?m:a)",      "\\\\1",   "(*FAIL)", "\\\\Qa",    "[]a]",   "a\\\\",
                                    "(",       "\\\\p{Nope}", "a(?i)b",  "\\\\uZ",  "\\\\p{^L}", "\\\\Ka", "\\\\o{1}"};
  (void)state;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    char json[512];
    snprintf(json, sizeof json, "{" MODEL() ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"}}}",
             bad[i]);
    assert_fails(parse_text(json, err), CHI_ERR_UNSUPPORTED, "pre_tokenizer: the regular expression");
  }
}

static void folder_errors_name_the_file(void **state) {
  (void)state;
  chi_tokenizer *t = NULL;
  const char *dir = tmp_path("tok");
  mkdir(dir, 0700);
  assert_fails(chi_tokenizer_load(&t, dir, err), CHI_ERR_IO, "tok/tokenizer.json");
  put_file(tmp_path("tok/tokenizer.json"), "{\"model\":", 9);
  assert_fails(chi_tokenizer_load(&t, dir, err), CHI_ERR_FORMAT, "tok/tokenizer.json");
  put_file(tmp_path("tok/tokenizer.json"), "{" MODEL() "}", strlen("{" MODEL() "}"));
  put_file(tmp_path("tok/tokenizer_config.json"), "{]", 2);
  assert_fails(chi_tokenizer_load(&t, dir, err), CHI_ERR_FORMAT, "tok/tokenizer_config.json");
  assert_null(t);
}

/* ---- the folder's other files ------------------------------------------------------------------------------ */
static void names_and_tokens_of_the_config(void **state) {
  (void)state;
  static const char config[] =
      "{\"bos_token\":{\"content\":\"<s>\"},\"model_max_length\":1000000000000000019884624838656,"
      "\"added_tokens_decoder\":{\"9\":{\"content\":\"<s>\",\"special\":true},\"1\":{\"content\":\"b\"}}}";
  const char *dir = tmp_path("cfg");
  chi_tokenizer *t = NULL;
  chi_tokens k = {0};
  mkdir(dir, 0700);
  put_file(tmp_path("cfg/tokenizer.json"), "{" MODEL() "}", strlen("{" MODEL() "}"));
  put_file(tmp_path("cfg/tokenizer_config.json"), config, strlen(config));
  put_file(tmp_path("cfg/special_tokens_map.json"), "{\"eos_token\":\"ab\"}", strlen("{\"eos_token\":\"ab\"}"));
  assert_works(chi_tokenizer_load(&t, dir, err));
  assert_int_equal(chi_token_bos(t), 9);
  assert_int_equal(chi_token_eos(t), 2);
  assert_int_equal(chi_vocab_size(t), 10);
  assert_true(chi_token_is_special(t, 9));
  assert_false(chi_token_is_special(t, 1));
  assert_false(chi_token_is_special(t, 5)); /* a hole */
  assert_int_equal(chi_token_id(t, "ab"), 2);
  assert_int_equal(chi_token_id(t, "zz"), -1);
  assert_works(chi_encode(t, "ab<s>b", 6, true, &k, err));
  assert_int_equal(k.n, 4); /* "b" is an added token now, so "ab" is cut before it */
  assert_int_equal(k.id[2], 9);
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
}

/* ---- encoding ---------------------------------------------------------------------------------------------- */
static chi_tokenizer *own(const char *name) {
  char path[128];
  snprintf(path, sizeof path, DIR "own/%s.json", name);
  return load_file(path);
}

static void encode_appends_or_leaves_alone(void **state) {
  (void)state;
  chi_tokenizer *t = own("llama2");
  chi_tokens k = {0};
  assert_works(chi_encode(t, "the", 3, true, &k, err));
  size_t n = k.n;
  assert_works(chi_encode(t, "river", 5, false, &k, err));
  assert_true(k.n > n);
  assert_int_equal(k.id[0], 1);
  assert_int_not_equal(k.id[n], 1); /* special = false: no second BOS */
  n = k.n;
  assert_fails(chi_encode(t, "ab\xC3(", 4, true, &k, err), CHI_ERR_ARG, "UTF-8 at byte 2");
  assert_fails(chi_encode(t, "\xED\xA0\x80", 3, true, &k, err), CHI_ERR_ARG, "UTF-8 at byte 0"); /* a surrogate */
  assert_fails(chi_encode(t, "ab\xE2\x82", 4, true, &k, err), CHI_ERR_ARG, "UTF-8 at byte 2");   /* cut off */
  assert_fails(chi_encode(t, "", (size_t)1 << 40, true, &k, err), CHI_ERR_ARG, "too long");
  assert_int_equal(k.n, n);
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
}

/* Offsets of the pieces point at the words, whatever the normalizers did. */
static void offsets_survive_normalization(void **state) {
  (void)state;
  chi_tokenizer *t = own("qwen");         /* NFC */
  const char *text = "a cafe\xCC\x81 of"; /* e + combining acute: two bytes more than composed */
  chi_tokens k = {0};
  assert_works(chi_encode(t, text, strlen(text), true, &k, err));
  size_t at = 0;
  for (size_t i = 0; i < k.n; i++) {
    assert_true(k.begin[i] <= k.end[i]);
    if ((size_t)k.begin[i] > at) fail_msg("byte %zu is covered by no token", at);
    if ((size_t)k.end[i] > at) at = (size_t)k.end[i];
  }
  assert_int_equal(at, strlen(text));
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
}

static double seconds(void) {
  struct timespec ts;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
  return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* A megabyte without a break, and long runs of what makes patterns step back, must not take quadratic time. */
static void long_words_take_linear_time(void **state) {
  static const char *const fill[] = {"abcdefghijk", " ", "\xCC\x81\xCC\xA3", "<s", "\n ", "1"};
  static const char *const names[] = {"llama2", "llama3", "qwen"};
  (void)state;
  char *text = chi_calloc((size_t)1 << 20, 1, NULL);
  for (size_t f = 0; f < sizeof fill / sizeof *fill; f++) {
    size_t len = strlen(fill[f]), used = ((size_t)1 << (f == 0 ? 20 : 18)) / len * len;
    for (size_t i = 0; i < used; i++) text[i] = fill[f][i % len];
    for (size_t k = 0; k < 3; k++) {
      chi_tokenizer *t = own(names[k]);
      chi_tokens tok = {0};
      double start = seconds();
      assert_works(chi_encode(t, text, used, true, &tok, err));
      double took = seconds() - start;
      if (took > 10) fail_msg("%s: %zu bytes of \"%s\" took %.1f s", names[k], used, fill[f], took);
      chi_tokens_free(&tok);
      chi_tokenizer_free(t);
    }
  }
  chi_free(text);
}

/* ---- decoding ---------------------------------------------------------------------------------------------- */
static void odd_ids_decode_to_nothing(void **state) {
  (void)state;
  chi_tokenizer *t = own("gpt2");
  const int32_t ids[] = {-1, 1 << 30, chi_vocab_size(t)};
  char *text = NULL;
  assert_works(chi_decode(t, ids, 3, false, &text, err));
  assert_string_equal(text, "");
  chi_free(text);
  assert_works(chi_decode(t, NULL, 0, false, &text, err));
  assert_string_equal(text, "");
  chi_free(text);
  chi_tokenizer_free(t);
}

static void token_text(void **state) {
  (void)state;
  char buf[32], tiny[3];
  chi_tokenizer *l = own("llama2"), *g = own("gpt2");
  chi_token_text(l, chi_token_id(l, "\xE2\x96\x81the"), buf, sizeof buf);
  assert_string_equal(buf, " the");
  chi_token_text(l, chi_token_id(l, "<0x0A>"), buf, sizeof buf);
  assert_string_equal(buf, "<0x0A>");
  chi_token_text(l, chi_token_id(l, "<0x41>"), buf, sizeof buf);
  assert_string_equal(buf, "A");
  chi_token_text(g, chi_token_id(g, "\xC4\xA0the"), buf, sizeof buf);
  assert_string_equal(buf, " the");
  chi_token_text(g, chi_token_id(g, "\xC4\x8A"), buf, sizeof buf); /* the byte-level newline */
  assert_string_equal(buf, "<0x0A>");
  chi_token_text(g, chi_token_id(g, "\xC3\xA9"), buf, sizeof buf); /* byte 0xE9 alone is no character */
  assert_string_equal(buf, "<0xE9>");
  chi_token_text(g, chi_token_id(g, "<|endoftext|>"), buf, sizeof buf);
  assert_string_equal(buf, "<|endoftext|>");
  chi_token_text(g, 1 << 30, buf, sizeof buf);
  assert_string_equal(buf, "<id 1073741824>");
  chi_token_text(l, chi_token_id(l, "\xE2\x96\x81the"), tiny, sizeof tiny);
  assert_string_equal(tiny, " t");
  chi_tokenizer_free(l);
  chi_tokenizer_free(g);
}

/* ---- templates --------------------------------------------------------------------------------------------- */
static void templates_fill(void **state) {
  static const struct {
    const char *name;
    bool image;
    const char *want;
  } cases[] = {
      {"llava-1.5", true, "USER: <image>\nWho? ASSISTANT:"},
      {"llava-1.5", false, "USER: Who? ASSISTANT:"},
      {"demo", true, "USER: <image>\nWho? ASSISTANT:"},
      {"demo", false, "USER: Who? ASSISTANT:"},
      {"vicuna", true,
       "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
       "and polite answers to the user's questions. USER: <image>\nWho? ASSISTANT:"},
      {"released-trace", true, "<image>\nUSER: Who?? Answer in a few words.\nASSISTANT:"},
      {"attribution", true, "USER: <image>\nWho?\nASSISTANT:"},
      {"plain", true, "<image>\nWho?"},
      {"plain", false, "Who?"},
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *text = NULL;
    const chi_template *t = chi_template_find(cases[i].name);
    assert_non_null(t);
    assert_works(chi_template_fill(&text, t, cases[i].image, "<image>", "Who?", err));
    assert_string_equal(text, cases[i].want);
    size_t at = chi_template_question_at(t, cases[i].image, "<image>");
    assert_memory_equal(text + at, "Who?", 4);
    chi_free(text);
  }
  assert_null(chi_template_find("nope"));
}

static void template_rows_are_sound(void **state) {
  size_t n = 0;
  const chi_template *rows = chi_templates(&n);
  (void)state;
  assert_true(n >= 6);
  for (size_t i = 0; i < n; i++) {
    char *text = NULL;
    assert_ptr_equal(chi_template_find(rows[i].name), &rows[i]); /* names are unique */
    assert_true(rows[i].doc[0] != 0);
    assert_null(strstr(rows[i].text_only, "{image}"));
    assert_works(chi_template_fill(&text, &rows[i], true, "<img>", "Q", err));
    assert_null(strchr(text, '{'));
    assert_int_equal(text[chi_template_question_at(&rows[i], true, "<img>")], 'Q');
    chi_free(text);
  }
}

static void template_refusals(void **state) {
  (void)state;
  char *text = NULL;
  const chi_template *t = chi_template_find("plain");
  const chi_template broken = {"broken", "{image}", "no question", ""};
  assert_fails(chi_template_fill(&text, t, true, "<image>", "", err), CHI_ERR_ARG, "question is empty");
  assert_fails(chi_template_fill(&text, t, true, "<image>", " \n", err), CHI_ERR_ARG, "question is empty");
  assert_fails(chi_template_fill(&text, t, true, "<image>", "a <image> b", err), CHI_ERR_ARG, "<image>");
  assert_fails(chi_template_fill(&text, t, true, NULL, "a", err), CHI_ERR_ARG, "picture");
  assert_fails(chi_template_fill(&text, &broken, false, NULL, "a", err), CHI_ERR_ARG, "{question}");
  assert_null(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(own_tokenizers),
      cmocka_unit_test(feature_variants),
      cmocka_unit_test(bert_classes),
      cmocka_unit_test(demo_tokenizer),
      cmocka_unit_test(real_llama2),
      cmocka_unit_test(real_gpt2),
      cmocka_unit_test(real_llama3),
      cmocka_unit_test(real_qwen),
      cmocka_unit_test(real_bert),
      cmocka_unit_test(bad_files_are_refused),
      cmocka_unit_test(foreign_regexes_are_refused),
      cmocka_unit_test(folder_errors_name_the_file),
      cmocka_unit_test(names_and_tokens_of_the_config),
      cmocka_unit_test(encode_appends_or_leaves_alone),
      cmocka_unit_test(offsets_survive_normalization),
      cmocka_unit_test(long_words_take_linear_time),
      cmocka_unit_test(odd_ids_decode_to_nothing),
      cmocka_unit_test(token_text),
      cmocka_unit_test(templates_fill),
      cmocka_unit_test(template_rows_are_sound),
      cmocka_unit_test(template_refusals),
  };
  return cmocka_run_group_tests(tests, corpus_open, corpus_close);
}

/* Tokenizers against Hugging Face's `tokenizers`: ids, byte offsets and decoded text of every corpus line, as checksums made
 * by tools/ref/tokenizer_corpus.py; plus refusals, limits and prompt templates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "text/text.h"

#define DIR "tests/fixtures/tokenizer/"

typedef struct line {
  char *s;
  size_t n;
} line;
static char *corpus_text;
static line *lines;
static size_t n_lines;

static uint32_t crc_table[256];

static uint32_t crc32_of(const void *p, size_t n) {
  const uint8_t *b = p;
  uint32_t c = 0xFFFFFFFFu;
  for (size_t i = 0; i < n; i++) c = crc_table[(c ^ b[i]) & 0xFF] ^ c >> 8;
  return ~c;
}

static int set_up(void **state) {
  (void)state;
  size_t len = 0, cap = 0;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
    crc_table[i] = c;
  }
  assert_int_equal(chi_read_file(&corpus_text, &len, DIR "corpus.txt", 1 << 20, NULL), 0);
  for (char *p = corpus_text; p < corpus_text + len; n_lines++) {
    void *q = lines;
    assert_int_equal(chi_grow(&q, &cap, n_lines + 1, sizeof *lines, NULL), 0);
    lines = q;
    char *to = p;
    lines[n_lines].s = p;
    for (; *p != '\n'; p++) {
      if (*p != '\\') {
        *to++ = *p;
        continue;
      }
      p++;
      *to++ = *p == 'n' ? '\n' : *p == 'r' ? '\r' : *p == '0' ? '\0' : *p;
    }
    lines[n_lines].n = (size_t)(to - lines[n_lines].s);
    p++;
  }
  return n_lines < 5000;
}

static int tear_down(void **state) {
  (void)state;
  chi_free(lines);
  chi_free(corpus_text);
  return 0;
}

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

static uint32_t u32_at(const char *p) {
  const uint8_t *b = (const uint8_t *)p;
  return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint32_t offsets_crc(const chi_tokens *k) {
  int32_t *both = chi_calloc(k->n, 2 * sizeof *both, NULL);
  for (size_t i = 0; i < k->n; i++) {
    both[2 * i] = k->begin[i];
    both[2 * i + 1] = k->end[i];
  }
  uint32_t c = crc32_of(both, k->n * 2 * sizeof *both);
  chi_free(both);
  return c ? c : 1;
}

static uint32_t decoded_crc(const chi_tokenizer *t, const chi_tokens *k) {
  chi_str s = {0};
  for (int skip = 0; skip < 2; skip++) {
    char *text = NULL;
    assert_int_equal(chi_decode(t, k->id, k->n, skip, &text, NULL), 0);
    chi_str_add(&s, text);
    if (!skip) chi_str_addn(&s, "", 1);
    chi_free(text);
  }
  uint32_t c = crc32_of(s.s, s.len);
  chi_str_free(&s);
  return c;
}

static void show(const char *what, const chi_tokenizer *t, line l, const chi_tokens *k) {
  print_message("%s: \"%.*s\"\n ", what, (int)l.n, l.s);
  for (size_t i = 0; i < k->n && i < 40; i++) {
    char piece[64];
    chi_token_text(t, k->id[i], piece, sizeof piece);
    print_message(" %d'%s'[%d,%d)", k->id[i], piece, k->begin[i], k->end[i]);
  }
  print_message("\n");
}

/* One line against its three checksums; returns the number of differences. */
static int check_line(const chi_tokenizer *t, line l, const char *want, const char *name, int shown) {
  static const char *const what[] = {"ids", "offsets", "decoded"};
  chi_tokens k = {0};
  chi_err err = {0};
  if (chi_encode(t, l.s, l.n, true, &k, &err) != 0) fail_msg("%s: %s", name, err.text);
  uint32_t got[3] = {crc32_of(k.id, k.n * sizeof *k.id), offsets_crc(&k), decoded_crc(t, &k)};
  int bad = 0;
  for (int i = 0; i < 3; i++) {
    uint32_t w = u32_at(want + 4 * i);
    if (got[i] == w || (i == 1 && w == 0)) continue;
    if (bad++ == 0 && shown < 5) {
      print_message("%s differ, ", what[i]);
      show(name, t, l, &k);
    }
  }
  chi_tokens_free(&k);
  return bad;
}

static void check_corpus(const chi_tokenizer *t, const char *bin, const char *name) {
  char *want = NULL;
  size_t len = 0;
  int bad = 0;
  assert_int_equal(chi_read_file(&want, &len, bin, 1 << 20, NULL), 0);
  assert_int_equal(len, n_lines * 12);
  for (size_t i = 0; i < n_lines; i++) bad += check_line(t, lines[i], want + 12 * i, name, bad);
  chi_free(want);
  if (bad) fail_msg("%s: %d of %zu checks differ", name, bad, 3 * n_lines);
}

static void own_tokenizers(void **state) {
  static const char *const names[] = {"llama2", "llama2-metaspace", "gpt2", "llama3", "qwen"};
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char json[128], bin[128];
    snprintf(json, sizeof json, DIR "own/%s.json", names[i]);
    snprintf(bin, sizeof bin, DIR "own/%s.bin", names[i]);
    chi_tokenizer *t = load_file(json);
    check_corpus(t, bin, names[i]);
    chi_tokenizer_free(t);
  }
}

static void real_tokenizer(const char *name) {
  char path[256], bin[128], hex[65];
  json_t *real = NULL;
  chi_err err = {0};
  snprintf(path, sizeof path, "models/cache/tokenizers/%s/tokenizer.json", name);
  snprintf(bin, sizeof bin, DIR "real/%s.bin", name);
  if (!chi_file_exists(path)) {
    print_message("skipped: %s is absent; scripts/get_tokenizers.sh fetches it\n", path);
    skip();
  }
  assert_int_equal(chi_json_load(&real, DIR "real.json", 1 << 16, &err), 0);
  assert_int_equal(chi_sha256_file(hex, path, &err), 0);
  const char *want = json_string_value(json_object_get(json_object_get(real, name), "sha256"));
  bool same = chi_streq(want, hex);
  json_decref(real);
  if (!same) {
    print_message("skipped: %s is not the version that the checksums were made from\n", path);
    skip();
  }
  path[strlen(path) - strlen("/tokenizer.json")] = 0;
  chi_tokenizer *t = NULL;
  if (chi_tokenizer_load(&t, path, &err) != 0) fail_msg("%s", err.text);
  check_corpus(t, bin, name);
  chi_tokenizer_free(t);
}

static void real_llama2(void **state) { (void)state, real_tokenizer("llama2"); }
static void real_gpt2(void **state) { (void)state, real_tokenizer("gpt2"); }
static void real_llama3(void **state) { (void)state, real_tokenizer("llama3"); }
static void real_qwen(void **state) { (void)state, real_tokenizer("qwen2_5"); }

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
  assert_int_equal(len, json_array_size(picked) * json_array_size(list) * 12);
  json_array_foreach(list, k, v) {
    const char *name = json_string_value(json_object_get(v, "name"));
    json_t *j = own_json(json_string_value(json_object_get(v, "base")));
    json_object_update(j, json_object_get(v, "set"));
    json_object_update(json_object_get(j, "model"), json_object_get(v, "model"));
    chi_err err = {0};
    chi_tokenizer *t = parse_json(j, &err);
    if (!t) fail_msg("%s: %s", name, err.text);
    int bad = 0;
    for (size_t i = 0; i < json_array_size(picked); i++, at += 12)
      bad += check_line(t, lines[json_integer_value(json_array_get(picked, i))], want + at, name, bad);
    if (bad) print_message("%s: %d checks differ\n", name, bad);
    total += bad;
    chi_tokenizer_free(t);
    json_decref(j);
  }
  json_decref(all);
  chi_free(want);
  assert_int_equal(total, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(own_tokenizers), cmocka_unit_test(feature_variants), cmocka_unit_test(real_llama2),
      cmocka_unit_test(real_gpt2),      cmocka_unit_test(real_llama3),      cmocka_unit_test(real_qwen),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* Folders without tokenizer.json: vocab.json + merges.txt, vocab.txt and tokenizer.model give the ids that the same
 * tokenizer gives as tokenizer.json, which transformers and SentencePiece gave when the fixtures were made
 * (tools/ref/sentencepiece_fixture.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "support/corpus.h"
#include "support/support.h"

#define MODEL_FILE CORPUS_DIR "spm/tokenizer.model"

static const char *in_folder(const char *dir, const char *file) {
  char path[128];
  mkdir(tmp_path(dir), 0700);
  snprintf(path, sizeof path, "%s/%s", dir, file);
  return tmp_path(path);
}

static void put_text(const char *dir, const char *file, const char *text) {
  put_file(in_folder(dir, file), text, strlen(text));
}

static void put_json(const char *dir, const char *file, const json_t *j) {
  char *text = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY);
  put_text(dir, file, text);
  free(text);
}

static json_t *load_json(const char *path) {
  json_t *j = NULL;
  assert_works(chi_json_load(&j, path, 64 << 20, err));
  return j;
}

static json_t *own(const char *name) {
  char path[128];
  snprintf(path, sizeof path, CORPUS_DIR "own/%s.json", name);
  return load_json(path);
}

static chi_tokenizer *load(const char *dir) {
  chi_tokenizer *t = NULL;
  assert_works(chi_tokenizer_load(&t, tmp_path(dir), err));
  return t;
}

static int try_load(const char *dir, chi_err *err) {
  chi_tokenizer *t = NULL;
  int rc = chi_tokenizer_load(&t, tmp_path(dir), err);
  assert_true((rc == 0) == (t != NULL));
  chi_tokenizer_free(t);
  return rc;
}

/* ---- vocab.json + merges.txt ------------------------------------------------------------------------------- */
/* The slow files of a tokenizer.json. Tokens that are not in the vocabulary go to added_tokens.json, as the slow
 * classes write them. */
static void put_bpe_files(const char *dir, const json_t *j, const char *newline) {
  const json_t *model = json_object_get(j, "model"), *vocab = json_object_get(model, "vocab"), *o;
  json_t *extra = json_object();
  chi_str merges = {0};
  size_t k;
  chi_str_addf(&merges, "#version: 0.2%s", newline);
  json_array_foreach(json_object_get(model, "merges"), k, o) {
    if (json_is_string(o))
      chi_str_addf(&merges, "%s%s", json_string_value(o), newline);
    else
      chi_str_addf(&merges, "%s %s%s", json_string_value(json_array_get(o, 0)), json_string_value(json_array_get(o, 1)),
                   newline);
  }
  json_array_foreach(json_object_get(j, "added_tokens"), k, o) {
    const char *s = json_string_value(json_object_get(o, "content"));
    if (!json_object_get(vocab, s)) json_object_set(extra, s, json_object_get(o, "id"));
  }
  put_json(dir, "vocab.json", vocab);
  put_text(dir, "merges.txt", merges.s);
  put_json(dir, "added_tokens.json", extra);
  chi_str_free(&merges);
  json_decref(extra);
}

/* {"bos_token": ..., "added_tokens_decoder": {...}}: how checkpoints say which added tokens are special. */
static json_t *config_of(const json_t *j, const char *class_name) {
  json_t *c = json_pack("{s:s, s:f}", "tokenizer_class", class_name, "model_max_length", 1e30), *all = json_object();
  size_t k;
  const json_t *o;
  json_array_foreach(json_object_get(j, "added_tokens"), k, o) {
    char id[24];
    json_t *copy = json_copy((json_t *)(uintptr_t)o);
    snprintf(id, sizeof id, "%d", (int)json_integer_value(json_object_get(o, "id")));
    json_object_del(copy, "id");
    json_object_set_new(all, id, copy);
  }
  json_object_set_new(c, "added_tokens_decoder", all);
  return c;
}

static void bpe_folders(void **state) {
  static const struct {
    const char *name, *kind, *newline;
  } cases[] = {
      {"codegen", "CodeGenTokenizer", "\n"}, {"qwen", "Qwen2TokenizerFast", "\n"}, {"opt", "GPT2Tokenizer", "\r\n"}};
  (void)state;
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    json_t *j = own(cases[k].name), *c = config_of(j, cases[k].kind);
    if (k == 2) { /* as facebook/opt-* have it: flags in one file, names in the other */
      json_object_set_new(c, "add_bos_token", json_true());
      json_object_del(c, "added_tokens_decoder");
      put_text("opt", "special_tokens_map.json",
               "{\"bos_token\":{\"content\":\"</s>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
               "\"single_word\":false},\"eos_token\":\"</s>\",\"pad_token\":\"<pad>\","
               "\"additional_special_tokens\":[\"<s>\",{\"content\":\"<unk>\"}]}");
    }
    put_bpe_files(cases[k].name, j, cases[k].newline);
    put_json(cases[k].name, "tokenizer_config.json", c);
    chi_tokenizer *t = load(cases[k].name);
    char bin[128];
    snprintf(bin, sizeof bin, CORPUS_DIR "own/%s.bin", cases[k].name);
    corpus_check(t, bin, cases[k].name);
    if (k == 0) assert_int_equal(chi_token_bos(t), chi_token_id(t, "<|endoftext|>"));
    if (k == 2) assert_int_equal(chi_token_bos(t), 2);
    chi_tokenizer_free(t);
    json_decref(j);
    json_decref(c);
  }
}

static int32_t first_id(const char *dir, const char *text) {
  chi_tokenizer *t = load(dir);
  chi_tokens k = {0};
  assert_works(chi_encode(t, text, strlen(text), true, &k, err));
  int32_t id = k.n ? k.id[0] : -1;
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
  return id;
}

/* Only OPT puts a token before the text, unless the folder says otherwise. */
static void bos_follows_the_class(void **state) {
  (void)state;
  json_t *j = own("opt");
  int32_t the;
  put_bpe_files("bos", j, "\n");
  put_text("bos", "config.json", "{\"model_type\":\"gpt2\"}");
  the = first_id("bos", "the");
  assert_true(the > 3);
  put_text("bos", "config.json", "{\"model_type\":\"blip-2\",\"text_config\":{\"model_type\":\"opt\"}}");
  assert_int_equal(first_id("bos", "the"), 2);
  put_text("bos", "tokenizer_config.json", "{\"add_bos_token\":false}");
  assert_int_equal(first_id("bos", "the"), the);
  put_text("bos", "tokenizer_config.json", "{\"add_bos_token\":true,\"bos_token\":\"<s>\",\"add_prefix_space\":true}");
  assert_int_equal(first_id("bos", "the"), 0);
  put_text("bos", "tokenizer_config.json", "{\"add_bos_token\":true,\"bos_token\":\"<none>\"}");
  assert_fails(try_load("bos", err), CHI_ERR_FORMAT, "\"<none>\" is not in the vocabulary");
  json_decref(j);
}

/* ---- vocab.txt --------------------------------------------------------------------------------------------- */
static void put_vocab_txt(const char *dir, const json_t *vocab) {
  size_t n = json_object_size(vocab);
  const char **by_id = chi_calloc(n, sizeof *by_id, NULL), *key;
  json_t *id;
  chi_str s = {0};
  json_object_foreach((json_t *)(uintptr_t)vocab, key, id) by_id[json_integer_value(id)] = key;
  for (size_t i = 0; i < n; i++) chi_str_addf(&s, "%s\n", by_id[i]);
  put_text(dir, "vocab.txt", s.s);
  chi_str_free(&s);
  chi_free((void *)by_id);
}

static void bert_folder(void **state) {
  (void)state;
  json_t *j = own("bert");
  put_vocab_txt("bert", json_object_get(json_object_get(j, "model"), "vocab"));
  put_text("bert", "tokenizer_config.json", "{\"do_lower_case\":true,\"tokenizer_class\":\"BertTokenizer\"}");
  chi_tokenizer *t = load("bert");
  corpus_check(t, CORPUS_DIR "own/bert.bin", "bert");
  chi_tokenizer_free(t);
  put_text("bert", "vocab.txt", "[UNK]\n[CLS]\n");
  assert_fails(try_load("bert", err), CHI_ERR_FORMAT, "\"[SEP]\" is not in the vocabulary");
  put_text("bert", "vocab.txt", "[UNK]\n\xFF\n");
  assert_fails(try_load("bert", err), CHI_ERR_FORMAT, "vocab.txt: line 2 is not valid UTF-8");
  json_decref(j);
}

/* ---- public vocabularies, where they have been fetched ------------------------------------------------------- */
static bool have(const char *name) {
  char path[128], hex[65];
  snprintf(path, sizeof path, "models/cache/tokenizers/%s/tokenizer.json", name);
  bool there = chi_file_exists(path), same = false;
  if (there) {
    json_t *real = load_json(CORPUS_DIR "real.json");
    assert_works(chi_sha256_file(hex, path, err));
    same = chi_streq(json_string_value(json_object_get(json_object_get(real, name), "sha256")), hex);
    json_decref(real);
  }
  if (!same)
    print_message("skipped: %s is %s; scripts/get_tokenizers.sh fetches it\n", path,
                  there ? "another version" : "absent");
  return same;
}

static void real_phi2(void **state) {
  (void)state;
  if (!have("gpt2")) skip();
  json_t *j = load_json("models/cache/tokenizers/gpt2/tokenizer.json"), *extra = json_object();
  char run[40];
  put_bpe_files("phi2", j, "\n");
  for (int i = 0; i < 38; i++) { /* 31 to 2 spaces, 9 to 2 tabs: ids 50257 to 50294 */
    size_t n = i < 30 ? (size_t)(31 - i) : (size_t)(39 - i);
    memset(run, i < 30 ? ' ' : '\t', n);
    run[n] = 0;
    json_object_set_new(extra, run, json_integer(50257 + i));
  }
  put_json("phi2", "added_tokens.json", extra);
  put_text("phi2", "tokenizer_config.json", "{\"tokenizer_class\":\"CodeGenTokenizer\"}");
  chi_tokenizer *t = load("phi2");
  assert_int_equal(chi_vocab_size(t), 50295);
  corpus_check(t, CORPUS_DIR "real/codegen.bin", "phi2");
  chi_tokenizer_free(t);
  json_decref(j);
  json_decref(extra);
}

static void real_bert(void **state) {
  (void)state;
  if (!have("bert")) skip();
  json_t *j = load_json("models/cache/tokenizers/bert/tokenizer.json");
  put_vocab_txt("mini", json_object_get(json_object_get(j, "model"), "vocab"));
  put_text("mini", "config.json", "{\"model_type\":\"bert\"}");
  chi_tokenizer *t = load("mini");
  corpus_check(t, CORPUS_DIR "real/bert.bin", "bert");
  chi_tokenizer_free(t);
  json_decref(j);
}

/* ---- tokenizer.model --------------------------------------------------------------------------------------- */
static void put_model(const char *dir) {
  char *bytes = NULL;
  size_t n;
  assert_works(chi_read_file(&bytes, &n, MODEL_FILE, 1 << 20, err));
  put_file(in_folder(dir, "tokenizer.model"), bytes, n);
  chi_free(bytes);
}

static void sentencepiece_folders(void **state) {
  (void)state;
  chi_tokenizer *t;
  put_model("spm");
  put_text("spm", "config.json", "{\"model_type\":\"llama\"}");
  t = load("spm");
  corpus_check(t, CORPUS_DIR "spm/legacy.bin", "legacy");
  assert_int_equal(chi_token_bos(t), 1);
  assert_int_equal(chi_token_eos(t), 2);
  chi_tokenizer_free(t);
  put_text("spm", "tokenizer_config.json", "{\"tokenizer_class\":\"LlamaTokenizer\",\"legacy\":false}");
  t = load("spm");
  corpus_check(t, CORPUS_DIR "spm/first.bin", "first");
  chi_tokenizer_free(t);
}

static void sentencepiece_options(void **state) {
  (void)state;
  chi_tokens k = {0};
  put_model("opts");
  put_text("opts", "tokenizer_config.json",
           "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"add_bos_token\":false,\"add_eos_token\":true}");
  put_text("opts", "added_tokens.json", "{\"<pad>\":1600}");
  chi_tokenizer *t = load("opts");
  assert_int_equal(chi_vocab_size(t), 1601);
  assert_works(chi_tokenizer_add(t, "<image>", 1601, err));
  assert_works(chi_tokenizer_add(t, "<image>", 1601, err)); /* again: no harm */
  assert_fails(chi_tokenizer_add(t, "<image>", 1602, err), CHI_ERR_ARG, "1601 already");
  assert_fails(chi_tokenizer_add(t, "<video>", 1600, err), CHI_ERR_ARG, "\"<pad>\"");
  assert_works(chi_encode(t, "a<image>\nb<pad>", 15, true, &k, err));
  assert_int_equal(k.id[k.n - 1], 2); /* EOS, and no BOS before the text */
  assert_int_equal(k.id[k.n - 2], 1600);
  assert_int_not_equal(k.id[0], 1);
  size_t images = 0;
  for (size_t i = 0; i < k.n; i++) images += k.id[i] == 1601 && k.begin[i] == 1 && k.end[i] == 8;
  assert_int_equal(images, 1);
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
}

/* ---- refusals ---------------------------------------------------------------------------------------------- */
static int parse_spm(const char *name, chi_err *err) {
  char path[128], *bytes = NULL;
  size_t n;
  chi_tokenizer *t = NULL;
  snprintf(path, sizeof path, "fuzz/corpus/spm/%s", name);
  assert_int_equal(chi_read_file(&bytes, &n, path, 1 << 20, NULL), 0);
  int rc = chi_tokenizer_parse_spm(&t, (const uint8_t *)bytes, n, name, err);
  assert_true((rc == 0) == (t != NULL));
  chi_tokenizer_free(t);
  chi_free(bytes);
  return rc;
}

static void other_sentencepiece_files_are_refused(void **state) {
  (void)state;
  assert_works(parse_spm("bpe", err));
  assert_works(parse_spm("user", err));
  assert_works(parse_spm("no-prefix", err));
  assert_fails(parse_spm("unigram", err), CHI_ERR_UNSUPPORTED,
               "a unigram model; write tokenizer.json with tools/convert/");
  assert_fails(parse_spm("no-bytes", err), CHI_ERR_UNSUPPORTED, "without byte fallback");
  assert_fails(parse_spm("squeeze", err), CHI_ERR_UNSUPPORTED, "white space removed");
  assert_fails(parse_spm("rules", err), CHI_ERR_UNSUPPORTED, "normalization rules");
  assert_fails(parse_spm("cut", err), CHI_ERR_FORMAT, "not a SentencePiece model, or cut off");
}

static void unknown_folders_are_refused(void **state) {
  (void)state;
  put_text("odd", "vocab.json", "{\"a\":0,\"b\":1,\"ab\":2}");
  assert_fails(try_load("odd", err), CHI_ERR_UNSUPPORTED, "odd/vocab.json: no tokenizer.json, and neither");
  put_text("odd", "tokenizer_config.json", "{\"tokenizer_class\":\"CLIPTokenizer\"}");
  assert_fails(try_load("odd", err), CHI_ERR_UNSUPPORTED,
               "\"CLIPTokenizer\" is not read from this; write tokenizer.json");
  put_text("odd", "tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\"}");
  assert_fails(try_load("odd", err), CHI_ERR_IO, "odd/merges.txt");
  put_text("odd", "merges.txt", "#version\na b c\n");
  assert_fails(try_load("odd", err), CHI_ERR_FORMAT, "merge 0 is not a pair");
  put_text("odd", "merges.txt", "#version\na c\n");
  assert_fails(try_load("odd", err), CHI_ERR_FORMAT, "vocabulary lacks");
  put_text("odd", "merges.txt", "a b\n\xC3(\n");
  assert_fails(try_load("odd", err), CHI_ERR_FORMAT, "merges.txt: line 2 is not valid UTF-8");
  put_text("odd", "merges.txt", "a b");
  put_text("odd", "added_tokens.json", "{\"<x>\":\"y\"}");
  assert_fails(try_load("odd", err), CHI_ERR_FORMAT, "\"<x>\" has no integer id");
  put_text("odd", "added_tokens.json", "{\"<x>\":-4}");
  assert_fails(try_load("odd", err), CHI_ERR_FORMAT, "id");
  put_text("odd", "added_tokens.json", "{\"<x>\":7}");
  assert_works(try_load("odd", err));
  put_text("odd", "tokenizer_config.json", "{\"tokenizer_class\":7}");
  assert_fails(try_load("odd", err), CHI_ERR_UNSUPPORTED, "neither");
  put_model("odd2");
  put_text("odd2", "config.json", "{\"model_type\":\"t5\"}");
  assert_fails(try_load("odd2", err), CHI_ERR_UNSUPPORTED, "odd2/tokenizer.model");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bpe_folders),
      cmocka_unit_test(bos_follows_the_class),
      cmocka_unit_test(bert_folder),
      cmocka_unit_test(real_phi2),
      cmocka_unit_test(real_bert),
      cmocka_unit_test(sentencepiece_folders),
      cmocka_unit_test(sentencepiece_options),
      cmocka_unit_test(other_sentencepiece_files_are_refused),
      cmocka_unit_test(unknown_folders_are_refused),
  };
  return cmocka_run_group_tests(tests, corpus_open, corpus_close);
}

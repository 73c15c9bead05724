/* Folders without tokenizer.json: the files of the older ("slow") tokenizer classes, put together as tokenizer.json
 * would say it. */
#include <stdio.h>
#include <string.h>

#include "text/tok.h"

#define FILE_MAX ((size_t)64 << 20)
#define MODEL_MAX ((size_t)16 << 20) /* tokenizer.model */
#define CONVERT "write tokenizer.json with tools/convert/tokenizer.py FOLDER"
#define QWEN_REGEX                                                                                                  \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" \
  "\\s+(?!\\S)|\\s+"

typedef struct folder {
  const char *dir;
  char path[4096];                        /* the vocabulary file */
  json_t *config, *names, *extra, *model; /* tokenizer_config, special_tokens_map, added_tokens, config; may be NULL */
  char kind[64];                          /* class without "Fast"; empty if nothing says it */
  bool is_opt;
  const char *bos, *eos; /* names, NULL = none */
  json_t *root, *vocab, *added;
  chi_err *err;
} folder;

static int out_of_memory(const folder *f) {
  return chi_fail(f->err, CHI_ERR_MEMORY, "%s: out of memory for the tokenizer", f->dir);
}

/* ---- what the folder says ---------------------------------------------------------------------------------- */
static const char *text_of(const json_t *v) {
  return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

/* A named special token of either file. */
static const json_t *named(const folder *f, const char *key) {
  const json_t *v = json_object_get(f->config, key);
  return text_of(v) ? v : json_object_get(f->names, key);
}

static const char *name_or(const folder *f, const char *key, const char *otherwise) {
  const char *s = text_of(named(f, key));
  return s ? s : otherwise;
}

static bool flag(const folder *f, const char *key, bool otherwise) {
  const json_t *v = json_object_get(f->config, key);
  return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

static void find_kind(folder *f) {
  static const char *const kinds[][2] = {
      {"gpt2", "GPT2Tokenizer"},     {"opt", "GPT2Tokenizer"},    {"codegen", "CodeGenTokenizer"},
      {"phi", "CodeGenTokenizer"},   {"qwen2", "Qwen2Tokenizer"}, {"llama", "LlamaTokenizer"},
      {"mistral", "LlamaTokenizer"}, {"llava", "LlamaTokenizer"}, {"bert", "BertTokenizer"}};
  const char *kind = json_string_value(json_object_get(f->config, "tokenizer_class"));
  const json_t *inner = json_object_get(f->model, "text_config");
  const char *type = json_string_value(json_object_get(inner ? inner : f->model, "model_type"));
  f->is_opt = chi_streq(type, "opt");
  for (size_t k = 0; !kind && type && k < sizeof kinds / sizeof *kinds; k++)
    if (strcmp(kinds[k][0], type) == 0) kind = kinds[k][1];
  if (!kind) return;
  size_t n = strlen(kind);
  if (n > 4 && strcmp(kind + n - 4, "Fast") == 0) n -= 4;
  if (n >= sizeof f->kind) n = sizeof f->kind - 1;
  memcpy(f->kind, kind, n);
}

static int refuse_kind(const folder *f) {
  if (!f->kind[0])
    return chi_fail(f->err, CHI_ERR_UNSUPPORTED,
                    "%s: no tokenizer.json, and neither tokenizer_config.json (\"tokenizer_class\") nor config.json "
                    "(\"model_type\") says how to read this; " CONVERT,
                    f->path);
  return chi_fail(f->err, CHI_ERR_UNSUPPORTED,
                  "%s: no tokenizer.json, and tokenizer_class \"%s\" is not read from this; " CONVERT, f->path,
                  f->kind);
}

/* ---- special and added tokens ------------------------------------------------------------------------------ */
static bool has_added(const folder *f, const char *s) {
  size_t k;
  const json_t *o;
  json_array_foreach(f->added, k, o) if (chi_streq(json_string_value(json_object_get(o, "content")), s)) return true;
  return false;
}

static const json_t *id_of(const folder *f, const char *s) {
  const json_t *id = json_object_get(f->extra, s);
  return id ? id : json_object_get(f->vocab, s);
}

/* v: a string, or an object with the token's flags. Tokens without an id are unknown to the model and left out. */
static int add_token(folder *f, const json_t *v, bool special) {
  const char *s = text_of(v);
  const json_t *id = s ? id_of(f, s) : NULL;
  if (!id || has_added(f, s)) return 0;
  if (!json_is_number(id)) return chi_fail(f->err, CHI_ERR_FORMAT, "%s: token \"%.40s\" has no integer id", f->dir, s);
  json_t *o = json_is_object(v) ? json_copy((json_t *)(uintptr_t)v) : json_pack("{s:s}", "content", s);
  json_object_set_new(o, "id", json_integer((json_int_t)json_number_value(id)));
  json_object_set_new(o, "special", json_boolean(special));
  if (!json_is_boolean(json_object_get(o, "normalized"))) json_object_set_new(o, "normalized", json_boolean(!special));
  return json_array_append_new(f->added, o) == 0 ? 0 : out_of_memory(f);
}

static int add_special(folder *f) {
  static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                     "cls_token", "pad_token", "mask_token"};
  const json_t *file[] = {f->config, f->names}, *v;
  const char *key;
  json_t *id;
  size_t i;
  int rc = 0;
  for (int k = 0; k < 2; k++) {
    for (size_t n = 0; n < sizeof keys / sizeof *keys; n++)
      CHI_TRY(add_token(f, json_object_get(file[k], keys[n]), true));
    json_array_foreach(json_object_get(file[k], "additional_special_tokens"), i, v) CHI_TRY(add_token(f, v, true));
  }
  json_object_foreach(f->extra, key, id) {
    json_t *decoder = json_object_get(f->config, "added_tokens_decoder"), *found = NULL, *o;
    const char *number;
    json_object_foreach(decoder, number, o) if (chi_streq(text_of(o), key)) found = o;
    json_t *name = json_string(key);
    rc = add_token(f, found ? found : name, json_is_true(json_object_get(found, "special")));
    json_decref(name);
    CHI_TRY(rc);
  }
out:
  return rc;
}

/* A special token of the class itself, where the files do not name it. */
static int add_default(folder *f, const char *key, const char *otherwise) {
  if (text_of(named(f, key))) return 0;
  json_t *name = json_string(otherwise);
  int rc = add_token(f, name, true);
  json_decref(name);
  return rc;
}

json_t *chi_tok_around(int32_t before, int32_t after) {
  json_t *single = json_array(), *tokens = json_object();
  const int32_t id[] = {before, after};
  static const char *const name[] = {"before", "after"};
  for (int k = 0; k < 2; k++) {
    if (k == 1) json_array_append_new(single, json_pack("{s:{s:s}}", "Sequence", "id", "A"));
    if (id[k] < 0) continue;
    json_array_append_new(single, json_pack("{s:{s:s}}", "SpecialToken", "id", name[k]));
    json_object_set_new(tokens, name[k], json_pack("{s:[i]}", "ids", (int)id[k]));
  }
  return json_pack("{s:s, s:o, s:o}", "type", "TemplateProcessing", "single", single, "special_tokens", tokens);
}

/* The id of a token that goes around the text; it must exist. */
static int around_id(const folder *f, const char *s, int32_t *out) {
  const json_t *id = id_of(f, s);
  double v = json_is_number(id) ? json_number_value(id) : -1;
  if (!(v >= 0 && v < (double)CHI_VOCAB_MAX))
    return chi_fail(f->err, CHI_ERR_FORMAT, "%s: the special token \"%.40s\" is not in the vocabulary", f->dir, s);
  *out = (int32_t)v;
  return 0;
}

/* ---- vocab.json + merges.txt ------------------------------------------------------------------------------- */
static int read_merges(folder *f, json_t *merges) {
  char path[4096], *text = NULL, *next;
  size_t len = 0;
  int rc = 0, line = 1;
  CHI_TRY(chi_path_join(path, sizeof path, f->dir, "merges.txt", f->err));
  CHI_TRY(chi_read_file(&text, &len, path, FILE_MAX, f->err));
  for (char *s = text; s && *s; s = next, line++) {
    char *end = strchr(s, '\n');
    next = end ? end + 1 : NULL;
    if (!end) end = text + len;
    if (end > s && end[-1] == '\r') end--;
    *end = 0;
    if (!*s || strncmp(s, "#version", 8) == 0) continue;
    if (json_array_append_new(merges, json_string(s)) == 0) continue;
    rc = chi_fail(f->err, CHI_ERR_FORMAT, "%s: line %d is not valid UTF-8", path, line);
    goto out;
  }
out:
  chi_free(text);
  return rc;
}

static json_t *byte_level(bool prefix_space, bool use_regex) {
  return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", prefix_space, "use_regex",
                   use_regex, "trim_offsets", 0);
}

static int bpe_files(folder *f) {
  int rc = 0;
  int32_t bos = -1;
  bool qwen = strcmp(f->kind, "Qwen2Tokenizer") == 0, prefix = flag(f, "add_prefix_space", false);
  if (!qwen && strcmp(f->kind, "GPT2Tokenizer") != 0 && strcmp(f->kind, "CodeGenTokenizer") != 0) return refuse_kind(f);
  CHI_TRY(chi_json_load(&f->vocab, f->path, FILE_MAX, f->err));
  json_t *merges = json_array();
  json_object_set_new(f->root, "model",
                      json_pack("{s:s, s:O, s:o}", "type", "BPE", "vocab", f->vocab, "merges", merges));
  CHI_TRY(read_merges(f, merges));
  CHI_TRY(add_special(f));
  const char *end = f->is_opt ? "</s>" : "<|endoftext|>";
  f->bos = name_or(f, "bos_token", qwen ? NULL : end);
  f->eos = name_or(f, "eos_token", end);
  if (f->bos) CHI_TRY(add_default(f, "bos_token", end));
  CHI_TRY(add_default(f, "eos_token", end));
  if (flag(f, "add_bos_token", f->is_opt)) {
    CHI_TRY(around_id(f, f->bos ? f->bos : end, &bos));
    json_object_set_new(f->root, "post_processor", chi_tok_around(bos, -1));
  }
  json_object_set_new(f->root, "decoder", byte_level(prefix, true));
  if (qwen) {
    json_object_set_new(f->root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    json_object_set_new(
        f->root, "pre_tokenizer",
        json_pack("{s:s, s:[{s:s, s:{s:s}, s:s}, o]}", "type", "Sequence", "pretokenizers", "type", "Split", "pattern",
                  "Regex", QWEN_REGEX, "behavior", "Isolated", byte_level(prefix, false)));
  } else {
    json_object_set_new(f->root, "pre_tokenizer", byte_level(prefix, true));
  }
out:
  return rc;
}

/* ---- vocab.txt --------------------------------------------------------------------------------------------- */
static int read_lines(folder *f) {
  char *text = NULL, *next;
  size_t len = 0;
  int rc = 0;
  json_int_t id = 0;
  CHI_TRY(chi_read_file(&text, &len, f->path, FILE_MAX, f->err));
  for (char *s = text; s && *s; s = next, id++) {
    char *end = strchr(s, '\n');
    next = end ? end + 1 : NULL;
    if (!end) end = text + len;
    if (end > s && end[-1] == '\r') end--;
    *end = 0;
    if (json_object_set_new(f->vocab, s, json_integer(id)) == 0) continue;
    rc = chi_fail(f->err, CHI_ERR_FORMAT, "%s: line %lld is not valid UTF-8", f->path, (long long)id + 1);
    goto out;
  }
out:
  chi_free(text);
  return rc;
}

static int bert_files(folder *f) {
  static const char *const names[][2] = {{"unk_token", "[UNK]"},
                                         {"sep_token", "[SEP]"},
                                         {"pad_token", "[PAD]"},
                                         {"cls_token", "[CLS]"},
                                         {"mask_token", "[MASK]"}};
  int rc = 0;
  int32_t cls = -1, sep = -1;
  if (strcmp(f->kind, "BertTokenizer") != 0) return refuse_kind(f);
  f->vocab = json_object();
  CHI_TRY(read_lines(f));
  CHI_TRY(add_special(f));
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) CHI_TRY(add_default(f, names[k][0], names[k][1]));
  CHI_TRY(around_id(f, name_or(f, "cls_token", "[CLS]"), &cls));
  CHI_TRY(around_id(f, name_or(f, "sep_token", "[SEP]"), &sep));
  json_object_set_new(f->root, "model",
                      json_pack("{s:s, s:O, s:s}", "type", "WordPiece", "vocab", f->vocab, "unk_token",
                                name_or(f, "unk_token", "[UNK]")));
  json_t *norm = json_pack("{s:s, s:b, s:b}", "type", "BertNormalizer", "lowercase", flag(f, "do_lower_case", true),
                           "handle_chinese_chars", flag(f, "tokenize_chinese_chars", true));
  json_t *marks = json_object_get(f->config, "strip_accents");
  if (json_is_boolean(marks)) json_object_set(norm, "strip_accents", marks);
  json_object_set_new(f->root, "normalizer", norm);
  json_object_set_new(f->root, "pre_tokenizer", json_pack("{s:s}", "type", "BertPreTokenizer"));
  json_object_set_new(f->root, "post_processor", chi_tok_around(cls, sep));
  json_object_set_new(f->root, "decoder", json_pack("{s:s, s:s}", "type", "WordPiece", "prefix", "##"));
out:
  return rc;
}

/* ---- tokenizer.model --------------------------------------------------------------------------------------- */
/* Ids of the special tokens that the config files name; the rest of the vocabulary is in the file. */
static int spm_file(chi_tokenizer **out, folder *f) {
  int rc = 0;
  chi_map map = {0};
  chi_tokenizer *probe = NULL;
  chi_spm how = {.add_bos = flag(f, "add_bos_token", true),
                 .add_eos = flag(f, "add_eos_token", false),
                 .legacy = flag(f, "legacy", true)};
  if (strcmp(f->kind, "LlamaTokenizer") != 0) return refuse_kind(f);
  CHI_TRY(chi_map_open(&map, f->path, f->err));
  if (map.size > MODEL_MAX) {
    rc = chi_fail(f->err, CHI_ERR_FORMAT, "%s: %zu bytes are too many for a SentencePiece model", f->path, map.size);
    goto out;
  }
  CHI_TRY(chi_tok_spm(&probe, map.data, map.size, NULL, f->path, f->err));
  how.bos = chi_token_id(probe, name_or(f, "bos_token", "<s>"));
  how.eos = chi_token_id(probe, name_or(f, "eos_token", "</s>"));
  CHI_TRY(chi_tok_spm(out, map.data, map.size, &how, f->path, f->err));
  const char *key;
  json_t *id;
  json_object_foreach(f->extra, key, id) {
    double v = json_is_number(id) ? json_number_value(id) : -1;
    if (chi_token_id(*out, key) >= 0) continue;
    if (!(v >= 0 && v < (double)CHI_VOCAB_MAX))
      rc = chi_fail(f->err, CHI_ERR_FORMAT, "%s: added token \"%.40s\" has no integer id", f->dir, key);
    if (rc == 0) rc = chi_tokenizer_add(*out, key, (int32_t)v, f->err);
    if (rc == 0) continue;
    chi_tokenizer_free(*out);
    *out = NULL;
    goto out;
  }
out:
  chi_tokenizer_free(probe);
  chi_map_close(&map);
  return rc;
}

int chi_tok_slow(chi_tokenizer **out, const char *dir, chi_err *err) {
  static const char *const files[] = {"tokenizer.model", "vocab.json", "vocab.txt"};
  folder f = {.dir = dir, .err = err};
  int rc = 0;
  size_t k = 0;
  for (; k < 3; k++) {
    CHI_TRY(chi_path_join(f.path, sizeof f.path, dir, files[k], err));
    if (chi_file_exists(f.path)) break;
  }
  if (k == 3) {
    CHI_TRY(chi_path_join(f.path, sizeof f.path, dir, "tokenizer.json", err));
    return chi_fail(err, CHI_ERR_IO,
                    "%s: no such file, and no tokenizer.model, vocab.json or vocab.txt beside it; copy the tokenizer's "
                    "files into the folder",
                    f.path);
  }
  CHI_TRY(chi_tok_config(&f.config, dir, "tokenizer_config.json", err));
  CHI_TRY(chi_tok_config(&f.names, dir, "special_tokens_map.json", err));
  CHI_TRY(chi_tok_config(&f.extra, dir, "added_tokens.json", err));
  CHI_TRY(chi_tok_config(&f.model, dir, "config.json", err));
  find_kind(&f);
  if (k == 0) {
    CHI_TRY(spm_file(out, &f));
    goto out;
  }
  f.root = json_object();
  f.added = json_array();
  CHI_TRY(k == 1 ? bpe_files(&f) : bert_files(&f));
  json_object_set(f.root, "added_tokens", f.added);
  CHI_TRY(chi_tok_new(out, f.root, f.path, err));
  if (f.bos) (*out)->bos = chi_token_id(*out, f.bos);
  if (f.eos) (*out)->eos = chi_token_id(*out, f.eos);
out:
  json_decref(f.config);
  json_decref(f.names);
  json_decref(f.extra);
  json_decref(f.model);
  json_decref(f.root);
  json_decref(f.vocab);
  json_decref(f.added);
  return rc;
}

/* tokenizer.json -> chi_tokenizer: vocabulary, merges, added tokens; names from tokenizer_config.json. */
#include "text/tok.h"

#include <stdio.h>
#include <string.h>

#define FILE_MAX ((size_t)128 << 20)
#define CONFIG_MAX ((size_t)4 << 20)

static int set_piece(chi_tokenizer *t, int64_t id, const char *s, uint32_t flags, chi_err *err) {
  if (id < 0 || id >= CHI_VOCAB_MAX)
    return chi_fail(err, CHI_ERR_FORMAT, "token \"%.40s\": id %lld is outside 0..%lld", s, (long long)id,
                    (long long)CHI_VOCAB_MAX - 1);
  void *p = t->piece;
  int rc = chi_grow(&p, &t->piece_cap, (size_t)id + 1, sizeof *t->piece, err);
  t->piece = p;
  if (rc) return rc;
  if (id >= t->n_ids) t->n_ids = (int32_t)id + 1;
  t->piece[id] = (chi_piece){.s = s, .len = (uint32_t)strlen(s), .flags = flags | CHI_TOK_KNOWN};
  return 0;
}

/* ---- the model --------------------------------------------------------------------------------------------- */
static int load_vocab(chi_tokenizer *t, const json_t *vocab, chi_err *err) {
  const char *key;
  json_t *v;
  int rc = 0;
  if (!json_is_object(vocab)) return chi_fail(err, CHI_ERR_FORMAT, "model: \"vocab\" is not an object");
  json_object_foreach((json_t *)(uintptr_t)vocab, key, v) {
    if (!json_is_integer(v)) return chi_fail(err, CHI_ERR_FORMAT, "model: vocab \"%.40s\" has no integer id", key);
    json_int_t id = json_integer_value(v);
    if (id >= 0 && id < t->n_ids && t->piece[id].flags)
      return chi_fail(err, CHI_ERR_FORMAT, "model: vocab \"%.40s\" and \"%.40s\" share id %lld", key, t->piece[id].s,
                      (long long)id);
    const char *s = chi_arena_strdup(&t->arena, key, err);
    if (!s) return CHI_ERR_MEMORY;
    CHI_TRY(set_piece(t, id, s, 0, err));
    CHI_TRY(chi_strmap_put(&t->vocab, s, strlen(s), (int32_t)id, err));
  }
out:
  return rc;
}

/* The two sides of a merge: "a b" or ["a", "b"]. False when it is neither. */
static bool merge_sides(const json_t *m, const char **a, size_t *a_len, const char **b) {
  if (json_is_string(m)) {
    const char *s = json_string_value(m), *space = strchr(s, ' ');
    if (!space || strchr(space + 1, ' ')) return false;
    *a = s;
    *a_len = (size_t)(space - s);
    *b = space + 1;
    return true;
  }
  *a = json_string_value(json_array_get(m, 0));
  *b = json_string_value(json_array_get(m, 1));
  if (!*a || !*b || json_array_size(m) != 2) return false;
  *a_len = strlen(*a);
  return true;
}

static int load_merges(chi_tokenizer *t, const json_t *merges, chi_err *err) {
  int rc = 0;
  size_t k;
  uint64_t rank = 0;
  const json_t *m;
  chi_str both = {0};
  if (!json_is_array(merges)) return chi_fail(err, CHI_ERR_FORMAT, "model: \"merges\" is not a list");
  json_array_foreach(merges, k, m) {
    const char *a = NULL, *b = NULL;
    size_t a_len = 0;
    if (json_is_string(m) && strncmp(json_string_value(m), "#version", 8) == 0) continue;
    if (!merge_sides(m, &a, &a_len, &b)) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "model: merge %zu is not a pair", k);
      goto out;
    }
    both.len = 0;
    chi_str_addn(&both, a, a_len);
    chi_str_add(&both, b);
    int32_t left = chi_strmap_get(&t->vocab, a, a_len), right = chi_strmap_get(&t->vocab, b, strlen(b));
    int32_t id = both.failed ? -1 : chi_strmap_get(&t->vocab, both.s, both.len);
    if (left < 0 || right < 0 || id < 0) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "model: merge %zu (\"%.40s\") uses a token that the vocabulary lacks", k,
                    both.failed ? "" : both.s);
      goto out;
    }
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    CHI_TRY(chi_u64map_put(&t->merges, pair, rank++ << 32 | (uint32_t)id, err));
  }
out:
  chi_str_free(&both);
  return rc;
}

static int load_model(chi_tokenizer *t, const json_t *model, chi_err *err) {
  int rc = 0;
  const char *type = NULL, *unk = NULL, *prefix = NULL, *suffix = NULL;
  double dropout = 0;
  if (!json_is_object(model)) return chi_fail(err, CHI_ERR_FORMAT, "\"model\" is missing");
  CHI_TRY(chi_json_str_opt(&type, model, "type", "model", err));
  /* Old files name no type: only word pieces have this limit. */
  t->wordpiece = type ? strcmp(type, "WordPiece") == 0 : json_object_get(model, "max_input_chars_per_word") != NULL;
  if (type && strcmp(type, "BPE") != 0 && !t->wordpiece)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "model: type \"%s\" is not supported (BPE and WordPiece are)", type);
  if (t->wordpiece) {
    CHI_TRY(load_vocab(t, json_object_get(model, "vocab"), err));
    return chi_wordpiece_load(t, model, err);
  }
  if (!json_is_null(json_object_get(model, "dropout")))
    CHI_TRY(chi_json_f64_opt(&dropout, model, "dropout", "model", err));
  if (dropout != 0) return chi_fail(err, CHI_ERR_UNSUPPORTED, "model: dropout %g is not supported", dropout);
  static const char *const names[] = {"continuing_subword_prefix", "end_of_word_suffix", "unk_token"};
  const char **values[] = {&prefix, &suffix, &unk};
  for (int k = 0; k < 3; k++)
    if (!json_is_null(json_object_get(model, names[k])))
      CHI_TRY(chi_json_str_opt(values[k], model, names[k], "model", err));
  for (int k = 0; k < 2; k++)
    if (*values[k] && **values[k])
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "model: %s \"%s\" is not supported", names[k], *values[k]);
  CHI_TRY(chi_json_bool_opt(&t->fuse_unk, model, "fuse_unk", "model", err));
  CHI_TRY(chi_json_bool_opt(&t->byte_fallback, model, "byte_fallback", "model", err));
  CHI_TRY(chi_json_bool_opt(&t->ignore_merges, model, "ignore_merges", "model", err));
  CHI_TRY(load_vocab(t, json_object_get(model, "vocab"), err));
  CHI_TRY(load_merges(t, json_object_get(model, "merges"), err));
  if (unk) t->unk = chi_strmap_get(&t->vocab, unk, strlen(unk));
  for (int b = 0; b < 256; b++) {
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
    t->byte_id[b] = chi_strmap_get(&t->vocab, name, 6);
  }
out:
  return rc;
}

/* ---- added tokens ------------------------------------------------------------------------------------------ */
/* One token of "added_tokens" or of tokenizer_config.json. A token that the vocabulary has keeps its id there, as in
 * the reference. */
static int add_token(chi_tokenizer *t, const json_t *o, int64_t id, const char *where, chi_err *err) {
  static const char *const names[] = {"special", "lstrip", "rstrip", "single_word"};
  static const uint32_t bits[] = {CHI_TOK_SPECIAL, CHI_TOK_LSTRIP, CHI_TOK_RSTRIP, CHI_TOK_SINGLE_WORD};
  int rc = 0;
  uint32_t flags = CHI_TOK_ADDED;
  const char *content = NULL;
  CHI_TRY(chi_json_str_opt(&content, o, "content", where, err));
  if (!content) return chi_fail(err, CHI_ERR_FORMAT, "%s: token %lld has no \"content\"", where, (long long)id);
  for (int k = 0; k < 4; k++) {
    bool on = false;
    CHI_TRY(chi_json_bool_opt(&on, o, names[k], where, err));
    if (on) flags |= bits[k];
  }
  if (!*content) return 0;
  int32_t known = chi_token_id(t, content);
  if (known >= 0 && known != id)
    chi_log(CHI_LOG_WARN,
            "tokenizer: token \"%.40s\" is declared as %lld but the vocabulary has it as %d, which is used", content,
            (long long)id, (int)known);
  if (known >= 0) id = known;
  const char *s = chi_arena_strdup(&t->arena, content, err);
  if (!s) return CHI_ERR_MEMORY;
  CHI_TRY(set_piece(t, id, s, flags, err));
  CHI_TRY(chi_strmap_put(&t->added, s, strlen(s), (int32_t)id, err));
out:
  return rc;
}

/* What an added token looks like once the normalizers have run. */
static int normalized_key(const chi_tokenizer *t, const char *s, chi_nstr *out, chi_nstr *tmp, chi_err *err) {
  out->n = 0;
  int rc = chi_nstr_put(out, s, strlen(s), (chi_range){0, 0}, err);
  return rc ? rc : chi_normalize(t, out, tmp, err);
}

/* The reference shows a normalized token by its normalized text, and tells special tokens apart by their text. */
static int rename_normalized(chi_tokenizer *t, int32_t id, const chi_nstr *key, chi_err *err) {
  chi_piece *p = &t->piece[id];
  if (key->n == p->len && memcmp(key->s, p->s, key->n) == 0) return 0;
  char *s = chi_arena_array(&t->arena, key->n + 1, 1, err);
  if (!s) return CHI_ERR_MEMORY;
  memcpy(s, key->s, key->n);
  int32_t same = chi_strmap_get(&t->added, s, key->n);
  if (same < 0 || !(t->piece[same].flags & CHI_TOK_SPECIAL)) p->flags |= CHI_TOK_SHOWN;
  p->s = s;
  p->len = (uint32_t)key->n;
  return 0;
}

/* Makes an added token known to the search in text: before or after normalization. */
static int index_token(chi_tokenizer *t, const json_t *o, const char *where, chi_err *err) {
  int rc = 0;
  const char *s = json_string_value(json_object_get(o, "content"));
  bool normalized = !json_is_true(json_object_get(o, "special"));
  chi_nstr key = {0}, tmp = {0};
  CHI_TRY(chi_json_bool_opt(&normalized, o, "normalized", where, err));
  if (!*s) goto out;
  int32_t id = chi_strmap_get(&t->added, s, strlen(s));
  if (normalized) {
    CHI_TRY(normalized_key(t, s, &key, &tmp, err));
    if (!key.n) goto out;
    CHI_TRY(chi_trie_add(&t->normalized, key.s, key.n, id, err));
    CHI_TRY(rename_normalized(t, id, &key, err));
  } else {
    CHI_TRY(chi_trie_add(&t->raw, s, strlen(s), id, err));
  }
out:
  chi_nstr_free(&key);
  chi_nstr_free(&tmp);
  return rc;
}

static int build(chi_tokenizer *t, const json_t *root, chi_err *err) {
  static const char where[] = "added_tokens";
  int rc = 0;
  size_t k;
  const json_t *o, *added = json_object_get(root, where);
  if (!json_is_object(root)) return chi_fail(err, CHI_ERR_FORMAT, "not an object");
  if (added && !json_is_array(added) && !json_is_null(added))
    return chi_fail(err, CHI_ERR_FORMAT, "\"%s\" is not a list", where);
  CHI_TRY(load_model(t, json_object_get(root, "model"), err));
  json_array_foreach(added, k, o) { /* before the steps: templates name these tokens */
    int64_t id = 0;
    CHI_TRY(chi_json_i64(&id, o, "id", 0, CHI_VOCAB_MAX - 1, where, err));
    CHI_TRY(add_token(t, o, id, where, err));
  }
  CHI_TRY(chi_tok_steps(t, root, err));
  json_array_foreach(added, k, o) CHI_TRY(index_token(t, o, where, err)); /* after: some are normalized */
out:
  return rc;
}

void chi_tokenizer_free(chi_tokenizer *t) {
  if (!t) return;
  for (size_t k = 0; k < t->n_norm; k++) chi_pattern_free(&t->norm[k].pattern);
  for (size_t k = 0; k < t->n_pre; k++) chi_pattern_free(&t->pre[k].pattern);
  for (size_t k = 0; k < t->n_dec; k++) chi_pattern_free(&t->dec[k].pattern);
  chi_strmap_free(&t->vocab);
  chi_strmap_free(&t->added);
  chi_u64map_free(&t->merges);
  chi_trie_free(&t->raw);
  chi_trie_free(&t->normalized);
  chi_trie_free(&t->word);
  chi_trie_free(&t->inside);
  chi_free(t->piece);
  chi_arena_free(&t->arena);
  chi_free(t);
}

int chi_tok_new(chi_tokenizer **out, const json_t *root, const char *what, chi_err *err) {
  chi_tokenizer *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  t->unk = t->bos = t->eos = -1;
  int rc = build(t, root, err);
  if (rc) {
    chi_err_prefix(err, what);
    chi_tokenizer_free(t);
    t = NULL;
  }
  *out = t;
  return rc;
}

int chi_tokenizer_parse(chi_tokenizer **out, const char *json, size_t len, const char *what, chi_err *err) {
  json_t *root = NULL;
  *out = NULL;
  int rc = chi_json_parse(&root, json, len, what, err);
  if (rc == 0) rc = chi_tok_new(out, root, what, err);
  json_decref(root);
  return rc;
}

/* ---- the folder -------------------------------------------------------------------------------------------- */
/* "bos_token": a string, or an object with "content"; absent or null leaves *id. */
static void named_token(const chi_tokenizer *t, const json_t *config, const char *key, int32_t *id) {
  const json_t *v = json_object_get(config, key);
  const char *s = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
  if (s && *id < 0) *id = chi_token_id(t, s);
}

/* Tokens that only tokenizer_config.json knows are added under their declared ids. */
static int config_tokens(chi_tokenizer *t, const json_t *config, const char *path, chi_err *err) {
  int rc = 0;
  const char *key;
  json_t *o;
  json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, o) {
    const char *s = json_string_value(json_object_get(o, "content"));
    long long id = -1;
    char rest;
    if (!s || !*s || chi_strmap_get(&t->added, s, strlen(s)) >= 0) continue;
    if (sscanf(key, "%lld%c", &id, &rest) != 1) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: added_tokens_decoder: \"%.40s\" is not an id", path, key);
      goto out;
    }
    CHI_TRY(add_token(t, o, id, path, err));
    CHI_TRY(index_token(t, o, path, err));
  }
out:
  return rc;
}

int chi_tok_config(json_t **out, const char *dir, const char *name, chi_err *err) {
  char path[4096], *text = NULL;
  size_t len = 0;
  json_error_t why;
  int rc = 0;
  *out = NULL;
  CHI_TRY(chi_path_join(path, sizeof path, dir, name, err));
  if (!chi_file_exists(path)) return 0;
  CHI_TRY(chi_read_file(&text, &len, path, CONFIG_MAX, err));
  *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &why);
  if (!*out)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", path, why.line, why.column,
                  why.text);
out:
  chi_free(text);
  return rc;
}

static int load_names(chi_tokenizer *t, const char *dir, const char *name, chi_err *err) {
  char path[4096];
  json_t *config = NULL;
  int rc = 0;
  CHI_TRY(chi_path_join(path, sizeof path, dir, name, err));
  CHI_TRY(chi_tok_config(&config, dir, name, err));
  CHI_TRY(config_tokens(t, config, path, err));
  named_token(t, config, "bos_token", &t->bos);
  named_token(t, config, "eos_token", &t->eos);
out:
  json_decref(config);
  return rc;
}

int chi_tokenizer_load(chi_tokenizer **out, const char *dir, chi_err *err) {
  char path[4096];
  json_t *root = NULL;
  chi_tokenizer *t = NULL;
  int rc = 0;
  *out = NULL;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "tokenizer.json", err));
  if (chi_file_exists(path)) {
    CHI_TRY(chi_json_load(&root, path, FILE_MAX, err));
    CHI_TRY(chi_tok_new(&t, root, path, err));
  } else {
    CHI_TRY(chi_tok_slow(&t, dir, err));
  }
  CHI_TRY(load_names(t, dir, "tokenizer_config.json", err));
  CHI_TRY(load_names(t, dir, "special_tokens_map.json", err));
  *out = t;
  t = NULL;
out:
  json_decref(root);
  chi_tokenizer_free(t);
  return rc;
}

int chi_tokenizer_add(chi_tokenizer *t, const char *content, int32_t id, chi_err *err) {
  static const char where[] = "added token";
  int32_t known = chi_token_id(t, content);
  if (!*content || (known >= 0 && known != id))
    return chi_fail(err, CHI_ERR_ARG, "token \"%.40s\" cannot be added as %d: it is %d already", content, (int)id,
                    (int)known);
  if (id >= 0 && id < t->n_ids && t->piece[id].flags && known != id)
    return chi_fail(err, CHI_ERR_ARG, "token \"%.40s\" cannot be added as %d: that is \"%.40s\"", content, (int)id,
                    t->piece[id].s);
  json_t *o = json_pack("{s:s, s:b}", "content", content, "special", 1);
  if (!o) return chi_fail(err, CHI_ERR_ARG, "an added token is not valid UTF-8, or memory is out");
  int rc = add_token(t, o, id, where, err);
  if (rc == 0) rc = index_token(t, o, where, err);
  json_decref(o);
  return rc;
}

/* A GGUF file's tokenizer.ggml.* keys -> the objects of a tokenizer.json -> chi_tokenizer: one place knows each step.
 * Byte-level BPE brings its merges and the name of its pre-tokenizer; a SentencePiece model brings scores, from which
 * the merges follow (docs/gguf.md). */
#include <stdlib.h>
#include <string.h>

#include "file/gguf.h"
#include "text/tok.h"

enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };
enum { TOKENS_MAX = 1 << 20, MERGES_MAX = 1 << 24, SCORED_BYTES = 512 };

typedef struct token {
  const char *s; /* into the map */
  size_t len;
  int type;
} token;

typedef struct source {
  const chi_gguf *g;
  const char *model, *pre;
  token *tok;
  int64_t n;
  const chi_gguf_value *scores;
  int64_t bos, eos, unk;
  bool add_bos, add_eos, space;
  chi_err *err;
} source;

static int fail(const source *s, int code, const char *what) {
  return chi_fail(s->err, code, "%s: %s", chi_gguf_path(s->g), what);
}

/* ---- keys ------------------------------------------------------------------------------------------------------ */
static int read_tokens(source *s) {
  int rc = 0;
  const chi_gguf_value *list = NULL, *types = NULL;
  CHI_TRY(chi_gguf_strings_opt(&list, s->g, "tokenizer.ggml.tokens", s->err));
  CHI_TRY(chi_gguf_numbers_opt(&types, s->g, "tokenizer.ggml.token_type", s->err));
  CHI_TRY(chi_gguf_numbers_opt(&s->scores, s->g, "tokenizer.ggml.scores", s->err));
  if (!list || list->n == 0) return fail(s, CHI_ERR_FORMAT, "key 'tokenizer.ggml.tokens' is missing or empty");
  if (list->n > TOKENS_MAX)
    return chi_fail(s->err, CHI_ERR_FORMAT, "%s: key 'tokenizer.ggml.tokens' has %llu elements; at most %d are read",
                    chi_gguf_path(s->g), (unsigned long long)list->n, TOKENS_MAX);
  if ((types && types->n != list->n) || (s->scores && s->scores->n != list->n))
    return fail(s, CHI_ERR_FORMAT, "tokenizer.ggml.tokens, .token_type and .scores differ in length");
  s->n = (int64_t)list->n;
  s->tok = chi_calloc((size_t)s->n, sizeof *s->tok, s->err);
  if (!s->tok) return CHI_ERR_MEMORY;
  const uint8_t *at = list->data;
  for (int64_t i = 0; i < s->n; i++) {
    token *t = &s->tok[i];
    t->s = chi_gguf_string(&at, &t->len);
    double type = types ? chi_gguf_number(types, (uint64_t)i) : TOKEN_NORMAL;
    t->type = type >= TOKEN_NORMAL && type <= TOKEN_BYTE ? (int)type : TOKEN_NORMAL;
    if (memchr(t->s, 0, t->len) || chi_utf8_valid(t->s, t->len) != t->len)
      return chi_fail(s->err, CHI_ERR_FORMAT, "%s: tokenizer.ggml.tokens: token %lld is not UTF-8 text",
                      chi_gguf_path(s->g), (long long)i);
  }
out:
  return rc;
}

static int read_source(source *s) {
  int rc = 0;
  int64_t last;
  CHI_TRY(chi_gguf_str_opt(&s->model, s->g, "tokenizer.ggml.model", s->err));
  CHI_TRY(chi_gguf_str_opt(&s->pre, s->g, "tokenizer.ggml.pre", s->err));
  if (!s->model) return fail(s, CHI_ERR_FORMAT, "key 'tokenizer.ggml.model' is missing: the file has no tokenizer");
  CHI_TRY(read_tokens(s));
  last = s->n - 1;
  CHI_TRY(chi_gguf_i64_opt(&s->bos, s->g, "tokenizer.ggml.bos_token_id", 0, last, s->err));
  CHI_TRY(chi_gguf_i64_opt(&s->eos, s->g, "tokenizer.ggml.eos_token_id", 0, last, s->err));
  CHI_TRY(chi_gguf_i64_opt(&s->unk, s->g, "tokenizer.ggml.unknown_token_id", 0, last, s->err));
  CHI_TRY(chi_gguf_bool_opt(&s->add_bos, s->g, "tokenizer.ggml.add_bos_token", s->err));
  CHI_TRY(chi_gguf_bool_opt(&s->add_eos, s->g, "tokenizer.ggml.add_eos_token", s->err));
  CHI_TRY(chi_gguf_bool_opt(&s->space, s->g, "tokenizer.ggml.add_space_prefix", s->err));
  if ((s->add_bos && s->bos < 0) || (s->add_eos && s->eos < 0))
    return fail(s, CHI_ERR_FORMAT,
                "tokenizer.ggml.add_bos_token or add_eos_token is set, but the token's id is missing");
out:
  return rc;
}

/* ---- parts of the JSON objects --------------------------------------------------------------------------------- */
static json_t *text_of(const token *t) { return json_stringn(t->s, t->len); }

/* Of tokens that are there twice the last one counts, as in the reference. */
static json_t *vocab_of(const source *s) {
  json_t *o = json_object();
  for (int64_t i = 0; i < s->n; i++)
    if (json_object_setn_new(o, s->tok[i].s, s->tok[i].len, json_integer(i))) {
      json_decref(o);
      return NULL;
    }
  return o;
}

static json_t *added_of(const source *s) {
  json_t *list = json_array();
  bool spm = chi_streq(s->model, "llama");
  for (int64_t i = 0; i < s->n; i++) {
    int type = s->tok[i].type;
    bool special = type == TOKEN_CONTROL || (spm && type == TOKEN_UNKNOWN);
    if ((!special && type != TOKEN_USER) || s->tok[i].len == 0) continue;
    json_t *o = json_pack("{s:I,s:o,s:b,s:b}", "id", (json_int_t)i, "content", text_of(&s->tok[i]), "special",
                          (int)special, "normalized", 0);
    if (json_array_append_new(list, o)) {
      json_decref(list);
      return NULL;
    }
  }
  return list;
}

/* BOS and EOS around the text, and for byte-level models token ranges without the leading space. */
static json_t *post_of(const source *s, bool byte_level) {
  json_t *list = json_array(), *single = json_array(), *names = json_object();
  if (byte_level)
    json_array_append_new(list,
                          json_pack("{s:s,s:b,s:b}", "type", "ByteLevel", "trim_offsets", 1, "add_prefix_space", 0));
  if (s->add_bos) json_array_append_new(single, json_pack("{s:{s:s}}", "SpecialToken", "id", "bos"));
  json_array_append_new(single, json_pack("{s:{s:s}}", "Sequence", "id", "A"));
  if (s->add_eos) json_array_append_new(single, json_pack("{s:{s:s}}", "SpecialToken", "id", "eos"));
  if (s->bos >= 0) json_object_set_new(names, "bos", json_pack("{s:[I]}", "ids", (json_int_t)s->bos));
  if (s->eos >= 0) json_object_set_new(names, "eos", json_pack("{s:[I]}", "ids", (json_int_t)s->eos));
  json_array_append_new(
      list, json_pack("{s:s,s:o,s:o}", "type", "TemplateProcessing", "single", single, "special_tokens", names));
  return json_pack("{s:s,s:o}", "type", "Sequence", "processors", list);
}

/* ---- byte-level BPE -------------------------------------------------------------------------------------------- */
#define LETTERS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef struct pre_row {
  const char *name;
  bool digits;       /* every digit alone, before GPT-2's expression */
  bool nfc;          /* normalized first */
  bool whole;        /* a piece that is a token needs no merges */
  const char *regex; /* NULL: GPT-2's */
} pre_row;
/* The name says which expression cut the text before merges were learned. */
static const pre_row kPre[] = {
    {"gpt-2", false, false, false, NULL},
    {"phi-2", false, false, false, NULL},
    {"olmo", false, false, false, NULL},
    {"default", false, false, false, NULL},
    {"smollm", true, false, false, NULL},
    {"starcoder", true, false, false, NULL},
    {"refact", true, false, false, NULL},
    {"command-r", true, false, false, NULL},
    {"llama-bpe", false, false, true, LETTERS "\\p{N}{1,3}" REST},
    {"llama3", false, false, true, LETTERS "\\p{N}{1,3}" REST},
    {"llama-v3", false, false, true, LETTERS "\\p{N}{1,3}" REST},
    {"smaug-bpe", false, false, true, LETTERS "\\p{N}{1,3}" REST},
    {"qwen2", false, true, false, LETTERS "\\p{N}" REST},
    {"deepseek-r1-qwen", false, true, false, LETTERS "\\p{N}" REST},
    {"megrez", false, true, false, LETTERS "\\p{N}" REST},
};

static int find_pre(const source *s, const pre_row **out) {
  *out = &kPre[0];
  if (!s->pre) {
    chi_log(CHI_LOG_WARN, "%s: tokenizer.ggml.pre is missing; text is cut as GPT-2 does, which may give other tokens",
            chi_gguf_path(s->g));
    return 0;
  }
  chi_str known = {0};
  for (size_t i = 0; i < sizeof kPre / sizeof *kPre; i++) {
    chi_str_addf(&known, "%s%s", i ? ", " : "", kPre[i].name);
    if (!chi_streq(kPre[i].name, s->pre)) continue;
    *out = &kPre[i];
    chi_str_free(&known);
    return 0;
  }
  int rc = chi_fail(s->err, CHI_ERR_UNSUPPORTED, "%s: tokenizer.ggml.pre is '%.40s'; known are %s", chi_gguf_path(s->g),
                    s->pre, known.s ? known.s : "");
  chi_str_free(&known);
  return rc;
}

static json_t *pre_of(const pre_row *p) {
  json_t *bytes = json_pack("{s:s,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", p->regex == NULL);
  json_t *first = NULL;
  if (p->digits) first = json_pack("{s:s,s:b}", "type", "Digits", "individual_digits", 1);
  if (p->regex)
    first = json_pack("{s:s,s:{s:s},s:s}", "type", "Split", "pattern", "Regex", p->regex, "behavior", "Isolated");
  return first ? json_pack("{s:s,s:[o,o]}", "type", "Sequence", "pretokenizers", first, bytes) : bytes;
}

static int file_merges(const source *s, json_t **out) {
  const chi_gguf_value *list = NULL;
  int rc = chi_gguf_strings_opt(&list, s->g, "tokenizer.ggml.merges", s->err);
  if (rc || !list) return rc;
  json_t *merges = json_array();
  const uint8_t *at = list->data;
  for (uint64_t i = 0; i < list->n; i++) {
    size_t len;
    const char *m = chi_gguf_string(&at, &len);
    if (json_array_append_new(merges, memchr(m, 0, len) ? NULL : json_stringn(m, len))) {
      json_decref(merges);
      return chi_fail(s->err, CHI_ERR_FORMAT, "%s: tokenizer.ggml.merges: merge %llu is not UTF-8 text",
                      chi_gguf_path(s->g), (unsigned long long)i);
    }
  }
  *out = merges;
  return 0;
}

static int byte_level(const source *s, json_t **out) {
  const pre_row *p;
  json_t *merges = NULL;
  int rc = find_pre(s, &p);
  if (rc == 0) rc = file_merges(s, &merges);
  if (rc) return rc;
  if (!merges) return fail(s, CHI_ERR_FORMAT, "key 'tokenizer.ggml.merges' is missing");
  *out = json_pack("{s:{s:s,s:b,s:o,s:o},s:o,s:o?,s:o,s:o,s:{s:s}}", "model", "type", "BPE", "ignore_merges",
                   (int)p->whole, "vocab", vocab_of(s), "merges", merges, "added_tokens", added_of(s), "normalizer",
                   p->nfc ? json_pack("{s:s}", "type", "NFC") : NULL, "pre_tokenizer", pre_of(p), "post_processor",
                   post_of(s, true), "decoder", "type", "ByteLevel");
  return 0;
}

/* ---- SentencePiece's BPE --------------------------------------------------------------------------------------- */
typedef struct merge { /* left + right = a token with this score */
  double score;
  int32_t left, right, whole, left_chars, right_chars;
  int32_t order;
} merge;
typedef struct merge_list {
  merge *m;
  size_t n, cap;
} merge_list;

static int best_first(const void *pa, const void *pb) {
  const merge *a = pa, *b = pb;
  if (a->score != b->score) return a->score > b->score ? -1 : 1;
  if (a->left_chars != b->left_chars) return a->left_chars > b->left_chars ? -1 : 1;
  if (a->right_chars != b->right_chars) return a->right_chars > b->right_chars ? -1 : 1;
  return a->order < b->order ? -1 : a->order > b->order;
}

static int by_sides(const void *pa, const void *pb) {
  const merge *a = pa, *b = pb;
  if (a->left != b->left) return a->left < b->left ? -1 : 1;
  return a->right < b->right ? -1 : a->right > b->right;
}

/* Every way to put one token together from two others. */
static int splits_of(const source *s, const chi_strmap *ids, int64_t i, merge_list *list) {
  const token *t = &s->tok[i];
  size_t first = list->n;
  int32_t chars = 0, total = 0;
  uint32_t cp;
  double score = chi_gguf_number(s->scores, (uint64_t)i);
  if (!(score == score)) score = 0;
  for (size_t at = 0; at < t->len; at += chi_utf8_get(t->s + at, &cp)) total++;
  for (size_t at = 0; at < t->len;) {
    at += chi_utf8_get(t->s + at, &cp);
    chars++;
    if (at == t->len) break;
    int32_t left = chi_strmap_get(ids, t->s, at), right = chi_strmap_get(ids, t->s + at, t->len - at);
    if (left < 0 || right < 0) continue;
    if (list->n == MERGES_MAX) return fail(s, CHI_ERR_FORMAT, "the tokens join in too many ways; the file is damaged");
    void *p = list->m;
    int rc = chi_grow(&p, &list->cap, list->n + 1, sizeof *list->m, s->err);
    list->m = p;
    if (rc) return rc;
    list->m[list->n++] = (merge){score, left, right, (int32_t)i, chars, total - chars, 0};
  }
  if (list->n > first) qsort(list->m + first, list->n - first, sizeof *list->m, by_sides);
  return 0;
}

/* SentencePiece joins the neighbours whose token has the best score; the reference turns that into a list of merges in
 * this order. */
static int scored_merges(const source *s, chi_tokenizer *t) {
  int rc = 0;
  chi_strmap ids = {0};
  merge_list list = {0};
  for (int64_t i = 0; i < s->n; i++) {
    if (s->tok[i].len > SCORED_BYTES)
      CHI_TRY(chi_fail(s->err, CHI_ERR_FORMAT,
                       "%s: tokenizer.ggml.tokens: token %lld has %zu bytes; at most %d are read", chi_gguf_path(s->g),
                       (long long)i, s->tok[i].len, SCORED_BYTES));
    CHI_TRY(chi_strmap_put(&ids, s->tok[i].s, s->tok[i].len, (int32_t)i, s->err));
  }
  for (int64_t i = 0; i < s->n; i++) {
    const token *k = &s->tok[i];
    bool joined = k->type == TOKEN_NORMAL || k->type == TOKEN_USER;
    if (joined && chi_strmap_get(&ids, k->s, k->len) == i) CHI_TRY(splits_of(s, &ids, i, &list));
  }
  for (size_t i = 0; i < list.n; i++) list.m[i].order = (int32_t)i;
  if (list.n) qsort(list.m, list.n, sizeof *list.m, best_first);
  for (size_t i = 0; i < list.n; i++) {
    const merge *m = &list.m[i];
    uint64_t pair = (uint64_t)m->left << 32 | (uint32_t)m->right;
    CHI_TRY(chi_u64map_put(&t->merges, pair, (uint64_t)i << 32 | (uint32_t)m->whole, s->err));
  }
out:
  chi_free(list.m);
  chi_strmap_free(&ids);
  return rc;
}

#define BAR "\xE2\x96\x81"

/* Without merges in the file *scored is set: they are made from the scores once the vocabulary is there. */
static int sentence_piece(const source *s, json_t **out, bool *scored) {
  json_t *merges = NULL;
  int rc = file_merges(s, &merges);
  if (rc) return rc;
  *scored = merges == NULL;
  if (*scored && !s->scores) return fail(s, CHI_ERR_FORMAT, "key 'tokenizer.ggml.scores' is missing");
  json_t *normal = json_array(), *decode = json_array();
  if (s->space) json_array_append_new(normal, json_pack("{s:s,s:s}", "type", "Prepend", "prepend", BAR));
  json_array_append_new(normal,
                        json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", " ", "content", BAR));
  json_array_append_new(decode,
                        json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", BAR, "content", " "));
  json_array_append_new(decode, json_pack("{s:s}", "type", "ByteFallback"));
  json_array_append_new(decode, json_pack("{s:s}", "type", "Fuse"));
  if (s->space)
    json_array_append_new(decode,
                          json_pack("{s:s,s:s,s:i,s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
  *out = json_pack("{s:{s:s,s:b,s:b,s:o?,s:o,s:o},s:o,s:{s:s,s:o},s:o,s:{s:s,s:o}}", "model", "type", "BPE",
                   "byte_fallback", 1, "fuse_unk", 1, "unk_token", s->unk >= 0 ? text_of(&s->tok[s->unk]) : NULL,
                   "vocab", vocab_of(s), "merges", merges ? merges : json_array(), "added_tokens", added_of(s),
                   "normalizer", "type", "Sequence", "normalizers", normal, "post_processor", post_of(s, false),
                   "decoder", "type", "Sequence", "decoders", decode);
  return 0;
}

int chi_tokenizer_from_gguf(chi_tokenizer **out, const chi_gguf *g, chi_err *err) {
  int rc = 0;
  json_t *root = NULL;
  chi_tokenizer *t = NULL;
  bool spm, scored = false;
  source s = {.g = g, .bos = -1, .eos = -1, .unk = -1, .err = err};
  *out = NULL;
  CHI_TRY(chi_gguf_str_opt(&s.model, g, "tokenizer.ggml.model", err));
  CHI_TRY(chi_gguf_str_opt(&s.pre, g, "tokenizer.ggml.pre", err));
  spm = chi_streq(s.model, "llama");
  if (s.model && !spm && !chi_streq(s.model, "gpt2")) {
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: tokenizer.ggml.model is '%.40s'; known are gpt2 and llama",
                  chi_gguf_path(g), s.model);
    goto out;
  }
  /* What files mean that do not say it. */
  s.space = spm;
  s.add_bos = spm || chi_streq(s.pre, "llama-bpe") || chi_streq(s.pre, "llama3") || chi_streq(s.pre, "llama-v3");
  if (s.add_bos && !chi_gguf_find(g, "tokenizer.ggml.bos_token_id")) s.add_bos = false;
  CHI_TRY(read_source(&s));
  CHI_TRY(spm ? sentence_piece(&s, &root, &scored) : byte_level(&s, &root));
  if (!root) {
    rc = fail(&s, CHI_ERR_MEMORY, "no memory for the tokenizer");
    goto out;
  }
  CHI_TRY(chi_tok_new(&t, root, chi_gguf_path(g), err));
  if (scored) CHI_TRY(scored_merges(&s, t));
  t->bos = (int32_t)s.bos;
  t->eos = (int32_t)s.eos;
  *out = t;
  t = NULL;
out:
  chi_tokenizer_free(t);
  json_decref(root);
  chi_free(s.tok);
  return rc;
}

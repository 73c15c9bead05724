/* tok: the tokenizer's own parts. Included by the files of this folder only.
 *
 * Encoding is a chain of steps over one growing string of bytes, each byte carrying the range of input bytes that it came
 * from (chi_nstr):  added tokens -> normalizers -> normalized added tokens -> pre-tokenizers -> BPE or word pieces ->
 * post-processors.
 * Sequences of the JSON file are flattened at load, so each stage is a plain list.
 */
#ifndef CHI_TEXT_TOK_H
#define CHI_TEXT_TOK_H

#include "text/text.h"

#define CHI_TEXT_MAX ((size_t)8 << 20)   /* bytes of input per encode call */
#define CHI_TEXT_GROWN ((size_t)1 << 28) /* bytes that a step may blow the input up to */
#define CHI_VOCAB_MAX ((int64_t)1 << 22) /* highest token id + 1 */

/* ---- UTF-8 (utf8.c) ---------------------------------------------------------------------------------------- */
/* Bytes of the first character of valid UTF-8 at s, and its code point. */
size_t chi_utf8_get(const char *s, uint32_t *cp);
size_t chi_utf8_put(char out[4], uint32_t cp);
/* Length of the valid prefix of s[0..n). */
size_t chi_utf8_valid(const char *s, size_t n);
/* Appends bytes as text: invalid parts become U+FFFD, one per maximal broken sequence. */
void chi_utf8_lossy(chi_str *out, const char *s, size_t n);
bool chi_is_space(uint32_t cp);  /* Unicode White_Space */
bool chi_is_mark(uint32_t cp);   /* category M* */
bool chi_is_number(uint32_t cp); /* category N* */
bool chi_is_punct(uint32_t cp);  /* category P* of Unicode 8.0, or an ASCII symbol */
bool chi_is_word(uint32_t cp);   /* letter, mark, decimal digit, connector */
uint32_t chi_to_lower(uint32_t cp);

/* ---- hash tables (vocab.c) --------------------------------------------------------------------------------- */
typedef struct chi_strmap_entry {
  const char *s;
  uint32_t len;
  int32_t id;
} chi_strmap_entry;
typedef struct chi_strmap { /* bytes -> id; keys are borrowed */
  chi_strmap_entry *e;
  size_t cap, n; /* cap is a power of two or 0 */
} chi_strmap;
int chi_strmap_put(chi_strmap *m, const char *s, size_t len, int32_t id, chi_err *err); /* replaces */
int32_t chi_strmap_get(const chi_strmap *m, const char *s, size_t len);                 /* -1 if absent */
void chi_strmap_free(chi_strmap *m);

typedef struct chi_u64map { /* pair of ids -> value */
  uint64_t *key, *val;
  size_t cap, n;
} chi_u64map;
int chi_u64map_put(chi_u64map *m, uint64_t key, uint64_t val, chi_err *err); /* replaces */
bool chi_u64map_get(const chi_u64map *m, uint64_t key, uint64_t *val);
void chi_u64map_free(chi_u64map *m);

/* Longest-match trie over bytes. Node 0 is the root; an edge is (node << 8 | byte) -> child. */
typedef struct chi_trie {
  chi_u64map edge;
  int32_t *id; /* per node: token or -1 */
  size_t n, cap;
} chi_trie;
int chi_trie_add(chi_trie *t, const char *s, size_t len, int32_t id, chi_err *err); /* the first id of a key stays */
/* Longest key that starts at s; 0 when there is none. */
size_t chi_trie_match(const chi_trie *t, const char *s, size_t n, int32_t *id);
void chi_trie_free(chi_trie *t);

/* ---- aligned strings (normalize.c) ------------------------------------------------------------------------- */
typedef struct chi_range {
  int32_t b, e;
} chi_range;
typedef struct chi_nstr {
  char *s;
  chi_range *at; /* at[i]: bytes of the input that byte i stands for */
  size_t n, cap, at_cap;
} chi_nstr;
int chi_nstr_put(chi_nstr *t, const char *bytes, size_t n, chi_range at, chi_err *err); /* all bytes alike */
int chi_nstr_copy(chi_nstr *t, const chi_nstr *from, size_t b, size_t e, chi_err *err); /* a slice */
void chi_nstr_free(chi_nstr *t);

/* ---- patterns (pattern.c) ---------------------------------------------------------------------------------- */
typedef struct chi_pattern { /* a literal or a regular expression */
  const char *lit;
  size_t lit_len;
  void *re; /* pcre2_code, NULL for a literal */
} chi_pattern;
typedef struct chi_match {
  size_t b, e;
} chi_match;
typedef struct chi_matches {
  chi_match *m;
  size_t n, cap;
} chi_matches;
/* Takes a regular expression in Oniguruma's dialect (what tokenizer files are written in); what PCRE2 would read
 * otherwise is rewritten or refused. `where` names it in messages. */
int chi_pattern_regex(chi_pattern *p, const char *regex, const char *where, chi_err *err);
int chi_pattern_literal(chi_pattern *p, const char *lit, const char *where, chi_err *err); /* borrowed */
void chi_pattern_free(chi_pattern *p);
/* All matches in s[0..n) (valid UTF-8), left to right, not overlapping. Sets out->n. */
int chi_pattern_find(const chi_pattern *p, const char *s, size_t n, chi_matches *out, chi_err *err);

/* ---- steps ------------------------------------------------------------------------------------------------- */
typedef enum chi_norm_kind {
  CHI_NORM_PREPEND,
  CHI_NORM_REPLACE,
  CHI_NORM_NFC,
  CHI_NORM_NFD,
  CHI_NORM_NFKC,
  CHI_NORM_NFKD,
  CHI_NORM_LOWERCASE,
  CHI_NORM_STRIP,
  CHI_NORM_STRIP_ACCENTS,
  CHI_NORM_BERT_CLEAN, /* these three are parts of BertNormalizer */
  CHI_NORM_BERT_HAN,
  CHI_NORM_BERT_MARKS,
} chi_norm_kind;
typedef struct chi_norm {
  chi_norm_kind kind;
  chi_pattern pattern; /* replace */
  const char *text;    /* prepend, replace */
  bool left, right;    /* strip */
} chi_norm;

typedef enum chi_split {
  CHI_SPLIT_REMOVED,
  CHI_SPLIT_ISOLATED,
  CHI_SPLIT_PREVIOUS,
  CHI_SPLIT_NEXT,
  CHI_SPLIT_CONTIGUOUS
} chi_split;
typedef enum chi_scheme { CHI_PREPEND_ALWAYS, CHI_PREPEND_FIRST, CHI_PREPEND_NEVER } chi_scheme;
typedef enum chi_pre_kind {
  CHI_PRE_BYTELEVEL,
  CHI_PRE_SPLIT,
  CHI_PRE_METASPACE,
  CHI_PRE_DIGITS,
  CHI_PRE_PUNCTUATION,
  CHI_PRE_WHITESPACE,
  CHI_PRE_WHITESPACE_SPLIT,
} chi_pre_kind;
typedef struct chi_pre {
  chi_pre_kind kind;
  chi_pattern pattern; /* split; byte level's own expression; metaspace's replacement */
  chi_split behaviour;
  bool invert;       /* split */
  bool prefix_space; /* byte level */
  bool use_regex;    /* byte level */
  bool split;        /* metaspace */
  chi_scheme scheme; /* metaspace */
} chi_pre;

typedef enum chi_post_kind { CHI_POST_TRIM, CHI_POST_TEMPLATE } chi_post_kind;
typedef struct chi_post {
  chi_post_kind kind;
  bool prefix_space;  /* trim: a lone leading space of the first token was added by us */
  const int32_t *ids; /* template: ids before and after the text */
  size_t n_before, n_ids;
} chi_post;

typedef enum chi_dec_kind {
  CHI_DEC_BYTELEVEL,
  CHI_DEC_METASPACE,
  CHI_DEC_REPLACE,
  CHI_DEC_BYTE_FALLBACK,
  CHI_DEC_FUSE,
  CHI_DEC_STRIP,
  CHI_DEC_WORDPIECE,
} chi_dec_kind;
typedef struct chi_dec {
  chi_dec_kind kind;
  chi_pattern pattern; /* replace */
  const char *text;    /* replace; metaspace's replacement; strip's character; word piece's prefix */
  chi_scheme scheme;   /* metaspace */
  int64_t start, stop; /* strip */
  bool cleanup;        /* word piece */
} chi_dec;

/* ---- the tokenizer ----------------------------------------------------------------------------------------- */
enum {
  CHI_TOK_KNOWN = 1,
  CHI_TOK_ADDED = 2,
  CHI_TOK_SPECIAL = 4,
  CHI_TOK_LSTRIP = 8,
  CHI_TOK_RSTRIP = 16,
  CHI_TOK_SINGLE_WORD = 32,
  CHI_TOK_SHOWN = 64, /* special, yet kept by decoding: its normalized text is not in the list of special ones */
};
typedef struct chi_piece {
  const char *s;
  uint32_t len;
  uint32_t flags;
} chi_piece;

#define CHI_MAX_STEPS 32
struct chi_tokenizer {
  chi_arena arena;
  chi_piece *piece; /* by id; flags 0 = hole */
  int32_t n_ids;
  size_t piece_cap;
  chi_strmap vocab, added;
  chi_u64map merges; /* left id << 32 | right id -> rank << 32 | new id */
  int32_t unk, bos, eos;
  int32_t byte_id[256]; /* "<0x00>".. or -1 */
  bool byte_fallback, fuse_unk, ignore_merges;
  bool wordpiece; /* else BPE */
  int64_t max_word_chars;
  chi_trie word, inside;    /* word piece: entries at the start of a word, and after it (prefix taken off) */
  chi_trie raw, normalized; /* added tokens found before and after normalization */
  chi_norm norm[CHI_MAX_STEPS];
  chi_pre pre[CHI_MAX_STEPS];
  chi_post post[CHI_MAX_STEPS];
  chi_dec dec[CHI_MAX_STEPS];
  size_t n_norm, n_pre, n_post, n_dec;
};

/* tokenizer_json.c: from the objects of a tokenizer.json; `what` names them in messages. */
int chi_tok_new(chi_tokenizer **out, const json_t *root, const char *what, chi_err *err);

/* steps_json.c: fills the four lists from their objects (NULL or JSON null = none). */
int chi_tok_steps(chi_tokenizer *t, const json_t *root, chi_err *err);

/* A small JSON file of the folder, NULL where there is none. Integers are read as reals: "model_max_length": 10^30 is
 * common. Caller: json_decref. */
int chi_tok_config(json_t **out, const char *dir, const char *name, chi_err *err);

/* slow.c: the tokenizer of a folder without tokenizer.json. */
int chi_tok_slow(chi_tokenizer **out, const char *dir, chi_err *err);
/* {"type": "TemplateProcessing"} around the text: ids before and after it, -1 = none. */
json_t *chi_tok_around(int32_t before, int32_t after);

/* spm.c: a SentencePiece BPE vocabulary. Pairs merge by the score of the piece that they make, the leftmost of equals
 * first, as in SentencePiece; characters without a piece become bytes. Special tokens in the text are recognised; the
 * text after one gets the dummy prefix again if `legacy`. */
typedef struct chi_spm {
  size_t n;
  const char *const *piece; /* [n], by id */
  const float *score;       /* [n] */
  const uint8_t *type;      /* [n]: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte */
  int32_t bos, eos;         /* -1 = none */
  bool add_bos, add_eos;    /* around the text */
  bool dummy_prefix;        /* a space before the text */
  bool legacy;
} chi_spm;
/* A tokenizer.model file. Refused: not BPE, no byte fallback, normalization rules, white space removed or a suffix. bos,
 * eos, add_bos, add_eos and legacy come from `how`; how = NULL: the file's ids, BOS added, legacy. */
int chi_tok_spm(chi_tokenizer **out, const uint8_t *bytes, size_t len, const chi_spm *how, const char *what,
                chi_err *err);

/* The 256 characters that byte-level tokenizers write for bytes. */
uint32_t chi_byte_char(uint8_t b);
int chi_char_byte(uint32_t cp); /* -1 if it stands for no byte */

int chi_norm_run(const chi_norm *step, size_t n_steps, chi_nstr *s, chi_nstr *tmp, chi_err *err); /* in place */
int chi_normalize(const chi_tokenizer *t, chi_nstr *s, chi_nstr *tmp, chi_err *err); /* the tokenizer's own steps */
/* Cuts s into pieces (ranges of s, in order, none empty); s itself may change. */
typedef struct chi_pieces {
  chi_range *p;
  size_t n, cap;
} chi_pieces;
int chi_pretokenize(const chi_tokenizer *t, chi_nstr *s, chi_nstr *tmp, chi_pieces *out, chi_err *err);

/* bpe.c: one piece to ids, appended to out. The scratch is reused between pieces. */
typedef struct chi_bpe chi_bpe;
int chi_bpe_new(chi_bpe **out, chi_err *err);
void chi_bpe_free(chi_bpe *b);
int chi_bpe_piece(const chi_tokenizer *t, chi_bpe *b, const char *s, const chi_range *at, size_t n, chi_tokens *out,
                  chi_err *err);
/* wordpiece.c: reads what the model object says beyond its vocabulary; one piece to ids. */
int chi_wordpiece_load(chi_tokenizer *t, const json_t *model, chi_err *err);
int chi_wordpiece_piece(const chi_tokenizer *t, const char *s, const chi_range *at, size_t n, chi_tokens *out,
                        chi_err *err);
/* bert_chars.c: BertNormalizer's characters. */
bool chi_bert_dropped(uint32_t cp);  /* control, format, private, NUL, U+FFFD */
bool chi_bert_han(uint32_t cp);      /* gets a space on both sides */
bool chi_is_nonspacing(uint32_t cp); /* category Mn of Unicode 8.0 */
/* Word-piece decoding of token k: the prefix goes or a space comes; clean-up of the spaces before punctuation. */
void chi_wordpiece_show(const chi_dec *step, chi_str *out, const char *s, size_t n, bool first);
int chi_tokens_push(chi_tokens *t, int32_t id, chi_range at, chi_err *err);

#endif

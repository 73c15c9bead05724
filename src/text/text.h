/* text: tokenizers (Hugging Face tokenizer.json), prompt templates, constraint spans. */
#ifndef CHI_TEXT_H
#define CHI_TEXT_H

#include "file/file.h"

/* ---- tokenizer: immutable after load, safe to share between threads ------------------------------------- */
typedef struct chi_tokenizer chi_tokenizer;
/* Reads dir/tokenizer.json (+ tokenizer_config.json, special_tokens_map.json where present). BPE models: byte-level
 * (GPT-2, OPT, CodeGen/Phi-2, Llama 3, Qwen styles) and SentencePiece-style with byte fallback (Llama 2); WordPiece
 * (BERT). Every normalizer, pre-tokenizer, post-processor and decoder type that we do not implement is refused by name.
 * Without tokenizer.json, in this order:
 *   tokenizer.model          SentencePiece BPE with byte fallback, as Llama uses it
 *   vocab.json + merges.txt  the classes GPT2Tokenizer (OPT too), CodeGenTokenizer, Qwen2Tokenizer. The class comes from
 *                            tokenizer_config.json, else from config.json's model_type. BOS is put before the text
 *                            where "add_bos_token" is true, or absent and the model is an OPT
 *   vocab.txt                BertTokenizer
 * with added_tokens.json. Other classes and kinds are refused with the command that converts the folder. */
int chi_tokenizer_load(chi_tokenizer **out, const char *dir, chi_err *err);
int chi_tokenizer_parse(chi_tokenizer **out, const char *json, size_t len, const char *what, chi_err *err); /* fuzz door */
int chi_tokenizer_parse_spm(chi_tokenizer **out, const uint8_t *bytes, size_t len, const char *what,
                            chi_err *err); /* the same for tokenizer.model */
/* From the vocabulary inside a GGUF file (file/gguf.h, docs/gguf.md). */
struct chi_gguf;
int chi_tokenizer_from_gguf(chi_tokenizer **out, const struct chi_gguf *g, chi_err *err);
void chi_tokenizer_free(chi_tokenizer *t);
/* Makes the text `content` a special token with this id, before the tokenizer is shared: a picture token for checkpoints
 * that have none. Refused where either is taken by another. */
int chi_tokenizer_add(chi_tokenizer *t, const char *content, int32_t id, chi_err *err);

typedef struct chi_tokens {
  int32_t *id;
  int32_t *begin, *end; /* byte range in the input text that the token covers (empty range for added BOS etc.) */
  size_t n, cap;
} chi_tokens;
void chi_tokens_free(chi_tokens *t);
/* Text (UTF-8) to ids, same as HF's tokenizer(text, add_special_tokens=special). Special tokens written in the text are
 * recognised as HF does. Invalid UTF-8 is refused with the byte offset. Appends to *out. */
int chi_encode(const chi_tokenizer *t, const char *text, size_t len, bool special, chi_tokens *out, chi_err *err);
/* ids to text; skip_special drops special tokens. Caller: chi_free(*out). HF's decode without clean-up of spaces; ids that
 * the vocabulary lacks (padding rows of an embedding) give nothing, as there. */
int chi_decode(const chi_tokenizer *t, const int32_t *id, size_t n, bool skip_special, char **out, chi_err *err);
/* The token's own surface for people: decoded alone, "▁"/"Ġ" shown as a space, control bytes as <0x0A>. Into buf. */
void chi_token_text(const chi_tokenizer *t, int32_t id, char *buf, size_t cap);
int32_t chi_token_id(const chi_tokenizer *t, const char *piece); /* exact vocabulary entry or added token; -1 if absent */
int32_t chi_vocab_size(const chi_tokenizer *t);                  /* highest id + 1, added tokens included */
bool chi_token_is_special(const chi_tokenizer *t, int32_t id);
int32_t chi_token_bos(const chi_tokenizer *t); /* -1 if none */
int32_t chi_token_eos(const chi_tokenizer *t);

/* ---- prompt templates ------------------------------------------------------------------------------------ */
/* A template is text with {image} and {question}; {image}...newline parts drop out of text-only prompts as the row says.
 * Built-in rows (templates.def): llava-1.5, vicuna, released-trace, attribution, plain, chatml, demo. */
typedef struct chi_template { const char *name, *with_image, *text_only, *doc; } chi_template;
const chi_template *chi_template_find(const char *name); /* NULL if absent */
const chi_template *chi_templates(size_t *n);
/* Fill a template. image_token is the text that stands for the picture ("<image>"); a question that is empty or contains it
 * is refused. Caller: chi_free(*out). */
int chi_template_fill(char **out, const chi_template *t, bool with_image, const char *image_token, const char *question,
                      chi_err *err);
/* Byte offset of the question in what chi_template_fill writes: spans of the question move by it. */
size_t chi_template_question_at(const chi_template *t, bool with_image, const char *image_token);

/* ---- constraints ----------------------------------------------------------------------------------------- */
typedef struct chi_span { size_t begin, end; } chi_span; /* byte range */
/* "What is the capital of [this country]?" -> text without brackets, and the spans in it (white space at their ends left
 * out). `\[` and `\]` are literal brackets. Nested, unbalanced or empty ones: refused with the position. No bracket: 0 and
 * n_spans = 0; the caller refuses that where a constraint is required. Caller: chi_free(*text), chi_free(*spans). */
int chi_constraint_parse(char **text, chi_span **spans, size_t *n_spans, const char *question, chi_err *err);
/* Find a constraint's words in a question that has no brackets (VQA-Constraints rows): exact, then case-insensitive, then
 * with trailing punctuation dropped, then white space folded, then NFC on both sides; whole words before parts of words,
 * the first place of several. how (may be NULL) = which rule matched, a constant string. */
int chi_constraint_find(chi_span *out, const char **how, const char *question, const char *constraint, chi_err *err);
/* Byte span -> token index range [first, last) whose bytes overlap it; *grown is set when tokens reach past the words
 * (leading space does not count as growth). */
int chi_span_tokens(size_t *first, size_t *last, bool *grown, const chi_tokens *t, const char *text, chi_span span, chi_err *err);

#endif

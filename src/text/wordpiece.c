/* Word pieces (BERT): the longest entry that fits, from the left; entries after the first of a word carry a prefix. A
 * word with a part that no entry covers, or with too many characters, is one unknown token. */
#include "text/tok.h"

#include <string.h>

int chi_wordpiece_load(chi_tokenizer *t, const json_t *model, chi_err *err) {
  int rc = 0;
  const char *unk = "[UNK]", *prefix = "##";
  t->max_word_chars = 100;
  CHI_TRY(chi_json_str_opt(&unk, model, "unk_token", "model", err));
  CHI_TRY(chi_json_str_opt(&prefix, model, "continuing_subword_prefix", "model", err));
  CHI_TRY(chi_json_i64_opt(&t->max_word_chars, model, "max_input_chars_per_word", 0, INT64_MAX, "model", err));
  t->unk = chi_strmap_get(&t->vocab, unk, strlen(unk));
  if (t->unk < 0) return chi_fail(err, CHI_ERR_FORMAT, "model: unk_token \"%.40s\" is not in the vocabulary", unk);
  size_t skip = strlen(prefix);
  for (int32_t id = 0; id < t->n_ids; id++) {
    const chi_piece *p = &t->piece[id];
    if (!p->flags || !p->len) continue;
    CHI_TRY(chi_trie_add(&t->word, p->s, p->len, id, err));
    if (p->len > skip && memcmp(p->s, prefix, skip) == 0)
      CHI_TRY(chi_trie_add(&t->inside, p->s + skip, p->len - skip, id, err));
  }
out:
  return rc;
}

int chi_wordpiece_piece(const chi_tokenizer *t, const char *s, const chi_range *at, size_t n, chi_tokens *out,
                        chi_err *err) {
  int rc = 0;
  int64_t chars = 0;
  size_t first = out->n;
  for (size_t i = 0; i < n; i++) chars += ((uint8_t)s[i] & 0xC0) != 0x80;
  bool known = chars <= t->max_word_chars;
  for (size_t i = 0, len; i < n && known; i += len) {
    int32_t id = -1;
    len = chi_trie_match(i ? &t->inside : &t->word, s + i, n - i, &id);
    known = len > 0;
    if (known) CHI_TRY(chi_tokens_push(out, id, (chi_range){at[i].b, at[i + len - 1].e}, err));
  }
  if (known) return 0;
  out->n = first;
  CHI_TRY(chi_tokens_push(out, t->unk, (chi_range){at[0].b, at[n - 1].e}, err));
out:
  return rc;
}

/* ---- decoding ---------------------------------------------------------------------------------------------- */
/* Replaces every `from` in s, in place: no replacement is longer than what it replaces. */
static void replace_all(chi_str *s, const char *from, const char *to) {
  size_t len = strlen(from), put = strlen(to), w = 0;
  for (size_t i = 0; i < s->len;) {
    if (s->len - i >= len && memcmp(s->s + i, from, len) == 0) {
      memcpy(s->s + w, to, put);
      w += put;
      i += len;
    } else {
      s->s[w++] = s->s[i++];
    }
  }
  s->len = w;
}

void chi_wordpiece_show(const chi_dec *step, chi_str *out, const char *s, size_t n, bool first) {
  static const char *const clean[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                         {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                         {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  size_t skip = strlen(step->text);
  chi_str piece = {0};
  if (!first && n >= skip && memcmp(s, step->text, skip) == 0) {
    chi_str_addn(&piece, s + skip, n - skip);
  } else {
    if (!first) chi_str_add(&piece, " ");
    chi_str_addn(&piece, s, n);
  }
  for (size_t k = 0; step->cleanup && piece.len && k < sizeof clean / sizeof *clean; k++)
    replace_all(&piece, clean[k][0], clean[k][1]);
  if (piece.len) chi_str_addn(out, piece.s, piece.len);
  if (piece.failed) out->failed = true;
  chi_str_free(&piece);
}

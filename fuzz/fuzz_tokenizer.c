/* Any bytes as a tokenizer.json, then (after a NUL) any bytes as a text: parsed or refused; what was parsed encodes
 * with ids and ranges that are in range, and decodes. */
#include <string.h>

#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(const chi_err *e) {
  if (e->code == 0 || e->text[0] == 0 || strchr(e->text, '\n')) __builtin_trap();
}

static void use(const chi_tokenizer *t, const char *text, size_t len) {
  chi_tokens k = {0};
  chi_err e = {0};
  char piece[16], *back = NULL;
  if (chi_encode(t, text, len, true, &k, &e) != 0) {
    check_error(&e);
    if (k.n) __builtin_trap();
  }
  for (size_t i = 0; i < k.n; i++) {
    if (k.id[i] < 0 || k.id[i] >= chi_vocab_size(t)) __builtin_trap();
    if (k.begin[i] < 0 || k.begin[i] > k.end[i] || (size_t)k.end[i] > len) __builtin_trap();
    chi_token_text(t, k.id[i], piece, sizeof piece);
  }
  for (int skip = 0; skip < 2; skip++) {
    e = (chi_err){0};
    if (chi_decode(t, k.id, k.n, skip, &back, &e) != 0) check_error(&e);
    chi_free(back);
  }
  chi_tokens_free(&k);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char usual[] = "Hello <s> w\xC3\xB6rld 12";
  const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
  size_t json = nul ? (size_t)(nul - data) : size;
  chi_tokenizer *t = NULL;
  chi_err e = {0};
  if (chi_tokenizer_parse(&t, (const char *)data, json, "fuzz", &e) != 0) {
    if (t) __builtin_trap();
    check_error(&e);
    return 0;
  }
  use(t, usual, strlen(usual));
  if (nul) use(t, (const char *)nul + 1, size - json - 1);
  chi_tokenizer_free(t);
  return 0;
}

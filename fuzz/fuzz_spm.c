/* Any bytes as a tokenizer.model: read or refused in one line; what was read encodes with ids and ranges in range, and
 * decodes. */
#include <string.h>

#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char text[] = "Hello <s> w\xC3\xB6rld 12\n  \xF0\x9F\x98\x80";
  chi_tokenizer *t = NULL;
  chi_tokens k = {0};
  chi_err e = {0};
  char *back = NULL;
  if (chi_tokenizer_parse_spm(&t, data, size, "fuzz", &e) != 0) {
    if (t || e.code == 0 || e.text[0] == 0 || strchr(e.text, '\n')) __builtin_trap();
    return 0;
  }
  if (chi_encode(t, text, strlen(text), true, &k, &e) != 0) __builtin_trap();
  for (size_t i = 0; i < k.n; i++) {
    if (k.id[i] < 0 || k.id[i] >= chi_vocab_size(t)) __builtin_trap();
    if (k.begin[i] < 0 || k.begin[i] > k.end[i] || (size_t)k.end[i] > strlen(text)) __builtin_trap();
  }
  if (chi_decode(t, k.id, k.n, true, &back, &e) != 0) __builtin_trap();
  chi_free(back);
  chi_tokens_free(&k);
  chi_tokenizer_free(t);
  return 0;
}

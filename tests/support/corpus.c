#include "support/corpus.h"

#include <string.h>

#include "support/support.h"

typedef struct line {
  char *s;
  size_t n;
} line;
static char *corpus_text;
static line *lines;
static size_t n_lines;

static uint32_t crc_table[256];

uint32_t corpus_crc32(const void *p, size_t n) {
  const uint8_t *b = p;
  uint32_t c = 0xFFFFFFFFu;
  for (size_t i = 0; i < n; i++) c = crc_table[(c ^ b[i]) & 0xFF] ^ c >> 8;
  return ~c;
}

int corpus_open(void **state) {
  (void)state;
  size_t len = 0, cap = 0;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
    crc_table[i] = c;
  }
  assert_int_equal(chi_read_file(&corpus_text, &len, CORPUS_DIR "corpus.txt", 1 << 20, NULL), 0);
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

int corpus_close(void **state) {
  (void)state;
  chi_free(lines);
  chi_free(corpus_text);
  return 0;
}

static uint32_t u32_at(const char *p) {
  const uint8_t *b = (const uint8_t *)p;
  return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* CRC-32 of ids, byte ranges (where they are compared) and both ways to decode; bit 0 says whether ranges are in. */
static uint32_t result_crc(const chi_tokenizer *t, const chi_tokens *k, uint32_t with_ranges) {
  chi_str s = {0};
  chi_str_addn(&s, (const char *)k->id, k->n * sizeof *k->id);
  for (size_t i = 0; i < k->n && with_ranges; i++) {
    int32_t both[2] = {k->begin[i], k->end[i]};
    chi_str_addn(&s, (const char *)both, sizeof both);
  }
  for (int skip = 0; skip < 2; skip++) {
    char *text = NULL;
    assert_int_equal(chi_decode(t, k->id, k->n, skip, &text, NULL), 0);
    chi_str_add(&s, text);
    if (!skip) chi_str_addn(&s, "", 1);
    chi_free(text);
  }
  uint32_t c = corpus_crc32(s.s, s.len);
  chi_str_free(&s);
  return (c & ~1u) | with_ranges;
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

/* One line against its checksum; 1 if it differs. */
int corpus_check_line(const chi_tokenizer *t, size_t at, const char *want, const char *name, int shown) {
  line l = lines[at];
  chi_tokens k = {0};
  chi_err err = {0};
  if (chi_encode(t, l.s, l.n, true, &k, &err) != 0) fail_msg("%s: %s", name, err.text);
  uint32_t w = u32_at(want), got = result_crc(t, &k, w & 1);
  if (got != w && shown < 5) show(name, t, l, &k);
  chi_tokens_free(&k);
  return got != w;
}

void corpus_check(const chi_tokenizer *t, const char *bin, const char *name) {
  char *want = NULL;
  size_t len = 0;
  int bad = 0;
  assert_int_equal(chi_read_file(&want, &len, bin, 1 << 20, NULL), 0);
  assert_int_equal(len, n_lines * 4);
  for (size_t i = 0; i < n_lines; i++) bad += corpus_check_line(t, i, want + 4 * i, name, bad);
  chi_free(want);
  if (bad) fail_msg("%s: %d of %zu lines differ", name, bad, n_lines);
}

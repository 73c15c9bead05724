#include "base/base.h"

#include <stdio.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at s (which ends with NUL), or 0. */
static size_t utf8_length(const unsigned char *s) {
  size_t n;
  if (s[0] < 0x80) return 1;
  if (s[0] >= 0xC2 && s[0] <= 0xDF) {
    n = 2;
  } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
    n = 3;
  } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
    n = 4;
  } else {
    return 0;
  }
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xC0) != 0x80) return 0;
  }
  if (s[0] == 0xE0 && s[1] < 0xA0) return 0; /* overlong */
  if (s[0] == 0xED && s[1] > 0x9F) return 0; /* surrogate */
  if (s[0] == 0xF0 && s[1] < 0x90) return 0; /* overlong */
  if (s[0] == 0xF4 && s[1] > 0x8F) return 0; /* above U+10FFFF */
  return n;
}

/* True for sequences that would let a file's content steer a terminal or reorder what the reader sees. */
static bool is_control(const unsigned char *s, size_t n) {
  if (n == 1) return s[0] < 0x20 || s[0] == 0x7F;
  if (n == 2) return s[0] == 0xC2 && s[1] < 0xA0; /* C1 */
  if (n == 3 && s[0] == 0xE2) {
    if (s[1] == 0x80) return s[2] >= 0xA8 && s[2] <= 0xAE; /* line separators, bidi embeddings and overrides */
    if (s[1] == 0x81) return s[2] >= 0xA6 && s[2] <= 0xA9; /* bidi isolates */
  }
  return false;
}

/* Control characters and malformed UTF-8 come from untrusted files: one '?' for each. In place, never grows. */
static void sanitise(char *text) {
  unsigned char *in = (unsigned char *)text, *out = in;
  while (*in) {
    size_t n = utf8_length(in);
    if (n == 0 || is_control(in, n)) {
      *out++ = '?';
      in += n ? n : 1;
    } else {
      while (n--) *out++ = *in++;
    }
  }
  *out = 0;
}

/* Mark a text that was cut to fit, on a character boundary. */
static void mark_cut(char *text, size_t cap) {
  size_t n = cap - 4;
  while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
  memcpy(text + n, "...", 4);
}

int chi_fail(chi_err *err, int code, const char *fmt, ...) {
  if (!err || err->code != 0) return code;
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
  va_end(ap);
  err->code = code;
  if (n < 0) snprintf(err->text, sizeof err->text, "error %d (its message could not be formatted)", code);
  if (n >= (int)sizeof err->text) mark_cut(err->text, sizeof err->text);
  sanitise(err->text);
  return code;
}

void chi_err_prefix(chi_err *err, const char *prefix) {
  if (!err || err->code == 0) return;
  char whole[CHI_ERR_TEXT + 2];
  /* The reason matters more than the end of a very long path: keep at least half of the room for it. */
  int n = snprintf(whole, sizeof whole, "%.*s: %s", CHI_ERR_TEXT / 2, prefix, err->text);
  if (n < 0) return;
  if ((size_t)n >= sizeof err->text) mark_cut(whole, sizeof err->text);
  memcpy(err->text, whole, sizeof err->text - 1);
  err->text[sizeof err->text - 1] = 0;
  sanitise(err->text);
}

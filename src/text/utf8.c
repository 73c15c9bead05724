#include "text/tok.h"

#include <string.h>
#include <utf8proc.h>

size_t chi_utf8_get(const char *s, uint32_t *cp) {
  const uint8_t *u = (const uint8_t *)s;
  if (u[0] < 0x80) return *cp = u[0], 1;
  if (u[0] < 0xE0) return *cp = (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu), 2;
  if (u[0] < 0xF0) return *cp = (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu), 3;
  *cp = (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
  return 4;
}

size_t chi_utf8_put(char out[4], uint32_t cp) {
  if (cp < 0x80) return out[0] = (char)cp, 1;
  if (cp < 0x800) {
    out[0] = (char)(0xC0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 0x3F));
    return 2;
  }
  if (cp < 0x10000) {
    out[0] = (char)(0xE0 | cp >> 12);
    out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[2] = (char)(0x80 | (cp & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | cp >> 18);
  out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
  out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
  out[3] = (char)(0x80 | (cp & 0x3F));
  return 4;
}

/* Bytes of the character at s, or 0 when it is broken; then *bad = bytes of the maximal broken part (at least 1). */
static size_t char_length(const uint8_t *s, size_t n, size_t *bad) {
  uint8_t lo = 0x80, hi = 0xBF; /* allowed range of the second byte: no overlong forms, surrogates or > U+10FFFF */
  size_t len;
  *bad = 1;
  if (s[0] < 0x80) return 1;
  if (s[0] < 0xC2 || s[0] > 0xF4) return 0;
  if (s[0] < 0xE0) {
    len = 2;
  } else if (s[0] < 0xF0) {
    len = 3;
    if (s[0] == 0xE0) lo = 0xA0;
    if (s[0] == 0xED) hi = 0x9F;
  } else {
    len = 4;
    if (s[0] == 0xF0) lo = 0x90;
    if (s[0] == 0xF4) hi = 0x8F;
  }
  for (size_t i = 1; i < len; i++) {
    if (i >= n || s[i] < lo || s[i] > hi) {
      *bad = i;
      return 0;
    }
    lo = 0x80;
    hi = 0xBF;
  }
  return len;
}

size_t chi_utf8_valid(const char *s, size_t n) {
  size_t i = 0, bad;
  while (i < n) {
    size_t len = char_length((const uint8_t *)s + i, n - i, &bad);
    if (!len) break;
    i += len;
  }
  return i;
}

void chi_utf8_lossy(chi_str *out, const char *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    size_t ok = chi_utf8_valid(s + i, n - i), bad = 0;
    chi_str_addn(out, s + i, ok);
    i += ok;
    if (i == n) break;
    char_length((const uint8_t *)s + i, n - i, &bad);
    chi_str_add(out, "\xEF\xBF\xBD");
    i += bad;
  }
}

bool chi_is_space(uint32_t cp) {
  return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
         (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool chi_is_mark(uint32_t cp) {
  utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
  return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

bool chi_is_number(uint32_t cp) {
  if (cp < 0x80) return cp >= '0' && cp <= '9';
  utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
  return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool chi_is_word(uint32_t cp) {
  if (cp < 0x80) return (cp >= '0' && cp <= '9') || (cp >= 'A' && cp <= 'Z') || (cp >= 'a' && cp <= 'z') || cp == '_';
  /* joiners, and letters in circles and squares, which are symbols by category */
  if (cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9)) return true;
  if (cp >= 0x1F130 && cp <= 0x1F189 && (cp < 0x1F14A || cp > 0x1F14F) && (cp < 0x1F16A || cp > 0x1F16F)) return true;
  utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
  return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_ME) || c == UTF8PROC_CATEGORY_ND ||
         c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_PC;
}

uint32_t chi_to_lower(uint32_t cp) {
  if (cp < 0x80) return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
  return (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
}

/* Strings for people: cleaning, widths, escaping. */
#include "report/internal.h"

#include <string.h>
#include <utf8proc.h>

/* Characters that would turn around the text behind them. */
static bool turns_text(utf8proc_int32_t c) { return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069); }

void chii_clean(chi_str *out, const char *s, bool keep_breaks) {
  const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
  utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(s);
  while (left > 0) {
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate(p, left, &c);
    if (n <= 0) {
      chi_str_add(out, "\xef\xbf\xbd");
      n = 1;
    } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
      if (keep_breaks && (c == '\n' || c == '\t'))
        chi_str_addn(out, (const char *)p, 1);
      else
        chi_str_add(out, " ");
    } else if (!turns_text(c) && c != 0xfffe && c != 0xffff) {
      chi_str_addn(out, (const char *)p, (size_t)n);
    }
    p += n;
    left -= n;
  }
}

void chii_label(chi_str *out, const char *token) {
  const char *s = strcmp(token, "<0x0A>") == 0 ? "\n" : token;
  size_t n = strlen(s), a = 0, start = out->len;
  while (a < n && s[a] == ' ') a++;
  while (n > a && s[n - 1] == ' ') n--;
  chi_str piece = {0};
  for (size_t i = a; i < n; i++) {
    if (s[i] == '\n')
      chi_str_add(&piece, "\xe2\x86\xb5");
    else if (s[i] == '\t')
      chi_str_add(&piece, "\xe2\x87\xa5");
    else
      chi_str_addn(&piece, s + i, 1);
  }
  if (piece.len) chii_clean(out, piece.s, false);
  if (out->len == start) chi_str_add(out, "\xe2\x90\xa3");
  chi_str_free(&piece);
}

void chii_xml(chi_str *out, const char *s) {
  chi_str clean = {0};
  chii_clean(&clean, s, true);
  for (size_t i = 0; i < clean.len; i++) {
    switch (clean.s[i]) {
      case '<':
        chi_str_add(out, "&lt;");
        break;
      case '>':
        chi_str_add(out, "&gt;");
        break;
      case '&':
        chi_str_add(out, "&amp;");
        break;
      case '"':
        chi_str_add(out, "&quot;");
        break;
      default:
        chi_str_addn(out, clean.s + i, 1);
    }
  }
  if (clean.failed) out->failed = true;
  chi_str_free(&clean);
}

int chi_text_width(const char *s) {
  const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
  utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(s);
  int width = 0;
  while (left > 0) {
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate(p, left, &c);
    if (n <= 0) {
      n = 1;
      c = 0xfffd;
    }
    width += utf8proc_charwidth(c);
    p += n;
    left -= n;
  }
  return width;
}

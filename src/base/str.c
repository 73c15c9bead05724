#include "base/base.h"

#include <stdio.h>
#include <string.h>

/* Room for n more bytes and the final NUL. */
static bool reserve(chi_str *s, size_t n) {
  if (s->failed) return false;
  if (n > PTRDIFF_MAX - s->len - 1) {
    s->failed = true;
    return false;
  }
  void *p = s->s;
  if (chi_grow(&p, &s->cap, s->len + n + 1, 1, NULL) != 0) {
    s->failed = true;
    return false;
  }
  s->s = p;
  return true;
}

void chi_str_addn(chi_str *s, const char *bytes, size_t n) {
  if (!reserve(s, n)) return;
  if (n) memcpy(s->s + s->len, bytes, n);
  s->len += n;
  s->s[s->len] = 0;
}

void chi_str_add(chi_str *s, const char *text) { chi_str_addn(s, text, strlen(text)); }

void chi_str_addf(chi_str *s, const char *fmt, ...) {
  va_list ap, again;
  va_start(ap, fmt);
  va_copy(again, ap);
  int n = vsnprintf(NULL, 0, fmt, ap);
  va_end(ap);
  if (n < 0) {
    s->failed = true;
  } else if (reserve(s, (size_t)n)) {
    vsnprintf(s->s + s->len, (size_t)n + 1, fmt, again);
    s->len += (size_t)n;
  }
  va_end(again);
}

void chi_str_free(chi_str *s) {
  chi_free(s->s);
  memset(s, 0, sizeof *s);
}

bool chi_streq(const char *a, const char *b) { return a == b || (a && b && strcmp(a, b) == 0); }

bool chi_glob(const char *pattern, const char *text) {
  const char *star = NULL, *resume = NULL;
  while (*text) {
    if (*pattern == '*') {
      star = ++pattern;
      resume = text;
    } else if (*pattern == *text) {
      pattern++;
      text++;
    } else if (star) { /* let the last star take one more byte */
      pattern = star;
      text = ++resume;
    } else {
      return false;
    }
  }
  while (*pattern == '*') pattern++;
  return *pattern == 0;
}

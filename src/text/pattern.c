/* Patterns of tokenizer files: literals, and regular expressions in Oniguruma's dialect run by PCRE2.
 *
 * The two dialects agree on what tokenizers use, with a few silent differences: what \s, \w, \h and \v mean, the
 * Unicode version, nested classes, and what `}+` means. Those are rewritten or refused, never passed on.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/tok.h"

#include <string.h>

#define REGEX_MAX 20000 /* bytes of a pattern before rewriting */

typedef struct new_range {
  char cat[3];
  uint32_t lo, hi;
} new_range;
static const new_range new_ranges[] = {
#define X(cat, lo, hi) {#cat, lo, hi},
#include "text/unicode_new.def"
#undef X
};

typedef struct rewrite {
  const char *s, *where;
  size_t n, i; /* i: next byte */
  bool in_class;
  chi_str out;
  chi_err *err;
} rewrite;

static int refuse(const rewrite *r, const char *what) {
  return chi_fail(r->err, CHI_ERR_UNSUPPORTED, "%s: the regular expression uses %s at byte %zu, which is not supported",
                  r->where, what, r->i);
}

/* A class item for general category `name` ("L" or "Lu"), with the ranges that are newer than PCRE2. */
static void put_category(rewrite *r, const char *name) {
  chi_str_addf(&r->out, "\\p{%s}", name);
  for (size_t k = 0; k < sizeof new_ranges / sizeof *new_ranges; k++) {
    const new_range *w = &new_ranges[k];
    if (w->cat[0] == name[0] && (name[1] == 0 || w->cat[1] == name[1]))
      chi_str_addf(&r->out, "\\x{%X}-\\x{%X}", (unsigned)w->lo, (unsigned)w->hi);
  }
}

static void put_word_items(rewrite *r) {
  chi_str_add(&r->out, "\\p{Alphabetic}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}");
  put_category(r, "L");
  put_category(r, "M");
  put_category(r, "Nd");
}

/* \p{...} or \P{...}; r->i is just after the letter. */
static int property(rewrite *r, bool negated) {
  char name[64];
  const char *open = r->s + r->i;
  const char *close = r->i < r->n && *open == '{' ? memchr(open, '}', r->n - r->i) : NULL;
  if (!close || close == open + 1) return refuse(r, "\\p without {name}");
  size_t len = (size_t)(close - open) - 1;
  if (len >= sizeof name) return refuse(r, "a long property name");
  memcpy(name, open + 1, len);
  name[len] = 0;
  if (strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") != len) return refuse(r, "\\p{^...}");
  r->i += len + 2;
  bool category = len <= 2 && strchr("LMNPSZC", name[0]);
  if (!category || (negated && r->in_class)) {
    chi_str_addf(&r->out, "\\%c{%s}", negated ? 'P' : 'p', name);
    return 0;
  }
  if (!r->in_class) chi_str_add(&r->out, negated ? "[^" : "[");
  put_category(r, name);
  if (!r->in_class) chi_str_add(&r->out, "]");
  return 0;
}

static int hex_escape(rewrite *r) { /* \uHHHH; r->i is after the u */
  if (r->n - r->i < 4) return refuse(r, "a short \\u");
  for (size_t k = 0; k < 4; k++)
    if (!strchr("0123456789abcdefABCDEF", r->s[r->i + k]) || !r->s[r->i + k]) return refuse(r, "a short \\u");
  chi_str_addf(&r->out, "\\x{%.4s}", r->s + r->i);
  r->i += 4;
  return 0;
}

static int escape(rewrite *r) { /* r->i is at the backslash */
  if (r->i + 1 >= r->n) return refuse(r, "a final backslash");
  char c = r->s[r->i + 1];
  char what[] = {'\\', c, 0};
  bool cls = r->in_class;
  if (c == 0 || strchr("bBGKRXQEkgyYNOZ", c) || (c >= '0' && c <= '9')) return refuse(r, c ? what : "a NUL");
  if (cls && strchr("WDHAz", c)) return refuse(r, what);
  r->i += 2;
  switch (c) {
    case 's':
      chi_str_add(&r->out, "\\p{White_Space}");
      return 0;
    case 'S':
      chi_str_add(&r->out, "\\P{White_Space}");
      return 0;
    case 'v':
      chi_str_add(&r->out, "\\x0b");
      return 0;
    case 'u':
      return hex_escape(r);
    case 'x': {
      const char *close = r->i < r->n && r->s[r->i] == '{' ? memchr(r->s + r->i, '}', r->n - r->i) : NULL;
      chi_str_add(&r->out, "\\x");
      if (close) {
        chi_str_addn(&r->out, r->s + r->i, (size_t)(close - (r->s + r->i)) + 1);
        r->i = (size_t)(close - r->s) + 1;
      }
      return 0;
    }
    case 'p':
    case 'P':
      return property(r, c == 'P');
    case 'w':
    case 'W':
    case 'd':
    case 'D':
    case 'h':
    case 'H':
      if (!cls) chi_str_add(&r->out, strchr("WDH", c) ? "[^" : "[");
      if (c == 'w' || c == 'W') put_word_items(r);
      if (c == 'd' || c == 'D') put_category(r, "Nd");
      if (c == 'h' || c == 'H') chi_str_add(&r->out, "0-9a-fA-F");
      if (!cls) chi_str_add(&r->out, "]");
      return 0;
    default:
      break;
  }
  if (((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) && !strchr("rntfaeAz", c)) {
    r->i -= 2;
    return refuse(r, what);
  }
  chi_str_addn(&r->out, what, 2);
  return 0;
}

static bool at(const rewrite *r, const char *text) {
  size_t n = strlen(text);
  return r->n - r->i >= n && memcmp(r->s + r->i, text, n) == 0;
}

static int group(rewrite *r) { /* r->i is at "(?" or "(*" */
  static const char *const allowed[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
  for (size_t k = 0; k < sizeof allowed / sizeof *allowed; k++) {
    if (!at(r, allowed[k])) continue;
    chi_str_add(&r->out, allowed[k]);
    r->i += strlen(allowed[k]);
    return 0;
  }
  if (r->i == 0 && at(r, "(?i)")) {
    chi_str_add(&r->out, "(?i)");
    r->i += 4;
    return 0;
  }
  return refuse(r, "a kind of group");
}

static int class_byte(rewrite *r) {
  char c = r->s[r->i];
  if (c == '[') return refuse(r, "a class inside a class");
  if (at(r, "&&")) return refuse(r, "a class intersection");
  if (c == ']') r->in_class = false;
  chi_str_addn(&r->out, &c, 1);
  r->i++;
  return 0;
}

static int plain_byte(rewrite *r) {
  char c = r->s[r->i];
  if (at(r, "(?") || at(r, "(*")) return group(r);
  if (at(r, "{,") || at(r, "}+")) return refuse(r, "a kind of repeat");
  chi_str_addn(&r->out, &c, 1);
  r->i++;
  if (c != '[') return 0;
  r->in_class = true;
  if (r->i < r->n && r->s[r->i] == '^') chi_str_addn(&r->out, &r->s[r->i++], 1);
  if (r->i < r->n && r->s[r->i] == ']') return refuse(r, "an empty class");
  return 0;
}

int chi_pattern_regex(chi_pattern *p, const char *regex, const char *where, chi_err *err) {
  int rc = 0, code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context *cc = NULL;
  rewrite r = {.s = regex, .where = where, .n = strlen(regex), .err = err};
  memset(p, 0, sizeof *p);
  if (r.n > REGEX_MAX) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: a regular expression of %zu bytes is too long", where, r.n);
    goto out;
  }
  chi_str_add(&r.out, "");
  while (r.i < r.n) CHI_TRY(r.s[r.i] == '\\' ? escape(&r) : r.in_class ? class_byte(&r) : plain_byte(&r));
  cc = pcre2_compile_context_create(NULL);
  if (r.out.failed || !cc) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "%s: out of memory for a regular expression", where);
    goto out;
  }
  pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(cc, 50);
  p->re = pcre2_compile((PCRE2_SPTR)r.out.s, r.out.len,
                        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, cc);
  if (!p->re) {
    char why[128] = "";
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: the regular expression \"%.200s\" is refused: %s", where, regex, why);
  }
out:
  if (cc) pcre2_compile_context_free(cc);
  chi_str_free(&r.out);
  return rc;
}

int chi_pattern_literal(chi_pattern *p, const char *lit, const char *where, chi_err *err) {
  *p = (chi_pattern){.lit = lit, .lit_len = strlen(lit)};
  return p->lit_len ? 0 : chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: an empty pattern is not supported", where);
}

void chi_pattern_free(chi_pattern *p) {
  if (p->re) pcre2_code_free(p->re);
  memset(p, 0, sizeof *p);
}

static int push(chi_matches *out, size_t b, size_t e, chi_err *err) {
  void *m = out->m;
  int rc = chi_grow(&m, &out->cap, out->n + 1, sizeof *out->m, err);
  out->m = m;
  if (rc == 0) out->m[out->n++] = (chi_match){b, e};
  return rc;
}

static int find_literal(const chi_pattern *p, const char *s, size_t n, chi_matches *out, chi_err *err) {
  size_t i = 0;
  while (n - i >= p->lit_len) {
    const char *hit = memchr(s + i, p->lit[0], n - i - p->lit_len + 1);
    if (!hit) break;
    i = (size_t)(hit - s);
    if (memcmp(hit, p->lit, p->lit_len) != 0) {
      i++;
      continue;
    }
    int rc = push(out, i, i + p->lit_len, err);
    if (rc) return rc;
    i += p->lit_len;
  }
  return 0;
}

static int find_regex(const chi_pattern *p, const char *s, size_t n, chi_matches *out, chi_err *err) {
  int rc = 0;
  pcre2_match_data *md = pcre2_match_data_create(1, NULL);
  pcre2_match_context *mc = pcre2_match_context_create(NULL);
  if (!md || !mc) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory while splitting text");
    goto out;
  }
  /* Long runs of white space make common patterns step back once per byte; anything beyond a few steps per byte is a
   * pattern built to explode. */
  pcre2_set_match_limit(mc, 1000000 + 8 * (uint32_t)n);
  pcre2_set_heap_limit(mc, 256 << 10);
  size_t from = 0, last_end = SIZE_MAX;
  while (from <= n) {
    int got = pcre2_match(p->re, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, md, mc);
    if (got == PCRE2_ERROR_NOMATCH) break;
    if (got < 0) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "a regular expression of the tokenizer gave up on this text (PCRE2 error %d)",
                    got);
      goto out;
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(md);
    uint32_t cp;
    if (v[0] == v[1] && v[1] == last_end) { /* an empty match right after the last one is no new match */
      if (from >= n) break;
      from += chi_utf8_get(s + from, &cp);
      continue;
    }
    CHI_TRY(push(out, v[0], v[1], err));
    from = last_end = v[1];
  }
out:
  if (md) pcre2_match_data_free(md);
  if (mc) pcre2_match_context_free(mc);
  return rc;
}

int chi_pattern_find(const chi_pattern *p, const char *s, size_t n, chi_matches *out, chi_err *err) {
  out->n = 0;
  if (n == 0) return 0;
  return p->re ? find_regex(p, s, n, out, err) : find_literal(p, s, n, out, err);
}

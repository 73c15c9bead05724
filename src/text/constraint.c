/* Constraints: the words of a question that name the fact's subject, as byte spans, and spans as token ranges. */
#include "text/tok.h"

#include <string.h>
#include <utf8proc.h>

/* ---- [brackets] -------------------------------------------------------------------------------------------- */
static int add_span(chi_span **spans, size_t *n, size_t *cap, chi_span s, chi_err *err) {
  void *p = *spans;
  int rc = chi_grow(&p, cap, *n + 1, sizeof **spans, err);
  *spans = p;
  if (rc == 0) (*spans)[(*n)++] = s;
  return rc;
}

/* White space at the ends of a bracket stays in the text but is no part of the constraint. */
static chi_span trimmed(const char *s, size_t b, size_t e) {
  uint32_t cp;
  size_t end = b;
  for (size_t i = b, len; i < e; i += len) {
    len = chi_utf8_get(s + i, &cp);
    if (chi_is_space(cp)) {
      if (end == b) b = end = i + len;
    } else {
      end = i + len;
    }
  }
  return (chi_span){b, end};
}

int chi_constraint_parse(char **text, chi_span **spans, size_t *n_spans, const char *question, chi_err *err) {
  int rc = 0;
  size_t cap = 0, n = strlen(question), open = 0, open_at = 0;
  bool inside = false;
  chi_str s = {0};
  *text = NULL;
  *spans = NULL;
  *n_spans = 0;
  size_t valid = chi_utf8_valid(question, n);
  if (valid != n) return chi_fail(err, CHI_ERR_ARG, "the question is not valid UTF-8 at byte %zu", valid);
  chi_str_add(&s, "");
  for (size_t i = 0; i < n; i++) {
    char c = question[i];
    if (c == '\\' && (question[i + 1] == '[' || question[i + 1] == ']')) {
      chi_str_addn(&s, &question[++i], 1);
    } else if (c == '[') {
      if (inside) {
        rc = chi_fail(err, CHI_ERR_ARG,
                      "the bracket at byte %zu is inside the one at byte %zu; constraints do not nest", i, open_at);
        goto out;
      }
      inside = true;
      open = s.len;
      open_at = i;
    } else if (c == ']') {
      chi_span span = inside ? trimmed(s.s, open, s.len) : (chi_span){0, 1};
      if (!inside || span.begin == span.end) {
        rc = inside ? chi_fail(err, CHI_ERR_ARG, "the bracket at byte %zu is empty; put the constraint's words in it",
                               open_at)
                    : chi_fail(err, CHI_ERR_ARG, "']' at byte %zu closes no bracket (write \\] for a literal one)", i);
        goto out;
      }
      inside = false;
      CHI_TRY(add_span(spans, n_spans, &cap, span, err));
    } else {
      chi_str_addn(&s, &c, 1);
    }
  }
  if (inside) {
    rc = chi_fail(err, CHI_ERR_ARG, "the bracket at byte %zu is not closed (write \\[ for a literal one)", open_at);
    goto out;
  }
  if (s.failed) rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory for the question");
out:
  if (rc) {
    chi_str_free(&s);
    chi_free(*spans);
    *spans = NULL;
    *n_spans = 0;
  }
  *text = s.s;
  return rc;
}

/* ---- constraints given apart from the question ------------------------------------------------------------- */
/* A folded string: code points, each with the bytes of the source that it came from. */
typedef struct folded {
  int32_t *cp;
  chi_span *at;
  size_t n, cap, at_cap;
} folded;

static void folded_free(folded *f) {
  chi_free(f->cp);
  chi_free(f->at);
}

static int fold_push(folded *f, uint32_t cp, chi_span at, chi_err *err) {
  void *p = f->cp, *q = f->at;
  int rc = chi_grow(&p, &f->cap, f->n + 1, sizeof *f->cp, err);
  f->cp = p;
  if (rc == 0) rc = chi_grow(&q, &f->at_cap, f->n + 1, sizeof *f->at, err);
  f->at = q;
  if (rc) return rc;
  f->cp[f->n] = (int32_t)cp;
  f->at[f->n++] = at;
  return 0;
}

enum { FOLD_CASE = 1, FOLD_SPACE = 2, FOLD_NFC = 4 };

static int fold(folded *f, const char *s, size_t n, unsigned how, chi_err *err) {
  int rc = 0;
  chi_nstr text = {0}, tmp = {0};
  const chi_norm nfc = {.kind = CHI_NORM_NFC};
  f->n = 0;
  for (size_t i = 0, len; i < n; i += len) {
    uint32_t cp;
    len = chi_utf8_get(s + i, &cp);
    CHI_TRY(chi_nstr_put(&text, s + i, len, (chi_range){(int32_t)i, (int32_t)(i + len)}, err));
  }
  if (how & FOLD_NFC) CHI_TRY(chi_norm_run(&nfc, 1, &text, &tmp, err));
  for (size_t i = 0, len; i < text.n; i += len) {
    uint32_t cp;
    len = chi_utf8_get(text.s + i, &cp);
    chi_span at = {(size_t)text.at[i].b, (size_t)text.at[i].e};
    if (how & FOLD_CASE) cp = chi_to_lower(cp);
    if ((how & FOLD_SPACE) && chi_is_space(cp)) {
      cp = ' ';
      if (f->n && f->cp[f->n - 1] == ' ') {
        f->at[f->n - 1].end = at.end;
        continue;
      }
    }
    CHI_TRY(fold_push(f, cp, at, err));
  }
out:
  chi_nstr_free(&text);
  chi_nstr_free(&tmp);
  return rc;
}

/* Index of the first match of c in q at or after `from`, or q->n. */
static size_t find_from(const folded *q, const folded *c, size_t from) {
  for (size_t i = from; i + c->n <= q->n; i++)
    if (memcmp(q->cp + i, c->cp, c->n * sizeof *c->cp) == 0) return i;
  return q->n;
}

static bool whole_words(const folded *q, size_t b, size_t e) {
  bool left = b > 0 && chi_is_word((uint32_t)q->cp[b - 1]) && chi_is_word((uint32_t)q->cp[b]);
  bool right = e < q->n && chi_is_word((uint32_t)q->cp[e - 1]) && chi_is_word((uint32_t)q->cp[e]);
  return !left && !right;
}

/* Drops white space (and, when asked, punctuation) from the ends of a folded constraint. */
static void trim_folded(folded *c, bool punctuation) {
  size_t b = 0;
  while (c->n && (chi_is_space((uint32_t)c->cp[c->n - 1]) || (punctuation && chi_is_punct((uint32_t)c->cp[c->n - 1]))))
    c->n--;
  while (b < c->n && chi_is_space((uint32_t)c->cp[b])) b++;
  c->n -= b;
  if (b) memmove(c->cp, c->cp + b, c->n * sizeof *c->cp);
}

static int search(chi_span *out, bool *found, const char *question, const char *constraint, unsigned how,
                  bool punctuation, bool whole, chi_err *err) {
  int rc = 0;
  folded q = {0}, c = {0};
  *found = false;
  CHI_TRY(fold(&q, question, strlen(question), how, err));
  CHI_TRY(fold(&c, constraint, strlen(constraint), how, err));
  trim_folded(&c, punctuation);
  if (c.n == 0) goto out;
  for (size_t i = find_from(&q, &c, 0); i < q.n; i = find_from(&q, &c, i + 1)) {
    if (whole && !whole_words(&q, i, i + c.n)) continue;
    *out = (chi_span){q.at[i].begin, q.at[i + c.n - 1].end};
    *found = true;
    break;
  }
out:
  folded_free(&q);
  folded_free(&c);
  return rc;
}

int chi_constraint_find(chi_span *out, const char **how, const char *question, const char *constraint, chi_err *err) {
  static const struct {
    unsigned fold;
    bool punctuation;
    const char *whole, *part;
  } rules[] = {
      {0, false, "exact", "exact, inside a word"},
      {FOLD_CASE, false, "ignoring case", "ignoring case, inside a word"},
      {FOLD_CASE, true, "without its final punctuation", "without its final punctuation, inside a word"},
      {FOLD_CASE | FOLD_SPACE, true, "with white space folded", "with white space folded, inside a word"},
      {FOLD_CASE | FOLD_SPACE | FOLD_NFC, true, "with accents composed", "with accents composed, inside a word"}};
  const char *both[] = {question, constraint};
  for (int k = 0; k < 2; k++) {
    size_t n = strlen(both[k]), valid = chi_utf8_valid(both[k], n);
    if (n > 1u << 16) return chi_fail(err, CHI_ERR_ARG, "the %s is longer than 64 KB", k ? "constraint" : "question");
    if (valid != n)
      return chi_fail(err, CHI_ERR_ARG, "the %s is not valid UTF-8 at byte %zu", k ? "constraint" : "question", valid);
  }
  for (int pass = 0; pass < 2; pass++) {
    for (size_t k = 0; k < sizeof rules / sizeof *rules; k++) {
      bool found;
      int rc = search(out, &found, question, constraint, rules[k].fold, rules[k].punctuation, pass == 0, err);
      if (rc) return rc;
      if (!found) continue;
      if (how) *how = pass == 0 ? rules[k].whole : rules[k].part;
      return 0;
    }
  }
  return chi_fail(err, CHI_ERR_ARG,
                  "the constraint \"%.100s\" is not in the question \"%.200s\" (its words must stand together)",
                  constraint, question);
}

/* ---- spans to tokens --------------------------------------------------------------------------------------- */
int chi_span_tokens(size_t *first, size_t *last, bool *grown, const chi_tokens *t, const char *text, chi_span span,
                    chi_err *err) {
  size_t b = t->n, e = 0, lo = span.begin, hi = span.end;
  if (span.begin >= span.end)
    return chi_fail(err, CHI_ERR_ARG, "the span of bytes %zu to %zu is empty: no token covers it", span.begin,
                    span.end);
  for (size_t k = 0; k < t->n; k++) {
    size_t tb = (size_t)t->begin[k], te = (size_t)t->end[k];
    if (tb >= te || tb >= span.end || te <= span.begin) continue;
    if (b == t->n) b = k;
    e = k + 1;
    if (tb < lo) lo = tb;
    if (te > hi) hi = te;
  }
  if (b >= e) return chi_fail(err, CHI_ERR_ARG, "no token covers bytes %zu to %zu of the text", span.begin, span.end);
  *first = b;
  *last = e;
  *grown = hi > span.end;
  for (uint32_t cp; lo < span.begin && !*grown; lo += chi_utf8_get(text + lo, &cp)) {
    chi_utf8_get(text + lo, &cp);
    *grown = !chi_is_space(cp);
  }
  return 0;
}

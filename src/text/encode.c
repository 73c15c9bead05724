/* Encoding: the chain of steps from text to ids. */
#include "text/tok.h"

#include <string.h>

void chi_tokens_free(chi_tokens *t) {
  chi_free(t->id);
  chi_free(t->begin);
  chi_free(t->end);
  memset(t, 0, sizeof *t);
}

int chi_tokens_push(chi_tokens *t, int32_t id, chi_range at, chi_err *err) {
  int32_t **list[] = {&t->id, &t->begin, &t->end};
  size_t cap = t->cap;
  for (int k = 0; k < 3; k++) {
    void *p = *list[k];
    cap = t->cap;
    int rc = chi_grow(&p, &cap, t->n + 1, sizeof **list[k], err);
    *list[k] = p;
    if (rc) return rc;
  }
  t->cap = cap;
  t->id[t->n] = id;
  t->begin[t->n] = at.b;
  t->end[t->n++] = at.e;
  return 0;
}

typedef struct encoder { /* one call's scratch */
  const chi_tokenizer *t;
  chi_nstr s, tmp, part;
  chi_pieces pieces;
  chi_bpe *bpe;
  chi_tokens *out;
  chi_err *err;
} encoder;

typedef int (*gap_fn)(encoder *e, const char *s, size_t b, size_t n);
typedef int (*hit_fn)(encoder *e, int32_t id, size_t b, size_t n);

static size_t back_one(const char *s, size_t at) {
  do at--;
  while (at && ((uint8_t)s[at] & 0xC0) == 0x80);
  return at;
}

static bool word_before(const char *s, size_t at) {
  if (!at) return false;
  uint32_t cp;
  chi_utf8_get(s + back_one(s, at), &cp);
  return chi_is_word(cp);
}

static bool word_after(const char *s, size_t n, size_t at) {
  uint32_t cp;
  return at < n && (chi_utf8_get(s + at, &cp), chi_is_word(cp));
}

static size_t spaces_before(const char *s, size_t at, size_t floor) {
  while (at > floor) {
    size_t b = back_one(s, at);
    uint32_t cp;
    chi_utf8_get(s + b, &cp);
    if (!chi_is_space(cp) || b < floor) break;
    at = b;
  }
  return at;
}

static size_t spaces_after(const char *s, size_t n, size_t at) {
  while (at < n) {
    uint32_t cp;
    size_t len = chi_utf8_get(s + at, &cp);
    if (!chi_is_space(cp)) break;
    at += len;
  }
  return at;
}

/* Leftmost-longest added tokens in s[0..n): calls hit for each, gap for the text between. */
static int find_added(encoder *e, const chi_trie *trie, const char *s, size_t n, gap_fn gap, hit_fn hit) {
  int rc = 0;
  size_t from = 0, i = 0;
  while (i < n) {
    int32_t id = -1;
    size_t len = chi_trie_match(trie, s + i, n - i, &id);
    if (!len) {
      i++;
      continue;
    }
    size_t b = i, stop = i + len;
    uint32_t flags = e->t->piece[id].flags;
    i = stop;
    if ((flags & CHI_TOK_SINGLE_WORD) && (word_before(s, b) || word_after(s, n, stop))) continue;
    if (flags & CHI_TOK_LSTRIP) b = spaces_before(s, b, from);
    if (flags & CHI_TOK_RSTRIP) stop = spaces_after(s, n, stop);
    if (from < b) CHI_TRY(gap(e, s, from, b));
    CHI_TRY(hit(e, id, b, stop));
    from = stop;
  }
  if (from < n) CHI_TRY(gap(e, s, from, n));
out:
  return rc;
}

/* ---- after normalization ----------------------------------------------------------------------------------- */
static int normalized_hit(encoder *e, int32_t id, size_t b, size_t n) {
  return chi_tokens_push(e->out, id, (chi_range){e->s.at[b].b, e->s.at[n - 1].e}, e->err);
}

static int normalized_gap(encoder *e, const char *s, size_t b, size_t n) {
  int rc = 0;
  (void)s;
  e->part.n = 0;
  CHI_TRY(chi_nstr_copy(&e->part, &e->s, b, n, e->err));
  CHI_TRY(chi_pretokenize(e->t, &e->part, &e->tmp, &e->pieces, e->err));
  for (size_t k = 0; k < e->pieces.n; k++) {
    chi_range p = e->pieces.p[k];
    const char *at = e->part.s + p.b;
    const chi_range *from = e->part.at + p.b;
    size_t len = (size_t)(p.e - p.b);
    CHI_TRY(e->t->wordpiece ? chi_wordpiece_piece(e->t, at, from, len, e->out, e->err)
                            : chi_bpe_piece(e->t, e->bpe, at, from, len, e->out, e->err));
  }
out:
  return rc;
}

/* ---- before normalization ---------------------------------------------------------------------------------- */
static int raw_hit(encoder *e, int32_t id, size_t b, size_t n) {
  return chi_tokens_push(e->out, id, (chi_range){(int32_t)b, (int32_t)n}, e->err);
}

static int raw_gap(encoder *e, const char *s, size_t b, size_t n) {
  int rc = 0;
  e->s.n = 0;
  for (size_t i = b; i < n;) {
    uint32_t cp;
    size_t len = chi_utf8_get(s + i, &cp);
    CHI_TRY(chi_nstr_put(&e->s, s + i, len, (chi_range){(int32_t)i, (int32_t)(i + len)}, e->err));
    i += len;
  }
  CHI_TRY(chi_normalize(e->t, &e->s, &e->tmp, e->err));
  CHI_TRY(find_added(e, &e->t->normalized, e->s.s, e->s.n, normalized_gap, normalized_hit));
out:
  return rc;
}

/* ---- post-processors --------------------------------------------------------------------------------------- */
/* Leading and trailing white space characters of a token's text. */
static void count_spaces(const char *s, size_t n, size_t *lead, size_t *trail) {
  size_t seen = 0;
  *lead = *trail = 0;
  for (size_t i = 0; i < n; seen++) {
    uint32_t cp;
    i += chi_utf8_get(s + i, &cp);
    bool space = cp == 0x120 || chi_is_space(cp); /* U+0120 is the byte-level space */
    if (space && *lead == seen) ++*lead;
    *trail = space ? *trail + 1 : 0;
  }
}

/* Takes the token's own leading and trailing white space out of its range (byte-level models with trim_offsets). As in
 * the reference, characters of the token are counted off in the input, whatever stands there. */
static void trim(const chi_tokenizer *t, const chi_post *step, const char *text, chi_tokens *out, size_t first) {
  for (size_t k = first; k < out->n; k++) {
    const chi_piece *p = &t->piece[out->id[k]];
    size_t b = (size_t)out->begin[k], e = (size_t)out->end[k], lead, trail;
    bool added = p->flags & CHI_TOK_ADDED; /* its text is what stands in the input */
    count_spaces(added ? text + b : p->s, added ? e - b : p->len, &lead, &trail);
    if (lead == 1 && step->prefix_space && (k == first || b == 0)) lead = 0;
    for (uint32_t cp; lead && b < e; lead--) b += chi_utf8_get(text + b, &cp);
    for (; trail && e > b; trail--) e = back_one(text, e);
    out->begin[k] = (int32_t)b;
    out->end[k] = (int32_t)e;
  }
}

static int wrap(const chi_post *step, chi_tokens *out, size_t first, chi_err *err) {
  int rc = 0;
  size_t n = out->n - first;
  for (size_t k = 0; k < step->n_ids; k++) CHI_TRY(chi_tokens_push(out, 0, (chi_range){0, 0}, err));
  int32_t *list[] = {out->id, out->begin, out->end};
  for (int l = 0; l < 3; l++) {
    int32_t *p = list[l] + first;
    memmove(p + step->n_before, p, n * sizeof *p);
    for (size_t k = 0; k < step->n_ids; k++) p[k < step->n_before ? k : k + n] = l == 0 ? step->ids[k] : 0;
  }
out:
  return rc;
}

int chi_encode(const chi_tokenizer *t, const char *text, size_t len, bool special, chi_tokens *out, chi_err *err) {
  int rc = 0;
  size_t first = out->n;
  encoder e = {.t = t, .out = out, .err = err};
  if (len > CHI_TEXT_MAX)
    return chi_fail(err, CHI_ERR_ARG, "a text of %zu bytes is too long to tokenize (limit %zu)", len, CHI_TEXT_MAX);
  size_t valid = chi_utf8_valid(text, len);
  if (valid != len) return chi_fail(err, CHI_ERR_ARG, "the text is not valid UTF-8 at byte %zu", valid);
  CHI_TRY(chi_bpe_new(&e.bpe, err));
  CHI_TRY(find_added(&e, &t->raw, text, len, raw_gap, raw_hit));
  for (size_t k = 0; k < t->n_post; k++) {
    if (t->post[k].kind == CHI_POST_TRIM) trim(t, &t->post[k], text, out, first);
    if (t->post[k].kind == CHI_POST_TEMPLATE && special) CHI_TRY(wrap(&t->post[k], out, first, err));
  }
out:
  if (rc) out->n = first;
  chi_nstr_free(&e.s);
  chi_nstr_free(&e.tmp);
  chi_nstr_free(&e.part);
  chi_free(e.pieces.p);
  chi_bpe_free(e.bpe);
  return rc;
}

/* Pre-tokenizers: cut the normalized text into pieces that merges never cross. */
#include "text/tok.h"

#include <string.h>

typedef struct part {
  size_t b, e;
  bool match, drop;
} part;
typedef struct work { /* scratch of one call */
  chi_matches m;
  part *part;
  size_t n_part, part_cap;
  chi_pieces next;
} work;

uint32_t chi_byte_char(uint8_t b) {
  if ((b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE) return b;
  /* the others, in order, stand at U+0100.. */
  if (b <= 0x20) return 0x100u + b;
  if (b <= 0xA0) return 0x100u + 0x21 + (b - 0x7Fu);
  return 0x100u + 0x21 + 0x22; /* 0xAD */
}

int chi_char_byte(uint32_t cp) {
  if (cp < 0x100) return chi_byte_char((uint8_t)cp) == cp ? (int)cp : -1;
  if (cp <= 0x120) return (int)(cp - 0x100);
  if (cp <= 0x142) return (int)(cp - 0x121 + 0x7F);
  return cp == 0x143 ? 0xAD : -1;
}

static int push_part(work *w, part p, chi_err *err) {
  void *q = w->part;
  int rc = chi_grow(&q, &w->part_cap, w->n_part + 1, sizeof *w->part, err);
  w->part = q;
  if (rc == 0) w->part[w->n_part++] = p;
  return rc;
}

static int push_piece(chi_pieces *out, size_t b, size_t e, chi_err *err) {
  if (b == e) return 0;
  void *q = out->p;
  int rc = chi_grow(&q, &out->cap, out->n + 1, sizeof *out->p, err);
  out->p = q;
  if (rc == 0) out->p[out->n++] = (chi_range){(int32_t)b, (int32_t)e};
  return rc;
}

/* Matches -> alternating parts that cover [0, n). */
static int parts_of_matches(work *w, size_t n, bool invert, chi_err *err) {
  int rc = 0;
  size_t from = 0;
  w->n_part = 0;
  for (size_t k = 0; k < w->m.n; k++) {
    chi_match m = w->m.m[k];
    if (from != m.b) CHI_TRY(push_part(w, (part){from, m.b, invert, false}, err));
    CHI_TRY(push_part(w, (part){m.b, m.e, !invert, false}, err));
    from = m.e;
  }
  if (from != n) CHI_TRY(push_part(w, (part){from, n, invert, false}, err));
out:
  return rc;
}

/* Every character for which is() holds is a match of its own. */
static int parts_of_class(work *w, const char *s, size_t n, bool (*is)(uint32_t), chi_err *err) {
  int rc = 0;
  w->m.n = 0;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    size_t len = chi_utf8_get(s + i, &cp);
    if (is(cp)) {
      void *q = w->m.m;
      rc = chi_grow(&q, &w->m.cap, w->m.n + 1, sizeof *w->m.m, err);
      w->m.m = q;
      if (rc) return rc;
      w->m.m[w->m.n++] = (chi_match){i, i + len};
    }
    i += len;
  }
  return parts_of_matches(w, n, false, err);
}

/* Joins and drops parts as the behaviour says, in place. */
static void apply_behaviour(work *w, chi_split how) {
  part *p = w->part;
  size_t n = 0;
  bool before = false;
  switch (how) {
    case CHI_SPLIT_ISOLATED:
      return;
    case CHI_SPLIT_REMOVED:
      for (size_t k = 0; k < w->n_part; k++) p[k].drop = p[k].match;
      return;
    case CHI_SPLIT_CONTIGUOUS:
    case CHI_SPLIT_PREVIOUS:
      for (size_t k = 0; k < w->n_part; k++) {
        bool join = how == CHI_SPLIT_CONTIGUOUS ? p[k].match == before : p[k].match && !before;
        before = p[k].match;
        if (join && n) {
          p[n - 1].e = p[k].e;
        } else {
          p[n++] = p[k];
        }
      }
      w->n_part = n;
      return;
    case CHI_SPLIT_NEXT: /* the mirror image: walk from the right, writing to the right end */
      n = w->n_part;
      for (size_t k = w->n_part; k-- > 0;) {
        bool join = p[k].match && !before;
        before = p[k].match;
        if (join && n < w->n_part) {
          p[n].b = p[k].b;
        } else {
          p[--n] = p[k];
        }
      }
      memmove(p, p + n, (w->n_part - n) * sizeof *p);
      w->n_part -= n;
      return;
  }
}

static int cut_piece(const chi_pre *step, const chi_nstr *s, chi_range piece, work *w, chi_err *err) {
  int rc = 0;
  const char *at = s->s + piece.b;
  size_t n = (size_t)(piece.e - piece.b), base = (size_t)piece.b;
  bool (*class_of)(uint32_t) = step->kind == CHI_PRE_DIGITS             ? chi_is_number
                               : step->kind == CHI_PRE_PUNCTUATION      ? chi_is_punct
                               : step->kind == CHI_PRE_WHITESPACE_SPLIT ? chi_is_space
                                                                        : NULL;
  if (class_of) {
    CHI_TRY(parts_of_class(w, at, n, class_of, err));
  } else {
    CHI_TRY(chi_pattern_find(&step->pattern, at, n, &w->m, err));
    CHI_TRY(parts_of_matches(w, n, step->invert, err));
  }
  apply_behaviour(w, step->behaviour);
  for (size_t k = 0; k < w->n_part; k++)
    if (!w->part[k].drop) CHI_TRY(push_piece(&w->next, base + w->part[k].b, base + w->part[k].e, err));
out:
  return rc;
}

static void take_next(chi_pieces *pieces, work *w) {
  chi_pieces swap = *pieces;
  *pieces = w->next;
  w->next = swap;
}

static int cut(const chi_pre *step, const chi_nstr *s, chi_pieces *pieces, work *w, chi_err *err) {
  int rc = 0;
  w->next.n = 0;
  for (size_t k = 0; k < pieces->n; k++) CHI_TRY(cut_piece(step, s, pieces->p[k], w, err));
  take_next(pieces, w);
out:
  return rc;
}

typedef int (*rewrite_fn)(const chi_pre *step, chi_nstr *out, const chi_nstr *s, size_t b, size_t e, chi_err *err);

/* Rewrites the text of every piece; the pieces follow. */
static int rewrite(const chi_pre *step, rewrite_fn fn, chi_nstr *s, chi_nstr *tmp, chi_pieces *pieces, work *w,
                   chi_err *err) {
  int rc = 0;
  tmp->n = 0;
  w->next.n = 0;
  for (size_t k = 0; k < pieces->n; k++) {
    size_t b = tmp->n;
    CHI_TRY(fn(step, tmp, s, (size_t)pieces->p[k].b, (size_t)pieces->p[k].e, err));
    CHI_TRY(push_piece(&w->next, b, tmp->n, err));
  }
  take_next(pieces, w);
  chi_nstr swap = *s;
  *s = *tmp;
  *tmp = swap;
out:
  return rc;
}

static int with_space(const chi_pre *step, chi_nstr *out, const chi_nstr *s, size_t b, size_t e, chi_err *err) {
  (void)step;
  int rc = s->s[b] == ' ' ? 0 : chi_nstr_put(out, " ", 1, s->at[b], err);
  return rc ? rc : chi_nstr_copy(out, s, b, e, err);
}

static int as_byte_chars(const chi_pre *step, chi_nstr *out, const chi_nstr *s, size_t b, size_t e, chi_err *err) {
  int rc = 0;
  (void)step;
  for (size_t i = b; i < e; i++) {
    char c[4];
    CHI_TRY(chi_nstr_put(out, c, chi_utf8_put(c, chi_byte_char((uint8_t)s->s[i])), s->at[i], err));
  }
out:
  return rc;
}

static int with_metaspace(const chi_pre *step, chi_nstr *out, const chi_nstr *s, size_t b, size_t e, chi_err *err) {
  int rc = 0;
  const char *rep = step->pattern.lit;
  size_t len = step->pattern.lit_len;
  bool starts = s->s[b] == ' ' || (e - b >= len && memcmp(s->s + b, rep, len) == 0);
  bool wanted = step->scheme == CHI_PREPEND_ALWAYS || (step->scheme == CHI_PREPEND_FIRST && s->at[b].b == 0);
  if (!starts && wanted) CHI_TRY(chi_nstr_put(out, rep, len, s->at[b], err));
  for (size_t i = b, from = b; i <= e; i++) {
    if (i < e && s->s[i] != ' ') continue;
    CHI_TRY(chi_nstr_copy(out, s, from, i, err));
    if (i < e) CHI_TRY(chi_nstr_put(out, rep, len, s->at[i], err));
    from = i + 1;
  }
out:
  return rc;
}

int chi_pretokenize(const chi_tokenizer *t, chi_nstr *s, chi_nstr *tmp, chi_pieces *out, chi_err *err) {
  int rc = 0;
  work w = {0};
  out->n = 0;
  CHI_TRY(push_piece(out, 0, s->n, err));
  for (size_t k = 0; k < t->n_pre && out->n; k++) {
    const chi_pre *step = &t->pre[k];
    if (step->kind == CHI_PRE_BYTELEVEL) {
      if (step->prefix_space) CHI_TRY(rewrite(step, with_space, s, tmp, out, &w, err));
      if (step->use_regex) CHI_TRY(cut(step, s, out, &w, err));
      CHI_TRY(rewrite(step, as_byte_chars, s, tmp, out, &w, err));
    } else if (step->kind == CHI_PRE_METASPACE) {
      CHI_TRY(rewrite(step, with_metaspace, s, tmp, out, &w, err));
      if (step->split) CHI_TRY(cut(step, s, out, &w, err));
    } else {
      CHI_TRY(cut(step, s, out, &w, err));
    }
  }
out:
  chi_free(w.m.m);
  chi_free(w.part);
  chi_free(w.next.p);
  return rc;
}

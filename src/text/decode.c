/* Decoding: token texts through the chain of decoders; and the questions that callers ask about single tokens. */
#include "text/tok.h"

#include <stdio.h>
#include <string.h>

/* A list of strings in one buffer. */
typedef struct strings {
  chi_str s;
  size_t *end; /* of string k */
  size_t n, cap;
} strings;

static size_t begin_of(const strings *l, size_t k) { return k ? l->end[k - 1] : 0; }

static int close_string(strings *l, chi_err *err) {
  void *p = l->end;
  int rc = chi_grow(&p, &l->cap, l->n + 1, sizeof *l->end, err);
  l->end = p;
  if (rc) return rc;
  if (l->s.failed || l->s.len > CHI_TEXT_GROWN)
    return chi_fail(err, CHI_ERR_MEMORY, "the decoded text is too large (%zu tokens)", l->n);
  l->end[l->n++] = l->s.len;
  return 0;
}

/* Byte-level tokens: characters back to bytes; a token with any other character stands for itself. */
static void put_bytes(chi_str *out, const char *s, size_t n) {
  size_t start = out->len;
  for (size_t i = 0; i < n;) {
    uint32_t cp;
    i += chi_utf8_get(s + i, &cp);
    int b = chi_char_byte(cp);
    char c = (char)b;
    if (b < 0) {
      out->len = start;
      chi_str_addn(out, s, n);
      return;
    }
    chi_str_addn(out, &c, 1);
  }
}

static int dec_bytelevel(strings *to, const strings *from, chi_err *err) {
  chi_str bytes = {0};
  for (size_t k = 0; k < from->n; k++)
    put_bytes(&bytes, from->s.s + begin_of(from, k), from->end[k] - begin_of(from, k));
  if (bytes.len) chi_utf8_lossy(&to->s, bytes.s, bytes.len);
  if (bytes.failed) to->s.failed = true;
  chi_str_free(&bytes);
  return close_string(to, err);
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Value of "<0xHH>", or -1. */
static int byte_token(const char *s, size_t n) {
  if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
  int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
  return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* A run of byte tokens becomes one string if it is UTF-8, else one U+FFFD per byte. */
static int dec_byte_fallback(strings *to, const strings *from, chi_err *err) {
  int rc = 0;
  chi_str run = {0};
  for (size_t k = 0; k <= from->n; k++) {
    const char *s = k < from->n ? from->s.s + begin_of(from, k) : NULL;
    size_t n = k < from->n ? from->end[k] - begin_of(from, k) : 0;
    int b = s ? byte_token(s, n) : -1;
    char c = (char)b;
    if (b >= 0) {
      chi_str_addn(&run, &c, 1);
      continue;
    }
    if (run.len && chi_utf8_valid(run.s, run.len) == run.len) {
      chi_str_addn(&to->s, run.s, run.len);
      CHI_TRY(close_string(to, err));
    } else {
      for (size_t i = 0; i < run.len; i++) {
        chi_str_add(&to->s, "\xEF\xBF\xBD");
        CHI_TRY(close_string(to, err));
      }
    }
    if (run.failed) to->s.failed = true;
    run.len = 0;
    if (!s) break;
    chi_str_addn(&to->s, s, n);
    CHI_TRY(close_string(to, err));
  }
out:
  chi_str_free(&run);
  return rc;
}

static void put_stripped(chi_str *out, const chi_dec *step, const char *s, size_t n) {
  size_t len = strlen(step->text), b = 0, e = n;
  for (int64_t k = 0; k < step->start && e - b >= len && memcmp(s + b, step->text, len) == 0; k++) b += len;
  for (int64_t k = 0; k < step->stop && e - b >= len && memcmp(s + e - len, step->text, len) == 0; k++) e -= len;
  chi_str_addn(out, s + b, e - b);
}

static void put_metaspace(chi_str *out, const chi_dec *step, const char *s, size_t n, bool first) {
  size_t len = strlen(step->text), i = 0;
  bool drop = first && step->scheme != CHI_PREPEND_NEVER;
  while (i < n) {
    if (n - i >= len && memcmp(s + i, step->text, len) == 0) {
      if (!drop) chi_str_add(out, " ");
      i += len;
    } else {
      chi_str_addn(out, s + i++, 1);
    }
  }
}

static int put_replaced(chi_str *out, const chi_dec *step, const char *s, size_t n, chi_matches *m, chi_err *err) {
  size_t from = 0;
  int rc = chi_pattern_find(&step->pattern, s, n, m, err);
  for (size_t k = 0; rc == 0 && k < m->n; k++) {
    chi_str_addn(out, s + from, m->m[k].b - from);
    chi_str_add(out, step->text);
    from = m->m[k].e;
  }
  if (rc == 0) chi_str_addn(out, s + from, n - from);
  return rc;
}

static int decode_step(const chi_dec *step, strings *to, const strings *from, chi_matches *m, chi_err *err) {
  int rc = 0;
  if (step->kind == CHI_DEC_BYTELEVEL) return dec_bytelevel(to, from, err);
  if (step->kind == CHI_DEC_BYTE_FALLBACK) return dec_byte_fallback(to, from, err);
  for (size_t k = 0; k < from->n; k++) {
    const char *s = from->s.s + begin_of(from, k);
    size_t n = from->end[k] - begin_of(from, k);
    if (step->kind == CHI_DEC_FUSE) chi_str_addn(&to->s, s, n);
    if (step->kind == CHI_DEC_STRIP) put_stripped(&to->s, step, s, n);
    if (step->kind == CHI_DEC_METASPACE) put_metaspace(&to->s, step, s, n, k == 0);
    if (step->kind == CHI_DEC_WORDPIECE) chi_wordpiece_show(step, &to->s, s, n, k == 0);
    if (step->kind == CHI_DEC_REPLACE) CHI_TRY(put_replaced(&to->s, step, s, n, m, err));
    if (step->kind != CHI_DEC_FUSE) CHI_TRY(close_string(to, err));
  }
  if (step->kind == CHI_DEC_FUSE) CHI_TRY(close_string(to, err));
out:
  return rc;
}

static const chi_piece *piece_of(const chi_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->n_ids && t->piece[id].flags ? &t->piece[id] : NULL;
}

int chi_decode(const chi_tokenizer *t, const int32_t *id, size_t n, bool skip_special, char **out, chi_err *err) {
  int rc = 0;
  strings a = {0}, b = {0};
  chi_matches m = {0};
  *out = NULL;
  chi_str_add(&a.s, "");
  for (size_t k = 0; k < n; k++) {
    const chi_piece *p = piece_of(t, id[k]);
    if (!p || (skip_special && (p->flags & (CHI_TOK_SPECIAL | CHI_TOK_SHOWN)) == CHI_TOK_SPECIAL)) continue;
    if (t->n_dec == 0 && a.n) chi_str_add(&a.s, " "); /* no decoder: the reference joins with spaces */
    chi_str_addn(&a.s, p->s, p->len);
    CHI_TRY(close_string(&a, err));
  }
  for (size_t k = 0; k < t->n_dec; k++) {
    b.n = b.s.len = 0;
    chi_str_add(&b.s, "");
    CHI_TRY(decode_step(&t->dec[k], &b, &a, &m, err));
    strings swap = a;
    a = b;
    b = swap;
  }
  CHI_TRY(close_string(&a, err));
  *out = a.s.s;
  a.s = (chi_str){0};
out:
  chi_str_free(&a.s);
  chi_str_free(&b.s);
  chi_free(a.end);
  chi_free(b.end);
  chi_free(m.m);
  return rc;
}

/* ---- single tokens ----------------------------------------------------------------------------------------- */
static void show_byte(chi_str *out, uint8_t b) {
  if (b >= 0x20 && b < 0x7F) {
    chi_str_addn(out, (const char *)&b, 1);
  } else {
    chi_str_addf(out, "<0x%02X>", b);
  }
}

/* Bytes for people: control characters and broken UTF-8 spelled out, the meta space as a space. */
static void show(chi_str *out, const char *s, size_t n) {
  for (size_t i = 0; i < n;) {
    uint32_t cp = 0;
    size_t limit = n - i < 4 ? n - i : 4, len = 1;
    while (len < limit && ((uint8_t)s[i + len] & 0xC0) == 0x80) len++;
    if (chi_utf8_valid(s + i, len) != len || (uint8_t)s[i] < 0x80) {
      show_byte(out, (uint8_t)s[i++]);
      continue;
    }
    chi_utf8_get(s + i, &cp);
    if (cp == 0x2581) {
      chi_str_add(out, " ");
    } else if (cp < 0xA0) {
      for (size_t k = 0; k < len; k++) show_byte(out, (uint8_t)s[i + k]);
    } else {
      chi_str_addn(out, s + i, len);
    }
    i += len;
  }
}

void chi_token_text(const chi_tokenizer *t, int32_t id, char *buf, size_t cap) {
  chi_str out = {0}, bytes = {0};
  const chi_piece *p = piece_of(t, id);
  bool byte_level = false;
  if (!cap) return;
  for (size_t k = 0; k < t->n_dec; k++) byte_level |= t->dec[k].kind == CHI_DEC_BYTELEVEL;
  if (!p) {
    chi_str_addf(&out, "<id %d>", (int)id);
  } else if (p->flags & CHI_TOK_ADDED) {
    show(&out, p->s, p->len);
  } else if (byte_level) {
    put_bytes(&bytes, p->s, p->len);
    if (bytes.len) show(&out, bytes.s, bytes.len);
  } else if (t->byte_fallback && byte_token(p->s, p->len) >= 0) {
    show_byte(&out, (uint8_t)byte_token(p->s, p->len));
  } else {
    show(&out, p->s, p->len);
  }
  size_t n = out.len < cap ? out.len : cap - 1;
  while (n && n < out.len && ((uint8_t)out.s[n] & 0xC0) == 0x80) n--; /* never half a character */
  if (n) memcpy(buf, out.s, n);
  buf[n] = 0;
  chi_str_free(&out);
  chi_str_free(&bytes);
}

int32_t chi_token_id(const chi_tokenizer *t, const char *piece) {
  int32_t id = chi_strmap_get(&t->added, piece, strlen(piece));
  return id >= 0 ? id : chi_strmap_get(&t->vocab, piece, strlen(piece));
}

int32_t chi_vocab_size(const chi_tokenizer *t) { return t->n_ids; }

bool chi_token_is_special(const chi_tokenizer *t, int32_t id) {
  const chi_piece *p = piece_of(t, id);
  return p && (p->flags & CHI_TOK_SPECIAL);
}

int32_t chi_token_bos(const chi_tokenizer *t) { return t->bos; }
int32_t chi_token_eos(const chi_tokenizer *t) { return t->eos; }

/* Normalizers over aligned strings. Every byte of the result keeps the range of input bytes that it stands for. */
#include "text/tok.h"

#include <string.h>
#include <utf8proc.h>

/* ---- aligned strings --------------------------------------------------------------------------------------- */
static int nstr_reserve(chi_nstr *t, size_t more, chi_err *err) {
  if (more > CHI_TEXT_GROWN - t->n)
    return chi_fail(err, CHI_ERR_MEMORY, "the tokenizer blows this text up beyond %zu MB", CHI_TEXT_GROWN >> 20);
  void *s = t->s, *at = t->at;
  int rc = chi_grow(&s, &t->cap, t->n + more + 1, 1, err);
  t->s = s;
  if (rc == 0) rc = chi_grow(&at, &t->at_cap, t->n + more + 1, sizeof *t->at, err);
  t->at = at;
  return rc;
}

int chi_nstr_put(chi_nstr *t, const char *bytes, size_t n, chi_range at, chi_err *err) {
  int rc = nstr_reserve(t, n, err);
  if (rc) return rc;
  for (size_t i = 0; i < n; i++) {
    t->s[t->n] = bytes[i];
    t->at[t->n++] = at;
  }
  return 0;
}

int chi_nstr_copy(chi_nstr *t, const chi_nstr *from, size_t b, size_t e, chi_err *err) {
  int rc = nstr_reserve(t, e - b, err);
  if (rc || b == e) return rc;
  memcpy(t->s + t->n, from->s + b, e - b);
  memcpy(t->at + t->n, from->at + b, (e - b) * sizeof *t->at);
  t->n += e - b;
  return 0;
}

void chi_nstr_free(chi_nstr *t) {
  chi_free(t->s);
  chi_free(t->at);
  memset(t, 0, sizeof *t);
}

static int put_cp(chi_nstr *t, uint32_t cp, chi_range at, chi_err *err) {
  char b[4];
  return chi_nstr_put(t, b, chi_utf8_put(b, cp), at, err);
}

/* Input range that bytes [b, e) of s stand for. */
static chi_range covered(const chi_nstr *s, size_t b, size_t e) {
  if (b == e) return b ? s->at[b - 1] : (chi_range){0, 0};
  return (chi_range){s->at[b].b, s->at[e - 1].e};
}

/* ---- Unicode normal forms ---------------------------------------------------------------------------------- */
typedef struct cluster { /* code points of one stretch that cannot interact with its neighbours */
  utf8proc_int32_t *cp, *tmp;
  uint8_t *ccc, *ccc_tmp;
  size_t n, cap;
} cluster;

static void cluster_free(cluster *c) {
  chi_free(c->cp);
  chi_free(c->tmp);
  chi_free(c->ccc);
  chi_free(c->ccc_tmp);
}

static int cluster_reserve(cluster *c, size_t need, chi_err *err) {
  int rc = 0;
  if (need <= c->cap) return 0;
  void **p[] = {(void *)&c->cp, (void *)&c->tmp, (void *)&c->ccc, (void *)&c->ccc_tmp};
  size_t size[] = {sizeof *c->cp, sizeof *c->tmp, 1, 1}, cap = 0;
  for (int k = 0; k < 4; k++) {
    cap = c->cap;
    void *q;
    memcpy(&q, p[k], sizeof q);
    rc = chi_grow(&q, &cap, need, size[k], err);
    memcpy(p[k], &q, sizeof q);
    if (rc) return rc;
  }
  c->cap = cap;
  return 0;
}

/* Stable merge sort by combining class: a run of marks may be a megabyte long in hostile input. */
static void sort_marks(cluster *c, size_t b, size_t e) {
  if (e - b < 2) return;
  size_t mid = b + (e - b) / 2, i = b, j = mid, k = b;
  sort_marks(c, b, mid);
  sort_marks(c, mid, e);
  if (c->ccc[mid - 1] <= c->ccc[mid]) return;
  while (i < mid || j < e) {
    size_t take = j == e || (i < mid && c->ccc[i] <= c->ccc[j]) ? i++ : j++;
    c->tmp[k] = c->cp[take];
    c->ccc_tmp[k++] = c->ccc[take];
  }
  memcpy(c->cp + b, c->tmp + b, (e - b) * sizeof *c->cp);
  memcpy(c->ccc + b, c->ccc_tmp + b, e - b);
}

static int decompose(cluster *c, uint32_t cp, utf8proc_option_t options, chi_err *err) {
  utf8proc_int32_t buf[32]; /* the longest decomposition has 18 */
  int boundclass = 0;
  utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)cp, buf, 32, options, &boundclass);
  if (n < 0 || n > 32) { /* unassigned and the like stay as they are */
    buf[0] = (utf8proc_int32_t)cp;
    n = 1;
  }
  int rc = cluster_reserve(c, c->n + (size_t)n, err);
  if (rc) return rc;
  for (utf8proc_ssize_t k = 0; k < n; k++) {
    c->cp[c->n] = buf[k];
    c->ccc[c->n++] = (uint8_t)utf8proc_get_property(buf[k])->combining_class;
  }
  return 0;
}

/* True when nothing before cp can reorder or compose with it. */
static bool starts_cluster(uint32_t cp, utf8proc_option_t options) {
  if (cp < 0x300) return true;
  utf8proc_int32_t buf[32];
  int boundclass = 0;
  utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)cp, buf, 32, options, &boundclass);
  uint32_t first = n > 0 && n <= 32 ? (uint32_t)buf[0] : cp;
  bool jamo = (first >= 0x1160 && first <= 0x11FF) || (first >= 0xD7B0 && first <= 0xD7FF);
  return !jamo && !chi_is_mark(first) && utf8proc_get_property((utf8proc_int32_t)first)->combining_class == 0;
}

/* Writes the normal form of s[b..e), one cluster. */
static int put_cluster(chi_nstr *out, const chi_nstr *s, size_t b, size_t e, utf8proc_option_t options, cluster *c,
                       chi_err *err) {
  int rc = 0;
  c->n = 0;
  for (size_t i = b; i < e;) {
    uint32_t cp;
    i += chi_utf8_get(s->s + i, &cp);
    CHI_TRY(decompose(c, cp, options, err));
  }
  for (size_t i = 0, j; i < c->n; i = j + (j == i)) {
    for (j = i; j < c->n && c->ccc[j] != 0;) j++;
    sort_marks(c, i, j);
  }
  if (options & UTF8PROC_COMPOSE) {
    utf8proc_ssize_t n = utf8proc_normalize_utf32(c->cp, (utf8proc_ssize_t)c->n, options);
    if (n >= 0) c->n = (size_t)n;
  }
  size_t i = b, k = 0;
  for (uint32_t cp; i < e && k < c->n; k++) { /* unchanged: keep the finer ranges */
    i += chi_utf8_get(s->s + i, &cp);
    if (cp != (uint32_t)c->cp[k]) break;
  }
  if (i == e && k == c->n) return chi_nstr_copy(out, s, b, e, err);
  for (k = 0; k < c->n; k++) CHI_TRY(put_cp(out, (uint32_t)c->cp[k], covered(s, b, e), err));
out:
  return rc;
}

static int normal_form(chi_nstr *out, const chi_nstr *s, chi_norm_kind kind, chi_err *err) {
  int rc = 0, options = UTF8PROC_STABLE;
  cluster c = {0};
  options |= kind == CHI_NORM_NFC || kind == CHI_NORM_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (kind == CHI_NORM_NFKC || kind == CHI_NORM_NFKD) options |= UTF8PROC_COMPAT;
  utf8proc_option_t opt = (utf8proc_option_t)options;
  for (size_t b = 0, e; b < s->n; b = e) {
    uint32_t cp, next = 0;
    e = b + chi_utf8_get(s->s + b, &cp);
    while (e < s->n) {
      size_t len = chi_utf8_get(s->s + e, &next);
      if (starts_cluster(next, opt)) break;
      e += len;
    }
    if (e == b + 1) {
      CHI_TRY(chi_nstr_copy(out, s, b, e, err)); /* ASCII */
    } else {
      CHI_TRY(put_cluster(out, s, b, e, opt, &c, err));
    }
  }
out:
  cluster_free(&c);
  return rc;
}

/* ---- the rest ---------------------------------------------------------------------------------------------- */
static int lowercase(chi_nstr *out, const chi_nstr *s, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp;
    chi_range at = s->at[i];
    i += chi_utf8_get(s->s + i, &cp);
    CHI_TRY(put_cp(out, cp == 0x130 ? 'i' : chi_to_lower(cp), at, err));
    if (cp == 0x130) CHI_TRY(put_cp(out, 0x307, at, err)); /* the one letter whose lower case is two */
  }
out:
  return rc;
}

static int strip(chi_nstr *out, const chi_nstr *s, bool left, bool right, chi_err *err) {
  size_t b = 0, end = 0, i = 0;
  bool text = false;
  while (i < s->n) {
    uint32_t cp;
    size_t len = chi_utf8_get(s->s + i, &cp);
    if (!chi_is_space(cp)) {
      if (!text) b = i;
      text = true;
      end = i + len;
    }
    i += len;
  }
  if (!text && (left || right)) return 0;
  return chi_nstr_copy(out, s, left ? b : 0, right ? end : s->n, err);
}

static int strip_accents(chi_nstr *out, const chi_nstr *s, bool (*is)(uint32_t), chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp;
    size_t len = chi_utf8_get(s->s + i, &cp);
    if (!is(cp)) CHI_TRY(chi_nstr_copy(out, s, i, i + len, err));
    i += len;
  }
out:
  return rc;
}

/* BertNormalizer: control characters go, every white space is a space. */
static int bert_clean(chi_nstr *out, const chi_nstr *s, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp;
    size_t len = chi_utf8_get(s->s + i, &cp);
    if (chi_is_space(cp) && !chi_bert_dropped(cp)) {
      CHI_TRY(chi_nstr_put(out, " ", 1, s->at[i], err));
    } else if (!chi_bert_dropped(cp)) {
      CHI_TRY(chi_nstr_copy(out, s, i, i + len, err));
    }
    i += len;
  }
out:
  return rc;
}

static int bert_han(chi_nstr *out, const chi_nstr *s, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < s->n;) {
    uint32_t cp;
    size_t len = chi_utf8_get(s->s + i, &cp);
    bool han = chi_bert_han(cp);
    if (han) CHI_TRY(chi_nstr_put(out, " ", 1, s->at[i], err));
    CHI_TRY(chi_nstr_copy(out, s, i, i + len, err));
    if (han) CHI_TRY(chi_nstr_put(out, " ", 1, s->at[i], err));
    i += len;
  }
out:
  return rc;
}

static int replace(chi_nstr *out, const chi_nstr *s, const chi_norm *step, chi_matches *m, chi_err *err) {
  int rc = 0;
  size_t from = 0, len = strlen(step->text);
  CHI_TRY(chi_pattern_find(&step->pattern, s->s, s->n, m, err));
  for (size_t k = 0; k < m->n; k++) {
    CHI_TRY(chi_nstr_copy(out, s, from, m->m[k].b, err));
    CHI_TRY(chi_nstr_put(out, step->text, len, covered(s, m->m[k].b, m->m[k].e), err));
    from = m->m[k].e;
  }
  CHI_TRY(chi_nstr_copy(out, s, from, s->n, err));
out:
  return rc;
}

static int one_step(chi_nstr *out, const chi_nstr *s, const chi_norm *step, chi_matches *m, chi_err *err) {
  int rc = 0;
  switch (step->kind) {
    case CHI_NORM_PREPEND:
      CHI_TRY(chi_nstr_put(out, step->text, strlen(step->text), s->at[0], err));
      return chi_nstr_copy(out, s, 0, s->n, err);
    case CHI_NORM_REPLACE:
      return replace(out, s, step, m, err);
    case CHI_NORM_NFC:
    case CHI_NORM_NFD:
    case CHI_NORM_NFKC:
    case CHI_NORM_NFKD:
      return normal_form(out, s, step->kind, err);
    case CHI_NORM_LOWERCASE:
      return lowercase(out, s, err);
    case CHI_NORM_STRIP:
      return strip(out, s, step->left, step->right, err);
    case CHI_NORM_STRIP_ACCENTS:
      return strip_accents(out, s, chi_is_mark, err);
    case CHI_NORM_BERT_MARKS:
      return strip_accents(out, s, chi_is_nonspacing, err);
    case CHI_NORM_BERT_CLEAN:
      return bert_clean(out, s, err);
    case CHI_NORM_BERT_HAN:
      return bert_han(out, s, err);
  }
out:
  return rc;
}

int chi_norm_run(const chi_norm *step, size_t n_steps, chi_nstr *s, chi_nstr *tmp, chi_err *err) {
  int rc = 0;
  chi_matches m = {0};
  for (size_t k = 0; k < n_steps && s->n; k++) {
    tmp->n = 0;
    CHI_TRY(one_step(tmp, s, &step[k], &m, err));
    chi_nstr swap = *s;
    *s = *tmp;
    *tmp = swap;
  }
out:
  chi_free(m.m);
  return rc;
}

int chi_normalize(const chi_tokenizer *t, chi_nstr *s, chi_nstr *tmp, chi_err *err) {
  return chi_norm_run(t->norm, t->n_norm, s, tmp, err);
}

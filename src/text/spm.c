/* SentencePiece BPE: tokenizer.model files (a protobuf message) and vocabularies with scores. */
#include <stdio.h>
#include <string.h>

#include "text/tok.h"

#define MAX_PIECES ((size_t)1 << 20)
#define MAX_NORMAL 256 /* bytes of a piece that merges make: every way to cut it is looked up */

enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

/* ---- protobuf ---------------------------------------------------------------------------------------------- */
typedef struct pb {
  const uint8_t *p, *end;
} pb;
typedef struct field {
  uint32_t number;
  uint64_t value; /* varint, fixed */
  pb bytes;       /* length-delimited */
} field;

static bool varint(pb *b, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 64 && b->p < b->end; shift += 7) {
    uint8_t c = *b->p++;
    *out |= (uint64_t)(c & 0x7F) << shift;
    if (!(c & 0x80)) return true;
  }
  return false;
}

static bool fixed(pb *b, int n, uint64_t *out) {
  *out = 0;
  if (b->end - b->p < n) return false;
  for (int i = 0; i < n; i++) *out |= (uint64_t)b->p[i] << 8 * i;
  b->p += n;
  return true;
}

/* 1 = a field, 0 = the end, -1 = broken. */
static int next_field(pb *b, field *f) {
  uint64_t key, len;
  *f = (field){0};
  if (b->p == b->end) return 0;
  if (!varint(b, &key) || key >> 32) return -1;
  f->number = (uint32_t)key >> 3;
  switch (key & 7) {
    case 0:
      return varint(b, &f->value) ? 1 : -1;
    case 1:
      return fixed(b, 8, &f->value) ? 1 : -1;
    case 5:
      return fixed(b, 4, &f->value) ? 1 : -1;
    case 2:
      if (!varint(b, &len) || len > (uint64_t)(b->end - b->p)) return -1;
      f->bytes = (pb){b->p, b->p + len};
      b->p += len;
      return 1;
    default:
      return -1;
  }
}

/* ---- tokenizer.model --------------------------------------------------------------------------------------- */
typedef struct spm_file {
  size_t n, cap[3];
  const char **piece;
  float *score;
  uint8_t *type;
  int64_t model_type, unk, bos, eos;
  bool byte_fallback, space_suffix, dummy_prefix, squeeze, escape, rules;
} spm_file;

static int push_piece(spm_file *m, chi_arena *arena, pb b, chi_err *err) {
  field f;
  int more;
  pb text = {0};
  uint64_t type = NORMAL;
  uint32_t bits = 0;
  while ((more = next_field(&b, &f)) > 0) {
    if (f.number == 1) text = f.bytes;
    if (f.number == 2) bits = (uint32_t)f.value;
    if (f.number == 3) type = f.value;
  }
  size_t len = text.p ? (size_t)(text.end - text.p) : 0;
  if (more < 0 || !len || type < NORMAL || type > BYTE || chi_utf8_valid((const char *)text.p, len) != len ||
      memchr(text.p, 0, len))
    return chi_fail(err, CHI_ERR_FORMAT, "piece %zu is broken", m->n);
  if (m->n >= MAX_PIECES) return chi_fail(err, CHI_ERR_UNSUPPORTED, "more than %zu pieces", MAX_PIECES);
  void *list[] = {(void *)m->piece, m->score, m->type};
  static const size_t size[] = {sizeof *m->piece, sizeof *m->score, sizeof *m->type};
  int rc = 0;
  for (int k = 0; k < 3 && rc == 0; k++) rc = chi_grow(&list[k], &m->cap[k], m->n + 1, size[k], err);
  m->piece = list[0];
  m->score = list[1];
  m->type = list[2];
  char *s = rc ? NULL : chi_arena_array(arena, len + 1, 1, err);
  if (!s) return CHI_ERR_MEMORY;
  memcpy(s, text.p, len);
  m->piece[m->n] = s;
  memcpy(&m->score[m->n], &bits, sizeof bits);
  m->type[m->n++] = (uint8_t)type;
  return 0;
}

static bool read_spec(spm_file *m, pb b, bool trainer) {
  field f;
  int more;
  while ((more = next_field(&b, &f)) > 0) {
    if (trainer) {
      if (f.number == 3) m->model_type = (int64_t)f.value;
      if (f.number == 24) m->space_suffix = f.value != 0;
      if (f.number == 35) m->byte_fallback = f.value != 0;
      if (f.number == 40) m->unk = (int32_t)f.value;
      if (f.number == 41) m->bos = (int32_t)f.value;
      if (f.number == 42) m->eos = (int32_t)f.value;
    } else {
      if (f.number == 2) m->rules |= f.bytes.p != f.bytes.end;
      if (f.number == 3) m->dummy_prefix = f.value != 0;
      if (f.number == 4) m->squeeze = f.value != 0;
      if (f.number == 5) m->escape = f.value != 0;
      if (f.number == 6) m->rules |= f.bytes.p != f.bytes.end;
    }
  }
  return more == 0;
}

static int read_file(spm_file *m, chi_arena *arena, pb b, chi_err *err) {
  field f;
  int more;
  *m = (spm_file){.model_type = 1, .bos = 1, .eos = 2, .dummy_prefix = true, .squeeze = true, .escape = true};
  while ((more = next_field(&b, &f)) > 0) {
    if (f.number == 1) {
      int rc = push_piece(m, arena, f.bytes, err);
      if (rc) return rc;
    }
    if ((f.number == 2 || f.number == 3) && !read_spec(m, f.bytes, f.number == 2)) more = -1;
    if (more < 0) break;
  }
  if (more < 0 || m->n == 0)
    return chi_fail(err, CHI_ERR_FORMAT, "not a SentencePiece model, or cut off (after %zu pieces)", m->n);
  return 0;
}

static int check_kind(const spm_file *m, chi_err *err) {
  const char *why = m->model_type == 1   ? "a unigram model"
                    : m->model_type != 2 ? "not a BPE model"
                    : !m->byte_fallback  ? "without byte fallback"
                    : m->rules           ? "with normalization rules"
                    : m->squeeze         ? "with white space removed"
                    : !m->escape         ? "with white space not escaped"
                    : m->space_suffix    ? "with white space as a suffix"
                    : m->model_type == 2 ? NULL
                                         : "";
  if (!why) return 0;
  return chi_fail(err, CHI_ERR_UNSUPPORTED,
                  "a SentencePiece file %s; write tokenizer.json with tools/convert/tokenizer.py FOLDER", why);
}

/* ---- scores to merges -------------------------------------------------------------------------------------- */
typedef struct ranked {
  float score;
  int32_t id;
} ranked;

static bool before(ranked a, ranked b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

static void merge_sort(ranked *r, ranked *tmp, size_t n) {
  if (n < 2) return;
  size_t half = n / 2, i = 0, j = half, k = 0;
  merge_sort(r, tmp, half);
  merge_sort(r + half, tmp, n - half);
  while (i < half || j < n) tmp[k++] = j == n || (i < half && !before(r[j], r[i])) ? r[i++] : r[j++];
  memcpy(r, tmp, n * sizeof *r);
}

static int32_t normal_id(const chi_tokenizer *t, const chi_spm *m, const char *s, size_t n) {
  int32_t id = chi_strmap_get(&t->vocab, s, n);
  return id >= 0 && m->type[id] == NORMAL ? id : -1;
}

/* Every way to make one piece out of two, under one rank: the place in the text decides between them. */
static int add_merges(chi_tokenizer *t, const chi_spm *m, int32_t id, uint64_t rank, chi_err *err) {
  int rc = 0;
  const char *s = m->piece[id];
  size_t n = strlen(s);
  if (n > MAX_NORMAL)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "piece %d has %zu bytes; at most %d are read", (int)id, n, MAX_NORMAL);
  for (size_t i = 1; i < n; i++) {
    if (((uint8_t)s[i] & 0xC0) == 0x80) continue;
    int32_t left = normal_id(t, m, s, i), right = left < 0 ? -1 : normal_id(t, m, s + i, n - i);
    if (right < 0) continue;
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    CHI_TRY(chi_u64map_put(&t->merges, pair, rank << 32 | (uint32_t)id, err));
  }
out:
  return rc;
}

static int fill_merges(chi_tokenizer *t, const chi_spm *m, chi_err *err) {
  int rc = 0;
  size_t n = 0;
  uint64_t rank = 0;
  ranked *r = chi_calloc(m->n, 2 * sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < m->n; i++) {
    if (m->type[i] != NORMAL) continue;
    if (m->score[i] != m->score[i]) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "the score of piece %zu is not a number", i);
      goto out;
    }
    r[n++] = (ranked){m->score[i], (int32_t)i};
  }
  merge_sort(r, r + m->n, n);
  for (size_t k = 0; k < n; k++) {
    if (k && r[k].score < r[k - 1].score) rank++;
    CHI_TRY(add_merges(t, m, r[k].id, rank, err));
  }
out:
  chi_free(r);
  return rc;
}

/* ---- the rest of the tokenizer, as tokenizer.json would say it ---------------------------------------------- */
static int vocab_of(json_t *vocab, json_t *added, const chi_spm *m, const char **unk, chi_err *err) {
  size_t bytes = 0;
  if (m->n > MAX_PIECES) return chi_fail(err, CHI_ERR_UNSUPPORTED, "more than %zu pieces", MAX_PIECES);
  for (size_t i = 0; i < m->n; i++) {
    const char *s = m->piece[i];
    if (json_object_get(vocab, s)) return chi_fail(err, CHI_ERR_FORMAT, "piece \"%.40s\" is there twice", s);
    if (json_object_set_new(vocab, s, json_integer((json_int_t)i)) != 0)
      return chi_fail(err, CHI_ERR_FORMAT, "piece %zu is not valid UTF-8", i);
    if (m->type[i] == UNUSED)
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "piece \"%.40s\" is marked as unused, which is not supported", s);
    if (m->type[i] == UNKNOWN) *unk = s;
    bytes += m->type[i] == BYTE;
    if (m->type[i] != CONTROL && m->type[i] != USER_DEFINED && m->type[i] != UNKNOWN) continue;
    json_t *o = json_pack("{s:s, s:I, s:b, s:b}", "content", s, "id", (json_int_t)i, "special",
                          m->type[i] != USER_DEFINED, "normalized", 0);
    if (json_array_append_new(added, o) != 0) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  if (bytes != 256) return chi_fail(err, CHI_ERR_FORMAT, "%zu byte pieces; 256 are needed", bytes);
  return 0;
}

static json_t *replace_step(const char *type, const char *from, const char *to) {
  return json_pack("{s:s, s:{s:s}, s:s}", "type", type, "pattern", "String", from, "content", to);
}

/* White space: legacy tokenizers put the dummy prefix before every stretch of text, later ones before the first. */
static void put_steps(json_t *root, const chi_spm *m) {
  static const char space[] = "\xE2\x96\x81";
  json_t *dec =
      json_pack("[o, {s:s}, {s:s}]", replace_step("Replace", space, " "), "type", "ByteFallback", "type", "Fuse");
  if (m->dummy_prefix)
    json_array_append_new(dec,
                          json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
  json_object_set_new(root, "decoder", json_pack("{s:s, s:o}", "type", "Sequence", "decoders", dec));
  if (m->dummy_prefix && !m->legacy) {
    json_object_set_new(root, "pre_tokenizer",
                        json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", space, "prepend_scheme",
                                  "first", "split", 0));
    return;
  }
  json_t *norm = json_array();
  if (m->dummy_prefix) json_array_append_new(norm, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", space));
  json_array_append_new(norm, replace_step("Replace", " ", space));
  json_object_set_new(root, "normalizer", json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", norm));
}

static int from_spm(chi_tokenizer **out, const chi_spm *m, const char *what, chi_err *err) {
  int rc = 0;
  const char *unk = NULL;
  chi_tokenizer *t = NULL;
  json_t *vocab = json_object(), *added = json_array();
  json_t *root = json_pack("{s:{s:s, s:b, s:b, s:O, s:[]}, s:O}", "model", "type", "BPE", "fuse_unk", 1,
                           "byte_fallback", 1, "vocab", vocab, "merges", "added_tokens", added);
  *out = NULL;
  if (!root) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "%s: out of memory", what);
    goto out;
  }
  rc = vocab_of(vocab, added, m, &unk, err);
  bool ids = m->bos < (int64_t)m->n && m->eos < (int64_t)m->n;
  if (rc == 0 && !ids) rc = chi_fail(err, CHI_ERR_FORMAT, "the BOS or EOS id is outside the vocabulary");
  if (rc) {
    chi_err_prefix(err, what);
    goto out;
  }
  if (unk) json_object_set_new(json_object_get(root, "model"), "unk_token", json_string(unk));
  json_object_set_new(root, "post_processor", chi_tok_around(m->add_bos ? m->bos : -1, m->add_eos ? m->eos : -1));
  put_steps(root, m);
  CHI_TRY(chi_tok_new(&t, root, what, err));
  rc = fill_merges(t, m, err);
  if (rc) {
    chi_err_prefix(err, what);
    goto out;
  }
  t->bos = m->bos;
  t->eos = m->eos;
  *out = t;
  t = NULL;
out:
  chi_tokenizer_free(t);
  json_decref(root);
  json_decref(vocab);
  json_decref(added);
  return rc;
}

int chi_tok_spm(chi_tokenizer **out, const uint8_t *bytes, size_t len, const chi_spm *how, const char *what,
                chi_err *err) {
  int rc = 0;
  spm_file m;
  chi_arena arena = {0};
  *out = NULL;
  rc = read_file(&m, &arena, (pb){bytes, bytes + len}, err);
  if (rc == 0) rc = check_kind(&m, err);
  if (rc) {
    chi_err_prefix(err, what);
    goto out;
  }
  chi_spm spm = {.add_bos = true, .legacy = true, .bos = (int32_t)m.bos, .eos = (int32_t)m.eos};
  if (how) spm = *how;
  spm.n = m.n;
  spm.piece = m.piece;
  spm.score = m.score;
  spm.type = m.type;
  spm.dummy_prefix = m.dummy_prefix;
  rc = from_spm(out, &spm, what, err);
out:
  chi_free((void *)m.piece);
  chi_free(m.score);
  chi_free(m.type);
  chi_arena_free(&arena);
  return rc;
}

int chi_tokenizer_parse_spm(chi_tokenizer **out, const uint8_t *bytes, size_t len, const char *what, chi_err *err) {
  return chi_tok_spm(out, bytes, len, NULL, what, err);
}

/* Hash tables and the trie: open addressing, linear probing, at most two thirds full, filled once at load. */
#include "text/tok.h"

#include <string.h>

static size_t grown(size_t cap) { return cap ? cap * 2 : 64; }

static chi_strmap_entry *str_slot(const chi_strmap *m, const char *s, size_t len) {
  size_t i = (size_t)chi_fnv64(s, len, 0);
  i ^= i >> 29; /* FNV's low bits alone are weak on short keys */
  for (;; i++) {
    chi_strmap_entry *e = &m->e[i & (m->cap - 1)];
    if (!e->s || (e->len == len && memcmp(e->s, s, len) == 0)) return e;
  }
}

int chi_strmap_put(chi_strmap *m, const char *s, size_t len, int32_t id, chi_err *err) {
  if (len > UINT32_MAX) return chi_fail(err, CHI_ERR_FORMAT, "a token of %zu bytes is too long", len);
  if (m->n + 1 > m->cap / 3 * 2) {
    chi_strmap big = {.cap = grown(m->cap), .n = m->n};
    big.e = chi_calloc(big.cap, sizeof *big.e, err);
    if (!big.e) return CHI_ERR_MEMORY;
    for (size_t i = 0; i < m->cap; i++)
      if (m->e[i].s) *str_slot(&big, m->e[i].s, m->e[i].len) = m->e[i];
    chi_free(m->e);
    *m = big;
  }
  chi_strmap_entry *e = str_slot(m, s, len);
  if (!e->s) m->n++;
  *e = (chi_strmap_entry){.s = s, .len = (uint32_t)len, .id = id};
  return 0;
}

int32_t chi_strmap_get(const chi_strmap *m, const char *s, size_t len) {
  if (!m->cap) return -1;
  const chi_strmap_entry *e = str_slot(m, s, len);
  return e->s ? e->id : -1;
}

void chi_strmap_free(chi_strmap *m) {
  chi_free(m->e);
  memset(m, 0, sizeof *m);
}

/* Keys are stored plus one, so that 0 is an empty slot. Callers' keys stay below 2^63. */
static size_t u64_slot(const chi_u64map *m, uint64_t key) {
  uint64_t h = key * 0x9E3779B97F4A7C15u;
  h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
  h ^= h >> 32;
  for (size_t i = (size_t)h;; i++) {
    size_t at = i & (m->cap - 1);
    if (m->key[at] == 0 || m->key[at] == key + 1) return at;
  }
}

int chi_u64map_put(chi_u64map *m, uint64_t key, uint64_t val, chi_err *err) {
  if (m->n + 1 > m->cap / 3 * 2) {
    chi_u64map big = {.cap = grown(m->cap), .n = m->n};
    big.key = chi_calloc(big.cap, sizeof *big.key, err);
    big.val = chi_calloc(big.cap, sizeof *big.val, err);
    if (!big.key || !big.val) {
      chi_u64map_free(&big);
      return CHI_ERR_MEMORY;
    }
    for (size_t i = 0; i < m->cap; i++) {
      if (!m->key[i]) continue;
      size_t at = u64_slot(&big, m->key[i] - 1);
      big.key[at] = m->key[i];
      big.val[at] = m->val[i];
    }
    chi_free(m->key);
    chi_free(m->val);
    *m = big;
  }
  size_t at = u64_slot(m, key);
  if (!m->key[at]) m->n++;
  m->key[at] = key + 1;
  m->val[at] = val;
  return 0;
}

bool chi_u64map_get(const chi_u64map *m, uint64_t key, uint64_t *val) {
  if (!m->cap) return false;
  size_t at = u64_slot(m, key);
  *val = m->val[at];
  return m->key[at] != 0;
}

void chi_u64map_free(chi_u64map *m) {
  chi_free(m->key);
  chi_free(m->val);
  memset(m, 0, sizeof *m);
}

static int trie_node(chi_trie *t, chi_err *err) {
  void *p = t->id;
  int rc = chi_grow(&p, &t->cap, t->n + 1, sizeof *t->id, err);
  t->id = p;
  if (rc == 0) t->id[t->n++] = -1;
  return rc;
}

int chi_trie_add(chi_trie *t, const char *s, size_t len, int32_t id, chi_err *err) {
  int rc = 0;
  uint64_t node = 0;
  if (t->n == 0) CHI_TRY(trie_node(t, err));
  for (size_t i = 0; i < len; i++) {
    uint64_t edge = node << 8 | (uint8_t)s[i], next;
    if (!chi_u64map_get(&t->edge, edge, &next)) {
      next = t->n;
      CHI_TRY(trie_node(t, err));
      CHI_TRY(chi_u64map_put(&t->edge, edge, next, err));
    }
    node = next;
  }
  if (t->id[node] < 0) t->id[node] = id;
out:
  return rc;
}

size_t chi_trie_match(const chi_trie *t, const char *s, size_t n, int32_t *id) {
  size_t best = 0;
  uint64_t node = 0;
  for (size_t i = 0; i < n && chi_u64map_get(&t->edge, node << 8 | (uint8_t)s[i], &node); i++) {
    if (t->id[node] >= 0) {
      best = i + 1;
      *id = t->id[node];
    }
  }
  return best;
}

void chi_trie_free(chi_trie *t) {
  chi_u64map_free(&t->edge);
  chi_free(t->id);
  memset(t, 0, sizeof *t);
}

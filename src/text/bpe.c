/* Byte pair encoding of one piece: symbols in a linked list, candidate merges in a heap ordered by rank, then position.
 * n log n in the bytes of the piece; entries whose symbols have changed are recognised when they come up. */
#include "text/tok.h"

#include <string.h>

typedef struct symbol {
  int32_t id;         /* -1 = merged into its left neighbour */
  int32_t prev, next; /* -1 = none */
  int32_t b, e;       /* bytes of the piece */
} symbol;

typedef struct candidate {
  uint64_t order; /* rank << 32 | position of the left symbol */
  int32_t new_id;
} candidate;

struct chi_bpe {
  symbol *sym;
  candidate *heap;
  size_t n_sym, sym_cap, n_heap, heap_cap;
};

int chi_bpe_new(chi_bpe **out, chi_err *err) {
  *out = chi_calloc(1, sizeof **out, err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

void chi_bpe_free(chi_bpe *b) {
  if (!b) return;
  chi_free(b->sym);
  chi_free(b->heap);
  chi_free(b);
}

static int heap_push(chi_bpe *b, candidate c, chi_err *err) {
  void *p = b->heap;
  int rc = chi_grow(&p, &b->heap_cap, b->n_heap + 1, sizeof *b->heap, err);
  b->heap = p;
  if (rc) return rc;
  size_t i = b->n_heap++;
  for (; i && b->heap[(i - 1) / 2].order > c.order; i = (i - 1) / 2) b->heap[i] = b->heap[(i - 1) / 2];
  b->heap[i] = c;
  return 0;
}

static candidate heap_pop(chi_bpe *b) {
  candidate top = b->heap[0], last = b->heap[--b->n_heap];
  size_t i = 0, child;
  while ((child = 2 * i + 1) < b->n_heap) {
    if (child + 1 < b->n_heap && b->heap[child + 1].order < b->heap[child].order) child++;
    if (b->heap[child].order >= last.order) break;
    b->heap[i] = b->heap[child];
    i = child;
  }
  b->heap[i] = last;
  return top;
}

static int push_symbol(chi_bpe *b, int32_t id, size_t begin, size_t end, chi_err *err) {
  void *p = b->sym;
  int rc = chi_grow(&p, &b->sym_cap, b->n_sym + 1, sizeof *b->sym, err);
  b->sym = p;
  if (rc) return rc;
  int32_t at = (int32_t)b->n_sym++;
  b->sym[at] = (symbol){.id = id, .prev = at - 1, .next = -1, .b = (int32_t)begin, .e = (int32_t)end};
  if (at) b->sym[at - 1].next = at;
  return 0;
}

/* Characters -> vocabulary entries, else bytes, else the unknown token (nothing when the model has none). As in the
 * reference, an unknown that is still open stays open across byte tokens and lands after them. */
static int first_symbols(const chi_tokenizer *t, chi_bpe *b, const char *s, size_t n, chi_err *err) {
  int rc = 0;
  bool open = false;
  size_t unk_b = 0, unk_e = 0;
  b->n_sym = 0;
  for (size_t i = 0, len; i < n; i += len) {
    uint32_t cp;
    len = chi_utf8_get(s + i, &cp);
    int32_t id = chi_strmap_get(&t->vocab, s + i, len);
    if (id >= 0) {
      if (open) CHI_TRY(push_symbol(b, t->unk, unk_b, unk_e, err));
      open = false;
      CHI_TRY(push_symbol(b, id, i, i + len, err));
      continue;
    }
    bool bytes = t->byte_fallback;
    for (size_t k = 0; k < len && bytes; k++) bytes = t->byte_id[(uint8_t)s[i + k]] >= 0;
    if (bytes) {
      for (size_t k = 0; k < len; k++) CHI_TRY(push_symbol(b, t->byte_id[(uint8_t)s[i + k]], i + k, i + k + 1, err));
      continue;
    }
    if (t->unk < 0) continue;
    if (open && !t->fuse_unk) CHI_TRY(push_symbol(b, t->unk, unk_b, unk_e, err));
    if (!open || !t->fuse_unk) unk_b = i;
    unk_e = i + len;
    open = true;
  }
  if (open) CHI_TRY(push_symbol(b, t->unk, unk_b, unk_e, err));
out:
  return rc;
}

static int offer(const chi_tokenizer *t, chi_bpe *b, int32_t left, int32_t right, chi_err *err) {
  uint64_t val, key = (uint64_t)b->sym[left].id << 32 | (uint32_t)b->sym[right].id;
  if (!chi_u64map_get(&t->merges, key, &val)) return 0;
  candidate c = {.order = (val >> 32) << 32 | (uint32_t)left, .new_id = (int32_t)(val & 0xFFFFFFFFu)};
  return heap_push(b, c, err);
}

static int merge(const chi_tokenizer *t, chi_bpe *b, chi_err *err) {
  int rc = 0;
  b->n_heap = 0;
  for (size_t i = 1; i < b->n_sym; i++) CHI_TRY(offer(t, b, (int32_t)i - 1, (int32_t)i, err));
  while (b->n_heap) {
    candidate c = heap_pop(b);
    int32_t at = (int32_t)(c.order & 0xFFFFFFFFu);
    symbol *left = &b->sym[at];
    if (left->id < 0 || left->next < 0) continue;
    symbol *right = &b->sym[left->next];
    uint64_t val, key = (uint64_t)left->id << 32 | (uint32_t)right->id;
    if (!chi_u64map_get(&t->merges, key, &val) || (int32_t)(val & 0xFFFFFFFFu) != c.new_id) continue; /* out of date */
    left->id = c.new_id;
    left->e = right->e;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0) b->sym[left->next].prev = at;
    if (left->prev >= 0) CHI_TRY(offer(t, b, left->prev, at, err));
    if (left->next >= 0) CHI_TRY(offer(t, b, at, left->next, err));
  }
out:
  return rc;
}

int chi_bpe_piece(const chi_tokenizer *t, chi_bpe *b, const char *s, const chi_range *at, size_t n, chi_tokens *out,
                  chi_err *err) {
  int rc = 0;
  if (t->ignore_merges) {
    int32_t id = chi_strmap_get(&t->vocab, s, n);
    if (id >= 0) return chi_tokens_push(out, id, (chi_range){at[0].b, at[n - 1].e}, err);
  }
  CHI_TRY(first_symbols(t, b, s, n, err));
  CHI_TRY(merge(t, b, err));
  for (int32_t i = b->n_sym ? 0 : -1; i >= 0; i = b->sym[i].next) {
    const symbol *y = &b->sym[i];
    CHI_TRY(chi_tokens_push(out, y->id, (chi_range){at[y->b].b, at[y->e - 1].e}, err));
  }
out:
  return rc;
}

#include "base/base.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 64u
#define BLOCK_MIN ((size_t)64 << 10)
#define BLOCK_MAX ((size_t)8 << 20)

typedef struct block {
  struct block *next;
  size_t used, cap; /* of the bytes after the header, which is ALIGN bytes long */
} block;

static size_t round_up(size_t n) { return (n + (ALIGN - 1)) & ~(size_t)(ALIGN - 1); }

void *chi_calloc(size_t n, size_t size, chi_err *err) {
  size_t bytes;
  if (__builtin_mul_overflow(n, size, &bytes) || bytes > PTRDIFF_MAX - ALIGN) {
    chi_fail(err, CHI_ERR_MEMORY, "%zu elements of %zu bytes are more than memory can address", n, size);
    return NULL;
  }
  bytes = bytes ? round_up(bytes) : ALIGN;
  void *p = aligned_alloc(ALIGN, bytes);
  if (!p) {
    chi_fail(err, CHI_ERR_MEMORY, "out of memory: %zu bytes were refused", bytes);
    return NULL;
  }
  memset(p, 0, bytes);
  return p;
}

void chi_free(void *p) { free(p); }

int chi_grow(void **p, size_t *cap, size_t need, size_t size, chi_err *err) {
  if (*p && need <= *cap) return 0;
  size_t want = *cap < 8 ? 8 : *cap + *cap / 2;
  if (want < need) want = need;
  size_t bytes;
  if (__builtin_mul_overflow(want, size, &bytes) || bytes > PTRDIFF_MAX) {
    return chi_fail(err, CHI_ERR_MEMORY, "%zu elements of %zu bytes are more than memory can address", want, size);
  }
  void *bigger = realloc(*p, bytes ? bytes : 1);
  if (!bigger) return chi_fail(err, CHI_ERR_MEMORY, "out of memory: %zu bytes were refused", bytes);
  size_t old = *p ? *cap * size : 0;
  memset((char *)bigger + old, 0, bytes - old);
  *p = bigger;
  *cap = want;
  return 0;
}

/* align = ALIGN for data, 1 for strings (a vocabulary has a hundred thousand of them). */
static void *take(chi_arena *a, size_t bytes, size_t align, chi_err *err) {
  if (bytes > PTRDIFF_MAX - 2 * ALIGN) {
    chi_fail(err, CHI_ERR_MEMORY, "%zu bytes are more than memory can address", bytes);
    return NULL;
  }
  block *b = a->head;
  size_t at = b ? (b->used + (align - 1)) & ~(align - 1) : 0;
  if (!b || at > b->cap || b->cap - at < bytes) {
    size_t cap = b ? b->cap * 2 : BLOCK_MIN;
    if (cap < BLOCK_MIN) cap = BLOCK_MIN;
    if (cap > BLOCK_MAX) cap = BLOCK_MAX;
    bool own = bytes > cap / 4; /* a large request gets a block of its own, behind the current one */
    if (own) cap = bytes ? round_up(bytes) : ALIGN;
    block *fresh = chi_calloc(1, ALIGN + cap, err);
    if (!fresh) return NULL;
    fresh->cap = cap;
    if (own && b) {
      fresh->next = b->next;
      b->next = fresh;
    } else {
      fresh->next = b;
      a->head = fresh;
    }
    b = fresh;
    at = 0;
  }
  b->used = at + bytes;
  a->bytes += bytes;
  return (char *)b + ALIGN + at;
}

void *chi_arena_alloc(chi_arena *a, size_t bytes, chi_err *err) { return take(a, bytes ? bytes : 1, ALIGN, err); }

void *chi_arena_array(chi_arena *a, size_t n, size_t size, chi_err *err) {
  size_t bytes;
  if (__builtin_mul_overflow(n, size, &bytes)) {
    chi_fail(err, CHI_ERR_MEMORY, "%zu elements of %zu bytes are more than memory can address", n, size);
    return NULL;
  }
  return chi_arena_alloc(a, bytes, err);
}

char *chi_arena_strdup(chi_arena *a, const char *s, chi_err *err) {
  size_t n = strlen(s) + 1;
  char *copy = take(a, n, 1, err);
  if (copy) memcpy(copy, s, n);
  return copy;
}

void chi_arena_free(chi_arena *a) {
  block *b = a->head;
  while (b) {
    block *next = b->next;
    chi_free(b);
    b = next;
  }
  a->head = NULL;
  a->bytes = 0;
}

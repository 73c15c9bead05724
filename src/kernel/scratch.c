/* Two growable scratch buffers per thread, so that no kernel allocates in its loops. */
#include <pthread.h>
#include <stdlib.h>

#include "kernel/table.h"

typedef struct buffer {
  void *p;
  size_t cap;
} buffer;
typedef struct scratch {
  buffer own, shared;
} scratch;

static pthread_key_t scratch_key;
static bool scratch_key_made;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_free(void *ud) {
  scratch *s = ud;
  if (s != NULL) free(s->own.p);
  if (s != NULL) free(s->shared.p);
  free(s);
}

static void scratch_make_key(void) { scratch_key_made = pthread_key_create(&scratch_key, scratch_free) == 0; }

static scratch *mine(void) {
  if (pthread_once(&scratch_once, scratch_make_key) != 0 || !scratch_key_made) return NULL;
  scratch *s = pthread_getspecific(scratch_key);
  if (s == NULL) {
    s = calloc(1, sizeof *s);
    if (s == NULL || pthread_setspecific(scratch_key, s) != 0) {
      free(s);
      return NULL;
    }
  }
  return s;
}

static void *grown(buffer *b, size_t bytes) {
  if (b->cap >= bytes && b->p != NULL) return b->p;
  if (bytes > SIZE_MAX / 2) return NULL;
  size_t cap = (bytes + bytes / 4 + 4096) & ~(size_t)4095;
  free(b->p);
  b->cap = 0;
  b->p = aligned_alloc(4096, cap);
  if (b->p != NULL) b->cap = cap;
  return b->p;
}

void *chi_scratch(size_t bytes) {
  scratch *s = mine();
  return s ? grown(&s->own, bytes) : NULL;
}

void *chi_scratch_shared(size_t bytes) {
  scratch *s = mine();
  return s ? grown(&s->shared, bytes) : NULL;
}

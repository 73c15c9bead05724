/* One growable scratch buffer per thread, so that no kernel allocates in its loops. */
#include <pthread.h>
#include <stdlib.h>

#include "kernel/table.h"

typedef struct scratch {
  void *p;
  size_t cap;
} scratch;

static pthread_key_t scratch_key;
static bool scratch_key_made;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_free(void *ud) {
  scratch *s = ud;
  if (s != NULL) free(s->p);
  free(s);
}

static void scratch_make_key(void) { scratch_key_made = pthread_key_create(&scratch_key, scratch_free) == 0; }

void *chi_scratch(size_t bytes) {
  if (pthread_once(&scratch_once, scratch_make_key) != 0 || !scratch_key_made) return NULL;
  scratch *s = pthread_getspecific(scratch_key);
  if (s == NULL) {
    s = calloc(1, sizeof *s);
    if (s == NULL || pthread_setspecific(scratch_key, s) != 0) {
      free(s);
      return NULL;
    }
  }
  if (s->cap >= bytes && s->p != NULL) return s->p;
  if (bytes > SIZE_MAX / 2) return NULL;
  size_t cap = (bytes + bytes / 4 + 4096) & ~(size_t)4095;
  free(s->p);
  s->cap = 0;
  s->p = aligned_alloc(4096, cap);
  if (s->p != NULL) s->cap = cap;
  return s->p;
}

/* Random networks without files: every shape of block that the spec can express, small and awkward. For tests of the
 * executors, which must agree on any of them. */
#ifndef CHI_TEST_RANDNET_H
#define CHI_TEST_RANDNET_H

#include "nn/net.h"

/* A small random generator of its own: a test's choices must not change when the library's numbers do. */
typedef struct rnd { uint64_t s; } rnd;
uint32_t rnd_u32(rnd *r);
int32_t rnd_range(rnd *r, int32_t lo, int32_t hi); /* [lo, hi) */
bool rnd_chance(rnd *r, double p);
float rnd_normal(rnd *r);                          /* close to N(0, 1), within +-6 */

enum { RANDNET_PICTURES = 3, RANDNET_VOCAB = 53 };

typedef struct randnet {
  chi_net net;
  void *embed;                     /* what net.decoder.embed points at */
  float *pixels[RANDNET_PICTURES]; /* with a tower: pictures to run */
} randnet;

typedef struct randnet_opts {
  uint64_t seed;
  int vision;  /* -1 = random, 0 = none, 1 = with tower and projector */
  int compute; /* -1 = random, else a chi_compute */
  bool post_norm; /* some stacks take their norms after the sum */
  bool qformer; /* with vision: a Q-Former and a projector of one or two layers behind the tower */
} randnet_opts;

/* Fails the running test where memory is short. */
void randnet_make(randnet *r, const randnet_opts *o);
void randnet_free(randnet *r);
/* One line: which network this is, for messages. One of 4 static buffers. */
const char *randnet_name(const randnet *r);

#endif

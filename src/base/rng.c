#include "base/base.h"

#include <math.h>

typedef struct words {
  uint32_t w[4];
} words;

/* Philox4x32-10 (Salmon et al., SC 2011): a bijection of the counter, keyed by the seed. */
static words philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0;
    uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (words){{c0, c1, c2, c3}};
}

/* The last counter word keeps integers and normals of the same index independent. */
uint32_t chi_rng_u32(uint64_t seed, uint32_t stream, uint32_t row, uint32_t col) {
  return philox(seed, col, row, stream, 0).w[0];
}

float chi_rng_normal(uint64_t seed, uint32_t stream, uint32_t row, uint32_t col) {
  words r = philox(seed, col, row, stream, 1);
  double u = ((double)r.w[0] + 0.5) * 0x1p-32; /* in (0, 1): log is finite */
  double angle = 6.283185307179586477 * (((double)r.w[1] + 0.5) * 0x1p-32);
  double s, c;
  chi_sincos64(angle, &s, &c);
  return (float)(sqrt(-2.0 * chi_log64(u)) * c); /* sqrt is correctly rounded by IEEE 754 */
}

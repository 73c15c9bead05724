/* The Q-Former's surroundings; see qformer.h. */
#include "nn/qformer.h"

void chi_qformer_embed(const chi_qformer *q, const float *x, float *y, int64_t m) {
  chi_norm_rows(&q->spec, &q->embed, x, y, m, q->spec.d);
}

void chi_qformer_free(chi_qformer *q) {
  for (int32_t i = 0; q->block && i < q->spec.layers; i++) chi_block_free(&q->block[i]);
  chi_free(q->block);
  chi_free(q->query);
  chi_norm_free(&q->embed);
  *q = (chi_qformer){0};
}

/* Weights of the four neighbours around a point, a = -0.75; t in [0, 1). */
static void cubic(float t, float c[4]) {
  const float a = -0.75f;
  float u = t + 1.0f;
  c[0] = ((a * u - 5.0f * a) * u + 8.0f * a) * u - 4.0f * a;
  c[1] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
  u = 1.0f - t;
  c[2] = ((a + 2.0f) * u - (a + 3.0f)) * u * u + 1.0f;
  u += 1.0f;
  c[3] = ((a * u - 5.0f * a) * u + 8.0f * a) * u - 4.0f * a;
}

/* Source places and weights of output place i of n2, from n. */
static void places(int32_t i, int32_t n, int32_t n2, int32_t at[4], float c[4]) {
  float x = ((float)i + 0.5f) * ((float)n / (float)n2) - 0.5f;
  int32_t x0 = (int32_t)x - (x < 0.0f && (float)(int32_t)x != x); /* floor */
  cubic(x - (float)x0, c);
  for (int32_t k = 0; k < 4; k++) {
    int32_t p = x0 - 1 + k;
    at[k] = p < 0 ? 0 : p >= n ? n - 1 : p;
  }
}

void chi_positions_resize(const float *in, int32_t h, int32_t w, float *out, int32_t h2, int32_t w2, int64_t d) {
  for (int32_t y = 0; y < h2; y++) {
    int32_t ya[4], xa[4];
    float yc[4], xc[4];
    places(y, h, h2, ya, yc);
    for (int32_t x = 0; x < w2; x++) {
      places(x, w, w2, xa, xc);
      float *o = out + ((int64_t)y * w2 + x) * d;
      for (int64_t k = 0; k < d; k++) {
        float sum = 0.0f;
        for (int r = 0; r < 4; r++) {
          const float *row = in + (int64_t)ya[r] * w * d + k;
          float s = row[xa[0] * d] * xc[0] + row[xa[1] * d] * xc[1] + row[xa[2] * d] * xc[2] + row[xa[3] * d] * xc[3];
          sum += s * yc[r];
        }
        o[k] = sum;
      }
    }
  }
}

/* The head applied to parts of a state; see projection.h. */
#include "analyze/projection.h"

#include <math.h>
#include <string.h>

chi_projection chi_projection_of(const chi_net *net, const float *h, double eps) {
  int64_t d = net->decoder.spec.d;
  bool layer = net->decoder.spec.norm == CHI_NORM_LAYER;
  double sum = 0, sq = 0;
  for (int64_t i = 0; i < d; i++) sum += (double)h[i];
  double mean = layer ? sum / (double)d : 0;
  for (int64_t i = 0; i < d; i++) sq += ((double)h[i] - mean) * ((double)h[i] - mean);
  sq /= (double)d;
  return (chi_projection){net, sq, (float)(1.0 / sqrt(sq + (eps < 0 ? (double)net->decoder.spec.eps : eps)))};
}

/* Both parts as one tall matrix: the weights are read once. */
int chi_product_fine(const chi_mat *w, const float *x, float *y, int64_t m, chi_err *err) {
  int rc = 0;
  size_t nx = (size_t)(m * w->k), ny = (size_t)(m * w->n);
  if (w->compute != CHI_COMPUTE_BF16) return chi_gemm(w, x, w->k, y, w->n, m, NULL, err);
  float *part = chi_calloc(2 * nx, sizeof *part, err), *out = chi_calloc(2 * ny, sizeof *out, err);
  CHI_TRY(part && out ? 0 : CHI_ERR_MEMORY);
  memcpy(part, x, nx * sizeof *part);
  chi_rows_round_bf16(part, w->k, m, w->k);
  for (size_t i = 0; i < nx; i++) part[nx + i] = x[i] - part[i]; /* exact */
  CHI_TRY(chi_gemm(w, part, w->k, out, w->n, 2 * m, NULL, err));
  memcpy(y, out, ny * sizeof *y);
  chi_rows_add(y, w->n, out + ny, w->n, m, w->n);
out:
  chi_free(part);
  chi_free(out);
  return rc;
}

void chi_project_norm(const chi_projection *p, const float *x, float *y, int64_t m, bool state) {
  const chi_decoder *dec = &p->net->decoder;
  int64_t d = dec->spec.d;
  for (int64_t i = 0; i < m; i++) {
    const float *xi = x + i * d;
    float *yi = y + i * d;
    double sum = 0;
    for (int64_t k = 0; dec->spec.norm == CHI_NORM_LAYER && k < d; k++) sum += (double)xi[k];
    float mean = (float)(sum / (double)d);
    for (int64_t k = 0; k < d; k++) yi[k] = (xi[k] - mean) * p->r * dec->final.w[k];
    for (int64_t k = 0; state && dec->final.b && k < d; k++) yi[k] += dec->final.b[k];
  }
}

int chi_project(const chi_projection *p, const float *x, float *logits, int64_t m, bool state, bool fine,
                chi_err *err) {
  int rc = 0;
  const chi_decoder *dec = &p->net->decoder;
  int64_t d = dec->spec.d, V = dec->head.w.n;
  float *y = chi_calloc((size_t)(m * d), sizeof *y, err);
  if (!y) return CHI_ERR_MEMORY;
  chi_project_norm(p, x, y, m, state);
  CHI_TRY(fine ? chi_product_fine(&dec->head.w, y, logits, m, err)
               : chi_gemm(&dec->head.w, y, d, logits, V, m, NULL, err));
  for (int64_t i = 0; state && dec->head.bias && i < m; i++) chi_rows_add(logits + i * V, V, dec->head.bias, V, 1, V);
out:
  chi_free(y);
  return rc;
}

void chi_project_token(const chi_projection *p, int32_t token, float *c) {
  const chi_decoder *dec = &p->net->decoder;
  int64_t d = dec->spec.d;
  double sum = 0;
  chi_mat_read(&dec->head.w, token, 1, c);
  for (int64_t i = 0; i < d; i++) {
    c[i] *= dec->final.w[i] * p->r;
    sum += (double)c[i];
  }
  /* c.(x - mean x) = (c - mean c).x */
  float mean = dec->spec.norm == CHI_NORM_LAYER ? (float)(sum / (double)d) : 0;
  for (int64_t i = 0; i < d; i++) c[i] -= mean;
}

double chi_logsumexp_quick(const float *x, int64_t n) {
  float max, sum;
  chi_softmax_stats(x, n, &max, &sum);
  return (double)max + chi_log64((double)sum);
}

void chi_top_words(const float *x, int64_t n, int32_t *out, int k) {
  int have = 0;
  for (int64_t i = 0; i < n && k > 0; i++) {
    if (have == k && !(x[i] > x[out[k - 1]])) continue;
    int at = have < k ? have++ : k - 1;
    for (; at > 0 && x[i] > x[out[at - 1]]; at--) out[at] = out[at - 1];
    out[at] = (int32_t)i;
  }
}

int32_t chi_rank_of(const float *x, int64_t n, int32_t token) {
  int32_t rank = 1;
  for (int64_t i = 0; i < n; i++) rank += x[i] > x[token];
  return rank;
}

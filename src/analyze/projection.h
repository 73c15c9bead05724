/* analyze/projection: any vector of the residual stream as vocabulary logits, with the final norm's scale frozen.
 *
 * B(x) = U (g * (x * r)), r = 1 / sqrt(mean(h^2) + eps) of one final state h: linear, so the parts of a state add up to
 * it. LayerNorm models: B(x) = U (g * (x - mean x) * r), and a state gets the norm's and the head's bias once besides;
 * vectors that are parts of a state get none. */
#ifndef CHI_PROJECTION_H
#define CHI_PROJECTION_H

#include "nn/net.h"

typedef struct chi_projection {
  const chi_net *net; /* borrowed */
  double mean2;       /* of h; LayerNorm: its variance */
  float r;
} chi_projection;
/* From the final state h [d], before the final norm. eps < 0: the model's own (the published code uses 1e-6). */
chi_projection chi_projection_of(const chi_net *net, const float *h, double eps);
/* x [m][d] -> y [m][d], what the head is applied to: g * (x * r). state: the norm's bias is added. */
void chi_project_norm(const chi_projection *p, const float *x, float *y, int64_t m, bool state);
/* x [m][d] -> logits [m][vocab]. state: biases are added. fine matters to bf16 models only: x goes through in two bf16
 * parts, so that sums of small vectors keep their digits; else as the forward pass would. */
int chi_project(const chi_projection *p, const float *x, float *logits, int64_t m, bool state, bool fine, chi_err *err);
/* One token's logit of a part without the rest of the vocabulary: B(x)_token = c.x, in f32. c [d] */
void chi_project_token(const chi_projection *p, int32_t token, float *c);
/* y [m][n] = x [m][k] W^T in two bf16 parts; for vectors that the forward pass itself never rounds. */
int chi_product_fine(const chi_mat *w, const float *x, float *y, int64_t m, chi_err *err);
/* log(sum(exp(x))): f32 exponentials in fixed lanes, quick and within about 1e-6. */
double chi_logsumexp_quick(const float *x, int64_t n);
/* The k largest in one pass, ties by lower index: chi_top_k for many rows. */
void chi_top_words(const float *x, int64_t n, int32_t *out, int k);
/* 1 = on top. */
int32_t chi_rank_of(const float *x, int64_t n, int32_t token);

#endif

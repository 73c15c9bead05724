/* metrics: what is read off one row of logits. */
#ifndef CHI_METRICS_H
#define CHI_METRICS_H

#include "base/base.h"

typedef struct chi_metrics {
  double p, logp, logit; /* of the target token; softmax in f64 */
  double rank;           /* 1 = on top; means over several runs may be fractional */
  double diff;           /* target's logit minus that of a reference token */
  double kl;             /* KL(clean || this run) over the vocabulary, nats */
  double joint;          /* log-probability of the whole target text; NaN where none was asked for */
} chi_metrics;

/* log(sum(exp(x))) in f64, terms in order. */
double chi_logsumexp(const float *x, int64_t n);
int32_t chi_argmax(const float *x, int64_t n);
/* clean[2n]: the clean run's log-probabilities, then its probabilities. */
void chi_clean_of(double *clean, const float *logits, int64_t n);
/* clean: as chi_clean_of made it (kl), or NULL. ref: token of diff, -1 = none. */
chi_metrics chi_metrics_of(const float *logits, int64_t n, int32_t target, int32_t ref, const double *clean);
/* Indices of the k largest logits, descending, ties by lower index. */
void chi_top_k(const float *x, int64_t n, int32_t *out, int k);

#endif

/* Read-outs of logits; see metrics.h. Own exp and log, so the printed digits are the same everywhere. */
#include "analyze/metrics.h"

#include <math.h>

int32_t chi_argmax(const float *x, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  return (int32_t)best;
}

double chi_logsumexp(const float *x, int64_t n) {
  double max = (double)x[chi_argmax(x, n)], sum = 0;
  for (int64_t i = 0; i < n; i++) sum += chi_exp64((double)x[i] - max);
  return max + chi_log64(sum);
}

void chi_clean_of(double *clean, const float *logits, int64_t n) {
  double lse = chi_logsumexp(logits, n);
  for (int64_t i = 0; i < n; i++) {
    clean[i] = (double)logits[i] - lse;
    clean[n + i] = chi_exp64(clean[i]);
  }
}

chi_metrics chi_metrics_of(const float *logits, int64_t n, int32_t target, int32_t ref, const double *clean) {
  chi_metrics m = {.joint = NAN, .diff = NAN, .kl = NAN};
  double lse = chi_logsumexp(logits, n);
  m.logit = (double)logits[target];
  m.logp = m.logit - lse;
  m.p = chi_exp64(m.logp);
  m.rank = 1;
  for (int64_t i = 0; i < n; i++) m.rank += logits[i] > logits[target];
  if (ref >= 0) m.diff = m.logit - (double)logits[ref];
  if (clean) {
    m.kl = 0;
    for (int64_t i = 0; i < n; i++) m.kl += clean[n + i] * (clean[i] - ((double)logits[i] - lse));
  }
  return m;
}

void chi_top_k(const float *x, int64_t n, int32_t *out, int k) {
  for (int j = 0; j < k; j++) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++) {
      bool taken = false;
      for (int t = 0; t < j && !taken; t++) taken = out[t] == i;
      if (!taken && (best < 0 || x[i] > x[best])) best = i;
    }
    out[j] = (int32_t)best;
  }
}

/* Read-outs of logits; see metrics.h. Own exp and log, so the printed digits are the same everywhere. */
#include "analyze/metrics.h"

#include <math.h>

#include "kernel/kernel.h"

enum { kBlock = 64 };

int32_t chi_argmax(const float *x, int64_t n) {
  int64_t best = 0, i = 0;
  for (; i + kBlock <= n; i += kBlock) { /* most blocks hold nothing larger */
    int larger = 0;
    for (int k = 0; k < kBlock; k++) larger |= x[i + k] > x[best];
    for (int64_t k = i; larger && k < i + kBlock; k++)
      if (x[k] > x[best]) best = k;
  }
  for (; i < n; i++)
    if (x[i] > x[best]) best = i;
  return (int32_t)best;
}

double chi_logsumexp(const float *x, int64_t n) {
  double max = (double)x[chi_argmax(x, n)], sum = 0, e[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    int64_t m = n - i < kBlock ? n - i : kBlock;
    chi_exp64_row(e, x + i, max, m);
    for (int64_t k = 0; k < m; k++) sum += e[k];
  }
  return max + chi_log64(sum);
}

void chi_clean_of(double *clean, const float *logits, int64_t n) {
  double lse = chi_logsumexp(logits, n);
  for (int64_t i = 0; i < n; i++) clean[i] = (double)logits[i] - lse;
  chi_exp64_row(clean + n, logits, lse, n);
}

chi_metrics chi_metrics_of(const float *logits, int64_t n, int32_t target, int32_t ref, const double *clean) {
  chi_metrics m = {.joint = NAN, .diff = NAN, .kl = NAN};
  double lse = chi_logsumexp(logits, n);
  m.logit = (double)logits[target];
  m.logp = m.logit - lse;
  m.p = chi_exp64(m.logp);
  int64_t above = 0;
  for (int64_t i = 0; i < n; i++) above += logits[i] > logits[target];
  m.rank = (double)(1 + above);
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

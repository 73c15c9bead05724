/* logistic: linear probes. Logistic regression with an L1 penalty (SAT-Probe: Yuksekgonul et al. 2024, section 4) or an L2 one,
 * and ridge regression on one-hot classes; features are standardised on the rows that are fitted. Predictions are made out
 * of fold, and folds are made of whole clusters: an entity is never in both parts.
 *
 *   logistic  min  1/n sum log(1 + exp(-+(w.x + b)))  +  l1 |w|_1  +  l2/2 |w|_2^2      b is not penalised
 *
 * scikit-learn's C is 1 / (n l1). Solved by proximal Newton steps with coordinate descent inside (Friedman, Hastie &
 * Tibshirani 2010; Lee, Sun & Saunders 2014) until the optimality conditions hold to 1e-9. */
#ifndef CHI_LOGISTIC_H
#define CHI_LOGISTIC_H

#include "eval/stats.h"

typedef struct chi_logit {
  int32_t p;
  double *w;    /* [p], of the standardised features */
  double b;     /* of the centred features: log odds at their mean */
  double *mean; /* [p] */
  double *sd;   /* [p]; 0 = the feature is constant and left out (w = 0) */
} chi_logit;

/* x[n_items][p]; rows[n]: the items to fit on. Both classes are needed: CHI_ERR_ARG. l1 and l2 may be 0 (with separable
 * data the weights then grow until the steps are used up: an error). Caller: chi_logit_free. */
int chi_logit_fit(chi_logit *out, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n, double l1,
                  double l2, chi_err *err);
void chi_logit_free(chi_logit *m);
/* Log odds of one item. */
double chi_logit_score(const chi_logit *m, const double *x);
/* The smallest l1 at which all weights are 0. */
int chi_logit_l1_max(double *out, const double *x, const bool *y, int32_t p, const int32_t *rows, int32_t n,
                     chi_err *err);

typedef struct chi_logit_opts {
  int folds; /* outer; 0 = 5, 2 = halves as in SAT-Probe */
  double
      l1; /* 0 = chosen in each training part by inner folds (5) on a path of 20 values down to 1/1000 of the largest,
                 lowest held-out deviance; as SAT-Probe has it: 1 / (0.05 n) */
  double l2;
  uint64_t seed; /* of the folds */
} chi_logit_opts;
typedef struct chi_logit_fold {
  double l1;       /* used */
  int32_t n, used; /* training items; features with a weight */
} chi_logit_fold;
/* score[n_items]: log odds from a fit that never saw the item's cluster; NaN where a feature is NaN or the fold's training part
 * has one class only. fold (may be NULL): [folds]. */
int chi_logit_out_of_fold(double *score, chi_logit_fold *fold, const chi_clusters *c, const double *x, const bool *y,
                          int32_t p, const chi_logit_opts *o, chi_err *err);
/* Folds 0..folds-1 of the items, whole clusters, as even in clusters as can be. of[n_items]. */
int chi_folds(int32_t *of, const chi_clusters *c, int folds, uint64_t seed, chi_err *err);

/* Of the share of items with the highest (top) or lowest scores, the part that is not good: SAT-Probe's risk at 20 %. Items
 * with NaN scores are left out; ties by index. NaN without items. */
double chi_risk(const double *score, const bool *good, int32_t n, double share, bool top, chi_err *err);

/* Ridge regression of one-hot classes on d standardised features: the class with the highest value, out of fold; -1 where
 * a feature is NaN or a label is negative. lambda = `ridge` times the number of rows (features have variance 1). */
int chi_ridge_out_of_fold(int32_t *predicted, const chi_clusters *c, const float *x, const int32_t *label, int32_t d,
                          int32_t n_classes, int folds, double ridge, uint64_t seed, chi_err *err);

#endif

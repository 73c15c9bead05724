/* stats: what may be said from repeated items. The unit is the cluster (the entity): items about one country, in several
 * wordings and pictures, are repeats and never counted as so many facts. Everything is seeded and has the same bits on any
 * number of threads. Values are double; an item's value that is missing is NaN and left out, never 0.
 *
 *   bootstrap   clusters are drawn with replacement, all items of a cluster together; percentile intervals
 *               (Efron & Tibshirani 1993, section 13.3; Field & Welsh 2007 for clusters). Paired: of differences
 *   max-T       sign flips of whole clusters, largest |t| over all cells (Westfall & Young 1993, section 2.5): family-wise p
 *   swaps       two methods exchanged for whole clusters: p of any difference between them
 *   Holm        step-down adjusted p (Holm 1979)
 *   AUROC       Mann-Whitney with ties as one half (Hanley & McNeil 1982)
 *   Spearman    Pearson correlation of mid-ranks */
#ifndef CHI_STATS_H
#define CHI_STATS_H

#include "base/base.h"

/* ---- clusters ---------------------------------------------------------------------------------------------- */
typedef struct chi_clusters {
  int32_t *of; /* [n_items]: 0.., numbered in order of first appearance */
  int32_t n_items, n;
} chi_clusters;
/* Items of one name are one cluster; an item with the name "" is one of its own. Caller: chi_clusters_free. */
int chi_clusters_make(chi_clusters *out, const char *const *name, int32_t n_items, chi_err *err);
void chi_clusters_free(chi_clusters *c);
/* The entity of an item's unit (docs/world.md), whatever was asked of it: "Peru|capital" -> "Peru"; of "words=answer|relation"
 * both words in alphabetical order, so that "heart=red|color" and "red=heart|shape" are one. In the arena. */
const char *chi_unit_entity(chi_arena *a, const char *unit, chi_err *err);

/* ---- bootstrap --------------------------------------------------------------------------------------------- */
typedef struct chi_boot_opts {
  int draws; /* 0 = 10,000 */
  uint64_t seed;
  double level; /* 0 = 0.95 */
} chi_boot_opts;

typedef struct chi_est {
  double value, lo, hi; /* NaN where nothing can be said (no items; fewer than two clusters: lo and hi) */
  int32_t n, clusters;  /* items and clusters behind the value */
  int32_t draws;        /* draws in which the statistic existed */
} chi_est;

/* A statistic of the sample in which cluster c stands times[c] times; NaN where it does not exist. Called from several
 * threads. */
typedef double (*chi_boot_stat)(const void *ud, const int32_t *times);
/* value = the statistic with every cluster once. all (may be NULL): the draws, [draws] in their order. n is left to the
 * caller. */
int chi_boot(chi_est *out, int32_t n_clusters, chi_boot_stat stat, const void *ud, const chi_boot_opts *o, double *all,
             chi_err *err);

/* Mean of x[n_items]; of a - b where b is given (paired: both must be there). */
int chi_boot_mean(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                  chi_err *err);
/* Ratio of sums, sum of a over sum of b: a share of an effect. */
int chi_boot_ratio(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                   chi_err *err);
/* Where the mean curve of x[n_items][n_layers] is highest: value = that layer (the first of equals), [lo, hi] from the peaks
 * of the draws, share = the part of the draws whose peak is the value. y (may be NULL): a second set of curves of the same
 * items; value is then peak(x) - peak(y) and share the part of the draws with the sign of the value (0: exactly 0). */
int chi_boot_peak(chi_est *out, double *share, const chi_clusters *c, const double *x, const double *y,
                  int32_t n_layers, const chi_boot_opts *o, chi_err *err);

/* ---- max-T ------------------------------------------------------------------------------------------------- */
typedef struct chi_cell_test {
  double mean;   /* over clusters of the clusters' means */
  double t;      /* one-sample t over clusters */
  double p;      /* family-wise over all cells of the call, two-sided; NaN below two clusters */
  double p_cell; /* of this cell alone, from the same flips */
  int32_t clusters;
} chi_cell_test;
/* x[n_items][n_cells]: signed differences (own minus donor) of all cells x sites x windows together. Null hypothesis: they are
 * symmetric about 0. All 2^clusters flips where these are not more than o->draws, else draws random ones, with
 * p = (1 + #{max >= |t|}) / (1 + draws). */
int chi_max_t(chi_cell_test *out, const chi_clusters *c, const double *x, int32_t n_cells, const chi_boot_opts *o,
              chi_err *err);

/* Two methods on the same items, any statistic of them (paired randomisation test; Fisher 1935, section 21; Edgington & Onghena
 * 2007): stat(ud, times) with times[c] = 1, or -1 where the two are swapped for cluster c, must turn its sign when all are
 * swapped. *p: two-sided share of the swaps whose |stat| reaches the one without any; all 2^n of them where these are not
 * more than o->draws, else random ones and (1 + #) / (1 + draws). NaN below two clusters or where stat is. */
int chi_swap_test(double *p, int32_t n_clusters, chi_boot_stat stat, const void *ud, const chi_boot_opts *o,
                  chi_err *err);

/* Adjusted p-values: out[n] in the order of p[n]; NaN stays NaN and is not counted. out may be p. */
int chi_holm(double *out, const double *p, int32_t n, chi_err *err);

/* ---- ranks ------------------------------------------------------------------------------------------------- */
/* Probability that a positive item scores higher than a negative one. NaN scores are left out. value NaN without both
 * classes. other (may be NULL): a second score of the same items; value is then AUROC(score) - AUROC(other), over items
 * that have both. */
int chi_auroc(chi_est *out, const chi_clusters *c, const double *score, const double *other, const bool *positive,
              const chi_boot_opts *o, chi_err *err);
int chi_spearman(chi_est *out, const chi_clusters *c, const double *a, const double *b, const chi_boot_opts *o,
                 chi_err *err);

/* Spearman's rho of a[n] and b[n], none of them NaN; NaN where one is constant or n < 2. */
double chi_rank_correlation(const double *a, const double *b, int n);

/* Quantile q of x[n], sorted ascending: linear between order statistics (type 7 of Hyndman & Fan 1996). */
double chi_quantile(const double *sorted, int32_t n, double q);

#endif

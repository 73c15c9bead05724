/* eval: the card of a model on the demo world: answers summed over slices of the items, beside what a constant answer
 * would score, with intervals that count units (entity, relation) and not repeats. */
#ifndef CHI_CARD_H
#define CHI_CARD_H

#include "eval/facts.h"

/* Wilson score interval at 95 %, of k in n (Wilson 1927). n may be fractional: an effective number. NaN for n = 0. */
void chi_wilson(double k, double n, double *lo, double *hi);
/* Interval of a share whose n trials come in clusters: Wilson's with the effective number of trials p(1-p)/v, v being the
 * linearised variance of the ratio over clusters with its factor g/(g-1) (Kish, Survey Sampling, 1965; the use of an
 * effective number in score intervals: Korn and Graubard, Survey Methodology 24, 1998). Never more than n; where v is 0
 * (all right, all wrong) it is the number of clusters. cluster[n]: any numbers, equal ones side by side. */
void chi_wilson_clustered(const bool *right, const int32_t *cluster, size_t n, double *lo, double *hi);

typedef struct chi_card_sum {
  int n, units, right;
  double lo, hi; /* 95 % interval of right / n, clustered by unit */
  int majority;  /* right answers of the best constant answer to each relation, chosen on the slice itself */
  int truth;     /* said what is true where training said otherwise */
  int truths;    /* items where training said otherwise */
  int prior;     /* wrong as the training prior suggests */
  int priors;    /* items with such a prior */
  int paraphrases;
  double change; /* mean |change of p| under words that mean the same; NaN without any */
  struct {
    int n, counterfactual, changed;
    double drop; /* mean fall of p; NaN without any */
  } part[CHI_ITEM_PARTS];
  struct {
    int n, right;
  } twin[CHI_ITEM_TWINS];
} chi_card_sum;

/* Which items a slice takes; zeroes = all of them. */
typedef enum chi_pick { CHI_PICK_ANY, CHI_PICK_YES, CHI_PICK_NO } chi_pick;
typedef struct chi_card_slice {
  const char *form, *group, *relation;
  chi_pick held_out, readable, shared, hard; /* the items' fields */
  chi_pick prior;                            /* the training prior suggests a wrong answer */
  chi_pick fact;                             /* no: the name and captions, which show nothing but recognition */
  chi_pick known; /* yes: group A or a scene, and no prior against it: what training taught in full */
  int parts;      /* brackets; 0 = any number */
} chi_card_slice;

typedef struct chi_card chi_card; /* items and results are borrowed */
int chi_card_new(chi_card **out, const chi_items *items, const chi_fact_result *r, chi_err *err);
void chi_card_free(chi_card *c);
chi_card_sum chi_card_sum_of(chi_card *c, const chi_card_slice *s);

/* Every combination of the given fields that occurs, in the order of the items. Caller: chi_free(*out). */
enum { CHI_CARD_FORM = 1, CHI_CARD_GROUP = 2, CHI_CARD_RELATION = 4 };
int chi_card_slices(chi_card_slice **out, size_t *n, const chi_card *c, int fields, chi_err *err);

typedef enum chi_promise_kind { CHI_PROMISE_SHARE, CHI_PROMISE_COUNT, CHI_PROMISE_P } chi_promise_kind;

/* What a demo model must be able to do for studies on it to mean anything. Items without exposure groups (of the first
 * demo world) have a list of their own. */
typedef struct chi_promise {
  const char *what;
  double got, need; /* shares of 1, or counts */
  chi_promise_kind kind;
  bool at_most, ok;
} chi_promise;
enum { CHI_PROMISES = 32 };
int chi_card_promises(chi_promise out[CHI_PROMISES], chi_card *c); /* how many */

#endif

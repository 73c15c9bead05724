/* eval: does the model know the items, and do their bracketed words decide the answer? Per item: greedy answer; the same
 * with other words of the same length in the brackets (the counterfactual must win); the same with words that mean the
 * same (nothing must change). */
#ifndef CHI_FACTS_H
#define CHI_FACTS_H

#include "analyze/metrics.h"
#include "data/items.h"
#include "model/model.h"

typedef struct chi_fact_result {
  char said[64]; /* greedy answer, trimmed */
  bool right;    /* said == answer */
  double p;      /* of the answer's first token, as the clean run gives it: its own top token where it is right */
  bool has_substitute, counterfactual; /* the substitute's answer is what the model says then, in full */
  double p_substitute;                 /* of the clean run's first answer token under substitution */
  bool has_paraphrase;
  double p_paraphrase;
} chi_fact_result;

typedef struct chi_fact_opts {
  int max_new;
  size_t mem;
  const char *what;
} chi_fact_opts;
/* result[items->n] from the caller. A failing item (missing picture, no bracket) ends the run and is named. */
int chi_facts_run(chi_fact_result *result, const chi_model *m, const chi_items *items, const chi_fact_opts *o,
                  chi_err *err);

/* Wilson score interval at 95 %, of k in n (Wilson 1927). */
void chi_wilson(int k, int n, double *lo, double *hi);

/* Sums over a subset of items. */
typedef struct chi_fact_sum {
  int n, right, substitutes, counterfactual, paraphrases;
  double drop;   /* mean fall of p under substitution */
  double change; /* mean |change| of p under paraphrase */
} chi_fact_sum;
typedef bool (*chi_fact_filter)(const chi_item *it, const void *ud);
chi_fact_sum chi_facts_sum(const chi_items *items, const chi_fact_result *r, chi_fact_filter keep, const void *ud);

#endif

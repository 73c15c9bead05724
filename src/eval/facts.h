/* eval: does the model know the items, and do their bracketed words decide the answer? Per item: the greedy answer; the
 * same with other words of the same length in each bracket, one at a time (what is right for those must come out); the
 * same with words that mean the same (nothing must change); and, where they are wanted, the item's twins. */
#ifndef CHI_FACTS_H
#define CHI_FACTS_H

#include "analyze/metrics.h"
#include "data/items.h"
#include "eval/asks.h"

typedef struct chi_fact_part { /* one bracket with other words in it */
  bool asked;
  bool counterfactual; /* the substitute's answer is what the model says then, in full */
  bool changed;        /* it says something else than before */
  double p;            /* of the first token of the item's own answer */
} chi_fact_part;

typedef struct chi_fact_result {
  char said[64];     /* greedy answer, trimmed */
  bool right;        /* said == answer */
  double p;          /* of the answer's first token */
  double confidence; /* of the token that the model begins with */
  chi_fact_part part[CHI_ITEM_PARTS];
  bool has_paraphrase;
  double p_paraphrase;
  struct {
    bool asked, right;
    char said[64];
  } twin[CHI_ITEM_TWINS];
} chi_fact_result;

typedef struct chi_fact_opts {
  int max_new;
  size_t mem;
  const char *tmpl; /* NULL = the model's own */
  bool twins;
  const char *what;
} chi_fact_opts;
/* result[items->n] from the caller. A failing item (missing picture, no bracket) ends the run and is named. */
int chi_facts_run(chi_fact_result *result, const chi_model *m, const chi_items *items, const chi_fact_opts *o,
                  chi_err *err);

#endif

/* explain, shared between its own files only. */
#ifndef CHI_EXPLAIN_INTERNAL_H
#define CHI_EXPLAIN_INTERNAL_H

#include "analyze/explain.h"

enum { CHII_BEST, CHII_TOP, CHII_PICTURE }; /* arg of increase */

/* Each fills map [e->n]; arg is the table row's. */
typedef int chii_explain_fn(chi_explain *e, const chi_explainer *x, double *map, chi_err *err);
chii_explain_fn chii_explain_increase, chii_explain_all_heads, chii_explain_attention, chii_explain_rollout,
    chii_explain_relevancy, chii_explain_integrated, chii_explain_patching, chii_explain_lens, chii_explain_remove,
    chii_explain_random, chii_explain_centre;

#endif

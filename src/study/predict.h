/* study/predict: failure prediction (eval/predict.h) from what a run store holds: info.ask.ASK {right, p, margin, entropy} of each
 * item, and the kinds contributions/ASK/words>last/{mean,head} and contributions/ASK/image>words/mean where they are. */
#ifndef CHI_STUDY_PREDICT_H
#define CHI_STUDY_PREDICT_H

#include "eval/predict.h"
#include "study/store.h"

typedef struct chi_study_predict_opts {
  const char *ask;            /* NULL = "item" */
  const char *field, *equals; /* only items whose split, group or info.field has this text; NULL = all */
  chi_boot_opts boot;
} chi_study_predict_opts;
typedef struct chi_study_predict_counts {
  int64_t items, filtered, not_ok,
      no_answer; /* in the store; left out by the filter, as failed, as without an answer */
} chi_study_predict_counts;

/* Caller: chi_predict_free. */
int chi_study_predict_run(chi_predict *out, chi_study_predict_counts *counts, chi_store *s,
                          const chi_study_predict_opts *o, chi_err *err);

#endif

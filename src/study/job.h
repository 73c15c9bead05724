/* job: one item on its way through the studies. */
#ifndef CHI_STUDY_JOB_H
#define CHI_STUDY_JOB_H

#include "study/study.h"

typedef struct chi_study_job {
  const chi_model *model;
  const chi_study_opts *opts;
  const chi_data_item *item;
  const chi_data_ask *ask;
  const char *ask_name; /* "item", "named", ... */
  const char *tmpl;
  const chi_prompt *prompt; /* of the ask */
  uint64_t seed;            /* of this item */
  /* Of the clean run: */
  int32_t answer;                     /* its first answer token */
  double confidence, margin, entropy; /* p of the top token; p top - p second; nats */
  json_t *info;                       /* the ask's part of the item's info; borrowed */
  json_t *without;                    /* what could not be done: [text] */
  /* Results so far. */
  chi_store_result *result;
  size_t n, cap;
  chi_arena arena;
} chi_study_job;

/* A result "study/ask/name"; v (product of the dimensions, 1 to 4 of them) is copied. name: printf. */
int chi_study_put(chi_study_job *j, const float *v, int ndim, const int64_t *dim, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* Notes what could not be done for this item, and why; the study goes on. Cancelling is no such thing: returned. */
int chi_study_without(chi_study_job *j, int rc, const chi_err *why, chi_err *err, const char *what);
/* n numbers of p, each scaled from double; in the job's arena. */
float *chi_study_floats(chi_study_job *j, size_t n, chi_err *err);

/* x[width] on CHI_STUDY_PROBE directions of random signs, out[CHI_STUDY_PROBE]: distances stay within some 10 % (Johnson and
 * Lindenstrauss 1984; signs: Achlioptas 2003). What the probe study stores of states that are wider. */
enum { CHI_STUDY_PROBE = 256 };
void chi_study_project(float *out, const float *x, int64_t width);

/* Jobs of several items together, so that they may share a sweep. Fails for what ends the whole run only. */
#define STUDY(name, fn, doc) int fn(chi_study_job *const *j, int n, chi_err *err);
#include "study/studies.def"
#undef STUDY

#endif

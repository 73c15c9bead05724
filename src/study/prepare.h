/* prepare: an item of a data set made into jobs: prompts, the model's own answer, whether it is right. */
#ifndef CHI_STUDY_PREPARE_H
#define CHI_STUDY_PREPARE_H

#include "study/job.h"

typedef struct chi_study_unit { /* an item and what became of it */
  const chi_data_item *item;
  int64_t seq;
  chi_study_job job[1 + CHI_TWINS];
  chi_prompt *prompt[1 + CHI_TWINS];
  int n_jobs;
  chi_store_status status;
  chi_err why; /* of skipped and failed */
  json_t *info, *without;
} chi_study_unit;

/* What the item lacks goes into the unit's status; fails only where the run has to end. */
int chi_study_prepare(chi_study_unit *u, const chi_model *m, const chi_study_opts *o, chi_err *err);
void chi_study_unit_free(chi_study_unit *u);
/* The twin of a name; -1 for "item", CHI_TWINS for no name at all. */
int chi_study_twin(const char *name);

#endif

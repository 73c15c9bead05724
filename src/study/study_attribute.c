/* Attribution of the answer to layers and heads, and what failure prediction needs. */
#include <math.h>

#include "analyze/attribute.h"
#include "study/job.h"

static int attribute_one(chi_study_job *j, chi_err *err) {
  int rc = 0;
  chi_attribution *a = NULL;
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = j->answer;
  o.mem = j->opts->mem;
  CHI_TRY(chi_attribute_run(&a, j->model, j->prompt, &o, err));
  int64_t dim[2] = {a->layers, a->heads};
  size_t n = (size_t)(dim[0] * dim[1]);
  float *attn = chi_study_floats(j, (size_t)a->layers, err), *mlp = chi_study_floats(j, (size_t)a->layers, err);
  float *head = chi_study_floats(j, n, err), *picture = chi_study_floats(j, n, err);
  CHI_TRY(attn && mlp && head && picture ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < a->layers; l++) {
    attn[l] = (float)a->attn[l].increase[0];
    mlp[l] = (float)a->mlp[l].increase[0];
  }
  for (size_t i = 0; i < n; i++) {
    head[i] = (float)a->head[i].increase[0];
    picture[i] = (float)a->picture[i];
  }
  CHI_TRY(chi_study_put(j, attn, 1, dim, err, "attribute/%s/attn", j->ask_name));
  CHI_TRY(chi_study_put(j, mlp, 1, dim, err, "attribute/%s/mlp", j->ask_name));
  CHI_TRY(chi_study_put(j, head, 2, dim, err, "attribute/%s/head", j->ask_name));
  if (j->prompt->n_image > 0) CHI_TRY(chi_study_put(j, picture, 2, dim, err, "attribute/%s/picture", j->ask_name));
out:
  chi_attribution_free(a);
  return rc;
}

int chi_study_attribute(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    int bad = attribute_one(jobs[i], &why);
    if (bad) CHI_TRY(chi_study_without(jobs[i], bad, &why, err, "attribute"));
  }
out:
  return rc;
}

int chi_study_predict(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  int64_t dim = 3;
  for (int i = 0; i < n && rc == 0; i++) {
    float v[3] = {(float)jobs[i]->confidence, (float)jobs[i]->margin, (float)jobs[i]->entropy};
    rc = chi_study_put(jobs[i], v, 1, &dim, err, "predict/%s/confidence,margin,entropy", jobs[i]->ask_name);
  }
  return rc;
}

/* States for linear probes: the last constraint token and the last token, at the input and behind every layer. */
#include <string.h>

#include "analyze/states.h"
#include "study/job.h"

enum { kPlaces = 2, kWidth = CHI_STUDY_PROBE };
static const char *const kPlace[kPlaces] = {"words", "last"};

/* Signs from counters: the same for every item, layer and place. */
void chi_study_project(float *out, const float *x, int64_t width) {
  for (int64_t k = 0; k < kWidth; k++) {
    double sum = 0;
    for (int64_t c = 0; c < width; c += 32) {
      uint32_t bits = chi_rng_u32(1, 0x70726f62, (uint32_t)k, (uint32_t)(c / 32));
      for (int64_t i = c; i < c + 32 && i < width; i++) sum += bits >> (i - c) & 1 ? (double)x[i] : -(double)x[i];
    }
    out[k] = (float)(sum / 16); /* sqrt(kWidth) */
  }
}

/* Captures in the order of the store: place by place, the input first. */
static int add_captures(chi_plan *plan, int root, const chi_prompt *p, int32_t layers, chi_err *err) {
  int rc = 0;
  const int32_t row[kPlaces] = {p->span_hi - 1, p->n_rows - 1};
  for (int k = 0; k < kPlaces; k++)
    for (int32_t l = -1; l < layers; l++) {
      chi_capture c = {.branch = root,
                       .stack = CHI_DECODER,
                       .site = l < 0 ? CHI_SITE_RESID_PRE : CHI_SITE_RESID_POST,
                       .layer = l < 0 ? 0 : l,
                       .rows = &row[k],
                       .n_rows = 1};
      CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
    }
out:
  return rc;
}

static int one(chi_study_job *j, chi_err *err) {
  int rc = 0, root;
  chi_plan *plan = NULL;
  chi_states *got = NULL;
  const chi_net *net = &j->model->net;
  int32_t layers = net->decoder.spec.layers;
  int64_t width = net->decoder.spec.d, kept = width > kWidth ? kWidth : width, dim[2] = {layers + 1, kept};
  chi_input in = chi_prompt_input(j->prompt);
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  CHI_TRY(add_captures(plan, root, j->prompt, layers, err));
  CHI_TRY(chi_states_new(&got, plan, &net->shape, err));
  chi_run_opts o = {.mem = j->opts->mem, .on_capture = chi_states_receive, .ud = got};
  CHI_TRY(chi_run_plan(net, plan, &o, err));
  float *v = chi_study_floats(j, (size_t)(dim[0] * kept), err);
  CHI_TRY(v ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < kPlaces; k++) {
    for (int64_t l = 0; l < dim[0]; l++) {
      const float *x = got->state[k * dim[0] + l].values;
      if (width > kWidth)
        chi_study_project(v + l * kept, x, width);
      else
        memcpy(v + l * kept, x, (size_t)width * sizeof *v);
    }
    CHI_TRY(chi_study_put(j, v, 2, dim, err, "probe/%s/%s/state", j->ask_name, kPlace[k]));
  }
out:
  chi_states_free(got);
  chi_plan_free(plan);
  return rc;
}

int chi_study_probe(chi_study_job *const *jobs, int n, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    if (jobs[i]->prompt->n_spans == 0) continue;
    int bad = one(jobs[i], &why);
    if (bad) CHI_TRY(chi_study_without(jobs[i], bad, &why, err, "probe"));
  }
out:
  return rc;
}

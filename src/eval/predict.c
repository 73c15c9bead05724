/* Failure prediction; see predict.h. */
#include "eval/predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/logistic.h"

enum { kMinClusters = 5 };

int32_t chi_predict_middle(int32_t layers) { return layers > 2 ? layers / 2 : 0; }

typedef struct job {
  chi_predict *out;
  const chi_predict_in *in;
  const chi_boot_opts *o;
  chi_clusters c;
  double *score;
} job;

/* One score as a row; in->confidence is what it is compared with. */
static int add(job *j, const char *name, const double *score, chi_err *err) {
  int rc = 0;
  const chi_predict_in *in = j->in;
  chi_predict_row *r = &j->out->row[j->out->n_rows];
  snprintf(r->name, sizeof r->name, "%s", name);
  CHI_TRY(chi_auroc(&r->auroc, &j->c, score, NULL, in->right, j->o, err));
  if (in->confidence && score != in->confidence)
    CHI_TRY(chi_auroc(&r->gain, &j->c, score, in->confidence, in->right, j->o, err));
  else
    r->gain = (chi_est){.value = NAN, .lo = NAN, .hi = NAN};
  chi_err why = {0};
  r->risk_top = chi_risk(score, in->right, in->n, 0.2, true, &why);
  r->risk_bottom = chi_risk(score, in->right, in->n, 0.2, false, &why);
  CHI_TRY(why.code ? chi_fail(err, why.code, "%s", why.text) : 0);
  j->out->n_rows++;
out:
  return rc;
}

/* Mean of some layers of x[n][layers]. */
static void mean_of(double *to, const double *x, int32_t n, int32_t layers, int32_t lo, int32_t hi) {
  for (int32_t i = 0; i < n; i++) {
    to[i] = 0;
    for (int32_t l = lo; l < hi; l++) to[i] += x[(int64_t)i * layers + l] / (hi - lo);
  }
}

static int by_layer(job *j, chi_est **to, const double *x, chi_err *err) {
  int rc = 0;
  int32_t layers = j->in->layers;
  CHI_TRY((*to = chi_calloc((size_t)layers, sizeof **to, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t l = 0; l < layers; l++) {
    mean_of(j->score, x, j->in->n, layers, l, l + 1);
    CHI_TRY(chi_auroc(&(*to)[l], &j->c, j->score, NULL, j->in->right, j->o, err));
  }
out:
  return rc;
}

static int contributions(job *j, chi_err *err) {
  int rc = 0;
  const chi_predict_in *in = j->in;
  int32_t mid = j->out->middle, end = mid + 2 < in->layers ? mid + 2 : in->layers;
  char name[72];
  if (in->words) {
    snprintf(name, sizeof name, "words to last token, layers %d and %d", mid, end - 1);
    mean_of(j->score, in->words, in->n, in->layers, mid, end);
    CHI_TRY(add(j, name, j->score, err));
    mean_of(j->score, in->words, in->n, in->layers, 0, in->layers);
    CHI_TRY(add(j, "words to last token, all layers", j->score, err));
    CHI_TRY(by_layer(j, &j->out->words, in->words, err));
  }
  if (in->visual) {
    mean_of(j->score, in->visual, in->n, in->layers, 0, in->layers);
    CHI_TRY(add(j, "picture to words, all layers", j->score, err));
    CHI_TRY(by_layer(j, &j->out->visual, in->visual, err));
  }
out:
  return rc;
}

/* Probes over the heads: chosen penalty in five folds; SAT-Probe's own settings (halves, C = 0.05); with confidence. */
static int probes(job *j, chi_err *err) {
  int rc = 0;
  const chi_predict_in *in = j->in;
  int32_t p = in->layers * in->heads;
  chi_logit_fold fold[5];
  chi_logit_opts o = {.seed = j->o ? j->o->seed : 0};
  double *both = NULL;
  if (!in->head) return 0;
  CHI_TRY(chi_logit_out_of_fold(j->score, fold, &j->c, in->head, in->right, p, &o, err));
  for (int k = 0; k < 5; k++) {
    j->out->probe_l1 += fold[k].l1 / 5;
    j->out->probe_used += fold[k].used / 5.0;
  }
  CHI_TRY(add(j, "probe over heads, L1", j->score, err));
  chi_logit_opts sat = {.folds = 2, .l1 = 2 / (0.05 * in->n), .seed = o.seed};
  CHI_TRY(chi_logit_out_of_fold(j->score, NULL, &j->c, in->head, in->right, p, &sat, err));
  CHI_TRY(add(j, "probe over heads, L1, as SAT-Probe", j->score, err));
  if (!in->confidence) goto out;
  both = chi_calloc((size_t)in->n, (size_t)(p + 1) * sizeof *both, err);
  CHI_TRY(both ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < in->n; i++) {
    memcpy(both + (int64_t)i * (p + 1), in->head + (int64_t)i * p, (size_t)p * sizeof *both);
    both[(int64_t)i * (p + 1) + p] = in->confidence[i];
  }
  CHI_TRY(chi_logit_out_of_fold(j->score, NULL, &j->c, both, in->right, p + 1, &o, err));
  CHI_TRY(add(j, "probe over heads and confidence, L1", j->score, err));
out:
  chi_free(both);
  return rc;
}

static int check(const job *j, chi_err *err) {
  const chi_predict *out = j->out;
  if (out->n_right == 0 || out->n_right == out->n)
    return chi_fail(err, CHI_ERR_ARG, "failure prediction needs right and wrong answers: %d of %d are right",
                    out->n_right, out->n);
  if (j->c.n < kMinClusters)
    return chi_fail(err, CHI_ERR_ARG, "failure prediction needs at least %d entities, to split by; there are %d",
                    kMinClusters, j->c.n);
  return 0;
}

int chi_predict_run(chi_predict *out, const chi_predict_in *in, const chi_boot_opts *o, chi_err *err) {
  int rc = 0;
  job j = {.out = out, .in = in, .o = o};
  *out = (chi_predict){.n = in->n, .layers = in->layers, .middle = chi_predict_middle(in->layers)};
  j.score = chi_calloc((size_t)(in->n > 0 ? in->n : 1), sizeof *j.score, err);
  CHI_TRY(j.score ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_clusters_make(&j.c, in->entity, in->n, err));
  out->clusters = j.c.n;
  for (int32_t i = 0; i < in->n; i++) {
    out->n_right += in->right[i];
    j.score[i] = in->right[i];
  }
  CHI_TRY(check(&j, err));
  CHI_TRY(chi_boot_mean(&out->accuracy, &j.c, j.score, NULL, o, err));
  if (in->confidence) CHI_TRY(add(&j, "confidence", in->confidence, err));
  if (in->margin) CHI_TRY(add(&j, "margin", in->margin, err));
  if (in->entropy) {
    for (int32_t i = 0; i < in->n; i++) j.score[i] = -in->entropy[i];
    CHI_TRY(add(&j, "entropy, negative", j.score, err));
  }
  CHI_TRY(contributions(&j, err));
  CHI_TRY(probes(&j, err));
out:
  chi_free(j.score);
  chi_clusters_free(&j.c);
  if (rc) chi_predict_free(out);
  return rc;
}

void chi_predict_free(chi_predict *p) {
  chi_free(p->visual);
  chi_free(p->words);
  *p = (chi_predict){0};
}

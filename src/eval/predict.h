/* predict: can it be told before the answer is checked that it will be wrong? Scores of each item against whether the model was
 * right, as AUROC with intervals over entities (Basu et al. 2024, "early failure prediction"; Yuksekgonul et al. 2024,
 * section 4: SAT-Probe). Every score is turned so that higher should mean right; which layers count is fixed by depth
 * beforehand, and curves over all layers are shown beside it: no best layer is picked. */
#ifndef CHI_PREDICT_H
#define CHI_PREDICT_H

#include "eval/stats.h"

typedef struct chi_predict_in { /* n items; arrays are borrowed; what is NULL is left out, as are NaN values */
  int32_t n, layers, heads;
  const char *const *entity;                   /* [n] */
  const bool *right;                           /* [n] */
  const double *confidence, *margin, *entropy; /* [n]: p of the model's answer; p top - p second; nats */
  const double *visual;                        /* [n][layers]: mean contribution picture -> constraint */
  const double *words;                         /* [n][layers]: mean contribution constraint -> last token */
  const double *head;                          /* [n][layers * heads]: largest of each head, constraint -> last token */
} chi_predict_in;

typedef struct chi_predict_row {
  char name[72];
  chi_est auroc;
  chi_est gain;                 /* AUROC less that of the confidence, paired */
  double risk_top, risk_bottom; /* part of wrong answers among the 20 % with the highest and the lowest scores */
} chi_predict_row;

enum { CHI_PREDICT_ROWS = 9 };
typedef struct chi_predict {
  chi_predict_row row[CHI_PREDICT_ROWS];
  int n_rows;
  int32_t n, n_right, clusters, layers;
  chi_est accuracy;
  int32_t middle;              /* the contributions' score is the mean of layers middle and middle + 1 */
  chi_est *visual, *words;     /* [layers]: AUROC of each layer's mean contribution; NULL where there is none */
  double probe_l1, probe_used; /* of the probe over heads: mean l1 and mean number of heads with a weight */
} chi_predict;

/* Layers 16 and 17 of 32, the published pair, at other depths: half of the layers, and the next. */
int32_t chi_predict_middle(int32_t layers);
/* Both kinds of answers are needed, in at least 5 entities: CHI_ERR_ARG. Caller: chi_predict_free. */
int chi_predict_run(chi_predict *out, const chi_predict_in *in, const chi_boot_opts *o, chi_err *err);
void chi_predict_free(chi_predict *p);

#endif

/* attribute: log-probability attribution to layers, heads, positions and neurons from one forward pass (Yu & Ananiadou
 * 2024, "Understanding Multimodal LLMs: the Mechanistic Interpretability of LLaVA in VQA", sections on log-probability
 * increase; formulas as in "Neuron-level knowledge attribution", same authors).
 *
 * B(x) = U (g * (x * r)), r = 1 / sqrt(mean(h_final^2) + eps): the head applied to any residual-space vector with the
 * final state's scale frozen. For LayerNorm models B(x) = U (g * (x - mean x) * r), the norm's and the head's bias are
 * added to states only. Scores at the last row, w = target, h_l = layer input, A_l, F_l = component outputs:
 *   attention layer  log p(w | h_l + A_l) - log p(w | h_l)
 *   MLP layer        log p(w | h_l + A_l + F_l) - log p(w | h_l + A_l)      (parallel blocks: - log p(w | h_l + A_l) too)
 *   head j           log p(w | h_l + o_lj) - log p(w | h_l),   o_lj = O_lj sum_p alpha_lj(last, p) v_ljp
 *   position p       log p(w | h_l + o_ljp) - log p(w | h_l),  o_ljp = O_lj alpha_lj(last, p) v_ljp
 *   neuron k         log p(w | h_l + A_l + m_lk D_l[:,k]) - log p(w | h_l + A_l)
 * and beside each the plain logit attribution B(vector)_w, which adds up. */
#ifndef CHI_ATTRIBUTE_H
#define CHI_ATTRIBUTE_H

#include "analyze/metrics.h"
#include "model/model.h"
#include "sweep/run.h"

typedef struct chi_attr_score { double increase, logit; } chi_attr_score;

typedef struct chi_attr_neuron { int32_t layer, neuron; double coefficient; chi_attr_score s; } chi_attr_neuron;

typedef struct chi_attr_head { int32_t layer, head; } chi_attr_head;

typedef struct chi_attribute_opts {
  int32_t target;             /* token id, -1 = the model's first answer token */
  double eps;                 /* of the frozen scale; < 0 = the model's own (the published code uses 1e-6) */
  const chi_attr_head *heads; /* whose positions are scored; NULL = the n_heads best by increase */
  int32_t n_heads;            /* 0 = 1 */
  int32_t n_neurons;          /* the so many best MLP neurons; 0 = none are scored */
  size_t mem;
} chi_attribute_opts;

typedef struct chi_attribution {
  int32_t layers, n_heads_per_layer, rows, target;
  chi_metrics final;          /* of the target in the model's own output */
  chi_attr_score embed;       /* of the embedding at the last row (increase: 0) */
  chi_attr_score *attn, *mlp; /* [layers] */
  chi_attr_score *head;       /* [layers][heads] */
  int32_t *order;             /* [layers*heads] layer*heads + head, best increase first; ties: lower index */
  int32_t n_positions;        /* heads whose positions were scored */
  chi_attr_head *pos_head;    /* [n_positions] */
  chi_attr_score *pos;        /* [n_positions][rows] */
  float *weight;              /* [n_positions][rows]: alpha(last, p) */
  double *avg_attention;      /* [rows]: mean of alpha(last, p) over all layers and heads */
  chi_attr_neuron *neuron;    /* [n_neurons], best first */
  int32_t n_neurons;
  double residual;            /* |B(embed) + sum B(A) + sum B(F) + constants - logit|: rounding, for tests and doctor */
  float *logits;              /* [vocab] of the last row */
  chi_arena arena;
} chi_attribution;

int chi_attribute_run(chi_attribution **out, const chi_model *m, const chi_prompt *p, const chi_attribute_opts *o, chi_err *err);
void chi_attribution_free(chi_attribution *a);

/* ---- projections of residual-space vectors --------------------------------------------------------------- */
typedef struct chi_projection { const chi_net *net; double mean2; float r; bool layer_norm; } chi_projection;
/* Scale of the final state h [d]. eps < 0: the model's own. */
chi_projection chi_projection_of(const chi_net *net, const float *h_final, double eps);
/* x [m][d] -> y [m][d] = g * (x * r): then chi_net_logits without bias is B. state: the norm's bias is added. */
void chi_project_norm(const chi_projection *p, const float *x, float *y, int64_t m, bool state);

#endif

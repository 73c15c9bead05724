/* attribute: log-probability attribution to layers, heads, positions and neurons from one forward pass (Yu & Ananiadou
 * 2024, "Understanding Multimodal LLMs: the Mechanistic Interpretability of LLaVA in VQA", log-probability increase; the
 * neurons as in "Neuron-Level Knowledge Attribution", same authors).
 *
 * B (analyze/projection.h) = the head applied to any residual-space vector with the final state's scale frozen. Scores
 * at the last row, w = target, h_l = layer input, A_l, F_l = component outputs:
 *   attention layer   log p(w | h_l + A_l) - log p(w | h_l)
 *   MLP layer         log p(w | h_l + A_l + F_l) - log p(w | h_l + A_l)                  (in parallel blocks as well)
 *   head j            log p(w | h_l + o_lj) - log p(w | h_l),   o_lj = O_lj sum_p alpha_lj(last, p) v_ljp
 *   position p        log p(w | h_l + o_ljp) - log p(w | h_l),  o_ljp = O_lj alpha_lj(last, p) v_ljp
 *   attention neuron  the same with one dimension of v_ljp only
 *   MLP neuron k      log p(w | h_l + A_l + m_lk D_l[:,k]) - log p(w | h_l + A_l)
 * and beside each the plain logit attribution B(vector)_w, which adds up. Of two targets, the increases' difference is
 * the difference of the logit attributions. */
#ifndef CHI_ATTRIBUTE_H
#define CHI_ATTRIBUTE_H

#include "analyze/metrics.h"
#include "analyze/patches.h"
#include "analyze/projection.h"
#include "model/model.h"
#include "sweep/run.h"

#define CHI_ATTR_TARGETS 2 /* [0] = target, [1] = versus (zeros without one) */
typedef struct chi_attr_score { double increase[CHI_ATTR_TARGETS], logit[CHI_ATTR_TARGETS]; } chi_attr_score;

typedef struct chi_attr_head { int32_t layer, head; } chi_attr_head;
/* MLP neuron: row and dim -1. Attention neuron: dimension `dim` of the head's value at `row`; neuron -1. */
typedef struct chi_attr_neuron {
  int32_t layer, neuron, head, dim, row;
  double coefficient; /* activation, or alpha * v */
  chi_attr_score s;
} chi_attr_neuron;

/* What a vector says: its k largest logits. */
typedef struct chi_attr_words { int32_t *id; float *logit; int32_t rank[CHI_ATTR_TARGETS]; } chi_attr_words;
enum { CHI_VIEW_INPUT, CHI_VIEW_KEY, CHI_VIEW_VALUE, CHI_VIEW_OV, CHI_VIEWS };
extern const char *const chi_view_name[CHI_VIEWS]; /* "input", "key", "value", "ov" */
/* Of one position of a head: the layer's input h_l[p]; what earlier attention wrote into it; what earlier MLPs wrote; what
 * the head writes from it. */
typedef struct chi_attr_view { int32_t head, row; chi_attr_words view[CHI_VIEWS]; } chi_attr_view; /* head: of pos_head */

typedef struct chi_attribute_opts {
  int32_t target, versus;     /* token ids; target -1 = the model's first answer token, versus -1 = none */
  double eps;                 /* of the frozen scale; < 0 = the model's own (the published code uses 1e-6) */
  const chi_attr_head *heads; /* whose positions are scored; NULL = the n_heads best by increase */
  int32_t n_heads;            /* 0 = 1 */
  bool by_picture;            /* the n_heads best by the logit that they draw from the picture, not by increase */
  int32_t n_neurons, n_attn_neurons; /* the so many best are kept; 0 = none are scored. Attention: of the scored heads */
  int32_t n_views, n_words;   /* vocabulary views of the so many best positions of each scored head, n_words each */
  const chi_attr_head *zero;  /* heads that write nothing, in any row: the scores are those of that run */
  int32_t n_zero;
  bool slow;                  /* positions one by one through the whole head: the definition, for tests */
  size_t mem;
} chi_attribute_opts;
#define CHI_ATTRIBUTE_OPTS_INIT { .target = -1, .versus = -1, .eps = -1, .n_heads = 1, .n_words = 10 }

typedef struct chi_attribution {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  chi_attribute_opts opts;
  int32_t layers, heads, rows; /* heads: of each layer */
  int32_t target[CHI_ATTR_TARGETS], n_targets;
  chi_metrics final[CHI_ATTR_TARGETS]; /* in the model's own output */
  chi_projection proj;
  chi_attr_score embed;        /* of the embedding at the last row (increase: 0) */
  chi_attr_score *attn, *mlp;  /* [layers] */
  chi_attr_score *head;        /* [layers][heads] */
  float *edge[CHI_ATTR_TARGETS]; /* [layers][heads][rows]: B(o_ljp)_w of every position of every head */
  double *picture;             /* [layers][heads]: the target's logit that comes from the picture's patches */
  double *reads;               /* [layers][heads]: attention of the last row on the patches */
  int32_t *order;              /* [layers*heads] layer*heads + head, best increase first; ties: lower index */
  int32_t n_positions;         /* heads whose positions were scored */
  chi_attr_head *pos_head;     /* [n_positions] */
  chi_attr_score *pos;         /* [n_positions][rows] */
  float *weight;               /* [n_positions][rows]: alpha(last, p) */
  double *avg_attention;       /* [rows]: mean of alpha(last, p) over all layers and heads */
  chi_attr_neuron *neuron, *attn_neuron; /* best first */
  int32_t n_neurons, n_attn_neurons;
  chi_attr_view *view; /* head after head, best position first */
  int32_t n_views;
  double constants[CHI_ATTR_TARGETS]; /* the biases' part of the final logit */
  double residual; /* |B(embed) + sum B(A) + sum B(F) + constants - B(final state)|: rounding, for tests and doctor */
  float *logits;   /* [vocab] of the last row */
  chi_arena arena;
} chi_attribution;

int chi_attribute_run(chi_attribution **out, const chi_model *m, const chi_prompt *p, const chi_attribute_opts *o,
                      chi_err *err);
void chi_attribution_free(chi_attribution *a);
/* The forward pass and the states that are read (vocabulary views apart). Borrows the prompt. Caller: chi_plan_free. */
int chi_attribution_plan(chi_plan **out, const chi_attribution *a, chi_err *err);

/* One value per patch (analyze/patches.h) from `values` [rows], normalised as published: (x - min) / (max - min), then
 * divided by its sum. Returns false and fills zeros where the map is flat (max - min <= 1e-6, the scores' own rounding) or
 * there is no picture. */
bool chi_attribution_map(const chi_attribution *a, const double *values, double *map);
/* Sum over all heads of the target's logit from each row (an extension). out [rows] */
void chi_attribution_all_heads(const chi_attribution *a, int target, double *out);
/* Sum over the scored heads of the increase at each row (an extension: the published tool shows one head). out [rows] */
void chi_attribution_sum(const chi_attribution *a, int target, double *out);

/* "22_27,19_6" -> heads; checked against the model. Caller: chi_free(*out). */
int chi_attr_heads_parse(chi_attr_head **out, int32_t *n, const chi_model *m, const char *text, chi_err *err);
/* The token of an answer given as text ("Lima", taken as it stands behind the prompt) or as "#id". *more is set where
 * the text has further tokens. name stands in messages: "--answer". */
int chi_answer_token(int32_t *out, bool *more, const chi_model *m, const chi_prompt *p, const char *text, const char *name,
                     chi_err *err);

#endif

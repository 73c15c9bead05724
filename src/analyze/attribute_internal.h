/* attribute, shared between its own files only. */
#ifndef CHI_ATTRIBUTE_INTERNAL_H
#define CHI_ATTRIBUTE_INTERNAL_H

#include "analyze/attribute.h"
#include "analyze/states.h"

enum { CHII_BATCH = 128 }; /* vectors through the head at a time */
/* Captured in every layer: v of all rows, the rest of the last row. */
enum { CHII_RESID, CHII_V, CHII_PATTERN, CHII_MIX, CHII_ATTN, CHII_MID, CHII_ACT, CHII_MLP, CHII_SITES };

typedef struct chii_base { /* a state that vectors are added to */
  float *logits; /* [vocab] */
  double lse;
} chii_base;

typedef struct chii_attr {
  chi_attribution *a;
  const chi_net *net;
  const chi_block_spec *k;
  chi_plan *plan;
  chi_states *states;
  chii_base base; /* scratch */
  float *logits;  /* [CHII_BATCH][vocab], scratch */
  float *direction[CHI_ATTR_TARGETS]; /* [d]: the targets' logits of a part, exact where the head is rounded */
  chi_arena tmp;
  chi_err *err;
} chii_attr;

const float *chii_state(const chii_attr *x, int site, int layer);
int chii_attr_base(chii_attr *x, const float *state, chii_base *base); /* base->logits is the caller's */
/* vec [m][d], all added to one state (NULL = no increase is wanted) -> out [m] */
int chii_attr_score(chii_attr *x, const float *vec, int64_t m, const chii_base *base, chi_attr_score *out);
int chii_attr_order(const chi_attr_score *s, int32_t n, int32_t *order, chi_err *err);
void chii_attr_weighted(const chii_attr *x, chi_attr_head h, int64_t p, int64_t m, float *in, int64_t ld, int64_t at);
int chii_attr_written(chii_attr *x, chi_attr_head h, int64_t p, int64_t m, float *out);
int chii_attr_head_map(chii_attr *x, chi_attr_head h, float *map);
int chii_attr_zero(chi_plan *plan, const chi_attribution *a, int *branch, chi_err *err);
int chii_attr_edges(chii_attr *x); /* edge, picture, reads */
int chii_attr_neurons(chii_attr *x);
int chii_attr_attn_neurons(chii_attr *x);
int chii_attr_views(chii_attr *x);

#endif

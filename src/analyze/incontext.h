/* incontext: do heads look up the answer where the asked thing is? The measurements of Yu & Ananiadou 2024 ("Understanding
 * Multimodal LLMs", colour of an animal; their table compares a text with a picture): of the heads with the largest
 * log-probability increase and, in each, the rows with the largest,
 *
 *   logit_diff       B(o)_answer - B(o)_rival of what the head writes from the row (rival: another value of the same kind)
 *   mrr_answer       1 / rank of the answer in what the head writes from the row
 *   mrr_object       1 / rank of the asked thing in what earlier attention wrote into the row (key view)
 *   attention        weight of the last row on these rows together; _swapped: on the same rows, by the same heads, when the
 *                    question asks about another thing
 *   mrr_embed        of a picture, 1 / rank of answer and thing in the products of patch vectors with input embeddings, at the
 *                    patches with the largest increase summed over the heads
 *   mrr_rival,       controls: the same rows with the rival in the answer's place, and another thing in the place of the one
 *   mrr_other, ...   that was asked about
 *   top_share        of the positive increases of all heads, the part that the heads have
 *
 * as means over heads and rows. NaN: not asked for, or no picture. The published definitions are known from a review only;
 * these are ours. */
#ifndef CHI_INCONTEXT_H
#define CHI_INCONTEXT_H

#include "analyze/attribute.h"

typedef struct chi_incontext_opts {
  int32_t answer, rival, object, other; /* tokens; answer -1 = the model's first, the others -1 = none */
  const chi_prompt *swapped;            /* of as many rows as the prompt; NULL = none */
  int32_t n_heads, n_rows;              /* 0 = 10 heads, 20 rows */
  size_t mem;
} chi_incontext_opts;
#define CHI_INCONTEXT_OPTS_INIT \
  { .answer = -1, .rival = -1, .object = -1, .other = -1 }

typedef struct chi_incontext {
  int32_t answer, n_heads, n_rows;
  bool right; /* the answer is the likeliest token */
  double p;   /* of the answer */
  double logit_diff, mrr_answer, mrr_rival, mrr_object, mrr_other, attention, attention_swapped, mrr_embed_answer,
      mrr_embed_rival, mrr_embed_object, mrr_embed_other, top_share;
  chi_attr_head *head; /* [n_heads], largest increase first */
  chi_arena arena;
} chi_incontext;

typedef struct chi_incontext_measure { /* one of the numbers above */
  const char *key, *text;
  size_t at; /* of a double in chi_incontext */
} chi_incontext_measure;
enum { CHI_INCONTEXT_MEASURES = 13 };
extern const chi_incontext_measure chi_incontext_measures[CHI_INCONTEXT_MEASURES];
double chi_incontext_get(const chi_incontext *x, int measure);

int chi_incontext_run(chi_incontext **out, const chi_model *m, const chi_prompt *p, const chi_incontext_opts *o,
                      chi_err *err);
void chi_incontext_free(chi_incontext *x);
/* Heads that both lists have, whatever their order. */
int chi_heads_shared(const chi_attr_head *a, int na, const chi_attr_head *b, int nb);

#endif

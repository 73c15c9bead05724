/* grad: gradients of a loss on logits with respect to values at sites, weight matrices and input embeddings.
 *
 * A session holds one or more inputs. What lies before (first_row, first_layer) of the decoder is constant over its steps: keys
 * and values of earlier rows and the residual stream of the later rows at first_layer are computed once, so a step costs the
 * suffix rows of the later layers only (an editor that shifts one value: tens of rows). What inputs begin with in
 * common (same picture, same first tokens) is there once, and all inputs go through each weight together. With vision, everything is live:
 * first_row and first_layer are 0 and the tower, Q-Former and projector are run and differentiated as well.
 *
 * Rows are counted through a session's inputs: row r of input i has the number r + the rows of the inputs before it.
 *
 * Interventions of a step act as in a plan (SET, ADD, SCALE, ZERO, NOISE, TOKEN at decoder sites; CUT at pattern); the
 * gradient at a site is with respect to its value after them: that of a vector that is added there. */
#ifndef CHI_GRAD_H
#define CHI_GRAD_H

#include "nn/back.h"
#include "sweep/run.h"

typedef enum chi_weight { CHI_W_Q, CHI_W_K, CHI_W_V, CHI_W_O, CHI_W_GATE, CHI_W_UP, CHI_W_DOWN, CHI_W_PROJ1, CHI_W_PROJ2, CHI_W_COUNT } chi_weight;
const char *chi_weight_name(chi_weight w); /* "q", ..., "down", "proj1", "proj2" */

typedef struct chi_grad_site {
  chi_stack stack;    /* vision, qformer, projector or decoder; final_norm: decoder, and vision where a Q-Former reads it */
  chi_site site;
  int layer;          /* -1 where the site is not per layer */
  const int32_t *rows;
  int32_t n_rows;
  float *out;         /* [n_rows][width]: set. pattern: see on_pattern */
} chi_grad_site;

typedef struct chi_grad_weight {
  chi_stack stack;
  int layer;
  chi_weight which;
  float *out;         /* [n][k]: added to */
} chi_grad_weight;

/* Logits of the i-th loss row -> *loss is added to, dlogits[vocab] = d loss / d logits (zeroed before). */
typedef void (*chi_loss_fn)(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss);

typedef struct chi_grad_step {
  const chi_intervention *iv;
  int32_t n_iv;
  const int32_t *loss_rows;
  int32_t n_loss;
  chi_loss_fn loss;
  void *ud;
  const chi_grad_site *sites;
  int32_t n_sites;
  const chi_grad_weight *weights;
  int32_t n_weights;
  bool forward_only;  /* loss alone */
  /* NULL, or sees every layer's attention on the way back, last layer first: weights p and d loss / d p, both
   * [heads][m][T] for the m query rows that the session computes (the last one is row T - 1); dp is 0 where p is.
   * Borrowed for the call. */
  void (*on_pattern)(void *ud, chi_stack stack, int layer, const float *p, const float *dp, int32_t m, int32_t T);
  void *pattern_ud;
} chi_grad_step;

typedef struct chi_grad chi_grad;
/* in [n_in]: text rows and picture as for roots; what they point to is borrowed. first_row [n_in]: the first live row of each,
 * NULL = 0. vision: one input, all of it live. */
int chi_grad_open(chi_grad **out, const chi_net *net, const chi_input *in, int32_t n_in, const int32_t *first_row, int32_t first_layer, bool vision,
                  chi_err *err);
/* A non-finite loss is refused and named. */
int chi_grad_run(chi_grad *g, const chi_grad_step *step, double *loss, chi_err *err);
void chi_grad_close(chi_grad *g);

/* -weight * log p(token): a loss for chi_grad_step; ud = chi_nll. */
typedef struct chi_nll { const int32_t *token; /* [n_loss] */ const double *weight; /* [n_loss] or NULL = 1 */ } chi_nll;
void chi_loss_nll(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss);

#endif

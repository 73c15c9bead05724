/* qside: what activated a value neuron. A value neuron of attention (layer, head, dimension, row) is the product of the row's
 * normed state with one row of the value projection, so everything that was written into that row of the residual stream
 * before the layer has a share in it:
 *
 *   q = (row of V) * (weight of the layer's input norm), share of a component c = c.q / sum over all components of c.q
 *
 * and the neuron's score is handed on in these shares (Yu & Ananiadou 2024, "Neuron-Level Knowledge Attribution in Large
 * Language Models", query neurons). Of an MLP value neuron (layer, k) the published code takes q = (column k of the output
 * projection) * (weight of the norm before the MLP), at the last row, components up to and including this layer's attention.
 * LayerNorm models: c less its mean. Components of layer l: the embedding, attention outputs and MLP outputs of the layers
 * before l; biases of norms and projections have no share. */
#ifndef CHI_QSIDE_H
#define CHI_QSIDE_H

#include "analyze/attribute.h"

typedef struct chi_qside_neuron { /* an MLP neuron of an earlier layer, at the row that the value neuron read */
  int32_t layer, neuron, row;
  double score; /* summed over the value neurons */
} chi_qside_neuron;

typedef struct chi_qside {
  int32_t layers, n_values; /* value neurons whose scores are handed on */
  double total;             /* the sum of their scores */
  double *component;        /* [1 + 2 layers]: embedding, attention 0, MLP 0, attention 1, ...; they add up to total */
  double *row;              /* [rows of the prompt]: the same by the row that was read */
  chi_qside_neuron *neuron; /* best first */
  int32_t n_neurons;
  double left_out; /* scores of value neurons whose c.q add up to nearly 0, so that shares mean nothing; not in total */
  chi_arena arena;
} chi_qside;

/* The value neurons are those that a has kept: its attention neurons, or its MLP neurons where mlp is set. One more forward
 * pass. n_neurons: kept of the best earlier MLP neurons, 0 = none. */
int chi_qside_run(chi_qside **out, const chi_attribution *a, bool mlp, int32_t n_neurons, chi_err *err);
void chi_qside_free(chi_qside *q);

#endif

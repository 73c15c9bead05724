/* headscan: what the answer loses when one attention head writes nothing, every head in turn, all in one sweep (the causal
 * counterpart of attribute's scores; Yu & Ananiadou 2024, "Interpreting Arithmetic Mechanism in Large Language Models through
 * Comparative Neuron Analysis"). A head is off in all rows, as its columns of the output projection being zero; or in the
 * last row alone, which is what the log-probability increase looks at.
 *
 * Comparative neuron analysis: the increase of every MLP neuron in the intact run less its increase in the run without a
 * head: which neurons does that head work through? */
#ifndef CHI_HEADSCAN_H
#define CHI_HEADSCAN_H

#include "analyze/attribute.h"

typedef struct chi_headscan_opts {
  int32_t target; /* -1 = the model's first answer token */
  bool last_row;  /* off in the last row alone */
  size_t mem;
} chi_headscan_opts;

typedef struct chi_headscan {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  int32_t layers, heads, target;
  chi_metrics clean, *cell; /* [layers][heads]: without that head */
  double *drop;             /* [layers][heads]: fall of log p(target) */
  int32_t *order;           /* [layers*heads], largest drop first */
  chi_arena arena;
} chi_headscan;

int chi_headscan_run(chi_headscan **out, const chi_model *m, const chi_prompt *p, const chi_headscan_opts *o,
                     chi_err *err);
void chi_headscan_free(chi_headscan *s);
/* The plan of a scan: root, then one branch a head, layer by layer. Caller: chi_plan_free. */
int chi_headscan_plan(chi_plan **out, const chi_model *m, const chi_prompt *p, const chi_headscan_opts *o, chi_err *err);

typedef struct chi_cna_neuron {
  int32_t layer, neuron;
  double intact, without; /* its increase in either run */
  double coefficient, coefficient_without;
} chi_cna_neuron;
/* All MLP neurons, largest |intact - without| first, n of them (fewer where there are fewer). Caller: chi_free(*out). */
int chi_cna_run(chi_cna_neuron **out, int32_t *n, const chi_model *m, const chi_prompt *p, chi_attr_head head,
                int32_t target, size_t mem, chi_err *err);

#endif

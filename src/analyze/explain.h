/* explain: which patches of the picture carried the answer, asked of many explainers through one interface. Every one
 * gives a signed number per patch; only the order and the shape of a map mean the same across explainers, not its unit.
 *
 * Adding an explainer: a row in explain/explainers.def and its function in a file of explain/. */
#ifndef CHI_EXPLAIN_H
#define CHI_EXPLAIN_H

#include "analyze/attribute.h"
#include "analyze/remove.h"

typedef struct chi_explain_opts {
  int32_t target;   /* token; -1 = the model's first answer token */
  int32_t n_heads;  /* of increase-top; 0 = 10 */
  int32_t steps;    /* of integrated gradients; 0 = 50 */
  uint64_t seed;    /* of noise and of the random map */
  size_t mem;
} chi_explain_opts;
#define CHI_EXPLAIN_OPTS_INIT { .target = -1 }

typedef struct chi_explain {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  chi_explain_opts opts;
  chi_remover *remover;    /* target, clean run, visual vectors, patches */
  int32_t n;               /* values of a map */
  chi_attribution *attr;   /* made by the first explainer that reads it */
} chi_explain;

typedef struct chi_explainer chi_explainer;
struct chi_explainer {
  const char *name;
  unsigned uses;  /* bit k: takes patches away by removal k itself, so that it must not be tested with it */
  bool baseline;  /* looks neither at the model nor at the question */
  int (*run)(chi_explain *e, const chi_explainer *x, double *map, chi_err *err);
  int arg;        /* of run */
  const char *doc;
};
/* All rows of explainers.def, in its order. */
const chi_explainer *chi_explainers(int *n);
/* "a,b,c" or "all" -> rows in that order, none twice. Caller: chi_free(*out). */
int chi_explainers_parse(const chi_explainer ***out, int *n, const char *text, chi_err *err);

/* One forward pass. Refused: a prompt without a picture, a token outside the vocabulary. */
int chi_explain_open(chi_explain **out, const chi_model *m, const chi_prompt *p, const chi_explain_opts *o,
                     chi_err *err);
void chi_explain_close(chi_explain *e);
/* map [e->n]: positive = speaks for the target. CHI_ERR_UNSUPPORTED: this model has no such map, the line says why. */
int chi_explain_map(chi_explain *e, const chi_explainer *x, double *map, chi_err *err);
/* Before the maps of several questions about one picture: what they have in common is run once (removals of single patches;
 * chi_remove_of says what is shared). skip [n_which]: explainers that will not be asked, NULL = none. Changes no map. */
int chi_explain_share(chi_explain *const *e, int n, const chi_explainer *const *which, int n_which, const bool *skip,
                      chi_err *err);

#endif

/* study_planted: facts that were put into a known layer, and the layer that each method puts first. One run a layer (a model
 * with one delta: its store, study/store.h), traced, cut and attributed as usual.
 *
 * The layer that a method puts first, of each item that the model answers right, is the one with the largest value (of
 * equals the lowest) of:
 *   E              mlp, window 1, own: the larger of all constraint words together and the last token
 *   E words, E last     one of the two
 *   D              the same of own less donor
 *   contributions  words to last token, mean
 *   cuts           loss of p with constraint -> last cut, window 1
 *   attribution    log-probability increase of the MLP
 * Chance is 1 of L. The counts by planted and named layer show a method that always names one layer. */
#ifndef CHI_STUDY_PLANTED_H
#define CHI_STUDY_PLANTED_H

#include "study/store.h"

enum { CHI_PLANTED_METHODS = 9, CHI_PLANTED_RUNS = 16, CHI_PLANTED_LAYERS = 256 };

typedef struct chi_planted_row { /* one form of the questions and one method over all runs */
  char ask[32];
  const char *method;
  int32_t layers;  /* of the model: chance is 1 / layers */
  int32_t n, hits; /* items with a value; named layer = planted layer */
  int32_t near;    /* at most one layer off */
  double lo, hi;   /* Wilson's 95 % of hits / n */
  int32_t *named;  /* [n_runs][layers]: items of run r whose largest value is in layer l */
} chi_planted_row;

typedef struct chi_planted {
  chi_planted_row *row;
  int32_t n_rows, n_runs;
  int layer[CHI_PLANTED_RUNS];                              /* planted */
  int32_t items[CHI_PLANTED_RUNS], right[CHI_PLANTED_RUNS]; /* of the runs' first form of the questions */
  chi_arena arena;
} chi_planted;

/* dirs[n_runs]: the runs' folders; layer[n_runs]: where their facts were planted. Refused: a layer that the model does not
 * have, runs of models of another depth, no run with right items. Caller: chi_planted_free. */
int chi_planted_read(chi_planted *out, const char *const *dirs, const int *layer, int n_runs, chi_err *err);
void chi_planted_free(chi_planted *p);
/* Columns ask, method, planted, layer, items: the counts. */
int chi_planted_csv(const chi_planted *p, const char *path, chi_err *err);

#endif

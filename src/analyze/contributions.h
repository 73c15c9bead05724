/* contributions: what attention carries from row j to row i (Basu et al. 2024, information transfer; the formula is that
 * of Yuksekgonul et al. 2024, "Attention Satisfies").
 *
 *   a[l,h](j -> i) = A[l,h][i,j] W_O[l,h] v[l,h]_j         a vector of the residual stream, from one forward pass
 *
 * Controls for where in the picture contributions come from: the picture upside down (rows of pixels reversed); rolled down
 * by a random number of rows of patches (what leaves at the bottom comes in at the top), so that over many pictures every
 * object stands equally often in every row; the projected patches shuffled among their rows. What follows the position
 * stays with the last rows in all of them; what follows the content moves with it.
 *
 * Two aggregations: the norm of each head's vector, and the norm of the sum over the heads. Of several sources and
 * destinations, the largest. The sum over all j and h is the attention output of row i less the output bias. */
#ifndef CHI_CONTRIBUTIONS_H
#define CHI_CONTRIBUTIONS_H

#include "analyze/metrics.h"
#include "model/model.h"
#include "sweep/run.h"

typedef struct chi_contributions_opts {
  const int32_t *from, *to, *layers; /* rows j, rows i, layers: ascending, no repeats; layers NULL = all */
  int32_t n_from, n_to, n_layers;
  int32_t late;  /* patches that count as late: the last so many of the picture; 0 = a sixteenth, 1 at least */
  bool controls; /* with a picture: the controls as well, a forward pass each */
  uint64_t seed; /* of the roll and the shuffle */
  size_t mem;
} chi_contributions_opts;

enum { CHI_CONTRIB_FLIPPED, CHI_CONTRIB_ROLLED, CHI_CONTRIB_SHUFFLED, CHI_CONTRIB_CONTROLS };
extern const char *const chi_contrib_control_name[CHI_CONTRIB_CONTROLS]; /* "flipped", "rolled", "shuffled" */

typedef struct chi_contributions {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  int32_t heads, n_layers, n_from, n_to;
  int32_t *layer, *from, *to; /* [n_*] */
  float *head;                /* [n_layers][heads][n_to][n_from]: |a[l,h](j -> i)| */
  float *sum;                 /* [n_layers][n_to][n_from]: |sum over h of a(j -> i)| */
  float *even;  /* [n_layers][n_from]: the same if every head's weight were 1: what the values alone say */
  float *group; /* [n_layers][n_to][d]: sum over the sources and heads, as a vector */
  float *out;   /* [n_layers][n_to]: norm of the attention output of row i, output bias left out */
  int32_t first_patch, n_patches, grid_h, grid_w; /* picture rows; the grid is 0 x 0 where they are no patches */
  int32_t late, n_late;                           /* patches that count as late, and how many of them are sources */
  int32_t n_sources_patch;                        /* sources that are patches */
  int32_t answer;                                 /* the model's first answer token */
  chi_metrics final;
  int32_t *origin; /* [n_patches]: patch of the picture as it is whose content stands in each patch's row */
  struct chi_contributions *control[CHI_CONTRIB_CONTROLS]; /* of the changed picture, or NULL; freed with this */
  chi_arena arena;
} chi_contributions;

int chi_contributions_run(chi_contributions **out, const chi_model *m, const chi_prompt *p,
                          const chi_contributions_opts *o, chi_err *err);
void chi_contributions_free(chi_contributions *c);
/* The forward pass of the picture as it is and what is captured of it. Borrows the prompt. Caller: chi_plan_free. */
int chi_contributions_plan(chi_plan **out, const chi_contributions *c, chi_err *err);

/* Largest norm of one head over sources and destinations; l counts within `layer`. */
double chi_contrib_head(const chi_contributions *c, int32_t l, int32_t h);
/* Of the norms of sums over heads: the largest, and the mean over edges that exist (j <= i). */
double chi_contrib_max(const chi_contributions *c, int32_t l);
double chi_contrib_mean(const chi_contributions *c, int32_t l);
/* Mean over the sources of their norms with every head's weight 1 (`even`): what the values alone say. */
double chi_contrib_even(const chi_contributions *c, int32_t l);
/* Largest over the destinations of one source's norm. */
double chi_contrib_from(const chi_contributions *c, int32_t l, int32_t from);
/* Largest over the destinations of the norm of the whole group's vector. */
double chi_contrib_group(const chi_contributions *c, int32_t l);
/* Part of the patches' norms (sum over patches and destinations) that the late ones have, and what it would be if
 * attention were even over the patches. false where no patch is a source; NaN where all norms are 0. */
bool chi_contrib_late(const chi_contributions *c, int32_t l, double *share, double *even);
/* The late patches' part by content: that of the rows which hold them now (of a control; else the same as the share). NaN
 * where there is none. */
double chi_contrib_late_content(const chi_contributions *c, int32_t l);
/* Part of the patches' norms that each patch row has, and with even attention: own, even [n_patches], NaN where a patch is
 * no source. The late-visual-token curve. */
void chi_contrib_curve(const chi_contributions *c, int32_t l, double *own, double *even);

#endif

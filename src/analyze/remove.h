/* remove: the answer's log-probability with sets of the picture's patches taken away, one branch a set, all in one sweep.
 *
 * Vectors: the patch's row at the decoder's input (after the projector) is replaced; later patches still see the row, as
 * what replaced it. Edges: the row stays, and the rows named cannot attend to it in any layer, so that what other patches
 * took over from it in the decoder stays too. Pixels: the patch's square of the picture is replaced, and the tower runs
 * again. (Zero and mean vectors, and cut edges: Neo et al. 2024, "Towards Interpreting Visual Information Processing in
 * Vision-Language Models"; grey pixels: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks".) */
#ifndef CHI_REMOVE_H
#define CHI_REMOVE_H

#include "analyze/metrics.h"
#include "analyze/patches.h"
#include "sweep/run.h"

typedef enum chi_removal {
  CHI_REMOVE_ZERO,       /* vector: zeros */
  CHI_REMOVE_MEAN,       /* vector: mean of the picture's visual vectors */
  CHI_REMOVE_BLUR,       /* vector: mean of the vectors around it, Gaussian weights of 2 patches; the patch included */
  CHI_REMOVE_NOISE,      /* vector: Gaussian with each column's mean and standard deviation over the picture */
  CHI_REMOVE_CUT_TEXT,   /* edges to every row behind the picture */
  CHI_REMOVE_CUT_LAST,   /* edges to the last row */
  CHI_REMOVE_PIXEL_GREY, /* pixels: each channel's mean over the picture */
  CHI_REMOVE_PIXEL_BLUR, /* pixels: Gaussian of 2 patches around them */
  CHI_REMOVALS
} chi_removal;
extern const char *const chi_removal_name[CHI_REMOVALS]; /* "zero", ..., "cut-text", ..., "pixel-blur" */
int chi_removal_parse(chi_removal *out, const char *name, chi_err *err);

typedef struct chi_remover {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  chi_patches grid;
  int32_t n, d;    /* patches, columns of a visual vector */
  int32_t target;  /* token */
  chi_metrics clean;
  float *visual;   /* [n][d]: the vectors as they enter the decoder */
  float *fill[CHI_REMOVALS]; /* what vectors (mean: one row) and pixels are replaced by; made when first needed */
  double *each[CHI_REMOVALS]; /* [n]: each patch alone, where chi_remove_each_of was asked; else NULL */
  uint64_t seed;
  size_t mem;
  const char *what; /* progress label, NULL = silent */
  chi_arena arena;
} chi_remover;

/* One forward pass. target -1: the model's first answer token. A prompt without a picture is refused. */
int chi_remover_open(chi_remover **out, const chi_model *m, const chi_prompt *p, int32_t target, uint64_t seed,
                     size_t mem, chi_err *err);
void chi_remover_close(chi_remover *r);
/* Blur and pixels need patches on a grid. */
bool chi_removal_possible(const chi_remover *r, chi_removal how);
/* set [n_sets][n]: 1 = removed. logp [n_sets]: log p(target). Rows of vectors [n][d], one or n of them, are added up to the
 * byte budget, so many sets are more than one plan; the numbers do not depend on that. */
int chi_remove(chi_remover *r, chi_removal how, const uint8_t *set, int32_t n_sets, double *logp, chi_err *err);
/* The same, each patch alone. logp [n] */
int chi_remove_each(chi_remover *r, chi_removal how, double *logp, chi_err *err);

/* The same for several questions about one picture: the tower and the rows up to the picture's last one are run once for
 * each set, not once for each question. asks [n_sets][n]: 1 = question k wants it; NULL = all do. logp [n_sets][n], NaN where
 * it was not asked for. Every number is that of chi_remove, to the bit. Prompts that differ before the end of the picture
 * (or removers of other models, seeds, pictures) share nothing and are done one by one. */
int chi_remove_of(chi_remover *const *r, int n, chi_removal how, const uint8_t *set, const uint8_t *asks, int32_t n_sets,
                  double *logp, chi_err *err);
/* Each patch alone, kept in every remover: what chi_remove_each then gives. */
int chi_remove_each_of(chi_remover *const *r, int n, chi_removal how, chi_err *err);
/* One row that vectors are replaced by under MEAN. Borrowed. */
int chi_remover_mean(chi_remover *r, const float **mean, chi_err *err);

#endif

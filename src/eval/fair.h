/* fair: do explainers' maps find what the answer came from? On pictures whose objects' masks are known, each map is asked
 *
 *   where       is its highest patch in the mask of the asked object (pointing game, Zhang et al. 2018); how many of its k
 *               highest, k = patches of the mask; average precision
 *   how much    p(answer) while its highest patches are taken away first (deletion) or given back first (insertion; Petsiuk
 *               et al. 2018, RISE), area under the curve over shares of the patches. Only by ways of removing that the
 *               explainer does not use itself
 *   of what     another question about another object of the same picture: the map must move. Gain = average precision on
 *               the own mask less that of the other question's map; and the rank correlation of the two maps
 *   from where  the same map of a model with the decoder's weights shuffled (Adebayo et al. 2018): their rank correlation
 *
 * Two further rows are baselines beside those in the table of explainers: the mask itself as an order. An item counts where
 * the model's first answer token is right and removing the object's patches lowers log p(answer) by more than removing as
 * many random patches does, on average (by mean vectors). */
#ifndef CHI_FAIR_H
#define CHI_FAIR_H

#include "analyze/explain.h"

enum { CHI_FAIR_SHARES = 6 };
extern const double chi_fair_share[CHI_FAIR_SHARES]; /* of the patches: 0, 0.05, 0.1, 0.2, 0.5, 1 */

typedef struct chi_fair_opts {
  const chi_explainer *const *which;
  int n_which;
  bool by[CHI_REMOVALS];     /* ways of removing that deletion and insertion use */
  double cover;              /* a patch belongs to the mask from this share on */
  int randoms;               /* random sets of the filter */
  const chi_model *shuffled; /* NULL: no check with shuffled weights */
  const bool *not_now;       /* [n_which]: explainers that this picture is spared; NULL = none */
  bool no_curves;            /* this picture is spared deletion and insertion */
  chi_explain_opts explain;  /* target is each item's own */
} chi_fair_opts;

typedef struct chi_fair_ask {           /* one question about a picture */
  const char *question, *answer, *mask; /* mask: file */
} chi_fair_ask;

/* NaN where it was not measured or has no value. */
typedef struct chi_fair_score {
  bool made;
  double pointing, precision, auprc;
  double deletion[CHI_REMOVALS], insertion[CHI_REMOVALS];
  double curve[2][CHI_REMOVALS][CHI_FAIR_SHARES]; /* p(answer), deletion and insertion */
  double switch_gain, switch_rank, shuffled_rank;
} chi_fair_score;

typedef struct chi_fair_result {
  char problem[CHI_ERR_TEXT]; /* "": none; else this item failed and why */
  bool right, hurts;          /* the two conditions above */
  int32_t target, n, n_mask;
  double p, unseen;         /* of the answer; part of the mask that the crop cut off */
  double fall, random_fall; /* of log p without the object's patches; without random ones, mean */
  chi_fair_score *score;    /* [n_which + 1], the mask's order last; NULL where the item does not count */
} chi_fair_result;

/* All questions about one picture: result [n] from the caller, zeroed; scores live in the arena. Items that do not count
 * are not explained, but for the switch any other item that was asked and is right will do: the next one in the list whose
 * mask differs. A question that fails says so in its result and does not stop the others. */
int chi_fair_picture(chi_fair_result *result, const chi_model *m, const char *image, const chi_fair_ask *ask, int n,
                     const chi_fair_opts *o, chi_arena *a, chi_err *err);

/* A model of the same shape whose decoder's matrices (not norms, embeddings, head) have their elements shuffled within each
 * matrix: the same values, no knowledge. Changes m. */
int chi_model_shuffle(chi_model *m, uint64_t seed, chi_err *err);

#endif

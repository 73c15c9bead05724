/* edits_chain: edits made one after another, none taken back. After so many of them: are all so far still said, and what
 * became of questions that no edit was about? */
#ifndef CHI_EDITS_CHAIN_H
#define CHI_EDITS_CHAIN_H

#include "data/items.h"
#include "eval/edits.h"
#include "eval/stats.h"

typedef struct chi_chain_opts {
  const chi_editor *editor;
  const int *at; /* [n_at] ascending: asked after so many edits of the set, in its order; at most set->n */
  size_t n_at;
  const chi_item *const *untouched; /* [n_untouched] questions that are asked before the first edit and at each point */
  size_t n_untouched;
  const char *tmpl;
  int max_new;
  size_t mem;
} chi_chain_opts;

/* Untouched questions of a split: evenly spaced, at most n (0 = all), none about an entity of the set's first `edits` edits.
 * Caller: chi_free(*out). */
int chi_chain_untouched(const chi_item ***out, size_t *n_out, const chi_items *items, const char *split, size_t n,
                        const chi_edit_set *set, size_t edits, chi_err *err);

/* A line "base", then "at|N" for each point. A run that was stopped makes the edits of the chain again and asks only what the
 * log has not. An edit that cannot be made is left out of the chain and counts as not said. The model keeps the edits. */
int chi_chain_run(chi_jlog *log, chi_model *m, const chi_edit_set *set, const chi_chain_opts *o, chi_err *err);

typedef struct chi_chain_point {
  int edits, failed;
  chi_est said, p;         /* the target is said, p of the whole target: all edits so far, by entity */
  chi_est right, base;     /* untouched questions right after the edits, and before, by unit */
  chi_est lost;            /* right less base, paired */
  int went_wrong, went_right;
} chi_chain_point;
/* out[n_at] */
int chi_chain_sums(chi_chain_point *out, const chi_jlog *log, const chi_edit_set *set, const chi_chain_opts *o,
                   const chi_boot_opts *boot, chi_err *err);

#endif

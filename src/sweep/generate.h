/* sweep/generate: greedy decoding. The prompt runs once and leaves its keys and values in a cache; each further token
 * is one row. The logits of step i are bit for bit those of a plain run over the prompt and the first i tokens. */
#ifndef CHI_GENERATE_H
#define CHI_GENERATE_H

#include "sweep/run.h"

/* An intervention on rows of the prompt and, if wanted, on every row that is generated. As in a plan over the whole
 * text, rows count from the prompt's first row and NOISE is indexed by the place in (iv.rows, generated rows). COPY has
 * no source here and is refused. */
typedef struct chi_gen_edit {
  chi_intervention iv; /* arrays are borrowed for the call; n_rows may be 0 where generated is set */
  int64_t width;       /* columns of iv.value, as for chi_plan_intervene */
  bool generated;      /* decoder sites only, with one value for all rows */
} chi_gen_edit;

/* Called after each step with the token that was chosen and the logits that it was chosen from (borrowed). Non-zero
 * return ends the work with CHI_ERR_CANCELLED. */
typedef int (*chi_gen_fn)(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab);

typedef struct chi_gen_opts {
  int32_t max_new;
  const int32_t *eos; /* ids that end the text; NULL = none */
  int32_t n_eos;
  const chi_gen_edit *edits;
  size_t n_edits;
  size_t mem;       /* as in chi_run_opts */
  const char *what; /* progress label, NULL = silent */
  chi_gen_fn on_token;
  void *ud;
} chi_gen_opts;

typedef enum chi_gen_stop {
  CHI_GEN_EOS,
  CHI_GEN_MAX_NEW,
  CHI_GEN_CONTEXT /* the model's positions are used up */
} chi_gen_stop;

/* tokens[max_new] from the caller; *n of them are written, the end token included. stop may be NULL. in->cache is not
 * used. */
int chi_generate(const chi_net *net, const chi_input *in, const chi_gen_opts *o, int32_t *tokens, int32_t *n,
                 chi_gen_stop *stop, chi_err *err);

#endif

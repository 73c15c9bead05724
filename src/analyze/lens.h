/* lens: what each state of the residual stream would say if it were the last one: the model's own final norm and head at
 * every layer (logit lens). The last layer's column has the model's logits, bit for bit. Picture rows can also be read
 * against the input embedding matrix, as vectors that stand where token embeddings stand. */
#ifndef CHI_LENS_H
#define CHI_LENS_H

#include "model/model.h"
#include "sweep/run.h"

#define CHI_LENS_EMBED (-1) /* column of the decoder's input, before layer 0 */

typedef enum chi_embed_view { CHI_EMBED_NONE, CHI_EMBED_DOT, CHI_EMBED_COSINE } chi_embed_view;

/* One row of logits: row = index into rows, column = index into layers. Not in order. Non-zero ends the run. */
typedef int (*chi_lens_fn)(void *ud, int32_t row, int32_t column, const float *logits, int64_t vocab);

typedef struct chi_lens_opts {
  const int32_t *rows;   /* decoder rows, ascending; NULL = all */
  int32_t n_rows;
  const int32_t *layers; /* states after these layers, ascending; CHI_LENS_EMBED allowed; NULL = all, the input first */
  int32_t n_layers;
  int32_t k;             /* words kept of each cell */
  const int32_t *words;  /* tokens that are followed: the best of them counts; NULL = none */
  int32_t n_words;
  chi_embed_view embed;  /* picture rows against the input embeddings */
  size_t mem;
  chi_lens_fn on_logits; /* NULL, or sees every cell's logits */
  void *ud;
} chi_lens_opts;

typedef struct chi_lens_cells { /* [n_rows][n_layers], words: x k */
  int32_t *id;
  float *score;     /* log-probability; of the embedding view: the dot product or cosine */
  int32_t *rank;    /* of the followed word, 1 = on top; NULL without one */
  float *word_score;
} chi_lens_cells;

typedef struct chi_lens {
  const chi_model *model; /* borrowed, as the prompt is */
  const chi_prompt *prompt;
  int32_t *rows, n_rows, *layers, n_layers, k;
  int32_t *words, n_words;
  chi_lens_cells cell;
  chi_embed_view embed;
  chi_lens_cells emb; /* n_layers = 1; cells of picture rows only, ids -1 elsewhere */
  chi_arena arena;
} chi_lens;

int chi_lens_run(chi_lens **out, const chi_model *m, const chi_prompt *p, const chi_lens_opts *o, chi_err *err);
void chi_lens_free(chi_lens *l);
/* The forward pass and the states that are read. Borrows the prompt. Caller: chi_plan_free. */
int chi_lens_plan(chi_plan **out, const chi_lens *l, chi_err *err);
/* Followed word's rank over the rows of a role in one column: the best, and the mean of 1/rank. false: no such row. */
bool chi_lens_role(const chi_lens *l, chi_role role, int32_t column, int32_t *best, double *mrr);

/* Where a bridging word comes up (the entity's name, which the question does not say): its rank by token role and layer. */
typedef struct chi_bridge {
  int32_t n_columns, *layers; /* [n_columns]: CHI_LENS_EMBED, then every layer */
  int32_t n_rows[CHI_ROLE_COUNT]; /* that have the role; 0: its lists are of no meaning */
  int32_t *best[CHI_ROLE_COUNT];  /* [n_columns]: best rank over the role's rows, 1 = on top */
  double *mrr[CHI_ROLE_COUNT];    /* [n_columns]: mean of 1/rank */
  float *logp[CHI_ROLE_COUNT];    /* [n_columns]: largest log-probability */
  bool part;                      /* no token is the whole word: its first token is followed */
  chi_arena arena;
} chi_bridge;
/* One forward pass; a row and layer cost a product with the head. rows: as in chi_select_rows, NULL = all. Caller:
 * chi_bridge_free. */
int chi_lens_bridge(chi_bridge **out, const chi_model *m, const chi_prompt *p, const char *word, const char *rows,
                    size_t mem, chi_err *err);
void chi_bridge_free(chi_bridge *b);

/* A word's tokens: the vocabulary entries that are the whole word, with and without a space in front; where there is none,
 * the first token of the word behind the prompt, and *part is set. Caller: chi_free(*out). */
int chi_lens_word(int32_t **out, int32_t *n, bool *part, const chi_model *m, const chi_prompt *p, const char *word,
                  chi_err *err);

#endif

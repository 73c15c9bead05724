/* model: a checkpoint folder as one read-only object: network, tokenizer, preprocessing, template. A new family: family.h. */
#ifndef CHI_MODEL_H
#define CHI_MODEL_H

#include "image/image.h"
#include "nn/net.h"
#include "text/text.h"

/* Where a linear layer's weights come from: rows [at, at + w.n) of a stored tensor. */
typedef struct chi_bound {
  const chi_linear *linear; /* in net */
  const char *weight;       /* the stored tensor's name */
  const char *bias;         /* NULL = none stored */
  int64_t total, at;
  bool transposed; /* stored [k][total] */
} chi_bound;

typedef struct chi_model {
  const char *family; /* row of models.def */
  char *path;
  chi_net net;
  chi_st *st;    /* the map that embeddings are read from */
  chi_st *tower; /* the vision tower's own files, or NULL */
  chi_tokenizer *tok;
  chi_preproc pre;          /* with a vision tower */
  bool any_size;            /* positions are interpolated where pictures are not of the tower's own size */
  bool pre_set;             /* the family filled pre; else it is read from the folder */
  const chi_template *tmpl; /* default template */
  int32_t image_token;      /* id, -1 without pictures; CHI_PICTURE_ID where the tokenizer has none */
  const char *image_text;   /* its text in a prompt, "<image>" */
  bool picture_first;       /* its rows come before everything, the BOS too: image_text may stand at the start only */
  const char *image_tail;   /* text that, right after the picture, is encoded apart from what follows; NULL = none */
  bool plain_ids;           /* prompts are encoded without the tokenizer's special tokens */
  int32_t eos[8], n_eos;
  chi_dtype stored; /* element type of the checkpoint's decoder weights */
  int64_t params;
  char hash[65];    /* of the weight files; empty until chi_model_hash */
  chi_bound *bound; /* every linear layer; edits are exported by it */
  size_t n_bound, cap_bound;
  struct chi_packed *packed; /* the cache that matrices lie in, or NULL */
  char *prompt_prefix; /* text before every question: an in-context edit (edit/delta.h); NULL = none */
  chi_arena arena;
} chi_model;

typedef enum chi_dtype_choice { CHI_DTYPE_AUTO, CHI_DTYPE_F32, CHI_DTYPE_BF16 } chi_dtype_choice;
/* auto: f32 below a billion parameters, else bf16 (logged). path: a Hugging Face folder or a GGUF file (docs/gguf.md).
 * Caller: chi_model_free. */
int chi_model_open(chi_model **out, const char *path, chi_dtype_choice dtype, chi_err *err);
/* mmproj: the GGUF file of the vision tower and projector of a LLaVA whose language model is the GGUF file `path`; or NULL. */
int chi_model_open_with(chi_model **out, const char *path, const char *mmproj, chi_dtype_choice dtype, chi_err *err);
typedef struct chi_model_opts {
  chi_dtype_choice dtype;
  const char *mmproj;
  const char *cache; /* folder of packed weights: written on the first opening, mapped on the next; NULL = none */
  bool stream;       /* decoder layers are in memory only while they are used; needs cache */
} chi_model_opts;
int chi_model_open_opts(chi_model **out, const char *path, const chi_model_opts *o, chi_err *err);
void chi_model_free(chi_model *m);
/* Config and names alone, without weights: tests of whole checkpoints' headers. left: names that nothing reads, one a
 * line (caller: chi_str_free). The model can be looked at and freed, not run. */
int chi_model_dry(chi_model **out, const json_t *config, const chi_st *header, chi_str *left, chi_err *err);
/* The other way round: config alone, and every tensor that the family asks for is told, names perhaps more than once.
 * *out as from chi_model_dry. */
typedef int (*chi_record_fn)(void *ud, const char *name, int ndim, const int64_t *dim, chi_err *err);
int chi_model_record(chi_model **out, const json_t *config, chi_record_fn fn, void *ud, chi_err *err);
int chi_model_hash(chi_model *m, chi_err *err);                            /* fills m->hash */
const chi_bound *chi_model_bound(const chi_model *m, const chi_linear *l); /* NULL if it was not read from a tensor */

/* ---- prompts --------------------------------------------------------------------------------------------- */
typedef enum chi_role {
  CHI_ROLE_BOS,
  CHI_ROLE_TEMPLATE,
  CHI_ROLE_IMAGE,
  CHI_ROLE_TEXT,
  CHI_ROLE_CONSTRAINT,
  CHI_ROLE_LAST,
  CHI_ROLE_COUNT
} chi_role;
const char *chi_role_name(chi_role r);

/* Bracketed words of a question. */
typedef struct chi_prompt_span {
  int32_t lo, hi; /* rows [lo, hi) */
  bool grown;     /* tokens reach past the bracketed words */
  size_t at, len; /* where the words stand in text */
  char *words;
} chi_prompt_span;
enum { CHI_MAX_SPANS = 8 };

typedef struct chi_prompt {
  char *text;      /* filled template, `<image>` still in it */
  int32_t *tokens; /* one per row; picture rows carry the image token */
  chi_role *role;
  int32_t n_rows;
  int32_t image_row, n_image;          /* -1, 0 for text only */
  chi_prompt_span span[CHI_MAX_SPANS]; /* every bracket, in order, apart from each other */
  int32_t n_spans;
  int32_t span_lo, span_hi;         /* of the first bracket, as the next four: constraint rows [lo, hi); equal = none */
  bool span_grown;                  /* tokens reach past the bracketed words */
  char *constraint;                 /* its words; borrowed from span[0] */
  size_t words_at, words_len;       /* where they stand in text */
  size_t question_at, question_len; /* the question's bytes in text */
  float *pixels;                    /* [3][h][w] or NULL */
  chi_view view;
  chi_image seen; /* the crop that the model saw */
  char image_sha[65];
} chi_prompt;

typedef struct chi_prompt_opts {
  const char *image;    /* file, or NULL */
  const char *question; /* with optional [constraint] */
  const char *tmpl;     /* template name; NULL = the family's */
  bool raw;             /* question is the whole prompt text, with `<image>` where the picture goes; no prompt_prefix */
  bool need_constraint;
  bool several;   /* need_constraint: several brackets are welcome; else exactly one */
  bool no_pixels; /* rows for a picture without reading its file: the caller has the pixels already */
} chi_prompt_opts;
int chi_prompt_make(chi_prompt **out, const chi_model *m, const chi_prompt_opts *o, chi_err *err);
/* The same prompt with other words in its brackets (other token count allowed): words[n_spans], NULL = those that stand
 * there. All NULL makes a copy. */
int chi_prompt_reword(chi_prompt **out, const chi_model *m, const chi_prompt *p, const char *const *words,
                      chi_err *err);
/* The first bracket alone. */
int chi_prompt_replace(chi_prompt **out, const chi_model *m, const chi_prompt *p, const char *words, chi_err *err);
/* Replace the picture (other file), keep the tokens. */
int chi_prompt_picture(chi_prompt *p, const chi_model *m, const char *file, chi_err *err);
void chi_prompt_free(chi_prompt *p);
chi_input chi_prompt_input(const chi_prompt *p);

#endif

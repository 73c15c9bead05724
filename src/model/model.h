/* model: a checkpoint folder as one read-only object: network, tokenizer, preprocessing, template.
 *
 * Adding a family (a row in models.def and one file of at most ~300 lines):
 *   1. models.def: CHI_FAMILY(symbol, model_type, doc).
 *   2. src/model/<symbol>.c: `int chi_family_<symbol>(chi_model *m, const json_t *config, chi_binder *b, chi_err *err)`:
 *      config -> block specs (every key that changes the result is read or refused by name and value, before any weight
 *      is read), tensor names -> weights through chi_bind_*, template name, image token.
 *   3. A tiny checkpoint made by tools/ref and its states under tests/fixtures; tests/test_parity.c picks it up by its
 *      folder. tests/test_model.c fails if a row has no fixture. */
#ifndef CHI_MODEL_H
#define CHI_MODEL_H

#include "image/image.h"
#include "nn/net.h"
#include "text/text.h"

typedef struct chi_model {
  const char *family; /* row of models.def */
  char *path;
  chi_net net;
  chi_st *st; /* the map that embeddings are read from */
  chi_tokenizer *tok;
  chi_preproc pre;          /* with a vision tower */
  const chi_template *tmpl; /* default template */
  int32_t image_token;      /* id, -1 without pictures */
  const char *image_text;   /* its text in a prompt, "<image>" */
  int32_t eos[8], n_eos;
  chi_dtype stored; /* element type of the checkpoint's decoder weights */
  int64_t params;
  char hash[65]; /* of the weight files; empty until chi_model_hash */
  chi_arena arena;
} chi_model;

typedef enum chi_dtype_choice { CHI_DTYPE_AUTO, CHI_DTYPE_F32, CHI_DTYPE_BF16 } chi_dtype_choice;
/* auto: f32 below a billion parameters, else bf16 (logged). path: a Hugging Face folder. Caller: chi_model_free. */
int chi_model_open(chi_model **out, const char *path, chi_dtype_choice dtype, chi_err *err);
void chi_model_free(chi_model *m);
int chi_model_hash(chi_model *m, chi_err *err); /* fills m->hash */

/* ---- binding: names -> weights, dtype and shape checked, expected against found -------------------------- */
typedef struct chi_binder {
  chi_model *m;
  const chi_st *st;
  uint8_t *used; /* per tensor: bound */
} chi_binder;
/* Shapes: n rows of k. bias_name may be NULL; want_bias: the tensor must be there. fmt's %d is the layer. */
int chi_bind_linear(chi_binder *b, chi_linear *out, int64_t n, int64_t k, bool want_bias, chi_err *err, const char *fmt,
                    ...) __attribute__((format(printf, 7, 8)));
int chi_bind_vec(chi_binder *b, float **out, int64_t n, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
const chi_tensor *chi_bind_tensor(chi_binder *b, const char *name, int ndim, const int64_t *dim,
                                  chi_err *err); /* any float type */
/* The first prefix for which prefix + suffix is a stored tensor; fails naming all that were tried. */
int chi_bind_prefix(const chi_binder *b, const char **out, const char *const *prefixes, const char *suffix,
                    chi_err *err);

#define CHI_FAMILY(sym, type, doc) \
  int chi_family_##sym(chi_model *m, const json_t *config, chi_binder *b, chi_err *err);
#include "model/models.def"
#undef CHI_FAMILY

/* An activation by its Hugging Face name; unknown ones are refused with key and value. */
int chi_config_act(chi_act *out, const json_t *obj, const char *key, const char *fallback, const char *where,
                   chi_err *err);
/* Shared by the families with a Llama decoder: text config -> spec, `base` prefix ("model.") + head name -> weights. */
int chi_llama_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_llama_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err);

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

typedef struct chi_prompt {
  char *text;      /* filled template, `<image>` still in it */
  int32_t *tokens; /* one per row; picture rows carry the image token */
  chi_role *role;
  int32_t n_rows;
  int32_t image_row, n_image; /* -1, 0 for text only */
  int32_t span_lo, span_hi;   /* constraint rows [lo, hi); equal = none */
  bool span_grown;            /* tokens reach past the bracketed words */
  char *constraint;           /* its words */
  size_t words_at, words_len; /* where they stand in text */
  float *pixels;              /* [3][h][w] or NULL */
  chi_view view;
  chi_image seen; /* the crop that the model saw */
  char image_sha[65];
} chi_prompt;

typedef struct chi_prompt_opts {
  const char *image;    /* file, or NULL */
  const char *question; /* with optional [constraint] */
  const char *tmpl;     /* template name; NULL = the family's */
  bool raw;             /* question is the whole prompt text, with `<image>` where the picture goes */
  bool need_constraint;
} chi_prompt_opts;
int chi_prompt_make(chi_prompt **out, const chi_model *m, const chi_prompt_opts *o, chi_err *err);
/* The same prompt with the constraint's words replaced (other token count allowed). */
int chi_prompt_replace(chi_prompt **out, const chi_model *m, const chi_prompt *p, const char *words, chi_err *err);
/* Replace the picture (other file), keep the tokens. */
int chi_prompt_picture(chi_prompt *p, const chi_model *m, const char *file, chi_err *err);
void chi_prompt_free(chi_prompt *p);
chi_input chi_prompt_input(const chi_prompt *p);

#endif

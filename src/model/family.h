/* family: what a family's file is written with. It maps config.json to block specs and tensor names to weights; it holds
 * no arithmetic and at most ~300 lines. docs/adding-a-model.md walks through one.
 *
 * Adding a family:
 *   1. models.def: CHI_FAMILY(symbol, model_type, doc).
 *   2. src/model/<symbol>.c: `int chi_family_<symbol>(chi_model *m, const json_t *config, chi_binder *b, chi_err *err)`.
 *      a. Sizes: chi_dims_read (or your own keys) with the config class's defaults, then chi_dims_apply.
 *      b. Spec: norm, eps, activation, gated, parallel; chi_rope_config or learned positions; window.
 *      c. Every other key that changes the result is read, or refused by name and value (chi_config_want, _absent,
 *         _str). All of this comes before the first chi_bind_*.
 *      d. Names: chi_bind_*; chi_bind_prefix where published checkpoints differ.
 *      e. m->tmpl; with pictures: m->image_token, m->image_text, m->pre where no preprocessor_config.json says it.
 *   3. A tiny random checkpoint by tools/ref (transformers' own class) with its states, tests/fixtures/tiny-<symbol>:
 *      tests/test_parity.c takes it up by its name; tests/test_model.c fails if a row of models.def has none.
 *   4. Refused keys as rows of the table in tests/test_model.c. A header of the real checkpoint under
 *      tests/fixtures/headers/ (tools/ref/make_headers.py), with its list of unused tensors.
 *   5. docs/models/<symbol>.md: sizes, block, names, easy to get wrong. */
#ifndef CHI_FAMILY_H
#define CHI_FAMILY_H

#include "model/model.h"

/* ---- config.json ------------------------------------------------------------------------------------------------ */
/* An activation by its Hugging Face name; unknown ones are refused with key and value. */
int chi_config_act(chi_act *out, const json_t *obj, const char *key, const char *fallback, const char *where,
                   chi_err *err);
/* A switch of which only one side is implemented. fallback: the value of a missing key. */
int chi_config_want(const json_t *obj, const char *key, bool fallback, bool want, const char *where, chi_err *err);
/* A key that must be missing or null; why ends the message. */
int chi_config_absent(const json_t *obj, const char *key, const char *why, const char *where, chi_err *err);
/* One of the known words (NULL-terminated). */
int chi_config_str(const char **out, const json_t *obj, const char *key, const char *fallback, const char *const *known,
                   const char *where, chi_err *err);
/* Refuses quantised and compressed weights. */
int chi_config_plain(const json_t *obj, const char *where, chi_err *err);

/* Sizes of a decoder. Fill in the defaults of the config class, then read; kv 0 = heads, head_dim 0 = d / heads. */
typedef struct chi_dims {
  int64_t d, layers, heads, kv, head_dim, ffn, vocab, context;
} chi_dims;
int chi_dims_read(chi_dims *x, const json_t *c, const char *where, chi_err *err);     /* the usual key names */
int chi_dims_apply(chi_model *m, const chi_dims *x, const char *where, chi_err *err); /* spec, vocab, context */

typedef struct chi_rope_opts { /* of missing keys */
  double theta, partial;
  bool partial_read; /* false: a partial_rotary_factor other than 1 is refused */
} chi_rope_opts;
/* After chi_dims_apply. Makes the table and may shorten the context (docs/models/llama.md). */
int chi_rope_config(chi_model *m, const json_t *text, const chi_rope_opts *o, const char *where, chi_err *err);

/* ---- binding: names -> weights, dtype and shape checked, expected against found --------------------------------- */
typedef struct chi_binder {
  chi_model *m;
  const chi_st *st;
  uint8_t *used;        /* per tensor: bound */
  bool dry;             /* names and shapes only: nothing is packed or copied */
  chi_record_fn record; /* dry, and every tensor is there: those that are asked for are told (chi_model_record) */
  void *record_ud;
  struct chi_packed *packed; /* NULL, or the cache that matrices are read from or written to (packed.h) */
  bool rows_first;           /* "transposed" matrices are stored as rows of inputs after all (GGUF) */
} chi_binder;
/* Shapes: n rows of k. want_bias: the tensor must be there. The name's ".weight" and ".bias" are added. */
int chi_bind_linear(chi_binder *b, chi_linear *out, int64_t n, int64_t k, bool want_bias, chi_err *err, const char *fmt,
                    ...) __attribute__((format(printf, 7, 8)));
/* Rows [at, at + n) of a matrix (and bias) that several projections share. transposed: stored [k][total] (Conv1D). */
typedef struct chi_bind_slice {
  int64_t total, at;
  bool transposed;
} chi_bind_slice;
int chi_bind_part(chi_binder *b, chi_linear *out, int64_t n, int64_t k, chi_bind_slice s, bool want_bias, chi_err *err,
                  const char *fmt, ...) __attribute__((format(printf, 8, 9)));
int chi_bind_vec(chi_binder *b, float **out, int64_t n, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
int chi_bind_norm(chi_binder *b, chi_norm *out, int64_t n, bool want_bias, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
/* Rows [skip, skip + n) of a table [skip + n][d], as f32. */
int chi_bind_table(chi_binder *b, float **out, int64_t n, int64_t d, int64_t skip, chi_err *err, const char *name);
/* Token embeddings: base + name. Head: head + ".weight" (and ".bias"), or the embeddings when tied. */
int chi_bind_embed(chi_binder *b, chi_err *err, const char *base, const char *name);
int chi_bind_head(chi_binder *b, const char *head, bool tied, bool want_bias, chi_err *err);
const chi_tensor *chi_bind_tensor(chi_binder *b, const char *name, int ndim, const int64_t *dim,
                                  chi_err *err); /* any float type */
/* The first prefix for which prefix + suffix is a stored tensor; fails naming all that were tried. */
int chi_bind_prefix(const chi_binder *b, const char **out, const char *const *prefixes, const char *suffix,
                    chi_err *err);
bool chi_bind_has(const chi_binder *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- parts that families share ---------------------------------------------------------------------------------- */
/* Decoders: text config -> spec; `base` prefix ("model.") and head's name -> weights. */
typedef int (*chi_decoder_config_fn)(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_llama_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_mistral_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_qwen2_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_llama_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err);
/* What Llama, Mistral and Qwen2 have in common: norm, activation, rotary embedding; and a text-only model of the three. */
int chi_llama_spec(chi_model *m, const json_t *text, const chi_dims *x, const char *where, chi_err *err);
int chi_llama_like(chi_model *m, const json_t *config, chi_binder *b, chi_decoder_config_fn read, chi_err *err);
int chi_opt_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_opt_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err);
int chi_phi_config(chi_model *m, const json_t *text, const char *where, chi_err *err);
int chi_phi_weights(chi_model *m, chi_binder *b, const char *base, const char *head, bool tied, chi_err *err);

/* Tower, Q-Former and projection of BLIP-2 and MiniGPT-4, after the decoder's config; projection: the layer's name. */
int chi_blip2_config(chi_model *m, const json_t *config, chi_err *err);
int chi_blip2_weights(chi_model *m, chi_binder *b, const char *projection, chi_err *err);

/* Towers: CLIP ("clip_vision_model") and SigLIP ("siglip_vision_model") by vision_config's model_type. Feature layers are
 * set apart (chi_vit_features): only the layers that they need are run. */
int chi_vit_config(chi_model *m, const json_t *vision, const char *where, chi_err *err);
/* Block spec, grid and rows of any tower of square patches, from numbers that were read; refuses those that do not fit
 * together. The activation and what is special about the tower are the caller's. */
typedef struct chi_vit_size {
  int64_t d, ffn, layers, heads, image, patch;
  double eps;
  bool cls; /* a class row before the patches */
} chi_vit_size;
int chi_vit_shape(chi_vision *v, const chi_vit_size *n, const char *where, chi_err *err);
int chi_vit_features(chi_model *m, const json_t *config, const char *key, chi_err *err);
int chi_vit_weights(chi_model *m, chi_binder *b, const char *base, chi_err *err);

/* Pictures as the repositories of LLaVA and Bunny write them down: mm_projector_type, image_aspect_ratio (pad: a square of
 * the mean colour first), model.mm_projector.0 and .2, template vicuna, no picture token in the tokenizer. */
int chi_mm_config(chi_model *m, const json_t *c, bool *pad, chi_err *err);
int chi_mm_projector(chi_model *m, chi_binder *b, chi_err *err);
/* Refuses a folder that holds pickles and no safetensors, with the command that converts them. */
int chi_check_pickle(const char *dir, chi_err *err);

#define CHI_FAMILY(sym, type, doc) \
  int chi_family_##sym(chi_model *m, const json_t *config, chi_binder *b, chi_err *err);
#include "model/models.def"
#undef CHI_FAMILY

#endif

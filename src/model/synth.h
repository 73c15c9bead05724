/* synth: checkpoints of well-known shapes with random weights, to measure speed and memory without downloading anything. */
#ifndef CHI_SYNTH_H
#define CHI_SYNTH_H

#include "file/file.h"

typedef struct chi_synth_spec {
  const char *name, *doc;
  const char *config; /* config.json, with ' for " */
} chi_synth_spec;
const chi_synth_spec *chi_synth_specs(size_t *n);
/* Its config.json. Caller: json_decref; NULL on failure. */
json_t *chi_synth_config(const chi_synth_spec *s, chi_err *err);

typedef struct chi_synth_opts { /* 0 = the shape's own */
  int layers, image;            /* of the decoder; pixels of a side */
  const char *tokenizer;        /* a tokenizer.json, NULL = bytes; the picture's token is added to it */
} chi_synth_opts;

/* Writes dir (made; must not hold a model yet) as an ordinary Hugging Face folder in bf16: config.json,
 * model.safetensors, tokenizer.json, preprocessor_config.json. Weights are random numbers of the usual size; the
 * same seed gives the same bytes. Progress in bytes. An interrupted or failed write leaves no model.safetensors.
 * o NULL: the shape as it is. Refused: a tokenizer of more tokens than the shape has, one that is no tokenizer. */
int chi_synth_write(const char *spec, const chi_synth_opts *o, const char *dir, uint64_t seed, chi_err *err);

#endif

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

typedef struct chi_synth_size { /* 0 = the shape's own */
  int layers, image;            /* of the decoder; pixels of a side */
} chi_synth_size;

/* Writes dir (made; must not hold a model yet) as an ordinary Hugging Face folder in bf16: config.json,
 * model.safetensors, tokenizer.json (bytes), preprocessor_config.json. Weights are random numbers of the usual size; the
 * same seed gives the same bytes. Progress in bytes. An interrupted or failed write leaves no model.safetensors.
 * size NULL: the shape as it is. */
int chi_synth_write(const char *spec, const chi_synth_size *size, const char *dir, uint64_t seed, chi_err *err);

#endif

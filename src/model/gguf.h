/* gguf: a GGUF file, and the one of a vision tower beside it, as what the families read: a config object and tensors under
 * Hugging Face names. docs/gguf.md has the tables. Adding an architecture: a row in gguf_config.c and one in gguf_names.c;
 * the family itself is not touched. */
#ifndef CHI_MODEL_GGUF_H
#define CHI_MODEL_GGUF_H

#include "file/gguf.h"
#include "model/model.h"

/* The whole way: fills m->st (which owns the maps), m->tok, and m->pre with a tower. *config: caller, json_decref. *stored:
 * the element type that most weights of the language model have. mmproj may be NULL. */
int chi_gguf_read(chi_model *m, const char *path, const char *mmproj, json_t **config, chi_dtype *stored,
                  chi_err *err);

/* general.architecture and its keys -> the config object of a text model. */
int chi_gguf_config(json_t **out, const chi_gguf *g, chi_err *err);
/* clip.* keys -> the config object of a LLaVA with this text config (reference taken in every case), and its
 * preprocessing. */
int chi_gguf_vision_config(json_t **out, json_t *text, const chi_gguf *g, chi_preproc *pre, chi_err *err);

/* Tensors under Hugging Face names. Rows that the rotary embedding of llama files keeps interleaved are put back in order
 * (a copy in the arena); the rest points into the map. */
typedef struct chi_tensor_list {
  chi_tensor *t;
  size_t n, cap;
} chi_tensor_list;
/* config: of the text model. prefix: put before every name ("language_model." for the decoder of a LLaVA, else ""). */
int chi_gguf_names(chi_tensor_list *out, chi_arena *arena, const chi_gguf *g, const json_t *config, const char *prefix,
                   chi_err *err);
int chi_gguf_vision_names(chi_tensor_list *out, chi_arena *arena, const chi_gguf *g, chi_err *err);

#endif

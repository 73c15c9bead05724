/* encoder: sentences as vectors, by a BERT of the all-MiniLM-L6-v2 layout (Reimers & Gurevych 2019): token, position and type
 * embeddings, post-norm blocks, mean over all tokens ([CLS] and [SEP] included), L2 norm. */
#ifndef CHI_ENCODER_H
#define CHI_ENCODER_H

#include "nn/nn.h"
#include "text/text.h"

typedef struct chi_encoder chi_encoder;
/* Folder with config.json (model_type bert), model.safetensors and a WordPiece tokenizer. sentence_bert_config.json may
 * shorten the texts that are read (max_seq_length); longer ones are cut, as there. Caller: chi_encoder_free. */
int chi_encoder_open(chi_encoder **out, const char *dir, chi_err *err);
void chi_encoder_free(chi_encoder *e); /* NULL-safe */
int32_t chi_encoder_width(const chi_encoder *e);
const char *chi_encoder_hash(const chi_encoder *e); /* of its weight files */
/* out[width], of length 1. A text without tokens of its own is that of its special tokens. */
int chi_encoder_embed(const chi_encoder *e, const char *text, float *out, chi_err *err);

#endif

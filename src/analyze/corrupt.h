/* corrupt: what takes the constraint's place in the corrupted runs of a trace (Basu et al. 2024, section 3: token
 * substitution; Meng et al. 2022: Gaussian noise on the embeddings). */
#ifndef CHI_CORRUPT_H
#define CHI_CORRUPT_H

#include "model/model.h"

typedef enum chi_corrupt_kind {
  CHI_CORRUPT_SAME_LENGTH, /* an entity of the same kind and token count, tokenised in context (default) */
  CHI_CORRUPT_WORDS,       /* words:TEXT[|TEXT...], same token count, a text for each corrupted bracket */
  CHI_CORRUPT_RELEASED,    /* released[:WORD]: WORD's first token in every slot */
  CHI_CORRUPT_POOL,        /* pool:K: K entities, probabilities averaged */
  CHI_CORRUPT_RANDOM,      /* random[:K]: random tokens of the vocabulary in every slot, K times, averaged */
  CHI_CORRUPT_NOISE,       /* noise[:3s|:STD]: samples of Gaussian noise on the span's embeddings */
  CHI_CORRUPT_PICTURE,     /* picture:FILE or picture:FOLDER: the same question about another picture */
} chi_corrupt_kind;

typedef struct chi_corrupt_opts {
  const char *spec;      /* as above, with ",samples=N" and ",seed=N" behind noise; NULL = same-length */
  const char *noise_ref; /* file of entities, one a line: std of their token embeddings (ROME's); NULL = whole matrix */
  const char *noise_file; /* safetensors with "noise" [samples][span][d] that is used as it is */
  uint64_t seed;
  uint32_t spans; /* bit i: bracket i is corrupted; 0 = every bracket */
} chi_corrupt_opts;

typedef struct chi_corruption {
  chi_corrupt_kind kind;
  uint32_t spans;  /* brackets that are corrupted; 0 for a picture */
  int n;           /* corrupted runs (candidates, before a choice is made) */
  int32_t span;    /* rows that are corrupted */
  int32_t *rows;   /* [span] which */
  int32_t *tokens; /* [n][span] */
  char **words;    /* [n] */
  float *noise;    /* [n][span][d] */
  double std;      /* of the noise */
  uint64_t seed;
  chi_prompt **picture; /* [n], PICTURE */
  char *was;            /* the corrupted brackets' words: "left / this flag" */
  bool choose;          /* the runs are candidates: keep the first whose answer differs from the clean one */
  char text[256];       /* for people: "this country -> Norway (same length)" */
  chi_arena arena;
} chi_corruption;

/* A prompt without brackets can have its picture changed, nothing else. */
int chi_corruption_make(chi_corruption *out, const chi_model *m, const chi_prompt *p, const chi_corrupt_opts *o,
                        chi_err *err);
/* Keep run i only. */
void chi_corruption_keep(chi_corruption *c, int i);
void chi_corruption_free(chi_corruption *c);
/* Bits of the brackets "1", "2", "1,2" or "all" of a question with n of them. */
int chi_corrupt_spans(uint32_t *out, const char *text, int32_t n, chi_err *err);

#endif

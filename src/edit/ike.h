/* ike: demonstrations for in-context editing (Zheng et al. 2023, "Can We Edit Factual Knowledge by In-Context Learning?"), as
 * MMEdit uses them: text only, retrieved by sentence vectors. From each record three: */
#ifndef CHI_IKE_H
#define CHI_IKE_H

#include "model/encoder.h"

/*   copy     New Fact: {p} {t}\nPrompt: {p} {t}\n\n
 *   update   New Fact: {p} {t}\nPrompt: {rephrase} {t}\n\n
 *   retain   New Fact: {p} {t}\nPrompt: {unrelated} {its answer}\n\n */
typedef struct chi_demos {
  chi_encoder *encoder;
  char **text;
  float *vector; /* [n][width] */
  size_t n, cap, cap_vector;
  char hash[65]; /* of file, encoder and settings; "" while none were read */
  chi_arena arena;
} chi_demos;

typedef struct chi_demos_opts {
  const char *file;    /* MMEdit's records, or an edit set of ours (data/edits.h) */
  const char *encoder; /* folder, model/encoder.h */
  size_t limit;        /* records; 0 = all */
  bool short_answer;   /* prompts as "Question: {q} Short answer:" (MMEdit's E3 on E-VQA) */
} chi_demos_opts;
/* Reads and embeds. Caller: chi_demos_free. */
int chi_demos_load(chi_demos **out, const chi_demos_opts *o, chi_err *err);
void chi_demos_free(chi_demos *d); /* NULL-safe */
/* What stands in front of every question once prompt p means target t: the k demonstrations that are nearest to the fact
 * (highest first; those of the fact itself left out), its own copy, "New Fact: {p} {t}\nPrompt: ". d NULL: k must be 0. Caller:
 * chi_str_free. */
int chi_demos_prefix(chi_str *out, const chi_demos *d, int k, const char *p, const char *t, chi_err *err);

#endif

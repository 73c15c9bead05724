/* eval: many questions at once. What a model answers to each, greedily, as sweep/generate would answer them one by one,
 * but with the work shared: the questions about one picture are branches of one plan, so that its rows run once, and the
 * answer that is looked for is fed in behind the question, so that one pass tells whether the model would have said it.
 * Where it would not, the passes go on from the token that it chose instead, until the answer is there in full. */
#ifndef CHI_ASKS_H
#define CHI_ASKS_H

#include "model/model.h"

typedef struct chi_ask {
  const char *image;    /* file, or NULL for text */
  const char *question; /* brackets in it are dropped */
  const char *expect;   /* the answer that is looked for, or NULL */
  const char *watch;    /* the answer whose first token's probability is wanted; NULL = expect */
  const char *name;     /* what errors call it, or NULL */
} chi_ask;

typedef struct chi_reply {
  char said[64]; /* greedy answer, blanks trimmed, cut to fit */
  bool right;    /* the whole of it is expect; with raw, it begins with expect as whole words, and said is cut there */
  double p;      /* of watch's first token where the answer begins; NaN where there is none */
  double confidence; /* of the token that the model begins with */
} chi_reply;

typedef struct chi_ask_opts {
  int max_new;      /* tokens of an answer at most; 0 = 16 */
  const char *tmpl; /* template; NULL = the model's own */
  bool raw;   /* questions are texts that go on into their answers, as they stand: one token more than expect has */
  size_t mem; /* as in chi_run_opts */
  const char *what; /* progress label, NULL = silent */
} chi_ask_opts;

/* reply[n] from the caller. An ask that fails (missing picture, prompt too long) ends the run. */
int chi_asks_run(chi_reply *reply, const chi_model *m, const chi_ask *ask, size_t n, const chi_ask_opts *o,
                 chi_err *err);

/* The question without its brackets, the k-th of them (from 0) holding `words` instead of its own; words NULL = as it is.
 * Caller: chi_free. */
int chi_question_with(char **out, const char *question, int k, const char *words, chi_err *err);

#endif

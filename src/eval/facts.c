/* Evaluating question items; see facts.h. */
#include "eval/facts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sweep/generate.h"

enum { kMaxNew = 64 };

typedef struct first { /* the first step of a generation */
  int32_t token;       /* whose probability is wanted; -1 = the one that is chosen */
  double p;
} first;

static int on_token(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  first *f = ud;
  if (step > 0) return 0;
  if (f->token < 0) f->token = token;
  f->p = chi_metrics_of(logits, vocab, f->token, -1, NULL).p;
  return 0;
}

/* Greedy answer of a prompt as text, blanks trimmed. */
static int answer(char *out, size_t cap, first *f, const chi_model *m, const chi_prompt *p, const chi_fact_opts *o,
                  chi_err *err) {
  int rc = 0;
  int32_t tok[kMaxNew], n = 0;
  char *text = NULL;
  chi_input in = chi_prompt_input(p);
  chi_gen_opts g = {.max_new = o->max_new > 0 && o->max_new < kMaxNew ? o->max_new : 16,
                    .eos = m->eos,
                    .n_eos = m->n_eos,
                    .mem = o->mem,
                    .on_token = on_token,
                    .ud = f};
  CHI_TRY(chi_generate(&m->net, &in, &g, tok, &n, NULL, err));
  CHI_TRY(chi_decode(m->tok, tok, (size_t)n, true, &text, err));
  const char *s = text + strspn(text, " \n");
  size_t len = strlen(s);
  while (len && strchr(" \n", s[len - 1])) len--;
  snprintf(out, cap, "%.*s", (int)len, s);
out:
  chi_free(text);
  return rc;
}

static int one_item(chi_fact_result *r, const chi_model *m, const chi_item *it, const chi_fact_opts *o, chi_err *err) {
  int rc = 0;
  char said[64];
  chi_prompt *p = NULL, *q = NULL;
  first f = {.token = -1};
  bool bracket = strchr(it->question, '[') != NULL;
  CHI_TRY(chi_prompt_make(
      &p, m, &(chi_prompt_opts){.image = it->image, .question = it->question, .need_constraint = bracket}, err));
  CHI_TRY(answer(r->said, sizeof r->said, &f, m, p, o, err));
  r->right = strcmp(r->said, it->answer) == 0;
  r->p = f.p;
  if (it->substitute && bracket) {
    CHI_TRY(chi_prompt_replace(&q, m, p, it->substitute, err));
    CHI_TRY(answer(said, sizeof said, &f, m, q, o, err));
    r->has_substitute = true;
    r->p_substitute = f.p;
    r->counterfactual = strcmp(said, it->substitute_answer) == 0;
    chi_prompt_free(q);
    q = NULL;
  }
  if (it->paraphrase && bracket) {
    CHI_TRY(chi_prompt_replace(&q, m, p, it->paraphrase, err));
    CHI_TRY(answer(said, sizeof said, &f, m, q, o, err));
    r->has_paraphrase = true;
    r->p_paraphrase = f.p;
  }
out:
  if (rc) {
    char where[128];
    snprintf(where, sizeof where, "item %s (line %d)", it->id, it->line);
    chi_err_prefix(err, where);
  }
  chi_prompt_free(p);
  chi_prompt_free(q);
  return rc;
}

int chi_facts_run(chi_fact_result *result, const chi_model *m, const chi_items *items, const chi_fact_opts *o,
                  chi_err *err) {
  int rc = 0;
  memset(result, 0, items->n * sizeof *result);
  for (size_t i = 0; i < items->n; i++) {
    CHI_TRY(one_item(&result[i], m, &items->item[i], o, err));
    if (o->what) CHI_TRY(chi_progress(o->what, (int64_t)i + 1, (int64_t)items->n, err));
  }
out:
  return rc;
}

void chi_wilson(int k, int n, double *lo, double *hi) {
  const double z = 1.959963984540054;
  if (n == 0) {
    *lo = *hi = NAN;
    return;
  }
  double p = (double)k / n, d = 1 + z * z / n, mid = (p + z * z / (2 * n)) / d,
         half = z * sqrt(p * (1 - p) / n + z * z / (4.0 * n * n)) / d;
  *lo = mid - half;
  *hi = mid + half;
}

chi_fact_sum chi_facts_sum(const chi_items *items, const chi_fact_result *r, chi_fact_filter keep, const void *ud) {
  chi_fact_sum s = {0};
  for (size_t i = 0; i < items->n; i++) {
    if (keep && !keep(&items->item[i], ud)) continue;
    s.n++;
    s.right += r[i].right;
    if (r[i].has_substitute) {
      s.substitutes++;
      s.counterfactual += r[i].counterfactual;
      s.drop += r[i].p - r[i].p_substitute;
    }
    if (r[i].has_paraphrase) {
      s.paraphrases++;
      s.change += fabs(r[i].p - r[i].p_paraphrase);
    }
  }
  s.drop = s.substitutes ? s.drop / s.substitutes : NAN;
  s.change = s.paraphrases ? s.change / s.paraphrases : NAN;
  return s;
}

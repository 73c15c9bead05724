/* chiasm ask: greedy answer and the probabilities of its first token. */
#include "analyze/metrics.h"
#include "cli.h"
#include "sweep/generate.h"

typedef struct args {
  cli_common c;
  int64_t top, max_new;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .top = 5, .max_new = 32};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--top", .letter = 'k', .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 0, .max = 1000,
     .doc = "likeliest first tokens to list"},
    {.name = "--max-new", .letter = 'n', .arg = "N", .kind = CLI_INT, CLI_AT(args, max_new), .min = 1, .max = 1 << 20,
     .doc = "longest answer, in tokens"},
    {0}};
/* clang-format on */

typedef struct answer {
  int32_t *id;
  double *p; /* of each token, given those before it */
  int32_t n;
  float *first; /* logits of the first token */
  chi_gen_stop stop;
} answer;

static int on_token(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  answer *a = ud;
  for (int64_t i = 0; step == 0 && i < vocab; i++) a->first[i] = logits[i];
  a->p[step] = chi_exp64((double)logits[token] - chi_logsumexp(logits, vocab));
  return 0;
}

static int add_json(json_t *j, const chi_model *m, const chi_prompt *p, const answer *a, const char *text,
                    const int32_t *top, int k, chi_err *err) {
  static const char *const why[] = {"end token", "max-new", "context"};
  char piece[256];
  double lse = chi_logsumexp(a->first, m->net.decoder.vocab);
  json_t *tokens = json_array(), *list = json_array();
  int bad = json_object_set_new(j, "answer", chi_json_text(text));
  bad |= json_object_set_new(j, "rows", json_integer(p->n_rows));
  bad |= json_object_set_new(j, "stopped_by", json_string(why[a->stop]));
  for (int32_t i = 0; i < a->n; i++) {
    chi_token_text(m->tok, a->id[i], piece, sizeof piece);
    bad |= json_array_append_new(
        tokens, json_pack("{s:i,s:o,s:f}", "id", (int)a->id[i], "text", chi_json_text(piece), "p", a->p[i]));
  }
  for (int i = 0; i < k; i++) {
    double logit = (double)a->first[top[i]];
    chi_token_text(m->tok, top[i], piece, sizeof piece);
    bad |= json_array_append_new(
        list, json_pack("{s:i,s:i,s:o,s:f,s:f,s:f}", "rank", i + 1, "id", (int)top[i], "text", chi_json_text(piece),
                        "p", chi_exp64(logit - lse), "logp", logit - lse, "logit", logit));
  }
  bad |= json_object_set_new(j, "tokens", tokens);
  bad |= json_object_set_new(j, "first_token", list);
  return bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0;
}

static int print_text(const chi_model *m, const answer *a, const char *text, const int32_t *top, int k, chi_err *err) {
  static const char *const head[] = {"", "first token", "p", "log p", "id"};
  int rc = 0;
  char piece[256];
  chi_str s = {0};
  chi_table *t = NULL;
  double lse = chi_logsumexp(a->first, m->net.decoder.vocab);
  const char *start = text;
  while (*start == ' ' || *start == '\n') start++;
  chi_str_addf(&s, "%s%s\n", start, a->stop == CHI_GEN_EOS ? "" : " ...");
  if (k > 0) {
    chi_str_add(&s, "\n");
    CHI_TRY(chi_table_new(&t, head, "rlrrr", err));
    for (int i = 0; i < k; i++) {
      double logp = (double)a->first[top[i]] - lse;
      chi_token_text(m->tok, top[i], piece, sizeof piece);
      chi_table_cell(t, "%d", i + 1);
      chi_table_cell(t, "\"%s\"", piece);
      chi_table_cell(t, "%.4f", chi_exp64(logp));
      chi_table_cell(t, "%.3f", logp);
      chi_table_cell(t, "%d", (int)top[i]);
    }
    CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  }
  CHI_TRY(cli_print(&s, err));
out:
  chi_table_free(t);
  chi_str_free(&s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *o = v;
  int rc = 0;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  char *text = NULL;
  json_t *j = NULL;
  answer a = {0};
  int32_t *top = NULL;
  chi_provenance prov;
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  int64_t vocab = m->net.decoder.vocab;
  int k = (int)(o->top < vocab ? o->top : vocab);
  a.id = chi_calloc((size_t)o->max_new, sizeof *a.id, err);
  a.p = chi_calloc((size_t)o->max_new, sizeof *a.p, err);
  a.first = chi_calloc((size_t)vocab, sizeof *a.first, err);
  top = chi_calloc((size_t)k, sizeof *top, err);
  if (!a.id || !a.p || !a.first || !top) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  chi_input in = chi_prompt_input(p);
  chi_gen_opts g = {.max_new = (int32_t)o->max_new,
                    .eos = m->eos,
                    .n_eos = m->n_eos,
                    .mem = o->c.mem,
                    .what = "answering",
                    .on_token = on_token,
                    .ud = &a};
  CHI_TRY(chi_generate(&m->net, &in, &g, a.id, &a.n, &a.stop, err));
  CHI_TRY(chi_decode(m->tok, a.id, (size_t)a.n, true, &text, err));
  chi_top_k(a.first, vocab, top, k);
  if (o->c.json) {
    CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
    CHI_TRY(chi_report_json(&j, "ask", &prov, err));
    CHI_TRY(add_json(j, m, p, &a, text, top, k, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(print_text(m, &a, text, top, k, err));
  }
out:
  json_decref(j);
  chi_free(text);
  chi_free(a.id);
  chi_free(a.p);
  chi_free(a.first);
  chi_free(top);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_ask = {
    .name = "ask",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Prints the greedy answer (the likeliest token, step by step) and the likeliest first tokens with their\n"
        "probabilities. Square brackets around words, as `chiasm trace` needs them, are taken out here.",
    .examples =
        "chiasm ask demo models/demo/samples/peru.png \"What is the capital of this country?\"\n"
        "chiasm ask demo \"What is the capital of Peru?\" --json",
};

/* chiasm attribute: which heads, positions and neurons carried the answer. */
#include "analyze/attribute.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "report/attribute_report.h"
#include "report/heads_report.h"

typedef struct args {
  cli_common c;
  const char *answer, *versus, *heads, *zero, *out, *compare, *dump_plan;
  int64_t query, neurons, attn_neurons, views, words, top;
  double eps;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .heads = "1", .words = 10, .top = 10, .eps = -1};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--answer", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, answer),
     .doc = "token whose log-probability is attributed (text or #id); else the model's first answer token"},
    {.name = "--versus", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, versus),
     .doc = "a second token beside it, with the difference: why this answer and not that one"},
    {.name = "--heads", .arg = "WHICH", .kind = CLI_STR, CLI_AT(args, heads),
     .doc = "heads whose positions are scored: the K best; picture:K = that draw most from it; 22_27,19_6"},
    {.name = "--neurons", .arg = "N", .kind = CLI_INT, CLI_AT(args, neurons), .min = 0, .max = 1e6,
     .doc = "also the N best MLP neurons (scores every one: as dear as many forward passes on large models)"},
    {.name = "--attn-neurons", .arg = "N", .kind = CLI_INT, CLI_AT(args, attn_neurons), .min = 0, .max = 1e6,
     .doc = "also the N best value dimensions of single positions of the scored heads"},
    {.name = "--query", .arg = "N", .kind = CLI_INT, CLI_AT(args, query), .min = 0, .max = 1e6,
     .doc = "what activated those value neurons (--attn-neurons, else --neurons): components, N earlier MLP neurons"},
    {.name = "--zero-heads", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, zero),
     .doc = "heads that write nothing: scores of that run, e.g. 22_27,19_6"},
    {.name = "--views", .arg = "N", .kind = CLI_INT, CLI_AT(args, views), .min = 0, .max = 10000,
     .doc = "also vocabulary views of each scored head's N best positions: input, key, value, written"},
    {.name = "--words", .arg = "K", .kind = CLI_INT, CLI_AT(args, words), .min = 1, .max = 1000,
     .doc = "words kept of each view"},
    {.name = "--eps", .arg = "X", .kind = CLI_FLOAT, CLI_AT(args, eps), .min = -1, .max = 1,
     .doc = "epsilon of the frozen norm; -1 = the model's own, the published code uses 1e-6"},
    {.name = "--top", .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 1, .max = 10000,
     .doc = "rows of the tables"},
    {.name = "--compare", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, compare),
     .doc = "JSON of published values: print ours beside them (docs/verify-llava15.md)"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the forward pass and what is captured of it, for `chiasm run`"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write attribution.{json,csv,safetensors} and the pictures there"},
    {0}};
/* clang-format on */

static int parse_heads(chi_attribute_opts *o, chi_attr_head **heads, const chi_model *m, const char *text,
                       chi_err *err) {
  char *end = NULL;
  if (strchr(text, '_')) {
    int rc = chi_attr_heads_parse(heads, &o->n_heads, m, text, err);
    o->heads = *heads;
    return rc;
  }
  if (strncmp(text, "picture", 7) == 0 && (text[7] == ':' || !text[7])) {
    o->by_picture = true;
    text = text[7] ? text + 8 : "1";
  }
  long n = strtol(text, &end, 10);
  if (!*text || *end || n < 1 || n > 1000000)
    return cli_usage(err, "--heads: '%s' is no number of heads, picture:K or list as 22_27,19_6", text);
  o->n_heads = (int32_t)n;
  return 0;
}

static int parse_tokens(chi_attribute_opts *o, const args *a, const chi_model *m, const chi_prompt *p, chi_err *err) {
  int rc = 0;
  bool more = false;
  char first[64];
  const struct {
    const char *text, *name;
    int32_t *to;
  } tokens[] = {{a->answer, "--answer", &o->target}, {a->versus, "--versus", &o->versus}};
  for (int i = 0; i < 2; i++) {
    if (!tokens[i].text) continue;
    CHI_TRY(chi_answer_token(tokens[i].to, &more, m, p, tokens[i].text, tokens[i].name, err));
    if (!more) continue;
    chi_token_text(m->tok, *tokens[i].to, first, sizeof first);
    chi_log(CHI_LOG_INFO, "%s: '%s' is several tokens; its first, '%s', is scored", tokens[i].name, tokens[i].text,
            first);
  }
out:
  return rc;
}

/* The published file decides epsilon and the head whose positions it lists, unless the command line does. */
static int load_published(json_t **published, chi_attribute_opts *o, chi_attr_head **heads, const args *a,
                          const chi_model *m, chi_err *err) {
  int rc = 0;
  double eps = a->eps;
  chi_attr_head h;
  char text[64];
  CHI_TRY(chi_json_load(published, a->compare, 1 << 20, err));
  CHI_TRY(chi_attribution_published_head(&h, &eps, *published, err));
  if (a->eps < 0) o->eps = eps;
  if (h.layer < 0 || o->heads) goto out;
  snprintf(text, sizeof text, "%d_%d", h.layer, h.head);
  CHI_TRY(chi_attr_heads_parse(heads, &o->n_heads, m, text, err));
  o->heads = *heads;
out:
  return rc;
}

/* The query side, behind everything else: as text, and as query.json. */
static int add_query(const args *a, const chi_attribution *t, const chi_provenance *prov, json_t *j, chi_str *text,
                     chi_str *files, chi_err *err) {
  int rc = 0;
  char path[4096];
  chi_qside *q = NULL;
  json_t *whole = NULL;
  if (a->query <= 0) return 0;
  CHI_TRY(chi_qside_run(&q, t, a->attn_neurons == 0, (int32_t)a->query, err));
  if (j) CHI_TRY(json_object_set_new(j, "query", chi_qside_json(q, t)) ? CHI_ERR_MEMORY : 0);
  CHI_TRY(chi_qside_summary(q, t, cli_width(), (int)a->top, text, err));
  if (!a->out) goto out;
  CHI_TRY(chi_report_json(&whole, "query", prov, err));
  CHI_TRY(json_object_set_new(whole, "query", chi_qside_json(q, t)) ? CHI_ERR_MEMORY : 0);
  CHI_TRY(chi_path_join(path, sizeof path, a->out, "query.json", err));
  CHI_TRY(chi_json_save(whole, path, err));
  chi_str_add(files, " query.json");
out:
  json_decref(whole);
  chi_qside_free(q);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0, lines = 0, differ = 0;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_attribution *t = NULL;
  chi_attr_head *heads = NULL, *zero = NULL;
  chi_str text = {0}, files = {0};
  json_t *j = NULL, *published = NULL;
  chi_plan *plan = NULL;
  chi_provenance prov;
  chi_attribute_opts o = {.target = -1,
                          .versus = -1,
                          .eps = a->eps,
                          .n_neurons = (int32_t)a->neurons,
                          .n_attn_neurons = (int32_t)a->attn_neurons,
                          .n_views = (int32_t)a->views,
                          .n_words = (int32_t)a->words,
                          .mem = a->c.mem};
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  CHI_TRY(parse_heads(&o, &heads, m, a->heads, err));
  CHI_TRY(parse_tokens(&o, a, m, p, err));
  if (a->zero) CHI_TRY(chi_attr_heads_parse(&zero, &o.n_zero, m, a->zero, err));
  o.zero = zero;
  if (a->compare) CHI_TRY(load_published(&published, &o, &heads, a, m, err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  CHI_TRY(chi_attribute_run(&t, m, p, &o, err));
  if (a->dump_plan) {
    CHI_TRY(chi_attribution_plan(&plan, t, err));
    CHI_TRY(cli_dump_plan(plan, m, p, image, -1, a->dump_plan, err));
  }
  if (a->out) CHI_TRY(chi_attribution_write(t, &prov, a->out, &files, err));
  if (a->compare) {
    CHI_TRY(chi_attribution_compare(t, published, cli_width(), &lines, &differ, &text, err));
    CHI_TRY(cli_print(&text, err));
    if (differ) rc = chi_fail(err, CHI_ERR_FORMAT, "%d of %d values differ from the published ones", differ, lines);
  } else if (a->c.json) {
    CHI_TRY(chi_attribution_json(&j, t, &prov, err));
    CHI_TRY(add_query(a, t, &prov, j, &text, &files, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_attribution_summary(t, cli_width(), (int)a->top, &text, err));
    CHI_TRY(add_query(a, t, &prov, NULL, &text, &files, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/: %s\n", a->out, files.s ? files.s : "");
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  json_decref(published);
  chi_str_free(&text);
  chi_str_free(&files);
  chi_attribution_free(t);
  chi_free(heads);
  chi_free(zero);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_attribute = {
    .name = "attribute",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Which attention heads, and which patches and words that they read, raised the answer's log-probability?\n"
        "From one forward pass (Yu and Ananiadou 2024): every head is scored by what its output adds to\n"
        "log p(answer) at the last token, then every position of the best head. Beside it, the mean attention of\n"
        "all heads, which is what one would look at without it. Summing several heads (--heads K) is an extension.\n"
        "With --versus, two answers side by side: where does the evidence for one and for the other lie?",
    .examples =
        "chiasm attribute demo models/demo/samples/peru.png \"What is the capital of this country?\" -o out\n"
        "chiasm attribute demo models/demo/samples/peru.png \"What is the capital of this country?\" --versus Tokyo\n"
        "chiasm attribute demo \"What is the capital of Peru?\" --heads 3 --views 5",
};

/* chiasm heads: what the answer loses when a head writes nothing. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "report/heads_report.h"

typedef struct args {
  cli_common c;
  const char *answer, *head, *out, *dump_plan;
  int64_t neurons, top;
  bool last_row;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .top = 10};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--answer", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, answer),
     .doc = "token whose log-probability is read (text or #id); else the model's first answer token"},
    {.name = "--last-row", .kind = CLI_FLAG, CLI_AT(args, last_row),
     .doc = "a head is off in the last row alone, not in all rows"},
    {.name = "--neurons", .arg = "N", .kind = CLI_INT, CLI_AT(args, neurons), .min = 0, .max = 1e6,
     .doc = "also the N MLP neurons whose increase changes most without one head (comparative neuron analysis)"},
    {.name = "--head", .arg = "L_H", .kind = CLI_STR, CLI_AT(args, head),
     .doc = "that head; else the one whose loss is largest"},
    {.name = "--top", .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 1, .max = 10000,
     .doc = "rows of the tables"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the branches, one a head, for `chiasm run`"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write heads.{json,csv,png,svg} there"},
    {0}};
/* clang-format on */

static int compare_neurons(chi_heads_result *r, chi_cna_neuron **list, const args *a, const chi_model *m,
                           const chi_prompt *p, chi_err *err) {
  int rc = 0;
  int32_t n = 0;
  chi_attr_head *named = NULL;
  const chi_headscan *s = r->scan;
  r->head = (chi_attr_head){s->order[0] / s->heads, s->order[0] % s->heads};
  if (a->head) {
    CHI_TRY(chi_attr_heads_parse(&named, &n, m, a->head, err));
    if (n != 1) {
      rc = cli_usage(err, "--head takes one head, not %d", n);
      goto out;
    }
    r->head = named[0];
  }
  n = (int32_t)a->neurons;
  CHI_TRY(chi_cna_run(list, &n, m, p, r->head, s->target, a->c.mem, err));
  r->neuron = *list;
  r->n_neurons = n;
out:
  chi_free(named);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  bool more = false;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_headscan *s = NULL;
  chi_attribution *t = NULL;
  chi_cna_neuron *list = NULL;
  chi_plan *plan = NULL;
  chi_str text = {0}, files = {0};
  json_t *j = NULL;
  chi_provenance prov;
  chi_headscan_opts o = {.target = -1, .last_row = a->last_row, .mem = a->c.mem};
  chi_attribute_opts ao = CHI_ATTRIBUTE_OPTS_INIT;
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  if (a->answer) CHI_TRY(chi_answer_token(&o.target, &more, m, p, a->answer, "--answer", err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  if (a->dump_plan) {
    CHI_TRY(chi_headscan_plan(&plan, m, p, &o, err));
    CHI_TRY(cli_dump_plan(plan, m, p, image, o.target, a->dump_plan, err));
  }
  CHI_TRY(chi_headscan_run(&s, m, p, &o, err));
  ao.target = s->target, ao.mem = a->c.mem;
  CHI_TRY(chi_attribute_run(&t, m, p, &ao, err));
  chi_heads_result r = {.scan = s, .attr = t};
  if (a->neurons > 0) CHI_TRY(compare_neurons(&r, &list, a, m, p, err));
  if (a->out) CHI_TRY(chi_heads_write(&r, &prov, a->out, &files, err));
  if (a->c.json) {
    CHI_TRY(chi_heads_json(&j, &r, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_heads_summary(&r, cli_width(), (int)a->top, &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/: %s\n", a->out, files.s ? files.s : "");
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_str_free(&text);
  chi_str_free(&files);
  chi_free(list);
  chi_attribution_free(t);
  chi_headscan_free(s);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_heads = {
    .name = "heads",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Every attention head switched off in turn, all in one sweep: how much log p(answer) is lost? Beside it\n"
        "the log-probability increase that attribute gives the head from one forward pass. --neurons: which\n"
        "MLP neurons does a head work through? Their increase in the intact run less that without the head\n"
        "(Yu and Ananiadou 2024, comparative neuron analysis).",
    .examples =
        "chiasm heads demo models/demo/samples/peru.png \"What is the capital of this country?\" -o out\n"
        "chiasm heads demo \"What is the capital of Peru?\" --neurons 20",
};

/* chiasm knockout: attention edges cut in windows of layers. */
#include "analyze/knockout.h"

#include "analyze/attribute.h"
#include "analyze/plan_json.h"
#include "analyze/select.h"
#include "cli.h"
#include "report/knockout_report.h"

typedef struct args {
  cli_common c;
  const char *edges, *window, *answer, *out, *dump_plan;
  int control_edges;
  int64_t controls, check;
  uint64_t seed;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .window = "1", .controls = 3};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--edges", .arg = "SETS", .kind = CLI_STR, CLI_AT(args, edges),
     .doc = "FROM:TO[+FROM:TO...][;...]; rows by name or as 0-3,7; else picture, constraint and last row"},
    {.name = "--window", .arg = "W", .kind = CLI_STR, CLI_AT(args, window),
     .doc = "layers cut around each layer, or as a share of the depth: 20%"},
    {.name = "--controls", .arg = "N", .kind = CLI_INT, CLI_AT(args, controls), .min = 0, .max = 10000,
     .doc = "random sets of as many other edges, cut in the same windows"},
    {.name = "--control-edges", .arg = "text|all", .kind = CLI_CHOICE, CLI_AT(args, control_edges),
     .doc = "those of rows behind the picture (the harder test), or any"},
    {.name = "--seed", .arg = "S", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "for the random edges"},
    {.name = "--answer", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, answer),
     .doc = "token whose probability is followed (text or #id); else the clean answer's first"},
    {.name = "--check", .arg = "N", .kind = CLI_INT, CLI_AT(args, check), .min = 0, .max = 1e6,
     .doc = "run N cells again as full forwards and compare the bits"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the plan that is run, for `chiasm run`"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write knockout.{json,csv}, p.{png,svg}, logp.{png,svg} there"},
    {0}};
/* clang-format on */

static int dump(const chi_knockout *k, const char *image, const char *path, chi_err *err) {
  int rc = 0;
  chi_plan *plan = NULL;
  const char *const *names = NULL;
  chi_plan_picture pic = {k->prompt->pixels, image};
  CHI_TRY(chi_knockout_plan(&plan, &names, k, err));
  chi_plan_save_opts o = {.names = names,
                          .pictures = &pic,
                          .n_pictures = image != NULL,
                          .report_row = k->prompt->n_rows - 1,
                          .target = k->target};
  CHI_TRY(chi_plan_save(plan, &k->model->net, &o, path, err));
out:
  chi_plan_free(plan);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  bool more = false;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_knockout *k = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_provenance prov;
  chi_knockout_opts o = {.edges = a->edges,
                         .controls = (int32_t)a->controls,
                         .control_all = a->control_edges == 1,
                         .seed = a->seed,
                         .target = -1,
                         .check = (int)a->check,
                         .mem = a->c.mem};
  if (!chi_select_window(&o.window, a->window, 1))
    return cli_usage(err, "--window: '%s' is no number of layers, nor a share as 20%%", a->window);
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  chi_select_window(&o.window, a->window, m->net.decoder.spec.layers);
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  if (a->answer) CHI_TRY(chi_answer_token(&o.target, &more, m, p, a->answer, "--answer", err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  prov.has_seed = true;
  prov.seed = a->seed;
  CHI_TRY(chi_knockout_run(&k, m, p, &o, err));
  if (a->dump_plan) CHI_TRY(dump(k, image, a->dump_plan, err));
  if (a->out) CHI_TRY(chi_knockout_write(k, &prov, a->out, err));
  if (a->c.json) {
    CHI_TRY(chi_knockout_json(&j, k, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_knockout_summary(k, cli_width(), &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/knockout.{json,csv}, p.{png,svg}, logp.{png,svg}\n", a->out);
    CHI_TRY(cli_print(&text, err));
  }
  if (k->checked != k->identical)
    rc = chi_fail(err, CHI_ERR_FORMAT,
                  "%d of %d checked cells differ from the full forward: this is a bug, please report it",
                  k->checked - k->identical, k->checked);
out:
  json_decref(j);
  chi_str_free(&text);
  chi_knockout_free(k);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_knockout = {
    .name = "knockout",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Through which layers does what the picture shows reach the [bracketed] words, and the words the answer?\n"
        "Attention edges (picture to constraint, picture to last token, constraint to last token, and all of them)\n"
        "are cut in a window of layers around each layer in turn; what is left of p(answer) is told beside that of\n"
        "as many random edges. Only the difference speaks of the path.",
    .examples =
        "chiasm knockout demo models/demo/samples/peru.png \"What is the capital of [this country]?\" --window 3 -o "
        "out\n"
        "chiasm knockout demo models/demo/samples/peru.png \"What is the capital of [this country]?\" \\\n"
        "  --edges \"image:constraint;image:text+image:last\" --window 25% --controls 10 --check 20",
};

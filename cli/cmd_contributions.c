/* chiasm contributions: what attention carries from row to row. */
#include "analyze/contributions.h"

#include "analyze/select.h"
#include "cli.h"
#include "report/contributions_report.h"

typedef struct args {
  cli_common c;
  const char *from, *to, *layers, *out, *dump_plan;
  int64_t late, top;
  uint64_t seed;
  bool controls;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .top = 5};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--from", .arg = "ROWS", .kind = CLI_STR, CLI_AT(args, from),
     .doc = "sources: image, constraint, text, all, or rows as 0-3,7; else image where there is a picture"},
    {.name = "--to", .arg = "ROWS", .kind = CLI_STR, CLI_AT(args, to),
     .doc = "destinations: constraint, last, text, all, or rows; else constraint (from constraint: last)"},
    {.name = "--layers", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, layers), .doc = "layers, as 0-3,7; else all"},
    {.name = "--late", .arg = "N", .kind = CLI_INT, CLI_AT(args, late), .min = 0, .max = 100000,
     .doc = "patches at the end of the picture that count as late; 0 = a sixteenth"},
    {.name = "--controls", .kind = CLI_FLAG, CLI_AT(args, controls),
     .doc = "also with the picture upside down, rolled down, and with its patches shuffled: place or content?"},
    {.name = "--seed", .arg = "S", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "for the shuffle"},
    {.name = "--top", .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 0, .max = 1000,
     .doc = "strongest heads printed"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the forward pass and what is captured of it, for `chiasm run`"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write contributions.{json,csv,safetensors}, layers.csv, heads.csv and the pictures there"},
    {0}};
/* clang-format on */

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *t = NULL;
  int32_t *from = NULL, *to = NULL, *layers = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_plan *plan = NULL;
  chi_provenance prov;
  chi_contributions_opts o = {.late = (int32_t)a->late, .controls = a->controls, .seed = a->seed, .mem = a->c.mem};
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  bool span = p->span_hi > p->span_lo;
  if (!a->from && p->n_image == 0 && !span) {
    rc = cli_usage(err, "without a picture or [bracketed] words, say --from ROWS");
    goto out;
  }
  const char *from_name = a->from ? a->from : p->n_image ? "image" : "constraint";
  const char *to_name = a->to ? a->to : span && !chi_streq(from_name, "constraint") ? "constraint" : "last";
  CHI_TRY(chi_select_rows(&from, &o.n_from, from_name, p, err));
  CHI_TRY(chi_select_rows(&to, &o.n_to, to_name, p, err));
  CHI_TRY(chi_select_ranges(&layers, &o.n_layers, a->layers, m->net.decoder.spec.layers, "layer", err));
  o.from = from;
  o.to = to;
  o.layers = layers;
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  prov.has_seed = a->controls;
  prov.seed = a->seed;
  CHI_TRY(chi_contributions_run(&t, m, p, &o, err));
  if (a->dump_plan) {
    CHI_TRY(chi_contributions_plan(&plan, t, err));
    CHI_TRY(cli_dump_plan(plan, m, p, image, t->answer, a->dump_plan, err));
  }
  if (a->out) CHI_TRY(chi_contributions_write(t, from_name, to_name, &prov, a->out, err));
  if (a->c.json) {
    CHI_TRY(chi_contributions_json(&j, t, from_name, to_name, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_contributions_summary(t, from_name, to_name, cli_width(), (int)a->top, &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/contributions.{json,csv,safetensors}, tables and pictures\n", a->out);
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_str_free(&text);
  chi_contributions_free(t);
  chi_free(from);
  chi_free(to);
  chi_free(layers);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_contributions = {
    .name = "contributions",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "What does attention carry from the picture to the [bracketed] words, and from them to the last token? The\n"
        "norm of A[i,j] W_O v_j of every layer and head, from one forward pass (Basu et al. 2024): per head with\n"
        "the largest over the rows, and summed over heads. For patches also the map on the picture and the share\n"
        "of the last ones, beside what even attention would give. A norm says how much, not what for: see knockout.",
    .examples =
        "chiasm contributions demo models/demo/samples/peru.png \"What is the capital of [this country]?\" -o out\n"
        "chiasm contributions demo models/demo/samples/peru.png \"What is the capital of [this country]?\" \\\n"
        "  --from constraint --to last",
};

/* chiasm trace: causal maps. */
#include "analyze/trace.h"

#include <stdio.h>
#include <string.h>

#include "analyze/attribute.h"
#include "analyze/plan_json.h"
#include "analyze/select.h"
#include "cli.h"
#include "report/trace_report.h"

typedef struct args {
  cli_common c;
  const char *sites, *corrupt, *donor, *target, *target_text, *noise_ref, *noise_file, *out, *dump_plan, *window;
  int window_style, direction, cells;
  int64_t check, top;
  uint64_t seed;
  bool all_rows;
} args;
static const args kDefaults = {
    .c = CLI_COMMON_DEFAULTS, .sites = "mlp,attn,hidden", .corrupt = "same-length", .window = "1", .top = 3};

static const cli_opt kOpts[] = {
    {.name = "--sites",
     .arg = "LIST",
     .kind = CLI_STR,
     CLI_AT(args, sites),
     .doc = "what is put back: mlp, attn, hidden"},
    {.name = "--window",
     .arg = "W",
     .kind = CLI_STR,
     CLI_AT(args, window),
     .doc = "layers in a window (not for hidden), or its share of the depth: 20%"},
    {.name = "--window-style",
     .arg = "rome|released",
     .kind = CLI_CHOICE,
     CLI_AT(args, window_style),
     .doc = "W layers, or W to each side as in the released script"},
    {.name = "--corrupt",
     .arg = "HOW",
     .kind = CLI_STR,
     CLI_AT(args, corrupt),
     .doc = "same-length, words:TEXT, released[:WORD], pool:K, noise[:3s],samples=10,seed=S, picture:FILE"},
    {.name = "--noise-ref",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, noise_ref),
     .doc = "entities, a line each, whose token embeddings set the noise's unit"},
    {.name = "--noise-file",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, noise_file),
     .doc = "noise arrays to use: an earlier trace.safetensors"},
    {.name = "--direction",
     .arg = "denoise|noise",
     .kind = CLI_CHOICE,
     CLI_AT(args, direction),
     .doc = "clean value into the corrupted run, or the other way round"},
    {.name = "--donor",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, donor),
     .doc = "control: also put back values from a clean run about this picture"},
    {.name = "--target",
     .arg = "TOKEN",
     .kind = CLI_STR,
     CLI_AT(args, target),
     .doc = "token whose probability is followed (text or #id); else the clean answer's first"},
    {.name = "--target-text",
     .arg = "TEXT",
     .kind = CLI_STR,
     CLI_AT(args, target_text),
     .doc = "also the joint log-probability of this whole answer"},
    {.name = "--cells",
     .arg = "token|span",
     .kind = CLI_CHOICE,
     CLI_AT(args, cells),
     .doc = "the constraint's tokens one by one, or all of them put back together as one cell"},
    {.name = "--all-rows",
     .kind = CLI_FLAG,
     CLI_AT(args, all_rows),
     .doc = "every row, not only from the last picture row on"},
    {.name = "--check",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, check),
     .min = 0,
     .max = 1e6,
     .doc = "run N cells again as full forwards and compare the bits"},
    {.name = "--seed",
     .arg = "S",
     .kind = CLI_UINT,
     CLI_AT(args, seed),
     .doc = "for the choice of entities and for noise"},
    {.name = "--top",
     .arg = "K",
     .kind = CLI_INT,
     CLI_AT(args, top),
     .min = 1,
     .max = 64,
     .doc = "strongest cells printed for each site"},
    {.name = "--dump-plan",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, dump_plan),
     .doc = "write the plan that is run, for `chiasm run`"},
    {.name = "--output",
     .letter = 'o',
     .arg = "DIR",
     .kind = CLI_STR,
     CLI_AT(args, out),
     .doc = "write trace.json, .csv, .safetensors, .png, .svg there"},
    {0}};

static int parse_sites(bool site[CHI_TRACE_SITES], const char *list, chi_err *err) {
  char buf[256], *save = NULL;
  bool any = false;
  snprintf(buf, sizeof buf, "%s", list);
  for (char *p = strtok_r(buf, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
    int s = 0;
    while (s < CHI_TRACE_SITES && strcmp(chi_trace_site_name[s], p) != 0) s++;
    if (s == CHI_TRACE_SITES) return cli_usage(err, "--sites: '%s' is not one of mlp, attn, hidden", p);
    site[s] = any = true;
  }
  return any ? 0 : cli_usage(err, "--sites names nothing");
}

static int dump_plan(const chi_trace *t, const char *image, const char *donor, const char *path, chi_err *err);

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0;
  bool more = false;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_trace *t = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_provenance prov;
  chi_trace_opts o = {.span_cell = a->cells == 1,
                      .released_window = a->window_style == 1,
                      .noise_direction = a->direction == 1,
                      .donor = a->donor,
                      .target = -1,
                      .target_text = a->target_text,
                      .all_rows = a->all_rows,
                      .check = (int)a->check,
                      .mem = a->c.mem,
                      .corrupt = {.spec = a->noise_file ? "noise" : a->corrupt,
                                  .noise_ref = a->noise_ref,
                                  .noise_file = a->noise_file,
                                  .seed = a->seed}};
  int32_t window;
  if (!chi_select_window(&window, a->window, 1))
    return cli_usage(err, "--window: '%s' is no number of layers, nor a share as 20%%", a->window);
  CHI_TRY(parse_sites(o.site, a->sites, err));
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  chi_select_window(&window, a->window, m->net.decoder.spec.layers);
  o.window = window;
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, true, err));
  if (a->target) CHI_TRY(chi_answer_token(&o.target, &more, m, p, a->target, "--target", err)); /* its first token */
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  prov.has_seed = true;
  prov.seed = a->seed;
  CHI_TRY(chi_trace_run(&t, m, p, &o, err));
  if (a->dump_plan) CHI_TRY(dump_plan(t, image, a->donor, a->dump_plan, err));
  if (a->out) CHI_TRY(chi_trace_write(t, &prov, a->out, err));
  if (a->c.json) {
    CHI_TRY(chi_trace_json(&j, t, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_trace_summary(t, cli_width(), (int)a->top, &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/trace.{png,svg,json,csv,safetensors}\n", a->out);
    CHI_TRY(cli_print(&text, err));
  }
  if (t->checked != t->identical)
    rc = chi_fail(err, CHI_ERR_FORMAT,
                  "%d of %d checked cells differ from the full forward: this is a bug, please report it",
                  t->checked - t->identical, t->checked);
out:
  json_decref(j);
  chi_str_free(&text);
  chi_trace_free(t);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

/* The whole map's plan: pictures are named by their files, so that `chiasm run` repeats every cell. */
static int dump_plan(const chi_trace *t, const char *image, const char *donor, const char *path, chi_err *err) {
  int rc = 0;
  chi_plan *plan = NULL;
  chi_plan_picture pic[3];
  size_t n = 0;
  if (image) pic[n++] = (chi_plan_picture){t->prompt->pixels, image};
  if (t->donor) pic[n++] = (chi_plan_picture){t->donor->pixels, donor};
  CHI_TRY(chi_trace_plan(&plan, t, err));
  chi_plan_save_opts o = {.pictures = pic, .n_pictures = n, .report_row = t->prompt->n_rows - 1, .target = t->target};
  CHI_TRY(chi_plan_save(plan, &t->model->net, &o, path, err));
out:
  chi_plan_free(plan);
  return rc;
}

const cli_command cmd_trace = {
    .name = "trace",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Where is the fact about the [bracketed] words kept? Runs the question clean, with the constraint\n"
        "corrupted, and once for every layer and token with the clean value put back; prints the cells that\n"
        "restore the answer. With --donor, beside what another picture's value restores: only the difference\n"
        "speaks of the fact itself.",
    .examples =
        "chiasm trace demo models/demo/samples/peru.png \"What is the capital of [this country]?\" -o out\n"
        "chiasm trace demo \"What is the capital of [Peru]?\" --corrupt noise:3s,samples=10 --window 3",
};

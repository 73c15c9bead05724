/* chiasm explain: which patches carried the answer, by many explainers on one picture. */
#include "analyze/explain.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli.h"
#include "report/explain_report.h"

typedef struct args {
  cli_common c;
  const char *answer, *explainers, *out;
  int64_t heads, steps;
  double scale;
  uint64_t seed;
  bool list;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .explainers = "all", .heads = 10, .steps = 50, .scale = 2};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--explainer", .letter = 'e', .arg = "A,B", .kind = CLI_STR, CLI_AT(args, explainers),
     .doc = "which, in this order; --list names them"},
    {.name = "--list", .kind = CLI_FLAG, CLI_AT(args, list), .doc = "print the explainers and stop"},
    {.name = "--answer", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, answer),
     .doc = "token that is explained (text or #id); else the model's first answer token"},
    {.name = "--heads", .arg = "K", .kind = CLI_INT, CLI_AT(args, heads), .min = 1, .max = 1e6,
     .doc = "heads that increase-top sums"},
    {.name = "--steps", .arg = "N", .kind = CLI_INT, CLI_AT(args, steps), .min = 1, .max = 100000,
     .doc = "of integrated gradients"},
    {.name = "--seed", .arg = "N", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of noise and of the random map"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write explain.{json,csv,png,svg} there; more than four maps: explain-1.png, ..."},
    {.name = "--scale", .arg = "X", .kind = CLI_FLOAT, CLI_AT(args, scale), .min = 0.25, .max = 8,
     .doc = "pixels a unit in PNG"},
    {0}};
/* clang-format on */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int list(chi_err *err) {
  int n;
  const chi_explainer *x = chi_explainers(&n);
  chi_str s = {0};
  for (int i = 0; i < n; i++) chi_str_addf(&s, "%-21s %s\n", x[i].name, x[i].doc);
  int rc = cli_print(&s, err);
  chi_str_free(&s);
  return rc;
}

/* Every map that this model has; what it has not stays with its reason. */
static int explain(chi_explain *e, chi_explained *x, int n, bool all, chi_arena *a, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    double at = now();
    double *map = chi_arena_array(a, (size_t)e->n, sizeof *map, err);
    CHI_TRY(map ? 0 : CHI_ERR_MEMORY);
    e->remover->what = x[i].x->name;
    rc = chi_explain_map(e, x[i].x, map, &why);
    x[i].seconds = now() - at;
    if (rc == 0) {
      x[i].map = map;
    } else if (rc == CHI_ERR_UNSUPPORTED && all) {
      snprintf(x[i].why, sizeof x[i].why, "%s", why.text);
      rc = 0;
    } else {
      rc = chi_fail(err, rc, "%s", why.text);
      goto out;
    }
    CHI_TRY(chi_progress("explainers", i + 1, n, err));
  }
out:
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0, n = 0;
  bool more = false;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_explain *e = NULL;
  const chi_explainer **which = NULL;
  chi_explained *x = NULL;
  chi_str text = {0}, files = {0};
  chi_arena arena = {0};
  json_t *j = NULL;
  chi_provenance prov;
  chi_explain_opts o = CHI_EXPLAIN_OPTS_INIT;
  if (a->list) return list(err);
  if (c->n_pos < 3) return cli_usage(err, "explain needs MODEL IMAGE QUESTION");
  cli_image_question(c, &image, &question);
  CHI_TRY(chi_explainers_parse(&which, &n, a->explainers, err));
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  o.n_heads = (int32_t)a->heads, o.steps = (int32_t)a->steps, o.seed = a->seed, o.mem = a->c.mem;
  if (a->answer) CHI_TRY(chi_answer_token(&o.target, &more, m, p, a->answer, "--answer", err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  prov.has_seed = true, prov.seed = a->seed;
  CHI_TRY(chi_explain_open(&e, m, p, &o, err));
  CHI_TRY((x = chi_calloc((size_t)n, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++) x[i].x = which[i];
  CHI_TRY(explain(e, x, n, chi_streq(a->explainers, "all"), &arena, err));
  if (a->out) CHI_TRY(chi_explain_write(e, x, n, a->scale, &prov, a->out, &files, err));
  if (a->c.json) {
    CHI_TRY(chi_explain_json(&j, e, x, n, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_explain_summary(e, x, n, cli_width(), &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/: %s\n", a->out, files.s ? files.s : "");
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_arena_free(&arena);
  chi_str_free(&text);
  chi_str_free(&files);
  chi_explain_close(e);
  chi_free(x);
  chi_free(which);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_explain = {
    .name = "explain",
    .usage = "[MODEL] [IMAGE] [QUESTION]",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Which patches of the picture carried the answer? Many explainers through one interface, side by side:\n"
        "log-probability increase, average attention, rollout, gradient x attention, integrated gradients,\n"
        "attribution patching, the logit lens, removing one patch after the other (its vector, its pixels or\n"
        "its edges), and two baselines that look at nothing. Units differ between explainers; the order of the\n"
        "patches is what can be compared. chiasm eval attribution tests them on pictures with known masks.",
    .examples =
        "chiasm explain demo models/demo/samples/peru.png \"What is the capital of this country?\" -o out\n"
        "chiasm explain demo models/demo/samples/peru.png \"What is the capital of this country?\" "
        "-e increase,cut-text,remove-mean\n"
        "chiasm explain --list",
};

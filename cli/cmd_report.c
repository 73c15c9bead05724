/* chiasm report: what a study's run says. */
#include "report/study_report.h"

#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  const char *out;
  chi_study_report_opts o;
  int64_t draws;
} args;
static const args kDefaults = {.draws = 10000, .o = {.alpha = 0.05}};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "folder of the report; else RUN/report"},
    {.name = "--keep-wrong", .kind = CLI_FLAG, CLI_AT(args, o.keep_wrong),
     .doc = "the filtered view keeps wrong answers"},
    {.name = "--min-p", .arg = "P", .kind = CLI_FLOAT, CLI_AT(args, o.min_p), .min = 0, .max = 1,
     .doc = "filter: least p of the clean answer"},
    {.name = "--form", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, o.group),
     .doc = "filter: only items of this form"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, o.split),
     .doc = "filter: only items of this split"},
    {.name = "--draws", .arg = "N", .kind = CLI_INT, CLI_AT(args, draws), .min = 100, .max = 1e6,
     .doc = "of bootstrap and permutation"},
    {.name = "--alpha", .arg = "P", .kind = CLI_FLOAT, CLI_AT(args, o.alpha), .min = 1e-6, .max = 0.5,
     .doc = "family-wise level of the outlines"},
    {.name = "--seed", .arg = "S", .kind = CLI_UINT, CLI_AT(args, o.seed), .doc = "of bootstrap and permutation"},
    {0}};
/* clang-format on */

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0;
  char dir[4096];
  chi_str text = {0};
  chi_provenance prov;
  a->o.draws = (int)a->draws;
  if (a->out)
    snprintf(dir, sizeof dir, "%.4000s", a->out);
  else
    CHI_TRY(chi_path_join(dir, sizeof dir, c->pos[0], "report", err));
  CHI_TRY(cli_provenance(&prov, c, NULL, NULL, NULL, err));
  CHI_TRY(chi_study_report(c->pos[0], dir, &a->o, &prov, err));
  chi_str_addf(&text, "wrote %s/report.html, report.json, maps.csv, curves.csv, items.csv and figures\n", dir);
  CHI_TRY(cli_print(&text, err));
out:
  chi_str_free(&text);
  return rc;
}

const cli_command cmd_report = {
    .name = "report",
    .usage = "RUN",
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Averaged maps by token role with own, donor and difference, peaks with intervals, curves by layer,\n"
        "failure prediction: one page that needs nothing else, tables as CSV, figures as PNG and SVG. All items\n"
        "are shown beside the filtered ones (right answers, unless --keep-wrong), and every filter is counted.",
    .examples = "chiasm report run\nchiasm report run --min-p 0.5 -o run/sure",
};

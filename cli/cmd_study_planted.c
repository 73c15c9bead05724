/* chiasm study planted: facts put into a known layer, and the layer that each method names. */
#include "report/study_planted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  const char *out;
} args;
static const cli_opt kOpts[] = {{.name = "--output",
                                 .letter = 'o',
                                 .arg = "FILE",
                                 .kind = CLI_STR,
                                 CLI_AT(args, out),
                                 .doc = "CSV: how many items of each planted layer a method puts into which layer"},
                                {0}};

/* "RUN:LAYER": the folder and the layer. */
static int parse(char *dir, size_t cap, int *layer, const char *text, chi_err *err) {
  const char *colon = strrchr(text, ':');
  char *end = NULL;
  long n = colon ? strtol(colon + 1, &end, 10) : -1;
  if (!colon || colon == text || !colon[1] || *end || n < 0 || n > 100000)
    return cli_usage(err, "'%s' is not RUN:LAYER, as run-3:3", text);
  snprintf(dir, cap, "%.*s", (int)(colon - text), text);
  *layer = (int)n;
  return 0;
}

static void show(const chi_planted *p, chi_str *text) {
  for (int k = 0; k < p->n_runs; k++)
    chi_str_addf(text, "planted in layer %d: %d items, %d answered right\n", p->layer[k], p->items[k], p->right[k]);
  chi_str_addf(text, "chance: 1 of %d, %.1f %%\n\n%-10s %-14s %5s %5s %18s %8s  %s\n", p->row[0].layers,
               100.0 / p->row[0].layers, "asked as", "method", "items", "right", "share (95 %)", "+- 1",
               "layers named, by planted layer");
  for (int32_t r = 0; r < p->n_rows; r++) {
    const chi_planted_row *row = &p->row[r];
    char share[64];
    snprintf(share, sizeof share, "%.1f (%.1f-%.1f) %%", 100.0 * row->hits / row->n, 100 * row->lo, 100 * row->hi);
    chi_str_addf(text, "%-10s %-14s %5d %5d %18s %6.1f %%  ", row->ask, row->method, row->n, row->hits, share,
                 100.0 * row->near / row->n);
    for (int k = 0; k < p->n_runs; k++) {
      chi_str_addf(text, "%s%d:", k ? "  " : "", p->layer[k]);
      for (int32_t l = 0; l < row->layers; l++) {
        int32_t n = row->named[(size_t)k * CHI_PLANTED_LAYERS + (size_t)l];
        if (n) chi_str_addf(text, " %dx%d", n, (int)l);
      }
    }
    chi_str_add(text, "\n");
  }
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0, layer[CHI_PLANTED_RUNS];
  char dir[CHI_PLANTED_RUNS][4096];
  const char *dirs[CHI_PLANTED_RUNS];
  chi_planted p = {0};
  chi_str text = {0};
  for (int i = 0; i < c->n_pos && i < CHI_PLANTED_RUNS; i++) {
    CHI_TRY(parse(dir[i], sizeof dir[i], &layer[i], c->pos[i], err));
    dirs[i] = dir[i];
  }
  CHI_TRY(chi_planted_read(&p, dirs, layer, c->n_pos, err));
  if (a->out) CHI_TRY(chi_planted_csv(&p, a->out, err));
  show(&p, &text);
  CHI_TRY(cli_print(&text, err));
out:
  chi_planted_free(&p);
  chi_str_free(&text);
  return rc;
}

const cli_command cmd_study_planted = {
    .name = "study planted",
    .usage = "RUN:LAYER [RUN:LAYER] [RUN:LAYER] [RUN:LAYER]",
    .opts = kOpts,
    .args_size = sizeof(args),
    .run = run,
    .text =
        "Runs over facts that were put into a known layer, one run a layer: how often each method puts that layer\n"
        "first, with Wilson's interval, beside chance. Causal maps (E, and D, less the donor's), contributions,\n"
        "cut edges and attribution count, as far as the runs have them; items that the model answers right.",
    .examples = "chiasm study planted run-3:3 run-6:6 run-9:9 -o planted.csv",
};

/* chiasm bench: how fast this machine is, beside ceilings measured in the same run. */
#include "eval/bench.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cli.h"
#include "report/growth_report.h"

typedef struct args {
  cli_common c;
  int64_t runs, rows, sample;
  const char *out;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--runs", .arg = "N", .kind = CLI_INT, CLI_AT(args, runs), .min = 0, .max = 1000,
     .doc = "runs to take the median of; 0 is 21 for products and tokens, 5 for whole runs, 3 for loading"},
    {.name = "--rows", .arg = "N", .kind = CLI_INT, CLI_AT(args, rows), .min = 0, .max = 1 << 20,
     .doc = "rows of the prompt for prefill and decode; 0 is 600, or what the context holds"},
    {.name = "--sample", .arg = "N", .kind = CLI_INT, CLI_AT(args, sample), .min = 0, .max = 1 << 20,
     .doc = "patches that attribute removes, evenly spread, eight times as many where edges are cut; of growth, "
            "points of each kind; 0 is all"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "where growth writes growth.csv and its charts"},
    {0}};
/* clang-format on */

static double peak_gb(void) {
  struct rusage u;
  return getrusage(RUSAGE_SELF, &u) == 0 ? 1024e-9 * (double)u.ru_maxrss : 0;
}

static int print_bench(cli *c, const chi_bench *b, chi_err *err) {
  static const char *const head[] = {"", "median", "runs", "rate", "unit", "limit", "share"};
  int rc = 0;
  chi_str s = {0};
  chi_table *t = NULL;
  json_t *j = NULL;
  chi_provenance prov;
  if (c->common->json) {
    json_t *list = json_array();
    CHI_TRY(cli_provenance(&prov, c, NULL, NULL, NULL, err));
    CHI_TRY(chi_report_json(&j, "bench", &prov, err));
    int bad = json_object_set_new(j, "threads", json_integer(chi_threads()));
    bad |= json_object_set_new(j, "peak_memory_gb", json_real(peak_gb()));
    bad |= json_object_set_new(j, "rows", list);
    for (size_t i = 0; i < b->n; i++) {
      const chi_bench_row *r = &b->row[i];
      bad |= json_array_append_new(list, json_pack("{s:s,s:f,s:i,s:f,s:s,s:o}", "what", r->what, "median_seconds",
                                                   r->seconds, "runs", r->runs, "rate", r->rate, "unit", r->unit,
                                                   "limit", r->ceiling > 0 ? json_real(r->ceiling) : json_null()));
    }
    CHI_TRY(bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : 0);
    CHI_TRY(cli_print_json(j, err));
    goto out;
  }
  CHI_TRY(chi_table_new(&t, head, "lrrrlrr", err));
  for (size_t i = 0; i < b->n; i++) {
    const chi_bench_row *r = &b->row[i];
    chi_table_cell(t, "%s", r->what);
    chi_table_cell(t, r->seconds < 1 ? "%.2f ms" : "%.2f s", r->seconds < 1 ? 1e3 * r->seconds : r->seconds);
    chi_table_cell(t, "%d", r->runs);
    chi_table_cell(t, "%.1f", r->rate);
    chi_table_cell(t, "%s", r->unit);
    if (r->ceiling > 0) {
      chi_table_cell(t, "%.1f", r->ceiling);
      chi_table_cell(t, "%.0f %%", 100 * r->rate / r->ceiling);
    } else {
      chi_table_cell(t, "%s", "");
      chi_table_cell(t, "%s", "");
    }
  }
  CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  chi_str_addf(&s, "%s, %d threads, peak memory %.2f GB\n", chi_isa_name(chi_cpu_isa()), chi_threads(), peak_gb());
  CHI_TRY(cli_print(&s, err));
out:
  json_decref(j);
  chi_table_free(t);
  chi_str_free(&s);
  return rc;
}

/* ---- what can be measured ------------------------------------------------------------------------------------ */
typedef struct job { /* what a measurement is given, and where its rows go */
  cli *c;
  const args *a;
  chi_bench *b;
  const char *path; /* of the model that is named */
  chi_model *m;
  chi_prompt *p;
} job;

static int gemm(const job *j, chi_err *err) { return chi_bench_gemm(j->b, err); }
static int load(const job *j, chi_err *err) {
  return chi_bench_load(j->b, j->path, (chi_dtype_choice)j->c->common->dtype, err);
}
static int prefill(const job *j, chi_err *err) {
  return chi_bench_prefill(j->b, j->m, (int32_t)j->a->rows, j->a->c.mem, err);
}
static int decode(const job *j, chi_err *err) {
  return chi_bench_decode(j->b, j->m, (int32_t)j->a->rows, j->a->c.mem, err);
}
static int trace(const job *j, chi_err *err) { return chi_bench_trace(j->b, j->m, j->p, j->a->c.mem, err); }
static int attribute(const job *j, chi_err *err) {
  return chi_bench_attribute(j->b, j->m, j->p, (int32_t)j->a->sample, j->a->c.mem, err);
}
static int growth(const job *j, chi_err *err) {
  int rc = 0, n = 0;
  const args *a = j->a;
  chi_growth_point g[CHI_GROWTH_POINTS];
  chi_provenance prov;
  if (!a->out) return cli_usage(err, "bench growth writes into a folder: -o DIR");
  CHI_TRY(chi_mkdirs(a->out, err));
  CHI_TRY(chi_bench_growth(g, &n, (int)a->sample, a->out, (int)a->runs, a->c.mem, err));
  CHI_TRY(cli_provenance(&prov, j->c, NULL, NULL, NULL, err));
  CHI_TRY(chi_growth_report(g, n, &prov, a->out, err));
out:
  return rc;
}

typedef enum needs { NOTHING, A_PATH, A_MODEL, A_PROMPT, A_CONSTRAINT } needs; /* each has what those before it have */
static const struct kind {
  const char *name;
  needs needs;
  int (*run)(const job *j, chi_err *err);
  bool reports; /* writes files of its own in place of a table */
} kKinds[] = {{"gemm", NOTHING, gemm, false},        {"load", A_PATH, load, false},
              {"prefill", A_MODEL, prefill, false},  {"decode", A_MODEL, decode, false},
              {"trace", A_CONSTRAINT, trace, false}, {"attribute", A_PROMPT, attribute, false},
              {"growth", NOTHING, growth, true}};
enum { kCount = sizeof kKinds / sizeof *kKinds };

static int find_kind(const struct kind **out, const cli *c, chi_err *err) {
  int rc = 0;
  chi_str names = {0};
  *out = NULL;
  for (int i = 0; i < kCount; i++) {
    chi_str_addf(&names, "%s%s", i ? ", " : "", kKinds[i].name);
    if (c->n_pos && strcmp(c->pos[0], kKinds[i].name) == 0) *out = &kKinds[i];
  }
  if (names.failed)
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  else if (c->n_pos == 0)
    rc = cli_usage(err, "bench needs one of %s", names.s);
  else if (!*out)
    rc = cli_usage(err, "no measurement '%s'; there are %s", c->pos[0], names.s);
  chi_str_free(&names);
  return rc;
}

static int check_words(const struct kind *k, const cli *c, chi_err *err) {
  int least = k->needs == NOTHING ? 1 : k->needs <= A_MODEL ? 2 : 3, most = k->needs >= A_PROMPT ? 4 : least;
  if (c->n_pos >= least && c->n_pos <= most) return 0;
  return cli_usage(err, "bench %s takes %s", k->name,
                   least == 1   ? "no more words"
                   : least == 2 ? "MODEL"
                                : "MODEL [IMAGE] QUESTION");
}

static int set_machine(const cli *c, chi_err *err) {
  const char *isa = c->common->isa ? c->common->isa : getenv("CHIASM_ISA");
  chi_set_threads((int)c->common->threads);
  return chi_cpu_init(isa && *isa ? isa : NULL, err);
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  const args *a = v;
  char path[PATH_MAX];
  const struct kind *k;
  chi_bench b = {.runs = (int)a->runs};
  job j = {.c = c, .a = a, .b = &b, .path = path};
  CHI_TRY(find_kind(&k, c, err));
  CHI_TRY(check_words(k, c, err));
  CHI_TRY(set_machine(c, err));
  if (k->needs >= A_PATH) CHI_TRY(cli_model_path(path, sizeof path, c->pos[1], err));
  if (k->needs >= A_MODEL) CHI_TRY(cli_open_model(&j.m, c, c->pos[1], err));
  if (k->needs >= A_PROMPT)
    CHI_TRY(cli_make_prompt(&j.p, c, j.m, c->n_pos > 3 ? c->pos[2] : NULL, c->pos[c->n_pos - 1],
                            k->needs == A_CONSTRAINT, err));
  CHI_TRY(k->run(&j, err));
  if (!k->reports) CHI_TRY(print_bench(c, &b, err));
out:
  chi_prompt_free(j.p);
  chi_model_free(j.m);
  chi_bench_free(&b);
  return rc;
}

const cli_command cmd_bench = {
    .name = "bench",
    .usage = "[WHAT] [MODEL] [IMAGE] [QUESTION]",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "WHAT is gemm (products of a 7B decoder's sizes, no model), load MODEL, prefill MODEL, decode MODEL\n"
        "(prompts of --rows tokens without a meaning, with a picture where the model takes one),\n"
        "trace MODEL [IMAGE] QUESTION (a whole causal map, noise on the bracketed words), attribute MODEL\n"
        "[IMAGE] QUESTION (all heads beside one forward pass, and patches removed), or growth (maps of small\n"
        "random models with more layers, text and picture, as a table and charts). Each figure is a median.\n"
        "The limit beside it was measured in the same run: independent multiply-adds in registers, or reading\n"
        "512 MB of memory, for a product the lower of the two; for patches one pass each. Weights of products\n"
        "change from run to run and are 512 MB together, so that no cache holds them.",
    .examples =
        "chiasm bench gemm\nchiasm bench prefill demo --json\n"
        "chiasm bench trace demo models/demo/samples/peru.png \"What is the capital of [this country]?\"",
};

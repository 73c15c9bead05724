/* chiasm eval incontext: in-context lookup by heads over a data set. */
#include <stdio.h>

#include "cli.h"
#include "file/jlog.h"
#include "report/lookup_report.h"

typedef struct args {
  cli_common c;
  const char *model, *bare, *out, *split, *form, *relation;
  int64_t limit, heads, rows;
  uint64_t seed;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS,
                               .model = "demo",
                               .split = "all",
                               .form = "all",
                               .relation = "all",
                               .heads = 10,
                               .rows = 20};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .letter = 'm', .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model"},
    {.name = "--text-model", .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, bare),
     .doc = "the twins without a picture are asked of this model too, e.g. the bare language model"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "results and items.jsonl, the log that a stopped run goes on from (required)"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "items of this split, or all"},
    {.name = "--form", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, form), .doc = "items of this form, or all"},
    {.name = "--relation", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, relation),
     .doc = "items of this relation, or all"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N of them; 0 = all"},
    {.name = "--heads", .arg = "K", .kind = CLI_INT, CLI_AT(args, heads), .min = 1, .max = 1e6, .doc = "best heads"},
    {.name = "--rows", .arg = "N", .kind = CLI_INT, CLI_AT(args, rows), .min = 1, .max = 1e6,
     .doc = "best rows of each head"},
    {.name = "--seed", .arg = "N", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of rivals and intervals"},
    {0}};
/* clang-format on */

static bool wanted(const char *name, const char *want) { return chi_streq(want, "all") || chi_streq(name, want); }

static int choose(const chi_data_item ***out, size_t *n, const chi_dataset *d, const args *a, chi_err *err) {
  const chi_data_item **list = chi_calloc(d->n + 1, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  *n = 0;
  *out = list;
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    if (it->problem || !it->ask.question || !it->ask.answer || !it->entity || !it->relation) continue;
    if (wanted(it->split, a->split) && wanted(it->form, a->form) && wanted(it->relation, a->relation))
      list[(*n)++] = it;
  }
  if (*n) return 0;
  return chi_fail(err, CHI_ERR_ARG, "%s has no item with an answer in split '%s', form '%s', relation '%s'", d->name,
                  a->split, a->form, a->relation);
}

static json_t *settings_json(const cli *c, const args *a, const chi_model *m, const chi_model *bare,
                             const chi_dataset *d) {
  return json_pack("{s:s,s:i,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I}", "kind", "incontext-test", "format", 1, "model",
                   m->hash, "text_model", bare ? bare->hash : "", "items", d->hash, "split", a->split, "form", a->form,
                   "relation", a->relation, "template", c->common->tmpl ? c->common->tmpl : "", "heads",
                   (json_int_t)a->heads, "rows", (json_int_t)a->rows, "seed", (json_int_t)a->seed);
}

static int run_all(chi_jlog *log, const chi_model *m, const chi_data_item *const *list, size_t n, int64_t limit,
                   const chi_lookup_opts *o, chi_err *err) {
  int rc = 0;
  size_t end = limit && (size_t)limit < n ? (size_t)limit : n;
  for (size_t i = 0; i < end; i++) {
    json_t *line = NULL;
    if (!chi_jlog_find(log, list[i]->id)) {
      CHI_TRY(chi_lookup_line(&line, m, list[i], chi_lookup_other(list, n, i, o->seed), o, err));
      rc = chi_jlog_add(log, line, err);
      json_decref(line);
      if (rc) goto out;
    }
    CHI_TRY(chi_progress("items", (int64_t)i + 1, (int64_t)end, err));
  }
out:
  return rc;
}

static int finish(cli *c, const args *a, chi_model *m, const chi_dataset *d, const chi_jlog *log,
                  const json_t *settings, chi_err *err) {
  int rc = 0;
  chi_lookup_table *t = NULL;
  chi_str text = {0};
  chi_provenance prov;
  json_t *j = NULL;
  const chi_boot_opts boot = {.seed = a->seed};
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  prov.data_hash = d->hash, prov.has_seed = true, prov.seed = a->seed;
  CHI_TRY(chi_lookup_table_make(&t, chi_jlog_lines(log), m->net.decoder.spec.layers * m->net.decoder.spec.heads, &boot,
                                err));
  CHI_TRY(chi_lookup_write(t, settings, &prov, a->out, err));
  if (a->c.json) {
    CHI_TRY(chi_lookup_json(&j, t, settings, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_lookup_summary(t, cli_width(), &text, err));
    chi_str_addf(&text, "\nwrote %s/: items.jsonl incontext.{json,csv}\n", a->out);
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_str_free(&text);
  chi_lookup_table_free(t);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  char path[4096];
  size_t n = 0;
  chi_model *m = NULL, *bare = NULL;
  chi_dataset *d = NULL;
  chi_jlog *log = NULL;
  const chi_data_item **list = NULL;
  json_t *settings = NULL;
  if (!a->out) return cli_usage(err, "-o DIR is required");
  CHI_TRY(cli_open_model(&m, c, a->model, err));
  if (a->bare) CHI_TRY(cli_open_base(&bare, c, a->bare, err));
  CHI_TRY(chi_dataset_open(&d, c->pos[0], NULL, err));
  CHI_TRY(choose(&list, &n, d, a, err));
  CHI_TRY(chi_model_hash(m, err));
  if (bare) CHI_TRY(chi_model_hash(bare, err));
  settings = settings_json(c, a, m, bare, d);
  CHI_TRY(settings ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  CHI_TRY(chi_mkdirs(a->out, err));
  CHI_TRY(chi_path_join(path, sizeof path, a->out, "items.jsonl", err));
  CHI_TRY(chi_jlog_open(&log, path, settings, err));
  const chi_lookup_opts o = {.bare = bare,
                             .tmpl = a->c.tmpl,
                             .n_heads = (int32_t)a->heads,
                             .n_rows = (int32_t)a->rows,
                             .seed = a->seed,
                             .mem = a->c.mem};
  cli_focus("items");
  rc = run_all(log, m, list, n, a->limit, &o, err);
  cli_focus(NULL);
  CHI_TRY(rc);
  CHI_TRY(finish(c, a, m, d, log, settings, err));
out:
  chi_jlog_close(log);
  json_decref(settings);
  chi_free(list);
  chi_dataset_close(d);
  chi_model_free(bare);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_eval_incontext = {
    .name = "eval incontext",
    .usage = "SET",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "What chiasm incontext measures, for every item of a set, its described and its named twin, and those\n"
        "without a picture also for the bare language model: what the best heads write of the answer and of a\n"
        "rival, what was written of the asked thing and of another where they read, attention when another thing\n"
        "is asked about, patch vectors against input embeddings, and how many of the best heads two ways of\n"
        "asking share. Rivals are the answer and the thing of another item of the same form and relation.\n"
        "Means are over items answered right; intervals: bootstrap over entities. A stopped run goes on where it\n"
        "was when the command is given again.",
    .examples =
        "chiasm eval incontext models/demo/eval/items.jsonl -m demo -o lookup --split test --form scene \\\n"
        "  --relation color --text-model models/demo-text",
};

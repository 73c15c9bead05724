/* chiasm eval edits: every edit of a set, and what it moved. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "edit_opts.h"
#include "eval_chain.h"
#include "edit/ike.h"
#include "report/edits_report.h"

typedef struct args {
  cli_common c;
  cli_edit_args e;
  const char *model, *split, *out, *before, *sweep, *chain, *untouched;
  int64_t limit, others, every, probes, n_untouched;
  bool baselines, trace, random;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS,
                               .e = CLI_EDIT_DEFAULTS,
                               .model = "demo",
                               .split = "all",
                               .others = 50,
                               .every = 1,
                               .n_untouched = 500};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .letter = 'm', .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "log, one JSON object a line; a run that was stopped goes on from it"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "edits of this split, or all"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N edits; 0 = all"},
    {.name = "--every", .arg = "K", .kind = CLI_INT, CLI_AT(args, every), .min = 1, .max = 1e9,
     .doc = "only each K-th edit of the split, the first one first"},
    {.name = "--probes", .arg = "N", .kind = CLI_INT, CLI_AT(args, probes), .min = 0, .max = 1e9,
     .doc = "of each kind only the first N probes; 0 = all"},
    {.name = "--before", .arg = "LOG", .kind = CLI_STR, CLI_AT(args, before),
     .doc = "log of another run of this set and model, such as --method none: what was said before is taken from it"},
    {.name = "--sweep", .arg = "A-B", .kind = CLI_STR, CLI_AT(args, sweep),
     .doc = "a row for every layer from A to B, edited alone, and which is best"},
    {.name = "--trace", .kind = CLI_FLAG, CLI_AT(args, trace),
     .doc = "also the effect of tracing under picture swap at the edited cell, and its rank correlation with success"},
    {.name = "--sequential", .arg = "N,N", .kind = CLI_STR, CLI_AT(args, chain),
     .doc = "edits stay, one on top of the other; after so many, such as 1,10,100, all so far are asked again"},
    {.name = "--untouched", .arg = "ITEMS", .kind = CLI_STR, CLI_AT(args, untouched),
     .doc = "with --sequential: items of this file and split, about none of the edited entities, are asked too"},
    {.name = "--untouched-limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, n_untouched), .min = 0, .max = 1e9,
     .doc = "so many of them at most, evenly spaced; 0 = all"},
    {.name = "--random-site", .kind = CLI_FLAG, CLI_AT(args, random),
     .doc = "the method at a random layer and row of each prompt in place of its own: a row of --baselines alone"},
    {.name = "--baselines", .kind = CLI_FLAG, CLI_AT(args, baselines),
     .doc = "also rows for no edit, the bias edit, and the method at a random layer and row"},
    {.name = "--others", .arg = "N", .kind = CLI_INT, CLI_AT(args, others), .min = 1, .max = 10000,
     .doc = "pictures of others whose keys are compared with the edit's"},
    CLI_EDIT_OPTS(args, e),
    {0}};
/* clang-format on */

enum { kLayers = 128, kEditors = kLayers + 3 };
typedef struct work {
  const cli *c;
  const args *a;
  chi_model *m;
  cli_edit_plan plan, bias;
  chi_edit_set set;
  chi_jlog *log, *before;
  json_t *head, *json;
  chi_method_editor method, lift, layer[kLayers];
  chi_editor editor[kEditors];
  const chi_editor *list[kEditors];
  chi_edits_row row[kEditors];
  chi_edits_table *table;
  char name[kLayers][64];
  size_t n;
} work;

static void add_editor(work *w, const char *name, const chi_method_editor *ud,
                       int (*edit)(const chi_editor *, chi_editor_note *, chi_model *, const chi_edit_set *, size_t,
                                   chi_err *)) {
  w->editor[w->n] = (chi_editor){.name = name, .edit = edit, .ud = ud};
  w->list[w->n] = &w->editor[w->n];
  w->n++;
}

/* An editor for each layer. */
static int sweep(work *w, chi_err *err) {
  int lo = 0, hi = -1, used = 0;
  if (sscanf(w->a->sweep, "%d-%d%n", &lo, &hi, &used) != 2 || w->a->sweep[used] || lo < 0 || hi < lo ||
      hi - lo >= kLayers)
    return cli_usage(err, "--sweep is a range of at most %d layers such as 0-11, not '%s'", kLayers, w->a->sweep);
  if (w->a->e.layer) return cli_usage(err, "--sweep and --layer exclude each other");
  for (int l = lo; l <= hi; l++) {
    w->layer[l - lo] = w->method;
    w->layer[l - lo].edit.layer_lo = w->layer[l - lo].edit.layer_hi = l;
    snprintf(w->name[l - lo], sizeof w->name[0], "%.40s layer %d", w->a->e.method, l);
    add_editor(w, w->name[l - lo], &w->layer[l - lo], chi_editor_method);
  }
  return 0;
}

static int make_editors(work *w, chi_err *err) {
  int rc = 0;
  cli_edit_args bias = CLI_EDIT_DEFAULTS;
  bool none = strcmp(w->a->e.method, "none") == 0;
  if (w->a->random && (none || w->a->baselines || w->a->sweep || w->a->chain))
    return cli_usage(err, "--random-site is a row of one method: no --baselines, --sweep, --sequential");
  bias.method = "bias", bias.at = "last-prompt";
  if (!none) {
    CHI_TRY(cli_edit_plan_make(&w->plan, &w->a->e, &w->a->c, err));
    w->method = (chi_method_editor){.edit = w->plan.edit, .query = w->plan.query, .mem = w->a->c.mem};
    if (w->a->random)
      add_editor(w, "random site", &w->method, chi_editor_random);
    else if (w->a->sweep)
      CHI_TRY(sweep(w, err));
    else
      add_editor(w, w->a->e.method, &w->method, chi_editor_method);
  }
  if (none || w->a->baselines) add_editor(w, "none", NULL, chi_editor_none);
  if (!none && w->a->baselines) {
    if (strcmp(w->a->e.method, "bias") != 0) {
      CHI_TRY(cli_edit_plan_make(&w->bias, &bias, &w->a->c, err));
      w->lift = (chi_method_editor){.edit = w->bias.edit, .query = w->bias.query, .mem = w->a->c.mem};
      add_editor(w, "bias", &w->lift, chi_editor_method);
    }
    add_editor(w, "random site", &w->method, chi_editor_random);
  }
out:
  return rc;
}

/* Everything that decides a line of the log. */
static int make_head(work *w, chi_err *err) {
  json_t *hyper = json_object(), *names = json_array();
  for (int i = 0; i < CLI_HYPERS; i++)
    if (w->a->e.hyper[i]) json_object_set_new(hyper, chi_hyper_names[i], json_string(w->a->e.hyper[i]));
  for (size_t i = 0; i < w->n; i++) json_array_append_new(names, json_string(w->editor[i].name));
  w->head = json_pack("{s:s,s:s,s:s,s:o,s:s,s:s,s:o,s:s,s:s,s:s,s:i,s:i,s:I}", "chiasm", "eval edits", "set",
                      w->set.hash, "model", w->m->hash, "editors", names, "preset",
                      w->plan.preset ? w->plan.preset->name : "", "edit_at", w->a->e.at, "hyperparameters", hyper,
                      "weight", w->plan.weight ? w->plan.weight : "down", "prefixes", w->plan.prefixes.hash, "split",
                      w->a->split, "layer_lo", w->plan.lo, "layer_hi", w->plan.hi, "others", (json_int_t)w->a->others);
  if (!w->head) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_object_set_new(w->head, "layers_given", json_boolean(w->a->e.layer != NULL));
  json_object_set_new(w->head, "demonstrations", json_string(w->plan.demos ? w->plan.demos->hash : ""));
  json_object_set_new(w->head, "limit", json_integer(w->a->limit));
  json_object_set_new(w->head, "seed", json_integer((json_int_t)w->a->e.seed));
  json_object_set_new(w->head, "moments", json_string(w->a->e.moments ? w->a->e.moments : "identity"));
  json_object_set_new(w->head, "template", json_string(w->a->c.raw ? "(raw)" : w->a->c.tmpl ? w->a->c.tmpl : ""));
  /* what is not asked for is not there: logs from before the option go on */
  if (w->a->every > 1) json_object_set_new(w->head, "every", json_integer((json_int_t)w->a->every));
  if (w->a->probes > 0) json_object_set_new(w->head, "probes", json_integer((json_int_t)w->a->probes));
  if (w->a->trace) json_object_set_new(w->head, "trace", json_true());
  if (w->a->chain) {
    json_object_set_new(w->head, "sequential", json_string(w->a->chain));
    json_object_set_new(w->head, "untouched", json_integer((json_int_t)w->a->n_untouched));
  }
  json_t *applied = json_array();
  for (int i = 0; i < w->a->c.apply.n; i++) {
    char hex[65];
    int rc = chi_sha256_file(hex, w->a->c.apply.v[i], err);
    if (rc) {
      json_decref(applied);
      return rc;
    }
    json_array_append_new(applied, json_string(hex));
  }
  json_object_set_new(w->head, "applied", applied);
  return 0;
}

/* The log of before: the same set, asked in the same way, of the same model. */
static int open_before(work *w, chi_err *err) {
  static const char *const kSame[] = {"chiasm", "set", "model", "template", "applied"};
  int rc = 0;
  json_t *head = NULL;
  if (!w->a->before) return 0;
  CHI_TRY(chi_jlog_read(&w->before, &head, w->a->before, err));
  for (size_t i = 0; i < sizeof kSame / sizeof *kSame; i++)
    if (!json_equal(json_object_get(head, kSame[i]), json_object_get(w->head, kSame[i]))) {
      rc = chi_fail(err, CHI_ERR_ARG, "--before %s: its '%s' is another", w->a->before, kSame[i]);
      break;
    }
out:
  json_decref(head);
  return rc;
}

/* ---- output ------------------------------------------------------------------------------------- */
static int make_json(work *w, chi_err *err) {
  int rc = 0;
  chi_provenance prov;
  json_t *rows = NULL;
  CHI_TRY(cli_provenance(&prov, w->c, w->m, NULL, NULL, err));
  prov.data_hash = w->set.hash;
  CHI_TRY(chi_report_json(&w->json, "eval edits", &prov, err));
  CHI_TRY(chi_edits_rows_json(&rows, w->table, err));
  json_object_set_new(w->json, "settings", json_incref(w->head));
  json_object_set_new(w->json, "rows", json_incref(rows));
  if (w->a->sweep) CHI_TRY(chi_edits_curve_json(w->json, w->table, err));
  json_object_set_new(w->json, "items", json_deep_copy(chi_jlog_lines(w->log)));
out:
  json_decref(rows);
  return rc;
}

static int print_text(work *w, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  CHI_TRY(chi_edits_text(w->table, cli_width(), &s, err));
  if (w->a->out) chi_str_addf(&s, "wrote %s\n", w->a->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_str_free(&s);
  return rc;
}

static int chain(work *w, chi_err *err) {
  const args *a = w->a;
  if (w->n != 1 || !w->editor[0].ud || a->before || a->trace || a->probes || a->c.raw)
    return cli_usage(
        err, "--sequential is a chain of one method: no --baselines, --sweep, --before, --probes, --trace, --raw");
  return cli_chain_run(&(cli_chain){.c = w->c,
                                    .m = w->m,
                                    .set = &w->set,
                                    .editor = &w->editor[0],
                                    .at = a->chain,
                                    .items = a->untouched,
                                    .split = a->split,
                                    .n_items = (size_t)a->n_untouched,
                                    .out = a->out,
                                    .tmpl = a->c.tmpl,
                                    .mem = a->c.mem,
                                    .head = w->head},
                       err);
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  work w = {.c = c, .a = v};
  const args *a = v;
  if (a->untouched && !a->chain) return cli_usage(err, "--untouched belongs to --sequential");
  CHI_TRY(make_editors(&w, err));
  size_t limit = a->every > 1 ? 0 : (size_t)a->limit;
  CHI_TRY(chi_edit_set_load(&w.set, c->pos[0], strcmp(a->split, "all") == 0 ? NULL : a->split, limit, err));
  chi_edit_set_thin(&w.set, (size_t)a->every, (size_t)a->limit);
  CHI_TRY(cli_open_model(&w.m, c, a->model, err));
  CHI_TRY(chi_model_hash(w.m, err));
  CHI_TRY(make_head(&w, err));
  if (a->chain) {
    rc = chain(&w, err);
    goto out;
  }
  CHI_TRY(open_before(&w, err));
  CHI_TRY(chi_jlog_open(&w.log, a->out, w.head, err));
  chi_edits_opts o = {.editor = w.list,
                      .n_editors = w.n,
                      .tmpl = a->c.tmpl,
                      .raw = a->c.raw,
                      .others = (int)a->others,
                      .per_kind = (int)a->probes,
                      .trace = a->trace,
                      .before = w.before,
                      .mem = a->c.mem};
  CHI_TRY(chi_edits_run(w.log, w.m, &w.set, &o, err));
  for (size_t i = 0; i < w.n; i++)
    w.row[i] = (chi_edits_row){.name = w.editor[i].name, .log = w.log, .editor = w.editor[i].name};
  chi_edits_table_opts to = {.reference = -1, .curve = a->sweep != NULL};
  CHI_TRY(chi_edits_table_make(&w.table, w.row, (int)w.n, &w.set, &to, err));
  if (a->c.json) {
    CHI_TRY(make_json(&w, err));
    CHI_TRY(cli_print_json(w.json, err));
  } else {
    CHI_TRY(print_text(&w, err));
  }
out:
  json_decref(w.json);
  json_decref(w.head);
  chi_edits_table_free(w.table);
  chi_jlog_close(w.before);
  chi_jlog_close(w.log);
  chi_edit_set_free(&w.set);
  cli_edit_plan_free(&w.plan);
  cli_edit_plan_free(&w.bias);
  chi_model_free(w.m);
  return rc;
}

const cli_command cmd_eval_edits = {
    .name = "eval edits",
    .usage = "SET",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "SET has one edit a line (docs/world.md, \"Edit sets\"). Each is made alone, from the base; its probes are\n"
        "asked before and after: is the new fact said, in other words, over other pictures, by name, one step on and\n"
        "backwards; and does everything else stay: (a) the same question over other pictures, (b) other questions\n"
        "over the same picture, (c) others by name, (d) and (e) the unrelated. --method none edits nothing.\n"
        "--raw: the questions are texts that go on into their answers; of each, as many tokens are taken as the\n"
        "expected answer has and one more, and it is right where it begins with the answer as whole words.\n"
        "Logs of several runs beside one another: `chiasm eval compare`.",
    .examples =
        "chiasm eval edits models/demo/edits/counterfactual.jsonl --method rome --layer 3 --edit-at last-prompt "
        "--split dev --baselines -o out/rome.jsonl",
};

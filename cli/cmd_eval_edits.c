/* chiasm eval edits: every edit of a set, and what it moved. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "edit_opts.h"
#include "edit/ike.h"
#include "eval/edits.h"

typedef struct args {
  cli_common c;
  cli_edit_args e;
  const char *model, *split, *out;
  int64_t limit, others;
  bool baselines;
} args;
static const args kDefaults = {
    .c = CLI_COMMON_DEFAULTS, .e = CLI_EDIT_DEFAULTS, .model = "demo", .split = "all", .others = 50};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .letter = 'm', .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "log, one JSON object a line; a run that was stopped goes on from it"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "edits of this split, or all"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N edits; 0 = all"},
    {.name = "--baselines", .kind = CLI_FLAG, CLI_AT(args, baselines),
     .doc = "also rows for no edit, the bias edit, and the method at a random layer and row"},
    {.name = "--others", .arg = "N", .kind = CLI_INT, CLI_AT(args, others), .min = 1, .max = 10000,
     .doc = "pictures of others whose keys are compared with the edit's"},
    CLI_EDIT_OPTS(args, e),
    {0}};
/* clang-format on */

enum { kEditors = 4 };
typedef struct work {
  const cli *c;
  const args *a;
  chi_model *m;
  cli_edit_plan plan, bias;
  chi_edit_set set;
  chi_jlog *log;
  json_t *head, *json;
  chi_method_editor method, lift;
  chi_editor editor[kEditors];
  const chi_editor *list[kEditors];
  chi_edits_sum sum[kEditors];
  size_t n;
} work;

static void add_editor(work *w, const char *name, const chi_method_editor *ud,
                       int (*edit)(const chi_editor *, chi_editor_note *, chi_model *, const chi_edit_set *, size_t,
                                   chi_err *)) {
  w->editor[w->n] = (chi_editor){.name = name, .edit = edit, .ud = ud};
  w->list[w->n] = &w->editor[w->n];
  w->n++;
}

static int make_editors(work *w, chi_err *err) {
  int rc = 0;
  cli_edit_args bias = CLI_EDIT_DEFAULTS;
  bool none = strcmp(w->a->e.method, "none") == 0;
  bias.method = "bias", bias.at = "last-prompt";
  if (!none) {
    CHI_TRY(cli_edit_plan_make(&w->plan, &w->a->e, &w->a->c, err));
    w->method = (chi_method_editor){.edit = w->plan.edit, .query = w->plan.query, .mem = w->a->c.mem};
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
                      "weight", w->a->e.weight, "prefixes", w->plan.prefixes.hash, "split", w->a->split, "layer_lo",
                      w->plan.lo, "layer_hi", w->plan.hi, "others", (json_int_t)w->a->others);
  if (!w->head) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_object_set_new(w->head, "layers_given", json_boolean(w->a->e.layer != NULL));
  json_object_set_new(w->head, "demonstrations", json_string(w->plan.demos ? w->plan.demos->hash : ""));
  json_object_set_new(w->head, "limit", json_integer(w->a->limit));
  json_object_set_new(w->head, "seed", json_integer((json_int_t)w->a->e.seed));
  json_object_set_new(w->head, "moments", json_string(w->a->e.moments ? w->a->e.moments : "identity"));
  json_object_set_new(w->head, "template", json_string(w->a->c.raw ? "(raw)" : w->a->c.tmpl ? w->a->c.tmpl : ""));
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

/* ---- output ------------------------------------------------------------------------------------- */
static json_t *est_json(const chi_est *e) {
  return json_pack("{s:o,s:o,s:o,s:i,s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo), "hi",
                   chi_json_num(e->hi), "n", e->n, "clusters", e->clusters);
}

static int make_json(work *w, chi_err *err) {
  int rc = 0;
  char buf[64];
  chi_provenance prov;
  json_t *rows = json_array();
  CHI_TRY(cli_provenance(&prov, w->c, w->m, NULL, NULL, err));
  prov.data_hash = w->set.hash;
  CHI_TRY(chi_report_json(&w->json, "eval edits", &prov, err));
  for (size_t i = 0; i < w->n; i++) {
    json_t *o = json_pack("{s:s,s:i,s:i}", "editor", w->editor[i].name, "n", w->sum[i].n, "failed", w->sum[i].failed);
    for (int c = 0; c < CHI_EDITS_COLUMNS; c++)
      if (w->sum[i].col[c].n) json_object_set_new(o, chi_edits_column(c, buf), est_json(&w->sum[i].col[c]));
    json_array_append_new(rows, o);
  }
  json_object_set_new(w->json, "settings", json_incref(w->head));
  json_object_set_new(w->json, "rows", json_incref(rows));
  json_object_set_new(w->json, "items", json_deep_copy(chi_jlog_lines(w->log)));
out:
  json_decref(rows);
  return rc;
}

static void cell(chi_table *t, const chi_est *e, double scale) {
  if (!e->n)
    chi_table_cell(t, "-");
  else if (isfinite(e->lo) && scale != 1)
    chi_table_cell(t, "%.1f (%.0f-%.0f)", scale * e->value, scale * e->lo, scale * e->hi);
  else
    chi_table_cell(t, scale != 1 ? "%.1f" : "%.3f", scale * e->value);
}

static int print_text(work *w, chi_err *err) {
  static const char *const kMain[] = {
      "edited by", "n", "target said %", "p(target)", "(a) same q., other pict. %", "(b) same pict., other q. %",
      "failed"};
  static const char *const kRest[] = {
      "edited by",          "paraphrase",      "rendering",      "by name",    "one hop", "reverse",
      "(c) others by name", "(d) other pict.", "(e) other text", "key cosine", "leak",    "largest leak"};
  static const int kCols[] = {CHI_PROBE_PARAPHRASE,    CHI_PROBE_RENDERING, CHI_PROBE_TEXT_TWIN,
                              CHI_PROBE_ONE_HOP,       CHI_PROBE_REVERSE,   CHI_PROBE_SAME_RELATION,
                              CHI_PROBE_OTHER_PICTURE, CHI_PROBE_OTHER_TEXT};
  int rc = 0;
  chi_str s = {0};
  chi_table *t = NULL, *u = NULL;
  CHI_TRY(chi_table_new(&t, kMain, "lrrrrrr", err));
  CHI_TRY(chi_table_new(&u, kRest, "lrrrrrrrrrrr", err));
  for (size_t i = 0; i < w->n; i++) {
    const chi_edits_sum *x = &w->sum[i];
    chi_table_cell(t, "%s", w->editor[i].name);
    chi_table_cell(t, "%d", x->n);
    cell(t, &x->col[CHI_EDITS_RELIABLE], 100);
    cell(t, &x->col[CHI_EDITS_P], 1);
    cell(t, &x->col[CHI_EDITS_PROBE + CHI_PROBE_SAME_QUESTION], 100);
    cell(t, &x->col[CHI_EDITS_PROBE + CHI_PROBE_SAME_PICTURE], 100);
    chi_table_cell(t, "%d", x->failed);
    chi_table_cell(u, "%s", w->editor[i].name);
    for (size_t k = 0; k < sizeof kCols / sizeof *kCols; k++) cell(u, &x->col[CHI_EDITS_PROBE + kCols[k]], 100);
    for (int c = CHI_EDITS_COSINE; c < CHI_EDITS_COLUMNS; c++) cell(u, &x->col[c], 1);
  }
  CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  chi_str_add(&s, "\n");
  CHI_TRY(chi_table_text(u, cli_width(), &s, err));
  chi_str_add(
      &s,
      "\nParaphrase to reverse: the answer that follows from the edit is said. (a) to (e): the answer stays as it\n"
      "was. In brackets: 95 % by bootstrap over entities. Leak: share of the change that another picture's key\n"
      "receives, in size.\n");
  if (w->a->out) chi_str_addf(&s, "wrote %s\n", w->a->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_table_free(t);
  chi_table_free(u);
  chi_str_free(&s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  work w = {.c = c, .a = v};
  const args *a = v;
  CHI_TRY(make_editors(&w, err));
  CHI_TRY(chi_edit_set_load(&w.set, c->pos[0], strcmp(a->split, "all") == 0 ? NULL : a->split, (size_t)a->limit, err));
  CHI_TRY(cli_open_model(&w.m, c, a->model, err));
  CHI_TRY(chi_model_hash(w.m, err));
  CHI_TRY(make_head(&w, err));
  CHI_TRY(chi_jlog_open(&w.log, a->out, w.head, err));
  chi_edits_opts o = {.editor = w.list,
                      .n_editors = w.n,
                      .tmpl = a->c.tmpl,
                      .raw = a->c.raw,
                      .others = (int)a->others,
                      .mem = a->c.mem};
  CHI_TRY(chi_edits_run(w.log, w.m, &w.set, &o, err));
  for (size_t i = 0; i < w.n; i++) CHI_TRY(chi_edits_sums(&w.sum[i], w.log, &w.set, w.editor[i].name, err));
  if (a->c.json) {
    CHI_TRY(make_json(&w, err));
    CHI_TRY(cli_print_json(w.json, err));
  } else {
    CHI_TRY(print_text(&w, err));
  }
out:
  json_decref(w.json);
  json_decref(w.head);
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
        "expected answer has and one more, and it is right where it begins with the answer as whole words.",
    .examples =
        "chiasm eval edits models/demo/edits/counterfactual.jsonl --method rome --layer 3 --edit-at last-prompt "
        "--split dev --baselines -o out/rome.jsonl",
};

/* chiasm eval mmedit: the MMEdit benchmark. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "edit_opts.h"
#include "edit/ike.h"
#include "eval/mmedit_run.h"

typedef struct args {
  cli_common c;
  cli_edit_args e;
  const char *model, *data, *images, *out;
  int task, protocol;
  int64_t limit, gap, shard, shards;
  bool sequential, no_generation;
} args;
static const args kDefaults = {
    .c = CLI_COMMON_DEFAULTS, .e = {.method = "none", .at = "last-prompt"}, .model = "demo", .gap = 10};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .letter = 'm', .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model"},
    {.name = "--data", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, data),
     .doc = "records: JSON list of MMEdit or VLKEB"},
    {.name = "--images", .arg = "DIR", .kind = CLI_STR, CLI_AT(args, images),
     .doc = "folder of the pictures; else the file's own. Records whose pictures are missing are skipped and counted"},
    {.name = "--task", .arg = "any|vqa|caption", .kind = CLI_CHOICE, CLI_AT(args, task),
     .doc = "refuse a file of the other task"},
    {.name = "--protocol", .arg = "E3|E4|vlkeb|own", .kind = CLI_CHOICE, CLI_AT(args, protocol),
     .doc = "which strings are asked (docs/mmedit.md); own: the model's template, for models that know no other"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "log, one record a line, with labels and what was predicted; a run that was stopped goes on from it"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N records; 0 = all"},
    {.name = "--no-generation", .kind = CLI_FLAG, CLI_AT(args, no_generation),
     .doc = "teacher forcing alone: no greedy answers"},
    {.name = "--sequential", .kind = CLI_FLAG, CLI_AT(args, sequential),
     .doc = "edits stay; after edit i the record of edit i - GAP is asked"},
    {.name = "--gap", .arg = "N", .kind = CLI_INT, CLI_AT(args, gap), .min = 0, .max = 1e6, .doc = "of --sequential"},
    {.name = "--shards", .arg = "N", .kind = CLI_INT, CLI_AT(args, shards), .min = 0, .max = 10000,
     .doc = "split the records into N parts, each with a log of its own"},
    {.name = "--shard", .arg = "K", .kind = CLI_INT, CLI_AT(args, shard), .min = 0, .max = 9999,
     .doc = "which part, from 0"},
    CLI_EDIT_OPTS(args, e),
    {0}};
/* clang-format on */
static const char *const kProtocols[] = {"E3", "E4", "vlkeb", "own"};

typedef struct work {
  const cli *c;
  const args *a;
  chi_model *m;
  chi_dataset *d;
  cli_edit_plan plan;
  chi_jlog *log;
  json_t *head, *json;
  chi_mm_run_opts o;
  chi_mm_sum all, type[CHI_ANSWER_TYPES];
} work;

static int make_plan(work *w, chi_err *err) {
  static const struct {
    const char *name;
    chi_mm_kind kind;
  } kPlain[] = {{"none", CHI_MM_NONE}, {"ideal", CHI_MM_IDEAL}, {"lookup", CHI_MM_LOOKUP}};
  int rc = 0;
  const args *a = w->a;
  w->o = (chi_mm_run_opts){.ask = {.protocol = (chi_mm_protocol)a->protocol,
                                   .tmpl = a->c.tmpl,
                                   .generate = !a->no_generation,
                                   .mem = a->c.mem},
                           .kind = CHI_MM_METHOD,
                           .at = a->e.at,
                           .sequential = a->sequential,
                           .gap = a->sequential ? (int)a->gap : 0,
                           .shard = (int)a->shard,
                           .shards = (int)a->shards};
  for (size_t i = 0; i < sizeof kPlain / sizeof *kPlain; i++)
    if (strcmp(a->e.method, kPlain[i].name) == 0) w->o.kind = kPlain[i].kind;
  if (w->o.kind != CHI_MM_METHOD) return 0;
  if (strcmp(a->e.at, "auto") == 0) return cli_usage(err, "--edit-at auto looks at one edit; name a row here");
  if (a->e.prefixes)
    return cli_usage(err, "--prefixes belongs to edits of questions with a constraint; MMEdit's have none");
  cli_edit_args e = a->e;
  e.short_answer = a->protocol == CHI_MM_E3;
  CHI_TRY(cli_edit_plan_make(&w->plan, &e, &a->c, err));
  w->o.edit = &w->plan.edit;
out:
  return rc;
}

static int check_usage(const args *a, chi_err *err) {
  if (!a->data) return cli_usage(err, "eval mmedit needs --data: which records?");
  if (a->c.raw) return cli_usage(err, "--raw has no meaning here: --protocol says what is asked");
  if (a->sequential && a->shards > 1) return cli_usage(err, "--sequential is one chain of edits: no --shards");
  if (a->shards ? a->shard >= a->shards : a->shard > 0)
    return cli_usage(err, "--shard %lld needs --shards above it", (long long)a->shard);
  return 0;
}

static int check_task(const work *w, chi_err *err) {
  static const char *const kTask[] = {"", "mmedit vqa", "mmedit caption"};
  if (w->d->format != CHI_DATA_MMEDIT)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: is %s, not a list of MMEdit's records", w->a->data, w->d->name);
  if (w->a->task && strcmp(w->d->name, kTask[w->a->task]) != 0)
    return chi_fail(err, CHI_ERR_ARG, "%s: is %s, not what --task says", w->a->data, w->d->name);
  return 0;
}

/* Everything that decides a line of the log: not --limit or --shard, but where edits stay. */
static int make_head(work *w, chi_err *err) {
  const args *a = w->a;
  json_t *hyper = json_object(), *applied = json_array();
  for (int i = 0; i < CLI_HYPERS; i++)
    if (a->e.hyper[i]) json_object_set_new(hyper, chi_hyper_names[i], json_string(a->e.hyper[i]));
  w->head = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:o,s:s,s:s,s:s,s:b}", "chiasm", "eval mmedit", "data", w->d->hash,
                      "model", w->m->hash, "protocol", kProtocols[a->protocol], "method", a->e.method, "preset",
                      w->plan.preset ? w->plan.preset->name : "", "edit_at", a->e.at, "hyperparameters", hyper,
                      "weight", w->plan.weight ? w->plan.weight : "down", "layer", a->e.layer ? a->e.layer : "",
                      "template", a->c.tmpl ? a->c.tmpl : "", "generation", !a->no_generation);
  for (int i = 0; i < a->c.apply.n; i++) {
    char hex[65];
    int rc = chi_sha256_file(hex, a->c.apply.v[i], err);
    if (rc) {
      json_decref(applied);
      return rc;
    }
    json_array_append_new(applied, json_string(hex));
  }
  if (!w->head) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_object_set_new(w->head, "applied", applied);
  json_object_set_new(w->head, "moments", json_string(a->e.moments ? a->e.moments : "identity"));
  json_object_set_new(w->head, "demonstrations", json_string(w->plan.demos ? w->plan.demos->hash : ""));
  json_object_set_new(w->head, "seed", json_integer((json_int_t)a->e.seed));
  if (a->sequential)
    json_object_set_new(w->head, "sequential",
                        json_pack("{s:I,s:I}", "gap", (json_int_t)a->gap, "limit", (json_int_t)a->limit));
  return 0;
}

/* ---- output ------------------------------------------------------------------------------------------------ */
static json_t *sum_json(const chi_mm_sum *s) {
  json_t *o = json_pack("{s:i,s:i,s:i,s:i}", "n", s->n, "skipped", s->skipped, "failed", s->failed,
                        "prompt_tokens_moved", s->moved);
  for (int c = 0; c < CHI_MM_COLUMNS; c++) {
    const chi_est *e = &s->col[c];
    if (e->n)
      json_object_set_new(o, chi_mm_column(c),
                          json_pack("{s:o,s:o,s:o,s:i,s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo),
                                    "hi", chi_json_num(e->hi), "n", e->n, "pictures", e->clusters));
  }
  return o;
}

static int print_json(work *w, chi_err *err) {
  int rc = 0;
  chi_provenance prov;
  json_t *types = json_object();
  CHI_TRY(cli_provenance(&prov, w->c, w->m, NULL, NULL, err));
  prov.data_hash = w->d->hash;
  CHI_TRY(chi_report_json(&w->json, "eval mmedit", &prov, err));
  json_object_set_new(w->json, "data", json_string(w->d->name));
  json_object_set(w->json, "settings", w->head);
  json_object_set_new(w->json, "all", sum_json(&w->all));
  for (int k = 0; k < CHI_ANSWER_TYPES; k++)
    if (w->type[k].n) json_object_set_new(types, chi_answer_type_name[k], sum_json(&w->type[k]));
  json_object_set(w->json, "answer_types", types);
  CHI_TRY(cli_print_json(w->json, err));
out:
  json_decref(types);
  return rc;
}

static void cell(chi_table *t, const chi_mm_sum *s, const char *name, const char *what, bool share) {
  char key[96];
  snprintf(key, sizeof key, "%s.%s", name, what);
  int c = chi_mm_column_find(key);
  const chi_est *e = c < 0 ? NULL : &s->col[c];
  if (!e || !e->n)
    chi_table_cell(t, "-");
  else if (!share)
    chi_table_cell(t, "%.4f", e->value);
  else if (isfinite(e->lo))
    chi_table_cell(t, "%.1f (%.0f-%.0f)", 100 * e->value, 100 * e->lo, 100 * e->hi);
  else
    chi_table_cell(t, "%.1f", 100 * e->value);
}

static int answers_table(const work *w, chi_str *s, chi_err *err) {
  static const char *const kHead[] = {"%",           "tokens before", "tokens after", "exact before",
                                      "exact after", "said before",   "said after"};
  static const struct {
    const char *label, *key;
  } kRow[] = {{"reliability", "reliability"}, {"T-generality", "t_generality"}, {"M-generality", "m_generality"}};
  int rc = 0;
  char key[64];
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, "lrrrrrr", err));
  for (size_t i = 0; i < sizeof kRow / sizeof *kRow; i++) {
    chi_table_cell(t, "%s", kRow[i].label);
    for (int k = 0; k < 6; k++) {
      snprintf(key, sizeof key, "%s.%s", k % 2 ? "after" : "before", kRow[i].key);
      cell(t, &w->all, key, k < 2 ? "acc" : k < 4 ? "exact" : "right", true);
    }
  }
  if (w->all.col[chi_mm_column_find("portability.after.acc")].n) {
    chi_table_cell(t, "portability");
    cell(t, &w->all, "portability.before", "acc", true);
    cell(t, &w->all, "portability.after", "acc", true);
    for (int k = 0; k < 4; k++) chi_table_cell(t, "-");
  }
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  chi_str_add(s, "\n");
out:
  chi_table_free(t);
  return rc;
}

static int local_table(const work *w, chi_str *s, chi_err *err) {
  static const char *const kHead[] = {"kept %", "all positions", "answer's", "KL", "KL answer's"};
  int rc = 0;
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, "lrrrr", err));
  for (int k = 0; k < CHI_MM_SIDES; k++) {
    chi_table_cell(t, k ? "M-locality (top 10 in order)" : "T-locality (top 1)");
    cell(t, &w->all, chi_mm_side_name[k], "same", true);
    cell(t, &w->all, chi_mm_side_name[k], "answer", true);
    cell(t, &w->all, chi_mm_side_name[k], "kl", false);
    cell(t, &w->all, chi_mm_side_name[k], "kl_answer", false);
  }
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  chi_str_add(s, "\n");
out:
  chi_table_free(t);
  return rc;
}

static int types_table(const work *w, chi_str *s, chi_err *err) {
  static const char *const kHead[] = {"answers", "n", "reliability", "exact", "T-gen.", "M-gen.", "T-loc.", "M-loc."};
  static const char *const kCol[][2] = {{"after.reliability", "acc"},  {"after.reliability", "exact"},
                                        {"after.t_generality", "acc"}, {"after.m_generality", "acc"},
                                        {"t_locality", "same"},        {"m_locality", "same"}};
  int rc = 0, n = 0;
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, "lrrrrrrr", err));
  for (int k = 0; k < CHI_ANSWER_TYPES; k++) {
    if (!w->type[k].n) continue;
    n++;
    chi_table_cell(t, "%s", chi_answer_type_name[k]);
    chi_table_cell(t, "%d", w->type[k].n);
    for (size_t c = 0; c < sizeof kCol / sizeof *kCol; c++) cell(t, &w->type[k], kCol[c][0], kCol[c][1], true);
  }
  if (n > 1) {
    CHI_TRY(chi_table_text(t, cli_width(), s, err));
    chi_str_add(s, "\n");
  }
out:
  chi_table_free(t);
  return rc;
}

static int print_text(const work *w, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  chi_str_addf(&s, "%s, protocol %s, method %s: %d records", w->d->name, kProtocols[w->a->protocol], w->a->e.method,
               w->all.n);
  if (w->a->sequential) chi_str_addf(&s, ", %lld edits later", (long long)w->a->gap);
  if (w->all.skipped) chi_str_addf(&s, "; %d skipped (pictures or fields missing)", w->all.skipped);
  if (w->all.failed) chi_str_addf(&s, "; %d failed", w->all.failed);
  chi_str_add(&s, "\n\n");
  CHI_TRY(answers_table(w, &s, err));
  CHI_TRY(local_table(w, &s, err));
  CHI_TRY(types_table(w, &s, err));
  chi_str_add(
      &s,
      "tokens, exact: teacher-forced, share of the answer's tokens and all of them. said: the greedy answer is\n"
      "the target. In brackets: 95 % by bootstrap over edited pictures.\n");
  if (w->all.moved)
    chi_str_addf(&s, "%d records: the prompt's own tokens change with the answer behind it\n", w->all.moved);
  if (w->a->out) chi_str_addf(&s, "wrote %s\n", w->a->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_str_free(&s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  const args *a = v;
  work w = {.c = c, .a = a};
  CHI_TRY(check_usage(a, err));
  CHI_TRY(make_plan(&w, err));
  CHI_TRY(chi_dataset_open(&w.d, a->data, &(chi_dataset_opts){.images = a->images, .limit = (size_t)a->limit}, err));
  CHI_TRY(check_task(&w, err));
  CHI_TRY(cli_open_model(&w.m, c, a->model, err));
  CHI_TRY(chi_model_hash(w.m, err));
  CHI_TRY(make_head(&w, err));
  CHI_TRY(chi_jlog_open(&w.log, a->out, w.head, err));
  CHI_TRY(chi_mm_run(w.log, w.m, w.d, &w.o, err));
  CHI_TRY(chi_mm_sums(&w.all, w.log, w.d, NULL, err));
  for (int k = 0; k < CHI_ANSWER_TYPES; k++) CHI_TRY(chi_mm_sums(&w.type[k], w.log, w.d, chi_answer_type_name[k], err));
  CHI_TRY(a->c.json ? print_json(&w, err) : print_text(&w, err));
out:
  json_decref(w.json);
  json_decref(w.head);
  chi_jlog_close(w.log);
  chi_dataset_close(w.d);
  cli_edit_plan_free(&w.plan);
  chi_model_free(w.m);
  return rc;
}

const cli_command cmd_eval_mmedit = {
    .name = "eval mmedit",
    .usage = "",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "The MMEdit benchmark: each record is edited alone, from the base, and asked before and after: reliability,\n"
        "text and picture generality, and what else moved (text and picture locality, portability for VLKEB). Beside\n"
        "the published measures, what they leave out: base rows, whole answers, localities over the answer alone, KL.\n"
        "--method: a method of `chiasm edit`, or none (the base), ideal (what a perfect edit gets), lookup (what a\n"
        "table of the edited questions gets).",
    .examples =
        "chiasm eval mmedit --model blip2-opt-2.7b --data vqa_eval.json --images images --method rome --layer 29 "
        "-o out/rome.jsonl\n"
        "chiasm eval mmedit --model demo --data models/demo/edits/counterfactual.json --protocol own --method multedit",
};

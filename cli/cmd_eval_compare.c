/* chiasm eval compare: logs of `eval edits` beside one another. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "report/edits_report.h"

typedef struct args {
  const char *split, *against, *only, *csv, *figure, *title;
  int64_t every, limit, draws;
  uint64_t seed;
  bool curve, json;
} args;
static const args kDefaults = {.split = "all", .every = 1, .draws = 10000, .title = ""};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--against", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, against),
     .doc = "row that the others are compared with, edit by edit"},
    {.name = "--compare", .arg = "A,B", .kind = CLI_STR, CLI_AT(args, only),
     .doc = "rows whose differences are tested (Holm counts these); all others if not given"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "edits of this split, or all"},
    {.name = "--every", .arg = "K", .kind = CLI_INT, CLI_AT(args, every), .min = 1, .max = 1e9,
     .doc = "only each K-th edit of the split, the first one first"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N edits; 0 = all"},
    {.name = "--curve", .kind = CLI_FLAG, CLI_AT(args, curve),
     .doc = "the rows are a curve, such as layers: which is highest, with its interval"},
    {.name = "--csv", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, csv), .doc = "also every number as tidy CSV"},
    {.name = "--figure", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, figure),
     .doc = "headline and its parts, as PNG or SVG; with --curve over the rows"},
    {.name = "--title", .arg = "TEXT", .kind = CLI_STR, CLI_AT(args, title), .doc = "of the figure"},
    {.name = "--draws", .arg = "N", .kind = CLI_INT, CLI_AT(args, draws), .min = 1, .max = 1e7,
     .doc = "of the bootstrap and of the tests"},
    {.name = "--seed", .arg = "N", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of the draws"},
    {.name = "--json", .kind = CLI_FLAG, CLI_AT(args, json), .doc = "print JSON instead of tables"},
    {0}};
/* clang-format on */

enum { kLogs = 64, kRows = 256 };
typedef struct work {
  const cli *c;
  const args *a;
  chi_edit_set set;
  chi_jlog *log[kLogs];
  json_t *head[kLogs];
  int n_logs, n_rows;
  chi_edits_row row[kRows];
  bool compare[kRows];
  chi_edits_table *table;
  chi_arena arena;
} work;

static int add_row(work *w, const char *label, const char *editor, bool alone, const chi_jlog *log, chi_err *err) {
  chi_str s = {0};
  chi_str_addf(&s, "%s%s%s", label ? label : editor, label && !alone ? " " : "", label && !alone ? editor : "");
  const char *name = s.failed ? NULL : chi_arena_strdup(&w->arena, s.s, err);
  chi_str_free(&s);
  if (!name) return CHI_ERR_MEMORY;
  if (w->n_rows == kRows) return chi_fail(err, CHI_ERR_ARG, "more than %d rows", kRows);
  for (int r = 0; r < w->n_rows; r++)
    if (strcmp(w->row[r].name, name) == 0)
      return chi_fail(err, CHI_ERR_ARG, "two rows are called '%s': give LABEL=LOG", name);
  w->row[w->n_rows++] = (chi_edits_row){.name = name, .log = log, .editor = editor};
  return 0;
}

/* LABEL=LOG or LOG: a row for each of its editors. */
static int open_log(work *w, const char *word, chi_err *err) {
  int rc = 0, n = w->n_logs;
  const char *eq = strchr(word, '='), *slash = strchr(word, '/'), *label = NULL, *path = word;
  if (eq && !(slash && slash < eq)) {
    path = eq + 1;
    char *copy = chi_arena_strdup(&w->arena, word, err);
    CHI_TRY(copy ? 0 : CHI_ERR_MEMORY);
    copy[eq - word] = 0;
    label = copy;
  }
  CHI_TRY(chi_jlog_read(&w->log[n], &w->head[n], path, err));
  w->n_logs++;
  const json_t *h = w->head[n], *editors = json_object_get(h, "editors");
  const char *set = json_string_value(json_object_get(h, "set"));
  if (!chi_streq(json_string_value(json_object_get(h, "chiasm")), "eval edits") || !json_array_size(editors)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s is no log of `eval edits`", path);
    goto out;
  }
  if (!chi_streq(set, w->set.hash)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is about another set than %s", path, w->c->pos[0]);
    goto out;
  }
  if (n && !json_equal(json_object_get(h, "model"), json_object_get(w->head[0], "model"))) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s is about another model than the first log", path);
    goto out;
  }
  for (size_t i = 0; i < json_array_size(editors); i++) {
    const char *editor = json_string_value(json_array_get(editors, i));
    if (editor) CHI_TRY(add_row(w, label, editor, json_array_size(editors) == 1, w->log[n], err));
  }
out:
  return rc;
}

static int find_row(const work *w, const char *name, size_t len, chi_err *err) {
  for (int r = 0; r < w->n_rows; r++)
    if (strlen(w->row[r].name) == len && strncmp(w->row[r].name, name, len) == 0) return r;
  cli_usage(err, "no row is called '%.*s'", (int)(len > 100 ? 100 : len), name);
  return -1;
}

static int pick(work *w, int *reference, chi_err *err) {
  *reference = -1;
  if (w->a->only && !w->a->against) return cli_usage(err, "--compare needs --against");
  if (w->a->against) {
    *reference = find_row(w, w->a->against, strlen(w->a->against), err);
    if (*reference < 0) return CLI_USAGE;
  }
  for (const char *p = w->a->only; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    int r = find_row(w, p, strcspn(p, ","), err);
    if (r < 0) return CLI_USAGE;
    w->compare[r] = true;
  }
  return 0;
}

static int give(work *w, chi_err *err) {
  int rc = 0;
  json_t *j = NULL, *rows = NULL, *logs = json_array();
  chi_str s = {0};
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, w->c, NULL, NULL, NULL, err));
  prov.data_hash = w->set.hash;
  prov.model_hash = json_string_value(json_object_get(w->head[0], "model"));
  prov.has_seed = true, prov.seed = w->a->seed;
  if (w->a->csv) CHI_TRY(chi_edits_csv(w->table, w->a->csv, err));
  if (w->a->figure) CHI_TRY(chi_edits_figure(w->table, w->a->title, w->a->curve, &prov, w->a->figure, err));
  if (w->a->json) {
    CHI_TRY(chi_report_json(&j, "eval compare", &prov, err));
    CHI_TRY(chi_edits_rows_json(&rows, w->table, err));
    for (int i = 0; i < w->n_logs; i++) json_array_append(logs, w->head[i]);
    json_object_set(j, "logs", logs);
    json_object_set(j, "rows", rows);
    json_object_set_new(j, "against", w->a->against ? chi_json_text(w->a->against) : json_null());
    if (w->a->curve) CHI_TRY(chi_edits_curve_json(j, w->table, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_edits_text(w->table, cli_width(), &s, err));
    if (w->a->csv) chi_str_addf(&s, "wrote %s\n", w->a->csv);
    if (w->a->figure) chi_str_addf(&s, "wrote %s\n", w->a->figure);
    CHI_TRY(cli_print(&s, err));
  }
out:
  json_decref(j);
  json_decref(rows);
  json_decref(logs);
  chi_str_free(&s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0, reference;
  const args *a = v;
  work *w = chi_calloc(1, sizeof *w, err);
  if (!w) return CHI_ERR_MEMORY;
  w->c = c, w->a = a;
  CHI_TRY(chi_edit_set_load(&w->set, c->pos[0], strcmp(a->split, "all") == 0 ? NULL : a->split, 0, err));
  chi_edit_set_thin(&w->set, (size_t)a->every, (size_t)a->limit);
  if (c->n_pos - 1 > kLogs) {
    rc = chi_fail(err, CHI_ERR_ARG, "%d logs: at most %d", c->n_pos - 1, kLogs);
    goto out;
  }
  for (int i = 1; i < c->n_pos; i++) CHI_TRY(open_log(w, c->pos[i], err));
  CHI_TRY(pick(w, &reference, err));
  chi_edits_table_opts o = {.reference = reference,
                            .compare = a->only ? w->compare : NULL,
                            .curve = a->curve,
                            .boot = {.draws = (int)a->draws, .seed = a->seed}};
  CHI_TRY(chi_edits_table_make(&w->table, w->row, w->n_rows, &w->set, &o, err));
  CHI_TRY(give(w, err));
out:
  chi_edits_table_free(w->table);
  for (int i = 0; i < w->n_logs; i++) {
    chi_jlog_close(w->log[i]);
    json_decref(w->head[i]);
  }
  chi_edit_set_free(&w->set);
  chi_arena_free(&w->arena);
  chi_free(w);
  return rc;
}

const cli_command cmd_eval_compare = {
    .name = "eval compare",
    .usage = "SET LOG [LOG...]",
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Logs of `chiasm eval edits -o LOG` on one set and one model, one table: the headline (harmonic mean of\n"
        "reliability, paraphrase, rendering, (a) and (b)) and every part, 95 % intervals by bootstrap over entities,\n"
        "differences to one row paired by edit, p by swapping the two for whole entities, Holm over the rows.\n"
        "LABEL=LOG names a row. An edit counts in a row where its log has it. SET and the options say which edits.",
    .examples =
        "chiasm eval compare models/demo/edits/counterfactual.jsonl MultEdit=m.jsonl FT=ft.jsonl --against MultEdit "
        "--csv out.csv",
};

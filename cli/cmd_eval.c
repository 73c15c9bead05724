/* chiasm eval: question items, by group, with intervals. */
#include "eval/facts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  cli_common c;
  const char *items, *out;
  int64_t limit, max_new;
  bool require;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .max_new = 16};
static const cli_opt kOpts[] = {{.name = "--items",
                                 .arg = "FILE",
                                 .kind = CLI_STR,
                                 CLI_AT(args, items),
                                 .doc = "items, one JSON object a line; else MODEL's own eval/items.jsonl"},
                                {.name = "--limit",
                                 .arg = "N",
                                 .kind = CLI_INT,
                                 CLI_AT(args, limit),
                                 .min = 0,
                                 .max = 1e9,
                                 .doc = "only the first N items"},
                                {.name = "--max-new",
                                 .arg = "N",
                                 .kind = CLI_INT,
                                 CLI_AT(args, max_new),
                                 .min = 1,
                                 .max = 63,
                                 .doc = "tokens of an answer at most"},
                                {.name = "--require",
                                 .kind = CLI_FLAG,
                                 CLI_AT(args, require),
                                 .doc = "fail unless the demo model's promises hold (make demo-eval)"},
                                {.name = "--output",
                                 .letter = 'o',
                                 .arg = "FILE",
                                 .kind = CLI_STR,
                                 CLI_AT(args, out),
                                 .doc = "also write every item's result as CSV"},
                                {0}};

typedef struct slice {
  const char *label, *group, *relation;
  int held_out;
} slice;

static bool in_slice(const chi_item *it, const void *ud) {
  const slice *s = ud;
  return (!s->group || strcmp(it->group, s->group) == 0) && (!s->relation || strcmp(it->relation, s->relation) == 0) &&
         (s->held_out < 0 || it->held_out == (s->held_out == 1));
}

/* Distinct values of a field, in order of first appearance. */
static size_t distinct(const chi_items *it, bool relation, const char **out, size_t cap) {
  size_t n = 0;
  for (size_t i = 0; i < it->n; i++) {
    const char *v = relation ? it->item[i].relation : it->item[i].group;
    size_t k = 0;
    while (k < n && strcmp(out[k], v) != 0) k++;
    if (k == n && n < cap) out[n++] = v;
  }
  return n;
}

static void percent(chi_table *t, int k, int n) {
  if (n)
    chi_table_cell(t, "%.1f", 100.0 * k / n);
  else
    chi_table_cell(t, "-");
}

static void table_row(chi_table *t, const char *label, const chi_fact_sum *s) {
  double lo, hi;
  chi_wilson(s->right, s->n, &lo, &hi);
  chi_table_cell(t, "%s", label);
  chi_table_cell(t, "%d", s->n);
  percent(t, s->right, s->n);
  chi_table_cell(t, "%.1f-%.1f", 100 * lo, 100 * hi);
  if (s->substitutes)
    chi_table_cell(t, "%.3f", s->drop);
  else
    chi_table_cell(t, "-");
  percent(t, s->counterfactual, s->substitutes);
  if (s->paraphrases)
    chi_table_cell(t, "%.3f", s->change);
  else
    chi_table_cell(t, "-");
}

static json_t *sum_json(const chi_fact_sum *s) {
  double lo, hi;
  chi_wilson(s->right, s->n, &lo, &hi);
  json_t *o = json_pack("{s:i,s:i,s:o,s:o}", "n", s->n, "right", s->right, "ci95_lo", chi_json_num(lo), "ci95_hi",
                        chi_json_num(hi));
  json_object_update_new(o, json_pack("{s:i,s:i,s:o,s:i,s:o}", "substituted", s->substitutes, "counterfactual",
                                      s->counterfactual, "mean_drop", chi_json_num(s->drop), "paraphrased",
                                      s->paraphrases, "mean_change", chi_json_num(s->change)));
  return o;
}

static int report(const chi_items *it, const chi_fact_result *r, json_t *j, chi_str *text, int width, chi_err *err) {
  static const char *const kHead[] = {"items", "n", "right %", "95 % interval", "drop", "counterf. %", "paraphr."};
  int rc = 0;
  chi_table *t = NULL;
  const char *v[64];
  json_t *groups = json_object(), *relations = json_object();
  CHI_TRY(chi_table_new(&t, kHead, "lrrrrrr", err));
  for (int rel = 0; rel < 2; rel++) {
    size_t n = distinct(it, rel == 1, v, 64);
    for (size_t k = 0; k < n; k++) {
      slice s = {.group = rel ? NULL : v[k], .relation = rel ? v[k] : NULL, .held_out = -1};
      chi_fact_sum sum = chi_facts_sum(it, r, in_slice, &s);
      char label[80];
      snprintf(label, sizeof label, "%s%s", rel ? "relation: " : "", v[k]);
      table_row(t, label, &sum);
      json_object_set_new(rel ? relations : groups, v[k], sum_json(&sum));
    }
  }
  slice held = {.held_out = 1}, all = {.held_out = -1};
  chi_fact_sum h = chi_facts_sum(it, r, in_slice, &held), a = chi_facts_sum(it, r, in_slice, &all);
  if (h.n) table_row(t, "held-out wordings", &h);
  table_row(t, "all", &a);
  json_object_set(j, "groups", groups);
  json_object_set(j, "relations", relations);
  json_object_set_new(j, "held_out", sum_json(&h));
  json_object_set_new(j, "all", sum_json(&a));
  CHI_TRY(chi_table_text(t, width, text, err));
  chi_str_add(text,
              "drop: mean fall of p(first answer token) when the bracketed words are replaced by\nothers of the same "
              "length; counterf.: the model then says what is "
              "right for those;\nparaphr.: mean |change| of p under words that mean the same.\n");
out:
  json_decref(groups);
  json_decref(relations);
  chi_table_free(t);
  return rc;
}

/* What the demo model must be able to do for its maps to mean anything (docs/design.md, section 8). */
static int require_demo(const chi_items *it, const chi_fact_result *r, chi_str *text, chi_err *err) {
  static const struct {
    const char *what, *group;
    double right;
  } kMin[] = {{"facts", "fact", 0.90},
              {"colours", "color", 0.95},
              {"text twins, named", "text_named", 0.95},
              {"text twins, described", "text_described", 0.95},
              {"named over another's flag", "named_over", 0.90}};
  int failed = 0;
  for (size_t i = 0; i < sizeof kMin / sizeof *kMin; i++) {
    slice s = {.group = kMin[i].group, .held_out = -1};
    chi_fact_sum sum = chi_facts_sum(it, r, in_slice, &s);
    bool ok = sum.n > 0 && sum.right >= kMin[i].right * sum.n;
    chi_str_addf(text, "%s  %s: %.1f %% (needed %.0f)\n", ok ? "ok    " : "FAILED", kMin[i].what,
                 sum.n ? 100.0 * sum.right / sum.n : 0.0, 100 * kMin[i].right);
    failed += !ok;
  }
  slice all = {.held_out = -1};
  chi_fact_sum a = chi_facts_sum(it, r, in_slice, &all);
  bool drop = a.drop >= 0.5, cf = a.counterfactual >= 0.8 * a.substitutes && a.substitutes > 0, para = a.change <= 0.05,
       many = a.n >= 2000;
  chi_str_addf(text, "%s  substitution lowers p by %.3f (needed 0.5)\n", drop ? "ok    " : "FAILED", a.drop);
  chi_str_addf(text, "%s  counterfactual answer on top: %.1f %% (needed 80)\n", cf ? "ok    " : "FAILED",
               a.substitutes ? 100.0 * a.counterfactual / a.substitutes : 0.0);
  chi_str_addf(text, "%s  paraphrase changes p by %.3f (at most 0.05)\n", para ? "ok    " : "FAILED", a.change);
  chi_str_addf(text, "%s  %d items (needed 2000)\n", many ? "ok    " : "FAILED", a.n);
  failed += !drop + !cf + !para + !many;
  return failed ? chi_fail(err, CHI_ERR_ARG, "%d of the demo model's promises do not hold", failed) : 0;
}

static int write_items(const chi_items *it, const chi_fact_result *r, const char *path, chi_err *err) {
  static const char *const kHead[] = {"id",   "group", "relation", "entity",       "held_out",       "answer",
                                      "said", "right", "p",        "p_substitute", "counterfactual", "p_paraphrase"};
  int rc = 0;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (size_t i = 0; i < it->n; i++) {
    const chi_item *x = &it->item[i];
    const char *text[] = {x->id, x->group, x->relation, x->entity};
    for (size_t k = 0; k < 4; k++) chi_csv_str(c, text[k]);
    chi_csv_int(c, x->held_out);
    chi_csv_str(c, x->answer);
    chi_csv_str(c, r[i].said);
    chi_csv_int(c, r[i].right);
    chi_csv_num(c, r[i].p);
    chi_csv_num(c, r[i].has_substitute ? r[i].p_substitute : NAN);
    chi_csv_num(c, r[i].has_substitute ? r[i].counterfactual : NAN);
    chi_csv_num(c, r[i].has_paraphrase ? r[i].p_paraphrase : NAN);
    CHI_TRY(chi_csv_row(c, err));
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0, promised = 0;
  char own[4096];
  const char *path = a->items;
  chi_model *m = NULL;
  chi_items items = {0};
  chi_fact_result *r = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  if (!path) {
    CHI_TRY(chi_path_join(own, sizeof own, m->path, "eval/items.jsonl", err));
    path = own;
  }
  CHI_TRY(chi_items_load(&items, path, (size_t)a->limit, err));
  CHI_TRY((r = chi_calloc(items.n, sizeof *r, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  prov.data_hash = items.hash;
  CHI_TRY(chi_facts_run(r, m, &items, &(chi_fact_opts){.max_new = (int)a->max_new, .mem = a->c.mem, .what = "asking"},
                        err));
  CHI_TRY(chi_report_json(&j, "eval", &prov, err));
  CHI_TRY(report(&items, r, j, &text, cli_width(), err));
  if (a->out) CHI_TRY(write_items(&items, r, a->out, err));
  if (a->require) {
    chi_str_add(&text, "\n");
    promised = require_demo(&items, r, &text, err);
  }
  CHI_TRY(a->c.json ? cli_print_json(j, err) : cli_print(&text, err));
  rc = promised;
out:
  chi_free(r);
  chi_items_free(&items);
  chi_str_free(&text);
  json_decref(j);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_eval = {
    .name = "eval",
    .usage = "MODEL",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Asks every item of a file (docs/world.md has its fields) and reports, by group and relation, how many\n"
        "answers are right, whether the bracketed words decide the answer, and whether words that mean the\n"
        "same change nothing.",
    .examples = "chiasm eval demo\nchiasm eval demo --limit 200 --json",
};

/* chiasm eval: the card of a model on question items: by form, exposure group and relation, with intervals. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "eval/card.h"

typedef struct args {
  cli_common c;
  const char *items, *out, *split;
  int64_t limit, max_new;
  bool require, cells, twins;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .max_new = 16, .split = "test"};
static const cli_opt kOpts[] = {
    {.name = "--items",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, items),
     .doc = "items, one JSON object a line; else MODEL's own eval/items.jsonl"},
    {.name = "--split",
     .arg = "NAME",
     .kind = CLI_STR,
     CLI_AT(args, split),
     .doc = "items of this split (dev, test), or all; items without a split always count"},
    {.name = "--limit",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, limit),
     .min = 0,
     .max = 1e9,
     .doc = "only the first N items of the split"},
    {.name = "--max-new",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, max_new),
     .min = 1,
     .max = 63,
     .doc = "tokens of an answer at most"},
    {.name = "--cells", .kind = CLI_FLAG, CLI_AT(args, cells), .doc = "also a row for every form x group x relation"},
    {.name = "--twins",
     .kind = CLI_FLAG,
     CLI_AT(args, twins),
     .doc = "also ask the items' twins (by name, described, over another picture, blank)"},
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

/* ---- a row ------------------------------------------------------------------------------------------------- */
static void percent(chi_table *t, int k, int n) {
  if (n)
    chi_table_cell(t, "%.1f", 100.0 * k / n);
  else
    chi_table_cell(t, "-");
}

static void number(chi_table *t, double x, int n) {
  if (n)
    chi_table_cell(t, "%.3f", x);
  else
    chi_table_cell(t, "-");
}

static void card_row(chi_table *t, const char *label, const chi_card_sum *s) {
  chi_table_cell(t, "%s", label);
  chi_table_cell(t, "%d", s->n);
  chi_table_cell(t, "%d", s->units);
  percent(t, s->right, s->n);
  chi_table_cell(t, "%.1f-%.1f", 100 * s->lo, 100 * s->hi);
  percent(t, s->majority, s->n);
  number(t, s->part[0].drop, s->part[0].n);
  for (int k = 0; k < 2; k++) {
    percent(t, s->part[k].changed, s->part[k].n);
    percent(t, s->part[k].counterfactual, s->part[k].n);
  }
  number(t, s->change, s->paraphrases);
}

static json_t *share_json(int k, int n) { return chi_json_num(n ? (double)k / n : NAN); }

static json_t *sum_json(const chi_card_sum *s) {
  json_t *o = json_pack("{s:i,s:i,s:i,s:o,s:o,s:o,s:i}", "n", s->n, "units", s->units, "right", s->right, "share",
                        share_json(s->right, s->n), "ci95_lo", chi_json_num(s->lo), "ci95_hi", chi_json_num(s->hi),
                        "majority_right", s->majority);
  json_t *parts = json_array(), *twins = json_object();
  for (int k = 0; k < CHI_ITEM_PARTS && s->part[k].n; k++)
    json_array_append_new(
        parts, json_pack("{s:i,s:i,s:i,s:o}", "n", s->part[k].n, "changed", s->part[k].changed, "counterfactual",
                         s->part[k].counterfactual, "mean_drop", chi_json_num(s->part[k].drop)));
  for (int k = 0; k < CHI_ITEM_TWINS; k++)
    if (s->twin[k].n)
      json_object_set_new(twins, chi_item_twin_names[k],
                          json_pack("{s:i,s:i}", "n", s->twin[k].n, "right", s->twin[k].right));
  json_object_set_new(o, "constraints", parts);
  json_object_update_new(o,
                         json_pack("{s:i,s:o}", "paraphrased", s->paraphrases, "mean_change", chi_json_num(s->change)));
  if (s->truths)
    json_object_set_new(o, "taught_wrongly", json_pack("{s:i,s:i}", "n", s->truths, "said_the_truth", s->truth));
  if (s->priors)
    json_object_set_new(o, "against_prior", json_pack("{s:i,s:i}", "n", s->priors, "said_the_prior", s->prior));
  if (json_object_size(twins)) json_object_set(o, "twins", twins);
  json_decref(twins);
  return o;
}

/* ---- tables ------------------------------------------------------------------------------------------------- */
static const char *const kHead[] = {"items", "n",       "units", "right %", "95 % interval", "constant",
                                    "drop",  "1st ch.", "1st %", "2nd ch.", "2nd %",         "paraphr."};
static const char kAlign[] = "lrrrrrrrrrrr";

static void label_of(char *out, size_t cap, const chi_card_slice *s, int fields) {
  const char *part[3] = {fields & CHI_CARD_FORM ? s->form : NULL, fields & CHI_CARD_GROUP ? s->group : NULL,
                         fields & CHI_CARD_RELATION ? s->relation : NULL};
  size_t at = 0;
  out[0] = 0;
  for (int k = 0; k < 3 && at < cap; k++)
    if (part[k]) at += (size_t)snprintf(out + at, cap - at, "%s%s", at ? " / " : "", *part[k] ? part[k] : "-");
}

/* One table of all combinations of the fields; rows = false leaves the text out and fills the JSON alone. */
static int section(chi_card *c, const char *title, const char *key, int fields, bool rows, json_t *j, chi_str *text,
                   int width, chi_err *err) {
  int rc = 0;
  size_t n = 0;
  chi_card_slice *s = NULL;
  chi_table *t = NULL;
  json_t *list = json_array();
  CHI_TRY(chi_card_slices(&s, &n, c, fields, err));
  CHI_TRY(chi_table_new(&t, kHead, kAlign, err));
  for (size_t k = 0; k < n; k++) {
    char label[128];
    chi_card_sum sum = chi_card_sum_of(c, &s[k]);
    label_of(label, sizeof label, &s[k], fields);
    card_row(t, label, &sum);
    json_t *o = sum_json(&sum);
    if (fields & CHI_CARD_FORM) json_object_set_new(o, "form", chi_json_text(s[k].form));
    if (fields & CHI_CARD_GROUP) json_object_set_new(o, "entity_group", chi_json_text(s[k].group));
    if (fields & CHI_CARD_RELATION) json_object_set_new(o, "relation", chi_json_text(s[k].relation));
    json_array_append_new(list, o);
  }
  json_object_set(j, key, list);
  if (rows && n > 1) {
    chi_str_addf(text, "%s\n", title);
    CHI_TRY(chi_table_text(t, width, text, err));
    chi_str_add(text, "\n");
  }
out:
  json_decref(list);
  chi_free(s);
  chi_table_free(t);
  return rc;
}

static int further(chi_card *c, json_t *j, chi_str *text, int width, chi_err *err) {
  static const struct {
    const char *label, *key;
    chi_card_slice s;
  } kSlices[] = {{"held-out wordings", "held_out", {.held_out = CHI_PICK_YES}},
                 {"known: group A and scenes", "known", {.known = CHI_PICK_YES}},
                 {"known, held-out wordings", "known_held_out", {.known = CHI_PICK_YES, .held_out = CHI_PICK_YES}},
                 {"known, one constraint", "known_one_constraint", {.known = CHI_PICK_YES, .parts = 1}},
                 {"known, two constraints", "known_two_constraints", {.known = CHI_PICK_YES, .parts = 2}},
                 {"answer in the name", "readable", {.readable = CHI_PICK_YES}},
                 {"first token shared", "first_token_shared", {.shared = CHI_PICK_YES}},
                 {"against the training prior", "prior", {.prior = CHI_PICK_YES}},
                 {"hard split", "hard", {.hard = CHI_PICK_YES}},
                 {"group C, not in the name", "facts_c", {.group = "C", .fact = CHI_PICK_YES, .readable = CHI_PICK_NO}},
                 {"group D, not in the name", "facts_d", {.group = "D", .fact = CHI_PICK_YES, .readable = CHI_PICK_NO}},
                 {"all", "all", {0}}};
  int rc = 0;
  chi_table *t = NULL;
  CHI_TRY(chi_table_new(&t, kHead, kAlign, err));
  for (size_t k = 0; k < sizeof kSlices / sizeof *kSlices; k++) {
    chi_card_sum s = chi_card_sum_of(c, &kSlices[k].s);
    if (s.n == 0) continue;
    card_row(t, kSlices[k].label, &s);
    json_object_set_new(j, kSlices[k].key, sum_json(&s));
  }
  CHI_TRY(chi_table_text(t, width, text, err));
  chi_str_add(text, "\n");
out:
  chi_table_free(t);
  return rc;
}

/* What stands in no column: wrong teaching, training priors, twins. */
static void remarks(chi_card *c, chi_str *text) {
  chi_card_sum all = chi_card_sum_of(c, &(chi_card_slice){0}), w = chi_card_sum_of(c, &(chi_card_slice){.group = "W"}),
               prior = chi_card_sum_of(c, &(chi_card_slice){.prior = CHI_PICK_YES});
  if (w.truths)
    chi_str_addf(text, "taught wrongly: %d items; says what is true instead: %.1f %%\n", w.truths,
                 100.0 * w.truth / w.truths);
  if (prior.n)
    chi_str_addf(text, "against the training prior: %d items, wrong in %.1f %%, with the prior's answer in %.1f %%\n",
                 prior.n, 100.0 * (prior.n - prior.right) / prior.n, 100.0 * prior.prior / prior.n);
  for (int k = 0; k < CHI_ITEM_TWINS; k++)
    if (all.twin[k].n)
      chi_str_addf(text, "twins, %s: %d, right %.1f %%\n", chi_item_twin_names[k], all.twin[k].n,
                   100.0 * all.twin[k].right / all.twin[k].n);
  chi_str_add(
      text,
      "units: (entity, relation); intervals count them, not their repeats. constant: % of the best constant\n"
      "answer to each relation, chosen on these items. drop: mean fall of p(first answer token) when the first\n"
      "bracket holds other words of the same length; ch.: the answer changes then; 1st %, 2nd %: into what is\n"
      "right for those words in that bracket. paraphr.: mean |change| of p under words that mean the same.\n");
}

static int require_demo(chi_card *c, json_t *j, chi_str *text, chi_err *err) {
  chi_promise p[CHI_PROMISES];
  int n = chi_card_promises(p, c), failed = 0;
  json_t *list = json_array();
  chi_str_add(text, "\n");
  for (int k = 0; k < n; k++) {
    const char *than = p[k].at_most ? "at most" : "needed";
    double unit = p[k].kind == CHI_PROMISE_SHARE ? 100 : 1;
    int digits = p[k].kind == CHI_PROMISE_SHARE ? 1 : p[k].kind == CHI_PROMISE_COUNT ? 0 : 3;
    chi_str_addf(text, "%s  %s: %.*f%s (%s %.*f)\n", p[k].ok ? "ok    " : "FAILED", p[k].what, digits, unit * p[k].got,
                 unit > 1 ? " %" : "", than, digits, unit * p[k].need);
    json_array_append_new(list, json_pack("{s:s,s:o,s:o,s:b,s:b}", "what", p[k].what, "got", chi_json_num(p[k].got),
                                          "need", chi_json_num(p[k].need), "at_most", p[k].at_most, "holds", p[k].ok));
    failed += !p[k].ok;
  }
  json_object_set_new(j, "promises", list);
  return failed ? chi_fail(err, CHI_ERR_ARG, "%d of the demo model's promises do not hold", failed) : 0;
}

static int report(chi_card *c, const args *a, json_t *j, chi_str *text, int width, chi_err *err) {
  int rc = 0;
  CHI_TRY(section(c, "by form", "forms", CHI_CARD_FORM, true, j, text, width, err));
  CHI_TRY(
      section(c, "by form and exposure group", "groups", CHI_CARD_FORM | CHI_CARD_GROUP, true, j, text, width, err));
  CHI_TRY(
      section(c, "by form and relation", "relations", CHI_CARD_FORM | CHI_CARD_RELATION, true, j, text, width, err));
  CHI_TRY(section(c, "by form, exposure group and relation", "cells",
                  CHI_CARD_FORM | CHI_CARD_GROUP | CHI_CARD_RELATION, a->cells, j, text, width, err));
  CHI_TRY(further(c, j, text, width, err));
  remarks(c, text);
out:
  return rc;
}

static int write_items(const chi_items *it, const chi_fact_result *r, const char *path, chi_err *err) {
  static const char *const kColumns[] = {"id",
                                         "split",
                                         "form",
                                         "entity_group",
                                         "relation",
                                         "entity",
                                         "unit",
                                         "held_out",
                                         "answer",
                                         "said",
                                         "right",
                                         "p",
                                         "confidence",
                                         "p_substitute",
                                         "changed",
                                         "counterfactual",
                                         "p_substitute_2",
                                         "changed_2",
                                         "counterfactual_2",
                                         "p_paraphrase"};
  int rc = 0;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kColumns, sizeof kColumns / sizeof *kColumns, err));
  for (size_t i = 0; i < it->n; i++) {
    const chi_item *x = &it->item[i];
    const char *text[] = {x->id, x->split, x->group, x->entity_group, x->relation, x->entity, x->unit};
    for (size_t k = 0; k < sizeof text / sizeof *text; k++) chi_csv_str(c, text[k]);
    chi_csv_int(c, x->held_out);
    chi_csv_str(c, x->answer);
    chi_csv_str(c, r[i].said);
    chi_csv_int(c, r[i].right);
    chi_csv_num(c, r[i].p);
    chi_csv_num(c, r[i].confidence);
    for (int k = 0; k < 2; k++) {
      const chi_fact_part *p = &r[i].part[k];
      chi_csv_num(c, p->asked ? p->p : NAN);
      chi_csv_num(c, p->asked ? p->changed : NAN);
      chi_csv_num(c, p->asked ? p->counterfactual : NAN);
    }
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
  chi_card *card = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  if (!path) {
    CHI_TRY(chi_path_join(own, sizeof own, m->path, "eval/items.jsonl", err));
    path = own;
  }
  CHI_TRY(chi_items_load(&items, path, 0, err));
  CHI_TRY(chi_items_split(&items, a->split, err));
  if (a->limit && items.n > (size_t)a->limit) items.n = (size_t)a->limit;
  CHI_TRY((r = chi_calloc(items.n, sizeof *r, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  prov.data_hash = items.hash;
  CHI_TRY(chi_facts_run(
      r, m, &items,
      &(chi_fact_opts){
          .max_new = (int)a->max_new, .tmpl = a->c.tmpl, .mem = a->c.mem, .twins = a->twins, .what = "asking"},
      err));
  CHI_TRY(chi_report_json(&j, "eval", &prov, err));
  json_object_set_new(j, "split", chi_json_text(a->split));
  CHI_TRY(chi_card_new(&card, &items, r, err));
  CHI_TRY(report(card, a, j, &text, cli_width(), err));
  if (a->out) CHI_TRY(write_items(&items, r, a->out, err));
  if (a->require) promised = require_demo(card, j, &text, err);
  CHI_TRY(a->c.json ? cli_print_json(j, err) : cli_print(&text, err));
  rc = promised;
out:
  chi_card_free(card);
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
        "Asks every item of a file (docs/world.md has its fields) and reports, by form, exposure group and\n"
        "relation, how many answers are right beside the best constant answer, whether the bracketed words\n"
        "decide the answer, each bracket alone, and whether words that mean the same change nothing.",
    .examples = "chiasm eval demo\nchiasm eval demo --split dev --cells\nchiasm eval demo --limit 200 --json",
};

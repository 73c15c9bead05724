/* chiasm predict: which scores tell beforehand that an answer will be wrong, from a study's store. */
#include "study/predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  const char *ask, *where, *out;
  int64_t draws;
  uint64_t seed;
  bool json;
} args;
static const args kDefaults = {.ask = "item", .draws = 10000};
static const cli_opt kOpts[] = {
    {.name = "--ask",
     .arg = "NAME",
     .kind = CLI_STR,
     CLI_AT(args, ask),
     .doc = "item, or the twin that was asked instead"},
    {.name = "--where",
     .arg = "FIELD=TEXT",
     .kind = CLI_STR,
     CLI_AT(args, where),
     .doc = "only items whose split, group, form, relation, ... has this text"},
    {.name = "--draws",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, draws),
     .min = 100,
     .max = 1e6,
     .doc = "bootstrap draws"},
    {.name = "--seed", .arg = "N", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of draws and folds"},
    {.name = "--json", .kind = CLI_FLAG, CLI_AT(args, json), .doc = "print JSON"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out), .doc = "also write CSV"},
    {0}};

static json_t *est_json(const chi_est *e) {
  return json_pack("{s:o,s:o,s:o,s:i,s:i,s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo), "hi",
                   chi_json_num(e->hi), "n", (int)e->n, "clusters", (int)e->clusters, "draws", (int)e->draws);
}

static void est_cell(chi_table *t, const chi_est *e, bool sign) {
  if (isnan(e->value))
    chi_table_cell(t, "-");
  else if (isnan(e->lo))
    chi_table_cell(t, sign ? "%+.3f" : "%.3f", e->value);
  else
    chi_table_cell(t, sign ? "%+.3f [%+.3f, %+.3f]" : "%.3f [%.3f, %.3f]", e->value, e->lo, e->hi);
}

static void percent(chi_table *t, double x) {
  if (isnan(x))
    chi_table_cell(t, "-");
  else
    chi_table_cell(t, "%.1f", 100 * x);
}

static int table(chi_str *s, const chi_predict *p, const chi_study_predict_counts *n, chi_err *err) {
  static const char *const kHead[] = {"score", "AUROC [95 %]", "less confidence's", "wrong % top 20", "bottom 20"};
  int rc = 0;
  chi_table *t = NULL;
  chi_str_addf(s, "%d items of %d entities, %d right: accuracy %.3f [%.3f, %.3f]\n", p->n, p->clusters, p->n_right,
               p->accuracy.value, p->accuracy.lo, p->accuracy.hi);
  chi_str_addf(s, "of %lld in the store: %lld left out by --where, %lld failed or skipped, %lld without an answer\n\n",
               (long long)n->items, (long long)n->filtered, (long long)n->not_ok, (long long)n->no_answer);
  CHI_TRY(chi_table_new(&t, kHead, "lllrr", err));
  for (int k = 0; k < p->n_rows; k++) {
    const chi_predict_row *r = &p->row[k];
    chi_table_cell(t, "%s", r->name);
    est_cell(t, &r->auroc, false);
    est_cell(t, &r->gain, true);
    percent(t, r->risk_top);
    percent(t, r->risk_bottom);
  }
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  for (int k = 0; k < 2; k++) {
    const chi_est *e = k ? p->visual : p->words;
    if (!e) continue;
    chi_str_addf(s, "\nAUROC of the mean contribution, %s, by layer:", k ? "picture to words" : "words to last token");
    for (int32_t l = 0; l < p->layers; l++) chi_str_addf(s, " %.3f", e[l].value);
  }
  chi_str_add(s, "\nIntervals: bootstrap over entities. Probes: an entity is never in both parts.\n");
out:
  chi_table_free(t);
  return rc;
}

static json_t *as_json(const chi_predict *p, const chi_study_predict_counts *n, const args *a) {
  json_t *rows = json_array(), *layers = json_object();
  for (int k = 0; k < p->n_rows; k++) {
    const chi_predict_row *r = &p->row[k];
    json_array_append_new(rows, json_pack("{s:s,s:o,s:o,s:o,s:o}", "score", r->name, "auroc", est_json(&r->auroc),
                                          "less_confidence", est_json(&r->gain), "risk_top20",
                                          chi_json_num(r->risk_top), "risk_bottom20", chi_json_num(r->risk_bottom)));
  }
  for (int k = 0; k < 2; k++) {
    const chi_est *e = k ? p->visual : p->words;
    json_t *list = json_array();
    for (int32_t l = 0; e && l < p->layers; l++) json_array_append_new(list, est_json(&e[l]));
    json_object_set_new(layers, k ? "picture_to_words" : "words_to_last", list);
  }
  json_t *j = json_pack("{s:s,s:s,s:i,s:i,s:i,s:o,s:o,s:o}", "analysis", "predict", "ask", a->ask, "items", (int)p->n,
                        "right", (int)p->n_right, "entities", (int)p->clusters, "accuracy", est_json(&p->accuracy),
                        "scores", rows, "auroc_by_layer", layers);
  json_object_set_new(j, "where", a->where ? chi_json_text(a->where) : json_null());
  json_object_set_new(j, "seed", json_integer((json_int_t)a->seed));
  json_object_set_new(
      j, "counts",
      json_pack("{s:I,s:I,s:I,s:I}", "in_store", (json_int_t)n->items, "left_out", (json_int_t)n->filtered,
                "failed_or_skipped", (json_int_t)n->not_ok, "without_answer", (json_int_t)n->no_answer));
  json_object_set_new(
      j, "probe",
      json_pack("{s:o,s:o}", "mean_l1", chi_json_num(p->probe_l1), "mean_heads_used", chi_json_num(p->probe_used)));
  return j;
}

static int write_csv(const chi_predict *p, const char *path, chi_err *err) {
  static const char *const kHead[] = {"score", "n",       "entities", "auroc",      "lo",           "hi",
                                      "gain",  "gain_lo", "gain_hi",  "risk_top20", "risk_bottom20"};
  int rc = 0;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int k = 0; k < p->n_rows; k++) {
    const chi_predict_row *r = &p->row[k];
    const double v[] = {r->auroc.value, r->auroc.lo, r->auroc.hi, r->gain.value,
                        r->gain.lo,     r->gain.hi,  r->risk_top, r->risk_bottom};
    chi_csv_str(c, r->name);
    chi_csv_int(c, r->auroc.n);
    chi_csv_int(c, r->auroc.clusters);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) chi_csv_num(c, v[i]);
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
  int rc = 0;
  char field[64];
  chi_store *s = NULL;
  chi_predict p = {0};
  chi_study_predict_counts n;
  chi_str text = {0};
  json_t *j = NULL;
  chi_study_predict_opts o = {.ask = a->ask, .boot = {.draws = (int)a->draws, .seed = a->seed}};
  if (a->where) {
    const char *is = strchr(a->where, '=');
    if (!is || is == a->where || is - a->where >= (ptrdiff_t)sizeof field)
      return cli_usage(err, "--where is FIELD=TEXT, not '%.80s'", a->where);
    snprintf(field, sizeof field, "%.*s", (int)(is - a->where), a->where);
    o.field = field;
    o.equals = is + 1;
  }
  CHI_TRY(chi_store_read(&s, c->pos[0], err));
  CHI_TRY(chi_study_predict_run(&p, &n, s, &o, err));
  if (a->out) CHI_TRY(write_csv(&p, a->out, err));
  if (a->json)
    j = as_json(&p, &n, a);
  else
    CHI_TRY(table(&text, &p, &n, err));
  CHI_TRY(a->json ? cli_print_json(j, err) : cli_print(&text, err));
out:
  json_decref(j);
  chi_str_free(&text);
  chi_predict_free(&p);
  chi_store_close(s);
  return rc;
}

const cli_command cmd_predict = {
    .name = "predict",
    .usage = "RUN",
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Can it be told before an answer is checked that it is wrong? Reads the folder that `chiasm study` has "
        "written\n"
        "(studies predict and contributions) and gives each score's AUROC with an interval over entities: the\n"
        "answer's probability, margin and entropy, mean attention contributions, and L1 probes over heads.",
    .examples = "chiasm predict runs/demo --where entity_group=Z\nchiasm predict runs/demo --json",
};

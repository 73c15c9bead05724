/* chiasm eval attribution: explainers on pictures with known masks. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "data/dataset.h"
#include "eval/fair_line.h"
#include "report/fair_report.h"

typedef struct args {
  cli_common c;
  const char *model, *explainers, *by, *split, *form, *out, *against, *rare;
  int64_t limit, each, heads, steps, randoms, shuffle, every;
  double cover;
  uint64_t seed;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS,
                               .model = "demo",
                               .explainers = "all",
                               .by = "pixel-blur,cut-text",
                               .split = "all",
                               .form = "all",
                               .each = 2,
                               .heads = 10,
                               .steps = 20,
                               .randoms = 10,
                               .every = 1,
                               .cover = 0.25};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .letter = 'm', .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "results, pictures and items.jsonl, the log that a stopped test goes on from (required)"},
    {.name = "--explainer", .letter = 'e', .arg = "A,B", .kind = CLI_STR, CLI_AT(args, explainers),
     .doc = "which; chiasm explain --list names them"},
    {.name = "--by", .arg = "A,B", .kind = CLI_STR, CLI_AT(args, by),
     .doc = "ways of removing for deletion and insertion: zero, mean, blur, noise, cut-text, cut-last, pixel-grey, "
            "pixel-blur; none that an explainer uses itself is used on it"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "items of this split, or all"},
    {.name = "--form", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, form),
     .doc = "items of this form (scene: questions about one of several objects), or all"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N items that have a mask; 0 = all"},
    {.name = "--per-picture", .arg = "N", .kind = CLI_INT, CLI_AT(args, each), .min = 0, .max = 1e9,
     .doc = "questions about each picture at most; 0 = all. The switch of questions takes two"},
    {.name = "--against", .arg = "A,B", .kind = CLI_STR, CLI_AT(args, against),
     .doc = "explainers that the others are compared with; else attention, centre and random"},
    {.name = "--cover", .arg = "X", .kind = CLI_FLOAT, CLI_AT(args, cover), .min = 0.01, .max = 1,
     .doc = "a patch belongs to the mask where it covers this much of it"},
    {.name = "--random-sets", .arg = "N", .kind = CLI_INT, CLI_AT(args, randoms), .min = 1, .max = 1000,
     .doc = "random sets of patches that removing the object is compared with"},
    {.name = "--shuffle", .arg = "N", .kind = CLI_INT, CLI_AT(args, shuffle), .min = 0, .max = 1e9,
     .doc = "the first N pictures also with the decoder's weights shuffled: maps must change"},
    {.name = "--rare", .arg = "A,B", .kind = CLI_STR, CLI_AT(args, rare),
     .doc = "costly ones, made for some pictures only (--every): names of explainers, and curves (deletion and "
            "insertion)"},
    {.name = "--every", .arg = "N", .kind = CLI_INT, CLI_AT(args, every), .min = 1, .max = 1e6,
     .doc = "what --rare names is made for every N-th picture"},
    {.name = "--heads", .arg = "K", .kind = CLI_INT, CLI_AT(args, heads), .min = 1, .max = 1e6,
     .doc = "heads that increase-top sums"},
    {.name = "--steps", .arg = "N", .kind = CLI_INT, CLI_AT(args, steps), .min = 1, .max = 100000,
     .doc = "of integrated gradients"},
    {.name = "--seed", .arg = "N", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of everything random"},
    {0}};
/* clang-format on */

static int parse_by(chi_fair_opts *o, const char *text, chi_err *err) {
  char name[64];
  chi_removal how;
  for (const char *p = text; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    snprintf(name, sizeof name, "%.*s", (int)strcspn(p, ","), p);
    int rc = chi_removal_parse(&how, name, err);
    if (rc) return rc;
    o->by[how] = true;
  }
  return 0;
}

/* What only every N-th picture is given. */
typedef struct rare {
  bool *not_now; /* [n_which], NULL = none */
  bool curves;
  int64_t every;
} rare;

static int parse_rare(rare *r, const chi_fair_opts *o, const char *text, int64_t every, chi_err *err) {
  char name[64];
  *r = (rare){.every = every};
  if (!text) return 0;
  r->not_now = chi_calloc((size_t)o->n_which, sizeof *r->not_now, err);
  if (!r->not_now) return CHI_ERR_MEMORY;
  for (const char *p = text; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    bool found = false;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(p, ","), p);
    for (int k = 0; k < o->n_which; k++)
      if (chi_streq(o->which[k]->name, name)) found = r->not_now[k] = true;
    if (chi_streq(name, "curves")) found = r->curves = true;
    if (!found) return cli_usage(err, "--rare: '%s' is neither curves nor one of the asked explainers", name);
  }
  return 0;
}

/* Everything that the numbers depend on: the log's first line. */
static json_t *settings_json(const args *a, const chi_fair_opts *o, const rare *r, const chi_model *m,
                             const chi_dataset *d) {
  json_t *which = json_array(), *by = json_array(), *rarely = json_array();
  for (int i = 0; i < o->n_which; i++) json_array_append_new(which, json_string(o->which[i]->name));
  for (int i = 0; r->not_now && i < o->n_which; i++)
    if (r->not_now[i]) json_array_append_new(rarely, json_string(o->which[i]->name));
  if (r->curves) json_array_append_new(rarely, json_string("curves"));
  for (int k = 0; k < CHI_REMOVALS; k++)
    if (o->by[k]) json_array_append_new(by, json_string(chi_removal_name[k]));
  return json_pack("{s:s,s:i,s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:I,s:I,s:I,s:f,s:I,s:I,s:I,s:I,s:I}", "kind",
                   "attribution-test", "format", 2, "model", m->hash, "items", d->hash, "split", a->split, "form",
                   a->form, "explainers", which, "by", by, "rare", rarely, "every", (json_int_t)a->every, "limit",
                   (json_int_t)a->limit, "per_picture", (json_int_t)a->each, "cover", a->cover, "random_sets",
                   (json_int_t)a->randoms, "shuffle", (json_int_t)a->shuffle, "heads", (json_int_t)a->heads, "steps",
                   (json_int_t)a->steps, "seed", (json_int_t)a->seed);
}

/* Items with a mask, picture after picture in order of first appearance. */
static int choose(const chi_data_item ***out, size_t *n, const chi_dataset *d, const args *a, chi_err *err) {
  const chi_data_item **list = chi_calloc(d->n + 1, sizeof *list, err);
  bool *taken = chi_calloc(d->n + 1, sizeof *taken, err);
  size_t left = a->limit ? (size_t)a->limit : d->n;
  *n = 0;
  if (!list || !taken) {
    chi_free(list);
    chi_free(taken);
    return CHI_ERR_MEMORY;
  }
  for (size_t i = 0; i < d->n; i++) { /* taken: not to be used, or used already */
    const chi_data_item *it = &d->item[i];
    bool split = chi_streq(a->split, "all") || chi_streq(it->split, a->split);
    bool form = chi_streq(a->form, "all") || chi_streq(it->form, a->form);
    taken[i] = it->problem || !split || !form || !it->mask || !it->ask.image || !it->ask.answer || left == 0;
    left -= !taken[i];
  }
  for (size_t i = 0; i < d->n; i++) {
    int64_t each = a->each ? a->each : INT64_MAX;
    for (size_t k = i; k < d->n && !taken[i]; k++) {
      if (taken[k] || !chi_streq(d->item[i].ask.image, d->item[k].ask.image)) continue;
      if (each-- > 0) list[(*n)++] = &d->item[k];
      if (k > i) taken[k] = true;
    }
  }
  chi_free(taken);
  *out = list;
  if (*n) return 0;
  return chi_fail(err, CHI_ERR_ARG, "%s has no item with picture, answer and mask in split '%s', form '%s'", d->name,
                  a->split, a->form);
}

/* All questions of one picture, unless the log has every one. */
static int picture(chi_jlog *log, const chi_model *m, const chi_data_item *const *it, size_t n, const chi_fair_opts *o,
                   chi_err *err) {
  int rc = 0;
  chi_arena arena = {0};
  size_t missing = 0;
  for (size_t i = 0; i < n; i++) missing += !chi_jlog_find(log, it[i]->id);
  if (missing == 0) return 0;
  chi_fair_ask *ask = chi_arena_array(&arena, n, sizeof *ask, err);
  chi_fair_result *r = chi_arena_array(&arena, n, sizeof *r, err);
  CHI_TRY(ask && r ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++)
    ask[i] = (chi_fair_ask){.question = it[i]->ask.question, .answer = it[i]->ask.answer, .mask = it[i]->mask};
  CHI_TRY(chi_fair_picture(r, m, it[0]->ask.image, ask, (int)n, o, &arena, err));
  for (size_t i = 0; i < n; i++) {
    if (chi_jlog_find(log, it[i]->id)) continue;
    json_t *line = NULL;
    CHI_TRY(chi_fair_line(&line, it[i]->id, it[i]->unit, it[i]->ask.image, &r[i], o, err));
    rc = chi_jlog_add(log, line, err);
    json_decref(line);
    if (rc) goto out;
  }
out:
  chi_arena_free(&arena);
  return rc;
}

static int run_all(chi_jlog *log, const chi_model *m, const chi_model *shuffled, const chi_data_item *const *list,
                   size_t n, chi_fair_opts *o, const rare *r, int64_t shuffle, chi_err *err) {
  int rc = 0;
  int64_t pictures = 0;
  for (size_t i = 0, k; i < n; i = k) {
    for (k = i; k < n && chi_streq(list[k]->ask.image, list[i]->ask.image); k++) {
    }
    bool all = pictures++ % r->every == 0;
    o->not_now = all ? NULL : r->not_now;
    o->no_curves = !all && r->curves;
    o->shuffled = shuffle-- > 0 ? shuffled : NULL;
    CHI_TRY(picture(log, m, list + i, k - i, o, err));
    CHI_TRY(chi_progress("items", (int64_t)k, (int64_t)n, err));
  }
out:
  return rc;
}

static int finish(cli *c, const args *a, chi_model *m, const chi_dataset *d, const chi_jlog *log,
                  const json_t *settings, const chi_fair_opts *o, chi_err *err) {
  int rc = 0;
  chi_fair_table *t = NULL;
  chi_str text = {0}, files = {0};
  chi_provenance prov;
  json_t *j = NULL;
  const chi_boot_opts boot = {.seed = a->seed};
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  prov.data_hash = d->hash, prov.has_seed = true, prov.seed = a->seed;
  CHI_TRY(chi_fair_table_make(&t, chi_jlog_lines(log), o, a->against, &boot, err));
  CHI_TRY(chi_fair_write(t, settings, &prov, a->out, &files, err));
  if (a->c.json) {
    CHI_TRY(chi_fair_json(&j, t, settings, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_fair_summary(t, cli_width(), &text, err));
    chi_str_addf(&text, "\nwrote %s/: items.jsonl %s\n", a->out, files.s ? files.s : "");
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_str_free(&text);
  chi_str_free(&files);
  chi_fair_table_free(t);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  char path[4096];
  size_t n = 0;
  chi_model *m = NULL, *shuffled = NULL;
  chi_dataset *d = NULL;
  chi_jlog *log = NULL;
  const chi_data_item **list = NULL;
  const chi_explainer **which = NULL;
  json_t *settings = NULL;
  rare r = {0};
  int refs[CHI_FAIR_REFS], n_refs = 0; /* checked before the work */
  chi_fair_opts o = {.cover = a->cover, .randoms = (int)a->randoms};
  if (!a->out) return cli_usage(err, "-o DIR is required");
  o.explain = (chi_explain_opts){
      .target = -1, .n_heads = (int32_t)a->heads, .steps = (int32_t)a->steps, .seed = a->seed, .mem = a->c.mem};
  CHI_TRY(chi_explainers_parse(&which, &o.n_which, a->explainers, err));
  o.which = which;
  CHI_TRY(parse_by(&o, a->by, err));
  CHI_TRY(chi_fair_against(refs, &n_refs, &o, a->against, err));
  CHI_TRY(parse_rare(&r, &o, a->rare, a->every, err));
  CHI_TRY(cli_open_model(&m, c, a->model, err));
  CHI_TRY(chi_dataset_open(&d, c->pos[0], NULL, err));
  CHI_TRY(choose(&list, &n, d, a, err));
  CHI_TRY(chi_model_hash(m, err));
  if (a->shuffle > 0) {
    CHI_TRY(cli_open_model(&shuffled, c, a->model, err));
    CHI_TRY(chi_model_shuffle(shuffled, a->seed, err));
  }
  settings = settings_json(a, &o, &r, m, d);
  CHI_TRY(settings ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  CHI_TRY(chi_mkdirs(a->out, err));
  CHI_TRY(chi_path_join(path, sizeof path, a->out, "items.jsonl", err));
  CHI_TRY(chi_jlog_open(&log, path, settings, err));
  CHI_TRY(run_all(log, m, shuffled, list, n, &o, &r, a->shuffle, err));
  CHI_TRY(finish(c, a, m, d, log, settings, &o, err));
out:
  chi_jlog_close(log);
  json_decref(settings);
  chi_free(list);
  chi_free(which);
  chi_free(r.not_now);
  chi_dataset_close(d);
  chi_model_free(shuffled);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_eval_attribution = {
    .name = "eval attribution",
    .usage = "SET",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "A fair test of explainers. SET: items in JSON lines (docs/world.md) with picture, answer and a mask of\n"
        "the asked object's pixels. Where: is a map's highest patch in the mask, how many of its k highest,\n"
        "average precision. How much: p(answer) while its highest patches go first, or come back first, by ways\n"
        "of removing that the explainer does not use. Of what: does the map of another question about the same\n"
        "picture move to the other object? --shuffle: does it change when the model knows nothing? Baselines:\n"
        "random, centre and the mask itself. An item counts where the answer is right and removing the object\n"
        "hurts more than removing as many random patches. Intervals: bootstrap over entities, and over\n"
        "pictures beside it; Holm over the explainers. A stopped test goes on where it was when the command\n"
        "is given again.",
    .examples =
        "chiasm eval attribution models/demo/eval/items.jsonl -m demo -o fair --split test --form scene\n"
        "chiasm eval attribution items.jsonl -m demo -o fair --explainer increase,attention,relevancy,random",
};

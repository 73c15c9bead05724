/* chiasm data: what a data set holds, and every row that cannot be used. */
#include "data/dataset.h"
#include "data/mmedit.h"

#include <string.h>

#include "cli.h"

typedef struct args {
  chi_dataset_opts o;
  int64_t limit, list;
  cli_list against;
  bool json;
} args;
static const args kDefaults = {.list = 20};
static const cli_opt kOpts[] = {
    {.name = "--images",
     .arg = "DIR",
     .kind = CLI_STR,
     CLI_AT(args, o.images),
     .doc = "folder of the pictures; else the file's own"},
    {.name = "--answers",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, o.answers),
     .doc = "answers for VQA-Constraints: known_1000.json, a JSON list of question, answer and "
            "image, or a CSV of index and answer"},
    {.name = "--against",
     .arg = "FILE",
     .kind = CLI_LIST,
     CLI_AT(args, against),
     .doc = "MMEdit: another file of it (the other split, nq_validation.json, okvqa_loc.json): what both share and "
            "what is off its place is counted; may be given again"},
    {.name = "--text-only", .kind = CLI_FLAG, CLI_AT(args, o.text_only), .doc = "pictures are not looked for"},
    {.name = "--limit",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, limit),
     .min = 0,
     .max = 1e9,
     .doc = "only the first N items"},
    {.name = "--list",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, list),
     .min = 0,
     .max = 1e9,
     .doc = "rows to list of each kind"},
    {.name = "--json", .kind = CLI_FLAG, CLI_AT(args, json), .doc = "all rows as JSON"},
    {0}};

/* What MMEdit's records teach. */
static void answer_types(chi_str *s, const chi_dataset *d) {
  size_t n[CHI_ANSWER_TYPES] = {0}, ports = 0;
  if (d->format != CHI_DATA_MMEDIT) return;
  for (size_t i = 0; i < d->n; i++) {
    if (!d->item[i].mmedit) continue;
    n[chi_answer_type_of(d->item[i].mmedit->alt)]++;
    ports += (size_t)d->item[i].mmedit->n_port;
  }
  chi_str_add(s, "answers:");
  for (int k = 0; k < CHI_ANSWER_TYPES; k++)
    if (n[k]) chi_str_addf(s, " %zu %s,", n[k], chi_answer_type_name[k]);
  if (ports) chi_str_addf(s, " %zu questions about what follows,", ports);
  s->len--;
  chi_str_add(s, "\n");
}

static void text(chi_str *s, const chi_dataset *d, const args *a) {
  int n_kinds, first;
  const chi_data_kind *kind = chi_data_kinds(&n_kinds);
  size_t brackets[3] = {0}, pictures = 0, answers = 0, subs = 0, twins = 0;
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    if (it->problem) continue;
    brackets[it->ask.n_brackets < 2 ? it->ask.n_brackets : 2]++;
    pictures += it->ask.image != NULL;
    answers += it->ask.answer != NULL;
    for (int b = 0; b < it->ask.n_brackets; b++) {
      subs += it->ask.bracket[b].n_sub > 0;
      if (it->ask.bracket[b].n_sub) break;
    }
    for (int k = 0; k < CHI_TWINS; k++) twins += it->twin[k].question != NULL;
  }
  chi_str_addf(s, "%s: %zu items, %zu can be used\n", d->name, d->n, d->n - d->n_unusable);
  chi_str_addf(s, "usable: %zu with a picture, %zu with an answer, %zu with a substitute, %zu twins;\n", pictures,
               answers, subs, twins);
  chi_str_addf(s, "        brackets: %zu none, %zu one, %zu several\nsha256 %s\n", brackets[0], brackets[1],
               brackets[2], d->hash);
  answer_types(s, d);
  for (int pass = 1; pass >= 0; pass--) {
    for (int k = 0; k < n_kinds; k++) {
      size_t n = chi_dataset_count(d, k, &first);
      if (kind[k].unusable != (pass == 1) || n == 0) continue;
      chi_str_addf(s, "\n%s %s: %zu (%s)\n", pass ? "unusable" : "handled", kind[k].name, n, kind[k].doc);
      int64_t left = a->list;
      for (size_t i = 0; i < d->n_notes && left > 0; i++) {
        const chi_data_note *t = &d->note[i];
        if (t->kind != k) continue;
        chi_str_addf(s, "  row %d%s%s: %s\n", t->row, *t->field ? ", " : "", t->field, t->text);
        left--;
      }
      if (n > (size_t)a->list) chi_str_addf(s, "  ... and %zu more\n", n - (size_t)a->list);
    }
  }
}

static json_t *as_json(const chi_dataset *d, const char *path) {
  int n_kinds, first;
  const chi_data_kind *kind = chi_data_kinds(&n_kinds);
  json_t *j = json_pack("{s:s,s:o,s:s,s:I,s:I}", "data", d->name, "file", chi_json_text(path), "sha256", d->hash,
                        "items", (json_int_t)d->n, "usable", (json_int_t)(d->n - d->n_unusable)),
         *counts = json_object(), *rows = json_array();
  for (int k = 0; k < n_kinds; k++) {
    size_t n = chi_dataset_count(d, k, &first);
    json_object_set_new(
        counts, kind[k].name,
        json_pack("{s:I,s:b,s:i}", "rows", (json_int_t)n, "unusable", kind[k].unusable, "first", first));
  }
  for (size_t i = 0; i < d->n_notes; i++) {
    const chi_data_note *t = &d->note[i];
    json_array_append_new(rows, json_pack("{s:i,s:s,s:s,s:s}", "row", t->row, "kind", kind[t->kind].name, "field",
                                          t->field, "text", t->text));
  }
  json_object_set_new(j, "kinds", counts);
  json_object_set_new(j, "rows", rows);
  return j;
}

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0, bad = 0;
  chi_dataset *d = NULL;
  chi_str s = {0};
  json_t *j = NULL;
  if (strcmp(c->pos[0], "check") != 0) return cli_usage(err, "check is the one action; not '%s'", c->pos[0]);
  a->o.limit = (size_t)a->limit;
  a->o.against = a->against.v;
  a->o.n_against = a->against.n;
  CHI_TRY(chi_dataset_open(&d, c->pos[1], &a->o, err));
  if (d->n_unusable)
    bad = chi_fail(err, CHI_ERR_FORMAT, "%s: %zu of %zu items cannot be used", c->pos[1], d->n_unusable, d->n);
  if (a->json)
    j = as_json(d, c->pos[1]);
  else
    text(&s, d, a);
  CHI_TRY(a->json ? cli_print_json(j, err) : cli_print(&s, err));
  rc = bad;
out:
  json_decref(j);
  chi_str_free(&s);
  chi_dataset_close(d);
  return rc;
}

const cli_command cmd_data = {
    .name = "data",
    .usage = "check FILE",
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Reads a data set as the studies do, names row and field of everything that cannot be used, and counts what\n"
        "was odd but could be handled. Data sets: our own items (one JSON object a line), the CSV files of\n"
        "VQA-Constraints (Known, Movies, OK-VQA), ROME's known_1000.json, MMEdit's and VLKEB's JSON (E-VQA, E-IC).\n"
        "Ends with status 1 if any item cannot be used.",
    .examples =
        "chiasm data check models/demo/eval/items.jsonl\n"
        "chiasm data check multimodal_known.csv --images pictures --answers known_1000.json\n"
        "chiasm data check vqa_eval.json --text-only --against vqa_train.json --against okvqa_loc.json",
};

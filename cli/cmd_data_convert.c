/* chiasm data convert: any data set, or a part of it, as our own items. */
#include "data/dataset.h"
#include "study/store.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  chi_dataset_opts o;
  const char *out, *right, *split;
  int64_t limit;
} args;
static const cli_opt kOpts[] = {
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out), .doc = "the JSONL to write"},
    {.name = "--right",
     .arg = "RUN",
     .kind = CLI_STR,
     CLI_AT(args, right),
     .doc = "only items that a study's run over the same data set answered right"},
    {.name = "--split", .arg = "NAME", .kind = CLI_STR, CLI_AT(args, split), .doc = "only items of this split"},
    {.name = "--images",
     .arg = "DIR",
     .kind = CLI_STR,
     CLI_AT(args, o.images),
     .doc = "folder of the pictures; else the file's own"},
    {.name = "--answers", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, o.answers), .doc = "as in data check"},
    {.name = "--text-only", .kind = CLI_FLAG, CLI_AT(args, o.text_only), .doc = "pictures are not looked for"},
    {.name = "--limit",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, limit),
     .min = 0,
     .max = 1e9,
     .doc = "only the first N items"},
    {0}};

static int by_id(const void *a, const void *b) {
  return strcmp((*(chi_data_item *const *)a)->id, (*(chi_data_item *const *)b)->id);
}

/* keep[i] stays true for items that the run answered right. */
static int only_right(bool *keep, chi_dataset *d, const char *dir, chi_err *err) {
  int rc = 0;
  chi_store *s = NULL;
  chi_store_item *item = NULL;
  size_t n = 0, met = 0;
  chi_arena arena = {0};
  json_t *info = NULL;
  bool *right = NULL;
  chi_data_item **sorted = NULL;
  CHI_TRY(chi_store_read(&s, dir, err));
  CHI_TRY(chi_store_items(s, &item, &n, &arena, err));
  right = chi_calloc(d->n, sizeof *right, err);
  sorted = chi_calloc(d->n, sizeof *sorted, err);
  CHI_TRY(right && sorted ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < d->n; i++) sorted[i] = &d->item[i];
  qsort(sorted, d->n, sizeof *sorted, by_id);
  for (size_t i = 0; i < n; i++) {
    chi_data_item key = {.id = item[i].id}, *k = &key;
    chi_data_item **at = bsearch(&k, sorted, d->n, sizeof *sorted, by_id);
    if (!at) continue;
    met++;
    json_decref(info);
    CHI_TRY(chi_json_parse(&info, item[i].info, strlen(item[i].info), chi_store_path(s), err));
    right[*at - d->item] =
        json_is_true(json_object_get(json_object_get(json_object_get(info, "ask"), "item"), "right"));
  }
  if (met == 0) rc = chi_fail(err, CHI_ERR_ARG, "%s: holds no item of this data set", chi_store_path(s));
  for (size_t i = 0; i < d->n; i++) keep[i] = keep[i] && right[i];
out:
  json_decref(info);
  chi_free(right);
  chi_free(sorted);
  chi_arena_free(&arena);
  chi_store_close(s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0;
  size_t n = 0;
  chi_dataset *d = NULL;
  bool *keep = NULL;
  chi_str s = {0};
  if (!a->out) return cli_usage(err, "data convert needs -o FILE");
  a->o.limit = (size_t)a->limit;
  CHI_TRY(chi_dataset_open(&d, c->pos[0], &a->o, err));
  CHI_TRY((keep = chi_calloc(d->n, sizeof *keep, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < d->n; i++) keep[i] = !a->split || strcmp(d->item[i].split, a->split) == 0;
  if (a->right) CHI_TRY(only_right(keep, d, a->right, err));
  for (size_t i = 0; i < d->n; i++) n += keep[i] && !d->item[i].problem && d->item[i].ask.answer;
  if (n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s: none of its %zu items is left to be written", c->pos[0], d->n);
    goto out;
  }
  CHI_TRY(chi_dataset_save(d, keep, a->out, err));
  chi_str_addf(&s, "wrote %s: %zu of %zu items (%zu cannot be used)\n", a->out, n, d->n, d->n_unusable);
  CHI_TRY(cli_print(&s, err));
out:
  chi_free(keep);
  chi_str_free(&s);
  chi_dataset_close(d);
  return rc;
}

const cli_command cmd_data_convert = {
    .name = "data convert",
    .usage = "FILE",
    .opts = kOpts,
    .args_size = sizeof(args),
    .run = run,
    .text =
        "Writes a data set as our own items, one JSON object a line: usable items that have an answer. With --right,\n"
        "the facts that a model knows, for a study of these alone; how many were left out is printed.",
    .examples = "chiasm data convert known_1000.json --right known -o right.jsonl",
};

/* chiasm data convert: any data set, or a part of it, as our own items. */
#include "data/dataset.h"
#include "file/jsonl.h"
#include "study/study.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct args {
  chi_dataset_opts o;
  const char *out, *right, *split, *forms, *entity_groups, *facts;
  bool hard, spread;
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
    {.name = "--form",
     .arg = "LIST",
     .kind = CLI_STR,
     CLI_AT(args, forms),
     .doc = "only these forms; fact=100 takes 100 items of it, by a hash of their ids"},
    {.name = "--spread",
     .kind = CLI_FLAG,
     CLI_AT(args, spread),
     .doc = "--form NAME=COUNT takes one item of each entity before a second one of any (neighbours in a file stay "
            "together else)"},
    {.name = "--entity-group",
     .arg = "LIST",
     .kind = CLI_STR,
     CLI_AT(args, entity_groups),
     .doc = "only entities of these groups, and items about none"},
    {.name = "--hard", .kind = CLI_FLAG, CLI_AT(args, hard), .doc = "only the hard split"},
    {.name = "--facts",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, facts),
     .doc = "only facts that FILE names: JSON lines with entity and relation"},
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

/* ---- a part of the forms ---------------------------------------------------------------------------------- */
typedef struct draw {
  int32_t turn; /* so many items of the same entity come before */
  uint64_t hash;
  const char *id, *entity;
  size_t at;
} draw;

static int by_turn(const void *a, const void *b) {
  const draw *x = a, *y = b;
  if (x->turn != y->turn) return x->turn < y->turn ? -1 : 1;
  return x->hash != y->hash ? (x->hash > y->hash) - (x->hash < y->hash) : strcmp(x->id, y->id);
}

/* FNV's high bits are nearly those of ids with the same beginning: mixed where items are to be spread (Stafford's mix
 * 13). */
static uint64_t mixed(uint64_t h) {
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9U;
  h = (h ^ h >> 27) * 0x94d049bb133111ebU;
  return h ^ h >> 31;
}

/* The n-th item of an entity has n before it, in the order of the hashes. */
static void set_turns(draw *list, size_t k) {
  for (draw *a = list; a < list + k; a++)
    for (const draw *b = list; b < list + k; b++)
      a->turn += strcmp(a->entity, b->entity) == 0 && (b->hash < a->hash || (b->hash == a->hash && b < a));
}

/* Of the form's items that are still kept, the n first by the hash of their ids: fewer are always a part of more. */
static int take_some(bool *keep, const chi_dataset *d, const char *form, size_t n, bool spread, draw *list) {
  size_t k = 0;
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    uint64_t h = chi_fnv64(it->id, strlen(it->id), 0);
    if (!keep[i] || it->problem || !it->ask.answer || strcmp(it->form, form) != 0) continue;
    list[k++] = (draw){.hash = spread ? mixed(h) : h, .id = it->id, .entity = it->entity ? it->entity : "", .at = i};
  }
  if (spread) set_turns(list, k);
  qsort(list, k, sizeof *list, by_turn);
  for (size_t i = n; i < k; i++) keep[list[i].at] = false;
  return k > 0;
}

/* "fact=100,scene": the items of other forms go, and of these all but as many as are asked for. */
static int only_forms(bool *keep, chi_dataset *d, const char *forms, bool spread, chi_err *err) {
  int rc = 0;
  char word[128];
  draw *list = chi_calloc(d->n, sizeof *list, err);
  bool *named = chi_calloc(d->n, sizeof *named, err);
  CHI_TRY(list && named ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; chi_study_word(forms, i, word, sizeof word); i++) {
    char *count = strchr(word, '='), *end = NULL;
    long n = count ? strtol(count + 1, &end, 10) : 0;
    if (count && (n < 1 || *end)) {
      rc = cli_usage(err, "--form: '%s' is not NAME or NAME=COUNT", word);
      goto out;
    }
    if (count) *count = 0;
    if (!take_some(keep, d, word, count ? (size_t)n : d->n, spread, list)) {
      rc = chi_fail(err, CHI_ERR_ARG, "no item of form '%s' is among those asked for", word);
      goto out;
    }
    for (size_t k = 0; k < d->n; k++) named[k] |= strcmp(d->item[k].form, word) == 0;
  }
  for (size_t k = 0; k < d->n; k++) keep[k] = keep[k] && named[k];
out:
  chi_free(list);
  chi_free(named);
  return rc;
}

/* ---- named facts ----------------------------------------------------------------------------------------- */
typedef struct naming {
  const chi_dataset *d;
  bool *named;
} naming;

/* A line names the items with its entity and relation. */
static int name_fact(void *ud, const json_t *o, const char *where, int line, bool *stop, chi_err *err) {
  naming *g = ud;
  const char *entity = json_string_value(json_object_get(o, "entity")),
             *relation = json_string_value(json_object_get(o, "relation"));
  (void)line;
  (void)stop;
  if (!entity || !relation) return chi_fail(err, CHI_ERR_FORMAT, "%s: no entity and relation", where);
  for (size_t i = 0; i < g->d->n; i++)
    g->named[i] |= strcmp(g->d->item[i].entity, entity) == 0 && strcmp(g->d->item[i].relation, relation) == 0;
  return 0;
}

static int only_facts(bool *keep, const chi_dataset *d, const char *path, chi_err *err) {
  int rc = 0;
  char hash[65], dir[4096];
  naming g = {d, chi_calloc(d->n, sizeof *g.named, err)};
  CHI_TRY(g.named ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_jsonl_read(path, (size_t)256 << 20, hash, dir, name_fact, &g, err));
  for (size_t i = 0; i < d->n; i++) keep[i] = keep[i] && g.named[i];
out:
  chi_free(g.named);
  return rc;
}

static bool in_list(const char *list, const char *name) {
  char word[64];
  if (!list || !*name) return true;
  for (int i = 0; chi_study_word(list, i, word, sizeof word); i++)
    if (strcmp(word, name) == 0) return true;
  return false;
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
  for (size_t i = 0; i < d->n; i++) {
    const chi_data_item *it = &d->item[i];
    keep[i] = (!a->split || strcmp(it->split, a->split) == 0) && in_list(a->entity_groups, it->entity_group) &&
              (!a->hard || it->hard);
  }
  if (a->right) CHI_TRY(only_right(keep, d, a->right, err));
  if (a->facts) CHI_TRY(only_facts(keep, d, a->facts, err));
  if (a->forms) CHI_TRY(only_forms(keep, d, a->forms, a->spread, err));
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
    .examples =
        "chiasm data convert known_1000.json --right known -o right.jsonl\n"
        "chiasm data convert models/demo/eval/items.jsonl --split test --form fact=100,scene=50 -o part.jsonl",
};

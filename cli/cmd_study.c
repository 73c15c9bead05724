/* chiasm study: analyses over a data set. */
#include "study/study.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "analyze/select.h"
#include "chi_version.h"
#include "cli.h"

typedef struct args {
  cli_common c;
  const char *model, *out, *asks, *sites, *windows, *noise_ref, *roles, *shard, *images, *answers;
  cli_list corrupt;
  int64_t null_draws, controls, limit, batch, max_new;
  uint64_t seed;
  bool no_donor, one_direction, from_words, retry, text_only;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS,
                               .model = "demo",
                               .asks = "item",
                               .sites = "mlp,attn,hidden,embed",
                               .windows = "1,3,6",
                               .null_draws = 3,
                               .controls = 3,
                               .batch = 4,
                               .max_new = 16};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--model", .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, model), .doc = "the model that is studied"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "folder of the run: made, or gone on with"},
    {.name = "--asks", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, asks),
     .doc = "forms of each item: item, named, described, named_over, blank"},
    {.name = "--sites", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, sites), .doc = "trace: what is put back"},
    {.name = "--windows", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, windows),
     .doc = "trace, knockout: layers in a window, or shares of the depth: 1,3,20%"},
    {.name = "--corrupt", .arg = "HOW", .kind = CLI_LIST, CLI_AT(args, corrupt),
     .doc = "trace: substitute (the item's own), picture (its donor's), or as in trace; may be given again. "
            "Default: substitute, random, picture"},
    {.name = "--noise-ref", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, noise_ref), .doc = "as in trace"},
    {.name = "--no-donor", .kind = CLI_FLAG, CLI_AT(args, no_donor), .doc = "trace: without the donor control"},
    {.name = "--one-direction", .kind = CLI_FLAG, CLI_AT(args, one_direction),
     .doc = "trace: not also the corrupted value into the clean run"},
    {.name = "--from-words", .kind = CLI_FLAG, CLI_AT(args, from_words),
     .doc = "trace: only tokens from the bracketed words on: faster, the same numbers there"},
    {.name = "--roles", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, roles),
     .doc = "trace: only tokens that are this: last word token, next token, last token, ... (docs/studies.md)"},
    {.name = "--null-draws", .arg = "N", .kind = CLI_INT, CLI_AT(args, null_draws), .min = 0, .max = 100,
     .doc = "trace: draws of as many cells at random places"},
    {.name = "--controls", .arg = "N", .kind = CLI_INT, CLI_AT(args, controls), .min = 0, .max = 100,
     .doc = "knockout: random sets for each set"},
    {.name = "--seed", .arg = "S", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "each item's own seed is made of it"},
    {.name = "--limit", .arg = "N", .kind = CLI_INT, CLI_AT(args, limit), .min = 0, .max = 1e9,
     .doc = "only the first N items; a later run may go further"},
    {.name = "--shard", .arg = "I/N", .kind = CLI_STR, CLI_AT(args, shard), .doc = "every N-th item from the I-th on"},
    {.name = "--retry", .kind = CLI_FLAG, CLI_AT(args, retry), .doc = "items that failed are tried again"},
    {.name = "--batch", .arg = "N", .kind = CLI_INT, CLI_AT(args, batch), .min = 1, .max = 64,
     .doc = "items that share a sweep; changes no number"},
    {.name = "--max-new", .arg = "N", .kind = CLI_INT, CLI_AT(args, max_new), .min = 1, .max = 64,
     .doc = "longest answer, in tokens"},
    {.name = "--images", .arg = "DIR", .kind = CLI_STR, CLI_AT(args, images),
     .doc = "folder of the pictures; else the data set's"},
    {.name = "--answers", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, answers),
     .doc = "answers for VQA-Constraints, as in data"},
    {.name = "--text-only", .kind = CLI_FLAG, CLI_AT(args, text_only), .doc = "pictures are not looked for"},
    {0}};
/* clang-format on */

/* ---- shards and ranks ------------------------------------------------------------------------------------ */
/* A whole number of the environment; -1 where there is none. */
static int env_number(const char *const *names) {
  for (; *names; names++) {
    const char *v = getenv(*names);
    char *end = NULL;
    long n = v && *v ? strtol(v, &end, 10) : -1;
    if (end && !*end && n >= 0 && n < 100000) return (int)n;
  }
  return -1;
}

/* Started by mpirun or srun? No MPI library is needed: ranks share nothing but the file system. */
static bool rank_of(int *rank, int *ranks) {
  static const char *const kRank[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", NULL};
  static const char *const kSize[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", NULL};
  *rank = env_number(kRank);
  *ranks = env_number(kSize);
  return *rank >= 0 && *ranks > 1 && *rank < *ranks;
}

static int parse_shard(const char *text, chi_study_plan *p, chi_err *err) {
  int i = 0, n = 0, used = 0;
  if (sscanf(text, "%d/%d%n", &i, &n, &used) != 2 || text[used] || i < 1 || n < 1 || i > n || n > 100000)
    return cli_usage(err, "--shard: '%s' is not I/N with 1 <= I <= N", text);
  p->shard = i - 1;
  p->shards = n;
  return 0;
}

static int shard_dir(char *out, size_t cap, const char *dir, int shard, int shards, chi_err *err) {
  char name[64];
  snprintf(name, sizeof name, "shard-%d-of-%d", shard + 1, shards);
  return chi_path_join(out, cap, dir, name, err);
}

/* Has a rank finished what this run asks for? */
static bool is_done(const char *dir, size_t limit) {
  chi_store *s = NULL;
  char want[32];
  bool done = false;
  snprintf(want, sizeof want, "%zu", limit);
  if (!chi_store_exists(dir) || chi_store_busy(dir) || chi_store_read(&s, dir, NULL)) return false;
  if (chi_streq(chi_store_get(s, "limit"), want)) done = chi_streq(chi_store_get(s, "state"), "done");
  chi_store_close(s);
  return done;
}

/* Rank 0, when its own items are done: waits for the others and puts all stores into one. */
static int gather(const char *dir, int shards, size_t limit, chi_err *err) {
  enum { kPatience = 600 }; /* tenths of a second in which a rank may start */
  int rc = 0, idle = 0;
  char(*paths)[4096] = chi_calloc((size_t)shards, sizeof *paths, err);
  const char **list = chi_calloc((size_t)shards, sizeof *list, err);
  CHI_TRY(paths && list ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < shards; i++) {
    CHI_TRY(shard_dir(paths[i], sizeof paths[i], dir, i, shards, err));
    list[i] = paths[i];
  }
  for (int i = 0; i < shards;) {
    if (is_done(paths[i], limit)) {
      i++;
      continue;
    }
    idle = chi_store_busy(paths[i]) ? 0 : idle + 1;
    if (idle > kPatience) {
      rc = chi_fail(err, CHI_ERR_IO, "%s is not finished and nobody is at it: give the same command again", paths[i]);
      goto out;
    }
    if (cli_interrupted()) {
      rc = chi_fail(err, CHI_ERR_CANCELLED, "cancelled while waiting for %s", paths[i]);
      goto out;
    }
    nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
  }
  rc = chi_store_merge(list, (size_t)shards, dir, true, err);
out:
  chi_free(paths);
  chi_free(list);
  return rc;
}

/* ---- what a store holds ---------------------------------------------------------------------------------- */
static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Reasons of failed and skipped items, with how many have each. */
static int reasons(chi_str *text, const chi_store_item *it, size_t n, chi_err *err) {
  size_t k = 0, shown = 0;
  const char **why = chi_calloc(n, sizeof *why, err);
  if (!why) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++)
    if (it[i].status != CHI_STORE_OK) why[k++] = it[i].reason;
  qsort(why, k, sizeof *why, by_text);
  for (size_t i = 0, j; i < k && shown < 10; i = j, shown++) {
    for (j = i; j < k && strcmp(why[i], why[j]) == 0; j++) continue;
    chi_str_addf(text, "  %zu x %s\n", j - i, why[i]);
  }
  chi_free(why);
  return 0;
}

static int show(const char *dir, chi_str *text, chi_err *err) {
  int rc = 0;
  size_t n = 0;
  int64_t spent = 0;
  double seconds = 0;
  char hex[65];
  chi_store *s = NULL;
  chi_store_counts c;
  chi_store_item *it = NULL;
  chi_arena a = {0};
  CHI_TRY(chi_store_read(&s, dir, err));
  CHI_TRY(chi_store_count(s, &c, err));
  CHI_TRY(chi_store_items(s, &it, &n, &a, err));
  CHI_TRY(chi_store_spent(s, &spent, &seconds, err));
  CHI_TRY(chi_store_digest(s, hex, err));
  chi_str_addf(text, "%s: %lld items done, %lld skipped, %lld failed; %lld results\n", chi_store_path(s),
               (long long)c.n[CHI_STORE_OK], (long long)c.n[CHI_STORE_SKIPPED], (long long)c.n[CHI_STORE_FAILED],
               (long long)c.results);
  CHI_TRY(reasons(text, it, n, err));
  const char *state = chi_store_get(s, "state");
  chi_str_addf(text, "state: %s", chi_store_busy(dir) ? "running" : chi_streq(state, "done") ? "finished" : "stopped");
  if (seconds > 0)
    chi_str_addf(text, "; %.1f s for %lld items, %.3g a minute", seconds, (long long)spent,
                 60 * (double)spent / seconds);
  chi_str_addf(text, "\ndigest: %s\n", hex);
out:
  chi_arena_free(&a);
  chi_store_close(s);
  return rc;
}

/* ---- the command ----------------------------------------------------------------------------------------- */
static int windows(chi_study_opts *o, const char *text, int32_t layers, chi_err *err) {
  char word[32];
  o->n_windows = 0;
  for (int i = 0; chi_study_word(text, i, word, sizeof word); i++) {
    int32_t w = 0;
    if (i == CHI_STUDY_LIST) return cli_usage(err, "--windows: %d are the limit", CHI_STUDY_LIST);
    if (!chi_select_window(&w, word, layers))
      return cli_usage(err, "--windows: '%s' is no number of layers, nor a share as 20%%", word);
    o->window[o->n_windows++] = w;
  }
  return o->n_windows ? 0 : cli_usage(err, "--windows names nothing");
}

static int options(chi_study_opts *o, const cli *c, const args *a, chi_err *err) {
  *o = (chi_study_opts){.studies = c->pos[0],
                        .asks = a->asks,
                        .sites = a->sites,
                        .noise_ref = a->noise_ref,
                        .no_donor = a->no_donor,
                        .one_direction = a->one_direction,
                        .from_words = a->from_words,
                        .roles = a->roles,
                        .null_draws = (int32_t)a->null_draws,
                        .controls = (int32_t)a->controls,
                        .seed = a->seed,
                        .tmpl = a->c.tmpl,
                        .max_new = (int32_t)a->max_new,
                        .batch = (int)a->batch,
                        .mem = a->c.mem};
  if (a->corrupt.n > CHI_STUDY_LIST) return cli_usage(err, "--corrupt: %d are the limit", CHI_STUDY_LIST);
  for (int i = 0; i < a->corrupt.n; i++) o->corrupt[i] = a->corrupt.v[i];
  o->n_corrupt = a->corrupt.n;
  for (int i = 0; i < 3 && !a->corrupt.n; i++)
    o->corrupt[o->n_corrupt++] = (const char *const[]){"substitute", "random", "picture"}[i];
  return windows(o, a->windows, 1, err); /* again when the depth is known */
}

/* Settings that the command line adds: what is in the model, and how it is run. */
static char *extra(const cli *c, const chi_model *m, const char *answers_hash) {
  json_t *j = json_pack("{s:s, s:[]}", "dtype", m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32", "deltas");
  char hex[65];
  for (int i = 0; i < c->common->apply.n; i++)
    if (chi_sha256_file(hex, c->common->apply.v[i], NULL) == 0)
      json_array_append_new(json_object_get(j, "deltas"), json_string(hex));
  if (answers_hash[0]) json_object_set_new(j, "answers", json_string(answers_hash));
  char *text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS);
  json_decref(j);
  return text;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0, rank = 0, ranks = 1;
  char dir[4096], answers_hash[65] = "";
  char *more = NULL;
  chi_model *m = NULL;
  chi_dataset *d = NULL;
  chi_study_opts o;
  chi_study_done done;
  chi_str text = {0};
  chi_study_plan p = {.dir = a->out,
                      .limit = (size_t)a->limit,
                      .retry = a->retry,
                      .version = CHI_VERSION " " CHI_GIT_ID,
                      .command = c->command_line,
                      .data_path = c->pos[1],
                      .model_name = a->model};
  if (!a->out) return cli_usage(err, "-o DIR is required");
  CHI_TRY(options(&o, c, a, err));
  CHI_TRY(chi_study_check(&o, err));
  if (a->shard) CHI_TRY(parse_shard(a->shard, &p, err));
  bool mpi = !a->shard && rank_of(&rank, &ranks);
  if (mpi) {
    p.shard = rank;
    p.shards = ranks;
    CHI_TRY(shard_dir(dir, sizeof dir, a->out, rank, ranks, err));
    p.dir = dir;
  }
  CHI_TRY(chi_dataset_open(
      &d, c->pos[1], &(chi_dataset_opts){.images = a->images, .answers = a->answers, .text_only = a->text_only}, err));
  if (a->answers) CHI_TRY(chi_sha256_file(answers_hash, a->answers, err));
  CHI_TRY(cli_open_model(&m, c, a->model, err));
  CHI_TRY(windows(&o, a->windows, m->net.decoder.spec.layers, err));
  CHI_TRY(chi_model_hash(m, err));
  CHI_TRY((more = extra(c, m, answers_hash)) ? 0 : chi_fail(err, CHI_ERR_MEMORY, "out of memory"));
  p.model_hash = m->hash;
  p.extra = more;
  cli_focus("items");
  rc = chi_study_run(&done, m, d, &o, &p, err);
  cli_focus(NULL);
  if (rc == 0 && mpi && rank == 0) rc = gather(a->out, ranks, p.limit, err);
  CHI_TRY(rc);
  if (mpi && rank > 0) goto out; /* rank 0 speaks for all */
  CHI_TRY(show(a->out, &text, err));
  CHI_TRY(cli_print(&text, err));
out:
  free(more);
  chi_str_free(&text);
  chi_dataset_close(d);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_study = {
    .name = "study",
    .usage = "WHAT DATASET",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "WHAT is trace, contributions, knockout, attribute, lens, probe or predict, several with commas, or all.\n"
        "Every item's results go into DIR/run.sqlite when the item is done; the same command goes on where it\n"
        "was stopped, by whatever. Under mpirun or srun each rank does its share in a folder of its own and rank 0\n"
        "puts them together (docs/studies.md).",
    .examples =
        "chiasm study trace,knockout models/demo/eval/items.jsonl --limit 100 -o run\n"
        "chiasm study trace items.jsonl --model llava --shard 1/4 -o run-1\n"
        "mpirun -n 4 chiasm study all items.jsonl --model llava --threads 2 -o run",
};

/* ---- chiasm study merge, chiasm study status --------------------------------------------------------------- */
typedef struct merge_args {
  const char *out;
  cli_list with;
} merge_args;
static const cli_opt kMergeOpts[] = {{.name = "--output",
                                      .letter = 'o',
                                      .arg = "DIR",
                                      .kind = CLI_STR,
                                      CLI_AT(merge_args, out),
                                      .doc = "folder to make"},
                                     {.name = "--with",
                                      .arg = "RUN",
                                      .kind = CLI_LIST,
                                      CLI_AT(merge_args, with),
                                      .doc = "one more run; may be given again"},
                                     {0}};

static int run_merge(cli *c, void *v, chi_err *err) {
  const merge_args *a = v;
  int rc = 0;
  size_t own = (size_t)c->n_pos, n = own + (size_t)a->with.n;
  chi_str text = {0};
  if (!a->out) return cli_usage(err, "-o DIR is required");
  const char **list = chi_calloc(n, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) list[i] = i < own ? c->pos[i] : a->with.v[i - own];
  CHI_TRY(chi_store_merge(list, n, a->out, false, err));
  CHI_TRY(show(a->out, &text, err));
  CHI_TRY(cli_print(&text, err));
out:
  chi_free(list);
  chi_str_free(&text);
  return rc;
}

const cli_command cmd_study_merge = {
    .name = "study merge",
    .usage = "RUN [RUN] [RUN] [RUN]",
    .opts = kMergeOpts,
    .args_size = sizeof(merge_args),
    .run = run_merge,
    .text =
        "Shards of one run, put together in a new folder. Refused: other settings, model or data set, and an\n"
        "item that two shards have with different values.",
    .examples = "chiasm study merge run-1 run-2 run-3 --with run-4 --with run-5 -o run",
};

static int run_status(cli *c, void *v, chi_err *err) {
  int rc = 0;
  chi_str text = {0};
  (void)v;
  CHI_TRY(show(c->pos[0], &text, err));
  CHI_TRY(cli_print(&text, err));
out:
  chi_str_free(&text);
  return rc;
}

const cli_command cmd_study_status = {
    .name = "study status",
    .usage = "RUN",
    .run = run_status,
    .text =
        "How many items a run has done, skipped and failed and why, how fast, and the digest of all its rows:\n"
        "runs with equal digests hold the same numbers.",
    .examples = "chiasm study status run",
};

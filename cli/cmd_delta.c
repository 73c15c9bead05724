/* chiasm delta: look at deltas, put several into one. */
#include "edit/delta.h"

#include <string.h>

#include "cli.h"

typedef struct args {
  const char *out;
  cli_list with;
} args;
static const cli_opt kOpts[] = {{.name = "--with",
                                 .arg = "FILE",
                                 .kind = CLI_LIST,
                                 CLI_AT(args, with),
                                 .doc = "show, merge: one more delta; may be given again"},
                                {.name = "--output",
                                 .letter = 'o',
                                 .arg = "FILE",
                                 .kind = CLI_STR,
                                 CLI_AT(args, out),
                                 .doc = "merge: the delta to write"},
                                {0}};

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  const char *what = c->pos[0];
  size_t own = (size_t)c->n_pos - 1, n = own + (size_t)a->with.n;
  bool merge = strcmp(what, "merge") == 0, diff = strcmp(what, "diff") == 0;
  chi_delta *both = NULL, **list = NULL;
  chi_str s = {0};
  if (!merge && !diff && strcmp(what, "show") != 0) return cli_usage(err, "show, merge or diff; not '%s'", what);
  if (diff && n != 2) return cli_usage(err, "diff needs two deltas");
  if (merge && !a->out) return cli_usage(err, "merge needs -o FILE");
  CHI_TRY((list = chi_calloc(n, sizeof *list, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) CHI_TRY(chi_delta_load(&list[i], i < own ? c->pos[i + 1] : a->with.v[i - own], err));
  for (size_t i = 0; !merge && !diff && i < n; i++) CHI_TRY(chi_delta_show(list[i], &s, err));
  if (diff) CHI_TRY(chi_delta_diff(list[0], list[1], &s, err));
  if (merge) {
    CHI_TRY(chi_delta_merge(&both, list, n, err));
    CHI_TRY(chi_delta_save(both, a->out, err));
    chi_str_addf(&s, "wrote %s: %zu deltas, %zu weights\n", a->out, n, both->n);
  }
  CHI_TRY(cli_print(&s, err));
out:
  for (size_t i = 0; list && i < n; i++) chi_delta_free(list[i]);
  chi_free(list);
  chi_delta_free(both);
  chi_str_free(&s);
  return rc;
}

const cli_command cmd_delta = {
    .name = "delta",
    .usage = "ACTION DELTA [DELTA]",
    .opts = kOpts,
    .args_size = sizeof(args),
    .run = run,
    .text =
        "ACTION is show (what was asked, how, which weights change and by how much), merge (several deltas of one\n"
        "base in one file) or diff (two deltas, weight by weight).",
    .examples =
        "chiasm delta show fact.delta\n"
        "chiasm delta merge a.delta b.delta --with c.delta -o all.delta\n"
        "chiasm delta diff a.delta b.delta",
};

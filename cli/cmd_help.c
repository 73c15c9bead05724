/* chiasm help: everything from the tables. */
#include "cli.h"

typedef struct args {
  bool markdown;
} args;
static const cli_opt kOpts[] = {{.name = "--markdown",
                                 .kind = CLI_FLAG,
                                 CLI_AT(args, markdown),
                                 .doc = "help on every command as Markdown (docs/cli.md)"},
                                {0}};

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  const cli_row *row = c->n_pos ? cli_find_command(c->pos[0]) : NULL;
  if (c->n_pos && !row) return cli_usage(err, "no command '%s'", c->pos[0]);
  if (((args *)v)->markdown)
    cli_help_markdown(&s);
  else if (row)
    cli_help(row, &s);
  else
    cli_help_all(&s);
  rc = cli_print(&s, err);
  chi_str_free(&s);
  return rc;
}

const cli_command cmd_help = {
    .name = "help", .usage = "[COMMAND]", .opts = kOpts, .args_size = sizeof(args), .run = run};

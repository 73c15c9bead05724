/* chiasm COMMAND ... */
#include <stdio.h>
#include <string.h>

#include "chi_version.h"
#include "cli.h"

/* The command line as one would type it. */
static void quote_line(chi_str *out, int argc, char **argv) {
  static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@%";
  for (int i = 0; i < argc; i++) {
    const char *w = i ? argv[i] : "chiasm";
    if (i) chi_str_add(out, " ");
    if (*w && w[strspn(w, safe)] == 0) {
      chi_str_add(out, w);
      continue;
    }
    chi_str_add(out, "'");
    for (; *w; w++) {
      if (*w == '\'')
        chi_str_add(out, "'\\''");
      else
        chi_str_addn(out, w, 1);
    }
    chi_str_add(out, "'");
  }
}

static int fail(const cli_command *cmd, int rc, const chi_err *err) {
  const char *text = err->code ? err->text : "failed without a reason";
  cli_progress_clear();
  fflush(stdout);
  if (rc == CLI_USAGE && cmd)
    fprintf(stderr, "chiasm %s: %s; see 'chiasm %s --help'\n", cmd->name, text, cmd->name);
  else if (rc == CLI_USAGE)
    fprintf(stderr, "chiasm: %s; see 'chiasm --help'\n", text);
  else
    fprintf(stderr, "chiasm: %s\n", text);
  return rc == CLI_USAGE ? 2 : cli_interrupted() ? 130 : 1;
}

static int run_command(const cli_row *row, int argc, char **argv, const char *line, chi_err *err) {
  int rc = 0;
  bool help = false;
  const cli_command *cmd = row->cmd;
  chi_str text = {0};
  void *args = chi_calloc(1, cmd->args_size ? cmd->args_size : 1, err);
  char **pos = chi_calloc((size_t)argc + 1, sizeof *pos, err);
  cli c = {.cmd = cmd, .common = cmd->model ? args : NULL, .pos = pos, .command_line = line};
  if (!args || !pos) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  if (cmd->defaults) memcpy(args, cmd->defaults, cmd->args_size);
  CHI_TRY(cli_parse(&c, args, argc, argv, &help, err));
  if (help) {
    cli_help(row, &text);
    CHI_TRY(cli_print(&text, err));
  } else {
    if (c.common) cli_quiet(c.common->quiet);
    CHI_TRY(cmd->run(&c, args, err));
  }
out:
  chi_str_free(&text);
  chi_free(args);
  chi_free(pos);
  return rc;
}

/* A command of two words ("eval attribution") before that of its first word. */
static const cli_row *find_row(int argc, char **argv, int *words) {
  char two[64];
  const cli_row *row = NULL;
  if (argc > 2 && snprintf(two, sizeof two, "%s %s", argv[1], argv[2]) < (int)sizeof two) row = cli_find_command(two);
  *words = row ? 2 : 1;
  return row ? row : cli_find_command(argv[1]);
}

int main(int argc, char **argv) {
  int rc = 0, words = 1;
  chi_err err = {0};
  chi_str text = {0};
  const cli_row *row = NULL;
  cli_start(argc, argv);
  if (argc < 2) {
    rc = cli_usage(&err, "no command");
  } else if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
    cli_help_all(&text);
    rc = cli_print(&text, &err);
  } else if (strcmp(argv[1], "--version") == 0) {
    chi_str_addf(&text, "chiasm %s (%s)\n", CHI_VERSION, CHI_GIT_ID);
    rc = cli_print(&text, &err);
  } else if (!(row = find_row(argc, argv, &words))) {
    rc = cli_usage(&err, "no command '%s'", argv[1]);
  } else {
    quote_line(&text, argc, argv);
    rc = run_command(row, argc - 1 - words, argv + 1 + words, text.s ? text.s : "", &err);
  }
  if (rc) rc = fail(row ? row->cmd : NULL, rc, &err);
  chi_str_free(&text);
  return rc;
}

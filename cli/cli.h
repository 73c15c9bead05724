/* cli: the command `chiasm`. Thin: a command parses its options, calls the library, prints.
 *
 * Adding a command: a row in commands.def and one file cmd_<name>.c with `const cli_command cmd_<name>`. A command of
 * two words ("eval attribution") is row eval_attribution, its .name has the space. Options are rows of a table: parsing,
 * --help and docs/cli.md are all made from it. tests/cli/usage.sh walks every row of commands.def.
 *
 *   typedef struct args { cli_common c; int64_t top; const char *out; bool all; } args;  // c first if .model is set
 *   static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .top = 10};
 *   static const cli_opt kOpts[] = {
 *     {.name = "--top", .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 1, .max = 1000, .doc = "rows to list"},
 *     {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out), .doc = "where to write"},
 *     {0}};
 *   static int run(cli *c, void *v, chi_err *err) { args *a = v; ... }
 *   const cli_command cmd_x = {.name = "x", .usage = "MODEL [IMAGE] QUESTION", .model = true, .opts = kOpts,
 *                              .args_size = sizeof(args), .defaults = &kDefaults, .run = run, .text = "..."};
 *
 * run() returns 0, a negative chi_code (exit 1, or 130 after Ctrl-C), or CLI_USAGE through cli_usage() (exit 2). It
 * prints its result with cli_print() when everything else that can fail has been done; errors go into err and nowhere
 * else. Rows and layers by name ("constraint", "0-3,7"): analyze/select.h. */
#ifndef CHI_CLI_H
#define CHI_CLI_H

#include "edit/delta.h"
#include "model/model.h"
#include "report/report.h"
#include "sweep/run.h"

/* ---- option tables ----------------------------------------------------------------------------------------- */
typedef enum cli_kind {
  CLI_FLAG,   /* bool                                                 */
  CLI_STR,    /* const char *                                         */
  CLI_INT,    /* int64_t in [min, max]                                */
  CLI_UINT,   /* uint64_t (seeds)                                     */
  CLI_FLOAT,  /* double in [min, max]; no bounds where both are 0     */
  CLI_CHOICE, /* int: index into arg, which is "a|b|c"                */
  CLI_SIZE,   /* size_t bytes: 123, 64K, 512M, 4G                     */
  CLI_LIST,   /* cli_list: may be given several times                 */
} cli_kind;

enum { CLI_LIST_MAX = 256 };
typedef struct cli_list {
  const char *v[CLI_LIST_MAX];
  int n;
} cli_list;

typedef struct cli_opt {
  const char *name; /* "--top"; NULL ends a table */
  char letter;      /* 'o' for -o, 0 = none */
  cli_kind kind;
  const char *arg; /* the value's name in help; CHOICE: "f32|bf16|auto" */
  size_t at;       /* where in the command's struct */
  double min, max;
  const char *doc; /* one line; the default is appended from the defaults */
} cli_opt;
#define CLI_AT(type, field) .at = offsetof(type, field)

/* Options that every command with a MODEL has; first member of the command's struct. */
typedef struct cli_common {
  int dtype; /* chi_dtype_choice */
  int64_t threads;
  const char *isa, *tmpl, *mmproj, *cache;
  cli_list apply; /* deltas */
  bool raw, json, quiet, stream, force_apply;
  size_t mem;
} cli_common;
#define CLI_COMMON_DEFAULTS \
  { .dtype = CHI_DTYPE_AUTO }

typedef struct cli cli;
typedef struct cli_command {
  const char *name;
  const char *usage;    /* positionals, e.g. "MODEL [IMAGE] QUESTION": bounds their number and stands in help */
  const char *text;     /* paragraphs for --help, lines of at most 100 columns; NULL = none */
  const char *examples; /* whole command lines, one a line; NULL = none */
  bool model;           /* takes the common options; its struct starts with cli_common */
  const cli_opt *opts;  /* own options, ended by {0}; NULL = none */
  size_t args_size;
  const void *defaults; /* args_size bytes; NULL = zeroes */
  int (*run)(cli *c, void *args, chi_err *err);
} cli_command;

struct cli {
  const cli_command *cmd;
  const cli_common *common; /* NULL where the command takes no model */
  int n_pos;
  char **pos;               /* positionals in order */
  const char *command_line; /* quoted for a shell, for provenance */
};

#define CLI_USAGE 2 /* run() returns this for wrong usage */
/* One line into err; returns CLI_USAGE. */
int cli_usage(chi_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

extern const cli_opt kCliCommonOpts[];
#define CLI_COMMAND(name, doc) extern const cli_command cmd_##name;
#include "commands.def"
#undef CLI_COMMAND
typedef struct cli_row {
  const cli_command *cmd;
  const char *doc;
} cli_row;
extern const cli_row kCliCommands[];
extern const int kCliCommandCount;
const cli_row *cli_find_command(const char *name); /* NULL if absent */

/* argv without the command's name. *help is set where --help stands anywhere; args holds the defaults already. */
int cli_parse(cli *c, void *args, int argc, char **argv, bool *help, chi_err *err);
void cli_help(const cli_row *row, chi_str *out); /* --help of one command */
void cli_help_all(chi_str *out);                 /* chiasm --help */
void cli_help_markdown(chi_str *out);            /* docs/cli.md */

/* ---- what commands share ------------------------------------------------------------------------------------ */
/* The folder that MODEL means: itself, or for `demo` $CHIASM_DATA/models/demo (or $CHIASM_DATA), models/demo here,
 * ../models/demo beside the executable, the installed share/chiasm/demo. */
int cli_model_path(char *out, size_t cap, const char *name, chi_err *err);
/* Threads, ISA and dtype from the common options, then the model, with the deltas of --apply in it. Caller:
 * chi_model_free. */
int cli_open_model(chi_model **out, const cli *c, const char *name, chi_err *err);
int cli_open_base(chi_model **out, const cli *c, const char *name, chi_err *err); /* without the deltas */
/* The deltas of --apply, checked against the model. Caller: cli_free_deltas. */
int cli_load_deltas(chi_delta ***out, const cli *c, chi_model *m, chi_err *err);
void cli_free_deltas(chi_delta **list, const cli *c);
/* Positionals "MODEL [IMAGE] QUESTION": image is NULL where only two were given. */
void cli_image_question(const cli *c, const char **image, const char **question);
/* Prompt by --template and --raw. Caller: chi_prompt_free. */
int cli_make_prompt(chi_prompt **out, const cli *c, const chi_model *m, const char *image, const char *question,
                    bool need_constraint, chi_err *err);
/* The same from options; template and raw are filled in. */
int cli_make_prompt_of(chi_prompt **out, const cli *c, const chi_model *m, const chi_prompt_opts *o, chi_err *err);
/* Everything known about the run; hashes the model's files. m and p may be NULL. Strings are borrowed from c, m, p. */
int cli_provenance(chi_provenance *out, const cli *c, chi_model *m, const chi_prompt *p, const char *image,
                   chi_err *err);
/* Sweep with the budget of --mem; what = progress label. */
chi_run_opts cli_run_opts(const cli *c, const char *what);

/* A plan of one question for `chiasm run`; frees the plan. Nothing where path is NULL. target: -1 = the likeliest. */
int cli_dump_plan(chi_plan *plan, const chi_model *m, const chi_prompt *p, const char *image, int32_t target,
                  const char *path, chi_err *err);

/* Columns of the terminal on stdout; 160 where it is none. */
int cli_width(void);
/* Text to stdout in one go; a full disk or a closed pipe behind it is an error here. */
int cli_print(const chi_str *s, chi_err *err);
/* JSON to stdout as files have it, with a line feed. */
int cli_print_json(const json_t *j, chi_err *err);
/* After Ctrl-C; also ends the library's work through the progress callback. */
bool cli_interrupted(void);
void cli_start(int argc, char **argv); /* signals, log, progress */
void cli_quiet(bool quiet);
/* Work made of many pieces: only this progress label is shown, with units a minute, and the pieces' own remarks are not.
 * NULL = everything again. */
void cli_focus(const char *what);
void cli_progress_clear(void); /* before writing to the terminal */

#endif

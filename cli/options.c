/* Parsing, and help made from the same tables. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

const cli_opt kCliCommonOpts[] = {
    {.name = "--dtype",
     .kind = CLI_CHOICE,
     .arg = "auto|f32|bf16",
     CLI_AT(cli_common, dtype),
     .doc = "arithmetic; auto is f32 below a billion parameters, else bf16"},
    {.name = "--threads",
     .kind = CLI_INT,
     .arg = "N",
     CLI_AT(cli_common, threads),
     .min = 0,
     .max = 1024,
     .doc = "threads; 0 is one for each core. Never changes a result"},
    {.name = "--isa",
     .kind = CLI_STR,
     .arg = "NAME",
     CLI_AT(cli_common, isa),
     .doc = "instruction set: portable, avx2, avx512, avx512-bf16, amx (also CHIASM_ISA); the best there is if not "
            "given. Never changes a result"},
    {.name = "--mmproj",
     .kind = CLI_STR,
     .arg = "FILE",
     CLI_AT(cli_common, mmproj),
     .doc = "GGUF file of the vision tower, beside a GGUF language model"},
    {.name = "--cache",
     .kind = CLI_STR,
     .arg = "DIR",
     CLI_AT(cli_common, cache),
     .doc = "keep the packed weights there: the next start maps them and takes seconds. A file as large as the "
            "model, made anew when the checkpoint's files change"},
    {.name = "--stream",
     .kind = CLI_FLAG,
     CLI_AT(cli_common, stream),
     .doc = "decoder layers are in memory only while they are used, for weights larger than memory; needs --cache"},
    {.name = "--apply",
     .kind = CLI_LIST,
     .arg = "FILE",
     CLI_AT(cli_common, apply),
     .doc = "a delta made by `chiasm edit`, put into the weights in memory; may be given again, in order"},
    {.name = "--force-apply",
     .kind = CLI_FLAG,
     CLI_AT(cli_common, force_apply),
     .doc = "apply deltas that were made for another checkpoint, if the shapes fit"},
    {.name = "--template",
     .kind = CLI_STR,
     .arg = "NAME",
     CLI_AT(cli_common, tmpl),
     .doc = "prompt template; the model's own if not given"},
    {.name = "--raw",
     .kind = CLI_FLAG,
     CLI_AT(cli_common, raw),
     .doc = "QUESTION is the whole prompt, with <image> where the picture goes"},
    {.name = "--mem",
     .kind = CLI_SIZE,
     .arg = "SIZE",
     CLI_AT(cli_common, mem),
     .doc = "memory for activations, e.g. 512M or 8G; 4G if not given. Never changes a result"},
    {.name = "--json", .kind = CLI_FLAG, CLI_AT(cli_common, json), .doc = "print the result as JSON"},
    {.name = "--quiet",
     .letter = 'q',
     .kind = CLI_FLAG,
     CLI_AT(cli_common, quiet),
     .doc = "no notes and no progress on stderr"},
    {0}};

const cli_row kCliCommands[] = {
#define CLI_COMMAND(name, doc) {&cmd_##name, doc},
#include "commands.def"
#undef CLI_COMMAND
};
const int kCliCommandCount = sizeof kCliCommands / sizeof *kCliCommands;

const cli_row *cli_find_command(const char *name) {
  for (int i = 0; i < kCliCommandCount; i++)
    if (chi_streq(kCliCommands[i].cmd->name, name)) return &kCliCommands[i];
  return NULL;
}

int cli_usage(chi_err *err, const char *fmt, ...) {
  char text[CHI_ERR_TEXT];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  chi_fail(err, CHI_ERR_ARG, "%s", text);
  return CLI_USAGE;
}

/* ---- tables -------------------------------------------------------------------------------------------------- */
/* The k-th option of a command, own ones first; NULL at the end. */
static const cli_opt *opt_at(const cli_command *cmd, int k) {
  static const cli_opt none = {0};
  const cli_opt *o = cmd->opts ? cmd->opts : &none;
  for (; o->name && k > 0; k--) o++;
  if (o->name) return o;
  if (!cmd->model) return NULL;
  o = kCliCommonOpts;
  for (; o->name && k > 0; k--) o++;
  return o->name ? o : NULL;
}

static void usage_bounds(const char *usage, int *min, int *max) {
  *min = *max = 0;
  for (const char *p = usage ? usage : ""; *p;) {
    size_t n = strcspn(p, " ");
    if (n) {
      (*max)++;
      if (*p != '[') (*min)++;
      if (n > 3 && strncmp(p + n - 4, "...]", 4) == 0) *max = 1 << 20;
    }
    p += n + (p[n] == ' ');
  }
}

/* Edits between two names, for "did you mean". */
static int distance(const char *a, const char *b) {
  int row[64], n = (int)strlen(b);
  if (n >= 64) return 99;
  for (int j = 0; j <= n; j++) row[j] = j;
  for (int i = 1; a[i - 1]; i++) {
    int diag = row[0];
    row[0] = i;
    for (int j = 1; j <= n; j++) {
      int v = diag + (a[i - 1] != b[j - 1]);
      if (row[j] + 1 < v) v = row[j] + 1;
      if (row[j - 1] + 1 < v) v = row[j - 1] + 1;
      diag = row[j];
      row[j] = v;
    }
  }
  return row[n];
}

static int unknown_option(const cli_command *cmd, const char *word, size_t len, chi_err *err) {
  const cli_opt *best = NULL;
  int least = 3;
  char name[64];
  snprintf(name, sizeof name, "%.*s", (int)(len < 63 ? len : 63), word);
  for (int k = 0; opt_at(cmd, k); k++) {
    int d = distance(name, opt_at(cmd, k)->name);
    if (d < least) least = d, best = opt_at(cmd, k);
  }
  if (best) return cli_usage(err, "no option '%s'; did you mean %s?", name, best->name);
  return cli_usage(err, "no option '%s'", name);
}

/* ---- values -------------------------------------------------------------------------------------------------- */
static int parse_size(size_t *out, const char *text) {
  char *end;
  errno = 0;
  double v = strtod(text, &end);
  if (end == text || errno || !isfinite(v) || v < 0) return -1;
  double unit = 1;
  switch (*end) {
    case 'k':
    case 'K':
      unit = 1024.0, end++;
      break;
    case 'm':
    case 'M':
      unit = 1048576.0, end++;
      break;
    case 'g':
    case 'G':
      unit = 1073741824.0, end++;
      break;
    case 't':
    case 'T':
      unit = 1099511627776.0, end++;
      break;
    default:
      break;
  }
  if (*end == 'i') end++;
  if (*end == 'B' || *end == 'b') end++;
  if (*end || v * unit > 9e15 || v * unit < 1) return -1;
  *out = (size_t)(v * unit);
  return 0;
}

static int parse_choice(const cli_opt *o, int *out, const char *text, chi_err *err) {
  int index = 0;
  for (const char *p = o->arg; *p; index++) {
    size_t n = strcspn(p, "|");
    if (strlen(text) == n && strncmp(p, text, n) == 0) {
      *out = index;
      return 0;
    }
    p += n + (p[n] == '|');
  }
  return cli_usage(err, "%s is one of %s, not '%s'", o->name, o->arg, text);
}

static int set_value(const cli_opt *o, void *args, const char *text, chi_err *err) {
  void *to = (char *)args + o->at;
  char *end = NULL;
  errno = 0;
  switch (o->kind) {
    case CLI_FLAG:
      *(bool *)to = true;
      return 0;
    case CLI_STR:
      *(const char **)to = text;
      return 0;
    case CLI_CHOICE:
      return parse_choice(o, to, text, err);
    case CLI_INT: {
      long long v = strtoll(text, &end, 10);
      if (end == text || *end || errno || (double)v < o->min || (double)v > o->max)
        return cli_usage(err, "%s needs a whole number from %.0f to %.0f, not '%s'", o->name, o->min, o->max, text);
      *(int64_t *)to = v;
      return 0;
    }
    case CLI_UINT: {
      unsigned long long v = strtoull(text, &end, 10);
      if (end == text || *end || errno || strchr(text, '-'))
        return cli_usage(err, "%s needs a whole number from 0, not '%s'", o->name, text);
      *(uint64_t *)to = v;
      return 0;
    }
    case CLI_FLOAT: {
      double v = strtod(text, &end);
      bool bounds = o->min != 0 || o->max != 0;
      if (end == text || *end || errno || !isfinite(v))
        return cli_usage(err, "%s needs a number, not '%s'", o->name, text);
      if (bounds && (v < o->min || v > o->max))
        return cli_usage(err, "%s needs a number from %g to %g, not '%s'", o->name, o->min, o->max, text);
      *(double *)to = v;
      return 0;
    }
    case CLI_SIZE:
      if (parse_size(to, text) == 0) return 0;
      return cli_usage(err, "%s needs a size such as 512M or 8G, not '%s'", o->name, text);
    case CLI_LIST: {
      cli_list *list = to;
      if (list->n == CLI_LIST_MAX) return cli_usage(err, "%s is given more than %d times", o->name, CLI_LIST_MAX);
      list->v[list->n++] = text;
      return 0;
    }
  }
  return 0;
}

static const cli_opt *find_opt(const cli_command *cmd, const char *word, size_t len) {
  for (int k = 0; opt_at(cmd, k); k++) {
    const cli_opt *o = opt_at(cmd, k);
    if (strlen(o->name) == len && strncmp(o->name, word, len) == 0) return o;
    if (len == 2 && word[0] == '-' && o->letter && word[1] == o->letter) return o;
  }
  return NULL;
}

/* A lone "-1" is a value, not an option. */
static bool is_option(const char *word) {
  return word[0] == '-' && word[1] && !(word[1] >= '0' && word[1] <= '9') && word[1] != '.';
}

int cli_parse(cli *c, void *args, int argc, char **argv, bool *help, chi_err *err) {
  int min, max;
  bool words_only = false;
  *help = false;
  for (int i = 0; i < argc; i++)
    if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) *help = true;
  if (*help) return 0;
  c->n_pos = 0;
  for (int i = 0; i < argc; i++) {
    char *word = argv[i];
    if (words_only || !is_option(word)) {
      c->pos[c->n_pos++] = word;
      continue;
    }
    if (strcmp(word, "--") == 0) {
      words_only = true;
      continue;
    }
    size_t len = word[1] == '-' ? strcspn(word, "=") : 2;
    const cli_opt *o = find_opt(c->cmd, word, len);
    if (!o || (word[1] != '-' && word[2]))
      return unknown_option(c->cmd, word, word[1] == '-' ? len : strlen(word), err);
    const char *value = word[len] == '=' ? word + len + 1 : NULL;
    if (o->kind == CLI_FLAG && value) return cli_usage(err, "%s takes no value", o->name);
    if (o->kind != CLI_FLAG && !value) {
      if (i + 1 >= argc) return cli_usage(err, "%s needs a value: %s", o->name, o->arg);
      value = argv[++i];
    }
    int rc = set_value(o, args, value, err);
    if (rc) return rc;
  }
  usage_bounds(c->cmd->usage, &min, &max);
  if (c->n_pos < min) return cli_usage(err, "%s needs %s", c->cmd->name, c->cmd->usage);
  if (c->n_pos > max)
    return cli_usage(err, "too many words from '%s' on; %s takes %s (quote the question)", c->pos[max], c->cmd->name,
                     max ? c->cmd->usage : "none");
  return 0;
}

/* ---- help ---------------------------------------------------------------------------------------------------- */
static void add_default(const cli_command *cmd, const cli_opt *o, chi_str *s) {
  if (!cmd->defaults) return;
  const void *at = (const char *)cmd->defaults + o->at;
  switch (o->kind) {
    case CLI_INT:
      if (*(const int64_t *)at) chi_str_addf(s, " [%lld]", (long long)*(const int64_t *)at);
      break;
    case CLI_UINT:
      if (*(const uint64_t *)at) chi_str_addf(s, " [%llu]", (unsigned long long)*(const uint64_t *)at);
      break;
    case CLI_FLOAT:
      if (*(const double *)at != 0) chi_str_addf(s, " [%g]", *(const double *)at);
      break;
    case CLI_STR:
      if (*(const char *const *)at) chi_str_addf(s, " [%s]", *(const char *const *)at);
      break;
    case CLI_CHOICE: {
      const char *p = o->arg;
      for (int k = *(const int *)at; k > 0; k--) p += strcspn(p, "|") + 1;
      chi_str_addf(s, " [%.*s]", (int)strcspn(p, "|"), p);
      break;
    }
    case CLI_FLAG:
    case CLI_SIZE:
    case CLI_LIST:
      break;
  }
}

static void opt_name(const cli_opt *o, chi_str *s) {
  if (o->letter) chi_str_addf(s, "-%c, ", o->letter);
  chi_str_add(s, o->name);
  if (o->kind != CLI_FLAG) chi_str_addf(s, " %s", o->arg);
}

/* text folded at 100 columns, continuation lines indented. */
static void fold(chi_str *out, const char *text, int column, int indent) {
  for (const char *p = text; *p; p += strspn(p, " ")) {
    int n = (int)strcspn(p, " "), gap = p != text;
    if (column + gap + n > 100 && column > indent) {
      chi_str_addf(out, "\n%*s", indent, "");
      column = indent;
      gap = 0;
    }
    chi_str_addf(out, "%*s%.*s", gap, "", n, p);
    column += gap + n;
    p += n;
  }
}

static void add_templates(chi_str *s) {
  size_t n;
  const chi_template *t = chi_templates(&n);
  for (size_t i = 0; i < n; i++) chi_str_addf(s, "%s%s", i ? ", " : ": ", t[i].name);
}

static void list_options(const cli_command *cmd, chi_str *out) {
  for (int k = 0; opt_at(cmd, k); k++) {
    const cli_opt *o = opt_at(cmd, k);
    chi_str left = {0}, right = {0};
    opt_name(o, &left);
    chi_str_add(&right, o->doc);
    if (chi_streq(o->name, "--template")) add_templates(&right);
    add_default(cmd, o, &right);
    chi_str_addf(out, "  %-*s", 24, left.s);
    if (left.len > 23) chi_str_addf(out, "\n%*s", 26, "");
    fold(out, right.s, 26, 26);
    chi_str_add(out, "\n");
    chi_str_free(&left);
    chi_str_free(&right);
  }
  chi_str_addf(out, "  %-24s%s\n", "-h, --help", "this text");
}

/* Lines of a paragraph are joined and folded anew; an empty line ends it. */
static void paragraphs(chi_str *out, const char *text) {
  for (const char *p = text; *p;) {
    const char *end = strstr(p, "\n\n");
    size_t n = end ? (size_t)(end - p) : strlen(p);
    chi_str one = {0};
    chi_str_addn(&one, p, n);
    for (size_t i = 0; one.s && i < n; i++)
      if (one.s[i] == '\n') one.s[i] = ' ';
    chi_str_add(out, "\n");
    if (one.s) fold(out, one.s, 0, 0);
    chi_str_add(out, "\n");
    chi_str_free(&one);
    p += n;
    while (*p == '\n') p++;
  }
}

void cli_help(const cli_row *row, chi_str *out) {
  const cli_command *cmd = row->cmd;
  chi_str_addf(out, "chiasm %s: %s\n\nUsage: chiasm %s", cmd->name, row->doc, cmd->name);
  if (cmd->usage && *cmd->usage) chi_str_addf(out, " %s", cmd->usage);
  chi_str_add(out, cmd->opts || cmd->model ? " [options]\n" : "\n");
  if (cmd->text) paragraphs(out, cmd->text);
  chi_str_add(out, "\nOptions:\n");
  list_options(cmd, out);
  if (cmd->examples) {
    chi_str_add(out, "\nExamples:\n");
    for (const char *p = cmd->examples; *p; p += strcspn(p, "\n"), p += *p == '\n')
      chi_str_addf(out, "  %.*s\n", (int)strcspn(p, "\n"), p);
  }
}

void cli_help_all(chi_str *out) {
  chi_str_add(
      out,
      "chiasm: causal tracing and editing of multimodal language models\n\nUsage: chiasm COMMAND ...\n\nCommands:\n");
  for (int i = 0; i < kCliCommandCount; i++)
    chi_str_addf(out, "  %-18s%s\n", kCliCommands[i].cmd->name, kCliCommands[i].doc);
  chi_str_add(
      out,
      "\nMODEL is a Hugging Face folder, or `demo` for the small model that comes with the program.\n"
      "`chiasm COMMAND --help` tells a command's options. Exit status: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.\n");
}

void cli_help_markdown(chi_str *out) {
  chi_str_add(
      out,
      "# The command `chiasm`\n\n<!-- Made by `chiasm help --markdown`; a test compares. -->\n\n"
      "`MODEL` is a Hugging Face folder, or `demo` for the small model that comes with the program. Exit status: 0 "
      "done, 1 failed\n"
      "(one line on stderr says what, where and what to do), 2 wrong usage, 130 Ctrl-C.\n\n| command | |\n|---|---|\n");
  for (int i = 0; i < kCliCommandCount; i++) {
    chi_str_addf(out, "| [`%s`](#chiasm-%s) | ", kCliCommands[i].cmd->name, kCliCommands[i].cmd->name);
    chi_str_add(out, kCliCommands[i].doc);
    chi_str_add(out, " |\n");
  }
  for (int i = 0; i < kCliCommandCount; i++) {
    const cli_command *cmd = kCliCommands[i].cmd;
    chi_str_addf(out, "\n## chiasm %s\n\n", cmd->name);
    chi_str help = {0};
    cli_help(&kCliCommands[i], &help);
    chi_str_addf(out, "```\n%s```\n", help.s ? help.s : "");
    chi_str_free(&help);
  }
}

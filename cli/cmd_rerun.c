/* chiasm rerun: a result file's own command once more, and are the numbers the same? */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"

enum { kMaxWords = 512, kMaxResult = 1 << 30 };
/* Commands that only compute: their --json is what their result file holds. */
static const char *const kMay[] = {"ask",     "trace", "contributions", "knockout", "attribute",
                                   "explain", "lens",  "run",           "eval"};

/* ---- the command ----------------------------------------------------------------------------------------- */
/* Words of a line as provenance writes it: blanks between them, 'text' with '\'' for a quote. In place. */
static int split(char *line, char **word, int *n, chi_err *err) {
  char *to = line;
  for (char *p = line; *p;) {
    while (*p == ' ') p++;
    if (!*p) break;
    if (*n == kMaxWords - 4) return chi_fail(err, CHI_ERR_FORMAT, "the command has more than %d words", kMaxWords - 4);
    word[(*n)++] = to;
    for (bool quoted = false; *p && (quoted || *p != ' '); p++) {
      if (*p == '\'')
        quoted = !quoted;
      else if (*p == '\\' && !quoted && p[1])
        *to++ = *++p;
      else
        *to++ = *p;
    }
    if (*p) p++;
    *to++ = 0;
  }
  return 0;
}

static char kJson[] = "--json";

/* Without what it wrote to; the result comes to standard output. */
static int arguments(char **argv, char **word, int n, chi_err *err) {
  int k = 0;
  bool may = false, plain = false, json = false;
  if (n < 2 || strcmp(word[0], "chiasm") != 0)
    return chi_fail(err, CHI_ERR_FORMAT, "its provenance holds no command of chiasm");
  for (size_t i = 0; i < sizeof kMay / sizeof *kMay; i++) may |= strcmp(kMay[i], word[1]) == 0;
  if (!may)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "'chiasm %s' is not repeated: it does more than compute a result",
                    word[1]);
  for (int i = 0; i < n; i++) {
    const char *w = word[i];
    if (strcmp(w, "--") == 0) plain = true;
    if (!plain && (strcmp(w, "-o") == 0 || strcmp(w, "--output") == 0 || strcmp(w, "--dump-plan") == 0)) {
      i++;
      continue;
    }
    if (!plain && (strncmp(w, "--output=", 9) == 0 || strncmp(w, "--dump-plan=", 12) == 0)) continue;
    if (!plain && strcmp(w, "--json") == 0) json = true;
    argv[k++] = word[i];
  }
  if (!json) { /* behind the command's name, before any -- */
    memmove(argv + 3, argv + 2, (size_t)(k - 2) * sizeof *argv);
    argv[2] = kJson;
    k++;
  }
  argv[k] = NULL;
  return 0;
}

/* Runs argv with its standard output in *text. */
static int capture(char **text, size_t *len, char **argv, chi_err *err) {
  int rc = 0, how = 0;
  char exe[PATH_MAX];
  FILE *f = tmpfile();
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (!f || n <= 0) {
    rc = chi_fail(err, CHI_ERR_IO, "cannot start: %s", strerror(errno));
    goto out;
  }
  exe[n] = 0;
  pid_t pid = fork();
  if (pid < 0) {
    rc = chi_fail(err, CHI_ERR_IO, "cannot start: %s", strerror(errno));
    goto out;
  }
  if (pid == 0) {
    dup2(fileno(f), STDOUT_FILENO);
    execv(exe, argv);
    _exit(127);
  }
  while (waitpid(pid, &how, 0) < 0 && errno == EINTR) continue;
  if (!WIFEXITED(how) || WEXITSTATUS(how) != 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the command failed this time");
    goto out;
  }
  long size = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
  if (size < 0 || size > kMaxResult) {
    rc = chi_fail(err, CHI_ERR_IO, "its result cannot be read");
    goto out;
  }
  rewind(f);
  CHI_TRY((*text = chi_calloc((size_t)size + 1, 1, err)) ? 0 : CHI_ERR_MEMORY);
  *len = fread(*text, 1, (size_t)size, f);
out:
  if (f) fclose(f);
  return rc;
}

/* ---- comparing ------------------------------------------------------------------------------------------- */
static void here(chi_str *out, const chi_str *path, const json_t *a, const json_t *b) {
  char *x = a ? json_dumps(a, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL,
       *y = b ? json_dumps(b, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
  chi_str_addf(out, "%s: %.60s there, %.60s now", path->len ? path->s : "it", x ? x : "nothing", y ? y : "nothing");
  free(x);
  free(y);
}

/* The first place where b is not a; numbers as files have them, nine digits. */
static bool differs(chi_str *out, chi_str *path, const json_t *a, const json_t *b) {
  size_t at = path->len;
  bool bad = false;
  if (json_is_object(a) && json_is_object(b)) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)a, key, v) {
      chi_str_addf(path, "%s%s", at ? "." : "", key);
      bad = differs(out, path, v, json_object_get(b, key));
      path->s[path->len = at] = 0;
      if (bad) return true;
    }
    json_object_foreach((json_t *)(uintptr_t)b, key, v) if (!json_object_get(a, key)) {
      chi_str_addf(path, "%s%s", at ? "." : "", key);
      here(out, path, NULL, v);
      return true;
    }
    return false;
  }
  if (json_is_array(a) && json_is_array(b) && json_array_size(a) == json_array_size(b)) {
    for (size_t i = 0; i < json_array_size(a) && !bad; i++) {
      chi_str_addf(path, "[%zu]", i);
      bad = differs(out, path, json_array_get(a, i), json_array_get(b, i));
      path->s[path->len = at] = 0;
    }
    return bad;
  }
  if (json_is_number(a) && json_is_number(b)) {
    char x[40], y[40];
    snprintf(x, sizeof x, "%.9g", json_number_value(a));
    snprintf(y, sizeof y, "%.9g", json_number_value(b));
    if (strcmp(x, y) == 0) return false;
  } else if (a && b && json_equal(a, b)) {
    return false;
  }
  here(out, path, a, b);
  return true;
}

/* Leaves what a result depends on (hashes, prompt, dtype, seed) and takes out when and by what it was made. */
static void strip(json_t *o) {
  static const char *const kKey[] = {"command", "version",    "git_id", "isa",
                                     "model",   "model_path", "image",  "image_path"};
  json_t *prov = json_object_get(o, "provenance");
  for (size_t i = 0; i < sizeof kKey / sizeof *kKey; i++)
    if (json_is_string(json_object_get(prov, kKey[i]))) json_object_del(prov, kKey[i]);
}

static void digest(char hex[65], const json_t *o) {
  chi_sha256 h;
  char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(9));
  chi_sha256_init(&h);
  if (text) chi_sha256_add(&h, text, strlen(text));
  chi_sha256_hex(&h, hex);
  free(text);
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0, n = 0;
  char *text = NULL, *line = NULL, hex[65], *word[kMaxWords], *argv[kMaxWords + 4];
  size_t len = 0;
  json_t *was = NULL, *now = NULL;
  chi_str out = {0}, diff = {0}, path = {0};
  (void)v;
  CHI_TRY(chi_json_load(&was, c->pos[0], kMaxResult, err));
  const char *command = json_string_value(json_object_get(json_object_get(was, "provenance"), "command"));
  if (!command) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: it is no result with its command in it", c->pos[0]);
    goto out;
  }
  CHI_TRY((line = chi_calloc(strlen(command) + 2, 1, err)) ? 0 : CHI_ERR_MEMORY);
  memcpy(line, command, strlen(command));
  CHI_TRY(split(line, word, &n, err));
  CHI_TRY(arguments(argv, word, n, err));
  CHI_TRY(capture(&text, &len, argv, err));
  CHI_TRY(chi_json_parse(&now, text, len, "the result", err));
  chi_str_addf(&out, "%s\n", command);
  strip(was);
  strip(now);
  chi_str_add(&path, "");
  if (differs(&diff, &path, was, now)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s: not the same result: %s", c->pos[0], diff.s);
    goto out;
  }
  digest(hex, now);
  chi_str_addf(&out, "the same result, digest %s\n", hex);
  CHI_TRY(cli_print(&out, err));
out:
  json_decref(was);
  json_decref(now);
  chi_free(line);
  chi_free(text);
  chi_str_free(&out);
  chi_str_free(&diff);
  chi_str_free(&path);
  return rc;
}

const cli_command cmd_rerun = {
    .name = "rerun",
    .usage = "RESULT",
    .run = run,
    .text =
        "Runs the command that a result file (trace.json, knockout.json, ...) holds once more, writes nothing, and\n"
        "compares every number and hash. What differs first is named, and the exit status is 1. Files that the\n"
        "command names have to be where they were, seen from the current folder.",
    .examples = "chiasm rerun out/trace.json",
};

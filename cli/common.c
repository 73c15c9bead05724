/* What commands share: opening models, prompts, provenance, output, progress, Ctrl-C. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "chi_version.h"
#include "analyze/plan_json.h"
#include "cli.h"

/* ---- Ctrl-C, notes, progress ---------------------------------------------------------------------------------- */
static volatile sig_atomic_t interrupted;
static bool quiet_now;
static struct {
  char what[64];
  double start, drawn;
  int64_t done, first; /* first: what an earlier session had done */
  bool shown;
} bar;
static const char *focus; /* the only label that is shown */

static void on_interrupt(int sig) {
  (void)sig;
  interrupted = 1;
}

bool cli_interrupted(void) { return interrupted != 0; }
void cli_quiet(bool quiet) { quiet_now = quiet; }
void cli_focus(const char *what) { focus = what; }

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_progress_clear(void) {
  if (!bar.shown) return;
  fputs("\r\033[K", stderr);
  bar.shown = false;
}

static void draw(double now, int64_t done, int64_t total) {
  double part = total > 0 ? (double)done / (double)total : 0, rate = (double)(done - bar.first) / (now - bar.start);
  int full = (int)(part * 24 + 0.5), left = (int)((double)(total - done) / (rate > 0 ? rate : 1) + 0.999);
  char line[25];
  for (int i = 0; i < 24; i++) line[i] = i < full ? '#' : '.';
  line[24] = 0;
  if (rate > 0 && focus)
    fprintf(stderr, "\r\033[K%s [%s] %lld of %lld, %.3g a minute, %d:%02d left", bar.what, line, (long long)done,
            (long long)total, 60 * rate, left / 60, left % 60);
  else if (rate > 0)
    fprintf(stderr, "\r\033[K%s [%s] %3.0f%%, %d:%02d left", bar.what, line, 100 * part, left / 60, left % 60);
  else
    fprintf(stderr, "\r\033[K%s [%s]", bar.what, line);
  fflush(stderr);
  bar.shown = true;
  bar.drawn = now;
}

/* Only on a terminal, and only for work that lasts. */
static int on_progress(void *ud, const char *what, int64_t done, int64_t total) {
  (void)ud;
  if (interrupted) return 1;
  if (quiet_now || !isatty(STDERR_FILENO) || (focus && strcmp(what, focus) != 0)) return 0;
  double now = seconds();
  if (strncmp(bar.what, what, sizeof bar.what - 1) != 0 || done < bar.done) {
    snprintf(bar.what, sizeof bar.what, "%s", what);
    bar.start = now;
    bar.first = focus ? done : 0;
  }
  bar.done = done;
  if (done >= total)
    cli_progress_clear();
  else if (now - bar.start > 0.5 && now - bar.drawn > 0.1)
    draw(now, done, total);
  return 0;
}

static void on_log(void *ud, chi_log_level level, const char *line) {
  (void)ud;
  if (quiet_now || focus) return;
  cli_progress_clear();
  fprintf(stderr, "chiasm: %s%s\n", level == CHI_LOG_WARN ? "warning: " : "", line);
}

void cli_start(int argc, char **argv) {
  (void)argc;
  (void)argv;
  /* The second Ctrl-C ends the process at once. A closed pipe is an error of the write, not a signal. */
  struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
  sigaction(SIGINT, &act, NULL);
  sigaction(SIGTERM, &act, NULL); /* what a scheduler sends: the same clean end */
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a failed write, reported as one */
  chi_set_progress(on_progress, NULL);
  chi_set_log(on_log, NULL);
}

/* ---- output ---------------------------------------------------------------------------------------------------- */
int cli_width(void) {
  struct winsize w;
  if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col >= 40) return w.ws_col;
  return 160;
}

static int write_out(const char *text, size_t n, chi_err *err) {
  cli_progress_clear();
  errno = 0;
  if (fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0) return 0;
  return chi_fail(err, CHI_ERR_IO, "cannot write to standard output: %s", strerror(errno));
}

int cli_print(const chi_str *s, chi_err *err) {
  if (s->failed) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  return write_out(s->s ? s->s : "", s->len, err);
}

int cli_print_json(const json_t *j, chi_err *err) {
  char *text = json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
  if (!text) return chi_fail(err, CHI_ERR_MEMORY, "the result could not be written as JSON");
  int rc = write_out(text, strlen(text), err);
  if (rc == 0) rc = write_out("\n", 1, err);
  free(text);
  return rc;
}

/* ---- models and prompts ---------------------------------------------------------------------------------------- */
/* dir/sub as *out if a checkpoint lies there. */
static bool try_folder(char *out, size_t cap, const char *dir, const char *sub) {
  char config[PATH_MAX];
  if (!dir || !*dir) return false;
  int n = snprintf(out, cap, "%s%s%s", dir, *sub ? "/" : "", sub);
  if (n < 0 || (size_t)n >= cap) return false;
  return chi_path_join(config, sizeof config, out, "config.json", NULL) == 0 && chi_file_exists(config);
}

int cli_model_path(char *out, size_t cap, const char *name, chi_err *err) {
  char exe[PATH_MAX];
  if (!chi_streq(name, "demo")) {
    int n = snprintf(out, cap, "%s", name);
    return n >= 0 && (size_t)n < cap ? 0 : chi_fail(err, CHI_ERR_ARG, "the path of the model is too long");
  }
  const char *data = getenv("CHIASM_DATA");
  if (try_folder(out, cap, data, "models/demo") || try_folder(out, cap, data, "demo") || try_folder(out, cap, data, ""))
    return 0;
  if (try_folder(out, cap, "models/demo", "")) return 0;
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (n > 0) {
    exe[n] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    if (try_folder(out, cap, exe, "../models/demo") || try_folder(out, cap, exe, "../share/chiasm/demo")) return 0;
  }
  return chi_fail(
      err, CHI_ERR_IO,
      "the demo model was not found beside the program or in models/demo: set CHIASM_DATA to the folder that holds it");
}

int cli_open_base(chi_model **out, const cli *c, const char *name, chi_err *err) {
  int rc = 0;
  char path[PATH_MAX];
  const char *isa = c->common->isa ? c->common->isa : getenv("CHIASM_ISA");
  chi_set_threads((int)c->common->threads);
  CHI_TRY(chi_cpu_init(isa && *isa ? isa : NULL, err));
  CHI_TRY(cli_model_path(path, sizeof path, name, err));
  chi_model_opts o = {.dtype = (chi_dtype_choice)c->common->dtype, .mmproj = c->common->mmproj};
  o.cache = c->common->cache;
  o.stream = c->common->stream;
  if (o.stream && !o.cache)
    return cli_usage(err, "--stream reads the weights from a cache: name its folder with --cache");
  CHI_TRY(chi_model_open_opts(out, path, &o, err));
out:
  return rc;
}

/* sha256 of the deltas that were loaded, for every result's provenance. */
static char delta_hash[CLI_LIST_MAX][65];
static const char *delta_hashes[CLI_LIST_MAX];
static int n_delta_hashes;

void cli_free_deltas(chi_delta **list, const cli *c) {
  for (int i = 0; list && i < c->common->apply.n; i++) chi_delta_free(list[i]);
  chi_free(list);
}

int cli_load_deltas(chi_delta ***out, const cli *c, chi_model *m, chi_err *err) {
  int rc = 0;
  const cli_list *a = &c->common->apply;
  chi_delta **list = chi_calloc((size_t)a->n + 1, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  for (int i = 0; i < a->n; i++) {
    CHI_TRY(chi_delta_load(&list[i], a->v[i], err));
    memcpy(delta_hash[i], list[i]->sha256, sizeof delta_hash[i]);
    delta_hashes[i] = delta_hash[i];
    rc = chi_delta_check(list[i], m, c->common->force_apply, err);
    if (rc) {
      chi_err_prefix(err, a->v[i]);
      goto out;
    }
  }
  n_delta_hashes = a->n;
out:
  if (rc)
    cli_free_deltas(list, c);
  else
    *out = list;
  return rc;
}

int cli_open_model(chi_model **out, const cli *c, const char *name, chi_err *err) {
  int rc = 0;
  chi_model *m = NULL;
  chi_delta **list = NULL;
  CHI_TRY(cli_open_base(&m, c, name, err));
  CHI_TRY(cli_load_deltas(&list, c, m, err));
  for (int i = 0; i < c->common->apply.n; i++) CHI_TRY(chi_delta_apply(list[i], m, NULL, err));
out:
  cli_free_deltas(list, c);
  if (rc)
    chi_model_free(m);
  else
    *out = m;
  return rc;
}

void cli_image_question(const cli *c, const char **image, const char **question) {
  *image = c->n_pos > 2 ? c->pos[1] : NULL;
  *question = c->pos[c->n_pos - 1];
}

int cli_make_prompt_of(chi_prompt **out, const cli *c, const chi_model *m, const chi_prompt_opts *o, chi_err *err) {
  chi_prompt_opts full = *o;
  if (o->image && !m->net.has_vision)
    return chi_fail(err, CHI_ERR_ARG, "%s is a text-only model: leave the picture %s out", m->path, o->image);
  full.tmpl = c->common->tmpl;
  full.raw = c->common->raw;
  return chi_prompt_make(out, m, &full, err);
}

int cli_make_prompt(chi_prompt **out, const cli *c, const chi_model *m, const char *image, const char *question,
                    bool need_constraint, chi_err *err) {
  chi_prompt_opts o = {.image = image, .question = question, .need_constraint = need_constraint};
  return cli_make_prompt_of(out, c, m, &o, err);
}

int cli_provenance(chi_provenance *out, const cli *c, chi_model *m, const chi_prompt *p, const char *image,
                   chi_err *err) {
  int rc = 0;
  *out = (chi_provenance){
      .command = c->command_line, .version = CHI_VERSION, .git_id = CHI_GIT_ID, .isa = chi_isa_name(chi_cpu_isa())};
  if (m) {
    CHI_TRY(chi_model_hash(m, err));
    out->model_path = m->path;
    out->model_hash = m->hash;
    out->dtype = m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32";
  }
  if (m && c->common && n_delta_hashes) {
    out->delta_file = c->common->apply.v;
    out->delta_sha256 = delta_hashes;
    out->n_deltas = n_delta_hashes;
  }
  if (p) {
    out->prompt = p->text;
    if (!c->common->raw) out->template_name = c->common->tmpl ? c->common->tmpl : m ? m->tmpl->name : NULL;
    if (p->pixels) {
      out->image_path = image;
      out->image_sha256 = p->image_sha;
    }
  }
out:
  return rc;
}

chi_run_opts cli_run_opts(const cli *c, const char *what) {
  return (chi_run_opts){.mem = c->common->mem, .what = what};
}

int cli_dump_plan(chi_plan *plan, const chi_model *m, const chi_prompt *p, const char *image, int32_t target,
                  const char *path, chi_err *err) {
  chi_plan_picture pic = {p->pixels, image};
  chi_plan_save_opts o = {.pictures = &pic, .n_pictures = image != NULL, .report_row = p->n_rows - 1, .target = target};
  int rc = path ? chi_plan_save(plan, &m->net, &o, path, err) : 0;
  chi_plan_free(plan);
  return rc;
}

/* How the cost of a causal map grows: random checkpoints of a small LLaVA's shape with other numbers of layers and of
 * picture rows, and longer questions; see bench.h. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* clock_gettime */
#endif
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "eval/bench.h"
#include "model/synth.h"

enum { kRuns = 5, kMostRuns = 1000, kPatch = 14 };

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* A question of so many letters before the bracket and behind it. */
static int ask(chi_prompt **out, const chi_model *m, int letters, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  for (int i = 0; i < letters; i++) chi_str_add(&s, "a");
  chi_str_add(&s, " [it] ");
  for (int i = 0; i < letters; i++) chi_str_add(&s, "b");
  CHI_TRY(s.failed ? CHI_ERR_MEMORY : 0);
  CHI_TRY(chi_prompt_make(
      out, m,
      &(chi_prompt_opts){.image = "a grey picture", .question = s.s, .need_constraint = true, .no_pixels = true}, err));
  size_t floats = 3 * (size_t)m->net.vision.image_h * (size_t)m->net.vision.image_w;
  CHI_TRY(((*out)->pixels = chi_calloc(floats, sizeof(float), err)) ? 0 : CHI_ERR_MEMORY);
out:
  chi_str_free(&s);
  return rc;
}

static int measure(chi_growth_point *g, const chi_model *m, int letters, int runs, size_t mem, chi_err *err) {
  int rc = 0;
  double t[kMostRuns];
  chi_prompt *p = NULL;
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  o.corrupt.spec = "words:us";
  o.mem = mem;
  CHI_TRY(ask(&p, m, letters, err));
  for (int i = -1; i < runs; i++) { /* the first one warms up */
    chi_trace *tr = NULL;
    double at = cpu_seconds();
    CHI_TRY(chi_trace_run(&tr, m, p, &o, err));
    if (i >= 0) t[i] = cpu_seconds() - at;
    g->cells = 3 * (int64_t)tr->n_layers * tr->n_rows;
    g->live = tr->stats.live_row_layers;
    g->dense = tr->stats.dense_row_layers;
    chi_trace_free(tr);
  }
  g->layers = m->net.decoder.spec.layers;
  g->rows = p->n_rows;
  g->image_rows = p->n_image;
  qsort(t, (size_t)runs, sizeof *t, by_value);
  g->seconds = runs % 2 ? t[runs / 2] : (t[runs / 2 - 1] + t[runs / 2]) / 2;
out:
  chi_prompt_free(p);
  return rc;
}

static void remove_model(const char *dir) {
  static const char *const kFiles[] = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                       "preprocessor_config.json"};
  char path[4096];
  for (size_t i = 0; i < sizeof kFiles / sizeof *kFiles; i++)
    if (chi_path_join(path, sizeof path, dir, kFiles[i], NULL) == 0) unlink(path);
  rmdir(dir);
}

int chi_bench_growth(chi_growth_point out[CHI_GROWTH_POINTS], int *n, int points, const char *dir, int runs, size_t mem,
                     chi_err *err) {
  static const struct {
    int axis, layers, side, letters; /* side: patches in a row of the picture */
  } kPoints[CHI_GROWTH_POINTS] = {{0, 4, 8, 6}, {0, 8, 8, 6},  {0, 16, 8, 6}, {0, 32, 8, 6},
                                  {1, 6, 8, 4}, {1, 6, 8, 16}, {1, 6, 8, 40}, {1, 6, 8, 88},
                                  {2, 6, 8, 6}, {2, 6, 12, 6}, {2, 6, 18, 6}, {2, 6, 24, 6}};
  int rc = 0, four = CHI_GROWTH_POINTS / CHI_GROWTH_AXES;
  char path[4096];
  chi_model *m = NULL;
  *n = 0;
  if (points <= 0) points = four;
  if (runs <= 0) runs = kRuns;
  if (runs > kMostRuns) runs = kMostRuns;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "growth-model", err));
  for (int i = 0; i < CHI_GROWTH_POINTS; i++) {
    if (i % four >= points) continue;
    chi_synth_opts shape = {.layers = kPoints[i].layers, .image = kPoints[i].side * kPatch};
    CHI_TRY(chi_progress("measuring", i, CHI_GROWTH_POINTS, err));
    CHI_TRY(chi_synth_write("tiny-llava", &shape, path, 0, err));
    CHI_TRY(chi_model_open(&m, path, CHI_DTYPE_F32, err));
    out[*n] = (chi_growth_point){.axis = (chi_growth_axis)kPoints[i].axis};
    CHI_TRY(measure(&out[(*n)++], m, kPoints[i].letters, runs, mem, err));
    chi_model_free(m);
    m = NULL;
    remove_model(path);
  }
out:
  chi_model_free(m);
  if (rc) remove_model(path);
  return rc;
}

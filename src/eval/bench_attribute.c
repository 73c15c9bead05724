/* What attribution costs beside one forward pass; see bench.h. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* clock_gettime */
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "analyze/attribute.h"
#include "analyze/remove.h"
#include "eval/bench.h"

enum { kRuns = 5, kMostRuns = 1000 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}
static double median(double *t, int n) {
  qsort(t, (size_t)n, sizeof *t, by_value);
  return n % 2 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
}

static int add(chi_bench *b, chi_bench_row row, chi_err *err) {
  int rc = chi_grow((void **)&b->row, &b->cap, b->n + 1, sizeof *b->row, err);
  if (rc == 0) b->row[b->n++] = row;
  return rc;
}

static int ignore(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)ud, (void)capture, (void)i, (void)v, (void)width;
  return 0;
}

static int forward(const chi_model *m, const chi_prompt *p, size_t mem, chi_err *err) {
  int rc = 0, root;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(p);
  int32_t last = p->n_rows - 1;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.mem = mem, .on_capture = ignore};
  CHI_TRY(chi_run_plan(&m->net, plan, &o, err));
out:
  chi_plan_free(plan);
  return rc;
}

/* Forward passes and attributions by turns, so that a slower machine slows both. */
static int heads(chi_bench *b, const chi_model *m, const chi_prompt *p, int runs, size_t mem, double *pass,
                 chi_err *err) {
  int rc = 0;
  double plain[kMostRuns] = {0}, whole[kMostRuns] = {0};
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.mem = mem;
  for (int i = -1; i < runs; i++) { /* the first one warms up */
    chi_attribution *a = NULL;
    double t0 = now();
    CHI_TRY(forward(m, p, mem, err));
    double t1 = now();
    CHI_TRY(chi_attribute_run(&a, m, p, &o, err));
    double t2 = now();
    chi_attribution_free(a);
    if (i >= 0) plain[i] = t1 - t0, whole[i] = t2 - t1;
    CHI_TRY(chi_progress("measuring", i + 1, runs, err));
  }
  double t = *pass = median(plain, runs), both = median(whole, runs), more = both > t ? both - t : 0;
  chi_bench_row row = {.seconds = t, .runs = runs, .rate = 1 / t, .unit = "passes/s"};
  snprintf(row.what, sizeof row.what, "forward pass, %d rows, %s%s", p->n_rows,
           m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32", p->n_image ? ", with the picture" : "");
  CHI_TRY(add(b, row, err));
  row = (chi_bench_row){.seconds = more, .runs = runs, .rate = 100 * more / t, .unit = "% of the pass"};
  snprintf(row.what, sizeof row.what, "all heads, and all positions of the best: beyond the pass");
  CHI_TRY(add(b, row, err));
out:
  return rc;
}

/* sample patches (of edges eight times as many), evenly spread, each alone; the limit is what one forward pass a patch
 * would give. */
static int patches(chi_bench *b, const chi_model *m, const chi_prompt *p, int runs, int32_t sample, size_t mem,
                   double pass, chi_err *err) {
  static const struct {
    chi_removal how;
    int32_t more; /* times the sample: what is cheap beside the pass that all patches share needs many */
    const char *what;
  } kWays[] = {{CHI_REMOVE_MEAN, 1, "vectors removed"}, {CHI_REMOVE_CUT_TEXT, 8, "edges to the text cut"}};
  int rc = 0;
  chi_remover *r = NULL;
  uint8_t *set = NULL;
  double *logp = NULL, t[kMostRuns];
  CHI_TRY(chi_remover_open(&r, m, p, -1, 0, mem, err));
  set = chi_calloc((size_t)r->n * (size_t)r->n, 1, err);
  logp = chi_calloc((size_t)r->n, sizeof *logp, err);
  CHI_TRY(set && logp ? 0 : CHI_ERR_MEMORY);
  for (size_t k = 0; k < sizeof kWays / sizeof *kWays; k++) {
    int32_t n = sample > 0 && sample < r->n / kWays[k].more ? sample * kWays[k].more : r->n;
    memset(set, 0, (size_t)n * (size_t)r->n);
    for (int64_t i = 0; i < n; i++) set[i * r->n + (2 * i + 1) * r->n / (2 * n)] = 1;
    for (int i = 0; i < runs; i++) {
      double at = now();
      CHI_TRY(chi_remove(r, kWays[k].how, set, n, logp, err));
      t[i] = now() - at;
      CHI_TRY(chi_progress("measuring", (int64_t)k * runs + i + 1, 2 * runs, err));
    }
    chi_bench_row row = {.seconds = median(t, runs), .runs = runs, .unit = "patches/s", .ceiling = 1 / pass};
    row.rate = n / row.seconds;
    snprintf(row.what, sizeof row.what, "%d of %d patches, %s; limit: a pass each", n, r->n, kWays[k].what);
    CHI_TRY(add(b, row, err));
  }
out:
  chi_free(set);
  chi_free(logp);
  chi_remover_close(r);
  return rc;
}

int chi_bench_attribute(chi_bench *b, const chi_model *m, const chi_prompt *p, int32_t sample, size_t mem,
                        chi_err *err) {
  double pass = 0;
  int runs = b->runs <= 0          ? kRuns
             : b->runs < kMostRuns ? b->runs
                                   : kMostRuns,
      rc = heads(b, m, p, runs, mem, &pass, err);
  return rc || p->n_image == 0 ? rc : patches(b, m, p, runs, sample, mem, pass, err);
}

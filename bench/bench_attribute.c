/* What attribution costs beside the forward pass that it starts from: bench_attribute MODEL [ROWS] [RUNS] [bf16]
 * CPU seconds of all threads (steadier than the clock on a busy machine); text prompt of random tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "analyze/attribute.h"

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ignore(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)ud, (void)capture, (void)i, (void)v, (void)width;
  return 0;
}

static int forward(const chi_model *m, const chi_prompt *p, chi_err *err) {
  int rc = 0, root;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(p);
  int32_t last = p->n_rows - 1;
  chi_capture c = {.stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
  chi_run_opts o = {.on_capture = ignore};
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  c.branch = root;
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  CHI_TRY(chi_run_plan(&m->net, plan, &o, err));
out:
  chi_plan_free(plan);
  return rc;
}

static int measure(const chi_model *m, const chi_prompt *p, int runs, chi_err *err) {
  int rc = 0;
  double fwd = 1e30, attr = 1e30, slow = 1e30;
  for (int i = 0; i < runs; i++) {
    double t = cpu_seconds();
    CHI_TRY(forward(m, p, err));
    double dt = cpu_seconds() - t;
    fwd = dt < fwd ? dt : fwd;
    for (int k = 0; k < 2; k++) {
      chi_attribution *a = NULL;
      chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
      o.slow = k == 1;
      t = cpu_seconds();
      CHI_TRY(chi_attribute_run(&a, m, p, &o, err));
      dt = cpu_seconds() - t;
      chi_attribution_free(a);
      double *best = k ? &slow : &attr;
      *best = dt < *best ? dt : *best;
    }
  }
  printf("%d layers, %d rows, %s: forward %.3f s, with attribution %.3f s (+%.1f%%), positions one by one %.3f s\n",
         m->net.decoder.spec.layers, p->n_rows, m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32", fwd, attr,
         100 * (attr - fwd) / fwd, slow);
out:
  return rc;
}

int main(int argc, char **argv) {
  int rc = 0;
  chi_err error = {0}, *err = &error;
  chi_model *m = NULL;
  chi_prompt p = {0};
  int rows = argc > 2 ? atoi(argv[2]) : 603, runs = argc > 3 ? atoi(argv[3]) : 3;
  if (argc < 2 || rows < 1 || runs < 1) {
    fprintf(stderr, "usage: bench_attribute MODEL [ROWS] [RUNS] [bf16]\n");
    return 2;
  }
  CHI_TRY(chi_cpu_init(NULL, err));
  CHI_TRY(chi_model_open(&m, argv[1], argc > 4 ? CHI_DTYPE_BF16 : CHI_DTYPE_F32, err));
  p = (chi_prompt){.n_rows = rows, .image_row = -1};
  p.tokens = chi_calloc((size_t)rows, sizeof *p.tokens, err);
  p.role = chi_calloc((size_t)rows, sizeof *p.role, err);
  CHI_TRY(p.tokens && p.role ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < rows; i++) {
    p.tokens[i] = (int32_t)(chi_rng_u32(1, 0, (uint32_t)i, 0) % (uint32_t)m->net.decoder.vocab);
    p.role[i] = CHI_ROLE_TEXT;
  }
  CHI_TRY(measure(m, &p, runs, err));
out:
  if (rc) fprintf(stderr, "bench_attribute: %s\n", error.text);
  chi_free(p.tokens);
  chi_free(p.role);
  chi_model_free(m);
  return rc ? 1 : 0;
}

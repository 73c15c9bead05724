/* Parity with transformers: every stored state of every tests/fixtures/tiny-* checkpoint, f32 within 1e-4 x max(1, rms
 * of the site), by the sweep and by the dense executor (which must agree bit for bit); bf16 at most twice as far from
 * f32 as torch's bf16 is. Regenerate: python tools/ref/make_all.py */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/model.h"
#include "support/support.h"
#include "sweep/run.h"

typedef struct want { /* one stored state and the capture that gives it */
  const chi_tensor *t;
  chi_stack stack;
  chi_site site;
  int layer;
  int64_t width; /* stored columns per row; pattern: heads * rows */
  float *got;
} want;

typedef struct states {
  want *w;
  size_t n;
  int32_t *rows;
} states;

/* "decoder.3.mlp_out", "vision.embed", "logits" -> site. */
static bool parse_name(const char *name, chi_stack *stack, chi_site *site, int *layer) {
  char buf[128], *part[3] = {0};
  size_t n = 0;
  snprintf(buf, sizeof buf, "%s", name);
  for (char *p = strtok(buf, "."); p && n < 3; p = strtok(NULL, ".")) part[n++] = p;
  *layer = n == 3 ? (int)strtol(part[1], NULL, 10) : -1;
  *stack = CHI_DECODER;
  if (n == 1) return chi_site_parse(site, part[0], NULL) == 0;
  return chi_stack_parse(stack, part[0], NULL) == 0 && chi_site_parse(site, part[n - 1], NULL) == 0;
}

static int receive(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  want *w = &((states *)ud)->w[capture];
  if (!chi_site_is_pattern(w->site)) {
    memcpy(w->got + i * w->width, v, (size_t)w->width * sizeof *v);
    return 0;
  }
  int64_t heads = w->t->dim[0], rows = w->t->dim[1], all = w->t->dim[2], keys = width / heads;
  for (int64_t h = 0; h < heads; h++) memcpy(w->got + (h * rows + i) * all, v + h * keys, (size_t)keys * sizeof *v);
  return 0;
}

/* max |a - b| / max(1, rms b); non-finite values count as infinite. */
static double worst(const float *a, const float *b, size_t n) {
  double ss = 0, max = 0;
  for (size_t i = 0; i < n; i++) {
    double d = fabs((double)a[i] - (double)b[i]);
    if (!isfinite(a[i])) return INFINITY;
    if (d > max) max = d;
    ss += (double)b[i] * (double)b[i];
  }
  double rms = sqrt(ss / (double)n);
  return max / (rms > 1 ? rms : 1);
}

static void run_states(const chi_model *m, const chi_st *st, states *s, chi_executor ex) {
  chi_plan *plan = NULL;
  const chi_tensor *ids = chi_st_find(st, "input_ids"), *pix = chi_st_find(st, "pixel_values");
  int32_t T = (int32_t)ids->dim[0];
  int32_t *tok = calloc((size_t)T, sizeof *tok);
  s->rows = calloc((size_t)T + 4096, sizeof *s->rows);
  for (int32_t i = 0; i < T; i++)
    tok[i] = ids->dtype == CHI_I64 ? (int32_t)((const int64_t *)ids->data)[i] : ((const int32_t *)ids->data)[i];
  for (int32_t i = 0; i < T + 4096; i++) s->rows[i] = i;
  int32_t image_row = -1;
  for (int32_t i = T - 1; i >= 0; i--)
    if (tok[i] == m->image_token) image_row = i;
  int root;
  chi_input in = {.tokens = tok, .n_rows = T, .pixels = pix ? pix->data : NULL, .image_row = image_row};
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  s->n = 0;
  s->w = calloc(chi_st_count(st), sizeof *s->w);
  for (size_t i = 0; i < chi_st_count(st); i++) {
    const chi_tensor *t = chi_st_at(st, i);
    want *w = &s->w[s->n];
    *w = (want){.t = t};
    if (t->ndim < 2 || chi_streq(t->name, "pixel_values") || strncmp(t->name, "q1.", 3) == 0) continue;
    if (!parse_name(t->name, &w->stack, &w->site, &w->layer)) continue;
    int32_t rows = (int32_t)(chi_site_is_pattern(w->site) ? t->dim[1] : t->dim[0]);
    w->width = chi_site_is_pattern(w->site) ? t->dim[0] * t->dim[2] : t->dim[1];
    w->got = calloc((size_t)(w->width * rows), sizeof *w->got);
    chi_capture c = {.stack = w->stack, .site = w->site, .layer = w->layer, .rows = s->rows, .n_rows = rows};
    assert_works(chi_plan_capture(plan, &c, NULL, err));
    s->n++;
  }
  chi_run_opts o = {.executor = ex, .on_capture = receive, .ud = s};
  assert_works(chi_run_plan(&m->net, plan, &o, err));
  chi_plan_free(plan);
  free(tok);
}

static void free_states(states *s) {
  for (size_t i = 0; i < s->n; i++) free(s->w[i].got);
  free(s->w);
  free(s->rows);
}

static size_t count_of(const want *w) { return w->t->bytes / sizeof(float); }

static void check_f32(const chi_model *m, const chi_st *st, const char *name) {
  states sweep = {0}, dense = {0};
  run_states(m, st, &sweep, CHI_EXEC_SWEEP);
  run_states(m, st, &dense, CHI_EXEC_DENSE);
  double top = 0;
  assert_true(sweep.n >= 20);
  for (size_t i = 0; i < sweep.n; i++) {
    want *w = &sweep.w[i];
    double d = worst(w->got, w->t->data, count_of(w));
    if (d > top) top = d;
    if (!(d <= 1e-4)) fail_msg("%s: %s differs from transformers by %g (allowed 1e-4)", name, w->t->name, d);
    if (memcmp(w->got, dense.w[i].got, count_of(w) * sizeof(float)) != 0)
      fail_msg("%s: %s: sweep and dense differ", name, w->t->name);
  }
  print_message("%-18s %3zu states, worst %.1e x max(1, rms)\n", name, sweep.n, top);
  free_states(&sweep);
  free_states(&dense);
}

static void rms_max(const float *a, const float *b, size_t n, double *rms, double *max) {
  *rms = *max = 0;
  for (size_t i = 0; i < n; i++) {
    double d = fabs((double)a[i] - (double)b[i]);
    *rms += d * d;
    if (!(d <= *max)) *max = d;
  }
  *rms = sqrt(*rms / (double)n);
}

static void check_bf16(const chi_model *m, const chi_st *st, const char *name) {
  states s = {0};
  run_states(m, st, &s, CHI_EXEC_SWEEP);
  const chi_tensor *ref = chi_st_find(st, "logits"), *torch16 = chi_st_find(st, "bf16.logits");
  double rms, max, trms, tmax;
  for (size_t i = 0; i < s.n; i++) {
    if (s.w[i].t != ref) continue;
    rms_max(s.w[i].got, ref->data, count_of(&s.w[i]), &rms, &max);
    rms_max(torch16->data, ref->data, count_of(&s.w[i]), &trms, &tmax);
    if (!(rms <= 2 * trms) || !(max <= 2 * tmax))
      fail_msg("%s: bf16 logits are off by rms %g, max %g; torch's bf16 by rms %g, max %g", name, rms, max, trms, tmax);
    print_message("%-18s bf16: rms %.4f (torch %.4f), max %.4f (torch %.4f)\n", name, rms, trms, max, tmax);
  }
  free_states(&s);
}

static int each_fixture(void (*fn)(const chi_model *, const chi_st *, const char *), chi_dtype_choice dtype) {
  DIR *d = opendir("tests/fixtures");
  assert_non_null(d);
  int n = 0;
  char path[512];
  for (struct dirent *e; (e = readdir(d));) {
    if (strncmp(e->d_name, "tiny-", 5) != 0) continue;
    snprintf(path, sizeof path, "tests/fixtures/%s/states.safetensors", e->d_name);
    if (!chi_file_exists(path)) continue;
    chi_st *st = NULL;
    chi_model *m = NULL;
    assert_works(chi_st_open(&st, path, err));
    snprintf(path, sizeof path, "tests/fixtures/%s", e->d_name);
    assert_works(chi_model_open(&m, path, dtype, err));
    fn(m, st, e->d_name);
    chi_model_free(m);
    chi_st_close(st);
    n++;
  }
  closedir(d);
  return n;
}

static void test_f32(void **state) {
  (void)state;
  assert_true(each_fixture(check_f32, CHI_DTYPE_F32) >= 6);
}
static void test_bf16(void **state) {
  (void)state;
  assert_true(each_fixture(check_bf16, CHI_DTYPE_BF16) >= 6);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Measurements; see bench.h. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* clock_gettime */
#endif
#include "eval/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sweep/generate.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { kKernelRuns = 21, kWholeRuns = 5, kLoadRuns = 3, kCeilingRuns = 7, kMaxRuns = 1000 };
static const size_t kRotate = (size_t)512 << 20;

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

static int wanted(const chi_bench *b, int usual) {
  int n = b->runs > 0 ? b->runs : usual;
  return n < kMaxRuns ? n : kMaxRuns;
}

void chi_bench_free(chi_bench *b) {
  chi_free(b->row);
  *b = (chi_bench){0};
}

/* work: of one run, in units of 1e9 where the unit says G. */
static int add_row(chi_bench *b, const char *what, double *times, int n, double work, double ceiling, const char *unit,
                   chi_err *err) {
  int rc = chi_grow((void **)&b->row, &b->cap, b->n + 1, sizeof *b->row, err);
  if (rc) return rc;
  chi_bench_row *r = &b->row[b->n++];
  *r = (chi_bench_row){.runs = n, .ceiling = ceiling, .unit = unit, .seconds = median(times, n)};
  snprintf(r->what, sizeof r->what, "%s", what);
  r->rate = r->seconds > 0 ? work / r->seconds : 0;
  return 0;
}

/* ---- ceilings -------------------------------------------------------------------------------------------- */
#if defined(__x86_64__)
enum { kSpin = 2000000 };
static volatile float sink[256];
#define CHAINS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define STEP512(n) c##n = _mm512_fmadd_ps(c##n, x, y);
#define STEP256(n) c##n = _mm256_fmadd_ps(c##n, x, y);
#define INIT512(n) __m512 c##n = _mm512_set1_ps((float)(n));
#define INIT256(n) __m256 c##n = _mm256_set1_ps((float)(n));
#define SUM512(n) s = _mm512_add_ps(s, c##n);
#define SUM256(n) s = _mm256_add_ps(s, c##n);

__attribute__((target("avx512f"))) static void spin512(void *ud, int64_t i) {
  (void)ud;
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f), s = _mm512_setzero_ps();
  CHAINS(INIT512)
  for (int r = 0; r < kSpin; r++) {
    CHAINS(STEP512)
    __asm__ volatile("" ::: "memory");
  }
  CHAINS(SUM512)
  sink[i & 255] = _mm512_reduce_add_ps(s);
}

__attribute__((target("avx2,fma"))) static void spin256(void *ud, int64_t i) {
  (void)ud;
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f), s = _mm256_setzero_ps();
  CHAINS(INIT256)
  for (int r = 0; r < kSpin; r++) {
    CHAINS(STEP256)
    __asm__ volatile("" ::: "memory");
  }
  CHAINS(SUM256)
  sink[i & 255] = _mm256_cvtss_f32(s);
}

#define STEPDP(n) c##n = _mm512_dpbf16_ps(c##n, x, y);
__attribute__((target("avx512f,avx512bf16"))) static void spin_pairs(void *ud, int64_t i) {
  (void)ud;
  __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f803f00), y = (__m512bh)_mm512_set1_epi32(0x3f003a00);
  __m512 s = _mm512_setzero_ps();
  CHAINS(INIT512)
  for (int r = 0; r < kSpin; r++) {
    CHAINS(STEPDP)
    __asm__ volatile("" ::: "memory");
  }
  CHAINS(SUM512)
  sink[i & 255] = _mm512_reduce_add_ps(s);
}

double chi_bench_fma(chi_compute compute) {
  const bool bf16 = compute == CHI_COMPUTE_BF16;
  bool wide = chi_isa_available(CHI_ISA_AVX512) && chi_cpu_isa() >= CHI_ISA_AVX512;
  bool pairs = bf16 && chi_cpu_isa() == CHI_ISA_AVX512_BF16;
  if (bf16 && chi_cpu_isa() == CHI_ISA_AMX) return 0; /* its tiles have another limit, which is not measured */
  if (!wide && !chi_isa_available(CHI_ISA_AVX2)) return 0;
  double t = now();
  chi_parallel_for(chi_threads(), pairs ? spin_pairs : wide ? spin512 : spin256, NULL);
  return 2e-9 * 12 * (pairs ? 32 : wide ? 16 : 8) * kSpin * chi_threads() / (now() - t);
}
#else
double chi_bench_fma(chi_compute compute) {
  (void)compute;
  return 0;
}
#endif

enum { kPiece = 1 << 18 }; /* floats */
typedef struct read_job {
  float *x, *sum;
} read_job;
static void read_piece(void *ud, int64_t i) {
  const read_job *j = ud;
  const float *x = j->x + i * kPiece;
  j->sum[i] = chi_dot(x, x, kPiece);
}

/* The machine's limits, one sample beside each measured run: a machine that others use too is not equally fast all the
 * time, and a median of a run has to stand beside a median of the limit. */
typedef struct limits {
  read_job read;
  double fma[kMaxRuns], gbs[kMaxRuns];
  int n_fma, n_gbs;
} limits;

static void sample_fma(limits *l, chi_compute compute) {
  double rate = chi_bench_fma(compute);
  if (rate > 0 && l->n_fma < kMaxRuns) l->fma[l->n_fma++] = rate;
}

static int sample_read(limits *l, chi_err *err) {
  int64_t n = (int64_t)(kRotate / sizeof(float) / kPiece);
  bool first = !l->read.x;
  if (first) l->read.x = chi_calloc((size_t)n * kPiece, sizeof(float), err);
  if (first) l->read.sum = chi_calloc((size_t)n, sizeof(float), err);
  if (!l->read.x || !l->read.sum) return CHI_ERR_MEMORY;
  if (first) chi_parallel_for(n, read_piece, &l->read); /* its pages come in */
  double t = now();
  chi_parallel_for(n, read_piece, &l->read);
  if (l->n_gbs < kMaxRuns) l->gbs[l->n_gbs++] = 1e-9 * (double)kRotate / (now() - t);
  return 0;
}

static double median_or_0(double *x, int n) { return n ? median(x, n) : 0; }

static void limits_free(limits *l) {
  chi_free(l->read.x);
  chi_free(l->read.sum);
}

/* GFLOP/s that a job of so many GFLOP and GB can reach: it computes and reads at the same time. */
static double roof(double gflop, double gb, double fma, double read) {
  double t = fma > 0 ? gflop / fma : 0, mem = read > 0 ? gb / read : 0;
  if (mem > t) t = mem;
  return t > 0 && fma > 0 ? gflop / t : 0;
}

/* ---- products -------------------------------------------------------------------------------------------- */
typedef struct size3 {
  int64_t m, n, k;
  bool back; /* the product of gradients: rows of n through the transposed matrix */
} size3;

static int bench_product(chi_bench *b, size3 s, chi_compute compute, chi_err *err) {
  int rc = 0, runs = wanted(b, kKernelRuns);
  chi_dtype store = compute == CHI_COMPUTE_F32 ? CHI_F32 : CHI_BF16;
  size_t one = (size_t)(s.n * s.k) * chi_dtype_size(store), count = (kRotate + one - 1) / one, made = 0;
  double t[kMaxRuns];
  limits lim = {0};
  char what[96];
  void *src = chi_calloc((size_t)(s.n * s.k), chi_dtype_size(store), err);
  int64_t from = s.back ? s.n : s.k, to = s.back ? s.k : s.n;
  float *x = chi_calloc((size_t)(s.m * from), sizeof *x, err), *y = chi_calloc((size_t)(s.m * to), sizeof *y, err);
  chi_mat *w = chi_calloc(count, sizeof *w, err);
  CHI_TRY(src && x && y && w ? 0 : CHI_ERR_MEMORY);
  for (int64_t i = 0; i < s.n * s.k; i++) {
    float v = (float)((uint32_t)i * 2654435761u >> 16) * 0x1p-16f - 0.5f;
    if (store == CHI_F32)
      ((float *)src)[i] = v;
    else
      ((chi_bf16 *)src)[i] = chi_bf16_from_f32(v);
  }
  for (int64_t i = 0; i < s.m * from; i++) x[i] = (float)((uint32_t)i * 2246822519u >> 16) * 0x1p-16f - 0.5f;
  for (; made < count; made++) CHI_TRY(chi_mat_pack(&w[made], src, store, s.n, s.k, s.k, compute, err));
  for (int i = -1; i < runs; i++) { /* the first one warms up */
    double at = now();
    const chi_mat *one_of = &w[(size_t)(i + 1) % count];
    CHI_TRY(s.back ? chi_gemm_t(one_of, x, from, y, to, s.m, err) : chi_gemm(one_of, x, from, y, to, s.m, NULL, err));
    if (i >= 0) t[i] = now() - at;
    sample_fma(&lim, compute);
    CHI_TRY(sample_read(&lim, err));
    CHI_TRY(chi_progress("measuring", i + 1, runs, err));
  }
  double fma = median_or_0(lim.fma, lim.n_fma), read = median_or_0(lim.gbs, lim.n_gbs);
  double gflop = 2e-9 * (double)s.m * (double)s.n * (double)s.k;
  snprintf(what, sizeof what, "%s %lld x %lld x %lld%s", compute == CHI_COMPUTE_F32 ? "f32" : "bf16", (long long)s.m,
           (long long)s.n, (long long)s.k, s.back ? ", back" : "");
  CHI_TRY(add_row(b, what, t, runs, gflop, roof(gflop, 1e-9 * (double)one, fma, read), "GFLOP/s", err));
out:
  limits_free(&lim);
  for (size_t i = 0; i < made; i++) chi_mat_free(&w[i]);
  chi_free(w);
  chi_free(src);
  chi_free(x);
  chi_free(y);
  return rc;
}

int chi_bench_gemm(chi_bench *b, chi_err *err) {
  static const size3 sizes[] = {{640, 11008, 4096, false}, {640, 4096, 4096, false}, {64, 4096, 4096, false},
                                {15, 11008, 4096, false},  {15, 11008, 4096, true},  {1, 4096, 4096, false}};
  int rc = 0;
  for (size_t i = 0; rc == 0 && i < sizeof sizes / sizeof *sizes; i++) {
    rc = bench_product(b, sizes[i], CHI_COMPUTE_BF16, err);
    if (rc == 0) rc = bench_product(b, sizes[i], CHI_COMPUTE_F32, err);
  }
  return rc;
}

/* ---- runs of a model ------------------------------------------------------------------------------------- */
/* Numbers of one layer's weights: times 2 and rows, the floating-point work of its products. */
static double weights_of(const chi_block_spec *s) {
  double d = s->d, q = (double)s->heads * s->head_dim, kv = (double)s->kv_heads * s->head_dim;
  return d * (2 * q + 2 * kv) + d * s->ffn * (s->gated ? 3 : 2);
}

static double stack_gflop(const chi_block_spec *s, double rows) {
  double keys = s->causal ? (rows + 1) / 2 : rows;
  return 2e-9 * s->layers * rows * (weights_of(s) + 2 * keys * s->heads * s->head_dim);
}

/* Tokens without a meaning, and a grey ramp where the model takes a picture. Caller: chi_free both. */
static int any_prompt(const chi_model *m, int32_t rows, chi_input *in, chi_err *err) {
  const chi_net *net = &m->net;
  int32_t most = net->shape.stack[CHI_DECODER].rows, pic = net->has_vision ? net->shape.n_image_rows : 0;
  if (rows <= 0) rows = 600 > pic + 24 ? 600 : pic + 24;
  if (rows > most - 32) rows = most - 32; /* tokens are generated behind it */
  if (rows < pic + 8)
    return chi_fail(err, CHI_ERR_ARG, "a prompt of %d rows has no room for the picture's %d and some words", rows, pic);
  size_t n = net->has_vision ? 3 * (size_t)net->vision.image_w * (size_t)net->vision.image_h : 0;
  int32_t *tokens = chi_calloc((size_t)rows, sizeof *tokens, err);
  float *pixels = n ? chi_calloc(n, sizeof *pixels, err) : NULL;
  if (!tokens || (n && !pixels)) {
    chi_free(tokens);
    return CHI_ERR_MEMORY;
  }
  for (int32_t i = 0; i < rows; i++)
    tokens[i] = i >= 4 && i < 4 + pic ? m->image_token
                                      : (int32_t)((uint32_t)(i + 7) * 2654435761u % (uint32_t)net->decoder.vocab);
  for (size_t i = 0; i < n; i++) pixels[i] = (float)(i % 509) / 254.0f - 1.0f;
  *in = (chi_input){.tokens = tokens, .n_rows = rows, .pixels = pixels, .image_row = pic ? 4 : -1};
  return 0;
}

static void free_prompt(chi_input *in) {
  chi_free((void *)(uintptr_t)in->tokens);
  chi_free((void *)(uintptr_t)in->pixels);
}

static int prefill_once(const chi_model *m, const chi_input *in, size_t mem, chi_err *err) {
  int rc = 0, root;
  chi_plan *p = NULL;
  int32_t last = in->n_rows - 1;
  CHI_TRY(chi_plan_new(&p, err));
  CHI_TRY(chi_plan_root(p, in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
  CHI_TRY(chi_plan_capture(p, &c, NULL, err));
  chi_run_opts o = {.mem = mem, .what = "measuring"};
  CHI_TRY(chi_run_plan(&m->net, p, &o, err));
out:
  chi_plan_free(p);
  return rc;
}

int chi_bench_prefill(chi_bench *b, const chi_model *m, int32_t rows, size_t mem, chi_err *err) {
  int rc = 0, runs = wanted(b, kWholeRuns);
  double t[kMaxRuns];
  limits lim = {0};
  chi_input in = {0};
  char what[96];
  CHI_TRY(any_prompt(m, rows, &in, err));
  for (int i = -1; i < runs; i++) {
    double at = now();
    CHI_TRY(prefill_once(m, &in, mem, err));
    if (i >= 0) t[i] = now() - at;
    sample_fma(&lim, m->net.compute);
  }
  const chi_block_spec *d = &m->net.decoder.spec;
  double gflop = stack_gflop(d, in.n_rows) + 2e-9 * d->d * m->net.decoder.vocab;
  if (m->net.has_vision) gflop += stack_gflop(&m->net.vision.spec, m->net.vision.rows);
  snprintf(what, sizeof what, "prefill of %d rows, %s%s", in.n_rows,
           m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32", in.pixels ? ", with a picture" : "");
  CHI_TRY(add_row(b, what, t, runs, gflop, median_or_0(lim.fma, lim.n_fma), "GFLOP/s", err));
out:
  free_prompt(&in);
  return rc;
}

typedef struct steps {
  double t[kMaxRuns + 2], last;
  int n;
} steps;
static int on_step(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  steps *s = ud;
  (void)token, (void)logits, (void)vocab;
  double at = now();
  if (step > 0 && s->n < kMaxRuns) s->t[s->n++] = at - s->last;
  s->last = at;
  return 0;
}

int chi_bench_decode(chi_bench *b, const chi_model *m, int32_t rows, size_t mem, chi_err *err) {
  int rc = 0, runs = wanted(b, kKernelRuns);
  double bytes = (double)m->net.decoder.head.w.bytes;
  chi_input in = {0};
  steps s = {0};
  limits lim = {0};
  int32_t tokens[kMaxRuns + 1], n = 0;
  char what[96];
  CHI_TRY(any_prompt(m, rows, &in, err));
  chi_gen_opts g = {.max_new = runs + 1, .mem = mem, .on_token = on_step, .ud = &s};
  CHI_TRY(chi_generate(&m->net, &in, &g, tokens, &n, NULL, err));
  for (int l = 0; l < m->net.decoder.spec.layers; l++) {
    const chi_block *w = &m->net.decoder.block[l];
    bytes += (double)(w->q.w.bytes + w->k.w.bytes + w->v.w.bytes + w->o.w.bytes + w->gate.w.bytes + w->up.w.bytes +
                      w->down.w.bytes);
  }
  for (int i = 0; i < kCeilingRuns; i++) CHI_TRY(sample_read(&lim, err));
  if (s.n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the context has no room for tokens behind %d rows", in.n_rows);
    goto out;
  }
  snprintf(what, sizeof what, "decode after %d rows, %s: weights read a token", in.n_rows,
           m->net.compute == CHI_COMPUTE_BF16 ? "bf16" : "f32");
  CHI_TRY(add_row(b, what, s.t, s.n, 1e-9 * bytes, median_or_0(lim.gbs, lim.n_gbs), "GB/s", err));
out:
  limits_free(&lim);
  free_prompt(&in);
  return rc;
}

int chi_bench_trace(chi_bench *b, const chi_model *m, const chi_prompt *p, size_t mem, chi_err *err) {
  int rc = 0, runs = wanted(b, kWholeRuns);
  double t[kMaxRuns], cells = 0;
  chi_run_stats stats = {0};
  char what[96];
  chi_trace_opts o = CHI_TRACE_OPTS_INIT;
  o.corrupt = (chi_corrupt_opts){.spec = "noise,samples=1"};
  o.mem = mem;
  for (int i = -1; i < runs; i++) {
    chi_trace *tr = NULL;
    double at = now();
    CHI_TRY(chi_trace_run(&tr, m, p, &o, err));
    if (i >= 0) t[i] = now() - at;
    cells = 3.0 * tr->n_layers * tr->n_rows;
    stats = tr->stats;
    chi_trace_free(tr);
  }
  snprintf(what, sizeof what, "map of %.0f cells; %.1f times less rows x layers than one by one", cells,
           (double)stats.dense_row_layers / (double)(stats.live_row_layers ? stats.live_row_layers : 1));
  CHI_TRY(add_row(b, what, t, runs, cells, 0, "cells/s", err));
out:
  return rc;
}

int chi_bench_load(chi_bench *b, const char *path, chi_dtype_choice dtype, chi_err *err) {
  int rc = 0, runs = wanted(b, kLoadRuns);
  double t[kMaxRuns], gb = 0;
  for (int i = 0; i < runs; i++) {
    chi_model *m = NULL;
    double at = now();
    CHI_TRY(chi_model_open(&m, path, dtype, err));
    t[i] = now() - at;
    gb = 0;
    for (size_t k = 0; k < m->n_bound; k++) gb += 1e-9 * (double)m->bound[k].linear->w.bytes;
    chi_model_free(m);
  }
  CHI_TRY(add_row(b, "load: packed weights", t, runs, gb, 0, "GB/s", err));
out:
  return rc;
}

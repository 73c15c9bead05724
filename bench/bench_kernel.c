/* How fast the kernels are, beside what the machine could do: bench_kernel [ISA] [THREADS].
 * The ceiling is a measured loop of independent fused multiply-adds in registers, on as many threads. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernel/kernel.h"

/* On one thread the clock is the thread's own CPU time: other programs on the machine then blur it less. */
static double now(void) {
  struct timespec t;
  clock_gettime(chi_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the ceiling ----------------------------------------------------------------------------------------- */
static volatile float sink[256];

#if defined(__x86_64__)
#include <immintrin.h>
enum { CEILING_REPS = 500000 };
#define CHAINS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

__attribute__((target("avx512f"))) static void spin512(void *ud, int64_t i) {
  (void)ud;
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
#define INIT(n) __m512 c##n = _mm512_set1_ps((float)(n));
#define STEP(n) c##n = _mm512_fmadd_ps(c##n, x, y);
  CHAINS(INIT)
  for (int r = 0; r < CEILING_REPS; r++) {
    CHAINS(STEP)
    __asm__ volatile("" ::: "memory");
  }
  __m512 s = _mm512_setzero_ps();
#define SUM(n) s = _mm512_add_ps(s, c##n);
  CHAINS(SUM)
#undef INIT
#undef STEP
#undef SUM
  sink[i & 255] = _mm512_reduce_add_ps(s);
}

__attribute__((target("avx2,fma"))) static void spin256(void *ud, int64_t i) {
  (void)ud;
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
#define INIT(n) __m256 c##n = _mm256_set1_ps((float)(n));
#define STEP(n) c##n = _mm256_fmadd_ps(c##n, x, y);
  CHAINS(INIT)
  for (int r = 0; r < CEILING_REPS; r++) {
    CHAINS(STEP)
    __asm__ volatile("" ::: "memory");
  }
  __m256 s = _mm256_setzero_ps();
#define SUM(n) s = _mm256_add_ps(s, c##n);
  CHAINS(SUM)
  sink[i & 255] = _mm256_cvtss_f32(s);
}

static double ceiling(void) {
  bool wide = chi_isa_available(CHI_ISA_AVX512) && chi_cpu_isa() != CHI_ISA_AVX2;
  if (!wide && !chi_isa_available(CHI_ISA_AVX2)) return 0;
  double best = 1e9;
  for (int rep = 0; rep < 40; rep++) {
    double t = now();
    chi_parallel_for(chi_threads(), wide ? spin512 : spin256, NULL);
    t = now() - t;
    best = t < best ? t : best;
  }
  return 2.0 * 12 * (wide ? 16 : 8) * CEILING_REPS * chi_threads() / best * 1e-9;
}
#else
static double ceiling(void) { return 0; }
#endif

/* ---- products -------------------------------------------------------------------------------------------- */
static float *values(size_t n) {
  float *p = chi_calloc(n, sizeof *p, NULL);
  if (p == NULL) exit(1);
  for (size_t i = 0; i < n; i++) p[i] = (float)(int)(i * 2654435761u >> 8 & 0xffff) * 0x1p-16f - 0.5f;
  return p;
}

/* Best of enough runs to fill about 0.3 s. */
static double best_of(int (*run)(void *), void *ud) {
  double best = 1e9, total = 0;
  for (int i = 0; i < 3 || (total < 0.3 && i < 1000); i++) {
    double t = now();
    if (run(ud) != 0) exit(1);
    t = now() - t;
    total += t;
    best = t < best ? t : best;
  }
  return best;
}

typedef struct product {
  chi_mat w;
  float *x, *y;
  int64_t m;
  bool back;
} product;

static int run_product(void *ud) {
  product *p = ud;
  if (p->back) return chi_gemm_t(&p->w, p->x, p->w.n, p->y, p->w.k, p->m, NULL);
  return chi_gemm(&p->w, p->x, p->w.k, p->y, p->w.n, p->m, NULL, NULL);
}

static void bench_product(const char *name, int64_t m, int64_t n, int64_t k, chi_dtype store, chi_compute compute,
                          bool back, double top) {
  product p = {.m = m, .back = back};
  float *src = values((size_t)(n * k));
  uint16_t *half = chi_calloc((size_t)(n * k), sizeof *half, NULL);
  if (half == NULL) exit(1);
  for (int64_t i = 0; i < n * k; i++) half[i] = store == CHI_F16 ? chi_f16_from_f32(src[i]) : chi_bf16_from_f32(src[i]);
  double t = now();
  if (chi_mat_pack(&p.w, store == CHI_F32 ? (void *)src : half, store, n, k, k, compute, NULL) != 0) exit(1);
  double packing = now() - t;
  p.x = values((size_t)(m * (back ? n : k)));
  p.y = values((size_t)(m * (back ? k : n)));
  t = best_of(run_product, &p);
  double gflops = 2.0 * (double)m * (double)n * (double)k / t * 1e-9;
  printf("%-22s %5lld x %5lld x %5lld  %9.1f us  %7.1f GFLOP/s", name, (long long)m, (long long)n, (long long)k,
         t * 1e6, gflops);
  if (top > 0) printf("  %3.0f %%", 100 * gflops / top);
  printf("  weights %6.1f GB/s  pack %5.2f GB/s\n", (double)p.w.bytes / t * 1e-9, (double)p.w.bytes / packing * 1e-9);
  chi_mat_free(&p.w);
  chi_free(src);
  chi_free(half);
  chi_free(p.x);
  chi_free(p.y);
}

/* ---- attention ------------------------------------------------------------------------------------------- */
typedef struct attn {
  chi_attn_query *q;
  int64_t n;
  int heads, kv_heads, hd;
  chi_compute compute;
} attn;

static int run_attention(void *ud) {
  attn *a = ud;
  return chi_attention(a->q, a->n, a->heads, a->kv_heads, a->hd, 0.125f, a->compute, NULL);
}

/* n causal rows that end at position `keys`. */
static void bench_attention(const char *name, int n, int keys, int heads, int kv_heads, int hd, chi_compute compute,
                            double top) {
  size_t blocks = (size_t)(keys + 31) / 32, block = (size_t)kv_heads * (size_t)hd * 32, width = (size_t)(heads * hd);
  float *k = values(blocks * block), *v = values(blocks * block);
  float *q = values((size_t)n * width), *out = values((size_t)n * width);
  const float **kb = calloc(blocks, sizeof *kb), **vb = calloc(blocks, sizeof *vb);
  attn a = {calloc((size_t)n, sizeof *a.q), n, heads, kv_heads, hd, compute};
  if (kb == NULL || vb == NULL || a.q == NULL) exit(1);
  for (size_t b = 0; b < blocks; b++) kb[b] = k + b * block, vb[b] = v + b * block;
  double macs = 0;
  for (int i = 0; i < n; i++) {
    int row = keys - n + i;
    a.q[i] = (chi_attn_query){.q = q + (size_t)i * width,
                              .out = out + (size_t)i * width,
                              .kblk = kb,
                              .vblk = vb,
                              .row = row,
                              .n_keys = row + 1};
    macs += 2.0 * (row + 1) * heads * hd;
  }
  double t = best_of(run_attention, &a), gflops = 2 * macs / t * 1e-9;
  printf("%-22s %5d rows %5d keys %2d/%2d heads of %3d  %9.1f us  %7.1f GFLOP/s", name, n, keys, heads, kv_heads, hd,
         t * 1e6, gflops);
  if (top > 0) printf("  %3.0f %%", 100 * gflops / top);
  printf("\n");
  free(a.q);
  free(kb);
  free(vb);
  chi_free(k);
  chi_free(v);
  chi_free(q);
  chi_free(out);
}

/* ---- rows ------------------------------------------------------------------------------------------------ */
enum { ROWS = 640, WIDTH = 4096 };
static float *rx, *ry;

static int run_rms(void *ud) {
  (void)ud;
  chi_rmsnorm(rx, WIDTH, ry, WIDTH, ROWS, WIDTH, rx, 1e-5f);
  return 0;
}
static int run_act(void *ud) {
  chi_act_rows(*(chi_act *)ud, rx, WIDTH, NULL, 0, ry, WIDTH, ROWS, WIDTH);
  return 0;
}
static int run_softmax(void *ud) {
  (void)ud;
  for (int r = 0; r < 64; r++) chi_softmax(ry + r * WIDTH, WIDTH);
  return 0;
}

static void bench_rows(void) {
  static const char *const names[] = {"silu", "gelu", "gelu tanh", "quick gelu", "relu"};
  rx = values((size_t)ROWS * WIDTH);
  ry = values((size_t)ROWS * WIDTH);
  printf("rms norm     %6.2f ns an element\n", best_of(run_rms, NULL) * 1e9 / (ROWS * WIDTH));
  for (int a = CHI_ACT_SILU; a <= CHI_ACT_RELU; a++) {
    chi_act act = (chi_act)a;
    printf("%-12s %6.2f ns an element\n", names[a], best_of(run_act, &act) * 1e9 / (ROWS * WIDTH));
  }
  printf("softmax      %6.2f ns an element\n", best_of(run_softmax, NULL) * 1e9 / (64 * WIDTH));
  chi_free(rx);
  chi_free(ry);
}

int main(int argc, char **argv) {
  chi_err err = {0};
  if (chi_cpu_init(argc > 1 && argv[1][0] ? argv[1] : NULL, &err) != 0) {
    fprintf(stderr, "%s\n", err.text);
    return 1;
  }
  if (argc > 2) chi_set_threads((int)strtol(argv[2], NULL, 10));
  double top = ceiling();
  printf("%s, %d threads, measured FMA ceiling %.0f GFLOP/s\n", chi_isa_name(chi_cpu_isa()), chi_threads(), top);
  const chi_compute f32 = CHI_COMPUTE_F32, b16 = CHI_COMPUTE_BF16;
  static const int64_t shapes[][3] = {{640, 1024, 1024}, {640, 4096, 1024}, {640, 1024, 4096}, {256, 256, 256},
                                      {1, 1024, 1024},   {1, 4096, 4096},   {4, 4096, 4096},   {16, 4096, 4096}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    const int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
    bench_product("f32", m, n, k, CHI_F32, f32, false, top);
    bench_product("f32 from f16", m, n, k, CHI_F16, f32, false, top);
    bench_product("f32 from bf16", m, n, k, CHI_BF16, f32, false, top);
    bench_product("bf16", m, n, k, CHI_BF16, b16, false, top);
  }
  bench_product("f32 backward", 640, 1024, 1024, CHI_F32, f32, true, top);
  bench_product("bf16 backward", 640, 1024, 1024, CHI_BF16, b16, true, top);
  bench_product("f32 backward", 1, 4096, 4096, CHI_F32, f32, true, top);
  bench_product("bf16 backward", 1, 4096, 4096, CHI_BF16, b16, true, top);
  bench_attention("attention f32", 640, 640, 16, 16, 64, f32, top);
  bench_attention("attention bf16", 640, 640, 16, 16, 64, b16, top);
  bench_attention("attention f32 grouped", 640, 640, 16, 4, 128, f32, top);
  bench_attention("attention f32", 1, 640, 32, 32, 128, f32, top);
  bench_rows();
  return 0;
}

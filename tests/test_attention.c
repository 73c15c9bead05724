/* Attention: the canonical order against a scalar reference written from docs/arithmetic.md, against doubles, on every
 * instruction set and number of threads; forks inside a block; edges; patterns; NaN. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/kernel.h"

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512-bf16", "amx"};
static const int widths[] = {1, 2, 3, 5, 8};

static uint64_t state = 7;
static float uniform(void) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (float)(state >> 40) * 0x1p-23f - 1.0f;
}
static float bf16(float x) { return chi_f32_from_bf16(chi_bf16_from_f32(x)); }

enum { MAX_BLOCKS = 24 };

/* One branch: rows of k and v, and the blocks that hold them. Slots without a key are NaN. */
typedef struct cache {
  int keys, kv_heads, hd;
  float *k, *v; /* [keys][kv_heads*hd] */
  float *kb[MAX_BLOCKS], *vb[MAX_BLOCKS];
  const float *kt[MAX_BLOCKS], *vt[MAX_BLOCKS]; /* the tables */
} cache;

static void make_cache(cache *c, int keys, int kv_heads, int hd, chi_compute compute) {
  *c = (cache){.keys = keys, .kv_heads = kv_heads, .hd = hd};
  size_t width = (size_t)(kv_heads * hd), block = width * CHI_KV_BLOCK;
  c->k = malloc((size_t)keys * width * sizeof(float));
  c->v = malloc((size_t)keys * width * sizeof(float));
  for (size_t i = 0; i < (size_t)keys * width; i++) c->k[i] = uniform() * 2.0f, c->v[i] = uniform();
  for (int b = 0; b * CHI_KV_BLOCK < keys; b++) {
    c->kb[b] = malloc(block * sizeof(float));
    c->vb[b] = malloc(block * sizeof(float));
    for (size_t i = 0; i < block; i++) c->kb[b][i] = c->vb[b][i] = NAN;
    c->kt[b] = c->kb[b];
    c->vt[b] = c->vb[b];
  }
  for (int r = 0; r < keys; r++)
    chi_kv_put(c->kb[r / 32], c->vb[r / 32], c->k + (size_t)r * width, c->v + (size_t)r * width, r % 32, kv_heads, hd,
               compute);
}

static void free_cache(cache *c) {
  for (int b = 0; b < MAX_BLOCKS; b++) {
    free(c->kb[b]);
    free(c->vb[b]);
  }
  free(c->k);
  free(c->v);
}

/* Two interleaved chains per 32, as TDPBF16PS does; n values with strides. */
static float pair_sum(const float *a, int64_t sa, const float *b, int64_t sb, int n) {
  float acc = 0.0f;
  for (int i0 = 0; i0 < n; i0 += 32) {
    float e[2] = {0.0f, 0.0f};
    for (int i = i0; i < i0 + 32; i++)
      e[i & 1] = fmaf(i < n ? bf16(a[i * sa]) : 0.0f, i < n ? bf16(b[i * sb]) : 0.0f, e[i & 1]);
    acc = acc + (e[0] + e[1]);
  }
  return acc;
}
static float chain_sum(const float *a, int64_t sa, const float *b, int64_t sb, int n) {
  float acc = 0.0f;
  for (int i0 = 0; i0 < n; i0 += 256) {
    float s = 0.0f;
    for (int i = i0; i < n && i < i0 + 256; i++) s = fmaf(a[i * sa], b[i * sb], s);
    acc = i0 == 0 ? s : acc + s;
  }
  return acc;
}

static bool edge_hits(const chi_attn_query *q, const chi_edge *e, int head, int key) {
  return e->row == q->row && key >= e->key_lo && key < e->key_hi && head >= e->head_lo && head < e->head_hi;
}

/* Canonical weights and output of one head. */
static void reference(const cache *c, const chi_attn_query *q, int head, int group, float scale, chi_compute compute,
                      float *w, float *out) {
  const int hd = c->hd, n = q->n_keys;
  const int64_t width = c->kv_heads * hd;
  const float *qh = q->q + head * hd, *k = c->k + head / group * hd, *v = c->v + head / group * hd;
  float max = -INFINITY, lanes[32] = {0};
  bool bf = compute == CHI_COMPUTE_BF16;
  for (int i = 0; i < n; i++) {
    w[i] = (bf ? pair_sum(qh, 1, k + i * width, 1, hd) : chain_sum(qh, 1, k + i * width, 1, hd)) * scale;
    for (int e = 0; e < q->n_edges; e++)
      if (q->edges[e].op == CHI_EDGE_CUT && edge_hits(q, &q->edges[e], head, i)) w[i] = -INFINITY;
    if (w[i] > max) max = w[i];
  }
  for (int i = 0; i < n; i++) {
    w[i] = max == -INFINITY ? 0.0f : chi_expf(w[i] - max);
    lanes[i % 32] += w[i];
  }
  for (int s = 16; s; s /= 2)
    for (int i = 0; i < s; i++) lanes[i] += lanes[i + s];
  for (int i = 0; i < n; i++) {
    if (max != -INFINITY) w[i] /= lanes[0];
    for (int e = 0; e < q->n_edges; e++) {
      if (!edge_hits(q, &q->edges[e], head, i)) continue;
      if (q->edges[e].op == CHI_EDGE_ZERO) w[i] = 0.0f;
      if (q->edges[e].op == CHI_EDGE_SCALE) w[i] *= q->edges[e].value;
    }
    if (q->pattern_set != NULL) w[i] = q->pattern_set[(int64_t)head * n + i];
  }
  for (int d = 0; d < hd; d++) out[d] = bf ? pair_sum(w, 1, v + d, width, n) : chain_sum(w, 1, v + d, width, n);
}

static void same_bits(const char *what, const float *got, const float *want, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (memcmp(got + i, want + i, sizeof *got) != 0)
      fail_msg("%s: element %lld is %a, want %a (%s, %d threads)", what, (long long)i, (double)got[i], (double)want[i],
               chi_isa_name(chi_cpu_isa()), chi_threads());
}

typedef struct batch {
  int n, heads, hd;
  chi_attn_query q[160];
  float *x, *out, *want; /* [n][heads*hd] */
} batch;

/* Queries at the given rows of a cache, causal. */
static void make_batch(batch *b, const cache *c, int heads, int first, int n, int step) {
  b->n = n, b->heads = heads, b->hd = c->hd;
  size_t width = (size_t)(heads * c->hd);
  b->x = malloc((size_t)n * width * sizeof(float));
  b->out = malloc((size_t)n * width * sizeof(float));
  b->want = malloc((size_t)n * width * sizeof(float));
  for (size_t i = 0; i < (size_t)n * width; i++) b->x[i] = uniform() * 2.0f;
  for (int i = 0; i < n; i++) {
    int row = first + i * step;
    b->q[i] = (chi_attn_query){.q = b->x + (size_t)i * width,
                               .out = b->out + (size_t)i * width,
                               .kblk = c->kt,
                               .vblk = c->vt,
                               .row = row,
                               .n_keys = row + 1};
  }
}
static void free_batch(batch *b) {
  free(b->x);
  free(b->out);
  free(b->want);
}
static void want_batch(batch *b, const cache *c, float scale, chi_compute compute) {
  unsigned saved = chi_fp_begin();
  float *w = malloc(sizeof *w * (size_t)c->keys);
  for (int i = 0; i < b->n; i++)
    for (int h = 0; h < b->heads; h++)
      reference(c, &b->q[i], h, b->heads / c->kv_heads, scale, compute, w, b->want + (i * b->heads + h) * b->hd);
  free(w);
  chi_fp_end(saved);
}
static void run_batch(batch *b, int kv_heads, float scale, chi_compute compute) {
  size_t all = (size_t)(b->n * b->heads * b->hd);
  for (size_t i = 0; i < all; i++) b->out[i] = 777.0f;
  assert_int_equal(chi_attention(b->q, b->n, b->heads, kv_heads, b->hd, scale, compute, NULL), 0);
}

static void test_canonical(void **unused) {
  (void)unused;
  /* heads, kv_heads, hd, keys, first row, rows, step */
  static const int cases[][7] = {{1, 1, 8, 1, 0, 1, 1},      {2, 2, 64, 70, 0, 35, 2},   {4, 2, 80, 300, 250, 30, 1},
                                 {6, 1, 20, 90, 3, 29, 3},   {16, 1, 40, 40, 30, 10, 1}, {3, 3, 33, 560, 500, 30, 2},
                                 {1, 1, 300, 65, 31, 34, 1}, {2, 1, 128, 700, 699, 1, 1}};
  for (size_t s = 0; s < sizeof cases / sizeof *cases; s++)
    for (int bf = 0; bf < 2; bf++) {
      const int *p = cases[s];
      chi_compute compute = bf ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
      cache c;
      batch b;
      make_cache(&c, p[3], p[1], p[2], compute);
      make_batch(&b, &c, p[0], p[4], p[5], p[6]);
      want_batch(&b, &c, 0.3f, compute);
      for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (chi_cpu_init(isas[i], NULL) != 0) continue;
        chi_set_threads(widths[(s + i) % 5]);
        run_batch(&b, p[1], 0.3f, compute);
        same_bits("attention", b.out, b.want, (int64_t)b.n * b.heads * b.hd);
      }
      free_batch(&b);
      free_cache(&c);
    }
}

/* Threads, one query at a time (decoding), and any order of queries. */
static void test_stacking(void **unused) {
  (void)unused;
  for (int bf = 0; bf < 2; bf++) {
    chi_compute compute = bf ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
    cache c;
    batch b;
    make_cache(&c, 150, 2, 48, compute);
    make_batch(&b, &c, 4, 0, 150, 1);
    want_batch(&b, &c, 0.2f, compute);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
      if (chi_cpu_init(isas[i], NULL) != 0) continue;
      for (size_t t = 0; t < 5; t++) {
        chi_set_threads(widths[t]);
        run_batch(&b, 2, 0.2f, compute);
        same_bits("threads", b.out, b.want, 150 * 4 * 48);
      }
      chi_attn_query kept[150];
      memcpy(kept, b.q, sizeof kept);
      for (int q = 0; q < 150; q++) b.q[q] = kept[q * 67 % 150];
      run_batch(&b, 2, 0.2f, compute);
      same_bits("permuted queries", b.out, b.want, 150 * 4 * 48);
      memcpy(b.q, kept, sizeof kept);
      memset(b.out, 0, sizeof(float) * 150 * 4 * 48);
      for (int q = 0; q < 150; q++) assert_int_equal(chi_attention(b.q + q, 1, 4, 2, 48, 0.2f, compute, NULL), 0);
      same_bits("one query at a time", b.out, b.want, 150 * 4 * 48);
    }
    free_batch(&b);
    free_cache(&c);
  }
}

/* A branch that forks at every offset inside a block: shared prefix blocks, the straddling block copied up to the fork,
 * own rows after it; stacked with its parent's queries. Must equal the branch with all blocks private. */
static void test_forks(void **unused) {
  (void)unused;
  enum { KEYS = 110, HD = 40, HEADS = 4, KV = 2, W = KV * HD };
  for (int bf = 0; bf < 2; bf++) {
    chi_compute compute = bf ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
    cache parent;
    make_cache(&parent, KEYS, KV, HD, compute);
    for (int fork = 32; fork < 64; fork++) {
      cache own; /* private blocks with the parent's rows before the fork, its own after */
      make_cache(&own, KEYS, KV, HD, compute);
      memcpy(own.k, parent.k, sizeof(float) * (size_t)(fork * W));
      memcpy(own.v, parent.v, sizeof(float) * (size_t)(fork * W));
      for (int r = 0; r < fork; r++) {
        float k[W], v[W];
        chi_kv_get(parent.kb[r / 32], parent.vb[r / 32], k, v, r % 32, KV, HD);
        for (int i = 0; i < W; i++) assert_true(k[i] == (bf ? bf16(parent.k[r * W + i]) : parent.k[r * W + i]));
        chi_kv_put(own.kb[r / 32], own.vb[r / 32], k, v, r % 32, KV, HD, compute);
      }
      cache sharing = own;
      sharing.kt[0] = parent.kb[0]; /* only whole blocks before the fork are shared */
      sharing.vt[0] = parent.vb[0];
      batch b, s, p;
      make_batch(&b, &own, HEADS, fork, KEYS - fork, 1);
      make_batch(&p, &parent, HEADS, fork, KEYS - fork, 1);
      want_batch(&b, &own, 0.2f, compute);
      want_batch(&p, &parent, 0.2f, compute);
      for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (chi_cpu_init(isas[i], NULL) != 0 || (i == 0 && fork % 5 != 0)) continue;
        chi_set_threads(2);
        run_batch(&b, KV, 0.2f, compute);
        same_bits("private blocks", b.out, b.want, (int64_t)b.n * HEADS * HD);
        s = b; /* the same queries through the sharing tables, interleaved with the parent's */
        s.n = 0;
        for (int q = 0; q < b.n; q++) {
          s.q[s.n] = b.q[q];
          s.q[s.n].kblk = sharing.kt;
          s.q[s.n++].vblk = sharing.vt;
          if (q % 3 == 0) s.q[s.n++] = p.q[q];
        }
        memset(b.out, 0, sizeof(float) * (size_t)(b.n * HEADS * HD));
        assert_int_equal(chi_attention(s.q, s.n, HEADS, KV, HD, 0.2f, compute, NULL), 0);
        same_bits("shared prefix", b.out, b.want, (int64_t)b.n * HEADS * HD);
        for (int q = 0; q < p.n; q += 3)
          same_bits("the parent beside its branch", p.q[q].out, p.want + q * HEADS * HD, HEADS * HD);
      }
      free_batch(&b);
      free_batch(&p);
      free_cache(&own);
    }
    free_cache(&parent);
  }
}

static void test_against_double(void **unused) {
  (void)unused;
  enum { KEYS = 300, HD = 64 };
  cache c;
  batch b;
  make_cache(&c, KEYS, 1, HD, CHI_COMPUTE_F32);
  make_batch(&b, &c, 2, 280, 20, 1);
  chi_cpu_init(NULL, NULL);
  run_batch(&b, 1, 0.125f, CHI_COMPUTE_F32);
  for (int i = 0; i < b.n; i++)
    for (int h = 0; h < 2; h++) {
      double w[KEYS], max = -1e300, sum = 0;
      int n = b.q[i].n_keys;
      for (int k = 0; k < n; k++) {
        w[k] = 0;
        for (int d = 0; d < HD; d++) w[k] += (double)b.q[i].q[h * HD + d] * (double)c.k[k * HD + d];
        w[k] *= 0.125;
        max = fmax(max, w[k]);
      }
      for (int k = 0; k < n; k++) sum += w[k] = exp(w[k] - max);
      for (int d = 0; d < HD; d++) {
        double o = 0;
        for (int k = 0; k < n; k++) o += w[k] / sum * (double)c.v[k * HD + d];
        assert_true(fabs(o - (double)b.q[i].out[h * HD + d]) < 2e-6);
      }
    }
  free_batch(&b);
  free_cache(&c);
}

static void test_edges(void **unused) {
  (void)unused;
  enum { KEYS = 75, HD = 24, HEADS = 4, N = 5 };
  static const chi_edge edges[] = {
      {70, 3, 40, 1, 3, CHI_EDGE_CUT, 0.0f},     {70, 0, 10, 0, 2, CHI_EDGE_ZERO, 0.0f},
      {70, 60, 999, 0, 4, CHI_EDGE_SCALE, 2.5f}, {70, 62, 64, 3, 4, CHI_EDGE_SCALE, 0.0f},
      {71, 0, 72, 0, 3, CHI_EDGE_CUT, 0.0f},     {72, -5, 20, 2, 4, CHI_EDGE_CUT, 0.0f},
  };
  for (int bf = 0; bf < 2; bf++) {
    chi_compute compute = bf ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
    cache c;
    batch b;
    make_cache(&c, KEYS, 2, HD, compute);
    make_batch(&b, &c, HEADS, 70, N, 1);
    static float pattern[N][HEADS * KEYS], set[HEADS * KEYS];
    for (int i = 0; i < HEADS * KEYS; i++) set[i] = uniform();
    for (int i = 0; i < N; i++) {
      b.q[i].edges = edges;
      b.q[i].n_edges = sizeof edges / sizeof *edges;
      b.q[i].pattern = pattern[i];
    }
    b.q[4].pattern_set = set;
    want_batch(&b, &c, 0.4f, compute);
    /* Row 71 attends to nothing in heads 0-2: zeros even if the values are not numbers. */
    for (int i = 0; i < 3 * HD; i++) assert_true(b.want[HEADS * HD + i] == 0.0f);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
      if (chi_cpu_init(isas[i], NULL) != 0) continue;
      chi_set_threads(widths[i]);
      run_batch(&b, 2, 0.4f, compute);
      same_bits("edges", b.out, b.want, N * HEADS * HD);
      unsigned saved = chi_fp_begin();
      for (int q = 0; q < N; q++)
        for (int h = 0; h < HEADS; h++) {
          float w[KEYS], out[HD], sum = 0;
          int n = b.q[q].n_keys;
          reference(&c, &b.q[q], h, 2, 0.4f, compute, w, out);
          same_bits("pattern", pattern[q] + h * n, w, n);
          for (int k = 0; k < n; k++) sum += w[k];
          if (q == 3 || (q == 2 && h >= 2)) assert_true(fabsf(sum - 1.0f) < 1e-5f); /* cuts renormalise */
        }
      chi_fp_end(saved);
    }
    for (size_t k = 0; k < 32 * 2 * HD; k++) c.vb[0][k] = NAN;
    run_batch(&b, 2, 0.4f, compute);
    for (int i = 0; i < 3 * HD; i++) assert_true(b.q[1].out[i] == 0.0f);
    free_batch(&b);
    free_cache(&c);
  }
}

/* A NaN or Inf in a key or value reaches exactly the queries that attend to it. */
static void test_nan(void **unused) {
  (void)unused;
  enum { KEYS = 100, HD = 40, HEADS = 2 };
  for (int bf = 0; bf < 2; bf++)
    for (int at = 0; at < KEYS; at += 13)
      for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        chi_compute compute = bf ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
        if (chi_cpu_init(isas[i], NULL) != 0) continue;
        cache c;
        batch b;
        float k[HD], v[HD];
        make_cache(&c, KEYS, 1, HD, compute);
        make_batch(&b, &c, HEADS, 0, KEYS, 1);
        run_batch(&b, 1, 0.2f, compute);
        memcpy(b.want, b.out, sizeof(float) * KEYS * HEADS * HD);
        for (int in_key = 0; in_key < 2; in_key++) {
          for (int d = 0; d < HD; d++) {
            k[d] = in_key ? (d % 2 ? NAN : INFINITY) : c.k[at * HD + d];
            v[d] = in_key ? c.v[at * HD + d] : NAN;
          }
          chi_kv_put(c.kb[at / 32], c.vb[at / 32], k, v, at % 32, 1, HD, compute);
          run_batch(&b, 1, 0.2f, compute);
          same_bits("queries before the NaN", b.out, b.want, at * HEADS * HD);
          for (int j = at * HEADS * HD; j < KEYS * HEADS * HD; j++) assert_true(isnan(b.out[j]));
        }
        free_batch(&b);
        free_cache(&c);
      }
}

/* The zeros that pad a bf16 block are part of the sum: they turn -0 (here from flushed denormals) into +0. */
static void test_padding(void **unused) {
  (void)unused;
  enum { KEYS = 72, HD = 8 };
  cache c;
  batch b;
  make_cache(&c, KEYS, 1, HD, CHI_COMPUTE_BF16);
  make_batch(&b, &c, 1, 64, 8, 1);
  for (int i = 0; i < 8 * HD; i++) b.x[i] = 0.0f; /* equal weights */
  for (int r = 0; r < KEYS; r++) {
    float v[HD];
    for (int d = 0; d < HD; d++) v[d] = r == 0 ? 1e-36f : r == 32 ? -1.01e-36f : r < 64 ? 0.0f : -1.2e-38f;
    memcpy(c.v + r * HD, v, sizeof v);
    chi_kv_put(c.kb[r / 32], c.vb[r / 32], c.k + r * HD, v, r % 32, 1, HD, CHI_COMPUTE_BF16);
  }
  want_batch(&b, &c, 1.0f, CHI_COMPUTE_BF16);
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    if (chi_cpu_init(isas[i], NULL) != 0) continue;
    run_batch(&b, 1, 1.0f, CHI_COMPUTE_BF16);
    same_bits("padding", b.out, b.want, 8 * HD);
    for (int k = 0; k < 8 * HD; k++) assert_true(b.out[k] == 0.0f && !signbit(b.out[k]));
  }
  free_batch(&b);
  free_cache(&c);
}

static void test_arguments(void **unused) {
  (void)unused;
  chi_err err = {0};
  float out[4] = {1, 1, 1, 1}, q[4] = {0};
  chi_attn_query none = {.q = q, .out = out, .n_keys = 0};
  assert_int_equal(chi_attention(&none, 1, 3, 2, 1, 1.0f, CHI_COMPUTE_F32, &err), CHI_ERR_ARG);
  assert_int_equal(chi_attention(NULL, 0, 2, 2, 2, 1.0f, CHI_COMPUTE_F32, NULL), 0);
  assert_int_equal(chi_attention(&none, 1, 2, 2, 2, 1.0f, CHI_COMPUTE_F32, NULL), 0);
  for (int i = 0; i < 4; i++) assert_true(out[i] == 0.0f); /* no keys: zeros */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_canonical),      cmocka_unit_test(test_stacking),  cmocka_unit_test(test_forks),
      cmocka_unit_test(test_against_double), cmocka_unit_test(test_edges),     cmocka_unit_test(test_nan),
      cmocka_unit_test(test_padding),        cmocka_unit_test(test_arguments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

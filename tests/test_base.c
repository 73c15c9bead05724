#include "support/support.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tensor/dtype.h"

#define MATH_HASH 0xdc3768bbd58f5bb6u

/* ---- errors -------------------------------------------------------------------------------------------------- */
static void errors_first_wins(void **state) {
  (void)state;
  chi_err e = {0};
  assert_int_equal(chi_fail(&e, CHI_ERR_IO, "first %d", 1), CHI_ERR_IO);
  assert_int_equal(chi_fail(&e, CHI_ERR_ARG, "second"), CHI_ERR_ARG);
  assert_int_equal(e.code, CHI_ERR_IO);
  assert_string_equal(e.text, "first 1");
  chi_err_prefix(&e, "a.json");
  assert_string_equal(e.text, "a.json: first 1");
  assert_int_equal(chi_fail(NULL, CHI_ERR_ARG, "nobody listens"), CHI_ERR_ARG);
  chi_err_prefix(NULL, "x");
  chi_err unset = {0};
  chi_err_prefix(&unset, "x");
  assert_string_equal(unset.text, "");
}

static void errors_are_one_clean_line(void **state) {
  (void)state;
  static const struct {
    const char *in, *out;
  } cases[] = {
      {"a\nb\tc\x7f", "a?b?c?"},
      {"\x1b[31mred", "?[31mred"},
      {"caf\xc3\xa9 \xe2\x96\x81 \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x96\x81 \xf0\x9f\x98\x80"},
      {"cut \xe2\x96", "cut ??"},
      {"\xc0\xaf \xed\xa0\x80 \xf5", "?? ??? ?"},
      {"c1 \xc2\x9b rlo \xe2\x80\xae", "c1 ? rlo ?"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    chi_err e = {0};
    chi_fail(&e, CHI_ERR_FORMAT, "%s", cases[i].in);
    assert_string_equal(e.text, cases[i].out);
  }
}

static void errors_truncate_between_characters(void **state) {
  (void)state;
  char longer[2000];
  for (size_t shift = 0; shift < 3; shift++) {
    memset(longer, 'x', shift);
    for (size_t i = shift; i + 3 < sizeof longer; i += 3) memcpy(longer + i, "\xe2\x96\x81", 4);
    chi_err e = {0};
    chi_fail(&e, CHI_ERR_FORMAT, "%s", longer);
    size_t n = strlen(e.text);
    assert_true(n < CHI_ERR_TEXT && n > CHI_ERR_TEXT - 8);
    assert_string_equal(e.text + n - 3, "...");
    assert_null(strchr(e.text, '?'));
    chi_err_prefix(&e, longer);
    assert_true(strlen(e.text) < CHI_ERR_TEXT);
    assert_non_null(strstr(e.text, ": "));
  }
}

/* ---- memory -------------------------------------------------------------------------------------------------- */
static void arena_gives_aligned_zeroed_memory(void **state) {
  (void)state;
  chi_arena a = {0};
  unsigned char *kept[300];
  size_t total = 0;
  for (size_t i = 0; i < 300; i++) {
    size_t n = i % 7 == 0 ? 20000 * i : i;
    kept[i] = chi_arena_alloc(&a, n, NULL);
    assert_non_null(kept[i]);
    assert_int_equal((uintptr_t)kept[i] % 64, 0);
    for (size_t j = 0; j < n; j++) assert_int_equal(kept[i][j], 0);
    memset(kept[i], (int)(i & 255), n);
    total += n ? n : 1;
    assert_string_equal(chi_arena_strdup(&a, "name", NULL), "name");
    total += 5;
  }
  assert_int_equal(a.bytes, total);
  for (size_t i = 0; i < 300; i++) { /* nothing overlaps */
    size_t n = i % 7 == 0 ? 20000 * i : i;
    for (size_t j = 0; j < n; j += n / 50 + 1) assert_int_equal(kept[i][j], i & 255);
  }
  chi_arena_free(&a);
  assert_null(a.head);
  chi_arena_free(&a);
}

static void memory_sizes_are_checked(void **state) {
  (void)state;
  chi_arena a = {0};
  chi_err e = {0};
  assert_null(chi_arena_array(&a, SIZE_MAX / 2, 4, &e));
  assert_int_equal(e.code, CHI_ERR_MEMORY);
  assert_null(chi_arena_alloc(&a, SIZE_MAX, NULL));
  assert_non_null(chi_arena_array(&a, 0, 8, NULL));
  chi_arena_free(&a);
  assert_null(chi_calloc(SIZE_MAX / 8, 16, NULL));
  assert_null(chi_calloc(1, SIZE_MAX, NULL));
  double *p = chi_calloc(0, 8, NULL);
  assert_non_null(p);
  chi_free(p);
  void *g = NULL;
  size_t cap = 0;
  assert_fails(chi_grow(&g, &cap, SIZE_MAX / 4, 8, err), CHI_ERR_MEMORY, "more than memory");
  assert_null(g);
  assert_int_equal(cap, 0);
}

static void grow_keeps_contents(void **state) {
  (void)state;
  void *p = NULL;
  size_t cap = 0;
  for (size_t n = 1; n <= 5000; n++) {
    assert_int_equal(chi_grow(&p, &cap, n, sizeof(uint32_t), NULL), 0);
    assert_true(cap >= n);
    assert_int_equal(((uint32_t *)p)[n - 1], 0);
    ((uint32_t *)p)[n - 1] = (uint32_t)n;
  }
  for (size_t n = 1; n <= 5000; n++) assert_int_equal(((uint32_t *)p)[n - 1], n);
  chi_free(p);
}

/* ---- strings ------------------------------------------------------------------------------------------------- */
static void strings_grow(void **state) {
  (void)state;
  chi_str s = {0};
  for (int i = 0; i < 1000; i++) chi_str_addf(&s, "%d,", i);
  chi_str_add(&s, "end");
  chi_str_addn(&s, "\0!", 2);
  assert_int_equal(s.len, 10 * 2 + 90 * 3 + 900 * 4 + 3 + 2);
  assert_memory_equal(s.s, "0,1,2,", 6);
  assert_memory_equal(s.s + s.len - 5, "end\0!", 6);
  assert_false(s.failed);
  chi_str_free(&s);
  assert_null(s.s);
  chi_str_addn(&s, "", 0);
  assert_string_equal(s.s, "");
  s.failed = true;
  chi_str_add(&s, "lost");
  assert_int_equal(s.len, 0);
  chi_str_free(&s);
  assert_true(chi_streq(NULL, NULL) && chi_streq("a", "a"));
  assert_false(chi_streq(NULL, "a") || chi_streq("a", NULL) || chi_streq("a", "b"));
}

static void globs(void **state) {
  (void)state;
  static const char *yes[][2] = {{"", ""},
                                 {"*", ""},
                                 {"*", "abc"},
                                 {"a*", "a"},
                                 {"*c", "abc"},
                                 {"a*c", "abbc"},
                                 {"*b*", "abc"},
                                 {"a**c", "ac"},
                                 {"*ab", "aab"},
                                 {"a*b*c", "axbxbc"},
                                 {"*.mlp.*", "l.0.mlp.up"},
                                 {"abc", "abc"}};
  static const char *no[][2] = {{"", "a"},     {"a", ""},       {"a*", "ba"},    {"*c", "cb"},
                                {"a*c", "ab"}, {"abc", "abcd"}, {"abcd", "abc"}, {"a?c", "abc"}};
  for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++) assert_true(chi_glob(yes[i][0], yes[i][1]));
  for (size_t i = 0; i < sizeof no / sizeof no[0]; i++) assert_false(chi_glob(no[i][0], no[i][1]));
  char text[4097], pattern[41]; /* quadratic at worst, never exponential */
  memset(text, 'a', 4096);
  text[4096] = 0;
  for (int i = 0; i < 20; i++) memcpy(pattern + 2 * i, "*a", 2);
  pattern[39] = 'b';
  pattern[40] = 0;
  assert_false(chi_glob(pattern, text));
}

/* ---- random numbers ------------------------------------------------------------------------------------------ */
/* Philox4x32-10 once more, from the paper's formulas, checked against the published known answers. */
static void philox_ref(uint32_t ctr[4], uint32_t k0, uint32_t k1) {
  for (int r = 0; r < 10; r++) {
    uint64_t a = 0xD2511F53ull * ctr[0], b = 0xCD9E8D57ull * ctr[2];
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ ctr[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ ctr[3] ^ k1, (uint32_t)a};
    memcpy(ctr, next, sizeof next);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

static void rng_is_philox(void **state) {
  (void)state;
  uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u}, pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  philox_ref(zero, 0, 0);
  philox_ref(ones, ~0u, ~0u);
  philox_ref(pi, 0xa4093822, 0x299f31d0);
  static const uint32_t want[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                      {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                      {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  assert_memory_equal(zero, want[0], 16);
  assert_memory_equal(ones, want[1], 16);
  assert_memory_equal(pi, want[2], 16);
  assert_int_equal(chi_rng_u32(0, 0, 0, 0), want[0][0]);
  for (uint32_t i = 0; i < 1000; i++) {
    uint32_t ctr[4] = {i * 7919u, i * 104729u, i, 0};
    uint64_t seed = 0x9e3779b97f4a7c15u * i;
    philox_ref(ctr, (uint32_t)seed, (uint32_t)(seed >> 32));
    assert_int_equal(chi_rng_u32(seed, i, i * 104729u, i * 7919u), ctr[0]);
  }
}

static int compare_floats(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return x < y ? -1 : x > y;
}

static void rng_normals(void **state) {
  (void)state;
  enum { N = 100000 };
  float *x = malloc(N * sizeof *x);
  double sum = 0, sum2 = 0, sum4 = 0, neighbour = 0, d = 0;
  for (uint32_t i = 0; i < N; i++) x[i] = chi_rng_normal(7, 3, i / 512, i % 512);
  for (int i = 0; i < N; i++) {
    sum += x[i];
    sum2 += (double)x[i] * x[i];
    sum4 += pow(x[i], 4);
    if (i) neighbour += (double)x[i] * x[i - 1];
  }
  assert_true(fabs(sum / N) < 4 / sqrt(N));
  assert_true(fabs(sum2 / N - 1) < 4 * sqrt(2.0 / N));
  assert_true(fabs(sum4 / N - 3) < 4 * sqrt(96.0 / N));
  assert_true(fabs(neighbour / N) < 4 / sqrt(N));
  qsort(x, N, sizeof *x, compare_floats); /* Kolmogorov-Smirnov, p about 1e-6 */
  for (int i = 0; i < N; i++) {
    double f = 0.5 * erfc(-x[i] / sqrt(2)), lo = fabs(f - (double)i / N), hi = fabs(f - (i + 1.0) / N);
    d = fmax(d, fmax(lo, hi));
  }
  assert_true(d < 2.7 / sqrt(N));
  free(x);
  assert_true(chi_rng_normal(7, 3, 0, 0) == chi_rng_normal(7, 3, 0, 0));
  assert_true(chi_rng_normal(7, 3, 0, 0) != chi_rng_normal(7, 4, 0, 0));
  assert_true(chi_rng_normal(8, 3, 0, 0) != chi_rng_normal(7, 3, 0, 0));
}

/* ---- elementary functions: against long double libm, and their bits pinned ------------------------------------- */
static double ulps(double got, long double want) {
  double w = (double)want;
  double u = nextafter(fabs(w), HUGE_VAL) - fabs(w);
  return (double)(fabsl((long double)got - want) / u);
}

static double uniform(uint32_t i, uint32_t k, double lo, double hi) {
  return lo + (hi - lo) * (((double)chi_rng_u32(11, k, 0, i) + 0.5) * 0x1p-32);
}

static void math_is_accurate(void **state) {
  (void)state;
  double worst[5] = {0};
  for (uint32_t i = 0; i < 40000; i++) {
    double x = i % 2 ? uniform(i, 0, -708, 709.7) : uniform(i, 0, -1, 1);
    worst[0] = fmax(worst[0], ulps(chi_exp64(x), expl(x)));
    x = i % 2 ? exp(uniform(i, 1, -700, 700)) : uniform(i, 1, 0.5, 2);
    worst[1] = fmax(worst[1], ulps(chi_log64(x), logl(x)));
    x = i % 2 ? uniform(i, 2, -0x1p31, 0x1p31) : uniform(i, 2, -7, 7);
    double s, c;
    chi_sincos64(x, &s, &c);
    worst[2] = fmax(worst[2], ulps(s, sinl(x)));
    worst[3] = fmax(worst[3], ulps(c, cosl(x)));
    double base = exp(uniform(i, 3, -20, 20)), e = uniform(i, 4, -35, 35);
    worst[4] = fmax(worst[4], ulps(chi_pow64(base, e), powl(base, e)));
    e = -uniform(i, 5, 0, 1);
    worst[4] = fmax(worst[4], ulps(chi_pow64(10000.0, e), powl(10000.0, e)));
  }
  for (int i = 0; i < 5; i++) assert_true(worst[i] < 1.0); /* promised: 2 */
  for (int k = 1; k < 2000; k++) { /* arguments next to multiples of pi/2, where the reduction cancels most */
    double s, c, x = k * 1048583.0 * 1.57079632679489661923;
    if (x > 0x1p31) break;
    chi_sincos64(x, &s, &c);
    assert_true(ulps(s, sinl(x)) < 1.0 && ulps(c, cosl(x)) < 1.0);
  }
}

static void math_special_values(void **state) {
  (void)state;
  double s, c;
  assert_true(chi_exp64(0) == 1 && chi_exp64(-INFINITY) == 0 && chi_exp64(INFINITY) == INFINITY);
  assert_true(chi_exp64(710) == INFINITY && chi_exp64(-709) == 0 && isnan(chi_exp64(NAN)));
  assert_true(chi_log64(1) == 0 && chi_log64(0) == -INFINITY && chi_log64(-0.0) == -INFINITY);
  assert_true(isnan(chi_log64(-1)) && isnan(chi_log64(-INFINITY)) && isnan(chi_log64(NAN)));
  assert_true(chi_log64(INFINITY) == INFINITY);
  assert_true(ulps(chi_log64(0x1p-1074), logl(0x1p-1074L)) < 1);
  chi_sincos64(0, &s, &c);
  assert_true(s == 0 && c == 1);
  chi_sincos64(NAN, &s, &c);
  assert_true(isnan(s) && isnan(c));
  chi_sincos64(INFINITY, &s, &c);
  assert_true(isnan(s) && isnan(c));
  assert_true(chi_pow64(2, 0) == 1 && chi_pow64(1, INFINITY) == 1 && chi_pow64(2, 10) == 1024);
  assert_true(chi_pow64(2, 1e300) == INFINITY && chi_pow64(2, -1e300) == 0 && chi_pow64(0.5, INFINITY) == 0);
  assert_true(chi_pow64(0, 2) == 0 && chi_pow64(0, -1) == INFINITY && chi_pow64(INFINITY, -1) == 0);
}

static void hash_math(void *ud, int64_t i) {
  double v[6];
  uint32_t k = (uint32_t)i;
  v[0] = chi_exp64(uniform(k, 0, -745, 710));
  v[1] = chi_log64(chi_exp64(uniform(k, 1, -745, 709)));
  chi_sincos64(uniform(k, 2, -1e6, 1e6), &v[2], &v[3]);
  v[4] = chi_pow64(chi_exp64(uniform(k, 3, -20, 20)), uniform(k, 4, -40, 40));
  v[5] = chi_rng_normal(5, 6, 7, k);
  *(uint64_t *)ud = chi_fnv64(v, sizeof v, *(uint64_t *)ud);
}

static void math_bits_are_fixed(void **state) {
  (void)state;
  uint64_t plain = 0, flushed = 0;
  for (int64_t i = 0; i < 5000; i++) hash_math(&plain, i);
  chi_set_threads(1);
  chi_parallel_for(5000, hash_math, &flushed); /* flush-to-zero changes nothing */
  chi_set_threads(0);
  assert_true(plain == flushed);
  if (plain != MATH_HASH) fail_msg("hash 0x%016llxu: tables and random numbers changed", (unsigned long long)plain);
}

/* ---- hashes -------------------------------------------------------------------------------------------------- */
static void sha(char hex[65], const void *p, size_t n, size_t step) {
  chi_sha256 s;
  chi_sha256_init(&s);
  for (size_t i = 0; i < n; i += step) chi_sha256_add(&s, (const char *)p + i, n - i < step ? n - i : step);
  chi_sha256_hex(&s, hex);
}

static void sha256_known_answers(void **state) {
  (void)state;
  char hex[65], again[65];
  sha(hex, "", 0, 1);
  assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  sha(hex, "abc", 3, 3);
  assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  sha(hex, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, 56);
  assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  char *million = malloc(1000000);
  memset(million, 'a', 1000000);
  sha(hex, million, 1000000, 999);
  assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  for (size_t n = 0; n < 200; n++) { /* every split gives the same */
    sha(hex, million, n, n ? n : 1);
    for (size_t step = 1; step < 70; step += 9) {
      sha(again, million, n, step);
      assert_string_equal(hex, again);
    }
  }
  free(million);
  assert_true(chi_fnv64("a", 1, 0) == 0xaf63dc4c8601ec8cu);
  assert_true(chi_fnv64("foobar", 6, 0) == 0x85944171f73967e8u);
  assert_true(chi_fnv64("bar", 3, chi_fnv64("foo", 3, 0)) == 0x85944171f73967e8u);
}

/* ---- threads ------------------------------------------------------------------------------------------------- */
typedef struct counts {
  atomic_int *hits;
  atomic_int bad;
  int64_t n;
  int width;
} counts;

static void count_one(void *ud, int64_t i) {
  counts *c = ud;
  if (i < 0 || i >= c->n || chi_thread_index() < 0 || chi_thread_index() >= c->width) {
    atomic_fetch_add(&c->bad, 1);
  } else {
    atomic_fetch_add(&c->hits[i], 1);
  }
}

static void each_index_once(void **state) {
  (void)state;
  static const int widths[] = {1, 2, 3, 5, 8};
  static const int64_t sizes[] = {0, 1, 2, 7, 31, 1000, 20011};
  atomic_int *hits = malloc(20011 * sizeof *hits);
  for (size_t w = 0; w < 5; w++) {
    chi_set_threads(widths[w]);
    assert_int_equal(chi_threads(), widths[w]);
    for (int repeat = 0; repeat < 20; repeat++) {
      for (size_t s = 0; s < 7; s++) {
        counts c = {.hits = hits, .n = sizes[s], .width = widths[w]};
        memset((void *)hits, 0, 20011 * sizeof *hits);
        chi_parallel_for(sizes[s], count_one, &c);
        assert_int_equal(c.bad, 0);
        for (int64_t i = 0; i < sizes[s]; i++) assert_int_equal(hits[i], 1);
      }
    }
  }
  free(hits);
  chi_set_threads(0);
  assert_true(chi_threads() >= 1);
  assert_int_equal(chi_thread_index(), 0);
}

static void sum_inner(void *ud, int64_t i) { ((int64_t *)ud)[0] += i; /* serial when nested: no atomics needed */ }

static void sum_outer(void *ud, int64_t i) {
  int64_t inner = 0;
  chi_parallel_for(100, sum_inner, &inner);
  chi_set_threads(2); /* ignored inside a job */
  ((int64_t *)ud)[i] = inner + chi_threads() * 1000000;
}

static void nested_runs_serially(void **state) {
  (void)state;
  int64_t sums[64] = {0};
  chi_set_threads(4);
  chi_parallel_for(64, sum_outer, sums);
  for (int i = 0; i < 64; i++) assert_int_equal(sums[i], 4950 + 4000000);
  chi_set_threads(0);
}

static float denormal_result(void) {
  volatile float tiny = 0x1p-126f, half = 0.5f;
  return tiny * half;
}

static float denormal_input(void) {
  volatile float denormal = 0x1p-149f, big = 0x1p100f;
  return denormal * big;
}

static void try_denormals(void *ud, int64_t i) {
  ((float *)ud)[2 * i] = denormal_result();
  ((float *)ud)[2 * i + 1] = denormal_input();
}

static void denormals_are_zero_inside_only(void **state) {
  (void)state;
#if defined(__x86_64__) || defined(__aarch64__)
  for (int width = 1; width <= 4; width += 3) {
    float r[512];
    for (int i = 0; i < 512; i++) r[i] = -1;
    chi_set_threads(width);
    chi_parallel_for(256, try_denormals, r);
    for (int i = 0; i < 512; i++) assert_true(r[i] == 0);
    assert_true(denormal_result() > 0 && denormal_input() > 0);
    r[0] = -1;
    chi_parallel_for(1, try_denormals, r);
    assert_true(r[0] == 0);
    assert_true(denormal_result() > 0);
  }
  chi_set_threads(0);
#else
  skip();
#endif
}

static void *host_thread(void *arg) {
  (void)arg;
  for (int repeat = 0; repeat < 200; repeat++) {
    atomic_int hits[50] = {0};
    counts c = {.hits = hits, .n = 50, .width = 3};
    chi_parallel_for(50, count_one, &c);
    for (int i = 0; i < 50; i++) {
      if (hits[i] != 1) return (void *)1;
    }
  }
  return NULL;
}

static void several_host_threads(void **state) {
  (void)state;
  pthread_t t[3];
  chi_set_threads(3);
  for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, host_thread, NULL), 0);
  for (int i = 0; i < 3; i++) {
    void *bad;
    pthread_join(t[i], &bad);
    assert_null(bad);
  }
  chi_set_threads(0);
}

static void forked_child_works(void **state) {
  (void)state;
  chi_set_threads(3);
  assert_null(host_thread(NULL));
  pid_t pid = fork();
  if (pid == 0) _exit(host_thread(NULL) ? 1 : 0);
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  chi_set_threads(0);
}

/* ---- log and progress ---------------------------------------------------------------------------------------- */
static void keep_line(void *ud, chi_log_level level, const char *line) { snprintf(ud, 64, "%d %s", (int)level, line); }

static int stop_at_five(void *ud, const char *what, int64_t done, int64_t total) {
  (void)what;
  (void)total;
  *(int64_t *)ud = done;
  return done >= 5;
}

static void log_and_progress(void **state) {
  (void)state;
  char line[64] = "";
  chi_log(CHI_LOG_WARN, "nobody listens");
  chi_set_log(keep_line, line);
  chi_log(CHI_LOG_WARN, "%s\nb", "a");
  assert_string_equal(line, "1 a?b");
  chi_set_log(NULL, NULL);
  int64_t seen = 0;
  assert_int_equal(chi_progress("x", 1, 9, NULL), 0);
  chi_set_progress(stop_at_five, &seen);
  assert_works(chi_progress("tracing", 4, 9, err));
  assert_fails(chi_progress("tracing", 5, 9, err), CHI_ERR_CANCELLED, "tracing: 5 of 9");
  assert_int_equal(seen, 5);
  chi_set_progress(NULL, NULL);
}

/* ---- dtypes: oracle in double arithmetic --------------------------------------------------------------------- */
static float decode_ref(uint16_t x, int exp_bits, int frac_bits) {
  int e = x >> frac_bits & ((1 << exp_bits) - 1), f = x & ((1 << frac_bits) - 1), bias = (1 << (exp_bits - 1)) - 1;
  double v;
  if (e == (1 << exp_bits) - 1) {
    v = f ? NAN : INFINITY;
  } else {
    v = e ? ldexp(1 + ldexp(f, -frac_bits), e - bias) : ldexp(f, 1 - bias - frac_bits);
  }
  return (float)(x >> 15 ? -v : v);
}

/* The bits of |v| rounded to nearest even, by the definition of the format. */
static uint16_t encode_ref(float v, int exp_bits, int frac_bits) {
  double a = fabs((double)v);
  int bias = (1 << (exp_bits - 1)) - 1, e;
  uint16_t sign = signbit(v) ? 0x8000 : 0;
  if (a == 0) return sign;
  frexp(a, &e);
  e -= 1;
  if (e < 1 - bias) e = 1 - bias;
  double steps = nearbyint(ldexp(a, frac_bits - e)); /* in units of the last place at exponent e */
  uint32_t code = (uint32_t)(e + bias - 1) << frac_bits;
  code = e == 1 - bias && steps < ldexp(1, frac_bits) ? (uint32_t)steps : code + (uint32_t)steps;
  uint32_t inf = ((1u << exp_bits) - 1) << frac_bits;
  return (uint16_t)(sign | (code > inf ? inf : code));
}

static float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

static void half_types_decode(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 65536; i++) {
    float h = chi_f32_from_f16((uint16_t)i), hr = decode_ref((uint16_t)i, 5, 10);
    float b = chi_f32_from_bf16((uint16_t)i), br = decode_ref((uint16_t)i, 8, 7);
    assert_true(isnan(hr) ? isnan(h) : memcmp(&h, &hr, 4) == 0);
    assert_true(isnan(br) ? isnan(b) : memcmp(&b, &br, 4) == 0);
    if (!isnan(hr)) assert_int_equal(chi_f16_from_f32(h), i);
    if (!isnan(br)) assert_int_equal(chi_bf16_from_f32(b), i);
    if (isnan(hr)) assert_true(isnan(chi_f32_from_f16(chi_f16_from_f32(h))));
    if (isnan(br)) assert_true(isnan(chi_f32_from_bf16(chi_bf16_from_f32(b))));
  }
}

static void half_types_encode(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 400000; i++) {
    uint32_t u = chi_rng_u32(1, 2, 3, i);
    if (i % 4 == 1) u = (u & 0xFFFFE000u) | 0x1000u;          /* ties of f16 */
    if (i % 4 == 2) u = (u & 0xFFFF0000u) | 0x8000u;          /* ties of bf16 */
    if (i % 4 == 3) u = 0x33000000u - 4096u + u % 0x5000000u; /* f16's subnormals */
    float x = float_of(u);
    if (isnan(x)) continue;
    assert_int_equal(chi_f16_from_f32(x), encode_ref(x, 5, 10));
    assert_int_equal(chi_bf16_from_f32(x), encode_ref(x, 8, 7));
  }
  for (uint32_t low = 1; low < 0x800000u; low = low * 2 + 1) { /* a NaN whose payload would be cut off stays NaN */
    assert_true(isnan(chi_f32_from_bf16(chi_bf16_from_f32(float_of(0x7F800000u | low)))));
    assert_true(isnan(chi_f32_from_f16(chi_f16_from_f32(float_of(0x7F800000u | low)))));
  }
}

static void dtype_tables(void **state) {
  (void)state;
  chi_dtype t;
  for (int i = 0; i < CHI_DTYPE_COUNT; i++) {
    assert_works(chi_dtype_parse(&t, chi_dtype_name((chi_dtype)i), err));
    assert_int_equal(t, i);
    assert_in_range(chi_dtype_size((chi_dtype)i), 1, 8);
  }
  assert_fails(chi_dtype_parse(&t, "F8_E4M3", err), CHI_ERR_UNSUPPORTED, "F8_E4M3");
  assert_int_equal(chi_dtype_size((chi_dtype)99), 0);
  unsigned char raw[1 + 3 * 8];
  double d[3] = {1.5, -2.25, 1e-3};
  float f[3];
  memcpy(raw + 1, d, sizeof d); /* unaligned on purpose */
  assert_works(chi_to_f32(f, raw + 1, CHI_F64, 3, err));
  assert_true(f[0] == 1.5f && f[1] == -2.25f && f[2] == 1e-3f);
  uint16_t b[3] = {0x3fc0, 0xc010, 0x0001};
  memcpy(raw + 1, b, sizeof b);
  assert_works(chi_to_f32(f, raw + 1, CHI_BF16, 3, err));
  assert_true(f[0] == 1.5f && f[1] == -2.25f && f[2] == 0x1p-133f);
  assert_fails(chi_to_f32(f, raw, CHI_I32, 1, err), CHI_ERR_UNSUPPORTED, "I32");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(errors_first_wins),
      cmocka_unit_test(errors_are_one_clean_line),
      cmocka_unit_test(errors_truncate_between_characters),
      cmocka_unit_test(arena_gives_aligned_zeroed_memory),
      cmocka_unit_test(memory_sizes_are_checked),
      cmocka_unit_test(grow_keeps_contents),
      cmocka_unit_test(strings_grow),
      cmocka_unit_test(globs),
      cmocka_unit_test(rng_is_philox),
      cmocka_unit_test(rng_normals),
      cmocka_unit_test(math_is_accurate),
      cmocka_unit_test(math_special_values),
      cmocka_unit_test(math_bits_are_fixed),
      cmocka_unit_test(sha256_known_answers),
      cmocka_unit_test(each_index_once),
      cmocka_unit_test(nested_runs_serially),
      cmocka_unit_test(denormals_are_zero_inside_only),
      cmocka_unit_test(several_host_threads),
      cmocka_unit_test(forked_child_works),
      cmocka_unit_test(log_and_progress),
      cmocka_unit_test(half_types_decode),
      cmocka_unit_test(half_types_encode),
      cmocka_unit_test(dtype_tables),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

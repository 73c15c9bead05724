/* Row operations: error bounds of the elementary functions against libm in double, the fixed lanes and tree of every
 * reduction, and the same bits on every instruction set, for odd widths, strides and numbers of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHI_LANES 1 /* tanh and erf have no public name */
#include "kernel/kernel.h"
#include "kernel/vmath.h"

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512-bf16", "amx"};

static uint64_t state = 3;
static float uniform(void) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (float)(state >> 40) * 0x1p-23f - 1.0f;
}
static float from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static void same_bits(const char *what, const float *got, const float *want, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (memcmp(got + i, want + i, sizeof *got) != 0 && !(isnan(got[i]) && isnan(want[i])))
      fail_msg("%s: element %lld is %a, want %a (%s)", what, (long long)i, (double)got[i], (double)want[i],
               chi_isa_name(chi_cpu_isa()));
}

/* Error of a float against the true value, in units of the last place of the true value. */
static double ulps(float got, double want) {
  double unit = ldexp(1.0, ilogb(want) - 23);
  return fabs((double)got - want) / unit;
}

static void test_exp(void **unused) {
  (void)unused;
  double worst = 0;
  for (float x = -87.3299f; x < 88.7228f; x += 0.00037f) worst = fmax(worst, ulps(chi_expf(x), exp((double)x)));
  assert_true(worst <= 1.0);
  assert_true(chi_expf(0.0f) == 1.0f && chi_expf(-0.0f) == 1.0f);
  assert_true(chi_expf(-88.0f) == 0.0f && chi_expf(-INFINITY) == 0.0f && chi_expf(-1e30f) == 0.0f);
  assert_true(chi_expf(INFINITY) == INFINITY && chi_expf(89.0f) == INFINITY && chi_expf(1e30f) == INFINITY);
  assert_true(isnan(chi_expf(NAN)));
}

static void test_exp64_row(void **unused) {
  (void)unused;
  enum { N = 1237 };
  static float x[N];
  double y[N];
  for (int i = 0; i < N; i++) x[i] = (i % 7 ? 30.0f : 900.0f) * (uniform() - uniform());
  const float odd[] = {0.0f, -0.0f, 1e-40f, NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 708.5f, -708.2f, -745.0f, 709.9f};
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) x[100 * i] = odd[i];
  for (size_t set = 0; set < 3; set++) {
    if (chi_cpu_init(isas[set], NULL) != 0) continue;
    for (int64_t n = 0; n <= N; n += n < 40 ? 1 : 399) {
      double shift = n % 3 ? 0.0 : 1.0 / 3;
      chi_exp64_row(y, x + (n % 5), shift, n - n % 5);
      for (int64_t i = 0; i < n - n % 5; i++) {
        double want = chi_exp64((double)x[i + n % 5] - shift);
        if (memcmp(&want, &y[i], sizeof want) != 0 && !(isnan(want) && isnan(y[i])))
          fail_msg("exp(%a - %a) is %a, want %a (%s)", (double)x[i + n % 5], shift, y[i], want, isas[set]);
      }
    }
  }
  chi_cpu_init(NULL, NULL);
}

/* Rounded products added in order, whatever the lanes. */
static void test_back_rows(void **unused) {
  (void)unused;
  enum { N = 77 };
  static float x[N][CHI_BACK_ROWS], v[4][N];
  const float *vs[4], *xs[4];
  for (int c = 0; c < N; c++) {
    for (int r = 0; r < CHI_BACK_ROWS; r++) x[c][r] = uniform() - uniform();
    for (int u = 0; u < 4; u++) v[u][c] = uniform() - uniform();
  }
  for (int u = 0; u < 4; u++) vs[u] = v[u], xs[u] = v[3 - u];
  for (size_t set = 0; set < 3; set++) {
    if (chi_cpu_init(isas[set], NULL) != 0) continue;
    for (int64_t n = 0; n <= N; n++) {
      float d[4][CHI_BACK_ROWS], y[N], want[N];
      const float s[4] = {0.3f, -1.7f, 1e-3f, 5.0f};
      chi_back_dots(d, x[0], vs, n);
      for (int u = 0; u < 4; u++)
        for (int r = 0; r < CHI_BACK_ROWS; r++) {
          float sum = 0;
          for (int64_t c = 0; c < n; c++) sum += x[c][r] * v[u][c];
          assert_memory_equal(&sum, &d[u][r], sizeof sum);
        }
      for (int c = 0; c < N; c++) want[c] = y[c] = x[c][0];
      chi_back_mix(y, xs, s, n);
      for (int64_t c = 0; c < n; c++)
        for (int u = 0; u < 4; u++) want[c] += s[u] * xs[u][c];
      assert_memory_equal(want, y, sizeof y);
    }
  }
  chi_cpu_init(NULL, NULL);
}

static void test_log(void **unused) {
  (void)unused;
  double worst = 0;
  for (uint32_t u = 0x00800000u; u < 0x7f800000u; u += 10007u) {
    float x = from_bits(u);
    if (x != 1.0f) worst = fmax(worst, ulps(chi_logf(x), log((double)x)));
  }
  for (float x = 0.5f; x < 2.0f; x += 3e-6f)
    if (x != 1.0f) worst = fmax(worst, ulps(chi_logf(x), log((double)x)));
  assert_true(worst <= 2.0);
  assert_true(chi_logf(1.0f) == 0.0f && chi_logf(0.0f) == -INFINITY && chi_logf(INFINITY) == INFINITY);
  assert_true(isnan(chi_logf(-1.0f)) && isnan(chi_logf(NAN)) && isnan(chi_logf(-INFINITY)));
}

static void test_tanh_erf(void **unused) {
  (void)unused;
  double worst_tanh = 0, worst_erf = 0;
  for (uint32_t u = 0x30000000u; u < 0x41400000u; u += 811u) { /* 4.7e-10 to 12 */
    float x = from_bits(u);
    worst_tanh = fmax(worst_tanh, ulps(v_tanh(x), tanh((double)x)));
    worst_erf = fmax(worst_erf, ulps(v_erf(x), erf((double)x)));
    assert_true(v_tanh(-x) == -v_tanh(x) && v_erf(-x) == -v_erf(x));
  }
  assert_true(worst_tanh <= 2.0);
  assert_true(worst_erf <= 2.0);
  assert_true(v_tanh(INFINITY) == 1.0f && v_erf(INFINITY) == 1.0f && v_erf(-1e30f) == -1.0f && v_tanh(-50.0f) == -1.0f);
  assert_true(isnan(v_tanh(NAN)) && isnan(v_erf(NAN)));
}

static double act_double(chi_act act, double x) {
  switch (act) {
    case CHI_ACT_SILU:
      return x / (1 + exp(-x));
    case CHI_ACT_QUICK_GELU:
      return x / (1 + exp(-(double)1.702f * x));
    case CHI_ACT_GELU_ERF:
      return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case CHI_ACT_GELU_TANH:
      return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case CHI_ACT_RELU:
      return x > 0 ? x : 0;
  }
  return NAN;
}

static void test_act_accuracy(void **unused) {
  (void)unused;
  for (int a = CHI_ACT_SILU; a <= CHI_ACT_RELU; a++) {
    double worst = 0;
    for (float x = -30.0f; x < 30.0f; x += 0.00171f) {
      float y;
      chi_act_rows((chi_act)a, &x, 1, NULL, 0, &y, 1, 1, 1);
      double want = act_double((chi_act)a, (double)x);
      /* For x < 0 the GELUs end in 1 - (almost 1), in torch too: relative to |x| there, to y elsewhere. */
      double scale = x < 0 && a != CHI_ACT_SILU ? fabs((double)x) : fabs(want);
      worst = fmax(worst, fabs((double)y - want) / fmax(scale, 1e-30));
    }
    assert_true(worst < 4.5e-7);
    float in[4] = {NAN, INFINITY, 0.0f, -0.0f}, out[4];
    chi_act_rows((chi_act)a, in, 4, NULL, 0, out, 4, 1, 4);
    assert_true(isnan(out[0]) && out[1] == INFINITY && out[2] == 0.0f && out[3] == 0.0f);
  }
}

/* Values that reach every branch of every function. */
static void fill(float *x, size_t n) {
  static const float special[] = {0.0f,  -0.0f, 1e-40f,   -1e-39f, 1e-30f, 87.5f,  -87.5f,    88.8f,  -103.0f,
                                  1e20f, -1e9f, INFINITY, NAN,     0.625f, 0.922f, -INFINITY, 0.345f, 3.95f};
  for (size_t i = 0; i < n; i++) {
    uint32_t pick = (uint32_t)(fabsf(uniform()) * 512.0f);
    x[i] = pick < sizeof special / sizeof *special ? special[pick] : uniform() * (pick % 3 == 0 ? 20.0f : 3.0f);
  }
}

/* What one width and stride does on the current instruction set, all results in one array. */
enum { M = 5, D = 203, PAD = 6, LD = D + PAD, OPS = 14 };
static void all_ops(float out[OPS][M * LD], const float *x, const float *u, int64_t d) {
  for (int i = 0; i < OPS; i++)
    for (int j = 0; j < M * LD; j++) out[i][j] = 0.25f;
  for (int a = 0; a < 5; a++) chi_act_rows((chi_act)a, x, LD, a % 2 ? u : NULL, LD, out[a], LD, M, d);
  chi_rmsnorm(u, LD, out[5], LD, M, d, u, 1e-5f);
  chi_layernorm(u, LD, out[6], LD, M, d, u, u + LD, 1e-5f);
  chi_rows_copy(out[7], LD, u, LD, M, d);
  chi_rows_axpy(out[7], LD, x, LD, M, d, 0.3f);
  chi_rows_copy(out[8], LD, x, LD, M, d);
  chi_rows_add(out[8], LD, u, LD, M, d);
  chi_rows_scale(out[8], LD, M, d, -1.7f);
  chi_rows_copy(out[9], LD, x, LD, M, d);
  chi_rows_round_bf16(out[9], LD, M, d);
  for (int r = 0; r < M; r++) {
    chi_rows_copy(out[10] + r * LD, LD, u + r * LD, LD, 1, d);
    chi_softmax(out[10] + r * LD, d);
    chi_softmax_stats(u + r * LD, d, &out[11][r * LD], &out[11][r * LD + 1]);
    out[12][r * LD] = chi_dot(u + r * LD, u, d);
    chi_softmax_stats(x + r * LD, d, &out[13][r * LD], &out[13][r * LD + 1]);
  }
}

static void test_same_bits(void **unused) {
  (void)unused;
  static float x[M * LD], u[(M + 1) * LD], want[OPS][M * LD], got[OPS][M * LD];
  for (int64_t d = 1; d <= D; d += d < 70 ? 1 : 13) {
    fill(x, M * LD);
    for (int i = 0; i < (M + 1) * LD; i++) u[i] = uniform() * 4.0f;
    u[0] = -0.0f;
    chi_cpu_init("portable", NULL);
    all_ops(want, x, u, d);
    for (size_t i = 1; i < 3; i++) {
      if (chi_cpu_init(isas[i], NULL) != 0) continue;
      all_ops(got, x, u, d);
      for (int o = 0; o < OPS; o++) same_bits("row operation", got[o], want[o], M * LD);
    }
  }
}

/* Lanes and tree as declared. */
static float tree(float *lanes) {
  for (int s = 16; s; s /= 2)
    for (int i = 0; i < s; i++) lanes[i] += lanes[i + s];
  return lanes[0];
}

static void test_norms(void **unused) {
  (void)unused;
  enum { N = 77 };
  float x[N], w[N], b[N], y[N];
  for (int i = 0; i < N; i++) x[i] = uniform() * 3, w[i] = uniform(), b[i] = uniform();
  for (size_t isa = 0; isa < 3; isa++) {
    if (chi_cpu_init(isas[isa], NULL) != 0) continue;
    float sq[32] = {0}, sum[32] = {0}, dev[32] = {0};
    for (int i = 0; i < N; i++) sq[i % 32] = fmaf(x[i], x[i], sq[i % 32]), sum[i % 32] += x[i];
    float r = 1.0f / sqrtf(tree(sq) / 77.0f + 1e-6f), mean = tree(sum) / 77.0f;
    for (int i = 0; i < N; i++) dev[i % 32] = fmaf(x[i] - mean, x[i] - mean, dev[i % 32]);
    float q = 1.0f / sqrtf(tree(dev) / 77.0f + 1e-6f);
    chi_rmsnorm(x, N, y, N, 1, N, w, 1e-6f);
    for (int i = 0; i < N; i++) assert_true(y[i] == x[i] * r * w[i]);
    chi_layernorm(x, N, y, N, 1, N, w, b, 1e-6f);
    for (int i = 0; i < N; i++) assert_true(y[i] == (x[i] - mean) * q * w[i] + b[i]);
    double m = 0, v = 0; /* and the plain definition */
    for (int i = 0; i < N; i++) m += (double)x[i] / N;
    for (int i = 0; i < N; i++) v += ((double)x[i] - m) * ((double)x[i] - m) / N;
    for (int i = 0; i < N; i++)
      assert_true(fabs((double)y[i] - (((double)x[i] - m) / sqrt(v + 1e-6) * (double)w[i] + (double)b[i])) < 2e-6);
  }
}

static void test_softmax(void **unused) {
  (void)unused;
  enum { N = 333 };
  float x[N], p[N], max, sum;
  double total = 0, z = 0;
  for (int i = 0; i < N; i++) p[i] = x[i] = uniform() * 10;
  chi_cpu_init(NULL, NULL);
  chi_softmax(p, N);
  chi_softmax_stats(x, N, &max, &sum);
  for (int i = 0; i < N; i++) z += exp((double)x[i]);
  for (int i = 0; i < N; i++) {
    total += (double)p[i];
    assert_true(fabs((double)p[i] - exp((double)x[i]) / z) < 1e-6 * exp((double)x[i]) / z + 1e-12);
    assert_true(fabs((double)(x[i] - max - chi_logf(sum)) - ((double)x[i] - log(z))) < 3e-6);
  }
  assert_true(fabs(total - 1) < 1e-5);
  for (size_t isa = 0; isa < 3; isa++) {
    if (chi_cpu_init(isas[isa], NULL) != 0) continue;
    for (int at = 0; at < N; at += 37) { /* one NaN spoils its row, also where everything else is -inf */
      for (int all = 0; all < 2; all++) {
        for (int i = 0; i < N; i++) p[i] = all ? -INFINITY : x[i];
        p[at] = NAN;
        chi_softmax(p, N);
        for (int i = 0; i < N; i++) assert_true(isnan(p[i]));
      }
    }
    for (int i = 0; i < N; i++) p[i] = -INFINITY;
    chi_softmax(p, N);
    for (int i = 0; i < N; i++) assert_true(p[i] == 0.0f);
  }
}

/* Half rotation on the first 2*half dims; positions by index; against doubles. */
static void test_rope(void **unused) {
  (void)unused;
  enum { HEADS = 3, HD = 20, HALF = 7, NPOS = 300, ROWS = 4, LDX = HEADS * HD + 3 };
  static float cos_t[NPOS * HALF], sin_t[NPOS * HALF], x[ROWS * LDX], y[ROWS * LDX];
  const int32_t pos[ROWS] = {0, 299, 17, 17};
  chi_rope_table(cos_t, sin_t, NPOS, HALF, 10000.0, 2.5);
  for (int i = 0; i < ROWS * LDX; i++) y[i] = x[i] = uniform();
  chi_rope_rows(y, LDX, ROWS, HEADS, HD, HALF, pos, cos_t, sin_t);
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < LDX; c++) {
      int h = c / HD, d = c % HD;
      float want = x[r * LDX + c];
      if (h < HEADS && d < 2 * HALF) {
        int i = d % HALF;
        double angle = pos[r] / 2.5 * pow(10000.0, -i / (double)HALF);
        double a = (double)x[r * LDX + h * HD + i], b = (double)x[r * LDX + h * HD + i + HALF];
        double v = d < HALF ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
        assert_true(fabs(v - (double)y[r * LDX + c]) < 3e-5); /* f32 angle at 120 radians */
      } else {
        assert_true(y[r * LDX + c] == want);
      }
    }
  for (int c = 0; c < LDX; c++) assert_true(y[c] == x[c]); /* position 0 rotates nothing */
}

/* Tables computed by transformers' own formulas in torch (tools/ref/kernel_fixtures.py). */
static void test_rope_like_torch(void **unused) {
  (void)unused;
  static const struct {
    double theta, factor;
    int pos, half, i;
    float c, s;
  } t[] = {
#include "fixtures/kernel/rope.inc"
  };
  for (size_t n = 0; n < sizeof t / sizeof *t; n++) {
    float *c = malloc(sizeof *c * (size_t)((t[n].pos + 1) * t[n].half));
    float *s = malloc(sizeof *s * (size_t)((t[n].pos + 1) * t[n].half));
    chi_rope_table(c, s, t[n].pos + 1, t[n].half, t[n].theta, t[n].factor);
    int at = t[n].pos * t[n].half + t[n].i;
    assert_true(fabsf(c[at] - t[n].c) < 2e-7f && fabsf(s[at] - t[n].s) < 2e-7f);
    free(c);
    free(s);
  }
}

static void test_act_like_torch(void **unused) {
  (void)unused;
  static const struct {
    float x, y[5]; /* silu, gelu, gelu tanh, quick gelu, relu */
  } t[] = {
#include "fixtures/kernel/act.inc"
  };
  for (size_t n = 0; n < sizeof t / sizeof *t; n++)
    for (int a = 0; a < 5; a++) {
      float y;
      chi_act_rows((chi_act)a, &t[n].x, 1, NULL, 0, &y, 1, 1, 1);
      assert_true(fabsf(y - t[n].y[a]) <= 1e-6f * fmaxf(1.0f, fabsf(t[n].y[a])));
    }
}

static void test_threads(void **unused) {
  (void)unused;
  enum { R = 300, W = 130 };
  static float x[R * W], want[R * W], y[R * W];
  for (int i = 0; i < R * W; i++) x[i] = uniform() * 5;
  chi_cpu_init(NULL, NULL);
  for (int t = 1; t <= 8; t++) {
    chi_set_threads(t);
    chi_act_rows(CHI_ACT_GELU_ERF, x, W, x, W, t == 1 ? want : y, W, R, W);
    chi_rmsnorm(t == 1 ? want : y, W, t == 1 ? want : y, W, R, W, x, 1e-5f); /* in place */
    if (t > 1) same_bits("threads", y, want, R * W);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_exp),       cmocka_unit_test(test_exp64_row),       cmocka_unit_test(test_back_rows),
      cmocka_unit_test(test_log),       cmocka_unit_test(test_tanh_erf),        cmocka_unit_test(test_act_accuracy),
      cmocka_unit_test(test_same_bits), cmocka_unit_test(test_norms),           cmocka_unit_test(test_softmax),
      cmocka_unit_test(test_rope),      cmocka_unit_test(test_rope_like_torch), cmocka_unit_test(test_act_like_torch),
      cmocka_unit_test(test_threads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Row operations: norms, activations, rotary embedding, copies, softmax. The parts that differ per instruction set are
 * in the table; the rest is plain multiplications and additions, the same bits however it is vectorised. */
#include <math.h>
#include <string.h>

#include "kernel/table.h"

/* ---- threading ------------------------------------------------------------------------------------------- */
enum { CHUNK_WORK = 1 << 14 };

typedef struct rows_job {
  int64_t m, chunk;
  chi_rows_fn fn;
  void *ud;
} rows_job;

static void rows_task(void *ud, int64_t i) {
  const rows_job *j = ud;
  j->fn(j->ud, i * j->chunk, chi_min64((i + 1) * j->chunk, j->m));
}

void chi_rows_parallel(int64_t m, int64_t work_per_row, chi_rows_fn fn, void *ud) {
  if (m <= 0) return;
  int64_t chunk = work_per_row > 0 ? CHUNK_WORK / work_per_row : m;
  if (chunk < 1) chunk = 1;
  if (chunk >= m) {
    unsigned saved = chi_fp_begin();
    fn(ud, 0, m);
    chi_fp_end(saved);
    return;
  }
  rows_job j = {.m = m, .chunk = chunk, .fn = fn, .ud = ud};
  chi_parallel_for(chi_ceil_div(m, chunk), rows_task, &j);
}

/* One argument block serves every row operation below. */
typedef struct rows_args {
  const float *x, *u, *w, *b;
  float *y;
  int64_t ldx, ldu, ldy, d;
  float s;
  chi_act act;
} rows_args;

/* ---- norms ----------------------------------------------------------------------------------------------- */
static void rmsnorm_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args a = *(const rows_args *)ud; /* a copy: stores to y cannot change it, so the loops vectorise */
  for (int64_t r = r0; r < r1; r++) {
    const float *x = a.x + r * a.ldx;
    float *y = a.y + r * a.ldy;
    float inv = 1.0f / sqrtf(chi_kernels->dot(x, x, a.d) / (float)a.d + a.s);
    for (int64_t i = 0; i < a.d; i++) y[i] = (x[i] * inv) * a.w[i];
  }
}

void chi_rmsnorm(const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, int64_t d, const float *w, float eps) {
  rows_args a = {.x = x, .ldx = ldx, .y = y, .ldy = ldy, .d = d, .w = w, .s = eps};
  chi_rows_parallel(m, d, rmsnorm_rows, &a);
}

static void layernorm_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args a = *(const rows_args *)ud;
  for (int64_t r = r0; r < r1; r++) {
    const float *x = a.x + r * a.ldx;
    float *y = a.y + r * a.ldy;
    float mean = chi_kernels->sum(x, a.d) / (float)a.d;
    float inv = 1.0f / sqrtf(chi_kernels->sqdev(x, mean, a.d) / (float)a.d + a.s);
    for (int64_t i = 0; i < a.d; i++) y[i] = ((x[i] - mean) * inv) * a.w[i] + a.b[i];
  }
}

void chi_layernorm(const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, int64_t d, const float *w,
                   const float *b, float eps) {
  rows_args a = {.x = x, .ldx = ldx, .y = y, .ldy = ldy, .d = d, .w = w, .b = b, .s = eps};
  chi_rows_parallel(m, 2 * d, layernorm_rows, &a);
}

/* ---- elementwise ----------------------------------------------------------------------------------------- */
static void act_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args *a = ud;
  for (int64_t r = r0; r < r1; r++)
    chi_kernels->act(a->act, a->x + r * a->ldx, a->u != NULL ? a->u + r * a->ldu : NULL, a->y + r * a->ldy, a->d);
}

void chi_act_rows(chi_act act, const float *x, int64_t ldx, const float *u, int64_t ldu, float *y, int64_t ldy,
                  int64_t m, int64_t d) {
  rows_args a = {.act = act, .x = x, .ldx = ldx, .u = u, .ldu = ldu, .y = y, .ldy = ldy, .d = d};
  chi_rows_parallel(m, 4 * d, act_rows, &a);
}

static void add_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args a = *(const rows_args *)ud;
  for (int64_t r = r0; r < r1; r++) {
    const float *x = a.x + r * a.ldx;
    float *y = a.y + r * a.ldy;
    for (int64_t i = 0; i < a.d; i++) y[i] += x[i];
  }
}

void chi_rows_add(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d) {
  rows_args a = {.x = x, .ldx = ldx, .y = y, .ldy = ldy, .d = d};
  chi_rows_parallel(m, d, add_rows, &a);
}

static void copy_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args *a = ud;
  for (int64_t r = r0; r < r1; r++) memcpy(a->y + r * a->ldy, a->x + r * a->ldx, (size_t)a->d * sizeof *a->y);
}

void chi_rows_copy(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d) {
  rows_args a = {.x = x, .ldx = ldx, .y = y, .ldy = ldy, .d = d};
  chi_rows_parallel(m, d, copy_rows, &a);
}

static void scale_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args a = *(const rows_args *)ud;
  for (int64_t r = r0; r < r1; r++) {
    float *y = a.y + r * a.ldy;
    for (int64_t i = 0; i < a.d; i++) y[i] *= a.s;
  }
}

void chi_rows_scale(float *y, int64_t ldy, int64_t m, int64_t d, float s) {
  rows_args a = {.y = y, .ldy = ldy, .d = d, .s = s};
  chi_rows_parallel(m, d, scale_rows, &a);
}

static void axpy_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args *a = ud;
  for (int64_t r = r0; r < r1; r++) chi_kernels->axpy(a->y + r * a->ldy, a->x + r * a->ldx, a->s, a->d);
}

void chi_rows_axpy(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t d, float s) {
  rows_args a = {.x = x, .ldx = ldx, .y = y, .ldy = ldy, .d = d, .s = s};
  chi_rows_parallel(m, d, axpy_rows, &a);
}

static void round_rows(void *ud, int64_t r0, int64_t r1) {
  const rows_args a = *(const rows_args *)ud;
  for (int64_t r = r0; r < r1; r++) {
    float *y = a.y + r * a.ldy;
    for (int64_t i = 0; i < a.d; i++) y[i] = chi_round_bf16(y[i]);
  }
}

void chi_rows_round_bf16(float *y, int64_t ldy, int64_t m, int64_t d) {
  rows_args a = {.y = y, .ldy = ldy, .d = d};
  chi_rows_parallel(m, d, round_rows, &a);
}

float chi_dot(const float *a, const float *b, int64_t d) {
  unsigned saved = chi_fp_begin();
  float v = chi_kernels->dot(a, b, d);
  chi_fp_end(saved);
  return v;
}

/* ---- rotary embedding ------------------------------------------------------------------------------------ */
typedef struct rope_args {
  float *x;
  int64_t ldx;
  int heads, hd, half;
  const int32_t *pos;
  const float *cos_t, *sin_t;
} rope_args;

static void rope_rows(void *ud, int64_t r0, int64_t r1) {
  const rope_args a = *(const rope_args *)ud;
  for (int64_t r = r0; r < r1; r++) {
    const float *c = a.cos_t + (int64_t)a.pos[r] * a.half, *s = a.sin_t + (int64_t)a.pos[r] * a.half;
    for (int h = 0; h < a.heads; h++) {
      float *lo = a.x + r * a.ldx + (int64_t)h * a.hd, *hi = lo + a.half;
      for (int i = 0; i < a.half; i++) {
        float p = lo[i], q = hi[i];
        lo[i] = p * c[i] - q * s[i];
        hi[i] = q * c[i] + p * s[i];
      }
    }
  }
}

void chi_rope_rows(float *x, int64_t ldx, int64_t m, int heads, int hd, int half, const int32_t *pos,
                   const float *cos_t, const float *sin_t) {
  rope_args a = {x, ldx, heads, hd, half, pos, cos_t, sin_t};
  chi_rows_parallel(m, (int64_t)heads * hd, rope_rows, &a);
}

/* Rounded to f32 where Hugging Face does: exponent, theta^e, its reciprocal, the division by the factor, the angle. */
float chi_rope_freq(int i, int half, double theta) {
  float e = (float)(2 * i) / (float)(2 * half);
  return 1.0f / (float)chi_pow64(theta, (double)e);
}

static void rope_column(float *cos_t, float *sin_t, int64_t npos, int half, int i, float inv_freq, float scale) {
  for (int64_t p = 0; p < npos; p++) {
    float angle = (float)p * inv_freq;
    double s, c;
    chi_sincos64((double)angle, &s, &c);
    cos_t[p * half + i] = (float)c * scale;
    sin_t[p * half + i] = (float)s * scale;
  }
}

void chi_rope_table_freq(float *cos_t, float *sin_t, int64_t npos, int half, const float *inv_freq, float scale) {
  for (int i = 0; i < half; i++) rope_column(cos_t, sin_t, npos, half, i, inv_freq[i], scale);
}

void chi_rope_table(float *cos_t, float *sin_t, int64_t npos, int half, double theta, double linear_factor) {
  for (int i = 0; i < half; i++)
    rope_column(cos_t, sin_t, npos, half, i, chi_rope_freq(i, half, theta) / (float)linear_factor, 1.0f);
}

/* ---- softmax --------------------------------------------------------------------------------------------- */
void chi_softmax_row(const chi_kernel_table *t, float *x, int64_t n) {
  float max = t->max(x, n);
  if (max == -INFINITY) {
    bool nan = false;
    for (int64_t i = 0; i < n; i++) nan = nan || x[i] != x[i];
    for (int64_t i = 0; i < n; i++) x[i] = nan ? NAN : 0.0f;
    return;
  }
  float sum = t->exp_sum(x, max, x, n);
  t->div(x, sum, n);
}

void chi_softmax_stats(const float *x, int64_t n, float *max, float *sum) {
  unsigned saved = chi_fp_begin();
  *max = chi_kernels->max(x, n);
  *sum = chi_kernels->exp_sum(x, *max, NULL, n);
  chi_fp_end(saved);
}

void chi_softmax(float *x, int64_t n) {
  unsigned saved = chi_fp_begin();
  chi_softmax_row(chi_kernels, x, n);
  chi_fp_end(saved);
}

void chi_back_dots(float d[4][CHI_BACK_ROWS], const float *x, const float *const v[4], int64_t n) {
  chi_kernels->dots4(d, x, v, n);
}

void chi_back_mix(float *y, const float *const x[4], const float s[4], int64_t n) { chi_kernels->mix4(y, x, s, n); }

void chi_exp64_row(double *y, const float *x, double shift, int64_t n) { chi_kernels->exp64(y, x, shift, n); }

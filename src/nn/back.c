/* Backward halves; see back.h. libm serves here: gradients are compared by size, never by bits across machines. */
#include "nn/back.h"

#include <math.h>
#include <string.h>

typedef struct norm_job {
  const chi_block_spec *s;
  const chi_norm *n;
  const float *x, *dy;
  float *dx;
  int64_t d;
} norm_job;

/* RMS: y = x r w, r = (mean x^2 + eps)^-1/2:  dx = r (w dy) - x r^3 / d sum(w dy x). LayerNorm: the same around
 * the mean. */
static void norm_row(void *ud, int64_t i) {
  const norm_job *j = ud;
  const float *x = j->x + i * j->d, *dy = j->dy + i * j->d;
  float *dx = j->dx + i * j->d;
  bool ln = j->s->norm == CHI_NORM_LAYER;
  double mean = 0, sq = 0, dot = 0, sum = 0, n = (double)j->d;
  for (int64_t k = 0; ln && k < j->d; k++) mean += (double)x[k];
  mean /= n;
  for (int64_t k = 0; k < j->d; k++) {
    double c = (double)x[k] - mean, g = (double)dy[k] * (double)j->n->w[k];
    sq += c * c;
    dot += g * c;
    sum += g;
  }
  double r = 1.0 / sqrt(sq / n + (double)j->s->eps), a = r * r * r * dot / n, b = ln ? r * sum / n : 0;
  for (int64_t k = 0; k < j->d; k++)
    dx[k] += (float)(r * (double)dy[k] * (double)j->n->w[k] - a * ((double)x[k] - mean) - b);
}

void chi_norm_back(const chi_block_spec *s, const chi_norm *n, const float *x, const float *dy, float *dx, int64_t m,
                   int64_t d, float *dw, float *db) {
  chi_parallel_for(m, norm_row, &(norm_job){s, n, x, dy, dx, d});
  for (int64_t i = 0; (dw || db) && i < m; i++) {
    const float *xi = x + i * d, *g = dy + i * d;
    double mean = 0, sq = 0;
    for (int64_t k = 0; s->norm == CHI_NORM_LAYER && k < d; k++) mean += (double)xi[k];
    mean /= (double)d;
    for (int64_t k = 0; k < d; k++) sq += ((double)xi[k] - mean) * ((double)xi[k] - mean);
    double r = 1.0 / sqrt(sq / (double)d + (double)s->eps);
    for (int64_t k = 0; k < d; k++) {
      if (dw) dw[k] += (float)((double)g[k] * ((double)xi[k] - mean) * r);
      if (db) db[k] += g[k];
    }
  }
}

/* act(x) and its derivative. */
static void act_pair(chi_act act, double x, double *y, double *dy) {
  switch (act) {
    case CHI_ACT_SILU:
    case CHI_ACT_QUICK_GELU: {
      double a = act == CHI_ACT_SILU ? 1.0 : 1.702, s = 1.0 / (1.0 + exp(-a * x));
      *y = x * s;
      *dy = s + a * x * s * (1.0 - s);
      break;
    }
    case CHI_ACT_GELU_ERF: {
      double c = 0.5 * (1.0 + erf(x * 0.70710678118654752));
      *y = x * c;
      *dy = c + x * 0.39894228040143268 * exp(-0.5 * x * x);
      break;
    }
    case CHI_ACT_GELU_TANH: {
      double u = 0.79788456080286536 * (x + 0.044715 * x * x * x), t = tanh(u);
      *y = 0.5 * x * (1.0 + t);
      *dy = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.79788456080286536 * (1.0 + 3 * 0.044715 * x * x);
      break;
    }
    case CHI_ACT_RELU:
      *y = x > 0 ? x : 0;
      *dy = x > 0;
      break;
  }
}

typedef struct act_job {
  chi_act act;
  const float *g, *u, *dy;
  float *dg, *du;
  int64_t d;
} act_job;

static void act_row(void *ud, int64_t i) {
  const act_job *j = ud;
  for (int64_t k = i * j->d; k < (i + 1) * j->d; k++) {
    double y = 0, dy = 0, d = (double)j->dy[k];
    act_pair(j->act, (double)j->g[k], &y, &dy);
    j->dg[k] = (float)(d * dy * (j->u ? (double)j->u[k] : 1.0));
    if (j->u) j->du[k] = (float)(d * y);
  }
}

void chi_act_back(chi_act act, const float *g, const float *u, const float *dy, float *dg, float *du, int64_t m,
                  int64_t d) {
  chi_parallel_for(m, act_row, &(act_job){act, g, u, dy, dg, du, d});
}

void chi_rope_back(float *dx, int64_t m, int heads, int hd, int half, const int32_t *pos, const float *cos_t,
                   const float *sin_t) {
  for (int64_t i = 0; i < m; i++) {
    const float *c = cos_t + (int64_t)pos[i] * half, *s = sin_t + (int64_t)pos[i] * half;
    for (int h = 0; h < heads; h++) {
      float *x = dx + (i * heads + h) * hd;
      for (int k = 0; k < half; k++) {
        float a = x[k], b = x[k + half];
        x[k] = a * c[k] + b * s[k];
        x[k + half] = b * c[k] - a * s[k];
      }
    }
  }
}

typedef struct weight_job {
  float *dw;
  const float *x, *dy;
  int64_t m, n, k;
} weight_job;

static void weight_row(void *ud, int64_t i) {
  const weight_job *j = ud;
  float *dw = j->dw + i * j->k;
  for (int64_t r = 0; r < j->m; r++) {
    float g = j->dy[r * j->n + i];
    const float *x = j->x + r * j->k;
    if (g == 0.0f) continue;
    for (int64_t k = 0; k < j->k; k++) dw[k] = fmaf(g, x[k], dw[k]);
  }
}

void chi_weight_back(float *dw, const float *x, const float *dy, int64_t m, int64_t n, int64_t k) {
  chi_parallel_for(n, weight_row, &(weight_job){dw, x, dy, m, n, k});
}

typedef struct attn_job {
  const float *q, *k, *v, *p, *dout;
  float *dq, *dk, *dv, *turned; /* turned: [kv_heads][hd][kRows] */
  int64_t m, T, first;
  int heads, kv_heads, hd;
  float scale;
} attn_job;

/* Rows of one query head that are carried together, and keys whose chains run side by side: a chain is still one row's
 * and one key's, its terms in the order of the columns. */
enum { kRows = 16, kKeys = 4 };
typedef struct attn_rows {
  const attn_job *j;
  int64_t i, n; /* rows [i, i + n) */
  int h, g;
  float (*turned)[kRows]; /* [hd]: dout, by column */
} attn_rows;

/* dp[u][r] = <dout row r, value t + u>, summed over the columns in order. */
static void value_dots(const attn_rows *a, int64_t t, float dp[kKeys][kRows]) {
  const attn_job *j = a->j;
  const float *v[kKeys];
  for (int u = 0; u < kKeys; u++) v[u] = j->v + ((t + u < j->T ? t + u : j->T - 1) * j->kv_heads + a->g) * j->hd;
  float d[kKeys][kRows] = {{0}};
  for (int c = 0; c < j->hd; c++)
    for (int u = 0; u < kKeys; u++)
      for (int r = 0; r < kRows; r++) d[u][r] += a->turned[c][r] * v[u][c];
  memcpy(dp, d, sizeof d);
}

static void attn_rows_back(attn_rows *a) {
  const attn_job *j = a->j;
  int64_t nq = (int64_t)j->heads * j->hd, nkv = (int64_t)j->kv_heads * j->hd;
  const float *p[kRows] = {NULL}, *o[kRows] = {NULL}, *q[kRows] = {NULL};
  float *dq[kRows] = {NULL}, dp[kKeys][kRows];
  double dot[kRows] = {0}; /* sum_t p_t dp_t */
  for (int64_t r = 0; r < a->n; r++) {
    int64_t at = (a->i + r) * nq + a->h * j->hd;
    p[r] = j->p + (a->h * j->m + a->i + r) * j->T;
    o[r] = j->dout + at;
    q[r] = j->q + at;
    dq[r] = j->dq + at;
    memset(dq[r], 0, (size_t)j->hd * sizeof(float));
    for (int c = 0; c < j->hd; c++) a->turned[c][r] = o[r][c];
  }
  for (int64_t t = 0; t < j->T; t += kKeys) {
    value_dots(a, t, dp);
    for (int64_t r = 0; r < a->n; r++)
      for (int64_t u = 0; u < kKeys && t + u < j->T; u++)
        if (p[r][t + u] != 0.0f) dot[r] += (double)p[r][t + u] * (double)dp[u][r];
  }
  for (int64_t t = 0; t < j->T; t++) {
    if (t % kKeys == 0) value_dots(a, t, dp);
    const float *k = j->k + t * nkv + a->g * j->hd;
    float *dv = j->dv + t * nkv + a->g * j->hd, *dk = j->dk + t * nkv + a->g * j->hd;
    for (int64_t r = 0; r < a->n; r++) {
      float w = p[r][t], ds = j->scale * w * (dp[t % kKeys][r] - (float)dot[r]), *to = dq[r];
      if (w == 0.0f) continue;
      for (int c = 0; c < j->hd; c++) to[c] += ds * k[c];
      for (int c = 0; t >= j->first && c < j->hd; c++) {
        dk[c] += ds * q[r][c];
        dv[c] += w * o[r][c];
      }
    }
  }
}

/* One key/value head and the query heads that read it: nobody else writes its slices of dk and dv. */
static void attn_head(void *ud, int64_t g) {
  const attn_job *j = ud;
  int group = j->heads / j->kv_heads;
  attn_rows a = {.j = j, .g = (int)g, .turned = (void *)(j->turned + g * j->hd * kRows)};
  for (a.h = (int)g * group; a.h < ((int)g + 1) * group; a.h++)
    for (a.i = 0; a.i < j->m; a.i += kRows) {
      a.n = j->m - a.i < kRows ? j->m - a.i : kRows;
      attn_rows_back(&a);
    }
}

int chi_attention_back(const float *q, const float *k, const float *v, const float *p, const float *dout, float *dq,
                       float *dk, float *dv, int64_t m, int64_t T, int64_t first, int heads, int kv_heads, int hd,
                       float scale, chi_err *err) {
  float *turned = chi_calloc((size_t)kv_heads * (size_t)hd * kRows, sizeof *turned, err);
  if (!turned) return CHI_ERR_MEMORY;
  attn_job j = {q, k, v, p, dout, dq, dk, dv, turned, m, T, first, heads, kv_heads, hd, scale};
  chi_parallel_for(kv_heads, attn_head, &j);
  chi_free(turned);
  return 0;
}

typedef struct pattern_job {
  const float *v, *p, *dout;
  float *dp;
  int64_t m, T;
  int heads, kv_heads, hd;
} pattern_job;

static void pattern_row(void *ud, int64_t k) {
  const pattern_job *j = ud;
  int64_t h = k / j->m, i = k % j->m, g = h / (j->heads / j->kv_heads);
  const float *o = j->dout + (i * j->heads + h) * j->hd;
  for (int64_t t = 0; t < j->T; t++) {
    const float *v = j->v + (t * j->kv_heads + g) * j->hd;
    float dp = 0;
    for (int c = 0; c < j->hd; c++) dp += o[c] * v[c];
    j->dp[k * j->T + t] = j->p[k * j->T + t] == 0.0f ? 0.0f : dp;
  }
}

void chi_pattern_back(const float *v, const float *p, const float *dout, float *dp, int64_t m, int64_t T, int heads,
                      int kv_heads, int hd) {
  chi_parallel_for(heads * m, pattern_row, &(pattern_job){v, p, dout, dp, m, T, heads, kv_heads, hd});
}

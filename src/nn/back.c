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

/* A piece of a row at a time, so that it is near while the rows of x go by. */
static void weight_row(void *ud, int64_t i) {
  enum { PIECE = 1024 };
  const weight_job *j = ud;
  for (int64_t k = 0; k < j->k; k += PIECE) {
    int64_t n = j->k - k < PIECE ? j->k - k : PIECE;
    for (int64_t r = 0; r < j->m; r++) {
      float g = j->dy[r * j->n + i];
      if (g != 0.0f) chi_rows_axpy(j->dw + i * j->k + k, n, j->x + r * j->k + k, n, 1, n, g);
    }
  }
}

void chi_weight_back(float *dw, const float *x, const float *dy, int64_t m, int64_t n, int64_t k) {
  chi_parallel_for(n, weight_row, &(weight_job){dw, x, dy, m, n, k});
}

static const float *row_of(const float *const part[3], const chi_attn_keys *a, int64_t t, int64_t nkv) {
  int i = t < a->end[0] ? 0 : t < a->end[1] ? 1 : 2;
  return part[i] + (t - (i ? a->end[i - 1] : 0)) * nkv;
}
const float *chi_key_row(const chi_attn_keys *a, int64_t t, int64_t nkv) { return row_of(a->k, a, t, nkv); }
const float *chi_value_row(const chi_attn_keys *a, int64_t t, int64_t nkv) { return row_of(a->v, a, t, nkv); }

enum { kRows = CHI_BACK_ROWS, kKeys = 4 };
typedef struct attn_job {
  const float *q, *p, *dout;
  chi_attn_keys keys;
  float *dq, *dk, *dv;
  float *turned, *dp; /* [kv_heads][hd][kRows], [kv_heads][T rounded up to kKeys][kRows] */
  int64_t m;
  int heads, kv_heads, hd;
  float scale;
} attn_job;

/* Rows of one query head that are carried together: a chain of additions is still one row's and one key's, its terms in
 * the order of the columns, or one row's and one column's, in the order of the keys. */
typedef struct attn_rows {
  const attn_job *j;
  int64_t i, n; /* rows [i, i + n) */
  int h, g;
  float (*turned)[kRows]; /* [hd]: dout, by column */
  float (*dp)[kRows];     /* [T]: d loss / d weight of each key */
  double dot[kRows];      /* sum_t p_t dp_t */
} attn_rows;

static const float *weights_of(const attn_rows *a, int64_t r) {
  return a->j->p + (a->h * a->j->m + a->i + r) * a->j->keys.end[2];
}
static float score_back(const attn_rows *a, int64_t r, int64_t t) {
  return a->j->scale * weights_of(a, r)[t] * (a->dp[t][r] - (float)a->dot[r]);
}

static void weights_back(attn_rows *a) {
  const attn_job *j = a->j;
  int64_t nq = (int64_t)j->heads * j->hd, nkv = (int64_t)j->kv_heads * j->hd, last = j->keys.end[2] - 1;
  for (int64_t r = 0; r < kRows; r++)
    for (int c = 0; c < j->hd; c++) a->turned[c][r] = r < a->n ? j->dout[(a->i + r) * nq + a->h * j->hd + c] : 0.0f;
  for (int64_t t = 0; t <= last; t += kKeys) {
    const float *v[kKeys];
    for (int u = 0; u < kKeys; u++) v[u] = chi_value_row(&j->keys, t + u < last ? t + u : last, nkv) + a->g * j->hd;
    chi_back_dots(a->dp + t, a->turned[0], v, j->hd);
  }
  for (int64_t r = 0; r < a->n; r++) {
    const float *p = weights_of(a, r);
    a->dot[r] = 0;
    for (int64_t t = 0; t <= last; t++)
      if (p[t] != 0.0f) a->dot[r] += (double)p[t] * (double)a->dp[t][r];
  }
}

/* One key's part of dq, and of dk and dv where it is live. */
static void key_back(const attn_rows *a, int64_t r, int64_t t) {
  const attn_job *j = a->j;
  int64_t nkv = (int64_t)j->kv_heads * j->hd, at = ((a->i + r) * j->heads + a->h) * j->hd;
  const float w = weights_of(a, r)[t], ds = score_back(a, r, t), *k = chi_key_row(&j->keys, t, nkv) + a->g * j->hd;
  if (w == 0.0f) return;
  for (int c = 0; c < j->hd; c++) j->dq[at + c] += ds * k[c];
  if (t < j->keys.end[1]) return;
  float *dk = j->dk + (t - j->keys.end[1]) * nkv + a->g * j->hd, *dv = j->dv + (dk - j->dk);
  for (int c = 0; c < j->hd; c++) {
    dk[c] += ds * j->q[at + c];
    dv[c] += w * j->dout[at + c];
  }
}

static void attn_rows_back(attn_rows *a) {
  const attn_job *j = a->j;
  int64_t nkv = (int64_t)j->kv_heads * j->hd, T = j->keys.end[2], t = 0;
  weights_back(a);
  for (int64_t r = 0; r < a->n; r++)
    memset(j->dq + ((a->i + r) * j->heads + a->h) * j->hd, 0, (size_t)j->hd * sizeof *j->dq);
  for (; t + kKeys <= j->keys.end[1]; t += kKeys) {
    const float *k[kKeys];
    for (int u = 0; u < kKeys; u++) k[u] = chi_key_row(&j->keys, t + u, nkv) + a->g * j->hd;
    for (int64_t r = 0; r < a->n; r++) {
      const float *p = weights_of(a, r) + t;
      float ds[kKeys];
      for (int u = 0; u < kKeys; u++) ds[u] = score_back(a, r, t + u);
      if (p[0] != 0.0f && p[1] != 0.0f && p[2] != 0.0f && p[3] != 0.0f)
        chi_back_mix(j->dq + ((a->i + r) * j->heads + a->h) * j->hd, k, ds, j->hd);
      else
        for (int u = 0; u < kKeys; u++) key_back(a, r, t + u);
    }
  }
  for (; t < T; t++)
    for (int64_t r = 0; r < a->n; r++) key_back(a, r, t);
}

/* One key/value head and the query heads that read it: nobody else writes its slices of dk and dv. */
static void attn_head(void *ud, int64_t g) {
  const attn_job *j = ud;
  int group = j->heads / j->kv_heads;
  int64_t padded = (j->keys.end[2] + kKeys - 1) / kKeys * kKeys;
  attn_rows a = {.j = j,
                 .g = (int)g,
                 .turned = (void *)(j->turned + g * j->hd * kRows),
                 .dp = (void *)(j->dp + g * padded * kRows)};
  for (a.h = (int)g * group; a.h < ((int)g + 1) * group; a.h++)
    for (a.i = 0; a.i < j->m; a.i += kRows) {
      a.n = j->m - a.i < kRows ? j->m - a.i : kRows;
      attn_rows_back(&a);
    }
}

int chi_attention_back(const float *q, const chi_attn_keys *keys, const float *p, const float *dout, float *dq,
                       float *dk, float *dv, int64_t m, int heads, int kv_heads, int hd, float scale, chi_err *err) {
  size_t turned = (size_t)kv_heads * (size_t)hd * kRows;
  size_t dp = (size_t)kv_heads * (size_t)((keys->end[2] + kKeys - 1) / kKeys * kKeys) * kRows;
  float *work = chi_calloc(turned + dp, sizeof *work, err);
  if (!work) return CHI_ERR_MEMORY;
  attn_job j = {q, p, dout, *keys, dq, dk, dv, work, work + turned, m, heads, kv_heads, hd, scale};
  chi_parallel_for(kv_heads, attn_head, &j);
  chi_free(work);
  return 0;
}

typedef struct pattern_job {
  const chi_attn_keys *keys;
  const float *p, *dout;
  float *dp;
  int64_t m;
  int heads, kv_heads, hd;
} pattern_job;

static void pattern_row(void *ud, int64_t k) {
  const pattern_job *j = ud;
  int64_t h = k / j->m, i = k % j->m, g = h / (j->heads / j->kv_heads), T = j->keys->end[2];
  const float *o = j->dout + (i * j->heads + h) * j->hd;
  for (int64_t t = 0; t < T; t++) {
    const float *v = chi_value_row(j->keys, t, (int64_t)j->kv_heads * j->hd) + g * j->hd;
    float dp = 0;
    for (int c = 0; c < j->hd; c++) dp += o[c] * v[c];
    j->dp[k * T + t] = j->p[k * T + t] == 0.0f ? 0.0f : dp;
  }
}

void chi_pattern_back(const chi_attn_keys *keys, const float *p, const float *dout, float *dp, int64_t m, int heads,
                      int kv_heads, int hd) {
  chi_parallel_for(heads * m, pattern_row, &(pattern_job){keys, p, dout, dp, m, heads, kv_heads, hd});
}

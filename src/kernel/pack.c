/* Packing weights once into panels of 32 outputs (docs/arithmetic.md has the picture), and reading them back. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* madvise */
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#include <xmmintrin.h>
#endif

#include "kernel/table.h"
#include "tensor/quant.h"

enum { HUGE_PAGE = 2 << 20, PACK_K = 32 };

static inline chi_bf16 to_bf16(float x) {
  float r = chi_round_bf16(x);
  uint32_t u;
  memcpy(&u, &r, sizeof u);
  return (chi_bf16)(u >> 16);
}

typedef struct pack_job {
  const chi_mat *m;
  const char *src; /* element (row0, k0) */
  chi_dtype dtype;
  int64_t ld;
  size_t size;          /* bytes of a source element */
  int64_t row0, k0, k1; /* what src holds: rows from row0, columns [k0, k1) */
} pack_job;

static const char *row_at(const pack_job *j, int64_t row, int64_t k) {
  return j->src + (size_t)((row - j->row0) * j->ld + k - j->k0) * j->size;
}

/* f32 compute, one panel: [k][32] in the store type; F64 sources are narrowed to F32. */
static void pack_wide(const pack_job *j, int64_t panel) {
  const chi_mat *m = j->m;
  int64_t rows = chi_min64(CHI_PANEL, m->n - panel * CHI_PANEL);
  size_t es = chi_dtype_size(m->store);
  char *dst = (char *)m->data + (size_t)panel * CHI_PANEL * (size_t)m->k * es;
  for (int64_t k0 = j->k0; k0 < j->k1; k0 += PACK_K) {
    int64_t kn = chi_min64(PACK_K, m->k - k0);
    char *out = dst + (size_t)k0 * CHI_PANEL * es;
    if (rows < CHI_PANEL) memset(out, 0, (size_t)(kn * CHI_PANEL) * es);
    for (int64_t r = 0; r < rows; r++) {
      const char *row = row_at(j, panel * CHI_PANEL + r, k0);
      float narrow[PACK_K];
      if (j->dtype == CHI_F64) {
        (void)chi_to_f32(narrow, row, CHI_F64, (size_t)kn, NULL);
        row = (const char *)narrow;
      }
      if (es == 4)
        for (int64_t k = 0; k < kn; k++) memcpy(out + (size_t)(k * CHI_PANEL + r) * 4, row + k * 4, 4);
      else
        for (int64_t k = 0; k < kn; k++) memcpy(out + (size_t)(k * CHI_PANEL + r) * 2, row + k * 2, 2);
    }
  }
}

/* bf16 compute, one panel: per 32 k two tiles of 16 outputs, [16 pairs][16][2], padded with zeros. */
static void pack_bf16(const pack_job *j, int64_t panel) {
  const chi_mat *m = j->m;
  int64_t rows = chi_min64(CHI_PANEL, m->n - panel * CHI_PANEL);
  int64_t kp = chi_ceil_div(m->k, 32) * 32;
  chi_bf16 *dst = (chi_bf16 *)m->data + panel * CHI_PANEL * kp;
  for (int64_t k0 = j->k0; k0 < j->k1; k0 += PACK_K) {
    int64_t kn = chi_min64(PACK_K, m->k - k0);
    chi_bf16 *out = dst + k0 * CHI_PANEL;
    if (rows < CHI_PANEL || kn < PACK_K) memset(out, 0, (size_t)PACK_K * CHI_PANEL * sizeof *out);
    for (int64_t r = 0; r < rows; r++) {
      const char *row = row_at(j, panel * CHI_PANEL + r, k0);
      chi_bf16 v[PACK_K];
      if (j->dtype == CHI_BF16) {
        memcpy(v, row, (size_t)kn * sizeof *v);
      } else {
        float wide[PACK_K];
        (void)chi_to_f32(wide, row, j->dtype, (size_t)kn, NULL);
        for (int64_t k = 0; k < kn; k++) v[k] = to_bf16(wide[k]);
      }
      for (int64_t k = 0; k < kn; k++) out[chi_bf16_at(r, k)] = v[k];
    }
  }
}

static void pack_panel(const pack_job *j, int64_t panel) {
  if (j->m->compute == CHI_COMPUTE_BF16)
    pack_bf16(j, panel);
  else
    pack_wide(j, panel);
}

/* Quantised blocks become f32 a tile of the panel at a time: the whole matrix is never there twice. */
static void pack_blocks(const pack_job *j, int64_t panel) {
  const chi_mat *m = j->m;
  float tile[CHI_PANEL][CHI_QUANT_LARGE];
  int64_t row0 = panel * CHI_PANEL, rows = chi_min64(CHI_PANEL, m->n - row0);
  pack_job t = {.m = m, .src = (const char *)tile, .dtype = CHI_F32, .ld = CHI_QUANT_LARGE, .size = 4, .row0 = row0};
  for (t.k0 = 0; t.k0 < m->k; t.k0 = t.k1) {
    t.k1 = chi_min64(m->k, t.k0 + CHI_QUANT_LARGE);
    for (int64_t r = 0; r < rows; r++) {
      const char *src = j->src + chi_dtype_bytes(j->dtype, (size_t)((row0 + r) * j->ld + t.k0));
      (void)chi_dequantize(tile[r], src, j->dtype, (size_t)(t.k1 - t.k0), NULL); /* whole blocks: checked before */
    }
    pack_panel(&t, panel);
  }
}

static void pack_task(void *ud, int64_t panel) {
  const pack_job *j = ud;
  if (chi_dtype_is_quant(j->dtype))
    pack_blocks(j, panel);
  else
    pack_panel(j, panel);
}

size_t chi_mat_bytes(int64_t n, int64_t k, chi_compute compute, chi_dtype store) {
  const int64_t limit = (int64_t)1 << 40;
  if (n < 1 || k < 1 || n > limit || k > limit) return 0;
  int64_t kp = compute == CHI_COMPUTE_BF16 ? chi_ceil_div(k, 32) * 32 : k;
  size_t panels = (size_t)chi_ceil_div(n, CHI_PANEL), per_panel = (size_t)kp * CHI_PANEL * chi_dtype_size(store);
  return panels > (SIZE_MAX / 2) / per_panel ? 0 : panels * per_panel;
}

int chi_mat_pack(chi_mat *out, const void *src, chi_dtype dtype, int64_t n, int64_t k, int64_t ld, chi_compute compute,
                 chi_err *err) {
  *out = (chi_mat){0};
  if (!chi_dtype_is_weight(dtype))
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "weight matrix: element type %s; need F32, F16, BF16, F64 or quantised blocks",
                    chi_dtype_name(dtype));
  const int64_t limit = (int64_t)1 << 40; /* keeps every product below in range */
  if (n < 1 || k < 1 || ld < k || n > limit || k > limit || ld > limit)
    return chi_fail(err, CHI_ERR_ARG, "weight matrix: %lld x %lld with row stride %lld is not a matrix", (long long)n,
                    (long long)k, (long long)ld);
  bool blocks = chi_dtype_is_quant(dtype);
  if (k % chi_dtype_block(dtype) != 0 || ld % chi_dtype_block(dtype) != 0)
    return chi_fail(err, CHI_ERR_ARG, "weight matrix: rows of %lld with stride %lld are not whole blocks of %s",
                    (long long)k, (long long)ld, chi_dtype_name(dtype));
  chi_mat m = {.n = n, .k = k, .compute = compute, .store = dtype == CHI_F64 || blocks ? CHI_F32 : dtype};
  int64_t kp = k, panels = chi_ceil_div(n, CHI_PANEL);
  if (compute == CHI_COMPUTE_BF16) {
    m.store = CHI_BF16;
    kp = chi_ceil_div(k, 32) * 32;
  }
  m.bytes = chi_mat_bytes(n, k, compute, m.store);
  if (m.bytes == 0)
    return chi_fail(err, CHI_ERR_MEMORY, "weight matrix: %lld x %lld is too large", (long long)n, (long long)k);
  size_t align = m.bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
  m.data = aligned_alloc(align, (m.bytes + align - 1) / align * align);
  if (m.data == NULL)
    return chi_fail(err, CHI_ERR_MEMORY, "weight matrix: no memory for %zu bytes (%lld x %lld)", m.bytes, (long long)n,
                    (long long)k);
#ifdef MADV_HUGEPAGE
  if (align == HUGE_PAGE) (void)madvise(m.data, m.bytes, MADV_HUGEPAGE); /* a wish; without it only slower */
#endif
  pack_job j = {.m = &m, .src = src, .dtype = dtype, .ld = ld, .size = chi_dtype_size(dtype), .k1 = kp};
  chi_parallel_for(panels, pack_task, &j);
  *out = m;
  return 0;
}

void chi_mat_free(chi_mat *m) {
  if (m == NULL) return;
  if (!m->borrowed) free(m->data);
  *m = (chi_mat){0};
}

void chi_mat_read(const chi_mat *m, int64_t n0, int64_t count, float *out) {
  int64_t kp = m->compute == CHI_COMPUTE_BF16 ? chi_ceil_div(m->k, 32) * 32 : m->k;
  for (int64_t n = n0; n < n0 + count; n++, out += m->k) {
    int64_t r = n % CHI_PANEL;
    size_t base = (size_t)(n / CHI_PANEL) * CHI_PANEL * (size_t)kp;
    for (int64_t k = 0; k < m->k; k++) {
      if (m->compute == CHI_COMPUTE_BF16)
        out[k] = chi_f32_from_bf16(((const chi_bf16 *)m->data)[base + chi_bf16_at(r, k)]);
      else if (m->store == CHI_F32)
        out[k] = ((const float *)m->data)[base + (size_t)(k * CHI_PANEL + r)];
      else if (m->store == CHI_BF16)
        out[k] = chi_f32_from_bf16(((const chi_bf16 *)m->data)[base + (size_t)(k * CHI_PANEL + r)]);
      else
        out[k] = chi_f32_from_f16(((const uint16_t *)m->data)[base + (size_t)(k * CHI_PANEL + r)]);
    }
  }
}

/* ---- rows side by side ----------------------------------------------------------------------------------- */
static void interleave_four(float *out, int64_t lda, const float *const src[4], int64_t k) {
  int64_t i = 0;
#if defined(__SSE2__)
  for (; i + 4 <= k; i += 4) {
    __m128 a = _mm_loadu_ps(src[0] + i), b = _mm_loadu_ps(src[1] + i);
    __m128 c = _mm_loadu_ps(src[2] + i), d = _mm_loadu_ps(src[3] + i);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out + i * lda, a);
    _mm_storeu_ps(out + (i + 1) * lda, b);
    _mm_storeu_ps(out + (i + 2) * lda, c);
    _mm_storeu_ps(out + (i + 3) * lda, d);
  }
#endif
  for (; i < k; i++)
    for (int r = 0; r < 4; r++) out[i * lda + r] = src[r][i];
}

void chi_interleave(float *out, int64_t lda, const float *const *rows, int64_t n, int64_t k, bool round) {
  enum { STEP = 256 };
  float rounded[4][STEP];
  for (int64_t k0 = 0; k0 < k; k0 += STEP) {
    int64_t kn = chi_min64(STEP, k - k0);
    float *o = out + k0 * lda;
    for (int64_t r = 0; r < n; r += 4) {
      const float *src[4];
      int64_t some = chi_min64(4, n - r);
      for (int64_t i = 0; i < some; i++) {
        src[i] = rows[r + i] + k0;
        if (!round) continue;
        for (int64_t c = 0; c < kn; c++) rounded[i][c] = chi_round_bf16(src[i][c]);
        src[i] = rounded[i];
      }
      if (some == 4)
        interleave_four(o + r, lda, src, kn);
      else
        for (int64_t i = 0; i < some; i++)
          for (int64_t c = 0; c < kn; c++) o[c * lda + r + i] = src[i][c];
    }
  }
}

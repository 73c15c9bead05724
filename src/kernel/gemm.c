/* The threaded matrix product. A task owns a block of rows and a run of panels: it packs its rows once per K chunk
 * ([k][rows of a tile], in its own scratch) and carries them past the panels, so a panel is read once per row block.
 * Nothing here decides bits: the tiles do, and they see the K blocks of one output in ascending order always. */
#include <stdatomic.h>
#include <string.h>

#include "kernel/table.h"

static const int64_t kAhead = 8192;
enum {
  K_STEP = 512,                  /* K that all row tiles take past a panel at once: 64 KB of f32, from L1 or L2    */
  K_SHORT = 128,                 /* the same where only a few rows share a panel: 8 KB of bf16, the tiles' prefetch */
  ROW_BLOCK = 192,               /* a multiple of every mr                                                       */
  A_FLOATS = ROW_BLOCK * K_STEP, /* packed rows of a task, 384 KB: L2 keeps them                  */
  MAX_RUN = 16,                  /* most panels of a task; fewest is 2, below that packing rows would show       */
  SERIAL_MACS = 1 << 16,
};

typedef struct gemm_job {
  const chi_kernel_table *t;
  const chi_mat *w;
  bool transposed; /* x W instead of x W^T: the panels are transposed blocks, made on the fly */
  const float *x;
  int64_t ldx;
  const int32_t *idx;
  float *y;
  int64_t ldy, m;
  const float *bias;
  int64_t n, k; /* outputs and inputs of this product */
  int64_t mr, row_block, row_blocks, run;
  chi_bf16 *packed; /* [m][kp] as the tiles read them, or NULL: each task packs its rows */
  int64_t kp;
  atomic_int failed;
} gemm_job;

static inline const float *row_of(const gemm_job *j, int64_t i) {
  return j->x + (j->idx != NULL ? (int64_t)j->idx[i] : i) * j->ldx;
}

/* Columns of a packed matrix, with those that pad it. */
static inline int64_t padded_k(const chi_mat *w) {
  return w->compute == CHI_COMPUTE_BF16 ? chi_ceil_div(w->k, 32) * 32 : w->k;
}

/* Does this product's left side lie as rows of bf16, rather than as f32 columns of a tile? */
static inline bool packs_rows(const gemm_job *j) { return j->w->compute == CHI_COMPUTE_BF16 && j->t->row_bf16 != NULL; }

/* Rows [r0, r0+rows) of x, columns [k0, k0+kn) into out[kp][lda], or bf16 out[rows][kp]; bf16: rounded, and zeros from
 * kn to kp. */
static void pack_tile(const gemm_job *j, float *out, int64_t lda, int64_t r0, int64_t rows, int64_t k0, int64_t kn,
                      int64_t kp) {
  if (packs_rows(j)) {
    chi_bf16 *rows16 = (void *)out;
    for (int64_t r = 0; r < rows; r++) j->t->row_bf16(rows16 + r * kp, row_of(j, r0 + r) + k0, kn, kp);
    return;
  }
  const float *src[CHI_MR_MAX] = {NULL};
  for (int64_t r = 0; r < rows; r++) src[r] = row_of(j, r0 + r) + k0;
  chi_interleave(out, lda, src, rows, kn, j->w->compute == CHI_COMPUTE_BF16);
  for (int64_t k = kn; k < kp; k++)
    for (int64_t r = 0; r < rows; r++) out[k * lda + r] = 0.0f;
}

static void pack_row(void *ud, int64_t r) {
  const gemm_job *j = ud;
  j->t->row_bf16(j->packed + r * j->kp, row_of(j, r), j->k, j->kp);
}

/* Transposed products: rows [k0, k0+kn) of the packed matrix, columns of `panel`, in the layout that a tile reads. */
static void transpose_panel(const gemm_job *j, void *out, int64_t panel, int64_t k0, int64_t kn) {
  const chi_mat *w = j->w;
  if (w->compute == CHI_COMPUTE_BF16) {
    int64_t kp = padded_k(w);
    for (int64_t i0 = 0; i0 < kn; i0 += 32)
      j->t->turn_bf16((chi_bf16 *)out + i0 * 32, (const chi_bf16 *)w->data + (k0 + i0) * kp + panel * 1024);
    return;
  }
  int64_t cols = chi_min64(CHI_PANEL, w->k - panel * CHI_PANEL);
  size_t es = chi_dtype_size(w->store);
  float wide[CHI_PANEL * CHI_PANEL] = {0}; /* a block of 16-bit weights, or one that sticks out of W */
  for (int64_t i0 = 0; i0 < kn; i0 += 32) {
    const char *src = (const char *)w->data + (size_t)((k0 + i0) * w->k + panel * CHI_PANEL * CHI_PANEL) * es;
    const bool lies = w->store == CHI_F32 && cols == CHI_PANEL;
    if (w->store != CHI_F32)
      j->t->widen(wide, src, w->store, cols * CHI_PANEL);
    else if (!lies)
      memcpy(wide, src, (size_t)(cols * CHI_PANEL) * sizeof *wide);
    j->t->turn_f32((float *)out + i0 * CHI_PANEL, lies ? (const float *)(const void *)src : wide);
  }
}

/* What tiles ask for meanwhile. A product: the panel's own weights, kAhead bytes on (more tells little: at M = 4,
 * 4096 x 4096, none gives 12 GB/s, 2 KB 21, 4 KB 24, 8 KB 39, 16 KB 39 to 45). A transposed one: the same rows of the
 * next panel, whose blocks lie far apart, where no prefetcher of the hardware finds them. */
static chi_ahead ahead_of(const gemm_job *j, const char *b, int64_t panel, int64_t k0, int64_t tiles) {
  const chi_mat *w = j->w;
  int64_t kp = padded_k(w), es = (int64_t)chi_dtype_size(w->store);
  if (!j->transposed) return (chi_ahead){.at = b + kAhead, .step = 1024 * es, .tiles = 1};
  if ((panel + 1) * 32 >= kp) return (chi_ahead){.at = b, .step = 1024 * es, .tiles = 1};
  return (chi_ahead){
      .at = (const char *)w->data + es * (k0 * kp + (panel + 1) * 1024), .step = es * 32 * kp, .tiles = (int)tiles};
}

/* All row tiles of one block past columns [ks, ks+kn) of a packed chunk that starts at k0. Tile r is at a + r*kp. */
static void run_panel(const gemm_job *j, const float *a, int64_t r0, int64_t lda, int64_t rows, int64_t kp,
                      const char *b, chi_dtype store, int64_t k0, int64_t ks, int64_t kn, float *c, int64_t ldc,
                      chi_ahead ahead) {
  const int64_t line = CHI_PANEL * (int64_t)chi_dtype_size(store);
  for (int64_t r = 0; r < rows; r += lda) {
    int some = (int)chi_min64(lda, rows - r);
    const float *at = a + r * kp + ks * lda;
    const chi_bf16 *at16 = j->packed ? j->packed + (r0 + r) * j->kp + k0 + ks /* if they lie as rows of bf16 */
                                     : (const chi_bf16 *)(const void *)(a + r * kp) + ks;
    float *ct = c + r * ldc;
    if (j->w->compute == CHI_COMPUTE_BF16) {
      bool lie = packs_rows(j);
      j->t->tile_bf16(some, chi_ceil_div(kn, 32) * 32, lie ? (const void *)at16 : at,
                      lie ? (j->packed ? j->kp : kp) : lda, (const chi_bf16 *)(const void *)b, ct, ldc,
                      k0 + ks == 0 ? CHI_TILE_SET : CHI_TILE_ADD, &ahead);
    }
    for (int64_t kb = 0; kb < kn && j->w->compute != CHI_COMPUTE_BF16; kb += CHI_CHAIN) {
      chi_ahead next = chi_ahead_past(ahead, kb / 32);
      j->t->tile_f32[store](some, chi_min64(CHI_CHAIN, kn - kb), at + kb * lda, lda, b + kb * line, CHI_PANEL, ct, ldc,
                            k0 + ks + kb == 0 ? CHI_TILE_SET : CHI_TILE_ADD, &next);
    }
    if (ahead.tiles > 1) ahead.mine++;
  }
}

static const char *panel_at(const gemm_job *j, int64_t panel, int64_t k0) {
  const chi_mat *w = j->w;
  return (const char *)w->data + (size_t)((panel * padded_k(w) + k0) * CHI_PANEL) * chi_dtype_size(w->store);
}

/* Rows [k0, k0+kn) of a panel as the tiles read them. Rows of few registers spend more on widening 16-bit weights than
 * on multiplying; when several tiles will read the panel it is widened once, into `made`. */
static const char *ready_panel(const gemm_job *j, float *made, int64_t panel, int64_t k0, int64_t kn, bool many,
                               chi_dtype *store) {
  const bool half = j->w->compute == CHI_COMPUTE_F32 && j->w->store != CHI_F32;
  if (j->transposed) {
    transpose_panel(j, made, panel, k0, kn);
  } else if (half && many && j->mr < 8) {
    j->t->widen(made, panel_at(j, panel, k0), j->w->store, kn * CHI_PANEL);
  } else {
    return panel_at(j, panel, k0);
  }
  *store = CHI_F32; /* of no meaning to bf16 tiles */
  return (const char *)made;
}

static void finish_panel(const gemm_job *j, int64_t panel, int64_t r0, int64_t rows, const float *c, int64_t ldc) {
  int64_t n0 = panel * CHI_PANEL, cols = chi_min64(CHI_PANEL, j->n - n0);
  for (int64_t r = 0; r < rows; r++) {
    float *y = j->y + (r0 + r) * j->ldy + n0;
    if (c + r * ldc != y) memcpy(y, c + r * ldc, (size_t)cols * sizeof *y);
    if (j->bias != NULL)
      for (int64_t n = 0; n < cols; n++) y[n] += j->bias[n0 + n];
  }
}

static void gemm_task(void *ud, int64_t i) {
  gemm_job *j = ud;
  int64_t r0 = i % j->row_blocks * j->row_block, rows = chi_min64(j->row_block, j->m - r0);
  int64_t panels = chi_ceil_div(j->n, CHI_PANEL);
  int64_t p0 = i / j->row_blocks * j->run, p1 = chi_min64(p0 + j->run, panels);
  int64_t lda = chi_ceil_div(rows, chi_ceil_div(rows, j->mr)); /* 13 rows go as 7 + 6 */
  int64_t padded = chi_ceil_div(rows, lda) * lda;
  /* Few rows: pack all of K at once, so that the weights are one unbroken stream. */
  int64_t chunk = j->transposed ? K_STEP : A_FLOATS / padded / K_STEP * K_STEP;
  if (chunk < K_STEP) chunk = K_STEP;
  chunk = chi_min64(chunk, chi_ceil_div(j->k, K_STEP) * K_STEP);
  size_t a_len = j->packed ? 0 : (size_t)(padded * chunk), edge_len = (size_t)(rows * CHI_PANEL);
  float *a = chi_scratch((a_len + edge_len + (size_t)K_STEP * CHI_PANEL) * sizeof *a);
  if (a == NULL) {
    atomic_store(&j->failed, 1);
    return;
  }
  float *edge = a + a_len, *made = edge + edge_len; /* the panel that sticks out of y; a transposed or widened panel */
  /* Two to four tiles: short steps, so that the weights of the next come in while the later tiles multiply. */
  const bool half = j->w->compute == CHI_COMPUTE_BF16, few = half && rows <= 4 * lda && (rows > lda || j->transposed);
  const int64_t most = few ? K_SHORT : K_STEP;
  for (int64_t k0 = 0; k0 < j->k; k0 += chunk) {
    int64_t kn = chi_min64(chunk, j->k - k0);
    int64_t kp = j->w->compute == CHI_COMPUTE_BF16 ? chi_ceil_div(kn, 32) * 32 : kn;
    for (int64_t r = 0; r < rows && !j->packed; r += lda)
      pack_tile(j, a + r * kp, lda, r0 + r, chi_min64(lda, rows - r), k0, kn, kp);
    for (int64_t p = p0; p < p1; p++) {
      bool whole = (p + 1) * CHI_PANEL <= j->n;
      float *c = whole ? j->y + r0 * j->ldy + p * CHI_PANEL : edge;
      int64_t ldc = whole ? j->ldy : CHI_PANEL;
      for (int64_t ks = 0; ks < kn; ks += most) {
        int64_t step = chi_min64(most, kn - ks);
        chi_dtype store = j->w->store;
        const char *b = ready_panel(j, made, p, k0 + ks, step, rows > 2 * lda, &store);
        run_panel(j, a, r0, lda, rows, kp, b, store, k0, ks, step, c, ldc,
                  ahead_of(j, b, p, k0 + ks, chi_ceil_div(rows, lda)));
      }
      if (k0 + kn == j->k) finish_panel(j, p, r0, rows, c, ldc);
    }
  }
}

static int gemm_run(gemm_job *j, chi_err *err) {
  if (j->m <= 0) return 0;
  j->t = chi_kernels;
  j->mr = j->w->compute == CHI_COMPUTE_BF16 ? j->t->mr_bf16 : j->t->mr_f32;
  int64_t panels = chi_ceil_div(j->n, CHI_PANEL);
  int64_t blocks = chi_ceil_div(j->m, ROW_BLOCK);
  j->row_block = chi_ceil_div(chi_ceil_div(j->m, blocks), j->mr) * j->mr;
  j->row_blocks = chi_ceil_div(j->m, j->row_block);
  int threads = chi_threads();
  int64_t runs = threads > 1 ? chi_ceil_div(4 * (int64_t)threads, j->row_blocks) : 1;
  j->run = chi_ceil_div(panels, runs);
  if (j->run < 2) j->run = 2;
  if (j->run > MAX_RUN) j->run = MAX_RUN;
  int64_t tasks = chi_ceil_div(panels, j->run) * j->row_blocks;
  if (packs_rows(j) && tasks > 2 * j->row_blocks) { /* else they would be packed by each task of a row block */
    j->kp = chi_ceil_div(j->k, 32) * 32;
    j->packed = chi_scratch_shared((size_t)(j->m * j->kp) * sizeof *j->packed);
    if (j->packed) chi_parallel_for(j->m, pack_row, j);
  }
  if (tasks == 1 || (double)j->m * (double)j->n * (double)j->k < SERIAL_MACS) {
    unsigned saved = chi_fp_begin();
    for (int64_t i = 0; i < tasks; i++) gemm_task(j, i);
    chi_fp_end(saved);
  } else {
    chi_parallel_for(tasks, gemm_task, j);
  }
  if (atomic_load(&j->failed)) return chi_fail(err, CHI_ERR_MEMORY, "matrix product: no memory for scratch");
  return 0;
}

int chi_gemm_gather(const chi_mat *w, const float *x, int64_t ldx, const int32_t *idx, float *y, int64_t ldy, int64_t m,
                    const float *bias, chi_err *err) {
  gemm_job j = {.w = w, .x = x, .ldx = ldx, .idx = idx, .y = y, .ldy = ldy, .m = m, .bias = bias, .n = w->n, .k = w->k};
  return gemm_run(&j, err);
}

int chi_gemm(const chi_mat *w, const float *x, int64_t ldx, float *y, int64_t ldy, int64_t m, const float *bias,
             chi_err *err) {
  return chi_gemm_gather(w, x, ldx, NULL, y, ldy, m, bias, err);
}

int chi_gemm_t(const chi_mat *w, const float *dy, int64_t lddy, float *dx, int64_t lddx, int64_t m, chi_err *err) {
  gemm_job j = {.w = w, .transposed = true, .x = dy, .ldx = lddy, .y = dx, .ldy = lddx, .m = m, .n = w->k, .k = w->n};
  return gemm_run(&j, err);
}

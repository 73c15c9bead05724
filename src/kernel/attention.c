/* Attention over blocks of 32 keys. Up to ROWS rows (query x head of one kv group) are carried past the blocks
 * together; where their block tables point at the same block, tiles of up to mr rows read it from the first cache. The
 * tasks of one head follow each other, so that a prefix shared by many branches is loaded once.
 * K blocks [hd][32] and V blocks [32][hd] are already in the layout that the product tiles read. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "kernel/table.h"

enum { BLOCK = CHI_KV_BLOCK, CHAIN_BLOCKS = CHI_CHAIN / CHI_KV_BLOCK, SERIAL_MACS = 1 << 15, ROWS = 24 };

void chi_kv_put(float *kblock, float *vblock, const float *k, const float *v, int slot, int kv_heads, int hd,
                chi_compute compute) {
  const bool round = compute == CHI_COMPUTE_BF16;
  for (int h = 0; h < kv_heads; h++) {
    float *kb = kblock + (size_t)h * (size_t)hd * BLOCK + slot;
    float *vb = vblock + ((size_t)h * BLOCK + (size_t)slot) * (size_t)hd;
    for (int d = 0; d < hd; d++, k++, v++) {
      kb[(size_t)d * BLOCK] = round ? chi_round_bf16(*k) : *k;
      vb[d] = round ? chi_round_bf16(*v) : *v;
    }
  }
}

void chi_kv_get(const float *kblock, const float *vblock, float *k, float *v, int slot, int kv_heads, int hd) {
  for (int h = 0; h < kv_heads; h++) {
    const float *kb = kblock + (size_t)h * (size_t)hd * BLOCK + slot;
    const float *vb = vblock + ((size_t)h * BLOCK + (size_t)slot) * (size_t)hd;
    for (int d = 0; d < hd; d++) {
      *k++ = kb[(size_t)d * BLOCK];
      *v++ = vb[d];
    }
  }
}

typedef struct attn_job {
  const chi_kernel_table *t;
  const chi_attn_query *queries;
  int64_t n;
  int heads, kv_heads, group, hd, mr;
  int64_t rows, row_tasks; /* rows of a task, tasks of a head */
  float scale;
  chi_compute compute;
  atomic_int failed;
} attn_job;

/* The rows that one task carries, and its slices of scratch. */
typedef struct attn_tile {
  int rows, kvh;
  int64_t span, hdp; /* longest row of keys, head width; both rounded up to 32 */
  const chi_attn_query *query[ROWS];
  int head[ROWS];
  bool dead[ROWS];                       /* every edge cut: the output is 0 whatever V holds */
  float *q, *s, *p, *acc, *chain, *edge; /* [hd][rows] [rows][span] [span][rows] [rows][hdp] x2 [32][32] */
} attn_tile;

/* Keys of row r in block b, at most 32; 0 or less when the row ends before it. */
static inline int64_t keys_in(const attn_tile *t, int r, int64_t b) {
  return chi_min64(BLOCK, t->query[r]->n_keys - b * BLOCK);
}

/* End of the run of rows that starts at r and reads the same block b (all of them at least one key), in one tile. */
static int run_end(const attn_job *j, const attn_tile *t, int r, int64_t b, bool values) {
  const float *first = values ? t->query[r]->vblk[b] : t->query[r]->kblk[b];
  int e = r + 1;
  while (e < t->rows && e - r < j->mr && keys_in(t, e, b) > 0 &&
         (values ? t->query[e]->vblk[b] : t->query[e]->kblk[b]) == first)
    e++;
  return e;
}

static void scores(const attn_job *j, attn_tile *t) {
  const float *q[ROWS];
  for (int r = 0; r < t->rows; r++) q[r] = t->query[r]->q + (int64_t)t->head[r] * j->hd;
  chi_interleave(t->q, t->rows, q, t->rows, j->hd, j->compute == CHI_COMPUTE_BF16);
  for (int64_t b = 0; b * BLOCK < t->span; b++)
    for (int r = 0, e; r < t->rows; r = e) {
      e = r + 1;
      if (keys_in(t, r, b) <= 0) continue;
      e = run_end(j, t, r, b, false);
      const float *k = t->query[r]->kblk[b] + (int64_t)t->kvh * j->hd * BLOCK;
      float *s = t->s + r * t->span + b * BLOCK;
      if (j->compute == CHI_COMPUTE_BF16) {
        j->t->tile_pair(e - r, j->hd, t->q + r, t->rows, k, BLOCK, s, t->span, CHI_TILE_SET);
        continue;
      }
      for (int64_t d = 0; d < j->hd; d += CHI_CHAIN)
        j->t->tile_f32[CHI_F32](e - r, chi_min64(CHI_CHAIN, j->hd - d), t->q + d * t->rows + r, t->rows, k + d * BLOCK,
                                BLOCK, s, t->span, d == 0 ? CHI_TILE_SET : CHI_TILE_ADD, NULL);
    }
}

static void apply_edges(const chi_attn_query *q, int head, float *s, bool cut) {
  for (int32_t i = 0; i < q->n_edges; i++) {
    const chi_edge *e = &q->edges[i];
    if (e->row != q->row || head < e->head_lo || head >= e->head_hi || (e->op == CHI_EDGE_CUT) != cut) continue;
    int32_t lo = e->key_lo > 0 ? e->key_lo : 0, hi = e->key_hi < q->n_keys ? e->key_hi : q->n_keys;
    for (int32_t k = lo; k < hi; k++) {
      if (e->op == CHI_EDGE_CUT)
        s[k] = -INFINITY;
      else if (e->op == CHI_EDGE_ZERO)
        s[k] = 0.0f;
      else
        s[k] *= e->value;
    }
  }
}

/* Scores to final weights, row by row; then turned to [key][row] for the second product. */
static void weights(const attn_job *j, attn_tile *t) {
  const float scale = j->scale; /* a local: stores to s could otherwise change it, and the loop would stay scalar */
  for (int r = 0; r < t->rows; r++) {
    const chi_attn_query *q = t->query[r];
    const int64_t n = q->n_keys, at = t->head[r] * n;
    float *s = t->s + r * t->span;
    for (int64_t k = 0; k < n; k++) s[k] *= scale;
    if (q->n_edges > 0) apply_edges(q, t->head[r], s, true);
    t->dead[r] = q->n_edges > 0 && q->pattern_set == NULL;
    for (int64_t k = 0; t->dead[r] && k < n; k++) t->dead[r] = s[k] == -INFINITY;
    chi_softmax_row(j->t, s, n);
    if (q->n_edges > 0) apply_edges(q, t->head[r], s, false);
    if (q->pattern_set != NULL && n > 0) memcpy(s, q->pattern_set + at, (size_t)n * sizeof *s);
    if (q->pattern != NULL && n > 0) memcpy(q->pattern + at, s, (size_t)n * sizeof *s);
    for (int64_t k = n; k < t->span; k++) s[k] = 0.0f; /* never multiplied; only so that the turned copy is defined */
  }
  const float *rows[ROWS];
  for (int r = 0; r < t->rows; r++) rows[r] = t->s + r * t->span;
  chi_interleave(t->p, t->rows, rows, t->rows, t->span, j->compute == CHI_COMPUTE_BF16);
}

/* Rows [r, e) times `keys` values of block b from slot on, columns [d, d+32) of the head. v points at key `slot`. */
static void value_tile(const attn_job *j, attn_tile *t, int r, int e, int64_t b, int64_t slot, int64_t keys,
                       const float *v, int64_t ldv, int64_t d) {
  const float *p = t->p + (b * BLOCK + slot) * t->rows + r;
  if (j->compute == CHI_COMPUTE_BF16)
    j->t->tile_pair(e - r, keys, p, t->rows, v, ldv, t->acc + r * t->hdp + d, t->hdp,
                    b == 0 ? CHI_TILE_SET : CHI_TILE_ADD);
  else
    j->t->tile_f32[CHI_F32](e - r, keys, p, t->rows, v, ldv, t->chain + r * t->hdp + d, t->hdp,
                            b % CHAIN_BLOCKS == 0 && slot == 0 ? CHI_TILE_SET : CHI_TILE_CHAIN, NULL);
}

/* Rows [r, e) share V block b. Rows that end inside it (the causal diagonal) have different counts: f32 takes the
 * common part together and lets the longer rows continue their chains alone; bf16 sums per block: such rows go alone.
 */
static void value_block(const attn_job *j, attn_tile *t, int r, int e, int64_t b) {
  const float *v = t->query[r]->vblk[b] + (int64_t)t->kvh * BLOCK * j->hd;
  int64_t least = BLOCK, most = 0;
  for (int i = r; i < e; i++) {
    int64_t c = keys_in(t, i, b);
    least = chi_min64(least, c);
    most = c > most ? c : most;
  }
  for (int64_t d = 0; d < j->hd; d += CHI_PANEL) {
    const float *vd = v + d;
    int64_t ldv = j->hd, cols = j->hd - d;
    if (cols < CHI_PANEL) { /* a tile reads 32 columns; the last ones of the last key would be outside the block */
      for (int64_t k = 0; k < most; k++) memcpy(t->edge + k * CHI_PANEL, vd + k * ldv, (size_t)cols * sizeof *vd);
      vd = t->edge;
      ldv = CHI_PANEL;
    }
    if (least == most) {
      value_tile(j, t, r, e, b, 0, most, vd, ldv, d);
    } else if (j->compute == CHI_COMPUTE_BF16) {
      for (int i = r; i < e; i++) value_tile(j, t, i, i + 1, b, 0, keys_in(t, i, b), vd, ldv, d);
    } else {
      value_tile(j, t, r, e, b, 0, least, vd, ldv, d);
      for (int i = r; i < e; i++)
        if (keys_in(t, i, b) > least)
          value_tile(j, t, i, i + 1, b, least, keys_in(t, i, b) - least, vd + least * ldv, ldv, d);
    }
  }
}

static void values(const attn_job *j, attn_tile *t) {
  memset(t->edge, 0, sizeof(float) * CHI_PANEL * BLOCK);
  for (int64_t b = 0; b * BLOCK < t->span; b++) {
    for (int r = 0, e; r < t->rows; r = e) {
      e = r + 1;
      if (keys_in(t, r, b) <= 0) continue;
      e = run_end(j, t, r, b, true);
      value_block(j, t, r, e, b);
    }
    if (j->compute == CHI_COMPUTE_BF16) continue;
    for (int r = 0; r < t->rows; r++) { /* a chain of 256 positions, or the row, ends here */
      if (keys_in(t, r, b) <= 0) continue;
      if (b % CHAIN_BLOCKS != CHAIN_BLOCKS - 1 && keys_in(t, r, b + 1) > 0) continue;
      float *acc = t->acc + r * t->hdp, *chain = t->chain + r * t->hdp;
      if (b < CHAIN_BLOCKS)
        memcpy(acc, chain, (size_t)j->hd * sizeof *acc);
      else
        for (int d = 0; d < j->hd; d++) acc[d] += chain[d];
    }
  }
  for (int r = 0; r < t->rows; r++) {
    float *out = t->query[r]->out + (int64_t)t->head[r] * j->hd;
    if (t->query[r]->n_keys <= 0 || t->dead[r])
      memset(out, 0, (size_t)j->hd * sizeof *out);
    else
      memcpy(out, t->acc + r * t->hdp, (size_t)j->hd * sizeof *out);
  }
}

static void attn_task(void *ud, int64_t i) {
  attn_job *j = ud;
  attn_tile t = {.kvh = (int)(i / j->row_tasks)};
  int64_t first = i % j->row_tasks * j->rows, all = j->n * j->group;
  t.rows = (int)chi_min64(j->rows, all - first);
  int64_t longest = 0;
  for (int r = 0; r < t.rows; r++) {
    int64_t flat = first + r;
    t.query[r] = &j->queries[flat / j->group];
    t.head[r] = t.kvh * j->group + (int)(flat % j->group);
    longest = t.query[r]->n_keys > longest ? t.query[r]->n_keys : longest;
  }
  t.span = chi_ceil_div(longest, BLOCK) * BLOCK;
  t.hdp = chi_ceil_div(j->hd, CHI_PANEL) * CHI_PANEL;
  size_t rows = (size_t)t.rows, per_row = (size_t)(2 * t.span + 3 * t.hdp);
  float *f = chi_scratch((rows * per_row + CHI_PANEL * BLOCK) * sizeof *f);
  if (f == NULL) {
    atomic_store(&j->failed, 1);
    return;
  }
  t.s = f;
  t.p = t.s + rows * (size_t)t.span;
  t.acc = t.p + rows * (size_t)t.span;
  t.chain = t.acc + rows * (size_t)t.hdp;
  t.q = t.chain + rows * (size_t)t.hdp;
  t.edge = t.q + rows * (size_t)t.hdp;
  scores(j, &t);
  weights(j, &t);
  values(j, &t);
}

int chi_attention(const chi_attn_query *queries, int64_t n, int heads, int kv_heads, int hd, float scale,
                  chi_compute compute, chi_err *err) {
  if (heads < 1 || kv_heads < 1 || hd < 1 || heads % kv_heads != 0)
    return chi_fail(err, CHI_ERR_ARG, "attention: %d heads over %d key/value heads of %d do not fit together", heads,
                    kv_heads, hd);
  if (n <= 0) return 0;
  attn_job j = {.t = chi_kernels,
                .queries = queries,
                .n = n,
                .heads = heads,
                .kv_heads = kv_heads,
                .group = heads / kv_heads,
                .hd = hd,
                .scale = scale,
                .compute = compute};
  j.mr = compute == CHI_COMPUTE_BF16 ? j.t->mr_pair : j.t->mr_f32;
  j.rows = ROWS / j.mr * j.mr;
  while (j.rows > j.mr && chi_ceil_div(n * j.group, j.rows) * kv_heads < 4 * (int64_t)chi_threads()) j.rows -= j.mr;
  j.row_tasks = chi_ceil_div(n * j.group, j.rows);
  int64_t tasks = j.row_tasks * kv_heads;
  double macs = 0;
  for (int64_t i = 0; i < n; i++) macs += 2.0 * (double)queries[i].n_keys * heads * hd;
  if (tasks == 1 || macs < SERIAL_MACS) {
    unsigned saved = chi_fp_begin();
    for (int64_t i = 0; i < tasks; i++) attn_task(&j, i);
    chi_fp_end(saved);
  } else {
    chi_parallel_for(tasks, attn_task, &j);
  }
  if (atomic_load(&j.failed)) return chi_fail(err, CHI_ERR_MEMORY, "attention: no memory for scratch");
  return 0;
}

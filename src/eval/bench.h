/* bench: how fast this machine runs what chiasm does, each figure beside a ceiling measured in the same run. Times are
 * medians; nothing here changes a model. */
#ifndef CHI_BENCH_H
#define CHI_BENCH_H

#include "analyze/trace.h"

typedef struct chi_bench_row {
  char what[96];
  double seconds; /* median of one run */
  int runs;
  double rate;    /* work per second, in unit */
  double ceiling; /* what the machine can do, in the same unit; 0 = none measured */
  const char *unit;
} chi_bench_row;

typedef struct chi_bench {
  chi_bench_row *row;
  size_t n, cap;
  int runs; /* wanted of each row; 0 = 21 for products and decoding, 5 for whole runs, 3 for loading */
} chi_bench;
void chi_bench_free(chi_bench *b);

/* GFLOP/s of independent fused multiply-adds in registers on all threads, one sample; 0 where it is not built for the
 * machine. Limits in rows are medians of such samples, taken between the measured runs. */
double chi_bench_fma(chi_compute compute);

/* Products y = x W^T of the sizes of a 7B decoder, f32 and bf16; the weights of successive runs differ and are 512 MB
 * together, so that none is found in a cache. Ceiling: the lower of FMA loop and read bandwidth. */
int chi_bench_gemm(chi_bench *b, chi_err *err);
/* rows of prompt (0 = 600, or what the context holds), with a picture where the model takes one. */
int chi_bench_prefill(chi_bench *b, const chi_model *m, int32_t rows, size_t mem, chi_err *err);
int chi_bench_decode(chi_bench *b, const chi_model *m, int32_t rows, size_t mem, chi_err *err);
/* A whole causal map of the prompt (mlp, attn, hidden x layers x rows), noise on the bracketed words. */
int chi_bench_trace(chi_bench *b, const chi_model *m, const chi_prompt *p, size_t mem, chi_err *err);
/* A forward pass of the prompt; what scores of all heads and of the best head's positions cost beyond it; with a picture,
 * patches removed a second, as vectors and as edges, beside one pass a patch. sample: so many patches, evenly spread; 0 =
 * all. */
int chi_bench_attribute(chi_bench *b, const chi_model *m, const chi_prompt *p, int32_t sample, size_t mem,
                        chi_err *err);
/* Causal maps (mlp, attn, hidden) of random checkpoints (tiny-llava's width, f32), as layers, rows behind the picture and
 * rows of the picture grow: the first `points` of four of each (0 = all). Median CPU seconds of all threads, steadier than the clock on a busy
 * machine; runs 0 = 5. A folder in `dir` holds one checkpoint at a time and is removed. */
typedef enum chi_growth_axis {
  CHI_GROWTH_LAYERS,
  CHI_GROWTH_TEXT,
  CHI_GROWTH_PICTURE,
  CHI_GROWTH_AXES
} chi_growth_axis;
enum { CHI_GROWTH_POINTS = 4 * CHI_GROWTH_AXES };
typedef struct chi_growth_point {
  chi_growth_axis axis;
  int32_t layers, rows, image_rows;
  int64_t cells, live, dense; /* live, dense: rows x layers computed, and with one forward pass for each run */
  double seconds;
} chi_growth_point;
int chi_bench_growth(chi_growth_point out[CHI_GROWTH_POINTS], int *n, int points, const char *dir, int runs, size_t mem,
                     chi_err *err);
int chi_bench_load(chi_bench *b, const char *path, chi_dtype_choice dtype, chi_err *err);

#endif

/* moments: second moments of the keys that MLP output matrices read, C = E[k k^T] (uncentred), for ROME and MEMIT (Meng et
 * al. 2022, section 3.1; 2023, section 4.2). Collected over prompts of a data set and lines of a text, in one pass, in
 * f64; only sums over the upper triangle are kept. The file is safetensors:
 *   decoder.<layer>.mlp_act.moment_sum  F64 [ffn (ffn + 1) / 2]   sum of k_i k_j, j >= i, row by row
 * with metadata "chiasm_moments": JSON with format, model's sha256, sources, rows, keys, and how far the pass has come. A
 * pass that was interrupted goes on from the file, to the same bits. */
#ifndef CHI_MOMENTS_H
#define CHI_MOMENTS_H

#include "model/model.h"

#define CHI_MOMENTS_FORMAT "chiasm-moments-1"

typedef struct chi_moments_opts {
  const char *data;  /* data set whose questions are asked (data/dataset.h), or NULL */
  const char *texts; /* text file, each line a prompt as it stands, or NULL. With both, they take turns */
  int lo, hi;        /* decoder layers [lo, hi] */
  bool text_rows;    /* leave the picture's rows out */
  int64_t keys;      /* stop when so many rows were taken; 0 = 20 x ffn */
  const char *tmpl;  /* of questions; NULL = the model's */
  const char *out;   /* the file; or a folder, where it is named by the hash of everything that decides its content */
  size_t mem;
  double save_every; /* seconds between saves of an unfinished pass; 0 = 60 */
} chi_moments_opts;

typedef struct chi_moments_info {
  char file[4096];
  int64_t keys, asked, ffn; /* rows taken and wanted */
  int64_t prompts, resumed; /* prompts seen in all, and before this call */
  int64_t skipped;          /* prompts that cannot be asked: pictures that are missing, texts over the context */
  bool done;                /* asked was reached, or the sources were used up */
  char source[512];         /* for people */
} chi_moments_info;
/* Makes or goes on with the file. A file of another model or other settings is refused. Cancelled: what was collected is
 * saved first. */
int chi_moments_collect(chi_moments_info *info, chi_model *m, const chi_moments_opts *o, chi_err *err);
/* What a file holds. Files with plain matrices (decoder.<layer>.mlp_act.moment) have no source: keys 0. */
int chi_moments_read_info(chi_moments_info *info, const char *file, chi_err *err);
/* C of one layer [n][n] in f64, as it is (not shrunk). model_hash: refused where the file names another; NULL = any. */
int chi_moments_load(double **out, const char *file, int layer, int64_t n, const char *model_hash, chi_err *err);

#endif

/* mmedit_run: MMEdit over a file: each record edited alone from the base, or one after another with a gap; a log that a
 * stopped run goes on from; sums. */
#ifndef CHI_EVAL_MMEDIT_RUN_H
#define CHI_EVAL_MMEDIT_RUN_H

#include "data/dataset.h"
#include "eval/mmedit.h"
#include "eval/stats.h"
#include "file/jlog.h"

typedef enum chi_mm_kind {
  CHI_MM_NONE,   /* nothing is edited: generalities of the base, every locality 1 */
  CHI_MM_IDEAL,  /* what the measures give to an edit that does all that is asked and moves nothing else */
  CHI_MM_LOOKUP, /* as a table of edited questions would: the edited one alone is answered, no rephrase is known */
  CHI_MM_METHOD  /* a row of methods.def */
} chi_mm_kind;

typedef struct chi_mm_run_opts {
  chi_mm_opts ask; /* caption is set by the file, short_memory by `sequential` */
  chi_mm_kind kind;
  const chi_edit_opts *edit; /* of CHI_MM_METHOD */
  const char *at;            /* row of the key, as chi_edit_row */
  bool sequential; /* edits stay; after edit i the record of edit i - gap is asked, beside what the base said */
  int gap;
  int shard, shards; /* records with row % shards = shard; shards 0 = all. Not with sequential */
} chi_mm_run_opts;

/* A line of the log for each record; those that are there are not asked again. A record that cannot be asked or edited
 * (missing picture, prompt too long, a loss that is not finite) is a line with its reason and does not end the run. The
 * model is as before afterwards, but for a sequential run, which leaves its edits in it. */
int chi_mm_run(chi_jlog *log, chi_model *m, const chi_dataset *d, const chi_mm_run_opts *o, chi_err *err);

/* Columns of a summary. */
enum { CHI_MM_COLUMNS = 28 };
const char *chi_mm_column(int column);    /* "before.reliability.acc", "t_locality.same", ... */
int chi_mm_column_find(const char *name); /* -1 if there is none */
typedef struct chi_mm_sum {
  chi_est col[CHI_MM_COLUMNS]; /* by bootstrap over edited pictures; n 0 where nothing was asked */
  int n, skipped, failed, moved;
} chi_mm_sum;
/* Over the log's records of this data set; type: answers of this type alone, NULL = all. */
int chi_mm_sums(chi_mm_sum *out, const chi_jlog *log, const chi_dataset *d, const char *type, chi_err *err);

#endif

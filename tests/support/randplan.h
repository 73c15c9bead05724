/* Random plans over a network, and what a run of a plan gave. For tests of the executors. */
#ifndef CHI_TEST_RANDPLAN_H
#define CHI_TEST_RANDPLAN_H

#include "support/randnet.h"
#include "sweep/run.h"

/* ---- results of a run ------------------------------------------------------------------------------------ */
typedef struct results {
  const chi_plan *plan;
  size_t n;        /* rows over all captures */
  size_t *first;   /* per capture: its first row in the arrays below; one more at the end */
  size_t *at;      /* per row: offset in values; one more at the end */
  int32_t *times;  /* per row: how often it was given (must be 1) */
  float *values;
} results;

/* Runs a plan and keeps every captured row; o->on_capture and o->ud are replaced. Also checks that each row came once
 * and with the width that the shape promises. Returns chi_run_plan's code. */
int results_run(results *r, const chi_net *net, const chi_plan *plan, const chi_run_opts *o, chi_err *err);
void results_free(results *r);
const float *results_row(const results *r, int capture, int32_t i);
int64_t results_width(const results *r, int capture, int32_t i);
uint64_t results_hash(const results *r);
/* NULL if every bit is equal; else one line: the first capture and column that differ. Static buffer. */
const char *results_differ(const results *a, const results *b);

/* ---- plans by hand: as the library's calls, but rows are ranges [lo, hi) and a failure fails the test ------- */
chi_plan *plan_new(void);
int plan_root(chi_plan *p, const chi_input *in);
int plan_child(chi_plan *p, int parent);
/* Adds iv at rows [lo, hi); width = columns of its value. iv's site, layers and op are the caller's. */
void plan_act(chi_plan *p, int b, chi_intervention iv, int32_t lo, int32_t hi, int64_t width);
/* Decoder, same rows, layers [layer, layer + 1). */
void plan_copy(chi_plan *p, int b, int source, chi_site site, int layer, int32_t lo, int32_t hi);
int plan_take(chi_plan *p, int b, chi_stack stack, chi_site site, int layer, int32_t lo, int32_t hi);
int plan_take_logits(chi_plan *p, int b, int32_t row);

/* ---- random plans ---------------------------------------------------------------------------------------- */
typedef struct randplan_opts {
  uint64_t seed;
  int32_t max_branches, max_interventions; /* 0 = 12, 3 */
  int32_t min_rows, max_rows;              /* of a prompt; 0 = 10, 70 */
  bool cycles;                             /* sources may be any branch, so that some plans have to be refused */
  bool no_calls;                           /* without callbacks */
} randplan_opts;

enum { RANDPLAN_ROOTS = 3, RANDPLAN_CALLS = 64 };
/* What a callback of a branch saw in that branch's own rows: both executors must show it the same values. */
typedef struct randplan_call {
  int branch;
  uint64_t rows, sum; /* hashes of (layer, row, values), added: the order of rows is not promised */
} randplan_call;
typedef struct randplan {
  chi_plan *plan;
  int32_t *tokens[RANDPLAN_ROOTS];
  randplan_call *call; /* [RANDPLAN_CALLS] */
} randplan;

/* What random plans touched so far. */
typedef struct randplan_cover {
  int64_t op[CHI_STACK_COUNT][CHI_SITE_COUNT][CHI_OP_COUNT];
  int64_t capture[CHI_STACK_COUNT][CHI_SITE_COUNT];
  int64_t fork[CHI_KV_BLOCK]; /* children by (first decoder row that they touch) mod 32 */
  int64_t branches, mapped_copies, parts, windows, depth[4];
} randplan_cover;

void randplan_make(randplan *p, const randnet *n, const randplan_opts *o, randplan_cover *cover);
void randplan_free(randplan *p);
/* May op act at this site of this stack? */
bool randplan_allowed(const chi_shape *s, chi_stack stack, chi_site site, chi_op op);
/* The plan in a few lines on stderr, for a failing seed. */
void randplan_print(const chi_plan *p);

#endif

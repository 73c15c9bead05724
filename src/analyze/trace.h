/* trace: causal maps (MultiModalCausalTrace, Basu et al. 2024, section 3; causal tracing, Meng et al. 2022, section 2).
 *
 * Three runs: clean; corrupted (the constraint's words, its embeddings or the picture changed); and for every cell
 * (site, layers, row) the corrupted run with the clean run's value put back there. The effect of a cell is its p(target)
 * minus the corrupted run's. Direction `noise` turns it round: the clean run with the corrupted run's value.
 *
 * Controls. Donor: the value put back comes from a clean run about another picture. What the donor repairs as well as the
 * item's own value is repair of the overwritten word, not the fact; only own minus donor speaks of storage. Random sites:
 * as many cells as a window has, put back together at random places. Re-embedding (site `embed`): the right words put back
 * as words, the upper line of everything else.
 *
 * Severed sites (Meng et al. 2022, section 2.3 and figure 3): the hidden state is put back while the MLPs (or attention) of
 * that row in all later layers keep what they gave in the run that is patched. What is lost against `hidden` went through
 * them.
 *
 * A trace is a plan and nothing else: chi_trace_plan shows it. */
#ifndef CHI_TRACE_H
#define CHI_TRACE_H

#include "analyze/corrupt.h"
#include "analyze/metrics.h"
#include "sweep/run.h"

/* X(ENUM, name, site, severed site or site again, steps, doc). Steps of a map: LAYERS, HEADS = layers x heads (step =
 * layer * heads + head; of paths only the layers before the receiver), ONCE. Windows widen mlp and attn only. */
#define CHI_TRACE_SITE_TABLE(X)                                                                                   \
  X(MLP, "mlp", MLP_OUT, MLP_OUT, LAYERS, "MLP outputs")                                                          \
  X(ATTN, "attn", ATTN_OUT, ATTN_OUT, LAYERS, "attention outputs")                                                \
  X(HIDDEN, "hidden", RESID_POST, RESID_POST, LAYERS, "hidden states behind a layer")                             \
  X(NO_MLP, "hidden-no-mlp", RESID_POST, MLP_OUT, LAYERS, "hidden states, later MLPs of the row severed")         \
  X(NO_ATTN, "hidden-no-attn", RESID_POST, ATTN_OUT, LAYERS, "hidden states, later attention of the row severed") \
  X(HEAD, "head", HEAD_OUT, HEAD_OUT, HEADS, "single attention heads")                                            \
  X(EMBED, "embed", EMBED, EMBED, ONCE, "input embeddings: the words put back as words")                          \
  X(PATH, "path", HEAD_OUT, HEAD_OUT, HEADS, "paths from single heads to one head's input, or to the logits")
enum {
#define CHI_TRACE_ENUM(E, name, site, severed, steps, doc) CHI_TRACE_##E,
  CHI_TRACE_SITE_TABLE(CHI_TRACE_ENUM)
#undef CHI_TRACE_ENUM
      CHI_TRACE_SITES
};
extern const char *const chi_trace_site_name[CHI_TRACE_SITES]; /* "mlp", "attn", "hidden", ... */
extern const char *const chi_trace_site_doc[CHI_TRACE_SITES];

/* Where a cell's value comes from and what it is put into. Direction noise turns OWN and DONOR round. */
enum {
  CHI_TRACE_OWN,   /* clean run's value -> corrupted run */
  CHI_TRACE_DONOR, /* donor's -> corrupted run */
  CHI_TRACE_NOISE, /* corrupted run's -> clean run (both_directions) */
  CHI_TRACE_SOURCES
};
extern const char *const chi_trace_source_name[CHI_TRACE_SOURCES]; /* "own", "donor", "noise" */

/* Path patching (Wang et al. 2023, section 3.1; Goldowsky-Dill et al. 2023), site `path`: a head's value is put back at the
 * cell's rows while all later attention keeps what it gave in the run that is patched, so that it reaches the receiver's
 * query, key or value there through the residual stream and the MLPs alone (direct: not through MLPs either); what the
 * receiver was given then is put into a fresh run, and everything behind it is computed anew. OUT: the receiver is the
 * head of the model. */
typedef enum chi_path_part { CHI_PATH_Q, CHI_PATH_K, CHI_PATH_V, CHI_PATH_OUT } chi_path_part;
typedef struct chi_path {
  chi_path_part part;
  int32_t layer, head; /* of the receiver; K, V: query heads that share keys are one receiver */
  bool direct;
} chi_path;
/* "5.3.q" (layer, head, q, k or v) or "out". */
int chi_path_parse(chi_path *out, const char *text, chi_err *err);

typedef struct chi_trace_opts {
  bool site[CHI_TRACE_SITES];
  int window;           /* layers in a window (>= 1); of mlp and attn only */
  bool released_window; /* [l-W, l+W], as the released script; else ROME's [l - W/2, l + ceil(W/2)) */
  chi_corrupt_opts corrupt;
  bool noise_direction;
  bool both_directions; /* also CHI_TRACE_NOISE; not together with noise_direction */
  const char *donor;    /* picture file, or NULL */
  const char *const
      *donors;      /* [n_donors] candidates where donor is NULL: the first whose answer differs is kept, else the */
  int32_t n_donors; /* one with the least p(target); the item's own picture is left out, at most 8 are tried */
  int32_t target;   /* token id, -1 = the clean run's first answer token */
  const char *target_text; /* joint log-probability of this answer, or NULL */
  bool span_cell;          /* each bracket's rows are put back together, as one cell */
  const char *groups;  /* further cells, each a set of rows (chi_select_rows) put back together: "late;constraint" */
  bool all_rows;       /* every row; else from the last picture row (row 0 without a picture) on */
  const int32_t *only; /* [n_only]: of these rows only those in the list; NULL = all. At least one has to stay */
  int32_t n_only;
  bool from_words;    /* from the first bracket on: before it, a donor's value tells nothing about the words */
  chi_path path;      /* receiver, for site path */
  int32_t null_draws; /* random-site control: so many draws for each of mlp, attn, hidden, head that is asked for */
  uint64_t null_seed;
  int check; /* this many cells are run again by the dense executor and compared bit for bit */
  size_t mem;
} chi_trace_opts;
#define CHI_TRACE_OPTS_INIT \
  { .site = {true, true, true}, .window = 1, .target = -1 }

typedef struct chi_trace {
  const chi_model *model;
  const chi_prompt *prompt;
  chi_trace_opts opts;
  chi_corruption corruption;
  chi_prompt *donor;      /* clean prompt about the donor's picture, or NULL */
  const char *donor_file; /* which it was */
  int32_t *tokens;        /* rows of the plan's roots: the prompt's, then all but the last target token */
  int32_t *target_ids, n_target, n_rows_total;
  int32_t target, counter;   /* target token; the corrupted run's top token */
  int32_t n_layers, n_heads; /* of the decoder */
  int32_t n_rows;            /* cells of a step: tokens (or brackets), then groups */
  int32_t n_tokens;          /* the first so many are no groups */
  int32_t *rows, *n_cell;    /* [n_rows]: first row of each cell, and how many it has */
  int32_t **cell_rows;       /* [n_rows]: all of them */
  int32_t *every;            /* [n_rows_total]: 0, 1, ... */
  const char **cell_name;    /* [n_rows]: a bracket's words, a group's name; NULL for a single token */
  int32_t *lo, *hi;          /* [CHI_TRACE_SITES][n_layers]: layers [lo, hi] that a cell restores, inclusive */
  chi_metrics clean, corrupt, donor_run;
  chi_metrics *cell[CHI_TRACE_SOURCES][CHI_TRACE_SITES]; /* [steps][n_rows], NULL where not asked for */
  chi_metrics *null[CHI_TRACE_SITES];                    /* [null_draws], or NULL: own values at random places */
  int32_t null_cells[CHI_TRACE_SITES];                   /* (layer, row) places of a draw */
  int checked, identical;
  chi_run_stats stats; /* of the sweep, which several traces may have shared */
  chi_arena arena;
} chi_trace;

int chi_trace_run(chi_trace **out, const chi_model *m, const chi_prompt *p, const chi_trace_opts *o, chi_err *err);
void chi_trace_free(chi_trace *t);

/* Several maps in one sweep: windows, corruptions or brackets of one item, or many items. Jobs with the same prompt share
 * its clean run; no number depends on what a job shares the sweep with. out and why: [n]. A job that cannot be set up (no
 * substitute, missing donor, ...) leaves out[i] NULL and its reason in why[i], and the others go on. Fails as a whole, all
 * out NULL, where the sweep does. Options and prompts are borrowed until then. */
typedef struct chi_trace_job {
  const chi_prompt *prompt;
  const chi_trace_opts *opts;
} chi_trace_job;
int chi_trace_run_many(chi_trace **out, chi_err *why, const chi_model *m, const chi_trace_job *job, int n,
                       chi_err *err);

/* The plan of the whole map (after chi_trace_run). Borrows the trace's inputs. Caller: chi_plan_free. */
int chi_trace_plan(chi_plan **out, const chi_trace *t, chi_err *err);
/* Metrics of the run that a source's cells are compared with: corrupted, or clean in direction noise. */
const chi_metrics *chi_trace_base_of(const chi_trace *t, int source);
const chi_metrics *chi_trace_base(const chi_trace *t); /* of OWN */
/* Steps of a site's maps: layers, layers x heads, or 1. A step's layer is -1 where there is none, its head likewise. */
int chi_trace_steps(const chi_trace *t, int site);
void chi_trace_step(const chi_trace *t, int site, int step, int *layer, int *head);
/* step: a layer, except for heads and embed. row: index into rows. */
const chi_metrics *chi_trace_at(const chi_trace *t, int source, int site, int step, int row);
/* Token role of a cell ("constraint", "last", ...); a group's own name; "constraint2" for the rows of the second of
 * several brackets. */
const char *chi_trace_row_role(const chi_trace *t, int row);

#endif

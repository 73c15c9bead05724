/* site: the named points of a forward pass, interventions at them, and plans. Data only, no arithmetic.
 *
 * A plan is a forest of branches. A root runs an input; a child differs from its parent by its own interventions and
 * inherits all of the parent's. What a branch computes is defined by the dense executor: a full forward in which, at
 * every site, the interventions of the root, then of each descendant down to the branch, act in the order they were
 * added. The sweep gives the same bits with the work shared.
 *
 * Adding a site: one row in sites.def; the executors fire it (tests/test_plan.c walks the table). */
#ifndef CHI_SITE_H
#define CHI_SITE_H

#include "base/base.h"

typedef enum chi_stack { CHI_VISION, CHI_QFORMER, CHI_PROJECTOR, CHI_DECODER, CHI_STACK_COUNT } chi_stack;
const char *chi_stack_name(chi_stack s);

/* Order of events within a layer. A (layer, stage) is a time; final norm and logits are the times (n_layers, IN/QKV). */
typedef enum chi_stage {
  CHI_ST_IN,
  CHI_ST_QKV,
  CHI_ST_MIX,
  CHI_ST_O,
  CHI_ST_MID,
  CHI_ST_ACT,
  CHI_ST_MLP,
  CHI_ST_POST,
  CHI_STAGES
} chi_stage;

typedef enum chi_site {
#define CHI_SITE(E, name, stage, per_layer, unit, doc) CHI_SITE_##E,
#include "site/sites.def"
#undef CHI_SITE
  CHI_SITE_COUNT
} chi_site;

typedef enum chi_unit { CHI_UNIT_COLUMN, CHI_UNIT_HEAD } chi_unit;
typedef struct chi_site_info {
  const char *name;
  chi_stage stage;
  bool per_layer;
  chi_unit unit;
  const char *doc;
} chi_site_info;
const chi_site_info *chi_site_get(chi_site s);
int chi_site_parse(chi_site *out, const char *name, chi_err *err); /* error lists the names */
int chi_stack_parse(chi_stack *out, const char *name, chi_err *err);

/* ---- interventions --------------------------------------------------------------------------------------- */
typedef enum chi_op {
  CHI_OP_SET,       /* value                                                                                     */
  CHI_OP_COPY,      /* the source branch's value at the same site and layer (source_rows = its rows)             */
  CHI_OP_ADD,       /* + scale * value                                                                           */
  CHI_OP_SCALE,     /* * scale                                                                                   */
  CHI_OP_ZERO,      /* 0                                                                                         */
  CHI_OP_NOISE,     /* + scale * N(0,1) indexed by (seed, sample, index in rows, column)                         */
  CHI_OP_PROJECT,   /* - scale * u (u.y) for the direction u = value; one_sided: only where u.y > 0              */
  CHI_OP_TOKEN,     /* decoder embed only: the row's token id becomes tokens[i]                                  */
  CHI_OP_CUT,       /* pattern, x_pattern: edges row -> keys: score -inf before the softmax                      */
  CHI_OP_CUT_ZERO,  /* pattern, x_pattern: weight 0 after the softmax                                            */
  CHI_OP_CUT_SCALE, /* pattern, x_pattern: weight * scale after the softmax                                      */
  CHI_OP_CALL,      /* a C callback that may change the row                                                      */
  CHI_OP_COUNT
} chi_op;
const char *chi_op_name(chi_op op);

/* Called serially for a row of one branch; values may be changed in place. Non-zero return cancels the run. The row
 * counts as changed whether or not it is. A child that inherits the callback shares the row where it can, so what is
 * written may depend on the site, layer, row and values only; a plan that the budget cuts may call again with the same. */
typedef int (*chi_site_fn)(void *ud, int branch, chi_stack stack, chi_site site, int layer, int row, float *values,
                           int64_t width);

typedef struct chi_intervention {
  chi_op op;
  chi_stack stack;
  chi_site site;
  int layer_lo, layer_hi; /* layers [lo, hi); ignored where the site is not per layer */
  const int32_t *rows;    /* absolute rows of the stack, ascending, no repeats */
  int32_t n_rows;
  int32_t part_lo, part_hi; /* heads or columns [lo, hi) (unit of the site); 0, 0 = all */
  const float *value;       /* SET, ADD, PROJECT: value_rows x (width of the part) */
  int32_t value_rows;       /* n_rows, or 1 = the same for every row */
  float scale;
  bool one_sided;
  int source;                 /* COPY */
  const int32_t *source_rows; /* COPY: n_rows rows of the source; NULL = same rows */
  const int32_t *tokens;      /* TOKEN: n_rows ids */
  uint64_t seed;              /* NOISE */
  uint32_t sample;
  int32_t key_lo, key_hi; /* CUT*: keys [lo, hi) */
  chi_site_fn call;
  void *ud;
} chi_intervention;

/* ---- plans ----------------------------------------------------------------------------------------------- */
/* What a root runs. Borrowed until the plan is freed. */
#define CHI_PICTURE_ID (-200)            /* for models whose tokenizer has no image token; LLaVA's own number */
typedef struct chi_kv_cache chi_kv_cache; /* sweep/run.h: keys and values of earlier rows, all layers */
typedef struct chi_input {
  const int32_t *tokens; /* n_rows ids; picture rows carry the image token's id, or CHI_PICTURE_ID */
  int32_t n_rows;        /* decoder rows of this root, cached ones included */
  const float *pixels;   /* [3][h][w] normalised, or NULL for text only */
  int32_t image_row;     /* first picture row (used with pixels) */
  chi_kv_cache *cache;   /* NULL, or rows [0, cache rows) are taken from it and new rows are appended */
} chi_input;

typedef struct chi_capture {
  int branch;
  chi_stack stack;
  chi_site site;
  int layer; /* -1 where the site is not per layer */
  const int32_t *rows;
  int32_t n_rows;
} chi_capture;

typedef struct chi_plan_branch {
  int parent;            /* -1 = root */
  chi_input input;       /* of roots */
  int first, count, cap; /* own interventions in iv[] */
  chi_intervention *iv;
} chi_plan_branch;

typedef struct chi_plan {
  chi_arena arena; /* everything below */
  chi_plan_branch *branch;
  size_t n_branches, cap_branches;
  chi_capture *capture;
  size_t n_captures, cap_captures;
} chi_plan;

int chi_plan_new(chi_plan **out, chi_err *err);
void chi_plan_free(chi_plan *p);
int chi_plan_root(chi_plan *p, const chi_input *in, int *branch, chi_err *err);
int chi_plan_child(chi_plan *p, int parent, int *branch, chi_err *err);
/* Copies the intervention and its arrays (value needs `width` columns per row; 0 where there is none). */
int chi_plan_intervene(chi_plan *p, int branch, const chi_intervention *iv, int64_t width, chi_err *err);
/* The branch that runs tokens [n_rows] where `parent` runs `whole` (n_rows ids at least): a child whose rows have other ids, or
 * parent itself where none has. The picture's rows, n_image from image_row on, are its own whatever ids stand there. */
int chi_plan_reword(chi_plan *p, int parent, const int32_t *whole, const int32_t *tokens, int32_t n_rows, int32_t image_row,
                    int32_t n_image, int *branch, chi_err *err);
/* Ask for a site's rows of a branch; for logits, CHI_SITE_LOGITS of the decoder. Returns the capture's index in *id. */
int chi_plan_capture(chi_plan *p, const chi_capture *c, int *id, chi_err *err);

/* Order in which parents come before children and sources before those that copy from them. order: n_branches ints from
 * the caller. A cycle is refused and names two of its branches. */
int chi_plan_order(const chi_plan *p, int *order, chi_err *err);
int chi_plan_root_of(const chi_plan *p, int branch);

/* The model's shape, as far as a plan can be checked against it. */
typedef struct chi_stack_shape {
  int32_t layers, d, heads, kv_heads, head_dim, ffn, rows;
  bool causal, present;
  bool final_norm;     /* the stack ends with a norm that is a site */
  int32_t cross_every; /* layers l with l % cross_every == 0 have cross-attention (x_ sites); 0 = none */
  int32_t cross_keys;  /* rows that it reads */
} chi_stack_shape;
typedef struct chi_shape {
  chi_stack_shape stack[CHI_STACK_COUNT]; /* rows: vision and projector rows per picture; decoder: max positions */
  int32_t vocab, n_image_rows;
  int32_t vision_select; /* vision row of projector row 0 (1 where CLS is dropped) */
} chi_shape;
/* Attention weights: pattern or x_pattern. */
bool chi_site_is_pattern(chi_site site);
/* A site of cross-attention, which not every layer has. */
bool chi_site_is_cross(chi_site site);
/* Keys that the weights of a row cover at a site of weights; rows: the rows of this stack in this run. */
int32_t chi_site_keys(const chi_shape *s, chi_stack stack, chi_site site, int32_t row, int32_t rows);
/* Columns of a site (pattern: heads x keys of the row; 0 if the stack does not have the site). */
int64_t chi_site_width(const chi_shape *s, chi_stack stack, chi_site site, int32_t n_keys);
/* Heads that a per-head site has. */
int32_t chi_site_heads(const chi_shape *s, chi_stack stack, chi_site site);
/* Validates every branch, intervention and capture; one line names the branch and what is wrong. */
int chi_plan_check(const chi_plan *p, const chi_shape *s, chi_err *err);

#endif

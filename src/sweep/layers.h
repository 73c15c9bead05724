/* layers: carries all live rows of a piece through one stack, layer by layer. Private to sweep/. */
#ifndef CHI_LAYERS_H
#define CHI_LAYERS_H

#include "sweep/live.h"

typedef struct chi_layers {
  const chi_exec *x;
  const chi_live *live;
  chi_stack stack;
  const chi_block_spec *s;
  chi_compute compute;
  int32_t chunk;
  int64_t D, nq, nkv;
  /* indexed by slot */
  float *res;             /* residual stream */
  float *in;              /* parallel blocks: the layer's input */
  float *q, *k, *v, *mix; /* of the current layer */
  float *comp;            /* the component output that is about to be added */
  float **pattern;        /* of the current layer, where somebody wants it */
  /* of the current pass over a layer's weights */
  int32_t *list, *list_pos, *pos;
  float *tx, *th, *tq, *tk, *tv, *tg, *tact;
  float *act_all; /* hidden neurons of the whole list, when somebody looks at them */
  /* key/value block tables of the current layer */
  float ***ktab, ***vtab; /* [branch] -> [blocks]; shared with the parent where the branch owns no key */
  float **pool;
  size_t pool_n, pool_used, pool_cap;
  int32_t *slot0, *slot_n; /* slots of a branch */
  bool any_edges, any_pattern;
  float *features; /* vision: [slot][n_features*D] */
  chi_arena arena, layer_arena;
  chi_err *err;
} chi_layers;

/* Bytes that chi_layers_init + chi_layers_run will ask for. */
size_t chi_layers_bytes(const chi_exec *x, const chi_live *live, int32_t chunk);
int chi_layers_init(chi_layers *L, const chi_exec *x, const chi_live *live, int32_t chunk, chi_err *err);
/* A site fires for every live row: newborn rows take their parent's value first, then interventions act in order,
 * then captures are emitted. buf is slot-indexed. */
int chi_layers_fire(chi_layers *L, chi_site site, int layer, float *buf, int64_t width);
/* res holds the stack's input for rows born before layer 0. done/total: progress in layers over all pieces. */
int chi_layers_run(chi_layers *L, int64_t done, int64_t total);
void chi_layers_free(chi_layers *L);

#endif

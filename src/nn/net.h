/* net: a whole network as the executors see it: vision tower, projector, decoder. Filled by model/, read-only after. */
#ifndef CHI_NET_H
#define CHI_NET_H

#include "nn/nn.h"
#include "nn/pages.h"
#include "nn/qformer.h"
#include "site/site.h"

#define CHI_MAX_FEATURES 8

/* Vision tower: patch embedding (+ class row) + learned positions, pre-norm, layers; features are residual states. */
typedef struct chi_vision {
  chi_block_spec spec; /* spec.layers: as many as the deepest feature needs */
  int32_t image_h, image_w, patch, grid_h, grid_w;
  int32_t rows; /* class row (if any) + grid_h * grid_w */
  bool has_cls;
  chi_linear patch_embed;            /* [d][3*patch*patch] */
  float *cls;                        /* [d] or NULL */
  float *pos;                        /* [rows][d] */
  chi_norm pre, post;                /* before layer 0 and of the rows that a Q-Former reads; w NULL = none */
  float post_eps;                    /* of post */
  chi_block *block;                  /* [spec.layers] */
  int32_t n_features;                /* >= 1: states that are concatenated for the projector */
  int32_t feature[CHI_MAX_FEATURES]; /* state after this many layers: 0 = pre-norm's output */
  int32_t select;                    /* first row taken: 1 drops the class row ('default'), 0 keeps it ('full') */
} chi_vision;

typedef struct chi_projector {
  chi_linear l1, l2; /* l2 empty: one layer, no activation */
  chi_act act;
} chi_projector;

typedef struct chi_decoder {
  chi_block_spec spec;
  const void *embed; /* [vocab][d], borrowed from the checkpoint's map */
  chi_dtype embed_dtype;
  int32_t vocab; /* rows of embed and of the head */
  float *pos;    /* [rope.n][d] learned positions, added after the embed site; NULL = none */
  chi_block *block;
  chi_norm final;
  chi_linear head;
  chi_rope rope;
} chi_decoder;

typedef struct chi_net {
  chi_compute compute;
  bool has_vision, has_qformer;
  chi_vision vision;
  chi_qformer qformer; /* between tower and projector: the projector's rows are its query rows */
  chi_projector projector;
  chi_decoder decoder;
  chi_shape shape;
  chi_pages *pages; /* decoder layers that come and go with a pass, or NULL: all stay */
} chi_net;

/* Fills net->shape from the parts. */
void chi_net_shape(chi_net *net);
void chi_net_free(chi_net *net);

const chi_block_spec *chi_net_spec(const chi_net *net, chi_stack stack); /* vision, qformer or decoder */
/* A pass asks for its layers in order: with net->pages this is what brings them in. */
const chi_block *chi_net_block(const chi_net *net, chi_stack stack, int layer);

/* pixels [3][h][w] -> rows [vision.rows][d]: patch + class + position embeddings, before the pre-norm. */
int chi_net_vision_embed(const chi_net *net, const float *pixels, float *rows, chi_err *err);
/* Pictures of another size: the learned positions are interpolated (chi_positions_resize). chi_net_shape comes after. */
int chi_net_vision_resize(chi_net *net, int32_t h, int32_t w, chi_err *err);
/* Pre-norm of m rows (copy where the tower has none). */
void chi_net_vision_pre(const chi_net *net, const float *x, float *y, int64_t m);
/* Norm of m rows that leave the tower (copy where there is none). In place allowed. */
void chi_net_vision_post(const chi_net *net, const float *x, float *y, int64_t m);
/* Columns of a projector's input row, and hidden neurons between its layers (0: one layer). */
int64_t chi_net_project_width(const chi_net *net);
int64_t chi_net_project_ffn(const chi_net *net);
/* x [m][width] -> act [m][ffn] -> out [m][d]; with one layer x is given to _out. */
int chi_net_project_act(const chi_net *net, const float *x, float *act, int64_t m, chi_err *err);
int chi_net_project_out(const chi_net *net, const float *act, float *out, int64_t m, chi_err *err);
/* One token's input embedding, without a position; zeros for an id that the vocabulary lacks (CHI_PICTURE_ID). */
void chi_net_embed_token(const chi_net *net, int32_t id, float *row);
/* Adds the learned position of decoder row `pos` to one row; nothing where the decoder has none. */
void chi_net_add_position(const chi_net *net, float *row, int32_t pos);
void chi_net_final_norm(const chi_net *net, const float *x, float *y, int64_t m);
int chi_net_logits(const chi_net *net, const float *x, float *logits, int64_t m, chi_err *err);

#endif

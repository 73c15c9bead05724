/* qformer: learned query rows that read the vision tower's rows through cross-attention (BLIP-2, MiniGPT-4). Its layers are
 * the one block of nn.h with post_norm and cross_every; here are its own weights and what surrounds the layers. */
#ifndef CHI_QFORMER_H
#define CHI_QFORMER_H

#include "nn/nn.h"

typedef struct chi_qformer {
  chi_block_spec spec;
  int32_t queries;
  float *query;   /* [queries][d] */
  chi_norm embed; /* of the query rows, before layer 0 */
  chi_block *block;
} chi_qformer;

/* x [m][d] -> y [m][d]: norm of the query rows. In place allowed. */
void chi_qformer_embed(const chi_qformer *q, const float *x, float *y, int64_t m);
void chi_qformer_free(chi_qformer *q);

/* Learned positions of a patch grid for another grid, as torch's interpolate(bicubic, align_corners=False) in f32 gives
 * them: in [h][w][d] -> out [h2][w2][d]. */
void chi_positions_resize(const float *in, int32_t h, int32_t w, float *out, int32_t h2, int32_t w2, int64_t d);

#endif

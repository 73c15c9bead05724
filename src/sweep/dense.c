/* The dense executor: every branch is a full forward over all its rows, nothing shared. With full.c this is the
 * definition of what a plan means; it is kept plain on purpose and the sweep must give its bits. */
#include <string.h>

#include "sweep/full.h"

/* Picture rows of the decoder's input: tower, features or Q-Former, projector. out [n_image_rows][d]. */
static int run_vision(chi_full *d, int b, const chi_input *in, float *out) {
  int rc = 0;
  const chi_net *net = d->x->net;
  const chi_vision *v = &net->vision;
  int32_t n = net->shape.n_image_rows;
  int64_t D = v->spec.d, F = D * v->n_features, ffn = chi_net_project_ffn(net);
  chi_arena a = {0};
  float *e = chi_arena_array(&a, (size_t)(v->rows * D), sizeof *e, d->err),
        *x = chi_arena_array(&a, (size_t)(v->rows * D), sizeof *x, d->err);
  float *feat = chi_arena_array(&a, (size_t)(v->rows * F), sizeof *feat, d->err),
        *act = chi_arena_array(&a, (size_t)(n * ffn), sizeof *act, d->err);
  float *query = chi_arena_array(&a, (size_t)(n * chi_net_project_width(net)), sizeof *query, d->err);
  if (!e || !x || !feat || !act || !query) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  CHI_TRY(chi_net_vision_embed(net, in->pixels, e, d->err));
  CHI_TRY(chi_full_fire(d, b, CHI_VISION, CHI_SITE_EMBED, -1, e, v->rows, D));
  chi_net_vision_pre(net, e, x, v->rows);
  CHI_TRY(chi_full_stack(d, b, CHI_VISION, x, v->rows, feat, NULL, 0));
  const float *in_rows = feat + v->select * F;
  if (net->has_qformer) {
    CHI_TRY(chi_full_qformer(d, b, x, query));
    in_rows = query;
  }
  if (ffn) {
    CHI_TRY(chi_net_project_act(net, in_rows, act, n, d->err));
    CHI_TRY(chi_full_fire(d, b, CHI_PROJECTOR, CHI_SITE_MLP_ACT, 0, act, n, ffn));
    in_rows = act;
  }
  CHI_TRY(chi_net_project_out(net, in_rows, out, n, d->err));
  CHI_TRY(chi_full_fire(d, b, CHI_PROJECTOR, CHI_SITE_MLP_OUT, 0, out, n, net->decoder.spec.d));
  CHI_TRY(chi_full_fire(d, b, CHI_DECODER, CHI_SITE_IMAGE_EMBED, -1, out, n, net->decoder.spec.d));
out:
  chi_arena_free(&a);
  return rc;
}

static int run_branch(chi_full *d, int b) {
  int rc = 0;
  const chi_net *net = d->x->net;
  const chi_input *in = chi_exec_input(d->x, b);
  int64_t D = net->decoder.spec.d, V = net->decoder.vocab;
  int32_t T = in->n_rows;
  chi_arena a = {0};
  float *x = chi_arena_array(&a, (size_t)(T * D), sizeof *x, d->err),
        *norm = chi_arena_array(&a, (size_t)D, sizeof *norm, d->err);
  float *logits = chi_arena_array(&a, (size_t)V, sizeof *logits, d->err);
  if (!x || !norm || !logits) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  if (in->cache) {
    rc = chi_fail(d->err, CHI_ERR_ARG, "the dense executor does not read a key/value cache");
    goto out;
  }
  for (int32_t r = 0; r < T; r++) chi_net_embed_token(net, in->tokens[r], x + r * D);
  if (in->pixels) CHI_TRY(run_vision(d, b, in, x + in->image_row * D));
  CHI_TRY(chi_full_fire(d, b, CHI_DECODER, CHI_SITE_EMBED, -1, x, T, D));
  for (int32_t r = 0; r < T; r++) chi_net_add_position(net, x + r * D, r);
  CHI_TRY(chi_full_stack(d, b, CHI_DECODER, x, T, NULL, NULL, 0));
  for (int32_t r = 0; r < T; r++) {
    if (!chi_full_wants_final(d, b, r)) continue;
    chi_net_final_norm(net, x + r * D, norm, 1);
    CHI_TRY(chi_full_fire_row(d, b, CHI_DECODER, CHI_SITE_FINAL_NORM, -1, r, norm, D, 0));
    CHI_TRY(chi_net_logits(net, norm, logits, 1, d->err));
    CHI_TRY(chi_full_fire_row(d, b, CHI_DECODER, CHI_SITE_LOGITS, -1, r, logits, V, 0));
  }
out:
  chi_arena_free(&a);
  return rc;
}

int chi_run_dense(chi_exec *x, chi_err *err) {
  chi_full d;
  int rc = chi_full_init(&d, x, NULL, NULL, err);
  for (size_t i = 0; rc == 0 && i < x->plan->n_branches; i++) {
    if (x->opts->what) rc = chi_progress(x->opts->what, (int64_t)i, (int64_t)x->plan->n_branches, err);
    if (rc == 0) rc = run_branch(&d, x->order[i]);
  }
  chi_full_free(&d);
  return rc;
}

/* The picture's way to the decoder: tower, Q-Former and projector, forward and back. */
#include <string.h>

#include "sweep/grad_internal.h"

static int open_qformer(chii_sight *g, chi_err *err) {
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  int64_t rows = net->vision.rows, d = net->vision.spec.d;
  int rc = chii_tape_init(&g->qf, net, CHI_QFORMER, &q->queries, NULL, 1, 0, 0, err);
  if (rc) return rc;
  g->states = chii_floats(&g->arena, rows, d, err);
  g->query = chii_floats(&g->arena, q->queries, q->spec.d, err);
  if (!g->states || !g->query) return CHI_ERR_MEMORY;
  g->qf.cross = g->states;
  g->qf.n_cross = (int32_t)rows;
  return chii_cross_init(&g->qf, err);
}

int chii_sight_open(chii_sight *g, const chi_net *net, const chi_input *in, chi_err *err) {
  *g = (chii_sight){.net = net, .in = in};
  const chi_vision *v = &net->vision;
  int64_t n = net->shape.n_image_rows, F = (int64_t)v->spec.d * v->n_features, ffn = chi_net_project_ffn(net);
  int rc = chii_tape_init(&g->vis, net, CHI_VISION, &v->rows, NULL, 1, 0, 0, err);
  if (rc == 0 && net->has_qformer) rc = open_qformer(g, err);
  if (rc) return rc;
  g->embed = chii_floats(&g->arena, v->rows, v->spec.d, err);
  g->feat = chii_floats(&g->arena, v->rows, F, err);
  g->pre = chii_floats(&g->arena, n, ffn, err);
  g->pact = chii_floats(&g->arena, n, ffn, err);
  g->proj = chii_floats(&g->arena, n, net->decoder.spec.d, err);
  if (!g->embed || !g->feat || !g->pre || !g->pact || !g->proj) return CHI_ERR_MEMORY;
  return chi_net_vision_embed(net, g->in->pixels, g->embed, err);
}

void chii_sight_close(chii_sight *g) {
  chi_arena_free(&g->vis.arena);
  chi_arena_free(&g->qf.arena);
  chi_arena_free(&g->arena);
}

/* Rows that the projector reads. */
static const float *projector_in(const chii_sight *g, int64_t *width) {
  const chi_vision *v = &g->net->vision;
  *width = chi_net_project_width(g->net);
  return g->net->has_qformer ? chii_layer_in(&g->qf, g->qf.s->layers) : g->feat + v->select * *width;
}

static int qformer_forward(chii_sight *g, const chi_grad_step *st, chi_err *err) {
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  chi_net_vision_post(net, chii_layer_in(&g->vis, g->vis.s->layers), g->states, net->vision.rows);
  memcpy(g->query, q->query, (size_t)q->queries * (size_t)q->spec.d * sizeof(float));
  chii_grad_touch(&g->qf, st, CHI_SITE_EMBED, -1, g->query, q->spec.d, false);
  chi_qformer_embed(q, g->query, chii_layer_in(&g->qf, 0), q->queries);
  return chii_stack_forward(&g->qf, st, err);
}

int chii_sight_forward(chii_sight *g, const chi_grad_step *st, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_vision *v = &net->vision;
  const chi_projector *p = &net->projector;
  int64_t D = v->spec.d, F = D * v->n_features, n = net->shape.n_image_rows, ffn = chi_net_project_ffn(net), width;
  memcpy(chii_layer_in(&g->vis, 0), g->embed, (size_t)(v->rows * D) * sizeof(float));
  chii_grad_touch(&g->vis, st, CHI_SITE_EMBED, -1, chii_layer_in(&g->vis, 0), D, false);
  float *e = chi_calloc((size_t)(v->rows * D), sizeof *e, err);
  if (!e) return CHI_ERR_MEMORY;
  memcpy(e, chii_layer_in(&g->vis, 0), (size_t)(v->rows * D) * sizeof *e);
  chi_net_vision_pre(net, e, chii_layer_in(&g->vis, 0), v->rows);
  chi_free(e);
  CHI_TRY(chii_stack_forward(&g->vis, st, err));
  for (int32_t f = 0; !net->has_qformer && f < v->n_features; f++)
    chi_rows_copy(g->feat + f * D, F, chii_layer_in(&g->vis, v->feature[f]), D, v->rows, D);
  if (net->has_qformer) CHI_TRY(qformer_forward(g, st, err));
  const float *in = projector_in(g, &width);
  if (ffn) {
    CHI_TRY(chi_gemm(&p->l1.w, in, width, g->pre, ffn, n, p->l1.bias, err));
    chi_act_rows(p->act, g->pre, ffn, NULL, 0, g->pact, ffn, n, ffn);
  }
  CHI_TRY(chi_net_project_out(net, ffn ? g->pact : in, g->proj, n, err));
out:
  return rc;
}

typedef struct features {
  const chii_sight *g;
  const float *d;
} features;
static void add_feature(void *ud, int state, float *d) {
  const features *f = ud;
  const chi_vision *v = &f->g->net->vision;
  int64_t D = v->spec.d, F = D * v->n_features;
  for (int32_t k = 0; k < v->n_features; k++)
    for (int32_t r = v->select; v->feature[k] == state && r < v->rows; r++)
      chi_rows_add(d + r * D, D, f->d + r * F + k * D, D, 1, D);
}

/* dout [n][d]: gradient at the projector's output -> din [n][width], set. */
static int projector_back(chii_sight *g, const chi_grad_step *st, const float *dout, float *din, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_projector *p = &net->projector;
  int64_t n = net->shape.n_image_rows, ffn = chi_net_project_ffn(net), dd = net->decoder.spec.d, width;
  const float *in = projector_in(g, &width);
  chi_arena a = {0};
  float *da = chii_floats(&a, n, ffn, err), *dp = chii_floats(&a, n, ffn, err);
  chii_tape pt = {.net = net, .stack = CHI_PROJECTOR, .s = &net->decoder.spec, .m = (int32_t)n};
  CHI_TRY(da && dp ? 0 : CHI_ERR_MEMORY);
  chii_give_site(&pt, st, CHI_SITE_MLP_OUT, 0, dout, 0, pt.m, dd);
  if (!ffn) {
    chii_give_weight(&pt, st, 0, CHI_W_PROJ1, in, dout, dd, width);
    rc = chi_gemm_t(&p->l1.w, dout, dd, din, width, n, err);
    goto out;
  }
  chii_give_weight(&pt, st, 0, CHI_W_PROJ2, g->pact, dout, dd, ffn);
  CHI_TRY(chi_gemm_t(&p->l2.w, dout, dd, da, ffn, n, err));
  chii_give_site(&pt, st, CHI_SITE_MLP_ACT, 0, da, 0, pt.m, ffn);
  chi_act_back(p->act, g->pre, NULL, da, dp, dp, n, ffn);
  chii_give_weight(&pt, st, 0, CHI_W_PROJ1, in, dp, ffn, width);
  CHI_TRY(chi_gemm_t(&p->l1.w, dp, ffn, din, width, n, err));
out:
  chi_arena_free(&a);
  return rc;
}

/* dq [queries][d]: gradient at the Q-Former's output; dx [vision.rows][d] becomes that at the tower's last states. */
static int qformer_back(chii_sight *g, const chi_grad_step *st, float *dq, float *dx, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_qformer *q = &net->qformer;
  const chi_vision *v = &net->vision;
  int64_t D = q->spec.d, rows = v->rows, vd = v->spec.d;
  chi_block_spec post = v->spec;
  float *de = chi_calloc((size_t)(q->queries * D), sizeof *de, err);
  post.eps = v->post_eps;
  if (!de) return CHI_ERR_MEMORY;
  memset(g->qf.dcross, 0, (size_t)(rows * vd) * sizeof(float));
  CHI_TRY(chii_stack_back(&g->qf, st, dq, NULL, NULL, err));
  chi_norm_back(&q->spec, &q->embed, g->query, dq, de, q->queries, D, NULL, NULL);
  chii_grad_pass(&g->qf, st, CHI_SITE_EMBED, -1, de, D);
  if (!v->post.w) {
    memcpy(dx, g->qf.dcross, (size_t)(rows * vd) * sizeof *dx);
    goto out;
  }
  chii_give_site(&g->vis, st, CHI_SITE_FINAL_NORM, -1, g->qf.dcross, 0, g->vis.m, vd);
  chi_norm_back(&post, &v->post, chii_layer_in(&g->vis, g->vis.s->layers), g->qf.dcross, dx, rows, vd, NULL, NULL);
out:
  chi_free(de);
  return rc;
}

int chii_sight_back(chii_sight *g, const chi_grad_step *st, const float *dout, chi_err *err) {
  int rc = 0;
  const chi_net *net = g->net;
  const chi_vision *v = &net->vision;
  int64_t D = v->spec.d, width = chi_net_project_width(net), n = net->shape.n_image_rows;
  chi_arena a = {0};
  float *df = chii_floats(&a, n + v->rows, width, err), *dx = chii_floats(&a, v->rows, D, err),
        *de = chii_floats(&a, v->rows, D, err);
  CHI_TRY(df && dx && de ? 0 : CHI_ERR_MEMORY);
  if (net->has_qformer) {
    CHI_TRY(projector_back(g, st, dout, df, err));
    CHI_TRY(qformer_back(g, st, df, dx, err));
    CHI_TRY(chii_stack_back(&g->vis, st, dx, NULL, NULL, err));
  } else {
    CHI_TRY(projector_back(g, st, dout, df + v->select * width, err));
    CHI_TRY(chii_stack_back(&g->vis, st, dx, add_feature, &(features){g, df}, err));
  }
  if (v->pre.w)
    chi_norm_back(&v->spec, &v->pre, g->embed, dx, de, v->rows, D, NULL,
                  NULL); /* embed interventions: none in between */
  else
    memcpy(de, dx, (size_t)(v->rows * D) * sizeof *de);
  chii_give_site(&g->vis, st, CHI_SITE_EMBED, -1, de, 0, g->vis.m, D);
out:
  chi_arena_free(&a);
  return rc;
}

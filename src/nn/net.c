/* Vision embeddings, projector, token embeddings, final norm and head. */
#include "nn/net.h"

#include <string.h>

#include "image/image.h"

static chi_stack_shape block_shape(const chi_block_spec *s, int32_t rows) {
  return (chi_stack_shape){.layers = s->layers,
                           .d = s->d,
                           .heads = s->heads,
                           .kv_heads = s->kv_heads,
                           .head_dim = s->head_dim,
                           .ffn = s->ffn,
                           .rows = rows,
                           .causal = s->causal,
                           .cross_every = s->cross_every,
                           .present = true};
}

void chi_net_shape(chi_net *net) {
  chi_shape *s = &net->shape;
  memset(s, 0, sizeof *s);
  s->stack[CHI_DECODER] = block_shape(&net->decoder.spec, net->decoder.rope.n);
  s->vocab = net->decoder.vocab;
  if (!net->has_vision) return;
  s->stack[CHI_VISION] = block_shape(&net->vision.spec, net->vision.rows);
  s->stack[CHI_VISION].final_norm = net->vision.post.w != NULL;
  if (net->has_qformer) {
    s->stack[CHI_QFORMER] = block_shape(&net->qformer.spec, net->qformer.queries);
    s->stack[CHI_QFORMER].cross_keys = net->vision.rows;
  }
  s->n_image_rows = net->has_qformer ? net->qformer.queries : net->vision.rows - net->vision.select;
  s->vision_select = net->has_qformer ? -1 : net->vision.select;
  s->stack[CHI_PROJECTOR] = (chi_stack_shape){.layers = 1,
                                              .d = net->decoder.spec.d,
                                              .ffn = (int32_t)chi_net_project_ffn(net),
                                              .rows = s->n_image_rows,
                                              .present = true};
}

static void free_blocks(chi_block *b, int32_t n) {
  for (int32_t i = 0; b && i < n; i++) chi_block_free(&b[i]);
  chi_free(b);
}

void chi_net_free(chi_net *net) {
  chi_vision *v = &net->vision;
  chi_decoder *d = &net->decoder;
  free_blocks(v->block, v->spec.layers);
  free_blocks(d->block, d->spec.layers);
  chi_linear_free(&v->patch_embed);
  chi_free(v->cls);
  chi_free(v->pos);
  chi_norm_free(&v->pre);
  chi_norm_free(&v->post);
  chi_qformer_free(&net->qformer);
  chi_linear_free(&net->projector.l1);
  chi_linear_free(&net->projector.l2);
  chi_norm_free(&d->final);
  chi_linear_free(&d->head);
  chi_free(d->pos);
  chi_free(d->rope.cos_t);
  chi_free(d->rope.sin_t);
  chi_pages_free(net->pages);
  memset(net, 0, sizeof *net);
}

const chi_block_spec *chi_net_spec(const chi_net *net, chi_stack stack) {
  return stack == CHI_VISION ? &net->vision.spec : stack == CHI_QFORMER ? &net->qformer.spec : &net->decoder.spec;
}

const chi_block *chi_net_block(const chi_net *net, chi_stack stack, int layer) {
  if (net->pages && stack == CHI_DECODER) chi_pages_visit(net->pages, layer);
  return stack == CHI_VISION    ? &net->vision.block[layer]
         : stack == CHI_QFORMER ? &net->qformer.block[layer]
                                : &net->decoder.block[layer];
}

int chi_net_vision_embed(const chi_net *net, const float *pixels, float *rows, chi_err *err) {
  int rc = 0;
  const chi_vision *v = &net->vision;
  int64_t d = v->spec.d, n = (int64_t)v->grid_h * v->grid_w, k = v->patch_embed.w.k;
  float *cols = chi_calloc((size_t)n * (size_t)k, sizeof *cols, err);
  if (!cols) return CHI_ERR_MEMORY;
  chi_patchify(pixels, v->image_h, v->image_w, v->patch, cols);
  float *first = rows + (v->has_cls ? d : 0);
  CHI_TRY(chi_gemm(&v->patch_embed.w, cols, k, first, d, n, v->patch_embed.bias, err));
  if (v->has_cls) memcpy(rows, v->cls, (size_t)d * sizeof *rows);
  chi_rows_add(rows, d, v->pos, d, v->rows, d);
out:
  chi_free(cols);
  return rc;
}

int chi_net_vision_resize(chi_net *net, int32_t h, int32_t w, chi_err *err) {
  chi_vision *v = &net->vision;
  int32_t gh = h / v->patch, gw = w / v->patch, rows = gh * gw + v->has_cls;
  int64_t d = v->spec.d, skip = v->has_cls ? d : 0;
  if (gh < 1 || gw < 1)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "a picture of %dx%d holds no patch of %d", w, h, v->patch);
  if (v->pos) { /* NULL in a model that was only looked at */
    float *pos = chi_calloc((size_t)rows * (size_t)d, sizeof *pos, err);
    if (!pos) return CHI_ERR_MEMORY;
    memcpy(pos, v->pos, (size_t)skip * sizeof *pos);
    chi_positions_resize(v->pos + skip, v->grid_h, v->grid_w, pos + skip, gh, gw, d);
    chi_free(v->pos);
    v->pos = pos;
  }
  v->image_h = h, v->image_w = w;
  v->grid_h = gh, v->grid_w = gw, v->rows = rows;
  return 0;
}

static void norm_or_copy(const chi_vision *v, const chi_norm *n, float eps, const float *x, float *y, int64_t m) {
  chi_block_spec s = v->spec;
  s.eps = eps;
  if (n->w)
    chi_norm_rows(&s, n, x, y, m, s.d);
  else if (x != y)
    memcpy(y, x, (size_t)m * (size_t)v->spec.d * sizeof *y);
}

void chi_net_vision_pre(const chi_net *net, const float *x, float *y, int64_t m) {
  norm_or_copy(&net->vision, &net->vision.pre, net->vision.spec.eps, x, y, m);
}

void chi_net_vision_post(const chi_net *net, const float *x, float *y, int64_t m) {
  norm_or_copy(&net->vision, &net->vision.post, net->vision.post_eps, x, y, m);
}

int64_t chi_net_project_width(const chi_net *net) {
  return net->has_qformer ? net->qformer.spec.d : (int64_t)net->vision.spec.d * net->vision.n_features;
}

int64_t chi_net_project_ffn(const chi_net *net) { return net->projector.l2.w.n ? net->projector.l1.w.n : 0; }

int chi_net_project_act(const chi_net *net, const float *x, float *act, int64_t m, chi_err *err) {
  const chi_projector *p = &net->projector;
  int64_t k = p->l1.w.k, n = p->l1.w.n;
  int rc = chi_gemm(&p->l1.w, x, k, act, n, m, p->l1.bias, err);
  if (rc == 0) chi_act_rows(p->act, act, n, NULL, 0, act, n, m, n);
  return rc;
}

int chi_net_project_out(const chi_net *net, const float *act, float *out, int64_t m, chi_err *err) {
  const chi_linear *l = net->projector.l2.w.n ? &net->projector.l2 : &net->projector.l1;
  return chi_gemm(&l->w, act, l->w.k, out, l->w.n, m, l->bias, err);
}

void chi_net_embed_token(const chi_net *net, int32_t id, float *row) {
  const chi_decoder *d = &net->decoder;
  size_t n = (size_t)d->spec.d;
  if (id < 0 || id >= d->vocab) {
    memset(row, 0, n * sizeof *row);
    return;
  }
  const uint8_t *src = (const uint8_t *)d->embed + chi_dtype_bytes(d->embed_dtype, (size_t)id * n);
  chi_to_f32(row, src, d->embed_dtype, n, NULL); /* cannot fail: the dtype was checked when the model was bound */
}

void chi_net_add_position(const chi_net *net, float *row, int32_t pos) {
  const chi_decoder *d = &net->decoder;
  int64_t n = d->spec.d;
  if (d->pos) chi_rows_add(row, n, d->pos + pos * n, n, 1, n);
}

void chi_net_final_norm(const chi_net *net, const float *x, float *y, int64_t m) {
  chi_norm_rows(&net->decoder.spec, &net->decoder.final, x, y, m, net->decoder.spec.d);
}

int chi_net_logits(const chi_net *net, const float *x, float *logits, int64_t m, chi_err *err) {
  const chi_decoder *d = &net->decoder;
  return chi_gemm(&d->head.w, x, d->spec.d, logits, d->head.w.n, m, d->head.bias, err);
}

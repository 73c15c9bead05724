#include "support/randnet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

/* ---- numbers (splitmix64) ------------------------------------------------------------------------------------ */
uint32_t rnd_u32(rnd *r) {
  uint64_t z = (r->s += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (uint32_t)((z ^ (z >> 31)) >> 32);
}

int32_t rnd_range(rnd *r, int32_t lo, int32_t hi) { return lo + (int32_t)(rnd_u32(r) % (uint32_t)(hi - lo)); }

bool rnd_chance(rnd *r, double p) { return (double)rnd_u32(r) < p * 4294967296.0; }

float rnd_normal(rnd *r) { /* 12 uniforms have variance 1 */
  float x = 0;
  for (int i = 0; i < 12; i++) x += (float)(rnd_u32(r) >> 8) * 0x1p-24f;
  return x - 6.0f;
}

#define ONE_OF(r, ...) \
  (((const int32_t[]){__VA_ARGS__})[rnd_range(r, 0, (int32_t)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)))])

/* ---- weights ------------------------------------------------------------------------------------------------- */
static float *vector(rnd *r, int64_t n, float mean, float std) {
  float *v = chi_calloc((size_t)n, sizeof *v, NULL);
  assert_non_null(v);
  for (int64_t i = 0; i < n; i++) v[i] = mean + std * rnd_normal(r);
  return v;
}

/* Values as they lie in a checkpoint of this type; owned by the caller. */
static void *stored(rnd *r, int64_t n, float std, chi_dtype t) {
  float *v = vector(r, n, 0, std);
  if (t == CHI_F32) return v;
  uint16_t *h = chi_calloc((size_t)n, sizeof *h, NULL);
  assert_non_null(h);
  for (int64_t i = 0; i < n; i++) h[i] = t == CHI_F16 ? chi_f16_from_f32(v[i]) : chi_bf16_from_f32(v[i]);
  chi_free(v);
  return h;
}

static void linear(rnd *r, chi_linear *l, int64_t n, int64_t k, bool bias, chi_dtype t, chi_compute compute) {
  void *w = stored(r, n * k, 1.0f / sqrtf((float)k), t);
  assert_works(chi_mat_pack(&l->w, w, t, n, k, k, compute, err));
  chi_free(w);
  if (bias) l->bias = vector(r, n, 0, 0.3f);
}

static void norm(rnd *r, chi_norm *n, const chi_block_spec *s) {
  n->w = vector(r, s->d, 1.0f, 0.2f);
  if (s->norm == CHI_NORM_LAYER) n->b = vector(r, s->d, 0, rnd_chance(r, 0.8) ? 0.3f : 0.0f);
}

static chi_block_spec block_spec(rnd *r, bool vision) {
  int32_t kv = ONE_OF(r, 1, 1, 2, 3), group = ONE_OF(r, 1, 1, 2, 3), hd = ONE_OF(r, 5, 6, 8, 12, 16, 20);
  chi_block_spec s = {.layers = vision ? rnd_range(r, 1, 4) : rnd_range(r, 2, 5),
                      .d = ONE_OF(r, 16, 20, 24, 31, 32, 33, 40, 48),
                      .heads = kv * group,
                      .kv_heads = kv,
                      .head_dim = hd,
                      .ffn = ONE_OF(r, 11, 24, 32, 37, 64, 70),
                      .norm = rnd_chance(r, vision ? 0.8 : 0.4) ? CHI_NORM_LAYER : CHI_NORM_RMS,
                      .eps = 1e-5f,
                      .causal = !vision,
                      .parallel = rnd_chance(r, 0.35),
                      .gated = rnd_chance(r, vision ? 0.2 : 0.6),
                      .act = (chi_act)rnd_range(r, CHI_ACT_SILU, CHI_ACT_RELU + 1)};
  if (!vision) s.rope_half = ONE_OF(r, 0, hd / 4, hd / 2, hd / 2);
  s.attn_scale = 1.0f / sqrtf((float)hd);
  return s;
}

static chi_block *blocks(rnd *r, const chi_block_spec *s, chi_compute compute) {
  chi_block *b = chi_calloc((size_t)s->layers, sizeof *b, NULL);
  assert_non_null(b);
  int64_t nq = (int64_t)s->heads * s->head_dim, nkv = (int64_t)s->kv_heads * s->head_dim;
  chi_dtype t = (chi_dtype)rnd_range(r, CHI_F32, CHI_BF16 + 1);
  bool qkv_bias = rnd_chance(r, 0.5), o_bias = rnd_chance(r, 0.5), mlp_bias = rnd_chance(r, 0.5);
  for (int32_t l = 0; l < s->layers; l++) {
    norm(r, &b[l].norm1, s);
    if (!s->parallel) norm(r, &b[l].norm2, s);
    if (chi_block_has_cross(s, l)) {
      norm(r, &b[l].norm_x, s);
      linear(r, &b[l].xq, nq, s->d, qkv_bias, t, compute);
      linear(r, &b[l].xk, nkv, s->cross_d, qkv_bias, t, compute);
      linear(r, &b[l].xv, nkv, s->cross_d, qkv_bias, t, compute);
      linear(r, &b[l].xo, s->d, nq, o_bias, t, compute);
    }
    linear(r, &b[l].q, nq, s->d, qkv_bias, t, compute);
    linear(r, &b[l].k, nkv, s->d, qkv_bias, t, compute);
    linear(r, &b[l].v, nkv, s->d, qkv_bias, t, compute);
    linear(r, &b[l].o, s->d, nq, o_bias, t, compute);
    if (s->gated) linear(r, &b[l].gate, s->ffn, s->d, mlp_bias, t, compute);
    linear(r, &b[l].up, s->ffn, s->d, mlp_bias, t, compute);
    linear(r, &b[l].down, s->d, s->ffn, mlp_bias, t, compute);
  }
  return b;
}

/* Sometimes, for networks that may have it. */
static void post_norm(rnd *r, chi_block_spec *s, const randnet_opts *o) {
  if (o->post_norm && !s->parallel) s->post_norm = rnd_chance(r, 0.25);
}

static void make_decoder(rnd *r, randnet *n, const randnet_opts *o) {
  chi_decoder *d = &n->net.decoder;
  d->spec = block_spec(r, false);
  post_norm(r, &d->spec, o);
  d->vocab = RANDNET_VOCAB;
  d->embed_dtype = (chi_dtype)rnd_range(r, CHI_F32, CHI_BF16 + 1);
  d->embed = n->embed = stored(r, (int64_t)d->vocab * d->spec.d, 1.0f, d->embed_dtype);
  d->block = blocks(r, &d->spec, n->net.compute);
  norm(r, &d->final, &d->spec);
  linear(r, &d->head, d->vocab, d->spec.d, rnd_chance(r, 0.4), CHI_F32, n->net.compute);
  d->rope.n = 160;
  size_t table = (size_t)d->rope.n * (size_t)d->spec.rope_half;
  d->rope.cos_t = chi_calloc(table, sizeof(float), NULL);
  d->rope.sin_t = chi_calloc(table, sizeof(float), NULL);
  chi_rope_table(d->rope.cos_t, d->rope.sin_t, d->rope.n, d->spec.rope_half, 10000.0, rnd_chance(r, 0.2) ? 2.0 : 1.0);
  if (rnd_chance(r, 0.3)) { /* learned positions */
    d->pos = chi_calloc((size_t)d->rope.n * (size_t)d->spec.d, sizeof *d->pos, NULL);
    assert_non_null(d->pos);
    for (int64_t i = 0; i < (int64_t)d->rope.n * d->spec.d; i++) d->pos[i] = rnd_normal(r);
  }
  if (rnd_chance(r, 0.3)) { /* a sliding window, from some layer on */
    d->spec.window = ONE_OF(r, 1, 3, 17, 32, 40);
    d->spec.window_from = rnd_range(r, 0, d->spec.layers);
  }
}

static void make_vision(rnd *r, randnet *n, const randnet_opts *o) {
  chi_net *net = &n->net;
  chi_vision *v = &net->vision;
  net->has_vision = true;
  v->spec = block_spec(r, true);
  post_norm(r, &v->spec, o);
  v->patch = rnd_range(r, 1, 4);
  v->grid_h = rnd_range(r, 1, 6);
  v->grid_w = rnd_range(r, 2, 8);
  v->image_h = v->grid_h * v->patch + rnd_range(r, 0, v->patch); /* the rest fills no patch */
  v->image_w = v->grid_w * v->patch;
  v->has_cls = rnd_chance(r, 0.7);
  v->select = v->has_cls && rnd_chance(r, 0.6);
  v->rows = v->grid_h * v->grid_w + v->has_cls;
  linear(r, &v->patch_embed, v->spec.d, 3 * v->patch * v->patch, rnd_chance(r, 0.3), CHI_F32, net->compute);
  if (v->has_cls) v->cls = vector(r, v->spec.d, 0, 1.0f);
  v->pos = vector(r, (int64_t)v->rows * v->spec.d, 0, 0.5f);
  if (rnd_chance(r, 0.5)) norm(r, &v->pre, &v->spec);
  v->block = blocks(r, &v->spec, net->compute);
  v->n_features = rnd_range(r, 1, 4);
  for (int32_t f = 0; f < v->n_features; f++) v->feature[f] = rnd_range(r, 0, v->spec.layers + 1);
  if (rnd_chance(r, 0.8)) v->feature[0] = v->spec.layers;
  chi_dtype t = (chi_dtype)rnd_range(r, CHI_F32, CHI_BF16 + 1);
  bool bias = rnd_chance(r, 0.5);
  linear(r, &net->projector.l1, ONE_OF(r, 13, 32, 45), (int64_t)v->spec.d * v->n_features, bias, t, net->compute);
  linear(r, &net->projector.l2, net->decoder.spec.d, net->projector.l1.w.n, bias, t, net->compute);
  net->projector.act = CHI_ACT_GELU_ERF;
  for (int i = 0; i < RANDNET_PICTURES; i++) n->pixels[i] = vector(r, 3 * (int64_t)v->image_h * v->image_w, 0, 1.0f);
}

/* In place of the projector that make_vision made: a Q-Former that reads all rows of the tower. */
static void make_qformer(rnd *r, randnet *n) {
  chi_net *net = &n->net;
  chi_vision *v = &net->vision;
  chi_qformer *q = &net->qformer;
  net->has_qformer = true;
  v->select = 0;
  v->n_features = 1;
  v->feature[0] = v->spec.layers;
  if (rnd_chance(r, 0.8)) norm(r, &v->post, &v->spec);
  v->post_eps = 1e-3f;
  q->spec = block_spec(r, true);
  q->spec.post_norm = rnd_chance(r, 0.9);
  q->spec.parallel = false;
  q->spec.layers = rnd_range(r, 1, 5);
  if (q->spec.post_norm) q->spec.cross_every = rnd_range(r, 1, 4);
  q->spec.cross_d = v->spec.d;
  q->queries = rnd_range(r, 1, 7);
  chi_compute compute = rnd_chance(r, 0.5) ? CHI_COMPUTE_F32 : net->compute; /* as families keep it */
  q->query = vector(r, (int64_t)q->queries * q->spec.d, 0, 1.0f);
  norm(r, &q->embed, &q->spec);
  q->block = blocks(r, &q->spec, compute);
  chi_linear_free(&net->projector.l1);
  chi_linear_free(&net->projector.l2);
  bool deep = rnd_chance(r, 0.3);
  linear(r, &net->projector.l1, deep ? 19 : net->decoder.spec.d, q->spec.d, rnd_chance(r, 0.7), CHI_F32, net->compute);
  if (deep) linear(r, &net->projector.l2, net->decoder.spec.d, 19, true, CHI_F32, net->compute);
}

void randnet_make(randnet *n, const randnet_opts *o) {
  rnd r = {o->seed};
  memset(n, 0, sizeof *n);
  n->net.compute = o->compute >= 0        ? (chi_compute)o->compute
                   : rnd_chance(&r, 0.35) ? CHI_COMPUTE_BF16
                                          : CHI_COMPUTE_F32;
  make_decoder(&r, n, o);
  if (o->vision > 0 || (o->vision < 0 && rnd_chance(&r, 0.6))) make_vision(&r, n, o);
  if (o->qformer && n->net.has_vision) make_qformer(&r, n);
  chi_net_shape(&n->net);
}

void randnet_free(randnet *n) {
  chi_net_free(&n->net);
  chi_free(n->embed);
  for (int i = 0; i < RANDNET_PICTURES; i++) chi_free(n->pixels[i]);
}

static int describe(char *buf, size_t cap, const char *what, const chi_block_spec *s) {
  return snprintf(buf, cap, "%s %dx%d %d/%d heads of %d, ffn %d%s, %s%s, rope %d", what, s->layers, s->d, s->heads,
                  s->kv_heads, s->head_dim, s->ffn, s->gated ? " gated" : "", s->norm == CHI_NORM_RMS ? "rms" : "layer",
                  s->parallel    ? " parallel"
                  : s->post_norm ? " post-norm"
                                 : "",
                  s->rope_half);
}

const char *randnet_name(const randnet *n) {
  static char buf[4][512];
  static unsigned next;
  char *p = buf[next++ % 4];
  const chi_vision *v = &n->net.vision;
  int at = describe(p, 512, n->net.compute == CHI_COMPUTE_BF16 ? "bf16 decoder" : "f32 decoder", &n->net.decoder.spec);
  if (!n->net.has_vision) return p;
  at += describe(p + at, 512 - (size_t)at, "; vision", &v->spec);
  if (n->net.has_qformer) {
    at += describe(p + at, 512 - (size_t)at, "; qformer", &n->net.qformer.spec);
    at += snprintf(p + at, 512 - (size_t)at, " cross every %d, %d queries", n->net.qformer.spec.cross_every,
                   n->net.qformer.queries);
  }
  snprintf(p + at, 512 - (size_t)at, ", %d rows from %d, %d features", v->rows, v->select, v->n_features);
  return p;
}

/* Deltas on an opened model: check, apply, undo. */
#include <string.h>

#include "edit/delta.h"

typedef struct add_job {
  const chi_delta_part *p;
  int64_t row0;
  float *w;
} add_job;

/* One row; f64, rounded once. An unchanged element keeps its bits. */
static void add_row(void *ud, int64_t i) {
  const add_job *j = ud;
  const chi_delta_part *p = j->p;
  float *w = j->w + i * p->k;
  int64_t row = j->row0 + i;
  for (int64_t c = 0; c < p->k; c++) {
    double s = p->d ? (double)p->d[row * p->k + c] : 0;
    for (int64_t r = 0; r < p->rank; r++) s += (double)p->u[r * p->n + row] * (double)p->v[r * p->k + c];
    if (s != 0) w[c] = (float)((double)w[c] + s);
  }
}

void chi_delta_add_to(const chi_delta_part *p, int64_t row0, int64_t rows, float *w) {
  add_job j = {p, row0, w};
  chi_parallel_for(rows, add_row, &j);
}

chi_linear *chi_delta_linear(chi_model *m, chi_stack stack, int layer, int which) {
  chi_net *net = &m->net;
  if (which == CHI_DELTA_HEAD_BIAS) return stack == CHI_DECODER && layer == 0 ? &net->decoder.head : NULL;
  if (stack == CHI_PROJECTOR) {
    chi_linear *l = which == CHI_W_PROJ1 ? &net->projector.l1 : which == CHI_W_PROJ2 ? &net->projector.l2 : NULL;
    return net->has_vision && layer == 0 && l && l->w.data ? l : NULL;
  }
  chi_block *block = stack == CHI_DECODER                       ? net->decoder.block
                     : stack == CHI_VISION && net->has_vision   ? net->vision.block
                     : stack == CHI_QFORMER && net->has_qformer ? net->qformer.block
                                                                : NULL;
  if (!block || layer < 0 || layer >= chi_net_spec(net, stack)->layers) return NULL;
  chi_block *b = &block[layer];
  chi_linear *all[CHI_W_COUNT] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down, NULL, NULL};
  return which >= 0 && which < CHI_W_COUNT && all[which] && all[which]->w.data ? all[which] : NULL;
}

int chi_delta_check(const chi_delta *d, chi_model *m, bool force, chi_err *err) {
  char name[96];
  if (!force) {
    int rc = chi_model_hash(m, err);
    if (rc) return rc;
    if (!chi_streq(chi_delta_base(d), m->hash))
      return chi_fail(err, CHI_ERR_ARG, "the delta was made for another model (base %.12s, %s is %.12s)",
                      *chi_delta_base(d) ? chi_delta_base(d) : "unknown", m->path, m->hash);
  }
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    chi_delta_part_name(p, name, sizeof name);
    const chi_linear *l = chi_delta_linear(m, p->stack, p->layer, p->which);
    if (!l) return chi_fail(err, CHI_ERR_ARG, "the delta changes %s, which %s does not have", name, m->path);
    int64_t n = l->w.n, k = p->which == CHI_DELTA_HEAD_BIAS ? 1 : l->w.k;
    if (n != p->n || k != p->k)
      return chi_fail(err, CHI_ERR_ARG, "the delta changes %s of %lldx%lld; in %s it is %lldx%lld", name,
                      (long long)p->n, (long long)p->k, m->path, (long long)n, (long long)k);
  }
  return 0;
}

static int keep(chi_undo *u, chi_linear *to, bool bias, chi_err *err) {
  void *p = u->item;
  int rc = chi_grow(&p, &u->cap, u->n + 1, sizeof *u->item, err);
  if (rc) return rc;
  u->item = p;
  u->item[u->n].to = to;
  u->item[u->n].was = *to;
  u->item[u->n++].bias = bias;
  return 0;
}

static int add_prefix(const chi_delta *d, chi_model *m, chi_undo *u, chi_err *err) {
  const char *text = chi_delta_prefix(d);
  if (!text) return 0;
  if (m->prompt_prefix)
    return chi_fail(err, CHI_ERR_ARG, "two in-context edits cannot stand in one prompt: apply one of them");
  size_t n = strlen(text) + 1;
  m->prompt_prefix = chi_calloc(n, 1, err);
  if (!m->prompt_prefix) return CHI_ERR_MEMORY;
  memcpy(m->prompt_prefix, text, n);
  u->prefixed = m;
  return 0;
}

static void undo_to(chi_undo *u, size_t n) {
  while (u->n > n) {
    u->n--;
    chi_linear *to = u->item[u->n].to;
    if (u->item[u->n].bias) {
      chi_free(to->bias);
      to->bias = u->item[u->n].was.bias;
    } else {
      chi_mat_free(&to->w);
      to->w = u->item[u->n].was.w;
    }
  }
}

void chi_delta_undo(chi_undo *u) {
  if (u->prefixed) {
    chi_free(u->prefixed->prompt_prefix);
    u->prefixed->prompt_prefix = NULL;
  }
  undo_to(u, 0);
  chi_undo_free(u);
}

void chi_undo_free(chi_undo *u) {
  for (size_t i = 0; i < u->n; i++) {
    if (u->item[i].bias)
      chi_free(u->item[i].was.bias);
    else
      chi_mat_free(&u->item[i].was.w);
  }
  chi_free(u->item);
  *u = (chi_undo){0};
}

static int apply_bias(const chi_delta_part *p, chi_linear *l, chi_undo *u, chi_err *err) {
  float *b = chi_calloc((size_t)p->n, sizeof *b, err);
  if (!b) return CHI_ERR_MEMORY;
  if (l->bias) memcpy(b, l->bias, (size_t)p->n * sizeof *b);
  chi_delta_add_to(p, 0, p->n, b);
  int rc = keep(u, l, true, err);
  if (rc)
    chi_free(b);
  else
    l->bias = b;
  return rc;
}

static int apply_part(const chi_delta_part *p, chi_linear *l, chi_undo *u, chi_err *err) {
  int rc = 0;
  chi_mat next = {0};
  if (p->which == CHI_DELTA_HEAD_BIAS) return apply_bias(p, l, u, err);
  float *w = chi_calloc((size_t)(p->n * p->k), sizeof *w, err);
  if (!w) return CHI_ERR_MEMORY;
  chi_mat_read(&l->w, 0, p->n, w);
  chi_delta_add_to(p, 0, p->n, w);
  CHI_TRY(chi_mat_pack(&next, w, CHI_F32, p->n, p->k, p->k, l->w.compute, err));
  rc = keep(u, l, false, err);
  if (rc)
    chi_mat_free(&next);
  else
    l->w = next;
out:
  chi_free(w);
  return rc;
}

int chi_delta_apply(const chi_delta *d, chi_model *m, chi_undo *undo, chi_err *err) {
  int rc = 0;
  chi_undo own = {0}, *u = undo ? undo : &own;
  size_t before = u->n;
  bool prefixed = false;
  CHI_TRY(chi_delta_check(d, m, true, err));
  CHI_TRY(add_prefix(d, m, u, err));
  prefixed = u->prefixed && chi_delta_prefix(d);
  for (size_t i = 0; i < d->n; i++) {
    const chi_delta_part *p = &d->part[i];
    CHI_TRY(apply_part(p, chi_delta_linear(m, p->stack, p->layer, p->which), u, err));
  }
out:
  if (rc) undo_to(u, before);
  if (rc && prefixed) {
    chi_free(m->prompt_prefix);
    m->prompt_prefix = NULL;
    u->prefixed = NULL;
  }
  if (!undo) chi_undo_free(&own);
  return rc;
}

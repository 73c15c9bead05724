/* Heads switched off one by one; see headscan.h. */
#include "analyze/headscan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int chi_headscan_plan(chi_plan **out, const chi_model *m, const chi_prompt *p, const chi_headscan_opts *o,
                      chi_err *err) {
  int rc = 0, root, branch;
  const chi_block_spec *k = &m->net.decoder.spec;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(p);
  int32_t last = p->n_rows - 1, *rows = chi_calloc((size_t)p->n_rows, sizeof *rows, err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < p->n_rows; i++) rows[i] = i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  for (int32_t i = -1; i < k->layers * k->heads; i++) {
    branch = root;
    if (i >= 0) {
      chi_intervention iv = {.op = CHI_OP_ZERO,
                             .stack = CHI_DECODER,
                             .site = CHI_SITE_HEAD_OUT,
                             .layer_lo = i / k->heads,
                             .layer_hi = i / k->heads + 1,
                             .rows = o->last_row ? &last : rows,
                             .n_rows = o->last_row ? 1 : p->n_rows,
                             .part_lo = i % k->heads,
                             .part_hi = i % k->heads + 1};
      CHI_TRY(chi_plan_child(plan, root, &branch, err));
      CHI_TRY(chi_plan_intervene(plan, branch, &iv, 0, err));
    }
    chi_capture c = {
        .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
    CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  }
  *out = plan;
  plan = NULL;
out:
  chi_free(rows);
  chi_plan_free(plan);
  return rc;
}

/* Captures may come in any order, and the target may be the clean run's own: logits are kept until all are there. */
typedef struct receiver {
  float *logits; /* [1 + layers*heads][vocab] */
} receiver;

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)i;
  memcpy(((receiver *)ud)->logits + (int64_t)capture * width, v, (size_t)width * sizeof *v);
  return 0;
}

typedef struct ranked {
  double drop;
  int32_t at;
} ranked;

static int by_drop(const void *x, const void *y) {
  const ranked *a = x, *b = y;
  return a->drop > b->drop ? -1 : a->drop < b->drop ? 1 : a->at - b->at;
}

static int sort_heads(chi_headscan *s, int64_t n, chi_err *err) {
  ranked *r = chi_calloc((size_t)n, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) r[i] = (ranked){s->drop[i], (int32_t)i};
  qsort(r, (size_t)n, sizeof *r, by_drop);
  for (int64_t i = 0; i < n; i++) s->order[i] = r[i].at;
  chi_free(r);
  return 0;
}

int chi_headscan_run(chi_headscan **out, const chi_model *m, const chi_prompt *p, const chi_headscan_opts *o,
                     chi_err *err) {
  int rc = 0;
  const chi_block_spec *k = &m->net.decoder.spec;
  int64_t n = (int64_t)k->layers * k->heads, V = m->net.decoder.vocab;
  chi_plan *plan = NULL;
  receiver r = {0};
  double *clean = NULL;
  chi_headscan *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  s->model = m, s->prompt = p, s->layers = k->layers, s->heads = k->heads;
  s->cell = chi_arena_array(&s->arena, (size_t)n, sizeof *s->cell, err);
  s->drop = chi_arena_array(&s->arena, (size_t)n, sizeof *s->drop, err);
  s->order = chi_arena_array(&s->arena, (size_t)n, sizeof *s->order, err);
  r.logits = chi_calloc((size_t)((n + 1) * V), sizeof *r.logits, err);
  clean = chi_calloc(2 * (size_t)V, sizeof *clean, err);
  CHI_TRY(s->cell && s->drop && s->order && r.logits && clean ? 0 : CHI_ERR_MEMORY);
  if (o->target >= V) {
    rc = chi_fail(err, CHI_ERR_ARG, "token %d is outside the vocabulary of %lld", o->target, (long long)V);
    goto out;
  }
  CHI_TRY(chi_headscan_plan(&plan, m, p, o, err));
  chi_run_opts ro = {.mem = o->mem, .on_capture = take, .ud = &r, .what = "heads off"};
  CHI_TRY(chi_run_plan(&m->net, plan, &ro, err));
  s->target = o->target >= 0 ? o->target : chi_argmax(r.logits, V);
  chi_clean_of(clean, r.logits, V);
  s->clean = chi_metrics_of(r.logits, V, s->target, -1, clean);
  for (int64_t i = 0; i < n; i++) {
    s->cell[i] = chi_metrics_of(r.logits + (i + 1) * V, V, s->target, -1, clean);
    s->drop[i] = s->clean.logp - s->cell[i].logp;
  }
  CHI_TRY(sort_heads(s, n, err));
out:
  chi_plan_free(plan);
  chi_free(r.logits);
  chi_free(clean);
  if (rc)
    chi_headscan_free(s);
  else
    *out = s;
  return rc;
}

void chi_headscan_free(chi_headscan *s) {
  if (!s) return;
  chi_arena_free(&s->arena);
  chi_free(s);
}

/* ---- comparative neuron analysis --------------------------------------------------------------------------- */
static int by_change(const void *x, const void *y) {
  const chi_cna_neuron *a = x, *b = y;
  double p = fabs(a->intact - a->without), q = fabs(b->intact - b->without);
  if (p != q) return p > q ? -1 : 1;
  return a->layer != b->layer ? a->layer - b->layer : a->neuron - b->neuron;
}

int chi_cna_run(chi_cna_neuron **out, int32_t *n, const chi_model *m, const chi_prompt *p, chi_attr_head head,
                int32_t target, size_t mem, chi_err *err) {
  int rc = 0;
  int64_t F = m->net.decoder.spec.ffn, all = F * m->net.decoder.spec.layers;
  chi_attribution *a = NULL;
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  chi_cna_neuron *list = NULL;
  if (all > INT32_MAX) return chi_fail(err, CHI_ERR_UNSUPPORTED, "more MLP neurons than can be compared");
  o.target = target, o.n_neurons = (int32_t)all, o.mem = mem;
  CHI_TRY((list = chi_calloc((size_t)all, sizeof *list, err)) ? 0 : CHI_ERR_MEMORY);
  for (int without = 0; without < 2; without++) {
    if (without) o.zero = &head, o.n_zero = 1, o.target = a->target[0];
    chi_attribution_free(a);
    a = NULL;
    CHI_TRY(chi_attribute_run(&a, m, p, &o, err));
    for (int32_t i = 0; i < a->n_neurons; i++) {
      const chi_attr_neuron *x = &a->neuron[i];
      chi_cna_neuron *c = &list[x->layer * F + x->neuron];
      c->layer = x->layer, c->neuron = x->neuron;
      *(without ? &c->without : &c->intact) = x->s.increase[0];
      *(without ? &c->coefficient_without : &c->coefficient) = x->coefficient;
    }
  }
  qsort(list, (size_t)all, sizeof *list, by_change);
  if (*n > all) *n = (int32_t)all;
out:
  chi_attribution_free(a);
  if (rc)
    chi_free(list);
  else
    *out = list;
  return rc;
}

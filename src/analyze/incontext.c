/* In-context lookup by heads; see incontext.h. */
#include "analyze/incontext.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/lens.h"

#define MEASURE(field, text) \
  { #field, text, offsetof(chi_incontext, field) }
const chi_incontext_measure chi_incontext_measures[CHI_INCONTEXT_MEASURES] = {
    MEASURE(p, "p(answer)"),
    MEASURE(logit_diff, "logit written, answer less rival"),
    MEASURE(mrr_answer, "MRR of the answer in what is written"),
    MEASURE(mrr_rival, "MRR of the rival in what is written"),
    MEASURE(mrr_object, "MRR of the thing in the key view"),
    MEASURE(mrr_other, "MRR of another thing in the key view"),
    MEASURE(attention, "attention on these rows"),
    MEASURE(attention_swapped, "the same, asked about another thing"),
    MEASURE(mrr_embed_answer, "MRR of the answer in patch vectors"),
    MEASURE(mrr_embed_rival, "MRR of the rival in patch vectors"),
    MEASURE(mrr_embed_object, "MRR of the thing in patch vectors"),
    MEASURE(mrr_embed_other, "MRR of another thing in patch vectors"),
    MEASURE(top_share, "these heads' part of all increases"),
};

double chi_incontext_get(const chi_incontext *x, int measure) {
  double v;
  memcpy(&v, (const char *)x + chi_incontext_measures[measure].at, sizeof v);
  return v;
}

int chi_heads_shared(const chi_attr_head *a, int na, const chi_attr_head *b, int nb) {
  int n = 0;
  for (int i = 0; i < na; i++)
    for (int k = 0; k < nb; k++) n += a[i].layer == b[k].layer && a[i].head == b[k].head;
  return n;
}

typedef struct work {
  chi_incontext *x;
  const chi_model *m;
  const chi_prompt *p;
  const chi_incontext_opts *o;
  chi_attribution *a; /* answer and rival, with views of the best rows */
  chi_err *err;
} work;

static int attribute(const work *w, chi_attribution **out, const chi_prompt *p, int32_t versus, bool views) {
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = w->x->answer >= 0 ? w->x->answer : -1;
  o.versus = versus;
  o.heads = w->x->head;
  o.n_heads = w->x->n_heads;
  o.n_views = views ? w->x->n_rows : 0;
  o.n_words = 1;
  o.mem = w->o->mem;
  return chi_attribute_run(out, w->m, p, &o, w->err);
}

/* Best heads and rows; what the heads write from them. */
static int written(work *w) {
  int rc = 0;
  chi_incontext *x = w->x;
  CHI_TRY(attribute(w, &w->a, w->p, w->o->rival, true));
  const chi_attribution *a = w->a;
  x->answer = a->target[0];
  x->p = a->final[0].p;
  x->right = a->final[0].rank == 1;
  x->head = chi_arena_array(&x->arena, (size_t)x->n_heads, sizeof *x->head, w->err);
  CHI_TRY(x->head ? 0 : CHI_ERR_MEMORY);
  memcpy(x->head, a->pos_head, (size_t)x->n_heads * sizeof *x->head);
  x->n_rows = a->n_views / a->n_positions;
  x->mrr_answer = x->attention = 0;
  x->logit_diff = x->mrr_rival = w->o->rival >= 0 ? 0 : NAN;
  for (int32_t i = 0; i < a->n_views; i++) {
    int64_t at = (int64_t)a->view[i].head * a->rows + a->view[i].row;
    x->mrr_answer += 1.0 / a->view[i].view[CHI_VIEW_OV].rank[0] / a->n_views;
    if (w->o->rival >= 0) x->mrr_rival += 1.0 / a->view[i].view[CHI_VIEW_OV].rank[1] / a->n_views;
    x->attention += (double)a->weight[at] / x->n_heads;
    x->logit_diff += (a->pos[at].logit[0] - a->pos[at].logit[1]) / a->n_views;
  }
  double all = 0, top = 0;
  for (int32_t h = 0; h < a->layers * a->heads; h++) all += fmax(0, a->head[h].increase[0]);
  for (int32_t h = 0; h < x->n_heads; h++)
    top += fmax(0, a->head[x->head[h].layer * a->heads + x->head[h].head].increase[0]);
  x->top_share = all > 0 ? top / all : NAN;
out:
  return rc;
}

/* A thing in the key view of the same rows. */
static int keys(work *w, int32_t thing, double *mrr) {
  int rc = 0;
  chi_attribution *b = NULL;
  if (thing < 0) return 0;
  CHI_TRY(attribute(w, &b, w->p, thing, true));
  *mrr = 0;
  for (int32_t i = 0; i < b->n_views; i++) *mrr += 1.0 / b->view[i].view[CHI_VIEW_KEY].rank[1] / b->n_views;
out:
  chi_attribution_free(b);
  return rc;
}

static int swapped(work *w) {
  int rc = 0;
  chi_attribution *b = NULL;
  if (!w->o->swapped) return 0;
  if (w->o->swapped->n_rows != w->p->n_rows)
    return chi_fail(w->err, CHI_ERR_ARG, "the swapped question has %d rows, the question %d: rows would not correspond",
                    w->o->swapped->n_rows, w->p->n_rows);
  CHI_TRY(attribute(w, &b, w->o->swapped, -1, false));
  w->x->attention_swapped = 0;
  for (int32_t i = 0; i < w->a->n_views; i++)
    w->x->attention_swapped +=
        (double)b->weight[(int64_t)w->a->view[i].head * b->rows + w->a->view[i].row] / w->x->n_heads;
out:
  chi_attribution_free(b);
  return rc;
}

/* ---- patch vectors against input embeddings ---------------------------------------------------------------- */
typedef struct ranked {
  double value;
  int32_t row;
} ranked;
static int falling(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  return x->value > y->value ? -1 : x->value < y->value ? 1 : x->row - y->row;
}
static int by_row(const void *a, const void *b) {
  int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
  return (x > y) - (x < y);
}

static int embed_mrr(const work *w, const int32_t *rows, int32_t n, int32_t token, double *out) {
  int rc = 0;
  chi_lens *l = NULL;
  const int32_t input = CHI_LENS_EMBED;
  if (token < 0) return 0;
  chi_lens_opts o = {.rows = rows,
                     .n_rows = n,
                     .layers = &input,
                     .n_layers = 1,
                     .k = 1,
                     .words = &token,
                     .n_words = 1,
                     .embed = CHI_EMBED_DOT,
                     .mem = w->o->mem};
  CHI_TRY(chi_lens_run(&l, w->m, w->p, &o, w->err));
  *out = 0;
  for (int32_t i = 0; i < n; i++) *out += 1.0 / l->emb.rank[i] / n;
out:
  chi_lens_free(l);
  return rc;
}

static int embeddings(work *w) {
  int rc = 0;
  chi_patches g = chi_patches_of(w->m, w->p);
  int32_t n = g.n < w->x->n_rows ? g.n : w->x->n_rows;
  if (g.n == 0) return 0;
  ranked *r = chi_calloc((size_t)g.n, sizeof *r, w->err);
  int32_t *rows = chi_calloc((size_t)n, sizeof *rows, w->err);
  CHI_TRY(r && rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < g.n; i++) {
    r[i].row = g.first + i;
    for (int32_t h = 0; h < w->x->n_heads; h++) r[i].value += w->a->pos[(int64_t)h * w->a->rows + r[i].row].increase[0];
  }
  qsort(r, (size_t)g.n, sizeof *r, falling);
  for (int32_t i = 0; i < n; i++) rows[i] = r[i].row;
  qsort(rows, (size_t)n, sizeof *rows, by_row);
  CHI_TRY(embed_mrr(w, rows, n, w->x->answer, &w->x->mrr_embed_answer));
  CHI_TRY(embed_mrr(w, rows, n, w->o->rival, &w->x->mrr_embed_rival));
  CHI_TRY(embed_mrr(w, rows, n, w->o->object, &w->x->mrr_embed_object));
  CHI_TRY(embed_mrr(w, rows, n, w->o->other, &w->x->mrr_embed_other));
out:
  chi_free(r);
  chi_free(rows);
  return rc;
}

int chi_incontext_run(chi_incontext **out, const chi_model *m, const chi_prompt *p, const chi_incontext_opts *o,
                      chi_err *err) {
  int rc = 0;
  int32_t all = m->net.decoder.spec.layers * m->net.decoder.spec.heads;
  chi_incontext *x = chi_calloc(1, sizeof *x, err);
  work w = {.x = x, .m = m, .p = p, .o = o, .err = err};
  if (!x) return CHI_ERR_MEMORY;
  x->answer = o->answer;
  x->n_heads = o->n_heads > 0 ? o->n_heads : 10;
  x->n_rows = o->n_rows > 0 ? o->n_rows : 20;
  if (x->n_heads > all) x->n_heads = all;
  x->mrr_object = x->mrr_other = x->attention_swapped = NAN;
  x->mrr_embed_answer = x->mrr_embed_rival = x->mrr_embed_object = x->mrr_embed_other = NAN;
  CHI_TRY(written(&w));
  CHI_TRY(keys(&w, o->object, &x->mrr_object));
  CHI_TRY(keys(&w, o->other, &x->mrr_other));
  CHI_TRY(swapped(&w));
  CHI_TRY(embeddings(&w));
out:
  chi_attribution_free(w.a);
  if (rc)
    chi_incontext_free(x);
  else
    *out = x;
  return rc;
}

void chi_incontext_free(chi_incontext *x) {
  if (!x) return;
  chi_arena_free(&x->arena);
  chi_free(x);
}

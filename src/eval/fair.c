/* Explainers on pictures with known masks; see fair.h. */
#include "eval/fair.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/mapscore.h"

const double chi_fair_share[CHI_FAIR_SHARES] = {0, 0.05, 0.1, 0.2, 0.5, 1};

/* One question while its picture is worked on. */
typedef struct asked {
  chi_prompt *p;
  chi_explain *e, *shuffled;
  double *cover;                /* [n] */
  uint8_t *in;                  /* [n] */
  double **map;                 /* [n_which][n], NULL = not made */
  double *random_rank;          /* [n_which] */
  double ends[CHI_REMOVALS][2]; /* log p(answer) with nothing and with everything removed: the same for every map */
  bool has_ends[CHI_REMOVALS];
} asked;

typedef struct work {
  const chi_model *m;
  const chi_fair_opts *o;
  chi_arena *arena;
  const char *image;
} work;

static void close_asked(asked *q) {
  chi_explain_close(q->e);
  chi_explain_close(q->shuffled);
  chi_prompt_free(q->p);
}

/* ---- does the item count? --------------------------------------------------------------------------------- */
/* k of n patches, every choice equally likely (selection sampling). */
static void random_set(uint8_t *set, int32_t n, int32_t k, uint64_t seed, uint32_t draw) {
  for (int32_t i = 0; i < n; i++) {
    double u = (double)chi_rng_u32(seed, 3, draw, (uint32_t)i) / 4294967296.0;
    set[i] = u * (n - i) < k;
    k -= set[i];
  }
}

static int object_hurts(const work *w, asked *q, chi_fair_result *r, chi_err *err) {
  int rc = 0, R = w->o->randoms;
  int32_t n = q->e->n;
  uint8_t *set = chi_calloc((size_t)(R + 1) * (size_t)n, 1, err);
  double *logp = chi_calloc((size_t)R + 1, sizeof *logp, err);
  CHI_TRY(set && logp ? 0 : CHI_ERR_MEMORY);
  memcpy(set, q->in, (size_t)n);
  for (int k = 1; k <= R; k++) random_set(set + (int64_t)k * n, n, r->n_mask, w->o->explain.seed, (uint32_t)k);
  CHI_TRY(chi_remove(q->e->remover, CHI_REMOVE_MEAN, set, R + 1, logp, err));
  r->fall = q->e->remover->clean.logp - logp[0];
  for (int k = 1; k <= R; k++) r->random_fall += (q->e->remover->clean.logp - logp[k]) / R;
  r->hurts = r->fall > r->random_fall;
out:
  chi_free(set);
  chi_free(logp);
  return rc;
}

static int read_mask(const work *w, const chi_fair_ask *ask, asked *q, chi_fair_result *r, chi_err *err) {
  int rc = 0;
  chi_image mask = {0};
  int32_t n = q->e->n;
  CHI_TRY(chi_image_load(&mask, ask->mask, err));
  q->cover = chi_arena_array(w->arena, (size_t)n, sizeof *q->cover, err);
  q->in = chi_arena_array(w->arena, (size_t)n, 1, err);
  CHI_TRY(q->cover && q->in ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_mask_cover(q->cover, &r->unseen, &mask, &q->p->view, &q->e->remover->grid, err));
  for (int32_t i = 0; i < n; i++) r->n_mask += q->in[i] = q->cover[i] >= w->o->cover;
  if (r->n_mask == 0 || r->n_mask == n)
    rc = chi_fail(err, CHI_ERR_ARG,
                  r->unseen > 0.5 ? "%s: the crop leaves %.0f %% of the object out, so that no patch shows enough of it"
                                  : "%s: %.0f %% of the object are cut off and %d of %d patches belong to the mask",
                  ask->mask, 100 * r->unseen, r->n_mask, n);
out:
  chi_image_free(&mask);
  return rc;
}

static int open_asked(const work *w, const chi_fair_ask *ask, asked *q, chi_fair_result *r, chi_err *err) {
  int rc = 0;
  bool more = false;
  chi_explain_opts eo = w->o->explain;
  r->unseen = NAN;
  CHI_TRY(chi_prompt_make(&q->p, w->m, &(chi_prompt_opts){.image = w->image, .question = ask->question}, err));
  CHI_TRY(chi_answer_token(&eo.target, &more, w->m, q->p, ask->answer, "answer", err));
  CHI_TRY(chi_explain_open(&q->e, w->m, q->p, &eo, err));
  r->n = q->e->n;
  r->target = eo.target;
  r->p = q->e->remover->clean.p;
  r->right = q->e->remover->clean.rank == 1;
  CHI_TRY(read_mask(w, ask, q, r, err));
  if (r->right) CHI_TRY(object_hurts(w, q, r, err));
out:
  return rc;
}

/* ---- maps and scores -------------------------------------------------------------------------------------- */
static int make_maps(const work *w, asked *q, chi_err *err) {
  int rc = 0;
  size_t n = (size_t)q->e->n;
  const chi_fair_opts *o = w->o;
  chi_explain_opts eo = o->explain;
  double *other = chi_arena_array(w->arena, n, sizeof *other, err);
  q->map = chi_arena_array(w->arena, (size_t)o->n_which, sizeof *q->map, err);
  q->random_rank = chi_arena_array(w->arena, (size_t)o->n_which, sizeof *q->random_rank, err);
  CHI_TRY(other && q->map && q->random_rank ? 0 : CHI_ERR_MEMORY);
  eo.target = q->e->opts.target;
  if (o->shuffled) CHI_TRY(chi_explain_open(&q->shuffled, o->shuffled, q->p, &eo, err));
  for (int k = 0; k < o->n_which; k++) {
    chi_err why = {0};
    double *map = chi_arena_array(w->arena, n, sizeof *map, err);
    CHI_TRY(map ? 0 : CHI_ERR_MEMORY);
    q->random_rank[k] = NAN;
    if (o->not_now && o->not_now[k]) continue;
    rc = chi_explain_map(q->e, o->which[k], map, &why);
    if (rc == 0) q->map[k] = map;
    if (rc == 0 && q->shuffled) {
      rc = chi_explain_map(q->shuffled, o->which[k], other, &why);
      if (rc == 0) q->random_rank[k] = chi_map_spearman(map, other, q->e->n);
    }
    if (rc && rc != CHI_ERR_UNSUPPORTED) {
      chi_fail(err, rc, "%s: %s", o->which[k]->name, why.text);
      goto out;
    }
    rc = 0;
  }
out:
  return rc;
}

static int find_ends(asked *q, int how, chi_err *err) {
  int rc = 0;
  if (q->has_ends[how]) return 0;
  uint8_t *set = chi_calloc((size_t)q->e->n, 1, err);
  CHI_TRY(set ? 0 : CHI_ERR_MEMORY);
  memset(set, 1, (size_t)q->e->n);
  q->ends[how][0] = q->e->remover->clean.logp;
  CHI_TRY(chi_remove(q->e->remover, (chi_removal)how, set, 1, &q->ends[how][1], err));
  q->has_ends[how] = true;
out:
  chi_free(set);
  return rc;
}

/* p(answer) along an order under one way of removing, highest first away and highest first back. */
static int curves(const work *w, asked *q, const double *map, int how, chi_fair_score *s, chi_err *err) {
  enum { kInner = CHI_FAIR_SHARES - 2 };
  int rc = 0;
  int32_t n = q->e->n, *order = chi_calloc((size_t)n, sizeof *order, err);
  uint8_t *set = chi_calloc(2 * kInner * (size_t)n, 1, err);
  double logp[2 * kInner];
  CHI_TRY(order && set ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(find_ends(q, how, err));
  CHI_TRY(chi_map_order(order, map, n, w->o->explain.seed, err));
  for (int k = 0; k < kInner; k++) {
    int32_t away = (int32_t)lround(chi_fair_share[k + 1] * n);
    for (int32_t i = 0; i < n; i++) {
      set[(int64_t)k * n + order[i]] = i < away;
      set[(int64_t)(kInner + k) * n + order[i]] = i >= away;
    }
  }
  CHI_TRY(chi_remove(q->e->remover, (chi_removal)how, set, 2 * kInner, logp, err));
  for (int b = 0; b < 2; b++) {
    double *p = s->curve[b][how];
    p[0] = chi_exp64(q->ends[how][b]);
    for (int k = 0; k < kInner; k++) p[k + 1] = chi_exp64(logp[b * kInner + k]);
    p[CHI_FAIR_SHARES - 1] = chi_exp64(q->ends[how][!b]);
  }
  s->deletion[how] = chi_curve_area(chi_fair_share, s->curve[0][how], CHI_FAIR_SHARES);
  s->insertion[how] = chi_curve_area(chi_fair_share, s->curve[1][how], CHI_FAIR_SHARES);
out:
  chi_free(order);
  chi_free(set);
  return rc;
}

static void no_score(chi_fair_score *s) {
  *s = (chi_fair_score){
      .pointing = NAN, .precision = NAN, .auprc = NAN, .switch_gain = NAN, .switch_rank = NAN, .shuffled_rank = NAN};
  for (int how = 0; how < CHI_REMOVALS; how++) {
    s->deletion[how] = s->insertion[how] = NAN;
    for (int k = 0; k < 2 * CHI_FAIR_SHARES; k++) s->curve[k / CHI_FAIR_SHARES][how][k % CHI_FAIR_SHARES] = NAN;
  }
}

/* other: maps of another question about the same picture, or NULL. */
static int score(const work *w, asked *q, const asked *other, chi_fair_result *r, chi_err *err) {
  int rc = 0;
  const chi_fair_opts *o = w->o;
  int32_t n = q->e->n;
  r->score = chi_arena_array(w->arena, (size_t)o->n_which + 1, sizeof *r->score, err);
  CHI_TRY(r->score ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k <= o->n_which; k++) {
    bool mask = k == o->n_which;
    const double *map = mask ? q->cover : q->map[k], *moved = other && !mask ? other->map[k] : NULL;
    chi_fair_score *s = &r->score[k];
    no_score(s);
    if (!map) continue;
    s->made = true;
    if (!mask) {
      s->pointing = chi_map_pointing(map, q->in, n);
      s->precision = chi_map_precision(map, q->in, n);
      s->auprc = chi_map_auprc(map, q->in, n);
      s->shuffled_rank = q->random_rank[k];
    }
    if (moved) {
      s->switch_gain = s->auprc - chi_map_auprc(moved, q->in, n);
      s->switch_rank = chi_map_spearman(map, moved, n);
    }
    for (int how = 0; how < CHI_REMOVALS; how++)
      if (o->by[how] && !o->no_curves && (mask || !(o->which[k]->uses >> how & 1u)) &&
          chi_removal_possible(q->e->remover, (chi_removal)how))
        CHI_TRY(curves(w, q, map, how, s, err));
  }
out:
  return rc;
}

/* The next question, going round, that has maps and asks about other patches. */
static const asked *another(const asked *q, int i, int n) {
  for (int k = 1; k < n; k++) {
    const asked *x = &q[(i + k) % n];
    if (x->map && memcmp(x->in, q[i].in, (size_t)q[i].e->n) != 0) return x;
  }
  return NULL;
}

/* An item's own failure stays with the item; out of memory and Ctrl-C end the run. */
static int item_failed(chi_fair_result *r, int rc, const chi_err *why, chi_err *err) {
  if (rc == CHI_ERR_MEMORY || rc == CHI_ERR_CANCELLED) return chi_fail(err, rc, "%s", why->text);
  snprintf(r->problem, sizeof r->problem, "%s", why->text);
  r->score = NULL;
  return 0;
}

int chi_fair_picture(chi_fair_result *result, const chi_model *m, const char *image, const chi_fair_ask *ask, int n,
                     const chi_fair_opts *o, chi_arena *a, chi_err *err) {
  int rc = 0;
  work w = {.m = m, .o = o, .arena = a, .image = image};
  asked *q = chi_calloc((size_t)n, sizeof *q, err);
  CHI_TRY(q ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    rc = open_asked(&w, &ask[i], &q[i], &result[i], &why);
    if (rc == 0 && result[i].right) rc = make_maps(&w, &q[i], &why);
    if (rc) {
      q[i].map = NULL;
      CHI_TRY(item_failed(&result[i], rc, &why, err));
    }
  }
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    if (!q[i].map || !result[i].hurts) continue;
    rc = score(&w, &q[i], another(q, i, n), &result[i], &why);
    if (rc) CHI_TRY(item_failed(&result[i], rc, &why, err));
  }
out:
  for (int i = 0; q && i < n; i++) close_asked(&q[i]);
  chi_free(q);
  return rc;
}

/* ---- shuffled weights ------------------------------------------------------------------------------------- */
/* Fisher-Yates over the whole matrix; numbers counted by (matrix, element). */
static int shuffle(chi_linear *l, uint64_t seed, uint32_t stream, chi_err *err) {
  int rc = 0;
  int64_t n = l->w.n * l->w.k;
  chi_mat next = {0};
  if (n == 0) return 0;
  float *x = chi_calloc((size_t)n, sizeof *x, err);
  if (!x) return CHI_ERR_MEMORY;
  chi_mat_read(&l->w, 0, l->w.n, x);
  for (int64_t i = n - 1; i > 0; i--) {
    uint64_t hi = chi_rng_u32(seed, stream, (uint32_t)(i >> 32), (uint32_t)i),
             lo = chi_rng_u32(seed, stream + 1, (uint32_t)(i >> 32), (uint32_t)i);
    int64_t k = (int64_t)((hi << 32 | lo) % (uint64_t)(i + 1));
    float t = x[i];
    x[i] = x[k], x[k] = t;
  }
  CHI_TRY(chi_mat_pack(&next, x, CHI_F32, l->w.n, l->w.k, l->w.k, l->w.compute, err));
  chi_mat_free(&l->w);
  l->w = next;
out:
  chi_free(x);
  return rc;
}

int chi_model_shuffle(chi_model *m, uint64_t seed, chi_err *err) {
  chi_decoder *d = &m->net.decoder;
  for (int32_t l = 0; l < d->spec.layers; l++) {
    chi_block *b = &d->block[l];
    chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down};
    for (uint32_t i = 0; i < sizeof all / sizeof *all; i++) {
      int rc = shuffle(all[i], seed, ((uint32_t)l * 8 + i) * 2 + 16, err);
      if (rc) return rc;
    }
  }
  return 0;
}

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
  double *cover;       /* [n] */
  uint8_t *in;         /* [n] */
  double **map;        /* [n_which][n], NULL = not made */
  double *random_rank; /* [n_which] */
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
static int open_shuffled(const work *w, asked *q, chi_err *err) {
  chi_explain_opts eo = w->o->explain;
  eo.target = q->e->opts.target;
  return w->o->shuffled ? chi_explain_open(&q->shuffled, w->o->shuffled, q->p, &eo, err) : 0;
}

/* What the maps of the right questions have in common, of the model and of the shuffled one. A failure is none yet:
 * each question then meets it alone. */
static int share(const work *w, const asked *q, const chi_fair_result *r, int n, chi_err *err) {
  int rc = 0;
  chi_explain **e = chi_calloc((size_t)n, sizeof *e, err);
  if (!e) return CHI_ERR_MEMORY;
  for (int shuffled = 0; shuffled < 2; shuffled++) {
    int m = 0;
    chi_err why = {0};
    for (int i = 0; i < n; i++) {
      chi_explain *x = shuffled ? q[i].shuffled : q[i].e;
      if (x && r[i].right && !*r[i].problem) e[m++] = x;
    }
    rc = m > 1 ? chi_explain_share(e, m, w->o->which, w->o->n_which, w->o->not_now, &why) : 0;
    if (rc == CHI_ERR_MEMORY || rc == CHI_ERR_CANCELLED) {
      chi_fail(err, rc, "%s", why.text);
      goto out;
    }
    rc = 0;
  }
out:
  chi_free(e);
  return rc;
}

static int make_maps(const work *w, asked *q, chi_err *err) {
  int rc = 0;
  size_t n = (size_t)q->e->n;
  const chi_fair_opts *o = w->o;
  double *other = chi_arena_array(w->arena, n, sizeof *other, err);
  q->map = chi_arena_array(w->arena, (size_t)o->n_which, sizeof *q->map, err);
  q->random_rank = chi_arena_array(w->arena, (size_t)o->n_which, sizeof *q->random_rank, err);
  CHI_TRY(other && q->map && q->random_rank ? 0 : CHI_ERR_MEMORY);
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

static void no_score(chi_fair_score *s) {
  *s = (chi_fair_score){
      .pointing = NAN, .precision = NAN, .auprc = NAN, .switch_gain = NAN, .switch_rank = NAN, .shuffled_rank = NAN};
  for (int how = 0; how < CHI_REMOVALS; how++) {
    s->deletion[how] = s->insertion[how] = NAN;
    for (int k = 0; k < 2 * CHI_FAIR_SHARES; k++) s->curve[k / CHI_FAIR_SHARES][how][k % CHI_FAIR_SHARES] = NAN;
  }
}

/* other: maps of another question about the same picture, or NULL. */
static int score(const work *w, const asked *q, const asked *other, chi_fair_result *r, chi_err *err) {
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
  }
out:
  return rc;
}

/* ---- deletion and insertion ------------------------------------------------------------------------------- */
/* Sets of patches that the curves of one picture need under one way of removing. Many maps begin with the same patches,
 * and some have the same order for every question: no set is there twice. */
enum { kInner = CHI_FAIR_SHARES - 2 };
typedef struct curves {
  const asked *const *q; /* [n]: questions with scores */
  chi_fair_result *const *r;
  int n;
  chi_removal how;
  uint8_t *set, *asks; /* [n_sets][patches], [n_sets][n] */
  int32_t n_sets;
  int32_t *at;  /* [n][n_which + 1][2][kInner]: sets of a map's curves, -1 = the map has none */
  double *logp; /* [n_sets][n] */
} curves;

static int32_t place(curves *c, const uint8_t *one, int q) {
  size_t n = (size_t)c->q[0]->e->n;
  int32_t s = 0;
  while (s < c->n_sets && memcmp(c->set + (size_t)s * n, one, n) != 0) s++;
  if (s == c->n_sets) memcpy(c->set + (size_t)c->n_sets++ * n, one, n);
  c->asks[(int64_t)s * c->n + q] = 1;
  return s;
}

/* Highest first away, highest first back; set 0 is the whole picture away. */
static int curve_sets(const work *w, curves *c, int q, int k, uint8_t *one, int32_t *order, chi_err *err) {
  int rc = 0;
  const chi_fair_opts *o = w->o;
  const asked *x = c->q[q];
  bool mask = k == o->n_which;
  int32_t n = x->e->n, *at = c->at + ((int64_t)q * (o->n_which + 1) + k) * 2 * kInner;
  const double *map = mask ? x->cover : x->map[k];
  at[0] = -1;
  if (!map || (!mask && (o->which[k]->uses >> c->how & 1u))) return 0;
  CHI_TRY(chi_map_order(order, map, n, o->explain.seed, err));
  for (int back = 0; back < 2; back++)
    for (int j = 0; j < kInner; j++) {
      int32_t away = (int32_t)lround(chi_fair_share[j + 1] * n);
      for (int32_t i = 0; i < n; i++) one[order[i]] = back ? i >= away : i < away;
      at[back * kInner + j] = place(c, one, q);
    }
  memset(one, 1, (size_t)n);
  place(c, one, q);
out:
  return rc;
}

static void fill_curves(const work *w, const curves *c, int q, int k) {
  const int32_t *at = c->at + ((int64_t)q * (w->o->n_which + 1) + k) * 2 * kInner;
  chi_fair_score *s = &c->r[q]->score[k];
  double ends[2] = {c->q[q]->e->remover->clean.logp, c->logp[q]};
  if (at[0] < 0) return;
  for (int b = 0; b < 2; b++) {
    double *p = s->curve[b][c->how];
    p[0] = chi_exp64(ends[b]);
    for (int j = 0; j < kInner; j++) p[j + 1] = chi_exp64(c->logp[(int64_t)at[b * kInner + j] * c->n + q]);
    p[CHI_FAIR_SHARES - 1] = chi_exp64(ends[!b]);
  }
  s->deletion[c->how] = chi_curve_area(chi_fair_share, s->curve[0][c->how], CHI_FAIR_SHARES);
  s->insertion[c->how] = chi_curve_area(chi_fair_share, s->curve[1][c->how], CHI_FAIR_SHARES);
}

/* All maps of all questions under one way of removing, in one sweep. */
static int make_curves(const work *w, curves *c, chi_err *err) {
  int rc = 0, maps = w->o->n_which + 1;
  size_t n = (size_t)c->q[0]->e->n, most = (size_t)c->n * (size_t)maps * 2 * kInner + 1;
  chi_arena tmp = {0};
  chi_remover **r = chi_arena_array(&tmp, (size_t)c->n, sizeof *r, err);
  uint8_t *one = chi_arena_array(&tmp, n, 1, err);
  int32_t *order = chi_arena_array(&tmp, n, sizeof *order, err);
  c->set = chi_arena_array(&tmp, most * n, 1, err);
  c->asks = chi_arena_array(&tmp, most * (size_t)c->n, 1, err);
  c->at = chi_arena_array(&tmp, most, sizeof *c->at, err);
  c->logp = chi_arena_array(&tmp, most * (size_t)c->n, sizeof *c->logp, err);
  CHI_TRY(r && one && order && c->set && c->asks && c->at && c->logp ? 0 : CHI_ERR_MEMORY);
  memset(c->set, 1, n);
  c->n_sets = 1;
  for (int i = 0; i < c->n; i++) {
    r[i] = c->q[i]->e->remover;
    for (int k = 0; k < maps; k++) CHI_TRY(curve_sets(w, c, i, k, one, order, err));
  }
  CHI_TRY(chi_remove_of(r, c->n, c->how, c->set, c->asks, c->n_sets, c->logp, err));
  for (int i = 0; i < c->n; i++)
    for (int k = 0; k < maps; k++) fill_curves(w, c, i, k);
out:
  chi_arena_free(&tmp);
  return rc;
}

/* Of all questions that have scores. */
static int all_curves(const work *w, const asked *q, chi_fair_result *r, int n, chi_err *err) {
  int rc = 0;
  curves c = {0};
  const asked **of = chi_arena_array(w->arena, (size_t)n, sizeof *of, err);
  chi_fair_result **to = chi_arena_array(w->arena, (size_t)n, sizeof *to, err);
  CHI_TRY(of && to ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++)
    if (r[i].score) of[c.n] = &q[i], to[c.n++] = &r[i];
  c.q = of, c.r = to;
  for (int how = 0; how < CHI_REMOVALS && c.n > 0 && !w->o->no_curves; how++) {
    c.how = (chi_removal)how;
    if (w->o->by[how] && chi_removal_possible(of[0]->e->remover, c.how)) CHI_TRY(make_curves(w, &c, err));
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
  chi_err curve_why = {0};
  work w = {.m = m, .o = o, .arena = a, .image = image};
  asked *q = chi_calloc((size_t)n, sizeof *q, err);
  CHI_TRY(q ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    rc = open_asked(&w, &ask[i], &q[i], &result[i], &why);
    if (rc == 0 && result[i].right) rc = open_shuffled(&w, &q[i], &why);
    if (rc) CHI_TRY(item_failed(&result[i], rc, &why, err));
  }
  CHI_TRY(share(&w, q, result, n, err));
  for (int i = 0; i < n; i++) {
    chi_err why = {0};
    if (!result[i].right || *result[i].problem) continue;
    rc = make_maps(&w, &q[i], &why);
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
  int failed = all_curves(&w, q, result, n, &curve_why);
  for (int i = 0; i < n && failed; i++)
    if (result[i].score) CHI_TRY(item_failed(&result[i], failed, &curve_why, err));
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

/* Sums over slices of the items; see card.h. */
#include "eval/card.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct chi_card {
  const chi_items *items;
  const chi_fact_result *r;
  size_t n;
  /* Items in the order of their units; texts as numbers, so that a slice is counted without comparing them. */
  size_t *order;
  int32_t *unit, *answer, *relation; /* [item]; answer: a number for each (relation, answer) */
  int32_t n_answers, n_relations;
  /* scratch of a slice */
  bool *right;
  int32_t *cluster, *count, *best;
};

/* ---- intervals --------------------------------------------------------------------------------------------- */
void chi_wilson(double k, double n, double *lo, double *hi) {
  const double z = 1.959963984540054;
  if (n <= 0) {
    *lo = *hi = NAN;
    return;
  }
  double p = k / n, d = 1 + z * z / n, mid = (p + z * z / (2 * n)) / d,
         half = z * sqrt(p * (1 - p) / n + z * z / (4.0 * n * n)) / d;
  *lo = mid - half;
  *hi = mid + half;
}

void chi_wilson_clustered(const bool *right, const int32_t *cluster, size_t n, double *lo, double *hi) {
  double k = 0, v = 0, g = 0;
  for (size_t i = 0; i < n; i++) k += right[i];
  double p = n ? k / (double)n : 0;
  for (size_t a = 0, b; a < n; a = b, g++) {
    double e = 0;
    for (b = a; b < n && cluster[b] == cluster[a]; b++) e += right[b] - p;
    v += e * e;
  }
  double effective = g;
  if (g > 1 && v > 0) {
    v *= g / (g - 1) / ((double)n * (double)n);
    effective = p * (1 - p) / v;
  }
  if (effective > (double)n) effective = (double)n;
  chi_wilson(p * effective, effective, lo, hi);
}

/* ---- numbers for texts -------------------------------------------------------------------------------------- */
typedef struct key {
  const char *a, *b;
  size_t item;
} key;

static int by_key(const void *x, const void *y) {
  const key *p = x, *q = y;
  int c = strcmp(p->a, q->a);
  if (c == 0) c = strcmp(p->b, q->b);
  return c ? c : p->item < q->item ? -1 : p->item > q->item;
}

/* id[item] = a number for each distinct (a, b); keys come back sorted. */
static int32_t number(key *k, size_t n, int32_t *id) {
  int32_t last = -1;
  qsort(k, n, sizeof *k, by_key);
  for (size_t i = 0; i < n; i++) {
    if (i == 0 || strcmp(k[i].a, k[i - 1].a) != 0 || strcmp(k[i].b, k[i - 1].b) != 0) last++;
    id[k[i].item] = last;
  }
  return last + 1;
}

int chi_card_new(chi_card **out, const chi_items *items, const chi_fact_result *r, chi_err *err) {
  int rc = 0;
  size_t n = items->n;
  key *k = chi_calloc(n, sizeof *k, err);
  chi_card *c = chi_calloc(1, sizeof *c, err);
  if (!k || !c) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  c->items = items, c->r = r, c->n = n;
  c->order = chi_calloc(n, sizeof *c->order, err);
  c->right = chi_calloc(n, sizeof *c->right, err);
  int32_t **ints[] = {&c->unit, &c->answer, &c->relation, &c->cluster, &c->count, &c->best};
  for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
    if (!(*ints[i] = chi_calloc(n, sizeof **ints[i], err))) rc = CHI_ERR_MEMORY;
  if (rc || !c->order || !c->right) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  const chi_item *it = items->item;
  for (size_t i = 0; i < n; i++) k[i] = (key){it[i].relation, "", i};
  c->n_relations = number(k, n, c->relation);
  for (size_t i = 0; i < n; i++) k[i] = (key){it[i].relation, it[i].answer, i};
  c->n_answers = number(k, n, c->answer);
  for (size_t i = 0; i < n; i++) k[i] = (key){it[i].unit, "", i};
  number(k, n, c->unit);
  for (size_t i = 0; i < n; i++) c->order[i] = k[i].item;
out:
  chi_free(k);
  if (rc)
    chi_card_free(c);
  else
    *out = c;
  return rc;
}

void chi_card_free(chi_card *c) {
  if (!c) return;
  chi_free(c->order);
  chi_free(c->right);
  chi_free(c->unit);
  chi_free(c->answer);
  chi_free(c->relation);
  chi_free(c->cluster);
  chi_free(c->count);
  chi_free(c->best);
  chi_free(c);
}

/* ---- slices ------------------------------------------------------------------------------------------------- */
static bool flag(chi_pick want, bool is) { return want == CHI_PICK_ANY || (want == CHI_PICK_YES) == is; }

static bool takes(const chi_card_slice *s, const chi_item *it) {
  bool named = strcmp(it->relation, "name") == 0 || strcmp(it->relation, "caption") == 0;
  bool known = !it->prior && (!*it->entity_group || strcmp(it->entity_group, "A") == 0);
  return (!s->form || strcmp(it->group, s->form) == 0) && (!s->group || strcmp(it->entity_group, s->group) == 0) &&
         (!s->relation || strcmp(it->relation, s->relation) == 0) && flag(s->held_out, it->held_out) &&
         flag(s->readable, it->readable) && flag(s->shared, it->shared) && flag(s->hard, it->hard) &&
         flag(s->prior, it->prior != NULL) && flag(s->fact, !named) && flag(s->known, known) &&
         (!s->parts || s->parts == it->n_parts);
}

static void add_answers(chi_card_sum *s, const chi_item *it, const chi_fact_result *r) {
  if (it->truth) {
    s->truths++;
    s->truth += strcmp(r->said, it->truth) == 0;
  }
  if (it->prior) {
    s->priors++;
    s->prior += strcmp(r->said, it->prior) == 0;
  }
  for (int k = 0; k < CHI_ITEM_PARTS; k++) {
    if (!r->part[k].asked) continue;
    s->part[k].n++;
    s->part[k].counterfactual += r->part[k].counterfactual;
    s->part[k].changed += r->part[k].changed;
    s->part[k].drop += r->p - r->part[k].p;
  }
  for (int k = 0; k < CHI_ITEM_TWINS; k++) {
    s->twin[k].n += r->twin[k].asked;
    s->twin[k].right += r->twin[k].asked && r->twin[k].right;
  }
  if (r->has_paraphrase) {
    s->paraphrases++;
    s->change += fabs(r->p - r->p_paraphrase);
  }
}

chi_card_sum chi_card_sum_of(chi_card *c, const chi_card_slice *slice) {
  chi_card_sum s = {0};
  memset(c->count, 0, c->n * sizeof *c->count);
  memset(c->best, 0, c->n * sizeof *c->best);
  for (size_t k = 0; k < c->n; k++) {
    size_t i = c->order[k];
    if (!takes(slice, &c->items->item[i])) continue;
    c->right[s.n] = c->r[i].right;
    c->cluster[s.n] = c->unit[i];
    s.units += s.n == 0 || c->cluster[s.n] != c->cluster[s.n - 1];
    s.right += c->r[i].right;
    s.n++;
    int32_t have = ++c->count[c->answer[i]], rel = c->relation[i];
    if (have > c->best[rel]) c->best[rel] = have;
    add_answers(&s, &c->items->item[i], &c->r[i]);
  }
  for (int32_t r = 0; r < c->n_relations; r++) s.majority += c->best[r];
  chi_wilson_clustered(c->right, c->cluster, (size_t)s.n, &s.lo, &s.hi);
  for (int k = 0; k < CHI_ITEM_PARTS; k++) s.part[k].drop = s.part[k].n ? s.part[k].drop / s.part[k].n : NAN;
  s.change = s.paraphrases ? s.change / s.paraphrases : NAN;
  return s;
}

int chi_card_slices(chi_card_slice **out, size_t *n, const chi_card *c, int fields, chi_err *err) {
  size_t cap = 0, have = 0;
  chi_card_slice *s = NULL;
  for (size_t i = 0; i < c->n; i++) {
    const chi_item *it = &c->items->item[i];
    size_t k = 0;
    while (k < have && !((!s[k].form || strcmp(s[k].form, it->group) == 0) &&
                         (!s[k].group || strcmp(s[k].group, it->entity_group) == 0) &&
                         (!s[k].relation || strcmp(s[k].relation, it->relation) == 0)))
      k++;
    if (k < have) continue;
    if (chi_grow((void **)&s, &cap, have + 1, sizeof *s, err)) {
      chi_free(s);
      return CHI_ERR_MEMORY;
    }
    s[have] = (chi_card_slice){0};
    if (fields & CHI_CARD_FORM) s[have].form = it->group;
    if (fields & CHI_CARD_GROUP) s[have].group = it->entity_group;
    if (fields & CHI_CARD_RELATION) s[have].relation = it->relation;
    have++;
  }
  *out = s;
  *n = have;
  return 0;
}

/* ---- promises ----------------------------------------------------------------------------------------------- */
typedef struct list {
  chi_promise *p;
  int n;
} list;

static void promise(list *l, const char *what, double got, double need, chi_promise_kind kind, bool at_most) {
  l->p[l->n++] = (chi_promise){.what = what,
                               .got = got,
                               .need = need,
                               .kind = kind,
                               .at_most = at_most,
                               .ok = at_most ? got <= need : got >= need}; /* false where got is NaN */
}

static double share(int k, int n) { return n ? (double)k / n : NAN; }

static void right(list *l, chi_card *c, const char *what, chi_card_slice s, double need) {
  chi_card_sum sum = chi_card_sum_of(c, &s);
  promise(l, what, share(sum.right, sum.n), need, CHI_PROMISE_SHARE, false);
}
#define SLICE(...) ((chi_card_slice){__VA_ARGS__})

/* Not above what a constant answer scores: the lower end of the interval. */
static void unknown(list *l, chi_card *c, const char *what, const char *group) {
  chi_card_sum s = chi_card_sum_of(c, &SLICE(.group = group, .fact = CHI_PICK_YES, .readable = CHI_PICK_NO));
  promise(l, what, s.lo, share(s.majority, s.n), CHI_PROMISE_SHARE, true);
}

static void first_world(list *l, chi_card *c) {
  right(l, c, "facts", SLICE(.form = "fact"), 0.90);
  right(l, c, "colours", SLICE(.form = "color"), 0.95);
  right(l, c, "text twins, named", SLICE(.form = "text_named"), 0.95);
  right(l, c, "text twins, described", SLICE(.form = "text_described"), 0.95);
  right(l, c, "named over another's flag", SLICE(.form = "named_over"), 0.90);
  chi_card_sum a = chi_card_sum_of(c, &SLICE(0));
  promise(l, "substitution lowers p by", a.part[0].drop, 0.5, CHI_PROMISE_P, false);
  promise(l, "counterfactual answer on top", share(a.part[0].counterfactual, a.part[0].n), 0.8, CHI_PROMISE_SHARE,
          false);
}

static void second_world(list *l, chi_card *c) {
  right(l, c, "group A, every form", SLICE(.group = "A"), 0.95);
  right(l, c, "group A, facts of the flag shown", SLICE(.form = "fact", .group = "A"), 0.95);
  right(l, c, "group A, one of two flags", SLICE(.form = "two_flags", .group = "A"), 0.95);
  right(l, c, "colours", SLICE(.form = "scene", .relation = "color"), 0.97);
  right(l, c, "text by name, group A", SLICE(.form = "text_named", .group = "A"), 0.97);
  right(l, c, "text by name, group B", SLICE(.form = "text_named", .group = "B"), 0.97);
  right(l, c, "text, flags told in words, group A", SLICE(.form = "text_flag", .group = "A"), 0.97);
  right(l, c, "text, scenes told in words", SLICE(.form = "text_scene"), 0.97);
  right(l, c, "held-out wordings, group A and scenes", SLICE(.held_out = CHI_PICK_YES, .known = CHI_PICK_YES), 0.90);
  unknown(l, c, "group C, facts: not above a constant answer", "C");
  unknown(l, c, "group D, facts: not above a constant answer", "D");
  chi_card_sum one = chi_card_sum_of(c, &SLICE(.known = CHI_PICK_YES, .parts = 1)),
               two = chi_card_sum_of(c, &SLICE(.known = CHI_PICK_YES, .parts = 2)),
               prior = chi_card_sum_of(c, &SLICE(.prior = CHI_PICK_YES)),
               hard = chi_card_sum_of(c, &SLICE(.hard = CHI_PICK_YES));
  promise(l, "one constraint: its substitute changes the answer", share(one.part[0].changed, one.part[0].n), 0.8,
          CHI_PROMISE_SHARE, false);
  promise(l, "one constraint: to the right one", share(one.part[0].counterfactual, one.part[0].n), 0.8,
          CHI_PROMISE_SHARE, false);
  promise(l, "substitution lowers p by", one.part[0].drop, 0.5, CHI_PROMISE_P, false);
  promise(l, "two constraints: the first's substitute changes the answer", share(two.part[0].changed, two.part[0].n),
          0.8, CHI_PROMISE_SHARE, false);
  promise(l, "two constraints: the second's substitute changes the answer", share(two.part[1].changed, two.part[1].n),
          0.8, CHI_PROMISE_SHARE, false);
  promise(l, "hallucination: questions against the training prior", prior.n, 300, CHI_PROMISE_COUNT, false);
  promise(l, "hallucination: wrong there", share(prior.n - prior.right, prior.n), 0.3, CHI_PROMISE_SHARE, false);
  promise(l, "hard split: right answers", hard.right, 300, CHI_PROMISE_COUNT, false);
  promise(l, "hard split: wrong answers", hard.n - hard.right, 300, CHI_PROMISE_COUNT, false);
}

int chi_card_promises(chi_promise out[CHI_PROMISES], chi_card *c) {
  list l = {.p = out};
  bool groups = false;
  for (size_t i = 0; i < c->n && !groups; i++) groups = c->items->item[i].entity_group[0] != 0;
  if (groups)
    second_world(&l, c);
  else
    first_world(&l, c);
  chi_card_sum all = chi_card_sum_of(c, &SLICE(0));
  promise(&l, "paraphrase changes p by", all.change, 0.05, CHI_PROMISE_P, true);
  promise(&l, "items", all.n, 2000, CHI_PROMISE_COUNT, false);
  return l.n;
}

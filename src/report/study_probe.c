/* A linear probe for the entity's name in the states (T6): which layers and roles hold it. */
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "eval/logistic.h"
#include "report/study_claims.h"

enum { kFolds = 5, kFacts = 3 /* of an entity, at least */ };

typedef struct probe {
  const chii_view *v;
  chi_clusters fact; /* items of one fact are never in two folds */
  int32_t *label;    /* [n_items]: the entity, or -1 where it has too few facts */
  int32_t *shuffled; /* the same names dealt out anew over the facts */
  int32_t n_labels, n_used;
} probe;

static void probe_free(probe *p) {
  chi_clusters_free(&p->fact);
  chi_free(p->label);
  chi_free(p->shuffled);
}

/* Facts of each entity; those of entities with few of them get no label. The control gives fact k the entity of another
 * fact, by a seeded shuffle. */
static int set_labels(probe *p, chi_err *err) {
  int rc = 0, n = p->v->cl.n_items, facts = p->fact.n, kept = 0;
  int32_t *of = chi_calloc((size_t)facts + 1, sizeof *of, err),
          *count = chi_calloc((size_t)p->v->cl.n + 1, sizeof *count, err),
          *name = chi_calloc((size_t)p->v->cl.n + 1, sizeof *name, err),
          *deal = chi_calloc((size_t)facts + 1, sizeof *deal, err),
          *pos = chi_calloc((size_t)facts + 1, sizeof *pos, err);
  CHI_TRY(of && count && name && deal && pos ? 0 : CHI_ERR_MEMORY);
  for (int32_t k = 0; k < facts; k++) of[k] = -1;
  for (int32_t i = 0; i < n; i++) {
    int32_t *k = &of[p->fact.of[i]];
    if (*k < 0) count[p->v->cl.of[i]]++;
    *k = p->v->cl.of[i];
  }
  for (int32_t c = 0; c < p->v->cl.n; c++) name[c] = count[c] >= kFacts ? p->n_labels++ : -1;
  for (int32_t k = 0; k < facts; k++)
    if (name[of[k]] >= 0) pos[k] = kept, deal[kept++] = name[of[k]];
  for (int32_t k = kept - 1; k > 0; k--) {
    int32_t other = (int32_t)(((uint64_t)chi_rng_u32(1, 2, (uint32_t)k, 0) * (uint64_t)(k + 1)) >> 32), was = deal[k];
    deal[k] = deal[other];
    deal[other] = was;
  }
  for (int32_t i = 0; i < n; i++) {
    int32_t k = p->fact.of[i];
    p->label[i] = name[of[k]];
    p->shuffled[i] = p->label[i] < 0 ? -1 : deal[pos[k]];
    p->n_used += p->label[i] >= 0;
  }
out:
  chi_free(of);
  chi_free(count);
  chi_free(name);
  chi_free(deal);
  chi_free(pos);
  return rc;
}

static int set_up(probe *p, chii_study *s, const chii_view *v, chi_err *err) {
  int rc = 0;
  const char **unit = chi_calloc((size_t)v->cl.n_items + 1, sizeof *unit, err);
  *p = (probe){.v = v};
  CHI_TRY(unit ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < v->cl.n_items; i++) {
    const char *text = json_string_value(json_object_get(s->item[v->at[i]].info, "unit"));
    unit[i] = text ? text : "";
  }
  CHI_TRY(chi_clusters_make(&p->fact, unit, v->cl.n_items, err));
  p->label = chi_calloc((size_t)v->cl.n_items, sizeof *p->label, err);
  p->shuffled = chi_calloc((size_t)v->cl.n_items, sizeof *p->shuffled, err);
  CHI_TRY(p->label && p->shuffled ? set_labels(p, err) : CHI_ERR_MEMORY);
out:
  chi_free(unit);
  return rc;
}

/* Share of items whose name the probe gives, by layer. */
static int accuracy(chi_est *out, const probe *p, chii_study *s, const chii_matrix *m, const int32_t *label,
                    chi_err *err) {
  int rc = 0;
  int32_t n = p->v->cl.n_items, d = (int32_t)m->dim[1];
  float *x = chi_calloc((size_t)n, (size_t)d * sizeof *x, err);
  int32_t *said = chi_calloc((size_t)n, sizeof *said, err);
  double *right = chi_calloc((size_t)n, sizeof *right, err);
  CHI_TRY(x && said && right ? 0 : CHI_ERR_MEMORY);
  for (int64_t l = 0; l < m->dim[0]; l++) {
    for (int32_t i = 0; i < n; i++)
      for (int32_t k = 0; k < d; k++) x[(int64_t)i * d + k] = (float)m->v[(size_t)i * m->size + (size_t)(l * d + k)];
    CHI_TRY(chi_ridge_out_of_fold(said, &p->fact, x, label, d, p->n_labels, kFolds, 1, s->boot.seed, err));
    for (int32_t i = 0; i < n; i++) right[i] = said[i] < 0 ? (double)NAN : said[i] == label[i];
    CHI_TRY(chi_boot_mean(&out[l], &p->v->cl, right, NULL, &s->boot, err));
  }
out:
  chi_free(x);
  chi_free(said);
  chi_free(right);
  return rc;
}

static int keep_curve(chii_study *s, const char *name, const chi_est *e, size_t n, chi_err *err) {
  double *y = chi_arena_array(&s->arena, 3 * n, sizeof *y, err);
  if (!y || s->n_probe == CHII_PROBES) return y ? 0 : CHI_ERR_MEMORY;
  for (size_t l = 0; l < n; l++) y[l] = e[l].value, y[n + l] = e[l].lo, y[2 * n + l] = e[l].hi;
  s->probe[s->n_probe++] = (chi_curve){.name = name, .y = y, .lo = y + n, .hi = y + 2 * n};
  s->probe_points = n;
  for (size_t l = 0; l < n; l++) {
    chi_csv_str(s->curves, name);
    chi_csv_str(s->curves, "right");
    chi_csv_int(s->curves, (int64_t)l - 1);
    chi_csv_num(s->curves, e[l].value);
    chi_csv_num(s->curves, e[l].lo);
    chi_csv_num(s->curves, e[l].hi);
    chi_csv_int(s->curves, e[l].n);
    chi_csv_int(s->curves, e[l].clusters);
    int rc = chi_csv_row(s->curves, err);
    if (rc) return rc;
  }
  return 0;
}

static int one_place(chii_claims *c, const probe *p, const char *place, const char *title, const char *control,
                     chi_err *err) {
  int rc = 0;
  chii_matrix m = {0};
  chi_est *e = NULL;
  CHI_TRY(chii_matrix_of(&m, c->s, p->v, err, "probe/%s/%s/state", c->s->ask, place));
  if (m.ndim != 2 || !m.n) goto out;
  CHI_TRY((e = chi_calloc((size_t)m.dim[0], sizeof *e, err)) ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < 2; k++) {
    int64_t best = 0, first = -1;
    CHI_TRY(accuracy(e, p, c->s, &m, k ? p->shuffled : p->label, err));
    for (int64_t l = 0; l < m.dim[0]; l++) {
      if (e[l].value > e[best].value) best = l;
      if (first < 0 && e[l].value >= 0.5) first = l;
    }
    chii_claim one = {.id = "T6", .e = e[best], .height = NAN, .p_family = NAN, .decimals = 3};
    char half[64] = "";
    if (first >= 0) snprintf(half, sizeof half, "; half of the items from layer %d on", (int)first - 1);
    snprintf(one.what, sizeof one.what, "linear probe for the name, %s: largest accuracy, layer %d%s (%d names)",
             k ? control : title, (int)best - 1, half, p->n_labels);
    CHI_TRY(chii_claim_put(c, &one, err));
    CHI_TRY(keep_curve(c->s, k ? control : title, e, (size_t)m.dim[0], err));
  }
out:
  chii_matrix_free(&m);
  chi_free(e);
  return rc;
}

int chii_claims_probe(chii_claims *c, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  probe p = {0};
  if (!chii_has_kind(c->s, "probe/")) return 0;
  CHI_TRY(chii_view_of(&v, c->s, "right", &(chii_which){.forms = "fact,two_flags", .right = 1}, err));
  if (v.cl.n_items < kFolds) goto out;
  CHI_TRY(set_up(&p, c->s, &v, err));
  if (p.n_labels < 2 || p.n_used < 10 * kFolds) goto out;
  CHI_TRY(one_place(c, &p, "words", "last word token", "last word token, dealt anew", err));
  CHI_TRY(one_place(c, &p, "last", "last token", "last token, dealt anew", err));
out:
  probe_free(&p);
  chi_clusters_free(&v.cl);
  return rc;
}

int chii_probe_chart(chii_study *s, chi_err *err) {
  double x[1024];
  char line[120];
  const char *lines[] = {line};
  if (!s->n_probe || s->probe_points > sizeof x / sizeof *x) return 0;
  for (size_t l = 0; l < s->probe_points; l++) x[l] = (double)l - 1;
  snprintf(line, sizeof line,
           "facts never in the training part; dealt anew: the same with other facts' names; bands: 95 %%");
  chi_linechart_spec spec = {.title = "The entity's name by a linear probe",
                             .lines = lines,
                             .n_lines = 1,
                             .x_label = "layer (-1: the input)",
                             .y_label = "accuracy",
                             .x = x,
                             .n = s->probe_points,
                             .curves = s->probe,
                             .n_curves = s->n_probe,
                             .y_zero = true};
  return chii_linechart(s, &spec, "probe-entity", err);
}

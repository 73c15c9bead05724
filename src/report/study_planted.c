/* Facts planted in a known layer; see study_planted.h. */
#include "report/study_planted.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/card.h"
#include "report/report.h"
#include "study/study.h"

enum { kAsks = 1 + CHI_TWINS };

/* What a method reads: a kind of result behind "study/ASK/", roles of a map or -1, whether the donor's is taken off. */
typedef struct method {
  const char *name, *study, *kind;
  int role[2]; /* -1: none */
  bool donor;
  double sign;
} method;
static const char kMlp[] = "substitute/mlp/w1";
static const method kMethod[CHI_PLANTED_METHODS] = {
    {"E", "trace", kMlp, {CHI_STUDY_WORDS, CHI_STUDY_LAST}, false, 1},
    {"E words", "trace", kMlp, {CHI_STUDY_WORDS, -1}, false, 1},
    {"E last", "trace", kMlp, {CHI_STUDY_LAST, -1}, false, 1},
    {"D", "trace", kMlp, {CHI_STUDY_WORDS, CHI_STUDY_LAST}, true, 1},
    {"D words", "trace", kMlp, {CHI_STUDY_WORDS, -1}, true, 1},
    {"D last", "trace", kMlp, {CHI_STUDY_LAST, -1}, true, 1},
    {"contributions", "contributions", "words>last/mean", {-1, -1}, false, 1},
    {"cuts", "knockout", "constraint:last/w1/own", {-1, -1}, false, -1},
    {"attribution", "attribute", "mlp", {-1, -1}, false, 1},
};

typedef struct run {
  chi_store *store;
  chi_store_item *item;
  size_t n;
  bool *right[kAsks]; /* [n] */
  chi_arena arena;
} run;

static const char *ask_name(int k) { return k == 0 ? "item" : chi_twin_name[k - 1]; }

/* ---- one run --------------------------------------------------------------------------------------------- */
static int read_right(run *r, chi_err *err) {
  int rc = 0;
  json_t *info = NULL;
  CHI_TRY(chi_store_items(r->store, &r->item, &r->n, &r->arena, err));
  for (int k = 0; k < kAsks; k++)
    CHI_TRY((r->right[k] = chi_arena_array(&r->arena, r->n + 1, sizeof(bool), err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < r->n; i++) {
    if (r->item[i].status != CHI_STORE_OK) continue;
    json_decref(info);
    CHI_TRY(chi_json_parse(&info, r->item[i].info, strlen(r->item[i].info), chi_store_path(r->store), err));
    for (int k = 0; k < kAsks; k++)
      r->right[k][i] =
          json_is_true(json_object_get(json_object_get(json_object_get(info, "ask"), ask_name(k)), "right"));
  }
out:
  json_decref(info);
  return rc;
}

/* The layer with the largest value of an item; -1 where a value is missing. */
static int first_layer(const method *m, const float *own, const float *donor, int32_t layers) {
  int best = -1;
  double top = -INFINITY;
  for (int32_t l = 0; l < layers; l++) {
    double x = -INFINITY;
    for (int k = 0; k < 2; k++) {
      if (m->role[0] >= 0 && m->role[k] < 0) continue;
      size_t at = m->role[0] < 0 ? (size_t)l : (size_t)l * CHI_STUDY_ROLES + (size_t)m->role[k];
      double v = m->sign * ((double)own[at] - (donor ? (double)donor[at] : 0.0));
      if (isnan(v)) return -1;
      if (v > x) x = v;
    }
    if (x > top) top = x, best = (int)l;
  }
  return best;
}

static int count(chi_planted_row *row, chi_planted *p, run *r, int which, int ask, const method *m, chi_err *err) {
  int rc = 0;
  char kind[200], other[200];
  bool map = m->role[0] >= 0;
  chi_arena tmp = {0};
  chi_store_values own = {0}, donor = {0};
  snprintf(kind, sizeof kind, "%s/%s/%s%s", m->study, ask_name(ask), m->kind, map ? "/own/p" : "");
  CHI_TRY(chi_store_values_of(r->store, kind, &own, &tmp, err));
  if (m->donor) {
    snprintf(other, sizeof other, "%s/%s/%s/donor/p", m->study, ask_name(ask), m->kind);
    CHI_TRY(chi_store_values_of(r->store, other, &donor, &tmp, err));
  }
  if (!own.n || (m->donor && donor.size != own.size)) goto out;
  if (own.ndim != (map ? 2 : 1) || (map && own.dim[1] != CHI_STUDY_ROLES) || own.dim[0] > CHI_PLANTED_LAYERS) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: '%s' is no result by layer", chi_store_path(r->store), kind);
    goto out;
  }
  int32_t layers = (int32_t)own.dim[0];
  if (row->layers && row->layers != layers) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s: a model of %d layers, the others have %d", chi_store_path(r->store), layers,
                  row->layers);
    goto out;
  }
  if (p->layer[which] >= layers) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s: there is no layer %d in a model of %d", chi_store_path(r->store),
                  p->layer[which], layers);
    goto out;
  }
  row->layers = layers;
  for (size_t i = 0, k = 0, d = 0; i < own.n; i++) {
    while (k < r->n && r->item[k].seq < own.seq[i]) k++;
    while (d < donor.n && donor.seq[d] < own.seq[i]) d++;
    bool has = !m->donor || (d < donor.n && donor.seq[d] == own.seq[i]);
    if (k == r->n || r->item[k].seq != own.seq[i] || !r->right[ask][k] || !has) continue;
    int at = first_layer(m, own.v + i * own.size, m->donor ? donor.v + d * donor.size : NULL, layers);
    if (at < 0) continue;
    row->named[(size_t)which * CHI_PLANTED_LAYERS + (size_t)at]++;
    row->n++;
    row->hits += at == p->layer[which];
    row->near += at >= p->layer[which] - 1 && at <= p->layer[which] + 1;
  }
out:
  chi_arena_free(&tmp);
  return rc;
}

/* ---- all of them ----------------------------------------------------------------------------------------- */
static int one_row(chi_planted *p, run *r, int ask, const method *m, chi_err *err) {
  int rc = 0;
  chi_planted_row *row = &p->row[p->n_rows];
  *row = (chi_planted_row){.method = m->name};
  snprintf(row->ask, sizeof row->ask, "%s", ask_name(ask));
  row->named = chi_arena_array(&p->arena, (size_t)p->n_runs * CHI_PLANTED_LAYERS, sizeof *row->named, err);
  CHI_TRY(row->named ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < p->n_runs; k++) CHI_TRY(count(row, p, &r[k], k, ask, m, err));
  if (row->n == 0) goto out;
  chi_wilson(row->hits, row->n, &row->lo, &row->hi);
  p->n_rows++;
out:
  return rc;
}

int chi_planted_read(chi_planted *out, const char *const *dirs, const int *layer, int n_runs, chi_err *err) {
  int rc = 0;
  run r[CHI_PLANTED_RUNS] = {{0}};
  *out = (chi_planted){.n_runs = n_runs};
  if (n_runs < 1 || n_runs > CHI_PLANTED_RUNS)
    return chi_fail(err, CHI_ERR_ARG, "from 1 to %d runs are possible", CHI_PLANTED_RUNS);
  out->row = chi_arena_array(&out->arena, kAsks * CHI_PLANTED_METHODS, sizeof *out->row, err);
  CHI_TRY(out->row ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < n_runs; k++) {
    out->layer[k] = layer[k];
    CHI_TRY(chi_store_read(&r[k].store, dirs[k], err));
    CHI_TRY(read_right(&r[k], err));
    for (size_t i = 0; i < r[k].n; i++) {
      out->items[k] += r[k].item[i].status == CHI_STORE_OK;
      out->right[k] += r[k].right[0][i];
    }
  }
  for (int a = 0; a < kAsks; a++)
    for (int m = 0; m < CHI_PLANTED_METHODS; m++) CHI_TRY(one_row(out, r, a, &kMethod[m], err));
  if (out->n_rows == 0)
    rc = chi_fail(err, CHI_ERR_ARG, "%s: no item is answered right and has a result by layer", dirs[0]);
out:
  for (int k = 0; k < n_runs; k++) {
    chi_store_close(r[k].store);
    chi_arena_free(&r[k].arena);
  }
  if (rc) chi_planted_free(out);
  return rc;
}

void chi_planted_free(chi_planted *p) {
  chi_arena_free(&p->arena);
  memset(p, 0, sizeof *p);
}

int chi_planted_csv(const chi_planted *p, const char *path, chi_err *err) {
  static const char *const kHead[] = {"ask", "method", "planted", "layer", "items"};
  int rc = 0;
  chi_csv *c = NULL;
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  for (int32_t r = 0; r < p->n_rows; r++)
    for (int k = 0; k < p->n_runs; k++)
      for (int32_t l = 0; l < p->row[r].layers; l++) {
        chi_csv_str(c, p->row[r].ask);
        chi_csv_str(c, p->row[r].method);
        chi_csv_int(c, p->layer[k]);
        chi_csv_int(c, l);
        chi_csv_int(c, p->row[r].named[(size_t)k * CHI_PLANTED_LAYERS + (size_t)l]);
        CHI_TRY(chi_csv_row(c, err));
      }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

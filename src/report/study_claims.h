/* Claims of the first paper as docs/studies/protocol.md states them: one row each, with its statistic, interval and one of
 * three words. A claim is made where the run has what it needs; the rest is left out. */
#ifndef CHI_STUDY_CLAIMS_H
#define CHI_STUDY_CLAIMS_H

#include "report/study_internal.h"

typedef enum chii_verdict { CHII_NO_VERDICT, CHII_FOUND, CHII_NOT_FOUND, CHII_UNDECIDED } chii_verdict;

typedef struct chii_claims { /* the table as it grows */
  chii_study *s;
  chi_csv *csv;
  json_t *list;
  int n;
} chii_claims;

typedef struct chii_claim {
  const char *id; /* "S1" */
  char what[240]; /* the statistic, in words */
  chi_est e;
  double height;   /* of a peak; NaN where it is none */
  double p_family; /* NaN where the statistic is no cell */
  int decimals;
  bool bare;            /* a row without a value */
  chii_verdict verdict; /* CHII_NO_VERDICT: a control or a part */
} chii_claim;
int chii_claim_put(chii_claims *c, const chii_claim *one, chi_err *err);
/* A row from its parts; the statistic by printf. Not a cell or a peak: NaN. */
int chii_claim_say(chii_claims *c, const char *id, const chi_est *e, double height, double p, int decimals,
                   chii_verdict v, chi_err *err, const char *fmt, ...) __attribute__((format(printf, 9, 10)));
/* Effects on p: at least 0.05 in the direction claimed (up), and an interval without 0. */
chii_verdict chii_by_size(const chi_est *e);
/* The interval lies above `line` (sign 1) or below it (-1), or on its other side. */
chii_verdict chii_by_side(const chi_est *e, double line, int sign);
/* A layer's whole interval lies in [lo, hi], or outside. */
chii_verdict chii_by_range(const chi_est *e, double lo, double hi);

/* ---- items of a claim ------------------------------------------------------------------------------------ */
typedef struct chii_which {
  const char *forms, *entity_group; /* lists; NULL = all */
  int right;                        /* 1, 0; -1 = both */
  int brackets;                     /* 1; 2 = two and more; 0 = any */
} chii_which;
/* Caller: chi_clusters_free(&out->cl). */
int chii_view_of(chii_view *out, chii_study *s, const char *name, const chii_which *w, chi_err *err);

/* ---- statistics ------------------------------------------------------------------------------------------ */
/* Of mean curves: a [width] over items of group 0, b over those of group 1 (NaN without any). l: layers of a curve. */
typedef double (*chii_curve_stat)(const double *a, const double *b, int l);
/* Bootstrap over entities of a statistic of the mean curves of x[n][width]; group: [n], 0 or 1, NULL = all 0. Items with a NaN
 * are left out. */
int chii_boot_curves(chi_est *out, const chi_clusters *c, const double *x, const uint8_t *group, int width, int layers,
                     chii_curve_stat stat, const chi_boot_opts *o, chi_err *err);

/* Maps of one corruption over a view, by token role. */
typedef struct chii_map {
  char site[16];
  int window;
  int64_t layers;
  chii_matrix own, donor; /* donor.size 0: none */
  chi_cell_test *test;    /* [layers * roles], of own less donor, or own; NULL before chii_maps_test */
} chii_map;
typedef struct chii_maps {
  const chii_view *v;
  chii_map map[2 * CHI_STUDY_LIST];
  int n;
} chii_maps;
/* mlp and attn in every window that the run has. Caller: chii_maps_free. */
int chii_maps_load(chii_maps *m, chii_study *s, const chii_view *v, const char *ask, const char *corrupt, chi_err *err);
void chii_maps_free(chii_maps *m);
const chii_map *chii_maps_find(const chii_maps *m, const char *site, int window); /* NULL: there is none */
/* One family of all cells, sites and windows. */
int chii_maps_test(chii_maps *m, chii_study *s, chi_err *err);
/* A value of own less donor (donor there), or of own. */
double chii_map_at(const chii_map *m, bool difference, int32_t item, int64_t layer, int role);
/* x[n_items][layers] of one role. */
void chii_map_role(double *x, const chii_map *m, bool difference, int32_t n_items, int role);

/* The corruption that claims stand on: the substitute where the run has it, else the first; NULL: none. */
const char *chii_claim_corruption(const chii_study *s);
/* The layer of a role's largest mean D (or E), with its height. It lies in [lo, hi]: by the protocol's rules, where the cell is
 * outlined and not small. hi < lo: no verdict. Nothing is put where the map is missing. */
int chii_claim_peak(chii_claims *c, const char *id, const chii_maps *m, const char *site, int window, bool diff,
                    int role, double lo, double hi, chi_err *err);

int chii_claims_maps(chii_claims *c, chi_err *err);     /* S */
int chii_claims_twins(chii_claims *c, chi_err *err);    /* S5, S6 */
int chii_claims_noise(chii_claims *c, chi_err *err);    /* R */
int chii_claims_transfer(chii_claims *c, chi_err *err); /* S10, T, F */
int chii_claims_probe(chii_claims *c, chi_err *err);    /* of T6; keeps its curves for chii_probe_chart */

#endif

/* Claims about what travels and what is used: S10, T1 to T6 (Basu et al. 2024), F1 to F4, from curves by layer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_claims.h"
#include "study/predict.h"

/* Mean of one column less that of another (from NULL: less nothing), with its row. */
static int put_mean(chii_claims *c, const char *id, const chii_view *v, const double *x, const double *less,
                    int decimals, const char *what, chi_est *e, chi_err *err) {
  int rc = chi_boot_mean(e, &v->cl, x, less, &c->s->boot, err);
  return rc ? rc : chii_claim_say(c, id, e, NAN, NAN, decimals, CHII_NO_VERDICT, err, "%s", what);
}

/* ---- S10: what is kept is used --------------------------------------------------------------------------- */
typedef struct said {
  const char *relation, *answer;
} said;

static int by_both(const void *a, const void *b) {
  const said *x = a, *y = b;
  int k = strcmp(x->relation, y->relation);
  return k ? k : strcmp(x->answer, y->answer);
}

/* best[i]: 1 where the item's answer is the commonest of its relation in the view; of several, the first by name. */
static int majority(double *best, const chii_study *s, const chii_view *v, chi_err *err) {
  int32_t n = v->cl.n_items;
  said *all = chi_calloc(2 * (size_t)n + 1, sizeof *all, err), *own = NULL;
  if (!all) return CHI_ERR_MEMORY;
  own = all + n;
  for (int32_t i = 0; i < n; i++) {
    const json_t *info = s->item[v->at[i]].info;
    const char *relation = json_string_value(json_object_get(info, "relation")),
               *answer = json_string_value(json_object_get(info, "answer"));
    all[i] = own[i] = (said){relation ? relation : "", answer ? answer : ""};
  }
  qsort(all, (size_t)n, sizeof *all, by_both);
  for (int32_t i = 0; i < n; i++) {
    int32_t most = 0, at = 0;
    for (int32_t a = 0, b; a < n; a = b) {
      for (b = a; b < n && by_both(&all[a], &all[b]) == 0; b++) continue;
      if (strcmp(all[a].relation, own[i].relation) == 0 && b - a > most) most = b - a, at = a;
    }
    best[i] = strcmp(all[at].answer, own[i].answer) == 0;
  }
  chi_free(all);
  return 0;
}

static int group_used(chii_claims *c, const char *group, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  double *right = NULL, *best = NULL;
  chi_est e;
  char what[200];
  CHI_TRY(chii_view_of(&v, c->s, group, &(chii_which){.forms = "fact", .entity_group = group, .right = -1}, err));
  int32_t n = v.cl.n_items;
  if (v.cl.n < 5) goto out;
  right = chi_calloc((size_t)n, sizeof *right, err);
  best = chi_calloc((size_t)n, sizeof *best, err);
  CHI_TRY(right && best ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) right[i] = c->s->item[v.at[i]].right == 1;
  CHI_TRY(majority(best, c->s, &v, err));
  snprintf(what, sizeof what, "accuracy, group %s, about the flag shown", group);
  CHI_TRY(put_mean(c, "S10", &v, right, NULL, 3, what, &e, err));
  CHI_TRY(chi_boot_mean(&e, &v.cl, right, best, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "S10", &e, NAN, NAN, 3, strcmp(group, "B") ? CHII_NO_VERDICT : chii_by_size(&e), err,
                         "accuracy less that of the commonest answer of each relation, group %s", group));
out:
  chi_clusters_free(&v.cl);
  chi_free(right);
  chi_free(best);
  return rc;
}

/* ---- T1, T2, T4, T5: contributions ----------------------------------------------------------------------- */
static int carried(chii_claims *c, const chii_view *v, const char *what, chii_matrix *m, chi_err *err) {
  return chii_matrix_of(m, c->s, v, err, "contributions/%s/%s", c->s->ask, what);
}

/* Where the contribution is largest, where the values alone are (even attention), where attention adds most to them. */
static int peak_layer(chii_claims *c, const chii_view *v, const chii_matrix *words, chi_err *err) {
  int rc = 0;
  chi_est e;
  double share, L = (double)words->size;
  chii_matrix even = {0};
  CHI_TRY(chi_boot_peak(&e, &share, &v->cl, words->v, NULL, (int32_t)words->size, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T1", &e, NAN, NAN, 0, chii_by_range(&e, floor(L / 2) - 1, floor(L / 2) + 2), err,
                         "layer of the largest mean contribution, words to last token; %s", v->title));
  CHI_TRY(carried(c, v, "words>last/even", &even, err));
  if (even.size != words->size) goto out;
  CHI_TRY(chi_boot_peak(&e, &share, &v->cl, even.v, NULL, (int32_t)even.size, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T1", &e, NAN, NAN, 0, CHII_NO_VERDICT, err,
                         "layer of the largest mean norm of the values alone (even attention); %s", v->title));
  for (size_t i = 0; i < (size_t)v->cl.n_items * even.size; i++)
    even.v[i] = even.v[i] > 0 ? words->v[i] / even.v[i] : (double)NAN;
  CHI_TRY(chi_boot_peak(&e, &share, &v->cl, even.v, NULL, (int32_t)even.size, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T1", &e, NAN, NAN, 0, CHII_NO_VERDICT, err,
                         "layer of the largest mean contribution over the values' norm; %s", v->title));
out:
  chii_matrix_free(&even);
  return rc;
}

/* Layers weighted by what is carried. */
static double centre(const chii_matrix *m, int32_t item) {
  double sum = 0, at = 0;
  for (size_t l = 0; l < m->size; l++) {
    double x = m->v[(size_t)item * m->size + l];
    sum += x;
    at += x * (double)l;
  }
  return sum > 0 ? at / sum : (double)NAN;
}

static int centres(chii_claims *c, const chii_view *v, const chii_matrix *words, chi_err *err) {
  int rc = 0;
  int32_t n = v->cl.n_items;
  chii_matrix picture = {0};
  chi_est e;
  double *x = chi_calloc(2 * (size_t)n + 1, sizeof *x, err), *y = x + n;
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(carried(c, v, "image>words/mean", &picture, err));
  if (picture.size != words->size) goto out;
  for (int32_t i = 0; i < n; i++) x[i] = centre(&picture, i), y[i] = centre(words, i);
  CHI_TRY(put_mean(c, "T4", v, x, NULL, 2, "centre of mass over layers: picture to words", &e, err));
  CHI_TRY(put_mean(c, "T4", v, y, NULL, 2, "centre of mass over layers: words to last token", &e, err));
  CHI_TRY(chi_boot_mean(&e, &v->cl, x, y, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T4", &e, NAN, NAN, 2, chii_by_side(&e, 0, -1), err,
                         "centre of mass, picture to words less words to last token; %s", v->title));
out:
  chii_matrix_free(&picture);
  chi_free(x);
  return rc;
}

static int late_patches(chii_claims *c, const chii_view *v, chi_err *err) {
  static const struct {
    const char *kind, *what;
  } kPart[] = {{"late", "share of the last patches in picture to words, layer 0"},
               {"late_even", "the same by values alone (even attention)"},
               {"late_flipped", "picture upside down: share of the last rows"},
               {"late_flipped_content", "picture upside down: share of the rows that hold the same content"},
               {"late_rolled", "picture rolled by a random number of rows: share of the last rows"},
               {"late_rolled_even", "picture rolled: share of the last rows by values alone"},
               {"late_rolled_content", "picture rolled: share of the rows that hold the same content"},
               {"late_shuffled", "patches shuffled: share of the last rows"},
               {"late_shuffled_content", "patches shuffled: share of the rows that hold the same content"}};
  int rc = 0;
  int32_t n = v->cl.n_items;
  chii_matrix m = {0};
  chi_est e, late = {.value = NAN};
  double *x = chi_calloc(2 * (size_t)n + 1, sizeof *x, err);
  CHI_TRY(x ? 0 : CHI_ERR_MEMORY);
  for (size_t k = 0; k < sizeof kPart / sizeof *kPart; k++) {
    char kind[64];
    bool values = strstr(kPart[k].kind, "_even") != NULL; /* of the row before it */
    snprintf(kind, sizeof kind, "image>words/%s", kPart[k].kind);
    chii_matrix_free(&m);
    CHI_TRY(carried(c, v, kind, &m, err));
    if (!m.size || !m.n) continue;
    double *to = values ? x + n : x;
    chii_column(to, &m, n, 0);
    CHI_TRY(put_mean(c, "T5", v, to, NULL, 4, kPart[k].what, &e, err));
    if (k == 0) late = e;
    if (!values) continue;
    CHI_TRY(chi_boot_mean(&e, &v->cl, x, to, &c->s->boot, err));
    chii_verdict chance = chii_by_side(&late, 1.0 / 16, 1), more = chii_by_side(&e, 0, 1),
                 both = chance == CHII_FOUND && more == CHII_FOUND           ? CHII_FOUND
                        : chance == CHII_NOT_FOUND || more == CHII_NOT_FOUND ? CHII_NOT_FOUND
                                                                             : CHII_UNDECIDED;
    CHI_TRY(chii_claim_say(c, "T5", &e, NAN, NAN, 4, k == 1 ? both : CHII_NO_VERDICT, err,
                           "%sshare of the last patches less that by values alone (chance: 1/16 = 0.0625)",
                           k == 1 ? "" : "picture rolled: "));
  }
out:
  chii_matrix_free(&m);
  chi_free(x);
  return rc;
}

/* Scores less the mean of their relation: what is left is no matter of one relation being harder. */
static void within_relation(double *x, const chii_study *s, const chii_view *v) {
  for (int32_t i = 0; i < v->cl.n_items; i++) {
    const char *own = json_string_value(json_object_get(s->item[v->at[i]].info, "relation"));
    double sum = 0;
    int n = 0;
    for (int32_t k = 0; k < v->cl.n_items; k++) {
      const char *other = json_string_value(json_object_get(s->item[v->at[k]].info, "relation"));
      if (isnan(x[k]) || strcmp(own ? own : "", other ? other : "") != 0) continue;
      sum += x[k];
      n++;
    }
    x[v->cl.n_items + i] = n ? x[i] - sum / n : NAN;
  }
}

static int right_is_larger(chii_claims *c, chi_err *err) {
  int rc = 0, right = 0;
  chii_view v = {0};
  chii_matrix m = {0};
  double *x = NULL;
  bool *good = NULL;
  chi_est e;
  CHI_TRY(chii_view_of(&v, c->s, "all items", &(chii_which){.right = -1}, err));
  CHI_TRY(carried(c, &v, "words>last/mean", &m, err));
  int32_t n = v.cl.n_items, mid = m.size ? chi_predict_middle((int32_t)m.size) : 0;
  if (!m.size || (size_t)mid + 1 >= m.size) goto out;
  x = chi_calloc(2 * (size_t)n, sizeof *x, err);
  good = chi_calloc((size_t)n, sizeof *good, err);
  CHI_TRY(x && good ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) {
    const double *row = m.v + (size_t)i * m.size;
    x[i] = (row[mid] + row[mid + 1]) / 2;
    right += good[i] = c->s->item[v.at[i]].right == 1;
  }
  if (right < 30 || n - right < 30) goto out; /* too few of a kind for an AUROC */
  CHI_TRY(chi_auroc(&e, &v.cl, x, NULL, good, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T2", &e, NAN, NAN, 3, chii_by_side(&e, 0.5, 1), err,
                         "AUROC of the mean contribution, words to last token, layers %d and %d, right against wrong",
                         (int)mid, (int)mid + 1));
  within_relation(x, c->s, &v);
  CHI_TRY(chi_auroc(&e, &v.cl, x + n, NULL, good, &c->s->boot, err));
  CHI_TRY(
      chii_claim_say(c, "T2", &e, NAN, NAN, 3, CHII_NO_VERDICT, err, "the same, less the mean of the item's relation"));
out:
  chi_clusters_free(&v.cl);
  chii_matrix_free(&m);
  chi_free(x);
  chi_free(good);
  return rc;
}

static int contributions(chii_claims *c, chi_err *err) {
  int rc = 0;
  chii_view v = {0};
  chii_matrix words = {0};
  CHI_TRY(chii_view_of(&v, c->s, "right items", &(chii_which){.right = 1}, err));
  if (v.cl.n < 5) goto out;
  CHI_TRY(carried(c, &v, "words>last/mean", &words, err));
  if (words.size) CHI_TRY(peak_layer(c, &v, &words, err));
  CHI_TRY(right_is_larger(c, err));
  if (words.size) CHI_TRY(centres(c, &v, &words, err));
  CHI_TRY(late_patches(c, &v, err));
out:
  chi_clusters_free(&v.cl);
  chii_matrix_free(&words);
  return rc;
}

/* ---- T3: cuts -------------------------------------------------------------------------------------------- */
/* Layer with the largest loss of p, and the loss at L/2 less that of as many random edges. */
static int cut_edges(chii_claims *c, const chii_view *v, const char *edges, int window, bool claim, chi_err *err) {
  int rc = 0;
  chii_matrix own = {0}, control = {0};
  chi_est e;
  double share, *x = NULL;
  CHI_TRY(chii_matrix_of(&own, c->s, v, err, "knockout/%s/%s/w%d/own", c->s->ask, edges, window));
  CHI_TRY(chii_matrix_of(&control, c->s, v, err, "knockout/%s/%s/w%d/control", c->s->ask, edges, window));
  if (!own.size || own.size != control.size) goto out;
  int32_t n = v->cl.n_items;
  size_t L = own.size;
  CHI_TRY((x = chi_calloc((size_t)n, L * sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < (size_t)n * L; i++) x[i] = control.v[i] - own.v[i];
  CHI_TRY(chi_boot_peak(&e, &share, &v->cl, x, NULL, (int32_t)L, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T3", &e, NAN, NAN, 0, CHII_NO_VERDICT, err,
                         "layer around which cutting %s costs most beyond random edges, windows of %d", edges, window));
  for (int32_t i = 0; i < n; i++) x[i] = x[(size_t)i * L + L / 2];
  CHI_TRY(chi_boot_mean(&e, &v->cl, x, NULL, &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T3", &e, NAN, NAN, 3, claim ? chii_by_size(&e) : CHII_NO_VERDICT, err,
                         "loss of p(answer) with %s cut at layer %d (L/2), less that of random edges, windows of %d",
                         edges, (int)(L / 2), window));
out:
  chii_matrix_free(&own);
  chii_matrix_free(&control);
  chi_free(x);
  return rc;
}

static int cuts(chii_claims *c, chi_err *err) {
  static const char *const kEdges[] = {"constraint:last", "image:constraint", "image:last"};
  int rc = 0;
  chii_view v = {0};
  const json_t *windows = json_object_get(c->s->settings, "windows");
  if (!chii_has_kind(c->s, "knockout/")) return 0;
  CHI_TRY(chii_view_of(&v, c->s, "right items", &(chii_which){.right = 1}, err));
  for (size_t w = 0; w < json_array_size(windows) && v.cl.n >= 5; w++)
    for (int k = 0; k < 3; k++) {
      int window = (int)json_integer_value(json_array_get(windows, w));
      CHI_TRY(cut_edges(c, &v, kEdges[k], window, k == 0 && window == 3, err));
    }
out:
  chi_clusters_free(&v.cl);
  return rc;
}

/* ---- T6: the bridge -------------------------------------------------------------------------------------- */
/* The first layer (-1: the input) with rank 10 or better; one behind the last where there is none. */
static double first_layer(const chii_matrix *m, int32_t item) {
  if (!m->size || isnan(m->v[(size_t)item * m->size])) return NAN;
  for (size_t l = 0; l < m->size; l++)
    if (m->v[(size_t)item * m->size + l] <= 10) return (double)l - 1;
  return (double)m->size - 1;
}

static int bridge(chii_claims *c, int right, chi_err *err) {
  static const struct {
    const char *kind, *what;
  } kRank[] = {{"words/rank", "first layer with the entity's name in the ten best, words"},
               {"words/other_rank", "the same for another name"},
               {"last/rank", "the same for the entity's name at the last token"},
               {"answer/rank", "first layer with the answer in the ten best, last token"}};
  int rc = 0;
  chii_view v = {0};
  chii_matrix m = {0};
  double *x[4] = {NULL};
  chi_est e;
  char what[200];
  const char *who = right ? "right" : "wrong";
  CHI_TRY(chii_view_of(&v, c->s, who, &(chii_which){.forms = "fact,two_flags", .right = right}, err));
  if (v.cl.n < 5) goto out;
  for (int k = 0; k < 4; k++) {
    chii_matrix_free(&m);
    CHI_TRY(chii_matrix_of(&m, c->s, &v, err, "lens/%s/%s", c->s->ask, kRank[k].kind));
    CHI_TRY((x[k] = chi_calloc((size_t)v.cl.n_items, sizeof **x, err)) ? 0 : CHI_ERR_MEMORY);
    for (int32_t i = 0; i < v.cl.n_items; i++) x[k][i] = first_layer(&m, i);
    snprintf(what, sizeof what, "%s; %s items", kRank[k].what, who);
    CHI_TRY(put_mean(c, "T6", &v, x[k], NULL, 2, what, &e, err));
  }
  CHI_TRY(chi_boot_mean(&e, &v.cl, x[0], x[3], &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T6", &e, NAN, NAN, 2, right ? chii_by_side(&e, 0, -1) : CHII_NO_VERDICT, err,
                         "first layer of the name at the words less that of the answer at the last token; %s items",
                         who));
  CHI_TRY(chi_boot_mean(&e, &v.cl, x[0], x[1], &c->s->boot, err));
  CHI_TRY(chii_claim_say(c, "T6", &e, NAN, NAN, 2, CHII_NO_VERDICT, err,
                         "first layer of the name less that of another name, words; %s items", who));
out:
  chi_clusters_free(&v.cl);
  chii_matrix_free(&m);
  for (int k = 0; k < 4; k++) chi_free(x[k]);
  return rc;
}

/* ---- F: failure prediction ------------------------------------------------------------------------------- */
static int failure(chii_claims *c, chi_err *err) {
  int rc = 0, hard = 0;
  chi_predict p = {0};
  chi_study_predict_counts n = {0};
  chi_err why = {0};
  if (!chii_has_kind(c->s, "predict/")) return 0;
  for (int32_t i = 0; i < c->s->n_items; i++) hard += json_is_true(json_object_get(c->s->item[i].info, "hard"));
  chi_study_predict_opts o = {.ask = c->s->ask, .boot = c->s->boot};
  if (hard) o.field = "hard", o.equals = "true";
  int bad = chi_study_predict_run(&p, &n, c->s->store, &o, &why);
  if (bad == CHI_ERR_MEMORY || bad == CHI_ERR_CANCELLED) return chi_fail(err, bad, "%s", why.text);
  if (bad || p.n_right < 30 || p.n - p.n_right < 30) goto out;
  for (int k = 0; k < p.n_rows; k++) {
    const chi_predict_row *r = &p.row[k];
    bool confidence = strncmp(r->name, "confidence", 10) == 0,
         middle = strncmp(r->name, "words to last token, layers", 27) == 0,
         both = strstr(r->name, "heads and confidence") != NULL;
    const char *id = confidence ? "F1" : middle ? "F2" : "F";
    CHI_TRY(chii_claim_say(
        c, id, &r->auroc, NAN, NAN, 3, confidence || middle ? chii_by_side(&r->auroc, 0.5, 1) : CHII_NO_VERDICT, err,
        "AUROC of %s%s; %d right, %d wrong", r->name, hard ? ", hard split" : "", p.n_right, p.n - p.n_right));
    if (middle)
      CHI_TRY(chii_claim_say(c, "F3", &r->gain, NAN, NAN, 3, chii_by_side(&r->gain, 0, -1), err,
                             "AUROC of %s less confidence's", r->name));
    if (both)
      CHI_TRY(chii_claim_say(c, "F4", &r->gain, NAN, NAN, 3, chii_by_side(&r->gain, 0, 1), err,
                             "AUROC of %s less confidence's", r->name));
  }
out:
  chi_predict_free(&p);
  return rc;
}

int chii_claims_transfer(chii_claims *c, chi_err *err) {
  static const char *const kGroup[] = {"A", "B", "C"};
  int rc = 0;
  for (int k = 0; k < 3; k++) CHI_TRY(group_used(c, kGroup[k], err));
  CHI_TRY(contributions(c, err));
  CHI_TRY(cuts(c, err));
  if (chii_has_kind(c->s, "lens/"))
    for (int right = 1; right >= 0; right--) CHI_TRY(bridge(c, right, err));
  CHI_TRY(chii_claims_probe(c, err));
  CHI_TRY(failure(c, err));
out:
  return rc;
}

/* One item of a fair test as JSON; see fair_line.h. */
#include "eval/fair_line.h"

#include <math.h>

static json_t *num(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *curves_json(const chi_fair_score *s, int b) {
  json_t *o = json_object();
  for (int how = 0; how < CHI_REMOVALS; how++) {
    double area = b ? s->insertion[how] : s->deletion[how];
    if (!isfinite(area)) continue;
    json_t *c = json_array();
    for (int k = 0; k < CHI_FAIR_SHARES; k++) json_array_append_new(c, num(s->curve[b][how][k]));
    json_object_set_new(o, chi_removal_name[how], json_pack("{s:o,s:o}", "area", num(area), "p", c));
  }
  return o;
}

static json_t *score_json(const chi_fair_score *s) {
  return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "pointing", num(s->pointing), "precision", num(s->precision),
                   "auprc", num(s->auprc), "switch_gain", num(s->switch_gain), "switch_rank", num(s->switch_rank),
                   "shuffled_rank", num(s->shuffled_rank), "deletion", curves_json(s, 0), "insertion",
                   curves_json(s, 1));
}

int chi_fair_line(json_t **out, const char *id, const char *unit, const char *image, const chi_fair_result *r,
                  const chi_fair_opts *o, chi_err *err) {
  json_t *scores = r->score ? json_object() : json_null(), *j = NULL;
  int bad = 0;
  for (int k = 0; r->score && k <= o->n_which; k++)
    if (r->score[k].made)
      bad |= json_object_set_new(scores, k < o->n_which ? o->which[k]->name : "mask", score_json(&r->score[k]));
  if (*r->problem)
    j = json_pack("{s:s,s:s,s:s,s:s,s:s}", "id", id, "unit", unit, "image", image, "status", "failed", "reason",
                  r->problem);
  else
    j = json_pack("{s:s,s:s,s:s,s:s,s:b,s:b,s:i,s:i,s:o}", "id", id, "unit", unit, "image", image, "status", "ok",
                  "right", r->right, "hurts", r->hurts, "patches", r->n, "mask_patches", r->n_mask, "p", num(r->p));
  if (j && !*r->problem) {
    bad |= json_object_set_new(j, "unseen", num(r->unseen));
    bad |= json_object_set_new(j, "fall", num(r->right ? r->fall : NAN));
    bad |= json_object_set_new(j, "random_fall", num(r->right ? r->random_fall : NAN));
    bad |= json_object_set(j, "scores", scores);
  }
  json_decref(scores);
  if (j && !bad) {
    *out = j;
    return 0;
  }
  json_decref(j);
  return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
}

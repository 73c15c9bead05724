/* An edit's key beside those of other pictures; see edits_keys.h. */
#include "eval/edits_keys.h"

#include <math.h>
#include <string.h>

#include "sweep/run.h"

enum { kOthers = 50, kKeyBatch = 16 };

typedef struct key_job {
  float *key; /* [n][f] */
} key_job;
static int on_key(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)i;
  memcpy(((key_job *)ud)->key + capture * n, x, (size_t)n * sizeof *x);
  return 0;
}

/* Keys of a layer at one row of prompts that differ in the picture only. */
static int keys_of(const chi_key_job *j, const char *const *picture, size_t n, float *key, chi_err *err) {
  int rc = 0, root, id;
  const chi_edit_item *it = &j->set->item[j->item];
  chi_prompt *p[kKeyBatch] = {NULL};
  chi_input in[kKeyBatch];
  chi_plan *plan = NULL;
  int64_t f = j->m->net.decoder.spec.ffn;
  int32_t row = j->note->row;
  for (size_t at = 0; at < n; at += kKeyBatch) {
    size_t k = n - at < kKeyBatch ? n - at : kKeyBatch;
    CHI_TRY(chi_plan_new(&plan, err));
    for (size_t i = 0; i < k; i++) {
      chi_prompt_opts o = {.image = picture[at + i], .question = it->question, .tmpl = j->o->tmpl, .raw = j->o->raw};
      CHI_TRY(chi_prompt_make(&p[i], j->m, &o, err));
      in[i] = chi_prompt_input(p[i]);
      CHI_TRY(chi_plan_root(plan, &in[i], &root, err));
      chi_capture c = {.branch = root,
                       .stack = CHI_DECODER,
                       .site = CHI_SITE_MLP_ACT,
                       .layer = j->note->layer,
                       .rows = &row,
                       .n_rows = 1};
      CHI_TRY(chi_plan_capture(plan, &c, &id, err));
    }
    key_job to = {key + (int64_t)at * f};
    chi_run_opts o = {.on_capture = on_key, .ud = &to, .mem = j->o->mem};
    CHI_TRY(chi_run_plan(&j->m->net, plan, &o, err));
    chi_plan_free(plan);
    plan = NULL;
    for (size_t i = 0; i < k; i++) {
      chi_prompt_free(p[i]);
      p[i] = NULL;
    }
  }
out:
  chi_plan_free(plan);
  for (size_t i = 0; i < kKeyBatch; i++) chi_prompt_free(p[i]);
  return rc;
}

/* Pictures of other entities: the item's own probes first, then the next items' requests. */
static size_t other_pictures(const chi_key_job *j, const char **out, size_t want) {
  size_t n = 0;
  const chi_edit_item *it = &j->set->item[j->item];
  for (size_t i = 0; i < it->n_probe[CHI_PROBE_SAME_QUESTION] && n < want; i++)
    if (it->probe[CHI_PROBE_SAME_QUESTION][i].image) out[n++] = it->probe[CHI_PROBE_SAME_QUESTION][i].image;
  for (size_t i = 1; i < j->set->n && n < want; i++) {
    const chi_edit_item *x = &j->set->item[(j->item + i) % j->set->n];
    bool there = !x->image || (*it->entity && strcmp(x->entity, it->entity) == 0) || chi_streq(x->image, it->image);
    for (size_t k = 0; k < n && !there; k++) there = strcmp(out[k], x->image) == 0;
    if (!there) out[n++] = x->image;
  }
  return n;
}

int chi_edits_keys(json_t **out, const chi_key_job *j, chi_err *err) {
  int rc = 0;
  size_t want = (size_t)(j->o->others > 0 ? j->o->others : kOthers), n;
  int64_t f = j->m->net.decoder.spec.ffn;
  const chi_editor_note *note = j->note;
  const char **picture = chi_calloc(want + 1, sizeof *picture, err);
  float *key = chi_calloc((size_t)f * (want + 1), sizeof *key, err);
  CHI_TRY(picture && key ? 0 : CHI_ERR_MEMORY);
  picture[0] = j->set->item[j->item].image;
  n = other_pictures(j, picture + 1, want);
  CHI_TRY(keys_of(j, picture, n + 1, key, err));
  double c = 0, c_max = 0, leak = 0, leak_max = 0, kk = chi_dot64(key, key, f);
  bool leaks = true;
  for (size_t i = 1; i <= n; i++) {
    const float *o = key + (int64_t)i * f;
    double ko = chi_dot64(key, o, f), oo = chi_dot64(o, o, f), cos = kk > 0 && oo > 0 ? ko / sqrt(kk * oo) : 0,
           l = fabs(chi_edit_leak(note->delta, note->layer, note->lambda, key, o));
    c += cos / (double)n;
    if (cos > c_max || i == 1) c_max = cos;
    leaks = leaks && isfinite(l);
    leak += l / (double)n;
    if (l > leak_max) leak_max = l;
  }
  if (n) *out = json_pack("{s:I,s:f,s:f}", "pictures", (json_int_t)n, "cosine_mean", c, "cosine_max", c_max);
  if (n && leaks && *out) {
    json_object_set_new(*out, "leak_mean", json_real(leak));
    json_object_set_new(*out, "leak_max", json_real(leak_max));
  }
out:
  chi_free(picture);
  chi_free(key);
  return rc;
}

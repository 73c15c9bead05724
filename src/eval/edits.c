/* Edits, and what they moved; see edits.h. */
#include "eval/edits.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/asks.h"
#include "sweep/run.h"

enum { kOthers = 50, kKeyBatch = 16 };

/* ---- editors ---------------------------------------------------------------------------------------------------- */
int chi_editor_none(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                    chi_err *err) {
  (void)e, (void)note, (void)m, (void)set, (void)item, (void)err;
  return 0;
}

/* The item's request without its brackets, which a raw prompt would keep. */
static int request_prompt(chi_prompt **out, const chi_method_editor *e, const chi_model *m, const chi_edit_item *it,
                          chi_err *err) {
  int rc = 0;
  char *plain = NULL;
  CHI_TRY(chi_question_with(&plain, it->question, 0, NULL, err));
  chi_prompt_opts o = {.image = it->image, .question = plain, .tmpl = e->query.tmpl, .raw = e->query.raw};
  rc = chi_prompt_make(out, m, &o, err);
out:
  chi_free(plain);
  return rc;
}

/* Row and layer by tracing; the pictures are those of the same question's probes. */
static int locate(chi_located *at, char where[32], const chi_method_editor *e, chi_model *m, const chi_edit_item *it,
                  chi_err *err) {
  int rc = 0;
  chi_prompt *p = NULL;
  const chi_edit_ask *a = it->probe[CHI_PROBE_SAME_QUESTION];
  size_t n = 0, count = it->n_probe[CHI_PROBE_SAME_QUESTION];
  const char **pictures = chi_calloc(count + 1, sizeof *pictures, err);
  CHI_TRY(pictures ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < count; i++)
    if (a[i].image) pictures[n++] = a[i].image;
  CHI_TRY(request_prompt(&p, e, m, it, err));
  CHI_TRY(chi_edit_locate(at, m, p, pictures, n, -1, -1, e->mem, err));
  snprintf(where, 32, "row:%d", at->row - p->n_rows);
out:
  chi_prompt_free(p);
  chi_free(pictures);
  return rc;
}

static int edit_at(const chi_method_editor *e, const char *at, int lo, int hi, chi_editor_note *note, chi_model *m,
                   const chi_edit_item *it, chi_err *err) {
  int rc = 0;
  chi_query *q = NULL;
  char *plain = NULL;
  chi_edit_info info;
  chi_edit_opts o = e->edit;
  chi_query_opts qo = e->query;
  o.layer_lo = lo, o.layer_hi = hi;
  qo.image = it->image, qo.question = it->question, qo.target = it->target, qo.at = at;
  if (qo.raw && strcmp(at, "constraint-last") != 0) {
    CHI_TRY(chi_question_with(&plain, it->question, 0, NULL, err));
    qo.question = plain;
  }
  CHI_TRY(chi_query_make(&q, m, &qo, err));
  CHI_TRY(chi_edit_run(&note->delta, &info, m, &q->req, 1, &o, err));
  note->row = q->req.row;
  note->layer = hi;
  note->steps = info.steps;
  note->loss = info.loss_last;
  note->delta_norm = info.delta_norm;
  note->lambda = info.lambda;
out:
  chi_query_free(q);
  chi_free(plain);
  return rc;
}

/* Layers of the editor's settings, its preset's where they name none. */
static int layers_of(const chi_method_editor *e, int *lo, int *hi, chi_err *err) {
  const chi_method *method;
  const chi_preset *preset;
  int rc = 0;
  *lo = e->edit.layer_lo, *hi = e->edit.layer_hi >= 0 ? e->edit.layer_hi : e->edit.layer_lo;
  if (*lo >= 0) return 0;
  CHI_TRY(chi_method_find(&method, e->edit.method, err));
  CHI_TRY(chi_preset_find(&preset, method, e->edit.preset, err));
  *lo = preset->layer_lo, *hi = preset->layer_hi;
out:
  return rc;
}

int chi_editor_method(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                      chi_err *err) {
  int rc = 0, lo, hi;
  char where[32];
  const chi_method_editor *me = e->ud;
  const chi_edit_item *it = &set->item[item];
  const char *at = it->edit_at ? it->edit_at : me->query.at;
  CHI_TRY(layers_of(me, &lo, &hi, err));
  if (strcmp(at, "auto") == 0) {
    chi_located found;
    CHI_TRY(locate(&found, where, me, m, it, err));
    at = where;
    if (me->edit.layer_lo < 0) {
      int span = hi - lo;
      hi = found.layer, lo = hi > span ? hi - span : 0;
    }
  }
  rc = edit_at(me, at, lo, hi, note, m, it, err);
out:
  return rc;
}

int chi_editor_random(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                      chi_err *err) {
  int rc = 0, lo, hi;
  char where[32];
  const chi_method_editor *me = e->ud;
  const chi_edit_item *it = &set->item[item];
  chi_prompt *p = NULL;
  uint32_t layers = (uint32_t)m->net.decoder.spec.layers;
  CHI_TRY(layers_of(me, &lo, &hi, err));
  CHI_TRY(request_prompt(&p, me, m, it, err));
  int span = hi - lo;
  hi = (int)(chi_rng_u32(me->query.seed, 0x73697465u, (uint32_t)item, 0) % layers);
  lo = hi > span ? hi - span : 0;
  uint32_t row = chi_rng_u32(me->query.seed, 0x73697465u, (uint32_t)item, 1) % (uint32_t)p->n_rows;
  snprintf(where, sizeof where, "row:%d", (int)row - p->n_rows);
  rc = edit_at(me, where, lo, hi, note, m, it, err);
out:
  chi_prompt_free(p);
  return rc;
}

/* ---- one item ----------------------------------------------------------------------------------- */
typedef struct work {
  chi_jlog *log;
  chi_model *m;
  const chi_edit_set *set;
  const chi_edits_opts *o;
  /* of the item at hand */
  const chi_edit_item *it;
  chi_ask *ask; /* the request, then all probes by kind */
  chi_reply *before, *after;
  size_t n;
  bool asked; /* before is there */
  chi_edit_probe p_before;
  chi_arena arena;
} work;

static int gather(work *w, const chi_edit_item *it, chi_err *err) {
  size_t n = 1, i = 0;
  chi_arena_free(&w->arena);
  w->it = it;
  w->asked = false;
  for (int k = 0; k < CHI_PROBES; k++) n += it->n_probe[k];
  w->n = n;
  w->ask = chi_arena_array(&w->arena, n, sizeof *w->ask, err);
  w->before = chi_arena_array(&w->arena, n, sizeof *w->before, err);
  w->after = chi_arena_array(&w->arena, n, sizeof *w->after, err);
  if (!w->ask || !w->before || !w->after) return CHI_ERR_MEMORY;
  w->ask[i++] = (chi_ask){.image = it->image, .question = it->question, .expect = it->target, .name = it->id};
  for (int k = 0; k < CHI_PROBES; k++)
    for (size_t j = 0; j < it->n_probe[k]; j++) {
      const chi_edit_ask *a = &it->probe[k][j];
      w->ask[i++] = (chi_ask){.image = a->image, .question = a->question, .expect = a->answer, .name = it->id};
    }
  return 0;
}

/* All questions, each behind `context` where there is one. */
static int ask_all(work *w, const char *context, chi_reply *to, chi_edit_probe *p, chi_err *err) {
  int rc = 0;
  chi_query *q = NULL;
  char *plain = NULL;
  chi_arena a = {0};
  chi_str s = {0};
  chi_ask *ask = w->ask;
  chi_ask_opts o = {.tmpl = w->o->tmpl, .raw = w->o->raw, .mem = w->o->mem, .max_new = w->o->max_new};
  if (context) {
    CHI_TRY((ask = chi_arena_array(&a, w->n, sizeof *ask, err)) ? 0 : CHI_ERR_MEMORY);
    for (size_t i = 0; i < w->n; i++) {
      s.len = 0;
      chi_str_addf(&s, "%s %s", context, w->ask[i].question);
      ask[i] = w->ask[i];
      ask[i].question = s.failed ? NULL : chi_arena_strdup(&a, s.s, err);
      CHI_TRY(ask[i].question ? 0 : CHI_ERR_MEMORY);
    }
  }
  CHI_TRY(chi_asks_run(to, w->m, ask, w->n, &o, err));
  CHI_TRY(chi_question_with(&plain, ask[0].question, 0, NULL, err));
  chi_query_opts qo = {.image = w->it->image,
                       .question = plain,
                       .tmpl = w->o->tmpl,
                       .raw = w->o->raw,
                       .target = w->it->target,
                       .at = "last-prompt"};
  CHI_TRY(chi_query_make(&q, w->m, &qo, err));
  CHI_TRY(chi_edit_measure(p, w->m, q->prompt, q->req.target, q->req.n_target, err));
out:
  chi_query_free(q);
  chi_free(plain);
  chi_str_free(&s);
  chi_arena_free(&a);
  return rc;
}

/* ---- keys of other pictures --------------------------------------------------------------------- */
typedef struct key_job {
  float *key; /* [n][f] */
} key_job;
static int on_key(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)i;
  memcpy(((key_job *)ud)->key + capture * n, x, (size_t)n * sizeof *x);
  return 0;
}

/* Keys of a layer at one row of prompts that differ in the picture only. */
static int keys_of(work *w, const char *const *picture, size_t n, int32_t row, int layer, float *key, chi_err *err) {
  int rc = 0, root, id;
  chi_prompt *p[kKeyBatch] = {NULL};
  chi_input in[kKeyBatch];
  chi_plan *plan = NULL;
  int64_t f = w->m->net.decoder.spec.ffn;
  for (size_t at = 0; at < n; at += kKeyBatch) {
    size_t k = n - at < kKeyBatch ? n - at : kKeyBatch;
    CHI_TRY(chi_plan_new(&plan, err));
    for (size_t i = 0; i < k; i++) {
      chi_prompt_opts o = {.image = picture[at + i], .question = w->it->question, .tmpl = w->o->tmpl, .raw = w->o->raw};
      CHI_TRY(chi_prompt_make(&p[i], w->m, &o, err));
      in[i] = chi_prompt_input(p[i]);
      CHI_TRY(chi_plan_root(plan, &in[i], &root, err));
      chi_capture c = {
          .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_MLP_ACT, .layer = layer, .rows = &row, .n_rows = 1};
      CHI_TRY(chi_plan_capture(plan, &c, &id, err));
    }
    key_job j = {key + (int64_t)at * f};
    chi_run_opts o = {.on_capture = on_key, .ud = &j, .mem = w->o->mem};
    CHI_TRY(chi_run_plan(&w->m->net, plan, &o, err));
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
static size_t other_pictures(const work *w, const char **out, size_t want) {
  size_t n = 0, own = (size_t)(w->it - w->set->item);
  const chi_edit_item *it = w->it;
  for (size_t i = 0; i < it->n_probe[CHI_PROBE_SAME_QUESTION] && n < want; i++)
    if (it->probe[CHI_PROBE_SAME_QUESTION][i].image) out[n++] = it->probe[CHI_PROBE_SAME_QUESTION][i].image;
  for (size_t i = 1; i < w->set->n && n < want; i++) {
    const chi_edit_item *x = &w->set->item[(own + i) % w->set->n];
    bool there = !x->image || (*it->entity && strcmp(x->entity, it->entity) == 0) || chi_streq(x->image, it->image);
    for (size_t k = 0; k < n && !there; k++) there = strcmp(out[k], x->image) == 0;
    if (!there) out[n++] = x->image;
  }
  return n;
}

/* Cosine and leak of the edit's key, on the base's weights. */
static int compare_keys(work *w, const chi_editor_note *note, json_t **out, chi_err *err) {
  int rc = 0;
  size_t want = (size_t)(w->o->others > 0 ? w->o->others : kOthers), n;
  int64_t f = w->m->net.decoder.spec.ffn;
  const char **picture = chi_calloc(want + 1, sizeof *picture, err);
  float *key = chi_calloc((size_t)f * (want + 1), sizeof *key, err);
  CHI_TRY(picture && key ? 0 : CHI_ERR_MEMORY);
  picture[0] = w->it->image;
  n = other_pictures(w, picture + 1, want);
  CHI_TRY(keys_of(w, picture, n + 1, note->row, note->layer, key, err));
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

/* ---- lines of the log --------------------------------------------------------------------------- */
static json_t *num(double x) { return isfinite(x) ? json_real(x) : json_null(); }

/* Answers are cut to fit, perhaps inside a character. */
static json_t *text(const char *s) {
  json_t *j = json_string(s);
  size_t n = strlen(s);
  while (!j && n > 0) j = json_stringn(s, --n);
  return j ? j : json_string("");
}

static json_t *probes_json(const work *w) {
  json_t *out = json_object();
  size_t i = 1;
  for (int k = 0; k < CHI_PROBES; k++) {
    int kept = 0, right = 0, was = 0, n = (int)w->it->n_probe[k];
    json_t *said = json_array();
    for (int j = 0; j < n; j++, i++) {
      bool same = strcmp(w->before[i].said, w->after[i].said) == 0;
      kept += chi_probe_get((chi_probe_kind)k)->local ? same : w->after[i].right;
      right += w->after[i].right;
      was += w->before[i].right;
      json_array_append_new(said, json_pack("[o,o]", text(w->before[i].said), text(w->after[i].said)));
    }
    json_t *o =
        json_pack("{s:i,s:i,s:i,s:i,s:o}", "n", n, "kept", kept, "right", right, "right_before", was, "said", said);
    if (n)
      json_object_set_new(out, chi_probe_get((chi_probe_kind)k)->name, o);
    else
      json_decref(o);
  }
  return out;
}

static void line_id(char *buf, size_t cap, const char *editor, const char *item) {
  snprintf(buf, cap, "%s|%s", editor, item);
}

static int add_line(work *w, const chi_editor *e, const chi_editor_note *note, const chi_edit_probe *p, json_t *key,
                    const char *problem, chi_err *err) {
  int rc = 0, bad;
  char id[1024];
  line_id(id, sizeof id, e->name, w->it->id);
  json_t *j =
      json_pack("{s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:b}", "id", id, "editor", e->name, "item", w->it->id, "status",
                problem ? "failed" : "ok", "p_before", num(w->p_before.p), "p_target", num(p->p), "said_before",
                text(w->before[0].said), "said", text(w->after[0].said), "reliable", w->after[0].right);
  bad = !j;
  if (j && problem) bad |= json_object_set_new(j, "reason", text(problem));
  if (j) bad |= json_object_set_new(j, "probes", probes_json(w));
  if (j && note->row >= 0)
    bad |= json_object_set_new(j, "edit",
                               json_pack("{s:i,s:i,s:i,s:o,s:o}", "row", note->row, "layer", note->layer, "steps",
                                         note->steps, "loss", num(note->loss), "delta_norm", num(note->delta_norm)));
  if (j && key) bad |= json_object_set(j, "key", key);
  rc = bad ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : chi_jlog_add(w->log, j, err);
  json_decref(j);
  return rc;
}

/* Failures of one edit are results; these are not. */
static bool ends_run(int rc) { return rc == CHI_ERR_CANCELLED || rc == CHI_ERR_MEMORY || rc == CHI_ERR_IO; }

static int one_edit(work *w, const chi_editor *e, chi_err *err) {
  int rc = 0;
  chi_editor_note note = {
      .row = -1, .layer = -1, .steps = 0, .loss = NAN, .delta_norm = NAN, .lambda = NAN, .delta = NULL};
  chi_edit_probe p = w->p_before;
  chi_undo undo = {0};
  json_t *key = NULL;
  chi_err why = {0};
  rc = e->edit(e, &note, w->m, w->set, (size_t)(w->it - w->set->item), &why);
  if (rc && ends_run(rc)) {
    rc = chi_fail(err, rc, "%s: item %.80s: %s", e->name, w->it->id, why.text);
    goto out;
  }
  if (rc || (!note.delta && !note.context)) { /* nothing changed: what was said is said again */
    memcpy(w->after, w->before, w->n * sizeof *w->after);
    rc = add_line(w, e, &note, &p, NULL, rc ? why.text : NULL, err);
    goto out;
  }
  if (note.delta && note.row >= 0 && w->it->image) CHI_TRY(compare_keys(w, &note, &key, err));
  if (note.delta) CHI_TRY(chi_delta_apply(note.delta, w->m, &undo, err));
  CHI_TRY(ask_all(w, note.context, w->after, &p, err));
  CHI_TRY(add_line(w, e, &note, &p, key, NULL, err));
out:
  chi_delta_undo(&undo);
  chi_delta_free(note.delta);
  chi_free(note.context);
  json_decref(key);
  return rc;
}

int chi_edits_run(chi_jlog *log, chi_model *m, const chi_edit_set *set, const chi_edits_opts *o, chi_err *err) {
  int rc = 0;
  char id[1024];
  work w = {.log = log, .m = m, .set = set, .o = o};
  int64_t total = (int64_t)(set->n * o->n_editors), done = 0;
  for (size_t i = 0; i < set->n; i++) {
    CHI_TRY(gather(&w, &set->item[i], err));
    for (size_t k = 0; k < o->n_editors; k++, done++) {
      CHI_TRY(chi_progress("editing and asking", done, total, err));
      line_id(id, sizeof id, o->editor[k]->name, set->item[i].id);
      if (chi_jlog_find(log, id)) continue;
      if (!w.asked) CHI_TRY(ask_all(&w, NULL, w.before, &w.p_before, err));
      w.asked = true;
      CHI_TRY(one_edit(&w, o->editor[k], err));
    }
  }
  CHI_TRY(chi_progress("editing and asking", total, total, err));
out:
  chi_arena_free(&w.arena);
  return rc;
}

/* ---- sums --------------------------------------------------------------------------------------- */
const char *chi_edits_column(int c, char buf[64]) {
  static const char *const last[] = {"key_cosine", "leak_share", "leak_share_max"};
  if (c == CHI_EDITS_RELIABLE) return "reliability";
  if (c == CHI_EDITS_P) return "p_target";
  if (c >= CHI_EDITS_COSINE) return last[c - CHI_EDITS_COSINE];
  bool right = c >= CHI_EDITS_RIGHT;
  const char *name = chi_probe_get((chi_probe_kind)(c - (right ? CHI_EDITS_RIGHT : CHI_EDITS_PROBE)))->name;
  snprintf(buf, 64, "%s%s", right ? "right." : "", name);
  return buf;
}

static double share(const json_t *line, int kind, const char *key) {
  const json_t *p = json_object_get(json_object_get(line, "probes"), chi_probe_get((chi_probe_kind)kind)->name);
  double n = json_number_value(json_object_get(p, "n"));
  return n > 0 ? json_number_value(json_object_get(p, key)) / n : NAN;
}

static double real(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

static double column_of(const json_t *line, int c) {
  const json_t *key = json_object_get(line, "key");
  if (c == CHI_EDITS_RELIABLE) return json_is_true(json_object_get(line, "reliable")) ? 1 : 0;
  if (c == CHI_EDITS_P) return real(line, "p_target");
  if (c == CHI_EDITS_COSINE) return real(key, "cosine_mean");
  if (c == CHI_EDITS_LEAK) return real(key, "leak_mean");
  if (c == CHI_EDITS_LEAK_MAX) return real(key, "leak_max");
  if (c >= CHI_EDITS_RIGHT) return share(line, c - CHI_EDITS_RIGHT, "right");
  return share(line, c - CHI_EDITS_PROBE, "kept");
}

int chi_edits_sums(chi_edits_sum *out, const chi_jlog *log, const chi_edit_set *set, const char *editor, chi_err *err) {
  int rc = 0;
  char id[1024];
  chi_clusters clusters = {0};
  const char **name = chi_calloc(set->n + 1, sizeof *name, err);
  double *x = chi_calloc(set->n + 1, sizeof *x, err);
  memset(out, 0, sizeof *out);
  CHI_TRY(name && x ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < set->n; i++) name[i] = *set->item[i].entity ? set->item[i].entity : set->item[i].unit;
  CHI_TRY(chi_clusters_make(&clusters, name, (int32_t)set->n, err));
  for (int c = 0; c < CHI_EDITS_COLUMNS; c++) {
    for (size_t i = 0; i < set->n; i++) {
      line_id(id, sizeof id, editor, set->item[i].id);
      const json_t *line = chi_jlog_find(log, id);
      x[i] = line ? column_of(line, c) : NAN;
      if (c) continue;
      out->n += line != NULL;
      out->failed += line && chi_streq(json_string_value(json_object_get(line, "status")), "failed");
    }
    chi_boot_opts bo = {.draws = 2000};
    CHI_TRY(chi_boot_mean(&out->col[c], &clusters, x, NULL, &bo, err));
  }
out:
  chi_clusters_free(&clusters);
  chi_free(name);
  chi_free(x);
  return rc;
}

/* Edits, and what they moved; see edits.h. */
#include "eval/edits.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/asks.h"
#include "data/dataset.h"
#include "eval/edits_keys.h"

enum { kSpread = 5 };

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

/* Where tracing finds the fact; the pictures are those of the same question's probes. */
static int trace(chi_edit_map *map, int *n_rows, const chi_method_editor *e, const chi_model *m,
                 const chi_edit_item *it, chi_err *err) {
  int rc = 0;
  chi_prompt *p = NULL;
  const chi_edit_ask *a = it->probe[CHI_PROBE_SAME_QUESTION];
  size_t n = 0, count = it->n_probe[CHI_PROBE_SAME_QUESTION];
  const char **pictures = chi_calloc(count + 1, sizeof *pictures, err);
  CHI_TRY(pictures ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < count; i++)
    if (a[i].image) pictures[n++] = a[i].image;
  CHI_TRY(request_prompt(&p, e, m, it, err));
  CHI_TRY(chi_edit_map_make(map, m, p, pictures, n, e->mem, err));
  *n_rows = p->n_rows;
out:
  chi_prompt_free(p);
  chi_free(pictures);
  return rc;
}

/* Row and layer by tracing. */
static int locate(chi_located *at, char where[32], const chi_method_editor *e, chi_model *m, const chi_edit_item *it,
                  chi_err *err) {
  int rc = 0, n_rows = 0;
  chi_edit_map map = {0};
  CHI_TRY(trace(&map, &n_rows, e, m, it, err));
  CHI_TRY(chi_edit_strongest(at, &map, -1, -1, err));
  snprintf(where, 32, "row:%d", at->row - n_rows);
out:
  chi_edit_map_free(&map);
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
  note->layer = o.other_stack ? -1 : hi; /* of the decoder: whose keys may be compared */
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
static int layers_of(const chi_method_editor *e, const chi_model *m, int *lo, int *hi, chi_err *err) {
  const chi_method *method;
  const chi_preset *preset;
  int rc = 0;
  *lo = e->edit.layer_lo, *hi = e->edit.layer_hi >= 0 ? e->edit.layer_hi : e->edit.layer_lo;
  if (*lo >= 0) return 0;
  CHI_TRY(chi_method_find(&method, e->edit.method, err));
  CHI_TRY(chi_preset_find(&preset, method, e->edit.preset, err));
  *lo = preset->layer_lo, *hi = preset->layer_hi;
  chi_stack stack = e->edit.other_stack ? e->edit.stack : CHI_DECODER;
  if (*hi == CHI_LAST_LAYER) *lo = *hi = stack == CHI_PROJECTOR ? 0 : m->net.shape.stack[stack].layers - 1;
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
  CHI_TRY(layers_of(me, m, &lo, &hi, err));
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
  CHI_TRY(layers_of(me, m, &lo, &hi, err));
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
  bool asked;       /* before is there */
  double p_before;  /* of the target */
  chi_edit_map map; /* cell NULL: not made yet */
  chi_arena arena;
  json_t *known; /* o->before: item -> line; NULL = none */
} work;

static size_t probes_of(const work *w, int kind) {
  size_t n = w->it->n_probe[kind], most = (size_t)w->o->per_kind;
  return most && n > most ? most : n;
}

static int gather(work *w, const chi_edit_item *it, chi_err *err) {
  size_t n = 1, i = 0;
  chi_arena_free(&w->arena);
  chi_edit_map_free(&w->map);
  w->it = it;
  w->asked = false;
  for (int k = 0; k < CHI_PROBES; k++) n += probes_of(w, k);
  w->n = n;
  w->ask = chi_arena_array(&w->arena, n, sizeof *w->ask, err);
  w->before = chi_arena_array(&w->arena, n, sizeof *w->before, err);
  w->after = chi_arena_array(&w->arena, n, sizeof *w->after, err);
  if (!w->ask || !w->before || !w->after) return CHI_ERR_MEMORY;
  w->ask[i++] = (chi_ask){.image = it->image, .question = it->question, .expect = it->target, .name = it->id};
  for (int k = 0; k < CHI_PROBES; k++)
    for (size_t j = 0; j < probes_of(w, k); j++) {
      const chi_edit_ask *a = &it->probe[k][j];
      w->ask[i++] = (chi_ask){.image = a->image, .question = a->question, .expect = a->answer, .name = it->id};
    }
  return 0;
}

/* All questions, each behind `context` where there is one. */
static int ask_all(work *w, const char *context, chi_reply *to, double *p, chi_err *err) {
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
  CHI_TRY(chi_edit_p(p, w->m, q->prompt, q->req.target, q->req.n_target, err));
out:
  chi_query_free(q);
  chi_free(plain);
  chi_str_free(&s);
  chi_arena_free(&a);
  return rc;
}

/* ---- answers of before, from another log ----------------------------------------------------------- */
static int index_before(work *w, chi_err *err) {
  size_t i;
  json_t *line;
  if (!w->o->before) return 0;
  if (!(w->known = json_object())) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  json_array_foreach(chi_jlog_lines(w->o->before), i, line) {
    const char *item = json_string_value(json_object_get(line, "item"));
    if (item && json_object_set(w->known, item, line)) return chi_fail(err, CHI_ERR_MEMORY, "out of memory");
  }
  return 0;
}

/* A reply as chi_asks_run would give it; false where the log's text may have been cut. */
static bool reply_of(chi_reply *r, const json_t *said, const char *expect, bool raw) {
  const char *s = json_string_value(said);
  if (!s || strlen(s) + 4 >= sizeof r->said) return false;
  snprintf(r->said, sizeof r->said, "%s", s);
  r->right = raw ? expect && chi_data_says(s, expect, true) : chi_streq(s, expect);
  return true;
}

/* Takes everything that was said before the edit from the log; false: it has to be asked. */
static bool known_before(work *w) {
  const json_t *line = w->known ? json_object_get(w->known, w->it->id) : NULL, *p = json_object_get(line, "p_before"),
               *probes = json_object_get(line, "probes");
  size_t i = 1;
  if (!json_is_number(p) || !reply_of(&w->before[0], json_object_get(line, "said_before"), w->it->target, w->o->raw))
    return false;
  for (int k = 0; k < CHI_PROBES; k++) {
    const json_t *said = json_object_get(json_object_get(probes, chi_probe_get((chi_probe_kind)k)->name), "said");
    for (size_t j = 0; j < probes_of(w, k); j++, i++)
      if (!reply_of(&w->before[i], json_array_get(json_array_get(said, j), 0), w->ask[i].expect, w->o->raw))
        return false;
  }
  w->p_before = json_number_value(p);
  return true;
}

/* ---- tracing ---------------------------------------------------------------------------------------- */
/* The effect at the cell that was edited, and the largest one anywhere; nothing where nothing can be traced. */
static int trace_cell(work *w, const chi_editor *e, const chi_editor_note *note, json_t **out, chi_err *err) {
  int rc = 0, n_rows = 0;
  chi_located top;
  if (!w->o->trace || (e->edit != chi_editor_method && e->edit != chi_editor_random) || note->row < 0 ||
      note->layer < 0 || !w->it->image)
    return 0;
  if (w->it->n_probe[CHI_PROBE_SAME_QUESTION] < 2) return 0;
  if (!w->map.cell) CHI_TRY(trace(&w->map, &n_rows, e->ud, w->m, w->it, err));
  const chi_edit_cell *c = chi_edit_map_at(&w->map, note->layer, note->row);
  CHI_TRY(chi_edit_strongest(&top, &w->map, -1, -1, err));
  if (c)
    *out = json_pack("{s:f,s:f,s:f,s:f,s:i,s:i,s:f}", "own", c->own, "corrected", c->corrected, "own_log", c->own_log,
                     "corrected_log", c->corrected_log, "top_row", top.row, "top_layer", top.layer, "top", top.effect);
out:
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
    int kept = 0, right = 0, was = 0, n = (int)probes_of(w, k);
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

const char *chi_edits_line_id(char *buf, size_t cap, const char *editor, const char *item) {
  snprintf(buf, cap, "%s|%s", editor, item);
  return buf;
}

static int add_line(work *w, const chi_editor *e, const chi_editor_note *note, double p, json_t *key, json_t *cell,
                    const char *problem, chi_err *err) {
  int rc = 0, bad;
  char id[1024];
  chi_edits_line_id(id, sizeof id, e->name, w->it->id);
  json_t *j =
      json_pack("{s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:b}", "id", id, "editor", e->name, "item", w->it->id, "status",
                problem ? "failed" : "ok", "p_before", num(w->p_before), "p_target", num(p), "said_before",
                text(w->before[0].said), "said", text(w->after[0].said), "reliable", w->after[0].right);
  bad = !j;
  if (j && problem) bad |= json_object_set_new(j, "reason", text(problem));
  if (j) bad |= json_object_set_new(j, "probes", probes_json(w));
  if (j && note->row >= 0)
    bad |= json_object_set_new(j, "edit",
                               json_pack("{s:i,s:i,s:i,s:o,s:o}", "row", note->row, "layer", note->layer, "steps",
                                         note->steps, "loss", num(note->loss), "delta_norm", num(note->delta_norm)));
  if (j && key) bad |= json_object_set(j, "key", key);
  if (j && cell) bad |= json_object_set(j, "trace", cell);
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
  double p = w->p_before;
  chi_undo undo = {0};
  json_t *key = NULL, *cell = NULL;
  chi_err why = {0};
  rc = e->edit(e, &note, w->m, w->set, (size_t)(w->it - w->set->item), &why);
  if (rc && ends_run(rc)) {
    rc = chi_fail(err, rc, "%s: item %.80s: %s", e->name, w->it->id, why.text);
    goto out;
  }
  if (rc || (!note.delta && !note.context)) { /* nothing changed: what was said is said again */
    memcpy(w->after, w->before, w->n * sizeof *w->after);
    rc = add_line(w, e, &note, p, NULL, NULL, rc ? why.text : NULL, err);
    goto out;
  }
  chi_key_job kj = {.m = w->m, .set = w->set, .item = (size_t)(w->it - w->set->item), .o = w->o, .note = &note};
  if (note.delta && note.row >= 0 && note.layer >= 0 && w->it->image) CHI_TRY(chi_edits_keys(&key, &kj, err));
  CHI_TRY(trace_cell(w, e, &note, &cell, err));
  if (note.delta) CHI_TRY(chi_delta_apply(note.delta, w->m, &undo, err));
  CHI_TRY(ask_all(w, note.context, w->after, &p, err));
  CHI_TRY(add_line(w, e, &note, p, key, cell, NULL, err));
out:
  chi_delta_undo(&undo);
  chi_delta_free(note.delta);
  chi_free(note.context);
  json_decref(key);
  json_decref(cell);
  return rc;
}

/* Every fifth item, then those behind them, and so on: what a run that is stopped has done is spread over the set. */
static size_t spread(size_t at, size_t n) {
  size_t first = 0, k = 0;
  for (; k < kSpread; k++) { /* items k, k + kSpread, ...: the pass that `at` falls into */
    size_t in_pass = (n + kSpread - 1 - k) / kSpread;
    if (at < first + in_pass) break;
    first += in_pass;
  }
  return k + (at - first) * kSpread;
}

int chi_edits_run(chi_jlog *log, chi_model *m, const chi_edit_set *set, const chi_edits_opts *o, chi_err *err) {
  int rc = 0;
  char id[1024];
  work w = {.log = log, .m = m, .set = set, .o = o};
  int64_t total = (int64_t)(set->n * o->n_editors), done = 0;
  CHI_TRY(index_before(&w, err));
  for (size_t at = 0; at < set->n; at++) {
    size_t i = spread(at, set->n);
    CHI_TRY(gather(&w, &set->item[i], err));
    for (size_t k = 0; k < o->n_editors; k++, done++) {
      CHI_TRY(chi_progress("editing and asking", done, total, err));
      chi_edits_line_id(id, sizeof id, o->editor[k]->name, set->item[i].id);
      if (chi_jlog_find(log, id)) continue;
      if (!w.asked && !known_before(&w)) CHI_TRY(ask_all(&w, NULL, w.before, &w.p_before, err));
      w.asked = true;
      CHI_TRY(one_edit(&w, o->editor[k], err));
    }
  }
  CHI_TRY(chi_progress("editing and asking", total, total, err));
out:
  chi_arena_free(&w.arena);
  chi_edit_map_free(&w.map);
  json_decref(w.known);
  return rc;
}

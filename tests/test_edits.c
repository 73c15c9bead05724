/* Evaluating edits: what is counted, against direct runs; no edit moves nothing; a run that was stopped goes on to
 * the same log; edit sets and logs that are not what they say. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/asks.h"
#include "eval/edits_table.h"
#include "support/support.h"
#include "sweep/generate.h"

#define TINY "tests/fixtures/tiny-gqa"

static chi_model *open_tiny(void) {
  chi_model *m = NULL;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&m, TINY, CHI_DTYPE_F32, err));
  return m;
}

static const char *write_text(const char *name, const char *text) {
  const char *path = tmp_path(name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
  return path;
}

/* Three edits: pictures of the fixture, one in text; the last has a constraint that is not there. */
static const char *set_file(void) {
  char dir[1024], text[8192];
  assert_non_null(realpath(TINY, dir));
  snprintf(
      text, sizeof text,
      "{\"id\":\"a\",\"split\":\"dev\",\"entity\":\"P\",\"request\":{\"image\":\"%.900s/"
      "picture.png\",\"question\":\"What "
      "is the capital of [this "
      "country]?\",\"target\":\"there\",\"edit_at\":\"last-prompt\",\"old\":null},\"probes\":{\"paraphrase\":[{"
      "\"image\":"
      "\"%.900s/picture.png\",\"question\":\"Name the capital.\",\"answer\":\"there\"}],\"same_question\":[{\"image\":"
      "\"%.900s/donor.png\",\"question\":\"What is the capital of [this "
      "country]?\",\"answer\":\"x\"}],\"other_text\":[{"
      "\"image\":null,\"question\":\"What is this?\"},{\"image\":null,\"question\":\"Why there?\"}]}}\n"
      "\n{\"id\":\"b\",\"split\":\"test\",\"entity\":\"Q\",\"question\":\"What is [Peru]?\",\"target\":\"language\"}\n"
      "{\"id\":\"c\",\"split\":\"test\",\"question\":\"What is this?\",\"target\":\"there\"}\n",
      dir, dir, dir);
  return write_text("set.jsonl", text);
}

static chi_hyper hyper(void) {
  const chi_method *m = NULL;
  assert_works(chi_method_find(&m, "multedit", err));
  chi_hyper h = m->presets[0].hyper;
  h.steps = 40, h.lr = 0.5, h.lr_share = false, h.clamp = 0, h.stop = 0;
  return h;
}

typedef struct rig {
  chi_model *m;
  chi_edit_set set;
  chi_hyper h;
  chi_method_editor me;
  chi_editor none, method, random;
  const chi_editor *list[3];
  chi_edits_opts o;
} rig;

static void make_rig(rig *r) {
  memset(r, 0, sizeof *r);
  r->m = open_tiny();
  r->h = hyper();
  assert_works(chi_edit_set_load(&r->set, set_file(), NULL, 0, err));
  r->me = (chi_method_editor){.edit = {.method = "multedit", .layer_lo = 0, .layer_hi = 0, .hyper = &r->h},
                              .query = {.at = "constraint-last", .seed = 3}};
  r->none = (chi_editor){.name = "none", .edit = chi_editor_none};
  r->method = (chi_editor){.name = "multedit", .edit = chi_editor_method, .ud = &r->me};
  r->random = (chi_editor){.name = "random site", .edit = chi_editor_random, .ud = &r->me};
  r->list[0] = &r->method, r->list[1] = &r->none, r->list[2] = &r->random;
  r->o = (chi_edits_opts){.editor = r->list, .n_editors = 3, .max_new = 1};
}

static void free_rig(rig *r) {
  chi_edit_set_free(&r->set);
  chi_model_free(r->m);
}

static double of(const json_t *line, const char *a, const char *b, const char *c) {
  const json_t *v = json_object_get(line, a);
  if (b) v = json_object_get(v, b);
  if (c) v = json_object_get(v, c);
  return json_is_number(v) ? json_number_value(v) : NAN;
}

static void test_reading(void **state) {
  (void)state;
  chi_edit_set s;
  assert_works(chi_edit_set_load(&s, set_file(), NULL, 0, err));
  assert_int_equal(s.n, 3);
  assert_int_equal(s.item[0].n_probe[CHI_PROBE_OTHER_TEXT], 2);
  assert_string_equal(s.item[1].unit, "b");
  assert_int_equal(s.item[1].line, 3);
  assert_null(s.item[1].image);
  chi_edit_set_free(&s);
  assert_works(chi_edit_set_load(&s, set_file(), "test", 1, err));
  assert_true(s.n == 1 && strcmp(s.item[0].id, "b") == 0);
  chi_edit_set_free(&s);
  static const struct {
    const char *text, *says;
  } bad[] = {
      {"", "no edits"},
      {"[1]\n", "line 1: not an object"},
      {"{\"target\":\"x\"}\n", "field 'question' is missing"},
      {"{\"question\":\"Why?\",\"target\":\" \"}\n", "field 'target' is empty"},
      {"\n{\"question\":\"Why?\",\"target\":3}\n", "line 2"},
      {"{\"question\":\"Why?\",\"target\":\"x\",\"probes\":{\"rumour\":[]}}\n", "no kind of probe 'rumour'"},
      {"{\"question\":\"Why?\",\"target\":\"x\",\"probes\":{\"reverse\":[{\"question\":\"Who?\"}]}}\n",
       "probes.reverse[0]: field 'answer' is missing"},
      {"{\"question\":\"Why?\",\"target\":\"x\",\"probes\":{\"reverse\":{}}}\n", "probes.reverse is no list"},
      {"{\"id\":\"a\",\"question\":\"Why?\",\"target\":\"x\"}\n{\"id\":\"a\",\"question\":\"Why?\",\"target\":\"x\"}\n",
       "stands on lines 1 and 2"},
      {"{\"question\":\"Why?\"", "line 1"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_fails(chi_edit_set_load(&s, write_text("bad.jsonl", bad[i].text), NULL, 0, err), CHI_ERR_FORMAT,
                 bad[i].says);
  assert_fails(chi_edit_set_load(&s, set_file(), "train", 0, err), CHI_ERR_FORMAT, "no edits of split train");
}

/* The first item by hand: edit, apply, ask, and the other picture's key. */
static void test_counts(void **state) {
  (void)state;
  rig r;
  chi_jlog *log = NULL;
  json_t *head = json_pack("{s:s}", "run", "counts");
  make_rig(&r);
  assert_works(chi_jlog_open(&log, NULL, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  assert_int_equal(json_array_size(chi_jlog_lines(log)), 9);
  const json_t *line = chi_jlog_find(log, "multedit|a"), *no = chi_jlog_find(log, "none|a");
  chi_query *q = NULL;
  chi_query_opts qo = r.me.query;
  const chi_edit_item *it = &r.set.item[0];
  qo.at = it->edit_at, qo.image = it->image, qo.question = it->question, qo.target = it->target;
  assert_works(chi_query_make(&q, r.m, &qo, err));
  chi_delta *d = NULL;
  chi_edit_info info;
  assert_works(chi_edit_run(&d, &info, r.m, &q->req, 1, &r.me.edit, err));
  int64_t f = r.m->net.decoder.spec.ffn;
  float *k = calloc((size_t)f, sizeof *k), *k2 = calloc((size_t)f, sizeof *k2);
  chi_prompt *p = NULL;
  assert_works(chi_prompt_make(
      &p, r.m, &(chi_prompt_opts){.image = TINY "/donor.png", .question = it->question, .need_constraint = true}, err));
  assert_works(chi_edit_states(&r.m->net, q->prompt, q->req.row, 0, k, NULL, NULL, err));
  assert_works(chi_edit_states(&r.m->net, p, q->req.row, 0, k2, NULL, NULL, err));
  double kk = chi_dot64(k, k, f), ko = chi_dot64(k, k2, f);
  assert_true(fabs(of(line, "key", "leak_mean", NULL) - fabs(ko) / (0.01 * kk + kk)) < 1e-6);
  assert_true(fabs(of(line, "key", "cosine_max", NULL) - ko / sqrt(kk * chi_dot64(k2, k2, f))) < 1e-6);
  assert_true(of(line, "key", "pictures", NULL) == 1);
  chi_undo undo = {0};
  chi_edit_probe probe;
  chi_reply reply[4], before[4];
  chi_ask ask[4] = {{.image = it->image, .question = it->question, .expect = "there"},
                    {.image = it->image, .question = "Name the capital.", .expect = "there"},
                    {.image = TINY "/donor.png", .question = it->question},
                    {.question = "What is this?"}};
  assert_works(chi_asks_run(before, r.m, ask, 4, &(chi_ask_opts){.max_new = 1}, err));
  assert_works(chi_delta_apply(d, r.m, &undo, err));
  assert_works(chi_asks_run(reply, r.m, ask, 4, &(chi_ask_opts){.max_new = 1}, err));
  assert_works(chi_edit_measure(&probe, r.m, q->prompt, q->req.target, q->req.n_target, err));
  chi_delta_undo(&undo);
  print_message("p %.3g -> %.4f, said %s -> %s\n", of(line, "p_before", NULL, NULL), probe.p, before[0].said,
                reply[0].said);
  assert_true(probe.p > 0.5 && reply[0].right);
  assert_true(fabs(of(line, "p_target", NULL, NULL) - probe.p) < 1e-9);
  assert_true(json_is_true(json_object_get(line, "reliable")));
  assert_true(of(line, "probes", "paraphrase", "kept") == reply[1].right);
  assert_true(of(line, "probes", "same_question", "kept") == (strcmp(reply[2].said, before[2].said) == 0));
  assert_true(of(line, "probes", "other_text", "n") == 2);
  /* no edit: nothing moves, whatever is asked */
  assert_true(of(no, "p_target", NULL, NULL) == of(no, "p_before", NULL, NULL));
  assert_true(of(no, "probes", "other_text", "kept") == 2 && of(no, "probes", "same_question", "kept") == 1);
  chi_edits_row row[2] = {{"none", log, "none"}, {"multedit", log, "multedit"}};
  chi_edits_table *sum = NULL;
  chi_edits_table_opts to = {.reference = -1, .boot = {.draws = 100}};
  assert_works(chi_edits_table_make(&sum, row, 2, &r.set, &to, err));
  const chi_edits_stat *col = sum->stat;
  assert_true(sum->n[0] == 3 && sum->failed[0] == 0 && col[CHI_EDITS_PROBE + CHI_PROBE_OTHER_TEXT].mean.value == 1);
  assert_true(col[CHI_EDITS_RELIABLE].mean.value == 0 && col[CHI_EDITS_PROBE + CHI_PROBE_REVERSE].mean.n == 0);
  /* the third request brackets nothing: a failed edit, counted, and the run goes on */
  assert_true(sum->n[1] == 3 && sum->failed[1] == 1);
  chi_edits_table_free(sum);
  const char *reason = json_string_value(json_object_get(chi_jlog_find(log, "multedit|c"), "reason"));
  assert_non_null(reason);
  assert_non_null(strstr(reason, "brackets no words"));
  assert_string_equal(json_string_value(json_object_get(chi_jlog_find(log, "random site|c"), "status")), "ok");
  free(k), free(k2);
  chi_prompt_free(p);
  chi_delta_free(d);
  chi_query_free(q);
  chi_jlog_close(log);
  json_decref(head);
  free_rig(&r);
}

/* Texts that go on into their answers: no template, no brackets, one token more than the answer has, whole words. */
static void test_raw(void **state) {
  (void)state;
  enum { kNew = 4 };
  rig r;
  chi_jlog *log = NULL, *again = NULL;
  chi_prompt *p = NULL;
  chi_reply reply[3];
  chi_edit_probe probe;
  int32_t id[kNew], n = 0, *target = NULL, n_target = 0;
  char *text = NULL, word[64], part[64];
  json_t *head = json_pack("{s:s}", "run", "raw");
  make_rig(&r);
  assert_works(chi_prompt_make(&p, r.m, &(chi_prompt_opts){.question = "What is Peru?", .raw = true}, err));
  chi_input in = chi_prompt_input(p);
  assert_works(chi_generate(&r.m->net, &in, &(chi_gen_opts){.max_new = kNew}, id, &n, NULL, err));
  assert_int_equal(n, kNew);
  assert_works(chi_decode(r.m->tok, id, (size_t)n, true, &text, err));
  const char *said = text + strspn(text, " ");
  snprintf(word, sizeof word, "%.*s", (int)strcspn(said, " "), said);
  print_message("goes on with '%s'\n", text);
  assert_true(*word && strlen(word) < strlen(said));
  snprintf(part, sizeof part, "%.*s", (int)strlen(word) - 1, word);
  chi_ask ask[3] = {{.question = "What is [Peru]?", .expect = word},
                    {.question = "What is [Peru]?", .expect = part},
                    {.question = "What is [Peru]?"}};
  assert_works(chi_asks_run(reply, r.m, ask, 3, &(chi_ask_opts){.raw = true, .max_new = kNew}, err));
  assert_true(reply[0].right && !reply[1].right && !reply[2].right);
  assert_string_equal(reply[0].said, word);
  assert_true(strncmp(reply[2].said, said, strlen(reply[2].said)) == 0 && strlen(reply[2].said) > strlen(word));
  /* an evaluation asks the same; the place of a random edit is one of the bare prompt */
  assert_works(chi_target_tokens(&target, &n_target, r.m, p, "language", err));
  assert_works(chi_edit_measure(&probe, r.m, p, target, n_target, err));
  r.o.raw = r.me.query.raw = true;
  r.set.item++, r.set.n = 1; /* the one in text */
  chi_edit_ask known = {.question = "What is Peru?", .answer = word};
  r.set.item->probe[CHI_PROBE_OTHER_TEXT] = &known, r.set.item->n_probe[CHI_PROBE_OTHER_TEXT] = 1;
  for (uint64_t seed = 0; seed < 4; seed++) {
    r.me.query.seed = seed;
    r.me.edit.layer_hi = -1;
    assert_works(chi_jlog_open(&log, NULL, head, err));
    assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
    const json_t *line = chi_jlog_find(log, "multedit|b"), *place = chi_jlog_find(log, "random site|b");
    assert_true(of(line, "p_before", NULL, NULL) == probe.p && of(line, "p_target", NULL, NULL) > 5 * probe.p);
    assert_true(of(line, "edit", "row", NULL) < p->n_rows && of(place, "edit", "row", NULL) < p->n_rows);
    assert_string_equal(json_string_value(json_object_get(place, "status")), "ok");
    assert_true(of(line, "probes", "other_text", "right_before") == 1);
    /* taken from that log instead: the same lines */
    r.o.before = log;
    assert_works(chi_jlog_open(&again, NULL, head, err));
    assert_works(chi_edits_run(again, r.m, &r.set, &r.o, err));
    assert_true(json_equal(chi_jlog_lines(log), chi_jlog_lines(again)));
    chi_jlog_close(again);
    r.o.before = NULL;
    chi_jlog_close(log);
  }
  r.set.item--;
  json_decref(head);
  chi_free(text);
  chi_free(target);
  chi_prompt_free(p);
  free_rig(&r);
}

/* What was said before may come from another log: the same lines, nothing asked again. Fewer probes of a kind. */
static void test_before(void **state) {
  (void)state;
  rig r;
  chi_jlog *first = NULL, *log = NULL;
  json_t *head = json_pack("{s:s}", "run", "before");
  make_rig(&r);
  r.h.steps = 3;
  r.o.n_editors = 2;
  assert_works(chi_jlog_open(&first, NULL, head, err));
  assert_works(chi_edits_run(first, r.m, &r.set, &r.o, err));
  r.o.before = first;
  assert_works(chi_jlog_open(&log, NULL, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  assert_true(json_equal(chi_jlog_lines(first), chi_jlog_lines(log)));
  chi_jlog_close(log);
  /* proof that it was read: an answer that the model never gave */
  json_t *line = json_array_get(chi_jlog_lines(first), 0);
  json_t *said = json_object_get(json_object_get(json_object_get(line, "probes"), "same_question"), "said");
  for (size_t i = 0; i < 2; i++) {
    json_t *l = json_array_get(chi_jlog_lines(first), i);
    said = json_object_get(json_object_get(json_object_get(l, "probes"), "same_question"), "said");
    json_array_set_new(json_array_get(said, 0), 0, json_string("never"));
  }
  r.o.per_kind = 1;
  assert_works(chi_jlog_open(&log, NULL, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  assert_true(of(chi_jlog_find(log, "multedit|a"), "probes", "same_question", "kept") == 0);
  assert_true(of(chi_jlog_find(log, "multedit|a"), "probes", "other_text", "n") == 1);
  chi_jlog_close(log);
  chi_jlog_close(first);
  json_decref(head);
  free_rig(&r);
}

/* The effect at the cell that is edited, beside the map that it is taken from. */
static void test_trace(void **state) {
  (void)state;
  rig r;
  chi_jlog *log = NULL;
  json_t *head = json_pack("{s:s}", "run", "trace");
  make_rig(&r);
  r.h.steps = 2;
  r.o.n_editors = 1, r.o.trace = true;
  chi_edit_item *it = &r.set.item[0];
  chi_edit_ask two[2] = {it->probe[CHI_PROBE_SAME_QUESTION][0], it->probe[CHI_PROBE_SAME_QUESTION][0]};
  two[1].image = it->image;
  it->probe[CHI_PROBE_SAME_QUESTION] = two, it->n_probe[CHI_PROBE_SAME_QUESTION] = 2;
  assert_works(chi_jlog_open(&log, NULL, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  const json_t *line = chi_jlog_find(log, "multedit|a");
  chi_prompt *p = NULL;
  chi_edit_map map;
  chi_located top;
  const char *pictures[2] = {two[0].image, two[1].image};
  assert_works(chi_prompt_make(
      &p, r.m, &(chi_prompt_opts){.image = it->image, .question = "What is the capital of this country?"}, err));
  assert_works(chi_edit_map_make(&map, r.m, p, pictures, 2, 0, err));
  const chi_edit_cell *c = chi_edit_map_at(&map, 0, p->n_rows - 1);
  assert_non_null(c);
  assert_true(c->own != 0);
  assert_true(fabs(of(line, "trace", "own", NULL) - c->own) < 1e-12);
  assert_true(fabs(of(line, "trace", "corrected", NULL) - c->corrected) < 1e-12);
  assert_works(chi_edit_strongest(&top, &map, -1, -1, err));
  assert_true(of(line, "trace", "top_row", NULL) == top.row && of(line, "trace", "top_layer", NULL) == top.layer);
  assert_null(chi_edit_map_at(&map, map.n_layers, p->n_rows - 1));
  assert_null(json_object_get(chi_jlog_find(log, "multedit|b"), "trace")); /* no picture */
  chi_edit_map_free(&map);
  chi_prompt_free(p);
  chi_jlog_close(log);
  json_decref(head);
  free_rig(&r);
}

static int stop_later(void *ud, const char *what, int64_t done, int64_t total) {
  (void)total;
  return strcmp(what, "editing and asking") == 0 && done == *(int *)ud;
}

static void test_resume(void **state) {
  (void)state;
  rig r;
  chi_jlog *log = NULL, *again = NULL;
  char whole[1024], cut[1024];
  json_t *head = json_pack("{s:s,s:i}", "run", "resume", "seed", 1),
         *other = json_pack("{s:s,s:i}", "run", "resume", "seed", 2);
  snprintf(whole, sizeof whole, "%s", tmp_path("whole.jsonl"));
  snprintf(cut, sizeof cut, "%s", tmp_path("cut.jsonl"));
  make_rig(&r);
  r.h.steps = 3;
  assert_works(chi_jlog_open(&log, whole, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  assert_fails(chi_jlog_open(&again, whole, head, err), CHI_ERR_IO, "another process");
  chi_jlog_close(log);
  for (int at = 2; at < 9; at += 3) { /* stopped three times */
    assert_works(chi_jlog_open(&log, cut, head, err));
    chi_set_progress(stop_later, &at);
    assert_fails(chi_edits_run(log, r.m, &r.set, &r.o, err), CHI_ERR_CANCELLED, "editing and asking");
    chi_set_progress(NULL, NULL);
    chi_jlog_close(log);
  }
  FILE *f = fopen(cut, "a"); /* and a line cut short */
  assert_non_null(f);
  fputs("{\"id\":\"random si", f);
  fclose(f);
  assert_works(chi_jlog_open(&log, cut, head, err));
  assert_works(chi_edits_run(log, r.m, &r.set, &r.o, err));
  chi_jlog_close(log);
  char a[65], b[65];
  assert_works(chi_sha256_file(a, whole, err));
  assert_works(chi_sha256_file(b, cut, err));
  assert_string_equal(a, b);
  assert_fails(chi_jlog_open(&again, cut, other, err), CHI_ERR_ARG, "its 'seed' differs");
  assert_fails(chi_jlog_open(&again, write_text("no.jsonl", "not a log"), head, err), CHI_ERR_FORMAT, "is no log");
  json_decref(head);
  json_decref(other);
  free_rig(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reading), cmocka_unit_test(test_counts), cmocka_unit_test(test_raw),
      cmocka_unit_test(test_before),  cmocka_unit_test(test_trace),  cmocka_unit_test(test_resume),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

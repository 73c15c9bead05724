/* Chains of edits against the same edits by hand, one on top of the other; a chain that was stopped; which questions no
 * edit is about. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/asks.h"
#include "eval/edits_chain.h"
#include "support/support.h"

#define TINY "tests/fixtures/tiny-gqa"

static const char *write_text(const char *name, const char *text) {
  const char *path = tmp_path(name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
  return path;
}

typedef struct rig {
  chi_model *m;
  chi_edit_set set;
  chi_items items;
  const chi_item **untouched;
  size_t n;
  chi_hyper h;
  chi_method_editor me;
  chi_editor e;
  int at[2];
  chi_chain_opts o;
} rig;

/* Three edits in text; the second brackets nothing and cannot be made. */
static void make_rig(rig *r) {
  const chi_method *m = NULL;
  memset(r, 0, sizeof *r);
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&r->m, TINY, CHI_DTYPE_F32, err));
  assert_works(chi_method_find(&m, "multedit", err));
  r->h = m->presets[0].hyper;
  r->h.steps = 30, r->h.lr = 0.5, r->h.lr_share = false, r->h.clamp = 0, r->h.stop = 0;
  assert_works(chi_edit_set_load(
      &r->set,
      write_text("set.jsonl",
                 "{\"id\":\"a\",\"entity\":\"P\",\"question\":\"What is [Peru]?\",\"target\":\"language\"}\n"
                 "{\"id\":\"b\",\"entity\":\"Q\",\"question\":\"What is this?\",\"target\":\"there\"}\n"
                 "{\"id\":\"c\",\"entity\":\"R\",\"question\":\"Is [it] there?\",\"target\":\"there\"}\n"),
      NULL, 0, err));
  assert_works(chi_items_load(
      &r->items,
      write_text("items.jsonl",
                 "{\"id\":\"1\",\"question\":\"What [now]?\",\"answer\":\"x\",\"entity\":\"S\",\"split\":\"test\"}\n"
                 "{\"id\":\"2\",\"question\":\"What [else]?\",\"answer\":\"x\",\"entity\":\"P\",\"split\":\"test\"}\n"
                 "{\"id\":\"3\",\"question\":\"Who [is]?\",\"answer\":\"x\",\"entity\":\"T\",\"split\":\"dev\"}\n"
                 "{\"id\":\"4\",\"question\":\"Why [so]?\",\"answer\":\"x\",\"entity\":\"U\",\"split\":\"test\"}\n"
                 "{\"id\":\"5\",\"question\":\"Is [it]?\",\"answer\":\"x\",\"entity\":\"V\",\"split\":\"test\"}\n"),
      0, err));
  assert_works(chi_chain_untouched(&r->untouched, &r->n, &r->items, "test", 0, &r->set, 3, err));
  r->me = (chi_method_editor){.edit = {.method = "multedit", .layer_lo = 0, .layer_hi = 0, .hyper = &r->h},
                              .query = {.at = "constraint-last"}};
  r->e = (chi_editor){.name = "multedit", .edit = chi_editor_method, .ud = &r->me};
  r->at[0] = 1, r->at[1] = 3;
  r->o = (chi_chain_opts){
      .editor = &r->e, .at = r->at, .n_at = 2, .untouched = r->untouched, .n_untouched = r->n, .max_new = 1};
}

static void free_rig(rig *r) {
  chi_edit_set_free(&r->set);
  chi_items_free(&r->items);
  chi_free(r->untouched);
  chi_model_free(r->m);
}

static void test_untouched(void **state) {
  (void)state;
  rig r;
  const chi_item **list = NULL;
  size_t n = 0;
  make_rig(&r);
  assert_int_equal(r.n, 3); /* not the edited entity's, not the other split's */
  assert_string_equal(r.untouched[1]->id, "4");
  assert_works(chi_chain_untouched(&list, &n, &r.items, "all", 2, &r.set, 0, err));
  assert_true(n == 2 && strcmp(list[0]->id, "1") == 0 && strcmp(list[1]->id, "3") == 0);
  chi_free(list);
  assert_fails(chi_chain_untouched(&list, &n, &r.items, "train", 0, &r.set, 0, err), CHI_ERR_ARG, "no question");
  free_rig(&r);
}

static double p_of(rig *r, size_t i) {
  chi_query *q = NULL;
  chi_edit_probe p;
  const char *plain[] = {"What is Peru?", "What is this?", "Is it there?"};
  chi_query_opts o = {.question = plain[i], .target = r->set.item[i].target, .at = "last-prompt"};
  assert_works(chi_query_make(&q, r->m, &o, err));
  assert_works(chi_edit_measure(&p, r->m, q->prompt, q->req.target, q->req.n_target, err));
  chi_query_free(q);
  return p.p;
}

static void hand_edit(rig *r, size_t i) {
  chi_query *q = NULL;
  chi_delta *d = NULL;
  chi_edit_info info;
  chi_query_opts o = {.question = r->set.item[i].question, .target = r->set.item[i].target, .at = "constraint-last"};
  assert_works(chi_query_make(&q, r->m, &o, err));
  assert_works(chi_edit_run(&d, &info, r->m, &q->req, 1, &r->me.edit, err));
  assert_works(chi_delta_apply(d, r->m, NULL, err));
  chi_delta_free(d);
  chi_query_free(q);
}

static double p_at(const chi_jlog *log, const char *id, size_t i) {
  return json_number_value(json_array_get(json_object_get(chi_jlog_find(log, id), "p"), i));
}

static void test_chain(void **state) {
  (void)state;
  rig r, hand;
  chi_jlog *log = NULL;
  json_t *head = json_pack("{s:s}", "run", "chain");
  make_rig(&r);
  make_rig(&hand);
  assert_works(chi_jlog_open(&log, NULL, head, err));
  assert_works(chi_chain_run(log, r.m, &r.set, &r.o, err));
  double before = p_of(&hand, 0), last = p_of(&hand, 2);
  hand_edit(&hand, 0);
  assert_true(p_at(log, "at|1", 0) == p_of(&hand, 0));
  hand_edit(&hand, 2); /* the second cannot be made */
  assert_true(p_at(log, "at|3", 0) == p_of(&hand, 0));
  assert_true(p_at(log, "at|3", 2) == p_of(&hand, 2));
  assert_true(p_at(log, "at|1", 0) > before && p_at(log, "at|3", 2) > last);
  assert_int_equal(json_integer_value(json_object_get(chi_jlog_find(log, "at|3"), "failed")), 1);
  chi_chain_point point[2];
  assert_works(chi_chain_sums(point, log, &r.set, &r.o, &(chi_boot_opts){.draws = 50}, err));
  assert_true(point[0].edits == 1 && point[1].edits == 3 && point[1].failed == 1);
  assert_true(point[1].said.n == 3 && point[1].lost.n == 3);
  assert_true(fabs(point[1].p.value - (p_at(log, "at|3", 0) + p_at(log, "at|3", 1) + p_at(log, "at|3", 2)) / 3) <
              1e-12);
  assert_true(fabs(point[1].lost.value - (point[1].right.value - point[1].base.value)) < 1e-12);
  chi_jlog_close(log);
  json_decref(head);
  free_rig(&r);
  free_rig(&hand);
}

static int stop_later(void *ud, const char *what, int64_t done, int64_t total) {
  (void)total;
  return strcmp(what, "edits in a chain") == 0 && done == *(int *)ud;
}

static void test_resume(void **state) {
  (void)state;
  rig r;
  chi_jlog *log = NULL;
  int stop = 2;
  json_t *head = json_pack("{s:s}", "run", "resume");
  char whole[1024], cut[1024], a[65], b[65];
  snprintf(whole, sizeof whole, "%s", tmp_path("whole.jsonl"));
  snprintf(cut, sizeof cut, "%s", tmp_path("cut.jsonl"));
  for (int i = 0; i < 3; i++) { /* in full; stopped; gone on */
    make_rig(&r);
    r.h.steps = 3;
    assert_works(chi_jlog_open(&log, i ? cut : whole, head, err));
    if (i == 1) {
      chi_set_progress(stop_later, &stop);
      assert_fails(chi_chain_run(log, r.m, &r.set, &r.o, err), CHI_ERR_CANCELLED, "chain");
      chi_set_progress(NULL, NULL);
      assert_non_null(chi_jlog_find(log, "at|1"));
    } else {
      assert_works(chi_chain_run(log, r.m, &r.set, &r.o, err));
    }
    chi_jlog_close(log);
    free_rig(&r);
  }
  assert_works(chi_sha256_file(a, whole, err));
  assert_works(chi_sha256_file(b, cut, err));
  assert_string_equal(a, b);
  json_decref(head);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_untouched),
      cmocka_unit_test(test_chain),
      cmocka_unit_test(test_resume),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

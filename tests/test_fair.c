/* The fair test of explainers: its numbers formed again from maps and removals, its log taken up after interruptions,
 * its summary on planted scores. Items: python tools/ref/explain_items.py */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "data/dataset.h"
#include "eval/fair_line.h"
#include "eval/mapscore.h"
#include "report/fair_report.h"
#include "support/support.h"

#define SET "tests/fixtures/explain/items.jsonl"
#define TINY "tests/fixtures/tiny-gqa"
enum { kAsks = 4 };

typedef struct fixture {
  chi_model *m;
  chi_dataset *d;
  chi_fair_ask ask[kAsks];
  const chi_explainer **which;
  chi_fair_opts o;
  chi_arena arena;
} fixture;

static void open_fixture(fixture *f, const char *which) {
  *f = (fixture){.o = {.cover = 0.25, .randoms = 4, .explain = {.target = -1, .seed = 3, .steps = 4}}};
  assert_works(chi_model_open(&f->m, TINY, CHI_DTYPE_F32, err));
  assert_works(chi_dataset_open(&f->d, SET, NULL, err));
  assert_works(chi_explainers_parse(&f->which, &f->o.n_which, which, err));
  f->o.which = f->which;
  for (int i = 0; i < kAsks; i++)
    f->ask[i] = (chi_fair_ask){f->d->item[i].ask.question, f->d->item[i].ask.answer, f->d->item[i].mask};
}

static void close_fixture(fixture *f) {
  chi_arena_free(&f->arena);
  chi_free(f->which);
  chi_dataset_close(f->d);
  chi_model_free(f->m);
}

static chi_fair_result *run(fixture *f) {
  chi_fair_result *r = chi_arena_array(&f->arena, kAsks, sizeof *r, NULL);
  assert_works(chi_fair_picture(r, f->m, f->d->item[0].ask.image, f->ask, kAsks, &f->o, &f->arena, err));
  return r;
}

/* ---- numbers ----------------------------------------------------------------------------------------------- */
static chi_explain *explain(const fixture *f, chi_prompt **p, int i, int32_t target) {
  chi_explain *e = NULL;
  chi_explain_opts o = f->o.explain;
  o.target = target;
  assert_works(chi_prompt_make(
      p, f->m, &(chi_prompt_opts){.image = f->d->item[0].ask.image, .question = f->ask[i].question}, err));
  assert_works(chi_explain_open(&e, f->m, *p, &o, err));
  return e;
}

static void test_picture(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "increase,remove-mean,random");
  f.o.by[CHI_REMOVE_MEAN] = f.o.by[CHI_REMOVE_CUT_TEXT] = true;
  chi_fair_result *r = run(&f);
  assert_true(r[0].right && !r[0].hurts && !r[0].score && r[0].n_mask == 4);
  assert_true(r[1].right && r[1].hurts && r[1].score && r[1].n == 16);
  assert_true(!r[2].right && !r[2].score && !*r[2].problem);
  assert_true(strstr(r[3].problem, "the crop leaves 100 % of the object out") && !r[3].score);
  /* item 1 again, by hand; its mask is the lower right quarter of the crop */
  chi_prompt *p = NULL, *p0 = NULL;
  chi_explain *e = explain(&f, &p, 1, r[1].target), *e0 = explain(&f, &p0, 0, r[0].target);
  uint8_t in[16] = {0}, sets[2 * 16];
  double map[16], other[16], logp[2], none = e->remover->clean.logp;
  for (int i = 0; i < 16; i++) in[i] = i / 4 >= 2 && i % 4 >= 2;
  assert_works(chi_remove(e->remover, CHI_REMOVE_MEAN, in, 1, logp, err));
  assert_true(fabs(r[1].fall - (none - logp[0])) < 1e-12 && fabs(r[1].p - exp(none)) < 1e-12);
  assert_works(chi_explain_map(e, f.which[0], map, err));
  assert_works(chi_explain_map(e0, f.which[0], other, err));
  const chi_fair_score *s = &r[1].score[0];
  assert_true(s->auprc == chi_map_auprc(map, in, 16) && s->pointing == chi_map_pointing(map, in, 16));
  assert_true(s->precision == chi_map_precision(map, in, 16));
  assert_true(fabs(s->switch_gain - (s->auprc - chi_map_auprc(other, in, 16))) < 1e-12);
  assert_true(s->switch_rank == chi_map_spearman(map, other, 16) && isnan(s->shuffled_rank));
  int32_t order[16];
  assert_works(chi_map_order(order, map, 16, f.o.explain.seed, err));
  for (int i = 0; i < 16; i++) sets[order[i]] = i < 3, sets[16 + order[i]] = i >= 3; /* 0.2 of 16 patches */
  assert_works(chi_remove(e->remover, CHI_REMOVE_CUT_TEXT, sets, 2, logp, err));
  assert_true(fabs(s->curve[0][CHI_REMOVE_CUT_TEXT][3] - exp(logp[0])) < 1e-12);
  assert_true(fabs(s->curve[1][CHI_REMOVE_CUT_TEXT][3] - exp(logp[1])) < 1e-12);
  assert_true(fabs(s->curve[0][CHI_REMOVE_CUT_TEXT][0] - exp(none)) < 1e-12);
  assert_true(s->curve[0][CHI_REMOVE_CUT_TEXT][5] == s->curve[1][CHI_REMOVE_CUT_TEXT][0]);
  assert_true(fabs(s->deletion[CHI_REMOVE_CUT_TEXT] -
                   chi_curve_area(chi_fair_share, s->curve[0][CHI_REMOVE_CUT_TEXT], CHI_FAIR_SHARES)) < 1e-12);
  /* no explainer is tested with its own way; the mask with all; random maps do not move with the question */
  assert_true(isnan(r[1].score[1].deletion[CHI_REMOVE_MEAN]) && !isnan(r[1].score[1].deletion[CHI_REMOVE_CUT_TEXT]));
  assert_true(!isnan(r[1].score[3].deletion[CHI_REMOVE_MEAN]) && isnan(r[1].score[3].auprc));
  assert_true(isnan(s->deletion[CHI_REMOVE_ZERO]));
  assert_true(r[1].score[2].switch_gain == 0 && r[1].score[2].switch_rank > 1 - 1e-12);
  chi_explain_close(e);
  chi_explain_close(e0);
  chi_prompt_free(p);
  chi_prompt_free(p0);
  close_fixture(&f);
}

/* A picture that is spared what is costly has the other numbers of one that is not. */
static void test_spared(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "increase,remove-mean,random");
  f.o.by[CHI_REMOVE_CUT_TEXT] = true;
  chi_fair_result *all = run(&f);
  f.o.not_now = (const bool[]){false, true, false};
  f.o.no_curves = true;
  chi_fair_result *some = run(&f);
  assert_true(all[1].score[1].made && !some[1].score[1].made && some[1].score[0].made);
  assert_true(some[1].hurts && some[1].fall == all[1].fall && some[1].score[0].auprc == all[1].score[0].auprc);
  assert_true(some[1].score[0].switch_gain == all[1].score[0].switch_gain);
  assert_false(isnan(all[1].score[0].deletion[CHI_REMOVE_CUT_TEXT]));
  assert_true(isnan(some[1].score[0].deletion[CHI_REMOVE_CUT_TEXT]) &&
              isnan(some[1].score[3].insertion[CHI_REMOVE_CUT_TEXT]));
  close_fixture(&f);
}

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return x < y ? -1 : x > y;
}

/* Shuffled: the same values in every matrix, another model; the baseline does not notice, the explainer does. */
static void test_shuffle(void **state) {
  (void)state;
  fixture f;
  chi_model *s = NULL;
  enum { kMost = 80 * 32 };
  float a[kMost], b[kMost];
  open_fixture(&f, "increase,random");
  assert_works(chi_model_open(&s, TINY, CHI_DTYPE_F32, err));
  assert_works(chi_model_shuffle(s, 5, err));
  const chi_mat *x = &f.m->net.decoder.block[2].gate.w, *y = &s->net.decoder.block[2].gate.w;
  size_t n = (size_t)(x->n * x->k);
  assert_true(n <= kMost && y->n == x->n);
  chi_mat_read(x, 0, x->n, a);
  chi_mat_read(y, 0, y->n, b);
  assert_memory_not_equal(a, b, n * sizeof *a);
  qsort(a, n, sizeof *a, by_value);
  qsort(b, n, sizeof *b, by_value);
  assert_memory_equal(a, b, n * sizeof *a);
  f.o.shuffled = s;
  chi_fair_result *r = run(&f);
  assert_true(fabs(r[1].score[0].shuffled_rank) < 0.95 && r[1].score[1].shuffled_rank > 1 - 1e-12);
  chi_model_free(s);
  close_fixture(&f);
}

/* ---- the log ----------------------------------------------------------------------------------------------- */
static void add(chi_jlog *l, const char *id, const chi_fair_result *r, const chi_fair_opts *o) {
  json_t *line = NULL;
  assert_works(chi_fair_line(&line, id, "u", "picture.png", r, o, err));
  assert_works(chi_jlog_add(l, line, err));
  json_decref(line);
}

static void test_log(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "remove-mean,random");
  f.o.by[CHI_REMOVE_CUT_TEXT] = true;
  chi_fair_result *r = run(&f);
  const char *path = tmp_path("items.jsonl");
  json_t *head = json_pack("{s:s,s:i}", "kind", "attribution-test", "seed", 3),
         *other = json_pack("{s:s,s:i}", "kind", "attribution-test", "seed", 4), *first, *again;
  chi_jlog *l = NULL, *second = NULL;
  assert_works(chi_jlog_open(&l, path, head, err));
  for (int i = 0; i < kAsks; i++) add(l, f.d->item[i].id, &r[i], &f.o);
  assert_true(chi_jlog_find(l, "wrong") && !chi_jlog_find(l, "other"));
  assert_fails(chi_jlog_open(&second, path, head, err), CHI_ERR_IO, "is being written by another process");
  first = json_deep_copy(chi_jlog_lines(l));
  chi_jlog_close(l);
  assert_fails(chi_jlog_open(&l, path, other, err), CHI_ERR_ARG, "belongs to another run");
  /* cut short within the last line: that item is done again, to the same line */
  chi_map map = {0};
  assert_works(chi_map_open(&map, path, err));
  size_t n = map.size;
  char *text = chi_calloc(n + 1, 1, NULL);
  memcpy(text, map.data, n);
  chi_map_close(&map);
  put_file(path, text, n - 20);
  assert_works(chi_jlog_open(&l, path, head, err));
  assert_null(chi_jlog_find(l, "cropped"));
  add(l, "cropped", &r[3], &f.o);
  again = json_deep_copy(chi_jlog_lines(l));
  chi_jlog_close(l);
  assert_true(json_equal(first, again) && json_array_size(again) == 4);
  assert_works(chi_map_open(&map, path, err));
  assert_true(map.size == n && memcmp(map.data, text, n) == 0);
  chi_map_close(&map);
  text[n - 40] = '\n'; /* broken in the middle */
  put_file(path, text, n);
  assert_fails(chi_jlog_open(&l, path, head, err), CHI_ERR_FORMAT, "line 5: not an object with an id");
  put_file(path, "no log", 6);
  assert_fails(chi_jlog_open(&l, path, head, err), CHI_ERR_FORMAT, "is no log");
  chi_free(text);
  json_decref(first);
  json_decref(again);
  json_decref(head);
  json_decref(other);
  close_fixture(&f);
}

/* ---- the summary ------------------------------------------------------------------------------------------- */
/* 12 pictures with two items: explainer a is 0.3 better than b in each, c is b; one item failed, one was wrong. Four
 * entities in two ways of asking. */
static json_t *planted(void) {
  json_t *items = json_array();
  for (int i = 0; i < 24; i++) {
    double base = 0.2 + 0.01 * (i % 7);
    char id[16], image[16], unit[32];
    snprintf(id, sizeof id, "i%d", i);
    snprintf(image, sizeof image, "p%d", i / 2);
    snprintf(unit, sizeof unit, i % 2 ? "e%d=red|color" : "red=e%d|shape", i / 6);
    json_t *scores = json_pack("{s:{s:f,s:{s:{s:f,s:[f,f]}}},s:{s:f},s:{s:f},s:{s:n}}", "increase", "auprc", base + 0.3,
                               "deletion", "zero", "area", 0.5, "p", 1.0, 0.5 + 0.01 * i, "attention", "auprc", base,
                               "lens", "auprc", base, "mask", "auprc");
    json_array_append_new(items, json_pack("{s:s,s:s,s:s,s:s,s:b,s:o}", "id", id, "unit", unit, "image", image,
                                           "status", "ok", "right", 1, "scores", scores));
  }
  json_array_append_new(items, json_pack("{s:s,s:s,s:s}", "id", "x", "image", "p1", "status", "failed"));
  json_array_append_new(
      items, json_pack("{s:s,s:s,s:s,s:b,s:n}", "id", "y", "image", "p1", "status", "ok", "right", 0, "scores"));
  return items;
}

static void test_table(void **state) {
  (void)state;
  fixture f;
  chi_fair_table *t = NULL;
  chi_str text = {0}, files = {0};
  json_t *items = planted(), *settings = json_object();
  open_fixture(&f, "increase,attention,lens");
  assert_works(chi_fair_table_make(&t, items, &f.o, "attention", &(chi_boot_opts){.draws = 2000, .seed = 1}, err));
  assert_true(t->items == 26 && t->counted == 24 && t->right == 24 && t->failed == 1 && t->pictures == 12 &&
              t->units == 4);
  const chi_fair_stat *a = &t->stat[CHI_FAIR_AUPRC], *b = a + CHI_FAIR_METRICS, *c = b + CHI_FAIR_METRICS;
  const chi_fair_diff *da = &a->diff[0], *db = &b->diff[0], *dc = &c->diff[0];
  double mean = 0;
  for (int i = 0; i < 24; i++) mean += (0.2 + 0.01 * (i % 7)) / 24;
  assert_true(fabs(b->mean.value - mean) < 1e-12 && fabs(da->est.value - 0.3) < 1e-12);
  assert_true(a->mean.clusters == 4 && a->by_picture.clusters == 12 &&
              fabs(a->by_picture.value - a->mean.value) < 1e-12);
  assert_true(a->by_picture.lo < a->mean.value && a->mean.lo < a->mean.value && a->mean.value < a->mean.hi);
  assert_true(db->est.n == 0 && isnan(db->p) && dc->est.value == 0 && a->diff[1].est.n == 0);
  assert_true(da->p == 2.0 / 16 && fabs(da->p_holm - fmin(1, 2 * da->p)) < 1e-12); /* of two tests */
  assert_true(dc->p_holm >= dc->p && a[CHI_FAIR_POINTING - CHI_FAIR_AUPRC].mean.n == 0);
  assert_true(fabs(t->curve[CHI_REMOVE_ZERO * CHI_FAIR_SHARES + 1] - (0.5 + 0.01 * 11.5)) < 1e-12);
  assert_true(isnan(t->curve[CHI_REMOVE_MEAN * CHI_FAIR_SHARES]));
  const char *dir = tmp_path("fair");
  chi_provenance prov = {.command = "test"};
  assert_works(chi_fair_write(t, settings, &prov, dir, &files, err));
  assert_int_equal(count_files(dir), 6); /* json, csv, dots, one way of removing */
  int refs[CHI_FAIR_REFS], n = 0;
  assert_works(chi_fair_against(refs, &n, &f.o, NULL, err)); /* of attention, centre, random the one that is there */
  assert_true(n == 1 && refs[0] == 1);
  assert_works(chi_fair_against(refs, &n, &f.o, "lens,increase", err));
  assert_true(n == 2 && refs[0] == 2 && refs[1] == 0);
  assert_fails(chi_fair_against(refs, &n, &f.o, "lens,rollout", err), CHI_ERR_ARG, "'rollout' is not asked for");
  assert_works(chi_fair_summary(t, 200, &text, err));
  assert_non_null(strstr(text.s, "24 counted"));
  chi_str_free(&text);
  chi_str_free(&files);
  chi_fair_table_free(t);
  json_decref(items);
  json_decref(settings);
  close_fixture(&f);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_picture), cmocka_unit_test(test_spared),
                                     cmocka_unit_test(test_shuffle), cmocka_unit_test(test_log),
                                     cmocka_unit_test(test_table)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

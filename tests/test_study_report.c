/* The report of a run whose numbers were planted: peaks, outlines, filters and counts are the planted ones, and
 * the page needs nothing else. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_report.h"
#include "study/study.h"
#include "support/support.h"

enum { L = 5, N = 24, PEAK = 3 };

static void add(chi_store_result *r, size_t *n, chi_arena *a, const char *kind, int ndim, int64_t d0, int64_t d1,
                const float *v) {
  size_t size = (size_t)d0 * (size_t)(ndim > 1 ? d1 : 1);
  float *copy = chi_arena_array(a, size, sizeof *copy, NULL);
  memcpy(copy, v, size * sizeof *v);
  r[(*n)++] = (chi_store_result){.kind = chi_arena_strdup(a, kind, NULL), .ndim = ndim, .dim = {d0, d1}, .v = copy};
}

/* Own minus donor is 0.5 at (PEAK, all words) and noise around 0 elsewhere; wrong items have nothing there. In layer
 * 0 both own and donor repair 0.7: repair of the word, which must not be taken for the fact. */
static void put_item(chi_store *s, int i) {
  chi_arena a = {0};
  chi_store_result r[16];
  size_t n = 0;
  float own[L * CHI_STUDY_ROLES], donor[L * CHI_STUDY_ROLES], runs[6] = {0.9f, 0.1f, 0.2f, 1, 0, 0};
  float curve[L], control[L], features[3] = {0.5f, 0.2f, 1};
  char id[32], unit[32], info[300];
  bool right = i % 4 != 0;
  for (int l = 0; l < L; l++)
    for (int k = 0; k < CHI_STUDY_ROLES; k++) {
      int c = l * CHI_STUDY_ROLES + k;
      bool gone = k == CHI_STUDY_MIDDLE || k == CHI_STUDY_SECOND;
      donor[c] = gone ? NAN : 0.01f * chi_rng_normal(1, (uint32_t)i, (uint32_t)c, 0);
      own[c] = gone ? NAN : 0.01f * chi_rng_normal(2, (uint32_t)i, (uint32_t)c, 0);
      if (k == CHI_STUDY_WORDS && l == PEAK && right) own[c] += 0.5f;
      if (k == CHI_STUDY_WORDS && l == 0) own[c] += 0.7f, donor[c] += 0.7f;
    }
  for (int l = 0; l < L; l++) {
    curve[l] = l == 1 ? -0.4f : -0.01f * (float)(i % 3);
    control[l] = 0.001f * (float)(i % 2);
  }
  add(r, &n, &a, "trace/item/substitute/mlp/w1/own/p", 2, L, CHI_STUDY_ROLES, own);
  add(r, &n, &a, "trace/item/substitute/mlp/w1/donor/p", 2, L, CHI_STUDY_ROLES, donor);
  add(r, &n, &a, "trace/item/substitute/runs", 1, 6, 0, runs);
  add(r, &n, &a, "knockout/item/image:last/w1/own", 1, L, 0, curve);
  add(r, &n, &a, "knockout/item/image:last/w1/control", 1, L, 0, control);
  add(r, &n, &a, "predict/item/confidence,margin,entropy", 1, 3, 0, features);
  snprintf(id, sizeof id, "i%d", i);
  snprintf(unit, sizeof unit, "E%d", i / 2);
  snprintf(info, sizeof info,
           "{\"entity\":\"%s\",\"answer\":\"Lima\",\"ask\":{\"item\":{\"said\":\"<b>&\",\"right\":%s,\"p\":%.2f,"
           "\"margin\":0.1,\"entropy\":1.0}}%s}",
           unit, right ? "true" : "false", right ? 0.9 : 0.4, i == 5 ? ",\"without\":[\"picture: no donor\"]" : "");
  chi_store_item it = {.seq = i, .id = id, .unit = unit, .split = "test", .group = "fact", .info = info};
  assert_works(chi_store_put(s, &it, r, n, err));
  chi_arena_free(&a);
}

static void make_run(const char *dir) {
  chi_store *s = NULL;
  const chi_store_key keys[] = {{"settings", "{\"asks\":\"item\",\"windows\":[1],\"corrupt\":[\"substitute\"]}", true},
                                {"model", "tiny", false},
                                {"state", "done", false}};
  assert_works(chi_store_open(&s, dir, keys, 3, err));
  for (int i = 0; i < N; i++) put_item(s, i);
  assert_works(chi_store_put(
      s,
      &(chi_store_item){
          .seq = N, .id = "gone", .status = CHI_STORE_FAILED, .reason = "no picture <here>", .info = "{}"},
      NULL, 0, err));
  chi_store_close(s);
}

static char *text_of(const char *dir, const char *name, size_t *n) {
  char path[4200], *text = NULL;
  snprintf(path, sizeof path, "%s/%s", dir, name);
  assert_works(chi_read_file(&text, n, path, 64 << 20, err));
  return text;
}

static const json_t *peak(const json_t *list, const char *role, const char *what) {
  size_t i;
  json_t *v;
  json_array_foreach((json_t *)(uintptr_t)list, i, v) {
    if (chi_streq(json_string_value(json_object_get(v, "role")), role) &&
        chi_streq(json_string_value(json_object_get(v, "what")), what))
      return v;
  }
  fail_msg("no peak of %s, %s", role, what);
  return NULL;
}

static double num(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

static void planted_numbers_are_reported(void **state) {
  (void)state;
  const char *dir = tmp_path("run"), *out = tmp_path("report");
  size_t n;
  make_run(dir);
  chi_study_report_opts o = {.draws = 300, .min_p = 0.5};
  chi_provenance prov = {.command = "chiasm report"};
  assert_works(chi_study_report(dir, out, &o, &prov, err));
  char *text = text_of(out, "report.json", &n);
  json_t *j = NULL;
  assert_works(chi_json_parse(&j, text, n, "report.json", err));
  const json_t *items = json_object_get(j, "items"),
               *sub = json_object_get(json_object_get(j, "peaks"), "item/substitute"),
               *kept = json_object_get(sub, "filtered"), *all = json_object_get(sub, "all");
  assert_int_equal(json_integer_value(json_object_get(items, "done")), N);
  assert_int_equal(json_integer_value(json_object_get(items, "failed")), 1);
  assert_int_equal(json_integer_value(json_object_get(items, "filtered")), N * 3 / 4);
  assert_int_equal(json_integer_value(json_object_get(items, "entities")), N / 2);
  const json_t *p = peak(kept, "all words", "difference");
  assert_true(num(p, "value") == PEAK && num(p, "lo") == PEAK && num(p, "hi") == PEAK && num(p, "share") == 1);
  assert_true(fabs(num(p, "height") - 0.5) < 0.02);
  assert_true(num(p, "p_family") < 0.05);
  assert_true(num(peak(kept, "all words", "own"), "value") == 0 && num(peak(kept, "all words", "donor"), "value") == 0);
  assert_true(num(peak(kept, "last word token", "difference"), "p_family") > 0.05);
  assert_true(fabs(num(peak(all, "all words", "difference"), "height") - 0.375) < 0.02); /* 3/4 of the items */
  json_decref(j);
  chi_free(text);

  text = text_of(out, "report.html", &n);
  assert_non_null(strstr(text, "no picture &lt;here&gt;"));
  assert_non_null(strstr(text, "picture: no donor"));
  assert_non_null(strstr(text, "not answered rightly: 6 items left out, 18 stay"));
  assert_non_null(strstr(text, "below 0.5: 0 items left out, 18 stay"));
  assert_null(strstr(text, "<script"));
  for (const char *at = text; (at = strstr(at, "src=\"")) != NULL; at += 5) /* nothing from outside */
    assert_true(strncmp(at, "src=\"data:image/svg+xml;base64,", 31) == 0);
  chi_free(text);

  text = text_of(out, "curves.csv", &n);
  assert_non_null(strstr(text, "knockout/item/image:last/w1/own,filtered,1,-0.4"));
  chi_free(text);
  text = text_of(out, "items.csv", &n);
  int lines = 0;
  for (char *at = text; (at = strchr(at, '\n')) != NULL; at++) lines++;
  assert_int_equal(lines, 1 + N + 1);
  chi_free(text);
  text = text_of(out, "maps.csv", &n);
  assert_non_null(strstr(text, "filtered,item,substitute,mlp,1,difference,3,all words,0.5"));
  chi_free(text);
}

static void reports_repeat_and_refuse(void **state) {
  (void)state;
  const char *dir = tmp_path("run2"), *a = tmp_path("report a"), *b = tmp_path("report b");
  size_t n, m;
  make_run(dir);
  chi_study_report_opts o = {.draws = 200, .keep_wrong = true};
  chi_provenance prov = {.command = "chiasm report"};
  assert_works(chi_study_report(dir, a, &o, &prov, err));
  chi_set_threads(2);
  assert_works(chi_study_report(dir, b, &o, &prov, err));
  chi_set_threads(0);
  static const char *const kFile[] = {"report.json", "maps.csv", "curves.csv", "items.csv"};
  for (int i = 0; i < 4; i++) { /* cairo numbers its surfaces within a process, so not the page */
    char *x = text_of(a, kFile[i], &n), *y = text_of(b, kFile[i], &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    chi_free(x);
    chi_free(y);
  }
  char *x = text_of(a, "report.html", &n);
  assert_non_null(strstr(x, "there is one view only"));
  chi_free(x);
  assert_fails(chi_study_report(tmp_path("nowhere"), a, &o, &prov, err), CHI_ERR_IO, "there is no such store");
  chi_store *s = NULL;
  const char *empty = tmp_path("empty");
  assert_works(chi_store_open(&s, empty, &(chi_store_key){"settings", "{}", true}, 1, err));
  chi_store_close(s);
  assert_fails(chi_study_report(empty, a, &o, &prov, err), CHI_ERR_ARG, "no item is done yet");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(planted_numbers_are_reported),
      cmocka_unit_test(reports_repeat_and_refuse),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

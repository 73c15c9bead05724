/* The run store: what is finished stays, what is not leaves nothing; who may write; what is refused; merging. */
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "study/store.h"
#include "support/support.h"

static const chi_store_key kKeys[] = {{"settings", "{\"seed\":1,\"windows\":[1,3]}", true},
                                      {"model_hash", "aaaa", true},
                                      {"data_hash", "bbbb", true},
                                      {"state", "running", false}};
enum { kN = sizeof kKeys / sizeof *kKeys };

static chi_store *open_at(const char *dir) {
  chi_store *s = NULL;
  assert_works(chi_store_open(&s, dir, kKeys, kN, err));
  return s;
}

/* Item i with two results, all made of i. */
static int put(chi_store *s, int i, chi_err *err) {
  char id[32], info[64];
  float a[6], b[4];
  for (int k = 0; k < 6; k++) a[k] = (float)(i * 10 + k) / 3;
  for (int k = 0; k < 4; k++) b[k] = (float)i;
  snprintf(id, sizeof id, "item %d", i);
  snprintf(info, sizeof info, "{\"p\":%d}", i);
  chi_store_result r[2] = {{.kind = "map/own", .ndim = 2, .dim = {2, 3}, .v = a},
                           {.kind = "curve", .ndim = 1, .dim = {4}, .v = b}};
  chi_store_item it = {.seq = i, .id = id, .unit = i % 2 ? "odd" : "even", .split = "test", .group = "g", .info = info};
  if (i % 7 == 3) it.status = CHI_STORE_FAILED, it.reason = "no picture";
  return chi_store_put(s, &it, r, i % 7 == 3 ? 0 : 2, err);
}

static void fill(const char *dir, int from, int to, int step) {
  chi_store *s = open_at(dir);
  for (int i = from; i < to; i += step) assert_works(put(s, i, err));
  assert_works(chi_store_set(s, "state", "done", err));
  chi_store_close(s);
}

static void digest(const char *dir, char hex[65]) {
  chi_store *s = NULL;
  assert_works(chi_store_read(&s, dir, err));
  assert_works(chi_store_digest(s, hex, err));
  chi_store_close(s);
}

static void sql(const char *dir, const char *text) {
  char path[4200];
  sqlite3 *db = NULL;
  snprintf(path, sizeof path, "%s/run.sqlite", dir);
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
  sqlite3_close(db);
}

static void what_was_put_is_read(void **state) {
  (void)state;
  const char *dir = tmp_path("put");
  chi_store *s;
  chi_arena a = {0};
  chi_store_item *it;
  chi_store_values v;
  chi_store_counts c;
  const char **kind;
  size_t n;
  int status = 0;
  fill(dir, 0, 10, 1);
  assert_works(chi_store_read(&s, dir, err));
  assert_works(chi_store_items(s, &it, &n, &a, err));
  assert_int_equal(n, 10);
  assert_string_equal(it[4].id, "item 4");
  assert_string_equal(it[4].unit, "even");
  assert_string_equal(it[4].info, "{\"p\":4}");
  assert_int_equal(it[3].status, CHI_STORE_FAILED);
  assert_string_equal(it[3].reason, "no picture");
  assert_works(chi_store_count(s, &c, err));
  assert_int_equal(c.n[CHI_STORE_OK], 9);
  assert_int_equal(c.n[CHI_STORE_FAILED], 1);
  assert_int_equal(c.results, 18);
  assert_works(chi_store_kinds(s, &kind, &n, &a, err));
  assert_int_equal(n, 2);
  assert_string_equal(kind[1], "map/own");
  assert_works(chi_store_values_of(s, "map/own", &v, &a, err));
  assert_int_equal(v.n, 9);
  assert_int_equal(v.size, 6);
  assert_int_equal(v.ndim, 2);
  assert_int_equal(v.dim[1], 3);
  assert_int_equal(v.seq[3], 4);
  for (int k = 0; k < 6; k++) assert_true(v.v[3 * 6 + k] == (float)(40 + k) / 3);
  assert_works(chi_store_values_of(s, "nothing", &v, &a, err));
  assert_int_equal(v.n, 0);
  assert_works(chi_store_find(s, 9, &status, err));
  assert_int_equal(status, CHI_STORE_OK);
  assert_works(chi_store_find(s, 10, &status, err));
  assert_int_equal(status, -1);
  assert_string_equal(chi_store_get(s, "model_hash"), "aaaa");
  assert_null(chi_store_get(s, "no such key"));
  chi_store_close(s);
  chi_arena_free(&a);
  assert_int_equal(count_files(dir), 2); /* run.sqlite and run.lock: no journal is left beside a closed store */
}

static void what_belongs_elsewhere_is_refused(void **state) {
  (void)state;
  chi_store *s = NULL;
  const char *dir = tmp_path("other");
  chi_store_key keys[kN];
  fill(dir, 0, 3, 1);
  memcpy(keys, kKeys, sizeof keys);
  keys[0].value = "{\"seed\":2,\"windows\":[1,3]}";
  assert_fails(chi_store_open(&s, dir, keys, kN, err), CHI_ERR_ARG, "(seed: 1 there, 2 here): use another folder");
  memcpy(keys, kKeys, sizeof keys);
  keys[1].value = "cccc";
  assert_fails(chi_store_open(&s, dir, keys, kN, err), CHI_ERR_ARG,
               "another value of 'model_hash' (aaaa there, cccc here)");
  sql(dir, "PRAGMA user_version = 7");
  assert_fails(chi_store_open(&s, dir, kKeys, kN, err), CHI_ERR_UNSUPPORTED, "schema version 7, this program knows 1");
  assert_fails(chi_store_read(&s, dir, err), CHI_ERR_UNSUPPORTED, "schema version 7");
  sql(dir, "PRAGMA user_version = 1; PRAGMA application_id = 5");
  assert_fails(chi_store_open(&s, dir, kKeys, kN, err), CHI_ERR_FORMAT, "another program");
  dir = tmp_path("text");
  char path[4200];
  chi_mkdirs(dir, NULL);
  snprintf(path, sizeof path, "%s/run.sqlite", dir);
  put_file(path, "this is no database, however long it may be: it goes on and on", 60);
  assert_fails(chi_store_open(&s, dir, kKeys, kN, err), CHI_ERR_FORMAT, "is no run store");
  assert_fails(chi_store_read(&s, tmp_path("missing"), err), CHI_ERR_IO, "there is no such store");
}

static void one_process_writes(void **state) {
  (void)state;
  const char *dir = tmp_path("two");
  chi_store *s = open_at(dir), *t = NULL;
  assert_works(put(s, 0, err));
  assert_true(chi_store_busy(dir));
  assert_fails(chi_store_open(&t, dir, kKeys, kN, err), CHI_ERR_IO, "is being written by another process");
  chi_store_counts c;
  assert_works(chi_store_read(&t, dir, err)); /* reading goes on beside it */
  assert_works(chi_store_count(t, &c, err));
  assert_int_equal(c.n[CHI_STORE_OK], 1);
  chi_store_close(t);
  assert_works(put(s, 1, err));
  chi_store_close(s);
  assert_false(chi_store_busy(dir));
}

/* A writer that is killed anywhere leaves a store that goes on to the rows of an undisturbed one. */
static void killed_writers(void **state) {
  (void)state;
  const char *dir = tmp_path("killed"), *whole = tmp_path("whole");
  char want[65], have[65];
  int kills = 0;
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  fill(whole, 0, 60, 1);
  clock_gettime(CLOCK_MONOTONIC, &to);
  double took = 1e6 * (double)(to.tv_sec - from.tv_sec) + 1e-3 * (double)(to.tv_nsec - from.tv_nsec); /* us */
  digest(whole, want);
  for (int round = 0; round < 20; round++) {
    pid_t pid = fork();
    if (pid == 0) {
      chi_store *s = NULL;
      int status;
      if (chi_store_open(&s, dir, kKeys, kN, NULL)) _exit(1);
      for (int i = 0; i < 60; i++) {
        if (chi_store_find(s, i, &status, NULL)) _exit(2);
        if (status < 0 && put(s, i, NULL)) _exit(3);
      }
      _exit(0);
    }
    usleep((useconds_t)(took * (chi_rng_u32(5, 0, (uint32_t)round, 0) % 1000) / 6000));
    int how = 0;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    if (WIFSIGNALED(how))
      kills++;
    else
      assert_int_equal(WEXITSTATUS(how), 0);
  }
  assert_true(kills > 0);
  chi_store *s = open_at(dir);
  for (int i = 0, status; i < 60; i++) {
    assert_works(chi_store_find(s, i, &status, err));
    if (status < 0) assert_works(put(s, i, err));
  }
  chi_store_close(s);
  digest(dir, have);
  assert_string_equal(have, want);
}

static void a_full_disk_keeps_what_is_finished(void **state) {
  (void)state;
  const char *dir = tmp_path("full");
  chi_store *s = NULL;
  chi_store_counts c;
  int how = 0;
  pid_t pid = fork();
  if (pid == 0) {
    chi_err e = {0};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){256 << 10, 256 << 10});
    if (chi_store_open(&s, dir, kKeys, kN, &e)) _exit(1);
    float *big = chi_calloc(10000, sizeof *big, NULL);
    int i = 0;
    for (; i < 100; i++) {
      char id[16];
      snprintf(id, sizeof id, "%d", i);
      chi_store_result r = {.kind = "big", .ndim = 1, .dim = {10000}, .v = big};
      chi_store_item it = {.seq = i, .id = id, .info = "{}"};
      if (chi_store_put(s, &it, &r, 1, &e)) break;
    }
    if (i == 0 || i == 100 || !strstr(e.text, "was not stored") || !strstr(e.text, "what was finished is kept"))
      _exit(4);
    _exit(100 + (i > 50 ? 50 : i)); /* how many were finished */
  }
  assert_int_equal(waitpid(pid, &how, 0), pid);
  assert_true(WIFEXITED(how));
  assert_true(WEXITSTATUS(how) > 100);
  s = open_at(dir);
  assert_works(chi_store_count(s, &c, err));
  assert_int_equal(c.n[CHI_STORE_OK], WEXITSTATUS(how) - 100);
  assert_int_equal(c.results, c.n[CHI_STORE_OK]);
  assert_works(put(s, 99, err));
  chi_store_close(s);
}

static void shards_make_the_whole(void **state) {
  (void)state;
  char want[65], have[65];
  const char *dir[4], *whole = tmp_path("m whole");
  chi_store *s = NULL;
  fill(whole, 0, 16, 1);
  digest(whole, want);
  for (int n = 2; n <= 4; n += 2) {
    char name[32];
    for (int i = 0; i < n; i++) {
      snprintf(name, sizeof name, "m %d of %d", i, n);
      dir[i] = tmp_path(name);
      fill(dir[i], i, 16, n);
    }
    snprintf(name, sizeof name, "m of %d", n);
    const char *out = tmp_path(name);
    assert_works(chi_store_merge(dir, (size_t)n, out, false, err));
    digest(out, have);
    assert_string_equal(have, want);
    assert_fails(chi_store_merge(dir, (size_t)n, out, false, err), CHI_ERR_ARG, "exists already");
    assert_works(chi_store_merge(dir, (size_t)n, out, true, err));
    assert_works(chi_store_read(&s, out, err));
    assert_string_equal(chi_store_get(s, "state"), "done");
    chi_store_close(s);
    assert_int_equal(count_files(out), 1);
  }
  const char *both[2] = {whole, dir[0]}; /* the same item twice, with equal values */
  assert_works(chi_store_merge(both, 2, tmp_path("m twice"), false, err));
  digest(tmp_path("m twice"), have);
  assert_string_equal(have, want);
}

static void shards_of_other_runs_are_refused(void **state) {
  (void)state;
  const char *a = tmp_path("o a"), *b = tmp_path("o b"), *out = tmp_path("o out");
  fill(a, 0, 4, 1);
  fill(b, 2, 6, 1);
  sql(b, "UPDATE result SET digest = 'x' WHERE seq = 2 AND kind = 'curve'");
  assert_fails(chi_store_merge((const char *[]){a, b}, 2, out, false, err), CHI_ERR_ARG, "item 2");
  assert_false(chi_store_exists(out));
  sql(b, "UPDATE meta SET value = '{\"seed\":5}' WHERE key = 'settings'");
  assert_fails(chi_store_merge((const char *[]){a, b}, 2, out, false, err), CHI_ERR_ARG, "(seed: 5 there, 1 here)");
  assert_fails(chi_store_merge((const char *[]){a, tmp_path("o none")}, 2, out, false, err), CHI_ERR_IO,
               "no such store");
  assert_false(chi_store_exists(out));
  sql(a, "UPDATE result SET shape = '9' WHERE seq = 1 AND kind = 'curve'");
  chi_store *s = NULL;
  chi_arena ar = {0};
  chi_store_values v;
  assert_works(chi_store_read(&s, a, err));
  assert_fails(chi_store_values_of(s, "curve", &v, &ar, err), CHI_ERR_FORMAT, "differ in shape");
  chi_store_close(s);
  sql(a, "UPDATE result SET shape = '9' WHERE kind = 'curve'");
  assert_works(chi_store_read(&s, a, err));
  assert_fails(chi_store_values_of(s, "curve", &v, &ar, err), CHI_ERR_FORMAT, "has 16 bytes, its shape needs 36");
  chi_store_close(s);
  chi_arena_free(&ar);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_was_put_is_read),
      cmocka_unit_test(what_belongs_elsewhere_is_refused),
      cmocka_unit_test(one_process_writes),
      cmocka_unit_test(killed_writers),
      cmocka_unit_test(a_full_disk_keeps_what_is_finished),
      cmocka_unit_test(shards_make_the_whole),
      cmocka_unit_test(shards_of_other_runs_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "support/support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/file.h"

static json_t *parse(const char *text) {
  json_t *j = NULL;
  assert_works(chi_json_parse(&j, text, strlen(text), "t", err));
  return j;
}

/* ---- parsing ------------------------------------------------------------------------------------------------- */
static void broken_text_is_refused(void **state) {
  (void)state;
  static const struct {
    const char *text, *words;
  } cases[] = {
      {"", "what.json: line 1, column 0"},
      {"{", "what.json: line 1"},
      {"{\"a\": 1,\n  \"b\" 2}", "line 2, column"},
      {"{\"a\": 1, \"a\": 2}", "duplicate"},
      {"{\"a\": 1} x", "end of file expected"},
      {"[1, 2", "line 1"},
      {"[1e999]", "overflow"},
      {"[99999999999999999999]", "too big"},
      {"[\"\xff\"]", "unable to decode byte"},
      {"[\"\\u0000\"]", "\\u0000"},
      {"[\"a\nb\"]", "line 1"},
      {"nul", "line 1"},
      {"\"text alone\"", "'['"},
      {"{'a': 1}", "line 1"},
      {"[01]", "line 1"},
      {"[NaN]", "line 1"},
      {"// comment\n[]", "line 1"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    json_t *j = NULL;
    assert_fails(chi_json_parse(&j, cases[i].text, strlen(cases[i].text), "what.json", err), CHI_ERR_FORMAT,
                 cases[i].words);
    assert_null(j);
  }
  json_t *j = NULL;
  assert_fails(chi_json_parse(&j, "[1]\0[2]", 7, "what.json", err), CHI_ERR_FORMAT, "end of file");
}

static void deep_and_huge_text_is_refused(void **state) {
  (void)state;
  json_t *j = NULL;
  size_t n = 100000;
  char *deep = malloc(n);
  memset(deep, '[', n);
  assert_fails(chi_json_parse(&j, deep, n, "deep", err), CHI_ERR_FORMAT, "depth");
  free(deep);
  /* 24 MB of text that would take gigabytes of memory as values */
  n = 24u << 20;
  char *wide = malloc(n);
  for (size_t i = 0; i < n; i++) wide[i] = "{},"[i % 3];
  assert_fails(chi_json_parse(&j, wide, n, "wide", err), CHI_ERR_MEMORY, "wide: its JSON values would take about");
  /* the same bytes inside a string are only text */
  memset(wide, '{', n);
  memcpy(wide, "[\"\\\"", 4);
  memcpy(wide + n - 2, "\"]", 2);
  assert_works(chi_json_parse(&j, wide, n, "text", err));
  assert_int_equal(json_string_length(json_array_get(j, 0)), n - 5);
  json_decref(j);
  free(wide);
}

static void files_are_checked(void **state) {
  (void)state;
  json_t *j = NULL;
  const char *path = tmp_path("a.json");
  assert_fails(chi_json_load(&j, path, 100, err), CHI_ERR_IO, path);
  assert_fails(chi_json_load(&j, tmp_path(""), 100, err), CHI_ERR_IO, "is a folder");
  put_file(path, "", 0);
  assert_fails(chi_json_load(&j, path, 100, err), CHI_ERR_FORMAT, "is empty");
  put_file(path, "[1, 2, 3]", 9);
  assert_fails(chi_json_load(&j, path, 8, err), CHI_ERR_FORMAT, "larger than the 8 bytes");
  assert_works(chi_json_load(&j, path, 9, err));
  assert_int_equal(json_array_size(j), 3);
  json_decref(j);
  put_file(path, "[1, 2 3]", 8);
  assert_fails(chi_json_load(&j, path, 100, err), CHI_ERR_FORMAT, path);
}

static void read_file_limits(void **state) {
  (void)state;
  char *text;
  size_t len;
  const char *path = tmp_path("bytes");
  for (size_t n = 0; n < 9000; n += 1499) {
    char *want = calloc(n + 1, 1);
    for (size_t i = 0; i < n; i++) want[i] = (char)(i * 7);
    put_file(path, want, n);
    assert_works(chi_read_file(&text, &len, path, n, err));
    assert_int_equal(len, n);
    assert_memory_equal(text, want, n + 1);
    chi_free(text);
    if (n) assert_fails(chi_read_file(&text, &len, path, n - 1, err), CHI_ERR_FORMAT, "larger than");
    free(want);
  }
  int fd[2]; /* what has no size is still limited */
  char name[64];
  assert_int_equal(pipe(fd), 0);
  assert_int_equal(write(fd[1], "0123456789", 10), 10);
  close(fd[1]);
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd[0]);
  if (access(name, R_OK) == 0) assert_fails(chi_read_file(&text, &len, name, 9, err), CHI_ERR_FORMAT, "larger than");
  close(fd[0]);
}

/* ---- getters ------------------------------------------------------------------------------------------------- */
static void getters_read(void **state) {
  (void)state;
  json_t *j = parse("{\"i\": -7, \"r\": 2.5, \"b\": true, \"s\": \"x\", \"n\": null}");
  int64_t i = 1;
  double r = 0;
  bool b = false;
  const char *s = NULL;
  assert_works(chi_json_i64(&i, j, "i", -7, -7, "w", err));
  assert_int_equal(i, -7);
  assert_works(chi_json_f64_opt(&r, j, "r", "w", err));
  assert_true(r == 2.5);
  assert_works(chi_json_f64_opt(&r, j, "i", "w", err));
  assert_true(r == -7);
  assert_works(chi_json_bool_opt(&b, j, "b", "w", err));
  assert_true(b);
  assert_works(chi_json_str_opt(&s, j, "s", "w", err));
  assert_string_equal(s, "x");
  /* absent and null keep the default */
  i = 42;
  assert_works(chi_json_i64_opt(&i, j, "absent", 0, 9, "w", err));
  assert_works(chi_json_i64_opt(&i, j, "n", 0, 9, "w", err));
  assert_int_equal(i, 42);
  assert_works(chi_json_f64_opt(&r, j, "n", "w", err));
  assert_works(chi_json_bool_opt(&b, j, "n", "w", err));
  assert_works(chi_json_str_opt(&s, j, "n", "w", err));
  assert_true(r == -7 && b);
  assert_string_equal(s, "x");
  json_decref(j);
}

static void getters_refuse(void **state) {
  (void)state;
  json_t *j = parse("{\"i\": 12, \"r\": 2.5, \"s\": \"4\", \"o\": {\"deep\": [1, 2]}, \"a\": [1], \"n\": null}");
  int64_t i = 5;
  double r = 5;
  bool b = true;
  const char *s = "kept";
  assert_fails(chi_json_i64(&i, j, "absent", 0, 9, "config.json: text_config", err), CHI_ERR_FORMAT,
               "config.json: text_config: \"absent\" is missing");
  assert_fails(chi_json_i64(&i, j, "n", 0, 9, "w", err), CHI_ERR_FORMAT, "missing");
  assert_fails(chi_json_i64(&i, j, "i", 0, 9, "w", err), CHI_ERR_FORMAT,
               "w: \"i\" is 12, but must be an integer from 0 to 9");
  assert_fails(chi_json_i64_opt(&i, j, "i", 13, INT64_MAX, "w", err), CHI_ERR_FORMAT, "at least 13");
  assert_fails(chi_json_i64_opt(&i, j, "r", INT64_MIN, INT64_MAX, "w", err), CHI_ERR_FORMAT,
               "is 2.5, but must be an integer");
  assert_fails(chi_json_i64_opt(&i, j, "s", 0, 9, "w", err), CHI_ERR_FORMAT, "is \"4\"");
  assert_fails(chi_json_f64_opt(&r, j, "o", "w", err), CHI_ERR_FORMAT, "is an object, but must be a number");
  assert_fails(chi_json_bool_opt(&b, j, "i", "w", err), CHI_ERR_FORMAT, "true or false");
  assert_fails(chi_json_str_opt(&s, j, "a", "w", err), CHI_ERR_FORMAT, "is an array, but must be a string");
  assert_fails(chi_json_str_opt(&s, json_object_get(j, "a"), "k", "w: a", err), CHI_ERR_FORMAT,
               "w: a: is not a JSON object");
  assert_fails(chi_json_str_opt(&s, NULL, "k", "w", err), CHI_ERR_FORMAT, "not a JSON object");
  assert_true(i == 5 && r == 5 && b);
  assert_string_equal(s, "kept");
  json_decref(j);
}

/* ---- output -------------------------------------------------------------------------------------------------- */
static void saved_floats_come_back(void **state) {
  (void)state;
  enum { N = 5000 };
  static float x[N];
  const char *path = tmp_path("floats.json");
  json_t *j = json_array(), *back = NULL;
  for (uint32_t i = 0; i < N; i++) {
    uint32_t u = chi_rng_u32(1, 1, 1, i);
    memcpy(&x[i], &u, 4);
    if (!(x[i] < 3e38f && x[i] > -3e38f)) x[i] = (float)i;
    json_array_append_new(j, json_real((double)x[i]));
  }
  assert_works(chi_json_save(j, path, err));
  assert_works(chi_json_load(&back, path, 1 << 20, err));
  for (size_t i = 0; i < N; i++) assert_true((float)json_real_value(json_array_get(back, i)) == x[i]);
  json_decref(j);
  json_decref(back);
}

static void saved_text_is_stable(void **state) {
  (void)state;
  const char *path = tmp_path("stable.json");
  char *text;
  size_t len;
  json_t *j = parse("{\"z\": 1, \"a\": [0.1, 1e20], \"m\": \"\xc3\xa9\"}");
  for (int i = 0; i < 2; i++) {
    assert_works(chi_json_save(j, path, err)); /* the second time over the first */
    assert_works(chi_read_file(&text, &len, path, 1000, err));
    assert_string_equal(text, "{\n  \"z\": 1,\n  \"a\": [\n    0.1,\n    1e20\n  ],\n  \"m\": \"\xc3\xa9\"\n}\n");
    chi_free(text);
  }
  json_decref(j);
}

static void failed_save_leaves_nothing(void **state) {
  (void)state;
  json_t *j = parse("[1]");
  const char *dir = tmp_path("d");
  assert_works(chi_mkdirs(dir, err));
  assert_fails(chi_json_save(j, tmp_path("d/no/such.json"), err), CHI_ERR_IO, "its folder does not exist");
  assert_fails(chi_json_save(j, dir, err), CHI_ERR_IO, "is a folder");
  assert_fails(chi_json_save(j, "", err), CHI_ERR_ARG, "empty path");
  assert_int_equal(count_files(dir), 0);
  if (access("/dev/full", W_OK) == 0) {
    assert_fails(chi_json_save(j, "/dev/full", err), CHI_ERR_IO, "/dev/full: cannot write, the disk is full");
    struct stat st;
    assert_true(stat("/dev/full", &st) == 0 && S_ISCHR(st.st_mode)); /* not replaced */
  }
  json_decref(j);
}

static void folders_and_paths(void **state) {
  (void)state;
  char path[64];
  assert_works(chi_path_join(path, sizeof path, "a", "b", err));
  assert_string_equal(path, "a/b");
  assert_works(chi_path_join(path, sizeof path, "a/", "b", err));
  assert_string_equal(path, "a/b");
  assert_works(chi_path_join(path, sizeof path, "", "b", err));
  assert_string_equal(path, "b");
  assert_fails(chi_path_join(path, 4, "abc", "d", err), CHI_ERR_ARG, "too long");
  assert_works(chi_mkdirs(tmp_path("x/y//z/"), err));
  assert_works(chi_mkdirs(tmp_path("x/y/z"), err));
  assert_true(chi_file_exists(tmp_path("x/y/z")));
  put_file(tmp_path("x/f"), "1", 1);
  assert_fails(chi_mkdirs(tmp_path("x/f/g"), err), CHI_ERR_IO, "x/f: is a file");
  char hex[65];
  put_file(tmp_path("abc"), "abc", 3);
  assert_works(chi_sha256_file(hex, tmp_path("abc"), err));
  assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert_fails(chi_sha256_file(hex, tmp_path("absent"), err), CHI_ERR_IO, "no such file");
  assert_fails(chi_sha256_file(hex, tmp_path("x"), err), CHI_ERR_IO, "cannot read");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(broken_text_is_refused),
      cmocka_unit_test(deep_and_huge_text_is_refused),
      cmocka_unit_test(files_are_checked),
      cmocka_unit_test(read_file_limits),
      cmocka_unit_test(getters_read),
      cmocka_unit_test(getters_refuse),
      cmocka_unit_test(saved_floats_come_back),
      cmocka_unit_test(saved_text_is_stable),
      cmocka_unit_test(failed_save_leaves_nothing),
      cmocka_unit_test(folders_and_paths),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

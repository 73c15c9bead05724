#include "support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "file/file.h"

/* ---- making files by hand -------------------------------------------------------------------------------------- */
/* Length prefix, header text and `data` bytes of data into buf; returns the total. */
static size_t assemble(char *buf, const char *header, size_t data) {
  uint64_t n = strlen(header);
  for (int i = 0; i < 8; i++) buf[i] = (char)(n >> (8 * i));
  memcpy(buf + 8, header, n);
  for (size_t i = 0; i < data; i++) buf[8 + n + i] = (char)i;
  return 8 + n + data;
}

static const char *make(const char *name, const char *header, size_t data) {
  static char buf[1 << 16];
  const char *path = tmp_path(name);
  put_file(path, buf, assemble(buf, header, data));
  return path;
}

#define X_F32 "\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]"

static void reads_a_file(void **state) {
  (void)state;
  chi_st *s = NULL;
  const char *path = make("ok.safetensors",
                          "{\"__metadata__\":{\"format\":\"pt\",\"text\":\"a\\u0000b\"},\"x\":{" X_F32
                          "},\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]},"
                          "\"none\":{\"dtype\":\"BF16\",\"shape\":[0,5],\"data_offsets\":[7,7]},"
                          "\"one\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[19,20],\"extra\":1}}   ",
                          20);
  assert_works(chi_st_open(&s, path, err));
  assert_int_equal(chi_st_count(s), 4);
  static const char *sorted[] = {"a", "none", "one", "x"};
  for (size_t i = 0; i < 4; i++) {
    assert_string_equal(chi_st_at(s, i)->name, sorted[i]);
    assert_ptr_equal(chi_st_find(s, sorted[i]), chi_st_at(s, i));
  }
  assert_null(chi_st_at(s, 4));
  assert_null(chi_st_find(s, "b"));
  const chi_tensor *x = chi_st_find(s, "x");
  assert_true(x->dtype == CHI_F32 && x->ndim == 2 && x->dim[0] == 2 && x->dim[1] == 2 && x->bytes == 16);
  assert_int_equal(((const uint8_t *)x->data)[15], 15);
  assert_int_equal(chi_st_find(s, "a")->bytes, 3);
  assert_int_equal(((const uint8_t *)chi_st_find(s, "a")->data)[0], 16);
  assert_int_equal(chi_st_find(s, "none")->bytes, 0);
  assert_int_equal(chi_st_find(s, "one")->ndim, 0);
  assert_string_equal(chi_st_meta(s, "format"), "pt");
  assert_string_equal(chi_st_meta(s, "text"), "a"); /* up to the NUL */
  assert_null(chi_st_meta(s, "absent"));
  char hex[65], want[65];
  assert_works(chi_st_hash(hex, s, err));
  assert_works(chi_sha256_file(want, path, err));
  assert_string_equal(hex, want);
  chi_st_close(s);
  chi_st_close(NULL);
}

static void wrong_headers_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *header;
    int code;
    const char *words;
  } cases[] = {
      {"[]", CHI_ERR_FORMAT, "does not begin with '{'"},
      {"{\"x\":", CHI_ERR_FORMAT, "not valid JSON"},
      {"{} {}", CHI_ERR_FORMAT, "not valid JSON"},
      {"{\"x\":1}", CHI_ERR_FORMAT, "tensor \"x\": its entry is not an object"},
      {"{\"x\":{}}", CHI_ERR_FORMAT, "\"dtype\" is missing"},
      {"{\"x\":{\"dtype\":5,\"shape\":[2,2],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "\"dtype\""},
      {"{\"x\":{\"dtype\":\"F8_E4M3\",\"shape\":[16],\"data_offsets\":[0,16]}}", CHI_ERR_UNSUPPORTED,
       "tensor \"x\": dtype \"F8_E4M3\" is not supported"},
      {"{\"x\":{\"dtype\":\"float32\",\"shape\":[4],\"data_offsets\":[0,16]}}", CHI_ERR_UNSUPPORTED, "float32"},
      {"{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "\"shape\" is not an array"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "dimension 0"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2.0],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "dimension 1"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,16]}}", CHI_ERR_UNSUPPORTED,
       "9 dim"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT,
       "memory"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", CHI_ERR_FORMAT, "memory"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4]}}", CHI_ERR_FORMAT, "\"data_offsets\" is not"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16,16]}}", CHI_ERR_FORMAT,
       "\"data_offsets\" is not"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,\"16\"]}}", CHI_ERR_FORMAT, "whole number"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[-16,0]}}", CHI_ERR_FORMAT, "whole number"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[16,0]}}", CHI_ERR_FORMAT, "ends before it begins"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[4,20]}}", CHI_ERR_FORMAT, "holds only 16"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "need 12 bytes"},
      {"{\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,16]}}", CHI_ERR_FORMAT, "need 0 bytes"},
      {"{\"x\":{" X_F32 "},\"x\":{" X_F32 "}}", CHI_ERR_FORMAT, "duplicate"},
      {"{\"x\":{" X_F32 "},\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[15,16]}}", CHI_ERR_FORMAT,
       "overlap"},
      {"{\"x\":{" X_F32 "},\"y\":{" X_F32 "}}", CHI_ERR_FORMAT, "\"x\" and \"y\" overlap"},
      {"{\"__metadata__\":[],\"x\":{" X_F32 "}}", CHI_ERR_FORMAT, "__metadata__"},
      {"{\"__metadata__\":{\"k\":1},\"x\":{" X_F32 "}}", CHI_ERR_FORMAT, "metadata \"k\" is not a string"},
      {"{\"bad\\u001b[31m\\u0085\":{}}", CHI_ERR_FORMAT, "tensor \"bad?[31m?\":"},
      {"{\"a\\u0000b\":{}}", CHI_ERR_FORMAT, "NUL"},
      {"{\"\xff\":{}}", CHI_ERR_FORMAT, "unable to decode byte"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    chi_st *s = (chi_st *)1;
    const char *path = make("bad.safetensors", cases[i].header, 16);
    assert_fails(chi_st_open(&s, path, err), cases[i].code, cases[i].words);
    assert_fails(chi_st_open(&s, path, err), cases[i].code, path);
    assert_null(s);
  }
}

static void wrong_files_are_refused(void **state) {
  (void)state;
  chi_st *s;
  char buf[64] = {0};
  const char *path = tmp_path("f.safetensors");
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_IO, "no such file");
  put_file(path, "", 0);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "is empty");
  put_file(path, buf, 9);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "only 9 bytes");
  memcpy(buf, "\x20\0\0\0\0\0\0\0{}", 10);
  put_file(path, buf, 20);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "header of 32 bytes, but has 20");
  memcpy(buf, "\1\xe1\xf5\5\0\0\0\0{}", 10); /* 100,000,001 */
  put_file(path, buf, 20);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "header of 100000001 bytes, more than");
  memset(buf, 0xff, 8);
  put_file(path, buf, 20);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "more than 100000000");
  put_file(path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 56);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "Git LFS pointer");
  put_file(path, "PK\3\4................", 20);
  assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, "zip archive");
  assert_works(chi_mkdirs(tmp_path("empty"), err));
  assert_fails(chi_st_open(&s, tmp_path("empty"), err), CHI_ERR_IO, "holds neither model.safetensors");
  assert_null(s);
}

/* Whatever opens has tensors that are inside the file and apart from each other. */
static void walk(const chi_st *s, size_t file_size) {
  uint64_t sum = 0, total = 0;
  for (size_t i = 0; i < chi_st_count(s); i++) {
    const chi_tensor *t = chi_st_at(s, i);
    size_t bytes = chi_dtype_size(t->dtype);
    for (int d = 0; d < t->ndim; d++) bytes *= (size_t)t->dim[d];
    assert_int_equal(bytes, t->bytes);
    total += bytes;
    for (size_t b = 0; b < t->bytes; b++) sum += ((const uint8_t *)t->data)[b];
    if (i) assert_true(strcmp(chi_st_at(s, i - 1)->name, t->name) < 0);
  }
  assert_true(total <= file_size && sum <= 255 * total);
}

static void mutated_and_cut_files(void **state) {
  (void)state;
  static const char header[] = "{\"__metadata__\":{\"a\":\"b\"},\"x\":{" X_F32
                               "},\"y\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]}}";
  char good[512], bad[512];
  size_t n = assemble(good, header, 22), opened = 0, refused = 0;
  const char *path = tmp_path("mutant.safetensors");
  chi_st *s;
  for (size_t cut = 1; cut < n; cut++) { /* every prefix lacks data */
    put_file(path, good, cut);
    assert_fails(chi_st_open(&s, path, err), CHI_ERR_FORMAT, path);
  }
  for (size_t i = 0; i < n - 22; i++) {
    static const char other[] = {0, ' ', '"', '0', '9', ',', ':', '[', '{', '}', '-', 'e', '\xff'};
    for (size_t k = 0; k < sizeof other + 8; k++) {
      memcpy(bad, good, n);
      bad[i] = k < sizeof other ? other[k] : (char)(bad[i] ^ (1 << (k - sizeof other)));
      put_file(path, bad, n);
      chi_err e = {0};
      if (chi_st_open(&s, path, &e) == 0) {
        walk(s, n);
        chi_st_close(s);
        opened++;
      } else {
        assert_non_null(strstr(e.text, path));
        refused++;
      }
    }
  }
  assert_true(opened > 100 && refused > 1000);
}

/* ---- reference file -------------------------------------------------------------------------------------------- */
static void reads_what_python_wrote(void **state) {
  (void)state;
  chi_st *s = NULL;
  assert_works(chi_st_open(&s, "tests/fixtures/safetensors/reference.safetensors", err));
  static const char *names[] = {"bf16",
                                "bool",
                                "empty",
                                "f16",
                                "f32",
                                "f64",
                                "i16",
                                "i32",
                                "i64",
                                "i8",
                                "scalar",
                                "u8",
                                "\xce\xb1.\xe2\x96\x81 weight"};
  static const chi_dtype types[] = {CHI_BF16, CHI_BOOL, CHI_F32, CHI_F16, CHI_F32, CHI_F64, CHI_I16,
                                    CHI_I32,  CHI_I64,  CHI_I8,  CHI_F32, CHI_U8,  CHI_F32};
  assert_int_equal(chi_st_count(s), 13);
  assert_string_equal(chi_st_meta(s, "made by"), "safetensors \xe2\x96\x81 \"quoted\"");
  for (size_t i = 0; i < 13; i++) {
    const chi_tensor *t = chi_st_at(s, i);
    float v[12];
    assert_string_equal(t->name, names[i]);
    assert_int_equal(t->dtype, types[i]);
    if (!chi_dtype_is_float(t->dtype) || t->ndim != 2 || t->bytes == 0) continue;
    assert_true(t->dim[0] == 3 && t->dim[1] == 4);
    assert_works(chi_to_f32(v, t->data, t->dtype, 12, err));
    for (int k = 0; k < 12; k++) assert_true(v[k] == (float)(k - 5) * 0.75f);
  }
  assert_int_equal(chi_st_find(s, "scalar")->ndim, 0);
  assert_int_equal(chi_st_find(s, "empty")->bytes, 0);
  int64_t big;
  memcpy(&big, chi_st_find(s, "i64")->data, 8);
  assert_true(big == -1234567890123456789);
  chi_st_close(s);
}

/* ---- writer ---------------------------------------------------------------------------------------------------- */
static void writer_round_trip(void **state) {
  (void)state;
  chi_st_writer *w = NULL;
  chi_st *s = NULL;
  uint8_t data[CHI_DTYPE_COUNT][6 * 8];
  char name[32];
  int64_t dim[CHI_MAX_DIMS] = {2, 3, 1, 1, 1, 1, 1, 1}, none[2] = {0, 4};
  const char *path = tmp_path("out.safetensors");
  assert_works(chi_st_writer_new(&w, path, err));
  for (uint32_t t = 0; t < CHI_DTYPE_COUNT; t++) {
    for (uint32_t i = 0; i < sizeof data[t]; i++) data[t][i] = (uint8_t)chi_rng_u32(1, t, 0, i);
    snprintf(name, sizeof name, "decoder.%u.\"q\"\\", t);
    assert_works(chi_st_writer_add(w, name, (chi_dtype)t, t % 2 ? 2 : CHI_MAX_DIMS, dim, data[t], err));
  }
  assert_works(chi_st_writer_add(w, "zero", CHI_F32, 2, none, NULL, err));
  assert_works(chi_st_writer_add(w, "scalar", CHI_F64, 0, NULL, data[0], err));
  assert_works(chi_st_writer_meta(w, "k", "line\n\"\xc3\xa9\"", err));
  assert_works(chi_st_writer_meta(w, "k2", "v2", err));
  assert_false(chi_file_exists(path)); /* nothing to see before the commit */
  assert_works(chi_st_writer_commit(w, err));
  assert_works(chi_st_open(&s, path, err));
  assert_int_equal(chi_st_count(s), CHI_DTYPE_COUNT + 2);
  for (uint32_t t = 0; t < CHI_DTYPE_COUNT; t++) {
    snprintf(name, sizeof name, "decoder.%u.\"q\"\\", t);
    const chi_tensor *x = chi_st_find(s, name);
    assert_non_null(x);
    assert_true(x->dtype == (chi_dtype)t && x->bytes == 6 * chi_dtype_size(x->dtype));
    assert_int_equal((uintptr_t)x->data % chi_dtype_size(x->dtype), 0); /* aligned to its own type */
    assert_memory_equal(x->data, data[t], x->bytes);
  }
  assert_string_equal(chi_st_meta(s, "k"), "line\n\"\xc3\xa9\"");
  assert_string_equal(chi_st_meta(s, "k2"), "v2");
  chi_st_close(s);
}

static void writer_refuses(void **state) {
  (void)state;
  chi_st_writer *w = NULL;
  int64_t dim[1] = {1}, neg[1] = {-1}, big[2] = {INT64_MAX, INT64_MAX};
  const char *path = tmp_path("w/out.safetensors");
  assert_fails(chi_st_writer_new(&w, path, err), CHI_ERR_IO, "its folder does not exist");
  assert_works(chi_mkdirs(tmp_path("w"), err));
  assert_works(chi_st_writer_new(&w, path, err));
  assert_fails(chi_st_writer_add(w, "__metadata__", CHI_U8, 1, dim, "", err), CHI_ERR_ARG, "reserved");
  assert_fails(chi_st_writer_add(w, "x", CHI_DTYPE_COUNT, 1, dim, "", err), CHI_ERR_ARG, "unknown type");
  assert_fails(chi_st_writer_add(w, "x", CHI_U8, 1, neg, "", err), CHI_ERR_ARG, "dimension 0 is -1");
  assert_fails(chi_st_writer_add(w, "x", CHI_U8, 2, big, "", err), CHI_ERR_ARG, "dimension 1");
  assert_fails(chi_st_writer_meta(w, "k", "\xff", err), CHI_ERR_ARG, "UTF-8");
  chi_st_writer_abort(w);
  assert_int_equal(count_files(tmp_path("w")), 0);
  assert_works(chi_st_writer_new(&w, path, err));
  assert_works(chi_st_writer_add(w, "x", CHI_U8, 1, dim, "a", err));
  assert_works(chi_st_writer_add(w, "x", CHI_U8, 1, dim, "b", err));
  assert_fails(chi_st_writer_commit(w, err), CHI_ERR_ARG, "added twice");
  assert_works(chi_st_writer_new(&w, path, err));
  assert_works(chi_st_writer_add(w, "\xc3", CHI_U8, 1, dim, "a", err));
  assert_fails(chi_st_writer_commit(w, err), CHI_ERR_ARG, "UTF-8");
  assert_int_equal(count_files(tmp_path("w")), 0);
}

static int write_big(const char *path, size_t n, chi_err *err) {
  int rc = 0;
  chi_st_writer *w = NULL;
  int64_t dim[1] = {(int64_t)n};
  uint8_t *data = calloc(n, 1);
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_st_writer_add(w, "x", CHI_U8, 1, dim, data, err));
  rc = chi_st_writer_commit(w, err);
out:
  free(data);
  return rc;
}

static void full_disk_leaves_no_file(void **state) {
  (void)state;
  if (access("/dev/full", W_OK) == 0) {
    assert_fails(write_big("/dev/full", 10, err), CHI_ERR_IO,
                 "/dev/full: cannot write, the disk is full; free some space");
    assert_fails(write_big("/dev/full", 1 << 20, err), CHI_ERR_IO, "the disk is full");
  }
  /* A write that fails half way, over a file that must stay as it was. */
  const char *dir = tmp_path("full"), *path = tmp_path("full/out.safetensors");
  assert_works(chi_mkdirs(dir, err));
  for (int round = 0; round < 2; round++) {
    pid_t pid = fork();
    if (pid == 0) {
      struct rlimit limit = {200000, 200000};
      chi_err e = {0};
      signal(SIGXFSZ, SIG_IGN);
      if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(9);
      int rc = write_big(path, 1 << 20, &e);
      bool clear = strstr(e.text, path) && strstr(e.text, "size limit") && !strchr(e.text, '\n');
      _exit(rc == CHI_ERR_IO && clear ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(count_files(dir), round);
    if (round == 0) assert_works(write_big(path, 1000, err));
  }
  chi_st *s = NULL;
  assert_works(chi_st_open(&s, path, err));
  assert_int_equal(chi_st_at(s, 0)->bytes, 1000);
  chi_st_close(s);
}

static void output_follows_links_and_keeps_modes(void **state) {
  (void)state;
  struct stat st;
  const char *path = tmp_path("target"), *link = tmp_path("link");
  chi_out *o = NULL;
  put_file(path, "old", 3);
  assert_int_equal(chmod(path, 0640), 0);
  assert_int_equal(symlink("target", link), 0);
  assert_works(chi_out_open(&o, link, err));
  assert_non_null(strstr(chi_out_temp_path(o), ".tmp"));
  for (int i = 0; i < 30000; i++) assert_works(chi_out_printf(o, err, "%d\n", i));
  char longer[3000];
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = 0;
  assert_works(chi_out_printf(o, err, "%s", longer));
  char *text;
  size_t len;
  assert_works(chi_read_file(&text, &len, path, 100, err));
  assert_string_equal(text, "old"); /* until the commit */
  chi_free(text);
  assert_works(chi_out_commit(o, err));
  assert_true(lstat(link, &st) == 0 && S_ISLNK(st.st_mode));
  assert_true(stat(path, &st) == 0 && (st.st_mode & 0777) == 0640);
  assert_works(chi_read_file(&text, &len, path, 1 << 20, err));
  assert_int_equal(len, 10 * 2 + 90 * 3 + 900 * 4 + 9000 * 5 + 20000 * 6 + 2999);
  assert_memory_equal(text, "0\n1\n2\n", 6);
  chi_free(text);
  chi_out_abort(NULL);
}

/* ---- shards ---------------------------------------------------------------------------------------------------- */
#define ONE(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"
#define TWO(a, b)                                               \
  "{\"__metadata__\":{\"n\":\"" a "\"},\"" a                    \
  "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}," \
  "\"" b "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}"

static void index_text(const char *text) { put_file(tmp_path("s/model.safetensors.index.json"), text, strlen(text)); }

static void sharded_checkpoints(void **state) {
  (void)state;
  chi_st *s = NULL;
  const char *dir = tmp_path("s");
  assert_works(chi_mkdirs(dir, err));
  make("s/m-1.safetensors", TWO("b", "d"), 3);
  make("s/m-2.safetensors", TWO("a", "c"), 3);
  index_text("{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}");
  for (int i = 0; i < 2; i++) {
    assert_works(chi_st_open(&s, i ? tmp_path("s/model.safetensors.index.json") : dir, err));
    assert_int_equal(chi_st_count(s), 4);
    for (size_t k = 0; k < 4; k++) assert_int_equal(chi_st_at(s, k)->name[0], 'a' + (int)k);
    assert_string_equal(chi_st_meta(s, "n"), "b"); /* of the first file */
    chi_sha256 h;
    char hex[65], want[65], *text;
    size_t len;
    chi_sha256_init(&h);
    for (int f = 0; f < 2; f++) {
      assert_works(chi_read_file(&text, &len, tmp_path(f ? "s/m-2.safetensors" : "s/m-1.safetensors"), 1000, err));
      chi_sha256_add(&h, text, len);
      chi_free(text);
    }
    chi_sha256_hex(&h, want);
    assert_works(chi_st_hash(hex, s, err));
    assert_string_equal(hex, want);
    chi_st_close(s);
  }
  /* a copy that the index does not name is dropped; one that it does not decide is refused */
  make("s/m-1.safetensors", TWO("b", "a"), 3);
  assert_works(chi_st_open(&s, dir, err));
  assert_int_equal(chi_st_find(s, "a")->bytes, 2);
  chi_st_close(s);
  make("s/m-1.safetensors", TWO("b", "d"), 3);
  make("s/m-2.safetensors", TWO("a", "d"), 3);
  index_text("{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}");
  assert_fails(chi_st_open(&s, dir, err), CHI_ERR_FORMAT, "\"d\" is in both m-1.safetensors and m-2.safetensors");
  /* model.safetensors, if there, is the checkpoint */
  make("s/model.safetensors", ONE("whole"), 2);
  assert_works(chi_st_open(&s, dir, err));
  assert_int_equal(chi_st_count(s), 1);
  chi_st_close(s);
  unlink(tmp_path("s/model.safetensors"));
}

static void wrong_indexes_are_refused(void **state) {
  (void)state;
  chi_st *s = NULL;
  const char *dir = tmp_path("s");
  assert_works(chi_mkdirs(dir, err));
  make("s/m-1.safetensors", ONE("b"), 2);
  make("outside.safetensors", ONE("o"), 2);
  static const struct {
    const char *index, *words;
  } cases[] = {
      {"[]", "\"weight_map\" is missing"},
      {"{\"weight_map\":{}}", "missing or empty"},
      {"{\"weight_map\":{\"b\":7}}", "\"b\" does not name a file in the same folder"},
      {"{\"weight_map\":{\"o\":\"../outside.safetensors\"}}", "does not name a file in the same folder"},
      {"{\"weight_map\":{\"o\":\"..\"}}", "does not name a file"},
      {"{\"weight_map\":{\"o\":\"\"}}", "does not name a file"},
      {"{\"weight_map\":{\"b\":\"m-1.safetensors\",\"c\":\"m-1.safetensors\"}}", "\"c\" is not in m-1.safetensors"},
      {"{\"weight_map\":", "line 1"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    index_text(cases[i].index);
    assert_fails(chi_st_open(&s, dir, err), CHI_ERR_FORMAT, cases[i].words);
    assert_fails(chi_st_open(&s, dir, err), CHI_ERR_FORMAT, "model.safetensors.index.json");
  }
  index_text("{\"weight_map\":{\"b\":\"gone.safetensors\"}}");
  assert_fails(chi_st_open(&s, dir, err), CHI_ERR_IO, "gone.safetensors: no such file");
  make("s/m-2.safetensors", "{\"a\":{}}", 0);
  index_text("{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}");
  assert_fails(chi_st_open(&s, dir, err), CHI_ERR_FORMAT, "s/m-2.safetensors: tensor \"a\"");
}

static void many_tensors(void **state) {
  (void)state;
  enum { N = 20000 };
  chi_st_writer *w = NULL;
  chi_st *s = NULL;
  int64_t dim[1] = {4};
  static uint32_t value[N];
  char name[64];
  const char *path = tmp_path("many.safetensors");
  assert_works(chi_st_writer_new(&w, path, err));
  for (uint32_t i = 0; i < N; i++) {
    value[i] = i;
    snprintf(name, sizeof name, "model.layers.%u.weight", i);
    assert_works(chi_st_writer_add(w, name, CHI_U8, 1, dim, &value[i], err));
  }
  assert_works(chi_st_writer_commit(w, err));
  assert_works(chi_st_open(&s, path, err));
  assert_int_equal(chi_st_count(s), N);
  for (uint32_t i = 0; i < N; i += 37) {
    uint32_t v;
    snprintf(name, sizeof name, "model.layers.%u.weight", i);
    memcpy(&v, chi_st_find(s, name)->data, 4);
    assert_int_equal(v, i);
  }
  chi_st_close(s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_a_file),
      cmocka_unit_test(wrong_headers_are_refused),
      cmocka_unit_test(wrong_files_are_refused),
      cmocka_unit_test(mutated_and_cut_files),
      cmocka_unit_test(reads_what_python_wrote),
      cmocka_unit_test(writer_round_trip),
      cmocka_unit_test(writer_refuses),
      cmocka_unit_test(full_disk_leaves_no_file),
      cmocka_unit_test(output_follows_links_and_keeps_modes),
      cmocka_unit_test(sharded_checkpoints),
      cmocka_unit_test(wrong_indexes_are_refused),
      cmocka_unit_test(many_tensors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

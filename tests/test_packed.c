/* The cache of packed weights: a model from the checkpoint, while the cache is written, from the cache, and streamed
 * layer by layer gives the same logits bit for bit; a pass asks for every decoder layer's bytes once; what is not this
 * model's cache is made anew or refused. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/model.h"
#include "support/support.h"
#include "sweep/generate.h"

enum { NEW = 5 };
static const char *dir;

static char *only_file(void) {
  static char path[1024];
  int n = 0;
  DIR *d = opendir(dir);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));)
    if (e->d_name[0] != '.') n++, snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
  closedir(d);
  assert_int_equal(n, 1);
  return path;
}
static void empty_dir(void) {
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    if (e->d_name[0] != '.') unlink(path);
  }
  if (d) closedir(d);
}

static chi_model *open_it(const char *path, chi_dtype_choice dtype, bool cache, bool stream) {
  chi_model *m = NULL;
  chi_model_opts o = {.dtype = dtype, .cache = cache ? dir : NULL, .stream = stream};
  assert_works(chi_model_open_opts(&m, path, &o, err));
  return m;
}

typedef struct run {
  float *logits;
  int64_t vocab;
  int steps;
} run;
static int keep(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  run *r = ud;
  (void)token;
  if (!r->logits) r->logits = calloc((size_t)(NEW * vocab), sizeof(float));
  r->vocab = vocab;
  memcpy(r->logits + step * vocab, logits, (size_t)vocab * sizeof(float));
  r->steps = step + 1;
  return 0;
}
static run go(const chi_model *m, const chi_prompt *p) {
  run r = {0};
  int32_t tokens[NEW], n = 0;
  chi_input in = chi_prompt_input(p);
  chi_gen_opts o = {.max_new = NEW, .on_token = keep, .ud = &r};
  assert_works(chi_generate(&m->net, &in, &o, tokens, &n, NULL, err));
  return r;
}
static chi_prompt *ask(const chi_model *m, const char *picture) {
  chi_prompt *p = NULL;
  chi_prompt_opts o = {.question = "What is it ?", .tmpl = "plain", .image = picture};
  assert_works(chi_prompt_make(&p, m, &o, err));
  return p;
}

static uint64_t layer_bytes(const chi_model *m) {
  uint64_t sum = 0;
  for (int l = 0; l < m->net.decoder.spec.layers; l++) {
    const chi_block *b = &m->net.decoder.block[l];
    const chi_mat *all[] = {&b->q.w, &b->k.w, &b->v.w, &b->o.w, &b->gate.w, &b->up.w, &b->down.w};
    uint64_t end = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) /* each at the next multiple of 4096 */
      if (all[i]->data) end = (end + 4095) / 4096 * 4096 + all[i]->bytes;
    sum += end;
  }
  return sum;
}

static void test_same_bits(void **state) {
  (void)state;
  static const struct {
    const char *path, *picture;
  } models[] = {{"tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png"},
                {"tests/fixtures/tiny-llama", NULL},
                {"tests/fixtures/tiny-gpt2", NULL},
                {"tests/fixtures/tiny-phi", NULL}};
  for (size_t i = 0; i < sizeof models / sizeof *models; i++)
    for (int dtype = CHI_DTYPE_F32; dtype <= CHI_DTYPE_BF16; dtype++) {
      const char *path = models[i].path;
      const char *picture = models[i].picture && chi_file_exists(models[i].picture) ? models[i].picture : NULL;
      empty_dir();
      chi_model *plain = open_it(path, (chi_dtype_choice)dtype, false, false);
      chi_prompt *p = ask(plain, picture);
      assert_works(chi_model_hash(plain, err));
      run want = go(plain, p);
      assert_int_equal(want.steps, NEW);
      for (int how = 0; how < 4; how++) { /* written; read; streamed; written while streamed */
        if (how == 3) empty_dir();
        chi_model *m = open_it(path, (chi_dtype_choice)dtype, true, how >= 2);
        assert_string_equal(m->hash, plain->hash);
        assert_true(m->net.decoder.block[0].q.w.borrowed);
        run got = go(m, p);
        assert_int_equal(got.steps, NEW);
        assert_memory_equal(got.logits, want.logits, (size_t)(NEW * want.vocab) * sizeof(float));
        if (how >= 2) assert_int_equal(chi_pages_read(m->net.pages), NEW * layer_bytes(m)); /* prefill, then 4 tokens */
        free(got.logits);
        chi_model_free(m);
        only_file();
      }
      free(want.logits);
      chi_prompt_free(p);
      chi_model_free(plain);
    }
}

/* Overwrites bytes of the cache file. */
static void poke(const char *path, long at, const void *bytes, size_t n) {
  FILE *f = fopen(path, "r+b");
  assert_non_null(f);
  assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static void test_not_ours(void **state) {
  (void)state;
  const char *model = "tests/fixtures/tiny-llama";
  struct stat before, after;
  empty_dir();
  chi_model_free(open_it(model, CHI_DTYPE_F32, true, false));
  char *path = only_file();
  assert_int_equal(stat(path, &before), 0);
  const char *const junk[] = {"head", "key", "tail", "short"};
  for (size_t i = 0; i < sizeof junk / sizeof *junk; i++) { /* made anew */
    if (i == 0) poke(path, 0, "chiasm packed 9", 15);
    if (i == 1) poke(path, 20, "zzzz", 4);
    if (i == 2) poke(path, -4, "zzzz", 4);
    if (i == 3) assert_int_equal(truncate(path, before.st_size / 2), 0);
    chi_model_free(open_it(model, CHI_DTYPE_F32, true, false));
    assert_string_equal(only_file(), path);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
  }
  /* Complete, but an entry has another shape than the model's matrix. */
  int64_t n = 7777;
  chi_model *m = NULL;
  uint64_t tail[2];
  FILE *f = fopen(path, "rb");
  assert_int_equal(fseek(f, -(long)(16 + 64 + 16), SEEK_END), 0);
  assert_int_equal(fread(tail, sizeof tail, 1, f), 1);
  fclose(f);
  poke(path, (long)tail[1], &n, sizeof n);
  chi_model_opts o = {.dtype = CHI_DTYPE_F32, .cache = dir};
  assert_fails(chi_model_open_opts(&m, model, &o, err), CHI_ERR_FORMAT, "delete the file");
  empty_dir();
  o = (chi_model_opts){.dtype = CHI_DTYPE_F32, .stream = true};
  assert_fails(chi_model_open_opts(&m, model, &o, err), CHI_ERR_ARG, "name a folder");
  o = (chi_model_opts){.dtype = CHI_DTYPE_F32, .cache = "tests/fixtures/tiny-llama/config.json"};
  assert_fails(chi_model_open_opts(&m, model, &o, err), CHI_ERR_IO, "config.json");
}

int main(void) {
  dir = tmp_path("packed");
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_not_ours)};
  int rc = cmocka_run_group_tests(tests, NULL, NULL);
  empty_dir();
  return rc;
}

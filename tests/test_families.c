/* Every family: random plans over every tests/fixtures/tiny-* checkpoint and the tiny GGUF models, with interventions
 * in every stack that the model has. The sweep must give the dense executor's bits, in f32 and in bf16. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "support/randplan.h"
#include "support/support.h"

#ifdef __SANITIZE_ADDRESS__
enum { PLANS = 25, MORE = 2 };
#else
enum { PLANS = 25, MORE = 8 };
#endif

typedef struct tally {
  int models, plans;
  int64_t vision, projector, qformer; /* interventions in these stacks, over all models */
} tally;

static void compare(const randnet *n, const char *name, uint64_t seed, randplan_cover *cover) {
  randplan p;
  results sweep, dense;
  randplan_make(&p, n, &(randplan_opts){.seed = seed, .max_branches = 8, .min_rows = 8, .max_rows = 40}, cover);
  randplan_call seen[RANDPLAN_CALLS];
  assert_works(results_run(&sweep, &n->net, p.plan, &(chi_run_opts){0}, err));
  memcpy(seen, p.call, sizeof seen);
  for (int i = 0; i < RANDPLAN_CALLS; i++) p.call[i].rows = p.call[i].sum = 0;
  assert_works(results_run(&dense, &n->net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_DENSE}, err));
  const char *differ = results_differ(&sweep, &dense);
  if (!differ && memcmp(seen, p.call, sizeof seen) != 0) differ = "what a callback saw";
  if (differ) {
    randplan_print(p.plan);
    fail_msg("%s, plan %llu: sweep and dense differ at %s", name, (unsigned long long)seed, differ);
  }
  results_free(&sweep);
  results_free(&dense);
  randplan_free(&p);
}

static int64_t acts(const randplan_cover *c, chi_stack stack) {
  int64_t n = 0;
  for (int s = 0; s < CHI_SITE_COUNT; s++)
    for (int o = 0; o < CHI_OP_COUNT; o++) n += c->op[stack][s][o];
  return n;
}

/* At least PLANS plans; more where the dice left a stack of the model without an intervention. */
static void check_model(tally *t, const char *name, const char *path, const char *mmproj, chi_dtype_choice dtype) {
  chi_model *m = NULL;
  assert_works(chi_model_open_with(&m, path, mmproj, dtype, err));
  randnet n = {.net = m->net}; /* the model stays the owner of the weights */
  rnd r = {chi_fnv64(name, strlen(name), 0)};
  if (m->net.has_vision)
    for (int i = 0; i < RANDNET_PICTURES; i++) {
      size_t k = (size_t)(3 * m->net.vision.image_h * m->net.vision.image_w);
      n.pixels[i] = calloc(k, sizeof(float));
      assert_non_null(n.pixels[i]);
      for (size_t j = 0; j < k; j++) n.pixels[i][j] = rnd_normal(&r);
    }
  randplan_cover c = {0};
  int plans = 0;
  uint64_t seed = r.s;
  for (int lack = 1; plans < PLANS || (lack && plans < MORE * PLANS); plans++) {
    compare(&n, name, seed + (uint64_t)plans, &c);
    lack = acts(&c, CHI_DECODER) == 0;
    if (m->net.has_vision) lack |= acts(&c, CHI_VISION) == 0 || acts(&c, CHI_PROJECTOR) == 0;
    if (m->net.has_qformer) lack |= acts(&c, CHI_QFORMER) == 0;
    if (plans + 1 == MORE * PLANS && lack) fail_msg("%s: a stack was left without an intervention", name);
  }
  t->models++;
  t->plans += plans;
  t->vision += acts(&c, CHI_VISION);
  t->projector += acts(&c, CHI_PROJECTOR);
  t->qformer += acts(&c, CHI_QFORMER);
  for (int i = 0; i < RANDNET_PICTURES; i++) free(n.pixels[i]);
  chi_model_free(m);
}

static void all_models(chi_dtype_choice dtype) {
  tally t = {0};
  char path[512];
  DIR *d = opendir("tests/fixtures");
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    if (strncmp(e->d_name, "tiny-", 5) != 0) continue;
    snprintf(path, sizeof path, "tests/fixtures/%s", e->d_name);
    check_model(&t, e->d_name, path, NULL, dtype);
  }
  closedir(d);
  static const char *const kGguf[][2] = {{"gpt2"}, {"llama-f16"}, {"llama-q8_0"}, {"llava", "llava-mmproj"},
                                         {"phi2"}, {"qwen2"}};
  for (size_t i = 0; i < sizeof kGguf / sizeof *kGguf; i++) {
    char mmproj[512];
    snprintf(path, sizeof path, "tests/fixtures/gguf/%s.gguf", kGguf[i][0]);
    if (kGguf[i][1]) snprintf(mmproj, sizeof mmproj, "tests/fixtures/gguf/%s.gguf", kGguf[i][1]);
    check_model(&t, path, path, kGguf[i][1] ? mmproj : NULL, dtype);
  }
  print_message("%d models, %d plans, equal bits; interventions in towers %lld, projectors %lld, Q-Formers %lld\n",
                t.models, t.plans, (long long)t.vision, (long long)t.projector, (long long)t.qformer);
  assert_true(t.models >= 24);
  assert_true(t.vision > 100 && t.projector > 50 && t.qformer > 50);
}

static void test_f32(void **state) {
  (void)state;
  all_models(CHI_DTYPE_F32);
}
static void test_bf16(void **state) {
  (void)state;
  all_models(CHI_DTYPE_BF16);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

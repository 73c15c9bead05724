/* models/demo-no-attention: a visual token knows its own patch of the picture and nothing else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/kernel.h"
#include "model/model.h"
#include "support/support.h"
#include "sweep/run.h"

enum { kSide = 88, kPatch = 8, kGrid = kSide / kPatch, kRows = kGrid * kGrid, kColumns = 192 };

static int take(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)capture;
  assert_int_equal(n, kColumns);
  memcpy((float *)ud + i * kColumns, x, (size_t)n * sizeof *x);
  return 0;
}

/* The projected picture rows that the decoder is given. */
static void visual_tokens(const chi_model *m, chi_input in, float *out) {
  chi_plan *plan = NULL;
  int root, id;
  int32_t rows[kRows];
  for (int i = 0; i < kRows; i++) rows[i] = i;
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_IMAGE_EMBED, .layer = -1, .rows = rows, .n_rows = kRows};
  assert_works(chi_plan_capture(plan, &c, &id, err));
  chi_run_opts o = {.on_capture = take, .ud = out};
  assert_works(chi_run_plan(&m->net, plan, &o, err));
  chi_plan_free(plan);
}

/* Turns the patch in the middle into its negative; how many visual tokens change, and whether its own does. */
static int changed(const char *dir, bool *own) {
  static float pixels[3 * kSide * kSide], a[kRows * kColumns], b[kRows * kColumns];
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  int n = 0, patch = kGrid / 2;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = "models/demo/samples/peru.png", .question = "What is the capital of this country?"};
  assert_works(chi_prompt_make(&p, m, &o, err));
  chi_input in = chi_prompt_input(p);
  visual_tokens(m, in, a);
  memcpy(pixels, in.pixels, sizeof pixels);
  for (int c = 0; c < 3; c++)
    for (int y = patch * kPatch; y < (patch + 1) * kPatch; y++)
      for (int x = patch * kPatch; x < (patch + 1) * kPatch; x++) {
        float *v = &pixels[(c * kSide + y) * kSide + x];
        *v = -*v;
      }
  in.pixels = pixels;
  visual_tokens(m, in, b);
  for (int i = 0; i < kRows; i++) {
    bool other = memcmp(a + i * kColumns, b + i * kColumns, kColumns * sizeof *a) != 0;
    n += other;
    if (i == patch * kGrid + patch) *own = other;
  }
  chi_prompt_free(p);
  chi_model_free(m);
  return n;
}

static void patches_know_themselves_only(void **state) {
  (void)state;
  bool own = false;
  assert_int_equal(changed("models/demo-no-attention", &own), 1);
  assert_true(own);
  assert_int_equal(changed("models/demo", &own), kRows); /* with attention all of them know */
  assert_true(own);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(patches_know_themselves_only)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

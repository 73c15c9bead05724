/* Attention contributions against tools/ref/contributions_ref.py (PyTorch, every pair of rows in float64), and the
 * identity that they add up to the attention output. Regenerate: python tools/ref/contributions_ref.py */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/contributions.h"
#include "analyze/select.h"
#include "analyze/states.h"
#include "support/support.h"

static void open_prompt(chi_model **m, chi_prompt **p, const char *dir, const char *picture, const char *prompt) {
  assert_works(chi_model_open(m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.image = picture, .question = prompt, .raw = true};
  assert_works(chi_prompt_make(p, *m, &o, err));
}

static double compare(const char *dir, const char *name, const chi_st *st, const float *got, int64_t n) {
  const chi_tensor *t = chi_st_find(st, name);
  assert_non_null(t);
  assert_int_equal(t->bytes, (size_t)n * sizeof *got);
  const float *want = t->data;
  double worst = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs((double)got[i] - (double)want[i]);
    if (!(d <= 1e-5))
      fail_msg("%s: %s[%lld] is %g, the reference has %g", dir, name, (long long)i, (double)got[i], (double)want[i]);
    if (d > worst) worst = d;
  }
  return worst;
}

static void test_reference(void **state) {
  (void)state;
  static const char *const kNames[] = {"tiny-gqa", "tiny-phi"};
  for (int k = 0; k < 2; k++) {
    char dir[256], file[256], weights[320], hex[65];
    chi_model *m = NULL;
    chi_prompt *p = NULL;
    chi_st *st = NULL;
    chi_contributions *c = NULL;
    int32_t *all = NULL, n = 0;
    snprintf(dir, sizeof dir, "tests/fixtures/%s", kNames[k]);
    snprintf(file, sizeof file, "tests/fixtures/contributions/%s.safetensors", kNames[k]);
    snprintf(weights, sizeof weights, "%s/model.safetensors", dir);
    assert_works(chi_st_open(&st, file, err));
    assert_works(chi_sha256_file(hex, weights, err));
    assert_string_equal(hex, chi_st_meta(st, "model_sha256"));
    open_prompt(&m, &p, dir, chi_st_meta(st, "picture"), chi_st_meta(st, "prompt"));
    assert_works(chi_select_rows(&all, &n, "all", p, err));
    const chi_tensor *to = chi_st_find(st, "to");
    chi_contributions_opts o = {.from = all, .n_from = n, .to = to->data, .n_to = (int32_t)to->dim[0]};
    assert_works(chi_contributions_run(&c, m, p, &o, err));
    assert_int_equal(c->n_layers, m->net.decoder.spec.layers);
    int64_t edges = (int64_t)c->n_layers * c->n_to * c->n_from;
    double a = compare(dir, "head", st, c->head, edges * c->heads), b = compare(dir, "sum", st, c->sum, edges),
           g = compare(dir, "group", st, c->group, (int64_t)c->n_layers * c->n_to * m->net.decoder.spec.d);
    print_message("%s: worst head %.1e, sum over heads %.1e, group %.1e\n", dir, a, b, g);
    chi_contributions_free(c);
    chi_free(all);
    chi_st_close(st);
    chi_prompt_free(p);
    chi_model_free(m);
  }
}

/* The sum over sources and heads is the attention output less its bias, for every row and layer. */
static void check_sum(const char *dir, const char *picture, const char *prompt) {
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *c = NULL;
  chi_plan *plan = NULL;
  chi_states *st = NULL;
  int root;
  int32_t *all = NULL, n = 0;
  open_prompt(&m, &p, dir, picture, prompt);
  assert_works(chi_select_rows(&all, &n, "all", p, err));
  chi_contributions_opts o = {.from = all, .n_from = n, .to = all, .n_to = n};
  assert_works(chi_contributions_run(&c, m, p, &o, err));
  chi_input in = chi_prompt_input(p);
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  int L = m->net.decoder.spec.layers;
  int64_t d = m->net.decoder.spec.d;
  for (int l = 0; l < L; l++)
    assert_works(chi_plan_capture(
        plan,
        &(chi_capture){
            .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_ATTN_OUT, .layer = l, .rows = all, .n_rows = n},
        NULL, err));
  assert_works(chi_states_new(&st, plan, &m->net.shape, err));
  chi_run_opts ro = {.on_capture = chi_states_receive, .ud = st, .executor = CHI_EXEC_DENSE};
  assert_works(chi_run_plan(&m->net, plan, &ro, err));
  double worst = 0;
  for (int l = 0; l < L; l++)
    for (int32_t i = 0; i < n; i++) {
      const float *got = c->group + ((int64_t)l * n + i) * d, *want = st->state[l].values + i * d,
                  *bias = m->net.decoder.block[l].o.bias;
      double e = 0, size = 0;
      for (int64_t x = 0; x < d; x++) {
        double w = (double)want[x] - (bias ? (double)bias[x] : 0);
        size += w * w;
        e += ((double)got[x] - w) * ((double)got[x] - w);
      }
      e = sqrt(e / (size > 0 ? size : 1));
      if (!(e <= 1e-5)) fail_msg("%s: layer %d row %d: the sum is off by %.1e of its norm", dir, l, i, e);
      if (e > worst) worst = e;
      assert_true(fabs((double)c->out[l * n + i] - sqrt(size)) <= 1e-5 * sqrt(size) + 1e-6);
    }
  print_message("%s: %d layers x %d rows, worst %.1e of the norm\n", dir, L, n, worst);
  chi_states_free(st);
  chi_plan_free(plan);
  chi_contributions_free(c);
  chi_free(all);
  chi_prompt_free(p);
  chi_model_free(m);
}

static void test_sums(void **state) { /* grouped keys; biases; parallel blocks; learned positions; a sliding window */
  (void)state;
  static const char kText[] = "What is the capital of this country?";
  check_sum("tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png",
            "USER: <image>\nWhat is the capital of this country? ASSISTANT:");
  check_sum("tests/fixtures/tiny-llama-bias", NULL, kText);
  check_sum("tests/fixtures/tiny-phi", NULL, kText);
  check_sum("tests/fixtures/tiny-gpt2", NULL, kText);
  check_sum("tests/fixtures/tiny-opt", NULL, kText);
  check_sum("tests/fixtures/tiny-mistral", NULL, kText);
}

/* A question about a picture, and the picture's rows. */
static void open_picture(chi_model **m, chi_prompt **p, int32_t **image, int32_t *n) {
  open_prompt(m, p, "tests/fixtures/tiny-gqa", "tests/fixtures/tiny-gqa/picture.png",
              "USER: <image>\nWhat is the capital of this country? ASSISTANT:");
  assert_works(chi_select_rows(image, n, "image", *p, err));
}

/* Aggregations against their definitions, and the late patches' share at its ends. */
static void test_aggregations(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *c = NULL;
  int32_t *image = NULL, n = 0;
  open_picture(&m, &p, &image, &n);
  int32_t to[] = {p->n_rows - 4, p->n_rows - 1}, layer[] = {1};
  chi_contributions_opts o = {.from = image, .n_from = n, .to = to, .n_to = 2, .layers = layer, .n_layers = 1};
  double share, even;
  for (int late = 0; late <= n; late++) {
    o.late = late;
    assert_works(chi_contributions_run(&c, m, p, &o, err));
    assert_int_equal(c->n_patches, n);
    assert_int_equal(c->grid_h * c->grid_w, n);
    assert_int_equal(c->late, late ? late : 1);
    double all = 0, tail = 0, vall = 0, vtail = 0, head = 0, sum = 0;
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < n; j++) {
        double x = (double)c->sum[i * n + j], y = (double)c->even[j];
        all += x;
        vall += y;
        if (j >= n - c->late) tail += x, vtail += y;
        sum = x > sum ? x : sum;
        x = (double)c->head[(1 * 2 + i) * n + j];
        head = x > head ? x : head;
      }
    assert_true(chi_contrib_late(c, 0, &share, &even));
    assert_true(fabs(share - tail / all) < 1e-12);
    assert_true(fabs(even - vtail / vall) < 1e-12);
    if (late == n) assert_true(share == 1 && even == 1);
    assert_true(chi_contrib_max(c, 0) == sum);
    assert_true(chi_contrib_head(c, 0, 1) == head);
    assert_true(fabs(chi_contrib_mean(c, 0) - all / (2 * n)) < 1e-12);
    assert_true(fabs(chi_contrib_even(c, 0) - vall / (2 * n)) < 1e-12);
    assert_true(chi_contrib_group(c, 0) <= all); /* triangle */
    chi_contributions_free(c);
  }
  int32_t text[] = {p->n_rows - 1};
  o = (chi_contributions_opts){.from = text, .n_from = 1, .to = text, .n_to = 1};
  assert_works(chi_contributions_run(&c, m, p, &o, err));
  assert_false(chi_contrib_late(c, 0, &share, &even));
  assert_int_equal(c->n_layers, m->net.decoder.spec.layers);
  chi_contributions_free(c);
  chi_free(image);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* The picture rolled is what a run on that picture gives, and every distance is drawn. */
static void test_rolled(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *c = NULL, *d = NULL;
  int32_t *image = NULL, n = 0;
  open_picture(&m, &p, &image, &n);
  int32_t to[] = {p->n_rows - 1};
  size_t h = (size_t)m->net.vision.image_h, w = (size_t)m->net.vision.image_w, size = 3 * h * w * sizeof(float);
  float *as_it_is = malloc(size);
  memcpy(as_it_is, p->pixels, size);
  unsigned drawn = 0;
  for (uint64_t seed = 0; seed < 64; seed++) {
    chi_contributions_opts o = {.from = image, .n_from = n, .to = to, .n_to = 1, .controls = true, .seed = seed};
    assert_works(chi_contributions_run(&c, m, p, &o, err));
    const chi_contributions *roll = c->control[CHI_CONTRIB_ROLLED];
    int32_t W = c->grid_w, H = c->grid_h, down = H - roll->origin[0] / W;
    for (int i = 0; i < n; i++) assert_int_equal(roll->origin[i], (i / W + H - down) % H * W + i % W);
    assert_int_equal((int)h % H, 0);
    if (!(drawn >> (down % H) & 1u)) { /* once a distance */
      for (size_t y = 0; y < 3 * h; y++)
        memcpy(p->pixels + (y / h * h + (y + (size_t)down * h / (size_t)H) % h) * w, as_it_is + y * w,
               w * sizeof(float));
      o.controls = false;
      assert_works(chi_contributions_run(&d, m, p, &o, err));
      assert_memory_equal(d->sum, roll->sum, (size_t)c->n_layers * (size_t)n * sizeof *d->sum);
      chi_contributions_free(d);
      memcpy(p->pixels, as_it_is, size);
    }
    drawn |= 1u << (down % H);
    if (seed == 63) assert_int_equal(drawn, (1u << H) - 1);
    chi_contributions_free(c);
  }
  free(as_it_is);
  chi_free(image);
  chi_prompt_free(p);
  chi_model_free(m);
}

/* The picture upside down is what a run on that picture gives; a shuffle moves values and loses none; shares add up. */
static void test_picture_controls(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *c = NULL, *d = NULL;
  int32_t *image = NULL, n = 0;
  open_picture(&m, &p, &image, &n);
  int32_t to[] = {p->n_rows - 4, p->n_rows - 1};
  chi_contributions_opts o = {.from = image, .n_from = n, .to = to, .n_to = 2, .late = 3, .controls = true, .seed = 5};
  assert_works(chi_contributions_run(&c, m, p, &o, err));
  const chi_contributions *flip = c->control[CHI_CONTRIB_FLIPPED], *mix = c->control[CHI_CONTRIB_SHUFFLED];
  int64_t edges = (int64_t)c->n_layers * c->n_to * c->n_from;
  int32_t W = c->grid_w, H = c->grid_h;
  double share, even, own[64], flat[64];
  /* the flipped picture, given as a picture: the same numbers to the bit */
  size_t h = (size_t)m->net.vision.image_h, w = (size_t)m->net.vision.image_w;
  for (size_t y = 0; y < h / 2; y++)
    for (size_t k = 0; k < 3; k++)
      for (size_t x = 0; x < w; x++) {
        float *a = p->pixels + (k * h + y) * w + x, *b = p->pixels + (k * h + h - 1 - y) * w + x, t = *a;
        *a = *b;
        *b = t;
      }
  o.controls = false;
  assert_works(chi_contributions_run(&d, m, p, &o, err));
  assert_memory_equal(d->sum, flip->sum, (size_t)edges * sizeof *d->sum);
  assert_memory_equal(d->head, flip->head, (size_t)(edges * c->heads) * sizeof *d->head);
  assert_true(memcmp(c->sum, flip->sum, (size_t)edges * sizeof *c->sum) != 0);
  assert_null(d->control[0]);
  chi_contributions_free(d);
  /* where what stands */
  int seen[64] = {0};
  assert_true(n <= 64);
  for (int i = 0; i < n; i++) {
    assert_int_equal(c->origin[i], i);
    assert_int_equal(flip->origin[i], (H - 1 - i / W) * W + i % W);
    seen[mix->origin[i]]++;
  }
  for (int i = 0; i < n; i++) assert_int_equal(seen[i], 1);
  /* values do not know where they stand: in layer 0 a shuffled patch's norm without weights is that of the patch */
  for (int j = 0; j < n; j++)
    assert_true(fabs((double)mix->even[j] - (double)c->even[mix->origin[j]]) <= 1e-5 * (double)c->even[mix->origin[j]]);
  for (int l = 0; l < c->n_layers; l++) {
    const chi_contributions *of[3] = {c, flip, mix};
    for (int k = 0; k < 3; k++) {
      double late = 0, content = 0, all = 0;
      chi_contrib_curve(of[k], l, own, flat);
      assert_true(chi_contrib_late(of[k], l, &share, &even));
      for (int i = 0; i < n; i++) {
        all += own[i];
        late += i >= n - 3 ? own[i] : 0;
        content += of[k]->origin[i] >= n - 3 ? own[i] : 0;
      }
      assert_true(fabs(all - 1) < 1e-12 && fabs(late - share) < 1e-12);
      assert_true(fabs(content - chi_contrib_late_content(of[k], l)) < 1e-12);
    }
    assert_true(chi_contrib_late(c, l, &share, &even) && fabs(share - chi_contrib_late_content(c, l)) < 1e-15);
  }
  chi_contributions_free(c);
  chi_free(image);
  chi_prompt_free(p);
  chi_model_free(m);
  open_prompt(&m, &p, "tests/fixtures/tiny-llama", NULL, "What is the capital of this country?");
  int32_t first[] = {0}, last[] = {3};
  o = (chi_contributions_opts){.from = first, .n_from = 1, .to = last, .n_to = 1, .controls = true};
  assert_fails(chi_contributions_run(&c, m, p, &o, err), CHI_ERR_ARG, "change the picture");
  chi_prompt_free(p);
  chi_model_free(m);
}

static void test_refusals(void **state) {
  (void)state;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_contributions *c = NULL;
  open_prompt(&m, &p, "tests/fixtures/tiny-llama", NULL, "What is the capital of this country?");
  int32_t early[] = {0, 1}, late[] = {3}, wrong[] = {2, 1}, far[] = {100000};
  chi_contributions_opts o = {.from = late, .n_from = 1, .to = early, .n_to = 2};
  assert_fails(chi_contributions_run(&c, m, p, &o, err), CHI_ERR_ARG, "looks back only");
  o = (chi_contributions_opts){.from = wrong, .n_from = 2, .to = late, .n_to = 1};
  assert_fails(chi_contributions_run(&c, m, p, &o, err), CHI_ERR_ARG, "source rows");
  o = (chi_contributions_opts){.from = early, .n_from = 2, .to = far, .n_to = 1};
  assert_fails(chi_contributions_run(&c, m, p, &o, err), CHI_ERR_ARG, "destination rows");
  o = (chi_contributions_opts){.to = late, .n_to = 1};
  assert_fails(chi_contributions_run(&c, m, p, &o, err), CHI_ERR_ARG, "rows to go from");
  chi_prompt_free(p);
  chi_model_free(m);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference),    cmocka_unit_test(test_sums),
                                     cmocka_unit_test(test_aggregations), cmocka_unit_test(test_picture_controls),
                                     cmocka_unit_test(test_rolled),       cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

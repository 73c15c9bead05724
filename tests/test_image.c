/* image: decoding and resizing against Pillow, preprocessing against transformers' PIL image processors, the way back
 * from patches to pixels, and refusal of broken pictures. Fixtures: tools/ref/image_fixtures.py. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/image.h"
#include "support/support.h"

#define DIR_ "tests/fixtures/image/"
#define REGENERATE "regenerate with: python tools/ref/image_fixtures.py"

static json_t *cases;

static void path_of(char out[512], const char *name) { snprintf(out, 512, DIR_ "%s", name); }

static const char *str_at(const json_t *row, size_t i) { return json_string_value(json_array_get(row, i)); }
static int int_at(const json_t *row, size_t i) { return (int)json_integer_value(json_array_get(row, i)); }

static bool hash_is(const void *p, size_t n, const char *hex) {
  char got[17];
  snprintf(got, sizeof got, "%016llx", (unsigned long long)chi_fnv64(p, n, 0));
  return strcmp(got, hex) == 0;
}

static void load(chi_image *im, const char *name) {
  char path[512];
  chi_err err = {0};
  path_of(path, name);
  if (chi_image_load(im, path, &err) != 0) fail_msg("%s", err.text);
}

static size_t bytes_of(const chi_image *im) { return (size_t)im->w * (size_t)im->h * 3; }

static int setup(void **state) {
  (void)state;
  chi_err err = {0};
  if (chi_json_load(&cases, DIR_ "cases.json", 1 << 20, &err) != 0) fprintf(stderr, "%s; " REGENERATE "\n", err.text);
  return cases ? 0 : -1;
}

static int teardown(void **state) {
  (void)state;
  json_decref(cases);
  return 0;
}

static void decodes_every_png_kind_as_pillow(void **state) {
  (void)state;
  size_t i;
  json_t *row;
  assert_true(json_array_size(json_object_get(cases, "decode")) >= 48);
  json_array_foreach(json_object_get(cases, "decode"), i, row) {
    chi_image im;
    load(&im, str_at(row, 0));
    assert_int_equal(im.w, int_at(row, 1));
    assert_int_equal(im.h, int_at(row, 2));
    if (!hash_is(im.rgb, bytes_of(&im), str_at(row, 3))) fail_msg("%s: pixels differ; " REGENERATE, str_at(row, 0));
    assert_int_equal(strlen(im.sha256), 64);
    chi_image_free(&im);
  }
}

static void resizes_to_pillows_bytes(void **state) {
  (void)state;
  size_t i, bad = 0;
  json_t *row, *all = json_object_get(cases, "resize");
  assert_true(json_array_size(all) >= 20 * 4 * 5);
  json_array_foreach(all, i, row) {
    chi_image im, out;
    chi_err err = {0};
    load(&im, str_at(row, 0));
    if (chi_image_resize(&out, &im, int_at(row, 1), int_at(row, 2), (chi_resample)int_at(row, 3), &err) != 0) {
      fail_msg("%s", err.text);
    }
    if (!hash_is(out.rgb, bytes_of(&out), str_at(row, 4))) {
      print_error("%s to %d x %d, filter %d differs\n", str_at(row, 0), int_at(row, 1), int_at(row, 2), int_at(row, 3));
      bad++;
    }
    chi_image_free(&out);
    chi_image_free(&im);
  }
  assert_int_equal(bad, 0);
}

static int worst_difference(const char *name, const char *want) {
  chi_image a, b;
  load(&a, name);
  load(&b, want);
  assert_int_equal(a.w, b.w);
  assert_int_equal(a.h, b.h);
  int worst = 0;
  for (size_t k = 0; k < bytes_of(&a); k++) {
    int d = abs(a.rgb[k] - b.rgb[k]);
    if (d > worst) worst = d;
  }
  chi_image_free(&a);
  chi_image_free(&b);
  return worst;
}

/* Baseline and progressive, grey, RGB, CMYK and YCCK with and without Adobe's marker, one that EXIF says to turn. */
static void decodes_jpeg_within_two_levels(void **state) {
  (void)state;
  size_t i;
  json_t *row;
  json_array_foreach(json_object_get(cases, "jpeg"), i, row) {
    int worst = worst_difference(str_at(row, 0), str_at(row, 1));
    if (worst > 2) fail_msg("%s: off by %d levels", str_at(row, 0), worst);
  }
  assert_true(i >= 17);
  chi_image im;
  load(&im, "turned.jpg");
  assert_int_equal(im.w, 40); /* lying, as it is stored */
  chi_image_free(&im);
}

static void decodes_webp_as_pillow(void **state) {
  (void)state;
  size_t i;
  json_t *row;
  json_array_foreach(json_object_get(cases, "webp"), i, row) {
    int worst = worst_difference(str_at(row, 0), str_at(row, 1));
    if (worst > int_at(row, 2)) fail_msg("%s: off by %d levels", str_at(row, 0), worst);
  }
  assert_true(i >= 11);
}

static void load_config(chi_preproc *p, const char *name) {
  char path[512];
  chi_err err = {0};
  path_of(path, name);
  if (chi_preproc_load(p, path, &err) != 0) fail_msg("%s", err.text);
}

static void compare_arrays(const chi_st *st, const char *config, const char *picture, const float *pixels, size_t n) {
  char key[256];
  snprintf(key, sizeof key, "%s/%s", config, picture);
  const chi_tensor *t = chi_st_find(st, key);
  if (!t) return;
  assert_int_equal(t->bytes, n * sizeof(float));
  double worst = 0;
  for (size_t k = 0; k < n; k++) {
    float want;
    memcpy(&want, (const char *)t->data + k * sizeof want, sizeof want);
    double d = fabs((double)pixels[k] - (double)want);
    if (!(d <= worst)) worst = d;
  }
  if (!(worst <= 1e-6)) fail_msg("%s: off by %g", key, worst);
}

static void preprocesses_as_transformers(void **state) {
  (void)state;
  chi_st *st = NULL;
  chi_err err = {0};
  if (chi_st_open(&st, DIR_ "pixels.safetensors", &err) != 0) fail_msg("%s", err.text);
  assert_int_equal(chi_st_count(st), 3);
  size_t i, bad = 0;
  json_t *row, *all = json_object_get(cases, "preprocess");
  assert_true(json_array_size(all) >= 60);
  json_array_foreach(all, i, row) {
    chi_preproc p;
    chi_image im, rgb;
    chi_view v;
    float *pixels;
    load_config(&p, str_at(row, 0));
    load(&im, str_at(row, 1));
    if (chi_preprocess(&pixels, &v, &rgb, &im, &p, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(v.w, int_at(row, 2));
    assert_int_equal(v.h, int_at(row, 3));
    assert_int_equal(rgb.w, v.w);
    size_t n = (size_t)v.w * (size_t)v.h * 3;
    if (!hash_is(pixels, n * sizeof(float), str_at(row, 4))) {
      print_error("%s on %s differs\n", str_at(row, 0), str_at(row, 1));
      bad++;
    }
    compare_arrays(st, str_at(row, 0), str_at(row, 1), pixels, n);
    chi_free(pixels);
    chi_image_free(&rgb);
    chi_image_free(&im);
  }
  chi_st_close(st);
  assert_int_equal(bad, 0);
}

static void reads_old_and_new_configs_alike(void **state) {
  (void)state;
  chi_preproc now, old, nested, blip, sig;
  load_config(&now, "clip-now.json");
  load_config(&old, "clip-2021.json");
  load_config(&nested, "processor_config.json");
  assert_int_equal(now.shortest_edge, 56);
  assert_int_equal(now.crop_w, 56);
  assert_int_equal(old.shortest_edge, 56);
  assert_int_equal(old.crop_h, 56);
  assert_true(old.rescale == now.rescale && old.do_rescale && old.do_normalize);
  assert_memory_equal(nested.mean, now.mean, sizeof now.mean);
  assert_int_equal(nested.shortest_edge, 56);
  load_config(&blip, "blip.json");
  assert_false(blip.do_center_crop);
  assert_int_equal(blip.shortest_edge, 0);
  assert_int_equal(blip.resize_w, 60);
  load_config(&sig, "siglip.json");
  assert_int_equal(sig.resample, CHI_BILINEAR);
  assert_true(sig.mean[2] == 0.5);
}

static void refuses_bad_configs(void **state) {
  (void)state;
  static const char *const names[][2] = {{"bad-type.json", "Qwen2VLImageProcessor"},
                                         {"bad-resample.json", "resample"},
                                         {"bad-size.json", "size"},
                                         {"bad-large.json", "4096"},
                                         {"bad-edge.json", "size"},
                                         {"bad-std.json", "image_std"},
                                         {"bad-mean.json", "image_mean"},
                                         {"missing.json", "missing.json"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[512];
    chi_preproc p;
    chi_err err = {0};
    path_of(path, names[i][0]);
    assert_true(chi_preproc_load(&p, path, &err) < 0);
    assert_non_null(strstr(err.text, names[i][0]));
    if (!strstr(err.text, names[i][1])) fail_msg("%s: %s", names[i][0], err.text);
  }
}

static void refuses_bad_pictures(void **state) {
  (void)state;
  DIR *dir = opendir("fuzz/corpus/image");
  assert_non_null(dir);
  int good = 0, bad = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    char path[512];
    chi_image im;
    chi_err err = {0};
    snprintf(path, sizeof path, "fuzz/corpus/image/%.200s", e->d_name);
    int rc = chi_image_load(&im, path, &err);
    if (strncmp(e->d_name, "bad-", 4) == 0) {
      if (rc == 0) fail_msg("%s was decoded", e->d_name);
      if (!strstr(err.text, e->d_name)) fail_msg("%s: message without the name: %s", e->d_name, err.text);
      assert_null(strchr(err.text, '\n'));
      assert_null(im.rgb);
      bad++;
    } else {
      if (rc != 0) fail_msg("%s", err.text);
      good++;
    }
    if (strstr(e->d_name, "60000")) assert_non_null(strstr(err.text, "60000 x 60000"));
    chi_image_free(&im);
  }
  closedir(dir);
  assert_true(good >= 20 && bad >= 40);
  chi_image im;
  chi_err err = {0};
  assert_true(chi_image_load(&im, "fuzz/corpus/image/none.png", &err) < 0);
  assert_non_null(strstr(err.text, "none.png"));
}

static void refuses_absurd_resizes(void **state) {
  (void)state;
  uint8_t px[3 * 600] = {0};
  chi_image thin = {.w = 600, .h = 1, .rgb = px}, out;
  chi_err err = {0};
  assert_true(chi_image_resize(&out, &thin, 0, 5, CHI_BICUBIC, &err) == CHI_ERR_ARG);
  err = (chi_err){0};
  assert_true(chi_image_resize(&out, &thin, 20000, 20000, CHI_BICUBIC, &err) == CHI_ERR_MEMORY);
  chi_preproc p = {.do_resize = true, .shortest_edge = 4096, .resample = CHI_BICUBIC};
  float *pixels;
  err = (chi_err){0};
  assert_true(chi_preprocess(&pixels, NULL, NULL, &thin, &p, &err) == CHI_ERR_MEMORY);
  assert_null(pixels);
}

/* A picture whose only bright block lies inside one patch: the patch's box must cover that block, and no more than the
 * resize factor around it. Done for a crop, a square pad and a crop that is larger than the picture. */
static void patches_map_back(void **state) {
  (void)state;
  static const chi_preproc how[] = {
      {.do_resize = true,
       .shortest_edge = 56,
       .do_center_crop = true,
       .crop_w = 56,
       .crop_h = 56,
       .resample = CHI_BILINEAR},
      {.do_resize = true, .shortest_edge = 56, .pad_square = true, .resample = CHI_BILINEAR},
      {.do_center_crop = true, .crop_w = 320, .crop_h = 280}};
  for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
    chi_image im = {.w = 240, .h = 120, .rgb = chi_calloc(240 * 120, 3, NULL)};
    const int x0 = 133, y0 = 71, side = 6;
    for (int y = y0; y < y0 + side; y++) memset(im.rgb + (y * 240 + x0) * 3, 255, (size_t)side * 3);
    chi_view v;
    float *pixels;
    chi_err err = {0};
    if (chi_preprocess(&pixels, &v, NULL, &im, &how[k], &err) != 0) fail_msg("%s", err.text);
    const int grid = 8;
    int best_r = 0, best_c = 0;
    float best = -1;
    for (int y = 0; y < v.h; y++) {
      for (int x = 0; x < v.w; x++) {
        if (pixels[y * v.w + x] > best) {
          best = pixels[y * v.w + x];
          best_r = y * grid / v.h;
          best_c = x * grid / v.w;
        }
      }
    }
    double b[4];
    chi_view_patch(&v, grid, grid, best_r, best_c, b);
    assert_true(b[0] < x0 + side && b[2] > x0 && b[1] < y0 + side && b[3] > y0);
    chi_view_patch(&v, grid, grid, grid - 1, grid - 1, b);
    assert_true(b[2] <= 240 && b[3] <= 120 && b[0] >= 0 && b[1] >= 0);
    if (k == 0) { /* 240 x 120 -> 112 x 56, cropped to the middle: the right edge is 180 */
      assert_true(fabs(b[2] - 180) < 1e-9 && fabs(b[3] - 120) < 1e-9);
      assert_int_equal(v.crop_left, 28);
    }
    chi_free(pixels);
    chi_image_free(&im);
  }
}

static void patchify_follows_conv_order(void **state) {
  (void)state;
  enum { H = 7, W = 11, P = 3 };
  float px[3 * H * W], out[2 * 3 * 3 * P * P];
  for (int i = 0; i < 3 * H * W; i++) px[i] = (float)i;
  chi_patchify(px, H, W, P, out);
  for (int r = 0; r < 2; r++)
    for (int q = 0; q < 3; q++)
      for (int c = 0; c < 3; c++)
        for (int y = 0; y < P; y++)
          for (int x = 0; x < P; x++) {
            float want = (float)((c * H + r * P + y) * W + q * P + x);
            assert_true(out[(r * 3 + q) * 3 * P * P + (c * P + y) * P + x] == want);
          }
}

static void saves_what_it_loaded(void **state) {
  (void)state;
  const char *path = tmp_path("saved.png");
  chi_image im, back;
  chi_err err = {0};
  load(&im, "r53x53.png");
  chi_png_text text[] = {{"Title", "caf\xc3\xa9"}, {"Software", "chiasm"}};
  if (chi_image_save_png_text(&im, text, 2, path, &err) != 0) fail_msg("%s", err.text);
  if (chi_image_load(&back, path, &err) != 0) fail_msg("%s", err.text);
  assert_memory_equal(back.rgb, im.rgb, bytes_of(&im));
  assert_string_not_equal(back.sha256, im.sha256);
  chi_image_free(&back);
  char *bytes;
  size_t n;
  assert_int_equal(chi_read_file(&bytes, &n, path, 1 << 20, &err), 0);
  assert_non_null(memmem(bytes, n, "caf\xc3\xa9", 5));
  chi_free(bytes);
  assert_true(chi_image_save_png(&im, "no/such/folder/x.png", &err) < 0);
  assert_non_null(strstr(err.text, "no/such/folder"));
  chi_image_free(&im);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(decodes_every_png_kind_as_pillow),
      cmocka_unit_test(resizes_to_pillows_bytes),
      cmocka_unit_test(decodes_jpeg_within_two_levels),
      cmocka_unit_test(decodes_webp_as_pillow),
      cmocka_unit_test(preprocesses_as_transformers),
      cmocka_unit_test(reads_old_and_new_configs_alike),
      cmocka_unit_test(refuses_bad_configs),
      cmocka_unit_test(refuses_bad_pictures),
      cmocka_unit_test(refuses_absurd_resizes),
      cmocka_unit_test(patches_map_back),
      cmocka_unit_test(patchify_follows_conv_order),
      cmocka_unit_test(saves_what_it_loaded),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}

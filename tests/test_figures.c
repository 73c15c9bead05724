/* Overlays and line charts: every colour stands where the value is, as read back from the PNG; SVG is well formed; what
 * cannot be drawn is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report/report.h"
#include "support/support.h"
#include "support/xml.h"

static const uint8_t *pixel(const chi_image *im, double x, double y, double scale) {
  size_t c = (size_t)(x * scale), r = (size_t)(y * scale);
  assert_true(c < (size_t)im->w && r < (size_t)im->h);
  return im->rgb + (r * (size_t)im->w + c) * 3;
}

static bool is_grey(const uint8_t *p) { return abs(p[0] - p[1]) <= 3 && abs(p[1] - p[2]) <= 3; }
static bool is_red(const uint8_t *p) { return p[0] > p[1] + 20 && p[0] > p[2] + 15; }
static bool is_blue(const uint8_t *p) { return p[2] > p[0] + 20; }

static char *slurp(const char *path, size_t *n) {
  char *text = NULL;
  assert_works(chi_read_file(&text, n, path, 64 << 20, err));
  return text;
}

/* ---- overlays ---------------------------------------------------------------------------------------------- */
enum { W = 240, H = 120, CROP = 56, GRID = 8 };

typedef struct scene {
  chi_image original, seen;
  chi_view view;
  float values[2][GRID * GRID];
  chi_overlay_map maps[2];
  chi_overlay_spec spec;
} scene;

/* A flat greenish picture of 240 x 120; the model sees the middle 120 x 120 of it as 56 x 56. */
static void make_scene(scene *s) {
  static const chi_preproc how = {.do_resize = true,
                                  .shortest_edge = CROP,
                                  .do_center_crop = true,
                                  .crop_w = CROP,
                                  .crop_h = CROP,
                                  .resample = CHI_BILINEAR};
  static const char *const lines[] = {"answer: \"Lima\" & more"};
  float *pixels;
  memset(s, 0, sizeof *s);
  s->original = (chi_image){.w = W, .h = H, .rgb = chi_calloc(W * H, 3, NULL)};
  for (int i = 0; i < W * H; i++) memcpy(s->original.rgb + 3 * i, (const uint8_t[3]){40, 160, 90}, 3);
  assert_works(chi_preprocess(&pixels, &s->view, &s->seen, &s->original, &how, err));
  chi_free(pixels);
  for (int m = 0; m < 2; m++) {
    for (int i = 0; i < GRID * GRID; i++) s->values[m][i] = i % 3 == 0 ? NAN : 0;
    s->values[m][2 * GRID + 5] = m ? -1.0f : 1.0f;
    s->values[m][6 * GRID + 1] = m ? 0.25f : -0.5f;
    s->maps[m] = (chi_overlay_map){m ? "head 2" : "head <1>", s->values[m]};
  }
  s->spec = (chi_overlay_spec){.title = "capital?",
                               .lines = lines,
                               .n_lines = 1,
                               .seen = &s->seen,
                               .original = &s->original,
                               .view = &s->view,
                               .grid_h = GRID,
                               .grid_w = GRID,
                               .n_maps = 2,
                               .maps = s->maps,
                               .scale_label = "logit"};
}

static void free_scene(scene *s) {
  chi_image_free(&s->original);
  chi_image_free(&s->seen);
}

/* Middle of patch (r, c): in the crop's panel; and on the picture, by our own arithmetic: 240 x 120 becomes 112 x 56,
 * 28 columns of it are cut off on each side, a patch is 7 x 7 of that, 15 x 15 of the picture. */
static void on_crop(const chi_overlay_box *b, int m, int r, int c, double at[2]) {
  at[0] = b->patches[0] + (c + 0.5) * b->patches[2] / GRID;
  at[1] = b->patches[1] + (r + 0.5) * b->patches[3] / GRID + m * b->map_step;
}

static void on_picture(const chi_overlay_box *b, int m, int r, int c, double at[2]) {
  at[0] = b->whole[0] + (60 + 15 * (c + 0.5)) * b->whole[2] / W;
  at[1] = b->whole[1] + 15 * (r + 0.5) * b->whole[3] / H + m * b->map_step;
}

static void overlay_colours_patches(void **state) {
  (void)state;
  scene s;
  chi_overlay_box b;
  chi_image im;
  make_scene(&s);
  const char *path = tmp_path("o.png");
  for (int sequential = 0; sequential < 2; sequential++) {
    s.spec.sequential = sequential;
    assert_works(chi_overlay_layout(&b, &s.spec, err));
    assert_works(chi_overlay_save(&s.spec, NULL, path, err));
    assert_works(chi_image_load(&im, path, err));
    assert_int_equal(im.w, (int)ceil(2 * b.w));
    assert_int_equal(im.h, (int)ceil(2 * b.h));
    for (int m = 0; m < 2; m++) {
      for (int i = 0; i < GRID * GRID; i++) {
        float v = s.values[m][i];
        for (int panel = 0; panel < 2; panel++) {
          double at[2];
          (panel ? on_picture : on_crop)(&b, m, i / GRID, i % GRID, at);
          const uint8_t *p = pixel(&im, at[0], at[1], 2);
          bool ok = v > 0 ? is_red(p) : v < 0 && !sequential ? is_blue(p) : is_grey(p);
          if (!ok) fail_msg("map %d patch %d panel %d, value %g: %d %d %d", m, i, panel, (double)v, p[0], p[1], p[2]);
        }
      }
      const uint8_t *plain = pixel(&im, b.plain[0] + 20, b.plain[1] + 20 + m * b.map_step, 2);
      assert_true(abs(plain[0] - 40) <= 1 && abs(plain[1] - 160) <= 1 && abs(plain[2] - 90) <= 1);
    }
    /* strong is darker than weak */
    double strong[2], weak[2];
    on_crop(&b, 0, 2, 5, strong);
    on_crop(&b, 1, 6, 1, weak);
    assert_true(pixel(&im, strong[0], strong[1], 2)[1] + 30 < pixel(&im, weak[0], weak[1], 2)[1]);
    chi_image_free(&im);
  }
  free_scene(&s);
  unlink(path);
}

/* Left and right of the crop the picture is paler than inside, with hatching; one that was seen whole has none. */
static void overlay_greys_what_was_not_seen(void **state) {
  (void)state;
  scene s;
  chi_overlay_box b;
  chi_image im;
  make_scene(&s);
  const char *path = tmp_path("u.png");
  for (int i = 0; i < GRID * GRID; i++) s.values[0][i] = NAN;
  s.spec.n_maps = 1;
  for (int all = 0; all < 2; all++) {
    float *pixels;
    if (all) { /* padded to a square: nothing is cut off */
      static const chi_preproc pad = {
          .do_resize = true, .shortest_edge = CROP, .pad_square = true, .resample = CHI_BILINEAR};
      chi_image_free(&s.seen);
      assert_works(chi_preprocess(&pixels, &s.view, &s.seen, &s.original, &pad, err));
      chi_free(pixels);
    }
    assert_works(chi_overlay_layout(&b, &s.spec, err));
    assert_works(chi_overlay_save(&s.spec, NULL, path, err));
    assert_works(chi_image_load(&im, path, err));
    double y = b.whole[1] + b.whole[3] / 2;
    int inside = pixel(&im, b.whole[0] + b.whole[2] / 2, y, 2)[0], low = 255, high = 0;
    for (double x = 4; x < b.whole[2] * 0.2; x += 0.5) {
      int v = pixel(&im, b.whole[0] + x, y, 2)[0];
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
    if (all)
      assert_true(low == high && low == inside);
    else
      assert_true(high > inside + 10 && low < high - 10);
    chi_image_free(&im);
  }
  free_scene(&s);
  unlink(path);
}

static void overlay_files(void **state) {
  (void)state;
  scene s;
  size_t n, m;
  make_scene(&s);
  s.spec.top = 3;
  chi_provenance prov = {.command = "chiasm attribute <m>"};
  assert_works(chi_overlay_save(&s.spec, &prov, tmp_path("a.svg"), err));
  char *svg = slurp(tmp_path("a.svg"), &n);
  check_xml(svg);
  assert_non_null(strstr(svg, "<title>capital?</title>"));
  assert_non_null(strstr(svg, "answer: &quot;Lima&quot; &amp; more"));
  assert_non_null(strstr(svg, "Maps: head &lt;1&gt;, head 2"));
  assert_non_null(strstr(svg, "attribute &lt;m&gt;"));
  chi_free(svg);
  assert_works(chi_overlay_save(&s.spec, &prov, tmp_path("a.png"), err));
  char *a = slurp(tmp_path("a.png"), &n), *b;
  assert_works(chi_overlay_save(&s.spec, &prov, tmp_path("a.png"), err));
  b = slurp(tmp_path("a.png"), &m);
  assert_true(n == m && memcmp(a, b, n) == 0);
  chi_free(a);
  chi_free(b);
  s.spec.original = NULL; /* two panels */
  s.spec.view = NULL;
  s.spec.title = NULL;
  s.spec.n_lines = 0;
  s.maps[0].name = s.maps[1].name = NULL;
  s.spec.scale_label = NULL;
  assert_works(chi_overlay_save(&s.spec, NULL, tmp_path("a.png"), err));
  unlink(tmp_path("a.png"));
  unlink(tmp_path("a.svg"));
  free_scene(&s);
}

static void overlay_refusals(void **state) {
  (void)state;
  scene s;
  chi_overlay_box b;
  make_scene(&s);
#define REFUSED(change, words)                                              \
  do {                                                                      \
    chi_overlay_spec keep = s.spec;                                         \
    change;                                                                 \
    assert_fails(chi_overlay_layout(&b, &s.spec, err), CHI_ERR_ARG, words); \
    s.spec = keep;                                                          \
  } while (0)
  REFUSED(s.spec.grid_h = 0, "0 x 8");
  REFUSED(s.spec.grid_w = 2000, "x 2000 patches");
  REFUSED(s.spec.n_maps = 65, "65 maps");
  REFUSED(s.spec.seen = NULL, "all of its pictures");
  REFUSED(s.spec.view = NULL, "all of its pictures");
  REFUSED(s.spec.maps = NULL, "all of its pictures");
  chi_view other = s.view;
  other.orig_w++;
  REFUSED(s.spec.view = &other, "view of another picture");
#undef REFUSED
  assert_fails(chi_overlay_save(&s.spec, NULL, tmp_path("x.jpg"), err), CHI_ERR_ARG, "x.jpg");
  for (int i = 0; i < GRID * GRID; i++) s.values[0][i] = s.values[1][i] = i % 2 ? INFINITY : NAN;
  assert_works(chi_overlay_save(&s.spec, NULL, tmp_path("x.png"), err)); /* nothing to scale by */
  unlink(tmp_path("x.png"));
  free_scene(&s);
}

/* ---- line charts ------------------------------------------------------------------------------------------- */
enum { N = 21 };
static double xs[N], ys[2][N], low[N], high[N];
static chi_curve curves[2];
static const chi_refline chance = {0.25, "chance"};

static chi_linechart_spec chart(void) {
  static const char *const lines[] = {"200 items"};
  for (int i = 0; i < N; i++) {
    xs[i] = i;
    ys[0][i] = 0.5;
    ys[1][i] = 0.8 - 0.03 * i;
    low[i] = 0.4;
    high[i] = 0.7;
  }
  ys[0][8] = ys[0][9] = NAN;
  low[14] = NAN;
  curves[0] = (chi_curve){"MLP & more", ys[0], low, high};
  curves[1] = (chi_curve){"attention", ys[1], NULL, NULL};
  return (chi_linechart_spec){.title = "repair",
                              .lines = lines,
                              .n_lines = 1,
                              .x_label = "layer",
                              .y_label = "p",
                              .x = xs,
                              .n = N,
                              .curves = curves,
                              .n_curves = 2,
                              .refs = &chance,
                              .n_refs = 1,
                              .y_zero = true};
}

static double at_x(const chi_linechart_box *b, double x) {
  return b->x + (x - b->x_min) / (b->x_max - b->x_min) * b->plot_w;
}
static double at_y(const chi_linechart_box *b, double y) {
  return b->y + (b->y_max - y) / (b->y_max - b->y_min) * b->plot_h;
}

static bool near(const uint8_t *p, int curve) {
  uint8_t c[3];
  chi_curve_color(curve, c);
  return abs(p[0] - c[0]) + abs(p[1] - c[1]) + abs(p[2] - c[2]) <= 12;
}

static bool is_white(const uint8_t *p) { return p[0] > 250 && p[1] > 250 && p[2] > 250; }

static void chart_draws_values(void **state) {
  (void)state;
  chi_linechart_spec s = chart();
  chi_linechart_box b;
  chi_image im;
  assert_works(chi_linechart_layout(&b, &s, err));
  assert_works(chi_linechart_save(&s, NULL, tmp_path("l.png"), err));
  assert_works(chi_image_load(&im, tmp_path("l.png"), err));
  assert_true(b.x_min < 0 && b.x_max > N - 1 && b.y_min <= 0 && b.y_min > -0.2 && b.y_max >= 0.8 && b.y_max < 1.1);
  for (double x = 0; x < N - 1; x += 0.5) {
    if (fabs(ys[1][(int)x] - 0.03 * (x - (int)x) - 0.5) > 0.04) { /* away from the crossing */
      bool gap = x > 7 && x < 10;
      const uint8_t *p = pixel(&im, at_x(&b, x), at_y(&b, 0.5), 2);
      if (near(p, 0) == gap) fail_msg("MLP at %g: %d %d %d", x, p[0], p[1], p[2]);
      assert_true(near(pixel(&im, at_x(&b, x), at_y(&b, 0.8 - 0.03 * x), 2), 1));
    }
    const uint8_t *band = pixel(&im, at_x(&b, x), at_y(&b, 0.44), 2),
                  *below = pixel(&im, at_x(&b, x), at_y(&b, 0.33), 2);
    if (fabs(0.8 - 0.03 * x - 0.44) > 0.04 && x != 13 && x != 15) { /* its ends are soft */
      bool open = x > 13 && x < 15;
      if (open != is_white(band)) fail_msg("band at %g: %d %d %d", x, band[0], band[1], band[2]);
    }
    if (fabs(0.8 - 0.03 * x - 0.33) > 0.04) assert_true(is_white(below));
  }
  int dark = 0, light = 0;
  for (double x = 0; x < N - 4; x += 0.05) {
    const uint8_t *p = pixel(&im, at_x(&b, x), at_y(&b, 0.25), 2);
    dark += p[0] < 140;
    light += is_white(p);
  }
  assert_true(dark > 40 && light > 40); /* dashes */
  chi_image_free(&im);
  unlink(tmp_path("l.png"));
}

static void chart_files(void **state) {
  (void)state;
  size_t n;
  chi_linechart_spec s = chart();
  chi_provenance prov = {.command = "chiasm study"};
  assert_works(chi_linechart_save(&s, &prov, tmp_path("l.svg"), err));
  char *svg = slurp(tmp_path("l.svg"), &n);
  check_xml(svg);
  assert_non_null(strstr(svg, "Curves: MLP &amp; more, attention"));
  assert_non_null(strstr(svg, "chiasm study"));
  chi_free(svg);
  unlink(tmp_path("l.svg"));
}

/* Every range ends with few, distinct ticks inside the plot: no endless loop, no nonsense. */
static void chart_ranges(void **state) {
  (void)state;
  static const double offsets[] = {0, 1, -7.3, 1e-9, 1e9, -1e15, 1e90}, spans[] = {0, 1e-14, 1e-3, 1, 37, 1e6, 1e99};
  chi_linechart_box b;
  for (size_t i = 0; i < 7; i++) {
    for (size_t j = 0; j < 7; j++) {
      for (size_t n = 1; n <= N; n += 10) {
        chi_linechart_spec s = chart();
        s.n = n;
        s.n_refs = 0;
        s.y_zero = false;
        for (size_t k = 0; k < n; k++) {
          ys[0][k] = offsets[i] + spans[j] * (double)k / N;
          ys[1][k] = NAN;
          low[k] = ys[0][k] - spans[j];
          high[k] = 1e300;
        }
        assert_works(chi_linechart_layout(&b, &s, err));
        assert_true(b.y_min < b.y_max && b.w > 0 && b.w < 2000 && b.x + b.plot_w < b.w);
        for (size_t k = 0; k < n; k++) {
          double eps = 1e-9 * fmax(fabs(b.y_min), fabs(b.y_max));
          if (!(ys[0][k] >= b.y_min - eps && ys[0][k] <= b.y_max + eps))
            fail_msg("%g is outside %g..%g", ys[0][k], b.y_min, b.y_max);
        }
      }
    }
  }
  chi_linechart_spec s = chart();
  for (int k = 0; k < N; k++) ys[0][k] = ys[1][k] = low[k] = high[k] = NAN;
  assert_works(chi_linechart_save(&s, NULL, tmp_path("n.png"), err));
  unlink(tmp_path("n.png"));
  xs[0] = 1e20; /* one point far away */
  s.n = 1;
  assert_works(chi_linechart_layout(&b, &s, err));
}

static void chart_refusals(void **state) {
  (void)state;
  chi_linechart_box b;
  chi_linechart_spec s;
#define REFUSED(change, words)                                           \
  do {                                                                   \
    s = chart();                                                         \
    change;                                                              \
    assert_fails(chi_linechart_layout(&b, &s, err), CHI_ERR_ARG, words); \
  } while (0)
  REFUSED(s.n = 0, "0 points");
  REFUSED(s.n_curves = 29, "29 curves");
  REFUSED(s.n_refs = 9, "9 lines");
  REFUSED(s.x = NULL, "all of its names");
  REFUSED(curves[1].name = NULL, "all of its names");
  REFUSED(curves[0].hi = NULL, "all of its names");
  REFUSED(xs[4] = 3, "increasing (value 4)");
  REFUSED(xs[0] = NAN, "increasing (value 0)");
  REFUSED((s.n = 2, xs[0] = 1e20, xs[1] = 1e20 + 2e4), "too close");
  REFUSED((s.y_min = 2, s.y_max = 1), "from 2 to 1");
#undef REFUSED
}

/* ---- colours for everybody --------------------------------------------------------------------------------- */
static double linear(double c) { return c <= 0.04045 ? c / 12.92 : pow((c + 0.055) / 1.055, 2.4); }

/* How people without green (or red) cones see it: Viénot's matrices in linear light. */
static void dichromat(const uint8_t in[3], int red, double out[3]) {
  static const double m[2][3][3] = {{{0.29275, 0.70725, 0}, {0.29275, 0.70725, 0}, {-0.02234, 0.02234, 1}},
                                    {{0.11238, 0.88762, 0}, {0.11238, 0.88762, 0}, {0.00401, -0.00401, 1}}};
  for (int r = 0; r < 3; r++) {
    out[r] = 0;
    for (int c = 0; c < 3; c++) out[r] += m[red][r][c] * linear(in[c] / 255.0);
    out[r] = cbrt(fmax(out[r], 0)); /* roughly as the eye spaces it */
  }
}

static double apart(const uint8_t a[3], const uint8_t b[3], int red) {
  double x[3], y[3], sum = 0;
  dichromat(a, red, x);
  dichromat(b, red, y);
  for (int c = 0; c < 3; c++) sum += (x[c] - y[c]) * (x[c] - y[c]);
  return sqrt(sum);
}

static void colours_for_everybody(void **state) {
  (void)state;
  for (int red = 0; red < 2; red++) {
    uint8_t a[3], b[3];
    for (int i = 0; i < 7; i++) {
      for (int j = 0; j < i; j++) {
        chi_curve_color(i, a);
        chi_curve_color(j, b);
        if (apart(a, b, red) < 0.08) fail_msg("curves %d and %d: %g", i, j, apart(a, b, red));
      }
    }
    for (int t = 2; t <= 10; t++) {
      chi_heat_color(t / 10.0, a);
      chi_heat_color(-t / 10.0, b);
      if (apart(a, b, red) < 0.08) fail_msg("heat %g: %g", t / 10.0, apart(a, b, red));
    }
  }
}

/* ---- dots -------------------------------------------------------------------------------------------------- */
static void dots_draw_values(void **state) {
  (void)state;
  static const char *const rows[] = {"increase", "none", "centre & all"};
  static const bool dim[] = {false, false, true};
  const chi_dot_row a[] = {{0.5, 0.25, 0.75}, {NAN, NAN, NAN}, {0.25, NAN, NAN}},
                    b[] = {{-2, -3, -1}, {4, 3, 5}, {0, 0, 0}};
  const chi_dot_panel panels[] = {{.title = "precision", .dot = a, .x_max = 1, .ref = 0.1},
                                  {.title = "gain", .dot = b, .ref = NAN}};
  chi_dotchart_spec s = {.title = "dots", .rows = rows, .dim = dim, .n_rows = 3, .panels = panels, .n_panels = 2};
  chi_dotchart_box box;
  chi_image im;
  size_t n;
  assert_works(chi_dotchart_layout(&box, &s, err));
  assert_true(box.x_min[0] == 0 && box.x_max[0] == 1 && box.x_min[1] <= -3 && box.x_max[1] >= 5);
  assert_works(chi_dotchart_save(&s, NULL, tmp_path("d.png"), err));
  assert_works(chi_image_load(&im, tmp_path("d.png"), err));
  for (double x = 0.02; x < 1; x += 0.01) { /* the first row: an interval; the second: nothing; the third: a grey dot */
    bool on = x > 0.26 && x < 0.74, off = x < 0.24 || x > 0.76;
    const uint8_t *p = pixel(&im, box.x0[0] + x * box.panel_w, box.y + 0.5 * box.row_h, 2),
                  *q = pixel(&im, box.x0[0] + x * box.panel_w, box.y + 1.5 * box.row_h, 2);
    if (on || off) assert_true(near(p, 0) == on);
    assert_false(near(q, 0));
  }
  const uint8_t *p = pixel(&im, box.x0[0] + 0.25 * box.panel_w, box.y + 2.5 * box.row_h, 2);
  assert_true(!near(p, 0) && !is_white(p) && abs(p[0] - p[1]) < 20);
  chi_image_free(&im);
  unlink(tmp_path("d.png"));
  assert_works(chi_dotchart_save(&s, NULL, tmp_path("d.svg"), err));
  char *svg = slurp(tmp_path("d.svg"), &n);
  check_xml(svg);
  assert_non_null(strstr(svg, "Panels: precision, gain"));
  chi_free(svg);
  unlink(tmp_path("d.svg"));
  s.n_panels = 13;
  assert_fails(chi_dotchart_save(&s, NULL, tmp_path("d.svg"), err), CHI_ERR_ARG, "13 panels");
  s.n_panels = 2, s.rows = NULL;
  assert_fails(chi_dotchart_save(&s, NULL, tmp_path("d.svg"), err), CHI_ERR_ARG, "without all of their names");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(overlay_colours_patches),
      cmocka_unit_test(overlay_greys_what_was_not_seen),
      cmocka_unit_test(overlay_files),
      cmocka_unit_test(overlay_refusals),
      cmocka_unit_test(chart_draws_values),
      cmocka_unit_test(chart_files),
      cmocka_unit_test(chart_ranges),
      cmocka_unit_test(chart_refusals),
      cmocka_unit_test(dots_draw_values),
      cmocka_unit_test(colours_for_everybody),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

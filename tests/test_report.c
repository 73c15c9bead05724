/* report: what is written can be read back (CSV, JSON, PNG by our own decoder, SVG as XML), colours sit where the
 * layout says, tables fit the terminal. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report/report.h"
#include "support/support.h"
#include "support/xml.h"

static char *slurp(const char *path, size_t *n) {
  char *s = NULL;
  chi_err err = {0};
  size_t len;
  if (chi_read_file(&s, &len, path, 64 << 20, &err) != 0) fail_msg("%s", err.text);
  if (n) *n = len;
  return s;
}

/* ---- CSV ------------------------------------------------------------------------------------------------- */
/* One field of RFC 4180 from *p into out; *p ends behind the separator. Returns the separator. */
static char read_field(const char **p, char *out) {
  const char *s = *p;
  if (*s == '"') {
    for (s++; *s && !(*s == '"' && s[1] != '"'); s++) {
      if (*s == '"') s++;
      *out++ = *s;
    }
    assert_int_equal(*s, '"');
    s++;
  } else {
    while (*s && *s != ',' && *s != '\n') {
      assert_int_not_equal(*s, '"');
      *out++ = *s++;
    }
  }
  *out = 0;
  *p = *s ? s + 1 : s;
  return *s;
}

static void csv_round_trip(void **state) {
  (void)state;
  static const char *const columns[] = {"token", "n", "p"};
  static const char *const words[] = {"plain", "a,b", "say \"hi\"", "line\nbreak",          "\r",
                                      "\"",    ",",   "",           "\xc3\xa9\xe6\x9d\xb1", " x "};
  static const float numbers[] = {0.1f, 1e-20f, -3.4028235e38f, 1.0f / 3, 0, 16777217.0f, 5e-45f, -0.0f, 2.5f, 7};
  chi_csv *c;
  chi_err err = {0};
  if (chi_csv_open(&c, tmp_path("t.csv"), columns, 3, &err) != 0) fail_msg("%s", err.text);
  for (int i = 0; i < 10; i++) {
    chi_csv_str(c, words[i]);
    chi_csv_int(c, INT64_MIN + i);
    chi_csv_num(c, i == 5 ? NAN : (double)numbers[i]);
    assert_int_equal(chi_csv_row(c, &err), 0);
  }
  if (chi_csv_commit(c, &err) != 0) fail_msg("%s", err.text);
  char *text = slurp(tmp_path("t.csv"), NULL), field[256];
  const char *p = text;
  for (int i = 0; i < 3; i++) {
    assert_int_equal(read_field(&p, field), i < 2 ? ',' : '\n');
    assert_string_equal(field, columns[i]);
  }
  for (int i = 0; i < 10; i++) {
    assert_int_equal(read_field(&p, field), ',');
    assert_string_equal(field, words[i]);
    assert_int_equal(read_field(&p, field), ',');
    assert_true(strtoll(field, NULL, 10) == INT64_MIN + i);
    assert_int_equal(read_field(&p, field), '\n');
    if (i == 5)
      assert_string_equal(field, "");
    else
      assert_true(strtof(field, NULL) == numbers[i]);
  }
  assert_int_equal(*p, 0);
  chi_free(text);
  unlink(tmp_path("t.csv"));
}

static void csv_refuses_ragged_rows(void **state) {
  (void)state;
  static const char *const columns[] = {"a", "b"};
  chi_csv *c;
  chi_err err = {0};
  assert_int_equal(chi_csv_open(&c, tmp_path("r.csv"), columns, 2, &err), 0);
  chi_csv_int(c, 1);
  assert_int_equal(chi_csv_row(c, &err), CHI_ERR_ARG);
  err = (chi_err){0};
  assert_int_equal(chi_csv_commit(c, &err), CHI_ERR_ARG);
  assert_false(chi_file_exists(tmp_path("r.csv")));
  assert_int_equal(chi_csv_open(&c, tmp_path("r.csv"), columns, 2, NULL), 0);
  chi_csv_abort(c);
  assert_false(chi_file_exists(tmp_path("r.csv")));
  err = (chi_err){0};
  assert_true(chi_csv_open(&c, tmp_path("none/r.csv"), columns, 2, &err) < 0);
  assert_non_null(strstr(err.text, "none/r.csv"));
}

/* ---- JSON ------------------------------------------------------------------------------------------------ */
static void provenance_in_json(void **state) {
  (void)state;
  chi_provenance p = {
      .command = "chiasm trace \xff x", .version = "1", .model_hash = "ab", .has_seed = true, .seed = 7};
  json_t *j = NULL, *o;
  assert_int_equal(chi_report_json(&j, "trace", &p, NULL), 0);
  assert_string_equal(json_string_value(json_object_get(j, "kind")), "trace");
  o = json_object_get(j, "provenance");
  assert_string_equal(json_string_value(json_object_get(o, "command")), "chiasm trace \xef\xbf\xbd x");
  assert_string_equal(json_string_value(json_object_get(o, "model_sha256")), "ab");
  assert_int_equal(json_integer_value(json_object_get(o, "seed")), 7);
  assert_null(json_object_get(o, "image"));
  json_decref(j);
  p.seed = UINT64_MAX;
  assert_int_equal(chi_provenance_json(&o, &p, NULL), 0);
  assert_string_equal(json_string_value(json_object_get(o, "seed")), "18446744073709551615");
  json_decref(o);
  float x[3] = {0.5f, NAN, INFINITY};
  j = chi_json_nums(x, 3);
  assert_true(json_real_value(json_array_get(j, 0)) == 0.5);
  assert_true(json_is_null(json_array_get(j, 1)) && json_is_null(json_array_get(j, 2)));
  json_decref(j);
}

/* ---- tables ---------------------------------------------------------------------------------------------- */
static void table_fits_the_terminal(void **state) {
  (void)state;
  static const char *const head[] = {"site", "token", "layer", "effect", "remark"};
  chi_table *t;
  chi_str s = {0};
  chi_err err = {0};
  assert_int_equal(chi_table_new(&t, head, "llrrl", &err), 0);
  for (int i = 0; i < 4; i++) {
    chi_table_cell(t, "%s", i % 2 ? "mlp" : "attn");
    chi_table_cell(t, "%s", i == 2 ? "\xe6\x9d\xb1\xe4\xba\xac\xe6\x9d\xb1\xe4\xba\xac" : "country\n");
    chi_table_cell(t, "%d", 3 * i + 2);
    chi_table_cell(t, "%+.4f", i * 0.25 - 0.5);
    chi_table_cell(
        t, "%s",
        i == 1 ? "\xc3\xbc a remark that is far too long for any terminal of eighty columns, which goes on" : "short");
  }
  chi_table_cell(t, "unfinished row");
  if (chi_table_text(t, 80, &s, &err) != 0) fail_msg("%s", err.text);
  int lines = 0, end_of_numbers = 0;
  for (char *line = s.s; *line; lines++) {
    char *nl = strchr(line, '\n');
    assert_non_null(nl);
    *nl = 0;
    assert_true(chi_text_width(line) <= 80);
    assert_true(line[0] == 0 || nl[-1] != ' ');
    char *num = strstr(line, ".");
    if (lines >= 2 && lines < 6) { /* the effects end in one column of the screen */
      char cut[256];
      snprintf(cut, sizeof cut, "%.*s", (int)(num - line), line);
      if (lines == 2) end_of_numbers = chi_text_width(cut);
      assert_int_equal(chi_text_width(cut), end_of_numbers);
    }
    line = nl + 1;
  }
  assert_int_equal(lines, 7);
  chi_str_free(&s);
  assert_int_equal(chi_table_text(t, 200, &s, &err), 0);
  assert_non_null(strstr(s.s, "goes on"));
  chi_str_free(&s);
  chi_table_free(t);
  assert_int_equal(chi_text_width("a\xe6\x9d\xb1\xc3\xa9"), 4);
  assert_true(chi_table_new(&t, head, "", &err) < 0);
}

/* ---- colours --------------------------------------------------------------------------------------------- */
static double luma(double t) {
  uint8_t c[3];
  chi_heat_color(t, c);
  return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
}

static void colors_diverge_from_grey(void **state) {
  (void)state;
  uint8_t c[3], d[3];
  chi_heat_color(0, c);
  assert_true(c[0] == c[1] && c[1] == c[2] && c[0] > 235 && c[0] < 250); /* not the white of the paper */
  chi_heat_color(0.8, c);
  assert_true(c[0] > c[2] + 60);
  chi_heat_color(-0.8, c);
  assert_true(c[2] > c[0] + 60);
  for (int i = 1; i <= 50; i++) {
    assert_true(luma(i / 50.0) < luma((i - 1) / 50.0));
    assert_true(luma(-i / 50.0) < luma(-(i - 1) / 50.0));
  }
  chi_heat_color(1, c);
  chi_heat_color(7, d);
  assert_memory_equal(c, d, 3);
  assert_true(fabs(chi_nice_limit(-0.0231) - 0.025) < 1e-12 && chi_nice_limit(0) == 1 && chi_nice_limit(NAN) == 1);
  for (double x = 1e-9; x < 1e9; x *= 1.37)
    assert_true(chi_nice_limit(x) >= x * (1 - 1e-9) && chi_nice_limit(x) < 2 * x);
}

/* ---- heat maps ------------------------------------------------------------------------------------------- */
enum { ROWS = 5, LAYERS = 7, SITES = 2, COLS = 3 };
static float cells[SITES * COLS][LAYERS * ROWS];
static const float *cell_ptr[SITES * COLS];

static chi_heatmap_spec sample(void) {
  static const char *const sites[] = {"MLP <out>", "attention"}, *const cols[] = {"own", "donor", "difference"};
  static const char *const notes[] = {"the item's own clean run", "another picture's clean run", NULL};
  static const char *const lines[] = {"answer: \"Lima\" & more, p = 0.99 \xe2\x86\x92 0.01"};
  static const chi_heat_row rows[ROWS] = {{"<s>", CHI_ROW_DIM},
                                          {" this", CHI_ROW_MARKED},
                                          {" \xd8\xa7\xd9\x84", CHI_ROW_MARKED},
                                          {"<0x0A>", CHI_ROW_PLAIN},
                                          {"\xff&\x01", CHI_ROW_PLAIN}};
  for (int p = 0; p < SITES * COLS; p++) {
    for (int i = 0; i < LAYERS * ROWS; i++) cells[p][i] = (float)((p * 31 + i * 17) % 41 - 20) / 20;
    cells[p][p] = NAN;
    cell_ptr[p] = cells[p];
  }
  return (chi_heatmap_spec){.title = "capital of this?",
                            .mark_begin = 11,
                            .mark_end = 15,
                            .lines = lines,
                            .n_lines = 1,
                            .n_rows = ROWS,
                            .n_layers = LAYERS,
                            .rows = rows,
                            .n_sites = SITES,
                            .n_cols = COLS,
                            .site_names = sites,
                            .col_names = cols,
                            .col_notes = notes,
                            .values = cell_ptr,
                            .mark_note = "the constraint",
                            .scale_label = "change of p",
                            .limit = 1};
}

static void png_shows_every_cell(void **state) {
  (void)state;
  chi_heatmap_spec s = sample();
  chi_heatmap_box b;
  chi_image im, thumb = {.w = 40, .h = 30, .rgb = chi_calloc(1200, 3, NULL)};
  chi_provenance prov = {.command = "chiasm trace"};
  chi_err err = {0};
  s.thumb = &thumb;
  if (chi_heatmap_layout(&b, &s, &err) != 0) fail_msg("%s", err.text);
  if (chi_heatmap_save(&s, &prov, tmp_path("h.png"), &err) != 0) fail_msg("%s", err.text);
  if (chi_image_load(&im, tmp_path("h.png"), &err) != 0) fail_msg("%s", err.text);
  assert_int_equal(im.w, (int)ceil(2 * b.w));
  assert_int_equal(im.h, (int)ceil(2 * b.h));
  for (int p = 0; p < SITES * COLS; p++) {
    for (int i = 0; i < LAYERS * ROWS; i++) {
      double x = b.x0 + p % COLS * b.col_step + (i / ROWS + 0.5) * b.cell_w;
      double y = b.y0 + p / COLS * b.site_step + (i % ROWS + 0.5) * b.cell_h;
      const uint8_t *px = im.rgb + ((size_t)(2 * y) * (size_t)im.w + (size_t)(2 * x)) * 3;
      uint8_t want[3] = {255, 255, 255};
      if (!isnan(cells[p][i])) chi_heat_color(lround((double)cells[p][i] * 127) / 127.0, want);
      for (int c = 0; c < 3; c++) {
        if (abs(px[c] - want[c]) > 1) fail_msg("panel %d cell %d: %d %d %d", p, i, px[0], px[1], px[2]);
      }
    }
  }
  size_t n, m;
  char *a = slurp(tmp_path("h.png"), &n), *again;
  assert_non_null(memmem(a, n, "{\"command\":\"chiasm trace\"}", 26));
  if (chi_heatmap_save(&s, &prov, tmp_path("h.png"), &err) != 0) fail_msg("%s", err.text);
  again = slurp(tmp_path("h.png"), &m);
  assert_true(n == m && memcmp(a, again, n) == 0);
  chi_free(a);
  chi_free(again);
  chi_image_free(&im);
  chi_image_free(&thumb);
  unlink(tmp_path("h.png"));
}

static void svg_is_well_formed(void **state) {
  (void)state;
  chi_heatmap_spec s = sample();
  chi_provenance prov = {.command = "chiasm trace m \"<a & b>\""};
  chi_err err = {0};
  if (chi_heatmap_save(&s, &prov, tmp_path("h.svg"), &err) != 0) fail_msg("%s", err.text);
  char *svg = slurp(tmp_path("h.svg"), NULL);
  check_xml(svg);
  assert_non_null(strstr(svg, "<title>capital of this?</title>"));
  assert_non_null(strstr(svg, "answer: &quot;Lima&quot; &amp; more"));
  assert_non_null(strstr(svg, "MLP &lt;out&gt;"));
  assert_non_null(strstr(svg, "&lt;s&gt; | this | \xd8\xa7\xd9\x84 | \xe2\x86\xb5 | \xef\xbf\xbd&amp;"));
  assert_non_null(strstr(svg, "\\&quot;&lt;a &amp; b&gt;\\&quot;"));
  chi_free(svg);
  unlink(tmp_path("h.svg"));
}

/* Panels, labels and layer numbers keep clear of each other for every size of question and model. */
static void layout_has_room(void **state) {
  (void)state;
  static float zero[64 * 64];
  static const float *values[9];
  static chi_heat_row rows[64];
  static const char *const names[] = {"a", "b", "c"};
  for (int i = 0; i < 9; i++) values[i] = zero;
  for (int i = 0; i < 64; i++) rows[i].label = i % 7 ? "token" : "an unusually long token that is cut somewhere";
  for (int n_rows = 4; n_rows <= 45; n_rows += 8) {
    for (int n_layers = 6; n_layers <= 40; n_layers += 13) {
      for (int n_cols = 1; n_cols <= 3; n_cols += 2) {
        chi_heatmap_spec s = {.title = "t",
                              .n_rows = n_rows,
                              .n_layers = n_layers,
                              .rows = rows,
                              .n_sites = 3,
                              .n_cols = n_cols,
                              .site_names = names,
                              .col_names = names,
                              .values = values};
        chi_heatmap_box b;
        assert_int_equal(chi_heatmap_layout(&b, &s, NULL), 0);
        assert_true(b.cell_w >= 8 && b.cell_h >= 15);
        assert_true(b.x0 >= 100 && b.x0 <= 260);
        assert_true(b.col_step >= n_layers * b.cell_w + 20);
        assert_true(b.site_step >= n_rows * b.cell_h + 18 + 18 + 20);
        assert_true(b.w >= b.x0 + n_cols * b.col_step + 13 && b.w < 1600);
        assert_true(b.h > b.y0 + 2 * b.site_step + n_rows * b.cell_h + 18);
      }
    }
  }
}

static void refuses_nonsense(void **state) {
  (void)state;
  chi_heatmap_spec s = sample();
  chi_heatmap_box b;
  chi_err err = {0};
  assert_int_equal(chi_heatmap_save(&s, NULL, tmp_path("h.gif"), &err), CHI_ERR_ARG);
  assert_non_null(strstr(err.text, "h.gif"));
  err = (chi_err){0};
  assert_int_equal(chi_heatmap_save(&s, NULL, tmp_path("none/h.png"), &err), CHI_ERR_IO);
  assert_int_equal(chi_heatmap_save(&s, NULL, tmp_path("none/h.svg"), NULL), CHI_ERR_IO);
  s.n_rows = 0;
  assert_int_equal(chi_heatmap_layout(&b, &s, NULL), CHI_ERR_ARG);
  s = sample();
  cell_ptr[4] = NULL;
  assert_int_equal(chi_heatmap_layout(&b, &s, NULL), CHI_ERR_ARG);
  s = sample();
  s.mark_end = 400;
  assert_int_equal(chi_heatmap_layout(&b, &s, NULL), CHI_ERR_ARG);
  s = sample();
  s.scale = 1000;
  assert_int_equal(chi_heatmap_save(&s, NULL, tmp_path("big.png"), NULL), CHI_ERR_ARG);
}

/* Tests delete what they wrote: a temporary file of ours would stay behind. */
static int nothing_left_behind(void **state) {
  (void)state;
  char *slash, dir[512];
  snprintf(dir, sizeof dir, "%s", tmp_path("x"));
  slash = strrchr(dir, '/');
  *slash = 0;
  return count_files(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(csv_round_trip),           cmocka_unit_test(csv_refuses_ragged_rows),
      cmocka_unit_test(provenance_in_json),       cmocka_unit_test(table_fits_the_terminal),
      cmocka_unit_test(colors_diverge_from_grey), cmocka_unit_test(png_shows_every_cell),
      cmocka_unit_test(svg_is_well_formed),       cmocka_unit_test(layout_has_room),
      cmocka_unit_test(refuses_nonsense),
  };
  return cmocka_run_group_tests(tests, NULL, nothing_left_behind);
}

/* Edits in numbers, against arithmetic by hand and brute force: headline, pairing, swaps, Holm, curves over layers,
 * rank correlations; logs that are read without being written. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/edits_report.h"
#include "support/support.h"

enum { ITEMS = 6, ENTITIES = 3, PARTS = 5 };

/* Six edits of three entities. */
static void make_set(chi_edit_set *s) {
  const char *path = tmp_path("set.jsonl");
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < ITEMS; i++)
    fprintf(f, "{\"id\":\"i%d\",\"entity\":\"e%d\",\"question\":\"Why?\",\"target\":\"x\"}\n", i, i / 2);
  fclose(f);
  assert_works(chi_edit_set_load(s, path, NULL, 0, err));
}

static json_t *kept(int n, int of, int right) {
  return json_pack("{s:i,s:i,s:i,s:i}", "n", of, "kept", n, "right", right, "right_before", of);
}

/* Values that differ between editors and items, by a fixed rule. */
static int draw(int editor, int item, int part, int of) {
  return (editor * 7 + item * 5 + part * 3 + item * part) % (of + 1);
}

static void add(chi_jlog *log, const char *editor, int e, int i) {
  char id[32], item[8];
  snprintf(item, sizeof item, "i%d", i);
  chi_edits_line_id(id, sizeof id, editor, item);
  json_t *j = json_pack("{s:s,s:s,s:s,s:b,s:f,s:{s:o,s:o,s:o,s:o,s:o,s:o},s:{s:f,s:f}}", "id", id, "item", item,
                        "status", e == 1 && i == 5 ? "failed" : "ok", "reliable", draw(e, i, 0, 1), "p_target",
                        0.1 * draw(e, i, 0, 9), "probes", "paraphrase", kept(draw(e, i, 1, 3), 3, 0), "rendering",
                        kept(draw(e, i, 2, 2), 2, 0), "same_question", kept(draw(e, i, 3, 3), 3, 0), "same_picture",
                        kept(draw(e, i, 4, 3), 3, 0), "other_picture", kept(2, 2, 1), "other_text",
                        kept(2, 2, draw(e, i, 5, 2)), "trace", "own", 0.3 * e, "corrected", 0.01 * draw(e, i, 6, 50));
  assert_non_null(j);
  assert_works(chi_jlog_add(log, j, err));
  json_decref(j);
}

static double part_value(int e, int i, int part) {
  static const int of[PARTS] = {1, 3, 2, 3, 3};
  return (double)draw(e, i, part, of[part]) / of[part];
}

/* Headline of items whose entity's bit is in pick, editor by item from who. */
static double headline(const int who[ITEMS], unsigned pick) {
  double inverse = 0;
  for (int k = 0; k < PARTS; k++) {
    double sum = 0, n = 0;
    for (int i = 0; i < ITEMS; i++)
      if (pick >> (i / 2) & 1) sum += part_value(who[i], i, k), n++;
    if (sum <= 0) return 0;
    inverse += n / sum;
  }
  return PARTS / inverse;
}

static void near(double a, double b) {
  if (!(fabs(a - b) <= 1e-12)) fail_msg("%.15g, not %.15g", a, b);
}

static void test_table(void **state) {
  (void)state;
  chi_edit_set set;
  chi_jlog *log = NULL;
  json_t *head = json_pack("{s:s}", "run", "table");
  make_set(&set);
  assert_works(chi_jlog_open(&log, NULL, head, err));
  static const char *const kName[] = {"A", "B", "C"};
  for (int e = 0; e < 3; e++)
    for (int i = 0; i < ITEMS; i++)
      if (!(e == 2 && i > 3)) add(log, kName[e], e, i); /* C was made of two entities only */
  chi_edits_row row[3];
  for (int e = 0; e < 3; e++) row[e] = (chi_edits_row){.name = kName[e], .log = log, .editor = kName[e]};
  chi_edits_table *t = NULL;
  chi_edits_table_opts o = {.reference = 0, .curve = true, .boot = {.draws = 500}};
  assert_works(chi_edits_table_make(&t, row, 3, &set, &o, err));
  const int a[ITEMS] = {0}, b[ITEMS] = {1, 1, 1, 1, 1, 1}, c[ITEMS] = {2, 2, 2, 2, 2, 2};
  const chi_edits_stat *s = &t->stat[CHI_EDITS_COLUMNS];
  near(t->stat[CHI_EDITS_HEADLINE].mean.value, headline(a, 7));
  near(s[CHI_EDITS_HEADLINE].mean.value, headline(b, 7));
  near(s[CHI_EDITS_HEADLINE].diff.value, headline(b, 7) - headline(a, 7));
  near(t->stat[2 * CHI_EDITS_COLUMNS].mean.value, headline(c, 3));
  near(t->stat[2 * CHI_EDITS_COLUMNS].diff.value, headline(c, 3) - headline(a, 3)); /* on what both have */
  assert_true(t->n[1] == 6 && t->n[2] == 4 && t->failed[1] == 1 && t->failed[0] == 0);
  assert_true(s->mean.n == 6 && s->mean.clusters == 3 && t->stat[2 * CHI_EDITS_COLUMNS].diff.n == 4);
  assert_true(t->stat[0].diff.n == 0 && isnan(t->stat[0].p));
  /* all swaps of three entities */
  int reach = 0;
  double seen = fabs(headline(b, 7) - headline(a, 7));
  assert_true(seen > 0.01);
  for (int m = 0; m < 8; m++) {
    int x[ITEMS], y[ITEMS];
    for (int i = 0; i < ITEMS; i++) x[i] = !(m >> (i / 2) & 1), y[i] = !x[i];
    reach += fabs(headline(x, 7) - headline(y, 7)) >= seen - 1e-12;
  }
  near(s[CHI_EDITS_HEADLINE].p, reach / 8.0);
  double pb = s[CHI_EDITS_HEADLINE].p, pc = t->stat[2 * CHI_EDITS_COLUMNS].p, low = pb < pc ? pb : pc;
  near(pb < pc ? s[CHI_EDITS_HEADLINE].p_holm : t->stat[2 * CHI_EDITS_COLUMNS].p_holm, fmin(1, 2 * low));
  /* single columns */
  double mean = 0, unrelated = 0;
  for (int i = 0; i < ITEMS; i++)
    mean += part_value(1, i, 4) / ITEMS, unrelated += (2 * 0.5 + draw(1, i, 5, 2)) / 4 / ITEMS;
  near(s[CHI_EDITS_PROBE + CHI_PROBE_SAME_PICTURE].mean.value, mean);
  near(s[CHI_EDITS_UNRELATED].mean.value, unrelated);
  near(s[CHI_EDITS_CHANGE].mean.value, unrelated - 1);
  assert_true(s[CHI_EDITS_PROBE + CHI_PROBE_REVERSE].mean.n == 0);
  /* the curve: the best of the three; own effects are 0, .3, .6 */
  int best = headline(a, 7) >= headline(b, 7) ? 0 : 1;
  if (headline(c, 3) > t->stat[best * CHI_EDITS_COLUMNS].mean.value) best = 2;
  assert_true((int)t->peak.value == best && t->peak_share > 0 && t->peak_share <= 1);
  double h[3] = {headline(a, 7), headline(b, 7), headline(c, 3)}, own[3] = {0, 0.3, 0.6};
  near(t->rho_rows[0].value, chi_rank_correlation(own, h, 3));
  assert_true(isnan(t->rho[1][0].value)); /* one editor's own effects are all the same here */
  /* only what was named is tested */
  const bool only[3] = {false, false, true};
  chi_edits_table *u = NULL;
  o.compare = only, o.curve = false;
  assert_works(chi_edits_table_make(&u, row, 3, &set, &o, err));
  assert_true(isnan(u->stat[CHI_EDITS_COLUMNS].p));
  near(u->stat[2 * CHI_EDITS_COLUMNS].p_holm, u->stat[2 * CHI_EDITS_COLUMNS].p);
  /* the text says it */
  chi_str text = {0};
  assert_works(chi_edits_text(t, 200, &text, err));
  assert_non_null(strstr(text.s, "Differences to A"));
  assert_non_null(strstr(text.s, "Highest headline: "));
  chi_str_free(&text);
  chi_edits_table_free(t);
  chi_edits_table_free(u);
  chi_jlog_close(log);
  json_decref(head);
  chi_edit_set_free(&set);
}

/* ---- swaps of many clusters; ranks -------------------------------------------------------------------- */
typedef struct shift {
  const double *d;
  int n;
} shift;
static double shift_stat(const void *ud, const int32_t *times) {
  const shift *s = ud;
  double sum = 0;
  for (int i = 0; i < s->n; i++) sum += times[i] * s->d[i];
  return sum / s->n;
}

static void test_swaps(void **state) {
  (void)state;
  double d[40], p;
  for (int i = 0; i < 40; i++) d[i] = i % 2 ? 1.0 + i : -1.0 - i;
  shift s = {d, 40};
  const chi_boot_opts o = {.draws = 4000, .seed = 1};
  assert_works(chi_swap_test(&p, 40, shift_stat, &s, &o, err));
  assert_true(p > 0.5 && p <= 1);
  for (int i = 0; i < 40; i++) d[i] = 1.0 + i;
  assert_works(chi_swap_test(&p, 40, shift_stat, &s, &o, err));
  near(p, 1.0 / 4001); /* no random swap reaches it */
  s.n = 4;
  assert_works(chi_swap_test(&p, 4, shift_stat, &s, &o, err));
  near(p, 2.0 / 16); /* as it is, and all swapped */
  assert_works(chi_swap_test(&p, 1, shift_stat, &s, &o, err));
  assert_true(isnan(p));
  const double a[] = {1, 2, 2, 4}, up[] = {3, 5, 5, 9}, flat[] = {1, 1, 1, 1}, mixed[] = {2, 1, 4, 3};
  near(chi_rank_correlation(a, up, 4), 1);
  assert_true(isnan(chi_rank_correlation(a, flat, 4)));
  near(chi_rank_correlation(mixed, (const double[]){1, 2, 3, 4}, 4), 0.6);
}

/* ---- logs that are only read -------------------------------------------------------------------------- */
static void test_reading(void **state) {
  (void)state;
  char path[1024];
  chi_jlog *log = NULL, *reader = NULL;
  json_t *head = json_pack("{s:s}", "run", "x"), *seen = NULL;
  snprintf(path, sizeof path, "%s", tmp_path("log.jsonl"));
  assert_works(chi_jlog_open(&log, path, head, err));
  add(log, "A", 0, 1);
  /* while it is being written, and with a line that is not there in full */
  FILE *f = fopen(path, "a");
  assert_non_null(f);
  fputs("{\"id\":\"A|", f);
  fclose(f);
  char before[65], after[65];
  assert_works(chi_sha256_file(before, path, err));
  assert_works(chi_jlog_read(&reader, &seen, path, err));
  assert_true(json_equal(head, seen));
  assert_int_equal(json_array_size(chi_jlog_lines(reader)), 1);
  assert_non_null(chi_jlog_find(reader, "A|i1"));
  assert_works(chi_sha256_file(after, path, err));
  assert_string_equal(before, after);
  chi_jlog_close(reader);
  json_decref(seen);
  chi_jlog_close(log);
  assert_fails(chi_jlog_read(&reader, &seen, tmp_path("none.jsonl"), err), CHI_ERR_IO, "No such file");
  f = fopen(path, "w");
  assert_non_null(f);
  fputs("[1]\n", f);
  fclose(f);
  assert_fails(chi_jlog_read(&reader, &seen, path, err), CHI_ERR_FORMAT, "is no log");
  f = fopen(path, "w");
  assert_non_null(f);
  fclose(f);
  assert_fails(chi_jlog_read(&reader, &seen, path, err), CHI_ERR_FORMAT, "is no log");
  json_decref(head);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_table),
      cmocka_unit_test(test_swaps),
      cmocka_unit_test(test_reading),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

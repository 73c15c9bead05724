/* Data sets: every reader, every kind of bad row, every refused file; the CSV reader against a writer of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/dataset.h"
#include "file/csv.h"
#include "support/support.h"

static void put(const char *path, const char *text) { put_file(path, text, strlen(text)); }

static chi_dataset *open_text(const char *name, const char *text, const chi_dataset_opts *o) {
  chi_dataset *d = NULL;
  const char *path = tmp_path(name);
  put(path, text);
  assert_works(chi_dataset_open(&d, path, o, err));
  return d;
}

static int kind_of(const char *name) {
  int n;
  const chi_data_kind *k = chi_data_kinds(&n);
  for (int i = 0; i < n; i++)
    if (strcmp(k[i].name, name) == 0) return i;
  fail_msg("no kind %s", name);
  return -1;
}

/* Exactly the rows that are listed, ended by 0, have this kind of note. */
static void assert_rows(const chi_dataset *d, const char *kind, const int *rows) {
  int k = kind_of(kind), seen = 0;
  for (size_t i = 0; i < d->n_notes; i++) {
    if (d->note[i].kind != k) continue;
    if (d->note[i].row != rows[seen])
      fail_msg("%s: row %d, not %d: %s", kind, d->note[i].row, rows[seen], d->note[i].text);
    seen++;
  }
  if (rows[seen]) fail_msg("%s: row %d has no note", kind, rows[seen]);
}
#define ROWS(...) \
  (const int[]) { __VA_ARGS__, 0 }
#define NONE \
  (const int[]) { 0 }

/* ---- CSV --------------------------------------------------------------------------------------------------- */
/* Random cells, written as RFC 4180 says, come back. */
static void test_csv_round_trip(void **state) {
  (void)state;
  static const char *const kPiece[] = {"a", "\"", ",", "\n", "\r\n", " ", "\xc3\xa9", "b c", ""};
  for (uint32_t seed = 0; seed < 300; seed++) {
    chi_str s = {0};
    char cell[40][64] = {{0}};
    size_t n_cols = 2 + seed % 4, n_rows = 1 + seed % 7;
    const char *eol = seed % 2 ? "\r\n" : "\n";
    if (seed % 3 == 0) chi_str_add(&s, "\xef\xbb\xbf");
    for (size_t c = 0; c < n_cols; c++) chi_str_addf(&s, "%sh%zu", c ? "," : "", c);
    chi_str_add(&s, eol);
    for (size_t i = 0; i < n_rows * n_cols; i++) {
      uint32_t pieces = chi_rng_u32(seed, 0, (uint32_t)i, 0) % 5;
      for (uint32_t p = 0; p < pieces; p++) strcat(cell[i], kPiece[chi_rng_u32(seed, 1, (uint32_t)i, p) % 9]);
      if (i % n_cols == 0 && !*cell[i]) strcpy(cell[i], "x"); /* a row of one empty cell would be a blank line */
      if (i % n_cols) chi_str_add(&s, ",");
      bool quote = strpbrk(cell[i], "\",\r\n") || chi_rng_u32(seed, 2, (uint32_t)i, 0) % 2;
      if (quote) chi_str_add(&s, "\"");
      for (const char *p = cell[i]; *p; p++) {
        if (*p == '"') chi_str_add(&s, "\"");
        chi_str_addn(&s, p, 1);
      }
      if (quote) chi_str_add(&s, "\"");
      if ((i + 1) % n_cols == 0 && (i + 1 < n_rows * n_cols || seed % 5)) chi_str_add(&s, eol);
    }
    chi_csv_in *c = NULL;
    chi_csv_row_in row;
    bool more = true;
    assert_works(chi_csv_in_parse(&c, s.s, s.len, "test", err));
    assert_int_equal(chi_csv_in_find(c, "h1"), 1);
    for (size_t r = 0; r < n_rows; r++) {
      assert_works(chi_csv_in_next(c, &row, &more, err));
      assert_true(more);
      assert_int_equal(row.n, n_cols);
      assert_null(row.odd);
      for (size_t k = 0; k < n_cols; k++) assert_string_equal(row.cell[k], cell[r * n_cols + k]);
    }
    assert_works(chi_csv_in_next(c, &row, &more, err));
    assert_false(more);
    chi_csv_in_close(c);
    chi_str_free(&s);
  }
}

static void test_csv_lines_and_quotes(void **state) {
  (void)state;
  chi_csv_in *c = NULL;
  chi_csv_row_in row;
  bool more;
  static const char kText[] = "a,b\n\n\"x\ny\",1\nz \"q\" z,2\n\"abc\"def,3\n\r\nlast,4";
  assert_works(chi_csv_in_parse(&c, kText, sizeof kText - 1, "test", err));
  static const struct {
    int line;
    bool odd;
    const char *first;
  } want[] = {{3, false, "x\ny"}, {5, true, "z \"q\" z"}, {6, true, "abcdef"}, {8, false, "last"}};
  for (size_t i = 0; i < 4; i++) {
    assert_works(chi_csv_in_next(c, &row, &more, err));
    assert_int_equal(row.line, want[i].line);
    assert_int_equal(row.odd != NULL, want[i].odd);
    assert_string_equal(row.cell[0], want[i].first);
  }
  chi_csv_in_close(c);
}

static int all_rows(const char *text, size_t len, chi_err *err) {
  int rc = 0;
  chi_csv_in *c = NULL;
  chi_csv_row_in row;
  bool more = true;
  CHI_TRY(chi_csv_in_parse(&c, text, len, "test.csv", err));
  while (more) CHI_TRY(chi_csv_in_next(c, &row, &more, err));
out:
  chi_csv_in_close(c);
  return rc;
}

static void test_csv_refused(void **state) {
  (void)state;
  char *huge = malloc(200000);
  memset(huge, 'x', 200000);
  memcpy(huge, "a,b\n1,", 6);
  assert_fails(all_rows(huge, 200000, err), CHI_ERR_FORMAT, "line 2: a field is longer than 64 KB");
  huge[6] = '"';
  assert_fails(all_rows(huge, 200000, err), CHI_ERR_FORMAT, "is its closing quote missing?");
  memset(huge + 6, ',', 1000);
  assert_fails(all_rows(huge, 1000, err), CHI_ERR_FORMAT, "line 2 has more than 256 cells");
  free(huge);
  assert_fails(all_rows("a,b\n1,\"2\n", 9, err), CHI_ERR_FORMAT, "line 2: a quote is opened and never closed");
  assert_fails(all_rows("a,a\n", 4, err), CHI_ERR_FORMAT, "two columns are named 'a'");
  assert_fails(all_rows("", 0, err), CHI_ERR_FORMAT, "is empty");
  assert_fails(all_rows("a,b\n\0,1\n", 8, err), CHI_ERR_FORMAT, "byte 4 is NUL");
}

/* ---- our items --------------------------------------------------------------------------------------------- */
static const char kItem[] =
    "{\"id\": \"a\", \"question\": \"Which neighbour of [Peru] speaks [Portuguese]?\", \"answer\": \"Brazil\", "
    "\"group\": \"two\", \"relation\": \"neighbour\", \"entity\": \"Peru\", \"split\": \"test\", \"entity_group\": "
    "\"A\", \"constraints\": [{\"words\": \"Peru\", \"substitutes\": [{\"words\": \"Spain\", \"answer\": "
    "\"Portugal\"}, {\"words\": \"Chad\", \"answer\": null}]}, {\"words\": \"Portuguese\", \"substitutes\": "
    "[{\"words\": \"Spanish\", \"answer\": \"Chile\"}]}], \"twins\": {\"named\": {\"question\": \"[Peru]?\", "
    "\"answer\": \"yes\"}, \"blank\": null}, \"truth\": \"x\", \"hard\": true, \"alternatives\": [\"Brasil\"]}\n";

static void test_item(void **state) {
  (void)state;
  chi_dataset *d = open_text("items.jsonl", kItem, NULL);
  const chi_data_item *it = &d->item[0];
  assert_int_equal(d->format, CHI_DATA_JSONL);
  assert_int_equal(d->n, 1);
  assert_null(it->problem);
  assert_int_equal(it->ask.n_brackets, 2);
  assert_string_equal(it->ask.bracket[0].words, "Peru");
  assert_int_equal(it->ask.bracket[0].n_sub, 2);
  assert_string_equal(it->ask.bracket[0].sub[0].words, "Spain");
  assert_string_equal(it->ask.bracket[0].sub[0].answer, "Portugal");
  assert_null(it->ask.bracket[0].sub[1].answer);
  assert_string_equal(it->ask.bracket[1].sub[0].answer, "Chile");
  assert_string_equal(it->unit, "Peru|neighbour");
  assert_string_equal(it->form, "two");
  assert_string_equal(it->split, "test");
  assert_string_equal(it->truth, "x");
  assert_true(it->hard);
  assert_string_equal(it->twin[CHI_TWIN_NAMED].question, "[Peru]?");
  assert_int_equal(it->twin[CHI_TWIN_NAMED].n_brackets, 1);
  assert_null(it->twin[CHI_TWIN_BLANK].question);
  assert_true(chi_data_right(it, " brazil."));
  assert_true(chi_data_right(it, "Brasil"));
  assert_false(chi_data_right(it, "Brazilian"));
  assert_false(chi_data_right(it, ""));
  chi_dataset_close(d);
}

/* Written as our items and read again: the same, whatever it was before. */
static void test_save(void **state) {
  (void)state;
  put(tmp_path("there.png"), "x");
  chi_str both = {0};
  chi_str_add(&both, kItem);
  chi_str_add(
      &both, "{\"id\": \"b\", \"question\": \"\\\\[x\\\\] [Q]?\", \"answer\": \"a\", \"image\": \"there.png\"}\nbad\n");
  chi_dataset *d = open_text("save.jsonl", both.s, NULL), *e = NULL;
  const char *out = tmp_path("saved.jsonl"), *again = tmp_path("again.jsonl");
  assert_works(chi_dataset_save(d, NULL, out, err));
  assert_works(chi_dataset_open(&e, out, NULL, err));
  assert_int_equal(e->n, 2);
  assert_int_equal(e->n_unusable, 0);
  assert_string_equal(e->item[0].ask.bracket[1].sub[0].words, "Spanish");
  assert_string_equal(e->item[0].twin[CHI_TWIN_NAMED].answer, "yes");
  assert_string_equal(e->item[1].ask.question, "\\[x\\] [Q]?");
  assert_non_null(strstr(e->item[1].ask.image, "/there.png"));
  assert_true(e->item[0].hard);
  assert_works(chi_dataset_save(e, NULL, again, err));
  chi_dataset_close(d);
  d = e;
  assert_works(chi_dataset_open(&e, again, NULL, err));
  assert_string_equal(d->hash, e->hash);
  assert_works(chi_dataset_save(d, (const bool[]){false, true}, again, err));
  chi_dataset_close(e);
  assert_works(chi_dataset_open(&e, again, NULL, err));
  assert_int_equal(e->n, 1);
  chi_dataset_close(d);
  chi_dataset_close(e);
  chi_str_free(&both);
}

static void test_item_problems(void **state) {
  (void)state;
  chi_str s = {0};
  put(tmp_path("there.png"), "x");
  static const char *const kLine[] = {
      "{\"id\": \"1\", \"question\": \"[Q]?\", \"answer\": \"a\", \"image\": \"there.png\"}",
      "{\"id\": \"2\", \"question\": \"[Q]?\"}",
      "{\"id\": \"3\", \"question\": \"[Q?\", \"answer\": \"a\"}",
      "{\"id\": \"4\", \"question\": \"[Q]?\", \"answer\": \"a\", \"image\": \"gone.png\"}",
      "{\"id\": \"1\", \"question\": \"[Q]?\", \"answer\": \"a\"}",
      "{\"id\": \"6\", ",
      "{\"id\": \"7\", \"question\": \"[Q]?\", \"answer\": \"a\", \"constraints\": []}",
      "{\"id\": \"8\", \"question\": \"[Q]?\", \"answer\": \"a\", \"substitute\": \"R\"}",
      "{\"id\": 9, \"question\": \"[Q]?\", \"answer\": \"a\"}",
      "[\"an array\"]",
      "{\"id\": \"11\", \"question\": \"[Q]?\", \"answer\": \"a\", \"hard\": \"yes\"}",
      "{\"id\": \"12\", \"question\": \"[Q]?\", \"answer\": \"a\", \"constraints\": [{\"words\": \"other\"}]}",
      "",
      ("{\"id\": \"14\", \"question\": \"[Q]?\", \"answer\": \"a\", \"donor\": \"gone.png\", "
       "\"twins\": {\"blank\": {\"question\": \"]\"}}}"),
      "{\"id\": \"1\", \"question\": \"[Q]?\", \"answer\": \"a\"}",
  };
  for (size_t i = 0; i < sizeof kLine / sizeof *kLine; i++) chi_str_addf(&s, "%s\n", kLine[i]);
  chi_dataset *d = open_text("bad.jsonl", s.s, NULL);
  assert_int_equal(d->n, 14);
  assert_int_equal(d->n_unusable, 13);
  assert_null(d->item[0].problem);
  assert_string_equal(d->item[0].id, "1"); /* the first row keeps the id */
  assert_string_equal(d->item[4].id, "1@5");
  assert_string_equal(d->item[1].problem, "row 2, answer: is missing");
  assert_string_equal(d->item[8].id, "@9");
  assert_rows(d, "bad-field", ROWS(2, 8, 9, 11));
  assert_rows(d, "bad-bracket", ROWS(3, 7, 12, 14));
  assert_rows(d, "missing-picture", ROWS(4, 14));
  assert_rows(d, "duplicate-id", ROWS(5, 15));
  assert_rows(d, "bad-json", ROWS(6, 10));
  int first;
  assert_int_equal(chi_dataset_count(d, kind_of("bad-field"), &first), 4);
  assert_int_equal(first, 2);
  chi_dataset_close(d);
  d = open_text("bad.jsonl", s.s, &(chi_dataset_opts){.text_only = true, .limit = 4});
  assert_int_equal(d->n, 4);
  assert_null(d->item[0].ask.image);
  assert_null(d->item[3].problem);
  chi_dataset_close(d);
  chi_str_free(&s);
}

/* ---- VQA-Constraints --------------------------------------------------------------------------------------- */
static const char kKnown[] =
    ",question,subject,main_entity,image_url\n"
    "0,This tower stands in,Leaning Tower,This tower,./A photo of Leaning Tower\n"
    "1,\"This program, a product by\",MacX,\"This program,\",./A photo of MacX\n"
    "2,\"In this place, they speak\",Nauru,\"this place,\",./A photo of Nauru\n"
    "3,This operating system is made by,Tix,This operating,./A photo of Tix\n"
    "4,This person is known for singing.,Singer,This person,./A photo of Singer\n"
    "5,Element: This person lives in,Writer,This person,./A photo of Writer\n"
    "6,\"This person, called a \"\"superior\"\", is\",Prior,This person,./A photo of Prior\n"
    "7,What hat is this gentleman wearing,Gent,this hat,./A photo of Gent\n"
    "8,This caf\xc3\xa9 is in,Caf\xc3\xa9 Z,This cafe\xcc\x81,./A photo of Caf\xc3\xa9 Z\n"
    "9,This river [sic] flows to,Nile,THIS RIVER,./A photo of Nile\n"
    "10,too,few\n"
    "11,This bird\xff flies,Bird,This bird,./A photo of Bird\n"
    "12,Why is bread taste good,Bread,bread taste,./A photo of Bread\n"
    "13,This dog or this dog is a,Dog,This dog,./A photo of Dog\n"
    "0,This tower stands in,Other,This tower,./A photo of Other\n"
    "15,,Nothing,This,./A photo of Nothing\n"
    "16,This is \"odd\" here,Odd,This,./A photo of Odd\n"
    "17,this dog or this dog is a,Dog,this dog,./A photo of Dog\n"
    "18,thistles grow in,Plant,this,./A photo of Plant\n";

static void test_constraints(void **state) {
  (void)state;
  chi_dataset *d = open_text("known.csv", kKnown, &(chi_dataset_opts){.text_only = true});
  assert_int_equal(d->format, CHI_DATA_CONSTRAINTS);
  assert_string_equal(d->name, "vqa-constraints known");
  assert_int_equal(d->n, 19);
  assert_rows(d, "punctuation", ROWS(3, 4));
  assert_rows(d, "cut-short", ROWS(5));
  assert_rows(d, "not-a-question", ROWS(6, 7));
  assert_rows(d, "no-span", ROWS(9));
  assert_rows(d, "accents", ROWS(10));
  assert_rows(d, "other-case", ROWS(11));
  assert_rows(d, "brackets", ROWS(11));
  assert_rows(d, "bad-cells", ROWS(12));
  assert_rows(d, "bad-text", ROWS(13));
  assert_rows(d, "unusual-words", ROWS(14, 18, 20));
  assert_rows(d, "duplicate-id", ROWS(16));
  assert_rows(d, "bad-field", ROWS(17));
  assert_rows(d, "quoting", ROWS(18));
  assert_rows(d, "several-places", ROWS(19));
  assert_rows(d, "inside-word", ROWS(20));
  assert_string_equal(d->item[1].ask.question, "[This program], a product by");
  assert_string_equal(d->item[6].ask.question, "[This person], called a \"superior\", is");
  assert_string_equal(d->item[8].ask.question, "[This caf\xc3\xa9] is in");
  assert_string_equal(d->item[9].ask.question, "[This river] \\[sic\\] flows to");
  assert_string_equal(d->item[9].ask.bracket[0].words, "This river");
  assert_string_equal(d->item[0].id, "known-0");
  assert_string_equal(d->item[14].id, "known-0@16");
  assert_string_equal(d->item[0].entity, "Leaning Tower");
  assert_true(d->item[0].continuation);
  chi_dataset_close(d);
}

static void test_constraint_pictures(void **state) {
  (void)state;
  char path[600];
  const char *dir = tmp_path("pictures");
  static const char *const kFolder[] = {"A photo of Leaning Tower", "A photo of Cafe\xcc\x81 Z", "A photo of MacX"};
  mkdir(dir, 0700);
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", dir, kFolder[i]);
    mkdir(path, 0700);
    for (int k = 0; k < 2 - i; k++) {
      snprintf(path, sizeof path, "%s/%s/Image_%d.jpg", dir, kFolder[i], 2 - k);
      put(path, "x");
    }
  }
  chi_dataset *d = open_text("known.csv", kKnown, &(chi_dataset_opts){.images = dir, .limit = 10});
  assert_true(strstr(d->item[0].ask.image, "A photo of Leaning Tower/Image_1.jpg") != NULL);
  assert_true(strstr(d->item[8].ask.image, "Cafe\xcc\x81 Z/Image_2.jpg") != NULL); /* NFC in the CSV, NFD on the disk */
  assert_rows(d, "several-pictures", ROWS(2));
  assert_rows(d, "accents", ROWS(10, 10));
  assert_rows(d, "missing-picture", ROWS(3, 4, 5, 6, 7, 8, 9, 11)); /* row 3: a folder without pictures */
  assert_null(d->item[0].problem);
  assert_null(d->item[8].problem);
  chi_dataset_close(d);
}

static void test_constraint_answers(void **state) {
  (void)state;
  const char *json = tmp_path("known.json"), *csv = tmp_path("answers.csv"), *list = tmp_path("ok.json");
  put(json,
      "[{\"known_id\": 1, \"subject\": \"Leaning Tower\", \"prompt\": \"Leaning Tower stands in\", \"attribute\": "
      "\"Pisa\", \"relation_id\": \"P1\"}, {\"known_id\": 2, \"subject\": \"Leaning Tower\", \"prompt\": \"Leaning "
      "Tower is made of\", \"attribute\": \"marble\", \"relation_id\": \"P2\"}, {\"known_id\": 3, \"subject\": "
      "\"Cafe\xcc\x81 Z\", \"prompt\": \"Cafe\xcc\x81 Z is in\", \"attribute\": \"Rome\"}, {\"subject\": \"MacX\", "
      "\"prompt\": \"MacX is by\", \"attribute\": \"A\"}, {\"subject\": \"MacX\", \"prompt\": \"MacX was by\", "
      "\"attribute\": \"B\"}]");
  chi_dataset *d = open_text("known.csv", kKnown, &(chi_dataset_opts){.text_only = true, .answers = json, .limit = 9});
  assert_string_equal(d->item[0].ask.answer, "Pisa");
  assert_string_equal(d->item[0].unit, "Leaning Tower|P1");
  assert_string_equal(d->item[8].ask.answer, "Rome");
  assert_null(d->item[1].ask.answer);
  assert_rows(d, "ambiguous-answer", ROWS(3));
  assert_rows(d, "no-answer", ROWS(4, 5, 6, 7, 8, 9));
  assert_true(chi_data_right(&d->item[0], " Pisa, a town"));
  assert_false(chi_data_right(&d->item[0], "Pisano"));
  assert_false(chi_data_right(&d->item[1], ""));
  chi_dataset_close(d);
  put(csv, "index,answer\n0,Pisa|Tuscany|Pisa\n2,\n");
  d = open_text("known.csv", kKnown, &(chi_dataset_opts){.text_only = true, .answers = csv, .limit = 3});
  assert_string_equal(d->item[0].ask.answer, "Pisa");
  assert_int_equal(d->item[0].n_alternatives, 1);
  assert_string_equal(d->item[0].alternatives[0], "Tuscany");
  assert_null(d->item[2].ask.answer);
  chi_dataset_close(d);
  put(list,
      "[{\"question\": \"What is this thing?\", \"image\": \"val2014/COCO_1.jpg\", \"answer\": [\"cup\", \"mug\", "
      "\"mug\"]}]");
  d = open_text("ok.csv", "index,question,main_entity,image_url\n7,what is this thing?,this thing,COCO_1.jpg\n",
                &(chi_dataset_opts){.text_only = true, .answers = list});
  assert_string_equal(d->name, "vqa-constraints okvqa");
  assert_string_equal(d->item[0].ask.answer, "mug");
  assert_string_equal(d->item[0].alternatives[0], "cup");
  assert_false(d->item[0].continuation);
  chi_dataset_close(d);
  d = open_text("films.csv",
                "index,question,director,main_entity,image_url\n3,Name a movie directed by this director?,Agn\xc3\xa8s "
                "V.,this director?,./A photo of Agn\xc3\xa8s V.\n",
                &(chi_dataset_opts){.text_only = true});
  assert_string_equal(d->name, "vqa-constraints movies");
  assert_string_equal(d->item[0].id, "movies-3");
  assert_string_equal(d->item[0].entity, "Agn\xc3\xa8s V.");
  assert_string_equal(d->item[0].ask.question, "Name a movie directed by [this director]?");
  assert_null(d->item[0].problem);
  chi_dataset_close(d);
}

/* ---- known_1000 and refused files -------------------------------------------------------------------------- */
static void test_known(void **state) {
  (void)state;
  chi_dataset *d =
      open_text("k.json",
                "[{\"known_id\": 4, \"subject\": \"Mario Bros.\", \"prompt\": \"Mario Bros. is by\", "
                "\"attribute\": \"Nintendo\", \"relation_id\": \"P5\"}, {\"known_id\": 5, \"subject\": \"X\", "
                "\"prompt\": \"Y is\", \"attribute\": \"Z\"}, {\"known_id\": \"six\"}, 7]",
                NULL);
  assert_int_equal(d->format, CHI_DATA_KNOWN);
  assert_string_equal(d->item[0].ask.question, "[Mario Bros.] is by");
  assert_string_equal(d->item[0].unit, "Mario Bros.|P5");
  assert_string_equal(d->item[0].id, "known-4");
  assert_int_equal(d->n_notes ? 1 : 0, 1);
  assert_null(d->item[0].problem);
  assert_rows(d, "no-span", ROWS(2));
  assert_rows(d, "bad-field", ROWS(3, 3, 3, 3));
  assert_rows(d, "bad-json", ROWS(4));
  chi_dataset_close(d);
}

static void test_refused(void **state) {
  (void)state;
  chi_dataset *d = NULL;
  const char *p = tmp_path("r");
  assert_fails(chi_dataset_open(&d, tmp_path("nowhere"), NULL, err), CHI_ERR_IO, "no such file");
  put(p, " \n");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "is empty");
  put(p, "index,question,subject\n");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "this file has: index, question, subject");
  put(p, "question,main_entity,image_url\n");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "holds no items");
  put(p, "question,main_entity,image_url\nx,\"this\n");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "line 2: a quote is opened");
  put(p, "[{\"src\": 1}]");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "MMEdit");
  put(p, "[");
  assert_fails(chi_dataset_open(&d, p, NULL, err), CHI_ERR_FORMAT, "not valid JSON");
  put(p, kKnown);
  assert_fails(chi_dataset_open(&d, p, &(chi_dataset_opts){.answers = p}, err), CHI_ERR_FORMAT, "index and answer");
  assert_null(d);
}

/* The real files, where they are. */
static void test_real(void **state) {
  (void)state;
  chi_dataset *d = NULL;
  chi_err e = {0};
  if (chi_dataset_open(&d, "../shared/data/known/known_1000.json", NULL, &e) != 0) {
    print_message("known_1000.json is not here\n");
    skip();
  }
  assert_int_equal(d->n, 1209);
  assert_int_equal(d->n_unusable, 0);
  chi_dataset_close(d);
  assert_works(
      chi_dataset_open(&d, "../shared/data/vqa_constraints/known_sample.csv",
                       &(chi_dataset_opts){.text_only = true, .answers = "../shared/data/known/known_1000.json"}, err));
  assert_int_equal(d->n, 17);
  assert_int_equal(d->n_unusable, 2);
  assert_rows(d, "no-answer", ROWS(2));
  chi_dataset_close(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_csv_round_trip),
      cmocka_unit_test(test_csv_lines_and_quotes),
      cmocka_unit_test(test_csv_refused),
      cmocka_unit_test(test_item),
      cmocka_unit_test(test_save),
      cmocka_unit_test(test_item_problems),
      cmocka_unit_test(test_constraints),
      cmocka_unit_test(test_constraint_pictures),
      cmocka_unit_test(test_constraint_answers),
      cmocka_unit_test(test_known),
      cmocka_unit_test(test_refused),
      cmocka_unit_test(test_real),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

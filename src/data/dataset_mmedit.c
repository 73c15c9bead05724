/* MMEdit's files: records of eleven texts (E-VQA, E-IC, VLKEB), and the pools that their unrelated questions are from.
 * What is odd in the published files is kept as it is, and counted. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "data/dataset_internal.h"
#include "data/mmedit.h"
#include "text/tok.h"

enum { LONG_ANSWER = 256, MAX_PORTS = 64, FEW = 20 };
static const char kPrefix[] = "nq question: ";

const char *const chi_answer_type_name[CHI_ANSWER_TYPES] = {"yes/no", "number", "one word", "a few words", "sentence"};

static bool is_pool_nq(const json_t *j) {
  return json_is_array(json_object_get(j, "questions")) && json_is_array(json_object_get(j, "answers"));
}
static bool is_pool_okvqa(const json_t *j) {
  const json_t *o = json_array_get(j, 0);
  return json_object_get(o, "question_id") && json_object_get(o, "question") && json_object_get(o, "image") &&
         json_object_get(o, "answer");
}
static bool is_records(const json_t *j) {
  const json_t *o = json_array_get(j, 0);
  return json_object_get(o, "src") && json_object_get(o, "alt");
}
bool chii_is_mmedit(const json_t *file) { return is_pool_nq(file) || is_pool_okvqa(file) || is_records(file); }

/* ---- answers ----------------------------------------------------------------------------------------------- */
chi_answer_type chi_answer_type_of(const char *s) {
  static const char *const kNumber[] = {"zero",  "one",   "two",  "three", "four",   "five",  "six",
                                        "seven", "eight", "nine", "ten",   "eleven", "twelve"};
  char word[16];
  size_t n = strlen(s), words = 0;
  while (n && strchr(" \t\r\n.", s[n - 1])) n--;
  while (n && strchr(" \t\r\n", *s)) s++, n--;
  for (size_t i = 0; i < n; i++) words += !isspace((unsigned char)s[i]) && (i == 0 || isspace((unsigned char)s[i - 1]));
  snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : 0), s);
  if (strcasecmp(word, "yes") == 0 || strcasecmp(word, "no") == 0) return CHI_ANSWER_YES_NO;
  for (size_t i = 0; i < sizeof kNumber / sizeof *kNumber; i++)
    if (strcasecmp(word, kNumber[i]) == 0) return CHI_ANSWER_NUMBER;
  if (*word && word[strspn(word, "0123456789.,:%$")] == 0 && strpbrk(word, "0123456789")) return CHI_ANSWER_NUMBER;
  return words <= 1 ? CHI_ANSWER_WORD : words <= 4 ? CHI_ANSWER_PHRASE : CHI_ANSWER_SENTENCE;
}

bool chi_answer_same(const char *said, const char *want) {
  uint32_t a, b;
  said += strspn(said, " \t\r\n");
  want += strspn(want, " \t\r\n");
  size_t n = strcspn(said, "\n"), w = strlen(want);
  while (n && strchr(" \t\r", said[n - 1])) n--;
  while (w && strchr(" \t\r\n", want[w - 1])) w--;
  if (w && want[w - 1] == '.') w--;
  if (n && said[n - 1] == '.') n--;
  const char *end = said + n, *last = want + w;
  while (said < end && want < last) {
    said += chi_utf8_get(said, &a);
    want += chi_utf8_get(want, &b);
    if (chi_to_lower(a) != chi_to_lower(b)) return false;
  }
  return said == end && want == last;
}

/* A text as a question of dataset.h: its own brackets are text. */
static int escaped(chii_reader *r, const char **out, const char *q, chi_err *err) {
  chi_str s = {0};
  for (; *q; q++) {
    if (*q == '[' || *q == ']') chi_str_add(&s, "\\");
    chi_str_addn(&s, q, 1);
  }
  int rc = s.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for a question", r->path)
                    : chii_data_copy(r, out, s.s ? s.s : "", err);
  chi_str_free(&s);
  return rc;
}

/* ---- one record -------------------------------------------------------------------------------------------- */
static int ports(chii_reader *r, chi_data_item *it, chi_mmedit *e, const json_t *o, chi_err *err) {
  static const char kKey[] = "port_new";
  int rc = 0;
  const json_t *list = json_object_get(o, kKey);
  if (!list || json_is_null(list)) return 0;
  size_t n = json_array_size(list);
  if (!json_is_array(list) || n > MAX_PORTS)
    return chii_note(r, it, CHII_NOTE_BAD_FIELD, kKey, err, "is not a list of at most %d", MAX_PORTS);
  e->port = chi_arena_array(&r->d.arena, n ? n : 1, sizeof *e->port, err);
  CHI_TRY(e->port ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) {
    const json_t *p = json_array_get(list, i), *qa = json_object_get(p, "Q&A");
    chi_mmedit_port x = {.type = ""};
    CHI_TRY(chii_data_text(r, it, &x.type, p, "port_type", false, err));
    CHI_TRY(chii_data_text(r, it, &x.question, qa, "Question", true, err));
    CHI_TRY(chii_data_text(r, it, &x.answer, qa, "Answer", true, err));
    if (x.question && x.answer) e->port[e->n_port++] = x;
  }
out:
  return rc;
}

/* Files spell a picture's path; the record keeps that name and gets the path that opens. */
static int picture(chii_reader *r, chi_data_item *it, const char **out, const char *name, const char *field,
                   chi_err *err) {
  return *name ? chii_data_picture(r, it, out, name, field, err) : 0;
}

static bool is_ascii(const char *s) {
  for (; *s; s++)
    if ((unsigned char)*s > 127) return false;
  return true;
}

/* ".../123_COCO_x.png" or ".../COCO_x.png" for ".../COCO_x.jpg". */
static bool named_after(const char *rephrased, const char *name) {
  const char *a = strrchr(rephrased, '/'), *b = strrchr(name, '/'), *dot;
  a = a ? a + 1 : rephrased;
  b = b ? b + 1 : name;
  dot = strrchr(b, '.');
  size_t n = dot ? (size_t)(dot - b) : strlen(b), digits = strspn(a, "0123456789");
  if (digits && a[digits] == '_' && strncmp(a, b, n) != 0) a += digits + 1;
  return strncmp(a, b, n) == 0 && (a[n] == '.' || a[n] == 0);
}

static int odd_texts(chii_reader *r, chi_data_item *it, const chi_mmedit *e, const char *rephrased, chi_err *err) {
  int rc = 0;
  const struct {
    const char *name, *text;
  } all[] = {{"src", e->src},         {"alt", e->alt},         {"rephrase", e->rephrase}, {"loc", e->loc},
             {"loc_ans", e->loc_ans}, {"m_loc_q", e->m_loc_q}, {"m_loc_a", e->m_loc_a}};
  size_t n = strlen(e->alt);
  if (n && (strchr(" \t\r\n", e->alt[0]) || strchr(" \t\r\n", e->alt[n - 1])))
    CHI_TRY(chii_note(r, it, CHII_NOTE_STRAY, "alt", err, "'%.200s'", e->alt));
  if (*e->pred && *e->alt) {
    size_t p = strlen(e->pred);
    if (p == n && strcasecmp(e->pred, e->alt) == 0)
      CHI_TRY(chii_note(r, it, CHII_NOTE_ALREADY, "pred", err, "'%.200s' is also the new answer", e->pred));
  }
  if (*e->src && strcmp(e->src, e->rephrase) == 0)
    CHI_TRY(chii_note(r, it, CHII_NOTE_SAME_WORDS, "rephrase", err, "'%.200s'", e->rephrase));
  if (strlen(e->loc_ans) > LONG_ANSWER)
    CHI_TRY(chii_note(r, it, CHII_NOTE_LONG, "loc_ans", err, "has %zu bytes", strlen(e->loc_ans)));
  if (*rephrased && *e->image_name && !named_after(rephrased, e->image_name))
    CHI_TRY(
        chii_note(r, it, CHII_NOTE_ODD_NAME, "image_rephrase", err, "'%.100s' for '%.100s'", rephrased, e->image_name));
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    size_t len = strlen(all[i].text);
    const char *feed = strchr(all[i].text, '\n');
    while (len && strchr("\r\n", all[i].text[len - 1])) len--;
    if (feed && (size_t)(feed - all[i].text) < len)
      CHI_TRY(chii_note(r, it, CHII_NOTE_FEEDS, all[i].name, err, "'%.200s'", all[i].text));
    if (!is_ascii(all[i].text))
      CHI_TRY(chii_note(r, it, CHII_NOTE_BEYOND_ASCII, all[i].name, err, "'%.200s'", all[i].text));
  }
out:
  return rc;
}

static int read_record(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0;
  char id[32];
  chi_str unit = {0};
  const char *rephrased = "", *local = "";
  chi_mmedit *e = chi_arena_alloc(&r->d.arena, sizeof *e, err);
  if (!e) return CHI_ERR_MEMORY;
  *e = (chi_mmedit){.src = "", .alt = "", .pred = "", .rephrase = "", .image_name = "", .loc = "", .loc_ans = ""};
  e->m_loc_q = e->m_loc_a = "";
  const struct {
    const char *key, **out;
    bool need, odd; /* odd: that it is empty is worth a note */
  } field[] = {{"src", &e->src, true, false},           {"alt", &e->alt, true, false},
               {"image", &e->image_name, true, false},  {"pred", &e->pred, false, false},
               {"rephrase", &e->rephrase, false, true}, {"image_rephrase", &rephrased, false, true},
               {"loc", &e->loc, false, true},           {"loc_ans", &e->loc_ans, false, true},
               {"m_loc", &local, false, true},          {"m_loc_q", &e->m_loc_q, false, true},
               {"m_loc_a", &e->m_loc_a, false, true}};
  snprintf(id, sizeof id, "row-%d", it->row);
  CHI_TRY(chii_data_copy(r, &it->id, id, err));
  for (size_t k = 0; k < sizeof field / sizeof *field; k++) {
    CHI_TRY(chii_data_text(r, it, field[k].out, o, field[k].key, field[k].need, err));
    if (field[k].odd && !**field[k].out) CHI_TRY(chii_note(r, it, CHII_NOTE_EMPTY, field[k].key, err, "is empty"));
  }
  if (*e->alt && !e->alt[strspn(e->alt, " \t\r\n")])
    CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, "alt", err, "holds blanks alone"));
  CHI_TRY(ports(r, it, e, o, err));
  CHI_TRY(odd_texts(r, it, e, rephrased, err));
  CHI_TRY(picture(r, it, &e->image, e->image_name, "image", err));
  CHI_TRY(picture(r, it, &e->image_rephrase, rephrased, "image_rephrase", err));
  CHI_TRY(picture(r, it, &e->m_loc, local, "m_loc", err));
  CHI_TRY(escaped(r, &it->ask.question, e->src, err));
  it->ask.image = e->image;
  it->ask.answer = e->alt;
  it->entity = e->image_name;
  it->group = chi_answer_type_name[chi_answer_type_of(e->alt)];
  chi_str_addf(&unit, "%s|%s", e->image_name, e->src);
  CHI_TRY(unit.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path) : 0);
  CHI_TRY(chii_data_copy(r, &it->unit, unit.s, err));
  it->mmedit = e;
out:
  chi_str_free(&unit);
  return rc;
}

/* ---- all records ------------------------------------------------------------------------------------------- */
/* Adds key -> i where it is new; *was = the number that it had, -1 where it is new. */
static int seen(json_t *map, const char *key, int64_t i, int64_t *was, chi_err *err) {
  const json_t *v = json_object_get(map, key);
  *was = v ? json_integer_value(v) : -1;
  if (v) return 0;
  return json_object_set_new(map, key, json_integer(i)) ? chi_fail(err, CHI_ERR_MEMORY, "no memory for an index") : 0;
}

static bool begins(const char *s) { return strncmp(s, kPrefix, sizeof kPrefix - 1) == 0; }
static bool ends_marked(const char *s) { return *s && s[strlen(s) - 1] == '?'; }

/* What only shows in all records together. */
static int compare_rows(chii_reader *r, bool *caption, chi_err *err) {
  int rc = 0;
  int64_t was, prefixed = 0, marked = 0, n = 0, different = 0;
  json_t *units = json_object(), *locals = json_object();
  CHI_TRY(units && locals ? 0 : chi_fail(err, CHI_ERR_MEMORY, "no memory for an index"));
  *caption = r->d.n > 1;
  for (size_t i = 0; i < r->d.n; i++) {
    chi_data_item *it = &r->d.item[i];
    const chi_mmedit *e = it->mmedit;
    if (!e) continue;
    n++;
    if (strcmp(e->src, r->d.item[0].mmedit ? r->d.item[0].mmedit->src : "") != 0) *caption = false;
    prefixed += begins(e->loc);
    marked += ends_marked(e->loc);
    CHI_TRY(seen(units, it->unit, it->row, &was, err));
    if (was >= 0)
      CHI_TRY(chii_note(r, it, CHII_NOTE_REPEATED, "src", err, "'%.150s' stands on row %d already", e->src, (int)was));
    CHI_TRY(seen(locals, e->loc, it->row, &was, err));
    different += was < 0;
  }
  for (size_t i = 0; i < r->d.n; i++) {
    chi_data_item *it = &r->d.item[i];
    if (!it->mmedit || !*it->mmedit->loc) continue;
    if (prefixed && !begins(it->mmedit->loc))
      CHI_TRY(chii_note(r, it, CHII_NOTE_NO_PREFIX, "loc", err, "'%.150s'", it->mmedit->loc));
    if (marked < n && ends_marked(it->mmedit->loc))
      CHI_TRY(chii_note(r, it, CHII_NOTE_MARKED, "loc", err, "'%.150s'", it->mmedit->loc));
  }
  if (n >= FEW && different < n / 10)
    CHI_TRY(chii_note(r, &r->d.item[0], CHII_NOTE_FEW_LOCAL, "loc", err, "%lld different ones in %lld rows",
                      (long long)different, (long long)n));
out:
  json_decref(units);
  json_decref(locals);
  return rc;
}

/* ---- beside other files ------------------------------------------------------------------------------------ */
static const char *text_of(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* Rows of this file whose picture, text question or picture of the unrelated question the other file has; each of these
 * is noted on its first row, so that the count is one of pictures and questions. */
static int against_records(chii_reader *r, const json_t *list, const json_t *other, const char *path, chi_err *err) {
  static const struct {
    const char *key;
    int kind;
  } kField[] = {{"image", CHII_NOTE_SHARED}, {"m_loc", CHII_NOTE_SHARED_LOCAL}, {"loc", CHII_NOTE_SHARED_LOCAL}};
  int rc = 0;
  int64_t was;
  for (size_t k = 0; k < sizeof kField / sizeof *kField; k++) {
    json_t *theirs = json_object(), *done = json_object();
    for (size_t i = 0; rc == 0 && i < json_array_size(other); i++)
      rc = seen(theirs, text_of(json_array_get(other, i), kField[k].key), (int64_t)i + 1, &was, err);
    for (size_t i = 0; rc == 0 && i < r->d.n; i++) {
      const char *name = text_of(json_array_get(list, i), kField[k].key);
      const json_t *at = json_object_get(theirs, name);
      if (!*name || !at) continue;
      rc = seen(done, name, (int64_t)i, &was, err);
      if (rc == 0 && was < 0)
        rc = chii_note(r, &r->d.item[i], kField[k].kind, kField[k].key, err, "'%.150s' is on row %lld of %.60s", name,
                       (long long)json_integer_value(at), base_name(path));
    }
    json_decref(theirs);
    json_decref(done);
  }
  return rc;
}

/* How often the most frequent of a list's texts occurs, and how often `what` does. */
static void count_answers(const json_t *list, const char *what, int *most, int *own) {
  *most = *own = 0;
  for (size_t i = 0; i < json_array_size(list) && i < 64; i++) {
    const char *a = json_string_value(json_array_get(list, i));
    int n = 0;
    for (size_t k = 0; a && *a && k < json_array_size(list) && k < 64; k++)
      n += chi_streq(json_string_value(json_array_get(list, k)), a);
    if (n > *most) *most = n;
    if (a && strcmp(a, what) == 0) *own = n;
  }
}

static int against_pool(chii_reader *r, const json_t *pool, bool nq, const char *path, chi_err *err) {
  int rc = 0;
  const char *field = nq ? "loc" : "m_loc";
  const json_t *questions = nq ? json_object_get(pool, "questions") : pool;
  int64_t was;
  json_t *index = json_object();
  chi_str key = {0};
  for (size_t i = 0; i < json_array_size(questions); i++) {
    const json_t *q = json_array_get(questions, i);
    key.len = 0;
    chi_str_addf(&key, "%s", nq ? (json_string_value(q) ? json_string_value(q) : "") : text_of(q, "question"));
    if (!nq) chi_str_addf(&key, "|%s", text_of(q, "image"));
    CHI_TRY(key.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for an index") : 0);
    CHI_TRY(seen(index, key.s, (int64_t)i, &was, err));
  }
  for (size_t i = 0; i < r->d.n; i++) {
    chi_data_item *it = &r->d.item[i];
    const chi_mmedit *e = it->mmedit;
    int most = 1, own = 1;
    if (!e) continue;
    key.len = 0;
    chi_str_add(&key, nq ? e->loc : e->m_loc_q);
    if (!nq) chi_str_addf(&key, "|%s", text_of(json_array_get(r->file, i), "m_loc"));
    CHI_TRY(key.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for an index") : 0);
    const json_t *at = json_object_get(index, key.s ? key.s : "");
    size_t k = at ? (size_t)json_integer_value(at) : 0;
    if (at && !nq)
      count_answers(json_object_get(json_array_get(pool, k), "answer"), e->m_loc_a, &most, &own);
    else if (at)
      own = chi_streq(json_string_value(json_array_get(json_object_get(pool, "answers"), k)), e->loc_ans);
    if (!at || !own)
      CHI_TRY(chii_note(r, it, CHII_NOTE_NO_ANNOTATOR, field, err, "%s is not in %.60s", at ? "the answer" : "it",
                        base_name(path)));
    else if (own < most)
      CHI_TRY(chii_note(r, it, CHII_NOTE_MINORITY, "m_loc_a", err, "'%.100s': %d of its answers, another has %d",
                        e->m_loc_a, own, most));
    if (at && k + 1 != (size_t)it->row)
      CHI_TRY(chii_note(r, it, CHII_NOTE_OFF_POOL, field, err, "is entry %zu of %.60s", k + 1, base_name(path)));
  }
out:
  chi_str_free(&key);
  json_decref(index);
  return rc;
}

static int beside(chii_reader *r, const char *path, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  CHI_TRY(chi_json_load(&j, path, CHII_MAX_FILE, err));
  if (is_pool_nq(j) || is_pool_okvqa(j))
    rc = against_pool(r, j, is_pool_nq(j), path, err);
  else if (is_records(j))
    rc = against_records(r, r->file, j, path, err);
  else
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: is no file of MMEdit (records, nq_validation, okvqa_loc)", path);
out:
  json_decref(j);
  return rc;
}

/* ---- pools as data sets of their own ----------------------------------------------------------------------- */
static int read_nq(chii_reader *r, const json_t *j, chi_err *err) {
  int rc = 0;
  char id[32];
  const json_t *q = json_object_get(j, "questions"), *a = json_object_get(j, "answers");
  chi_data_item *it;
  r->d.format = CHI_DATA_NQ;
  r->d.name = "mmedit pool nq";
  if (json_array_size(q) != json_array_size(a))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: has %zu questions and %zu answers", r->path, json_array_size(q),
                    json_array_size(a));
  for (size_t i = 0; i < json_array_size(q); i++) {
    const char *text = json_string_value(json_array_get(q, i)), *answer = json_string_value(json_array_get(a, i));
    CHI_TRY(chii_item(r, &it, (int)i + 1, err));
    if (!it) break;
    snprintf(id, sizeof id, "nq-%zu", i + 1);
    CHI_TRY(chii_data_copy(r, &it->id, id, err));
    if (!text || !*text || !answer || !*answer) {
      CHI_TRY(
          chii_note(r, it, CHII_NOTE_BAD_FIELD, text && *text ? "answers" : "questions", err, "is not text, or empty"));
      continue;
    }
    if (!is_ascii(text)) CHI_TRY(chii_note(r, it, CHII_NOTE_BEYOND_ASCII, "questions", err, "'%.200s'", text));
    if (!is_ascii(answer)) CHI_TRY(chii_note(r, it, CHII_NOTE_BEYOND_ASCII, "answers", err, "'%.200s'", answer));
    if (!begins(text)) CHI_TRY(chii_note(r, it, CHII_NOTE_NO_PREFIX, "questions", err, "'%.200s'", text));
    if (strlen(answer) > LONG_ANSWER)
      CHI_TRY(chii_note(r, it, CHII_NOTE_LONG, "answers", err, "has %zu bytes", strlen(answer)));
    CHI_TRY(escaped(r, &it->ask.question, text, err));
    CHI_TRY(chii_data_copy(r, &it->ask.answer, answer, err));
  }
out:
  return rc;
}

static int read_okvqa_row(chii_reader *r, chi_data_item *it, const json_t *o, chi_err *err) {
  int rc = 0, most = 0, own, best = -1;
  char id[40];
  const char *question = NULL, *name = NULL;
  const json_t *number = json_object_get(o, "question_id"), *list = json_object_get(o, "answer");
  size_t n = json_array_size(list);
  if (!json_is_integer(number)) return chii_note(r, it, CHII_NOTE_BAD_FIELD, "question_id", err, "is not a number");
  snprintf(id, sizeof id, "okvqa-%lld", (long long)json_integer_value(number));
  CHI_TRY(chii_data_copy(r, &it->id, id, err));
  CHI_TRY(chii_data_text(r, it, &question, o, "question", true, err));
  CHI_TRY(chii_data_text(r, it, &name, o, "image", true, err));
  for (size_t i = 0; i < n && i < 64; i++) {
    const char *a = json_string_value(json_array_get(list, i));
    if (!a) return chii_note(r, it, CHII_NOTE_BAD_FIELD, "answer", err, "is not a list of texts");
    if (!*a) CHI_TRY(chii_note(r, it, CHII_NOTE_EMPTY, "answer", err, "the %zu. of its answers is empty", i + 1));
    count_answers(list, a, &most, &own);
    if (*a && own == most && best < 0) best = (int)i;
  }
  if (best < 0) return chii_note(r, it, CHII_NOTE_BAD_FIELD, "answer", err, "is not a list of texts");
  CHI_TRY(chii_data_copy(r, &it->ask.answer, json_string_value(json_array_get(list, (size_t)best)), err));
  it->alternatives = chi_arena_array(&r->d.arena, n, sizeof *it->alternatives, err);
  CHI_TRY(it->alternatives ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n && i < 64; i++) {
    const char *a = json_string_value(json_array_get(list, i));
    bool known = !*a || strcmp(a, it->ask.answer) == 0;
    for (int k = 0; k < it->n_alternatives; k++) known = known || strcmp(a, it->alternatives[k]) == 0;
    if (!known) CHI_TRY(chii_data_copy(r, &it->alternatives[it->n_alternatives++], a, err));
  }
  if (question) CHI_TRY(escaped(r, &it->ask.question, question, err));
  if (name) CHI_TRY(picture(r, it, &it->ask.image, name, "image", err));
out:
  return rc;
}

/* ---- the file ---------------------------------------------------------------------------------------------- */
int chii_read_mmedit(chii_reader *r, const json_t *file, chi_err *err) {
  int rc = 0;
  bool caption = false, pool = is_pool_okvqa(file);
  chi_data_item *it;
  if (is_pool_nq(file)) return read_nq(r, file, err);
  r->d.format = pool ? CHI_DATA_OKVQA : CHI_DATA_MMEDIT;
  r->d.name = pool ? "mmedit pool okvqa" : "mmedit vqa";
  r->file = file;
  for (size_t i = 0; i < json_array_size(file); i++) {
    const json_t *o = json_array_get(file, i);
    CHI_TRY(chii_item(r, &it, (int)i + 1, err));
    if (!it) break;
    if (!json_is_object(o))
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_JSON, "", err, "not an object"));
    else
      CHI_TRY(pool ? read_okvqa_row(r, it, o, err) : read_record(r, it, o, err));
  }
  if (pool) goto out;
  CHI_TRY(compare_rows(r, &caption, err));
  if (caption) r->d.name = "mmedit caption";
  for (int k = 0; k < r->o.n_against; k++) CHI_TRY(beside(r, r->o.against[k], err));
out:
  r->file = NULL;
  return rc;
}

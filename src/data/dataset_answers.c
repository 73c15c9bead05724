/* Answers for data sets that have none, found by subject, by question and picture, or by index. */
#include "data/dataset_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/csv.h"
#include "text/tok.h"

static int by_key(const void *a, const void *b) {
  const chii_answer *x = a, *y = b;
  int c = strcmp(x->key, y->key);
  if (c == 0) c = strcmp(x->prompt ? x->prompt : "", y->prompt ? y->prompt : "");
  return c ? c : strcmp(x->answer, y->answer);
}

void chii_answers_free(chii_answers *a) {
  chi_free(a->a);
  chi_arena_free(&a->arena);
  *a = (chii_answers){0};
}

const chii_answer *chii_answers_find(const chii_answers *a, const char *key, size_t *n) {
  size_t lo = 0, hi = a->n;
  while (lo < hi) {
    size_t mid = lo + (hi - lo) / 2;
    if (strcmp(a->a[mid].key, key) < 0)
      lo = mid + 1;
    else
      hi = mid;
  }
  *n = 0;
  while (lo + *n < a->n && strcmp(a->a[lo + *n].key, key) == 0) ++*n;
  return *n ? &a->a[lo] : NULL;
}

void chii_answer_key(chi_str *out, const char *question, const char *image) {
  const char *base = strrchr(image, '/');
  chi_str_add(out, "q ");
  for (const char *s = question; *s; s++) {
    char c = *s >= 'A' && *s <= 'Z' ? (char)(*s - 'A' + 'a') : *s;
    if (!strchr(" \t?", c)) chi_str_addn(out, &c, 1);
  }
  chi_str_add(out, "|");
  chi_str_add(out, base ? base + 1 : image);
}

static int add(chii_answers *a, chii_answer **out, const char *key, chi_err *err) {
  void *p = a->a;
  int rc = chi_grow(&p, &a->cap, a->n + 1, sizeof *a->a, err);
  a->a = p;
  if (rc) return rc;
  *out = &a->a[a->n];
  **out = (chii_answer){.key = chi_arena_strdup(&a->arena, key, err)};
  if (!(*out)->key) return CHI_ERR_MEMORY;
  a->n++;
  return 0;
}

static int copy(chii_answers *a, const char **out, const char *s, chi_err *err) {
  *out = s ? chi_arena_strdup(&a->arena, s, err) : NULL;
  return s && !*out ? CHI_ERR_MEMORY : 0;
}

/* The most frequent of a list of answers (the first of equals) and the others, each once. */
static int majority(chii_answers *a, chii_answer *x, const char **v, size_t n, chi_err *err) {
  int rc = 0;
  size_t best = 0, most = 0;
  for (size_t i = 0; i < n; i++) {
    size_t k = 0;
    for (size_t j = 0; j < n; j++) k += strcmp(v[i], v[j]) == 0;
    if (k > most) {
      most = k;
      best = i;
    }
  }
  CHI_TRY(copy(a, &x->answer, v[best], err));
  x->alternatives = chi_arena_array(&a->arena, n, sizeof *x->alternatives, err);
  CHI_TRY(x->alternatives ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < n; i++) {
    bool seen = strcmp(v[i], v[best]) == 0;
    for (size_t j = 0; j < i && !seen; j++) seen = strcmp(v[i], v[j]) == 0;
    if (!seen) CHI_TRY(copy(a, &x->alternatives[x->n_alternatives++], v[i], err));
  }
out:
  return rc;
}

enum { kMaxAnswers = 64 };

/* {"question", "image"?, "answer": text or list}; {"subject", "attribute", "prompt", "relation_id"} */
static int from_json(chii_answers *a, const json_t *o, const char *path, size_t row, chi_err *err) {
  int rc = 0;
  chi_str key = {0};
  chii_answer *x;
  const char *v[kMaxAnswers];
  size_t n = 0;
  const char *subject = json_string_value(json_object_get(o, "subject")),
             *question = json_string_value(json_object_get(o, "question")),
             *image = json_string_value(json_object_get(o, "image"));
  const json_t *answer = json_object_get(o, subject ? "attribute" : "answer");
  if (json_is_string(answer)) v[n++] = json_string_value(answer);
  for (size_t i = 0; json_is_array(answer) && i < json_array_size(answer) && n < kMaxAnswers; i++)
    if (json_is_string(json_array_get(answer, i))) v[n++] = json_string_value(json_array_get(answer, i));
  if ((!subject && !question) || n == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT,
                  "%s: row %zu: answers need subject and attribute (known_1000), or question and answer", path, row);
    goto out;
  }
  if (subject) {
    char *nfc = chii_nfc(subject);
    chi_str_addf(&key, "s %s", nfc ? nfc : "");
    free(nfc);
  } else {
    chii_answer_key(&key, question, image ? image : "");
  }
  CHI_TRY(key.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", path) : 0);
  CHI_TRY(add(a, &x, key.s, err));
  CHI_TRY(copy(a, &x->prompt, json_string_value(json_object_get(o, "prompt")), err));
  CHI_TRY(copy(a, &x->relation, json_string_value(json_object_get(o, "relation_id")), err));
  CHI_TRY(majority(a, x, v, n, err));
out:
  chi_str_free(&key);
  return rc;
}

/* index, answer with '|' between alternatives; the first is the answer. */
static int from_csv(chii_answers *a, const char *path, chi_err *err) {
  int rc = 0;
  bool more;
  chi_csv_in *c = NULL;
  chi_csv_row_in row;
  chi_str key = {0};
  CHI_TRY(chi_csv_in_open(&c, path, CHII_MAX_FILE, err));
  int index = chi_csv_in_find(c, "index"), answer = chi_csv_in_find(c, "answer");
  if (index < 0 || answer < 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: answers in CSV have the columns index and answer; this file has: %.200s",
                  path, chi_csv_in_columns(c));
    goto out;
  }
  for (;;) {
    chii_answer *x;
    const char *v[kMaxAnswers];
    size_t n = 0;
    CHI_TRY(chi_csv_in_next(c, &row, &more, err));
    if (!more) break;
    if (row.n != chi_csv_in_n_columns(c)) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: line %d has %zu cells where the header has %zu", path, row.line, row.n,
                    chi_csv_in_n_columns(c));
      goto out;
    }
    const char *cells[2] = {row.cell[index], row.cell[answer]};
    for (int k = 0; k < 2; k++)
      if (chi_utf8_valid(cells[k], strlen(cells[k])) != strlen(cells[k])) {
        rc = chi_fail(err, CHI_ERR_FORMAT, "%s: line %d is not valid UTF-8", path, row.line);
        goto out;
      }
    char *text = chi_arena_strdup(&a->arena, cells[1], err), *save = NULL;
    CHI_TRY(text ? 0 : CHI_ERR_MEMORY);
    for (char *s = strtok_r(text, "|", &save); s && n < kMaxAnswers; s = strtok_r(NULL, "|", &save)) v[n++] = s;
    if (n == 0) continue;
    key.len = 0;
    chi_str_addf(&key, "i %s", cells[0]);
    CHI_TRY(key.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", path) : 0);
    CHI_TRY(add(a, &x, key.s, err));
    CHI_TRY(majority(a, x, v, n, err));
  }
out:
  chi_str_free(&key);
  chi_csv_in_close(c);
  return rc;
}

int chii_answers_load(chii_answers *out, const char *path, chi_err *err) {
  int rc = 0;
  json_t *list = NULL;
  size_t n = strlen(path);
  *out = (chii_answers){0};
  if (n > 5 && strcmp(path + n - 5, ".json") == 0) {
    CHI_TRY(chi_json_load(&list, path, CHII_MAX_FILE, err));
    if (!json_is_array(list)) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: answers are a list of objects, or a .csv with index and answer", path);
      goto out;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
      CHI_TRY(from_json(out, json_array_get(list, i), path, i + 1, err));
  } else {
    CHI_TRY(from_csv(out, path, err));
  }
  if (out->n == 0)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: holds no answers", path);
  else
    qsort(out->a, out->n, sizeof *out->a, by_key);
out:
  json_decref(list);
  if (rc) chii_answers_free(out);
  return rc;
}

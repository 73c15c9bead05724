/* The CSV files of VQA-Constraints: Known (subject), Movies (director) and OK-VQA (neither). They name the constraint
 * of each question and no answer; answers come from the sets that the questions were made of. */
#include "data/dataset_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/csv.h"
#include "text/tok.h"

enum { kIndex, kQuestion, kSubject, kDirector, kEntity, kImage, kColumns };
static const char *const kName[kColumns] = {"index", "question", "subject", "director", "main_entity", "image_url"};

static int columns(int at[kColumns], chii_reader *r, const chi_csv_in *c, chi_err *err) {
  for (int k = 0; k < kColumns; k++) at[k] = chi_csv_in_find(c, kName[k]);
  if (at[kIndex] < 0) at[kIndex] = chi_csv_in_find(c, ""); /* as pandas writes it */
  if (at[kQuestion] < 0 || at[kEntity] < 0 || at[kImage] < 0)
    return chi_fail(err, CHI_ERR_FORMAT,
                    "%s: VQA-Constraints has the columns question, main_entity and image_url; this file has: %.200s",
                    r->path, chi_csv_in_columns(c));
  if (at[kSubject] >= 0 && at[kDirector] >= 0)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: has both a subject (Known) and a director (Movies) column", r->path);
  r->d.name = at[kSubject] >= 0    ? "vqa-constraints known"
              : at[kDirector] >= 0 ? "vqa-constraints movies"
                                   : "vqa-constraints okvqa";
  return 0;
}

/* Bytes that both texts end in. */
static size_t common_end(const char *a, const char *b) {
  size_t n = strlen(a), m = strlen(b), k = 0;
  while (k < n && k < m && a[n - 1 - k] == b[m - 1 - k]) k++;
  return k;
}

static int take(chii_reader *r, chi_data_item *it, const chii_answer *a, chi_err *err) {
  int rc = 0;
  CHI_TRY(chii_data_copy(r, &it->ask.answer, a->answer, err));
  if (a->relation && !*it->relation) CHI_TRY(chii_data_copy(r, &it->relation, a->relation, err));
  if (a->n_alternatives == 0) goto out;
  it->alternatives = chi_arena_array(&r->d.arena, (size_t)a->n_alternatives, sizeof *it->alternatives, err);
  CHI_TRY(it->alternatives ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < a->n_alternatives; k++) CHI_TRY(chii_data_copy(r, &it->alternatives[k], a->alternatives[k], err));
  it->n_alternatives = a->n_alternatives;
out:
  return rc;
}

/* Of the facts about one subject, the one whose prompt ends as the question does. */
static const chii_answer *by_prompt(const chii_answer *a, size_t n, const char *question, bool *ambiguous) {
  const chii_answer *best = NULL;
  size_t most = 0;
  *ambiguous = false;
  for (size_t i = 0; i < n; i++) {
    size_t k = a[i].prompt ? common_end(a[i].prompt, question) : 0;
    *ambiguous = best && k == most ? !chi_streq(best->answer, a[i].answer) || *ambiguous : *ambiguous;
    if (best && k <= most) continue;
    best = &a[i];
    most = k;
    *ambiguous = false;
  }
  return best;
}

static int join_answer(chii_reader *r, chi_data_item *it, const chii_answers *ans, const char *question,
                       const char *image, const char *index, chi_err *err) {
  int rc = 0;
  size_t n = 0;
  bool ambiguous = false;
  chi_str key = {0};
  const chii_answer *a = NULL;
  if (*index) {
    chi_str_addf(&key, "i %s", index);
    if (!key.failed) a = chii_answers_find(ans, key.s, &n);
  }
  if (!a && *it->entity) {
    char *nfc = chii_nfc(it->entity);
    key.len = 0;
    chi_str_addf(&key, "s %s", nfc ? nfc : "");
    free(nfc);
    if (!key.failed) a = chii_answers_find(ans, key.s, &n);
  }
  if (!a) {
    key.len = 0;
    chii_answer_key(&key, question, image);
    if (!key.failed) a = chii_answers_find(ans, key.s, &n);
  }
  CHI_TRY(key.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path) : 0);
  if (a) a = by_prompt(a, n, question, &ambiguous);
  if (ambiguous)
    rc = chii_note(r, it, CHII_NOTE_AMBIGUOUS, "", err, "%zu facts fit; '%.80s' is one answer", n, a->answer);
  else
    rc = a ? take(r, it, a, err) : chii_note(r, it, CHII_NOTE_NO_ANSWER, "", err, "none in the answers' file");
out:
  chi_str_free(&key);
  return rc;
}

/* "Element: ..." and a sentence that ends in a full stop are remarks about the question, not questions. */
static int is_question(chii_reader *r, chi_data_item *it, const char *q, chi_err *err) {
  size_t n = strlen(q), word = strcspn(q, " :");
  while (n && strchr(" \t\r\n", q[n - 1])) n--;
  if (n && q[n - 1] == '.')
    return chii_note(r, it, CHII_NOTE_STATEMENT, "question", err, "ends in a full stop: nothing is asked");
  if (q[word] == ':' && q[word + 1] == ' ')
    return chii_note(r, it, CHII_NOTE_STATEMENT, "question", err, "begins with the remark '%.*s:'",
                     (int)(word < 40 ? word : 40), q);
  return 0;
}

static int read_row(chii_reader *r, chi_data_item *it, const int at[kColumns], const chi_csv_row_in *row,
                    const chii_answers *ans, chi_err *err) {
  int rc = 0;
  char id[600];
  const char *v[kColumns], *kind = r->d.name + strlen("vqa-constraints ");
  for (int k = 0; k < kColumns; k++) {
    v[k] = at[k] >= 0 ? row->cell[at[k]] : "";
    size_t n = strlen(v[k]);
    if (chi_utf8_valid(v[k], n) == n) continue;
    CHI_TRY(
        chii_note(r, it, CHII_NOTE_BAD_TEXT, kName[k], err, "is not valid UTF-8 at byte %zu", chi_utf8_valid(v[k], n)));
    goto out;
  }
  if (*v[kIndex])
    snprintf(id, sizeof id, "%s-%.500s", kind, v[kIndex]);
  else
    snprintf(id, sizeof id, "%s-row%d", kind, it->row);
  CHI_TRY(chii_data_copy(r, &it->id, id, err));
  it->group = it->form = kind;
  it->continuation = at[kSubject] >= 0; /* "This building is located in" */
  const char *entity = at[kSubject] >= 0 ? v[kSubject] : at[kDirector] >= 0 ? v[kDirector] : v[kImage];
  CHI_TRY(chii_data_copy(r, &it->entity, entity, err));
  for (int k = kQuestion; k < kColumns; k++)
    if (at[k] >= 0 && !*v[k]) CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_FIELD, kName[k], err, "is empty"));
  if (*v[kQuestion] && *v[kEntity]) {
    if (it->continuation) CHI_TRY(is_question(r, it, v[kQuestion], err));
    CHI_TRY(chii_find_constraint(r, it, &it->ask, v[kQuestion], v[kEntity], "main_entity", true, err));
  }
  if (*v[kImage]) CHI_TRY(chii_data_picture(r, it, &it->ask.image, v[kImage], "image_url", err));
  if (ans->n)
    CHI_TRY(join_answer(r, it, ans, v[kQuestion], v[kImage], v[kIndex], err));
  else
    CHI_TRY(chii_note(r, it, CHII_NOTE_NO_ANSWER, "", err, "the file has no answers"));
out:
  return rc;
}

int chii_read_constraints(chii_reader *r, const char *text, size_t len, chi_err *err) {
  int rc = 0, at[kColumns];
  bool more;
  chi_csv_in *c = NULL;
  chi_csv_row_in row;
  chi_data_item *it;
  chii_answers ans = {0};
  CHI_TRY(chi_csv_in_parse(&c, text, len, r->path, err));
  CHI_TRY(columns(at, r, c, err));
  if (r->o.answers) CHI_TRY(chii_answers_load(&ans, r->o.answers, err));
  for (;;) {
    CHI_TRY(chi_csv_in_next(c, &row, &more, err));
    if (!more) break;
    CHI_TRY(chii_item(r, &it, row.line, err));
    if (!it) break;
    if (row.odd) CHI_TRY(chii_note(r, it, CHII_NOTE_QUOTING, "", err, "%s", row.odd));
    if (row.n != chi_csv_in_n_columns(c)) {
      CHI_TRY(chii_note(r, it, CHII_NOTE_BAD_CELLS, "", err, "has %zu cells where the header has %zu", row.n,
                        chi_csv_in_n_columns(c)));
      continue;
    }
    CHI_TRY(read_row(r, it, at, &row, &ans, err));
  }
out:
  chii_answers_free(&ans);
  chi_csv_in_close(c);
  return rc;
}

/* Data sets: opening, notes, brackets, and whether an answer is right; see dataset.h. */
#include "data/dataset_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/tok.h"

const char *const chi_twin_name[CHI_TWINS] = {"named", "described", "named_over", "blank"};

static const chi_data_kind kKinds[CHII_NOTES] = {
#define CHI_NOTE(constant, name, unusable, doc) {name, unusable, doc},
#include "data/dataset_notes.def"
#undef CHI_NOTE
};

const chi_data_kind *chi_data_kinds(int *n) {
  *n = CHII_NOTES;
  return kKinds;
}

size_t chi_dataset_count(const chi_dataset *d, int kind, int *first_row) {
  size_t n = 0;
  *first_row = 0;
  for (size_t i = 0; i < d->n_notes; i++) {
    if (d->note[i].kind != kind) continue;
    if (n++ == 0 || d->note[i].row < *first_row) *first_row = d->note[i].row;
  }
  return n;
}

/* ---- what readers share ------------------------------------------------------------------------------------ */
int chii_item(chii_reader *r, chi_data_item **out, int row, chi_err *err) {
  *out = NULL;
  if (r->o.limit && r->d.n == r->o.limit) return 0;
  void *p = r->d.item;
  int rc = chi_grow(&p, &r->cap, r->d.n + 1, sizeof *r->d.item, err);
  r->d.item = p;
  if (rc) return rc;
  *out = &r->d.item[r->d.n++];
  **out = (chi_data_item){.id = "",
                          .entity = "",
                          .relation = "",
                          .unit = "",
                          .split = "",
                          .group = "",
                          .form = "",
                          .entity_group = "",
                          .row = row};
  return 0;
}

int chii_data_copy(chii_reader *r, const char **out, const char *s, chi_err *err) {
  if (!s) {
    *out = NULL;
    return 0;
  }
  *out = chi_arena_strdup(&r->d.arena, s, err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

int chii_note(chii_reader *r, chi_data_item *it, int kind, const char *field, chi_err *err, const char *fmt, ...) {
  int rc = 0;
  char raw[600];
  chi_str line = {0};
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(raw, sizeof raw, fmt, ap);
  va_end(ap);
  void *p = r->d.note;
  rc = chi_grow(&p, &r->note_cap, r->d.n_notes + 1, sizeof *r->d.note, err);
  r->d.note = p;
  if (rc) goto out;
  /* The text goes to terminals and stores: one line of valid UTF-8, whatever the file had. */
  chi_utf8_lossy(&line, raw, strlen(raw));
  if (line.failed) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for a note", r->path);
    goto out;
  }
  for (size_t i = 0; i < line.len; i++)
    if ((unsigned char)line.s[i] < 0x20 || line.s[i] == 0x7f) line.s[i] = ' ';
  chi_data_note *n = &r->d.note[r->d.n_notes];
  *n = (chi_data_note){.row = it->row, .kind = kind};
  CHI_TRY(chii_data_copy(r, &n->field, field, err));
  CHI_TRY(chii_data_copy(r, &n->text, line.s ? line.s : "", err));
  r->d.n_notes++;
  if (kKinds[kind].unusable && !it->problem) {
    line.len = 0;
    chi_str_addf(&line, "row %d%s%s: %s", it->row, *field ? ", " : "", field, n->text);
    CHI_TRY(line.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for a note", r->path) : 0);
    CHI_TRY(chii_data_copy(r, &it->problem, line.s, err));
    r->d.n_unusable++;
  }
out:
  chi_str_free(&line);
  return rc;
}

int chii_data_text(chii_reader *r, chi_data_item *it, const char **out, const json_t *o, const char *key, bool need,
                   chi_err *err) {
  const json_t *v = json_object_get(o, key);
  if (!v || json_is_null(v)) return need ? chii_note(r, it, CHII_NOTE_BAD_FIELD, key, err, "is missing") : 0;
  if (!json_is_string(v)) return chii_note(r, it, CHII_NOTE_BAD_FIELD, key, err, "is not text");
  if (need && !*json_string_value(v)) return chii_note(r, it, CHII_NOTE_BAD_FIELD, key, err, "is empty");
  return chii_data_copy(r, out, json_string_value(v), err);
}

/* ---- constraints ------------------------------------------------------------------------------------------- */
int chii_brackets(chii_reader *r, chi_data_item *it, chi_data_ask *ask, const char *field, chi_err *err) {
  int rc = 0;
  char *text = NULL;
  chi_span *span = NULL;
  size_t n = 0;
  chi_err why = {0};
  if (!ask->question) return 0;
  if (chi_constraint_parse(&text, &span, &n, ask->question, &why) != 0) {
    CHI_TRY(why.code == CHI_ERR_MEMORY ? chi_fail(err, why.code, "%s", why.text)
                                       : chii_note(r, it, CHII_NOTE_BAD_BRACKET, field, err, "%s", why.text));
    goto out;
  }
  ask->bracket = chi_arena_array(&r->d.arena, n ? n : 1, sizeof *ask->bracket, err);
  CHI_TRY(ask->bracket ? 0 : CHI_ERR_MEMORY);
  ask->n_brackets = (int)n;
  for (size_t i = 0; i < n; i++) {
    char saved = text[span[i].end];
    text[span[i].end] = 0;
    rc = chii_data_copy(r, &ask->bracket[i].words, text + span[i].begin, err);
    text[span[i].end] = saved;
    if (rc) goto out;
  }
out:
  chi_free(text);
  chi_free(span);
  return rc;
}

/* The words without the punctuation at their end. */
static size_t without_punctuation(const char *s) {
  size_t end = 0;
  for (size_t i = 0, len; s[i]; i += len) {
    uint32_t cp;
    len = chi_utf8_get(s + i, &cp);
    if (!chi_is_space(cp) && !(chi_is_punct(cp) && cp != '\'' && cp != ')')) end = i + len;
  }
  return end;
}

/* ' is', ' located', ', a product': what may stand behind a constraint that is whole. A hint for people, no more. */
static bool goes_on(const char *rest) {
  static const char *const kMay[] = {"is",   "was",  "are",   "were",  "has",     "had",   "have", "in",     "of",
                                     "on",   "at",   "and",   "or",    "to",      "by",    "can",  "could",  "does",
                                     "do",   "will", "would", "that",  "who",     "which", "with", "from",   "for",
                                     "made", "held", "took",  "plays", "belongs", "as",    "most", "likely", "used"};
  if (*rest != ' ' || !rest[1]) return true;
  const char *w = rest + 1;
  size_t n = strcspn(w, " ,.?!;:'\"");
  if (n == 0 || !((*w >= 'a' && *w <= 'z') || (*w >= 'A' && *w <= 'Z'))) return true;
  if (n > 2 && (strncmp(w + n - 2, "ed", 2) == 0 || strncmp(w + n - 3, "ing", 3) == 0 || w[n - 1] == 's')) return true;
  for (size_t i = 0; i < sizeof kMay / sizeof *kMay; i++)
    if (strlen(kMay[i]) == n && strncmp(w, kMay[i], n) == 0) return true;
  return false;
}

static bool points_at_the_picture(const char *words) {
  static const char *const kFirst[] = {"this", "these", "that", "those", "the", "its", "his", "her", "their"};
  size_t n = strcspn(words, " ");
  if (!words[n]) return false;
  for (size_t i = 0; i < sizeof kFirst / sizeof *kFirst; i++)
    if (strlen(kFirst[i]) == n && strncasecmp(words, kFirst[i], n) == 0) return true;
  return false;
}

/* The question with brackets around the span; its own brackets are escaped. */
static int put_brackets(chii_reader *r, const char **out, const char *q, chi_span at, chi_err *err) {
  chi_str s = {0};
  for (size_t i = 0; q[i]; i++) {
    if (i == at.begin) chi_str_add(&s, "[");
    if (i == at.end) chi_str_add(&s, "]");
    if (q[i] == '[' || q[i] == ']') chi_str_add(&s, "\\");
    chi_str_addn(&s, q + i, 1);
  }
  if (at.end == strlen(q)) chi_str_add(&s, "]");
  int rc = s.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory for a question", r->path)
                    : chii_data_copy(r, out, s.s, err);
  chi_str_free(&s);
  return rc;
}

int chii_find_constraint(chii_reader *r, chi_data_item *it, chi_data_ask *ask, const char *question,
                         const char *constraint, const char *field, bool visual, chi_err *err) {
  int rc = 0;
  chi_span at;
  const char *how = "", *words, *again;
  chi_err why = {0};
  size_t keep =
      visual ? without_punctuation(constraint) : strlen(constraint); /* a name may end in one: "Mario Bros." */
  CHI_TRY(chii_data_copy(r, &words, constraint, err));
  if (keep == 0) return chii_note(r, it, CHII_NOTE_BAD_FIELD, field, err, "'%.100s' has no words", constraint);
  if (words[keep + strspn(words + keep, " ")]) {
    char *cut = chi_arena_strdup(&r->d.arena, constraint, err);
    CHI_TRY(cut ? 0 : CHI_ERR_MEMORY);
    cut[keep] = 0;
    words = cut;
    CHI_TRY(chii_note(r, it, CHII_NOTE_PUNCTUATION, field, err, "'%.100s' is read as '%.100s'", constraint, words));
  }
  if (chi_constraint_find(&at, &how, question, words, &why) != 0) {
    CHI_TRY(why.code == CHI_ERR_MEMORY ? chi_fail(err, why.code, "%s", why.text)
                                       : chii_note(r, it, CHII_NOTE_NO_SPAN, field, err, "%s", why.text));
    goto out;
  }
  size_t n = at.end - at.begin;
  if (strstr(how, "inside"))
    CHI_TRY(chii_note(r, it, CHII_NOTE_IN_WORD, field, err, "'%.100s' stands inside a word", words));
  if (strstr(how, "accents"))
    CHI_TRY(chii_note(r, it, CHII_NOTE_ACCENTS, field, err, "'%.100s' and the question compose accents differently",
                      words));
  else if (strncmp(how, "exact", 5) != 0)
    CHI_TRY(chii_note(r, it, CHII_NOTE_CASE, field, err, "'%.100s' is '%.*s' in the question", words,
                      (int)(n < 100 ? n : 100), question + at.begin));
  again = strncmp(how, "exact", 5) == 0 ? strstr(question + at.end, words) : NULL;
  if (again)
    CHI_TRY(chii_note(r, it, CHII_NOTE_SEVERAL, field, err, "'%.100s' stands at bytes %zu and %zu", words, at.begin,
                      (size_t)(again - question)));
  if (visual && !points_at_the_picture(words))
    CHI_TRY(chii_note(r, it, CHII_NOTE_UNUSUAL, field, err, "'%.100s' names nothing in a picture", words));
  else if (visual && question[at.end - 1] != 's' && !goes_on(question + at.end)) /* "this text's", "these birds" */
    CHI_TRY(
        chii_note(r, it, CHII_NOTE_CUT_SHORT, field, err, "'%.100s' is followed by '%.40s'", words, question + at.end));
  if (strpbrk(question, "[]"))
    CHI_TRY(chii_note(r, it, CHII_NOTE_BRACKETS, "question", err, "has brackets of its own"));
  CHI_TRY(put_brackets(r, &ask->question, question, at, err));
  CHI_TRY(chii_brackets(r, it, ask, "question", err));
out:
  return rc;
}

/* ---- opening ----------------------------------------------------------------------------------------------- */
static int by_id(const void *a, const void *b) {
  const chi_data_item *x = *(const chi_data_item *const *)a, *y = *(const chi_data_item *const *)b;
  int c = strcmp(x->id, y->id);
  return c ? c : (x->row > y->row) - (x->row < y->row);
}

/* The first row with an id keeps it. */
static int unique_ids(chii_reader *r, chi_err *err) {
  int rc = 0;
  char id[600];
  chi_data_item **p = chi_calloc(r->d.n ? r->d.n : 1, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < r->d.n; i++) p[i] = &r->d.item[i];
  qsort(p, r->d.n, sizeof *p, by_id);
  for (size_t i = 0, first = 0; i < r->d.n; i++) {
    bool none = !*p[i]->id, taken = !none && i > first && strcmp(p[i]->id, p[first]->id) == 0;
    if (!taken) first = i;
    if (!none && !taken) continue;
    if (taken)
      CHI_TRY(chii_note(r, p[i], CHII_NOTE_DUPLICATE, "id", err, "'%.200s' stands on row %d already", p[i]->id,
                        p[first]->row));
    snprintf(id, sizeof id, "%.500s@%d", p[i]->id, p[i]->row);
    CHI_TRY(chii_data_copy(r, &p[i]->id, id, err));
  }
out:
  chi_free(p);
  return rc;
}

/* The fact of an item, where the file does not name it. */
static int units(chii_reader *r, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  for (size_t i = 0; i < r->d.n; i++) {
    chi_data_item *it = &r->d.item[i];
    if (!*it->form) it->form = it->group;
    if (*it->unit || !*it->entity) continue;
    s.len = 0;
    chi_str_addf(&s, "%s|%s", it->entity, it->relation);
    CHI_TRY(s.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", r->path) : 0);
    CHI_TRY(chii_data_copy(r, &it->unit, s.s, err));
  }
out:
  chi_str_free(&s);
  return rc;
}

/* {"questions": [...]: one object that fills the file, not one on each line. */
static bool is_pool(const char *s) {
  static const char kKey[] = "\"questions\"";
  s += 1 + strspn(s + 1, " \t\r\n");
  if (strncmp(s, kKey, sizeof kKey - 1) != 0) return false;
  s += sizeof kKey - 1;
  s += strspn(s, " \t\r\n:");
  return *s == '[';
}

int chi_dataset_open(chi_dataset **out, const char *path, const chi_dataset_opts *o, chi_err *err) {
  int rc = 0;
  char *buf = NULL;
  size_t len, at = 0;
  *out = NULL;
  chii_reader *r = chi_calloc(1, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  r->path = path;
  if (o) r->o = *o;
  const char *slash = strrchr(path, '/');
  size_t n_dir = slash ? (size_t)(slash - path) + (slash == path) : 1;
  if (r->o.images ? strlen(r->o.images) >= sizeof r->dir : n_dir >= sizeof r->dir) {
    rc = chi_fail(err, CHI_ERR_ARG, "%.200s...: the path is too long", r->o.images ? r->o.images : path);
    goto out;
  }
  snprintf(r->dir, sizeof r->dir, "%.*s", r->o.images ? (int)sizeof r->dir : (int)n_dir,
           r->o.images ? r->o.images
           : slash     ? path
                       : ".");
  CHI_TRY(chi_read_file(&buf, &len, path, CHII_MAX_FILE, err));
  CHI_TRY(chi_sha256_file(r->d.hash, path, err));
  if (len >= 3 && memcmp(buf, "\xef\xbb\xbf", 3) == 0) at = 3;
  size_t first = at + strspn(buf + at, " \t\r\n");
  if (first >= len) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: is empty", path);
    goto out;
  }
  r->d.format = buf[first] == '{' ? CHI_DATA_JSONL : buf[first] == '[' ? CHI_DATA_KNOWN : CHI_DATA_CONSTRAINTS;
  if (r->d.format == CHI_DATA_CONSTRAINTS)
    rc = chii_read_constraints(r, buf + at, len - at, err);
  else if (r->d.format == CHI_DATA_KNOWN || is_pool(buf + first))
    rc = chii_read_whole(r, buf + at, len - at, err);
  else
    rc = chii_read_jsonl(r, buf + at, len - at, err);
  if (rc) goto out;
  if (r->d.n == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: holds no items", path);
    goto out;
  }
  CHI_TRY(unique_ids(r, err));
  CHI_TRY(units(r, err));
out:
  chi_free(buf);
  if (r) chii_folder_free(&r->folder);
  if (rc)
    chi_dataset_close(&r->d);
  else
    *out = &r->d; /* its first member: freed as a whole */
  return rc;
}

void chi_dataset_close(chi_dataset *d) {
  if (!d) return;
  chi_free(d->item);
  chi_free(d->note);
  chi_arena_free(&d->arena);
  chi_free(d);
}

/* ---- answers ----------------------------------------------------------------------------------------------- */
/* Letters of any case. Blanks at the ends do not count. */
bool chi_data_says(const char *said, const char *want, bool continuation) {
  size_t n = strlen(want);
  uint32_t a, b;
  if (chi_utf8_valid(said, strlen(said)) != strlen(said)) return false;
  said += strspn(said, " \t\r\n");
  want += strspn(want, " \t\r\n");
  for (n = strlen(want); n && strchr(" \t\r\n", want[n - 1]);) n--;
  if (n == 0) return false;
  for (const char *end = want + n; want < end;) {
    if (!*said) return false;
    said += chi_utf8_get(said, &a);
    want += chi_utf8_get(want, &b);
    if (chi_to_lower(a) != chi_to_lower(b)) return false;
  }
  if (!continuation) {
    if (*said == '.') said++;
    return said[strspn(said, " \t\r\n")] == 0;
  }
  if (!*said) return true;
  chi_utf8_get(said, &a);
  return !chi_is_word(a);
}

bool chi_data_right(const chi_data_item *it, const char *said) {
  if (!it->ask.answer) return false;
  if (chi_data_says(said, it->ask.answer, it->continuation)) return true;
  for (int i = 0; i < it->n_alternatives; i++)
    if (chi_data_says(said, it->alternatives[i], it->continuation)) return true;
  return false;
}

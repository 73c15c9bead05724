#include "analyze/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Names of rows; some take a number: constraint2, late36. */
static const struct {
  const char *word;
  bool number;
} kWords[] = {{"last", false}, {"constraint", true}, {"image", false}, {"late", true}, {"text", false}, {"all", false}};
enum { kWordCount = sizeof kWords / sizeof *kWords };

/* The word and its number (0 = none). NULL: no such name. */
static const char *word_of(const char *text, int32_t *number) {
  *number = 0;
  for (int i = 0; text && i < kWordCount; i++) {
    size_t n = strlen(kWords[i].word);
    if (strncmp(text, kWords[i].word, n) != 0) continue;
    if (!text[n]) return kWords[i].word;
    size_t digits = strspn(text + n, "0123456789");
    if (!kWords[i].number || digits == 0 || digits > 6 || text[n + digits] || text[n] == '0') continue;
    *number = (int32_t)strtol(text + n, NULL, 10);
    return kWords[i].word;
  }
  return NULL;
}

bool chi_select_is_word(const char *text) {
  int32_t number;
  return word_of(text, &number) != NULL;
}

/* One "a" or "a-b" at *p; moves *p behind it. */
static int one_range(const char **p, int32_t n, int32_t *lo, int32_t *hi, const char *text, const char *what,
                     chi_err *err) {
  char *end;
  long a = strtol(*p, &end, 10), b = a;
  bool good = end != *p && **p >= '0' && **p <= '9';
  if (good && *end == '-') {
    const char *q = end + 1;
    b = strtol(q, &end, 10);
    good = end != q && *q >= '0' && *q <= '9';
  }
  if (!good || (*end && *end != ',')) return chi_fail(err, CHI_ERR_ARG, "%ss '%s': write them as 0-3,7", what, text);
  if (a < 0 || b < a || b >= n)
    return chi_fail(err, CHI_ERR_ARG, "%ss '%s': %.*s is not within 0-%d", what, text, (int)(end - *p), *p, n - 1);
  *lo = (int32_t)a;
  *hi = (int32_t)b;
  *p = *end ? end + 1 : end;
  return 0;
}

int chi_select_ranges(int32_t **out, int32_t *count, const char *text, int32_t n, const char *what, chi_err *err) {
  int rc = 0;
  bool all = !text || chi_streq(text, "all");
  uint8_t *in = NULL;
  int32_t *list = NULL, k = 0, lo = 0, hi = 0;
  if (n <= 0) return chi_fail(err, CHI_ERR_ARG, "there are no %ss", what);
  if (!all && !*text) return chi_fail(err, CHI_ERR_ARG, "no %ss given: write them as 0-3,7", what);
  in = chi_calloc((size_t)n, 1, err);
  list = chi_calloc((size_t)n, sizeof *list, err);
  if (!in || !list) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (const char *p = text; !all && *p;) {
    CHI_TRY(one_range(&p, n, &lo, &hi, text, what, err));
    memset(in + lo, 1, (size_t)(hi - lo + 1));
  }
  for (int32_t i = 0; i < n; i++)
    if (all || in[i]) list[k++] = i;
out:
  chi_free(in);
  if (rc) {
    chi_free(list);
    return rc;
  }
  *out = list;
  *count = k;
  return 0;
}

static bool in_bracket(const chi_prompt *p, int32_t r, int32_t number) {
  for (int i = 0; i < p->n_spans; i++)
    if ((number == 0 || number == i + 1) && r >= p->span[i].lo && r < p->span[i].hi) return true;
  return false;
}

static bool row_is(const chi_prompt *p, int32_t r, const char *word, int32_t number) {
  if (strcmp(word, "last") == 0) return r == p->n_rows - 1;
  if (strcmp(word, "constraint") == 0) return in_bracket(p, r, number);
  if (strcmp(word, "late") == 0) {
    int32_t n = number ? number : p->n_image / 16 > 0 ? (p->n_image + 8) / 16 : 1, end = p->image_row + p->n_image;
    return p->n_image > 0 && r < end && r >= end - n && r >= p->image_row;
  }
  if (strcmp(word, "image") == 0) return p->role[r] == CHI_ROLE_IMAGE;
  if (strcmp(word, "text") == 0) return p->role[r] == CHI_ROLE_TEXT || p->role[r] == CHI_ROLE_CONSTRAINT;
  return true;
}

int chi_select_rows(int32_t **out, int32_t *count, const char *text, const chi_prompt *p, chi_err *err) {
  int32_t number;
  const char *word = word_of(text, &number);
  if (!word) return chi_select_ranges(out, count, text, p->n_rows, "row", err);
  int32_t k = 0, *list = chi_calloc((size_t)p->n_rows, sizeof *list, err);
  if (!list) return CHI_ERR_MEMORY;
  for (int32_t r = 0; r < p->n_rows; r++)
    if (row_is(p, r, word, number)) list[k++] = r;
  if (k == 0) {
    chi_free(list);
    if (strcmp(word, "constraint") == 0 && number > 1)
      return chi_fail(err, CHI_ERR_ARG, "rows '%s': the question has %d bracket%s", text, p->n_spans,
                      p->n_spans == 1 ? "" : "s");
    if (strcmp(word, "constraint") == 0)
      return chi_fail(err, CHI_ERR_ARG, "rows 'constraint': the question has none; put [ ] around its words");
    return chi_fail(err, CHI_ERR_ARG, "rows '%s': the prompt has none", text);
  }
  *out = list;
  *count = k;
  return 0;
}

bool chi_select_window(int32_t *out, const char *text, int32_t layers) {
  char *end = NULL;
  double x = strtod(text, &end);
  bool share = end != text && *end == '%' && !end[1];
  if (end == text || (!share && *end) || !(x > 0) || x > (share ? 100 : 100000) || (!share && x != floor(x)))
    return false;
  if (share) x = floor(x / 100 * layers + 0.5);
  *out = x < 1 ? 1 : (int32_t)x;
  return true;
}

bool chi_site_in_layer(const chi_shape *s, chi_stack stack, chi_site site, int layer) {
  return !chi_site_is_cross(site) || layer % s->stack[stack].cross_every == 0;
}

int64_t chi_part_width(const chi_shape *s, chi_stack stack, chi_site site, int32_t row, int32_t rows, int32_t part_lo,
                       int32_t part_hi) {
  int32_t keys = chi_site_is_pattern(site) ? chi_site_keys(s, stack, site, row, rows) : 1;
  int64_t all = chi_site_width(s, stack, site, keys);
  if (part_hi == 0) return all;
  if (chi_site_get(site)->unit == CHI_UNIT_COLUMN) return part_hi - part_lo;
  return all / chi_site_heads(s, stack, site) * (part_hi - part_lo);
}

int32_t chi_branch_rows(const chi_plan *p, const chi_shape *s, int branch, chi_stack stack, chi_site site) {
  const chi_input *in = &p->branch[chi_plan_root_of(p, branch)].input;
  if (site == CHI_SITE_IMAGE_EMBED) return in->pixels ? s->n_image_rows : 0;
  if (stack == CHI_DECODER) return in->n_rows;
  return in->pixels ? s->stack[stack].rows : 0;
}

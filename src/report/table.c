/* Tables for the terminal. */
#include "report/internal.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#define GAP 2
#define MIN_TEXT 4

struct chi_table {
  size_t n_cols, n_cells, cap;
  char align[32];
  char **cells; /* header first; each owned */
  bool failed;
};

static void add_cell(chi_table *t, const char *s) {
  chi_str clean = {0};
  chii_clean(&clean, s, false);
  void *cells = t->cells;
  if (clean.failed || chi_grow(&cells, &t->cap, t->n_cells + 1, sizeof *t->cells, NULL) != 0) {
    chi_str_free(&clean);
    t->failed = true;
    return;
  }
  t->cells = cells;
  t->cells[t->n_cells++] = clean.s; /* NULL for an empty cell */
}

int chi_table_new(chi_table **out, const char *const *head, const char *align, chi_err *err) {
  *out = NULL;
  size_t n = strlen(align);
  if (n == 0 || n >= sizeof(*out)->align)
    return chi_fail(err, CHI_ERR_ARG, "a table needs 1 to 31 columns, not %zu", n);
  chi_table *t = chi_calloc(1, sizeof *t, err);
  if (!t) return CHI_ERR_MEMORY;
  t->n_cols = n;
  memcpy(t->align, align, n + 1);
  for (size_t i = 0; i < n; i++) add_cell(t, head[i]);
  *out = t;
  return 0;
}

void chi_table_cell(chi_table *t, const char *fmt, ...) {
  char buf[2048];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(buf, sizeof buf, fmt, ap);
  va_end(ap);
  add_cell(t, buf);
}

static void spaces(chi_str *out, int n) {
  for (; n > 0; n--) chi_str_add(out, " ");
}

/* As much of s as fits into width columns, with an ellipsis where it does not fit whole. Returns columns used. */
static int add_cut(chi_str *out, const char *s, int width) {
  int full = chi_text_width(s), used = 0;
  if (full <= width) {
    chi_str_add(out, s);
    return full;
  }
  const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
  utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(s);
  while (left > 0) {
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate(p, left, &c);
    if (n <= 0 || used + utf8proc_charwidth(c) > width - 1) break;
    chi_str_addn(out, (const char *)p, (size_t)n);
    used += utf8proc_charwidth(c);
    p += n;
    left -= n;
  }
  chi_str_add(out, "\xe2\x80\xa6");
  return used + 1;
}

static void add_line(const chi_table *t, const int *w, size_t row, chi_str *out) {
  size_t start = out->len;
  for (size_t c = 0; c < t->n_cols; c++) {
    size_t i = row * t->n_cols + c;
    const char *s = i < t->n_cells && t->cells[i] ? t->cells[i] : "";
    if (c > 0) spaces(out, GAP);
    if (t->align[c] == 'r') {
      spaces(out, w[c] - chi_text_width(s));
      chi_str_add(out, s);
    } else {
      spaces(out, w[c] - add_cut(out, s, w[c]));
    }
  }
  while (!out->failed && out->len > start && out->s[out->len - 1] == ' ') out->len--;
  chi_str_add(out, "\n");
}

int chi_table_text(const chi_table *t, int width, chi_str *out, chi_err *err) {
  int w[32] = {0}, total = 0;
  size_t rows = (t->n_cells + t->n_cols - 1) / t->n_cols;
  for (size_t i = 0; i < t->n_cells; i++) {
    int cw = t->cells[i] ? chi_text_width(t->cells[i]) : 0;
    if (cw > w[i % t->n_cols]) w[i % t->n_cols] = cw;
  }
  for (size_t c = 0; c < t->n_cols; c++) total += w[c] + (c > 0 ? GAP : 0);
  while (total > width) {
    size_t widest = t->n_cols;
    for (size_t c = 0; c < t->n_cols; c++) {
      if (t->align[c] != 'r' && w[c] > MIN_TEXT && (widest == t->n_cols || w[c] > w[widest])) widest = c;
    }
    if (widest == t->n_cols) break;
    w[widest]--;
    total--;
  }
  for (size_t r = 0; r < rows; r++) {
    add_line(t, w, r, out);
    if (r > 0) continue;
    for (size_t c = 0; c < t->n_cols; c++) {
      if (c > 0) spaces(out, GAP);
      for (int i = 0; i < w[c]; i++) chi_str_add(out, "-");
    }
    chi_str_add(out, "\n");
  }
  if (t->failed || out->failed) return chi_fail(err, CHI_ERR_MEMORY, "no memory for a table");
  return 0;
}

void chi_table_free(chi_table *t) {
  if (!t) return;
  for (size_t i = 0; i < t->n_cells; i++) chi_free(t->cells[i]);
  chi_free(t->cells);
  chi_free(t);
}

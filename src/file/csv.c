/* Reading CSV; see csv.h. The file is in memory; cells are unquoted in place, so a row costs only its pointers. */
#include "file/csv.h"

#include <string.h>

#include "file/file.h"

struct chi_csv_in {
  char *buf;
  size_t len, at;
  int line; /* of buf[at] */
  char what[512];
  const char *cell[CHI_CSV_MAX_CELLS];
  char *head[CHI_CSV_MAX_CELLS]; /* names, borrowed from buf */
  size_t n_head;
  chi_str columns;
};

static const char kText[] = "text before or after a quoted field",
                  kQuote[] = "a quote inside a field that has none around it";

/* A quoted field that begins behind buf[at]: its bytes move over the quotes. *end = where its text ends. */
static int quoted(chi_csv_in *c, char **end, int *lines, chi_err *err) {
  char *to = c->buf + c->at + 1;
  size_t from = c->at + 1, start = from;
  for (; from < c->len; from++) {
    char b = c->buf[from];
    if (b == '"' && (from + 1 >= c->len || c->buf[from + 1] != '"')) break;
    if (b == '"') from++;
    *lines += b == '\n';
    *to++ = b;
    if (from - start > CHI_CSV_MAX_FIELD) break;
  }
  if (from - start > CHI_CSV_MAX_FIELD)
    return chi_fail(err, CHI_ERR_FORMAT,
                    "%s: line %d: a quoted field is longer than %d KB; is its closing quote missing?", c->what, c->line,
                    CHI_CSV_MAX_FIELD >> 10);
  if (from >= c->len)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: line %d: a quote is opened and never closed", c->what, c->line);
  *end = to;
  c->at = from + 1;
  return 0;
}

/* One field; *last is set where it ends its row. */
static int field(chi_csv_in *c, const char **out, const char **odd, bool *last, chi_err *err) {
  char *start = c->buf + c->at, *end = NULL;
  int lines = 0;
  if (c->at < c->len && *start == '"') {
    int rc = quoted(c, &end, &lines, err);
    if (rc) return rc;
    start++;
  }
  size_t plain = c->at;
  while (c->at < c->len && c->buf[c->at] != ',' && c->buf[c->at] != '\n') {
    if (!end && c->buf[c->at] == '"') *odd = kQuote;
    c->at++;
  }
  size_t n = c->at - plain;
  if (n && c->buf[c->at - 1] == '\r' && (c->at >= c->len || c->buf[c->at] == '\n')) n--;
  if (n > CHI_CSV_MAX_FIELD)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: line %d: a field is longer than %d KB", c->what, c->line,
                    CHI_CSV_MAX_FIELD >> 10);
  if (end && n) { /* "abc"def: kept as one text */
    memmove(end, c->buf + plain, n);
    *odd = kText;
  }
  end = end ? end + n : c->buf + plain + n;
  bool feed = c->at < c->len && c->buf[c->at] == '\n';
  *last = c->at >= c->len || feed;
  if (c->at < c->len) c->at++;
  *end = 0;
  c->line += lines + feed;
  *out = start;
  return 0;
}

int chi_csv_in_next(chi_csv_in *c, chi_csv_row_in *row, bool *more, chi_err *err) {
  *row = (chi_csv_row_in){.cell = c->cell};
  *more = false;
  while (c->at < c->len && (c->buf[c->at] == '\n' || (c->buf[c->at] == '\r' && c->buf[c->at + 1] == '\n'))) {
    c->line += c->buf[c->at] == '\n';
    c->at++;
  }
  if (c->at >= c->len) return 0;
  row->line = c->line;
  for (bool last = false; !last;) {
    if (row->n == CHI_CSV_MAX_CELLS)
      return chi_fail(err, CHI_ERR_FORMAT, "%s: line %d has more than %d cells", c->what, row->line, CHI_CSV_MAX_CELLS);
    int rc = field(c, &c->cell[row->n], &row->odd, &last, err);
    if (rc) return rc;
    row->n++;
  }
  *more = true;
  return 0;
}

static int header(chi_csv_in *c, chi_err *err) {
  chi_csv_row_in row;
  bool more;
  if (c->len >= 3 && memcmp(c->buf, "\xef\xbb\xbf", 3) == 0) c->at = 3;
  const char *nul = memchr(c->buf, 0, c->len);
  if (nul)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: byte %zu is NUL: this is not a text file in UTF-8", c->what,
                    (size_t)(nul - c->buf));
  int rc = chi_csv_in_next(c, &row, &more, err);
  if (rc) return rc;
  if (!more) return chi_fail(err, CHI_ERR_FORMAT, "%s: is empty", c->what);
  for (size_t i = 0; i < row.n; i++) {
    c->head[i] = (char *)(uintptr_t)row.cell[i]; /* ours: it points into buf */
    for (size_t k = 0; k < i; k++)
      if (*row.cell[i] && strcmp(row.cell[i], row.cell[k]) == 0)
        return chi_fail(err, CHI_ERR_FORMAT, "%s: two columns are named '%.60s'", c->what, row.cell[i]);
    chi_str_addf(&c->columns, "%s%.60s", i ? ", " : "", *row.cell[i] ? row.cell[i] : "(none)");
  }
  c->n_head = row.n;
  return c->columns.failed ? chi_fail(err, CHI_ERR_MEMORY, "%s: no memory", c->what) : 0;
}

/* Takes buf, which has len bytes and a NUL behind them. */
static int open_buf(chi_csv_in **out, char *buf, size_t len, const char *what, chi_err *err) {
  *out = NULL;
  chi_csv_in *c = chi_calloc(1, sizeof *c, err);
  if (!c) {
    chi_free(buf);
    return CHI_ERR_MEMORY;
  }
  c->buf = buf;
  c->len = len;
  c->line = 1;
  size_t n = strlen(what);
  memcpy(c->what, what + (n < sizeof c->what ? 0 : n - sizeof c->what + 1),
         n < sizeof c->what ? n : sizeof c->what - 1);
  int rc = header(c, err);
  if (rc)
    chi_csv_in_close(c);
  else
    *out = c;
  return rc;
}

int chi_csv_in_open(chi_csv_in **out, const char *path, size_t max, chi_err *err) {
  char *buf = NULL;
  size_t len;
  *out = NULL;
  int rc = chi_read_file(&buf, &len, path, max, err);
  return rc ? rc : open_buf(out, buf, len, path, err);
}

int chi_csv_in_parse(chi_csv_in **out, const char *text, size_t len, const char *what, chi_err *err) {
  *out = NULL;
  char *buf = chi_calloc(len + 1, 1, err);
  if (!buf) return CHI_ERR_MEMORY;
  if (len) memcpy(buf, text, len);
  return open_buf(out, buf, len, what, err);
}

void chi_csv_in_close(chi_csv_in *c) {
  if (!c) return;
  chi_free(c->buf);
  chi_str_free(&c->columns);
  chi_free(c);
}

int chi_csv_in_find(const chi_csv_in *c, const char *column) {
  for (size_t i = 0; i < c->n_head; i++)
    if (strcmp(c->head[i], column) == 0) return (int)i;
  return -1;
}

const char *chi_csv_in_columns(const chi_csv_in *c) { return c->columns.s; }
size_t chi_csv_in_n_columns(const chi_csv_in *c) { return c->n_head; }

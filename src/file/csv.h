/* csv: reading comma-separated values (RFC 4180) as people's tools write them: byte order mark, LF or CRLF or both, quoted
 * fields with line feeds, blank lines. Files are untrusted. */
#ifndef CHI_CSV_H
#define CHI_CSV_H

#include "base/base.h"

typedef struct chi_csv_in chi_csv_in;
typedef struct chi_csv_row_in {
  const char **cell; /* [n], NUL-terminated, borrowed until the next row */
  size_t n;
  int line;        /* of the file, from 1, on which the row begins */
  const char *odd; /* what the quoting of the row breaks, read as well as could be; NULL = nothing */
} chi_csv_row_in;

enum { CHI_CSV_MAX_FIELD = 1 << 16, CHI_CSV_MAX_CELLS = 256 };

/* Reads the first row as the header. Refused: larger than max bytes, empty, a NUL byte in it, a name given twice (columns
 * without a name are allowed). */
int chi_csv_in_open(chi_csv_in **out, const char *path, size_t max, chi_err *err);
int chi_csv_in_parse(chi_csv_in **out, const char *text, size_t len, const char *what, chi_err *err); /* fuzz door */
void chi_csv_in_close(chi_csv_in *c);                                                                 /* NULL-safe */
/* Column of this name, -1 if absent. The names as one line of text are in chi_csv_in_columns. */
int chi_csv_in_find(const chi_csv_in *c, const char *column);
const char *chi_csv_in_columns(const chi_csv_in *c);
size_t chi_csv_in_n_columns(const chi_csv_in *c);
/* Next row: *more is false at the end. A row may have more or fewer cells than the header; blank lines are skipped.
 * Refused with the line: a quote that is never closed, a field above 64 KB, more than 256 cells. */
int chi_csv_in_next(chi_csv_in *c, chi_csv_row_in *row, bool *more, chi_err *err);

#endif

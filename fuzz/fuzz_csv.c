/* A CSV file: either refused with one line, or every row can be read, its cells lie inside the file, and lines only
 * grow. */
#include <string.h>

#include "file/csv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  chi_err e = {0};
  chi_csv_in *c = NULL;
  chi_csv_row_in row;
  bool more = true;
  int line = 0;
  size_t bytes = 0;
  int rc = chi_csv_in_parse(&c, (const char *)data, size, "fuzz", &e);
  if (rc == 0 && chi_csv_in_find(c, "no such column in any file") != -1) __builtin_trap();
  while (rc == 0 && (rc = chi_csv_in_next(c, &row, &more, &e)) == 0 && more) {
    if (row.n == 0 || row.n > CHI_CSV_MAX_CELLS || row.line <= line) __builtin_trap();
    line = row.line;
    for (size_t i = 0; i < row.n; i++) bytes += strlen(row.cell[i]) + 1;
  }
  if (bytes > size + 1) __builtin_trap();
  if (rc != 0 && (e.code == 0 || e.text[0] == 0 || strchr(e.text, '\n'))) __builtin_trap();
  chi_csv_in_close(c);
  return 0;
}

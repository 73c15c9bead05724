/* Tidy CSV. */
#include "report/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct chi_csv {
  chi_out *file;
  chi_str row;
  size_t n, at; /* columns; cells in this row */
  chi_err first;
};

static void cell(chi_csv *c, const char *s) {
  if (c->at++ > 0) chi_str_add(&c->row, ",");
  if (!strpbrk(s, ",\"\r\n")) {
    chi_str_add(&c->row, s);
    return;
  }
  chi_str_add(&c->row, "\"");
  for (; *s; s++) {
    if (*s == '"') chi_str_add(&c->row, "\"");
    chi_str_addn(&c->row, s, 1);
  }
  chi_str_add(&c->row, "\"");
}

void chi_csv_str(chi_csv *c, const char *s) { cell(c, s ? s : ""); }

void chi_csv_int(chi_csv *c, int64_t x) {
  char buf[32];
  snprintf(buf, sizeof buf, "%lld", (long long)x);
  cell(c, buf);
}

void chi_csv_num(chi_csv *c, double x) {
  char buf[40] = "";
  if (!isnan(x)) snprintf(buf, sizeof buf, "%.9g", x);
  cell(c, buf);
}

int chi_csv_row(chi_csv *c, chi_err *err) {
  if (c->first.code == 0 && c->at != c->n) {
    chi_fail(&c->first, CHI_ERR_ARG, "a CSV row has %zu cells where the header has %zu", c->at, c->n);
  }
  chi_str_add(&c->row, "\n");
  if (c->first.code == 0 && c->row.failed) chi_fail(&c->first, CHI_ERR_MEMORY, "no memory for a CSV row");
  if (c->first.code == 0) chi_out_write(c->file, c->row.s, c->row.len, &c->first);
  c->row.len = 0;
  c->at = 0;
  return c->first.code ? chi_fail(err, c->first.code, "%s", c->first.text) : 0;
}

int chi_csv_open(chi_csv **out, const char *path, const char *const *columns, size_t n, chi_err *err) {
  *out = NULL;
  chi_csv *c = chi_calloc(1, sizeof *c, err);
  if (!c) return CHI_ERR_MEMORY;
  c->n = n;
  int rc = chi_out_open(&c->file, path, err);
  if (rc == 0) {
    for (size_t i = 0; i < n; i++) cell(c, columns[i]);
    rc = chi_csv_row(c, err);
  }
  if (rc != 0) {
    chi_csv_abort(c);
    return rc;
  }
  *out = c;
  return 0;
}

int chi_csv_commit(chi_csv *c, chi_err *err) {
  int rc = c->first.code;
  if (rc == 0 && c->at != 0) rc = chi_fail(&c->first, CHI_ERR_ARG, "the last CSV row was not ended");
  if (rc != 0) {
    chi_fail(err, rc, "%s", c->first.text);
    chi_csv_abort(c);
    return rc;
  }
  rc = chi_out_commit(c->file, err);
  c->file = NULL;
  chi_csv_abort(c);
  return rc;
}

void chi_csv_abort(chi_csv *c) {
  if (!c) return;
  chi_out_abort(c->file);
  chi_str_free(&c->row);
  chi_free(c);
}

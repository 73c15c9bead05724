/* The pieces of a report's page, and its figures. The page needs nothing else: style inside, figures as SVG inside. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "report/study_internal.h"

static const char kStyle[] =
    "body{margin:0 auto;padding:24px;max-width:1080px;background:#fff;color:#1d1f24;"
    "font:15px/1.5 system-ui,'DejaVu Sans',sans-serif}\n"
    "h1{font-size:24px;margin:0 0 4px}h2{font-size:19px;margin:34px 0 8px;border-bottom:1px solid #d9dce3}\n"
    "h3{font-size:16px;margin:22px 0 6px}p,ul{max-width:860px}.soft{color:#646a76}\n"
    "img{display:block;max-width:100%;margin:8px 0}\n"
    "table{border-collapse:collapse;margin:8px 0 14px;font-size:14px;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:3px 12px 3px 0;text-align:right;border-bottom:1px solid #e6e8ee}th{font-weight:600}\n"
    "th:first-child,td:first-child,.l{text-align:left}td{white-space:nowrap}td.l{white-space:normal}\n"
    "code{font:13px ui-monospace,'DejaVu Sans Mono',monospace;background:#f5f6f8;padding:1px 4px}\n"
    "@media print{h2{break-after:avoid}img{break-inside:avoid}}\n";

void chii_page_text(chi_str *out, const char *text) {
  for (const char *p = text; *p; p++) {
    const char *code = *p == '&' ? "&amp;" : *p == '<' ? "&lt;" : *p == '>' ? "&gt;" : *p == '"' ? "&quot;" : NULL;
    if (code)
      chi_str_add(out, code);
    else if ((unsigned char)*p >= 0x20)
      chi_str_addn(out, p, 1);
    else
      chi_str_add(out, " ");
  }
}

static void add_va(chi_str *out, const char *fmt, va_list ap) {
  char buf[4096];
  vsnprintf(buf, sizeof buf, fmt, ap);
  chii_page_text(out, buf);
}

void chii_page_head(chi_str *out, int level, const char *fmt, ...) {
  va_list ap;
  chi_str_addf(out, "<h%d>", level);
  va_start(ap, fmt);
  add_va(out, fmt, ap);
  va_end(ap);
  chi_str_addf(out, "</h%d>\n", level);
}

void chii_page_para(chi_str *out, const char *fmt, ...) {
  va_list ap;
  chi_str_add(out, "<p>");
  va_start(ap, fmt);
  add_va(out, fmt, ap);
  va_end(ap);
  chi_str_add(out, "</p>\n");
}

void chii_page_table(chi_str *out, const char *columns) {
  chi_str_add(out, "<table><thead><tr>");
  while (*columns) {
    size_t n = strcspn(columns, "|");
    bool left = *columns == '<';
    chi_str_addf(out, left ? "<th class=\"l\">%.*s</th>" : "<th>%.*s</th>", (int)n - left, columns + left);
    columns += n + (columns[n] == '|');
  }
  chi_str_add(out, "</tr></thead><tbody>");
}

void chii_page_row(chi_str *out) { chi_str_add(out, "<tr>"); }

void chii_page_cell(chi_str *out, const char *fmt, ...) {
  va_list ap;
  chi_str_add(out, "<td>");
  va_start(ap, fmt);
  add_va(out, fmt, ap);
  va_end(ap);
  chi_str_add(out, "</td>");
}

void chii_page_words(chi_str *out, const char *text, bool bold) {
  chi_str_add(out, bold ? "<td class=\"l\"><b>" : "<td class=\"l\">");
  chii_page_text(out, text);
  chi_str_add(out, bold ? "</b></td>" : "</td>");
}

void chii_page_num(chi_str *out, double x, int decimals) {
  if (isnan(x))
    chi_str_add(out, "<td></td>");
  else
    chii_page_cell(out, "%.*f", decimals, x);
}

void chii_page_table_end(chi_str *out) { chi_str_add(out, "</tbody></table>\n"); }

void chii_page_est(chi_str *out, const chi_est *e, int decimals) {
  if (isnan(e->value))
    chii_page_cell(out, "-");
  else if (isnan(e->lo))
    chii_page_cell(out, "%.*f", decimals, e->value);
  else
    chii_page_cell(out, "%.*f (%.*f to %.*f)", decimals, e->value, decimals, e->lo, decimals, e->hi);
}

json_t *chii_est_json(const chi_est *e) {
  return json_pack("{s:o, s:o, s:o, s:i, s:i}", "value", chi_json_num(e->value), "lo", chi_json_num(e->lo), "hi",
                   chi_json_num(e->hi), "items", (int)e->n, "clusters", (int)e->clusters);
}

/* ---- figures --------------------------------------------------------------------------------------------- */
static void add_base64(chi_str *out, const uint8_t *p, size_t n) {
  static const char kDigit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < n; i += 3) {
    uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
    char c[4] = {kDigit[v >> 18], kDigit[v >> 12 & 63], i + 1 < n ? kDigit[v >> 6 & 63] : '=',
                 i + 2 < n ? kDigit[v & 63] : '='};
    chi_str_addn(out, c, 4);
  }
}

static int figure_paths(char png[4096], char svg[4096], const chii_study *s, const char *name, chi_err *err) {
  char dir[4096], file[300];
  int rc = chi_path_join(dir, sizeof dir, s->dir, "figures", err);
  if (rc == 0) rc = chi_mkdirs(dir, err);
  if (rc) return rc;
  snprintf(file, sizeof file, "%.250s.png", name);
  for (char *p = file; *p; p++) /* names of results hold signs that are no good in file names */
    if (strchr("/ >:+,;\\", *p)) *p = '-';
  if ((rc = chi_path_join(png, 4096, dir, file, err)) != 0) return rc;
  memcpy(file + strlen(file) - 3, "svg", 3);
  return chi_path_join(svg, 4096, dir, file, err);
}

static int embed(chii_study *s, const char *svg, const char *title, chi_err *err) {
  char *text = NULL;
  size_t n = 0;
  int rc = chi_read_file(&text, &n, svg, 64 << 20, err);
  if (rc) return rc;
  chi_str_add(&s->html, "<img alt=\"");
  chii_page_text(&s->html, title ? title : "");
  chi_str_add(&s->html, "\" src=\"data:image/svg+xml;base64,");
  add_base64(&s->html, (const uint8_t *)text, n);
  chi_str_add(&s->html, "\">\n");
  chi_free(text);
  s->figures++;
  return 0;
}

int chii_heatmap(chii_study *s, const chi_heatmap_spec *spec, const char *name, chi_err *err) {
  int rc = 0;
  char png[4096], svg[4096];
  CHI_TRY(figure_paths(png, svg, s, name, err));
  CHI_TRY(chi_heatmap_save(spec, s->prov, png, err));
  CHI_TRY(chi_heatmap_save(spec, s->prov, svg, err));
  CHI_TRY(embed(s, svg, spec->title, err));
out:
  return rc;
}

int chii_linechart(chii_study *s, const chi_linechart_spec *spec, const char *name, chi_err *err) {
  int rc = 0;
  char png[4096], svg[4096];
  CHI_TRY(figure_paths(png, svg, s, name, err));
  CHI_TRY(chi_linechart_save(spec, s->prov, png, err));
  CHI_TRY(chi_linechart_save(spec, s->prov, svg, err));
  CHI_TRY(embed(s, svg, spec->title, err));
out:
  return rc;
}

int chii_page_write(chii_study *s, chi_err *err) {
  int rc = 0;
  char path[4096];
  chi_out *o = NULL;
  if (s->html.failed) return chi_fail(err, CHI_ERR_MEMORY, "no memory for the page");
  CHI_TRY(chi_path_join(path, sizeof path, s->dir, "report.html", err));
  CHI_TRY(chi_out_open(&o, path, err));
  rc = chi_out_printf(o, err,
                      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                      "<title>chiasm study</title>\n<style>\n%s</style></head><body>\n",
                      kStyle);
  if (rc == 0) rc = chi_out_write(o, s->html.s ? s->html.s : "", s->html.len, err);
  if (rc == 0) rc = chi_out_printf(o, err, "</body></html>\n");
  if (rc) {
    chi_out_abort(o);
    goto out;
  }
  rc = chi_out_commit(o, err);
out:
  return rc;
}

/* How the cost of a map grows: a table and three line charts; see growth_report.h. */
#include <stdio.h>

#include "report/growth_report.h"

enum { kPoints = CHI_GROWTH_POINTS / CHI_GROWTH_AXES };

static double at_axis(const chi_growth_point *g) {
  return g->axis == CHI_GROWTH_LAYERS    ? g->layers
         : g->axis == CHI_GROWTH_PICTURE ? g->image_rows
                                         : g->rows - g->image_rows;
}

static int save_csv(const chi_growth_point *g, int n_points, const char *dir, chi_err *err) {
  static const char *const kAxis[] = {"layers", "text", "picture"};
  static const char *const kColumn[] = {
      "axis", "layers", "rows", "image_rows", "cells", "rows_layers_live", "rows_layers_each", "cpu_seconds"};
  int rc = 0;
  char path[4096];
  chi_csv *c = NULL;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "growth.csv", err));
  CHI_TRY(chi_csv_open(&c, path, kColumn, sizeof kColumn / sizeof *kColumn, err));
  for (int i = 0; i < n_points; i++) {
    chi_csv_str(c, kAxis[g[i].axis]);
    chi_csv_int(c, g[i].layers);
    chi_csv_int(c, g[i].rows);
    chi_csv_int(c, g[i].image_rows);
    chi_csv_int(c, g[i].cells);
    chi_csv_int(c, g[i].live);
    chi_csv_int(c, g[i].dense);
    chi_csv_num(c, g[i].seconds);
    CHI_TRY(chi_csv_row(c, err));
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

static int save_chart(const chi_growth_point *g, int n_points, int axis, const chi_provenance *prov, const char *dir,
                      chi_err *err) {
  static const char *const kName[] = {"growth-layers.png", "growth-text.png", "growth-picture.png"};
  static const char *const kTitle[] = {"A causal map of more layers", "A causal map of a longer question",
                                       "A causal map of a larger picture"};
  static const char *const kLabel[] = {"layers of the decoder", "rows of text", "rows of the picture"};
  static const char *const kLines[] = {"Median CPU seconds of the whole map; 1 = the smallest."};
  double x[kPoints], time[kPoints], live[kPoints], cells[kPoints];
  int rc = 0, n = 0;
  char path[4096];
  for (int i = 0; i < n_points && n < kPoints; i++) {
    if ((int)g[i].axis != axis) continue;
    x[n] = at_axis(&g[i]);
    time[n] = g[i].seconds;
    live[n] = (double)g[i].live;
    cells[n++] = (double)g[i].cells;
  }
  for (int i = n - 1; i >= 0; i--) time[i] /= time[0], live[i] /= live[0], cells[i] /= cells[0];
  const chi_curve curves[] = {
      {.name = "CPU time", .y = time}, {.name = "rows x layers computed", .y = live}, {.name = "cells", .y = cells}};
  CHI_TRY(chi_path_join(path, sizeof path, dir, kName[axis], err));
  CHI_TRY(chi_linechart_save(&(chi_linechart_spec){.title = kTitle[axis],
                                                   .lines = kLines,
                                                   .n_lines = 1,
                                                   .x_label = kLabel[axis],
                                                   .y_label = "times the smallest",
                                                   .x = x,
                                                   .n = (size_t)n,
                                                   .curves = curves,
                                                   .n_curves = 3,
                                                   .y_zero = true,
                                                   .w = 420,
                                                   .h = 240},
                             prov, path, err));
out:
  return rc;
}

int chi_growth_report(const chi_growth_point *g, int n, const chi_provenance *prov, const char *dir, chi_err *err) {
  int rc = save_csv(g, n, dir, err);
  for (int axis = 0; rc == 0 && axis < CHI_GROWTH_AXES; axis++) rc = save_chart(g, n, axis, prov, dir, err);
  return rc;
}

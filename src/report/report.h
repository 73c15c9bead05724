/* report: results as JSON, CSV, pictures and terminal tables. Knows nothing of how a result was computed.
 *
 * All strings are UTF-8; broken bytes in them become U+FFFD, so names and tokens can be handed over as they are. All
 * files are written atomically. Pictures: PNG or SVG by the ending of the path, from one drawing, provenance inside
 * (PNG: iTXt "chiasm"; SVG: <metadata>). Drawing needs at least one font, e.g. fonts-dejavu-core. */
#ifndef CHI_REPORT_H
#define CHI_REPORT_H

#include "file/file.h"
#include "image/image.h"

/* ---- provenance ------------------------------------------------------------------------------------------ */
/* Everything that a result depends on. NULL = does not apply, and is left out. The number of threads is not here:
 * results do not depend on it. */
typedef struct chi_provenance {
  const char *command, *version, *git_id;
  const char *model_path, *model_hash;
  const char *image_path, *image_sha256;
  const char *data_hash;
  const char *template_name, *prompt;
  const char *dtype, *isa;
  const char *const *delta_file, *const *delta_sha256; /* [n_deltas]: edits that were in the weights, in order */
  int n_deltas;
  bool has_seed;
  uint64_t seed;
} chi_provenance;
/* Caller: json_decref. */
int chi_provenance_json(json_t **out, const chi_provenance *p, chi_err *err);

/* ---- JSON ------------------------------------------------------------------------------------------------ */
/* {"kind": kind, "provenance": {...}}: the start of every result file. Caller adds to it and json_decrefs it. */
int chi_report_json(json_t **out, const char *kind, const chi_provenance *p, chi_err *err);
/* New references for json_object_set_new and the like, NULL when out of memory. Not finite = null; text is cleaned. */
json_t *chi_json_num(double x);
json_t *chi_json_nums(const float *x, size_t n);
json_t *chi_json_text(const char *s);

/* ---- CSV ------------------------------------------------------------------------------------------------- */
/* Tidy tables: a header, then rows. Quoted as RFC 4180 says, lines end in \n. Numbers: %.9g, so f32 survives; NaN is an
 * empty cell. Failures are sticky and reported by chi_csv_row and chi_csv_commit. */
typedef struct chi_csv chi_csv;
int chi_csv_open(chi_csv **out, const char *path, const char *const *columns, size_t n, chi_err *err);
void chi_csv_str(chi_csv *c, const char *s); /* NULL = empty */
void chi_csv_int(chi_csv *c, int64_t x);
void chi_csv_num(chi_csv *c, double x);
int chi_csv_row(chi_csv *c, chi_err *err);    /* ends a row; CHI_ERR_ARG if it has not n cells */
int chi_csv_commit(chi_csv *c, chi_err *err); /* frees c in every case */
void chi_csv_abort(chi_csv *c);               /* NULL-safe */

/* ---- tables for the terminal ----------------------------------------------------------------------------- */
/* Columns are as wide as their widest cell, two spaces apart. Where that passes the width of the terminal, the widest
 * text columns are cut with an ellipsis (to 4 at least); numbers are never cut. Widths are those of the characters on
 * the screen. */
typedef struct chi_table chi_table;
/* align: one letter a column, 'l' (text) or 'r' (numbers); its length is the number of columns. */
int chi_table_new(chi_table **out, const char *const *head, const char *align, chi_err *err);
/* The next cell, row by row. Failures show up in chi_table_text. */
void chi_table_cell(chi_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends to out; an unfinished row is filled. */
int chi_table_text(const chi_table *t, int width, chi_str *out, chi_err *err);
void chi_table_free(chi_table *t);
/* Columns that a string takes on the screen. */
int chi_text_width(const char *s);

/* ---- colours --------------------------------------------------------------------------------------------- */
/* t in [-1, 1] (clipped): blue, light grey at 0, red; even steps to the eye, readable for colour-blind people. */
void chi_heat_color(double t, uint8_t rgb[3]);
/* The smallest of 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8 x 10^k that is at least |x|; 1 for 0 and for what is not finite. */
double chi_nice_limit(double x);

/* ---- heat maps ------------------------------------------------------------------------------------------- */
typedef enum chi_row_mark {
  CHI_ROW_PLAIN,
  CHI_ROW_MARKED, /* the words in question: bold, coloured, with a bar along every panel */
  CHI_ROW_DIM,    /* template words and special tokens */
} chi_row_mark;

typedef struct chi_heat_row {
  const char *label; /* token; spaces at its ends are dropped, a line break is shown as an arrow */
  chi_row_mark mark;
} chi_heat_row;

/* A grid of panels: one line of panels a site (MLP, attention, ...), one column of panels a source (own, donor,
 * difference). In each panel: rows = tokens, columns = layers. */
typedef struct chi_heatmap_spec {
  const char *title;           /* bold, e.g. the question */
  size_t mark_begin, mark_end; /* byte range of the title to be coloured as marked rows are; equal = none */
  const char *const *lines;    /* below the title: the answer, its probabilities, what was done */
  size_t n_lines;
  const chi_image *thumb; /* may be NULL */

  int n_rows, n_layers, first_layer; /* layers are numbered from first_layer */
  const chi_heat_row *rows;          /* [n_rows] */
  int n_sites, n_cols;
  const char *const *site_names; /* [n_sites] */
  const char *const *col_names;  /* [n_cols], NULL where there is nothing to tell apart */
  const char *const *col_notes;  /* [n_cols] one sentence each for the legend, or NULL */
  const float *const *values;    /* [n_sites * n_cols], sites first; each [n_layers][n_rows]; NaN = blank */
  const char *mark_note;         /* legend of marked rows, or NULL */
  const char *scale_label;       /* what the colours mean, e.g. "change of p(Lima)" */
  double limit;                  /* colours run from -limit to limit; 0 = from the values */
  bool limit_per_site;           /* limit 0 only: one scale and one colour bar for each site */
  int top;                       /* the so many strongest cells of each panel get an outline */
  const bool *const
      *outline; /* as values: cells with an outline, each NULL or [n_layers][n_rows]; NULL = none. With top 0 */
  const char *outline_note; /* legend of these outlines */
  double scale;             /* pixels a unit in PNG; 0 = 2 */
} chi_heatmap_spec;

/* Where things are, in units; PNG pixels are `scale` times that. Cell (layer l, row r) of panel (site s, column c) is
 * at x0 + c*col_step + l*cell_w, y0 + s*site_step + r*cell_h, less a gap of 1 at its right and lower edge. */
typedef struct chi_heatmap_box {
  double w, h, x0, y0, cell_w, cell_h, col_step, site_step;
} chi_heatmap_box;

/* Both check the spec (counts from 1 to 10,000, no missing pointers): CHI_ERR_ARG. prov may be NULL. */
int chi_heatmap_layout(chi_heatmap_box *out, const chi_heatmap_spec *s, chi_err *err);
int chi_heatmap_save(const chi_heatmap_spec *s, const chi_provenance *prov, const char *path, chi_err *err);

/* ---- pictures with values on their patches ----------------------------------------------------------------- */
/* One line of panels a map: the picture as the model saw it, the same with colours on its patches, and those patches on
 * the original picture, where what the model never saw (cut off by the crop) is greyed out. Colours are laid over a pale
 * grey copy of the picture: strong where the value is, none at 0. */
typedef struct chi_overlay_map {
  const char *name;    /* above its panels, or NULL */
  const float *values; /* [grid_h * grid_w], row by row; NaN = no colour */
} chi_overlay_map;

typedef struct chi_overlay_spec {
  const char *title;
  const char *const *lines; /* below the title */
  size_t n_lines;
  const chi_image *seen;     /* what the model saw: chi_preprocess's rgb */
  const chi_image *original; /* with view; NULL: no third panel */
  const chi_view *view;      /* chi_preprocess's */
  int grid_h, grid_w;        /* 1 to 1,000 */
  int n_maps;                /* 1 to 64 */
  const chi_overlay_map *maps;
  bool sequential;         /* values from 0 up: half of the colour bar; negative ones get no colour */
  double limit;            /* colours run to limit (and from -limit); 0 = from the values of all maps */
  const char *scale_label; /* what the colours mean */
  int top;                 /* the so many strongest patches of each map get an outline */
  double scale;            /* pixels a unit in PNG; 0 = 2 */
} chi_overlay_spec;

/* Panels in units, {x, y, w, h} for the first map; map k stands k*map_step lower. whole is empty without original. */
typedef struct chi_overlay_box {
  double w, h, plain[4], patches[4], whole[4], map_step;
} chi_overlay_box;

/* CHI_ERR_ARG: counts out of range, missing pointers, a view of another picture. prov may be NULL. */
int chi_overlay_layout(chi_overlay_box *out, const chi_overlay_spec *s, chi_err *err);
int chi_overlay_save(const chi_overlay_spec *s, const chi_provenance *prov, const char *path, chi_err *err);

/* ---- line charts ----------------------------------------------------------------------------------------- */
typedef struct chi_curve {
  const char *name;
  const double *y;       /* [n]; NaN = a gap */
  const double *lo, *hi; /* [n] a band around it, e.g. an interval; both or none */
} chi_curve;

typedef struct chi_refline { /* a dashed horizontal line: chance, the clean run */
  double y;
  const char *name;
} chi_refline;

/* Curves differ in colour (colour-blind-safe), in the mark at their points and, from the eighth on, in dashes. */
typedef struct chi_linechart_spec {
  const char *title;
  const char *const *lines; /* below the title */
  size_t n_lines;
  const char *x_label, *y_label;
  const double *x; /* [n], increasing, finite */
  size_t n;        /* 1 to 100,000 */
  const chi_curve *curves;
  int n_curves; /* 1 to 28 */
  const chi_refline *refs;
  int n_refs;          /* 0 to 8 */
  double y_min, y_max; /* equal = from the values */
  bool y_zero;         /* from the values: 0 is on the axis */
  double w, h;         /* of the plot in units; 0 = 620 x 340 */
  double scale;        /* pixels a unit in PNG; 0 = 2 */
} chi_linechart_spec;

/* The plot is at (x, y, plot_w, plot_h) in units; its left edge is value x_min, its lower edge y_min. */
typedef struct chi_linechart_box {
  double w, h, x, y, plot_w, plot_h, x_min, x_max, y_min, y_max;
} chi_linechart_box;

/* CHI_ERR_ARG: counts out of range, missing pointers, x not increasing. prov may be NULL. */
int chi_linechart_layout(chi_linechart_box *out, const chi_linechart_spec *s, chi_err *err);
int chi_linechart_save(const chi_linechart_spec *s, const chi_provenance *prov, const char *path, chi_err *err);
/* Colour of curve k. */
void chi_curve_color(int k, uint8_t rgb[3]);

/* ---- dots with intervals --------------------------------------------------------------------------------- */
/* Rows share their names; each panel has one measure of all of them. */
typedef struct chi_dot_row {
  double x, lo, hi; /* x NaN: nothing is drawn; lo, hi NaN: no interval */
} chi_dot_row;

typedef struct chi_dot_panel {
  const char *title;
  const chi_dot_row *dot; /* [n_rows] */
  double x_min, x_max;    /* equal = from the values */
  double ref;             /* a dashed line; NaN = none */
} chi_dot_panel;

typedef struct chi_dotchart_spec {
  const char *title;
  const char *const *lines; /* below the title */
  size_t n_lines;
  const char *const *rows; /* [n_rows] names */
  const bool *dim;         /* [n_rows] drawn in grey: baselines; NULL = none */
  int n_rows;              /* 1 to 200 */
  const chi_dot_panel *panels;
  int n_panels; /* 1 to 12 */
  double scale; /* pixels a unit in PNG; 0 = 2 */
} chi_dotchart_spec;

/* Row r of panel k is at height y + (r + 0.5) row_h; its values run from x0[k] = x_min[k] to x0[k] + panel_w = x_max[k]. */
typedef struct chi_dotchart_box {
  double w, h, y, row_h, panel_w, x0[12], x_min[12], x_max[12];
} chi_dotchart_box;

/* CHI_ERR_ARG: counts out of range, missing pointers. prov may be NULL. */
int chi_dotchart_layout(chi_dotchart_box *out, const chi_dotchart_spec *s, chi_err *err);
int chi_dotchart_save(const chi_dotchart_spec *s, const chi_provenance *prov, const char *path, chi_err *err);

#endif

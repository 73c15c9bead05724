/* What the files of the study report share. */
#ifndef CHI_STUDY_INTERNAL_H
#define CHI_STUDY_INTERNAL_H

#include "report/study_report.h"
#include "study/study.h"

typedef struct chii_item { /* a finished item */
  const chi_store_item *row;
  json_t *info;
  int right; /* of the first ask: 1, 0, -1 = unknown */
  double p;
} chii_item;

typedef struct chii_view { /* some of the items */
  const char *name, *title;
  int32_t *at; /* [cl.n_items]: index into items */
  chi_clusters cl;
} chii_view;
enum { CHII_ALL, CHII_KEPT, CHII_VIEWS };
enum { CHII_PROBES = 4 };

typedef struct chii_study {
  const chi_study_report_opts *opts;
  const chi_provenance *prov;
  const char *run, *dir;
  chi_store *store;
  chi_arena arena;
  chi_store_item *row; /* all of them, as stored */
  size_t n_rows;
  chii_item *item; /* those that are done */
  int32_t n_items;
  const char **kind; /* results */
  size_t n_kinds;
  char ask[32]; /* the first form */
  json_t *settings;
  chii_view view[CHII_VIEWS];
  int n_views; /* 1 where the filters leave nothing or everything */
  chi_boot_opts boot;
  chi_str filters; /* HTML: what they were and how many items each took */
  chi_str html;
  json_t *json;
  chi_csv *maps, *curves;
  int figures;
  chi_curve probe[CHII_PROBES]; /* of linear probes, by layer from the input on; in the arena */
  int n_probe;
  size_t probe_points;
} chii_study;

/* One kind over a view, [n_items][size], NaN where an item has none. size 0: nobody has it. Caller: chii_matrix_free. */
typedef struct chii_matrix {
  double *v;
  size_t size;
  int ndim;
  int64_t dim[CHI_STORE_DIMS];
  int32_t n; /* items that have it */
} chii_matrix;
int chii_study_load(chii_study *s, chi_err *err);
void chii_study_free(chii_study *s);
int chii_matrix_of(chii_matrix *out, chii_study *s, const chii_view *v, chi_err *err, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void chii_matrix_free(chii_matrix *m);
/* Mean over items of a column; NaN without any. */
double chii_mean(const chii_matrix *m, int32_t n_items, size_t column);
/* A column of a matrix, [n_items]. */
void chii_column(double *out, const chii_matrix *m, int32_t n_items, size_t column);
bool chii_has_kind(const chii_study *s, const char *prefix);
/* The i-th part (from 0) of a name between slashes. */
bool chii_part(const char *name, int i, char *buf, size_t cap);

/* ---- the page -------------------------------------------------------------------------------------------- */
void chii_page_text(chi_str *out, const char *text); /* escaped */
void chii_page_head(chi_str *out, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void chii_page_para(chi_str *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Table: names of columns split by '|', left-aligned the first and those with '<' before them; cells one by one. */
void chii_page_table(chi_str *out, const char *columns);
void chii_page_row(chi_str *out);
void chii_page_cell(chi_str *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void chii_page_words(chi_str *out, const char *text, bool bold); /* a cell of words that may wrap */
void chii_page_num(chi_str *out, double x, int decimals);        /* an empty cell for NaN */
void chii_page_table_end(chi_str *out);
/* "0.123 (0.100 to 0.140)" */
void chii_page_est(chi_str *out, const chi_est *e, int decimals);
/* A figure's files, PNG and SVG, and the picture in the page. */
int chii_heatmap(chii_study *s, const chi_heatmap_spec *spec, const char *name, chi_err *err);
int chii_linechart(chii_study *s, const chi_linechart_spec *spec, const char *name, chi_err *err);
int chii_page_write(chii_study *s, chi_err *err);
json_t *chii_est_json(const chi_est *e);

/* ---- curves by layer --------------------------------------------------------------------------------------- */
typedef struct chii_series { /* a result of one dimension, averaged over a view */
  char kind[300], label[120];
  const chii_view *v;
  double (*f)(double); /* of every value before averaging; NULL = none */
} chii_series;
/* A chart of those series that have items, with bands, and their rows of curves.csv. first: number of the first point. */
int chii_series_chart(chii_study *s, const char *title, const char *y_label, const char *name, const chii_series *list,
                      int n, int first, chi_err *err);
/* The right (1) or wrong (0) items of all. Caller: chi_clusters_free(&out->cl). */
int chii_view_right(chii_view *out, chii_study *s, int right, chi_err *err);

/* ---- sections -------------------------------------------------------------------------------------------- */
int chii_study_claims(chii_study *s, chi_err *err); /* report/study_claims.h; also claims.csv */
int chii_probe_chart(chii_study *s, chi_err *err);  /* after the claims */
int chii_study_maps(chii_study *s, chi_err *err);
int chii_study_transfer(chii_study *s, chi_err *err); /* knock-out, contributions, lens, attribution */
int chii_study_predict(chii_study *s, chi_err *err);
int chii_study_twins(chii_study *s, chi_err *err); /* paired shifts of peaks */

#endif

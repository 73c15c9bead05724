/* heads_report: heads switched off, neurons compared, and the query side of value neurons, as JSON, CSV, pictures and text. */
#ifndef CHI_HEADS_REPORT_H
#define CHI_HEADS_REPORT_H

#include "analyze/headscan.h"
#include "analyze/qside.h"
#include "report/report.h"

typedef struct chi_heads_result {
  const chi_headscan *scan;
  const chi_attribution *attr; /* of the same prompt and target: the increases beside the drops */
  chi_attr_head head;          /* that neurons are compared for */
  const chi_cna_neuron *neuron;
  int32_t n_neurons; /* 0: not compared */
} chi_heads_result;

/* Caller: json_decref. */
int chi_heads_json(json_t **out, const chi_heads_result *r, const chi_provenance *prov, chi_err *err);
/* dir/heads.{json,csv,png,svg}; dir is made. */
int chi_heads_write(const chi_heads_result *r, const chi_provenance *prov, const char *dir, chi_str *files,
                    chi_err *err);
int chi_heads_summary(const chi_heads_result *r, int width, int top, chi_str *out, chi_err *err);

/* The query side as an object (no provenance) and as text. */
json_t *chi_qside_json(const chi_qside *q, const chi_attribution *a);
int chi_qside_summary(const chi_qside *q, const chi_attribution *a, int width, int top, chi_str *out, chi_err *err);

#endif

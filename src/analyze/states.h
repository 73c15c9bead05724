/* analyze/states: what the captures of a plan gave, kept in memory and written as tensors. */
#ifndef CHI_STATES_H
#define CHI_STATES_H

#include "file/file.h"
#include "sweep/run.h"

typedef struct chi_state {
  int64_t width;   /* columns of a row; pattern: heads * keys, short rows padded with zeros */
  int32_t n_rows, heads, keys; /* heads, keys: pattern only */
  float *values;   /* [n_rows][width]; pattern: [heads][n_rows][keys] */
} chi_state;

typedef struct chi_states {
  const chi_plan *plan; /* borrowed */
  chi_state *state;     /* per capture of the plan, as many as there were */
  size_t n;
} chi_states;

/* Room for every capture that the plan has now. Caller: chi_states_free. */
int chi_states_new(chi_states **out, const chi_plan *plan, const chi_shape *shape, chi_err *err);
void chi_states_free(chi_states *s);
/* A chi_capture_fn with the chi_states as ud. Captures added to the plan later are ignored. */
int chi_states_receive(void *states, int capture, int32_t i, const float *values, int64_t width);
/* Adds capture i as an F32 tensor, [rows, width] or [heads, rows, keys]. Values are borrowed until the writer commits. */
int chi_states_add(const chi_states *s, size_t i, chi_st_writer *w, const char *name, chi_err *err);

#endif

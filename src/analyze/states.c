#include "analyze/states.h"

#include "analyze/select.h"

#include <string.h>

int chi_states_new(chi_states **out, const chi_plan *plan, const chi_shape *shape, chi_err *err) {
  int rc = 0;
  chi_states *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  s->plan = plan;
  s->n = plan->n_captures;
  s->state = chi_calloc(s->n, sizeof *s->state, err);
  if (!s->state) rc = CHI_ERR_MEMORY;
  for (size_t i = 0; rc == 0 && i < s->n; i++) {
    const chi_capture *c = &plan->capture[i];
    const chi_stack_shape *k = &shape->stack[c->stack];
    chi_state *t = &s->state[i];
    t->n_rows = c->n_rows;
    if (chi_site_is_pattern(c->site) && c->n_rows > 0) {
      t->heads = k->heads;
      t->keys = chi_site_keys(shape, c->stack, c->site, c->rows[c->n_rows - 1],
                              chi_branch_rows(plan, shape, c->branch, c->stack, c->site));
    }
    t->width = chi_site_width(shape, c->stack, c->site, t->keys);
    if (t->width == 0)
      rc = chi_fail(err, CHI_ERR_ARG, "this model has no site '%s' in its %s", chi_site_get(c->site)->name,
                    chi_stack_name(c->stack));
    else if (!(t->values = chi_calloc((size_t)t->n_rows, (size_t)t->width * sizeof *t->values, err)))
      rc = CHI_ERR_MEMORY;
  }
  if (rc)
    chi_states_free(s);
  else
    *out = s;
  return rc;
}

void chi_states_free(chi_states *s) {
  if (!s) return;
  for (size_t i = 0; s->state && i < s->n; i++) chi_free(s->state[i].values);
  chi_free(s->state);
  chi_free(s);
}

int chi_states_receive(void *states, int capture, int32_t i, const float *values, int64_t width) {
  chi_states *s = states;
  if ((size_t)capture >= s->n) return 0;
  chi_state *t = &s->state[capture];
  if (!t->heads) {
    memcpy(t->values + i * t->width, values, (size_t)width * sizeof *values);
    return 0;
  }
  int64_t keys = width / t->heads;
  for (int64_t h = 0; h < t->heads; h++)
    memcpy(t->values + (h * t->n_rows + i) * t->keys, values + h * keys, (size_t)keys * sizeof *values);
  return 0;
}

int chi_states_add(const chi_states *s, size_t i, chi_st_writer *w, const char *name, chi_err *err) {
  const chi_state *t = &s->state[i];
  int64_t flat[2] = {t->n_rows, t->width}, cube[3] = {t->heads, t->n_rows, t->keys};
  return t->heads ? chi_st_writer_add(w, name, CHI_F32, 3, cube, t->values, err)
                  : chi_st_writer_add(w, name, CHI_F32, 2, flat, t->values, err);
}

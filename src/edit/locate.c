/* Where to edit: the MLP whose output carries the answer from picture to question, by tracing under picture swap.
 * What a third picture's value repairs as well is not the fact (docs/design.md, "a donor control is needed"). */
#include <stdio.h>
#include <string.h>

#include "analyze/trace.h"
#include "edit/edit.h"

enum { kPairs = 4 };
static const double kSmall = 0.01;

/* One trace added to sums [4][layers][rows]: own and own minus donor, in p, then in log p. */
static void add_trace(const chi_trace *t, double *sum, size_t cells) {
  const chi_metrics *base = chi_trace_base(t);
  for (int l = 0; l < t->n_layers; l++)
    for (int r = 0; r < t->n_rows; r++) {
      const chi_metrics *a = chi_trace_at(t, CHI_TRACE_OWN, CHI_TRACE_MLP, l, r),
                        *b = chi_trace_at(t, CHI_TRACE_DONOR, CHI_TRACE_MLP, l, r);
      double *to = sum + l * t->n_rows + r;
      to[0] += a->p - base->p;
      to[cells] += a->p - b->p;
      to[2 * cells] += a->logp - base->logp;
      to[3 * cells] += a->logp - b->logp;
    }
}

/* The cell of the largest corrected effect in layers [lo, hi]. */
static void strongest(chi_located *out, const chi_trace *t, const double *sum, size_t cells, int lo, int hi) {
  double best = 0;
  for (int l = lo < 0 ? 0 : lo; l <= hi && l < t->n_layers; l++)
    for (int r = 0; r < t->n_rows; r++) {
      double d = sum[cells + (size_t)(l * t->n_rows + r)] / out->pairs;
      if (out->row >= 0 && d <= best) continue;
      best = out->effect = d;
      out->row = t->rows[r], out->layer = l;
      out->own = sum[l * t->n_rows + r] / out->pairs;
    }
}

int chi_edit_locate(chi_located *out, const chi_model *m, const chi_prompt *p, const char *const *pictures, size_t n,
                    int lo, int hi, size_t mem, chi_err *err) {
  int rc = 0;
  char spec[4200];
  chi_trace *t = NULL;
  double *sum = NULL;
  size_t cells = 0;
  *out = (chi_located){.row = -1, .layer = -1};
  if (!p->pixels || n < 2)
    return chi_fail(err, CHI_ERR_ARG,
                    "--edit-at auto compares pictures: it needs a question about a picture and at least two others "
                    "(--donor)");
  if (hi < 0) hi = m->net.decoder.spec.layers - 1;
  for (size_t i = 0; i + 1 < n && out->pairs < kPairs; i += 2, out->pairs++) {
    if (snprintf(spec, sizeof spec, "picture:%s", pictures[i]) >= (int)sizeof spec) {
      rc = chi_fail(err, CHI_ERR_ARG, "the path %.60s... is too long", pictures[i]);
      goto out;
    }
    chi_trace_opts o = CHI_TRACE_OPTS_INIT;
    memset(o.site, 0, sizeof o.site);
    o.site[CHI_TRACE_MLP] = true;
    o.corrupt.spec = spec;
    o.donor = pictures[i + 1];
    o.mem = mem;
    CHI_TRY(chi_trace_run(&t, m, p, &o, err));
    if (!sum) {
      cells = (size_t)t->n_layers * (size_t)t->n_rows;
      CHI_TRY((sum = chi_calloc(4 * cells, sizeof *sum, err)) ? 0 : CHI_ERR_MEMORY);
    }
    add_trace(t, sum, cells);
    if (i + 3 >= n || out->pairs + 1 == kPairs) { /* the last one: rows by its list */
      out->pairs++;
      break;
    }
    chi_trace_free(t);
    t = NULL;
  }
  strongest(out, t, sum, cells, lo, hi);
  if (out->row >= 0 && out->effect < kSmall) { /* no single MLP moves p: what it does to log p still tells them apart */
    out->row = -1, out->in_logp = true;
    strongest(out, t, sum + 2 * cells, cells, lo, hi);
  }
  if (out->row < 0) rc = chi_fail(err, CHI_ERR_ARG, "--edit-at auto: no layer from %d to %d in this model", lo, hi);
out:
  chi_free(sum);
  chi_trace_free(t);
  return rc;
}

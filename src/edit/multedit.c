/* MultEdit: W* = argmin |W k - z|^2 + lambda |W - W'|^2 = W' + (z - W'k) k^T / (lambda + k.k), one layer, one key. */
#include <math.h>

#include "edit/edit.h"

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  int64_t d = j->m->net.decoder.spec.d, f = j->m->net.decoder.spec.ffn;
  float *key = chi_calloc((size_t)f, sizeof *key, err), *delta = chi_calloc((size_t)d, sizeof *delta, err);
  CHI_TRY(key && delta ? 0 : CHI_ERR_MEMORY);
  if (j->layer_lo != j->layer_hi) {
    rc = chi_fail(err, CHI_ERR_ARG, "multedit changes one layer; memit spreads a change over several");
    goto out;
  }
  CHI_TRY(chi_edit_residual(j, key, delta, err));
  j->info.lambda = j->h.lambda_share ? j->h.lambda * j->info.kk : j->h.lambda;
  if (!(j->info.lambda + j->info.kk > 0)) {
    rc = chi_fail(err, CHI_ERR_ARG, "the key is zero and so is lambda: no change can be written");
    goto out;
  }
  for (int64_t i = 0; i < d; i++) delta[i] = (float)((double)delta[i] / (j->info.lambda + j->info.kk));
  CHI_TRY(chi_delta_add(j->delta, CHI_DECODER, j->layer_lo, CHI_W_DOWN, d, f, 1, delta, key, err));
out:
  chi_free(key);
  chi_free(delta);
  return rc;
}

static const chi_preset kPresets[] = {
    {.name = "ours",
     .doc = "steps in units of the value, a clamp that lets it move",
     .layer_lo = 2,
     .layer_hi = 2,
     .hyper = {.steps = 60,
               .lr = 0.4,
               .lr_share = true,
               .stop = 0.02,
               .decay = 1e-3,
               .clamp = 10,
               .lambda = 0.01,
               .lambda_share = true,
               .shrink = NAN,
               .limit = NAN,
               .goal = NAN,
               .kl = 0,
               .contexts = 0,
               .rank = NAN,
               .alpha = NAN}},
    {.name = "released",
     .doc = "defaults of the released script; its clamp of 1e-4 is expected to do nothing",
     .layer_lo = 2,
     .layer_hi = 2,
     .hyper = {.steps = 10,
               .lr = 0.1,
               .stop = 0,
               .decay = 1e-3,
               .clamp = 1e-4,
               .lambda = 0.01,
               .shrink = NAN,
               .limit = NAN,
               .goal = NAN,
               .kl = 0,
               .contexts = 0,
               .rank = NAN,
               .alpha = NAN}},
    {0}};
const chi_method chi_method_multedit = {.name = "multedit", .presets = kPresets, .run = run};

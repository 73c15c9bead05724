/* ROME: dW = (z - W'k) (C^-1 k)^T / (k . C^-1 k), so that W k = z exactly. The same key k is used in every place (the
 * released code mixes an averaged with a plain one, which blows up: r-ROME). C: identity, or a second moment of
 * keys. */
#include <math.h>

#include "edit/edit.h"

static int run(chi_job *j, chi_err *err) {
  int rc = 0;
  int64_t d = j->m->net.decoder.spec.d, f = j->m->net.decoder.spec.ffn;
  const double *c = NULL;
  double *x = chi_calloc((size_t)f, sizeof *x, err), kx = 0;
  float *key = chi_calloc((size_t)f, sizeof *key, err), *delta = chi_calloc((size_t)d, sizeof *delta, err);
  CHI_TRY(key && delta && x ? 0 : CHI_ERR_MEMORY);
  if (j->layer_lo != j->layer_hi) {
    rc = chi_fail(err, CHI_ERR_ARG, "rome changes one layer; memit spreads a change over several");
    goto out;
  }
  CHI_TRY(chi_edit_moment(&c, j, j->layer_lo, f, err));
  CHI_TRY(chi_edit_residual(j, key, delta, err));
  for (int64_t i = 0; i < f; i++) x[i] = (double)key[i];
  if (c) chi_chol_solve(c, f, x);
  for (int64_t i = 0; i < f; i++) kx += (double)key[i] * x[i];
  if (!(kx > 0)) {
    rc = chi_fail(err, CHI_ERR_ARG, "the key is zero: no change can be written");
    goto out;
  }
  for (int64_t i = 0; i < f; i++) key[i] = (float)(x[i] / kx);
  CHI_TRY(chi_delta_add(j->delta, CHI_DECODER, j->layer_lo, CHI_W_DOWN, d, f, 1, delta, key, err));
out:
  chi_free(x);
  chi_free(key);
  chi_free(delta);
  return rc;
}

static const chi_preset kPresets[] = {{.name = "ours",
                                       .doc = "steps in units of the value, a wide clamp, little decay",
                                       .layer_lo = 2,
                                       .layer_hi = 2,
                                       .hyper = {.steps = 60,
                                                 .lr = 0.4,
                                                 .lr_share = true,
                                                 .stop = 0.02,
                                                 .decay = 1e-3,
                                                 .clamp = 10,
                                                 .lambda = NAN,
                                                 .shrink = 0.1,
                                                 .limit = NAN,
                                                 .goal = NAN,
                                                 .kl = 0,
                                                 .contexts = 0,
                                                 .rank = NAN,
                                                 .alpha = NAN}},
                                      {.name = "published",
                                       .doc = "GPT-2 XL of the paper's code (20 prefixes, KL term); layer 17 there",
                                       .layer_lo = 2,
                                       .layer_hi = 2,
                                       .hyper = {.steps = 19,
                                                 .lr = 0.5,
                                                 .stop = 0.05,
                                                 .decay = 0.5,
                                                 .clamp = 4,
                                                 .lambda = NAN,
                                                 .shrink = 0,
                                                 .limit = NAN,
                                                 .goal = NAN,
                                                 .kl = 0.0625,
                                                 .contexts = 20,
                                                 .rank = NAN,
                                                 .alpha = NAN}},
                                      {0}};
const chi_method chi_method_rome = {.name = "rome", .presets = kPresets, .run = run};

/* Options of commands that edit; see edit_opts.h. */
#include "edit_opts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "edit/ike.h"

static int parse_layers(cli_edit_plan *p, const char *text, chi_err *err) {
  char *end;
  p->lo = p->hi = -1;
  if (!text) return 0;
  long a = strtol(text, &end, 10), b = a;
  bool ok = end != text;
  if (ok && *end == '-') {
    const char *from = end + 1;
    b = strtol(from, &end, 10);
    ok = end != from;
  }
  if (!ok || *end || a < 0 || b < a || b > 100000)
    return cli_usage(err, "--layer is a number or a range such as 1-3, not '%s'", text);
  p->lo = (int)a;
  p->hi = (int)b;
  return 0;
}

static int load_demos(cli_edit_plan *p, const cli_edit_args *a, chi_err *err) {
  int rc = 0;
  bool ike = strcmp(a->method, "ike") == 0;
  if (ike && p->hyper.contexts > 0 && !a->demos)
    return cli_usage(err, "ike needs demonstrations, --demos FILE --encoder DIR, or --preset bare for none");
  if (!a->demos && !a->encoder) return 0;
  if (!ike) return cli_usage(err, "--demos and --encoder belong to --method ike");
  if (!a->demos || !a->encoder) return cli_usage(err, "--demos and --encoder go together");
  CHI_TRY(chi_demos_load(
      &p->demos,
      &(chi_demos_opts){
          .file = a->demos, .encoder = a->encoder, .limit = (size_t)a->demo_limit, .short_answer = a->short_answer},
      err));
  p->edit.demos = p->demos;
out:
  return rc;
}

int cli_edit_plan_make(cli_edit_plan *p, const cli_edit_args *a, const cli_common *c, chi_err *err) {
  int rc = 0;
  const chi_method *method;
  memset(p, 0, sizeof *p);
  CHI_TRY(chi_method_find(&method, a->method, err));
  CHI_TRY(chi_preset_find(&p->preset, method, a->preset, err));
  p->hyper = p->preset->hyper;
  for (int i = 0; i < CLI_HYPERS; i++)
    if (a->hyper[i]) CHI_TRY(chi_hyper_set(&p->hyper, chi_hyper_names[i], a->hyper[i], err));
  CHI_TRY(parse_layers(p, a->layer, err));
  p->edit = (chi_edit_opts){.method = a->method,
                            .preset = a->preset,
                            .layer_lo = p->lo,
                            .layer_hi = p->hi,
                            .hyper = &p->hyper,
                            .moments = a->moments,
                            .factors = &p->factors};
  if (p->lo < 0) p->lo = p->preset->layer_lo, p->hi = p->preset->layer_hi;
  p->weight = a->weight ? a->weight : p->preset->weight ? p->preset->weight : "down";
  if (chi_edit_weights(&p->edit, p->weight, err)) {
    rc = CLI_USAGE;
    goto out;
  }
  if (a->prefixes)
    CHI_TRY(chi_prefixes_load(&p->prefixes, a->prefixes, err));
  else if (p->hyper.contexts > 0 && strcmp(a->method, "ike") != 0)
    chi_log(CHI_LOG_INFO, "%s draws %.0f prefixes, and there is no --prefixes file: the bare prompt alone", a->method,
            p->hyper.contexts);
  CHI_TRY(load_demos(p, a, err));
  p->query = (chi_query_opts){.tmpl = c->tmpl,
                              .raw = c->raw,
                              .at = a->at,
                              .prefixes = a->prefixes ? &p->prefixes : NULL,
                              .contexts = p->hyper.contexts > 0 ? (size_t)p->hyper.contexts : 0,
                              .seed = a->seed,
                              .kl = p->hyper.kl > 0};
out:
  return rc;
}

void cli_edit_plan_free(cli_edit_plan *p) {
  chi_prefixes_free(&p->prefixes);
  chi_factors_free(&p->factors);
  chi_demos_free(p->demos);
}

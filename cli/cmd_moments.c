/* chiasm moments: second moments of MLP keys, for rome and memit. */
#include "edit/moments.h"

#include <stdlib.h>

#include "cli.h"

typedef struct args {
  cli_common c;
  const char *data, *texts, *out, *layers;
  int64_t keys;
  int which;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--data", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, data),
     .doc = "data set whose questions, with their pictures, are asked"},
    {.name = "--texts", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, texts),
     .doc = "text, each line a prompt as it stands; with --data, questions and lines take turns"},
    {.name = "--layers", .arg = "A-B", .kind = CLI_STR, CLI_AT(args, layers),
     .doc = "decoder layers; all if not given"},
    {.name = "--keys", .arg = "N", .kind = CLI_INT, CLI_AT(args, keys), .min = 0, .max = 1e12,
     .doc = "rows to collect; 0 is 20 for each hidden neuron of the MLP"},
    {.name = "--rows", .arg = "all|text", .kind = CLI_CHOICE, CLI_AT(args, which),
     .doc = "rows whose keys count: all, or all but the picture's"},
    {.name = "--output", .letter = 'o', .arg = "FILE|DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "the file; in a folder it is named by the hash of model, sources and settings"},
    {0}};
/* clang-format on */

static int parse_layers(chi_moments_opts *o, const char *text, const chi_model *m, chi_err *err) {
  char *end;
  o->lo = 0, o->hi = m->net.decoder.spec.layers - 1;
  if (!text) return 0;
  long a = strtol(text, &end, 10), b = a;
  bool ok = end != text;
  if (ok && *end == '-') {
    const char *from = end + 1;
    b = strtol(from, &end, 10);
    ok = end != from;
  }
  if (!ok || *end || a < 0 || b < a || b > 100000)
    return cli_usage(err, "--layers is a number or a range such as 1-3, not '%s'", text);
  o->lo = (int)a, o->hi = (int)b;
  return 0;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  chi_model *m = NULL;
  chi_moments_info i;
  chi_provenance prov;
  json_t *j = NULL;
  chi_str s = {0};
  if (!a->out) return cli_usage(err, "-o FILE is required");
  if (!a->data && !a->texts) return cli_usage(err, "--data FILE or --texts FILE is required");
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  chi_moments_opts o = {.data = a->data,
                        .texts = a->texts,
                        .text_rows = a->which == 1,
                        .keys = a->keys,
                        .tmpl = a->c.tmpl,
                        .out = a->out,
                        .mem = a->c.mem};
  CHI_TRY(parse_layers(&o, a->layers, m, err));
  CHI_TRY(chi_moments_collect(&i, m, &o, err));
  double each = (double)i.keys / (double)i.ffn;
  if (i.keys < i.asked)
    chi_log(CHI_LOG_WARN, "%lld keys were wanted and the sources gave %lld: shrink the moments, or add prompts",
            (long long)i.asked, (long long)i.keys);
  chi_str_addf(&s, "%s\n%lld keys, %.1f for each of %lld neurons, of %lld prompts", i.file, (long long)i.keys, each,
               (long long)i.ffn, (long long)i.prompts);
  if (i.resumed) chi_str_addf(&s, " (%lld were there)", (long long)i.resumed);
  if (i.skipped) chi_str_addf(&s, "; %lld could not be asked", (long long)i.skipped);
  chi_str_addf(&s, "\nlayers %d to %d, %s rows; from %s\n", o.lo, o.hi, o.text_rows ? "text" : "all", i.source);
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  CHI_TRY(chi_report_json(&j, "moments", &prov, err));
  json_object_update_new(
      j, json_pack("{s:o,s:o,s:I,s:I,s:I,s:I,s:I,s:[i,i],s:s}", "file", chi_json_text(i.file), "source",
                   chi_json_text(i.source), "keys", (json_int_t)i.keys, "keys_asked", (json_int_t)i.asked, "ffn",
                   (json_int_t)i.ffn, "prompts", (json_int_t)i.prompts, "skipped", (json_int_t)i.skipped, "layers",
                   o.lo, o.hi, "rows", o.text_rows ? "text" : "all"));
  CHI_TRY(a->c.json ? cli_print_json(j, err) : cli_print(&s, err));
out:
  json_decref(j);
  chi_str_free(&s);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_moments = {
    .name = "moments",
    .usage = "MODEL",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Collects E[k k^T] of what each MLP's last matrix reads, over the questions of a data set and the lines of a\n"
        "text, in one pass. `chiasm edit --moments FILE` then spares the directions that prompts commonly use\n"
        "(rome, memit). A pass that was interrupted goes on where it stopped; a finished one is not done again.",
    .examples =
        "chiasm moments demo --data models/demo/eval/items.jsonl -o out/moments\n"
        "chiasm edit demo models/demo/samples/peru.png \"What is the capital of [this country]?\" --target Oslo "
        "--method rome --moments out/moments.safetensors",
};

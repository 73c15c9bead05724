/* chiasm export: a checkpoint folder with deltas in its weights. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "edit/edit.h"

typedef struct args {
  cli_common c;
  int dtype;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS};
static const cli_opt kOpts[] = {{.name = "--export-dtype",
                                 .arg = "keep|f32|f16|bf16",
                                 .kind = CLI_CHOICE,
                                 CLI_AT(args, dtype),
                                 .doc = "element type of the weights written; keep: each as the base stores it"},
                                {0}};

/* The request of a delta, asked again; *p stays NaN-free: false where it cannot be asked (no request, picture gone). */
static bool ask(double *p, const chi_model *m, const chi_delta *d) {
  const json_t *r = json_object_get(d->header, "request");
  const char *q = json_string_value(json_object_get(r, "prompt")), *t = json_string_value(json_object_get(r, "target")),
             *image = json_string_value(json_object_get(r, "image")),
             *sha = json_string_value(json_object_get(r, "image_sha256"));
  chi_prompt_opts o = {.image = image,
                       .question = q,
                       .tmpl = json_string_value(json_object_get(r, "template")),
                       .raw = json_is_true(json_object_get(r, "raw"))};
  chi_prompt *prompt = NULL;
  int32_t *target = NULL, n = 0;
  chi_err err = {0};
  *p = 0;
  bool ok = q && t && chi_prompt_make(&prompt, m, &o, &err) == 0 && (!image || chi_streq(sha, prompt->image_sha)) &&
            chi_target_tokens(&target, &n, m, prompt, t, &err) == 0 && chi_edit_p(p, m, prompt, target, n, &err) == 0;
  chi_prompt_free(prompt);
  chi_free(target);
  return ok;
}

static int compare(chi_str *s, const cli *c, chi_delta **list, chi_model *base, const chi_model *after, chi_err *err) {
  int rc = 0, n = c->common->apply.n;
  chi_undo undo = {0};
  double p[CLI_LIST_MAX], q;
  bool ok[CLI_LIST_MAX];
  for (int i = 0; i < n; i++) CHI_TRY(chi_delta_apply(list[i], base, &undo, err));
  for (int i = 0; i < n; i++) ok[i] = ask(&p[i], base, list[i]);
  for (int i = 0; i < n; i++) {
    const json_t *r = json_object_get(list[i]->header, "request");
    const char *t = json_string_value(json_object_get(r, "target"));
    if (!ok[i] || !ask(&q, after, list[i])) {
      chi_str_addf(s, "%s: its request cannot be asked again here (no request, or the picture is gone)\n",
                   c->common->apply.v[i]);
      continue;
    }
    chi_str_addf(s, "p(%s)  %.4f with the delta in memory, %.4f from %s\n", t, p[i], q, after->path);
    if (q < p[i] - 0.05)
      chi_log(CHI_LOG_WARN,
              "%s: the export lost %.2f of p(%s): its weights' type is too narrow, try --export-dtype f32",
              c->common->apply.v[i], p[i] - q, t);
  }
out:
  chi_delta_undo(&undo);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  static const char *const types[] = {NULL, "f32", "f16", "bf16"};
  const args *a = v;
  int rc = 0;
  chi_model *m = NULL, *after = NULL;
  chi_delta **list = NULL;
  chi_str s = {0};
  CHI_TRY(cli_open_base(&m, c, c->pos[0], err));
  CHI_TRY(cli_load_deltas(&list, c, m, err));
  CHI_TRY(chi_export(m, list, (size_t)c->common->apply.n, c->pos[1], types[a->dtype], err));
  chi_dtype_choice same = m->net.compute == CHI_COMPUTE_BF16 ? CHI_DTYPE_BF16 : CHI_DTYPE_F32;
  CHI_TRY(chi_model_open_with(&after, c->pos[1], c->common->mmproj, same, err));
  CHI_TRY(compare(&s, c, list, m, after, err));
  chi_str_addf(&s, "wrote %s\n", c->pos[1]);
  CHI_TRY(cli_print(&s, err));
out:
  cli_free_deltas(list, c);
  chi_model_free(m);
  chi_model_free(after);
  chi_str_free(&s);
  return rc;
}

const cli_command cmd_export = {
    .name = "export",
    .usage = "MODEL OUT",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Writes MODEL with the deltas of --apply as an ordinary Hugging Face folder, or as a GGUF file where MODEL is\n"
        "one; OUT must not exist yet. Asks the deltas' own questions before and after: narrow types eat small edits.\n"
        "MODEL itself is only read. Edited tensors of a GGUF file are F16 or F32, never quantised again.",
    .examples = "chiasm export demo edited --apply fact.delta --export-dtype f32",
};

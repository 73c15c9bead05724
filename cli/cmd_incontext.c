/* chiasm incontext: do heads look up the answer where the asked thing is, in a picture as in a text? */
#include "analyze/incontext.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

enum { kPicture, kText, kBare, kColumns };
typedef struct args {
  cli_common c;
  const char *answer, *rival, *object, *other, *swap, *text, *text_swap, *text_model;
  int64_t heads, rows;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .heads = 10, .rows = 20};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--answer", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, answer),
     .doc = "the right value, e.g. a colour (text or #id); else the model's first answer token"},
    {.name = "--rival", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, rival), .doc = "another value of the same kind"},
    {.name = "--object", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, object), .doc = "the thing that is asked about"},
    {.name = "--other", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, other), .doc = "another thing, as a control"},
    {.name = "--swap", .arg = "QUESTION", .kind = CLI_STR, CLI_AT(args, swap),
     .doc = "the question about another thing, of as many tokens: attention on the same rows"},
    {.name = "--text", .arg = "QUESTION", .kind = CLI_STR, CLI_AT(args, text),
     .doc = "the described twin, asked without the picture, beside it"},
    {.name = "--text-swap", .arg = "QUESTION", .kind = CLI_STR, CLI_AT(args, text_swap),
     .doc = "the same for the twin"},
    {.name = "--text-model", .arg = "MODEL", .kind = CLI_STR, CLI_AT(args, text_model),
     .doc = "the twin asked of another model as well, e.g. the bare language model"},
    {.name = "--heads", .arg = "K", .kind = CLI_INT, CLI_AT(args, heads), .min = 1, .max = 1e6, .doc = "best heads"},
    {.name = "--rows", .arg = "N", .kind = CLI_INT, CLI_AT(args, rows), .min = 1, .max = 1e6,
     .doc = "best rows of each head"},
    {0}};
/* clang-format on */

static int one(chi_incontext **out, cli *c, const args *a, const chi_model *m, const char *image, const char *question,
               const char *swap, chi_err *err) {
  int rc = 0;
  bool more = false;
  chi_prompt *p = NULL, *s = NULL;
  chi_incontext_opts o = CHI_INCONTEXT_OPTS_INIT;
  o.n_heads = (int32_t)a->heads, o.n_rows = (int32_t)a->rows, o.mem = a->c.mem;
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  const struct {
    const char *text, *name;
    int32_t *to;
  } tokens[] = {{a->answer, "--answer", &o.answer},
                {a->rival, "--rival", &o.rival},
                {a->object, "--object", &o.object},
                {a->other, "--other", &o.other}};
  for (int i = 0; i < 4; i++)
    if (tokens[i].text) CHI_TRY(chi_answer_token(tokens[i].to, &more, m, p, tokens[i].text, tokens[i].name, err));
  if (swap) CHI_TRY(cli_make_prompt(&s, c, m, image, swap, false, err));
  o.swapped = s;
  CHI_TRY(chi_incontext_run(out, m, p, &o, err));
out:
  chi_prompt_free(p);
  chi_prompt_free(s);
  return rc;
}

static int print_json(cli *c, chi_incontext *const *x, const char *const *name, chi_model *m, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  CHI_TRY(chi_report_json(&j, "incontext", &prov, err));
  for (int i = 0; i < kColumns; i++) {
    if (!x[i]) continue;
    json_t *o = json_object(), *heads = json_array();
    for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++)
      json_object_set_new(o, chi_incontext_measures[k].key, chi_json_num(chi_incontext_get(x[i], k)));
    for (int k = 0; k < x[i]->n_heads; k++)
      json_array_append_new(heads, json_pack("[i,i]", x[i]->head[k].layer, x[i]->head[k].head));
    json_object_set_new(o, "heads", heads);
    json_object_set_new(j, name[i], o);
    for (int k = 0; k < i; k++) {
      char key[64];
      snprintf(key, sizeof key, "heads_shared_%s_%s", name[k], name[i]);
      if (x[k])
        json_object_set_new(j, key,
                            json_integer(chi_heads_shared(x[k]->head, x[k]->n_heads, x[i]->head, x[i]->n_heads)));
    }
  }
  CHI_TRY(cli_print_json(j, err));
out:
  json_decref(j);
  return rc;
}

static int print_table(chi_incontext *const *x, const char *const *name, chi_err *err) {
  int rc = 0, cols = 1;
  const char *head[kColumns + 1] = {""};
  char align[] = "lrrr";
  chi_table *t = NULL;
  chi_str s = {0};
  for (int i = 0; i < kColumns; i++)
    if (x[i]) head[cols++] = name[i];
  align[cols] = 0;
  CHI_TRY(chi_table_new(&t, head, align, err));
  for (int k = 0; k < CHI_INCONTEXT_MEASURES; k++) {
    chi_table_cell(t, "%s", chi_incontext_measures[k].text);
    for (int i = 0; i < kColumns; i++) {
      if (!x[i]) continue;
      if (isnan(chi_incontext_get(x[i], k)))
        chi_table_cell(t, "-");
      else
        chi_table_cell(t, "%.3f", chi_incontext_get(x[i], k));
    }
  }
  CHI_TRY(chi_table_text(t, cli_width(), &s, err));
  for (int i = 0; i < kColumns; i++)
    for (int k = 0; k < i; k++)
      if (x[i] && x[k])
        chi_str_addf(&s, "best heads that %s and %s share: %d of %d\n", name[k], name[i],
                     chi_heads_shared(x[k]->head, x[k]->n_heads, x[i]->head, x[i]->n_heads), x[i]->n_heads);
  CHI_TRY(cli_print(&s, err));
out:
  chi_table_free(t);
  chi_str_free(&s);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  static const char *const kName[kColumns] = {"question", "text", "text_model"};
  const args *a = v;
  int rc = 0;
  const char *image, *question;
  chi_model *m = NULL, *bare = NULL;
  chi_incontext *x[kColumns] = {NULL};
  if (a->text_model && !a->text) return cli_usage(err, "--text-model needs --text, the question that it is asked");
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(one(&x[kPicture], c, a, m, image, question, a->swap, err));
  if (a->text) CHI_TRY(one(&x[kText], c, a, m, NULL, a->text, a->text_swap, err));
  if (a->text_model) {
    CHI_TRY(cli_open_base(&bare, c, a->text_model, err));
    CHI_TRY(one(&x[kBare], c, a, bare, NULL, a->text, a->text_swap, err));
  }
  CHI_TRY(a->c.json ? print_json(c, x, kName, m, err) : print_table(x, kName, err));
out:
  for (int i = 0; i < kColumns; i++) chi_incontext_free(x[i]);
  chi_model_free(bare);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_incontext = {
    .name = "incontext",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Do heads look up the answer where the asked thing is? In the best heads' best rows (by log-probability\n"
        "increase): what they write of the answer and of a rival, what earlier attention had written there of\n"
        "the thing, how much attention they get, and how much when another thing is asked about. Beside a\n"
        "picture its described twin, by the same model and by the bare language model: which heads are shared?",
    .examples =
        "chiasm incontext demo models/demo/samples/shapes.png \"What color is the star?\" --rival green \\\n"
        "  --object star --swap \"What color is the heart?\"",
};

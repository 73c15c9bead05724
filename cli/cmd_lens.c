/* chiasm lens: what every state would say. */
#include "analyze/lens.h"

#include <string.h>

#include "analyze/select.h"
#include "cli.h"
#include "report/lens_report.h"

typedef struct args {
  cli_common c;
  const char *rows, *layers, *word, *out, *dump_plan;
  int64_t top, max_rows;
  int embeddings;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .rows = "last", .top = 5, .max_rows = 60};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--rows", .arg = "WHICH", .kind = CLI_STR, CLI_AT(args, rows),
     .doc = "last, constraint, image, text, all, or row numbers as 0-3,7"},
    {.name = "--layers", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, layers),
     .doc = "states after these layers, as 0-3,7; default: the decoder's input and all of them"},
    {.name = "--top", .letter = 'k', .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = 1, .max = 1000,
     .doc = "words of each state"},
    {.name = "--word", .arg = "WORD", .kind = CLI_STR, CLI_AT(args, word),
     .doc = "also this word's rank in every state, and by role and layer (text or #id)"},
    {.name = "--embeddings", .arg = "none|dot|cosine", .kind = CLI_CHOICE, CLI_AT(args, embeddings),
     .doc = "also picture rows against the input embeddings of all tokens"},
    {.name = "--max-rows", .arg = "N", .kind = CLI_INT, CLI_AT(args, max_rows), .min = 1, .max = 1e6,
     .doc = "rows of the terminal's table"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the forward pass and what is captured of it, for `chiasm run`"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write lens.{json,csv,html} there"},
    {0}};
/* clang-format on */

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_lens *l = NULL;
  int32_t *rows = NULL, *layers = NULL, *words = NULL;
  chi_str text = {0};
  json_t *j = NULL;
  chi_plan *plan = NULL;
  chi_provenance prov;
  chi_lens_opts o = {.k = (int32_t)a->top, .embed = (chi_embed_view)a->embeddings, .mem = a->c.mem};
  chi_lens_word_name word = {.text = a->word};
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt_of(
      &p, c, m,
      &(chi_prompt_opts){
          .image = image, .question = question, .need_constraint = chi_streq(a->rows, "constraint"), .several = true},
      err));
  CHI_TRY(chi_select_rows(&rows, &o.n_rows, a->rows, p, err));
  o.rows = rows;
  if (a->layers) {
    CHI_TRY(chi_select_ranges(&layers, &o.n_layers, a->layers, m->net.decoder.spec.layers, "layer", err));
    o.layers = layers;
  }
  if (a->word) {
    CHI_TRY(chi_lens_word(&words, &o.n_words, &word.part, m, p, a->word, err));
    o.words = words;
    if (word.text[0] == ' ') word.text += strspn(word.text, " ");
  }
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  CHI_TRY(chi_lens_run(&l, m, p, &o, err));
  if (a->dump_plan) {
    CHI_TRY(chi_lens_plan(&plan, l, err));
    CHI_TRY(cli_dump_plan(plan, m, p, image, -1, a->dump_plan, err));
  }
  if (a->out) CHI_TRY(chi_lens_write(l, word, &prov, a->out, err));
  if (a->c.json) {
    CHI_TRY(chi_lens_json(&j, l, word, &prov, err));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(chi_lens_summary(l, word, cli_width(), (int)a->max_rows, &text, err));
    if (a->out) chi_str_addf(&text, "\nwrote %s/lens.{json,csv,html}\n", a->out);
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(j);
  chi_str_free(&text);
  chi_lens_free(l);
  chi_free(rows);
  chi_free(layers);
  chi_free(words);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_lens = {
    .name = "lens",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "What would each state say if the model stopped there? Its own final norm and head are applied to the\n"
        "residual stream after every layer (logit lens); the last layer's column is the model's own output. With -o,\n"
        "a page that opens in any browser without a network: hover over a patch and its row lights up, and the\n"
        "other way round.",
    .examples =
        "chiasm lens demo models/demo/samples/peru.png \"What is the capital of this country?\" --word Peru\n"
        "chiasm lens demo models/demo/samples/peru.png \"What is the capital of this country?\" --rows all -o out",
};

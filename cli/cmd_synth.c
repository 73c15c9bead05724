/* chiasm synth: random checkpoints of well-known shapes. */
#include "cli.h"
#include "model/synth.h"

typedef struct args {
  int64_t layers, image;
  const char *tokenizer;
  uint64_t seed;
  bool list;
} args;
/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--seed", .arg = "S", .kind = CLI_UINT, CLI_AT(args, seed), .doc = "of the random weights"},
    {.name = "--layers", .arg = "N", .kind = CLI_INT, CLI_AT(args, layers), .min = 0, .max = 1000,
     .doc = "layers of the decoder; 0 is the shape's own"},
    {.name = "--image", .arg = "PIXELS", .kind = CLI_INT, CLI_AT(args, image), .min = 0, .max = 4096,
     .doc = "side of the picture in pixels; 0 is the shape's own"},
    {.name = "--tokenizer", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, tokenizer),
     .doc = "a tokenizer.json of at most the shape's tokens, so that prompts are as long as "
            "the real model's; without it a token is a byte"},
    {.name = "--list", .kind = CLI_FLAG, CLI_AT(args, list), .doc = "print the shapes that there are"},
    {0}};
/* clang-format on */

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  chi_str s = {0};
  size_t n;
  const chi_synth_spec *specs = chi_synth_specs(&n);
  if (!a->list && c->n_pos != 2) return cli_usage(err, "synth needs a shape and a folder, or --list");
  chi_synth_opts o = {.layers = (int)a->layers, .image = (int)a->image, .tokenizer = a->tokenizer};
  int rc = a->list ? 0 : chi_synth_write(c->pos[0], &o, c->pos[1], a->seed, err);
  for (size_t i = 0; a->list && i < n; i++) chi_str_addf(&s, "%-15s %s\n", specs[i].name, specs[i].doc);
  if (!a->list) chi_str_addf(&s, "wrote %s\n", c->pos[1]);
  if (rc == 0) rc = cli_print(&s, err);
  chi_str_free(&s);
  return rc;
}

const cli_command cmd_synth = {
    .name = "synth",
    .usage = "[SHAPE] [DIR]",
    .opts = kOpts,
    .args_size = sizeof(args),
    .run = run,
    .text =
        "Writes a checkpoint with random weights in the shape of a well-known model, to measure speed and memory\n"
        "without downloading anything. Its answers mean nothing.",
    .examples = "chiasm synth --list\nchiasm synth llava-1.5-7b /tmp/llava-7b",
};

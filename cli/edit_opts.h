/* What every command that edits lets one choose: method, preset, layers, row, hyperparameters. */
#ifndef CLI_EDIT_OPTS_H
#define CLI_EDIT_OPTS_H

#include "cli.h"
#include "edit/edit.h"

enum { CLI_HYPERS = 13 }; /* as chi_hyper_names */
typedef struct cli_edit_args {
  const char *method, *preset, *layer, *weight, *moments, *at, *prefixes, *demos, *encoder;
  int64_t demo_limit;
  bool short_answer; /* not an option: the form of demonstrations (edit/ike.h) */
  uint64_t seed;
  const char *hyper[CLI_HYPERS];
} cli_edit_args;
#define CLI_EDIT_DEFAULTS \
  { .method = "multedit", .at = "constraint-last" }

/* Rows of an option table; `member` is the cli_edit_args in `type`. */
#define CLI_EDIT_HYPER(type, member, i, n, a, d) \
  {.name = n, .arg = a, .kind = CLI_STR, CLI_AT(type, member.hyper[i]), .doc = d}
#define CLI_EDIT_OPTS(type, member)                                                                                       \
  {.name = "--method",                                                                                                    \
   .arg = "NAME",                                                                                                         \
   .kind = CLI_STR,                                                                                                       \
   CLI_AT(type, member.method),                                                                                           \
   .doc = "multedit, rome, memit, ft, lora, ike, bias"},                                                                       \
      {.name = "--preset",                                                                                                \
       .arg = "NAME",                                                                                                     \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.preset),                                                                                       \
       .doc = "hyperparameters by name (multedit: ours, released; rome, memit: ours, published; ft: constrained, "        \
              "unconstrained, ft-l, ft-v); the first if not given"},                                                                  \
      {.name = "--layer",                                                                                                 \
       .arg = "L|A-B",                                                                                                    \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.layer),                                                                                        \
       .doc = "decoder layer, for memit and lora also a range; the preset's if not given"},                               \
      {.name = "--edit-at",                                                                                               \
       .arg = "ROW",                                                                                                      \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.at),                                                                                           \
       .doc = "whose key: constraint-last, last-prompt, last-image, span:TEXT, row:N, or auto: where tracing under "      \
              "picture swap finds the strongest effect beyond a donor's (needs two other pictures)"},                     \
      CLI_EDIT_HYPER(type, member, 0, "--steps", "N", "steps of Adam"),                                                   \
      CLI_EDIT_HYPER(type, member, 1, "--lr", "X",                                                                        \
                     "learning rate of Adam: a number, or a share of |z0|/sqrt(d) such as 0.4z"),                         \
      CLI_EDIT_HYPER(type, member, 2, "--stop", "X",                                                                      \
                     "stop when the mean -log p of the target's tokens is below; 0 is never"),                            \
      CLI_EDIT_HYPER(type, member, 3, "--decay", "X", "penalty on |delta| / |z0|^2"),                                     \
      CLI_EDIT_HYPER(type, member, 4, "--clamp", "X", "|delta| at most X times |z0|; 0 is no limit"),                     \
      CLI_EDIT_HYPER(type, member, 5, "--lambda", "X", "regularisation: a number, or a share of k.k such as 0.05kk"),     \
      CLI_EDIT_HYPER(type, member, 6, "--shrink", "X", "share of the identity in the second moment of --moments"),        \
      CLI_EDIT_HYPER(type, member, 7, "--max-change", "X", "ft: most that an element may change; 0 is no limit"),         \
      CLI_EDIT_HYPER(type, member, 8, "--goal", "P", "bias: probability to reach"),                                       \
      CLI_EDIT_HYPER(type, member, 9, "--kl", "X",                                                                        \
                     "weight of KL(changed || unchanged) on the prompt `<image> {constraint} is a`"),                     \
      CLI_EDIT_HYPER(type, member, 10, "--contexts", "N",                                                                 \
                     "prefixes drawn from --prefixes that the value must serve as well"),                                 \
      CLI_EDIT_HYPER(type, member, 11, "--rank", "N", "lora: rank of each matrix's change"),                              \
      CLI_EDIT_HYPER(type, member, 12, "--alpha", "X", "lora: the change is scaled by X / rank"),                         \
      {.name = "--prefixes",                                                                                              \
       .arg = "FILE",                                                                                                     \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.prefixes),                                                                                     \
       .doc = "text, a line is a prefix; stands between picture and question"},                                           \
      {.name = "--seed",                                                                                                  \
       .arg = "N",                                                                                                        \
       .kind = CLI_UINT,                                                                                                  \
       CLI_AT(type, member.seed),                                                                                         \
       .doc = "of everything random: prefixes, random sites"},                                                            \
      {.name = "--moments",                                                                                               \
       .arg = "FILE",                                                                                                     \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.moments),                                                                                      \
       .doc = "rome, memit: second moments of keys, made by `chiasm moments`; the identity if not given"},                \
      {.name = "--weight",                                                                                                \
       .arg = "NAME",                                                                                                     \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.weight),                                                                                       \
       .doc = "ft, lora: q, k, v, o, gate, up or down, if not given the preset's or down; ft also vision.down, "            \
              "qformer.up, projector.proj2 and so on, and several: up,down"},  \
      {.name = "--demos",                                                                                                 \
       .arg = "FILE",                                                                                                     \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.demos),                                                                                        \
       .doc = "ike: MMEdit's records or an edit set that demonstrations come from; --contexts of them are retrieved"},    \
      {.name = "--encoder",                                                                                               \
       .arg = "DIR",                                                                                                      \
       .kind = CLI_STR,                                                                                                   \
       CLI_AT(type, member.encoder),                                                                                      \
       .doc = "ike: sentence encoder of the all-MiniLM-L6-v2 layout (scripts/get_encoder.sh)"},                           \
      {.name = "--demo-limit",                                                                                            \
       .arg = "N",                                                                                                        \
       .kind = CLI_INT,                                                                                                   \
       CLI_AT(type, member.demo_limit),                                                                                   \
       .min = 0,                                                                                                          \
       .max = 1e9,                                                                                                        \
       .doc = "ike: only the first N records of --demos; 0 = all" }

typedef struct cli_edit_plan { /* what the options mean */
  chi_edit_opts edit;          /* layers -1 where none were given */
  chi_hyper hyper;             /* edit.hyper points here */
  const chi_preset *preset;
  int lo, hi;                  /* given, or the preset's */
  const char *weight;          /* the same */
  chi_prefixes prefixes;
  chi_factors factors;         /* edit.factors */
  struct chi_demos *demos;     /* edit.demos */
  chi_query_opts query;        /* at, prefixes, contexts, seed, kl, tmpl, raw; picture, question, target are the caller's */
} cli_edit_plan;
/* Not to be copied afterwards (it points into itself). Caller: cli_edit_plan_free. */
int cli_edit_plan_make(cli_edit_plan *p, const cli_edit_args *a, const cli_common *c, chi_err *err);
void cli_edit_plan_free(cli_edit_plan *p);

#endif

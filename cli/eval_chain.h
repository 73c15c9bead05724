/* `chiasm eval edits --sequential`: a chain of edits, and what it does to what no edit was about. */
#ifndef CLI_EVAL_CHAIN_H
#define CLI_EVAL_CHAIN_H

#include "cli.h"
#include "eval/edits.h"

typedef struct cli_chain {
  const cli *c;
  chi_model *m; /* keeps the edits */
  const chi_edit_set *set;
  const chi_editor *editor;
  const char *at;    /* "1,10,100" */
  const char *items; /* file of untouched questions, or NULL */
  const char *split; /* of the items */
  size_t n_items;    /* so many of them; 0 = all */
  const char *out, *tmpl;
  size_t mem;
  json_t *head; /* of the log; gets the items' hash */
} cli_chain;
int cli_chain_run(const cli_chain *o, chi_err *err);

#endif

/* Several edits of one file of requests: all at once, or one after another. */
#ifndef CLI_EDIT_MANY_H
#define CLI_EDIT_MANY_H

#include "cli.h"
#include "edit/edit.h"

typedef struct cli_edit_many {
  const cli *c;
  chi_model *m;
  const char *requests, *out; /* out may be NULL */
  bool sequential;
  const chi_edit_opts *edit;
  chi_query_opts ask; /* what all have in common; picture, question and target come from the file */
} cli_edit_many;
/* Makes the edits, writes one delta, prints p(target) of each before, right after its own edit, and after all. */
int cli_edit_many_run(const cli_edit_many *o, chi_err *err);

#endif

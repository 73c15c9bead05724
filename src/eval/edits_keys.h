/* edits_keys: how far an edit's key reaches: its cosine with, and the share of the change that falls on, the keys of the same
 * question about other pictures (edit.h, chi_edit_leak). */
#ifndef CHI_EDITS_KEYS_H
#define CHI_EDITS_KEYS_H

#include "eval/edits.h"

typedef struct chi_key_job {
  const chi_model *m; /* as it was before the edit */
  const chi_edit_set *set;
  size_t item; /* a question about a picture */
  const chi_edits_opts *o;
  const chi_editor_note *note; /* row, layer, lambda, delta */
} chi_key_job;
/* {pictures, cosine_mean, cosine_max, leak_mean, leak_max}: over pictures of other entities, the item's own probes first, then
 * the next items' requests. *out stays as it is where there is no other picture. Caller: json_decref. */
int chi_edits_keys(json_t **out, const chi_key_job *j, chi_err *err);

#endif

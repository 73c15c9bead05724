/* eval: what an edit moved. Every item of an edit set (data/edits.h) is edited alone, from the base, and its probes are
 * asked before and after: does the answer follow (five generalities), does everything else stay (five localities)? A
 * picture-blind edit passes every published measure, so (a) the same question about other pictures and (b) other questions
 * about the same picture stand in the headline. The key's cosine and leak share k.k' / (lambda + k.k) against other
 * pictures say why. */
#ifndef CHI_EDITS_EVAL_H
#define CHI_EDITS_EVAL_H

#include "data/edits.h"
#include "edit/edit.h"
#include "file/jlog.h"

/* What edits: a method of methods.def with its settings, or anything that changes a model, or what stands before its
 * questions. */
typedef struct chi_editor chi_editor;
typedef struct chi_editor_note { /* about one edit; NAN and -1 = does not apply */
  int32_t row;                   /* of the key in the request's prompt */
  int layer, steps;              /* last layer that was changed */
  double loss, delta_norm;       /* last -log p; |delta| as chi_edit_info has it */
  double lambda;                 /* NAN: none */
  chi_delta *delta;              /* owned by the evaluation; NULL where no weights change */
  char *context;                 /* in-context methods: stands before every question; chi_free; NULL = none */
} chi_editor_note;
struct chi_editor {
  const char *name; /* of the row in tables and logs */
  /* Makes one edit from the model as it is and leaves it so; what is to change stands in note. */
  int (*edit)(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item, chi_err *err);
  const void *ud;
};

typedef struct chi_method_editor { /* ud of the editors below */
  chi_edit_opts edit;              /* method, preset, layers, hyper, moments */
  chi_query_opts query;            /* tmpl, raw, at (or "auto"), prefixes, contexts, seed, kl */
  size_t mem;
} chi_method_editor;
int chi_editor_method(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                      chi_err *err);
/* The same at a random layer and row of the prompt, drawn by the query's seed and the item: the place must matter. */
int chi_editor_random(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                      chi_err *err);
int chi_editor_none(const chi_editor *e, chi_editor_note *note, chi_model *m, const chi_edit_set *set, size_t item,
                    chi_err *err);

typedef struct chi_edits_opts {
  const chi_editor *const *editor;
  size_t n_editors;
  const char *tmpl;
  bool raw;   /* as in chi_ask_opts */
  int others; /* pictures of other items whose keys are compared; 0 = 50 */
  int max_new;
  int per_kind; /* probes of each kind at most, the first ones; 0 = all */
  bool trace;   /* also the effect of tracing under picture swap at the edited cell (edit.h, chi_edit_map), where the item
                   has two probes "same_question" with pictures */
  const chi_jlog *before; /* another log of this set and model: what was said before the edits is taken from there */
  size_t mem;
} chi_edits_opts;

/* Asks, edits, asks again, every fifth item first, so that what is done at any time is spread over the set; one line of the log
 * for each item and editor ("editor|id"), those that are there are skipped. An edit that fails (a loss that is not finite, a
 * target without a token, no constraint) is a line with its reason and counts as no success; it does not end the run. */
int chi_edits_run(chi_jlog *log, chi_model *m, const chi_edit_set *set, const chi_edits_opts *o, chi_err *err);
/* The id of an editor's line about an item, in buf. */
const char *chi_edits_line_id(char *buf, size_t cap, const char *editor, const char *item);

#endif

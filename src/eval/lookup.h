/* lookup: in-context lookup by heads (analyze/incontext.h) over a data set: the tables of Yu & Ananiadou 2024 (their section on
 * visual question answering against the same questions in text) with intervals.
 *
 * Of an item are asked: the item itself, and those of its twins that are wanted ("described", "named"); the twins without a
 * picture also of the bare language model, as "bare described". Answer, rival, thing and another thing are first tokens as
 * they stand behind the prompt:
 *
 *   answer   the ask's own            rival   the answer of another item of the same form and relation, drawn by the seed
 *   thing    the item's entity        other   the entity of that item
 *   swapped  the first bracket's first substitute that leaves the number of rows as it is */
#ifndef CHI_LOOKUP_H
#define CHI_LOOKUP_H

#include "analyze/incontext.h"
#include "data/dataset.h"
#include "eval/stats.h"
#include "file/file.h"

enum { CHI_LOOKUP_ASKS = 3, CHI_LOOKUP_COLUMNS = 2 * CHI_LOOKUP_ASKS - 1 };
/* "item", "described", "named", "bare described", "bare named" */
extern const char *const chi_lookup_column[CHI_LOOKUP_COLUMNS];

typedef struct chi_lookup_opts {
  const chi_model *bare; /* NULL = none */
  const char *tmpl;      /* of every prompt; NULL = the models' own */
  int32_t n_heads, n_rows;
  uint64_t seed;
  size_t mem;
} chi_lookup_opts;

/* One item as a line of a log (file/jlog.h): "id", "unit", "status" and, where it is "ok", "asks": of each column that the
 * item has {"right", measures, "heads": [[layer, head], ...]}. other: the item that rival and other thing are of, or NULL.
 * What an ask cannot do is its "problem"; where the item's own ask fails the item has. Caller: json_decref. */
int chi_lookup_line(json_t **out, const chi_model *m, const chi_data_item *it, const chi_data_item *other,
                    const chi_lookup_opts *o, chi_err *err);
/* Another item of the list of the same form and relation, with other answer and entity; NULL where there is none. */
const chi_data_item *chi_lookup_other(const chi_data_item *const *list, size_t n, size_t i, uint64_t seed);

typedef struct chi_lookup_row {
  chi_est mean;      /* of items whose answer is right; 95 % by bootstrap over units; n = 0: nobody has it */
  chi_est less_item; /* paired: less the item's own ask; n = 0: the item's own, or nobody has both */
} chi_lookup_row;
typedef struct chi_lookup_pair {
  int a, b;
  chi_est shared;
} chi_lookup_pair; /* columns; heads among the best of both */
enum { CHI_LOOKUP_PAIRS = CHI_LOOKUP_COLUMNS * (CHI_LOOKUP_COLUMNS - 1) / 2 };
/* Differences between measures of one ask: the direction that the paper has. */
typedef struct chi_lookup_control {
  const char *key, *text;
  int a, b;
} chi_lookup_control; /* measure a less measure b */
enum { CHI_LOOKUP_CONTROLS = 5 };
extern const chi_lookup_control chi_lookup_controls[CHI_LOOKUP_CONTROLS];

typedef struct chi_lookup_table {
  int items, failed, units, asked[CHI_LOOKUP_COLUMNS], right[CHI_LOOKUP_COLUMNS];
  chi_lookup_row row[CHI_LOOKUP_COLUMNS][CHI_INCONTEXT_MEASURES];
  chi_est control[CHI_LOOKUP_COLUMNS][CHI_LOOKUP_CONTROLS];
  int n_pairs;
  chi_lookup_pair pair[CHI_LOOKUP_PAIRS];
  int n_heads;      /* that were kept of each ask */
  double by_chance; /* heads that two random choices of as many share in the mean */
} chi_lookup_table;
/* lines: array of finished items. all_heads: of the model. */
int chi_lookup_table_make(chi_lookup_table **out, const json_t *lines, int all_heads, const chi_boot_opts *boot,
                          chi_err *err);
void chi_lookup_table_free(chi_lookup_table *t);

#endif

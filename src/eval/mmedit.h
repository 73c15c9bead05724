/* mmedit: one record of MMEdit (data/mmedit.h) asked before and after an edit (Cheng et al. 2023, section 3.3). The measures
 * are those of the authors' repository, whose definitions moved over time; a protocol says which strings are asked:
 *
 *   E3     April 2024 to November 2025: "Question: {q} Short answer:" for picture questions, and for the unrelated picture
 *          question in both tasks; captions and text questions bare
 *   E4     since November 2025: the edited question and its rephrase bare, else as E3
 *   vlkeb  all bare (Huang et al. 2024)
 *   own    all in the model's own template, special tokens included: for models that answer nothing else
 *
 * E1 and E2 are left out: they scored labels that the model never saw (docs/mmedit.md). In all but `own`, no BOS and no EOS;
 * the answer stands behind a space; its tokens are those of the whole text behind as many tokens as the prompt alone has, and
 * teacher forcing reads the most likely token at each. Per record and input:
 *   acc     share of the answer's tokens that are the most likely ones
 *   exact   all of them are
 *   nll     mean -log p of the answer's tokens
 *   right   the greedy answer, up to a line feed or end token, is the target (case, blanks and a final stop aside)
 * and of the unrelated questions, over all positions of prompt and answer, picture rows included:
 *   same    share of equal entries of the k most likely tokens, rank by rank; k = 1 for text, 10 with a picture. Of two
 *           lengths the last positions are compared
 *   answer  the same over the positions that predict the answer alone
 *   kl      mean KL(before || after), over all positions and over the answer's */
#ifndef CHI_EVAL_MMEDIT_H
#define CHI_EVAL_MMEDIT_H

#include "data/mmedit.h"
#include "edit/edit.h"

typedef enum chi_mm_protocol { CHI_MM_E3, CHI_MM_E4, CHI_MM_VLKEB, CHI_MM_OWN } chi_mm_protocol;
typedef enum chi_mm_input { CHI_MM_EDIT, CHI_MM_REPHRASE, CHI_MM_PICTURE } chi_mm_input;
typedef enum chi_mm_side { CHI_MM_TEXT, CHI_MM_MULTI } chi_mm_side;
enum { CHI_MM_INPUTS = 3, CHI_MM_SIDES = 2, CHI_MM_MAX_PORTS = 64 };
extern const char *const chi_mm_input_name[CHI_MM_INPUTS]; /* "reliability", "t_generality", "m_generality" */
extern const char *const chi_mm_side_name[CHI_MM_SIDES];   /* "t_locality", "m_locality" */

typedef struct chi_mm_opts {
  chi_mm_protocol protocol;
  bool caption;     /* E-IC: captions are asked for bare in E3, too */
  const char *tmpl; /* template that the strings go into; NULL = the family's: picture, then text (own: the model's) */
  bool generate;    /* also greedy answers */
  bool
      short_memory; /* keep of a record's answers before the edit what `same` and `answer` need: kl over all positions is
                        not measured. For edits one after another */
  size_t mem;       /* as in chi_run_opts */
} chi_mm_opts;

typedef struct chi_mm_answer {
  bool asked;
  double acc, exact, nll;
  double right;             /* NAN where nothing was generated */
  char said[128];           /* "" likewise */
  int32_t n, *label, *pred; /* [n]: the answer's tokens, and what the model would have said in their place */
} chi_mm_answer;

typedef struct chi_mm_local {
  bool asked;
  double same, answer, kl, kl_answer; /* NAN where not measured */
  int32_t rows, n;                    /* positions compared, and of these predicting the answer */
} chi_mm_local;

typedef struct chi_mm_result {
  chi_mm_answer before[CHI_MM_INPUTS], after[CHI_MM_INPUTS];
  chi_mm_answer port_before[CHI_MM_MAX_PORTS], port_after[CHI_MM_MAX_PORTS]; /* as the record's ports */
  chi_mm_local local[CHI_MM_SIDES];
  bool moved;    /* in some input, the prompt's own tokens change where the answer stands behind it */
} chi_mm_result; /* labels live as long as the case */

/* A record's prompts in a model, with what was measured so far. For all protocols but `own` the model's plain_ids has to be
 * set. Refused: an answer without tokens, a prompt that does not fit. Caller: chi_mm_case_free. */
typedef struct chi_mm_case chi_mm_case;
int chi_mm_case_make(chi_mm_case **out, const chi_model *m, const chi_mmedit *e, const chi_mm_opts *o, chi_err *err);
void chi_mm_case_free(chi_mm_case *c); /* NULL-safe */
/* Everything before the edit; then, in the edited model, everything after. */
int chi_mm_before(chi_mm_case *c, const chi_model *m, chi_err *err);
int chi_mm_after(chi_mm_case *c, const chi_model *m, chi_err *err);
/* Instead of chi_mm_after: what a perfect edit (all) or a table of edited questions would have given. */
void chi_mm_pretend(chi_mm_case *c, bool all);
const chi_mm_result *chi_mm_result_of(const chi_mm_case *c);
/* The edit that the record asks for: prompt and target tokens, borrowed from the case; row: as chi_edit_row. */
int chi_mm_request(chi_request *out, const chi_mm_case *c, const chi_model *m, const char *at, chi_err *err);

#endif

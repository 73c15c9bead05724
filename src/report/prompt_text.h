/* report/prompt_text: a prompt's rows and picture in words, for the reports of analyses. */
#ifndef CHI_PROMPT_TEXT_H
#define CHI_PROMPT_TEXT_H

#include "analyze/patches.h"
#include "report/report.h"

enum { CHII_TOKEN = 64 };
/* A token for tables and labels, without the spaces at its ends. */
void chii_token_word(const chi_model *m, int32_t id, char out[CHII_TOKEN]);
/* A row: its token, or "patch R,C" for a picture row. */
void chii_row_word(const chi_model *m, const chi_prompt *p, int32_t row, char out[CHII_TOKEN]);
/* The prompt without the picture's mark and the speakers' names, on one line. */
void chii_question(const chi_model *m, const chi_prompt *p, chi_str *out);
/* What the crop left out, as one sentence; false where the model saw the whole picture. */
bool chii_unseen(const chi_prompt *p, char *out, size_t cap);
/* {"row", "id", "token", "role"} and for patches "patch": [row, column]. NULL when out of memory. */
json_t *chii_row_json(const chi_model *m, const chi_prompt *p, int32_t row);
/* {"grid": [h, w], "first_row", "view": {...}}: how patches lie on the picture; null without one. */
json_t *chii_picture_json(const chi_model *m, const chi_prompt *p);
/* {"id", "token"} */
json_t *chii_token_json(const chi_model *m, int32_t id);

#endif

/* mmedit: one record of MMEdit (Cheng et al. 2023, "Can We Edit Multimodal Large Language Models?") as its files have it,
 * eleven texts, and of VLKEB (Huang et al. 2024), which adds questions that need the edited fact. chi_dataset_open reads
 * them; an item of such a file points at its record. */
#ifndef CHI_MMEDIT_H
#define CHI_MMEDIT_H

#include "file/file.h"

typedef struct chi_mmedit_port { /* VLKEB's port_new: a question about the edited picture that follows from the edit */
  const char *type;              /* "1-hop" ... */
  const char *question, *answer;
} chi_mmedit_port;

typedef struct chi_mmedit {
  const char *src, *alt; /* what is edited: prompt and new answer (kept to the byte: blanks at its ends are tokens) */
  const char *pred;      /* what the authors' model said; "" where absent */
  const char *rephrase;  /* text rephrase of src */
  const char *image, *image_rephrase, *m_loc; /* paths that open; NULL where pictures are not looked for */
  const char *image_name;                     /* as the file names it */
  const char *loc, *loc_ans;                  /* text question that must not move */
  const char *m_loc_q, *m_loc_a;              /* question about the picture m_loc that must not move */
  chi_mmedit_port *port;
  int n_port;
} chi_mmedit;

typedef enum chi_answer_type {
  CHI_ANSWER_YES_NO,
  CHI_ANSWER_NUMBER,  /* figures, or one number word up to twelve */
  CHI_ANSWER_WORD,    /* one other word */
  CHI_ANSWER_PHRASE,  /* up to four words */
  CHI_ANSWER_SENTENCE /* more: captions */
} chi_answer_type;
enum { CHI_ANSWER_TYPES = 5 };
extern const char *const chi_answer_type_name[CHI_ANSWER_TYPES];
chi_answer_type chi_answer_type_of(const char *answer);
/* Does a greedy answer, cut at its first line feed, say the target? Case, blanks at the ends and a final stop do not count. */
bool chi_answer_same(const char *said, const char *target);

#endif

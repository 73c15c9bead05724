/* data: question items, one JSON object a line, as the card of the demo model asks them (docs/world.md has the fields).
 * Every line has to be right; data/dataset.h is the reader for data sets whose bad rows are counted and left out. */
#ifndef CHI_ITEMS_H
#define CHI_ITEMS_H

#include "file/file.h"

enum { CHI_ITEM_PARTS = 4 }; /* brackets of a question at most */

typedef enum chi_item_twin {
  CHI_ITEM_NAMED,
  CHI_ITEM_DESCRIBED,
  CHI_ITEM_NAMED_OVER,
  CHI_ITEM_BLANK,
  CHI_ITEM_TWINS
} chi_item_twin;
extern const char *const chi_item_twin_names[CHI_ITEM_TWINS];

/* Words of the same length for one bracket, and what is right when they alone replace it; NULL where none fits. */
typedef struct chi_item_part {
  const char *substitute, *answer;
} chi_item_part;

/* The same fact asked otherwise; question NULL where there is none. */
typedef struct chi_item_ask {
  const char *image, *question, *answer;
} chi_item_ask;

typedef struct chi_item {
  const char *id;
  const char *image, *donor; /* paths that open as they are (joined with the file's folder), or NULL */
  const char *question;      /* [constraint] in brackets */
  const char *answer;
  const char *group, *relation, *entity; /* "" where absent; group: the form of the question */
  const char *split, *entity_group;      /* "" where absent */
  const char *unit;                      /* unit of counting; entity|relation where the file has none */
  const char *truth;                     /* what is right where training said `answer` on purpose; NULL = the same */
  const char *prior;                     /* the wrong answer that training suggests here, or NULL */
  bool held_out;                         /* wording not seen in training */
  bool readable, shared, hard;           /* readable off the name; first token shared with another answer; hard split */
  const char *substitute,
      *substitute_answer; /* words of the same length, and what is right then; NULL where none fits. part[0]'s */
  chi_item_part part[CHI_ITEM_PARTS];
  int n_parts;            /* brackets of the question that the file speaks of */
  const char *paraphrase; /* words that mean the same; NULL where there is none */
  chi_item_ask twin[CHI_ITEM_TWINS];
  int line;
} chi_item;

typedef struct chi_items {
  chi_item *item;
  size_t n, cap;
  char hash[65]; /* sha256 of the file */
  chi_arena arena;
} chi_items;

/* Every line is checked: JSON, required fields, types, duplicate ids. Errors name file, line and field. Unknown fields are
 * allowed. limit: at most this many items, 0 = all. */
int chi_items_load(chi_items *out, const char *path, size_t limit, chi_err *err);
/* Keeps the items of one split (those without a split belong to every one); split NULL or "all" keeps everything. Nothing
 * left is an error that names the splits there are. */
int chi_items_split(chi_items *items, const char *split, chi_err *err);
void chi_items_free(chi_items *items);

#endif

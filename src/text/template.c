#include "text/text.h"

#include <string.h>

static const chi_template rows[] = {
#define X(name, with_image, text_only, doc) {name, with_image, text_only, doc},
#include "text/templates.def"
#undef X
};

const chi_template *chi_templates(size_t *n) {
  *n = sizeof rows / sizeof *rows;
  return rows;
}

const chi_template *chi_template_find(const char *name) {
  for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
    if (chi_streq(rows[k].name, name)) return &rows[k];
  return NULL;
}

static bool starts(const char *s, const char *prefix) { return strncmp(s, prefix, strlen(prefix)) == 0; }

int chi_template_fill(char **out, const chi_template *t, bool with_image, const char *image_token, const char *question,
                      chi_err *err) {
  static const char q_mark[] = "{question}", i_mark[] = "{image}";
  const char *form = with_image ? t->with_image : t->text_only;
  chi_str s = {0};
  *out = NULL;
  if (!question || question[strspn(question, " \t\r\n")] == 0)
    return chi_fail(err, CHI_ERR_ARG, "the question is empty");
  if (image_token && *image_token && strstr(question, image_token))
    return chi_fail(err, CHI_ERR_ARG, "the question contains %s, which stands for the picture; leave it out",
                    image_token);
  if (with_image && (!image_token || !*image_token))
    return chi_fail(err, CHI_ERR_ARG, "template %s needs a token for the picture, which this model lacks", t->name);
  if (!form || !strstr(form, q_mark) || (with_image && !strstr(form, i_mark)))
    return chi_fail(err, CHI_ERR_ARG, "template %s has no %s", t->name, form && strstr(form, q_mark) ? i_mark : q_mark);
  while (*form) {
    if (starts(form, q_mark)) {
      chi_str_add(&s, question);
      form += strlen(q_mark);
    } else if (with_image && starts(form, i_mark)) {
      chi_str_add(&s, image_token);
      form += strlen(i_mark);
    } else {
      chi_str_addn(&s, form++, 1);
    }
  }
  if (s.failed) {
    chi_str_free(&s);
    return chi_fail(err, CHI_ERR_MEMORY, "out of memory for the prompt");
  }
  *out = s.s;
  return 0;
}

size_t chi_template_question_at(const chi_template *t, bool with_image, const char *image_token) {
  const char *form = with_image ? t->with_image : t->text_only, *q = strstr(form, "{question}"), *i;
  size_t at = q ? (size_t)(q - form) : 0;
  for (; q && with_image && (i = strstr(form, "{image}")) && i < q; form = i + 7) at += strlen(image_token) - 7;
  return at;
}

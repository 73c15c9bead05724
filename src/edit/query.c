/* Requests made of texts: prompt, target, row of the key, the prompts behind prefixes and the one that must stay. */
#include <stdio.h>
#include <string.h>

#include "edit/edit.h"

enum { kMaxPrefixFile = 16 << 20, kPrefixWords = 10 };

/* ---- prefixes ------------------------------------------------------------------------------------------------- */
void chi_prefixes_free(chi_prefixes *p) {
  chi_free(p->line);
  chi_arena_free(&p->arena);
  memset(p, 0, sizeof *p);
}

/* Brackets would be taken for constraints. */
static void unbracket(char *s) {
  for (; *s; s++) {
    if (*s == '[') *s = '(';
    if (*s == ']') *s = ')';
    if (*s == '\t' || *s == '\r') *s = ' ';
  }
}

int chi_prefixes_load(chi_prefixes *out, const char *path, chi_err *err) {
  int rc = 0;
  char *buf = NULL;
  size_t len;
  memset(out, 0, sizeof *out);
  CHI_TRY(chi_read_file(&buf, &len, path, kMaxPrefixFile, err));
  CHI_TRY(chi_sha256_file(out->hash, path, err));
  if (strlen(buf) != len) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: byte %zu is zero; a text file is wanted", path, strlen(buf));
    goto out;
  }
  for (char *p = buf, *next; p; p = next) {
    if ((next = strchr(p, '\n')) != NULL) *next++ = 0;
    unbracket(p);
    p += strspn(p, " ");
    size_t n = strlen(p);
    while (n && strchr(" .", p[n - 1])) p[--n] = 0;
    if (!n) continue;
    void *v = out->line;
    CHI_TRY(chi_grow(&v, &out->cap, out->n + 1, sizeof *out->line, err));
    out->line = v;
    CHI_TRY((out->line[out->n] = chi_arena_strdup(&out->arena, p, err)) ? 0 : CHI_ERR_MEMORY);
    out->n++;
  }
  if (!out->n) rc = chi_fail(err, CHI_ERR_FORMAT, "%s holds no text: one prefix a line is wanted", path);
out:
  chi_free(buf);
  if (rc) chi_prefixes_free(out);
  return rc;
}

/* The first `words` words of a line. */
static void add_words(chi_str *s, const char *line, int words) {
  const char *p = line;
  for (int w = 0; w < words && *p; w++) p += strspn(p, " "), p += strcspn(p, " ");
  chi_str_addn(s, line, (size_t)(p - line));
}

/* ---- requests ------------------------------------------------------------------------------------------------- */
/* The question behind a prefix: in a template at its start, in a raw prompt behind the picture. */
static int prefixed(chi_str *s, const chi_model *m, const chi_query_opts *o, const char *prefix, chi_err *err) {
  const char *q = o->question, *im = o->raw && m->image_text ? strstr(q, m->image_text) : NULL;
  if (im) {
    im += strlen(m->image_text);
    im += strspn(im, " \n");
    chi_str_addn(s, q, (size_t)(im - q));
    q = im;
  }
  add_words(s, prefix, o->words > 0 ? o->words : kPrefixWords);
  chi_str_add(s, ". ");
  chi_str_add(s, q);
  return s->failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0;
}

static bool wants_constraint(const char *at) { return strcmp(at, "constraint-last") == 0; }

static int make_contexts(chi_query *a, const chi_model *m, const chi_query_opts *o, chi_err *err) {
  int rc = 0;
  const chi_prefixes *f = o->prefixes;
  size_t n = f && o->contexts < f->n ? o->contexts : f ? f->n : 0, *order = NULL;
  chi_str s = {0};
  if (!n) return 0;
  order = chi_calloc(f->n, sizeof *order, err);
  a->context = chi_calloc(n, sizeof *a->context, err);
  CHI_TRY(order && a->context ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < f->n; i++) order[i] = i;
  for (size_t i = 0; i < n; i++) { /* the first n of a shuffle */
    size_t k = i + chi_rng_u32(o->seed, 0x70726566u, (uint32_t)i, 0) % (f->n - i), t = order[i];
    order[i] = order[k];
    order[k] = t;
    s.len = 0;
    CHI_TRY(prefixed(&s, m, o, f->line[order[i]], err));
    chi_prompt_opts po = {.image = o->image, .question = s.s, .tmpl = o->tmpl, .raw = o->raw};
    po.need_constraint = wants_constraint(o->at);
    chi_prompt *p = NULL;
    CHI_TRY(chi_prompt_make(&p, m, &po, err));
    a->context[a->n_context++].prompt = p;
    CHI_TRY(chi_edit_row(&a->context[i].row, m, p, o->at, err));
  }
out:
  chi_free(order);
  chi_str_free(&s);
  return rc;
}

/* "<image> {constraint} is a": where the edit is not at a constraint, its words are those of span:TEXT, or "this". */
static int make_kl(chi_query *a, const chi_model *m, const chi_query_opts *o, chi_err *err) {
  int rc = 0;
  bool span = strncmp(o->at, "span:", 5) == 0;
  const char *words = span ? o->at + 5 : a->prompt->constraint ? a->prompt->constraint : "this";
  chi_str s = {0};
  if (o->image) chi_str_addf(&s, "%s ", m->image_text);
  chi_str_addf(&s, "[%s] is a", words);
  CHI_TRY(s.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  chi_prompt_opts po = {.image = o->image, .question = s.s, .raw = true, .need_constraint = true};
  CHI_TRY(chi_prompt_make(&a->kl, m, &po, err));
  a->req.kl.prompt = a->kl;
  bool own = span || strncmp(o->at, "row:", 4) == 0; /* rows of the question mean nothing here */
  CHI_TRY(chi_edit_row(&a->req.kl.row, m, a->kl, own ? "constraint-last" : o->at, err));
out:
  chi_str_free(&s);
  return rc;
}

int chi_query_make(chi_query **out, const chi_model *m, const chi_query_opts *o, chi_err *err) {
  int rc = 0;
  chi_query *a = chi_calloc(1, sizeof *a, err);
  if (!a) return CHI_ERR_MEMORY;
  chi_prompt_opts po = {.image = o->image, .question = o->question, .tmpl = o->tmpl, .raw = o->raw};
  po.need_constraint = wants_constraint(o->at);
  CHI_TRY(chi_prompt_make(&a->prompt, m, &po, err));
  a->req.prompt = a->prompt;
  CHI_TRY(chi_edit_row(&a->req.row, m, a->prompt, o->at, err));
  CHI_TRY(chi_target_tokens(&a->target, &a->req.n_target, m, a->prompt, o->target, err));
  a->req.target = a->target;
  CHI_TRY(make_contexts(a, m, o, err));
  a->req.context = a->context;
  a->req.n_context = a->n_context;
  if (o->kl) CHI_TRY(make_kl(a, m, o, err));
out:
  if (rc)
    chi_query_free(a);
  else
    *out = a;
  return rc;
}

void chi_query_free(chi_query *a) {
  if (!a) return;
  for (size_t i = 0; i < a->n_context; i++) {
    const chi_prompt *p = a->context[i].prompt;
    chi_prompt_free((chi_prompt *)(uintptr_t)p); /* made here */
  }
  chi_free(a->context);
  chi_free(a->target);
  chi_prompt_free(a->prompt);
  chi_prompt_free(a->kl);
  chi_free(a);
}

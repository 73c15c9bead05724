/* Prompts: template + question + picture -> rows with roles, constraint rows, pixels. */
#include <string.h>

#include "model/model.h"

static const char *const kRoles[CHI_ROLE_COUNT] = {"bos", "template", "image", "text", "constraint", "last"};
const char *chi_role_name(chi_role r) { return (unsigned)r < CHI_ROLE_COUNT ? kRoles[r] : "?"; }

void chi_prompt_free(chi_prompt *p) {
  if (!p) return;
  chi_free(p->text);
  chi_free(p->tokens);
  chi_free(p->role);
  for (int i = 0; i < p->n_spans; i++) chi_free(p->span[i].words);
  chi_free(p->pixels);
  chi_image_free(&p->seen);
  chi_free(p);
}

static char *dup_n(const char *s, size_t n, chi_err *err) {
  char *d = chi_calloc(n + 1, 1, err);
  if (d) memcpy(d, s, n);
  return d;
}

/* Encodes text[from, to) and appends; offsets stay those of the whole text. */
static int encode_part(chi_tokens *t, const chi_model *m, const char *text, size_t from, size_t to, bool special,
                       chi_err *err) {
  size_t n = t->n;
  int rc = chi_encode(m->tok, text + from, to - from, special && !m->plain_ids, t, err);
  for (; rc == 0 && n < t->n; n++) {
    t->begin[n] += (int32_t)from;
    t->end[n] += (int32_t)from;
  }
  return rc;
}

/* A token that stands for the picture. */
static int push_picture(chi_tokens *t, int32_t id, size_t begin, size_t end, chi_err *err) {
  int rc = 0;
  size_t cap[3] = {t->cap, t->cap, t->cap};
  CHI_TRY(chi_grow((void **)&t->id, &cap[0], t->n + 1, sizeof *t->id, err));
  CHI_TRY(chi_grow((void **)&t->begin, &cap[1], t->n + 1, sizeof *t->begin, err));
  CHI_TRY(chi_grow((void **)&t->end, &cap[2], t->n + 1, sizeof *t->end, err));
  t->cap = cap[0];
  t->id[t->n] = id;
  t->begin[t->n] = (int32_t)begin;
  t->end[t->n++] = (int32_t)end;
out:
  return rc;
}

static int count_error(const chi_model *m, size_t n, bool picture, chi_err *err) {
  if (picture)
    return chi_fail(err, CHI_ERR_ARG, "the prompt holds %zu '%s'; one picture needs exactly one", n, m->image_text);
  return chi_fail(err, CHI_ERR_ARG, "the prompt holds '%s' but no picture was given", m->image_text);
}

/* Encodes the prompt; *image_at = index of the token that stands for the picture (with one). Where the tokenizer has no
 * picture token, the text on both sides of it is encoded apart (special tokens with the first part only), as the
 * repositories of such models do. */
static int encode_prompt(chi_tokens *t, size_t *image_at, const chi_model *m, const char *text, bool picture,
                         chi_err *err) {
  int rc = 0;
  size_t len = strlen(text), mark = strlen(m->image_text), n_images = 0, tail;
  if (len > INT32_MAX / 2) return chi_fail(err, CHI_ERR_ARG, "the prompt is too long");
  if (!m->picture_first && m->image_token != CHI_PICTURE_ID) {
    CHI_TRY(encode_part(t, m, text, 0, len, true, err));
    for (size_t i = 0; i < t->n; i++)
      if (t->id[i] == m->image_token) n_images++, *image_at = i;
    return n_images == picture ? 0 : count_error(m, n_images, picture, err);
  }
  const char *im = strstr(text, m->image_text);
  for (const char *p = im; p; p = strstr(p + mark, m->image_text)) n_images++;
  if (n_images != picture) return count_error(m, n_images, picture, err);
  if (!picture) return encode_part(t, m, text, 0, len, true, err);
  size_t at = (size_t)(im - text);
  if (m->picture_first && at != 0)
    return chi_fail(err, CHI_ERR_ARG, "'%s' stands at byte %zu of the prompt; this model takes the picture first",
                    m->image_text, at);
  if (!m->picture_first) CHI_TRY(encode_part(t, m, text, 0, at, true, err));
  *image_at = t->n;
  CHI_TRY(push_picture(t, m->image_token, at, at + mark, err));
  at += mark;
  if (m->picture_first) return encode_part(t, m, text, at, len, true, err);
  tail = m->image_tail && strncmp(text + at, m->image_tail, strlen(m->image_tail)) == 0 ? strlen(m->image_tail) : 0;
  if (tail) CHI_TRY(encode_part(t, m, text, at, at + tail, false, err));
  CHI_TRY(encode_part(t, m, text, at + tail, len, false, err));
out:
  return rc;
}

/* Token ranges of the brackets: [first[i], last[i]). */
static int find_spans(chi_prompt *p, size_t *first, size_t *last, const chi_tokens *t, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < p->n_spans; i++) {
    chi_prompt_span *s = &p->span[i];
    CHI_TRY(chi_span_tokens(&first[i], &last[i], &s->grown, t, p->text, (chi_span){s->at, s->at + s->len}, err));
    if (i && first[i] < last[i - 1])
      return chi_fail(err, CHI_ERR_ARG, "the brackets around '%.80s' and '%.80s' share a token: put them further apart",
                      s[-1].words, s->words);
  }
out:
  return rc;
}

/* The fields that speak of the first bracket. */
static void name_first(chi_prompt *p) {
  const chi_prompt_span *s = p->span;
  if (p->n_spans == 0) return;
  p->span_lo = s->lo;
  p->span_hi = s->hi;
  p->span_grown = s->grown;
  p->constraint = s->words;
  p->words_at = s->at;
  p->words_len = s->len;
}

/* p->text -> rows, from the brackets and the question's bytes. */
static int make_rows(chi_prompt *p, const chi_model *m, bool picture, chi_err *err) {
  int rc = 0;
  chi_tokens t = {0};
  size_t first[CHI_MAX_SPANS] = {0}, last[CHI_MAX_SPANS] = {0}, image_at = 0, q0 = p->question_at,
         q1 = q0 + p->question_len;
  CHI_TRY(encode_prompt(&t, &image_at, m, p->text, picture, err));
  CHI_TRY(find_spans(p, first, last, &t, err));
  int32_t patch_rows = picture ? m->net.shape.n_image_rows : 0, extra = picture ? patch_rows - 1 : 0;
  p->n_rows = (int32_t)t.n + extra;
  p->image_row = picture ? (int32_t)image_at : -1;
  p->n_image = patch_rows;
  if (p->n_rows > m->net.shape.stack[CHI_DECODER].rows) {
    rc = chi_fail(err, CHI_ERR_ARG, "the prompt has %d rows; the model's context holds %d: shorten the question",
                  p->n_rows, m->net.shape.stack[CHI_DECODER].rows);
    goto out;
  }
  if (p->n_rows == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the prompt is empty");
    goto out;
  }
  p->tokens = chi_calloc((size_t)p->n_rows, sizeof *p->tokens, err);
  p->role = chi_calloc((size_t)p->n_rows, sizeof *p->role, err);
  if (!p->tokens || !p->role) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  size_t bos = picture && m->picture_first ? 1 : 0;
  int span = 0; /* the first that does not end before token i */
  for (size_t i = 0, r = 0; i < t.n; i++) {
    bool img = picture && i == image_at,
         in_q = t.end[i] > (int32_t)q0 && t.begin[i] < (int32_t)q1 && t.end[i] > t.begin[i];
    while (span < p->n_spans && last[span] <= i) span++;
    bool in_c = span < p->n_spans && i >= first[span];
    if (in_c && i == first[span]) p->span[span].lo = (int32_t)r;
    for (int32_t k = 0; k < (img ? patch_rows : 1); k++, r++) {
      p->tokens[r] = t.id[i];
      p->role[r] = img                                            ? CHI_ROLE_IMAGE
                   : i == bos && t.id[i] == chi_token_bos(m->tok) ? CHI_ROLE_BOS
                   : in_c                                         ? CHI_ROLE_CONSTRAINT
                   : in_q                                         ? CHI_ROLE_TEXT
                                                                  : CHI_ROLE_TEMPLATE;
    }
    if (in_c && i + 1 == last[span]) p->span[span].hi = (int32_t)r;
  }
  name_first(p);
  if (p->role[p->n_rows - 1] != CHI_ROLE_CONSTRAINT) p->role[p->n_rows - 1] = CHI_ROLE_LAST;
out:
  chi_tokens_free(&t);
  return rc;
}

int chi_prompt_picture(chi_prompt *p, const chi_model *m, const char *file, chi_err *err) {
  int rc = 0;
  chi_image im = {0};
  float *pixels = NULL;
  if (!m->net.has_vision) return chi_fail(err, CHI_ERR_ARG, "%s is a text-only model; leave the picture out", m->path);
  CHI_TRY(chi_image_load(&im, file, err));
  chi_image_free(&p->seen);
  CHI_TRY(chi_preprocess(&pixels, &p->view, &p->seen, &im, &m->pre, err));
  chi_free(p->pixels);
  p->pixels = pixels;
  memcpy(p->image_sha, im.sha256, sizeof p->image_sha);
out:
  chi_image_free(&im);
  return rc;
}

int chi_prompt_make(chi_prompt **out, const chi_model *m, const chi_prompt_opts *o, chi_err *err) {
  int rc = 0;
  char *plain = NULL;
  chi_str asked = {0};
  chi_span *spans = NULL;
  size_t n_spans = 0, q0 = 0, n_prefix = 0;
  const chi_template *tmpl = o->tmpl ? chi_template_find(o->tmpl) : m->tmpl;
  chi_prompt *p = chi_calloc(1, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  if (!tmpl) {
    rc = chi_fail(err, CHI_ERR_ARG, "no template '%s'; 'chiasm ask --help' lists them", o->tmpl ? o->tmpl : "");
    goto out;
  }
  if (!o->question || !o->question[strspn(o->question, " \t\r\n")]) {
    rc = chi_fail(err, CHI_ERR_ARG, "the question is empty");
    goto out;
  }
  if (o->raw && !o->need_constraint)
    CHI_TRY((plain = dup_n(o->question, strlen(o->question), err)) ? 0 : CHI_ERR_MEMORY);
  else
    CHI_TRY(chi_constraint_parse(&plain, &spans, &n_spans, o->question, err));
  if (o->need_constraint && (n_spans == 0 || (n_spans > 1 && !o->several))) {
    rc = chi_fail(err, CHI_ERR_ARG,
                  n_spans ? "the question brackets several spans; here one constraint is looked at at a time"
                          : "the question brackets no words: put [ ] around the constraint, as in \"What is the "
                            "capital of [this country]?\"");
    goto out;
  }
  if (n_spans > CHI_MAX_SPANS) {
    rc = chi_fail(err, CHI_ERR_ARG, "the question has %zu brackets; %d are the limit", n_spans, CHI_MAX_SPANS);
    goto out;
  }
  if (o->raw) {
    CHI_TRY((p->text = dup_n(plain, strlen(plain), err)) ? 0 : CHI_ERR_MEMORY);
  } else {
    if (m->prompt_prefix) chi_str_add(&asked, m->prompt_prefix);
    n_prefix = asked.len;
    chi_str_add(&asked, plain);
    CHI_TRY(asked.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory for the prompt") : 0);
    CHI_TRY(chi_template_fill(&p->text, tmpl, o->image != NULL, m->image_text, asked.s ? asked.s : "", err));
    q0 = chi_template_question_at(tmpl, o->image != NULL, m->image_text) + n_prefix;
  }
  for (; p->n_spans < (int32_t)n_spans; p->n_spans++) {
    chi_prompt_span *s = &p->span[p->n_spans];
    s->at = q0 + spans[p->n_spans].begin;
    s->len = spans[p->n_spans].end - spans[p->n_spans].begin;
    CHI_TRY((s->words = dup_n(p->text + s->at, s->len, err)) ? 0 : CHI_ERR_MEMORY);
  }
  p->question_at = q0;
  p->question_len = strlen(plain);
  CHI_TRY(make_rows(p, m, o->image != NULL, err));
  if (o->image && !o->no_pixels) CHI_TRY(chi_prompt_picture(p, m, o->image, err));
out:
  chi_free(plain);
  chi_str_free(&asked);
  chi_free(spans);
  if (rc)
    chi_prompt_free(p);
  else
    *out = p;
  return rc;
}

int chi_prompt_reword(chi_prompt **out, const chi_model *m, const chi_prompt *p, const char *const *words,
                      chi_err *err) {
  int rc = 0;
  size_t done = 0;
  chi_str s = {0};
  chi_prompt *n = chi_calloc(1, sizeof *n, err);
  if (!n) return CHI_ERR_MEMORY;
  for (; n->n_spans < p->n_spans; n->n_spans++) {
    const chi_prompt_span *old = &p->span[n->n_spans];
    chi_prompt_span *new = &n->span[n->n_spans];
    const char *w = words[n->n_spans] ? words[n->n_spans] : old->words;
    chi_str_addn(&s, p->text + done, old->at - done);
    done = old->at + old->len;
    *new = (chi_prompt_span){.at = s.len, .len = strlen(w)};
    CHI_TRY((new->words = dup_n(w, new->len, err)) ? 0 : CHI_ERR_MEMORY);
    chi_str_add(&s, w);
  }
  chi_str_add(&s, p->text + done);
  if (s.failed) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
    goto out;
  }
  CHI_TRY((n->text = dup_n(s.s, s.len, err)) ? 0 : CHI_ERR_MEMORY);
  n->question_at = p->question_at;
  n->question_len = p->question_len + s.len - strlen(p->text);
  CHI_TRY(make_rows(n, m, p->n_image > 0, err));
  if (p->pixels) {
    size_t bytes = 3 * (size_t)m->net.vision.image_h * (size_t)m->net.vision.image_w * sizeof *n->pixels;
    CHI_TRY((n->pixels = chi_calloc(bytes, 1, err)) ? 0 : CHI_ERR_MEMORY);
    memcpy(n->pixels, p->pixels, bytes);
    n->view = p->view;
    memcpy(n->image_sha, p->image_sha, sizeof n->image_sha);
  }
out:
  chi_str_free(&s);
  if (rc)
    chi_prompt_free(n);
  else
    *out = n;
  return rc;
}

int chi_prompt_replace(chi_prompt **out, const chi_model *m, const chi_prompt *p, const char *words, chi_err *err) {
  const char *list[CHI_MAX_SPANS] = {words};
  return chi_prompt_reword(out, m, p, list, err);
}

chi_input chi_prompt_input(const chi_prompt *p) {
  return (chi_input){.tokens = p->tokens, .n_rows = p->n_rows, .pixels = p->pixels, .image_row = p->image_row};
}

/* Many greedy answers in shared passes; see asks.h. */
#include "eval/asks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/metrics.h"
#include "data/dataset.h"
#include "sweep/run.h"

enum { kMaxNew = 64, kBranches = 48 };

typedef struct words { /* the tokens of a known answer */
  int32_t tok[kMaxNew], n;
} words;

typedef struct state { /* one ask */
  int32_t *prompt, n_prompt, image_row;
  int32_t made[kMaxNew], n_made;   /* the model's own tokens */
  int32_t draft[kMaxNew], n_draft; /* what it may say next */
  int32_t pick[kMaxNew + 1];       /* this pass: its choice at made's end and after each draft token */
  int32_t watch;                   /* token, -1 = none */
  int32_t max_new;
  bool begun, done;
} state;

typedef struct run {
  const chi_model *m;
  const chi_ask *ask;
  const chi_ask_opts *o;
  chi_reply *reply;
  state *s;
  int32_t max_new;
  words *known; /* every answer that is looked for: drafts for what the model may say instead */
  size_t n_known;
  size_t *open; /* asks without an answer yet, those of one picture together */
  size_t n_open, n_done, n;
  /* a pass */
  size_t *of; /* ask of each capture */
  chi_arena arena;
} run;

int chi_question_with(char **out, const char *question, int k, const char *words_in, chi_err *err) {
  int rc = 0;
  char *plain = NULL;
  chi_span *span = NULL;
  size_t n = 0;
  chi_str s = {0};
  CHI_TRY(chi_constraint_parse(&plain, &span, &n, question, err));
  if (!words_in) {
    *out = plain;
    plain = NULL;
    goto out;
  }
  if (k < 0 || (size_t)k >= n) {
    rc = chi_fail(err, CHI_ERR_ARG, "the question brackets %zu spans; there is no number %d", n, k + 1);
    goto out;
  }
  chi_str_addn(&s, plain, span[k].begin);
  chi_str_add(&s, words_in);
  chi_str_add(&s, plain + span[k].end);
  if (s.failed) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
    goto out;
  }
  *out = chi_calloc(s.len + 1, 1, err);
  CHI_TRY(*out ? 0 : CHI_ERR_MEMORY);
  memcpy(*out, s.s, s.len);
out:
  chi_str_free(&s);
  chi_free(plain);
  chi_free(span);
  return rc;
}

/* ---- before the first pass ------------------------------------------------------------------------------- */
static int answer_tokens(words *out, const chi_model *m, const char *answer, chi_err *err) {
  int rc = 0;
  chi_tokens t = {0};
  chi_str s = {0};
  chi_str_addf(&s, " %s", answer);
  CHI_TRY(s.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  CHI_TRY(chi_encode(m->tok, s.s, s.len, false, &t, err));
  out->n = t.n < kMaxNew ? (int32_t)t.n : kMaxNew;
  memcpy(out->tok, t.id, (size_t)out->n * sizeof *out->tok);
out:
  chi_str_free(&s);
  chi_tokens_free(&t);
  return rc;
}

static int begin(run *r, size_t i, chi_err *err) {
  int rc = 0;
  state *s = &r->s[i];
  words w = {.n = 0}, seen = {.n = 0};
  char *plain = NULL;
  chi_prompt *p = NULL;
  const chi_ask *a = &r->ask[i];
  const char *watch = a->watch ? a->watch : a->expect;
  CHI_TRY(chi_question_with(&plain, a->question, 0, NULL, err));
  chi_prompt_opts po = {.image = a->image, .question = plain, .tmpl = r->o->tmpl, .raw = r->o->raw, .no_pixels = true};
  CHI_TRY(chi_prompt_make(&p, r->m, &po, err));
  s->n_prompt = p->n_rows;
  s->image_row = p->image_row;
  s->prompt = chi_arena_array(&r->arena, (size_t)p->n_rows, sizeof *s->prompt, err);
  CHI_TRY(s->prompt ? 0 : CHI_ERR_MEMORY);
  memcpy(s->prompt, p->tokens, (size_t)p->n_rows * sizeof *s->prompt);
  if (a->expect) CHI_TRY(answer_tokens(&w, r->m, a->expect, err));
  if (watch) CHI_TRY(answer_tokens(&seen, r->m, watch, err));
  s->watch = seen.n ? seen.tok[0] : -1;
  s->max_new = r->o->raw && w.n && w.n < kMaxNew ? w.n + 1 : r->max_new; /* does a word end where the answer does? */
  s->n_draft = w.n;
  memcpy(s->draft, w.tok, (size_t)w.n * sizeof *w.tok);
  if (w.n) r->known[r->n_known++] = w;
out:
  chi_free(plain);
  chi_prompt_free(p);
  return rc;
}

static int by_tokens(const void *a, const void *b) {
  const words *x = a, *y = b;
  for (int32_t i = 0; i < x->n && i < y->n; i++)
    if (x->tok[i] != y->tok[i]) return x->tok[i] < y->tok[i] ? -1 : 1;
  return x->n < y->n ? -1 : x->n > y->n;
}

/* Distinct answers, in the order of their tokens. */
static void fold_known(run *r) {
  size_t n = 0;
  qsort(r->known, r->n_known, sizeof *r->known, by_tokens);
  for (size_t i = 0; i < r->n_known; i++)
    if (n == 0 || by_tokens(&r->known[n - 1], &r->known[i]) != 0) r->known[n++] = r->known[i];
  r->n_known = n;
}

/* The rest of the first known answer that begins as the model has begun. */
static void redraft(const run *r, state *s) {
  s->n_draft = 0;
  for (size_t i = 0; i < r->n_known; i++) {
    const words *w = &r->known[i];
    if (w->n <= s->n_made || memcmp(w->tok, s->made, (size_t)s->n_made * sizeof *s->made) != 0) continue;
    s->n_draft = w->n - s->n_made;
    memcpy(s->draft, w->tok + s->n_made, (size_t)s->n_draft * sizeof *s->draft);
    return;
  }
}

/* ---- a pass: questions about a few pictures, or without one ------------------------------------------------ */
static int on_logits(void *ud, int capture, int32_t i, const float *x, int64_t vocab) {
  run *r = ud;
  state *s = &r->s[r->of[capture]];
  chi_reply *reply = &r->reply[r->of[capture]];
  s->pick[i] = chi_argmax(x, vocab);
  if (i == 0 && !s->begun) {
    reply->confidence = chi_metrics_of(x, vocab, s->pick[0], -1, NULL).p;
    if (s->watch >= 0) reply->p = chi_metrics_of(x, vocab, s->watch, -1, NULL).p;
  }
  return 0;
}

static int32_t rows_of(const state *s) { return s->n_prompt + s->n_made + s->n_draft; }

static void fill(const state *s, int32_t *tokens) {
  memcpy(tokens, s->prompt, (size_t)s->n_prompt * sizeof *tokens);
  memcpy(tokens + s->n_prompt, s->made, (size_t)s->n_made * sizeof *tokens);
  memcpy(tokens + s->n_prompt + s->n_made, s->draft, (size_t)s->n_draft * sizeof *tokens);
}

static int add_capture(run *r, chi_plan *plan, int branch, size_t i, chi_err *err) {
  int rc = 0, id = 0;
  const state *s = &r->s[i];
  int32_t rows[kMaxNew + 1], n = s->n_draft + 1;
  for (int32_t k = 0; k < n; k++) rows[k] = s->n_prompt + s->n_made - 1 + k;
  CHI_TRY(chi_plan_capture(
      plan,
      &(chi_capture){
          .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = n},
      &id, err));
  r->of[id] = i;
out:
  return rc;
}

/* A question as a child of another about the same picture: its own tokens from the first one that differs. */
static int add_child(run *r, chi_plan *plan, int root, const int32_t *base, size_t i, chi_err *err) {
  int rc = 0, branch = 0;
  const state *s = &r->s[i];
  int32_t n = rows_of(s), at = 0, *tok = chi_calloc((size_t)n * 2, sizeof *tok, err), *rows = tok ? tok + n : NULL;
  if (!tok) return CHI_ERR_MEMORY;
  fill(s, tok);
  while (at < n && tok[at] == base[at]) at++;
  for (int32_t k = at; k < n; k++) rows[k - at] = k;
  CHI_TRY(chi_plan_child(plan, root, &branch, err));
  if (at < n)
    CHI_TRY(chi_plan_intervene(plan, branch,
                               &(chi_intervention){.op = CHI_OP_TOKEN,
                                                   .stack = CHI_DECODER,
                                                   .site = CHI_SITE_EMBED,
                                                   .rows = rows,
                                                   .n_rows = n - at,
                                                   .tokens = tok + at},
                               0, err));
  CHI_TRY(add_capture(r, plan, branch, i, err));
out:
  chi_free(tok);
  return rc;
}

/* Asks open[lo, hi) about one picture (or one without any): a root as long as the longest, and children. */
static int add_group(run *r, chi_plan *plan, size_t lo, size_t hi, chi_arena *arena, chi_err *err) {
  int rc = 0, root = 0;
  const state *first = &r->s[r->open[lo]];
  chi_prompt p = {0};
  int32_t n = 0;
  for (size_t k = lo; k < hi; k++)
    if (rows_of(&r->s[r->open[k]]) > n) n = rows_of(&r->s[r->open[k]]);
  int32_t *tokens = chi_arena_array(arena, (size_t)n, sizeof *tokens, err);
  if (!tokens) return CHI_ERR_MEMORY;
  fill(first, tokens);
  for (int32_t k = rows_of(first); k < n; k++) tokens[k] = tokens[rows_of(first) - 1]; /* no row looks ahead at them */
  chi_input in = {.tokens = tokens, .n_rows = n, .image_row = first->image_row};
  if (r->ask[r->open[lo]].image) {
    CHI_TRY(chi_prompt_picture(&p, r->m, r->ask[r->open[lo]].image, err));
    size_t floats = 3 * (size_t)p.seen.w * (size_t)p.seen.h;
    float *pixels = chi_arena_array(arena, floats, sizeof *pixels, err);
    CHI_TRY(pixels ? 0 : CHI_ERR_MEMORY);
    memcpy(pixels, p.pixels, floats * sizeof *pixels);
    in.pixels = pixels;
  }
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  CHI_TRY(add_capture(r, plan, root, r->open[lo], err));
  for (size_t k = lo + 1; k < hi; k++) CHI_TRY(add_child(r, plan, root, tokens, r->open[k], err));
out:
  chi_free(p.pixels);
  chi_image_free(&p.seen);
  return rc;
}

static bool same_picture(const run *r, size_t a, size_t b) {
  const char *x = r->ask[r->open[a]].image, *y = r->ask[r->open[b]].image;
  return x && y && strcmp(x, y) == 0 && r->s[r->open[a]].image_row == r->s[r->open[b]].image_row;
}

static bool ends(const chi_model *m, int32_t token) {
  for (int32_t i = 0; i < m->n_eos; i++)
    if (m->eos[i] == token) return true;
  return false;
}

static int finish(run *r, size_t i, chi_err *err) {
  state *s = &r->s[i];
  chi_reply *reply = &r->reply[i];
  char *text = NULL;
  int rc = chi_decode(r->m->tok, s->made, (size_t)s->n_made, true, &text, err);
  if (rc) return rc;
  const char *t = text + strspn(text, " \n");
  size_t len = strlen(t);
  while (len && strchr(" \n", t[len - 1])) len--;
  const char *want = r->ask[i].expect;
  size_t n = want ? strlen(want) : 0;
  reply->right = want && (r->o->raw ? chi_data_says(t, want, true) : n == len && strncmp(want, t, len) == 0);
  if (r->o->raw && reply->right && n < len) len = n;
  snprintf(reply->said, sizeof reply->said, "%.*s", (int)len, t);
  chi_free(text);
  s->done = true;
  r->n_done++;
  return 0;
}

/* Takes over the model's choices, the draft for as long as it is what the model says. */
static int advance(run *r, size_t i, chi_err *err) {
  state *s = &r->s[i];
  bool end = false;
  s->begun = true;
  for (int32_t k = 0; k <= s->n_draft && !end; k++) {
    s->made[s->n_made++] = s->pick[k];
    end = ends(r->m, s->pick[k]) || s->n_made >= s->max_new ||
          s->n_prompt + s->n_made > r->m->net.shape.stack[CHI_DECODER].rows;
    if (k < s->n_draft && s->pick[k] != s->draft[k]) break;
  }
  if (end) return finish(r, i, err);
  redraft(r, s);
  return 0;
}

/* Drafts never pass the length of an answer or the model's positions. */
static void fit(const run *r, state *s) {
  int32_t room = s->max_new - s->n_made - 1, rows = r->m->net.shape.stack[CHI_DECODER].rows - s->n_prompt - s->n_made;
  if (rows < room) room = rows;
  if (s->n_draft > room) s->n_draft = room > 0 ? room : 0;
}

static int pass(run *r, size_t lo, size_t hi, chi_err *err) {
  int rc = 0;
  chi_plan *plan = NULL;
  chi_arena arena = {0};
  chi_run_opts o = {.mem = r->o->mem, .on_capture = on_logits, .ud = r};
  CHI_TRY(chi_plan_new(&plan, err));
  for (size_t a = lo, b; a < hi; a = b) {
    for (b = a + 1; b < hi && same_picture(r, a, b);) b++;
    CHI_TRY(add_group(r, plan, a, b, &arena, err));
  }
  CHI_TRY(chi_run_plan(&r->m->net, plan, &o, err));
  for (size_t k = lo; k < hi; k++) CHI_TRY(advance(r, r->open[k], err));
out:
  chi_plan_free(plan);
  chi_arena_free(&arena);
  return rc;
}

/* As many groups as fit one pass; a picture with more questions than that is cut. */
static size_t pass_end(const run *r, size_t lo) {
  size_t hi = lo;
  while (hi < r->n_open) {
    size_t b = hi + 1;
    while (b < r->n_open && b - hi < kBranches && same_picture(r, hi, b)) b++;
    if (b - lo > kBranches && hi > lo) break;
    hi = b;
  }
  return hi;
}

typedef struct place {
  const char *image;
  size_t i;
} place;

static int by_picture(const void *a, const void *b) {
  const place *x = a, *y = b;
  int c = strcmp(x->image ? x->image : "", y->image ? y->image : "");
  return c ? c : x->i < y->i ? -1 : x->i > y->i;
}

static int order(run *r, chi_err *err) {
  place *p = chi_calloc(r->n, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < r->n; i++) p[i] = (place){r->ask[i].image, i};
  qsort(p, r->n, sizeof *p, by_picture);
  for (size_t i = 0; i < r->n; i++) r->open[i] = p[i].i;
  r->n_open = r->n;
  chi_free(p);
  return 0;
}

static int prepare(run *r, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < r->n; i++) {
    r->reply[i] = (chi_reply){.p = NAN, .confidence = NAN};
    rc = begin(r, i, err);
    if (rc) {
      if (r->ask[i].name) chi_err_prefix(err, r->ask[i].name);
      return rc;
    }
    fit(r, &r->s[i]);
  }
  fold_known(r);
  return order(r, err);
}

int chi_asks_run(chi_reply *reply, const chi_model *m, const chi_ask *ask, size_t n, const chi_ask_opts *o,
                 chi_err *err) {
  int rc = 0;
  run r = {.m = m, .ask = ask, .o = o, .reply = reply, .n = n};
  r.max_new = o->max_new > 0 && o->max_new < kMaxNew ? o->max_new : 16;
  if (n == 0) return 0;
  r.s = chi_calloc(n, sizeof *r.s, err);
  r.known = chi_calloc(n, sizeof *r.known, err);
  r.open = chi_calloc(n, sizeof *r.open, err);
  r.of = chi_calloc(kBranches, sizeof *r.of, err);
  if (!r.s || !r.known || !r.open || !r.of) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  CHI_TRY(prepare(&r, err));
  while (r.n_open) {
    for (size_t lo = 0, hi; lo < r.n_open; lo = hi) {
      hi = pass_end(&r, lo);
      CHI_TRY(pass(&r, lo, hi, err));
      if (o->what) CHI_TRY(chi_progress(o->what, (int64_t)r.n_done, (int64_t)n, err));
    }
    size_t left = 0;
    for (size_t k = 0; k < r.n_open; k++)
      if (!r.s[r.open[k]].done) {
        fit(&r, &r.s[r.open[k]]);
        r.open[left++] = r.open[k];
      }
    r.n_open = left;
  }
out:
  chi_free(r.s);
  chi_free(r.known);
  chi_free(r.open);
  chi_free(r.of);
  chi_arena_free(&r.arena);
  return rc;
}

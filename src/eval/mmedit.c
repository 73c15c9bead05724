/* One record of MMEdit before and after an edit; see mmedit.h. */
#include "eval/mmedit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/metrics.h"
#include "sweep/generate.h"

enum { TEXT = CHI_MM_INPUTS, MULTI, PORTS, ASKS = PORTS + CHI_MM_MAX_PORTS, MORE_TOKENS = 8 };

const char *const chi_mm_input_name[CHI_MM_INPUTS] = {"reliability", "t_generality", "m_generality"};
const char *const chi_mm_side_name[CHI_MM_SIDES] = {"t_locality", "m_locality"};

typedef struct mm_ask { /* an input: prompt, and prompt with answer */
  chi_prompt *prompt, *full;
  const float *pixels; /* of either, or of another input with the same picture */
  int32_t n;           /* tokens of the answer; 0 = not asked */
} mm_ask;

typedef struct mm_seen { /* what is kept of an unrelated question's logits */
  int32_t rows, n, k, from;
  int32_t *top; /* [rows][k] */
  float *x;     /* logits of rows [from, rows) */
} mm_seen;

struct chi_mm_case {
  const chi_mmedit *e;
  chi_mm_opts o;
  int n_asks;
  mm_ask ask[ASKS], again[ASKS]; /* again: behind the prefix of an in-context edit */
  float *x[ASKS];                /* logits while they are looked at */
  int32_t from[ASKS], rows[ASKS];
  mm_seen was[CHI_MM_SIDES], is[CHI_MM_SIDES];
  int64_t vocab;
  chi_mm_result r;
  chi_arena arena;
};

/* ---- prompts ----------------------------------------------------------------------------------------------- */
static const chi_template *template_of(const chi_mm_opts *o, const chi_model *m) {
  static const chi_template kBare = {"bare", "{image}{question}", "{question}", ""};
  if (o->tmpl) return chi_template_find(o->tmpl);
  if (o->protocol == CHI_MM_OWN) return m->tmpl;
  if (strcmp(m->family, "minigpt4") == 0) return chi_template_find("minigpt4");
  return m->picture_first ? &kBare : chi_template_find("plain");
}

/* Text and, with the answer behind it, the whole: rows without pixels. */
static int make_ask(mm_ask *a, const chi_mm_case *c, const chi_model *m, const char *image, bool templated,
                    const char *question, const char *answer, chi_err *err) {
  int rc = 0;
  char *text = NULL;
  chi_str q = {0}, whole = {0};
  const chi_template *t = template_of(&c->o, m);
  chi_prompt_opts po = {.image = image, .raw = true, .no_pixels = true};
  if (!t) return chi_fail(err, CHI_ERR_ARG, "no template '%s'; 'chiasm ask --help' lists them", c->o.tmpl);
  if (m->prompt_prefix) chi_str_add(&q, m->prompt_prefix);
  chi_str_addf(&q, templated ? "Question: %s Short answer:" : "%s", question);
  CHI_TRY(q.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  CHI_TRY(chi_template_fill(&text, t, image != NULL, m->image_text, q.s, err));
  size_t n = strlen(text);
  bool joined = c->o.protocol == CHI_MM_OWN && n && strchr(" \n\t", text[n - 1]);
  chi_str_addf(&whole, "%s%s%s", text, joined ? "" : " ", answer);
  CHI_TRY(whole.failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0);
  po.question = text;
  CHI_TRY(chi_prompt_make(&a->prompt, m, &po, err));
  a->prompt->question_at = chi_template_question_at(t, image != NULL, m->image_text);
  a->prompt->question_len = q.len;
  po.question = whole.s;
  CHI_TRY(chi_prompt_make(&a->full, m, &po, err));
  a->n = a->full->n_rows - a->prompt->n_rows;
  if (a->n < 1)
    rc = chi_fail(err, CHI_ERR_ARG, "the answer '%.80s' has no token of its own behind '%.80s'", answer, question);
out:
  chi_free(text);
  chi_str_free(&q);
  chi_str_free(&whole);
  return rc;
}

static int load_picture(mm_ask *a, const chi_model *m, const char *image, chi_err *err) {
  if (!image) return 0;
  int rc = chi_prompt_picture(a->prompt, m, image, err);
  a->pixels = a->prompt->pixels;
  return rc;
}

static int named(int rc, const char *what, chi_err *err) {
  if (rc) chi_err_prefix(err, what);
  return rc;
}

static int make_asks(chi_mm_case *c, mm_ask *a, const chi_model *m, chi_err *err) {
  int rc = 0;
  const chi_mmedit *e = c->e;
  chi_mm_protocol p = c->o.protocol;
  bool ours = p == CHI_MM_E3 && !c->o.caption, local = p == CHI_MM_E3 || p == CHI_MM_E4;
  CHI_TRY(named(make_ask(&a[CHI_MM_EDIT], c, m, e->image, ours, e->src, e->alt, err), "src", err));
  CHI_TRY(named(load_picture(&a[CHI_MM_EDIT], m, e->image, err), "image", err));
  if (*e->rephrase) {
    CHI_TRY(named(make_ask(&a[CHI_MM_REPHRASE], c, m, e->image, ours, e->rephrase, e->alt, err), "rephrase", err));
    a[CHI_MM_REPHRASE].pixels = a[CHI_MM_EDIT].pixels;
  }
  if (e->image_rephrase) {
    CHI_TRY(named(make_ask(&a[CHI_MM_PICTURE], c, m, e->image_rephrase, ours, e->src, e->alt, err), "src", err));
    CHI_TRY(named(load_picture(&a[CHI_MM_PICTURE], m, e->image_rephrase, err), "image_rephrase", err));
  }
  if (*e->loc && *e->loc_ans)
    CHI_TRY(named(make_ask(&a[TEXT], c, m, NULL, false, e->loc, e->loc_ans, err), "loc", err));
  if (e->m_loc && *e->m_loc_q && *e->m_loc_a) {
    CHI_TRY(named(make_ask(&a[MULTI], c, m, e->m_loc, local, e->m_loc_q, e->m_loc_a, err), "m_loc_q", err));
    CHI_TRY(named(load_picture(&a[MULTI], m, e->m_loc, err), "m_loc", err));
  }
  for (int i = 0; i < e->n_port && i < CHI_MM_MAX_PORTS; i++) {
    CHI_TRY(named(make_ask(&a[PORTS + i], c, m, e->image, ours, e->port[i].question, e->port[i].answer, err),
                  "port_new", err));
    a[PORTS + i].pixels = a[CHI_MM_EDIT].pixels;
  }
  for (int i = 0; i < c->n_asks; i++)
    if (a[i].n &&
        memcmp(a[i].full->tokens, a[i].prompt->tokens, (size_t)a[i].prompt->n_rows * sizeof *a[i].prompt->tokens) != 0)
      c->r.moved = true;
out:
  return rc;
}

static void free_asks(mm_ask *a) {
  for (int i = 0; i < ASKS; i++) {
    chi_prompt_free(a[i].prompt);
    chi_prompt_free(a[i].full);
    a[i] = (mm_ask){0};
  }
}

int chi_mm_case_make(chi_mm_case **out, const chi_model *m, const chi_mmedit *e, const chi_mm_opts *o, chi_err *err) {
  int rc = 0;
  chi_mm_case *c = chi_calloc(1, sizeof *c, err);
  if (!c) return CHI_ERR_MEMORY;
  c->e = e;
  c->o = *o;
  c->n_asks = PORTS + (e->n_port < CHI_MM_MAX_PORTS ? e->n_port : CHI_MM_MAX_PORTS);
  c->vocab = m->net.decoder.vocab;
  for (int s = 0; s < CHI_MM_SIDES; s++) {
    c->r.local[s] = (chi_mm_local){.same = NAN, .answer = NAN, .kl = NAN, .kl_answer = NAN};
    c->was[s].k = c->is[s].k = s == CHI_MM_TEXT ? 1 : 10;
  }
  CHI_TRY(make_asks(c, c->ask, m, err));
out:
  if (rc)
    chi_mm_case_free(c);
  else
    *out = c;
  return rc;
}

static void free_seen(mm_seen *s) {
  chi_free(s->top);
  chi_free(s->x);
  s->top = NULL, s->x = NULL;
}

void chi_mm_case_free(chi_mm_case *c) {
  if (!c) return;
  free_asks(c->ask);
  free_asks(c->again);
  for (int i = 0; i < ASKS; i++) chi_free(c->x[i]);
  for (int s = 0; s < CHI_MM_SIDES; s++) {
    free_seen(&c->was[s]);
    free_seen(&c->is[s]);
  }
  chi_arena_free(&c->arena);
  chi_free(c);
}

const chi_mm_result *chi_mm_result_of(const chi_mm_case *c) { return &c->r; }

int chi_mm_request(chi_request *out, const chi_mm_case *c, const chi_model *m, const char *at, chi_err *err) {
  const mm_ask *a = &c->ask[CHI_MM_EDIT];
  *out = (chi_request){.prompt = a->prompt, .target = a->full->tokens + a->prompt->n_rows, .n_target = a->n};
  return chi_edit_row(&out->row, m, a->prompt, at, err);
}

/* ---- one pass over all inputs ------------------------------------------------------------------------------ */
static int on_logits(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  chi_mm_case *c = ud;
  int at = -1;
  for (int k = 0; k < c->n_asks && at < capture; k++)
    if (c->x[k] && ++at == capture) memcpy(c->x[k] + (int64_t)i * n, x, (size_t)n * sizeof *x);
  return 0;
}

/* Logits of all rows that the measures read: answers' from the prompt's last row on, unrelated questions' all. */
static int run_asks(chi_mm_case *c, const mm_ask *a, const chi_model *m, chi_err *err) {
  int rc = 0, root, id;
  chi_plan *plan = NULL;
  chi_arena rows = {0};
  CHI_TRY(chi_plan_new(&plan, err));
  for (int k = 0; k < c->n_asks; k++) {
    if (!a[k].n) continue;
    bool side = k == TEXT || k == MULTI;
    chi_input in = chi_prompt_input(a[k].full);
    in.pixels = a[k].pixels;
    c->from[k] = side ? 0 : a[k].prompt->n_rows - 1;
    c->rows[k] = a[k].full->n_rows - c->from[k] - !side;
    int32_t *list = chi_arena_array(&rows, (size_t)c->rows[k], sizeof *list, err);
    CHI_TRY(list ? 0 : CHI_ERR_MEMORY);
    for (int32_t i = 0; i < c->rows[k]; i++) list[i] = c->from[k] + i;
    c->x[k] = chi_calloc((size_t)c->rows[k] * (size_t)c->vocab, sizeof *c->x[k], err);
    CHI_TRY(c->x[k] ? 0 : CHI_ERR_MEMORY);
    CHI_TRY(chi_plan_root(plan, &in, &root, err));
    chi_capture cap = {
        .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = list, .n_rows = c->rows[k]};
    CHI_TRY(chi_plan_capture(plan, &cap, &id, err));
  }
  CHI_TRY(chi_run_plan(&m->net, plan, &(chi_run_opts){.on_capture = on_logits, .ud = c, .mem = c->o.mem}, err));
out:
  chi_plan_free(plan);
  chi_arena_free(&rows);
  return rc;
}

static void forget(chi_mm_case *c) {
  for (int i = 0; i < ASKS; i++) {
    chi_free(c->x[i]);
    c->x[i] = NULL;
  }
}

/* ---- answers ----------------------------------------------------------------------------------------------- */
static int generate(chi_mm_answer *to, const chi_mm_case *c, const mm_ask *a, const chi_model *m, const char *target,
                    chi_err *err) {
  int rc = 0;
  int32_t n = 0, most = a->n + MORE_TOKENS, *id = chi_calloc((size_t)most, sizeof *id, err);
  char *text = NULL;
  chi_input in = chi_prompt_input(a->prompt);
  in.pixels = a->pixels;
  CHI_TRY(id ? 0 : CHI_ERR_MEMORY);
  chi_gen_opts g = {.max_new = most, .eos = m->eos, .n_eos = m->n_eos, .mem = c->o.mem};
  CHI_TRY(chi_generate(&m->net, &in, &g, id, &n, NULL, err));
  CHI_TRY(chi_decode(m->tok, id, (size_t)n, true, &text, err));
  const char *said = text + strspn(text, " \t\r\n");
  to->right = chi_answer_same(said, target);
  size_t len = strcspn(said, "\n");
  while (len && strchr(" \t\r", said[len - 1])) len--;
  if (len >= sizeof to->said) /* cut between letters */
    for (len = sizeof to->said - 1; len && ((unsigned char)said[len] & 0xC0) == 0x80;) len--;
  snprintf(to->said, sizeof to->said, "%.*s", (int)len, said);
out:
  chi_free(text);
  chi_free(id);
  return rc;
}

static int score(chi_mm_answer *to, chi_mm_case *c, int k, const mm_ask *a, chi_err *err) {
  const float *x = c->x[k];
  int32_t n = a->n, hit = 0;
  double nll = 0;
  *to = (chi_mm_answer){.asked = true, .n = n, .right = NAN};
  to->label = chi_arena_array(&c->arena, (size_t)n, sizeof *to->label, err);
  to->pred = chi_arena_array(&c->arena, (size_t)n, sizeof *to->pred, err);
  if (!to->label || !to->pred) return CHI_ERR_MEMORY;
  memcpy(to->label, a->full->tokens + a->prompt->n_rows, (size_t)n * sizeof *to->label);
  for (int32_t i = 0; i < n; i++, x += c->vocab) {
    to->pred[i] = chi_argmax(x, c->vocab);
    hit += to->pred[i] == to->label[i];
    nll -= (double)x[to->label[i]] - chi_logsumexp(x, c->vocab);
  }
  to->acc = (double)hit / n;
  to->exact = hit == n;
  to->nll = nll / n;
  return 0;
}

/* ---- unrelated questions ----------------------------------------------------------------------------------- */
typedef struct rows_job {
  const mm_seen *a, *b;
  int64_t vocab;
  int32_t first_a, first_b; /* rows of the first pair */
  double *kl;
} rows_job;

static void top_row(void *ud, int64_t i) {
  const rows_job *j = ud;
  chi_top_k(j->a->x + i * j->vocab, j->vocab, j->a->top + i * j->a->k, j->a->k);
}

static void kl_row(void *ud, int64_t i) {
  const rows_job *j = ud;
  const float *a = j->a->x + (j->first_a + i - j->a->from) * j->vocab,
              *b = j->b->x + (j->first_b + i - j->b->from) * j->vocab;
  double la = chi_logsumexp(a, j->vocab), lb = chi_logsumexp(b, j->vocab), s = 0;
  for (int64_t v = 0; v < j->vocab; v++) {
    double p = (double)a[v] - la;
    s += chi_exp64(p) * (p - ((double)b[v] - lb));
  }
  j->kl[i] = s;
}

/* Takes the logits of input k; with short_memory, of the answer's rows alone. */
static int see(mm_seen *s, chi_mm_case *c, int k, const mm_ask *a, bool all, chi_err *err) {
  free_seen(s);
  s->rows = c->rows[k];
  s->n = a->n;
  s->from = 0;
  s->x = c->x[k];
  c->x[k] = NULL;
  s->top = chi_calloc((size_t)s->rows * (size_t)s->k, sizeof *s->top, err);
  if (!s->top) return CHI_ERR_MEMORY;
  rows_job j = {.a = s, .vocab = c->vocab};
  if (s->k > c->vocab) s->k = (int32_t)c->vocab;
  chi_parallel_for(s->rows, top_row, &j);
  if (all) return 0;
  size_t keep = (size_t)(s->n + 1) * (size_t)c->vocab;
  float *x = chi_calloc(keep, sizeof *x, err);
  if (!x) return CHI_ERR_MEMORY;
  s->from = s->rows - s->n - 1;
  memcpy(x, s->x + (int64_t)s->from * c->vocab, keep * sizeof *x);
  chi_free(s->x);
  s->x = x;
  return 0;
}

/* Mean KL over the `rows` pairs that end `back` rows before the last; NAN where either has forgotten some. */
static int mean_kl(double *out, const mm_seen *a, const mm_seen *b, int32_t rows, int32_t back, int64_t vocab,
                   chi_err *err) {
  double sum = 0;
  rows_job j = {.a = a, .b = b, .vocab = vocab, .first_a = a->rows - back - rows, .first_b = b->rows - back - rows};
  *out = NAN;
  if (j.first_a < a->from || j.first_b < b->from || rows < 1) return 0;
  j.kl = chi_calloc((size_t)rows, sizeof *j.kl, err);
  if (!j.kl) return CHI_ERR_MEMORY;
  chi_parallel_for(rows, kl_row, &j);
  for (int32_t i = 0; i < rows; i++) sum += j.kl[i];
  chi_free(j.kl);
  *out = sum / rows;
  return 0;
}

static double equal(const mm_seen *a, const mm_seen *b, int32_t rows, int32_t back) {
  int64_t same = 0, n = (int64_t)rows * a->k;
  const int32_t *x = a->top + (int64_t)(a->rows - back - rows) * a->k,
                *y = b->top + (int64_t)(b->rows - back - rows) * b->k;
  for (int64_t i = 0; i < n; i++) same += x[i] == y[i];
  return n ? (double)same / (double)n : NAN;
}

static int compare(chi_mm_local *to, const mm_seen *was, const mm_seen *is, int64_t vocab, chi_err *err) {
  int rc = 0;
  to->asked = true;
  to->rows = was->rows < is->rows ? was->rows : is->rows;
  to->n = was->n < is->n ? was->n : is->n;
  if (to->n > to->rows - 1) to->n = to->rows - 1;
  to->same = equal(was, is, to->rows, 0);
  to->answer = equal(was, is, to->n, 1);
  CHI_TRY(mean_kl(&to->kl, was, is, to->rows, 0, vocab, err));
  CHI_TRY(mean_kl(&to->kl_answer, was, is, to->n, 1, vocab, err));
out:
  return rc;
}

/* ---- before and after -------------------------------------------------------------------------------------- */
static int measure(chi_mm_case *c, const mm_ask *a, const chi_model *m, chi_mm_answer *to, chi_mm_answer *ports,
                   chi_err *err) {
  int rc = 0;
  CHI_TRY(run_asks(c, a, m, err));
  for (int k = 0; k < c->n_asks; k++) {
    if (!a[k].n || k == TEXT || k == MULTI) continue;
    chi_mm_answer *x = k < CHI_MM_INPUTS ? &to[k] : &ports[k - PORTS];
    CHI_TRY(score(x, c, k, &a[k], err));
    if (c->o.generate && k < CHI_MM_INPUTS) CHI_TRY(generate(x, c, &a[k], m, c->e->alt, err));
  }
out:
  return rc;
}

int chi_mm_before(chi_mm_case *c, const chi_model *m, chi_err *err) {
  int rc = 0;
  CHI_TRY(measure(c, c->ask, m, c->r.before, c->r.port_before, err));
  for (int s = 0; s < CHI_MM_SIDES; s++)
    if (c->ask[TEXT + s].n) CHI_TRY(see(&c->was[s], c, TEXT + s, &c->ask[TEXT + s], !c->o.short_memory, err));
out:
  forget(c);
  return rc;
}

int chi_mm_after(chi_mm_case *c, const chi_model *m, chi_err *err) {
  int rc = 0;
  const mm_ask *a = c->ask;
  if (m->prompt_prefix) {
    free_asks(c->again);
    CHI_TRY(make_asks(c, c->again, m, err));
    a = c->again;
  }
  CHI_TRY(measure(c, a, m, c->r.after, c->r.port_after, err));
  for (int s = 0; s < CHI_MM_SIDES; s++) {
    if (!a[TEXT + s].n) continue;
    CHI_TRY(see(&c->is[s], c, TEXT + s, &a[TEXT + s], true, err));
    CHI_TRY(compare(&c->r.local[s], &c->was[s], &c->is[s], c->vocab, err));
    free_seen(&c->is[s]);
  }
out:
  forget(c);
  return rc;
}

void chi_mm_pretend(chi_mm_case *c, bool all) {
  for (int k = 0; k < CHI_MM_INPUTS; k++) {
    chi_mm_answer *x = &c->r.after[k];
    *x = c->r.before[k];
    if (!x->asked || (k != CHI_MM_EDIT && !all)) continue;
    x->acc = x->exact = 1;
    x->nll = 0;
    x->pred = x->label;
    if (isfinite(x->right)) x->right = 1;
    snprintf(x->said, sizeof x->said, "%s", isfinite(x->right) ? c->e->alt : "");
  }
  for (int i = 0; i < c->n_asks - PORTS; i++) {
    chi_mm_answer *x = &c->r.port_after[i];
    *x = c->r.port_before[i];
    if (x->asked && all) x->acc = x->exact = 1, x->nll = 0, x->pred = x->label;
  }
  for (int s = 0; s < CHI_MM_SIDES; s++) {
    const mm_seen *w = &c->was[s];
    if (!c->ask[TEXT + s].n) continue;
    c->r.local[s] = (chi_mm_local){.asked = true, .same = 1, .answer = 1, .rows = w->rows, .n = w->n};
  }
}

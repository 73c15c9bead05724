/* Methods by name, hyperparameters by name, requests, measuring. */
#include "edit/edit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/metrics.h"
#include "edit/moments.h"
#include "sweep/generate.h"

static const struct {
  const chi_method *m;
  const char *doc;
} kMethods[] = {
#define CHI_METHOD(sym, doc) {&chi_method_##sym, doc},
#include "edit/methods.def"
#undef CHI_METHOD
};
enum { kMethodCount = sizeof kMethods / sizeof *kMethods };

const chi_method *chi_method_at(size_t i, const char **doc) {
  if (i >= kMethodCount) return NULL;
  if (doc) *doc = kMethods[i].doc;
  return kMethods[i].m;
}

int chi_method_find(const chi_method **out, const char *name, chi_err *err) {
  chi_str known = {0};
  for (size_t i = 0; i < kMethodCount; i++) {
    if (chi_streq(kMethods[i].m->name, name)) {
      *out = kMethods[i].m;
      chi_str_free(&known);
      return 0;
    }
    chi_str_addf(&known, "%s%s", i ? ", " : "", kMethods[i].m->name);
  }
  int rc = chi_fail(err, CHI_ERR_ARG, "no editing method '%s'; known are %s", name, known.s ? known.s : "");
  chi_str_free(&known);
  return rc;
}

int chi_preset_find(const chi_preset **out, const chi_method *m, const char *name, chi_err *err) {
  chi_str known = {0};
  for (const chi_preset *p = m->presets; p->name; p++) {
    if (!name || chi_streq(p->name, name)) {
      *out = p;
      chi_str_free(&known);
      return 0;
    }
    chi_str_addf(&known, "%s%s", known.len ? ", " : "", p->name);
  }
  int rc = chi_fail(err, CHI_ERR_ARG, "%s has no preset '%s'; it has %s", m->name, name ? name : "",
                    known.s ? known.s : "none");
  chi_str_free(&known);
  return rc;
}

/* ---- hyperparameters ---------------------------------------------------------------------------------------- */
/* clang-format off */
#define HYPER(name, lo, hi) {#name, offsetof(chi_hyper, name), lo, hi}
static const struct {
  const char *name;
  size_t at;
  double lo, hi;
} kHyper[] = {HYPER(steps, 0, 100000),
              HYPER(lr, 0, 1e38), HYPER(stop, 0, 1e6), HYPER(decay, 0, 1e9), HYPER(clamp, 0, 1e9),
              HYPER(lambda, 0, 1e30), HYPER(shrink, 0, 1.0), HYPER(limit, 0, 1e9), HYPER(goal, 1e-9, 1 - 1e-9),
              HYPER(kl, 0, 1e6), HYPER(contexts, 0, 1000),
              HYPER(rank, 1, 4096), HYPER(alpha, 1e-6, 1e6)};
/* clang-format on */
enum { kHyperCount = sizeof kHyper / sizeof *kHyper };
const char *const chi_hyper_names[] = {"steps", "lr",   "stop", "decay",    "clamp", "lambda", "shrink",
                                       "limit", "goal", "kl",   "contexts", "rank",  "alpha",  NULL};

static double *field(chi_hyper *h, size_t at) { return (double *)(void *)((char *)h + at); }

int chi_hyper_set(chi_hyper *h, const char *name, const char *text, chi_err *err) {
  for (size_t i = 0; i < kHyperCount; i++) {
    if (strcmp(kHyper[i].name, name) != 0) continue;
    char *end = NULL;
    double *to = field(h, kHyper[i].at), x = strtod(text, &end);
    bool lambda = strcmp(name, "lambda") == 0, lr = strcmp(name, "lr") == 0,
         share = end != text && ((lambda && strcmp(end, "kk") == 0) || (lr && strcmp(end, "z") == 0));
    if (isnan(*to)) return chi_fail(err, CHI_ERR_ARG, "this method does not use %s", name);
    if (end == text || (*end && !share) || !isfinite(x) || x < kHyper[i].lo || x > kHyper[i].hi)
      return chi_fail(err, CHI_ERR_ARG, "%s is a number from %g to %g%s, not '%s'", name, kHyper[i].lo, kHyper[i].hi,
                      lambda ? ", or a share of k.k such as 0.05kk"
                      : lr   ? ", or a share of |z0|/sqrt(d) such as 0.4z"
                             : "",
                      text);
    if (lambda) h->lambda_share = share;
    if (lr) h->lr_share = share;
    *to = x;
    return 0;
  }
  return chi_fail(err, CHI_ERR_ARG, "no hyperparameter '%s'", name);
}

static json_t *hyper_json(const chi_hyper *h) {
  json_t *j = json_object();
  for (size_t i = 0; j && i < kHyperCount; i++) {
    double x;
    memcpy(&x, (const char *)h + kHyper[i].at, sizeof x);
    if (!isnan(x)) json_object_set_new(j, kHyper[i].name, json_real(x));
  }
  if (j && !isnan(h->lambda)) json_object_set_new(j, "lambda_is_share_of_kk", json_boolean(h->lambda_share));
  if (j && !isnan(h->lr)) json_object_set_new(j, "lr_is_share_of_z", json_boolean(h->lr_share));
  return j;
}

/* ---- one edit ----------------------------------------------------------------------------------------------- */
static int check_request(const chi_model *m, const chi_request *r, chi_err *err) {
  if (r->n_target < 1) return chi_fail(err, CHI_ERR_ARG, "the target has no token");
  if (r->row < 0 || r->row >= r->prompt->n_rows)
    return chi_fail(err, CHI_ERR_ARG, "row %d is outside the prompt of %d rows", r->row, r->prompt->n_rows);
  if (r->prompt->n_rows + r->n_target - 1 > m->net.shape.stack[CHI_DECODER].rows)
    return chi_fail(err, CHI_ERR_ARG, "prompt and target have %d rows; the model's context holds %d",
                    r->prompt->n_rows + r->n_target - 1, m->net.shape.stack[CHI_DECODER].rows);
  for (int32_t i = 0; i < r->n_target; i++)
    if (r->target[i] < 0 || r->target[i] >= m->net.decoder.vocab)
      return chi_fail(err, CHI_ERR_ARG, "target token %d is outside the vocabulary of %d", r->target[i],
                      m->net.decoder.vocab);
  return 0;
}

/* One name: its stack and matrix. */
static bool one_weight(const char *text, size_t n, int *stack, int *weight) {
  const char *dot = memchr(text, '.', n), *name = dot ? dot + 1 : text;
  size_t len = n - (size_t)(name - text);
  *stack = CHI_DECODER, *weight = 0;
  if (dot) {
    for (*stack = 0; *stack < CHI_STACK_COUNT; (*stack)++) {
      const char *s = chi_stack_name((chi_stack)*stack);
      if (strlen(s) == (size_t)(dot - text) && strncmp(s, text, strlen(s)) == 0) break;
    }
  }
  for (; *weight < CHI_W_COUNT; (*weight)++) {
    const char *w = chi_weight_name((chi_weight)*weight);
    if (strlen(w) == len && strncmp(w, name, len) == 0) break;
  }
  return *stack < CHI_STACK_COUNT && *weight < CHI_W_COUNT && (*weight > CHI_W_DOWN) == (*stack == CHI_PROJECTOR);
}

int chi_edit_weights(chi_edit_opts *o, const char *text, chi_err *err) {
  int first = CHI_DECODER;
  o->n_also = 0;
  for (const char *p = text; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
    int stack, weight;
    if (!one_weight(p, strcspn(p, ","), &stack, &weight))
      return chi_fail(err, CHI_ERR_ARG,
                      "--weight is q, k, v, o, gate, up or down, with decoder., vision. or qformer. before it, or "
                      "projector.proj1 or projector.proj2; not '%.60s'",
                      text);
    if (p == text) {
      o->weight = weight;
      o->stack = (chi_stack)stack;
      o->other_stack = stack != CHI_DECODER;
      first = stack;
      continue;
    }
    bool twice = weight == o->weight;
    for (int i = 0; i < o->n_also; i++) twice = twice || o->also[i] == weight;
    if (stack != first || twice || o->n_also == (int)(sizeof o->also / sizeof *o->also))
      return chi_fail(err, CHI_ERR_ARG, "--weight: at most four different matrices of one part, not '%.60s'", text);
    o->also[o->n_also++] = weight;
  }
  return 0;
}

/* What C is, where the method has one. */
static int note_moments(chi_job *j, chi_err *err) {
  chi_moments_info i;
  json_t *o;
  if (isnan(j->h.shrink)) return 0;
  if (!j->opts->moments) {
    o = json_string("identity");
  } else {
    int rc = chi_moments_read_info(&i, j->opts->moments, err);
    if (rc) return rc;
    if (i.keys && i.keys < 20 * i.ffn)
      chi_log(CHI_LOG_WARN, "%s holds %lld keys, fewer than 20 for each of %lld neurons: shrink it, or collect more",
              j->opts->moments, (long long)i.keys, (long long)i.ffn);
    json_t *file = json_string(j->opts->moments);
    o = json_pack("{s:o,s:I,s:I}", "file", file ? file : json_string("(a name that is no UTF-8)"), "keys",
                  (json_int_t)i.keys, "prompts", (json_int_t)i.prompts);
  }
  return json_object_set_new(j->delta->header, "second_moment", o) ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0;
}

int chi_edit_run(chi_delta **out, chi_edit_info *info, chi_model *m, const chi_request *req, size_t n,
                 const chi_edit_opts *o, chi_err *err) {
  int rc = 0;
  const chi_method *method;
  const chi_preset *preset;
  chi_factors own = {0};
  chi_job j = {.m = m, .req = req, .n = n, .opts = o, .factors = o->factors ? o->factors : &own};
  CHI_TRY(chi_method_find(&method, o->method, err));
  CHI_TRY(chi_preset_find(&preset, method, o->preset, err));
  j.h = o->hyper ? *o->hyper : preset->hyper;
  chi_stack stack = o->other_stack ? o->stack : CHI_DECODER;
  int layers = stack == CHI_PROJECTOR ? 1 : m->net.shape.stack[stack].layers;
  if (o->other_stack && strcmp(method->name, "ft") != 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s changes weights of the decoder only; ft changes those of %s", method->name,
                  chi_stack_name(stack));
    goto out;
  }
  j.layer_lo = o->layer_lo >= 0 ? o->layer_lo : preset->layer_lo;
  j.layer_hi = o->layer_lo >= 0 ? (o->layer_hi >= 0 ? o->layer_hi : o->layer_lo) : preset->layer_hi;
  if (j.layer_hi == CHI_LAST_LAYER) j.layer_lo = j.layer_hi = layers - 1;
  if (o->n_also && strcmp(method->name, "ft") != 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s changes one kind of matrix; ft changes several", method->name);
    goto out;
  }
  if (j.layer_hi < j.layer_lo || j.layer_hi >= layers) {
    rc = chi_fail(err, CHI_ERR_ARG, "layers %d to %d cannot be edited: the %s has layers 0 to %d", j.layer_lo,
                  j.layer_hi, chi_stack_name(stack), layers - 1);
    goto out;
  }
  if (n < 1 || (n > 1 && !method->many)) {
    rc = chi_fail(err, CHI_ERR_ARG, "%s takes %s, not %zu", method->name, method->many ? "requests" : "one request", n);
    goto out;
  }
  for (size_t i = 0; i < n; i++) CHI_TRY(check_request(m, &req[i], err));
  CHI_TRY(chi_model_hash(m, err));
  CHI_TRY(chi_delta_new(&j.delta, method->name, err));
  json_object_set_new(j.delta->header, "preset", json_string(preset->name));
  json_object_set_new(j.delta->header, "layers", json_pack("[i,i]", j.layer_lo, j.layer_hi));
  json_object_set_new(j.delta->header, "hyperparameters", hyper_json(&j.h));
  json_object_set_new(j.delta->header, "base", json_pack("{s:s,s:s}", "sha256", m->hash, "family", m->family));
  CHI_TRY(note_moments(&j, err));
  CHI_TRY(method->run(&j, err));
  if (info) *info = j.info;
out:
  chi_factors_free(&own);
  if (rc)
    chi_delta_free(j.delta);
  else
    *out = j.delta;
  return rc;
}

/* ---- requests ----------------------------------------------------------------------------------------------- */
int chi_target_tokens(int32_t **out, int32_t *n, const chi_model *m, const chi_prompt *p, const char *target,
                      chi_err *err) {
  int rc = 0;
  chi_tokens a = {0}, b = {0};
  chi_str s = {0};
  size_t len = strlen(p->text);
  if (!target[strspn(target, " \t\r\n")]) return chi_fail(err, CHI_ERR_ARG, "the target is empty: it has no token");
  chi_str_add(&s, p->text);
  if (target[0] != ' ' && len > 0 && !strchr(" \n\t", p->text[len - 1])) chi_str_add(&s, " ");
  chi_str_add(&s, target);
  if (s.failed) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
    goto out;
  }
  CHI_TRY(chi_encode(m->tok, p->text, len, !m->plain_ids, &a, err));
  CHI_TRY(chi_encode(m->tok, s.s, s.len, !m->plain_ids, &b, err));
  if (b.n <= a.n || memcmp(a.id, b.id, a.n * sizeof *a.id) != 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the target '%s' has no token of its own behind this prompt", target);
    goto out;
  }
  *n = (int32_t)(b.n - a.n);
  *out = chi_calloc((size_t)*n, sizeof **out, err);
  CHI_TRY(*out ? 0 : CHI_ERR_MEMORY);
  memcpy(*out, b.id + a.n, (size_t)*n * sizeof **out);
out:
  chi_tokens_free(&a);
  chi_tokens_free(&b);
  chi_str_free(&s);
  return rc;
}

/* The last row whose token reaches into text[begin, end). Rows behind the picture are counted from the end, so that the
 * picture's own rows do not matter. */
static int span_row(int32_t *row, const chi_model *m, const chi_prompt *p, const char *words, chi_err *err) {
  int rc = 0;
  const char *at = *words ? strstr(p->text, words) : NULL;
  chi_tokens t = {0};
  if (!at) return chi_fail(err, CHI_ERR_ARG, "--edit-at span: '%s' does not stand in the prompt", words);
  const char *image = p->pixels ? strstr(p->text, m->image_text) : NULL;
  size_t from = image ? (size_t)(image - p->text) + strlen(m->image_text) : 0;
  if ((size_t)(at - p->text) < from)
    return chi_fail(err, CHI_ERR_ARG, "--edit-at span: '%s' stands before the picture", words);
  bool whole = m->image_token != CHI_PICTURE_ID && !m->picture_first;
  size_t base = whole ? 0 : from;
  CHI_TRY(chi_encode(m->tok, p->text + base, strlen(p->text + base), whole && !m->plain_ids, &t, err));
  int32_t end = (int32_t)((size_t)(at - p->text) + strlen(words) - base);
  *row = -1;
  for (size_t i = 0; i < t.n; i++)
    if (t.begin[i] < end && t.end[i] > (int32_t)((size_t)(at - p->text) - base) && t.end[i] > t.begin[i])
      *row = p->n_rows - (int32_t)(t.n - i);
  if (*row < 0) rc = chi_fail(err, CHI_ERR_ARG, "--edit-at span: '%s' has no token", words);
out:
  chi_tokens_free(&t);
  return rc;
}

int chi_edit_row(int32_t *row, const chi_model *m, const chi_prompt *p, const char *where, chi_err *err) {
  if (strcmp(where, "constraint-last") == 0) {
    if (p->span_hi <= p->span_lo)
      return chi_fail(err, CHI_ERR_ARG,
                      "the question brackets no words: put [ ] around the constraint, or use --edit-at last-prompt");
    *row = p->span_hi - 1;
    return 0;
  }
  if (strcmp(where, "last-prompt") == 0) {
    *row = p->n_rows - 1;
    return 0;
  }
  if (strcmp(where, "last-image") == 0) {
    if (p->n_image < 1) return chi_fail(err, CHI_ERR_ARG, "--edit-at last-image: the prompt has no picture");
    *row = p->image_row + p->n_image - 1;
    return 0;
  }
  if (strncmp(where, "span:", 5) == 0) return span_row(row, m, p, where + 5, err);
  if (strncmp(where, "row:", 4) == 0) {
    char *end;
    long r = strtol(where + 4, &end, 10), at = r < 0 ? r + p->n_rows : r;
    if (end == where + 4 || *end || at < 0 || at >= p->n_rows)
      return chi_fail(err, CHI_ERR_ARG, "--edit-at %s: the prompt has rows 0 to %d, or -1 to -%d from its end", where,
                      p->n_rows - 1, p->n_rows);
    *row = (int32_t)at;
    return 0;
  }
  return chi_fail(err, CHI_ERR_ARG,
                  "--edit-at is constraint-last, last-prompt, last-image, span:TEXT, row:N or auto, not '%s'", where);
}

/* ---- measuring ---------------------------------------------------------------------------------------------- */
int chi_request_input(chi_input *in, int32_t **tokens, const chi_request *r, chi_err *err) {
  const chi_prompt *p = r->prompt;
  int32_t extra = r->n_target - 1;
  *tokens = chi_calloc((size_t)(p->n_rows + extra), sizeof **tokens, err);
  if (!*tokens) return CHI_ERR_MEMORY;
  memcpy(*tokens, p->tokens, (size_t)p->n_rows * sizeof **tokens);
  memcpy(*tokens + p->n_rows, r->target, (size_t)extra * sizeof **tokens);
  *in = chi_prompt_input(p);
  in->tokens = *tokens;
  in->n_rows = p->n_rows + extra;
  return 0;
}

typedef struct logp_job {
  const int32_t *target;
  double sum, first;
} logp_job;

static int on_logits(void *ud, int capture, int32_t i, const float *x, int64_t n) {
  (void)capture;
  logp_job *j = ud;
  double lp = (double)x[j->target[i]] - chi_logsumexp(x, n);
  j->sum += lp;
  if (i == 0) j->first = lp;
  return 0;
}

/* The greedy answer, and what its steps tell about the target: while they have followed it, their logits are those of
 * its next token. */
typedef struct answer_job {
  const int32_t *target;
  int32_t n_target, known; /* target tokens whose log p is known */
  bool follows;
  double sum, first;
} answer_job;

static int on_step(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  answer_job *j = ud;
  if (!j->follows || step >= j->n_target) return 0;
  double lp = (double)logits[j->target[step]] - chi_logsumexp(logits, vocab);
  j->sum += lp;
  if (step == 0) j->first = lp;
  j->known++;
  j->follows = token == j->target[step];
  return 0;
}

static int greedy(char *said, size_t cap, answer_job *j, const chi_model *m, const chi_prompt *p, chi_err *err) {
  int rc = 0;
  int32_t id[24], n = 0;
  char *text = NULL;
  chi_input in = chi_prompt_input(p);
  chi_gen_opts g = {.max_new = 24, .eos = m->eos, .n_eos = m->n_eos, .on_token = on_step, .ud = j};
  CHI_TRY(chi_generate(&m->net, &in, &g, id, &n, NULL, err));
  CHI_TRY(chi_decode(m->tok, id, (size_t)n, true, &text, err));
  const char *s = text + strspn(text, " \n\t");
  size_t len = strlen(s);
  while (len > 0 && strchr(" \n\t", s[len - 1])) len--;
  snprintf(said, cap, "%.*s", (int)len, s);
out:
  chi_free(text);
  return rc;
}

/* log p of the target's tokens by a run over prompt and target. */
static int target_logp(logp_job *j, const chi_model *m, const chi_request *r, chi_err *err) {
  int rc = 0, root, id;
  int32_t *tokens = NULL, *rows = NULL;
  chi_plan *plan = NULL;
  chi_input in;
  CHI_TRY(chi_request_input(&in, &tokens, r, err));
  CHI_TRY((rows = chi_calloc((size_t)r->n_target, sizeof *rows, err)) ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < r->n_target; i++) rows[i] = r->prompt->n_rows - 1 + i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows, .n_rows = r->n_target};
  CHI_TRY(chi_plan_capture(plan, &c, &id, err));
  chi_run_opts o = {.on_capture = on_logits, .ud = j};
  CHI_TRY(chi_run_plan(&m->net, plan, &o, err));
out:
  chi_plan_free(plan);
  chi_free(tokens);
  chi_free(rows);
  return rc;
}

int chi_edit_p(double *p, const chi_model *m, const chi_prompt *prompt, const int32_t *target, int32_t n_target,
               chi_err *err) {
  int rc = 0;
  chi_request r = {.prompt = prompt, .target = target, .n_target = n_target};
  logp_job j = {.target = target};
  CHI_TRY(check_request(m, &r, err));
  CHI_TRY(target_logp(&j, m, &r, err));
  *p = chi_exp64(j.sum);
out:
  return rc;
}

int chi_edit_measure(chi_edit_probe *out, const chi_model *m, const chi_prompt *p, const int32_t *target,
                     int32_t n_target, chi_err *err) {
  int rc = 0;
  chi_request r = {.prompt = p, .target = target, .n_target = n_target};
  answer_job a = {.target = target, .n_target = n_target, .follows = true};
  logp_job j = {.target = target};
  CHI_TRY(check_request(m, &r, err));
  CHI_TRY(greedy(out->said, sizeof out->said, &a, m, p, err));
  if (a.known == n_target)
    j.sum = a.sum, j.first = a.first;
  else
    CHI_TRY(target_logp(&j, m, &r, err));
  out->p = chi_exp64(j.sum);
  out->first = chi_exp64(j.first);
out:
  return rc;
}

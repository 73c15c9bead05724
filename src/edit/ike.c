/* In-context editing: nothing is changed but what stands in front of the questions. */
#include "edit/ike.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "data/dataset.h"
#include "data/edits.h"
#include "data/mmedit.h"
#include "edit/edit.h"

/* ---- demonstrations ---------------------------------------------------------------------------------------- */
void chi_demos_free(chi_demos *d) {
  if (!d) return;
  chi_encoder_free(d->encoder);
  chi_free(d->text);
  chi_free(d->vector);
  chi_arena_free(&d->arena);
  chi_free(d);
}

/* Text without blanks at its ends and without the brackets of a constraint. */
static void add_clean(chi_str *s, const char *text) {
  size_t n = strlen(text);
  while (n && strchr(" \t\r\n", text[n - 1])) n--;
  while (n && strchr(" \t\r\n", *text)) text++, n--;
  for (size_t i = 0; i < n; i++)
    if (text[i] != '[' && text[i] != ']') chi_str_addn(s, text + i, 1);
}

static void add_prompt(chi_str *s, const char *p, bool short_answer) {
  if (short_answer) chi_str_add(s, "Question: ");
  add_clean(s, p);
  if (short_answer) chi_str_add(s, " Short answer:");
}

static void add_fact(chi_str *s, const char *p, const char *t, bool short_answer) {
  chi_str_add(s, "New Fact: ");
  add_prompt(s, p, short_answer);
  chi_str_add(s, " ");
  add_clean(s, t);
  chi_str_add(s, "\nPrompt: ");
}

static int add_demo(chi_demos *d, const char *p, const char *t, bool short_answer, const char *prompt, bool templated,
                    const char *answer, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  if (!prompt || !*prompt || !answer || !*answer || !*p || !*t) return 0;
  add_fact(&s, p, t, short_answer);
  add_prompt(&s, prompt, templated);
  chi_str_add(&s, " ");
  add_clean(&s, answer);
  chi_str_add(&s, "\n\n");
  CHI_TRY(s.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for demonstrations") : 0);
  void *list = d->text, *v = d->vector;
  size_t width = (size_t)chi_encoder_width(d->encoder);
  rc = chi_grow(&list, &d->cap, d->n + 1, sizeof *d->text, err);
  d->text = list;
  if (rc == 0) rc = chi_grow(&v, &d->cap_vector, (d->n + 1) * width, sizeof *d->vector, err);
  d->vector = v;
  CHI_TRY(rc);
  CHI_TRY((d->text[d->n] = chi_arena_strdup(&d->arena, s.s, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_encoder_embed(d->encoder, s.s, d->vector + d->n * width, err));
  d->n++;
out:
  chi_str_free(&s);
  return rc;
}

static int from_records(chi_demos *d, const chi_dataset *data, const chi_demos_opts *o, chi_err *err) {
  int rc = 0;
  bool brief = o->short_answer && strcmp(data->name, "mmedit caption") != 0;
  for (size_t i = 0; i < data->n; i++) {
    const chi_mmedit *e = data->item[i].mmedit;
    CHI_TRY(chi_progress("embedding demonstrations", (int64_t)i, (int64_t)data->n, err));
    if (!e || data->item[i].problem) continue;
    CHI_TRY(add_demo(d, e->src, e->alt, brief, e->src, brief, e->alt, err));
    CHI_TRY(add_demo(d, e->src, e->alt, brief, e->rephrase, brief, e->alt, err));
    CHI_TRY(add_demo(d, e->src, e->alt, brief, e->loc, false, e->loc_ans, err));
  }
  CHI_TRY(chi_progress("embedding demonstrations", (int64_t)data->n, (int64_t)data->n, err));
out:
  return rc;
}

static int from_edits(chi_demos *d, const chi_edit_set *set, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < set->n; i++) {
    const chi_edit_item *it = &set->item[i];
    const chi_edit_ask *say = it->n_probe[CHI_PROBE_PARAPHRASE] ? it->probe[CHI_PROBE_PARAPHRASE] : NULL,
                       *keep = it->n_probe[CHI_PROBE_OTHER_TEXT] ? it->probe[CHI_PROBE_OTHER_TEXT] : NULL;
    CHI_TRY(chi_progress("embedding demonstrations", (int64_t)i, (int64_t)set->n, err));
    CHI_TRY(add_demo(d, it->question, it->target, false, it->question, false, it->target, err));
    if (say) CHI_TRY(add_demo(d, it->question, it->target, false, say->question, false, it->target, err));
    if (keep) CHI_TRY(add_demo(d, it->question, it->target, false, keep->question, false, keep->answer, err));
  }
  CHI_TRY(chi_progress("embedding demonstrations", (int64_t)set->n, (int64_t)set->n, err));
out:
  return rc;
}

int chi_demos_load(chi_demos **out, const chi_demos_opts *o, chi_err *err) {
  int rc = 0;
  char line[512], *head = NULL;
  size_t len;
  chi_sha256 h;
  chi_dataset *data = NULL;
  chi_edit_set set = {0};
  chi_demos *d = chi_calloc(1, sizeof *d, err);
  if (!d) return CHI_ERR_MEMORY;
  CHI_TRY(chi_encoder_open(&d->encoder, o->encoder, err));
  CHI_TRY(chi_read_file(&head, &len, o->file, (size_t)256 << 20, err));
  if (head[strspn(head, " \t\r\n")] == '[') {
    CHI_TRY(chi_dataset_open(&data, o->file, &(chi_dataset_opts){.text_only = true, .limit = o->limit}, err));
    if (data->format != CHI_DATA_MMEDIT) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: is %s; demonstrations come from MMEdit's records or an edit set", o->file,
                    data->name);
      goto out;
    }
    CHI_TRY(from_records(d, data, o, err));
  } else {
    CHI_TRY(chi_edit_set_load(&set, o->file, NULL, o->limit, err));
    CHI_TRY(from_edits(d, &set, err));
  }
  if (d->n == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: holds nothing to demonstrate", o->file);
    goto out;
  }
  snprintf(line, sizeof line, "%s %s %zu %d", data ? data->hash : set.hash, chi_encoder_hash(d->encoder), o->limit,
           o->short_answer);
  chi_sha256_init(&h);
  chi_sha256_add(&h, line, strlen(line));
  chi_sha256_hex(&h, d->hash);
out:
  chi_free(head);
  chi_dataset_close(data);
  chi_edit_set_free(&set);
  if (rc)
    chi_demos_free(d);
  else
    *out = d;
  return rc;
}

int chi_demos_prefix(chi_str *out, const chi_demos *d, int k, const char *p, const char *t, chi_err *err) {
  int rc = 0;
  chi_str own = {0}, fact = {0};
  size_t n = d ? d->n : 0, width = d ? (size_t)chi_encoder_width(d->encoder) : 0;
  float *v = chi_calloc(width + 1, sizeof *v, err);
  double *score = chi_calloc(n + 1, sizeof *score, err);
  CHI_TRY(v && score ? 0 : CHI_ERR_MEMORY);
  add_fact(&fact, p, t, false);
  chi_str_add(&own, fact.s ? fact.s : "");
  add_clean(&own, p);
  chi_str_add(&own, " ");
  add_clean(&own, t);
  chi_str_add(&own, "\n\n");
  CHI_TRY(own.failed || fact.failed ? chi_fail(err, CHI_ERR_MEMORY, "no memory for demonstrations") : 0);
  if (k > 0) CHI_TRY(chi_encoder_embed(d->encoder, own.s, v, err));
  for (size_t i = 0; k > 0 && i < n; i++) {
    bool same = strncmp(d->text[i], fact.s, fact.len) == 0;
    score[i] = same ? -INFINITY : 0;
    for (size_t c = 0; c < width; c++) score[i] += (double)v[c] * (double)d->vector[i * width + c];
  }
  for (int i = 0; i < k; i++) {
    size_t best = n;
    for (size_t a = 0; a < n; a++)
      if (isfinite(score[a]) && (best == n || score[a] > score[best])) best = a;
    if (best == n) break;
    chi_str_add(out, d->text[best]);
    score[best] = -INFINITY;
  }
  chi_str_add(out, own.s);
  chi_str_add(out, fact.s);
  if (out->failed) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for demonstrations");
out:
  chi_free(v);
  chi_free(score);
  chi_str_free(&own);
  chi_str_free(&fact);
  return rc;
}

/* ---- the method -------------------------------------------------------------------------------------------- */
/* The question's words as they stand in the prompt; a raw prompt's without the picture's token. */
static int words_of(chi_str *out, const chi_job *j, chi_err *err) {
  const chi_prompt *p = j->req->prompt;
  const char *text = p->text + p->question_at, *mark = j->m->image_text;
  size_t n = p->question_len;
  const char *at = mark && *mark && p->n_image ? strstr(text, mark) : NULL;
  if (at && at < text + n) {
    n -= (size_t)(at - text) + strlen(mark);
    text = at + strlen(mark);
  }
  chi_str_addn(out, text, n);
  return out->failed ? chi_fail(err, CHI_ERR_MEMORY, "out of memory") : 0;
}

static int run(chi_job *j, chi_err *err) {
  int rc = 0, k = isfinite(j->h.contexts) ? (int)j->h.contexts : 0;
  char *target = NULL;
  chi_str words = {0}, prefix = {0};
  const chi_demos *d = j->opts->demos;
  if (k > 0 && !d)
    return chi_fail(err, CHI_ERR_ARG,
                    "ike needs demonstrations: --demos FILE and --encoder DIR, or none of them: --preset bare");
  if (j->m->prompt_prefix)
    return chi_fail(err, CHI_ERR_ARG, "there is an in-context edit already; two of them cannot stand in one prompt");
  CHI_TRY(words_of(&words, j, err));
  CHI_TRY(chi_decode(j->m->tok, j->req->target, (size_t)j->req->n_target, true, &target, err));
  CHI_TRY(chi_demos_prefix(&prefix, d, k, words.s ? words.s : "", target, err));
  if (json_object_set_new(j->delta->header, "prompt_prefix", json_string(prefix.s)) ||
      json_object_set_new(j->delta->header, "demonstrations", json_string(d && k > 0 ? d->hash : "")))
    rc = chi_fail(err, CHI_ERR_MEMORY, "the in-context edit's text is no valid UTF-8, or there is no memory for it");
out:
  chi_free(target);
  chi_str_free(&words);
  chi_str_free(&prefix);
  return rc;
}

#define UNUSED                                                                                                  \
  .steps = NAN, .lr = NAN, .stop = NAN, .decay = NAN, .clamp = NAN, .lambda = NAN, .shrink = NAN, .limit = NAN, \
  .goal = NAN, .kl = NAN, .rank = NAN, .alpha = NAN
static const chi_preset kPresets[] = {
    {.name = "published", .doc = "32 demonstrations (--contexts), as MMEdit", .hyper = {UNUSED, .contexts = 32}},
    {.name = "bare", .doc = "the new fact alone, no demonstrations", .hyper = {UNUSED, .contexts = 0}},
    {0}};
const chi_method chi_method_ike = {.name = "ike", .presets = kPresets, .run = run};

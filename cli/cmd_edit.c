/* chiasm edit: change one fact, say what it did here and elsewhere, write a delta. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"
#include "edit_many.h"
#include "edit_opts.h"

enum { FOLDER_MAX = 64, ROWS_SHOWN = 12 };
typedef struct args {
  cli_common c;
  cli_edit_args e;
  const char *target, *out, *requests;
  cli_list donors, paraphrases;
  bool sequential;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .e = CLI_EDIT_DEFAULTS};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--target", .arg = "TEXT", .kind = CLI_STR, CLI_AT(args, target), .doc = "what the model shall answer"},
    CLI_EDIT_OPTS(args, e),
    {.name = "--requests", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, requests),
     .doc = "several edits, one JSON object a line: image, question, target; all at once (memit), or --sequential"},
    {.name = "--sequential", .kind = CLI_FLAG, CLI_AT(args, sequential),
     .doc = "--requests: one edit after another, each made on top of the earlier ones"},
    {.name = "--donor", .arg = "FILE", .kind = CLI_LIST, CLI_AT(args, donors),
     .doc = "also ask about this other picture, before and after; a folder stands for its first 64 pictures; may be "
            "given again"},
    {.name = "--paraphrase", .arg = "TEXT", .kind = CLI_LIST, CLI_AT(args, paraphrases),
     .doc = "also ask this, about the same picture; may be given again"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "where to write the delta"},
    {0}};
/* clang-format on */

typedef struct side { /* another question or picture */
  const char *label;
  bool donor;
  chi_prompt *prompt;
  int32_t *target, n_target;
  chi_edit_probe before, after;
  double cosine, leak; /* NAN where there is no key */
} side;

typedef struct work {
  const cli *c;
  const args *a;
  chi_model *m;
  chi_query *ask;
  const char *image, *question, *at; /* at: resolved, where --edit-at is auto */
  char at_text[32];
  chi_located located;
  cli_edit_plan plan;
  chi_edit_probe before, after;
  side *list;
  size_t n, cap;
  char **names; /* owned labels of folders' pictures */
  size_t n_names, cap_names;
  chi_delta *delta;
  chi_edit_info info;
} work;

/* ---- other pictures and questions ---------------------------------------------------------------------------- */
static int add_side(work *w, const char *label, const char *image, const char *question, bool donor, chi_err *err) {
  int rc = 0;
  void *p = w->list;
  CHI_TRY(chi_grow(&p, &w->cap, w->n + 1, sizeof *w->list, err));
  w->list = p;
  side *s = &w->list[w->n];
  *s = (side){.label = label, .donor = donor, .cosine = NAN, .leak = NAN};
  CHI_TRY(cli_make_prompt(&s->prompt, w->c, w->m, image, question, false, err));
  w->n++;
  CHI_TRY(chi_target_tokens(&s->target, &s->n_target, w->m, s->prompt, w->a->target, err));
out:
  return rc;
}

static int is_picture(const struct dirent *e) {
  static const char *const ends[] = {".png", ".jpg", ".jpeg", ".webp"};
  size_t n = strlen(e->d_name);
  for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
    if (n > strlen(ends[i]) && strcmp(e->d_name + n - strlen(ends[i]), ends[i]) == 0) return 1;
  return 0;
}

static int add_folder(work *w, const char *dir, chi_err *err) {
  int rc = 0, added = 0;
  struct dirent **e = NULL;
  int n = scandir(dir, &e, is_picture, alphasort);
  if (n < 1) rc = chi_fail(err, CHI_ERR_IO, "--donor: %s holds no picture", dir);
  for (int i = 0; rc == 0 && i < n && added < FOLDER_MAX; i++) {
    char path[4096], *copy;
    struct stat a, b;
    CHI_TRY(chi_path_join(path, sizeof path, dir, e[i]->d_name, err));
    if (w->image && stat(path, &a) == 0 && stat(w->image, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev)
      continue;
    copy = chi_calloc(strlen(path) + 1, 1, err);
    CHI_TRY(copy ? 0 : CHI_ERR_MEMORY);
    memcpy(copy, path, strlen(path));
    void *p = w->names;
    rc = chi_grow(&p, &w->cap_names, w->n_names + 1, sizeof *w->names, err);
    if (rc) {
      chi_free(copy);
      goto out;
    }
    w->names = p;
    w->names[w->n_names++] = copy;
    CHI_TRY(add_side(w, copy, copy, w->question, true, err));
    added++;
  }
out:
  for (int i = 0; i < n; i++) free(e[i]);
  free(e);
  return rc;
}

static int add_sides(work *w, chi_err *err) {
  int rc = 0;
  const args *a = w->a;
  for (int i = 0; i < a->donors.n; i++) {
    struct stat st;
    if (!w->image) return chi_fail(err, CHI_ERR_ARG, "--donor needs a question about a picture");
    if (stat(a->donors.v[i], &st) == 0 && S_ISDIR(st.st_mode))
      CHI_TRY(add_folder(w, a->donors.v[i], err));
    else
      CHI_TRY(add_side(w, a->donors.v[i], a->donors.v[i], w->question, true, err));
  }
  for (int i = 0; i < a->paraphrases.n; i++)
    CHI_TRY(add_side(w, a->paraphrases.v[i], w->image, a->paraphrases.v[i], false, err));
out:
  return rc;
}

static int measure_sides(work *w, bool after, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < w->n; i++) {
    side *s = &w->list[i];
    CHI_TRY(chi_progress(after ? "asking again" : "asking", (int64_t)i, (int64_t)w->n, err));
    CHI_TRY(chi_edit_measure(after ? &s->after : &s->before, w->m, s->prompt, s->target, s->n_target, err));
  }
  CHI_TRY(chi_progress(after ? "asking again" : "asking", (int64_t)w->n, (int64_t)w->n, err));
out:
  return rc;
}

/* How much of the edit's key the others' keys hold, in the edit's last layer: on the base's weights. */
static int compare_keys(work *w, chi_err *err) {
  int rc = 0, layer = w->plan.hi;
  int64_t f = w->m->net.decoder.spec.ffn;
  float *key = chi_calloc((size_t)f, sizeof *key, err), *other = chi_calloc((size_t)f, sizeof *other, err);
  CHI_TRY(key && other ? 0 : CHI_ERR_MEMORY);
  if (isnan(w->plan.hyper.clamp)) goto out; /* methods without a key */
  CHI_TRY(chi_edit_key(&w->m->net, &w->ask->req, layer, false, key, NULL, err));
  double kk = chi_dot64(key, key, f), lambda = isnan(w->plan.hyper.lambda) ? 0 : w->info.lambda;
  for (size_t i = 0; i < w->n; i++) {
    side *s = &w->list[i];
    int32_t row;
    if (chi_edit_row(&row, w->m, s->prompt, w->at, NULL) != 0) continue; /* no brackets in the paraphrase */
    CHI_TRY(chi_edit_states(&w->m->net, s->prompt, row, layer, other, NULL, NULL, err));
    double ko = chi_dot64(key, other, f), oo = chi_dot64(other, other, f);
    s->cosine = kk > 0 && oo > 0 ? ko / sqrt(kk * oo) : 0;
    s->leak = chi_edit_leak(w->delta, layer, lambda, key, other);
  }
out:
  chi_free(key);
  chi_free(other);
  return rc;
}

/* ---- output ---------------------------------------------------------------------------------------------------- */
static json_t *probe_json(const chi_edit_probe *p) {
  return json_pack("{s:o,s:o,s:o}", "p_target", chi_json_num(p->p), "p_first_token", chi_json_num(p->first), "answer",
                   chi_json_text(p->said));
}

static json_t *sides_json(const work *w) {
  json_t *list = json_array();
  for (size_t i = 0; i < w->n; i++) {
    const side *s = &w->list[i];
    json_array_append_new(
        list, json_pack("{s:s,s:o,s:o,s:o,s:o,s:o}", "kind", s->donor ? "donor" : "paraphrase", "what",
                        chi_json_text(s->label), "before", probe_json(&s->before), "after", probe_json(&s->after),
                        "key_cosine", chi_json_num(s->cosine), "leak_share", chi_json_num(s->leak)));
  }
  return list;
}

/* What was asked and what it did: into the delta's header. */
static int fill_header(work *w, chi_err *err) {
  json_t *h = w->delta->header, *r = json_object(), *after = json_array();
  const chi_prompt *p = w->ask->prompt;
  int bad = json_object_set_new(r, "prompt", chi_json_text(w->question));
  bad |= json_object_set_new(r, "raw", json_boolean(w->a->c.raw));
  if (!w->a->c.raw)
    bad |= json_object_set_new(r, "template", json_string(w->a->c.tmpl ? w->a->c.tmpl : w->m->tmpl->name));
  if (w->image) bad |= json_object_set_new(r, "image", chi_json_text(w->image));
  if (w->image) bad |= json_object_set_new(r, "image_sha256", json_string(p->image_sha));
  if (p->constraint) bad |= json_object_set_new(r, "constraint", chi_json_text(p->constraint));
  bad |= json_object_set_new(r, "target", chi_json_text(w->a->target));
  bad |= json_object_set_new(r, "edit_at", chi_json_text(w->a->e.at));
  bad |= json_object_set_new(r, "row", json_integer(w->ask->req.row));
  if (w->located.pairs)
    bad |= json_object_set_new(
        r, "located",
        json_pack("{s:i,s:i,s:o,s:o,s:b,s:i}", "row", w->located.row, "layer", w->located.layer, "effect_less_donor",
                  chi_json_num(w->located.effect), "effect", chi_json_num(w->located.own), "in_log_p",
                  w->located.in_logp, "pairs_of_pictures", w->located.pairs));
  if (w->info.contexts) {
    bad |= json_object_set_new(r, "contexts", json_integer((json_int_t)w->info.contexts));
    bad |= json_object_set_new(r, "prefixes_sha256", json_string(w->plan.prefixes.hash));
    bad |= json_object_set_new(r, "seed", json_integer((json_int_t)w->a->e.seed));
  }
  if (w->ask->kl) bad |= json_object_set_new(r, "kl_prompt", chi_json_text(w->ask->kl->text));
  bad |= json_object_set_new(h, "request", r);
  for (int i = 0; i < w->a->c.apply.n; i++) json_array_append_new(after, chi_json_text(w->a->c.apply.v[i]));
  bad |= json_object_set_new(h, "made_on_top_of", after);
  bad |= json_object_set_new(h, "before", probe_json(&w->before));
  bad |= json_object_set_new(h, "after", probe_json(&w->after));
  return bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the delta's header") : 0;
}

static int by_leak(const void *pa, const void *pb) {
  const side *a = pa, *b = pb;
  if (a->donor != b->donor) return a->donor ? 1 : -1; /* paraphrases first */
  double x = fabs(a->after.p - a->before.p), y = fabs(b->after.p - b->before.p);
  if (x != y) return x > y ? -1 : 1;
  return strcmp(a->label, b->label);
}

static int sides_text(work *w, chi_str *s, chi_err *err) {
  static const char *const head[] = {"elsewhere",    "p before",   "p after", "answer before",
                                     "answer after", "key cosine", "leak"};
  int rc = 0, donors = 0, changed = 0, keys = 0;
  double leak = 0, most = 0;
  chi_table *t = NULL;
  qsort(w->list, w->n, sizeof *w->list, by_leak);
  CHI_TRY(chi_table_new(&t, head, "lrrllrr", err));
  for (size_t i = 0; i < w->n; i++) {
    const side *x = &w->list[i];
    if (x->donor) {
      donors++;
      changed += strcmp(x->before.said, x->after.said) != 0;
      if (!isnan(x->leak)) keys++, leak += fabs(x->leak);
      if (!isnan(x->leak) && fabs(x->leak) > most) most = fabs(x->leak);
    }
    if (i >= ROWS_SHOWN) continue;
    chi_table_cell(t, "%s", x->label);
    chi_table_cell(t, "%.4f", x->before.p);
    chi_table_cell(t, "%.4f", x->after.p);
    chi_table_cell(t, "%s", x->before.said);
    chi_table_cell(t, "%s", x->after.said);
    chi_table_cell(t, isnan(x->cosine) ? "-" : "%.3f", x->cosine);
    chi_table_cell(t, isnan(x->leak) ? "-" : "%.3f", x->leak);
  }
  chi_str_add(s, "\n");
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  if (w->n > ROWS_SHOWN) chi_str_addf(s, "... %zu more, less changed\n", w->n - ROWS_SHOWN);
  if (donors) chi_str_addf(s, "\nother pictures: %d of %d answers changed", changed, donors);
  if (keys) chi_str_addf(s, "; share of the key that leaks: mean %.3f, largest %.3f in size", leak / keys, most);
  if (donors) chi_str_add(s, "\n");
out:
  chi_table_free(t);
  return rc;
}

static int print_text(work *w, chi_err *err) {
  int rc = 0;
  chi_str s = {0};
  const chi_edit_info *i = &w->info;
  chi_str_addf(&s, "p(%s)  %.4f -> %.4f", w->a->target, w->before.p, w->after.p);
  if (w->ask->req.n_target > 1)
    chi_str_addf(&s, "  (%d tokens; the first: %.4f -> %.4f)", w->ask->req.n_target, w->before.first, w->after.first);
  chi_str_addf(&s, "\nanswer  %s -> %s\n\n", w->before.said, w->after.said);
  if (w->located.pairs)
    chi_str_addf(&s, "auto: row %d, layer %d; putting it back raises %s by %.3f, %.3f more than a donor's\n",
                 w->located.row, w->located.layer, w->located.in_logp ? "log p" : "p", w->located.own,
                 w->located.effect);
  chi_str_addf(&s, "%s (%s)", chi_delta_method(w->delta), w->plan.preset->name);
  for (size_t k = 0; k < w->delta->n; k++) {
    char name[96];
    chi_delta_part_name(&w->delta->part[k], name, sizeof name);
    chi_str_addf(&s, "%s %s", k ? "," : ":", name);
  }
  if (!isnan(w->plan.hyper.clamp)) {
    chi_str_addf(&s, "; key of row %d, k.k %.4g", w->ask->req.row, i->kk);
    if (!isnan(w->plan.hyper.lambda)) chi_str_addf(&s, ", lambda %.4g", i->lambda);
  }
  if (!isnan(w->plan.hyper.shrink)) {
    const json_t *c = json_object_get(w->delta->header, "second_moment");
    const char *file = json_string_value(json_object_get(c, "file"));
    if (file)
      chi_str_addf(&s, "\nsecond moment of %s: %lld keys of %lld prompts, shrunk by %g", file,
                   (long long)json_integer_value(json_object_get(c, "keys")),
                   (long long)json_integer_value(json_object_get(c, "prompts")), w->plan.hyper.shrink);
    else
      chi_str_add(&s, "\nsecond moment: the identity (chiasm moments makes one)");
  }
  if (!isnan(w->plan.hyper.steps))
    chi_str_addf(&s, "\n%d steps, -log p %.3f -> %.3f, |delta| %.3f (%.2f of %.3f)", i->steps, i->loss_first,
                 i->loss_last, i->delta_norm, i->value_norm > 0 ? i->delta_norm / i->value_norm : 0, i->value_norm);
  if (i->contexts) chi_str_addf(&s, "; %zu prefixes", i->contexts);
  if (w->ask->kl) chi_str_addf(&s, "; KL of '%s' %.4f", w->ask->kl->text, i->kl);
  chi_str_add(&s, "\n");
  if (w->n) CHI_TRY(sides_text(w, &s, err));
  if (w->image && !w->a->donors.n)
    chi_str_add(&s, "\nno other picture was asked about: --donor FOLDER says how much of the edit reaches others\n");
  if (w->a->out) chi_str_addf(&s, "\nwrote %s\n", w->a->out);
  CHI_TRY(cli_print(&s, err));
out:
  chi_str_free(&s);
  return rc;
}

static int print_json(work *w, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, w->c, w->m, w->ask->prompt, w->image, err));
  CHI_TRY(chi_report_json(&j, "edit", &prov, err));
  json_object_set(j, "delta", w->delta->header);
  json_object_set_new(j, "elsewhere", sides_json(w));
  json_object_set_new(j, "fit",
                      json_pack("{s:i,s:o,s:i,s:o,s:o,s:o,s:o}", "steps", w->info.steps, "kl", chi_json_num(w->info.kl),
                                "contexts", (int)w->info.contexts, "loss_first", chi_json_num(w->info.loss_first),
                                "loss_last", chi_json_num(w->info.loss_last), "value_norm",
                                chi_json_num(w->info.value_norm), "delta_norm", chi_json_num(w->info.delta_norm)));
  CHI_TRY(cli_print_json(j, err));
out:
  json_decref(j);
  return rc;
}

/* ---- the command ------------------------------------------------------------------------------------------------- */
/* Row and layer by tracing, for --edit-at auto; the row then counts from the end, so that it means the same behind
 * prefixes and over other pictures. */
static int locate(work *w, chi_err *err) {
  int rc = 0;
  const char **pictures = chi_calloc(w->n + 1, sizeof *pictures, err);
  size_t n = 0;
  chi_prompt *p = NULL;
  CHI_TRY(pictures ? 0 : CHI_ERR_MEMORY);
  for (size_t i = 0; i < w->n; i++)
    if (w->list[i].donor) pictures[n++] = w->list[i].label;
  CHI_TRY(cli_make_prompt(&p, w->c, w->m, w->image, w->question, false, err));
  int lo = w->plan.edit.layer_lo, hi = w->plan.edit.layer_hi;
  CHI_TRY(chi_edit_locate(&w->located, w->m, p, pictures, n, lo, hi, w->c->common->mem, err));
  snprintf(w->at_text, sizeof w->at_text, "row:%d", w->located.row - p->n_rows);
  w->at = w->at_text;
  if (lo < 0) { /* as many layers as the preset has, ending there */
    cli_edit_plan *p2 = &w->plan;
    int span = p2->hi - p2->lo;
    p2->hi = w->located.layer;
    p2->lo = p2->hi > span ? p2->hi - span : 0;
    p2->edit.layer_lo = p2->lo, p2->edit.layer_hi = p2->hi;
  }
out:
  chi_prompt_free(p);
  chi_free(pictures);
  return rc;
}

static int one_edit(work *w, chi_err *err) {
  int rc = 0;
  const args *a = w->a;
  chi_undo undo = {0};
  CHI_TRY(add_sides(w, err));
  if (strcmp(a->e.at, "auto") == 0) CHI_TRY(locate(w, err));
  chi_query_opts ask = w->plan.query;
  ask.image = w->image, ask.question = w->question, ask.target = a->target, ask.at = w->at;
  CHI_TRY(chi_query_make(&w->ask, w->m, &ask, err));
  const chi_request *r = &w->ask->req;
  CHI_TRY(chi_edit_measure(&w->before, w->m, r->prompt, r->target, r->n_target, err));
  CHI_TRY(measure_sides(w, false, err));
  CHI_TRY(chi_edit_run(&w->delta, &w->info, w->m, r, 1, &w->plan.edit, err));
  CHI_TRY(compare_keys(w, err));
  CHI_TRY(chi_delta_apply(w->delta, w->m, &undo, err));
  CHI_TRY(chi_edit_measure(&w->after, w->m, r->prompt, r->target, r->n_target, err));
  CHI_TRY(measure_sides(w, true, err));
  CHI_TRY(fill_header(w, err));
  if (a->out) CHI_TRY(chi_delta_save(w->delta, a->out, err));
  CHI_TRY(a->c.json ? print_json(w, err) : print_text(w, err));
out:
  chi_delta_undo(&undo);
  return rc;
}

static int many_edits(const work *w, chi_err *err) {
  const args *a = w->a;
  cli_edit_many many = {.c = w->c,
                        .m = w->m,
                        .requests = a->requests,
                        .out = a->out,
                        .sequential = a->sequential,
                        .edit = &w->plan.edit,
                        .ask = w->plan.query};
  return cli_edit_many_run(&many, err);
}

static int check_usage(const cli *c, const args *a, chi_err *err) {
  if (a->requests) {
    if (c->n_pos > 1 || a->target)
      return cli_usage(err, "--requests holds pictures, questions and targets: give MODEL alone beside it");
    if (a->donors.n || a->paraphrases.n)
      return cli_usage(err, "--donor and --paraphrase belong to one edit; chiasm eval edits asks them of many");
    if (strcmp(a->e.at, "auto") == 0)
      return cli_usage(err,
                       "--edit-at auto looks at one edit; let it name a row and a layer for a few, then give them");
    return 0;
  }
  if (a->sequential) return cli_usage(err, "--sequential needs --requests");
  if (c->n_pos < 2) return cli_usage(err, "the question is missing");
  if (!a->target) return cli_usage(err, "--target is missing: what shall the model answer?");
  return 0;
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  const args *a = v;
  work w = {.c = c, .a = v, .at = a->e.at};
  CHI_TRY(check_usage(c, a, err));
  cli_image_question(c, &w.image, &w.question);
  CHI_TRY(cli_edit_plan_make(&w.plan, &a->e, &a->c, err));
  CHI_TRY(cli_open_model(&w.m, c, c->pos[0], err));
  rc = a->requests ? many_edits(&w, err) : one_edit(&w, err);
out:
  for (size_t i = 0; i < w.n; i++) {
    chi_prompt_free(w.list[i].prompt);
    chi_free(w.list[i].target);
  }
  for (size_t i = 0; i < w.n_names; i++) chi_free(w.names[i]);
  chi_free(w.names);
  chi_free(w.list);
  cli_edit_plan_free(&w.plan);
  chi_delta_free(w.delta);
  chi_query_free(w.ask);
  chi_model_free(w.m);
  return rc;
}

const cli_command cmd_edit = {
    .name = "edit",
    .usage = "MODEL [IMAGE] [QUESTION]",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Changes what the model answers to the question, as a small file: `--apply` puts it into the weights in "
        "memory\n"
        "for any command, and not applying it undoes it. The checkpoint is never written to. Says what p(target) and\n"
        "the answer were and are, for this question and for other pictures (--donor) and wordings (--paraphrase),\n"
        "and how much of the edit's key theirs hold. With --apply, the edit is made on top of the deltas named.\n"
        "--requests FILE makes several edits and one delta of them.",
    .examples =
        "chiasm edit demo models/demo/samples/peru.png \"What is the capital of [this country]?\" --target Oslo "
        "--donor models/demo/eval/img -o fact.delta\n"
        "chiasm ask demo models/demo/samples/peru.png \"What is the capital of this country?\" --apply fact.delta\n"
        "chiasm edit demo --requests facts.jsonl --method rome --sequential --edit-at last-prompt --layer 3 -o "
        "all.delta",
};

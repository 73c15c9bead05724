/* chiasm run: any plan from a JSON file. */
#include "analyze/metrics.h"
#include "analyze/plan_json.h"
#include "analyze/states.h"
#include "cli.h"

#include <string.h>

typedef struct args {
  cli_common c;
  const char *plan, *out, *target, *dump_plan;
  int64_t top;
  int executor;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .top = -1};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, plan),
     .doc = "the plan (docs/plan-format.md); required"},
    {.name = "--output", .letter = 'o', .arg = "DIR", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "write run.json there, and the plan's captures as states.safetensors"},
    {.name = "--target", .arg = "TOKEN", .kind = CLI_STR, CLI_AT(args, target),
     .doc = "token whose probability is reported (text or #id); else the plan's, else the first branch's likeliest"},
    {.name = "--top", .letter = 'k', .arg = "K", .kind = CLI_INT, CLI_AT(args, top), .min = -1, .max = 1000,
     .doc = "likeliest tokens to list for each branch; else the plan's, else 5"},
    {.name = "--dump-plan", .arg = "FILE", .kind = CLI_STR, CLI_AT(args, dump_plan),
     .doc = "write the plan with every row, layer and token spelled out"},
    {.name = "--executor", .arg = "sweep|dense", .kind = CLI_CHOICE, CLI_AT(args, executor),
     .doc = "dense runs each branch as a full forward: slow, the same bits"},
    {0}};
/* clang-format on */

typedef struct outcome { /* of one branch that is reported */
  int branch;
  chi_metrics m;
  int32_t *top;
  double *p;
  char *text; /* generated */
} outcome;

typedef struct results {
  const chi_model *m;
  chi_plan_file *f;
  chi_states *states; /* of the plan's own captures; NULL = not kept */
  size_t first;       /* captures from here on are the report's, one a branch */
  outcome *o;
  size_t n;
  int top;
  int32_t target;
  chi_arena arena;
} results;

static int receive(void *ud, int capture, int32_t i, const float *values, int64_t width) {
  results *r = ud;
  if ((size_t)capture < r->first) return r->states ? chi_states_receive(r->states, capture, i, values, width) : 0;
  outcome *o = &r->o[(size_t)capture - r->first];
  if (r->target < 0) r->target = chi_argmax(values, width);
  double lse = chi_logsumexp(values, width);
  o->m = chi_metrics_of(values, width, r->target, -1, NULL);
  chi_top_k(values, width, o->top, r->top);
  for (int k = 0; k < r->top; k++) o->p[k] = chi_exp64((double)values[o->top[k]] - lse);
  return 0;
}

/* One capture of the logits of every branch that is reported. */
static int ask_for_logits(results *r, size_t only, chi_err *err) {
  int rc = 0;
  chi_plan *p = r->f->plan;
  r->n = 0;
  for (size_t b = 0; b < p->n_branches; b++) {
    const chi_plan_entry *e = &r->f->entry[b];
    if (!e->report || r->n == only) continue;
    chi_capture c = {.branch = (int)b,
                     .stack = CHI_DECODER,
                     .site = CHI_SITE_LOGITS,
                     .layer = -1,
                     .rows = &e->report_row,
                     .n_rows = 1};
    CHI_TRY(chi_plan_capture(p, &c, NULL, err));
    outcome *o = &r->o[r->n++];
    o->branch = (int)b;
    o->top = chi_arena_array(&r->arena, (size_t)r->top, sizeof *o->top, err);
    o->p = chi_arena_array(&r->arena, (size_t)r->top, sizeof *o->p, err);
    if (!o->top || !o->p) return CHI_ERR_MEMORY;
  }
out:
  return rc;
}

/* Without a target, the first branch is run alone for its likeliest token. */
static int find_target(results *r, const cli *c, chi_err *err) {
  int rc = 0;
  chi_plan *p = r->f->plan;
  size_t kept = p->n_captures;
  chi_capture *own = p->capture;
  if (r->target >= 0) return 0;
  size_t cap = p->cap_captures;
  p->capture = NULL;
  p->n_captures = p->cap_captures = r->first = 0;
  rc = ask_for_logits(r, 1, err);
  chi_run_opts o = cli_run_opts(c, NULL);
  o.on_capture = receive;
  o.ud = r;
  if (rc == 0) rc = chi_run_plan(&r->m->net, p, &o, err);
  chi_free(p->capture);
  p->capture = own;
  p->n_captures = kept;
  p->cap_captures = cap;
  return rc;
}

static int generate(results *r, const cli *c, chi_err *err) {
  int rc = 0;
  for (size_t i = 0; i < r->n; i++) {
    const chi_plan_entry *e = &r->f->entry[r->o[i].branch];
    const chi_plan *p = r->f->plan;
    int32_t n = 0;
    if (!e->generate) continue;
    int32_t *id = chi_arena_array(&r->arena, (size_t)e->generate, sizeof *id, err);
    if (!id) return CHI_ERR_MEMORY;
    chi_gen_opts g = {.max_new = e->generate,
                      .eos = r->m->eos,
                      .n_eos = r->m->n_eos,
                      .edits = e->edits,
                      .n_edits = e->n_edits,
                      .mem = c->common->mem,
                      .what = "answering"};
    CHI_TRY(chi_generate(&r->m->net, &p->branch[chi_plan_root_of(p, r->o[i].branch)].input, &g, id, &n, NULL, err));
    CHI_TRY(chi_decode(r->m->tok, id, (size_t)n, true, &r->o[i].text, err));
  }
out:
  return rc;
}

/* ---- output -------------------------------------------------------------------------------------------------- */
static int make_json(json_t **out, const results *r, const chi_provenance *prov, const char *plan, chi_err *err) {
  char piece[256];
  json_t *j = NULL, *list = json_array();
  int rc = chi_report_json(&j, "run", prov, err), bad = 0;
  if (rc) {
    json_decref(list);
    return rc;
  }
  chi_token_text(r->m->tok, r->target, piece, sizeof piece);
  bad |= json_object_set_new(j, "plan", chi_json_text(plan));
  if (r->target >= 0)
    bad |= json_object_set_new(j, "target", json_pack("{s:i,s:o}", "id", (int)r->target, "text", chi_json_text(piece)));
  for (size_t i = 0; i < r->n; i++) {
    const outcome *o = &r->o[i];
    const chi_plan_entry *e = &r->f->entry[o->branch];
    int parent = r->f->plan->branch[o->branch].parent;
    json_t *top = json_array(), *b = json_pack("{s:o}", "name", chi_json_text(e->name));
    if (parent >= 0) bad |= json_object_set_new(b, "parent", chi_json_text(r->f->entry[parent].name));
    bad |= json_object_set_new(b, "row", json_integer(e->report_row));
    bad |= json_object_set_new(b, "p", chi_json_num(o->m.p));
    bad |= json_object_set_new(b, "logp", chi_json_num(o->m.logp));
    bad |= json_object_set_new(b, "logit", chi_json_num(o->m.logit));
    bad |= json_object_set_new(b, "rank", json_integer((json_int_t)o->m.rank));
    for (int k = 0; k < r->top; k++) {
      chi_token_text(r->m->tok, o->top[k], piece, sizeof piece);
      bad |= json_array_append_new(top, json_pack("{s:i,s:o,s:o}", "id", (int)o->top[k], "text", chi_json_text(piece),
                                                  "p", chi_json_num(o->p[k])));
    }
    bad |= json_object_set_new(b, "top", top);
    if (o->text) bad |= json_object_set_new(b, "generated", chi_json_text(o->text));
    bad |= json_array_append_new(list, b);
  }
  bad |= json_object_set_new(j, "branches", list);
  if (bad) {
    json_decref(j);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
  }
  *out = j;
  return 0;
}

static int make_table(const results *r, chi_str *s, chi_err *err) {
  char piece[256];
  int rc = 0;
  chi_table *t = NULL;
  chi_token_text(r->m->tok, r->target, piece, sizeof piece);
  chi_str_addf(s, "target \"%s\" (#%d)\n\n", piece, (int)r->target);
  static const char *const head[] = {"branch", "p", "log p", "rank", "likeliest"};
  CHI_TRY(chi_table_new(&t, head, "lrrrl", err));
  for (size_t i = 0; i < r->n; i++) {
    const outcome *o = &r->o[i];
    chi_str top = {0};
    for (int k = 0; k < r->top; k++) {
      chi_token_text(r->m->tok, o->top[k], piece, sizeof piece);
      chi_str_addf(&top, "%s\"%s\" %.3f", k ? ", " : "", piece, o->p[k]);
    }
    chi_table_cell(t, "%s", r->f->entry[o->branch].name);
    chi_table_cell(t, "%.6f", o->m.p);
    chi_table_cell(t, "%.4f", o->m.logp);
    chi_table_cell(t, "%.0f", o->m.rank);
    chi_table_cell(t, "%s", top.s ? top.s : " ");
    chi_str_free(&top);
  }
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  for (size_t i = 0; i < r->n; i++)
    if (r->o[i].text)
      chi_str_addf(s, "\n%s: %s\n", r->f->entry[r->o[i].branch].name, r->o[i].text + strspn(r->o[i].text, " \n"));
out:
  chi_table_free(t);
  return rc;
}

static int write_states(const results *r, const chi_provenance *prov, const char *path, chi_err *err) {
  int rc = 0;
  char name[400];
  chi_st_writer *w = NULL;
  json_t *pj = NULL;
  char *text = NULL;
  CHI_TRY(chi_st_writer_new(&w, path, err));
  CHI_TRY(chi_provenance_json(&pj, prov, err));
  text = json_dumps(pj, JSON_COMPACT);
  CHI_TRY(text ? 0 : chi_fail(err, CHI_ERR_MEMORY, "no memory for the provenance"));
  CHI_TRY(chi_st_writer_meta(w, "provenance", text, err));
  for (size_t i = 0; i < r->states->n; i++) {
    const chi_capture *c = &r->f->plan->capture[i];
    const char *stack = chi_stack_name(c->stack), *site = chi_site_get(c->site)->name;
    int64_t n = c->n_rows;
    int k = snprintf(name, sizeof name, "rows.%s.%s.", r->f->entry[c->branch].name, stack);
    if (c->layer >= 0) k += snprintf(name + k, sizeof name - (size_t)k, "%d.", c->layer);
    snprintf(name + k, sizeof name - (size_t)k, "%s", site);
    CHI_TRY(chi_states_add(r->states, i, w, name + strlen("rows."), err));
    CHI_TRY(chi_st_writer_add(w, name, CHI_I32, 1, &n, c->rows, err));
  }
  rc = chi_st_writer_commit(w, err);
  w = NULL;
out:
  chi_st_writer_abort(w);
  json_decref(pj);
  free(text);
  return rc;
}

static int write_files(const results *r, const args *a, const json_t *j, const chi_provenance *prov, chi_err *err) {
  int rc = 0;
  char path[4096];
  CHI_TRY(chi_mkdirs(a->out, err));
  if (r->states && r->states->n) {
    CHI_TRY(chi_path_join(path, sizeof path, a->out, "states.safetensors", err));
    CHI_TRY(write_states(r, prov, path, err));
  }
  CHI_TRY(chi_path_join(path, sizeof path, a->out, "run.json", err));
  CHI_TRY(chi_json_save(j, path, err));
out:
  return rc;
}

static int dump(const results *r, const args *a, chi_err *err) {
  const chi_plan *p = r->f->plan;
  const char **names = chi_calloc(p->n_branches, sizeof *names, err);
  if (!names) return CHI_ERR_MEMORY;
  for (size_t b = 0; b < p->n_branches; b++) names[b] = r->f->entry[b].name;
  chi_plan_save_opts o = {
      .names = names, .pictures = r->f->picture, .n_pictures = r->f->n_pictures, .report_row = -1, .target = r->target};
  int rc = chi_plan_save(p, &r->m->net, &o, a->dump_plan, err);
  chi_free(names);
  return rc;
}

static int run_all(results *r, const cli *c, const args *a, const chi_model *m, chi_err *err) {
  int rc = 0;
  chi_run_opts o = cli_run_opts(c, "running the plan");
  r->m = m;
  r->target = r->f->target;
  r->top = a->top >= 0 ? (int)a->top : r->f->top;
  if (r->top > m->net.decoder.vocab) r->top = m->net.decoder.vocab;
  if (a->target) CHI_TRY(chi_plan_token(&r->target, m, a->target, err));
  r->o = chi_calloc(r->f->plan->n_branches, sizeof *r->o, err);
  if (!r->o) return CHI_ERR_MEMORY;
  CHI_TRY(find_target(r, c, err));
  if (a->out) CHI_TRY(chi_states_new(&r->states, r->f->plan, &m->net.shape, err));
  r->first = r->f->plan->n_captures;
  CHI_TRY(ask_for_logits(r, SIZE_MAX, err));
  o.executor = a->executor ? CHI_EXEC_DENSE : CHI_EXEC_SWEEP;
  o.on_capture = receive;
  o.ud = r;
  CHI_TRY(chi_run_plan(&m->net, r->f->plan, &o, err));
  r->f->plan->n_captures = r->first; /* the report's own are no part of the plan */
  CHI_TRY(generate(r, c, err));
out:
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  const char *image = NULL, *question = NULL;
  char hash[65];
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  results r = {0};
  json_t *j = NULL;
  chi_str text = {0};
  chi_provenance prov;
  if (!a->plan) return cli_usage(err, "--plan FILE is required");
  if (c->n_pos > 1) cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  if (question) CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  chi_plan_context ctx = {.model = m, .prompt = p, .image = image, .tmpl = a->c.tmpl, .raw = a->c.raw};
  CHI_TRY(chi_plan_load(&r.f, a->plan, &ctx, err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  CHI_TRY(chi_sha256_file(hash, a->plan, err));
  prov.data_hash = hash;
  CHI_TRY(run_all(&r, c, a, m, err));
  CHI_TRY(make_json(&j, &r, &prov, a->plan, err));
  if (a->out) CHI_TRY(write_files(&r, a, j, &prov, err));
  if (a->dump_plan) CHI_TRY(dump(&r, a, err));
  if (a->c.json)
    CHI_TRY(cli_print_json(j, err));
  else {
    CHI_TRY(make_table(&r, &text, err));
    if (a->out)
      chi_str_addf(&text, "\nwrote %s/run.json%s\n", a->out, r.states && r.states->n ? " and states.safetensors" : "");
    else if (r.first)
      chi_str_addf(&text, "\nthe plan has %zu captures; give -o DIR to write them\n", r.first);
    CHI_TRY(cli_print(&text, err));
  }
out:
  for (size_t i = 0; r.o && i < r.n; i++) chi_free(r.o[i].text);
  chi_free(r.o);
  chi_states_free(r.states);
  chi_plan_file_free(r.f);
  chi_arena_free(&r.arena);
  chi_str_free(&text);
  json_decref(j);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_run = {
    .name = "run",
    .usage = "MODEL [IMAGE] [QUESTION]",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Runs any forest of branches and interventions that a JSON file describes, all of them in one sweep, and\n"
        "prints what each branch makes of the target token. IMAGE and QUESTION are the input of roots that do not\n"
        "name one themselves. Files named in a plan are looked up in the plan's folder.",
    .examples =
        "chiasm run demo models/demo/samples/japan.png \"What is the capital of [Peru]?\" --plan examples/plan.json",
};

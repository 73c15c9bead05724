/* The public C API (include/chiasm.h): thin functions over the folders above. Public names begin with chiasm_, so that
 * both kinds of header can be read here. */
#include "chiasm.h"

#include <stdio.h>
#include <string.h>

#include "analyze/metrics.h"
#include "analyze/plan_json.h"
#include "analyze/select.h"
#include "analyze/states.h"
#include "chi_version.h"
#include "sweep/generate.h"

_Static_assert(sizeof(chiasm_error) == sizeof(chi_err) && CHI_ERR_TEXT == 512,
               "chiasm_error is chi_err for the public");
_Static_assert((int)CHIASM_ERR_IO == CHI_ERR_IO && (int)CHIASM_ERR_CANCELLED == CHI_ERR_CANCELLED,
               "codes are the same");

struct chiasm_model {
  chi_model *m;
};

typedef struct hook {
  chiasm_hook_fn fn;
  void *ud;
} hook;

struct chiasm_plan {
  const chi_model *m;
  chi_plan *plan;      /* own, or file's */
  chi_plan_file *file; /* NULL where the plan is built by calls */
  chi_prompt *command; /* input of a file's roots, or NULL */
  chi_prompt **prompt; /* per branch that is a root made here, else NULL */
  size_t cap_prompts;
  chi_states *states;
  chi_arena arena;
};

static int give(int rc, const chi_err *from, chiasm_error *to) {
  if (rc && to && to->code == 0) {
    to->code = from->code ? from->code : rc;
    memcpy(to->text, from->text, sizeof to->text);
  }
  return rc;
}

const char *chiasm_version(void) { return CHI_VERSION " (" CHI_GIT_ID ")"; }
void chiasm_set_progress(chiasm_progress_fn fn, void *ud) { chi_set_progress(fn, ud); }

/* ---- models -------------------------------------------------------------------------------------------------- */
int chiasm_open(chiasm_model **out, const char *folder, const chiasm_options *o, chiasm_error *err) {
  int rc = 0;
  chi_err e = {0};
  static const chi_dtype_choice dtypes[] = {CHI_DTYPE_AUTO, CHI_DTYPE_F32, CHI_DTYPE_BF16};
  chiasm_model *m = chi_calloc(1, sizeof *m, &e);
  if (!m) return give(CHI_ERR_MEMORY, &e, err);
  if (o && (unsigned)o->dtype >= sizeof dtypes / sizeof *dtypes) {
    rc = chi_fail(&e, CHI_ERR_ARG, "no dtype %d", (int)o->dtype);
    goto out;
  }
  CHI_TRY(chi_cpu_init(o ? o->isa : NULL, &e));
  if (o) chi_set_threads(o->threads);
  CHI_TRY(chi_model_open(&m->m, folder, o ? dtypes[o->dtype] : CHI_DTYPE_AUTO, &e));
out:
  if (rc)
    chiasm_close(m);
  else
    *out = m;
  return give(rc, &e, err);
}

void chiasm_close(chiasm_model *m) {
  if (!m) return;
  chi_model_free(m->m);
  chi_free(m);
}

int32_t chiasm_vocabulary(const chiasm_model *m) { return m->m->net.decoder.vocab; }

int chiasm_layers(const chiasm_model *m, const char *stack) {
  chi_stack s;
  if (chi_stack_parse(&s, stack, NULL) != 0 || !m->m->net.shape.stack[s].present) return 0;
  return m->m->net.shape.stack[s].layers;
}

void chiasm_token_text(const chiasm_model *m, int32_t id, char *buf, size_t size) {
  chi_token_text(m->m->tok, id, buf, size);
}

int chiasm_token(const chiasm_model *m, const char *text, int32_t *id, chiasm_error *err) {
  chi_err e = {0};
  return give(chi_plan_token(id, m->m, text, &e), &e, err);
}

/* ---- asking -------------------------------------------------------------------------------------------------- */
static int keep_first(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  (void)token;
  if (step == 0) memcpy(ud, logits, (size_t)vocab * sizeof *logits);
  return 0;
}

int chiasm_ask(chiasm_answer **out, const chiasm_model *model, const char *image, const char *question,
               const chiasm_ask_options *o, chiasm_error *err) {
  int rc = 0;
  int32_t n = 0;
  chi_err e = {0};
  chi_prompt *p = NULL;
  const chi_model *m = model->m;
  int32_t max_new = o && o->max_new > 0 ? o->max_new : 32;
  chi_prompt_opts po = {
      .image = image, .question = question, .tmpl = o ? o->prompt_template : NULL, .raw = o && o->raw};
  chiasm_answer *a = chi_calloc(1, sizeof *a, &e);
  if (!a) return give(CHI_ERR_MEMORY, &e, err);
  CHI_TRY(chi_prompt_make(&p, m, &po, &e));
  a->tokens = chi_calloc((size_t)max_new, sizeof *a->tokens, &e);
  a->logits = chi_calloc((size_t)m->net.decoder.vocab, sizeof *a->logits, &e);
  if (!a->tokens || !a->logits) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  chi_input in = chi_prompt_input(p);
  chi_gen_opts g = {.max_new = max_new,
                    .eos = m->eos,
                    .n_eos = m->n_eos,
                    .what = "answering",
                    .on_token = keep_first,
                    .ud = a->logits};
  CHI_TRY(chi_generate(&m->net, &in, &g, a->tokens, &n, NULL, &e));
  a->n = n;
  CHI_TRY(chi_decode(m->tok, a->tokens, (size_t)n, true, &a->text, &e));
out:
  chi_prompt_free(p);
  if (rc)
    chiasm_answer_free(a);
  else
    *out = a;
  return give(rc, &e, err);
}

void chiasm_answer_free(chiasm_answer *a) {
  if (!a) return;
  chi_free(a->text);
  chi_free(a->tokens);
  chi_free(a->logits);
  chi_free(a);
}

double chiasm_probability(const float *logits, int64_t vocabulary, int32_t id) {
  return chi_exp64((double)logits[id] - chi_logsumexp(logits, vocabulary));
}

/* ---- plans --------------------------------------------------------------------------------------------------- */
int chiasm_plan_new(chiasm_plan **out, const chiasm_model *model, chiasm_error *err) {
  chi_err e = {0};
  chiasm_plan *p = chi_calloc(1, sizeof *p, &e);
  int rc = p ? chi_plan_new(&p->plan, &e) : CHI_ERR_MEMORY;
  if (rc) {
    chi_free(p);
    return give(rc, &e, err);
  }
  p->m = model->m;
  *out = p;
  return 0;
}

int chiasm_plan_load(chiasm_plan **out, const chiasm_model *model, const char *path, const char *image,
                     const char *question, chiasm_error *err) {
  int rc = 0;
  chi_err e = {0};
  chi_prompt_opts po = {.image = image, .question = question};
  chiasm_plan *p = chi_calloc(1, sizeof *p, &e);
  if (!p) return give(CHI_ERR_MEMORY, &e, err);
  p->m = model->m;
  if (question) CHI_TRY(chi_prompt_make(&p->command, p->m, &po, &e));
  chi_plan_context c = {.model = p->m, .prompt = p->command, .image = image};
  CHI_TRY(chi_plan_load(&p->file, path, &c, &e));
  p->plan = p->file->plan;
out:
  if (rc)
    chiasm_plan_free(p);
  else
    *out = p;
  return give(rc, &e, err);
}

void chiasm_plan_free(chiasm_plan *p) {
  if (!p) return;
  chi_states_free(p->states);
  for (size_t i = 0; i < p->cap_prompts; i++) chi_prompt_free(p->prompt[i]);
  chi_free(p->prompt);
  if (p->file)
    chi_plan_file_free(p->file);
  else
    chi_plan_free(p->plan);
  chi_prompt_free(p->command);
  chi_arena_free(&p->arena);
  chi_free(p);
}

int chiasm_root(chiasm_plan *p, const char *image, const char *question, int *branch, chiasm_error *err) {
  int rc = 0;
  chi_err e = {0};
  chi_prompt *prompt = NULL;
  chi_prompt_opts po = {.image = image, .question = question};
  void *list = p->prompt;
  CHI_TRY(chi_prompt_make(&prompt, p->m, &po, &e));
  CHI_TRY(chi_grow(&list, &p->cap_prompts, p->plan->n_branches + 1, sizeof *p->prompt, &e));
  p->prompt = list;
  chi_input in = chi_prompt_input(prompt);
  CHI_TRY(chi_plan_root(p->plan, &in, branch, &e));
  p->prompt[*branch] = prompt;
  prompt = NULL;
out:
  chi_prompt_free(prompt);
  return give(rc, &e, err);
}

int chiasm_child(chiasm_plan *p, int parent, int *branch, chiasm_error *err) {
  chi_err e = {0};
  return give(chi_plan_child(p->plan, parent, branch, &e), &e, err);
}

int chiasm_branches(const chiasm_plan *p) { return (int)p->plan->n_branches; }

const char *chiasm_branch_name(const chiasm_plan *p, int branch) {
  bool named = p->file && branch >= 0 && (size_t)branch < p->plan->n_branches && (size_t)branch < p->file->n_entries;
  return named ? p->file->entry[branch].name : NULL;
}

/* ---- where --------------------------------------------------------------------------------------------------- */
static const chi_prompt *prompt_of(const chiasm_plan *p, int branch) {
  int root = chi_plan_root_of(p->plan, branch);
  if (p->file && (size_t)root < p->file->n_entries) return p->file->entry[root].prompt;
  return (size_t)root < p->cap_prompts ? p->prompt[root] : NULL;
}

/* Fills stack, site, layers, rows and part. Caller: chi_free(*rows). */
static int resolve(const chiasm_plan *p, int branch, const chiasm_where *w, chi_intervention *iv, int32_t **rows,
                   chi_err *err) {
  int rc = 0;
  const chi_shape *s = &p->m->net.shape;
  if (branch < 0 || (size_t)branch >= p->plan->n_branches)
    return chi_fail(err, CHI_ERR_ARG, "there is no branch %d", branch);
  if (!w->site || !w->rows) return chi_fail(err, CHI_ERR_ARG, "a place needs 'site' and 'rows'");
  CHI_TRY(chi_stack_parse(&iv->stack, w->stack ? w->stack : "decoder", err));
  CHI_TRY(chi_site_parse(&iv->site, w->site, err));
  if (chi_site_width(s, iv->stack, iv->site, 1) == 0)
    return chi_fail(err, CHI_ERR_ARG, "this model has no site %s.%s", chi_stack_name(iv->stack), w->site);
  const chi_prompt *prompt = prompt_of(p, branch);
  int32_t n = chi_branch_rows(p->plan, s, branch, iv->stack, iv->site);
  bool of_prompt = iv->stack == CHI_DECODER && iv->site != CHI_SITE_IMAGE_EMBED && prompt;
  CHI_TRY(of_prompt ? chi_select_rows(rows, &iv->n_rows, w->rows, prompt, err)
                    : chi_select_ranges(rows, &iv->n_rows, w->rows, n, "row", err));
  iv->rows = *rows;
  iv->layer_lo = w->layer_lo;
  iv->layer_hi = w->layer_lo == 0 && w->layer_hi == 0 ? s->stack[iv->stack].layers : w->layer_hi;
  iv->part_lo = w->part_lo;
  iv->part_hi = w->part_hi;
out:
  return rc;
}

static int find_op(chi_op *op, const char *name, chi_err *err) {
  for (int i = 0; i < CHI_OP_COUNT; i++) {
    if (i == CHI_OP_CALL || i == CHI_OP_TOKEN || !chi_streq(chi_op_name((chi_op)i), name)) continue;
    *op = (chi_op)i;
    return 0;
  }
  return chi_fail(err, CHI_ERR_ARG, "unknown op '%s'", name ? name : "");
}

int chiasm_intervene(chiasm_plan *p, int branch, const chiasm_where *where, const chiasm_edit *edit,
                     chiasm_error *err) {
  int rc = 0;
  int32_t *rows = NULL;
  chi_err e = {0};
  chi_intervention iv = {.scale = edit->scale,
                         .value = edit->values,
                         .source = edit->source,
                         .key_lo = edit->key_lo,
                         .key_hi = edit->key_hi,
                         .seed = edit->seed,
                         .sample = edit->sample};
  CHI_TRY(resolve(p, branch, where, &iv, &rows, &e));
  CHI_TRY(find_op(&iv.op, edit->op, &e));
  if ((iv.op == CHI_OP_ADD || iv.op == CHI_OP_PROJECT) && iv.scale == 0) iv.scale = 1;
  const chi_shape *s = &p->m->net.shape;
  int64_t width = chi_part_width(s, iv.stack, iv.site, rows[0], chi_branch_rows(p->plan, s, branch, iv.stack, iv.site),
                                 iv.part_lo, iv.part_hi);
  if (edit->values) {
    if (edit->n_values != width && edit->n_values != width * iv.n_rows) {
      rc = chi_fail(&e, CHI_ERR_ARG, "%lld values given; %lld are one row here, %lld one for each row",
                    (long long)edit->n_values, (long long)width, (long long)width * iv.n_rows);
      goto out;
    }
    iv.value_rows = edit->n_values == width ? 1 : iv.n_rows;
  }
  CHI_TRY(chi_plan_intervene(p->plan, branch, &iv, edit->values ? width : 0, &e));
out:
  chi_free(rows);
  return give(rc, &e, err);
}

static int call_hook(void *ud, int branch, chi_stack stack, chi_site site, int layer, int row, float *values,
                     int64_t width) {
  const hook *h = ud;
  chiasm_place at = {
      .branch = branch, .stack = chi_stack_name(stack), .site = chi_site_get(site)->name, .layer = layer, .row = row};
  return h->fn(h->ud, &at, values, width);
}

int chiasm_hook(chiasm_plan *p, int branch, const chiasm_where *where, chiasm_hook_fn fn, void *ud, chiasm_error *err) {
  int rc = 0;
  int32_t *rows = NULL;
  chi_err e = {0};
  chi_intervention iv = {.op = CHI_OP_CALL, .call = call_hook};
  hook *h = chi_arena_alloc(&p->arena, sizeof *h, &e);
  if (!h) return give(CHI_ERR_MEMORY, &e, err);
  *h = (hook){fn, ud};
  iv.ud = h;
  CHI_TRY(resolve(p, branch, where, &iv, &rows, &e));
  CHI_TRY(chi_plan_intervene(p->plan, branch, &iv, 0, &e));
out:
  chi_free(rows);
  return give(rc, &e, err);
}

int chiasm_capture(chiasm_plan *p, int branch, const chiasm_where *where, int *capture, chiasm_error *err) {
  int rc = 0;
  int32_t *rows = NULL;
  chi_err e = {0};
  chi_intervention iv = {0};
  CHI_TRY(resolve(p, branch, where, &iv, &rows, &e));
  chi_capture c = {.branch = branch, .stack = iv.stack, .site = iv.site, .rows = rows, .n_rows = iv.n_rows};
  c.layer = chi_site_get(iv.site)->per_layer && iv.stack != CHI_PROJECTOR ? where->layer_lo : -1;
  CHI_TRY(chi_plan_capture(p->plan, &c, capture, &e));
out:
  chi_free(rows);
  return give(rc, &e, err);
}

/* ---- running ------------------------------------------------------------------------------------------------- */
int chiasm_run(chiasm_plan *p, chiasm_error *err) {
  int rc = 0;
  chi_err e = {0};
  chi_states_free(p->states);
  p->states = NULL;
  CHI_TRY(chi_plan_check(p->plan, &p->m->net.shape, &e));
  CHI_TRY(chi_states_new(&p->states, p->plan, &p->m->net.shape, &e));
  chi_run_opts o = {.on_capture = chi_states_receive, .ud = p->states, .what = "running the plan"};
  CHI_TRY(chi_run_plan(&p->m->net, p->plan, &o, &e));
out:
  if (rc) {
    chi_states_free(p->states);
    p->states = NULL;
  }
  return give(rc, &e, err);
}

int chiasm_captures(const chiasm_plan *p) { return (int)p->plan->n_captures; }

const float *chiasm_values(const chiasm_plan *p, int capture, int64_t *rows, int64_t *columns) {
  if (!p->states || capture < 0 || (size_t)capture >= p->states->n) return NULL;
  const chi_state *s = &p->states->state[capture];
  *rows = s->heads ? (int64_t)s->heads * s->n_rows : s->n_rows;
  *columns = s->heads ? s->keys : s->width;
  return s->values;
}

int chiasm_save(const chiasm_plan *p, const char *path, chiasm_error *err) {
  int rc = 0;
  char name[400];
  chi_err e = {0};
  chi_st_writer *w = NULL;
  if (!p->states) return give(chi_fail(&e, CHI_ERR_ARG, "nothing to save: run the plan first"), &e, err);
  CHI_TRY(chi_st_writer_new(&w, path, &e));
  for (size_t i = 0; i < p->states->n; i++) {
    const chi_capture *c = &p->plan->capture[i];
    const char *branch = chiasm_branch_name(p, c->branch);
    int k = branch ? snprintf(name, sizeof name, "%s.%s.", branch, chi_stack_name(c->stack))
                   : snprintf(name, sizeof name, "%d.%s.", c->branch, chi_stack_name(c->stack));
    if (c->layer >= 0) k += snprintf(name + k, sizeof name - (size_t)k, "%d.", c->layer);
    snprintf(name + k, sizeof name - (size_t)k, "%s", chi_site_get(c->site)->name);
    CHI_TRY(chi_states_add(p->states, i, w, name, &e));
  }
  rc = chi_st_writer_commit(w, &e);
  w = NULL;
out:
  chi_st_writer_abort(w);
  return give(rc, &e, err);
}

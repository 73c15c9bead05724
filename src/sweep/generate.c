#include "sweep/generate.h"

#include <string.h>

typedef struct gen {
  const chi_net *net;
  const chi_gen_opts *o;
  chi_kv_cache *cache;
  const float *pixels;
  int32_t image_row, prompt_rows;
  int32_t *text; /* prompt and generated tokens */
  int32_t *rows; /* scratch for row lists */
  float *logits;
} gen;

static int keep_logits(void *ud, int capture, int32_t i, const float *values, int64_t width) {
  (void)capture, (void)i;
  memcpy(((gen *)ud)->logits, values, (size_t)width * sizeof *values);
  return 0;
}

static int check_edits(const chi_gen_opts *o, chi_err *err) {
  for (size_t i = 0; i < o->n_edits; i++) {
    const chi_intervention *iv = &o->edits[i].iv;
    if (iv->op == CHI_OP_COPY) return chi_fail(err, CHI_ERR_ARG, "generation: 'copy' needs a plan with a source");
    if (!o->edits[i].generated) continue;
    if (iv->stack != CHI_DECODER || iv->site == CHI_SITE_IMAGE_EMBED || iv->op == CHI_OP_TOKEN)
      return chi_fail(err, CHI_ERR_ARG, "generation: '%s' at %s.%s cannot act on generated rows", chi_op_name(iv->op),
                      chi_stack_name(iv->stack), chi_site_get(iv->site)->name);
    if (iv->value && iv->value_rows != 1)
      return chi_fail(err, CHI_ERR_ARG, "generation: generated rows take one value for all rows");
  }
  return 0;
}

/* Edits that can act when the text has n rows. Rows that the cache holds are listed too: their place counts. */
static int add_edits(gen *g, chi_plan *plan, int root, int32_t n, chi_err *err) {
  for (size_t i = 0; i < g->o->n_edits; i++) {
    const chi_gen_edit *e = &g->o->edits[i];
    bool first = n == g->prompt_rows;
    if (!first && (e->iv.stack != CHI_DECODER || e->iv.site == CHI_SITE_IMAGE_EMBED || !e->generated)) continue;
    chi_intervention iv = e->iv;
    if (iv.n_rows) memcpy(g->rows, iv.rows, (size_t)iv.n_rows * sizeof *iv.rows);
    for (int32_t r = g->prompt_rows; r < n; r++) g->rows[iv.n_rows++] = r;
    if (iv.n_rows == 0) continue;
    iv.rows = g->rows;
    int rc = chi_plan_intervene(plan, root, &iv, e->width, err);
    if (rc) return rc;
  }
  return 0;
}

/* Runs the rows from the cache's end to n; the last one's logits are kept. */
static int step(gen *g, int32_t n, chi_err *err) {
  int rc = 0, root = 0;
  chi_plan *plan = NULL;
  bool first = n == g->prompt_rows;
  int32_t last = n - 1;
  chi_input in = {.tokens = g->text,
                  .n_rows = n,
                  .pixels = first ? g->pixels : NULL,
                  .image_row = first ? g->image_row : -1,
                  .cache = g->cache};
  chi_capture c = {.branch = 0, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
  chi_run_opts o = {.mem = g->o->mem, .on_capture = keep_logits, .ud = g, .what = first ? g->o->what : NULL};
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  CHI_TRY(add_edits(g, plan, root, n, err));
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  CHI_TRY(chi_run_plan(g->net, plan, &o, err));
out:
  chi_plan_free(plan);
  return rc;
}

static int32_t best(const float *x, int64_t n) {
  int64_t at = 0;
  for (int64_t i = 1; i < n; i++)
    if (x[i] > x[at]) at = i;
  return (int32_t)at;
}

static bool ends(const chi_gen_opts *o, int32_t token) {
  for (int32_t i = 0; i < o->n_eos; i++)
    if (o->eos[i] == token) return true;
  return false;
}

int chi_generate(const chi_net *net, const chi_input *in, const chi_gen_opts *o, int32_t *tokens, int32_t *n,
                 chi_gen_stop *stop, chi_err *err) {
  int rc = 0;
  int32_t made = 0, positions = net->shape.stack[CHI_DECODER].rows, cap = in->n_rows;
  int64_t vocab = net->decoder.vocab;
  chi_gen_stop why = CHI_GEN_MAX_NEW;
  gen g = {.net = net, .o = o, .pixels = in->pixels, .image_row = in->image_row, .prompt_rows = in->n_rows};
  *n = 0;
  if (o->max_new <= 0) return chi_fail(err, CHI_ERR_ARG, "generation: at least one token must be asked for");
  if (in->n_rows <= 0 || in->n_rows > positions)
    return chi_fail(err, CHI_ERR_ARG, "the prompt has %d rows; the model's context holds %d: shorten the question",
                    in->n_rows, positions);
  CHI_TRY(check_edits(o, err));
  cap =
      o->max_new - 1 < positions - in->n_rows ? in->n_rows + o->max_new - 1 : positions; /* the last token is not run */
  CHI_TRY(chi_kv_cache_new(&g.cache, net, cap, err));
  g.text = chi_calloc((size_t)cap + 1, sizeof *g.text, err);
  g.rows = chi_calloc((size_t)cap * 2, sizeof *g.rows, err);
  g.logits = chi_calloc((size_t)vocab, sizeof *g.logits, err);
  if (!g.text || !g.rows || !g.logits) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  memcpy(g.text, in->tokens, (size_t)in->n_rows * sizeof *g.text);
  for (;;) {
    CHI_TRY(step(&g, in->n_rows + made, err));
    int32_t id = best(g.logits, vocab);
    tokens[made] = g.text[in->n_rows + made] = id;
    made++;
    *n = made;
    if (o->on_token && o->on_token(o->ud, made - 1, id, g.logits, vocab) != 0) {
      rc = chi_fail(err, CHI_ERR_CANCELLED, "generation was stopped after %d tokens", made);
      goto out;
    }
    if (ends(o, id)) {
      why = CHI_GEN_EOS;
      break;
    }
    if (made == o->max_new) break;
    if (in->n_rows + made > positions) {
      why = CHI_GEN_CONTEXT;
      break;
    }
    if (o->what) CHI_TRY(chi_progress(o->what, made, o->max_new, err));
  }
  if (o->what) CHI_TRY(chi_progress(o->what, 1, 1, err));
  if (stop) *stop = why;
out:
  chi_kv_cache_free(g.cache);
  chi_free(g.text);
  chi_free(g.rows);
  chi_free(g.logits);
  return rc;
}

/* chiasm doctor: identities that must hold on any checkpoint. */
#include <math.h>
#include <string.h>

#include "analyze/states.h"
#include "cli.h"
#include "sweep/generate.h"

typedef struct args {
  cli_common c;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS};

enum { kRoot, kEmpty, kPatched, kChanged, kBranches, kSteps = 4 };

typedef struct patient {
  const cli *c;
  const chi_model *m;
  chi_input in;
  int32_t *tokens, *rows;
  float *pixels;
  chi_states *sweep, *dense; /* logits of the last row of every branch */
  chi_plan *plan;
  chi_str report;
  json_t *list;
  int failed;
} patient;

/* ---- input: a few words and, where the model sees, a picture of noise ------------------------------------------- */
static int make_input(patient *p, chi_err *err) {
  int rc = 0;
  chi_tokens t = {0};
  const chi_net *net = &p->m->net;
  static const char words[] = "What is the capital of this country?";
  CHI_TRY(chi_encode(p->m->tok, words, sizeof words - 1, true, &t, err));
  int32_t picture = net->has_vision ? net->shape.n_image_rows : 0, n = (int32_t)t.n,
          room = net->shape.stack[CHI_DECODER].rows - kSteps;
  if (n + picture > room) n = room - picture;
  if (n < 2) {
    rc = chi_fail(err, CHI_ERR_ARG, "the model's context of %d rows has no room for a picture and a question",
                  room + kSteps);
    goto out;
  }
  p->tokens = chi_calloc((size_t)(n + picture + kSteps), sizeof *p->tokens, err);
  p->rows = chi_calloc((size_t)(n + picture), sizeof *p->rows, err);
  size_t floats = picture ? 3 * (size_t)net->vision.image_h * (size_t)net->vision.image_w : 0;
  p->pixels = floats ? chi_calloc(floats, sizeof *p->pixels, err) : NULL;
  if (!p->tokens || !p->rows || (floats && !p->pixels)) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (int32_t r = 0; r < n + picture; r++) {
    p->rows[r] = r;
    p->tokens[r] = r < 1 ? t.id[0] : r <= picture ? p->m->image_token : t.id[r - picture];
  }
  for (size_t i = 0; i < floats; i++) p->pixels[i] = chi_rng_normal(1, 0, 0, (uint32_t)i);
  p->in = (chi_input){.tokens = p->tokens, .n_rows = n + picture, .pixels = p->pixels, .image_row = picture ? 1 : -1};
out:
  chi_tokens_free(&t);
  return rc;
}

/* ---- the plan ---------------------------------------------------------------------------------------------------- */
static int make_plan(patient *p, chi_err *err) {
  static const chi_site patched[] = {CHI_SITE_ATTN_OUT, CHI_SITE_MLP_OUT, CHI_SITE_RESID_POST};
  int rc = 0, b;
  int32_t last = p->in.n_rows - 1;
  chi_intervention iv = {
      .stack = CHI_DECODER, .layer_hi = p->m->net.decoder.spec.layers, .rows = p->rows, .n_rows = p->in.n_rows};
  CHI_TRY(chi_plan_new(&p->plan, err));
  CHI_TRY(chi_plan_root(p->plan, &p->in, &b, err));
  for (int i = 1; i < kBranches; i++) CHI_TRY(chi_plan_child(p->plan, kRoot, &b, err));
  iv.op = CHI_OP_COPY;
  iv.source = kRoot;
  for (size_t i = 0; i < sizeof patched / sizeof *patched; i++) {
    iv.site = patched[i];
    CHI_TRY(chi_plan_intervene(p->plan, kPatched, &iv, 0, err));
  }
  iv.op = CHI_OP_ZERO;
  iv.site = CHI_SITE_MLP_OUT;
  iv.layer_hi = 1;
  CHI_TRY(chi_plan_intervene(p->plan, kChanged, &iv, 0, err));
  for (b = 0; b < kBranches; b++) {
    chi_capture c = {
        .branch = b, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
    CHI_TRY(chi_plan_capture(p->plan, &c, NULL, err));
  }
out:
  return rc;
}

static int run_plan(patient *p, chi_executor ex, chi_states **out, chi_err *err) {
  int rc = chi_states_new(out, p->plan, &p->m->net.shape, err);
  if (rc) return rc;
  chi_run_opts o = cli_run_opts(p->c, ex == CHI_EXEC_DENSE ? "full forwards" : "one sweep");
  o.executor = ex;
  o.on_capture = chi_states_receive;
  o.ud = *out;
  return chi_run_plan(&p->m->net, p->plan, &o, err);
}

/* ---- findings ---------------------------------------------------------------------------------------------------- */
static void finding(patient *p, bool good, const char *what) {
  chi_str_addf(&p->report, "%-8s%s\n", good ? "ok" : "FAILED", what);
  json_array_append_new(p->list, json_pack("{s:s,s:b}", "check", what, "ok", (int)good));
  p->failed += !good;
}

static bool same(const chi_states *a, int i, const chi_states *b, int k) {
  return memcmp(a->state[i].values, b->state[k].values, (size_t)a->state[i].width * sizeof(float)) == 0;
}

typedef struct steps {
  const float *last; /* logits of the plain run */
  chi_states *decoded;
  bool first_same;
} steps;

static int on_token(void *ud, int32_t step, int32_t token, const float *logits, int64_t vocab) {
  steps *s = ud;
  (void)token;
  if (step == 0) s->first_same = memcmp(logits, s->last, (size_t)vocab * sizeof *logits) == 0;
  if (step == kSteps - 1) memcpy(s->decoded->state[0].values, logits, (size_t)vocab * sizeof *logits);
  return 0;
}

/* Decoding from the cache against one run over the whole text. */
static int check_decoding(patient *p, chi_err *err) {
  int rc = 0, root;
  int32_t made[kSteps], n = 0, last;
  chi_plan *plan = NULL;
  chi_states *decoded = NULL, *longer = NULL;
  steps s = {.last = p->sweep->state[kRoot].values};
  chi_gen_opts g = {.max_new = kSteps, .mem = p->c->common->mem, .on_token = on_token, .ud = &s};
  chi_input in = p->in;
  in.n_rows += kSteps - 1;
  last = in.n_rows - 1;
  chi_capture c = {.stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  CHI_TRY(chi_states_new(&decoded, plan, &p->m->net.shape, err));
  CHI_TRY(chi_states_new(&longer, plan, &p->m->net.shape, err));
  s.decoded = decoded;
  CHI_TRY(chi_generate(&p->m->net, &p->in, &g, made, &n, NULL, err));
  memcpy(p->tokens + p->in.n_rows, made, (kSteps - 1) * sizeof *made);
  chi_run_opts o = cli_run_opts(p->c, NULL);
  o.on_capture = chi_states_receive;
  o.ud = longer;
  CHI_TRY(chi_run_plan(&p->m->net, plan, &o, err));
  finding(p, s.first_same && same(decoded, 0, longer, 0),
          "decoding token by token gives the bits of one run over the whole text");
out:
  chi_states_free(decoded);
  chi_states_free(longer);
  chi_plan_free(plan);
  return rc;
}

static void check_plan(patient *p) {
  const chi_state *root = &p->sweep->state[kRoot];
  bool finite = true, all = true;
  for (int64_t i = 0; i < root->width; i++) finite = finite && isfinite(root->values[i]);
  for (int b = 0; b < kBranches; b++) all = all && same(p->sweep, b, p->dense, b);
  finding(p, finite, "every logit is finite");
  finding(p, same(p->sweep, kRoot, p->sweep, kEmpty), "a branch without interventions has its parent's bits");
  finding(p, same(p->sweep, kRoot, p->sweep, kPatched), "a run whose own values are put back has the same bits");
  finding(p, !same(p->sweep, kRoot, p->sweep, kChanged), "taking the first MLP away changes the logits");
  finding(p, all, "the sweep gives the bits of full forwards");
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  chi_model *m = NULL;
  json_t *j = NULL;
  chi_provenance prov;
  patient p = {.c = c, .list = json_array()};
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  p.m = m;
  CHI_TRY(make_input(&p, err));
  CHI_TRY(make_plan(&p, err));
  CHI_TRY(run_plan(&p, CHI_EXEC_SWEEP, &p.sweep, err));
  CHI_TRY(run_plan(&p, CHI_EXEC_DENSE, &p.dense, err));
  check_plan(&p);
  CHI_TRY(check_decoding(&p, err));
  if (a->c.json) {
    CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
    CHI_TRY(chi_report_json(&j, "doctor", &prov, err));
    if (json_object_set(j, "checks", p.list)) CHI_TRY(chi_fail(err, CHI_ERR_MEMORY, "no memory for the result"));
    CHI_TRY(cli_print_json(j, err));
  } else {
    CHI_TRY(cli_print(&p.report, err));
  }
  if (p.failed)
    rc = chi_fail(err, CHI_ERR_FORMAT,
                  "%s: %d checks failed; results of this model cannot be trusted: please report it", m->path, p.failed);
out:
  json_decref(j);
  json_decref(p.list);
  chi_str_free(&p.report);
  chi_states_free(p.sweep);
  chi_states_free(p.dense);
  chi_plan_free(p.plan);
  chi_free(p.tokens);
  chi_free(p.rows);
  chi_free(p.pixels);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_doctor = {
    .name = "doctor",
    .usage = "MODEL",
    .model = true,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Runs a short prompt (with a picture of noise, where the model sees) and checks identities that hold for "
        "every\n"
        "checkpoint, bit for bit: an empty plan and a run patched with its own values change nothing, a real change\n"
        "does, the sweep equals full forwards, and decoding equals one longer run. Ends with 1 if one fails.",
    .examples = "chiasm doctor demo\nchiasm doctor path/to/llava-1.5-7b-hf --dtype bf16",
};

/* chiasm capture: states of one run as safetensors. */
#include "analyze/select.h"
#include "analyze/states.h"
#include "cli.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
  cli_common c;
  const char *sites, *layers, *tokens, *out;
  int stack;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS, .layers = "all", .tokens = "last", .stack = CHI_DECODER};

/* clang-format off */
static const cli_opt kOpts[] = {
    {.name = "--site", .letter = 's', .arg = "LIST", .kind = CLI_STR, CLI_AT(args, sites),
     .doc = "sites of `chiasm info MODEL`: resid_post,attn_out; or with their stack: vision.resid_post; required"},
    {.name = "--stack", .arg = "vision|qformer|projector|decoder", .kind = CLI_CHOICE, CLI_AT(args, stack),
     .doc = "stack of the sites that do not say one"},
    {.name = "--layers", .arg = "LIST", .kind = CLI_STR, CLI_AT(args, layers),
     .doc = "layers, counted from 0: 0-3,7"},
    {.name = "--tokens", .arg = "WHICH", .kind = CLI_STR, CLI_AT(args, tokens),
     .doc = "decoder rows: last, constraint, image, text, all, or numbers as 0-3,7; other stacks give every row"},
    {.name = "--output", .letter = 'o', .arg = "FILE", .kind = CLI_STR, CLI_AT(args, out),
     .doc = "the safetensors file to write; required"},
    {0}};
/* clang-format on */

typedef struct job {
  const chi_model *m;
  const chi_prompt *p;
  chi_plan *plan;
  int root;
  int32_t *rows, n_rows;      /* of the decoder */
  int32_t *every;             /* 0, 1, 2, ... for the other stacks */
  bool used[CHI_STACK_COUNT]; /* stacks with captures */
} job;

static int32_t all_rows(const job *j, chi_stack stack, chi_site site) {
  const chi_shape *s = &j->m->net.shape;
  return site == CHI_SITE_IMAGE_EMBED ? s->n_image_rows : s->stack[stack].rows;
}

static int add_site(job *j, const args *a, const char *word, chi_err *err) {
  int rc = 0;
  int32_t *layers = NULL, n_layers = 1;
  chi_stack stack = (chi_stack)a->stack;
  chi_site site;
  char name[64];
  const char *dot = strchr(word, '.');
  const chi_shape *shape = &j->m->net.shape;
  if (dot) {
    snprintf(name, sizeof name, "%.*s", (int)(dot - word), word);
    if ((rc = chi_stack_parse(&stack, name, err)) != 0) return CLI_USAGE;
  }
  if ((rc = chi_site_parse(&site, dot ? dot + 1 : word, err)) != 0) return CLI_USAGE;
  if (chi_site_width(shape, stack, site, 1) == 0)
    return chi_fail(err, CHI_ERR_ARG, "%s has no site %s.%s; `chiasm info` lists its sites", j->m->path,
                    chi_stack_name(stack), chi_site_get(site)->name);
  bool text_rows = stack == CHI_DECODER && site != CHI_SITE_IMAGE_EMBED,
       per_layer = chi_site_get(site)->per_layer && stack != CHI_PROJECTOR;
  if (!text_rows && !j->p->pixels)
    return chi_fail(err, CHI_ERR_ARG, "%s.%s needs a picture", chi_stack_name(stack), chi_site_get(site)->name);
  if (per_layer) CHI_TRY(chi_select_ranges(&layers, &n_layers, a->layers, shape->stack[stack].layers, "layer", err));
  j->used[stack] = j->used[stack] || site != CHI_SITE_IMAGE_EMBED;
  for (int32_t i = 0; i < n_layers; i++) {
    if (layers && n_layers > 1 && !chi_site_in_layer(shape, stack, site, layers[i])) continue;
    chi_capture c = {.branch = j->root,
                     .stack = stack,
                     .site = site,
                     .layer = layers ? layers[i] : -1,
                     .rows = text_rows ? j->rows : j->every,
                     .n_rows = text_rows ? j->n_rows : all_rows(j, stack, site)};
    for (size_t k = 0; k < j->plan->n_captures; k++) {
      const chi_capture *o = &j->plan->capture[k];
      if (o->stack == stack && o->site == site && o->layer == c.layer) {
        rc = cli_usage(err, "--site names %s.%s twice", chi_stack_name(stack), chi_site_get(site)->name);
        goto out;
      }
    }
    CHI_TRY(chi_plan_capture(j->plan, &c, NULL, err));
  }
out:
  chi_free(layers);
  return rc;
}

static int add_sites(job *j, const args *a, chi_err *err) {
  int rc = 0;
  char word[64];
  for (const char *p = a->sites; *p; p += *p == ',') {
    size_t n = strcspn(p, ",");
    snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), p);
    if ((rc = add_site(j, a, word, err)) != 0) return rc;
    p += n;
  }
  return j->plan->n_captures ? 0 : cli_usage(err, "--site names nothing");
}

/* ---- metadata: rows and patches ------------------------------------------------------------------------------- */
static int add_meta(chi_st_writer *w, const char *key, json_t *j, chi_err *err) {
  char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
  int rc = text ? chi_st_writer_meta(w, key, text, err) : chi_fail(err, CHI_ERR_MEMORY, "no memory for the metadata");
  free(text);
  json_decref(j);
  return rc;
}

static json_t *segments_json(const chi_model *m, const chi_prompt *p) {
  char piece[256];
  int bad = 0;
  json_t *list = json_array();
  for (int32_t r = 0; r < p->n_rows; r++) {
    chi_token_text(m->tok, p->tokens[r], piece, sizeof piece);
    bad |= json_array_append_new(list, json_pack("{s:i,s:i,s:o,s:s}", "row", (int)r, "id", (int)p->tokens[r], "text",
                                                 chi_json_text(piece), "role", chi_role_name(p->role[r])));
  }
  if (!bad) return list;
  json_decref(list);
  return NULL;
}

/* How picture rows, patches and pixels belong together; kind: what a picture row of the decoder is. */
static json_t *patches_json(const chi_model *m, const chi_prompt *p) {
  const chi_view *v = &p->view;
  const chi_vision *z = &m->net.vision;
  return json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}}", "kind",
                   m->net.has_qformer ? "queries" : "patches", "first_row", (int)p->image_row, "rows", (int)p->n_image,
                   "patch", (int)z->patch, "grid_w", (int)z->grid_w, "grid_h", (int)z->grid_h, "class_row",
                   !m->net.has_qformer && z->has_cls && z->select == 0 ? 1 : 0, "view", "orig_w", v->orig_w, "orig_h",
                   v->orig_h, "pad_left", v->pad_left, "pad_top", v->pad_top, "padded", v->padded, "resized_w",
                   v->resized_w, "resized_h", v->resized_h, "crop_left", v->crop_left, "crop_top", v->crop_top, "w",
                   v->w, "h", v->h);
}

static int write_file(const job *j, const args *a, const chi_states *s, const chi_provenance *prov, chi_err *err) {
  int rc = 0;
  char name[128];
  json_t *pj = NULL;
  chi_st_writer *w = NULL;
  int64_t n = j->p->n_rows, vocab = j->m->net.decoder.vocab;
  CHI_TRY(chi_st_writer_new(&w, a->out, err));
  for (size_t i = 0; i + 1 < s->n; i++) { /* the last capture is the logits of the last row */
    const chi_capture *c = &j->plan->capture[i];
    const char *stack = chi_stack_name(c->stack), *site = chi_site_get(c->site)->name;
    if (c->layer >= 0)
      snprintf(name, sizeof name, "%s.%d.%s", stack, c->layer, site);
    else
      snprintf(name, sizeof name, "%s.%s", stack, site);
    CHI_TRY(chi_states_add(s, i, w, name, err));
  }
  CHI_TRY(chi_st_writer_add(w, "logits", CHI_F32, 1, &vocab, s->state[s->n - 1].values, err));
  CHI_TRY(chi_st_writer_add(w, "tokens", CHI_I32, 1, &n, j->p->tokens, err));
  for (int k = 0; k < CHI_STACK_COUNT; k++) {
    int64_t rows = k == CHI_DECODER ? j->n_rows : all_rows(j, (chi_stack)k, CHI_SITE_COUNT);
    if (!j->used[k]) continue;
    snprintf(name, sizeof name, "rows.%s", chi_stack_name((chi_stack)k));
    CHI_TRY(chi_st_writer_add(w, name, CHI_I32, 1, &rows, k == CHI_DECODER ? j->rows : j->every, err));
  }
  CHI_TRY(chi_provenance_json(&pj, prov, err));
  CHI_TRY(add_meta(w, "provenance", pj, err));
  CHI_TRY(add_meta(w, "segments", segments_json(j->m, j->p), err));
  if (j->p->pixels) CHI_TRY(add_meta(w, "patches", patches_json(j->m, j->p), err));
  rc = chi_st_writer_commit(w, err);
  w = NULL;
out:
  chi_st_writer_abort(w);
  return rc;
}

static int print_result(const job *j, const args *a, const chi_states *s, const chi_provenance *prov, chi_err *err) {
  int rc = 0;
  json_t *out = NULL;
  chi_str text = {0};
  size_t bytes = 0;
  for (size_t i = 0; i < s->n; i++) bytes += (size_t)s->state[i].n_rows * (size_t)s->state[i].width * sizeof(float);
  if (a->c.json) {
    CHI_TRY(chi_report_json(&out, "capture", prov, err));
    int bad = json_object_set_new(out, "file", chi_json_text(a->out));
    bad |= json_object_set_new(out, "states", json_integer((json_int_t)s->n - 1));
    bad |= json_object_set_new(out, "rows", json_integer(j->n_rows));
    CHI_TRY(bad ? chi_fail(err, CHI_ERR_MEMORY, "no memory for the result") : cli_print_json(out, err));
  } else {
    chi_str_addf(&text, "wrote %s: %zu states (%d of %d decoder rows), logits, tokens; %.1f MB\n", a->out, s->n - 1,
                 (int)j->n_rows, (int)j->p->n_rows, (double)bytes / 1e6);
    CHI_TRY(cli_print(&text, err));
  }
out:
  json_decref(out);
  chi_str_free(&text);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  const args *a = v;
  int rc = 0;
  const char *image, *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_states *s = NULL;
  job j = {0};
  chi_provenance prov;
  if (!a->sites) return cli_usage(err, "--site LIST is required");
  if (!a->out) return cli_usage(err, "-o FILE is required");
  cli_image_question(c, &image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  CHI_TRY(cli_make_prompt(&p, c, m, image, question, false, err));
  j.m = m;
  j.p = p;
  CHI_TRY(chi_select_rows(&j.rows, &j.n_rows, a->tokens, p, err));
  int32_t most = p->n_rows;
  for (int k = 0; k < CHI_STACK_COUNT; k++)
    if (k != CHI_DECODER && m->net.shape.stack[k].rows > most) most = m->net.shape.stack[k].rows;
  j.every = chi_calloc((size_t)most, sizeof *j.every, err);
  if (!j.every) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (int32_t i = 0; i < most; i++) j.every[i] = i;
  chi_input in = chi_prompt_input(p);
  CHI_TRY(chi_plan_new(&j.plan, err));
  CHI_TRY(chi_plan_root(j.plan, &in, &j.root, err));
  CHI_TRY(add_sites(&j, a, err));
  chi_capture logits = {.branch = j.root,
                        .stack = CHI_DECODER,
                        .site = CHI_SITE_LOGITS,
                        .layer = -1,
                        .rows = &j.every[p->n_rows - 1],
                        .n_rows = 1};
  CHI_TRY(chi_plan_capture(j.plan, &logits, NULL, err));
  CHI_TRY(chi_states_new(&s, j.plan, &m->net.shape, err));
  chi_run_opts o = cli_run_opts(c, "capturing");
  o.on_capture = chi_states_receive;
  o.ud = s;
  CHI_TRY(chi_run_plan(&m->net, j.plan, &o, err));
  CHI_TRY(cli_provenance(&prov, c, m, p, image, err));
  CHI_TRY(write_file(&j, a, s, &prov, err));
  CHI_TRY(print_result(&j, a, s, &prov, err));
out:
  chi_states_free(s);
  chi_plan_free(j.plan);
  chi_free(j.rows);
  chi_free(j.every);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_capture = {
    .name = "capture",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Writes internal states of one run as tensors `<stack>.<layer>.<site>` (`<stack>.<site>` where a site is not\n"
        "per layer), [rows, columns]; `pattern` is [heads, rows, keys] with zeros behind the last key. Beside them:\n"
        "`logits` of the last row, `tokens`, `rows.<stack>` (which rows were taken), and in the metadata `segments`\n"
        "(each row's token and role), `patches` (rows <-> patches <-> pixels) and `provenance`, all as JSON.",
    .examples =
        "chiasm capture demo models/demo/samples/peru.png \"What is the capital of [this country]?\" \\\n"
        "    --site resid_post,attn_out --layers 0-3,7 --tokens constraint -o acts.safetensors",
};

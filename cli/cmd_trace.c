/* chiasm trace: causal maps. */
#include "analyze/trace.h"

#include <stdio.h>
#include <string.h>

#include "analyze/attribute.h"
#include "analyze/plan_json.h"
#include "analyze/select.h"
#include "cli.h"
#include "data/pictures.h"
#include "report/trace_report.h"

typedef struct args {
  cli_common c;
  const char *sites, *corrupt, *donor, *donor_dir, *target, *target_text, *noise_ref, *noise_file, *out, *dump_plan,
      *window, *brackets, *groups, *path_to;
  int window_style, direction, cells;
  int64_t check, top, random_sites;
  uint64_t seed;
  bool all_rows, path_direct;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS,
                               .sites = "mlp,attn,hidden",
                               .corrupt = "same-length",
                               .window = "1",
                               .brackets = "each",
                               .top = 3};

static const cli_opt kOpts[] = {
    {.name = "--sites",
     .arg = "LIST",
     .kind = CLI_STR,
     CLI_AT(args, sites),
     .doc =
         "what is put back: mlp, attn, hidden, hidden-no-mlp, hidden-no-attn (later ones severed), head, embed, path"},
    {.name = "--window",
     .arg = "W",
     .kind = CLI_STR,
     CLI_AT(args, window),
     .doc = "layers in a window (of mlp and attn), or its share of the depth: 20%"},
    {.name = "--window-style",
     .arg = "rome|released",
     .kind = CLI_CHOICE,
     CLI_AT(args, window_style),
     .doc = "W layers, or W to each side as in the released script"},
    {.name = "--corrupt",
     .arg = "HOW",
     .kind = CLI_STR,
     CLI_AT(args, corrupt),
     .doc = "same-length, words:TEXT[|TEXT], released[:WORD], pool:K, random[:K], noise[:3s],samples=10,seed=S, "
            "picture:FILE|FOLDER"},
    {.name = "--brackets",
     .arg = "WHICH",
     .kind = CLI_STR,
     CLI_AT(args, brackets),
     .doc = "of several [brackets], those that are corrupted: 1, 2, 1,2, all (together), or each alone and then all"},
    {.name = "--noise-ref",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, noise_ref),
     .doc = "entities, a line each, whose token embeddings set the noise's unit"},
    {.name = "--noise-file",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, noise_file),
     .doc = "noise arrays to use: an earlier trace.safetensors"},
    {.name = "--direction",
     .arg = "denoise|noise|both",
     .kind = CLI_CHOICE,
     CLI_AT(args, direction),
     .doc = "clean value into the corrupted run, the other way round, or both"},
    {.name = "--donor",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, donor),
     .doc = "control: also put back values from a clean run about this picture"},
    {.name = "--donor-dir",
     .arg = "FOLDER",
     .kind = CLI_STR,
     CLI_AT(args, donor_dir),
     .doc = "the donor is found there: a picture about which the answer is another"},
    {.name = "--random-sites",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, random_sites),
     .min = 0,
     .max = 10000,
     .doc = "control: N draws of as many cells as a window has, put back at random places"},
    {.name = "--target",
     .arg = "TOKEN",
     .kind = CLI_STR,
     CLI_AT(args, target),
     .doc = "token whose probability is followed (text or #id); else the clean answer's first"},
    {.name = "--target-text",
     .arg = "TEXT",
     .kind = CLI_STR,
     CLI_AT(args, target_text),
     .doc = "also the joint log-probability of this whole answer"},
    {.name = "--cells",
     .arg = "token|span",
     .kind = CLI_CHOICE,
     CLI_AT(args, cells),
     .doc = "the constraint's tokens one by one, or all of them put back together as one cell"},
    {.name = "--groups",
     .arg = "ROWS[;ROWS...]",
     .kind = CLI_STR,
     CLI_AT(args, groups),
     .doc = "further cells, each a set of rows put back together: late (patches), late36, image, constraint, 3-7, ..."},
    {.name = "--path-to",
     .arg = "L.H.q|L.H.k|L.H.v|out",
     .kind = CLI_STR,
     CLI_AT(args, path_to),
     .doc =
         "site path: from each head to this head's query, key or value, or to the logits, past all attention between"},
    {.name = "--path-direct", .kind = CLI_FLAG, CLI_AT(args, path_direct), .doc = "paths past the MLPs between, too"},
    {.name = "--all-rows",
     .kind = CLI_FLAG,
     CLI_AT(args, all_rows),
     .doc = "every row, not only from the last picture row on"},
    {.name = "--check",
     .arg = "N",
     .kind = CLI_INT,
     CLI_AT(args, check),
     .min = 0,
     .max = 1e6,
     .doc = "run N cells again as full forwards and compare the bits"},
    {.name = "--seed",
     .arg = "S",
     .kind = CLI_UINT,
     CLI_AT(args, seed),
     .doc = "for the choice of entities and pictures, random tokens and sites, and noise"},
    {.name = "--top",
     .arg = "K",
     .kind = CLI_INT,
     CLI_AT(args, top),
     .min = 1,
     .max = 64,
     .doc = "strongest cells printed for each site"},
    {.name = "--dump-plan",
     .arg = "FILE",
     .kind = CLI_STR,
     CLI_AT(args, dump_plan),
     .doc = "write the plan that is run, for `chiasm run`"},
    {.name = "--output",
     .letter = 'o',
     .arg = "DIR",
     .kind = CLI_STR,
     CLI_AT(args, out),
     .doc = "write trace.json, .csv, .safetensors, .png, .svg there; of several maps each into a folder of its own"},
    {0}};

static int parse_sites(bool site[CHI_TRACE_SITES], const char *list, chi_err *err) {
  char buf[256], *save = NULL;
  bool any = false;
  snprintf(buf, sizeof buf, "%s", list);
  for (char *p = strtok_r(buf, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
    int s = 0;
    while (s < CHI_TRACE_SITES && strcmp(chi_trace_site_name[s], p) != 0) s++;
    if (s == CHI_TRACE_SITES)
      return cli_usage(err,
                       "--sites: '%s' is not one of mlp, attn, hidden, hidden-no-mlp, hidden-no-attn, head, embed, "
                       "path",
                       p);
    site[s] = any = true;
  }
  return any ? 0 : cli_usage(err, "--sites names nothing");
}

/* The maps of one question: each set of corrupted brackets is one. */
enum { kMaxMaps = CHI_MAX_SPANS + 1 };
typedef struct maps {
  const args *a;
  const char *image;
  chi_trace_opts opts[kMaxMaps];
  char label[kMaxMaps][32];
  chi_trace *t[kMaxMaps];
  int n;
  char **donors; /* of --donor-dir */
  size_t n_donors;
  chi_arena arena;
} maps;

static int set_maps(maps *w, const chi_prompt *p, const chi_trace_opts *o, chi_err *err) {
  int rc = 0;
  uint32_t spans = 0;
  bool each = chi_streq(w->a->brackets, "each");
  if (!each) CHI_TRY(chi_corrupt_spans(&spans, w->a->brackets, p->n_spans, err));
  for (int i = 0; each && p->n_spans > 1 && i < p->n_spans; i++) {
    w->opts[w->n] = *o;
    w->opts[w->n].corrupt.spans = 1u << i;
    snprintf(w->label[w->n++], sizeof w->label[0], "constraint%d", i + 1);
  }
  w->opts[w->n] = *o;
  w->opts[w->n].corrupt.spans = spans;
  snprintf(w->label[w->n++], sizeof w->label[0], "together");
out:
  return rc;
}

/* "words:A|B": each bracket alone is given its own words. */
static int share_words(maps *w, const char *spec, chi_err *err) {
  const char *part = spec + strlen("words:");
  if (w->n == 1 || strncmp(spec, "words:", strlen("words:")) != 0) return 0;
  for (int i = 0; i + 1 < w->n; i++) {
    size_t n = strcspn(part, "|");
    char *one = chi_arena_alloc(&w->arena, n + 8, err);
    if (!one) return CHI_ERR_MEMORY;
    snprintf(one, n + 8, "words:%.*s", (int)n, part);
    w->opts[i].corrupt.spec = one;
    if (!part[n] && i + 2 < w->n)
      return chi_fail(err, CHI_ERR_ARG,
                      "--corrupt words: the question has %d brackets; give as many texts, as words:A|B", w->n - 1);
    part += n + (part[n] == '|');
  }
  return 0;
}

/* The whole map's plan: pictures are named by their files, so that `chiasm run` repeats every cell. */
static int dump_plan(const maps *w, chi_err *err) {
  int rc = 0;
  const chi_trace *t = w->t[0];
  chi_plan *plan = NULL;
  chi_plan_picture pic[3];
  size_t n = 0;
  if (w->n > 1)
    return cli_usage(err, "--dump-plan writes one map's plan: say which brackets are corrupted, as in --brackets all");
  if (w->image) pic[n++] = (chi_plan_picture){t->prompt->pixels, w->image};
  if (t->donor) pic[n++] = (chi_plan_picture){t->donor->pixels, t->donor_file};
  if (t->corruption.picture) pic[n++] = (chi_plan_picture){t->corruption.picture[0]->pixels, t->corruption.words[0]};
  CHI_TRY(chi_trace_plan(&plan, t, err));
  chi_plan_save_opts o = {.pictures = pic, .n_pictures = n, .report_row = t->prompt->n_rows - 1, .target = t->target};
  CHI_TRY(chi_plan_save(plan, &t->model->net, &o, w->a->dump_plan, err));
out:
  chi_plan_free(plan);
  return rc;
}

static int write_maps(const maps *w, const chi_provenance *prov, chi_err *err) {
  int rc = 0;
  char dir[4096];
  if (w->n == 1) return chi_trace_write(w->t[0], prov, w->a->out, err);
  for (int i = 0; i < w->n; i++) {
    CHI_TRY(chi_path_join(dir, sizeof dir, w->a->out, w->label[i], err));
    CHI_TRY(chi_trace_write(w->t[i], prov, dir, err));
  }
out:
  return rc;
}

static int print_maps(const maps *w, const chi_provenance *prov, chi_err *err) {
  int rc = 0;
  chi_str text = {0};
  json_t *j = NULL, *all = json_object();
  for (int i = 0; i < w->n; i++) {
    if (w->a->c.json) {
      CHI_TRY(chi_trace_json(&j, w->t[i], prov, err));
      json_object_set_new(all, w->label[i], j);
    } else {
      if (w->n > 1)
        chi_str_addf(&text, "%s== %s: '%s' corrupted\n", i ? "\n" : "", w->label[i], w->t[i]->corruption.was);
      CHI_TRY(chi_trace_summary(w->t[i], cli_width(), (int)w->a->top, &text, err));
    }
  }
  if (w->a->out && w->n == 1) chi_str_addf(&text, "\nwrote %s/trace.{png,svg,json,csv,safetensors}\n", w->a->out);
  if (w->a->out && w->n > 1)
    chi_str_addf(&text, "\nwrote %s/{constraint1..%d,together}/trace.{png,svg,json,csv,safetensors}\n", w->a->out,
                 w->n - 1);
  if (!w->a->c.json)
    rc = cli_print(&text, err);
  else
    rc = cli_print_json(w->n == 1 ? json_object_get(all, w->label[0]) : all, err);
out:
  json_decref(all);
  chi_str_free(&text);
  return rc;
}

static int make_options(chi_trace_opts *o, const args *a, chi_err *err) {
  *o = (chi_trace_opts){.span_cell = a->cells == 1,
                        .released_window = a->window_style == 1,
                        .noise_direction = a->direction == 1,
                        .both_directions = a->direction == 2,
                        .donor = a->donor,
                        .groups = a->groups,
                        .null_draws = (int32_t)a->random_sites,
                        .null_seed = a->seed,
                        .target = -1,
                        .target_text = a->target_text,
                        .all_rows = a->all_rows,
                        .check = (int)a->check,
                        .mem = a->c.mem,
                        .corrupt = {.spec = a->noise_file ? "noise" : a->corrupt,
                                    .noise_ref = a->noise_ref,
                                    .noise_file = a->noise_file,
                                    .seed = a->seed}};
  int32_t window;
  if (a->donor && a->donor_dir) return cli_usage(err, "--donor and --donor-dir are two ways to name the donor");
  if (!chi_select_window(&window, a->window, 1))
    return cli_usage(err, "--window: '%s' is no number of layers, nor a share as 20%%", a->window);
  int rc = parse_sites(o->site, a->sites, err);
  if (rc) return rc;
  if (o->site[CHI_TRACE_PATH] != (a->path_to != NULL))
    return cli_usage(err, "site path and --path-to go together: where to do the paths lead?");
  rc = a->path_to ? chi_path_parse(&o->path, a->path_to, err) : 0;
  o->path.direct = a->path_direct;
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  args *a = v;
  int rc = 0, checked = 0, identical = 0;
  bool more = false, swap = strncmp(a->corrupt, "picture", 7) == 0;
  const char *question;
  chi_model *m = NULL;
  chi_prompt *p = NULL;
  chi_trace_job job[kMaxMaps];
  chi_err why[kMaxMaps];
  chi_provenance prov;
  chi_trace_opts o;
  maps w = {.a = a};
  CHI_TRY(make_options(&o, a, err));
  cli_image_question(c, &w.image, &question);
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  chi_select_window(&o.window, a->window, m->net.decoder.spec.layers);
  CHI_TRY(cli_make_prompt_of(&p, c, m,
                             &(chi_prompt_opts){.image = w.image,
                                                .question = question,
                                                .need_constraint = !swap || strchr(question, '[') != NULL,
                                                .several = true},
                             err));
  if (a->target) CHI_TRY(chi_answer_token(&o.target, &more, m, p, a->target, "--target", err)); /* its first token */
  if (a->donor_dir) {
    CHI_TRY(chi_pictures_find(&w.donors, &w.n_donors, &w.arena, a->donor_dir, a->seed, err));
    o.donors = (const char *const *)w.donors;
    o.n_donors = (int32_t)w.n_donors;
  }
  CHI_TRY(set_maps(&w, p, &o, err));
  CHI_TRY(share_words(&w, o.corrupt.spec, err));
  CHI_TRY(cli_provenance(&prov, c, m, p, w.image, err));
  prov.has_seed = true;
  prov.seed = a->seed;
  for (int i = 0; i < w.n; i++) job[i] = (chi_trace_job){p, &w.opts[i]};
  CHI_TRY(chi_trace_run_many(w.t, why, m, job, w.n, err));
  for (int i = 0; i < w.n; i++) {
    if (!w.t[i]) CHI_TRY(chi_fail(err, why[i].code, "%s", why[i].text));
    checked += w.t[i]->checked;
    identical += w.t[i]->identical;
  }
  if (a->dump_plan) CHI_TRY(dump_plan(&w, err));
  if (a->out) CHI_TRY(write_maps(&w, &prov, err));
  CHI_TRY(print_maps(&w, &prov, err));
  if (checked != identical)
    rc = chi_fail(err, CHI_ERR_FORMAT,
                  "%d of %d checked cells differ from the full forward: this is a bug, please report it",
                  checked - identical, checked);
out:
  for (int i = 0; i < w.n; i++) chi_trace_free(w.t[i]);
  chi_arena_free(&w.arena);
  chi_prompt_free(p);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_trace = {
    .name = "trace",
    .usage = "MODEL [IMAGE] QUESTION",
    .model = true,
    .opts = kOpts,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Where is the fact about the [bracketed] words kept? Runs the question clean, with the constraint\n"
        "corrupted, and once for every layer and token with the clean value put back; prints the cells that\n"
        "restore the answer. With --donor or --donor-dir, beside what another picture's value restores: only the\n"
        "difference speaks of the fact itself. A question with several [brackets] gives a map for each of them\n"
        "corrupted alone and one for all together.",
    .examples =
        "chiasm trace demo models/demo/samples/peru.png \"What is the capital of [this country]?\" -o out\n"
        "chiasm trace demo \"What is the capital of [Peru]?\" --corrupt noise:3s,samples=10 --window 3\n"
        "chiasm trace demo models/demo/samples/peru.png \"What is the capital of [this country]?\" \\\n"
        "  --sites hidden,hidden-no-mlp,hidden-no-attn,head --donor-dir models/demo/samples --random-sites 20 -o out",
};

/* JSON -> plan: branches, captures, report. See plan_json.h. */
#include "analyze/plan_load.h"
#include "analyze/select.h"

#include <string.h>

/* ---- roots ----------------------------------------------------------------------------------------------------- */
static int add_picture(chi_plan_file *f, const float *pixels, const char *file, chi_err *err) {
  void *list = f->picture;
  int rc = chi_grow(&list, &f->cap_pictures, f->n_pictures + 1, sizeof *f->picture, err);
  if (rc) return rc;
  f->picture = list;
  const char *kept = chi_arena_strdup(&f->arena, file, err);
  if (!kept) return CHI_ERR_MEMORY;
  f->picture[f->n_pictures++] = (chi_plan_picture){.pixels = pixels, .file = kept};
  return 0;
}

static int own_prompt(chi_loader *l, chi_prompt *p, const char *image) {
  chi_plan_file *f = l->f;
  void *list = f->owned;
  int rc = chi_grow(&list, &f->cap_owned, f->n_owned + 1, sizeof *f->owned, l->err);
  if (rc) {
    chi_prompt_free(p);
    return rc;
  }
  f->owned = list;
  f->owned[f->n_owned++] = p;
  return p->pixels ? add_picture(f, p->pixels, image, l->err) : 0;
}

/* "pixels": {"file", "tensor"}: 3 x height x width normalised values, as the tower reads them. */
static int load_pixels(chi_loader *l, const json_t *v, chi_input *in) {
  float *x = NULL;
  size_t n = 0, want = 3 * (size_t)l->c->model->net.vision.image_h * (size_t)l->c->model->net.vision.image_w;
  if (!l->c->model->net.has_vision) return chi_load_fail(l, "'pixels': the model reads no pictures");
  int rc = chi_load_tensor(l, v, &x, &n);
  if (rc) return rc;
  if (n != want) return chi_load_fail(l, "'pixels' holds %zu numbers; this model's pictures have %zu", n, want);
  in->pixels = x;
  return 0;
}

/* A root by token ids: {"tokens": [...], "image": FILE or "pixels": {...}, "image_row": n}. */
static int root_of_tokens(chi_loader *l, const json_t *o, const char *image, chi_input *in) {
  int rc = 0;
  int32_t *id = NULL, n = 0;
  int64_t image_row = -1;
  chi_err why = {0};
  CHI_TRY(chi_load_ids(l, json_object_get(o, "tokens"), &id, &n));
  CHI_TRY(chi_load_int(l, o, "image_row", 0, n - 1, &image_row));
  *in = (chi_input){.tokens = id, .n_rows = n, .image_row = -1};
  const json_t *pixels = json_object_get(o, "pixels");
  if (image && pixels) return chi_load_fail(l, "a root has 'image' or 'pixels', not both");
  if (!image && !pixels) return image_row < 0 ? 0 : chi_load_fail(l, "'image_row' without 'image'");
  if (image_row < 0) return chi_load_fail(l, "a picture needs 'image_row': the first of its rows");
  in->image_row = (int32_t)image_row;
  if (pixels) return load_pixels(l, pixels, in);
  chi_prompt *p = chi_calloc(1, sizeof *p, l->err);
  if (!p) return CHI_ERR_MEMORY;
  rc = chi_prompt_picture(p, l->c->model, image, &why);
  if (rc) {
    chi_prompt_free(p);
    return chi_load_placed(l, rc, &why);
  }
  CHI_TRY(own_prompt(l, p, image));
  in->pixels = p->pixels;
out:
  return rc;
}

/* The command's words about another picture: the filled template goes in as it is, its rows keep their roles. */
static int root_of_picture(chi_loader *l, const char *image, const chi_prompt **out) {
  chi_prompt *p = NULL;
  chi_err why = {0};
  const chi_prompt *base = l->c->prompt;
  if (!base || !base->pixels)
    return chi_load_fail(l, "'image' without 'question' replaces the command line's picture, and there is none");
  chi_prompt_opts o = {.image = image, .question = base->text, .raw = true};
  int rc = chi_prompt_make(&p, l->c->model, &o, &why);
  if (rc) return chi_load_placed(l, rc, &why);
  if ((rc = own_prompt(l, p, image)) != 0) return rc;
  memcpy(p->role, base->role, (size_t)p->n_rows * sizeof *p->role);
  for (; p->n_spans < base->n_spans; p->n_spans++) /* rows only: its words stay the command's */
    p->span[p->n_spans] = (chi_prompt_span){.lo = base->span[p->n_spans].lo, .hi = base->span[p->n_spans].hi};
  p->span_lo = base->span_lo;
  p->span_hi = base->span_hi;
  *out = p;
  return 0;
}

static int root_of_question(chi_loader *l, const char *image, const char *question, const chi_prompt **out) {
  chi_prompt *p = NULL;
  chi_err why = {0};
  chi_prompt_opts o = {.image = image, .question = question, .tmpl = l->c->tmpl, .raw = l->c->raw};
  int rc = chi_prompt_make(&p, l->c->model, &o, &why);
  if (rc) return chi_load_placed(l, rc, &why);
  if ((rc = own_prompt(l, p, image)) == 0) *out = p;
  return rc;
}

static int load_root(chi_loader *l, const json_t *o, chi_plan_entry *e, int *branch) {
  int rc = 0;
  const char *image = NULL, *question = NULL;
  char path[4096];
  bool none = json_is_null(json_object_get(o, "image")); /* without the command's picture */
  chi_input in = {0};
  if (!none) CHI_TRY(chi_load_text(l, o, "image", &image));
  CHI_TRY(chi_load_text(l, o, "question", &question));
  if (image) {
    CHI_TRY(chi_load_path(l, image, path, sizeof path));
    image = path;
  }
  if (json_object_get(o, "tokens")) {
    if (question) return chi_load_fail(l, "a root has 'question' or 'tokens', not both");
    CHI_TRY(root_of_tokens(l, o, image, &in));
  } else {
    if (json_object_get(o, "pixels") || json_object_get(o, "image_row"))
      return chi_load_fail(l, "'pixels' and 'image_row' go with 'tokens'");
    if (question)
      CHI_TRY(root_of_question(l, image ? image : none ? NULL : l->c->image, question, &e->prompt));
    else if (image)
      CHI_TRY(root_of_picture(l, image, &e->prompt));
    else if (none)
      return chi_load_fail(l, "'image': null needs a 'question'");
    else if (!(e->prompt = l->c->prompt))
      return chi_load_fail(
          l, "the root has no input: give a QUESTION on the command line, or 'question' or 'tokens' here");
    in = chi_prompt_input(e->prompt);
  }
  CHI_TRY(chi_plan_root(l->f->plan, &in, branch, l->err));
out:
  return rc;
}

/* ---- branches -------------------------------------------------------------------------------------------------- */
static int load_names(chi_loader *l, const json_t *list) {
  size_t n = json_array_size(list);
  int other;
  for (size_t i = 0; i < n; i++) {
    const char *name = NULL;
    const json_t *o = json_array_get(list, i);
    snprintf(l->where, sizeof l->where, "branches[%zu]", i);
    if (!json_is_object(o)) return chi_load_fail(l, "must be an object");
    int rc = chi_load_text(l, o, "name", &name);
    if (rc) return rc;
    if (!name || !*name) return chi_load_fail(l, "'name' is missing");
    if (strlen(name) > 200 || strpbrk(name, "\n\r\t"))
      return chi_load_fail(l, "the name is longer than 200 bytes or has line breaks");
    for (other = 0; (size_t)other < i; other++)
      if (chi_streq(l->f->entry[other].name, name))
        return chi_load_fail(l, "branch %d has the name '%.80s' already", other, name);
    l->f->entry[i].name = chi_arena_strdup(&l->f->arena, name, l->err);
    if (!l->f->entry[i].name) return CHI_ERR_MEMORY;
  }
  return 0;
}

static int load_branch(chi_loader *l, const json_t *o, size_t i) {
  int rc = 0, branch = 0, parent = -1;
  int64_t generate = 0;
  const char *up = NULL;
  chi_plan_entry *e = &l->f->entry[i];
  snprintf(l->where, sizeof l->where, "branches[%zu]", i);
  CHI_TRY(chi_load_text(l, o, "parent", &up));
  CHI_TRY(chi_load_keys(l, o,
                        up ? "name parent interventions generate"
                           : "name image question tokens pixels image_row interventions generate"));
  CHI_TRY(chi_load_int(l, o, "generate", 1, 1 << 20, &generate));
  e->generate = (int32_t)generate;
  if (up) {
    for (size_t k = 0; k < i && parent < 0; k++)
      if (chi_streq(l->f->entry[k].name, up)) parent = (int)k;
    if (parent < 0)
      return chi_load_fail(l,
                           "no branch before this one is called '%.80s': a parent stands before its children, and no "
                           "branch is its own ancestor",
                           up);
    CHI_TRY(chi_plan_child(l->f->plan, parent, &branch, l->err));
    e->prompt = l->f->entry[parent].prompt;
  } else {
    CHI_TRY(load_root(l, o, e, &branch));
  }
out:
  return rc;
}

static int load_interventions(chi_loader *l, const json_t *o, size_t i) {
  const json_t *list = json_object_get(o, "interventions");
  snprintf(l->where, sizeof l->where, "branches[%zu].interventions", i);
  if (list && !json_is_array(list)) return chi_load_fail(l, "must be a list");
  for (size_t k = 0; k < json_array_size(list); k++) {
    snprintf(l->where, sizeof l->where, "branches[%zu].interventions[%zu]", i, k);
    int rc = chi_load_intervention(l, json_array_get(list, k), (int)i);
    if (rc) return rc;
  }
  return 0;
}

/* A branch that generates does so under everything that acts on it, its ancestors' interventions first. */
static int gather_edits(chi_loader *l) {
  const chi_plan *p = l->f->plan;
  for (size_t i = p->n_branches; i-- > 0;) { /* children first, so that a parent's own list is still its own */
    chi_plan_entry *e = &l->f->entry[i];
    size_t n = 0, at;
    if (!e->generate) continue;
    for (int b = (int)i; b >= 0; b = p->branch[b].parent) n += l->f->entry[b].n_edits;
    chi_gen_edit *all = chi_arena_array(&l->f->arena, n + 1, sizeof *all, l->err);
    if (!all) return CHI_ERR_MEMORY;
    at = n;
    for (int b = (int)i; b >= 0; b = p->branch[b].parent) {
      const chi_plan_entry *up = &l->f->entry[b];
      at -= up->n_edits;
      if (up->n_edits) memcpy(all + at, up->edits, up->n_edits * sizeof *all);
    }
    e->edits = all;
    e->n_edits = n;
    snprintf(l->where, sizeof l->where, "branches[%zu]", i);
    for (size_t k = 0; k < n; k++)
      if (all[k].iv.op == CHI_OP_COPY) return chi_load_fail(l, "'generate' does not go with 'copy'");
  }
  return 0;
}

/* Something that acts on generated rows only needs a branch that generates. */
static int check_generated(chi_loader *l) {
  const chi_plan *p = l->f->plan;
  for (size_t i = 0; i < p->n_branches; i++) {
    bool wanted = false, met = false;
    for (size_t k = 0; k < l->f->entry[i].n_edits; k++) wanted = wanted || l->f->entry[i].edits[k].generated;
    for (size_t c = i; c < p->n_branches && wanted && !met; c++) {
      int b = (int)c;
      while (b > (int)i) b = p->branch[b].parent;
      met = b == (int)i && l->f->entry[c].generate;
    }
    snprintf(l->where, sizeof l->where, "branches[%zu]", i);
    if (wanted && !met)
      return chi_load_fail(l, "acts on generated rows, but generates nothing: give the branch \"generate\": N");
  }
  return 0;
}

/* ---- captures and report --------------------------------------------------------------------------------------- */
/* "all", a name or a list of names -> marks. */
static int mark_branches(chi_loader *l, const json_t *v, uint8_t *mark) {
  size_t n = l->f->plan->n_branches, count = json_is_array(v) ? json_array_size(v) : 1;
  int b = 0, rc = 0;
  if (!v || (json_is_string(v) && strcmp(json_string_value(v), "all") == 0)) {
    memset(mark, 1, n);
    return 0;
  }
  for (size_t i = 0; i < count; i++) {
    const json_t *x = json_is_array(v) ? json_array_get(v, i) : v;
    if (!json_is_string(x)) return chi_load_fail(l, "branches are named: \"all\", a name, or a list of names");
    if ((rc = chi_load_find(l, json_string_value(x), n, &b)) != 0) return rc;
    mark[b] = 1;
  }
  return 0;
}

static int load_capture(chi_loader *l, const json_t *o, uint8_t *mark) {
  int rc = 0, lo = 0, hi = 0;
  chi_capture c = {0};
  chi_row_list rows;
  memset(mark, 0, l->f->plan->n_branches);
  CHI_TRY(chi_load_keys(l, o, "branch stack site layers rows"));
  CHI_TRY(chi_load_site(l, o, &c.stack, &c.site));
  CHI_TRY(chi_load_layers(l, o, c.stack, c.site, &lo, &hi));
  CHI_TRY(mark_branches(l, json_object_get(o, "branch"), mark));
  for (size_t b = 0; b < l->f->plan->n_branches; b++) {
    if (!mark[b]) continue;
    CHI_TRY(chi_load_rows(l, json_object_get(o, "rows"), (int)b, c.stack, c.site, &rows));
    if (rows.generated) return chi_load_fail(l, "generated rows cannot be captured");
    c.branch = (int)b;
    c.rows = rows.r;
    c.n_rows = rows.n;
    for (c.layer = lo; c.layer < hi; c.layer++) {
      if (hi - lo > 1 && !chi_site_in_layer(l->shape, c.stack, c.site, c.layer)) continue;
      CHI_TRY(chi_plan_capture(l->f->plan, &c, NULL, l->err));
    }
  }
out:
  return rc;
}

static int load_captures(chi_loader *l, const json_t *list) {
  int rc = 0;
  uint8_t *mark = chi_arena_array(&l->f->arena, l->f->plan->n_branches, 1, l->err);
  if (!mark) return CHI_ERR_MEMORY;
  snprintf(l->where, sizeof l->where, "captures");
  if (list && !json_is_array(list)) return chi_load_fail(l, "must be a list");
  for (size_t k = 0; k < json_array_size(list) && rc == 0; k++) {
    snprintf(l->where, sizeof l->where, "captures[%zu]", k);
    rc = load_capture(l, json_array_get(list, k), mark);
  }
  return rc;
}

static int load_report(chi_loader *l, const json_t *o) {
  int rc = 0;
  int64_t top = l->f->top;
  size_t n = l->f->plan->n_branches;
  const char *target = NULL;
  chi_row_list rows;
  chi_err why = {0};
  uint8_t *mark = chi_arena_array(&l->f->arena, n, 1, l->err);
  if (!mark) return CHI_ERR_MEMORY;
  snprintf(l->where, sizeof l->where, "report");
  if (o) CHI_TRY(chi_load_keys(l, o, "branches row top target"));
  CHI_TRY(chi_load_int(l, o, "top", 0, 1000, &top));
  CHI_TRY(chi_load_text(l, o, "target", &target));
  CHI_TRY(mark_branches(l, json_object_get(o, "branches"), mark));
  l->f->top = (int)top;
  if (target && (rc = chi_plan_token(&l->f->target, l->c->model, target, &why)) != 0)
    return chi_load_placed(l, rc, &why);
  for (size_t b = 0; b < n; b++) {
    chi_plan_entry *e = &l->f->entry[b];
    e->report = mark[b] != 0;
    e->report_row = l->f->plan->branch[chi_plan_root_of(l->f->plan, (int)b)].input.n_rows - 1;
    if (!e->report || !json_object_get(o, "row")) continue;
    CHI_TRY(chi_load_rows(l, json_object_get(o, "row"), (int)b, CHI_DECODER, CHI_SITE_LOGITS, &rows));
    if (rows.n != 1) return chi_load_fail(l, "'row' is one row");
    e->report_row = rows.r[0];
  }
out:
  return rc;
}

/* ---- the file -------------------------------------------------------------------------------------------------- */
static int load_all(chi_loader *l, const json_t *root) {
  int rc = 0;
  const char *format = NULL;
  const json_t *list = json_object_get(root, "branches");
  size_t n = json_array_size(list);
  chi_err why = {0};
  snprintf(l->where, sizeof l->where, "plan");
  CHI_TRY(chi_load_keys(l, root, "format comment branches captures report"));
  CHI_TRY(chi_load_text(l, root, "format", &format));
  if (!chi_streq(format, CHI_PLAN_FORMAT)) return chi_load_fail(l, "'format' must be \"" CHI_PLAN_FORMAT "\"");
  if (!json_is_array(list) || n == 0 || n > INT32_MAX)
    return chi_load_fail(l, "'branches' must be a list with at least one branch");
  l->f->entry = chi_arena_array(&l->f->arena, n, sizeof *l->f->entry, l->err);
  if (!l->f->entry) return CHI_ERR_MEMORY;
  l->f->n_entries = n;
  CHI_TRY(chi_plan_new(&l->f->plan, l->err));
  CHI_TRY(load_names(l, list));
  for (size_t i = 0; i < n; i++) CHI_TRY(load_branch(l, json_array_get(list, i), i));
  for (size_t i = 0; i < n; i++) CHI_TRY(load_interventions(l, json_array_get(list, i), i));
  CHI_TRY(check_generated(l));
  CHI_TRY(gather_edits(l));
  CHI_TRY(load_captures(l, json_object_get(root, "captures")));
  CHI_TRY(load_report(l, json_object_get(root, "report")));
  int *order = chi_arena_array(&l->f->arena, n, sizeof *order, l->err);
  if (!order) return CHI_ERR_MEMORY;
  rc = chi_plan_order(l->f->plan, order, &why);
  if (rc == 0) rc = chi_plan_check(l->f->plan, l->shape, &why);
  if (rc) rc = chi_fail(l->err, rc, "%s: %s", l->path, why.text);
out:
  return rc;
}

int chi_plan_load(chi_plan_file **out, const char *path, const chi_plan_context *c, chi_err *err) {
  int rc = 0;
  json_t *root = NULL;
  chi_loader l = {.c = c, .shape = &c->model->net.shape, .path = path, .err = err};
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) + 1 : 0;
  if (n >= sizeof l.folder) return chi_fail(err, CHI_ERR_ARG, "the path of the plan is too long");
  memcpy(l.folder, path, n);
  l.f = chi_calloc(1, sizeof *l.f, err);
  if (!l.f) return CHI_ERR_MEMORY;
  l.f->target = -1;
  l.f->top = 5;
  if (c->prompt && c->prompt->pixels && c->image) CHI_TRY(add_picture(l.f, c->prompt->pixels, c->image, err));
  CHI_TRY(chi_json_load(&root, path, (size_t)256 << 20, err));
  CHI_TRY(load_all(&l, root));
out:
  chi_st_close(l.st);
  json_decref(root);
  if (rc)
    chi_plan_file_free(l.f);
  else
    *out = l.f;
  return rc;
}

void chi_plan_file_free(chi_plan_file *f) {
  if (!f) return;
  chi_plan_free(f->plan);
  for (size_t i = 0; i < f->n_owned; i++) chi_prompt_free(f->owned[i]);
  chi_free(f->owned);
  chi_free(f->picture);
  chi_arena_free(&f->arena);
  chi_free(f);
}

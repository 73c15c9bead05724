/* Plan -> JSON. See plan_json.h. */
#include <stdlib.h>
#include <string.h>

#include "analyze/plan_json.h"
#include "analyze/select.h"

enum { kInline = 16 }; /* longer values go to the safetensors file beside the plan */

typedef struct saver {
  const chi_plan *p;
  const chi_net *net;
  const chi_plan_save_opts *o;
  char values[4096]; /* path of the values file */
  chi_st_writer *w;  /* opened at the first long value */
  int n_values;
  int bad; /* out of memory while building JSON */
  chi_err *err;
} saver;

static void put(saver *s, json_t *o, const char *key, json_t *v) { s->bad |= json_object_set_new(o, key, v); }

static json_t *name_json(const saver *s, int b) {
  return s->o->names ? json_string(s->o->names[b]) : json_sprintf("b%d", b);
}

/* Consecutive rows are a range. */
static json_t *rows_json(saver *s, const int32_t *r, int32_t n) {
  if (n > 2 && r[n - 1] - r[0] == n - 1) return json_pack("{s:i,s:i}", "from", (int)r[0], "to", (int)r[n - 1] + 1);
  json_t *a = json_array();
  for (int32_t i = 0; i < n; i++) s->bad |= json_array_append_new(a, json_integer(r[i]));
  return a;
}

/* source_rows need not ascend, so only a true range may be written as one. */
static json_t *any_rows_json(saver *s, const int32_t *r, int32_t n) {
  bool run = true;
  for (int32_t i = 1; i < n; i++) run = run && r[i] == r[i - 1] + 1;
  if (run) return rows_json(s, r, n);
  json_t *a = json_array();
  for (int32_t i = 0; i < n; i++) s->bad |= json_array_append_new(a, json_integer(r[i]));
  return a;
}

static json_t *span_json(int lo, int hi) { return json_pack("[i,i]", lo, hi); }

/* ---- values -------------------------------------------------------------------------------------------------- */
static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* A tensor of the values file, which is made when the first one comes; borrowed until the end. */
static int tensor_json(saver *s, const float *values, int ndim, const int64_t *dim, json_t **out) {
  int rc = 0;
  char name[32];
  if (!s->w) CHI_TRY(chi_st_writer_new(&s->w, s->values, s->err));
  snprintf(name, sizeof name, "value.%d", s->n_values++);
  CHI_TRY(chi_st_writer_add(s->w, name, CHI_F32, ndim, dim, values, s->err));
  *out = json_pack("{s:s,s:s}", "file", base_name(s->values), "tensor", name);
out:
  return rc;
}

static int value_json(saver *s, const chi_intervention *iv, int64_t width, json_t **out) {
  int64_t n = width * iv->value_rows, dim[2] = {iv->value_rows, width};
  if (n > kInline) return tensor_json(s, iv->value, 2, dim, out);
  *out = json_array();
  for (int64_t i = 0; i < n; i++) s->bad |= json_array_append_new(*out, json_real((double)iv->value[i]));
  return 0;
}

/* ---- interventions --------------------------------------------------------------------------------------------- */
static void put_place(saver *s, json_t *j, chi_stack stack, chi_site site, int lo, int hi) {
  put(s, j, "stack", json_string(chi_stack_name(stack)));
  put(s, j, "site", json_string(chi_site_get(site)->name));
  if (!chi_site_get(site)->per_layer || stack == CHI_PROJECTOR) return;
  put(s, j, "layers", hi == lo + 1 ? json_integer(lo) : span_json(lo, hi));
}

static int intervention_json(saver *s, int branch, const chi_intervention *iv, json_t **out) {
  int rc = 0;
  bool edge = iv->op == CHI_OP_CUT || iv->op == CHI_OP_CUT_ZERO || iv->op == CHI_OP_CUT_SCALE;
  json_t *j = json_object(), *v = NULL;
  *out = j;
  if (iv->op == CHI_OP_CALL)
    return chi_fail(s->err, CHI_ERR_UNSUPPORTED, "a plan with a C callback cannot be written to a file");
  if (iv->seed > INT64_MAX)
    return chi_fail(s->err, CHI_ERR_UNSUPPORTED, "a seed above 2^63 cannot be written to a plan file");
  put(s, j, "op", json_string(chi_op_name(iv->op)));
  put_place(s, j, iv->stack, iv->site, iv->layer_lo, iv->layer_hi);
  put(s, j, "rows", rows_json(s, iv->rows, iv->n_rows));
  if (iv->part_hi)
    put(s, j, chi_site_get(iv->site)->unit == CHI_UNIT_HEAD ? "heads" : "cols", span_json(iv->part_lo, iv->part_hi));
  switch (iv->op) {
    case CHI_OP_SET:
    case CHI_OP_ADD:
    case CHI_OP_PROJECT:
      CHI_TRY(value_json(
          s, iv,
          chi_part_width(&s->net->shape, iv->stack, iv->site, iv->rows[0],
                         chi_branch_rows(s->p, &s->net->shape, branch, iv->stack, iv->site), iv->part_lo, iv->part_hi),
          &v));
      put(s, j, "value", v);
      break;
    case CHI_OP_COPY:
      put(s, j, "source", name_json(s, iv->source));
      if (iv->source_rows) put(s, j, "source_rows", any_rows_json(s, iv->source_rows, iv->n_rows));
      break;
    case CHI_OP_NOISE:
      put(s, j, "seed", json_integer((json_int_t)iv->seed));
      put(s, j, "sample", json_integer((json_int_t)iv->sample));
      break;
    case CHI_OP_TOKEN: {
      json_t *ids = json_array();
      for (int32_t i = 0; i < iv->n_rows; i++) s->bad |= json_array_append_new(ids, json_integer(iv->tokens[i]));
      put(s, j, "tokens", ids);
      break;
    }
    default:
      break;
  }
  if (edge) put(s, j, "keys", span_json(iv->key_lo, iv->key_hi));
  if (iv->op == CHI_OP_ADD || iv->op == CHI_OP_SCALE || iv->op == CHI_OP_NOISE || iv->op == CHI_OP_PROJECT ||
      iv->op == CHI_OP_CUT_SCALE)
    put(s, j, "scale", json_real((double)iv->scale));
  if (iv->op == CHI_OP_PROJECT && iv->one_sided) put(s, j, "one_sided", json_true());
out:
  return rc;
}

/* ---- branches -------------------------------------------------------------------------------------------------- */
static int root_json(saver *s, int b, json_t *j) {
  const chi_input *in = &s->p->branch[b].input;
  char full[4096];
  const char *file = NULL;
  json_t *ids = json_array();
  for (int32_t i = 0; i < in->n_rows; i++) s->bad |= json_array_append_new(ids, json_integer(in->tokens[i]));
  put(s, j, "tokens", ids);
  if (in->cache)
    return chi_fail(s->err, CHI_ERR_UNSUPPORTED, "a plan with a key/value cache cannot be written to a file");
  if (!in->pixels) return 0;
  for (size_t i = 0; i < s->o->n_pictures && !file; i++)
    if (s->o->pictures[i].pixels == in->pixels) file = s->o->pictures[i].file;
  put(s, j, "image_row", json_integer(in->image_row));
  if (!file) { /* a picture that came from no file */
    json_t *v = NULL;
    int64_t dim[3] = {3, s->net->vision.image_h, s->net->vision.image_w};
    int rc = tensor_json(s, in->pixels, 3, dim, &v);
    if (rc == 0) put(s, j, "pixels", v);
    return rc;
  }
  /* names in a plan are looked up beside it, so a picture is named from the root of the file system */
  char *real = realpath(file, NULL);
  int n = snprintf(full, sizeof full, "%s", real ? real : file);
  free(real);
  if (n < 0 || (size_t)n >= sizeof full) return chi_fail(s->err, CHI_ERR_ARG, "the path of a picture is too long");
  put(s, j, "image", json_string(full));
  return 0;
}

static int branch_json(saver *s, int b, json_t *j) {
  int rc = 0;
  const chi_plan_branch *br = &s->p->branch[b];
  put(s, j, "name", name_json(s, b));
  if (br->parent >= 0)
    put(s, j, "parent", name_json(s, br->parent));
  else
    CHI_TRY(root_json(s, b, j));
  if (br->count == 0) return 0;
  json_t *list = json_array();
  put(s, j, "interventions", list);
  for (int i = 0; i < br->count; i++) {
    json_t *iv = NULL;
    rc = intervention_json(s, b, &br->iv[i], &iv);
    s->bad |= json_array_append_new(list, iv);
    if (rc) goto out;
  }
out:
  return rc;
}

static void captures_json(saver *s, json_t *list) {
  for (size_t i = 0; i < s->p->n_captures; i++) {
    const chi_capture *c = &s->p->capture[i];
    json_t *j = json_object();
    put(s, j, "branch", name_json(s, c->branch));
    put_place(s, j, c->stack, c->site, c->layer, c->layer + 1);
    put(s, j, "rows", rows_json(s, c->rows, c->n_rows));
    s->bad |= json_array_append_new(list, j);
  }
}

int chi_plan_save(const chi_plan *p, const chi_net *net, const chi_plan_save_opts *o, const char *path, chi_err *err) {
  int rc = 0;
  saver s = {.p = p, .net = net, .o = o, .err = err};
  size_t len = strlen(path), stem = len > 5 && strcmp(path + len - 5, ".json") == 0 ? len - 5 : len;
  json_t *root = json_object(), *branches = json_array(), *captures = json_array();
  if (snprintf(s.values, sizeof s.values, "%.*s.safetensors", (int)stem, path) >= (int)sizeof s.values) {
    rc = chi_fail(err, CHI_ERR_ARG, "the path of the plan is too long");
    goto out;
  }
  put(&s, root, "format", json_string(CHI_PLAN_FORMAT));
  put(&s, root, "branches", json_incref(branches));
  for (size_t b = 0; b < p->n_branches; b++) {
    json_t *j = json_object();
    rc = branch_json(&s, (int)b, j);
    s.bad |= json_array_append_new(branches, j);
    if (rc) goto out;
  }
  captures_json(&s, captures);
  if (p->n_captures) put(&s, root, "captures", json_incref(captures));
  json_t *report = json_object();
  put(&s, root, "report", report);
  if (o->report_row >= 0) put(&s, report, "row", json_integer(o->report_row));
  if (o->target >= 0) put(&s, report, "target", json_sprintf("#%d", (int)o->target));
  if (s.bad) {
    rc = chi_fail(err, CHI_ERR_MEMORY, "no memory to write the plan as JSON (or a branch's name is not UTF-8)");
    goto out;
  }
  if (s.w) { /* values first: a plan never names a file that is not there */
    rc = chi_st_writer_commit(s.w, err);
    s.w = NULL;
    if (rc) goto out;
  }
  rc = chi_json_save(root, path, err);
out:
  chi_st_writer_abort(s.w);
  json_decref(captures);
  json_decref(branches);
  json_decref(root);
  return rc;
}

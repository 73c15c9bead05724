/* JSON -> interventions: rows, sites, values. See plan_json.h. */
#include "analyze/plan_load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/select.h"

int chi_load_fail(chi_loader *l, const char *fmt, ...) {
  char text[CHI_ERR_TEXT];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  return chi_fail(l->err, CHI_ERR_ARG, "%s: %s: %s", l->path, l->where, text);
}

int chi_load_placed(chi_loader *l, int rc, const chi_err *why) {
  return chi_fail(l->err, rc, "%s: %s: %s", l->path, l->where, why->text);
}

/* ---- small readers ------------------------------------------------------------------------------------------- */
int chi_load_keys(chi_loader *l, const json_t *o, const char *keys) {
  const char *key;
  json_t *v;
  if (!json_is_object(o)) return chi_load_fail(l, "must be an object");
  json_object_foreach((json_t *)o, key, v) {
    size_t n = strlen(key);
    bool known = false;
    for (const char *p = keys; *p && !known; p += strcspn(p, " "), p += *p == ' ')
      known = strcspn(p, " ") == n && strncmp(p, key, n) == 0;
    if (known) continue;
    if (strcmp(key, "source_layer") == 0 || strcmp(key, "source_site") == 0)
      return chi_load_fail(
          l,
          "'%s': a copy takes the same site and layer of its source; capture the other one and 'set' it from the file",
          key);
    return chi_load_fail(l, "unknown key '%.60s'; known are: %s", key, keys);
  }
  return 0;
}

int chi_load_int(chi_loader *l, const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out) {
  const json_t *v = json_object_get(o, key);
  if (!v) return 0;
  if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
    return chi_load_fail(l, "'%s' must be a whole number from %lld to %lld", key, (long long)min, (long long)max);
  *out = json_integer_value(v);
  return 0;
}

int chi_load_text(chi_loader *l, const json_t *o, const char *key, const char **out) {
  const json_t *v = json_object_get(o, key);
  if (!v) return 0;
  if (!json_is_string(v)) return chi_load_fail(l, "'%s' must be a string", key);
  *out = json_string_value(v);
  return 0;
}

static int get_bool(chi_loader *l, const json_t *o, const char *key, bool *out) {
  const json_t *v = json_object_get(o, key);
  if (!v) return 0;
  if (!json_is_boolean(v)) return chi_load_fail(l, "'%s' must be true or false", key);
  *out = json_is_true(v);
  return 0;
}

/* [lo, hi) as two numbers. */
static int get_span(chi_loader *l, const json_t *o, const char *key, int32_t max, int32_t *lo, int32_t *hi,
                    bool *there) {
  const json_t *v = json_object_get(o, key);
  if (there) *there = v != NULL;
  if (!v) return 0;
  const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
  if (json_array_size(v) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 ||
      json_integer_value(b) > max || json_integer_value(a) >= json_integer_value(b))
    return chi_load_fail(l, "'%s' must be [first, end] with 0 <= first < end <= %d", key, max);
  *lo = (int32_t)json_integer_value(a);
  *hi = (int32_t)json_integer_value(b);
  return 0;
}

int chi_load_path(chi_loader *l, const char *name, char *out, size_t cap) {
  int n = name[0] == '/' ? snprintf(out, cap, "%s", name) : snprintf(out, cap, "%s%s", l->folder, name);
  return n >= 0 && (size_t)n < cap ? 0 : chi_load_fail(l, "the file name is too long");
}

int chi_load_find(chi_loader *l, const char *name, size_t n, int *out) {
  for (size_t i = 0; i < n; i++) {
    if (!chi_streq(l->f->entry[i].name, name)) continue;
    *out = (int)i;
    return 0;
  }
  return chi_load_fail(l, "no branch is called '%.80s'", name);
}

int chi_plan_token(int32_t *out, const chi_model *m, const char *text, chi_err *err) {
  chi_tokens t = {0};
  if (text[0] == '#' && text[1]) {
    char *end;
    long id = strtol(text + 1, &end, 10);
    if (*end || id < 0 || id >= m->net.decoder.vocab)
      return chi_fail(err, CHI_ERR_ARG, "'%s' is no token id below %d", text, m->net.decoder.vocab);
    *out = (int32_t)id;
    return 0;
  }
  int rc = chi_encode(m->tok, text, strlen(text), false, &t, err);
  if (rc == 0 && t.n != 1)
    rc = chi_fail(err, CHI_ERR_ARG, "'%s' is %zu tokens, not one; name one by its id as #123", text, t.n);
  if (rc == 0) *out = t.id[0];
  chi_tokens_free(&t);
  return rc;
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */
static int rows_of_list(chi_loader *l, const json_t *v, int32_t limit, chi_row_list *out) {
  size_t n = json_is_array(v) ? json_array_size(v) : 1;
  if (n == 0) return chi_load_fail(l, "'rows' is empty");
  out->r = chi_arena_array(&l->f->arena, n, sizeof *out->r, l->err);
  if (!out->r) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++) {
    const json_t *x = json_is_array(v) ? json_array_get(v, i) : v;
    json_int_t r = json_integer_value(x);
    if (!json_is_integer(x) || r < 0 || r >= limit)
      return chi_load_fail(l, "rows are whole numbers from 0 to %d", limit - 1);
    out->r[out->n++] = (int32_t)r;
  }
  return 0;
}

static int rows_from_to(chi_loader *l, int32_t from, int32_t to, chi_row_list *out) {
  out->r = chi_arena_array(&l->f->arena, (size_t)(to - from), sizeof *out->r, l->err);
  if (!out->r) return CHI_ERR_MEMORY;
  for (int32_t r = from; r < to; r++) out->r[out->n++] = r;
  return 0;
}

/* Words that need roles, for roots given as token ids: the picture and the end are known. */
static int rows_of_word(chi_loader *l, const char *word, int branch, chi_stack stack, chi_site site, int32_t limit,
                        chi_row_list *out) {
  const chi_plan *p = l->f->plan;
  const chi_prompt *prompt = l->f->entry[branch].prompt;
  const chi_input *in = &p->branch[chi_plan_root_of(p, branch)].input;
  bool text_rows = stack == CHI_DECODER && site != CHI_SITE_IMAGE_EMBED;
  if (strcmp(word, "all") == 0) return rows_from_to(l, 0, limit, out);
  if (!text_rows)
    return chi_load_fail(l, "rows of %s.%s are \"all\", numbers or {\"from\", \"to\"}", chi_stack_name(stack),
                         chi_site_get(site)->name);
  if (strcmp(word, "last") == 0) return rows_from_to(l, limit - 1, limit, out);
  if (strcmp(word, "image") == 0 && in->pixels)
    return rows_from_to(l, in->image_row, in->image_row + l->shape->n_image_rows, out);
  if (!chi_select_is_word(word))
    return chi_load_fail(l,
                         "rows are \"last\", \"constraint\", \"image\", \"text\", \"all\", \"generated\", numbers or "
                         "{\"from\", \"to\"}, not \"%.40s\"",
                         word);
  if (!prompt) return chi_load_fail(l, "rows \"%s\" are not known where the root is given by token ids", word);
  int32_t *r = NULL, n = 0;
  chi_err why = {0};
  int rc = chi_select_rows(&r, &n, word, prompt, &why);
  if (rc) return chi_load_placed(l, rc, &why);
  out->r = chi_arena_array(&l->f->arena, (size_t)n, sizeof *out->r, l->err);
  if (out->r) memcpy(out->r, r, (size_t)n * sizeof *r);
  out->n = n;
  chi_free(r);
  return out->r ? 0 : CHI_ERR_MEMORY;
}

int chi_load_rows(chi_loader *l, const json_t *v, int branch, chi_stack stack, chi_site site, chi_row_list *out) {
  int32_t limit = chi_branch_rows(l->f->plan, l->shape, branch, stack, site);
  *out = (chi_row_list){0};
  if (limit == 0)
    return chi_load_fail(l, "%s.%s has no rows: the branch has no picture", chi_stack_name(stack),
                         chi_site_get(site)->name);
  if (json_is_string(v)) {
    if (strcmp(json_string_value(v), "generated") != 0)
      return rows_of_word(l, json_string_value(v), branch, stack, site, limit, out);
    out->generated = true;
    return 0;
  }
  if (json_is_object(v)) {
    int64_t from = 0, to = limit;
    int rc = chi_load_keys(l, v, "from to");
    if (rc == 0) rc = chi_load_int(l, v, "from", 0, limit - 1, &from);
    if (rc == 0) rc = chi_load_int(l, v, "to", from + 1, limit, &to);
    return rc ? rc : rows_from_to(l, (int32_t)from, (int32_t)to, out);
  }
  if (!json_is_array(v) && !json_is_integer(v))
    return chi_load_fail(l, "'rows' is missing or neither a word, numbers nor {\"from\", \"to\"}");
  return rows_of_list(l, v, limit, out);
}

/* ---- sites ----------------------------------------------------------------------------------------------------- */
int chi_load_site(chi_loader *l, const json_t *o, chi_stack *stack, chi_site *site) {
  const char *stack_name = "decoder", *site_name = NULL;
  chi_err why = {0};
  int rc = chi_load_text(l, o, "stack", &stack_name);
  if (rc == 0) rc = chi_load_text(l, o, "site", &site_name);
  if (rc) return rc;
  if (!site_name) return chi_load_fail(l, "'site' is missing");
  rc = chi_stack_parse(stack, stack_name, &why);
  if (rc == 0) rc = chi_site_parse(site, site_name, &why);
  if (rc) return chi_load_placed(l, rc, &why);
  if (chi_site_width(l->shape, *stack, *site, 1) == 0)
    return chi_load_fail(l, "this model has no site %s.%s", stack_name, site_name);
  return 0;
}

int chi_load_layers(chi_loader *l, const json_t *o, chi_stack stack, chi_site site, int *lo, int *hi) {
  const json_t *v = json_object_get(o, "layers");
  int32_t n = l->shape->stack[stack].layers, a = 0, b = n;
  if (!chi_site_get(site)->per_layer || stack == CHI_PROJECTOR) {
    *lo = -1, *hi = 0;
    return v && !json_is_string(v) ? chi_load_fail(l, "%s.%s is not per layer; leave 'layers' out",
                                                   chi_stack_name(stack), chi_site_get(site)->name)
                                   : 0;
  }
  if (!v) return chi_load_fail(l, "'layers' is missing: \"all\", a number, or [first, end]");
  if (json_is_integer(v)) {
    if (json_integer_value(v) < 0 || json_integer_value(v) >= n)
      return chi_load_fail(l, "layer %lld is not within 0..%d", (long long)json_integer_value(v), n - 1);
    a = (int32_t)json_integer_value(v);
    b = a + 1;
  } else if (json_is_array(v)) {
    int rc = get_span(l, o, "layers", n, &a, &b, NULL);
    if (rc) return rc;
  } else if (!json_is_string(v) || strcmp(json_string_value(v), "all") != 0) {
    return chi_load_fail(l, "'layers' is \"all\", a number, or [first, end]");
  }
  *lo = a;
  *hi = b;
  return 0;
}

/* ---- values ---------------------------------------------------------------------------------------------------- */
int chi_load_tensor(chi_loader *l, const json_t *v, float **out, size_t *n) {
  const char *file = NULL, *tensor = NULL;
  int64_t row = -1;
  char path[4096];
  chi_err why = {0};
  int rc = chi_load_keys(l, v, "file tensor row");
  if (rc == 0) rc = chi_load_text(l, v, "file", &file);
  if (rc == 0) rc = chi_load_text(l, v, "tensor", &tensor);
  if (rc == 0) rc = chi_load_int(l, v, "row", 0, INT32_MAX, &row);
  if (rc) return rc;
  if (!file || !tensor) return chi_load_fail(l, "a value from a file needs 'file' and 'tensor'");
  if ((rc = chi_load_path(l, file, path, sizeof path)) != 0) return rc;
  if (!l->st || !chi_streq(l->st_path, path)) {
    chi_st_close(l->st);
    l->st = NULL;
    rc = chi_st_open(&l->st, path, &why);
    if (rc) return chi_load_placed(l, rc, &why);
    l->st_path = chi_arena_strdup(&l->f->arena, path, l->err);
    if (!l->st_path) return CHI_ERR_MEMORY;
  }
  const chi_tensor *t = chi_st_find(l->st, tensor);
  if (!t) return chi_load_fail(l, "%s holds no tensor '%.80s'", file, tensor);
  if (!chi_dtype_is_float(t->dtype))
    return chi_load_fail(l, "tensor '%.80s' of %s is %s, not a float type", tensor, file, chi_dtype_name(t->dtype));
  size_t size = chi_dtype_size(t->dtype), from = 0;
  *n = t->bytes / size;
  if (row >= 0) {
    if (t->ndim < 2 || row >= t->dim[0])
      return chi_load_fail(l, "tensor '%.80s' of %s has no row %lld", tensor, file, (long long)row);
    *n /= (size_t)t->dim[0];
    from = *n * (size_t)row;
  }
  *out = chi_arena_array(&l->f->arena, *n, sizeof **out, l->err);
  if (!*out) return CHI_ERR_MEMORY;
  return chi_to_f32(*out, (const char *)t->data + from * size, t->dtype, *n, l->err);
}

static int append_numbers(chi_loader *l, const json_t *v, float *out, size_t *n, int depth) {
  int rc = 0;
  if (json_is_number(v)) {
    double x = json_number_value(v);
    if (!(fabs(x) <= 3.4028234663852886e38)) return chi_load_fail(l, "a value is outside the range of 32-bit floats");
    if (out) out[*n] = (float)x;
    ++*n;
    return 0;
  }
  if (!json_is_array(v) || depth > 1)
    return chi_load_fail(l, "'value' is a list of numbers, a list of rows, or {\"file\", \"tensor\"}");
  for (size_t i = 0; i < json_array_size(v); i++)
    if ((rc = append_numbers(l, json_array_get(v, i), out, n, depth + 1)) != 0) return rc;
  return 0;
}

static int get_value(chi_loader *l, const json_t *v, chi_intervention *iv, int64_t width) {
  float *x = NULL;
  size_t n = 0;
  int rc;
  if (!v) return 0;
  if (json_is_object(v)) {
    if ((rc = chi_load_tensor(l, v, &x, &n)) != 0) return rc;
  } else {
    if ((rc = append_numbers(l, v, NULL, &n, 0)) != 0) return rc;
    x = chi_arena_array(&l->f->arena, n, sizeof *x, l->err);
    if (!x) return CHI_ERR_MEMORY;
    n = 0;
    append_numbers(l, v, x, &n, 0);
  }
  size_t rows = iv->n_rows > 0 ? (size_t)iv->n_rows : 1;
  if (n != (size_t)width && n != rows * (size_t)width)
    return chi_load_fail(l, "'value' holds %zu numbers; %lld are one row here, %lld one for each row", n,
                         (long long)width, (long long)width * (long long)rows);
  iv->value = x;
  iv->value_rows = n == (size_t)width ? 1 : (int32_t)rows;
  return 0;
}

/* ---- interventions --------------------------------------------------------------------------------------------- */
/* Columns that the intervention's part has in one row. */
static int get_part(chi_loader *l, const json_t *o, chi_intervention *iv, int branch, int64_t *width) {
  bool head_site = chi_site_get(iv->site)->unit == CHI_UNIT_HEAD, there, other;
  int32_t lo = 0, hi = 0, all = (int32_t)chi_site_width(l->shape, iv->stack, iv->site, 1);
  int32_t limit = head_site ? chi_site_heads(l->shape, iv->stack, iv->site) : all;
  int rc = get_span(l, o, head_site ? "heads" : "cols", limit, &lo, &hi, &there);
  if (rc) return rc;
  other = json_object_get(o, head_site ? "cols" : "heads") != NULL;
  if (other)
    return chi_load_fail(l, "%s is parted by '%s'", chi_site_get(iv->site)->name, head_site ? "heads" : "cols");
  iv->part_lo = lo;
  iv->part_hi = there ? hi : 0;
  *width = chi_part_width(l->shape, iv->stack, iv->site, iv->n_rows > 0 ? iv->rows[0] : 0,
                          chi_branch_rows(l->f->plan, l->shape, branch, iv->stack, iv->site), lo, iv->part_hi);
  return 0;
}

int chi_load_ids(chi_loader *l, const json_t *v, int32_t **out, int32_t *n) {
  size_t count = json_array_size(v);
  if (!json_is_array(v) || count == 0 || count > INT32_MAX / 2)
    return chi_load_fail(l, "'tokens' must be a list of ids");
  int32_t *id = chi_arena_array(&l->f->arena, count, sizeof *id, l->err);
  if (!id) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < count; i++) {
    const json_t *x = json_array_get(v, i);
    if (!json_is_integer(x) || json_integer_value(x) < 0 || json_integer_value(x) >= l->shape->vocab)
      return chi_load_fail(l, "token ids are whole numbers below %d", l->shape->vocab);
    id[i] = (int32_t)json_integer_value(x);
  }
  *out = id;
  *n = (int32_t)count;
  return 0;
}

static int get_tokens(chi_loader *l, const json_t *v, chi_intervention *iv) {
  int rc = 0;
  int32_t *id = NULL, n = 0;
  chi_tokens t = {0};
  chi_err why = {0};
  if (json_is_string(v)) {
    rc = chi_encode(l->c->model->tok, json_string_value(v), json_string_length(v), false, &t, &why);
    if (rc)
      rc = chi_load_placed(l, rc, &why);
    else if (!(id = chi_arena_array(&l->f->arena, t.n, sizeof *id, l->err)))
      rc = CHI_ERR_MEMORY;
    else if (t.n)
      memcpy(id, t.id, t.n * sizeof *id);
    n = (int32_t)t.n;
    chi_tokens_free(&t);
  } else {
    rc = chi_load_ids(l, v, &id, &n);
  }
  if (rc == 0 && n != iv->n_rows) rc = chi_load_fail(l, "'tokens' makes %d tokens for %d rows", n, iv->n_rows);
  iv->tokens = id;
  return rc;
}

static int get_source(chi_loader *l, const json_t *o, chi_intervention *iv) {
  const char *name = NULL;
  int rc = chi_load_text(l, o, "source", &name);
  if (rc) return rc;
  if (!name) return chi_load_fail(l, "'copy' needs 'source': the name of a branch");
  if ((rc = chi_load_find(l, name, l->f->plan->n_branches, &iv->source)) != 0) return rc;
  const json_t *v = json_object_get(o, "source_rows");
  if (!v) return 0;
  chi_row_list from;
  if ((rc = chi_load_rows(l, v, iv->source, iv->stack, iv->site, &from)) != 0) return rc;
  if (from.n != iv->n_rows) return chi_load_fail(l, "'source_rows' names %d rows for %d", from.n, iv->n_rows);
  iv->source_rows = from.r;
  return 0;
}

static int get_op(chi_loader *l, const json_t *o, chi_op *op) {
  const char *name = NULL;
  int rc = chi_load_text(l, o, "op", &name);
  if (rc) return rc;
  for (int i = 0; i < CHI_OP_COUNT; i++) {
    if (i == CHI_OP_CALL || !chi_streq(chi_op_name((chi_op)i), name)) continue;
    *op = (chi_op)i;
    return 0;
  }
  return chi_load_fail(
      l, "'op' must be set, copy, add, scale, zero, noise, project, token, cut, cut_zero or cut_scale%s%.40s%s",
      name ? ", not '" : "", name ? name : "", name ? "'" : "");
}

/* Keys that an op has beyond op, stack, site, layers, rows, generated. */
static const char *op_keys(chi_op op) {
  switch (op) {
    case CHI_OP_SET:
      return " heads cols value";
    case CHI_OP_COPY:
      return " heads cols source source_rows";
    case CHI_OP_ADD:
      return " heads cols value scale";
    case CHI_OP_SCALE:
      return " heads cols scale";
    case CHI_OP_ZERO:
      return " heads cols";
    case CHI_OP_NOISE:
      return " heads cols scale seed sample";
    case CHI_OP_PROJECT:
      return " heads cols value scale one_sided";
    case CHI_OP_TOKEN:
      return " tokens";
    case CHI_OP_CUT:
    case CHI_OP_CUT_ZERO:
      return " heads keys";
    case CHI_OP_CUT_SCALE:
      return " heads keys scale";
    case CHI_OP_CALL:
    case CHI_OP_COUNT:
      break;
  }
  return "";
}

/* "keys": [first, end], or a word for rows of the decoder that stand together. */
static int get_keys(chi_loader *l, const json_t *o, int branch, chi_intervention *iv) {
  bool there;
  chi_row_list k;
  const json_t *v = json_object_get(o, "keys");
  if (!json_is_string(v) || iv->stack != CHI_DECODER) {
    int rc = get_span(l, o, "keys", INT32_MAX, &iv->key_lo, &iv->key_hi, &there);
    return rc ? rc : there ? 0 : chi_load_fail(l, "'%s' needs 'keys': [first, end]", chi_op_name(iv->op));
  }
  int rc = chi_load_rows(l, v, branch, iv->stack, iv->site, &k);
  if (rc) return rc;
  if (k.n == 0 || k.r[k.n - 1] - k.r[0] != k.n - 1)
    return chi_load_fail(l, "'keys': the rows of \"%s\" do not stand together", json_string_value(v));
  iv->key_lo = k.r[0];
  iv->key_hi = k.r[k.n - 1] + 1;
  return 0;
}

static int get_numbers(chi_loader *l, const json_t *o, int branch, chi_intervention *iv) {
  int64_t seed = 0, sample = 0;
  const json_t *scale = json_object_get(o, "scale");
  bool edge = iv->op == CHI_OP_CUT || iv->op == CHI_OP_CUT_ZERO || iv->op == CHI_OP_CUT_SCALE;
  iv->scale = 1;
  if (scale && (!json_is_number(scale) || !isfinite((float)json_number_value(scale))))
    return chi_load_fail(l, "'scale' must be a number");
  if (scale) iv->scale = (float)json_number_value(scale);
  if (!scale && (iv->op == CHI_OP_SCALE || iv->op == CHI_OP_CUT_SCALE || iv->op == CHI_OP_NOISE))
    return chi_load_fail(l, "'%s' needs 'scale'", chi_op_name(iv->op));
  int rc = chi_load_int(l, o, "seed", 0, INT64_MAX, &seed);
  if (rc == 0) rc = chi_load_int(l, o, "sample", 0, UINT32_MAX, &sample);
  if (rc == 0) rc = get_bool(l, o, "one_sided", &iv->one_sided);
  if (rc) return rc;
  iv->seed = (uint64_t)seed;
  iv->sample = (uint32_t)sample;
  return edge ? get_keys(l, o, branch, iv) : 0;
}

static int add_edit(chi_loader *l, int branch, const chi_intervention *iv, int64_t width, bool generated) {
  chi_plan_entry *e = &l->f->entry[branch];
  if ((e->n_edits & (e->n_edits - 1)) == 0) { /* full at powers of two (and at 0) */
    chi_gen_edit *list = chi_arena_array(&l->f->arena, e->n_edits ? 2 * e->n_edits : 1, sizeof *list, l->err);
    if (!list) return CHI_ERR_MEMORY;
    if (e->n_edits) memcpy(list, e->edits, e->n_edits * sizeof *list);
    e->edits = list;
  }
  e->edits[e->n_edits++] = (chi_gen_edit){.iv = *iv, .width = width, .generated = generated};
  return 0;
}

int chi_load_intervention(chi_loader *l, const json_t *o, int branch) {
  int rc = 0;
  int64_t width = 0;
  char keys[200];
  chi_row_list rows;
  bool generated = false;
  chi_intervention iv = {0};
  if (!json_is_object(o)) return chi_load_fail(l, "must be an object");
  CHI_TRY(get_op(l, o, &iv.op));
  snprintf(keys, sizeof keys, "op stack site layers rows generated%s", op_keys(iv.op));
  CHI_TRY(chi_load_keys(l, o, keys));
  CHI_TRY(chi_load_site(l, o, &iv.stack, &iv.site));
  CHI_TRY(chi_load_layers(l, o, iv.stack, iv.site, &iv.layer_lo, &iv.layer_hi));
  CHI_TRY(chi_load_rows(l, json_object_get(o, "rows"), branch, iv.stack, iv.site, &rows));
  CHI_TRY(get_bool(l, o, "generated", &generated));
  generated = generated || rows.generated;
  iv.rows = rows.r;
  iv.n_rows = rows.n;
  CHI_TRY(get_part(l, o, &iv, branch, &width));
  CHI_TRY(get_numbers(l, o, branch, &iv));
  CHI_TRY(get_value(l, json_object_get(o, "value"), &iv, width));
  if (!iv.value && (iv.op == CHI_OP_SET || iv.op == CHI_OP_ADD || iv.op == CHI_OP_PROJECT))
    return chi_load_fail(l, "'%s' needs 'value'", chi_op_name(iv.op));
  if (generated && chi_site_is_pattern(iv.site) && iv.value)
    return chi_load_fail(l, "pattern values cannot act on generated rows");
  if (iv.op == CHI_OP_TOKEN) CHI_TRY(get_tokens(l, json_object_get(o, "tokens"), &iv));
  if (iv.op == CHI_OP_COPY) CHI_TRY(get_source(l, o, &iv));
  if (iv.n_rows > 0) CHI_TRY(chi_plan_intervene(l->f->plan, branch, &iv, iv.value ? width : 0, l->err));
  CHI_TRY(add_edit(l, branch, &iv, iv.value ? width : 0, generated));
out:
  return rc;
}

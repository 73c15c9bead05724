/* Building, ordering and checking plans. */
#include <string.h>

#include "site/site.h"

int chi_plan_new(chi_plan **out, chi_err *err) {
  *out = chi_calloc(1, sizeof **out, err);
  return *out ? 0 : CHI_ERR_MEMORY;
}

void chi_plan_free(chi_plan *p) {
  if (!p) return;
  for (size_t i = 0; i < p->n_branches; i++) chi_free(p->branch[i].iv);
  chi_free(p->branch);
  chi_free(p->capture);
  chi_arena_free(&p->arena);
  chi_free(p);
}

static int new_branch(chi_plan *p, int parent, int *branch, chi_err *err) {
  int rc = chi_grow((void **)&p->branch, &p->cap_branches, p->n_branches + 1, sizeof *p->branch, err);
  if (rc) return rc;
  *branch = (int)p->n_branches++;
  p->branch[*branch] = (chi_plan_branch){.parent = parent};
  return 0;
}

int chi_plan_root(chi_plan *p, const chi_input *in, int *branch, chi_err *err) {
  int rc = new_branch(p, -1, branch, err);
  if (rc == 0) p->branch[*branch].input = *in;
  return rc;
}

int chi_plan_child(chi_plan *p, int parent, int *branch, chi_err *err) {
  if (parent < 0 || (size_t)parent >= p->n_branches)
    return chi_fail(err, CHI_ERR_ARG, "plan: no parent branch %d", parent);
  return new_branch(p, parent, branch, err);
}

static const void *keep(chi_plan *p, const void *src, size_t n, size_t size, chi_err *err) {
  if (!src || n == 0) return NULL;
  void *dst = chi_arena_array(&p->arena, n, size, err);
  if (dst) memcpy(dst, src, n * size);
  return dst;
}

int chi_plan_intervene(chi_plan *p, int branch, const chi_intervention *iv, int64_t width, chi_err *err) {
  if (branch < 0 || (size_t)branch >= p->n_branches) return chi_fail(err, CHI_ERR_ARG, "plan: no branch %d", branch);
  if (iv->n_rows < 0 || width < 0 || iv->value_rows < 0) return chi_fail(err, CHI_ERR_ARG, "plan: negative count");
  chi_plan_branch *b = &p->branch[branch];
  size_t cap = (size_t)b->cap;
  int rc = chi_grow((void **)&b->iv, &cap, (size_t)b->count + 1, sizeof *b->iv, err);
  if (rc) return rc;
  b->cap = (int)cap;
  chi_intervention c = *iv;
  size_t n = (size_t)iv->n_rows;
  c.rows = keep(p, iv->rows, n, sizeof *c.rows, err);
  c.source_rows = keep(p, iv->source_rows, n, sizeof *c.source_rows, err);
  c.tokens = keep(p, iv->tokens, n, sizeof *c.tokens, err);
  c.value = keep(p, iv->value, (size_t)iv->value_rows * (size_t)width, sizeof *c.value, err);
  if ((iv->rows && n && !c.rows) || (iv->source_rows && n && !c.source_rows) || (iv->tokens && n && !c.tokens) ||
      (iv->value && iv->value_rows && width && !c.value))
    return CHI_ERR_MEMORY;
  b->iv[b->count++] = c;
  return 0;
}

int chi_plan_reword(chi_plan *p, int parent, const int32_t *whole, const int32_t *tokens, int32_t n_rows,
                    int32_t image_row, int32_t n_image, int *branch, chi_err *err) {
  int32_t n = 0, *rows = chi_arena_array(&p->arena, (size_t)n_rows, sizeof *rows, err);
  int32_t *ids = chi_arena_array(&p->arena, (size_t)n_rows, sizeof *ids, err);
  if (!rows || !ids) return CHI_ERR_MEMORY;
  for (int32_t r = 0; r < n_rows; r++) {
    bool picture = r >= image_row && r < image_row + n_image;
    if (picture || tokens[r] == whole[r]) continue;
    rows[n] = r;
    ids[n++] = tokens[r];
  }
  *branch = parent;
  if (n == 0) return 0;
  int rc = chi_plan_child(p, parent, branch, err);
  chi_intervention iv = {
      .op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .rows = rows, .n_rows = n, .tokens = ids};
  return rc ? rc : chi_plan_intervene(p, *branch, &iv, 0, err);
}

int chi_plan_capture(chi_plan *p, const chi_capture *c, int *id, chi_err *err) {
  int rc = chi_grow((void **)&p->capture, &p->cap_captures, p->n_captures + 1, sizeof *p->capture, err);
  if (rc) return rc;
  chi_capture k = *c;
  k.rows = keep(p, c->rows, (size_t)c->n_rows, sizeof *k.rows, err);
  if (c->n_rows > 0 && !k.rows) return CHI_ERR_MEMORY;
  if (id) *id = (int)p->n_captures;
  p->capture[p->n_captures++] = k;
  return 0;
}

int chi_plan_root_of(const chi_plan *p, int branch) {
  while (p->branch[branch].parent >= 0) branch = p->branch[branch].parent;
  return branch;
}

/* Depth-first: a branch is placed once its parent and its sources are. state: 0 new, 1 on the stack, 2 placed. An
 * explicit stack keeps deep plans from exhausting the C stack. */
int chi_plan_order(const chi_plan *p, int *order, chi_err *err) {
  int rc = 0;
  size_t n = p->n_branches, placed = 0, sp;
  uint8_t *state = chi_calloc(n, 1, err);
  int *stack = chi_calloc(n, sizeof *stack, err);
  int *next = chi_calloc(n, sizeof *next, err); /* next dependency to look at: -1+1 = parent, then interventions */
  if (!state || !stack || !next) {
    rc = CHI_ERR_MEMORY;
    goto out;
  }
  for (size_t start = 0; start < n; start++) {
    if (state[start]) continue;
    sp = 0;
    stack[sp++] = (int)start;
    state[start] = 1;
    while (sp > 0) {
      int b = stack[sp - 1], dep = -1;
      const chi_plan_branch *br = &p->branch[b];
      while (next[b] <= br->count && dep < 0) {
        int i = next[b]++;
        if (i == 0)
          dep = br->parent;
        else if (br->iv[i - 1].op == CHI_OP_COPY)
          dep = br->iv[i - 1].source;
        if (dep >= 0 && ((size_t)dep >= n)) {
          rc = chi_fail(err, CHI_ERR_ARG, "plan: branch %d copies from branch %d, which does not exist", b, dep);
          goto out;
        }
        if (dep >= 0 && state[dep] == 2) dep = -1;
      }
      if (dep >= 0) {
        if (state[dep] == 1) {
          rc = chi_fail(err, CHI_ERR_ARG,
                        "plan: branches %d and %d depend on each other (a cycle of parents and sources)", b, dep);
          goto out;
        }
        state[dep] = 1;
        stack[sp++] = dep;
      } else {
        state[b] = 2;
        order[placed++] = b;
        sp--;
      }
    }
  }
out:
  chi_free(state);
  chi_free(stack);
  chi_free(next);
  return rc;
}

/* ---- checking -------------------------------------------------------------------------------------------- */
/* Rows that a site has in a branch: decoder rows come from its root's input, image_embed counts picture rows. */
static int32_t site_rows(const chi_plan *p, const chi_shape *s, int branch, chi_stack stack, chi_site site) {
  const chi_input *in = &p->branch[chi_plan_root_of(p, branch)].input;
  if (stack == CHI_DECODER && site != CHI_SITE_IMAGE_EMBED) return in->n_rows;
  if (!in->pixels) return 0;
  return site == CHI_SITE_IMAGE_EMBED ? s->n_image_rows : s->stack[stack].rows;
}

static int check_rows(const int32_t *rows, int32_t n, int32_t limit, const char *what, int branch, chi_err *err) {
  if (n <= 0 || !rows) return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s names no rows", branch, what);
  if (limit <= 0) return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s: its prompt has no picture", branch, what);
  for (int32_t i = 0; i < n; i++) {
    if (rows[i] < 0 || rows[i] >= limit)
      return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s: row %d is outside 0..%d", branch, what, rows[i],
                      limit - 1);
    if (i && rows[i] <= rows[i - 1])
      return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s: rows must ascend without repeats", branch, what);
  }
  return 0;
}

static int check_site(const chi_shape *s, chi_stack stack, chi_site site, int lo, int hi, int branch, chi_err *err) {
  if ((unsigned)stack >= CHI_STACK_COUNT || (unsigned)site >= CHI_SITE_COUNT || chi_site_width(s, stack, site, 1) == 0)
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: this model has no site '%s' in its %s", branch,
                    (unsigned)site < CHI_SITE_COUNT ? chi_site_get(site)->name : "?", chi_stack_name(stack));
  if (chi_site_get(site)->per_layer && stack != CHI_PROJECTOR && (lo < 0 || hi > s->stack[stack].layers || lo >= hi))
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s.%s: layers [%d, %d) are not within 0..%d", branch,
                    chi_stack_name(stack), chi_site_get(site)->name, lo, hi, s->stack[stack].layers - 1);
  int every = s->stack[stack].cross_every;
  if (chi_site_is_cross(site) && (lo + every - 1) / every * every >= hi) /* no multiple of `every` in [lo, hi) */
    return chi_fail(err, CHI_ERR_ARG,
                    "plan: branch %d: %s.%s: layer %d has no cross-attention; every %d. layer from 0 has", branch,
                    chi_stack_name(stack), chi_site_get(site)->name, lo, every);
  return 0;
}

static int check_op(const chi_plan *p, const chi_shape *s, int b, const chi_intervention *iv, chi_err *err) {
  const char *op = chi_op_name(iv->op), *site = chi_site_get(iv->site)->name;
  bool edge = iv->op == CHI_OP_CUT || iv->op == CHI_OP_CUT_ZERO || iv->op == CHI_OP_CUT_SCALE;
  int32_t rows = site_rows(p, s, b, iv->stack, iv->site),
          keys = iv->site == CHI_SITE_X_PATTERN ? s->stack[iv->stack].cross_keys : rows;
  if (edge && !chi_site_is_pattern(iv->site))
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: '%s' acts on pattern, not on %s", b, op, site);
  if (edge && (iv->key_lo < 0 || iv->key_hi > keys || iv->key_lo >= iv->key_hi))
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: keys [%d, %d) are not within 0..%d", b, iv->key_lo, iv->key_hi,
                    keys - 1);
  if (iv->op == CHI_OP_TOKEN) {
    if (iv->site != CHI_SITE_EMBED || iv->stack != CHI_DECODER || !iv->tokens)
      return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: 'token' acts on decoder embed and needs ids", b);
    for (int32_t i = 0; i < iv->n_rows; i++)
      if (iv->tokens[i] < 0 || iv->tokens[i] >= s->vocab)
        return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: token id %d is outside the vocabulary of %d", b,
                        iv->tokens[i], s->vocab);
  }
  if ((iv->op == CHI_OP_SET || iv->op == CHI_OP_ADD || iv->op == CHI_OP_PROJECT) &&
      (!iv->value || (iv->value_rows != 1 && iv->value_rows != iv->n_rows)))
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: '%s' at %s needs a value for each row, or one for all", b, op,
                    site);
  if (iv->op == CHI_OP_CALL && !iv->call)
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: 'call' without a function", b);
  if (chi_site_is_pattern(iv->site) && iv->value && iv->n_rows != 1)
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: pattern values are given one row at a time", b);
  int32_t limit = chi_site_get(iv->site)->unit == CHI_UNIT_HEAD ? chi_site_heads(s, iv->stack, iv->site)
                                                                : (int32_t)chi_site_width(s, iv->stack, iv->site, 1);
  if (iv->part_lo < 0 || iv->part_hi > limit || iv->part_lo > iv->part_hi ||
      (iv->part_lo == iv->part_hi && iv->part_hi != 0))
    return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: %s has %d %s; [%d, %d) is not among them", b, site, limit,
                    chi_site_get(iv->site)->unit == CHI_UNIT_HEAD ? "heads" : "columns", iv->part_lo, iv->part_hi);
  if (iv->op == CHI_OP_COPY) {
    if (iv->source < 0 || (size_t)iv->source >= p->n_branches)
      return chi_fail(err, CHI_ERR_ARG, "plan: branch %d copies from branch %d, which does not exist", b, iv->source);
    int32_t limit_src = site_rows(p, s, iv->source, iv->stack, iv->site);
    for (int32_t i = 0; i < iv->n_rows; i++) {
      int32_t r = iv->source_rows ? iv->source_rows[i] : iv->rows[i];
      if (r < 0 || r >= limit_src)
        return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: source row %d is outside branch %d's rows 0..%d", b, r,
                        iv->source, limit_src - 1);
      if (chi_site_is_pattern(iv->site) && r != iv->rows[i])
        return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: pattern is copied between equal rows only", b);
    }
  }
  return 0;
}

static int check_branch(const chi_plan *p, const chi_shape *s, int b, chi_err *err) {
  const chi_plan_branch *br = &p->branch[b];
  int rc;
  if (br->parent < 0) {
    const chi_input *in = &br->input;
    int32_t max = s->stack[CHI_DECODER].rows;
    if (in->n_rows <= 0) return chi_fail(err, CHI_ERR_ARG, "the prompt is empty");
    if (max > 0 && in->n_rows > max)
      return chi_fail(err, CHI_ERR_ARG, "the prompt has %d rows; the model's context holds %d: shorten the question",
                      in->n_rows, max);
    for (int32_t i = 0; i < in->n_rows; i++) {
      bool picture = i >= in->image_row && i < in->image_row + s->n_image_rows;
      if (in->tokens[i] == CHI_PICTURE_ID && ((in->pixels && picture) || in->cache)) continue;
      if (in->tokens[i] < 0 || in->tokens[i] >= s->vocab)
        return chi_fail(err, CHI_ERR_ARG, "token id %d at row %d is outside the vocabulary of %d", in->tokens[i], i,
                        s->vocab);
    }
    if (in->pixels &&
        (!s->stack[CHI_VISION].present || in->image_row < 0 || in->image_row + s->n_image_rows > in->n_rows))
      return chi_fail(err, CHI_ERR_ARG, "the prompt has no room for the picture's %d rows", s->n_image_rows);
  }
  for (int i = 0; i < br->count; i++) {
    const chi_intervention *iv = &br->iv[i];
    if ((unsigned)iv->op >= CHI_OP_COUNT)
      return chi_fail(err, CHI_ERR_ARG, "plan: branch %d: unknown op %d", b, (int)iv->op);
    if ((rc = check_site(s, iv->stack, iv->site, iv->layer_lo, iv->layer_hi, b, err)) != 0) return rc;
    int32_t rows = site_rows(p, s, b, iv->stack, iv->site);
    if ((rc = check_rows(iv->rows, iv->n_rows, rows, chi_site_get(iv->site)->name, b, err)) != 0) return rc;
    if ((rc = check_op(p, s, b, iv, err)) != 0) return rc;
  }
  return 0;
}

int chi_plan_check(const chi_plan *p, const chi_shape *s, chi_err *err) {
  int rc;
  if (p->n_branches == 0) return chi_fail(err, CHI_ERR_ARG, "plan: no branches");
  for (size_t b = 0; b < p->n_branches; b++)
    if ((rc = check_branch(p, s, (int)b, err)) != 0) return rc;
  for (size_t i = 0; i < p->n_captures; i++) {
    const chi_capture *c = &p->capture[i];
    if (c->branch < 0 || (size_t)c->branch >= p->n_branches)
      return chi_fail(err, CHI_ERR_ARG, "plan: capture of branch %d, which does not exist", c->branch);
    if ((rc = check_site(s, c->stack, c->site, c->layer, c->layer + 1, c->branch, err)) != 0) return rc;
    int32_t rows = site_rows(p, s, c->branch, c->stack, c->site);
    if ((rc = check_rows(c->rows, c->n_rows, rows, chi_site_get(c->site)->name, c->branch, err)) != 0) return rc;
  }
  return 0;
}

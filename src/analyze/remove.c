/* Removing patches as branches of a plan; see remove.h. */
#include "analyze/remove.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const chi_removal_name[CHI_REMOVALS] = {"zero",     "mean",     "blur",       "noise",
                                                    "cut-text", "cut-last", "pixel-grey", "pixel-blur"};

enum { kSigma = 2 };                                /* of both blurs, in patches */
static const size_t kPlanBytes = (size_t)256 << 20; /* values and pixels that one plan may hold */

int chi_removal_parse(chi_removal *out, const char *name, chi_err *err) {
  chi_str s = {0};
  for (int i = 0; i < CHI_REMOVALS; i++)
    if (chi_streq(name, chi_removal_name[i])) {
      *out = (chi_removal)i;
      return 0;
    }
  for (int i = 0; i < CHI_REMOVALS; i++) chi_str_addf(&s, "%s%s", i ? ", " : "", chi_removal_name[i]);
  int rc = chi_fail(err, CHI_ERR_ARG, "there is no way of removing '%s'; there are %s", name, s.s ? s.s : "");
  chi_str_free(&s);
  return rc;
}

static bool of_pixels(chi_removal how) { return how == CHI_REMOVE_PIXEL_GREY || how == CHI_REMOVE_PIXEL_BLUR; }
static bool of_edges(chi_removal how) { return how == CHI_REMOVE_CUT_TEXT || how == CHI_REMOVE_CUT_LAST; }

bool chi_removal_possible(const chi_remover *r, chi_removal how) {
  return (how != CHI_REMOVE_BLUR && !of_pixels(how)) || r->grid.grid_w > 0;
}

/* ---- the clean run --------------------------------------------------------------------------------------- */
static int take_clean(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  chi_remover *r = ud;
  if (capture == 0) {
    memcpy(r->visual + i * width, v, (size_t)width * sizeof *v);
    return 0;
  }
  if (r->target < 0) r->target = chi_argmax(v, width);
  r->clean = chi_metrics_of(v, width, r->target, -1, NULL);
  return 0;
}

static int clean_run(chi_remover *r, chi_err *err) {
  int rc = 0, root;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(r->prompt);
  int32_t last = r->prompt->n_rows - 1, *rows = chi_arena_array(&r->arena, (size_t)r->n, sizeof *rows, err);
  CHI_TRY(rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < r->n; i++) rows[i] = r->grid.first + i;
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .layer = -1, .rows = rows, .n_rows = r->n};
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  c.site = CHI_SITE_LOGITS, c.rows = &last, c.n_rows = 1;
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.mem = r->mem, .on_capture = take_clean, .ud = r};
  CHI_TRY(chi_run_plan(&r->model->net, plan, &o, err));
out:
  chi_plan_free(plan);
  return rc;
}

int chi_remover_open(chi_remover **out, const chi_model *m, const chi_prompt *p, int32_t target, uint64_t seed,
                     size_t mem, chi_err *err) {
  int rc = 0;
  if (p->n_image == 0)
    return chi_fail(err, CHI_ERR_ARG, "the prompt has no picture, so there are no patches to remove or to score");
  if (target >= m->net.decoder.vocab)
    return chi_fail(err, CHI_ERR_ARG, "token %d is outside the vocabulary of %d", target, m->net.decoder.vocab);
  chi_remover *r = chi_calloc(1, sizeof *r, err);
  if (!r) return CHI_ERR_MEMORY;
  r->model = m, r->prompt = p, r->target = target < 0 ? -1 : target, r->seed = seed, r->mem = mem;
  r->grid = chi_patches_of(m, p);
  r->n = r->grid.n, r->d = m->net.decoder.spec.d;
  r->visual = chi_arena_array(&r->arena, (size_t)r->n * (size_t)r->d, sizeof *r->visual, err);
  CHI_TRY(r->visual ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(clean_run(r, err));
out:
  if (rc)
    chi_remover_close(r);
  else
    *out = r;
  return rc;
}

void chi_remover_close(chi_remover *r) {
  if (!r) return;
  chi_arena_free(&r->arena);
  chi_free(r);
}

/* ---- what comes in a patch's place ------------------------------------------------------------------------ */
static int fill_mean(chi_remover *r, chi_err *err) {
  float *y = chi_arena_array(&r->arena, (size_t)r->d, sizeof *y, err);
  if (!y) return CHI_ERR_MEMORY;
  for (int32_t c = 0; c < r->d; c++) {
    double sum = 0;
    for (int32_t i = 0; i < r->n; i++) sum += (double)r->visual[(int64_t)i * r->d + c];
    y[c] = (float)(sum / r->n);
  }
  r->fill[CHI_REMOVE_MEAN] = y;
  return 0;
}

int chi_remover_mean(chi_remover *r, const float **mean, chi_err *err) {
  int rc = r->fill[CHI_REMOVE_MEAN] ? 0 : fill_mean(r, err);
  *mean = r->fill[CHI_REMOVE_MEAN];
  return rc;
}

static int fill_noise(chi_remover *r, chi_err *err) {
  float *y = chi_arena_array(&r->arena, (size_t)r->n * (size_t)r->d, sizeof *y, err);
  if (!y) return CHI_ERR_MEMORY;
  for (int32_t c = 0; c < r->d; c++) {
    double sum = 0, sq = 0;
    for (int32_t i = 0; i < r->n; i++) sum += (double)r->visual[(int64_t)i * r->d + c];
    double mean = sum / r->n;
    for (int32_t i = 0; i < r->n; i++) {
      double x = (double)r->visual[(int64_t)i * r->d + c] - mean;
      sq += x * x;
    }
    double sd = sqrt(sq / r->n);
    for (int32_t i = 0; i < r->n; i++)
      y[(int64_t)i * r->d + c] = (float)(mean + sd * (double)chi_rng_normal(r->seed, 0, (uint32_t)i, (uint32_t)c));
  }
  r->fill[CHI_REMOVE_NOISE] = y;
  return 0;
}

/* One pass of a Gaussian over lines of `n` values `step` apart, ends repeated. x and y differ. */
static void blur_line(const float *x, float *y, int64_t n, int64_t step, double sigma) {
  int64_t reach = (int64_t)ceil(3 * sigma);
  for (int64_t i = 0; i < n; i++) {
    double sum = 0, w = 0;
    for (int64_t k = -reach; k <= reach; k++) {
      int64_t at = i + k < 0 ? 0 : i + k >= n ? n - 1 : i + k;
      double g = chi_exp64(-0.5 * (double)(k * k) / (sigma * sigma));
      sum += g * (double)x[at * step];
      w += g;
    }
    y[i * step] = (float)(sum / w);
  }
}

/* planes of h x w; value (r, c) of plane p stands at p*plane + (r*w + c)*step. */
static int blur(const float *x, float *y, int64_t planes, int64_t plane, int64_t h, int64_t w, int64_t step,
                double sigma, chi_err *err) {
  float *tmp = chi_calloc((size_t)(h * w * step), sizeof *tmp, err);
  if (!tmp) return CHI_ERR_MEMORY;
  for (int64_t p = 0; p < planes; p++) {
    for (int64_t r = 0; r < h; r++) blur_line(x + p * plane + r * w * step, tmp + r * w * step, w, step, sigma);
    for (int64_t c = 0; c < w; c++) blur_line(tmp + c * step, y + p * plane + c * step, h, w * step, sigma);
  }
  chi_free(tmp);
  return 0;
}

static size_t pixel_count(const chi_remover *r) {
  const chi_vision *v = &r->model->net.vision;
  return 3 * (size_t)v->image_h * (size_t)v->image_w;
}

static int fill_pixels(chi_remover *r, chi_removal how, chi_err *err) {
  const chi_vision *v = &r->model->net.vision;
  int64_t plane = (int64_t)v->image_h * v->image_w;
  float *y = chi_arena_array(&r->arena, pixel_count(r), sizeof *y, err);
  if (!y) return CHI_ERR_MEMORY;
  r->fill[how] = y;
  if (how == CHI_REMOVE_PIXEL_BLUR)
    return blur(r->prompt->pixels, y, 3, plane, v->image_h, v->image_w, 1, (double)kSigma * v->patch, err);
  for (int64_t c = 0; c < 3; c++) {
    double sum = 0;
    for (int64_t i = 0; i < plane; i++) sum += (double)r->prompt->pixels[c * plane + i];
    for (int64_t i = 0; i < plane; i++) y[c * plane + i] = (float)(sum / (double)plane);
  }
  return 0;
}

static int need_fill(chi_remover *r, chi_removal how, chi_err *err) {
  if (r->fill[how]) return 0;
  switch (how) {
    case CHI_REMOVE_MEAN:
      return fill_mean(r, err);
    case CHI_REMOVE_NOISE:
      return fill_noise(r, err);
    case CHI_REMOVE_BLUR:
      r->fill[how] = chi_arena_array(&r->arena, (size_t)r->n * (size_t)r->d, sizeof(float), err);
      if (!r->fill[how]) return CHI_ERR_MEMORY;
      for (int32_t c = 0; c < r->d; c++) {
        int rc = blur(r->visual + c, r->fill[how] + c, 1, 0, r->grid.grid_h, r->grid.grid_w, r->d, kSigma, err);
        if (rc) return rc;
      }
      return 0;
    case CHI_REMOVE_PIXEL_GREY:
    case CHI_REMOVE_PIXEL_BLUR:
      return fill_pixels(r, how, err);
    default:
      return 0;
  }
}

/* ---- plans ------------------------------------------------------------------------------------------------ */
/* Sets that some of the questions about one picture ask for. The longest prompt is the root; another question is a
 * child in which the words' tokens are its own, read at its own last row: rows behind that are never looked at. */
typedef struct batch {
  chi_remover *const *r; /* [n]: the questions */
  int n, longest;
  chi_removal how;
  chi_plan *plan;
  int root;
  int32_t *rows; /* scratch [max(n patches, rows of a prompt)] */
  float *value;  /* scratch [n patches][d] */
  double *logp;  /* [sets of the plan][n] */
  int32_t *at;   /* of each capture: its place in logp */
  chi_err *err;
} batch;

/* parent, but with question k's words. */
static int add_question(batch *b, int k, int parent, int *branch) {
  const chi_prompt *p = b->r[k]->prompt;
  return chi_plan_reword(b->plan, parent, b->r[b->longest]->prompt->tokens, p->tokens, p->n_rows, p->image_row,
                         p->n_image, branch, b->err);
}

static int add_vectors(batch *b, const uint8_t *set, int *branch) {
  int rc = 0;
  const chi_remover *r = b->r[b->longest];
  int32_t m = 0;
  bool one = b->how == CHI_REMOVE_MEAN;
  const float *fill = r->fill[b->how];
  for (int32_t i = 0; i < r->n; i++) {
    if (!set[i]) continue;
    if (fill && !one) memcpy(b->value + (int64_t)m * r->d, fill + (int64_t)i * r->d, (size_t)r->d * sizeof *fill);
    b->rows[m++] = r->grid.first + i;
  }
  CHI_TRY(chi_plan_child(b->plan, b->root, branch, b->err));
  if (m == 0) goto out;
  chi_intervention iv = {.op = fill ? CHI_OP_SET : CHI_OP_ZERO,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_EMBED,
                         .rows = b->rows,
                         .n_rows = m,
                         .value = fill ? (one ? fill : b->value) : NULL,
                         .value_rows = fill ? (one ? 1 : m) : 0};
  CHI_TRY(chi_plan_intervene(b->plan, *branch, &iv, fill ? r->d : 0, b->err));
out:
  return rc;
}

/* parent: question k's run with all edges. */
static int add_edges(batch *b, const uint8_t *set, int k, int parent, int *branch) {
  int rc = 0;
  const chi_remover *r = b->r[k];
  const chi_prompt *p = r->prompt;
  int32_t first = b->how == CHI_REMOVE_CUT_LAST ? p->n_rows - 1 : p->image_row + p->n_image, m = 0;
  for (int32_t i = first; i < p->n_rows; i++) b->rows[m++] = i;
  CHI_TRY(chi_plan_child(b->plan, parent, branch, b->err));
  for (int32_t i = 0; i < r->n && m > 0; i++) {
    int32_t lo = i;
    while (i < r->n && set[i]) i++;
    if (i == lo) continue;
    chi_intervention iv = {.op = CHI_OP_CUT,
                           .stack = CHI_DECODER,
                           .site = CHI_SITE_PATTERN,
                           .layer_lo = 0,
                           .layer_hi = r->model->net.decoder.spec.layers,
                           .rows = b->rows,
                           .n_rows = m,
                           .key_lo = r->grid.first + lo,
                           .key_hi = r->grid.first + i};
    CHI_TRY(chi_plan_intervene(b->plan, *branch, &iv, 0, b->err));
  }
out:
  return rc;
}

/* Another picture is another root: the tower sees all of it. */
static int add_pixels(batch *b, const uint8_t *set, int *branch) {
  const chi_remover *r = b->r[b->longest];
  const chi_vision *v = &r->model->net.vision;
  int64_t plane = (int64_t)v->image_h * v->image_w;
  float *px = chi_arena_array(&b->plan->arena, pixel_count(r), sizeof *px, b->err);
  if (!px) return CHI_ERR_MEMORY;
  memcpy(px, r->prompt->pixels, pixel_count(r) * sizeof *px);
  for (int32_t i = 0; i < r->n; i++) {
    if (!set[i]) continue;
    int64_t at = (int64_t)(i / r->grid.grid_w) * v->patch * v->image_w + (int64_t)(i % r->grid.grid_w) * v->patch;
    for (int64_t c = 0; c < 3; c++)
      for (int64_t y = 0; y < v->patch; y++)
        memcpy(px + c * plane + at + y * v->image_w, r->fill[b->how] + c * plane + at + y * v->image_w,
               (size_t)v->patch * sizeof *px);
  }
  chi_input in = chi_prompt_input(r->prompt);
  in.pixels = px;
  return chi_plan_root(b->plan, &in, branch, b->err);
}

static int take_logp(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  const batch *b = ud;
  int32_t at = b->at[capture];
  (void)i;
  b->logp[at] = (double)v[b->r[at % b->n]->target] - chi_logsumexp(v, width);
  return 0;
}

/* Every question that asks for this set: a branch and the logits at its last row. clean [n]: branch of each question
 * with the whole picture, for edges. */
static int add_set(batch *b, const uint8_t *set, const uint8_t *asks, int32_t s, const int *clean) {
  int rc = 0, removed = -1;
  for (int k = 0; k < b->n; k++) {
    int branch = 0;
    if (asks && !asks[k]) continue;
    if (of_edges(b->how)) {
      CHI_TRY(add_edges(b, set, k, clean[k], &branch));
    } else {
      if (removed < 0) CHI_TRY(of_pixels(b->how) ? add_pixels(b, set, &removed) : add_vectors(b, set, &removed));
      CHI_TRY(add_question(b, k, removed, &branch));
    }
    int id;
    int32_t last = b->r[k]->prompt->n_rows - 1;
    chi_capture c = {
        .branch = branch, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = &last, .n_rows = 1};
    CHI_TRY(chi_plan_capture(b->plan, &c, &id, b->err));
    b->at[id] = s * b->n + k;
  }
out:
  return rc;
}

static int run_batch(batch *b, const uint8_t *set, const uint8_t *asks, int32_t n_sets) {
  int rc = 0;
  const chi_remover *r = b->r[b->longest];
  chi_input in = chi_prompt_input(r->prompt);
  int *clean = chi_calloc((size_t)b->n, sizeof *clean, b->err);
  b->at = chi_calloc((size_t)n_sets * (size_t)b->n, sizeof *b->at, b->err);
  CHI_TRY(clean && b->at ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_plan_new(&b->plan, b->err));
  if (!of_pixels(b->how)) CHI_TRY(chi_plan_root(b->plan, &in, &b->root, b->err));
  for (int k = 0; k < b->n && of_edges(b->how); k++) CHI_TRY(add_question(b, k, b->root, &clean[k]));
  for (int32_t s = 0; s < n_sets; s++)
    CHI_TRY(add_set(b, set + (int64_t)s * r->n, asks ? asks + (int64_t)s * b->n : NULL, s, clean));
  if (b->plan->n_captures == 0) goto out; /* nobody asks */
  chi_run_opts o = {.mem = r->mem, .on_capture = take_logp, .ud = b, .what = r->what};
  CHI_TRY(chi_run_plan(&r->model->net, b->plan, &o, b->err));
out:
  chi_plan_free(b->plan);
  chi_free(b->at);
  chi_free(clean);
  b->plan = NULL, b->at = NULL;
  return rc;
}

/* May two questions share the rows of the picture? */
static bool same_picture(const chi_remover *x, const chi_remover *y) {
  const chi_prompt *p = x->prompt, *q = y->prompt;
  size_t head = (size_t)(p->image_row + p->n_image) * sizeof *p->tokens;
  return x == y || (x->model == y->model && x->seed == y->seed && p->image_row == q->image_row &&
                    p->n_image == q->n_image && memcmp(p->tokens, q->tokens, head) == 0 &&
                    memcmp(p->pixels, q->pixels, pixel_count(x) * sizeof *p->pixels) == 0);
}

static int remove_together(batch *b, const uint8_t *set, const uint8_t *asks, int32_t n_sets, double *logp) {
  int rc = 0;
  for (int k = 1; k < b->n; k++)
    if (b->r[k]->prompt->n_rows > b->r[b->longest]->prompt->n_rows) b->longest = k;
  chi_remover *r = b->r[b->longest];
  chi_removal how = b->how;
  size_t room = (size_t)(r->n > r->prompt->n_rows ? r->n : r->prompt->n_rows), most = 0;
  b->rows = chi_calloc(room, sizeof *b->rows, b->err);
  b->value = chi_calloc((size_t)r->n * (size_t)r->d, sizeof *b->value, b->err);
  CHI_TRY(b->rows && b->value ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(need_fill(r, how, b->err));
  /* bytes of the largest set: own pixels, own vectors, or next to nothing */
  for (int32_t s = 0; s < n_sets; s++) {
    size_t k = 0;
    for (int32_t i = 0; i < r->n; i++) k += set[(int64_t)s * r->n + i] != 0;
    if (k > most) most = k;
  }
  size_t each = of_pixels(how)                           ? pixel_count(r) * sizeof(float)
                : r->fill[how] && how != CHI_REMOVE_MEAN ? most * (size_t)r->d * sizeof(float)
                                                         : 4096;
  size_t step = kPlanBytes / (each + 1) + 1;
  for (int32_t s = 0; s < n_sets; s += (int32_t)step) {
    int32_t m = (size_t)(n_sets - s) < step ? n_sets - s : (int32_t)step;
    b->logp = logp + (int64_t)s * b->n;
    CHI_TRY(run_batch(b, set + (int64_t)s * r->n, asks ? asks + (int64_t)s * b->n : NULL, m));
  }
out:
  chi_free(b->rows);
  chi_free(b->value);
  return rc;
}

int chi_remove_of(chi_remover *const *r, int n, chi_removal how, const uint8_t *set, const uint8_t *asks,
                  int32_t n_sets, double *logp, chi_err *err) {
  int rc = 0;
  bool together = true;
  double *one = NULL;
  uint8_t *wants = NULL;
  for (int k = 0; k < n; k++) {
    if (!chi_removal_possible(r[k], how))
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "removal by %s: this model's picture rows are no patches on a grid",
                      chi_removal_name[how]);
    if (r[k]->n != r[0]->n)
      return chi_fail(err, CHI_ERR_ARG, "removal: pictures of %d and of %d patches", r[0]->n, r[k]->n);
    together = together && same_picture(r[0], r[k]);
  }
  for (int64_t i = 0; i < (int64_t)n_sets * n; i++) logp[i] = NAN;
  if (together) return remove_together(&(batch){.r = r, .n = n, .how = how, .err = err}, set, asks, n_sets, logp);
  one = chi_calloc((size_t)n_sets, sizeof *one, err);
  wants = chi_calloc((size_t)n_sets, 1, err);
  CHI_TRY(one && wants ? 0 : CHI_ERR_MEMORY);
  for (int k = 0; k < n; k++) {
    for (int32_t s = 0; s < n_sets; s++) wants[s] = !asks || asks[(int64_t)s * n + k];
    CHI_TRY(chi_remove_of(r + k, 1, how, set, wants, n_sets, one, err));
    for (int32_t s = 0; s < n_sets; s++) logp[(int64_t)s * n + k] = one[s];
  }
out:
  chi_free(one);
  chi_free(wants);
  return rc;
}

int chi_remove(chi_remover *r, chi_removal how, const uint8_t *set, int32_t n_sets, double *logp, chi_err *err) {
  return chi_remove_of(&r, 1, how, set, NULL, n_sets, logp, err);
}

/* ---- each patch alone ------------------------------------------------------------------------------------- */
static int remove_singles(chi_remover *const *r, int n, chi_removal how, double *logp, chi_err *err) {
  int32_t m = r[0]->n;
  uint8_t *set = chi_calloc((size_t)m * (size_t)m, 1, err);
  if (!set) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < m; i++) set[(int64_t)i * m + i] = 1;
  int rc = chi_remove_of(r, n, how, set, NULL, m, logp, err);
  chi_free(set);
  return rc;
}

int chi_remove_each(chi_remover *r, chi_removal how, double *logp, chi_err *err) {
  if (!r->each[how]) return remove_singles(&r, 1, how, logp, err);
  memcpy(logp, r->each[how], (size_t)r->n * sizeof *logp);
  return 0;
}

int chi_remove_each_of(chi_remover *const *r, int n, chi_removal how, chi_err *err) {
  int rc = 0;
  size_t m = n > 0 ? (size_t)r[0]->n : 0;
  if (n == 0) return 0;
  double *logp = chi_calloc(m * (size_t)n, sizeof *logp, err);
  CHI_TRY(logp ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(remove_singles(r, n, how, logp, err));
  for (int k = 0; k < n; k++) {
    double *own = chi_arena_array(&r[k]->arena, m, sizeof *own, err);
    CHI_TRY(own ? 0 : CHI_ERR_MEMORY);
    for (size_t i = 0; i < m; i++) own[i] = logp[i * (size_t)n + (size_t)k];
    r[k]->each[how] = own;
  }
out:
  chi_free(logp);
  return rc;
}

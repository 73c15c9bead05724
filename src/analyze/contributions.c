/* Attention contributions; see contributions.h. */
#include "analyze/contributions.h"

#include <math.h>
#include <string.h>

#include "analyze/patches.h"
#include "analyze/projection.h"
#include "analyze/states.h"

const char *const chi_contrib_control_name[CHI_CONTRIB_CONTROLS] = {"flipped", "rolled", "shuffled"};
enum { kAsItIs = -1 };
enum { kBatch = 128, kPanel = 32, kMix = 3 }; /* captures of a layer: values, weights, mixed values */

typedef struct work {
  chi_contributions *c;
  const chi_block_spec *k;
  chi_plan *plan;
  chi_states *states;
  chi_arena tmp;
  double *gram;  /* [heads][hd][hd]: W_O[h]^T W_O[h] */
  double *vnorm; /* [heads][n_from]: |W_O[h] v_j| */
  float *panel, *in, *vec;
  int32_t l;    /* within c->layer */
  int32_t down; /* rows of patches that the rolled picture is moved by */
  int64_t panel_rows;
} work;

static const chi_state *state(const work *w, int site) { return &w->states->state[w->l * kMix + site]; }

/* A[l,h][i,j]; 0 where j comes after i. */
static float weight(const work *w, int32_t h, int32_t to, int32_t from) {
  const chi_state *s = state(w, 1);
  int32_t j = w->c->from[from];
  return j > w->c->to[to] ? 0 : s->values[((int64_t)h * s->n_rows + to) * s->keys + j];
}

static const float *value(const work *w, int32_t h, int32_t from) {
  const chi_state *s = state(w, 0);
  return s->values + from * s->width + (int64_t)(h / (w->k->heads / w->k->kv_heads)) * w->k->head_dim;
}

/* ---- one forward pass ------------------------------------------------------------------------------------ */
static int capture(work *w, int branch, chi_site site, int layer, const int32_t *rows, int32_t n, chi_err *err) {
  return chi_plan_capture(
      w->plan,
      &(chi_capture){.branch = branch, .stack = CHI_DECODER, .site = site, .layer = layer, .rows = rows, .n_rows = n},
      NULL, err);
}

/* The picture upside down, or rolled. */
static float *moved(work *w, int control, chi_err *err) {
  const chi_contributions *c = w->c;
  size_t H = (size_t)c->model->net.vision.image_h, W = (size_t)c->model->net.vision.image_w,
         down = c->grid_h ? H * (size_t)w->down / (size_t)c->grid_h : 0;
  float *v = chi_arena_array(&w->tmp, 3 * H * W, sizeof *v, err);
  for (size_t y = 0; v && y < 3 * H; y++) {
    size_t from = control == CHI_CONTRIB_FLIPPED ? H - 1 - y % H : (y % H + H - down) % H;
    memcpy(v + y * W, c->prompt->pixels + (y / H * H + from) * W, W * sizeof *v);
  }
  return v;
}

/* A child whose projected patches stand in other rows, as `origin` says. */
static int shuffled(work *w, int root, int *branch, chi_err *err) {
  const chi_contributions *c = w->c;
  int32_t skip = c->first_patch - c->prompt->image_row, n = c->n_patches, *to, *from;
  int rc = 0;
  to = chi_arena_array(&w->tmp, (size_t)n, sizeof *to, err);
  from = chi_arena_array(&w->tmp, (size_t)n, sizeof *from, err);
  CHI_TRY(to && from ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < n; i++) {
    to[i] = skip + i;
    from[i] = skip + c->origin[i];
  }
  CHI_TRY(chi_plan_child(w->plan, root, branch, err));
  chi_intervention iv = {.op = CHI_OP_COPY,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_IMAGE_EMBED,
                         .rows = to,
                         .n_rows = n,
                         .source = root,
                         .source_rows = from};
  CHI_TRY(chi_plan_intervene(w->plan, *branch, &iv, 0, err));
out:
  return rc;
}

static int make_plan(work *w, int control, chi_err *err) {
  int rc = 0, root;
  const chi_contributions *c = w->c;
  chi_input in = chi_prompt_input(c->prompt);
  int32_t last = c->prompt->n_rows - 1;
  if (control == CHI_CONTRIB_FLIPPED || control == CHI_CONTRIB_ROLLED)
    CHI_TRY((in.pixels = moved(w, control, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_plan_new(&w->plan, err));
  CHI_TRY(chi_plan_root(w->plan, &in, &root, err));
  if (control == CHI_CONTRIB_SHUFFLED) CHI_TRY(shuffled(w, root, &root, err));
  for (int32_t i = 0; i < c->n_layers; i++) {
    CHI_TRY(capture(w, root, CHI_SITE_V, c->layer[i], c->from, c->n_from, err));
    CHI_TRY(capture(w, root, CHI_SITE_PATTERN, c->layer[i], c->to, c->n_to, err));
    CHI_TRY(capture(w, root, CHI_SITE_HEAD_OUT, c->layer[i], c->to, c->n_to, err));
  }
  CHI_TRY(capture(w, root, CHI_SITE_LOGITS, -1, &last, 1, err));
out:
  return rc;
}

int chi_contributions_plan(chi_plan **out, const chi_contributions *c, chi_err *err) {
  chi_contributions copy = *c;
  work w = {.c = &copy};
  int rc = make_plan(&w, kAsItIs, err);
  if (rc)
    chi_plan_free(w.plan);
  else
    *out = w.plan;
  return rc;
}

static int forward(work *w, int control, size_t mem, chi_err *err) {
  int rc = 0;
  chi_contributions *c = w->c;
  int64_t V = c->model->net.decoder.vocab;
  CHI_TRY(make_plan(w, control, err));
  CHI_TRY(chi_states_new(&w->states, w->plan, &c->model->net.shape, err));
  chi_run_opts o = {.mem = mem, .on_capture = chi_states_receive, .ud = w->states, .what = "forward pass"};
  CHI_TRY(chi_run_plan(&c->model->net, w->plan, &o, err));
  const float *logits = w->states->state[c->n_layers * kMix].values;
  c->answer = chi_argmax(logits, V);
  c->final = chi_metrics_of(logits, V, c->answer, -1, NULL);
out:
  return rc;
}

/* ---- norms of single heads ------------------------------------------------------------------------------- */
static void gram_head(void *ud, int64_t h) {
  const work *w = ud;
  int64_t hd = w->k->head_dim, nq = w->k->heads * hd;
  double *g = w->gram + h * hd * hd;
  for (int64_t r = 0; r < w->panel_rows; r++) {
    const float *x = w->panel + r * nq + h * hd;
    for (int64_t a = 0; a < hd; a++)
      for (int64_t b = 0; b <= a; b++) g[a * hd + b] += (double)x[a] * (double)x[b];
  }
}

static void head_norms(void *ud, int64_t h) {
  const work *w = ud;
  chi_contributions *c = w->c;
  int64_t hd = w->k->head_dim;
  const double *g = w->gram + h * hd * hd;
  for (int32_t j = 0; j < c->n_from; j++) {
    const float *v = value(w, (int32_t)h, j);
    double s = 0;
    for (int64_t a = 0; a < hd; a++) {
      double row = g[a * hd + a] * (double)v[a];
      for (int64_t b = 0; b < a; b++) row += 2 * g[a * hd + b] * (double)v[b];
      s += row * (double)v[a];
    }
    w->vnorm[h * c->n_from + j] = s > 0 ? sqrt(s) : 0;
  }
  float *out = c->head + (w->l * (int64_t)c->heads + h) * c->n_to * c->n_from;
  for (int32_t i = 0; i < c->n_to; i++)
    for (int32_t j = 0; j < c->n_from; j++)
      out[(int64_t)i * c->n_from + j] = (float)((double)weight(w, (int32_t)h, i, j) * w->vnorm[h * c->n_from + j]);
}

/* |W v|^2 = v^T (W^T W) v: a layer's heads cost one pass over its output projection, however many rows there are. */
static void per_head(work *w) {
  const chi_mat *o = &w->c->model->net.decoder.block[w->c->layer[w->l]].o.w;
  int64_t hd = w->k->head_dim;
  memset(w->gram, 0, (size_t)(w->k->heads * hd * hd) * sizeof *w->gram);
  for (int64_t r = 0; r < o->n; r += kPanel) {
    w->panel_rows = o->n - r < kPanel ? o->n - r : kPanel;
    chi_mat_read(o, r, w->panel_rows, w->panel);
    chi_parallel_for(w->k->heads, gram_head, w);
  }
  chi_parallel_for(w->k->heads, head_norms, w);
}

/* ---- sums over heads ------------------------------------------------------------------------------------- */
static double norm(const float *x, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
  return sqrt(s);
}

/* Sources [at, at + n) to destination `to` (-1: weights of 1) through the output projection: w->vec [n][d]. */
static int product(work *w, int32_t to, int32_t at, int32_t n, chi_err *err) {
  int64_t hd = w->k->head_dim, nq = w->k->heads * hd;
  for (int32_t j = 0; j < n; j++)
    for (int32_t h = 0; h < w->k->heads; h++) {
      float a = to < 0 ? 1 : weight(w, h, to, at + j);
      const float *v = value(w, h, at + j);
      for (int64_t x = 0; x < hd; x++) w->in[j * nq + h * hd + x] = a * v[x];
    }
  return chi_product_fine(&w->c->model->net.decoder.block[w->c->layer[w->l]].o.w, w->in, w->vec, n, err);
}

static int over_heads(work *w, chi_err *err) {
  int rc = 0;
  chi_contributions *c = w->c;
  int64_t d = w->k->d;
  double *total = chi_calloc((size_t)d, sizeof *total, err);
  CHI_TRY(total ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = -1; i < c->n_to; i++) {
    int64_t row = w->l * (int64_t)c->n_to + i;
    float *out = i < 0 ? c->even + w->l * (int64_t)c->n_from : c->sum + row * c->n_from;
    memset(total, 0, (size_t)d * sizeof *total);
    for (int32_t at = 0; at < c->n_from; at += kBatch) {
      int32_t n = c->n_from - at < kBatch ? c->n_from - at : kBatch;
      CHI_TRY(product(w, i, at, n, err));
      for (int32_t j = 0; j < n; j++) {
        out[at + j] = (float)norm(w->vec + j * d, d);
        for (int64_t x = 0; x < d; x++) total[x] += (double)w->vec[j * d + x];
      }
    }
    for (int64_t x = 0; i >= 0 && x < d; x++) c->group[row * d + x] = (float)total[x];
    CHI_TRY(chi_progress("contributions", row + 1, (int64_t)c->n_layers * c->n_to, err));
  }
  for (int32_t i = 0; i < c->n_to; i++) {
    const chi_state *mix = state(w, 2);
    CHI_TRY(chi_product_fine(&c->model->net.decoder.block[c->layer[w->l]].o.w, mix->values + i * mix->width, w->vec, 1,
                             err));
    c->out[w->l * (int64_t)c->n_to + i] = (float)norm(w->vec, d);
  }
out:
  chi_free(total);
  return rc;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */
static int copy_list(chi_contributions *c, int32_t **to, int32_t *n, const int32_t *list, int32_t count, int32_t limit,
                     const char *what, chi_err *err) {
  bool all = !list;
  *n = all ? limit : count;
  *to = chi_arena_array(&c->arena, (size_t)*n, sizeof **to, err);
  if (!*to) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < *n; i++) {
    (*to)[i] = all ? i : list[i];
    if ((*to)[i] < 0 || (*to)[i] >= limit || (i && (*to)[i] <= (*to)[i - 1]))
      return chi_fail(err, CHI_ERR_ARG, "%s: numbers from 0 to %d, ascending, are wanted", what, limit - 1);
  }
  return *n > 0 ? 0 : chi_fail(err, CHI_ERR_ARG, "no %s given", what);
}

static void find_patches(chi_contributions *c, int32_t late) {
  chi_patches g = chi_patches_of(c->model, c->prompt);
  if (g.n == 0) return;
  c->first_patch = g.first;
  c->n_patches = g.n;
  c->grid_h = g.grid_h;
  c->grid_w = g.grid_w;
  c->late = late > 0 ? late : c->n_patches / 16 > 0 ? (c->n_patches + 8) / 16 : 1;
  if (c->late > c->n_patches) c->late = c->n_patches;
  for (int32_t j = 0; j < c->n_from; j++) {
    int32_t at = c->from[j] - c->first_patch;
    c->n_sources_patch += at >= 0 && at < c->n_patches;
    c->n_late += at >= c->n_patches - c->late && at < c->n_patches;
  }
}

/* Which patch's content stands in each patch's row. */
static int set_origin(work *w, int control, uint64_t seed, chi_err *err) {
  chi_contributions *c = w->c;
  c->origin = chi_arena_array(&c->arena, (size_t)c->n_patches, sizeof *c->origin, err);
  if (!c->origin) return CHI_ERR_MEMORY;
  if (control == CHI_CONTRIB_ROLLED && c->grid_h)
    w->down = (int32_t)(chi_rng_u32(seed, 10, 0, 0) % (uint32_t)c->grid_h);
  for (int32_t i = 0; i < c->n_patches; i++) {
    c->origin[i] = i;
    if (control == CHI_CONTRIB_FLIPPED && c->grid_w)
      c->origin[i] = (c->grid_h - 1 - i / c->grid_w) * c->grid_w + i % c->grid_w;
    if (control == CHI_CONTRIB_ROLLED && c->grid_w)
      c->origin[i] = (i / c->grid_w + c->grid_h - w->down) % c->grid_h * c->grid_w + i % c->grid_w;
    if (control != CHI_CONTRIB_SHUFFLED) continue;
    int32_t j = (int32_t)(chi_rng_u32(seed, 9, (uint32_t)i, 0) % (uint32_t)(i + 1)); /* Fisher-Yates */
    c->origin[i] = c->origin[j];
    c->origin[j] = i;
  }
  return 0;
}

static int set_up(work *w, const chi_contributions_opts *o, int control, chi_err *err) {
  int rc = 0;
  chi_contributions *c = w->c;
  const chi_block_spec *k = w->k;
  int64_t d = k->d, nq = (int64_t)k->heads * k->head_dim;
  if (!o->from || !o->to) return chi_fail(err, CHI_ERR_ARG, "contributions need rows to go from and rows to go to");
  CHI_TRY(copy_list(c, &c->layer, &c->n_layers, o->layers, o->n_layers, k->layers, "layers", err));
  CHI_TRY(copy_list(c, &c->from, &c->n_from, o->from, o->n_from, c->prompt->n_rows, "source rows", err));
  CHI_TRY(copy_list(c, &c->to, &c->n_to, o->to, o->n_to, c->prompt->n_rows, "destination rows", err));
  if (c->from[0] > c->to[c->n_to - 1])
    return chi_fail(err, CHI_ERR_ARG, "rows %d and later are not read by row %d: attention looks back only", c->from[0],
                    c->to[c->n_to - 1]);
  c->heads = k->heads;
  int64_t edges = (int64_t)c->n_layers * c->n_to * c->n_from;
  if (edges * c->heads > (int64_t)1 << 28)
    return chi_fail(err, CHI_ERR_ARG, "%lld contributions are more than the limit of %lld: choose fewer rows or layers",
                    (long long)(edges * c->heads), 1LL << 28);
  c->head = chi_arena_array(&c->arena, (size_t)(edges * c->heads), sizeof(float), err);
  c->sum = chi_arena_array(&c->arena, (size_t)edges, sizeof(float), err);
  c->even = chi_arena_array(&c->arena, (size_t)c->n_layers * (size_t)c->n_from, sizeof(float), err);
  c->out = chi_arena_array(&c->arena, (size_t)c->n_layers * (size_t)c->n_to, sizeof(float), err);
  c->group = chi_arena_array(&c->arena, (size_t)((int64_t)c->n_layers * c->n_to * d), sizeof(float), err);
  w->gram = chi_arena_array(&w->tmp, (size_t)(nq * k->head_dim), sizeof *w->gram, err);
  w->vnorm = chi_arena_array(&w->tmp, (size_t)k->heads * (size_t)c->n_from, sizeof *w->vnorm, err);
  w->panel = chi_arena_array(&w->tmp, (size_t)(kPanel * nq), sizeof(float), err);
  w->in = chi_arena_array(&w->tmp, (size_t)(kBatch * nq), sizeof(float), err);
  w->vec = chi_arena_array(&w->tmp, (size_t)(kBatch * d), sizeof(float), err);
  CHI_TRY(c->head && c->sum && c->even && c->out && c->group && w->gram && w->vnorm && w->panel && w->in && w->vec
              ? 0
              : CHI_ERR_MEMORY);
  find_patches(c, o->late);
  CHI_TRY(set_origin(w, control, o->seed, err));
out:
  return rc;
}

static int run(chi_contributions **out, const chi_model *m, const chi_prompt *p, const chi_contributions_opts *o,
               int control, chi_err *err) {
  int rc = 0;
  work w = {.k = &m->net.decoder.spec};
  w.c = chi_calloc(1, sizeof *w.c, err);
  if (!w.c) return CHI_ERR_MEMORY;
  w.c->model = m;
  w.c->prompt = p;
  CHI_TRY(set_up(&w, o, control, err));
  CHI_TRY(forward(&w, control, o->mem, err));
  for (w.l = 0; w.l < w.c->n_layers; w.l++) {
    per_head(&w);
    CHI_TRY(over_heads(&w, err));
  }
out:
  chi_states_free(w.states);
  chi_plan_free(w.plan);
  chi_arena_free(&w.tmp);
  if (rc)
    chi_contributions_free(w.c);
  else
    *out = w.c;
  return rc;
}

int chi_contributions_run(chi_contributions **out, const chi_model *m, const chi_prompt *p,
                          const chi_contributions_opts *o, chi_err *err) {
  chi_contributions *c = NULL;
  int rc = 0;
  if (o->controls && !p->pixels)
    return chi_fail(err, CHI_ERR_ARG, "the controls of contributions change the picture; this prompt has none");
  CHI_TRY(run(&c, m, p, o, kAsItIs, err));
  for (int k = 0; o->controls && k < CHI_CONTRIB_CONTROLS; k++) CHI_TRY(run(&c->control[k], m, p, o, k, err));
out:
  if (rc)
    chi_contributions_free(c);
  else
    *out = c;
  return rc;
}

void chi_contributions_free(chi_contributions *c) {
  if (!c) return;
  for (int k = 0; k < CHI_CONTRIB_CONTROLS; k++) chi_contributions_free(c->control[k]);
  chi_arena_free(&c->arena);
  chi_free(c);
}

/* ---- aggregations ---------------------------------------------------------------------------------------- */
static double largest(const float *x, int64_t n, int64_t step) {
  double best = 0;
  for (int64_t i = 0; i < n; i++) best = (double)x[i * step] > best ? (double)x[i * step] : best;
  return best;
}

double chi_contrib_head(const chi_contributions *c, int32_t l, int32_t h) {
  int64_t n = (int64_t)c->n_to * c->n_from;
  return largest(c->head + (l * (int64_t)c->heads + h) * n, n, 1);
}

double chi_contrib_max(const chi_contributions *c, int32_t l) {
  int64_t n = (int64_t)c->n_to * c->n_from;
  return largest(c->sum + l * n, n, 1);
}

double chi_contrib_mean(const chi_contributions *c, int32_t l) {
  int64_t n = 0;
  double s = 0;
  for (int32_t i = 0; i < c->n_to; i++)
    for (int32_t j = 0; j < c->n_from && c->from[j] <= c->to[i]; j++, n++)
      s += (double)c->sum[(l * (int64_t)c->n_to + i) * c->n_from + j];
  return n ? s / (double)n : 0;
}

double chi_contrib_even(const chi_contributions *c, int32_t l) {
  double s = 0;
  for (int32_t j = 0; j < c->n_from; j++) s += (double)c->even[l * (int64_t)c->n_from + j];
  return s / (double)c->n_from;
}

double chi_contrib_from(const chi_contributions *c, int32_t l, int32_t from) {
  return largest(c->sum + l * (int64_t)c->n_to * c->n_from + from, c->n_to, c->n_from);
}

double chi_contrib_group(const chi_contributions *c, int32_t l) {
  int64_t d = c->model->net.decoder.spec.d;
  double best = 0;
  for (int32_t i = 0; i < c->n_to; i++) {
    double x = norm(c->group + (l * (int64_t)c->n_to + i) * d, d);
    best = x > best ? x : best;
  }
  return best;
}

void chi_contrib_curve(const chi_contributions *c, int32_t l, double *own, double *even) {
  double all[2] = {0, 0};
  for (int32_t k = 0; k < c->n_patches; k++) own[k] = even[k] = NAN;
  for (int32_t j = 0; j < c->n_from; j++) {
    int32_t at = c->from[j] - c->first_patch;
    if (at < 0 || at >= c->n_patches) continue;
    own[at] = even[at] = 0;
    for (int32_t i = 0; i < c->n_to; i++) {
      if (c->from[j] > c->to[i]) continue;
      own[at] += (double)c->sum[(l * (int64_t)c->n_to + i) * c->n_from + j];
      even[at] += (double)c->even[l * (int64_t)c->n_from + j];
    }
    all[0] += own[at];
    all[1] += even[at];
  }
  for (int32_t k = 0; k < c->n_patches; k++) {
    own[k] = all[0] > 0 ? own[k] / all[0] : NAN;
    even[k] = all[1] > 0 ? even[k] / all[1] : NAN;
  }
}

double chi_contrib_late_content(const chi_contributions *c, int32_t l) {
  double all = 0, late = 0;
  for (int32_t i = 0; i < c->n_to; i++)
    for (int32_t j = 0; j < c->n_from && c->from[j] <= c->to[i]; j++) {
      int32_t at = c->from[j] - c->first_patch;
      if (c->n_patches == 0 || at < 0 || at >= c->n_patches) continue;
      double x = (double)c->sum[(l * (int64_t)c->n_to + i) * c->n_from + j];
      all += x;
      if (c->origin[at] >= c->n_patches - c->late) late += x;
    }
  return all > 0 ? late / all : NAN;
}

bool chi_contrib_late(const chi_contributions *c, int32_t l, double *share, double *even) {
  double all[2] = {0, 0}, late[2] = {0, 0};
  for (int32_t i = 0; i < c->n_to; i++)
    for (int32_t j = 0; j < c->n_from && c->from[j] <= c->to[i]; j++) {
      int32_t at = c->from[j] - c->first_patch;
      if (c->n_patches == 0 || at < 0 || at >= c->n_patches) continue;
      double x[2] = {(double)c->sum[(l * (int64_t)c->n_to + i) * c->n_from + j],
                     (double)c->even[l * (int64_t)c->n_from + j]};
      for (int k = 0; k < 2; k++) {
        all[k] += x[k];
        if (at >= c->n_patches - c->late) late[k] += x[k];
      }
    }
  *share = all[0] > 0 ? late[0] / all[0] : NAN;
  *even = all[1] > 0 ? late[1] / all[1] : NAN;
  return c->n_sources_patch > 0;
}

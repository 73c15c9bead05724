/* Causal tracing has exact consequences: values that must be equal to the last bit whatever the weights are. Each is
 * computed here on a multimodal checkpoint, a language model and random networks, in f32 and bf16, for corruption by
 * words and by noise, with either run as the root and in both directions. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "support/randplan.h"
#include "support/support.h"

/* ---- items --------------------------------------------------------------------------------------------------- */
typedef struct item {
  char name[160];
  const chi_net *net;
  chi_input in;
  int32_t lo, hi;                    /* corrupted rows */
  int32_t *tokens, *swapped, *words; /* clean, corrupted; words = swapped[lo..hi) */
  float *pixels, *pixels2;
  chi_model *model;
  randnet rand;
} item;

static int32_t layers_of(const item *it) { return it->net->shape.stack[CHI_DECODER].layers; }

static int32_t *read_ids(const chi_st *st, const char *name, int32_t *n) {
  const chi_tensor *t = chi_st_find(st, name);
  assert_non_null(t);
  *n = (int32_t)t->dim[0];
  int32_t *v = calloc((size_t)*n, sizeof *v);
  memcpy(v, t->data, (size_t)*n * sizeof *v);
  return v;
}

static float *dup_floats(const float *src, size_t n) {
  float *v = calloc(n, sizeof *v);
  memcpy(v, src, n * sizeof *v);
  return v;
}

static void finish(item *it) {
  int32_t T = it->in.n_rows;
  it->in.tokens = it->tokens;
  it->in.pixels = it->pixels;
  it->swapped = calloc((size_t)T, sizeof *it->swapped);
  memcpy(it->swapped, it->tokens, (size_t)T * sizeof *it->swapped);
  it->words = it->swapped + it->lo;
  for (int32_t r = it->lo; r < it->hi; r++) it->swapped[r] = (it->tokens[r] + 17 + r) % it->net->decoder.vocab;
}

static void open_item(item *it, const char *folder, int32_t lo, int32_t hi, chi_dtype_choice dtype) {
  char path[256];
  chi_st *st = NULL;
  memset(it, 0, sizeof *it);
  snprintf(it->name, sizeof it->name, "%s %s", folder, dtype == CHI_DTYPE_F32 ? "f32" : "bf16");
  snprintf(path, sizeof path, "tests/fixtures/%s", folder);
  assert_works(chi_model_open(&it->model, path, dtype, err));
  it->net = &it->model->net;
  snprintf(path, sizeof path, "tests/fixtures/%s/states.safetensors", folder);
  assert_works(chi_st_open(&st, path, err));
  it->tokens = read_ids(st, "input_ids", &it->in.n_rows);
  it->in.image_row = -1;
  const chi_tensor *px = chi_st_find(st, "pixel_values");
  if (px) {
    size_t n = px->bytes / sizeof(float);
    it->pixels = dup_floats(px->data, n);
    it->pixels2 = dup_floats(px->data, n);
    for (size_t i = 0; i < n; i++) it->pixels2[i] = 0.3f - it->pixels2[i];
    for (int32_t r = it->in.n_rows - 1; r >= 0; r--)
      if (it->tokens[r] == it->model->image_token) it->in.image_row = r;
  }
  chi_st_close(st);
  it->lo = lo;
  it->hi = hi;
  finish(it);
}

static void random_item(item *it, uint64_t seed, int32_t T, int32_t lo, int32_t hi, bool picture, chi_compute compute) {
  memset(it, 0, sizeof *it);
  randnet_make(
      &it->rand,
      &(randnet_opts){
          .post_norm = true, .seed = seed, .vision = picture, .compute = (int)compute, .qformer = seed % 4 == 0});
  it->net = &it->rand.net;
  snprintf(it->name, sizeof it->name, "%.150s", randnet_name(&it->rand));
  it->in = (chi_input){.n_rows = T, .image_row = picture ? 2 : -1};
  it->tokens = calloc((size_t)T, sizeof *it->tokens);
  rnd r = {seed};
  for (int32_t i = 0; i < T; i++) it->tokens[i] = rnd_range(&r, 0, RANDNET_VOCAB);
  if (picture) {
    size_t n = 3 * (size_t)it->net->vision.image_h * (size_t)it->net->vision.image_w;
    it->pixels = dup_floats(it->rand.pixels[0], n);
    it->pixels2 = dup_floats(it->rand.pixels[1], n);
  }
  it->lo = lo;
  it->hi = hi;
  finish(it);
}

static void free_item(item *it) {
  free(it->tokens);
  free(it->swapped);
  free(it->pixels);
  free(it->pixels2);
  if (it->model)
    chi_model_free(it->model);
  else
    randnet_free(&it->rand);
}

static void each_item(void (*fn)(const item *)) {
  for (int k = 0; k < 12; k++) {
    item it;
    chi_compute c = k % 2 ? CHI_COMPUTE_BF16 : CHI_COMPUTE_F32;
    chi_dtype_choice d = k % 2 ? CHI_DTYPE_BF16 : CHI_DTYPE_F32;
    if (k < 2)
      open_item(&it, "tiny-gqa", 26, 28, d);
    else if (k < 4)
      open_item(&it, "tiny-llama", 30, 34, d); /* the span crosses a block of 32 keys */
    else
      random_item(&it, 1900 + (uint64_t)k / 2, 40 + 7 * k, 39 + 5 * (k - 4), 41 + 5 * (k - 4), k % 4 < 2, c);
    fn(&it);
    free_item(&it);
  }
}

/* ---- the two runs -------------------------------------------------------------------------------------------- */
enum { BY_TOKENS, BY_NOISE, ROOT_IS_CORRUPTED, HOWS };
typedef struct pair {
  chi_plan *p;
  int base, from; /* cells are children of base and take values of from */
} pair;

/* denoise: the corrupted run is the base, the clean one the source; else the other way round. */
static pair make_pair(const item *it, int how, bool denoise) {
  pair q = {.p = plan_new()};
  chi_input in = it->in;
  chi_intervention iv = {.stack = CHI_DECODER, .site = CHI_SITE_EMBED};
  if (how == ROOT_IS_CORRUPTED) in.tokens = it->swapped;
  int root = plan_root(q.p, &in), child = plan_child(q.p, root);
  iv.op = how == BY_NOISE ? CHI_OP_NOISE : CHI_OP_TOKEN;
  iv.scale = 0.7f;
  iv.seed = 5;
  iv.tokens = how == ROOT_IS_CORRUPTED ? it->tokens + it->lo : it->words;
  if (how == BY_NOISE) iv.tokens = NULL;
  plan_act(q.p, child, iv, it->lo, it->hi, 0);
  bool child_is_corrupted = how != ROOT_IS_CORRUPTED;
  q.base = denoise == child_is_corrupted ? child : root;
  q.from = q.base == child ? root : child;
  return q;
}

static results run_all(const item *it, chi_plan *p) {
  results r;
  assert_works(results_run(&r, it->net, p, &(chi_run_opts){0}, err));
  return r;
}

static bool same(const results *r, int a, int b) {
  size_t n = r->at[r->first[a + 1]] - r->at[r->first[a]];
  assert_int_equal(n, r->at[r->first[b + 1]] - r->at[r->first[b]]);
  return memcmp(results_row(r, a, 0), results_row(r, b, 0), n * sizeof(float)) == 0;
}

/* A growing plan of cells: each cell's logits at the last row must equal those of `like`. */
typedef struct cells {
  const item *it;
  pair q;
  int base_logits, from_logits;
  int want[4096], got[4096], n;
  char what[4096][64];
} cells;

static cells *begin_cells(const item *it, int how, bool denoise) {
  cells *c = calloc(1, sizeof *c);
  c->it = it;
  c->q = make_pair(it, how, denoise);
  c->base_logits = plan_take_logits(c->q.p, c->q.base, it->in.n_rows - 1);
  c->from_logits = plan_take_logits(c->q.p, c->q.from, it->in.n_rows - 1);
  return c;
}

static int new_cell(cells *c, bool like_from, const char *what, int layer, int32_t row) {
  int b = plan_child(c->q.p, c->q.base);
  assert_true(c->n < 4096);
  c->want[c->n] = like_from ? c->from_logits : c->base_logits;
  c->got[c->n] = plan_take_logits(c->q.p, b, c->it->in.n_rows - 1);
  snprintf(c->what[c->n++], sizeof c->what[0], "%s, layer %d, row %d", what, layer, row);
  return b;
}

static void end_cells(cells *c, const char *oracle) {
  results r = run_all(c->it, c->q.p);
  if (same(&r, c->base_logits, c->from_logits))
    fail_msg("%s: the corruption changes nothing: the test is empty", c->it->name);
  for (int i = 0; i < c->n; i++)
    if (!same(&r, c->got[i], c->want[i])) fail_msg("%s: %s: %s has other bits", c->it->name, oracle, c->what[i]);
  results_free(&r);
  chi_plan_free(c->q.p);
  free(c);
}

static const chi_site kComponents[] = {CHI_SITE_ATTN_OUT, CHI_SITE_MLP_OUT, CHI_SITE_RESID_POST};

/* ---- restored cells ------------------------------------------------------------------------------------------ */
/* Left of the first corrupted row nothing differs: indirect effect 0, computed. */
static void left(const item *it, int how, bool denoise) {
  cells *c = begin_cells(it, how, denoise);
  for (int l = 0; l < layers_of(it); l++)
    for (int32_t row = it->lo - 1; row >= 0; row -= row > it->lo - 4 ? 1 : 5)
      for (size_t s = 0; s < 3; s++)
        plan_copy(c->q.p, new_cell(c, false, chi_site_get(kComponents[s])->name, l, row), c->q.from, kComponents[s], l,
                  row, row + 1);
  end_cells(c, "left of the corrupted words");
}

/* Hidden states of all rows from the first corrupted one, in any one layer, are the whole difference. */
static void hidden(const item *it, int how, bool denoise) {
  cells *c = begin_cells(it, how, denoise);
  int last = layers_of(it) - 1;
  int32_t T = it->in.n_rows;
  for (int l = 0; l <= last; l++) {
    plan_copy(c->q.p, new_cell(c, true, "resid_post of all rows", l, it->lo), c->q.from, CHI_SITE_RESID_POST, l, it->lo,
              T);
    plan_copy(c->q.p, new_cell(c, true, "resid_pre of all rows", l, it->lo), c->q.from, CHI_SITE_RESID_PRE, l, it->lo,
              T);
  }
  plan_copy(c->q.p, new_cell(c, true, "last hidden state", last, T - 1), c->q.from, CHI_SITE_RESID_POST, last, T - 1,
            T);
  end_cells(c, "hidden states restored");
}

/* The last row's own embedding is unchanged: its attention and MLP outputs are the rest. */
static void components(const item *it, int how, bool denoise) {
  cells *c = begin_cells(it, how, denoise);
  int32_t T = it->in.n_rows;
  int b = new_cell(c, true, "attn_out and mlp_out", -1, T - 1), k;
  for (int l = 0; l < layers_of(it); l++) {
    plan_copy(c->q.p, b, c->q.from, CHI_SITE_ATTN_OUT, l, T - 1, T);
    plan_copy(c->q.p, b, c->q.from, CHI_SITE_MLP_OUT, l, T - 1, T);
  }
  k = new_cell(c, true, "pattern, v and mlp_out", -1, T - 1); /* what attention reads instead of what it gives */
  for (int l = 0; l < layers_of(it); l++) {
    plan_copy(c->q.p, k, c->q.from, CHI_SITE_PATTERN, l, T - 1, T);
    plan_copy(c->q.p, k, c->q.from, CHI_SITE_V, l, it->lo, T);
    plan_copy(c->q.p, k, c->q.from, CHI_SITE_MLP_OUT, l, T - 1, T);
  }
  end_cells(c, "components restored at the last row");
}

/* In the last layer only the row that is read has an effect (keys and values apart). */
static void last_layer(const item *it, int how, bool denoise) {
  static const chi_site kSites[] = {CHI_SITE_Q,       CHI_SITE_HEAD_OUT, CHI_SITE_ATTN_OUT,  CHI_SITE_RESID_MID,
                                    CHI_SITE_MLP_ACT, CHI_SITE_MLP_OUT,  CHI_SITE_RESID_POST};
  cells *c = begin_cells(it, how, denoise);
  int last = layers_of(it) - 1;
  for (int32_t row = it->lo; row < it->in.n_rows - 1; row++)
    for (size_t s = 0; s < sizeof kSites / sizeof *kSites; s++)
      plan_copy(c->q.p, new_cell(c, false, chi_site_get(kSites[s])->name, last, row), c->q.from, kSites[s], last, row,
                row + 1);
  end_cells(c, "rows that nobody reads in the last layer");
}

/* Takes every state of the decoder from row lo on and the last logits; returns the first capture's index. */
static int take_all(const item *it, chi_plan *p, int b, int32_t lo, int *n) {
  int32_t T = it->in.n_rows;
  int first = plan_take_logits(p, b, T - 1);
  *n = 1;
  for (int l = 0; l < layers_of(it); l++)
    for (int s = CHI_SITE_RESID_PRE; s <= CHI_SITE_RESID_POST; s++) {
      if (s == CHI_SITE_PATTERN || chi_site_width(&it->net->shape, CHI_DECODER, (chi_site)s, 1) == 0) continue;
      plan_take(p, b, CHI_DECODER, (chi_site)s, l, lo, T);
      *n += 1;
    }
  return first;
}

static void all_same(const item *it, const results *r, int a, int b, int n, const char *oracle) {
  for (int i = 0; i < n; i++)
    if (!same(r, a + i, b + i)) {
      const chi_capture *c = &r->plan->capture[a + i];
      fail_msg("%s: %s: %s of layer %d has other bits", it->name, oracle, chi_site_get(c->site)->name, c->layer);
    }
}

/* The corruption sits in the embeddings of its rows and nowhere else. */
static void embeddings(const item *it, int how, bool denoise) {
  pair q = make_pair(it, how, denoise);
  int n, b = plan_child(q.p, q.base);
  plan_copy(q.p, b, q.from, CHI_SITE_EMBED, 0, it->lo, it->hi);
  int got = take_all(it, q.p, b, 0, &n), want = take_all(it, q.p, q.from, 0, &n);
  results r = run_all(it, q.p);
  all_same(it, &r, got, want, n, "embeddings restored");
  results_free(&r);
  chi_plan_free(q.p);
}

/* With every edge from the words to later rows cut in all layers, later rows cannot know which words they were. */
static void knock_out(const item *it, int how, bool denoise) {
  pair q = make_pair(it, how, denoise);
  chi_intervention cut = {.op = CHI_OP_CUT,
                          .stack = CHI_DECODER,
                          .site = CHI_SITE_PATTERN,
                          .layer_hi = layers_of(it),
                          .key_lo = it->lo,
                          .key_hi = it->hi};
  int n, b[2] = {plan_child(q.p, q.base), plan_child(q.p, q.from)}, at[2];
  for (int i = 0; i < 2; i++) {
    plan_act(q.p, b[i], cut, it->hi, it->in.n_rows, 0);
    at[i] = take_all(it, q.p, b[i], it->hi, &n);
  }
  results r = run_all(it, q.p);
  all_same(it, &r, at[0], at[1], n, "edges from the words cut");
  results_free(&r);
  chi_plan_free(q.p);
}

static void every_pair(const item *it) {
  static void (*const kOracles[])(const item *, int, bool) = {left,       hidden,     components,
                                                              last_layer, embeddings, knock_out};
  for (size_t o = 0; o < sizeof kOracles / sizeof *kOracles; o++)
    for (int how = 0; how < HOWS; how++)
      for (int denoise = 0; denoise < 2; denoise++) kOracles[o](it, how, denoise);
}

static void test_tracing(void **state) {
  (void)state;
  each_item(every_pair);
}

/* ---- plans that change nothing ------------------------------------------------------------------------------- */
/* A child without interventions, and one per site that copies its parent's own values, give the parent's bits; and the
 * parent's bits are those of a plan with the parent alone. */
static void check_nothing(const item *it) {
  chi_plan *alone = plan_new(), *p = plan_new();
  int n, root = plan_root(alone, &it->in), first = take_all(it, alone, root, 0, &n);
  assert_int_equal(plan_root(p, &it->in), root);
  assert_int_equal(take_all(it, p, root, 0, &n), first);
  int logits[64], count = 0;
  logits[count++] = plan_take_logits(p, plan_child(p, root), it->in.n_rows - 1);
  const chi_shape *s = &it->net->shape;
  for (int stack = 0; stack < CHI_STACK_COUNT; stack++)
    for (int site = 0; site < CHI_SITE_COUNT; site++) {
      if (chi_site_width(s, (chi_stack)stack, (chi_site)site, 1) == 0 || (stack != CHI_DECODER && !it->pixels))
        continue;
      if (site == CHI_SITE_IMAGE_EMBED && !it->pixels) continue;
      int32_t rows = stack == CHI_DECODER ? it->in.n_rows : s->stack[stack].rows, b = plan_child(p, root);
      chi_intervention iv = {.op = CHI_OP_COPY,
                             .stack = (chi_stack)stack,
                             .site = (chi_site)site,
                             .layer_hi = s->stack[stack].layers,
                             .source = root};
      plan_act(p, b, iv, 0, site == CHI_SITE_IMAGE_EMBED ? s->n_image_rows : rows, 0);
      logits[count++] = plan_take_logits(p, b, it->in.n_rows - 1);
    }
  results a = run_all(it, alone), r = run_all(it, p);
  assert_true(count > 10);
  for (int i = 0; i < count; i++)
    if (!same(&r, logits[i], first)) fail_msg("%s: a self-patch gives other bits (child %d)", it->name, i);
  assert_memory_equal(a.values, r.values, a.at[a.n] * sizeof(float));
  results_free(&a);
  results_free(&r);
  chi_plan_free(alone);
  chi_plan_free(p);
}

static void test_nothing(void **state) {
  (void)state;
  each_item(check_nothing);
}

/* ---- donors -------------------------------------------------------------------------------------------------- */
/* A donor that is the item itself gives the item's own map, cell by cell. */
static void check_donor(const item *it) {
  pair q = make_pair(it, BY_TOKENS, true);
  int donor = plan_root(q.p, &it->in), got[1024], n = 0;
  for (int l = 0; l < layers_of(it); l++)
    for (int32_t row = it->lo; row < it->in.n_rows; row += 2)
      for (size_t s = 0; s < 3; s++)
        for (int own = 0; own < 2; own++) {
          int b = plan_child(q.p, q.base);
          assert_true(n < 1024);
          plan_copy(q.p, b, own ? q.from : donor, kComponents[s], l, row, row + 1);
          got[n++] = plan_take_logits(q.p, b, it->in.n_rows - 1);
        }
  results r = run_all(it, q.p);
  for (int i = 0; i < n; i += 2)
    if (!same(&r, got[i], got[i + 1])) fail_msg("%s: the item as its own donor gives another map", it->name);
  results_free(&r);
  chi_plan_free(q.p);
}

static void test_donor(void **state) {
  (void)state;
  each_item(check_donor);
}

/* ---- pictures ------------------------------------------------------------------------------------------------ */
/* Two pictures whose rows nobody may look at are one picture. The same for a picture that is changed by a child. */
static void check_pictures(const item *it) {
  if (!it->pixels) return;
  chi_plan *p = plan_new();
  int32_t first = it->in.image_row, end = first + it->net->shape.n_image_rows;
  chi_input other = it->in;
  other.pixels = it->pixels2;
  chi_intervention noise = {.op = CHI_OP_NOISE, .stack = CHI_VISION, .site = CHI_SITE_EMBED, .scale = 1.0f};
  int b[4] = {plan_root(p, &it->in), plan_root(p, &other)}, at[4], n, seen[2];
  b[2] = plan_child(p, b[0]);
  plan_act(p, b[2], noise, 0, it->net->shape.stack[CHI_VISION].rows, 0);
  noise.stack = CHI_PROJECTOR;
  noise.site = CHI_SITE_MLP_OUT;
  b[3] = plan_child(p, b[1]);
  plan_act(p, b[3], noise, 0, it->net->shape.n_image_rows, 0);
  for (int i = 0; i < 2; i++) seen[i] = plan_take_logits(p, b[i], it->in.n_rows - 1);
  for (int i = 0; i < 4; i++) {
    chi_intervention cut = {.op = CHI_OP_CUT,
                            .stack = CHI_DECODER,
                            .site = CHI_SITE_PATTERN,
                            .layer_hi = layers_of(it),
                            .key_lo = first,
                            .key_hi = end};
    int blind = plan_child(p, b[i]);
    plan_act(p, blind, cut, end, it->in.n_rows, 0);
    at[i] = take_all(it, p, blind, end, &n);
  }
  results r = run_all(it, p);
  /* the picture reaches the last row, unless a window hides it or the queries do not read it */
  if (it->net->decoder.spec.window == 0 && (!it->net->has_qformer || it->net->qformer.spec.cross_every > 0))
    assert_false(same(&r, seen[0], seen[1]));
  for (int i = 1; i < 4; i++) all_same(it, &r, at[i], at[0], n, "edges from the picture cut");
  results_free(&r);
  chi_plan_free(p);
}

static void test_pictures(void **state) {
  (void)state;
  each_item(check_pictures);
}

/* ---- decoding ------------------------------------------------------------------------------------------------ */
/* The edits of a run that is decoded: words, a cut, steering; on a child of the last step's root too. */
static void edit(const item *it, chi_plan *p, int b, int32_t rows, const float *vector) {
  chi_intervention iv = {.op = CHI_OP_TOKEN, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .tokens = it->words};
  if (rows >= it->hi) plan_act(p, b, iv, it->lo, it->hi, 0);
  iv = (chi_intervention){.op = CHI_OP_ADD,
                          .stack = CHI_DECODER,
                          .site = CHI_SITE_RESID_POST,
                          .layer_hi = 1,
                          .scale = 0.1f,
                          .value = vector,
                          .value_rows = 1};
  plan_act(p, b, iv, 0, rows, it->net->decoder.spec.d);
  iv = (chi_intervention){.op = CHI_OP_CUT,
                          .stack = CHI_DECODER,
                          .site = CHI_SITE_PATTERN,
                          .layer_lo = 1,
                          .layer_hi = 2,
                          .key_lo = 1,
                          .key_hi = 3};
  plan_act(p, b, iv, 3, rows, 0);
}

static void decode(const item *it, int32_t chunk, const results *full, int full_logits, int full_child,
                   const float *vector) {
  chi_kv_cache *cache = NULL;
  int32_t T = it->in.n_rows;
  assert_works(chi_kv_cache_new(&cache, it->net, T, err));
  for (int32_t at = 0; at < T;) {
    int32_t end = at + chunk;
    if (at < it->hi && end > it->lo) end = it->hi > end ? it->hi : end; /* words come whole */
    if (end < 4) end = 4;
    if (end > T) end = T;
    chi_plan *p = plan_new();
    chi_input in = it->in;
    in.n_rows = end;
    in.cache = cache;
    /* a prompt that ends inside the picture is text so far: its rows come whole, too */
    if (in.pixels && end < in.image_row + it->net->shape.n_image_rows && end > in.image_row)
      in.n_rows = end = in.image_row + it->net->shape.n_image_rows;
    if (in.pixels && (end <= in.image_row || at > in.image_row)) in.pixels = NULL;
    int root = plan_root(p, &in), child = -1;
    edit(it, p, root, end, vector);
    int logits = plan_take(p, root, CHI_DECODER, CHI_SITE_LOGITS, -1, at, end);
    if (end == T) {
      child = plan_child(p, root);
      plan_act(p, child,
               (chi_intervention){.op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer_hi = 1},
               T - 1, T, 0);
      child = plan_take_logits(p, child, T - 1);
    }
    results r = run_all(it, p);
    assert_int_equal(chi_kv_cache_rows(cache), end);
    size_t V = (size_t)it->net->decoder.vocab;
    if (memcmp(results_row(&r, logits, 0), results_row(full, full_logits, at),
               V * (size_t)(end - at) * sizeof(float)) != 0)
      fail_msg("%s: rows %d..%d decoded in chunks of %d have other bits", it->name, at, end - 1, chunk);
    if (child >= 0) assert_memory_equal(results_row(&r, child, 0), results_row(full, full_child, 0), V * sizeof(float));
    results_free(&r);
    chi_plan_free(p);
    at = end;
  }
  chi_kv_cache_free(cache);
}

static void check_decoding(const item *it) {
  int32_t T = it->in.n_rows;
  chi_plan *p = plan_new();
  rnd rn = {7};
  float *vector = calloc((size_t)it->net->decoder.spec.d, sizeof *vector);
  for (int32_t i = 0; i < it->net->decoder.spec.d; i++) vector[i] = rnd_normal(&rn);
  int root = plan_root(p, &it->in), child = plan_child(p, root);
  edit(it, p, root, T, vector);
  int logits = plan_take(p, root, CHI_DECODER, CHI_SITE_LOGITS, -1, 0, T);
  plan_act(p, child,
           (chi_intervention){.op = CHI_OP_ZERO, .stack = CHI_DECODER, .site = CHI_SITE_MLP_OUT, .layer_hi = 1}, T - 1,
           T, 0);
  child = plan_take_logits(p, child, T - 1);
  results full = run_all(it, p);
  static const int32_t kChunks[] = {1, 3, 32, 33};
  for (size_t i = 0; i < sizeof kChunks / sizeof *kChunks; i++) decode(it, kChunks[i], &full, logits, child, vector);
  results_free(&full);
  chi_plan_free(p);
  free(vector);
}

static void test_decoding(void **state) {
  (void)state;
  each_item(check_decoding);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_tracing), cmocka_unit_test(test_nothing),
                                     cmocka_unit_test(test_donor), cmocka_unit_test(test_pictures),
                                     cmocka_unit_test(test_decoding)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

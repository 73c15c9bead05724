/* Attribution against tools/ref/attribute_ref.py (PyTorch, every score by its formula, one vector at a time, float64),
 * and the identities that it must hold. Regenerate: python tools/ref/attribute_ref.py */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/attribute.h"
#include "report/attribute_report.h"
#include "support/support.h"

typedef struct fixture {
  const char *dir;
  chi_model *m;
  chi_st *st;
  chi_prompt *p;
  const int32_t *target;
} fixture;

static const char *const kTiny[] = {"tests/fixtures/tiny-gqa", "tests/fixtures/tiny-llama", "tests/fixtures/tiny-opt",
                                    "tests/fixtures/tiny-phi", "tests/fixtures/tiny-gpt2"};
enum { kTinies = sizeof kTiny / sizeof *kTiny };

static void open_fixture(fixture *f, const char *dir, const char *file, chi_dtype_choice dtype) {
  char hex[65], weights[256];
  *f = (fixture){.dir = dir};
  assert_works(chi_st_open(&f->st, file, err));
  snprintf(weights, sizeof weights, "%s/model.safetensors", dir);
  assert_works(chi_sha256_file(hex, weights, err));
  if (!chi_streq(hex, chi_st_meta(f->st, "model_sha256")))
    fail_msg("%s belongs to other weights of %s: run python tools/ref/attribute_ref.py", file, dir);
  assert_works(chi_model_open(&f->m, dir, dtype, err));
  chi_prompt_opts o = {.image = chi_st_meta(f->st, "picture"), .question = chi_st_meta(f->st, "prompt"), .raw = true};
  assert_works(chi_prompt_make(&f->p, f->m, &o, err));
  f->target = chi_st_find(f->st, "targets")->data;
}

static void open_tiny(fixture *f, const char *dir, chi_dtype_choice dtype) {
  char file[256];
  snprintf(file, sizeof file, "tests/fixtures/attribution/%s.safetensors", strrchr(dir, '/') + 1);
  open_fixture(f, dir, file, dtype);
}

static void close_fixture(fixture *f) {
  chi_prompt_free(f->p);
  chi_model_free(f->m);
  chi_st_close(f->st);
}

static chi_attribution *run(const fixture *f, chi_attribute_opts o) {
  chi_attribution *a = NULL;
  assert_works(chi_attribute_run(&a, f->m, f->p, &o, err));
  return a;
}

static chi_attribute_opts opts_of(const fixture *f) {
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = f->target[0];
  o.versus = f->target[1];
  return o;
}

/* ---- against the reference ------------------------------------------------------------------------------- */
static double worst_of;
static void near(const fixture *f, const char *name, int64_t i, double got, double want, double tol) {
  double d = fabs(got - want);
  if (!(d <= tol))
    fail_msg("%s: %s [%lld]: %.9g, the reference has %.9g (%.1e)", f->dir, name, (long long)i, got, want, d);
  if (d > worst_of) worst_of = d;
}

static const float *stored(const fixture *f, const char *name, int64_t n) {
  const chi_tensor *t = chi_st_find(f->st, name);
  if (!t) fail_msg("%s: no %s in the fixture", f->dir, name);
  if (t->bytes != (size_t)n * sizeof(float)) fail_msg("%s: %s holds %zu bytes", f->dir, name, t->bytes);
  return t->data;
}

/* Scores [n] against <name>.increase and .logit, each [2][n]. */
static void check_scores(const fixture *f, const char *name, const chi_attr_score *s, int64_t n, double tol) {
  char full[64];
  snprintf(full, sizeof full, "%s.increase", name);
  const float *inc = stored(f, full, 2 * n);
  for (int t = 0; t < 2; t++)
    for (int64_t i = 0; i < n; i++) near(f, full, i, s[i].increase[t], (double)inc[t * n + i], tol);
  snprintf(full, sizeof full, "%s.logit", name);
  const float *logit = stored(f, full, 2 * n);
  for (int t = 0; t < 2; t++)
    for (int64_t i = 0; i < n; i++) near(f, full, i, s[i].logit[t], (double)logit[t * n + i], tol);
}

static void check_all(const fixture *f, const chi_attribution *a, double tol) {
  int64_t L = a->layers, H = a->heads, T = a->rows, N = a->n_positions;
  check_scores(f, "attn", a->attn, L, tol);
  check_scores(f, "mlp", a->mlp, L, tol);
  check_scores(f, "head", a->head, L * H, tol);
  check_scores(f, "pos", a->pos, N * T, tol);
  const float *embed = stored(f, "embed.logit", 2), *constants = stored(f, "constants", 2);
  const float *weight = stored(f, "weight", N * T), *avg = stored(f, "avg_attention", T);
  for (int t = 0; t < 2; t++) {
    near(f, "embed.logit", t, a->embed.logit[t], (double)embed[t], tol);
    near(f, "constants", t, a->constants[t], (double)constants[t], tol);
  }
  for (int64_t i = 0; i < N * T; i++) near(f, "weight", i, (double)a->weight[i], (double)weight[i], tol);
  for (int64_t i = 0; i < T; i++) near(f, "avg_attention", i, a->avg_attention[i], (double)avg[i], tol);
  assert_memory_equal(a->pos_head, chi_st_find(f->st, "heads")->data, (size_t)N * sizeof *a->pos_head);
}

/* All neurons were asked for: each stands once, best first. */
static void check_neurons(const fixture *f, const chi_attribution *a, double tol) {
  int64_t F = f->m->net.decoder.spec.ffn, hd = f->m->net.decoder.spec.head_dim, N = a->n_positions, T = a->rows;
  int64_t n = a->layers * F, m = N * T * hd;
  const float *inc = stored(f, "neuron.increase", 2 * n), *logit = stored(f, "neuron.logit", 2 * n);
  const float *ainc = stored(f, "attn_neuron.increase", 2 * m), *alogit = stored(f, "attn_neuron.logit", 2 * m);
  assert_int_equal(a->n_neurons, n);
  assert_int_equal(a->n_attn_neurons, m);
  for (int64_t i = 0; i < n; i++) {
    const chi_attr_neuron *x = &a->neuron[i];
    int64_t at = x->layer * F + x->neuron;
    for (int t = 0; t < 2; t++) {
      near(f, "neuron.increase", at, x->s.increase[t], (double)inc[t * n + at], tol);
      near(f, "neuron.logit", at, x->s.logit[t], (double)logit[t * n + at], tol);
    }
    if (i) assert_true(a->neuron[i - 1].s.increase[0] >= x->s.increase[0]);
  }
  for (int64_t i = 0; i < m; i++) {
    const chi_attr_neuron *x = &a->attn_neuron[i];
    int64_t h = 0;
    while (a->pos_head[h].layer != x->layer || a->pos_head[h].head != x->head) h++;
    int64_t at = (h * T + x->row) * hd + x->dim;
    for (int t = 0; t < 2; t++) {
      near(f, "attn_neuron.increase", at, x->s.increase[t], (double)ainc[t * m + at], tol);
      near(f, "attn_neuron.logit", at, x->s.logit[t], (double)alogit[t * m + at], tol);
    }
    if (i) assert_true(a->attn_neuron[i - 1].s.increase[0] >= x->s.increase[0]);
  }
}

static void check_views(const fixture *f, const chi_attribution *a, double tol) {
  int64_t V = f->m->net.decoder.vocab;
  const chi_tensor *rows = chi_st_find(f->st, "view.rows");
  for (int64_t i = 0; i < rows->dim[0]; i++) {
    const chi_attr_view *v = &a->view[i];
    assert_int_equal(v->row, ((const int32_t *)rows->data)[i]);
    for (int k = 0; k < CHI_VIEWS; k++) {
      char name[64];
      snprintf(name, sizeof name, "view.%s", chi_view_name[k]);
      const float *x = stored(f, name, rows->dim[0] * V) + i * V;
      for (int w = 0; w < a->opts.n_words; w++) {
        near(f, name, i * V + w, (double)v->view[k].logit[w], (double)x[v->view[k].id[w]], tol);
        int above = 0; /* nothing that is clearly larger was left out */
        for (int64_t t = 0; t < V; t++) above += (double)x[t] > (double)v->view[k].logit[w] + 2 * tol;
        assert_true(above <= w);
      }
      for (int t = 0; t < 2; t++) {
        int least = 1, most = 1;
        for (int64_t u = 0; u < V; u++) {
          least += (double)x[u] > (double)x[f->target[t]] + 2 * tol;
          most += u != f->target[t] && (double)x[u] > (double)x[f->target[t]] - 2 * tol;
        }
        assert_in_range(v->view[k].rank[t], least, most);
      }
    }
  }
}

static void test_reference(void **state) {
  (void)state;
  for (int i = 0; i < kTinies; i++) {
    fixture f;
    open_tiny(&f, kTiny[i], CHI_DTYPE_F32);
    worst_of = 0;
    chi_attribute_opts o = opts_of(&f);
    o.n_heads = 2;
    o.n_neurons = o.n_attn_neurons = 1 << 20;
    o.n_views = 3;
    chi_attribution *a = run(&f, o);
    check_all(&f, a, 2e-5);
    check_neurons(&f, a, 2e-5);
    check_views(&f, a, 5e-5);
    chi_attribution_free(a);
    const float *eps = stored(&f, "eps", 1);
    o = opts_of(&f);
    o.eps = (double)*eps;
    a = run(&f, o);
    int64_t n = (int64_t)a->layers * a->heads;
    const float *want = stored(&f, "head.increase.eps", 2 * n);
    for (int t = 0; t < 2; t++)
      for (int64_t k = 0; k < n; k++)
        near(&f, "head.increase.eps", k, a->head[k].increase[t], (double)want[t * n + k], 2e-5);
    print_message("%s: worst %.1e\n", f.dir, worst_of);
    chi_attribution_free(a);
    close_fixture(&f);
  }
}

/* ---- identities ------------------------------------------------------------------------------------------ */
/* B(output bias)_w of a layer; 0 where it has none. */
static double bias_logit(const chi_attribution *a, int layer, int32_t token) {
  const chi_net *net = &a->model->net;
  double x = 0;
  float *logits = chi_calloc((size_t)net->decoder.vocab, sizeof *logits, NULL);
  if (net->decoder.block[layer].o.bias) {
    assert_works(chi_project(&a->proj, net->decoder.block[layer].o.bias, logits, 1, false, true, err));
    x = (double)logits[token];
  }
  chi_free(logits);
  return x;
}

/* Of a head: its positions add up to it. Of a layer: heads + output bias = attention. Of the whole: embedding +
 * attention + MLP + biases = the model's own logit. B is linear, so logits add as the vectors do; each is
 * looked at through several tokens. Difference of two targets' increases = difference of their logits. */
static void identities(const char *dir, chi_dtype_choice dtype, double tol) {
  fixture f;
  open_tiny(&f, dir, dtype);
  for (int32_t token = 0; token < 3; token++) {
    chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
    chi_attr_head *h = NULL;
    o.target = token ? 97 * token : -1;
    o.versus = 5 + 31 * token;
    const chi_block_spec *k = &f.m->net.decoder.spec;
    o.n_heads = k->layers * k->heads;
    h = chi_calloc((size_t)o.n_heads, sizeof *h, NULL);
    for (int i = 0; i < o.n_heads; i++) h[i] = (chi_attr_head){i / k->heads, i % k->heads};
    o.heads = h;
    chi_attribution *a = run(&f, o);
    double worst = a->residual;
    for (int t = 0; t < 2; t++) {
      double whole = a->constants[t] + a->embed.logit[t];
      for (int l = 0; l < a->layers; l++) {
        double heads = bias_logit(a, l, a->target[t]);
        for (int j = 0; j < a->heads; j++) {
          const chi_attr_score *s = a->pos + ((int64_t)l * a->heads + j) * a->rows, *head = &a->head[l * a->heads + j];
          double sum = 0;
          const float *edge = a->edge[t] + ((int64_t)l * a->heads + j) * a->rows;
          for (int p = 0; p < a->rows; p++) {
            sum += s[p].logit[t];
            worst = fmax(worst, fabs((double)edge[p] - s[p].logit[t]));
          }
          worst = fmax(worst, fabs(sum - head->logit[t]));
          heads += head->logit[t];
          worst = fmax(worst, fabs((head->increase[0] - head->increase[1]) - (head->logit[0] - head->logit[1])));
        }
        worst = fmax(worst, fabs(heads - a->attn[l].logit[t]));
        whole += a->attn[l].logit[t] + a->mlp[l].logit[t];
      }
      worst = fmax(worst, fabs(whole - (double)a->logits[a->target[t]]));
    }
    if (!(worst <= tol)) fail_msg("%s, token %d: identities hold to %g only", dir, a->target[0], worst);
    if (token == 0) print_message("%s: identities to %.1e\n", dir, worst);
    chi_attribution_free(a);
    chi_free(h);
  }
  close_fixture(&f);
}

static void test_identities(void **state) {
  (void)state;
  for (int i = 0; i < kTinies; i++) identities(kTiny[i], CHI_DTYPE_F32, 2e-5);
}

/* bf16: the forward pass rounds, so whole = logit only to bf16; the parts keep adding up. */
static void test_bf16(void **state) {
  (void)state;
  fixture f;
  for (int i = 0; i < kTinies; i++) {
    open_tiny(&f, kTiny[i], CHI_DTYPE_BF16);
    chi_attribute_opts o = opts_of(&f);
    chi_attribution *a = run(&f, o);
    assert_true(a->residual < 2e-4);
    for (int l = 0; l < a->layers; l++) {
      double heads = bias_logit(a, l, a->target[0]);
      for (int j = 0; j < a->heads; j++) heads += a->head[l * a->heads + j].logit[0];
      if (!(fabs(heads - a->attn[l].logit[0]) < 2e-4))
        fail_msg("%s: layer %d: heads %g, attention %g", f.dir, l, heads, a->attn[l].logit[0]);
    }
    double sum = 0;
    const float *edge = a->edge[0] + (int64_t)a->order[0] * a->rows;
    for (int p = 0; p < a->rows; p++) {
      sum += a->pos[p].logit[0];
      assert_true(fabs((double)edge[p] - a->pos[p].logit[0]) < 2e-4);
    }
    assert_true(fabs(sum - a->head[a->order[0]].logit[0]) < 0.02 * fmax(1, fabs(sum)));
    chi_attribution_free(a);
    close_fixture(&f);
  }
}

static void test_fast_is_slow(void **state) {
  (void)state;
  fixture f;
  for (int d = 0; d < 2; d++)
    for (int i = 0; i < kTinies; i++) {
      double worst = 0, logit = 0;
      open_tiny(&f, kTiny[i], d ? CHI_DTYPE_BF16 : CHI_DTYPE_F32);
      chi_attribute_opts o = opts_of(&f);
      o.n_heads = 3;
      chi_attribution *a = run(&f, o);
      o.slow = true;
      chi_attribution *b = run(&f, o);
      for (int64_t k = 0; k < 3 * (int64_t)a->rows; k++)
        for (int t = 0; t < 2; t++) {
          worst = fmax(worst, fabs(a->pos[k].increase[t] - b->pos[k].increase[t]));
          logit = fmax(logit, fabs(a->pos[k].logit[t] - b->pos[k].logit[t]));
        }
      if (!(worst < (d ? 5e-3 : 1e-5) && logit < (d ? 1e-4 : 1e-5))) /* a bf16 head rounds other vectors in either */
        fail_msg("%s: fast and slow positions differ by %g, logits by %g", f.dir, worst, logit);
      chi_attribution_free(a);
      chi_attribution_free(b);
      close_fixture(&f);
    }
}

/* Same bits whatever the threads. */
static void test_threads(void **state) {
  (void)state;
  fixture f;
  open_tiny(&f, kTiny[0], CHI_DTYPE_F32);
  chi_attribute_opts o = opts_of(&f);
  o.n_neurons = o.n_attn_neurons = 50;
  chi_set_threads(1);
  chi_attribution *a = run(&f, o);
  chi_set_threads(3);
  chi_attribution *b = run(&f, o);
  chi_set_threads(0);
  assert_memory_equal(a->head, b->head, (size_t)(a->layers * a->heads) * sizeof *a->head);
  assert_memory_equal(a->pos, b->pos, (size_t)a->rows * sizeof *a->pos);
  for (int i = 0; i < 50; i++) {
    assert_memory_equal(&a->neuron[i].s, &b->neuron[i].s, sizeof a->neuron[i].s);
    assert_memory_equal(&a->attn_neuron[i].s, &b->attn_neuron[i].s, sizeof a->neuron[i].s);
  }
  chi_attribution_free(a);
  chi_attribution_free(b);
  close_fixture(&f);
}

/* ---- maps, names, refusals ------------------------------------------------------------------------------- */
static void test_map(void **state) {
  (void)state;
  fixture f;
  open_tiny(&f, kTiny[0], CHI_DTYPE_F32);
  chi_attribute_opts o = opts_of(&f);
  o.n_heads = 2;
  chi_attribution *a = run(&f, o);
  double *v = chi_calloc((size_t)a->rows, sizeof *v, NULL), map[16], sum = 0, lo = 1, hi = 0;
  chi_attribution_sum(a, 0, v);
  assert_true(fabs(v[3] - (a->pos[3].increase[0] + a->pos[a->rows + 3].increase[0])) == 0);
  assert_int_equal(f.p->n_image, 16);
  assert_true(chi_attribution_map(a, v, map));
  int best = 0;
  for (int i = 0; i < 16; i++) {
    sum += map[i];
    lo = fmin(lo, map[i]);
    hi = fmax(hi, map[i]);
    if (v[f.p->image_row + i] > v[f.p->image_row + best]) best = i;
  }
  assert_true(fabs(sum - 1) < 1e-12 && lo == 0 && map[best] == hi);
  double all = 0, patches = 0;
  chi_attribution_all_heads(a, 0, v);
  for (int i = 0; i < 16; i++) all += v[f.p->image_row + i];
  for (int i = 0; i < a->layers * a->heads; i++) patches += a->picture[i];
  assert_true(fabs(all - patches) < 1e-9);
  chi_attribute_opts by = opts_of(&f);
  by.by_picture = true;
  chi_attribution *b = run(&f, by);
  int32_t at = b->pos_head[0].layer * b->heads + b->pos_head[0].head;
  for (int i = 0; i < a->layers * a->heads; i++) assert_true(a->picture[i] <= a->picture[at] && a->reads[i] <= 1.00001);
  chi_attribution_free(b);
  for (int r = 0; r < a->rows; r++) v[r] = 0.25;
  assert_false(chi_attribution_map(a, v, map)); /* flat */
  for (int i = 0; i < 16; i++) assert_true(map[i] == 0);
  chi_free(v);
  chi_attribution_free(a);
  close_fixture(&f);
}

static void test_refusals(void **state) {
  (void)state;
  fixture f;
  chi_attribution *a = NULL;
  chi_attr_head *h = NULL;
  int32_t n = 0, token = 0;
  bool more = false;
  open_tiny(&f, kTiny[0], CHI_DTYPE_F32);
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = 400;
  assert_fails(chi_attribute_run(&a, f.m, f.p, &o, err), CHI_ERR_ARG, "outside the vocabulary of 400");
  o.target = -1;
  o.n_heads = 17;
  assert_fails(chi_attribute_run(&a, f.m, f.p, &o, err), CHI_ERR_ARG, "the model has 16 heads, not 17");
  o.heads = &(chi_attr_head){1, 4};
  o.n_heads = 1;
  assert_fails(chi_attribute_run(&a, f.m, f.p, &o, err), CHI_ERR_ARG, "there is no head 1_4");
  fixture text;
  open_tiny(&text, kTiny[1], CHI_DTYPE_F32);
  assert_fails(chi_attribute_run(&a, text.m, text.p, &(chi_attribute_opts){.versus = -1, .by_picture = true}, err),
               CHI_ERR_ARG, "the prompt has none");
  close_fixture(&text);
  assert_works(chi_attr_heads_parse(&h, &n, f.m, "3_0,2_2", err));
  assert_int_equal(n, 2);
  assert_true(h[1].layer == 2 && h[1].head == 2);
  chi_free(h);
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "4_0", err), CHI_ERR_ARG, "layers 0-3 with heads 0-3");
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "0_4", err), CHI_ERR_ARG, "there is no head 0_4");
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "99999999999999999999_1", err), CHI_ERR_ARG, "there is no head");
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "3-0", err), CHI_ERR_ARG, "LAYER_HEAD");
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "3_0,", err), CHI_ERR_ARG, "LAYER_HEAD");
  assert_fails(chi_attr_heads_parse(&h, &n, f.m, "3_0,3_0", err), CHI_ERR_ARG, "named twice");
  assert_works(chi_answer_token(&token, &more, f.m, f.p, "#399", "--answer", err));
  assert_int_equal(token, 399);
  assert_fails(chi_answer_token(&token, &more, f.m, f.p, "#400", "--answer", err), CHI_ERR_ARG,
               "--answer: '#400' is outside the vocabulary: ids run from #0 to #399");
  assert_fails(chi_answer_token(&token, &more, f.m, f.p, "#-1", "--answer", err), CHI_ERR_ARG,
               "outside the vocabulary");
  assert_fails(chi_answer_token(&token, &more, f.m, f.p, "", "--answer", err), CHI_ERR_ARG,
               "--answer: the text is empty");
  assert_works(chi_answer_token(&token, &more, f.m, f.p, "capital", "--answer", err));
  assert_works(chi_answer_token(&token, &more, f.m, f.p, "Xylograph", "--answer", err));
  assert_true(more);
  close_fixture(&f);
}

/* ---- files ----------------------------------------------------------------------------------------------- */
static json_t *at(json_t *j, const char *key, size_t i) { return json_array_get(json_object_get(j, key), i); }
static double num(json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

static void test_files(void **state) {
  (void)state;
  fixture f;
  char path[4096];
  const char *dir = tmp_path("attribution");
  chi_str files = {0}, text = {0};
  chi_st *st = NULL;
  json_t *j = NULL;
  open_tiny(&f, kTiny[0], CHI_DTYPE_F32);
  chi_attribute_opts o = opts_of(&f);
  o.n_heads = 2;
  o.n_neurons = o.n_attn_neurons = 7;
  o.n_views = 2;
  chi_attribution *a = run(&f, o);
  chi_provenance prov = {.command = "test", .image_path = chi_st_meta(f.st, "picture")};
  assert_works(chi_attribution_write(a, &prov, dir, &files, err));
  assert_non_null(strstr(files.s, "patches.{png,svg}"));
  assert_int_equal(count_files(dir), 9);
  snprintf(path, sizeof path, "%s/attribution.json", dir);
  assert_works(chi_json_load(&j, path, 1 << 24, err));
  json_t *best = at(j, "heads", 0), *row = at(at(j, "positions", 1), "rows", 3);
  assert_true(num(best, "layer") == a->pos_head[0].layer && num(best, "head") == a->pos_head[0].head);
  assert_true(fabs(num(best, "increase") - a->head[a->order[0]].increase[0]) < 1e-7);
  assert_true(fabs(num(row, "increase") - a->pos[a->rows + 3].increase[0]) < 1e-7);
  assert_int_equal(json_array_size(json_object_get(j, "map")), 4);
  assert_int_equal(json_array_size(at(j, "map", 3)), 4);
  assert_int_equal(json_array_size(json_object_get(j, "neurons")), 7);
  assert_int_equal(json_array_size(json_object_get(at(j, "views", 3), "ov") ? json_object_get(j, "views") : NULL), 4);
  json_decref(j);
  snprintf(path, sizeof path, "%s/attribution.safetensors", dir);
  assert_works(chi_st_open(&st, path, err));
  const chi_tensor *t = chi_st_find(st, "pos.increase"), *edge = chi_st_find(st, "edge.logit");
  assert_true(t && t->ndim == 3 && t->dim[0] == 2 && t->dim[1] == 2 && t->dim[2] == a->rows);
  assert_true(((const float *)t->data)[3 * a->rows] == (float)a->pos[a->rows].increase[1]);
  assert_true(edge && edge->ndim == 4 && edge->dim[3] == a->rows);
  chi_st_close(st);
  assert_works(chi_attribution_summary(a, 120, 5, &text, err));
  assert_non_null(strstr(text.s, "positions of head"));
  for (int32_t i = 0; i < a->rows; i++) a->avg_attention[i] = 0.01; /* nothing to stretch */
  assert_works(chi_attribution_write(a, &prov, dir, &files, err));
  chi_str_free(&text);
  chi_str_free(&files);
  chi_attribution_free(a);
  close_fixture(&f);
}

/* Our own numbers as the published ones agree in every line; moved ones are found. */
static void test_compare(void **state) {
  (void)state;
  fixture f;
  int lines = 0, differ = 0;
  double eps = -1;
  chi_attr_head h;
  chi_str text = {0};
  open_tiny(&f, kTiny[0], CHI_DTYPE_F32);
  chi_attribution *a = run(&f, opts_of(&f));
  h = a->pos_head[0];
  int32_t row = f.p->image_row + 2, top = chi_argmax(a->logits, 400);
  char label[32];
  snprintf(label, sizeof label, "%d_%d", h.layer, h.head);
  for (int moved = 0; moved < 2; moved++) { /* their picture stands two rows later */
    json_t *j =
        json_pack("{s:f,s:i,s:[i],s:{s:f},s:{s:s,s:[[i,f,f]]}}", "eps", 1e-6, "image_row", f.p->image_row + 2,
                  "next_tokens", (int)top, "heads", label, a->head[a->order[0]].increase[0] + 0.1 * moved, "positions",
                  "head", label, "rows", (int)row + 2, a->pos[row].increase[0], (double)a->weight[row]);
    assert_non_null(j);
    assert_works(chi_attribution_published_head(&h, &eps, j, err));
    assert_true(eps == 1e-6 && h.layer == a->pos_head[0].layer);
    assert_works(chi_attribution_compare(a, j, 100, &lines, &differ, &text, err));
    assert_int_equal(lines, 4);
    assert_int_equal(differ, moved);
    json_decref(j);
  }
  assert_non_null(strstr(text.s, "3 of 4 lines agree within 0.005"));
  chi_str_free(&text);
  static const char *const kBad[] = {"[]", "{\"positions\":{\"head\":\"x\"}}", "{\"eps\":\"x\"}"};
  for (int i = 0; i < 3; i++) {
    json_t *j = NULL;
    assert_works(chi_json_parse(&j, kBad[i], strlen(kBad[i]), "test", err));
    assert_fails(chi_attribution_published_head(&h, &eps, j, err), CHI_ERR_FORMAT, "published values");
    json_decref(j);
  }
  static const char *const kWrong[] = {"{}",
                                       "{\"heads\":{\"9_9\":1}}",
                                       "{\"heads\":{\"0_0\":\"x\"}}",
                                       "{\"next_tokens\":[4000]}",
                                       "{\"next_tokens\":[\"x\"]}",
                                       "{\"positions\":{\"head\":\"3_0\",\"rows\":[[1]]}}"};
  for (int i = 0; i < 6; i++) {
    json_t *j = NULL;
    assert_works(chi_json_parse(&j, kWrong[i], strlen(kWrong[i]), "test", err));
    assert_fails(chi_attribution_compare(a, j, 100, &lines, &differ, &text, err), CHI_ERR_FORMAT, "published values");
    json_decref(j);
  }
  chi_str_free(&text);
  chi_attribution_free(a);
  close_fixture(&f);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_reference),    cmocka_unit_test(test_identities), cmocka_unit_test(test_bf16),
      cmocka_unit_test(test_fast_is_slow), cmocka_unit_test(test_threads),    cmocka_unit_test(test_map),
      cmocka_unit_test(test_files),        cmocka_unit_test(test_compare),    cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

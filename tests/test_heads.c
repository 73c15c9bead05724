/* Heads switched off, neurons compared, the query side of value neurons: against plans by hand and identities. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/headscan.h"
#include "analyze/incontext.h"
#include "analyze/qside.h"
#include "analyze/states.h"
#include "report/heads_report.h"
#include "support/support.h"

static const char *const kTiny[] = {"tests/fixtures/tiny-gqa", "tests/fixtures/tiny-opt", "tests/fixtures/tiny-phi"};

typedef struct fixture {
  chi_model *m;
  chi_prompt *p;
} fixture;

static void open_fixture(fixture *f, const char *dir) {
  assert_works(chi_model_open(&f->m, dir, CHI_DTYPE_F32, err));
  chi_prompt_opts o = {.question = "What is the capital of this country?"};
  if (strstr(dir, "gqa")) o.image = "tests/fixtures/tiny-gqa/picture.png";
  assert_works(chi_prompt_make(&f->p, f->m, &o, err));
}

static void close_fixture(fixture *f) {
  chi_prompt_free(f->p);
  chi_model_free(f->m);
}

static int32_t *all_rows(const chi_prompt *p) {
  int32_t *rows = chi_calloc((size_t)p->n_rows, sizeof *rows, NULL);
  for (int32_t i = 0; i < p->n_rows; i++) rows[i] = i;
  return rows;
}

static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)capture, (void)i;
  *(double *)ud = (double)v[198] - chi_logsumexp(v, width);
  return 0;
}

/* One head off by a plan of its own, through the dense executor. */
static double without(const fixture *f, int32_t layer, int32_t head, bool last) {
  chi_plan *plan = NULL;
  int root;
  double logp = NAN;
  int32_t *rows = all_rows(f->p), T = f->p->n_rows;
  chi_input in = chi_prompt_input(f->p);
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  chi_intervention iv = {.op = CHI_OP_SCALE,
                         .scale = 0,
                         .stack = CHI_DECODER,
                         .site = CHI_SITE_HEAD_OUT,
                         .layer_lo = layer,
                         .layer_hi = layer + 1,
                         .rows = last ? rows + T - 1 : rows,
                         .n_rows = last ? 1 : T,
                         .part_lo = head,
                         .part_hi = head + 1};
  assert_works(chi_plan_intervene(plan, root, &iv, 0, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_LOGITS, .layer = -1, .rows = rows + T - 1, .n_rows = 1};
  assert_works(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.executor = CHI_EXEC_DENSE, .on_capture = take, .ud = &logp};
  assert_works(chi_run_plan(&f->m->net, plan, &o, err));
  chi_plan_free(plan);
  chi_free(rows);
  return logp;
}

static void test_scan(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  for (int last = 0; last < 2; last++) {
    chi_headscan *s = NULL;
    assert_works(chi_headscan_run(&s, f.m, f.p, &(chi_headscan_opts){.target = 198, .last_row = last}, err));
    assert_true(s->layers == 4 && s->heads == 4);
    for (int i = 0; i < 16; i += 5) assert_true(s->cell[i].logp == without(&f, i / 4, i % 4, last));
    for (int i = 1; i < 16; i++) assert_true(s->drop[s->order[i - 1]] >= s->drop[s->order[i]]);
    assert_true(s->drop[6] == s->clean.logp - s->cell[6].logp && s->cell[6].kl > 0);
    chi_headscan_free(s);
  }
  chi_headscan *s = NULL;
  assert_fails(chi_headscan_run(&s, f.m, f.p, &(chi_headscan_opts){.target = 400}, err), CHI_ERR_ARG,
               "outside the vocabulary of 400");
  close_fixture(&f);
}

/* Attribution without a head: that head scores 0; the run is the scan's; the parts still add up. */
static void test_zero(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_attribution *a = NULL;
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  chi_attr_head off[2] = {{1, 2}, {3, 0}};
  o.target = 198, o.zero = off, o.n_zero = 1, o.n_views = 1;
  assert_works(chi_attribute_run(&a, f.m, f.p, &o, err));
  assert_true(a->head[1 * 4 + 2].logit[0] == 0 && a->head[1 * 4 + 2].increase[0] == 0);
  assert_true(fabs(a->final[0].logp - without(&f, 1, 2, false)) < 1e-9 && a->residual < 2e-5);
  chi_attribution_free(a);
  off[1].head = 9;
  o.n_zero = 2;
  assert_fails(chi_attribute_run(&a, f.m, f.p, &o, err), CHI_ERR_ARG, "there is no head 3_9");
  close_fixture(&f);
}

/* A head of the last layer cannot change neurons before it; what changes is the difference of two attributions. */
static void test_cna(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_cna_neuron *list = NULL;
  int32_t n = 1 << 20;
  chi_attr_head head = {3, 1};
  chi_attribution *a = NULL, *b = NULL;
  assert_works(chi_cna_run(&list, &n, f.m, f.p, head, 198, 0, err));
  assert_int_equal(n, 4 * 80);
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = 198, o.n_neurons = 4 * 80;
  assert_works(chi_attribute_run(&a, f.m, f.p, &o, err));
  o.zero = &head, o.n_zero = 1;
  assert_works(chi_attribute_run(&b, f.m, f.p, &o, err));
  for (int i = 0; i < 320; i++) {
    const chi_cna_neuron *c = &list[i];
    if (i) assert_true(fabs(c[-1].intact - c[-1].without) >= fabs(c->intact - c->without));
    if (c->layer < 3) assert_true(c->coefficient == c->coefficient_without);
    for (int k = 0; k < 320; k++) {
      if (a->neuron[k].layer == c->layer && a->neuron[k].neuron == c->neuron)
        assert_true(c->intact == a->neuron[k].s.increase[0]);
      if (b->neuron[k].layer == c->layer && b->neuron[k].neuron == c->neuron)
        assert_true(c->without == b->neuron[k].s.increase[0]);
    }
  }
  assert_true(list[0].intact != list[0].without);
  chi_attribution_free(a);
  chi_attribution_free(b);
  chi_free(list);
  close_fixture(&f);
}

/* ---- query side -------------------------------------------------------------------------------------------- */
static double dot(const float *x, const float *y, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)y[i];
  return s;
}

/* One value neuron of an RMSNorm model by hand: its value is (norm's scale) q.h, h the sum of the components; shares
 * are c.q over their sum; neurons of a layer sum to that layer's MLP share. */
static void one_neuron(const fixture *f, const chi_attribution *a) {
  const chi_attr_neuron *x = &a->attn_neuron[0];
  const chi_block_spec *k = &f->m->net.decoder.spec;
  const chi_block *b = &f->m->net.decoder.block[x->layer];
  int64_t d = k->d;
  float q[256], plain[256];
  assert_true(d <= 256 && x->layer > 0);
  chi_mat_read(&b->v.w, x->head / (k->heads / k->kv_heads) * k->head_dim + x->dim, 1, plain);
  for (int64_t c = 0; c < d; c++) q[c] = plain[c] * b->norm1.w[c];
  chi_plan *plan = NULL;
  chi_states *s = NULL;
  int root;
  chi_input in = chi_prompt_input(f->p);
  assert_works(chi_plan_new(&plan, err));
  assert_works(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {.branch = root, .stack = CHI_DECODER, .rows = &x->row, .n_rows = 1};
  const struct {
    chi_site site;
    int layer;
  } want[] = {{CHI_SITE_RESID_PRE, 0},
              {CHI_SITE_RESID_PRE, x->layer},
              {CHI_SITE_V, x->layer},
              {CHI_SITE_MLP_OUT, 0},
              {CHI_SITE_ATTN_OUT, 0}};
  for (size_t i = 0; i < 5; i++) {
    c.site = want[i].site, c.layer = want[i].layer;
    assert_works(chi_plan_capture(plan, &c, NULL, err));
  }
  assert_works(chi_states_new(&s, plan, &f->m->net.shape, err));
  chi_run_opts o = {.on_capture = chi_states_receive, .ud = s};
  assert_works(chi_run_plan(&f->m->net, plan, &o, err));
  const float *h = s->state[1].values;
  double whole = dot(h, q, d), r = 1 / sqrt(dot(h, h, d) / (double)d + (double)k->eps),
         v = (double)s->state[2].values[x->head / (k->heads / k->kv_heads) * k->head_dim + x->dim];
  assert_true(fabs(r * whole - v) < 1e-5 * fmax(1, fabs(v)));
  chi_qside *one = NULL;
  assert_works(chi_qside_run(&one, a, false, k->layers * k->ffn, err));
  double score = x->s.increase[0], sum = 0, mlp0 = 0;
  for (int i = 0; i < 1 + 2 * k->layers; i++) sum += one->component[i];
  assert_true(one->left_out == 0 && fabs(one->total - score) < 1e-12 && fabs(sum - score) < 1e-6);
  assert_true(fabs(one->component[0] - score * dot(s->state[0].values, q, d) / whole) < 1e-6);
  assert_true(fabs(one->component[1] - score * dot(s->state[4].values, q, d) / whole) < 1e-6);
  assert_true(fabs(one->component[2] - score * dot(s->state[3].values, q, d) / whole) < 1e-6);
  assert_true(fabs(one->row[x->row] - score) < 1e-12);
  for (int32_t i = 0; i < one->n_neurons; i++) {
    assert_true(one->neuron[i].row == x->row && one->neuron[i].layer < x->layer);
    if (one->neuron[i].layer == 0) mlp0 += one->neuron[i].score;
  }
  assert_true(fabs(mlp0 - one->component[2]) < 1e-5); /* no bias in this model's MLP */
  chi_qside_free(one);
  chi_states_free(s);
  chi_plan_free(plan);
}

static void test_query(void **state) {
  (void)state;
  fixture f;
  for (int i = 0; i < 3; i++) {
    open_fixture(&f, kTiny[i]);
    chi_attribution *a = NULL;
    chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
    chi_attr_head late = {f.m->net.decoder.spec.layers - 1, 1};
    o.heads = &late;
    o.n_attn_neurons = i == 0 ? 1 : 20;
    o.n_neurons = 10;
    assert_works(chi_attribute_run(&a, f.m, f.p, &o, err));
    if (i == 0) one_neuron(&f, a);
    for (int mlp = 0; mlp < 2; mlp++) {
      chi_qside *q = NULL;
      double sum = 0, rows = 0, scores = 0;
      assert_works(chi_qside_run(&q, a, mlp, 5, err));
      for (int k = 0; k < 1 + 2 * q->layers; k++) sum += q->component[k];
      for (int k = 0; k < a->rows; k++) rows += q->row[k];
      for (int k = 0; k < q->n_values; k++) scores += (mlp ? a->neuron : a->attn_neuron)[k].s.increase[0];
      assert_true(fabs(sum - q->total) < 1e-5 && fabs(rows - q->total) < 1e-9);
      assert_true(fabs(q->total + q->left_out - scores) < 1e-9 && q->n_neurons == 5);
      for (int k = 1; k < 5; k++) assert_true(q->neuron[k - 1].score >= q->neuron[k].score);
      chi_str text = {0};
      json_t *j = chi_qside_json(q, a);
      assert_works(chi_qside_summary(q, a, 100, 5, &text, err));
      assert_int_equal(json_array_size(json_object_get(j, "components")), 1 + 2 * q->layers);
      json_decref(j);
      chi_str_free(&text);
      chi_qside_free(q);
    }
    chi_attribution_free(a);
    o.n_neurons = 0;
    assert_works(chi_attribute_run(&a, f.m, f.p, &o, err));
    chi_qside *q = NULL;
    assert_fails(chi_qside_run(&q, a, true, 5, err), CHI_ERR_ARG, "needs value neurons");
    chi_attribution_free(a);
    close_fixture(&f);
  }
}

/* The measurements again, from attributions that are made here. */
static void test_incontext(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_prompt *swap = NULL, *other = NULL;
  chi_incontext *x = NULL;
  chi_attribution *a = NULL, *b = NULL;
  chi_prompt_opts po = {.image = "tests/fixtures/tiny-gqa/picture.png",
                        .question = "What is the country of this flag?"};
  assert_works(chi_prompt_make(&other, f.m, &po, err));
  po.question = "What is the capital of this flag?";
  assert_works(chi_prompt_make(&swap, f.m, &po, err));
  chi_incontext_opts o = CHI_INCONTEXT_OPTS_INIT;
  o.rival = 20, o.object = 281, o.other = 20, o.n_heads = 3, o.n_rows = 4;
  bool same = swap->n_rows == f.p->n_rows;
  o.swapped = same ? swap : f.p;
  assert_works(chi_incontext_run(&x, f.m, f.p, &o, err));
  assert_int_equal(x->answer, 198);
  chi_attribute_opts ao = CHI_ATTRIBUTE_OPTS_INIT;
  ao.target = 198, ao.versus = 20, ao.n_heads = 3, ao.n_views = 4, ao.n_words = 400;
  assert_works(chi_attribute_run(&a, f.m, f.p, &ao, err));
  ao.heads = x->head, ao.versus = -1, ao.n_views = 0;
  assert_works(chi_attribute_run(&b, f.m, o.swapped, &ao, err));
  double diff = 0, ov = 0, rival = 0, key = 0, on = 0, then = 0, all = 0, top = 0;
  for (int i = 0; i < 12; i++) {
    const chi_attr_view *v = &a->view[i];
    int64_t at = (int64_t)v->head * a->rows + v->row;
    diff += (a->pos[at].logit[0] - a->pos[at].logit[1]) / 12;
    on += (double)a->weight[at] / 3;
    then += (double)b->weight[at] / 3;
    for (int k = 0; k < 400; k++) {
      if (v->view[CHI_VIEW_OV].id[k] == 198) ov += 1.0 / (k + 1) / 12;
      if (v->view[CHI_VIEW_OV].id[k] == 20) rival += 1.0 / (k + 1) / 12;
      if (v->view[CHI_VIEW_KEY].id[k] == 281) key += 1.0 / (k + 1) / 12;
    }
  }
  assert_true(fabs(x->logit_diff - diff) < 1e-9 && fabs(x->attention - on) < 1e-9);
  assert_true(fabs(x->mrr_answer - ov) < 1e-9 &&
              fabs(x->mrr_object - key) < 1e-3); /* layer 0: nothing is written yet */
  assert_true(fabs(x->attention_swapped - then) < 1e-9 && x->mrr_embed_answer > 0 && x->mrr_embed_object > 0);
  assert_true(fabs(x->mrr_rival - rival) < 1e-9 && x->mrr_other > 0 && x->mrr_embed_rival == x->mrr_embed_other);
  for (int i = 0; i < a->layers * a->heads; i++) all += fmax(0, a->head[i].increase[0]);
  for (int i = 0; i < 3; i++) top += fmax(0, a->head[a->order[i]].increase[0]);
  assert_true(fabs(x->top_share - top / all) < 1e-12 && x->right == (a->final[0].rank == 1));
  assert_int_equal(chi_heads_shared(x->head, 3, a->pos_head, 2), 2);
  chi_incontext_free(x);
  if (other->n_rows != f.p->n_rows) {
    o.swapped = other;
    assert_fails(chi_incontext_run(&x, f.m, f.p, &o, err), CHI_ERR_ARG, "rows would not correspond");
  }
  chi_attribution_free(a);
  chi_attribution_free(b);
  chi_prompt_free(swap);
  chi_prompt_free(other);
  close_fixture(&f);
}

static void test_files(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, kTiny[0]);
  chi_headscan *s = NULL;
  chi_attribution *a = NULL;
  chi_cna_neuron *list = NULL;
  chi_str files = {0}, text = {0};
  int32_t n = 3;
  assert_works(chi_headscan_run(&s, f.m, f.p, &(chi_headscan_opts){.target = -1}, err));
  chi_attribute_opts o = CHI_ATTRIBUTE_OPTS_INIT;
  o.target = s->target;
  assert_works(chi_attribute_run(&a, f.m, f.p, &o, err));
  assert_works(chi_cna_run(&list, &n, f.m, f.p, (chi_attr_head){0, 0}, s->target, 0, err));
  chi_heads_result r = {.scan = s, .attr = a, .neuron = list, .n_neurons = n};
  chi_provenance prov = {.command = "test"};
  const char *dir = tmp_path("heads");
  assert_works(chi_heads_write(&r, &prov, dir, &files, err));
  assert_int_equal(count_files(dir), 4);
  assert_works(chi_heads_summary(&r, 100, 5, &text, err));
  assert_non_null(strstr(text.s, "without head 0_0"));
  chi_str_free(&files);
  chi_str_free(&text);
  chi_free(list);
  chi_attribution_free(a);
  chi_headscan_free(s);
  close_fixture(&f);
}

int main(void) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_scan),      cmocka_unit_test(test_zero),
                                     cmocka_unit_test(test_cna),       cmocka_unit_test(test_query),
                                     cmocka_unit_test(test_incontext), cmocka_unit_test(test_files)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

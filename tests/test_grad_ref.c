/* Gradients of a fixture of each family against PyTorch's autograd in f32 (tools/ref/grad_ref.py): at sites of
 * every stack, the Q-Former and its cross-attention among them, and of weight matrices. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "support/support.h"
#include "sweep/grad.h"

enum { COLUMNS = 6, MAX_PARTS = 24, MAX_ROWS = 512 };

typedef struct wanted { /* one tensor of the reference */
  const chi_tensor *t;
  const char *what;
  bool weight;
  chi_stack stack;
  chi_site site;
  int layer, which;
  int64_t rows, width;
  float *got;
} wanted;

static int stack_of(const char *name, size_t n) {
  for (int s = 0; s < CHI_STACK_COUNT; s++)
    if (strlen(chi_stack_name((chi_stack)s)) == n && strncmp(chi_stack_name((chi_stack)s), name, n) == 0) return s;
  fail_msg("no stack in '%s'", name);
  return 0;
}

/* "w.vision.0.down", "decoder.1.mlp_out", "decoder.embed" */
static void parse(wanted *w) {
  const char *p = w->what, *dot;
  w->weight = strncmp(p, "w.", 2) == 0;
  if (w->weight) p += 2;
  dot = strchr(p, '.');
  assert_non_null(dot);
  w->stack = (chi_stack)stack_of(p, (size_t)(dot - p));
  w->layer = -1;
  p = dot + 1;
  if (*p >= '0' && *p <= '9') {
    char *end;
    w->layer = (int)strtol(p, &end, 10);
    p = end + 1;
  }
  if (!w->weight) {
    assert_works(chi_site_parse(&w->site, p, err));
    return;
  }
  while (w->which < CHI_W_COUNT && strcmp(chi_weight_name((chi_weight)w->which), p) != 0) w->which++;
  assert_true(w->which < CHI_W_COUNT);
}

static const chi_linear *linear_of(const chi_net *n, const wanted *w) {
  if (w->stack == CHI_PROJECTOR) return w->which == CHI_W_PROJ1 ? &n->projector.l1 : &n->projector.l2;
  const chi_block *b = chi_net_block(n, w->stack, w->layer);
  const chi_linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->gate, &b->up, &b->down};
  return all[w->which];
}

/* Relative error of the sketch of got [rows][width]. */
static double compare(const wanted *w) {
  const float *ref = w->t->data;
  double diff = 0, size = 0;
  assert_true(w->t->ndim == 2 && w->t->dim[0] == w->rows && w->t->dim[1] == COLUMNS);
  for (int64_t r = 0; r < w->rows; r++)
    for (int c = 0; c < COLUMNS; c++) {
      double s = 0;
      for (int64_t j = 0; j < w->width; j++)
        s += (double)w->got[r * w->width + j] * sin(1 + 12.9898 * (double)j + 78.233 * c);
      diff += (s - (double)ref[r * COLUMNS + c]) * (s - (double)ref[r * COLUMNS + c]);
      size += (double)ref[r * COLUMNS + c] * (double)ref[r * COLUMNS + c];
    }
  return sqrt(diff / (size + 1e-300));
}

static void load_input(chi_input *in, const chi_model *m, const chi_st *st, int32_t *tok) {
  const chi_tensor *ids = chi_st_find(st, "input_ids"), *pix = chi_st_find(st, "pixel_values");
  assert_non_null(ids);
  int32_t T = (int32_t)ids->dim[0], at = -1;
  assert_true(T <= MAX_ROWS && (ids->dtype == CHI_I32 || ids->dtype == CHI_I64));
  for (int32_t i = T - 1; i >= 0; i--) {
    tok[i] = ids->dtype == CHI_I64 ? (int32_t)((const int64_t *)ids->data)[i] : ((const int32_t *)ids->data)[i];
    if (tok[i] == m->image_token) at = i;
  }
  *in = (chi_input){.tokens = tok, .n_rows = T, .pixels = pix ? pix->data : NULL, .image_row = at};
}

/* All tensors of one family; the largest relative error. */
static double check_family(const char *name, wanted *w, int n, double want_loss) {
  char dir[128], states[160];
  int32_t tok[MAX_ROWS], rows[MAX_ROWS], loss_rows[2], target[2] = {9, 11};
  chi_model *m = NULL;
  chi_st *st = NULL;
  chi_input in;
  chi_grad *g = NULL;
  chi_grad_site site[MAX_PARTS];
  chi_grad_weight weight[MAX_PARTS];
  int32_t n_sites = 0, n_weights = 0;
  double loss = 0, worst = 0;
  snprintf(dir, sizeof dir, "tests/fixtures/%s", name);
  snprintf(states, sizeof states, "%s/states.safetensors", dir);
  assert_works(chi_model_open(&m, dir, CHI_DTYPE_F32, err));
  assert_works(chi_st_open(&st, states, err));
  load_input(&in, m, st, tok);
  for (int32_t i = 0; i < MAX_ROWS; i++) rows[i] = i;
  for (int i = 0; i < n; i++) {
    wanted *x = &w[i];
    if (x->weight) {
      const chi_linear *l = linear_of(&m->net, x);
      x->rows = l->w.n, x->width = l->w.k;
    } else {
      x->width = chi_site_width(&m->net.shape, x->stack, x->site, 0);
      x->rows = x->stack == CHI_DECODER   ? in.n_rows
                : x->stack == CHI_QFORMER ? m->net.qformer.queries
                                          : m->net.shape.stack[x->stack].rows;
    }
    x->got = calloc((size_t)(x->rows * x->width), sizeof *x->got);
    if (x->weight)
      weight[n_weights++] =
          (chi_grad_weight){.stack = x->stack, .layer = x->layer, .which = (chi_weight)x->which, .out = x->got};
    else
      site[n_sites++] = (chi_grad_site){.stack = x->stack,
                                        .site = x->site,
                                        .layer = x->layer,
                                        .rows = rows,
                                        .n_rows = (int32_t)x->rows,
                                        .out = x->got};
  }
  loss_rows[0] = in.n_rows - 1, loss_rows[1] = in.n_rows - 4;
  chi_nll nll = {.token = target};
  chi_grad_step step = {.loss_rows = loss_rows,
                        .n_loss = 2,
                        .loss = chi_loss_nll,
                        .ud = &nll,
                        .sites = site,
                        .n_sites = n_sites,
                        .weights = weight,
                        .n_weights = n_weights};
  assert_works(chi_grad_open(&g, &m->net, &in, 1, NULL, 0, in.pixels != NULL, err));
  assert_works(chi_grad_run(g, &step, &loss, err));
  if (!(fabs(loss - want_loss) <= 1e-4 * want_loss)) fail_msg("%s: loss %.7f, torch %.7f", name, loss, want_loss);
  for (int i = 0; i < n; i++) {
    double e = compare(&w[i]);
    if (!(e <= 1e-4)) fail_msg("%s %s: relative error %.3g", name, w[i].what, e);
    worst = fmax(worst, e);
    free(w[i].got);
  }
  print_message("%-18s %2d tensors, largest relative error %.2g\n", name, n, worst);
  chi_grad_close(g);
  chi_st_close(st);
  chi_model_free(m);
  return worst;
}

static void test_families(void **state) {
  (void)state;
  chi_st *st = NULL;
  int families = 0;
  assert_works(chi_cpu_init(NULL, err));
  assert_works(chi_st_open(&st, "tests/fixtures/grad/gradients.safetensors", err));
  for (size_t i = 0; i < chi_st_count(st);) { /* sorted by name: a family's tensors lie together */
    char family[64];
    const char *slash = strchr(chi_st_at(st, i)->name, '/');
    wanted w[MAX_PARTS] = {{0}};
    int n = 0;
    double loss = NAN;
    assert_non_null(slash);
    size_t len = (size_t)(slash - chi_st_at(st, i)->name);
    snprintf(family, sizeof family, "%.*s", (int)len, chi_st_at(st, i)->name);
    for (; i < chi_st_count(st); i++) {
      const chi_tensor *t = chi_st_at(st, i);
      if (strncmp(t->name, family, len) != 0 || t->name[len] != '/') break;
      assert_int_equal(t->dtype, CHI_F32);
      if (strcmp(t->name + len, "/loss") == 0) {
        loss = (double)*(const float *)t->data;
        continue;
      }
      assert_true(n < MAX_PARTS);
      w[n].t = t, w[n].what = t->name + len + 1;
      parse(&w[n++]);
    }
    check_family(family, w, n, loss);
    families++;
  }
  assert_true(families >= 12);
  chi_st_close(st);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_families)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

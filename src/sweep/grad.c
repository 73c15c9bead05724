/* Sessions: what is constant is computed once, then each step runs the live rows forward and back; see grad.h. */
#include "sweep/grad.h"

#include <math.h>
#include <string.h>

#include "sweep/grad_internal.h"

struct chi_grad {
  const chi_net *net;
  chi_input *in; /* [n_in] */
  int32_t n_in;
  bool vision;
  chii_tape dec;
  chii_sight sight; /* with vision */
  float *start;     /* [m][D]: the live rows at (first_layer), before interventions */
  chi_arena arena;
};

static const char *const kWeights[CHI_W_COUNT] = {"q", "k", "v", "o", "gate", "up", "down", "proj1", "proj2"};
const char *chi_weight_name(chi_weight w) { return (unsigned)w < CHI_W_COUNT ? kWeights[w] : "?"; }

/* ---- what inputs share --------------------------------------------------------------------------------------- */
static bool same_picture(const chi_net *net, const chi_input *a, const chi_input *b) {
  const chi_vision *v = &net->vision;
  if (!a->pixels || !b->pixels) return a->pixels == b->pixels;
  size_t bytes = sizeof(float) * 3 * (size_t)v->image_h * (size_t)v->image_w;
  return a->image_row == b->image_row && (a->pixels == b->pixels || memcmp(a->pixels, b->pixels, bytes) == 0);
}

/* For inputs of the same picture: a picture's rows are its own, whatever ids stand there. */
static bool same_row(const chi_net *net, const chi_input *a, const chi_input *b, int32_t r) {
  bool picture = a->pixels && r >= a->image_row && r < a->image_row + net->shape.n_image_rows;
  return picture || a->tokens[r] == b->tokens[r];
}

/* Rows at the start that two inputs have in common. */
static int32_t common_rows(const chi_net *net, const chi_input *a, const chi_input *b) {
  int32_t n = a->n_rows < b->n_rows ? a->n_rows : b->n_rows, i = 0;
  if (!same_picture(net, a, b)) {
    if (a->pixels && a->image_row < n) n = a->image_row;
    if (b->pixels && b->image_row < n) n = b->image_row;
  }
  while (i < n && same_row(net, a, b, i)) i++;
  return i;
}

/* ---- the constant part --------------------------------------------------------------------------------------- */
/* Where the rows of each capture go, one behind the other. */
typedef struct fill {
  float **to;
  size_t n, cap;
} fill;

static int take_rows(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  memcpy(((fill *)ud)->to[capture] + i * width, v, (size_t)width * sizeof *v);
  return 0;
}

static int want(fill *f, chi_plan *p, int branch, chi_site site, int layer, const int32_t *rows, int32_t n, float *to,
                chi_err *err) {
  chi_capture c = {.branch = branch, .stack = CHI_DECODER, .site = site, .layer = layer, .rows = rows, .n_rows = n};
  if (n == 0) return 0;
  void *list = (void *)f->to;
  int rc = chi_grow(&list, &f->cap, f->n + 1, sizeof *f->to, err);
  f->to = list;
  if (rc) return rc;
  f->to[f->n++] = to;
  return chi_plan_capture(p, &c, NULL, err);
}

/* Inputs of the longest one's picture become its children: the sweep then shares what they have in common. */
static int add_inputs(chi_grad *g, chi_plan *p, int *branch, int32_t *longest, chi_err *err) {
  int rc = 0;
  *longest = 0;
  for (int32_t i = 1; i < g->n_in; i++)
    if (g->in[i].n_rows > g->in[*longest].n_rows) *longest = i;
  CHI_TRY(chi_plan_root(p, &g->in[*longest], &branch[*longest], err));
  for (int32_t i = 0; i < g->n_in; i++)
    if (i != *longest && same_picture(g->net, &g->in[i], &g->in[*longest]))
      CHI_TRY(chi_plan_reword(p, branch[*longest], g->in[*longest].tokens, g->in[i].tokens, g->in[i].n_rows,
                              g->in[i].image_row, g->in[i].pixels ? g->net->shape.n_image_rows : 0, &branch[i], err));
    else if (i != *longest)
      CHI_TRY(chi_plan_root(p, &g->in[i], &branch[i], err));
out:
  return rc;
}

/* Keys and values of the shared rows (of the longest input) and of each input's own constant rows; the live rows at
 * l0. */
static int want_rows(chi_grad *g, fill *f, chi_plan *p, const int *branch, int32_t longest, const int32_t *rows,
                     chi_err *err) {
  int rc = 0;
  chii_tape *t = &g->dec;
  chi_site live = t->l0 ? CHI_SITE_RESID_PRE : CHI_SITE_EMBED;
  for (int l = t->l0; l < t->s->layers; l++) {
    int64_t at = (int64_t)(l - t->l0) * t->nkv;
    CHI_TRY(want(f, p, branch[longest], CHI_SITE_K, l, rows, t->shared, t->fk + at * t->shared, err));
    CHI_TRY(want(f, p, branch[longest], CHI_SITE_V, l, rows, t->shared, t->fv + at * t->shared, err));
    for (int32_t i = 0; i < g->n_in; i++) {
      const chii_span *s = &t->span[i];
      int32_t n = s->r0 - t->shared;
      CHI_TRY(want(f, p, branch[i], CHI_SITE_K, l, rows + t->shared, n, s->ck + at * n, err));
      CHI_TRY(want(f, p, branch[i], CHI_SITE_V, l, rows + t->shared, n, s->cv + at * n, err));
    }
  }
  for (int32_t i = 0; i < g->n_in; i++) {
    const chii_span *s = &t->span[i];
    CHI_TRY(want(f, p, branch[i], live, t->l0 ? t->l0 : -1, rows + s->r0, s->m, g->start + s->at * t->D, err));
  }
out:
  return rc;
}

static int run_prefix(chi_grad *g, chi_err *err) {
  int rc = 0;
  chi_plan *p = NULL;
  chi_arena a = {0};
  fill f = {0};
  int32_t most = 0, longest;
  for (int32_t i = 0; i < g->n_in; i++) most = g->in[i].n_rows > most ? g->in[i].n_rows : most;
  int32_t *rows = chi_arena_array(&a, (size_t)most, sizeof *rows, err);
  int *branch = chi_arena_array(&a, (size_t)g->n_in, sizeof *branch, err);
  CHI_TRY(rows && branch ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < most; i++) rows[i] = i;
  CHI_TRY(chi_plan_new(&p, err));
  CHI_TRY(add_inputs(g, p, branch, &longest, err));
  CHI_TRY(want_rows(g, &f, p, branch, longest, rows, err));
  chi_run_opts o = {.on_capture = take_rows, .ud = &f};
  CHI_TRY(chi_run_plan(g->net, p, &o, err));
  chii_tape_blocks(&g->dec);
out:
  chi_free(f.to);
  chi_plan_free(p);
  chi_arena_free(&a);
  return rc;
}

/* ---- sessions ------------------------------------------------------------------------------------------------ */
/* rows, first [n]: of each input; *shared: what all have in common before the first live row. */
static int take_inputs(chi_grad *g, const chi_input *in, int32_t n, const int32_t *first_row, int32_t *rows,
                       int32_t *first, int32_t *shared, chi_err *err) {
  g->in = chi_arena_array(&g->arena, (size_t)n, sizeof *g->in, err);
  if (!g->in) return CHI_ERR_MEMORY;
  g->n_in = n;
  *shared = INT32_MAX;
  for (int32_t i = 0; i < n; i++) {
    g->in[i] = in[i];
    g->in[i].cache = NULL;
    rows[i] = in[i].n_rows;
    first[i] = first_row ? first_row[i] : 0;
    if (first[i] < 0 || first[i] >= rows[i])
      return chi_fail(err, CHI_ERR_ARG, "gradients: first row %d is not within the input of %d rows", first[i],
                      rows[i]);
    int32_t same = i ? common_rows(g->net, &in[0], &in[i]) : first[0];
    if (first[i] < same) same = first[i];
    if (same < *shared) *shared = same;
  }
  return 0;
}

int chi_grad_open(chi_grad **out, const chi_net *net, const chi_input *in, int32_t n_in, const int32_t *first_row,
                  int32_t first_layer, bool vision, chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  int32_t shared, *rows = chi_calloc(2 * (size_t)n_in, sizeof *rows, err);
  chi_grad *g = chi_calloc(1, sizeof *g, err);
  CHI_TRY(rows && g ? 0 : CHI_ERR_MEMORY);
  g->net = net;
  g->vision = vision;
  if (first_layer < 0 || first_layer >= net->decoder.spec.layers ||
      (vision && (n_in != 1 || (first_row && *first_row) || first_layer || !in->pixels))) {
    rc = chi_fail(err, CHI_ERR_ARG,
                  "gradients: layer %d (with the tower: row 0, layer 0 of one picture) is not within the input",
                  first_layer);
    goto out;
  }
  CHI_TRY(take_inputs(g, in, n_in, first_row, rows, rows + n_in, &shared, err));
  CHI_TRY(chii_tape_init(&g->dec, net, CHI_DECODER, rows, rows + n_in, n_in, shared, first_layer, err));
  CHI_TRY((g->start = chii_floats(&g->arena, g->dec.m, g->dec.D, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(run_prefix(g, err));
  if (vision) CHI_TRY(chii_sight_open(&g->sight, net, g->in, err));
out:
  chi_fp_end(fp);
  chi_free(rows);
  if (rc)
    chi_grad_close(g);
  else
    *out = g;
  return rc;
}

void chi_grad_close(chi_grad *g) {
  if (!g) return;
  chi_arena_free(&g->dec.arena);
  chii_sight_close(&g->sight);
  chi_arena_free(&g->arena);
  chi_free(g);
}

/* ---- a step -------------------------------------------------------------------------------------------------- */
static int check_step(const chi_grad *g, const chi_grad_step *st, chi_err *err) {
  if (st->on_pattern && g->n_in > 1)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "gradients: attention weights are shown for sessions of one input only");
  for (int32_t i = 0; i < st->n_iv; i++) {
    const chi_intervention *iv = &st->iv[i];
    bool known = iv->op == CHI_OP_SET || iv->op == CHI_OP_ADD || iv->op == CHI_OP_SCALE || iv->op == CHI_OP_ZERO ||
                 iv->op == CHI_OP_NOISE || iv->op == CHI_OP_TOKEN || iv->op == CHI_OP_CUT;
    if (!known || iv->stack == CHI_PROJECTOR || iv->site == CHI_SITE_IMAGE_EMBED || iv->site == CHI_SITE_FINAL_NORM ||
        iv->site == CHI_SITE_LOGITS || iv->site == CHI_SITE_X_PATTERN ||
        (iv->site == CHI_SITE_PATTERN && iv->op != CHI_OP_CUT))
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "gradients: '%s' at %s.%s is not differentiated", chi_op_name(iv->op),
                      chi_stack_name(iv->stack), chi_site_get(iv->site)->name);
    for (int32_t k = 0; iv->stack == CHI_DECODER && k < iv->n_rows; k++)
      if (chii_tape_row(&g->dec, iv->rows[k]) < 0 || (chi_site_get(iv->site)->per_layer && iv->layer_lo < g->dec.l0) ||
          (!chi_site_get(iv->site)->per_layer && g->dec.l0 > 0))
        return chi_fail(err, CHI_ERR_ARG, "gradients: an intervention lies before the part that the session computes");
  }
  return 0;
}

/* Loss rows that go through the head together, which reads its matrix once each way for all of them. */
typedef struct head_rows {
  int32_t *row;       /* [n] of the tape */
  float *x, *dn;      /* [n][D] */
  float *logits, *dl; /* [n][vocab] */
} head_rows;

static const int64_t kHeadBytes = (int64_t)64 << 20;

/* Loss rows [i0, i0 + n). */
static int head_back(chi_grad *g, const chi_grad_step *st, head_rows *h, int32_t i0, int32_t n, float *dx, double *loss,
                     chi_err *err) {
  int rc = 0;
  const chi_decoder *dec = &g->net->decoder;
  const chii_tape *t = &g->dec;
  const float *last = chii_layer_in(t, t->s->layers);
  int64_t D = t->D, V = dec->vocab;
  for (int32_t i = 0; i < n; i++) {
    h->row[i] = chii_tape_row(t, st->loss_rows[i0 + i]);
    if (h->row[i] < 0)
      return chi_fail(err, CHI_ERR_ARG, "gradients: loss row %d is not computed by this session",
                      st->loss_rows[i0 + i]);
    chi_net_final_norm(g->net, last + h->row[i] * D, h->x + i * D, 1);
  }
  CHI_TRY(chi_net_logits(g->net, h->x, h->logits, n, err));
  memset(h->dl, 0, (size_t)(n * V) * sizeof *h->dl);
  for (int32_t i = 0; i < n; i++) st->loss(st->ud, i0 + i, h->logits + i * V, h->dl + i * V, V, loss);
  if (st->forward_only) goto out;
  CHI_TRY(chi_gemm_t(&dec->head.w, h->dl, V, h->dn, D, n, err));
  for (int32_t i = 0; i < n; i++) {
    int32_t r = h->row[i];
    chii_give_site(t, st, CHI_SITE_LOGITS, -1, h->dl + i * V, r, 1, V);
    chii_give_site(t, st, CHI_SITE_FINAL_NORM, -1, h->dn + i * D, r, 1, D);
    chi_norm_back(t->s, &dec->final, last + r * D, h->dn + i * D, dx + r * D, 1, D, NULL, NULL);
  }
out:
  return rc;
}

/* Loss on the final rows; dx [m][D] becomes the gradient at the last layer's output. */
static int head(chi_grad *g, const chi_grad_step *st, float *dx, double *loss, chi_err *err) {
  int rc = 0;
  const chii_tape *t = &g->dec;
  int64_t D = t->D, V = g->net->decoder.vocab, most = kHeadBytes / (2 * V * (int64_t)sizeof(float));
  if (most > st->n_loss) most = st->n_loss;
  if (most < 1) most = 1;
  chi_arena a = {0};
  head_rows h = {chi_arena_array(&a, (size_t)most, sizeof *h.row, err), chii_floats(&a, most, D, err),
                 chii_floats(&a, most, D, err), chii_floats(&a, most, V, err), chii_floats(&a, most, V, err)};
  CHI_TRY(h.row && h.x && h.dn && h.logits && h.dl ? 0 : CHI_ERR_MEMORY);
  memset(dx, 0, (size_t)(t->m * D) * sizeof *dx);
  *loss = 0;
  for (int32_t i = 0; i < st->n_loss; i += (int32_t)most)
    CHI_TRY(head_back(g, st, &h, i, st->n_loss - i < most ? st->n_loss - i : (int32_t)most, dx, loss, err));
  if (!isfinite(*loss))
    rc = chi_fail(err, CHI_ERR_ARG,
                  "the loss is not finite (%g): the target has probability 0 or the model's values overflow", *loss);
out:
  chi_arena_free(&a);
  return rc;
}

int chi_grad_run(chi_grad *g, const chi_grad_step *st, double *loss, chi_err *err) {
  int rc = 0;
  chii_tape *t = &g->dec;
  chi_arena a = {0};
  unsigned fp = chi_fp_begin();
  float *d = chii_floats(&a, t->m, t->D, err), *x = chii_layer_in(t, t->l0);
  CHI_TRY(d ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(check_step(g, st, err));
  memcpy(x, g->start, (size_t)(t->m * t->D) * sizeof *d);
  t->open = !g->vision;
  for (int32_t i = 0; i < st->n_sites; i++) t->open &= st->sites[i].site != CHI_SITE_EMBED;
  if (g->vision) {
    CHI_TRY(chii_sight_forward(&g->sight, st, err));
    memcpy(x + g->in->image_row * t->D, g->sight.proj, (size_t)(g->net->shape.n_image_rows * t->D) * sizeof *d);
  }
  if (t->l0 == 0) {
    chii_grad_touch(t, st, CHI_SITE_EMBED, -1, x, t->D, false);
    for (int32_t i = 0; i < t->m; i++) chi_net_add_position(g->net, x + i * t->D, t->pos[i]);
  }
  CHI_TRY(chii_stack_forward(t, st, err));
  CHI_TRY(head(g, st, d, loss, err));
  if (st->forward_only) goto out;
  CHI_TRY(chii_stack_back(t, st, d, NULL, NULL, err));
  if (t->l0 == 0) chii_grad_pass(t, st, CHI_SITE_EMBED, -1, d, t->D);
  if (g->vision) CHI_TRY(chii_sight_back(&g->sight, st, d + g->in->image_row * t->D, err));
out:
  chi_fp_end(fp);
  chi_arena_free(&a);
  return rc;
}

void chi_loss_nll(void *ud, int32_t i, const float *logits, float *dlogits, int64_t vocab, double *loss) {
  const chi_nll *n = ud;
  double w = n->weight ? n->weight[i] : 1.0, max = -INFINITY, sum = 0;
  for (int64_t k = 0; k < vocab; k++)
    if ((double)logits[k] > max) max = (double)logits[k];
  for (int64_t k = 0; k < vocab; k++) sum += exp((double)logits[k] - max);
  double lse = max + chi_log64(sum);
  for (int64_t k = 0; k < vocab; k++) dlogits[k] = (float)(w * exp((double)logits[k] - lse));
  dlogits[n->token[i]] -= (float)w;
  *loss += w * (lse - (double)logits[n->token[i]]);
}

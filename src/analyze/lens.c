/* Logit lens: captured states through the model's own final norm and head; see lens.h. */
#include "analyze/lens.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "analyze/attribute.h"
#include "analyze/select.h"

enum { kBatch = 64, kTokens = 1024 };

/* ---- cells ----------------------------------------------------------------------------------------------- */
typedef struct slot {
  int32_t row, column;
} slot;

typedef struct job {
  chi_lens *l;
  const chi_lens_opts *o;
  float *state, *norm, *logits; /* kBatch of each */
  slot at[kBatch];
  int32_t n;
  int64_t done;
  chi_err *err;
} job;

/* Words and rank of one row of scores. shift: what is taken off each (log-sum-exp). */
static void fill_cell(const chi_lens *l, const chi_lens_cells *c, int64_t cell, const float *x, double shift) {
  int64_t V = l->model->net.decoder.vocab;
  int32_t *id = c->id + cell * l->k;
  chi_top_words(x, V, id, l->k);
  for (int i = 0; i < l->k; i++) c->score[cell * l->k + i] = (float)((double)x[id[i]] - shift);
  if (!c->rank) return;
  int32_t best = l->words[0];
  for (int32_t i = 1; i < l->n_words; i++)
    if (x[l->words[i]] > x[best]) best = l->words[i];
  c->rank[cell] = chi_rank_of(x, V, best);
  c->word_score[cell] = (float)((double)x[best] - shift);
}

static void read_cell(void *ud, int64_t i) {
  const job *j = ud;
  int64_t V = j->l->model->net.decoder.vocab;
  const float *x = j->logits + i * V;
  fill_cell(j->l, &j->l->cell, (int64_t)j->at[i].row * j->l->n_layers + j->at[i].column, x, chi_logsumexp_quick(x, V));
}

static int flush(job *j) {
  int rc = 0;
  const chi_net *net = &j->l->model->net;
  if (j->n == 0) return 0;
  chi_net_final_norm(net, j->state, j->norm, j->n);
  CHI_TRY(chi_net_logits(net, j->norm, j->logits, j->n, j->err));
  chi_parallel_for(j->n, read_cell, j);
  for (int32_t i = 0; j->o->on_logits && i < j->n; i++)
    if (j->o->on_logits(j->o->ud, j->at[i].row, j->at[i].column, j->logits + i * net->decoder.vocab,
                        net->decoder.vocab)) {
      rc = chi_fail(j->err, CHI_ERR_CANCELLED, "stopped");
      goto out;
    }
  j->done += j->n;
  j->n = 0;
  CHI_TRY(chi_progress("lens", j->done, (int64_t)j->l->n_rows * j->l->n_layers, j->err));
out:
  return rc;
}

/* Captures are added a column at a time, all rows in each: the capture's number is the column. */
static int take(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  job *j = ud;
  memcpy(j->state + j->n * width, v, (size_t)width * sizeof *v);
  j->at[j->n++] = (slot){i, capture};
  return j->n == kBatch ? flush(j) : 0;
}

int chi_lens_plan(chi_plan **out, const chi_lens *l, chi_err *err) {
  int rc = 0, root;
  chi_plan *plan = NULL;
  chi_input in = chi_prompt_input(l->prompt);
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  for (int32_t c = 0; c < l->n_layers; c++) {
    bool input = l->layers[c] == CHI_LENS_EMBED;
    chi_capture cap = {.branch = root,
                       .stack = CHI_DECODER,
                       .site = input ? CHI_SITE_RESID_PRE : CHI_SITE_RESID_POST,
                       .layer = input ? 0 : l->layers[c],
                       .rows = l->rows,
                       .n_rows = l->n_rows};
    CHI_TRY(chi_plan_capture(plan, &cap, NULL, err));
  }
  *out = plan;
  plan = NULL;
out:
  chi_plan_free(plan);
  return rc;
}

static int run_lens(job *j) {
  int rc = 0;
  chi_lens *l = j->l;
  chi_plan *plan = NULL;
  chi_arena tmp = {0};
  size_t d = (size_t)l->model->net.decoder.spec.d, V = (size_t)l->model->net.decoder.vocab;
  j->state = chi_arena_array(&tmp, kBatch * d, sizeof(float), j->err);
  j->norm = chi_arena_array(&tmp, kBatch * d, sizeof(float), j->err);
  j->logits = chi_arena_array(&tmp, kBatch * V, sizeof(float), j->err);
  CHI_TRY(j->state && j->norm && j->logits ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_lens_plan(&plan, l, j->err));
  chi_run_opts o = {.mem = j->o->mem, .on_capture = take, .ud = j};
  CHI_TRY(chi_run_plan(&l->model->net, plan, &o, j->err));
  CHI_TRY(flush(j));
out:
  chi_plan_free(plan);
  chi_arena_free(&tmp);
  return rc;
}

/* ---- picture rows against the input embeddings ----------------------------------------------------------- */
typedef struct embed_job {
  chi_lens *l;
  const int32_t *index; /* of picture row i: its index into rows */
  float *x;             /* [n][d] picture rows as they enter the decoder */
  float *score;         /* [n][vocab] */
  float *token;         /* [kTokens][d] */
  int32_t first;
  bool cosine;
} embed_job;

static int take_embed(void *ud, int capture, int32_t i, const float *v, int64_t width) {
  (void)capture;
  memcpy(((embed_job *)ud)->x + i * width, v, (size_t)width * sizeof *v);
  return 0;
}

static void scale_to_one(float *v, int64_t d) {
  double ss = 0;
  for (int64_t c = 0; c < d; c++) ss += (double)v[c] * (double)v[c];
  if (ss > 0) chi_rows_scale(v, d, 1, d, (float)(1 / sqrt(ss)));
}

static void read_token(void *ud, int64_t i) {
  const embed_job *e = ud;
  int64_t d = e->l->model->net.decoder.spec.d;
  chi_net_embed_token(&e->l->model->net, e->first + (int32_t)i, e->token + i * d);
  if (e->cosine) scale_to_one(e->token + i * d, d);
}

static void read_embed_cell(void *ud, int64_t i) {
  const embed_job *e = ud;
  fill_cell(e->l, &e->l->emb, e->index[i], e->score + i * e->l->model->net.decoder.vocab, 0);
}

/* Embeddings may be stored in any type: a block of tokens at a time becomes an f32 matrix. */
static int embed_products(embed_job *e, int64_t n, chi_err *err) {
  int rc = 0;
  const chi_decoder *dec = &e->l->model->net.decoder;
  int64_t d = dec->spec.d, V = dec->vocab;
  chi_mat w = {0};
  for (int64_t t = 0; t < V; t += kTokens) {
    int64_t m = V - t < kTokens ? V - t : kTokens;
    e->first = (int32_t)t;
    chi_parallel_for(m, read_token, e);
    CHI_TRY(chi_mat_pack(&w, e->token, CHI_F32, m, d, d, CHI_COMPUTE_F32, err));
    CHI_TRY(chi_gemm(&w, e->x, d, e->score + t, V, n, NULL, err));
    chi_mat_free(&w);
    w = (chi_mat){0};
    CHI_TRY(chi_progress("embeddings", t + m, V, err));
  }
out:
  chi_mat_free(&w);
  return rc;
}

static int run_embed(chi_lens *l, size_t mem, chi_err *err) {
  int rc = 0, root;
  const chi_decoder *dec = &l->model->net.decoder;
  chi_plan *plan = NULL;
  chi_arena tmp = {0};
  chi_input in = chi_prompt_input(l->prompt);
  embed_job e = {.l = l, .cosine = l->embed == CHI_EMBED_COSINE};
  int32_t n = 0, *index = chi_arena_array(&tmp, (size_t)l->n_rows, sizeof *index, err),
          *rows = chi_arena_array(&tmp, (size_t)l->n_rows, sizeof *rows, err);
  CHI_TRY(index && rows ? 0 : CHI_ERR_MEMORY);
  for (int32_t i = 0; i < l->n_rows; i++)
    if (l->prompt->role[l->rows[i]] == CHI_ROLE_IMAGE) index[n] = i, rows[n++] = l->rows[i];
  if (n == 0) {
    rc = chi_fail(err, CHI_ERR_ARG, "the input embeddings are compared with picture rows, and none are asked for");
    goto out;
  }
  e.index = index;
  e.x = chi_arena_array(&tmp, (size_t)n * (size_t)dec->spec.d, sizeof *e.x, err);
  e.score = chi_arena_array(&tmp, (size_t)n * (size_t)dec->vocab, sizeof *e.score, err);
  e.token = chi_arena_array(&tmp, (size_t)kTokens * (size_t)dec->spec.d, sizeof *e.token, err);
  CHI_TRY(e.x && e.score && e.token ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_plan_new(&plan, err));
  CHI_TRY(chi_plan_root(plan, &in, &root, err));
  chi_capture c = {
      .branch = root, .stack = CHI_DECODER, .site = CHI_SITE_EMBED, .layer = -1, .rows = rows, .n_rows = n};
  CHI_TRY(chi_plan_capture(plan, &c, NULL, err));
  chi_run_opts o = {.mem = mem, .on_capture = take_embed, .ud = &e};
  CHI_TRY(chi_run_plan(&l->model->net, plan, &o, err));
  for (int32_t i = 0; e.cosine && i < n; i++) scale_to_one(e.x + (int64_t)i * dec->spec.d, dec->spec.d);
  CHI_TRY(embed_products(&e, n, err));
  chi_parallel_for(n, read_embed_cell, &e);
out:
  chi_plan_free(plan);
  chi_arena_free(&tmp);
  return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------- */
static int alloc_cells(chi_lens *l, chi_lens_cells *c, size_t n, chi_err *err) {
  size_t k = (size_t)l->k;
  c->id = chi_arena_array(&l->arena, n * k, sizeof *c->id, err);
  c->score = chi_arena_array(&l->arena, n * k, sizeof *c->score, err);
  for (size_t i = 0; c->id && i < n * k; i++) c->id[i] = -1;
  if (!c->id || !c->score) return CHI_ERR_MEMORY;
  if (l->n_words == 0) return 0;
  c->rank = chi_arena_array(&l->arena, n, sizeof *c->rank, err);
  c->word_score = chi_arena_array(&l->arena, n, sizeof *c->word_score, err);
  return c->rank && c->word_score ? 0 : CHI_ERR_MEMORY;
}

/* A list, or 0..n-1 moved by `from`. */
static int32_t *list_of(chi_arena *a, const int32_t *list, int32_t n, int32_t from, chi_err *err) {
  int32_t *out = chi_arena_array(a, (size_t)n, sizeof *out, err);
  for (int32_t i = 0; out && i < n; i++) out[i] = list ? list[i] : from + i;
  return out;
}

static int set_up(chi_lens *l, const chi_lens_opts *o, chi_err *err) {
  const chi_decoder *dec = &l->model->net.decoder;
  l->n_rows = o->rows ? o->n_rows : l->prompt->n_rows;
  l->n_layers = o->layers ? o->n_layers : dec->spec.layers + 1;
  l->k = o->k < 1 ? 1 : o->k < dec->vocab ? o->k : dec->vocab;
  l->n_words = o->words ? o->n_words : 0;
  l->embed = o->embed;
  if (l->n_rows < 1 || l->n_layers < 1) return chi_fail(err, CHI_ERR_ARG, "the lens was asked for no row or no layer");
  l->rows = list_of(&l->arena, o->rows, l->n_rows, 0, err);
  l->layers = list_of(&l->arena, o->layers, l->n_layers, CHI_LENS_EMBED, err);
  l->words = list_of(&l->arena, o->words, l->n_words, 0, err);
  if (!l->rows || !l->layers || !l->words) return CHI_ERR_MEMORY;
  for (int32_t i = 0; i < l->n_layers; i++)
    if (l->layers[i] < CHI_LENS_EMBED || l->layers[i] >= dec->spec.layers)
      return chi_fail(err, CHI_ERR_ARG, "there is no layer %d: this model has layers 0-%d", l->layers[i],
                      dec->spec.layers - 1);
  for (int32_t i = 0; i < l->n_words; i++)
    if (l->words[i] < 0 || l->words[i] >= dec->vocab)
      return chi_fail(err, CHI_ERR_ARG, "token %d is outside the vocabulary of %d", l->words[i], dec->vocab);
  size_t n = (size_t)l->n_rows;
  int rc = alloc_cells(l, &l->cell, n * (size_t)l->n_layers, err);
  if (rc == 0 && l->embed) rc = alloc_cells(l, &l->emb, n, err);
  return rc;
}

int chi_lens_run(chi_lens **out, const chi_model *m, const chi_prompt *p, const chi_lens_opts *o, chi_err *err) {
  int rc = 0;
  unsigned fp = chi_fp_begin();
  chi_lens *l = chi_calloc(1, sizeof *l, err);
  job j = {.l = l, .o = o, .err = err};
  CHI_TRY(l ? 0 : CHI_ERR_MEMORY);
  l->model = m, l->prompt = p;
  CHI_TRY(set_up(l, o, err));
  CHI_TRY(run_lens(&j));
  if (l->embed) CHI_TRY(run_embed(l, o->mem, err));
out:
  chi_fp_end(fp);
  if (rc)
    chi_lens_free(l);
  else
    *out = l;
  return rc;
}

void chi_lens_free(chi_lens *l) {
  if (!l) return;
  chi_arena_free(&l->arena);
  chi_free(l);
}

bool chi_lens_role(const chi_lens *l, chi_role role, int32_t column, int32_t *best, double *mrr) {
  int32_t n = 0;
  *best = INT32_MAX;
  *mrr = 0;
  for (int32_t i = 0; l->cell.rank && i < l->n_rows; i++) {
    if (l->prompt->role[l->rows[i]] != role) continue;
    int32_t rank = l->cell.rank[(int64_t)i * l->n_layers + column];
    if (rank < *best) *best = rank;
    *mrr += 1.0 / rank;
    n++;
  }
  if (n) *mrr /= n;
  return n > 0;
}

int chi_lens_word(int32_t **out, int32_t *n, bool *part, const chi_model *m, const chi_prompt *p, const char *word,
                  chi_err *err) {
  static const char *const kSpace[] = {"\xe2\x96\x81", "\xc4\xa0", ""}; /* SentencePiece's, byte-level BPE's, none */
  enum { kKinds = sizeof kSpace / sizeof *kSpace };
  char piece[256];
  int32_t *id = chi_calloc(kKinds, sizeof *id, err);
  if (!id) return CHI_ERR_MEMORY;
  *n = 0;
  *part = false;
  for (int i = 0; word[0] != '#' && i < kKinds; i++) {
    int len = snprintf(piece, sizeof piece, "%s%s", kSpace[i], word);
    int32_t t = len > 0 && (size_t)len < sizeof piece && word[0] ? chi_token_id(m->tok, piece) : -1;
    if (t >= 0 && t < m->net.decoder.vocab) id[(*n)++] = t;
  }
  int rc = *n ? 0 : chi_answer_token(id, part, m, p, word, "--word", err);
  if (*n == 0) *n = 1;
  if (rc)
    chi_free(id);
  else
    *out = id;
  return rc;
}

/* ---- bridging words ---------------------------------------------------------------------------------------- */
static int fill_bridge(chi_bridge *b, const chi_lens *l, chi_err *err) {
  b->n_columns = l->n_layers;
  b->layers = list_of(&b->arena, l->layers, l->n_layers, 0, err);
  if (!b->layers) return CHI_ERR_MEMORY;
  for (int role = 0; role < CHI_ROLE_COUNT; role++) {
    b->best[role] = chi_arena_array(&b->arena, (size_t)l->n_layers, sizeof *b->best[role], err);
    b->mrr[role] = chi_arena_array(&b->arena, (size_t)l->n_layers, sizeof *b->mrr[role], err);
    b->logp[role] = chi_arena_array(&b->arena, (size_t)l->n_layers, sizeof *b->logp[role], err);
    if (!b->best[role] || !b->mrr[role] || !b->logp[role]) return CHI_ERR_MEMORY;
    for (int32_t c = 0; c < l->n_layers; c++) {
      chi_lens_role(l, (chi_role)role, c, &b->best[role][c], &b->mrr[role][c]);
      b->logp[role][c] = -INFINITY;
    }
  }
  for (int32_t i = 0; i < l->n_rows; i++) {
    chi_role role = l->prompt->role[l->rows[i]];
    b->n_rows[role]++;
    for (int32_t c = 0; c < l->n_layers; c++) {
      float x = l->cell.word_score[(int64_t)i * l->n_layers + c];
      if (x > b->logp[role][c]) b->logp[role][c] = x;
    }
  }
  return 0;
}

int chi_lens_bridge(chi_bridge **out, const chi_model *m, const chi_prompt *p, const char *word, const char *rows,
                    size_t mem, chi_err *err) {
  int rc = 0;
  int32_t *list = NULL, *words = NULL;
  chi_lens *l = NULL;
  chi_lens_opts o = {.k = 1, .mem = mem};
  chi_bridge *b = chi_calloc(1, sizeof *b, err);
  if (!b) return CHI_ERR_MEMORY;
  CHI_TRY(chi_lens_word(&words, &o.n_words, &b->part, m, p, word, err));
  CHI_TRY(chi_select_rows(&list, &o.n_rows, rows ? rows : "all", p, err));
  o.words = words;
  o.rows = list;
  CHI_TRY(chi_lens_run(&l, m, p, &o, err));
  CHI_TRY(fill_bridge(b, l, err));
out:
  chi_lens_free(l);
  chi_free(words);
  chi_free(list);
  if (rc)
    chi_bridge_free(b);
  else
    *out = b;
  return rc;
}

void chi_bridge_free(chi_bridge *b) {
  if (!b) return;
  chi_arena_free(&b->arena);
  chi_free(b);
}

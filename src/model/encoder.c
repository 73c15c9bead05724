/* A BERT that turns sentences into vectors; see encoder.h. */
#include "model/encoder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"

struct chi_encoder {
  chi_model *m; /* holds path, file and arena for binding; its network is empty */
  chi_block_spec spec;
  int32_t vocab, rows, positions;
  float *word, *pos, *type; /* [vocab][d], [positions][d], [d] */
  chi_norm embed;
  chi_block *block;
  char hash[65];
};

int32_t chi_encoder_width(const chi_encoder *e) { return e->spec.d; }
const char *chi_encoder_hash(const chi_encoder *e) { return e->hash; }

void chi_encoder_free(chi_encoder *e) {
  if (!e) return;
  for (int l = 0; e->block && l < e->spec.layers; l++) chi_block_free(&e->block[l]);
  chi_free(e->block);
  chi_norm_free(&e->embed);
  chi_free(e->word);
  chi_free(e->pos);
  chi_free(e->type);
  chi_model_free(e->m);
  chi_free(e);
}

static int read_config(chi_encoder *e, const json_t *c, int64_t *types, chi_err *err) {
  static const char kWhere[] = "config.json";
  int rc = 0;
  const char *type = NULL;
  chi_block_spec *s = &e->spec;
  int64_t d = 768, ffn = 3072, layers = 12, heads = 12, vocab = 30522, positions = 512; /* its config class */
  double eps = 1e-12;
  CHI_TRY(chi_config_str(&type, c, "model_type", "", (const char *const[]){"bert", NULL}, kWhere, err));
  CHI_TRY(chi_config_plain(c, kWhere, err));
  CHI_TRY(chi_config_str(&type, c, "position_embedding_type", "absolute", (const char *const[]){"absolute", NULL},
                         kWhere, err));
  CHI_TRY(chi_config_want(c, "is_decoder", false, false, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&d, c, "hidden_size", 1, 65536, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&ffn, c, "intermediate_size", 1, 1 << 20, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&layers, c, "num_hidden_layers", 1, 1024, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&heads, c, "num_attention_heads", 1, 1024, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&vocab, c, "vocab_size", 1, 1 << 24, kWhere, err));
  CHI_TRY(chi_json_i64_opt(&positions, c, "max_position_embeddings", 2, 1 << 20, kWhere, err));
  CHI_TRY(chi_json_i64_opt(types, c, "type_vocab_size", 1, 1024, kWhere, err));
  CHI_TRY(chi_json_f64_opt(&eps, c, "layer_norm_eps", kWhere, err));
  if (d % heads != 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: hidden_size %lld is not a multiple of %lld heads", kWhere, (long long)d,
                  (long long)heads);
    goto out;
  }
  *s = (chi_block_spec){.layers = (int32_t)layers,
                        .d = (int32_t)d,
                        .heads = (int32_t)heads,
                        .kv_heads = (int32_t)heads,
                        .head_dim = (int32_t)(d / heads),
                        .ffn = (int32_t)ffn,
                        .norm = CHI_NORM_LAYER,
                        .eps = (float)eps,
                        .post_norm = true};
  s->attn_scale = (float)chi_pow64((double)(d / heads), -0.5);
  e->vocab = (int32_t)vocab;
  e->positions = e->rows = (int32_t)positions;
  CHI_TRY(chi_config_act(&s->act, c, "hidden_act", "gelu", kWhere, err));
out:
  return rc;
}

/* Published folders say in a file of their own how much of a text is read. */
static int read_limit(chi_encoder *e, const char *dir, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *j = NULL;
  int64_t most = e->rows;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "sentence_bert_config.json", err));
  if (!chi_file_exists(path)) return 0;
  CHI_TRY(chi_json_load(&j, path, 1 << 20, err));
  CHI_TRY(chi_json_i64_opt(&most, j, "max_seq_length", 2, 1 << 20, "sentence_bert_config.json", err));
  if (most < e->rows) e->rows = (int32_t)most;
out:
  json_decref(j);
  return rc;
}

static int bind(chi_encoder *e, chi_binder *b, int64_t types, chi_err *err) {
  static const char *const kBase[] = {"", "bert.", NULL};
  int rc = 0;
  char name[128];
  const char *base;
  const chi_block_spec *s = &e->spec;
  int64_t d = s->d;
  CHI_TRY(chi_bind_prefix(b, &base, kBase, "embeddings.word_embeddings.weight", err));
  const struct {
    const char *name;
    float **to;
    int64_t n, skip;
  } table[] = {
      {"word", &e->word, e->vocab, 0}, {"position", &e->pos, e->positions, 0}, {"token_type", &e->type, types, 0}};
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    snprintf(name, sizeof name, "%sembeddings.%s_embeddings.weight", base, table[i].name);
    CHI_TRY(chi_bind_table(b, table[i].to, table[i].n, d, table[i].skip, err, name));
  }
  CHI_TRY(chi_bind_norm(b, &e->embed, d, true, err, "%sembeddings.LayerNorm", base));
  e->block = chi_calloc((size_t)s->layers, sizeof *e->block, err);
  CHI_TRY(e->block ? 0 : CHI_ERR_MEMORY);
  for (int l = 0; l < s->layers; l++) {
    chi_block *w = &e->block[l];
    const struct {
      const char *name;
      chi_linear *to;
      int64_t n, k;
    } all[] = {{"attention.self.query", &w->q, d, d},     {"attention.self.key", &w->k, d, d},
               {"attention.self.value", &w->v, d, d},     {"attention.output.dense", &w->o, d, d},
               {"intermediate.dense", &w->up, s->ffn, d}, {"output.dense", &w->down, d, s->ffn}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
      CHI_TRY(
          chi_bind_linear(b, all[i].to, all[i].n, all[i].k, true, err, "%sencoder.layer.%d.%s", base, l, all[i].name));
    CHI_TRY(chi_bind_norm(b, &w->norm1, d, true, err, "%sencoder.layer.%d.attention.output.LayerNorm", base, l));
    CHI_TRY(chi_bind_norm(b, &w->norm2, d, true, err, "%sencoder.layer.%d.output.LayerNorm", base, l));
  }
out:
  return rc;
}

int chi_encoder_open(chi_encoder **out, const char *dir, chi_err *err) {
  int rc = 0;
  char path[4096];
  int64_t types = 2;
  json_t *config = NULL;
  chi_binder b = {0};
  chi_encoder *e = chi_calloc(1, sizeof *e, err);
  if (!e) return CHI_ERR_MEMORY;
  CHI_TRY((e->m = chi_calloc(1, sizeof *e->m, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY((e->m->path = chi_arena_strdup(&e->m->arena, dir, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(chi_path_join(path, sizeof path, dir, "config.json", err));
  CHI_TRY(chi_json_load(&config, path, 16 << 20, err));
  CHI_TRY(read_config(e, config, &types, err));
  CHI_TRY(read_limit(e, dir, err));
  CHI_TRY(chi_st_open(&e->m->st, dir, err));
  CHI_TRY(chi_st_hash(e->hash, e->m->st, err));
  b = (chi_binder){.m = e->m, .st = e->m->st, .used = chi_calloc(chi_st_count(e->m->st) + 1, 1, err)};
  CHI_TRY(b.used ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(bind(e, &b, types, err));
  CHI_TRY(chi_tokenizer_load(&e->m->tok, dir, err));
  if (chi_vocab_size(e->m->tok) > e->vocab)
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: the tokenizer has ids up to %d, the embeddings %d rows", dir,
                  chi_vocab_size(e->m->tok) - 1, e->vocab);
out:
  chi_free(b.used);
  json_decref(config);
  if (rc)
    chi_encoder_free(e);
  else
    *out = e;
  return rc;
}

/* ---- running ----------------------------------------------------------------------------------------------- */
typedef struct work {
  int32_t n;
  int32_t *pos;
  float *x, *h, *q, *k, *v, *mix, *comp, *g, *act;
  float **kb, **vb;
  chi_attn_query *query;
  chi_arena a;
} work;

static int make_work(work *w, const chi_block_spec *s, int32_t n, chi_err *err) {
  size_t t = (size_t)n, d = (size_t)s->d, f = (size_t)s->ffn, nb = (t + CHI_KV_BLOCK - 1) / CHI_KV_BLOCK;
  float **all[] = {&w->x, &w->h, &w->q, &w->k, &w->v, &w->mix, &w->comp};
  w->n = n;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!(*all[i] = chi_arena_array(&w->a, t * d, sizeof(float), err))) return CHI_ERR_MEMORY;
  w->g = chi_arena_array(&w->a, t * f, sizeof(float), err);
  w->act = chi_arena_array(&w->a, t * f, sizeof(float), err);
  w->pos = chi_arena_array(&w->a, t, sizeof *w->pos, err);
  w->query = chi_arena_array(&w->a, t, sizeof *w->query, err);
  w->kb = chi_arena_array(&w->a, nb, sizeof *w->kb, err);
  w->vb = chi_arena_array(&w->a, nb, sizeof *w->vb, err);
  if (!w->g || !w->act || !w->pos || !w->query || !w->kb || !w->vb) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < nb; i++) {
    w->kb[i] = chi_arena_array(&w->a, chi_kv_block_floats(s), sizeof(float), err);
    w->vb[i] = chi_arena_array(&w->a, chi_kv_block_floats(s), sizeof(float), err);
    if (!w->kb[i] || !w->vb[i]) return CHI_ERR_MEMORY;
  }
  for (int32_t r = 0; r < n; r++) w->pos[r] = r;
  return 0;
}

static int layer(const chi_block_spec *s, const chi_block *b, work *w, chi_err *err) {
  int rc = 0;
  chi_compute compute = b->q.w.compute;
  CHI_TRY(chi_block_qkv(s, b, NULL, w->x, w->pos, w->n, w->h, w->q, w->k, w->v, err));
  for (int32_t r = 0; r < w->n; r++) {
    chi_kv_put(w->kb[r / CHI_KV_BLOCK], w->vb[r / CHI_KV_BLOCK], w->k + (int64_t)r * s->d, w->v + (int64_t)r * s->d,
               r % CHI_KV_BLOCK, s->kv_heads, s->head_dim, compute);
    w->query[r] = (chi_attn_query){.q = w->q + (int64_t)r * s->d,
                                   .out = w->mix + (int64_t)r * s->d,
                                   .kblk = (const float *const *)w->kb,
                                   .vblk = (const float *const *)w->vb,
                                   .row = r,
                                   .n_keys = w->n};
  }
  CHI_TRY(chi_attention(w->query, w->n, s->heads, s->kv_heads, s->head_dim, s->attn_scale, compute, err));
  CHI_TRY(chi_block_o(b, s, w->mix, w->comp, w->n, err));
  chi_block_add(s, &b->norm1, w->x, w->comp, w->n);
  CHI_TRY(chi_block_act(s, b, w->x, w->n, w->h, w->g, w->act, err));
  CHI_TRY(chi_block_down(s, b, w->act, w->comp, w->n, err));
  chi_block_add(s, &b->norm2, w->x, w->comp, w->n);
out:
  return rc;
}

int chi_encoder_embed(const chi_encoder *e, const char *text, float *out, chi_err *err) {
  int rc = 0;
  work w = {0};
  chi_tokens t = {0};
  const chi_block_spec *s = &e->spec;
  CHI_TRY(chi_encode(e->m->tok, text, strlen(text), true, &t, err));
  if (t.n < 1) {
    rc = chi_fail(err, CHI_ERR_ARG, "'%.80s' has no tokens", text);
    goto out;
  }
  if (t.n > (size_t)e->rows) { /* the last token, [SEP], stays */
    t.id[e->rows - 1] = t.id[t.n - 1];
    t.n = (size_t)e->rows;
  }
  CHI_TRY(make_work(&w, s, (int32_t)t.n, err));
  for (int32_t r = 0; r < w.n; r++)
    for (int32_t i = 0; i < s->d; i++)
      w.x[r * s->d + i] = (e->word[(int64_t)t.id[r] * s->d + i] + e->type[i]) + e->pos[(int64_t)r * s->d + i];
  chi_norm_rows(s, &e->embed, w.x, w.x, w.n, s->d);
  for (int l = 0; l < s->layers; l++) CHI_TRY(layer(s, &e->block[l], &w, err));
  double norm = 0;
  for (int32_t i = 0; i < s->d; i++) {
    double sum = 0;
    for (int32_t r = 0; r < w.n; r++) sum += (double)w.x[r * s->d + i];
    out[i] = (float)(sum / w.n);
    norm += (double)out[i] * (double)out[i];
  }
  norm = sqrt(norm);
  for (int32_t i = 0; i < s->d; i++) out[i] = norm > 0 ? (float)((double)out[i] / norm) : 0;
out:
  chi_arena_free(&w.a);
  chi_tokens_free(&t);
  return rc;
}

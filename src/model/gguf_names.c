/* Names of tensors in GGUF files -> names in Hugging Face checkpoints. '#' is the layer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"

enum {
  ROPE_Q = 1, /* rows of each head are interleaved: 2i is i, 2i + 1 is half + i */
  ROPE_K = 2, /* the same, of the key heads */
  FUSED = 4,  /* q, k and v one after another */
  LATER = 8,  /* read elsewhere, or not needed */
  OPTIONAL = 16,
};
typedef struct row {
  const char *from, *to; /* without ".weight" and ".bias" */
  int what;
} row;

#define L "model.layers.#."
static const row kLlama[] = {
    {"token_embd", "model.embed_tokens", 0},
    {"output_norm", "model.norm", 0},
    {"output", "lm_head", OPTIONAL},
    {"rope_freqs", "", LATER},
    {"blk.#.attn_norm", L "input_layernorm", 0},
    {"blk.#.ffn_norm", L "post_attention_layernorm", 0},
    {"blk.#.attn_q", L "self_attn.q_proj", ROPE_Q},
    {"blk.#.attn_k", L "self_attn.k_proj", ROPE_K},
    {"blk.#.attn_v", L "self_attn.v_proj", 0},
    {"blk.#.attn_output", L "self_attn.o_proj", 0},
    {"blk.#.ffn_gate", L "mlp.gate_proj", 0},
    {"blk.#.ffn_up", L "mlp.up_proj", 0},
    {"blk.#.ffn_down", L "mlp.down_proj", 0},
    {"blk.#.attn_rot_embd", "", LATER},
    {NULL, NULL, 0},
};
static const row kQwen2[] = {
    {"token_embd", "model.embed_tokens", 0},
    {"output_norm", "model.norm", 0},
    {"output", "lm_head", OPTIONAL},
    {"rope_freqs", "", LATER},
    {"blk.#.attn_norm", L "input_layernorm", 0},
    {"blk.#.ffn_norm", L "post_attention_layernorm", 0},
    {"blk.#.attn_q", L "self_attn.q_proj", 0},
    {"blk.#.attn_k", L "self_attn.k_proj", 0},
    {"blk.#.attn_v", L "self_attn.v_proj", 0},
    {"blk.#.attn_output", L "self_attn.o_proj", 0},
    {"blk.#.ffn_gate", L "mlp.gate_proj", 0},
    {"blk.#.ffn_up", L "mlp.up_proj", 0},
    {"blk.#.ffn_down", L "mlp.down_proj", 0},
    {NULL, NULL, 0},
};
static const row kPhi2[] = {
    {"token_embd", "model.embed_tokens", 0},
    {"output_norm", "model.final_layernorm", 0},
    {"output", "lm_head", 0},
    {"blk.#.attn_norm", L "input_layernorm", 0},
    {"blk.#.attn_qkv", L "self_attn.", FUSED | OPTIONAL},
    {"blk.#.attn_q", L "self_attn.q_proj", OPTIONAL},
    {"blk.#.attn_k", L "self_attn.k_proj", OPTIONAL},
    {"blk.#.attn_v", L "self_attn.v_proj", OPTIONAL},
    {"blk.#.attn_output", L "self_attn.dense", 0},
    {"blk.#.ffn_up", L "mlp.fc1", 0},
    {"blk.#.ffn_down", L "mlp.fc2", 0},
    {NULL, NULL, 0},
};
#define H "transformer.h.#."
static const row kGpt2[] = {
    {"token_embd", "transformer.wte", 0},
    {"position_embd", "transformer.wpe", 0},
    {"output_norm", "transformer.ln_f", 0},
    {"output", "lm_head", OPTIONAL},
    {"blk.#.attn_norm", H "ln_1", 0},
    {"blk.#.ffn_norm", H "ln_2", 0},
    {"blk.#.attn_qkv", H "attn.c_attn", 0},
    {"blk.#.attn_output", H "attn.c_proj", 0},
    {"blk.#.ffn_up", H "mlp.c_fc", 0},
    {"blk.#.ffn_down", H "mlp.c_proj", 0},
    {NULL, NULL, 0},
};
#define V "vision_tower.vision_model."
#define E V "encoder.layers.#."
static const row kVision[] = {
    {"v.patch_embd", V "embeddings.patch_embedding", 0},
    {"v.position_embd", V "embeddings.position_embedding", 0},
    {"v.class_embd", V "embeddings.class_embedding", OPTIONAL},
    {"v.pre_ln", V "pre_layrnorm", OPTIONAL},
    {"v.post_ln", "", LATER},
    {"v.blk.#.ln1", E "layer_norm1", 0},
    {"v.blk.#.ln2", E "layer_norm2", 0},
    {"v.blk.#.attn_q", E "self_attn.q_proj", 0},
    {"v.blk.#.attn_k", E "self_attn.k_proj", 0},
    {"v.blk.#.attn_v", E "self_attn.v_proj", 0},
    {"v.blk.#.attn_out", E "self_attn.out_proj", 0},
    {"v.blk.#.ffn_up", E "mlp.fc1", 0},
    {"v.blk.#.ffn_down", E "mlp.fc2", 0},
    {"mm.0", "multi_modal_projector.linear_1", OPTIONAL},
    {"mm.1", "multi_modal_projector.linear_1", OPTIONAL}, /* newer files */
    {"mm.2", "multi_modal_projector.linear_2", 0},
    {"model.image_newline", "", LATER}, /* LLaVA 1.6 */
    {NULL, NULL, 0},
};
static const struct {
  const char *arch;
  const row *rows;
} kTables[] = {{"llama", kLlama}, {"mistral", kLlama}, {"qwen2", kQwen2}, {"phi2", kPhi2}, {"gpt2", kGpt2}};

/* Matches "blk.#.x" against "blk.12.x.weight": the layer, or -1 without one; *rest = what follows. False: no match. */
static bool match(const char *from, const char *name, int64_t *layer, const char **rest) {
  *layer = -1;
  for (; *from; from++) {
    if (*from != '#') {
      if (*name++ != *from) return false;
      continue;
    }
    if (*name < '0' || *name > '9' || (*name == '0' && name[1] >= '0' && name[1] <= '9')) return false;
    for (*layer = 0; *name >= '0' && *name <= '9'; name++) {
      *layer = *layer * 10 + (*name - '0');
      if (*layer > 99999) return false;
    }
  }
  *rest = name;
  return *name == 0 || strcmp(name, ".weight") == 0 || strcmp(name, ".bias") == 0;
}

static void fill(char *out, size_t cap, const char *prefix, const char *to, int64_t layer, const char *middle,
                 const char *rest) {
  const char *mark = strchr(to, '#');
  int before = mark ? (int)(mark - to) : (int)strlen(to);
  if (mark)
    snprintf(out, cap, "%s%.*s%lld%s%s%s", prefix, before, to, (long long)layer, mark + 1, middle, rest);
  else
    snprintf(out, cap, "%s%.*s%s%s", prefix, before, to, middle, rest);
}

static int add(chi_tensor_list *out, chi_arena *arena, const chi_tensor *t, const char *name, chi_err *err) {
  void *p = out->t;
  int rc = chi_grow(&p, &out->cap, out->n + 1, sizeof *out->t, err);
  out->t = p;
  if (rc) return rc;
  out->t[out->n] = *t;
  out->t[out->n].name = chi_arena_strdup(arena, name, err);
  return out->t[out->n++].name ? 0 : CHI_ERR_MEMORY;
}

typedef struct source {
  const chi_gguf *g;
  chi_arena *arena;
  int64_t heads, kv;
  chi_err *err;
} source;

/* A row's bytes: the last dimension, or one element of a vector. */
static size_t row_bytes(const chi_tensor *t) {
  return t->ndim > 1 ? chi_dtype_bytes(t->dtype, (size_t)t->dim[t->ndim - 1]) : chi_dtype_size(t->dtype);
}

/* Rows that alternate between the two halves of a head -> first half, second half. */
static int deinterleave(const source *s, chi_tensor *t, int64_t heads) {
  size_t bytes = row_bytes(t);
  if (t->ndim > 2 || heads < 1 || t->dim[0] % (2 * heads) != 0 || bytes == 0)
    return chi_fail(s->err, CHI_ERR_FORMAT, "%s: tensor '%s': %lld rows are not %lld heads of an even width",
                    chi_gguf_path(s->g), t->name, (long long)t->dim[0], (long long)heads);
  uint8_t *copy = chi_arena_alloc(s->arena, t->bytes, s->err);
  if (!copy) return CHI_ERR_MEMORY;
  int64_t hd = t->dim[0] / heads, half = hd / 2;
  const uint8_t *in = t->data;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < hd; i++) {
      int64_t from = h * hd + i % half * 2 + i / half;
      memcpy(copy + (size_t)(h * hd + i) * bytes, in + (size_t)from * bytes, bytes);
    }
  t->data = copy;
  return 0;
}

/* [q; k; v] -> three tensors, all views. */
static int split(const source *s, chi_tensor_list *out, const chi_tensor *t, const char *prefix, const row *r,
                 int64_t layer, const char *rest) {
  static const char *const part[] = {"q_proj", "k_proj", "v_proj"};
  int64_t total = s->heads + 2 * s->kv, at = 0;
  if (t->ndim > 2 || t->dim[0] % total != 0 || row_bytes(t) == 0)
    return chi_fail(s->err, CHI_ERR_FORMAT, "%s: tensor '%s': %lld rows are not %lld heads of q, k and v",
                    chi_gguf_path(s->g), t->name, (long long)t->dim[0], (long long)total);
  for (int i = 0; i < 3; i++) {
    char name[256];
    chi_tensor v = *t;
    v.dim[0] = t->dim[0] / total * (i == 0 ? s->heads : s->kv);
    v.bytes = (size_t)v.dim[0] * row_bytes(t);
    v.data = (const uint8_t *)t->data + (size_t)at * row_bytes(t);
    at += v.dim[0];
    fill(name, sizeof name, prefix, r->to, layer, part[i], rest);
    int rc = add(out, s->arena, &v, name, s->err);
    if (rc) return rc;
  }
  return 0;
}

static int rename_one(const source *s, chi_tensor_list *out, const row *rows, const char *prefix, const chi_tensor *t) {
  char name[256];
  for (const row *r = rows; r->from; r++) {
    int64_t layer;
    const char *rest;
    chi_tensor v = *t;
    int rc = 0;
    if (!match(r->from, t->name, &layer, &rest)) continue;
    if (r->what & LATER) return 0;
    if (r->what & FUSED) return split(s, out, t, prefix, r, layer, rest);
    if (r->what & ROPE_Q) rc = deinterleave(s, &v, s->heads);
    if (r->what & ROPE_K) rc = deinterleave(s, &v, s->kv);
    if (rc) return rc;
    fill(name, sizeof name, prefix, r->to, layer, "", rest);
    return add(out, s->arena, &v, name, s->err);
  }
  return chi_fail(s->err, CHI_ERR_UNSUPPORTED, "%s: tensor '%s' is not known for this architecture",
                  chi_gguf_path(s->g), t->name);
}

/* Missing tensors are named as the file's own reader knows them. */
static int check_present(const source *s, const row *rows, int64_t layers) {
  for (const row *r = rows; r->from; r++) {
    if (r->what & (OPTIONAL | LATER)) continue;
    for (int64_t l = 0; l < (strchr(r->from, '#') ? layers : 1); l++) {
      char name[128];
      fill(name, sizeof name, "", r->from, l, "", ".weight");
      if (!chi_gguf_tensor(s->g, name))
        return chi_fail(s->err, CHI_ERR_FORMAT, "%s: tensor '%s' is missing", chi_gguf_path(s->g), name);
    }
  }
  return 0;
}

static int rename_all(const source *s, chi_tensor_list *out, const row *rows, const char *prefix) {
  size_t n = 0;
  const chi_tensor *t = chi_gguf_tensors(s->g, &n);
  for (size_t i = 0; i < n; i++) {
    int rc = rename_one(s, out, rows, prefix, &t[i]);
    if (rc) return rc;
  }
  return 0;
}

static int64_t size_of(const json_t *config, const char *key, const char *other) {
  const json_t *v = json_object_get(config, key);
  return json_integer_value(v ? v : json_object_get(config, other));
}

int chi_gguf_names(chi_tensor_list *out, chi_arena *arena, const chi_gguf *g, const json_t *config, const char *prefix,
                   chi_err *err) {
  int rc = 0;
  const char *arch = NULL;
  source s = {.g = g,
              .arena = arena,
              .heads = size_of(config, "num_attention_heads", "n_head"),
              .kv = size_of(config, "num_key_value_heads", "n_head"),
              .err = err};
  CHI_TRY(chi_gguf_str_opt(&arch, g, "general.architecture", err));
  for (size_t i = 0; i < sizeof kTables / sizeof *kTables; i++) {
    if (!chi_streq(kTables[i].arch, arch)) continue;
    CHI_TRY(check_present(&s, kTables[i].rows, size_of(config, "num_hidden_layers", "n_layer")));
    return rename_all(&s, out, kTables[i].rows, prefix);
  }
  rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: general.architecture '%.40s' has no list of tensor names",
                chi_gguf_path(g), arch ? arch : "(missing)");
out:
  return rc;
}

/* Writers of 2023 and 2024 swapped the names of the two matrices of each MLP; the shapes tell. */
static void unswap(chi_tensor_list *out, size_t first, const chi_gguf *g) {
  int64_t d = 0, ffn = 0;
  chi_gguf_i64_opt(&d, g, "clip.vision.embedding_length", 1, 65536, NULL);
  chi_gguf_i64_opt(&ffn, g, "clip.vision.feed_forward_length", 1, 1 << 20, NULL);
  const chi_tensor *t = chi_gguf_tensor(g, "v.blk.0.ffn_down.weight");
  if (!t || t->ndim != 2 || d == ffn || t->dim[0] != ffn || t->dim[1] != d) return;
  for (size_t i = first; i < out->n; i++) {
    char *at = strstr(out->t[i].name, ".mlp.fc"); /* names are our own copies */
    if (at) at[7] = at[7] == '1' ? '2' : '1';
  }
}

int chi_gguf_vision_names(chi_tensor_list *out, chi_arena *arena, const chi_gguf *g, chi_err *err) {
  source s = {.g = g, .arena = arena, .heads = 1, .kv = 1, .err = err};
  size_t first = out->n;
  int rc = check_present(&s, kVision, 0);
  if (rc == 0) rc = rename_all(&s, out, kVision, "");
  if (rc == 0) unswap(out, first, g);
  return rc;
}

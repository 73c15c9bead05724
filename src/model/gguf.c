/* A GGUF file, and the one of a vision tower beside it -> what the families read. */
#include "model/gguf.h"

#include <string.h>

/* The type with the most bytes: embeddings and norms often have another one. */
static chi_dtype main_type(const chi_gguf *g) {
  size_t bytes[CHI_DTYPE_END] = {0}, n = 0;
  const chi_tensor *t = chi_gguf_tensors(g, &n);
  chi_dtype best = CHI_F32;
  for (size_t i = 0; i < n; i++) bytes[t[i].dtype] += t[i].bytes;
  for (size_t i = 0; i < CHI_DTYPE_END; i++)
    if (bytes[i] > bytes[best]) best = (chi_dtype)i;
  return best;
}

/* Pictures need a token of their own where the vocabulary has none. */
static int image_token(const chi_model *m, json_t *config, chi_err *err) {
  int32_t id = chi_token_id(m->tok, m->image_text);
  if (id < 0 || json_object_set_new(config, "image_token_index", json_integer(id)) == 0) return 0;
  return chi_fail(err, CHI_ERR_MEMORY, "no memory for the config");
}

int chi_gguf_read(chi_model *m, const char *path, const char *mmproj, json_t **config, chi_dtype *stored,
                  chi_err *err) {
  int rc = 0;
  chi_gguf *g = NULL, *tower = NULL;
  json_t *text = NULL, *whole = NULL;
  chi_tensor_list list = {0};
  chi_map map[2] = {{0}};
  *config = NULL;
  CHI_TRY(chi_gguf_open(&g, path, err));
  if (mmproj) CHI_TRY(chi_gguf_open(&tower, mmproj, err));
  CHI_TRY(chi_gguf_config(&text, g, err));
  CHI_TRY(chi_gguf_names(&list, &m->arena, g, text, tower ? "language_model." : "", err));
  if (tower) {
    CHI_TRY(chi_gguf_vision_config(&whole, json_incref(text), tower, &m->pre, err));
    CHI_TRY(chi_gguf_vision_names(&list, &m->arena, tower, err));
    m->pre_set = true;
  } else {
    whole = json_incref(text);
  }
  CHI_TRY(chi_tokenizer_from_gguf(&m->tok, g, err));
  if (tower) CHI_TRY(image_token(m, whole, err));
  *stored = main_type(g);
  chi_gguf_take_map(g, &map[0]);
  if (tower) chi_gguf_take_map(tower, &map[1]);
  rc = chi_st_view(&m->st, list.t, list.n, map, tower ? 2 : 1, err);
  if (rc) {
    chi_map_close(&map[0]);
    chi_map_close(&map[1]);
    goto out;
  }
  *config = json_incref(whole);
out:
  json_decref(text);
  json_decref(whole);
  chi_free(list.t);
  chi_gguf_close(tower);
  chi_gguf_close(g);
  return rc;
}

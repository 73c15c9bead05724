/* A GGUF file: either refused with one line, or every tensor lies inside it, every value can be read, and the tokenizer
 * and the names of a model are made from it or refused. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/gguf.h"
#include "tensor/quant.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void one_line(const chi_err *e, bool none) {
  if (none || e->text[0] == 0 || strchr(e->text, '\n')) __builtin_trap();
}

static void read_values(const chi_gguf *g) {
  for (size_t i = 0; i < chi_gguf_count(g); i++) {
    const chi_gguf_value *v = chi_gguf_at(g, i);
    chi_err e = {0};
    int64_t n = 0;
    double x = 0, sum = 0;
    bool b = false;
    const char *s = NULL;
    if (chi_gguf_find(g, v->key) != v) __builtin_trap();
    if (chi_gguf_i64_opt(&n, g, v->key, -1000, 1000, &e) == 0 && (n < -1000 || n > 1000)) __builtin_trap();
    chi_gguf_f64_opt(&x, g, v->key, NULL);
    chi_gguf_bool_opt(&b, g, v->key, NULL);
    if (chi_gguf_str_opt(&s, g, v->key, NULL) == 0 && s) sum += (double)strlen(s);
    if (chi_gguf_strings_opt(&v, g, v->key, NULL) == 0) {
      const uint8_t *at = v->data;
      for (uint64_t k = 0; k < v->n; k++) {
        size_t len;
        const char *word = chi_gguf_string(&at, &len);
        if (len) sum += (double)word[len - 1];
      }
    } else if (chi_gguf_numbers_opt(&v, g, chi_gguf_at(g, i)->key, NULL) == 0) {
      for (uint64_t k = 0; k < v->n; k++) sum += chi_gguf_number(v, k);
    }
    volatile double sink = sum;
    (void)sink;
  }
}

static void read_tensors(const chi_gguf *g, size_t size) {
  size_t n = 0, total = 0;
  const chi_tensor *t = chi_gguf_tensors(g, &n);
  for (size_t i = 0; i < n; i++) {
    float block[CHI_QUANT_LARGE];
    size_t count = 1, step = (size_t)chi_dtype_block(t[i].dtype);
    for (int d = 0; d < t[i].ndim; d++) count *= (size_t)t[i].dim[d];
    if (chi_dtype_bytes(t[i].dtype, count) != t[i].bytes || chi_gguf_tensor(g, t[i].name) != &t[i]) __builtin_trap();
    for (size_t k = 0; chi_dtype_is_weight(t[i].dtype) && k < count; k += step)
      chi_to_f32(block, (const uint8_t *)t[i].data + chi_dtype_bytes(t[i].dtype, k), t[i].dtype, step, NULL);
    total += t[i].bytes;
  }
  if (total > size) __builtin_trap();
}

static void make_parts(const chi_gguf *g) {
  chi_err e = {0};
  chi_tokenizer *tok = NULL;
  json_t *config = NULL, *whole = NULL;
  chi_tensor_list list = {0};
  chi_arena arena = {0};
  chi_preproc pre;
  if (chi_tokenizer_from_gguf(&tok, g, &e) == 0) {
    chi_tokens ids = {0};
    chi_encode(tok, "It's 12 \xC3\xA9", 9, true, &ids, NULL);
    chi_tokens_free(&ids);
  } else {
    one_line(&e, tok != NULL);
  }
  chi_tokenizer_free(tok);
  e = (chi_err){0};
  if (chi_gguf_config(&config, g, &e) != 0 || chi_gguf_names(&list, &arena, g, config, "", &e) != 0)
    one_line(&e, false);
  e = (chi_err){0};
  if (chi_gguf_vision_config(&whole, json_object(), g, &pre, &e) != 0 ||
      chi_gguf_vision_names(&list, &arena, g, &e) != 0)
    one_line(&e, false);
  chi_free(list.t);
  chi_arena_free(&arena);
  json_decref(config);
  json_decref(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  chi_gguf *g = NULL;
  chi_err e = {0};
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0) return 0;
  if (write(fd, data, size) == (ssize_t)size) {
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (chi_gguf_open(&g, path, &e) == 0) {
      read_values(g);
      read_tensors(g, size);
      make_parts(g);
    } else {
      one_line(&e, g != NULL);
    }
    chi_gguf_close(g);
  }
  close(fd);
  return 0;
}

/* JSON text and the typed getters on whatever comes out of it. */
#include <string.h>

#include "file/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void visit(const json_t *obj, int depth) {
  const char *key;
  json_t *v;
  if (depth > 4) return;
  json_object_foreach((json_t *)(uintptr_t)obj, key, v) {
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    chi_err e = {0};
    chi_json_i64(&i, obj, key, -5, 5, "fuzz", &e);
    if (i < -5 || i > 5) __builtin_trap();
    chi_json_f64_opt(&d, obj, key, "fuzz", NULL);
    chi_json_bool_opt(&b, obj, key, "fuzz", NULL);
    chi_json_str_opt(&s, obj, key, "fuzz", &e);
    if (e.code != 0 && (e.text[0] == 0 || strchr(e.text, '\n'))) __builtin_trap();
    if (json_is_object(v)) visit(v, depth + 1);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  json_t *j = NULL;
  chi_err e = {0};
  if (chi_json_parse(&j, (const char *)data, size, "fuzz", &e) != 0) {
    if (j || e.code == 0 || e.text[0] == 0 || strchr(e.text, '\n')) __builtin_trap();
    return 0;
  }
  visit(j, 0);
  json_decref(j);
  return 0;
}

#include "file/file.h"

#include <stdlib.h>

/* A parsed value takes far more memory than its text ("{}," is 3 bytes and about 250), so the text is measured before
 * it is parsed. The largest tokenizer files need about a quarter of the limit. */
#define SCALAR_COST 64u
#define CONTAINER_COST 256u
#define MEMORY_LIMIT ((size_t)1 << 30)

static size_t memory_needed(const char *text, size_t len) {
  size_t cost = 0;
  bool in_string = false;
  for (size_t i = 0; i < len; i++) {
    char c = text[i];
    if (in_string) {
      if (c == '\\') i++;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      cost += CONTAINER_COST;
    } else if (c == ',' || c == ':') {
      cost += SCALAR_COST;
    }
  }
  return cost + len;
}

static int parse(json_t **out, const char *text, size_t len, const char *what, size_t flags, chi_err *err) {
  json_error_t e;
  *out = NULL;
  size_t need = memory_needed(text, len);
  if (need > MEMORY_LIMIT) {
    return chi_fail(err, CHI_ERR_MEMORY, "%s: its JSON values would take about %zu MB, more than the limit of %zu MB",
                    what, need >> 20, MEMORY_LIMIT >> 20);
  }
  json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES | flags, &e);
  if (!j) {
    int code = json_error_code(&e) == json_error_out_of_memory ? CHI_ERR_MEMORY : CHI_ERR_FORMAT;
    return chi_fail(err, code, "%s: line %d, column %d: not valid JSON: %s", what, e.line, e.column, e.text);
  }
  *out = j;
  return 0;
}

int chi_json_parse(json_t **out, const char *text, size_t len, const char *what, chi_err *err) {
  return parse(out, text, len, what, 0, err);
}

int chi_json_parse_nul(json_t **out, const char *text, size_t len, const char *what, chi_err *err) {
  return parse(out, text, len, what, JSON_ALLOW_NUL, err);
}

int chi_json_load(json_t **out, const char *path, size_t max_bytes, chi_err *err) {
  int rc = 0;
  char *text = NULL;
  size_t len = 0;
  *out = NULL;
  CHI_TRY(chi_read_file(&text, &len, path, max_bytes, err));
  if (len == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: is empty; an interrupted download? fetch it again", path);
    goto out;
  }
  CHI_TRY(chi_json_parse(out, text, len, path, err));
out:
  chi_free(text);
  return rc;
}

/* ---- getters ------------------------------------------------------------------------------------------------- */
/* Value of a key; NULL with rc 0 if it is absent or null (HF configurations write null for "not set"). */
static int get(const json_t **v, const json_t *obj, const char *key, const char *where, chi_err *err) {
  *v = NULL;
  if (!json_is_object(obj)) return chi_fail(err, CHI_ERR_FORMAT, "%s: is not a JSON object", where);
  *v = json_object_get(obj, key);
  if (json_is_null(*v)) *v = NULL;
  return 0;
}

static int fail_value(const json_t *v, const char *key, const char *want, const char *where, chi_err *err) {
  const char *name = json_is_object(v) ? "an object" : json_is_array(v) ? "an array" : NULL;
  char *text = name ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
  int rc = chi_fail(err, CHI_ERR_FORMAT, "%s: \"%s\" is %.60s, but must be %s", where, key,
                    name   ? name
                    : text ? text
                           : "?",
                    want);
  free(text);
  return rc;
}

int chi_json_i64_opt(int64_t *out, const json_t *obj, const char *key, int64_t min, int64_t max, const char *where,
                     chi_err *err) {
  int rc = 0;
  const json_t *v;
  CHI_TRY(get(&v, obj, key, where, err));
  if (!v) goto out;
  int64_t n = json_is_integer(v) ? (int64_t)json_integer_value(v) : 0;
  if (!json_is_integer(v) || n < min || n > max) {
    chi_str want = {0};
    if (min == INT64_MIN && max == INT64_MAX) {
      chi_str_add(&want, "an integer");
    } else if (max == INT64_MAX) {
      chi_str_addf(&want, "an integer, at least %lld", (long long)min);
    } else {
      chi_str_addf(&want, "an integer from %lld to %lld", (long long)min, (long long)max);
    }
    rc = fail_value(v, key, want.failed ? "an integer in range" : want.s, where, err);
    chi_str_free(&want);
    goto out;
  }
  *out = n;
out:
  return rc;
}

int chi_json_i64(int64_t *out, const json_t *obj, const char *key, int64_t min, int64_t max, const char *where,
                 chi_err *err) {
  int rc = 0;
  const json_t *v;
  CHI_TRY(get(&v, obj, key, where, err));
  if (!v) return chi_fail(err, CHI_ERR_FORMAT, "%s: \"%s\" is missing", where, key);
  CHI_TRY(chi_json_i64_opt(out, obj, key, min, max, where, err));
out:
  return rc;
}

int chi_json_f64_opt(double *out, const json_t *obj, const char *key, const char *where, chi_err *err) {
  const json_t *v;
  int rc = get(&v, obj, key, where, err);
  if (rc != 0 || !v) return rc;
  if (!json_is_number(v)) return fail_value(v, key, "a number", where, err);
  *out = json_number_value(v);
  return 0;
}

int chi_json_bool_opt(bool *out, const json_t *obj, const char *key, const char *where, chi_err *err) {
  const json_t *v;
  int rc = get(&v, obj, key, where, err);
  if (rc != 0 || !v) return rc;
  if (!json_is_boolean(v)) return fail_value(v, key, "true or false", where, err);
  *out = json_is_true(v);
  return 0;
}

int chi_json_str_opt(const char **out, const json_t *obj, const char *key, const char *where, chi_err *err) {
  const json_t *v;
  int rc = get(&v, obj, key, where, err);
  if (rc != 0 || !v) return rc;
  if (!json_is_string(v)) return fail_value(v, key, "a string", where, err);
  *out = json_string_value(v);
  return 0;
}

/* ---- output -------------------------------------------------------------------------------------------------- */
static int dump_piece(const char *p, size_t n, void *ud) { return chi_out_write(ud, p, n, NULL) == 0 ? 0 : -1; }

int chi_json_save(const json_t *j, const char *path, chi_err *err) {
  int rc = 0;
  chi_out *o = NULL;
  CHI_TRY(chi_out_open(&o, path, err));
  int bad = json_dump_callback(j, dump_piece, o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
  /* A failed write is remembered by o and reported by the commit; anything else is jansson's. */
  rc = chi_out_write(o, "\n", 1, err);
  if (rc == 0 && bad != 0) rc = chi_fail(err, CHI_ERR_MEMORY, "%s: the JSON text could not be made", path);
  if (rc != 0) goto out;
  rc = chi_out_commit(o, err);
  o = NULL;
out:
  chi_out_abort(o);
  return rc;
}

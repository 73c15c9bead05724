/* Results as JSON. */
#include "report/internal.h"

#include <math.h>

json_t *chi_json_num(double x) { return isfinite(x) ? json_real(x) : json_null(); }

json_t *chi_json_nums(const float *x, size_t n) {
  json_t *a = json_array();
  for (size_t i = 0; a && i < n; i++) {
    if (json_array_append_new(a, chi_json_num((double)x[i])) != 0) {
      json_decref(a);
      return NULL;
    }
  }
  return a;
}

json_t *chi_json_text(const char *s) {
  chi_str clean = {0};
  chii_clean(&clean, s, true);
  json_t *j = clean.failed ? NULL : json_stringn(clean.s ? clean.s : "", clean.len);
  chi_str_free(&clean);
  return j;
}

static int add_text(json_t *o, const char *key, const char *s) {
  return s ? json_object_set_new(o, key, chi_json_text(s)) : 0;
}

int chi_provenance_json(json_t **out, const chi_provenance *p, chi_err *err) {
  json_t *o = json_object();
  int bad = !o;
  if (p && !bad) {
    bad |= add_text(o, "command", p->command);
    bad |= add_text(o, "version", p->version);
    bad |= add_text(o, "git", p->git_id);
    bad |= add_text(o, "model", p->model_path);
    bad |= add_text(o, "model_sha256", p->model_hash);
    bad |= add_text(o, "image", p->image_path);
    bad |= add_text(o, "image_sha256", p->image_sha256);
    bad |= add_text(o, "data_sha256", p->data_hash);
    bad |= add_text(o, "template", p->template_name);
    bad |= add_text(o, "prompt", p->prompt);
    bad |= add_text(o, "dtype", p->dtype);
    bad |= add_text(o, "isa", p->isa);
    json_t *deltas = p->n_deltas ? json_array() : NULL;
    for (int i = 0; i < p->n_deltas; i++) {
      json_t *d = json_object();
      bad |= add_text(d, "file", p->delta_file[i]);
      bad |= add_text(d, "sha256", p->delta_sha256[i]);
      bad |= json_array_append_new(deltas, d);
    }
    if (p->n_deltas) bad |= json_object_set_new(o, "deltas", deltas);
    /* JSON numbers end at 2^63 in most readers. */
    if (p->has_seed && p->seed <= INT64_MAX) {
      bad |= json_object_set_new(o, "seed", json_integer((json_int_t)p->seed));
    } else if (p->has_seed) {
      bad |= json_object_set_new(o, "seed", json_sprintf("%llu", (unsigned long long)p->seed));
    }
  }
  if (bad) {
    json_decref(o);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory for the provenance of a result");
  }
  *out = o;
  return 0;
}

int chi_report_json(json_t **out, const char *kind, const chi_provenance *p, chi_err *err) {
  json_t *prov = NULL;
  int rc = chi_provenance_json(&prov, p, err);
  if (rc != 0) return rc;
  json_t *o = json_object();
  int bad = json_object_set_new(o, "kind", chi_json_text(kind));
  bad |= json_object_set_new(o, "provenance", prov); /* takes prov in every case */
  if (bad) {
    json_decref(o);
    return chi_fail(err, CHI_ERR_MEMORY, "no memory for a result");
  }
  *out = o;
  return 0;
}

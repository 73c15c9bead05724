/* Rotary settings -> table of cosines and sines, for every kind of scaling as transformers 5.23 computes it (inverse
 * frequencies in f32, in the same order of operations). Two kinds depend on the length of the prompt; they are read up
 * to the length where they do not: a prompt's states must not change when one more token is generated. */
#include <string.h>

#include "model/family.h"

typedef struct rope {
  const json_t *r; /* rope_parameters or rope_scaling, or NULL */
  const char *where, *type;
  double theta, factor, original; /* original: context that the model was trained with */
  int half;
  float *inv;
  float scale;
  int64_t context; /* may become shorter */
} rope;

static int need_factor(rope *p, chi_err *err) {
  int rc = chi_json_f64_opt(&p->factor, p->r, "factor", p->where, err);
  if (rc) return rc;
  if (!(p->factor > 0) || !(p->factor < 1e6))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: rope type '%s' needs a factor above 0", p->where, p->type);
  return 0;
}

/* High frequencies stay, low ones are divided, those between are blended. */
static int llama3(rope *p, chi_err *err) {
  int rc = need_factor(p, err);
  double low = 0, high = 0;
  if (rc == 0) rc = chi_json_f64_opt(&low, p->r, "low_freq_factor", p->where, err);
  if (rc == 0) rc = chi_json_f64_opt(&high, p->r, "high_freq_factor", p->where, err);
  if (rc) return rc;
  if (!(low > 0) || !(high > low))
    return chi_fail(err, CHI_ERR_FORMAT,
                    "%s: rope type 'llama3' needs low_freq_factor above 0 and a higher high_freq_factor", p->where);
  float factor = (float)p->factor, old = (float)p->original, long_wave = (float)(p->original / low),
        short_wave = (float)(p->original / high);
  for (int i = 0; i < p->half; i++) {
    float inv = p->inv[i], wave = (float)(2 * 3.14159265358979323846) / inv;
    float slow = wave > long_wave ? inv / factor : inv;
    if (!(wave < short_wave) && !(wave > long_wave)) {
      float smooth = (old / wave - (float)low) / (float)(high - low);
      slow = (1.0f - smooth) * slow / factor + smooth * slow;
    }
    p->inv[i] = slow;
  }
  return 0;
}

static double mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * chi_log64(factor) + 1.0; }

/* Dimension whose wave turns `turns` times within the original context. */
static double yarn_dim(const rope *p, double turns) {
  return 2 * p->half * chi_log64(p->original / (turns * 2 * 3.14159265358979323846)) / (2 * chi_log64(p->theta));
}

static int yarn(rope *p, chi_err *err) {
  int rc = 0;
  double fast = 0, slow = 0, m = 0, m_all = 0, attention = 0;
  bool truncate = true;
  if (!json_object_get(p->r, "factor") || json_is_null(json_object_get(p->r, "factor")))
    p->factor = (double)p->context / p->original;
  CHI_TRY(need_factor(p, err));
  CHI_TRY(chi_json_f64_opt(&fast, p->r, "beta_fast", p->where, err));
  CHI_TRY(chi_json_f64_opt(&slow, p->r, "beta_slow", p->where, err));
  CHI_TRY(chi_json_f64_opt(&m, p->r, "mscale", p->where, err));
  CHI_TRY(chi_json_f64_opt(&m_all, p->r, "mscale_all_dim", p->where, err));
  CHI_TRY(chi_json_f64_opt(&attention, p->r, "attention_factor", p->where, err));
  CHI_TRY(chi_json_bool_opt(&truncate, p->r, "truncate", p->where, err));
  if (!(attention > 0))
    attention = m != 0 && m_all != 0 ? mscale(p->factor, m) / mscale(p->factor, m_all) : mscale(p->factor, 1);
  double lo = yarn_dim(p, fast != 0 ? fast : 32), hi = yarn_dim(p, slow != 0 ? slow : 1), top = 2 * p->half - 1;
  if (!(lo > -1e9 && lo < 1e9 && hi > -1e9 && hi < 1e9))
    return chi_fail(err, CHI_ERR_FORMAT, "%s: rope type 'yarn' with impossible beta_fast, beta_slow or theta",
                    p->where);
  if (truncate) {
    int64_t a = (int64_t)lo, b = (int64_t)hi;
    lo = (double)a > lo ? (double)(a - 1) : (double)a;
    hi = (double)b < hi ? (double)(b + 1) : (double)b;
  }
  lo = lo > 0 ? lo : 0;
  hi = hi < top ? hi : top;
  if (lo == hi) hi += 0.001;
  for (int i = 0; i < p->half; i++) {
    float freq = (float)chi_pow64(p->theta, (double)((float)(2 * i) / (float)(2 * p->half)));
    float ramp = ((float)i - (float)lo) / (float)(hi - lo);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    float keep = 1.0f - ramp;
    p->inv[i] = 1.0f / ((float)p->factor * freq) * (1.0f - keep) + 1.0f / freq * keep;
  }
  p->scale = (float)attention;
out:
  return rc;
}

/* Each frequency has a divisor of its own; beyond the original context transformers takes another list. */
static int longrope(rope *p, chi_err *err) {
  int rc = 0;
  double attention = 0;
  const json_t *list = json_object_get(p->r, "short_factor");
  if (!json_is_array(list) || json_array_size(list) != (size_t)p->half)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: rope type 'longrope' needs short_factor with %d numbers", p->where,
                    p->half);
  p->factor = (double)p->context / p->original;
  CHI_TRY(need_factor(p, err));
  CHI_TRY(chi_json_f64_opt(&attention, p->r, "attention_factor", p->where, err));
  if (!(attention > 0)) {
    attention = p->factor <= 1 ? 1.0 : 1 + chi_log64(p->factor) / chi_log64(p->original);
    attention = chi_pow64(attention, 0.5);
  }
  for (int i = 0; i < p->half; i++) {
    const json_t *v = json_array_get(list, (size_t)i);
    if (!json_is_number(v) || !(json_number_value(v) > 0))
      return chi_fail(err, CHI_ERR_FORMAT, "%s: short_factor must hold numbers above 0", p->where);
    float freq = (float)chi_pow64(p->theta, (double)((float)(2 * i) / (float)(2 * p->half)));
    p->inv[i] = 1.0f / ((float)json_number_value(v) * freq);
  }
  p->scale = (float)attention;
  if (p->context > (int64_t)p->original) p->context = (int64_t)p->original;
out:
  return rc;
}

static int frequencies(rope *p, chi_err *err) {
  int rc = 0;
  for (int i = 0; i < p->half; i++) p->inv[i] = chi_rope_freq(i, p->half, p->theta);
  if (chi_streq(p->type, "default")) return 0;
  if (chi_streq(p->type, "linear")) {
    if ((rc = need_factor(p, err)) != 0) return rc;
    for (int i = 0; i < p->half; i++) p->inv[i] /= (float)p->factor;
    return 0;
  }
  if (chi_streq(p->type, "dynamic")) return 0; /* plain up to max_position_embeddings, our context */
  if (chi_streq(p->type, "llama3")) return llama3(p, err);
  if (chi_streq(p->type, "yarn")) return yarn(p, err);
  if (chi_streq(p->type, "longrope")) return longrope(p, err);
  return chi_fail(err, CHI_ERR_UNSUPPORTED,
                  "%s: rope_type is '%s'; known are default, linear, dynamic, llama3, yarn, longrope", p->where,
                  p->type);
}

int chi_rope_config(chi_model *m, const json_t *text, const chi_rope_opts *o, const char *where, chi_err *err) {
  int rc = 0;
  chi_decoder *d = &m->net.decoder;
  double partial = o->partial;
  rope p = {.where = where, .type = "default", .theta = o->theta, .scale = 1.0f, .context = d->rope.n};
  p.original = (double)d->rope.n;
  CHI_TRY(chi_json_f64_opt(&p.theta, text, "rope_theta", where, err));
  CHI_TRY(chi_json_f64_opt(&partial, text, "partial_rotary_factor", where, err));
  CHI_TRY(chi_json_f64_opt(&p.original, text, "original_max_position_embeddings", where, err));
  /* the current place (rope_parameters) or the older one (rope_theta + rope_scaling) */
  p.r = json_object_get(text, "rope_parameters");
  if (!json_is_object(p.r)) p.r = json_object_get(text, "rope_scaling");
  if (json_is_object(p.r)) {
    CHI_TRY(chi_json_f64_opt(&p.theta, p.r, "rope_theta", where, err));
    CHI_TRY(chi_json_str_opt(&p.type, p.r, "type", where, err));
    CHI_TRY(chi_json_str_opt(&p.type, p.r, "rope_type", where, err));
    CHI_TRY(chi_json_f64_opt(&partial, p.r, "partial_rotary_factor", where, err));
    CHI_TRY(chi_json_f64_opt(&p.original, p.r, "original_max_position_embeddings", where, err));
  }
  if (!(p.theta > 1.0) || !(partial > 0.0) || partial > 1.0 || !(p.original >= 1) || p.original > 1e9)
    return chi_fail(err, CHI_ERR_FORMAT,
                    "%s: rope_theta must be above 1, partial_rotary_factor within 0..1 and the original context at "
                    "least 1",
                    where);
  if (!o->partial_read && partial != 1.0)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: partial_rotary_factor is %g; this family rotates whole heads", where,
                    partial);
  int dims = (int)((double)d->spec.head_dim * partial);
  p.half = dims / 2;
  if (dims < 2 || dims % 2)
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %d of %d dimensions of a head would be rotated; they come in pairs",
                    where, dims, d->spec.head_dim);
  p.inv = chi_calloc((size_t)p.half, sizeof *p.inv, err);
  CHI_TRY(p.inv ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(frequencies(&p, err));
  d->rope.n = (int32_t)p.context;
  d->spec.rope_half = (int32_t)p.half;
  size_t table = (size_t)p.half * (size_t)d->rope.n;
  d->rope.cos_t = chi_calloc(table, sizeof(float), err);
  d->rope.sin_t = chi_calloc(table, sizeof(float), err);
  CHI_TRY(d->rope.cos_t && d->rope.sin_t ? 0 : CHI_ERR_MEMORY);
  chi_rope_table_freq(d->rope.cos_t, d->rope.sin_t, d->rope.n, p.half, p.inv, p.scale);
out:
  chi_free(p.inv);
  return rc;
}

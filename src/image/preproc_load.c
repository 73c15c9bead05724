/* preprocessor_config.json, as ten years of Hugging Face wrote it. */
#include "image/internal.h"

#include <string.h>

#define MAX_CONFIG ((size_t)1 << 20)
#define MAX_SIZE 4096

static const double clip_mean[3] = {0.48145466, 0.4578275, 0.40821073},
                    clip_std[3] = {0.26862954, 0.26130258, 0.27577711};
static const double half_mean[3] = {0.5, 0.5, 0.5}, half_std[3] = {0.5, 0.5, 0.5};

/* One row per image processor class, "Fast" and "Pil" endings cut off: what it does when the file does not say. */
typedef struct family {
  const char *name;
  int size;
  bool shortest; /* a plain number as size is the shortest edge, else a square; the same for the default */
  bool crop;
  chi_resample resample;
  const double *mean, *std;
  bool pads_square; /* do_pad means LLaVA's square padding before the resize */
} family;

static const family families[] = {
    {"CLIPImageProcessor", 224, true, true, CHI_BICUBIC, clip_mean, clip_std, false},
    {"CLIPFeatureExtractor", 224, true, true, CHI_BICUBIC, clip_mean, clip_std, false},
    {"LlavaImageProcessor", 224, true, true, CHI_BICUBIC, clip_mean, clip_std, true},
    {"BitImageProcessor", 224, true, true, CHI_BICUBIC, clip_mean, clip_std, false},
    {"BlipImageProcessor", 384, false, false, CHI_BICUBIC, clip_mean, clip_std, false},
    {"SiglipImageProcessor", 224, true, false, CHI_BICUBIC, half_mean, half_std, false},
    {"ViTImageProcessor", 224, false, false, CHI_BILINEAR, half_mean, half_std, false},
    {"ViTFeatureExtractor", 224, false, false, CHI_BILINEAR, half_mean, half_std, false},
};

/* The key's value, or NULL where it is absent or null: HF writes null for "not set". */
static const json_t *get(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_null(v) ? NULL : v;
}

static int get_bool(bool *out, const json_t *o, const char *key, const char *where, chi_err *err) {
  return get(o, key) ? chi_json_bool_opt(out, o, key, where, err) : 0;
}

static int find_family(const family **out, const json_t *o, const char *where, chi_err *err) {
  const char *name = NULL;
  int rc = get(o, "image_processor_type") ? chi_json_str_opt(&name, o, "image_processor_type", where, err) : 0;
  if (rc == 0 && !name && get(o, "feature_extractor_type")) {
    rc = chi_json_str_opt(&name, o, "feature_extractor_type", where, err);
  }
  if (rc != 0) return rc;
  *out = &families[0];
  if (!name) return 0;
  size_t n = strlen(name);
  if (n > 4 && strcmp(name + n - 4, "Fast") == 0)
    n -= 4;
  else if (n > 3 && strcmp(name + n - 3, "Pil") == 0)
    n -= 3;
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
    if (strlen(families[i].name) == n && strncmp(families[i].name, name, n) == 0) {
      *out = &families[i];
      return 0;
    }
  }
  return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: image processor %s is not implemented", where, name);
}

static int get_side(int *out, const json_t *v, const char *key, const char *where, chi_err *err) {
  if (!json_is_integer(v) || json_integer_value(v) <= 0 || json_integer_value(v) > MAX_SIZE) {
    return chi_fail(err, CHI_ERR_FORMAT, "%s: %s must hold whole numbers from 1 to %d", where, key, MAX_SIZE);
  }
  *out = (int)json_integer_value(v);
  return 0;
}

/* A size: number, [height, width], {"height", "width"} or {"shortest_edge"}. Sets either *edge or (*w, *h). */
static int get_size(int *edge, int *w, int *h, const json_t *v, bool number_is_edge, const char *key, const char *where,
                    chi_err *err) {
  const json_t *hv = NULL, *wv = NULL, *ev = NULL;
  if (json_is_integer(v)) {
    if (number_is_edge)
      ev = v;
    else
      hv = wv = v;
  } else if (json_is_array(v) && json_array_size(v) == 2) {
    hv = json_array_get(v, 0);
    wv = json_array_get(v, 1);
  } else if (json_is_object(v)) {
    hv = get(v, "height");
    wv = get(v, "width");
    ev = get(v, "shortest_edge");
    if (get(v, "longest_edge") || get(v, "max_pixels") || get(v, "max_height")) ev = hv = NULL;
  }
  if (ev && !hv && !wv) {
    *w = *h = 0;
    return get_side(edge, ev, key, where, err);
  }
  if (ev || !hv || !wv) {
    return chi_fail(err, CHI_ERR_UNSUPPORTED,
                    "%s: %s must be a number, {\"shortest_edge\"} or {\"height\", \"width\"} alone", where, key);
  }
  *edge = 0;
  int rc = get_side(h, hv, key, where, err);
  return rc != 0 ? rc : get_side(w, wv, key, where, err);
}

static int get_three(double out[3], const json_t *o, const char *key, const char *where, chi_err *err) {
  const json_t *v = get(o, key);
  if (!v) return 0;
  bool list = json_is_array(v) && json_array_size(v) == 3;
  for (size_t i = 0; i < 3; i++) {
    const json_t *x = list ? json_array_get(v, i) : v;
    if (!json_is_number(x)) return chi_fail(err, CHI_ERR_FORMAT, "%s: %s must be one number or three", where, key);
    out[i] = json_number_value(x);
  }
  return 0;
}

static int get_resample(chi_resample *out, const json_t *o, const char *where, chi_err *err) {
  int64_t v = *out;
  int rc = get(o, "resample") ? chi_json_i64_opt(&v, o, "resample", 0, 5, where, err) : 0;
  if (rc != 0) return rc;
  if (v > 3)
    return chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: resample %d (box or Hamming) is not implemented", where, (int)v);
  *out = (chi_resample)v;
  return 0;
}

static int parse(chi_preproc *p, const json_t *o, const char *where, chi_err *err) {
  int rc = 0, unused = 0;
  const family *f = NULL;
  const json_t *v;
  CHI_TRY(find_family(&f, o, where, err));
  *p = (chi_preproc){.do_resize = true,
                     .do_center_crop = f->crop,
                     .do_rescale = true,
                     .do_normalize = true,
                     .resample = f->resample,
                     .rescale = 1.0 / 255};
  if (f->shortest && f->crop)
    p->shortest_edge = f->size;
  else
    p->resize_w = p->resize_h = f->size;
  if (f->crop) p->crop_w = p->crop_h = f->size;
  memcpy(p->mean, f->mean, sizeof p->mean);
  memcpy(p->std, f->std, sizeof p->std);
  CHI_TRY(get_bool(&p->do_resize, o, "do_resize", where, err));
  CHI_TRY(get_bool(&p->do_center_crop, o, "do_center_crop", where, err));
  CHI_TRY(get_bool(&p->do_rescale, o, "do_rescale", where, err));
  CHI_TRY(get_bool(&p->do_normalize, o, "do_normalize", where, err));
  CHI_TRY(get_bool(&p->do_pad, o, "do_pad", where, err));
  if (p->do_pad && !f->pads_square && get(o, "pad_size")) {
    rc = chi_fail(err, CHI_ERR_UNSUPPORTED, "%s: do_pad with pad_size is not implemented", where);
    goto out;
  }
  p->pad_square = p->do_pad && f->pads_square;
  if (p->do_resize && (v = get(o, "size"))) {
    CHI_TRY(get_size(&p->shortest_edge, &p->resize_w, &p->resize_h, v, f->shortest, "size", where, err));
  }
  if (p->do_center_crop && (v = get(o, "crop_size"))) {
    CHI_TRY(get_size(&unused, &p->crop_w, &p->crop_h, v, false, "crop_size", where, err));
  }
  if (p->do_center_crop && (p->crop_w <= 0 || p->crop_h <= 0)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: do_center_crop needs crop_size as a number or {\"height\", \"width\"}",
                  where);
    goto out;
  }
  CHI_TRY(get_resample(&p->resample, o, where, err));
  if (get(o, "rescale_factor")) CHI_TRY(chi_json_f64_opt(&p->rescale, o, "rescale_factor", where, err));
  CHI_TRY(get_three(p->mean, o, "image_mean", where, err));
  CHI_TRY(get_three(p->std, o, "image_std", where, err));
  for (int c = 0; c < 3; c++) {
    if ((p->do_normalize && !(p->std[c] > 0)) || (p->pad_square && !(p->mean[c] >= 0 && p->mean[c] <= 1))) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "%s: image_std must be above 0 and image_mean a colour from 0 to 1", where);
      goto out;
    }
  }
out:
  return rc;
}

int chi_preproc_load(chi_preproc *out, const char *path, chi_err *err) {
  json_t *root = NULL;
  int rc = chi_json_load(&root, path, MAX_CONFIG, err);
  if (rc != 0) return rc;
  const json_t *o = root, *nested = get(root, "image_processor");
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  if (json_is_object(nested)) o = nested;
  if (!json_is_object(o)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: not a JSON object", path);
  } else if (!nested && strcmp(name, "processor_config.json") == 0 && !get(o, "image_mean") && !get(o, "size")) {
    /* Older ones hold only the processor's own settings. */
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: holds no image_processor; the settings are in preprocessor_config.json",
                  path);
  } else {
    chi_preproc p;
    rc = parse(&p, o, path, err);
    if (rc == 0) *out = p;
  }
  json_decref(root);
  return rc;
}

/* LLaVA as its authors published it: the decoder's checkpoint with the projector in it, and a CLIP tower that lies in a
 * folder of its own. The tokenizer has no picture token: the text on both sides of <image> is encoded apart. */
#include <string.h>

#include "model/family.h"

int chi_mm_config(chi_model *m, const json_t *c, bool *pad, chi_err *err) {
  int rc = 0;
  const char *word = NULL;
  CHI_TRY(chi_config_plain(c, "config.json", err));
  CHI_TRY(chi_config_str(&word, c, "mm_projector_type", "linear", (const char *const[]){"mlp2x_gelu", NULL},
                         "config.json", err));
  CHI_TRY(chi_config_str(&word, c, "image_aspect_ratio", "square", (const char *const[]){"pad", "square", NULL},
                         "config.json", err));
  *pad = chi_streq(word, "pad");
  m->net.projector.act = CHI_ACT_GELU_ERF;
  m->image_token = CHI_PICTURE_ID;
  m->tmpl = chi_template_find("vicuna");
out:
  return rc;
}

int chi_mm_projector(chi_model *m, chi_binder *b, chi_err *err) {
  int64_t d = m->net.decoder.spec.d, feat = (int64_t)m->net.vision.spec.d * m->net.vision.n_features;
  int rc = chi_bind_linear(b, &m->net.projector.l1, d, feat, true, err, "model.mm_projector.0");
  return rc ? rc : chi_bind_linear(b, &m->net.projector.l2, d, d, true, err, "model.mm_projector.2");
}

/* The tower's folder: the name itself as a path, below the checkpoint, or beside it; full name or its last part. */
static int find_tower(char *out, size_t cap, const chi_model *m, const char *name, chi_err *err) {
  const char *slash = strrchr(name, '/'), *last = slash ? slash + 1 : name;
  chi_str tried = {0};
  const struct {
    const char *dir, *up, *name;
  } places[] = {
      {"", "", name}, {m->path, "/", name}, {m->path, "/", last}, {m->path, "/../", name}, {m->path, "/../", last}};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    chi_str s = {0};
    chi_str_addf(&s, "%s%s%s", places[i].dir, places[i].up, places[i].name);
    chi_str_addf(&tried, "%s%s", i ? ", " : "", s.s ? s.s : "");
    size_t n = s.len;
    if (!s.failed && n + 16 < cap) {
      memcpy(out, s.s, n);
      memcpy(out + n, "/config.json", sizeof "/config.json");
      bool there = chi_file_exists(out);
      out[n] = 0;
      if (there) {
        chi_str_free(&s);
        chi_str_free(&tried);
        return 0;
      }
    }
    chi_str_free(&s);
  }
  int rc = chi_fail(err, CHI_ERR_IO,
                    "%s: the vision tower '%s' is a checkpoint of its own and was not found; put its "
                    "folder beside this one (tried %s)",
                    m->path, name, tried.s ? tried.s : "");
  chi_str_free(&tried);
  return rc;
}

static int tower_config(chi_model *m, const json_t *c, const char *dir, bool pad, chi_err *err) {
  int rc = 0;
  char path[4096], where[4200] = "";
  json_t *tower = NULL;
  const char *type = NULL, *select = NULL;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "config.json", err));
  CHI_TRY(chi_json_load(&tower, path, 16 << 20, err));
  CHI_TRY(chi_config_str(&type, tower, "model_type", "clip", (const char *const[]){"clip", "clip_vision_model", NULL},
                         path, err));
  const json_t *v = chi_streq(type, "clip") ? json_object_get(tower, "vision_config") : tower;
  if (!json_is_object(v)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: vision_config is missing", path);
    goto out;
  }
  chi_str w = {0};
  chi_str_addf(&w, "%s: vision_config", path);
  if (w.s && w.len < sizeof where) memcpy(where, w.s, w.len + 1);
  chi_str_free(&w);
  CHI_TRY(chi_vit_config(m, v, where, err));
  CHI_TRY(chi_vit_features(m, c, "mm_vision_select_layer", err));
  CHI_TRY(chi_config_str(&select, c, "mm_vision_select_feature", "patch",
                         (const char *const[]){"patch", "cls_patch", NULL}, "config.json", err));
  m->net.vision.select = chi_streq(select, "patch") ? 1 : 0;
  CHI_TRY(chi_path_join(path, sizeof path, dir, "preprocessor_config.json", err));
  CHI_TRY(chi_preproc_load(&m->pre, path, err));
  m->pre.do_pad = m->pre.pad_square = pad;
  m->pre_set = true;
out:
  json_decref(tower);
  return rc;
}

static int tower_weights(chi_model *m, const char *dir, const chi_binder *b, chi_err *err) {
  int rc = 0;
  chi_binder t = {.m = m, .dry = b->dry};
  const char *base = NULL;
  CHI_TRY(chi_check_pickle(dir, err));
  CHI_TRY(chi_st_open(&m->tower, dir, err));
  t.st = m->tower;
  CHI_TRY((t.used = chi_calloc(chi_st_count(m->tower) + 1, 1, err)) ? 0 : CHI_ERR_MEMORY);
  CHI_TRY(
      chi_bind_prefix(&t, &base, (const char *const[]){"vision_model.", "", NULL}, "embeddings.class_embedding", err));
  CHI_TRY(chi_vit_weights(m, &t, base, err));
out:
  chi_free(t.used);
  return rc;
}

int chi_family_liuhaotian(chi_model *m, const json_t *config, chi_binder *b, chi_err *err) {
  int rc = 0;
  bool tied = false, pad = false;
  const char *tower = NULL, *merge = NULL;
  char dir[4096];
  m->family = "liuhaotian";
  CHI_TRY(chi_llama_config(m, config, "config.json", err));
  CHI_TRY(chi_mm_config(m, config, &pad, err));
  CHI_TRY(chi_json_str_opt(&tower, config, "mm_vision_tower", "config.json", err));
  if (!tower || !*tower)
    return chi_fail(err, CHI_ERR_FORMAT, "config.json: mm_vision_tower is missing: which tower sees the picture?");
  CHI_TRY(chi_config_want(config, "mm_use_im_start_end", false, false, "config.json", err));
  CHI_TRY(chi_config_absent(config, "mm_resampler_type", "only the projector is implemented", "config.json", err));
  CHI_TRY(chi_config_str(&merge, config, "mm_patch_merge_type", "flat", (const char *const[]){"flat", NULL},
                         "config.json", err));
  CHI_TRY(chi_json_bool_opt(&tied, config, "tie_word_embeddings", "config.json", err));
  CHI_TRY(find_tower(dir, sizeof dir, m, tower, err));
  CHI_TRY(tower_config(m, config, dir, pad, err));
  CHI_TRY(tower_weights(m, dir, b, err));
  CHI_TRY(chi_mm_projector(m, b, err));
  CHI_TRY(chi_llama_weights(m, b, "model.", "lm_head", tied, err));
out:
  return rc;
}

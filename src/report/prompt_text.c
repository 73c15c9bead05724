#include "report/prompt_text.h"

#include <stdio.h>
#include <string.h>

void chii_token_word(const chi_model *m, int32_t id, char out[CHII_TOKEN]) {
  char buf[CHII_TOKEN];
  chi_token_text(m->tok, id, buf, sizeof buf);
  size_t n = strlen(buf), a = strspn(buf, " ");
  while (n > a && buf[n - 1] == ' ') n--;
  if (a == n)
    snprintf(out, CHII_TOKEN, "%s", n ? "\xe2\x90\xa3" : "\xe2\x88\x85"); /* only spaces; nothing at all */
  else
    snprintf(out, CHII_TOKEN, "%.*s", (int)(n - a), buf + a);
}

void chii_row_word(const chi_model *m, const chi_prompt *p, int32_t row, char out[CHII_TOKEN]) {
  chi_patches g = chi_patches_of(m, p);
  int32_t r, c;
  if (chi_patch_at(&g, row, &r, &c))
    snprintf(out, CHII_TOKEN, "patch %d,%d", r, c);
  else if (p->role[row] == CHI_ROLE_IMAGE)
    snprintf(out, CHII_TOKEN, "picture %d", row - p->image_row);
  else
    chii_token_word(m, p->tokens[row], out);
}

/* Takes a word off the front, with the white space behind it. */
static const char *skip_word(const char *s, const char *word) {
  s += strspn(s, " \n");
  if (strncmp(s, word, strlen(word)) == 0) s += strlen(word);
  return s + strspn(s, " \n");
}

void chii_question(const chi_model *m, const chi_prompt *p, chi_str *out) {
  static const char *const kNames[] = {"USER:", "ASSISTANT:"};
  const char *s = p->text, *image = m->image_text ? m->image_text : "<image>";
  for (bool start = true; *s; start = false) {
    const char *was = s;
    s = skip_word(skip_word(s, kNames[0]), image);
    s = skip_word(skip_word(s, kNames[0]), kNames[1]);
    if (!*s) break;
    if (s > was && !start) chi_str_add(out, " ");
    size_t n = strcspn(s, " \n");
    chi_str_addn(out, s, n ? n : 1);
    s += n ? n : 1;
  }
}

bool chii_unseen(const chi_prompt *p, char *out, size_t cap) {
  const chi_view *v = &p->view;
  if (!p->pixels || v->resized_w < 1 || v->resized_h < 1) return false;
  int w = v->crop_left > 0 ? v->w : v->resized_w, h = v->crop_top > 0 ? v->h : v->resized_h;
  double seen = (double)w * (double)h / ((double)v->resized_w * (double)v->resized_h);
  if (!(seen < 1)) return false;
  bool wide = v->crop_left > 0;
  int whole = wide ? v->orig_w : v->orig_h;
  double step = (double)whole / (wide ? v->resized_w : v->resized_h), at = wide ? v->crop_left : v->crop_top;
  snprintf(out, cap, "the model saw %s %.0f to %.0f of %d: %.0f%% of the picture was cropped away",
           wide ? "columns" : "lines", at * step, (at + (wide ? v->w : v->h)) * step - 1, whole, 100 * (1 - seen));
  return true;
}

json_t *chii_token_json(const chi_model *m, int32_t id) {
  char buf[CHII_TOKEN];
  chi_token_text(m->tok, id, buf, sizeof buf);
  return json_pack("{s:i,s:o}", "id", (int)id, "token", chi_json_text(buf));
}

json_t *chii_row_json(const chi_model *m, const chi_prompt *p, int32_t row) {
  char buf[CHII_TOKEN];
  int32_t r, c;
  chi_patches g = chi_patches_of(m, p);
  chi_token_text(m->tok, p->tokens[row], buf, sizeof buf);
  json_t *o = json_pack("{s:i,s:i,s:o,s:s}", "row", (int)row, "id", (int)p->tokens[row], "token", chi_json_text(buf),
                        "role", chi_role_name(p->role[row]));
  if (o && chi_patch_at(&g, row, &r, &c) && json_object_set_new(o, "patch", json_pack("[i,i]", (int)r, (int)c)) != 0) {
    json_decref(o);
    return NULL;
  }
  return o;
}

json_t *chii_picture_json(const chi_model *m, const chi_prompt *p) {
  const chi_view *v = &p->view;
  chi_patches g = chi_patches_of(m, p);
  if (g.n == 0) return json_null();
  return json_pack("{s:i,s:i,s:[i,i],s:{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}}", "first_row", (int)g.first,
                   "rows", (int)g.n, "grid", (int)g.grid_h, (int)g.grid_w, "view", "orig_w", v->orig_w, "orig_h",
                   v->orig_h, "pad_left", v->pad_left, "pad_top", v->pad_top, "padded", v->padded, "resized_w",
                   v->resized_w, "resized_h", v->resized_h, "crop_left", v->crop_left, "crop_top", v->crop_top, "w",
                   v->w, "h", v->h);
}

/* chiasm info: what is in a checkpoint. */
#include <string.h>

#include "cli.h"

typedef struct args {
  cli_common c;
} args;
static const args kDefaults = {.c = CLI_COMMON_DEFAULTS};

static const char *stored_name(const chi_model *m) { return chi_dtype_name(m->stored); }

static const char *template_text(const chi_model *m, bool image) {
  return image ? m->tmpl->with_image : m->tmpl->text_only;
}

/* Columns of a site in each stack, 0 where the stack lacks it. */
static bool has_site(const chi_model *m, chi_site site, int64_t width[CHI_STACK_COUNT]) {
  bool any = false;
  for (int s = 0; s < CHI_STACK_COUNT; s++) {
    width[s] = chi_site_width(&m->net.shape, (chi_stack)s, site, 1);
    any = any || width[s];
  }
  return any;
}

static int sites_json(json_t *j, const chi_model *m) {
  int bad = 0;
  json_t *list = json_array();
  for (int i = 0; i < CHI_SITE_COUNT; i++) {
    int64_t width[CHI_STACK_COUNT];
    const chi_site_info *s = chi_site_get((chi_site)i);
    if (!has_site(m, (chi_site)i, width)) continue;
    json_t *stacks = json_object();
    for (int k = 0; k < CHI_STACK_COUNT; k++) {
      json_t *w = chi_site_is_pattern((chi_site)i) ? json_string("heads x keys") : json_integer(width[k]);
      if (width[k])
        bad |= json_object_set_new(stacks, chi_stack_name((chi_stack)k), w);
      else
        json_decref(w);
    }
    bad |= json_array_append_new(list, json_pack("{s:s,s:b,s:o,s:s}", "site", s->name, "per_layer", (int)s->per_layer,
                                                 "width", stacks, "doc", s->doc));
  }
  return bad | json_object_set_new(j, "sites", list);
}

static int stacks_json(json_t *j, const chi_model *m) {
  int bad = 0;
  json_t *o = json_object();
  for (int k = 0; k < CHI_STACK_COUNT; k++) {
    const chi_stack_shape *s = &m->net.shape.stack[k];
    if (!s->present) continue;
    bad |= json_object_set_new(o, chi_stack_name((chi_stack)k),
                               json_pack("{s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "layers", (int)s->layers, "width", (int)s->d,
                                         "heads", (int)s->heads, "kv_heads", (int)s->kv_heads, "head_dim",
                                         (int)s->head_dim, "mlp", (int)s->ffn, "rows", (int)s->rows));
  }
  return bad | json_object_set_new(j, "stacks", o);
}

static int print_json(cli *c, chi_model *m, chi_err *err) {
  int rc = 0;
  json_t *j = NULL;
  chi_provenance prov;
  CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
  CHI_TRY(chi_report_json(&j, "info", &prov, err));
  int bad = json_object_set_new(j, "family", json_string(m->family));
  bad |= json_object_set_new(j, "parameters", json_integer(m->params));
  bad |= json_object_set_new(j, "stored_as", json_string(stored_name(m)));
  bad |= json_object_set_new(j, "tensors", json_integer((json_int_t)chi_st_count(m->st)));
  bad |= json_object_set_new(j, "vocabulary", json_integer(m->net.decoder.vocab));
  bad |= json_object_set_new(j, "image_rows", json_integer(m->net.shape.n_image_rows));
  bad |= json_object_set_new(j, "context", json_integer(m->net.shape.stack[CHI_DECODER].rows));
  bad |= json_object_set_new(
      j, "template", json_pack("{s:s,s:s}", "name", m->tmpl->name, "text", template_text(m, m->net.has_vision)));
  if (m->net.has_vision) {
    const chi_vision *vis = &m->net.vision;
    bad |= json_object_set_new(
        j, "picture",
        json_pack("{s:i,s:i,s:i,s:i,s:i}", "width", (int)vis->image_w, "height", (int)vis->image_h, "patch",
                  (int)vis->patch, "grid_w", (int)vis->grid_w, "grid_h", (int)vis->grid_h));
  }
  bad |= stacks_json(j, m) | sites_json(j, m);
  if (bad) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the result");
  if (rc == 0) rc = cli_print_json(j, err);
out:
  json_decref(j);
  return rc;
}

static void count_text(chi_str *s, int64_t n) {
  if (n >= 1000000000)
    chi_str_addf(s, "%.2f billion", (double)n / 1e9);
  else if (n >= 1000000)
    chi_str_addf(s, "%.2f million", (double)n / 1e6);
  else
    chi_str_addf(s, "%lld", (long long)n);
}

static void general_text(chi_str *s, const chi_model *m, const chi_provenance *prov) {
  const chi_net *n = &m->net;
  chi_str_addf(s, "%s\n\n", m->path);
  chi_str_addf(s, "family      %s\nparameters  ", m->family);
  count_text(s, m->params);
  chi_str_addf(s, ", stored as %s, computed in %s (%s)\n", stored_name(m), prov->dtype, prov->isa);
  chi_str_addf(s, "sha256      %s\n", m->hash);
  chi_str_addf(s, "vocabulary  %d (tokenizer: %d", (int)n->decoder.vocab, (int)chi_vocab_size(m->tok));
  if (chi_token_bos(m->tok) >= 0) chi_str_addf(s, ", bos %d", (int)chi_token_bos(m->tok));
  for (int i = 0; i < m->n_eos; i++) chi_str_addf(s, "%s%d", i ? ", " : ", end of text ", (int)m->eos[i]);
  chi_str_addf(s, ")\ncontext     %d rows\n", (int)n->shape.stack[CHI_DECODER].rows);
  if (n->has_vision)
    chi_str_addf(s, "pictures    %dx%d pixels, patches of %d: %dx%d, %d rows of the decoder ('%s', token %d)\n",
                 (int)n->vision.image_w, (int)n->vision.image_h, (int)n->vision.patch, (int)n->vision.grid_w,
                 (int)n->vision.grid_h, (int)n->shape.n_image_rows, m->image_text, (int)m->image_token);
  chi_str_addf(s, "template    %s: ", m->tmpl->name);
  for (const char *p = template_text(m, n->has_vision); *p; p++) {
    if (*p == '\n')
      chi_str_add(s, "\\n");
    else
      chi_str_addn(s, p, 1);
  }
  chi_str_add(s, "\n\n");
}

static int tables_text(chi_str *s, const chi_model *m, chi_err *err) {
  static const char *const stack_head[] = {"stack",    "layers",     "width", "heads",
                                           "kv heads", "head width", "mlp",   "rows"};
  const char *site_head[CHI_STACK_COUNT + 3] = {"site", "layers"};
  char align[CHI_STACK_COUNT + 4] = "ll";
  int cols = 2;
  int rc = 0;
  chi_table *t = NULL, *u = NULL;
  CHI_TRY(chi_table_new(&t, stack_head, "lrrrrrrr", err));
  for (int k = 0; k < CHI_STACK_COUNT; k++) {
    const chi_stack_shape *z = &m->net.shape.stack[k];
    if (!z->present) continue;
    const int32_t cell[] = {z->layers, z->d, z->heads, z->kv_heads, z->head_dim, z->ffn, z->rows};
    chi_table_cell(t, "%s", chi_stack_name((chi_stack)k));
    for (size_t i = 0; i < sizeof cell / sizeof *cell; i++) {
      if (cell[i])
        chi_table_cell(t, "%d", (int)cell[i]);
      else
        chi_table_cell(t, "-");
    }
  }
  CHI_TRY(chi_table_text(t, cli_width(), s, err));
  chi_str_add(s, "\n");
  for (int k = 0; k < CHI_STACK_COUNT; k++) {
    if (!m->net.shape.stack[k].present) continue;
    align[cols] = 'r';
    site_head[cols++] = chi_stack_name((chi_stack)k);
  }
  align[cols] = 'l';
  site_head[cols] = "what";
  CHI_TRY(chi_table_new(&u, site_head, align, err));
  for (int i = 0; i < CHI_SITE_COUNT; i++) {
    int64_t w[CHI_STACK_COUNT];
    if (!has_site(m, (chi_site)i, w)) continue;
    chi_table_cell(u, "%s", chi_site_get((chi_site)i)->name);
    chi_table_cell(u, "%s", chi_site_get((chi_site)i)->per_layer ? "each" : "");
    for (int k = 0; k < CHI_STACK_COUNT; k++) {
      if (!m->net.shape.stack[k].present) continue;
      if (!w[k])
        chi_table_cell(u, " ");
      else if (chi_site_is_pattern((chi_site)i))
        chi_table_cell(u, "%dx keys", (int)w[k]);
      else
        chi_table_cell(u, "%lld", (long long)w[k]);
    }
    chi_table_cell(u, "%s", chi_site_get((chi_site)i)->doc);
  }
  CHI_TRY(chi_table_text(u, cli_width(), s, err));
out:
  chi_table_free(t);
  chi_table_free(u);
  return rc;
}

static int run(cli *c, void *v, chi_err *err) {
  int rc = 0;
  chi_model *m = NULL;
  chi_str s = {0};
  chi_provenance prov;
  (void)v;
  CHI_TRY(cli_open_model(&m, c, c->pos[0], err));
  if (c->common->json) {
    CHI_TRY(print_json(c, m, err));
  } else {
    CHI_TRY(cli_provenance(&prov, c, m, NULL, NULL, err));
    general_text(&s, m, &prov);
    CHI_TRY(tables_text(&s, m, err));
    CHI_TRY(cli_print(&s, err));
  }
out:
  chi_str_free(&s);
  chi_model_free(m);
  return rc;
}

const cli_command cmd_info = {
    .name = "info",
    .usage = "MODEL",
    .model = true,
    .args_size = sizeof(args),
    .defaults = &kDefaults,
    .run = run,
    .text =
        "Opens the checkpoint, which checks every tensor's name, type and shape, and tells what it is and which sites\n"
        "the other commands can read and change in it.",
    .examples = "chiasm info demo\nchiasm info path/to/llava-1.5-7b-hf --json",
};

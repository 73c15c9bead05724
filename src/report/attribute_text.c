/* Attributions for the terminal, and beside published values; see attribute_report.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/attribute_report.h"
#include "report/prompt_text.h"

static const char *signed_number(char *buf, size_t cap, double x) {
  snprintf(buf, cap, "%+.4f", x);
  return buf;
}

/* increase, logit and, of two targets, versus and difference: the last cells of a row. */
static void score_cells(chi_table *t, const chi_attribution *a, const chi_attr_score *s) {
  char b[32];
  chi_table_cell(t, "%s", signed_number(b, sizeof b, s->increase[0]));
  if (a->n_targets > 1) {
    chi_table_cell(t, "%s", signed_number(b, sizeof b, s->increase[1]));
    chi_table_cell(t, "%s", signed_number(b, sizeof b, s->logit[0] - s->logit[1]));
  } else {
    chi_table_cell(t, "%s", signed_number(b, sizeof b, s->logit[0]));
  }
}

/* Heads of those cells. */
static void score_names(const chi_attribution *a, const char **head) {
  head[0] = "increase";
  head[1] = a->n_targets > 1 ? "versus" : "logit";
  if (a->n_targets > 1) head[2] = "difference";
}

/* ---- answer ---------------------------------------------------------------------------------------------- */
static void add_answer(const chi_attribution *a, chi_str *out) {
  enum { kNext = 8 };
  char tok[CHII_TOKEN], note[160];
  static const char *const kName[] = {"answer", "versus"};
  int32_t top[kNext], V = a->model->net.decoder.vocab;
  int k = V < kNext ? (int)V : kNext;
  for (int t = 0; t < a->n_targets; t++) {
    chii_token_word(a->model, a->target[t], tok);
    chi_str_addf(out, "%-11s %s   p = %.4f, rank %.0f, token %d\n", kName[t], tok, a->final[t].p, a->final[t].rank,
                 (int)a->target[t]);
  }
  chi_top_k(a->logits, V, top, k);
  double lse = chi_logsumexp(a->logits, V);
  chi_str_addf(out, "%-11s", "next token");
  for (int i = 0; i < k; i++) {
    chii_token_word(a->model, top[i], tok);
    chi_str_addf(out, "%s %s %.3f", i ? "," : "", tok, chi_exp64((double)a->logits[top[i]] - lse));
  }
  chi_str_add(out, "\n");
  if (chii_unseen(a->prompt, note, sizeof note)) chi_str_addf(out, "%-11s %s\n", "note", note);
}

static int add_heads(const chi_attribution *a, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0, n = a->layers * a->heads, two = a->n_targets > 1;
  bool seen = a->prompt->n_image > 0;
  char b[32];
  chi_table *t = NULL;
  const char *head[] = {"", "head", NULL, NULL, NULL, NULL, NULL};
  score_names(a, head + 2);
  head[4 + two] = "from picture";
  head[5 + two] = "attention on it";
  static const char *const kAlign[] = {"rlrr", "rlrrr", "rlrrrr", "rlrrrrr"};
  CHI_TRY(chi_table_new(&t, head, kAlign[two + 2 * seen], err));
  for (int i = 0; i < n && i < top; i++) {
    chi_table_cell(t, "%d", i + 1);
    chi_table_cell(t, "%d_%d", a->order[i] / a->heads, a->order[i] % a->heads);
    score_cells(t, a, &a->head[a->order[i]]);
    if (!seen) continue;
    chi_table_cell(t, "%s", signed_number(b, sizeof b, a->picture[a->order[i]]));
    chi_table_cell(t, "%.3f", a->reads[a->order[i]]);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
  chi_str_add(out, "(head = LAYER_HEAD; increase = log p with the head's output added, minus without");
  chi_str_add(out, seen ? ";\n from picture = the logit that it draws from patches)\n" : ")\n");
  for (int i = 0; seen && i < a->n_positions; i++) {
    chi_attr_head h = a->pos_head[i];
    double reads = a->reads[h.layer * a->heads + h.head];
    if (reads < 0.05)
      chi_str_addf(out,
                   "note: head %d_%d has %.1f%% of its attention on the picture; --heads picture takes the one that "
                   "draws most from it\n",
                   h.layer, h.head, 100 * reads);
  }
out:
  chi_table_free(t);
  return rc;
}

typedef struct part {
  const char *name;
  int layer;
  const chi_attr_score *s;
} part;

static int by_size(const void *x, const void *y) {
  double p = fabs(((const part *)x)->s->increase[0]), q = fabs(((const part *)y)->s->increase[0]);
  return p > q ? -1 : p < q ? 1 : 0;
}

static int add_layers(const chi_attribution *a, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0, n = 2 * a->layers;
  chi_table *t = NULL;
  const char *head[] = {"layer", "part", NULL, NULL, NULL};
  part *p = chi_calloc((size_t)n, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (int i = 0; i < n; i++)
    p[i] = (part){i % 2 ? "mlp" : "attention", i / 2, i % 2 ? &a->mlp[i / 2] : &a->attn[i / 2]};
  qsort(p, (size_t)n, sizeof *p, by_size);
  score_names(a, head + 2);
  CHI_TRY(chi_table_new(&t, head, a->n_targets > 1 ? "rlrrr" : "rlrr", err));
  for (int i = 0; i < n && i < top; i++) {
    chi_table_cell(t, "%d", p[i].layer);
    chi_table_cell(t, "%s", p[i].name);
    score_cells(t, a, p[i].s);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  chi_free(p);
  return rc;
}

/* ---- positions ------------------------------------------------------------------------------------------- */
/* Eighths of blocks; negative values in light shade. */
static void bar(char *out, size_t cap, double x, double most) {
  static const char *const kPart[] = {"",
                                      "\xe2\x96\x8f",
                                      "\xe2\x96\x8e",
                                      "\xe2\x96\x8d",
                                      "\xe2\x96\x8c",
                                      "\xe2\x96\x8b",
                                      "\xe2\x96\x8a",
                                      "\xe2\x96\x89"};
  enum { kWidth = 16 };
  int eighths = most > 0 ? (int)lround(fabs(x) / most * 8 * kWidth) : 0;
  size_t n = 0;
  out[0] = 0;
  for (int i = 0; i < eighths / 8 && n + 4 < cap; i++)
    n += (size_t)snprintf(out + n, cap - n, "%s", x > 0 ? "\xe2\x96\x88" : "\xe2\x96\x91");
  if (x > 0 && n + 4 < cap) snprintf(out + n, cap - n, "%s", kPart[eighths % 8]);
}

typedef struct place {
  int32_t row;
  double x;
} place;

static int by_value(const void *p, const void *q) {
  const place *a = p, *b = q;
  return a->x > b->x ? -1 : a->x < b->x ? 1 : a->row - b->row;
}

/* Text only: every row in its order, as a bar chart. With a picture: the best ones. */
static int add_positions(const chi_attribution *a, int n, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0;
  char tok[CHII_TOKEN], b[96];
  const chi_attr_score *pos = a->pos + (int64_t)n * a->rows;
  chi_table *t = NULL;
  const char *head[] = {"row", "token", "attention", NULL, NULL, NULL, NULL};
  bool text = a->prompt->n_image == 0;
  double most = 0;
  place *p = chi_calloc((size_t)a->rows, sizeof *p, err);
  if (!p) return CHI_ERR_MEMORY;
  for (int32_t r = 0; r < a->rows; r++) {
    p[r] = (place){r, pos[r].increase[0]};
    most = fmax(most, fabs(p[r].x));
  }
  if (!text) qsort(p, (size_t)a->rows, sizeof *p, by_value);
  score_names(a, head + 3);
  head[a->n_targets > 1 ? 6 : 5] = "";
  chi_str_addf(out, "\npositions of head %d_%d%s\n", a->pos_head[n].layer, a->pos_head[n].head,
               text ? "" : ", best first");
  CHI_TRY(chi_table_new(&t, head, a->n_targets > 1 ? "rlrrrrl" : "rlrrrl", err));
  for (int32_t i = 0; i < a->rows && (text || i < top); i++) {
    int32_t r = p[i].row;
    chii_row_word(a->model, a->prompt, r, tok);
    chi_table_cell(t, "%d", (int)r);
    chi_table_cell(t, "%s", tok);
    chi_table_cell(t, "%.4f", (double)a->weight[(int64_t)n * a->rows + r]);
    score_cells(t, a, &pos[r]);
    bar(b, sizeof b, pos[r].increase[0], most);
    chi_table_cell(t, "%s", b);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  chi_free(p);
  return rc;
}

static int note_map(const chi_attribution *a, chi_str *out, chi_err *err) {
  double *sum = chi_calloc((size_t)a->rows, sizeof *sum, err), *map = chi_calloc((size_t)a->rows, sizeof *map, err);
  int rc = sum && map ? 0 : CHI_ERR_MEMORY;
  if (rc == 0) {
    chi_attribution_sum(a, 0, sum);
    if (a->prompt->n_image && !chi_attribution_map(a, sum, map))
      chi_str_add(out, "note: the map is flat: every patch has the same increase, so the picture shows nothing\n");
  }
  chi_free(sum);
  chi_free(map);
  return rc;
}

/* ---- neurons and views ----------------------------------------------------------------------------------- */
static int add_neurons(const chi_attribution *a, bool attn, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0, n = attn ? a->n_attn_neurons : a->n_neurons;
  char tok[CHII_TOKEN];
  chi_table *t = NULL;
  const char *head[] = {"", attn ? "attention neuron" : "MLP neuron", "coefficient", NULL, NULL, NULL};
  if (n == 0) return 0;
  score_names(a, head + 3);
  chi_str_add(out, "\n");
  CHI_TRY(chi_table_new(&t, head, a->n_targets > 1 ? "rlrrrr" : "rlrrr", err));
  for (int i = 0; i < n && i < top; i++) {
    const chi_attr_neuron *x = attn ? &a->attn_neuron[i] : &a->neuron[i];
    chi_table_cell(t, "%d", i + 1);
    if (attn) {
      chii_row_word(a->model, a->prompt, x->row, tok);
      chi_table_cell(t, "%d_%d dim %d at row %d (%s)", x->layer, x->head, x->dim, x->row, tok);
    } else {
      chi_table_cell(t, "layer %d neuron %d", x->layer, x->neuron);
    }
    chi_table_cell(t, "%+.4f", x->coefficient);
    score_cells(t, a, &x->s);
  }
  CHI_TRY(chi_table_text(t, width, out, err));
out:
  chi_table_free(t);
  return rc;
}

static int add_views(const chi_attribution *a, int width, chi_str *out, chi_err *err) {
  enum { kShown = 6 };
  int rc = 0;
  char tok[CHII_TOKEN];
  chi_table *t = NULL;
  static const char *const kHead[] = {"head", "row", "token", "view", "rank", "words"};
  static const char *const kView[CHI_VIEWS] = {"layer input", "by attention (key)", "by MLPs (value)", "written (OV)"};
  if (a->n_views == 0) return 0;
  chi_str_add(out, "\n");
  CHI_TRY(chi_table_new(&t, kHead, "lrllrl", err));
  for (int i = 0; i < a->n_views; i++)
    for (int k = 0; k < CHI_VIEWS; k++) {
      const chi_attr_view *v = &a->view[i];
      chi_str words = {0};
      chii_row_word(a->model, a->prompt, v->row, tok);
      chi_table_cell(t, "%d_%d", a->pos_head[v->head].layer, a->pos_head[v->head].head);
      chi_table_cell(t, "%d", (int)v->row);
      chi_table_cell(t, "%s", tok);
      chi_table_cell(t, "%s", kView[k]);
      chi_table_cell(t, "%d", (int)v->view[k].rank[0]);
      for (int w = 0; w < a->opts.n_words && w < kShown; w++) {
        chii_token_word(a->model, v->view[k].id[w], tok);
        chi_str_addf(&words, "%s%s", w ? " " : "", tok);
      }
      chi_table_cell(t, "%s", words.s ? words.s : "");
      chi_str_free(&words);
    }
  CHI_TRY(chi_table_text(t, width, out, err));
  chi_str_add(out, "(rank = of the answer's token among all words of that view)\n");
out:
  chi_table_free(t);
  return rc;
}

int chi_attribution_summary(const chi_attribution *a, int width, int top, chi_str *out, chi_err *err) {
  int rc = 0;
  add_answer(a, out);
  chi_str_add(out, "\n");
  CHI_TRY(add_heads(a, width, top, out, err));
  chi_str_add(out, "\n");
  CHI_TRY(add_layers(a, width, top < 6 ? top : 6, out, err));
  for (int n = 0; n < a->n_positions && n < 3; n++) CHI_TRY(add_positions(a, n, width, top, out, err));
  if (a->n_positions > 3) chi_str_addf(out, "(and %d more heads: -o writes all of them)\n", (int)a->n_positions - 3);
  CHI_TRY(note_map(a, out, err));
  CHI_TRY(add_neurons(a, false, width, top, out, err));
  CHI_TRY(add_neurons(a, true, width, top, out, err));
  CHI_TRY(add_views(a, width, out, err));
  if (out->failed) rc = chi_fail(err, CHI_ERR_MEMORY, "out of memory");
out:
  return rc;
}

/* ---- published values ------------------------------------------------------------------------------------ */
typedef struct compare {
  const chi_attribution *a;
  chi_table *t;
  double tolerance;
  int lines, differ;
} compare;

static void compare_line(compare *c, const char *what, double want, double got, const char *note) {
  bool good = fabs(want - got) <= c->tolerance;
  c->lines++;
  c->differ += !good;
  chi_table_cell(c->t, "%s", what);
  chi_table_cell(c->t, "%.4f", want);
  chi_table_cell(c->t, "%.4f", got);
  chi_table_cell(c->t, "%+.4f", got - want);
  chi_table_cell(c->t, "%s", good ? "agrees" : "differs");
  chi_table_cell(c->t, "%s", note);
}

static int head_of(chi_attr_head *h, const char *label, chi_err *err) {
  int n = 0;
  if (label && sscanf(label, "%d_%d%n", &h->layer, &h->head, &n) == 2 && !label[n]) return 0;
  return chi_fail(err, CHI_ERR_FORMAT, "published values: '%s' is no head: write LAYER_HEAD", label ? label : "");
}

static int compare_tokens(compare *c, const json_t *list, chi_err *err) {
  size_t i;
  const json_t *id;
  char tok[CHII_TOKEN], what[CHII_TOKEN + 32], note[CHII_TOKEN + 16];
  int32_t top[64], V = c->a->model->net.decoder.vocab;
  int n = json_array_size(list) < 64 ? (int)json_array_size(list) : 64;
  chi_top_k(c->a->logits, V, top, n);
  json_array_foreach(list, i, id) {
    if (i == 64) break;
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= V)
      return chi_fail(err, CHI_ERR_FORMAT, "published values: next_tokens[%zu] is no token of this model", i);
    int32_t want = (int32_t)json_integer_value(id);
    bool good = want == top[i];
    chii_token_word(c->a->model, want, tok);
    snprintf(what, sizeof what, "next token %zu", i + 1);
    chii_token_word(c->a->model, top[i], note);
    c->lines++;
    c->differ += !good;
    chi_table_cell(c->t, "%s", what);
    chi_table_cell(c->t, "%s", tok);
    chi_table_cell(c->t, "%s", note);
    chi_table_cell(c->t, "%s", "");
    chi_table_cell(c->t, "%s", good ? "agrees" : "differs");
    chi_table_cell(c->t, "%s", "");
  }
  return 0;
}

static int compare_heads(compare *c, json_t *heads, chi_err *err) {
  int rc = 0, listed = 0;
  const char *label;
  json_t *v;
  char what[96], note[64];
  json_object_foreach(heads, label, v) {
    chi_attr_head h = {0};
    CHI_TRY(head_of(&h, label, err));
    if (!json_is_number(v) || h.layer < 0 || h.layer >= c->a->layers || h.head < 0 || h.head >= c->a->heads) {
      rc = chi_fail(err, CHI_ERR_FORMAT, "published values: head %s is not in this model, or has no number", label);
      goto out;
    }
    int32_t at = h.layer * c->a->heads + h.head, rank = 0;
    while (c->a->order[rank] != at) rank++;
    snprintf(what, sizeof what, "head %s", label);
    snprintf(note, sizeof note, "place %d, ours %d", ++listed, rank + 1);
    compare_line(c, what, json_number_value(v), c->a->head[at].increase[0], note);
  }
out:
  return rc;
}

/* rows: [[position, increase, attention], ...]; positions count with the picture at image_row. */
static int compare_positions(compare *c, const json_t *pos, int64_t image_row, chi_err *err) {
  size_t i;
  const json_t *row;
  char what[96], tok[CHII_TOKEN];
  chi_attr_head h = {0};
  int rc = head_of(&h, json_string_value(json_object_get(pos, "head")), err), n = 0;
  if (rc) return rc;
  while (n < c->a->n_positions && (c->a->pos_head[n].layer != h.layer || c->a->pos_head[n].head != h.head)) n++;
  if (n == c->a->n_positions)
    return chi_fail(err, CHI_ERR_ARG, "the positions of head %d_%d were not scored", h.layer, h.head);
  json_array_foreach(json_object_get(pos, "rows"), i, row) {
    const json_t *inc = json_array_get(row, 1), *alpha = json_array_get(row, 2);
    json_int_t at = json_integer_value(json_array_get(row, 0));
    at += c->a->prompt->n_image ? c->a->prompt->image_row - image_row : 0;
    if (!json_is_number(inc) || !json_is_number(alpha) || at < 0 || at >= c->a->rows)
      return chi_fail(err, CHI_ERR_FORMAT, "published values: positions.rows[%zu] is not [row, increase, attention]",
                      i);
    chii_row_word(c->a->model, c->a->prompt, (int32_t)at, tok);
    snprintf(what, sizeof what, "row %lld increase", (long long)at);
    compare_line(c, what, json_number_value(inc), c->a->pos[(int64_t)n * c->a->rows + at].increase[0], tok);
    snprintf(what, sizeof what, "row %lld attention", (long long)at);
    compare_line(c, what, json_number_value(alpha), (double)c->a->weight[(int64_t)n * c->a->rows + at], tok);
  }
  return 0;
}

int chi_attribution_published_head(chi_attr_head *head, double *eps, const json_t *published, chi_err *err) {
  const json_t *pos = json_object_get(published, "positions");
  *head = (chi_attr_head){-1, -1};
  int rc = json_is_object(published) ? chi_json_f64_opt(eps, published, "eps", "published values", err)
                                     : chi_fail(err, CHI_ERR_FORMAT, "published values: an object is expected");
  return rc || !pos ? rc : head_of(head, json_string_value(json_object_get(pos, "head")), err);
}

int chi_attribution_compare(const chi_attribution *a, json_t *published, int width, int *lines, int *differ,
                            chi_str *out, chi_err *err) {
  int rc = 0;
  int64_t image_row = 0;
  static const char *const kHead[] = {"", "published", "ours", "difference", "", ""};
  const char *source = json_string_value(json_object_get(published, "source"));
  compare c = {.a = a, .tolerance = 0.005};
  CHI_TRY(chi_json_f64_opt(&c.tolerance, published, "tolerance", "published values", err));
  CHI_TRY(chi_json_i64_opt(&image_row, published, "image_row", 0, INT32_MAX, "published values", err));
  CHI_TRY(chi_table_new(&c.t, kHead, "lrrrll", err));
  CHI_TRY(compare_tokens(&c, json_object_get(published, "next_tokens"), err));
  CHI_TRY(compare_heads(&c, json_object_get(published, "heads"), err));
  if (json_object_get(published, "positions"))
    CHI_TRY(compare_positions(&c, json_object_get(published, "positions"), image_row, err));
  if (c.lines == 0) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "published values: no next_tokens, heads or positions in the file");
    goto out;
  }
  if (source) chi_str_addf(out, "%s\n", source);
  CHI_TRY(chi_table_text(c.t, width, out, err));
  chi_str_addf(out, "%d of %d lines agree within %g\n", c.lines - c.differ, c.lines, c.tolerance);
  *lines = c.lines;
  *differ = c.differ;
out:
  chi_table_free(c.t);
  return rc;
}

/* Causal maps as heat maps; see trace_report.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/trace_internal.h"

enum { kToken = 64, kMaxCols = 4, kMaxPanels = 8 };

/* Columns of panels. from: -1 = own minus donor. */
static const struct {
  int from;
  const char *name, *note;
} kCol[kMaxCols] = {
    {CHI_TRACE_OWN, "own", "the value put back is the item's own, from the clean run"},
    {CHI_TRACE_DONOR, "donor", "it comes from a clean run about another picture: repair of the overwritten word"},
    {-1, "own \xe2\x88\x92 donor", "what speaks of the fact itself"},
    {CHI_TRACE_NOISE, "noise", "the other way round: the corrupted value in the clean run"}};

typedef struct figure {
  const chi_trace *t;
  int heads; /* -1: layers; else the site by heads */
  int n_layers;
  int col[kMaxCols], n_cols;
  const char *col_name[kMaxCols], *col_note[kMaxCols];
  const char *panel[kMaxPanels];
  int panel_of[kMaxPanels], n_panels; /* site, or with heads: cell */
  chi_heat_row *rows;
  int n_rows;
  const float *values[kMaxPanels * kMaxCols];
  char line[3][256], target[kToken], counter[kToken], scale[96];
  size_t mark_begin, mark_end;
  const char *title;
  chi_arena arena;
} figure;

static bool by_heads(int site) { return site == CHI_TRACE_HEAD || site == CHI_TRACE_PATH; }

bool chii_trace_has_figure(const chi_trace *t, int heads) {
  if (heads >= 0) return t->cell[0][heads] != NULL;
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    if (!by_heads(s) && t->cell[0][s]) return true;
  return false;
}

static double value(const chi_trace *t, int col, int site, int step, int row) {
  if (kCol[col].from >= 0) return chii_trace_effect(t, kCol[col].from, site, step, row);
  return chii_trace_effect(t, CHI_TRACE_OWN, site, step, row) - chii_trace_effect(t, CHI_TRACE_DONOR, site, step, row);
}

/* One panel's values [layer][line]: lines are cells, or with heads, heads. */
static float *panel(figure *f, int p, int col, chi_err *err) {
  const chi_trace *t = f->t;
  float *v = chi_arena_array(&f->arena, (size_t)f->n_layers * (size_t)f->n_rows, sizeof *v, err);
  for (int l = 0; v && l < f->n_layers; l++)
    for (int r = 0; r < f->n_rows; r++) {
      int site = f->heads >= 0 ? f->heads : f->panel_of[p];
      double x = NAN;
      if (f->heads >= 0)
        x = value(t, col, site, l * t->n_heads + r, f->panel_of[p]);
      else if (l < chi_trace_steps(t, site))
        x = value(t, col, site, l, r);
      v[l * f->n_rows + r] = (float)x;
    }
  return v;
}

static int add_panel(figure *f, int of, const char *name, chi_err *err) {
  f->panel_of[f->n_panels] = of;
  f->panel[f->n_panels] = chi_arena_strdup(&f->arena, name, err);
  return f->panel[f->n_panels++] ? 0 : CHI_ERR_MEMORY;
}

/* Heads: panels are the last token of each bracket, the groups and the last row. */
static int head_panels(figure *f, chi_err *err) {
  int rc = 0;
  const chi_trace *t = f->t;
  char word[kToken], name[kToken + 16];
  for (int r = 0; r < t->n_rows && f->n_panels < kMaxPanels - 1; r++) {
    bool wanted = r >= t->n_tokens, last = false;
    for (int i = 0; i < t->prompt->n_spans && r < t->n_tokens; i++)
      wanted |= t->cell_rows[r][t->n_cell[r] - 1] == t->prompt->span[i].hi - 1;
    if (r == t->n_tokens - 1) wanted = last = true;
    if (!wanted) continue;
    chii_trace_token(t, r, word, sizeof word);
    snprintf(name, sizeof name, "at %s%s", chii_trim(word), last ? " (last row)" : "");
    CHI_TRY(add_panel(f, r, name, err));
  }
  f->n_rows = t->n_heads;
  f->rows = chi_arena_array(&f->arena, (size_t)f->n_rows, sizeof *f->rows, err);
  CHI_TRY(f->rows ? 0 : CHI_ERR_MEMORY);
  for (int h = 0; h < t->n_heads; h++) {
    snprintf(name, sizeof name, "head %d", h);
    CHI_TRY((f->rows[h].label = chi_arena_strdup(&f->arena, name, err)) ? 0 : CHI_ERR_MEMORY);
  }
out:
  return rc;
}

static bool is_corrupted(const chi_trace *t, int row) {
  for (int32_t i = 0; i < t->corruption.span; i++)
    if (t->corruption.rows[i] == t->rows[row]) return true;
  return false;
}

static int site_panels(figure *f, chi_err *err) {
  static const char *const kNames[CHI_TRACE_SITES] = {
      "MLP",  "attention", "hidden state", "hidden, later MLPs severed", "hidden, later attention severed",
      "head", "embedding", "path"};
  int rc = 0;
  const chi_trace *t = f->t;
  char label[96];
  for (int s = 0; s < CHI_TRACE_SITES; s++)
    if (t->cell[0][s] && !by_heads(s)) CHI_TRY(add_panel(f, s, kNames[s], err));
  f->n_rows = t->n_rows;
  f->rows = chi_arena_array(&f->arena, (size_t)t->n_rows, sizeof *f->rows, err);
  CHI_TRY(f->rows ? 0 : CHI_ERR_MEMORY);
  for (int r = 0; r < t->n_rows; r++) {
    chi_role role = t->prompt->role[t->rows[r]];
    chii_trace_token(t, r, label, sizeof label);
    if (r >= t->n_tokens)
      snprintf(label, sizeof label, "all of %.60s", t->cell_name[r]);
    else if (role == CHI_ROLE_IMAGE)
      snprintf(label, sizeof label,
               t->rows[r] == t->prompt->image_row + t->prompt->n_image - 1 ? "(last patch)" : "(patch)");
    CHI_TRY((f->rows[r].label = chi_arena_strdup(&f->arena, label, err)) ? 0 : CHI_ERR_MEMORY);
    f->rows[r].mark = r >= t->n_tokens                                      ? CHI_ROW_PLAIN
                      : is_corrupted(t, r)                                  ? CHI_ROW_MARKED
                      : role == CHI_ROLE_IMAGE || role <= CHI_ROLE_TEMPLATE ? CHI_ROW_DIM
                                                                            : CHI_ROW_PLAIN;
  }
out:
  return rc;
}

/* Title: the text from the question on, as far as the line goes, with the first corrupted bracket marked. */
static int make_title(figure *f, chi_err *err) {
  const chi_prompt *p = f->t->prompt;
  int first = 0;
  while (first < p->n_spans && !(f->t->corruption.spans >> first & 1)) first++;
  const chi_prompt_span *s = first < p->n_spans ? &p->span[first] : NULL;
  size_t at = 0, stop = s ? s->at : p->question_at;
  char *q = chi_arena_strdup(&f->arena, p->text, err);
  if (!q) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < stop; i++)
    if (q[i] == '\n' || q[i] == ':') at = i + 1;
  while (q[at] == ' ') at++;
  size_t end = at + strcspn(q + at, "\n");
  char *cut = strstr(q + at, " ASSISTANT:");
  if (cut && (size_t)(cut - q) < end && (!s || (size_t)(cut - q) > s->at)) end = (size_t)(cut - q);
  q[end] = 0;
  f->title = q + at;
  if (!s) return 0;
  f->mark_begin = s->at - at;
  f->mark_end = f->mark_begin + s->len;
  return 0;
}

static void make_lines(figure *f) {
  const chi_trace *t = f->t;
  const chi_path *to = &t->opts.path;
  chi_token_text(t->model->tok, t->target, f->target, sizeof f->target);
  chi_token_text(t->model->tok, t->counter, f->counter, sizeof f->counter);
  const char *target = chii_trim(f->target);
  snprintf(f->line[0], sizeof f->line[0],
           "answer \xe2\x80\x9c%s\xe2\x80\x9d: p = %.3f clean, %.3f corrupted (there \xe2\x80\x9c%s\xe2\x80\x9d)",
           target, t->clean.p, t->corrupt.p, chii_trim(f->counter));
  snprintf(f->line[1], sizeof f->line[1], "%s", t->corruption.text);
  if (f->heads == CHI_TRACE_PATH && to->part == CHI_PATH_OUT)
    snprintf(f->line[2], sizeof f->line[2], "paths from one head to the logits%s",
             to->direct ? ", not through MLPs" : "");
  else if (f->heads == CHI_TRACE_PATH)
    snprintf(f->line[2], sizeof f->line[2], "paths from one head to the %s of layer %d, head %d%s",
             to->part == CHI_PATH_Q   ? "query"
             : to->part == CHI_PATH_K ? "key"
                                      : "value",
             to->layer, to->head, to->direct ? ", not through MLPs" : "");
  else if (t->opts.window > 1 && f->heads < 0)
    snprintf(
        f->line[2], sizeof f->line[2], "windows of %s%d layers; %s", t->opts.released_window ? "\xc2\xb1" : "",
        t->opts.window,
        t->opts.noise_direction ? "corrupted values into the clean run" : "clean values back into the corrupted run");
  else
    snprintf(
        f->line[2], sizeof f->line[2], "one %s at a time; %s", f->heads >= 0 ? "head" : "layer",
        t->opts.noise_direction ? "corrupted value into the clean run" : "clean value back into the corrupted run");
  snprintf(f->scale, sizeof f->scale, "change of p(%s)", target);
}

int chii_trace_draw(const chi_trace *t, int heads, const chi_provenance *prov, const char *png, const char *svg,
                    chi_err *err) {
  int rc = 0;
  figure f = {.t = t, .heads = heads, .n_layers = t->n_layers};
  if (heads >= 0) f.n_layers = chi_trace_steps(t, heads) / t->n_heads;
  const char *lines[3] = {f.line[0], f.line[1], f.line[2]};
  for (int c = 0; c < kMaxCols; c++) {
    if ((c == 1 || c == 2) && !t->donor) continue;
    if (c == 3 && !t->opts.both_directions) continue;
    f.col[f.n_cols] = c;
    f.col_name[f.n_cols] = kCol[c].name;
    f.col_note[f.n_cols++] = kCol[c].note;
  }
  CHI_TRY(heads >= 0 ? head_panels(&f, err) : site_panels(&f, err));
  for (int p = 0; p < f.n_panels; p++)
    for (int c = 0; c < f.n_cols; c++)
      CHI_TRY((f.values[p * f.n_cols + c] = panel(&f, p, f.col[c], err)) ? 0 : CHI_ERR_MEMORY);
  make_lines(&f);
  CHI_TRY(make_title(&f, err));
  chi_heatmap_spec s = {.title = f.title,
                        .mark_begin = f.mark_begin,
                        .mark_end = f.mark_end,
                        .lines = lines,
                        .n_lines = 3,
                        .thumb = t->prompt->seen.rgb ? &t->prompt->seen : NULL,
                        .n_rows = f.n_rows,
                        .n_layers = f.n_layers,
                        .rows = f.rows,
                        .n_sites = f.n_panels,
                        .n_cols = f.n_cols,
                        .site_names = f.panel,
                        .col_names = f.n_cols > 1 ? f.col_name : NULL,
                        .col_notes = f.n_cols > 1 ? f.col_note : NULL,
                        .values = f.values,
                        .mark_note = heads >= 0 || t->corruption.span == 0 ? NULL : "words of the constraint",
                        .scale_label = f.scale,
                        .top = 3};
  CHI_TRY(chi_heatmap_save(&s, prov, png, err));
  CHI_TRY(chi_heatmap_save(&s, prov, svg, err));
out:
  chi_arena_free(&f.arena);
  return rc;
}

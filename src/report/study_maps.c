/* Causal maps of a run: averages by token role, what differs from chance, where the peaks are. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_internal.h"

enum { kMaxSites = 8, kMaxWindows = CHI_STUDY_LIST, kCols = 4, OWN = 0, DONOR = 1, DIFF = 2, NOISE = 3 };
static const char *const kCol[kCols] = {"own", "donor", "difference", "noise"};
static const char *const kColTitle[kCols] = {"own", "donor", "own \xe2\x88\x92 donor", "noise"};
static const char *const kColNote[kCols] = {
    "the value put back is the item's own, from the clean run",
    "it comes from a clean run about another picture: repair of the overwritten word", "what speaks of the fact itself",
    "the other way round: the corrupted value in the clean run"};

/* All maps of one corruption over one view. */
typedef struct panel {
  char site[64];
  int window;
  int64_t layers;
  chii_matrix m[kCols]; /* p; DONOR and DIFF empty where there is no donor */
  float *mean[kCols];   /* [layers][roles] */
  bool *outline;        /* [layers][roles], of DIFF, or OWN without a donor */
  chi_cell_test *test;  /* the same cells */
} panel;
typedef struct maps {
  chii_study *s;
  const chii_view *v;
  const char *ask, *corrupt;
  panel p[kMaxSites * kMaxWindows];
  int n;
  bool donor, noise;
  int role[CHI_STUDY_ROLES], n_roles; /* those that some item has */
} maps;

static void maps_free(maps *m) {
  for (int i = 0; i < m->n; i++)
    for (int c = 0; c < kCols; c++) chii_matrix_free(&m->p[i].m[c]);
}

/* ---- loading --------------------------------------------------------------------------------------------- */
static int load_panel(maps *m, const char *site, int window, chi_err *err) {
  int rc = 0;
  if (m->n == kMaxSites * kMaxWindows) return 0;
  panel *p = &m->p[m->n];
  memset(p, 0, sizeof *p);
  snprintf(p->site, sizeof p->site, "%.63s", site);
  p->window = window;
  for (int c = 0; c < kCols; c++) {
    if (c == DIFF) continue;
    CHI_TRY(chii_matrix_of(&p->m[c], m->s, m->v, err, "trace/%s/%s/%s/w%d/%s/p", m->ask, m->corrupt, site, window,
                           kCol[c]));
    if (c == OWN && !p->m[c].n) { /* no item of the view has it: a second bracket, a form without */
      chii_matrix_free(&p->m[c]);
      return 0;
    }
    if (p->m[c].size && (p->m[c].ndim != 2 || p->m[c].dim[1] != CHI_STUDY_ROLES))
      return chi_fail(err, CHI_ERR_FORMAT, "maps of site '%s' are no maps by token role", site);
  }
  p->layers = p->m[OWN].dim[0];
  m->n++;
  if (p->m[DONOR].size == p->m[OWN].size) {
    size_t n = p->m[OWN].size * (size_t)m->v->cl.n_items;
    p->m[DIFF] = p->m[OWN];
    CHI_TRY((p->m[DIFF].v = chi_calloc(n, sizeof(double), err)) ? 0 : CHI_ERR_MEMORY);
    for (size_t i = 0; i < n; i++) p->m[DIFF].v[i] = p->m[OWN].v[i] - p->m[DONOR].v[i];
    m->donor = true;
  }
  m->noise |= p->m[NOISE].size > 0;
  for (int c = 0; c < kCols; c++) {
    if (!p->m[c].size) continue;
    CHI_TRY((p->mean[c] = chi_arena_array(&m->s->arena, p->m[c].size, sizeof(float), err)) ? 0 : CHI_ERR_MEMORY);
    for (size_t i = 0; i < p->m[c].size; i++) p->mean[c][i] = (float)chii_mean(&p->m[c], m->v->cl.n_items, i);
  }
out:
  return rc;
}

/* MLP, attention, hidden states, then the rest by name; small windows first. */
static int by_site(const void *a, const void *b) {
  static const char *const kOrder[] = {"mlp", "attn", "hidden"};
  const panel *x = a, *y = b;
  int i = 0, k = 0;
  while (i < 3 && strcmp(x->site, kOrder[i]) != 0) i++;
  while (k < 3 && strcmp(y->site, kOrder[k]) != 0) k++;
  if (i != k) return i - k;
  int c = strcmp(x->site, y->site);
  return c ? c : x->window - y->window;
}

static int load(maps *m, chi_err *err) {
  int rc = 0;
  char prefix[300], site[64], win[32];
  snprintf(prefix, sizeof prefix, "trace/%s/%s/", m->ask, m->corrupt);
  for (size_t i = 0; i < m->s->n_kinds; i++) {
    const char *k = m->s->kind[i];
    if (strncmp(k, prefix, strlen(prefix)) != 0 || !strstr(k, "/own/p")) continue;
    if (!chii_part(k, 3, site, sizeof site) || !chii_part(k, 4, win, sizeof win) || win[0] != 'w') continue;
    if (strcmp(site, "head") == 0 || strcmp(site, "embed") == 0) continue; /* steps are no layers */
    CHI_TRY(load_panel(m, site, (int)strtol(win + 1, NULL, 10), err));
  }
  qsort(m->p, (size_t)m->n, sizeof m->p[0], by_site);
  bool has[CHI_STUDY_ROLES] = {false};
  for (int i = 0; i < m->n; i++)
    for (size_t c = 0; c < m->p[i].m[OWN].size; c++)
      if (!isnan(m->p[i].mean[OWN][c])) has[c % CHI_STUDY_ROLES] = true;
  for (int r = 0; r < CHI_STUDY_ROLES; r++)
    if (has[r]) m->role[m->n_roles++] = r;
out:
  return rc;
}

/* One family for all cells, sites and windows of a corruption. */
static int test(maps *m, chi_err *err) {
  int rc = 0, src = m->donor ? DIFF : OWN;
  size_t cells = 0, at = 0, n = (size_t)m->v->cl.n_items;
  double *x = NULL;
  for (int i = 0; i < m->n; i++) cells += m->p[i].m[src].size;
  if (cells == 0 || cells > (1 << 20)) return 0;
  chi_cell_test *t = chi_arena_array(&m->s->arena, cells, sizeof *t, err);
  CHI_TRY(t && (x = chi_calloc(n * cells, sizeof *x, err)) ? 0 : CHI_ERR_MEMORY);
  for (int i = 0; i < m->n; i++) {
    const chii_matrix *a = &m->p[i].m[src];
    for (size_t k = 0; k < n && a->size; k++) memcpy(x + k * cells + at, a->v + k * a->size, a->size * sizeof *x);
    at += a->size;
  }
  CHI_TRY(chi_max_t(t, &m->v->cl, x, (int32_t)cells, &m->s->boot, err));
  double alpha = m->s->opts->alpha > 0 ? m->s->opts->alpha : 0.05;
  at = 0;
  for (int i = 0; i < m->n; i++) {
    panel *p = &m->p[i];
    if (!p->m[src].size) continue;
    p->test = t + at;
    CHI_TRY((p->outline = chi_arena_array(&m->s->arena, p->m[src].size, sizeof(bool), err)) ? 0 : CHI_ERR_MEMORY);
    for (size_t c = 0; c < p->m[src].size; c++) p->outline[c] = p->test[c].p < alpha;
    at += p->m[src].size;
  }
out:
  chi_free(x);
  return rc;
}

/* ---- figures --------------------------------------------------------------------------------------------- */
static const float *pick(maps *m, const float *from, int64_t layers, chi_err *err) {
  float *v = chi_arena_array(&m->s->arena, (size_t)layers * (size_t)m->n_roles, sizeof *v, err);
  for (int64_t l = 0; v && l < layers; l++)
    for (int r = 0; r < m->n_roles; r++) v[l * m->n_roles + r] = from ? from[l * CHI_STUDY_ROLES + m->role[r]] : NAN;
  return v;
}

static const bool *pick_outline(maps *m, const panel *p, chi_err *err) {
  bool *v = chi_arena_array(&m->s->arena, (size_t)p->layers * (size_t)m->n_roles, sizeof *v, err);
  for (int64_t l = 0; v && l < p->layers; l++)
    for (int r = 0; r < m->n_roles; r++) v[l * m->n_roles + r] = p->outline[l * CHI_STUDY_ROLES + m->role[r]];
  return v;
}

static int draw_window(maps *m, int window, chi_err *err) {
  int rc = 0, n_sites = 0, cols = 0, col[kCols];
  const char *col_names[kCols], *col_notes[kCols];
  const char *names[kMaxSites], *lines[2];
  const float *values[kMaxSites * kCols];
  const bool *outline[kMaxSites * kCols] = {NULL};
  char l1[256], l2[256], note[160], name[200], title[128];
  chi_heat_row rows[CHI_STUDY_ROLES];
  int64_t layers = 0;
  for (int c = 0; c < kCols; c++) {
    if (c == NOISE ? !m->noise : c != OWN && !m->donor) continue;
    col[cols] = c;
    col_names[cols] = kColTitle[c];
    col_notes[cols++] = kColNote[c];
  }
  for (int i = 0; i < m->n && n_sites < kMaxSites; i++) {
    const panel *p = &m->p[i];
    if (p->window != window || (layers && p->layers != layers)) continue;
    layers = p->layers;
    names[n_sites] = p->site;
    for (int k = 0; k < cols; k++) {
      CHI_TRY((values[n_sites * cols + k] = pick(m, p->mean[col[k]], layers, err)) ? 0 : CHI_ERR_MEMORY);
      if (p->outline && col[k] == (m->donor ? DIFF : OWN))
        CHI_TRY((outline[n_sites * cols + k] = pick_outline(m, p, err)) ? 0 : CHI_ERR_MEMORY);
    }
    n_sites++;
  }
  if (n_sites == 0) return 0;
  for (int r = 0; r < m->n_roles; r++) {
    bool words = (m->role[r] >= CHI_STUDY_FIRST && m->role[r] <= CHI_STUDY_END) || m->role[r] == CHI_STUDY_WORDS;
    rows[r] = (chi_heat_row){chi_study_role_name[m->role[r]], words ? CHI_ROW_MARKED : CHI_ROW_PLAIN};
  }
  snprintf(title, sizeof title, window == 1 ? "One layer at a time" : "Windows of %d layers", window);
  snprintf(l1, sizeof l1, "%s: %d items of %d entities; corruption: %s%s%s", m->v->title, m->v->cl.n_items, m->v->cl.n,
           m->corrupt, strcmp(m->ask, m->s->ask) ? "; asked as " : "", strcmp(m->ask, m->s->ask) ? m->ask : "");
  snprintf(l2, sizeof l2, "mean change of p(answer) when the value is put back, by what a token is");
  snprintf(note, sizeof note, "family-wise p < %g over all cells, sites and windows (max-T, sign flips of entities)",
           m->s->opts->alpha > 0 ? m->s->opts->alpha : 0.05);
  lines[0] = l1;
  lines[1] = l2;
  chi_heatmap_spec spec = {.title = title,
                           .lines = lines,
                           .n_lines = 2,
                           .n_rows = m->n_roles,
                           .n_layers = (int)layers,
                           .rows = rows,
                           .n_sites = n_sites,
                           .n_cols = cols,
                           .site_names = names,
                           .col_names = cols > 1 ? col_names : NULL,
                           .col_notes = cols > 1 ? col_notes : NULL,
                           .values = values,
                           .outline = outline,
                           .outline_note = note,
                           .mark_note = "words of the constraint",
                           .scale_label = "change of p(answer)"};
  snprintf(name, sizeof name, "trace-%s-%s-w%d-%s", m->ask, m->corrupt, window, m->v->name);
  rc = chii_heatmap(m->s, &spec, name, err);
out:
  return rc;
}

/* All bracketed words by layer: own, donor and difference, and the difference at their last token, with intervals. */
static int draw_curve(maps *m, const panel *p, chi_err *err) {
  static const char *const kName[kCols] = {"own", "donor", "own \xe2\x88\x92 donor",
                                           "own \xe2\x88\x92 donor, last token"};
  int rc = 0, n_curves = 0;
  size_t L = (size_t)p->layers, n = (size_t)m->v->cl.n_items;
  chi_curve curve[kCols];
  char title[160], line[360], name[400];
  const char *lines[] = {line};
  double *buf = chi_calloc(n + L * (1 + 3 * kCols), sizeof *buf, err), *x = buf;
  if (!buf) return CHI_ERR_MEMORY;
  for (size_t l = 0; l < L; l++) x[l] = (double)l;
  for (int c = 0; c < kCols; c++) {
    const chii_matrix *from = &p->m[c == NOISE ? DIFF : c];
    double *y = buf + L * (size_t)(1 + 3 * c), *lo = y + L, *hi = lo + L, *column = buf + L * (1 + 3 * kCols);
    if (!from->size) continue;
    for (size_t l = 0; l < L; l++) {
      chi_est e;
      chii_column(column, from, m->v->cl.n_items, l * CHI_STUDY_ROLES + (c == NOISE ? CHI_STUDY_END : CHI_STUDY_WORDS));
      CHI_TRY(chi_boot_mean(&e, &m->v->cl, column, NULL, &m->s->boot, err));
      y[l] = e.value;
      lo[l] = isnan(e.lo) ? e.value : e.lo;
      hi[l] = isnan(e.hi) ? e.value : e.hi;
    }
    curve[n_curves++] = (chi_curve){kName[c], y, lo, hi};
  }
  snprintf(title, sizeof title, "%s: all words put back, %s", p->site,
           p->window == 1 ? "one layer at a time" : "in windows");
  snprintf(line, sizeof line, "%s, window %d, corruption %s; bands: 95 %% by bootstrap over entities", m->v->title,
           p->window, m->corrupt);
  snprintf(name, sizeof name, "curve-%s-%s-%s-w%d-%s", m->ask, m->corrupt, p->site, p->window, m->v->name);
  chi_linechart_spec spec = {.title = title,
                             .lines = lines,
                             .n_lines = 1,
                             .x_label = "layer",
                             .y_label = "change of p(answer)",
                             .x = x,
                             .n = L,
                             .curves = curve,
                             .n_curves = n_curves,
                             .y_zero = true};
  rc = chii_linechart(m->s, &spec, name, err);
out:
  chi_free(buf);
  return rc;
}

/* ---- tables ---------------------------------------------------------------------------------------------- */
/* Where the mean over items is highest (of noise: lowest) in a role's row. */
static int peak_of(maps *m, const panel *p, int c, int role, chi_est *e, double *share, chi_err *err) {
  size_t L = (size_t)p->layers, n = (size_t)m->v->cl.n_items;
  double *x = chi_calloc(n * L, sizeof *x, err);
  if (!x) return CHI_ERR_MEMORY;
  for (size_t i = 0; i < n; i++)
    for (size_t l = 0; l < L; l++)
      x[i * L + l] = (c == NOISE ? -1 : 1) * p->m[c].v[i * p->m[c].size + l * CHI_STUDY_ROLES + (size_t)role];
  int rc = chi_boot_peak(e, share, &m->v->cl, x, NULL, (int32_t)L, &m->s->boot, err);
  chi_free(x);
  return rc;
}

/* Mean over items and draws of the random places; NaN where none were drawn. */
static int null_of(double *out, maps *m, const panel *p, chi_err *err) {
  chii_matrix r;
  int rc = chii_matrix_of(&r, m->s, m->v, err, "trace/%s/%s/%s/w%d/null/p", m->ask, m->corrupt, p->site, p->window);
  *out = NAN;
  if (rc || !r.size) return rc;
  *out = 0;
  for (size_t i = 0; i < r.size; i++) *out += chii_mean(&r, m->v->cl.n_items, i) / (double)r.size;
  chii_matrix_free(&r);
  return 0;
}

static int peak_row(maps *m, const panel *p, int c, int role, double null, json_t *out, chi_err *err) {
  int rc = 0;
  chi_est e;
  double share = NAN, fp = NAN;
  chi_str *h = &m->s->html;
  CHI_TRY(peak_of(m, p, c, role, &e, &share, err));
  if (isnan(e.value)) goto out;
  size_t cell = (size_t)e.value * CHI_STUDY_ROLES + (size_t)role;
  if (p->test && c == (m->donor ? DIFF : OWN)) fp = p->test[cell].p;
  chii_page_row(h);
  chii_page_cell(h, "%s, %s", p->site, chi_study_role_name[role]);
  chii_page_cell(h, "%d", p->window);
  chii_page_cell(h, "%s", kCol[c]);
  chii_page_est(h, &e, 0);
  chii_page_cell(h, "%.0f %%", 100 * share);
  chii_page_cell(h, "%.4f", (double)p->mean[c][cell]);
  chii_page_num(h, fp, 4);
  chii_page_num(h, c == OWN ? null : NAN, 4);
  json_t *j = chii_est_json(&e);
  json_object_set_new(j, "site", json_string(p->site));
  json_object_set_new(j, "role", json_string(chi_study_role_name[role]));
  json_object_set_new(j, "window", json_integer(p->window));
  json_object_set_new(j, "what", json_string(kCol[c]));
  json_object_set_new(j, "share", chi_json_num(share));
  json_object_set_new(j, "height", chi_json_num((double)p->mean[c][cell]));
  json_object_set_new(j, "p_family", chi_json_num(fp));
  if (c == OWN) json_object_set_new(j, "random_places", chi_json_num(null));
  json_array_append_new(out, j);
out:
  return rc;
}

static int peaks(maps *m, json_t *out, chi_err *err) {
  static const int kRole[] = {CHI_STUDY_WORDS, CHI_STUDY_END, CHI_STUDY_LAST};
  int rc = 0;
  chi_str *h = &m->s->html;
  chii_page_table(h, "peak|window|what|layer (95 %)|draws with this peak|height|family-wise p|random places");
  for (int i = 0; i < m->n; i++) {
    double null = NAN;
    CHI_TRY(null_of(&null, m, &m->p[i], err));
    for (int r = 0; r < 3; r++)
      for (int c = 0; c < kCols; c++)
        if (m->p[i].m[c].size) CHI_TRY(peak_row(m, &m->p[i], c, kRole[r], null, out, err));
  }
out:
  chii_page_table_end(h);
  return rc;
}

static int write_cells(maps *m, chi_err *err) {
  int rc = 0;
  chi_csv *c = m->s->maps;
  for (int i = 0; i < m->n; i++)
    for (int k = 0; k < kCols; k++) {
      const panel *p = &m->p[i];
      if (!p->m[k].size) continue;
      for (size_t cell = 0; cell < p->m[k].size; cell++) {
        bool tested = p->test && k == (m->donor ? DIFF : OWN);
        if (isnan(p->mean[k][cell])) continue;
        chi_csv_str(c, m->v->name);
        chi_csv_str(c, m->ask);
        chi_csv_str(c, m->corrupt);
        chi_csv_str(c, p->site);
        chi_csv_int(c, p->window);
        chi_csv_str(c, kCol[k]);
        chi_csv_int(c, (int64_t)(cell / CHI_STUDY_ROLES));
        chi_csv_str(c, chi_study_role_name[cell % CHI_STUDY_ROLES]);
        chi_csv_num(c, (double)p->mean[k][cell]);
        chi_csv_num(c, tested ? p->test[cell].t : NAN);
        chi_csv_num(c, tested ? p->test[cell].p : NAN);
        chi_csv_int(c, m->v->cl.n_items);
        CHI_TRY(chi_csv_row(c, err));
      }
    }
out:
  return rc;
}

/* The runs that the maps stand on. */
static int base_line(maps *m, chi_err *err) {
  chii_matrix r;
  int rc = chii_matrix_of(&r, m->s, m->v, err, "trace/%s/%s/runs", m->ask, m->corrupt);
  if (rc || r.size < 3) return rc;
  double clean = chii_mean(&r, m->v->cl.n_items, 0), bad = chii_mean(&r, m->v->cl.n_items, 1),
         donor = chii_mean(&r, m->v->cl.n_items, 2);
  int lower = 0;
  for (int32_t i = 0; i < m->v->cl.n_items; i++) lower += r.v[(size_t)i * r.size + 1] < r.v[(size_t)i * r.size];
  chi_str_addf(&m->s->html, "<p>%d items of %d entities. Mean p(answer): %.3f clean, %.3f corrupted", r.n, m->v->cl.n,
               clean, bad);
  if (!isnan(donor)) chi_str_addf(&m->s->html, ", %.3f with the donor's picture", donor);
  chi_str_addf(&m->s->html, ". The corruption lowers p in %d of %d items.", lower, r.n);
  chii_matrix_free(&r);
  rc = chii_matrix_of(&r, m->s, m->v, err, "trace/%s/%s/embed/w%d/own/p", m->ask, m->corrupt, m->p[0].window);
  if (rc == 0 && r.size == CHI_STUDY_ROLES)
    chi_str_addf(&m->s->html, " Upper line: the words themselves put back change p by %.3f.",
                 chii_mean(&r, m->v->cl.n_items, CHI_STUDY_WORDS));
  chii_matrix_free(&r);
  chi_str_add(&m->s->html, "</p>\n");
  return rc;
}

static int one_view(chii_study *s, const chii_view *v, const char *ask, const char *corrupt, json_t *out,
                    chi_err *err) {
  int rc = 0;
  json_t *list = json_array();
  maps *m = chi_calloc(1, sizeof *m, err);
  CHI_TRY(m && list ? 0 : CHI_ERR_MEMORY);
  *m = (maps){.s = s, .v = v, .ask = ask, .corrupt = corrupt};
  CHI_TRY(load(m, err));
  if (m->n == 0) goto out;
  CHI_TRY(test(m, err));
  chii_page_head(&s->html, 3, "%s", v->title);
  CHI_TRY(base_line(m, err));
  for (int i = 0; i < m->n; i++) { /* each window once */
    bool seen = false;
    for (int k = 0; k < i; k++) seen |= m->p[k].window == m->p[i].window;
    if (!seen) CHI_TRY(draw_window(m, m->p[i].window, err));
  }
  CHI_TRY(peaks(m, list, err));
  for (int i = 0; i < m->n; i++)
    if (v == &s->view[s->n_views - 1]) CHI_TRY(draw_curve(m, &m->p[i], err));
  CHI_TRY(write_cells(m, err));
  json_object_set(out, v->name, list);
out:
  json_decref(list);
  if (m) maps_free(m);
  chi_free(m);
  return rc;
}

int chii_study_maps(chii_study *s, chi_err *err) {
  int rc = 0;
  char ask[64], corrupt[220], before[300] = "", now[300];
  json_t *all = json_object();
  if (!chii_has_kind(s, "trace/")) goto out;
  chii_page_head(&s->html, 2, "Where the answer is restored: causal maps");
  for (size_t i = 0; i < s->n_kinds; i++) {
    if (strncmp(s->kind[i], "trace/", 6) != 0) continue;
    if (!chii_part(s->kind[i], 1, ask, sizeof ask) || !chii_part(s->kind[i], 2, corrupt, sizeof corrupt)) continue;
    snprintf(now, sizeof now, "%s/%s", ask, corrupt);
    if (strcmp(now, before) == 0) continue; /* kinds are sorted */
    snprintf(before, sizeof before, "%s", now);
    if (strcmp(ask, s->ask) == 0)
      chii_page_head(&s->html, 2, "Corruption: %s", corrupt);
    else
      chii_page_head(&s->html, 2, "Asked as \xe2\x80\x9c%s\xe2\x80\x9d, corruption: %s", ask, corrupt);
    json_t *one = json_object();
    json_object_set_new(all, now, one);
    for (int v = 0; v < s->n_views; v++) CHI_TRY(one_view(s, &s->view[v], ask, corrupt, one, err));
  }
  json_object_set(s->json, "peaks", all);
out:
  json_decref(all);
  return rc;
}

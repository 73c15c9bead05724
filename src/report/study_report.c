/* The report of a run: what was done, with which items, and every section. */
#include "report/study_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/study_internal.h"

/* ---- items ----------------------------------------------------------------------------------------------- */
static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Equal texts, counted, most telling first: as a list. */
static int tally(chii_study *s, const char *title, const char **text, size_t n, chi_err *err) {
  (void)err;
  if (n == 0) return 0;
  qsort(text, n, sizeof *text, by_text);
  chii_page_para(&s->html, "%s", title);
  chi_str_add(&s->html, "<ul>\n");
  size_t shown = 0, kinds = 0;
  for (size_t i = 0, j; i < n; i = j, kinds++) {
    for (j = i; j < n && strcmp(text[i], text[j]) == 0; j++) continue;
    if (shown == 20) continue;
    shown++;
    chi_str_addf(&s->html, "<li>%zu \xc3\x97 ", j - i);
    chii_page_text(&s->html, text[i]);
    chi_str_add(&s->html, "</li>\n");
  }
  if (kinds > shown) chi_str_addf(&s->html, "<li>and %zu further reasons, in items.csv</li>\n", kinds - shown);
  chi_str_add(&s->html, "</ul>\n");
  return 0;
}

static int failures(chii_study *s, chi_err *err) {
  int rc = 0;
  size_t n = 0, cap = 0;
  const char **text = NULL;
  for (int st = CHI_STORE_SKIPPED; st <= CHI_STORE_FAILED; st++) {
    n = 0;
    for (size_t i = 0; i < s->n_rows; i++) {
      if ((int)s->row[i].status != st) continue;
      CHI_TRY(chi_grow((void **)&text, &cap, n + 1, sizeof *text, err));
      text[n++] = s->row[i].reason;
    }
    CHI_TRY(tally(s, st == CHI_STORE_FAILED ? "Failed:" : "Skipped:", text, n, err));
  }
  n = 0;
  for (int32_t i = 0; i < s->n_items; i++) {
    const json_t *w = json_object_get(s->item[i].info, "without");
    for (size_t k = 0; k < json_array_size(w); k++) {
      CHI_TRY(chi_grow((void **)&text, &cap, n + 1, sizeof *text, err));
      text[n] = json_string_value(json_array_get(w, k));
      n += text[n] != NULL;
    }
  }
  CHI_TRY(tally(s, "Done, but without:", text, n, err));
out:
  chi_free(text);
  return rc;
}

/* Items and right answers of each form. */
static void forms(chii_study *s) {
  bool *seen = chi_calloc((size_t)s->n_items, sizeof *seen, NULL);
  if (!seen) return;
  chii_page_table(&s->html, "form|items|right|of those with an answer");
  for (int32_t i = 0; i < s->n_items; i++) {
    int n = 0, right = 0, known = 0;
    if (seen[i]) continue;
    for (int32_t k = i; k < s->n_items; k++) {
      if (strcmp(s->item[i].row->group, s->item[k].row->group) != 0) continue;
      seen[k] = true;
      n++;
      right += s->item[k].right == 1;
      known += s->item[k].right >= 0;
    }
    chii_page_row(&s->html);
    chii_page_cell(&s->html, "%s", *s->item[i].row->group ? s->item[i].row->group : "(none)");
    chii_page_cell(&s->html, "%d", n);
    chii_page_cell(&s->html, "%d", right);
    if (known)
      chii_page_cell(&s->html, "%.1f %%", 100.0 * right / known);
    else
      chii_page_cell(&s->html, "-");
  }
  chii_page_table_end(&s->html);
  chi_free(seen);
}

static int head(chii_study *s, chi_err *err) {
  int rc = 0;
  chi_store_counts c;
  int64_t items = 0;
  double seconds = 0;
  chi_str *h = &s->html;
  CHI_TRY(chi_store_count(s->store, &c, err));
  CHI_TRY(chi_store_spent(s->store, &items, &seconds, err));
  const char *model = chi_store_get(s->store, "model");
  chi_str_add(h, "<h1>Study of ");
  chii_page_text(h, model ? model : "a model");
  const char *data = chi_store_get(s->store, "data");
  chi_str_add(h, "</h1>\n<p class=\"soft\">");
  chii_page_text(h, data ? data : "");
  const char *state = chi_store_get(s->store, "state");
  chi_str_addf(h, "%s</p>\n", chi_streq(state, "done") ? "" : ". The run is not finished: these are the items so far");
  chii_page_head(h, 2, "Items");
  chi_str_addf(h, "<p>%lld items are done, %lld were skipped, %lld failed", (long long)c.n[CHI_STORE_OK],
               (long long)c.n[CHI_STORE_SKIPPED], (long long)c.n[CHI_STORE_FAILED]);
  if (seconds > 0) chi_str_addf(h, "; %.3g items a minute", 60 * (double)items / seconds);
  chi_str_addf(h, ". The unit of all statistics is the entity: %d of them.</p>\n", s->view[CHII_ALL].cl.n);
  forms(s);
  if (s->filters.len)
    chi_str_addf(h, "<p>Filters of the filtered view, one after the other:</p><ul>\n%s</ul>\n", s->filters.s);
  if (s->n_views == 1) chii_page_para(h, "The filters leave all items, or none: there is one view only.");
  CHI_TRY(failures(s, err));
  json_object_set_new(
      s->json, "items",
      json_pack("{s:I, s:I, s:I, s:i, s:i}", "done", (json_int_t)c.n[CHI_STORE_OK], "skipped",
                (json_int_t)c.n[CHI_STORE_SKIPPED], "failed", (json_int_t)c.n[CHI_STORE_FAILED], "entities",
                (int)s->view[CHII_ALL].cl.n, "filtered", (int)s->view[s->n_views - 1].cl.n_items));
out:
  return rc;
}

static int write_items(chii_study *s, chi_err *err) {
  static const char *const kHead[] = {"seq",    "id",     "unit", "split", "form", "status",
                                      "reason", "answer", "said", "right", "p",    "filtered"};
  int rc = 0;
  char path[4096];
  chi_csv *c = NULL;
  CHI_TRY(chi_path_join(path, sizeof path, s->dir, "items.csv", err));
  CHI_TRY(chi_csv_open(&c, path, kHead, sizeof kHead / sizeof *kHead, err));
  const chii_view *kept = &s->view[s->n_views - 1];
  for (size_t i = 0, done = 0, k = 0; i < s->n_rows; i++) {
    const chi_store_item *row = &s->row[i];
    const chii_item *it = row->status == CHI_STORE_OK ? &s->item[done] : NULL;
    bool in = it && k < (size_t)kept->cl.n_items && (size_t)kept->at[k] == done;
    const json_t *ask = it ? json_object_get(json_object_get(it->info, "ask"), s->ask) : NULL;
    chi_csv_int(c, row->seq);
    chi_csv_str(c, row->id);
    chi_csv_str(c, row->unit);
    chi_csv_str(c, row->split);
    chi_csv_str(c, row->group);
    chi_csv_str(c, chi_store_status_name[row->status]);
    chi_csv_str(c, row->reason);
    chi_csv_str(c, it ? json_string_value(json_object_get(it->info, "answer")) : NULL);
    chi_csv_str(c, json_string_value(json_object_get(ask, "said")));
    chi_csv_num(c, it && it->right >= 0 ? (double)it->right : (double)NAN);
    chi_csv_num(c, it ? it->p : NAN);
    chi_csv_int(c, in);
    CHI_TRY(chi_csv_row(c, err));
    k += in;
    done += it != NULL;
  }
  rc = chi_csv_commit(c, err);
  c = NULL;
out:
  chi_csv_abort(c);
  return rc;
}

/* ---- methods --------------------------------------------------------------------------------------------- */
static void list_of(chi_str *out, const json_t *a) {
  size_t i;
  json_t *v;
  json_array_foreach(a, i, v) {
    chi_str_add(out, i ? ", " : "");
    if (json_is_string(v))
      chii_page_text(out, json_string_value(v));
    else
      chi_str_addf(out, "%lld", (long long)json_integer_value(v));
  }
}

static void methods(chii_study *s) {
  chi_str *h = &s->html;
  const json_t *set = s->settings;
  const char *dtype = json_string_value(json_object_get(set, "dtype"));
  const chii_view *v = &s->view[s->n_views - 1];
  chii_page_head(h, 2, "Methods");
  chi_str_addf(
      h,
      "<p>The model's greedy answer to each item was generated and compared with the data set's. Effects are changes "
      "of the probability of its first token, in %s arithmetic, signed and never clipped. ",
      dtype ? dtype : "f32");
  if (chii_has_kind(s, "trace/")) {
    chi_str_add(
        h,
        "Causal maps follow MultiModalCausalTrace (Basu et al. 2024, <i>Understanding Information Storage and "
        "Transfer in Multi-modal LLMs</i>) and causal tracing (Meng et al. 2022, <i>Locating and Editing Factual "
        "Associations in GPT</i>): the words of the constraint were corrupted (");
    list_of(h, json_object_get(set, "corrupt"));
    chi_str_add(h, ") and the clean run's value was put back at one token and a window of ");
    list_of(h, json_object_get(set, "windows"));
    chi_str_add(h,
                " layers. As a control the value came from a clean run about another picture (donor); only own minus "
                "donor speaks of the fact itself. Maps are averaged by what a token is. ");
  }
  if (chii_has_kind(s, "knockout/"))
    chi_str_add(h,
                "Knock-out: attention edges cut by a score of minus infinity in windows of layers (Geva et al. 2023, "
                "<i>Dissecting Recall of Factual Associations</i>), beside as many random edges. ");
  if (chii_has_kind(s, "contributions/"))
    chi_str_add(h,
                "Attention contributions a(j&rarr;i) = A<sub>ij</sub> W<sub>O</sub> v<sub>j</sub>, summed over heads "
                "(Yuksekgonul et al. 2024, <i>Attention Satisfies</i>). ");
  if (chii_has_kind(s, "attribute/"))
    chi_str_add(
        h,
        "Log-probability increase of layers and heads (Yu and Ananiadou 2024, <i>Understanding Multimodal LLMs: the "
        "Mechanistic Interpretability of LLaVA in VQA</i>). ");
  chi_str_addf(
      h,
      "Intervals: 95&nbsp;%% percentile bootstrap, whole entities drawn, %d draws, seed %llu. Outlines: max-T over all "
      "cells, sites and windows of a corruption by sign flips of whole entities (Westfall and Young 1993), family-wise "
      "p &lt; %g. %d items of %d entities stand in the filtered view.</p>\n",
      s->boot.draws ? s->boot.draws : 10000, (unsigned long long)s->boot.seed,
      s->opts->alpha > 0 ? s->opts->alpha : 0.05, v->cl.n_items, v->cl.n);
  char *text = json_dumps(set, JSON_COMPACT | JSON_SORT_KEYS);
  chi_str_add(h, "<p class=\"soft\">Settings: <code>");
  chii_page_text(h, text ? text : "");
  chi_str_add(h, "</code><br>Model: <code>");
  const char *hash = chi_store_get(s->store, "model_hash");
  chii_page_text(h, hash ? hash : "");
  chi_str_add(h, "</code><br>Data set: <code>");
  hash = chi_store_get(s->store, "data_hash");
  chii_page_text(h, hash ? hash : "");
  chi_str_add(h, "</code><br>Made by: <code>");
  hash = chi_store_get(s->store, "version");
  chii_page_text(h, hash ? hash : "");
  chi_str_add(h, "</code></p>\n");
  free(text);
}

/* ---- all of it ------------------------------------------------------------------------------------------- */
static int open_tables(chii_study *s, chi_err *err) {
  static const char *const kMaps[] = {"view",  "ask",  "corruption", "site", "window",   "source",
                                      "layer", "role", "effect",     "t",    "p_family", "items"};
  static const char *const kCurves[] = {"result", "view", "layer", "mean", "lo", "hi", "items", "entities"};
  int rc = 0;
  char path[4096];
  CHI_TRY(chi_mkdirs(s->dir, err));
  CHI_TRY(chi_path_join(path, sizeof path, s->dir, "maps.csv", err));
  CHI_TRY(chi_csv_open(&s->maps, path, kMaps, sizeof kMaps / sizeof *kMaps, err));
  CHI_TRY(chi_path_join(path, sizeof path, s->dir, "curves.csv", err));
  CHI_TRY(chi_csv_open(&s->curves, path, kCurves, sizeof kCurves / sizeof *kCurves, err));
out:
  return rc;
}

int chi_study_report(const char *run, const char *dir, const chi_study_report_opts *o, const chi_provenance *prov,
                     chi_err *err) {
  int rc = 0;
  char path[4096], hex[65];
  chi_provenance own = *prov;
  chii_study *s = chi_calloc(1, sizeof *s, err);
  if (!s) return CHI_ERR_MEMORY;
  *s = (chii_study){.opts = o, .prov = &own, .run = run, .dir = dir, .boot = {.draws = o->draws, .seed = o->seed}};
  CHI_TRY(chii_study_load(s, err));
  CHI_TRY(chi_store_digest(s->store, hex, err));
  own.data_hash = hex;
  CHI_TRY(chi_report_json(&s->json, "study", &own, err));
  json_object_set(s->json, "settings", s->settings);
  CHI_TRY(open_tables(s, err));
  CHI_TRY(head(s, err));
  CHI_TRY(chii_study_claims(s, err));
  CHI_TRY(chii_study_maps(s, err));
  CHI_TRY(chii_study_twins(s, err));
  CHI_TRY(chii_study_transfer(s, err));
  CHI_TRY(chii_study_predict(s, err));
  methods(s);
  CHI_TRY(write_items(s, err));
  rc = chi_csv_commit(s->maps, err);
  s->maps = NULL;
  CHI_TRY(rc);
  rc = chi_csv_commit(s->curves, err);
  s->curves = NULL;
  CHI_TRY(rc);
  CHI_TRY(chi_path_join(path, sizeof path, dir, "report.json", err));
  CHI_TRY(chi_json_save(s->json, path, err));
  CHI_TRY(chii_page_write(s, err));
out:
  chii_study_free(s);
  chi_free(s);
  return rc;
}

/* The normalizer, pre_tokenizer, post_processor and decoder objects of tokenizer.json -> flat lists of steps. A type,
 * field value or pattern that we would treat differently from the reference is refused by name. */
#include "text/tok.h"

#include <string.h>

#define BYTE_LEVEL_REGEX "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef struct loader {
  chi_tokenizer *t;
  const json_t *root;
  const char *stage; /* "normalizer", ...: names the place in messages */
  chi_err *err;
} loader;

typedef int (*step_fn)(loader *l, const json_t *o, const char *type);

static int unsupported(const loader *l, const char *what, const char *value) {
  return chi_fail(l->err, CHI_ERR_UNSUPPORTED, "%s: %s \"%s\" is not supported", l->stage, what, value);
}

static const char *keep(loader *l, const char *s) { return chi_arena_strdup(&l->t->arena, s, l->err); }

/* A required string; the copy lives as long as the tokenizer. */
static int text_field(loader *l, const char **out, const json_t *o, const char *key) {
  const char *s = NULL;
  int rc = chi_json_str_opt(&s, o, key, l->stage, l->err);
  if (rc) return rc;
  if (!s) return chi_fail(l->err, CHI_ERR_FORMAT, "%s: \"%s\" is missing", l->stage, key);
  *out = keep(l, s);
  return *out ? 0 : CHI_ERR_MEMORY;
}

/* {"String": "..."} or {"Regex": "..."} */
static int pattern_field(loader *l, chi_pattern *p, const json_t *o) {
  const json_t *pat = json_object_get(o, "pattern"), *lit = json_object_get(pat, "String");
  const json_t *re = json_object_get(pat, "Regex");
  if (json_is_string(lit)) {
    const char *s = keep(l, json_string_value(lit));
    return s ? chi_pattern_literal(p, s, l->stage, l->err) : CHI_ERR_MEMORY;
  }
  if (json_is_string(re)) return chi_pattern_regex(p, json_string_value(re), l->stage, l->err);
  return chi_fail(l->err, CHI_ERR_FORMAT, "%s: \"pattern\" must hold a String or a Regex", l->stage);
}

static int one_of(loader *l, const json_t *o, const char *key, const char *const *names, int n, int *out) {
  const char *s = NULL;
  int rc = chi_json_str_opt(&s, o, key, l->stage, l->err);
  if (rc || !s) return rc;
  for (int k = 0; k < n; k++) {
    if (strcmp(s, names[k]) != 0) continue;
    *out = k;
    return 0;
  }
  return unsupported(l, key, s);
}

static int bool_field(loader *l, bool *out, const json_t *o, const char *key) {
  return chi_json_bool_opt(out, o, key, l->stage, l->err);
}

/* Walks an object or its Sequence of objects, calling fn on every leaf. */
static int walk(loader *l, const json_t *o, const char *list_key, step_fn fn, int depth) {
  int rc = 0;
  const char *type = NULL;
  if (!o || json_is_null(o)) return 0;
  if (!json_is_object(o)) return chi_fail(l->err, CHI_ERR_FORMAT, "%s: not an object", l->stage);
  CHI_TRY(chi_json_str_opt(&type, o, "type", l->stage, l->err));
  if (!type) return chi_fail(l->err, CHI_ERR_FORMAT, "%s: \"type\" is missing", l->stage);
  if (strcmp(type, "Sequence") != 0) return fn(l, o, type);
  const json_t *list = json_object_get(o, list_key), *item;
  if (!json_is_array(list) || depth > 8)
    return chi_fail(l->err, CHI_ERR_FORMAT, "%s: a Sequence without a list \"%s\", or nested too deep", l->stage,
                    list_key);
  size_t k;
  json_array_foreach(list, k, item) CHI_TRY(walk(l, item, list_key, fn, depth + 1));
out:
  return rc;
}

static int room(loader *l, size_t n) {
  if (n < CHI_MAX_STEPS) return 0;
  return chi_fail(l->err, CHI_ERR_UNSUPPORTED, "%s: more than %d steps", l->stage, CHI_MAX_STEPS);
}

/* ---- normalizers ------------------------------------------------------------------------------------------- */
/* BertNormalizer is up to five steps of ours, in its order. */
static int bert_normalizer(loader *l, const json_t *o) {
  int rc = 0;
  bool clean = true, han = true, lower = true, marks;
  CHI_TRY(bool_field(l, &clean, o, "clean_text"));
  CHI_TRY(bool_field(l, &han, o, "handle_chinese_chars"));
  CHI_TRY(bool_field(l, &lower, o, "lowercase"));
  marks = lower; /* null or absent follows the case */
  if (!json_is_null(json_object_get(o, "strip_accents"))) CHI_TRY(bool_field(l, &marks, o, "strip_accents"));
  const struct {
    bool on;
    chi_norm_kind kind;
  } parts[] = {{clean, CHI_NORM_BERT_CLEAN},
               {han, CHI_NORM_BERT_HAN},
               {marks, CHI_NORM_NFD},
               {marks, CHI_NORM_BERT_MARKS},
               {lower, CHI_NORM_LOWERCASE}};
  for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
    if (!parts[k].on) continue;
    CHI_TRY(room(l, l->t->n_norm));
    l->t->norm[l->t->n_norm++] = (chi_norm){.kind = parts[k].kind};
  }
out:
  return rc;
}

static int normalizer(loader *l, const json_t *o, const char *type) {
  static const struct {
    const char *name;
    chi_norm_kind kind;
  } kinds[] = {
      {"Prepend", CHI_NORM_PREPEND}, {"Replace", CHI_NORM_REPLACE},     {"NFC", CHI_NORM_NFC},
      {"NFD", CHI_NORM_NFD},         {"NFKC", CHI_NORM_NFKC},           {"NFKD", CHI_NORM_NFKD},
      {"Strip", CHI_NORM_STRIP},     {"Lowercase", CHI_NORM_LOWERCASE}, {"StripAccents", CHI_NORM_STRIP_ACCENTS}};
  int rc = 0;
  size_t k = 0;
  if (strcmp(type, "BertNormalizer") == 0) return bert_normalizer(l, o);
  while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].name, type) != 0) k++;
  if (k == sizeof kinds / sizeof *kinds) return unsupported(l, "type", type);
  CHI_TRY(room(l, l->t->n_norm));
  chi_norm *s = &l->t->norm[l->t->n_norm++];
  *s = (chi_norm){.kind = kinds[k].kind, .left = true, .right = true};
  if (s->kind == CHI_NORM_PREPEND) CHI_TRY(text_field(l, &s->text, o, "prepend"));
  if (s->kind == CHI_NORM_REPLACE) {
    CHI_TRY(text_field(l, &s->text, o, "content"));
    CHI_TRY(pattern_field(l, &s->pattern, o));
  }
  CHI_TRY(bool_field(l, &s->left, o, "strip_left"));
  CHI_TRY(bool_field(l, &s->right, o, "strip_right"));
out:
  return rc;
}

/* ---- pre-tokenizers ---------------------------------------------------------------------------------------- */
/* Replacement, prepend scheme and split of a Metaspace; files before 2024 have add_prefix_space, not a scheme. */
static int metaspace(loader *l, const json_t *o, const char **rep, chi_scheme *scheme, bool *split) {
  static const char *const schemes[] = {"always", "first", "never"};
  int rc = 0, which = CHI_PREPEND_ALWAYS;
  bool prefix = true;
  uint32_t cp;
  CHI_TRY(text_field(l, rep, o, "replacement"));
  if (!**rep || chi_utf8_get(*rep, &cp) != strlen(*rep)) return unsupported(l, "replacement", *rep);
  CHI_TRY(bool_field(l, &prefix, o, "add_prefix_space"));
  CHI_TRY(one_of(l, o, "prepend_scheme", schemes, 3, &which));
  if (!prefix && !json_object_get(o, "prepend_scheme")) which = CHI_PREPEND_NEVER;
  *scheme = (chi_scheme)which;
  CHI_TRY(bool_field(l, split, o, "split"));
out:
  return rc;
}

static int pre_tokenizer(loader *l, const json_t *o, const char *type) {
  static const struct {
    const char *name;
    chi_pre_kind kind;
  } kinds[] = {{"ByteLevel", CHI_PRE_BYTELEVEL},
               {"Split", CHI_PRE_SPLIT},
               {"Metaspace", CHI_PRE_METASPACE},
               {"Digits", CHI_PRE_DIGITS},
               {"Punctuation", CHI_PRE_PUNCTUATION},
               {"Whitespace", CHI_PRE_WHITESPACE},
               {"WhitespaceSplit", CHI_PRE_WHITESPACE_SPLIT}};
  static const char *const behaviours[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  int rc = 0, how = CHI_SPLIT_ISOLATED;
  size_t k = 0;
  bool individual = false;
  if (strcmp(type, "BertPreTokenizer") == 0) { /* white space away, then every punctuation mark on its own */
    CHI_TRY(room(l, l->t->n_pre + 1));
    l->t->pre[l->t->n_pre++] = (chi_pre){.kind = CHI_PRE_WHITESPACE_SPLIT, .behaviour = CHI_SPLIT_REMOVED};
    l->t->pre[l->t->n_pre++] = (chi_pre){.kind = CHI_PRE_PUNCTUATION, .behaviour = CHI_SPLIT_ISOLATED};
    return 0;
  }
  while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].name, type) != 0) k++;
  if (k == sizeof kinds / sizeof *kinds) return unsupported(l, "type", type);
  CHI_TRY(room(l, l->t->n_pre));
  chi_pre *s = &l->t->pre[l->t->n_pre++];
  *s = (chi_pre){.kind = kinds[k].kind, .use_regex = true, .prefix_space = true, .split = true};
  switch (s->kind) {
    case CHI_PRE_BYTELEVEL:
      CHI_TRY(bool_field(l, &s->prefix_space, o, "add_prefix_space"));
      CHI_TRY(bool_field(l, &s->use_regex, o, "use_regex"));
      if (s->use_regex) CHI_TRY(chi_pattern_regex(&s->pattern, BYTE_LEVEL_REGEX, l->stage, l->err));
      break;
    case CHI_PRE_SPLIT:
      CHI_TRY(pattern_field(l, &s->pattern, o));
      CHI_TRY(bool_field(l, &s->invert, o, "invert"));
      CHI_TRY(one_of(l, o, "behavior", behaviours, 5, &how));
      break;
    case CHI_PRE_METASPACE: {
      const char *rep = NULL;
      CHI_TRY(metaspace(l, o, &rep, &s->scheme, &s->split));
      CHI_TRY(chi_pattern_literal(&s->pattern, rep, l->stage, l->err));
      how = CHI_SPLIT_NEXT;
      break;
    }
    case CHI_PRE_DIGITS:
      CHI_TRY(bool_field(l, &individual, o, "individual_digits"));
      how = individual ? CHI_SPLIT_ISOLATED : CHI_SPLIT_CONTIGUOUS;
      break;
    case CHI_PRE_PUNCTUATION:
      CHI_TRY(one_of(l, o, "behavior", behaviours, 5, &how));
      break;
    case CHI_PRE_WHITESPACE:
      CHI_TRY(chi_pattern_regex(&s->pattern, "[\\w\\p{Join_Control}]+|[^\\w\\s\\p{Join_Control}]+", l->stage, l->err));
      s->invert = true;
      how = CHI_SPLIT_REMOVED;
      break;
    case CHI_PRE_WHITESPACE_SPLIT:
      how = CHI_SPLIT_REMOVED;
      break;
  }
  s->behaviour = (chi_split)how;
out:
  return rc;
}

/* ---- post-processors --------------------------------------------------------------------------------------- */
/* Ids of one special token of a template, appended to ids[*n..cap). */
static int template_ids(loader *l, const json_t *o, const char *name, int32_t *ids, size_t *n, size_t cap) {
  const json_t *tok = json_object_get(json_object_get(o, "special_tokens"), name);
  const json_t *list = json_object_get(tok, "ids"), *v;
  size_t k;
  if (!json_is_array(list))
    return chi_fail(l->err, CHI_ERR_FORMAT, "%s: special token \"%s\" has no list \"ids\"", l->stage, name);
  json_array_foreach(list, k, v) {
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    if (id < 0 || id >= l->t->n_ids || !l->t->piece[id].flags)
      return chi_fail(l->err, CHI_ERR_FORMAT, "%s: special token \"%s\" has an id that the vocabulary lacks", l->stage,
                      name);
    if (*n == cap) return chi_fail(l->err, CHI_ERR_UNSUPPORTED, "%s: more than %zu special tokens", l->stage, cap);
    ids[(*n)++] = (int32_t)id;
  }
  return 0;
}

static int template_processing(loader *l, const json_t *o, chi_post *s) {
  enum { CAP = 64 };
  const json_t *list = json_object_get(o, "single"), *item;
  int rc = 0;
  bool seen = false;
  size_t k, n = 0;
  int32_t *ids = chi_arena_array(&l->t->arena, CAP, sizeof *ids, l->err);
  if (!ids) return CHI_ERR_MEMORY;
  json_array_foreach(list, k, item) {
    const json_t *special = json_object_get(item, "SpecialToken"), *seq = json_object_get(item, "Sequence");
    const char *id = json_string_value(json_object_get(special ? special : seq, "id"));
    if (!id)
      return chi_fail(l->err, CHI_ERR_FORMAT, "%s: item %zu of \"single\" is no token and no sequence", l->stage, k);
    if (special) {
      CHI_TRY(template_ids(l, o, id, ids, &n, CAP));
    } else {
      if (strcmp(id, "A") != 0 || seen) return unsupported(l, "template sequence", id);
      seen = true;
      s->n_before = n;
    }
  }
  if (!seen) return chi_fail(l->err, CHI_ERR_FORMAT, "%s: \"single\" does not contain the text", l->stage);
  s->ids = ids;
  s->n_ids = n;
out:
  return rc;
}

/* BertProcessing and RobertaProcessing: "cls" and "sep", each [token, id], around the text. */
static int cls_and_sep(loader *l, const json_t *o, chi_post *s) {
  static const char *const names[] = {"cls", "sep"};
  int32_t *ids = chi_arena_array(&l->t->arena, 2, sizeof *ids, l->err);
  if (!ids) return CHI_ERR_MEMORY;
  for (int k = 0; k < 2; k++) {
    const json_t *id = json_array_get(json_object_get(o, names[k]), 1);
    json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
    if (v < 0 || v >= l->t->n_ids || !l->t->piece[v].flags)
      return chi_fail(l->err, CHI_ERR_FORMAT, "%s: \"%s\" is not a token of the vocabulary with its id", l->stage,
                      names[k]);
    ids[k] = (int32_t)v;
  }
  *s = (chi_post){.kind = CHI_POST_TEMPLATE, .ids = ids, .n_before = 1, .n_ids = 2};
  return 0;
}

static int post_processor(loader *l, const json_t *o, const char *type) {
  int rc = 0;
  chi_tokenizer *t = l->t;
  bool bytes = strcmp(type, "ByteLevel") == 0, roberta = strcmp(type, "RobertaProcessing") == 0;
  bool bert = strcmp(type, "BertProcessing") == 0, is_template = strcmp(type, "TemplateProcessing") == 0;
  if (!bytes && !roberta && !bert && !is_template) return unsupported(l, "type", type);
  CHI_TRY(room(l, t->n_post + 1));
  if (bytes || roberta) {
    bool trim = true, prefix_space = true;
    CHI_TRY(bool_field(l, &trim, o, "trim_offsets"));
    CHI_TRY(bool_field(l, &prefix_space, o, "add_prefix_space"));
    if (trim) t->post[t->n_post++] = (chi_post){.kind = CHI_POST_TRIM, .prefix_space = prefix_space};
  }
  if (is_template) {
    t->post[t->n_post] = (chi_post){.kind = CHI_POST_TEMPLATE};
    CHI_TRY(template_processing(l, o, &t->post[t->n_post]));
    t->n_post++;
  }
  if (bert || roberta) {
    CHI_TRY(cls_and_sep(l, o, &t->post[t->n_post]));
    t->n_post++;
  }
out:
  return rc;
}

/* ---- decoders ---------------------------------------------------------------------------------------------- */
static int decoder(loader *l, const json_t *o, const char *type) {
  static const struct {
    const char *name;
    chi_dec_kind kind;
  } kinds[] = {{"ByteLevel", CHI_DEC_BYTELEVEL},        {"Metaspace", CHI_DEC_METASPACE}, {"Replace", CHI_DEC_REPLACE},
               {"ByteFallback", CHI_DEC_BYTE_FALLBACK}, {"Fuse", CHI_DEC_FUSE},           {"Strip", CHI_DEC_STRIP},
               {"WordPiece", CHI_DEC_WORDPIECE}};
  int rc = 0;
  size_t k = 0;
  bool split = true;
  while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].name, type) != 0) k++;
  if (k == sizeof kinds / sizeof *kinds) return unsupported(l, "type", type);
  CHI_TRY(room(l, l->t->n_dec));
  chi_dec *s = &l->t->dec[l->t->n_dec++];
  *s = (chi_dec){.kind = kinds[k].kind};
  if (s->kind == CHI_DEC_METASPACE) CHI_TRY(metaspace(l, o, &s->text, &s->scheme, &split));
  if (s->kind == CHI_DEC_REPLACE) {
    CHI_TRY(text_field(l, &s->text, o, "content"));
    CHI_TRY(pattern_field(l, &s->pattern, o));
  }
  if (s->kind == CHI_DEC_WORDPIECE) {
    s->cleanup = true;
    CHI_TRY(text_field(l, &s->text, o, "prefix"));
    CHI_TRY(bool_field(l, &s->cleanup, o, "cleanup"));
  }
  if (s->kind == CHI_DEC_STRIP) {
    CHI_TRY(text_field(l, &s->text, o, "content"));
    CHI_TRY(chi_json_i64_opt(&s->start, o, "start", 0, INT32_MAX, l->stage, l->err));
    CHI_TRY(chi_json_i64_opt(&s->stop, o, "stop", 0, INT32_MAX, l->stage, l->err));
    if (!*s->text) return unsupported(l, "content", "");
  }
out:
  return rc;
}

int chi_tok_steps(chi_tokenizer *t, const json_t *root, chi_err *err) {
  int rc = 0;
  loader l = {.t = t, .root = root, .err = err};
  l.stage = "normalizer";
  CHI_TRY(walk(&l, json_object_get(root, "normalizer"), "normalizers", normalizer, 0));
  l.stage = "pre_tokenizer";
  CHI_TRY(walk(&l, json_object_get(root, "pre_tokenizer"), "pretokenizers", pre_tokenizer, 0));
  l.stage = "post_processor";
  CHI_TRY(walk(&l, json_object_get(root, "post_processor"), "processors", post_processor, 0));
  l.stage = "decoder";
  CHI_TRY(walk(&l, json_object_get(root, "decoder"), "decoders", decoder, 0));
out:
  return rc;
}

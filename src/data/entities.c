/* Entity lists; see entities.h. */
#include "data/entities.h"

#include <string.h>
#include <strings.h>

#define LIST(...) (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)
static const chi_entity_kind kBuiltIn[] = {
    {"country", LIST("country", "nation", "state", "land"),
     LIST("France", "Japan", "Peru", "Norway", "Kenya", "Brazil", "Poland", "Chile", "Egypt", "Canada", "India",
          "Mexico", "Greece", "South Korea", "New Zealand", "Saudi Arabia", "Sri Lanka", "Costa Rica", "United Kingdom",
          "United States", "South Africa", "Czech Republic", "Papua New Guinea", "Bosnia and Herzegovina")},
    {"city", LIST("city", "town", "capital", "place"),
     LIST("Paris", "London", "Tokyo", "Rome", "Madrid", "Berlin", "Cairo", "Boston", "New York", "Hong Kong",
          "San Francisco", "Rio de Janeiro", "Buenos Aires", "Mexico City", "Kuala Lumpur", "Saint Petersburg")},
    {"building", LIST("building", "tower", "landmark", "monument", "church", "museum", "bridge", "castle", "stadium"),
     LIST("Taj Mahal", "Eiffel Tower", "Big Ben", "White House", "Colosseum", "Louvre", "Parthenon",
          "Golden Gate Bridge", "Empire State Building", "Notre Dame", "Kremlin", "Sydney Opera House")},
    {"person",
     LIST("person", "man", "woman", "director", "actor", "actress", "singer", "player", "politician", "scientist",
          "author", "president"),
     LIST("Einstein", "Shakespeare", "Mozart", "Picasso", "Napoleon", "Marie Curie", "Tom Hanks", "Steven Spielberg",
          "Barack Obama", "Michael Jordan", "Martin Scorsese", "Charles Darwin", "Leonardo da Vinci")},
    {"company", LIST("company", "brand", "manufacturer", "firm"),
     LIST("Apple", "Google", "Toyota", "Sony", "Nike", "Boeing", "Intel", "Microsoft", "Coca Cola", "General Motors",
          "Louis Vuitton", "Goldman Sachs")},
    {"animal", LIST("animal", "dog", "cat", "bird", "fish", "pet", "creature"),
     LIST("horse", "lion", "tiger", "eagle", "shark", "rabbit", "wolf", "polar bear", "blue whale", "golden retriever",
          "sea turtle", "giant panda")},
    {"object",
     LIST("object", "thing", "item", "food", "vehicle", "car", "sport", "fruit", "instrument", "device", "product",
          "system", "program"),
     LIST("chair", "bottle", "guitar", "bicycle", "banana", "camera", "pizza", "hammer", "tennis racket", "fire truck",
          "coffee cup", "cell phone")},
    {"color", LIST("color", "colour"),
     LIST("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "pink", "brown", "dark blue",
          "light green")},
    {"side", LIST("side"), LIST("left", "right", "top", "bottom")},
};

/* One kind of the file. */
static int read_kind(chi_entities *e, chi_entity_kind *k, const char *name, const json_t *obj, chi_err *err) {
  const json_t *nouns = json_object_get(obj, "nouns"), *names = json_object_get(obj, "names");
  if (!json_is_array(nouns) || !json_is_array(names))
    return chi_fail(err, CHI_ERR_FORMAT, "entities.json: kinds.%s needs the lists nouns and names", name);
  const char **n = chi_arena_array(&e->arena, json_array_size(nouns), sizeof *n, err),
             **m = chi_arena_array(&e->arena, json_array_size(names), sizeof *m, err);
  if (!n || !m || !(k->kind = chi_arena_strdup(&e->arena, name, err))) return CHI_ERR_MEMORY;
  size_t i;
  json_t *v;
  json_array_foreach(nouns, i, v) {
    if (!json_is_string(v))
      return chi_fail(err, CHI_ERR_FORMAT, "entities.json: kinds.%s.nouns[%zu] is not text", name, i);
    if (!(n[i] = chi_arena_strdup(&e->arena, json_string_value(v), err))) return CHI_ERR_MEMORY;
  }
  json_array_foreach(names, i, v) {
    const json_t *t = json_is_object(v) ? json_object_get(v, "name") : v;
    if (!json_is_string(t))
      return chi_fail(err, CHI_ERR_FORMAT, "entities.json: kinds.%s.names[%zu] has no name", name, i);
    if (!(m[i] = chi_arena_strdup(&e->arena, json_string_value(t), err))) return CHI_ERR_MEMORY;
  }
  k->nouns = n, k->n_nouns = json_array_size(nouns);
  k->names = m, k->n_names = json_array_size(names);
  return 0;
}

int chi_entities_load(chi_entities *out, const char *dir, chi_err *err) {
  int rc = 0;
  char path[4096];
  json_t *file = NULL;
  memset(out, 0, sizeof *out);
  CHI_TRY(chi_path_join(path, sizeof path, dir, "entities.json", err));
  if (!chi_file_exists(path)) {
    out->n_kinds = sizeof kBuiltIn / sizeof *kBuiltIn;
    out->built_in = true;
    out->kind = chi_arena_array(&out->arena, out->n_kinds, sizeof *out->kind, err);
    CHI_TRY(out->kind ? 0 : CHI_ERR_MEMORY);
    memcpy(out->kind, kBuiltIn, sizeof kBuiltIn);
    return 0;
  }
  CHI_TRY(chi_json_load(&file, path, 16 << 20, err));
  json_t *kinds = json_object_get(file, "kinds"), *v;
  if (!json_is_object(kinds)) {
    rc = chi_fail(err, CHI_ERR_FORMAT, "%s: 'kinds' is missing", path);
    goto out;
  }
  out->kind = chi_arena_array(&out->arena, json_object_size(kinds), sizeof *out->kind, err);
  CHI_TRY(out->kind ? 0 : CHI_ERR_MEMORY);
  const char *name;
  json_object_foreach(kinds, name, v) CHI_TRY(read_kind(out, &out->kind[out->n_kinds++], name, v, err));
out:
  json_decref(file);
  if (rc) chi_entities_free(out);
  return rc;
}

void chi_entities_free(chi_entities *e) {
  chi_arena_free(&e->arena);
  memset(e, 0, sizeof *e);
}

static bool ends_with_word(const char *words, const char *noun) {
  size_t w = strlen(words), n = strlen(noun);
  while (w && strchr(" ,.?!", words[w - 1])) w--;
  return w >= n && strncasecmp(words + w - n, noun, n) == 0 && (w == n || words[w - n - 1] == ' ');
}

const chi_entity_kind *chi_entities_kind_of(const chi_entities *e, const char *words) {
  for (size_t k = 0; k < e->n_kinds; k++)
    for (size_t i = 0; i < e->kind[k].n_names; i++)
      if (strcasecmp(e->kind[k].names[i], words) == 0) return &e->kind[k];
  for (size_t k = 0; k < e->n_kinds; k++) /* "the country on the left": a noun anywhere, the last word first */
    for (size_t i = 0; i < e->kind[k].n_nouns; i++)
      if (ends_with_word(words, e->kind[k].nouns[i])) return &e->kind[k];
  for (size_t k = 0; k < e->n_kinds; k++)
    for (size_t i = 0; i < e->kind[k].n_nouns; i++) {
      const char *at = strstr(words, e->kind[k].nouns[i]);
      size_t n = strlen(e->kind[k].nouns[i]);
      if (at && (at == words || at[-1] == ' ') && (at[n] == ' ' || at[n] == ',')) return &e->kind[k];
    }
  return NULL;
}

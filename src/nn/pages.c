#include "nn/pages.h"

typedef struct range {
  const uint8_t *lo, *hi;
} range;

struct chi_pages {
  const chi_map *map;
  int layers, current; /* current: the layer of the last visit, -1 before the first */
  uint64_t read;
  range *layer; /* [layers] */
};

chi_pages *chi_pages_new(const chi_map *map, int layers, chi_err *err) {
  chi_pages *p = chi_calloc(1, sizeof *p, err);
  if (!p) return NULL;
  *p = (chi_pages){.map = map, .layers = layers, .current = -1};
  p->layer = chi_calloc((size_t)layers, sizeof *p->layer, err);
  if (p->layer) return p;
  chi_free(p);
  return NULL;
}

void chi_pages_free(chi_pages *p) {
  if (!p) return;
  chi_free(p->layer);
  chi_free(p);
}

void chi_pages_add(chi_pages *p, int layer, const void *data, size_t bytes) {
  range *r = &p->layer[layer];
  const uint8_t *lo = data, *hi = lo + bytes;
  if (!r->lo || lo < r->lo) r->lo = lo;
  if (!r->hi || hi > r->hi) r->hi = hi;
}

static size_t size_of(const range *r) { return (size_t)(r->hi - r->lo); }

void chi_pages_visit(chi_pages *p, int layer) {
  if (layer == p->current || layer < 0 || layer >= p->layers) return;
  const range *r = &p->layer[layer];
  int next = p->current > layer ? layer - 1 : layer + 1; /* a backward pass goes down */
  if (p->current >= 0) chi_map_drop(p->map, p->layer[p->current].lo, size_of(&p->layer[p->current]));
  if (r->lo) chi_map_ahead(p->map, r->lo, size_of(r));
  if (next >= 0 && next < p->layers && p->layer[next].lo)
    chi_map_ahead(p->map, p->layer[next].lo, size_of(&p->layer[next]));
  p->read += size_of(r);
  p->current = layer;
}

uint64_t chi_pages_read(const chi_pages *p) { return p->read; }

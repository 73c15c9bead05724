/* pages: the weights of a stack's layers where they lie in a mapped file, and which of them are in memory. A pass over
 * the layers brings each in once, in order, and lets the one before go. Only wishes to the system: a matrix may be read
 * at any time whatever was visited, and no result depends on it. */
#ifndef CHI_PAGES_H
#define CHI_PAGES_H

#include "file/file.h"

typedef struct chi_pages chi_pages;
/* map: borrowed. layers: of the decoder. NULL and err on failure. Caller: chi_pages_free. */
chi_pages *chi_pages_new(const chi_map *map, int layers, chi_err *err);
void chi_pages_free(chi_pages *p);
/* Bytes [data, data + bytes) of the map belong to this layer; a layer's matrices lie side by side. */
void chi_pages_add(chi_pages *p, int layer, const void *data, size_t bytes);
/* A layer is about to be used: it and the next in the same direction are read ahead, the last one is dropped. */
void chi_pages_visit(chi_pages *p, int layer);
/* Bytes of all visits so far: what was asked from the file. */
uint64_t chi_pages_read(const chi_pages *p);

#endif

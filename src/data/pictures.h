/* data: pictures in a folder, as candidates for donors and for corruptions that change the picture. */
#ifndef CHI_PICTURES_H
#define CHI_PICTURES_H

#include "base/base.h"

/* path is a picture: itself. A folder: its .png, .jpg, .jpeg and .webp files, by name, in an order that the seed shuffles;
 * one that holds none is refused. *list and its strings live in the arena. */
int chi_pictures_find(char ***list, size_t *n, chi_arena *a, const char *path, uint64_t seed, chi_err *err);

#endif

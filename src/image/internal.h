/* image, shared between this folder's files only. */
#ifndef CHI_IMAGE_INTERNAL_H
#define CHI_IMAGE_INTERNAL_H

#include "image/image.h"

#define CHII_MAX_SIDE 30000       /* of a decoded picture */
#define CHII_MAX_PIXELS 100000000 /* of a decoded or resized picture: 300 MB */

/* Refuses declared sizes before memory is asked for. `what` names the picture in messages. */
int chii_image_check(int64_t w, int64_t h, const char *what, chi_err *err);
/* w and h are positive and passed a check; rgb is zeroed. */
int chii_image_alloc(chi_image *out, int w, int h, chi_err *err);

/* Decoders: fill w, h and rgb; on failure `out` holds nothing that must be freed. */
int chii_png_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err);
int chii_jpeg_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err);
int chii_webp_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err);

#endif

/* image: decode, Pillow-exact resize, crop/pad/normalise, patch grid <-> pixels. Pictures are untrusted. */
#ifndef CHI_IMAGE_H
#define CHI_IMAGE_H

#include "file/file.h"

typedef struct chi_image {
  int w, h;
  uint8_t *rgb;    /* h*w*3, owned */
  char sha256[65]; /* of the file's bytes */
} chi_image;
/* JPEG, PNG and WebP by content, not by name. The pixels are those of Pillow's Image.open(file).convert("RGB"), which is
 * what the published preprocessing starts from:
 *   palette and grey become RGB; alpha and transparent colours are dropped, not painted over a background;
 *   colour profiles and gamma are ignored; EXIF orientation is NOT applied (Image.open does not), so a photograph that
 *   needs turning is seen lying, as the models see it in transformers;
 *   16-bit PNG: RGB, RGBA and grey with alpha keep the high byte of each value; plain 16-bit grey is cut at 255 (Pillow's
 *   mode I;16: nearly all white, said in a warning);
 *   CMYK and YCCK JPEG (inverted, as Adobe writes them): n = 255 - k, r = n - c n / 255 rounded, and so on;
 *   progressive JPEG like any other; of an animated WebP the first frame.
 * JPEG pixels within 2 levels of Pillow's (its libjpeg may be another version), lossy WebP likewise, the rest exact.
 * More than 100 megapixels (16 for an animation) or a side over 30,000: refused before memory is asked for. */
int chi_image_load(chi_image *out, const char *path, chi_err *err);
int chi_image_decode(chi_image *out, const uint8_t *bytes, size_t n, const char *what, chi_err *err); /* fuzz door */
void chi_image_free(chi_image *im);
int chi_image_save_png(const chi_image *im, const char *path, chi_err *err); /* atomic */
/* The same with texts in the file (iTXt, UTF-8). Keys: Latin-1, 1 to 79 bytes, e.g. "Software". */
typedef struct chi_png_text { const char *key, *text; } chi_png_text;
int chi_image_save_png_text(const chi_image *im, const chi_png_text *text, size_t n, const char *path, chi_err *err);

/* PIL's numbers */
typedef enum chi_resample { CHI_BICUBIC = 3, CHI_BILINEAR = 2, CHI_LANCZOS = 1, CHI_NEAREST = 0 } chi_resample;
/* Pillow-exact (version 13: integer weights at 2^22, two passes with uint8 between them). */
int chi_image_resize(chi_image *out, const chi_image *in, int w, int h, chi_resample how, chi_err *err);

/* What preprocessor_config.json asks for. */
typedef struct chi_preproc {
  bool do_resize, do_center_crop, do_rescale, do_normalize, do_pad;
  int shortest_edge;         /* > 0: shortest edge; else resize to resize_w x resize_h */
  int resize_w, resize_h;
  int crop_w, crop_h;
  chi_resample resample;
  double rescale;
  double mean[3], std[3];    /* rounded to f32 where they are applied; the pad colour is trunc(mean x 255) in double */
  bool pad_square;           /* original LLaVA "pad": square with mean colour first */
} chi_preproc;
/* Reads preprocessor_config.json in its current and older styles (size as number, list or object), or a
 * processor_config.json that holds an "image_processor". Missing keys take the defaults of the class that the file
 * names (CLIP, LLaVA, BLIP, SigLIP, ViT, BiT; none named = CLIP). Refuses other classes, unknown resampling, sizes <= 0
 * or > 4096. */
int chi_preproc_load(chi_preproc *out, const char *path, chi_err *err);

/* How a model-side pixel maps back: x_orig = (x_model + crop_left) * orig_w / resized_w (minus pad). */
typedef struct chi_view {
  int orig_w, orig_h;        /* decoded picture */
  int pad_left, pad_top, padded; /* square pad: size after padding, 0 = none */
  int resized_w, resized_h;
  int crop_left, crop_top;   /* may be negative: zero padding of a small picture */
  int w, h;                  /* what the model sees */
} chi_view;
/* pixels: [3][h][w] f32, normalised (HF: rescale in f64 then f32; (x-mean)/std in f32); owned by caller (chi_free).
 * view and rgb may be NULL; rgb: the same crop as 8-bit picture for overlays. */
int chi_preprocess(float **pixels, chi_view *view, chi_image *rgb, const chi_image *in, const chi_preproc *p,
                   chi_err *err);
/* Box of patch (row, col) of a grid_h x grid_w grid in original-picture pixels (clipped to it). */
void chi_view_patch(const chi_view *v, int grid_h, int grid_w, int row, int col, double box[4]);
/* patch rows for a Conv2d patch embedding: out[grid_h*grid_w][3*ps*ps], channel-major inside a patch as the weights
 * are; rows and columns that fill no whole patch are left out. */
void chi_patchify(const float *pixels, int h, int w, int ps, float *out);

#endif

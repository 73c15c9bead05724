/* Any bytes as a picture: decoded or refused, never a crash; what was decoded can be resized and preprocessed. */
#include "image/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  chi_image im, small;
  chi_err err = {0};
  if (chi_image_decode(&im, data, size, "input", &err) != 0) return 0;
  if (im.w < 2000 && im.h < 2000 && chi_image_resize(&small, &im, 9, 14, CHI_BICUBIC, &err) == 0) {
    chi_preproc p = {.do_resize = true,
                     .shortest_edge = 8,
                     .do_center_crop = true,
                     .crop_w = 8,
                     .crop_h = 8,
                     .do_rescale = true,
                     .rescale = 1.0 / 255,
                     .resample = CHI_BILINEAR};
    float *pixels = NULL;
    chi_preprocess(&pixels, NULL, NULL, &small, &p, &err);
    chi_free(pixels);
    chi_image_free(&small);
  }
  chi_image_free(&im);
  return 0;
}

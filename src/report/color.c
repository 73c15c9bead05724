/* Colours of values. Anchors are mixed in Oklab, where equal steps look equal. */
#include "report/internal.h"

#include <math.h>

const chii_color chii_ink = {0.13, 0.13, 0.15}, chii_soft = {0.38, 0.38, 0.42}, chii_faint = {0.62, 0.62, 0.66},
                 chii_accent = {0.44, 0.16, 0.60};

static double to_linear(double c) { return c <= 0.04045 ? c / 12.92 : pow((c + 0.055) / 1.055, 2.4); }
static double to_srgb(double c) { return c <= 0.0031308 ? c * 12.92 : 1.055 * pow(c, 1 / 2.4) - 0.055; }

static void oklab(const uint8_t rgb[3], double lab[3]) {
  double r = to_linear(rgb[0] / 255.0), g = to_linear(rgb[1] / 255.0), b = to_linear(rgb[2] / 255.0);
  double l = cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  double m = cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  double s = cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  lab[0] = 0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s;
  lab[1] = 1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s;
  lab[2] = 0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s;
}

static uint8_t byte_of(double linear) {
  double c = to_srgb(linear < 0 ? 0 : linear > 1 ? 1 : linear);
  return (uint8_t)lround(c * 255);
}

static void rgb_of(const double lab[3], uint8_t rgb[3]) {
  double l = lab[0] + 0.3963377774 * lab[1] + 0.2158037573 * lab[2];
  double m = lab[0] - 0.1055613458 * lab[1] - 0.0638541728 * lab[2];
  double s = lab[0] - 0.0894841775 * lab[1] - 1.2914855480 * lab[2];
  l = l * l * l, m = m * m * m, s = s * s * s;
  rgb[0] = byte_of(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s);
  rgb[1] = byte_of(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s);
  rgb[2] = byte_of(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s);
}

void chi_heat_color(double t, uint8_t rgb[3]) {
  static const struct {
    double at;
    uint8_t rgb[3];
  } anchors[] = {{-1, {20, 70, 150}},     {-0.6, {74, 138, 204}}, {-0.25, {164, 202, 232}}, {0, {242, 242, 242}},
                 {0.25, {247, 190, 164}}, {0.6, {218, 96, 74}},   {1, {150, 16, 40}}};
  enum { N = sizeof anchors / sizeof *anchors };
  if (!(t > -1)) t = -1; /* NaN too: callers leave NaN blank */
  if (t > 1) t = 1;
  int i = 0;
  while (i < N - 2 && t > anchors[i + 1].at) i++;
  double f = (t - anchors[i].at) / (anchors[i + 1].at - anchors[i].at), a[3], b[3];
  oklab(anchors[i].rgb, a);
  oklab(anchors[i + 1].rgb, b);
  for (int k = 0; k < 3; k++) a[k] += f * (b[k] - a[k]);
  rgb_of(a, rgb);
}

double chi_nice_limit(double x) {
  static const double steps[] = {1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10};
  x = fabs(x);
  if (!(x > 0) || !isfinite(x)) return 1;
  double base = pow(10, floor(log10(x)));
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    if (x <= steps[i] * base * (1 + 1e-9)) return steps[i] * base;
  }
  return 10 * base;
}

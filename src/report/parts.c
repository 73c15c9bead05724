/* Parts that several kinds of figures share. */
#include <math.h>
#include <stdio.h>

#include "report/internal.h"

static const chii_font title_font = {18, true}, line_font = {12.5, false};

double chii_head_text(const chii_head *h, const chii_pen *p, double x, double y, double max_w, bool draw) {
  double at = y, height;
  chii_text t = {.s = h->title, .font = title_font, .color = chii_ink, .max_w = max_w, .wrap = true};
  if (h->title && h->title[0]) {
    chii_measure(p, &t, NULL, &height);
    if (draw) chii_draw(p, &t, x, at, 0, 0);
    at += height + 5;
  }
  t.font = line_font;
  t.color = chii_soft;
  for (size_t i = 0; i < h->n_lines; i++) {
    t.s = h->lines[i];
    chii_measure(p, &t, NULL, &height);
    if (draw) chii_draw(p, &t, x, at, 0, 0);
    at += height + 3;
  }
  return ceil(at - y);
}

double chii_step(double span, int most, bool integers) {
  static const double steps[] = {1, 2, 2.5, 5};
  if (!(span > 0) || !isfinite(span)) return 1;
  double base = pow(10, floor(log10(span / most)));
  if (integers && base < 1) base = 1;
  for (; isfinite(base); base *= 10) {
    for (int k = 0; k < 4; k++) {
      double step = steps[k] * base;
      if (integers && step != floor(step)) continue;
      if (span / step <= most * (1 + 1e-9)) return step;
    }
  }
  return span;
}

int chii_ticks(double out[CHII_MAX_TICKS], double lo, double hi, double step) {
  int n = 0;
  double first = ceil(lo / step - 1e-9);
  for (; n < CHII_MAX_TICKS && (first + n) * step <= hi + 1e-9 * step; n++) out[n] = (first + n) * step;
  return n;
}

void chii_tick_step(char out[32], double x, double step) {
  int decimals = 0;
  for (double s = step; decimals < 12 && fabs(s - round(s)) > 1e-6; s *= 10) decimals++;
  if (fabs(x) < step * 1e-6) x = decimals = 0;
  if (fabs(x) >= 1e6 || (step < 1e-4 && x != 0))
    chii_tick(out, x);
  else
    snprintf(out, 32, "%s%.*f", x < 0 ? "\xe2\x88\x92" : "", decimals, fabs(x));
}

void chii_describe(chi_str *out, const chii_head *h) {
  for (size_t i = 0; i < h->n_lines; i++) chi_str_addf(out, "%s\n", h->lines[i]);
}

/* Inside kernel/ only: rows of attention's way back, on CHI_LANES lanes. Products are rounded before they are added, in a
 * fixed order, so lanes change no bit. */
#ifndef CHI_BACK_ROWS_H
#define CHI_BACK_ROWS_H

#include "kernel/lanes.h"
#include "kernel/table.h"

static void row_dots4(float d[4][CHI_BACK_ROWS], const float *x, const float *const v[4], int64_t n) {
  enum { REG = CHI_BACK_ROWS / CHI_LANES };
  vf acc[4][REG];
  for (int u = 0; u < 4; u++)
    for (int i = 0; i < REG; i++) acc[u][i] = v_set(0.0f);
  for (int64_t c = 0; c < n; c++)
    for (int i = 0; i < REG; i++) {
      vf t = v_load(x + c * CHI_BACK_ROWS + i * CHI_LANES);
      for (int u = 0; u < 4; u++) acc[u][i] = v_add(acc[u][i], v_mul(t, v_set(v[u][c])));
    }
  for (int u = 0; u < 4; u++)
    for (int i = 0; i < REG; i++) v_store(d[u] + i * CHI_LANES, acc[u][i]);
}

static void row_mix4(float *y, const float *const x[4], const float s[4], int64_t n) {
  int64_t c = 0;
  for (; c + CHI_LANES <= n; c += CHI_LANES) {
    vf a = v_load(y + c);
    for (int u = 0; u < 4; u++) a = v_add(a, v_mul(v_set(s[u]), v_load(x[u] + c)));
    v_store(y + c, a);
  }
  for (; c < n; c++)
    for (int u = 0; u < 4; u++) y[c] += s[u] * x[u][c];
}

#endif

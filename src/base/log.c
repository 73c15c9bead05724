#include "base/base.h"

#include <stdio.h>

static chi_log_fn log_fn;
static void *log_ud;
static chi_progress_fn progress_fn;
static void *progress_ud;

void chi_set_log(chi_log_fn fn, void *ud) {
  log_fn = fn;
  log_ud = ud;
}

void chi_log(chi_log_level level, const char *fmt, ...) {
  if (!log_fn) return;
  char line[1024];
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  if (n < 0) return;
  for (char *p = line; *p; p++) { /* one call is one line, and files must not steer a terminal */
    if ((unsigned char)*p < 0x20 || *p == 0x7F) *p = '?';
  }
  log_fn(log_ud, level, line);
}

void chi_set_progress(chi_progress_fn fn, void *ud) {
  progress_fn = fn;
  progress_ud = ud;
}

int chi_progress(const char *what, int64_t done, int64_t total, chi_err *err) {
  if (!progress_fn || progress_fn(progress_ud, what, done, total) == 0) return 0;
  return chi_fail(err, CHI_ERR_CANCELLED, "cancelled while %s: %lld of %lld done", what, (long long)done,
                  (long long)total);
}

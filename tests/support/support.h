/* Helpers shared by tests. */
#ifndef CHI_TEST_SUPPORT_H
#define CHI_TEST_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "base/base.h"

/* Path of `name` in a scratch folder of this process, made at the first call and removed at exit. The returned text is one of
 * 64 static buffers. */
const char *tmp_path(const char *name);
/* Write a whole file. Fails the test if it cannot. */
void put_file(const char *path, const void *bytes, size_t n);
/* Number of entries in a folder, without . and .. */
int count_files(const char *dir);

/* A call failed with this code, and its message holds these words. */
#define assert_fails(call, want_code, words)                                \
  do {                                                                      \
    chi_err af_err = {0};                                                   \
    chi_err *err = &af_err;                                                 \
    int af_rc = (call);                                                     \
    check_failure(af_rc, err, want_code, words, #call, __FILE__, __LINE__); \
  } while (0)
void check_failure(int rc, const chi_err *err, int want_code, const char *words, const char *call, const char *file,
                   int line);

/* A call succeeded; prints the library's message otherwise. Uses a local `chi_err *err`. */
#define assert_works(call)                                 \
  do {                                                     \
    chi_err aw_err = {0};                                  \
    chi_err *err = &aw_err;                                \
    if ((call) != 0) fail_msg("%s: %s", #call, err->text); \
  } while (0)

#endif

/* base: errors, arenas, strings, random numbers, threads, log and progress. Knows no tensors.
 *
 * House rules that every folder follows:
 *   - A function that can fail returns 0 or a negative chi_code and takes `chi_err *err` last. err may be NULL.
 *   - The first failure wins: chi_fail never overwrites an error that is already set.
 *   - `T **out` = the caller owns and frees it; `const T *` = borrowed until its owner is freed.
 *   - Nothing in src/ prints, exits or reads the environment (chi_cpu_detect's forced ISA comes from the caller).
 */
#ifndef CHI_BASE_H
#define CHI_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- errors ---------------------------------------------------------------------------------------------- */
typedef enum chi_code {
  CHI_OK = 0,
  CHI_ERR_IO = -1,          /* the system said no: missing file, full disk, short read                        */
  CHI_ERR_FORMAT = -2,      /* a file is not what it says it is: truncated, overlapping, broken JSON, ...     */
  CHI_ERR_UNSUPPORTED = -3, /* well-formed, but asks for something that we do not do: names key and value     */
  CHI_ERR_ARG = -4,         /* the caller's request makes no sense for this model or input                    */
  CHI_ERR_MEMORY = -5,      /* allocation failed or a declared size passes a limit                            */
  CHI_ERR_CANCELLED = -6,   /* the progress callback asked to stop                                            */
} chi_code;

#define CHI_ERR_TEXT 512
typedef struct chi_err {
  int code;               /* 0 = not set */
  char text[CHI_ERR_TEXT]; /* one line: what, where, what to do; no final full stop needed */
} chi_err;

/* Record a failure and return `code`. Truncates; never allocates; control characters in arguments are replaced. */
int chi_fail(chi_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Put "prefix: " before an error's text (used once, where a file name becomes known). */
void chi_err_prefix(chi_err *err, const char *prefix);

/* Evaluate a call; on failure jump to out with rc set. Functions that use it declare `int rc = 0;` and `out:`. */
#define CHI_TRY(call)                                                                                                  \
  do {                                                                                                                 \
    rc = (call);                                                                                                       \
    if (rc != 0) goto out;                                                                                             \
  } while (0)

/* ---- memory ---------------------------------------------------------------------------------------------- */
/* Arena: everything allocated from it lives until chi_arena_free. 64-byte aligned, zeroed. Not thread-safe.
 * Freeing a zeroed arena is a no-op. */
typedef struct chi_arena {
  void *head;    /* newest block */
  size_t bytes;  /* total bytes handed out, for memory tests and reports */
} chi_arena;
void *chi_arena_alloc(chi_arena *a, size_t bytes, chi_err *err); /* NULL on failure */
char *chi_arena_strdup(chi_arena *a, const char *s, chi_err *err);
void chi_arena_free(chi_arena *a);
/* n*size checked for overflow; NULL + err on failure. n == 0 gives a valid pointer. */
void *chi_arena_array(chi_arena *a, size_t n, size_t size, chi_err *err);
/* Heap allocation with the same checks, zeroed, 64-byte aligned; freed by chi_free. */
void *chi_calloc(size_t n, size_t size, chi_err *err);
void chi_free(void *p);
/* Grow *p (from chi_grow or NULL) so that it holds at least need elements; *cap is updated. Contents are kept. */
int chi_grow(void **p, size_t *cap, size_t need, size_t size, chi_err *err);

/* ---- strings --------------------------------------------------------------------------------------------- */
/* Growable byte string, always NUL-terminated once non-empty. A failed append sets `failed` and later ones no-op,
 * so a writer checks once at the end. */
typedef struct chi_str {
  char *s;
  size_t len, cap;
  bool failed;
} chi_str;
void chi_str_add(chi_str *s, const char *text);
void chi_str_addn(chi_str *s, const char *bytes, size_t n);
void chi_str_addf(chi_str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void chi_str_free(chi_str *s);
bool chi_streq(const char *a, const char *b); /* NULL-safe */
/* Case-sensitive glob with '*' only, used by option and tensor-name matching. */
bool chi_glob(const char *pattern, const char *text);

/* ---- random numbers: counter-based (Philox4x32-10), so a number depends on its indices only -------------- */
/* Uniform 32 random bits for (seed, stream, row, col). */
uint32_t chi_rng_u32(uint64_t seed, uint32_t stream, uint32_t row, uint32_t col);
/* Standard normal by Box-Muller on two of the four words, with chi's own log/sin/cos (no libm). */
float chi_rng_normal(uint64_t seed, uint32_t stream, uint32_t row, uint32_t col);

/* ---- floating-point mode ------------------------------------------------------------------------------- */
/* Round to nearest, denormals zero (x86: MXCSR, ARM: FPCR), for arithmetic outside chi_parallel_for; what was set before. */
unsigned chi_fp_begin(void);
void chi_fp_end(unsigned saved);

/* ---- elementary functions with fixed bits (no libm: results are equal on every machine and ISA) ---------- */
/* double-precision versions used for tables (rope, rng, metrics); at most 2 ulp. */
double chi_exp64(double x);
double chi_log64(double x); /* x <= 0 gives -inf / NaN as libm does */
void chi_sincos64(double x, double *s, double *c); /* |x| up to 2^31 */
double chi_pow64(double base, double e);           /* base > 0 */

/* ---- hashing --------------------------------------------------------------------------------------------- */
typedef struct chi_sha256 { uint32_t h[8]; uint64_t n; uint8_t buf[64]; } chi_sha256;
void chi_sha256_init(chi_sha256 *s);
void chi_sha256_add(chi_sha256 *s, const void *p, size_t n);
void chi_sha256_hex(chi_sha256 *s, char out[65]); /* finishes; lower-case hex */
/* FNV-1a 64 over bytes: quick fingerprints of results in tests, not for files. */
uint64_t chi_fnv64(const void *p, size_t n, uint64_t h /* 0 = start */);

/* ---- threads --------------------------------------------------------------------------------------------- */
/* The one parallel_for. Calls fn(ud, i) for i in [0, n), each exactly once, on a process-wide pool; returns when all
 * are done. Which thread runs which i is not fixed, so fn must write only what i owns. MXCSR (flush to zero,
 * denormals are zero, round to nearest) is set in every worker and in the caller for the duration. Nested calls run
 * serially. */
typedef void (*chi_task_fn)(void *ud, int64_t i);
void chi_parallel_for(int64_t n, chi_task_fn fn, void *ud);
int chi_threads(void);              /* current width */
void chi_set_threads(int n);        /* 0 = number of cores available to the process */
int chi_thread_index(void);         /* 0 = caller, 1.. = workers: for per-thread scratch */

/* ---- log and progress: the library never prints; it calls these ------------------------------------------ */
typedef enum chi_log_level { CHI_LOG_INFO, CHI_LOG_WARN } chi_log_level;
typedef void (*chi_log_fn)(void *ud, chi_log_level level, const char *line);
void chi_set_log(chi_log_fn fn, void *ud);
void chi_log(chi_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* done of total units of `what`; return non-zero to cancel (work ends with CHI_ERR_CANCELLED). */
typedef int (*chi_progress_fn)(void *ud, const char *what, int64_t done, int64_t total);
void chi_set_progress(chi_progress_fn fn, void *ud);
int chi_progress(const char *what, int64_t done, int64_t total, chi_err *err); /* 0 or CHI_ERR_CANCELLED */

#endif

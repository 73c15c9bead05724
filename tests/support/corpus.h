/* The tokenizer corpus (tools/ref/tokenizer_corpus.py) and comparison with its checksums. */
#ifndef CHI_TEST_CORPUS_H
#define CHI_TEST_CORPUS_H

#include "text/text.h"

#define CORPUS_DIR "tests/fixtures/tokenizer/"

/* Group set-up and tear-down for cmocka. */
int corpus_open(void **state);
int corpus_close(void **state);
uint32_t corpus_crc32(const void *p, size_t n);
/* A line against its checksum (4 bytes at want); 1 if it differs, which is printed while `shown` < 5. */
int corpus_check_line(const chi_tokenizer *t, size_t line, const char *want, const char *name, int shown);
/* All lines against a .bin file; fails the test if one differs. */
void corpus_check(const chi_tokenizer *t, const char *bin, const char *name);

#endif

/* The floating-point mode of all arithmetic: round to nearest, denormals are zero (docs/arithmetic.md). */
#include "base/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

unsigned chi_fp_begin(void) {
  unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0); /* all exceptions masked, round to nearest, FTZ, DAZ */
  return saved;
}
void chi_fp_end(unsigned saved) { _mm_setcsr(saved); }

#elif defined(__aarch64__)
unsigned chi_fp_begin(void) {
  unsigned long saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
  __asm__ volatile("msr fpcr, %0" : : "r"(1ul << 24)); /* FZ covers inputs and results */
  return (unsigned)saved;
}
void chi_fp_end(unsigned saved) { __asm__ volatile("msr fpcr, %0" : : "r"((unsigned long)saved)); }

#else
unsigned chi_fp_begin(void) { return 0; }
void chi_fp_end(unsigned saved) { (void)saved; }
#endif

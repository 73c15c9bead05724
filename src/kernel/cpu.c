/* Which instruction set: CPUID says what the CPU has, XCR0 what the system saves on a context switch. */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernel/table.h"

static const char *const isa_names[CHI_ISA_COUNT] = {"portable", "avx2", "avx512", "avx512-bf16", "amx"};

const chi_kernel_table *chi_kernels = &chi_kernels_portable;
static chi_isa current = CHI_ISA_PORTABLE;

#if defined(__x86_64__)
static uint64_t xcr0(void) {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return ((uint64_t)hi << 32) | lo;
}

/* Linux gives the 8 KB of tile state only to a process that asks; its threads inherit the permission. */
static bool may_use_tiles(void) {
#if defined(__linux__)
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

static bool cpu_has(chi_isa isa) {
  unsigned a, b, c, d;
  if (isa == CHI_ISA_PORTABLE) return true;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const unsigned need_c = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if ((c & need_c) != need_c) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  uint64_t os = xcr0();
  if ((os & 0x6) != 0x6 || !(b & bit_AVX2)) return false;
  if (isa == CHI_ISA_AVX2) return true;
  const unsigned need_b = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  if ((os & 0xe6) != 0xe6 || (b & need_b) != need_b) return false;
  if (isa == CHI_ISA_AVX512) return true;
  const bool tiles_d = (d & 1u << 24) != 0 && (d & 1u << 22) != 0; /* AMX-TILE, AMX-BF16 */
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  if (isa == CHI_ISA_AVX512_BF16) return (a & bit_AVX512BF16) != 0;
  return tiles_d && (os & 0x60000) == 0x60000 && may_use_tiles();
}

static const chi_kernel_table *table_of(chi_isa isa) {
  switch (isa) {
    case CHI_ISA_AVX2:
      return &chi_kernels_avx2;
    case CHI_ISA_AVX512:
      return &chi_kernels_avx512;
    case CHI_ISA_AVX512_BF16:
      return &chi_kernels_avx512_bf16;
    case CHI_ISA_AMX:
      return &chi_kernels_amx;
    default:
      return &chi_kernels_portable;
  }
}

#else
static bool cpu_has(chi_isa isa) { return isa == CHI_ISA_PORTABLE; }
static const chi_kernel_table *table_of(chi_isa isa) {
  (void)isa;
  return &chi_kernels_portable;
}
#endif

const char *chi_isa_name(chi_isa isa) { return (unsigned)isa < CHI_ISA_COUNT ? isa_names[isa] : "?"; }

bool chi_isa_available(chi_isa isa) { return (unsigned)isa < CHI_ISA_COUNT && cpu_has(isa); }

chi_isa chi_cpu_isa(void) { return current; }

int chi_cpu_init(const char *forced, chi_err *err) {
  if (forced == NULL) {
    current = CHI_ISA_PORTABLE;
    for (int i = 0; i < CHI_ISA_COUNT; i++)
      if (cpu_has((chi_isa)i)) current = (chi_isa)i;
    chi_kernels = table_of(current);
    return 0;
  }
  for (int i = 0; i < CHI_ISA_COUNT; i++) {
    if (!chi_streq(forced, isa_names[i])) continue;
    if (!cpu_has((chi_isa)i))
      return chi_fail(err, CHI_ERR_UNSUPPORTED, "instruction set %s: not available here; use %s or leave it unset",
                      forced, isa_names[current]);
    current = (chi_isa)i;
    chi_kernels = table_of(current);
    return 0;
  }
  return chi_fail(err, CHI_ERR_ARG, "instruction set '%s': unknown; use portable, avx2, avx512, avx512-bf16 or amx",
                  forced);
}

/* Kernels work before anyone calls chi_cpu_init, and then already with the best row. */
__attribute__((constructor)) static void choose_best(void) { (void)chi_cpu_init(NULL, NULL); }

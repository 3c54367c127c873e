// What the kernels that are written per instruction set share.
#ifndef TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_
#define TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_

#include <cstdint>

#include "hwy/base.h"

// GCC 12 takes what its own AVX-512 intrinsics leave undefined on purpose for a mistake.
#if HWY_COMPILER_GCC && !HWY_COMPILER_CLANG
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Before a loop over registers: without it they may end up in memory.
#if HWY_COMPILER_CLANG
#define TANDEM_UNROLL HWY_PRAGMA(clang loop unroll(full))
#else
#define TANDEM_UNROLL HWY_PRAGMA(GCC unroll 16)
#endif

namespace tandem::kernels::cpu {

// How far ahead of what is multiplied memory is asked for, and in products of how many rows.
inline constexpr int64_t kPrefetchAhead = 16384;
inline constexpr int64_t kPrefetchRows = 4;

// What the kernels over 512 bits take for granted.
inline bool HasAvx512() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

// Into the second-level cache. Where it is written: a compiler gathers its own prefetches, which
// then wait for each other.
HWY_INLINE void PrefetchLine(const void* line) {
  asm volatile("prefetcht1 (%0)" : : "r"(line) : "memory");
}

// Into the first-level cache.
HWY_INLINE void PrefetchNear(const void* line) {
  asm volatile("prefetcht0 (%0)" : : "r"(line) : "memory");
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_

// What the kernels that are written per instruction set share.
#ifndef TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_
#define TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_

#include <cstdint>

#include "hwy/base.h"
#include "kernels/cpu/prefetch.h"

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

// What the kernels over 512 bits take for granted.
inline bool HasAvx512() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_VECTOR_KERNELS_H_

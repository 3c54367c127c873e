// Memory that is asked for before it is read.
#ifndef TANDEM_KERNELS_CPU_PREFETCH_H_
#define TANDEM_KERNELS_CPU_PREFETCH_H_

#include <cstdint>

#include "hwy/base.h"

namespace tandem::kernels::cpu {

// How far ahead of what is multiplied memory is asked for, and in products of how many rows.
inline constexpr int64_t kPrefetchAhead = 16384;
inline constexpr int64_t kPrefetchRows = 4;

// What is asked for while block b of a panel is multiplied: the block that is `kPrefetchAhead`
// bytes further on and, towards the end, what lies as far beyond the beginning of `next`, which is
// read after the panel. Null for `next`: the block itself, which costs no memory's time.
template <typename Byte>
const Byte* AskedAhead(const Byte* panel, int64_t blocks, int64_t block_bytes, int64_t b,
                       const Byte* next) {
  const int64_t ahead = b + kPrefetchAhead / block_bytes;
  if (ahead < blocks) return panel + ahead * block_bytes;
  return next == nullptr ? panel + b * block_bytes : next + (ahead - blocks) * block_bytes;
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

#endif  // TANDEM_KERNELS_CPU_PREFETCH_H_

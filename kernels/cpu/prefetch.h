// Memory that is asked for before it is read.
#ifndef TANDEM_KERNELS_CPU_PREFETCH_H_
#define TANDEM_KERNELS_CPU_PREFETCH_H_

#include <cstdint>

#include "hwy/base.h"

namespace tandem::kernels::cpu {

// How the weights are asked for that a product reads next.
struct AskingAhead {
  int64_t bytes;  // how far ahead of what is multiplied
  bool nearest;   // into the first-level cache, else into the second
};

// `one_stream`: weights are read line after line, and memory is what takes time. Zen 4 foresees
// that, and reads up to a half more if nothing is asked for but what is read just now
// (docs/performance.md); AMD's others, which are not measured, are taken to be alike.
inline AskingAhead HowToAskAhead(bool one_stream) {
  if (one_stream && __builtin_cpu_is("amd")) return {0, true};
  return {16384, false};
}

// What is asked for while block b of a panel is multiplied: the block that lies `bytes` further on
// and, towards the end, what lies as far beyond the beginning of `next`, which is read after the
// panel. Null for `next`: the block itself, which costs no memory's time.
template <typename Byte>
const Byte* AskedAhead(const Byte* panel, int64_t blocks, int64_t block_bytes, int64_t b,
                       const Byte* next, int64_t bytes) {
  const int64_t ahead = b + (bytes + block_bytes - 1) / block_bytes;
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

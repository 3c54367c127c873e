#include "common/huge_memory.h"

#include <sys/mman.h>

#include "common/machine.h"

namespace tandem {

std::shared_ptr<std::byte> NewHugeMemory(int64_t bytes) {
  const auto count = static_cast<size_t>(bytes);
  const size_t size = (count / kHugePageBytes + 2) * kHugePageBytes;
  void* const mapped =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const size_t to_boundary =
      (kHugePageBytes - reinterpret_cast<uintptr_t>(mapped) % kHugePageBytes) % kHugePageBytes;
  // The last one only where it is filled by a quarter: an expert's would hold 2 MiB for 0.3. Advice
  // only.
  const size_t pages = (count + kHugePageBytes - kHugePageBytes / 4) / kHugePageBytes;
  madvise(static_cast<std::byte*>(mapped) + to_boundary, pages * kHugePageBytes, MADV_HUGEPAGE);
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(mapped) + to_boundary,
                                    [mapped, size](std::byte*) { munmap(mapped, size); });
}

}  // namespace tandem

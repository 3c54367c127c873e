#include "kernels/cuda/pinned_memory.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kernels/cuda/runtime.h"

namespace tandem::kernels::cuda {

absl::StatusOr<std::unique_ptr<PinnedMemory>> PinnedMemory::Allocate() {
  std::byte* const memory = AllocatePinnedMemory(kBytes);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("The system does not have ", kBytes, " bytes of pinned memory"));
  }
  return std::unique_ptr<PinnedMemory>(new PinnedMemory(memory));
}

PinnedMemory::~PinnedMemory() { FreePinnedMemory(memory_, kBytes); }

std::byte* PinnedMemory::Take(size_t bytes) {
  TANDEM_CHECK(bytes <= kMostBytes);
  MutexLock lock(mutex_);
  std::optional<size_t> offset;
  given_back_.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    offset = arena_.Take(bytes);
    return offset.has_value();
  });
  return memory_ + *offset;
}

void PinnedMemory::GiveBack(std::byte* part, size_t bytes) {
  MutexLock lock(mutex_);
  arena_.GiveBack(static_cast<size_t>(part - memory_), bytes);
  given_back_.NotifyAll();
}

}  // namespace tandem::kernels::cuda

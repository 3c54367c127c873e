// Host memory that the device copies to at full speed, between it and whoever reads.
#ifndef TANDEM_KERNELS_CUDA_PINNED_MEMORY_H_
#define TANDEM_KERNELS_CUDA_PINNED_MEMORY_H_

#include <cstddef>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "kernels/cuda/arena.h"

namespace tandem::kernels::cuda {

// Any number of threads may call it. Parts are given back by work that a stream comes to, so a wait
// for one ends.
class PinnedMemory {
 public:
  static constexpr size_t kMostBytes = 8 << 20;  // of a part; there is room for several

  // RESOURCE_EXHAUSTED  the host does not have it
  static absl::StatusOr<std::unique_ptr<PinnedMemory>> Allocate();
  ~PinnedMemory();

  // A part of at most kMostBytes; waits for one. Requires that the caller holds none that it has
  // not left to a stream.
  std::byte* Take(size_t bytes);
  void GiveBack(std::byte* part, size_t bytes);

 private:
  static constexpr size_t kBytes = 4 * kMostBytes;

  explicit PinnedMemory(std::byte* memory) : memory_(memory) {}

  std::byte* const memory_;
  Mutex mutex_;
  CondVar given_back_;
  Arena arena_ ABSL_GUARDED_BY(mutex_) = Arena(kBytes);
};

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_PINNED_MEMORY_H_

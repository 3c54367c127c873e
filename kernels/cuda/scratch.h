// Parts of a scratch memory, one after the other. With memory at nullptr it only counts.
#ifndef TANDEM_KERNELS_CUDA_SCRATCH_H_
#define TANDEM_KERNELS_CUDA_SCRATCH_H_

#include <cstddef>
#include <cstdint>

namespace tandem::kernels::cuda {

class ScratchParts {
 public:
  static constexpr size_t kAlignment = 256;  // of each part, and of the memory

  explicit ScratchParts(std::byte* memory) : memory_(memory) {}

  template <typename T = std::byte>
  T* Take(int64_t count) {
    std::byte* const part = memory_ + bytes_;
    const size_t part_bytes = static_cast<size_t>(count) * sizeof(T);
    bytes_ += (part_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(part);
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* const memory_;
  size_t bytes_ = 0;
};

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_SCRATCH_H_

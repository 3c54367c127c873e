// Memory that a thread keeps between its calls.
#ifndef TANDEM_KERNELS_CPU_SCRATCH_H_
#define TANDEM_KERNELS_CPU_SCRATCH_H_

#include <cstdint>
#include <vector>

namespace tandem::kernels::cpu {

// Room for `size` values. It grows, and stays until destruction.
template <typename T>
T* Grown(std::vector<T>& memory, int64_t size) {
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_SCRATCH_H_

// Who has which part of one block of device memory. Bookkeeping alone: it never touches the memory.
#ifndef TANDEM_KERNELS_CUDA_ARENA_H_
#define TANDEM_KERNELS_CUDA_ARENA_H_

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace tandem::kernels::cuda {

// Belongs to one thread at a time. Cost: O(log of the number of free parts) per call.
class Arena {
 public:
  static constexpr size_t kAlignment = 256;  // of every part

  // Of `bytes` bytes, from offset 0.
  explicit Arena(size_t bytes);

  size_t bytes() const { return bytes_; }
  // What is not taken, in however many parts.
  size_t free_bytes() const { return free_bytes_; }
  // The largest part that Take would give.
  size_t largest_bytes() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }

  // The offset of a part of at least `bytes`, of the smallest free part that has as much; nothing
  // if none has. A part of no bytes takes one alignment.
  std::optional<size_t> Take(size_t bytes);
  // Gives back what Take gave for `bytes` at `offset`.
  void GiveBack(size_t offset, size_t bytes);

 private:
  static size_t Rounded(size_t bytes);
  void AddFree(size_t offset, size_t bytes);
  void RemoveFree(std::map<size_t, size_t>::iterator part);

  const size_t bytes_;
  size_t free_bytes_ = 0;
  std::map<size_t, size_t> by_offset_;           // of free parts: offset, bytes; no two adjoin
  std::set<std::pair<size_t, size_t>> by_size_;  // the same: bytes, offset
};

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ARENA_H_

#include "common/transport/host_rows.h"

#include <algorithm>
#include <utility>

namespace tandem {

OwnedTensor HostRowsPool::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  TensorView view(nullptr, dtype, dims);
  Block block;
  {
    MutexLock lock(free_->mutex);
    const auto fits = [&](const Block& b) { return b.bytes >= view.bytes(); };
    const auto it = std::find_if(free_->blocks.begin(), free_->blocks.end(), fits);
    if (it != free_->blocks.end()) {
      block = std::move(*it);
      free_->blocks.erase(it);
    } else if (free_->blocks.size() == kMaxFree) {
      free_->blocks.erase(free_->blocks.begin());  // all are too small: make way for a larger one
    }
  }
  if (block.memory == nullptr)
    block = {std::unique_ptr<std::byte[]>(new std::byte[view.bytes()]), view.bytes()};
  view.data = block.memory.get();
  // The deleter of a shared_ptr must be copyable.
  auto shared = std::make_shared<Block>(std::move(block));
  std::byte* const memory = shared->memory.get();
  return {view, std::shared_ptr<const void>(memory, [free = free_, shared](const void*) {
            MutexLock lock(free->mutex);
            if (free->blocks.size() < kMaxFree) free->blocks.push_back(std::move(*shared));
          })};
}

}  // namespace tandem

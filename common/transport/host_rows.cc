#include "common/transport/host_rows.h"

#include <algorithm>
#include <utility>

namespace tandem {

OwnedTensor HostRowsPool::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  TensorView view(nullptr, dtype, dims);
  Block block;
  {
    MutexLock lock(free_->mutex);
    std::vector<Block>& blocks = free_->blocks;  // smallest first
    const auto it = std::find_if(blocks.begin(), blocks.end(),
                                 [&](const Block& b) { return b.bytes >= view.bytes(); });
    if (it != blocks.end()) {
      block = std::move(*it);
      blocks.erase(it);
    } else if (blocks.size() == kMaxFree) {
      blocks.erase(blocks.begin());  // all are too small: make way for a larger one
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
            if (free->blocks.size() == kMaxFree) return;
            const auto behind =
                std::find_if(free->blocks.begin(), free->blocks.end(),
                             [&](const Block& b) { return b.bytes >= shared->bytes; });
            free->blocks.insert(behind, std::move(*shared));
          })};
}

}  // namespace tandem

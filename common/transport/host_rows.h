// Host memory for rows on their way to and from peers, used again once nobody holds it.
#ifndef TANDEM_COMMON_TRANSPORT_HOST_ROWS_H_
#define TANDEM_COMMON_TRANSPORT_HOST_ROWS_H_

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <vector>

#include "common/mutex.h"
#include "common/tensor.h"

namespace tandem {

// Thread-safe. Tensors may outlive the pool.
class HostRowsPool {
 public:
  HostRowsPool() : free_(std::make_shared<Free>()) {}

  // A tensor with any contents. Its memory comes back when its last owner is gone.
  OwnedTensor Take(Dtype dtype, std::initializer_list<int64_t> dims);

 private:
  static constexpr size_t kMaxFree = 4;
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t bytes = 0;
  };
  struct Free {
    Mutex mutex;
    std::vector<Block> blocks ABSL_GUARDED_BY(mutex);  // at most kMaxFree, smallest first
  };

  const std::shared_ptr<Free> free_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_HOST_ROWS_H_

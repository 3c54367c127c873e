// The latent cache: what attention remembers of every token, in pages of kPageTokens tokens. A page
// holds its tokens' rows of all layers; a sequence's page table is the list of its pages, in order.
#ifndef TANDEM_ATTENTION_WORKER_LATENT_CACHE_H_
#define TANDEM_ATTENTION_WORKER_LATENT_CACHE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "attention_worker/page_pool.h"
#include "common/pages.h"
#include "kernels/backend.h"

namespace tandem {

// The pages' memory, allocated at once, layer by layer. Belongs to one thread.
class LatentCache {
 public:
  // `row_width`: values per token and layer (ModelConfig::cache_row_width). The memory is
  // `backend`'s, which must outlive the cache.
  //   RESOURCE_EXHAUSTED  the device has not as much memory
  static absl::StatusOr<std::unique_ptr<LatentCache>> Create(kernels::Backend* backend,
                                                             int num_layers, int total_pages,
                                                             int row_width, Dtype dtype);

  // [total_pages, kPageTokens, row_width]
  const kernels::DeviceTensor& layer(int layer) const { return layers_[layer]; }
  PagePool& pool() { return pool_; }

 private:
  explicit LatentCache(int total_pages) : pool_(total_pages) {}

  PagePool pool_;
  std::vector<std::unique_ptr<kernels::Buffer>> buffers_;
  std::vector<kernels::DeviceTensor> layers_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LATENT_CACHE_H_

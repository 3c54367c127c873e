#include "attention_worker/latent_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<LatentCache>> LatentCache::Create(kernels::Backend* backend,
                                                                 int num_layers, int total_pages,
                                                                 int row_width, Dtype dtype) {
  auto cache = std::unique_ptr<LatentCache>(new LatentCache(total_pages));
  for (int layer = 0; layer < num_layers; ++layer) {
    const size_t bytes = TensorLayout(dtype, {total_pages, kPageTokens, row_width}).bytes();
    auto buffer = backend->Allocate(bytes);
    if (!buffer.ok()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the latent cache of ", total_pages, " pages needs ", bytes * num_layers,
                       " bytes, which the device does not have: ", buffer.status().message()));
    }
    cache->layers_.push_back((*buffer)->Tensor(dtype, {total_pages, kPageTokens, row_width}));
    cache->buffers_.push_back(*std::move(buffer));
  }
  return cache;
}

}  // namespace tandem

// The latent cache: what attention remembers of every token, in pages of kPageTokens tokens. A page
// holds its tokens' rows of all layers; a sequence's page table is the list of its pages, in order.
#ifndef TANDEM_ATTENTION_WORKER_LATENT_CACHE_H_
#define TANDEM_ATTENTION_WORKER_LATENT_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/pages.h"
#include "kernels/backend.h"

namespace tandem {

class PagePool;

// Pages that give themselves back to their pool. Movable. Must not outlive the pool.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept { *this = std::move(other); }
  PageLease& operator=(PageLease&& other) noexcept;
  ~PageLease() { GiveBack(); }

  // In the order in which they were taken: the page table of the sequence that holds the lease.
  // Stays where it is until the lease is extended or ends.
  absl::Span<const int32_t> page_ids() const { return page_ids_; }
  int num_pages() const { return static_cast<int>(page_ids_.size()); }

  // Takes over the pages of `more`, behind its own. Both are of the same pool, or empty.
  void Extend(PageLease more);
  // Leaves the lease empty.
  void GiveBack();

 private:
  friend class PagePool;
  PagePool* pool_ = nullptr;
  std::vector<int32_t> page_ids_;
};

// Who has which page. Belongs to one thread.
class PagePool {
 public:
  explicit PagePool(int total_pages);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // All of `num_pages`, or nothing if fewer are free.
  std::optional<PageLease> TryReserve(int num_pages);

  int total_pages() const { return static_cast<int>(taken_.size()); }
  int free_pages() const { return static_cast<int>(free_.size()); }

 private:
  friend class PageLease;
  void TakeBack(absl::Span<const int32_t> page_ids);

  std::vector<int32_t> free_;   // the last one is given out next
  std::vector<uint8_t> taken_;  // [total_pages]
};

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

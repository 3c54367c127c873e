#include "attention_worker/latent_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace tandem {

PageLease& PageLease::operator=(PageLease&& other) noexcept {
  if (this == &other) return *this;
  GiveBack();
  pool_ = std::exchange(other.pool_, nullptr);
  page_ids_ = std::exchange(other.page_ids_, {});
  return *this;
}

void PageLease::Extend(PageLease more) {
  if (more.pool_ == nullptr) return;
  TANDEM_CHECK(pool_ == nullptr || pool_ == more.pool_);
  pool_ = std::exchange(more.pool_, nullptr);
  page_ids_.insert(page_ids_.end(), more.page_ids_.begin(), more.page_ids_.end());
  more.page_ids_.clear();
}

void PageLease::GiveBack() {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->TakeBack(page_ids_);
  page_ids_.clear();
}

PagePool::PagePool(int total_pages) {
  TANDEM_CHECK(total_pages >= 0);
  taken_.resize(total_pages, 0);
  for (int id = total_pages - 1; id >= 0; --id) free_.push_back(id);
}

PagePool::~PagePool() { TANDEM_CHECK(free_pages() == total_pages()); }

std::optional<PageLease> PagePool::TryReserve(int num_pages) {
  TANDEM_CHECK(num_pages >= 0);
  if (num_pages > free_pages()) return std::nullopt;
  PageLease lease;
  lease.pool_ = this;
  lease.page_ids_.assign(free_.rbegin(), free_.rbegin() + num_pages);
  free_.resize(free_.size() - num_pages);
  for (int32_t id : lease.page_ids_) taken_[id] = 1;
  return lease;
}

void PagePool::TakeBack(absl::Span<const int32_t> page_ids) {
  for (auto id = page_ids.rbegin(); id != page_ids.rend(); ++id) {
    TANDEM_CHECK(taken_[*id]);
    taken_[*id] = 0;
    free_.push_back(*id);
  }
}

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

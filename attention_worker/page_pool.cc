#include "attention_worker/page_pool.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
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

void PageLease::SetFull(int first, int end) {
  for (int i = first; i < end; ++i) pool_->pages_[page_ids_[i]].full = true;
}

void PageLease::GiveBack() {
  if (pool_ == nullptr) return;
  PagePool* const pool = std::exchange(pool_, nullptr);
  for (const int32_t id : page_ids_) pool->LetGo(id);
  page_ids_.clear();
}

PagePool::PagePool(int total_pages) {
  TANDEM_CHECK(total_pages >= 0);
  pages_.resize(total_pages);
  for (int id = total_pages - 1; id >= 0; --id) unused_.push_back(id);
}

PagePool::~PagePool() { TANDEM_CHECK(static_cast<int>(unused_.size()) == total_pages()); }

int32_t PagePool::Lend(SessionPages* session, int32_t number) {
  int32_t id = -1;
  if (!unused_.empty()) {
    id = unused_.back();
    unused_.pop_back();
  } else {
    const auto kept = std::find_if(pages_.begin(), pages_.end(), [session](const Page& page) {
      return page.holders == 0 && page.session != session;
    });
    TANDEM_CHECK(kept != pages_.end());
    kept->session->page_ids_[kept->number] = -1;
    id = static_cast<int32_t>(kept - pages_.begin());
  }
  pages_[id] = {.session = session, .number = number};
  return id;
}

SessionPages::SessionPages(PagePool* pool) : pool_(*pool), page_ids_(pool->total_pages(), -1) {}

SessionPages::~SessionPages() {
  for (const int32_t id : page_ids_) {
    if (id < 0) continue;
    TANDEM_CHECK(pool_.pages_[id].holders == 0);
    pool_.pages_[id] = {};
    pool_.unused_.push_back(id);
  }
}

absl::Status SessionPages::CheckNumber(int32_t number) const {
  if (number >= 0 && number < pool_.total_pages()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("page ", number, " is not one of 0 to ", pool_.total_pages() - 1));
}

absl::Status SessionPages::CheckTake(absl::Span<const int32_t> numbers) const {
  absl::flat_hash_set<int32_t> taken;
  int without_memory = 0;
  for (const int32_t number : numbers) {
    if (absl::Status status = CheckNumber(number); !status.ok()) return status;
    if (!taken.insert(number).second) {
      return absl::InvalidArgumentError(absl::StrCat("page ", number, " is taken twice"));
    }
    const int32_t id = page_ids_[number];
    without_memory += id < 0 ? 1 : 0;
    if (id < 0 || pool_.pages_[id].holders == 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("page ", number, " is held by a sequence already"));
  }
  if (without_memory <= static_cast<int>(pool_.unused_.size())) return absl::OkStatus();
  const auto available = std::count_if(
      pool_.pages_.begin(), pool_.pages_.end(),
      [this](const PagePool::Page& page) { return page.holders == 0 && page.session != this; });
  if (without_memory <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(without_memory, " more pages are needed, ", available,
                   " are free: sequences of other sessions hold the rest"));
}

PageLease SessionPages::Take(absl::Span<const int32_t> numbers) {
  PageLease lease;
  lease.pool_ = &pool_;
  for (const int32_t number : numbers) {
    int32_t& id = page_ids_[number];
    if (id < 0) id = pool_.Lend(this, number);
    TANDEM_CHECK(pool_.pages_[id].holders == 0);
    pool_.pages_[id].full = false;
    pool_.Hold(id);
    lease.page_ids_.push_back(id);
  }
  return lease;
}

absl::Status SessionPages::CheckShare(absl::Span<const int32_t> numbers) const {
  for (const int32_t number : numbers) {
    if (absl::Status status = CheckNumber(number); !status.ok()) return status;
    if (page_ids_[number] >= 0 && pool_.pages_[page_ids_[number]].full) continue;
    return absl::FailedPreconditionError(absl::StrCat("page ", number, " is not full"));
  }
  return absl::OkStatus();
}

PageLease SessionPages::Share(absl::Span<const int32_t> numbers) {
  PageLease lease;
  lease.pool_ = &pool_;
  for (const int32_t number : numbers) {
    const int32_t id = page_ids_[number];
    TANDEM_CHECK(pool_.pages_[id].full);
    pool_.Hold(id);
    lease.page_ids_.push_back(id);
  }
  return lease;
}

}  // namespace tandem

// Which page of the latent cache's memory is whose. A gateway numbers the pages of its session and
// says which one each position goes to (common/transport/attention_link.h); here numbers get
// memory, and sequences hold it.
#ifndef TANDEM_ATTENTION_WORKER_PAGE_POOL_H_
#define TANDEM_ATTENTION_WORKER_PAGE_POOL_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace tandem {

class PagePool;
class SessionPages;

// Pages that a sequence holds; they are let go of by themselves. Movable. Must not outlive the
// pool.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept { *this = std::move(other); }
  PageLease& operator=(PageLease&& other) noexcept;
  ~PageLease() { GiveBack(); }

  // Where in the cache's memory the pages lie, in the order in which they were taken: the page
  // table of the sequence that holds the lease. Stays where it is until the lease is extended or
  // ends.
  absl::Span<const int32_t> page_ids() const { return page_ids_; }
  int num_pages() const { return static_cast<int>(page_ids_.size()); }

  // Takes over the pages of `more`, behind its own. Both are of the same pool, or empty.
  void Extend(PageLease more);
  // The pages [first, end) of the lease have all their rows, of all layers: others may share them.
  void SetFull(int first, int end);
  // Leaves the lease empty.
  void GiveBack();

 private:
  friend class SessionPages;
  PagePool* pool_ = nullptr;
  std::vector<int32_t> page_ids_;
};

// The memory of all pages. A page whose number no sequence holds keeps what is in it for its
// session, which may share it later, but is given to another session that needs it. Belongs to one
// thread.
class PagePool {
 public:
  explicit PagePool(int total_pages);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int total_pages() const { return static_cast<int>(pages_.size()); }
  // That no sequence holds.
  int free_pages() const { return total_pages() - num_held_; }

 private:
  friend class PageLease;
  friend class SessionPages;
  struct Page {
    SessionPages* session = nullptr;  // null: nothing is kept in it
    int32_t number = 0;               // of the session's
    int32_t holders = 0;
    bool full = false;
  };

  void Hold(int32_t page_id) { num_held_ += pages_[page_id].holders++ == 0 ? 1 : 0; }
  void LetGo(int32_t page_id) { num_held_ -= --pages_[page_id].holders == 0 ? 1 : 0; }
  // A page for `session` that nobody holds, with its number; requires that there is one.
  int32_t Lend(SessionPages* session, int32_t number);

  std::vector<Page> pages_;
  std::vector<int32_t> unused_;  // without a session; the last one is lent next
  int num_held_ = 0;
};

// The pages of one session by number, 0 to total_pages - 1. Belongs to the pool's thread.
class SessionPages {
 public:
  // `pool` must outlive it.
  explicit SessionPages(PagePool* pool);
  // Requires that no sequence of the session holds a page.
  ~SessionPages();
  SessionPages(const SessionPages&) = delete;
  SessionPages& operator=(const SessionPages&) = delete;

  // Whether Take may be called for all of `numbers` at once:
  //   INVALID_ARGUMENT     a number that is none, or twice the same
  //   FAILED_PRECONDITION  a sequence holds one of them
  //   RESOURCE_EXHAUSTED   sequences of other sessions hold the memory
  absl::Status CheckTake(absl::Span<const int32_t> numbers) const;
  // Pages to be written anew.
  PageLease Take(absl::Span<const int32_t> numbers);

  // Whether Share may be called for `numbers`:
  //   INVALID_ARGUMENT     a number that is none
  //   FAILED_PRECONDITION  one of them is not full
  absl::Status CheckShare(absl::Span<const int32_t> numbers) const;
  // Pages that are there already, to be read.
  PageLease Share(absl::Span<const int32_t> numbers);

 private:
  friend class PagePool;
  absl::Status CheckNumber(int32_t number) const;

  PagePool& pool_;
  std::vector<int32_t> page_ids_;  // by number; -1: without memory
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_PAGE_POOL_H_

// The pages of one attention worker's latent cache, as the scheduler deals them out: which are
// free, which are held by how many sequences, and which still hold what a later sequence could use.
#ifndef TANDEM_GATEWAY_PAGE_BOOK_H_
#define TANDEM_GATEWAY_PAGE_BOOK_H_

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace tandem {

// What a full page holds: SHA-256 over its tokens, the forms in which they are computed, and the
// name of the page before it. Pages of one name hold the same bits, on every worker of a
// deployment.
using PageName = std::array<uint8_t, 32>;

// `before`: the name of the page before it; none for a sequence's first. `tokens`: its kPageTokens.
// `expanded_rows`: how many of them, from its first on, are in the expanded form.
PageName NameOfPage(const std::optional<PageName>& before, absl::Span<const int32_t> tokens,
                    int expanded_rows);

// A page is free, or held by one sequence or more, or cached: held by none, but with a name under
// which it can be had again. Free and cached pages are available. The page that has been cached for
// longest is the first to be evicted; of a sequence's pages, which all come back at once, the last
// one, so that no page outlasts the one before it, without which it is of no use.
//
// Calls cost O(1) per page. Not thread-safe.
class PageBook {
 public:
  explicit PageBook(int total_pages);

  int num_available() const { return total_pages() - num_held_; }
  int num_cached() const { return static_cast<int>(oldest_first_.size()); }
  int num_held() const { return num_held_; }
  int total_pages() const { return static_cast<int>(pages_.size()); }
  int64_t num_evicted() const { return num_evicted_; }  // so far

  // How many of these names, from the first one on, are here.
  int CountLeading(absl::Span<const PageName> names) const;
  // How many of the pages of these names, which must be here, are available now.
  int CountAvailable(absl::Span<const PageName> names) const;

  // Holds the page of this name, which must be here.
  int32_t Share(const PageName& name);
  // Holds an available page for new rows: a free one, or the cached one that is evicted for it.
  // Requires num_available() > 0.
  int32_t Take();
  // Says what a held page holds, now that it is full. Does nothing if it has a name, or if another
  // page has this one.
  void SetName(int32_t page, const PageName& name);
  // Takes the names from held pages: what is in them is not to be used again.
  void Forget(absl::Span<const int32_t> pages);
  // A sequence's pages, in their order, which it holds no more.
  void GiveBack(absl::Span<const int32_t> pages);

 private:
  struct Page {
    int holders = 0;
    std::optional<PageName> name;
    std::list<int32_t>::iterator place;  // in oldest_first_, while it is cached
  };

  void Hold(int32_t page);

  std::vector<Page> pages_;
  std::vector<int32_t> free_;  // the last one is taken next
  std::list<int32_t> oldest_first_;
  absl::flat_hash_map<PageName, int32_t> by_name_;
  int num_held_ = 0;
  int64_t num_evicted_ = 0;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_PAGE_BOOK_H_

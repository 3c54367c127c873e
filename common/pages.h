// Pages of the latent cache, as the scheduler counts them and the attention worker fills them.
#ifndef TANDEM_COMMON_PAGES_H_
#define TANDEM_COMMON_PAGES_H_

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

namespace tandem {

// Tokens in a page.
inline constexpr int kPageTokens = 64;

// Pages that `tokens` tokens fill, the last one maybe in part.
constexpr int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Pages [first, end) of a sequence.
struct PageRange {
  int32_t first = 0;
  int32_t end = 0;
};

// Whether a position of a sequence is in the expanded form (SequenceSpec, attention_link.h).
inline bool IsInExpandedForm(int32_t position, int32_t expanded_length,
                             const std::vector<PageRange>& absorbed_pages) {
  if (position >= expanded_length) return false;
  const int32_t page = position / kPageTokens;
  const auto next = std::upper_bound(absorbed_pages.begin(), absorbed_pages.end(), page,
                                     [](int32_t p, const PageRange& r) { return p < r.first; });
  return next == absorbed_pages.begin() || page >= std::prev(next)->end;
}

}  // namespace tandem

#endif  // TANDEM_COMMON_PAGES_H_

#include "gateway/page_book.h"

#include <openssl/sha.h>

#include <cstring>

#include "common/check.h"
#include "common/pages.h"

namespace tandem {

static_assert(sizeof(PageName) == SHA256_DIGEST_LENGTH);

PageName NameOfPage(const std::optional<PageName>& before, absl::Span<const int32_t> tokens,
                    int expanded_rows) {
  TANDEM_CHECK(tokens.size() == kPageTokens && expanded_rows <= kPageTokens);
  constexpr size_t kTokenBytes = kPageTokens * sizeof(int32_t);
  // The name before it, all zeros for none, which no page has; the tokens; the forms.
  std::array<uint8_t, sizeof(PageName) + kTokenBytes + 1> text = {};
  if (before.has_value()) std::memcpy(text.data(), before->data(), sizeof(PageName));
  std::memcpy(&text[sizeof(PageName)], tokens.data(), kTokenBytes);
  text.back() = static_cast<uint8_t>(expanded_rows);
  PageName name;
  SHA256(text.data(), text.size(), name.data());
  return name;
}

PageBook::PageBook(int total_pages) {
  pages_.resize(total_pages);
  for (int32_t page = total_pages - 1; page >= 0; --page) free_.push_back(page);
}

int PageBook::CountLeading(absl::Span<const PageName> names) const {
  int count = 0;
  for (const PageName& name : names) {
    if (!by_name_.contains(name)) break;
    ++count;
  }
  return count;
}

int PageBook::CountAvailable(absl::Span<const PageName> names) const {
  int count = 0;
  for (const PageName& name : names) count += pages_[by_name_.at(name)].holders == 0 ? 1 : 0;
  return count;
}

void PageBook::Hold(int32_t page) { num_held_ += pages_[page].holders++ == 0 ? 1 : 0; }

int32_t PageBook::Share(const PageName& name) {
  const int32_t page = by_name_.at(name);
  if (pages_[page].holders == 0) oldest_first_.erase(pages_[page].place);
  Hold(page);
  return page;
}

int32_t PageBook::Take() {
  TANDEM_CHECK(num_available() > 0);
  if (free_.empty()) {
    const int32_t page = oldest_first_.front();
    oldest_first_.pop_front();
    by_name_.erase(*pages_[page].name);
    pages_[page].name.reset();
    free_.push_back(page);
    ++num_evicted_;
  }
  const int32_t page = free_.back();
  free_.pop_back();
  Hold(page);
  return page;
}

void PageBook::SetName(int32_t page, const PageName& name) {
  TANDEM_CHECK(pages_[page].holders > 0);
  if (pages_[page].name.has_value() || !by_name_.emplace(name, page).second) return;
  pages_[page].name = name;
}

void PageBook::Forget(absl::Span<const int32_t> pages) {
  for (const int32_t page : pages) {
    TANDEM_CHECK(pages_[page].holders > 0);
    if (!pages_[page].name.has_value()) continue;
    by_name_.erase(*pages_[page].name);
    pages_[page].name.reset();
  }
}

void PageBook::GiveBack(absl::Span<const int32_t> pages) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    Page& given = pages_[*page];
    TANDEM_CHECK(given.holders > 0);
    if (--given.holders > 0) continue;
    --num_held_;
    if (given.name.has_value()) {
      given.place = oldest_first_.insert(oldest_first_.end(), *page);
    } else {
      free_.push_back(*page);
    }
  }
}

}  // namespace tandem

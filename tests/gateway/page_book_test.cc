#include "gateway/page_book.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/pages.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Tokens(int32_t first) {
  std::vector<int32_t> tokens(kPageTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
PageName Name(int32_t content) { return NameOfPage(std::nullopt, Tokens(content), 0); }

std::string Hex(const PageName& name) {
  std::string hex;
  for (const uint8_t byte : name) {
    for (const int digit : {byte >> 4, byte & 15}) hex += "0123456789abcdef"[digit];
  }
  return hex;
}

TEST(PageNameTest, IsTheHashOfAllThatDecidesWhatIsInThePage) {
  const PageName first = NameOfPage(std::nullopt, Tokens(100), 64);
  const PageName second = NameOfPage(first, Tokens(164), 0);
  // Of Python's hashlib.sha256(before + struct.pack("<64iB", *tokens, expanded_rows)).
  EXPECT_EQ(Hex(first), "82ea2d3d094aaebce1fdf85a98f7d6139029ed0bc63f2a0fcb606de13466e882");
  EXPECT_EQ(Hex(second), "78da8b422d87e541b32714c56d7d8b8f107d02bfcf2883d56fffb8588442e1e0");
}

TEST(PageNameTest, DiffersByTokensFormAndWhatIsBefore) {
  const PageName name = NameOfPage(std::nullopt, Tokens(5), 64);
  std::vector<int32_t> last_differs = Tokens(5);
  ++last_differs.back();
  EXPECT_EQ(NameOfPage(std::nullopt, Tokens(5), 64), name);
  EXPECT_NE(NameOfPage(std::nullopt, last_differs, 64), name);
  EXPECT_NE(NameOfPage(std::nullopt, Tokens(5), 0), name);
  EXPECT_NE(NameOfPage(name, Tokens(5), 64), name);
}

TEST(PageBookTest, TakesEveryPageOnceAndCountsThem) {
  PageBook book(3);
  std::vector<int32_t> pages = {book.Take(), book.Take(), book.Take()};
  std::sort(pages.begin(), pages.end());
  EXPECT_THAT(pages, ElementsAre(0, 1, 2));
  EXPECT_EQ(book.num_available(), 0);
  EXPECT_EQ(book.num_held(), 3);
  book.GiveBack(std::vector<int32_t>{1});
  EXPECT_EQ(book.num_available(), 1);
  EXPECT_EQ(book.num_cached(), 0);
  EXPECT_EQ(book.Take(), 1);
}

TEST(PageBookTest, APageStaysHeldUntilItsLastHolderGivesItBack) {
  PageBook book(2);
  const int32_t page = book.Take();
  book.SetName(page, Name(1));
  EXPECT_EQ(book.CountAvailable(std::vector<PageName>{Name(1)}), 0);
  EXPECT_EQ(book.Share(Name(1)), page);
  book.GiveBack(std::vector<int32_t>{page});
  EXPECT_EQ(book.num_held(), 1);
  EXPECT_EQ(book.num_cached(), 0);
  book.GiveBack(std::vector<int32_t>{page});
  EXPECT_EQ(book.num_held(), 0);
  EXPECT_EQ(book.num_cached(), 1);
  EXPECT_EQ(book.CountAvailable(std::vector<PageName>{Name(1)}), 1);
  EXPECT_EQ(book.Share(Name(1)), page);
  EXPECT_EQ(book.num_cached(), 0);
}

TEST(PageBookTest, EvictsWhatWasGivenBackFirstAndOfOneSequenceItsLastPage) {
  PageBook book(5);
  std::vector<int32_t> a = {book.Take(), book.Take()};
  std::vector<int32_t> b = {book.Take(), book.Take()};
  for (int i = 0; i < 2; ++i) book.SetName(a[i], Name(10 + i));
  for (int i = 0; i < 2; ++i) book.SetName(b[i], Name(20 + i));
  book.GiveBack(b);
  book.GiveBack(a);
  EXPECT_EQ(book.Take(), 4);  // free pages first
  EXPECT_EQ(book.num_evicted(), 0);
  std::vector<int32_t> evicted;
  for (int i = 0; i < 4; ++i) evicted.push_back(book.Take());
  EXPECT_THAT(evicted, ElementsAre(b[1], b[0], a[1], a[0]));
  EXPECT_EQ(book.num_evicted(), 4);
  EXPECT_EQ(book.CountLeading(std::vector<PageName>{Name(10)}), 0);
}

TEST(PageBookTest, WhatIsSharedAgainIsYoungAgain) {
  PageBook book(2);
  for (int i = 0; i < 2; ++i) {
    const int32_t page = book.Take();
    book.SetName(page, Name(i));
  }
  book.GiveBack(std::vector<int32_t>{0});
  book.GiveBack(std::vector<int32_t>{1});
  book.GiveBack(std::vector<int32_t>{book.Share(Name(0))});
  EXPECT_EQ(book.Take(), 1);
}

TEST(PageBookTest, CountsLeadingNamesOnly) {
  PageBook book(4);
  for (const int content : {1, 3}) book.SetName(book.Take(), Name(content));
  EXPECT_EQ(book.CountLeading(std::vector<PageName>{Name(1), Name(2), Name(3)}), 1);
  EXPECT_EQ(book.CountLeading(std::vector<PageName>{Name(1), Name(3)}), 2);
  EXPECT_EQ(book.CountLeading({}), 0);
}

TEST(PageBookTest, TheFirstPageKeepsANameThatTwoHave) {
  PageBook book(2);
  const int32_t first = book.Take(), second = book.Take();
  book.SetName(first, Name(1));
  book.SetName(second, Name(1));
  book.GiveBack(std::vector<int32_t>{second});
  EXPECT_EQ(book.num_cached(), 0);
  book.GiveBack(std::vector<int32_t>{first});
  EXPECT_EQ(book.num_cached(), 1);
  EXPECT_EQ(book.Share(Name(1)), first);
}

TEST(PageBookTest, WhatIsForgottenIsNotFoundAndIsFreeAfterwards) {
  PageBook book(2);
  const std::vector<int32_t> pages = {book.Take(), book.Take()};
  book.SetName(pages[0], Name(1));
  book.Forget(pages);
  EXPECT_EQ(book.CountLeading(std::vector<PageName>{Name(1)}), 0);
  book.GiveBack(pages);
  EXPECT_EQ(book.num_cached(), 0);
  EXPECT_EQ(book.num_available(), 2);
}

// Against a model that looks at everything each time.
TEST(PageBookTest, NeverIsOffByAPage) {
  struct Model {
    int holders = 0;
    int content = -1;
    int given_back = 0;  // when; of a cached page
  };
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int total = 1 + static_cast<int>(random() % 12);
    PageBook book(total);
    std::vector<Model> model(total);
    std::vector<int32_t> held;  // a page as often as it has holders
    int evicted = 0;
    for (int time = 1; time <= 300; ++time) {
      const auto count = [&](auto is) {
        return static_cast<int>(std::count_if(model.begin(), model.end(), is));
      };
      const int available = count([](const Model& m) { return m.holders == 0; });
      const int cached = count([](const Model& m) { return m.holders == 0 && m.content >= 0; });
      ASSERT_EQ(book.num_available(), available);
      ASSERT_EQ(book.num_held(), total - available);
      ASSERT_EQ(book.num_cached(), cached);
      ASSERT_EQ(book.num_evicted(), evicted);
      const int content = static_cast<int>(random() % 15);
      const auto holder = std::find_if(model.begin(), model.end(),
                                       [&](const Model& m) { return m.content == content; });
      ASSERT_EQ(book.CountLeading(std::vector<PageName>{Name(content)}),
                holder == model.end() ? 0 : 1);
      switch (random() % 4) {
        case 0: {
          if (available == 0) break;
          int oldest = -1;
          for (int page = 0; page < total; ++page) {
            if (model[page].holders > 0 || model[page].content < 0) continue;
            if (oldest < 0 || model[page].given_back < model[oldest].given_back) oldest = page;
          }
          const int32_t page = book.Take();
          ASSERT_EQ(model[page].holders, 0);
          if (available == cached) {
            ASSERT_EQ(page, oldest);
            ++evicted;
          } else {
            ASSERT_EQ(model[page].content, -1);
          }
          model[page] = {.holders = 1};
          held.push_back(page);
          break;
        }
        case 1: {
          if (held.empty()) break;
          const int32_t page = held[random() % held.size()];
          book.SetName(page, Name(content));
          if (holder == model.end() && model[page].content < 0) model[page].content = content;
          break;
        }
        case 2: {
          if (holder == model.end()) break;
          const int32_t page = book.Share(Name(content));
          ASSERT_EQ(page, holder - model.begin());
          ++holder->holders;
          held.push_back(page);
          break;
        }
        case 3: {
          if (held.empty()) break;
          std::swap(held[random() % held.size()], held.back());
          const int32_t page = held.back();
          held.pop_back();
          book.GiveBack(std::vector<int32_t>{page});
          --model[page].holders;
          model[page].given_back = time;
          break;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem
